//! The cluster of an environment: what is there ([`observe`]), what that calls for ([`decide`], pure), and doing it
//! ([`create`], [`start`], [`api`], [`remove`]).
//!
//! Nothing about a cluster is remembered between two runs: Docker's containers and the API server are asked anew.
//!
//! What differs between the providers is in [`kind`] and [`k3d`], and in the few `match`es on [`Provider`] here. A cluster that
//! is there already has no containers of devenv's: all about it is in [`existing`].

pub mod config;
pub mod dns;
pub mod k3d;
pub mod k3d_config;
pub mod kept;
pub mod kind;
pub mod kind_config;
pub mod kubeconfig;
pub mod ours;
pub mod ports;
pub mod restart;
pub mod saved;
pub mod travel;

use std::cell::OnceCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::kube::Client;
use anyhow::Context as _;
use futures::future::try_join_all;

use self::config::{ClusterConfig, PublishedPort};
use crate::context::Context;
use crate::docker::{self, Docker, Mount, Node, State};
use crate::environment::{Environment, Provider};
use crate::error::Failure;
use crate::event::{Events, Step};
use crate::exec;
use crate::existing;
use crate::inputs::Inputs;
use crate::kube;
use crate::paths;
use crate::wait::{Look, Wait, wait_for};

/// What is there of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// Containers, but the provider didn't finish its work on them; the reason in words.
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

/// What [`remove`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    containers: usize,
    /// Whether their volumes went with them.
    volumes: bool,
    /// The network and the volume that k3d was given.
    beside: bool,
}

impl Removed {
    /// In words; `None` where nothing was there.
    pub fn told(self) -> Option<String> {
        let containers = match (self.containers, self.volumes) {
            (0, _) => None,
            (1, true) => Some("1 container and its volumes".to_owned()),
            (1, false) => Some("1 container".to_owned()),
            (count, true) => Some(format!("{count} containers and their volumes")),
            (count, false) => Some(format!("{count} containers")),
        };
        match (containers, self.beside) {
            (None, false) => None,
            (None, true) => Some("what was made before the first container".to_owned()),
            (Some(containers), false) => Some(containers),
            (Some(containers), true) => Some(format!("{containers}, and the network")),
        }
    }
}

/// The containers of a cluster of this name at the environment's provider, stopped ones too, whoever made them; control
/// planes first. Started in this order, as the provider made them, they get the addresses they had.
pub async fn containers(docker: &Docker, environment: &Environment) -> anyhow::Result<Vec<Node>> {
    let Some(label) = label(environment.provider) else {
        return Ok(Vec::new());
    };
    let mut containers = docker.containers(label, Some(&environment.cluster)).await?;
    containers.sort_by_key(|container| !CONTROL_PLANES.contains(&container.role.as_str()));
    Ok(containers)
}

/// A filter for `docker ps` that shows a cluster's containers.
pub fn filter(environment: &Environment) -> String {
    let label = label(environment.provider).unwrap_or_default();
    format!("label={label}={}", environment.cluster)
}

/// The label that a provider gives the containers that it makes.
fn label(provider: Provider) -> Option<&'static str> {
    match provider {
        Provider::Kind => Some(kind::LABEL),
        Provider::K3d => Some(k3d::LABEL),
        Provider::Existing => None,
    }
}

/// The containers among these that run pods, and not what a provider makes beside them.
pub fn pod_nodes(containers: &[Node]) -> impl Iterator<Item = &Node> {
    containers.iter().filter(|container| {
        ["control-plane", "worker", "server", "agent"].contains(&container.role.as_str())
    })
}

/// The node to which this machine's ports lead; where a load balancer stands before them all, a control plane.
pub fn front(nodes: &[Node]) -> Option<&Node> {
    let publishes = |node: &&Node| node.ports.iter().any(|port| port.container == 80);
    let controls = |node: &&Node| CONTROL_PLANES.contains(&node.role.as_str());
    pod_nodes(nodes)
        .find(publishes)
        .or_else(|| pod_nodes(nodes).find(controls))
}

