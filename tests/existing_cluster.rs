//! `provider: existing`, for real: on a cluster of two nodes that kind made by itself, of which devenv knows nothing but the
//! context. The test plays what such a cluster has around it: a private registry that its nodes pull from, and a load balancer.
//!
//! Shown by it: what is in the cluster afterwards is what was in it before, object by object.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::e2e::{load_node_image, output, program};

/// What is called so is this test's.
const CLUSTER: &str = "devenv-existing-e2e";
const CONTROL_PLANE: &str = "devenv-existing-e2e-control-plane";
const WORKER: &str = "devenv-existing-e2e-worker";
const CONTEXT: &str = "kind-devenv-existing-e2e";
const NODE_IMAGE: &str = "packages.devenv.test/node:1.34.4";
const NAME: &str = "door.existing.test";
/// The part of Docker's network for kind that is this machine.
const GATEWAY: &str = "{{range .IPAM.Config}}{{.Gateway}} {{end}}";

const KIND_CONFIG: &str = r#"kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking: {apiServerAddress: "127.0.0.1"}
containerdConfigPatches:
  - |-
    [plugins."io.containerd.cri.v1.images".registry]
      config_path = "/etc/containerd/certs.d"
nodes:
  - role: control-plane
  - role: worker
"#;

/// One bundle with a name that leads through the cluster's load balancer; and a definition, which Argo CD never deletes.
const DOOR: &str = r#"apiVersion: v1
kind: Namespace
metadata: {name: istio-ingress}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: virtualservices.networking.istio.io}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {kind: VirtualService, plural: virtualservices, singular: virtualservice}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: door, namespace: istio-ingress}
spec: {hosts: [door.existing.test]}
---
apiVersion: v1
kind: Service
metadata: {name: istio-ingressgateway, namespace: istio-ingress}
spec:
  type: LoadBalancer
  selector: {app: door}
  ports: [{name: http, port: 9428, targetPort: 9428}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: door, namespace: istio-ingress}
