//! This machine apart from Docker's own account of it: disks, limits of the kernel, programs.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::engine::kernel;
use super::{Finding, World};
use crate::cluster;
use crate::docker::Info;
use crate::environment::Provider;
use crate::images::Needed;
use crate::quantity;
use crate::store::{self, Store};

const GIB: u64 = 1 << 30;
/// A node that runs the whole platform has been seen to write 4 GiB, and its image is 0.7 GiB.
const NODE: u64 = 5 * GIB;
/// What the store of an environment takes.
const STORE: u64 = 3 * GIB;
const INODES: u64 = 100_000;
/// Most systems' default is used up by one busy node.
const INSTANCES: u64 = 512;
const INSTANCES_AT_LEAST: u64 = 128;
/// The old default of 8192 is used up by one busy node.
const WATCHES: u64 = 65536;

/// What can be seen only where Docker runs on this machine's own kernel.
pub(super) fn of_docker(info: &Info) -> Vec<Finding> {
    if info.kernel_version != kernel() {
        let saw =
            "Docker runs in a machine of its own, whose disk and limits can't be seen from here";
        return vec![Finding::fine("docker's disk", saw)];
    }
    let mut findings = Vec::new();
    if let Some(disk) = Disk::of(&info.docker_root_dir) {
        findings.push(docker_disk(&disk));
    }
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?;
        text.trim().parse().ok()
    };
    if let (Some(instances), Some(watches)) = (read("max_user_instances"), read("max_user_watches"))
    {
        findings.push(inotify(instances, watches));
    }
    findings
}

/// What needs no Docker.
pub(super) fn look(world: &World<'_>) -> Vec<Finding> {
    let mut findings = vec![git()];
    let provider = world
        .inputs
        .map_or(Provider::Kind, |inputs| inputs.environment.provider);
    let program = match provider {
        Provider::Kind => Some(("kind", "sigs.k8s.io/kind@v0.33.0")),
        Provider::K3d => Some(("k3d", "github.com/k3d-io/k3d/v5@v5.8.3")),
        Provider::Existing => None,
    };
    if let Some((tool, module)) = program {
        findings.push(match cluster::program_of(world.context, provider) {
            Some(path) => Finding::fine(tool, path.display().to_string()),
            None => Finding::blocks(
                tool,
                format!("{tool} is not on PATH; scripts/up builds it from its Go module"),
            )
            .remedy(format!("go install {module}")),
        });
    }
    if let Some(inputs) = world.inputs {
        let folder = world.context.paths.store();
        let missing = Needed::by(inputs).and_then(|needed| {
            let wanted = needed.in_store(inputs);
            Ok(match Store::look(&folder)? {
                Some(store) => store::missing(&store, &wanted)?.len(),
                None => wanted.len(),
            })
        });
        let finding = match (missing, Disk::of(&folder)) {
            (Ok(missing), Some(disk)) => store_disk(&disk, missing),
            (Err(error), _) => Finding::of_error("store's disk", &error),
            (_, None) => Finding::information("store's disk", "its free space can't be seen"),
        };
        findings.push(finding);
    }
    findings
}

/// The commits that are pushed into the cluster are made by it.
pub(super) fn git() -> Finding {
    match which::which("git") {
        Ok(path) => Finding::fine("git", path.display().to_string()),
        Err(_) => Finding::blocks(
            "git",
            "git is not on PATH, and it makes what is pushed into the cluster",
        )
        .remedy("sudo apt-get install git"),
    }
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Disk {
    path: String,
    free: u64,
    /// `None` where the file system makes them as it needs them.
    inodes: Option<u64>,
}

impl Disk {
    /// The one on which the folder is, or will be.
    #[cfg_attr(
        target_os = "linux",
        expect(clippy::useless_conversion, reason = "other systems count in u32")
    )]
    fn of(folder: &Path) -> Option<Self> {
        let there = folder.ancestors().find(|folder| folder.is_dir())?;
        let found = statvfs(there).ok()?;
        Some(Self {
            path: folder.display().to_string(),
            free: u64::from(found.blocks_available()) * found.fragment_size(),
            inodes: (found.files() > 0).then(|| u64::from(found.files_available())),
        })
    }

    fn told(&self) -> String {
        let free = quantity::memory(u128::from(self.free) * 1000);
        format!("{free} are free where {} is", self.path)
    }
}

fn docker_disk(disk: &Disk) -> Finding {
    let name = "docker's disk";
    let prune = "docker system prune";
    if let Some(inodes @ 0..INODES) = disk.inodes {
        let saw = format!(
            "{inodes} more files fit where {} is; a node needs {INODES}",
            disk.path
        );
        return Finding::blocks(name, saw).remedy(prune);
    }
    let saw = format!(
        "{}; a node with the whole platform takes 5 GiB",
        disk.told()
    );
    match disk.free {
        0..GIB => Finding::blocks(name, saw).remedy(prune),
        GIB..NODE => Finding::slows(name, saw).remedy(prune),
        _ => Finding::fine(name, disk.told()),
    }
}

fn store_disk(disk: &Disk, missing: usize) -> Finding {
    let name = "store's disk";
    if missing == 0 {
        return Finding::fine(name, format!("nothing is missing there; {}", disk.told()));
    }
    let saw = format!(
        "{}; {missing} images and files are missing there, all of them take 3 GiB",
        disk.told()
    );
    let remedy = format!("df -h {}", disk.path);
    match disk.free {
        0..GIB => Finding::blocks(name, saw).remedy(remedy),
        GIB..STORE => Finding::slows(name, saw).remedy(remedy),
        _ => Finding::fine(name, format!("{}; {missing} to be fetched", disk.told())),
    }
}

fn inotify(instances: u64, watches: u64) -> Finding {
    let saw = format!(
        "fs.inotify.max_user_instances = {instances}, max_user_watches = {watches}; a busy node uses up 128 and 8192 \
         (\"too many open files\")"
    );
    let remedy = "printf 'fs.inotify.max_user_instances=512\\nfs.inotify.max_user_watches=524288\\n' | \
                  sudo tee /etc/sysctl.d/90-inotify.conf && sudo sysctl --system";
    if instances < INSTANCES_AT_LEAST {
        return Finding::blocks("inotify", saw).remedy(remedy);
    }
    match instances < INSTANCES || watches < WATCHES {
        true => Finding::slows("inotify", saw).remedy(remedy),
        false => Finding::fine(
            "inotify",
            format!("{instances} instances, {watches} watches"),
        ),
    }
}
