//! What environments left behind whose file is gone, so that no `devenv down` can be asked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Finding, World};
use crate::cluster::ours::{self, Ours};
use crate::docker::State;
use crate::names::{self, HOSTS, hosts, hosts_file};
use crate::paths::Paths;

pub(super) fn look(world: &World<'_>, ours: &[Ours], volumes: &[String]) -> Vec<Finding> {
    let paths = &world.context.paths;
    let file = hosts_file::read(Path::new(HOSTS)).unwrap_or_default();
    let folders = folders(paths);
    // An environment of this project has no folder before its first `up`, and its block may still be there.
    let own: BTreeSet<String> = world
        .inputs
        .map(|inputs| inputs.environment.id.clone())
        .into_iter()
        .collect();
    let mut findings: Vec<Finding> = ours.iter().filter_map(container).collect();
    findings.extend(folders.iter().filter_map(|left| folder(left, ours)));
    let known: BTreeSet<&str> = ours
        .iter()
        .map(|ours| ours.id.as_str())
        .chain(
            folders
                .iter()
                .filter(|left| !left.is_gone())
                .map(|left| left.id.as_str()),
        )
        .chain(own.iter().map(String::as_str))
        .collect();
    findings.extend(
        hosts::owners(&file)
            .into_iter()
            .filter(|owner| !known.contains(owner.id.as_str()))
            .filter_map(block),
    );
    findings.extend(forsaken(volumes));
    if findings.is_empty() {
        findings.push(Finding::fine("leftovers", "none"));
    }
    findings
}

/// The data folder of an environment.
struct Left {
    id: String,
    folder: PathBuf,
    /// The environment's file, where the folder is labelled.
    file: Option<PathBuf>,
}

impl Left {
    fn is_gone(&self) -> bool {
        self.file.as_ref().is_some_and(|file| !file.is_file())
    }
}

fn folders(paths: &Paths) -> Vec<Left> {
    let Ok(entries) = std::fs::read_dir(paths.environments()) else {
        return Vec::new();
    };
    let mut folders: Vec<Left> = entries
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().into_string().ok()?;
            Some(Left {
                file: ours::read_label(&paths.label(&id)),
                folder: entry.path(),
                id,
            })
        })
        .collect();
    folders.sort_by(|one, other| one.id.cmp(&other.id));
    folders
}

fn container(ours: &Ours) -> Option<Finding> {
    let file = ours.file.as_ref().filter(|file| !file.is_file())?;
    let runs = ours.nodes.iter().any(|node| node.state == State::Running);
    let saw = format!(
        "the cluster {} is of {}, which is gone; it {} its ports{}",
        ours.cluster,
        file.display(),
        if runs {
            "holds"
        } else {
            "is stopped, and keeps"
        },
        if runs { " and gigabytes of memory" } else { "" },
    );
    let finding = match runs {
        true => Finding::slows("leftovers", saw),
        false => Finding::information("leftovers", saw),
    };
    Some(finding.remedy(ours.removal()))
}

fn folder(left: &Left, ours: &[Ours]) -> Option<Finding> {
    let file = left.file.as_ref().filter(|_| left.is_gone())?;
    if ours.iter().any(|ours| ours.id == left.id) {
        return None;
    }
    let saw = format!(
        "{} (a kubeconfig) is of {}, which is gone",
        left.folder.display(),
        file.display()
    );
    Some(Finding::information("leftovers", saw).remedy(format!("rm -r {}", left.folder.display())))
}

fn block(owner: hosts::Owner) -> Option<Finding> {
    let saw =
        format!("{HOSTS} has a block of the environment {owner}, of which nothing else is here");
    let command = names::removal_by_hand(owner).ok()?;
    Some(Finding::information("leftovers", saw).remedy(command))
}

fn forsaken(volumes: &[String]) -> Option<Finding> {
    let saw = match volumes {
        [] => return None,
        [_] => "1 volume without a name belongs to no container any more; a node's has gigabytes"
            .to_owned(),
        volumes => format!(
            "{} volumes without a name belong to no container any more; a node's has gigabytes",
            volumes.len()
        ),
    };
    Some(Finding::information("leftovers", saw).remedy("docker volume prune"))
}
