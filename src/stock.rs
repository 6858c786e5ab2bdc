//! `devenv images`: what the environment needs from the store, what of it is there, a key for a cache of it; and a private
//! registry filled from it.
//!
//! The key is made of what the store is filled from and of nothing else, so that a CI system's cache of the store hits exactly
//! when it holds all that is needed. Docker isn't asked: a key is wanted before there is anything.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::cli::{Images, Output};
use crate::context::Context;
use crate::docker::Platform;
use crate::environment::ImageOrigin;
use crate::error::{Exit, Failure};
use crate::existing;
use crate::gitops::git::{self, Mode};
use crate::images::{self, Needed};
use crate::inputs::{self, Inputs};
use crate::report::bytes;
use crate::store::{self, Descriptor, Name, Origin, Store, Wanted};

/// Changes when a store that was filled by an older devenv is of no use to a newer one.
const LAYOUT: &str = "1";

/// Does what was asked for; gives the text for stdout with the exit code.
pub async fn images(
    context: &Context,
    what: Images,
    output: Output,
) -> anyhow::Result<(Exit, String)> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let needed = Needed::by(&inputs)?;
    let text = match what {
        Images::Push => {
            push(context, &inputs, &needed).await?;
            String::new()
        }
        Images::Key => {
            let key = key(&inputs, &needed)?;
            match output {
                Output::Text => format!("{key}\n"),
                Output::Json => format!("{}\n", serde_json::json!({ "key": key })),
            }
        }
        Images::List => {
            let store = Store::look(&context.paths.store())?;
            let (listed, total) = list(&needed, store.as_ref())?;
            match output {
                Output::Text => table(&listed, total),
                Output::Json => format!("{}\n", serde_json::to_string(&listed)?),
            }
        }
    };
    Ok((Exit::Ready, text))
}

