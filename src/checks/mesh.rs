//! The mesh: plain text is refused where mutual TLS is STRICT and answered where it is PERMISSIVE, and the certificates are
//! istiod's and short-lived.
//!
//! A dead pod refuses too, so each refusal stands beside an answer of the same pod at the same port.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::future::try_join_all;
use kube::Client;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use x509_parser::pem::parse_x509_pem;

use super::pods::{self, FromOutside};
use super::request::get;
use super::{Ask as Asked, Check, World, keycloak, logs, postgres};
use crate::gitops::{argocd, source};
use crate::kube::text;

/// What a workload's certificate may live at most; an hour is for clocks that differ.
const LONGEST: Duration = Duration::from_secs(25 * 3600);
/// The proxy's container.
const PROXY: &str = "istio-proxy";

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Strict(Port),
    Permissive,
    Certificates,
    NoSidecar,
}

/// A port of a pod in the mesh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Port {
    namespace: &'static str,
    labels: &'static str,
    port: u16,
    speaks: Speaks,
}

#[derive(Debug, Clone, Copy)]
enum Speaks {
    /// HTTP, and has this path.
    Http(&'static str),
    Postgres,
}

pub(super) fn checks() -> Vec<Check> {
    let strict = |of: &'static [&'static str; 2], namespace, labels, port: u16, speaks| Check {
        name: format!("mesh strict {} {port}", of[0]),
        proves: format!(
            "{} takes no plain text on {port}, STRICT holds, though the port answers",
            of[0]
        ),
        how: format!(
            "{port} of a pod is asked in plain text from outside the mesh (by the API server, or for PostgreSQL by the pod of \
             the git source) and must refuse; by port-forward, behind the proxy, it must answer"
        ),
        of,
        ask: Asked::Mesh(Ask::Strict(Port {
            namespace,
            labels,
            port,
            speaks,
        })),
    };
    vec![
        strict(
            &["keycloak", "istiod"],
            "iam-system",
            keycloak::LABELS,
            8080,
            Speaks::Http("/realms/master"),
        ),
        strict(
            &["keycloak-db", "istiod"],
            "iam-system",
            postgres::LABELS,
            5432,
            Speaks::Postgres,
        ),
        strict(
            &["loki", "istiod"],
            logs::NAMESPACE,
            logs::LOKI,
            3100,
            Speaks::Http("/ready"),
        ),
        strict(
            &["victorialogs", "istiod"],
            logs::NAMESPACE,
            logs::VICTORIA,
            9428,
            Speaks::Http("/health"),
        ),
        Check {
            name: "mesh permissive keycloak-db 8000".to_owned(),
            proves: "CloudNativePG's operator, which has no sidecar, reaches the instances' status on 8000".to_owned(),
            how: "8000 of an instance is asked by the API server, which is outside the mesh as well".to_owned(),
            of: &["keycloak-db"],
            ask: Asked::Mesh(Ask::Permissive),
        },
        Check {
            name: "mesh certificates".to_owned(),
            proves: "each workload's certificate is issued by istiod, carries the workload's identity, and lives a day".to_owned(),
            how: "the proxy of each pod in the platform's namespaces is asked for its certificates".to_owned(),
            of: &["istiod"],
            ask: Asked::Mesh(Ask::Certificates),
        },
        Check {
            name: "mesh operator without sidecar".to_owned(),
            proves: "CloudNativePG's operator has no sidecar".to_owned(),
            how: "the containers of its pod".to_owned(),
            of: &["cnpg-operator"],
            ask: Asked::Mesh(Ask::NoSidecar),
        },
    ]
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    match ask {
        Ask::Strict(port) => strict(world, *port).await,
        Ask::Permissive => permissive(world).await,
        Ask::Certificates => certificates(world.client).await,
        Ask::NoSidecar => no_sidecar(world.client).await,
    }
}

async fn strict(world: &World<'_>, port: Port) -> anyhow::Result<String> {
    let client = world.client;
    let Port {
        namespace,
        labels,
        port,
        speaks,
    } = port;
    let pod = pods::one(client, namespace, labels).await?;
    let path = match speaks {
        Speaks::Http(path) => path,
        Speaks::Postgres => "/",
    };
    let behind = async {
        match speaks {
            Speaks::Http(path) => {
                let answer =
                    pods::ask(client, namespace, &pod, port, get("localhost", path)?).await?;
                anyhow::Ok(answer.status.to_string())
            }
            Speaks::Postgres => postgres_answers(client, namespace, &pod, port).await,
        }
    };
    let outside = async {
        match speaks {
            Speaks::Http(_) => {
                pods::from_outside(world.asks_once, "http", namespace, &pod, port, path).await
            }
            Speaks::Postgres => postgres_from_outside(client, namespace, &pod, port).await,
        }
    };
    let (behind, outside) = tokio::try_join!(behind, outside)?;
    match outside {
        FromOutside::Refused(_) => Ok(format!(
            "{pod}: refused from outside, behind the proxy {behind}"
        )),
        FromOutside::Answered(_) => anyhow::bail!(
            "{namespace}/{pod} answers plain text on {port} from outside the mesh: mutual TLS isn't STRICT there"
        ),
        FromOutside::Denied(said) => anyhow::bail!(
            "{namespace}/{pod} takes plain text on {port} from outside the mesh, only to deny it ({said}): mutual TLS isn't \
             STRICT there"
        ),
    }
}

