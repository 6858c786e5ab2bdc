//! A Docker engine that is only played: it answers the calls devenv makes, from a state that a test sets and looks at.
//!
//! A fake `kind` or `k3d` makes a container appear by making a file of its name in the engine's folder:
//! `touch "$ENGINE/dev-control-plane"`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The engine; it goes with the test.
pub(crate) struct Engine {
    folder: tempfile::TempDir,
    world: Arc<Mutex<World>>,
}

/// What there is, and what was asked for.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) containers: Vec<Container>,
    /// Image names and ids.
    pub(crate) images: BTreeMap<String, String>,
    /// Networks and volumes ("network a", "volume b"), and their labels.
    pub(crate) things: BTreeMap<String, BTreeMap<String, String>>,
    /// How commands in containers answer: the first whose beginning fits; without one, as if the program weren't there.
    pub(crate) answers: Vec<Answer>,
    /// What `docker info` says, beyond and in place of a little that is always the same.
    pub(crate) info: BTreeMap<String, Value>,
    /// The version, and the architecture of what it runs.
    pub(crate) version: Option<(String, String)>,
    /// Networks: names, subnets.
    pub(crate) networks: Vec<(String, String)>,
    /// Volumes: names, sizes; they lie in `/volumes`, and no container has one whose name is of digits alone.
    pub(crate) volumes: Vec<(String, u64)>,
    /// Every call fails with this status and message.
    pub(crate) broken: Option<(u16, String)>,
    /// "GET /containers/json?all=true", in order, without the version of the API.
    pub(crate) requests: Vec<String>,
    /// The commands that ran in containers, in order.
    pub(crate) execs: Vec<Exec>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    /// "running", "exited", "paused", "created"
    pub(crate) state: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Sources and destinations.
    pub(crate) mounts: Vec<(String, String)>,
    /// Port in the container, address and port on the host.
    pub(crate) ports: Vec<(u16, String, u16)>,
    /// In the network `kind`.
    pub(crate) address: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    /// What is in its own layer, in bytes.
    pub(crate) written: u64,
    /// It is there only from when on a file of its name is in the engine's folder.
    pub(crate) is_to_come: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) argv: Vec<String>,
    pub(crate) status: i64,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) after: Duration,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Exec {
    pub(crate) container: String,
    pub(crate) argv: Vec<String>,
    pub(crate) stdin: Vec<u8>,
    reads: bool,
    status: Option<i64>,
}

impl Container {
    /// The one node of a kind cluster, marked as an environment's.
    pub(crate) fn node(cluster: &str, environment: &str) -> Self {
        let labels = [
            ("io.x-k8s.kind.cluster", cluster),
            ("io.x-k8s.kind.role", "control-plane"),
        ];
        Self {
            name: format!("{cluster}-control-plane"),
            image: "kindest/node:v1.34.4".to_owned(),
            state: "running".to_owned(),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            mounts: vec![("/mark".to_owned(), format!("/devenv/{environment}"))],
            ports: vec![(6443, "127.0.0.1".to_owned(), 40123)],
            address: "172.18.0.2".to_owned(),
            ..Self::default()
        }
    }

    /// The one node of a k3d cluster, marked as an environment's.
    pub(crate) fn k3d_node(cluster: &str, environment: &str) -> Self {
        let labels = [
            ("app", "k3d"),
            ("k3d.cluster", cluster),
            ("k3d.role", "server"),
            ("devenv.environment", environment),
        ];
        Self {
            name: format!("k3d-{cluster}-server-0"),
            image: "rancher/k3s:v1.34.2-k3s1".to_owned(),
            state: "running".to_owned(),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ports: vec![(6443, "127.0.0.1".to_owned(), 40123)],
            address: "172.19.0.2".to_owned(),
            ..Self::default()
        }
    }

