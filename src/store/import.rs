//! Images from the store into the containerd of a node, without `docker save`, `kind load` or `k3d image import`.
//!
//! A node is asked once what it has; what to send follows from that ([`plan`], pure): images it has under their name and
//! digest are skipped, blobs it has are left out. containerd takes such a thin archive because it looks up an OCI layout's
//! children in its own content store. Afterwards the node is asked again and everything is compared by digest.
//!
//! One node gets one archive at a time: containerd locks what it ingests by file name, so two archives that share a layer
//! (or just their `index.json`) would get in each other's way. Several nodes are filled at the same time.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{Stream, StreamExt as _, future};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::archive::{self, Archive, damage, docker_name, node_names};
use super::layout::{Image, Store};
use super::reference::Digest;
use crate::docker::{Docker, Node};
use crate::error::Failure;
use crate::event::Step;
use crate::stop::Stop;

/// An archive is closed when it has so much: what is needed first is there first, and few archives carry many images.
const BATCH: u64 = 256 << 20;
/// How often the bytes are told.
const TELL_EVERY: u64 = 4 << 20;
/// How long containerd may be away when kind restarts it in the middle of an import.
const RESTART: Duration = Duration::from_secs(60);
const BOUNDARY: &str = "== blobs ==";

/// What the containerd of a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The manifest's digest of each image, by name.
    pub images: HashMap<String, Digest>,
    /// All blobs.
    pub blobs: HashSet<Digest>,
}

/// Images that travel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In order of need.
    pub images: Vec<Image>,
    /// The blobs among theirs that the node has by then.
    pub leave_out: HashSet<Digest>,
    /// Bytes of the blobs that are sent.
    pub size: u64,
}

/// What an import did to one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Images that were sent.
    pub images: usize,
    /// Images that the node had.
    pub skipped: usize,
    /// Bytes that were sent.
    pub bytes: u64,
}

impl Inventory {
    /// Whether the image is there, whole, under every name it is looked for.
    pub fn has(&self, image: &Image) -> bool {
        self.lacks(image).is_none()
    }

    /// What is missing for [`Inventory::has`], in words. containerd drops a layer's blob once the layer is unpacked
    /// (`discard_unpacked_layers`), so a blob that isn't there proves nothing.
    pub fn lacks(&self, image: &Image) -> Option<String> {
        node_names(image)
            .into_iter()
            .find_map(|name| match self.images.get(&name) {
                Some(digest) if *digest == image.manifest.digest => None,
                Some(digest) => Some(format!("{name} is {digest} there")),
                None => Some(format!("{name} isn't there")),
            })
    }
}

/// What to send to a node that has `inventory`, so that it has all `wanted` images: in the order given, which is the order
/// of need.
pub fn plan(wanted: &[Image], inventory: &Inventory) -> Vec<Batch> {
    let mut has = inventory.blobs.clone();
    let mut batches: Vec<Batch> = Vec::new();
    for image in wanted.iter().filter(|image| !inventory.has(image)) {
        let had_before = batches
            .last()
            .map(|batch| &batch.leave_out)
            .unwrap_or(&inventory.blobs)
            .clone();
        let size: u64 = image
            .blobs()
            .filter(|blob| has.insert(blob.digest.clone()))
            .map(|blob| blob.size)
            .sum();
        match batches.last_mut() {
            Some(batch) if batch.size + size <= BATCH => {
                batch.images.push(image.clone());
                batch.size += size;
            }
            _ => {
                let sent = batches
                    .last()
                    .into_iter()
                    .flat_map(|batch| &batch.images)
                    .flat_map(Image::blobs)
                    .map(|blob| blob.digest.clone());
                batches.push(Batch {
                    leave_out: had_before.into_iter().chain(sent).collect(),
                    images: vec![image.clone()],
                    size,
                });
            }
        }
    }
    batches
}

/// Asks a node what its containerd has.
pub async fn inventory(docker: &Docker, node: &str) -> anyhow::Result<Inventory> {
    let script = format!(
        "ctr --namespace k8s.io images ls && echo '{BOUNDARY}' && ctr --namespace k8s.io content ls -q"
    );
    let output = docker
        .exec_checked(node, &["sh", "-c", &script])
        .await
        .with_context(|| format!("can't ask {node} which images it has"))?;
    parse_inventory(&String::from_utf8_lossy(&output))
        .with_context(|| format!("can't read what {node} says about its images"))
}

