//! Faults on the whole platform: a database that is written to while its state is saved, and parts of the mesh that end while
//! `up` waits.
//!
//! They take minutes, so they are ignored by default; `scripts/faults --real` runs them.

use std::process::Child;
use std::time::Duration;

use crate::e2e::{LOGS, Provider, Road, ended};
use crate::harness::wait_for;
use crate::real_faults::until;

const NAMESPACE: &str = "iam-system";

/// A program in a pod of the database.
fn in_pod(road: &Road, pod: &str, command: &[&str]) -> String {
    let exec = ["exec", "-n", NAMESPACE, pod, "-c", "postgres", "--"];
    road.kubectl(&[&exec, command].concat())
}

fn primary(road: &Road) -> String {
    let path = "jsonpath={.status.currentPrimary}";
    let ask = ["get", "clusters.postgresql.cnpg.io", "keycloak-db"];
    road.kubectl(&[&ask[..], &["-n", NAMESPACE, "-o", path]].concat())
}

fn ask(road: &Road, pod: &str, query: &str) -> String {
    let query = ["psql", "-qAt", "-d", "bench", "-c", query];
    in_pod(road, pod, &query).trim().to_owned()
}

fn count(road: &Road, pod: &str) -> u64 {
    ask(road, pod, "select count(*) from pgbench_history")
        .parse()
        .unwrap()
}

/// pgbench's bank: whoever moves money writes it in three tables and a history, in one transaction.
const BALANCES: &str = "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                        (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history)";

fn is_whole(road: &Road, pod: &str) {
    let balances = ask(road, pod, BALANCES);
    let mut sums = balances.split('|');
    let first = sums.next().unwrap();
    assert!(sums.all(|sum| sum == first), "{pod}: {balances}");
    // Every page of every table, every entry of every index, against each other.
    let check = ["pg_amcheck", "--database=bench", "--heapallindexed"];
    in_pod(road, pod, &check);
}

/// Four people who move money, until they are ended.
fn load(road: &Road, pod: &str) -> Child {
    let exec = ["exec", "-n", NAMESPACE, pod, "-c", "postgres", "--"];
    let bench = [
        "pgbench",
        "--no-vacuum",
        "--client=4",
        "--time=120",
        "bench",
    ];
    road.kubectl_starts(&[&exec[..], &bench].concat())
}

fn all_is_well(road: &Road, args: &[&str], after: &str) {
    let word = road.succeed(args);
    assert!(
        word.contains("10 of 10 applications healthy") && !word.contains("failed"),
        "{after}: {word}"
    );
}

#[test]
#[ignore = "takes a real cluster, and ten minutes"]
fn fault_a_database_under_load_comes_back_whole() {
    let road = Road::platform(Provider::Kind);
    all_is_well(&road, &["up"], "nothing");
    let pod = primary(&road);
    in_pod(&road, &pod, &["createdb", "bench"]);
    in_pod(
        &road,
        &pod,
        &["pgbench", "--initialize", "--quiet", "--scale=5", "bench"],
    );
    ask(&road, &pod, "create extension amcheck");
    for round in 1..=3 {
        let mut writers = load(&road, &pod);
        std::thread::sleep(Duration::from_secs(5));
        let before = count(&road, &pod);
        road.succeed(&["snapshot", "save", "loaded"]);
        let after = count(&road, &pod);
        std::thread::sleep(Duration::from_secs(3));
        let later = count(&road, &pod);
        assert!(
            before > 0 && later > after,
            "it isn't written to: {before} {after} {later}"
        );
        all_is_well(&road, &["snapshot", "restore", "loaded"], "load");
        writers.wait().unwrap();
        let pod = primary(&road);
        let there = count(&road, &pod);
        assert!(
            (before..=after).contains(&there),
            "round {round}: {there} rows, of {before} before and {after} after saving"
        );
        let pods = ["keycloak-db-1", "keycloak-db-2", "keycloak-db-3"];
        for pod in pods {
            wait_for("the replicas", || {
                (count(&road, pod) == there).then_some(())
            });
            is_whole(&road, pod);
        }
    }
    // What `down` keeps has been under load no less.
    all_is_well(&road, &["up"], "load");
}

/// Ends a pod as its node's death would: at once.
fn end(road: &Road, namespace: &str, label: &str) {
    let now = ["--force", "--grace-period=0", "--wait=false"];
    let delete = ["delete", "pod", "-n", namespace, "-l", label];
    road.kubectl(&[&delete[..], &now].concat());
}

#[test]
#[ignore = "takes a real cluster, and ten minutes"]
fn fault_parts_of_the_platform_end_while_up_waits() {
    let road = Road::platform(Provider::Kind);
    all_is_well(&road, &["up"], "nothing");
    let parts = [
        ("istio-system", "app=istiod"),
        ("istio-ingress", "app=istio-ingressgateway"),
        ("cnpg-system", "app.kubernetes.io/name=cloudnative-pg"),
        (NAMESPACE, "cnpg.io/instanceRole=primary"),
        (NAMESPACE, "app=keycloak"),
        ("argocd", "app.kubernetes.io/name=argocd-server"),
        ("kube-system", "k8s-app=kube-dns"),
    ];
    for (number, (namespace, label)) in parts.into_iter().enumerate() {
        let days = format!("-retentionPeriod={}d", number + 10);
        let before = match number {
            0 => "-retentionPeriod=7d".to_owned(),
            _ => format!("-retentionPeriod={}d", number + 9),
        };
        road.edit(LOGS, &before, &days);
        let child = until(&road, &["up"], "applications");
        end(&road, namespace, label);
        let ran = ended(child);
        assert_eq!(
            ran.status, 0,
            "{label} ended: {}\n{}",
            ran.stdout, ran.stderr
        );
        all_is_well(&road, &["up"], label);
        let applications = road.applications();
        let well = applications
            .iter()
            .filter(|told| told.ends_with(" Synced Healthy"));
        assert_eq!(
            (well.count(), applications.len()),
            (10, 10),
            "{label}: {applications:?}"
        );
    }
}
