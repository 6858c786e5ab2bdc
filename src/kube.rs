//! The cluster's API server: a client for the environment's own kubeconfig (never the user's current context), and
//! plain manifests applied server-side.
//!
//! Objects are JSON values as they stand in a manifest; [`holds`] tells whether the live object already says all that
//! the wanted one says, so that a second `up` writes nothing.

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Client, Config};
use serde_json::Value;
use std::time::Duration;

/// Who owns the fields devenv applies.
pub const FIELD_MANAGER: &str = "devenv";
/// The field manager of Argo CD's controller. What is applied under its name, Argo CD takes over without a difference.
pub const ARGOCD_FIELD_MANAGER: &str = "argocd-controller";

/// The API server's refusal, in its own words and without the noise around them.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// The HTTP status.
    pub code: u16,
    /// The server's message.
    pub message: String,
}

/// An error of the client's as a person should read it.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => Refused {
            code: status.code,
            message: status.message.clone(),
        }
        .into(),
        other => anyhow::Error::new(other),
    }
}

/// Whether the API server said that there is no such thing.
pub fn is_not_found(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.code == 404)
}

/// How long a definition that was just applied may take until its kind is served.
const DEFINITION_SERVED: Duration = Duration::from_secs(20);

/// How long an API server that answered before may be away: the node starts it again when it dies, or when its etcd does.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Asks again as long as there is nobody to answer. Whatever is asked here may be asked twice.
pub async fn answered<T>(ask: impl AsyncFn() -> kube::Result<T>) -> kube::Result<T> {
    let until = tokio::time::Instant::now() + BACK_WITHIN;
    loop {
        match ask().await {
            Err(error) if is_away(&error) && tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            done => return done,
        }
    }
}

/// Whether it was no answer of the API server's, or one that says that its etcd is away.
fn is_away(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => cannot_answer(status.code, &status.message),
        kube::Error::Service(_) | kube::Error::HyperError(_) => true,
        _ => false,
    }
}

/// Whether a refusal only says that there is no answer now.
fn cannot_answer(code: u16, message: &str) -> bool {
    code == 503 || code >= 500 && message.contains("etcd")
}

/// Whether it failed because no API server answered, or only to say that it can't answer now; whatever was being done by then.
pub fn is_silent(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(is_away)
            || cause
                .downcast_ref::<Refused>()
                .is_some_and(|refused| cannot_answer(refused.code, &refused.message))
    })
}

/// A client for the cluster of this kubeconfig.
pub async fn client(kubeconfig: &str) -> anyhow::Result<Client> {
    Client::try_from(config(kubeconfig).await?)
        .context("make a client for the cluster's API server")
}

/// A client that takes the first answer: [`client`] asks again for seconds when a server is unavailable, and sometimes just
/// that is what one wants to know.
pub async fn client_that_asks_once(kubeconfig: &str) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    Client::try_from(config).context("make a client for the cluster's API server")
}

async fn config(kubeconfig: &str) -> anyhow::Result<Config> {
    let parsed = Kubeconfig::from_yaml(kubeconfig).context("read the environment's kubeconfig")?;
    let mut config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .context("read the environment's kubeconfig")?;
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(Duration::from_secs(295)); // a watch ends earlier, by its own timeout
    Ok(config)
}

/// Whether the API server says that it is ready; an error tells why not.
pub async fn ready(client: &Client) -> anyhow::Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    let answer = tokio::time::timeout(Duration::from_secs(3), client.request_text(request))
        .await
        .context("the API server doesn't answer within 3 s")?
        .map_err(plain)
        .context("ask the API server whether it is ready")?;
    anyhow::ensure!(
        answer.trim() == "ok",
        "the API server isn't ready: {}",
        answer.trim()
    );
    // An admin of a control plane that is just being set up has no rights yet.
    list(client, "v1", "Namespace", None, "").await.map(drop)
}

/// Whether it failed because a certificate has expired, or isn't valid yet by this machine's clock. rustls keeps that from whoever
/// looks for the type, so its words tell.
pub fn is_out_of_date(error: &anyhow::Error) -> bool {
    let told = format!("{error:#}");
    ["certificate expired", "certificate not valid yet"]
        .iter()
        .any(|words| told.contains(words))
}

