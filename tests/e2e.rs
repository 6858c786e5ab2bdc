//! The real thing: real Docker, a real cluster of kind or k3d, a real Argo CD, on images that were built from packages.
//!
//! Each test makes a project of its own (the repository's bundles and configs, on ports of its own) and takes down what it
//! made. They take minutes, so they are ignored by default; `scripts/test` runs them, one after the other.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::browser::Browser;
use crate::harness::wait_for;
use crate::second_docker::SecondDocker;

/// The cluster of kind, and its node.
pub(crate) const CLUSTER: &str = "devenv-e2e";
pub(crate) const NODE: &str = "devenv-e2e-control-plane";

/// The providers that make clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Provider {
    Kind,
    K3d,
}

impl std::fmt::Display for Provider {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Kind => "kind",
            Self::K3d => "k3d",
        })
    }
}

/// A project in a temporary folder, with an environment that is brought up for real.
pub(crate) struct Road {
    pub(crate) folder: tempfile::TempDir,
    provider: Provider,
    /// Where it isn't the machine's own.
    pub(crate) docker: Option<SecondDocker>,
}

/// What a run of devenv left.
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Road {
    /// With the whole platform of the repository.
    pub(crate) fn platform(provider: Provider) -> Self {
        let road = Self::new(provider);
        copy(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles"),
            &road.project("bundles"),
        );
        road
    }

    /// With two bundles in two waves, for what doesn't need the whole platform: its namespaces, and one thing that runs.
    pub(crate) fn small(provider: Provider) -> Self {
        let road = Self::new(provider);
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        for folder in ["bundles/environment", "bundles/infrastructure/namespaces"] {
            copy(&repository.join(folder), &road.project(folder));
        }
        copy(
            &repository.join("tests/small/bundles"),
            &road.project("bundles"),
        );
        let environment = format!("cluster-configs/{}.yaml", road.name());
        let text = fs::read_to_string(road.project(&environment)).unwrap();
        let kept = text.lines().filter(|line| !line.starts_with("exclude:"));
        road.write(&environment, &kept.collect::<Vec<_>>().join("\n"));
        road
    }

    fn new(provider: Provider) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("devenv-e2e-")
            .tempdir()
            .unwrap();
        let road = Self {
            folder,
            provider,
            docker: None,
        };
        fs::create_dir_all(road.folder.path().join("run")).unwrap();
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read =
            |name: &str| fs::read_to_string(repository.join("cluster-configs").join(name)).unwrap();
        let (http, https) = (free_port(), free_port());
        let (environment, config) = match provider {
            Provider::Kind => (
                "packages.yaml",
                read("kind.yaml")
                    .replace("hostPort: 80\n", &format!("hostPort: {http}\n"))
                    .replace("hostPort: 443\n", &format!("hostPort: {https}\n")),
            ),
            Provider::K3d => (
                "packages-k3d.yaml",
                read("k3d.yaml")
                    .replace("127.0.0.1:80:80", &format!("127.0.0.1:{http}:80"))
                    .replace("127.0.0.1:443:443", &format!("127.0.0.1:{https}:443")),
            ),
        };
        road.write(&format!("cluster-configs/{provider}.yaml"), &config);
        let file = format!("cluster-configs/{}.yaml", road.name());
        road.write(&file, &read(environment));
        std::os::unix::fs::symlink(repository.join("scripts"), road.project("scripts")).unwrap();
        road
    }

    /// The environment's name, and so a part of the cluster's: with another provider it is another.
    pub(crate) fn name(&self) -> &'static str {
        match self.provider {
            Provider::Kind => "e2e",
            Provider::K3d => "e2e-k3d",
        }
    }

    /// The name of the container that is its node.
    pub(crate) fn node(&self) -> &'static str {
        match self.provider {
            Provider::Kind => NODE,
            Provider::K3d => "k3d-devenv-e2e-k3d-server-0",
        }
    }

    /// The image of its node.
    pub(crate) fn node_image(&self) -> &'static str {
        match self.provider {
            Provider::Kind => "packages.devenv.test/node:1.34.4",
            Provider::K3d => "packages.devenv.test/k3s-compatible:1.34.4",
        }
    }

    /// The labels that the provider puts on a cluster's containers, and on one that is a worker.
    pub(crate) fn labels_of_worker(&self) -> [String; 2] {
        let role = match self.provider {
            Provider::Kind => "io.x-k8s.kind.role=worker",
            Provider::K3d => "k3d.role=agent",
        };
        [self.label(), role.to_owned()]
    }

    /// What makes one more container the environment's own, as an option of `docker run` and its value.
    pub(crate) fn marks_as_ours(&self) -> [String; 2] {
        let ask = |format: &str| self.docker(&["inspect", self.node(), "--format", format]);
        match self.provider {
            Provider::Kind => {
                let mounts = ask("{{range .Mounts}}{{.Source}}:{{.Destination}}:ro\n{{end}}");
                let mark = mounts.lines().find(|line| line.contains(":/devenv/"));
                ["--volume".to_owned(), mark.unwrap().to_owned()]
            }
            Provider::K3d => {
                let id = ask("{{index .Config.Labels \"devenv.environment\"}}");
                let label = format!("devenv.environment={}", id.trim());
                ["--label".to_owned(), label]
            }
        }
    }

    /// The ConfigMap and its key from which CoreDNS has the platform's names, and that value without them.
    pub(crate) fn names_in_coredns(&self) -> (&'static str, &'static str, String) {
        if self.provider == Provider::K3d {
            return ("coredns-custom", "devenv.override", String::new());
        }
        let ask = ["get", "configmap", "coredns", "-n", "kube-system"];
        let corefile = self.kubectl(&[&ask[..], &["-o", "jsonpath={.data.Corefile}"]].concat());
        let (before, rest) = corefile.split_once("    # BEGIN devenv").unwrap();
        let (_, after) = rest.split_once("# END devenv\n").unwrap();
        ("coredns", "Corefile", format!("{before}{after}"))
    }

    /// The label that the provider puts on the cluster's containers.
    pub(crate) fn label(&self) -> String {
        match self.provider {
            Provider::Kind => format!("io.x-k8s.kind.cluster={CLUSTER}"),
            Provider::K3d => format!("k3d.cluster=devenv-{}", self.name()),
        }
    }

    /// A program on the machine of its Docker.
    fn program(&self, name: &str) -> Command {
        match &self.docker {
            Some(docker) => docker.program(name, &self.project(".")),
            None => program(name),
        }
    }

    pub(crate) fn docker(&self, args: &[&str]) -> String {
        match &self.docker {
            Some(docker) => docker.output("docker", args),
            None => output("docker", args),
        }
    }

    /// What Docker says, or nothing where it fails.
    pub(crate) fn try_docker(&self, args: &[&str]) -> Option<String> {
        let ran = self.program("docker").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        ran.status.success().then_some(said)
    }

    /// How docker is asked for kubectl of the node itself: another program than the one that is tested.
    fn kubectl_inside(&self) -> Vec<&'static str> {
        let kubectl = ["exec", "--interactive", self.node(), "kubectl"];
        let config: &[&str] = match self.provider {
            Provider::Kind => &["--kubeconfig", "/etc/kubernetes/admin.conf"],
            Provider::K3d => &[],
        };
        [&kubectl, config].concat()
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.docker(&[&self.kubectl_inside(), args].concat())
    }

    /// kubectl that goes on by itself.
    pub(crate) fn kubectl_starts(&self, args: &[&str]) -> Child {
        let mut command = self.program("docker");
        command
            .args(self.kubectl_inside())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// kubectl that is given this to read.
    pub(crate) fn kubectl_reads(&self, args: &[&str], manifest: &str) -> Ran {
        let mut child = self.kubectl_starts(args);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(manifest.as_bytes()).unwrap();
        drop(stdin);
        ended(child)
    }

    /// The cluster's containers, stopped ones too.
    pub(crate) fn containers(&self) -> Vec<String> {
        let label = format!("label={}", self.label());
        let list = ["ps", "--all", "--filter", &label, "--format", "{{.Names}}"];
        lines(&self.docker(&list))
    }

    /// The volumes of its containers.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let names = "{{range .Mounts}}{{if eq .Type \"volume\"}}{{.Name}}\n{{end}}{{end}}";
        let containers = self.containers();
        let inspected = containers.iter().map(|container| {
            let ask = ["inspect", container, "--format", names];
            // One that Docker was just making when it was asked to stop is gone a moment later.
            self.try_docker(&ask).unwrap_or_default()
        });
        let mut volumes = lines(&inspected.collect::<String>());
        volumes.retain(|volume| !volume.is_empty());
        volumes
    }

    /// What is left in Docker of a cluster that is down and had these volumes.
    pub(crate) fn left(&self, volumes: &[String]) -> Vec<String> {
        let network = format!("k3d-devenv-{}", self.name());
        let own = [network.clone(), format!("{network}-images")];
        let mut there = self.containers();
        for kind in ["volume", "network"] {
            let names = self.docker(&[kind, "ls", "--format", "{{.Name}}"]);
            there.extend(lines(&names));
        }
        there.retain(|name| name == self.node() || volumes.contains(name) || own.contains(name));
        there
    }

    /// What the provider's program still does.
    pub(crate) fn processes(&self) -> Vec<String> {
        let folder = self.folder.path().display().to_string();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let commands =
            processes.filter_map(|process| fs::read_to_string(process.path().join("cmdline")).ok());
        commands
            .filter(|command| command.contains("\0create\0") && command.contains(&folder))
            .collect()
    }

    /// Where devenv keeps what it knows of environments.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data/devenv")
    }

    pub(crate) fn project(&self, path: &str) -> PathBuf {
        self.folder.path().join("project").join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.project(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn edit(&self, path: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.project(path)).unwrap();
        assert!(text.contains(from), "{path} doesn't contain {from}");
        self.write(path, &text.replace(from, to));
    }

    /// devenv with the machine's own cache (it holds the store) and everything else in the temporary folder.
    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program(env!("CARGO_BIN_EXE_devenv"));
        command
            .args(args)
            .current_dir(self.project("."))
            .env("DEVENV_ENVIRONMENT", self.name())
            .env("XDG_DATA_HOME", self.folder.path().join("data"))
            .env("XDG_RUNTIME_DIR", self.folder.path().join("run"))
            .env_remove("KUBECONFIG");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    #[expect(clippy::print_stderr, reason = "minutes go by, and somebody watches")]
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        let began = Instant::now();
        let ran = ended(self.start(args));
        eprintln!(
            "devenv {}: {} after {:.1} s",
            args.join(" "),
            ran.status,
            began.elapsed().as_secs_f32()
        );
        ran
    }

    /// A run that must end well; its last word.
    pub(crate) fn succeed(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(
            ran.status,
            0,
            "devenv {} failed\n{}\n{}",
            args.join(" "),
            ran.stdout,
            ran.stderr
        );
        ran.last_word()
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.run(&["status", "-o", "json"]).stdout).unwrap()
    }

    /// The port of this machine that leads to a port of the node.
    pub(crate) fn port_of(&self, node_port: u16) -> u16 {
        let file = format!("cluster-configs/{}.yaml", self.provider);
        let text = fs::read_to_string(self.project(&file)).unwrap();
        let ending = format!(":{node_port}\"");
        let number = match self.provider {
            Provider::Kind => {
                let (before, _) = text
                    .split_once(&format!("containerPort: {node_port}\n"))
                    .unwrap();
                let (_, number) = before.rsplit_once("hostPort: ").unwrap();
                number.lines().next().unwrap()
            }
            Provider::K3d => {
                let (before, _) = text.split_once(&ending).unwrap();
                before.rsplit_once(':').unwrap().1
            }
        };
        number.parse().unwrap()
    }

    /// Whether each Application is Synced and Healthy, as Argo CD itself says.
    pub(crate) fn applications(&self) -> Vec<String> {
        let lines = self.kubectl(&[
            "get",
            "applications",
            "-n",
            "argocd",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.status.sync.status} {.status.health.status}{\"\\n\"}{end}",
        ]);
        lines.lines().map(str::to_owned).collect()
    }
}

