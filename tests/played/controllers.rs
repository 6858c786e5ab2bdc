//! What works beside an API server: Kubernetes' own controllers, the kubelet of the one node, and Argo CD. Each looks at the
//! objects and does its next small step, again and again; nothing comes about that these steps don't make.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use serde_json::{Value, json};

use super::cluster::Places;
use super::store::{Key, Store, now};

const ARGOCD: &str = "argocd";
const APPLICATIONS: &str = "argoproj.io/applications";
const SETS: &str = "argoproj.io/applicationsets";
const REFRESH: &str = "argocd.argoproj.io/refresh";
const REFRESH_SET: &str = "argocd.argoproj.io/application-set-refresh";
const TRACKING: &str = "argocd.argoproj.io/tracking-id";
const FINALIZER: &str = "resources-finalizer.argocd.argoproj.io";

type Tree = BTreeMap<String, Vec<u8>>;

/// What controllers remember, until the node is started again.
pub(crate) struct Controllers {
    places: Places,
    /// The pods whose containers were started since.
    started: HashSet<String>,
    /// The ApplicationSet as it was looked at last.
    set: Option<Value>,
    /// The Applications that were looked at, as their specs were then.
    looked_at: BTreeMap<String, Value>,
    trees: BTreeMap<String, Arc<Tree>>,
}

impl Controllers {
    pub(crate) fn new(places: Places) -> Self {
        Self {
            places,
            started: HashSet::new(),
            set: None,
            looked_at: BTreeMap::new(),
            trees: BTreeMap::new(),
        }
    }

