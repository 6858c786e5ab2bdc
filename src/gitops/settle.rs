//! From pushed to proven: watches the Applications until every bundle's is Synced and Healthy at the pushed revision.
//!
//! What to do follows from what is seen, by pure functions (`next_selector`, `hopeless`); the loop does it. Besides
//! waiting, it does three things that Argo CD would do only minutes later: it admits bundles as their needs become ready,
//! asks for another look at what isn't ready ("nudges": a forgotten one costs 180 s), and starts a sync again whose
//! retries were spent before.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::{StreamExt as _, pin_mut};
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::argocd::NAMESPACE;
use super::explain::{self, Trouble};
use super::waves::{self, App, RETRIES, Selector};
use crate::bundle::Bundle;
use crate::context::Context;
use crate::error::Failure;
use crate::event::Step;
use crate::kube::{FIELD_MANAGER, apply, get, is_not_found, list, merge, resource, text};
use crate::need::Condition;

/// Between two nudges of one thing that isn't ready.
const NUDGE: Duration = Duration::from_secs(2);
/// How long nothing may move before containers that crash again and again count as hopeless.
const STILL: Duration = Duration::from_secs(30);
/// How long an image must have been missing, with all images loaded.
const IMAGE_MISSING: Duration = Duration::from_secs(8);
/// The same where nodes pull: a registry may be slow to answer, or refuse for a moment those who ask too often.
const IMAGE_NOT_PULLED: Duration = Duration::from_secs(60);
/// How long a rendering must have failed: the repo-server may only just have started.
const NOT_RENDERED: Duration = Duration::from_secs(12);

/// The same where it is the git that can't be read: its pod may have been replaced, and be filled again by now.
const NOT_READ: Duration = Duration::from_secs(60);
/// How long the ApplicationSet must have complained of one thing: at its start it complains of a git that isn't up yet.
const NOT_MADE: Duration = Duration::from_secs(60);

/// Where to.
#[derive(Debug, Clone)]
pub struct Goal {
    /// The bundles that must be ready.
    pub bundles: Vec<Bundle>,
    /// The names of those that are kept out.
    pub excluded: BTreeSet<String>,
    /// The revision they must be ready at.
    pub revision: String,
    /// The overlay's name.
    pub overlay: String,
    /// Whether nodes pull images, and don't have them from us.
    pub images_are_pulled: bool,
}

/// The images that have arrived in all nodes so far, by name; `None` once all have.
pub type Arrived = Option<BTreeSet<String>>;

/// What the loop remembers while it runs.
struct State {
    selector: Selector,
    apps: BTreeMap<String, App>,
    met: BTreeSet<Condition>,
    steps: HashMap<String, Step>,
    waited: BTreeSet<String>,
    moved: Instant,
    troubles: BTreeMap<String, Since>,
    started_again: BTreeSet<String>,
}

/// A trouble, and since when it is seen without a break.
#[derive(Debug, Clone)]
struct Since {
    trouble: Seen,
    since: Instant,
}

/// A trouble of one Application.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Container(Trouble),
    NotRendered(String),
    NotMade(String),
}

