//! The store's folder: an OCI image layout, and how it is written so that nothing can break it.
//!
//! ```text
//! oci-layout            {"imageLayoutVersion":"1.0.0"}
//! index.json            one descriptor per name and origin
//! blobs/sha256/<hex>    manifests, configs, layers, files
//! partial/              what is being written; moved into blobs/ when it is whole and its digest is right
//! lock                  locked by whoever changes index.json
//! in-use                locked, shared, by everybody who has the store open
//! ```
//!
//! A blob gets its name by a rename when it is whole, so a file under `blobs/` was right when it was written. What a disk
//! does to it later is found by its size, which is looked at always, and by its digest, which is computed whenever it is
//! sent somewhere ([`super::archive`]) or when asked ([`Store::verify`]): a second `up` hashes nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::reference::{Digest, ImageReference};
use super::{Name, Origin};
use crate::error::Failure;

const REFERENCE: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const ORIGIN: &str = "test.devenv.origin";
const RESOLVED: &str = "test.devenv.resolved";
/// The media type of a file that isn't part of an image.
pub const FILE: &str = "application/octet-stream";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What was not taken up again within this time never will be.
const PARTIAL_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
const CHUNK: usize = 256 << 10;
/// Hashing so many bytes costs nothing.
const SMALL: u64 = 64 << 10;

/// An open store; clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    _in_use: Arc<File>,
}

/// What a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest, and so where it is.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What the store has under a name, from an origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The full name.
    pub name: Name,
    /// Where it came from.
    pub origin: Origin,
    /// The manifest, or the file itself.
    pub target: Descriptor,
    /// What the origin said the name stands for, where that isn't the target: the digest of the index of all platforms.
    pub resolved: Option<Digest>,
}

/// An image of the store, for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its full name.
    pub name: ImageReference,
    /// What the origin said the name stands for, where that isn't the manifest.
    pub resolved: Option<Digest>,
    /// Its manifest.
    pub manifest: Descriptor,
    /// Its config.
    pub config: Descriptor,
    /// Its layers, lowest first.
    pub layers: Vec<Descriptor>,
}

impl Image {
    /// Everything it consists of: manifest, config, layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.layers)
    }

    /// Bytes of all its blobs.
    pub fn size(&self) -> u64 {
        self.blobs().map(|blob| blob.size).sum()
    }
}

/// A blob of the store isn't what it was when it was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store's copy of {name} is damaged: {}: {what}", .path.display())]
pub struct DamagedBlob {
    /// The image or file it belongs to.
    pub name: String,
    /// What its digest should be.
    pub digest: Digest,
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// How closely to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Every blob is there and has its size: no more than a look into the folder.
    Sizes,
    /// Every blob's digest is computed: reads everything.
    Digests,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexFile {
    schema_version: u32,
    media_type: String,
    manifests: Vec<IndexEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IndexEntry {
    media_type: String,
    digest: String,
    size: u64,
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct ManifestFile {
    config: ManifestBlob,
    layers: Vec<ManifestBlob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestBlob {
    media_type: String,
    digest: String,
    size: u64,
}

impl TryFrom<ManifestBlob> for Descriptor {
    type Error = anyhow::Error;

    fn try_from(blob: ManifestBlob) -> anyhow::Result<Self> {
        Ok(Self {
            media_type: blob.media_type,
            digest: blob.digest.parse()?,
            size: blob.size,
        })
    }
}

impl Store {
    /// Opens the store in a folder, which is made if it isn't there, and removes what killed runs left half-written.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        for part in ["blobs/sha256", "partial"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).map_err(|error| write_failure(&path, 0, error))?;
        }
        let in_use = open_lock(&folder.join("in-use"))?;
        // Nobody else has the store open: what is half-written belongs to nobody.
        if in_use.try_lock().is_ok() {
            remove_leftovers(&folder.join("partial"))?;
            in_use.unlock().context("can't unlock the store")?;
        }
        in_use
            .lock_shared()
            .with_context(|| format!("can't lock the store {}", folder.display()))?;
        // Only now: whoever opens the store first takes what is half-written for nobody's.
        let layout = folder.join("oci-layout");
        if !layout.exists() {
            write_atomically(folder, &layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            _in_use: Arc::new(in_use),
        })
    }

    /// Opens the store only to look into it: nothing is made or removed. `None` where there is none yet.
    pub fn look(folder: &Path) -> anyhow::Result<Option<Self>> {
        let what = || format!("can't open the store {}", folder.display());
        let in_use = match File::open(folder.join("in-use")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(what),
        };
        in_use.lock_shared().with_context(what)?;
        Ok(Some(Self {
            folder: folder.to_owned(),
            _in_use: Arc::new(in_use),
        }))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a blob is, if it is there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob is there with its full size. Of a small one (a manifest, a config) the digest is looked at, too.
    pub fn has(&self, blob: &Descriptor) -> bool {
        let path = self.blob_path(&blob.digest);
        match blob.size {
            0..=SMALL => fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == blob.digest),
            _ => fs::metadata(path).is_ok_and(|file| file.len() == blob.size),
        }
    }

    /// Everything the index names.
    pub fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let path = self.folder.join("index.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("can't read {}", path.display()));
            }
        };
        parse_index(&text).map_err(|error| {
            Failure::Other {
                message: format!("the store's index {} is damaged: {error}", path.display()),
                hint: format!(
                    "remove it, everything is found or fetched again: `rm '{}'`",
                    path.display()
                ),
            }
            .into()
        })
    }

