//! Nothing lost, nothing left: whatever becomes of devenv on its way, the same command again comes to the same end as if nothing
//! had happened, and `down` leaves nothing.
//!
//! The world around devenv is played (see `played`), so that a case takes a second or two. A small part of the cases is run with
//! all other tests; `scripts/faults` runs as many as one likes.
#![expect(
    clippy::print_stderr,
    reason = "how many cases were survived is for people to read"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::Ran;
use crate::played::{HOSTS, Key, World};

pub(crate) const NODE: &str = "devenv-dev-control-plane";
const SIGNALS: [Signal; 3] = [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT];

/// A command to be disturbed.
struct Scene {
    name: &'static str,
    args: &'static [&'static str],
    /// Brings about what the command finds.
    before: fn(&World),
}

const SCENES: [Scene; 16] = [
    Scene {
        name: "up",
        args: &["up"],
        before: with_an_empty_store,
    },
    Scene {
        name: "up with a full store",
        args: &["up"],
        before: |_| {},
    },
    Scene {
        name: "up after down",
        args: &["up"],
        before: |world| {
            well(world, &["up"]);
            well(world, &["down"]);
        },
    },
    Scene {
        name: "up --fresh after down",
        args: &["up", "--fresh"],
        before: |world| {
            well(world, &["up"]);
            well(world, &["down"]);
        },
    },
    Scene {
        name: "up after a stop",
        args: &["up"],
        before: |world| {
            well(world, &["up"]);
            well(world, &["down", "--keep"]);
        },
    },
    Scene {
        name: "up again",
        args: &["up"],
        before: |world| {
            well(world, &["up"]);
            vandalise(world);
        },
    },
    Scene {
        name: "down",
        args: &["down"],
        before: |world| drop(well(world, &["up"])),
    },
    Scene {
        name: "down --purge",
        args: DOWN,
        before: |world| drop(well(world, &["up"])),
    },
    Scene {
        name: "reset",
        args: &["reset"],
        before: |world| {
            well(world, &["up"]);
            vandalise(world);
        },
    },
    Scene {
        name: "reset --rebuild",
        args: &["reset", "--rebuild"],
        before: |world| {
            well(world, &["up"]);
            vandalise(world);
        },
    },
    Scene {
        name: "snapshot save",
        args: &["snapshot", "save", "mine"],
        before: |world| drop(well(world, &["up"])),
    },
    Scene {
        name: "snapshot restore",
        args: &["snapshot", "restore", "mine"],
        before: |world| {
            well(world, &["up"]);
            well(world, &["snapshot", "save", "mine"]);
            vandalise(world);
        },
    },
    Scene {
        name: "snapshot export",
        args: &["snapshot", "export", "state"],
        before: |world| drop(well(world, &["up"])),
    },
    Scene {
        name: "sync",
        args: &["sync"],
        before: |world| {
            edit(world, "hello");
            well(world, &["up"]);
            edit(world, "hullo");
        },
    },
    Scene {
        name: "hosts apply",
        args: &["hosts", "apply"],
        before: |_| {},
    },
    Scene {
        name: "hosts remove",
        args: &["hosts", "remove"],
        before: |world| drop(well(world, &["hosts", "apply"])),
    },
];

/// What removes everything.
pub(crate) const DOWN: &[&str] = &["down", "--purge"];

fn with_an_empty_store(world: &World) {
    let _ = std::fs::remove_dir_all(world.test.path("home/.cache/devenv/store"));
}

/// Does what nobody should to objects of ours, and adds one.
fn vandalise(world: &World) {
    world.in_cluster(NODE, |store| {
        store.delete(&Key::new("/configmaps", "iam-team", "web"));
        store.delete(&Key::new("apps/deployments", "argocd", "argocd-redis"));
        let stray = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "stray"}});
        store
            .put(&Key::new("/configmaps", "default", "stray"), stray)
            .unwrap();
    });
}

