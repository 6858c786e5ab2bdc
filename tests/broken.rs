//! Every check, broken once on purpose in a real cluster: it turns red, alone or with those that ask the same thing, and its
//! text names the cause.
//!
//! Argo CD's controller rests meanwhile, or it would mend what is broken before anybody looks.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use rcgen::{CertificateParams, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::e2e::Road;

/// Which checks failed, with what they saw.
type Red = BTreeMap<String, String>;

/// One thing that is broken.
struct Break<'a> {
    what: &'a str,
    /// These must fail…
    red: &'a [&'a str],
    /// … these may, since they ask the same thing; and no others.
    beside: &'a [&'a str],
    /// What the first of them says.
    says: &'a str,
}

/// What is asked through the gateway by HTTPS.
const THROUGH_THE_DOOR: &[&str] = &[
    "argocd applications", // of the gateway's Service it is told by Argo CD too
    "argocd healthz",
    "argocd login",
    "gateway argocd.local",
    "gateway keycloak.local",
    "gateway load balancer",
    "gateway logs.local",
    "gateway redirect",
    "gateway unknown names",
    "keycloak admin API",
    "keycloak issuer",
    "keycloak token",
    "logs victorialogs page",
    "logs vlagent labels",
];

/// Breaks everything, one after the other.
pub(crate) fn each_check_once(road: &Road) {
    assert_eq!(look_until(road, Red::is_empty), Red::new());
    certificate_and_address(road);
    scale(
        road,
        "argocd",
        "statefulset/argocd-application-controller",
        0,
    );
    the_door(road);
    the_mesh(road);
    keycloak_and_argocd(road);
    the_database(road);
    the_logs(road);
    the_cluster(road);
    the_names(road);
    scale(
        road,
        "argocd",
        "statefulset/argocd-application-controller",
        1,
    );
    let wrong = WRONG.lock().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn the_door(road: &Road) {
    let takes_all = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "takes-all", "namespace": "argocd"},
        "spec": {
            "gateways": ["istio-ingress/platform"], "hosts": ["*"],
            "http": [{"route": [{"destination": {
                "host": "argocd-server.argocd.svc.cluster.local", "port": {"number": 80},
            }}]}],
        },
    });
    broken(
        road,
        Break {
            what: "a route that takes every name",
            red: &["gateway unknown names"],
            beside: &[],
            says: "a route takes every name",
        },
        || apply(road, &takes_all),
        || delete(road, "virtualservice", "argocd", "takes-all"),
    );

    let route = live(road, "virtualservice", "argocd", "argocd");
    broken(
        road,
        Break {
            what: "no redirect to HTTPS",
            red: &["gateway redirect"],
            beside: &[],
            says: " where 301 was expected",
        },
        || {
            patch(
                road,
                "virtualservice",
                "argocd",
                "argocd",
                "json",
                &json!([{"op": "remove", "path": "/spec/http/0"}]),
            );
        },
        || apply(road, &route),
    );

    let logs = live(
        road,
        "virtualservice",
        "observability-system",
        "victoria-logs",
    );
    broken(
        road,
        Break {
            what: "no route to the logs",
            red: &[
                "gateway logs.local",
                "logs vlagent labels",
                "logs victorialogs page",
            ],
            beside: &[],
            says: "the gateway itself answered 404 for logs.local",
        },
        || {
            delete(
                road,
                "virtualservice",
                "observability-system",
                "victoria-logs",
            );
        },
        || apply(road, &logs),
    );
}

/// What `up` mends.
fn certificate_and_address(road: &Road) {
    broken(
        road,
        Break {
            what: "an expired certificate",
            red: &[
                "gateway keycloak.local",
                "gateway argocd.local",
                "gateway logs.local",
            ],
            beside: THROUGH_THE_DOOR,
            says: "certificate expired",
        },
        || apply(road, &expired_leaf(road)),
        || drop(road.succeed(&["up"])), // renews it
    );

    broken(
        road,
        Break {
            what: "a LoadBalancer without an address",
            red: &["gateway load balancer"],
            beside: THROUGH_THE_DOOR, // the published ports lead to that address
            says: "the Service istio-ingress/istio-ingressgateway has no address",
        },
        || {
            road.kubectl(&[
                "patch",
                "service",
                "istio-ingressgateway",
                "-n",
                "istio-ingress",
                "--subresource=status",
                "--type=merge",
                "-p",
                r#"{"status":{"loadBalancer":{"ingress":null}}}"#,
            ]);
        },
        || drop(road.succeed(&["up"])),
    );
}

