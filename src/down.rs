//! `devenv down`: removes everything that `up` made, from any half-made state, and nothing else.

use anyhow::Context as _;

use crate::cluster;
use crate::context::Context;
use crate::docker;
use crate::environment::Environment;
use crate::error::Exit;
use crate::event::Step;
use crate::names::{self, Unwired};
use crate::{inputs, lock};

/// Takes the environment down; once more is fine.
///
/// Only the environment file must be readable: a mistake in a bundle is no reason to keep a cluster.
pub async fn down(context: &Context) -> anyhow::Result<Exit> {
    let environment = inputs::environment(&context.selector, &context.directory)?;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv down",
        &context.events,
        &context.stop,
    )
    .await?;
    let removed = remove(context, &environment, None).await?;
    context.events.verdict(match removed {
        true => format!("{} is gone", environment.name),
        false => format!("nothing to remove: {} isn't there", environment.name),
    });
    Ok(Exit::Ready)
}

/// Removes the cluster and devenv's own files of it; says whether there was anything. What the cache holds (the store,
/// built programs) belongs to all environments and stays. `within` is the step that this is a part of, if it is one.
pub async fn remove(
    context: &Context,
    environment: &Environment,
    within: Option<&Step>,
) -> anyhow::Result<bool> {
    let begin = |name: &str| match within {
        Some(step) => step.child(name),
        None => context.events.step(name),
    };
    let step = begin("cluster");
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, environment).await?;
    match cluster::remove(&docker, &nodes).await? {
        0 => step.unchanged("no container of it"),
        count => step.done(format!(
            "removed {count} {} volumes",
            if count == 1 {
                "container and its"
            } else {
                "containers and their"
            }
        )),
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
    Ok(!nodes.is_empty() || removed > 0 || unwired == Unwired::Changed)
}
