//! `devenv doctor`: what on this machine would get in the way, looked at before anything is touched.
//!
//! Every probe is two parts: one gathers facts (from Docker, from `/proc`, by a question to a resolver) and one, which is pure,
//! makes findings of them. All of them run side by side, and each has its time; what didn't answer in it is said, not waited for.
//! A finding has a remedy that can be typed. [`before_making`] is the part that `up` goes through by itself.
//!
//! Not in here: what is wrong with files that a person wrote ([`crate::inputs`]), and whether what is up works
//! ([`crate::checks`]).

mod engine;
mod leftovers;
mod machine;
mod network;
mod resolver;

use std::time::Duration;

use serde::Serialize;

use crate::cli::Output;
use crate::cluster::ours::{self, Ours};
use crate::cluster::ports::{self, For};
use crate::context::Context;
use crate::docker::{self, Docker};
use crate::environment::{self, Selector};
use crate::error::{Exit, Failure, explain};
use crate::event::{Events, Step};
use crate::existing;
use crate::inputs::{self, Inputs};

/// How long one probe may take; all of them run at the same time.
const WITHIN: Duration = Duration::from_millis(2500);

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// What it means for `up`.
    pub severity: Severity,
    /// What was seen, with numbers.
    pub saw: String,
    /// What to type.
    pub remedy: Option<String>,
}

/// What a finding means for `up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// `up` can't succeed.
    Blocks,
    /// `up` can succeed, but takes longer, breaks sooner, or leaves something undone.
    Slows,
    /// Good to know.
    Information,
    /// Nothing is in the way.
    Fine,
}

impl Finding {
    fn new(name: &'static str, severity: Severity, saw: impl Into<String>) -> Self {
        Self {
            name,
            severity,
            saw: saw.into(),
            remedy: None,
        }
    }

    fn blocks(name: &'static str, saw: impl Into<String>) -> Self {
        Self::new(name, Severity::Blocks, saw)
    }

    fn slows(name: &'static str, saw: impl Into<String>) -> Self {
        Self::new(name, Severity::Slows, saw)
    }

    fn information(name: &'static str, saw: impl Into<String>) -> Self {
        Self::new(name, Severity::Information, saw)
    }

    fn fine(name: &'static str, saw: impl Into<String>) -> Self {
        Self::new(name, Severity::Fine, saw)
    }

    fn remedy(mut self, command: impl Into<String>) -> Self {
        self.remedy = Some(command.into());
        self
    }

    /// An error that says what to do is a finding.
    fn of_error(name: &'static str, error: &anyhow::Error) -> Self {
        let finding = Self::blocks(name, format!("{error:#}"));
        match explain(error).1 {
            Some(hint) => finding.remedy(command_in(&hint)),
            None => finding,
        }
    }
}

/// The command in a hint: what stands between the first backticks, or else an address, or else all of it.
fn command_in(hint: &str) -> &str {
    match hint.split('`').nth(1) {
        Some(command) => command,
        None => hint.find("https://").map_or(hint, |start| &hint[start..]),
    }
}

/// What every probe may look at.
struct World<'a> {
    context: &'a Context,
    /// The environment's files, where one stands in a project.
    inputs: Option<&'a Inputs>,
    /// For processes, whose lines interest nobody here.
    step: &'a Step,
}

/// Looks at everything; gives the text for stdout with the exit code: 0 where nothing blocks, else 1. `all` shows what is
/// fine too.
pub async fn doctor(
    context: &Context,
    output: Output,
    all: bool,
) -> anyhow::Result<(Exit, String)> {
    let is_project = matches!(context.selector, Selector::File(_))
        || environment::project(&context.directory).is_some();
    let inputs = match is_project {
        true => Some(inputs::load(&context.selector, &context.directory)?),
        false => {
            context.events.notice(format!(
                "there is no `{}/` here: only the machine is looked at, not what an environment needs of it",
                environment::FOLDER
            ));
            None
        }
    };
    let world = World {
        context,
        inputs: inputs.as_ref(),
        step: &Events::channel().0.step("doctor"),
    };
    let findings = context.stop.or(look(&world)).await?;
    let exit = match findings.first() {
        Some(finding) if finding.severity == Severity::Blocks => Exit::StepFailed,
        _ => Exit::Ready,
    };
    let text = match output {
        Output::Json => format!("{}\n", serde_json::to_string(&findings)?),
        Output::Text => table(&findings, all),
    };
    if output == Output::Text {
        context.events.verdict(verdict(&findings));
    }
    Ok((exit, text))
}