/// "Deployment argocd/argocd-server", as messages name an object.
pub fn label(object: &Value) -> String {
    let kind = text(object, "/kind");
    let name = text(object, "/metadata/name");
    match text(object, "/metadata/namespace") {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}

/// The string at a JSON pointer, or "".
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The API for objects like this one, in its namespace where it has one.
fn api_of(client: &Client, object: &Value) -> Api<DynamicObject> {
    let resource = resource(text(object, "/apiVersion"), text(object, "/kind"));
    match text(object, "/metadata/namespace") {
        "" => Api::all_with(client.clone(), &resource),
        namespace => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

/// The resource of an apiVersion and a kind, with its plural guessed as Kubernetes names its own.
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// Lists objects of a kind, in one namespace or in all.
pub async fn list(
    client: &Client,
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
    labels: &str,
) -> anyhow::Result<Vec<Value>> {
    let resource = resource(api_version, kind);
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let parameters = ListParams::default().labels(labels);
    let found = answered(async || api.list(&parameters).await)
        .await
        .map_err(plain)
        .with_context(|| format!("list {}", resource.plural))?;
    found
        .items
        .into_iter()
        .map(|item| {
            let mut object = serde_json::to_value(item)?;
            // In a list the API server leaves out what all its items have in common.
            object["apiVersion"] = Value::from(api_version);
            object["kind"] = Value::from(kind);
            Ok(object)
        })
        .collect()
}

/// Like [`list`]; of a kind that the API server doesn't know there is none.
pub async fn list_if_known(
    client: &Client,
    api_version: &str,
    kind: &str,
    namespace: Option<&str>,
    labels: &str,
) -> anyhow::Result<Vec<Value>> {
    match list(client, api_version, kind, namespace, labels).await {
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        found => found,
    }
}

/// One object, or `None` where it (or its kind) doesn't exist.
pub async fn get(
    client: &Client,
    api_version: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> anyhow::Result<Option<Value>> {
    let wanted = serde_json::json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}});
    live(client, &wanted).await
}

/// The live object of a manifest's, or `None` where it (or its kind) doesn't exist.
pub async fn live(client: &Client, object: &Value) -> anyhow::Result<Option<Value>> {
    let api = api_of(client, object);
    match answered(async || api.get(text(object, "/metadata/name")).await).await {
        Ok(found) => Ok(Some(serde_json::to_value(found)?)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(plain(error)).with_context(|| format!("read {}", label(object))),
    }
}

/// Applies objects, several at a time and in no order, and says which ones were changed by it.
pub async fn apply(
    client: &Client,
    manager: &str,
    objects: &[Value],
) -> anyhow::Result<Vec<String>> {
    stream::iter(objects)
        .map(|object| apply_one(client, manager, object))
        .buffer_unordered(12)
        .try_filter_map(|changed| async move { Ok(changed) })
        .try_collect()
        .await
}

async fn apply_one(
    client: &Client,
    manager: &str,
    object: &Value,
) -> anyhow::Result<Option<String>> {
    let before = live(client, object).await?;
    if before.as_ref().is_some_and(|live| holds(object, live)) {
        return Ok(None);
    }
    let after = patch_once_known(client, manager, object)
        .await
        .map_err(plain)
        .with_context(|| format!("apply {}", label(object)))?;
    let version = before
        .as_ref()
        .map(|live| text(live, "/metadata/resourceVersion"));
    let unchanged = version.is_some() && version == after.metadata.resource_version.as_deref();
    Ok((!unchanged).then(|| label(object)))
}

/// Applies an object. A kind whose definition was applied a moment ago isn't served yet: the server then answers 404.
async fn patch_once_known(
    client: &Client,
    manager: &str,
    object: &Value,
) -> kube::Result<DynamicObject> {
    let until = tokio::time::Instant::now() + DEFINITION_SERVED;
    let parameters = PatchParams::apply(manager).force();
    let (api, name) = (api_of(client, object), text(object, "/metadata/name"));
    let patch = Patch::Apply(object);
    loop {
        let patched = answered(async || api.patch(name, &parameters, &patch).await).await;
        match patched {
            Err(kube::Error::Api(status))
                if status.code == 404 && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            done => return done,
        }
    }
}

/// What applying an object would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It doesn't exist.
    Create,
    /// It says something else.
    Update,
    /// It says all that already.
    Nothing,
}

/// What applying an object would do, without doing it.
pub async fn would_change(
    client: &Client,
    manager: &str,
    object: &Value,
) -> anyhow::Result<Change> {
    let Some(before) = live(client, object).await? else {
        return Ok(Change::Create);
    };
    if holds(object, &before) {
        return Ok(Change::Nothing);
    }
    let parameters = PatchParams {
        dry_run: true,
        ..PatchParams::apply(manager).force()
    };
    let after = api_of(client, object)
        .patch(
            text(object, "/metadata/name"),
            &parameters,
            &Patch::Apply(object),
        )
        .await
        .map_err(plain)
        .with_context(|| format!("ask what applying {} would change", label(object)))?;
    let without_bookkeeping = |mut value: Value| {
        for key in ["managedFields", "resourceVersion", "generation"] {
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove(key);
            }
        }
        value
    };
    let same = without_bookkeeping(before) == without_bookkeeping(serde_json::to_value(after)?);
    Ok(if same {
        Change::Nothing
    } else {
        Change::Update
    })
}

