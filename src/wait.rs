//! Waiting, in one way for everything: look, say what is seen, look again; end at the deadline, at a signal, or as
//! soon as it is known that the thing can't come.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::Failure;
use crate::event::Step;
use crate::stop::Stop;

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look<T> {
    /// It is there.
    Ready(T),
    /// Not yet; in words, what was seen instead.
    NotYet(String),
    /// It can't come any more.
    Never {
        /// In words, why.
        reason: String,
        /// What to type, where that isn't what the wait says.
        hint: Option<String>,
    },
}

/// What is waited for, for how long, and what to type when it doesn't come.
#[derive(Debug, Clone)]
pub struct Wait {
    /// The thing, as a noun: "the API server".
    pub what: String,
    /// The deadline.
    pub within: Duration,
    /// Between two looks.
    pub every: Duration,
    /// The command to type when it doesn't come.
    pub hint: String,
}

/// Looks until the thing is there.
///
/// A look that fails is no reason to give up (an API server that restarts refuses connections for a while): its error
/// is what was "last seen".
pub async fn wait_for<T, F, Fut>(
    wait: &Wait,
    step: &Step,
    stop: &Stop,
    mut look: F,
) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = anyhow::Result<Look<T>>>,
{
    let started = Instant::now();
    let mut last_seen = String::new();
    loop {
        let seen = tokio::select! {
            seen = look() => seen.unwrap_or_else(|error| Look::NotYet(format!("{error:#}"))),
            () = stop.requested() => return Err(stop.error()),
        };
        let seen = match seen {
            Look::Ready(thing) => return Ok(thing),
            Look::Never { reason, hint } => {
                return Err(Failure::CannotHeal {
                    what: wait.what.clone(),
                    reason,
                    hint: hint.unwrap_or_else(|| wait.hint.clone()),
                }
                .into());
            }
            Look::NotYet(seen) => seen,
        };
        if seen != last_seen {
            step.waiting(&seen);
            last_seen = seen;
        }
        if started.elapsed() >= wait.within {
            return Err(Failure::TimedOut {
                what: wait.what.clone(),
                after: wait.within,
                last_seen,
                hint: wait.hint.clone(),
            }
            .into());
        }
        tokio::select! {
            () = sleep(wait.every) => {}
            () = stop.requested() => return Err(stop.error()),
        }
    }
}
