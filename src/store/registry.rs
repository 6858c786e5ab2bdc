//! Images from registries and files by their addresses.
//!
//! Of an image only the platform that is needed is fetched. Blobs come several at a time over all images, go on where an
//! earlier run stopped, and are hashed while they come. Every failure names the image and the registry; what may pass by
//! itself (a broken connection, a busy registry) is tried again a few times.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{env, fs};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use serde::Deserialize;
use tokio::time::sleep;

use super::layout::{
    Begun, Descriptor, Entry, Image, Partial, Store, WrongContent, parse_manifest,
};
use super::reference::{Digest, ImageReference};
use super::{Name, Origin};
use crate::docker::Platform;
use crate::error::Failure;
use crate::event::Step;
use crate::stop::Stop;

const MANIFESTS_AT_ONCE: usize = 8;
const BLOBS_AT_ONCE: usize = 4;
/// Waits before the second, third and fourth try, in milliseconds.
const BACKOFF: [u64; 3] = if cfg!(test) {
    [1, 2, 4]
} else {
    [500, 1000, 2000]
};
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A connection on which nothing comes for so long is dead.
const SILENCE: Duration = Duration::from_secs(30);
/// What is hashed and written at a time.
const CHUNK: usize = 1 << 20;
const TELL_EVERY: u64 = 1 << 20;
const ACCEPTED: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyManifest {
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<IndexManifest>,
}

#[derive(Deserialize)]
struct IndexManifest {
    digest: String,
    platform: Option<IndexPlatform>,
}