/// The same question, from a pod without a sidecar. PostgreSQL closes a connection that begins with HTTP, as the proxy does,
/// so the API server couldn't tell the two apart.
async fn postgres_from_outside(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> anyhow::Result<FromOutside> {
    let found = crate::kube::get(client, "v1", "Pod", namespace, pod)
        .await?
        .with_context(|| format!("pod {namespace}/{pod} is gone"))?;
    let address = text(&found, "/status/podIP");
    let outside = pods::one(
        client,
        argocd::NAMESPACE,
        &format!("app.kubernetes.io/name={}", source::NAME),
    )
    .await?;
    let script = format!(
        "exec 3<>/dev/tcp/{address}/{port} && printf '\\0\\0\\0\\10\\4\\322\\26\\57' >&3 && timeout 3 head -c 1 <&3; true"
    );
    let command = ["bash", "-c", &script];
    let said = pods::exec(client, argocd::NAMESPACE, &outside, "serve", &command).await?;
    Ok(match said.trim() {
        "" => FromOutside::Refused(String::new()),
        said => FromOutside::Answered(said.to_owned()),
    })
}

/// PostgreSQL's answer to the question whether it speaks TLS: one letter, S or N.
async fn postgres_answers(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> anyhow::Result<String> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let mut connection = pods::forward(client, namespace, pod, port).await?;
    connection.write_all(&SSL_REQUEST).await?;
    let mut answer = [0];
    connection
        .read_exact(&mut answer)
        .await
        .with_context(|| format!("{namespace}/{pod} says nothing on {port}"))?;
    anyhow::ensure!(
        matches!(&answer, b"S" | b"N"),
        "{namespace}/{pod} doesn't speak PostgreSQL on {port}"
    );
    Ok("PostgreSQL".to_owned())
}

async fn permissive(world: &World<'_>) -> anyhow::Result<String> {
    let pod = pods::one(world.client, postgres::NAMESPACE, postgres::LABELS).await?;
    let seen = pods::from_outside(
        world.asks_once,
        "https", // CloudNativePG's own TLS, not the mesh's
        postgres::NAMESPACE,
        &pod,
        8000,
        "/pg/status",
    )
    .await?;
    match seen {
        FromOutside::Answered(status) if status.contains("\"isPrimary\"") => Ok(pod),
        FromOutside::Answered(said) | FromOutside::Denied(said) | FromOutside::Refused(said) => {
            anyhow::bail!(
                "the status of {pod} can't be read on 8000 from outside the mesh: {}",
                said.trim()
            )
        }
    }
}

async fn certificates(client: &Client) -> anyhow::Result<String> {
    let mut in_mesh = Vec::new();
    for namespace in ["istio-ingress", "iam-system", logs::NAMESPACE] {
        let pods = pods::ready(client, namespace, "").await?;
        in_mesh.extend(
            pods.into_iter()
                .filter(has_proxy)
                .map(|pod| (namespace, pod)),
        );
    }
    anyhow::ensure!(!in_mesh.is_empty(), "no pod has a proxy");
    let root = root_serial(client).await?;
    let now = SystemTime::now();
    let checked = in_mesh.iter().map(|(namespace, pod)| {
        let root = root.as_str();
        async move {
            let name = text(pod, "/metadata/name");
            let command = ["pilot-agent", "request", "GET", "certs"];
            let told = pods::exec(client, namespace, name, PROXY, &command).await?;
            let account = text(pod, "/spec/serviceAccountName");
            let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
            let told: Value = serde_json::from_str(&told)
                .with_context(|| format!("the proxy of {namespace}/{name} told no JSON"))?;
            certificate_is_good(&told, &identity, root, now)
                .with_context(|| format!("pod {namespace}/{name}"))
        }
    });
    let lifetimes: BTreeSet<u64> = try_join_all(checked).await?.into_iter().collect();
    let longest = lifetimes.last().copied().unwrap_or_default();
    Ok(format!("{} pods, {longest} h", in_mesh.len()))
}

fn has_proxy(pod: &Value) -> bool {
    pods::containers(pod).any(|container| text(container, "/name") == PROXY)
}

/// The serial number of istiod's root certificate, as it gives it to every namespace.
async fn root_serial(client: &Client) -> anyhow::Result<String> {
    let config = crate::kube::get(
        client,
        "v1",
        "ConfigMap",
        "iam-system",
        "istio-ca-root-cert",
    )
    .await?
    .context("istiod gave iam-system no root certificate (ConfigMap istio-ca-root-cert)")?;
    let (_, pem) = parse_x509_pem(text(&config, "/data/root-cert.pem").as_bytes())
        .context("read istiod's root certificate")?;
    let certificate = pem.parse_x509().context("read istiod's root certificate")?;
    Ok(without_zeros(
        &certificate
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>(),
    ))
}

fn without_zeros(digits: &str) -> String {
    digits.trim_start_matches('0').to_lowercase()
}

/// The lifetime in hours of the workload's certificate among those that a proxy tells of, if all of it is as it should be.
fn certificate_is_good(
    told: &Value,
    identity: &str,
    root: &str,
    now: SystemTime,
) -> anyhow::Result<u64> {
    let own = told
        .pointer("/certificates")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|certificate| text(certificate, "/cert_chain/0/subject_alt_names/0/uri") == identity)
        .with_context(|| format!("no certificate of its proxy is for {identity}"))?;
    let issuer = without_zeros(text(own, "/ca_cert/0/serial_number"));
    anyhow::ensure!(
        issuer == root,
        "its proxy trusts the authority {issuer}, istiod's is {root}"
    );
    let time = |key: &str| {
        humantime::parse_rfc3339(text(own, &format!("/cert_chain/0/{key}")))
            .with_context(|| format!("its certificate has no {key}"))
    };
    let (from, to) = (time("valid_from")?, time("expiration_time")?);
    anyhow::ensure!(from <= now && now < to, "its certificate isn't valid now");
    let lifetime = to.duration_since(from)?;
    anyhow::ensure!(
        lifetime <= LONGEST,
        "its certificate lives {} h, longer than a day",
        lifetime.as_secs() / 3600
    );
    Ok(lifetime.as_secs().div_ceil(3600))
}

