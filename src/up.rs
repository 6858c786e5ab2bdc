//! `devenv up`: create or repair an environment until everything is proven ready.
//!
//! The order is the one a person would tell it in: read and check what was written; look what is there; fill the store;
//! then make the cluster, and load images and set up Argo CD as soon as each can begin. Everything is safe to run again.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use futures::FutureExt as _;
use futures::future::FusedFuture as _;
use kube::Client;
use tokio::sync::watch;

use crate::checks::{self, Checked};
use crate::cluster::kept::{self, Kept, MadeOf};
use crate::cluster::ports::{For, refuse_taken};
use crate::cluster::{self, Action, ours, restart, saved, travel};
use crate::context::Context;
use crate::docker::{self, Docker, Node};
use crate::doctor;
use crate::error::Exit;
use crate::event::Step;
use crate::evidence::{self, Told};
use crate::existing;
use crate::gitops::provide::Provisions;
use crate::gitops::settle::{Arrived, Goal, settle};
use crate::gitops::waves::short;
use crate::gitops::{argocd, explain, git, provide, source, tree};
use crate::images::{self, Needed};
use crate::inputs::{self, Inputs};
use crate::kube::{get, list};
use crate::lock;
use crate::names::hosts::{Balancer, Leads};
use crate::names::tls::{self, Authority};
use crate::names::{self, Wired, loopback};
use crate::store::{self, Store};
use crate::wait::{Look, Wait, wait_for};
use crate::{check, cli, plan, yaml};

/// Brings the environment up, or only says what that would be, and touches nothing.
pub async fn up(context: &Context, arguments: &cli::Up) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    if arguments.plan {
        return plan::show(context, &inputs, arguments).await;
    }
    if inputs.environment.existing.is_some() && arguments.from.is_some() {
        let what = "`--from` gives a state to nodes that are made";
        let instead = format!("devenv up --environment {}", inputs.environment.name);
        return Err(cluster::not_with_existing(
            &inputs.environment,
            what,
            instead,
        ));
    }
    evidence::prepare(context, &arguments.evidence)?;
    let state = match &arguments.from {
        Some(file) => Some(Box::new(travel::open(file)?)),
        None => None,
    };
    let from = match (state, arguments.fresh) {
        (Some(state), _) => From::File(state),
        (None, true) => From::Nothing,
        (None, false) => From::Kept,
    };
    let _lock = lock::acquire(
        &context.paths.lock(&inputs.environment.id),
        "devenv up",
        &context.events,
        &context.stop,
    )
    .await?;
    let how = How {
        from,
        yes: arguments.yes,
        ..How::default()
    };
    let proven = bring_up(context, &inputs, how).await;
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

/// Where a cluster that has to be made may begin.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum From {
    /// With nothing: whatever is kept is removed.
    Nothing,
    /// With what `down` kept, if that fits.
    #[default]
    Kept,
    /// With a state that somebody exported.
    File(Box<travel::File>),
}

/// What is known beforehand.
#[derive(Debug, Clone, Default)]
pub struct How {
    /// Where a cluster that has to be made may begin.
    pub from: From,
    /// The nodes were just started again.
    pub restarted: bool,
    /// The question that is asked before something is put into somebody's cluster is answered already.
    pub yes: bool,
}

/// The work of `up`, with the lock held.
pub async fn bring_up(context: &Context, inputs: &Inputs, how: How) -> anyhow::Result<Proven> {
    say_what_is_left_out(context, inputs);
    match inputs.environment.existing {
        Some(_) => existing::bring_up(context, inputs, how.yes).await,
        None => bring_up_nodes(context, inputs, how.from, how.restarted).await,
    }
}

