//! Checks: proofs, through the front door, that what is up does what it is for.
//!
//! Every module of one subject lists its checks as data ([`Check`]: what it proves, and how) and runs one of them. All run
//! side by side; each tells what it saw. None changes anything, but for a line that it writes to the logs to find it again.

mod argocd;
mod cluster;
mod door;
mod keycloak;
mod logs;
mod mesh;
mod names;
mod pods;
mod postgres;
mod request;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

pub use self::door::Door;
use crate::docker::Docker;
use crate::environment::Environment;
use crate::event::Step;
use crate::inputs::Inputs;
use crate::stop::Stop;

/// How long one try of one check may take.
const TRY: Duration = Duration::from_secs(8);
/// Between two tries of a check that has time left.
const PAUSE: Duration = Duration::from_millis(300);

/// What the checks ask.
pub struct World<'a> {
    /// The environment and its bundles.
    pub inputs: &'a Inputs,
    /// Docker, with the cluster's nodes in it; `None` where they are somebody else's.
    pub docker: Option<&'a Docker>,
    /// The cluster's API server.
    pub client: &'a Client,
    /// The same, asking once: what it refuses is an answer.
    pub asks_once: &'a Client,
    /// The gateway's ports, on this machine or at the load balancer; `None` where there are none.
    pub door: Option<Door>,
    /// To end early.
    pub stop: &'a Stop,
    /// Where programs tell what they say.
    pub step: &'a Step,
}

impl World<'_> {
    fn environment(&self) -> &Environment {
        &self.inputs.environment
    }

    /// The platform's name of a system: "keycloak" gives "keycloak.local".
    fn host(&self, system: &str) -> String {
        format!("{system}.{}", self.environment().domain)
    }

    fn door(&self) -> anyhow::Result<&Door> {
        self.door
            .as_ref()
            .with_context(|| match self.docker {
                Some(_) => "the cluster config publishes neither port 80 nor 443 of the node",
                None => "the cluster's load balancer gave the gateway no address that can be reached from here",
            })
    }

    /// The keys and values of a secret.
    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        secret(self.client, namespace, name).await
    }
}

/// The keys and values of a secret.
pub async fn secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> anyhow::Result<BTreeMap<String, String>> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = secrets
        .get_opt(name)
        .await
        .with_context(|| format!("read the secret {namespace}/{name}"))?
        .with_context(|| format!("there is no secret {namespace}/{name}"))?;
    Ok(found
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()))
        .collect())
}

/// One proof, as data.
#[derive(Debug, Clone)]
pub struct Check {
    /// Its name: the subject, then what of it.
    pub name: String,
    /// What is known when it passes.
    pub proves: String,
    /// How it finds out.
    pub how: String,
    /// The bundles that bring what is asked; without one of them it isn't a check of this environment.
    of: &'static [&'static str],
    ask: Ask,
}

/// Whom to ask for what.
#[derive(Debug, Clone)]
enum Ask {
    Door(door::Ask),
    ArgoCd(argocd::Ask),
    Keycloak(keycloak::Ask),
    Postgres(postgres::Ask),
    Mesh(mesh::Ask),
    Logs(logs::Ask),
    Cluster(cluster::Ask),
    Names(names::Ask),
}

/// What a check saw.
enum Seen {
    /// What it is there to prove.
    Well(String),
    /// That this machine doesn't lead the platform's names to it.
    NotWired(String),
    /// Nothing, for the environment doesn't want it.
    Excluded(String),
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It doesn't.
    Failed,
    /// This machine doesn't lead the platform's names to it; everything else may be well.
    NotWired,
    /// The environment leaves it out.
    Excluded,
}

/// A check that was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Its name.
    pub name: String,
    /// What is known when it passes.
    pub proves: String,
    /// How it finds out.
    pub how: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen.
    pub saw: String,
    /// How long it took, all tries together.
    pub seconds: f64,
}

/// Every check of this environment, those of excluded bundles included.
pub fn all(world: &World<'_>) -> Vec<Check> {
    let environment = world.environment();
    let there = |bundle: &str| {
        environment.exclude.iter().any(|name| name == bundle)
            || world.inputs.bundles.iter().any(|it| it.name == bundle)
    };
    let mut checks = door::checks(&world.inputs.names);
    checks.extend(names::checks(&world.inputs.names));
    checks.extend(argocd::checks());
    checks.extend(keycloak::checks());
    checks.extend(postgres::checks());
    checks.extend(mesh::checks());
    checks.extend(logs::checks());
    checks.extend(cluster::checks(world.inputs));
    checks.retain(|check| check.of.iter().all(|bundle| there(bundle)));
    checks
}