fn the_mesh(road: &Road) {
    for (namespace, name, check) in [
        ("istio-system", "default", "policy mesh"),
        ("iam-system", "iam-mtls", "policy iam"),
        (
            "observability-system",
            "observability-mtls",
            "policy observability",
        ),
    ] {
        let policy = live(road, "peerauthentication", namespace, name);
        broken(
            road,
            Break {
                what: &format!("PeerAuthentication {name} deleted"),
                red: &[check],
                beside: &[],
                says: &format!("PeerAuthentication {namespace}/{name} isn't there"),
            },
            || delete(road, "peerauthentication", namespace, name),
            || apply(road, &policy),
        );
    }

    for (namespace, label, check) in [
        (
            "iam-system",
            json!({"app": "keycloak"}),
            "mesh strict keycloak 8080",
        ),
        (
            "observability-system",
            json!({"app.kubernetes.io/name": "victoria-logs"}),
            "mesh strict victorialogs 9428",
        ),
    ] {
        let open = peer_authentication(
            namespace,
            "open",
            &label,
            &json!({"mtls": {"mode": "PERMISSIVE"}}),
        );
        broken(
            road,
            Break {
                what: "mutual TLS is PERMISSIVE",
                red: &[check],
                beside: &[],
                says: "mutual TLS isn't STRICT there",
            },
            || apply(road, &open),
            || delete(road, "peerauthentication", namespace, "open"),
        );
    }

    let everybody = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "open", "namespace": "iam-system"},
        "spec": {
            "selector": {"matchLabels": {"cnpg.io/cluster": "keycloak-db"}},
            "rules": [{"to": [{"operation": {"ports": ["5432"]}}]}],
        },
    });
    let ports = |ports: Value| {
        patch(
            road,
            "peerauthentication",
            "iam-system",
            "postgres-status-permissive",
            "merge",
            &json!({"spec": {"portLevelMtls": ports}}),
        );
    };
    broken(
        road,
        Break {
            what: "SQL in plain text for everybody",
            red: &["mesh strict keycloak-db 5432"],
            beside: &[],
            says: "answers plain text on 5432",
        },
        || {
            apply(road, &everybody);
            ports(json!({"5432": {"mode": "PERMISSIVE"}}));
        },
        || {
            delete(road, "authorizationpolicy", "iam-system", "open");
            ports(json!({"5432": null}));
        },
    );
    broken(
        road,
        Break {
            what: "PostgreSQL's status is STRICT",
            red: &["mesh permissive keycloak-db 8000", "policy iam"],
            beside: &["postgres instances"], // the operator doesn't see them any more
            says: "can't be read on 8000 from outside the mesh",
        },
        || ports(json!({"8000": {"mode": "STRICT"}})),
        || ports(json!({"8000": {"mode": "PERMISSIVE"}})),
    );

    let root = live(road, "configmap", "iam-system", "istio-ca-root-cert");
    let mut other = root.clone();
    other["data"]["root-cert.pem"] = json!(authority(road).0);
    broken(
        road,
        Break {
            what: "workloads trust another authority than istiod's",
            red: &["mesh certificates"],
            beside: &[],
            says: "istiod's is",
        },
        || {
            scale(road, "istio-system", "deployment/istiod", 0);
            apply(road, &other);
        },
        || {
            apply(road, &root);
            scale(road, "istio-system", "deployment/istiod", 1);
        },
    );

    let sidecar = json!({"spec": {"template": {"spec": {"containers": [{
        "name": "istio-proxy", "image": "packages.devenv.test/redis:7.0", "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "600"], "resources": {"limits": {"cpu": "10m", "memory": "16Mi"}},
    }]}}}});
    let operator = || {
        road.kubectl(&[
            "rollout",
            "status",
            "deployment/cnpg-controller-manager",
            "-n",
            "cnpg-system",
            "--timeout=120s",
        ]);
    };
    broken(
        road,
        Break {
            what: "the operator has a sidecar",
            red: &["mesh operator without sidecar"],
            beside: &[],
            says: "has a sidecar",
        },
        || {
            patch(
                road,
                "deployment",
                "cnpg-system",
                "cnpg-controller-manager",
                "strategic",
                &sidecar,
            );
            operator();
        },
        || {
            let gone = json!({"spec": {"template": {"spec": {"containers": [
                {"$patch": "delete", "name": "istio-proxy"},
            ]}}}});
            patch(
                road,
                "deployment",
                "cnpg-system",
                "cnpg-controller-manager",
                "strategic",
                &gone,
            );
            operator();
        },
    );
}

