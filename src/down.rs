//! `devenv down`: removes everything that `up` made, from any half-made state, and nothing else.

use std::time::SystemTime;

use anyhow::Context as _;

use crate::cluster::{self, kept, saved};
use crate::context::Context;
use crate::docker::{self, Node, State};
use crate::environment::Environment;
use crate::error::Exit;
use crate::event::Step;
use crate::names::{self, Unwired};
use crate::{cli, existing, inputs, lock};

/// Takes the environment down, or with `keep` only to sleep; once more is fine.
///
/// Only the environment file must be readable: a mistake in a bundle is no reason to keep a cluster.
pub async fn down(context: &Context, arguments: &cli::Down) -> anyhow::Result<Exit> {
    let environment = inputs::environment(&context.selector, &context.directory)?;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv down",
        &context.events,
        &context.stop,
    )
    .await?;
    if arguments.keep && environment.existing.is_some() {
        let what = "`--keep` stops nodes";
        let instead = format!("devenv down --environment {}", environment.name);
        return Err(cluster::not_with_existing(&environment, what, instead));
    }
    if arguments.keep {
        return stop(context, &environment).await;
    }
    let keep = match arguments.purge {
        true => Keep::Nothing,
        false => Keep::State,
    };
    let removed = remove(context, &environment, keep, None).await?;
    context.events.verdict(match removed {
        true => format!("{} is gone", environment.name),
        false => format!("nothing to remove: {} isn't there", environment.name),
    });
    Ok(Exit::Ready)
}

/// Stops the nodes. Everything of them is kept, the names too.
async fn stop(context: &Context, environment: &Environment) -> anyhow::Result<Exit> {
    let step = context.events.step("cluster");
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, environment).await?;
    let awake: Vec<&Node> = nodes
        .iter()
        .filter(|node| matches!(node.state, State::Running | State::Paused))
        .collect();
    for node in &awake {
        step.waiting(format!("stopping {}", node.name));
        docker.unpause(&node.name).await?;
        docker.stop(&node.name).await?;
    }
    let verdict = match (nodes.len(), awake.len()) {
        (0, _) => {
            step.unchanged("no container of it");
            format!("nothing to stop: {} isn't there", environment.name)
        }
        (_, 0) => {
            step.unchanged("stopped already");
            format!("nothing to stop: {} doesn't run", environment.name)
        }
        (_, count) => {
            step.done(format!("stopped {count} of {} nodes", nodes.len()));
            format!(
                "{} is stopped and kept; devenv up starts it again",
                environment.name
            )
        }
    };
    context.events.verdict(verdict);
    Ok(Exit::Ready)
}

/// What of an environment outlives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Nothing; what an earlier `down` kept goes, too.
    Nothing,
    /// The state that passed all checks, for the next `up`.
    State,
    /// What was kept before, and nothing else.
    AsItWas,
}

/// Removes the cluster, or what was put into one that stays, and devenv's own files of it; says whether there was anything. What
/// the cache holds (the store, built programs) belongs to all environments and stays. `within` is the step that this is a part
/// of, if it is one.
pub async fn remove(
    context: &Context,
    environment: &Environment,
    keep: Keep,
    within: Option<&Step>,
) -> anyhow::Result<bool> {
    let begin = |name: &str| match within {
        Some(step) => step.child(name),
        None => context.events.step(name),
    };
    let step = begin("cluster");
    let gone = match environment.existing {
        Some(_) => existing::remove(context, environment, &step).await?,
        None => remove_nodes(context, environment, keep).await?,
    };
    match (&gone, &environment.existing) {
        (Some(what), _) => step.done(format!("removed {what}")),
        (None, None) => step.unchanged("no container of it"),
        (None, Some(_)) => step.unchanged("nothing of it in the cluster"),
    }

    let step = begin("names");
    let unwired = names::unwire(context, environment, &step).await?;
    match &unwired {
        Unwired::Changed => step.done("taken out of the hosts file"),
        Unwired::Unchanged => step.unchanged("none in the hosts file"),
        Unwired::Left { .. } => step.unchanged("left in the hosts file"),
    }
    // No right to edit that file is no reason to keep a cluster.
    if let Some(notice) = unwired.notice() {
        context.events.notice(notice);
    }

    let step = begin("files");
    let own = [
        context.paths.environment(&environment.id),
        context.paths.git(&environment.id),
    ];
    let mut removed = 0;
    for folder in own.iter().filter(|folder| folder.exists()) {
        std::fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        removed += 1;
    }
    match removed {
        0 => step.unchanged("none"),
        _ => step.done("kubeconfig and pushed commits removed"),
    }
    Ok(gone.is_some() || removed > 0 || unwired == Unwired::Changed)
}

/// Removes the cluster's containers, and what is kept of it unless that is to stay; says what, if there was anything.
async fn remove_nodes(
    context: &Context,
    environment: &Environment,
    keep: Keep,
) -> anyhow::Result<Option<String>> {
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, environment).await?;
    saved::remove_helpers(&docker, environment).await?;
    let keep = match keep {
        Keep::AsItWas if kept::look(&docker, environment).await?.is_some() => Keep::State,
        Keep::AsItWas => Keep::Nothing,
        other => other,
    };
    if keep == Keep::State
        && let Some(kept) = kept::note_down(&docker, environment, &nodes).await?
    {
        let gone = cluster::remove_but_volumes(&docker, environment, &nodes).await?;
        context.events.notice(format!(
            "its state of {} stays, with its images, for the next `devenv up`; `devenv down --purge` removes it",
            saved::age(&kept.snapshot.saved, SystemTime::now())
        ));
        return Ok(gone.told());
    }
    let gone = cluster::remove(&docker, environment, &nodes).await?;
    // What an earlier `down` kept is these nodes' own, or is to go; without nodes it stays.
    let is_to_go = keep == Keep::Nothing || !nodes.is_empty();
    let purged = is_to_go && kept::purge(&docker, environment).await?;
    let purged = purged.then(|| "the state that was kept".to_owned());
    Ok(gone.told().or(purged))
}
