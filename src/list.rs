//! `devenv list`: every environment of this project, and whatever else this user has up.
//!
//! Seen anew each time, from the marks in Docker's containers and from the files; only which file an environment somewhere else
//! belongs to is read from the label in its data folder.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use serde::Serialize;

use crate::cli::Output;
use crate::cluster::ours::{self, Ours};
use crate::cluster::{self, Found, kind};
use crate::context::Context;
use crate::docker::{self, Docker, Written};
use crate::environment::{self, Provider, Selector};
use crate::inputs;
use crate::quantity;

/// Docker looks at every file of a volume to say how big it is; whoever has many needn't wait for that.
const SIZES_WITHIN: Duration = Duration::from_secs(5);
const STATE_WITHIN: Duration = Duration::from_secs(3);

/// One environment, as it stands in `-o json`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    name: String,
    provider: Option<Provider>,
    state: &'static str,
    detail: String,
    /// Seconds since its first node was made.
    age_seconds: Option<u64>,
    /// What its nodes have written, in bytes.
    size_bytes: Option<u64>,
    file: Option<PathBuf>,
    id: String,
    this_project: bool,
}

/// Looks, and gives the text for stdout.
pub async fn list(context: &Context, output: Output) -> anyhow::Result<String> {
    let docker = docker::connect().await?;
    let (ours, written, volumes) = tokio::join!(
        ours::all(&docker),
        tokio::time::timeout(SIZES_WITHIN, docker.written(kind::LABEL)),
        tokio::time::timeout(SIZES_WITHIN, docker.volume_sizes()),
    );
    let ours = ours?;
    let states = join_all(ours.iter().map(|ours| state(&docker, ours))).await;
    let sizes = Sizes {
        written: written.ok().and_then(Result::ok),
        volumes: volumes.ok().and_then(Result::ok),
        now: seconds(SystemTime::now()),
    };
    let up: Vec<(&Ours, Found)> = ours.iter().zip(states).collect();
    let mut listed = of_this_project(context, &up, &sizes);
    let known: BTreeSet<String> = listed.iter().map(|listed| listed.id.clone()).collect();
    listed.extend(
        up.iter()
            .filter(|(ours, _)| !known.contains(&ours.id))
            .map(|(ours, found)| elsewhere(ours, found, &sizes)),
    );
    let known: BTreeSet<String> = listed.iter().map(|listed| listed.id.clone()).collect();
    listed.extend(without_cluster(context, &known));
    Ok(match output {
        Output::Json => format!("{}\n", serde_json::to_string(&listed)?),
        Output::Text => table(&listed, &context.directory),
    })
}

/// What the cluster is. One that can't be looked into, since its node is just going away, isn't whole; one whose API server
/// takes its time runs.
async fn state(docker: &Docker, ours: &Ours) -> Found {
    let look = cluster::observe_cluster(docker, ours.provider, &ours.cluster, &ours.nodes);
    match tokio::time::timeout(STATE_WITHIN, look).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => Found::HalfMade(format!("{error:#}")),
        Err(_) => Found::Running,
    }
}

/// Docker's own numbers, where it gave them in time.
struct Sizes {
    written: Option<HashMap<String, Written>>,
    volumes: Option<HashMap<PathBuf, u64>>,
    now: u64,
}

impl Sizes {
    fn age(&self, ours: &Ours) -> Option<u64> {
        let written = self.written.as_ref()?;
        let made = ours.nodes.iter().filter_map(|node| written.get(&node.id));
        let first = made.map(|written| written.created).min()?;
        Some(self.now.saturating_sub(first))
    }

    /// The nodes' own layers and their volumes; the image's layers are shared.
    fn size(&self, ours: &Ours) -> Option<u64> {
        let (written, volumes) = (self.written.as_ref()?, self.volumes.as_ref()?);
        let of_node = |node: &docker::Node| {
            let mounted = node
                .mounts
                .iter()
                .filter_map(|mount| volumes.get(&mount.source));
            written.get(&node.id).map_or(0, |written| written.bytes) + mounted.sum::<u64>()
        };
        Some(ours.nodes.iter().map(of_node).sum())
    }
}