spec:
  selector: {matchLabels: {app: door}}
  template:
    metadata: {labels: {app: door}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: door
          image: docker.io/victoriametrics/victoria-logs:v1.52.1
          args: [-storageDataPath=/data]
          readinessProbe: {httpGet: {path: /health, port: 9428}, periodSeconds: 1}
          volumeMounts: [{name: data, mountPath: /data}]
      volumes:
        - {name: data, persistentVolumeClaim: {claimName: door}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: door, namespace: istio-ingress}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
"#;

/// The cluster that is there already; gone when dropped.
struct Cluster {
    folder: tempfile::TempDir,
}

impl Cluster {
    /// Made by kind, with a config of its own.
    fn make() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("devenv-existing-")
            .tempdir()
            .unwrap();
        let cluster = Self { folder };
        cluster.remove();
        fs::write(cluster.path("kind.yaml"), KIND_CONFIG).unwrap();
        cluster.kind(&[
            "create",
            "cluster",
            "--name",
            CLUSTER,
            "--image",
            NODE_IMAGE,
            "--wait",
            "180s",
            "--config",
            &cluster.path("kind.yaml").display().to_string(),
        ]);
        cluster.connect_nodes();
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn kind(&self, args: &[&str]) {
        let kind = which::which("kind").unwrap_or_else(|_| {
            let paths = devenv::paths::Paths::from_process().unwrap();
            paths.tools().join("kind")
        });
        let ran = program(&kind.display().to_string())
            .args(args)
            .env("KUBECONFIG", self.path("kubeconfig"))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "kind {}: {told}", args.join(" "));
    }

    /// The node image's own network knows one node; a second one has the next subnet, and each a way to the other.
    fn connect_nodes(&self) {
        let address = |node: &str| {
            let format = "{{.NetworkSettings.Networks.kind.IPAddress}}";
            output("docker", &["inspect", node, "--format", format])
                .trim()
                .to_owned()
        };
        let subnet = self.kubectl(&["get", "node", WORKER, "-o", "jsonpath={.spec.podCIDR}"]);
        let edit = format!("s|10.244.0.0/24|{subnet}|");
        inside(
            WORKER,
            &["sed", "-i", &edit, "/etc/cni/net.d/10-ptp.conflist"],
        );
        inside(
            WORKER,
            &[
                "ip",
                "route",
                "replace",
                "10.244.0.0/24",
                "via",
                &address(CONTROL_PLANE),
            ],
        );
        inside(
            CONTROL_PLANE,
            &["ip", "route", "replace", &subnet, "via", &address(WORKER)],
        );
    }

    /// `localhost:PORT` in a node leads to the registry on this machine: the way that kind's own documentation shows.
    fn knows_registry(&self, registry: &Registry) {
        let folder = format!("/etc/containerd/certs.d/localhost:{}", registry.port);
        let file = format!("[host.\"http://{}:{}\"]\n", registry.address, registry.port);
        for node in [CONTROL_PLANE, WORKER] {
            let write = format!("mkdir -p {folder} && printf '%s' '{file}' > {folder}/hosts.toml");
            inside(node, &["sh", "-c", &write]);
        }
    }

    fn kubectl(&self, args: &[&str]) -> String {
        kubectl(args)
    }

    /// Every object that somebody made or set, by kind and name, without what the cluster keeps account of by itself.
    fn objects(&self) -> BTreeMap<String, Value> {
        let kinds = self.kubectl(&["api-resources", "--verbs=list,get", "--output=name"]);
        let kinds: Vec<&str> = kinds
            .lines()
            // Events tell what has happened; leases are renewed every few seconds by whoever holds them.
            .filter(|kind| !kind.starts_with("events") && *kind != "leases.coordination.k8s.io")
            // No objects, but a view of the control plane's health.
            .filter(|kind| *kind != "componentstatuses")
            .collect();
        let listed = self.kubectl(&["get", &kinds.join(","), "--all-namespaces", "-o", "json"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let mut objects = BTreeMap::new();
        for mut object in listed["items"].as_array().unwrap().clone() {
            let text = |pointer: &str| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or("")
            };
            let name = format!(
                "{} {}/{}",
                text("/kind"),
                text("/metadata/namespace"),
                text("/metadata/name")
            );
            // What the cluster observes of an object, at its own times: heartbeats, conditions, addresses.
            object.as_object_mut().unwrap().remove("status");
            let metadata = object["metadata"].as_object_mut().unwrap();
            // Goes up with each write, those of the status included; and by whom and when these were.
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
            if text_of(
                metadata.get("annotations"),
                "endpoints.kubernetes.io/last-change-trigger-time",
            ) {
                // When the endpoints of a Service last changed: a pod's readiness, no more.
                metadata["annotations"]
                    .as_object_mut()
                    .unwrap()
                    .remove("endpoints.kubernetes.io/last-change-trigger-time");
            }
            objects.insert(name, object);
        }
        objects
    }

    fn remove(&self) {
        self.kind(&["delete", "cluster", "--name", CLUSTER]);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.remove();
    }
}

fn text_of(annotations: Option<&Value>, key: &str) -> bool {
    annotations.is_some_and(|annotations| annotations.get(key).is_some())
}

fn inside(node: &str, command: &[&str]) -> String {
    output("docker", &[&["exec", node], command].concat())
}

/// kubectl of the control plane itself: another program than the one that is tested.
fn kubectl(args: &[&str]) -> String {
    let kubectl = ["kubectl", "--kubeconfig", "/etc/kubernetes/admin.conf"];
    inside(CONTROL_PLANE, &[&kubectl, args].concat())
}

/// How two states differ, a line for each object.
fn differences(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> Vec<String> {
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    let gone = gone.map(|name| format!("gone: {name}"));
    let other = after
        .iter()
        .filter_map(|(name, object)| match before.get(name) {
            None => Some(format!("left: {name}")),
            Some(was) if was != object => Some(format!("changed: {name}\n  {was}\n  {object}")),
            Some(_) => None,
        });
    gone.chain(other).collect()
}

/// A registry on this machine that takes pushes and serves pulls, on loopback and where the nodes reach it.
struct Registry {
    address: String,
    port: u16,
    folder: Arc<tempfile::TempDir>,
}

impl Registry {
    fn start() -> Self {
        let addresses = output(
            "docker",
            &["network", "inspect", "kind", "--format", GATEWAY],
        );
        let address = addresses
            .split_whitespace()
            .find(|address| address.contains('.'))
            .unwrap()
            .to_owned();
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = here.local_addr().unwrap().port();
        let for_nodes = TcpListener::bind((address.as_str(), port)).unwrap();
        for listener in [here, for_nodes] {
            let folder = Arc::clone(&folder);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let folder = Arc::clone(&folder);
                    // A client that goes away in the middle is its own affair.
                    std::thread::spawn(move || {
                        drop(answer(&folder.path().join("."), stream, port));
                    });
                }
            });
        }
        Self {
            address,
            port,
            folder,
        }
    }

    /// The names of all images, with their tags.
    fn images(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("manifest ") && !name.contains("sha256:"))
            .map(|name| name.trim_start_matches("manifest ").replace('%', "/"))
            .collect();
        names.sort();
        names
    }
}

