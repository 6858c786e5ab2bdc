//! What Docker says of itself and its machine, judged.

use std::time::{Duration, SystemTime};

use super::Finding;
use crate::cluster::ours::Ours;
use crate::docker::{Docker, Info, Platform, State};
use crate::environment::ImageOrigin;
use crate::inputs::Inputs;
use crate::quantity;

const GIB: u64 = 1 << 30;
/// kubeadm itself asks for this much.
const MEMORY_AT_LEAST: u64 = 2 * GIB;
/// The platform has been seen to use 3 to 4.5 GiB.
const MEMORY_FOR_ALL: u64 = 5 * GIB;
/// Kubernetes' certificates are made valid from five minutes before.
const SKEW_AT_MOST: Duration = Duration::from_secs(300);
const SKEW: Duration = Duration::from_secs(10);
const INSTALL: &str = "https://docs.docker.com/engine/install";

/// All that is judged here.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    address: String,
    version: String,
    platform: Platform,
    info: Info,
    machine: Machine,
    wanted: Option<Wanted>,
}

/// This machine, as far as it matters for Docker.
#[derive(Debug, Clone, Default)]
struct Machine {
    kernel: String,
    architecture: &'static str,
    now: Option<SystemTime>,
    /// What programs can still have of its memory, in bytes.
    free_memory: Option<u64>,
    /// The modules that are loaded or built in; none where that can't be seen, as in a kernel that has no modules.
    modules: Option<Vec<String>>,
    first_port_for_all: u16,
    default_platform: Option<String>,
}

/// What the environment needs of Docker.
#[derive(Debug, Clone)]
struct Wanted {
    name: String,
    /// 34 of Kubernetes 1.34.
    kubernetes: Option<u32>,
    node_image: String,
    allows_cgroup_v1: bool,
    ports: Vec<u16>,
    builds: bool,
    runs: bool,
}

impl Facts {
    pub(super) fn gather(
        inputs: Option<&Inputs>,
        docker: &Docker,
        info: Info,
        ours: &[Ours],
    ) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kernel = kernel();
        let builtin = read(&format!("/lib/modules/{kernel}/modules.builtin"));
        Self {
            address: docker.address().to_owned(),
            version: docker.version().to_owned(),
            platform: docker.server_platform().clone(),
            info,
            machine: Machine {
                architecture: architecture(std::env::consts::ARCH),
                now: Some(SystemTime::now()),
                free_memory: free_memory(&read("/proc/meminfo")),
                modules: std::fs::read_to_string("/proc/modules")
                    .ok()
                    .map(|loaded| modules(&loaded, &builtin)),
                first_port_for_all: read("/proc/sys/net/ipv4/ip_unprivileged_port_start")
                    .trim()
                    .parse()
                    .unwrap_or_default(),
                default_platform: std::env::var("DOCKER_DEFAULT_PLATFORM")
                    .ok()
                    .filter(|platform| !platform.is_empty()),
                kernel,
            },
            wanted: inputs.map(|inputs| Wanted::by(inputs, ours)),
        }
    }
}

impl Wanted {
    fn by(inputs: &Inputs, ours: &[Ours]) -> Self {
        let environment = &inputs.environment;
        let node_image = environment.node_image.as_ref();
        let config = std::fs::read_to_string(&environment.config).unwrap_or_default();
        let runs = |ours: &&Ours| {
            ours.id == environment.id && ours.nodes.iter().any(|node| node.state == State::Running)
        };
        Self {
            name: environment.name.to_string(),
            kubernetes: node_image.and_then(|image| image.tag()).and_then(minor),
            node_image: node_image.map_or_else(String::new, ToString::to_string),
            allows_cgroup_v1: config.contains("failCgroupV1: false"),
            ports: inputs
                .cluster_config
                .published_ports()
                .iter()
                .map(|port| port.host_port)
                .collect(),
            builds: environment.images == ImageOrigin::Packages,
            runs: ours.iter().any(|ours| runs(&ours)),
        }
    }
}

/// This machine's kernel. One that is Docker's too means that Docker runs here, and not in a virtual machine of its own.
pub(super) fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// As Go and OCI name it.
fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn free_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// `iptable_nat 16384 1 - Live …` and `kernel/net/ipv4/netfilter/iptable_nat.ko` are both `iptable_nat`.
fn modules(loaded: &str, builtin: &str) -> Vec<String> {
    let loaded = loaded.lines().filter_map(|line| line.split(' ').next());
    let builtin = builtin
        .lines()
        .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
    loaded.chain(builtin).map(str::to_owned).collect()
}