fn keycloak_and_argocd(road: &Road) {
    let route = live(road, "virtualservice", "iam-system", "keycloak");
    let mut other = route.clone();
    let answer = json!({
        "match": [{"uri": {"exact": "/realms/master/.well-known/openid-configuration"}}],
        "directResponse": {"status": 200, "body": {"string": r#"{"issuer": "https://elsewhere.local"}"#}},
    });
    other["spec"]["http"]
        .as_array_mut()
        .unwrap()
        .insert(1, answer);
    broken(
        road,
        Break {
            what: "another issuer",
            red: &["keycloak issuer"],
            beside: &[],
            says: "the issuer is `https://elsewhere.local`",
        },
        || apply(road, &other),
        || apply(road, &route),
    );

    for (namespace, name, reds, says) in [
        (
            "iam-system",
            "keycloak-instance-initial-admin",
            &["keycloak token", "keycloak admin API"],
            "answered 401",
        ),
        (
            "argocd",
            "argocd-initial-admin-secret",
            &["argocd login", "argocd login"],
            "answered 401",
        ),
    ] {
        let secret = live(road, "secret", namespace, name);
        broken(
            road,
            Break {
                what: "a login that isn't the one in the secret",
                red: reds,
                beside: &[],
                says,
            },
            || {
                let wrong = json!({"stringData": {"password": "wrong"}});
                patch(road, "secret", namespace, name, "merge", &wrong);
            },
            || apply(road, &secret),
        );
    }
    let secret = live(road, "secret", "argocd", "argocd-initial-admin-secret");
    broken(
        road,
        Break {
            what: "a secret without its key",
            red: &["secret argocd-initial-admin-secret", "argocd login"],
            beside: &[],
            says: "has no key `password`",
        },
        || {
            let none = json!({"data": {"password": null}});
            patch(
                road,
                "secret",
                "argocd",
                "argocd-initial-admin-secret",
                "merge",
                &none,
            );
        },
        || apply(road, &secret),
    );

    broken(
        road,
        Break {
            what: "Keycloak hangs",
            red: &["keycloak health", "keycloak issuer", "keycloak token"],
            beside: &[
                "keycloak admin API",
                "gateway keycloak.local",
                "mesh strict keycloak 8080",
            ],
            says: "no answer within 8 s",
        },
        || signal(road, "STOP", "java"),
        || signal(road, "CONT", "java"),
    );

    broken(
        road,
        Break {
            what: "Argo CD's server is away",
            red: &["argocd healthz", "argocd login", "gateway argocd.local"],
            beside: &["gateway load balancer"],
            says: "503",
        },
        || scale(road, "argocd", "deployment/argocd-server", 0),
        || scale(road, "argocd", "deployment/argocd-server", 1),
    );
    let health = |status: &str| {
        let health = json!({"status": {"health": {"status": status}}});
        patch(road, "application", "argocd", "keycloak", "merge", &health);
    };
    broken(
        road,
        Break {
            what: "an Application is Degraded",
            red: &["argocd applications"],
            beside: &[],
            says: "keycloak: ",
        },
        || health("Degraded"),
        || health("Healthy"),
    );
}

fn the_database(road: &Road) {
    let fence = |instances: &str| {
        let fenced = json!({"metadata": {"annotations": {"cnpg.io/fencedInstances": instances}}});
        patch(
            road,
            "cluster",
            "iam-system",
            "keycloak-db",
            "merge",
            &fenced,
        );
    };
    let primary = road.kubectl(&[
        "get",
        "cluster",
        "keycloak-db",
        "-n",
        "iam-system",
        "-o",
        "jsonpath={.status.currentPrimary}",
    ]);
    let replica = ["keycloak-db-1", "keycloak-db-2", "keycloak-db-3"]
        .into_iter()
        .find(|name| *name != primary)
        .unwrap();
    broken(
        road,
        Break {
            what: "an instance of the database is down",
            red: &["postgres instances", "postgres streaming"],
            beside: &[],
            says: "2 of 3 instances are ready",
        },
        || {
            fence(&format!("[\"{replica}\"]"));
        },
        || fence(""),
    );

    let sql = |text: &str| {
        road.kubectl(&[
            "exec",
            "-n",
            "iam-system",
            "-c",
            "postgres",
            &primary,
            "--",
            "psql",
            "-U",
            "postgres",
            "-d",
            "keycloak",
            "-c",
            text,
        ]);
    };
    broken(
        road,
        Break {
            what: "rows that aren't on a replica",
            red: &["postgres row on a replica"],
            beside: &["keycloak admin API", "keycloak token", "keycloak issuer"],
            says: "relation \"realm\" does not exist",
        },
        || sql("alter table realm rename to realm_elsewhere"),
        || sql("alter table realm_elsewhere rename to realm"),
    );

    let claim = live(road, "persistentvolumeclaim", "iam-system", replica);
    let budget = live(road, "poddisruptionbudget", "iam-system", "keycloak-db");
    broken(
        road,
        Break {
            what: "no disruption budget, a volume that isn't the database's, no operator",
            red: &[
                "disruption keycloak-db",
                "storage keycloak-db",
                "mesh operator without sidecar",
            ],
            beside: &[],
            says: "PodDisruptionBudget iam-system/keycloak-db isn't there",
        },
        || {
            scale(road, "cnpg-system", "deployment/cnpg-controller-manager", 0);
            delete(road, "poddisruptionbudget", "iam-system", "keycloak-db");
            let label = json!({"metadata": {"labels": {"cnpg.io/cluster": "another"}}});
            patch(
                road,
                "persistentvolumeclaim",
                "iam-system",
                replica,
                "merge",
                &label,
            );
        },
        || {
            let labels = json!({"metadata": {"labels": claim["metadata"]["labels"]}});
            patch(
                road,
                "persistentvolumeclaim",
                "iam-system",
                replica,
                "merge",
                &labels,
            );
            apply(road, &budget);
            scale(road, "cnpg-system", "deployment/cnpg-controller-manager", 1);
        },
    );
}

fn the_logs(road: &Road) {
    broken(
        road,
        Break {
            what: "the log store hangs",
            red: &[
                "logs victorialogs line",
                "logs vlagent labels",
                "logs victorialogs page",
            ],
            beside: &["gateway logs.local", "mesh strict victorialogs 9428"],
            says: "no answer within 8 s",
        },
        || signal(road, "STOP", "victoria-logs"),
        || signal(road, "CONT", "victoria-logs"),
    );
}

fn the_cluster(road: &Road) {
    for (labels, container, check) in [
        (json!({"app": "keycloak"}), "keycloak", "limits keycloak"),
        (
            json!({"cnpg.io/cluster": "keycloak-db"}),
            "postgres",
            "limits keycloak-db",
        ),
    ] {
        let pod = pending_pod(&labels, container, &json!({"cpu": "2", "memory": "8Gi"}));
        broken(
            road,
            Break {
                what: "more than the architecture allows",
                red: &[check],
                beside: &[],
                says: "pod iam-system/extra has the cpu limit `2` where 1 was expected",
            },
            || apply(road, &pod),
            || delete(road, "pod", "iam-system", "extra"),
        );
    }
    let pod = pending_pod(&json!({"app": "extra"}), "extra", &json!({"cpu": "1"}));
    broken(
        road,
        Break {
            what: "a container without a limit",
            red: &["limits everywhere"],
            beside: &[],
            says: "container extra of pod iam-system/extra has no limit of memory",
        },
        || apply(road, &pod),
        || delete(road, "pod", "iam-system", "extra"),
    );

    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "type": "Normal", "reason": "Pulled",
        "metadata": {"name": "extra", "namespace": "iam-system"},
        "involvedObject": {"kind": "Pod", "namespace": "iam-system", "name": "extra"},
        "message": "Successfully pulled image \"example.org/extra:1\" in 3s",
        "firstTimestamp": now, "lastTimestamp": now,
    });
    broken(
        road,
        Break {
            what: "an image was pulled",
            red: &["nothing pulled"],
            beside: &[],
            says: "pod iam-system/extra: Successfully pulled image",
        },
        || apply(road, &event),
        || delete(road, "event", "iam-system", "extra"),
    );

    let [option, mark] = road.marks_as_ours();
    broken(
        road,
        Break {
            what: "a port that other machines reach",
            red: &["ports on loopback"],
            beside: &[],
            says: "container devenv-e2e-extra publishes port ",
        },
        || {
            let [cluster, role] = road.labels_of_worker();
            road.docker(&[
                "run",
                "--detach",
                "--name",
                "devenv-e2e-extra",
                "--label",
                &cluster,
                "--label",
                &role,
                &option,
                &mark,
                "--publish",
                "0.0.0.0::80",
                "--entrypoint",
                "sleep",
                road.node_image(),
                "600",
            ]);
        },
        || {
            drop(road.docker(&["rm", "--force", "--volumes", "devenv-e2e-extra"]));
        },
    );
}

