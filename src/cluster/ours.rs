//! Every cluster that some environment on this machine has, whichever it is: known by the mark in its nodes. And the label
//! that tells people which file an environment belongs to.
//!
//! Another provider joins in by knowing its own mark: [`all`] is the one place that asks Docker for clusters.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::k3d;
use super::kind;
use super::kind_config::MARK_FOLDER;
use crate::docker::{Docker, Mount, Node};
use crate::environment::{Environment, Provider};
use crate::exec::quoted;
use crate::paths::{self, Paths};

/// The cluster of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ours {
    /// What runs it.
    pub provider: Provider,
    /// Its name at its provider.
    pub cluster: String,
    /// The environment's id.
    pub id: String,
    /// The environment's file, where its label can be read.
    pub file: Option<PathBuf>,
    /// Its containers, by name.
    pub nodes: Vec<Node>,
}

impl Ours {
    /// The environment's name: the cluster's, without what devenv puts before it.
    pub fn name(&self) -> &str {
        self.cluster
            .strip_prefix("devenv-")
            .unwrap_or(&self.cluster)
    }

    /// The environment as a person would point to it.
    pub fn told(&self) -> String {
        match &self.file {
            Some(file) => format!("the environment {} of {}", self.name(), file.display()),
            None => format!(
                "the environment {}, whose file isn't known here",
                self.name()
            ),
        }
    }

    /// What removes it: devenv itself, where its file is still there.
    pub fn removal(&self) -> String {
        match &self.file {
            Some(file) if file.is_file() => {
                format!("devenv down --environment {}", quoted(file.as_os_str()))
            }
            _ => {
                let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
                format!("docker rm --force --volumes {}", names.join(" "))
            }
        }
    }
}

/// Every cluster of an environment, by name.
pub async fn all(docker: &Docker) -> anyhow::Result<Vec<Ours>> {
    let nodes = docker.containers(kind::LABEL, None).await?;
    let of_k3d = by_label(docker.containers(k3d::LABEL, None).await?);
    Ok(grouped(nodes)
        .into_iter()
        .map(|(cluster, mark, nodes)| Ours {
            provider: Provider::Kind,
            cluster,
            id: id(&mark).unwrap_or_default().to_owned(),
            file: label_beside(&mark),
            nodes,
        })
        .chain(of_k3d)
        .collect())
}

/// k3d's containers by cluster, whose mark is a label. Which file it belongs to can't be read from them.
fn by_label(nodes: Vec<Node>) -> Vec<Ours> {
    let mut clusters = BTreeMap::<(String, String), Vec<Node>>::new();
    for node in nodes {
        if let (Some(cluster), Some(id)) = (node.labels.get(k3d::LABEL), node.labels.get(k3d::MARK))
        {
            clusters
                .entry((cluster.clone(), id.clone()))
                .or_default()
                .push(node);
        }
    }
    clusters
        .into_iter()
        .map(|((cluster, id), nodes)| Ours {
            provider: Provider::K3d,
            cluster,
            id,
            file: None,
            nodes,
        })
        .collect()
}

/// kind's containers by cluster, with the mark that makes a cluster an environment's; others are left out.
fn grouped(nodes: Vec<Node>) -> Vec<(String, Mount, Vec<Node>)> {
    let mut clusters = BTreeMap::<String, Vec<Node>>::new();
    for node in nodes {
        if let Some(cluster) = node.labels.get(kind::LABEL) {
            clusters.entry(cluster.clone()).or_default().push(node);
        }
    }
    clusters
        .into_iter()
        .filter_map(|(cluster, nodes)| {
            let mark = nodes.iter().find_map(mark)?.clone();
            Some((cluster, mark, nodes))
        })
        .collect()
}

/// The mark of a node, whichever environment's.
pub fn mark(node: &Node) -> Option<&Mount> {
    node.mounts.iter().find(|mount| id(mount).is_some())
}

/// The id in a mark.
fn id(mark: &Mount) -> Option<&str> {
    mark.destination
        .strip_prefix(MARK_FOLDER)
        .ok()?
        .to_str()
        .filter(|id| !id.is_empty())
}

/// The label that lies beside the folder that is mounted as a mark; none where that is another user's, or another machine's.
pub fn label_beside(mark: &Mount) -> Option<PathBuf> {
    read_label(&mark.source.with_file_name("file"))
}

/// The environment's file, as a label says it.
pub fn read_label(label: &Path) -> Option<PathBuf> {
    let text = fs::read(label).ok()?;
    let line = text.split(|byte| *byte == b'\n').next()?;
    let file = PathBuf::from(std::ffi::OsString::from_vec(line.to_owned()));
    file.is_absolute().then_some(file)
}

/// Makes the environment's folder, with its label in it.
pub fn folder(paths: &Paths, environment: &Environment) -> anyhow::Result<()> {
    paths::private_folder(&paths.environment(&environment.id))?;
    let file = environment.file.canonicalize();
    let file = file.as_deref().unwrap_or(&environment.file);
    let label = paths.label(&environment.id);
    if read_label(&label).as_deref() != Some(file) {
        let line = [file.as_os_str().as_bytes(), b"\n"].concat();
        paths::write_private(&label, &line)?;
    }
    Ok(())
}

/// Removes from the environment's folder what a devenv that was killed was just writing. Its lock must be held.
pub fn tidy(paths: &Paths, environment: &Environment) -> anyhow::Result<()> {
    let folder = paths.environment(&environment.id);
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().as_bytes().starts_with(b".tmp") {
            continue;
        }
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::docker::State;

    fn node(cluster: &str, name: &str, mounted: &str) -> Node {
        Node {
            id: name.to_owned(),
            name: name.to_owned(),
            role: "worker".to_owned(),
            state: State::Running,
            exit_code: None,
            mounts: vec![Mount {
                volume: None,
                source: "/data/devenv/environments/x/mark".into(),
                destination: mounted.into(),
            }],
            image: String::new(),
            ports: Vec::new(),
            address: None,
            started: None,
            labels: HashMap::from([(kind::LABEL.to_owned(), cluster.to_owned())]),
        }
    }

    #[test]
    fn clusters_are_known_by_the_mark_of_any_node() {
        let nodes = vec![
            node("devenv-b", "b-balancer", "/lib/modules"),
            node("devenv-b", "b-worker", "/devenv/bbbbbbbbbbbb"),
            node("theirs", "t", "/devenv"),
            node("devenv-a", "a", "/devenv/aaaaaaaaaaaa"),
        ];
        let shown: Vec<String> = grouped(nodes)
            .iter()
            .map(|(cluster, mark, nodes)| {
                format!("{cluster} {} {}", id(mark).unwrap(), nodes.len())
            })
            .collect();
        assert_eq!(
            shown,
            ["devenv-a aaaaaaaaaaaa 1", "devenv-b bbbbbbbbbbbb 2"]
        );
    }

    #[test]
    fn a_label_is_a_line_with_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let label = folder.path().join("file");
        assert_eq!(read_label(&label), None);
        fs::write(&label, "/home/me/with space/dev.yaml\n").unwrap();
        assert_eq!(
            read_label(&label),
            Some("/home/me/with space/dev.yaml".into())
        );
        fs::write(&label, "nonsense\n").unwrap();
        assert_eq!(read_label(&label), None);
    }
}