/// The containers of the environment's cluster, which are all ours; a cluster of the same name that isn't is refused.
pub async fn nodes(docker: &Docker, environment: &Environment) -> anyhow::Result<Vec<Node>> {
    let containers = containers(docker, environment).await?;
    match environment.provider {
        Provider::Kind if kind::is_ours(&containers, &environment.id) => {}
        Provider::Kind => {
            let label = containers
                .iter()
                .find_map(ours::mark)
                .map(ours::label_beside);
            if let Some(Some(file)) = label {
                return Err(namesake(environment, &containers, file));
            }
            let mark = kind::mark(&environment.id);
            return Err(refuse(
                environment,
                format!("its nodes lack the mount {mark}"),
                "kind delete cluster --name",
            ));
        }
        Provider::K3d => {
            let network = k3d_network_is_made(docker, environment).await?;
            k3d_volume_is_made(docker, environment).await?;
            if !k3d::are_ours(&containers, &environment.id, network) {
                let (mark, id) = (k3d::MARK, &environment.id);
                return Err(refuse(
                    environment,
                    format!("its containers lack the label {mark}={id}"),
                    "k3d cluster delete",
                ));
            }
        }
        Provider::Existing => {}
    }
    Ok(containers)
}

/// The error for a cluster of our name that isn't ours; `delete` is what removes one.
fn refuse(environment: &Environment, mark: String, delete: &str) -> anyhow::Error {
    let Environment {
        provider, cluster, ..
    } = environment;
    not_ours(
        environment,
        format!(
            "a {provider} cluster named {cluster} exists that this environment didn't make ({mark})"
        ),
        &format!("{delete} {cluster}"),
    )
}

fn not_ours(environment: &Environment, message: String, remove: &str) -> anyhow::Error {
    let hint = format!(
        "if nobody needs it: {remove}; else give this environment another name by renaming {}",
        environment.file.display()
    );
    Failure::NotOurs { message, hint }.into()
}

/// Whether the network for a k3d cluster is there; one that isn't ours is refused.
async fn k3d_network_is_made(docker: &Docker, environment: &Environment) -> anyhow::Result<bool> {
    let name = k3d::network(&environment.cluster);
    let labels = docker.network(&name).await?;
    is_marked(environment, labels, "network", &name)
}

/// The same for the volume that k3d wants.
async fn k3d_volume_is_made(docker: &Docker, environment: &Environment) -> anyhow::Result<bool> {
    let name = k3d::volume(&environment.cluster);
    let labels = docker.volume(&name).await?;
    is_marked(environment, labels, "volume", &name)
}