/// Reads the answer of [`inventory`]'s script.
fn parse_inventory(text: &str) -> anyhow::Result<Inventory> {
    let (images, blobs) = text
        .split_once(BOUNDARY)
        .context("the list of blobs is missing")?;
    let mut inventory = Inventory::default();
    // REF TYPE DIGEST SIZE PLATFORMS LABELS; the size has a space in it, what comes before has none.
    for line in images.lines().skip(1) {
        let mut columns = line.split_whitespace();
        if let (Some(name), Some(_), Some(digest)) =
            (columns.next(), columns.next(), columns.next())
        {
            // Something other than sha256 isn't ours, and not what we look for.
            if let Ok(digest) = digest.parse() {
                inventory.images.insert(name.to_owned(), digest);
            }
        }
    }
    inventory.blobs = blobs
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    Ok(inventory)
}

/// Waits until the containerd of a node answers: right after its start, and while kind restarts it.
pub async fn wait_for_containerd(
    docker: &Docker,
    node: &str,
    deadline: Duration,
    stop: &Stop,
) -> anyhow::Result<()> {
    let until = Instant::now() + deadline;
    loop {
        let asked = stop.or(docker.exec(node, &["ctr", "version"])).await?;
        let last_seen = match asked {
            Ok(output) if output.status == 0 => return Ok(()),
            Ok(output) => last_line(&output.stderr),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > until {
            return Err(Failure::TimedOut {
                what: format!("containerd in {node}"),
                after: deadline,
                last_seen,
                hint: format!("docker logs --tail 50 {node}; with kind: docker exec {node} journalctl --unit containerd --lines 50"),
            }
            .into());
        }
        stop.or(sleep(Duration::from_millis(200))).await?;
    }
}

fn last_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no answer")
        .to_owned()
}