    fn id(&self) -> String {
        format!(
            "{:0<64}",
            self.name
                .bytes()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        )
    }

    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.id() == name
    }

    fn listed(&self) -> Value {
        let ports = self.ports.iter().map(|(inside, address, outside)| {
            json!({"IP": address, "PrivatePort": inside, "PublicPort": outside, "Type": "tcp"})
        });
        json!({
            "Id": self.id(),
            "Names": [format!("/{}", self.name)],
            "Image": self.image,
            "State": self.state,
            "Labels": self.labels,
            "Created": self.created,
            "SizeRw": self.written,
            "Ports": if self.state == "running" { ports.collect() } else { Vec::new() },
            "Mounts": self.mounts(),
        })
    }

    fn inspected(&self) -> Value {
        let bindings: BTreeMap<_, _> = self
            .ports
            .iter()
            .map(|(inside, address, outside)| {
                (
                    format!("{inside}/tcp"),
                    json!([{"HostIp": address, "HostPort": outside.to_string()}]),
                )
            })
            .collect();
        json!({
            "Id": self.id(),
            "Name": format!("/{}", self.name),
            "State": {
                "Status": self.state,
                "Running": self.state == "running",
                "Paused": self.state == "paused",
                "ExitCode": if self.state == "exited" { 137 } else { 0 },
            },
            "Config": {"Image": self.image, "Labels": self.labels},
            "HostConfig": {"PortBindings": bindings},
            "NetworkSettings": {"Ports": bindings, "Networks": {"kind": {"IPAddress": self.address}}},
            "Mounts": self.mounts(),
        })
    }

    fn mounts(&self) -> Vec<Value> {
        let mount = |(source, destination): &(String, String)| json!({"Type": "bind", "Source": source, "Destination": destination, "Mode": "ro", "RW": false});
        self.mounts.iter().map(mount).collect()
    }
}

impl World {
    fn container(&mut self, name: &str) -> Option<&mut Container> {
        self.containers
            .iter_mut()
            .find(|container| !container.is_to_come && container.is_called(name))
    }
}

impl Engine {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("engine-")
            .tempdir()
            .unwrap();
        let world = Arc::new(Mutex::new(World::default()));
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let (shared, place) = (Arc::clone(&world), folder.path().to_owned());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (world, place) = (Arc::clone(&shared), place.clone());
                thread::spawn(move || serve(&stream.unwrap(), &world, &place));
            }
        });
        Self { folder, world }
    }

    /// As `DOCKER_HOST` wants it.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.folder().join("docker.sock").display())
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }
}

struct Request {
    method: String,
    path: String,
    query: String,
    body: Vec<u8>,
}