/// Runs the checks side by side, each again and again until it passes or has no time left; gives them in their own order.
pub async fn run(
    world: &World<'_>,
    checks: &[Check],
    patience: Duration,
) -> anyhow::Result<Vec<Checked>> {
    let mut running: FuturesUnordered<_> = checks
        .iter()
        .enumerate()
        .map(|(index, check)| async move { (index, patiently(world, check, patience).await) })
        .collect();
    let mut done = BTreeMap::new();
    while let Some((index, checked)) = world.stop.or(running.next()).await? {
        done.insert(index, checked);
    }
    Ok(done.into_values().collect())
}

async fn patiently(world: &World<'_>, check: &Check, patience: Duration) -> Checked {
    let began = Instant::now();
    let (verdict, saw) = loop {
        let seen = match excluded(world, check) {
            Some(why) => Ok(Seen::Excluded(why)),
            None => timeout(TRY, ask(world, &check.ask))
                .await
                .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", TRY.as_secs()))),
        };
        match seen {
            Ok(Seen::Well(saw)) => break (Verdict::Passed, saw),
            Ok(Seen::NotWired(saw)) => break (Verdict::NotWired, saw),
            Ok(Seen::Excluded(saw)) => break (Verdict::Excluded, saw),
            Err(error) if began.elapsed() + PAUSE > patience => {
                break (Verdict::Failed, format!("{error:#}"));
            }
            Err(_) => sleep(PAUSE).await,
        }
    };
    Checked {
        name: check.name.clone(),
        proves: check.proves.clone(),
        how: check.how.clone(),
        verdict,
        saw,
        seconds: (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    }
}

/// Why the environment has nothing to check here, if it hasn't.
fn excluded(world: &World<'_>, check: &Check) -> Option<String> {
    let environment = world.environment();
    let out = check
        .of
        .iter()
        .find(|bundle| environment.exclude.iter().any(|name| name == *bundle));
    if let Some(out) = out {
        return Some(format!("{} leaves out {out}", environment.name));
    }
    let why = match (&check.ask, world.docker) {
        (_, Some(_)) => return None,
        (Ask::Cluster(cluster::Ask::NothingPulled), None) => {
            "the nodes aren't devenv's: they pull from registries"
        }
        (Ask::Cluster(cluster::Ask::Loopback), None) => {
            "the nodes aren't devenv's, and nothing of them is published on this machine"
        }
        (Ask::Names(names::Ask::Cluster(_)), None) => {
            "the cluster's CoreDNS isn't devenv's, and was left alone"
        }
        (_, None) => return None,
    };
    Some(why.to_owned())
}

async fn ask(world: &World<'_>, ask: &Ask) -> anyhow::Result<Seen> {
    match ask {
        Ask::Door(ask) => door::run(world, ask).await,
        Ask::ArgoCd(ask) => argocd::run(world, ask).await,
        Ask::Keycloak(ask) => keycloak::run(world, ask).await,
        Ask::Postgres(ask) => postgres::run(world, ask).await,
        Ask::Mesh(ask) => mesh::run(world, ask).await,
        Ask::Logs(ask) => logs::run(world, ask).await,
        Ask::Cluster(ask) => cluster::run(world, ask).await,
        Ask::Names(ask) => return names::run(world, ask).await,
    }
    .map(Seen::Well)
}

/// How many ended how, in words: "34 passed, 5 excluded".
pub fn counted(checked: &[Checked]) -> String {
    [
        (Verdict::Failed, "failed"),
        (Verdict::NotWired, "not wired"),
        (Verdict::Passed, "passed"),
        (Verdict::Excluded, "excluded"),
    ]
    .into_iter()
    .map(|(verdict, word)| (count(checked, verdict), word))
    .filter(|(count, _)| *count > 0)
    .map(|(count, word)| format!("{count} {word}"))
    .collect::<Vec<_>>()
    .join(", ")
}

/// How many ended so.
pub fn count(checked: &[Checked], verdict: Verdict) -> usize {
    checked
        .iter()
        .filter(|checked| checked.verdict == verdict)
        .count()
}
