//! The names that the bundles want: the hosts of their `VirtualService`s, found by reading the bundles' files as kustomize would
//! come to them. Pure.
//!
//! Only `resources` and `components` are followed. What a patch or a chart adds isn't seen, nor are files that are fetched: a
//! `VirtualService` whose name people are to open is a document of its own in every bundle.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use serde_json::Value;

use crate::environment::Domain;
use crate::gitops::git::TreeFile;
use crate::kube::text;
use crate::yaml;

/// What kustomize calls its files.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// The hosts below the domain, of all `VirtualService`s that come from these folders.
pub fn names(
    files: &[TreeFile],
    folders: &[String],
    domain: &Domain,
) -> anyhow::Result<BTreeSet<String>> {
    let files: BTreeMap<&str, &[u8]> = files
        .iter()
        .map(|file| (file.path.as_str(), file.bytes.as_slice()))
        .collect();
    let mut names = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut paths = folders.to_vec();
    while let Some(path) = paths.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let documents = |path: &str, bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).with_context(|| format!("{path} isn't UTF-8"))?;
            yaml::documents(path, text)
        };
        if let Some(bytes) = files.get(path.as_str()) {
            for document in documents(&path, bytes)? {
                names.extend(hosts(&document, domain));
            }
        } else if let Some((file, bytes)) = KUSTOMIZATIONS
            .iter()
            .map(|name| format!("{path}/{name}"))
            .find_map(|file| files.get(file.as_str()).map(|bytes| (file.clone(), bytes)))
        {
            for kustomization in documents(&file, bytes)? {
                paths.extend(entries(&kustomization).filter_map(|entry| joined(&path, entry)));
            }
        }
        // What is neither is fetched when the tree is made, or an address.
    }
    let end = format!(".{domain}");
    names.retain(|name| name.ends_with(&end) && !name.starts_with('*'));
    Ok(names)
}

fn entries(kustomization: &Value) -> impl Iterator<Item = &str> {
    ["resources", "components"]
        .into_iter()
        .filter_map(|key| kustomization.get(key)?.as_array())
        .flatten()
        .filter_map(Value::as_str)
}

/// The hosts of a `VirtualService`, as they are in the environment: with the annotation, the first takes its domain, as
/// `bundles/environment/domain.yaml` has it.
fn hosts(document: &Value, domain: &Domain) -> Vec<String> {
    if text(document, "/kind") != "VirtualService" {
        return Vec::new();
    }
    let takes_domain = text(document, "/metadata/annotations/devenv~1domain") == "environment";
    let hosts = document.pointer("/spec/hosts").and_then(Value::as_array);
    hosts
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .enumerate()
        .map(|(index, host)| match host.split_once('.') {
            Some((name, _)) if index == 0 && takes_domain => format!("{name}.{domain}"),
            _ => host.to_owned(),
        })
        .collect()
}

/// The path of an entry of a kustomization in that folder; none if it leads out of the tree.
fn joined(folder: &str, entry: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in entry.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!entry.starts_with('/')).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitops::git::Mode;

    fn check(files: &[(&str, &str)], folders: &[&str], domain: &str) -> String {
        let files: Vec<TreeFile> = files
            .iter()
            .map(|(path, text)| TreeFile {
                path: (*path).to_owned(),
                mode: Mode::Plain,
                bytes: text.as_bytes().to_vec(),
            })
            .collect();
        let folders: Vec<String> = folders.iter().map(|folder| (*folder).to_owned()).collect();
        match names(&files, &folders, &domain.parse().unwrap()) {
            Ok(names) => names.into_iter().collect::<Vec<_>>().join(" "),
            Err(error) => format!("{error:#}"),
        }
    }

    const ANNOTATED: &str = "kind: VirtualService\nmetadata:\n  annotations: {devenv/domain: environment}\nspec:\n  hosts: [keycloak.local, keycloak.iam-system.svc, also.dev.test]\n";

    #[test]
    fn hosts_take_the_domain_of_the_environment() {
        let files = [
            (
                "b/overlays/dev/kustomization.yaml",
                "resources: [../../base, ./own.yaml, https://example.org/x.yaml]\ncomponents: [../../../environment]\n",
            ),
            (
                "b/overlays/dev/own.yaml",
                "kind: ConfigMap\n---\nkind: VirtualService\nspec: {hosts: ['*.dev.test', logs.dev.test, logs.local]}\n",
            ),
            (
                "b/overlays/prod/kustomization.yaml",
                "resources: [prod.yaml]\n",
            ),
            (
                "b/overlays/prod/prod.yaml",
                "kind: VirtualService\nspec: {hosts: [prod.dev.test]}\n",
            ),
            (
                "b/base/kustomization.yml",
                "resources: [virtual-service.yaml, operator.yaml]\n",
            ),
            ("b/base/virtual-service.yaml", ANNOTATED),
            (
                "environment/kustomization.yaml",
                "resources: [environment.yaml, ../b/base]\n",
            ),
            ("environment/environment.yaml", "kind: ConfigMap\n"),
        ];
        assert_eq!(
            check(&files, &["b/overlays/dev"], "dev.test"),
            "also.dev.test keycloak.dev.test logs.dev.test"
        );
        assert_eq!(
            check(&files, &["b/overlays/dev"], "local"),
            "keycloak.local logs.local"
        );
        assert_eq!(check(&files, &["b/overlays/none"], "local"), "");
    }

    #[test]
    fn circles_and_ways_out_of_the_tree_end() {
        let files = [
            (
                "a/kustomization.yaml",
                "resources: [../b, ../../../etc, /etc]\n",
            ),
            ("b/Kustomization", "resources: [../a]\n"),
        ];
        assert_eq!(check(&files, &["a"], "local"), "");
    }

    #[test]
    fn a_file_that_is_no_yaml_is_named() {
        let files = [
            ("a/kustomization.yaml", "resources: [b.yaml]\n"),
            ("a/b.yaml", "a: [\n"),
        ];
        let told = check(&files, &["a"], "local");
        assert!(
            told.starts_with("document 1 of a/b.yaml isn't valid YAML"),
            "{told}"
        );
    }
}
