//! Faults on real clusters of kind: the node is stopped, frozen, cut off or taken away, what `up` waits for dies, a port is taken
//! before it is used, a saved state is damaged. The next command comes to the usual end, and nothing that was saved is lost.
//!
//! They take minutes, so they are ignored by default; `kills.rs` has what becomes of a devenv that is killed itself.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;

use serde_json::Value;

use crate::e2e::{LOGS, NODE, NOTHING_TO_CHANGE, Provider, READY, Ran, Road, ended, lines};
use crate::harness::wait_for;

/// What a command may take that can't succeed.
const SHORT: [&str; 2] = ["--timeout", "60s"];

fn keep_logs_for(road: &Road, days: &str) {
    let text = fs::read_to_string(road.project(LOGS)).unwrap();
    let (before, after) = text.split_once("-retentionPeriod=").unwrap();
    let (_, after) = after.split_once(']').unwrap();
    road.write(LOGS, &format!("{before}-retentionPeriod={days}]{after}"));
}

/// The snapshots that devenv offers.
pub(crate) fn offered(road: &Road) -> Vec<String> {
    let listed = road.run(&["snapshot", "list", "-o", "json"]).stdout;
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let names = listed.as_array().unwrap().iter();
    names
        .map(|snapshot| format!("snapshot {}", snapshot["name"].as_str().unwrap()))
        .collect()
}

/// What is done to a node, or to what stands between it and devenv.
const BLOWS: [(&str, &[&str]); 3] = [
    ("stopped", &["stop", "--time", "1", NODE]),
    ("frozen", &["pause", NODE]),
    ("removed", &["rm", "--force", "--volumes", NODE]),
];

#[test]
#[ignore = "takes a real cluster"]
fn fault_the_node_is_stopped_frozen_or_removed() {
    let road = Road::small(Provider::Kind);
    assert_eq!(road.succeed(&["up"]), READY);

    // The kubeconfig is written again, and nothing else is to do.
    let kubeconfig = road.run(&["kubeconfig"]).stdout;
    fs::remove_file(kubeconfig.trim()).unwrap();
    assert_eq!(road.succeed(&["up"]), NOTHING_TO_CHANGE);
    assert!(Path::new(kubeconfig.trim()).exists());

    for (what, blow) in BLOWS {
        road.docker(blow);
        assert_eq!(road.succeed(&["up"]), READY, "{what} in between");
    }
    // Frozen while somebody asks something in it, a node hangs Docker itself where cgroups are of version 1: what just began to
    // run in it is frozen before it has begun, and Docker waits for it with the node locked.
    for (what, blow) in BLOWS.into_iter().filter(|(what, _)| *what != "frozen") {
        road.docker(&["stop", "--time", "1", NODE]);
        let child = road.start(&[&["up"], &SHORT[..]].concat());
        wait_for("the node to be started", || {
            let ask = ["inspect", NODE, "--format", "{{.State.Status}}"];
            (road.docker(&ask).trim() == "running").then_some(())
        });
        road.docker(blow);
        ends_with_a_reason(&ended(child), what);
        road.succeed(&["up"]);
        assert_eq!(road.succeed(&["up"]), NOTHING_TO_CHANGE, "{what} meanwhile");
    }
}

/// Whatever was done to it, it ended in time, and well or with what to type next.
pub(crate) fn ends_with_a_reason(ran: &Ran, what: &str) {
    let is_told = ran.status == 1 && ran.told().contains("\n\nhint: ");
    assert!(
        ran.status == 0 || is_told,
        "{what}: it ended with {}\n{}\n{}",
        ran.status,
        ran.stdout,
        ran.stderr
    );
}

