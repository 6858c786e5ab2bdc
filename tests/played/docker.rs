//! A Docker engine that is played to the end: its containers have folders of their own in which commands really run, its volumes
//! outlive them, and a node of kind is a cluster from when on it has what kubeadm writes.
//!
//! Commands run in a mount namespace and a root of their own, so that a script's `rm -rf /var/lib/etcd` finds the node's.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::cluster::{Cluster, Places, kubeconfig};
use super::http::{self, Reply, Request};
use super::store::Key;
use super::{Trap, change_asked_for, port};

/// containerd's program, as far as devenv uses it: what it has lies in files below `/var/lib/containerd`.
const CTR: &str = r#"#!/bin/sh
set -e
home=/var/lib/containerd
mkdir -p $home/blobs
touch $home/images
case "$*" in
version) echo 'Version: 2.1' ;;
*'images ls') echo 'REF TYPE DIGEST SIZE PLATFORMS LABELS'; sed 's/ / type /; s/$/ 1 MiB - -/' $home/images ;;
*'content ls -q') ls $home/blobs | sed 's/^/sha256:/' ;;
*'images import '*)
    new=$home/.import.$$
    trap 'rm -rf $new' EXIT
    rm -rf $home/.import.*
    mkdir $new
    tar -xf - -C $new
    mv -f $new/blobs/sha256/* $home/blobs/ 2>/dev/null || true
    tr ',' '\n' < $new/index.json | sed -n 's/.*"io.containerd.image.name":"\([^"]*\)".*/name \1/p; s/.*"digest":"sha256:\([0-9a-f]*\)".*/digest \1/p' |
    while read -r what value; do
        case $what in
        name) name=$value ;;
        digest)
            test -e "$home/blobs/$value"
            grep -v "^$name " $home/images > $home/images.new || true
            echo "$name sha256:$value" >> $home/images.new
            mv $home/images.new $home/images
            ;;
        esac
    done
    ;;
*) echo "ctr $*: not played" >&2; exit 1 ;;
esac
"#;

/// How a command comes to run in a container's root, with its volumes in their places.
const ENTER: &str = r#"set -e
root=$1; path=$2; shift 2
for folder in bin sbin lib lib64 usr dev proc; do
    if [ -d "/$folder" ] && [ ! -L "/$folder" ]; then mkdir -p "$root/$folder"; mount --rbind "/$folder" "$root/$folder"; fi
done
while [ "$1" != -- ]; do mkdir -p "$root$2"; mount --bind "$1" "$root$2"; shift 2; done
shift
exec chroot "$root" /usr/bin/env -i "PATH=$path" HOME=/ "$@""#;

pub(crate) struct Docker {
    folder: PathBuf,
    state: Mutex<State>,
    pub(crate) trap: Arc<Mutex<Trap>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) containers: BTreeMap<String, Container>,
    /// Names and labels.
    pub(crate) volumes: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) networks: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) images: BTreeMap<String, String>,
    execs: Vec<Exec>,
    made: u64,
}

pub(crate) struct Container {
    pub(crate) id: String,
    /// As it was asked for.
    pub(crate) body: Value,
    pub(crate) state: &'static str,
    code: i64,
    started: Option<SystemTime>,
    /// The volumes, by their places in it.
    pub(crate) volumes: BTreeMap<String, String>,
    said: (Vec<u8>, Vec<u8>),
    /// Ends when its command does.
    ended: watch::Sender<bool>,
    pub(crate) cluster: Option<Arc<Cluster>>,
}

#[derive(Debug, Clone)]
struct Exec {
    container: String,
    argv: Vec<String>,
    reads: bool,
    status: Option<i64>,
}

impl Container {
    pub(crate) fn label(&self, name: &str) -> &str {
        self.body["Labels"][name].as_str().unwrap_or_default()
    }

    /// Address, port of this machine, port of the container.
    pub(crate) fn ports(&self) -> Vec<(String, u16, u16)> {
        let bindings = self.body["HostConfig"]["PortBindings"].as_object();
        let mut ports = Vec::new();
        for (inside, bindings) in bindings.into_iter().flatten() {
            let inside = inside.split('/').next().unwrap_or_default();
            for binding in bindings.as_array().into_iter().flatten() {
                let text = |key: &str| binding[key].as_str().unwrap_or_default();
                let number = |text: &str| text.parse().unwrap_or_default();
                let address = text("HostIp").to_owned();
                ports.push((address, number(text("HostPort")), number(inside)));
            }
        }
        ports
    }