/// Everything, what matters most first.
async fn look(world: &World<'_>) -> Vec<Finding> {
    let existing = world
        .inputs
        .filter(|inputs| inputs.environment.existing.is_some());
    let of_nodes = async {
        match existing {
            Some(inputs) => of_existing(world, inputs).await,
            None => within("docker", Severity::Blocks, of_docker(world)).await,
        }
    };
    let (docker, names, registries) = tokio::join!(
        of_nodes,
        within("names", Severity::Information, resolver::look(world)),
        within(
            "registries",
            Severity::Information,
            network::registries(world)
        ),
    );
    let mut findings = docker;
    findings.extend(machine::look(world));
    findings.extend(names);
    findings.extend(registries);
    // Those of one severity stay in the order in which they would get in the way.
    findings.sort_by_key(|finding| finding.severity);
    findings
}

async fn within(
    name: &'static str,
    severity: Severity,
    look: impl Future<Output = Vec<Finding>>,
) -> Vec<Finding> {
    let looked = tokio::time::timeout(WITHIN, look).await;
    looked.unwrap_or_else(|_| {
        let saw = format!("no answer within {:.1} s", WITHIN.as_secs_f32());
        let finding = Finding::new(name, severity, saw);
        vec![match severity {
            Severity::Blocks => finding.remedy("docker version"),
            _ => finding,
        }]
    })
}

/// All that a cluster can tell that is there already. Docker isn't needed for it.
async fn of_existing(world: &World<'_>, inputs: &Inputs) -> Vec<Finding> {
    match existing::examine(world.context, inputs).await {
        Ok(saw) => vec![Finding::fine("cluster", saw)],
        Err(error) => vec![Finding::of_error("cluster", &error)],
    }
}

/// All that Docker can tell.
async fn of_docker(world: &World<'_>) -> Vec<Finding> {
    let docker = match docker::connect().await {
        Ok(docker) => docker,
        Err(error) => return vec![Finding::of_error("docker", &error)],
    };
    let (info, networks, volumes, ours) = tokio::join!(
        docker.info(),
        docker.networks(),
        docker.forsaken_volumes(),
        ours::all(&docker),
    );
    let (info, networks, volumes, ours) = match (info, networks, volumes, ours) {
        (Ok(info), Ok(networks), Ok(volumes), Ok(ours)) => (info, networks, volumes, ours),
        (Err(error), ..) | (_, Err(error), ..) | (_, _, Err(error), _) | (.., Err(error)) => {
            return vec![Finding::of_error("docker", &error)];
        }
    };
    let mut findings = engine::judge(&engine::Facts::gather(
        world.inputs,
        &docker,
        info.clone(),
        &ours,
    ));
    findings.extend(machine::of_docker(&info));
    if let Some(inputs) = world.inputs {
        findings.extend(of_ports(&docker, inputs, &ours).await);
    }
    findings.extend(network::of_docker(world, &info, &networks));
    findings.extend(leftovers::look(world, &ours, &volumes));
    findings
}

/// The ports that are to be published, unless the environment's own nodes publish them.
async fn of_ports(docker: &Docker, inputs: &Inputs, ours: &[Ours]) -> Vec<Finding> {
    let is_there = ours.iter().any(|ours| ours.id == inputs.environment.id);
    let what_for = if is_there { For::Starting } else { For::Making };
    let others = ports::others(ours.to_vec(), inputs, what_for);
    let taken = ports::taken(docker, inputs, &others).await;
    let Some(first) = taken.first() else {
        let ports = inputs.cluster_config.published_ports().iter();
        let ports: Vec<String> = ports.map(|port| port.host_port.to_string()).collect();
        let whose = if is_there {
            "the environment's own"
        } else {
            "free"
        };
        return vec![Finding::fine(
            "ports",
            format!("{}: {whose}", ports.join(", ")),
        )];
    };
    // Who holds one often holds the other too.
    let mut told: Vec<(Vec<String>, &Option<String>)> = Vec::new();
    for taken in &taken {
        let port = format!("{}:{}", taken.port.address, taken.port.host_port);
        match told.last_mut() {
            Some((ports, by)) if *by == &taken.by => ports.push(port),
            _ => told.push((vec![port], &taken.by)),
        }
    }
    let told: Vec<String> = told
        .iter()
        .map(|(ports, by)| {
            let by = by
                .as_ref()
                .map(|by| format!(" by {by}"))
                .unwrap_or_default();
            let verb = if ports.len() == 1 { "is" } else { "are" };
            format!("{} {verb} taken{by}", ports.join(" and "))
        })
        .collect();
    let saw = format!(
        "{}\nor {}",
        told.join("\n"),
        ports::instead(inputs, &others)
    );
    vec![Finding::blocks("ports", saw).remedy(command_in(&first.free))]
}