#[test]
#[ignore = "takes a real cluster"]
fn fault_the_node_loses_its_network() {
    let road = Road::small(Provider::Kind);
    assert_eq!(road.succeed(&["up"]), READY);
    road.docker(&["network", "disconnect", "kind", NODE]);
    let ran = road.run(&[&["up"], &SHORT[..]].concat());
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    ends_with_a_reason(&ran, "cut off");
    road.docker(&["network", "connect", "kind", NODE]);
    road.succeed(&["up"]);
    assert_eq!(road.succeed(&["up"]), NOTHING_TO_CHANGE);
}

/// Starts it, and comes back when that step has begun.
pub(crate) fn until(road: &Road, args: &[&str], step: &str) -> Child {
    let mut child = road.start(&[args, &["-o", "json"]].concat());
    let mut reader = BufReader::with_capacity(1, child.stdout.take().unwrap());
    let begins = format!("\"name\":\"{step}\"");
    let mut line = String::new();
    while !line.contains(&begins) {
        line.clear();
        assert!(
            reader.read_line(&mut line).unwrap() > 0,
            "it never came to {step}"
        );
    }
    child.stdout = Some(reader.into_inner());
    child
}

/// In the node, by hand: `kubectl` can't end a part of the control plane.
fn end_in_the_node(road: &Road, process: &str) {
    let script = format!(
        "for process in /proc/[0-9]*; do if [ \"$(cat $process/comm 2>/dev/null)\" = {process} ]; then kill -9 ${{process#/proc/}}; fi; done; true"
    );
    road.docker(&["exec", NODE, "sh", "-c", &script]);
}

fn end_pod(road: &Road, name: &str) {
    let label = format!("app.kubernetes.io/name={name}");
    let now = ["--force", "--grace-period=0", "--wait=false"];
    road.kubectl(&[&["delete", "pod", "-n", "argocd", "-l", &label], &now[..]].concat());
}

#[test]
#[ignore = "takes a real cluster"]
fn fault_what_up_waits_for_dies() {
    let road = Road::small(Provider::Kind);
    assert_eq!(road.succeed(&["up"]), READY);
    let processes = ["kube-apiserver", "etcd"];
    let pods = [
        "git-source",
        "argocd-repo-server",
        "argocd-application-controller",
    ];
    for (number, victim) in processes.into_iter().chain(pods).enumerate() {
        for step in ["argo cd", "applications"] {
            keep_logs_for(&road, &format!("{}d", number + 10 + step.len()));
            let child = until(&road, &["up"], step);
            match processes.contains(&victim) {
                true => end_in_the_node(&road, victim),
                false => end_pod(&road, victim),
            }
            let ran = ended(child);
            assert_eq!(
                ran.status, 0,
                "{victim} died at {step}:\n{}\n{}",
                ran.stdout, ran.stderr
            );
            assert_eq!(
                road.applications(),
                ["namespaces Synced Healthy", "victorialogs Synced Healthy"],
                "{victim} died at {step}"
            );
        }
    }
}

#[test]
#[ignore = "takes a real cluster"]
fn fault_a_port_is_taken_between_look_and_use() {
    let road = Road::small(Provider::Kind);
    let port = road.port_of(443);
    let child = road.start(&["up"]);
    wait_for("kind", || (!road.processes().is_empty()).then_some(()));
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let ran = ended(child);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(
        error.contains("address already in use") && error.contains(&port.to_string()),
        "{error}"
    );
    assert_eq!(road.processes(), [""; 0]);
    drop(taken);
    assert_eq!(road.succeed(&["up"]), READY);
    let volumes = road.volumes();
    road.succeed(&["down", "--purge"]);
    assert_eq!(road.left(&volumes), [""; 0]);
}

/// In the node, where the snapshots are.
fn among_snapshots(road: &Road, script: &str) {
    let script = format!("cd /var/devenv/snapshots && {script}");
    road.docker(&["exec", NODE, "sh", "-c", &script]);
}

