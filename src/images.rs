//! The images of an environment: which ones, in which order they are needed, and on their way from the store into the nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

use crate::bundle::Bundle;
use crate::cluster;
use crate::context::Context;
use crate::docker::{Docker, Node, Platform, State};
use crate::event::Step;
use crate::gitops::settle::Arrived;
use crate::gitops::{argocd, upstream};
use crate::inputs::Inputs;
use crate::pins;
use crate::store::reference::ImageReference;
use crate::store::{self, Filled, Name, Origin, Sources, Store, Wanted, import};
use crate::wait::{Look, Wait, wait_for};

/// What an environment needs from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    /// The image that nodes are made of, where they are; it goes to Docker, all others go into the nodes.
    pub node: Option<Wanted>,
    /// The images of what the provider makes beside the nodes; they go to Docker, too.
    pub helpers: Vec<Wanted>,
    /// The images that run in the cluster, in groups, the first needed first. No image is in two of them.
    pub groups: Vec<Vec<Wanted>>,
    /// Argo CD's manifest.
    pub manifest: Wanted,
    /// The charts and manifests that bundles take from upstream.
    pub upstream: Vec<Wanted>,
}

impl Needed {
    /// By an environment, under the names that are used there.
    pub fn by(inputs: &Inputs) -> anyhow::Result<Self> {
        let origin = Origin::from(inputs.environment.images);
        let wanted = |name: Name| Wanted {
            name,
            origin,
            digest: None,
        };
        let here = |upstream: &ImageReference| {
            wanted(Name::Image(inputs.environment.image(upstream).clone()))
        };
        let mut seen = BTreeSet::new();
        let mut group = |images: Vec<Wanted>| -> Vec<Wanted> {
            images
                .into_iter()
                .filter(|image| seen.insert(image.name.clone()))
                .collect()
        };
        // What every pod needs comes before everything.
        let system = inputs.environment.system_images.iter();
        let argocd = [argocd::IMAGE.parse()?, argocd::REDIS_IMAGE.parse()?];
        let mut groups = vec![group(system.chain(&argocd).map(here).collect())];
        let waves: BTreeSet<u8> = inputs.bundles.iter().map(|bundle| bundle.wave).collect();
        for wave in waves {
            let of_wave = |bundle: &&Bundle| bundle.wave == wave;
            groups.push(group(
                inputs
                    .bundles
                    .iter()
                    .filter(of_wave)
                    .flat_map(|bundle| &bundle.images)
                    .map(here)
                    .collect(),
            ));
        }
        groups.retain(|group| !group.is_empty());
        let node = inputs.environment.node_image.clone();
        let node = node.map(|image| wanted(Name::Image(image)));
        let helpers = inputs.cluster_config.helper_images().into_iter();
        let helpers = helpers
            .map(|upstream| Ok(here(&upstream.parse()?)))
            .collect::<anyhow::Result<_>>()?;
        let manifest = match inputs.environment.addresses.get(argocd::MANIFEST) {
            Some(address) => Wanted {
                digest: inputs.pins.get(address).cloned(),
                ..wanted(Name::File(address.clone()))
            },
            None => Wanted {
                digest: Some(format!("sha256:{}", argocd::MANIFEST_SHA256).parse()?),
                ..wanted(Name::File(argocd::MANIFEST.to_owned()))
            },
        };
        let upstream = upstream::wanted(inputs);
        Ok(Self {
            node,
            helpers,
            groups,
            manifest,
            upstream,
        })
    }

    /// All of it.
    pub fn all(&self) -> Vec<Wanted> {
        let images = self.node.iter().chain(&self.helpers);
        let images = images.chain(self.groups.iter().flatten()).cloned();
        images.chain(self.files()).collect()
    }

    /// The files among it: all that a cluster needs whose nodes pull their images themselves.
    pub fn files(&self) -> Vec<Wanted> {
        let files = [&self.manifest].into_iter().chain(&self.upstream);
        files.cloned().collect()
    }

    /// What `up` wants to have in the store.
    pub fn in_store(&self, inputs: &Inputs) -> Vec<Wanted> {
        match inputs.environment.existing {
            Some(_) => self.files(),
            None => self.all(),
        }
    }

    /// The images that run in the cluster.
    pub fn in_nodes(&self) -> Vec<Wanted> {
        self.groups.concat()
    }
}