fn the_names(road: &Road) {
    let (name, key, value) = road.names_in_coredns();
    let config = live(road, "configmap", "kube-system", name);
    let mut without = config.clone();
    without["data"][key] = json!(value);
    let restart = || {
        road.kubectl(&[
            "rollout",
            "restart",
            "deployment/coredns",
            "-n",
            "kube-system",
        ]);
        road.kubectl(&[
            "rollout",
            "status",
            "deployment/coredns",
            "-n",
            "kube-system",
        ]);
    };
    broken(
        road,
        Break {
            what: "the cluster doesn't know the names",
            red: &["names in the cluster"],
            beside: &[],
            says: "for argocd.local",
        },
        || {
            apply(road, &without);
            restart();
        },
        || {
            apply(road, &config);
            restart();
        },
    );

    // A machine that doesn't know the names isn't a failure of the platform's.
    road.succeed(&["hosts", "remove"]);
    let ran = road.run(&["check"]);
    assert_eq!(ran.status, 4, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("\nnot wired  name keycloak.local"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains("FAILED"), "{}", ran.stdout);
    road.succeed(&["hosts", "apply"]);
    assert_eq!(look_until(road, Red::is_empty), Red::new());
}

/// How long what was broken or mended may take to show: proxies and operators learn of it a moment later.
const SHOWS: Duration = Duration::from_secs(150);

/// Breaks it, looks who says so, mends it, and waits until nobody says so any more. What isn't as it should be is kept until
/// everything was tried: a cluster is dear.
#[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
fn broken(road: &Road, break_: Break<'_>, break_it: impl Fn(), mend_it: impl Fn()) {
    let Break {
        what,
        red: wanted,
        beside,
        says,
    } = break_;
    break_it();
    let is_seen = |found: &Red| wanted.iter().all(|check| found.contains_key(*check));
    let others = |found: &Red| -> Vec<String> {
        let is_other = |check: &&String| {
            !wanted.contains(&check.as_str()) && !beside.contains(&check.as_str())
        };
        found.keys().filter(is_other).cloned().collect()
    };
    // A check that is late once, on a machine with much to do, isn't one that is broken.
    let found = look_until(road, |found| is_seen(found) && others(found).is_empty());
    mend_it();
    eprintln!(
        "| {what} | {} | {} |",
        found.keys().cloned().collect::<Vec<_>>().join(", "),
        found.get(wanted[0]).map_or("nothing", String::as_str)
    );
    let mut wrong = Vec::new();
    if !is_seen(&found) {
        wrong.push(format!("{wanted:?} should be red"));
    }
    let extra = others(&found);
    if !extra.is_empty() {
        wrong.push(format!("{extra:?} shouldn't be red"));
    }
    if !found.get(wanted[0]).is_some_and(|said| said.contains(says)) {
        wrong.push(format!("{} should say: {says}", wanted[0]));
    }
    let left = look_until(road, Red::is_empty);
    if !left.is_empty() {
        wrong.push(format!("it was mended, and still: {left:?}"));
    }
    if !wrong.is_empty() {
        WRONG
            .lock()
            .unwrap()
            .push(format!("{what}: {}\n  {found:?}", wrong.join("; ")));
    }
}

/// What wasn't as it should be.
static WRONG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Which checks fail, as soon as that is what is looked for, or at the end of its time.
fn look_until(road: &Road, is_it: impl Fn(&Red) -> bool) -> Red {
    let deadline = Instant::now() + SHOWS;
    loop {
        let found = red(road);
        if is_it(&found) || Instant::now() > deadline {
            return found;
        }
    }
}

/// Which checks fail now.
fn red(road: &Road) -> Red {
    let ran = road.run(&["check", "-o", "json"]);
    let failed: Red = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event["event"] == "checked" && event["verdict"] == "failed")
        .map(|event| {
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            (text("name"), text("saw"))
        })
        .collect();
    let expected = if failed.is_empty() { 0 } else { 3 };
    assert_eq!(ran.status, expected, "{}\n{}", ran.stdout, ran.stderr);
    failed
}

