//! All processes that a `devenv run` started, however far they have wandered.
//!
//! A process group is left by every `setsid`, and the number of a parent is lost when the parent dies. What stays is what was
//! inherited: a variable of the environment ([`VARIABLE`]), and the open file of the lock that `run` holds. CI systems find
//! what their jobs leave in the first of these ways. Where there is no `/proc` (macOS), nobody is found, and only the group of
//! the command itself is ended ([`crate::exec`]).

use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use crate::exec::GRACE;

/// The variable whose value marks the command of a `devenv run` and all that it starts.
pub const VARIABLE: &str = "DEVENV_RUN";

/// How often it is looked whether they are gone.
const PAUSE: Duration = Duration::from_millis(20);

/// By what the members of a family are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The value of [`VARIABLE`].
    pub value: String,
    /// A file that they have inherited open, if that counts too.
    pub open: Option<PathBuf>,
}

/// A living process of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pid: Pid,
    name: String,
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} (pid {})", self.name, self.pid)
    }
}

/// Those who live, without the process that asks.
pub fn members(mark: &Mark) -> Vec<Member> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter_map(|process| {
            let folder = process.path();
            let number = process.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(folder.join("stat")).ok()?;
            let (name, state) = name_and_state(&stat)?;
            let belongs = Pid::from_raw(number) != Pid::this()
                && !matches!(state, 'Z' | 'X')
                && (carries(&folder, &mark.value) || has_open(&folder, mark.open.as_deref()));
            belongs.then(|| Member {
                pid: Pid::from_raw(number),
                name: name.to_owned(),
            })
        })
        .collect()
}

/// Ends all of them, in order: SIGTERM, ten seconds, SIGKILL. Gives those who were there.
pub async fn end(mark: &Mark) -> Vec<Member> {
    let found = members(mark);
    for (signal, within) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, GRACE)] {
        let deadline = Instant::now() + within;
        let mut asked = Vec::new();
        loop {
            let living = members(mark);
            if living.is_empty() {
                return found;
            }
            // Who is started while the others end is asked as well.
            for member in living {
                if !asked.contains(&member.pid) {
                    let _ = kill(member.pid, signal);
                    asked.push(member.pid);
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            sleep(PAUSE).await;
        }
    }
    found
}

/// Whether a process was stopped by a signal, as a terminal does to those who read from it without being in front.
pub fn is_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    name_and_state(&stat).is_some_and(|(_, state)| state == 'T')
}

/// "4711 (any (name)) S 1 …"
fn name_and_state(stat: &str) -> Option<(&str, char)> {
    let (front, fields) = stat.rsplit_once(") ")?;
    let (_, name) = front.split_once(" (")?;
    Some((name, fields.chars().next()?))
}

fn carries(process: &Path, value: &str) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    let wanted = format!("{VARIABLE}={value}");
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == wanted.as_bytes())
}

fn has_open(process: &Path, file: Option<&Path>) -> bool {
    let Some(file) = file else { return false };
    let Ok(open) = fs::read_dir(process.join("fd")) else {
        return false;
    };
    open.flatten()
        .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
        .any(|target| {
            let target = target.as_os_str().as_bytes();
            // The kernel says so of a file that was removed meanwhile.
            target.strip_suffix(b" (deleted)").unwrap_or(target) == file.as_os_str().as_bytes()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let read = |stat| name_and_state(stat).map(|(name, state)| (name.to_owned(), state));
        assert_eq!(
            read("4711 (a) (b) c) S 1 4700"),
            Some(("a) (b) c".to_owned(), 'S'))
        );
        assert_eq!(read(""), None);
    }
}
