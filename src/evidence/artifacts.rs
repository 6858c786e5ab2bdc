//! The folder that tells why a run failed: what devenv did, what the cluster is like, what those who aren't well said.
//!
//! What can't be had is named in the folder's own README.txt and never fails the command. All of it is masked: without the
//! list of the cluster's Secrets, nothing is written that the API server tells.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::timeout;

use super::Told;
use crate::context::Context;
use crate::docker::{self, Docker, Node, State};
use crate::event::Step;
use crate::existing;
use crate::gitops::{argocd, explain};
use crate::inputs::Inputs;
use crate::kube::{get, label, list, text};
use crate::mask::Mask;
use crate::names::tls;
use crate::{cluster, report, yaml};

/// How long one question may take. All of it together is a matter of seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// The newest lines of a log that are kept.
const LOG_LINES: i64 = 2_000;
const NODE_LINES: &str = "5000";

/// The beginning of the README.txt by which a folder of an earlier run is known.
const HEAD: &str = "devenv ";
/// What it may hold.
const FOLDERS: [&str; 3] = ["manifests", "logs", "nodes"];

/// The folder, while it is filled.
struct Folder<'a> {
    root: &'a Path,
    mask: Mask,
    /// What could not be had, and why.
    lacks: Vec<String>,
}

/// Collects; says how many things could not be had.
pub async fn collect(
    context: &Context,
    inputs: &Inputs,
    root: &Path,
    told: &Told,
    why: &str,
    step: &Step,
) -> anyhow::Result<usize> {
    fs::create_dir_all(root).with_context(|| format!("make the folder {}", root.display()))?;
    forget_earlier(root);
    let mut lacks = Vec::new();
    let mut world = None;
    if context.stop.is_requested() {
        lacks.push("the cluster: a signal asked devenv to stop, so it was not asked".to_owned());
    } else {
        step.waiting("the cluster's secrets, to mask them");
        match connect(context, inputs).await {
            Ok(found) => world = Some(found),
            Err(error) => lacks.push(format!("the nodes and the cluster: {error:#}")),
        }
    }
    let client = world.as_ref().and_then(|(.., client)| client.clone());
    let secrets = match &client {
        Some(client) => within(list(client, "v1", "Secret", None, "")).await,
        None => Ok(Vec::new()),
    };
    let own = own_secrets(context, inputs);
    let mut folder = Folder {
        root,
        mask: Mask::new(secrets.as_deref().unwrap_or_default(), &own)?,
        lacks,
    };
    folder.of_devenv(context, told);
    match &world {
        Some((Some((docker, nodes)), _)) => {
            step.waiting("the nodes' journals");
            folder.of_nodes(docker, nodes).await;
        }
        Some((None, _)) => folder
            .lacks
            .push("the nodes' journals: the nodes aren't devenv's".to_owned()),
        None => {}
    }
    match (&client, &secrets) {
        (Some(client), Ok(_)) => {
            step.waiting("what isn't well in the cluster");
            folder.of_cluster(client).await;
        }
        (Some(_), Err(error)) => folder.lacks.push(format!(
            "the cluster: its secrets can't be listed, so they couldn't be masked: {error:#}"
        )),
        (None, _) if world.is_some() => folder
            .lacks
            .push("the cluster: its API server doesn't answer, or there is none".to_owned()),
        (None, _) => {}
    }
    folder.readme(inputs, told, why);
    Ok(folder.lacks.len())
}

/// What an earlier run left here is not of this one.
fn forget_earlier(root: &Path) {
    let readme = fs::read_to_string(root.join("README.txt")).unwrap_or_default();
    if readme.starts_with(HEAD) {
        for folder in FOLDERS {
            let _ = fs::remove_dir_all(root.join(folder));
        }
    }
}

/// The nodes, where they are devenv's, and the API server, where it answers.
type World = (Option<(Docker, Vec<Node>)>, Option<Client>);

async fn connect(context: &Context, inputs: &Inputs) -> anyhow::Result<World> {
    if inputs.environment.existing.is_some() {
        let client = within(existing::client(context, &inputs.environment)).await?;
        return Ok((None, Some(client)));
    }
    let docker = docker::connect().await?;
    let nodes = cluster::nodes(&docker, &inputs.environment).await?;
    let client = within(cluster::client_if_running(
        &docker,
        &inputs.environment,
        &nodes,
    ))
    .await
    .unwrap_or_default();
    Ok((Some((docker, nodes)), client))
}

async fn within<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    timeout(ANSWER_WITHIN, work)
        .await
        .with_context(|| format!("no answer within {} s", ANSWER_WITHIN.as_secs()))?
}