fn peer_authentication(namespace: &str, name: &str, labels: &Value, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["selector"] = json!({"matchLabels": labels});
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

/// A pod that no node takes, so that it changes nothing but what is read of it.
fn pending_pod(labels: &Value, container: &str, limits: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "extra", "namespace": "iam-system", "labels": labels,
            "annotations": {"sidecar.istio.io/inject": "false"},
        },
        "spec": {
            "nodeSelector": {"no-such": "node"},
            "containers": [{
                "name": container, "image": "packages.devenv.test/redis:7.0", "imagePullPolicy": "IfNotPresent",
                "resources": {"limits": limits},
            }],
        },
    })
}

/// The authority of the environment's domain: its certificate and its key.
fn authority(road: &Road) -> (String, String) {
    let folder = road.folder.path().join("data/devenv/ca/local");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    (read("ca.pem"), read("ca-key.pem"))
}

/// The gateway's secret with a certificate that our authority signed, and that ended a day ago.
fn expired_leaf(road: &Road) -> Value {
    let (certificate, key) = authority(road);
    let issuer = Issuer::from_ca_cert_pem(&certificate, KeyPair::from_pem(&key).unwrap()).unwrap();
    let names = ["argocd.local", "keycloak.local", "logs.local"];
    let mut parameters = CertificateParams::new(names.map(str::to_owned)).unwrap();
    let day = Duration::from_secs(24 * 3600);
    parameters.not_before = (SystemTime::now() - 3 * day).into();
    parameters.not_after = (SystemTime::now() - day).into();
    let own = KeyPair::generate().unwrap();
    let leaf = parameters.signed_by(&own, &issuer).unwrap();
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "platform-tls", "namespace": "istio-ingress"},
        "stringData": {"tls.crt": leaf.pem(), "tls.key": own.serialize_pem()},
    })
}

