//! A cluster: the API server in a node, behind TLS at the port that the node publishes, and the controllers beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::controllers::Controllers;
use super::http::{self, Reply, Request};
use super::store::{Key, Refusal, Store, merge};
use super::{Trap, change_asked_for};

/// The certificates of all played clusters: the CA's, and the API server's with its key.
struct Identity {
    authority: String,
    acceptor: TlsAcceptor,
}

static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer_certificate = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let own = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&own, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(own.serialize_der().into()),
        )
        .unwrap();
    Identity {
        authority: issuer_certificate.pem(),
        acceptor: TlsAcceptor::from(Arc::new(config)),
    }
});

/// The kubeconfig that kubeadm writes in a node.
pub(crate) fn kubeconfig() -> String {
    use base64::Engine as _;
    let encoded = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(Vec::new())
        .unwrap()
        .self_signed(&key)
        .unwrap();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: it\n  cluster:\n    server: https://inside:6443\n    \
         certificate-authority-data: {}\nusers:\n- name: it\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        encoded(&IDENTITY.authority),
        encoded(&certificate.pem()),
        encoded(&key.serialize_pem())
    )
}

/// A node's folders, as they are on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// What is `/var` in the node.
    pub(crate) var: PathBuf,
    pub(crate) node: String,
}

impl Places {
    fn database(&self) -> PathBuf {
        self.var.join("lib/etcd/store.json")
    }

    /// The folder of a pod's volumes.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.var.join("lib/kubelet/pods").join(uid)
    }

    /// The images that containerd has.
    pub(crate) fn images(&self) -> Vec<String> {
        let list = std::fs::read_to_string(self.var.join("lib/containerd/images"));
        let list = list.unwrap_or_default();
        list.lines()
            .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
            .collect()
    }
}

/// A control plane that runs.
pub(crate) struct Cluster {
    places: Places,
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
    /// Whether the node is paused: then nobody answers.
    frozen: watch::Sender<bool>,
    tasks: Mutex<Vec<AbortHandle>>,
    trap: Arc<Mutex<Trap>>,
}