#[derive(Deserialize)]
struct IndexPlatform {
    os: String,
    architecture: String,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// An image whose blobs are on their way.
struct Coming {
    image: Image,
    /// Ended when the image is whole.
    step: Mutex<Option<Step>>,
    done: AtomicU64,
    told: AtomicU64,
}

/// One try that failed.
enum Trouble {
    /// It may pass by itself.
    Passing(anyhow::Error),
    /// It won't.
    Lasting(anyhow::Error),
}

/// What is still borne.
struct Patience(std::slice::Iter<'static, u64>);

/// A blob's bytes so far, told to all images that wait for it.
struct Meter<'a> {
    owners: Vec<&'a Coming>,
    counted: u64,
}

/// Fetches images into the store; each is entered as soon as it is whole.
pub async fn pull(
    store: &Store,
    names: &[ImageReference],
    platform: &Platform,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Vec<Entry>> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let client = client(names)?;
    let logins = logins(names, step).await;
    let resolved = stream::iter(names)
        .map(|name| resolve(store, &client, name, &logins, platform, step))
        .buffered(MANIFESTS_AT_ONCE)
        .try_collect();
    let coming = stop.or(resolved).await??;
    stop.or(fetch(store, &client, coming, &logins, platform))
        .await?
}

/// Finds an image's manifest for the platform and puts it into the store.
async fn resolve(
    store: &Store,
    client: &Client,
    name: &ImageReference,
    logins: &HashMap<String, RegistryAuth>,
    platform: &Platform,
    step: &Step,
) -> anyhow::Result<Coming> {
    let step = step.child(name.to_string());
    step.waiting("its manifest");
    let login = login(logins, name);
    let (target, resolved) = match manifest(client, name, name.digest(), login, &step).await? {
        (bytes, Answer::Image(media_type)) => (store.write(&media_type, &bytes)?, None),
        (bytes, Answer::Index(index)) => {
            let digest = choose(&index, platform, name)?;
            let (manifest, answer) = manifest(client, name, Some(&digest), login, &step).await?;
            let Answer::Image(media_type) = answer else {
                bail!("the index of {name} names another index for its platform");
            };
            let target = store.write(&media_type, &manifest)?;
            (target, Some(Digest::of(&bytes)))
        }
    };
    let bytes = store.read(&name.to_string(), &target)?;
    let image = parse_manifest(&target, &bytes, name.clone(), resolved)
        .with_context(|| format!("can't read the manifest of {name}"))?;
    step.waiting("");
    Ok(Coming {
        image,
        step: Mutex::new(Some(step)),
        done: AtomicU64::new(0),
        told: AtomicU64::new(0),
    })
}

enum Answer {
    Image(String),
    Index(Vec<IndexManifest>),
}

/// Asks for a manifest: by digest if there is one, else by tag.
async fn manifest(
    client: &Client,
    name: &ImageReference,
    digest: Option<&Digest>,
    login: &RegistryAuth,
    step: &Step,
) -> anyhow::Result<(Vec<u8>, Answer)> {
    let reference = reference(name, digest);
    let mut patience = Patience::new();
    let bytes = loop {
        let answer = async {
            client
                .auth(&reference, login, RegistryOperation::Pull)
                .await?;
            client.pull_manifest_raw(&reference, login, ACCEPTED).await
        };
        match answer.await {
            Ok((bytes, _)) => break bytes.to_vec(),
            Err(error) => patience.bear(trouble(error, name, login), step).await?,
        }
    };
    // oci-client has compared the digest already; that it is right must not depend on it.
    if let Some(digest) = digest
        && *digest != Digest::of(&bytes)
    {
        bail!(
            "{} sent another manifest of {name} than {digest}",
            name.registry()
        );
    }
    let parsed: AnyManifest = serde_json::from_slice(&bytes)
        .with_context(|| format!("can't read the manifest of {name}"))?;
    let answer = match parsed.manifests.is_empty() {
        true => Answer::Image(parsed.media_type.unwrap_or_else(|| ACCEPTED[0].to_owned())),
        false => Answer::Index(parsed.manifests),
    };
    Ok((bytes, answer))
}

/// The manifest of the platform among those of an index.
fn choose(
    index: &[IndexManifest],
    platform: &Platform,
    name: &ImageReference,
) -> anyhow::Result<Digest> {
    let fits = |found: &&IndexManifest| {
        found.platform.as_ref().is_some_and(|found| {
            found.os == platform.os && found.architecture == platform.architecture
        })
    };
    match index.iter().find(fits) {
        Some(found) => Ok(found.digest.parse()?),
        None => {
            let offered: Vec<String> = index
                .iter()
                .filter_map(|manifest| manifest.platform.as_ref())
                .filter(|platform| platform.os != "unknown") // attestations
                .map(|platform| format!("{}/{}", platform.os, platform.architecture))
                .collect();
            Err(wrong_platform(name, platform, &offered.join(", ")))
        }
    }
}

fn wrong_platform(name: &ImageReference, platform: &Platform, offered: &str) -> anyhow::Error {
    Failure::Other {
        message: format!(
            "there is no {name} for {}/{}, only for {offered}",
            platform.os, platform.architecture
        ),
        hint: "use an image that is built for this platform, or a Docker server of another one"
            .to_owned(),
    }
    .into()
}

/// Fetches the blobs of all images and enters each image when its last blob is there.
async fn fetch(
    store: &Store,
    client: &Client,
    coming: Vec<Coming>,
    logins: &HashMap<String, RegistryAuth>,
    platform: &Platform,
) -> anyhow::Result<Vec<Entry>> {
    let mut lacking: Vec<HashSet<&Digest>> = Vec::new();
    let mut owners: HashMap<&Digest, Vec<&Coming>> = HashMap::new();
    let mut blobs: Vec<&Descriptor> = Vec::new();
    for one in &coming {
        let mut lacks = HashSet::new();
        for blob in one.image.blobs() {
            if store.has(blob) {
                one.add(blob.size);
            } else if lacks.insert(&blob.digest) {
                let owners = owners.entry(&blob.digest).or_default();
                if owners.is_empty() {
                    blobs.push(blob);
                }
                owners.push(one);
            }
        }
        lacking.push(lacks);
    }

    let mut entries = Vec::new();
    for (one, lacks) in coming.iter().zip(&lacking) {
        if lacks.is_empty() {
            entries.push(finish(store, one, platform)?);
        }
    }
    let mut arriving = stream::iter(blobs)
        .map(|blob| {
            let meter = Meter {
                owners: owners[&blob.digest].clone(),
                counted: 0,
            };
            async move {
                fetch_blob(store, client, blob, meter, logins).await?;
                Ok::<_, anyhow::Error>(&blob.digest)
            }
        })
        .buffer_unordered(BLOBS_AT_ONCE);
    while let Some(digest) = arriving.try_next().await? {
        for (one, lacks) in coming.iter().zip(&mut lacking) {
            if lacks.remove(digest) && lacks.is_empty() {
                entries.push(finish(store, one, platform)?);
            }
        }
    }
    Ok(entries)
}

/// Enters an image that is whole.
fn finish(store: &Store, one: &Coming, platform: &Platform) -> anyhow::Result<Entry> {
    let name = &one.image.name;
    let config = store.read(&name.to_string(), &one.image.config)?;
    let config: ConfigFile = serde_json::from_slice(&config)
        .with_context(|| format!("can't read the config of {name}"))?;
    if (&config.os, &config.architecture) != (&platform.os, &platform.architecture) {
        let offered = format!("{}/{}", config.os, config.architecture);
        return Err(wrong_platform(name, platform, &offered));
    }
    let entry = Entry {
        name: Name::Image(name.clone()),
        origin: Origin::Registry,
        target: one.image.manifest.clone(),
        resolved: one.image.resolved.clone(),
    };
    store.enter(std::slice::from_ref(&entry))?;
    if let Some(step) = lock(&one.step).take() {
        step.done(format!("{} MB", one.image.size() / 1_000_000));
    }
    Ok(entry)
}

async fn fetch_blob(
    store: &Store,
    client: &Client,
    blob: &Descriptor,
    mut meter: Meter<'_>,
    logins: &HashMap<String, RegistryAuth>,
) -> anyhow::Result<()> {
    let owner = meter.owners[0];
    let mut patience = Patience::new();
    loop {
        let login = login(logins, &owner.image.name);
        match try_blob(store, client, &owner.image.name, blob, &mut meter, login).await {
            Ok(()) => {
                meter.set(blob.size);
                return Ok(());
            }
            Err(trouble) => {
                let pause = patience.next(trouble, |line| {
                    if let Some(step) = &*lock(&owner.step) {
                        step.line(line);
                    }
                })?;
                sleep(pause).await;
            }
        }
    }
}

/// One try to get a blob, or what is missing of it.
async fn try_blob(
    store: &Store,
    client: &Client,
    name: &ImageReference,
    blob: &Descriptor,
    meter: &mut Meter<'_>,
    login: &RegistryAuth,
) -> Result<(), Trouble> {
    let mut partial = loop {
        let (store, blob) = (store.clone(), blob.clone());
        match blocking(move || Partial::of_blob(&store, &blob)).await? {
            Begun::Ours(partial) => break *partial,
            Begun::Busy => sleep(Duration::from_millis(300)).await,
            Begun::There => return Ok(()),
        }
    };
    if partial.written() < blob.size {
        let reference = reference(name, None);
        let descriptor = OciDescriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let answer = match partial.written() {
            0 => client
                .pull_blob_stream(&reference, &descriptor)
                .await
                .map(BlobResponse::Full),
            offset => {
                client
                    .pull_blob_stream_partial(&reference, &descriptor, offset, None)
                    .await
            }
        };
        let bytes = match answer {
            Ok(BlobResponse::Partial(rest)) => rest,
            Ok(BlobResponse::Full(whole)) => {
                // Also what comes of a registry that doesn't do parts.
                partial.restart()?;
                whole
            }
            Err(error) => {
                // 416, or whatever a registry says that dislikes parts: then the whole.
                if partial.written() > 0 && matches!(status(&error), Some(0 | 416)) {
                    partial.restart()?;
                    return Err(passing(name.registry(), &name.to_string(), &causes(&error)));
                }
                return Err(trouble(error, name, login));
            }
        };
        meter.set(partial.written());
        partial = take_in(
            partial,
            bytes,
            |written| meter.set(written),
            |error| passing(name.registry(), &name.to_string(), &error),
        )
        .await?;
    }
    let fetched = blocking(move || partial.finish()).await;
    fetched.map_err(|error| match error.downcast_ref::<WrongContent>() {
        Some(_) => Trouble::Passing(error.context(format!(
            "{} sent something else than the blob {} of {name}",
            name.registry(),
            blob.digest
        ))),
        None => Trouble::Lasting(error),
    })?;
    Ok(())
}

/// Writes what comes, in larger pieces and away from the async threads. What came before an error is kept.
async fn take_in<Failed: std::error::Error>(
    mut partial: Partial,
    bytes: impl Stream<Item = Result<Bytes, Failed>>,
    mut tell: impl FnMut(u64),
    broken: impl Fn(String) -> Trouble,
) -> Result<Partial, Trouble> {
    let mut bytes = pin!(bytes);
    let mut buffer = Vec::with_capacity(CHUNK);
    let end = loop {
        match bytes.next().await {
            Some(Ok(piece)) => buffer.extend_from_slice(&piece),
            Some(Err(error)) => break Err(broken(causes(&error))),
            None => break Ok(()),
        }
        tell(partial.written() + buffer.len() as u64);
        if buffer.len() >= CHUNK {
            partial = write(partial, std::mem::take(&mut buffer)).await?;
        }
    };
    // A whole blob is judged by its digest, whatever the stream said in the end.
    let partial = write(partial, buffer).await?;
    match end {
        Err(_) if partial.is_full() => Ok(partial),
        Err(trouble) => Err(trouble),
        Ok(()) => Ok(partial),
    }
}

async fn write(mut partial: Partial, bytes: Vec<u8>) -> anyhow::Result<Partial> {
    blocking(move || {
        partial.write(&bytes)?;
        Ok(partial)
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the work on the store broke off")?
}

/// Fetches a file by its address into the store, and checks it against `expected` if that is known.
pub async fn fetch_file(
    store: &Store,
    address: &str,
    expected: Option<&Digest>,
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Entry> {
    let client = reqwest::Client::builder()
        .connect_timeout(CONNECT_WITHIN)
        .read_timeout(SILENCE)
        .user_agent(concat!("devenv/", env!("CARGO_PKG_VERSION")))
        .build()
        .context("can't prepare a client for files")?;
    let step = step.child(address);
    let mut patience = Patience::new();
    let target = loop {
        match stop
            .or(try_file(store, &client, address, expected, &step))
            .await?
        {
            Ok(target) => break target,
            Err(trouble) => stop.or(patience.bear(trouble, &step)).await??,
        }
    };
    let entry = Entry {
        name: Name::File(address.to_owned()),
        origin: Origin::Registry,
        target,
        resolved: None,
    };
    store.enter(std::slice::from_ref(&entry))?;
    step.done(format!("{} kB", entry.target.size.div_ceil(1000)));
    Ok(entry)
}

async fn try_file(
    store: &Store,
    client: &reqwest::Client,
    address: &str,
    expected: Option<&Digest>,
    step: &Step,
) -> Result<Descriptor, Trouble> {
    let host = reqwest::Url::parse(address)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default();
    if !address.starts_with("https://") && !is_loopback(&host) {
        return Err(Trouble::Lasting(
            Failure::Other {
                message: format!("{address} is not an https address"),
                hint: "files are fetched by https only, except from this machine".to_owned(),
            }
            .into(),
        ));
    }
    let answer = client
        .get(address)
        .send()
        .await
        .map_err(|error| passing(&host, address, &causes(&error)))?;
    let status = answer.status();
    if !status.is_success() {
        let message = format!("can't fetch {address}: the server answers {status}");
        return Err(match status.as_u16() {
            408 | 425 | 429 | 500.. => Trouble::Passing(
                Failure::Other {
                    message,
                    hint: "wait a while, then run the same command again".to_owned(),
                }
                .into(),
            ),
            _ => Trouble::Lasting(
                Failure::Other {
                    message,
                    hint: format!("check the address: curl -sSIL '{address}'"),
                }
                .into(),
            ),
        });
    }
    let total = answer.content_length().unwrap_or_default();
    let begun = {
        let (store, expected) = (store.clone(), expected.cloned());
        blocking(move || Partial::of_file(&store, expected.as_ref())).await?
    };
    let mut told = 0;
    let tell = |written: u64| {
        if written >= told + TELL_EVERY {
            told = written;
            step.bytes(written, total);
        }
    };
    let whole = take_in(begun, answer.bytes_stream(), tell, |error| {
        passing(&host, address, &error)
    })
    .await?;
    match blocking(move || whole.finish()).await {
        Ok(target) => Ok(target),
        // Unlike a registry's blob, a file at an address may really have changed: saying so at once is better than trying.
        Err(error) if error.is::<WrongContent>() => Err(Trouble::Lasting(
            Failure::Other {
                message: format!("{address} isn't what it should be: {error}"),
                hint: "if the file was changed on purpose, write its new sha256 where the address is written".to_owned(),
            }
            .into(),
        )),
        Err(error) => Err(Trouble::Lasting(error)),
    }
}

impl Coming {
    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.tell(done);
    }

    fn subtract(&self, bytes: u64) {
        let done = self.done.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        self.told.store(0, Ordering::Relaxed);
        self.tell(done);
    }

    fn tell(&self, done: u64) {
        let told = self.told.load(Ordering::Relaxed);
        let total = self.image.size();
        if done < total && done < told + TELL_EVERY {
            return;
        }
        self.told.store(done, Ordering::Relaxed);
        if let Some(step) = &*lock(&self.step) {
            step.bytes(done, total);
        }
    }
}

impl Meter<'_> {
    fn set(&mut self, bytes: u64) {
        for owner in &self.owners {
            match bytes >= self.counted {
                true => owner.add(bytes - self.counted),
                false => owner.subtract(self.counted - bytes),
            }
        }
        self.counted = bytes;
    }
}

impl Patience {
    fn new() -> Self {
        Self(BACKOFF.iter())
    }

    /// How long to wait before the next try; what lasts, or has been tried often enough, is an error.
    fn next(&mut self, trouble: Trouble, tell: impl FnOnce(String)) -> anyhow::Result<Duration> {
        match trouble {
            Trouble::Lasting(error) => Err(error),
            Trouble::Passing(error) => match self.0.next() {
                None => Err(error.context(format!("gave up after {} tries", BACKOFF.len() + 1))),
                Some(pause) => {
                    let pause = Duration::from_millis(*pause);
                    tell(format!("{error:#}; trying again in {pause:?}"));
                    Ok(pause)
                }
            },
        }
    }

    async fn bear(&mut self, trouble: Trouble, step: &Step) -> anyhow::Result<()> {
        let pause = self.next(trouble, |line| step.line(line))?;
        sleep(pause).await;
        Ok(())
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Lasting(error)
    }
}

/// What a failed answer of a registry means.
fn trouble(error: OciDistributionError, name: &ImageReference, login: &RegistryAuth) -> Trouble {
    let registry = name.registry();
    let told = |why: &str, hint: String| {
        let message = format!("can't pull {name}: {why}");
        Failure::Other { message, hint }.into()
    };
    match status(&error) {
        Some(401) if *login == RegistryAuth::Anonymous => Trouble::Lasting(told(
            "its registry wants a login",
            format!(
                "docker login {registry}  (a name that doesn't exist is often refused like this, too)"
            ),
        )),
        Some(401) => Trouble::Lasting(told(
            "its registry doesn't accept the login in Docker's config",
            format!("docker login {registry}"),
        )),
        Some(403) => Trouble::Lasting(told(
            "its registry doesn't allow it",
            format!(
                "ask for the right to pull it, or log in as somebody who has it: docker login {registry}"
            ),
        )),
        Some(404) => Trouble::Lasting(told(
            "its registry has no such image",
            "check the name and the tag where they are written".to_owned(),
        )),
        Some(429) => Trouble::Passing(told(
            "its registry refuses it, too many pulls from here",
            format!("wait a while, or log in, which raises the limit: docker login {registry}"),
        )),
        Some(408 | 416 | 425 | 500..) | None => {
            passing(registry, &name.to_string(), &causes(&error))
        }
        Some(_) => {
            Trouble::Lasting(anyhow::Error::new(error).context(format!("can't pull {name}")))
        }
    }
}

/// The HTTP status behind an error; 0 for an answer that makes no sense, nothing where no answer came or a wrong digest.
pub(super) fn status(error: &OciDistributionError) -> Option<u16> {
    match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => Some(401),
        OciDistributionError::ServerError { code, .. } => Some(*code),
        OciDistributionError::ImageManifestNotFoundError(_) => Some(404),
        OciDistributionError::RegistryError { envelope, .. } => {
            Some(match envelope.errors.first().map(|error| &error.code) {
                Some(OciErrorCode::Unauthorized) => 401,
                Some(OciErrorCode::Denied) => 403,
                Some(OciErrorCode::Toomanyrequests) => 429,
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown,
                ) => 404,
                _ => 0,
            })
        }
        OciDistributionError::RequestError(error) => error.status().map(|status| status.as_u16()),
        OciDistributionError::IoError(_) | OciDistributionError::DigestError(_) => None,
        _ => Some(0),
    }
}

