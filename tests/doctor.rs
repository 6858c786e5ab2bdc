//! `devenv doctor`, in worlds in which one thing is wrong: each test is a cause, made real or played, and all that is said of it.
//!
//! What is wrong with the machine is made in namespaces that end with the test: files are laid over those of `/etc` and `/proc`,
//! disks are small, and the network has nothing but loopback. Docker is played. Beyond its cause, all is well in every world.
//!
//! The README's table of causes is made of this file: of a test's name, the line above it that says how it is made, and the
//! beginning of what is said (see `the_readme_has_the_table_of_causes`).

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::engine::{Container, Engine};
use crate::harness::{Ran, Test};

const KERNEL: &str = "6.12.0-doctor";

/// $0 is devenv, and $CAUSE what is wrong.
const MACHINE: &str = r#"
    own=$PATH
    PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
    store=200g docker=300g inodes=1000000 run= helper=
    case $CAUSE in disk:*) eval "${CAUSE#disk:}"; CAUSE=;; esac
    ip link set lo up || exit 99
    mkdir -p "$HOME/.cache" "$MACHINE/docker"
    mount -t tmpfs -o size=$store none "$HOME/.cache" || exit 99
    mount -t tmpfs -o size=$docker,nr_inodes=$inodes none "$MACHINE/docker" || exit 99
    for file in $(cd "$MACHINE/files" && find . -type f); do
        mount --bind "$MACHINE/files/$file" "/$file" || exit 99
    done
    helper() {
        "$HELPERS" --quiet --ignored --exact "trial::$1" > /dev/null 2>&1 &
        helper=$!
        while [ ! -e "$READY" ]; do sleep 0.02; done
    }
    eval "$CAUSE" || exit 99
    PATH=$own
    $run "$0" "$@"
    status=$?
    [ -z "$helper" ] || kill $helper
    exit $status"#;

/// A world in which all is well.
struct World {
    engine: Engine,
    test: Test,
}