/// Makes an object unless one of its name exists; says whether it made it. For generated secrets, which must not
/// change once they are there.
pub async fn create_if_absent(client: &Client, object: &Value) -> anyhow::Result<bool> {
    let parsed: DynamicObject = serde_json::from_value(object.clone())?;
    let api = api_of(client, object);
    let parameters = PostParams::default();
    match answered(async || api.create(&parameters, &parsed).await).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(plain(error)).with_context(|| format!("create {}", label(object))),
    }
}

/// Merges a patch into one object.
pub async fn merge(client: &Client, object: &Value, patch: &Value) -> anyhow::Result<()> {
    let (api, name) = (api_of(client, object), text(object, "/metadata/name"));
    let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
    answered(async || api.patch(name, &parameters, &patch).await)
        .await
        .map_err(plain)
        .with_context(|| format!("change {}", label(object)))?;
    Ok(())
}

/// Whether a live object already says everything that the wanted one says.
///
/// Maps may hold more than is wanted (defaults, status, other owners' fields). Lists are compared place by place and
/// must be of one length: a list that Kubernetes reorders or fills looks different here, which costs one apply that
/// changes nothing, and never hides a difference.
pub fn holds(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            wanted.iter().all(|(key, value)| match live.get(key) {
                Some(found) => holds(value, found),
                None => is_empty(value),
            })
        }
        (Value::Array(wanted), Value::Array(live)) => {
            wanted.len() == live.len()
                && wanted
                    .iter()
                    .zip(live)
                    .all(|(wanted, live)| holds(wanted, live))
        }
        (wanted, live) => wanted == live,
    }
}

/// Kubernetes drops empty maps, lists and nulls from what it stores.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::explain;
    use serde_json::json;

    #[test]
    fn only_of_a_silent_cluster_it_is_told_how_to_ask_whether_it_answers() {
        let refused = |code, message: &str| Refused {
            code,
            message: message.to_owned(),
        };
        let nobody = kube::Error::Service("deadline has elapsed".into());
        let silent = [
            anyhow::Error::new(nobody),
            refused(503, "the server is shutting down").into(),
            refused(500, "etcdserver: leader changed").into(),
        ];
        for error in silent {
            let (_, hint) = explain(&error.context("list services"));
            assert!(hint.unwrap().starts_with("`devenv status`"));
        }
        for said in [refused(403, "forbidden"), refused(500, "no such thing")] {
            let error = anyhow::Error::new(said).context("list services");
            assert_eq!(explain(&error).1, None);
        }
    }

    #[test]
    fn defaults_added_by_the_server_are_no_difference() {
        let wanted = json!({"spec": {"replicas": 1, "template": {"containers": [{"name": "a"}], "env": []}}});
        let live = json!({"spec": {"replicas": 1, "template": {"containers": [{"name": "a", "policy": "x"}]}}, "status": {}});
        assert!(holds(&wanted, &live));
    }

    #[test]
    fn a_changed_or_missing_field_is_a_difference() {
        let live = json!({"spec": {"replicas": 0, "containers": [{"name": "a"}, {"name": "b"}]}});
        assert!(!holds(&json!({"spec": {"replicas": 1}}), &live));
        assert!(!holds(&json!({"spec": {"paused": true}}), &live));
        assert!(!holds(
            &json!({"spec": {"containers": [{"name": "a"}]}}),
            &live
        ));
    }

    #[test]
    fn objects_are_named_as_people_name_them() {
        assert_eq!(
            label(&json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "n"}})),
            "Pod n/a"
        );
        assert_eq!(
            label(&json!({"kind": "Node", "metadata": {"name": "a"}})),
            "Node a"
        );
    }
}
