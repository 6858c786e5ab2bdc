//! `devenv up`: create or repair an environment until everything is proven ready.
//!
//! The order is the one a person would tell it in: read and check what was written; look what is there; fill the store;
//! then make the cluster, and load images and set up Argo CD as soon as each can begin. Everything is safe to run again.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use kube::Client;
use tokio::sync::watch;

use crate::checks::{self, Checked};
use crate::cluster::ports::{For, refuse_taken};
use crate::cluster::{self, Action, restart, saved};
use crate::context::Context;
use crate::docker::{self, Docker, Node};
use crate::doctor;
use crate::error::Exit;
use crate::event::Step;
use crate::evidence::{self, Told};
use crate::gitops::provide::Provisions;
use crate::gitops::settle::{Arrived, Goal, settle};
use crate::gitops::waves::short;
use crate::gitops::{argocd, explain, git, provide, source, tree};
use crate::images::{self, Needed};
use crate::inputs::{self, Inputs};
use crate::kube::{get, list};
use crate::lock;
use crate::names::{self, Wired, loopback, tls};
use crate::store::{self, Store};
use crate::wait::{Look, Wait, wait_for};
use crate::{check, cli, plan, yaml};

/// Brings the environment up, or only says what that would be, and touches nothing.
pub async fn up(context: &Context, arguments: &cli::Up) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    if arguments.plan {
        return plan::show(context, &inputs).await;
    }
    evidence::prepare(context, &arguments.evidence)?;
    let _lock = lock::acquire(
        &context.paths.lock(&inputs.environment.id),
        "devenv up",
        &context.events,
        &context.stop,
    )
    .await?;
    let proven = bring_up(context, &inputs, false).await;
    let told = match &proven {
        Ok(Proven { exit, checked }) => Told::ended("up", *exit, checked),
        Err(error) => Told::failed("up", error),
    };
    evidence::keep(context, &inputs, &arguments.evidence, &told).await;
    Ok(proven?.exit)
}

/// What bringing it up came to.
#[derive(Debug)]
pub struct Proven {
    /// The exit code.
    pub exit: Exit,
    /// Every check.
    pub checked: Vec<Checked>,
}

/// The work of `up`, with the lock held. `restarted` says that the nodes were just started again.
pub async fn bring_up(
    context: &Context,
    inputs: &Inputs,
    restarted: bool,
) -> anyhow::Result<Proven> {
    say_what_is_left_out(context, inputs);
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, &inputs.environment).await?;
    let action = wake(context, &docker, inputs, &nodes).await?;
    let restarted = restarted || matches!(action, Action::Start(_));
    let program = match &action {
        Action::Keep | Action::Start(_) => None,
        Action::Create => {
            refuse_taken(&docker, inputs, For::Making).await?;
            Some(cluster::find_program(context, &inputs.environment).await?)
        }
        Action::Recreate(_) => Some(cluster::find_program(context, &inputs.environment).await?),
    };

    if program.is_some() {
        doctor::before_making(context, &docker, inputs).await?;
    }

    let needed = Needed::by(inputs)?;
    let store = Store::open(&context.paths.store())?;
    fill_store(context, &docker, inputs, &store, &needed).await?;

    if let Action::Recreate(reason) = &action {
        context.events.notice(format!(
            "the cluster {} is half-made ({reason}): it is made anew",
            inputs.environment.cluster
        ));
        cluster::remove(&docker, &inputs.environment, &nodes).await?;
    }
    let names = names::wanted(inputs);
    let (wired, names_changed) = wire_names(context, inputs, &names).await?;

    let beginning = Beginning { names, restarted };
    let names = &beginning.names;
    // Everything from here on runs side by side and waits for just what it needs.
    let (arrived, arrivals) = watch::channel::<Arrived>(Some(BTreeSet::new()));
    let mut cluster = pin!(
        make_cluster(
            context,
            &docker,
            inputs,
            &store,
            &needed,
            program.as_deref()
        )
        .fuse()
    );
    let all = async {
        tokio::try_join!(
            cluster.as_mut(),
            load_images(context, &docker, inputs, &store, &needed, &arrived),
            set_up_gitops(
                context, &docker, inputs, &store, &needed, &beginning, arrivals
            ),
        )
    }
    .await;
    if all.is_err() && context.stop.is_requested() {
        // The provider's program is given the time to end in order, though the others have given up already.
        if !cluster.is_terminated() {
            let _ = cluster.await;
        }
        return Err(context.stop.error());
    }
    let ((), loaded, applied) = all?;
    let proven = prove(context, &docker, inputs, &applied.client, names).await?;
    let changed = action != Action::Keep || loaded > 0 || applied.changed || names_changed;
    let total = inputs.bundles.len();
    let (exit, proof) = match check::verdict(&proven) {
        // Whoever may not write the names was told so where it was tried.
        (Exit::Ready | Exit::NamesNotWired, _) => (wired, checks::counted(&proven)),
        (exit, proof) => (exit, proof),
    };
    let what = match (exit, changed || beginning.restarted) {
        (Exit::CheckFailed, _) => "up",
        (_, true) => "ready",
        (_, false) => "nothing to change",
    };
    if exit != Exit::CheckFailed {
        keep_state(context, &docker, inputs, changed, &applied.revision).await?;
    }
    context.events.verdict(format!(
        "{what}: {total} of {total} applications healthy at {}; checks: {proof}",
        short(&applied.revision)
    ));
    Ok(Proven {
        exit,
        checked: proven,
    })
}

