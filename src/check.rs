//! `devenv check`: proves again, through the front door, that what is up works.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;

use crate::checks::{self, Checked, Door, Verdict, World};
use crate::cli::{Evidence, Output};
use crate::cluster::{self, Running};
use crate::context::Context;
use crate::docker::Docker;
use crate::error::Exit;
use crate::event::Step;
use crate::evidence::{self, Told};
use crate::existing;
use crate::inputs::{self, Inputs};
use crate::names::tls::{self, Authority};

/// A resolver that looks at its files only every few seconds must not make a check fail.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs every check; gives the text for stdout with the exit code.
pub async fn check(
    context: &Context,
    output: Output,
    evidence: &Evidence,
) -> anyhow::Result<(Exit, String)> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    evidence::prepare(context, evidence)?;
    let checked = run(context, &inputs).await;
    let told = match &checked {
        Ok(checked) => Told::ended("check", verdict(checked).0, checked),
        Err(error) => Told::failed("check", error),
    };
    if let Ok(checked) = &checked {
        for checked in checked {
            context.events.checked(checked.clone());
        }
    }
    evidence::keep(context, &inputs, evidence, &told).await;
    let checked = checked?;
    let (exit, verdict) = verdict(&checked);
    context.events.verdict(verdict);
    let text = match output {
        Output::Json => String::new(),
        Output::Text => table(&checked),
    };
    Ok((exit, text))
}

async fn run(context: &Context, inputs: &Inputs) -> anyhow::Result<Vec<Checked>> {
    let environment = &inputs.environment;
    let Running { client, docker } = cluster::reach(context, environment).await?;
    let docker = docker.as_ref();
    let step = context.events.step("checks");
    let authority = tls::authority(&context.paths, &environment.domain)?;
    let checked = prove(
        context, inputs, docker, &client, &authority, PATIENCE, &step,
    )
    .await?;
    step.unchanged(checks::counted(&checked));
    Ok(checked)
}

/// Runs every check of the environment against a cluster that runs.
pub async fn prove(
    context: &Context,
    inputs: &Inputs,
    docker: Option<&Docker>,
    client: &Client,
    authority: &Authority,
    patience: Duration,
    step: &Step,
) -> anyhow::Result<Vec<Checked>> {
    let kubeconfig = context.paths.kubeconfig(&inputs.environment.id);
    let kubeconfig = std::fs::read_to_string(&kubeconfig)
        .with_context(|| format!("read {}", kubeconfig.display()))?;
    let world = World {
        inputs,
        docker,
        client,
        asks_once: &crate::kube::client_that_asks_once(&kubeconfig).await?,
        door: door(inputs, client, authority).await?,
        stop: &context.stop,
        step,
    };
    let checks = checks::all(&world);
    step.waiting(format!("{} checks", checks.len()));
    checks::run(&world, &checks, patience)
        .await
        .context("run the checks")
}

/// The gateway's ports: on this machine, if the cluster config publishes them; or at the load balancer of a cluster that is
/// there already.
async fn door(
    inputs: &Inputs,
    client: &Client,
    authority: &Authority,
) -> anyhow::Result<Option<Door>> {
    let config = &inputs.cluster_config;
    let ports = match inputs.environment.existing {
        Some(_) => existing::gateway(client)
            .await?
            .map(|address| (address, 80, 443)),
        None => config
            .published(80)
            .zip(config.published(443))
            .map(|(http, https)| (Ipv4Addr::LOCALHOST, http, https)),
    };
    Ok(ports.map(|(address, http, https)| Door {
        http: (address, http).into(),
        https: (address, https).into(),
        tls: Arc::new(tls::client_config(authority)),
    }))
}

/// The exit code that the checks come to, and the last word about them.
pub fn verdict(checked: &[Checked]) -> (Exit, String) {
    let counted = checks::counted(checked);
    let failed = checks::count(checked, Verdict::Failed);
    if failed > 0 {
        return (Exit::CheckFailed, format!("not well: {counted}"));
    }
    if checks::count(checked, Verdict::NotWired) > 0 {
        let word = format!("well, but this machine doesn't know the names: {counted}");
        return (Exit::NamesNotWired, word);
    }
    (Exit::Ready, format!("well: {counted}"))
}

/// All results, a line each; a check that failed tells what it was to prove, and how.
fn table(checked: &[Checked]) -> String {
    let width = |of: fn(&Checked) -> &str| {
        checked
            .iter()
            .map(|checked| of(checked).chars().count())
            .max()
            .unwrap_or_default()
    };
    let name_width = width(|checked| &checked.name);
    let mut text = String::new();
    for checked in checked {
        let Checked {
            name,
            proves,
            how,
            verdict,
            saw,
            seconds,
        } = checked;
        let word = match verdict {
            Verdict::Passed => "passed",
            Verdict::Failed => "FAILED",
            Verdict::NotWired => "not wired",
            Verdict::Excluded => "excluded",
        };
        text += &format!("{word:9}  {name:name_width$}  {seconds:>4.1} s  {saw}\n");
        if *verdict == Verdict::Failed {
            text += &format!("{:9}  it would prove: {proves}\n{:9}  by: {how}\n", "", "");
        }
    }
    text
}