impl Cluster {
    /// Starts it, with what is in the node's database.
    pub(crate) async fn start(
        places: Places,
        port: u16,
        trap: Arc<Mutex<Trap>>,
    ) -> Result<Arc<Self>, String> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
            .await
            .map_err(|error| format!("driver failed programming external connectivity: Bind for 127.0.0.1:{port} failed: {error}"))?;
        let store = match std::fs::read_to_string(places.database()) {
            Ok(text) => Store::load(&text),
            Err(_) => Store::default(),
        };
        let cluster = Arc::new(Self {
            places,
            store: Arc::new(Mutex::new(store)),
            changed: watch::channel(0).0,
            frozen: watch::channel(false).0,
            tasks: Mutex::default(),
            trap,
        });
        for namespace in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            let key = Key::new("/namespaces", "", namespace);
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            if cluster.store().get(&key).is_none() {
                let _ = cluster.store().put(&key, object);
            }
        }
        let serving = {
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                // The connections go with it.
                let mut connections = JoinSet::new();
                loop {
                    let Ok((stream, _)) = listener.accept().await else {
                        continue;
                    };
                    let cluster = Arc::clone(&cluster);
                    connections.spawn(async move {
                        let Ok(stream) = IDENTITY.acceptor.accept(stream).await else {
                            return;
                        };
                        let answer = |request| cluster.clone().answer(request);
                        let _ = http::serve(stream, answer).await;
                    });
                    while connections.try_join_next().is_some() {}
                }
            })
        };
        let controlling = {
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                let mut controllers = Controllers::new(cluster.places.clone());
                loop {
                    cluster.until_awake().await;
                    let before = cluster.store().version;
                    controllers.step(&mut cluster.store());
                    let after = cluster.store().version;
                    if after != before {
                        cluster.changed.send_replace(after);
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        };
        let tasks = vec![serving.abort_handle(), controlling.abort_handle()];
        *cluster.tasks.lock().unwrap() = tasks;
        Ok(cluster)
    }

    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Writes what it knows into the node's database, which it does all the time.
    pub(crate) fn save(&self) {
        let path = self.places.database();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, self.store().saved()).unwrap();
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
        self.save();
    }

    pub(crate) fn stop(&self) {
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
        self.save();
    }

    pub(crate) fn told(&self) {
        let version = self.store().version;
        self.changed.send_replace(version);
    }

    async fn until_awake(&self) {
        let mut frozen = self.frozen.subscribe();
        let _ = frozen.wait_for(|frozen| !*frozen).await;
    }

    async fn answer(self: Arc<Self>, request: Request) -> Reply {
        self.until_awake().await;
        if request.method != "GET" && !change_asked_for(&self.trap, request.path.join("/")).await {
            return Reply::gone();
        }
        let parts: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["readyz"] => {
                return Reply::Whole(
                    200,
                    "Content-Type: text/plain\r\n".to_owned(),
                    b"ok".to_vec(),
                );
            }
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return refused((404, "404 page not found".to_owned())),
        };
        let api_version = match group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let [plural, rest @ ..] = rest else {
            return refused((404, "404 page not found".to_owned()));
        };
        let resource = format!("{group}/{plural}");
        let Some(kind) = self.store().kind(&resource) else {
            return refused((
                404,
                "the server could not find the requested resource".to_owned(),
            ));
        };
        let of = Of {
            api_version,
            kind,
            resource,
            namespace: namespace.to_owned(),
        };
        let reply = match (request.method.as_str(), rest) {
            ("GET", []) if ["1", "true"].contains(&request.asks("watch")) => {
                self.watch(&request, of)
            }
            ("GET", []) => self.list(&request, &of),
            ("POST", []) => self.create(&request, &of),
            ("GET", [name]) => self.read(&of.key(name)),
            ("PATCH", [name] | [name, "status"]) => self.patch(&request, &of.key(name)),
            ("DELETE", [name]) => self.delete(&of.key(name)),
            ("GET", [name, "portforward"]) => self.forward(&request, &of.key(name)),
            (method, _) => refused((405, format!("{method} isn't played"))),
        };
        self.told();
        reply
    }

    fn read(&self, key: &Key) -> Reply {
        match self.store().get(key) {
            Some(object) => Reply::json(200, object),
            None => refused(not_found(key)),
        }
    }

    fn list(&self, request: &Request, of: &Of) -> Reply {
        let store = self.store();
        let items: Vec<&Value> = store
            .all(&of.resource)
            .filter(|(key, _)| of.namespace.is_empty() || key.namespace == of.namespace)
            .filter(|(_, object)| selects(request.asks("labelSelector"), object))
            .filter(|(_, object)| in_fields(request.asks("fieldSelector"), object))
            .map(|(_, object)| object)
            .collect();
        let list = json!({
            "apiVersion": of.api_version, "kind": format!("{}List", of.kind),
            "metadata": {"resourceVersion": store.version.to_string()}, "items": items,
        });
        Reply::json(200, &list)
    }

    fn create(&self, request: &Request, of: &Of) -> Reply {
        let mut object = request.json();
        let key = of.key(object["metadata"]["name"].as_str().unwrap_or_default());
        let mut store = self.store();
        if store.get(&key).is_some() {
            let message = format!("{} \"{}\" already exists", key.resource, key.name);
            return refused((409, message));
        }
        // Some clients leave that to the address.
        object["apiVersion"] = json!(of.api_version);
        object["kind"] = json!(of.kind);
        match store.put(&key, object) {
            Ok(object) => Reply::json(201, &object),
            Err(refusal) => refused(refusal),
        }
    }

    fn patch(&self, request: &Request, key: &Key) -> Reply {
        let mut store = self.store();
        let there = store.get(key).cloned();
        let patched = match (request.header("content-type"), there) {
            ("application/apply-patch+yaml", _) => {
                let manifest: Value = serde_yaml::from_slice(&request.body).unwrap();
                match request.asks("dryRun") {
                    "" => store.apply(key, request.asks("fieldManager"), &manifest),
                    _ => store.applied(key, request.asks("fieldManager"), &manifest),
                }
            }
            ("application/merge-patch+json", Some(mut object)) => {
                merge(&mut object, &request.json());
                store.put(key, object)
            }
            ("application/merge-patch+json", None) => Err(not_found(key)),
            (other, _) => Err((415, format!("{other} isn't played"))),
        };
        match patched {
            Ok(object) => Reply::json(200, &object),
            Err(refusal) => refused(refusal),
        }
    }

    fn delete(&self, key: &Key) -> Reply {
        match self.store().delete(key) {
            true => Reply::json(
                200,
                &json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}),
            ),
            false => refused(not_found(key)),
        }
    }

    /// Tells changes for as long as somebody listens.
    fn watch(self: &Arc<Self>, request: &Request, of: Of) -> Reply {
        let mut told: u64 = request.asks("resourceVersion").parse().unwrap_or_default();
        let labels = request.asks("labelSelector").to_owned();
        if told < self.store().known_since {
            return refused((410, "too old resource version".to_owned()));
        }
        let cluster = Arc::clone(self);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        Reply::take(head.to_owned(), move |mut connection| async move {
            let mut changed = cluster.changed.subscribe();
            loop {
                let mut lines = String::new();
                {
                    let store = cluster.store();
                    let fits = |key: &Key| {
                        key.resource == of.resource
                            && (of.namespace.is_empty() || key.namespace == of.namespace)
                    };
                    let begin = store
                        .changes
                        .partition_point(|change| change.version <= told);
                    for change in &store.changes[begin..] {
                        told = change.version;
                        if fits(&change.key) && selects(&labels, &change.object) {
                            let line = json!({"type": change.what, "object": change.object});
                            lines += &format!("{line}\n");
                        }
                    }
                }
                if !lines.is_empty() {
                    let chunk = format!("{:x}\r\n{lines}\r\n", lines.len());
                    if connection.write_all(chunk.as_bytes()).await.is_err()
                        || connection.flush().await.is_err()
                    {
                        return;
                    }
                }
                let mut byte = [0];
                tokio::select! {
                    _ = changed.changed() => {}
                    // Whoever listened has gone.
                    _ = connection.read(&mut byte) => return,
                }
                cluster.until_awake().await;
            }
        })
    }

    /// Carries a connection to the port of a pod at which pushes are taken.
    fn forward(&self, request: &Request, key: &Key) -> Reply {
        let Some(pod) = self.store().get(key).cloned() else {
            return refused(not_found(key));
        };
        let port: u16 = request.asks("ports").parse().unwrap_or_default();
        let repository = self
            .places
            .pod(pod["metadata"]["uid"].as_str().unwrap_or_default());
        let listens = port == 9419
            && pod["metadata"]["labels"]["app.kubernetes.io/name"] == "git-source"
            && pod["status"]["phase"] == "Running";
        let accept = derive_accept_key(request.header("sec-websocket-key").as_bytes());
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        Reply::take(head, move |connection| async move {
            let mut socket = WebSocketStream::from_raw_socket(connection, Role::Server, None).await;
            let [low, high] = port.to_le_bytes();
            for channel in [0, 1] {
                let first = Message::binary(vec![channel, low, high]);
                if socket.send(first).await.is_err() {
                    return;
                }
            }
            if listens {
                receive(&mut socket, &repository).await;
            } else {
                let refusal = [&[1][..], b"connection refused"].concat();
                let _ = socket.send(Message::binary(refusal)).await;
            }
            let _ = socket.close(None).await;
        })
    }
}

