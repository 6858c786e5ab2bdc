//! `devenv reset`: back to the state after `up`. The cluster is made anew from the full store; nothing is downloaded or
//! built again.

use crate::context::Context;
use crate::error::Exit;
use crate::{down, inputs, lock, up};

/// Takes the environment down and brings it up again.
pub async fn reset(context: &Context) -> anyhow::Result<Exit> {
    // Everything is read and checked before anything is removed.
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let _lock = lock::acquire(
        &context.paths.lock(&inputs.environment.id),
        "devenv reset",
        &context.events,
        &context.stop,
    )
    .await?;
    context.events.notice(format!(
        "{} is made anew: whatever was changed in its cluster is lost",
        inputs.environment.name
    ));
    down::remove(context, &inputs.environment).await?;
    up::bring_up(context, &inputs).await
}
