//! The cluster's own order: secrets, limits, disruption budgets and policies as the architecture wants them; nothing pulled at
//! run time; no port of ours that another machine could reach.

use std::net::IpAddr;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::{Ask as Asked, Check, World, pods};
use crate::inputs::Inputs;
use crate::kube::{get, holds, label, list, text};
use crate::quantity::thousandths;

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Secret {
        namespace: String,
        name: String,
        keys: Vec<String>,
    },
    Limits(Limits),
    EveryLimit,
    Storage,
    Objects(Vec<Value>),
    NothingPulled,
    Loopback,
}

/// What a container may use at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    namespace: &'static str,
    labels: &'static str,
    container: &'static str,
    cpu: &'static str,
    memory: &'static str,
}

pub(super) fn checks(inputs: &Inputs) -> Vec<Check> {
    let mut checks = secrets(inputs);
    checks.extend(limits());
    checks.extend(objects());
    let check = |name: &str, proves: &str, how: &str, ask| Check {
        name: name.to_owned(),
        proves: proves.to_owned(),
        how: how.to_owned(),
        of: &[],
        ask: Asked::Cluster(ask),
    };
    checks.push(Check {
        of: &["keycloak-db"],
        ..check(
            "storage keycloak-db",
            "each instance of PostgreSQL has a volume of 10Gi of its own",
            "the PersistentVolumeClaims of Cluster iam-system/keycloak-db",
            Ask::Storage,
        )
    });
    checks.push(Check {
        of: &["istiod"], // a team's own small project may do without
        ..check(
            "limits everywhere",
            "no container of the platform can take all of the machine",
            "limits of CPU and memory of each container in the bundles' namespaces",
            Ask::EveryLimit,
        )
    });
    checks.push(check(
        "nothing pulled",
        "every image came from the store: no network is needed while the platform runs",
        "the kubelet's events of the last hour tell of no image that was pulled",
        Ask::NothingPulled,
    ));
    checks.push(check(
        "ports on loopback",
        "no other machine can reach a port of this cluster",
        "the addresses that its containers publish ports on, as Docker has them",
        Ask::Loopback,
    ));
    checks
}

/// The secrets that people log in with, and those that devenv makes.
fn secrets(inputs: &Inputs) -> Vec<Check> {
    let mut wanted: Vec<(String, String, Vec<String>)> = vec![(
        "argocd".to_owned(),
        "argocd-initial-admin-secret".to_owned(),
        vec!["password".to_owned()],
    )];
    for bundle in &inputs.bundles {
        for login in &bundle.logins {
            let keys = vec![login.user.clone(), login.password.clone()];
            wanted.push((bundle.namespace.clone(), login.secret.clone(), keys));
        }
        for secret in &bundle.secrets {
            let keys = secret.values.keys().chain(&secret.generate).cloned();
            wanted.push((
                bundle.namespace.clone(),
                secret.name.clone(),
                keys.collect(),
            ));
        }
        if let Some(certificate) = &bundle.certificate {
            let keys = ["tls.crt", "tls.key"].map(str::to_owned).to_vec();
            wanted.push((bundle.namespace.clone(), certificate.clone(), keys));
        }
    }
    wanted.sort();
    wanted.dedup_by(|one, other| (&one.0, &one.1) == (&other.0, &other.1));
    wanted
        .into_iter()
        .map(|(namespace, name, keys)| Check {
            name: format!("secret {name}"),
            proves: format!("the secret {namespace}/{name} is there, with its keys"),
            how: format!("its keys {}, none of them empty", keys.join(", ")),
            of: &[],
            ask: Asked::Cluster(Ask::Secret {
                namespace,
                name,
                keys,
            }),
        })
        .collect()
}

fn limits() -> Vec<Check> {
    let limits =
        |of: &'static [&'static str; 1], namespace, labels, container, cpu, memory| Check {
            name: format!("limits {}", of[0]),
            proves: format!(
                "{} may use {cpu} CPU and {memory} of memory, as the architecture says",
                of[0]
            ),
            how: format!("the limits of the container {container} in each of its pods"),
            of,
            ask: Asked::Cluster(Ask::Limits(Limits {
                namespace,
                labels,
                container,
                cpu,
                memory,
            })),
        };
    vec![
        limits(
            &["keycloak"],
            "iam-system",
            "app=keycloak",
            "keycloak",
            "1",
            "2Gi",
        ),
        limits(
            &["keycloak-db"],
            "iam-system",
            "cnpg.io/cluster=keycloak-db",
            "postgres",
            "1",
            "1Gi",
        ),
        limits(
            &["loki"],
            "observability-system",
            "app.kubernetes.io/name=loki",
            "loki",
            "500m",
            "512Mi",
        ),
    ]
}