    pub(crate) fn step(&mut self, store: &mut Store) {
        for resource in ["apps/deployments", "apps/statefulsets", "apps/daemonsets"] {
            workloads(store, resource, &self.places.node);
        }
        forsaken(store);
        self.kubelet(store);
        if is_ready(store, "apps/deployments", "argocd-server") {
            let password = json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "argocd-initial-admin-secret"},
                "stringData": {"password": "a password"},
            });
            let key = Key::new("/secrets", ARGOCD, "argocd-initial-admin-secret");
            if store.get(&key).is_none() {
                let _ = store.put(&key, password);
            }
        }
        let renders = is_ready(store, "apps/deployments", "argocd-repo-server")
            && is_ready(store, "apps/deployments", "argocd-redis");
        if renders
            && is_ready(
                store,
                "apps/deployments",
                "argocd-applicationset-controller",
            )
        {
            self.application_set(store);
        }
        if renders && is_ready(store, "apps/statefulsets", "argocd-application-controller") {
            self.applications(store);
        }
    }

    /// Starts the containers of pods whose images are there.
    fn kubelet(&mut self, store: &mut Store) {
        let pods: Vec<(Key, Value)> = cloned(store, "/pods");
        let is_new = |(_, pod): &(Key, Value)| !self.started.contains(uid(pod));
        let images = match pods.iter().any(is_new) {
            true => self.places.images(),
            false => Vec::new(),
        };
        for (key, pod) in pods {
            if self.started.contains(uid(&pod)) {
                continue;
            }
            let containers = pod["spec"]["containers"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let lacking = containers.iter().find(|container| {
                let image = container["image"].as_str().unwrap_or_default();
                !image.starts_with("system/") && !images.iter().any(|there| there == image)
            });
            if let Some(lacking) = lacking {
                let waiting = json!([{
                    "name": lacking["name"], "image": lacking["image"], "ready": false, "restartCount": 0,
                    "state": {"waiting": {"reason": "ErrImagePull", "message": "no such host"}},
                }]);
                store.change(&key, |pod| {
                    pod["status"] = json!({"phase": "Pending", "containerStatuses": waiting});
                });
                continue;
            }
            if pod["metadata"]["labels"]["app.kubernetes.io/name"] == "git-source" {
                receive_into(&self.places.pod(uid(&pod)));
            }
            let statuses: Vec<Value> = containers
                .iter()
                .map(|container| {
                    json!({
                        "name": container["name"], "image": container["image"], "ready": true, "restartCount": 0,
                        "state": {"running": {"startedAt": now()}},
                    })
                })
                .collect();
            store.change(&key, |pod| {
                pod["status"] = json!({
                    "phase": "Running", "containerStatuses": statuses,
                    "conditions": [{"type": "Ready", "status": "True"}],
                });
            });
            self.started.insert(uid(&pod).to_owned());
        }
    }

    /// The tree that the git source has, if it runs and has one.
    fn tree(&mut self, store: &Store) -> Option<(String, Arc<Tree>)> {
        let (_, pod) = store.all("/pods").find(|(_, pod)| {
            pod["metadata"]["labels"]["app.kubernetes.io/name"] == "git-source"
                && self.started.contains(uid(pod))
        })?;
        let repository = self.places.pod(uid(pod)).join("bundles.git");
        let revision = std::fs::read_to_string(repository.join("refs/heads/main")).ok()?;
        let revision = revision.trim().to_owned();
        if !self.trees.contains_key(&revision) {
            let tree = read_tree(&repository, &revision)?;
            self.trees.insert(revision.clone(), Arc::new(tree));
        }
        let tree = Arc::clone(&self.trees[&revision]);
        Some((revision, tree))
    }

    /// The ApplicationSet's controller: looks again only when the object has changed, or at its own start.
    fn application_set(&mut self, store: &mut Store) {
        let Some((key, set)) = cloned(store, SETS).into_iter().next() else {
            self.set = None;
            return;
        };
        let watched = json!([set["spec"], set["metadata"]["annotations"]]);
        if self.set.as_ref() == Some(&watched) {
            return;
        }
        let complain = |store: &mut Store, conditions: Value| {
            store.change(&key, |set| set["status"]["conditions"] = conditions);
        };
        let Some((_, tree)) = self.tree(store) else {
            self.set = Some(watched);
            let trouble = json!([{"type": "ErrorOccurred", "status": "True", "message": "failed to fetch: no git there"}]);
            return complain(store, trouble);
        };
        let generator = &set["spec"]["generators"][0];
        let expression = &generator["selector"]["matchExpressions"][0];
        let names: Vec<&str> = texts(&expression["values"]).collect();
        let lets_in = |name: &str| match expression["operator"].as_str() {
            Some("In") => names.contains(&name),
            Some("NotIn") => !names.contains(&name),
            _ => true,
        };
        let template = &set["spec"]["template"]["spec"];
        let mut wanted = BTreeSet::new();
        for (path, text) in tree.iter() {
            let parts: Vec<&str> = path.split('/').collect();
            let ["bundles", project, name, "bundle.yaml"] = parts[..] else {
                continue;
            };
            if !lets_in(name) {
                continue;
            }
            wanted.insert(name.to_owned());
            let bundle: Value = serde_yaml::from_slice(text).unwrap_or_default();
            let folder = format!("bundles/{project}/{name}");
            let source = template["source"]["path"].as_str().unwrap_or_default();
            let mut spec = template.clone();
            spec["project"] = json!(project);
            spec["source"]["path"] = json!(source.replace("{{.path.path}}", &folder));
            spec["destination"]["namespace"] = bundle["namespace"].clone();
            let application = Key::new(APPLICATIONS, ARGOCD, name);
            let mut object = store.get(&application).cloned().unwrap_or_else(|| {
                json!({
                    "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
                    "metadata": {
                        "finalizers": [FINALIZER],
                        "labels": set["spec"]["template"]["metadata"]["labels"],
                        "ownerReferences": [{"kind": "ApplicationSet", "name": key.name, "uid": set["metadata"]["uid"]}],
                    },
                })
            });
            object["spec"] = spec;
            let _ = store.put(&application, object);
        }
        if set["spec"]["syncPolicy"]["applicationsSync"] == "sync" {
            for (application, _) in cloned(store, APPLICATIONS) {
                if !wanted.contains(&application.name) {
                    store.delete(&application);
                }
            }
        }
        complain(store, json!([{"type": "ErrorOccurred", "status": "False"}]));
        // Only a look that succeeded takes the request away.
        store.change(&key, |set| {
            if let Some(annotations) = set["metadata"]["annotations"].as_object_mut() {
                annotations.remove(REFRESH_SET);
            }
        });
        let set = store.get(&key).cloned().unwrap_or_default();
        self.set = Some(json!([set["spec"], set["metadata"]["annotations"]]));
    }

    /// The controller of Applications.
    fn applications(&mut self, store: &mut Store) {
        for (key, app) in cloned(store, APPLICATIONS) {
            if !app["metadata"]["deletionTimestamp"].is_null() {
                for (resource, _) in tracked(store, &key.name) {
                    store.delete(&resource);
                }
                if tracked(store, &key.name).is_empty() {
                    store.remove(&key);
                }
                self.looked_at.remove(&key.name);
                continue;
            }
            self.application(store, &key, &app);
        }
    }

    fn application(&mut self, store: &mut Store, key: &Key, app: &Value) {
        let asked = !app["metadata"]["annotations"][REFRESH].is_null();
        let is_new = self.looked_at.get(&key.name) != Some(&app["spec"]);
        let mut status = app["status"].clone();
        if asked || is_new {
            let Some((revision, _)) = self.tree(store) else {
                status["conditions"] =
                    json!([{"type": "ComparisonError", "message": "no git there"}]);
                status["sync"] = json!({"status": "Unknown"});
                return write(store, key, status, asked);
            };
            self.looked_at.insert(key.name.clone(), app["spec"].clone());
            status["conditions"] = json!([]);
            status["sync"]["revision"] = json!(revision);
        }
        let revision = status["sync"]["revision"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let Some(tree) = self.trees.get(&revision).cloned() else {
            return;
        };
        let folder = app["spec"]["source"]["path"].as_str().unwrap_or_default();
        let namespace = app["spec"]["destination"]["namespace"]
            .as_str()
            .unwrap_or_default();
        let wanted = match render(&tree, folder) {
            Ok(wanted) => wanted,
            Err(message) => {
                status["conditions"] = json!([{"type": "ComparisonError", "message": message}]);
                status["sync"]["status"] = json!("Unknown");
                return write(store, key, status, asked);
            }
        };
        let mut keys = BTreeSet::new();
        let mut differs = Vec::new();
        for mut object in wanted {
            let Some(place) = store.key_of(&object, namespace) else {
                differs.push(None);
                continue;
            };
            object["metadata"]["annotations"][TRACKING] =
                json!(format!("{}:{}", key.name, place.name));
            let live = store.get(&place);
            if !live.is_some_and(|live| devenv::kube::holds(&object, live)) {
                differs.push(Some((place.clone(), object)));
            }
            keys.insert(place);
        }
        let superfluous: Vec<Key> = tracked(store, &key.name)
            .into_iter()
            .map(|(place, _)| place)
            .filter(|place| !keys.contains(place))
            .collect();
        let in_order = differs.is_empty() && superfluous.is_empty();
        let was_seen = status["sync"]["status"] == "OutOfSync";
        match (in_order, was_seen) {
            (false, false) => {
                status["sync"]["status"] = json!("OutOfSync");
                status["operationState"] = json!({"phase": "Running"});
            }
            (false, true) => {
                for place in superfluous {
                    store.delete(&place);
                }
                for (place, object) in differs.into_iter().flatten() {
                    let _ = store.apply(&place, "argocd-controller", &object);
                }
            }
            (true, _) => {
                status["sync"]["status"] = json!("Synced");
                status["operationState"] =
                    json!({"phase": "Succeeded", "syncResult": {"revision": revision}});
            }
        }
        let unwell = keys.iter().any(|place| {
            place.resource.starts_with("apps/")
                && !is_at_work(store.get(place).unwrap_or(&Value::Null))
        });
        let health = match (in_order, unwell) {
            (false, _) => "Missing",
            (true, true) => "Progressing",
            (true, false) => "Healthy",
        };
        status["health"] = json!({"status": health});
        write(store, key, status, asked);
    }
}

fn write(store: &mut Store, key: &Key, status: Value, asked: bool) {
    store.change(key, |app| {
        app["status"] = status;
        if asked && let Some(annotations) = app["metadata"]["annotations"].as_object_mut() {
            annotations.remove(REFRESH);
        }
    });
}

/// One pod for each workload, of its newest template; and how it does.
fn workloads(store: &mut Store, resource: &str, node: &str) {
    for (key, workload) in cloned(store, resource) {
        let template = &workload["spec"]["template"];
        let version = devenv::store::reference::Digest::of(template.to_string().as_bytes());
        let name = format!("{}-{}", key.name, &version.hex()[..10]);
        let own: Vec<(Key, Value)> = cloned(store, "/pods")
            .into_iter()
            .filter(|(_, pod)| {
                pod["metadata"]["ownerReferences"][0]["uid"] == workload["metadata"]["uid"]
            })
            .collect();
        let mut ready = 0;
        let mut is_there = false;
        for (pod_key, pod) in &own {
            if pod_key.name == name {
                is_there = true;
                ready += u64::from(is_pod_ready(pod));
            } else {
                store.delete(pod_key);
            }
        }
        if !is_there {
            let mut spec = template["spec"].clone();
            spec["nodeName"] = json!(node);
            let pod = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "labels": template["metadata"]["labels"],
                    "ownerReferences": [{"kind": workload["kind"], "name": key.name, "uid": workload["metadata"]["uid"]}],
                },
                "spec": spec, "status": {"phase": "Pending"},
            });
            let _ = store.put(&Key::new("/pods", &key.namespace, &name), pod);
        }
        let generation = workload["metadata"]["generation"].clone();
        store.change(&key, |workload| {
            workload["status"] = json!({
                "observedGeneration": generation, "replicas": 1, "updatedReplicas": 1, "readyReplicas": ready,
            });
        });
    }
}