/// The part of it that costs milliseconds, before a cluster is made: fails on what blocks, says what slows. What `up` finds out
/// by itself in time (Docker, ports, kind, what was written) isn't asked for again.
pub async fn before_making(
    context: &Context,
    docker: &Docker,
    inputs: &Inputs,
) -> anyhow::Result<()> {
    // Whoever may use only a part of Docker's API is told by what needs the rest.
    let (Ok(info), Ok(ours)) = tokio::join!(docker.info(), ours::all(docker)) else {
        return Ok(());
    };
    let facts = engine::Facts::gather(Some(inputs), docker, info.clone(), &ours);
    let mut findings = engine::judge(&facts);
    findings.extend(machine::of_docker(&info));
    findings.push(machine::git());
    let worth_it = |severity| {
        let of = findings
            .iter()
            .filter(move |finding| finding.severity == severity);
        of.map(Finding::line).collect::<Vec<_>>()
    };
    for line in worth_it(Severity::Slows) {
        context.events.notice(line);
    }
    match findings
        .iter()
        .find(|finding| finding.severity == Severity::Blocks)
    {
        None => Ok(()),
        Some(first) => Err(Failure::Other {
            message: worth_it(Severity::Blocks).join("\n"),
            hint: match &first.remedy {
                Some(remedy) => format!("`{remedy}`; `devenv doctor` looks at everything"),
                None => "devenv doctor".to_owned(),
            },
        }
        .into()),
    }
}

impl Finding {
    fn line(&self) -> String {
        format!("{}: {}", self.name, self.saw)
    }
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings
        .iter()
        .filter(|finding| finding.severity == severity)
        .count()
}

fn verdict(findings: &[Finding]) -> String {
    let (blocks, slows) = (
        count(findings, Severity::Blocks),
        count(findings, Severity::Slows),
    );
    let all = findings.len();
    let verb = |count: usize, verb: &str| match count {
        1 => format!("1 {verb}s `up`"),
        count => format!("{count} {verb} `up`"),
    };
    match (blocks, slows) {
        (0, 0) => format!("nothing is in the way: {all} things were looked at (-v shows them)"),
        (0, _) => format!(
            "of {all} things that were looked at, {}",
            verb(slows, "slow")
        ),
        (_, 0) => format!(
            "of {all} things that were looked at, {}",
            verb(blocks, "block")
        ),
        (_, _) => format!(
            "of {all} things that were looked at, {}, {}",
            verb(blocks, "block"),
            verb(slows, "slow")
        ),
    }
}

/// A finding's lines, with the command that helps beneath; fine ones only on request.
fn table(findings: &[Finding], all: bool) -> String {
    let shown: Vec<&Finding> = findings
        .iter()
        .filter(|finding| all || finding.severity != Severity::Fine)
        .collect();
    let width = shown.iter().map(|finding| finding.name.len()).max();
    let width = width.unwrap_or_default();
    let mut text = String::new();
    for Finding {
        name,
        severity,
        saw,
        remedy,
    } in shown
    {
        let word = match severity {
            Severity::Blocks => "BLOCKS",
            Severity::Slows => "slows",
            Severity::Information => "info",
            Severity::Fine => "fine",
        };
        let mut lines = saw.lines();
        let first = lines.next().unwrap_or_default();
        text += &format!("{word:6}  {name:width$}  {first}\n");
        for line in lines {
            text += &format!("{:6}  {:width$}  {line}\n", "", "");
        }
        if let Some(remedy) = remedy {
            // An address can't be typed into a shell.
            let sign = if remedy.starts_with("https://") {
                "see"
            } else {
                "$"
            };
            text += &format!("{:6}  {:width$}  {sign} {remedy}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_of_a_hint_is_what_can_be_typed() {
        assert_eq!(command_in("start it: `sudo x`, or `y`"), "sudo x");
        assert_eq!(command_in("devenv down"), "devenv down");
        assert_eq!(command_in("install it: https://x/y"), "https://x/y");
    }
}
