//! Small but whole images for tests.

use serde_json::json;
use tempfile::TempDir;

use super::layout::{Descriptor, Entry, Image, Store};
use super::reference::Digest;
use super::{Name, Origin};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An empty store that goes with the value.
pub(super) fn empty() -> (TempDir, Store) {
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
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
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
