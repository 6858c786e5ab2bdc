//! What an API server keeps: objects, their versions, and what changed since when.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Kind, plural and group of what every API server serves.
const KINDS: &[(&str, &str, &str)] = &[
    ("ConfigMap", "configmaps", ""),
    ("Event", "events", ""),
    ("Namespace", "namespaces", ""),
    ("Node", "nodes", ""),
    ("PersistentVolumeClaim", "persistentvolumeclaims", ""),
    ("Pod", "pods", ""),
    ("Secret", "secrets", ""),
    ("Service", "services", ""),
    ("ServiceAccount", "serviceaccounts", ""),
    ("DaemonSet", "daemonsets", "apps"),
    ("Deployment", "deployments", "apps"),
    ("StatefulSet", "statefulsets", "apps"),
    ("Lease", "leases", "coordination.k8s.io"),
    ("NetworkPolicy", "networkpolicies", "networking.k8s.io"),
    ("StorageClass", "storageclasses", "storage.k8s.io"),
    (
        "CustomResourceDefinition",
        "customresourcedefinitions",
        "apiextensions.k8s.io",
    ),
];

/// Where an object is: its group and plural ("apps/deployments"), its namespace or nothing, its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) resource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    key: Key,
    object: Value,
    /// What each field manager applied last.
    applied: BTreeMap<String, Value>,
}

/// "ADDED", "MODIFIED" or "DELETED", at a version.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) what: &'static str,
    pub(crate) key: Key,
    pub(crate) object: Value,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<Key, Kept>,
    pub(crate) version: u64,
    pub(crate) changes: Vec<Change>,
    /// The version that all changes are known since.
    pub(crate) known_since: u64,
}

/// A refusal: its status and message.
pub(crate) type Refusal = (u16, String);

impl Store {
    /// From what [`Store::saved`] gave.
    pub(crate) fn load(text: &str) -> Self {
        let (version, kept): (u64, Vec<Kept>) = serde_json::from_str(text).unwrap();
        Self {
            objects: kept
                .into_iter()
                .map(|kept| (kept.key.clone(), kept))
                .collect(),
            version,
            changes: Vec::new(),
            known_since: version,
        }
    }

    pub(crate) fn saved(&self) -> String {
        let kept: Vec<&Kept> = self.objects.values().collect();
        serde_json::to_string(&(self.version, kept)).unwrap()
    }

    /// The kind that is served under this group and plural.
    pub(crate) fn kind(&self, resource: &str) -> Option<String> {
        let (group, plural) = resource.split_once('/')?;
        let built_in = KINDS.iter().find(|it| (it.1, it.2) == (plural, group));
        let defined = || {
            let key = Key::new(
                "apiextensions.k8s.io/customresourcedefinitions",
                "",
                &format!("{plural}.{group}"),
            );
            let definition = self.get(&key)?;
            definition["spec"]["names"]["kind"]
                .as_str()
                .map(str::to_owned)
        };
        built_in.map(|it| it.0.to_owned()).or_else(defined)
    }