/// What devenv itself keeps secret on this machine: the CA's key, and the keys in the kubeconfig.
fn own_secrets(context: &Context, inputs: &Inputs) -> Vec<String> {
    let environment = &inputs.environment;
    let certificate = tls::certificate_file(&context.paths, &environment.domain);
    let key = fs::read_to_string(certificate.with_file_name("ca-key.pem"));
    let kubeconfig = fs::read_to_string(context.paths.kubeconfig(&environment.id));
    let in_kubeconfig = kubeconfig.unwrap_or_default();
    let in_kubeconfig = in_kubeconfig.lines().filter_map(|line| {
        let (key, value) = line.trim().split_once(": ")?;
        matches!(key, "client-key-data" | "token" | "password")
            .then(|| value.trim_matches('"').to_owned())
    });
    key.into_iter().chain(in_kubeconfig).collect()
}

impl Folder<'_> {
    fn write(&mut self, path: &str, text: &str) {
        let file = self.root.join(usable_everywhere(path));
        let written = file
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&file, self.mask.over(text)));
        if let Err(error) = written {
            self.lacks.push(format!("{path}: {error}"));
        }
    }

    fn write_or_lack(&mut self, path: &str, text: anyhow::Result<String>) {
        match text {
            Ok(text) => self.write(path, &text),
            Err(error) => self.lacks.push(format!("{path}: {error:#}")),
        }
    }

    fn of_devenv(&mut self, context: &Context, told: &Told) {
        let events = context.events.remembered();
        self.write("events.jsonl", &report::lines(&events));
        self.write("timeline.json", &report::timeline(&events));
        let checks = serde_json::to_string_pretty(&told.checked).map_err(Into::into);
        self.write_or_lack("checks.json", checks);
    }

    async fn of_nodes(&mut self, docker: &Docker, nodes: &[Node]) {
        const LOOKS: [(&str, &[&str]); 5] = [
            (
                "journal.log",
                &["journalctl", "--no-pager", "--lines", NODE_LINES],
            ),
            (
                "kubelet.log",
                &[
                    "journalctl",
                    "--no-pager",
                    "--unit",
                    "kubelet",
                    "--lines",
                    NODE_LINES,
                ],
            ),
            (
                "containerd.log",
                &[
                    "journalctl",
                    "--no-pager",
                    "--unit",
                    "containerd",
                    "--lines",
                    NODE_LINES,
                ],
            ),
            (
                "containers.txt",
                &["ctr", "--namespace", "k8s.io", "tasks", "list"],
            ),
            ("disk.txt", &["df", "-h"]),
        ];
        for node in nodes {
            if node.state != State::Running {
                let state = format!("{:?}", node.state).to_lowercase();
                self.lacks
                    .push(format!("nodes/{}: it is {state}", node.name));
                continue;
            }
            for (file, argv) in LOOKS {
                let look = async {
                    let output = docker.exec_checked(&node.name, argv).await?;
                    anyhow::Ok(String::from_utf8_lossy(&output).into_owned())
                };
                let seen = within(look).await;
                self.write_or_lack(&format!("nodes/{}/{file}", node.name), seen);
            }
        }
    }

    async fn of_cluster(&mut self, client: &Client) {
        let argocd = "argoproj.io/v1alpha1";
        let namespace = Some(argocd::NAMESPACE);
        let sets = within(list(client, argocd, "ApplicationSet", namespace, "")).await;
        let applications = within(list(client, argocd, "Application", namespace, "")).await;
        self.write_or_lack(
            "manifests/applicationsets.yaml",
            sets.map(|sets| manifests(&sets)),
        );
        let failed = applications.as_ref().map(|all| resources_of_failed(all));
        let failed = failed.unwrap_or_default();
        self.write_or_lack(
            "manifests/applications.yaml",
            applications.map(|all| manifests(&all)),
        );
        for resource in failed {
            let Resource {
                application,
                api_version,
                kind,
                namespace,
                name,
            } = resource;
            let path = format!("manifests/{application}/{kind}-{name}.yaml");
            match within(get(client, &api_version, &kind, &namespace, &name)).await {
                Ok(Some(object)) => self.write(&path, &manifests(&[object])),
                Ok(None) => self.lacks.push(format!("{path}: it isn't there")),
                Err(error) => self.lacks.push(format!("{path}: {error:#}")),
            }
        }

        let nodes = within(list(client, "v1", "Node", None, "")).await;
        self.write_or_lack("manifests/nodes.yaml", nodes.map(|nodes| manifests(&nodes)));
        let events = within(list(client, "v1", "Event", None, "")).await;
        self.write_or_lack(
            "cluster-events.txt",
            events.map(|events| told_events(&events)),
        );
        match within(list(client, "v1", "Pod", None, "")).await {
            Ok(pods) => {
                self.write("pods.txt", &told_pods(&pods));
                for pod in worth_reading(&pods) {
                    self.of_pod(client, pod).await;
                }
            }
            Err(error) => self.lacks.push(format!("pods.txt: {error:#}")),
        }
    }

    /// A pod that isn't ready, or wasn't: its manifest, and what its containers say and said before.
    async fn of_pod(&mut self, client: &Client, pod: &Value) {
        let (namespace, name) = (
            text(pod, "/metadata/namespace"),
            text(pod, "/metadata/name"),
        );
        self.write(
            &format!("manifests/pods/{namespace}/{name}.yaml"),
            &manifests(std::slice::from_ref(pod)),
        );
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        for status in statuses(pod) {
            let container = text(status, "/name");
            let has_run = status.pointer("/state/waiting").is_none() || restarts_of(status) > 0;
            for (previous, file) in [(false, "log"), (true, "previous.log")] {
                if !has_run || (previous && restarts_of(status) == 0) {
                    continue;
                }
                let wanted = LogParams {
                    container: Some(container.to_owned()),
                    previous,
                    tail_lines: Some(LOG_LINES),
                    timestamps: true,
                    ..LogParams::default()
                };
                let logged = within(async { Ok(pods.logs(name, &wanted).await?) }).await;
                self.write_or_lack(
                    &format!("logs/{namespace}/{name}/{container}.{file}"),
                    logged,
                );
            }
        }
    }

    fn readme(&mut self, inputs: &Inputs, told: &Told, why: &str) {
        let mut lines = format!(
            "{HEAD}{} {} failed: {why}\n{}\n\n\
             events.jsonl        what devenv did, an event a line\n\
             timeline.json       the same as steps, with when each began and ended\n\
             checks.json         the checks, with what each saw\n\
             manifests/          Argo CD's Applications, and the objects that aren't well\n\
             pods.txt            all pods\n\
             logs/               what the containers say that aren't ready or were started again, or where there are none, all of\n\
             \x20                   the platform; previous.log: before they were started again\n\
             cluster-events.txt  what the cluster noticed, in order\n\
             nodes/              journals of the nodes, of the kubelet and of containerd, containers, disks\n\n",
            told.command,
            inputs.environment.name,
            humantime::format_rfc3339_seconds(SystemTime::now()),
        );
        match self.lacks.as_slice() {
            [] => lines += "All of it could be had.\n",
            lacks => {
                lines += "Could not be had:\n";
                for lack in lacks {
                    lines += &format!("  {}\n", lack.replace('\n', "\n    "));
                }
            }
        }
        lines += &format!(
            "\nMasked as ********: {} secret values, tokens, private keys.\n",
            self.mask.count
        );
        if !self.mask.too_short.is_empty() {
            lines += &format!(
                "Too short to be masked: {}\n",
                self.mask.too_short.join(", ")
            );
        }
        self.write("README.txt", &lines);
    }
}