/// The 34 in `v1.34.3`.
fn minor(tag: &str) -> Option<u32> {
    let rest = tag.trim_start_matches('v').strip_prefix("1.")?;
    rest.split('.').next()?.parse().ok()
}

/// Everything there is to say.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = version(facts);
    findings.extend(storage(&facts.info));
    findings.extend(rootless(facts));
    findings.push(cgroups(facts));
    findings.extend(kernel_features(&facts.info));
    findings.push(memory(facts));
    findings.push(cpus(&facts.info));
    findings.push(clock(facts));
    findings.push(platform(facts));
    findings
}

fn version(facts: &Facts) -> Vec<Finding> {
    let Facts {
        version, address, ..
    } = facts;
    let number = numbers(version);
    if number < [20, 10, 0] {
        let saw = format!(
            "Docker {version} is too old: it can't give nodes a cgroup namespace, which 20.10 can"
        );
        return vec![Finding::blocks("docker version", saw).remedy(INSTALL)];
    }
    let mut findings = vec![Finding::fine("docker", format!("{version} at {address}"))];
    if number < [28, 3, 3] {
        let saw = format!(
            "Docker {version} doesn't always keep ports that are published on 127.0.0.1 from machines on the same network \
             (moby#45610, CVE-2025-54388); 28.3.3 does"
        );
        findings.push(Finding::information("loopback", saw).remedy(INSTALL));
    }
    findings
}

/// `20.10.24+dfsg1` is 20, 10, 24.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    let parts = version.split(|letter: char| !letter.is_ascii_digit());
    for (number, part) in numbers.iter_mut().zip(parts) {
        *number = part.parse().unwrap_or_default();
    }
    numbers
}

fn storage(info: &Info) -> Vec<Finding> {
    let mut findings = Vec::new();
    let driver = &info.driver;
    let below = info.of_driver("Backing Filesystem").unwrap_or_default();
    if info.of_driver("Supports d_type") == Some("false") {
        let saw =
            format!("{driver} on {below} without d_type: layers can't be laid over each other");
        findings
            .push(Finding::blocks("storage", saw).remedy("xfs_info /var/lib/docker | grep ftype"));
    } else if driver == "vfs" {
        let saw = "the driver vfs copies every layer whole: a node takes minutes and many GiB";
        findings.push(Finding::slows("storage", saw).remedy("grep overlay /proc/filesystems"));
    } else {
        let on = if below.is_empty() {
            String::new()
        } else {
            format!(" on {below}")
        };
        findings.push(Finding::fine("storage", format!("{driver}{on}")));
    }
    if info
        .of_driver("driver-type")
        .is_some_and(|kind| kind.contains("containerd.snapshotter"))
    {
        let saw = "Docker keeps images in containerd's store; devenv doesn't mind, but `kind load` may fail with \
                   \"content digest not found\" (kind#3795)";
        findings.push(Finding::information("image store", saw));
    }
    if info.docker_root_dir.starts_with("/var/snap") {
        let saw = "Docker is the snap package, which doesn't see hidden folders of your home, where devenv's own are";
        findings.push(Finding::information("snap", saw).remedy("sudo snap remove docker"));
    }
    findings
}

const DELEGATE: &str = "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | \
    sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload";

fn rootless(facts: &Facts) -> Vec<Finding> {
    let Facts { info, machine, .. } = facts;
    if !info.is_rootless() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    if info.cgroup_version == "1" {
        let saw = "a rootless Docker can only limit its containers with cgroup v2, and this is v1";
        findings.push(
            Finding::blocks("rootless", saw)
                .remedy(kernel_argument("systemd.unified_cgroup_hierarchy=1")),
        );
    } else if info.cpu_cfs_quota == Some(false) {
        let saw =
            "a rootless Docker that isn't given the cpu controller: the kubelet wouldn't start";
        findings.push(Finding::blocks("rootless", saw).remedy(DELEGATE));
    }
    let first = machine.first_port_for_all;
    let low: Vec<String> = facts
        .wanted
        .iter()
        .flat_map(|wanted| &wanted.ports)
        .filter(|port| **port < first)
        .map(ToString::to_string)
        .collect();
    if !low.is_empty() && info.kernel_version == machine.kernel {
        let saw = format!(
            "a rootless Docker may not publish {}: ports below {first} are root's",
            low.join(" and ")
        );
        findings.push(
            Finding::blocks("rootless", saw)
                .remedy("sudo sysctl net.ipv4.ip_unprivileged_port_start=80"),
        );
    }
    let lacks_modules = machine.modules.as_ref().is_some_and(|modules| {
        let has = |name: &str| modules.iter().any(|module| module == name);
        !has("nf_tables") && !has("iptable_nat")
    });
    if info.kernel_version == machine.kernel && lacks_modules {
        let saw =
            "a rootless Docker can't load the kernel modules of iptables, and they aren't there";
        findings.push(
            Finding::blocks("kernel modules", saw)
                .remedy("sudo modprobe -a iptable_nat ip6table_nat nf_tables"),
        );
    }
    if findings.is_empty() {
        findings.push(Finding::fine("rootless", "it is, with what it needs"));
    }
    findings
}

