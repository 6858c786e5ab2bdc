//! devenv brings a team's whole platform to proven ready on a local Kubernetes cluster, explains what isn't, and takes it
//! away without a trace. This page is the map of its code.
//!
//! # The way through `up`
//! ```text
//! command line ─ cli          cluster-configs/, bundles/ ─ inputs (environment, bundle, need, pins, cluster::config, yaml)
//!    │                           every mistake is found before anything is touched
//!    └──────────────► up ◄──────┘
//!                     │ cluster   observe → decide → create or start, and the API server's client
//!                     │ images    which ones, in which order ─ store (layout, registry, packages) → store::import
//!                     │ gitops    argocd (install) · source, git, tree, upstream (push) · waves (decide) · settle (do and wait)
//!                     │           provide (what git can't hold: secrets, addresses, and definitions ahead of time)
//!                     │ existing  all of it on a cluster that is there already: what is in it, rights, one question, removal
//!                     │ names     a marked block in the hosts file: names::hosts decides, hosts_file writes, helper does it as root
//!                     │           tls (a CA for the domain, a certificate for the gateway) ─ trust (the machine's stores)
//!                     │           cluster::dns (the same names inside the cluster)
//!                     │ checks    what is up does what it is for: one proof for each arrow of the architecture
//!                     ▼
//!                   ready, or an error with its reason and a hint
//! ```
//! [`mod@run`] is up, a command, down; a [`guard`] stands beside it for the day on which it is killed, and [`family`] finds all
//! that it started. [`evidence`] is what a CI system keeps of a run, with secrets made unreadable by [`mask`].
//!
//! [`down`], [`reset`], [`sync`], [`status`], [`list`], [`check`], [`secrets`], [`stock`], [`hosts`], [`trust`], [`init`] and
//! [`plan`] are recipes of the same parts; each reads from top to bottom. [`doctor`] looks at the machine before any of it.
//!
//! # Invariants
//! - State is observed, never remembered: Docker's containers, the API server and the files are asked anew each time, and
//!   a part that needs no change is left alone. A killed run is resumed by running it again.
//! - Only what carries the environment's mark is ever changed or removed ([`cluster::kind::mark`], [`cluster::k3d::MARK`],
//!   [`existing::MARK`]).
//! - Decisions are pure functions over plain data; the world is touched in few, small places.
//! - Every wait has a deadline and says what it waits for ([`wait`]).
//! - Only [`exec`] starts processes, only [`report`] prints, only `main` exits, only [`yaml`] knows the YAML library, only
//!   [`docker`] talks to Docker. Lints hold the first three.
//! - The kubeconfig that is used is the environment's own, never the user's current context.

pub mod bundle;
pub mod check;
pub mod checks;
pub mod cli;
pub mod cluster;
pub mod context;
pub mod docker;
pub mod doctor;
pub mod down;
pub mod environment;
pub mod error;
pub mod event;
pub mod evidence;
pub mod exec;
pub mod existing;
pub mod family;
pub mod gitops;
pub mod guard;
pub mod hosts;
pub mod images;
pub mod init;
pub mod inputs;
pub mod junit;
pub mod kube;
pub mod kustomize;
pub mod list;
pub mod lock;
pub mod mask;
pub mod names;
pub mod need;
pub mod paths;
pub mod pins;
pub mod plan;
pub mod quantity;
pub mod report;
pub mod reset;
pub mod run;
pub mod secrets;
pub mod snapshot;
pub mod status;
pub mod stock;
pub mod stop;
pub mod store;
pub mod suggest;
pub mod sync;
pub mod trust;
pub mod up;
pub mod wait;
pub mod yaml;

use anyhow::Context as _;
use clap::CommandFactory as _;

use cli::{Cli, Command, Global};
use context::Context;
use error::Exit;
use event::Events;
use stop::Stop;

/// Runs one command.
pub async fn run(cli: Cli, events: Events, stop: Stop) -> anyhow::Result<Exit> {
    let Cli {
        command,
        global:
            Global {
                environment,
                output,
                timeout,
                verbose,
                ..
            },
    } = cli;
    if let Command::HostsHelper = command {
        return names::helper::help(&events, &stop).await;
    }
    let context = Context {
        events,
        stop,
        paths: paths::Paths::from_process()?,
        directory: std::env::current_dir().context("find the working directory")?,
        selector: environment.as_str().into(),
        timeout,
    };
    match command {
        Command::Up(arguments) => up::up(&context, &arguments).await,
        Command::Down(arguments) => down::down(&context, &arguments).await,
        Command::Reset(arguments) => reset::reset(&context, arguments.rebuild).await,
        Command::Snapshot { command } => snapshot::snapshot(&context, command, output).await,
        Command::Run(arguments) => run::run(&context, &arguments).await,
        Command::Guard { mark } => guard::guard(&context, &mark).await,
        Command::Sync(arguments) => sync::sync(&context, &arguments).await,
        Command::Status(arguments) if arguments.watch => status::watch(&context, output).await,
        Command::Status(_) => {
            let (exit, text) = status::status(&context, output).await?;
            report::data(&text)?;
            Ok(exit)
        }
        Command::Images { what } => {
            let (exit, text) = stock::images(&context, what, output).await?;
            report::data(&text)?;
            Ok(exit)
        }
        Command::List => {
            let text = list::list(&context, output).await?;
            report::data(&text)?;
            Ok(Exit::Ready)
        }
        Command::Doctor => {
            let (exit, text) = doctor::doctor(&context, output, verbose > 0).await?;
            report::data(&text)?;
            Ok(exit)
        }
        Command::Trust { command } => trust::trust(&context, command, output).await,
        Command::Hosts { what } => hosts::hosts(&context, what, output).await,
        // Has been done above: it is not to need anything of a user's.
        Command::HostsHelper => Ok(Exit::Ready),
        Command::Check(arguments) => {
            let (exit, text) = check::check(&context, output, &arguments.evidence).await?;
            if output == cli::Output::Text {
                report::data(&text)?;
            }
            Ok(exit)
        }
        Command::Secrets(arguments) => {
            let (exit, text) = secrets::secrets(&context, output, arguments.show).await?;
            report::data(&text)?;
            Ok(exit)
        }
        Command::Init { folder } => init::init(&context, &folder),
        Command::Kubeconfig => {
            let environment = inputs::environment(&context.selector, &context.directory)?;
            report::data(
                &context
                    .paths
                    .kubeconfig(&environment.id)
                    .display()
                    .to_string(),
            )?;
            Ok(Exit::Ready)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "devenv", &mut script);
            report::data(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Ready)
        }
    }
}