/// What may pass by itself.
fn passing(host: &str, what: &str, why: &str) -> Trouble {
    Trouble::Passing(
        Failure::Other {
            message: format!("can't fetch {what}: {why}"),
            hint: format!("check the network and the proxy: curl -sSI https://{host}/"),
        }
        .into(),
    )
}

/// An error with its causes in one line; the HTTP client's own text leaves out the cause.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn reference(name: &ImageReference, digest: Option<&Digest>) -> Reference {
    let (registry, repository) = (name.registry().to_owned(), name.repository().to_owned());
    match (digest.or(name.digest()), name.tag()) {
        (Some(digest), _) => Reference::with_digest(registry, repository, digest.to_string()),
        (None, tag) => {
            Reference::with_tag(registry, repository, tag.unwrap_or_default().to_owned())
        }
    }
}

/// The registry client; registries on this machine are spoken to without TLS, as Docker does it.
pub(super) fn client(names: &[ImageReference]) -> anyhow::Result<Client> {
    let local = names
        .iter()
        .map(ImageReference::registry)
        .filter(|registry| is_loopback(registry))
        .map(str::to_owned)
        .collect();
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(local),
        connect_timeout: Some(CONNECT_WITHIN),
        read_timeout: Some(SILENCE),
        // One request for each blob, of a length that is told: that is what all registries take.
        use_monolithic_push: true,
        user_agent: concat!("devenv/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    Client::try_from(config).context("can't prepare a client for image registries")
}

/// Whether a host, with or without a port, is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost"
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

pub(super) fn login<'a>(
    logins: &'a HashMap<String, RegistryAuth>,
    name: &ImageReference,
) -> &'a RegistryAuth {
    logins
        .get(name.registry())
        .unwrap_or(&RegistryAuth::Anonymous)
}

