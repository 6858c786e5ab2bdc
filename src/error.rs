//! The failures devenv knows by name, and what each means for the exit code and the hint.
//!
//! A leaf failure is a value of [`Failure`]; everything between it and `main` adds context with `anyhow`. [`explain`] is
//! the one place that turns a chain of errors into an exit code and a hint, and it is pure.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::{docker, kube};

/// The exit codes of devenv, as the README lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything asked for is there and proven.
    Ready,
    /// A step failed.
    StepFailed,
    /// The input is wrong; found before anything was touched.
    WrongInput,
    /// Up, but a check failed.
    CheckFailed,
    /// Up, but the names are not wired.
    NamesNotWired,
    /// Interrupted (SIGINT).
    Interrupted,
    /// Terminated (SIGTERM).
    Terminated,
    /// What the command of `devenv run` ended with.
    Command(u8),
}

impl Exit {
    /// As the system takes it.
    pub fn code(self) -> u8 {
        match self {
            Self::Ready => 0,
            Self::StepFailed => 1,
            Self::WrongInput => 2,
            Self::CheckFailed => 3,
            Self::NamesNotWired => 4,
            Self::Interrupted => 130,
            Self::Terminated => 143,
            Self::Command(code) => code,
        }
    }
}

/// A signal that asks devenv to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// One mistake in a file that a person wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file, as the person would name it (relative to the working directory where that is shorter).
    pub file: PathBuf,
    /// Line and column, both from 1, where the parser knows them.
    pub place: Option<(usize, usize)>,
    /// What is wrong: "unknown key `wvae`, expected one of `wave`, `needs`, …".
    pub message: String,
    /// The offending line of the file, for the snippet.
    pub source_line: Option<String>,
    /// What to do about it, if there is something to say beyond the message.
    pub help: Option<String>,
}

/// What went wrong, in the kinds that change the exit code or have a remedy.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Files that a person wrote are wrong.
    #[error("{}", list(.0))]
    Input(Vec<Mistake>),
    /// The command line or its combination with the files is wrong.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to type instead.
        hint: String,
    },
    /// A program devenv needs isn't there.
    #[error("{tool} is not on PATH")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// How to get it.
        hint: String,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}){}", quote(.stderr_tail))]
    CommandFailed {
        /// As it could be pasted into a shell.
        command: String,
        /// "exit status 1", "killed by signal 9".
        status: String,
        /// The last lines it wrote to stderr.
        stderr_tail: String,
        /// What to type next, where that is more than to see all of its output.
        hint: Option<String>,
    },
    /// The Docker daemon doesn't answer or doesn't let us in.
    #[error("{message}")]
    Docker {
        /// What was asked of which address, and what came back.
        message: String,
        /// What to type.
        hint: String,
    },
    /// A port that must be published is taken.
    #[error("port {port} on {address} is taken{}", by(.holder))]
    PortTaken {
        /// The loopback address.
        address: String,
        /// The port.
        port: u16,
        /// Who holds it, where that can be known.
        holder: Option<String>,
        /// What to type, and what to change instead.
        hint: String,
    },
    /// Something with our name isn't ours, so it is left alone.
    #[error("{message}")]
    NotOurs {
        /// What was found.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A wait ran into its deadline.
    #[error("gave up waiting for {what} after {}\nlast seen: {last_seen}", humantime::format_duration(*.after))]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The last thing seen, down to the pod's event or log line.
        last_seen: String,
        /// What to type next.
        hint: String,
    },
    /// A wait ended early, because what it waits for can't come.
    #[error("{what} can't become ready: {reason}")]
    CannotHeal {
        /// What was waited for.
        what: String,
        /// Why it can't come, down to the pod's event or log line.
        reason: String,
        /// What to type next.
        hint: String,
    },
    /// It failed, and what it had made was removed again, so that the remedy is another one.
    #[error("{story}")]
    Removed {
        /// What failed, from the outside in.
        story: String,
        /// The exit code that goes with it.
        exit: Exit,
        /// What to type to see more next time.
        hint: String,
    },
    /// Something else failed that has a remedy.
    #[error("{message}")]
    Other {
        /// What was being done, to which thing, what was seen.
        message: String,
        /// What to type next.
        hint: String,
    },
    /// A signal asked us to stop.
    #[error("{}", match .0 { Signal::Interrupt => "interrupted", Signal::Terminate => "terminated" })]
    Stopped(Signal),
}

