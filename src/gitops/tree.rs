//! The tree that Argo CD sees, which is complete: `bundles/` of the working tree, with what the bundles take from upstream
//! in its places, the environment's own values written into the component `bundles/environment`, and an overlay of the
//! environment's name in every bundle.

use anyhow::Context as _;
use serde_json::{Value, json};

use super::git::{Mode, TreeFile, read_folder};
use super::provide;
use super::upstream;
use crate::environment::Environment;
use crate::inputs::Inputs;
use crate::store::Store;
use crate::yaml;

/// The folder of the environment's component, and its files.
const COMPONENT: &str = "bundles/environment/kustomization.yaml";
const VALUES: &str = "bundles/environment/environment.yaml";

/// Everything to commit.
pub fn tree(inputs: &Inputs, store: &Store) -> anyhow::Result<Vec<TreeFile>> {
    let mut files = read_folder(&inputs.environment.root.join("bundles"), "bundles")?;
    for file in &mut files {
        match file.path.as_str() {
            COMPONENT => file.bytes = component(&inputs.environment, &file.bytes)?,
            VALUES => file.bytes = values(&inputs.environment, &file.bytes)?,
            _ => {}
        }
    }
    files.extend(pass_through_overlays(inputs));
    let placed = upstream::files(store, inputs)?;
    files.retain(|file| !placed.iter().any(|placed| placed.path == file.path));
    files.extend(placed);
    files.sort();
    Ok(files)
}

/// The definitions of custom resources that the bundles take from upstream.
pub fn definitions(inputs: &Inputs, store: &Store) -> anyhow::Result<Vec<Value>> {
    Ok(provide::definitions(&upstream::files(store, inputs)?))
}

/// The name of the overlay that the ApplicationSet syncs in every bundle.
pub fn overlay(environment: &Environment) -> &str {
    environment.overlays.first().map_or("dev", String::as_str)
}

/// A bundle that lacks the environment's first choice of overlay gets one that passes on to the next it has.
fn pass_through_overlays(inputs: &Inputs) -> Vec<TreeFile> {
    let first = overlay(&inputs.environment);
    let wanted = format!("overlays/{first}");
    inputs
        .bundles
        .iter()
        .filter_map(|bundle| {
            let used = bundle.overlay();
            let up = if used == "base" { "../../base".to_owned() } else { format!("../{}", used.trim_start_matches("overlays/")) };
            (used != wanted).then(|| TreeFile {
                path: format!("bundles/{}/{}/{wanted}/kustomization.yaml", bundle.project, bundle.name),
                mode: Mode::Plain,
                bytes: format!(
                    "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {up}\n"
                )
                .into_bytes(),
            })
        })
        .collect()
}

/// The component with the images of this environment.
fn component(environment: &Environment, text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut component = single(COMPONENT, text)?;
    let images = component
        .as_object_mut()
        .context("bundles/environment/kustomization.yaml isn't a map")?;
    let list = images.entry("images").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let entries = environment.image_names.iter().map(|(upstream, here)| {
        // kustomize compares with the name as it stands in a manifest, without its tag.
        let name = upstream.to_string();
        let name = name
            .rsplit_once(':')
            .map_or(name.as_str(), |(name, _)| name)
            .to_owned();
        json!({
            "name": name,
            "newName": format!("{}/{}", here.registry(), here.repository()),
            "newTag": here.tag().unwrap_or_default(),
        })
    });
    if let Some(list) = list.as_array_mut() {
        list.extend(entries);
    }
    Ok(yaml::to_string(&component).into_bytes())
}

/// The values, for `replacements`.
fn values(environment: &Environment, text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut values = single(VALUES, text)?;
    values["data"]["domain"] = json!(environment.domain.to_string());
    Ok(yaml::to_string(&values).into_bytes())
}

fn single(path: &str, text: &[u8]) -> anyhow::Result<Value> {
    let text = std::str::from_utf8(text).with_context(|| format!("{path} isn't UTF-8"))?;
    yaml::documents(path, text)?
        .into_iter()
        .next()
        .with_context(|| format!("{path} is empty"))
}
