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
            COMPONENT => file.bytes = component(inputs, &file.bytes)?,
            VALUES => file.bytes = values(inputs, &file.bytes)?,
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

/// The component with the images of this environment, and with its port.
fn component(inputs: &Inputs, text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut component = single(COMPONENT, text)?;
    let images = component
        .as_object_mut()
        .context("bundles/environment/kustomization.yaml isn't a map")?;
    let list = images.entry("images").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    let entries = inputs.image_names.iter().map(|(upstream, here)| {
        // kustomize compares with the name as it stands in a manifest, without its tag.
        json!({
            "name": format!("{}/{}", upstream.registry(), upstream.repository()),
            "newName": format!("{}/{}", here.registry(), here.repository()),
            "newTag": here.tag().unwrap_or_default(),
        })
    });
    if let Some(list) = list.as_array_mut() {
        list.extend(entries);
    }
    let port = https_port(inputs);
    if port != 443 {
        let patches = images.entry("patches").or_insert_with(|| json!([]));
        if let Some(list) = patches.as_array_mut() {
            list.extend(at_another_port(port));
        }
    }
    Ok(yaml::to_string(&component).into_bytes())
}

/// The port at which people reach the gateway by HTTPS.
pub fn https_port(inputs: &Inputs) -> u16 {
    inputs.cluster_config.published(443).unwrap_or(443)
}

/// What stands behind `https://<name>.` in an address that people open: the domain, and the port unless it is 443.
pub fn authority(inputs: &Inputs) -> String {
    let domain = &inputs.environment.domain;
    match https_port(inputs) {
        443 => domain.to_string(),
        port => format!("{domain}:{port}"),
    }
}

/// Where people reach the gateway at another port, so do the pods: an issuer's address is one string everywhere. And
/// whoever comes by HTTP is sent to that port.
fn at_another_port(port: u16) -> [Value; 3] {
    let patch = |kind: &str, operations: Value| {
        json!({
            "target": {"kind": kind, "annotationSelector": "devenv/domain=environment"},
            "patch": operations.to_string(),
        })
    };
    let mut service = patch(
        "Service",
        json!([{"op": "add", "path": "/spec/ports/-", "value": {"name": "https-outside", "port": port, "targetPort": 443}}]),
    );
    service["target"] =
        json!({"kind": "Service", "name": "istio-ingressgateway", "namespace": "istio-ingress"});
    [
        service,
        patch(
            "Gateway",
            json!([{"op": "remove", "path": "/spec/servers/0/tls"}]),
        ),
        patch(
            "VirtualService",
            json!([{"op": "add", "path": "/spec/http/0", "value": {
                "match": [{"port": 80}], "redirect": {"scheme": "https", "port": port, "redirectCode": 301},
            }}]),
        ),
    ]
}

/// The values, for `replacements`.
fn values(inputs: &Inputs, text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut values = single(VALUES, text)?;
    values["data"]["domain"] = json!(inputs.environment.domain.to_string());
    values["data"]["authority"] = json!(authority(inputs));
    Ok(yaml::to_string(&values).into_bytes())
}

fn single(path: &str, text: &[u8]) -> anyhow::Result<Value> {
    let text = std::str::from_utf8(text).with_context(|| format!("{path} isn't UTF-8"))?;
    yaml::documents(path, text)?
        .into_iter()
        .next()
        .with_context(|| format!("{path} is empty"))
}