async fn no_sidecar(client: &Client) -> anyhow::Result<String> {
    let labels = "app.kubernetes.io/name=cloudnative-pg";
    let pods = pods::ready(client, "cnpg-system", labels).await?;
    anyhow::ensure!(!pods.is_empty(), "no pod of the operator is ready");
    if let Some(pod) = pods.iter().find(|pod| has_proxy(pod)) {
        anyhow::bail!(
            "pod cnpg-system/{} has a sidecar: its calls to the instances' status would go through the mesh",
            text(pod, "/metadata/name")
        );
    }
    let names: Vec<&str> = pods.iter().map(|pod| text(pod, "/metadata/name")).collect();
    Ok(names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const IDENTITY: &str = "spiffe://cluster.local/ns/iam-system/sa/keycloak";

    fn told(change: impl Fn(&mut Value)) -> Result<u64, String> {
        let mut told = json!({"certificates": [{
            "ca_cert": [{"serial_number": "00ab12"}],
            "cert_chain": [{
                "subject_alt_names": [{"uri": IDENTITY}],
                "valid_from": "2026-11-25T07:58:00Z",
                "expiration_time": "2026-11-26T08:00:00Z",
            }],
        }]});
        change(&mut told);
        let now = humantime::parse_rfc3339("2026-11-25T12:00:00Z").unwrap();
        certificate_is_good(&told, IDENTITY, "ab12", now).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_good_certificate_and_every_way_to_be_another() {
        assert_eq!(told(|_| {}), Ok(25));
        let chain = |told: &mut Value, key: &str, value: &str| {
            told["certificates"][0]["cert_chain"][0][key] = json!(value);
        };
        assert_eq!(
            told(|told| chain(told, "expiration_time", "2026-12-25T08:00:00Z")),
            Err("its certificate lives 720 h, longer than a day".to_owned())
        );
        assert_eq!(
            told(|told| chain(told, "expiration_time", "2026-11-25T11:00:00Z")),
            Err("its certificate isn't valid now".to_owned())
        );
        assert_eq!(
            told(|told| told["certificates"][0]["ca_cert"][0]["serial_number"] = json!("cd")),
            Err("its proxy trusts the authority cd, istiod's is ab12".to_owned())
        );
        assert_eq!(
            told(|told| told["certificates"] = json!([])),
            Err(format!("no certificate of its proxy is for {IDENTITY}"))
        );
    }
}
