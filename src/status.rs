//! `devenv status`: what is, as it is. Looks, and changes nothing.

use std::time::{Duration, Instant};

use kube::Client;
use serde::Serialize;

use crate::bundle::Bundle;
use crate::cli::Output;
use crate::cluster::{self, Found};
use crate::context::Context;
use crate::docker;
use crate::environment::Environment;
use crate::error::{Exit, explain};
use crate::existing;
use crate::gitops::settle::applications;
use crate::gitops::waves::{App, short};
use crate::gitops::{argocd, explain};
use crate::kube::{get, list, text};
use crate::{inputs, report};

/// Everything `status` tells, as it stands in `-o json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    environment: String,
    cluster: Cluster,
    argo_cd: Vec<Workload>,
    applications: Vec<Application>,
    ready: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cluster {
    name: String,
    provider: String,
    state: &'static str,
    detail: String,
    nodes: Vec<String>,
    kubeconfig: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Workload {
    name: &'static str,
    ready: bool,
    #[serde(rename = "waitsFor")]
    waits_for: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Application {
    name: String,
    wave: u8,
    sync: String,
    health: String,
    revision: String,
    waits_for: String,
}

/// Looks, and gives the text for stdout with the exit code: 0 where all is ready, else 1.
pub async fn status(context: &Context, output: Output) -> anyhow::Result<(Exit, String)> {
    let status = look(context).await?;
    let exit = if status.ready {
        Exit::Ready
    } else {
        Exit::StepFailed
    };
    let text = match output {
        Output::Json => format!("{}\n", serde_json::to_string(&status)?),
        Output::Text => status.to_string(),
    };
    Ok((exit, text))
}

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Looks again and again, until a signal: at a terminal drawn over itself, elsewhere a line for each change, for programs an
/// object for each state. An error is a state like another.
pub async fn watch(context: &Context, output: Output) -> anyhow::Result<Exit> {
    // A mistake in a file doesn't mend itself.
    inputs::load(&context.selector, &context.directory)?;
    let screen = report::Screen::of_stdout(output == Output::Text);
    let began = Instant::now();
    let mut before = None;
    loop {
        let Ok(seen) = context.stop.or(look(context)).await else {
            return Ok(explain(&context.stop.error()).0);
        };
        let seen = seen.map_err(|error| format!("{error:#}"));
        if before.as_ref() != Some(&seen) {
            let text = match (&seen, output, &screen) {
                (Ok(status), Output::Json, _) => format!("{}\n", serde_json::to_string(status)?),
                (Err(error), Output::Json, _) => {
                    format!("{}\n", serde_json::json!({ "error": error }))
                }
                (Ok(status), Output::Text, Some(_)) => status.to_string(),
                (Err(error), Output::Text, Some(_)) => format!("{error}\n"),
                (seen, Output::Text, None) => {
                    let at = began.elapsed().as_secs_f64();
                    changes(before.as_ref(), seen)
                        .iter()
                        .map(|line| format!("[{at:>5.1}s] {line}\n"))
                        .collect()
                }
            };
            match &screen {
                Some(screen) => screen.draw(&text),
                None => report::data(&text)?,
            }
            before = Some(seen);
        }
        if context.stop.or(tokio::time::sleep(PAUSE)).await.is_err() {
            return Ok(explain(&context.stop.error()).0);
        }
    }
}

/// What is other than before, a line each.
fn changes(before: Option<&Result<Status, String>>, after: &Result<Status, String>) -> Vec<String> {
    let status = match after {
        Ok(status) => status,
        Err(error) => return vec![error.replace('\n', " ")],
    };
    let before = before.and_then(|before| before.as_ref().ok());
    let known = before.map(parts).unwrap_or_default();
    let names = |status: &Status| -> Vec<String> {
        let applications = status.applications.iter();
        applications
            .map(|application| application.name.clone())
            .collect()
    };
    let now = names(status);
    let gone = before.map(names).unwrap_or_default().into_iter();
    let gone = gone
        .filter(|name| !now.contains(name))
        .map(|name| format!("{name}: gone"));
    parts(status)
        .into_iter()
        .filter(|line| !known.contains(line))
        .chain(gone)
        .collect()
}

/// Everything that a status says, a line each.
fn parts(status: &Status) -> Vec<String> {
    let waits = |text: &str| match text {
        "" => String::new(),
        text => format!(": {text}"),
    };
    let Cluster {
        name,
        state,
        detail,
        ..
    } = &status.cluster;
    let mut parts = vec![format!("cluster {name}: {state}{}", waits(detail))];
    parts.extend(status.argo_cd.iter().map(|workload| match workload.ready {
        true => format!("{}: ready", workload.name),
        false => format!("{}: not ready{}", workload.name, waits(&workload.waits_for)),
    }));
    for Application {
        name,
        sync,
        health,
        revision,
        waits_for,
        ..
    } in &status.applications
    {
        let state: Vec<&str> = [sync.as_str(), health.as_str()]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let at = match revision.as_str() {
            "" => String::new(),
            revision => format!(" at {}", short(revision)),
        };
        parts.push(format!(
            "{name}: {}{at}{}",
            state.join(", "),
            waits(waits_for)
        ));
    }
    parts.push(match status.ready {
        true => "all is ready".to_owned(),
        false => "not all is ready".to_owned(),
    });
    parts
}

/// What was seen of the cluster itself.
struct Looked {
    found: Found,
    /// The names of its nodes.
    nodes: Vec<String>,
    client: Option<Client>,
}

async fn look_into_docker(environment: &Environment) -> anyhow::Result<Looked> {
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, environment).await?;
    let found = cluster::observe(&docker, environment, &nodes).await?;
    Ok(Looked {
        client: match found {
            Found::Running => cluster::client_if_running(&docker, environment, &nodes).await?,
            _ => None,
        },
        nodes: nodes.into_iter().map(|node| node.name).collect(),
        found,
    })
}

async fn look_into_existing(
    context: &Context,
    environment: &Environment,
) -> anyhow::Result<Looked> {
    let client = existing::client(context, environment).await?;
    let namespace = existing::argocd_namespace(&client, environment).await?;
    let nodes = list(&client, "v1", "Node", None, "").await?;
    Ok(Looked {
        found: match namespace {
            Some(_) => Found::Running,
            None => Found::Absent,
        },
        nodes: nodes
            .iter()
            .map(|node| text(node, "/metadata/name").to_owned())
            .collect(),
        client: Some(client).filter(|_| namespace.is_some()),
    })
}

async fn look(context: &Context) -> anyhow::Result<Status> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let Looked {
        found,
        nodes,
        client,
    } = match environment.existing {
        Some(_) => look_into_existing(context, environment).await?,
        None => look_into_docker(environment).await?,
    };
    let (state, detail) = match &found {
        Found::Absent => ("absent", "devenv up makes it".to_owned()),
        Found::HalfMade(reason) => ("half-made", format!("{reason}; devenv up makes it anew")),
        Found::Stopped(names) => (
            "stopped",
            format!("{} doesn't run; devenv up starts it", names.join(", ")),
        ),
        Found::Running => ("running", String::new()),
    };
    let mut status = Status {
        environment: environment.name.to_string(),
        cluster: Cluster {
            name: environment.cluster.clone(),
            provider: environment.provider.to_string(),
            state,
            detail,
            nodes,
            kubeconfig: context
                .paths
                .kubeconfig(&environment.id)
                .display()
                .to_string(),
        },
        argo_cd: Vec::new(),
        applications: Vec::new(),
        ready: false,
    };
    let Some(client) = client else {
        if found == Found::Running {
            status.cluster.detail = "its API server doesn't answer".to_owned();
        }
        return Ok(status);
    };
    for (kind, name) in argocd::WORKLOADS {
        let lacks = match get(&client, "apps/v1", kind, argocd::NAMESPACE, name).await? {
            None => Some("not there".to_owned()),
            Some(workload) => argocd::workload_lacks(&workload),
        };
        status.argo_cd.push(Workload {
            name,
            ready: lacks.is_none(),
            waits_for: lacks.unwrap_or_default(),
        });
    }
    let apps = applications(&client).await?;
    let newest = newest_revision(apps.values());
    for bundle in &inputs.bundles {
        status
            .applications
            .push(application(&client, bundle, apps.get(&bundle.name), &newest).await);
    }
    let gone = apps
        .iter()
        .filter(|(name, _)| !inputs.bundles.iter().any(|bundle| bundle.name == **name));
    status
        .applications
        .extend(gone.map(|(name, app)| Application {
            name: name.clone(),
            wave: 0,
            sync: app.sync.clone(),
            health: app.health.clone(),
            revision: app.revision.clone(),
            waits_for: "its bundle is gone; devenv sync removes it".to_owned(),
        }));
    status.ready = status.argo_cd.iter().all(|workload| workload.ready)
        && status
            .applications
            .iter()
            .all(|application| application.waits_for.is_empty());
    Ok(status)
}