/// Objects that the architecture names, with what it says of them.
fn objects() -> Vec<Check> {
    let object = |api_version: &str, kind: &str, namespace: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": api_version, "kind": kind,
            "metadata": {"namespace": namespace, "name": name},
            "spec": spec,
        })
    };
    let security = "security.istio.io/v1";
    let strict = |namespace: &str, name: &str| {
        object(
            security,
            "PeerAuthentication",
            namespace,
            name,
            json!({"mtls": {"mode": "STRICT"}}),
        )
    };
    let policy = |namespace: &str, name: &str| {
        object(security, "AuthorizationPolicy", namespace, name, json!({}))
    };
    let check =
        |name: &str, of: &'static [&'static str], proves: &str, objects: Vec<Value>| Check {
            name: name.to_owned(),
            proves: proves.to_owned(),
            how: format!(
                "in the API server: {}",
                objects.iter().map(label).collect::<Vec<_>>().join(", ")
            ),
            of,
            ask: Asked::Cluster(Ask::Objects(objects)),
        };
    let permissive = object(
        security,
        "PeerAuthentication",
        "iam-system",
        "postgres-status-permissive",
        json!({
            "selector": {"matchLabels": {"cnpg.io/cluster": "keycloak-db"}},
            "portLevelMtls": {"8000": {"mode": "PERMISSIVE"}},
        }),
    );
    let budget = object(
        "policy/v1",
        "PodDisruptionBudget",
        "iam-system",
        "keycloak-db",
        json!({}),
    );
    let mut iam = vec![strict("iam-system", "iam-mtls"), permissive];
    iam.extend(["nothing-else", "keycloak", "postgres"].map(|name| policy("iam-system", name)));
    let namespace = "observability-system";
    let mut observability = vec![strict(namespace, "observability-mtls")];
    observability.extend(
        ["nothing-else", "loki", "grafana", "victoria-logs"].map(|name| policy(namespace, name)),
    );
    vec![
        check(
            "policy mesh",
            &["istiod"],
            "mutual TLS is STRICT in every namespace that says nothing else",
            vec![strict("istio-system", "default")],
        ),
        check(
            "policy iam",
            &["iam-policies"],
            "in iam-system mutual TLS is STRICT, but for 8000 of PostgreSQL, and who isn't named is refused",
            iam,
        ),
        check(
            "policy observability",
            &["observability-policies"],
            "in observability-system mutual TLS is STRICT, and who isn't named is refused",
            observability,
        ),
        check(
            "disruption keycloak-db",
            &["keycloak-db"],
            "no maintenance takes the primary away without another taking over",
            vec![budget],
        ),
    ]
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    match ask {
        Ask::Secret {
            namespace,
            name,
            keys,
        } => {
            let secret = world.secret(namespace, name).await?;
            let lacks = keys
                .iter()
                .find(|key| secret.get(*key).is_none_or(String::is_empty));
            match lacks {
                Some(key) => anyhow::bail!("the secret {namespace}/{name} has no key `{key}`"),
                None => Ok(keys.join(", ")),
            }
        }
        Ask::Limits(wanted) => limits_hold(world, wanted).await,
        Ask::EveryLimit => every_limit(world).await,
        Ask::Storage => storage(world).await,
        Ask::Objects(objects) => {
            for object in objects {
                object_is_there(world, object).await?;
            }
            Ok(format!("{} objects", objects.len()))
        }
        Ask::NothingPulled => nothing_pulled(world).await,
        Ask::Loopback => loopback(world).await,
    }
}