    fn mounts(&self) -> Value {
        let binds = texts(&self.body["HostConfig"]["Binds"]).filter_map(|bind| {
            let mut parts = bind.split(':');
            Some(json!({"Type": "bind", "Source": parts.next()?, "Destination": parts.next()?, "Mode": "ro", "RW": false}))
        });
        let volumes = self.volumes.iter().map(|(place, name)| {
            json!({"Type": "volume", "Name": name, "Source": format!("/volumes/{name}"), "Destination": place, "Driver": "local", "RW": true})
        });
        binds.chain(volumes).collect()
    }

    fn listed(&self, name: &str) -> Value {
        let ports = self.ports();
        let ports = ports.iter().map(|(address, outside, inside)| {
            json!({"IP": address, "PrivatePort": inside, "PublicPort": outside, "Type": "tcp"})
        });
        json!({
            "Id": self.id, "Names": [format!("/{name}")], "Image": self.body["Image"], "State": self.state,
            "Labels": self.body["Labels"], "Created": 0, "SizeRw": 0,
            "Ports": if self.state == "running" { ports.collect() } else { Vec::new() },
            "Mounts": self.mounts(),
        })
    }

    fn inspected(&self, name: &str) -> Value {
        let mut config = self.body.clone();
        let host = config.as_object_mut().unwrap().remove("HostConfig");
        let started = self.started.map(humantime::format_rfc3339_millis);
        let running = matches!(self.state, "running" | "paused");
        let address = if running { "172.18.0.2" } else { "" };
        json!({
            "Id": self.id, "Name": format!("/{name}"), "Created": "2026-01-01T00:00:00Z",
            "State": {
                "Status": self.state, "Running": running, "Paused": self.state == "paused", "ExitCode": self.code,
                "StartedAt": started.map_or("0001-01-01T00:00:00Z".to_owned(), |at| at.to_string()),
            },
            "Config": config, "HostConfig": host,
            "NetworkSettings": {"Networks": {"kind": {"IPAddress": address}}},
            "Mounts": self.mounts(),
        })
    }
}