/// Serves one request of the distribution protocol.
fn answer(folder: &Path, stream: TcpStream, port: u16) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut words = request.split_whitespace();
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (mut length, mut kind) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap_or(0),
            "content-type" => value.clone_into(&mut kind),
            _ => {}
        }
    }
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path = path.trim_start_matches("/v2/");
    let send = |status: &str, headers: &str, body: &[u8]| {
        let length = match headers.contains("Content-Length") {
            true => String::new(),
            false => format!("Content-Length: {}\r\n", body.len()),
        };
        let mut stream = &stream;
        write!(
            stream,
            "HTTP/1.1 {status}\r\nConnection: close\r\n{length}{headers}\r\n"
        )?;
        stream.write_all(body)
    };
    if let Some((name, _)) = path.split_once("/blobs/uploads/") {
        let location = format!("Location: http://localhost:{port}/v2/{name}/blobs/uploads/1\r\n");
        if method == "POST" {
            return send("202 Accepted", &location, b"");
        }
        let digest = query
            .split('&')
            .find_map(|part| part.strip_prefix("digest="))
            .unwrap_or("");
        let digest = digest.replace("%3A", ":");
        let scratch = tempfile::NamedTempFile::new_in(folder)?;
        let mut hash = Sha256::new();
        let mut left = length;
        let mut chunk = vec![0; 1 << 20];
        while left > 0 {
            let count = reader.read(&mut chunk[..left.min(1 << 20)])?;
            if count == 0 {
                return Ok(());
            }
            hash.update(&chunk[..count]);
            scratch.as_file().write_all(&chunk[..count])?;
            left -= count;
        }
        if digest != hex(&hash.finalize()) {
            return send(
                "400 Bad Request",
                "",
                b"{\"errors\":[{\"code\":\"DIGEST_INVALID\"}]}",
            );
        }
        scratch.persist(folder.join(&digest))?;
        return send("201 Created", &location, b"");
    }
    if let Some((_, digest)) = path.split_once("/blobs/") {
        return match fs::File::open(folder.join(digest)) {
            Ok(mut blob) => {
                let length = format!("Content-Length: {}\r\n", blob.metadata()?.len());
                send("200 OK", &length, b"")?;
                if method == "GET" {
                    std::io::copy(&mut blob, &mut &stream)?;
                }
                Ok(())
            }
            Err(_) => send("404 Not Found", "", b""),
        };
    }
    if let Some((name, tag)) = path.split_once("/manifests/") {
        let file = |tag: &str| folder.join(format!("manifest {}:{tag}", name.replace('/', "%")));
        if method == "PUT" {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let digest = hex(&Sha256::digest(&body));
            let record =
                json!({"kind": kind, "digest": digest, "body": String::from_utf8_lossy(&body)});
            for tag in [tag, &digest] {
                fs::write(file(tag), record.to_string())?;
            }
            let location = format!(
                "Location: /v2/{name}/manifests/{digest}\r\nDocker-Content-Digest: {digest}\r\n"
            );
            return send("201 Created", &location, b"");
        }
        let Ok(record) = fs::read_to_string(file(tag)) else {
            return send(
                "404 Not Found",
                "Content-Type: application/json\r\n",
                b"{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\",\"message\":\"manifest unknown\"}]}",
            );
        };
        let record: Value = serde_json::from_str(&record)?;
        let text = |key: &str| record[key].as_str().unwrap_or("").to_owned();
        let body = text("body");
        let headers = format!(
            "Content-Type: {}\r\nDocker-Content-Digest: {}\r\nContent-Length: {}\r\n",
            text("kind"),
            text("digest"),
            body.len()
        );
        return send(
            "200 OK",
            &headers,
            if method == "HEAD" {
                b""
            } else {
                body.as_bytes()
            },
        );
    }
    send("200 OK", "", b"{}")
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The cloud's load balancer: gives every Service that wants one the address of a node.
struct Balancer(Arc<AtomicBool>);

