//! `devenv up --plan`: what `up` would create, change, load and edit. Looks at everything and touches nothing.

use std::fmt::Write as _;
use std::time::SystemTime;

use anyhow::Context as _;
use kube::Client;

use crate::cluster::kept::{self, MadeOf};
use crate::cluster::{self, Action, saved, travel};
use crate::context::Context;
use crate::docker::{self, Docker, Node};
use crate::environment::HostsFile;
use crate::error::Exit;
use crate::gitops::settle::applications;
use crate::gitops::waves::short;
use crate::gitops::{git, tree};
use crate::images::{self, Needed};
use crate::inputs::Inputs;
use crate::kube::{Change, FIELD_MANAGER, label, would_change};
use crate::names::hosts::Leads;
use crate::names::{self, HOSTS, Look};
use crate::store::{self, Store};
use crate::{cli, existing, report, up};

/// Prints the plan on stdout.
pub async fn show(context: &Context, inputs: &Inputs, arguments: &cli::Up) -> anyhow::Result<Exit> {
    if inputs.environment.existing.is_some() {
        return existing::show_plan(context, inputs).await;
    }
    let docker = docker::connect().await?;
    let environment = &inputs.environment;
    let nodes = cluster::nodes(&docker, environment).await?;
    let found = cluster::observe(&docker, environment, &nodes).await?;
    let action = cluster::decide(&found);
    let mut plan = format!("plan for {} (nothing was touched)\n", environment.name);
    let mut say = |subject: &str, what: String| {
        let _ = writeln!(plan, "  {subject:13} {what}");
    };

    let needed = Needed::by(inputs)?;
    say("cluster", cluster_line(inputs, &nodes, &action)?);
    if matches!(action, Action::Create | Action::Recreate(_))
        && let Some(line) = beginning_line(&docker, inputs, &needed, arguments).await?
    {
        say("state", line);
    }
    for (address, port) in cluster::ports_to_take(inputs) {
        if matches!(action, Action::Create | Action::Recreate(_)) {
            say("port", format!("publish {address}:{port}"));
        }
    }
    let store = Store::look(&context.paths.store())?;
    let missing = match &store {
        Some(store) => store::missing(store, &needed.all())?,
        None => needed.all(),
    };
    match missing.as_slice() {
        [] => say(
            "store",
            format!("keep: all {} entries are there", needed.all().len()),
        ),
        missing => missing
            .iter()
            .for_each(|wanted| say("store", format!("fetch {}", wanted.name))),
    }
    // What a cluster has can be compared only where it runs, and with a full store.
    let store = store.filter(|_| action == Action::Keep && missing.is_empty());
    let store = store.as_ref();
    for line in image_lines(&docker, store, &needed, &nodes).await? {
        say("images", line);
    }
    for line in gitops_lines(context, &docker, inputs, store, &needed, &nodes).await? {
        say("argo cd", line);
    }
    if let Some(line) = names_line(inputs).await {
        say("names", line);
    }
    let kubeconfig = context.paths.kubeconfig(&environment.id);
    let verb = if kubeconfig.exists() && action == Action::Keep {
        "keep"
    } else {
        "write"
    };
    say("kubeconfig", format!("{verb} {}", kubeconfig.display()));
    report::data(&plan)?;
    Ok(Exit::Ready)
}

/// What would be done to the hosts file; nothing to say where there are no names.
async fn names_line(inputs: &Inputs) -> Option<String> {
    let environment = &inputs.environment;
    let names = &inputs.names;
    if names.is_empty() || environment.hosts == HostsFile::Off {
        return None;
    }
    let list = names.iter().cloned().collect::<Vec<_>>().join(", ");
    let ipv6 = names::ipv6(environment).await;
    let (block, _) = names::block(environment, names, Leads::Here { ipv6 });
    Some(match Look::at(&block) {
        Ok(Look { change: None, .. }) => format!("keep {list} in {HOSTS}"),
        Ok(_) => format!("write {list} into {HOSTS}"),
        Err(error) => format!("leave {list} unwired: {error:#}"),
    })
}

fn cluster_line(inputs: &Inputs, nodes: &[Node], action: &Action) -> anyhow::Result<String> {
    let name = &inputs.environment.cluster;
    if matches!(action, Action::Keep | Action::Start(_))
        && let Some(difference) = cluster::differs(inputs, nodes)
    {
        return Err(cluster::refuse_different(&inputs.environment, &difference));
    }
    let config = inputs
        .environment
        .config
        .strip_prefix(&inputs.environment.root)
        .unwrap_or(&inputs.environment.config)
        .display();
    let count = inputs.cluster_config.node_count();
    Ok(match action {
        Action::Create => format!(
            "create {name} from {config}: {count} node(s) of {}",
            inputs
                .environment
                .node_image
                .as_ref()
                .map_or_else(String::new, ToString::to_string)
        ),
        Action::Recreate(reason) => {
            format!("remove the half-made {name} ({reason}) and create it from {config}")
        }
        Action::Start(nodes) => format!("start {}", nodes.join(", ")),
        Action::Keep => format!("keep {name}"),
    })
}