/// Waits until everything is ready; says how many Applications had to be waited for.
pub async fn settle(
    context: &Context,
    client: &Client,
    goal: &Goal,
    mut arrived: watch::Receiver<Arrived>,
    step: &Step,
) -> anyhow::Result<usize> {
    let started = Instant::now();
    let live = get(
        client,
        "argoproj.io/v1alpha1",
        "ApplicationSet",
        NAMESPACE,
        waves::NAME,
    )
    .await?;
    let mut state = State {
        selector: live
            .as_ref()
            .and_then(Selector::of)
            .unwrap_or(Selector::Only(BTreeSet::new())),
        apps: BTreeMap::new(),
        met: BTreeSet::new(),
        steps: HashMap::new(),
        waited: BTreeSet::new(),
        moved: started,
        troubles: BTreeMap::new(),
        started_again: BTreeSet::new(),
    };
    let mut written = None;
    let applications: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        NAMESPACE,
        &resource("argoproj.io/v1alpha1", "Application"),
    );
    let changes = watcher(applications, watcher::Config::default()).default_backoff();
    pin_mut!(changes);
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listed = false;
    let mut nudged: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        if listed {
            let here = arrived.borrow_and_update().clone();
            state.selector = next_selector(&state.selector, goal, &state.apps, &state.met, &here);
            if written.as_ref() != Some(&state.selector) {
                let set = waves::application_set(&state.selector, &goal.overlay);
                apply(client, FIELD_MANAGER, &[set])
                    .await
                    .context("apply the ApplicationSet")?;
                written = Some(state.selector.clone());
            }
            report(&mut state, goal, step);
            if is_settled(&state, goal) {
                return Ok(state.waited.len());
            }
            nudge(client, &state, goal, &mut nudged).await?;
        }
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(event)) => {
                    listed |= matches!(event, watcher::Event::InitDone);
                    if note(&mut state.apps, event)? { state.moved = Instant::now(); }
                }
                Some(Err(error)) => step.waiting(format!("watching applications: {error}")),
                None => anyhow::bail!("the watch of applications ended"),
            },
            Ok(()) = arrived.changed() => {}
            _ = tick.tick() => {
                let all_here = arrived.borrow().is_none();
                look_at_conditions(client, &mut state, goal).await;
                start_again(client, &mut state, goal).await?;
                look_for_trouble(client, &mut state, goal).await;
                let missing_for = match (all_here, goal.images_are_pulled) {
                    (false, _) => None,
                    (true, false) => Some(IMAGE_MISSING),
                    (true, true) => Some(IMAGE_NOT_PULLED),
                };
                if let Some((name, reason)) = hopeless(&state, missing_for, Instant::now()) {
                    return Err(give_up(context, client, goal, &state, &name, reason).await);
                }
                if started.elapsed() >= context.timeout {
                    return Err(timed_out(context, client, goal, &state).await);
                }
            }
            () = context.stop.requested() => return Err(context.stop.error()),
        }
    }
}

/// Takes a change of the watch into the picture; says whether anything that matters moved.
fn note(
    apps: &mut BTreeMap<String, App>,
    event: watcher::Event<DynamicObject>,
) -> anyhow::Result<bool> {
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            let application = serde_json::to_value(object)?;
            let app = App::of(&application);
            let name = text(&application, "/metadata/name").to_owned();
            let before = apps.insert(name.clone(), app);
            Ok(before.as_ref() != apps.get(&name))
        }
        watcher::Event::Delete(object) => Ok(apps
            .remove(&object.metadata.name.unwrap_or_default())
            .is_some()),
        watcher::Event::Init => {
            apps.clear();
            Ok(false)
        }
        watcher::Event::InitDone => Ok(false),
    }
}

/// The selector as it should be now. A bundle comes in when its needs are ready and its images have arrived; when all
/// are in, discovery is automatic.
fn next_selector(
    now: &Selector,
    goal: &Goal,
    apps: &BTreeMap<String, App>,
    met: &BTreeSet<Condition>,
    arrived: &Arrived,
) -> Selector {
    let Selector::Only(admitted) = now else {
        return Selector::AllBut(goal.excluded.clone());
    };
    let here = |bundle: &&Bundle| match arrived {
        None => true,
        Some(names) => bundle
            .images
            .iter()
            .all(|image| names.contains(&image.to_string())),
    };
    let loaded: Vec<Bundle> = goal.bundles.iter().filter(here).cloned().collect();
    let admitted = waves::admit(&loaded, &waves::ready(apps, &goal.revision), met, admitted);
    if goal
        .bundles
        .iter()
        .all(|bundle| admitted.contains(&bundle.name))
    {
        return Selector::AllBut(goal.excluded.clone());
    }
    Selector::Only(admitted)
}

/// Looks at the objects whose conditions a bundle waits for; what was met once stays so.
async fn look_at_conditions(client: &Client, state: &mut State, goal: &Goal) {
    let Selector::Only(admitted) = &state.selector else {
        return;
    };
    for condition in waves::awaited(&goal.bundles, admitted) {
        let Condition {
            api_version,
            kind,
            namespace,
            name,
            ..
        } = condition;
        // An error here is no trouble of the bundle's; the next look comes in a second.
        if let Ok(Some(object)) = get(client, api_version, kind, namespace, name).await
            && condition.is_met(&object)
        {
            state.met.insert(condition.clone());
        }
    }
}

/// Whether there is nothing left to wait for: every bundle ready, and no Application of a bundle that is gone.
fn is_settled(state: &State, goal: &Goal) -> bool {
    let wanted: BTreeSet<&String> = goal.bundles.iter().map(|bundle| &bundle.name).collect();
    let present: BTreeSet<&String> = state.apps.keys().collect();
    matches!(state.selector, Selector::AllBut(_))
        && wanted == present
        && state.apps.values().all(|app| app.is_ready(&goal.revision))
}

