//! Faults of Docker itself, on a second Docker that has no way to any network: its daemon dies in every phase, its disk fills, the
//! clock is wrong, it is used for twenty days without a rest.
//!
//! They take minutes, so they are ignored by default; `scripts/faults --real` runs them.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;

use crate::e2e::{NODE, NOTHING_TO_CHANGE, Provider, READY, Ran, Road, ended};
use crate::real_faults::{ends_with_a_reason, offered, until};
use crate::second_docker::SecondDocker;

const APPLICATIONS: [&str; 2] = ["namespaces Synced Healthy", "victorialogs Synced Healthy"];

fn road() -> Road {
    let mut road = Road::small(Provider::Kind);
    road.docker = Some(SecondDocker::start());
    road
}

fn second(road: &mut Road) -> &mut SecondDocker {
    road.docker.as_mut().unwrap()
}

/// A command comes to its usual end, whatever was before; and once more, there is nothing to do.
fn comes_to_its_end(road: &Road, after: &str) {
    road.succeed(&["up"]);
    assert_eq!(road.succeed(&["up"]), NOTHING_TO_CHANGE, "{after}");
    assert_eq!(road.applications(), APPLICATIONS, "{after}");
}

/// Nothing is left in that Docker but what comes with it, and the network that kind keeps.
fn nothing_is_left(road: &Road) {
    road.succeed(&["down", "--purge"]);
    assert_eq!(road.docker(&["ps", "--all", "--quiet"]), "");
    assert_eq!(road.docker(&["volume", "ls", "--quiet"]), "");
    let networks = road.docker(&["network", "ls", "--format", "{{.Name}}"]);
    let mut networks: Vec<&str> = networks.lines().collect();
    networks.sort_unstable();
    assert_eq!(networks, ["bridge", "host", "kind", "none"]);
}

/// From which state a command begins.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    Nothing,
    Kept,
    Up,
}

#[test]
#[ignore = "takes a real Docker, and fifteen minutes"]
fn fault_the_daemon_dies_in_every_phase() {
    let phases: [(Before, &[&str], &str); 12] = [
        (Before::Nothing, &["up"], "cluster"),
        (Before::Nothing, &["up"], "images"),
        (Before::Nothing, &["up"], "argo cd"),
        (Before::Nothing, &["up"], "applications"),
        (Before::Nothing, &["up"], "snapshot"),
        (Before::Up, &["reset"], "state"),
        (Before::Up, &["reset"], "cluster"),
        (Before::Up, &["snapshot", "save", "mine"], "snapshot"),
        (Before::Up, &["sync"], "applications"),
        (Before::Up, &["down"], "cluster"),
        (Before::Kept, &["up"], "cluster"),
        (Before::Kept, &["up"], "applications"),
    ];
    let mut road = road();
    let signals = [Signal::SIGKILL, Signal::SIGTERM].into_iter().cycle();
    for ((before, command, step), signal) in phases.into_iter().zip(signals) {
        match before {
            Before::Nothing => drop(road.succeed(&["down", "--purge"])),
            Before::Kept => {
                road.succeed(&["up"]);
                road.succeed(&["down"]);
            }
            Before::Up => drop(road.succeed(&["up"])),
        }
        let told = format!("{signal} of dockerd at {step} of {}", command.join(" "));
        let child = until(&road, command, step);
        second(&mut road).end_daemon(signal);
        second(&mut road).start_daemon();
        let ran = ended(child);
        ends_with_a_reason(&ran, &told);
        says(&told, &ran);
        comes_to_its_end(&road, &told);
    }
    nothing_is_left(&road);
}

#[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
fn says(told: &str, ran: &Ran) {
    let error = ran.told().replace('\n', " | ");
    eprintln!("{told}: it ended with {} {error}", ran.status);
}

/// It failed for want of space, and said so.
fn is_told_of_the_disk(ran: &Ran, when: &str) {
    let error = ran.told();
    assert_eq!(ran.status, 1, "{when}: {}", ran.stderr);
    assert!(
        error.contains("no space left on device") || error.contains("No space left on device"),
        "{when}: {error}"
    );
    ends_with_a_reason(ran, when);
}

