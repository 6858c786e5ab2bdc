//! The store: every image and file an environment needs, on this machine, content-addressed and verified.
//!
//! [`layout`] is the folder, [`registry`] and [`packages`] fill it, [`archive`] streams images out of it, [`import`] brings
//! them into nodes. Entries are keyed by name and origin: the same name from another origin is another entry.

pub mod archive;
pub mod import;
pub mod layout;
pub mod packages;
pub mod push;
pub mod reference;
pub mod registry;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context as _;
use futures::future;

pub use layout::{DamagedBlob, Descriptor, Entry, Image, Store, Verify};
use reference::{Digest, ImageReference};

use crate::docker::{Docker, Node, Platform};
use crate::environment::ImageOrigin;
use crate::event::Step;
use crate::stop::Stop;

/// Where something came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From an image registry or a file server, as its name says.
    Registry,
    /// Built by `scripts/packages` from package registries.
    Packages,
}

/// What something is called: an image by its reference, a file by its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// An image.
    Image(ImageReference),
    /// A file, by its http(s) address.
    File(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Registry => "registry",
            Self::Packages => "packages",
        })
    }
}

impl FromStr for Origin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "registry" => Ok(Self::Registry),
            "packages" => Ok(Self::Packages),
            _ => anyhow::bail!("unknown origin `{text}`, expected `registry` or `packages`"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(reference) => reference.fmt(formatter),
            Self::File(address) => address.fmt(formatter),
        }
    }
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.contains("://") {
            true => Ok(Self::File(text.to_owned())),
            false => Ok(Self::Image(text.parse()?)),
        }
    }
}

impl From<ImageOrigin> for Origin {
    fn from(origin: ImageOrigin) -> Self {
        match origin {
            ImageOrigin::Registry => Self::Registry,
            ImageOrigin::Packages => Self::Packages,
        }
    }
}

/// Something that must be in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What.
    pub name: Name,
    /// From where: the same name from another origin won't do.
    pub origin: Origin,
    /// The digest a file must have, where it's known. An image that is pinned has it in its name.
    pub digest: Option<Digest>,
}

/// What is needed to fetch or build what is missing.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The project's root, with `scripts/packages/build`.
    pub project: &'a Path,
    /// The platform of the nodes.
    pub platform: &'a Platform,
}

/// What came of filling the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filled {
    /// How much was there.
    pub found: usize,
    /// What was fetched or built.
    pub fetched: Vec<Entry>,
}

impl Filled {
    /// Bytes of what was fetched, shared layers counted once.
    pub fn bytes(&self, store: &Store) -> u64 {
        let mut sizes = std::collections::HashMap::new();
        for entry in &self.fetched {
            sizes.insert(entry.target.digest.clone(), entry.target.size);
            if let Ok(image) = store.image(entry) {
                sizes.extend(image.blobs().map(|blob| (blob.digest.clone(), blob.size)));
            }
        }
        sizes.into_values().sum()
    }
}

/// What of `wanted` isn't in the store, or not whole. Nothing is read but the index and the manifests.
pub fn missing(store: &Store, wanted: &[Wanted]) -> anyhow::Result<Vec<Wanted>> {
    let entries = store.entries()?;
    let is_there = |wanted: &Wanted| {
        entries.iter().any(|entry| {
            entry.name == wanted.name
                && entry.origin == wanted.origin
                && wanted
                    .digest
                    .as_ref()
                    .is_none_or(|digest| *digest == entry.target.digest)
                && store.is_whole(entry)
        })
    };
    let mut missing: Vec<Wanted> = Vec::new();
    for wanted in wanted {
        if !is_there(wanted) && !missing.contains(wanted) {
            missing.push(wanted.clone());
        }
    }
    Ok(missing)
}

/// What of `missing` was there and isn't whole any more.
fn damaged(store: &Store, missing: &[Wanted]) -> anyhow::Result<Vec<DamagedBlob>> {
    let entries = store.entries()?;
    let damage = |wanted: &Wanted| {
        let entry = entries
            .iter()
            .find(|entry| entry.name == wanted.name && entry.origin == wanted.origin)?;
        let error = store.verify(entry, Verify::Sizes).err()?;
        error.downcast_ref::<DamagedBlob>().cloned()
    };
    let mut damaged: Vec<DamagedBlob> = Vec::new();
    for blob in missing.iter().filter_map(damage) {
        if !damaged.iter().any(|known| known.digest == blob.digest) {
            damaged.push(blob);
        }
    }
    Ok(damaged)
}

