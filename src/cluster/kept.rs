//! What `down` keeps of an environment, so that the next `up` starts from it: the nodes' volumes, which hold the images and the
//! state that last passed all checks, and how to make the nodes' containers again.
//!
//! A small volume of its own is the note of it: Docker keeps its labels, and nobody else has to remember anything. What was made
//! of other things than would be made now isn't started from, and is removed when the cluster is made anew.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;
use bytes::Bytes;
use futures::future::try_join_all;
use futures::stream;
use serde::{Deserialize, Serialize};

use super::k3d::{self, MARK};
use super::saved::{self, Places, Snapshot};
use super::{API_PORT, containers, kind, ours, pod_nodes};
use crate::context::Context;
use crate::docker::recipe::Recipe;
use crate::docker::{Docker, Node, State};
use crate::environment::{Environment, Provider};
use crate::event::Step;
use crate::images::Needed;
use crate::inputs::Inputs;
use crate::store::reference::Digest;
use crate::{paths, stock};

/// The label with what is known of the kept state, as JSON.
const LABEL: &str = "devenv.kept";

/// What a cluster and all that was set up in it were made of. A state fits only where all of it is the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MadeOf {
    /// The environment's name.
    pub environment: String,
    provider: String,
    node_image: String,
    /// The digest of the native cluster config.
    config: String,
    /// The key of all images, charts and manifests, Argo CD's among them.
    images: String,
}

impl MadeOf {
    /// What would be made now.
    pub fn now(inputs: &Inputs, needed: &Needed) -> anyhow::Result<Self> {
        let environment = &inputs.environment;
        let config = std::fs::read(&environment.config)
            .with_context(|| format!("read {}", environment.config.display()))?;
        Ok(Self {
            environment: environment.name.to_string(),
            provider: environment.provider.to_string(),
            node_image: environment
                .node_image
                .as_ref()
                .map_or_else(String::new, ToString::to_string),
            config: Digest::of(&config).to_string(),
            images: stock::key(inputs, needed)?,
        })
    }

    /// How it differs from what would be made now, in words.
    pub fn difference(&self, now: &Self) -> Option<String> {
        let other = |what: &str, before: &str, now: &str| {
            (before != now).then(|| format!("its {what} was {before}, and is {now} now"))
        };
        other("environment", &self.environment, &now.environment)
            .or_else(|| other("provider", &self.provider, &now.provider))
            .or_else(|| other("node image", &self.node_image, &now.node_image))
            .or_else(|| {
                (self.config != now.config).then(|| "its cluster config was another".to_owned())
            })
            .or_else(|| {
                (self.images != now.images)
                    .then(|| "its images, charts or manifests were others".to_owned())
            })
    }
}

/// A state that passed all checks, and how to make the nodes that had it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// The state.
    pub snapshot: Snapshot,
    /// The nodes, in the order in which they are started.
    pub nodes: Vec<Recipe>,
}

impl Kept {
    /// How it differs from what would be made now, in words.
    pub fn difference(&self, now: &MadeOf) -> Option<String> {
        match &self.snapshot.made_of {
            Some(made_of) => made_of.difference(now),
            None => Some("an older devenv saved it".to_owned()),
        }
    }

    /// Whether these containers are what is left of those that it was kept of: a `down` was killed half-way.
    pub fn is_left_in(&self, nodes: &[Node]) -> bool {
        let is_one = |node: &Node| self.nodes.iter().any(|recipe| recipe.id == node.id);
        !nodes.is_empty() && nodes.len() < self.nodes.len() && nodes.iter().all(is_one)
    }
}

fn note(environment: &Environment) -> String {
    format!("devenv-{}-kept", environment.id)
}

/// What is kept of an environment, if all of it is still there.
pub async fn look(docker: &Docker, environment: &Environment) -> anyhow::Result<Option<Kept>> {
    let Some(kept) = noted(docker, environment).await? else {
        return Ok(None);
    };
    for volume in kept.nodes.iter().flat_map(|node| node.volumes.values()) {
        if docker.volume(volume).await?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(kept))
}

/// What is kept of an environment, if anything: to start from, or why that isn't to be.
pub async fn fitting(
    docker: &Docker,
    inputs: &Inputs,
    needed: &Needed,
) -> anyhow::Result<Option<Result<Kept, String>>> {
    let Some(kept) = look(docker, &inputs.environment).await? else {
        return Ok(None);
    };
    Ok(Some(match kept.difference(&MadeOf::now(inputs, needed)?) {
        None => Ok(kept),
        Some(difference) => Err(difference),
    }))
}

