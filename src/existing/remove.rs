//! Takes the platform out of a cluster that is there already, and nothing else: first the Applications, those that others need
//! last, each waited for, so that an operator is still there while what it looks after goes; then Argo CD, the definitions
//! and the namespaces that carry this environment's mark.
//!
//! The namespace argocd goes last, so a `down` that is killed half-way is finished by the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, PropagationPolicy};
use serde_json::{Value, json};

use super::facts::MARK;
use super::reach;
use crate::bundle::Bundle;
use crate::context::Context;
use crate::environment::Environment;
use crate::error::Failure;
use crate::event::Step;
use crate::gitops::argocd::{self, NAMESPACE};
use crate::gitops::waves::{self, App};
use crate::inputs;
use crate::kube::{get, label, list, list_if_known, merge, resource, text};
use crate::wait::{Look, Wait, wait_for};

const EVERY: Duration = Duration::from_millis(500);
const ARGO: &str = "argoproj.io/v1alpha1";
const DEFINITIONS: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// What istiod writes into every namespace of the cluster, and nobody takes out again.
const MESH_ROOT: (&str, &str) = ("istio-ca-root-cert", "istio.io/config=true");

/// What of this environment is in the cluster.
struct Ours {
    namespaces: Vec<Value>,
    /// Roles, bindings and definitions.
    cluster_wide: Vec<Value>,
}

impl Ours {
    async fn observe(client: &Client, id: &str) -> anyhow::Result<Self> {
        let mark = format!("{MARK}={id}");
        let (namespaces, roles, bindings, definitions) = tokio::try_join!(
            list(client, "v1", "Namespace", None, &mark),
            list(client, RBAC, "ClusterRole", None, &mark),
            list(client, RBAC, "ClusterRoleBinding", None, &mark),
            list(client, DEFINITIONS.0, DEFINITIONS.1, None, &mark),
        )?;
        Ok(Self {
            namespaces,
            cluster_wide: [bindings, roles, definitions].concat(),
        })
    }

    fn argocd(&self) -> Option<&Value> {
        self.namespaces
            .iter()
            .find(|namespace| text(namespace, "/metadata/name") == NAMESPACE)
    }
}

/// Removes; says what, or nothing where nothing was there.
pub async fn remove(
    context: &Context,
    environment: &Environment,
    step: &Step,
) -> anyhow::Result<Option<String>> {
    let client = reach::client(context, environment).await?;
    let ours = Ours::observe(&client, &environment.id).await?;
    if ours.namespaces.is_empty() && ours.cluster_wide.is_empty() {
        return Ok(None);
    }
    let mut left = Left::default();
    let mut count = 0;
    if let Some(argocd) = ours.argocd() {
        let applications = list_if_known(&client, ARGO, "Application", Some(NAMESPACE), "").await?;
        count = applications.len();
        left = Left::of(&client, argocd, &applications).await?;
        remove_applications(context, &client, &applications, step).await?;
    }

    let volumes = volumes_of(&client, &ours.namespaces).await?;
    let definitions = left.definitions.iter().map(|name| {
        json!({"apiVersion": DEFINITIONS.0, "kind": DEFINITIONS.1, "metadata": {"name": name}})
    });
    let mut rest = ours.cluster_wide.clone();
    rest.extend(
        definitions.filter(|one| !ours.cluster_wide.iter().any(|it| label(it) == label(one))),
    );
    rest.extend(left.config_maps);
    remove_all(context, &client, &rest, step).await?;
    let (argocd, others): (Vec<Value>, Vec<Value>) = ours
        .namespaces
        .iter()
        .cloned()
        .partition(|namespace| text(namespace, "/metadata/name") == NAMESPACE);
    remove_all(context, &client, &others, step).await?;
    remove_all(context, &client, &argocd, step).await?;
    wait_for_volumes(context, &client, &environment.cluster, &volumes, step).await?;
    Ok(Some(format!(
        "{count} applications, {} namespaces, and {} objects that belong to none",
        ours.namespaces.len(),
        rest.len()
    )))
}

/// What Applications leave behind: Argo CD never deletes a definition with its Application.
#[derive(Default)]
struct Left {
    definitions: BTreeSet<String>,
    config_maps: Vec<Value>,
}

