//! `devenv run`, seen from outside: what its command gets, and that nothing is left, whatever ends it.

use std::fs;

use nix::sys::signal::Signal;

use crate::bad_days::{BUILD, KIND_FAILS, Project as _, SLOW_KIND, project, to_come};
use crate::engine::Engine;
use crate::harness::{Test, is_alive, wait_for};

/// Starts a child that leaves its session, says where both are, and waits.
const SLOW_COMMAND: &str = "exec 2> /dev/null; setsid sh -c 'sleep 300 & echo $! > $CALLS/grandchild; wait' & echo $$ > $CALLS/command; trap 'echo asked > $CALLS/asked; exit 1' TERM; while :; do sleep 0.05; done";

/// A project with two names; its `up` is played.
pub(crate) fn played(engine: &Engine) -> Test {
    let service = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {name}\n  namespace: default\n\
             spec:\n  hosts: [{name}.local]\n"
        )
    };
    let test = project()
        .trial("run_command")
        .docker(engine)
        .file(
            "bundles/infrastructure/namespaces/base/kustomization.yaml",
            "resources: [services.yaml]\n",
        )
        .file(
            "bundles/infrastructure/namespaces/base/services.yaml",
            &format!("{}---\n{}", service("keycloak"), service("my-app")),
        )
        .publishing(8080, 8443);
    let node = project_node(&test);
    engine.world().containers.push(node);
    test
}

fn project_node(test: &Test) -> crate::engine::Container {
    to_come(test.clone().devenv().node())
}

/// No container, no process, no file but what the cache holds.
pub(crate) fn assert_nothing_is_left(test: &Test, engine: &Engine) {
    let left: Vec<_> = engine
        .world()
        .containers
        .iter()
        .filter(|container| !container.is_to_come)
        .map(|container| container.name.clone())
        .collect();
    assert_eq!(left, [""; 0]);
    let traces: Vec<_> = test
        .traces()
        .into_iter()
        .filter(|trace| !trace.contains("/.cache/"))
        .collect();
    let allowed = [
        "[temp]/home/.cache 0",
        "[temp]/home/.local 0",
        "[temp]/home/.local/share 0",
        "[temp]/home/.local/share/devenv 0",
        "[temp]/home/.local/share/devenv/environments 0",
        "[temp]/run/devenv 0",
    ];
    let other: Vec<_> = traces
        .iter()
        .filter(|trace| !allowed.contains(&trace.as_str()))
        .collect();
    assert!(other.is_empty(), "{other:?}");
}

#[test]
fn the_command_gets_input_addresses_and_has_its_exit_code() {
    let engine = Engine::start();
    let script = "cat; echo \"$KUBECONFIG $DEVENV_ENVIRONMENT $DEVENV_CA\"; env | grep ^DEVENV_URL | sort; cat \"$KUBECONFIG\" >&2; echo >&2; exit 7";
    let ran = played(&engine)
        .args(["run", "--", "sh", "-c", script])
        .input("input\n")
        .tool("sh")
        .env("PATH", "/usr/bin:/bin")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r#"
    input
    [temp]/home/.local/share/devenv/environments/[id]/kubeconfig [temp]/project/cluster-configs/dev.yaml [temp]/home/.local/share/devenv/ca/local/ca.pem
    DEVENV_URL_KEYCLOAK=https://keycloak.local:8443
    DEVENV_URL_MY_APP=https://my-app.local:8443
    --- stderr
    [time] cluster
    [time] cluster: played ([time])
    [time] command
    [time] command: sh -c 'cat; echo "$KUBECONFIG $DEVENV_ENVIRONMENT $DEVENV_CA"; env | grep ^DEVENV_URL | sort; cat "$KUBECONFIG" >&2; echo >&2; exit 7'
    kubeconfig
    [time] command: failed, exit status 7 ([time])
    [time] down
    [time] down > cluster
    [time] down > cluster: removed 1 container and its volumes ([time])
    [time] down > names
    [time] down > names: unchanged, none in the hosts file ([time])
    [time] down > files
    [time] down > files: kubeconfig and pushed commits removed ([time])
    [time] down: removed ([time])

      phase     start     end    took  outcome
    ✓ cluster  [time]  [time]  [time]  done
    ✗ command  [time]  [time]  [time]  failed
    ✓ down  [time]  [time]  [time]  done

    sh …: exit status 7; dev is gone
    --- status 7
    "#);
    assert_nothing_is_left(&ran.test, &engine);
}

