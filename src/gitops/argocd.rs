//! Argo CD, as devenv installs it: upstream's own manifest of one version, less what a developer's cluster has no use
//! for, and without its fixed waits. [`manifests`] is pure; [`install_definitions`] and [`install`] apply what it returns.
//!
//! What is changed, and why:
//! - dex and the notifications controller are left out: nobody logs in through them here.
//! - Readiness probes start at once and ask every second (upstream's server waits up to 30 s between two).
//! - Images that are preloaded are never pulled (`imagePullPolicy: IfNotPresent`).
//! - The two generated secrets are written by devenv. `argocd-secret` without `server.secretkey` makes the first look at
//!   an ApplicationSet fail, and a failed one sleeps for three minutes; Redis needs no init container then.
//! - The repo-server's init container, which copies the binary for plugin sidecars that aren't there, goes.

use std::collections::BTreeMap;

use anyhow::Context as _;
use kube::Client;
use serde_json::{Value, json};

use super::provide::random_text;
use crate::bundle::Project;
use crate::kube::{FIELD_MANAGER, apply, create_if_absent, text};

/// Where Argo CD runs.
pub const NAMESPACE: &str = "argocd";
/// The version devenv installs.
pub const VERSION: &str = "3.2.11";
/// Upstream's manifest of that version.
pub const MANIFEST: &str =
    "https://raw.githubusercontent.com/argoproj/argo-cd/v3.2.11/manifests/install.yaml";
/// What that manifest's bytes must hash to.
pub const MANIFEST_SHA256: &str =
    "6cdd269e07f27b50f9e481cc7e685443b26b79372001ff7868ff1543610417bd";
/// The image of all its components and of the git source.
pub const IMAGE: &str = "quay.io/argoproj/argocd:v3.2.11";
/// The image of its cache.
pub const REDIS_IMAGE: &str = "public.ecr.aws/docker/library/redis:8.2.2-alpine";
/// Both.
pub const IMAGES: [&str; 2] = [IMAGE, REDIS_IMAGE];
/// The definitions it brings.
pub const DEFINITIONS: [&str; 3] = [
    "applications.argoproj.io",
    "applicationsets.argoproj.io",
    "appprojects.argoproj.io",
];
/// Its ClusterRoles, and ClusterRoleBindings of the same names.
pub const CLUSTER_ROLES: [&str; 3] = [
    "argocd-application-controller",
    "argocd-applicationset-controller",
    "argocd-server",
];
/// The StatefulSet that syncs Applications, and deletes what they made.
pub const CONTROLLER: &str = "argocd-application-controller";

/// The parts that are left out, by their label `app.kubernetes.io/component`.
const LEFT_OUT: [&str; 2] = ["dex-server", "notifications-controller"];

/// The workloads that must be ready, as (kind, name).
pub const WORKLOADS: [(&str, &str); 6] = [
    ("Deployment", super::source::NAME),
    ("Deployment", "argocd-redis"),
    ("Deployment", "argocd-repo-server"),
    ("Deployment", "argocd-applicationset-controller"),
    ("StatefulSet", CONTROLLER),
    ("Deployment", "argocd-server"),
];

/// Everything to apply, from upstream's documents: the definitions first, then the rest.
///
/// `image_names` maps an upstream image to the one used here.
pub fn manifests(
    upstream: Vec<Value>,
    image_names: &BTreeMap<String, String>,
) -> (Vec<Value>, Vec<Value>) {
    let mut definitions = Vec::new();
    let mut rest = Vec::new();
    for mut object in upstream {
        if left_out(&object) {
            continue;
        }
        if text(&object, "/kind") == "CustomResourceDefinition" {
            definitions.push(object);
            continue;
        }
        if !text(&object, "/kind").starts_with("Cluster") {
            object["metadata"]["namespace"] = json!(NAMESPACE);
        }
        match text(&object, "/metadata/name") {
            "argocd-cm" => settings(&mut object, &CONFIGURATION),
            "argocd-cmd-params-cm" => settings(&mut object, &PARAMETERS),
            _ => {}
        }
        if object.pointer("/spec/template/spec/containers").is_some() {
            tune(&mut object, image_names);
        }
        rest.push(object);
    }
    rest.extend(Project::ALL.map(project));
    (definitions, rest)
}