/// What gives the kernel one more argument from its next start on.
fn kernel_argument(argument: &str) -> String {
    format!(
        "sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{argument} /' /etc/default/grub && sudo update-grub && sudo reboot"
    )
}

fn cgroups(facts: &Facts) -> Finding {
    let version = &facts.info.cgroup_version;
    if version != "1" {
        return Finding::fine("cgroup", format!("v{version}"));
    }
    match &facts.wanted {
        Some(wanted) if wanted.kubernetes >= Some(35) && !wanted.allows_cgroup_v1 => {
            let saw = format!(
                "cgroup v1, on which the kubelet of {} refuses to start (from Kubernetes 1.35 on)",
                wanted.node_image
            );
            let older = wanted
                .node_image
                .rsplit_once(':')
                .map_or("", |(name, _)| name);
            Finding::blocks("cgroup", saw).remedy(format!(
                "sed -i 's|^node-image:.*|node-image: {older}:v1.34.3|' cluster-configs/{}.yaml",
                wanted.name
            ))
        }
        _ => Finding::fine("cgroup", "v1, which Kubernetes 1.35 and later refuse"),
    }
}

fn kernel_features(info: &Info) -> Vec<Finding> {
    let mut findings = Vec::new();
    if info.memory_limit == Some(false) {
        let saw = "the kernel doesn't limit memory (no memory cgroup): the kubelet won't start";
        findings
            .push(Finding::blocks("kernel", saw).remedy(kernel_argument("cgroup_enable=memory")));
    }
    if info.ipv4_forwarding == Some(false) {
        let saw =
            "the kernel passes no packets on (net.ipv4.ip_forward = 0): pods would reach nobody";
        findings.push(Finding::blocks("kernel", saw).remedy("sudo sysctl net.ipv4.ip_forward=1"));
    }
    if findings.is_empty() {
        findings.push(Finding::fine("kernel", info.kernel_version.clone()));
    }
    findings
}

fn memory(facts: &Facts) -> Finding {
    let total = facts.info.memory;
    let told = |bytes: u64| quantity::memory(u128::from(bytes) * 1000);
    let more = match facts.info.operating_system.contains("Docker Desktop") {
        true => "docker desktop status  # then more under Settings, Resources, Memory",
        false => "docker stats --no-stream",
    };
    if total < MEMORY_AT_LEAST {
        let saw = format!("Docker has {}, kubeadm alone asks for 2 GiB", told(total));
        return Finding::blocks("memory", saw).remedy(more);
    }
    if total < MEMORY_FOR_ALL {
        let saw = format!(
            "Docker has {}; the whole platform takes up to 4.5 GiB",
            told(total)
        );
        return Finding::slows("memory", saw).remedy(more);
    }
    let is_here = facts.info.kernel_version == facts.machine.kernel;
    let runs = facts.wanted.as_ref().is_some_and(|wanted| wanted.runs);
    match facts.machine.free_memory {
        Some(free) if is_here && !runs && free < MEMORY_FOR_ALL => {
            let saw = format!(
                "of {} only {} are free; the whole platform takes up to 4.5 GiB",
                told(total),
                told(free)
            );
            Finding::slows("memory", saw).remedy(more)
        }
        Some(free) if is_here => Finding::fine(
            "memory",
            format!("{} of {} are free", told(free), told(total)),
        ),
        _ => Finding::fine("memory", told(total)),
    }
}

fn cpus(info: &Info) -> Finding {
    match info.cpus {
        0 | 1 => {
            let saw = format!(
                "Docker has {} CPU; on two, `up` takes two minutes, on one several times that",
                info.cpus
            );
            Finding::slows("cpus", saw).remedy("nproc")
        }
        count => Finding::fine("cpus", count.to_string()),
    }
}