impl Drop for Road {
    fn drop(&mut self) {
        ended(self.start(&["down", "--purge"]));
    }
}

impl Ran {
    /// The last line that says something, with revisions made alike.
    pub(crate) fn last_word(&self) -> String {
        let line = self
            .stderr
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or_default();
        let revision = regex::Regex::new(" at [0-9a-f]{7}").unwrap();
        revision.replace(line, " at <revision>").into_owned()
    }

    /// The error, also of a run that speaks JSON.
    pub(crate) fn told(&self) -> String {
        let lines = self.stdout.lines();
        let mut errors = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|event| event["event"] == "error");
        match errors.next() {
            None => self.error().to_owned(),
            Some(error) => {
                let message = error["message"].as_str().unwrap();
                let hint = error["hint"].as_str();
                let hint = hint.map_or_else(String::new, |hint| format!("\n\nhint: {hint}"));
                format!("error: {message}{hint}\n")
            }
        }
    }

    /// The error, without what led to it.
    pub(crate) fn error(&self) -> &str {
        self.stderr
            .find("error: ")
            .map_or("", |start| &self.stderr[start..])
    }
}

#[expect(clippy::disallowed_methods, reason = "these tests run real programs")]
pub(crate) fn program(name: &str) -> Command {
    Command::new(name)
}