/// The logins of Docker's config for the registries of these images.
pub(super) async fn logins(names: &[ImageReference], step: &Step) -> HashMap<String, RegistryAuth> {
    let Some(config) = docker_config() else {
        return HashMap::new();
    };
    let registries: BTreeSet<String> = names
        .iter()
        .map(|name| name.registry().to_owned())
        .collect();
    let mut logins = HashMap::new();
    for registry in registries {
        // A helper is a program that may take its time.
        let (config, asked) = (config.clone(), registry.clone());
        let found = blocking(move || login_of(&config, &asked)).await;
        match found {
            Ok(login) => {
                logins.insert(registry, login);
            }
            // A login that can't be had is no failure: most images are public.
            Err(error) => {
                step.line(format!(
                    "going on without a login for {registry}: {error:#}"
                ));
            }
        }
    }
    logins
}

/// The docker program's config, if there is one.
fn docker_config() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).filter(|value| !value.is_empty());
    let folder = folder("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(folder("HOME")?).join(".docker")))?;
    let config = folder.join("config.json");
    config.exists().then_some(config)
}

/// The login for a registry in a docker config, from a helper if the config names one.
fn login_of(config: &Path, registry: &str) -> anyhow::Result<RegistryAuth> {
    let keys = match registry {
        "docker.io" => vec!["https://index.docker.io/v1/".to_owned()],
        _ => vec![registry.to_owned(), format!("https://{registry}")],
    };
    for key in keys {
        let config =
            fs::File::open(config).with_context(|| format!("can't read {}", config.display()))?;
        match docker_credential::get_credential_from_reader(config, &key) {
            Ok(DockerCredential::UsernamePassword(name, password)) => {
                return Ok(RegistryAuth::Basic(name, password));
            }
            // The name that stands for a token, where a password is asked for.
            Ok(DockerCredential::IdentityToken(token)) => {
                let name = "00000000-0000-0000-0000-000000000000".to_owned();
                return Ok(RegistryAuth::Basic(name, token));
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            // How helpers say that they have none.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.contains("credentials not found") => {}
            // Neither stdout nor stderr of a helper is shown: secrets may be in them.
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
                bail!("the credential helper {helper} failed")
            }
            Err(error) => return Err(anyhow!("{error}")),
        }
    }
    Ok(RegistryAuth::Anonymous)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::testing::{ARCHITECTURE, Fault, Registry, blob_path, damage, empty, layer};
    use super::super::{Sources, Wanted, fill, images, missing};
    use super::*;
    use crate::error::explain;
    use crate::event::Events;

    struct Try {
        registry: Registry,
        store: Store,
        platform: Platform,
        _folder: tempfile::TempDir,
    }

    impl Try {
        async fn new() -> Self {
            let (folder, store) = empty();
            Self {
                registry: Registry::start().await,
                store,
                platform: Platform {
                    os: "linux".to_owned(),
                    architecture: ARCHITECTURE.to_owned(),
                },
                _folder: folder,
            }
        }

        fn wanted(&self, names: &[&str]) -> Vec<Wanted> {
            names
                .iter()
                .map(|name| Wanted {
                    name: name.parse().unwrap(),
                    origin: Origin::Registry,
                    digest: None,
                })
                .collect()
        }

        async fn fill(&self, wanted: &[Wanted]) -> anyhow::Result<super::super::Filled> {
            let (events, _receiver) = Events::channel();
            let sources = Sources {
                project: std::path::Path::new("/nowhere"),
                platform: &self.platform,
            };
            let step = events.step("store");
            fill(&self.store, wanted, sources, &Stop::new(), &step).await
        }

        async fn pull(&self, names: &[&str]) -> anyhow::Result<Vec<Image>> {
            let wanted = self.wanted(names);
            self.fill(&wanted).await?;
            images(&self.store, &wanted)
        }

        /// The failure's text and hint, without what differs from run to run.
        async fn told(&self, names: &[&str]) -> String {
            let error = self.pull(names).await.unwrap_err();
            let hint = explain(&error).1.unwrap_or_default();
            format!("{error:#}\nhint: {hint}").replace(&self.registry.host, "HOST")
        }

        fn whole(&self, image: &Image) {
            for blob in image.blobs() {
                let bytes = std::fs::read(self.store.blob_path(&blob.digest)).unwrap();
                assert_eq!(Digest::of(&bytes), blob.digest);
            }
        }
    }

    #[tokio::test]
    async fn one_platform_is_pulled_and_shared_layers_once() {
        let test = Try::new().await;
        let base = layer("base", 3_000_000);
        let one = test
            .registry
            .serve_image("team/one:1", &[base.clone(), layer("one", 1)]);
        let two = test
            .registry
            .serve_image("team/two:1", &[base.clone(), layer("two", 2)]);

        let pulled = test.pull(&[&one, &two, &one]).await.unwrap();
        for image in &pulled {
            test.whole(image);
            assert!(image.resolved.is_some());
        }
        let digest = Digest::of(&base).to_string();
        let requests = test.registry.requests();
        let of_base = requests.iter().filter(|path| path.ends_with(&digest));
        assert_eq!(of_base.count(), 1);
        assert!(
            !requests
                .iter()
                .any(|path| path.contains(Digest::of(b"none").hex()))
        );

        // A second time nothing is asked for.
        test.pull(&[&one, &two]).await.unwrap();
        assert_eq!(test.registry.requests(), requests);

        // By the index's digest, it is another entry.
        let pinned = format!("{one}@{}", pulled[0].resolved.as_ref().unwrap());
        let by_digest = test.pull(&[&pinned]).await.unwrap();
        assert_eq!(by_digest[0].manifest, pulled[0].manifest);
    }

    #[tokio::test]
    async fn a_broken_connection_is_taken_up_where_it_broke() {
        let test = Try::new().await;
        let big = layer("big", 3_000_000);
        let name = test
            .registry
            .serve_image("team/one:1", std::slice::from_ref(&big));
        let path = blob_path("team/one", &big);
        test.registry.fail(
            &path,
            [Fault::Truncated(1_200_000), Fault::Truncated(300_000)],
        );

        test.whole(&test.pull(&[&name]).await.unwrap()[0]);
        let requests = test.registry.requests();
        let parts: Vec<&str> = requests
            .iter()
            .filter_map(|request| request.strip_prefix(&path))
            .collect();
        assert_eq!(parts, ["", " bytes=1200000-", " bytes=1500000-"]);
    }

    #[tokio::test]
    async fn a_registry_that_knows_no_parts_is_asked_for_the_whole() {
        let test = Try::new().await;
        let big = layer("big", 3_000_000);
        let name = test
            .registry
            .serve_image("team/one:1", std::slice::from_ref(&big));
        let path = blob_path("team/one", &big);
        test.registry.dislike_parts();
        test.registry.fail(
            &path,
            [
                Fault::Truncated(1_200_000),
                Fault::Status(416, r#"{"errors": [{"code": "RANGE"}]}"#),
            ],
        );
        test.whole(&test.pull(&[&name]).await.unwrap()[0]);
    }

    #[tokio::test]
    async fn what_an_earlier_run_left_is_taken_up() {
        let test = Try::new().await;
        let big = layer("big", 3_000_000);
        let name = test
            .registry
            .serve_image("team/one:1", std::slice::from_ref(&big));
        let partial = test
            .store
            .folder()
            .join("partial")
            .join(Digest::of(&big).hex());
        std::fs::write(&partial, &big[..2_000_000]).unwrap();

        test.whole(&test.pull(&[&name]).await.unwrap()[0]);
        let last = format!("{} bytes=2000000-", blob_path("team/one", &big));
        assert!(test.registry.requests().contains(&last));
        assert!(!partial.exists());
    }

    #[tokio::test]
    async fn a_wrong_blob_is_tried_again_and_never_kept() {
        let test = Try::new().await;
        let big = layer("big", 300_000);
        let name = test
            .registry
            .serve_image("team/one:1", std::slice::from_ref(&big));
        let path = blob_path("team/one", &big);
        test.registry.fail(&path, [Fault::Wrong]);
        test.whole(&test.pull(&[&name]).await.unwrap()[0]);
    }

    #[tokio::test]
    async fn a_registry_that_stays_wrong_is_named() {
        let test = Try::new().await;
        let big = layer("big", 300_000);
        let name = test
            .registry
            .serve_image("team/one:1", std::slice::from_ref(&big));
        let path = blob_path("team/one", &big);
        test.registry.fail(&path, vec![Fault::Wrong; 4]);
        let told = test.told(&[&name]).await;
        assert!(
            told.starts_with(&format!(
                "gave up after 4 tries: HOST sent something else than the blob {} of HOST/team/one:1: its digest is ",
                Digest::of(&big)
            )),
            "{told}"
        );
        assert!(missing(&test.store, &test.wanted(&[&name])).unwrap().len() == 1);
        assert!(!test.store.blob_path(&Digest::of(&big)).exists());
    }

    #[tokio::test]
    async fn refusals_are_told_apart() {
        let test = Try::new().await;
        let name = test.registry.serve_image("team/one:1", &[layer("one", 1)]);
        let none = name.replace("one:1", "none:1");
        assert_snapshot!(test.told(&[&none]).await, @r"
        can't pull HOST/team/none:1: its registry has no such image
        hint: check the name and the tag where they are written
        ");
        let path = "/v2/team/one/manifests/1";
        test.registry.fail(
            path,
            [Fault::Status(403, r#"{"errors": [{"code": "DENIED"}]}"#)],
        );
        assert_snapshot!(test.told(&[&name]).await, @r"
        can't pull HOST/team/one:1: its registry doesn't allow it
        hint: ask for the right to pull it, or log in as somebody who has it: docker login HOST
        ");
        let busy = Fault::Status(429, r#"{"errors": [{"code": "TOOMANYREQUESTS"}]}"#);
        test.registry.fail(path, vec![busy.clone(); 4]);
        assert_snapshot!(test.told(&[&name]).await, @r"
        gave up after 4 tries: can't pull HOST/team/one:1: its registry refuses it, too many pulls from here
        hint: wait a while, or log in, which raises the limit: docker login HOST
        ");
        // Once is no reason to give up.
        test.registry.fail(path, [busy, Fault::Status(503, "")]);
        test.pull(&[&name]).await.unwrap();
    }

    #[tokio::test]
    async fn a_registry_may_want_a_login() {
        let test = Try::new().await;
        let name = test.registry.serve_image("team/one:1", &[layer("one", 1)]);
        test.registry.want_login("c29tZTpib2R5");
        assert_snapshot!(test.told(&[&name]).await, @r"
        can't pull HOST/team/one:1: its registry wants a login
        hint: docker login HOST  (a name that doesn't exist is often refused like this, too)
        ");
        let parsed = name.parse().unwrap();
        let (events, _receiver) = Events::channel();
        let login = RegistryAuth::Basic("some".to_owned(), "body".to_owned());
        manifest(
            &client(std::slice::from_ref(&parsed)).unwrap(),
            &parsed,
            None,
            &login,
            &events.step("pull"),
        )
        .await
        .unwrap();
        // A token that anybody gets is fetched without a word.
        test.registry.want_login("");
        test.whole(&test.pull(&[&name]).await.unwrap()[0]);
    }

    #[tokio::test]
    async fn an_image_of_another_platform_is_refused() {
        let mut test = Try::new().await;
        let name = test.registry.serve_image("team/one:1", &[layer("one", 1)]);
        test.platform.architecture = "riscv64".to_owned();
        assert_snapshot!(test.told(&[&name]).await.replace(ARCHITECTURE, "OURS"), @r"
        there is no HOST/team/one:1 for linux/riscv64, only for linux/s390x, linux/OURS
        hint: use an image that is built for this platform, or a Docker server of another one
        ");
    }

    #[tokio::test]
    async fn nobody_there() {
        let test = Try::new().await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let told = test.told(&[&format!("{host}/team/one:1")]).await;
        let told = told.replace(&host, "HOST");
        assert!(
            told.starts_with("gave up after 4 tries: can't fetch HOST/team/one:1: "),
            "{told}"
        );
        assert!(
            told.ends_with("hint: check the network and the proxy: curl -sSI https://HOST/"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn files_are_fetched_and_checked() {
        let test = Try::new().await;
        test.registry.serve_file("/install.yaml", b"kind: List");
        let address = format!("http://{}/install.yaml", test.registry.host);
        let mut wanted = test.wanted(&[&address]);
        test.registry.fail(
            "/install.yaml",
            [Fault::Status(503, ""), Fault::Truncated(3)],
        );
        let filled = test.fill(&wanted).await.unwrap();
        assert_eq!(filled.fetched.len(), 1);
        let entry = test
            .store
            .find(&wanted[0].name, Origin::Registry)
            .unwrap()
            .unwrap();
        assert_eq!(test.store.read("it", &entry.target).unwrap(), b"kind: List");

        // Another digest is wanted than the store has: it's fetched anew, and refused.
        wanted[0].digest = Some(Digest::of(b"other"));
        let error = test.fill(&wanted).await.unwrap_err();
        assert_snapshot!(error.to_string().replace(&test.registry.host, "HOST"), @"http://HOST/install.yaml isn't what it should be: its digest is sha256:690b80d8991218b3941fb8c29e17186c679acd32321cf83a72a15cb9b6124488, expected sha256:d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa");
        let missing = test.wanted(&[&format!("http://{}/none", test.registry.host)]);
        let error = test.fill(&missing).await.unwrap_err();
        assert_snapshot!(error.to_string().replace(&test.registry.host, "HOST"), @"can't fetch http://HOST/none: the server answers 404 Not Found");
        let plain = test.wanted(&["http://example.test/none"]);
        assert_snapshot!(test.fill(&plain).await.unwrap_err(), @"http://example.test/none is not an https address");
    }

    #[tokio::test]
    async fn damage_is_found_and_fetched_anew() {
        let test = Try::new().await;
        let name = test.registry.serve_image(
            "team/one:1",
            &[layer("one", 200_000), layer("two", 100_000)],
        );
        let wanted = test.wanted(&[&name]);
        let image = test.pull(&[&name]).await.unwrap().remove(0);

        // Manifest and config are read anyway; of a layer the size tells, or its digest when it's sent.
        for blob in image.blobs().filter(|blob| blob.size < 10_000) {
            damage(&test.store, blob);
            assert_eq!(missing(&test.store, &wanted).unwrap(), wanted);
            test.whole(&test.pull(&[&name]).await.unwrap()[0]);
        }
        std::fs::write(test.store.blob_path(&image.layers[0].digest), b"short").unwrap();
        assert_eq!(missing(&test.store, &wanted).unwrap(), wanted);
        test.whole(&test.pull(&[&name]).await.unwrap()[0]);

        damage(&test.store, &image.layers[1]);
        assert_eq!(missing(&test.store, &wanted).unwrap(), []);
        let sent = super::super::archive::for_node(
            &test.store,
            std::slice::from_ref(&image),
            &HashSet::new(),
        );
        let error = sent.stream().try_collect::<Vec<_>>().await.unwrap_err();
        let (events, _receiver) = Events::channel();
        let sources = Sources {
            project: std::path::Path::new("/nowhere"),
            platform: &test.platform,
        };
        super::super::mend(
            error.into(),
            &test.store,
            &wanted,
            sources,
            &Stop::new(),
            &events.step("import"),
        )
        .await
        .unwrap();
        test.whole(&image);
    }

    #[test]
    fn logins_come_from_dockers_config_and_its_helpers() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.json");
        std::fs::write(
            &config,
            serde_json::json!({
                "auths": {
                    "https://index.docker.io/v1/": {"auth": "bWU6cGFzcw=="},
                    "https://quay.io": {"auth": "eW91OnBhc3M="},
                },
                "credHelpers": {"ghcr.io": "devenv-none"},
            })
            .to_string(),
        )
        .unwrap();
        let basic = |name: &str| RegistryAuth::Basic(name.to_owned(), "pass".to_owned());
        assert_eq!(login_of(&config, "docker.io").unwrap(), basic("me"));
        assert_eq!(login_of(&config, "quay.io").unwrap(), basic("you"));
        assert_eq!(
            login_of(&config, "registry.k8s.io").unwrap(),
            RegistryAuth::Anonymous
        );
        // The helper isn't on PATH: that is told, and no reason to stop.
        assert!(login_of(&config, "ghcr.io").is_err());
    }

    #[test]
    fn loopback_registries_need_no_tls() {
        for host in [
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
            "localhost",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "quay.io",
            "10.0.0.1:5000",
            "localhost.example.com",
            "[2001:db8::1]:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
