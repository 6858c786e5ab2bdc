//! Saved states of an environment: what its nodes keep in their volumes of etcd and of the volumes' data, copied while the
//! nodes stand still, and put back.
//!
//! A snapshot lies in the node's own volume, beside what it was copied from: nothing travels, and where the file system can,
//! the copy shares its blocks. Images stay where they are and belong to no snapshot. It is whole when its `meta.json` is
//! there, which is written last, and its files are as long as they were. A restore that was killed half-way is finished by the
//! next `up` ([`finish_restore`]).

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use futures::future::{join_all, try_join_all};
use serde::{Deserialize, Serialize};

use super::k3d::MARK;
use super::kept::MadeOf;
use super::{pod_nodes, restart};
use crate::docker::beside::Beside;
use crate::docker::{Docker, Node, State};
use crate::environment::{Environment, Provider};
use crate::error::Failure;
use crate::event::Step;

/// The snapshot that `up` keeps of the last state that passed all checks.
pub const HEALTHY: &str = "healthy";
/// Where a node keeps what a snapshot is of, and the snapshots beside it: all in one volume, so that nothing travels.
pub(super) struct Places {
    /// etcd's, or that of what k3s has in its place.
    database: &'static str,
    /// The data of volumes.
    volumes: &'static str,
    /// The snapshots.
    pub(super) snapshots: &'static str,
    /// What makes a container this node and no other: certificates, keys, configs. A pattern for the shell, below `/`.
    identity: &'static str,
    /// What the pattern takes in and isn't that, beside [`DOCKERS_OWN`]: what is in the other places, and images.
    except: &'static [&'static str],
}

impl Places {
    pub(super) fn of(environment: &Environment) -> Self {
        match environment.provider {
            // One that is there already has no nodes of ours, and nothing is saved of it.
            Provider::Kind | Provider::Existing => Self {
                database: "/var/lib/etcd",
                volumes: "/var/local-path-provisioner",
                snapshots: "/var/devenv/snapshots",
                identity: "etc kind var/lib/kubelet/*.yaml var/lib/kubelet/*.env var/lib/kubelet/pki",
                except: &[],
            },
            Provider::K3d => Self {
                database: "/var/lib/rancher/k3s/server/db",
                volumes: "/var/lib/rancher/k3s/storage",
                snapshots: "/var/lib/rancher/k3s/devenv/snapshots",
                identity: "etc output bin/k3d-entrypoint*.sh var/lib/kubelet/pki var/lib/rancher/k3s",
                except: &OF_K3S,
            },
        }
    }
}

/// Files that Docker mounts into every container.
const DOCKERS_OWN: [&str; 3] = ["etc/hosts", "etc/hostname", "etc/resolv.conf"];
/// What lies beside k3s's own certificates.
const OF_K3S: [&str; 5] = [
    "var/lib/rancher/k3s/server/db",
    "var/lib/rancher/k3s/storage",
    "var/lib/rancher/k3s/devenv",
    "var/lib/rancher/k3s/agent/containerd",
    "var/lib/rancher/k3s/agent/images",
];
/// In a snapshot, the archive of a node's identity.
pub(super) const IDENTITY: &str = "identity.tar";
/// In a snapshot, what it consists of: the length and the name of each file, as [`LENGTHS`] tells them.
const FILES: &str = ".files";
/// Lists the files of the snapshot that is the working folder; its own bookkeeping aside.
const LENGTHS: &str = r"find . -type f ! -path ./.files ! -path ./.meta ! -path ./meta.json -exec stat -c '%s %n' {} + | LC_ALL=C sort";
/// Sets `$copy`. The logs that databases write ahead are files of zeros for the most part, which needn't be written: they become
/// holes, where the node's `cp` knows how (busybox's doesn't).
const HOW_TO_COPY: &str = "copy='cp -a --reflink=auto'; if cp --help 2>&1 | grep -q -e --sparse; then copy=\"$copy --sparse=always\"; fi";
/// On a full disk Docker can't keep what a program in a container says: its exit status has to tell, see [`DISK_FULL`].
///
/// [`DISK_FULL`]: crate::docker::beside::DISK_FULL
const TELL_OF_A_FULL_DISK: &str = "trap 's=$?; if [ $s != 0 ] && [ \"$(df -Pm . | awk \"NR==2 {print \\$4}\")\" -lt 8 ]; then s=28; fi; exit $s' EXIT";
/// So much of the disk must stay free after a snapshot.
const FREE_MEBIBYTES: u64 = 2048;
/// What all of an environment's named snapshots may take.
const LIMIT_MEBIBYTES: u64 = 8192;