#[test]
#[ignore = "takes a real cluster"]
fn fault_a_damaged_snapshot_is_never_offered() {
    let road = Road::small(Provider::Kind);
    assert_eq!(road.succeed(&["up"]), READY);

    let cut = "truncate -s 4096 NAME/etcd/member/snap/db";
    let damages = [
        cut,
        "rm NAME/meta.json",
        "rm -r NAME/etcd",
        "rm NAME/identity.tar",
    ];
    for damage in damages {
        road.succeed(&["snapshot", "save", "mine"]);
        assert_eq!(offered(&road), ["snapshot healthy", "snapshot mine"]);
        among_snapshots(&road, &damage.replace("NAME", "mine"));
        assert_eq!(offered(&road), ["snapshot healthy"], "{damage}");
        let ran = road.run(&["snapshot", "restore", "mine"]);
        assert_eq!(
            (ran.status, ran.error()),
            (
                2,
                "error: there is no snapshot `mine`\n\nhint: the snapshots there are: healthy\n"
            ),
            "{damage}"
        );
    }

    // Nobody starts from what isn't whole: `down` keeps nothing of it, and `reset` makes the cluster anew and says so.
    among_snapshots(&road, &cut.replace("NAME", "healthy"));
    let ran = road.run(&["reset"]);
    assert_eq!(ran.last_word(), READY, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("no state of this cluster has passed all checks yet"),
        "{}",
        ran.stderr
    );
    assert_eq!(offered(&road), ["snapshot healthy"]);
    among_snapshots(&road, &cut.replace("NAME", "healthy"));
    let volumes = road.volumes();
    road.succeed(&["down"]);
    assert_eq!(road.left(&volumes), [""; 0]);
}

/// Logs on a volume, which a snapshot holds.
const VOLUME: &str = "\
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: logs}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 64Mi}}
---
";

#[test]
#[ignore = "takes a real cluster"]
fn fault_what_was_saved_is_there_after_a_reset() {
    let road = Road::small(Provider::Kind);
    let text = fs::read_to_string(road.project(LOGS)).unwrap();
    let claim = "persistentVolumeClaim: {claimName: logs}";
    road.write(
        LOGS,
        &(VOLUME.to_owned() + &text.replace("emptyDir: {}", claim)),
    );
    assert_eq!(road.succeed(&["up"]), READY);

    // A row is a file in the volume here; which database writes it makes no difference to who copies it.
    let in_volume = |script: &str| {
        let script = format!("cd /var/local-path-provisioner/*logs* && {script}");
        road.docker(&["exec", NODE, "sh", "-c", &script])
    };
    let write = |what: &str| {
        in_volume(&format!("echo {what} >> rows"));
        road.kubectl(&["create", "configmap", what, "-n", "default"]);
    };
    let there = || {
        let objects = road.kubectl(&["get", "configmaps", "-n", "default", "-o", "name"]);
        let mut there = lines(&objects);
        there.retain(|name| !name.contains("kube-root-ca"));
        (there, lines(&in_volume("touch rows; cat rows")))
    };
    let of = |names: &[&str]| {
        let objects = names
            .iter()
            .map(|name| format!("configmap/{name}"))
            .collect();
        (objects, lines(&names.join("\n")))
    };
    write("before");
    road.succeed(&["snapshot", "save", "mine"]);
    write("later");
    assert_eq!(there(), of(&["before", "later"]));
    assert_eq!(road.succeed(&["snapshot", "restore", "mine"]), READY);
    assert_eq!(there(), of(&["before"]));

    // What `up` itself saves, `reset` and the next morning put back.
    write("more");
    keep_logs_for(&road, "9d");
    assert_eq!(road.succeed(&["up"]), READY);
    write("later");
    assert_eq!(road.succeed(&["reset"]), READY);
    assert_eq!(there(), of(&["before", "more"]));
    write("later");
    road.succeed(&["down"]);
    assert_eq!(road.try_docker(&["inspect", NODE]), None);
    assert_eq!(road.succeed(&["up"]), READY);
    assert_eq!(there(), of(&["before", "more"]));
}
