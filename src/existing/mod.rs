//! `provider: existing`: the platform on a cluster that is there already, whoever made it: the way out when one machine is too
//! small, and the same bundles on a real cluster of many nodes.
//!
//! The cluster is neither made nor removed, and nothing of Docker's is asked for. It is reached by the one context that the
//! environment's file names (`reach`). What is in it is looked at before anything is written (`facts`, `rights`); what
//! there is to do is shown, and asked for once. All that is made carries the label [`MARK`], and `down` removes that and
//! nothing else ([`remove`]).
//!
//! Not in here, because it isn't devenv's there: images in nodes (they are pulled from registries), saved states, CoreDNS, ports.

mod address;
mod facts;
mod reach;
mod remove;
mod rights;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use facts::MARK;
pub use remove::remove;

use self::facts::Facts;
use crate::context::Context;
use crate::docker::Platform;
use crate::environment::{Environment, HostsFile};
use crate::error::{Exit, Failure};
use crate::event::Step;
use crate::gitops::argocd;
use crate::gitops::tree;
use crate::images::{self, Needed};
use crate::inputs::Inputs;
use crate::kube::{FIELD_MANAGER, apply, get, label, list, text};
use crate::names::hosts::Balancer;
use crate::store::push::Has;
use crate::store::{self, Name, Store};
use crate::up::{self, Outcome, Proven, Setting, Wiring};
use crate::wait::{Look, Wait, wait_for};
use crate::{names, plan, report};

/// A client for the environment's cluster; an error where its API server doesn't answer.
pub async fn client(context: &Context, environment: &Environment) -> anyhow::Result<Client> {
    reach::client(context, environment).await
}

/// The same, for what can only be asked of a platform that is there.
pub async fn running(context: &Context, environment: &Environment) -> anyhow::Result<Client> {
    let client = reach::client(context, environment).await?;
    match is_begun(&client, environment).await? {
        true => Ok(client),
        false => Err(Failure::Other {
            message: format!(
                "the platform of {} isn't in the cluster of the context {}",
                environment.name, environment.cluster
            ),
            hint: format!("devenv up --environment {}", environment.name),
        }
        .into()),
    }
}

/// The namespace argocd, if this environment made it.
pub async fn argocd_namespace(
    client: &Client,
    environment: &Environment,
) -> anyhow::Result<Option<Value>> {
    let namespace = get(client, "v1", "Namespace", "", argocd::NAMESPACE).await?;
    let mark = format!("/metadata/labels/{MARK}");
    Ok(namespace.filter(|namespace| text(namespace, &mark) == environment.id))
}

async fn is_begun(client: &Client, environment: &Environment) -> anyhow::Result<bool> {
    let namespace = argocd_namespace(client, environment).await?;
    Ok(namespace.is_some())
}

/// The label, on an object that belongs to no namespace; what is in one goes with it.
pub fn marked(environment: &Environment, mut object: Value) -> Value {
    let is_ours_to_mark = environment.existing.is_some();
    if is_ours_to_mark && text(&object, "/metadata/namespace").is_empty() {
        object["metadata"]["labels"][MARK] = json!(environment.id);
    }
    object
}

/// The work of `up`, with the lock held. `yes` is the answer to the one question.
pub async fn bring_up(context: &Context, inputs: &Inputs, yes: bool) -> anyhow::Result<Proven> {
    let environment = &inputs.environment;
    let step = context.events.step("cluster");
    step.waiting(format!(
        "the cluster of the context {}",
        environment.cluster
    ));
    let client = reach::client(context, environment).await?;
    let needed = Needed::by(inputs)?;
    let store = Store::open(&context.paths.store())?;
    fill_store(context, inputs, &store, &needed).await?;
    let definitions = definitions(inputs, &store)?;
    let facts = observe(context, &client, inputs, &definitions, &step).await?;
    if let Some(refusal) = facts::refusal(&facts, inputs) {
        return Err(refusal.into());
    }
    step.unchanged(format!("{} is there", environment.cluster));
    if !facts.is_begun() {
        refuse_lacking_images(context, inputs, &needed).await?;
        agree(context, inputs, &facts, &definitions, yes).await?;
    }

    reach::write_kubeconfig(context, environment)?;
    let made = make_namespaces(&client, inputs).await?;
    // Nodes pull their images themselves.
    let (_, arrivals) = watch::channel(None);
    let setting = Setting {
        inputs,
        store: &store,
        needed: &needed,
        since: None,
        address: None,
    };
    let waited_for = namespaces(inputs);
    let step = context.events.step("argo cd");
    let applied = tokio::select! {
        applied = up::set_up_gitops(context, &client, setting, arrivals, step) => applied?,
        error = address::watch(context, &client, &waited_for) => return Err(error),
    };

    let Wiring {
        exit: wired,
        changed,
    } = wire_names(context, inputs, &client).await?;
    let checked = up::prove(context, None, inputs, &client, &applied.authority).await?;
    let changed = changed || applied.written || applied.waited > 0 || !made.is_empty();
    let outcome = Outcome::of(inputs, &applied, wired, changed, checked);
    context.events.verdict(outcome.verdict);
    Ok(outcome.proven)
}