impl Left {
    /// Definitions that were there before the namespace argocd was stay.
    async fn of(client: &Client, argocd: &Value, applications: &[Value]) -> anyhow::Result<Self> {
        let made = |object: &Value| text(object, "/metadata/creationTimestamp").to_owned();
        let began = made(argocd);
        let claimed = definitions_of(applications);
        let all = list(client, DEFINITIONS.0, DEFINITIONS.1, None, "").await?;
        let definitions = all
            .iter()
            // Times of one form, which sort as text.
            .filter(|definition| made(definition) >= began)
            .map(|definition| text(definition, "/metadata/name").to_owned())
            .filter(|name| claimed.contains(name))
            .collect();
        let has_mesh = applications
            .iter()
            .any(|application| text(application, "/metadata/name") == "istiod");
        let mut config_maps = Vec::new();
        if has_mesh {
            let found = list(client, "v1", "ConfigMap", None, MESH_ROOT.1).await?;
            config_maps.extend(found.into_iter().filter(|config_map| {
                text(config_map, "/metadata/name") == MESH_ROOT.0 && made(config_map) >= began
            }));
        }
        Ok(Self {
            definitions,
            config_maps,
        })
    }
}

/// The definitions among the resources of Applications.
fn definitions_of(applications: &[Value]) -> BTreeSet<String> {
    applications
        .iter()
        .filter_map(|application| application.pointer("/status/resources")?.as_array())
        .flatten()
        .filter(|resource| text(resource, "/kind") == DEFINITIONS.1)
        .map(|resource| text(resource, "/name").to_owned())
        .collect()
}

async fn remove_applications(
    context: &Context,
    client: &Client,
    applications: &[Value],
    step: &Step,
) -> anyhow::Result<()> {
    orphan(context, client, step).await?;
    if !controller_runs(client).await? {
        let with_resources: Vec<&str> = applications
            .iter()
            .filter(|application| {
                let resources = application.pointer("/status/resources");
                resources
                    .and_then(Value::as_array)
                    .is_some_and(|resources| !resources.is_empty())
            })
            .map(|application| text(application, "/metadata/name"))
            .collect();
        if !with_resources.is_empty() {
            return Err(Failure::Other {
                message: format!(
                    "Argo CD's controller doesn't run, and only it removes what these Applications made: {}",
                    with_resources.join(", ")
                ),
                hint: format!(
                    "kubectl -n {NAMESPACE} get pods says why; `devenv up` mends it, then `devenv down`"
                ),
            }
            .into());
        }
        // They have made nothing, so there is nothing to wait for.
        for application in applications {
            let unhindered = json!({"metadata": {"finalizers": null}});
            merge(client, application, &unhindered).await?;
        }
    }
    // A mistake in a bundle is no reason to keep a cluster's platform: without the files, the order is that of their making.
    let layers = match inputs::load(&context.selector, &context.directory) {
        Ok(inputs) => layers(&names(applications), &needs(&inputs.bundles)),
        Err(_) => newest_first(applications),
    };
    for layer in layers {
        let gone = layer
            .iter()
            .map(|name| remove_application(context, client, name, step));
        try_join_all(gone).await?;
    }
    Ok(())
}

fn names(applications: &[Value]) -> BTreeSet<String> {
    let names = applications
        .iter()
        .map(|application| text(application, "/metadata/name"));
    names.map(str::to_owned).collect()
}

/// What each bundle needs.
fn needs(bundles: &[Bundle]) -> BTreeMap<String, BTreeSet<String>> {
    bundles
        .iter()
        .map(|bundle| {
            let needs = bundle.needs.iter().map(|need| need.bundle.clone());
            (bundle.name.clone(), needs.collect())
        })
        .collect()
}

