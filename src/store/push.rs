//! Copies images of the store into a registry, under other names: what is there already is left alone, and what a name stands
//! for there in the end is compared with the store by its digest.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::HeaderValue;
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use tokio_util::io::ReaderStream;

use super::layout::{Descriptor, Image, Store};
use super::reference::{Digest, ImageReference};
use super::registry;
use crate::error::Failure;
use crate::event::Step;
use crate::stop::Stop;

/// How often a blob or manifest is tried: a registry may refuse for a moment those who push a lot.
const TRIES: u32 = 3;
const LAYERS_AT_ONCE: usize = 3;

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Images that were copied.
    pub copied: usize,
    /// Images that were there.
    pub there: usize,
    /// Bytes that were sent.
    pub bytes: u64,
}

/// Copies each image to its place.
pub async fn push(
    store: &Store,
    images: &[(Image, ImageReference)],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Pushed> {
    let places: Vec<ImageReference> = images.iter().map(|(_, place)| place.clone()).collect();
    let client = registry::client(&places)?;
    let logins = registry::logins(&places, step).await;
    let mut pushed = Pushed::default();
    // Where each blob is: the registry can take it from there.
    let mut known: HashMap<Digest, Reference> = HashMap::new();
    for (image, place) in images {
        let login = registry::login(&logins, place);
        let step = step.child(place.to_string());
        let sent = stop
            .or(push_one(
                store, &client, login, image, place, &mut known, &step,
            ))
            .await??;
        match sent {
            None => {
                pushed.there += 1;
                step.unchanged("is there");
            }
            Some(bytes) => {
                pushed.copied += 1;
                pushed.bytes += bytes;
                step.done("copied");
            }
        }
    }
    Ok(pushed)
}

/// Whether a registry has images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Has {
    /// All of them.
    All,
    /// Not these.
    Lacks(Vec<ImageReference>),
    /// It can't be seen from here, and why.
    Unknown(String),
}

/// How long a registry may take to say what it has.
const SAYS_WITHIN: Duration = Duration::from_secs(5);

/// Asks the registry for these names, once.
pub async fn has(places: &[ImageReference], step: &Step) -> anyhow::Result<Has> {
    let client = registry::client(places)?;
    let logins = registry::logins(places, step).await;
    let (client, logins) = (&client, &logins);
    let asked = stream::iter(places)
        .map(|place| async move {
            let login = registry::login(logins, place);
            let there = registry::reference(place, None);
            match client.fetch_manifest_digest(&there, login).await {
                Ok(_) => Ok(None),
                Err(error) if is_unknown(&error) => Ok(Some(place.clone())),
                Err(error) => Err(registry::causes(&error)),
            }
        })
        .buffered(8)
        .try_filter_map(|lacks| async move { Ok(lacks) })
        .try_collect::<Vec<_>>();
    Ok(match tokio::time::timeout(SAYS_WITHIN, asked).await {
        Ok(Ok(lacks)) if lacks.is_empty() => Has::All,
        Ok(Ok(lacks)) => Has::Lacks(lacks),
        Ok(Err(why)) => Has::Unknown(why),
        Err(_) => Has::Unknown(format!("no answer within {} s", SAYS_WITHIN.as_secs())),
    })
}

/// Copies one image; says how many bytes were sent, or nothing where it was there.
async fn push_one(
    store: &Store,
    client: &Client,
    login: &RegistryAuth,
    image: &Image,
    place: &ImageReference,
    known: &mut HashMap<Digest, Reference>,
    step: &Step,
) -> anyhow::Result<Option<u64>> {
    let there = registry::reference(place, None);
    let wanted = image.manifest.digest.to_string();
    if digest_there(client, &there, login, place).await?.as_deref() == Some(wanted.as_str()) {
        remember(known, image, &there);
        return Ok(None);
    }
    let registry = place.registry();
    client
        .store_auth_if_needed(there.resolve_registry(), login)
        .await;
    let blobs: Vec<&Descriptor> = image.layers.iter().chain([&image.config]).collect();
    let total = blobs.iter().map(|blob| blob.size).sum();
    let from = &*known;
    let there = &there;
    let mut sent = 0;
    let mut sending = stream::iter(blobs)
        .map(|blob| async move {
            send_blob(store, client, there, blob, from.get(&blob.digest))
                .await
                .map_err(|error| refused(error, place, login))
                .map(|is_sent| (blob.size, is_sent))
        })
        .buffer_unordered(LAYERS_AT_ONCE);
    let mut done = 0;
    while let Some((size, is_sent)) = sending.try_next().await? {
        done += size;
        sent += if is_sent { size } else { 0 };
        step.bytes(done, total);
    }
    drop(sending);
    let bytes = store.read(&image.name.to_string(), &image.manifest)?;
    let kind = HeaderValue::from_str(&image.manifest.media_type)
        .context("the image's manifest has a type that can't be sent")?;
    patiently(async || {
        client
            .push_manifest_raw(there, bytes.clone(), kind.clone())
            .await
    })
    .await
    .map_err(|error| refused(error.into(), place, login))?;
    let now = digest_there(client, there, login, place).await?;
    anyhow::ensure!(
        now.as_deref() == Some(wanted.as_str()),
        "{registry} has {} under {place} where {wanted} was pushed",
        now.as_deref().unwrap_or("nothing")
    );
    remember(known, image, there);
    Ok(Some(sent))
}