pub(crate) fn ended(mut child: Child) -> Ran {
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    Ran {
        status: status.code().unwrap_or(-1),
        stdout: reader.join().unwrap(),
        stderr: text,
    }
}

pub(crate) fn output(name: &str, args: &[&str]) -> String {
    printed(program(name).args(args))
}

/// What a command prints that must end well.
pub(crate) fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An overlay, rendered as Argo CD renders it, from the tree that was pushed.
struct Overlay {
    bundle: String,
    name: String,
    objects: Vec<Value>,
}

/// Not rendered: its manifests are in no package registry.
const NOT_HERE: &str = "keycloak-operator";

/// All overlays of all bundles. The pushed tree is complete: it holds the charts.
fn overlays(road: &Road) -> Vec<Overlay> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(
            || PathBuf::from(std::env::var("HOME").unwrap()).join(".cache"),
            PathBuf::from,
        )
        .join("devenv");
    let tree = road.folder.path().join("tree");
    let kubeconfig = road.run(&["kubeconfig"]).stdout;
    let id = Path::new(kubeconfig.trim())
        .parent()
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned();
    let repository = cache.join(format!("git/{id}.git")).display().to_string();
    output(
        "git",
        &["clone", "--quiet", &repository, &tree.display().to_string()],
    );
    let tool = |name: &str| cache.join("packages/bin").join(name).display().to_string();
    let folders = |path: &Path| -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(path)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect();
        found.retain(|path| path.is_dir());
        found.sort();
        found
    };
    let mut overlays = Vec::new();
    for project in folders(&tree.join("bundles")) {
        for bundle in folders(&project)
            .into_iter()
            .filter(|bundle| bundle.join("bundle.yaml").exists() && !bundle.ends_with(NOT_HERE))
        {
            for overlay in folders(&bundle.join("overlays")) {
                let path = overlay.display().to_string();
                let text = output(
                    &tool("kustomize"),
                    &[
                        "build",
                        "--enable-helm",
                        "--helm-command",
                        &tool("helm"),
                        &path,
                    ],
                );
                overlays.push(Overlay {
                    bundle: bundle.file_name().unwrap().to_str().unwrap().to_owned(),
                    name: overlay.file_name().unwrap().to_str().unwrap().to_owned(),
                    objects: devenv::yaml::documents(&path, &text).unwrap(),
                });
            }
        }
    }
    assert!(overlays.len() > 25, "{}", overlays.len());
    overlays
}

/// No container without limits, none that is always pulled, none without its restrictions but for the README's exceptions;
/// no literal secret; no image that its bundle doesn't list; and the API server takes it, its webhooks included.
fn keeps_the_rules(road: &Road, overlay: &Overlay) {
    let inputs = devenv::inputs::load(&road.name().into(), &road.project(".")).unwrap();
    let named = devenv::yaml::parse::<Value>(
        Path::new("bundle.yaml"),
        &fs::read_to_string(bundle_file(road, &overlay.bundle)).unwrap(),
    )
    .unwrap();
    let listed: Vec<String> = named["images"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|image| {
            inputs
                .environment
                .image(&image.as_str().unwrap().parse().unwrap())
                .to_string()
        })
        .collect();
    for object in &overlay.objects {
        let what = format!(
            "{} {}: {} {}",
            overlay.bundle, overlay.name, object["kind"], object["metadata"]["name"]
        );
        if object["kind"] == "Secret" {
            assert!(
                object["data"].is_null() && object["stringData"].is_null(),
                "{what} is a literal secret"
            );
        }
        let pod = &object["spec"]["template"]["spec"];
        let containers = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| pod[list].as_array().into_iter().flatten());
        for container in containers {
            let what = format!("{what}, container {}", container["name"]);
            let restrictions = &container["securityContext"];
            let either = |key: &str| {
                if restrictions[key].is_null() {
                    &pod["securityContext"][key]
                } else {
                    &restrictions[key]
                }
            };
            assert!(
                container["resources"]["limits"]["memory"].is_string(),
                "{what} has no limit of memory"
            );
            assert_ne!(container["imagePullPolicy"], "Always", "{what}");
            assert_eq!(restrictions["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(
                restrictions["capabilities"]["drop"],
                serde_json::json!(["ALL"]),
                "{what}"
            );
            assert_eq!(restrictions["readOnlyRootFilesystem"], true, "{what}");
            let reads_logs = container["name"] == "promtail" || container["name"] == "vlagent";
            assert!(
                reads_logs || either("runAsNonRoot") == true,
                "{what} may run as root"
            );
            let image = container["image"].as_str().unwrap();
            assert!(
                image == "auto" || listed.contains(&image.to_owned()),
                "{what} runs {image}, which its bundle doesn't list"
            );
        }
    }
    let (definitions, rest): (Vec<&Value>, Vec<&Value>) = overlay
        .objects
        .iter()
        // Keycloak's kinds come with its operator.
        .filter(|object| {
            !object["apiVersion"]
                .as_str()
                .unwrap()
                .starts_with("k8s.keycloak.org/")
        })
        .partition(|object| object["kind"] == "CustomResourceDefinition");
    // Definitions are too long for the annotation that the one way needs; the other way would keep what another overlay has.
    tried(
        road,
        overlay,
        &definitions,
        &["--server-side", "--force-conflicts", "--field-manager=test"],
    );
    tried(road, overlay, &rest, &[]);
}

