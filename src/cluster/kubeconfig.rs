//! The environment's own kubeconfig, from what a node wrote for itself.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::yaml;

/// The server as this machine reaches it, and one name for cluster, user and context.
pub fn of_person(admin: &str, server: &str, name: &str) -> anyhow::Result<String> {
    let admin: Value = yaml::documents("the node's kubeconfig", admin)?
        .into_iter()
        .next()
        .context("the node's kubeconfig is empty")?;
    let part = |pointer: &str| {
        admin
            .pointer(pointer)
            .cloned()
            .with_context(|| format!("the node's kubeconfig has no {pointer}"))
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
