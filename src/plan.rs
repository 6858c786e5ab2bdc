//! `devenv up --plan`: what `up` would create, change, load and edit. Looks at everything and touches nothing.

use std::fmt::Write as _;

use anyhow::Context as _;

use crate::cluster::{self, Action};
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
use crate::names::{self, HOSTS, Look};
use crate::store::{self, Store};
use crate::{report, up};

/// Prints the plan on stdout.
pub async fn show(context: &Context, inputs: &Inputs) -> anyhow::Result<Exit> {
    let docker = docker::connect().await?;
    let environment = &inputs.environment;
    let nodes = cluster::nodes(&docker, environment).await?;
    let found = cluster::observe(&docker, environment, &nodes).await?;
    let action = cluster::decide(&found);
    let mut plan = format!("plan for {} (nothing was touched)\n", environment.name);
    let mut say = |subject: &str, what: String| {
        let _ = writeln!(plan, "  {subject:13} {what}");
    };

    say("cluster", cluster_line(inputs, &nodes, &action)?);
    for (address, port) in cluster::ports_to_take(inputs) {
        if matches!(action, Action::Create | Action::Recreate(_)) {
            say("port", format!("publish {address}:{port}"));
        }
    }
    let needed = Needed::by(inputs)?;
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
    let names = names::wanted(inputs);
    if names.is_empty() || environment.hosts == HostsFile::Off {
        return None;
    }
    let list = names.iter().cloned().collect::<Vec<_>>().join(", ");
    let (block, _) = names::block(environment, &names, names::ipv6(environment).await);
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
            inputs.environment.node_image
        ),
        Action::Recreate(reason) => {
            format!("remove the half-made {name} ({reason}) and create it from {config}")
        }
        Action::Start(nodes) => format!("start {}", nodes.join(", ")),
        Action::Keep => format!("keep {name}"),
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
    let names: Vec<&str> = inputs
        .bundles
        .iter()
        .map(|bundle| bundle.name.as_str())
        .collect();
    let client = match store {
        Some(store) => cluster::client_if_running(docker, &inputs.environment, nodes)
            .await?
            .map(|client| (store, client)),
        None => None,
    };
    let Some((store, client)) = client else {
        return Ok(vec![
            format!("install {}", crate::gitops::argocd::VERSION),
            format!("push the working tree; applications: {}", names.join(", ")),
        ]);
    };
    let mut lines = Vec::new();
    let (definitions, rest) = up::manifests(inputs, store, needed)?;
    for object in definitions.iter().chain(&rest) {
        match would_change(&client, FIELD_MANAGER, object).await? {
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
    let apps = applications(&client).await?;
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