pub(crate) fn edit(world: &World, greeting: &str) {
    let path = world.test.path("project/bundles/iam/web/base/web.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, _) = text.split_once("greeting: ").unwrap();
    std::fs::write(path, format!("{before}greeting: {greeting}}}\n")).unwrap();
}

/// Runs a command to its end, which must be good.
fn well(world: &World, args: &[&str]) -> Ran {
    let ran = world.start(args).wait();
    assert_eq!(
        ran.status,
        0,
        "devenv {}:\n{}{}",
        args.join(" "),
        ran.stdout,
        ran.stderr
    );
    ran
}

/// When devenv is hit.
#[derive(Debug, Clone)]
enum When {
    /// At the nth event of this kind about a step of this name.
    Event(String, String, usize),
    /// When it asks Docker or the cluster for the nth change, which is made or not.
    Change(usize, bool),
    After(Duration),
}

/// What an undisturbed run comes to.
struct Undisturbed {
    end: BTreeMap<String, String>,
    events: Vec<When>,
    changes: usize,
    /// Which of the changes are the steps of the provider's program.
    of_provider: Vec<usize>,
    took: Duration,
    after_down: BTreeMap<String, String>,
}

/// Steps as they begin and end, each with how often that has been seen.
fn events(said: &str) -> Vec<When> {
    let mut names = BTreeMap::new();
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut events = Vec::new();
    for line in said.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let kind = event["event"].as_str().unwrap_or_default().to_owned();
        let step = event["step"].as_u64();
        if let (Some(step), Some(name)) = (step, event["name"].as_str()) {
            names.insert(step, name.to_owned());
        }
        if !["started", "finished"].contains(&kind.as_str()) {
            continue;
        }
        let name = step
            .and_then(|step| names.get(&step))
            .cloned()
            .unwrap_or_default();
        let count = counts.entry((kind.clone(), name.clone())).or_default();
        *count += 1;
        events.push(When::Event(kind, name, *count));
    }
    events
}

fn is_seen(when: &When, said: &str) -> bool {
    let When::Event(kind, name, nth) = when else {
        return false;
    };
    events(said)
        .iter()
        .any(|seen| matches!(seen, When::Event(a, b, c) if (a, b, c) == (kind, name, nth)))
}

fn undisturbed(world: &World, scene: &Scene) -> Undisturbed {
    (scene.before)(world);
    world.count_changes(None);
    let began = Instant::now();
    let args = [&["-o", "json"], scene.args].concat();
    let ran = well(world, &args);
    let took = began.elapsed();
    let changes = world.changes();
    let is_of_provider = |(_, what): &(usize, &String)| what.starts_with("kind/");
    let numbered = changes.iter().enumerate().filter(is_of_provider);
    let of_provider = numbered.map(|(index, _)| index + 1).collect();
    let end = world.seen();
    well(world, DOWN);
    Undisturbed {
        end,
        events: events(&format!("{}{}", ran.stdout, ran.stderr)),
        changes: changes.len(),
        of_provider,
        took,
        after_down: world.seen(),
    }
}

