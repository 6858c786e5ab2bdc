//! `devenv list`: every environment of this project, and whatever else this user has up.
//!
//! Seen anew each time, from the marks in Docker's containers, from clusters that are there already, and from the files; only which file an environment somewhere else
//! belongs to is read from the label in its data folder.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures::future::join_all;
use serde::Serialize;

use crate::cli::Output;
use crate::cluster::kept::{self, Kept};
use crate::cluster::ours::{self, Ours};
use crate::cluster::{self, Found, kind};
use crate::context::Context;
use crate::docker::{self, Docker, Written};
use crate::environment::{self, Environment, Provider, Selector};
use crate::existing;
use crate::inputs;
use crate::kube::text;
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
    /// Seconds since its first node was made, or since it was put into a cluster that was there already.
    age_seconds: Option<u64>,
    /// What its nodes have written, in bytes.
    size_bytes: Option<u64>,
    file: Option<PathBuf>,
    id: String,
    this_project: bool,
}

/// Looks, and gives the text for stdout.
pub async fn list(context: &Context, output: Output) -> anyhow::Result<String> {
    let existing = existing_environments(context);
    let (in_docker, elsewhere_up) = tokio::join!(
        look_into_docker(),
        join_all(existing.iter().map(|one| look_into_existing(context, one))),
    );
    let InDocker {
        ours,
        states,
        kept,
        sizes,
    } = match in_docker {
        Ok(found) => found,
        // Environments on clusters that are there already need no Docker.
        Err(error) if !existing.is_empty() => {
            context
                .events
                .notice(format!("those on this machine can't be listed: {error:#}"));
            InDocker {
                ours: Vec::new(),
                states: Vec::new(),
                kept: BTreeMap::new(),
                sizes: Sizes::unknown(),
            }
        }
        Err(error) => return Err(error),
    };
    let up: Vec<(&Ours, Found)> = ours.iter().zip(states).collect();
    let mut listed = of_this_project(context, &up, &sizes);
    for found in elsewhere_up {
        match listed.iter_mut().find(|listed| listed.id == found.id) {
            Some(listed) => {
                *listed = Listed {
                    this_project: true,
                    ..found
                }
            }
            None => listed.push(found),
        }
    }
    let known: BTreeSet<String> = listed.iter().map(|listed| listed.id.clone()).collect();
    listed.extend(
        up.iter()
            .filter(|(ours, _)| !known.contains(&ours.id))
            .map(|(ours, found)| elsewhere(ours, found, &sizes)),
    );
    for (id, kept) in &kept {
        let is_up = up.iter().any(|(ours, _)| ours.id == *id);
        match listed.iter_mut().find(|listed| listed.id == *id) {
            _ if is_up => {}
            Some(absent) => tell_kept(absent, kept, &sizes),
            None => {
                let mut listed_kept = kept_elsewhere(id, kept);
                tell_kept(&mut listed_kept, kept, &sizes);
                listed.push(listed_kept);
            }
        }
    }
    let known: BTreeSet<String> = listed.iter().map(|listed| listed.id.clone()).collect();
    listed.extend(without_cluster(context, &known));
    Ok(match output {
        Output::Json => format!("{}\n", serde_json::to_string(&listed)?),
        Output::Text => table(&listed, &context.directory),
    })
}

/// All that Docker tells.
struct InDocker {
    /// The clusters, and how each is.
    ours: Vec<Ours>,
    states: Vec<Found>,
    /// States of environments that are down, by the environments' ids.
    kept: BTreeMap<String, Kept>,
    sizes: Sizes,
}

/// Asks Docker.
async fn look_into_docker() -> anyhow::Result<InDocker> {
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
    Ok(InDocker {
        kept: kept::all(&docker).await?,
        ours,
        states,
        sizes,
    })
}

/// The environments on clusters that are there already: of this project, and those of which a data folder tells.
fn existing_environments(context: &Context) -> Vec<Environment> {
    let here = environment::project(&context.directory).into_iter();
    let here = here.flat_map(|root| {
        let names = environment::names(&root).into_iter();
        names.map(move |name| root.join(environment::FOLDER).join(format!("{name}.yaml")))
    });
    let folders = std::fs::read_dir(context.paths.environments());
    let labels = folders.into_iter().flatten().flatten();
    let labels = labels
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|id| ours::read_label(&context.paths.label(&id)));
    let mut found = Vec::<Environment>::new();
    for file in here.chain(labels) {
        let read = inputs::environment(&Selector::File(file), &context.directory);
        if let Ok(environment) = read
            && environment.existing.is_some()
            && !found.iter().any(|one| one.id == environment.id)
        {
            found.push(environment);
        }
    }
    found
}

/// How an environment is in a cluster that is there already.
async fn look_into_existing(context: &Context, environment: &Environment) -> Listed {
    let look = async {
        let client = existing::client(context, environment).await?;
        existing::argocd_namespace(&client, environment).await
    };
    let look = tokio::time::timeout(STATE_WITHIN, look).await;
    let look = look.unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "no answer within {} s",
            STATE_WITHIN.as_secs()
        ))
    });
    let (state, detail, began) = match look {
        Ok(Some(namespace)) => {
            let began = text(&namespace, "/metadata/creationTimestamp").to_owned();
            (
                "running",
                String::new(),
                humantime::parse_rfc3339(&began).ok(),
            )
        }
        Ok(None) => ("absent", String::new(), None),
        Err(error) => ("unknown", format!("{error:#}").replace('\n', " "), None),
    };
    let age = began.and_then(|began| SystemTime::now().duration_since(began).ok());
    Listed {
        name: environment.name.to_string(),
        provider: Some(environment.provider),
        state,
        detail,
        age_seconds: age.map(|age| age.as_secs()),
        size_bytes: None,
        file: Some(environment.file.clone()),
        id: environment.id.clone(),
        this_project: false,
    }
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
    fn unknown() -> Self {
        Self {
            written: None,
            volumes: None,
            now: seconds(SystemTime::now()),
        }
    }

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

/// That a state is kept of an environment that is down.
fn tell_kept(listed: &mut Listed, kept: &Kept, sizes: &Sizes) {
    listed.state = "kept";
    listed.detail = match listed.this_project {
        true => format!(
            "`devenv up -e {0}` starts from its state, `devenv down --purge -e {0}` removes it",
            listed.name
        ),
        false => "another folder's; `devenv down --purge` there removes it".to_owned(),
    };
    let saved = humantime::parse_rfc3339(&kept.snapshot.saved).ok();
    listed.age_seconds = saved.map(|saved| sizes.now.saturating_sub(seconds(saved)));
    let names: Vec<&String> = kept
        .nodes
        .iter()
        .flat_map(|node| node.volumes.values())
        .collect();
    listed.size_bytes = sizes.volumes.as_ref().map(|volumes| {
        volumes
            .iter()
            .filter(|(path, _)| {
                names
                    .iter()
                    .any(|name| path.iter().any(|part| part == name.as_str()))
            })
            .map(|(_, size)| size)
            .sum()
    });
}

/// What is kept of an environment of another folder, which Docker alone tells of.
fn kept_elsewhere(id: &str, kept: &Kept) -> Listed {
    let made_of = kept.snapshot.made_of.as_ref();
    Listed {
        name: made_of.map_or_else(|| "-".to_owned(), |made_of| made_of.environment.clone()),
        provider: None,
        state: "kept",
        detail: String::new(),
        age_seconds: None,
        size_bytes: None,
        file: None,
        id: id.to_owned(),
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
        Provider::Existing => "existing",
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
