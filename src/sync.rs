//! `devenv sync`: the working tree, uncommitted changes included, into the cluster's git, and the wait until it is applied.

use std::collections::BTreeSet;

use tokio::sync::watch;

use crate::context::Context;
use crate::docker::{self, Docker};
use crate::error::{Exit, Failure};
use crate::event::Step;
use crate::gitops::provide::{Provisions, provide};
use crate::gitops::settle::{Arrived, applications, settle};
use crate::gitops::waves::short;
use crate::images::{self, Needed};
use crate::inputs::{self, Inputs};
use crate::names::tls;
use crate::store::Store;
use crate::{cluster, lock, names, up};

/// Pushes and waits. `prune` allows to remove more than one bundle.
pub async fn sync(context: &Context, prune: bool) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv sync",
        &context.events,
        &context.stop,
    )
    .await?;
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, environment).await?;
    let Some(client) = cluster::client_if_running(&docker, environment, &nodes).await? else {
        return Err(Failure::Other {
            message: format!("the cluster {} doesn't run", environment.cluster),
            hint: format!("devenv up --environment {}", environment.name),
        }
        .into());
    };

    let names = names::wanted(&inputs);
    let (wired, _) = up::wire_names(context, &inputs, &names).await?;
    let step = context.events.step("push");
    cluster::dns::tune(context, environment.provider, &client, &names, &step).await?;
    let store = Store::open(&context.paths.store())?;
    let live = applications(&client).await?;
    refuse_to_remove_many(&inputs, live.keys().collect(), prune)?;
    let arrived = new_images(context, &docker, &store, &inputs, &step).await?;
    let revision = up::push(context, &inputs, &store, &client, &step).await?;
    step.done(short(&revision));

    let step = context.events.step("applications");
    let goal = up::goal(&inputs, &revision);
    let authority = tls::authority(&context.paths, &environment.domain)?;
    let provisions = Provisions {
        bundles: &goal.bundles,
        authority: &authority,
        names: &names,
        address: up::node_address(&docker, &inputs).await?,
    };
    let waited = tokio::select! {
        waited = settle(context, &client, &goal, arrived, &step) => waited?,
        Err(error) = provide(context, &client, &provisions) => return Err(error),
    };
    let total = goal.bundles.len();
    match waited {
        0 => step.unchanged("all were at it"),
        count => step.done(format!("{count} of {total} had to be waited for")),
    }
    context.events.verdict(match waited {
        0 => format!(
            "nothing to change: {total} of {total} applications healthy at {}",
            short(&revision)
        ),
        _ => format!(
            "applied: {total} of {total} applications healthy at {}",
            short(&revision)
        ),
    });
    Ok(wired)
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
    images::fill(context, docker, store, inputs, &needed, step).await?;
    let (arrived, arrivals) = watch::channel(Some(BTreeSet::new()));
    images::load(context, docker, store, inputs, &needed, &arrived, step).await?;
    Ok(arrivals)
}
