//! Everything said to the Docker daemon.
//!
//! The API version is negotiated, from Docker 20.10 (1.41) on. What is deliberately not here: which containers are ours (that
//! is decided by the caller, from what [`Docker::containers`] saw) and the `docker` program, which is never run.

pub mod archive;
pub mod beside;
pub mod recipe;

use std::collections::HashMap;
use std::env;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use bollard::API_DEFAULT_VERSION;
use bollard::container::LogOutput;
use bollard::errors::Error as ApiError;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, NetworkCreateRequest,
    NetworkDisconnectRequest, PortMap, VolumeCreateRequest,
};
use bollard::query_parameters::{
    ImportImageOptions, InspectNetworkOptions, ListContainersOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions,
    StopContainerOptionsBuilder,
};
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

use crate::error::Failure;
use crate::store::reference::Digest;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// The labels by which kind and k3d tell what a container of a cluster is for.
const ROLE_LABELS: [&str; 2] = ["io.x-k8s.kind.role", "k3d.role"];
/// A daemon that accepts the connection but says nothing for so long is stuck or still starting.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// An address that isn't reachable at all is told sooner.
const REACH_WITHIN: Duration = Duration::from_secs(1);
const API_TIMEOUT_SECONDS: u64 = 120;
/// Output of a command in a container beyond this is cut; nothing we run says so much.
const OUTPUT_LIMIT: usize = 64 << 20;

/// A connection to the Docker daemon; clones share it.
#[derive(Clone, Debug)]
pub struct Docker {
    api: bollard::Docker,
    address: String,
    version: String,
    platform: Platform,
}

/// What the Docker server runs, and so what its containers run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// As Go and OCI name it: `amd64`, `arm64`.
    pub architecture: String,
}

/// A container of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The container's id.
    pub id: String,
    /// Its name, without the leading slash.
    pub name: String,
    /// What it is for, as its provider says: `control-plane`, `worker`, `external-load-balancer` with kind; `server`,
    /// `agent`, `loadbalancer`, `noRole` with k3d.
    pub role: String,
    /// What it does now.
    pub state: State,
    /// The exit status, where it ended.
    pub exit_code: Option<i64>,
    /// What is mounted where.
    pub mounts: Vec<Mount>,
    /// The image it was made from, as it was named then.
    pub image: String,
    /// The ports it was created to publish, also while it is stopped.
    pub ports: Vec<Port>,
    /// When it was last started.
    pub started: Option<SystemTime>,
    /// Its IPv4 address on the cluster's network, while it runs.
    pub address: Option<Ipv4Addr>,
    /// All its labels.
    pub labels: HashMap<String, String>,
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// It runs.
    Running,
    /// Frozen by `docker pause`.
    Paused,
    /// About to be started again by Docker.
    Restarting,
    /// It ended.
    Exited,
    /// Half removed.
    Dead,
}

/// One mount of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The host's folder, or the volume's.
    pub source: PathBuf,
    /// The folder in the container.
    pub destination: PathBuf,
    /// The volume's name, if it is one.
    pub volume: Option<String>,
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The host's address; none given means all of them.
    pub address: String,
    /// The host's port; 0 where Docker chooses and hasn't yet.
    pub host: u16,
    /// The container's port.
    pub container: u16,
}

/// What a command in a container left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// The exit status.
    pub status: i64,
    /// Everything it wrote to stdout.
    pub stdout: Vec<u8>,
    /// Everything it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// Who publishes a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The container's name.
    pub container: String,
    /// Its image.
    pub image: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

/// What the daemon says of itself and of the machine it runs on; what it leaves out is as if it weren't so.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    /// The storage driver, such as `overlay2`.
    pub driver: String,
    /// What the storage driver tells of itself.
    pub driver_status: Option<Vec<(String, String)>>,
    /// Where it keeps images, containers and volumes, on its own machine.
    pub docker_root_dir: PathBuf,
    /// Whether the kernel can limit memory.
    pub memory_limit: Option<bool>,
    /// Whether the kernel can limit CPU time.
    pub cpu_cfs_quota: Option<bool>,
    /// Whether the kernel passes packets on.
    #[serde(rename = "IPv4Forwarding")]
    pub ipv4_forwarding: Option<bool>,
    /// Its clock, as RFC 3339 has it.
    pub system_time: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// The kernel's version, such as `6.1.0-37-amd64`.
    pub kernel_version: String,
    /// Such as `Debian GNU/Linux 12 (bookworm)` or `Docker Desktop`.
    pub operating_system: String,
    /// How many CPUs it has.
    #[serde(rename = "NCPU")]
    pub cpus: u64,
    /// How much memory it has, in bytes.
    #[serde(rename = "MemTotal")]
    pub memory: u64,
    /// The daemon's own proxy for HTTPS.
    pub https_proxy: String,
    /// Such as `name=rootless`.
    pub security_options: Option<Vec<String>>,
}

impl Info {
    /// Whether the daemon runs as an ordinary user.
    pub fn is_rootless(&self) -> bool {
        let options = self.security_options.iter().flatten();
        options.into_iter().any(|option| option == "name=rootless")
    }

    /// What the storage driver says about this.
    pub fn of_driver(&self, key: &str) -> Option<&str> {
        let status = self.driver_status.iter().flatten();
        status
            .into_iter()
            .find_map(|(name, value)| (name == key).then_some(value.as_str()))
    }
}

/// A network of Docker's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its driver, such as `bridge`.
    pub driver: String,
    /// The interface that it is on the daemon's machine.
    pub interface: String,
    /// Its subnets, such as `172.18.0.0/16`.
    pub subnets: Vec<String>,
    /// The addresses at which containers reach the daemon's machine.
    pub gateways: Vec<String>,
}