/// Everything that is kept on this machine, by the environment's id.
pub async fn all(docker: &Docker) -> anyhow::Result<BTreeMap<String, Kept>> {
    let labels = docker.volumes(LABEL).await?;
    let read = |labels: &HashMap<String, String>| {
        let kept = serde_json::from_str(labels.get(LABEL)?).ok()?;
        Some((labels.get(MARK)?.clone(), kept))
    };
    Ok(labels.iter().filter_map(read).collect())
}

async fn noted(docker: &Docker, environment: &Environment) -> anyhow::Result<Option<Kept>> {
    let labels = docker.volume(&note(environment)).await?.unwrap_or_default();
    if labels.get(MARK) != Some(&environment.id) {
        return Ok(None);
    }
    // One that can't be read was written by another devenv.
    Ok(labels
        .get(LABEL)
        .and_then(|text| serde_json::from_str(text).ok()))
}

/// A container beside the nodes, which only the provider's program can make.
pub(super) fn not_a_node(containers: &[Node]) -> Option<&Node> {
    containers
        .iter()
        .find(|container| !pod_nodes(containers).any(|node| node.id == container.id))
}

/// Notes what is to be kept of these nodes, which may be in any state: nothing, where no state has passed all checks or the nodes
/// can't be made again.
pub async fn note_down(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Option<Kept>> {
    let Some(first) = pod_nodes(nodes).next() else {
        return Ok(None);
    };
    if not_a_node(nodes).is_some() {
        return Ok(None);
    }
    if let Some(before) = noted(docker, environment).await?
        && before.is_left_in(nodes)
    {
        return Ok(Some(before));
    }
    let snapshot = healthy(docker, environment, first).await?;
    let Some(snapshot) = snapshot.filter(|snapshot| snapshot.made_of.is_some()) else {
        return Ok(None);
    };
    let recipes = nodes.iter().map(|node| docker.recipe(&node.name));
    // One that can't be made again, because its network is gone, is removed all the same.
    let Some(nodes) = try_join_all(recipes).await?.into_iter().collect() else {
        return Ok(None);
    };
    let kept = Kept { snapshot, nodes };
    let labels: HashMap<String, String> = [
        (MARK.to_owned(), environment.id.clone()),
        (LABEL.to_owned(), serde_json::to_string(&kept)?),
    ]
    .into();
    docker.remove_volume(&note(environment)).await?;
    docker.make_volume(&note(environment), labels).await?;
    Ok(Some(kept))
}

/// The state that passed all checks, as a node that needn't run has it. Whether a state is whole only a node that runs can tell;
/// otherwise whoever puts it back finds out.
pub async fn healthy(
    docker: &Docker,
    environment: &Environment,
    node: &Node,
) -> anyhow::Result<Option<Snapshot>> {
    if node.state == State::Running
        && let Ok(there) = saved::all(docker, environment, std::slice::from_ref(node)).await
    {
        return Ok(there.into_iter().find(|it| it.name == saved::HEALTHY));
    }
    let Places { snapshots, .. } = Places::of(environment);
    let file = format!("{snapshots}/{}/meta.json", saved::HEALTHY);
    let meta = docker.file_of(&node.name, &file).await?;
    Ok(meta.and_then(|meta| serde_json::from_slice(&meta).ok()))
}

/// Removes what a `down` left that was killed half-way, but not the volumes; gives the containers that are there then.
pub async fn finish_down(
    docker: &Docker,
    environment: &Environment,
    nodes: Vec<Node>,
) -> anyhow::Result<Vec<Node>> {
    if nodes.is_empty() {
        return Ok(nodes);
    }
    match noted(docker, environment).await? {
        Some(kept) if kept.is_left_in(&nodes) => {
            super::remove_but_volumes(docker, environment, &nodes).await?;
            Ok(Vec::new())
        }
        _ => Ok(nodes),
    }
}

/// Removes what is kept; says whether there was anything. No container may use it.
pub async fn purge(docker: &Docker, environment: &Environment) -> anyhow::Result<bool> {
    let Some(labels) = docker.volume(&note(environment)).await? else {
        return Ok(false);
    };
    if labels.get(MARK) != Some(&environment.id) {
        return Ok(false);
    }
    if let Some(kept) = noted(docker, environment).await? {
        let volumes = kept.nodes.iter().flat_map(|node| node.volumes.values());
        try_join_all(volumes.map(|volume| docker.remove_volume(volume))).await?;
    }
    // Last, so that a second try finds what a first one left.
    docker.remove_volume(&note(environment)).await?;
    Ok(true)
}

/// Makes the nodes again, puts the state into them, and starts them.
pub async fn make(
    context: &Context,
    docker: &Docker,
    environment: &Environment,
    kept: &Kept,
    step: &Step,
) -> anyhow::Result<()> {
    let nodes = make_nodes(context, docker, environment, &kept.nodes, step).await?;
    start(docker, environment, kept, &nodes, step).await
}

/// Makes the nodes' containers, marked as this environment's.
pub(super) async fn make_nodes(
    context: &Context,
    docker: &Docker,
    environment: &Environment,
    recipes: &[Recipe],
    step: &Step,
) -> anyhow::Result<Vec<Node>> {
    ours::folder(&context.paths, environment)?;
    let mark = context.paths.mark(&environment.id);
    match environment.provider {
        Provider::Kind => paths::private_folder(&mark)?,
        Provider::K3d => {
            let (cluster, id) = (&environment.cluster, &environment.id);
            let labels = k3d::labels(cluster, id);
            docker.make_volume(&k3d::volume(cluster), labels).await?;
        }
        Provider::Existing => {}
    }
    for recipe in recipes {
        step.waiting(format!("making {}", recipe.name));
        let mut recipe = recipe.clone();
        recipe.label(MARK, &environment.id);
        recipe.bind_below(
            "/devenv/",
            &mark.display().to_string(),
            &kind::mark(&environment.id),
        );
        for port in recipe.published(API_PORT) {
            port.host_port = Some(api_port(port.host_port.as_deref())?.to_string());
        }
        docker.make(&recipe).await?;
    }
    containers(docker, environment).await
}

/// The port of this machine that the API server had, if it is free; else another. Docker would choose one itself, but another
/// at every start.
fn api_port(before: Option<&str>) -> anyhow::Result<u16> {
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let before = before
        .and_then(|port| port.parse().ok())
        .unwrap_or_default();
    let listener = free(before).or_else(|_| free(0));
    let port = listener
        .and_then(|listener| listener.local_addr())
        .context("find a free port for the API server")?;
    Ok(port.port())
}

/// Puts the state into nodes that never ran, each with the identity it had, and starts them.
pub(super) async fn start(
    docker: &Docker,
    environment: &Environment,
    kept: &Kept,
    nodes: &[Node],
    step: &Step,
) -> anyhow::Result<()> {
    let name = &kept.snapshot.name;
    step.waiting(format!("putting {name} back"));
    for node in nodes {
        let identity = format!(
            "{}/{name}/{}",
            Places::of(environment).snapshots,
            saved::IDENTITY
        );
        let archive = docker
            .file_of(&node.name, &identity)
            .await?
            .with_context(|| format!("the state of {} lacks {identity}", node.name))?;
        docker
            .upload(&node.name, "/", stream::iter([Bytes::from(archive)]))
            .await?;
    }
    saved::fill(docker, environment, nodes, name).await?;
    step.waiting("starting the nodes");
    saved::start(docker, nodes).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_of() -> MadeOf {
        MadeOf {
            environment: "dev".to_owned(),
            provider: "kind".to_owned(),
            node_image: "kindest/node:v1.34.3".to_owned(),
            config: "sha256:aa".to_owned(),
            images: "registry-x86_64-aa".to_owned(),
        }
    }

    #[test]
    fn a_state_fits_only_where_all_is_the_same() {
        let before = made_of();
        assert_eq!(before.difference(&made_of()), None);
        let differs = |change: fn(&mut MadeOf)| {
            let mut now = made_of();
            change(&mut now);
            before.difference(&now).unwrap()
        };
        let all = [
            differs(|now| now.environment = "ci".to_owned()),
            differs(|now| now.provider = "k3d".to_owned()),
            differs(|now| now.node_image = "kindest/node:v1.35.0".to_owned()),
            differs(|now| now.config = "sha256:bb".to_owned()),
            differs(|now| now.images = "registry-x86_64-bb".to_owned()),
        ];
        insta::assert_snapshot!(all.join("\n"), @r"
        its environment was dev, and is ci now
        its provider was kind, and is k3d now
        its node image was kindest/node:v1.34.3, and is kindest/node:v1.35.0 now
        its cluster config was another
        its images, charts or manifests were others
        ");
    }

    #[test]
    fn a_port_that_is_taken_gives_way() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let other = api_port(Some(&port.to_string())).unwrap();
        assert_ne!(other, port);
        drop(taken);
        assert_eq!(api_port(Some(&port.to_string())).unwrap(), port);
    }
}
