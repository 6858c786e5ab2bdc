//! k3d, as devenv calls it, and the names and labels of what it makes. Pure: calls are data.
//!
//! k3d labels the containers of a cluster, but neither its network nor the volume for images with anything of ours, and a
//! killed `k3d cluster create` may have made nothing else yet. So devenv makes these two itself, marked, before k3d starts;
//! k3d takes both as they are.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::docker::Node;
use crate::exec::Cmd;

/// The label that k3d puts on every container of a cluster, with the cluster's name.
pub const LABEL: &str = "k3d.cluster";
/// The label with an environment's id, by which what was made for it is known as ours.
pub const MARK: &str = "devenv.environment";
/// The role of k3d's tools container.
pub(super) const FOR_A_MOMENT: &str = "noRole";
/// The image of a container that k3d makes for a moment while it creates a cluster.
pub const TOOLS_IMAGE: &str = "ghcr.io/k3d-io/k3d-tools:5.8.3";
/// The image of k3d's load balancer.
pub const BALANCER_IMAGE: &str = "ghcr.io/k3d-io/k3d-proxy:5.8.3";
/// The oldest version that this was tried with.
pub const OLDEST: (u64, u64, u64) = (5, 8, 3);

/// The cluster's network.
pub fn network(cluster: &str) -> String {
    format!("k3d-{cluster}")
}

/// The volume that `k3d image import` would use.
pub fn volume(cluster: &str) -> String {
    format!("k3d-{cluster}-images")
}

