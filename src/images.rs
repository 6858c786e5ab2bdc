//! The images of an environment: which ones, in which order they are needed, from the store into the nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

use crate::bundle::Bundle;
use crate::context::Context;
use crate::docker::Docker;
use crate::environment::{Environment, ImageOrigin};
use crate::event::Step;
use crate::gitops::argocd;
use crate::gitops::settle::Arrived;
use crate::inputs::Inputs;
use crate::store::reference::ImageReference;
use crate::store::{Image, Name, Origin, Store, archive, import};
use crate::wait::{Look, Wait, wait_for};

/// What an environment needs from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The image that nodes are made of; it goes to Docker, all others go into the nodes.
    pub node: ImageReference,
    /// The images that run in the cluster, in groups, the first needed first. No image is in two of them.
    pub groups: Vec<Vec<ImageReference>>,
}

impl Wanted {
    /// Of an environment, under the names that are used there.
    pub fn of(inputs: &Inputs) -> anyhow::Result<Self> {
        let here = |upstream: &ImageReference| inputs.environment.image(upstream).clone();
        let mut seen = BTreeSet::new();
        let mut group = |images: Vec<ImageReference>| -> Vec<ImageReference> {
            images
                .into_iter()
                .filter(|image| seen.insert(image.to_string()))
                .collect()
        };
        let argocd = [argocd::IMAGE, argocd::REDIS_IMAGE]
            .into_iter()
            .map(str::parse::<ImageReference>);
        let argocd = argocd.collect::<Result<Vec<_>, _>>()?;
        let mut groups = vec![group(argocd.iter().map(here).collect())];
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
        Ok(Self {
            node: inputs.environment.node_image.clone(),
            groups,
        })
    }

    /// Everything that has to be in the store: all images, and Argo CD's manifest.
    pub fn names(&self) -> Vec<Name> {
        let images = std::iter::once(&self.node).chain(self.groups.iter().flatten());
        images
            .cloned()
            .map(Name::Image)
            .chain([Name::File(argocd::MANIFEST.to_owned())])
            .collect()
    }
}

/// Where an environment's images come from.
pub fn origin(environment: &Environment) -> Origin {
    match environment.images {
        ImageOrigin::Registry => Origin::Registry,
        ImageOrigin::Packages => Origin::Packages,
    }
}

/// An image that [`store::fill`] has brought in.
pub fn find(store: &Store, reference: &ImageReference, origin: Origin) -> anyhow::Result<Image> {
    let name = Name::Image(reference.clone());
    let entry = store.find(&name, origin)?;
    let entry = entry.ok_or_else(|| {
        anyhow::anyhow!(
            "{reference} is not in the store {}",
            store.folder().display()
        )
    })?;
    store.image(&entry)
}

/// The node image in Docker; loads it from the store where Docker hasn't it, or has another one of that name.
pub async fn load_node_image(
    docker: &Docker,
    store: &Store,
    inputs: &Inputs,
    step: &Step,
) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    let image = find(store, &environment.node_image, origin(environment))?;
    let name = archive::docker_name(&environment.node_image);
    if docker
        .image_id(&name)
        .await?
        .is_some_and(|id| id == image.config.digest || id == image.manifest.digest)
    {
        return Ok(());
    }
    let step = step.child("node image into Docker");
    let archive = archive::for_docker(store, std::slice::from_ref(&image));
    let size = archive.size();
    docker.load_image(archive.stream()).await?;
    step.done(format!("{} MB", size / 1_000_000));
    Ok(())
}

/// Brings all images into all nodes, group by group, beside whatever creates the nodes; tells `arrived` after each group.
pub async fn load(
    context: &Context,
    docker: &Docker,
    store: &Store,
    inputs: &Inputs,
    wanted: &Wanted,
    arrived: &watch::Sender<Arrived>,
    step: &Step,
) -> anyhow::Result<usize> {
    let environment = &inputs.environment;
    let wait = Wait {
        what: format!("the nodes of {}", environment.cluster),
        within: context.timeout,
        every: Duration::from_millis(100),
        hint: format!(
            "docker ps -a --filter label={}={}",
            crate::cluster::kind::LABEL,
            environment.cluster
        ),
    };
    let nodes = wait_for(&wait, step, &context.stop, || async {
        let nodes = docker.nodes(&environment.cluster).await?;
        let running: Vec<_> = crate::cluster::kind::workers_and_control_planes(&nodes)
            .filter(|node| node.state == crate::docker::State::Running)
            .cloned()
            .collect();
        let expected = inputs.cluster_config.node_count();
        Ok(match running.len() {
            count if count >= expected => Look::Ready(running),
            count => Look::NotYet(format!("{count} of {expected} nodes run")),
        })
    })
    .await?;
    let mut loaded = 0;
    for group in &wanted.groups {
        let images: Vec<Image> = group
            .iter()
            .map(|reference| find(store, reference, origin(environment)))
            .collect::<Result<_, _>>()?;
        let imported =
            import::import_into_all(docker, store, &nodes, &images, &context.stop, step).await?;
        loaded += imported
            .iter()
            .map(|imported| imported.images)
            .sum::<usize>();
        arrived.send_modify(|names| {
            if let Some(names) = names {
                names.extend(group.iter().map(ToString::to_string));
            }
        });
    }
    arrived.send_replace(None);
    Ok(loaded)
}

/// Fills the store with what is missing in it.
pub async fn fill(
    context: &Context,
    _docker: &Docker,
    store: &Store,
    inputs: &Inputs,
    wanted: &Wanted,
    step: &Step,
) -> anyhow::Result<usize> {
    let missing = missing(store, &wanted.names(), origin(&inputs.environment))?;
    if !missing.is_empty() {
        crate::store::packages::build(
            store,
            &inputs.environment.root,
            &missing,
            &context.stop,
            step,
        )
        .await?;
    }
    Ok(missing.len())
}

/// The names that the store hasn't whole.
pub fn missing(store: &Store, names: &[Name], origin: Origin) -> anyhow::Result<Vec<Name>> {
    let mut missing = Vec::new();
    for name in names {
        if !store
            .find(name, origin)?
            .is_some_and(|entry| store.is_whole(&entry))
        {
            missing.push(name.clone());
        }
    }
    Ok(missing)
}

/// A file of the store, as text.
pub fn read_file(store: &Store, address: &str, origin: Origin) -> anyhow::Result<String> {
    let entry = store.find(&Name::File(address.to_owned()), origin)?;
    let entry = entry.ok_or_else(|| {
        anyhow::anyhow!("{address} is not in the store {}", store.folder().display())
    })?;
    String::from_utf8(store.read(address, &entry.target)?).map_err(Into::into)
}
