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

use super::layout::{DamagedBlob, Descriptor, Entry, Store, Verify};
use super::{Name, Origin, Wanted};
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
    wanted: &[Wanted],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Vec<Entry>> {
    let names: Vec<Name> = wanted.iter().map(|wanted| wanted.name.clone()).collect();
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
    let entries = read(&lines, &names)?;
    refuse_other_content(&entries, wanted)?;

    step.waiting("verifying what was built");
    let checked = (store.clone(), entries.clone());
    tokio::task::spawn_blocking(move || {
        let (store, entries) = checked;
        for entry in &entries {
            store
                .verify(entry, Verify::Digests)
                .map_err(|error| not_what_it_says(&store, entry, error))?;
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

/// What was delivered under a wrong digest must not be found there by the next run.
fn not_what_it_says(store: &Store, entry: &Entry, error: anyhow::Error) -> anyhow::Error {
    let Some(damaged) = error.downcast_ref::<DamagedBlob>() else {
        return error.context(format!("{SCRIPT} says that {} is built", entry.name));
    };
    let _ = store.remove_blob(&damaged.digest);
    Failure::Other {
        message: format!(
            "{SCRIPT} says that {} is built, but {}: {}",
            entry.name,
            damaged.path.display(),
            damaged.what
        ),
        hint: "that file was removed; run the same command again with -v to see how it is built"
            .to_owned(),
    }
    .into()
}

/// A file whose digest is known must have it, however it was made.
fn refuse_other_content(entries: &[Entry], wanted: &[Wanted]) -> anyhow::Result<()> {
    for Wanted { name, digest, .. } in wanted {
        let built = entries.iter().find(|entry| entry.name == *name);
        let (Some(expected), Some(built)) = (digest, built) else {
            continue;
        };
        if built.target.digest != *expected {
            return Err(Failure::Other {
                message: format!(
                    "{SCRIPT} built {name} with the digest {}, expected {expected}",
                    built.target.digest
                ),
                hint: "see that scripts/packages is of the same version as devenv: `git status scripts/packages`, `cargo install --path . --locked`"
                    .to_owned(),
            }
            .into());
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use insta::assert_snapshot;

    use super::super::testing::empty;
    use super::*;
    use crate::error::explain;
    use crate::event::{Event, Events};

    /// A project whose script does `body`, with `$store` and the names as arguments.
    fn project(body: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join(SCRIPT);
        fs::create_dir_all(script.parent().unwrap()).unwrap();
        let text = format!("#!/bin/sh\nset -e\n[ \"$1\" = --store ]\nstore=$2\nshift 2\n{body}\n");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    const ONE_FILE: &str = r#"
        for name; do
            echo "building $name" >&2
            printf content > "$store/new"
            hex=$(sha256sum "$store/new" | cut -c -64)
            mv "$store/new" "$store/blobs/sha256/$hex"
            echo "{\"name\": \"$name\", \"digest\": \"sha256:$hex\", \"size\": 7, \"mediaType\": \"application/octet-stream\"}"
        done"#;

    fn names() -> Vec<Name> {
        ["https://x.test/kind", "https://x.test/other"]
            .map(|name| name.parse().unwrap())
            .to_vec()
    }

    fn wanted() -> Vec<Wanted> {
        let wanted = |name| Wanted {
            name,
            origin: Origin::Packages,
            digest: None,
        };
        names().into_iter().map(wanted).collect()
    }

    async fn try_build(store: &Store, project: &Path) -> (anyhow::Result<Vec<Entry>>, Vec<String>) {
        let (events, mut receiver) = Events::channel();
        let step = events.step("packages");
        let built = build(store, project, &wanted(), &Stop::new(), &step).await;
        drop((step, events));
        let mut said = Vec::new();
        while let Some(timed) = receiver.recv().await {
            if let Event::Waiting { text, .. } | Event::Line { text, .. } = timed.event {
                said.push(text);
            }
        }
        (built, said)
    }

    async fn told(body: &str) -> String {
        let (folder, store) = empty();
        let project = project(body);
        let error = try_build(&store, project.path()).await.0.unwrap_err();
        let hint = explain(&error).1.unwrap_or_default();
        format!("{error:#}\nhint: {hint}")
            .trim_end_matches("\nhint: ")
            .replace(&project.path().display().to_string(), "PROJECT")
            .replace(&folder.path().display().to_string(), "CACHE")
    }

    #[tokio::test]
    async fn what_the_script_delivers_is_checked_and_entered() {
        let (_folder, store) = empty();
        let project = project(ONE_FILE);
        let (built, said) = try_build(&store, project.path()).await;
        assert_eq!(built.unwrap().len(), 2);
        for name in names() {
            let entry = store.find(&name, Origin::Packages).unwrap().unwrap();
            assert_eq!(store.read("it", &entry.target).unwrap(), b"content");
            assert_eq!(store.find(&name, Origin::Registry).unwrap(), None);
        }
        assert!(said.contains(&"building https://x.test/kind".to_owned()));
        assert!(said.contains(&"2 of 2 built".to_owned()));
        let (_, said) = try_build(&store, project.path()).await;
        assert_snapshot!(said[0], @"building 2 images and files from package registries; the last build, of 2, took 0s");
    }

    #[tokio::test]
    async fn what_the_script_does_wrong_is_told() {
        let fails = told("echo 'no network' >&2; exit 3").await;
        assert_snapshot!(fails, @r"
        can't build the images from package registries: `PROJECT/scripts/packages/build --store CACHE/store https://x.test/kind https://x.test/other` failed (exit status 3)
          | no network
        hint: run the same command again with -v to see every line of its output
        ");
        assert_snapshot!(told("echo hello").await, @r"
        can't read what scripts/packages/build wrote: `hello`: expected value at line 1 column 1
        ");
        assert_snapshot!(told("exit 0").await, @r"
        scripts/packages/build built everything but https://x.test/kind, https://x.test/other
        hint: run the same command again with -v to see what it says; a name that no recipe makes must not be in a bundle of an environment with `images: packages`
        ");
        let lies = ONE_FILE
            .replace("printf content", "printf CONTENT")
            .replace(
                "hex=$(sha256sum \"$store/new\" | cut -c -64)",
                "hex=ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73",
            );
        assert_snapshot!(told(&lies).await, @r"
        scripts/packages/build says that https://x.test/kind is built, but CACHE/store/blobs/sha256/ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73: its digest is sha256:65f23e22a9bfedda96929b3cfcb8b6d2fdd34a2e877ddb81f45d79ab05710e12
        hint: that file was removed; run the same command again with -v to see how it is built
        ");
    }

    #[tokio::test]
    async fn no_script() {
        let (_folder, store) = empty();
        let error = try_build(&store, Path::new("/project"))
            .await
            .0
            .unwrap_err();
        assert_snapshot!(error, @"the environment says `images: packages`, and 2 names are missing in the store, but /project/scripts/packages/build isn't there to build them");
    }
}