/// Who goes with whom, in order: nobody goes before all are gone that need it.
fn layers(
    present: &BTreeSet<String>,
    needs: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<Vec<String>> {
    let mut left = present.clone();
    let mut layers = Vec::new();
    while !left.is_empty() {
        let is_needed = |name: &String| {
            left.iter().any(|other| {
                other != name && needs.get(other).is_some_and(|needs| needs.contains(name))
            })
        };
        let mut layer: Vec<String> = left
            .iter()
            .filter(|name| !is_needed(name))
            .cloned()
            .collect();
        if layer.is_empty() {
            layer = left.iter().cloned().collect(); // needs that make a circle are refused, so this isn't seen
        }
        left.retain(|name| !layer.contains(name));
        layers.push(layer);
    }
    layers
}

/// One after the other, the newest first: each was let in when what it needs was ready.
fn newest_first(applications: &[Value]) -> Vec<Vec<String>> {
    let mut by_time: Vec<(&str, &str)> = applications
        .iter()
        .map(|application| {
            (
                text(application, "/metadata/creationTimestamp"),
                text(application, "/metadata/name"),
            )
        })
        .collect();
    by_time.sort_unstable();
    let newest = by_time.into_iter().rev();
    newest.map(|(_, name)| vec![name.to_owned()]).collect()
}

/// Takes the ApplicationSet away without its Applications, which it would else delete all at once, or make anew.
async fn orphan(context: &Context, client: &Client, step: &Step) -> anyhow::Result<()> {
    let set = json!({"apiVersion": ARGO, "kind": "ApplicationSet", "metadata": {"name": waves::NAME, "namespace": NAMESPACE}});
    let parameters = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    delete(client, &set, &parameters).await?;
    wait_until_gone(context, client, &set, step).await
}

async fn controller_runs(client: &Client) -> anyhow::Result<bool> {
    let controller = get(
        client,
        "apps/v1",
        "StatefulSet",
        NAMESPACE,
        argocd::CONTROLLER,
    )
    .await?;
    let ready = controller
        .as_ref()
        .and_then(|controller| controller.pointer("/status/readyReplicas"))
        .and_then(Value::as_i64);
    Ok(ready.unwrap_or_default() > 0)
}

async fn remove_application(
    context: &Context,
    client: &Client,
    name: &str,
    step: &Step,
) -> anyhow::Result<()> {
    let step = step.child(name);
    let application = json!({"apiVersion": ARGO, "kind": "Application", "metadata": {"name": name, "namespace": NAMESPACE}});
    delete(client, &application, &DeleteParams::default()).await?;
    let wait = Wait {
        what: format!("the application {name} and all that it made to be gone"),
        within: context.timeout,
        every: EVERY,
        hint: format!(
            "kubectl -n {NAMESPACE} get application {name} -o yaml says what is left; devenv down goes on"
        ),
    };
    wait_for(&wait, &step, &context.stop, || async {
        Ok(
            match get(client, ARGO, "Application", NAMESPACE, name).await? {
                None => Look::Ready(()),
                Some(application) => Look::NotYet(what_is_left(&application)),
            },
        )
    })
    .await?;
    step.done("removed");
    Ok(())
}

/// What of an Application is still to go.
fn what_is_left(application: &Value) -> String {
    let app = App::of(application);
    if !app.message.is_empty() {
        return waves::one_line(&app.message);
    }
    match app.owns.as_slice() {
        [] => "Argo CD removes it".to_owned(),
        [one] => format!("Argo CD removes {one}"),
        [first, rest @ ..] => format!("Argo CD removes {first} and {} more", rest.len()),
    }
}

async fn remove_all(
    context: &Context,
    client: &Client,
    objects: &[Value],
    step: &Step,
) -> anyhow::Result<()> {
    let all = objects.iter().map(|object| async move {
        delete(client, object, &DeleteParams::background()).await?;
        wait_until_gone(context, client, object, step).await
    });
    try_join_all(all).await.map(drop)
}

/// Asks for its removal; one that isn't there, or whose kind isn't known, needs none.
async fn delete(client: &Client, object: &Value, parameters: &DeleteParams) -> anyhow::Result<()> {
    let resource = resource(text(object, "/apiVersion"), text(object, "/kind"));
    let api: Api<DynamicObject> = match text(object, "/metadata/namespace") {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    };
    match api.delete(text(object, "/metadata/name"), parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        // A namespace that is going already.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", label(object))),
    }
}

async fn wait_until_gone(
    context: &Context,
    client: &Client,
    object: &Value,
    step: &Step,
) -> anyhow::Result<()> {
    let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
    let namespace = text(object, "/metadata/namespace");
    let place = match namespace {
        "" => String::new(),
        namespace => format!(" -n {namespace}"),
    };
    let wait = Wait {
        what: format!("{} to be gone", label(object)),
        within: context.timeout,
        every: EVERY,
        hint: format!(
            "kubectl{place} get {} {name} -o yaml says what holds it; devenv down goes on",
            kind.to_lowercase()
        ),
    };
    wait_for(&wait, step, &context.stop, || async {
        let live = get(client, text(object, "/apiVersion"), kind, namespace, name).await?;
        Ok(match live {
            None => Look::Ready(()),
            Some(live) => Look::NotYet(format!("{}: {}", label(object), what_holds(&live))),
        })
    })
    .await
}

/// Why an object that is to go is still there, as far as it says so.
fn what_holds(live: &Value) -> String {
    let conditions = live.pointer("/status/conditions").and_then(Value::as_array);
    let told: Vec<String> = conditions
        .into_iter()
        .flatten()
        .filter(|condition| {
            let kind = text(condition, "/type");
            let tells = kind.contains("Remaining") || kind.contains("Failure");
            tells && text(condition, "/status") == "True"
        })
        .map(|condition| waves::one_line(text(condition, "/message")))
        .collect();
    match told.is_empty() {
        true => "going".to_owned(),
        false => told.join("; "),
    }
}

/// The volumes that are claimed in these namespaces.
async fn volumes_of(client: &Client, namespaces: &[Value]) -> anyhow::Result<Vec<Value>> {
    let names: BTreeSet<&str> = namespaces
        .iter()
        .map(|namespace| text(namespace, "/metadata/name"))
        .collect();
    let mut volumes = list(client, "v1", "PersistentVolume", None, "").await?;
    volumes.retain(|volume| names.contains(text(volume, "/spec/claimRef/namespace")));
    Ok(volumes)
}

/// Volumes go with their claims, a moment later, unless their class keeps them: that is its own decision, and is said.
async fn wait_for_volumes(
    context: &Context,
    client: &Client,
    cluster: &str,
    volumes: &[Value],
    step: &Step,
) -> anyhow::Result<()> {
    let (kept, going): (Vec<&Value>, Vec<&Value>) = volumes
        .iter()
        .partition(|volume| text(volume, "/spec/persistentVolumeReclaimPolicy") == "Retain");
    if !kept.is_empty() {
        let names: Vec<&str> = kept
            .iter()
            .map(|volume| text(volume, "/metadata/name"))
            .collect();
        context.events.notice(format!(
            "the cluster keeps these volumes, as their class says (Retain): {}; to remove them: kubectl --context {cluster} delete pv {}",
            names.join(", "),
            names.join(" ")
        ));
    }
    for volume in going {
        wait_until_gone(context, client, volume, step).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn nobody_goes_before_those_that_need_it() {
        let needs = BTreeMap::from([
            ("names".to_owned(), set(&[])),
            ("mesh".to_owned(), set(&["names"])),
            ("db".to_owned(), set(&["mesh"])),
            ("logs".to_owned(), set(&["names"])),
            ("keycloak".to_owned(), set(&["db", "mesh"])),
        ]);
        let present = set(&["names", "mesh", "db", "logs", "keycloak", "by-hand"]);
        assert_eq!(
            layers(&present, &needs),
            [
                vec!["by-hand", "keycloak", "logs"],
                vec!["db"],
                vec!["mesh"],
                vec!["names"]
            ]
        );
        // One that isn't there needs nothing any more.
        assert_eq!(layers(&set(&["names", "db"]), &needs), [["db", "names"]]);
        assert!(layers(&set(&[]), &needs).is_empty());
    }

    #[test]
    fn without_the_files_the_newest_goes_first() {
        let application =
            |name: &str, made: &str| json!({"metadata": {"name": name, "creationTimestamp": made}});
        let applications = [
            application("names", "2026-01-01T00:00:01Z"),
            application("db", "2026-01-01T00:01:09Z"),
            application("mesh", "2026-01-01T00:00:10Z"),
        ];
        assert_eq!(newest_first(&applications), [["db"], ["mesh"], ["names"]]);
    }

    #[test]
    fn a_namespace_that_stays_says_why() {
        let condition = |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "message": message});
        let live = json!({"status": {"conditions": [
            condition("NamespaceDeletionDiscoveryFailure", "False", "All resources successfully discovered"),
            condition("NamespaceContentRemaining", "True", "Some resources are remaining: pods. has 1 resource instances"),
        ]}});
        insta::assert_snapshot!(what_holds(&live), @"Some resources are remaining: pods. has 1 resource instances");
        assert_eq!(what_holds(&json!({})), "going");
    }
}