/// Saves the state that has just passed all checks, for `reset`; one that nothing changed since is kept. That it can't be saved
/// is no failure of the platform's.
async fn keep_state(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    changed: bool,
    revision: &str,
) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    let nodes = cluster::containers(docker, environment).await?;
    let there = saved::all(docker, environment, &nodes).await?;
    if !changed && there.iter().any(|snapshot| snapshot.name == saved::HEALTHY) {
        return Ok(());
    }
    let step = context.events.step("snapshot");
    let saved = saved::save(docker, environment, &nodes, saved::HEALTHY, revision, &step).await;
    match saved {
        Ok(snapshot) => step.done(format!("{} MiB saved for reset", snapshot.mebibytes)),
        Err(error) if context.stop.is_requested() => return Err(error),
        Err(error) => {
            step.unchanged("not saved");
            context.events.notice(format!(
                "the state wasn't saved, so `devenv reset` will make the cluster anew: {error:#}"
            ));
        }
    }
    Ok(())
}

/// Leads the platform's names to this machine, as far as that is allowed; says which exit code that comes to, and whether
/// anything was changed.
pub async fn wire_names(
    context: &Context,
    inputs: &Inputs,
    names: &BTreeSet<String>,
) -> anyhow::Result<(Exit, bool)> {
    if names.is_empty() {
        return Ok((Exit::Ready, false));
    }
    let step = context.events.step("names");
    let environment = &inputs.environment;
    let authority = tls::authority(&context.paths, &environment.domain)?;
    let ipv6 = loopback::is_ours(tree::https_port(inputs), names, &authority).await;
    if let Some(news) = authority.news() {
        context.events.notice(news);
    }
    let wired = names::wire(context, environment, names, ipv6, &step).await?;
    let changed = wired == Wired::Changed;
    match wired {
        Wired::Unchanged => step.unchanged(format!("{} names lead here", names.len())),
        Wired::Changed => step.done(format!("{} names lead here", names.len())),
        Wired::Off => step.unchanged("left alone (hosts: off)"),
        not_wired @ Wired::NotWired { .. } => {
            step.unchanged("not wired");
            if let Some(notice) = not_wired.notice() {
                context.events.notice(notice);
            }
            return Ok((Exit::NamesNotWired, false));
        }
    }
    Ok((Exit::Ready, changed))
}

/// How long what was just started may take until it passes its checks.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// All checks, all results.
async fn prove(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    client: &Client,
    names: &BTreeSet<String>,
) -> anyhow::Result<Vec<Checked>> {
    let step = context.events.step("checks");
    let proven = check::prove(
        context,
        inputs,
        docker,
        client,
        names,
        SETTLES_WITHIN,
        &step,
    )
    .await?;
    step.unchanged(checks::counted(&proven));
    for checked in &proven {
        context.events.checked(checked.clone());
    }
    Ok(proven)
}

