//! Histories: commands, kills, restarts of the machine and a person's own edits in any order. After each of them what always
//! holds is looked at; at the end `up` comes to what it comes to from nothing.
#![expect(
    clippy::print_stderr,
    reason = "how many cases were survived is for people to read"
)]

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use proptest::prelude::*;
use proptest::strategy::Union;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::Value;

use crate::faults::{DOWN, NODE, difference, edit, leftovers};
use crate::played::{HOSTS, Key, World};

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    /// A command, to its end.
    Run(Command),
    /// A command that is hit after so many milliseconds.
    Hit(Command, Signal, u64),
    /// The machine is started again.
    Restart,
    /// Somebody deletes one of devenv's objects from the cluster.
    Delete(usize),
    /// Somebody writes a line into the hosts file, before all others or after them.
    Host(bool),
    /// Somebody changes a bundle.
    Edit(u8),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Command {
    Up,
    Down,
    Purge,
    Reset,
    Sync,
}

impl Command {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Up => &["up"],
            Self::Down => &["down"],
            Self::Purge => DOWN,
            Self::Reset => &["reset"],
            Self::Sync => &["sync"],
        }
    }
}

/// What may be deleted.
fn objects() -> [Key; 8] {
    [
        Key::new("/namespaces", "", "iam-team"),
        Key::new("/secrets", "iam-team", "web-login"),
        Key::new("/configmaps", "iam-team", "web"),
        Key::new("apps/deployments", "iam-team", "web"),
        Key::new("apps/deployments", "argocd", "git-source"),
        Key::new(
            "apps/statefulsets",
            "argocd",
            "argocd-application-controller",
        ),
        Key::new("argoproj.io/applications", "argocd", "web"),
        Key::new("argoproj.io/applicationsets", "argocd", "bundles"),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let command = || {
        use Command::{Down, Purge, Reset, Sync, Up};
        Union::new_weighted(vec![
            (4, Just(Up)),
            (2, Just(Down)),
            (1, Just(Purge)),
            (2, Just(Reset)),
            (2, Just(Sync)),
        ])
    };
    let signal = prop_oneof![
        Just(Signal::SIGKILL),
        Just(Signal::SIGTERM),
        Just(Signal::SIGINT)
    ];
    prop_oneof![
        4 => command().prop_map(Event::Run),
        4 => (command(), signal, 0..900_u64).prop_map(|(command, signal, after)| Event::Hit(command, signal, after)),
        1 => Just(Event::Restart),
        2 => (0..objects().len()).prop_map(Event::Delete),
        1 => any::<bool>().prop_map(Event::Host),
        1 => any::<u8>().prop_map(Event::Edit),
    ]
}

/// A world with its past.
struct Past {
    world: World,
    /// The hosts file as it has to be beside devenv's block.
    hosts: Vec<u8>,
}

impl Past {
    fn happen(&mut self, event: &Event) -> Result<(), String> {
        let before = self.world.others();
        let works = self.state() == "running";
        match event {
            Event::Run(command) => {
                let ran = self.world.start(command.args()).wait();
                let may_fail = *command == Command::Sync && !works;
                if ran.status != 0 && !may_fail {
                    return Err(format!("it ended with {}:\n{}", ran.status, ran.stderr));
                }
            }
            Event::Hit(command, signal, after) => {
                let running = self.world.start(command.args());
                std::thread::sleep(Duration::from_millis(*after));
                // It may have ended already; then nobody is hit.
                running.signal(*signal);
                running.wait();
            }
            Event::Restart => self.world.restart_docker(),
            Event::Delete(index) => {
                let key = &objects()[*index];
                self.world.in_cluster(NODE, |store| store.delete(key));
            }
            Event::Host(first) => {
                let path = self.world.test.path("etc/hosts");
                let line = |file: &[u8]| match (first, file.ends_with(b"\n")) {
                    (true, _) => [&b"10.9.8.7 first.example.org\n"[..], file].concat(),
                    (false, true) => [file, b"10.9.8.7 last.example.org\n"].concat(),
                    (false, false) => [file, b"\n10.9.8.7 last.example.org\n"].concat(),
                };
                fs::write(path, line(&self.world.hosts())).unwrap();
                self.hosts = line(&self.hosts);
            }
            Event::Edit(number) => edit(&self.world, &format!("hello-{number}")),
        }
        let troubles = difference("what is others'", &before, &self.world.others());
        if !troubles.is_empty() {
            return Err(troubles);
        }
        self.always()
    }

    /// What always holds.
    fn always(&self) -> Result<(), String> {
        let clusters = {
            let docker = self.world.docker();
            let is_node = |name: &&String| name.starts_with("devenv-") && !name.ends_with("-state");
            docker.containers.keys().filter(is_node).count()
        };
        if clusters > 1 {
            return Err(format!("there are {clusters} clusters"));
        }
        let hosts = self.world.hosts();
        if without_block(&hosts) != without_ends(&self.hosts) {
            let (found, expected) = (
                String::from_utf8_lossy(&hosts),
                String::from_utf8_lossy(&self.hosts),
            );
            return Err(format!(
                "the hosts file is\n{found}\n--- where beside the block there was\n{expected}"
            ));
        }
        let ran = self.world.start(&["status", "-o", "json"]).wait();
        let told: Value = serde_json::from_str(&ran.stdout)
            .map_err(|error| format!("status: {error}: {}", ran.stderr))?;
        let state = self.state();
        if told["cluster"]["state"] != state {
            return Err(format!(
                "status says {} where the cluster is {state}",
                told["cluster"]
            ));
        }
        Ok(())
    }

    /// What there is of the cluster.
    fn state(&self) -> &'static str {
        let (state, has_manifests) = {
            let docker = self.world.docker();
            let Some(node) = docker.containers.get(NODE) else {
                return "absent";
            };
            (node.state, node.cluster.is_some())
        };
        let is_whole = self.world.in_cluster(NODE, |store| {
            store.all("storage.k8s.io/storageclasses").count() > 0
        });
        match state {
            "created" => "half-made",
            "running" if has_manifests && is_whole == Some(true) => "running",
            "running" => "half-made",
            _ => "stopped",
        }
    }
}

