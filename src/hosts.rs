//! `devenv hosts`: shows, applies or removes the environment's names in the hosts file, without touching anything else.

use serde::Serialize;

use crate::cli::{Hosts, Output};
use crate::context::Context;
use crate::environment::HostsFile;
use crate::error::{Exit, Failure};
use crate::inputs::Inputs;
use crate::names::hosts::{Block, Leads, State};
use crate::names::{self, HOSTS, Look, Unwired, Wired};
use crate::{existing, inputs, lock, report};

/// Does what was asked for.
pub async fn hosts(context: &Context, what: Hosts, output: Output) -> anyhow::Result<Exit> {
    match what {
        Hosts::Show => show(context, output).await,
        Hosts::Apply => apply(context).await,
        Hosts::Remove => remove(context).await,
    }
}

async fn apply(context: &Context) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv hosts apply",
        &context.events,
        &context.stop,
    )
    .await?;
    let wanted = &inputs.names;
    let step = context.events.step("names");
    let (leads, place) = leads(context, &inputs).await?;
    let wired = names::wire(context, environment, wanted, leads, &step).await?;
    let count = wanted.len();
    let verdict = match &wired {
        Wired::Changed => {
            step.done(format!("{HOSTS} changed"));
            format!("{count} names lead {place}")
        }
        Wired::Unchanged => {
            step.unchanged(format!("{HOSTS} is as it is to be"));
            format!("nothing to change: {count} names lead {place}")
        }
        Wired::Off => {
            step.unchanged("the environment says `hosts: off`");
            "nothing to change: the environment says `hosts: off`".to_owned()
        }
        Wired::NotWired { .. } => {
            step.unchanged("not wired");
            "the names are not wired".to_owned()
        }
    };
    if let Some(notice) = wired.notice() {
        context.events.notice(notice);
    }
    context.events.verdict(verdict);
    Ok(match wired {
        Wired::NotWired { .. } => Exit::NamesNotWired,
        Wired::Changed | Wired::Unchanged | Wired::Off => Exit::Ready,
    })
}

/// Where the names are to lead, and the same in words. Only the cluster itself knows its load balancer.
async fn leads(context: &Context, inputs: &Inputs) -> anyhow::Result<(Leads, String)> {
    let environment = &inputs.environment;
    if environment.existing.is_none() {
        let ipv6 = names::ipv6(environment).await;
        return Ok((Leads::Here { ipv6 }, "here".to_owned()));
    }
    let client = existing::running(context, environment).await?;
    let balancer = existing::balancer(&client).await?;
    let balancer = balancer.map_err(|message| Failure::Other {
        message,
        hint: format!("devenv up --environment {}", environment.name),
    })?;
    let place = format!("to {}", balancer.address());
    Ok((Leads::To(balancer), place))
}

/// Needs only the environment's file: a mistake in a bundle is no reason to keep its names.
async fn remove(context: &Context) -> anyhow::Result<Exit> {
    let environment = inputs::environment(&context.selector, &context.directory)?;
    let _lock = lock::acquire(
        &context.paths.lock(&environment.id),
        "devenv hosts remove",
        &context.events,
        &context.stop,
    )
    .await?;
    let step = context.events.step("names");
    let verdict = match names::unwire(context, &environment, &step).await? {
        Unwired::Changed => {
            step.done(format!("{HOSTS} changed"));
            format!("{HOSTS} is as it was without {}", environment.name)
        }
        Unwired::Unchanged => {
            step.unchanged(format!("no block of {} in {HOSTS}", environment.name));
            format!(
                "nothing to remove: no block of {} in {HOSTS}",
                environment.name
            )
        }
        Unwired::Left {
            reason,
            block,
            command,
        } => {
            return Err(Failure::Other {
                message: format!("the names are left in {HOSTS}: {reason}\n{block}"),
                hint: command,
            }
            .into());
        }
    };
    context.events.verdict(verdict);
    Ok(Exit::Ready)
}

/// What `show` tells, as data.
#[derive(Debug, Serialize)]
struct Shown {
    environment: String,
    file: &'static str,
    wired: bool,
    state: &'static str,
    detail: String,
    conflicts: Vec<Conflict>,
    names: Vec<String>,
    block: String,
}

#[derive(Debug, Serialize)]
struct Conflict {
    line: usize,
    name: String,
    address: String,
}

/// Exit code 4 where the names aren't wired, as `up` has it.
async fn show(context: &Context, output: Output) -> anyhow::Result<Exit> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let (leads, _) = leads(context, &inputs).await?;
    let (block, _) = names::block(environment, &inputs.names, leads);
    let shown = Shown::new(&block, Look::at(&block)?);
    let is_fine = shown.wired || environment.hosts == HostsFile::Off;
    report::data(&match output {
        Output::Json => serde_json::to_string(&shown)?,
        Output::Text => shown.to_string(),
    })?;
    Ok(if is_fine {
        Exit::Ready
    } else {
        Exit::NamesNotWired
    })
}

impl Shown {
    fn new(block: &Block, look: Look) -> Self {
        let Look {
            state,
            conflicts,
            change,
            ..
        } = look;
        let (state, detail) = match state {
            State::Same => ("there", "as it is to be".to_owned()),
            State::Absent if change.is_none() && conflicts.is_empty() => (
                "not needed",
                "other lines of the file do the same".to_owned(),
            ),
            State::Absent => ("absent", "devenv hosts apply puts it in".to_owned()),
            State::Differs => (
                "differs",
                "devenv hosts apply brings it up to date".to_owned(),
            ),
            State::Torn(torn) => (
                "torn",
                format!("{torn}; it is left alone until somebody mends it: sudoedit {HOSTS}"),
            ),
        };
        Self {
            environment: block.owner.name.to_string(),
            file: HOSTS,
            wired: change.is_none() && conflicts.is_empty(),
            state,
            detail,
            conflicts: conflicts
                .iter()
                .map(|conflict| Conflict {
                    line: conflict.line,
                    name: conflict.name.to_string(),
                    address: conflict.address.to_string(),
                })
                .collect(),
            names: block.names.iter().map(ToString::to_string).collect(),
            block: block.lines(),
        }
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "environment  {}", self.environment)?;
        writeln!(formatter, "file         {}", self.file)?;
        writeln!(formatter, "block        {}: {}", self.state, self.detail)?;
        for Conflict {
            line,
            name,
            address,
        } in &self.conflicts
        {
            writeln!(
                formatter,
                "conflict     line {line} leads {name} to {address}; it is not devenv's to change"
            )?;
        }
        write!(formatter, "\n{}", self.block)
    }
}
