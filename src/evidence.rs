//! What a CI system keeps of a run: the results as JUnit has them, and one folder that tells why it failed ([`artifacts`]).

pub mod artifacts;

use std::path::Path;

use anyhow::Context as _;

use crate::checks::{Checked, Verdict};
use crate::cli::Evidence;
use crate::context::Context;
use crate::error::{Exit, Failure};
use crate::inputs::Inputs;
use crate::junit;

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Told {
    /// The command: "up", "run", "check".
    pub command: &'static str,
    /// The checks that were run, and what else counts as one.
    pub checked: Vec<Checked>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

impl Told {
    /// A command that came as far as the checks.
    pub fn ended(command: &'static str, exit: Exit, checked: &[Checked]) -> Self {
        Self {
            command,
            checked: checked.to_owned(),
            failed: (exit == Exit::CheckFailed).then(|| "checks failed".to_owned()),
        }
    }

    /// A command that failed before there were checks.
    pub fn failed(command: &'static str, error: &anyhow::Error) -> Self {
        let story = format!("{error:#}");
        Self {
            command,
            checked: vec![Checked {
                name: command.to_owned(),
                proves: "everything that the environment describes is there".to_owned(),
                how: format!("devenv {command}"),
                verdict: Verdict::Failed,
                saw: story.clone(),
                seconds: 0.0,
            }],
            failed: Some(story),
        }
    }
}

/// Refuses, before anything is made, what couldn't be written in the end; and begins to remember what happens.
pub fn prepare(context: &Context, evidence: &Evidence) -> anyhow::Result<()> {
    if let Some(file) = &evidence.junit {
        junit::refuse_unwritable(file)?;
    }
    if let Some(folder) = &evidence.artifacts {
        refuse_unwritable(folder)?;
        context.events.remember();
    }
    Ok(())
}

fn refuse_unwritable(folder: &Path) -> anyhow::Result<()> {
    let was_there = folder.exists();
    let tried = std::fs::create_dir_all(folder).and_then(|()| tempfile::tempfile_in(folder));
    if !was_there {
        let _ = std::fs::remove_dir(folder); // it is made when there is something to put into it
    }
    tried.map(drop).map_err(|error| {
        Failure::Usage {
            message: format!("can't write into {}: {error}", folder.display()),
            hint: "give --artifacts a folder that you can write to; it is made if it isn't there"
                .to_owned(),
        }
        .into()
    })
}

/// Writes what was asked for. Whatever goes wrong with it is said, and changes nothing of how the command ends.
pub async fn keep(context: &Context, inputs: &Inputs, evidence: &Evidence, told: &Told) {
    if let Some(file) = &evidence.junit {
        let suite = format!("devenv {} {}", told.command, inputs.environment.name);
        let written = junit::write(file, &suite, &told.checked)
            .with_context(|| format!("can't write the results to {}", file.display()));
        if let Err(error) = written {
            context.events.notice(format!("{error:#}"));
        }
    }
    if let (Some(folder), Some(why)) = (&evidence.artifacts, &told.failed) {
        let step = context.events.step("artifacts");
        let lacks = artifacts::collect(context, inputs, folder, told, why, &step).await;
        match lacks {
            Ok(0) => step.done("collected"),
            Ok(lacks) => step.done(format!("collected, but for {lacks} things")),
            Err(error) => step.failed(format!("{error:#}")),
        }
        context.events.notice(format!(
            "what there is to tell why is in {}: begin with its README.txt",
            folder.display()
        ));
    }
}