/// Fetches or builds what is missing, in the order given where there is one.
pub async fn fill(
    store: &Store,
    wanted: &[Wanted],
    sources: Sources<'_>,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Filled> {
    let missing = missing(store, wanted)?;
    let damaged: Vec<Step> = damaged(store, &missing)?
        .iter()
        .map(|damaged| step.child(damaged.to_string()))
        .collect();
    let fetched = fetch(store, &missing, sources, stop, step).await?;
    for step in damaged {
        step.done("fetched anew");
    }
    Ok(Filled {
        found: wanted.len() - missing.len(),
        fetched,
    })
}

async fn fetch(
    store: &Store,
    missing: &[Wanted],
    sources: Sources<'_>,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Vec<Entry>> {
    let (mut to_build, mut to_pull, mut to_download) = (Vec::new(), Vec::new(), Vec::new());
    for wanted in missing {
        let Wanted {
            name,
            origin,
            digest,
        } = wanted;
        match (origin, name) {
            (Origin::Packages, _) => to_build.push(wanted.clone()),
            (Origin::Registry, Name::Image(reference)) => to_pull.push(reference.clone()),
            (Origin::Registry, Name::File(address)) => to_download.push((address, digest)),
        }
    }
    let build = async {
        match to_build.is_empty() {
            true => Ok(Vec::new()),
            false => packages::build(store, sources.project, &to_build, stop, step).await,
        }
    };
    let pull = registry::pull(store, &to_pull, sources.platform, stop, step);
    let download = future::try_join_all(to_download.into_iter().map(|(address, digest)| {
        registry::fetch_file(store, address, digest.as_ref(), stop, step)
    }));
    let (built, pulled, downloaded) = future::try_join3(build, pull, download).await?;
    Ok([built, pulled, downloaded].concat())
}

/// The images among `wanted`, in their order. All must be in the store.
pub fn images(store: &Store, wanted: &[Wanted]) -> anyhow::Result<Vec<Image>> {
    let entries = store.entries()?;
    wanted
        .iter()
        .filter(|wanted| matches!(wanted.name, Name::Image(_)))
        .map(|wanted| {
            let entry = entries
                .iter()
                .find(|entry| entry.name == wanted.name && entry.origin == wanted.origin)
                .with_context(|| format!("{} isn't in the store", wanted.name))?;
            store.image(entry)
        })
        .collect()
}

/// Brings the images among `wanted` into all nodes, in their order, and proves that they are there. A blob of the store that
/// turns out to be damaged on the way is named, fetched anew, and the import is repeated once.
pub async fn deliver(
    docker: &Docker,
    store: &Store,
    nodes: &[Node],
    wanted: &[Wanted],
    sources: Sources<'_>,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Vec<import::Imported>> {
    let import = async || {
        let images = images(store, wanted)?;
        import::import_into_all(docker, store, nodes, &images, stop, step).await
    };
    match import().await {
        Ok(imported) => Ok(imported),
        Err(error) => {
            mend(error, store, wanted, sources, stop, step).await?;
            import().await
        }
    }
}

/// Like [`deliver`], but into Docker itself, by `docker load`; an image that is there with the right content is left alone.
pub async fn load(
    docker: &Docker,
    store: &Store,
    wanted: &Wanted,
    sources: Sources<'_>,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<bool> {
    let wanted = std::slice::from_ref(wanted);
    let load =
        async || import::load_into_docker(docker, store, &images(store, wanted)?, stop, step).await;
    match load().await {
        Ok(loaded) => Ok(loaded),
        Err(error) => {
            mend(error, store, wanted, sources, stop, step).await?;
            load().await
        }
    }
}

/// Takes a damaged blob out of the store and fetches it anew; any other error is returned as it is.
async fn mend(
    error: anyhow::Error,
    store: &Store,
    wanted: &[Wanted],
    sources: Sources<'_>,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<()> {
    let Some(damaged) = archive::damage(&error) else {
        return Err(error);
    };
    let step = step.child(damaged.to_string());
    store.remove_blob(&damaged.digest)?;
    fetch(store, &missing(store, wanted)?, sources, stop, &step).await?;
    step.done("fetched anew");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_images_or_addresses() {
        for (text, shown) in [
            ("redis:7", "docker.io/library/redis:7"),
            ("https://x.test/a:b", "https://x.test/a:b"),
        ] {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.to_string(), shown);
            assert_eq!(shown.parse::<Name>().unwrap(), name);
        }
        assert!("Redis".parse::<Name>().is_err());
    }
}