/// The labels of the network and the volume: ours, and those by which `k3d cluster delete` finds them, too.
pub fn labels(cluster: &str, id: &str) -> HashMap<String, String> {
    [("app", "k3d"), (LABEL, cluster), (MARK, id)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

/// Whether these labels are those of an environment.
pub fn is_marked(labels: &HashMap<String, String>, id: &str) -> bool {
    labels.get(MARK).is_some_and(|marked| marked == id)
}

/// Whether the containers of a cluster are an environment's. k3d's tools container has no label of ours: it belongs to whom
/// the nodes belong, or the network, where it was all that k3d had made.
pub fn are_ours(containers: &[Node], id: &str, network_is_ours: bool) -> bool {
    let mut labelled = containers
        .iter()
        .filter(|container| ["server", "agent", "loadbalancer"].contains(&container.role.as_str()))
        .peekable();
    match labelled.peek() {
        None => containers.is_empty() || network_is_ours,
        Some(_) => labelled.all(|container| is_marked(&container.labels, id)),
    }
}

/// What `k3d cluster create` is called with.
#[derive(Debug)]
pub struct Create<'a> {
    /// The program.
    pub k3d: &'a Path,
    /// The cluster's name.
    pub cluster: &'a str,
    /// The environment's id.
    pub id: &'a str,
    /// The image of the nodes.
    pub image: &'a str,
    /// The config, which is the person's own file.
    pub config: &'a Path,
    /// Whether k3d's load balancer was asked for.
    pub balanced: bool,
    /// The image of the tools container, and of the load balancer.
    pub helpers: (&'a str, &'a str),
    /// Where k3d leaves its copy of the config, which it never removes.
    pub scratch: &'a Path,
    /// Variables that would stand above the config; see [`overrides_config`].
    pub withheld: Vec<OsString>,
}

/// `k3d cluster create`. Nodes of a failed attempt are kept (`--no-rollback`), so that the reason can be read from them; no
/// kubeconfig is touched, since devenv writes its own.
pub fn create(create: Create<'_>) -> Cmd {
    let Create {
        k3d,
        cluster,
        id,
        image,
        config,
        balanced,
        helpers: (tools, balancer),
        scratch,
        withheld,
    } = create;
    let call = Cmd::new("k3d")
        .at(k3d)
        .without(withheld)
        .env("TMPDIR", scratch)
        .env("K3D_IMAGE_TOOLS", tools)
        .args(["cluster", "create", cluster, "--no-rollback"])
        .arg("--config")
        .arg(config)
        .args(["--image", image])
        .args(["--network".to_owned(), network(cluster)])
        .args(["--runtime-label".to_owned(), format!("{MARK}={id}@all")])
        .args([
            "--kubeconfig-update-default=false",
            "--kubeconfig-switch-context=false",
        ]);
    match balanced {
        true => call.env("K3D_IMAGE_LOADBALANCER", balancer),
        // It waits six seconds for nothing but itself.
        false => call.arg("--no-lb"),
    }
}

/// Whether a variable of this name would change what the config says: k3d takes any key of it from the environment, and
/// `K3D_KUBEAPI_HOSTIP=0.0.0.0` would open the API server to everybody, whatever was checked. The rest of `K3D_…` says how
/// k3d works, and stays.
pub fn overrides_config(variable: &OsStr) -> bool {
    let name = variable.to_string_lossy();
    let stays = ["FIX_", "IMAGE_", "HELPER_", "LOG_", "DEBUG_"];
    name.strip_prefix("K3D_")
        .is_some_and(|rest| !stays.iter().any(|kind| rest.starts_with(kind)))
}

/// The version in the answer of `k3d version`; `None` where it was built without one.
pub fn version(answer: &str) -> Option<(u64, u64, u64)> {
    let version = answer.lines().next()?.strip_prefix("k3d version v")?;
    let mut numbers = version.split(['.', '-']).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call() {
        let call = |balanced| {
            create(Create {
                k3d: Path::new("/bin/k3d"),
                cluster: "devenv-dev",
                id: "0123456789ab",
                image: "docker.io/rancher/k3s:v1.34.2-k3s1",
                config: Path::new("/project/cluster-configs/k3d.yaml"),
                balanced,
                helpers: (TOOLS_IMAGE, BALANCER_IMAGE),
                scratch: Path::new("/tmp/scratch"),
                withheld: Vec::new(),
            })
            .to_string()
        };
        insta::assert_snapshot!(call(false), @"TMPDIR=/tmp/scratch K3D_IMAGE_TOOLS=ghcr.io/k3d-io/k3d-tools:5.8.3 /bin/k3d cluster create devenv-dev --no-rollback --config /project/cluster-configs/k3d.yaml --image docker.io/rancher/k3s:v1.34.2-k3s1 --network k3d-devenv-dev --runtime-label devenv.environment=0123456789ab@all --kubeconfig-update-default=false --kubeconfig-switch-context=false --no-lb");
        insta::assert_snapshot!(call(true), @"TMPDIR=/tmp/scratch K3D_IMAGE_TOOLS=ghcr.io/k3d-io/k3d-tools:5.8.3 K3D_IMAGE_LOADBALANCER=ghcr.io/k3d-io/k3d-proxy:5.8.3 /bin/k3d cluster create devenv-dev --no-rollback --config /project/cluster-configs/k3d.yaml --image docker.io/rancher/k3s:v1.34.2-k3s1 --network k3d-devenv-dev --runtime-label devenv.environment=0123456789ab@all --kubeconfig-update-default=false --kubeconfig-switch-context=false");
    }

    #[test]
    fn variables_that_stand_above_the_config() {
        for name in [
            "K3D_KUBEAPI_HOSTIP",
            "K3D_IMAGE",
            "K3D_SERVERS",
            "K3D_PORTS",
        ] {
            assert!(overrides_config(OsStr::new(name)), "{name}");
        }
        for name in [
            "K3D_FIX_DNS",
            "K3D_IMAGE_TOOLS",
            "K3D_HELPER_IMAGE_TAG",
            "PATH",
        ] {
            assert!(!overrides_config(OsStr::new(name)), "{name}");
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(
            version("k3d version v5.8.3\nk3s version v1.31.5-k3s1 (default)\n"),
            Some((5, 8, 3))
        );
        assert_eq!(version("k3d version v5.9.0-rc.1\n"), Some((5, 9, 0)));
        assert_eq!(version("k3d version v5-dev\n"), None);
        assert!(version("k3d version v4.4.8\n") < Some(OLDEST));
    }
}