/// What the API server and its webhooks say to these objects, without keeping them.
fn tried(road: &Road, overlay: &Overlay, objects: &[&Value], how: &[&str]) {
    if objects.is_empty() {
        return;
    }
    let manifest: String = objects
        .iter()
        .map(|object| format!("---\n{object}\n"))
        .collect();
    let apply = ["apply", "--dry-run=server", "--filename=-"];
    let ran = road.kubectl_reads(&[&apply, how].concat(), &manifest);
    assert_eq!(
        ran.status, 0,
        "{} {}: {}",
        overlay.bundle, overlay.name, ran.stderr
    );
}

fn bundle_file(road: &Road, bundle: &str) -> PathBuf {
    let projects = fs::read_dir(road.project("bundles")).unwrap();
    let mut files =
        projects.map(|project| project.unwrap().path().join(bundle).join("bundle.yaml"));
    files.find(|file| file.exists()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub(crate) fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

pub(crate) const NOTHING_TO_CHANGE: &str =
    "nothing to change: 2 of 2 applications healthy at <revision>; checks: 4 passed";
pub(crate) const READY: &str = "ready: 2 of 2 applications healthy at <revision>; checks: 4 passed";
pub(crate) const APPLIED: &str = "applied: 2 of 2 applications healthy at <revision>";
/// What the small project runs.
const IMAGE: &str = "docker.io/victoriametrics/victoria-logs:v1.52.1";
pub(crate) const LOGS: &str = "bundles/observability/victorialogs/base/victoria-logs.yaml";

#[test]
#[ignore = "takes a real cluster"]
fn e2e_a_day_with_kind() {
    a_day_with(Provider::Kind);
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_a_day_with_k3d() {
    a_day_with(Provider::K3d);
}

fn a_day_with(provider: Provider) {
    let road = Road::small(provider);
    let (name, node) = (road.name(), road.node());
    let kubectl = |args: &[&str]| road.kubectl(args);

    // In the morning: everything is made, and Argo CD itself says that it is well.
    assert_eq!(road.succeed(&["up"]), READY);
    assert_eq!(
        road.applications(),
        ["namespaces Synced Healthy", "victorialogs Synced Healthy"]
    );
    let kubeconfig = road.run(&["kubeconfig"]).stdout;
    let mode = fs::metadata(kubeconfig.trim()).unwrap().permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );

    // Five pods of Argo CD and the git; nothing of it listens beyond loopback; no image was pulled.
    let pods = kubectl(&["get", "pods", "-n", "argocd", "-o", "name"]);
    assert_eq!(pods.lines().count(), 6, "{pods}");
    let ports = road.docker(&[
        "ps",
        "--filter",
        &format!("name={node}"),
        "--format",
        "{{.Ports}}",
    ]);
    assert!(
        ports
            .split(", ")
            .all(|port| port.trim().starts_with("127.0.0.1:")),
        "{ports}"
    );
    let pulls = kubectl(&[
        "get",
        "events",
        "-A",
        "--field-selector",
        "reason=Pulling",
        "-o",
        "name",
    ]);
    assert_eq!(pulls, "");

    // Again: nothing is changed, in the cluster either.
    let generations = || {
        kubectl(&[
            "get",
            "all,cm,crd,appproject,applicationset",
            "-n",
            "argocd",
            "-o",
            "jsonpath={.items[*].metadata.generation}",
        ])
    };
    let before = generations();
    assert_eq!(road.succeed(&["up"]), NOTHING_TO_CHANGE);
    assert_eq!(generations(), before);
    let plan = road.run(&["up", "--plan"]);
    let lines: Vec<&str> = plan.stdout.lines().skip(1).collect();
    assert!(
        lines.iter().all(|line| line.contains(" keep")),
        "{}",
        plan.stdout
    );

    // An edited bundle arrives, uncommitted as it is.
    road.edit(LOGS, "-retentionPeriod=7d", "-retentionPeriod=9d");
    let plan = road.run(&["up", "--plan"]).stdout;
    assert!(plan.contains("sync application victorialogs to "), "{plan}");
    assert_eq!(road.succeed(&["sync"]), APPLIED);
    let arguments = kubectl(&[
        "get",
        "deployment",
        "victoria-logs",
        "-n",
        "observability-system",
        "-o",
        "jsonpath={..args}",
    ]);
    assert!(arguments.contains("-retentionPeriod=9d"), "{arguments}");

    // A folder that is added appears by itself, one that is removed is pruned.
    road.write(
        "bundles/observability/hello/bundle.yaml",
        "wave: 4\nnamespace: observability-system\nneeds: [namespaces]\n",
    );
    road.write(
        "bundles/observability/hello/base/kustomization.yaml",
        "resources: [greeting.yaml]\nnamespace: observability-system\n",
    );
    road.write(
        "bundles/observability/hello/base/greeting.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: greeting}\n",
    );
    assert_eq!(
        road.succeed(&["sync"]),
        "applied: 3 of 3 applications healthy at <revision>"
    );
    kubectl(&["get", "configmap", "greeting", "-n", "observability-system"]);
    fs::remove_dir_all(road.project("bundles/observability/hello")).unwrap();
    assert_eq!(road.succeed(&["sync"]), APPLIED);
    assert_eq!(
        kubectl(&[
            "get",
            "configmap",
            "-n",
            "observability-system",
            "-o",
            "name",
            "--field-selector",
            "metadata.name=greeting"
        ]),
        ""
    );

    // Two that vanish at once are more likely a slip: nothing is removed without a word.
    fs::rename(road.project("bundles/observability"), road.project("aside")).unwrap();
    road.write(
        "bundles/infrastructure/other/bundle.yaml",
        "wave: 1\nnamespace: default\n",
    );
    road.write(
        "bundles/infrastructure/other/base/kustomization.yaml",
        "resources: []\n",
    );
    fs::rename(
        road.project("bundles/infrastructure/namespaces"),
        road.project("aside/namespaces"),
    )
    .unwrap();
    let refused = road.run(&["sync"]);
    assert_eq!(refused.status, 2);
    assert_eq!(
        refused.error(),
        "error: this would remove 2 applications with all they made: namespaces, victorialogs\n\n\
         hint: if that is meant: devenv sync --prune\n"
    );
    fs::rename(
        road.project("aside/namespaces"),
        road.project("bundles/infrastructure/namespaces"),
    )
    .unwrap();
    fs::rename(road.project("aside"), road.project("bundles/observability")).unwrap();
    fs::remove_dir_all(road.project("bundles/infrastructure/other")).unwrap();

    // The pod that holds the git is lost: `up` pushes again.
    kubectl(&[
        "delete",
        "pod",
        "-n",
        "argocd",
        "-l",
        "app.kubernetes.io/name=git-source",
        "--wait=true",
    ]);
    road.succeed(&["up"]);

    // Back to the last state that passed all checks, in place; and to one that was named.
    let names = || kubectl(&["get", "configmaps", "-n", "default", "-o", "name"]);
    kubectl(&["create", "configmap", "before", "-n", "default"]);
    assert_eq!(
        road.succeed(&["snapshot", "save", "with-before"]),
        "saved with-before; to go back to it: devenv snapshot restore with-before"
    );
    let id = road.docker(&["inspect", node, "--format", "{{.Id}}"]);
    kubectl(&["create", "configmap", "after", "-n", "default"]);
    kubectl(&[
        "delete",
        "deployment",
        "victoria-logs",
        "-n",
        "observability-system",
        "--wait=false",
    ]);
    assert_eq!(road.succeed(&["reset"]), READY);
    assert!(
        !names().contains("/before") && !names().contains("/after"),
        "{}",
        names()
    );
    assert_eq!(road.succeed(&["snapshot", "restore", "with-before"]), READY);
    assert!(
        names().contains("/before") && !names().contains("/after"),
        "{}",
        names()
    );
    assert_eq!(road.docker(&["inspect", node, "--format", "{{.Id}}"]), id);
    let listed = road.run(&["snapshot", "list"]).stdout;
    assert!(
        listed.contains("healthy ") && listed.contains("with-before "),
        "{listed}"
    );
    road.succeed(&["snapshot", "remove", "with-before"]);
    let ran = road.run(&["snapshot", "restore", "with-before"]);
    assert_eq!(
        ran.error(),
        "error: there is no snapshot `with-before`\n\nhint: the snapshots there are: healthy\n"
    );

    // Killed in the middle of putting it back: the next `up` finishes that.
    kubectl(&["create", "configmap", "after", "-n", "default"]);
    let mut child = road.start(&["reset"]);
    wait_for("the work beside the node", || {
        road.docker(&["ps", "--format", "{{.Names}}"])
            .contains(&format!("{node}-state"))
            .then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(road.succeed(&["up"]), READY);
    assert!(!names().contains("/after"), "{}", names());

    // The machine was off: `up` starts what is there.
    assert_eq!(
        road.succeed(&["down", "--keep"]),
        format!("{name} is stopped and kept; devenv up starts it again")
    );
    assert_eq!(
        road.succeed(&["down", "--keep"]),
        format!("nothing to stop: {name} doesn't run")
    );
    assert_eq!(road.status()["cluster"]["state"], "stopped");
    assert_eq!(road.succeed(&["up"]), READY);
    assert_eq!(road.status()["ready"], true);

    // In the evening: the node is gone, and its volumes stay for the next morning. Once more is fine.
    let volumes = road.volumes();
    assert!(!volumes.is_empty());
    kubectl(&["create", "configmap", "after", "-n", "default"]);
    assert_eq!(road.succeed(&["down"]), format!("{name} is gone"));
    assert_eq!(road.containers(), [""; 0]);
    let is_kept = |volume: &&String| !volume.ends_with("-images"); // which k3d never used
    let kept: BTreeSet<String> = volumes.iter().filter(is_kept).cloned().collect();
    assert_eq!(BTreeSet::from_iter(road.left(&volumes)), kept);
    assert!(!Path::new(kubeconfig.trim()).exists());
    assert_eq!(
        road.succeed(&["down"]),
        format!("nothing to remove: {name} isn't there")
    );
    let listed = road.run(&["snapshot", "list"]).stdout;
    assert!(listed.contains("healthy "), "{listed}");

    let planned = road.run(&["up", "--plan"]).stdout;
    assert!(planned.contains("start from what was kept "), "{planned}");
    let planned = road.run(&["up", "--plan", "--fresh"]).stdout;
    assert!(
        planned.contains("remove what was kept: --fresh"),
        "{planned}"
    );

    // In the morning: killed while the node is made again, and then as if it hadn't been.
    let mut child = road.start(&["up"]);
    wait_for("the work beside the node", || {
        road.docker(&["ps", "--all", "--format", "{{.Names}}"])
            .contains(&format!("{node}-state"))
            .then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let ran = road.run(&["up"]);
    assert_eq!(ran.last_word(), READY, "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains(&format!("{name} starts from its state of ")),
        "{}",
        ran.stderr
    );
    assert!(!names().contains("/after"), "{}", names());

    // To another machine, which has a full store and nothing else.
    let file = road.project("state.zst").display().to_string();
    road.succeed(&["snapshot", "export", &file]);
    let ran = road.run(&["up", "--from", &file]);
    assert_eq!(ran.status, 2);
    assert!(
        ran.error()
            .contains("is there already, and --from makes one"),
        "{}",
        ran.error()
    );
    assert_eq!(
        road.succeed(&["down", "--purge"]),
        format!("{name} is gone")
    );
    assert_eq!(road.left(&volumes), [""; 0]);
    let whole = fs::read(&file).unwrap();
    fs::write(road.project("cut.zst"), &whole[..whole.len() / 2]).unwrap();
    let ran = road.run(&["up", "--from", "cut.zst"]);
    assert_eq!(
        (ran.status, ran.error()),
        (
            2,
            "error: cut.zst can't be started from: it is cut short or damaged: incomplete frame\n\nhint: write it again where the environment is up: devenv snapshot export FILE\n"
        )
    );
    assert_eq!(road.containers(), [""; 0]);

    // Killed when the nodes run: the same command goes on.
    let mut child = road.start(&["up", "--from", &file]);
    wait_for("the node to run", || {
        let state = road.try_docker(&["inspect", node, "--format", "{{.State.Status}}"])?;
        (state.trim() == "running").then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(road.succeed(&["up", "--from", &file]), READY);
    assert_eq!(road.run(&["up", "--from", &file]).status, 2);
    assert!(!names().contains("/after"), "{}", names());

    // For good.
    let volumes = road.volumes();
    assert_eq!(
        road.succeed(&["down", "--purge"]),
        format!("{name} is gone")
    );
    assert_eq!(road.left(&volumes), [""; 0]);
    assert_eq!(
        road.succeed(&["down", "--purge"]),
        format!("nothing to remove: {name} isn't there")
    );
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_the_whole_platform_with_kind() {
    the_whole_platform(Provider::Kind);
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_the_whole_platform_with_k3d() {
    the_whole_platform(Provider::K3d);
}

fn the_whole_platform(provider: Provider) {
    let road = Road::platform(provider);
    let kubectl = |args: &[&str]| road.kubectl(args);

    // Killed between two waves: the next one goes on where it was.
    let mut child = road.start(&["up"]);
    wait_for("the second wave", || {
        let ask = ["get", "applications", "-n", "argocd", "-o", "name"];
        let names = road.try_docker(&[&road.kubectl_inside(), &ask[..]].concat())?;
        names.contains("istiod").then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let ready = road.succeed(&["up"]);
    let (ready, checks) = ready.split_once("; checks: ").unwrap();
    assert_eq!(ready, "ready: 10 of 10 applications healthy at <revision>");
    assert!(!checks.contains("failed"), "{checks}");

    // As a person does it: the names as they are, and one flag for the certificate.
    let port = road.port_of(443);
    let authority = road.folder.path().join("data/devenv/ca/local/ca.pem");
    let curl = |address: &str, more: &[&str]| {
        let authority = authority.to_str().unwrap();
        let always = [
            "--silent",
            "--show-error",
            "--fail",
            "--cacert",
            authority,
            address,
        ];
        output("curl", &[&always[..], more].concat())
    };
    assert_eq!(
        curl(&format!("https://argocd.local:{port}/healthz"), &[]).trim(),
        "ok"
    );
    let secrets = road.run(&["secrets", "--show", "-o", "json"]).stdout;
    let secrets: Value = serde_json::from_str(&secrets).unwrap();
    let keycloak = format!("https://keycloak.local:{port}");
    let login = secrets
        .as_array()
        .unwrap()
        .iter()
        .find(|login| login["at"] == keycloak.as_str())
        .unwrap();
    let text = |key: &str| login[key].as_str().unwrap().to_owned();
    let token = curl(
        &format!("{keycloak}/realms/master/protocol/openid-connect/token"),
        &[
            "--data",
            "grant_type=password&client_id=admin-cli",
            "--data-urlencode",
            &format!("username={}", text("user")),
            "--data-urlencode",
            &format!("password={}", text("password")),
        ],
    );
    assert!(token.contains("\"access_token\""), "{token}");
    assert!(!road.run(&["secrets"]).stdout.contains(&text("password")));

    in_a_browser(&road, &keycloak, &text("user"), &text("password"));

    // From a pod of the mesh, under Keycloak's name, the database answers; the checks have seen it refuse a pod outside.
    in_the_mesh(&road);

    // In order: a bundle's resources aren't older than what it needs was ready.
    let made = |kind: &str, name: &str, namespace: &str| {
        kubectl(&[
            "get",
            kind,
            name,
            "-n",
            namespace,
            "-o",
            "jsonpath={.metadata.creationTimestamp}",
        ])
    };
    let istiod = made("deployment", "istiod", "istio-system");
    let gateway = made("deployment", "istio-ingressgateway", "istio-ingress");
    let database = made("cluster", "keycloak-db", "iam-system");
    let keycloak = made("statefulset", "keycloak-instance", "iam-system");
    assert!(
        istiod < gateway && istiod < database && database < keycloak,
        "{istiod} {gateway} {database} {keycloak}"
    );

    // Every overlay of every bundle renders, keeps the rules, and is what the API server takes.
    for overlay in overlays(&road) {
        keeps_the_rules(&road, &overlay);
    }

    // Again: nothing is changed. And a setting of Keycloak's is rolled out by a sync.
    let again = road.succeed(&["up"]);
    assert!(
        again.starts_with(
            "nothing to change: 10 of 10 applications healthy at <revision>; checks: "
        ),
        "{again}"
    );
    let stateful_set = "bundles/iam/keycloak/overlays/packages/stateful-set.yaml";
    road.edit(
        stateful_set,
        "name: KC_LOG_LEVEL\n              value: info",
        "name: KC_LOG_LEVEL\n              value: info,org.keycloak.events:debug",
    );
    assert_eq!(
        road.succeed(&["sync"]),
        "applied: 10 of 10 applications healthy at <revision>"
    );
    let environment = kubectl(&[
        "get",
        "pod",
        "keycloak-instance-0",
        "-n",
        "iam-system",
        "-o",
        "jsonpath={..env[?(@.name==\"KC_LOG_LEVEL\")].value}",
    ]);
    assert!(
        environment.contains("org.keycloak.events:debug"),
        "{environment}"
    );

    // And every check turns red when its thing is broken.
    crate::broken::each_check_once(&road);
}

/// A person opens the platform in a browser that trusts our authority, and logs in.
fn in_a_browser(road: &Road, keycloak: &str, user: &str, password: &str) {
    let home = road.folder.path().join("home");
    fs::create_dir_all(&home).unwrap();
    let trust = |what: &str| {
        let mut command = road.command(&["trust", what]);
        let ran = ended(command.env("HOME", &home).spawn().unwrap());
        assert_eq!(ran.status, 0, "trust {what}: {}{}", ran.stdout, ran.stderr);
    };
    trust("install");
    {
        let browser = Browser::start(&home);
        browser.open(&format!("{keycloak}/admin/"));
        browser.type_into("#username", user);
        browser.type_into("#password", password);
        browser.picture("keycloak-login.png");
        browser.click("#kc-login");
        browser.wait_for_text("Manage realms");
        browser.wait_for_text("Server info");
        browser.picture("keycloak.png");
        let logs = keycloak.replace("keycloak", "logs");
        browser.open(&format!(
            "{logs}/select/vmui/#/?query=kubernetes.pod_namespace%3Aiam-system"
        ));
        browser.wait_for_text("keycloak");
        browser.picture("logs.png");
    }
    trust("uninstall");
}

/// Asks the database from a pod with a sidecar that has Keycloak's account.
fn in_the_mesh(road: &Road) {
    let kubectl = |args: &[&str]| road.kubectl(args);
    let overrides = r#"{"spec": {"serviceAccountName": "keycloak", "containers": [{
        "name": "asks", "image": "packages.devenv.test/postgresql:18", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "for i in $(seq 100); do pg_isready -h keycloak-db-rw -t 2 && exit 0; sleep 0.2; done; exit 1"],
        "resources": {"limits": {"cpu": "200m", "memory": "64Mi"}},
        "securityContext": {"runAsUser": 26, "runAsNonRoot": true}
    }]}}"#;
    kubectl(&[
        "run",
        "asks",
        "-n",
        "iam-system",
        "--restart=Never",
        "--image=packages.devenv.test/postgresql:18",
        "--overrides",
        overrides,
    ]);
    let phase = wait_for("the pod that asks", || {
        let phase = kubectl(&[
            "get",
            "pod",
            "asks",
            "-n",
            "iam-system",
            "-o",
            "jsonpath={.status.phase}",
        ]);
        ["Succeeded", "Failed"]
            .contains(&phase.as_str())
            .then_some(phase)
    });
    let said = kubectl(&["logs", "asks", "-c", "asks", "-n", "iam-system"]);
    assert_eq!(phase, "Succeeded", "{said}");
    assert!(said.contains("accepting connections"), "{said}");
    kubectl(&[
        "delete",
        "pod",
        "asks",
        "-n",
        "iam-system",
        "--grace-period=0",
        "--force",
    ]);
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_trouble_is_explained_and_mended_with_kind() {
    trouble_is_explained_and_mended(Provider::Kind);
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_trouble_is_explained_and_mended_with_k3d() {
    trouble_is_explained_and_mended(Provider::K3d);
}

fn trouble_is_explained_and_mended(provider: Provider) {
    let road = Road::small(provider);
    let kubectl = |args: &[&str]| road.kubectl(args);
    assert_eq!(road.succeed(&["up"]), READY);

    // An image that is neither in the store nor to be had.
    let victoria = fs::read_to_string(road.project(LOGS)).unwrap();
    road.edit(LOGS, IMAGE, "packages.devenv.test/no-such:1");
    let ran = road.run(&["sync"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(
        error.starts_with("error: application victorialogs can't become ready: pod victoria-logs-"),
        "{error}"
    );
    assert!(
        error.contains(": image packages.devenv.test/no-such:1 can't be had: "),
        "{error}"
    );
    assert!(error.contains("\n  event: Failed: "), "{error}");
    assert!(
        error.ends_with("\n\nhint: mend bundles/observability/victorialogs, then: devenv sync\n"),
        "{error}"
    );
    let status = road.status();
    let waits_for = status["applications"][1]["waitsFor"].as_str().unwrap();
    assert!(
        waits_for.contains("packages.devenv.test/no-such:1"),
        "{waits_for}"
    );

    // A container that ends as soon as it starts.
    road.write(
        LOGS,
        &victoria.replace("-retentionPeriod=7d", "-noSuchFlag"),
    );
    let ran = road.run(&["sync"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(
        error.contains(": container victoria-logs ended "),
        "{error}"
    );
    assert!(error.contains(" times, last with exit code 2"), "{error}");
    assert!(error.contains("\n  log of victoria-logs: "), "{error}");

    // A pod that no node has room for: told with the numbers.
    road.write(
        LOGS,
        &victoria.replace(
            "          ports:\n",
            "          resources: {requests: {cpu: \"64\"}}\n          ports:\n",
        ),
    );
    let ran = road.run(&["sync", "--timeout", "60s"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(error.contains("Insufficient cpu"), "{error}");
    let room = format!("it asks for 64 CPU and 0 MiB; node {} has ", road.node());
    assert!(error.contains(&room), "{error}");

    // A manifest that the API server refuses.
    road.write(
        LOGS,
        &victoria.replace("containerPort: 9428", "containerPort: 94280"),
    );
    let ran = road.run(&["sync"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(error.contains("its manifests were refused"), "{error}");
    assert!(error.contains("94280"), "{error}");

    // One that can't be rendered: where that can be known beforehand, nothing is touched.
    road.write(LOGS, &victoria);
    let kustomization = "bundles/observability/victorialogs/base/kustomization.yaml";
    let right = fs::read_to_string(road.project(kustomization)).unwrap();
    road.edit(kustomization, "victoria-logs.yaml", "victoria-log.yaml");
    let ran = road.run(&["sync"]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    let error = ran.error();
    assert!(
        error.contains(": there is no `victoria-log.yaml` here"),
        "{error}"
    );
    assert!(
        error.contains("did you mean `victoria-logs.yaml`?"),
        "{error}"
    );

    // What only kustomize finds, Argo CD tells.
    let patch = "patches:\n  - target: {kind: Deployment}\n    patch: '[{op: replace, path: /no/such, value: 1}]'\n";
    road.write(kustomization, &format!("{right}{patch}"));
    let ran = road.run(&["sync"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    let error = ran.error();
    assert!(
        error.contains("Argo CD can't render its manifests: "),
        "{error}"
    );
    assert!(error.contains("/no/such"), "{error}");

    // Mended, it comes back.
    road.write(kustomization, &right);
    assert_eq!(road.succeed(&["sync"]), APPLIED);

    // Retries that were spent on what has been mended since: Argo CD never tries again by itself, `up` does.
    let greeting =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: greeting, namespace: later}\n";
    road.write(
        "bundles/infrastructure/late/bundle.yaml",
        "wave: 1\nnamespace: default\nneeds: []\n",
    );
    road.write(
        "bundles/infrastructure/late/base/kustomization.yaml",
        "resources: [greeting.yaml]\n",
    );
    road.write("bundles/infrastructure/late/base/greeting.yaml", greeting);
    let ran = road.run(&["sync"]);
    assert_eq!(ran.status, 1, "{}", ran.stderr);
    assert!(
        ran.error().contains("namespaces \"later\" not found"),
        "{}",
        ran.error()
    );
    kubectl(&["create", "namespace", "later"]);
    assert_eq!(
        road.succeed(&["up"]),
        "ready: 3 of 3 applications healthy at <revision>; checks: 4 passed"
    );

    // All of it made anew, whatever was saved.
    fs::remove_dir_all(road.project("bundles/infrastructure/late")).unwrap();
    assert_eq!(road.succeed(&["reset", "--rebuild"]), READY);
    assert_eq!(
        kubectl(&[
            "get",
            "namespace",
            "-o",
            "name",
            "--field-selector",
            "metadata.name=later"
        ]),
        ""
    );
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_a_killed_up_is_finished_by_the_next_with_kind() {
    a_killed_up_is_finished_by_the_next(Provider::Kind);
}

#[test]
#[ignore = "takes a real cluster"]
fn e2e_a_killed_up_is_finished_by_the_next_with_k3d() {
    a_killed_up_is_finished_by_the_next(Provider::K3d);
}

fn a_killed_up_is_finished_by_the_next(provider: Provider) {
    let road = Road::small(provider);
    let gone = format!("{} is gone", road.name());

    // Ctrl-C while the provider works: nothing of it goes on, and nothing is lost.
    let child = road.start(&["up"]);
    wait_for("a container", || {
        (!road.containers().is_empty()).then_some(())
    });
    std::thread::sleep(Duration::from_secs(2));
    kill(
        Pid::from_raw(child.id().try_into().unwrap()),
        Signal::SIGINT,
    )
    .unwrap();
    let ran = ended(child);
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    assert_eq!(
        ran.error(),
        "error: interrupted\n\n\
         hint: what was made is still there: `devenv up` resumes, `devenv down` removes it\n"
    );
    assert_eq!(road.processes(), [""; 0]);
    let state = road.status()["cluster"]["state"].clone();
    match provider {
        Provider::Kind => assert_eq!(state, "half-made"),
        // Its node goes on by itself, if it was started.
        Provider::K3d => assert!(state == "half-made" || state == "running", "{state}"),
    }

    // A half-made cluster is taken down as well.
    let volumes = road.volumes();
    assert_eq!(road.succeed(&["down"]), gone);
    assert_eq!(road.left(&volumes), [""; 0]);

    // kill -9 in the middle of the provider's work, and while Argo CD starts.
    for (what, seconds) in [("a container", 3), ("the kubeconfig", 6)] {
        let mut child = road.start(&["up"]);
        match what {
            "a container" => wait_for(what, || (!road.containers().is_empty()).then_some(())),
            _ => wait_for(what, || {
                let found = fs::read_dir(road.folder.path().join("data/devenv/environments"))
                    .ok()?
                    .flatten()
                    .next()?;
                found.path().join("kubeconfig").exists().then_some(())
            }),
        }
        std::thread::sleep(Duration::from_secs(seconds));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(road.succeed(&["up"]), READY, "killed at {what}");
        assert_eq!(
            road.applications(),
            ["namespaces Synced Healthy", "victorialogs Synced Healthy"]
        );
        let volumes = road.volumes();
        assert_eq!(road.succeed(&["down", "--purge"]), gone);
        assert_eq!(road.left(&volumes), [""; 0]);
    }
}

/// The node image goes into Docker from the store, as devenv brings it there.
pub(crate) fn load_node_image(environment: &str, image: &str) {
    let there = program("docker")
        .args(["image", "inspect", image])
        .output()
        .unwrap();
    if there.status.success() {
        return;
    }
    let load = async {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let inputs = devenv::inputs::load(&environment.into(), repository)?;
        let needed = devenv::images::Needed::by(&inputs)?;
        let docker = devenv::docker::connect().await?;
        let store = devenv::store::Store::open(&devenv::paths::Paths::from_process()?.store())?;
        let sources = devenv::images::sources(&docker, &inputs);
        let (stop, step) = (
            devenv::stop::Stop::new(),
            devenv::event::Events::channel().0.step("node"),
        );
        let node = needed.node.unwrap();
        devenv::store::fill(&store, std::slice::from_ref(&node), sources, &stop, &step).await?;
        devenv::store::load(&docker, &store, &node, sources, &stop, &step).await
    };
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(load)
        .unwrap();
}

#[test]
#[ignore = "takes a real Docker"]
fn e2e_a_cluster_of_somebody_else_is_left_alone() {
    for provider in [Provider::Kind, Provider::K3d] {
        let road = Road::small(provider);
        let image = road.node_image();
        let (environment, role) = match provider {
            Provider::Kind => ("packages", "io.x-k8s.kind.role=control-plane"),
            Provider::K3d => ("packages-k3d", "k3d.role=server"),
        };
        load_node_image(environment, image);
        // As the provider makes them, but without our mark.
        let run = ["run", "--detach", "--name", road.node(), "--label"];
        let rest = ["--label", role, "--entrypoint", "sleep", image, "600"];
        road.docker(&[&run[..], &[&road.label()], &rest].concat());
        for command in ["up", "down", "reset", "status"] {
            let ran = road.run(&[command]);
            assert_eq!(ran.status, 1, "{}", ran.stderr);
            let expected = format!(
                "error: a {provider} cluster named devenv-{} exists that this environment didn't make",
                road.name()
            );
            assert!(ran.error().starts_with(&expected), "{}", ran.error());
        }
        assert_eq!(road.containers(), [road.node()]);
        road.docker(&["rm", "--force", "--volumes", road.node()]);
    }
}
