//! kind, as devenv calls it, and what its nodes tell about themselves. Pure: calls are data, parsers take text.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::docker::{Node, State};
use crate::exec::Cmd;
use crate::yaml;

/// The label that kind puts on every container of a cluster, with the cluster's name.
pub const LABEL: &str = "io.x-k8s.kind.cluster";
/// The role of the container that leads to several control planes; kind gives it none of the mounts of a node.
const BALANCER: &str = "external-load-balancer";
/// Where the API server listens in its node.
const API_PORT: u16 = 6443;

/// `kind create cluster`. Nodes of a failed attempt are kept (`--retain`), so that the reason can be read from them;
/// the kubeconfig it writes is thrown away, since devenv writes its own.
pub fn create(kind: &Path, cluster: &str, image: &str, config: &Path, kubeconfig: &Path) -> Cmd {
    Cmd::new("kind")
        .at(kind)
        .args([
            "create", "cluster", "--retain", "--name", cluster, "--image", image,
        ])
        .arg("--config")
        .arg(config)
        .arg("--kubeconfig")
        .arg(kubeconfig)
}

/// Where the mark of an environment is mounted in its nodes.
pub fn mark(id: &str) -> String {
    format!("/devenv/{id}")
}

/// Whether every node of a cluster carries the environment's mark.
///
/// kind can set no label of ours; a mount shows in `docker inspect` from the container's creation on. The load balancer
/// of a cluster with several control planes has no mounts, and belongs to whom the nodes belong.
pub fn is_ours(nodes: &[Node], id: &str) -> bool {
    let mark = mark(id);
    nodes
        .iter()
        .filter(|node| node.role != BALANCER)
        .all(|node| {
            node.mounts
                .iter()
                .any(|mount| mount.destination == Path::new(&mark))
        })
}

/// The nodes that run pods.
pub fn workers_and_control_planes(nodes: &[Node]) -> impl Iterator<Item = &Node> {
    nodes.iter().filter(|node| node.role != BALANCER)
}

/// The first control plane that runs, and the address on this machine at which its API server answers.
pub fn api_server(nodes: &[Node]) -> Option<(&Node, String)> {
    let published = nodes
        .iter()
        .filter(|node| node.state == State::Running)
        .find_map(|node| {
            let port = node.ports.iter().find(|port| port.container == API_PORT)?;
            Some(format!("https://{}:{}", port.address, port.host))
        })?;
    let control_plane = nodes
        .iter()
        .find(|node| node.role == "control-plane" && node.state == State::Running)?;
    Some((control_plane, published))
}

/// The environment's kubeconfig, from the node's own: the server as this machine reaches it, and one name for cluster,
/// user and context.
pub fn kubeconfig(admin: &str, server: &str, name: &str) -> anyhow::Result<String> {
    let admin: Value = yaml::documents("the node's admin.conf", admin)?
        .into_iter()
        .next()
        .context("the node's admin.conf is empty")?;
    let part = |pointer: &str| {
        admin
            .pointer(pointer)
            .cloned()
            .with_context(|| format!("the node's admin.conf has no {pointer}"))
    };
    let authority = part("/clusters/0/cluster/certificate-authority-data")?;
    let user = part("/users/0/user")?;
    Ok(yaml::to_string(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [{"name": name, "user": user}],
    })))
}
