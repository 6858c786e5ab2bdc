//! Images and files built by the project's own `scripts/packages/build`, where there is no image registry.
//!
//! The script is called once, as `build --store FOLDER NAME...`, with everything that is missing. It writes blobs into the
//! store's `blobs/sha256/`, talks on stderr, and for each name writes one line of JSON to stdout:
//! `{"name": …, "digest": …, "size": …, "mediaType": …}`. It doesn't touch the index: what it delivered is hashed here once
//! and entered here.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::layout::{Descriptor, Entry, Store, Verify};
use super::{Name, Origin};
use crate::error::Failure;
use crate::event::Step;
use crate::exec::{Cmd, run_lines};
use crate::stop::Stop;

/// Where the script is, below the project's root.
const SCRIPT: &str = "scripts/packages/build";
/// What the last build took, beside the store's index; only to be able to tell.
const LAST_BUILD: &str = "last-build.json";

/// One line of the script's stdout.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Built {
    name: String,
    digest: String,
    size: u64,
    media_type: String,
}

#[derive(Serialize, Deserialize)]
struct LastBuild {
    names: usize,
    seconds: u64,
}

/// Builds what is named into the store.
pub async fn build(
    store: &Store,
    project: &Path,
    names: &[Name],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Vec<Entry>> {
    let script = project.join(SCRIPT);
    if !script.exists() {
        return Err(Failure::Other {
            message: format!(
                "the environment says `images: packages`, and {} names are missing in the store, but {} isn't there to build them",
                names.len(),
                script.display()
            ),
            hint: "run devenv in the project's folder, or choose an environment with `images: registry`".to_owned(),
        }
        .into());
    }
    step.waiting(announcement(names.len(), last_build(store).as_ref()));
    let begun = Instant::now();
    let cmd = Cmd::new("build")
        .at(script)
        .arg("--store")
        .arg(store.folder())
        .args(names.iter().map(Name::to_string));
    let mut lines = Vec::new();
    run_lines(&cmd, stop, step, |line| {
        if line.trim().is_empty() {
            return;
        }
        lines.push(line.to_owned());
        step.waiting(format!("{} of {} built", lines.len(), names.len()));
    })
    .await
    .context("can't build the images from package registries")?;
    let entries = read(&lines, names)?;

    step.waiting("verifying what was built");
    let checked = (store.clone(), entries.clone());
    tokio::task::spawn_blocking(move || {
        let (store, entries) = checked;
        for entry in &entries {
            store
                .verify(entry, Verify::Digests)
                .with_context(|| format!("{SCRIPT} says that {} is built", entry.name))?;
        }
        store.enter(&entries)
    })
    .await
    .context("the check of what was built broke off")??;
    remember(store, names.len(), begun.elapsed());
    Ok(entries)
}

/// What a build will do, and how long it took last time.
fn announcement(names: usize, last: Option<&LastBuild>) -> String {
    let what = format!("building {names} images and files from package registries");
    match last {
        Some(last) => format!(
            "{what}; the last build, of {}, took {}",
            last.names,
            humantime::format_duration(Duration::from_secs(last.seconds))
        ),
        None => format!("{what}; the first time takes minutes"),
    }
}

/// What the last build took, where it's known.
fn last_build(store: &Store) -> Option<LastBuild> {
    serde_json::from_slice(&fs::read(store.folder().join(LAST_BUILD)).ok()?).ok()
}

fn remember(store: &Store, names: usize, took: Duration) {
    let last = LastBuild {
        names,
        seconds: took.as_secs(),
    };
    if let Ok(text) = serde_json::to_vec(&last) {
        // Nothing depends on it.
        let _ = fs::write(store.folder().join(LAST_BUILD), text);
    }
}

/// The entries that the script's stdout names; all names must be among them.
fn read(lines: &[String], names: &[Name]) -> anyhow::Result<Vec<Entry>> {
    let entries = lines
        .iter()
        .map(|line| {
            parse(line).with_context(|| format!("can't read what {SCRIPT} wrote: `{line}`"))
        })
        .collect::<anyhow::Result<Vec<Entry>>>()?;
    let missing: Vec<String> = names
        .iter()
        .filter(|name| !entries.iter().any(|entry| entry.name == **name))
        .map(Name::to_string)
        .collect();
    if !missing.is_empty() {
        return Err(Failure::Other {
            message: format!("{SCRIPT} built everything but {}", missing.join(", ")),
            hint: "run the same command again with -v to see what it says; a name that no recipe makes must not be in a bundle of an environment with `images: packages`".to_owned(),
        }
        .into());
    }
    Ok(entries)
}

fn parse(line: &str) -> anyhow::Result<Entry> {
    let built: Built = serde_json::from_str(line)?;
    Ok(Entry {
        name: built.name.parse()?,
        origin: Origin::Packages,
        target: Descriptor {
            media_type: built.media_type,
            digest: built.digest.parse()?,
            size: built.size,
        },
        resolved: None,
    })
}