/// Every environment file here, whether it is right or not.
fn of_this_project(context: &Context, up: &[(&Ours, Found)], sizes: &Sizes) -> Vec<Listed> {
    let Some(root) = environment::project(&context.directory) else {
        return Vec::new();
    };
    environment::names(&root)
        .into_iter()
        .map(|name| {
            let file = root.join(environment::FOLDER).join(format!("{name}.yaml"));
            let selector = Selector::File(file.clone());
            let Ok(environment) = inputs::environment(&selector, &context.directory) else {
                return Listed {
                    detail: format!(
                        "devenv status --environment {name} says what is wrong with it"
                    ),
                    state: "wrong",
                    id: environment::identity(&file),
                    provider: None,
                    age_seconds: None,
                    size_bytes: None,
                    file: Some(file),
                    this_project: true,
                    name,
                };
            };
            let own = up.iter().find(|(ours, _)| ours.id == environment.id);
            let namesake = up
                .iter()
                .find(|(ours, _)| ours.cluster == environment.cluster && ours.id != environment.id);
            let absent = Listed {
                provider: Some(environment.provider),
                state: "absent",
                detail: match namesake {
                    Some((other, _)) => format!("its cluster's name is taken by {}", other.told()),
                    None => String::new(),
                },
                age_seconds: None,
                size_bytes: None,
                file: Some(file.clone()),
                id: environment.id,
                this_project: true,
                name,
            };
            match own {
                // Its file is known here, whether it is labelled or not.
                Some((ours, found)) => {
                    let ours = Ours {
                        file: Some(file),
                        ..(*ours).clone()
                    };
                    Listed {
                        name: absent.name,
                        this_project: true,
                        ..elsewhere(&ours, found, sizes)
                    }
                }
                None => absent,
            }
        })
        .collect()
}

fn elsewhere(ours: &Ours, found: &Found, sizes: &Sizes) -> Listed {
    let (state, detail) = match found {
        Found::Absent => ("absent", String::new()),
        Found::HalfMade(reason) => ("half-made", reason.clone()),
        Found::Stopped(_) => ("stopped", String::new()),
        Found::Running => ("running", String::new()),
    };
    let detail = match &ours.file {
        Some(file) if file.is_file() => detail,
        Some(_) => format!("its file is gone; to remove it: {}", ours.removal()),
        None => "another user's, or its label is gone".to_owned(),
    };
    Listed {
        name: ours.name().to_owned(),
        provider: Some(ours.provider),
        state,
        detail,
        age_seconds: sizes.age(ours),
        size_bytes: sizes.size(ours),
        file: ours.file.clone(),
        id: ours.id.clone(),
        this_project: false,
    }
}

/// Environments of which only the data folder is left: somebody removed the cluster by hand.
fn without_cluster(context: &Context, known: &BTreeSet<String>) -> Vec<Listed> {
    let Ok(entries) = std::fs::read_dir(context.paths.environments()) else {
        return Vec::new();
    };
    let mut listed: Vec<Listed> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|id| !known.contains(id))
        .map(|id| {
            let file = ours::read_label(&context.paths.label(&id));
            let name = file.as_deref().and_then(Path::file_stem).map_or_else(
                || "-".to_owned(),
                |name| name.to_string_lossy().into_owned(),
            );
            Listed {
                name,
                provider: None,
                state: "absent",
                detail: format!("only {} is left", context.paths.environment(&id).display()),
                age_seconds: None,
                size_bytes: None,
                file,
                id,
                this_project: false,
            }
        })
        .collect();
    listed.sort_by(|one, other| one.id.cmp(&other.id));
    listed
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The biggest unit alone: how old something is needn't be said to the second.
fn age(seconds: u64) -> String {
    let units = [(86400, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(unit, _)| seconds >= *unit);
    match unit {
        Some((unit, letter)) => format!("{}{letter}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

fn provider(provider: Provider) -> &'static str {
    match provider {
        Provider::Kind => "kind",
        Provider::K3d => "k3d",
    }
}

fn table(listed: &[Listed], directory: &Path) -> String {
    let dash = || "-".to_owned();
    let head = ["environment", "provider", "state", "age", "size", "file"];
    let mut rows = vec![head.map(str::to_owned)];
    for one in listed {
        let file = one.file.as_ref().map_or_else(dash, |file| {
            let file = file.strip_prefix(directory).unwrap_or(file);
            file.display().to_string()
        });
        let detail = match one.detail.as_str() {
            "" => String::new(),
            detail => format!(" ({detail})"),
        };
        rows.push([
            one.name.clone(),
            one.provider
                .map_or_else(dash, |one| provider(one).to_owned()),
            one.state.to_owned(),
            one.age_seconds.map_or_else(dash, age),
            one.size_bytes
                .map_or_else(dash, |bytes| quantity::memory(u128::from(bytes) * 1000)),
            file + &detail,
        ]);
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_told_in_its_biggest_unit() {
        let told = [59, 60, 7199, 90000].map(age);
        assert_eq!(told, ["59s", "1m", "1h", "1d"]);
    }
}