/// A part that isn't there is named, never passed over.
fn say_what_is_left_out(context: &Context, inputs: &Inputs) {
    let environment = &inputs.environment;
    if !environment.exclude.is_empty() {
        context.events.notice(format!(
            "{} leaves out: {}",
            environment.name,
            environment.exclude.join(", ")
        ));
    }
}

/// Fetches or builds what the store lacks.
pub async fn fill_store(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
) -> anyhow::Result<()> {
    let step = context.events.step("store");
    let filled = images::fill(context, docker, store, inputs, needed, &step).await?;
    match filled.fetched.len() {
        0 => step.unchanged(format!("all {} entries are there", filled.found)),
        count => step.done(format!(
            "{count} entries fetched, {} were there",
            filled.found
        )),
    }
    Ok(())
}

/// Looks what is there of the cluster, and starts what is stopped; says what is left to do about it. Only an API server that
/// answers can tell whether a cluster is whole.
async fn wake(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    nodes: &[Node],
) -> anyhow::Result<Action> {
    let environment = &inputs.environment;
    let action = cluster::decide(&cluster::observe(docker, environment, nodes).await?);
    if matches!(action, Action::Create | Action::Recreate(_)) {
        return Ok(action);
    }
    if let Some(difference) = cluster::differs(inputs, nodes) {
        return Err(cluster::refuse_different(environment, &difference));
    }
    let step = context.events.step("cluster");
    saved::finish_restore(docker, environment, nodes, &step).await?;
    if let Action::Start(stopped) = &action {
        refuse_taken(docker, inputs, For::Starting).await?;
        cluster::start(docker, stopped, &step).await?;
    }
    let client = cluster::api(context, docker, environment, &step).await?;
    if let Some(reason) = cluster::unfinished(&client, environment.provider, nodes).await? {
        step.done(format!("{} is half-made", environment.cluster));
        return Ok(Action::Recreate(reason));
    }
    match &action {
        Action::Start(stopped) => step.done(format!("started {}", stopped.join(", "))),
        _ => step.unchanged(format!("{} runs", environment.cluster)),
    }
    Ok(action)
}

/// Makes the cluster, where the provider's program was looked for because there is none.
async fn make_cluster(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
    program: Option<&Path>,
) -> anyhow::Result<()> {
    let Some(program) = program else {
        return Ok(());
    };
    let step = context.events.step("cluster");
    let sources = images::sources(docker, inputs);
    for image in [&needed.node].into_iter().chain(&needed.helpers) {
        store::load(docker, store, image, sources, &context.stop, &step).await?;
    }
    cluster::create(context, docker, inputs, program, &step).await?;
    step.done(format!("{} created", inputs.environment.cluster));
    Ok(())
}

/// Brings the images into the nodes; says how many.
async fn load_images(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
    arrived: &watch::Sender<Arrived>,
) -> anyhow::Result<usize> {
    let step = context.events.step("images");
    let loaded = images::load(context, docker, store, inputs, needed, arrived, &step).await?;
    match loaded {
        0 => step.unchanged("all are in the nodes"),
        count => step.done(format!("{count} loaded")),
    }
    Ok(loaded)
}

/// What is known before GitOps is set up.
struct Beginning {
    /// The platform's names.
    names: BTreeSet<String>,
    /// Whether the nodes were just started again.
    restarted: bool,
}

/// What setting up GitOps came to.
struct Applied {
    changed: bool,
    revision: String,
    client: Client,
}