/// `argocd-cm`.
const CONFIGURATION: [(&str, &str); 1] = [
    // Charts are rendered by kustomize from the pushed tree, which holds them.
    ("kustomize.buildOptions", "--enable-helm"),
];

/// `argocd-cmd-params-cm`.
const PARAMETERS: [(&str, &str); 5] = [
    // TLS ends at the gateway.
    ("server.insecure", "true"),
    // Upstream sleeps 2 s between the waves inside one Application.
    ("controller.sync.wave.delay.seconds", "0"),
    // Healing itself waits longer each time, up to five minutes.
    ("controller.self.heal.timeout.seconds", "2"),
    ("controller.self.heal.backoff.cap.seconds", "10"),
    // `bundles/*/*/bundle.yaml` means just that depth.
    (
        "applicationsetcontroller.enable.new.git.file.globbing",
        "true",
    ),
];

fn left_out(object: &Value) -> bool {
    let component = object
        .pointer("/metadata/labels/app.kubernetes.io~1component")
        .and_then(Value::as_str);
    let name = text(object, "/metadata/name");
    component.is_some_and(|component| LEFT_OUT.contains(&component))
        || LEFT_OUT
            .iter()
            .any(|left_out| name.starts_with(&format!("argocd-{left_out}")))
        || name.starts_with("argocd-notifications")
        || (text(object, "/kind") == "Secret" && name == "argocd-secret")
}

fn settings(object: &mut Value, settings: &[(&str, &str)]) {
    for (key, value) in settings {
        object["data"][*key] = json!(value);
    }
}

/// A workload without fixed waits, on the images used here.
fn tune(workload: &mut Value, image_names: &BTreeMap<String, String>) {
    let component = text(workload, "/metadata/name").to_owned();
    let pod = &mut workload["spec"]["template"]["spec"];
    if let Some(pod) = pod.as_object_mut() {
        // Redis' makes a secret that devenv writes; the repo-server's copies the program for plugins.
        pod.remove("initContainers");
    }
    for container in pod["containers"].as_array_mut().into_iter().flatten() {
        let image = text(container, "/image");
        let image = image_names
            .get(image)
            .map_or(image, String::as_str)
            .to_owned();
        container["image"] = json!(image);
        container["imagePullPolicy"] = json!("IfNotPresent");
        if let Some(probe) = container.get_mut("readinessProbe") {
            probe["initialDelaySeconds"] = json!(0);
            probe["periodSeconds"] = json!(1);
            probe["failureThreshold"] = json!(3);
        }
        if component == "argocd-repo-server"
            && let Some(environment) = container["env"].as_array_mut()
        {
            // After three failed renderings it would rest for an hour.
            environment
                .push(json!({"name": "ARGOCD_PAUSE_GEN_AFTER_FAILED_ATTEMPTS", "value": "0"}));
            // No signed commits here, and making a key ring costs a second of its start.
            environment.push(json!({"name": "ARGOCD_GPG_ENABLED", "value": "false"}));
        }
    }
}

/// An AppProject: what its bundles may touch.
fn project(project: Project) -> Value {
    let cluster_kinds = match project {
        Project::Infrastructure => json!([{"group": "*", "kind": "*"}]),
        Project::Iam | Project::Observability => json!([
            {"group": "rbac.authorization.k8s.io", "kind": "ClusterRole"},
            {"group": "rbac.authorization.k8s.io", "kind": "ClusterRoleBinding"},
        ]),
    };
    json!({
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": {"name": project.to_string(), "namespace": NAMESPACE},
        "spec": {
            "sourceRepos": [super::source::ADDRESS],
            "destinations": [{"server": "https://kubernetes.default.svc", "namespace": project.namespaces()}],
            "clusterResourceWhitelist": cluster_kinds,
        },
    })
}

/// The secrets that Argo CD would generate itself, later than it needs them.
fn secrets() -> anyhow::Result<[Value; 2]> {
    let secret = |name: &str, key: &str, value: String| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/part-of": "argocd", "app.kubernetes.io/name": name},
            },
            "stringData": {key: value},
        })
    };
    Ok([
        secret("argocd-secret", "server.secretkey", random_text()?),
        secret("argocd-redis", "auth", random_text()?),
    ])
}