/// The exit code and the hint of an error, found anywhere in its chain.
pub fn explain(error: &anyhow::Error) -> (Exit, Option<String>) {
    let Some(failure) = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
    else {
        let hint = match (docker::answered(error), is_disk_full(error)) {
            (true, true) => Some(FREE_DOCKERS_DISK),
            (false, true) => Some(FREE_A_DISK),
            (true, false) => Some(ASK_DOCKER),
            (false, false) if kube::is_silent(error) => Some(ASK_CLUSTER),
            (false, false) => None,
        };
        return (Exit::StepFailed, hint.map(str::to_owned));
    };
    match failure {
        Failure::CommandFailed { .. } | Failure::TimedOut { .. } if is_disk_full(error) => {
            (Exit::StepFailed, Some(FREE_DOCKERS_DISK.to_owned()))
        }
        Failure::Input(_) => (Exit::WrongInput, None), // each mistake carries its own help
        Failure::Usage { hint, .. } => (Exit::WrongInput, Some(hint.clone())),
        Failure::Removed { exit, hint, .. } => (*exit, Some(hint.clone())),
        Failure::Stopped(Signal::Interrupt) => (Exit::Interrupted, Some(RESUME.to_owned())),
        Failure::Stopped(Signal::Terminate) => (Exit::Terminated, Some(RESUME.to_owned())),
        Failure::CommandFailed { hint, .. } => {
            let verbose = "run the same command again with -v to see every line of its output";
            let hint = hint.clone().unwrap_or_else(|| verbose.to_owned());
            (Exit::StepFailed, Some(hint))
        }
        Failure::ToolMissing { hint, .. }
        | Failure::PortTaken { hint, .. }
        | Failure::Docker { hint, .. }
        | Failure::NotOurs { hint, .. }
        | Failure::TimedOut { hint, .. }
        | Failure::CannotHeal { hint, .. }
        | Failure::Other { hint, .. } => (Exit::StepFailed, Some(hint.clone())),
    }
}

/// Docker, kind and programs in nodes tell it in words only.
fn is_disk_full(error: &anyhow::Error) -> bool {
    format!("{error:#}")
        .to_lowercase()
        .contains("no space left on device")
}

const ASK_DOCKER: &str = "`docker info` shows whether Docker answers; when it does, run the same command again, it goes on";

const ASK_CLUSTER: &str = "`devenv status` shows whether the cluster answers; when it does, run the same command again, it goes on";

const FREE_A_DISK: &str =
    "`df -h` shows which disk is full; with some of it free run the same command again";

const FREE_DOCKERS_DISK: &str = "`docker system df` and `df -h` show what takes the space; with some of it free run the same command again, it goes on";

const RESUME: &str = "what was made is still there: `devenv up` resumes, `devenv down` removes it";

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.file.display())?;
        if let Some((line, column)) = self.place {
            write!(formatter, ":{line}:{column}")?;
        }
        write!(formatter, ": {}", self.message)?;
        if let (Some((line, column)), Some(source)) = (self.place, &self.source_line) {
            let gutter = line.to_string().len();
            let (source, offset) = around(source, column.saturating_sub(1));
            write!(
                formatter,
                "\n{:gutter$} |\n{line} | {source}\n{:gutter$} | {:offset$}^",
                "", "", "",
            )?;
        }
        if let Some(help) = &self.help {
            write!(formatter, "\nhint: {help}")?;
        }
        Ok(())
    }
}

/// The part of a long line around one of its characters, and where that character is in it.
fn around(line: &str, offset: usize) -> (String, usize) {
    const WIDTH: usize = 100;
    let length = line.chars().count();
    if length <= WIDTH {
        return (line.to_owned(), offset);
    }
    let start = offset.saturating_sub(WIDTH / 2).min(length - WIDTH);
    let before = if start > 0 { "…" } else { "" };
    let after = if start + WIDTH < length { "…" } else { "" };
    let part: String = line.chars().skip(start).take(WIDTH).collect();
    let shown = format!("{before}{part}{after}");
    (shown, offset - start + before.chars().count())
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n\n")
}

fn quote(stderr_tail: &str) -> String {
    match stderr_tail.trim_end() {
        "" => String::new(),
        tail => format!(
            "\n{}",
            tail.lines()
                .map(|line| format!("  | {line}"))
                .collect::<Vec<_>>()
                .join("\n")
        ),
    }
}

fn by(holder: &Option<String>) -> String {
    holder
        .as_ref()
        .map(|holder| format!(" by {holder}"))
        .unwrap_or_default()
}