#[test]
#[ignore = "takes a real Docker, and five minutes"]
fn fault_the_disk_of_docker_fills() {
    let road = road();
    let docker = road.docker.as_ref().unwrap();

    // Before anything is there: found before anything is made.
    docker.fill(500);
    let ran = road.run(&["up"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.error().contains("MiB"), "{}", ran.error());
    assert_eq!(road.containers(), [""; 0]);
    docker.free_again();

    // While the images are put into the node.
    let child = until(&road, &["up"], "images");
    docker.fill(20);
    let ran = ended(child);
    says("the disk fills while images are put in", &ran);
    is_told_of_the_disk(&ran, "images");
    docker.free_again();
    comes_to_its_end(&road, "the disk was full at images");

    // Before a state is saved: refused. While it is: it isn't offered unless it is whole, and what was saved before is.
    road.kubectl(&["create", "configmap", "before", "-n", "default"]);
    docker.fill(20);
    let ran = road.run(&["snapshot", "save", "mine"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(ran.error().contains("a snapshot of "), "{}", ran.error());
    docker.free_again();
    let child = until(&road, &["snapshot", "save", "mine"], "snapshot");
    docker.fill_up();
    let ran = ended(child);
    says("the disk fills while a state is saved", &ran);
    ends_with_a_reason(&ran, "snapshot save");
    docker.free_again();
    let whole: &[&str] = match ran.status {
        0 => &["snapshot healthy", "snapshot mine"],
        _ => &["snapshot healthy"],
    };
    assert_eq!(offered(&road), whole);
    comes_to_its_end(&road, "the disk was full at snapshot save");

    // While one is put back: it can be put back later.
    docker.fill(1);
    let ran = road.run(&["reset", "--timeout", "90s"]);
    says("the disk is full when a state is put back", &ran);
    is_told_of_the_disk(&ran, "reset");
    docker.free_again();
    comes_to_its_end(&road, "the disk was full at reset");
    assert_eq!(offered(&road), whole);
    assert_eq!(road.succeed(&["reset"]), READY);
    let objects = road.kubectl(&["get", "configmaps", "-n", "default", "-o", "name"]);
    assert!(!objects.contains("/before"), "{objects}");
    nothing_is_left(&road);
}

/// Where the library that shows a program another time is, or `apt-get` brings it.
fn faketime() -> String {
    let find = || {
        let found = glob(Path::new("/usr/lib"), "faketime/libfaketime.so.1");
        found.map(|path| path.display().to_string())
    };
    find().unwrap_or_else(|| {
        crate::e2e::output("apt-get", &["install", "-y", "-qq", "libfaketime"]);
        find().unwrap()
    })
}

fn glob(folder: &Path, ending: &str) -> Option<std::path::PathBuf> {
    let folders = fs::read_dir(folder).unwrap().flatten();
    let mut paths = folders.map(|entry| entry.path().join(ending));
    paths.find(|path| path.exists())
}

#[test]
#[ignore = "takes a real Docker, and two minutes"]
fn fault_the_clock_is_wrong() {
    let road = road();
    let library = faketime();
    let at = |shift: &str, args: &[&str]| {
        let mut command = road.command(args);
        command
            .env("LD_PRELOAD", &library)
            .env("FAKETIME", shift)
            .env("DONT_FAKE_MONOTONIC", "1");
        ended(command.spawn().unwrap())
    };
    // Docker's clock and devenv's differ: said before anything is made.
    for (shift, word) in [("+400d", "behind"), ("-2d", "ahead")] {
        let ran = at(shift, &["up"]);
        assert_eq!(ran.status, 1, "{shift}: {}", ran.stderr);
        assert!(ran.error().contains("clock"), "{shift}: {}", ran.error());
        assert!(ran.error().contains(word), "{shift}: {}", ran.error());
        assert_eq!(road.containers(), [""; 0]);
    }
    // A few seconds are fine, for everything.
    for shift in ["+20s", "-20s"] {
        let ran = at(shift, &["up", "--fresh"]);
        assert_eq!(ran.last_word(), READY, "{shift}: {}", ran.stderr);
        let ran = at(shift, &["reset"]);
        assert_eq!(ran.last_word(), READY, "{shift}: {}", ran.stderr);
        road.succeed(&["down", "--purge"]);
    }
    // And what was made is kept when a clock goes wrong later.
    assert_eq!(road.succeed(&["up"]), READY);
    for shift in ["+400d", "-2d"] {
        for command in ["up", "check"] {
            let ran = at(shift, &[command]);
            says(&format!("{command} at {shift}"), &ran);
            assert_eq!(ran.status, 1, "{shift}: {}", ran.stderr);
            ends_with_a_reason(&ran, shift);
            let told = ran.told();
            assert!(told.contains("invalid peer certificate"), "{shift}: {told}");
            assert!(told.contains("hint: devenv doctor"), "{shift}: {told}");
        }
    }
    assert_eq!(road.succeed(&["up"]), NOTHING_TO_CHANGE);
    nothing_is_left(&road);
}

/// What may be gone when a person comes back: each alone, and together.
#[test]
#[ignore = "takes a real Docker, and ten minutes"]
fn fault_any_part_is_gone() {
    let road = road();
    road.succeed(&["up"]);
    for parts in 1..8_u8 {
        let is_gone = |part: u8| parts & (1 << part) != 0;
        let (node, network, kubeconfig) = (is_gone(0), is_gone(1), is_gone(2));
        if kubeconfig {
            let file = road.run(&["kubeconfig"]).stdout;
            fs::remove_file(file.trim()).unwrap();
        }
        if node {
            road.docker(&["rm", "--force", "--volumes", NODE]);
        }
        let told = format!("node gone: {node}, network: {network}, kubeconfig: {kubeconfig}");
        if network {
            let _ = road.try_docker(&["network", "disconnect", "--force", "kind", NODE]);
            road.docker(&["network", "rm", "kind"]);
        }
        if network && !node {
            let ran = road.run(&["up"]);
            assert_eq!(ran.status, 1, "{told}: {}", ran.stderr);
            let error = ran.error();
            assert!(error.contains("is in no network"), "{told}: {error}");
            assert!(error.contains("reset --rebuild"), "{told}: {error}");
            match kubeconfig {
                true => drop(road.succeed(&["down"])),
                false => assert_eq!(road.succeed(&["reset", "--rebuild"]), READY, "{told}"),
            }
        }
        comes_to_its_end(&road, &told);
    }
    // What `down` kept may be gone in part, too: then `up` starts from nothing, and leaves nothing over.
    let volumes = || -> Vec<String> {
        let names = road.docker(&["volume", "ls", "--quiet"]);
        names.lines().map(str::to_owned).collect()
    };
    road.succeed(&["down"]);
    let count = volumes().len();
    assert!(count >= 2, "{:?}", volumes());
    for number in 0..count {
        assert_eq!(volumes().len(), count);
        let mut others = volumes();
        let gone = others.remove(number);
        road.docker(&["volume", "rm", &gone]);
        comes_to_its_end(&road, &format!("the kept volume {gone} gone"));
        // Only the note of what is kept knows whose the nodes' volumes are; without it they are like any that nobody uses.
        if gone.ends_with("-kept") {
            road.docker(
                &[
                    &["volume", "rm"],
                    &others.iter().map(String::as_str).collect::<Vec<_>>()[..],
                ]
                .concat(),
            );
        }
        road.succeed(&["down"]);
    }
    nothing_is_left(&road);
}

#[test]
#[ignore = "takes a real Docker, and fifteen minutes"]
fn fault_twenty_days_leave_no_more_than_one() {
    let road = road();
    let docker = road.docker.as_ref().unwrap();
    let a_day = || {
        road.succeed(&["up"]);
        assert_eq!(road.succeed(&["reset"]), READY);
        road.succeed(&["down"]);
        docker.counts()
    };
    a_day();
    let days: Vec<_> = (2..=20)
        .map(|day| {
            let counts = a_day();
            says_counts(day, counts);
            counts
        })
        .collect();
    let (first, last) = (&days[..5], &days[days.len() - 5..]);
    for (index, (what, _)) in days[0].into_iter().enumerate() {
        // Files that a daemon opens and closes by itself come and go, so the least of some days is compared.
        let least =
            |days: &[[(&str, usize); 6]]| days.iter().map(|day| day[index].1).min().unwrap();
        let noise = match what {
            "open files" => 4,
            "mebibytes" => 16,
            _ => 0,
        };
        assert!(
            least(last) <= least(first) + noise,
            "{what}: {} on the first days, {} on the last",
            least(first),
            least(last)
        );
    }
    nothing_is_left(&road);
}

#[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
fn says_counts(day: u32, counts: [(&str, usize); 6]) {
    eprintln!("day {day}: {counts:?}");
}
