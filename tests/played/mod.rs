//! A played world in which the real devenv goes all the way: a Docker engine, a kind, and clusters whose API servers and
//! controllers do as the real ones do, on a small project of a test's own. It lives in the test's process, so it outlives devenv.
//!
//! What isn't played isn't answered: a call that nobody plays is refused, and the project leaves out what would make it.

mod cluster;
mod controllers;
mod docker;
mod http;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use serde_json::{Value, json};

use crate::bad_days::{BUILD, ENVIRONMENT, kind_config};
use crate::harness::{Running, Test};
use docker::{Docker, State};
pub(crate) use store::Key;

/// All that is played is played here.
static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
});

/// kind, in as many steps as it can be killed between.
const KIND: &str = r#"
while [ $# -gt 0 ]; do
    case $1 in
    --name) name=$2 ;;
    --image) image=$2 ;;
    --config) config=$2 ;;
    esac
    shift
done
for part in node init join storage; do
    echo "$part ..." >&2
    curl -sS --fail-with-body --unix-socket "$ENGINE" --data-binary "@$config" "http://docker/kind/$part?name=$name&image=$image" >&2 || {
        echo "ERROR: failed to create cluster" >&2
        exit 1
    }
    sleep 0.03
done"#;

const SERVED: &str = "\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: virtualservices.networking.istio.io}
spec: {group: networking.istio.io, names: {kind: VirtualService, plural: virtualservices}, scope: Namespaced}
";

const TEAM: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: iam-team}
";

const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
        - {name: web, image: 'test.devenv.test/web:1'}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec: {hosts: [web.local]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
data: {greeting: hello}
";

/// A hosts file with more in it than most.
pub(crate) const HOSTS: &[u8] =
    b"127.0.0.1\tlocalhost\r\n# a person's own\n10.1.2.3 build.example.org build\n\n\n::1 localhost  # no end of line";

/// Argo CD, as far as it is asked for: its definitions, its settings, its workloads.
fn argocd() -> String {
    let definition = |kind: &str, plural: &str| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.argoproj.io")},
            "spec": {"group": "argoproj.io", "names": {"kind": kind, "plural": plural}, "scope": "Namespaced"},
        })
    };
    let settings =
        |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let workload = |kind: &str, name: &str, image: &str| {
        let labels = json!({"app.kubernetes.io/name": name});
        json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "labels": labels},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels}, "spec": {"containers": [{"name": name, "image": image}]},
            }},
        })
    };
    let (image, redis) = (
        devenv::gitops::argocd::IMAGE,
        devenv::gitops::argocd::REDIS_IMAGE,
    );
    let documents = [
        definition("Application", "applications"),
        definition("ApplicationSet", "applicationsets"),
        definition("AppProject", "appprojects"),
        settings("argocd-cm"),
        settings("argocd-cmd-params-cm"),
        workload("Deployment", "argocd-redis", redis),
        workload("Deployment", "argocd-repo-server", image),
        workload("Deployment", "argocd-applicationset-controller", image),
        workload("Deployment", "argocd-server", image),
        workload("StatefulSet", "argocd-application-controller", image),
    ];
    documents
        .map(|document| format!("---\n{document}\n"))
        .concat()
}