/// Without what names of objects may hold and those of files in a CI system's archive may not: `system:node` is `system_node`.
fn usable_everywhere(path: &str) -> String {
    path.chars()
        .map(|letter| match letter {
            '"' | ':' | '<' | '>' | '|' | '*' | '?' | '\\' | '\r' | '\n' => '_',
            other => other,
        })
        .collect()
}

/// An object that an Application says isn't well.
struct Resource {
    application: String,
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
}

fn resources_of_failed(applications: &[Value]) -> Vec<Resource> {
    let mut found = Vec::new();
    for application in applications {
        let resources = application
            .pointer("/status/resources")
            .and_then(Value::as_array);
        for resource in resources.into_iter().flatten() {
            let health = text(resource, "/health/status");
            let is_well = text(resource, "/status") == "Synced" && matches!(health, "Healthy" | "");
            if is_well || text(resource, "/kind") == "Secret" {
                continue;
            }
            let api_version = match text(resource, "/group") {
                "" => text(resource, "/version").to_owned(),
                group => format!("{group}/{}", text(resource, "/version")),
            };
            found.push(Resource {
                application: text(application, "/metadata/name").to_owned(),
                api_version,
                kind: text(resource, "/kind").to_owned(),
                namespace: text(resource, "/namespace").to_owned(),
                name: text(resource, "/name").to_owned(),
            });
        }
    }
    found
}