    /// What the store has under a name, from an origin. Whether all of it is still there is asked by [`Store::verify`].
    pub fn find(&self, name: &Name, origin: Origin) -> anyhow::Result<Option<Entry>> {
        Ok(self
            .entries()?
            .into_iter()
            .find(|entry| entry.name == *name && entry.origin == origin))
    }

    /// The parts of an image, from its manifest.
    pub fn image(&self, entry: &Entry) -> anyhow::Result<Image> {
        let Name::Image(name) = &entry.name else {
            anyhow::bail!("{} is a file, not an image", entry.name);
        };
        let bytes = self.read(&entry.name.to_string(), &entry.target)?;
        parse_manifest(&entry.target, &bytes, name.clone(), entry.resolved.clone())
            .with_context(|| format!("can't read the manifest of {name} in the store"))
    }

    /// The bytes of a small blob, verified.
    pub fn read(&self, name: &str, blob: &Descriptor) -> anyhow::Result<Vec<u8>> {
        let path = self.blob_path(&blob.digest);
        let damaged = |what: String| DamagedBlob {
            name: name.to_owned(),
            digest: blob.digest.clone(),
            path: path.clone(),
            what,
        };
        let bytes = fs::read(&path).map_err(|error| damaged(error.to_string()))?;
        let digest = Digest::of(&bytes);
        if digest != blob.digest {
            return Err(damaged(format!("its digest is {digest}")).into());
        }
        Ok(bytes)
    }

    /// Makes sure that all parts of an entry are there, and, if asked, that they are what they were.
    pub fn verify(&self, entry: &Entry, how: Verify) -> anyhow::Result<()> {
        let blobs = match &entry.name {
            Name::File(_) => vec![entry.target.clone()],
            Name::Image(_) => self.image(entry)?.blobs().cloned().collect(),
        };
        for blob in blobs {
            let name = entry.name.to_string();
            self.check_size(&name, &blob)?;
            if how == Verify::Digests {
                self.check_digest(&name, &blob)?;
            }
        }
        Ok(())
    }

    /// Whether an entry can be used as it is.
    pub fn is_whole(&self, entry: &Entry) -> bool {
        self.verify(entry, Verify::Sizes).is_ok()
    }

    fn check_size(&self, name: &str, blob: &Descriptor) -> Result<(), DamagedBlob> {
        if blob.size <= SMALL {
            return self.check_digest(name, blob);
        }
        let path = self.blob_path(&blob.digest);
        let what = match fs::metadata(&path) {
            Ok(file) if file.len() == blob.size => return Ok(()),
            Ok(file) => format!("{} bytes, {} were expected", file.len(), blob.size),
            Err(error) => error.to_string(),
        };
        Err(DamagedBlob {
            name: name.to_owned(),
            digest: blob.digest.clone(),
            path,
            what,
        })
    }

    fn check_digest(&self, name: &str, blob: &Descriptor) -> Result<(), DamagedBlob> {
        let path = self.blob_path(&blob.digest);
        let what = match digest_of_file(&path) {
            Ok(digest) if digest == blob.digest => return Ok(()),
            Ok(digest) => format!("its digest is {digest}"),
            Err(error) => error.to_string(),
        };
        Err(DamagedBlob {
            name: name.to_owned(),
            digest: blob.digest.clone(),
            path,
            what,
        })
    }