/// When a container was made, and how much it has written since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Seconds since 1970.
    pub created: u64,
    /// What is in its own layer, in bytes.
    pub bytes: u64,
}

/// Finds the daemon and makes sure that it answers. Absent, stopped and not permitted are told apart within a second.
pub async fn connect() -> anyhow::Result<Docker> {
    let address = Address::find(&Surroundings::of_this_process())?;
    connect_to(&address).await
}

/// Like [`connect`], at a given address.
async fn connect_to(address: &Address) -> anyhow::Result<Docker> {
    let api = match address {
        Address::Socket(path) => {
            reach_socket(path).await?;
            bollard::Docker::connect_with_unix(
                &path.to_string_lossy(),
                API_TIMEOUT_SECONDS,
                API_DEFAULT_VERSION,
            )
        }
        Address::Tcp(host) => {
            reach_tcp(host).await?;
            bollard::Docker::connect_with_http(
                &format!("tcp://{host}"),
                API_TIMEOUT_SECONDS,
                API_DEFAULT_VERSION,
            )
        }
    }
    .with_context(|| format!("can't use Docker at {address}"))?;
    let version = async {
        let api = api.negotiate_version().await?;
        let version = api.version().await?;
        Ok::<_, ApiError>((api, version))
    };
    let (api, version) = match timeout(ANSWER_WITHIN, version).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            return Err(Failure::Docker {
                message: format!("Docker at {address} answered with an error: {error}"),
                hint: "see what `docker version` says".to_owned(),
            }
            .into());
        }
        Err(_) => {
            return Err(Failure::Docker {
                message: format!(
                    "Docker at {address} accepts connections, but doesn't answer within {} s",
                    ANSWER_WITHIN.as_secs()
                ),
                hint: "it may still be starting: see what `docker version` says, restart Docker if it hangs too".to_owned(),
            }
            .into());
        }
    };
    Ok(Docker {
        api,
        address: address.to_string(),
        version: version.version.unwrap_or_default(),
        platform: Platform {
            os: version.os.unwrap_or_else(|| "linux".to_owned()),
            architecture: version
                .arch
                .context("Docker didn't name its architecture")?,
        },
    })
}

/// Where the daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Socket(PathBuf),
    Tcp(String),
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(formatter, "unix://{}", path.display()),
            Self::Tcp(host) => write!(formatter, "tcp://{host}"),
        }
    }
}

/// What decides about the address.
#[derive(Debug, Default)]
struct Surroundings {
    docker_host: Option<String>,
    docker_context: Option<String>,
    tls: bool,
    config_folder: Option<PathBuf>,
    home: Option<PathBuf>,
    macos: bool,
}