#[test]
fn at_a_terminal_the_command_is_in_front_of_it() {
    let engine = Engine::start();
    let script = "ps -o tpgid=,pgid= -p $$ | (read front own; test $front = $own && echo in front)";
    let ran = played(&engine)
        .args(["run", "--", "sh", "-c", script])
        .env("PATH", "/usr/bin:/bin")
        .under(["setsid", "--ctty", "--wait"])
        .terminal(100, 30)
        .start()
        .wait();
    assert!(ran.screen().contains("\nin front\n"), "{}", ran.screen());
    assert_eq!(ran.status, 0);
}

#[test]
fn names_that_nobody_wired_give_way() {
    let engine = Engine::start();
    let checked = r#"[{"name": "name keycloak.local", "proves": "", "how": "", "verdict": "not-wired", "saw": "", "seconds": 0}]"#;
    let ran = played(&engine)
        .args(["run", "--", "sh", "-c", "env | grep ^DEVENV_URL | sort"])
        .env("PATH", "/usr/bin:/bin")
        .env("TRIAL_UP", "4")
        .env("TRIAL_CHECKED", checked)
        .start()
        .wait();
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (
            0,
            "DEVENV_URL_KEYCLOAK=https://keycloak.localhost:8443\nDEVENV_URL_MY_APP=https://my-app.local:8443\n"
        )
    );
}

#[test]
fn what_does_not_come_up_well_is_removed_and_the_command_not_run() {
    for up in ["3", "no space left on device"] {
        let engine = Engine::start();
        let ran = played(&engine)
            .fake("test-it", "")
            .args(["run", "--", "test-it"])
            .env("TRIAL_UP", up)
            .start()
            .wait();
        assert_eq!(ran.test.calls("test-it"), [""; 0]);
        assert_nothing_is_left(&ran.test, &engine);
        match up {
            "3" => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] cluster
            [time] cluster: played ([time])
            [time] down
            [time] down > cluster
            [time] down > cluster: removed 1 container and its volumes ([time])
            [time] down > names
            [time] down > names: unchanged, none in the hosts file ([time])
            [time] down > files
            [time] down > files: kubeconfig and pushed commits removed ([time])
            [time] down: removed ([time])

              phase     start     end    took  outcome
            ✓ cluster  [time]  [time]  [time]  done
            ✓ down  [time]  [time]  [time]  done

            test-it was not run: checks failed; dev is gone
            --- status 3
            "),
            _ => insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] cluster
            [time] cluster: played ([time])
            [time] down
            [time] down > cluster
            [time] down > cluster: removed 1 container and its volumes ([time])
            [time] down > names
            [time] down > names: unchanged, none in the hosts file ([time])
            [time] down > files
            [time] down > files: kubeconfig and pushed commits removed ([time])
            [time] down: removed ([time])
            [time] dev is gone
            error: no space left on device

            hint: devenv run --keep-on-failure leaves it up to be looked at
            --- status 1
            "),
        }
    }
}

#[test]
fn a_failure_is_kept_on_request() {
    let engine = Engine::start();
    let ran = played(&engine)
        .args(["run", "--keep-on-failure", "--", "false"])
        .env("PATH", "/usr/bin:/bin")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] cluster
    [time] cluster: played ([time])
    [time] command
    [time] command: false
    [time] command: failed, exit status 1 ([time])

      phase     start     end    took  outcome
    ✓ cluster  [time]  [time]  [time]  done
    ✗ command  [time]  [time]  [time]  failed

    false: exit status 1; dev is kept
    [time] look at it:  devenv status --environment dev, or: KUBECONFIG=[temp]/home/.local/share/devenv/environments/[id]/kubeconfig kubectl get pods -A
    remove it:   devenv down --environment dev
    --- status 1
    ");
    assert_eq!(engine.world().containers.len(), 1);
    // And a command that doesn't fail isn't.
    let engine = Engine::start();
    let ran = played(&engine)
        .args(["run", "--keep-on-failure", "--", "true"])
        .env("PATH", "/usr/bin:/bin")
        .start()
        .wait();
    assert_eq!(ran.status, 0);
    assert_nothing_is_left(&ran.test, &engine);
}