    /// Takes a blob out, so that it is fetched anew.
    pub fn remove_blob(&self, digest: &Digest) -> anyhow::Result<()> {
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("can't remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Puts entries into the index, in place of those with the same name and origin. What an entry names must be there.
    pub fn enter(&self, entries: &[Entry]) -> anyhow::Result<()> {
        let lock = open_lock(&self.folder.join("lock"))?;
        lock.lock()
            .with_context(|| format!("can't lock the store {}", self.folder.display()))?;
        let mut all: BTreeMap<(String, Origin), Entry> = self
            .entries()?
            .into_iter()
            .chain(entries.iter().cloned())
            .map(|entry| ((entry.name.to_string(), entry.origin), entry))
            .collect();
        let index = IndexFile {
            schema_version: 2,
            media_type: INDEX.to_owned(),
            manifests: std::mem::take(&mut all)
                .into_values()
                .map(index_entry)
                .collect(),
        };
        let text = serde_json::to_vec_pretty(&index).context("can't write the store's index")?;
        write_atomically(&self.folder, &self.folder.join("index.json"), &text)
        // The lock ends with its file.
    }

    /// Writes a blob whose bytes are at hand.
    pub fn write(&self, media_type: &str, bytes: &[u8]) -> anyhow::Result<Descriptor> {
        let blob = Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        if !self.has(&blob) {
            write_atomically(&self.folder, &self.blob_path(&blob.digest), bytes)?;
        }
        Ok(blob)
    }
}

/// A blob that is being written, byte by byte. Whole, it is verified and moved to its place; until then it stays in
/// `partial/`, where a later run takes it up.
#[derive(Debug)]
pub struct Partial {
    store: Store,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    written: u64,
    size: Option<u64>,
    expected: Option<Digest>,
}

impl Partial {
    /// Begins a blob, or takes it up where an earlier run left it.
    pub fn of_blob(store: &Store, blob: &Descriptor) -> anyhow::Result<Begun> {
        let path = store.folder.join("partial").join(blob.digest.hex());
        loop {
            if store.has(blob) {
                return Ok(Begun::There);
            }
            let file = open_lock(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Begun::Busy),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("can't lock {}", path.display()));
                }
            }
            // Whoever held it may have moved it to its place meanwhile; then this is no file of that name any more.
            if !is_at(&file, &path) {
                continue;
            }
            let mut partial = Self {
                store: store.clone(),
                path,
                file,
                hasher: Sha256::new(),
                written: 0,
                size: Some(blob.size),
                expected: Some(blob.digest.clone()),
            };
            partial.take_up()?;
            return Ok(Begun::Ours(Box::new(partial)));
        }
    }

    /// Begins a blob whose digest isn't known yet, or is to be checked against `expected`.
    pub fn of_file(store: &Store, expected: Option<&Digest>) -> anyhow::Result<Self> {
        let folder = store.folder.join("partial");
        let (file, path) = tempfile::Builder::new()
            .prefix("tmp-")
            .tempfile_in(&folder)
            .and_then(|file| Ok(file.keep()?))
            .map_err(|error| write_failure(&folder, 0, error))?;
        Ok(Self {
            store: store.clone(),
            path,
            file,
            hasher: Sha256::new(),
            written: 0,
            size: None,
            expected: expected.cloned(),
        })
    }

    /// Bytes so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether as many bytes came as were expected.
    pub fn is_full(&self) -> bool {
        self.size == Some(self.written)
    }

    /// Adds bytes.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).map_err(|error| {
            let needed = self
                .size
                .map_or(bytes.len() as u64, |size| size.saturating_sub(self.written));
            write_failure(&self.path, needed, error)
        })?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Forgets all bytes.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .with_context(|| format!("can't write {}", self.path.display()))?;
        self.hasher = Sha256::new();
        self.written = 0;
        Ok(())
    }

    /// Verifies the whole and moves it to its place. What is wrong is removed, so that nobody takes it up.
    pub fn finish(self) -> anyhow::Result<Descriptor> {
        let digest = digest_of(self.hasher);
        let wrong = match (self.size, &self.expected) {
            (Some(size), _) if size != self.written => {
                Some(format!("{} bytes came, {size} were expected", self.written))
            }
            (_, Some(expected)) if *expected != digest => {
                Some(format!("its digest is {digest}, expected {expected}"))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            let _ = fs::remove_file(&self.path);
            return Err(WrongContent(wrong).into());
        }
        self.file
            .sync_all()
            .map_err(|error| write_failure(&self.path, 0, error))?;
        let place = self.store.blob_path(&digest);
        fs::rename(&self.path, &place)
            .and_then(|()| sync_folder(&place))
            .map_err(|error| write_failure(&place, 0, error))?;
        Ok(Descriptor {
            media_type: FILE.to_owned(),
            digest,
            size: self.written,
        })
    }

    fn take_up(&mut self) -> anyhow::Result<()> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = self
                .file
                .read(&mut buffer)
                .with_context(|| format!("can't read {}", self.path.display()))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&buffer[..read]);
            self.written += read as u64;
        }
        if self.size.is_some_and(|size| self.written > size) {
            self.restart()?;
        }
        self.file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("can't write {}", self.path.display()))?;
        Ok(())
    }
}