fn is_marked(
    environment: &Environment,
    labels: Option<HashMap<String, String>>,
    what: &str,
    name: &str,
) -> anyhow::Result<bool> {
    let Some(labels) = labels else {
        return Ok(false);
    };
    if k3d::is_marked(&labels, &environment.id) {
        return Ok(true);
    }
    let (mark, id) = (k3d::MARK, &environment.id);
    Err(not_ours(
        environment,
        format!(
            "a {what} named {name} exists that this environment didn't make (it lacks the label {mark}={id})"
        ),
        &format!("docker {what} rm {name}"),
    ))
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

/// What is there. Asks the nodes themselves how far the provider came: when it is killed, it leaves containers that run.
pub async fn observe(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Found> {
    let Environment {
        provider, cluster, ..
    } = environment;
    if lasting(nodes).next().is_none() {
        let began = !nodes.is_empty()
            || *provider == Provider::K3d
                && (k3d_network_is_made(docker, environment).await?
                    || k3d_volume_is_made(docker, environment).await?);
        return Ok(match began {
            true => Found::HalfMade("k3d was stopped before it made a node".to_owned()),
            false => Found::Absent,
        });
    }
    observe_cluster(docker, *provider, cluster, nodes).await
}

/// Like [`observe`], for any environment's cluster.
pub async fn observe_cluster(
    docker: &Docker,
    provider: Provider,
    cluster: &str,
    nodes: &[Node],
) -> anyhow::Result<Found> {
    if lasting(nodes).next().is_none() {
        return Ok(Found::Absent);
    }
    if let Some(node) =
        lasting(nodes).find(|node| matches!(node.state, State::Created | State::Dead))
    {
        return Ok(Found::HalfMade(format!(
            "node {} was never started",
            node.name
        )));
    }
    let asleep: Vec<String> = lasting(nodes)
        .filter(|node| node.state != State::Running)
        .map(|node| node.name.clone())
        .collect();
    if !asleep.is_empty() {
        return Ok(Found::Stopped(asleep));
    }
    let Some((control_plane, server)) = api_server(nodes) else {
        return Ok(Found::HalfMade(
            "it has no control plane that publishes its API server".to_owned(),
        ));
    };
    // k3s goes on by itself once it is started; kubeadm doesn't.
    let goes_on = provider == Provider::K3d;
    if !goes_on && !kubeadm_finished(docker, control_plane).await? {
        return Ok(Found::HalfMade(
            "kubeadm was stopped before it finished".to_owned(),
        ));
    }
    let Some(client) = client(docker, provider, cluster, control_plane, &server).await? else {
        return Ok(match goes_on {
            true => Found::Running,
            false => {
                Found::HalfMade("kubeadm didn't get as far as writing its kubeconfig".to_owned())
            }
        });
    };
    if kube::ready(&client).await.is_err() {
        // It is just starting; whoever needs it waits, and asks again how far the provider came.
        return Ok(Found::Running);
    }
    unfinished(&client, provider, nodes)
        .await
        .map(|reason| reason.map_or(Found::Running, Found::HalfMade))
}

/// The containers that a cluster consists of, and not what k3d makes for a moment and may leave behind.
fn lasting(containers: &[Node]) -> impl Iterator<Item = &Node> {
    containers
        .iter()
        .filter(|container| container.role != k3d::FOR_A_MOMENT)
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
/// control plane, and every node joins. The nodes of k3d do all that by themselves, whatever becomes of k3d.
pub async fn unfinished(
    client: &Client,
    provider: Provider,
    nodes: &[Node],
) -> anyhow::Result<Option<String>> {
    if provider == Provider::K3d {
        return Ok(None);
    }
    let classes = kube::list(client, "storage.k8s.io/v1", "StorageClass", None, "").await?;
    if classes.is_empty() {
        return Ok(Some(
            "kind was stopped before it made the storage class".to_owned(),
        ));
    }
    let joined = kube::list(client, "v1", "Node", None, "").await?.len();
    let made = pod_nodes(nodes).count();
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
    let made = pod_nodes(nodes).count();
    if wanted != made {
        return Some(format!(
            "it has {made} nodes where {} asks for {wanted}",
            inputs.environment.config.display()
        ));
    }
    let image = inputs.environment.node_image.as_ref()?.to_string();
    let familiar = |name: &str| name.strip_prefix("docker.io/").unwrap_or(name).to_owned();
    let other = pod_nodes(nodes).find(|node| familiar(&node.image) != familiar(&image));
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

/// Where the provider's program is: on PATH, or where `scripts/up` puts it.
pub async fn find_program(context: &Context, environment: &Environment) -> anyhow::Result<PathBuf> {
    let (tool, by_hand) = match environment.provider {
        Provider::Kind => (
            "kind",
            "brew install kind, or: go install sigs.k8s.io/kind@v0.33.0",
        ),
        Provider::K3d => (
            "k3d",
            "brew install k3d, or: go install github.com/k3d-io/k3d/v5@v5.8.3",
        ),
        Provider::Existing => anyhow::bail!("{NEVER_MADE}"),
    };
    let get = format!(
        "scripts/up installs it (built from its Go module, checked against go.sum); or: {by_hand}"
    );
    let Some(program) = program_of(context, environment.provider) else {
        return Err(Failure::ToolMissing { tool, hint: get }.into());
    };
    if environment.provider == Provider::K3d {
        refuse_old_k3d(context, &program, get).await?;
    }
    Ok(program)
}

/// Why there is nothing to make of a cluster that is there already.
const NEVER_MADE: &str = "a cluster that is there already is never made by devenv";

/// Where the provider's program is: on PATH, or where `scripts/up` puts it.
pub fn program_of(context: &Context, provider: Provider) -> Option<PathBuf> {
    let tool = match provider {
        Provider::Kind => "kind",
        Provider::K3d => "k3d",
        Provider::Existing => return None,
    };
    let own = context.paths.tools().join(tool);
    which::which(tool)
        .ok()
        .or_else(|| own.is_file().then_some(own))
}

async fn refuse_old_k3d(context: &Context, k3d: &Path, get: String) -> anyhow::Result<()> {
    let ask = exec::Cmd::new("k3d").at(k3d).arg("version").quiet();
    let unseen = Events::channel().0.step("k3d version");
    let answer = exec::run(&ask, &context.stop, &unseen).await?.text();
    // One that was built without a version is taken as it is.
    if k3d::version(&answer).is_some_and(|version| version < k3d::OLDEST) {
        let (major, minor, patch) = k3d::OLDEST;
        return Err(Failure::Other {
            message: format!(
                "{} is too old: it says `{}`, and devenv needs {major}.{minor}.{patch} or newer",
                k3d.display(),
                answer.lines().next().unwrap_or_default()
            ),
            hint: get,
        }
        .into());
    }
    Ok(())
}

/// Starts nodes that were stopped or paused.
pub async fn start(docker: &Docker, nodes: &[String], step: &Step) -> anyhow::Result<()> {
    for node in nodes {
        step.waiting(format!("starting {node}"));
        docker.unpause(node).await?;
        docker.start(node).await?;
    }
    restart::lead_to_api(docker, nodes.iter().map(String::as_str)).await;
    Ok(())
}

/// Makes the cluster; ends when the provider's program has ended.
pub async fn create(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    program: &Path,
    step: &Step,
) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    ours::folder(&context.paths, environment)?;
    // In the environment's own folder: even if devenv is killed, `down` finds it.
    let scratch = tempfile::tempdir_in(context.paths.environment(&environment.id))
        .context("make a folder for the provider's files")?;
    let image = environment.node_image.as_ref().context(NEVER_MADE)?;
    let image = image.to_string();
    let call = match &inputs.cluster_config {
        ClusterConfig::Existing => anyhow::bail!("{NEVER_MADE}"),
        ClusterConfig::Kind(config) => {
            step.waiting("kind create cluster");
            let mark = context.paths.mark(&environment.id);
            paths::private_folder(&mark)?;
            let file = scratch.path().join("kind.yaml");
            std::fs::write(&file, config.with_mark(&environment.id, &mark))
                .with_context(|| format!("write {}", file.display()))?;
            let thrown_away = scratch.path().join("kubeconfig");
            kind::create(program, &environment.cluster, &image, &file, &thrown_away)
        }
        ClusterConfig::K3d(config) => {
            step.waiting("k3d cluster create");
            let labels = k3d::labels(&environment.cluster, &environment.id);
            let (network, volume) = (
                k3d::network(&environment.cluster),
                k3d::volume(&environment.cluster),
            );
            docker.make_network(&network, labels.clone()).await?;
            docker.make_volume(&volume, labels).await?;
            let variables = std::env::vars_os().map(|(name, _)| name);
            k3d::create(k3d::Create {
                k3d: program,
                cluster: &environment.cluster,
                id: &environment.id,
                image: &image,
                config: &environment.config,
                balanced: config.has_load_balancer(),
                helpers: (
                    &environment.image(&k3d::TOOLS_IMAGE.parse()?).to_string(),
                    &environment.image(&k3d::BALANCER_IMAGE.parse()?).to_string(),
                ),
                scratch: scratch.path(),
                withheld: variables
                    .filter(|name| k3d::overrides_config(name))
                    .collect(),
            })
        }
    };
    let (provider, name) = (environment.provider, &environment.name);
    let call = call.deadline(context.timeout).when_it_fails(format!(
        "what {provider} made is kept: `docker logs {}` shows how far it came, `devenv up --environment {name}` makes it \
         anew, `devenv down --environment {name}` removes it",
        first_node(environment)
    ));
    exec::run(&call, &context.stop, step)
        .await
        .with_context(|| format!("create the cluster {}", environment.cluster))?;
    Ok(())
}

/// The name of the container that is the first control plane.
fn first_node(environment: &Environment) -> String {
    match environment.provider {
        Provider::Kind => format!("{}-control-plane", environment.cluster),
        Provider::K3d => format!("k3d-{}-server-0", environment.cluster),
        Provider::Existing => environment.cluster.clone(),
    }
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

/// Where the API server listens in its node.
const API_PORT: u16 = 6443;
/// The roles of control planes.
const CONTROL_PLANES: [&str; 2] = ["control-plane", "server"];

/// The first control plane that runs, and the address on this machine at which its API server answers.
pub fn api_server(nodes: &[Node]) -> Option<(&Node, String)> {
    let published = nodes
        .iter()
        .filter(|node| node.state == State::Running)
        .find_map(|node| {
            let port = node.ports.iter().find(|port| port.container == API_PORT)?;
            Some(format!("https://{}:{}", port.address, port.host))
        })?;
    let control_plane = nodes.iter().find(|node| {
        CONTROL_PLANES.contains(&node.role.as_str()) && node.state == State::Running
    })?;
    Some((control_plane, published))
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
            "docker logs {}, or: devenv reset --environment {}",
            first_node(environment),
            environment.name
        ),
    };
    let cut_off_since = OnceCell::new();
    wait_for(&wait, step, &context.stop, || async {
        let nodes = containers(docker, environment).await?;
        let Some((control_plane, server)) = api_server(&nodes) else {
            return Ok(Look::NotYet("no control plane runs yet".to_owned()));
        };
        if control_plane.address.is_none() {
            let since = cut_off_since.get_or_init(Instant::now);
            return Ok(cut_off(environment, control_plane, since.elapsed()));
        }
        let Some((text, client)) = kubeconfig_and_client(
            docker,
            environment.provider,
            &environment.cluster,
            control_plane,
            &server,
        )
        .await?
        else {
            return Ok(Look::NotYet("the control plane is being set up".to_owned()));
        };
        if let Err(error) = kube::ready(&client).await {
            return match kube::is_out_of_date(&error) {
                true => Ok(Look::Never {
                    reason: format!("{error:#}"),
                    hint: Some(out_of_date_hint(environment)),
                }),
                false => Err(error),
            };
        }
        ours::folder(&context.paths, environment)?;
        let path = context.paths.kubeconfig(&environment.id);
        if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
            paths::write_private(&path, text.as_bytes())?;
        }
        Ok(Look::Ready(client))
    })
    .await
}

/// How long a node that was just made may be in no network.
const JOINS_WITHIN: Duration = Duration::from_secs(5);

/// A node that runs and is in no network: somebody took it out, or removed the network by force.
fn cut_off(environment: &Environment, node: &Node, since: Duration) -> Look<Client> {
    let reason = format!("the node {} runs, and is in no network", node.name);
    if since < JOINS_WITHIN {
        return Look::NotYet(reason);
    }
    let network = match environment.provider {
        Provider::Kind => "kind".to_owned(),
        Provider::K3d | Provider::Existing => k3d::network(&environment.cluster),
    };
    let hint = format!(
        "docker network connect {network} {}; if there is no such network any more: devenv reset --rebuild --environment {}",
        node.name, environment.name
    );
    Look::Never {
        reason,
        hint: Some(hint),
    }
}

/// No waiting helps: either a clock is wrong, or the cluster has become older than what kubeadm and k3s sign, a year.
fn out_of_date_hint(environment: &Environment) -> String {
    format!(
        "devenv doctor says whether a clock is wrong; if none is, the cluster's certificates have expired: devenv reset --rebuild --environment {}",
        environment.name
    )
}

async fn client(
    docker: &Docker,
    provider: Provider,
    cluster: &str,
    node: &Node,
    server: &str,
) -> anyhow::Result<Option<Client>> {
    Ok(
        kubeconfig_and_client(docker, provider, cluster, node, server)
            .await?
            .map(|(_, client)| client),
    )
}

/// The kubeconfig for the person, and a client; `None` as long as the node hasn't written its own kubeconfigs.
///
/// With kind the client is the cluster's super-admin where there is one (kubeadm 1.29 and later): the person's admin has no
/// rights until kubeadm gets round to giving them, which is seconds after the API server answers.
async fn kubeconfig_and_client(
    docker: &Docker,
    provider: Provider,
    cluster: &str,
    node: &Node,
    server: &str,
) -> anyhow::Result<Option<(String, Client)>> {
    let script = match provider {
        Provider::Kind => {
            "cat /etc/kubernetes/admin.conf && echo ---; cat /etc/kubernetes/super-admin.conf"
        }
        // Where k3d tells k3s to write it.
        Provider::K3d => "cat /output/kubeconfig.yaml && echo ---",
        Provider::Existing => return Ok(None),
    };
    let read = docker.exec(&node.name, &["sh", "-c", script]).await?;
    let both = String::from_utf8_lossy(&read.stdout);
    let (admin, super_admin) = both.split_once("---\n").unwrap_or_default();
    if !admin.contains("client-key-data") {
        return Ok(None);
    }
    let text = kubeconfig::of_person(admin, server, cluster)?;
    let client = match super_admin.contains("client-key-data") {
        true => kubeconfig::of_person(super_admin, server, cluster)?,
        false => text.clone(),
    };
    Ok(Some((text, kube::client(&client).await?)))
}

/// A client for a cluster that is known to be there, whether or not its API server answers; `None` where no control plane runs.
async fn client_of(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Option<Client>> {
    let (provider, cluster) = (environment.provider, &environment.cluster);
    match api_server(nodes) {
        Some((control_plane, server)) => {
            client(docker, provider, cluster, control_plane, &server).await
        }
        None => Ok(None),
    }
}

/// A client for a cluster that is known to be there, with a short wait; `None` where its API server doesn't answer.
pub async fn client_if_running(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Option<Client>> {
    let Some(client) = client_of(docker, environment, nodes).await? else {
        return Ok(None);
    };
    Ok(kube::ready(&client).await.is_ok().then_some(client))
}

/// Like [`client_if_running`], where nothing can be done without it.
pub async fn running(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Client> {
    let Some(client) = client_of(docker, environment, nodes).await? else {
        return Err(not_running(environment));
    };
    let Err(error) = kube::ready(&client).await else {
        return Ok(client);
    };
    let hint = match kube::is_out_of_date(&error) {
        true => out_of_date_hint(environment),
        false => format!("devenv up --environment {}", environment.name),
    };
    Err(Failure::Other {
        message: format!(
            "the nodes of {} run, and its API server can't be asked: {error:#}",
            environment.cluster
        ),
        hint,
    }
    .into())
}

/// What a command works on, that is up: a client for the API server, and Docker where the nodes are devenv's own.
pub struct Running {
    /// The API server's client.
    pub client: Client,
    /// Docker, which has the nodes; `None` where they are somebody else's.
    pub docker: Option<Docker>,
}

/// The environment's cluster, whichever provider it has; an error where it isn't up.
pub async fn reach(context: &Context, environment: &Environment) -> anyhow::Result<Running> {
    if environment.existing.is_some() {
        return Ok(Running {
            client: existing::running(context, environment).await?,
            docker: None,
        });
    }
    let docker = docker::connect().await?;
    let nodes = nodes(&docker, environment).await?;
    Ok(Running {
        client: running(&docker, environment, &nodes).await?,
        docker: Some(docker),
    })
}

/// The error for what needs nodes that are devenv's own; `what` is a sentence about it, `instead` a command.
pub fn not_with_existing(environment: &Environment, what: &str, instead: String) -> anyhow::Error {
    Failure::Usage {
        message: format!(
            "{what}, and those of {} aren't devenv's: the cluster of the context {} is there already",
            environment.name, environment.cluster
        ),
        hint: instead,
    }
    .into()
}

/// The error for a cluster that has to run first.
pub fn not_running(environment: &Environment) -> anyhow::Error {
    Failure::Other {
        message: format!("the cluster {} doesn't run", environment.cluster),
        hint: format!("devenv up --environment {}", environment.name),
    }
    .into()
}

/// Removes the cluster's containers with their volumes, and what k3d was given beside them.
pub async fn remove(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Removed> {
    let mut removed = remove_but_volumes(docker, environment, nodes).await?;
    let volumes = nodes
        .iter()
        .flat_map(|node| &node.mounts)
        .filter_map(anonymous);
    try_join_all(volumes.map(|volume| docker.remove_volume(volume))).await?;
    removed.volumes = true;
    Ok(removed)
}

/// The volume's name, if Docker made it for the container: the name is only digits then. A node that was made again has its
/// volume by that name, and Docker doesn't remove it with the node any more.
fn anonymous(mount: &Mount) -> Option<&str> {
    let name = mount.volume.as_deref()?;
    let is_digits = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digits.then_some(name)
}

/// Removes the cluster's containers, and what k3d was given beside them.
pub async fn remove_but_volumes(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Removed> {
    try_join_all(
        nodes
            .iter()
            .map(|node| docker.remove_but_volumes(&node.name)),
    )
    .await?;
    let mut removed = Removed {
        containers: nodes.len(),
        volumes: false,
        beside: false,
    };
    if environment.provider == Provider::K3d {
        if k3d_volume_is_made(docker, environment).await? {
            docker
                .remove_volume(&k3d::volume(&environment.cluster))
                .await?;
            removed.beside = true;
        }
        if k3d_network_is_made(docker, environment).await? {
            docker
                .remove_network(&k3d::network(&environment.cluster))
                .await?;
            removed.beside = true;
        }
    }
    Ok(removed)
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
