//! `devenv run -- CMD…`: up, a command with the platform's addresses in its environment, down; the command's exit code.
//!
//! It removes what it made itself and nothing else: an environment that was there before is used, and left up. A signal ends the
//! command and all that it started, and then takes everything down; if devenv is killed, its [`guard`](crate::guard) does both.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::checks::{Checked, Verdict};
use crate::cli::Run;
use crate::cluster::{self, Found};
use crate::context::Context;
use crate::error::{Exit, Failure, explain};
use crate::evidence::{self, Told};
use crate::exec::{self, Cmd, Ended, quoted};
use crate::family::{Mark, VARIABLE};
use crate::gitops::tree::https_port;
use crate::guard::Guard;
use crate::inputs::{self, Inputs};
use crate::names::tls;
use crate::stop::Stop;
use crate::up::{self, How, Proven};
use crate::{docker, down, existing, lock};

/// Brings the environment up, runs the command, and takes the environment down.
pub async fn run(context: &Context, arguments: &Run) -> anyhow::Result<Exit> {
    let devenv = std::env::current_exe().context("find devenv's own program")?;
    run_with(context, arguments, devenv, async |inputs| {
        let how = How {
            yes: arguments.yes,
            ..How::default()
        };
        up::bring_up(context, inputs, how).await
    })
    .await
}

/// The same, for tests, which have their own way to bring something up.
pub async fn run_with(
    context: &Context,
    arguments: &Run,
    devenv: PathBuf,
    bring_up: impl AsyncFn(&Inputs) -> anyhow::Result<Proven>,
) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let command = Command::find(&arguments.command)?;
    evidence::prepare(context, &arguments.evidence)?;
    refuse_a_run_in_a_run(&environment.id)?;

    // Held to the end, so that two runs don't take the ground from under each other.
    let _run = lock::acquire(
        &context.paths.run_lock(&environment.id),
        "devenv run",
        &context.events,
        &context.stop,
    )
    .await?;
    let mark = mark(&environment.id);
    let mut guard = Guard::start(devenv, environment, &mark).await?;
    // Held while the environment is made, and while it is removed: the command may want to use devenv.
    let lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv run",
        &context.events,
        &context.stop,
    )
    .await;
    let was_up = match &lock {
        Ok(_) => was_up(context, &inputs).await,
        Err(_) => Ok(true),
    };
    let (lock, was_up) = match (lock, was_up) {
        (Ok(lock), Ok(was_up)) => (lock, was_up),
        (Err(error), _) | (_, Err(error)) => {
            guard.goodbye().await;
            return Err(error);
        }
    };
    match was_up {
        true => context.events.notice(format!(
            "{} is up already: it is used, and left up",
            environment.name
        )),
        false => guard.may_remove().await?,
    }

    let proven = bring_up(&inputs).await;
    drop(lock);
    let began = Instant::now();
    let ended = match &proven {
        Ok(Proven {
            exit: Exit::Ready | Exit::NamesNotWired,
            checked,
        }) => Some(command.run(context, &inputs, checked, &mark).await),
        _ => None,
    };
    let checked = match &proven {
        Ok(proven) => proven.checked.clone(),
        Err(_) => Vec::new(),
    };
    let outcome = Outcome::of(context, proven, ended);
    let told = outcome.evidence(&command, checked, began.elapsed());
    evidence::keep(context, &inputs, &arguments.evidence, &told).await;
    let fate = match (was_up, outcome.is_failure() && arguments.keep_on_failure) {
        (true, _) => Fate::WasUp,
        (false, true) => Fate::Kept,
        (false, false) => Fate::Removed,
    };
    let removed = match fate {
        Fate::Removed => take_down(context, &inputs).await,
        Fate::Kept | Fate::WasUp => Ok(()),
    };
    // What couldn't be removed now, the guard couldn't remove either.
    guard.goodbye().await;
    outcome.told(context, &inputs, &command, fate, removed)
}

/// The command, found before anything is made.
struct Command {
    program: PathBuf,
    words: Vec<OsString>,
}

impl Command {
    fn find(words: &[OsString]) -> Result<Self, Failure> {
        let program = words.first().cloned().unwrap_or_default();
        match which::which(&program) {
            Ok(found) => Ok(Self {
                program: found,
                words: words.to_owned(),
            }),
            Err(_) => Err(Failure::Usage {
                message: format!("there is no program {} that could be run", quoted(&program)),
                hint: format!(
                    "see what `command -v {}` says; a program in this folder is ./{}",
                    quoted(&program),
                    PathBuf::from(&program).display()
                ),
            }),
        }
    }