/// A private registry that lacks an image shows now, and not when pods wait for it. One that can't be asked from here may be
/// reached by the nodes all the same.
async fn refuse_lacking_images(
    context: &Context,
    inputs: &Inputs,
    needed: &Needed,
) -> anyhow::Result<()> {
    let existing = reach::existing(&inputs.environment)?;
    let Some(registry) = &existing.registry else {
        return Ok(());
    };
    let places = needed
        .in_nodes()
        .iter()
        .filter_map(|wanted| match &wanted.name {
            Name::Image(image) => Some(registry.place(image)),
            Name::File(_) => None,
        })
        .collect::<Result<Vec<_>, _>>()?;
    let step = context.events.step("registry");
    step.waiting(format!("whether {registry} has the images"));
    match context.stop.or(store::push::has(&places, &step)).await?? {
        Has::All => step.unchanged(format!("{registry} has all {} images", places.len())),
        Has::Unknown(why) => {
            step.unchanged("can't be asked from here");
            context.events.notice(format!(
                "whether {registry} has the images can't be seen from here: {why}"
            ));
        }
        Has::Lacks(lacking) => {
            let names: Vec<String> = lacking.iter().map(ToString::to_string).collect();
            return Err(Failure::Other {
                message: format!("the registry lacks images: {}", names.join(", ")),
                hint: format!(
                    "devenv images push --environment {}",
                    inputs.environment.name
                ),
            }
            .into());
        }
    }
    Ok(())
}

/// Fetches or builds what the pushed tree lacks: files. Images are the registry's.
pub async fn fill_store(
    context: &Context,
    inputs: &Inputs,
    store: &Store,
    needed: &Needed,
) -> anyhow::Result<()> {
    let step = context.events.step("store");
    let wanted = needed.files();
    // Files are the same for all platforms.
    let platform = Platform::default();
    let sources = images::sources_for(&platform, inputs);
    let filled = images::fill(context, sources, store, inputs, needed, &wanted, &step).await?;
    match filled.fetched.len() {
        0 => step.unchanged(format!("all {} files are there", filled.found)),
        count => step.done(format!(
            "{count} files fetched, {} were there",
            filled.found
        )),
    }
    Ok(())
}

/// The names of the definitions that the bundles bring.
fn definitions(inputs: &Inputs, store: &Store) -> anyhow::Result<BTreeSet<String>> {
    let all = tree::definitions(inputs, store)?;
    Ok(all
        .iter()
        .map(|definition| text(definition, "/metadata/name").to_owned())
        .collect())
}

/// Looks at the cluster; a namespace that a `down` is just removing is waited for first.
async fn observe(
    context: &Context,
    client: &Client,
    inputs: &Inputs,
    definitions: &BTreeSet<String>,
    step: &Step,
) -> anyhow::Result<Facts> {
    let wait = Wait {
        what: "namespaces that are being removed to be gone".to_owned(),
        within: context.timeout,
        every: Duration::from_secs(1),
        hint: format!(
            "kubectl --context {} get namespaces; devenv down removes what is left of an earlier up",
            inputs.environment.cluster
        ),
    };
    // An answer that can't be had is told at once; only what is going is worth waiting for.
    let first = facts::observe(client, inputs, definitions).await?;
    if first.leaving().is_empty() {
        return Ok(first);
    }
    wait_for(&wait, step, &context.stop, || async {
        let facts = facts::observe(client, inputs, definitions).await?;
        Ok(match facts.leaving().as_slice() {
            [] => Look::Ready(facts),
            leaving => Look::NotYet(format!("{} is going", leaving.join(", "))),
        })
    })
    .await
}

