//! Parts of devenv as programs of their own, for what can only be seen from outside a process: terminals, signals, closed
//! pipes, `kill -9`. Other tests run them, see `Test::trial`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ColorChoice, Parser as _};
use devenv::cli::{Cli, Command};
use devenv::context::Context;
use devenv::error::Exit;
use devenv::event::Events;
use devenv::exec::{self, Cmd};
use devenv::lock;
use devenv::paths::Paths;
use devenv::report::{self, Flags, Format, Style};
use devenv::run;
use devenv::stop::Stop;
use devenv::up::Proven;

/// What `main` does around a command.
fn program(work: impl AsyncFnOnce(&Events, &Stop) -> anyhow::Result<()>) -> ! {
    program_with_exit(async |events, stop| work(events, stop).await.map(|()| Exit::Ready))
}

#[expect(
    clippy::disallowed_methods,
    clippy::exit,
    reason = "these tests are programs and have exit codes"
)]
fn program_with_exit(work: impl AsyncFnOnce(&Events, &Stop) -> anyhow::Result<Exit>) -> ! {
    let is_set = |name| std::env::var_os(name).is_some();
    let style = Style::from_process(Flags {
        format: if is_set("TRIAL_JSON") {
            Format::Json
        } else {
            Format::Text
        },
        quiet: is_set("TRIAL_QUIET"),
        verbose: is_set("TRIAL_VERBOSE").into(),
        color: ColorChoice::Auto,
        shows_checks: false,
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let code = runtime.block_on(async {
        let (stop, _second) = Stop::on_signals().unwrap();
        let (events, receiver) = Events::channel_until(stop.clone());
        let reporter = tokio::spawn(report::run(receiver, style));
        let result = work(&events, &stop).await;
        drop(events);
        let summary = reporter.await.unwrap();
        report::job_summary("devenv run", &summary, result.as_ref().err(), style);
        match result {
            Ok(exit) => exit.code().into(),
            Err(error) => report::error(&error, style).code().into(),
        }
    });
    std::process::exit(code);
}

async fn moment() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

#[test]
#[ignore = "is a program"]
fn talk() {
    program(async |events, _| {
        let store = events.step("store");
        let cluster = events.step("cluster");
        for number in 1..=20 {
            let fetch = store.child(format!(
                "fetch packages.devenv.test/team/image-{number}:1.2.3"
            ));
            fetch.bytes(50_000_000, 100_000_000);
            fetch.bytes(100_000_000, 100_000_000);
            fetch.done("fetched");
        }
        cluster.waiting("Starting control-plane 日本語 🕹️");
        cluster.line("a line for -v");
        moment().await;
        store.unchanged("20 images");
        events.notice("no image registry answers, so images are built from packages");
        moment().await;
        cluster.done("created");
        events.verdict("ready: 2 of 2 applications healthy at 4f2a91c");
        Ok(())
    });
}

#[test]
#[ignore = "is a program"]
fn create() {
    program(async |events, stop| {
        let path = PathBuf::from(std::env::var_os("LOCK").unwrap());
        let _lock = lock::acquire(&path, "devenv up", events, stop).await?;
        let step = events.step("cluster");
        exec::run(&Cmd::new("kind").args(["create", "cluster"]), stop, &step).await?;
        step.done("created");
        Ok(())
    });
}

#[test]
#[ignore = "is a program"]
fn data() {
    program(async |_, _| report::data(&"a line of data\n".repeat(100_000)));
}

#[test]
#[ignore = "is a program"]
fn shell() {
    program(async |events, stop| {
        let script = std::env::var("TRIAL_ARGS")?;
        let input = std::io::read_to_string(std::io::stdin())?;
        let step = events.step("shell");
        let output = exec::run(
            &Cmd::new("sh").args(["-c", &script]).stdin(input),
            stop,
            &step,
        )
        .await?;
        step.done("");
        report::data(&output.text())
    });
}

#[test]
#[ignore = "is a program"]
fn full() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    nix::unistd::dup2_stdout(&full).unwrap();
    program(async |_, _| report::data("data"));
}

/// `devenv run` with an `up` that is played: a node appears, a kubeconfig, and the checks say what `TRIAL_CHECKED` holds.
#[test]
#[ignore = "is a program"]
fn run_command() {
    program_with_exit(async |events, stop| {
        let args = std::env::var("TRIAL_ARGS")?;
        let cli = Cli::try_parse_from(["devenv"].into_iter().chain(args.split('\n')))?;
        let Command::Run(arguments) = cli.command else {
            anyhow::bail!("`devenv run` is what can be tried here");
        };
        let context = Context {
            events: events.clone(),
            stop: stop.clone(),
            paths: Paths::from_process()?,
            directory: std::env::current_dir()?,
            selector: cli.global.environment.as_str().into(),
            timeout: cli.global.timeout,
        };
        let devenv = PathBuf::from(env!("CARGO_BIN_EXE_devenv"));
        run::run_with(&context, &arguments, devenv, async |inputs| {
            let step = context.events.step("cluster");
            let engine = PathBuf::from(std::env::var("ENGINE")?);
            std::fs::write(engine.join("devenv-dev-control-plane"), "")?;
            let own = context.paths.environment(&inputs.environment.id);
            devenv::paths::private_folder(&own)?;
            std::fs::write(own.join("kubeconfig"), "kubeconfig")?;
            step.done("played");
            let checked = std::env::var("TRIAL_CHECKED").unwrap_or_else(|_| "[]".to_owned());
            let checked = serde_json::from_str(&checked)?;
            match std::env::var("TRIAL_UP").unwrap_or_default().as_str() {
                "" => Ok(Proven {
                    exit: Exit::Ready,
                    checked,
                }),
                "3" => Ok(Proven {
                    exit: Exit::CheckFailed,
                    checked,
                }),
                "4" => Ok(Proven {
                    exit: Exit::NamesNotWired,
                    checked,
                }),
                why => anyhow::bail!("{why}"),
            }
        })
        .await
    });
}

/// Listens at this address until it is killed.
#[test]
#[ignore = "is a program"]
fn listener() {
    let _listener = std::net::TcpListener::bind(std::env::var("LISTEN").unwrap()).unwrap();
    ready_for_a_while();
}

/// A DNS server on loopback that has a zone `local`, and leads every name below `corp.test` to one address.
#[test]
#[ignore = "is a program"]
fn dns() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:53").unwrap();
    std::thread::spawn(ready_for_a_while);
    let mut packet = [0; 512];
    loop {
        let (length, asker) = socket.recv_from(&mut packet).unwrap();
        let question = &packet[12..length];
        let end = question.iter().position(|byte| *byte == 0).unwrap() + 1;
        let (name, kind) = (&question[..end], question[end + 1]);
        let answer: &[u8] = match kind {
            // The names of a server and of somebody responsible, and five numbers.
            6 if name == b"\x05local\0" => &[
                0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1,
            ],
            1 if name.ends_with(b"\x04corp\x04test\0") => &[10, 66, 66, 66],
            _ => &[],
        };
        let count = u8::from(!answer.is_empty());
        let status = if answer.is_empty() { 0x83 } else { 0x80 };
        let mut reply = [&packet[..2], &[0x81, status, 0, 1, 0, count, 0, 0, 0, 0]].concat();
        reply.extend(&question[..end + 4]);
        if !answer.is_empty() {
            reply.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0]);
            reply.push(u8::try_from(answer.len()).unwrap());
            reply.extend(answer);
        }
        socket.send_to(&reply, asker).unwrap();
    }
}

/// Says by a file that it is ready, and ends when nobody can need it any more.
#[expect(
    clippy::disallowed_methods,
    clippy::exit,
    reason = "these tests are programs and have exit codes"
)]
fn ready_for_a_while() {
    std::fs::write(std::env::var("READY").unwrap(), "").unwrap();
    std::thread::sleep(Duration::from_secs(20));
    std::process::exit(0);
}
