//! `devenv snapshot`: named states of an environment, such as the one before a migration that may go wrong.

use std::path::Path;
use std::time::SystemTime;

use crate::cli::{Output, SnapshotCommand};
use crate::cluster::kept::{self, MadeOf};
use crate::cluster::saved::{self, Snapshot};
use crate::cluster::travel;
use crate::context::Context;
use crate::docker::{self, Docker, Node, State};
use crate::environment::Environment;
use crate::error::{Exit, Failure};
use crate::gitops::settle::applications;
use crate::images::Needed;
use crate::inputs::{self, Inputs};
use crate::{cluster, lock, report, reset};

/// Does what was asked for.
pub async fn snapshot(
    context: &Context,
    command: SnapshotCommand,
    output: Output,
) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv snapshot",
        &context.events,
        &context.stop,
    )
    .await?;
    if environment.existing.is_some() {
        let what = "a snapshot is of the disks of nodes";
        let instead = "use what the cluster has for that, such as VolumeSnapshots: `kubectl get volumesnapshotclasses`";
        return Err(cluster::not_with_existing(
            environment,
            what,
            instead.to_owned(),
        ));
    }
    let docker = docker::connect().await?;
    let mut nodes = cluster::nodes(&docker, environment).await?;
    if saved::is_interrupted(&docker, &nodes).await? {
        let step = context.events.step("state");
        saved::go_on(&docker, &nodes, &step).await?;
        step.done("finished what was interrupted");
        nodes = cluster::nodes(&docker, environment).await?;
    }
    if let SnapshotCommand::Export { file } = &command {
        return export(context, &docker, environment, &nodes, file).await;
    }
    if nodes.is_empty()
        && matches!(command, SnapshotCommand::List)
        && let Some(kept) = kept::look(&docker, environment).await?
    {
        report::data(&list(&[kept.snapshot], output)?)?;
        return Ok(Exit::Ready);
    }
    refuse_unless_running(&inputs, &nodes)?;
    match command {
        SnapshotCommand::Save { name } => save(context, &docker, &inputs, &nodes, &name).await,
        SnapshotCommand::List => {
            report::data(&list(
                &saved::all(&docker, environment, &nodes).await?,
                output,
            )?)?;
            Ok(Exit::Ready)
        }
        SnapshotCommand::Restore { name } => {
            let there = saved::all(&docker, environment, &nodes).await?;
            let snapshot = find(&there, &name)?;
            reset::go_back(context, &docker, &inputs, &nodes, snapshot).await
        }
        SnapshotCommand::Export { .. } => Ok(Exit::Ready), // has been done above
        SnapshotCommand::Remove { name } => {
            saved::check_name(&name)?;
            let was_there = saved::remove(&docker, environment, &nodes, &name).await?;
            context.events.verdict(match was_there {
                true => format!("the snapshot {name} is gone"),
                false => format!("nothing to remove: there is no snapshot {name}"),
            });
            Ok(Exit::Ready)
        }
    }
}

fn refuse_unless_running(inputs: &Inputs, nodes: &[Node]) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    if nodes.is_empty() || nodes.iter().any(|node| node.state != State::Running) {
        return Err(cluster::not_running(environment));
    }
    Ok(())
}

/// Writes the state that last passed all checks into a file. The nodes needn't run.
async fn export(
    context: &Context,
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
    file: &Path,
) -> anyhow::Result<Exit> {
    if nodes.is_empty() {
        return Err(cluster::not_running(environment));
    }
    let step = context.events.step("snapshot");
    let (snapshot, size) = travel::export(context, docker, environment, nodes, file, &step).await?;
    step.done(report::bytes(size));
    context.events.notice(format!(
        "{} holds this environment's credentials: keep it as you keep a password",
        file.display()
    ));
    context.events.verdict(format!(
        "exported {} of {}; to start from it: devenv up --from {}",
        snapshot.name,
        saved::age(&snapshot.saved, SystemTime::now()),
        file.display()
    ));
    Ok(Exit::Ready)
}

async fn save(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    nodes: &[Node],
    name: &str,
) -> anyhow::Result<Exit> {
    saved::check_name(name)?;
    let environment = &inputs.environment;
    let step = context.events.step("snapshot");
    let revision = match cluster::client_if_running(docker, environment, nodes).await? {
        Some(client) => applications(&client)
            .await?
            .into_values()
            .map(|app| app.revision)
            .max()
            .unwrap_or_default(),
        None => String::new(),
    };
    let snapshot = saved::save(
        docker,
        environment,
        nodes,
        name,
        (&revision, MadeOf::now(inputs, &Needed::by(inputs)?)?),
        &step,
    )
    .await?;
    step.done(format!("{} MiB", snapshot.mebibytes));
    context.events.verdict(format!(
        "saved {name}; to go back to it: devenv snapshot restore {name}"
    ));
    Ok(Exit::Ready)
}

fn find<'a>(there: &'a [Snapshot], name: &str) -> anyhow::Result<&'a Snapshot> {
    there
        .iter()
        .find(|snapshot| snapshot.name == name)
        .ok_or_else(|| {
            let names: Vec<&str> = there
                .iter()
                .map(|snapshot| snapshot.name.as_str())
                .collect();
            Failure::Usage {
                message: format!("there is no snapshot `{name}`"),
                hint: match names.as_slice() {
                    [] => "make one: devenv snapshot save NAME".to_owned(),
                    names => format!("the snapshots there are: {}", names.join(", ")),
                },
            }
            .into()
        })
}

fn list(there: &[Snapshot], output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return Ok(format!("{}\n", serde_json::to_string(there)?));
    }
    let width = there
        .iter()
        .map(|snapshot| snapshot.name.len())
        .max()
        .unwrap_or_default()
        .max("name".len());
    let now = SystemTime::now();
    let mut text = format!("{:width$}  {:>9}  {:16}  holds\n", "name", "size", "saved");
    for Snapshot {
        name,
        saved,
        holds,
        mebibytes,
        ..
    } in there
    {
        let size = format!("{mebibytes} MiB");
        let age = saved::age(saved, now);
        text += &format!("{name:width$}  {size:>9}  {age:16}  {holds}\n");
    }
    Ok(text)
}