/// What belongs to something that is gone goes too.
fn forsaken(store: &mut Store) {
    let uids: HashSet<String> = store
        .everything()
        .map(|(_, object)| uid(object).to_owned())
        .collect();
    for resource in ["/pods", APPLICATIONS] {
        for (key, object) in cloned(store, resource) {
            let owner = object["metadata"]["ownerReferences"][0]["uid"].as_str();
            if owner.is_some_and(|owner| !uids.contains(owner))
                && object["metadata"]["deletionTimestamp"].is_null()
            {
                store.delete(&key);
            }
        }
    }
}

fn cloned(store: &Store, resource: &str) -> Vec<(Key, Value)> {
    store
        .all(resource)
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect()
}

/// What an Application has made.
fn tracked(store: &Store, application: &str) -> Vec<(Key, Value)> {
    let prefix = format!("{application}:");
    store
        .everything()
        .filter(|(_, object)| {
            let tracking = object["metadata"]["annotations"][TRACKING].as_str();
            tracking.is_some_and(|tracking| tracking.starts_with(&prefix))
        })
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect()
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn is_pod_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn is_at_work(workload: &Value) -> bool {
    workload["status"]["readyReplicas"] == 1
        && workload["status"]["observedGeneration"] == workload["metadata"]["generation"]
}

fn is_ready(store: &Store, resource: &str, name: &str) -> bool {
    store
        .get(&Key::new(resource, ARGOCD, name))
        .is_some_and(is_at_work)
}

/// What the git source's own script does before its daemon starts.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests play what runs in a pod"
)]
fn receive_into(folder: &Path) {
    let repository = folder.join("bundles.git");
    std::fs::create_dir_all(folder).unwrap();
    let status = std::process::Command::new(which::which("git").unwrap())
        .args(["init", "--quiet", "--bare", "--initial-branch=main"])
        .arg(&repository)
        .env_clear()
        .status();
    assert!(status.unwrap().success());
}