/// As the daemon in the pod does that takes pushes.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests play what runs in a pod"
)]
async fn receive<S: http::Stream>(socket: &mut WebSocketStream<S>, folder: &Path) {
    let mut daemon = tokio::process::Command::new(which::which("git").unwrap())
        .args(["daemon", "--inetd", "--export-all", "--enable=receive-pack"])
        .arg(format!("--base-path={}", folder.display()))
        .arg(folder)
        .env_clear()
        .env("HOME", "/nowhere")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout) = (daemon.stdin.take(), daemon.stdout.take().unwrap());
    let mut buffer = vec![0; 1 << 16];
    loop {
        tokio::select! {
            read = stdout.read(&mut buffer) => match read {
                Ok(count @ 1..) => {
                    let message = [&[0][..], &buffer[..count]].concat();
                    if socket.send(Message::binary(message)).await.is_err() {
                        break;
                    }
                }
                _ => break,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&0) => {
                    if let Some(stdin) = &mut stdin && stdin.write_all(&bytes[1..]).await.is_err() {
                        break;
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                Some(Ok(_)) => {}
            },
        }
    }
    // A daemon whose connection breaks off ends by itself, with what it had got so far thrown away.
    drop(stdin);
    let _ = tokio::time::timeout(Duration::from_secs(5), daemon.wait()).await;
}

/// What a request is about.
struct Of {
    api_version: String,
    kind: String,
    resource: String,
    namespace: String,
}

impl Of {
    fn key(&self, name: &str) -> Key {
        Key::new(&self.resource, &self.namespace, name)
    }
}

fn not_found(key: &Key) -> Refusal {
    (404, format!("{} \"{}\" not found", key.resource, key.name))
}

fn refused((status, message): Refusal) -> Reply {
    let reason = match status {
        404 => "NotFound",
        409 => "AlreadyExists",
        410 => "Expired",
        _ => "BadRequest",
    };
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "metadata": {},
        "message": message, "reason": reason, "code": status,
    });
    Reply::json(status, &body)
}

/// Labels as devenv asks for them: `a=b` and `a`, all of them.
fn selects(selector: &str, object: &Value) -> bool {
    let labels: BTreeMap<String, String> =
        serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
    selector
        .split(',')
        .filter(|part| !part.is_empty())
        .all(|part| match part.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(part),
        })
}

/// `reason=Pulled`, `metadata.name=a`
fn in_fields(selector: &str, object: &Value) -> bool {
    selector
        .split(',')
        .filter_map(|part| part.split_once('='))
        .all(|(field, value)| {
            let pointer = format!("/{}", field.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str) == Some(value)
        })
}
