//! Asking pods: by a port-forward, which comes out on the pod's own loopback behind its proxy; through the API server, which
//! comes from outside the mesh like any stranger; and by running a program in a container.

use anyhow::Context as _;
use http::Request;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, AttachParams};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, DuplexStream};

use super::request::{self, Answer};
use crate::kube::{list, text};

/// A pod that is ready, of those with these labels.
pub(super) async fn one(client: &Client, namespace: &str, labels: &str) -> anyhow::Result<String> {
    let pods = ready(client, namespace, labels).await?;
    let first = pods
        .first()
        .with_context(|| format!("no pod in {namespace} with {labels} is ready"))?;
    Ok(text(first, "/metadata/name").to_owned())
}

/// All pods that are ready and stay, of those with these labels.
pub(super) async fn ready(
    client: &Client,
    namespace: &str,
    labels: &str,
) -> anyhow::Result<Vec<Value>> {
    let pods = list(client, "v1", "Pod", Some(namespace), labels).await?;
    Ok(pods
        .into_iter()
        .filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none() && is_ready(pod))
        .collect())
}

fn is_ready(pod: &Value) -> bool {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| {
            text(condition, "/type") == "Ready" && text(condition, "/status") == "True"
        })
}

/// The containers of a pod, those included that run beside the others from the start (native sidecars).
pub(super) fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/containers", "/spec/initContainers"]
        .into_iter()
        .filter_map(|list| pod.pointer(list)?.as_array())
        .flatten()
}

/// A connection to a port of the pod, on its loopback.
pub(super) async fn forward(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
) -> anyhow::Result<DuplexStream> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut forwarder = pods
        .portforward(pod, &[port])
        .await
        .with_context(|| format!("open a port-forward to {namespace}/{pod}"))?;
    // The task behind it lives as long as the stream.
    forwarder
        .take_stream(port)
        .context("the port-forward has no stream")
}

/// A request to a port of the pod, on its loopback.
pub(super) async fn ask(
    client: &Client,
    namespace: &str,
    pod: &str,
    port: u16,
    request: Request<String>,
) -> anyhow::Result<Answer> {
    let connection = forward(client, namespace, pod, port).await?;
    request::send(connection, request)
        .await
        .with_context(|| format!("ask port {port} of {namespace}/{pod}"))
}

/// What comes back when the API server, which is outside the mesh, asks a port of the pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromOutside {
    /// An answer.
    Answered(String),
    /// An answer of the pod's that says no: it came as far as HTTP.
    Denied(String),
    /// The connection was closed before anything was said.
    Refused(String),
}

/// Asks a port of the pod from outside the mesh; `scheme` is `http` or `https`.
pub(super) async fn from_outside(
    client: &Client,
    scheme: &str,
    namespace: &str,
    pod: &str,
    port: u16,
    path: &str,
) -> anyhow::Result<FromOutside> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{scheme}:{pod}:{port}/proxy{path}");
    let request = Request::get(path).body(Vec::new())?;
    match client.request_text(request).await {
        Ok(answer) => Ok(FromOutside::Answered(answer)),
        Err(kube::Error::Api(status)) => Ok(sorted(status.code, &status.message)),
        Err(error) => Err(error.into()),
    }
}

/// The API server's own words for a connection that came to nothing begin so; everything else came from the pod.
fn sorted(code: u16, message: &str) -> FromOutside {
    let refused = matches!(code, 500 | 502 | 503)
        && [
            "error trying to reach service",
            "proxy error",
            "EOF",
            "connection reset",
        ]
        .iter()
        .any(|words| message.contains(words));
    match refused {
        true => FromOutside::Refused(message.to_owned()),
        false => FromOutside::Denied(format!("{code}: {message}")),
    }
}

/// Runs a program in a container, and gives what it wrote to stdout; its stderr is in the error.
pub(super) async fn exec(
    client: &Client,
    namespace: &str,
    pod: &str,
    container: &str,
    command: &[&str],
) -> anyhow::Result<String> {
    let told = || format!("run `{}` in {namespace}/{pod}", command.join(" "));
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let parameters = AttachParams::default().container(container).stderr(true);
    let mut process = pods
        .exec(pod, command.iter().copied(), &parameters)
        .await
        .with_context(told)?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (process.stdout(), process.stderr());
    let status = process.take_status();
    let read_out = async {
        match out {
            Some(mut out) => out.read_to_end(&mut stdout).await,
            None => Ok(0),
        }
    };
    let read_err = async {
        match err {
            Some(mut err) => err.read_to_end(&mut stderr).await,
            None => Ok(0),
        }
    };
    tokio::try_join!(read_out, read_err).with_context(told)?;
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let succeeded = status
        .as_ref()
        .is_some_and(|status| status.status.as_deref() == Some("Success"));
    anyhow::ensure!(
        succeeded,
        "{} failed: {}",
        told(),
        String::from_utf8_lossy(&stderr).trim()
    );
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
