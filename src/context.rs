//! What every command needs besides its own arguments.

use std::path::PathBuf;
use std::time::Duration;

use crate::environment::Selector;
use crate::event::Events;
use crate::paths::Paths;
use crate::stop::Stop;

/// Where a command runs, what it may use, and to whom it talks.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where events go.
    pub events: Events,
    /// Whether a signal asked to stop.
    pub stop: Stop,
    /// Where devenv's own files are.
    pub paths: Paths,
    /// The working directory.
    pub directory: PathBuf,
    /// The environment that was chosen.
    pub selector: Selector,
    /// How long one wait may last.
    pub timeout: Duration,
}