    async fn run(
        &self,
        context: &Context,
        inputs: &Inputs,
        checked: &[Checked],
        mark: &str,
    ) -> anyhow::Result<Ended> {
        let step = context.events.step("command");
        step.waiting(self.to_string());
        let mut cmd = Cmd::new("the command")
            .at(&self.program)
            .args(self.words.iter().skip(1))
            .env(VARIABLE, mark);
        for (name, value) in variables(context, inputs, checked) {
            cmd = cmd.env(name, value);
        }
        let family = Mark {
            value: mark.to_owned(),
            open: None,
        };
        let ended = {
            let _terminal = context.events.borrow_terminal().await;
            exec::run_in_front(&cmd, &context.stop, &family).await?
        };
        if !ended.left.is_empty() {
            context.events.notice(format!(
                "the command left these running, which were ended: {}",
                ended.left.join(", ")
            ));
        }
        match ended.code {
            0 => step.done(&ended.described),
            _ => step.failed(&ended.described),
        }
        Ok(ended)
    }
}

/// A command that is longer is told by its first word.
const LONG: usize = 60;

impl Command {
    /// As a part of a sentence.
    fn short(&self) -> String {
        let all = self.to_string();
        match (all.chars().count() > LONG, self.words.first()) {
            (true, Some(program)) => format!("{} …", quoted(program)),
            _ => all,
        }
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<String> = self.words.iter().map(|word| quoted(word)).collect();
        formatter.write_str(&words.join(" "))
    }
}

/// What the command finds in its environment. A name that this machine doesn't know gives way to the one below `localhost`.
fn variables(context: &Context, inputs: &Inputs, checked: &[Checked]) -> Vec<(String, OsString)> {
    let environment = &inputs.environment;
    let mut variables: Vec<(String, OsString)> = vec![
        (
            "KUBECONFIG".to_owned(),
            context.paths.kubeconfig(&environment.id).into(),
        ),
        (
            "DEVENV_ENVIRONMENT".to_owned(),
            environment.file.clone().into(),
        ),
        (
            "DEVENV_CA".to_owned(),
            tls::certificate_file(&context.paths, &environment.domain).into(),
        ),
    ];
    let port = match https_port(inputs) {
        443 => String::new(),
        port => format!(":{port}"),
    };
    for name in &inputs.names {
        let is_known = !checked.iter().any(|checked| {
            checked.name == format!("name {name}") && checked.verdict == Verdict::NotWired
        });
        let host = match is_known {
            true => name.clone(),
            false => tls::fallback(name, &environment.domain),
        };
        let system = name
            .strip_suffix(&format!(".{}", environment.domain))
            .unwrap_or(name);
        variables.push((
            format!("DEVENV_URL_{}", as_variable(system)),
            format!("https://{host}{port}").into(),
        ));
    }
    variables
}

/// "my-app" is "MY_APP".
fn as_variable(name: &str) -> String {
    name.chars()
        .map(|letter| match letter.is_ascii_alphanumeric() {
            true => letter.to_ascii_uppercase(),
            false => '_',
        })
        .collect()
}

/// What all processes of this run are known by. Unique on this machine for as long as it matters.
fn mark(environment: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{environment}-{}-{}", std::process::id(), now.as_millis())
}

/// It would wait for itself.
fn refuse_a_run_in_a_run(environment: &str) -> Result<(), Failure> {
    let outer = std::env::var(VARIABLE).unwrap_or_default();
    match outer.starts_with(&format!("{environment}-")) {
        true => Err(Failure::Usage {
            message: "this is in a `devenv run` of the same environment, which is up already"
                .to_owned(),
            hint: "run the command itself: KUBECONFIG and the addresses are set".to_owned(),
        }),
        false => Ok(()),
    }
}

/// Whether there is a whole cluster, running or stopped, that somebody made before. One that is half made is nobody's: `up`
/// itself makes it anew.
async fn was_up(context: &Context, inputs: &Inputs) -> anyhow::Result<bool> {
    let environment = &inputs.environment;
    if environment.existing.is_some() {
        let client = existing::client(context, environment).await?;
        let namespace = existing::argocd_namespace(&client, environment).await?;
        return Ok(namespace.is_some());
    }
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, &inputs.environment).await?;
    let found = cluster::observe(&docker, &inputs.environment, &nodes).await?;
    Ok(matches!(found, Found::Running | Found::Stopped(_)))
}

/// Removes everything, also after a signal.
async fn take_down(context: &Context, inputs: &Inputs) -> anyhow::Result<()> {
    let context = Context {
        stop: Stop::new(),
        ..context.clone()
    };
    let environment = &inputs.environment;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv run",
        &context.events,
        &context.stop,
    )
    .await?;
    let step = context.events.step("down");
    down::remove(&context, environment, down::Keep::AsItWas, Some(&step)).await?;
    step.done("removed");
    Ok(())
}

/// What becomes of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Removed,
    Kept,
    WasUp,
}