/// A whole snapshot, as its `meta.json` tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// When it was saved, in RFC 3339.
    pub saved: String,
    /// The revision that all Applications were at.
    pub revision: String,
    /// What it holds, in words.
    pub holds: String,
    /// Its size in MiB, all nodes together; blocks that it shares count as well.
    #[serde(default)]
    pub mebibytes: u64,
    /// What the cluster was made of; an older devenv didn't tell.
    #[serde(default)]
    pub made_of: Option<MadeOf>,
}

/// A name that can be a folder's and says what it means: at most 40 of a-z, 0-9 and `-`.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    if name.len() <= 40 && crate::environment::is_dns_label(name) {
        return Ok(());
    }
    Err(Failure::Usage {
        message: format!("`{name}` can't name a snapshot"),
        hint: "at most 40 of a-z, 0-9 and `-`, and no `-` at either end".to_owned(),
    }
    .into())
}

/// The whole snapshots there are, the oldest first. The nodes must run.
pub async fn all(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
) -> anyhow::Result<Vec<Snapshot>> {
    let Some(first) = pod_nodes(nodes).next() else {
        return Ok(Vec::new());
    };
    let Places { snapshots, .. } = Places::of(environment);
    let whole = whole_test();
    let script = format!(
        "cd {snapshots} 2>/dev/null || exit 0; for meta in */meta.json; do \
           if [ -e \"$meta\" ] && (cd \"${{meta%/*}}\" && {whole}); then cat \"$meta\"; echo; fi; done"
    );
    let output = docker
        .exec_checked(&first.name, &["sh", "-c", &script])
        .await?;
    let mut found: Vec<Snapshot> = String::from_utf8_lossy(&output)
        .lines()
        .filter(|line| !line.is_empty())
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    found.sort_by(|one, other| one.saved.cmp(&other.saved));
    Ok(found)
}

/// Succeeds where the snapshot that is the working folder has all its files, as long as they were when it was saved. Those of an
/// older devenv don't tell.
pub(super) fn whole_test() -> String {
    format!("{{ [ ! -e {FILES} ] || [ \"$({LENGTHS})\" = \"$(cat {FILES})\" ]; }}")
}

/// Saves the state of all nodes under a name; one of that name is replaced. The nodes stand still for as long as it takes.
pub async fn save(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
    name: &str,
    (revision, made_of): (&str, MadeOf),
    step: &Step,
) -> anyhow::Result<Snapshot> {
    let nodes: Vec<&Node> = pod_nodes(nodes).collect();
    let first = nodes.first().context("there is no node to save")?;
    let places = Places::of(environment);
    refuse_without_room(docker, &places, first, name).await?;
    let mut snapshot = Snapshot {
        name: name.to_owned(),
        saved: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        revision: revision.to_owned(),
        holds: "etcd and the data of all volumes; no images".to_owned(),
        mebibytes: 0,
        made_of: Some(made_of),
    };
    let begin = begin_script(&places, name);
    let begin = ["sh", "-c", &begin];
    try_join_all(
        nodes
            .iter()
            .map(|node| docker.exec_checked(&node.name, &begin)),
    )
    .await
    .context("copy what makes the nodes themselves")?;
    let copy = copy_script(&places, name);
    make_helpers(docker, environment, &nodes, &copy).await?;
    step.waiting("the nodes stand still");
    let copied = async {
        try_join_all(nodes.iter().map(|node| docker.pause(&node.name))).await?;
        run_helpers(docker, &nodes).await
    };
    let copied = copied.await.context("copy the state of the nodes");
    // Whatever came of it, they go on.
    let go_on = join_all(nodes.iter().map(|node| docker.unpause(&node.name))).await;
    remove_helpers(docker, environment).await?;
    go_on.into_iter().collect::<anyhow::Result<()>>()?;
    snapshot.mebibytes = copied?
        .iter()
        .filter_map(|said| said.trim().parse::<u64>().ok())
        .sum();
    step.waiting("keeping it");
    let meta = serde_json::to_string(&snapshot)?;
    for node in &nodes {
        let keep = keep_script(&places, name, &meta);
        docker
            .exec_checked(&node.name, &["sh", "-c", &keep])
            .await?;
    }
    Ok(snapshot)
}