/// Fills the private registry from the store, and the store where it lacks something.
async fn push(context: &Context, inputs: &Inputs, needed: &Needed) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    let registry = environment
        .existing
        .as_ref()
        .and_then(|existing| existing.registry.as_ref());
    let registry = registry.ok_or_else(|| Failure::Usage {
        message: format!("{} names no registry to push to", environment.name),
        hint: format!(
            "with `provider: existing`, write `registry: registry.example.org/platform` into {}",
            environment.file.display()
        ),
    })?;
    let client = existing::client(context, environment).await?;
    let platform = existing::platform(&client, environment).await?;
    refuse_foreign_packages(inputs, &platform)?;

    let step = context.events.step("store");
    let store = Store::open(&context.paths.store())?;
    let (sources, wanted) = (images::sources_for(&platform, inputs), needed.in_nodes());
    let filled = images::fill(context, sources, &store, inputs, needed, &wanted, &step).await?;
    match filled.fetched.len() {
        0 => step.unchanged(format!("all {} images are there", filled.found)),
        count => step.done(format!(
            "{count} images fetched, {} were there",
            filled.found
        )),
    }

    let step = context.events.step("push");
    let images = store::images(&store, &wanted)?
        .into_iter()
        .map(|image| {
            let place = registry.place(&image.name)?;
            Ok((image, place))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let pushed = store::push::push(&store, &images, &context.stop, &step).await?;
    match pushed.copied {
        0 => step.unchanged("all are there"),
        count => step.done(format!("{count} copied")),
    }
    let store::push::Pushed {
        copied,
        there,
        bytes: sent,
    } = pushed;
    context.events.verdict(match copied {
        0 => format!("nothing to push: {registry} has all {there} images"),
        _ => format!(
            "{registry} has all {} images: {copied} copied ({} sent), {there} were there",
            copied + there,
            bytes(sent)
        ),
    });
    Ok(())
}

/// What is built from packages is built for this machine.
fn refuse_foreign_packages(inputs: &Inputs, platform: &Platform) -> Result<(), Failure> {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let is_built = inputs.environment.images == ImageOrigin::Packages;
    if !is_built || platform.architecture == here {
        return Ok(());
    }
    Err(Failure::Other {
        message: format!(
            "the nodes of the context {} are {}, and images that are built here are {here}",
            inputs.environment.cluster, platform.architecture
        ),
        hint: "run `devenv images push` on a machine like the nodes".to_owned(),
    })
}

/// "packages-x86_64-3f2a…": the origin and the platform for the eye, and the digest of everything.
pub fn key(inputs: &Inputs, needed: &Needed) -> anyhow::Result<String> {
    let origin = Origin::from(inputs.environment.images);
    let mut parts: BTreeSet<String> = needed.all().iter().map(part).collect();
    if origin == Origin::Packages {
        let scripts = inputs.environment.root.join("scripts/packages");
        if scripts.is_dir() {
            for file in git::read_folder(&scripts, "scripts/packages")? {
                let mode = match file.mode {
                    Mode::Plain => "plain",
                    Mode::Executable => "executable",
                    Mode::Link => "link",
                };
                let digest = hex(&Sha256::digest(&file.bytes));
                parts.insert(format!("{} {mode} {digest}", file.path));
            }
        }
    }
    let architecture = std::env::consts::ARCH;
    let mut digest = Sha256::new();
    digest.update(format!("{LAYOUT} {architecture}\n"));
    for part in &parts {
        digest.update(part);
        digest.update("\n");
    }
    let digest = hex(&digest.finalize());
    Ok(format!("{origin}-{architecture}-{}", &digest[..32]))
}

fn part(wanted: &Wanted) -> String {
    let digest = wanted.digest.as_ref();
    let digest = digest.map_or(String::new(), ToString::to_string);
    format!("{} {} {digest}", wanted.origin, wanted.name)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One image or file, as it stands in `-o json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    /// "image" or "file"
    kind: &'static str,
    origin: String,
    in_store: bool,
    /// Bytes, where it is in the store; layers that images share count for each.
    size: Option<u64>,
}

/// All of it, and how many bytes of it are in the store, shared layers counted once.
fn list(needed: &Needed, store: Option<&Store>) -> anyhow::Result<(Vec<Listed>, u64)> {
    let mut listed = Vec::new();
    let mut blobs = BTreeMap::<String, u64>::new();
    for wanted in needed.all() {
        let parts = match store {
            Some(store) => parts(store, &wanted)?,
            None => None,
        };
        for blob in parts.iter().flatten() {
            blobs.insert(blob.digest.to_string(), blob.size);
        }
        listed.push(Listed {
            name: wanted.name.to_string(),
            kind: match wanted.name {
                Name::Image(_) => "image",
                Name::File(_) => "file",
            },
            origin: wanted.origin.to_string(),
            in_store: parts.is_some(),
            size: parts.map(|parts| parts.iter().map(|blob| blob.size).sum()),
        });
    }
    Ok((listed, blobs.into_values().sum()))
}

/// What it consists of in the store; nothing where it isn't there as it is wanted.
fn parts(store: &Store, wanted: &Wanted) -> anyhow::Result<Option<Vec<Descriptor>>> {
    let found = store.find(&wanted.name, wanted.origin)?.filter(|entry| {
        let digest = wanted.digest.as_ref();
        digest.is_none_or(|digest| *digest == entry.target.digest) && store.is_whole(entry)
    });
    let Some(entry) = found else { return Ok(None) };
    Ok(Some(match wanted.name {
        Name::File(_) => vec![entry.target],
        Name::Image(_) => store.image(&entry)?.blobs().cloned().collect(),
    }))
}

fn table(listed: &[Listed], total: u64) -> String {
    let width = listed
        .iter()
        .map(|listed| listed.name.len())
        .max()
        .unwrap_or_default();
    let mut text = String::new();
    for listed in listed {
        let size = match listed.size {
            Some(size) => bytes(size),
            None => "not in the store".to_owned(),
        };
        text += &format!("{:5}  {:width$}  {size}\n", listed.kind, listed.name);
    }
    let there = listed.iter().filter(|listed| listed.in_store).count();
    text + &format!(
        "\n{there} of {} in the store, {} of it; layers that images share counted once\n",
        listed.len(),
        bytes(total)
    )
}