/// What there would be to do, as lines of a plan.
fn plan_text(
    context: &Context,
    inputs: &Inputs,
    facts: &Facts,
    definitions: &BTreeSet<String>,
) -> String {
    let environment = &inputs.environment;
    let mut lines = facts.lines(inputs, definitions);
    if !inputs.names.is_empty() && environment.hosts != HostsFile::Off {
        let list: Vec<&str> = inputs.names.iter().map(String::as_str).collect();
        lines.push((
            "names",
            format!(
                "lead {} to the load balancer's address in {}",
                list.join(", "),
                names::HOSTS
            ),
        ));
    }
    let kubeconfig = context.paths.kubeconfig(&environment.id);
    lines.push(("kubeconfig", format!("write {}", kubeconfig.display())));
    lines.push((
        "down",
        "`devenv down` removes what this makes, and nothing else".to_owned(),
    ));
    lines
        .iter()
        .fold(String::new(), |mut text, (subject, what)| {
            let _ = writeln!(text, "  {subject:13} {what}");
            text
        })
}

/// `up --plan`.
pub async fn show_plan(context: &Context, inputs: &Inputs) -> anyhow::Result<Exit> {
    let environment = &inputs.environment;
    let client = reach::client(context, environment).await?;
    let needed = Needed::by(inputs)?;
    let store = match Store::look(&context.paths.store())? {
        Some(store) if store::missing(&store, &needed.files())?.is_empty() => Some(store),
        _ => None,
    };
    let definitions = match &store {
        Some(store) => definitions(inputs, store)?,
        None => BTreeSet::new(),
    };
    let facts = facts::observe(&client, inputs, &definitions).await?;
    if let Some(refusal) = facts::refusal(&facts, inputs) {
        return Err(refusal.into());
    }
    let mut text = plan_text(context, inputs, &facts, &definitions);
    if facts.is_begun()
        && let Some(store) = &store
    {
        // What is there can be compared.
        for line in plan::of_gitops(context, inputs, store, &needed, &client).await? {
            let _ = writeln!(text, "  {:13} {line}", "argo cd");
        }
    }
    report::data(&format!(
        "plan for {} (nothing was touched)\n{text}",
        environment.name
    ))?;
    Ok(Exit::Ready)
}

/// Looks whether there is anything in the way, for `doctor`; says what was seen.
pub async fn examine(context: &Context, inputs: &Inputs) -> anyhow::Result<String> {
    let client = reach::client(context, &inputs.environment).await?;
    let facts = facts::observe(&client, inputs, &BTreeSet::new()).await?;
    match facts::refusal(&facts, inputs) {
        Some(refusal) => Err(refusal.into()),
        None => Ok(format!(
            "{}: Kubernetes {}, {} node(s), with all the rights and volumes that are needed",
            facts.context, facts.version, facts.nodes
        )),
    }
}

/// Shows the plan, and asks: once, before the first write into somebody's cluster.
async fn agree(
    context: &Context,
    inputs: &Inputs,
    facts: &Facts,
    definitions: &BTreeSet<String>,
    yes: bool,
) -> anyhow::Result<()> {
    let name = &inputs.environment.name;
    let cluster = &facts.context;
    let is_there = io::stdin().is_terminal() && io::stderr().is_terminal() && !names::is_ci();
    if !yes && !is_there {
        return Err(Failure::Usage {
            message: format!(
                "this would write into the cluster of the context {cluster}, which isn't devenv's own, and there is nobody to ask"
            ),
            hint: format!(
                "see what it would do: `devenv up --plan --environment {name}`; and if that is meant: devenv up --yes --environment {name}"
            ),
        }
        .into());
    }
    context.events.notice(format!(
        "plan for {name}:\n{}",
        plan_text(context, inputs, facts, definitions).trim_end()
    ));
    if yes {
        return Ok(());
    }
    let question = format!("Put {name} into the cluster of the context {cluster}?");
    let answer = {
        let _terminal = context.events.borrow_terminal().await;
        context.stop.or(report::ask(&question)).await??
    };
    match answer {
        true => Ok(()),
        false => Err(Failure::Usage {
            message: "not begun: nothing was written into the cluster".to_owned(),
            hint: format!("devenv up --environment {name} asks again"),
        }
        .into()),
    }
}

