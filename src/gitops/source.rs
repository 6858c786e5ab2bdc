//! The source of truth inside the cluster: a git repository served by `git daemon` from the Argo CD image.
//!
//! Two daemons share one folder: the one that Argo CD reads from takes no pushes, and the one that takes pushes listens
//! on the pod's own loopback only, so that it is reached by port-forward (with the rights to do so) or not at all.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;

use super::argocd::NAMESPACE;
use crate::event::Step;
use crate::exec::{self, Cmd};
use crate::kube::{list, text};
use crate::stop::Stop;

/// The name of the Deployment and its Service.
pub const NAME: &str = "git-source";
/// The address Argo CD reads from.
pub const ADDRESS: &str = "git://git-source.argocd.svc/bundles.git";
/// The branch that is pushed and synced.
pub const BRANCH: &str = "main";
/// Where the daemon that takes pushes listens, on the pod's loopback.
const PUSH_PORT: u16 = 9419;
/// How often [`keep_filled`] looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The Deployment, its Service, and who may reach it.
pub fn manifests(image: &str) -> Vec<Value> {
    let labels = json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "devenv"});
    let container = |name: &str, script: String| {
        json!({
            "name": name,
            "image": image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "repository", "mountPath": "/srv"}],
            "resources": {"requests": {"cpu": "5m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}},
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 999, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            },
        })
    };
    let daemon = "exec git daemon --reuseaddr --export-all --base-path=/srv --timeout=60";
    let mut serve = container("serve", format!("{daemon} --port=9418 /srv"));
    serve["ports"] = json!([{"name": "git", "containerPort": 9418, "protocol": "TCP"}]);
    serve["readinessProbe"] = json!({"tcpSocket": {"port": 9418}, "periodSeconds": 1});
    let receive = container(
        "receive",
        format!(
            "git init --quiet --bare --initial-branch={BRANCH} /srv/bundles.git && \
             {daemon} --listen=127.0.0.1 --port={PUSH_PORT} --enable=receive-pack /srv"
        ),
    );
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": 1,
            // One folder, one writer: the old pod goes before the new one comes.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [serve, receive],
                    "volumes": [{"name": "repository", "emptyDir": {}}],
                },
            },
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"app.kubernetes.io/name": NAME},
            "ports": [{"name": "tcp-git", "port": 9418, "targetPort": "git", "protocol": "TCP"}],
        },
    });
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "argocd"}}},
                         {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "argocd-repo-server"}}},
                         {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "argocd-applicationset-controller"}}}],
                "ports": [{"port": "git", "protocol": "TCP"}],
            }],
        },
    });
    vec![deployment, service, policy]
}

/// The git source's pod that is ready, by name, or in words why there is none.
pub async fn ready_pod(client: &Client) -> anyhow::Result<Result<String, String>> {
    let pods = list(
        client,
        "v1",
        "Pod",
        Some(NAMESPACE),
        &format!("app.kubernetes.io/name={NAME}"),
    )
    .await?;
    let ready = pods.iter().find(|pod| {
        pod.pointer("/metadata/deletionTimestamp").is_none()
            && pod
                .pointer("/status/conditions")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .any(|condition| {
                    text(condition, "/type") == "Ready" && text(condition, "/status") == "True"
                })
    });
    Ok(ready
        .map(|pod| text(pod, "/metadata/name").to_owned())
        .ok_or_else(|| match pods.first() {
            None => format!("{NAME}: no pod yet"),
            Some(pod) => {
                super::explain::pod(pod).unwrap_or_else(|| format!("{NAME}: its pod is starting"))
            }
        }))
}

/// Pushes again whenever another pod has taken the place of the git source's: it begins empty, and whoever waits for what was
/// pushed would wait for ever. Goes on until it is dropped.
pub async fn keep_filled(
    client: &Client,
    repository: &Path,
    step: &Step,
    stop: &Stop,
) -> Infallible {
    let ready = async || ready_pod(client).await.ok().and_then(Result::ok);
    let mut filled = ready().await;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(pod) = ready().await.filter(|pod| filled.as_ref() != Some(pod)) else {
            continue;
        };
        // One that can't be reached yet is tried again.
        if push(client, &pod, repository, step, stop).await.is_ok() {
            filled = Some(pod);
        }
    }
}

/// Pushes the branch of a bare repository on this machine into the cluster's, through a port-forward that lives as long
/// as the push.
pub async fn push(
    client: &Client,
    pod: &str,
    repository: &Path,
    step: &Step,
    stop: &Stop,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("open a port on loopback for the push")?;
    let port = listener.local_addr()?.port();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let push = super::git::own(
        Cmd::new("git")
            .args(["push", "--quiet", "--force"])
            .arg(format!("git://127.0.0.1:{port}/bundles.git"))
            .arg(format!("{BRANCH}:{BRANCH}"))
            .directory(repository),
    );
    tokio::select! {
        pushed = exec::run(&push, stop, step) => {
            pushed.context("push the bundles into the cluster's git")?;
            Ok(())
        }
        forwarded = forward(&listener, &pods, pod) => forwarded,
    }
}

/// Carries each connection to the pod; ends only with an error.
async fn forward(listener: &TcpListener, pods: &Api<Pod>, pod: &str) -> anyhow::Result<()> {
    loop {
        let (mut local, _) = listener
            .accept()
            .await
            .context("accept the push on loopback")?;
        let mut forwarder = pods
            .portforward(pod, &[PUSH_PORT])
            .await
            .with_context(|| format!("open a port-forward to pod {NAMESPACE}/{pod}"))?;
        let mut remote = forwarder
            .take_stream(PUSH_PORT)
            .context("the port-forward has no stream")?;
        // git closes its side when it is done; a reset then is no failure of the push, which git itself reports.
        let _ = copy_bidirectional(&mut local, &mut remote).await;
    }
}