/// Brings `wanted` into all nodes, in the order given, and proves that they are there. Nodes whose containerd isn't there
/// yet are waited for.
pub async fn import_into_all(
    docker: &Docker,
    store: &Store,
    nodes: &[Node],
    wanted: &[Image],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Vec<Imported>> {
    future::try_join_all(nodes.iter().map(|node| async move {
        let step = step.child(format!("images into {}", node.name));
        let imported = import(docker, store, &node.name, wanted, stop, &step).await?;
        match imported.images {
            0 => step.unchanged(format!("all {} are there", imported.skipped)),
            images => step.done(format!(
                "{images} images, {} MB; {} were there",
                imported.bytes / 1_000_000,
                imported.skipped
            )),
        }
        Ok(imported)
    }))
    .await
}

/// Brings `wanted` into one node, in the order given, and proves that they are there.
pub async fn import(
    docker: &Docker,
    store: &Store,
    node: &str,
    wanted: &[Image],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<Imported> {
    step.waiting("containerd");
    wait_for_containerd(docker, node, RESTART, stop).await?;
    let before = inventory(docker, node).await?;
    let batches = plan(wanted, &before);
    if batches.is_empty() {
        return Ok(Imported {
            skipped: wanted.len(),
            ..Imported::default()
        });
    }
    match send(docker, store, node, &batches, stop, step).await {
        Ok(()) => {}
        // Repeating doesn't help against these, and the caller can mend the first.
        Err(error) if damage(&error).is_some() || stop.is_requested() => return Err(error),
        Err(error) => {
            // kind restarts containerd when its config is patched; what was on the way then is sent again.
            step.line(format!("{node}: {error:#}; trying once more"));
            wait_for_containerd(docker, node, RESTART, stop).await?;
            let batches = plan(wanted, &inventory(docker, node).await?);
            send(docker, store, node, &batches, stop, step).await?;
        }
    }
    step.waiting("verifying");
    if !missing(docker, node, wanted).await?.is_empty() {
        // Another tool may have taken images away meanwhile, and with them blobs that were left out: leave out nothing.
        let lacking = lacking(wanted, &inventory(docker, node).await?);
        let again = plan(&lacking, &Inventory::default());
        send(docker, store, node, &again, stop, step).await?;
        if let Some(lack) = missing(docker, node, wanted).await?.first() {
            return Err(Failure::Other {
                message: format!("the import into {node} went through, but {lack}"),
                hint: format!("docker exec {node} ctr --namespace k8s.io images check"),
            }
            .into());
        }
    }
    let images: usize = batches.iter().map(|batch| batch.images.len()).sum();
    Ok(Imported {
        images,
        skipped: wanted.len() - images,
        bytes: batches.iter().map(|batch| batch.size).sum(),
    })
}

/// Brings images into Docker itself, unless they are there. Whether anything was loaded.
pub async fn load_into_docker(
    docker: &Docker,
    store: &Store,
    images: &[Image],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<bool> {
    let mut lacking = Vec::new();
    for image in images {
        let id = docker.image_id(&docker_name(&image.name)).await?;
        if !is_in_docker(image, id.as_ref()) {
            lacking.push(image.clone());
        }
    }
    if lacking.is_empty() {
        return Ok(false);
    }
    step.waiting(names(&lacking));
    let archive = archive::for_docker(store, &lacking);
    let total = archive.size();
    // The stream must own what it tells with.
    let (sender, mut receiver) = watch::channel(0);
    let input = counted(archive.stream(), Arc::default(), move |bytes| {
        let _ = sender.send(bytes);
    });
    let tell = async {
        while receiver.changed().await.is_ok() {
            step.bytes(*receiver.borrow_and_update(), total);
        }
    };
    let load = async { docker.load_image(input).await };
    let (loaded, ()) = stop.or(future::join(load, tell)).await?;
    loaded.with_context(|| format!("can't load {} into Docker", names(&lacking)))?;
    for image in &lacking {
        let id = docker.image_id(&docker_name(&image.name)).await?;
        if !is_in_docker(image, id.as_ref()) {
            return Err(Failure::Other {
                message: format!(
                    "`docker load` went through, but {} isn't there as it is in the store",
                    image.name
                ),
                hint: format!("docker image inspect {}", docker_name(&image.name)),
            }
            .into());
        }
    }
    Ok(true)
}

/// Docker's own store calls an image by its config's digest, its containerd store by its manifest's.
fn is_in_docker(image: &Image, id: Option<&Digest>) -> bool {
    id.is_some_and(|id| *id == image.config.digest || *id == image.manifest.digest)
}

fn lacking(wanted: &[Image], inventory: &Inventory) -> Vec<Image> {
    wanted
        .iter()
        .filter(|image| !inventory.has(image))
        .cloned()
        .collect()
}

async fn missing(docker: &Docker, node: &str, wanted: &[Image]) -> anyhow::Result<Vec<String>> {
    let inventory = inventory(docker, node).await?;
    Ok(wanted
        .iter()
        .filter_map(|image| inventory.lacks(image))
        .collect())
}

async fn send(
    docker: &Docker,
    store: &Store,
    node: &str,
    batches: &[Batch],
    stop: &Stop,
    step: &Step,
) -> anyhow::Result<()> {
    let archives: Vec<Archive> = batches
        .iter()
        .map(|batch| archive::for_node(store, &batch.images, &batch.leave_out))
        .collect();
    let total = archives.iter().map(Archive::size).sum();
    let done = Arc::new(AtomicU64::new(0));
    for (batch, archive) in batches.iter().zip(archives) {
        stop.check()?;
        step.waiting(names(&batch.images));
        let command = import_command(&docker.server_platform().architecture);
        let input = counted(archive.stream(), Arc::clone(&done), |bytes| {
            step.bytes(bytes, total);
        });
        stop.or(docker.exec_with_input(node, &["sh", "-c", &command], input))
            .await?
            .with_context(|| format!("can't import {} into {node}", names(&batch.images)))?;
    }
    Ok(())
}

/// No unpacking: the kubelet's first container of an image does that, several layers at a time. What ctr draws on its
/// stdout while it works is for a terminal.
fn import_command(architecture: &str) -> String {
    format!(
        "exec ctr --namespace k8s.io images import --no-unpack --platform linux/{architecture} - >/dev/null"
    )
}

fn names(images: &[Image]) -> String {
    let names: Vec<String> = images
        .iter()
        .map(|image| {
            let full = image.name.to_string();
            full.rsplit('/').next().unwrap_or(&full).to_owned()
        })
        .collect();
    match names.as_slice() {
        [one, two, three, rest @ ..] if rest.len() > 1 => {
            format!("{one}, {two}, {three} and {} more", rest.len())
        }
        few => few.join(", "),
    }
}

/// The stream, telling now and then how many bytes have passed.
fn counted<Input: Stream<Item = io::Result<Bytes>> + Send>(
    input: Input,
    done: Arc<AtomicU64>,
    tell: impl Fn(u64) + Send,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let mut told = 0;
    input.inspect(move |chunk| {
        let Ok(chunk) = chunk else { return };
        let passed = chunk.len() as u64;
        let done = done.fetch_add(passed, Ordering::Relaxed) + passed;
        if done >= told + TELL_EVERY {
            told = done;
            tell(done);
        }
    })
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::super::testing::{empty, layer, put};
    use super::*;
    use crate::event::Events;

    #[test]
    fn an_inventory_is_read() {
        let hex = "ab".repeat(32);
        let text = format!(
            "REF                              TYPE                                       DIGEST SIZE      PLATFORMS   LABELS                          \n\
             docker.io/library/redis:7        application/vnd.oci.image.manifest.v1+json sha256:{hex} 41.2 MiB  linux/amd64 io.cri-containerd.image=managed \n\
             import-2026-08-27@sha256:{hex}   application/vnd.oci.image.manifest.v1+json sha256:{hex} -         -           -                               \n\
             {BOUNDARY}\n\
             sha256:{hex}\n\
             sha256:{}\n",
            "cd".repeat(32)
        );
        let inventory = parse_inventory(&text).unwrap();
        assert_eq!(inventory.images.len(), 2);
        assert_eq!(
            inventory.images["docker.io/library/redis:7"].hex(),
            hex.as_str()
        );
        assert_eq!(inventory.blobs.len(), 2);
        assert!(parse_inventory("REF\n").is_err());
        assert_eq!(
            parse_inventory(&format!("REF TYPE\n{BOUNDARY}\n")).unwrap(),
            Inventory::default()
        );
    }

    fn holding(images: &[&Image]) -> Inventory {
        Inventory {
            images: images
                .iter()
                .flat_map(|image| {
                    node_names(image)
                        .into_iter()
                        .map(|name| (name, image.manifest.digest.clone()))
                })
                .collect(),
            blobs: images
                .iter()
                .flat_map(|image| image.blobs())
                .map(|blob| blob.digest.clone())
                .collect(),
        }
    }

    #[test]
    fn only_what_is_missing_is_planned_in_the_order_of_need() {
        let (_folder, store) = empty();
        let base = layer("base", 1000);
        let one = put(&store, "a:1", &[base.clone(), layer("one", 1)]);
        let two = put(&store, "a:2", &[base.clone(), layer("two", 2)]);
        let wanted = [two.clone(), one.clone()];

        let batches = plan(&wanted, &Inventory::default());
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].images, wanted);
        assert_eq!(batches[0].size, one.size() + two.size() - base.len() as u64);

        let batches = plan(&wanted, &holding(&[&one]));
        assert_eq!(batches[0].images, std::slice::from_ref(&two));
        assert_eq!(batches[0].size, two.size() - base.len() as u64);
        assert!(batches[0].leave_out.contains(&Digest::of(&base)));

        assert_eq!(plan(&wanted, &holding(&[&one, &two])), []);
        // The name is there with another digest: it's sent, and what it shares isn't.
        let mut other = holding(&[&one, &two]);
        other
            .images
            .insert("docker.io/library/a:2".to_owned(), Digest::of(b"other"));
        assert_eq!(plan(&wanted, &other)[0].size, 0);
        assert_snapshot!(other.lacks(&two).unwrap().split(" is ").next().unwrap(), @"docker.io/library/a:2");
        // A layer's blob went when the layer was unpacked: nothing to do.
        let mut unpacked = holding(&[&one, &two]);
        unpacked.blobs.remove(&two.layers[1].digest);
        assert_eq!(plan(&wanted, &unpacked), []);
    }

    #[test]
    fn a_later_batch_leaves_out_what_the_earlier_ones_brought() {
        let (_folder, store) = empty();
        let big = |name: &str, own: &str| {
            let mut image = put(&store, name, &[layer("base", 1000), layer(own, 7)]);
            image.layers[1].size = BATCH - 5000;
            image
        };
        let images = [big("a:1", "one"), big("a:2", "two"), big("a:3", "three")];
        let batches = plan(&images, &Inventory::default());
        assert_eq!(batches.len(), 3);
        let base = &images[0].layers[0].digest;
        assert!(!batches[0].leave_out.contains(base));
        assert!(batches[1].leave_out.contains(base));
        assert!(batches[2].leave_out.contains(base));
        assert!(batches[2].leave_out.contains(&images[1].manifest.digest));
        assert!(!batches[2].leave_out.contains(&images[2].manifest.digest));
    }

    #[test]
    fn many_names_are_told_shortly() {
        let (_folder, store) = empty();
        let images: Vec<Image> = (1..=6)
            .map(|tag| put(&store, &format!("quay.io/a/b:{tag}"), &[]))
            .collect();
        assert_snapshot!(names(&images[..1]), @"b:1");
        assert_snapshot!(names(&images[..4]), @"b:1, b:2, b:3, b:4");
        assert_snapshot!(names(&images), @"b:1, b:2, b:3 and 3 more");
    }

    /// The real thing: a container with nothing but a shell and containerd, given by DEVENV_TEST_NODE.
    #[tokio::test]
    #[ignore = "needs Docker and a container with containerd, named by DEVENV_TEST_NODE"]
    async fn images_reach_a_real_containerd() {
        let node = std::env::var("DEVENV_TEST_NODE").unwrap();
        let docker = crate::docker::connect().await.unwrap();
        let (events, _receiver) = Events::channel();
        let (step, stop) = (events.step("import"), Stop::new());
        let (_folder, store) = empty();
        let base = layer("base", 40_000_000);
        let tag = std::process::id();
        let image = |name: &str, own: &str, size: usize| {
            put(
                &store,
                &format!("test.devenv.test/{name}:{tag}"),
                &[base.clone(), layer(own, size)],
            )
        };
        let wanted = [image("one", "one", 3_000_000), image("two", "two", 2)];
        let run = async |wanted: &[Image]| {
            let begun = Instant::now();
            let imported = import(&docker, &store, &node, wanted, &stop, &step).await;
            (imported, begun.elapsed())
        };

        let (first, took) = run(&wanted[..1]).await;
        let first = first.unwrap();
        assert_eq!((first.images, first.skipped), (1, 0));
        step.line(format!("first: {took:?}"));

        // The base is left out, and both are whole all the same.
        let (second, _) = run(&wanted).await;
        let second = second.unwrap();
        assert_eq!((second.images, second.skipped), (1, 1));
        assert!(second.bytes < 100_000, "{second:?}");

        let (third, _) = run(&wanted).await;
        assert_eq!(third.unwrap().images, 0);

        // A damaged blob is found on the way, and nothing of that name arrives.
        let broken = image("broken", "broken", 900_000);
        super::super::testing::damage(&store, &broken.layers[1]);
        let (failed, _) = run(std::slice::from_ref(&broken)).await;
        let error = failed.unwrap_err();
        assert_eq!(damage(&error).unwrap().digest, broken.layers[1].digest);
        assert!(!inventory(&docker, &node).await.unwrap().has(&broken));
    }

    #[tokio::test]
    #[ignore = "needs Docker"]
    async fn docker_loads_an_image_of_the_store() {
        let docker = crate::docker::connect().await.unwrap();
        let (_folder, store) = empty();
        let name = format!("test.devenv.test/loaded:{}", std::process::id());
        let image = put(&store, &name, &[layer("base", 3_000_000), layer("own", 5)]);
        let archive = || archive::for_docker(&store, std::slice::from_ref(&image));
        docker.load_image(archive().stream()).await.unwrap();
        let id = docker.image_id(&name).await.unwrap().unwrap();
        assert!(id == image.config.digest || id == image.manifest.digest);

        // What is wrong is told, though Docker answers 200.
        let mut half = archive();
        half.files.truncate(4);
        let error = docker.load_image(half.stream()).await.unwrap_err();
        assert!(
            format!("{error:#}").starts_with("`docker load` failed: "),
            "{error:#}"
        );
        super::super::testing::damage(&store, &image.layers[0]);
        let error = docker.load_image(archive().stream()).await.unwrap_err();
        assert_eq!(damage(&error).unwrap().digest, image.layers[0].digest);
    }
}
