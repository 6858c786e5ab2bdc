//! The program: the runtime, signals, the reporter, and the exit code. Nothing else.

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};
use devenv::cli::{Cli, Command, Output};
use devenv::error::{Exit, Failure, Signal};
use devenv::event::Events;
use devenv::report::{self, Flags, Format, Style};
use devenv::stop::Stop;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let title = format!("devenv {}", matches.subcommand_name().unwrap_or_default());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let style = Style::from_process(Flags {
        format: match cli.global.output {
            Output::Text => Format::Text,
            Output::Json => Format::Json,
        },
        quiet: cli.global.quiet,
        verbose: cli.global.verbose,
        color: cli.global.color,
        shows_checks: matches!(cli.command, Command::Check(_)),
    });
    log(cli.global.verbose);
    // One TLS library, one provider of its cryptography, for everything that talks TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            return code(report::error(
                &anyhow::anyhow!("start the runtime: {error}"),
                style,
            ));
        }
    };
    let exit = runtime.block_on(run(cli, &title, style));
    // A task that still reads a pipe of somebody's must not keep the program.
    runtime.shutdown_background();
    code(exit)
}

async fn run(cli: Cli, title: &str, style: Style) -> Exit {
    let (stop, second_signal) = match Stop::on_signals() {
        Ok(stop) => stop,
        Err(error) => return report::error(&anyhow::anyhow!("listen for signals: {error}"), style),
    };
    let (events, receiver) = Events::channel_until(stop.clone());
    let reporter = tokio::spawn(report::run(receiver, style));
    let work = devenv::run(cli, events, stop);
    let ended = tokio::select! {
        ended = work => ended,
        signal = second_signal => return at_once(signal.unwrap_or(Signal::Interrupt)),
    };
    // The error comes after the last event, never between two.
    let summary = reporter.await;
    let ended = ended.map_err(without_detail_of_a_stop);
    if let Ok(summary) = summary {
        report::job_summary(title, &summary, ended.as_ref().err(), style);
    }
    ended.unwrap_or_else(|error| report::error(&error, style))
}

/// Whoever stopped devenv needn't be told at which of the things that ran side by side it was noticed first.
fn without_detail_of_a_stop(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<Failure>() {
        Some(Failure::Stopped(signal)) => Failure::Stopped(*signal).into(),
        _ => error,
    }
}

fn at_once(signal: Signal) -> Exit {
    match signal {
        Signal::Interrupt => Exit::Interrupted,
        Signal::Terminate => Exit::Terminated,
    }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(exit.code())
}

/// The libraries' own logs, for whoever asks with -vv or `DEVENV_LOG`; product output is events.
fn log(verbose: u8) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("DEVENV_LOG");
    if verbose >= 2 || filter.is_ok() {
        let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
}