/// How it went, up to the point at which the environment is removed or left.
#[derive(Debug)]
enum Outcome {
    /// A signal ended it.
    Stopped(anyhow::Error),
    /// It didn't come up, or the command couldn't be started.
    Failed(anyhow::Error),
    /// It came up, but not well; the command wasn't run.
    Unwell(Exit),
    /// The command ended by itself.
    Ended(Ended),
}

impl Outcome {
    fn of(
        context: &Context,
        proven: anyhow::Result<Proven>,
        ended: Option<anyhow::Result<Ended>>,
    ) -> Self {
        match (proven, ended) {
            (Err(error), _) | (_, Some(Err(error))) if context.stop.is_requested() => {
                Self::Stopped(error)
            }
            (Err(error), _) | (_, Some(Err(error))) => Self::Failed(error),
            (Ok(_), Some(Ok(ended))) => Self::Ended(ended),
            (Ok(proven), None) => Self::Unwell(proven.exit),
        }
    }

    /// Whether somebody may want to look at the environment now. Not after a signal: whoever sent it wants all to be gone.
    fn is_failure(&self) -> bool {
        match self {
            Self::Stopped(_) => false,
            Self::Failed(_) | Self::Unwell(_) => true,
            Self::Ended(ended) => ended.code != 0,
        }
    }

    /// What is kept of it. The command counts as a check.
    fn evidence(&self, command: &Command, mut checked: Vec<Checked>, took: Duration) -> Told {
        match self {
            Self::Stopped(error) | Self::Failed(error) => Told::failed("run", error),
            Self::Unwell(exit) => Told::ended("run", *exit, &checked),
            Self::Ended(ended) => {
                checked.push(Checked {
                    name: "command".to_owned(),
                    proves: "the command of `devenv run` succeeds".to_owned(),
                    how: command.to_string(),
                    verdict: match ended.code {
                        0 => Verdict::Passed,
                        _ => Verdict::Failed,
                    },
                    saw: ended.described.clone(),
                    seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
                });
                Told {
                    command: "run",
                    checked,
                    failed: (ended.code != 0)
                        .then(|| format!("{}: {}", command.short(), ended.described)),
                }
            }
        }
    }

    /// The last word, and the exit code.
    fn told(
        self,
        context: &Context,
        inputs: &Inputs,
        command: &Command,
        fate: Fate,
        removed: anyhow::Result<()>,
    ) -> anyhow::Result<Exit> {
        let name = &inputs.environment.name;
        let what_now = match (fate, &removed) {
            (Fate::Removed, Ok(())) => format!("{name} is gone"),
            (Fate::Removed, Err(error)) => {
                context.events.notice(format!(
                    "{name} couldn't be removed: {error:#}; when that is mended: devenv down --environment {name}"
                ));
                format!("{name} is not gone")
            }
            (Fate::WasUp, _) => format!("{name} is left up, as it was before"),
            (Fate::Kept, _) => format!("{name} is kept"),
        };
        let exit = self.last_word(context, command, fate, &what_now, removed);
        if fate == Fate::Kept {
            context.events.notice(format!(
                "look at it:  devenv status --environment {name}, or: KUBECONFIG={} kubectl get pods -A\nremove it:   devenv \
                 down --environment {name}",
                context.paths.kubeconfig(&inputs.environment.id).display()
            ));
        }
        exit
    }

    fn last_word(
        self,
        context: &Context,
        command: &Command,
        fate: Fate,
        what_now: &str,
        removed: anyhow::Result<()>,
    ) -> anyhow::Result<Exit> {
        match self {
            Self::Stopped(error) => {
                let (exit, _) = explain(&error);
                context.events.verdict(format!("stopped; {what_now}"));
                Ok(exit)
            }
            Self::Ended(ended) => {
                context.events.verdict(format!(
                    "{}: {}; {what_now}",
                    command.short(),
                    ended.described
                ));
                match (ended.code, removed) {
                    (0, Err(error)) => Err(error),
                    (code, _) => Ok(Exit::Command(code)),
                }
            }
            Self::Unwell(exit) => {
                context.events.verdict(format!(
                    "{} was not run: checks failed; {what_now}",
                    command.short()
                ));
                Ok(exit)
            }
            Self::Failed(error) if fate != Fate::Removed => {
                context.events.notice(what_now);
                Err(error)
            }
            Self::Failed(error) => {
                context.events.notice(what_now);
                Err(Failure::Removed {
                    story: format!("{error:#}"),
                    exit: explain(&error).0,
                    hint: "devenv run --keep-on-failure leaves it up to be looked at".to_owned(),
                }
                .into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_variables() {
        assert_eq!(as_variable("my-app.v2"), "MY_APP_V2");
    }
}
