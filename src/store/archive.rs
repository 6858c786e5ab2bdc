//! Images as one tar stream: an OCI layout of only these, blobs that several share sent once.
//!
//! What goes into the archive is planned as data; only [`Archive::stream`] reads files. It hashes each blob on the way and
//! holds back a blob's last bytes until its digest is right, so that a damaged blob never arrives whole.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::layout::{DamagedBlob, Descriptor, Image, Store, digest_of};
use super::reference::{Digest, ImageReference};

/// What is sent at a time; with a few of them on the way, the memory one stream takes.
const CHUNK: usize = 256 << 10;
const CHUNKS_ON_THE_WAY: usize = 4;
const BLOCK: usize = 512;

/// An archive as it will be streamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    /// The files in it, in order.
    pub files: Vec<ArchiveFile>,
}

/// One file of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveFile {
    /// Its path in the archive.
    pub path: String,
    /// What is in it.
    pub content: Content,
}

/// What a file of an archive contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A blob of the store.
    Blob {
        /// Which.
        blob: Descriptor,
        /// Where.
        path: PathBuf,
        /// An image it belongs to, for the message when it is damaged.
        image: String,
    },
}

/// The archive that `ctr images import` reads. `leave_out` are blobs that the node has.
pub fn for_node(store: &Store, images: &[Image], leave_out: &HashSet<Digest>) -> Archive {
    let manifests = images.iter().flat_map(|image| {
        node_names(image)
            .into_iter()
            .map(|name| index_entry(image, &name))
    });
    let mut files = vec![layout_file(), index_file(manifests.collect())];
    files.extend(blob_files(store, images, leave_out));
    Archive { files }
}