/// Disks fill by themselves; this is not to be what fills them.
async fn refuse_without_room(
    docker: &Docker,
    places: &Places,
    node: &Node,
    name: &str,
) -> anyhow::Result<()> {
    let Places {
        database,
        volumes,
        snapshots,
        ..
    } = places;
    // Busybox, which k3s has, knows no `du --exclude`.
    let script = format!(
        "mkdir -p {snapshots} && chmod 700 {snapshots}/.. {snapshots} && df -Pm {snapshots} | awk 'NR==2 {{print $4}}' && \
         du -smc {database} {volumes} 2>/dev/null | awk 'END {{print $1}}' && cd {snapshots} && \
         du -sm * 2>/dev/null | awk '$2 != \"{name}\" && $2 != \"{HEALTHY}\" {{sum += $1}} END {{print sum + 0}}'"
    );
    let said = docker
        .exec_checked(&node.name, &["sh", "-c", &script])
        .await?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let numbers: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let [free, wanted, others] = numbers[..] else {
        anyhow::bail!("the node {} didn't tell its free space: {said}", node.name);
    };
    if free < wanted + FREE_MEBIBYTES {
        return Err(Failure::Other {
            message: format!(
                "a snapshot of {wanted} MiB would leave less than {FREE_MEBIBYTES} MiB of the {free} MiB that are free where \
                 Docker keeps its volumes"
            ),
            hint: "docker system df, then remove what nobody needs; or: devenv snapshot remove NAME"
                .to_owned(),
        }
        .into());
    }
    if name != HEALTHY && others + wanted > LIMIT_MEBIBYTES {
        return Err(Failure::Other {
            message: format!(
                "the snapshots would take {} MiB, and at most {LIMIT_MEBIBYTES} MiB are kept",
                others + wanted
            ),
            hint: "devenv snapshot list, then: devenv snapshot remove NAME".to_owned(),
        }
        .into());
    }
    Ok(())
}

/// Runs while the node does: what it takes doesn't change.
fn begin_script(places: &Places, name: &str) -> String {
    let Places {
        snapshots,
        identity,
        except,
        ..
    } = places;
    let except: String = DOCKERS_OWN
        .iter()
        .chain(*except)
        .map(|path| format!("--exclude={path} "))
        .collect();
    format!(
        "set -e; mkdir -p {snapshots}; chmod 700 {snapshots}; cd {snapshots}; rm -rf .{name}.new; mkdir .{name}.new; cd /; \
         umask 077; tar -cf {snapshots}/.{name}.new/{IDENTITY} {except}$(ls -d {identity} 2>/dev/null)"
    )
}

/// Runs while the node stands still, so it only copies.
fn copy_script(places: &Places, name: &str) -> String {
    let Places {
        database,
        volumes,
        snapshots,
        ..
    } = places;
    format!(
        "set -e; {TELL_OF_A_FULL_DISK}; {HOW_TO_COPY}; cd {snapshots}; \
         if [ -d {volumes} ]; then $copy {volumes} .{name}.new/volumes; else mkdir .{name}.new/volumes; fi; \
         if [ -d {database} ]; then $copy {database} .{name}.new/etcd; fi; \
         (cd .{name}.new && {LENGTHS} > {FILES}); du -sm .{name}.new | cut -f1"
    )
}