/// Argo CD, the bundles in its git, and every Application ready.
async fn set_up_gitops(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
    beginning: &Beginning,
    mut arrivals: watch::Receiver<Arrived>,
) -> anyhow::Result<Applied> {
    let step = context.events.step("argo cd");
    let client = cluster::api(context, docker, &inputs.environment, &step).await?;
    let Beginning { names, restarted } = beginning;
    let since = match restarted {
        true => last_start(docker, inputs).await?,
        false => None,
    };
    if since.is_some() {
        restart::forget_leaders(&client).await?;
    }
    let (definitions, rest) = manifests(inputs, store, needed)?;
    let mut changed = argocd::install_definitions(&client, &definitions).await?;
    let theirs = tree::definitions(inputs, store)?;
    let ((), made, tuned) = tokio::try_join!(
        wait_for_images(context, &step, &mut arrivals, needed),
        provide::apply_definitions(&client, &theirs),
        cluster::dns::tune(context, inputs.environment.provider, &client, names, &step),
    )?;
    changed.extend(made);
    changed.extend(tuned);
    changed.extend(argocd::install(&client, &rest).await?);
    if let Some(since) = since {
        restart::wait_for_pods(context, &client, &[argocd::NAMESPACE], since, &step).await?;
    }
    let (revision, ()) = tokio::try_join!(
        push(context, inputs, store, &client, &step),
        cluster::dns::wait_until_it_answers(context, &client, &step),
    )?;
    match changed.len() {
        0 => step.unchanged(format!("{} is installed", argocd::VERSION)),
        count => step.done(format!(
            "{} installed: {count} objects written",
            argocd::VERSION
        )),
    }

    let step = context.events.step("applications");
    let goal = goal(inputs, &revision);
    let authority = tls::authority(&context.paths, &inputs.environment.domain)?;
    let provisions = Provisions {
        bundles: &goal.bundles,
        authority: &authority,
        names,
        address: node_address(docker, inputs).await?,
    };
    if let Some(since) = since {
        let namespaces: BTreeSet<&str> = goal
            .bundles
            .iter()
            .map(|bundle| bundle.namespace.as_str())
            .collect();
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        restart::wait_for_pods(context, &client, &namespaces, since, &step).await?;
    }
    let all_ready = async {
        let settled = settle(context, &client, &goal, arrivals, &step);
        let (waited, ()) = tokio::try_join!(settled, wait_for_workloads(context, &client, &step))?;
        anyhow::Ok(waited)
    };
    let waited = tokio::select! {
        waited = all_ready => waited?,
        Err(error) = provide::provide(context, &client, &provisions) => return Err(error),
    };
    match waited {
        0 => step.unchanged(format!("{} healthy", goal.bundles.len())),
        _ => step.done(format!("{} healthy", goal.bundles.len())),
    }
    Ok(Applied {
        changed: !changed.is_empty() || waited > 0,
        revision,
        client,
    })
}

/// When the last of the nodes was started.
async fn last_start(docker: &Docker, inputs: &Inputs) -> anyhow::Result<Option<SystemTime>> {
    let nodes = cluster::containers(docker, &inputs.environment).await?;
    Ok(cluster::pod_nodes(&nodes)
        .filter_map(|node| node.started)
        .max())
}

/// The address that LoadBalancers get from us: that at which the node's ports answer inside Docker's network, and on Linux
/// from this machine too. None where something in the cluster gives them one.
pub async fn node_address(docker: &Docker, inputs: &Inputs) -> anyhow::Result<Option<Ipv4Addr>> {
    if inputs.cluster_config.gives_addresses() {
        return Ok(None);
    }
    let nodes = cluster::containers(docker, &inputs.environment).await?;
    Ok(cluster::front(&nodes).and_then(|node| node.address))
}

/// Argo CD's objects and the git source's, under the image names of the environment: definitions, and the rest.
pub fn manifests(
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
) -> anyhow::Result<(Vec<serde_json::Value>, Vec<serde_json::Value>)> {
    let manifest = images::read_file(store, &needed.manifest)?;
    let upstream = yaml::documents(argocd::MANIFEST, &manifest)?;
    let names = inputs
        .environment
        .image_names
        .iter()
        .map(|(upstream, here)| (upstream.to_string(), here.to_string()))
        .collect();
    let (definitions, mut rest) = argocd::manifests(upstream, &names);
    rest.extend(source::manifests(
        &names
            .get(argocd::IMAGE)
            .cloned()
            .unwrap_or_else(|| argocd::IMAGE.to_owned()),
    ));
    Ok((definitions, rest))
}