impl Surroundings {
    fn of_this_process() -> Self {
        let given = |name| {
            env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        let home = given("HOME").map(PathBuf::from);
        Self {
            docker_host: given("DOCKER_HOST"),
            docker_context: given("DOCKER_CONTEXT"),
            tls: given("DOCKER_TLS_VERIFY").is_some(),
            config_folder: given("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| home.as_ref().map(|home| home.join(".docker"))),
            home,
            macos: cfg!(target_os = "macos"),
        }
    }
}

#[derive(Deserialize)]
struct ClientConfig {
    #[serde(rename = "currentContext", default)]
    current_context: String,
}

#[derive(Deserialize)]
struct ContextMeta {
    #[serde(rename = "Endpoints")]
    endpoints: HashMap<String, ContextEndpoint>,
}

#[derive(Deserialize)]
struct ContextEndpoint {
    #[serde(rename = "Host", default)]
    host: String,
}

impl Address {
    /// In the docker program's own order: DOCKER_HOST, DOCKER_CONTEXT, the current context, the default socket.
    fn find(surroundings: &Surroundings) -> anyhow::Result<Self> {
        if let Some(host) = &surroundings.docker_host {
            return Self::parse(host, "DOCKER_HOST", surroundings.tls);
        }
        if let Some(folder) = &surroundings.config_folder {
            let context = match &surroundings.docker_context {
                Some(context) => context.clone(),
                None => current_context(folder)?,
            };
            if !context.is_empty() && context != "default" {
                let host = context_host(folder, &context)?;
                return Self::parse(
                    &host,
                    &format!("the docker context `{context}`"),
                    surroundings.tls,
                );
            }
        }
        // Docker Desktop leaves out the link in /var/run when it may not make it.
        let of_desktop = surroundings
            .home
            .as_ref()
            .map(|home| home.join(".docker/run/docker.sock"));
        match of_desktop {
            Some(socket)
                if surroundings.macos && !Path::new(DEFAULT_SOCKET).exists() && socket.exists() =>
            {
                Ok(Self::Socket(socket))
            }
            _ => Ok(Self::Socket(PathBuf::from(DEFAULT_SOCKET))),
        }
    }

    fn parse(host: &str, origin: &str, tls: bool) -> anyhow::Result<Self> {
        if let Some(path) = host.strip_prefix("unix://") {
            return Ok(Self::Socket(PathBuf::from(path)));
        }
        if let Some(address) = host
            .strip_prefix("tcp://")
            .or_else(|| host.strip_prefix("http://"))
            && !tls
        {
            return Ok(Self::Tcp(address.trim_end_matches('/').to_owned()));
        }
        Err(Failure::Docker {
            message: format!(
                "{origin} leads to {host}{}, which devenv can't speak to",
                if tls { " with TLS" } else { "" }
            ),
            hint: "devenv speaks to Docker by a local socket (unix://) or plain tcp://; for another machine forward its socket: `ssh -nNT -L /tmp/docker.sock:/var/run/docker.sock HOST`, then `export DOCKER_HOST=unix:///tmp/docker.sock`".to_owned(),
        }
        .into())
    }
}

/// The name of the current context; empty where there is none.
fn current_context(config_folder: &Path) -> anyhow::Result<String> {
    let path = config_folder.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // A config that can't be read doesn't keep anybody from Docker, the docker program only warns as well.
        Err(_) => return Ok(String::new()),
    };
    let config: ClientConfig = serde_json::from_slice(&text)
        .with_context(|| format!("can't read {}, the docker program's config", path.display()))?;
    Ok(config.current_context)
}

fn context_host(config_folder: &Path, context: &str) -> anyhow::Result<String> {
    let folder = Digest::of(context.as_bytes());
    let path = config_folder
        .join("contexts/meta")
        .join(folder.hex())
        .join("meta.json");
    let failure = |what: String| Failure::Docker {
        message: format!("the docker context `{context}` can't be used: {what}"),
        hint: "choose another one: `docker context ls`, `docker context use default`".to_owned(),
    };
    let text =
        std::fs::read(&path).map_err(|error| failure(format!("{}: {error}", path.display())))?;
    let meta: ContextMeta = serde_json::from_slice(&text)
        .map_err(|error| failure(format!("{}: {error}", path.display())))?;
    match meta.endpoints.get("docker") {
        Some(endpoint) if !endpoint.host.is_empty() => Ok(endpoint.host.clone()),
        _ => Err(failure(format!("{} names no docker host", path.display())).into()),
    }
}

async fn reach_socket(path: &Path) -> anyhow::Result<()> {
    let reached = timeout(REACH_WITHIN, tokio::net::UnixStream::connect(path)).await;
    let (message, hint) = match reached {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => {
            let docker_is_installed = which::which("docker").is_ok();
            socket_failure(path, &error, docker_is_installed, cfg!(target_os = "macos"))
        }
        Err(_) => (
            format!(
                "Docker at unix://{} doesn't take connections",
                path.display()
            ),
            "restart Docker".to_owned(),
        ),
    };
    Err(Failure::Docker { message, hint }.into())
}

/// What it means that a socket can't be connected to, and what to type.
fn socket_failure(
    path: &Path,
    error: &io::Error,
    docker_is_installed: bool,
    macos: bool,
) -> (String, String) {
    let place = format!("unix://{}", path.display());
    let start = match macos {
        true => "start Docker Desktop: `open -a Docker`",
        false => "start it: `sudo systemctl start docker`",
    };
    match error.kind() {
        io::ErrorKind::NotFound if docker_is_installed => (
            format!("Docker isn't running: nothing is at {place}"),
            start.to_owned(),
        ),
        io::ErrorKind::NotFound => (
            format!(
                "Docker isn't installed: nothing is at {place}, and there is no `docker` on PATH"
            ),
            "install it: https://docs.docker.com/engine/install".to_owned(),
        ),
        io::ErrorKind::ConnectionRefused => (
            format!("Docker isn't running: nobody listens at {place}"),
            start.to_owned(),
        ),
        io::ErrorKind::PermissionDenied => (
            format!("Docker doesn't let us in: no permission to use {place}"),
            "join the group that may: `sudo usermod -aG docker \"$USER\"`, then log in again"
                .to_owned(),
        ),
        _ => (
            format!("can't connect to Docker at {place}: {error}"),
            "see what `docker version` says".to_owned(),
        ),
    }
}

async fn reach_tcp(host: &str) -> anyhow::Result<()> {
    let what = match timeout(REACH_WITHIN, tokio::net::TcpStream::connect(host)).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", REACH_WITHIN.as_secs()),
    };
    Err(Failure::Docker {
        message: format!("can't connect to Docker at tcp://{host}: {what}"),
        hint: "start Docker there, or `unset DOCKER_HOST` to use the one on this machine"
            .to_owned(),
    }
    .into())
}

/// Whether this error is an answer of Docker's, or one that it owes.
pub fn answered(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<bollard::errors::Error>())
}

impl Docker {
    /// The daemon's address, as a person would write it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's version, such as `20.10.24+dfsg1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the server runs.
    pub fn server_platform(&self) -> &Platform {
        &self.platform
    }