/// Sends a signal to the programs of this name in the node, those in its pods included.
fn signal(road: &Road, signal: &str, name: &str) {
    let script = format!(
        "for process in /proc/[0-9]*; do [ \"$(cat $process/comm 2>/dev/null)\" = {name} ] && kill -{signal} ${{process#/proc/}}; done; true"
    );
    road.docker(&["exec", road.node(), "sh", "-c", &script]);
}

fn scale(road: &Road, namespace: &str, workload: &str, replicas: u8) {
    let replicas = format!("--replicas={replicas}");
    road.kubectl(&["scale", workload, "-n", namespace, &replicas]);
    road.kubectl(&[
        "rollout",
        "status",
        workload,
        "-n",
        namespace,
        "--timeout=180s",
    ]);
}

fn delete(road: &Road, kind: &str, namespace: &str, name: &str) {
    road.kubectl(&[
        "delete",
        kind,
        name,
        "-n",
        namespace,
        "--wait=true",
        "--grace-period=0",
        "--force",
    ]);
}

fn patch(road: &Road, kind: &str, namespace: &str, name: &str, how: &str, patch: &Value) {
    let how = format!("--type={how}");
    road.kubectl(&[
        "patch",
        kind,
        name,
        "-n",
        namespace,
        &how,
        "-p",
        &patch.to_string(),
    ]);
}

/// An object as it can be applied again.
fn live(road: &Road, kind: &str, namespace: &str, name: &str) -> Value {
    let text = road.kubectl(&["get", kind, name, "-n", namespace, "-o", "json"]);
    let mut object: Value = serde_json::from_str(&text).unwrap();
    object.as_object_mut().unwrap().remove("status");
    let metadata = object["metadata"].as_object_mut().unwrap();
    for key in [
        "resourceVersion",
        "uid",
        "creationTimestamp",
        "generation",
        "managedFields",
    ] {
        metadata.remove(key);
    }
    object
}

fn apply(road: &Road, object: &Value) {
    let apply = ["apply", "--server-side", "--force-conflicts"];
    let more = ["--field-manager=broken", "--filename=-"];
    let ran = road.kubectl_reads(
        &[apply, [more[0], more[1], "--output=name"]].concat(),
        &object.to_string(),
    );
    assert_eq!(ran.status, 0, "apply {object}: {}", ran.stderr);
}
