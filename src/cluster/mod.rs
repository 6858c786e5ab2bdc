//! The cluster of an environment: what is there ([`observe`]), what that calls for ([`decide`], pure), and doing it
//! ([`create`], [`start`], [`api`], [`remove`]).
//!
//! Nothing about a cluster is remembered between two runs: Docker's containers and the API server are asked anew.

pub mod dns;
pub mod kind;
pub mod kind_config;
pub mod ours;
pub mod ports;

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::kube::Client;
use anyhow::Context as _;

use self::kind_config::PublishedPort;
use crate::context::Context;
use crate::docker::{Docker, Node, State};
use crate::environment::Environment;
use crate::error::Failure;
use crate::event::Step;
use crate::exec;
use crate::inputs::Inputs;
use crate::kube;
use crate::paths;
use crate::wait::{Look, Wait, wait_for};

/// What is there of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// Containers, but kind didn't finish its work on them; the reason in words.
    HalfMade(String),
    /// A whole cluster of which some nodes don't run (stopped, or paused).
    Stopped(Vec<String>),
    /// A whole cluster; it runs.
    Running,
}

/// What has to be done about the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make it.
    Create,
    /// Remove what is there and make it; the reason in words.
    Recreate(String),
    /// Start these nodes.
    Start(Vec<String>),
    /// Nothing.
    Keep,
}

/// The containers of the environment's cluster, which are all ours; a cluster of the same name that isn't is refused.
pub async fn nodes(docker: &Docker, environment: &Environment) -> anyhow::Result<Vec<Node>> {
    let nodes = docker.nodes(&environment.cluster).await?;
    if !kind::is_ours(&nodes, &environment.id) {
        let label = nodes.iter().find_map(ours::mark).map(ours::label_beside);
        if let Some(Some(file)) = label {
            return Err(namesake(environment, &nodes, file));
        }
        return Err(Failure::NotOurs {
            message: format!(
                "a kind cluster named {} exists that this environment didn't make (its nodes lack the mount {})",
                environment.cluster,
                kind::mark(&environment.id)
            ),
            hint: format!(
                "if nobody needs it: kind delete cluster --name {}; else give this environment another name by \
                 renaming {}",
                environment.cluster,
                environment.file.display()
            ),
        }
        .into());
    }
    Ok(nodes)
}

/// The error for a cluster that belongs to another environment, which has the same name.
fn namesake(environment: &Environment, nodes: &[Node], file: PathBuf) -> anyhow::Error {
    let other = ours::Ours {
        provider: environment.provider,
        cluster: environment.cluster.clone(),
        id: String::new(),
        nodes: nodes.to_vec(),
        file: Some(file),
    };
    let file = environment.file.display();
    let is_gone = !other.file.as_ref().is_some_and(|file| file.is_file());
    Failure::NotOurs {
        message: format!(
            "the cluster {} belongs to {}{}: two environments of one name can't be up side by side",
            environment.cluster,
            other.told(),
            if is_gone { " (which is gone)" } else { "" },
        ),
        hint: format!(
            "give this one another name: `mv {file} {}`; or remove the other: `{}`",
            environment
                .file
                .with_file_name(format!("{}-2.yaml", environment.name))
                .display(),
            other.removal()
        ),
    }
    .into()
}

