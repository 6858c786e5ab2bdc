//! devenv killed on real clusters, at times that a seed decides: the same command again comes to what an undisturbed one comes
//! to, and nothing is left of what is removed. `scripts/faults --real` runs them; `DEVENV_TEST_SEED` chooses other times.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::e2e::{Provider, READY, Road};

/// Times that look random, and are the same again for the same seed (xorshift).
struct Times(u64);

impl Times {
    fn seeded() -> Self {
        let seed = std::env::var("DEVENV_TEST_SEED").ok();
        Self(
            seed.and_then(|seed| seed.parse().ok())
                .unwrap_or(20_261_125),
        )
    }

    fn within(&mut self, longest: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        longest.mul_f64((self.0 % 10_000) as f64 / 10_000.0)
    }
}

const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT];

/// What is left on this machine of a project's environment that is down for good and had these volumes.
fn left(road: &Road, volumes: &[String]) -> Vec<String> {
    let mut left = road.left(volumes);
    let folders = fs::read_dir(road.data().join("environments"));
    let folders = folders.into_iter().flatten().flatten();
    left.extend(folders.map(|folder| folder.path().display().to_string()));
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    let block = format!("# BEGIN devenv {} ", road.name());
    left.extend(
        hosts
            .lines()
            .filter(|line| line.starts_with(&block))
            .map(str::to_owned),
    );
    left.extend(road.processes());
    left
}

/// The processes that belong to a run of this project: all of them carry its folder in their environment.
fn family(folder: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let own = std::process::id().to_string();
    processes
        .filter(|process| process.file_name() != own.as_str())
        .filter_map(|process| {
            let environment = fs::read(process.path().join("environ")).ok()?;
            let folder = folder.as_os_str().as_encoded_bytes();
            let is_ours = environment.windows(folder.len()).any(|part| part == folder);
            let command = fs::read_to_string(process.path().join("cmdline")).ok()?;
            // One that has ended, and whose parent hasn't looked yet, has no command.
            (is_ours && !command.is_empty()).then(|| command.replace('\0', " "))
        })
        .collect()
}

fn ends(child: &mut std::process::Child) {
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(120), "it doesn't end");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
fn killed_runs(road: &Road, rounds: usize) {
    let mut times = Times::seeded();
    for round in 1..=rounds {
        let after = times.within(Duration::from_secs(45));
        let mut child = road.start(&["run", "--", "sleep", "600"]);
        std::thread::sleep(after);
        let volumes = road.volumes();
        kill(
            Pid::from_raw(child.id().try_into().unwrap()),
            Signal::SIGKILL,
        )
        .unwrap();
        child.wait().unwrap();
        let began = Instant::now();
        while !family(road.folder.path()).is_empty() {
            let family = family(road.folder.path());
            assert!(
                began.elapsed() < Duration::from_secs(120),
                "these go on: {family:?}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        let volumes = [volumes, road.volumes()].concat();
        assert_eq!(left(road, &volumes), [""; 0], "killed after {after:?}");
        eprintln!("run {round} of {rounds}: killed after {after:.1?}, nothing is left");
    }
}

#[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
fn killed_commands(road: &Road, rounds: usize) {
    let commands: [(&[&str], u64); 5] = [
        (&["up"], 40),
        (&["reset"], 20),
        (&["sync"], 3),
        (&["down"], 2),
        (&["up"], 15), // from the state that `down` kept
    ];
    let mut times = Times::seeded();
    for round in 0..rounds {
        let (command, longest) = commands[round % commands.len()];
        let signal = SIGNALS[round % SIGNALS.len()];
        let after = times.within(Duration::from_secs(longest));
        let mut child = road.start(command);
        std::thread::sleep(after);
        let _ = kill(Pid::from_raw(child.id().try_into().unwrap()), signal); // it may have ended
        ends(&mut child);
        let told = format!("{} ended by {signal} after {after:.1?}", command.join(" "));
        match command[0] {
            // The way to the next round's `up` leads through a `down` that is whole.
            "down" => drop(road.succeed(&["down"])),
            "sync" => drop(road.succeed(&["up"])),
            _ => {
                road.succeed(command);
                let again = road.succeed(&["up"]);
                assert!(
                    again.starts_with("nothing to change: 2 of 2"),
                    "{told}: {again}"
                );
            }
        }
        if command[0] != "down" {
            assert_eq!(
                road.applications(),
                ["namespaces Synced Healthy", "victorialogs Synced Healthy"],
                "{told}"
            );
        }
        eprintln!("kill {} of {rounds}: {told}, and well again", round + 1);
    }
    let volumes = road.volumes();
    road.succeed(&["down", "--purge"]);
    assert_eq!(left(road, &volumes), [""; 0]);
    assert_eq!(road.succeed(&["up"]), READY);
}

#[test]
#[ignore = "takes a real cluster, and ten minutes"]
fn fault_runs_are_killed_ten_times_with_kind() {
    killed_runs(&Road::small(Provider::Kind), 10);
}

#[test]
#[ignore = "takes a real cluster, and ten minutes"]
fn fault_runs_are_killed_ten_times_with_k3d() {
    killed_runs(&Road::small(Provider::K3d), 10);
}

#[test]
#[ignore = "takes a real cluster, and ten minutes"]
fn fault_commands_are_killed_twenty_times_with_kind() {
    killed_commands(&Road::small(Provider::Kind), 20);
}

#[test]
#[ignore = "takes a real cluster, and ten minutes"]
fn fault_commands_are_killed_ten_times_with_k3d() {
    killed_commands(&Road::small(Provider::K3d), 10);
}