/// How the beginning of a blob went.
#[derive(Debug)]
pub enum Begun {
    /// It is to be written by us.
    Ours(Box<Partial>),
    /// Another process is writing it.
    Busy,
    /// It is there already.
    There,
}

/// What came isn't what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongContent(String);

/// An error of writing, with a hint where the disk is full.
pub(super) fn write_failure(path: &Path, needed: u64, error: io::Error) -> anyhow::Error {
    if error.kind() != io::ErrorKind::StorageFull {
        return anyhow::Error::new(error).context(format!("can't write {}", path.display()));
    }
    let needed = match needed {
        0 => String::new(),
        needed => format!(", {} MiB more were needed", needed.div_ceil(1 << 20)),
    };
    Failure::Other {
        message: format!("the disk is full: can't write {}{needed}", path.display()),
        hint: format!(
            "free some space there (`df -h '{}'`), then run the same command again: it goes on where it stopped",
            path.parent().unwrap_or(path).display()
        ),
    }
    .into()
}

fn index_entry(entry: Entry) -> IndexEntry {
    let name = entry.name.to_string();
    let mut annotations = BTreeMap::from([
        (REFERENCE.to_owned(), name.clone()),
        (CONTAINERD_NAME.to_owned(), name),
        (ORIGIN.to_owned(), entry.origin.to_string()),
    ]);
    if let Some(resolved) = entry.resolved {
        annotations.insert(RESOLVED.to_owned(), resolved.to_string());
    }
    IndexEntry {
        media_type: entry.target.media_type,
        digest: entry.target.digest.to_string(),
        size: entry.target.size,
        annotations,
    }
}

fn parse_index(text: &[u8]) -> anyhow::Result<Vec<Entry>> {
    let index: IndexFile = serde_json::from_slice(text)?;
    index
        .manifests
        .into_iter()
        .filter_map(|entry| {
            // What has no origin was put there by another tool, and nobody knows from where: it doesn't count, and isn't kept.
            let origin = entry.annotations.get(ORIGIN)?.clone();
            Some(parse_index_entry(entry, &origin))
        })
        .collect()
}

fn parse_index_entry(entry: IndexEntry, origin: &str) -> anyhow::Result<Entry> {
    let name = entry
        .annotations
        .get(REFERENCE)
        .with_context(|| format!("no name for {}", entry.digest))?;
    Ok(Entry {
        name: name.parse()?,
        origin: origin.parse()?,
        resolved: entry
            .annotations
            .get(RESOLVED)
            .map(|digest| digest.parse())
            .transpose()?,
        target: Descriptor {
            media_type: entry.media_type,
            digest: entry.digest.parse()?,
            size: entry.size,
        },
    })
}

/// The parts of an image, from the bytes of its manifest.
pub(super) fn parse_manifest(
    target: &Descriptor,
    bytes: &[u8],
    name: ImageReference,
    resolved: Option<Digest>,
) -> anyhow::Result<Image> {
    if target.media_type == INDEX || target.media_type == DOCKER_INDEX {
        anyhow::bail!("it is an index of several platforms, not the manifest of one");
    }
    let manifest: ManifestFile = serde_json::from_slice(bytes)?;
    Ok(Image {
        name,
        resolved,
        manifest: target.clone(),
        config: manifest.config.try_into()?,
        layers: manifest
            .layers
            .into_iter()
            .map(Descriptor::try_from)
            .collect::<anyhow::Result<_>>()?,
    })
}

/// What a hasher has come to.
pub(super) fn digest_of(hasher: Sha256) -> Digest {
    Digest::from_sha256(&hasher.finalize().into())
}