/// Hits devenv at some time, and runs the same command again; gives what isn't as it would have been.
fn disturbed(
    world: &World,
    scene: &Scene,
    expected: &Undisturbed,
    when: &When,
    signal: Signal,
) -> (bool, String) {
    (scene.before)(world);
    let mut troubles = String::new();
    if let When::Change(change, is_made) = when {
        world.count_changes(Some((*change, signal, *is_made)));
    }
    let began = Instant::now();
    let args = [&["-o", "json"], scene.args].concat();
    let mut running = world.start(&args);
    world.is_run_by(running.pid());
    loop {
        let is_now = match when {
            When::After(time) => began.elapsed() >= *time,
            When::Change(..) => false, // it is hit where the change is asked for
            event => is_seen(event, &running.said()),
        };
        if is_now {
            running.signal(signal);
            break;
        }
        if running.has_ended() {
            break;
        }
        thread::sleep(Duration::from_micros(300));
    }
    let hit = running.wait();
    world.count_changes(None);
    let code = match signal {
        Signal::SIGKILL => -9,
        Signal::SIGTERM => 143,
        _ => 130,
    };
    // It may have ended just before, and right at its start or end nobody listens for signals.
    let by_default = -(signal as i32);
    if ![0, code, by_default].contains(&hit.status) {
        let _ = writeln!(troubles, "it ended with {}: {}", hit.status, hit.stderr);
    }
    if hit.status == code && signal != Signal::SIGKILL {
        let left = world.processes();
        if !left.is_empty() {
            let _ = writeln!(troubles, "it left running: {left:?}");
        }
    }
    let again = world.start(scene.args).wait();
    if again.status != 0 {
        let _ = writeln!(
            troubles,
            "again, it ended with {}:\n{}",
            again.status, again.stderr
        );
    }
    troubles += &difference("afterwards", &expected.end, &world.seen());
    let down = world.start(DOWN).wait();
    if down.status != 0 {
        let _ = writeln!(
            troubles,
            "down ended with {}:\n{}",
            down.status, down.stderr
        );
    }
    let seen = world.seen();
    troubles += &difference("after down", &expected.after_down, &seen);
    troubles += &leftovers(world, &seen, HOSTS);
    (hit.status != 0, troubles)
}

/// What `down` should have taken away, whatever was there before.
pub(crate) fn leftovers(world: &World, seen: &BTreeMap<String, String>, hosts: &[u8]) -> String {
    let is_left = |key: &&String| {
        let is_dockers = ["container", "volume"].iter().any(|it| key.starts_with(it));
        is_dockers && !key.contains("theirs")
            || key.contains("environments/") && !key.ends_with("environments/")
            || key.contains(".lock")
    };
    let mut left: Vec<String> = seen.keys().filter(is_left).cloned().collect();
    left.extend(world.processes());
    if world.hosts() != hosts {
        left.push("lines in the hosts file".to_owned());
    }
    match left.is_empty() {
        true => String::new(),
        false => format!("left after down: {}\n", left.join(", ")),
    }
}

pub(crate) fn difference(
    what: &str,
    expected: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> String {
    let short = |value: Option<&String>| match value {
        Some(value) => value.chars().take(600).collect(),
        None => "nothing".to_owned(),
    };
    let mut told = String::new();
    for key in expected
        .keys()
        .chain(found.keys().filter(|key| !expected.contains_key(*key)))
    {
        if expected.get(key) != found.get(key) {
            let (expected, found) = (short(expected.get(key)), short(found.get(key)));
            let _ = writeln!(
                told,
                "{what}, {key}:\n    found {found}\n    expected {expected}"
            );
        }
    }
    told
}

/// Numbers that look random and are the same at every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }

    fn time(&mut self, limit: Duration) -> Duration {
        limit * u32::try_from(self.below(1000)).unwrap() / 1000
    }
}

/// How many cases of a kind were tried and survived, and what became of the others.
#[derive(Debug, Default)]
struct Score {
    tried: usize,
    survived: usize,
    /// How many were hit before they had ended by themselves.
    hit: usize,
    troubles: Vec<String>,
}

impl Score {
    fn add(&mut self, what: &str, was_hit: bool, troubles: String) {
        self.tried += 1;
        self.hit += usize::from(was_hit);
        match troubles.is_empty() {
            true => self.survived += 1,
            false => {
                eprintln!("NOT SURVIVED: {what}:\n{troubles}");
                self.troubles.push(what.to_owned());
            }
        }
    }

    fn told(&self, what: &str) -> String {
        let Self {
            tried,
            survived,
            hit,
            ..
        } = self;
        format!("{what:24} {tried:4} tried, {hit:4} hit at work, {survived:4} survived\n")
    }
}