/// Puts the copy in the place of an older one of its name. Until the last word it isn't whole.
fn keep_script(places: &Places, name: &str, meta: &str) -> String {
    let Places { snapshots, .. } = places;
    // A name and what is written of it hold no quotes.
    format!(
        "set -e; cd {snapshots}; rm -rf .{name}.old; if [ -e {name} ]; then rm -f {name}/meta.json; mv {name} .{name}.old; fi; \
         mv .{name}.new {name}; printf %s '{meta}' > {name}/.meta; mv {name}/.meta {name}/meta.json; rm -rf .{name}.old"
    )
}

/// Puts a saved state back: the nodes are killed, their etcd and volumes replaced, and they are started again. Whatever ran in
/// their pods starts anew.
pub async fn restore(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
    name: &str,
    step: &Step,
) -> anyhow::Result<()> {
    let nodes: Vec<&Node> = pod_nodes(nodes).collect();
    let script = restore_script(&Places::of(environment), name);
    make_helpers(docker, environment, &nodes, &script).await?;
    step.waiting("stopping the nodes");
    try_join_all(nodes.iter().map(|node| async move {
        docker.unpause(&node.name).await.ok();
        docker.kill(&node.name).await
    }))
    .await?;
    step.waiting(format!("putting {name} back"));
    run_helpers(docker, &nodes)
        .await
        .with_context(|| format!("put the snapshot {name} back"))?;
    step.waiting("starting the nodes");
    start(docker, nodes).await?;
    // Last: as long as they are there, it is known why the nodes stand still.
    remove_helpers(docker, environment).await
}

/// One after the other, so that each gets the address it had; see `cluster::containers`.
pub(super) async fn start(
    docker: &Docker,
    nodes: impl IntoIterator<Item = &Node> + Clone,
) -> anyhow::Result<()> {
    for node in nodes.clone() {
        docker.start(&node.name).await?;
    }
    restart::lead_to_api(docker, nodes.into_iter().map(|node| node.name.as_str())).await;
    Ok(())
}

/// Puts a saved state into nodes that were made and never ran.
pub(super) async fn fill(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
    name: &str,
) -> anyhow::Result<()> {
    let nodes: Vec<&Node> = pod_nodes(nodes).collect();
    let script = restore_script(&Places::of(environment), name);
    make_helpers(docker, environment, &nodes, &script).await?;
    run_helpers(docker, &nodes)
        .await
        .with_context(|| format!("put the snapshot {name} into the nodes"))?;
    remove_helpers(docker, environment).await
}

/// Each part is put beside its place first and then takes it, so that a second run finishes what a first began.
fn restore_script(places: &Places, name: &str) -> String {
    let Places {
        database,
        volumes,
        snapshots,
        ..
    } = places;
    let whole = whole_test();
    format!(
        "set -e; {TELL_OF_A_FULL_DISK}; {HOW_TO_COPY}; cd {snapshots}; s={snapshots}/{name}; test -e $s/meta.json; \
         (cd $s && {whole}) || {{ echo \"the snapshot {name} is damaged: some of its files aren't what they were\" >&2; exit 1; }}; \
         rm -rf {database}.devenv {volumes}.devenv; \
         $copy $s/volumes {volumes}.devenv; \
         if [ -d $s/etcd ]; then $copy $s/etcd {database}.devenv; \
           rm -rf {database}; mv {database}.devenv {database}; fi; \
         rm -rf {volumes}; mv {volumes}.devenv {volumes}; \
         rm -rf /var/lib/kubelet/pods; mkdir -p /var/lib/kubelet/pods"
    )
}

/// Finishes a restore that a killed devenv began: its container is still there.
pub async fn finish_restore(docker: &Docker, nodes: &[Node], step: &Step) -> anyhow::Result<()> {
    for node in pod_nodes(nodes) {
        let name = helper_name(node);
        let Some(state) = docker.state_of(&name).await? else {
            continue;
        };
        step.waiting(format!("finishing what {name} began"));
        match (&node.state, state) {
            // It was saving: the node goes on, and what was copied is nobody's.
            (State::Running | State::Paused, _) => {}
            (_, State::Running) => drop(docker.ended_beside(&name).await?),
            (_, _) => drop(docker.run_beside(&name).await?),
        }
        docker.remove(&name).await?;
    }
    Ok(())
}