/// One connection: requests one after the other, until one turns it into the stream of a command.
fn serve(stream: &UnixStream, world: &Mutex<World>, folder: &Path) {
    let mut reader = BufReader::new(stream);
    while let Ok(Some(request)) = read_request(&mut reader) {
        let mut locked = world.lock().unwrap();
        arrive(&mut locked, folder);
        let line = format!("{} {}", request.method, request.path);
        locked.requests.push(if request.query.is_empty() {
            line
        } else {
            format!("{line}?{}", request.query)
        });
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        if let ("POST", ["exec", id, "start"], None) =
            (request.method.as_str(), parts.as_slice(), &locked.broken)
        {
            drop(locked);
            let _ = start_exec(stream, &mut reader, world, id);
            return;
        }
        let (status, body) = match locked.broken.clone() {
            Some((status, message)) => (status, message_of(&message)),
            None => answer(&mut locked, folder, &request, &parts),
        };
        drop(locked);
        let text = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let head = format!(
            "HTTP/1.1 {status} .\r\nApi-Version: 1.48\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        let mut writer = stream;
        if writer.write_all((head + &text).as_bytes()).is_err() {
            return;
        }
    }
}

/// What a fake program made a file for is there now.
fn arrive(world: &mut World, folder: &Path) {
    for container in &mut world.containers {
        container.is_to_come &= !folder.join(&container.name).exists();
    }
}

fn answer(world: &mut World, folder: &Path, request: &Request, parts: &[&str]) -> (u16, Value) {
    let missing = |what: &str, name: &str| (404, message_of(&format!("No such {what}: {name}")));
    match (request.method.as_str(), parts) {
        ("GET" | "HEAD", ["_ping"]) => (200, Value::Null),
        ("GET", ["version"]) => {
            let usual = || ("28.0.0".to_owned(), "amd64".to_owned());
            let (version, architecture) = world.version.clone().unwrap_or_else(usual);
            (
                200,
                json!({"Version": version, "ApiVersion": "1.48", "MinAPIVersion": "1.24", "Os": "linux", "Arch": architecture}),
            )
        }
        ("GET", ["info"]) => {
            let mut info = json!({"ServerVersion": "28.0.0", "NCPU": 2, "MemTotal": 8_000_000_000_u64, "CgroupVersion": "2"});
            for (key, value) in &world.info {
                info[key] = value.clone();
            }
            (200, info)
        }
        ("GET", ["networks"]) => {
            let networks = world.networks.iter().map(|(name, subnet)| {
                json!({"Name": name, "Id": "1234567890abcdef", "Driver": "bridge",
                    "IPAM": {"Config": [{"Subnet": subnet, "Gateway": subnet.replace(".0/16", ".1")}]}})
            });
            (200, networks.collect())
        }
        ("GET", ["volumes"]) => {
            let is_forsaken = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
            let volumes = world.volumes.iter().filter(|(name, _)| is_forsaken(name));
            let volumes: Vec<_> = volumes.map(|(name, _)| json!({"Name": name})).collect();
            (200, json!({"Volumes": volumes}))
        }
        ("GET", ["system", "df"]) => {
            let volumes = world.volumes.iter().map(|(name, size)| {
                json!({"Name": name, "Mountpoint": format!("/volumes/{name}"), "UsageData": {"Size": size, "RefCount": 1}})
            });
            (200, json!({"Volumes": volumes.collect::<Vec<_>>()}))
        }
        ("GET", ["containers", "json"]) => {
            let wanted = labels(&request.query);
            let all = request.query.contains("all=true");
            let listed = world.containers.iter().filter(|container| {
                let has = |(name, value): &(String, Option<String>)| {
                    let found = container.labels.get(name);
                    found.is_some() && (value.is_none() || found == value.as_ref())
                };
                !container.is_to_come
                    && (all || container.state == "running")
                    && wanted.iter().all(has)
            });
            (200, listed.map(Container::listed).collect())
        }
        ("GET", ["containers", name, "json"]) => match world.container(name) {
            Some(container) => (200, container.inspected()),
            None => missing("container", name),
        },
        ("POST", ["containers", name, "exec"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap();
            let argv = body["Cmd"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str);
            let Some(container) = world.container(name) else {
                return missing("container", name);
            };
            let exec = Exec {
                container: container.name.clone(),
                argv: argv.map(str::to_owned).collect(),
                reads: body["AttachStdin"] == true,
                ..Exec::default()
            };
            world.execs.push(exec);
            (201, json!({"Id": format!("exec{}", world.execs.len() - 1)}))
        }
        ("GET", ["exec", id, "json"]) => match world.execs.get(number(id)) {
            Some(exec) => (
                200,
                json!({"ID": id, "Running": exec.status.is_none(), "ExitCode": exec.status}),
            ),
            None => missing("exec instance", id),
        },
        ("POST", ["containers", name, action]) => match (world.container(name), *action) {
            (Some(container), "start" | "unpause") => turn(container, "running"),
            (Some(container), "stop" | "kill") => turn(container, "exited"),
            (Some(container), "pause") => turn(container, "paused"),
            (_, action) => missing("container or action", &format!("{name} {action}")),
        },
        ("DELETE", ["containers", name]) => match world.container(name).cloned() {
            Some(gone) => {
                world
                    .containers
                    .retain(|container| container.name != gone.name);
                let _ = fs::remove_file(folder.join(gone.name));
                (204, Value::Null)
            }
            None => missing("container", name),
        },
        ("GET", [kind @ ("networks" | "volumes"), name]) => {
            match world.things.get(&thing(kind, name)) {
                Some(labels) => (200, told(name, labels)),
                None => missing(kind.trim_end_matches('s'), name),
            }
        }
        ("POST", [kind @ ("networks" | "volumes"), "create"]) => {
            let wanted: Value = serde_json::from_slice(&request.body).unwrap();
            let name = wanted["Name"].as_str().unwrap();
            let labels = serde_json::from_value(wanted["Labels"].clone()).unwrap();
            world.things.insert(thing(kind, name), labels);
            (201, told(name, &world.things[&thing(kind, name)]))
        }
        ("DELETE", [kind @ ("networks" | "volumes"), name]) => {
            match world.things.remove(&thing(kind, name)) {
                Some(_) => (204, Value::Null),
                None => missing(kind.trim_end_matches('s'), name),
            }
        }
        ("POST", ["images", "load"]) => match load(&request.body) {
            Ok(images) => {
                let names: Vec<_> = images.keys().cloned().collect();
                world.images.extend(images);
                (
                    200,
                    json!({"stream": format!("Loaded image: {}\n", names.join(", "))}),
                )
            }
            Err(error) => (500, message_of(&error.to_string())),
        },
        // Names of images have slashes of their own.
        ("GET", ["images", name @ .., "json"]) => match world.images.get(&name.join("/")) {
            Some(id) => (200, json!({"Id": id, "RepoTags": [name.join("/")]})),
            None => missing("image", &name.join("/")),
        },
        (method, _) => (
            404,
            message_of(&format!(
                "the fake engine doesn't know {method} {}",
                request.path
            )),
        ),
    }
}

/// What a network or a volume is kept as.
fn thing(kind: &str, name: &str) -> String {
    format!("{} {name}", kind.trim_end_matches('s'))
}

fn told(name: &str, labels: &BTreeMap<String, String>) -> Value {
    json!({
        "Id": name, "Name": name, "Labels": labels, "Driver": "local", "Mountpoint": "/volume", "Scope": "local",
        "Options": {}, "Containers": {}, "Warning": "",
    })
}

fn turn(container: &mut Container, state: &str) -> (u16, Value) {
    if container.state == state {
        return (304, Value::Null);
    }
    state.clone_into(&mut container.state);
    (204, Value::Null)
}

fn message_of(text: &str) -> Value {
    json!({"message": text})
}

fn number(id: &str) -> usize {
    id.trim_start_matches("exec").parse().unwrap()
}

/// The images of an archive as `docker save` and OCI layouts with a `manifest.json` have it: names, and digests of configs.
fn load(archive: &[u8]) -> io::Result<BTreeMap<String, String>> {
    for entry in tar::Archive::new(archive).entries()? {
        let entry = entry?;
        if entry.path()?.as_ref() != Path::new("manifest.json") {
            continue;
        }
        let images: Vec<Value> = serde_json::from_reader(entry)?;
        let id = |image: &Value| {
            let config = image["Config"].as_str().unwrap_or_default();
            format!(
                "sha256:{}",
                config
                    .trim_start_matches("blobs/sha256/")
                    .trim_end_matches(".json")
            )
        };
        let names = |image: &Value| image["RepoTags"].as_array().cloned().unwrap_or_default();
        return Ok(images
            .iter()
            .flat_map(|image| {
                names(image)
                    .into_iter()
                    .map(|name| (name.as_str().unwrap_or_default().to_owned(), id(image)))
            })
            .collect());
    }
    Err(io::Error::other("no manifest.json in the archive"))
}

/// The label filters of a list: names, and values where they are asked for.
fn labels(query: &str) -> Vec<(String, Option<String>)> {
    let filters = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("filters="))
        .unwrap_or("{}");
    let filters: Value = serde_json::from_str(&decoded(filters)).unwrap();
    let labels = filters["label"].as_array().cloned().unwrap_or_default();
    labels
        .iter()
        .filter_map(Value::as_str)
        .map(|label| match label.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (label.to_owned(), None),
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// Turns the connection into the command's stream: its stdin is read to the end, then comes the answer.
fn start_exec(
    mut stream: &UnixStream,
    reader: &mut impl Read,
    world: &Mutex<World>,
    id: &str,
) -> io::Result<()> {
    stream.write_all(
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    )?;
    let exec = world.lock().unwrap().execs[number(id)].clone();
    let mut stdin = Vec::new();
    if exec.reads {
        reader.read_to_end(&mut stdin)?;
    }
    let answer = {
        let world = world.lock().unwrap();
        let fitting = world
            .answers
            .iter()
            .find(|answer| exec.argv.starts_with(&answer.argv));
        fitting.cloned().unwrap_or_else(|| Answer {
            status: 127,
            stderr: format!("{}: not found\n", exec.argv.join(" ")),
            ..Answer::default()
        })
    };
    thread::sleep(answer.after);
    for (number, text) in [(1, &answer.stdout), (2, &answer.stderr)] {
        if !text.is_empty() {
            let mut frame = vec![number, 0, 0, 0];
            frame.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            frame.extend(text.as_bytes());
            stream.write_all(&frame)?;
        }
    }
    let mut world = world.lock().unwrap();
    world.execs[number(id)].stdin = stdin;
    world.execs[number(id)].status = Some(answer.status);
    stream.shutdown(Shutdown::Both)
}

fn read_request(reader: &mut BufReader<&UnixStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut length = 0;
    let mut is_chunked = false;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "transfer-encoding" => is_chunked = value.trim() == "chunked",
            _ => {}
        }
    }
    let mut body = Vec::new();
    if is_chunked {
        while read_chunk(reader, &mut body)? {}
    } else {
        reader.take(length).read_to_end(&mut body)?;
    }
    Ok(Some(Request {
        method,
        path: without_version(path),
        query: query.to_owned(),
        body,
    }))
}

fn read_chunk(reader: &mut BufReader<&UnixStream>, body: &mut Vec<u8>) -> io::Result<bool> {
    let mut size = String::new();
    reader.read_line(&mut size)?;
    let size = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
    reader.take(size).read_to_end(body)?;
    reader.read_line(&mut String::new())?;
    Ok(size > 0)
}

/// "/v1.48/containers/json" is "/containers/json".
fn without_version(path: &str) -> String {
    match path.trim_start_matches('/').split_once('/') {
        Some((version, rest)) if version.starts_with("v1.") => format!("/{rest}"),
        _ => path.to_owned(),
    }
}

mod tests {
    use bollard::container::LogOutput;
    use bollard::exec::{CreateExecOptions, StartExecResults};
    use bollard::query_parameters::{
        ImportImageOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    };
    use futures::{StreamExt as _, TryStreamExt as _};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn client(engine: &Engine) -> bollard::Docker {
        let socket = engine.folder().join("docker.sock");
        bollard::Docker::connect_with_unix(
            socket.to_str().unwrap(),
            10,
            bollard::API_DEFAULT_VERSION,
        )
        .unwrap()
    }

    #[tokio::test]
    async fn containers_come_change_and_go() {
        let engine = Engine::start();
        let node = Container {
            is_to_come: true,
            ..Container::node("dev", "dev-1")
        };
        engine.world().containers.push(node);
        let client = client(&engine).negotiate_version().await.unwrap();
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&[("label", vec!["io.x-k8s.kind.cluster=dev"])].into())
            .build();
        let list = async || client.list_containers(Some(options.clone())).await.unwrap();

        assert!(list().await.is_empty());
        fs::write(engine.folder().join("dev-control-plane"), "").unwrap();
        assert_eq!(list().await.len(), 1);
        let found = client
            .inspect_container("dev-control-plane", None)
            .await
            .unwrap();
        assert_eq!(
            found.mounts.unwrap()[0].destination.as_deref(),
            Some("/devenv/dev-1")
        );
        client
            .stop_container("dev-control-plane", None)
            .await
            .unwrap();
        assert_eq!(engine.world().containers[0].state, "exited");
        client
            .start_container("dev-control-plane", None)
            .await
            .unwrap();
        let force = RemoveContainerOptionsBuilder::new().force(true).build();
        client
            .remove_container("dev-control-plane", Some(force))
            .await
            .unwrap();
        let gone = client
            .inspect_container("dev-control-plane", None)
            .await
            .unwrap_err();
        assert!(gone.to_string().contains("No such container"), "{gone}");
        assert_eq!(
            engine.world().requests.last().unwrap(),
            "GET /containers/dev-control-plane/json"
        );
    }

    #[tokio::test]
    async fn commands_read_and_answer() {
        let engine = Engine::start();
        engine
            .world()
            .containers
            .push(Container::node("dev", "dev-1"));
        engine.world().answers.push(Answer {
            argv: vec!["ctr".to_owned()],
            status: 3,
            stdout: "out".to_owned(),
            stderr: "err".to_owned(),
            ..Answer::default()
        });
        let client = client(&engine);
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(vec!["ctr", "images", "import", "-"]),
            ..CreateExecOptions::default()
        };
        let exec = client
            .create_exec("dev-control-plane", options)
            .await
            .unwrap()
            .id;
        let StartExecResults::Attached {
            mut output,
            mut input,
        } = client.start_exec(&exec, None).await.unwrap()
        else {
            panic!("detached");
        };
        input.write_all(b"an archive").await.unwrap();
        input.shutdown().await.unwrap();
        let mut pieces = Vec::new();
        while let Some(piece) = output.next().await {
            pieces.push(match piece.unwrap() {
                LogOutput::StdOut { message } => ("stdout", message),
                LogOutput::StdErr { message } => ("stderr", message),
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(pieces, [("stdout", "out".into()), ("stderr", "err".into())]);
        assert_eq!(client.inspect_exec(&exec).await.unwrap().exit_code, Some(3));
        let execs = engine.world().execs.clone();
        assert_eq!(
            (execs[0].container.as_str(), execs[0].stdin.as_slice()),
            ("dev-control-plane", &b"an archive"[..])
        );
    }

    #[tokio::test]
    async fn images_are_loaded_from_archives() {
        let engine = Engine::start();
        let client = client(&engine);
        let manifest =
            json!([{"Config": "blobs/sha256/abc", "RepoTags": ["docker.io/kindest/node:v1"]}])
                .to_string();
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(manifest.len() as u64);
        archive
            .append_data(&mut header, "manifest.json", manifest.as_bytes())
            .unwrap();
        let archive = archive.into_inner().unwrap();

        assert!(
            client
                .inspect_image("docker.io/kindest/node:v1")
                .await
                .is_err()
        );
        let chunks: Vec<io::Result<_>> = archive
            .chunks(100)
            .map(|chunk| Ok(chunk.to_vec().into()))
            .collect();
        let options = ImportImageOptions::default();
        let lines: Vec<_> = client
            .import_image_stream(options, futures::stream::iter(chunks), None)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(lines.len(), 1);
        let image = client
            .inspect_image("docker.io/kindest/node:v1")
            .await
            .unwrap();
        assert_eq!(image.id.as_deref(), Some("sha256:abc"));
    }

    #[tokio::test]
    async fn it_can_be_broken() {
        let engine = Engine::start();
        engine.world().broken = Some((500, "out of order".to_owned()));
        let error = client(&engine).version().await.unwrap_err().to_string();
        assert!(error.contains("out of order"), "{error}");
    }
}