/// Disturbs a scene: between any two steps of the provider's program, at every beginning and end of a step of devenv's where `all`
/// is set, and then so often at any of them or at any time.
fn kills(scene: &Scene, count: usize, seed: u64, all: bool) -> Score {
    let mut world = World::new();
    let mut expected = undisturbed(&world, scene);
    let mut dice = Dice(seed);
    let mut score = Score::default();
    let steps = if all { expected.events.len() } else { 0 };
    let of_provider = expected.of_provider.len();
    for index in 0..steps + of_provider + count {
        let mut signal = SIGNALS[dice.below(3)];
        let step = index.checked_sub(of_provider);
        let when = match dice.below(3) {
            // Its program is killed between any two of its steps, with devenv.
            _ if let Some(change) = expected.of_provider.get(index) => {
                signal = Signal::SIGKILL;
                When::Change(*change, false)
            }
            _ if step.is_some_and(|step| step < steps.min(expected.events.len())) => {
                expected.events[step.unwrap()].clone()
            }
            0 => When::After(dice.time(expected.took)),
            1 if expected.changes > 0 => {
                // Only whoever is killed can't see that the connection broke off, too.
                let is_made = signal != Signal::SIGKILL || dice.below(2) == 0;
                When::Change(1 + dice.below(expected.changes), is_made)
            }
            _ => expected.events[dice.below(expected.events.len())].clone(),
        };
        let (was_hit, troubles) = disturbed(&world, scene, &expected, &when, signal);
        if !troubles.is_empty() {
            world = World::new();
            expected = undisturbed(&world, scene);
        }
        score.add(
            &format!("{} and {signal} at {when:?}", scene.name),
            was_hit,
            troubles,
        );
    }
    score
}

/// Runs all scenes, four at a time: they wait more than they work.
fn all_scenes(count: usize, seed: u64, all: bool) {
    let only = std::env::var("FAULTS_OF").unwrap_or_default();
    let is_asked_for = |(_, scene): &(usize, &Scene)| scene.name.contains(&only);
    let next = Mutex::new(SCENES.iter().enumerate().filter(is_asked_for));
    let scores = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let scene = next.lock().unwrap().next();
                    let Some((index, scene)) = scene else { return };
                    let score = kills(scene, count, seed + index as u64, all);
                    eprint!("{}", score.told(scene.name));
                    scores.lock().unwrap().insert(index, score);
                }
            });
        }
    });
    let scores: Vec<Score> = scores.into_inner().unwrap().into_values().collect();
    report("kills, all commands", scores);
}

/// The last word about all cases; fails where one wasn't survived.
fn report(what: &str, scores: Vec<Score>) {
    assert!(!scores.is_empty());
    let sum = scores.into_iter().fold(Score::default(), |mut sum, score| {
        sum.tried += score.tried;
        sum.hit += score.hit;
        sum.survived += score.survived;
        sum.troubles.extend(score.troubles);
        sum
    });
    eprint!("{}", sum.told(what));
    assert!(sum.hit * 4 > sum.tried, "most cases hit nothing");
    assert!(sum.troubles.is_empty(), "{}", sum.troubles.join("\n"));
}

#[test]
fn killed_and_run_again() {
    all_scenes(1, 0x5eed, false);
}

/// How many cases of each kind the long run tries.
fn asked_for() -> usize {
    let asked = std::env::var("FAULTS").unwrap_or_default();
    asked.parse().unwrap_or(10)
}

#[test]
#[ignore = "takes minutes: scripts/faults runs it"]
fn long_killed_and_run_again() {
    all_scenes(asked_for(), 0xfa17, true);
}

// Several at once.

/// Starts them all at the same time, or so far apart, and waits for all of them.
fn at_once(world: &World, commands: &[(&[&str], Duration)]) -> Vec<Ran> {
    let running: Vec<_> = commands
        .iter()
        .map(|(args, after)| {
            thread::sleep(*after);
            world.start(args)
        })
        .collect();
    running.into_iter().map(|it| it.wait()).collect()
}