impl Docker {
    /// Starts one that listens at `docker.sock` in this folder.
    pub(crate) fn start(folder: &Path, runtime: &tokio::runtime::Handle) -> Arc<Self> {
        for part in ["containers", "volumes"] {
            fs::create_dir(folder.join(part)).unwrap();
        }
        let _entered = runtime.enter();
        let listener = UnixListener::bind(folder.join("docker.sock")).unwrap();
        let docker = Arc::new(Self {
            folder: folder.to_owned(),
            state: Mutex::default(),
            trap: Arc::default(),
        });
        let serving = Arc::clone(&docker);
        runtime.spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let docker = Arc::clone(&serving);
                tokio::spawn(async move {
                    let _ =
                        http::serve(stream, |request| Arc::clone(&docker).answer(request)).await;
                });
            }
        });
        docker
    }

    /// Things that carry no mark of devenv's: a cluster of kind's that somebody made by hand, and what its like needs.
    pub(crate) fn belongs_to_others(&self) {
        let config = json!({"nodes": [{"role": "control-plane"}]});
        let mut body = node("theirs", "kindest/node:v1", &config, 1);
        body["Volumes"] = json!({});
        body["HostConfig"]["Mounts"] =
            json!([{"Type": "volume", "Source": "theirs", "Target": "/var"}]);
        self.create("theirs-control-plane", body);
        let mut state = self.state();
        state
            .containers
            .get_mut("theirs-control-plane")
            .unwrap()
            .state = "running";
        state.networks.insert("theirs".to_owned(), BTreeMap::new());
        fs::write(self.volume("theirs").join("file"), "theirs\n").unwrap();
    }

    /// Ends every container of devenv's at once, as when the machine is started again.
    pub(crate) fn restart(&self) {
        let names: Vec<String> = self.state().containers.keys().cloned().collect();
        for name in names.iter().filter(|name| !name.contains("theirs")) {
            self.turn(name, "kill");
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }

    fn root(&self, id: &str) -> PathBuf {
        self.folder.join("containers").join(id)
    }

    async fn answer(self: Arc<Self>, mut request: Request) -> Reply {
        if request
            .path
            .first()
            .is_some_and(|part| part.starts_with("v1."))
        {
            request.path.remove(0);
        }
        let is_change = !["GET", "HEAD"].contains(&request.method.as_str());
        if is_change && !change_asked_for(&self.trap, request.path.join("/")).await {
            return Reply::gone();
        }
        let path = request.path.clone();
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        let method = request.method.clone();
        match (method.as_str(), parts.as_slice()) {
            ("GET" | "HEAD", ["_ping"]) => {
                Reply::Whole(200, "Api-Version: 1.48\r\n".to_owned(), b"OK".to_vec())
            }
            ("GET", ["version"]) => Reply::json(
                200,
                &json!({
                    "Version": "28.0.0", "ApiVersion": "1.48", "MinAPIVersion": "1.24", "Os": "linux", "Arch": "amd64",
                }),
            ),
            ("GET", ["info"]) => Reply::json(
                200,
                &json!({
                    "ServerVersion": "28.0.0", "NCPU": 4, "MemTotal": 16_000_000_000_u64, "CgroupVersion": "2",
                }),
            ),
            ("GET", ["containers", "json"]) => self.list(&request),
            ("POST", ["containers", "create"]) => self.create(request.asks("name"), request.json()),
            ("GET", ["containers", name, "json"]) => self.inspect(name),
            ("POST", ["containers", name, "start"]) => self.run(name).await,
            ("POST", ["containers", name, "wait"]) => self.wait(name).await,
            ("GET", ["containers", name, "logs"]) => self.logs(name),
            (
                "POST",
                [
                    "containers",
                    name,
                    action @ ("stop" | "kill" | "pause" | "unpause"),
                ],
            ) => self.turn(name, action),
            ("DELETE", ["containers", name]) => self.remove(name, request.asks("v") == "true"),
            ("POST", ["containers", name, "exec"]) => self.make_exec(name, &request.json()),
            ("POST", ["exec", id, "start"]) => Arc::clone(&self).start_exec(id.parse().unwrap()),
            ("GET", ["exec", id, "json"]) => {
                let exec = self.state().execs[id.parse::<usize>().unwrap()].clone();
                Reply::json(
                    200,
                    &json!({"ID": id, "Running": exec.status.is_none(), "ExitCode": exec.status}),
                )
            }
            ("GET", ["containers", name, "archive"]) => {
                self.download(name, request.asks("path")).await
            }
            ("PUT", ["containers", name, "archive"]) => {
                self.upload(name, request.asks("path"), &request.body).await
            }
            (_, [kind @ ("networks" | "volumes"), rest @ ..]) => {
                self.things(&method, kind, rest, &request)
            }
            ("POST", ["images", "load"]) => self.load(&request.body),
            ("GET", ["images", name @ .., "json"]) => {
                let name = name.join("/");
                match self.state().images.get(&name) {
                    Some(id) => Reply::json(200, &json!({"Id": id, "RepoTags": [name]})),
                    None => missing("image", &name),
                }
            }
            ("GET", ["system", "df"]) => Reply::json(200, &json!({"Volumes": []})),
            ("POST", ["kind", what]) => self.kind(what, &request).await,
            (method, parts) => error(404, &format!("{method} {} isn't played", parts.join("/"))),
        }
    }

    /// The name of the container that is called so, by its name or id.
    fn named(&self, called: &str) -> Option<String> {
        let state = self.state();
        let found = state
            .containers
            .iter()
            .find(|(name, container)| *name == called || container.id == called);
        found.map(|(name, _)| name.clone())
    }

    fn list(&self, request: &Request) -> Reply {
        let filters: Value = serde_json::from_str(request.asks("filters")).unwrap_or_default();
        let labels: Vec<String> = texts(&filters["label"]).map(str::to_owned).collect();
        let state = self.state();
        let fits = |container: &&Container| {
            labels.iter().all(|label| match label.split_once('=') {
                Some((name, value)) => container.label(name) == value,
                None => container.body["Labels"][label].is_string(),
            })
        };
        let all = request.asks("all") == "true";
        let listed: Vec<Value> = state
            .containers
            .iter()
            .filter(|(_, container)| all || container.state == "running")
            .filter(|(_, container)| fits(container))
            .map(|(name, container)| container.listed(name))
            .collect();
        Reply::json(200, &json!(listed))
    }

    fn inspect(&self, called: &str) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        Reply::json(200, &self.state().containers[&name].inspected(&name))
    }

    fn create(&self, name: &str, body: Value) -> Reply {
        let mut state = self.state();
        if state.containers.contains_key(name) {
            return error(
                409,
                &format!("Conflict. The container name \"/{name}\" is already in use"),
            );
        }
        state.made += 1;
        let id = format!("{:064x}", state.made);
        let root = self.root(&id);
        for folder in ["etc", "var", "kind", "tmp", "played"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for folder in ["bin", "sbin", "lib", "lib64"] {
            if let Ok(target) = fs::read_link(Path::new("/").join(folder)) {
                symlink(target, root.join(folder)).unwrap();
            }
        }
        for (program, script) in [("ctr", CTR), ("systemctl", "#!/bin/sh\n")] {
            let path = root.join("played").join(program);
            fs::write(&path, script).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // On some systems it is a link that leads by way of /etc.
        let awk = fs::canonicalize(which::which("awk").unwrap()).unwrap();
        symlink(awk, root.join("played/awk")).unwrap();
        let mut volumes = BTreeMap::new();
        for mount in body["HostConfig"]["Mounts"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let text = |key: &str| mount[key].as_str().unwrap_or_default().to_owned();
            if mount["Type"] == "volume" {
                volumes.insert(text("Target"), text("Source"));
            }
        }
        for node in texts(&body["HostConfig"]["VolumesFrom"]) {
            match state.containers.get(node) {
                Some(node) => volumes.extend(node.volumes.clone()),
                None => return missing("container", node),
            }
        }
        for place in body["Volumes"]
            .as_object()
            .into_iter()
            .flat_map(|it| it.keys())
        {
            if !volumes.contains_key(place) {
                state.made += 1;
                volumes.insert(place.clone(), format!("{:064x}", state.made));
            }
        }
        for volume in volumes.values() {
            fs::create_dir_all(self.volume(volume)).unwrap();
            state.volumes.entry(volume.clone()).or_default();
        }
        let container = Container {
            id: id.clone(),
            body,
            state: "created",
            code: 0,
            started: None,
            volumes,
            said: Default::default(),
            ended: watch::channel(false).0,
            cluster: None,
        };
        state.containers.insert(name.to_owned(), container);
        Reply::json(201, &json!({"Id": id, "Warnings": []}))
    }

    /// Starts a container: a node goes on as what it is, another runs its command.
    async fn run(self: &Arc<Self>, called: &str) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        let argv = {
            let mut state = self.state();
            let container = state.containers.get_mut(&name).unwrap();
            match container.state {
                "running" => return Reply::empty(304),
                "paused" => {
                    return error(409, "cannot start a paused container, try unpause instead");
                }
                _ => {}
            }
            container.state = "running";
            container.started = Some(SystemTime::now());
            container.ended.send_replace(false);
            texts(&container.body["Entrypoint"])
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let is_node = argv
            .first()
            .is_some_and(|first| first == "/usr/local/bin/entrypoint");
        if is_node {
            return match self.boot(&name).await {
                Ok(()) => Reply::empty(204),
                Err(message) => {
                    self.state().containers.get_mut(&name).unwrap().state = "exited";
                    error(500, &message)
                }
            };
        }
        let docker = Arc::clone(self);
        tokio::spawn(async move {
            let (status, stdout, stderr) = docker.command(&name, &argv, None).await;
            if let Some(container) = docker.state().containers.get_mut(&name) {
                container.said = (stdout, stderr);
                container.code = status;
                container.state = "exited";
                container.ended.send_replace(true);
            }
        });
        Reply::empty(204)
    }

    /// The kubelet of a node starts what kubeadm has told it to, if it has.
    async fn boot(&self, name: &str) -> Result<(), String> {
        let (places, port) = {
            let state = self.state();
            let container = &state.containers[name];
            let manifests = self.root(&container.id).join("etc/kubernetes/manifests");
            if container.cluster.is_some() || !manifests.exists() {
                return Ok(());
            }
            let ports = container.ports();
            let port = ports.iter().find(|port| port.2 == 6443).map(|port| port.1);
            let places = Places {
                var: self.volume(&container.volumes["/var"]),
                node: name.to_owned(),
            };
            (places, port.unwrap_or_default())
        };
        let cluster = Cluster::start(places, port, Arc::clone(&self.trap)).await?;
        if let Some(container) = self.state().containers.get_mut(name) {
            container.cluster = Some(cluster);
        }
        Ok(())
    }

    async fn wait(&self, called: &str) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        let mut ended = self.state().containers[&name].ended.subscribe();
        let is_over = self.state().containers[&name].state == "exited";
        if !is_over {
            let _ = ended.wait_for(|ended| *ended).await;
        }
        let code = self
            .state()
            .containers
            .get(&name)
            .map_or(137, |container| container.code);
        Reply::json(200, &json!({"StatusCode": code}))
    }

    fn logs(&self, called: &str) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        let state = self.state();
        let (stdout, stderr) = &state.containers[&name].said;
        let body = [frame(1, stdout), frame(2, stderr)].concat();
        let head = "Content-Type: application/vnd.docker.multiplexed-stream\r\n".to_owned();
        Reply::Whole(200, head, body)
    }

    fn turn(&self, called: &str, action: &str) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        let mut state = self.state();
        let container = state.containers.get_mut(&name).unwrap();
        match (action, container.state) {
            ("stop", "created" | "exited") => Reply::empty(304),
            ("kill", "created" | "exited") => {
                error(409, &format!("container {name} is not running"))
            }
            ("stop" | "kill", _) => {
                container.state = "exited";
                container.code = 137;
                container.ended.send_replace(true);
                if let Some(cluster) = container.cluster.take() {
                    cluster.stop();
                }
                Reply::empty(204)
            }
            ("pause", "running") => {
                container.state = "paused";
                if let Some(cluster) = &container.cluster {
                    cluster.freeze(true);
                }
                Reply::empty(204)
            }
            ("pause", _) => error(409, &format!("Container {name} is not running")),
            (_, "paused") => {
                container.state = "running";
                if let Some(cluster) = &container.cluster {
                    cluster.freeze(false);
                }
                Reply::empty(204)
            }
            _ => error(500, &format!("Container {name} is not paused")),
        }
    }

    fn remove(&self, called: &str, volumes: bool) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        let mut state = self.state();
        let container = state.containers.remove(&name).unwrap();
        container.ended.send_replace(true);
        if let Some(cluster) = container.cluster {
            cluster.stop();
        }
        let _ = fs::remove_dir_all(self.root(&container.id));
        if volumes {
            // Only those that Docker made for it, and not another's.
            for (place, volume) in &container.volumes {
                let is_own = !container.body["Volumes"][place].is_null()
                    && !texts_of_mounts(&container.body).any(|name| name == volume)
                    && container.body["HostConfig"]["VolumesFrom"].is_null();
                if is_own {
                    state.volumes.remove(volume);
                    let _ = fs::remove_dir_all(self.volume(volume));
                }
            }
        }
        Reply::empty(204)
    }

    fn make_exec(&self, called: &str, body: &Value) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        let mut state = self.state();
        match state.containers[&name].state {
            "running" => {}
            "paused" => {
                return error(
                    409,
                    &format!("Container {name} is paused, unpause the container before exec"),
                );
            }
            _ => return error(409, &format!("container {name} is not running")),
        }
        state.execs.push(Exec {
            container: name,
            argv: texts(&body["Cmd"]).map(str::to_owned).collect(),
            reads: body["AttachStdin"] == true,
            status: None,
        });
        Reply::json(201, &json!({"Id": (state.execs.len() - 1).to_string()}))
    }

    fn start_exec(self: Arc<Self>, id: usize) -> Reply {
        let head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\n\
                    Upgrade: tcp\r\n\r\n";
        Reply::take(head.to_owned(), move |mut connection| async move {
            let exec = self.state().execs[id].clone();
            let mut input = Vec::new();
            if exec.reads {
                let _ = connection.read_to_end(&mut input).await;
            }
            let (status, stdout, stderr) =
                self.command(&exec.container, &exec.argv, Some(input)).await;
            let _ = connection.write_all(&frame(1, &stdout)).await;
            let _ = connection.write_all(&frame(2, &stderr)).await;
            self.state().execs[id].status = Some(status);
            let _ = connection.shutdown().await;
        })
    }

    /// Runs a command in a container.
    #[expect(
        clippy::disallowed_methods,
        reason = "the tests play what runs in a container"
    )]
    async fn command(
        &self,
        name: &str,
        argv: &[String],
        input: Option<Vec<u8>>,
    ) -> (i64, Vec<u8>, Vec<u8>) {
        let gone = || (137, Vec::new(), b"the container is gone\n".to_vec());
        let mut command = {
            let state = self.state();
            let Some(container) = state.containers.get(name) else {
                return gone();
            };
            let mut command = tokio::process::Command::new(which::which("unshare").unwrap());
            let apart = if nix::unistd::geteuid().is_root() {
                "-m"
            } else {
                "-rm"
            };
            command
                .args([apart, "/bin/sh", "-c", ENTER, "sh"])
                .arg(self.root(&container.id))
                .arg("/played:/usr/local/bin:/usr/bin:/bin");
            for (place, volume) in &container.volumes {
                command.arg(self.volume(volume)).arg(place);
            }
            command.arg("--").args(argv);
            command
        };
        let mut child = command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = async move {
            let _ = stdin.write_all(&input.unwrap_or_default()).await;
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), feed);
        match output {
            Ok(output) => (
                output.status.code().unwrap_or(137).into(),
                output.stdout,
                output.stderr,
            ),
            Err(_) => gone(),
        }
    }

    /// Where a path of a container is on this machine.
    fn place(&self, name: &str, path: &str) -> Option<PathBuf> {
        let state = self.state();
        let container = state.containers.get(name)?;
        let volume = container
            .volumes
            .iter()
            .find(|(place, _)| Path::new(path).starts_with(place));
        Some(match volume {
            Some((place, volume)) => self
                .volume(volume)
                .join(Path::new(path).strip_prefix(place).unwrap()),
            None => self.root(&container.id).join(path.trim_start_matches('/')),
        })
    }

    async fn download(&self, called: &str, path: &str) -> Reply {
        let Some(place) = self.named(called).and_then(|name| self.place(&name, path)) else {
            return missing("container", called);
        };
        let Ok(metadata) = fs::symlink_metadata(&place) else {
            return error(
                404,
                &format!("Could not find the file {path} in container {called}"),
            );
        };
        let name = place.file_name().unwrap_or_default().to_owned();
        let mut archive = tar::Builder::new(Vec::new());
        archive.follow_symlinks(false);
        let packed = match metadata.is_dir() {
            true => archive.append_dir_all(&name, &place),
            false => archive.append_path_with_name(&place, &name),
        };
        let bytes = packed.and_then(|()| archive.into_inner());
        let about = json!({"name": name.to_string_lossy(), "size": 0, "mode": 0, "mtime": "2026-01-01T00:00:00Z", "linkTarget": ""});
        let about = base64::engine::general_purpose::STANDARD.encode(about.to_string());
        let head =
            format!("Content-Type: application/x-tar\r\nX-Docker-Container-Path-Stat: {about}\r\n");
        match bytes {
            Ok(bytes) => Reply::Whole(200, head, bytes),
            Err(failure) => error(500, &failure.to_string()),
        }
    }

    async fn upload(&self, called: &str, path: &str, archive: &[u8]) -> Reply {
        let Some(name) = self.named(called) else {
            return missing("container", called);
        };
        // In the container's own view, since the archive may lead into its volumes.
        let argv = ["tar", "--no-same-owner", "-xf", "-", "-C", path].map(str::to_owned);
        match self.command(&name, &argv, Some(archive.to_vec())).await {
            (0, ..) => Reply::empty(200),
            (_, _, stderr) => error(404, &String::from_utf8_lossy(&stderr)),
        }
    }

    fn things(&self, method: &str, kind: &str, rest: &[&str], request: &Request) -> Reply {
        let mut state = self.state();
        let used = |state: &State, name: &str| {
            state
                .containers
                .values()
                .any(|it| it.volumes.values().any(|volume| volume == name))
        };
        let told = |name: &str, labels: &BTreeMap<String, String>| {
            json!({
                "Id": name, "Name": name, "Labels": labels, "Driver": if kind == "networks" { "bridge" } else { "local" },
                "Mountpoint": format!("/volumes/{name}"), "Scope": "local", "Options": {}, "Containers": {}, "Warning": "",
                "IPAM": {"Config": [{"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}]},
            })
        };
        let things = match kind {
            "networks" => &mut state.networks,
            _ => &mut state.volumes,
        };
        match (method, rest) {
            ("GET", []) => {
                let all: Vec<Value> = things
                    .iter()
                    .map(|(name, labels)| told(name, labels))
                    .collect();
                Reply::json(
                    200,
                    &if kind == "networks" {
                        json!(all)
                    } else {
                        json!({"Volumes": all})
                    },
                )
            }
            ("GET", [name]) => match things.get(*name) {
                Some(labels) => Reply::json(200, &told(name, labels)),
                None => missing(kind.trim_end_matches('s'), name),
            },
            ("POST", ["create"]) => {
                let body = request.json();
                let name = body["Name"].as_str().unwrap_or_default().to_owned();
                let labels: BTreeMap<String, String> =
                    serde_json::from_value(body["Labels"].clone()).unwrap_or_default();
                // A volume that is there already stays as it is.
                let labels = things.entry(name.clone()).or_insert(labels).clone();
                if kind == "volumes" {
                    fs::create_dir_all(self.volume(&name)).unwrap();
                }
                Reply::json(201, &told(&name, &labels))
            }
            ("DELETE", [name]) if kind == "volumes" && used(&state, name) => {
                error(409, &format!("remove {name}: volume is in use"))
            }
            ("DELETE", [name]) => {
                let things = match kind {
                    "networks" => &mut state.networks,
                    _ => &mut state.volumes,
                };
                match things.remove(*name) {
                    Some(_) => {
                        let _ = fs::remove_dir_all(self.volume(name));
                        Reply::empty(204)
                    }
                    None => missing(kind.trim_end_matches('s'), name),
                }
            }
            _ => error(404, "that isn't played"),
        }
    }

    fn load(&self, archive: &[u8]) -> Reply {
        let loaded = || -> std::io::Result<()> {
            for entry in tar::Archive::new(archive).entries()? {
                let mut entry = entry?;
                if entry.path()?.as_ref() != Path::new("manifest.json") {
                    continue;
                }
                let mut text = String::new();
                entry.read_to_string(&mut text)?;
                let images: Vec<Value> = serde_json::from_str(&text)?;
                for image in images {
                    let config = image["Config"].as_str().unwrap_or_default();
                    let id = format!("sha256:{}", config.trim_start_matches("blobs/sha256/"));
                    for name in texts(&image["RepoTags"]) {
                        self.state().images.insert(name.to_owned(), id.clone());
                    }
                }
            }
            Ok(())
        };
        match loaded() {
            Ok(()) => Reply::json(200, &json!({"stream": "Loaded\n"})),
            Err(failure) => error(500, &failure.to_string()),
        }
    }

    /// What kind does by Docker and in its node, step by step.
    async fn kind(self: &Arc<Self>, what: &str, request: &Request) -> Reply {
        let cluster = request.asks("name");
        let name = format!("{cluster}-control-plane");
        if what == "node" {
            self.state().networks.entry("kind".to_owned()).or_default();
            let config: Value = serde_yaml::from_slice(&request.body).unwrap_or_default();
            let port = port();
            let made = self.create(&name, node(cluster, request.asks("image"), &config, port));
            return match made {
                Reply::Whole(201, ..) => self.run(&name).await,
                refused => refused,
            };
        }
        let Some(id) = self.state().containers.get(&name).map(|it| it.id.clone()) else {
            return missing("container", &name);
        };
        let kubernetes = self.root(&id).join("etc/kubernetes");
        match what {
            "init" => {
                fs::create_dir_all(kubernetes.join("manifests")).unwrap();
                for file in ["admin.conf", "super-admin.conf"] {
                    fs::write(kubernetes.join(file), kubeconfig()).unwrap();
                }
                fs::write(kubernetes.join("kubelet.conf"), "bootstrap\n").unwrap();
                let config = self.place(&name, "/var/lib/kubelet").unwrap();
                fs::create_dir_all(config.join("pki")).unwrap();
                fs::write(config.join("config.yaml"), "kind: KubeletConfiguration\n").unwrap();
                if let Err(message) = self.boot(&name).await {
                    return error(500, &message);
                }
            }
            "join" => {
                fs::write(kubernetes.join("kubelet.conf"), "kubelet-client-current.pem\n").unwrap();
                self.put(&name, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}));
                let corefile = ".:53 {\n    errors\n    forward . /etc/resolv.conf\n}\n";
                self.put(&name, &json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "namespace": "kube-system"},
                    "data": {"Corefile": corefile},
                }));
                let labels = json!({"k8s-app": "kube-dns"});
                self.put(&name, &json!({
                    "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "coredns", "namespace": "kube-system"},
                    "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {
                        "metadata": {"labels": labels},
                        "spec": {"containers": [{"name": "coredns", "image": "system/coredns", "readinessProbe": {"periodSeconds": 10}}]},
                    }},
                }));
            }
            _ => self.put(&name, &json!({
                "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "standard"},
                "provisioner": "rancher.io/local-path",
            })),
        }
        Reply::empty(204)
    }

    fn put(&self, node: &str, object: &Value) {
        let cluster = self
            .state()
            .containers
            .get(node)
            .and_then(|it| it.cluster.clone());
        if let Some(cluster) = cluster {
            let key: Option<Key> = cluster.store().key_of(object, "");
            if let Some(key) = key {
                let _ = cluster.store().put(&key, object.clone());
            }
            cluster.told();
        }
    }
}