    /// The containers with a label, stopped ones too, by name.
    pub async fn containers(&self, label: &str, value: Option<&str>) -> anyhow::Result<Vec<Node>> {
        let filter = match value {
            Some(value) => format!("{label}={value}"),
            None => label.to_owned(),
        };
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&HashMap::from([("label", vec![filter.as_str()])]))
            .build();
        let listed = self
            .api
            .list_containers(Some(options))
            .await
            .with_context(|| format!("can't list the containers with the label {filter}"))?;
        let mut nodes = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            match self.api.inspect_container(&id, None).await {
                Ok(container) => nodes.push(node(container)),
                // It went between the two calls.
                Err(error) if status(&error) == Some(404) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("can't inspect the container {id}"));
                }
            }
        }
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(nodes)
    }

    /// Starts a stopped container; one that runs already is fine.
    pub async fn start(&self, node: &str) -> anyhow::Result<()> {
        self.api
            .start_container(node, None)
            .await
            .with_context(|| format!("can't start the container {node}"))
    }

    /// Stops a container in order, within ten seconds; one that doesn't run is fine.
    pub async fn stop(&self, node: &str) -> anyhow::Result<()> {
        let options = StopContainerOptionsBuilder::default().t(10).build();
        self.api
            .stop_container(node, Some(options))
            .await
            .with_context(|| format!("can't stop the container {node}"))
    }

    /// Lets a paused container go on; one that isn't paused is fine.
    pub async fn unpause(&self, node: &str) -> anyhow::Result<()> {
        match self.api.unpause_container(node).await {
            // Docker has no status of its own for "is not paused": 500 in old versions, 409 in new ones.
            Err(ApiError::DockerResponseServerError { message, .. })
                if message.contains("is not paused") =>
            {
                Ok(())
            }
            unpaused => unpaused.with_context(|| format!("can't unpause the container {node}")),
        }
    }

    /// Kills and removes a container and the volumes that Docker made for it; one that is gone already is fine.
    pub async fn remove(&self, node: &str) -> anyhow::Result<()> {
        self.remove_container(node, true).await
    }

    /// The same, but its volumes stay.
    pub async fn remove_but_volumes(&self, node: &str) -> anyhow::Result<()> {
        self.remove_container(node, false).await
    }

    async fn remove_container(&self, node: &str, volumes: bool) -> anyhow::Result<()> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(volumes)
            .build();
        match self.api.remove_container(node, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            // Somebody else is removing it: when it's gone, it's gone.
            Err(error) if status(&error) == Some(409) => self.wait_until_gone(node).await,
            Err(error) => Err(error).with_context(|| format!("can't remove the container {node}")),
        }
    }

    async fn wait_until_gone(&self, node: &str) -> anyhow::Result<()> {
        let after = Duration::from_secs(60);
        let deadline = Instant::now() + after;
        loop {
            match self.api.inspect_container(node, None).await {
                Err(error) if status(&error) == Some(404) => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(200)).await;
                }
                seen => {
                    return Err(Failure::TimedOut {
                        what: format!("the removal of the container {node}"),
                        after,
                        last_seen: match seen {
                            Ok(container) => format!("{:?}", self::node(container).state),
                            Err(error) => error.to_string(),
                        },
                        hint: format!("docker rm --force --volumes {node}"),
                    }
                    .into());
                }
            }
        }
    }

    /// The labels of a network, if there is one of that name.
    pub async fn network(&self, name: &str) -> anyhow::Result<Option<HashMap<String, String>>> {
        let found = self
            .api
            .inspect_network(name, None::<InspectNetworkOptions>)
            .await;
        match found {
            Ok(network) => Ok(Some(network.labels.unwrap_or_default())),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't inspect the network {name}")),
        }
    }

    /// Makes a network of a bridge of its own.
    pub async fn make_network(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let wanted = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        let made = self.api.create_network(wanted).await;
        made.map(drop)
            .with_context(|| format!("can't make the network {name}"))
    }

    /// Removes a network, from which others' containers are taken first; one that is gone already is fine.
    pub async fn remove_network(&self, name: &str) -> anyhow::Result<()> {
        let found = self
            .api
            .inspect_network(name, None::<InspectNetworkOptions>)
            .await;
        let members = found.ok().and_then(|network| network.containers);
        for container in members.unwrap_or_default().into_keys() {
            let request = NetworkDisconnectRequest {
                container,
                force: Some(true),
            };
            self.api
                .disconnect_network(name, request)
                .await
                .with_context(|| format!("can't take a container from the network {name}"))?;
        }
        match self.api.remove_network(name).await {
            Err(error) if status(&error) == Some(404) => Ok(()),
            removed => removed.with_context(|| format!("can't remove the network {name}")),
        }
    }

    /// The labels of a volume, if there is one of that name.
    pub async fn volume(&self, name: &str) -> anyhow::Result<Option<HashMap<String, String>>> {
        match self.api.inspect_volume(name).await {
            Ok(volume) => Ok(Some(volume.labels)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't inspect the volume {name}")),
        }
    }

    /// The labels of all volumes that have this one.
    pub async fn volumes(&self, label: &str) -> anyhow::Result<Vec<HashMap<String, String>>> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListVolumesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let listed = self
            .api
            .list_volumes(Some(options))
            .await
            .context("can't list the volumes")?;
        let volumes = listed.volumes.unwrap_or_default().into_iter();
        Ok(volumes.map(|volume| volume.labels).collect())
    }

    /// Makes a volume on this machine's disk.
    pub async fn make_volume(
        &self,
        name: &str,
        labels: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let wanted = VolumeCreateRequest {
            name: Some(name.to_owned()),
            driver: Some("local".to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        let made = self.api.create_volume(wanted).await;
        made.map(drop)
            .with_context(|| format!("can't make the volume {name}"))
    }

    /// Removes a volume; one that is gone already is fine.
    pub async fn remove_volume(&self, name: &str) -> anyhow::Result<()> {
        let removed = self
            .api
            .remove_volume(name, None::<RemoveVolumeOptions>)
            .await;
        match removed {
            Err(error) if status(&error) == Some(404) => Ok(()),
            removed => removed.with_context(|| format!("can't remove the volume {name}")),
        }
    }

    /// Runs a command in a container and waits for its end, whatever its exit status.
    pub async fn exec(&self, node: &str, argv: &[&str]) -> anyhow::Result<ExecOutput> {
        self.run(
            node,
            argv,
            None::<futures::stream::Empty<io::Result<Bytes>>>,
        )
        .await
    }

    /// Like [`Docker::exec`], but an exit status other than 0 is a failure; returns what was written to stdout.
    pub async fn exec_checked(&self, node: &str, argv: &[&str]) -> anyhow::Result<Vec<u8>> {
        let output = self.exec(node, argv).await?;
        Ok(checked(node, argv, output)?.stdout)
    }

    /// Runs a command that reads `input` to its end; an exit status other than 0 is a failure. An error of `input` comes back
    /// as it is, after the connection was cut, so that the command can't take what it got for the whole.
    pub async fn exec_with_input(
        &self,
        node: &str,
        argv: &[&str],
        input: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> anyhow::Result<ExecOutput> {
        let output = self.run(node, argv, Some(input)).await?;
        checked(node, argv, output)
    }

    /// Reads a file of a container.
    pub async fn read_file(&self, node: &str, path: &str) -> anyhow::Result<Vec<u8>> {
        // By a process in the container, because the API that copies files doesn't see what is mounted there (/run).
        self.exec_checked(node, &["cat", path])
            .await
            .with_context(|| format!("can't read {path} in {node}"))
    }

    async fn run(
        &self,
        node: &str,
        argv: &[&str],
        input: Option<impl Stream<Item = io::Result<Bytes>> + Send>,
    ) -> anyhow::Result<ExecOutput> {
        let what = || format!("can't run `{}`", command_line(node, argv));
        let options = CreateExecOptions {
            attach_stdin: Some(input.is_some()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(argv.to_vec()),
            ..CreateExecOptions::default()
        };
        let exec = self
            .api
            .create_exec(node, options)
            .await
            .with_context(what)?
            .id;
        let StartExecResults::Attached {
            mut output,
            input: mut stdin,
        } = self.api.start_exec(&exec, None).await.with_context(what)?
        else {
            bail!("Docker ran `{}` detached", command_line(node, argv));
        };

        let feed = async move {
            let Some(input) = input else {
                return Ok(());
            };
            let mut input = pin!(input);
            while let Some(chunk) = input.next().await {
                // When the command is gone before the end of its input, its exit status says why, not the broken pipe.
                if stdin.write_all(&chunk?).await.is_err() {
                    return Ok(());
                }
            }
            // Half a close: the command sees the end of its input and can still answer.
            let _ = stdin.shutdown().await;
            Ok::<_, io::Error>(())
        };
        let drain = async {
            let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
            while let Some(piece) = output.next().await {
                let (kept, message) = match piece? {
                    LogOutput::StdErr { message } => (&mut stderr, message),
                    LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        (&mut stdout, message)
                    }
                    LogOutput::StdIn { .. } => continue,
                };
                if kept.len() < OUTPUT_LIMIT {
                    kept.extend_from_slice(&message);
                }
            }
            Ok::<_, ApiError>((stdout, stderr))
        };
        let (mut feed, mut drain) = (pin!(feed), pin!(drain));
        let (stdout, stderr) = tokio::select! {
            fed = &mut feed => {
                fed.with_context(|| format!("can't feed `{}`", command_line(node, argv)))?;
                drain.await
            }
            drained = &mut drain => drained,
        }
        .with_context(what)?;
        let status = self.exit_status(&exec).await.with_context(what)?;
        Ok(ExecOutput {
            status,
            stdout,
            stderr,
        })
    }

    /// The exit status of an exec whose output has ended. Docker may need a moment more to notice the end.
    async fn exit_status(&self, exec: &str) -> anyhow::Result<i64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let state = self.api.inspect_exec(exec).await?;
            match (state.running, state.exit_code) {
                (Some(false), Some(status)) => return Ok(status),
                _ if Instant::now() > deadline => {
                    bail!("its output ended, but it goes on running")
                }
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The id of an image in Docker, if it's there: the digest of its config, or, with Docker's containerd store, of its
    /// manifest or index.
    pub async fn image_id(&self, reference: &str) -> anyhow::Result<Option<Digest>> {
        match self.api.inspect_image(reference).await {
            Ok(image) => {
                let id = image
                    .id
                    .ok_or_else(|| anyhow!("Docker named no id of the image {reference}"))?;
                Ok(Some(id.parse()?))
            }
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("can't inspect the image {reference}"))
            }
        }
    }

    /// Loads an archive of images, as `docker load` does. An error of `archive` comes back as it is.
    pub async fn load_image(
        &self,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> anyhow::Result<()> {
        // On its way through the HTTP client the error would lose its type.
        let broken = Arc::new(Mutex::new(None));
        let place = Arc::clone(&broken);
        let archive = archive.map(move |chunk| {
            chunk.map_err(|error| {
                let kind = error.kind();
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                io::Error::from(kind)
            })
        });
        let answer = async {
            let mut answer = pin!(self.api.import_image_stream(
                ImportImageOptions::default(),
                archive,
                None
            ));
            // `docker load` answers 200 before it has read the archive; what goes wrong then stands in the body.
            while let Some(line) = answer.next().await {
                line?;
            }
            Ok::<_, ApiError>(())
        }
        .await;
        let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        match broken {
            Some(error) => Err(error).context("can't feed `docker load`"),
            None => answer.context("`docker load` failed"),
        }
    }

    /// What the daemon says of itself and its machine.
    pub async fn info(&self) -> anyhow::Result<Info> {
        let answer = self.ask("/info").await?;
        serde_json::from_value(answer).context("can't read what Docker says of itself")
    }

    /// All networks.
    pub async fn networks(&self) -> anyhow::Result<Vec<Network>> {
        let answer = self.ask("/networks").await?;
        Ok(answer
            .as_array()
            .into_iter()
            .flatten()
            .map(network)
            .collect())
    }

    /// The volumes without a name of their own that no container has, by name.
    pub async fn forsaken_volumes(&self) -> anyhow::Result<Vec<String>> {
        let filters = encoded(r#"{"dangling":["true"]}"#);
        let answer = self.ask(&format!("/volumes?filters={filters}")).await?;
        let is_anonymous =
            |name: &&str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut names: Vec<String> = answer["Volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|volume| volume["Name"].as_str())
            .filter(is_anonymous)
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// When each container with this label was made, and how much it has written, by its id. Docker has to look at every file
    /// of a container for that.
    pub async fn written(&self, label: &str) -> anyhow::Result<HashMap<String, Written>> {
        let filters = encoded(&format!(r#"{{"label":["{label}"]}}"#));
        let answer = self
            .ask(&format!(
                "/containers/json?all=true&size=true&filters={filters}"
            ))
            .await?;
        let containers = answer.as_array().into_iter().flatten();
        Ok(containers
            .filter_map(|container| {
                let written = Written {
                    created: container["Created"].as_u64().unwrap_or_default(),
                    bytes: container["SizeRw"].as_u64().unwrap_or_default(),
                };
                Some((container["Id"].as_str()?.to_owned(), written))
            })
            .collect())
    }

    /// How big each volume is in bytes, by the folder in which the daemon has it.
    pub async fn volume_sizes(&self) -> anyhow::Result<HashMap<PathBuf, u64>> {
        let answer = self.ask("/system/df?type=volume&verbose=1").await?;
        // From API 1.52 on it stands elsewhere.
        let volumes = [&answer["Volumes"], &answer["VolumeUsage"]["Items"]];
        Ok(volumes
            .into_iter()
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(|volume| {
                let size = volume["UsageData"]["Size"].as_u64()?;
                Some((volume["Mountpoint"].as_str()?.into(), size))
            })
            .collect())
    }

    /// Asks what bollard's models, which are those of the newest API, don't read from older daemons.
    async fn ask(&self, target: &str) -> anyhow::Result<Value> {
        let asked = async {
            match Address::parse(&self.address, "the address", false)? {
                Address::Socket(path) => {
                    get(tokio::net::UnixStream::connect(path).await?, target).await
                }
                Address::Tcp(host) => {
                    get(tokio::net::TcpStream::connect(host).await?, target).await
                }
            }
        };
        asked
            .await
            .with_context(|| format!("can't ask Docker for {target}"))
    }

    /// The container that publishes a port of this machine, on whichever address.
    pub async fn holder_of_port(&self, port: u16) -> anyhow::Result<Option<Holder>> {
        let containers = self
            .api
            .list_containers(Some(ListContainersOptionsBuilder::new().build()))
            .await
            .context("can't list the running containers")?;
        Ok(containers
            .into_iter()
            .find(|container| {
                container
                    .ports
                    .iter()
                    .flatten()
                    .any(|published| published.public_port == Some(port))
            })
            .map(|container| Holder {
                container: container
                    .names
                    .iter()
                    .flatten()
                    .next()
                    .map(|name| name.trim_start_matches('/').to_owned())
                    .or(container.id)
                    .unwrap_or_default(),
                image: container.image.unwrap_or_default(),
                labels: container.labels.unwrap_or_default(),
            }))
    }
}

/// One request and its answer, over a connection of their own.
async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &str,
) -> anyhow::Result<Value> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let request = http::Request::get(target)
            .header("Host", "docker")
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::ensure!(
            status.is_success(),
            "{status}: {}",
            String::from_utf8_lossy(&body).trim()
        );
        Ok(serde_json::from_slice(&body)?)
    };
    // Ends with the answer, whose sender goes then.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// As a part of an address.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

fn network(network: &Value) -> Network {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_each = |key: &str| {
        let configs = network["IPAM"]["Config"].as_array().into_iter().flatten();
        configs
            .filter_map(|config| config[key].as_str())
            .map(str::to_owned)
            .collect()
    };
    let id = text(&network["Id"]);
    Network {
        name: text(&network["Name"]),
        driver: text(&network["Driver"]),
        interface: match network["Options"]["com.docker.network.bridge.name"].as_str() {
            Some(name) => name.to_owned(),
            None => format!("br-{}", id.get(..12).unwrap_or(&id)),
        },
        subnets: of_each("Subnet"),
        gateways: of_each("Gateway"),
    }
}

/// The command as it could be pasted into a shell.
fn command_line(node: &str, argv: &[&str]) -> String {
    let mut line = format!("docker exec {node}");
    for argument in argv {
        line.push(' ');
        let plain = !argument.is_empty()
            && argument
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || "-_./:=,@%+".contains(letter));
        match plain {
            true => line.push_str(argument),
            false => line.push_str(&format!("'{}'", argument.replace('\'', r"'\''"))),
        }
    }
    line
}

fn checked(node: &str, argv: &[&str], output: ExecOutput) -> anyhow::Result<ExecOutput> {
    if output.status == 0 {
        return Ok(output);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    Err(Failure::CommandFailed {
        command: command_line(node, argv),
        status: format!("exit status {}", output.status),
        stderr_tail: lines[lines.len().saturating_sub(20)..].join("\n"),
        hint: None,
    }
    .into())
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn node(container: ContainerInspectResponse) -> Node {
    let config = container.config.unwrap_or_default();
    let labels = config.labels.unwrap_or_default();
    let state = container.state.unwrap_or_default();
    let current = current_state(state.status);
    Node {
        id: container.id.unwrap_or_default(),
        name: container
            .name
            .unwrap_or_default()
            .trim_start_matches('/')
            .to_owned(),
        role: ROLE_LABELS
            .iter()
            .find_map(|label| labels.get(*label).cloned())
            .unwrap_or_default(),
        exit_code: (current == State::Exited)
            .then_some(state.exit_code)
            .flatten(),
        state: current,
        started: state
            .started_at
            .and_then(|time| humantime::parse_rfc3339(&time.to_string()).ok()),
        mounts: container
            .mounts
            .unwrap_or_default()
            .into_iter()
            .map(|mount| Mount {
                source: mount.source.unwrap_or_default().into(),
                destination: mount.destination.unwrap_or_default().into(),
                volume: mount
                    .name
                    .filter(|_| mount.typ.as_deref() == Some("volume")),
            })
            .collect(),
        image: config.image.unwrap_or_default(),
        ports: container
            .host_config
            .and_then(|host| host.port_bindings)
            .map(|bindings| ports(&bindings))
            .unwrap_or_default(),
        address: container
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default()
            .into_values()
            .filter_map(|network| network.ip_address?.parse::<IpAddr>().ok())
            .find_map(|address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            }),
        labels,
    }
}

fn current_state(status: Option<ContainerStateStatusEnum>) -> State {
    match status {
        Some(ContainerStateStatusEnum::CREATED) => State::Created,
        Some(ContainerStateStatusEnum::RUNNING) => State::Running,
        Some(ContainerStateStatusEnum::PAUSED) => State::Paused,
        Some(ContainerStateStatusEnum::RESTARTING) => State::Restarting,
        Some(ContainerStateStatusEnum::DEAD | ContainerStateStatusEnum::REMOVING) => State::Dead,
        Some(
            ContainerStateStatusEnum::EXITED
            | ContainerStateStatusEnum::STOPPING
            | ContainerStateStatusEnum::EMPTY,
        )
        | None => State::Exited,
    }
}

/// The published ports of a container as it was created, in order.
fn ports(bindings: &PortMap) -> Vec<Port> {
    let mut ports: Vec<Port> = bindings
        .iter()
        .filter_map(|(container, bindings)| {
            let (port, protocol) = container.split_once('/').unwrap_or((container, "tcp"));
            let port: u16 = (protocol == "tcp").then(|| port.parse().ok()).flatten()?;
            Some((port, bindings.as_deref().unwrap_or_default()))
        })
        .flat_map(|(container, bindings)| {
            bindings.iter().map(move |binding| Port {
                address: match binding.host_ip.as_deref() {
                    None | Some("") => "0.0.0.0".to_owned(),
                    Some(address) => address.to_owned(),
                },
                host: binding
                    .host_port
                    .as_deref()
                    .and_then(|port| port.parse().ok())
                    .unwrap_or_default(),
                container,
            })
        })
        .collect();
    ports.sort();
    ports
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::error::explain;

    fn told<T: std::fmt::Debug>(failed: anyhow::Result<T>) -> String {
        let error = failed.unwrap_err();
        let hint = explain(&error).1.unwrap_or_default();
        format!("{error:#}\nhint: {hint}")
    }

    #[test]
    fn the_address_is_found_in_the_order_of_the_docker_program() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path();
        let config = home.join(".docker");
        let meta = config
            .join("contexts/meta")
            .join(Digest::of(b"colima").hex());
        std::fs::create_dir_all(&meta).unwrap();
        let mut surroundings = Surroundings {
            config_folder: Some(config.clone()),
            home: Some(home.to_owned()),
            ..Surroundings::default()
        };
        let find = |surroundings: &Surroundings| {
            Address::find(surroundings)
                .map(|address| address.to_string())
                .unwrap_or_else(|error| format!("{error:#}"))
        };

        assert_eq!(find(&surroundings), "unix:///var/run/docker.sock");
        std::fs::write(config.join("config.json"), r#"{"auths": {}}"#).unwrap();
        assert_eq!(find(&surroundings), "unix:///var/run/docker.sock");
        std::fs::write(
            config.join("config.json"),
            r#"{"currentContext": "colima", "credsStore": "desktop"}"#,
        )
        .unwrap();
        assert!(find(&surroundings).starts_with("the docker context `colima` can't be used: "));
        std::fs::write(
            meta.join("meta.json"),
            r#"{"Name":"colima","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///u/.colima/docker.sock","SkipTLSVerify":false}}}"#,
        )
        .unwrap();
        assert_eq!(find(&surroundings), "unix:///u/.colima/docker.sock");
        surroundings.docker_context = Some("default".to_owned());
        assert_eq!(find(&surroundings), "unix:///var/run/docker.sock");
        surroundings.docker_host = Some("tcp://127.0.0.1:2375".to_owned());
        assert_eq!(find(&surroundings), "tcp://127.0.0.1:2375");
        surroundings.tls = true;
        assert_snapshot!(find(&surroundings), @"DOCKER_HOST leads to tcp://127.0.0.1:2375 with TLS, which devenv can't speak to");
    }

    #[tokio::test]
    async fn absent_stopped_and_not_permitted_are_told_apart() {
        let path = Path::new("/var/run/docker.sock");
        let told_for = |kind: io::ErrorKind, installed, macos| {
            let (message, hint) = socket_failure(path, &io::Error::from(kind), installed, macos);
            format!("{message}\nhint: {hint}")
        };
        assert_snapshot!(told_for(io::ErrorKind::NotFound, false, false), @r"
        Docker isn't installed: nothing is at unix:///var/run/docker.sock, and there is no `docker` on PATH
        hint: install it: https://docs.docker.com/engine/install
        ");
        assert_snapshot!(told_for(io::ErrorKind::NotFound, true, true), @r"
        Docker isn't running: nothing is at unix:///var/run/docker.sock
        hint: start Docker Desktop: `open -a Docker`
        ");
        assert_snapshot!(told_for(io::ErrorKind::PermissionDenied, true, false), @r#"
        Docker doesn't let us in: no permission to use unix:///var/run/docker.sock
        hint: join the group that may: `sudo usermod -aG docker "$USER"`, then log in again
        "#);

        // A daemon that died leaves its socket behind.
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("docker.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let failed = connect_to(&Address::Socket(socket.clone())).await;
        assert_snapshot!(told(failed).replace(&socket.display().to_string(), "SOCKET"), @r"
        Docker isn't running: nobody listens at unix://SOCKET
        hint: start it: `sudo systemctl start docker`
        ");
    }

    #[tokio::test]
    async fn an_address_where_nobody_is() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let failed = connect_to(&Address::Tcp(host.clone())).await;
        assert!(told(failed).starts_with(&format!("can't connect to Docker at tcp://{host}: ")));
    }

    #[test]
    fn published_ports_are_read_in_order() {
        let bindings = serde_json::from_str(
            r#"{"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "80"}],
                "6443/tcp": [{"HostIp": "127.0.0.1", "HostPort": "41001"}],
                "443/tcp": [{"HostIp": "", "HostPort": "443"}],
                "53/udp": [{"HostIp": "", "HostPort": "53"}],
                "9/tcp": null}"#,
        )
        .unwrap();
        let shown: Vec<String> = ports(&bindings)
            .iter()
            .map(|port| format!("{}:{}->{}", port.address, port.host, port.container))
            .collect();
        assert_snapshot!(shown.join("\n"), @r"
        0.0.0.0:443->443
        127.0.0.1:80->80
        127.0.0.1:41001->6443
        ");
    }

    #[test]
    fn commands_are_shown_as_they_could_be_pasted() {
        let line = command_line("node", &["sh", "-c", "echo 'a' && b", ""]);
        assert_snapshot!(line, @r"docker exec node sh -c 'echo '\''a'\'' && b' ''");
    }

    /// The real thing, with a container that has a shell, given by DEVENV_TEST_NODE.
    #[tokio::test]
    #[ignore = "needs Docker and a container with a shell, named by DEVENV_TEST_NODE"]
    async fn commands_run_in_a_real_container() {
        let node = std::env::var("DEVENV_TEST_NODE").unwrap();
        let docker = connect().await.unwrap();
        let run = async |script: &str| docker.exec(&node, &["sh", "-c", script]).await.unwrap();

        let output = run("echo out; echo err >&2; exit 3").await;
        assert_eq!(output.status, 3);
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            (&b"out\n"[..], &b"err\n"[..])
        );

        // Much comes out while much goes in: neither may wait for the other.
        let chunk = Bytes::from(vec![7; 1 << 20]);
        let input = || futures::stream::iter(std::iter::repeat_n(chunk.clone(), 24)).map(Ok);
        let output = docker
            .exec_with_input(&node, &["cat"], input())
            .await
            .unwrap();
        assert_eq!(output.stdout.len(), 24 << 20);

        // A command that ends before its input is told by its exit status.
        let failed = docker
            .exec_with_input(&node, &["sh", "-c", "echo no >&2; exit 4"], input())
            .await;
        assert_eq!(
            failed.unwrap_err().to_string(),
            format!(
                "`docker exec {node} sh -c 'echo no >&2; exit 4'` failed (exit status 4)\n  | no"
            )
        );

        // An input that breaks off breaks the command off.
        let broken = futures::stream::iter([Ok(chunk.clone()), Err(io::Error::other("broken"))]);
        let failed = docker.exec_with_input(&node, &["cat"], broken).await;
        assert!(format!("{:#}", failed.unwrap_err()).ends_with("broken"));

        run("echo hello > /run/file").await;
        assert_eq!(
            docker.read_file(&node, "/run/file").await.unwrap(),
            b"hello\n"
        );
        assert!(docker.read_file(&node, "/run/none").await.is_err());
    }

    #[tokio::test]
    #[ignore = "needs Docker"]
    async fn a_container_is_seen_started_unpaused_and_removed() {
        let image = std::env::var("DEVENV_TEST_IMAGE").unwrap();
        let docker = connect().await.unwrap();
        let cluster = format!("devenv-test-{}", std::process::id());
        let options = serde_json::from_value(serde_json::json!({
            "Image": image,
            "ExposedPorts": {"80/tcp": {}},
            "Labels": {"some.cluster": cluster, ROLE_LABELS[0]: "control-plane"},
            "HostConfig": {"Binds": ["/tmp:/devenv/id:ro"], "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18080"}]}},
        }));
        let body: bollard::models::ContainerCreateBody = options.unwrap();
        let made = bollard::query_parameters::CreateContainerOptionsBuilder::new().name(&cluster);
        docker
            .api
            .create_container(Some(made.build()), body)
            .await
            .unwrap();

        let seen = async || {
            docker
                .containers("some.cluster", Some(&cluster))
                .await
                .unwrap()
                .remove(0)
        };
        assert_eq!(seen().await.state, State::Created);
        docker.start(&cluster).await.unwrap();
        docker.start(&cluster).await.unwrap();
        let node = seen().await;
        assert_eq!(
            (node.state, node.role.as_str()),
            (State::Running, "control-plane")
        );
        assert!(node.address.is_some());
        assert_eq!(node.ports.len(), 1);
        assert!(
            node.mounts
                .iter()
                .any(|mount| mount.destination == Path::new("/devenv/id"))
        );
        let holder = docker.holder_of_port(18080).await.unwrap().unwrap();
        assert_eq!(holder.container, cluster);
        docker.unpause(&cluster).await.unwrap();
        docker.api.pause_container(&cluster).await.unwrap();
        assert_eq!(seen().await.state, State::Paused);
        docker.unpause(&cluster).await.unwrap();
        docker.remove(&cluster).await.unwrap();
        docker.remove(&cluster).await.unwrap();
        assert!(
            docker
                .containers("some.cluster", Some(&cluster))
                .await
                .unwrap()
                .is_empty()
        );
        assert!(
            docker
                .image_id("devenv.test/none:1")
                .await
                .unwrap()
                .is_none()
        );
    }
}
