//! A second Docker with a network, a disk, a hosts file and names of its own, so that it can be killed, filled and counted while
//! nobody else on this machine notices. There is no way out of its network: no registry, and no DNS.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::e2e::{printed, program};
use crate::harness::{is_alive, wait_for};

/// Of the disk, which is a part of this machine's memory.
const GIBIBYTES: u64 = 8;

/// A daemon and the namespaces that it lives in.
pub(crate) struct SecondDocker {
    folder: tempfile::TempDir,
    /// Holds the namespaces as long as it runs.
    holder: Child,
    daemon: Option<Child>,
}

impl SecondDocker {
    pub(crate) fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("devenv-docker-")
            .tempdir()
            .unwrap();
        let script = format!(
            "set -e
            cd '{}'
            mkdir docker
            mount -t tmpfs -o size={GIBIBYTES}g devenv-test docker
            cp /etc/hosts hosts && mount --bind hosts /etc/hosts
            echo 'nameserver 192.0.2.1' >names && mount --bind names /etc/resolv.conf
            ip link set lo up
            echo ready
            exec cat",
            folder.path().display()
        );
        let mut holder = program("unshare")
            .args(["--net", "--mount", "--propagation", "private"])
            .args(["sh", "-c", &script])
            .env("PATH", path_with_system_programs())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n", "there are no namespaces for it");
        let mut docker = Self {
            folder,
            holder,
            daemon: None,
        };
        docker.start_daemon();
        docker
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As `DOCKER_HOST` wants it.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// A program that sees what this Docker's machine would see, and starts in a folder there.
    pub(crate) fn program(&self, name: &str, folder: &Path) -> Command {
        let mut command = program("nsenter");
        command
            .arg(format!("--target={}", self.holder.id()))
            .args(["--net", "--mount", "env", "--chdir"])
            .arg(folder)
            .arg(name)
            .env("DOCKER_HOST", self.address())
            .env("PATH", path_with_system_programs());
        command
    }

    /// What a program there prints.
    pub(crate) fn output(&self, name: &str, args: &[&str]) -> String {
        printed(self.program(name, Path::new("/")).args(args))
    }

    pub(crate) fn start_daemon(&mut self) {
        // A killed one leaves its number, which may be another process's by now; and its containerd, which ends with it, a bit
        // later: a new dockerd takes that for its own, and gives up.
        let _ = fs::remove_file(self.path("docker.pid"));
        let containerd = self.path("run/containerd/containerd.pid");
        if let Ok(pid) = fs::read_to_string(&containerd) {
            wait_for("the killed dockerd's containerd to end", || {
                (!is_alive(&pid)).then_some(())
            });
            fs::remove_file(&containerd).unwrap();
        }
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let option = |name: &str, path: &str| format!("--{name}={}", self.path(path).display());
        let daemon = self
            .program("setpriv", Path::new("/"))
            .args(["--pdeathsig", "TERM", "dockerd"])
            .arg(option("data-root", "docker/data"))
            .arg(option("exec-root", "run"))
            .arg(option("pidfile", "docker.pid"))
            .arg(format!("--host={}", self.address()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(daemon);
        // One that was killed is restored first: its containers are ended, each with ten seconds of grace.
        let began = Instant::now();
        loop {
            let mut ask = self.program("docker", Path::new("/"));
            let answer = ask.args(["version", "--format", "{{.Server.Version}}"]);
            if answer.output().unwrap().status.success() {
                return;
            }
            if began.elapsed() > Duration::from_secs(240) {
                let log = fs::read_to_string(self.path("log")).unwrap();
                let last = log.lines().rev().take(30).collect::<Vec<_>>().join("\n");
                panic!(
                    "the second dockerd doesn't answer; its last words, the latest first:\n{last}"
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The process of the daemon.
    pub(crate) fn pid(&self) -> i32 {
        let daemon = self.daemon.as_ref().expect("it runs");
        daemon.id().try_into().unwrap()
    }

    pub(crate) fn end_daemon(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
        self.daemon.take().unwrap().wait().unwrap();
    }

    /// Takes all space of the disk but some.
    pub(crate) fn fill(&self, all_but_mebibytes: u64) {
        let filler = format!("{}/filler", self.disk());
        // Others take some of it at the same time.
        wait_for("the disk to be full", || {
            let free = self.output("df", &["--output=avail", "-BM", &self.disk()]);
            let free = free.lines().nth(1).unwrap().trim().trim_end_matches('M');
            let size = free
                .parse::<u64>()
                .unwrap()
                .saturating_sub(all_but_mebibytes);
            if size == 0 {
                return Some(());
            }
            let size = format!("{size}MiB");
            let mut fallocate = self.program("fallocate", Path::new("/"));
            let ran = fallocate.args(["--length", &size, &filler]).output();
            ran.unwrap().status.success().then_some(())
        });
    }

    /// Takes all space of the disk, to the last page.
    pub(crate) fn fill_up(&self) {
        let filler = format!("of={}/filler", self.disk());
        let mut dd = self.program("dd", Path::new("/"));
        let ran = dd.args(["if=/dev/zero", &filler, "bs=1M"]).output();
        let said = String::from_utf8_lossy(&ran.unwrap().stderr).into_owned();
        assert!(said.contains("No space left on device"), "{said}");
    }

    pub(crate) fn free_again(&self) {
        self.output("rm", &["-f", &format!("{}/filler", self.disk())]);
    }

    fn disk(&self) -> String {
        self.path("docker").display().to_string()
    }

    /// What a count of it would show to grow: containers, volumes, networks, rules of iptables, open files of the daemon, and
    /// mebibytes of the disk.
    pub(crate) fn counts(&self) -> [(&'static str, usize); 6] {
        let lines = |name, args: &[&str]| self.output(name, args).lines().count();
        let used = self.output("df", &["--output=used", "-BM", &self.disk()]);
        let used = used.lines().nth(1).unwrap().trim().trim_end_matches('M');
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        [
            ("containers", lines("docker", &["ps", "--all", "--quiet"])),
            ("volumes", lines("docker", &["volume", "ls", "--quiet"])),
            ("networks", lines("docker", &["network", "ls", "--quiet"])),
            ("rules", lines("iptables-save", &[])),
            ("open files", files.count()),
            ("mebibytes", used.parse().unwrap()),
        ]
    }
}

/// A person's PATH may lack where the system keeps what only root uses.
fn path_with_system_programs() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin:/sbin")
}

impl Drop for SecondDocker {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = kill(
                Pid::from_raw(daemon.id().try_into().unwrap()),
                Signal::SIGTERM,
            );
            let _ = daemon.wait();
        }
        drop(self.holder.stdin.take()); // at whose end it ends
        let _ = self.holder.wait();
    }
}
