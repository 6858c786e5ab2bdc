//! Small but whole images for tests.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::layout::{Descriptor, Entry, Image, Store};
use super::reference::Digest;
use super::{Name, Origin};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// An empty store that goes with the value.
pub(crate) fn empty() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store")).unwrap();
    (folder, store)
}

/// A layer with one file of so many bytes.
pub(super) fn layer(file: &str, bytes: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    let content: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
    tar.append_data(&mut header, file, content.as_slice())
        .unwrap();
    tar.into_inner().unwrap()
}

/// The bytes of a config and of a manifest with these layers.
pub(super) fn config_and_manifest(layers: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let config = json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>()},
        "history": layers.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": layers.iter().map(|layer| json!({
            "mediaType": LAYER, "digest": Digest::of(layer), "size": layer.len(),
        })).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    (config, manifest)
}

/// Puts an image with these layers into the store.
pub(super) fn put(store: &Store, name: &str, layers: &[Vec<u8>]) -> Image {
    let (config, manifest) = config_and_manifest(layers);
    for layer in layers {
        store.write(LAYER, layer).unwrap();
    }
    store.write(CONFIG, &config).unwrap();
    let entry = Entry {
        name: Name::Image(name.parse().unwrap()),
        origin: Origin::Registry,
        target: store.write(MANIFEST, &manifest).unwrap(),
        resolved: None,
    };
    store.enter(std::slice::from_ref(&entry)).unwrap();
    store.image(&entry).unwrap()
}

/// Changes one byte of a blob and leaves its size.
pub(super) fn damage(store: &Store, blob: &Descriptor) {
    let path = store.blob_path(&blob.digest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&path, bytes).unwrap();
}

/// A registry on loopback, which also serves files, and misbehaves as told.
#[derive(Clone, Default)]
pub(super) struct Registry {
    state: Arc<Mutex<State>>,
    pub(super) host: String,
}

#[derive(Default)]
struct State {
    contents: HashMap<String, (String, Vec<u8>)>,
    faults: HashMap<String, VecDeque<Fault>>,
    requests: Vec<String>,
    login: Option<String>,
    parts: bool,
}

/// What goes wrong with one answer.
#[derive(Clone)]
pub(super) enum Fault {
    /// This status and body.
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Truncated(usize),
    /// Other bytes of the same length.
    Wrong,
}

impl Registry {
    pub(super) async fn start() -> Self {
        // As `main` does it; a second time in one process fails, and that's fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Self {
            host: listener.local_addr().unwrap().to_string(),
            ..Self::default()
        };
        registry.state().parts = true;
        let serving = registry.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.serve(connection).await });
            }
        });
        registry
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves an image for the platforms under `repository:tag`; returns its full name.
    pub(super) fn serve_image(&self, repository_and_tag: &str, layers: &[Vec<u8>]) -> String {
        let (repository, tag) = repository_and_tag.split_once(':').unwrap();
        let (config, manifest) = config_and_manifest(layers);
        for blob in layers.iter().chain([&config]) {
            self.serve_file(&blob_path(repository, blob), blob);
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {"mediaType": MANIFEST, "digest": Digest::of(b"none"), "size": 4, "platform": {"os": "linux", "architecture": "s390x"}},
                {"mediaType": MANIFEST, "digest": Digest::of(&manifest), "size": manifest.len(), "platform": {"os": "linux", "architecture": ARCHITECTURE}},
                {"mediaType": MANIFEST, "digest": Digest::of(b"nobody"), "size": 6, "platform": {"os": "unknown", "architecture": "unknown"}},
            ],
        })
        .to_string()
        .into_bytes();
        for (name, kind, bytes) in [
            (
                tag.to_owned(),
                "application/vnd.oci.image.index.v1+json",
                &index,
            ),
            (
                Digest::of(&index).to_string(),
                "application/vnd.oci.image.index.v1+json",
                &index,
            ),
            (Digest::of(&manifest).to_string(), MANIFEST, &manifest),
        ] {
            let path = format!("/v2/{repository}/manifests/{name}");
            let content = (kind.to_owned(), bytes.clone());
            self.state().contents.insert(path, content);
        }
        format!("{}/{repository_and_tag}", self.host)
    }

    pub(super) fn serve_file(&self, path: &str, bytes: &[u8]) {
        let content = ("application/octet-stream".to_owned(), bytes.to_vec());
        self.state().contents.insert(path.to_owned(), content);
    }

    pub(super) fn fail(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().collect();
        self.state().faults.insert(path.to_owned(), faults);
    }

    /// From now on a token is needed, which only this user and password get (base64), or anybody if it is empty.
    pub(super) fn want_login(&self, user_and_password: &str) {
        self.state().login = Some(user_and_password.to_owned());
    }

    pub(super) fn dislike_parts(&self) {
        self.state().parts = false;
    }

    /// What was asked for, but for the registry's own questions.
    pub(super) fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    async fn serve(&self, mut connection: TcpStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = connection.read_u8().await else {
                return;
            };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let (answer, body) = self.answer(&path, header("range"), header("authorization"));
        let _ = connection.write_all(answer.as_bytes()).await;
        let _ = connection.write_all(&body).await;
        let _ = connection.shutdown().await;
    }

    fn answer(
        &self,
        path: &str,
        range: Option<String>,
        authorization: Option<String>,
    ) -> (String, Vec<u8>) {
        let mut state = self.state();
        let whole = |status: &str, more: &str, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n",
                body.len()
            );
            (head, body.to_vec())
        };
        if let Some(login) = &state.login {
            if path.starts_with("/token") {
                let known = login.is_empty() || authorization == Some(format!("Basic {login}"));
                return match known {
                    true => whole("200 OK", "", br#"{"token": "pass"}"#),
                    false => whole("401 Unauthorized", "", b"who are you?"),
                };
            }
            if authorization.as_deref() != Some("Bearer pass") {
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"test\"\r\n",
                    self.host
                );
                return whole("401 Unauthorized", &challenge, b"");
            }
        }
        if path == "/v2/" {
            return whole("200 OK", "", b"{}");
        }
        let part = range.as_deref().map(|range| format!(" {range}"));
        state
            .requests
            .push(format!("{path}{}", part.unwrap_or_default()));
        let fault = state.faults.get_mut(path).and_then(VecDeque::pop_front);
        let Some((kind, mut body)) = state.contents.get(path).cloned() else {
            return whole("404 Not Found", "", b"");
        };
        let from: usize = range
            .filter(|_| state.parts)
            .and_then(|range| {
                range
                    .trim_start_matches("bytes=")
                    .trim_end_matches('-')
                    .parse()
                    .ok()
            })
            .unwrap_or(0);
        let status = match from {
            0 => "200 OK".to_owned(),
            _ => "206 Partial Content".to_owned(),
        };
        body.drain(..from);
        let kind = format!("Content-Type: {kind}\r\n");
        match fault {
            None => whole(&status, &kind, &body),
            Some(Fault::Status(code, body)) => whole(&format!("{code} no"), "", body.as_bytes()),
            Some(Fault::Wrong) => whole(&status, &kind, &vec![b'x'; body.len()]),
            Some(Fault::Truncated(length)) => {
                let (head, _) = whole(&status, &kind, &body);
                body.truncate(length);
                (head, body)
            }
        }
    }
}

/// Where a blob is at a registry.
pub(super) fn blob_path(repository: &str, blob: &[u8]) -> String {
    format!("/v2/{repository}/blobs/{}", Digest::of(blob))
}
