//! `devenv reset`: back to the state after `up`. The cluster is made anew from the full store; nothing is downloaded or
//! built again.

use crate::context::Context;
use crate::error::Exit;
use crate::images::Needed;
use crate::inputs::{self, Inputs};
use crate::store::{self, Store};
use crate::{cluster, docker, down, lock, up};

/// Takes the environment down and brings it up again.
pub async fn reset(context: &Context) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let _lock = lock::acquire(
        &context.paths.lock(&inputs.environment.id),
        "devenv reset",
        &context.events,
        &context.stop,
    )
    .await?;
    make_sure_it_can_be_made_anew(context, &inputs).await?;
    context.events.notice(format!(
        "{} is made anew: whatever was changed in its cluster is lost",
        inputs.environment.name
    ));
    down::remove(context, &inputs.environment, None).await?;
    Ok(up::bring_up(context, &inputs).await?.exit)
}

/// Nothing is removed as long as what is needed to make it again isn't there.
async fn make_sure_it_can_be_made_anew(context: &Context, inputs: &Inputs) -> anyhow::Result<()> {
    let docker = docker::connect().await?;
    cluster::nodes(&docker, &inputs.environment).await?;
    cluster::find_kind(context)?;
    let needed = Needed::by(inputs)?;
    let store = Store::open(&context.paths.store())?;
    if !store::missing(&store, &needed.all())?.is_empty() {
        up::fill_store(context, &docker, inputs, &store, &needed).await?;
    }
    Ok(())
}