/// Without devenv's block, and without the ends of lines, which the block may have needed.
fn without_block(hosts: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(hosts).into_owned();
    let Some((before, rest)) = text.split_once("# BEGIN devenv ") else {
        return without_ends(hosts);
    };
    let (_, after) = rest.split_once("# END devenv ").unwrap_or_default();
    let after = after.split_once('\n').map_or("", |(_, after)| after);
    without_ends(&[before.as_bytes(), after.as_bytes()].concat())
}

fn without_ends(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .filter(|byte| **byte != b'\n')
        .copied()
        .collect()
}

fn lives(history: &[Event]) -> Result<(), String> {
    let mut past = Past {
        world: World::new(),
        hosts: HOSTS.to_vec(),
    };
    for (index, event) in history.iter().enumerate() {
        past.happen(event)
            .map_err(|troubles| format!("after event {index}, {event:?}:\n{troubles}"))?;
    }
    let world = &past.world;
    let run = |args: &[&str]| match world.start(args).wait() {
        ran if ran.status == 0 => Ok(()),
        ran => Err(format!(
            "at last, {args:?} ended with {}:\n{}",
            ran.status, ran.stderr
        )),
    };
    // What differs by what was there before: how the block stands in the file, and what is kept.
    let seen = || {
        let mut seen = world.seen();
        seen.retain(|key, _| key != "hosts" && !key.starts_with("volume "));
        seen
    };
    run(&["up"])?;
    let came_to = seen();
    past.always()?;
    run(DOWN)?;
    let mut troubles = leftovers(world, &world.seen(), &past.hosts);
    run(&["up"])?;
    troubles += &difference("at last", &seen(), &came_to);
    run(DOWN)?;
    match troubles.is_empty() {
        true => Ok(()),
        false => Err(troubles),
    }
}

fn many(count: usize, seed: u8) {
    let config = Config {
        cases: u32::try_from(count).unwrap(),
        failure_persistence: None,
        // Each try takes seconds.
        max_shrink_iters: 12,
        ..Config::default()
    };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(config, random);
    let histories = proptest::collection::vec(event(), 2..9);
    let mut survived = 0;
    let outcome = runner.run(&histories, |history| {
        lives(&history).map_err(TestCaseError::fail)?;
        Ok(())
    });
    if outcome.is_ok() {
        survived = count;
    }
    eprintln!("{:24} {count:4} tried, {survived:4} survived", "histories");
    if let Err(TestError::Fail(why, history)) = outcome {
        panic!("NOT SURVIVED: {history:?}\n{why}");
    }
}

#[test]
fn any_history_ends_well() {
    many(2, 7);
}

#[test]
#[ignore = "takes minutes: scripts/faults runs it"]
fn long_any_history_ends_well() {
    let asked = std::env::var("FAULTS").unwrap_or_default();
    many(asked.parse().unwrap_or(10), 42);
}