impl Balancer {
    fn start(address: String) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        std::thread::spawn(move || {
            let wanted = "jsonpath={range .items[?(@.spec.type==\"LoadBalancer\")]}{.metadata.namespace} {.metadata.name} \
                          {.status.loadBalancer.ingress[0].ip}{\"\\n\"}{end}";
            let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}});
            while !ends.load(Ordering::Relaxed) {
                let list = [
                    "exec",
                    CONTROL_PLANE,
                    "kubectl",
                    "--kubeconfig",
                    "/etc/kubernetes/admin.conf",
                ];
                let ask = [&list[..], &["get", "services", "-A", "-o", wanted]].concat();
                let listed = program("docker").args(ask).output().unwrap();
                for line in String::from_utf8_lossy(&listed.stdout).lines() {
                    if let [namespace, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
                        let patch = status.to_string();
                        let give = [
                            "patch",
                            "service",
                            "-n",
                            namespace,
                            name,
                            "--subresource=status",
                            "--type=merge",
                            "-p",
                            &patch,
                        ];
                        let _ = program("docker").args([&list[..], &give].concat()).output();
                    }
                }
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Self(over)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The project, and devenv in it, without a Docker that it could reach.
struct Project<'a> {
    cluster: &'a Cluster,
}

struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Project<'_> {
    fn write(&self, path: &str, text: &str) {
        let path = self.cluster.path("project").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn make(&self, registry: &Registry) {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let packages =
            fs::read_to_string(repository.join("cluster-configs/packages.yaml")).unwrap();
        let kept: Vec<&str> = packages
            .lines()
            .skip_while(|line| !line.starts_with("image-names:"))
            .collect();
        let environment = format!(
            "provider: existing\ncontext: {CONTEXT}\nkubeconfig: ../../kubeconfig\nregistry: localhost:{}/e2e\n\
             images: packages\noverlays: [packages, dev]\ndomain: existing.test\n{}\n",
            registry.port,
            kept.join("\n")
        );
        self.write("cluster-configs/there.yaml", &environment);
        for folder in ["bundles/environment", "bundles/infrastructure/namespaces"] {
            copy(
                &repository.join(folder),
                &self.cluster.path("project").join(folder),
            );
        }
        copy(
            &repository.join("tests/small/bundles"),
            &self.cluster.path("project/bundles"),
        );
        // One that makes no namespace that another makes.
        let namespaces = "bundles/infrastructure/namespaces/base/namespaces.yaml";
        let text = fs::read_to_string(repository.join(namespaces)).unwrap();
        let others: Vec<&str> = text
            .split("---\n")
            .filter(|document| !document.contains("name: istio-ingress"))
            .collect();
        self.write(namespaces, &others.join("---\n"));
        let bundle = "wave: 4\nnamespace: istio-ingress\nneeds: [namespaces]\n\
                      images: [docker.io/victoriametrics/victoria-logs:v1.52.1]\n";
        self.write("bundles/infrastructure/door/bundle.yaml", bundle);
        self.write("bundles/infrastructure/door/base/door.yaml", DOOR);
        self.write(
            "bundles/infrastructure/door/base/kustomization.yaml",
            "resources: [door.yaml]\ncomponents: [../../../environment]\n",
        );
        std::os::unix::fs::symlink(
            repository.join("scripts"),
            self.cluster.path("project/scripts"),
        )
        .unwrap();
        fs::create_dir_all(self.cluster.path("run")).unwrap();
    }

    #[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
    fn run(&self, args: &[&str]) -> Ran {
        let began = Instant::now();
        let child: Child = program(env!("CARGO_BIN_EXE_devenv"))
            .args(args)
            .current_dir(self.cluster.path("project"))
            .env("DEVENV_ENVIRONMENT", "there")
            .env("XDG_DATA_HOME", self.cluster.path("data"))
            .env("XDG_RUNTIME_DIR", self.cluster.path("run"))
            .env("DOCKER_HOST", "unix:///nowhere/docker.sock")
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ran = Ran {
            status: ended.status.code().unwrap_or(-1),
            stdout: text(&ended.stdout),
            stderr: text(&ended.stderr),
        };
        eprintln!(
            "devenv {}: {} after {:.1} s\n{}{}",
            args.join(" "),
            ran.status,
            began.elapsed().as_secs_f32(),
            ran.stdout,
            ran.stderr
        );
        ran
    }

    /// A run that must end well; its last word.
    fn succeed(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.status, 0, "devenv {}", args.join(" "));
        let last = ran.stderr.lines().rfind(|line| !line.trim().is_empty());
        let revision = regex::Regex::new(" at [0-9a-f]{7}").unwrap();
        revision
            .replace(last.unwrap_or_default(), " at <revision>")
            .into_owned()
    }
}

