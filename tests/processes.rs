//! Signals, orphans and the lock, seen from outside.

use std::time::Duration;

use devenv::event::{Event, Events};
use devenv::lock;
use devenv::stop::Stop;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::engine::Engine;
use crate::harness::{Test, is_alive, wait_for};

const SLOW_KIND: &str = r#"echo "Preparing nodes" >&2; sleep 300 & echo $! > "$CALLS/sleep"; echo $$ > "$CALLS/pid"; wait"#;

fn creating(kind: &str) -> Test {
    let test = Test::new().trial("create").fake("kind", kind);
    let lock = test.path("run/devenv/dev.lock").display().to_string();
    test.env("LOCK", &lock)
}

#[test]
fn files_tools_and_input_are_there() {
    let engine = Engine::start();
    let test = Test::new()
        .trial("shell")
        .tool("sh")
        .tool("cat")
        .docker(&engine)
        .file("a.txt", "a file\n");
    let script = "cat a.txt - && test $DOCKER_HOST = unix://$ENGINE/docker.sock && echo $HOME";
    test.clone()
        .args([script])
        .input("input\n")
        .stdout("a file\ninput\n[temp]/home\n")
        .stderr("[time] shell\n[time] shell: done ([time])\n")
        .run();
    test.args(["exit 3"])
        .stderr(
            "[time] shell\n[time] shell: failed ([time])\nerror: `sh -c 'exit 3'` failed (exit status 3)\n\n\
             hint: run the same command again with -v to see every line of its output\n",
        )
        .status(1)
        .run();
}

#[test]
fn a_program_that_works() {
    let ran = creating("exit 0")
        .stderr("[time] cluster\n[time] cluster: created ([time])\n")
        .run();
    assert_eq!(ran.test.calls("kind"), ["kind create cluster"]);
    assert!(!ran.test.path("run/devenv/dev.lock").exists());
}

#[test]
fn a_program_that_fails() {
    let ran = creating("echo 'ERROR: failed to init node with kubeadm' >&2; exit 1")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: failed ([time])
    error: `kind create cluster` failed (exit status 1)
      | ERROR: failed to init node with kubeadm

    hint: run the same command again with -v to see every line of its output
    --- status 1
    ");
}

#[test]
fn a_program_on_a_full_disk() {
    let ran = creating("echo 'ERROR: no space left on device' >&2; exit 1")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: failed ([time])
    error: `kind create cluster` failed (exit status 1)
      | ERROR: no space left on device

    hint: `docker system df` and `df -h` show what takes the space; with some of it free run the same command again, it goes on
    --- status 1
    ");
}

#[test]
fn a_program_that_is_missing() {
    let test = Test::new().trial("create");
    let lock = test.path("dev.lock").display().to_string();
    insta::assert_snapshot!(test.env("LOCK", &lock).start().wait().transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: failed ([time])
    error: kind is not on PATH

    hint: install kind and see that it is on PATH
    --- status 1
    ");
}

#[test]
fn ctrl_c_leaves_no_orphan() {
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let running = creating(SLOW_KIND).start();
        let kind = running.wait_for_line_in("calls/pid");
        let sleep = running.wait_for_line_in("calls/sleep");
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.status, status);
        assert!(!is_alive(&kind) && !is_alive(&sleep));
        if signal == Signal::SIGINT {
            insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] cluster
            [time] cluster: stopped ([time])
            error: interrupted

            hint: what was made is still there: `devenv up` resumes, `devenv down` removes it
            --- status 130
            ");
        }
    }
}

#[test]
fn an_orphan_of_a_killed_devenv_holds_the_lock_until_its_end() {
    let running = creating(SLOW_KIND).start();
    let kind = running.wait_for_line_in("calls/pid");
    let sleep = running.wait_for_line_in("calls/sleep");
    let path = running.path("run/devenv/dev.lock");
    running.signal(Signal::SIGKILL);
    let ran = running.wait();
    assert_eq!(ran.status, -9);
    assert!(is_alive(&kind));

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (events, mut receiver) = Events::channel();
    runtime.block_on(async {
        let stop = Stop::new();
        let next = lock::acquire(&path, "devenv up", &events, &stop);
        let end = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            for pid in [&kind, &sleep] {
                signal::kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
            }
        };
        let (next, ()) = tokio::join!(next, end);
        next.unwrap();
    });
    let mut texts = Vec::new();
    while let Ok(timed) = receiver.try_recv() {
        if let Event::Waiting { text, .. } = timed.event {
            texts.push(text);
        }
    }
    assert!(
        texts
            .iter()
            .any(|text| text.ends_with("itself gone) left running")),
        "{texts:?}"
    );
    wait_for("the orphan's end", || (!is_alive(&kind)).then_some(()));
}