/// A virtual machine that slept has the time it fell asleep at.
fn clock(facts: &Facts) -> Finding {
    let theirs = humantime::parse_rfc3339(&facts.info.system_time).ok();
    let (Some(theirs), Some(ours)) = (theirs, facts.machine.now) else {
        return Finding::fine("clock", "Docker doesn't tell its own");
    };
    let (skew, word) = match ours.duration_since(theirs) {
        Ok(skew) => (skew, "behind"),
        Err(error) => (error.duration(), "ahead of"),
    };
    let saw = format!(
        "Docker's clock is {} {word} this machine's",
        humantime::format_duration(Duration::from_secs(skew.as_secs()))
    );
    let remedy = match facts.info.operating_system.contains("Docker Desktop") {
        true => "docker desktop restart",
        false => "sudo timedatectl set-ntp true",
    };
    if skew > SKEW_AT_MOST {
        let saw = format!("{saw}: certificates made there aren't valid here yet, or no longer");
        return Finding::blocks("clock", saw).remedy(remedy);
    }
    match skew > SKEW {
        true => Finding::slows("clock", saw).remedy(remedy),
        false => Finding::fine("clock", "Docker's and this machine's agree"),
    }
}

fn platform(facts: &Facts) -> Finding {
    let Platform { os, architecture } = &facts.platform;
    let docker = format!("{os}/{architecture}");
    if os != "linux" {
        let saw = format!("Docker runs {os} containers, and nodes are Linux");
        return Finding::blocks("platform", saw).remedy("docker context ls");
    }
    if let Some(default) = &facts.machine.default_platform
        && *default != docker
    {
        let saw = format!(
            "DOCKER_DEFAULT_PLATFORM={default}, where Docker runs {docker}: a node of the wrong kind can't run"
        );
        return Finding::blocks("platform", saw).remedy("unset DOCKER_DEFAULT_PLATFORM");
    }
    let builds = facts.wanted.as_ref().filter(|wanted| wanted.builds);
    if let Some(wanted) = builds {
        let here = facts.machine.architecture;
        let built = format!("{} builds its images here", wanted.name);
        if !cfg!(target_os = "linux") {
            let saw = format!("{built}, and scripts/packages needs Linux");
            return Finding::blocks("platform", saw).remedy("devenv up --environment dev");
        }
        if here != architecture {
            let saw = format!("{built}, for {here}, where Docker runs {docker}");
            return Finding::blocks("platform", saw).remedy("devenv up --environment dev");
        }
        if here == "arm64" {
            let saw = format!("{built}, and the recipes have never been run on arm64");
            return Finding::information("platform", saw).remedy("devenv up --environment dev");
        }
    }
    Finding::fine("platform", docker)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rootless_docker_needs_modules_that_root_loaded() {
        let with = |modules: Option<&[&str]>| {
            let info = Info {
                security_options: Some(vec!["name=rootless".to_owned()]),
                ..Info::default()
            };
            let facts = Facts {
                address: String::new(),
                version: String::new(),
                platform: Platform {
                    os: "linux".to_owned(),
                    architecture: "amd64".to_owned(),
                },
                info,
                machine: Machine {
                    modules: modules.map(|names| names.iter().map(ToString::to_string).collect()),
                    ..Machine::default()
                },
                wanted: None,
            };
            rootless(&facts).remove(0).saw
        };
        insta::assert_snapshot!(with(Some(&["overlay"])), @"a rootless Docker can't load the kernel modules of iptables, and they aren't there");
        insta::assert_snapshot!(with(Some(&["overlay", "nf_tables"])), @"it is, with what it needs");
        insta::assert_snapshot!(with(None), @"it is, with what it needs");
    }

    #[test]
    fn versions_and_modules_are_read_as_they_are_written() {
        assert_eq!(numbers("20.10.24+dfsg1"), [20, 10, 24]);
        assert_eq!(numbers("29.1"), [29, 1, 0]);
        assert_eq!(minor("v1.35.0"), Some(35));
        assert_eq!(minor("1.34.4"), Some(34));
        assert_eq!(minor("latest"), None);
        let both = modules(
            "nf_tables 1 2 - Live 0x0\n",
            "kernel/net/ipv4/netfilter/iptable_nat.ko\n",
        );
        assert_eq!(both, ["nf_tables", "iptable_nat"]);
        assert_eq!(
            free_memory("MemTotal: 8 kB\nMemAvailable:    2048 kB\n"),
            Some(2 << 20)
        );
        assert_eq!(free_memory(""), None);
    }
}