    /// Where an object of a manifest would be, if its kind is served.
    pub(crate) fn key_of(&self, object: &Value, namespace: &str) -> Option<Key> {
        let kind = object["kind"].as_str()?;
        let (group, _) = object["apiVersion"]
            .as_str()?
            .rsplit_once('/')
            .unwrap_or_default();
        let built_in = KINDS.iter().find(|it| (it.0, it.2) == (kind, group));
        let defined = || {
            let definition = self
                .all("apiextensions.k8s.io/customresourcedefinitions")
                .find(|(_, it)| {
                    it["spec"]["names"]["kind"] == kind && it["spec"]["group"] == group
                })?
                .1;
            definition["spec"]["names"]["plural"]
                .as_str()
                .map(str::to_owned)
        };
        let plural = built_in.map(|it| it.1.to_owned()).or_else(defined)?;
        let is_cluster_wide = matches!(
            kind,
            "Namespace" | "Node" | "StorageClass" | "CustomResourceDefinition"
        );
        let own = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or(namespace);
        Some(Key::new(
            &format!("{group}/{plural}"),
            if is_cluster_wide { "" } else { own },
            object["metadata"]["name"].as_str()?,
        ))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key).map(|kept| &kept.object)
    }

    pub(crate) fn all(&self, resource: &str) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects
            .iter()
            .filter(move |(key, _)| key.resource == resource)
            .map(|(key, kept)| (key, &kept.object))
    }

    pub(crate) fn everything(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.objects.iter().map(|(key, kept)| (key, &kept.object))
    }

    /// What an object becomes when a manager applies that, as the server does it: what the manager applied before and leaves
    /// out now goes.
    pub(crate) fn applied(
        &self,
        key: &Key,
        manager: &str,
        manifest: &Value,
    ) -> Result<Value, Refusal> {
        let mut manifest = manifest.clone();
        encode(&mut manifest);
        let kept = self.objects.get(key);
        let mut object = kept.map_or(json!({}), |kept| kept.object.clone());
        if let Some(before) = kept.and_then(|kept| kept.applied.get(manager)) {
            take_out(&mut object, before, &manifest);
        }
        merge_applied(&mut object, &manifest);
        Ok(object)
    }

    pub(crate) fn apply(
        &mut self,
        key: &Key,
        manager: &str,
        manifest: &Value,
    ) -> Result<Value, Refusal> {
        let object = self.applied(key, manager, manifest)?;
        let stored = self.put(key, object)?;
        let mut manifest = manifest.clone();
        encode(&mut manifest);
        if let Some(kept) = self.objects.get_mut(key) {
            kept.applied.insert(manager.to_owned(), manifest);
        }
        Ok(stored)
    }

    /// Stores an object; one that is the same already keeps its version.
    pub(crate) fn put(&mut self, key: &Key, mut object: Value) -> Result<Value, Refusal> {
        let namespace = Key::new("/namespaces", "", &key.namespace);
        if !key.namespace.is_empty() && self.get(&namespace).is_none() {
            let message = format!("namespaces \"{}\" not found", key.namespace);
            return Err((404, message));
        }
        encode(&mut object);
        without_nothing(&mut object);
        let before = self.objects.get(key);
        if before.is_some_and(|before| before.object == object) {
            return Ok(object);
        }
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        if before.is_none() {
            metadata["uid"] = json!(format!("uid-{}", self.version));
            metadata["creationTimestamp"] = json!(now());
            metadata["name"] = json!(key.name);
            if !key.namespace.is_empty() {
                metadata["namespace"] = json!(key.namespace);
            }
        }
        let same_spec = before.is_some_and(|before| before.object["spec"] == object["spec"]);
        let generation = before
            .and_then(|before| before.object["metadata"]["generation"].as_u64())
            .unwrap_or_default();
        object["metadata"]["generation"] = json!(generation + u64::from(!same_spec));
        let what = match before {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        self.changes.push(Change {
            version: self.version,
            what,
            key: key.clone(),
            object: object.clone(),
        });
        let applied = before
            .map(|before| before.applied.clone())
            .unwrap_or_default();
        let kept = Kept {
            key: key.clone(),
            object: object.clone(),
            applied,
        };
        self.objects.insert(key.clone(), kept);
        Ok(object)
    }

    /// Changes an object that is there.
    pub(crate) fn change(&mut self, key: &Key, change: impl FnOnce(&mut Value)) {
        if let Some(mut object) = self.get(key).cloned() {
            change(&mut object);
            let _ = self.put(key, object);
        }
    }

    /// Deletes an object, or only marks it where somebody has to finish with it first.
    pub(crate) fn delete(&mut self, key: &Key) -> bool {
        let Some(object) = self.get(key) else {
            return false;
        };
        let has_finalizers = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|list| !list.is_empty());
        if has_finalizers {
            self.change(key, |object| {
                if object["metadata"]["deletionTimestamp"].is_null() {
                    object["metadata"]["deletionTimestamp"] = json!(now());
                }
            });
        } else {
            self.remove(key);
        }
        true
    }

    /// It is gone, and with it what is in it where it is a namespace.
    pub(crate) fn remove(&mut self, key: &Key) {
        if key.resource == "/namespaces" {
            let inside: Vec<Key> = self
                .objects
                .keys()
                .filter(|it| it.namespace == key.name)
                .cloned()
                .collect();
            for key in inside {
                self.remove(&key);
            }
        }
        if let Some(kept) = self.objects.remove(key) {
            self.version += 1;
            let mut object = kept.object;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.changes.push(Change {
                version: self.version,
                what: "DELETED",
                key: key.clone(),
                object,
            });
        }
    }
}

pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// What is written of a secret in plain words is kept in base64.
fn encode(object: &mut Value) {
    use base64::Engine as _;
    let Some(Value::Object(plain)) = object
        .as_object_mut()
        .and_then(|it| it.remove("stringData"))
    else {
        return;
    };
    for (key, value) in plain {
        let value = value.as_str().unwrap_or_default();
        object["data"][key] = json!(base64::engine::general_purpose::STANDARD.encode(value));
    }
}

/// The server keeps no nulls.
fn without_nothing(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(without_nothing);
    }
}

/// Lists whose entries go by their names, as in pods.
fn by_name(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|entry| entry["name"].is_string())
}

fn merge_applied(live: &mut Value, applied: &Value) {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) => {
            for (key, value) in applied {
                match live.get_mut(key) {
                    Some(there) => merge_applied(there, value),
                    None => drop(live.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(live), Value::Array(applied)) if by_name(live) && by_name(applied) => {
            for value in applied {
                match live.iter_mut().find(|there| there["name"] == value["name"]) {
                    Some(there) => merge_applied(there, value),
                    None => live.push(value.clone()),
                }
            }
        }
        (live, applied) => *live = applied.clone(),
    }
}

/// Takes out what was applied before and isn't now.
fn take_out(live: &mut Value, before: &Value, now: &Value) {
    match (live, before) {
        (Value::Object(live), Value::Object(before)) => {
            for (key, value) in before {
                match now.get(key) {
                    Some(now) => {
                        if let Some(live) = live.get_mut(key) {
                            take_out(live, value, now);
                        }
                    }
                    None => drop(live.remove(key)),
                }
            }
        }
        (Value::Array(live), Value::Array(before)) if by_name(live) && by_name(before) => {
            let names = |name: &Value| {
                now.as_array()
                    .into_iter()
                    .flatten()
                    .any(|entry| entry["name"] == *name)
            };
            live.retain(|entry| {
                names(&entry["name"]) || !before.iter().any(|it| it["name"] == entry["name"])
            });
        }
        _ => {}
    }
}

/// RFC 7386.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().and_then(|it| it.remove(key))),
            value => merge(&mut target[key], value),
        }
    }
}