/// Fills the store with what is wanted of what an environment needs, and writes down the checksums of what had none.
pub async fn fill(
    context: &Context,
    sources: Sources<'_>,
    store: &Store,
    inputs: &Inputs,
    needed: &Needed,
    wanted: &[Wanted],
    step: &Step,
) -> anyhow::Result<Filled> {
    let filled = store::fill(store, wanted, sources, &context.stop, step).await?;
    for address in pins::record(&inputs.environment.root, store, &needed.upstream)? {
        context.events.notice(format!(
            "the checksum of {address} was not known and is now in bundles/upstream.lock: commit it"
        ));
    }
    Ok(filled)
}

/// Where what is missing in the store comes from, for nodes in this Docker.
pub fn sources<'a>(docker: &'a Docker, inputs: &'a Inputs) -> Sources<'a> {
    sources_for(docker.server_platform(), inputs)
}

/// The same, for nodes of this platform.
pub fn sources_for<'a>(platform: &'a Platform, inputs: &'a Inputs) -> Sources<'a> {
    Sources {
        project: &inputs.environment.root,
        platform,
    }
}

/// Brings all images into all nodes, group by group, beside whatever creates the nodes; tells `arrived` after each group.
/// Says how many were loaded.
pub async fn load(
    context: &Context,
    docker: &Docker,
    store: &Store,
    inputs: &Inputs,
    needed: &Needed,
    arrived: &watch::Sender<Arrived>,
    step: &Step,
) -> anyhow::Result<usize> {
    let nodes = wait_for_nodes(context, docker, inputs, step).await?;
    if lacking(docker, store, &nodes, needed)
        .await
        .is_ok_and(|lacking| lacking.is_empty())
    {
        arrived.send_replace(None);
        return Ok(0);
    }
    let mut loaded = 0;
    for group in &needed.groups {
        let sources = sources(docker, inputs);
        let imported =
            store::deliver(docker, store, &nodes, group, sources, &context.stop, step).await?;
        loaded += imported
            .iter()
            .map(|imported| imported.images)
            .sum::<usize>();
        arrived.send_modify(|names| {
            if let Some(names) = names {
                names.extend(group.iter().map(|wanted| wanted.name.to_string()));
            }
        });
    }
    arrived.send_replace(None);
    Ok(loaded)
}

/// What the nodes lack: (node, image, what of it). An error where a node's containerd doesn't answer yet.
pub async fn lacking(
    docker: &Docker,
    store: &Store,
    nodes: &[Node],
    needed: &Needed,
) -> anyhow::Result<Vec<(String, String, String)>> {
    let images = store::images(store, &needed.in_nodes())?;
    let mut lacking = Vec::new();
    for node in nodes {
        let inventory = import::inventory(docker, &node.name).await?;
        lacking.extend(images.iter().filter_map(|image| {
            let lack = inventory.lacks(image)?;
            Some((node.name.clone(), image.name.to_string(), lack))
        }));
    }
    Ok(lacking)
}

async fn wait_for_nodes(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    step: &Step,
) -> anyhow::Result<Vec<Node>> {
    let environment = &inputs.environment;
    let wait = Wait {
        what: format!("the nodes of {}", environment.cluster),
        within: context.timeout,
        every: Duration::from_millis(100),
        hint: format!("docker ps -a --filter {}", cluster::filter(environment)),
    };
    let expected = inputs.cluster_config.node_count();
    wait_for(&wait, step, &context.stop, || async {
        let nodes = cluster::containers(docker, environment).await?;
        let running: Vec<Node> = cluster::pod_nodes(&nodes)
            .filter(|node| node.state == State::Running)
            .cloned()
            .collect();
        Ok(match running.len() {
            count if count >= expected => Look::Ready(running),
            count => Look::NotYet(format!("{count} of {expected} nodes run")),
        })
    })
    .await
}

/// A file of the store, as text.
pub fn read_file(store: &Store, wanted: &Wanted) -> anyhow::Result<String> {
    let entry = store.find(&wanted.name, wanted.origin)?;
    let entry = entry.ok_or_else(|| {
        anyhow::anyhow!(
            "{} is not in the store {}",
            wanted.name,
            store.folder().display()
        )
    })?;
    String::from_utf8(store.read(&wanted.name.to_string(), &entry.target)?).map_err(Into::into)
}