/// What a cluster that has to be made begins with, if there is a state to begin with.
async fn beginning_line(
    docker: &Docker,
    inputs: &Inputs,
    needed: &Needed,
    arguments: &cli::Up,
) -> anyhow::Result<Option<String>> {
    let of = |saved: &str| saved::age(saved, SystemTime::now());
    if let Some(path) = &arguments.from {
        let file = travel::open(path)?;
        return match file.state.difference(&MadeOf::now(inputs, needed)?) {
            Some(difference) => Err(travel::refuse_other(&file, &difference)),
            None => Ok(Some(format!(
                "start from {}, saved {}",
                path.display(),
                of(&file.state.snapshot.saved)
            ))),
        };
    }
    Ok(match kept::fitting(docker, inputs, needed).await? {
        Some(Ok(_)) if arguments.fresh => Some("remove what was kept: --fresh".to_owned()),
        Some(Ok(kept)) => Some(format!(
            "start from what was kept {}; no image is loaded",
            of(&kept.snapshot.saved)
        )),
        Some(Err(difference)) => Some(format!("remove what was kept: {difference}")),
        None => None,
    })
}

async fn image_lines(
    docker: &Docker,
    store: Option<&Store>,
    needed: &Needed,
    nodes: &[Node],
) -> anyhow::Result<Vec<String>> {
    let all = needed.in_nodes();
    let Some(store) = store else {
        return Ok(all
            .into_iter()
            .map(|wanted| format!("load {} where a node lacks it", wanted.name))
            .collect());
    };
    let nodes: Vec<Node> = cluster::pod_nodes(nodes).cloned().collect();
    let lacking = images::lacking(docker, store, &nodes, needed).await?;
    if lacking.is_empty() {
        return Ok(vec![format!("keep: all {} are in the nodes", all.len())]);
    }
    Ok(lacking
        .into_iter()
        .map(|(node, image, lack)| format!("load {image} into {node} ({lack})"))
        .collect())
}

async fn gitops_lines(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: Option<&Store>,
    needed: &Needed,
    nodes: &[Node],
) -> anyhow::Result<Vec<String>> {
    let client = match store {
        Some(store) => cluster::client_if_running(docker, &inputs.environment, nodes)
            .await?
            .map(|client| (store, client)),
        None => None,
    };
    let Some((store, client)) = client else {
        return Ok(vec![
            format!("install {}", crate::gitops::argocd::VERSION),
            format!(
                "push the working tree; applications: {}",
                applications_of(inputs).join(", ")
            ),
        ]);
    };
    of_gitops(context, inputs, store, needed, &client).await
}

/// The Applications are called as the bundles are.
fn applications_of(inputs: &Inputs) -> Vec<&str> {
    let bundles = inputs.bundles.iter();
    bundles.map(|bundle| bundle.name.as_str()).collect()
}

/// What of Argo CD and its Applications would be other than it is, in a cluster that runs, with a full store.
pub async fn of_gitops(
    context: &Context,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
    client: &Client,
) -> anyhow::Result<Vec<String>> {
    let names = applications_of(inputs);
    let mut lines = Vec::new();
    let (definitions, rest) = up::manifests(inputs, store, needed)?;
    for object in definitions.iter().chain(&rest) {
        match would_change(client, FIELD_MANAGER, object).await? {
            Change::Create => lines.push(format!("create {}", label(object))),
            Change::Update => lines.push(format!("change {}", label(object))),
            Change::Nothing => {}
        }
    }
    let scratch = tempfile::tempdir().context("make a folder for the commit")?;
    let quiet = crate::event::Events::channel().0.step("plan");
    let revision = git::commit(
        &scratch.path().join("plan.git"),
        &tree::tree(inputs, store)?,
        &quiet,
        &context.stop,
    )
    .await?;
    let apps = applications(client).await?;
    for bundle in &inputs.bundles {
        match apps.get(&bundle.name) {
            None => lines.push(format!("create application {}", bundle.name)),
            Some(app) if app.revision != revision => {
                lines.push(format!(
                    "sync application {} to {} (now {})",
                    bundle.name,
                    short(&revision),
                    short(&app.revision)
                ));
            }
            Some(_) => {}
        }
    }
    for name in apps.keys().filter(|name| !names.contains(&name.as_str())) {
        lines.push(format!("remove application {name}: its bundle is gone"));
    }
    if lines.is_empty() {
        lines.push(format!(
            "keep: {} applications at {}",
            apps.len(),
            short(&revision)
        ));
    }
    Ok(lines)
}