impl Drop for Project<'_> {
    /// The cluster goes anyhow; names that a test has left behind when it failed wouldn't.
    fn drop(&mut self) {
        self.run(&["hosts", "remove", "--quiet"]);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let place = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &place),
            false => drop(fs::copy(entry.path(), place).unwrap()),
        }
    }
}

/// The lines of this machine's hosts file that have the test's name.
fn names_here() -> Vec<String> {
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    let lines = hosts.lines().filter(|line| line.ends_with(NAME));
    lines.map(str::to_owned).collect()
}

#[test]
#[ignore = "takes a real Docker"]
fn e2e_existing_cluster_is_afterwards_what_it_was_before() {
    load_node_image("packages", NODE_IMAGE);
    let cluster = Cluster::make();
    let registry = Registry::start();
    cluster.knows_registry(&registry);
    let format = "{{.NetworkSettings.Networks.kind.IPAddress}}";
    let worker = output("docker", &["inspect", WORKER, "--format", format])
        .trim()
        .to_owned();
    let _balancer = Balancer::start(worker.clone());
    let project = Project { cluster: &cluster };
    project.make(&registry);
    kubectl(&[
        "-n",
        "kube-system",
        "wait",
        "--for=condition=Ready",
        "pods",
        "--all",
        "--timeout=180s",
    ]);
    let theirs = fs::read(cluster.path("kubeconfig")).unwrap();
    let names = names_here();
    let before = cluster.objects();
    assert!(before.len() > 100, "{}", before.len());

    // Nothing is begun that can't be finished.
    let ran = project.run(&["up", "--yes"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr
            .contains("error: the registry lacks images: localhost:"),
        "{}",
        ran.stderr
    );
    let plan = project.run(&["up", "--plan"]);
    assert_eq!(plan.status, 0);
    assert!(
        plan.stdout
            .contains("create argocd, cnpg-system, iam-system, istio-ingress"),
        "{}",
        plan.stdout
    );
    assert!(
        plan.stdout.contains("volumes of the class standard"),
        "{}",
        plan.stdout
    );
    assert_eq!(differences(&before, &cluster.objects()), [""; 0]);

    // The registry is filled from the store, once.
    let pushed = project.succeed(&["images", "push"]);
    assert!(pushed.contains("has all 3 images: 3 copied"), "{pushed}");
    let place = "e2e/packages.devenv.test";
    assert_eq!(
        registry.images(),
        ["argocd:3.2.11", "redis:7.0", "victoria-logs:1.52.1"]
            .map(|name| format!("{place}/{name}"))
    );
    let pushed = project.succeed(&["images", "push"]);
    assert!(pushed.contains("nothing to push: localhost:"), "{pushed}");

    // Nobody to ask, and no yes: nothing is begun.
    let ran = project.run(&["up"]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.stderr.contains("there is nobody to ask"),
        "{}",
        ran.stderr
    );
    assert_eq!(differences(&before, &cluster.objects()), [""; 0]);
    let ready = project.succeed(&["up", "--yes"]);
    assert!(
        ready.starts_with("ready: 3 of 3 applications healthy at <revision>; checks: "),
        "{ready}"
    );
    // Through the name, the load balancer, and into the pod.
    let address = format!("http://{NAME}:9428/health");
    let ask = [
        "--silent",
        "--show-error",
        "--max-time",
        "3",
        "--noproxy",
        "*",
        &address,
    ];
    let deadline = Instant::now() + Duration::from_secs(20);
    let health = loop {
        let asked = program("curl").args(ask).output().unwrap();
        if asked.status.success() || Instant::now() > deadline {
            break asked;
        }
    };
    let told = String::from_utf8_lossy(&health.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&health.stdout), "OK", "{told}");
    let entry = format!("{worker} {NAME}\n");
    assert!(fs::read_to_string("/etc/hosts").unwrap().contains(&entry));
    let runs = kubectl(&[
        "-n",
        "argocd",
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].spec.containers[*].image}",
    ]);
    assert!(
        runs.split_whitespace()
            .all(|image| image.starts_with("localhost:")),
        "{runs}"
    );
    // The git source is for Argo CD alone.
    let policy = kubectl(&[
        "-n",
        "argocd",
        "get",
        "networkpolicy",
        "git-source",
        "-o",
        "jsonpath={.spec.policyTypes}",
    ]);
    assert_eq!(policy, "[\"Ingress\"]");

    let again = project.succeed(&["up"]);
    assert!(again.starts_with("nothing to change: 3 of 3"), "{again}");
    let plan = project.run(&["up", "--plan"]);
    assert!(
        plan.stdout
            .contains("argo cd       keep: 3 applications at "),
        "{}",
        plan.stdout
    );
    let checked = project.run(&["check"]);
    assert_eq!(checked.status, 0);
    assert!(
        checked.stdout.contains("excluded   nothing pulled"),
        "{}",
        checked.stdout
    );
    let status: Value =
        serde_json::from_str(&project.run(&["status", "-o", "json"]).stdout).unwrap();
    assert_eq!(status["cluster"]["provider"], "existing");
    assert_eq!(status["cluster"]["nodes"], json!([CONTROL_PLANE, WORKER]));
    assert_eq!(status["ready"], true);
    let listed = project.run(&["list"]);
    assert!(
        listed.stdout.contains("there        existing  running"),
        "{}",
        listed.stdout
    );

    let logs = "bundles/observability/victorialogs/base/victoria-logs.yaml";
    let text = fs::read_to_string(cluster.path("project").join(logs)).unwrap();
    project.write(
        logs,
        &text.replace("-retentionPeriod=7d", "-retentionPeriod=6d"),
    );
    let synced = project.succeed(&["sync"]);
    assert!(
        synced.starts_with("applied: 3 of 3 applications healthy"),
        "{synced}"
    );

    let down = project.succeed(&["down"]);
    assert_eq!(down, "there is gone");
    let deadline = Instant::now() + Duration::from_secs(60);
    let left = loop {
        // Addresses of Services are given back a moment after the Services are gone.
        let left = differences(&before, &cluster.objects());
        if left.is_empty() || Instant::now() > deadline {
            break left;
        }
        std::thread::sleep(Duration::from_secs(2));
    };
    assert_eq!(left, [""; 0]);
    assert_eq!(names_here(), names);
    assert_eq!(fs::read(cluster.path("kubeconfig")).unwrap(), theirs);
    let environments = fs::read_dir(cluster.path("data/devenv/environments")).unwrap();
    assert_eq!(environments.count(), 0);
    assert_eq!(
        project.succeed(&["down"]),
        "nothing to remove: there isn't there"
    );
}