/// The revision that the cluster is at: where Applications differ, some of them haven't looked yet.
fn newest_revision<'a>(apps: impl Iterator<Item = &'a App>) -> String {
    let mut counted = std::collections::BTreeMap::<&str, usize>::new();
    for app in apps.filter(|app| !app.revision.is_empty()) {
        *counted.entry(&app.revision).or_default() += 1;
    }
    counted
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(revision, _)| revision.to_owned())
        .unwrap_or_default()
}

async fn application(
    client: &kube::Client,
    bundle: &Bundle,
    app: Option<&App>,
    revision: &str,
) -> Application {
    let Some(app) = app else {
        return Application {
            name: bundle.name.clone(),
            wave: bundle.wave,
            sync: String::new(),
            health: "Missing".to_owned(),
            revision: String::new(),
            waits_for: match bundle.needs.as_slice() {
                [] => "not made yet".to_owned(),
                needs => format!(
                    "not let in yet; it needs {}",
                    needs
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                ),
            },
        };
    };
    let mut waits_for = app.waits_for(revision);
    if !waits_for.is_empty() {
        for line in explain::namespace(client, &bundle.namespace).await {
            waits_for = format!("{waits_for}; {}", line.trim());
        }
    }
    Application {
        name: bundle.name.clone(),
        wave: bundle.wave,
        sync: app.sync.clone(),
        health: app.health.clone(),
        revision: app.revision.clone(),
        waits_for,
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Cluster {
            name,
            provider,
            state,
            detail,
            kubeconfig,
            ..
        } = &self.cluster;
        writeln!(formatter, "environment  {}", self.environment)?;
        let detail = if detail.is_empty() {
            String::new()
        } else {
            format!(": {detail}")
        };
        writeln!(
            formatter,
            "cluster      {name} ({provider}), {state}{detail}"
        )?;
        if *state != "running" {
            return Ok(());
        }
        writeln!(formatter, "kubeconfig   {kubeconfig}")?;
        let unready: Vec<&str> = self
            .argo_cd
            .iter()
            .filter(|workload| !workload.ready)
            .map(|workload| workload.waits_for.as_str())
            .collect();
        let argo_cd = if unready.is_empty() {
            "ready".to_owned()
        } else {
            unready.join("; ")
        };
        writeln!(formatter, "argo cd      {}, {argo_cd}", argocd::VERSION)?;
        if self.applications.is_empty() {
            return Ok(());
        }
        let width = self
            .applications
            .iter()
            .map(|application| application.name.len())
            .max()
            .unwrap_or_default()
            .max(11);
        writeln!(
            formatter,
            "\n{:width$}  wave  {:9}  {:11}  {:8}  waits for",
            "application", "sync", "health", "revision"
        )?;
        for Application {
            name,
            wave,
            sync,
            health,
            revision,
            waits_for,
        } in &self.applications
        {
            let or_dash = |text: &str| {
                if text.is_empty() {
                    "-".to_owned()
                } else {
                    text.to_owned()
                }
            };
            let (sync, health, waits_for) = (or_dash(sync), or_dash(health), or_dash(waits_for));
            let revision = if revision.is_empty() {
                "-"
            } else {
                short(revision)
            };
            writeln!(
                formatter,
                "{name:width$}  {wave:<4}  {sync:9}  {health:11}  {revision:8}  {waits_for}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(health: &str, waits_for: &str) -> Status {
        Status {
            environment: "dev".to_owned(),
            cluster: Cluster {
                name: "devenv-dev".to_owned(),
                provider: "kind".to_owned(),
                state: "running",
                detail: String::new(),
                nodes: Vec::new(),
                kubeconfig: String::new(),
            },
            argo_cd: vec![Workload {
                name: "argocd-server",
                ready: true,
                waits_for: String::new(),
            }],
            applications: vec![Application {
                name: "keycloak".to_owned(),
                wave: 4,
                sync: "Synced".to_owned(),
                health: health.to_owned(),
                revision: "4f2a91cffff".to_owned(),
                waits_for: waits_for.to_owned(),
            }],
            ready: waits_for.is_empty(),
        }
    }

    #[test]
    fn only_what_is_other_is_told() {
        let first = Ok(status("Progressing", "pod keycloak-0: not ready"));
        let second = Ok(status("Healthy", ""));
        let gone = Ok(Status {
            applications: Vec::new(),
            ..status("", "")
        });
        let failed = Err("Docker isn't running\nat all".to_owned());
        let told = [
            changes(None, &first),
            changes(Some(&first), &second),
            changes(Some(&second), &gone),
            changes(Some(&second), &failed),
            changes(Some(&failed), &gone),
        ];
        insta::assert_debug_snapshot!(told, @r#"
        [
            [
                "cluster devenv-dev: running",
                "argocd-server: ready",
                "keycloak: Synced, Progressing at 4f2a91c: pod keycloak-0: not ready",
                "not all is ready",
            ],
            [
                "keycloak: Synced, Healthy at 4f2a91c",
                "all is ready",
            ],
            [
                "keycloak: gone",
            ],
            [
                "Docker isn't running at all",
            ],
            [
                "cluster devenv-dev: running",
                "argocd-server: ready",
                "all is ready",
            ],
        ]
        "#);
    }
}