/// Whether a devenv that was killed left its work on the nodes' state unfinished.
pub async fn is_interrupted(docker: &Docker, nodes: &[Node]) -> anyhow::Result<bool> {
    for node in pod_nodes(nodes) {
        if docker.state_of(&helper_name(node)).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Finishes such work, and lets the nodes go on.
pub async fn go_on(docker: &Docker, nodes: &[Node], step: &Step) -> anyhow::Result<()> {
    finish_restore(docker, nodes, step).await?;
    for node in pod_nodes(nodes) {
        docker.unpause(&node.name).await?;
        docker.start(&node.name).await?;
    }
    Ok(())
}

/// Removes the containers beside the nodes, those that a killed devenv left too.
pub async fn remove_helpers(docker: &Docker, environment: &Environment) -> anyhow::Result<()> {
    let marked = docker.containers(MARK, Some(&environment.id)).await?;
    // k3d's own containers carry the mark as well.
    for helper in marked.iter().filter(|marked| marked.name.ends_with(HELPER)) {
        docker.remove(&helper.name).await?;
    }
    Ok(())
}

/// Removes a snapshot; says whether it was there.
pub async fn remove(
    docker: &Docker,
    environment: &Environment,
    nodes: &[Node],
    name: &str,
) -> anyhow::Result<bool> {
    let there = all(docker, environment, nodes)
        .await?
        .iter()
        .any(|snapshot| snapshot.name == name);
    let Places { snapshots, .. } = Places::of(environment);
    let script = format!(
        "rm -f {snapshots}/{name}/meta.json; rm -rf {snapshots}/{name} {snapshots}/.{name}.*"
    );
    for node in pod_nodes(nodes) {
        docker
            .exec_checked(&node.name, &["sh", "-c", &script])
            .await?;
    }
    Ok(there)
}

/// How the names of containers beside a node end.
const HELPER: &str = "-state";

fn helper_name(node: &Node) -> String {
    format!("{}{HELPER}", node.name)
}

/// Makes a container beside each node, which is to run this script.
async fn make_helpers(
    docker: &Docker,
    environment: &Environment,
    nodes: &[&Node],
    script: &str,
) -> anyhow::Result<()> {
    for node in nodes {
        let beside = Beside {
            name: helper_name(node),
            node,
            script,
            label: (MARK, &environment.id),
        };
        docker.make_beside(&beside).await?;
    }
    Ok(())
}

/// Runs them all at once; gives what each said.
async fn run_helpers(docker: &Docker, nodes: &[&Node]) -> anyhow::Result<Vec<String>> {
    let run = async |node: &&Node| docker.run_beside(&helper_name(node)).await;
    try_join_all(nodes.iter().map(run)).await
}

/// How old a snapshot is, for people: "3m ago".
pub fn age(saved: &str, now: SystemTime) -> String {
    let Ok(saved) = humantime::parse_rfc3339(saved) else {
        return "-".to_owned();
    };
    let seconds = now.duration_since(saved).unwrap_or_default().as_secs();
    let rounded = match seconds {
        0..60 => seconds,
        60..3600 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    format!(
        "{} ago",
        humantime::format_duration(Duration::from_secs(rounded))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folders_and_ages_are_rounded() {
        assert!(check_name("before-migration").is_ok());
        for bad in ["", "a/b", "..", "A", "-a", "a'b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        let now = humantime::parse_rfc3339("2026-11-25T12:00:00Z").unwrap();
        for (saved, expected) in [
            ("2026-11-25T11:59:58Z", "2s ago"),
            ("2026-11-25T11:47:31Z", "12m ago"),
            ("2026-11-23T11:00:00Z", "2days 1h ago"),
            ("yesterday", "-"),
        ] {
            assert_eq!(age(saved, now), expected);
        }
    }
}
