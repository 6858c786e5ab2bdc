//! `devenv reset`: back to the last state that passed all checks, in place: no image is loaded, no node is made. Where there is
//! no such state, or with `--rebuild`, the cluster is made anew from the full store.

use std::time::SystemTime;

use crate::cluster::kept;
use crate::cluster::saved::{self, Snapshot};
use crate::context::Context;
use crate::docker::{Docker, Node, State};
use crate::error::Exit;
use crate::images::Needed;
use crate::inputs::{self, Inputs};
use crate::store::{self, Store};
use crate::up::{From, How};
use crate::{cluster, docker, down, lock, up};

/// Puts the saved state back, or takes the environment down and brings it up again.
pub async fn reset(context: &Context, rebuild: bool) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv reset",
        &context.events,
        &context.stop,
    )
    .await?;
    if environment.existing.is_some() {
        return put_anew(context, &inputs, rebuild).await;
    }
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, environment).await?;
    if !rebuild && nodes.is_empty() && kept::look(&docker, environment).await?.is_some() {
        return Ok(up::bring_up(context, &inputs, How::default()).await?.exit);
    }
    if !rebuild {
        match healthy(&docker, &inputs, &nodes).await? {
            Ok(snapshot) => return go_back(context, &docker, &inputs, &nodes, &snapshot).await,
            Err(why) => context.events.notice(why),
        }
    }
    make_sure_it_can_be_made_anew(context, &inputs).await?;
    context.events.notice(format!(
        "{} is made anew: whatever was changed in its cluster is lost",
        environment.name
    ));
    down::remove(context, environment, down::Keep::Nothing, None).await?;
    let how = How {
        from: From::Nothing,
        ..How::default()
    };
    Ok(up::bring_up(context, &inputs, how).await?.exit)
}

/// In a cluster that is there already nothing was saved: the platform is taken out and put in again.
async fn put_anew(context: &Context, inputs: &Inputs, rebuild: bool) -> anyhow::Result<Exit> {
    let environment = &inputs.environment;
    if !rebuild {
        let what = "`reset` goes back to a saved state of nodes";
        let instead = format!(
            "devenv reset --rebuild --environment {} takes the platform out of that cluster and puts it in again",
            environment.name
        );
        return Err(cluster::not_with_existing(environment, what, instead));
    }
    context.events.notice(format!(
        "{} is taken out of the cluster and put in again: whatever it holds is lost",
        environment.name
    ));
    down::remove(context, environment, down::Keep::Nothing, None).await?;
    // Whoever typed that has said yes.
    let how = How {
        yes: true,
        ..How::default()
    };
    Ok(up::bring_up(context, inputs, how).await?.exit)
}

/// Puts a snapshot back, and proves that what comes of it is well.
pub async fn go_back(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    nodes: &[Node],
    snapshot: &Snapshot,
) -> anyhow::Result<Exit> {
    let environment = &inputs.environment;
    context.events.notice(format!(
        "{} goes back to its state `{}` of {}: what was changed in its cluster since is lost",
        environment.name,
        snapshot.name,
        saved::age(&snapshot.saved, SystemTime::now())
    ));
    let step = context.events.step("state");
    saved::restore(docker, environment, nodes, &snapshot.name, &step).await?;
    step.done(format!("{} is back", snapshot.name));
    let how = How {
        restarted: true,
        ..How::default()
    };
    Ok(up::bring_up(context, inputs, how).await?.exit)
}

/// The state that passed all checks, or why there is nothing to go back to.
async fn healthy(
    docker: &Docker,
    inputs: &Inputs,
    nodes: &[Node],
) -> anyhow::Result<Result<Snapshot, String>> {
    if nodes.is_empty() {
        return Ok(Err("there is no cluster to go back with".to_owned()));
    }
    if let Some(difference) = cluster::differs(inputs, nodes) {
        return Ok(Err(format!(
            "the cluster was made with other settings: {difference}"
        )));
    }
    for node in nodes.iter().filter(|node| node.state != State::Running) {
        // Only a node that runs tells what it has.
        docker.unpause(&node.name).await?;
        docker.start(&node.name).await?;
    }
    let there = saved::all(docker, &inputs.environment, nodes).await?;
    Ok(there
        .into_iter()
        .find(|snapshot| snapshot.name == saved::HEALTHY)
        .ok_or_else(|| "no state of this cluster has passed all checks yet".to_owned()))
}

/// Nothing is removed as long as what is needed to make it again isn't there.
async fn make_sure_it_can_be_made_anew(context: &Context, inputs: &Inputs) -> anyhow::Result<()> {
    let docker = docker::connect().await?;
    cluster::find_program(context, &inputs.environment).await?;
    let needed = Needed::by(inputs)?;
    let store = Store::open(&context.paths.store())?;
    if !store::missing(&store, &needed.all())?.is_empty() {
        up::fill_store(context, &docker, inputs, &store, &needed).await?;
    }
    Ok(())
}