fn remember(known: &mut HashMap<Digest, Reference>, image: &Image, there: &Reference) {
    for blob in image.layers.iter().chain([&image.config]) {
        known
            .entry(blob.digest.clone())
            .or_insert_with(|| there.clone());
    }
}

/// What a name stands for in the registry, if for anything.
async fn digest_there(
    client: &Client,
    there: &Reference,
    login: &RegistryAuth,
    place: &ImageReference,
) -> anyhow::Result<Option<String>> {
    match patiently(async || client.fetch_manifest_digest(there, login).await).await {
        Ok(digest) => Ok(Some(digest)),
        Err(error) if is_unknown(&error) => Ok(None),
        Err(error) => Err(refused(error.into(), place, login)),
    }
}

/// How registries say that they don't know the repository, or have nothing under the name.
fn is_unknown(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| {
                let code = format!("{:?}", error.code).to_lowercase();
                code.contains("unknown")
            })
        }
        error => registry::status(error) == Some(404),
    }
}

/// Sends a blob, unless it is there or can be had from another repository of the registry; says whether it was sent.
async fn send_blob(
    store: &Store,
    client: &Client,
    there: &Reference,
    blob: &Descriptor,
    from: Option<&Reference>,
) -> anyhow::Result<bool> {
    let digest = blob.digest.to_string();
    if patiently(async || client.blob_exists(there, &digest).await).await? {
        return Ok(false);
    }
    if let Some(from) = from
        && from.repository() != there.repository()
        && client.mount_blob(there, from, &digest).await.is_ok()
    {
        return Ok(false);
    }
    let path = store.blob_path(&blob.digest);
    let mut tries = 0;
    loop {
        let file = tokio::fs::File::open(&path)
            .await
            .with_context(|| format!("read {}", path.display()))?;
        let bytes = ReaderStream::with_capacity(file, 1 << 18)
            .map_err(|error| OciDistributionError::GenericError(Some(error.to_string())))
            .map_ok(Bytes::from);
        tries += 1;
        // The registry computes the digest of what arrives, and refuses anything else.
        match client
            .push_blob_stream(there, bytes, &digest, Some(blob.size))
            .await
        {
            Ok(_) => return Ok(true),
            Err(error) if tries >= TRIES || !is_passing(&error) => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_secs(u64::from(tries))).await,
        }
    }
}

/// Asks again what a registry refused for a moment.
async fn patiently<T>(
    ask: impl AsyncFn() -> Result<T, OciDistributionError>,
) -> Result<T, OciDistributionError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match ask().await {
            Err(error) if tries < TRIES && is_passing(&error) => {
                tokio::time::sleep(Duration::from_secs(u64::from(tries))).await;
            }
            answer => return answer,
        }
    }
}

fn is_passing(error: &OciDistributionError) -> bool {
    match registry::status(error) {
        Some(status) => status == 429 || status >= 500,
        None => matches!(error, OciDistributionError::RequestError(_)),
    }
}

/// The error for an image that can't be pushed.
fn refused(error: anyhow::Error, place: &ImageReference, login: &RegistryAuth) -> anyhow::Error {
    let registry = place.registry();
    let status = error
        .downcast_ref::<OciDistributionError>()
        .and_then(|error| match error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => Some(401),
            error => registry::status(error),
        });
    let hint = match (status, login) {
        (Some(401 | 403), RegistryAuth::Anonymous) => {
            format!("docker login {registry}: there is no login for it in Docker's config")
        }
        (Some(401 | 403), _) => format!(
            "docker login {registry}, as somebody who may push; the login in Docker's config may not"
        ),
        _ => format!("curl -sSI https://{registry}/v2/ shows whether it answers"),
    };
    Failure::Other {
        message: format!("can't push {place}: {error:#}"),
        hint,
    }
    .into()
}
