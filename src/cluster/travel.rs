//! A saved state as one file, with which another machine starts instead of bootstrapping.
//!
//! The file is a series of zstd frames, each an archive: first `devenv-state.json`, which tells what the state was made of and how
//! to make its nodes; then each node's state, in the same order. `zstd -dc FILE | tar -x --ignore-zeros` takes it apart by hand.
//! Every frame carries a checksum, and the whole file is read before anything is touched. Images don't travel: the store has them.

use std::fs;
use std::io::{self, BufRead, BufReader, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use super::kept::{self, Kept};
use super::pod_nodes;
use super::saved::{self, Places};
use crate::context::Context;
use crate::docker::{Docker, Node};
use crate::environment::{Environment, Provider};
use crate::error::Failure;
use crate::event::Step;
use crate::paths::{self, Paths};

/// The first archive's only entry.
const TELLS: &str = "devenv-state.json";
/// Half a second on a usual state; higher levels take seconds for little.
const LEVEL: i32 = 3;

/// A file with a state, read as a whole and found good.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// What it tells.
    pub state: Kept,
}

/// Reads a file, all of it.
pub fn open(path: &Path) -> anyhow::Result<File> {
    let refuse = |what: String| Failure::Usage {
        message: format!("{} can't be started from: {what}", path.display()),
        hint: "write it again where the environment is up: devenv snapshot export FILE".to_owned(),
    };
    let file = fs::File::open(path).map_err(|error| refuse(error.to_string()))?;
    let state = read(BufReader::new(file)).map_err(|error| refuse(format!("{error:#}")))?;
    Ok(File {
        path: path.to_owned(),
        state,
    })
}

fn read(file: impl BufRead) -> anyhow::Result<Kept> {
    let broken = "it is cut short or damaged";
    let mut first = Vec::new();
    let mut rest =
        frame(file, &mut first).context("it isn't a state that devenv exported, or is damaged")?;
    let mut archive = tar::Archive::new(first.as_slice());
    let mut entry = archive.entries()?.next().context("it is empty")??;
    anyhow::ensure!(
        entry.path()?.as_ref() == Path::new(TELLS),
        "it isn't a state that devenv exported"
    );
    let mut text = String::new();
    entry.read_to_string(&mut text)?;
    let state: Kept = serde_json::from_str(&text).context("another version of devenv wrote it")?;
    for _ in &state.nodes {
        rest = frame(rest, &mut io::sink()).context(broken)?;
    }
    anyhow::ensure!(rest.fill_buf()?.is_empty(), broken);
    Ok(state)
}

/// Unpacks one frame, with its checksum proved; gives the reader, which is at the next.
fn frame<R: BufRead>(file: R, into: &mut impl Write) -> anyhow::Result<R> {
    let mut decoder = Decoder::with_buffer(file)?.single_frame();
    io::copy(&mut decoder, into)?;
    Ok(decoder.finish())
}

/// Remembers what the cluster begins with, until it is proven: see [`is_begun_with`].
pub fn begin_with(paths: &Paths, environment: &Environment, file: &File) -> anyhow::Result<()> {
    paths::private_folder(&paths.environment(&environment.id))?;
    let snapshot = serde_json::to_vec(&file.state.snapshot)?;
    paths::write_private(&paths.beginning(&environment.id), &snapshot)
}

/// Whether the cluster that is there was begun with this file by an `up` that never came to its end: the same command goes on.
pub fn is_begun_with(paths: &Paths, environment: &Environment, file: &File) -> bool {
    let begun = fs::read(paths.beginning(&environment.id)).ok();
    begun.and_then(|text| serde_json::from_slice(&text).ok()) == Some(file.state.snapshot.clone())
}