fn well() -> World {
    let engine = Engine::start();
    let test = Test::new()
        .copy("cluster-configs")
        .copy("bundles")
        .docker(&engine)
        .fake("kind", "")
        .fake("git", "")
        .fake("getent", "exit 2")
        .args(["doctor", "-e", "packages"]);
    let machine = test.path("machine");
    for (name, value) in [
        ("CgroupVersion", json!("2")),
        ("DockerRootDir", json!(machine.join("docker"))),
        ("Driver", json!("overlay2")),
        ("DriverStatus", json!([["Backing Filesystem", "extfs"]])),
        ("KernelVersion", json!(KERNEL)),
        ("MemTotal", json!(16_u64 << 30)),
        ("NCPU", json!(8)),
        ("SystemTime", json!(rfc3339(SystemTime::now()))),
    ] {
        engine.world().info.insert(name.to_owned(), value);
    }
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let world = World { engine, test };
    world.engine.world().networks = vec![
        ("bridge".to_owned(), "172.17.0.0/16".to_owned()),
        ("kind".to_owned(), "172.18.0.0/16".to_owned()),
    ];
    world
        .docker_is("29.1.0", architecture)
        .file("etc/hosts", "127.0.0.1 localhost\n")
        .file("etc/nsswitch.conf", "hosts: files dns\n")
        .file("etc/resolv.conf", "nameserver 127.0.0.1\n")
        .file("proc/meminfo", "MemAvailable:   12582912 kB\n")
        .file("proc/version", "Linux version 6.12.0\n")
        .file("proc/sys/kernel/osrelease", KERNEL)
        .file("proc/sys/fs/inotify/max_user_instances", "8192")
        .file("proc/sys/fs/inotify/max_user_watches", "524288")
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

impl World {
    /// A file of the machine.
    fn file(self, path: &str, text: &str) -> Self {
        let path = self.test.path("machine/files").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn with(self, change: impl FnOnce(Test) -> Test) -> Self {
        Self {
            test: change(self.test),
            ..self
        }
    }

    fn docker_is(self, version: &str, architecture: &str) -> Self {
        self.engine.world().version = Some((version.to_owned(), architecture.to_owned()));
        self
    }

    fn docker_says(self, key: &str, value: Value) -> Self {
        self.engine.world().info.insert(key.to_owned(), value);
        self
    }

    fn container(self, container: Container) -> Self {
        self.engine.world().containers.push(container);
        self
    }

    /// What a shell does to the machine before devenv runs.
    fn cause(self, script: &str) -> Self {
        self.with(|test| test.env("CAUSE", script))
    }

    /// Devenv is run by an ordinary user. In the kernel's eyes that may still be the owner of files that tests make.
    fn by_user(self) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let hosts = self.test.path("machine/files/etc/hosts");
        fs::set_permissions(hosts, fs::Permissions::from_mode(0o444)).unwrap();
        self.cause("run='/usr/bin/unshare --user --map-user=54321'")
    }

    fn run(self) -> Ran {
        let path = |name: &str| self.test.path(name).display().to_string();
        let (machine, ready) = (path("machine"), path("ready"));
        let helpers = std::env::current_exe().unwrap().display().to_string();
        self.test
            .env("MACHINE", &machine)
            .env("READY", &ready)
            .env("HELPERS", &helpers)
            .under([
                "unshare",
                "--map-root-user",
                "--mount",
                "--net",
                "/bin/sh",
                "-c",
                MACHINE,
            ])
            .start()
            .wait()
    }

    fn says(self) -> String {
        self.run().transcript()
    }
}

#[test]
fn all_is_well() {
    let world = well().with(|test| test.args(["doctor", "-e", "packages", "-v"]));
    insta::assert_snapshot!(world.says(), @r"
    fine    docker         29.1.0 at unix:[engine]/docker.sock
    fine    storage        overlay2 on extfs
    fine    cgroup         v2
    fine    kernel         6.12.0-doctor
    fine    memory         12.0 GiB of 16.0 GiB are free
    fine    cpus           8
    fine    clock          Docker's and this machine's agree
    fine    platform       linux/amd64
    fine    docker's disk  300.0 GiB are free where [temp]/machine/docker is
    fine    inotify        8192 instances, 524288 watches
    fine    ports          80, 443: free
    fine    addresses      kind has 172.18.0.0/16, and nobody else
    fine    proxy          none
    fine    leftovers      none
    fine    git            [temp]/bin/git
    fine    kind           [temp]/bin/kind
    fine    store's disk   200.0 GiB are free where [temp]/home/.cache/devenv/store is; 15 to be fetched
    fine    name lookup    hosts: files dns
    fine    name lookup    argocd.local isn't known, and that is known at once
    fine    zone           the DNS servers here don't know `local`
    fine    hosts file     this user may write it
    fine    registries     none is needed: images are built here
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    ");
}

#[test]
fn all_is_well_for_programs() {
    let world = well().with(|test| test.args(["doctor", "-e", "packages", "-o", "json"]));
    let ran = world.run();
    let findings: Value = serde_json::from_str(&ran.stdout).unwrap();
    let names: Vec<_> = findings
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["name"])
        .collect();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(names.len() > 15, "{names:?}");
    insta::assert_snapshot!(findings[1], @r#"{"name":"storage","remedy":null,"saw":"overlay2 on extfs","severity":"fine"}"#);
}

#[test]
fn without_a_project_the_machine_is_looked_at() {
    let mut world = well();
    world.test = Test::new()
        .docker(&world.engine)
        .fake("git", "")
        .args(["doctor"]);
    let world = world
        .docker_says("KernelVersion", json!("of a virtual machine"))
        .with(|test| test.fake("kind", "").fake("getent", "exit 2"))
        .file("etc/hosts", "127.0.0.1 localhost\n");
    insta::assert_snapshot!(world.says(), @r"
    --- stderr
    [time] there is no `cluster-configs/` here: only the machine is looked at, not what an environment needs of it
    nothing is in the way: 16 things were looked at (-v shows them)
    --- status 0
    ");
}

// Docker.

/// Made: nothing is at Docker's address.
#[test]
fn docker_is_not_there() {
    let world = well().with(|test| test.env("DOCKER_HOST", "unix:///nowhere.sock"));
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  docker  Docker isn't installed: nothing is at unix:///nowhere.sock, and there is no `docker` on PATH
                    see https://docs.docker.com/engine/install
    --- stderr
    of 9 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a socket that nobody listens at any more.
#[test]
fn docker_is_stopped() {
    let world = well();
    let socket = world.test.path("stopped.sock");
    drop(UnixListener::bind(&socket).unwrap());
    let address = format!("unix://{}", socket.display());
    let world = world.with(|test| test.env("DOCKER_HOST", &address));
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  docker  Docker isn't running: nobody listens at unix://[temp]/stopped.sock
                    $ sudo systemctl start docker
    --- stderr
    of 9 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a socket without rights, a user who isn't root.
#[test]
fn docker_does_not_let_us_in() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = well().by_user();
    let socket = world.engine.folder().join("docker.sock");
    fs::set_permissions(socket, fs::Permissions::from_mode(0o0)).unwrap();
    insta::assert_snapshot!(world.says(), @r#"
    BLOCKS  docker      Docker doesn't let us in: no permission to use unix:[engine]/docker.sock
                        $ sudo usermod -aG docker "$USER"
    slows   hosts file  only root may write it, and there is no sudo: the names won't be wired (exit code 4)
                        $ devenv hosts show
    --- stderr
    of 9 things that were looked at, 1 blocks `up`, 1 slows `up`
    --- status 1
    "#);
}

/// Made: a listener that never answers.
#[test]
fn docker_hangs() {
    let world = well();
    let socket = world.test.path("silent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let address = format!("unix://{}", socket.display());
    let world = world.with(|test| test.env("DOCKER_HOST", &address));
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  docker  no answer within [time]
                    $ docker version
    --- stderr
    of 9 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker.
#[test]
fn docker_is_too_old() {
    insta::assert_snapshot!(well().docker_is("19.03.15", "amd64").says(), @r"
    BLOCKS  docker version  Docker 19.03.15 is too old: it can't give nodes a cgroup namespace, which 20.10 can
                            see https://docs.docker.com/engine/install
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker.
#[test]
fn published_ports_are_not_kept_to_loopback() {
    insta::assert_snapshot!(well().docker_is("28.3.2", "amd64").says(), @r"
    info    loopback  Docker 28.3.2 doesn't always keep ports that are published on 127.0.0.1 from machines on the same network (moby#45610, CVE-2025-54388); 28.3.3 does
                      see https://docs.docker.com/engine/install
    --- stderr
    nothing is in the way: 23 things were looked at (-v shows them)
    --- status 0
    ");
}

/// Made: played Docker.
#[test]
fn layers_are_copied() {
    insta::assert_snapshot!(well().docker_says("Driver", json!("vfs")).says(), @r"
    slows   storage  the driver vfs copies every layer whole: a node takes minutes and many GiB
                     $ grep overlay /proc/filesystems
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: played Docker.
#[test]
fn xfs_without_ftype() {
    let status = json!([["Backing Filesystem", "xfs"], ["Supports d_type", "false"]]);
    insta::assert_snapshot!(well().docker_says("DriverStatus", status).says(), @r"
    BLOCKS  storage  overlay2 on xfs without d_type: layers can't be laid over each other
                     $ xfs_info /var/lib/docker | grep ftype
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker.
#[test]
fn containerds_image_store() {
    let status = json!([["driver-type", "io.containerd.snapshotter.v1"]]);
    insta::assert_snapshot!(well().docker_says("DriverStatus", status).says(), @r#"
    info    image store  Docker keeps images in containerd's store; devenv doesn't mind, but `kind load` may fail with "content digest not found" (kind#3795)
    --- stderr
    nothing is in the way: 23 things were looked at (-v shows them)
    --- status 0
    "#);
}

/// Made: played Docker.
#[test]
fn docker_from_snap() {
    let root = json!("/var/snap/docker/common/var-lib-docker");
    insta::assert_snapshot!(well().docker_says("DockerRootDir", root).says(), @r"
    info    snap  Docker is the snap package, which doesn't see hidden folders of your home, where devenv's own are
                  $ sudo snap remove docker
    --- stderr
    nothing is in the way: 23 things were looked at (-v shows them)
    --- status 0
    ");
}

/// Made: played Docker.
#[test]
fn rootless_without_the_cpu_controller() {
    let world = well()
        .docker_says("SecurityOptions", json!(["name=seccomp", "name=rootless"]))
        .docker_says("CpuCfsQuota", json!(false))
        .cause("echo 80 > /proc/sys/net/ipv4/ip_unprivileged_port_start");
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  rootless  a rootless Docker that isn't given the cpu controller: the kubelet wouldn't start
                      $ sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\nDelegate=cpu cpuset io memory pids\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload
    --- stderr
    of 23 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker, a network namespace with the kernel's default.
#[test]
fn rootless_and_low_ports() {
    let world = well().docker_says("SecurityOptions", json!(["name=rootless"]));
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  rootless  a rootless Docker may not publish 80 and 443: ports below 1024 are root's
                      $ sudo sysctl net.ipv4.ip_unprivileged_port_start=80
    --- stderr
    of 23 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker, `node-image: kindest/node:v1.35.0`.
#[test]
fn cgroup_v1_under_kubernetes_1_35() {
    let world = well()
        .docker_says("CgroupVersion", json!("1"))
        .with(|test| {
            let path = test.path("project/cluster-configs/packages.yaml");
            let text = fs::read_to_string(path).unwrap();
            let image = "packages.devenv.test/node:1.34.4";
            test.file(
                "cluster-configs/packages.yaml",
                &text.replace(image, "kindest/node:v1.35.0"),
            )
        });
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  cgroup  cgroup v1, on which the kubelet of docker.io/kindest/node:v1.35.0 refuses to start (from Kubernetes 1.35 on)
                    $ sed -i 's|^node-image:.*|node-image: docker.io/kindest/node:v1.34.3|' cluster-configs/packages.yaml
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker.
#[test]
fn no_memory_cgroup() {
    insta::assert_snapshot!(well().docker_says("MemoryLimit", json!(false)).says(), @r#"
    BLOCKS  kernel  the kernel doesn't limit memory (no memory cgroup): the kubelet won't start
                    $ sudo sed -i 's/^GRUB_CMDLINE_LINUX="/&cgroup_enable=memory /' /etc/default/grub && sudo update-grub && sudo reboot
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    "#);
}

/// Made: played Docker.
#[test]
fn no_packet_is_passed_on() {
    insta::assert_snapshot!(well().docker_says("IPv4Forwarding", json!(false)).says(), @r"
    BLOCKS  kernel  the kernel passes no packets on (net.ipv4.ip_forward = 0): pods would reach nobody
                    $ sudo sysctl net.ipv4.ip_forward=1
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker.
#[test]
fn far_too_little_memory() {
    let memory = json!(1_500_000_000_u64);
    insta::assert_snapshot!(well().docker_says("MemTotal", memory).says(), @r"
    BLOCKS  memory  Docker has 1.4 GiB, kubeadm alone asks for 2 GiB
                    $ docker stats --no-stream
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker.
#[test]
fn little_memory() {
    let world = well()
        .docker_says("MemTotal", json!(4_u64 << 30))
        .docker_says("OperatingSystem", json!("Docker Desktop"));
    insta::assert_snapshot!(world.says(), @r"
    slows   memory  Docker has 4.0 GiB; the whole platform takes up to 4.5 GiB
                    $ docker desktop status  # then more under Settings, Resources, Memory
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: another /proc/meminfo.
#[test]
fn memory_that_others_use() {
    let world = well().file("proc/meminfo", "MemAvailable:    2097152 kB\n");
    insta::assert_snapshot!(world.says(), @r"
    slows   memory  of 16.0 GiB only 2.0 GiB are free; the whole platform takes up to 4.5 GiB
                    $ docker stats --no-stream
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: played Docker.
#[test]
fn one_cpu() {
    insta::assert_snapshot!(well().docker_says("NCPU", json!(1)).says(), @r"
    slows   cpus  Docker has 1 CPU; on two, `up` takes two minutes, on one several times that
                  $ nproc
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: played Docker, whose clock is 25 minutes behind.
#[test]
fn a_clock_that_slept() {
    let then = SystemTime::now() - Duration::from_secs(1500);
    let world = well().docker_says("SystemTime", json!(rfc3339(then)));
    let says = world.says();
    insta::assert_snapshot!(says.replace("25m 1s", "25m").replace("25m 2s", "25m"), @r"
    BLOCKS  clock  Docker's clock is 25m behind this machine's: certificates made there aren't valid here yet, or no longer
                   $ sudo timedatectl set-ntp true
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a variable of the shell.
#[test]
fn another_default_platform() {
    let world = well()
        .docker_is("29.1.0", "arm64")
        .with(|test| test.env("DOCKER_DEFAULT_PLATFORM", "linux/amd64"));
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  platform  DOCKER_DEFAULT_PLATFORM=linux/amd64, where Docker runs linux/arm64: a node of the wrong kind can't run
                      $ unset DOCKER_DEFAULT_PLATFORM
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker of another architecture, an environment that builds its images.
#[test]
fn images_built_for_another_architecture() {
    let other = match std::env::consts::ARCH {
        "aarch64" => "amd64",
        _ => "arm64",
    };
    let says = well().docker_is("29.1.0", other).says();
    if other == "arm64" {
        insta::assert_snapshot!(says, @r"
        BLOCKS  platform  packages builds its images here, for amd64, where Docker runs linux/arm64
                          $ devenv up --environment dev
        --- stderr
        of 22 things that were looked at, 1 blocks `up`
        --- status 1
        ");
    }
}

// The machine.

/// Made: a disk of 600 MiB.
#[test]
fn dockers_disk_is_full() {
    insta::assert_snapshot!(well().cause("disk:docker=600m").says(), @r"
    BLOCKS  docker's disk  600 MiB are free where [temp]/machine/docker is; a node with the whole platform takes 5 GiB
                           $ docker system prune
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a disk of 3 GiB.
#[test]
fn dockers_disk_is_nearly_full() {
    insta::assert_snapshot!(well().cause("disk:docker=3g").says(), @r"
    slows   docker's disk  3.0 GiB are free where [temp]/machine/docker is; a node with the whole platform takes 5 GiB
                           $ docker system prune
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a disk for 5000 files.
#[test]
fn dockers_disk_has_no_room_for_files() {
    insta::assert_snapshot!(well().cause("disk:inodes=5001").says(), @r"
    BLOCKS  docker's disk  5000 more files fit where [temp]/machine/docker is; a node needs 100000
                           $ docker system prune
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a disk of 100 MiB.
#[test]
fn the_stores_disk_is_full() {
    insta::assert_snapshot!(well().cause("disk:store=100m").says(), @r"
    BLOCKS  store's disk  100 MiB are free where [temp]/home/.cache/devenv/store is; 15 images and files are missing there, all of them take 3 GiB
                          $ df -h [temp]/home/.cache/devenv/store
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: other files in /proc/sys/fs/inotify.
#[test]
fn inotify_limits_of_long_ago() {
    let world = well()
        .file("proc/sys/fs/inotify/max_user_instances", "128")
        .file("proc/sys/fs/inotify/max_user_watches", "8192");
    insta::assert_snapshot!(world.says(), @r#"
    slows   inotify  fs.inotify.max_user_instances = 128, max_user_watches = 8192; a busy node uses up 128 and 8192 ("too many open files")
                     $ printf 'fs.inotify.max_user_instances=512\nfs.inotify.max_user_watches=524288\n' | sudo tee /etc/sysctl.d/90-inotify.conf && sudo sysctl --system
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    "#);
}

/// Made: a PATH without it.
#[test]
fn git_is_not_there() {
    let world = well();
    fs::remove_file(world.test.path("bin/git")).unwrap();
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  git  git is not on PATH, and it makes what is pushed into the cluster
                 $ sudo apt-get install git
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a PATH without it.
#[test]
fn kind_is_not_there() {
    let world = well();
    fs::remove_file(world.test.path("bin/kind")).unwrap();
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  kind  kind is not on PATH; scripts/up builds it from its Go module
                  $ go install sigs.k8s.io/kind@v0.33.0
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

// Networks.

/// Made: a process that listens.
#[test]
fn a_port_is_taken_by_a_process() {
    let world = well().cause("LISTEN=0.0.0.0:443; export LISTEN; helper listener");
    let says = world.says();
    let pattern = regex::Regex::new(r"by \S+ \(pid").unwrap();
    insta::assert_snapshot!(pattern.replace(&says, "by [process] (pid"), @r"
    BLOCKS  ports  127.0.0.1:443 is taken by [process] (pid [pid])
                   or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
                         - {listenAddress: 127.0.0.1, hostPort: 8080, containerPort: 80}
                         - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443}
                   the names are then https://argocd.local:8443, https://keycloak.local:8443, https://logs.local:8443
                   $ kill [pid]
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker with a container, a process that listens.
#[test]
fn a_port_is_taken_by_a_container() {
    let world = well()
        .container(Container {
            name: "web".to_owned(),
            image: "nginx:1".to_owned(),
            state: "running".to_owned(),
            ports: vec![(80, "127.0.0.1".to_owned(), 80)],
            ..Container::default()
        })
        .cause("LISTEN=127.0.0.1:80; export LISTEN; helper listener");
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  ports  127.0.0.1:80 is taken by the container web (nginx:1)
                   or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
                         - {listenAddress: 127.0.0.1, hostPort: 8080, containerPort: 80}
                         - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443}
                   the names are then https://argocd.local:8443, https://keycloak.local:8443, https://logs.local:8443
                   $ docker stop web
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: played Docker with another environment's stopped node, its label.
#[test]
fn a_port_is_taken_by_a_stopped_environment() {
    let world = well();
    let mark = labelled(
        &world,
        "0123456789ab",
        "other/cluster-configs/team.yaml",
        true,
    );
    let local = |inside, outside| (inside, "127.0.0.1".to_owned(), outside);
    let world = world.container(Container {
        state: "exited".to_owned(),
        mounts: vec![mark],
        ports: vec![local(80, 80), local(443, 443), local(6443, 40123)],
        ..Container::node("devenv-team", "0123456789ab")
    });
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  ports  127.0.0.1:80 and 127.0.0.1:443 are taken by the environment team of [temp]/other/cluster-configs/team.yaml, which needs it when it is started again
                   or publish ports that are free, in [temp]/project/cluster-configs/kind.yaml (or in a copy of it, where other environments name it too):
                         - {listenAddress: 127.0.0.1, hostPort: 8080, containerPort: 80}
                         - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443}
                   the names are then https://argocd.local:8443, https://keycloak.local:8443, https://logs.local:8443
                   $ devenv down --environment [temp]/other/cluster-configs/team.yaml
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a route of the network namespace, as a VPN has it.
#[test]
fn a_vpn_has_the_nodes_addresses() {
    let world = well().cause("ip route add 172.18.0.0/24 dev lo");
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  addresses  Docker's network kind has 172.18.0.0/16, and lo leads to 172.18.0.0/24, a VPN perhaps: this machine can't reach the nodes
                       $ docker network rm kind && docker network create kind --subnet 172.31.0.0/16 -o com.docker.network.bridge.enable_ip_masquerade=true
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: a route of the network namespace, as a VPN has it.
#[test]
fn a_vpn_has_more_than_the_nodes_addresses() {
    let world = well().cause("ip route add 172.16.0.0/12 dev lo");
    insta::assert_snapshot!(world.says(), @r"
    slows   addresses  Docker's network kind has 172.18.0.0/16, and lo leads to 172.16.0.0/12, a VPN perhaps: what is there can't be reached from here
                       $ docker network rm kind && docker network create kind --subnet 192.168.255.0/24 -o com.docker.network.bridge.enable_ip_masquerade=true
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: played Docker with 31 networks.
#[test]
fn no_room_for_another_network() {
    let world = well();
    let networks = (0..31).map(|number| (format!("n{number}"), format!("10.{number}.0.0/16")));
    world.engine.world().networks = networks.collect();
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  address pools  Docker has 31 networks, and its address pools have room for 31 unless daemon.json gives them more: one for the nodes can't be made
                           $ docker network prune
    --- stderr
    of 23 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

/// Made: variables of the shell.
#[test]
fn a_proxy_on_loopback() {
    let world = well().with(|test| {
        test.env("HTTPS_PROXY", "http://me:secret@127.0.0.1:3128")
            .env("NO_PROXY", "localhost,.local")
    });
    insta::assert_snapshot!(world.says(), @r#"
    slows   proxy  HTTPS_PROXY leads to 127.0.0.1, kind passes that on, and in a node 127.0.0.1 is the node itself: nothing in the cluster gets out, unless the proxy listens on Docker's bridge (172.17.0.1) and is named so
                   $ export HTTPS_PROXY="${HTTPS_PROXY/127.0.0.1/172.17.0.1}"
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    "#);
}

/// Made: variables of the shell.
#[test]
fn a_proxy_that_is_asked_for_the_platforms_names() {
    let world = well().with(|test| test.env("https_proxy", "http://me:secret@proxy.corp:3128"));
    insta::assert_snapshot!(world.says(), @r#"
    slows   proxy  HTTPS_PROXY leads to proxy.corp, and NO_PROXY lacks .local: curl and others ask the proxy for the platform's names
                   $ export NO_PROXY="${NO_PROXY:+$NO_PROXY,}.local,localhost,127.0.0.1"
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    "#);
}

/// Made: played Docker.
#[test]
fn a_proxy_that_only_docker_knows() {
    let proxy = json!("http://proxy.corp:3128");
    insta::assert_snapshot!(well().docker_says("HttpsProxy", proxy).says(), @r"
    slows   proxy  Docker's daemon goes through http://proxy.corp:3128, this shell through none: kind gives its nodes what the shell has
                   $ export HTTPS_PROXY=http://proxy.corp:3128 HTTP_PROXY=http://proxy.corp:3128
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a network namespace with nothing but loopback, an environment whose images come from registries.
#[test]
fn no_registry_answers() {
    let world = well().with(|test| test.args(["doctor"]));
    insta::assert_snapshot!(world.says(), @r"
    BLOCKS  registries  7 of 7 don't answer within [time] (ghcr.io, istio-release.storage.googleapis.com, public.ecr.aws, quay.io, raw.githubusercontent.com, registry-1.docker.io, registry.istio.io), and 20 images and files are missing in the store
                        $ devenv up --environment packages
    --- stderr
    of 22 things that were looked at, 1 blocks `up`
    --- status 1
    ");
}

// Names.

/// Made: another /etc/nsswitch.conf.
#[test]
fn nobody_asks_the_hosts_file() {
    insta::assert_snapshot!(well().file("etc/nsswitch.conf", "hosts: dns\n").says(), @r"
    slows   name lookup  /etc/nsswitch.conf says `hosts: dns`: nobody asks the hosts file, where the platform's names go
                         $ sudo sed -i 's/^hosts:.*/hosts: files dns/' /etc/nsswitch.conf
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: another /etc/nsswitch.conf.
#[test]
fn mdns_is_asked_first() {
    let order = "hosts: mdns4_minimal [NOTFOUND=return] files dns\n";
    insta::assert_snapshot!(well().file("etc/nsswitch.conf", order).says(), @r"
    slows   name lookup  /etc/nsswitch.conf says `hosts: mdns4_minimal [NOTFOUND=return] files dns`: mdns4_minimal is asked before the hosts file, for seconds at each name
                         $ sudo sed -i 's/^hosts:.*/hosts: files mdns4_minimal [NOTFOUND=return] dns/' /etc/nsswitch.conf
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a `getent` that takes its time.
#[test]
fn names_are_found_slowly() {
    let world = well().with(|test| test.fake("getent", "exec sleep 5"));
    insta::assert_snapshot!(world.says(), @r"
    slows   name lookup  the answer for argocd.local takes more than [time]: the whole network is asked for it first, as mDNS does for .local
                         $ time getent ahosts argocd.local
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a `getent` with another answer.
#[test]
fn somebody_on_the_network_has_the_name() {
    let world = well().with(|test| test.fake("getent", "echo 192.168.7.7 STREAM argocd.local"));
    insta::assert_snapshot!(world.says(), @r"
    info    name lookup  argocd.local leads to 192.168.7.7 now, and not here: somebody on the network has that name
                         $ getent ahosts argocd.local
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    ");
}

/// Made: a DNS server in the network namespace.
#[test]
fn the_network_has_a_zone_local() {
    insta::assert_snapshot!(well().cause("helper dns").says(), @r"
    info    zone  the DNS servers here have a zone `local`: a name of the platform that the hosts file lacks is looked for there
                  $ sed -i 's/^domain:.*/domain: test/' [temp]/project/cluster-configs/packages.yaml
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    ");
}

/// Made: a DNS server in the network namespace, another /etc/resolv.conf.
#[test]
fn a_search_domain_that_answers_everything() {
    let world = well()
        .file(
            "etc/resolv.conf",
            "search corp.test\nnameserver 127.0.0.1\n",
        )
        .with(|test| {
            let path = test.path("project/cluster-configs/packages.yaml");
            let text = fs::read_to_string(path).unwrap();
            test.file(
                "cluster-configs/packages.yaml",
                &text.replace("domain: local", "domain: test"),
            )
        })
        .cause("helper dns");
    insta::assert_snapshot!(world.says(), @r"
    slows   search domain  every name below the search domain corp.test leads to 10.66.66.66, and pods search there too: they would find 10.66.66.66 for names outside
                           $ sed -i '/^apiVersion:/a networking: {dnsSearch: []}' [temp]/project/cluster-configs/kind.yaml
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: another /etc/hosts.
#[test]
fn a_line_of_the_hosts_file_leads_elsewhere() {
    let world = well().file("etc/hosts", "127.0.0.1 localhost\n10.0.0.9 argocd.local\n");
    insta::assert_snapshot!(world.says(), @r"
    slows   hosts file  line 2 leads argocd.local to 10.0.0.9, and that line isn't devenv's to change
                        $ sudoedit /etc/hosts
    --- stderr
    of 23 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a user who isn't root, a PATH without sudo.
#[test]
fn nobody_may_write_the_hosts_file() {
    insta::assert_snapshot!(well().by_user().says(), @r"
    slows   hosts file  only root may write it, and there is no sudo: the names won't be wired (exit code 4)
                        $ devenv hosts show
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a user who isn't root, a PATH with sudo.
#[test]
fn sudo_is_needed_for_the_hosts_file() {
    let world = well().by_user().with(|test| test.fake("sudo", "exit 1"));
    let ran = world.run();
    insta::assert_snapshot!(ran.transcript(), @r"
    info    hosts file  only root may write it: sudo will ask for a password, once
                        $ devenv hosts apply
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    ");
    assert_eq!(ran.test.calls("sudo"), [""; 0]);
}

/// Made: another /proc/version, a /mnt/c.
#[test]
fn windows_has_a_hosts_file_of_its_own() {
    let world = well()
        .file(
            "proc/version",
            "Linux version 5.15-microsoft-standard-WSL2\n",
        )
        .cause(
            "mount -t tmpfs none /mnt && mkdir -p /mnt/c/Windows/System32/drivers/etc && \
             echo > /mnt/c/Windows/System32/drivers/etc/hosts",
        );
    insta::assert_snapshot!(world.says(), @r#"
    info    windows  Windows' browsers read Windows' own hosts file; in a PowerShell run as administrator: Add-Content $env:SystemRoot\System32\drivers\etc\hosts "`n127.0.0.1 argocd.local keycloak.local logs.local"; and WSL writes /etc/hosts anew when it starts, unless /etc/wsl.conf says generateHosts=false below [network]
    --- stderr
    nothing is in the way: 23 things were looked at (-v shows them)
    --- status 0
    "#);
}

// Leftovers.

/// The mark of an environment with a label that leads to this file; the file is there, or gone.
fn labelled(world: &World, id: &str, file: &str, is_there: bool) -> (String, String) {
    let file = world.test.path(file);
    if is_there {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
    }
    let folder = world
        .test
        .path("home/.local/share/devenv/environments")
        .join(id);
    fs::create_dir_all(folder.join("mark")).unwrap();
    fs::write(folder.join("file"), format!("{}\n", file.display())).unwrap();
    let mark = folder.join("mark").display().to_string();
    (mark, format!("/devenv/{id}"))
}

/// Made: played Docker with a node, a label that leads to no file.
#[test]
fn a_cluster_whose_file_is_gone() {
    let world = well();
    let mark = labelled(
        &world,
        "0123456789ab",
        "gone/cluster-configs/old.yaml",
        false,
    );
    let world = world.container(Container {
        mounts: vec![mark],
        ..Container::node("devenv-old", "0123456789ab")
    });
    insta::assert_snapshot!(world.says(), @r"
    slows   leftovers  the cluster devenv-old is of [temp]/gone/cluster-configs/old.yaml, which is gone; it holds its ports and gigabytes of memory
                       $ docker rm --force --volumes devenv-old-control-plane
    --- stderr
    of 22 things that were looked at, 1 slows `up`
    --- status 0
    ");
}

/// Made: a data folder, a label that leads to no file.
#[test]
fn a_folder_whose_environment_is_gone() {
    let world = well();
    labelled(
        &world,
        "0123456789ab",
        "gone/cluster-configs/old.yaml",
        false,
    );
    insta::assert_snapshot!(world.says(), @r"
    info    leftovers  [temp]/home/.local/share/devenv/environments/[id] (a kubeconfig) is of [temp]/gone/cluster-configs/old.yaml, which is gone
                       $ rm -r [temp]/home/.local/share/devenv/environments/[id]
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    ");
}

/// Made: another /etc/hosts.
#[test]
fn a_block_of_the_hosts_file_whose_environment_is_gone() {
    let world = well().file(
        "etc/hosts",
        "127.0.0.1 localhost\n# BEGIN devenv old 0123456789ab v1 nl=0\n127.0.0.1 old.local\n# END devenv old 0123456789ab\n",
    );
    let says = world.says();
    let devenv = env!("CARGO_BIN_EXE_devenv");
    insta::assert_snapshot!(says.replace(devenv, "[devenv]"), @r#"
    info    leftovers  /etc/hosts has a block of the environment old [id], of which nothing else is here
                       $ printf %s '{"action":"remove","environment":"old","id":"[id]"}' | sudo -- [devenv] __hosts
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    "#);
}

/// Made: played Docker with volumes.
#[test]
fn volumes_that_nobody_has() {
    let world = well();
    world.engine.world().volumes = vec![("1".repeat(64), 1), ("2".repeat(64), 1)];
    insta::assert_snapshot!(world.says(), @r"
    info    leftovers  2 volumes without a name belong to no container any more; a node's has gigabytes
                       $ docker volume prune
    --- stderr
    nothing is in the way: 22 things were looked at (-v shows them)
    --- status 0
    ");
}

// What `up` makes of it.

#[test]
fn up_looks_before_it_makes_anything() {
    let up = |world: World| world.with(|test| test.args(["up", "-e", "packages"]));
    let blocked = up(well()
        .docker_says("MemoryLimit", json!(false))
        .docker_says("IPv4Forwarding", json!(false)));
    let ran = blocked.run();
    insta::assert_snapshot!(ran.transcript(), @r#"
    --- stderr
    [time] packages leaves out: loki, promtail, grafana, keycloak-operator
    error: kernel: the kernel doesn't limit memory (no memory cgroup): the kubelet won't start
    kernel: the kernel passes no packets on (net.ipv4.ip_forward = 0): pods would reach nobody

    hint: `sudo sed -i 's/^GRUB_CMDLINE_LINUX="/&cgroup_enable=memory /' /etc/default/grub && sudo update-grub && sudo reboot`; `devenv doctor` looks at everything
    --- status 1
    "#);
    assert_eq!(ran.test.calls("kind"), [""; 0]);
    // What only slows is said, and it goes on: as far as the images, which nobody builds here.
    let slowed = up(well().file("proc/sys/fs/inotify/max_user_instances", "256"));
    let says = slowed.says();
    insta::assert_snapshot!(says.lines().take(4).collect::<Vec<_>>().join("\n"), @r#"
    --- stderr
    [time] packages leaves out: loki, promtail, grafana, keycloak-operator
    [time] inotify: fs.inotify.max_user_instances = 256, max_user_watches = 524288; a busy node uses up 128 and 8192 ("too many open files")
    [time] store
    "#);
}

/// The table of causes, from this file: names, how they are made, and what is said first.
fn causes() -> String {
    let mut table = "| cause | made by | | what is said |\n|---|---|---|---|\n".to_owned();
    let source = include_str!("doctor.rs");
    for test in source.split("\n/// Made: ").skip(1) {
        let Some((made, rest)) = test.split_once(".\n#[test]\nfn ") else {
            continue;
        };
        let (Some((name, _)), Some(said)) = (rest.split_once("()"), said(rest)) else {
            continue;
        };
        table += &format!("| {} | {made} | {said} |\n", name.replace('_', " "));
    }
    table
}

/// The first finding in a test's first snapshot.
fn said(test: &str) -> Option<String> {
    let line = test.lines().map(str::trim_start).find(|line| {
        ["BLOCKS ", "slows ", "info "]
            .iter()
            .any(|word| line.starts_with(word))
    })?;
    let (severity, rest) = line.split_once(' ')?;
    let (name, saw) = rest.trim_start().split_once("  ")?;
    let saw = saw
        .trim_start()
        .replace('|', "\\|")
        .replace("[temp]/project/", "")
        .replace("[temp]", "…");
    Some(format!("{} | {name}: {saw}", severity.to_lowercase()))
}

#[test]
fn the_readme_has_the_table_of_causes() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let table = causes();
    assert!(table.lines().count() > 40, "{table}");
    assert!(
        readme.contains(&table),
        "the README's table is to be:\n{table}"
    );
}