fn digest_of_file(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest_of(hasher)),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn open_lock(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| write_failure(path, 0, error))
}

/// Whether an open file is still what its path names.
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Writes a file so that it is there whole or not at all, also after a crash.
fn write_atomically(folder: &Path, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = (|| {
        let mut file = tempfile::Builder::new()
            .prefix("tmp-")
            .tempfile_in(folder.join("partial"))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        sync_folder(path)
    })();
    written.map_err(|error: io::Error| write_failure(path, bytes.len() as u64, error))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes temporary files, and blobs that were begun long ago. Younger ones are taken up by the next fetch.
fn remove_leftovers(folder: &Path) -> anyhow::Result<()> {
    let listed =
        fs::read_dir(folder).with_context(|| format!("can't read {}", folder.display()))?;
    for file in listed.flatten() {
        let begun_blob = file.file_name().len() == 64;
        let age = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|changed| SystemTime::now().duration_since(changed).ok())
            .unwrap_or_default();
        if !begun_blob || age > PARTIAL_KEPT {
            // Best effort: a leftover that stays costs space, and nothing else.
            let _ = fs::remove_file(file.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::testing::{LAYER, damage, empty, layer, put};
    use super::*;
    use crate::error::explain;

    fn entry(store: &Store, name: &str, origin: Origin, content: &[u8]) -> Entry {
        Entry {
            name: name.parse().unwrap(),
            origin,
            target: store.write(FILE, content).unwrap(),
            resolved: None,
        }
    }

    #[test]
    fn the_same_name_from_another_origin_is_another_entry() {
        let (_folder, store) = empty();
        let built = entry(&store, "https://x.test/a", Origin::Packages, b"built");
        let fetched = entry(&store, "https://x.test/a", Origin::Registry, b"fetched");
        let newer = entry(&store, "https://x.test/a", Origin::Registry, b"newer");
        store.enter(&[built.clone(), fetched]).unwrap();
        store.enter(std::slice::from_ref(&newer)).unwrap();
        let find = |origin| store.find(&built.name, origin).unwrap();
        assert_eq!(find(Origin::Packages), Some(built.clone()));
        assert_eq!(find(Origin::Registry), Some(newer));
        assert_eq!(store.entries().unwrap().len(), 2);
    }

    #[test]
    fn the_index_is_one_that_other_tools_read() {
        let (_folder, store) = empty();
        let mut image = entry(&store, "redis:7", Origin::Registry, b"{}");
        image.target.media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        image.resolved = Some(Digest::of(b"index"));
        store.enter(&[image]).unwrap();
        let text = fs::read_to_string(store.folder().join("index.json")).unwrap();
        assert_snapshot!(text, @r#"
        {
          "schemaVersion": 2,
          "mediaType": "application/vnd.oci.image.index.v1+json",
          "manifests": [
            {
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
              "size": 2,
              "annotations": {
                "io.containerd.image.name": "docker.io/library/redis:7",
                "org.opencontainers.image.ref.name": "docker.io/library/redis:7",
                "test.devenv.origin": "registry",
                "test.devenv.resolved": "sha256:1bc04b5291c26a46d918139138b992d2de976d6851d0893b0476b85bfbdfc6e6"
              }
            }
          ]
        }
        "#);
        assert_eq!(
            fs::read_to_string(store.folder().join("oci-layout")).unwrap(),
            r#"{"imageLayoutVersion":"1.0.0"}"#
        );
    }

    #[test]
    fn entries_of_other_tools_do_not_count_and_a_broken_index_is_told() {
        let (_folder, store) = empty();
        let index = store.folder().join("index.json");
        fs::write(
            &index,
            r#"{"schemaVersion": 2, "mediaType": "x", "manifests": [{"mediaType": "x", "digest": "sha512:1", "size": 1, "annotations": {}}]}"#,
        )
        .unwrap();
        assert_eq!(store.entries().unwrap(), []);
        fs::write(&index, "{").unwrap();
        let error = store.entries().unwrap_err();
        let told = format!("{error}\nhint: {}", explain(&error).1.unwrap());
        assert_snapshot!(told.replace(&index.display().to_string(), "INDEX"), @r"
        the store's index INDEX is damaged: EOF while parsing an object at line 1 column 1
        hint: remove it, everything is found or fetched again: `rm 'INDEX'`
        ");
    }

    #[test]
    fn many_enter_at_the_same_time() {
        let (_folder, store) = empty();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let store = store.clone();
                scope.spawn(move || {
                    let name = format!("https://x.test/{number}");
                    let one = entry(&store, &name, Origin::Registry, name.as_bytes());
                    store.enter(&[one]).unwrap();
                });
            }
        });
        assert_eq!(store.entries().unwrap().len(), 8);
    }

    #[test]
    fn leftovers_of_killed_runs_go_when_nobody_has_the_store_open() {
        let (_folder, store) = empty();
        let partial = store.folder().join("partial");
        let begun = partial.join(Digest::of(b"blob").hex());
        fs::write(&begun, "bl").unwrap();
        fs::write(partial.join("tmp-1"), "x").unwrap();
        // Another devenv may be writing it right now.
        drop(Store::open(store.folder()).unwrap());
        assert!(partial.join("tmp-1").exists());

        let folder = store.folder().to_owned();
        drop(store);
        let store = Store::open(&folder).unwrap();
        assert!(!partial.join("tmp-1").exists());
        // What a fetch can take up stays, for a while.
        assert!(begun.exists());
        drop(store);
        let long_ago = SystemTime::now() - PARTIAL_KEPT - Duration::from_secs(1);
        let file = File::options().write(true).open(&begun).unwrap();
        file.set_modified(long_ago).unwrap();
        Store::open(&folder).unwrap();
        assert!(!begun.exists());
    }

    #[test]
    fn a_killed_write_leaves_nothing_that_counts() {
        let (_folder, store) = empty();
        let content = layer("file", 500_000);
        let blob = Descriptor {
            media_type: LAYER.to_owned(),
            digest: Digest::of(&content),
            size: content.len() as u64,
        };
        let begin = || match Partial::of_blob(&store, &blob).unwrap() {
            Begun::Ours(partial) => *partial,
            other => panic!("{other:?}"),
        };
        let mut first = begin();
        first.write(&content[..100_000]).unwrap();
        assert!(!store.has(&blob));
        assert!(matches!(
            Partial::of_blob(&store, &blob).unwrap(),
            Begun::Busy
        ));
        drop(first); // as a kill does it

        let mut second = begin();
        assert_eq!(second.written(), 100_000);
        second.write(&content[100_000..]).unwrap();
        assert_eq!(second.finish().unwrap().digest, blob.digest);
        assert!(store.has(&blob));
        assert!(matches!(
            Partial::of_blob(&store, &blob).unwrap(),
            Begun::There
        ));

        // Wrong bytes are never taken up again.
        store.remove_blob(&blob.digest).unwrap();
        let mut wrong = begin();
        wrong.write(&vec![0; content.len()]).unwrap();
        assert!(wrong.finish().unwrap_err().is::<WrongContent>());
        assert!(!store.has(&blob));
        assert_eq!(begin().written(), 0);
    }

    #[test]
    fn damage_is_found_by_size_at_once_and_by_digest_when_asked() {
        let (_folder, store) = empty();
        let image = put(&store, "redis:7", &[layer("file", 500_000)]);
        let entry = store.entries().unwrap().remove(0);
        assert!(store.verify(&entry, Verify::Digests).is_ok());
        damage(&store, &image.layers[0]);
        assert!(store.is_whole(&entry));
        let error = store.verify(&entry, Verify::Digests).unwrap_err();
        let damaged = error.downcast_ref::<DamagedBlob>().unwrap();
        assert_eq!(damaged.digest, image.layers[0].digest);
        fs::write(&damaged.path, "short").unwrap();
        let error = store.verify(&entry, Verify::Sizes).unwrap_err();
        let path = store.blob_path(&image.layers[0].digest);
        assert_snapshot!(error.to_string().replace(&path.display().to_string(), "BLOB"), @"the store's copy of docker.io/library/redis:7 is damaged: BLOB: 5 bytes, 501760 were expected");
        fs::remove_file(&path).unwrap();
        assert!(!store.is_whole(&entry));
    }

    #[test]
    fn a_full_disk_is_told_with_what_was_needed() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = write_failure(Path::new("/cache/store/partial/x"), 300 << 20, full);
        let told = format!("{error:#}\nhint: {}", explain(&error).1.unwrap());
        assert_snapshot!(told, @r"
        the disk is full: can't write /cache/store/partial/x, 300 MiB more were needed
        hint: free some space there (`df -h '/cache/store/partial'`), then run the same command again: it goes on where it stopped
        ");
    }
}