/// A port that nobody has, and that the system gives to nobody who asks for any: it stays free while its node is stopped.
fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = std::process::id() * 131 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + u16::try_from(next % 12_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Counts what is asked to be changed, in Docker and in the clusters, and hits devenv at one of these moments.
#[derive(Debug, Default)]
pub(crate) struct Trap {
    /// What was asked for, in order.
    changes: Vec<String>,
    armed: Option<Armed>,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    change: usize,
    signal: Signal,
    is_made: bool,
    pid: Option<i32>,
}

/// A change is asked for; says whether it is made.
async fn change_asked_for(trap: &Mutex<Trap>, what: String) -> bool {
    {
        let mut trap = trap.lock().unwrap();
        trap.changes.push(what);
        if trap
            .armed
            .is_none_or(|armed| armed.change != trap.changes.len())
        {
            return true;
        }
    }
    // It may be asked for before it is known by whom.
    loop {
        let armed = trap.lock().unwrap().armed;
        let Some(Armed {
            signal,
            is_made,
            pid,
            ..
        }) = armed
        else {
            return true;
        };
        if let Some(pid) = pid {
            trap.lock().unwrap().armed = None;
            if signal == Signal::SIGKILL && !is_made {
                // Then nothing is left that could ask again: a provider's program dies as well, as when a machine runs out of memory.
                for child in children(pid) {
                    let _ = signal::kill(Pid::from_raw(child), signal);
                }
            }
            let _ = signal::kill(Pid::from_raw(pid), signal);
            return is_made;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The processes that a process has started itself.
fn children(of: i32) -> impl Iterator<Item = i32> {
    let threads = fs::read_dir(format!("/proc/{of}/task"));
    threads.into_iter().flatten().flatten().flat_map(|thread| {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        let children: Vec<i32> = children
            .split_whitespace()
            .filter_map(|it| it.parse().ok())
            .collect();
        children
    })
}

/// A world of its own, with a project in it.
pub(crate) struct World {
    pub(crate) test: Test,
    docker: Arc<Docker>,
    engine: tempfile::TempDir,
}

impl World {
    /// With one environment, `dev`.
    pub(crate) fn new() -> Self {
        let engine = tempfile::Builder::new()
            .prefix("engine-")
            .tempdir()
            .unwrap();
        let docker = Docker::start(engine.path(), RUNTIME.handle());
        let socket = engine.path().join("docker.sock").display().to_string();
        // Two may build at the same time.
        let build = BUILD.replace("$store/new", "$store/new.$$").replace(
            "echo 'kind: ConfigMap' > \"$store/new.$$\"",
            "cp \"$(dirname \"$0\")/install.yaml\" \"$store/new.$$\"",
        );
        let test = Test::new()
            .tool("git")
            .env("DOCKER_HOST", &format!("unix://{socket}"))
            .env("ENGINE", &socket)
            .fake("kind", KIND)
            .script("scripts/packages/build", &build)
            .file("scripts/packages/install.yaml", &argocd())
            .file("bundles/infrastructure/base/bundle.yaml", "wave: 1\nnamespace: default\n")
            .file("bundles/infrastructure/base/base/kustomization.yaml", "resources: [served.yaml, team.yaml]\n")
            .file("bundles/infrastructure/base/base/served.yaml", SERVED)
            .file("bundles/infrastructure/base/base/team.yaml", TEAM)
            .file(
                "bundles/iam/web/bundle.yaml",
                "wave: 4\nnamespace: iam-team\nimages: [test.devenv.test/web:1]\nsecrets:\n  - name: web-login\n    values: {user: admin}\n    generate: [password]\n",
            )
            .file("bundles/iam/web/base/kustomization.yaml", "resources: [web.yaml]\n")
            .file("bundles/iam/web/base/web.yaml", WEB);
        let world = Self {
            test,
            docker,
            engine,
        };
        fs::create_dir(world.test.path("etc")).unwrap();
        fs::write(world.test.path("etc/hosts"), HOSTS).unwrap();
        fs::write(world.test.path("home/.gitconfig"), "[user]\n").unwrap();
        fs::create_dir(world.test.path("home/.kube")).unwrap();
        fs::write(world.test.path("home/.kube/config"), "a person's own\n").unwrap();
        fs::create_dir(world.test.path("project/.git")).unwrap();
        fs::write(world.test.path("project/.git/index"), "a person's own\n").unwrap();
        world.docker.belongs_to_others();
        world.environment("dev");
        world
    }

    /// Another environment of the project, at ports of its own.
    pub(crate) fn environment(&self, name: &str) {
        let config = kind_config(port(), port());
        let test = self.test.clone();
        test.file(
            &format!("cluster-configs/{name}.yaml"),
            &ENVIRONMENT.replace("kind.yaml", &format!("{name}-kind.yaml")),
        )
        .file(&format!("cluster-configs/{name}-kind.yaml"), &config);
    }

    /// Starts devenv where `/etc` is the world's; see `hosts.rs` for why it never starts anywhere else.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        let temp = self.test.path("").display().to_string();
        let temp = temp.trim_end_matches('/');
        let apart = if nix::unistd::geteuid().is_root() {
            "-m"
        } else {
            "-rm"
        };
        let script = format!(
            "P=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin
             mount --bind {temp}/etc /etc || exit 99
             test /etc -ef {temp}/etc || exit 99
             PATH=$P; exec \"$@\""
        );
        let unshare = which::which("unshare").unwrap().display().to_string();
        self.test
            .clone()
            .under([&*unshare, apart, "/bin/sh", "-c", &script, "sh"])
            .args(args.iter().copied())
            .start()
    }

    /// From now on changes are counted; devenv is to be hit when it asks for this one, which is made or not.
    pub(crate) fn count_changes(&self, at: Option<(usize, Signal, bool)>) {
        let armed = at.map(|(change, signal, is_made)| Armed {
            change,
            signal,
            is_made,
            pid: None,
        });
        *self.docker.trap.lock().unwrap() = Trap {
            changes: Vec::new(),
            armed,
        };
    }

    /// Whom to hit.
    pub(crate) fn is_run_by(&self, pid: i32) {
        if let Some(armed) = &mut self.docker.trap.lock().unwrap().armed {
            armed.pid = Some(pid);
        }
    }

    /// What was asked for since, in order.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.docker.trap.lock().unwrap().changes.clone()
    }

    pub(crate) fn docker(&self) -> MutexGuard<'_, State> {
        self.docker.state()
    }

    /// Docker's machine is started again: all containers have ended.
    pub(crate) fn restart_docker(&self) {
        self.docker.restart();
    }

    /// What isn't devenv's to touch, byte for byte.
    pub(crate) fn others(&self) -> BTreeMap<String, String> {
        let state = self.docker();
        let mut seen = BTreeMap::new();
        let theirs = |name: &&String| name.contains("theirs");
        for name in state.containers.keys().filter(theirs) {
            seen.insert(
                format!("container {name}"),
                state.containers[name].state.to_owned(),
            );
        }
        for name in state.volumes.keys().filter(theirs) {
            let content = fs::read_to_string(self.docker.volume(name).join("file"));
            seen.insert(format!("volume {name}"), content.unwrap_or_default());
        }
        for name in state.networks.keys().filter(theirs) {
            seen.insert(format!("network {name}"), String::new());
        }
        for file in ["home/.gitconfig", "home/.kube/config", "project/.git/index"] {
            let content = fs::read_to_string(self.test.path(file));
            seen.insert(file.to_owned(), content.unwrap_or_default());
        }
        seen
    }

    pub(crate) fn hosts(&self) -> Vec<u8> {
        fs::read(self.test.path("etc/hosts")).unwrap()
    }

    /// All there is, without what differs from run to run: ids, times, generated passwords, keys.
    pub(crate) fn seen(&self) -> BTreeMap<String, String> {
        let mut seen = BTreeMap::new();
        let state = self.docker();
        for (name, container) in &state.containers {
            let labels = container.body["Labels"].to_string();
            let ports: Vec<_> = container
                .ports()
                .into_iter()
                .filter(|port| port.2 != 6443)
                .collect();
            let mounts: Vec<&String> = container.volumes.keys().collect();
            let told = format!(
                "{} {} {labels} {ports:?} {mounts:?}",
                container.body["Image"], container.state
            );
            seen.insert(format!("container {name}"), told);
            let Some(cluster) = &container.cluster else {
                continue;
            };
            for (key, object) in cluster.store().everything() {
                let Key {
                    resource,
                    namespace,
                    name: object_name,
                } = key;
                let mut object = object.clone();
                plain(&mut object, resource);
                seen.insert(
                    format!("{name}: {resource} {namespace}/{object_name}"),
                    object.to_string(),
                );
            }
        }
        for (name, labels) in &state.networks {
            seen.insert(format!("network {name}"), format!("{labels:?}"));
        }
        for name in state.volumes.keys() {
            // Docker chooses the names of most.
            let told = match name.len() {
                64 => "without a name",
                _ => name,
            };
            seen.entry(format!("volume {told}")).or_default().push('|');
            for file in files(&self.docker.volume(name).join("devenv/snapshots")) {
                let is_content = ["/etcd/", "/volumes/"]
                    .iter()
                    .any(|part| file.contains(part));
                if !is_content {
                    seen.insert(format!("volume {told}: {file}"), String::new());
                }
            }
        }
        for (name, id) in &state.images {
            seen.insert(format!("image {name}"), id.clone());
        }
        seen.insert(
            "hosts".to_owned(),
            String::from_utf8_lossy(&self.hosts()).into_owned(),
        );
        for folder in ["home", "run", "project"] {
            for file in files(&self.test.path(folder)) {
                // What a repository is made of isn't what it says; and how long something took is no state.
                let passing = [".git/objects/", ".git/logs", "/last-build.json"];
                if !passing.iter().any(|part| file.contains(part)) {
                    seen.insert(format!("file {folder}/{file}"), self.content(folder, &file));
                }
            }
        }
        seen
    }

    /// What is in a file, where that is the same in every run.
    fn content(&self, folder: &str, file: &str) -> String {
        let is_own = ["/kubeconfig", ".pem", "state"]
            .iter()
            .any(|end| file.ends_with(end))
            || file.contains("/ca/")
            || file.contains("cluster-configs/");
        if is_own {
            return String::new();
        }
        let bytes = fs::read(self.test.path(folder).join(file)).unwrap_or_default();
        devenv::store::reference::Digest::of(&bytes).to_string()
    }

    /// The processes that were started in this world and go on. One that was killed a moment ago is given the time to end.
    pub(crate) fn processes(&self) -> BTreeSet<String> {
        for _ in 0..100 {
            if self.processes_now().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.processes_now()
    }

    fn processes_now(&self) -> BTreeSet<String> {
        let home = format!("HOME={}\0", self.test.path("home").display());
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&variables).contains(&home) {
                let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.insert(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        found
    }

    /// Does something to the objects of an environment's cluster, as somebody with kubectl would.
    pub(crate) fn in_cluster<T>(
        &self,
        node: &str,
        work: impl FnOnce(&mut store::Store) -> T,
    ) -> Option<T> {
        let cluster = self.docker().containers.get(node)?.cluster.clone()?;
        let done = work(&mut cluster.store());
        cluster.told();
        Some(done)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for container in self.docker().containers.values_mut() {
            if let Some(cluster) = container.cluster.take() {
                cluster.stop();
            }
        }
        // Its socket must be there for whoever still asks.
        let _ = self.engine.path();
    }
}

/// What is the same in every run of an object.
fn plain(object: &mut Value, resource: &str) {
    for key in [
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "ownerReferences",
    ] {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove(key);
        }
    }
    if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
        annotations.remove("devenv.test/nudged-at");
    }
    let annotations = object["metadata"]["annotations"].as_object();
    if annotations.is_none_or(|it| it.is_empty())
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("annotations");
    }
    match resource {
        "/secrets" => {
            for value in object["data"]
                .as_object_mut()
                .into_iter()
                .flat_map(|it| it.values_mut())
            {
                *value = json!("a secret");
            }
        }
        // What it complained of when it last looked, which it does every three minutes.
        "argoproj.io/applicationsets" => {
            if let Some(object) = object.as_object_mut() {
                object.remove("status");
            }
        }
        "/pods" => {
            for status in object["status"]["containerStatuses"]
                .as_array_mut()
                .into_iter()
                .flatten()
            {
                status["state"] = json!(null);
            }
        }
        _ => {}
    }
    let status = object["status"].as_object_mut();
    if let Some(status) = status {
        status.remove("observedGeneration");
    }
}

/// Every file below a folder, and every empty folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(current) = folders.pop() {
        let entries: Vec<_> = fs::read_dir(&current)
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        if entries.is_empty() && current != folder {
            found.push(format!(
                "{}/",
                current.strip_prefix(folder).unwrap().display()
            ));
        }
        for entry in entries {
            match entry.file_type().is_ok_and(|it| it.is_dir()) {
                true => folders.push(entry.path()),
                false => found.push(
                    entry
                        .path()
                        .strip_prefix(folder)
                        .unwrap()
                        .display()
                        .to_string(),
                ),
            }
        }
    }
    found.sort();
    found
}