/// What kind asks Docker for.
fn node(cluster: &str, image: &str, config: &Value, port: u16) -> Value {
    let own = &config["nodes"][0];
    let mut binds = vec!["/lib/modules:/lib/modules:ro".to_owned()];
    for mount in own["extraMounts"].as_array().into_iter().flatten() {
        let text = |key: &str| mount[key].as_str().unwrap_or_default();
        let mode = if mount["readOnly"] == true { ":ro" } else { "" };
        binds.push(format!(
            "{}:{}{mode}",
            text("hostPath"),
            text("containerPath")
        ));
    }
    let mut ports = json!({"6443/tcp": [{"HostIp": "127.0.0.1", "HostPort": port.to_string()}]});
    for mapping in own["extraPortMappings"].as_array().into_iter().flatten() {
        ports[format!("{}/tcp", mapping["containerPort"])] = json!([{"HostIp": mapping["listenAddress"], "HostPort": mapping["hostPort"].to_string()}]);
    }
    let name = format!("{cluster}-control-plane");
    json!({
        "Hostname": name, "Image": image, "Entrypoint": ["/usr/local/bin/entrypoint", "/sbin/init"],
        "Labels": {"io.x-k8s.kind.cluster": cluster, "io.x-k8s.kind.role": "control-plane"},
        "Volumes": {"/var": {}},
        "HostConfig": {"Binds": binds, "NetworkMode": "kind", "Privileged": true, "PortBindings": ports},
    })
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn texts_of_mounts(body: &Value) -> impl Iterator<Item = &str> {
    let mounts = body["HostConfig"]["Mounts"].as_array();
    mounts
        .into_iter()
        .flatten()
        .filter_map(|mount| mount["Source"].as_str())
}

fn frame(stream: u8, bytes: &[u8]) -> Vec<u8> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[stream, 0, 0, 0][..], &length, bytes].concat()
}

fn missing(what: &str, name: &str) -> Reply {
    error(404, &format!("No such {what}: {name}"))
}

fn error(status: u16, message: &str) -> Reply {
    Reply::json(status, &json!({"message": message}))
}