#[test]
fn what_was_up_before_is_used_and_left_up() {
    let engine = Engine::start();
    let test = played(&engine);
    engine.world().containers[0].is_to_come = false;
    engine.world().containers[0].state = "exited".to_owned();
    let ran = test
        .clone()
        .args(["run", "--", "sh", "-c", "exit 5"])
        .env("PATH", "/usr/bin:/bin")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] dev is up already: it is used, and left up
    [time] cluster
    [time] cluster: played ([time])
    [time] command
    [time] command: sh -c 'exit 5'
    [time] command: failed, exit status 5 ([time])

      phase     start     end    took  outcome
    ✓ cluster  [time]  [time]  [time]  done
    ✗ command  [time]  [time]  [time]  failed

    sh -c 'exit 5': exit status 5; dev is left up, as it was before
    --- status 5
    ");
    assert_eq!(engine.world().containers.len(), 1);

    // Also when it is killed; what the command started is ended all the same.
    let running = test
        .args(["run", "--", "sh", "-c", SLOW_COMMAND])
        .env("PATH", "/usr/bin:/bin")
        .start();
    let command = running.wait_for_line_in("calls/command");
    let grandchild = running.wait_for_line_in("calls/grandchild");
    running.signal(Signal::SIGKILL);
    let ran = running.wait();
    assert!(
        ran.stderr.contains("dev was up before and is left up"),
        "{}",
        ran.stderr
    );
    assert!(!is_alive(&command) && !is_alive(&grandchild));
    assert_eq!(engine.world().containers.len(), 1);
}