/// Its namespace.
pub fn namespace() -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
}

/// The namespace, the generated secrets and the definitions: what can be there before any image is; says what changed.
pub async fn install_definitions(
    client: &Client,
    namespace: Value,
    definitions: &[Value],
) -> anyhow::Result<Vec<String>> {
    let mut changed = apply(client, FIELD_MANAGER, &[namespace]).await?;
    for secret in secrets()? {
        if create_if_absent(client, &secret).await? {
            changed.push(crate::kube::label(&secret));
        }
    }
    changed.extend(
        apply(client, FIELD_MANAGER, definitions)
            .await
            .context("apply Argo CD's definitions")?,
    );
    Ok(changed)
}

/// Everything else of Argo CD and the git source; says what changed.
pub async fn install(client: &Client, rest: &[Value]) -> anyhow::Result<Vec<String>> {
    apply(client, FIELD_MANAGER, rest)
        .await
        .context("apply Argo CD")
}

/// A workload's state in words, or `None` where all its pods are ready and of the newest template.
pub fn workload_lacks(workload: &Value) -> Option<String> {
    let name = text(workload, "/metadata/name");
    let number = |pointer: &str| {
        workload
            .pointer(pointer)
            .and_then(Value::as_i64)
            .unwrap_or_default()
    };
    let wanted = workload
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(1);
    if number("/status/observedGeneration") < number("/metadata/generation") {
        return Some(format!("{name}: its controller hasn't seen it yet"));
    }
    let updated = number("/status/updatedReplicas");
    let ready = number("/status/readyReplicas");
    (ready < wanted || updated < wanted).then(|| format!("{name}: {ready} of {wanted} pods ready"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(name: &str, component: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/component": component}},
            "spec": {"template": {"spec": {
                "initContainers": [{"name": "copyutil"}],
                "containers": [{
                    "name": "c", "image": IMAGE, "imagePullPolicy": "Always", "env": [],
                    "readinessProbe": {"initialDelaySeconds": 5, "periodSeconds": 30},
                }],
            }}},
        })
    }

    #[test]
    fn dex_and_notifications_are_left_out_and_waits_are_removed() {
        let names = BTreeMap::from([(
            IMAGE.to_owned(),
            "packages.devenv.test/argocd:3.2.11".to_owned(),
        )]);
        let upstream = vec![
            deployment("argocd-dex-server", "dex-server"),
            deployment(
                "argocd-notifications-controller",
                "notifications-controller",
            ),
            deployment("argocd-repo-server", "repo-server"),
        ];
        let (definitions, rest) = manifests(upstream, &names);
        assert!(definitions.is_empty());
        assert_eq!(rest.len(), 1 + Project::ALL.len());
        insta::assert_snapshot!(serde_json::to_string(&rest[0]["spec"]).unwrap(), @r#"{"template":{"spec":{"containers":[{"env":[{"name":"ARGOCD_PAUSE_GEN_AFTER_FAILED_ATTEMPTS","value":"0"},{"name":"ARGOCD_GPG_ENABLED","value":"false"}],"image":"packages.devenv.test/argocd:3.2.11","imagePullPolicy":"IfNotPresent","name":"c","readinessProbe":{"failureThreshold":3,"initialDelaySeconds":0,"periodSeconds":1}}]}}}"#);
    }

    #[test]
    fn a_workload_is_ready_only_when_the_newest_template_is() {
        let workload = |observed: i64, updated: i64, ready: i64| {
            json!({
                "metadata": {"name": "w", "generation": 2}, "spec": {"replicas": 1},
                "status": {"observedGeneration": observed, "updatedReplicas": updated, "readyReplicas": ready},
            })
        };
        assert_eq!(workload_lacks(&workload(2, 1, 1)), None);
        assert_eq!(
            workload_lacks(&workload(2, 0, 1)).as_deref(),
            Some("w: 1 of 1 pods ready")
        );
        assert_eq!(
            workload_lacks(&workload(2, 1, 0)).as_deref(),
            Some("w: 0 of 1 pods ready")
        );
        assert_eq!(
            workload_lacks(&workload(1, 1, 1)).as_deref(),
            Some("w: its controller hasn't seen it yet")
        );
    }
}