/// Pods whose image isn't there yet would fall into the kubelet's back-off: Argo CD's images come first.
async fn wait_for_images(
    context: &Context,
    step: &Step,
    arrivals: &mut watch::Receiver<Arrived>,
    needed: &Needed,
) -> anyhow::Result<()> {
    let first: Vec<String> = needed
        .groups
        .first()
        .into_iter()
        .flatten()
        .map(|wanted| wanted.name.to_string())
        .collect();
    step.waiting("its images are on their way into the nodes");
    let here = arrivals.wait_for(|arrived| match arrived {
        None => true,
        Some(names) => first.iter().all(|name| names.contains(name)),
    });
    context
        .stop
        .or(here)
        .await?
        .context("loading the images ended early")?;
    Ok(())
}

/// How long pushes may be refused.
const REFUSED: Duration = Duration::from_secs(60);

/// Commits the working tree and pushes it into the cluster's git; returns the revision.
pub async fn push(
    context: &Context,
    inputs: &Inputs,
    store: &Store,
    client: &Client,
    step: &Step,
) -> anyhow::Result<String> {
    let repository = context.paths.git(&inputs.environment.id);
    let revision = git::commit(
        &repository,
        &tree::tree(inputs, store)?,
        step,
        &context.stop,
    )
    .await?;
    let wait = Wait {
        what: "the cluster's git".to_owned(),
        within: context.timeout,
        every: Duration::from_millis(200),
        hint: format!(
            "kubectl -n {} describe pod -l app.kubernetes.io/name={}",
            argocd::NAMESPACE,
            source::NAME
        ),
    };
    // Right after a restart of the node a pod still counts as ready that isn't running yet: its first refusals are no failure.
    let refused_since = Cell::new(None::<Instant>);
    wait_for(&wait, step, &context.stop, || async {
        let pod = match source::ready_pod(client).await? {
            Ok(pod) => pod,
            Err(why) => return Ok(Look::NotYet(why)),
        };
        let pushed = source::push(client, &pod, &repository, step, &context.stop).await;
        let Err(error) = pushed else {
            return Ok(Look::Ready(()));
        };
        let since = refused_since.get().unwrap_or_else(Instant::now);
        refused_since.set(Some(since));
        Ok(match since.elapsed() < REFUSED {
            true => Look::NotYet(format!("{error:#}")),
            false => Look::Never(format!("{error:#}")),
        })
    })
    .await?;
    Ok(revision)
}

/// Where the Applications have to get to.
pub fn goal(inputs: &Inputs, revision: &str) -> Goal {
    let names = &inputs.environment;
    let mut bundles = inputs.bundles.clone();
    for bundle in &mut bundles {
        // From here on an image goes by the name it has in this environment.
        bundle.images = bundle
            .images
            .iter()
            .map(|image| names.image(image).clone())
            .collect();
    }
    Goal {
        bundles,
        excluded: names.exclude.iter().cloned().collect(),
        revision: revision.to_owned(),
        overlay: tree::overlay(names).to_owned(),
    }
}

/// Every workload of Argo CD and the git source, ready.
async fn wait_for_workloads(context: &Context, client: &Client, step: &Step) -> anyhow::Result<()> {
    let step = step.child("argo cd's own pods");
    let wait = Wait {
        what: "Argo CD's own pods".to_owned(),
        within: context.timeout,
        every: Duration::from_millis(500),
        hint: format!("kubectl -n {} get pods", argocd::NAMESPACE),
    };
    wait_for(&wait, &step, &context.stop, || async {
        for (kind, name) in argocd::WORKLOADS {
            let workload = get(client, "apps/v1", kind, argocd::NAMESPACE, name).await?;
            let lacks = match &workload {
                None => Some(format!("{name}: not there")),
                Some(workload) => argocd::workload_lacks(workload),
            };
            if let Some(lacks) = lacks {
                let theirs = format!("app.kubernetes.io/name={name}");
                let pods = list(client, "v1", "Pod", Some(argocd::NAMESPACE), &theirs).await?;
                let why = pods.iter().find_map(explain::pod);
                return Ok(Look::NotYet(
                    why.map_or(lacks.clone(), |why| format!("{lacks} ({why})")),
                ));
            }
        }
        Ok(Look::Ready(()))
    })
    .await?;
    step.unchanged("ready");
    Ok(())
}