/// How those that didn't end well ended.
fn not_well(ran: &[Ran]) -> String {
    ran.iter()
        .filter(|ran| ran.status != 0)
        .map(|ran| format!("one ended with {}:\n{}\n", ran.status, ran.stderr))
        .collect()
}

fn five_up_at_once(world: &World, expected: &Undisturbed) -> String {
    let before = world.test.calls("kind").len();
    let ran = at_once(world, &[(&["up"][..], Duration::ZERO); 5]);
    let mut troubles = not_well(&ran) + &difference("afterwards", &expected.end, &world.seen());
    let made = world.test.calls("kind").len() - before;
    if made != 1 {
        let _ = writeln!(troubles, "kind was called {made} times");
    }
    troubles + &taken_down(world, expected)
}

/// Whoever comes second undoes what the first did, or finds nothing; a last `up` and `down` come to the usual ends.
fn up_with_down(world: &World, expected: &Undisturbed, apart: Duration) -> String {
    let ran = at_once(world, &[(&["up"], Duration::ZERO), (DOWN, apart)]);
    let mut troubles = not_well(&ran);
    troubles += &not_well(&[world.start(&["up"]).wait()]);
    troubles += &difference("afterwards", &expected.end, &world.seen());
    troubles + &taken_down(world, expected)
}

/// Two environments are brought up at the same time, and one of them is taken down: nothing of the other changes.
fn side_by_side(world: &World) -> String {
    let two = |args: &[&'static str]| [&["--environment", "two"], args].concat();
    let ran = at_once(
        world,
        &[(&["up"], Duration::ZERO), (&two(&["up"]), Duration::ZERO)],
    );
    let mut troubles = not_well(&ran);
    let of_two = |seen: BTreeMap<String, String>| -> BTreeMap<String, String> {
        let is_of_two = |key: &String| key.contains("devenv-two");
        seen.into_iter().filter(|(key, _)| is_of_two(key)).collect()
    };
    let before = of_two(world.seen());
    if before.len() < 20 {
        let _ = writeln!(troubles, "of the second there is only {before:?}");
    }
    troubles += &not_well(&[world.start(DOWN).wait()]);
    troubles += &difference("beside a down", &before, &of_two(world.seen()));
    troubles += &not_well(&[world.start(&two(&["status"])).wait()]);
    troubles += &not_well(&[world.start(&two(DOWN)).wait()]);
    troubles + &leftovers(world, &world.seen(), HOSTS)
}

fn taken_down(world: &World, expected: &Undisturbed) -> String {
    let ran = world.start(DOWN).wait();
    let seen = world.seen();
    not_well(&[ran])
        + &difference("after down", &expected.after_down, &seen)
        + &leftovers(world, &seen, HOSTS)
}

/// Each of the three, that often.
fn several(count: usize, seed: u64) {
    let world = World::new();
    let expected = undisturbed(&world, &SCENES[1]);
    let both = World::new();
    both.environment("two");
    let mut dice = Dice(seed);
    let (mut five, mut down, mut beside) = <(Score, Score, Score)>::default();
    for _ in 0..count {
        five.add("five up at once", true, five_up_at_once(&world, &expected));
        let apart = dice.time(expected.took);
        let troubles = up_with_down(&world, &expected, apart);
        down.add(&format!("up with down {apart:?} later"), true, troubles);
        beside.add("two side by side", true, side_by_side(&both));
    }
    eprint!(
        "{}",
        five.told("five up at once")
            + &down.told("up with down")
            + &beside.told("two side by side")
    );
    report("several at once", vec![five, down, beside]);
}

#[test]
fn several_at_once() {
    several(1, 0x5eed);
}

#[test]
#[ignore = "takes minutes: scripts/faults runs it"]
fn long_several_at_once() {
    several(asked_for(), 0xfa17);
}