/// The archive that `docker load` reads: old Docker reads `manifest.json`, new Docker the OCI layout.
pub fn for_docker(store: &Store, images: &[Image]) -> Archive {
    let entries = images
        .iter()
        .map(|image| index_entry(image, &docker_name(&image.name)))
        .collect();
    let manifest: Vec<Value> = images
        .iter()
        .map(|image| {
            json!({
                "Config": blob_path(&image.config.digest),
                "RepoTags": [docker_name(&image.name)],
                "Layers": image.layers.iter().map(|layer| blob_path(&layer.digest)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let mut files = vec![layout_file(), index_file(entries)];
    files.push(ArchiveFile {
        path: "manifest.json".to_owned(),
        content: Content::Bytes(Value::from(manifest).to_string().into_bytes()),
    });
    files.extend(blob_files(store, images, &HashSet::new()));
    Archive { files }
}

/// Under which names the kubelet looks for an image: by tag, or, when the reference has a digest, by that digest and no
/// tag; and by the digest of the manifest, as if it had been pulled.
pub fn node_names(image: &Image) -> Vec<String> {
    let by_digest = |digest: &Digest| {
        format!(
            "{}/{}@{digest}",
            image.name.registry(),
            image.name.repository()
        )
    };
    let mut names = vec![cri_name(&image.name), by_digest(&image.manifest.digest)];
    names.extend(image.resolved.as_ref().map(by_digest));
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The name under which the kubelet asks the container runtime for an image.
pub fn cri_name(name: &ImageReference) -> String {
    let repository = format!("{}/{}", name.registry(), name.repository());
    match (name.digest(), name.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or_default()),
    }
}

/// The name of an image in Docker, which can load one only under a tag.
pub fn docker_name(name: &ImageReference) -> String {
    let repository = format!("{}/{}", name.registry(), name.repository());
    match (name.tag(), name.digest()) {
        (Some(tag), _) => format!("{repository}:{tag}"),
        (None, Some(digest)) => format!("{repository}:sha256-{}", &digest.hex()[..12]),
        (None, None) => repository,
    }
}

fn layout_file() -> ArchiveFile {
    ArchiveFile {
        path: "oci-layout".to_owned(),
        content: Content::Bytes(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    }
}

fn index_file(manifests: Vec<Value>) -> ArchiveFile {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    ArchiveFile {
        path: "index.json".to_owned(),
        content: Content::Bytes(index.to_string().into_bytes()),
    }
}

fn index_entry(image: &Image, name: &str) -> Value {
    json!({
        "mediaType": image.manifest.media_type,
        "digest": image.manifest.digest.to_string(),
        "size": image.manifest.size,
        "annotations": {
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name,
        },
    })
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob_files(store: &Store, images: &[Image], leave_out: &HashSet<Digest>) -> Vec<ArchiveFile> {
    let mut sent = leave_out.clone();
    let mut files = Vec::new();
    for image in images {
        for blob in image.blobs() {
            if !sent.insert(blob.digest.clone()) {
                continue;
            }
            files.push(ArchiveFile {
                path: blob_path(&blob.digest),
                content: Content::Blob {
                    blob: blob.clone(),
                    path: store.blob_path(&blob.digest),
                    image: image.name.to_string(),
                },
            });
        }
    }
    files
}

impl ArchiveFile {
    fn size(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Blob { blob, .. } => blob.size,
        }
    }
}

impl Archive {
    /// How long the stream will be.
    pub fn size(&self) -> u64 {
        let block = BLOCK as u64;
        let files: u64 = self
            .files
            .iter()
            .map(|file| block + file.size().div_ceil(block) * block)
            .sum();
        files + 2 * block
    }

    /// The archive's bytes. A damaged blob ends the stream with an error that holds a [`DamagedBlob`].
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
        let (sender, receiver) = mpsc::channel(CHUNKS_ON_THE_WAY);
        // Reading and hashing block, so they have a thread of their own; it ends with the stream.
        tokio::task::spawn_blocking(move || {
            let mut writer = Writer {
                sender,
                chunk: BytesMut::with_capacity(CHUNK),
            };
            match writer.archive(&self) {
                Err(Ended::Broken(error)) => {
                    let _ = writer.sender.blocking_send(Err(error));
                }
                Ok(()) | Err(Ended::NobodyReads) => {}
            }
        });
        Box::pin(stream::unfold(receiver, |mut receiver| async move {
            let chunk = receiver.recv().await?;
            Some((chunk, receiver))
        }))
    }
}

/// The [`DamagedBlob`] in an error of a stream or of what was fed with it.
pub fn damage(error: &anyhow::Error) -> Option<&DamagedBlob> {
    error.chain().find_map(|cause| {
        cause.downcast_ref::<DamagedBlob>().or_else(|| {
            let inner = cause.downcast_ref::<io::Error>()?.get_ref()?;
            inner.downcast_ref::<DamagedBlob>()
        })
    })
}

enum Ended {
    Broken(io::Error),
    NobodyReads,
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

struct Writer {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: BytesMut,
}

impl Writer {
    fn archive(&mut self, archive: &Archive) -> Result<(), Ended> {
        for file in &archive.files {
            let mut header = tar::Header::new_gnu();
            header.set_path(&file.path)?;
            header.set_mode(0o644);
            header.set_size(file.size());
            header.set_cksum();
            self.push(header.as_bytes())?;
            match &file.content {
                Content::Bytes(bytes) => self.push(bytes)?,
                Content::Blob { blob, path, image } => self.blob(blob, path.clone(), image)?,
            }
            let past_block = (file.size() % BLOCK as u64) as usize;
            if past_block > 0 {
                self.push(&[0; BLOCK][past_block..])?;
            }
        }
        self.push(&[0; 2 * BLOCK])?;
        self.flush()
    }

    fn blob(&mut self, blob: &Descriptor, path: PathBuf, image: &str) -> Result<(), Ended> {
        let damaged = |what: String| {
            Ended::Broken(io::Error::other(DamagedBlob {
                name: image.to_owned(),
                digest: blob.digest.clone(),
                path: path.clone(),
                what,
            }))
        };
        let mut file = File::open(&path).map_err(|error| damaged(error.to_string()))?;
        let length = file.metadata()?.len();
        if length != blob.size {
            return Err(damaged(format!(
                "{length} bytes, {} were expected",
                blob.size
            )));
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut left = blob.size;
        loop {
            let part = &mut buffer[..left.min(CHUNK as u64) as usize];
            file.read_exact(part)
                .map_err(|error| damaged(error.to_string()))?;
            hasher.update(&*part);
            left -= part.len() as u64;
            if left == 0 {
                let digest = digest_of(hasher);
                if digest != blob.digest {
                    return Err(damaged(format!("its digest is {digest}")));
                }
                return self.push(part);
            }
            self.push(part)?;
        }
    }

    fn push(&mut self, mut bytes: &[u8]) -> Result<(), Ended> {
        while !bytes.is_empty() {
            let part = bytes.len().min(CHUNK - self.chunk.len());
            self.chunk.extend_from_slice(&bytes[..part]);
            bytes = &bytes[part..];
            if self.chunk.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Ended> {
        let chunk = std::mem::replace(&mut self.chunk, BytesMut::with_capacity(CHUNK)).freeze();
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| Ended::NobodyReads)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::StreamExt as _;
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::super::testing::{damage, empty, layer, put};
    use super::*;

    async fn bytes_of(archive: Archive) -> io::Result<Vec<u8>> {
        let mut stream = archive.stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes)
    }

    fn unpacked(bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        tar::Archive::new(bytes)
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().to_string_lossy().into_owned();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (path, content)
            })
            .collect()
    }

    #[tokio::test]
    async fn a_node_gets_only_what_it_lacks_and_shared_blobs_once() {
        let (_folder, store) = empty();
        let base = layer("base", 700_000);
        let one = put(&store, "redis:7", &[base.clone(), layer("one", 10)]);
        let two = put(&store, "redis:8", &[base.clone(), layer("two", 512)]);

        let whole = for_node(&store, &[one.clone(), two.clone()], &HashSet::new());
        let bytes = bytes_of(whole.clone()).await.unwrap();
        assert_eq!(bytes.len() as u64, whole.size());
        let files = unpacked(&bytes);
        // Two small files, and two manifests, configs, own layers, and the one base.
        assert_eq!(files.len(), 2 + 7);

        let thin = for_node(
            &store,
            &[one, two.clone()],
            &HashSet::from([Digest::of(&base), two.config.digest]),
        );
        assert_eq!(unpacked(&bytes_of(thin).await.unwrap()).len(), 2 + 5);
    }

    #[tokio::test]
    async fn the_small_files_of_a_docker_archive() {
        let (_folder, store) = empty();
        let image = put(&store, "kindest/node:v1.34.4", &[layer("base", 3)]);
        let files = unpacked(
            &bytes_of(for_docker(&store, std::slice::from_ref(&image)))
                .await
                .unwrap(),
        );
        let read = |path: &str| serde_json::from_slice::<Value>(&files[path]).unwrap();
        assert_eq!(
            read("manifest.json"),
            json!([{
                "Config": blob_path(&image.config.digest),
                "RepoTags": ["docker.io/kindest/node:v1.34.4"],
                "Layers": [blob_path(&image.layers[0].digest)],
            }])
        );
        assert_eq!(
            read("index.json"),
            json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [{
                    "mediaType": image.manifest.media_type,
                    "digest": image.manifest.digest.to_string(),
                    "size": image.manifest.size,
                    "annotations": {
                        "io.containerd.image.name": "docker.io/kindest/node:v1.34.4",
                        "org.opencontainers.image.ref.name": "docker.io/kindest/node:v1.34.4",
                    },
                }],
            })
        );
        assert_eq!(
            String::from_utf8_lossy(&files["oci-layout"]),
            r#"{"imageLayoutVersion":"1.0.0"}"#
        );
    }

    #[test]
    fn images_are_named_as_the_kubelet_asks_for_them() {
        let (_folder, store) = empty();
        let names = |name: &str| {
            let image = put(&store, name, &[layer("base", 3)]);
            node_names(&image)
                .join("\n")
                .replace(image.manifest.digest.hex(), "<its manifest>")
                .replace(&"1".repeat(64), "<the index>")
        };
        assert_snapshot!(names("redis:7"), @r"
        docker.io/library/redis:7
        docker.io/library/redis@sha256:<its manifest>
        ");
        let pinned = format!("quay.io/a/b:1@sha256:{}", "1".repeat(64));
        assert_snapshot!(names(&pinned), @r"
        quay.io/a/b@sha256:<the index>
        quay.io/a/b@sha256:<its manifest>
        ");
        assert_snapshot!(docker_name(&pinned.parse().unwrap()), @"quay.io/a/b:1");
        let untagged = format!("quay.io/a/b@sha256:{}", "1".repeat(64));
        assert_snapshot!(docker_name(&untagged.parse().unwrap()), @"quay.io/a/b:sha256-111111111111");
    }

    #[tokio::test]
    async fn a_damaged_blob_is_named_and_never_sent_whole() {
        let (_folder, store) = empty();
        let image = put(&store, "redis:7", &[layer("base", 600_000)]);
        damage(&store, &image.layers[0]);

        let mut stream = for_node(&store, std::slice::from_ref(&image), &HashSet::new()).stream();
        let mut sent = 0;
        let error = loop {
            match stream.next().await.unwrap() {
                Ok(chunk) => sent += chunk.len(),
                Err(error) => break error,
            }
        };
        assert!(sent < 600_000);
        let error = anyhow::Error::new(error).context("can't import");
        let damaged = super::damage(&error).unwrap();
        assert_eq!(damaged.name, "docker.io/library/redis:7");
        assert_eq!(damaged.digest, image.layers[0].digest);
        assert_eq!(damaged.path, store.blob_path(&damaged.digest));

        // A blob that was cut short is found before it is read.
        std::fs::write(&damaged.path, b"short").unwrap();
        let archive = for_node(&store, std::slice::from_ref(&image), &HashSet::new());
        let error = anyhow::Error::new(bytes_of(archive).await.unwrap_err());
        let damaged = super::damage(&error).unwrap();
        assert_eq!(damaged.what, "5 bytes, 601600 were expected");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_arrives_hashes_to_its_name(
            images in prop::collection::vec(prop::collection::vec((0_u8..4, 0_usize..300_000), 0..4), 1..4),
        ) {
            let (_folder, store) = empty();
            let images: Vec<Image> = images
                .iter()
                .enumerate()
                .map(|(index, layers)| {
                    let layers: Vec<Vec<u8>> =
                        layers.iter().map(|(file, bytes)| layer(&file.to_string(), *bytes)).collect();
                    put(&store, &format!("image:{index}"), &layers)
                })
                .collect();
            let archive = for_node(&store, &images, &HashSet::new());
            let size = archive.size();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bytes = runtime.block_on(bytes_of(archive)).unwrap();
            prop_assert_eq!(bytes.len() as u64, size);
            let files = unpacked(&bytes);
            for (path, content) in &files {
                if let Some(hex) = path.strip_prefix("blobs/sha256/") {
                    prop_assert_eq!(format!("sha256:{hex}"), Digest::of(content).to_string());
                }
            }
            for blob in images.iter().flat_map(Image::blobs) {
                prop_assert!(files.contains_key(&blob_path(&blob.digest)));
            }
        }
    }
}