/// As `kubectl get -o yaml` shows them, without who owns which field.
fn manifests(objects: &[Value]) -> String {
    objects
        .iter()
        .map(|object| {
            let mut object = object.clone();
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
            format!("# {}\n{}", label(&object), yaml::to_string(&object))
        })
        .collect::<Vec<_>>()
        .join("---\n")
}

fn told_events(events: &[Value]) -> String {
    let time = |event: &Value| {
        [
            "/lastTimestamp",
            "/eventTime",
            "/metadata/creationTimestamp",
        ]
        .map(|pointer| text(event, pointer).to_owned())
        .into_iter()
        .find(|time| !time.is_empty())
        .unwrap_or_default()
    };
    let mut lines: Vec<String> = events
        .iter()
        .map(|event| {
            format!(
                "{}  {}  {} {}/{}  {}: {}\n",
                time(event),
                text(event, "/type"),
                text(event, "/involvedObject/kind"),
                text(event, "/involvedObject/namespace"),
                text(event, "/involvedObject/name"),
                text(event, "/reason"),
                text(event, "/message").replace('\n', " ")
            )
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// The pods that aren't ready or were started again. Where all are well and something failed all the same, whoever looks for the
/// reason wants to read what they all say.
fn worth_reading(pods: &[Value]) -> Vec<&Value> {
    let unwell: Vec<&Value> = pods
        .iter()
        .filter(|pod| explain::pod(pod).is_some() || restarts(pod) > 0)
        .collect();
    match unwell.is_empty() {
        true => pods
            .iter()
            .filter(|pod| text(pod, "/metadata/namespace") != "kube-system")
            .collect(),
        false => unwell,
    }
}

fn told_pods(pods: &[Value]) -> String {
    pods.iter()
        .map(|pod| {
            format!(
                "{}/{}  {}  {} restarts  {}\n",
                text(pod, "/metadata/namespace"),
                text(pod, "/metadata/name"),
                text(pod, "/status/phase"),
                restarts(pod),
                explain::pod(pod).unwrap_or_else(|| "well".to_owned())
            )
        })
        .collect()
}

fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/status/initContainerStatuses", "/status/containerStatuses"]
        .into_iter()
        .filter_map(|pointer| pod.pointer(pointer).and_then(Value::as_array))
        .flatten()
}

fn restarts(pod: &Value) -> i64 {
    statuses(pod).map(restarts_of).sum()
}

fn restarts_of(status: &Value) -> i64 {
    status
        .get("restartCount")
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server that answers by path, and 404 to all else.
    fn played(answers: Vec<(&'static str, Value)>) -> Client {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let path = request.uri().path().to_owned();
                let query = request.uri().query().unwrap_or_default().to_owned();
                let wanted = match query.contains("previous=true") {
                    true => format!("{path}?previous"),
                    false => path,
                };
                let found = answers.iter().find(|(path, _)| *path == wanted);
                let (status, body) = match found {
                    Some((_, Value::String(text))) => (200, text.clone()),
                    Some((_, value)) => (200, value.to_string()),
                    None => (404, json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"}).to_string()),
                };
                let answer = Response::builder()
                    .status(status)
                    .body(Body::from(body.into_bytes()));
                send.send_response(answer.unwrap());
            }
        });
        Client::new(service, "default")
    }

    fn items(items: Value) -> Value {
        json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})
    }

    #[tokio::test]
    async fn what_is_not_well_is_collected_and_no_secret_is_in_it() {
        const PASSWORD: &str = "s3cr3t/p\"w";
        let encoded = base64::engine::general_purpose::STANDARD.encode(PASSWORD);
        let pod = |name: &str, ready: bool, restarts: i64| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "iam-system", "managedFields": [{"manager": "x"}]},
                "spec": {"containers": [{"name": "keycloak", "env": [{"name": "DB", "value": format!("postgres://app:{PASSWORD}@db")}]}]},
                "status": {
                    "phase": "Running",
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
                    "containerStatuses": [{"name": "keycloak", "ready": ready, "restartCount": restarts, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1}}}],
                },
            })
        };
        let client = played(vec![
            (
                "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications",
                items(json!([{
                    "apiVersion": "argoproj.io/v1alpha1", "kind": "Application",
                    "metadata": {"name": "keycloak", "namespace": "argocd"},
                    "status": {"resources": [
                        {"version": "v1", "kind": "Service", "namespace": "iam-system", "name": "keycloak", "status": "Synced", "health": {"status": "Healthy"}},
                        {"group": "apps", "version": "v1", "kind": "StatefulSet", "namespace": "iam-system", "name": "keycloak", "status": "Synced", "health": {"status": "Degraded"}},
                        {"version": "v1", "kind": "Secret", "namespace": "iam-system", "name": "a", "status": "OutOfSync"},
                    ]},
                }])),
            ),
            (
                "/apis/apps/v1/namespaces/iam-system/statefulsets/keycloak",
                json!({
                    "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "keycloak", "namespace": "iam-system"},
                }),
            ),
            ("/api/v1/nodes", items(json!([]))),
            (
                "/api/v1/events",
                items(json!([
                    {"metadata": {}, "type": "Warning", "lastTimestamp": "2026-01-02T00:00:00Z", "reason": "BackOff", "message": "again", "involvedObject": {"kind": "Pod", "namespace": "iam-system", "name": "keycloak-0"}},
                    {"metadata": {}, "type": "Normal", "eventTime": "2026-01-01T00:00:00Z", "reason": "Pulled", "message": format!("env {encoded}"), "involvedObject": {"kind": "Pod", "namespace": "iam-system", "name": "keycloak-0"}},
                ])),
            ),
            (
                "/api/v1/pods",
                items(json!([
                    pod("keycloak-0", false, 2),
                    pod("keycloak-1", true, 0)
                ])),
            ),
            (
                "/api/v1/namespaces/iam-system/pods/keycloak-0/log",
                json!(format!("now {PASSWORD}\n")),
            ),
            (
                "/api/v1/namespaces/iam-system/pods/keycloak-0/log?previous",
                json!("before s3cr3t%2Fp%22w\n"),
            ),
        ]);
        let secrets =
            [json!({"metadata": {"name": "keycloak-db-app"}, "data": {"password": encoded}})];
        let root = tempfile::tempdir().unwrap();
        let mut folder = Folder {
            root: root.path(),
            mask: Mask::new(&secrets, &[]).unwrap(),
            lacks: Vec::new(),
        };
        folder.of_cluster(&client).await;

        let mut told = String::new();
        let mut folders = vec![root.path().to_owned()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push(path),
                }
            }
        }
        files.sort();
        for file in files {
            let name = file.strip_prefix(root.path()).unwrap().display();
            told += &format!("== {name}\n{}\n", fs::read_to_string(&file).unwrap());
        }
        for form in [PASSWORD, encoded.as_str(), "s3cr3t"] {
            assert!(!told.contains(form), "{told}");
        }
        insta::assert_snapshot!(told, @r#"
        == cluster-events.txt
        2026-01-01T00:00:00Z  Normal  Pod iam-system/keycloak-0  Pulled: env ********
        2026-01-02T00:00:00Z  Warning  Pod iam-system/keycloak-0  BackOff: again

        == logs/iam-system/keycloak-0/keycloak.log
        now ********

        == logs/iam-system/keycloak-0/keycloak.previous.log
        before ********

        == manifests/applications.yaml
        # Application argocd/keycloak
        apiVersion: argoproj.io/v1alpha1
        kind: Application
        metadata:
          name: keycloak
          namespace: argocd
        status:
          resources:
            -
              health:
                status: Healthy
              kind: Service
              name: keycloak
              namespace: iam-system
              status: Synced
              version: v1
            -
              group: apps
              health:
                status: Degraded
              kind: StatefulSet
              name: keycloak
              namespace: iam-system
              status: Synced
              version: v1
            -
              kind: Secret
              name: a
              namespace: iam-system
              status: OutOfSync
              version: v1

        == manifests/keycloak/StatefulSet-keycloak.yaml
        # StatefulSet iam-system/keycloak
        apiVersion: apps/v1
        kind: StatefulSet
        metadata:
          name: keycloak
          namespace: iam-system

        == manifests/nodes.yaml

        == manifests/pods/iam-system/keycloak-0.yaml
        # Pod iam-system/keycloak-0
        apiVersion: v1
        kind: Pod
        metadata:
          name: keycloak-0
          namespace: iam-system
        spec:
          containers:
            -
              env:
                -
                  name: DB
                  value: "postgres://app:********@db"
              name: keycloak
        status:
          conditions:
            -
              status: "False"
              type: Ready
          containerStatuses:
            -
              lastState:
                terminated:
                  exitCode: 1
              name: keycloak
              ready: false
              restartCount: 2
              state:
                running: {}
          phase: Running

        == pods.txt
        iam-system/keycloak-0  Running  2 restarts  pod keycloak-0: container keycloak ended 2 times, last with exit code 1
        iam-system/keycloak-1  Running  0 restarts  well
        "#);
        insta::assert_debug_snapshot!(folder.lacks, @r#"
        [
            "manifests/applicationsets.yaml: list applicationsets: not found",
        ]
        "#);
    }
}
