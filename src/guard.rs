//! The guard of a `devenv run`: a process of its own that sees to it that nothing is left when devenv itself is killed, as CI
//! systems do to a job that took too long.
//!
//! devenv holds one end of a pipe and the guard reads the other. Through it devenv says, in lines, from when on the environment
//! is its own to remove ([`Guard::may_remove`]), and goodbye. A pipe that ends without goodbye is a devenv that is gone: then the
//! guard ends what it left running, and removes what it made.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::context::Context;
use crate::environment::Environment;
use crate::error::Exit;
use crate::exec::{self, Apart, Cmd};
use crate::family::{self, Mark};
use crate::stop::Stop;
use crate::{down, inputs, lock};

/// The hidden command that the guard is.
pub const COMMAND: &str = "__guard";

const READY: &str = "ready";
const MAY_REMOVE: &str = "may remove";
const GOODBYE: &str = "goodbye";

/// How long the guard may take until it stands.
const STANDS_WITHIN: Duration = Duration::from_secs(10);

/// devenv's end of the pipe. Dropped without [`Guard::goodbye`], it is as if devenv had been killed.
#[derive(Debug)]
pub struct Guard(Apart);

impl Guard {
    /// Starts one, and waits until it stands. `program` is devenv.
    pub async fn start(
        program: PathBuf,
        environment: &Environment,
        mark: &str,
    ) -> anyhow::Result<Self> {
        let cmd = Cmd::new("devenv")
            .at(program)
            .arg("--quiet")
            .arg("--environment")
            .arg(&environment.file)
            .arg(COMMAND)
            .arg(mark)
            // By these, runners of GitHub Actions and Jenkins know what to kill at a job's end.
            .env("RUNNER_TRACKING_ID", "0")
            .env("BUILD_ID", "dontKillMe")
            .env("JENKINS_NODE_COOKIE", "dontKillMe")
            .env("GITHUB_STEP_SUMMARY", "");
        let mut guard = exec::start_apart(&cmd).await?;
        let said = guard.line(STANDS_WITHIN).await;
        anyhow::ensure!(
            said == READY,
            "`{cmd}`, which removes everything if devenv is killed, didn't start within {} s",
            STANDS_WITHIN.as_secs()
        );
        Ok(Self(guard))
    }

    /// From now on the environment is this run's own.
    pub async fn may_remove(&mut self) -> anyhow::Result<()> {
        self.0.say(MAY_REMOVE).await
    }

    /// Nothing is left to be done.
    pub async fn goodbye(mut self) {
        // A guard that is gone has nothing to be told.
        let _ = self.0.say(GOODBYE).await;
        self.0.end().await;
    }
}

/// Stands guard until devenv says goodbye or is gone.
pub async fn guard(context: &Context, mark: &str) -> anyhow::Result<Exit> {
    // What ends devenv's session or its process group is not to end the guard, and neither is a signal to all of a user's
    // processes: whoever sends one wants everything to be gone.
    let _ = nix::unistd::setsid();
    let context = Context {
        stop: Stop::new(),
        ..context.clone()
    };
    // Read now: the folder may be gone by the time it is needed.
    let environment = inputs::environment(&context.selector, &context.directory)?;
    crate::report::data(READY)?;

    let mut may_remove = false;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.context("listen to devenv")? {
        match line.as_str() {
            MAY_REMOVE => may_remove = true,
            GOODBYE => return Ok(Exit::Ready),
            _ => {}
        }
    }

    let run_lock = context.paths.run_lock(&environment.id);
    let left = family::end(&Mark {
        value: mark.to_owned(),
        open: Some(run_lock.clone()),
    })
    .await;
    let left: Vec<String> = left.iter().map(ToString::to_string).collect();
    let ended = match left.is_empty() {
        true => String::new(),
        false => format!("; {} ended", left.join(", ")),
    };
    let name = &environment.name;
    if may_remove {
        context.events.notice(format!(
            "devenv run was killed{ended}; what it made of {name} is removed"
        ));
        let _lock = lock::acquire(
            &context.paths.lock(&environment.id),
            "devenv down",
            &context.events,
            &context.stop,
        )
        .await?;
        down::remove(&context, &environment, down::Keep::AsItWas, None).await?;
        context.events.verdict(format!("{name} is gone"));
    } else {
        context.events.notice(format!(
            "devenv run was killed{ended}; {name} was up before and is left up"
        ));
    }
    // Inherited from devenv, and held until now: whoever waits for that run goes on when the guard is gone.
    let _ = std::fs::remove_file(run_lock);
    Ok(Exit::Ready)
}