/// A step for each Application that is waited for, with what it waits for.
fn report(state: &mut State, goal: &Goal, step: &Step) {
    let admitted = |name: &String| match &state.selector {
        Selector::Only(names) => names.contains(name),
        Selector::AllBut(names) => !names.contains(name),
    };
    for bundle in goal.bundles.iter().filter(|bundle| admitted(&bundle.name)) {
        let app = state.apps.get(&bundle.name);
        if app.is_some_and(|app| app.is_ready(&goal.revision)) {
            if let Some(step) = state.steps.remove(&bundle.name) {
                step.done("Synced and Healthy");
            }
            continue;
        }
        state.waited.insert(bundle.name.clone());
        let step = state
            .steps
            .entry(bundle.name.clone())
            .or_insert_with(|| step.child(&bundle.name));
        step.waiting(app.map_or_else(
            || "waiting for the ApplicationSet to make its Application".to_owned(),
            |app| app.waits_for(&goal.revision),
        ));
    }
    for name in state
        .apps
        .keys()
        .filter(|name| !goal.bundles.iter().any(|bundle| bundle.name == **name))
    {
        state.waited.insert(name.clone());
        let step = state
            .steps
            .entry(name.clone())
            .or_insert_with(|| step.child(name));
        step.waiting("being removed: its bundle is gone");
    }
    let present = |name: &String| {
        state.apps.contains_key(name) || goal.bundles.iter().any(|bundle| bundle.name == *name)
    };
    let gone: Vec<String> = state
        .steps
        .keys()
        .filter(|name| !present(name))
        .cloned()
        .collect();
    for name in gone {
        if let Some(step) = state.steps.remove(&name) {
            step.done("removed");
        }
    }
}

/// Asks Argo CD for another look at what isn't ready.
async fn nudge(
    client: &Client,
    state: &State,
    goal: &Goal,
    nudged: &mut BTreeMap<String, Instant>,
) -> anyhow::Result<()> {
    let due = |name: &str, nudged: &BTreeMap<String, Instant>| {
        nudged.get(name).is_none_or(|last| last.elapsed() >= NUDGE)
    };
    let admitted: BTreeSet<&String> = match &state.selector {
        Selector::Only(names) => names.iter().collect(),
        Selector::AllBut(_) => goal.bundles.iter().map(|bundle| &bundle.name).collect(),
    };
    let present: BTreeSet<&String> = state.apps.keys().collect();
    // The key can't be a bundle's name.
    let stale = state.apps.values().any(|app| app.revision != goal.revision);
    if (admitted != present || stale) && due("/", nudged) {
        // The controller takes the annotation away only when it succeeds, and looks again only when some annotation changes:
        // without the time beside it, a nudge after a failure would be none.
        let patch = json!({"metadata": {"annotations": {
            "argocd.argoproj.io/application-set-refresh": "true",
            "devenv.test/nudged-at": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        }}});
        annotate(client, &object("ApplicationSet", waves::NAME), &patch).await?;
        nudged.insert("/".to_owned(), Instant::now());
    }
    for (name, app) in &state.apps {
        if app.is_ready(&goal.revision) || app.leaving || !due(name, nudged) {
            continue;
        }
        let patch = json!({"metadata": {"annotations": {"argocd.argoproj.io/refresh": "normal"}}});
        annotate(client, &object("Application", name), &patch).await?;
        nudged.insert(name.clone(), Instant::now());
    }
    Ok(())
}