/// What is there. Asks the nodes themselves whether kind finished: a killed `kind create` leaves containers that run.
pub async fn observe(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Found> {
    observe_cluster(docker, &environment.cluster, nodes).await
}

/// Like [`observe`], for any environment's cluster.
pub async fn observe_cluster(
    docker: &Docker,
    cluster: &str,
    nodes: &[Node],
) -> anyhow::Result<Found> {
    if nodes.is_empty() {
        return Ok(Found::Absent);
    }
    if let Some(node) = nodes
        .iter()
        .find(|node| matches!(node.state, State::Created | State::Dead))
    {
        return Ok(Found::HalfMade(format!(
            "node {} was never started",
            node.name
        )));
    }
    let asleep: Vec<String> = nodes
        .iter()
        .filter(|node| node.state != State::Running)
        .map(|node| node.name.clone())
        .collect();
    if !asleep.is_empty() {
        return Ok(Found::Stopped(asleep));
    }
    let Some((control_plane, server)) = kind::api_server(nodes) else {
        return Ok(Found::HalfMade(
            "it has no control plane that publishes its API server".to_owned(),
        ));
    };
    if !kubeadm_finished(docker, control_plane).await? {
        return Ok(Found::HalfMade(
            "kubeadm was stopped before it finished".to_owned(),
        ));
    }
    let Some(client) = client(docker, cluster, control_plane, &server).await? else {
        return Ok(Found::HalfMade(
            "kubeadm didn't get as far as writing its kubeconfig".to_owned(),
        ));
    };
    if kube::ready(&client).await.is_err() {
        // It is just starting; whoever needs it waits, and asks again whether kind finished.
        return Ok(Found::Running);
    }
    unfinished(&client, nodes)
        .await
        .map(|reason| reason.map_or(Found::Running, Found::HalfMade))
}

/// Whether kubeadm got as far as the kubelet's own certificate, which is next to its last step.
async fn kubeadm_finished(docker: &Docker, control_plane: &Node) -> anyhow::Result<bool> {
    let look = [
        "grep",
        "-q",
        "kubelet-client-current",
        "/etc/kubernetes/kubelet.conf",
    ];
    Ok(docker.exec(&control_plane.name, &look).await?.status == 0)
}

/// What kind hadn't done yet, or `None` where it had finished: the storage class is the last thing it makes on the
/// control plane, and every node joins.
pub async fn unfinished(client: &Client, nodes: &[Node]) -> anyhow::Result<Option<String>> {
    let classes = kube::list(client, "storage.k8s.io/v1", "StorageClass", None, "").await?;
    if classes.is_empty() {
        return Ok(Some(
            "kind was stopped before it made the storage class".to_owned(),
        ));
    }
    let joined = kube::list(client, "v1", "Node", None, "").await?.len();
    let made = kind::workers_and_control_planes(nodes).count();
    Ok((joined < made).then(|| format!("only {joined} of {made} nodes joined it")))
}

/// What has to be done, from what is there.
pub fn decide(found: &Found) -> Action {
    match found {
        Found::Absent => Action::Create,
        Found::HalfMade(reason) => Action::Recreate(reason.clone()),
        Found::Stopped(nodes) => Action::Start(nodes.clone()),
        Found::Running => Action::Keep,
    }
}

/// How a whole cluster differs from what its config asks for, in words; such a cluster is never changed silently.
pub fn differs(inputs: &Inputs, nodes: &[Node]) -> Option<String> {
    let published = |node: &Node| {
        node.ports
            .iter()
            .map(|port| (port.address.clone(), port.host, port.container))
            .collect::<Vec<_>>()
    };
    let there: Vec<_> = nodes.iter().flat_map(published).collect();
    let lacking = inputs.cluster_config.published_ports().iter().find(|port| {
        !there.contains(&(
            port.address.to_string(),
            port.host_port,
            port.container_port,
        ))
    });
    if let Some(PublishedPort {
        address,
        host_port,
        container_port,
    }) = lacking
    {
        return Some(format!(
            "it doesn't publish {address}:{host_port} to port {container_port} of its node"
        ));
    }
    let wanted = inputs.cluster_config.node_count();
    let made = kind::workers_and_control_planes(nodes).count();
    if wanted != made {
        return Some(format!(
            "it has {made} nodes where {} asks for {wanted}",
            inputs.environment.config.display()
        ));
    }
    let image = inputs.environment.node_image.to_string();
    let familiar = |name: &str| name.strip_prefix("docker.io/").unwrap_or(name).to_owned();
    let other = kind::workers_and_control_planes(nodes)
        .find(|node| familiar(&node.image) != familiar(&image));
    other.map(|node| {
        format!(
            "node {} runs the image {} where {image} is asked for",
            node.name, node.image
        )
    })
}

/// The error for a cluster that [`differs`].
pub fn refuse_different(environment: &Environment, difference: &str) -> anyhow::Error {
    Failure::Other {
        message: format!(
            "the cluster {} was made with other settings: {difference}",
            environment.cluster
        ),
        hint: format!(
            "devenv reset --environment {} makes it anew",
            environment.name
        ),
    }
    .into()
}

/// Where the kind program is: on PATH, or where `scripts/up` puts it.
pub fn find_kind(context: &Context) -> anyhow::Result<PathBuf> {
    let own = context.paths.tools().join("kind");
    which::which("kind").ok().or_else(|| own.is_file().then_some(own)).ok_or_else(|| {
        Failure::ToolMissing {
            tool: "kind",
            hint: "scripts/up installs it (built from its Go module, checked against go.sum); or: brew install kind, or: \
                   go install sigs.k8s.io/kind@v0.33.0"
                .to_owned(),
        }
        .into()
    })
}

/// Starts nodes that were stopped or paused.
pub async fn start(docker: &Docker, nodes: &[String], step: &Step) -> anyhow::Result<()> {
    for node in nodes {
        step.waiting(format!("starting {node}"));
        docker.unpause(node).await?;
        docker.start(node).await?;
    }
    Ok(())
}

/// Makes the cluster; ends when kind has ended.
pub async fn create(
    context: &Context,
    inputs: &Inputs,
    kind: &Path,
    step: &Step,
) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    let mark = context.paths.mark(&environment.id);
    ours::folder(&context.paths, environment)?;
    paths::private_folder(&mark)?;
    let scratch = tempfile::tempdir().context("make a folder for kind's files")?;
    let config = scratch.path().join("kind.yaml");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&config)?;
        file.write_all(
            inputs
                .cluster_config
                .with_mark(&environment.id, &mark)
                .as_bytes(),
        )
    };
    write().with_context(|| format!("write {}", config.display()))?;
    step.waiting("kind create cluster");
    let image = environment.node_image.to_string();
    let create = kind::create(
        kind,
        &environment.cluster,
        &image,
        &config,
        &scratch.path().join("kubeconfig"),
    )
    .deadline(context.timeout)
    .when_it_fails(format!(
        "what kind made is kept: `docker logs {}-control-plane` shows how far it came, `devenv up --environment {}` makes it \
         anew, `devenv down --environment {}` removes it",
        environment.cluster, environment.name, environment.name
    ));
    exec::run(&create, &context.stop, step)
        .await
        .with_context(|| format!("create the cluster {}", environment.cluster))?;
    Ok(())
}

