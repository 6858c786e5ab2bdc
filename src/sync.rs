//! `devenv sync`: the working tree, uncommitted changes included, into the cluster's git, and the wait until it is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::cluster::{self, Running};
use crate::context::Context;
use crate::docker::Docker;
use crate::error::{Exit, Failure, explain};
use crate::event::Step;
use crate::gitops::provide::{Provisions, provide};
use crate::gitops::settle::{Arrived, applications};
use crate::gitops::waves::short;
use crate::images::{self, Needed};
use crate::inputs::{self, Inputs};
use crate::names::tls;
use crate::store::Store;
use crate::{cli, existing, lock, up};

/// Pushes and waits, once or on every change.
pub async fn sync(context: &Context, arguments: &cli::Sync) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    if arguments.watch {
        return watch_files(context, &inputs.environment.root, arguments.prune).await;
    }
    let (wired, verdict) = once(context, &inputs, arguments.prune).await?;
    context.events.verdict(verdict);
    Ok(wired)
}

/// How often the files are looked at. What changes less than that apart is pushed together.
const PAUSE: Duration = Duration::from_millis(300);

/// Pushes on every change of a bundle's file, until a signal. Whatever goes wrong is said, and the next change is another try.
async fn watch_files(context: &Context, root: &Path, prune: bool) -> anyhow::Result<Exit> {
    let bundles = root.join("bundles");
    let mut pushed = Files::new();
    loop {
        let seen = files(&bundles);
        let changed = changes(&pushed, &seen);
        if changed.is_empty() {
            if context.stop.or(tokio::time::sleep(PAUSE)).await.is_err() {
                return Ok(explain(&context.stop.error()).0);
            }
            continue;
        }
        // An editor may be at work on the next file.
        if context.stop.or(tokio::time::sleep(PAUSE)).await.is_err() {
            return Ok(explain(&context.stop.error()).0);
        }
        if files(&bundles) != seen {
            continue;
        }
        let what = match pushed.is_empty() {
            true => "all bundles".to_owned(),
            false => told(&changed, root),
        };
        pushed = seen;
        let began = Instant::now();
        let applied = async {
            let inputs = inputs::load(&context.selector, &context.directory)?;
            once(context, &inputs, prune).await
        };
        let applied = applied.await;
        if context.stop.is_requested() {
            return Ok(explain(&context.stop.error()).0);
        }
        let seconds = began.elapsed().as_secs_f64();
        context.events.notice(match applied {
            Ok((_, verdict)) => format!("{what}: {verdict} ({seconds:.1} s)"),
            Err(error) => {
                let hint = explain(&error).1.map(|hint| format!("\nhint: {hint}"));
                format!("{what}: not applied: {error:#}{}", hint.unwrap_or_default())
            }
        });
        context.events.begin_anew();
    }
}

/// Files, with what changes when they do.
type Files = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// The files below a folder. What can't be read isn't there; the push says why.
fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(path),
                Ok(metadata) => {
                    found.insert(path, (metadata.len(), metadata.modified().ok()));
                }
                Err(_) => {}
            }
        }
    }
    found
}

/// What is new, other, or gone.
fn changes(before: &Files, after: &Files) -> BTreeSet<PathBuf> {
    let differs = |path: &&PathBuf| before.get(*path) != after.get(*path);
    before
        .keys()
        .chain(after.keys())
        .filter(differs)
        .cloned()
        .collect()
}

/// "bundles/a/b.yaml and 2 more"
fn told(changed: &BTreeSet<PathBuf>, root: &Path) -> String {
    let first = changed.first().map_or(root, PathBuf::as_path);
    let first = first.strip_prefix(root).unwrap_or(first).display();
    match changed.len() {
        1 => first.to_string(),
        count => format!("{first} and {} more", count - 1),
    }
}