async fn limits_hold(world: &World<'_>, wanted: &Limits) -> anyhow::Result<String> {
    let Limits {
        namespace,
        labels,
        container,
        cpu,
        memory,
    } = *wanted;
    let pods = list(world.client, "v1", "Pod", Some(namespace), labels).await?;
    let mut count = 0;
    for pod in &pods {
        let Some(found) = pods::containers(pod).find(|it| text(it, "/name") == container) else {
            continue; // a job that helped the pod once
        };
        count += 1;
        let limit = |of: &str| text(found, &format!("/resources/limits/{of}")).to_owned();
        for (of, wanted) in [("cpu", cpu), ("memory", memory)] {
            let limit = limit(of);
            anyhow::ensure!(
                thousandths(&limit) == thousandths(wanted),
                "pod {namespace}/{} has the {of} limit `{limit}` where {wanted} was expected",
                text(pod, "/metadata/name")
            );
        }
    }
    anyhow::ensure!(
        count > 0,
        "no pod in {namespace} has a container {container}"
    );
    Ok(format!("{cpu}, {memory} ({count} pods)"))
}

async fn every_limit(world: &World<'_>) -> anyhow::Result<String> {
    let mut namespaces: Vec<&str> = world
        .inputs
        .bundles
        .iter()
        .map(|bundle| bundle.namespace.as_str())
        .filter(|namespace| *namespace != "default")
        .collect();
    namespaces.sort_unstable();
    namespaces.dedup();
    let mut count = 0;
    for namespace in namespaces {
        for pod in list(world.client, "v1", "Pod", Some(namespace), "").await? {
            for container in pods::containers(&pod) {
                count += 1;
                let lacks = ["cpu", "memory"]
                    .into_iter()
                    .find(|of| text(container, &format!("/resources/limits/{of}")).is_empty());
                if let Some(of) = lacks {
                    anyhow::bail!(
                        "container {} of pod {namespace}/{} has no limit of {of}",
                        text(container, "/name"),
                        text(&pod, "/metadata/name")
                    );
                }
            }
        }
    }
    Ok(format!("{count} containers"))
}

async fn storage(world: &World<'_>) -> anyhow::Result<String> {
    let claims = list(
        world.client,
        "v1",
        "PersistentVolumeClaim",
        Some("iam-system"),
        "cnpg.io/cluster=keycloak-db",
    )
    .await?;
    let good = claims
        .iter()
        .filter(|claim| {
            let size = text(claim, "/spec/resources/requests/storage");
            text(claim, "/status/phase") == "Bound" && thousandths(size) >= thousandths("10Gi")
        })
        .count();
    anyhow::ensure!(
        good >= 3,
        "{good} bound volumes of 10Gi were found where 3 were expected"
    );
    Ok(format!("{good} volumes"))
}

async fn object_is_there(world: &World<'_>, wanted: &Value) -> anyhow::Result<()> {
    let live = get(
        world.client,
        text(wanted, "/apiVersion"),
        text(wanted, "/kind"),
        text(wanted, "/metadata/namespace"),
        text(wanted, "/metadata/name"),
    )
    .await?
    .with_context(|| format!("{} isn't there", label(wanted)))?;
    anyhow::ensure!(
        holds(&wanted["spec"], &live["spec"]),
        "{} says {} where {} was expected",
        label(wanted),
        live["spec"],
        wanted["spec"]
    );
    Ok(())
}

async fn nothing_pulled(world: &World<'_>) -> anyhow::Result<String> {
    let events: Api<Event> = Api::all(world.client.clone());
    let found = events
        .list(&ListParams::default().fields("reason=Pulled"))
        .await
        .context("list the events of pulled images")?;
    let pulled = found.iter().find_map(|event| {
        let message = event.message.as_deref().unwrap_or_default();
        message.starts_with("Successfully pulled").then(|| {
            let about = &event.involved_object;
            format!(
                "pod {}/{}: {message}",
                about.namespace.as_deref().unwrap_or_default(),
                about.name.as_deref().unwrap_or_default()
            )
        })
    });
    match pulled {
        Some(pulled) => anyhow::bail!("{pulled}"),
        None => Ok(format!("{} images were there", found.items.len())),
    }
}

async fn loopback(world: &World<'_>) -> anyhow::Result<String> {
    let docker = world.docker.context("the nodes are somebody else's")?;
    let nodes = crate::cluster::containers(docker, world.environment()).await?;
    let mut count = 0;
    for node in &nodes {
        for port in &node.ports {
            count += 1;
            let inside = port
                .address
                .parse::<IpAddr>()
                .is_ok_and(|address| address.is_loopback());
            let address = match port.address.as_str() {
                "" => "0.0.0.0",
                address => address,
            };
            anyhow::ensure!(
                inside,
                "container {} publishes port {} on {address}, where other machines reach it",
                node.name,
                port.host
            );
        }
    }
    Ok(format!("{count} ports"))
}
