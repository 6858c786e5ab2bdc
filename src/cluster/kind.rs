//! kind, as devenv calls it, and what its nodes tell about themselves. Pure: calls are data, parsers take text.

use std::path::Path;

use crate::docker::Node;
use crate::exec::Cmd;

/// The label that kind puts on every container of a cluster, with the cluster's name.
pub const LABEL: &str = "io.x-k8s.kind.cluster";
/// The role of the container that leads to several control planes; kind gives it none of the mounts of a node.
const BALANCER: &str = "external-load-balancer";

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