/// Pushes and waits; gives the exit code and the last word. `prune` allows to remove more than one bundle.
async fn once(context: &Context, inputs: &Inputs, prune: bool) -> anyhow::Result<(Exit, String)> {
    let environment = &inputs.environment;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv sync",
        &context.events,
        &context.stop,
    )
    .await?;
    let Running { client, docker } = cluster::reach(context, environment).await?;
    let docker = docker.as_ref();

    let wiring = match docker {
        Some(_) => up::wire_names(context, inputs, None).await?,
        None => existing::wire_names(context, inputs, &client).await?,
    };
    let step = context.events.step("push");
    cluster::dns::tune(context, environment.provider, &client, &inputs.names, &step).await?;
    let store = Store::open(&context.paths.store())?;
    let live = applications(&client).await?;
    refuse_to_remove_many(inputs, live.keys().collect(), prune)?;
    let arrived = match docker {
        Some(docker) => new_images(context, docker, &store, inputs, &step).await?,
        // There the nodes pull; what is pushed has to be whole.
        None => {
            existing::fill_store(context, inputs, &store, &Needed::by(inputs)?).await?;
            watch::channel(None).1
        }
    };
    let revision = up::push(context, inputs, &store, &client, &step).await?;
    step.done(short(&revision));

    let step = context.events.step("applications");
    let goal = up::goal(inputs, &revision);
    let authority = tls::authority(&context.paths, &environment.domain)?;
    let provisions = Provisions {
        bundles: &goal.bundles,
        authority: &authority,
        names: &inputs.names,
        address: match docker {
            Some(docker) => up::node_address(docker, inputs).await?,
            None => None,
        },
    };
    let settled = up::settle_with_git(context, &client, inputs, &goal, arrived, &step);
    let waited = provide(context, &client, &provisions, settled).await?;
    let total = goal.bundles.len();
    match waited {
        0 => step.unchanged("all were at it"),
        count => step.done(format!("{count} of {total} had to be waited for")),
    }
    let verdict = match waited {
        0 => format!(
            "nothing to change: {total} of {total} applications healthy at {}",
            short(&revision)
        ),
        _ => format!(
            "applied: {total} of {total} applications healthy at {}",
            short(&revision)
        ),
    };
    Ok((wiring.exit, verdict))
}

/// A typing mistake in a folder's name must not take half the platform away.
fn refuse_to_remove_many(
    inputs: &Inputs,
    live: BTreeSet<&String>,
    prune: bool,
) -> anyhow::Result<()> {
    let wanted: BTreeSet<&String> = inputs.bundles.iter().map(|bundle| &bundle.name).collect();
    let removed: Vec<&str> = live.difference(&wanted).map(|name| name.as_str()).collect();
    if prune || removed.len() < 2 {
        return Ok(());
    }
    Err(Failure::Usage {
        message: format!(
            "this would remove {} applications with all they made: {}",
            removed.len(),
            removed.join(", ")
        ),
        hint: "if that is meant: devenv sync --prune".to_owned(),
    }
    .into())
}

/// Brings images that a bundle newly names into the nodes first, so that no pod waits for one.
async fn new_images(
    context: &Context,
    docker: &Docker,
    store: &Store,
    inputs: &Inputs,
    step: &Step,
) -> anyhow::Result<watch::Receiver<Arrived>> {
    let needed = Needed::by(inputs)?;
    let (sources, all) = (images::sources(docker, inputs), needed.all());
    images::fill(context, sources, store, inputs, &needed, &all, step).await?;
    let (arrived, arrivals) = watch::channel(Some(BTreeSet::new()));
    images::load(context, docker, store, inputs, &needed, &arrived, step).await?;
    Ok(arrivals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_other_or_gone_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("same", "");
        write("other", "");
        write("gone", "");
        let before = files(folder.path());
        assert!(changes(&before, &files(folder.path())).is_empty());
        write("other", "longer");
        write("new", "");
        std::fs::remove_file(folder.path().join("gone")).unwrap();
        let changed = changes(&before, &files(folder.path()));
        let names: Vec<_> = changed
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, ["gone", "new", "other"]);
        assert_eq!(told(&changed, folder.path()), "gone and 2 more");
    }
}