fn object(kind: &str, name: &str) -> Value {
    json!({"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}})
}

/// Sets annotations; an object that has just gone needs none.
async fn annotate(client: &Client, object: &Value, patch: &Value) -> anyhow::Result<()> {
    match merge(client, object, patch).await {
        Err(error) if is_not_found(&error) => Ok(()),
        done => done,
    }
}

/// Starts the sync of an Application that Argo CD gave up on before: once, for a second failure is the manifest's.
async fn start_again(client: &Client, state: &mut State, goal: &Goal) -> anyhow::Result<()> {
    let given_up: Vec<String> = state
        .apps
        .iter()
        .filter(|(name, app)| {
            app.has_given_up(&goal.revision) && !state.started_again.contains(*name)
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in given_up {
        let operation = json!({"operation": {
            "initiatedBy": {"username": "devenv"},
            "sync": {"revision": goal.revision, "prune": true, "syncOptions": ["ServerSideApply=true", "SkipDryRunOnMissingResource=true"]},
            "retry": {"limit": RETRIES, "backoff": {"duration": "1s", "factor": 1, "maxDuration": "5s"}},
        }});
        merge(client, &object("Application", &name), &operation).await?;
        state.started_again.insert(name);
        state.moved = Instant::now();
    }
    Ok(())
}

/// Looks at the pods of what isn't ready, and at renderings that fail.
async fn look_for_trouble(client: &Client, state: &mut State, goal: &Goal) {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let waiting = goal
        .bundles
        .iter()
        .filter(|bundle| state.steps.contains_key(&bundle.name));
    let mut complaint: Option<Option<String>> = None;
    for bundle in waiting {
        let Some(app) = state.apps.get(&bundle.name) else {
            if complaint.is_none() {
                complaint = Some(application_set_complaint(client).await);
            }
            if let (Some(Some(message)), Some(step)) = (&complaint, state.steps.get(&bundle.name)) {
                step.waiting(format!(
                    "the ApplicationSet can't make its Application: {message}"
                ));
                seen.insert(bundle.name.clone(), Seen::NotMade(message.clone()));
            }
            continue;
        };
        if app.message.contains("generate manifest")
            || app.message.contains("Manifest generation error")
        {
            seen.insert(bundle.name.clone(), Seen::NotRendered(app.message.clone()));
            continue;
        }
        // An error here is no trouble of the bundle's; the next look comes in a second.
        let pods = list(client, "v1", "Pod", Some(&bundle.namespace), "")
            .await
            .unwrap_or_default();
        let theirs = pods.iter().filter(|pod| {
            app.owns
                .iter()
                .any(|name| text(pod, "/metadata/name").starts_with(name.as_str()))
        });
        let worst = theirs.flat_map(explain::troubles).min();
        if let (Some(trouble), Some(step)) = (worst, state.steps.get(&bundle.name)) {
            step.waiting(trouble.to_string());
            seen.insert(bundle.name.clone(), Seen::Container(trouble));
        }
    }
    let now = Instant::now();
    let before = std::mem::take(&mut state.troubles);
    state.troubles = seen
        .into_iter()
        .map(|(name, trouble)| {
            let since = before
                .get(&name)
                .filter(|before| same(&before.trouble, &trouble))
                .map_or(now, |before| before.since);
            (name, Since { trouble, since })
        })
        .collect();
}

/// What keeps the ApplicationSet from making Applications, if it says so.
async fn application_set_complaint(client: &Client) -> Option<String> {
    let set = get(
        client,
        "argoproj.io/v1alpha1",
        "ApplicationSet",
        NAMESPACE,
        waves::NAME,
    )
    .await
    .ok()??;
    let conditions = set
        .pointer("/status/conditions")
        .and_then(Value::as_array)?;
    let error = conditions.iter().find(|condition| {
        text(condition, "/type") == "ErrorOccurred" && text(condition, "/status") == "True"
    })?;
    Some(waves::one_line(text(error, "/message")))
}

/// How long a rendering must have failed with these words.
fn patience(message: &str) -> Duration {
    match message.contains("failed to list refs") {
        true => NOT_READ,
        false => NOT_RENDERED,
    }
}

/// Whether two looks saw one trouble: the same container with the same cause, however often it has restarted since.
fn same(before: &Seen, now: &Seen) -> bool {
    match (before, now) {
        (Seen::NotRendered(_), Seen::NotRendered(_)) => true,
        (
            Seen::Container(Trouble::Image { image: before, .. }),
            Seen::Container(Trouble::Image { image: now, .. }),
        ) => before == now,
        (
            Seen::Container(Trouble::Crash {
                container: one,
                cause: before,
                ..
            }),
            Seen::Container(Trouble::Crash {
                container: other,
                cause: now,
                ..
            }),
        ) => one == other && before == now,
        (before, now) => before == now,
    }
}

/// The first Application that can't heal, and why. Degraded alone is no reason: operators restart in place. Nor is an image that
/// is missing, unless it is for longer than `missing_for`.
fn hopeless(
    state: &State,
    missing_for: Option<Duration>,
    now: Instant,
) -> Option<(String, String)> {
    let given_up = state.apps.iter().find(|(name, app)| {
        state.started_again.contains(*name)
            && matches!(app.operation.as_str(), "Failed" | "Error")
            && now.duration_since(state.moved) > Duration::from_secs(2)
    });
    if let Some((name, app)) = given_up {
        return Some((
            name.clone(),
            format!(
                "its manifests were refused {} times: {}",
                RETRIES + 1,
                waves::one_line(&app.message)
            ),
        ));
    }
    state
        .troubles
        .iter()
        .find_map(|(name, Since { trouble, since })| {
            let lasted = now.duration_since(*since);
            let reason = match trouble {
                Seen::NotMade(message) if lasted >= NOT_MADE => {
                    format!("the ApplicationSet can't make it: {message}")
                }
                Seen::NotRendered(message) if lasted >= patience(message) => {
                    format!(
                        "Argo CD can't render its manifests: {}",
                        waves::rendering_error(message)
                    )
                }
                Seen::Container(trouble @ Trouble::Image { .. })
                    if missing_for.is_some_and(|enough| lasted >= enough) =>
                {
                    trouble.to_string()
                }
                Seen::Container(trouble @ Trouble::Crash { restarts, .. })
                    if *restarts >= 3
                        && lasted >= STILL
                        && now.duration_since(state.moved) >= STILL =>
                {
                    trouble.to_string()
                }
                _ => return None,
            };
            Some((name.clone(), reason))
        })
}

async fn give_up(
    context: &Context,
    client: &Client,
    goal: &Goal,
    state: &State,
    name: &str,
    reason: String,
) -> anyhow::Error {
    let trouble = state.troubles.get(name).map(|since| since.trouble.clone());
    let mut reason = reason;
    if let Some(Since {
        trouble: Seen::Container(_),
        ..
    }) = state.troubles.get(name)
        && let Some(bundle) = goal.bundles.iter().find(|bundle| bundle.name == name)
    {
        for line in explain::namespace(client, &bundle.namespace)
            .await
            .iter()
            .filter(|line| line.starts_with("  "))
        {
            reason = format!("{reason}\n{line}");
        }
    }
    let folder = goal
        .bundles
        .iter()
        .find(|bundle| bundle.name == name)
        .map_or_else(
            || "its bundle".to_owned(),
            |bundle| {
                bundle
                    .folder
                    .strip_prefix(&context.directory)
                    .unwrap_or(&bundle.folder)
                    .display()
                    .to_string()
            },
        );
    Failure::CannotHeal {
        what: format!("application {name}"),
        reason,
        hint: match (&trouble, goal.images_are_pulled) {
            (Some(Seen::Container(Trouble::Image { .. })), true) => {
                "see that the nodes reach the registry and that it has the image (`devenv images push` fills a private one), then: devenv up"
                    .to_owned()
            }
            _ => format!("mend {folder}, then: devenv sync"),
        },
    }
    .into()
}

async fn timed_out(
    context: &Context,
    client: &Client,
    goal: &Goal,
    state: &State,
) -> anyhow::Error {
    let total = goal.bundles.len();
    let ready = goal.bundles.iter().filter(|bundle| {
        state
            .apps
            .get(&bundle.name)
            .is_some_and(|app| app.is_ready(&goal.revision))
    });
    let mut last_seen = format!("{} of {total} applications ready", ready.count());
    for bundle in &goal.bundles {
        let words = state
            .apps
            .get(&bundle.name)
            .map(|app| app.waits_for(&goal.revision));
        match words {
            Some(words) if words.is_empty() => continue,
            Some(words) => last_seen = format!("{last_seen}\n{}: {words}", bundle.name),
            None => last_seen = format!("{last_seen}\n{}: not let in yet", bundle.name),
        }
        for line in explain::namespace(client, &bundle.namespace).await {
            last_seen = format!("{last_seen}\n  {line}");
        }
    }
    Failure::TimedOut {
        what: "all applications to be Synced and Healthy".to_owned(),
        after: context.timeout,
        last_seen,
        hint: "devenv status shows what each waits for; devenv up --timeout 20m goes on waiting"
            .to_owned(),
    }
    .into()
}

/// The Applications as they are, by name.
pub async fn applications(client: &Client) -> anyhow::Result<BTreeMap<String, App>> {
    match list(
        client,
        "argoproj.io/v1alpha1",
        "Application",
        Some(NAMESPACE),
        "app.kubernetes.io/part-of=devenv",
    )
    .await
    {
        Ok(found) => Ok(found
            .iter()
            .map(|object| (text(object, "/metadata/name").to_owned(), App::of(object)))
            .collect()),
        Err(error) if is_not_found(&error) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}