/// On nodes that are devenv's own.
async fn bring_up_nodes(
    context: &Context,
    inputs: &Inputs,
    from: From,
    restarted: bool,
) -> anyhow::Result<Proven> {
    ours::tidy(&context.paths, &inputs.environment)?;
    let docker = docker::connect().await?;
    let needed = Needed::by(inputs)?;
    let nodes = cluster::nodes(&docker, &inputs.environment).await?;
    let nodes = kept::finish_down(&docker, &inputs.environment, nodes).await?;
    let action = wake(context, &docker, inputs, &nodes).await?;
    if action == Action::Create {
        refuse_taken(&docker, inputs, For::Making).await?;
    }
    let beginning = begin_with(context, &docker, inputs, &needed, from, &action).await?;
    let restarted = restarted
        || matches!(action, Action::Start(_))
        || matches!(beginning, Beginning::State(_) | Beginning::File(_));

    if beginning != Beginning::Running {
        doctor::before_making(context, &docker, inputs).await?;
    }

    let store = Store::open(&context.paths.store())?;
    fill_store(context, &docker, inputs, &store, &needed).await?;

    if let Action::Recreate(reason) = &action {
        context.events.notice(format!(
            "the cluster {} is half-made ({reason}): it is made anew",
            inputs.environment.cluster
        ));
        // What a killed one left beside the nodes holds their volumes.
        saved::remove_helpers(&docker, &inputs.environment).await?;
        match beginning {
            Beginning::State(_) => {
                cluster::remove_but_volumes(&docker, &inputs.environment, &nodes).await?
            }
            _ => {
                let removed = cluster::remove(&docker, &inputs.environment, &nodes).await?;
                kept::purge(&docker, &inputs.environment).await?;
                removed
            }
        };
    }
    let Wiring {
        exit: wired,
        changed: names_changed,
    } = wire_names(context, inputs, None).await?;

    // Everything from here on runs side by side and waits for just what it needs.
    let (arrived, arrivals) = watch::channel::<Arrived>(Some(BTreeSet::new()));
    let mut cluster =
        pin!(make_cluster(context, &docker, inputs, &store, &needed, &beginning).fuse());
    let all = async {
        tokio::try_join!(
            cluster.as_mut(),
            load_images(
                context, &docker, inputs, &store, &needed, &arrived, &beginning
            ),
            set_up_gitops_on_nodes(
                context, &docker, inputs, &store, &needed, restarted, arrivals
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
    let ((), loaded, (applied, client)) = all?;
    let proven = prove(context, Some(&docker), inputs, &client, &applied.authority).await?;
    let changed = action != Action::Keep
        || loaded > 0
        || applied.written
        || applied.waited > 0
        || names_changed;
    let outcome = Outcome::of(inputs, &applied, wired, changed || restarted, proven);
    if outcome.proven.exit != Exit::CheckFailed {
        travel::is_proven(&context.paths, &inputs.environment)?;
        let made_of = MadeOf::now(inputs, &needed)?;
        // After a restart everything is waited for, and nothing is new by that.
        let is_new = match restarted {
            true => loaded > 0 || applied.written,
            false => changed,
        };
        keep_state(
            context,
            &docker,
            inputs,
            is_new,
            (&applied.revision, made_of),
        )
        .await?;
    }
    context.events.verdict(outcome.verdict);
    Ok(outcome.proven)
}

/// What bringing it up came to, and the last word about it.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code and the checks.
    pub proven: Proven,
    /// "ready: 2 of 2 applications healthy at 1a2b3c4; checks: 4 passed"
    pub verdict: String,
}

impl Outcome {
    /// From how the names are wired, whether anything was changed, and every check.
    pub fn of(
        inputs: &Inputs,
        applied: &Applied,
        wired: Exit,
        changed: bool,
        checked: Vec<Checked>,
    ) -> Self {
        let (exit, proof) = match check::verdict(&checked) {
            // Whoever may not write the names was told so where it was tried.
            (Exit::Ready | Exit::NamesNotWired, _) => (wired, checks::counted(&checked)),
            (exit, proof) => (exit, proof),
        };
        let what = match (exit, changed) {
            (Exit::CheckFailed, _) => "up",
            (_, true) => "ready",
            (_, false) => "nothing to change",
        };
        let total = inputs.bundles.len();
        Self {
            proven: Proven { exit, checked },
            verdict: format!(
                "{what}: {total} of {total} applications healthy at {}; checks: {proof}",
                short(&applied.revision)
            ),
        }
    }
}

/// Saves the state that has just passed all checks, for `reset`; one of this revision that isn't old by now is kept. That it
/// can't be saved is no failure of the platform's.
async fn keep_state(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    is_new: bool,
    tells: (&str, MadeOf),
) -> anyhow::Result<()> {
    let environment = &inputs.environment;
    let nodes = cluster::containers(docker, environment).await?;
    let there = saved::all(docker, environment, &nodes).await?;
    let holds_this = |snapshot: &saved::Snapshot| {
        snapshot.name == saved::HEALTHY && snapshot.revision == tells.0
    };
    if !is_new && there.iter().any(holds_this) {
        return Ok(());
    }
    let step = context.events.step("snapshot");
    let saved = saved::save(docker, environment, &nodes, saved::HEALTHY, tells, &step).await;
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

/// What leading the names somewhere came to.
#[derive(Debug, Clone, Copy)]
pub struct Wiring {
    /// The exit code for that.
    pub exit: Exit,
    /// Whether anything was changed.
    pub changed: bool,
}

impl Wiring {
    /// They lead where they are to, or there are none.
    pub const DONE: Self = Self {
        exit: Exit::Ready,
        changed: false,
    };
    /// This machine doesn't lead them there.
    pub const NOT_WIRED: Self = Self {
        exit: Exit::NamesNotWired,
        changed: false,
    };
}

/// Leads the platform's names to this machine, or to a load balancer where there is one elsewhere, as far as that is allowed.
pub async fn wire_names(
    context: &Context,
    inputs: &Inputs,
    balancer: Option<Balancer>,
) -> anyhow::Result<Wiring> {
    let names = &inputs.names;
    if names.is_empty() {
        return Ok(Wiring::DONE);
    }
    let step = context.events.step("names");
    let environment = &inputs.environment;
    let authority = tls::authority(&context.paths, &environment.domain)?;
    let (leads, place) = match balancer {
        Some(balancer) => (Leads::To(balancer), format!("to {}", balancer.address())),
        None => {
            let ipv6 = loopback::is_ours(tree::https_port(inputs), names, &authority).await;
            (Leads::Here { ipv6 }, "here".to_owned())
        }
    };
    if let Some(news) = authority.news() {
        context.events.notice(news);
    }
    let wired = names::wire(context, environment, names, leads, &step).await?;
    let changed = wired == Wired::Changed;
    match wired {
        Wired::Unchanged => step.unchanged(format!("{} names lead {place}", names.len())),
        Wired::Changed => step.done(format!("{} names lead {place}", names.len())),
        Wired::Off => step.unchanged("left alone (hosts: off)"),
        not_wired @ Wired::NotWired { .. } => {
            step.unchanged("not wired");
            if let Some(notice) = not_wired.notice() {
                context.events.notice(notice);
            }
            return Ok(Wiring::NOT_WIRED);
        }
    }
    Ok(Wiring {
        changed,
        ..Wiring::DONE
    })
}

/// How long what was just started may take until it passes its checks.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// All checks, all results. `docker` has the nodes, where they are devenv's own.
pub async fn prove(
    context: &Context,
    docker: Option<&Docker>,
    inputs: &Inputs,
    client: &Client,
    authority: &Authority,
) -> anyhow::Result<Vec<Checked>> {
    let step = context.events.step("checks");
    let proven = check::prove(
        context,
        inputs,
        docker,
        client,
        authority,
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
    let (sources, all) = (images::sources(docker, inputs), needed.all());
    let filled = images::fill(context, sources, store, inputs, needed, &all, &step).await?;
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
    saved::finish_restore(docker, nodes, &step).await?;
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

/// What the cluster begins with.
#[derive(Debug, PartialEq)]
enum Beginning {
    /// It is there.
    Running,
    /// The provider's program makes it.
    Nothing(PathBuf),
    /// What `down` kept.
    State(Box<Kept>),
    /// A state that somebody exported.
    File(Box<travel::File>),
}

/// Decides what the cluster begins with; says so, where that isn't the provider's program.
async fn begin_with(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    needed: &Needed,
    from: From,
    action: &Action,
) -> anyhow::Result<Beginning> {
    let environment = &inputs.environment;
    let is_there = matches!(action, Action::Keep | Action::Start(_));
    if let From::File(file) = from {
        if is_there && travel::is_begun_with(&context.paths, environment, &file) {
            return Ok(Beginning::Running);
        }
        if is_there {
            return Err(travel::refuse_cluster(environment));
        }
        if let Some(difference) = file.state.difference(&MadeOf::now(inputs, needed)?) {
            return Err(travel::refuse_other(&file, &difference));
        }
        kept::purge(docker, environment).await?;
        travel::begin_with(&context.paths, environment, &file)?;
        context.events.notice(format!(
            "{} starts from the state in {}, saved {}",
            environment.name,
            file.path.display(),
            saved::age(&file.state.snapshot.saved, SystemTime::now())
        ));
        return Ok(Beginning::File(file));
    }
    if is_there {
        return Ok(Beginning::Running);
    }
    let why = match kept::fitting(docker, inputs, needed).await? {
        Some(Ok(kept)) if from != From::Nothing => {
            context.events.notice(format!(
                "{} starts from its state of {}, which had passed all checks; `devenv up --fresh` begins with nothing",
                environment.name,
                saved::age(&kept.snapshot.saved, SystemTime::now())
            ));
            return Ok(Beginning::State(Box::new(kept)));
        }
        Some(Ok(_)) => Some("--fresh".to_owned()),
        Some(Err(difference)) => Some(difference),
        None => None,
    };
    if let Some(why) = why {
        context
            .events
            .notice(format!("the state that was kept is removed: {why}"));
    }
    let program = cluster::find_program(context, environment).await?;
    // Also one of which a volume is missing.
    if !matches!(action, Action::Recreate(_)) {
        kept::purge(docker, environment).await?;
    }
    Ok(Beginning::Nothing(program))
}

/// Makes the cluster, where there is none.
async fn make_cluster(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
    beginning: &Beginning,
) -> anyhow::Result<()> {
    if *beginning == Beginning::Running {
        return Ok(());
    }
    let environment = &inputs.environment;
    let step = context.events.step("cluster");
    let sources = images::sources(docker, inputs);
    for image in needed.node.iter().chain(&needed.helpers) {
        store::load(docker, store, image, sources, &context.stop, &step).await?;
    }
    match beginning {
        Beginning::Running => {}
        Beginning::Nothing(program) => {
            cluster::create(context, docker, inputs, program, &step).await?;
        }
        Beginning::State(kept) => {
            kept::make(context, docker, environment, kept, &step).await?;
        }
        Beginning::File(file) => travel::make(context, docker, environment, file, &step).await?,
    }
    step.done(format!("{} created", environment.cluster));
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
    beginning: &Beginning,
) -> anyhow::Result<usize> {
    let step = context.events.step("images");
    let loaded = images::load(context, docker, store, inputs, needed, arrived, &step).await?;
    if matches!(beginning, Beginning::File(_)) {
        travel::look_for_images(docker, &inputs.environment).await?;
    }
    match loaded {
        0 => step.unchanged("all are in the nodes"),
        count => step.done(format!("{count} loaded")),
    }
    Ok(loaded)
}

/// What GitOps is set up with.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// What a person wrote.
    pub inputs: &'a Inputs,
    /// It holds the files of the pushed tree.
    pub store: &'a Store,
    /// What the environment needs.
    pub needed: &'a Needed,
    /// When the nodes were last started, if they were just started again.
    pub since: Option<SystemTime>,
    /// What LoadBalancers get from us.
    pub address: Option<Ipv4Addr>,
}

/// What setting up GitOps came to.
#[derive(Debug)]
pub struct Applied {
    /// Whether an object was written.
    pub written: bool,
    /// How many Applications weren't ready at once.
    pub waited: usize,
    /// What was pushed.
    pub revision: String,
    /// Whose certificates the platform's names have.
    pub authority: Authority,
}

/// [`set_up_gitops`] as soon as the API server of nodes that are devenv's own answers; gives its client, too. `restarted` says
/// that the nodes were just started again.
async fn set_up_gitops_on_nodes(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
    restarted: bool,
    arrivals: watch::Receiver<Arrived>,
) -> anyhow::Result<(Applied, Client)> {
    let step = context.events.step("argo cd");
    let client = cluster::api(context, docker, &inputs.environment, &step).await?;
    let setting = Setting {
        inputs,
        store,
        needed,
        since: match restarted {
            true => last_start(docker, inputs).await?,
            false => None,
        },
        address: node_address(docker, inputs).await?,
    };
    let applied = set_up_gitops(context, &client, setting, arrivals, step).await?;
    Ok((applied, client))
}

/// Argo CD, the bundles in its git, and every Application ready. `step` is Argo CD's.
pub async fn set_up_gitops(
    context: &Context,
    client: &Client,
    setting: Setting<'_>,
    mut arrivals: watch::Receiver<Arrived>,
    step: Step,
) -> anyhow::Result<Applied> {
    let Setting {
        inputs,
        store,
        needed,
        since,
        address,
    } = setting;
    let environment = &inputs.environment;
    if since.is_some() {
        restart::forget_leaders(client).await?;
    }
    let (definitions, rest) = manifests(inputs, store, needed)?;
    let namespace = existing::marked(environment, argocd::namespace());
    let mut changed = argocd::install_definitions(client, namespace, &definitions).await?;
    let theirs = tree::definitions(inputs, store)?;
    let ((), made, tuned) = tokio::try_join!(
        wait_for_images(context, &step, &mut arrivals, needed),
        provide::apply_definitions(client, &theirs),
        cluster::dns::tune(context, environment.provider, client, &inputs.names, &step),
    )?;
    existing::mark_made(client, environment, &theirs, &made).await?;
    changed.extend(made);
    changed.extend(tuned);
    changed.extend(argocd::install(client, &rest).await?);
    if let Some(since) = since {
        restart::wait_for_pods(context, client, &[argocd::NAMESPACE], since, &step).await?;
    }
    let (revision, ()) = tokio::try_join!(
        push(context, inputs, store, client, &step),
        cluster::dns::wait_until_it_answers(context, environment.provider, client, &step),
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
    let authority = tls::authority(&context.paths, &environment.domain)?;
    let provisions = Provisions {
        bundles: &goal.bundles,
        authority: &authority,
        names: &inputs.names,
        address,
    };
    if let Some(since) = since {
        let namespaces: BTreeSet<&str> = goal
            .bundles
            .iter()
            .map(|bundle| bundle.namespace.as_str())
            .collect();
        let namespaces: Vec<&str> = namespaces.into_iter().collect();
        restart::wait_for_pods(context, client, &namespaces, since, &step).await?;
    }
    let all_ready = async {
        let settled = settle_with_git(context, client, inputs, &goal, arrivals, &step);
        let (waited, ()) = tokio::try_join!(settled, wait_for_workloads(context, client, &step))?;
        anyhow::Ok(waited)
    };
    let waited = provide::provide(context, client, &provisions, all_ready).await?;
    match waited {
        0 => step.unchanged(format!("{} healthy", goal.bundles.len())),
        _ => step.done(format!("{} healthy", goal.bundles.len())),
    }
    Ok(Applied {
        written: !changed.is_empty(),
        waited,
        revision,
        authority,
    })
}

/// [`settle`], with the cluster's git kept as it was pushed.
pub async fn settle_with_git(
    context: &Context,
    client: &Client,
    inputs: &Inputs,
    goal: &Goal,
    arrived: watch::Receiver<Arrived>,
    step: &Step,
) -> anyhow::Result<usize> {
    let repository = context.paths.git(&inputs.environment.id);
    tokio::select! {
        settled = settle(context, client, goal, arrived, step) => settled,
        never = source::keep_filled(client, &repository, step, &context.stop) => match never {},
    }
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
        .image_names
        .iter()
        .map(|(upstream, here)| (upstream.to_string(), here.to_string()))
        .collect();
    let (mut definitions, mut rest) = argocd::manifests(upstream, &names);
    rest.extend(source::manifests(
        &names
            .get(argocd::IMAGE)
            .cloned()
            .unwrap_or_else(|| argocd::IMAGE.to_owned()),
    ));
    for object in definitions.iter_mut().chain(&mut rest) {
        *object = existing::marked(&inputs.environment, std::mem::take(object));
    }
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
    if arrivals.borrow().is_some() {
        step.waiting("its images are on their way into the nodes");
    }
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
    let refused_since = OnceCell::new();
    wait_for(&wait, step, &context.stop, || async {
        let pod = match source::ready_pod(client).await? {
            Ok(pod) => pod,
            Err(why) => return Ok(Look::NotYet(why)),
        };
        let pushed = source::push(client, &pod, &repository, step, &context.stop).await;
        let Err(error) = pushed else {
            return Ok(Look::Ready(()));
        };
        let since = refused_since.get_or_init(Instant::now);
        Ok(match since.elapsed() < REFUSED {
            true => Look::NotYet(format!("{error:#}")),
            false => Look::Never {
                reason: format!("{error:#}"),
                hint: None,
            },
        })
    })
    .await?;
    Ok(revision)
}

/// Where the Applications have to get to.
pub fn goal(inputs: &Inputs, revision: &str) -> Goal {
    let environment = &inputs.environment;
    let mut bundles = inputs.bundles.clone();
    for bundle in &mut bundles {
        // From here on an image goes by the name it has in this environment.
        bundle.images = bundle
            .images
            .iter()
            .map(|image| inputs.image_in_cluster(image).clone())
            .collect();
    }
    Goal {
        bundles,
        excluded: environment.exclude.iter().cloned().collect(),
        revision: revision.to_owned(),
        overlay: tree::overlay(environment).to_owned(),
        images_are_pulled: environment.existing.is_some(),
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