#[test]
fn a_command_that_is_not_there_is_found_before_anything_is_made() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", "");
    let ran = test
        .clone()
        .args(["run", "--", "pytset", "-x"])
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: there is no program pytset that could be run

    hint: see what `command -v pytset` says; a program in this folder is ./pytset
    --- status 2
    ");
    assert_eq!(engine.world().requests, [""; 0]);
    assert_eq!(test.traces(), [""; 0]);
    let ran = test.args(["run"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    error: the following required arguments were not provided:
      <CMD>...

    Usage: devenv run -- <CMD>...

    For more information, try '--help'.
    --- status 2
    ");
}

#[test]
fn a_run_in_a_run_would_wait_for_itself() {
    let engine = Engine::start();
    let devenv = env!("CARGO_BIN_EXE_devenv");
    let ran = played(&engine)
        .args(["run", "--", devenv, "run", "--", "true"])
        .env("PATH", "/usr/bin:/bin")
        .start()
        .wait();
    assert_eq!(ran.status, 2);
    assert!(
        ran.stderr
            .contains("error: this is in a `devenv run` of the same environment"),
        "{}",
        ran.stderr
    );
}

#[test]
fn children_that_the_command_left_are_ended_and_named() {
    let engine = Engine::start();
    let script = "sleep 301 & setsid sleep 302 & echo $! > \"$CALLS/pid\"; sleep 0.2";
    let ran = played(&engine)
        .args(["run", "--", "sh", "-c", script])
        .env("PATH", "/usr/bin:/bin")
        .start()
        .wait();
    assert_eq!(ran.status, 0, "{}", ran.transcript());
    let told =
        "the command left these running, which were ended: sleep (pid [pid]), sleep (pid [pid])";
    assert!(ran.transcript().contains(told), "{}", ran.transcript());
    let pid = fs::read_to_string(ran.test.path("calls/pid")).unwrap();
    assert!(!is_alive(&pid));
    assert_nothing_is_left(&ran.test, &engine);
}

#[test]
fn a_signal_ends_the_whole_family_and_takes_everything_down() {
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let engine = Engine::start();
        let running = played(&engine)
            .args(["run", "--keep-on-failure", "--", "sh", "-c", SLOW_COMMAND])
            .env("PATH", "/usr/bin:/bin")
            .start();
        let command = running.wait_for_line_in("calls/command");
        let grandchild = running.wait_for_line_in("calls/grandchild");
        running.signal(signal);
        let ran = running.wait();
        assert_eq!(ran.status, status, "{}", ran.transcript());
        assert!(!is_alive(&command) && !is_alive(&grandchild));
        assert!(ran.test.path("calls/asked").exists());
        assert_nothing_is_left(&ran.test, &engine);
        if signal == Signal::SIGINT {
            insta::assert_snapshot!(ran.transcript(), @r"
            --- stderr
            [time] cluster
            [time] cluster: played ([time])
            [time] command
            [time] command: sh -c 'exec 2> /dev/null; setsid sh -c '\''sleep 300 & echo $! > $CALLS/grandchild; wait'\'' & echo $$ > $CALLS/command; trap '\''echo asked > $CALLS/asked; exit 1'\'' TERM; while :; do sleep 0.05; done'
            [time] command: stopped ([time])
            [time] down
            [time] down > cluster
            [time] down > cluster: removed 1 container and its volumes ([time])
            [time] down > names
            [time] down > names: unchanged, none in the hosts file ([time])
            [time] down > files
            [time] down > files: kubeconfig and pushed commits removed ([time])
            [time] down: removed ([time])

              phase     start     end    took  outcome
            ✓ cluster  [time]  [time]  [time]  done
            - command  [time]  [time]  [time]  stopped
            ✓ down  [time]  [time]  [time]  done

            stopped; dev is gone
            --- status 130
            ");
        }
    }
}

#[test]
fn a_signal_while_kind_is_at_work_takes_everything_down() {
    let engine = Engine::start();
    let test = project().docker(&engine).fake("kind", SLOW_KIND);
    engine.world().containers.push(to_come(test.node()));
    let running = test.args(["run", "--", "true"]).tool("true").start();
    let kind = running.wait_for_line_in("calls/pid");
    running.signal(Signal::SIGTERM);
    let ran = running.wait();
    assert_eq!(ran.status, 143, "{}", ran.transcript());
    assert!(!is_alive(&kind));
    assert_nothing_is_left(&ran.test, &engine);
}

#[test]
fn kind_fails_and_nothing_is_left() {
    let engine = Engine::start();
    let test = project()
        .docker(&engine)
        .fake("kind", KIND_FAILS)
        .tool("true");
    engine.world().containers.push(to_come(test.node()));
    let ran = test.args(["--quiet", "run", "--", "true"]).start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    dev is gone
    error: create the cluster devenv-dev: `[temp]/bin/kind create cluster --retain --name devenv-dev --image test.devenv.test/node:1 --config [scratch]/kind.yaml --kubeconfig [scratch]/kubeconfig` failed (exit status 1)
      | Ensuring node image
      | ERROR: failed to create cluster: failed to init node with kubeadm

    hint: devenv run --keep-on-failure leaves it up to be looked at
    --- status 1
    ");
    assert_nothing_is_left(&ran.test, &engine);
}

/// Killed as CI systems do it, at every moment at which something is there.
#[test]
fn nothing_is_left_of_a_run_that_was_killed() {
    let slow_build = format!(
        "echo $$ > \"$CALLS/pid\"; touch \"$CALLS/built\"\nif [ ! -e \"$CALLS/go\" ]; then sleep 300; fi\n{BUILD}"
    );
    for moment in ["build", "kind", "command"] {
        let engine = Engine::start();
        let running = match moment {
            "build" => {
                let test = project()
                    .docker(&engine)
                    .script("scripts/packages/build", &slow_build)
                    .fake("kind", "");
                engine.world().containers.push(to_come(test.node()));
                test.tool("true").args(["run", "--", "true"]).start()
            }
            "kind" => {
                let test = project().docker(&engine).fake("kind", SLOW_KIND);
                engine.world().containers.push(to_come(test.node()));
                test.tool("true").args(["run", "--", "true"]).start()
            }
            _ => played(&engine)
                .args(["run", "--", "sh", "-c", SLOW_COMMAND])
                .env("PATH", "/usr/bin:/bin")
                .start(),
        };
        let awaited: &[&str] = match moment {
            "build" => &["calls/pid"],
            "kind" => &["calls/pid", "calls/sleep"],
            _ => &["calls/command", "calls/grandchild"],
        };
        let pids: Vec<_> = awaited
            .iter()
            .map(|file| running.wait_for_line_in(file))
            .collect();
        running.signal(Signal::SIGKILL);
        let ran = running.wait(); // the guard has its stderr, so this waits for it too
        assert_eq!(ran.status, -9);
        assert!(
            ran.stderr
                .ends_with("what it made of dev is removed\ndev is gone\n"),
            "{moment}: {}",
            ran.stderr
        );
        for pid in pids {
            wait_for("the end of the family", || (!is_alive(&pid)).then_some(()));
        }
        wait_for("the guard's end", || {
            (!ran.test.path("run/devenv").join("x").exists()).then_some(())
        });
        assert_nothing_is_left(&ran.test, &engine);
    }
}