/// All files of a revision.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests play what runs in a pod"
)]
fn read_tree(repository: &Path, revision: &str) -> Option<Tree> {
    let output = std::process::Command::new(which::which("git").unwrap())
        .args(["archive", "--format=tar", revision])
        .current_dir(repository)
        .env_clear()
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let mut tree = Tree::new();
    for entry in tar::Archive::new(output.stdout.as_slice()).entries().ok()? {
        let mut entry = entry.ok()?;
        let path = entry.path().ok()?.display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).ok()?;
        tree.insert(path, bytes);
    }
    (!tree.is_empty()).then_some(tree)
}

/// As much of kustomize as the projects of these tests use: `resources`, files and folders.
fn render(tree: &Tree, folder: &str) -> Result<Vec<Value>, String> {
    let file = format!("{folder}/kustomization.yaml");
    let text = tree
        .get(&file)
        .ok_or_else(|| format!("Error: unable to find {file}"))?;
    let kustomization: Value =
        serde_yaml::from_slice(text).map_err(|error| format!("Error: {error}"))?;
    let mut objects = Vec::new();
    for resource in texts(&kustomization["resources"]) {
        let path = joined(folder, resource);
        match tree.get(&path) {
            None => objects.extend(render(tree, &path)?),
            Some(text) => {
                let text = String::from_utf8_lossy(text);
                let documents = devenv::yaml::documents(&path, &text);
                objects.extend(documents.map_err(|error| format!("Error: {error:#}"))?);
            }
        }
    }
    // Definitions and namespaces come before what needs them.
    objects.sort_by_key(|object| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        _ => 2,
    });
    Ok(objects)
}

fn joined(folder: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in relative.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