/// The namespaces argocd and of the bundles, each with our mark: the first write of all.
async fn make_namespaces(client: &Client, inputs: &Inputs) -> anyhow::Result<Vec<String>> {
    let environment = &inputs.environment;
    let of_bundles = inputs
        .namespaces
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    // Argo CD's first: it says that this environment has begun to be there.
    let argocd = marked(environment, argocd::namespace());
    let mut made = apply(client, FIELD_MANAGER, &[argocd]).await?;
    let others: Vec<Value> = of_bundles.map(|one| marked(environment, one)).collect();
    made.extend(apply(client, FIELD_MANAGER, &others).await?);
    Ok(made)
}

/// The namespaces in which something of the platform's can be.
fn namespaces(inputs: &Inputs) -> BTreeSet<String> {
    let of_bundles = inputs.bundles.iter().map(|bundle| bundle.namespace.clone());
    of_bundles
        .chain(inputs.namespaces.iter().cloned())
        .collect()
}

/// Marks the definitions that were made just now, if this cluster was there already. They are applied under Argo CD's name,
/// which would take the label away again; under our own it stays. `made` are their labels as [`label`] has them.
pub async fn mark_made(
    client: &Client,
    environment: &Environment,
    definitions: &[Value],
    made: &[String],
) -> anyhow::Result<()> {
    if environment.existing.is_none() {
        return Ok(());
    }
    let made = definitions
        .iter()
        .filter(|definition| made.contains(&label(definition)));
    let marks: Vec<Value> = made
        .map(|definition| {
            let mark = json!({
                "apiVersion": definition["apiVersion"], "kind": definition["kind"],
                "metadata": {"name": definition["metadata"]["name"]},
            });
            marked(environment, mark)
        })
        .collect();
    apply(client, FIELD_MANAGER, &marks).await.map(drop)
}

/// Leads the names to the load balancer.
pub async fn wire_names(
    context: &Context,
    inputs: &Inputs,
    client: &Client,
) -> anyhow::Result<Wiring> {
    if inputs.names.is_empty() {
        return Ok(Wiring::DONE);
    }
    match balancer(client).await? {
        Ok(balancer) => up::wire_names(context, inputs, Some(balancer)).await,
        Err(why) => {
            let step = context.events.step("names");
            step.unchanged("not wired");
            context.events.notice(format!(
                "the names are not wired: {why}\nnext, type: devenv hosts apply"
            ));
            Ok(Wiring::NOT_WIRED)
        }
    }
}

/// The load balancer that the names lead to, or why to none.
pub async fn balancer(client: &Client) -> anyhow::Result<Result<Balancer, String>> {
    let address = address::of_gateway(client).await?;
    Ok(address.and_then(Balancer::try_from))
}

/// The address at which the gateway answers, if there is one.
pub async fn gateway(client: &Client) -> anyhow::Result<Option<Ipv4Addr>> {
    Ok(address::of_gateway(client).await?.ok())
}

/// The one platform of the cluster's nodes, which says what of an image is pushed for them.
pub async fn platform(client: &Client, environment: &Environment) -> anyhow::Result<Platform> {
    let nodes = list(client, "v1", "Node", None, "").await?;
    let platforms: BTreeSet<(String, String)> = nodes
        .iter()
        .map(|node| {
            let said = |what: &str| text(node, &format!("/status/nodeInfo/{what}")).to_owned();
            (said("operatingSystem"), said("architecture"))
        })
        .filter(|(os, _)| os == "linux")
        .collect();
    let mut all = platforms.into_iter();
    let (os, architecture) = all
        .next()
        .with_context(|| format!("the cluster of {} has no Linux node", environment.cluster))?;
    if let Some((_, other)) = all.next() {
        return Err(Failure::Other {
            message: format!(
                "the nodes of the context {} are of several architectures ({architecture}, {other}), and the store holds images of one",
                environment.cluster
            ),
            hint: "leave `registry` out, so that nodes pull from where the images' names say; or copy the images by a tool \
                   that copies all platforms, such as `skopeo copy --all`"
                .to_owned(),
        }
        .into());
    }
    Ok(Platform { os, architecture })
}