/// From now on the cluster is what was made of it, and no file's.
pub fn is_proven(paths: &Paths, environment: &Environment) -> anyhow::Result<()> {
    let path = paths.beginning(&environment.id);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The error for a cluster that is there already.
pub fn refuse_cluster(environment: &Environment) -> anyhow::Error {
    Failure::Usage {
        message: format!(
            "the cluster {} is there already, and --from makes one",
            environment.cluster
        ),
        hint: format!("devenv down --environment {}, then again", environment.name),
    }
    .into()
}

/// The error for a state of something else.
pub fn refuse_other(file: &File, difference: &str) -> anyhow::Error {
    Failure::Usage {
        message: format!(
            "the state in {} doesn't fit this environment: {difference}",
            file.path.display()
        ),
        hint: "devenv up without --from; then devenv snapshot export FILE writes one that fits"
            .to_owned(),
    }
    .into()
}

/// Writes the state that last passed all checks; gives its snapshot and the file's size in bytes.
pub async fn export(
    context: &Context,
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
    path: &Path,
    step: &Step,
) -> anyhow::Result<(saved::Snapshot, u64)> {
    let first = pod_nodes(nodes).next().context("there is no node")?;
    if let Some(other) = kept::not_a_node(nodes) {
        return Err(Failure::Other {
            message: format!(
                "{} isn't a node, and can't be made again elsewhere",
                other.name
            ),
            hint:
                "a cluster with one control plane and no load balancer of its own can be exported"
                    .to_owned(),
        }
        .into());
    }
    let Some(snapshot) = kept::healthy(docker, environment, first).await? else {
        return Err(Failure::Other {
            message: format!("no state of {} has passed all checks yet", environment.name),
            hint: format!("devenv up --environment {}", environment.name),
        }
        .into());
    };
    let mut state = Kept {
        snapshot,
        nodes: Vec::new(),
    };
    for node in nodes {
        let recipe = docker.recipe(&node.name).await?;
        let recipe = recipe.with_context(|| format!("{} is in no network", node.name))?;
        state.nodes.push(recipe.for_elsewhere());
    }
    let tells = serde_json::to_vec(&state)?;

    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let write = || format!("write {}", path.display());
    // Under another name until it is whole; readable by its owner only from the start.
    let file = tempfile::Builder::new()
        .prefix(".devenv-state")
        .make_in(folder, |path| {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        })
        .with_context(write)?;
    let mut archive = tar::Builder::new(encoder(file)?);
    let mut header = tar::Header::new_gnu();
    header.set_size(tells.len() as u64);
    header.set_mode(0o600);
    archive
        .append_data(&mut header, TELLS, tells.as_slice())
        .with_context(write)?;
    let mut file = archive
        .into_inner()
        .and_then(Encoder::finish)
        .with_context(write)?;
    let folder = format!("{}/{}", Places::of(environment).snapshots, saved::HEALTHY);
    for node in nodes {
        step.waiting(format!("packing the state of {}", node.name));
        let mut encoder = encoder(file)?;
        let mut parts = std::pin::pin!(docker.download(&node.name, &folder));
        while let Some(part) = context.stop.or(parts.next()).await? {
            encoder.write_all(&part?).with_context(write)?;
        }
        file = encoder.finish().with_context(write)?;
    }
    file.as_file().sync_all().with_context(write)?;
    let size = file.as_file().metadata().with_context(write)?.len();
    file.persist(path).with_context(write)?;
    Ok((state.snapshot, size))
}

fn encoder<W: Write>(file: W) -> io::Result<Encoder<'static, W>> {
    let mut encoder = Encoder::new(file, LEVEL)?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

/// Makes the nodes that a file tells of, each with its state, and starts them.
pub async fn make(
    context: &Context,
    docker: &Docker,
    environment: &Environment,
    file: &File,
    step: &Step,
) -> anyhow::Result<()> {
    let nodes = kept::make_nodes(context, docker, environment, &file.state.nodes, step).await?;
    let Places { snapshots, .. } = Places::of(environment);
    for (index, recipe) in file.state.nodes.iter().enumerate() {
        step.waiting(format!("unpacking the state of {}", recipe.name));
        docker
            .upload(
                &recipe.name,
                "/",
                stream::iter([Bytes::from(folders(snapshots)?)]),
            )
            .await?;
        docker
            .upload(&recipe.name, snapshots, unpacked(&file.path, index + 1)?)
            .await?;
    }
    kept::start(docker, environment, &file.state, &nodes, step).await
}

/// An archive with this folder and those above it.
fn folders(path: &str) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let ancestors: Vec<&Path> = Path::new(path.trim_start_matches('/'))
        .ancestors()
        .collect();
    for folder in ancestors
        .into_iter()
        .rev()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder.ends_with("snapshots") {
            0o700
        } else {
            0o755
        });
        header.set_size(0);
        archive.append_data(&mut header, folder, io::empty())?;
    }
    archive.into_inner()
}

/// One frame of the file, unpacked by a thread of its own.
fn unpacked(
    path: &Path,
    index: usize,
) -> anyhow::Result<impl futures::Stream<Item = Bytes> + Send + 'static + use<>> {
    let mut file =
        BufReader::new(fs::File::open(path).with_context(|| format!("open {}", path.display()))?);
    let (parts, mut arriving) = mpsc::channel(8);
    tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
        for _ in 0..index {
            file = frame(file, &mut io::sink())?;
        }
        let mut decoder = Decoder::with_buffer(file)?.single_frame();
        loop {
            let mut part = vec![0; 1 << 18];
            let count = decoder.read(&mut part)?;
            part.truncate(count);
            // Nobody takes it any more where the upload has failed, which tells the reason.
            if count == 0 || parts.blocking_send(Bytes::from(part)).is_err() {
                return Ok(());
            }
        }
    });
    Ok(stream::poll_fn(move |task| arriving.poll_recv(task)))
}

/// Where the images came later than the pods that want them, the kubelet waits longer and longer before it looks again: it is
/// told to look now. k3s's can't be told without ending all of k3s, and looks again by itself.
pub async fn look_for_images(docker: &Docker, environment: &Environment) -> anyhow::Result<()> {
    if environment.provider == Provider::K3d {
        return Ok(());
    }
    for node in super::containers(docker, environment).await? {
        docker
            .exec_checked(&node.name, &["systemctl", "restart", "kubelet"])
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> Kept {
        serde_json::from_value(serde_json::json!({
            "snapshot": {"name": "healthy", "saved": "2026-11-25T12:00:00Z", "revision": "", "holds": "", "mebibytes": 1},
            "nodes": [{"name": "a", "id": "", "role": "control-plane", "body": {}, "volumes": {}, "network": {"name": "kind", "options": {}, "labels": {}, "subnets": []}}],
        }))
        .unwrap()
    }

    fn exported() -> Vec<u8> {
        let tells = serde_json::to_vec(&kept()).unwrap();
        let mut archive = tar::Builder::new(encoder(Vec::new()).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_size(tells.len() as u64);
        archive
            .append_data(&mut header, TELLS, tells.as_slice())
            .unwrap();
        let file = archive.into_inner().unwrap().finish().unwrap();
        let mut node = encoder(file).unwrap();
        node.write_all(&[7; 100_000]).unwrap();
        node.finish().unwrap()
    }

    #[test]
    fn a_whole_file_is_read_and_a_cut_or_flipped_one_is_refused_wherever_it_is_broken() {
        let whole = exported();
        assert_eq!(read(whole.as_slice()).unwrap(), kept());
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "cut at {end}");
        }
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 0x10;
            let same = read(flipped.as_slice()).is_ok_and(|state| state != kept());
            assert!(!same, "flipped at {index}");
        }
        assert!(read([whole.as_slice(), b"more"].concat().as_slice()).is_err());
    }
}