/// The addresses and ports of this machine that creating the cluster will take.
pub fn ports_to_take(inputs: &Inputs) -> Vec<(IpAddr, u16)> {
    inputs
        .cluster_config
        .published_ports()
        .iter()
        .map(|port| (port.address, port.host_port))
        .collect()
}

/// A client for the cluster's API server as soon as it answers, also while kind still works on the rest; writes the
/// environment's kubeconfig on the way.
pub async fn api(
    context: &Context,
    docker: &Docker,
    environment: &Environment,
    step: &Step,
) -> anyhow::Result<Client> {
    let wait = Wait {
        what: format!("the API server of {}", environment.cluster),
        within: context.timeout,
        every: Duration::from_millis(200),
        hint: format!(
            "docker logs {}-control-plane, or: devenv reset --environment {}",
            environment.cluster, environment.name
        ),
    };
    wait_for(&wait, step, &context.stop, || async {
        let nodes = docker.nodes(&environment.cluster).await?;
        let Some((control_plane, server)) = kind::api_server(&nodes) else {
            return Ok(Look::NotYet("no control plane runs yet".to_owned()));
        };
        let Some((text, client)) =
            kubeconfig_and_client(docker, &environment.cluster, control_plane, &server).await?
        else {
            return Ok(Look::NotYet(
                "kubeadm is setting up the control plane".to_owned(),
            ));
        };
        kube::ready(&client).await?;
        ours::folder(&context.paths, environment)?;
        let path = context.paths.kubeconfig(&environment.id);
        if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            paths::write_private(&path, text.as_bytes())?;
        }
        Ok(Look::Ready(client))
    })
    .await
}

async fn client(
    docker: &Docker,
    cluster: &str,
    node: &Node,
    server: &str,
) -> anyhow::Result<Option<Client>> {
    Ok(kubeconfig_and_client(docker, cluster, node, server)
        .await?
        .map(|(_, client)| client))
}

/// The kubeconfig for the person, and a client; `None` as long as kubeadm hasn't written its own kubeconfigs.
///
/// The client is the cluster's super-admin where there is one (kubeadm 1.29 and later): the person's admin has no rights
/// until kubeadm gets round to giving them, which is seconds after the API server answers.
async fn kubeconfig_and_client(
    docker: &Docker,
    cluster: &str,
    node: &Node,
    server: &str,
) -> anyhow::Result<Option<(String, Client)>> {
    let script = "cat /etc/kubernetes/admin.conf && echo ---; cat /etc/kubernetes/super-admin.conf";
    let read = docker.exec(&node.name, &["sh", "-c", script]).await?;
    let both = String::from_utf8_lossy(&read.stdout);
    let (admin, super_admin) = both.split_once("---\n").unwrap_or_default();
    if !admin.contains("client-key-data") {
        return Ok(None);
    }
    let text = kind::kubeconfig(admin, server, cluster)?;
    let client = match super_admin.contains("client-key-data") {
        true => kube::client(&kind::kubeconfig(super_admin, server, cluster)?).await?,
        false => kube::client(&text).await?,
    };
    Ok(Some((text, client)))
}

/// A client for a cluster that is known to be there, with a short wait; `None` where its API server doesn't answer.
pub async fn client_if_running(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Option<Client>> {
    let Some((control_plane, server)) = kind::api_server(nodes) else {
        return Ok(None);
    };
    let Some(client) = client(docker, &environment.cluster, control_plane, &server).await? else {
        return Ok(None);
    };
    Ok(kube::ready(&client).await.is_ok().then_some(client))
}

/// Removes the cluster's containers and their volumes; says how many.
pub async fn remove(docker: &Docker, nodes: &[Node]) -> anyhow::Result<usize> {
    futures::future::try_join_all(nodes.iter().map(|node| docker.remove(&node.name))).await?;
    Ok(nodes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_decides_what_is_done() {
        assert_eq!(decide(&Found::Absent), Action::Create);
        assert_eq!(decide(&Found::Running), Action::Keep);
        assert_eq!(
            decide(&Found::HalfMade("x".into())),
            Action::Recreate("x".into())
        );
        assert_eq!(
            decide(&Found::Stopped(vec!["n".into()])),
            Action::Start(vec!["n".into()])
        );
    }
}
