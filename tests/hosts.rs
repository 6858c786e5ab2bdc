//! `devenv hosts` on the real `/etc/hosts`, which in each of these runs is another file: it is mounted there in a namespace of
//! the run's own, and the machine's own file can't be reached from there. Once the whole of `/etc` is mounted, so that the file can be replaced; once the file alone, as in every container,
//! so that it can't.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use devenv::names::hosts::{self, Block, Leads, Owner};
use devenv::names::hosts_file::{self, Written};

use crate::harness::{Ran, Test};

const LOCALHOST: &[u8] = b"127.0.0.1 localhost\n";
const NOBODY: u32 = 65534;

/// How the file comes to be `/etc/hosts`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mounted {
    Folder,
    File,
}

/// A project with this repository's bundles, and an `etc` with this hosts file.
fn project(hosts: &[u8]) -> Test {
    let test = Test::new().copy("cluster-configs").copy("bundles");
    fs::create_dir(test.path("etc")).unwrap();
    fs::write(test.path("etc/hosts"), hosts).unwrap();
    fs::write(test.path("devenv"), "").unwrap();
    fs::set_permissions(test.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    test
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Runs devenv in a namespace where that is mounted, after some more commands as root. Who isn't root is it in there.
///
/// The machine's own file can't be reached in there: always a folder of the test's lies over the whole of `/etc`, also where only
/// the file is to be a mount. Every command must succeed, and right before devenv starts it is looked at once more what `/etc` is;
/// else it doesn't start, and the status is 99. (`set -e` would do nothing of it, in a list that ends in `||`.)
fn in_namespace(test: Test, mounted: Mounted, setup: &str, starter: &str) -> Test {
    let unshare = which::which("unshare").unwrap().display().to_string();
    let apart = if is_root() { "-mn" } else { "-rmn" };
    let temp = test.path("").display().to_string();
    let temp = temp.trim_end_matches('/');
    let (folder, file) = match mounted {
        Mounted::Folder => ("etc", "true"),
        Mounted::File => {
            fs::create_dir_all(test.path("container")).unwrap();
            fs::write(test.path("container/hosts"), "not this one\n").unwrap();
            ("container", "mount --bind $T/etc/hosts /etc/hosts")
        }
    };
    // The program is mounted too: others than root can't look into the folder where it is built.
    let script = format!(
        "P=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin; T={temp}
         mount --bind \"$1\" $T/devenv && mount --bind $T/{folder} /etc && {file} && {{ {setup}; }} || exit 99
         test /etc -ef $T/etc || test /etc -ef $T/container || exit 99
         shift; PATH=$P; exec {starter} $T/devenv \"$@\""
    );
    test.under([&*unshare, apart, "/bin/sh", "-c", &script, "sh"])
}

#[test]
fn devenv_never_starts_where_the_machines_own_file_could_be_reached() {
    for mounted in [Mounted::Folder, Mounted::File] {
        for setup in [
            "false",
            "umount /etc/hosts; umount -l /etc",
            "mount --bind $T/nothing /etc/hosts",
        ] {
            // Not even here is it devenv that would start.
            let test = project(LOCALHOST);
            let ran = in_namespace(test, mounted, setup, "/bin/echo started")
                .start()
                .wait();
            assert_eq!(
                (ran.status, ran.stdout.as_str()),
                (99, ""),
                "{mounted:?} {setup}"
            );
        }
        let ran = in_namespace(project(LOCALHOST), mounted, "true", "/bin/echo started")
            .start()
            .wait();
        assert!(
            ran.status == 0 && ran.stdout.starts_with("started"),
            "{mounted:?}"
        );
    }
}

fn run(test: &Test, mounted: Mounted, args: &[&str]) -> Ran {
    run_after(test, mounted, "true", args)
}

fn run_after(test: &Test, mounted: Mounted, setup: &str, args: &[&str]) -> Ran {
    in_namespace(test.clone().args(args.iter().copied()), mounted, setup, "")
        .start()
        .wait()
}

fn hosts_of(test: &Test) -> Vec<u8> {
    fs::read(test.path("etc/hosts")).unwrap()
}

#[test]
fn they_are_shown_applied_and_removed() {
    for mounted in [Mounted::Folder, Mounted::File] {
        let test = project(LOCALHOST);
        let show = run(&test, mounted, &["hosts", "show"]);
        insta::allow_duplicates! {
        insta::assert_snapshot!(show.transcript(), @r"
        environment  dev
        file         /etc/hosts
        block        absent: devenv hosts apply puts it in

        127.0.0.1 argocd.local
        127.0.0.1 grafana.local
        127.0.0.1 keycloak.local
        --- stderr
        --- status 4
        ");
        insta::assert_snapshot!(run(&test, mounted, &["hosts", "apply"]).transcript(), @r"
        --- stderr
        [time] names
        [time] names: /etc/hosts changed ([time])

          phase   start     end    took  outcome
        ✓ names  [time]  [time]  [time]  done

        3 names lead here
        --- status 0
        ");
        insta::assert_snapshot!(String::from_utf8(hosts_of(&test)).unwrap().replace(&id(&test), "[id]"), @r"
        127.0.0.1 localhost
        # BEGIN devenv dev [id] v1 nl=0
        127.0.0.1 argocd.local
        127.0.0.1 grafana.local
        127.0.0.1 keycloak.local
        # END devenv dev [id]
        ");
        insta::assert_snapshot!(run(&test, mounted, &["hosts", "apply"]).transcript(), @r"
        --- stderr
        [time] names
        [time] names: unchanged, /etc/hosts is as it is to be ([time])

          phase   start     end    took  outcome
        = names  [time]  [time]  [time]  unchanged

        nothing to change: 3 names lead here
        --- status 0
        ");
        insta::assert_snapshot!(run(&test, mounted, &["hosts", "show", "-o", "json"]).transcript(), @r#"
        {"environment":"dev","file":"/etc/hosts","wired":true,"state":"there","detail":"as it is to be","conflicts":[],"names":["argocd.local","grafana.local","keycloak.local"],"block":"127.0.0.1 argocd.local\n127.0.0.1 grafana.local\n127.0.0.1 keycloak.local\n"}
        --- stderr
        --- status 0
        "#);
        insta::assert_snapshot!(run(&test, mounted, &["hosts", "remove"]).transcript(), @r"
        --- stderr
        [time] names
        [time] names: /etc/hosts changed ([time])

          phase   start     end    took  outcome
        ✓ names  [time]  [time]  [time]  done

        /etc/hosts is as it was without dev
        --- status 0
        ");
        assert_eq!(hosts_of(&test), LOCALHOST);
        insta::assert_snapshot!(run(&test, mounted, &["hosts", "remove"]).transcript(), @r"
        --- stderr
        [time] names
        [time] names: unchanged, no block of dev in /etc/hosts ([time])

          phase   start     end    took  outcome
        = names  [time]  [time]  [time]  unchanged

        nothing to remove: no block of dev in /etc/hosts
        --- status 0
        ");
        }
    }
}

fn id(test: &Test) -> String {
    let path = test.clone().args(["kubeconfig"]).start().wait().stdout;
    path.rsplit('/').nth(1).unwrap().to_owned()
}

/// What is to stay as it is about a file, whoever writes it.
#[derive(Debug, PartialEq)]
struct About {
    mode: u32,
    owner: (u32, u32),
    attributes: Vec<(std::ffi::OsString, Vec<u8>)>,
}

fn about(path: &Path) -> About {
    let metadata = fs::metadata(path).unwrap();
    About {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        attributes: xattr::list(path)
            .unwrap()
            .map(|name| {
                (
                    name.clone(),
                    xattr::get(path, &name).unwrap().unwrap_or_default(),
                )
            })
            .collect(),
    }
}

/// Applies and removes; between the two the file holds what it held before, and the names.
fn there_and_back(what: &str, bytes: &[u8], prepare: impl Fn(&Path)) {
    for mounted in [Mounted::Folder, Mounted::File] {
        let test = project(bytes);
        let path = test.path("etc/hosts");
        prepare(&path);
        let (before, inode) = (about(&path), fs::metadata(&path).unwrap().ino());

        let ran = run(&test, mounted, &["hosts", "apply"]);
        assert_eq!(ran.status, 0, "{what}, {mounted:?}: {}", ran.transcript());
        let with = hosts_of(&test);
        let added = with
            .strip_prefix(bytes)
            .unwrap_or_else(|| panic!("{what}, {mounted:?}: {with:?}"));
        let added = String::from_utf8_lossy(added);
        assert!(
            added.contains("\n127.0.0.1 keycloak.local\n"),
            "{what}, {mounted:?}: {added}"
        );
        assert_eq!(about(&path), before, "{what}, {mounted:?}");

        let ran = run(&test, mounted, &["hosts", "remove"]);
        assert_eq!(ran.status, 0, "{what}, {mounted:?}: {}", ran.transcript());
        assert!(hosts_of(&test) == bytes, "{what}, {mounted:?}");
        assert_eq!(about(&path), before, "{what}, {mounted:?}");
        if mounted == Mounted::File {
            assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "{what}");
        }
        let left: Vec<_> = fs::read_dir(test.path("etc"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["hosts"], "{what}, {mounted:?}");
    }
}

#[test]
fn whatever_is_in_the_file_stays() {
    let block_of_another = hosts::insert(
        b"",
        &Block {
            owner: Owner {
                name: "team".parse().unwrap(),
                id: "0123456789ab".parse().unwrap(),
            },
            names: ["keycloak.local".parse().unwrap()].into(),
            leads: Leads::Here { ipv6: true },
        },
    )
    .unwrap();
    let docker = b"127.0.0.1 localhost\r\n# Added by Docker Desktop\r\n192.168.65.254 host.docker.internal\r\n# To allow the same kube context to work on the host and the container:\r\n127.0.0.1 kubernetes.docker.internal\r\n# End of section\r\n";
    let hostctl = b"127.0.0.1 localhost\n# profile.on shop\n127.0.0.1 shop.test\n# end\n# profile.off old\n# 127.0.0.1 old.test\n# end\n";
    let files: [(&str, &[u8]); 12] = [
        ("nothing", b""),
        ("one newline", b"\n"),
        ("no newline at its end", b"127.0.0.1 localhost"),
        ("CRLF", b"127.0.0.1 localhost\r\n::1 localhost\r\n"),
        (
            "mixed, and a carriage return at its end",
            b"127.0.0.1 localhost\r\n::1 localhost\n10.0.0.1 a\r",
        ),
        (
            "a mark of the byte order",
            b"\xef\xbb\xbf127.0.0.1 localhost\n",
        ),
        ("a mark of the byte order alone", b"\xef\xbb\xbf"),
        (
            "NUL, and not UTF-8",
            b"127.0.0.1 \0localhost\n\xff\xfe\xc3\x28\n\0",
        ),
        ("Docker Desktop's block", docker),
        ("hostctl's blocks", hostctl),
        ("another devenv's block", &block_of_another),
        (
            "another devenv's torn block",
            b"# BEGIN devenv team 0123456789ab v1 nl=0\n127.0.0.1 argocd.local\n",
        ),
    ];
    for (what, bytes) in files {
        there_and_back(what, bytes, |_| {});
    }
    there_and_back(
        "5 MB",
        &b"10.0.0.1 some.host.of.a.block.list\n".repeat(150_000),
        |_| {},
    );
}

#[test]
fn whatever_is_about_the_file_stays() {
    let mode = |mode| {
        move |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
    };
    there_and_back("read-only for all", LOCALHOST, mode(0o444));
    there_and_back("to be executed", LOCALHOST, mode(0o755));
    there_and_back("an attribute", LOCALHOST, |path| {
        xattr::set(path, "user.note", b"mine").unwrap();
    });
    if !is_root() {
        eprintln!("not tested: a file of another owner, which takes root");
        return;
    }
    there_and_back("another owner", LOCALHOST, |path| {
        std::os::unix::fs::chown(path, Some(1234), Some(4321)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o2640)).unwrap();
    });
}

#[test]
fn a_link_stays_a_link_and_its_end_is_changed() {
    let test = project(LOCALHOST);
    fs::create_dir(test.path("elsewhere")).unwrap();
    let (link, end) = (test.path("etc/hosts"), test.path("elsewhere/hosts"));
    fs::rename(&link, &end).unwrap();
    symlink(&end, &link).unwrap();
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    assert_eq!(fs::read_link(&link).unwrap(), end);
    assert!(fs::read(&end).unwrap().len() > LOCALHOST.len());
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "remove"]).status, 0);
    assert_eq!(fs::read(&end).unwrap(), LOCALHOST);

    fs::remove_file(&end).unwrap();
    let ran = run(&test, Mounted::Folder, &["hosts", "apply"]);
    assert!(
        ran.stderr
            .contains("/etc/hosts is a link that leads nowhere"),
        "{}",
        ran.transcript()
    );
    assert_eq!(ran.status, 4);
    if is_root() {
        fs::write(&end, LOCALHOST).unwrap();
        std::os::unix::fs::chown(&end, Some(NOBODY), None).unwrap();
        let ran = run(&test, Mounted::Folder, &["hosts", "apply"]);
        assert!(
            ran.stderr
                .contains("which belongs to user 65534 and not to root"),
            "{}",
            ran.transcript()
        );
        assert_eq!(
            (ran.status, fs::read(&end).unwrap().as_slice()),
            (4, LOCALHOST)
        );
    }
}

#[test]
fn a_file_of_two_names_keeps_both() {
    let test = project(LOCALHOST);
    let other = test.path("etc/hosts.too");
    fs::hard_link(test.path("etc/hosts"), &other).unwrap();
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    assert_eq!(fs::read(&other).unwrap(), hosts_of(&test));
    assert!(hosts_of(&test).len() > LOCALHOST.len());
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "remove"]).status, 0);
    assert_eq!(fs::read(&other).unwrap(), LOCALHOST);
    assert_eq!(fs::metadata(other).unwrap().nlink(), 2);
}

#[test]
fn a_file_that_is_missing_is_made() {
    let test = project(b"");
    fs::remove_file(test.path("etc/hosts")).unwrap();
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "remove"]).status, 0);
    assert!(!test.path("etc/hosts").exists());
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    assert_eq!(
        fs::metadata(test.path("etc/hosts")).unwrap().mode() & 0o7777,
        0o644
    );
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "remove"]).status, 0);
    assert_eq!(hosts_of(&test), b"");
}

#[test]
fn what_a_killed_devenv_left_goes() {
    let test = project(LOCALHOST);
    fs::write(test.path("etc/.devenv-hosts-x1y2z3"), "half").unwrap();
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    assert!(!test.path("etc/.devenv-hosts-x1y2z3").exists());
}

/// Nothing can be changed, whatever is tried; the reason is said, and the lines are.
fn refused(test: &Test, mounted: Mounted, setup: &str, reason: &str) {
    let before = hosts_of(test);
    let ran = run_after(test, mounted, setup, &["hosts", "apply"]);
    let told = ran.transcript();
    assert!(told.contains(reason), "{told}");
    assert!(told.contains("127.0.0.1 keycloak.local\n"), "{told}");
    assert_eq!(ran.status, 4, "{told}");
    assert!(hosts_of(test) == before, "{told}");
}

#[test]
fn a_read_only_file_system_is_named() {
    let test = project(LOCALHOST);
    refused(
        &test,
        Mounted::File,
        "mount -o remount,bind,ro /etc/hosts",
        "can't change /etc/hosts: its file system is read-only",
    );
    refused(
        &test,
        Mounted::Folder,
        "mount -o remount,bind,ro /etc",
        "can't change /etc/hosts: its file system is read-only",
    );
    // A container with a read-only root still has its hosts file mounted.
    let setup = "mount -o remount,bind,ro /etc && mount --bind $T/etc/hosts /etc/hosts";
    assert_eq!(
        run_after(&test, Mounted::Folder, setup, &["hosts", "apply"]).status,
        0
    );
    assert!(hosts_of(&test).len() > LOCALHOST.len());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "sets up what the test is about")]
fn an_immutable_file_is_named() {
    let test = project(LOCALHOST);
    let path = test.path("etc/hosts");
    let chattr = |flag: &str| {
        let ran = std::process::Command::new("chattr")
            .arg(flag)
            .arg(&path)
            .output();
        ran.is_ok_and(|output| output.status.success())
    };
    if !chattr("+i") {
        eprintln!("not tested: an immutable file, which this file system or user can't make");
        return;
    }
    let ran = run(&test, Mounted::Folder, &["hosts", "apply"]);
    let bytes = hosts_of(&test);
    assert!(chattr("-i"));
    assert!(
        ran.transcript().contains("it may be immutable"),
        "{}",
        ran.transcript()
    );
    assert_eq!((ran.status, bytes.as_slice()), (4, LOCALHOST));
}

#[test]
fn a_full_disk_changes_nothing() {
    // Four pages: the file's one, which is full, and what fills the rest.
    let line = format!("{:63}", "127.0.0.1 localhost");
    let setup = format!(
        "mount -t tmpfs -o size=16k none $T/etc && yes '{line}' | head -n 64 > $T/etc/hosts && cp $T/etc/hosts $T/before && \
         {{ cat /dev/zero > $T/etc/filler 2>/dev/null || true; }}"
    );
    for (mounted, mount) in [
        (Mounted::Folder, "mount --bind $T/etc /etc"),
        (Mounted::File, "mount --bind $T/etc/hosts /etc/hosts"),
    ] {
        let test = project(LOCALHOST);
        let starter = format!("{setup} && {mount}");
        // What is left is looked at inside: the file system goes with the namespace.
        let script = "sh -c '\"$@\"; status=$?; /bin/cat /etc/hosts > $OUT/after; exit $status' sh";
        let out = test.path("").display().to_string();
        let test = test.env("OUT", &out).tool("sh").args(["hosts", "apply"]);
        let ran = in_namespace(test.clone(), mounted, &starter, script)
            .start()
            .wait();
        assert!(
            ran.stderr.contains("there is no space left"),
            "{}",
            ran.transcript()
        );
        assert_eq!(ran.status, 4, "{}", ran.transcript());
        let read = |name: &str| fs::read(test.path(name)).unwrap();
        assert_eq!(read("before").len(), 4096);
        assert!(read("before") == read("after"), "{mounted:?}");
    }
}

#[test]
fn a_file_that_is_no_hosts_file_is_left_alone() {
    let test = project(b"");
    let path = test.path("etc/hosts");
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(hosts_file::LIMIT + 1)
        .unwrap();
    let ran = run(&test, Mounted::Folder, &["hosts", "apply"]);
    assert!(
        ran.stderr.contains("/etc/hosts is longer than 16 MiB"),
        "{}",
        ran.transcript()
    );
    assert_eq!(ran.status, 4);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let ran = run(&test, Mounted::Folder, &["hosts", "apply"]);
    assert!(
        ran.stderr.contains("/etc/hosts is not an ordinary file"),
        "{}",
        ran.transcript()
    );
    assert_eq!(ran.status, 4);
}

#[test]
fn a_torn_block_is_shown_and_left_alone() {
    let test = project(LOCALHOST);
    let begin = format!(
        "127.0.0.1 localhost\n# BEGIN devenv dev {} v1 nl=0\n127.0.0.1 argocd.local\n",
        id(&test)
    );
    fs::write(test.path("etc/hosts"), &begin).unwrap();
    insta::assert_snapshot!(run(&test, Mounted::Folder, &["hosts", "show"]).transcript(), @r"
    environment  dev
    file         /etc/hosts
    block        torn: line 2: the block begins and never ends; it is left alone until somebody mends it: sudoedit /etc/hosts

    127.0.0.1 argocd.local
    127.0.0.1 grafana.local
    127.0.0.1 keycloak.local
    --- stderr
    --- status 4
    ");
    insta::assert_snapshot!(run(&test, Mounted::Folder, &["hosts", "apply"]).transcript(), @r"
    --- stderr
    [time] names
    [time] names: unchanged, not wired ([time])
    [time] the names are not wired: the block of dev in /etc/hosts is not as devenv writes it, so it is left alone: line 2: the block begins and never ends
    these lines belong into /etc/hosts:
    127.0.0.1 argocd.local
    127.0.0.1 grafana.local
    127.0.0.1 keycloak.local
    next, type: sudoedit /etc/hosts

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    the names are not wired
    --- status 4
    ");
    insta::assert_snapshot!(run(&test, Mounted::Folder, &["hosts", "remove"]).transcript(), @r"
    --- stderr
    [time] names
    [time] names: failed ([time])
    error: the names are left in /etc/hosts: the block of dev in /etc/hosts is not as devenv writes it, so it is left alone: line 2: the block begins and never ends

    hint: sudoedit /etc/hosts
    --- status 1
    ");
    assert_eq!(hosts_of(&test), begin.as_bytes());
}

#[test]
fn a_line_of_the_users_own_is_never_overwritten() {
    let own = b"10.1.2.3 keycloak.local\n";
    let test = project(own);
    insta::assert_snapshot!(run(&test, Mounted::Folder, &["hosts", "apply"]).transcript(), @r"
    --- stderr
    [time] names
    [time] names: unchanged, not wired ([time])
    [time] the names are not wired: in /etc/hosts, which isn't all devenv's to change, line 1 leads keycloak.local to 10.1.2.3
    these lines belong into /etc/hosts:
    127.0.0.1 keycloak.local
    next, type: sudoedit /etc/hosts

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    the names are not wired
    --- status 4
    ");
    assert!(hosts_of(&test).starts_with(own));
    let text = String::from_utf8(hosts_of(&test)).unwrap();
    assert!(
        text.contains("127.0.0.1 argocd.local\n") && !text.contains("127.0.0.1 keycloak.local"),
        "{text}"
    );
    insta::assert_snapshot!(run(&test, Mounted::Folder, &["hosts", "show"]).transcript(), @r"
    environment  dev
    file         /etc/hosts
    block        there: as it is to be
    conflict     line 1 leads keycloak.local to 10.1.2.3; it is not devenv's to change

    127.0.0.1 argocd.local
    127.0.0.1 grafana.local
    127.0.0.1 keycloak.local
    --- stderr
    --- status 4
    ");
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "remove"]).status, 0);
    assert_eq!(hosts_of(&test), own);

    let all = b"127.0.0.1 argocd.local keycloak.local grafana.local\n";
    fs::write(test.path("etc/hosts"), all).unwrap();
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "show"]).status, 0);
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    assert_eq!(hosts_of(&test), all);
}

#[test]
fn the_environment_says_whether_the_file_is_edited() {
    let config =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-configs/dev.yaml"))
            .unwrap();
    let with = |key: &str| {
        project(LOCALHOST).file("cluster-configs/dev.yaml", &format!("{config}{key}\n"))
    };
    let print = with("hosts: print");
    insta::assert_snapshot!(run(&print, Mounted::Folder, &["hosts", "apply"]).transcript(), @r#"
    --- stderr
    [time] names
    [time] names: unchanged, not wired ([time])
    [time] the names are not wired: the environment says `hosts: print`
    these lines belong into /etc/hosts:
    127.0.0.1 argocd.local
    127.0.0.1 grafana.local
    127.0.0.1 keycloak.local
    next, type: printf %s '{"action":"apply","environment":"dev","id":"[id]","names":["argocd.local","grafana.local","keycloak.local"]}' | sudo -- [temp]/devenv __hosts

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    the names are not wired
    --- status 4
    "#);
    let off = with("hosts: off");
    insta::assert_snapshot!(run(&off, Mounted::Folder, &["hosts", "apply"]).transcript(), @r"
    --- stderr
    [time] names
    [time] names: unchanged, the environment says `hosts: off` ([time])

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    nothing to change: the environment says `hosts: off`
    --- status 0
    ");
    assert_eq!(run(&off, Mounted::Folder, &["hosts", "show"]).status, 0);
    for test in [print, off] {
        assert_eq!(hosts_of(&test), LOCALHOST);
    }
    let wrong = with("hosts: maybe");
    insta::assert_snapshot!(run(&wrong, Mounted::Folder, &["hosts", "show"]).transcript(), @r"
    --- stderr
    error: cluster-configs/dev.yaml:10:8: `hosts` can't be `maybe`, expected one of `auto`, `print`, `off`
       |
    10 | hosts: maybe
       |        ^
    --- status 2
    ");
}

#[test]
fn another_domain_is_taken() {
    let test = project(LOCALHOST);
    let config = fs::read_to_string(test.path("project/cluster-configs/dev.yaml")).unwrap();
    let test = test.file(
        "cluster-configs/dev.yaml",
        &config.replace("domain: local", "domain: dev.example.org"),
    );
    let before = b"# BEGIN devenv dev [id] v1 nl=0\n127.0.0.1 argocd.local\n::1 argocd.local\n# END devenv dev [id]\n10.0.0.1 x\n";
    let before = String::from_utf8(before.to_vec())
        .unwrap()
        .replace("[id]", &id(&test));
    fs::write(test.path("etc/hosts"), before).unwrap();
    // As root, any domain; the block is in its old place, and goes on with ::1.
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    insta::assert_snapshot!(String::from_utf8(hosts_of(&test)).unwrap().replace(&id(&test), "[id]"), @r"
    # BEGIN devenv dev [id] v1 nl=0
    127.0.0.1 argocd.dev.example.org
    ::1 argocd.dev.example.org
    127.0.0.1 grafana.dev.example.org
    ::1 grafana.dev.example.org
    127.0.0.1 keycloak.dev.example.org
    ::1 keycloak.dev.example.org
    # END devenv dev [id]
    10.0.0.1 x
    ");
}

/// As an ordinary user, who can only become root by a `sudo` that is played: it keeps the one capability that takes.
fn as_nobody(test: Test, setup: &str) -> Test {
    for name in ["run", "home"] {
        std::os::unix::fs::chown(test.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(test.path("calls"), fs::Permissions::from_mode(0o777)).unwrap();
    let starter = "/usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all,+setuid,+setgid --ambient-caps=-all,+setuid,+setgid";
    in_namespace(test, Mounted::Folder, setup, starter)
}

const BECOME_ROOT: &str = r#"while [ "$1" != -- ]; do shift; done; shift; exec setpriv --reuid 0 --regid 0 --clear-groups "$@""#;

#[expect(clippy::print_stderr, reason = "what isn't tested is said")]
fn needs_root() -> bool {
    if !is_root() {
        eprintln!("not tested: an ordinary user, whom only root can become");
    }
    is_root()
}

#[test]
fn without_a_terminal_nobody_is_asked() {
    if !needs_root() {
        return;
    }
    let test = project(LOCALHOST)
        .fake("sudo", BECOME_ROOT)
        .args(["hosts", "apply"]);
    let ran = as_nobody(test, "true").start().wait();
    insta::assert_snapshot!(ran.transcript(), @r#"
    --- stderr
    [time] names
    [time] names: unchanged, not wired ([time])
    [time] the names are not wired: only root may write it, and there is no terminal to ask for a password at
    these lines belong into /etc/hosts:
    127.0.0.1 argocd.local
    127.0.0.1 grafana.local
    127.0.0.1 keycloak.local
    next, type: printf %s '{"action":"apply","environment":"dev","id":"[id]","names":["argocd.local","grafana.local","keycloak.local"]}' | sudo -- [temp]/devenv __hosts

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    the names are not wired
    --- status 4
    "#);
    assert_eq!(ran.test.calls("sudo"), Vec::<String>::new());
    assert_eq!(hosts_of(&ran.test), LOCALHOST);

    let test = project(LOCALHOST).args(["hosts", "apply"]);
    let ran = as_nobody(test, "true").start().wait();
    assert!(
        ran.stderr.contains("there is no sudo"),
        "{}",
        ran.transcript()
    );
    assert_eq!(ran.status, 4);
}

#[test]
fn in_ci_only_a_sudo_that_asks_nothing_is_tried() {
    if !needs_root() {
        return;
    }
    for terminal in [false, true] {
        let in_ci = |sudo: &str| {
            let test = project(LOCALHOST).fake("sudo", sudo).env("CI", "true");
            if terminal {
                test.terminal(100, 30)
            } else {
                test
            }
        };
        let ran = as_nobody(in_ci(BECOME_ROOT).args(["hosts", "apply"]), "true")
            .start()
            .wait();
        assert_eq!(ran.status, 0, "{}", ran.transcript());
        assert_eq!(ran.test.calls("sudo"), ["sudo -n -- [temp]/devenv __hosts"]);
        assert!(hosts_of(&ran.test).len() > LOCALHOST.len());
        let again = as_nobody(ran.test.clone(), "true").start().wait();
        assert_eq!((again.status, again.test.calls("sudo").len()), (0, 1));
        let removed = as_nobody(ran.test.args(["hosts", "remove"]), "true")
            .start()
            .wait();
        assert_eq!(removed.status, 0, "{}", removed.transcript());
        assert_eq!(hosts_of(&removed.test), LOCALHOST);

        let refusing = in_ci("echo 'sudo: a password is required' >&2; exit 1");
        let ran = as_nobody(refusing.args(["hosts", "apply"]), "true")
            .start()
            .wait();
        assert_eq!(ran.status, 4, "{}", ran.transcript());
        assert!(
            ran.transcript().contains("a password is required"),
            "{}",
            ran.transcript()
        );
        assert_eq!(hosts_of(&ran.test), LOCALHOST);
    }
}

const ASKS: &str = r#"stty -echo < /dev/tty; printf '[sudo] password for nobody: ' > /dev/tty; read -r password < /dev/tty; stty echo < /dev/tty; echo > /dev/tty
[ "$password" = open ] || { echo 'sudo: 1 incorrect password attempt' >&2; exit 1; }
"#;

#[test]
fn at_a_terminal_the_change_is_shown_and_sudo_asks() {
    if !needs_root() {
        return;
    }
    let sudo = format!("{ASKS}{BECOME_ROOT}");
    let at_terminal = || {
        let test = project(LOCALHOST)
            .fake("sudo", &sudo)
            .terminal(240, 40)
            .args(["hosts", "apply"]);
        as_nobody(test, "true").before(["setsid", "-c", "-w"])
    };
    let running = at_terminal().start();
    insta::assert_snapshot!(running.screen_with(&["password for nobody"]), @r#"
    only root may write /etc/hosts, so sudo may ask for your password to make this change:
    --- /etc/hosts
    +++ /etc/hosts
    @@ -1,0 +2,5 @@
    +# BEGIN devenv dev [id] v1 nl=0
    +127.0.0.1 argocd.local
    +127.0.0.1 grafana.local
    +127.0.0.1 keycloak.local
    +# END devenv dev [id]
    by: printf %s '{"action":"apply","environment":"dev","id":"[id]","names":["argocd.local","grafana.local","keycloak.local"]}' | sudo -- [temp]/devenv __hosts
    [sudo] password for nobody:
    "#);
    running.type_in("open\n");
    let ran = running.wait();
    insta::assert_snapshot!(ran.screen(), @r#"
    only root may write /etc/hosts, so sudo may ask for your password to make this change:
    --- /etc/hosts
    +++ /etc/hosts
    @@ -1,0 +2,5 @@
    +# BEGIN devenv dev [id] v1 nl=0
    +127.0.0.1 argocd.local
    +127.0.0.1 grafana.local
    +127.0.0.1 keycloak.local
    +# END devenv dev [id]
    by: printf %s '{"action":"apply","environment":"dev","id":"[id]","names":["argocd.local","grafana.local","keycloak.local"]}' | sudo -- [temp]/devenv __hosts
    [sudo] password for nobody: 
    ✓  [time]  names  /etc/hosts changed

      phase   start     end    took  outcome
    ✓ names  [time]  [time]  [time]  done

    3 names lead here
    "#);
    assert_eq!(ran.status, 0);
    assert!(hosts_of(&ran.test).len() > LOCALHOST.len());

    let running = at_terminal().start();
    running.screen_with(&["password for nobody"]);
    running.type_in("shut\n");
    let ran = running.wait();
    insta::assert_snapshot!(ran.screen(), @r#"
    only root may write /etc/hosts, so sudo may ask for your password to make this change:
    --- /etc/hosts
    +++ /etc/hosts
    @@ -1,0 +2,5 @@
    +# BEGIN devenv dev [id] v1 nl=0
    +127.0.0.1 argocd.local
    +127.0.0.1 grafana.local
    +127.0.0.1 keycloak.local
    +# END devenv dev [id]
    by: printf %s '{"action":"apply","environment":"dev","id":"[id]","names":["argocd.local","grafana.local","keycloak.local"]}' | sudo -- [temp]/devenv __hosts
    [sudo] password for nobody: 
    sudo: 1 incorrect password attempt
    =  [time]  names  not wired
    the names are not wired: `sudo -- [temp]/devenv __hosts` failed (exit status 1)
    these lines belong into /etc/hosts:
    127.0.0.1 argocd.local
    127.0.0.1 grafana.local
    127.0.0.1 keycloak.local
    next, type: printf %s '{"action":"apply","environment":"dev","id":"[id]","names":["argocd.local","grafana.local","keycloak.local"]}' | sudo -- [temp]/devenv __hosts

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    the names are not wired
    "#);
    assert_eq!((ran.status, hosts_of(&ran.test).as_slice()), (4, LOCALHOST));

    // Ctrl-C goes to sudo and to devenv.
    let running = at_terminal().start();
    running.screen_with(&["password for nobody"]);
    running.type_in("\x03");
    let ran = running.wait();
    assert_eq!(
        (ran.status, hosts_of(&ran.test).as_slice()),
        (130, LOCALHOST),
        "{}",
        ran.screen()
    );
}

#[test]
fn removing_without_the_right_says_what_is_left() {
    if !needs_root() {
        return;
    }
    let test = project(LOCALHOST);
    assert_eq!(run(&test, Mounted::Folder, &["hosts", "apply"]).status, 0);
    fs::remove_dir(test.path("run/devenv")).unwrap();
    let with = hosts_of(&test);
    let ran = as_nobody(test.args(["hosts", "remove"]), "true")
        .start()
        .wait();
    insta::assert_snapshot!(ran.transcript(), @r#"
    --- stderr
    [time] names
    [time] names: failed ([time])
    error: the names are left in /etc/hosts: only root may write it, and there is no sudo
    --- /etc/hosts
    +++ /etc/hosts
    @@ -2,5 +1,0 @@
    -# BEGIN devenv dev [id] v1 nl=0
    -127.0.0.1 argocd.local
    -127.0.0.1 grafana.local
    -127.0.0.1 keycloak.local
    -# END devenv dev [id]

    hint: printf %s '{"action":"remove","environment":"dev","id":"[id]"}' | sudo -- [temp]/devenv __hosts
    --- status 1
    "#);
    assert_eq!(hosts_of(&ran.test), with);
}

#[test]
fn a_domain_that_could_be_somebodys_takes_roots_consent() {
    if !needs_root() {
        return;
    }
    let config =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-configs/dev.yaml"))
            .unwrap();
    let config = config.replace("domain: local", "domain: dev.example.org");
    let test = project(LOCALHOST)
        .file("cluster-configs/dev.yaml", &config)
        .fake("sudo", BECOME_ROOT)
        .env("CI", "1")
        .args(["hosts", "apply"]);
    let ran = as_nobody(test.clone(), "true").start().wait();
    insta::assert_snapshot!(ran.transcript(), @r"
    --- stderr
    [time] names
    [time] names: unchanged, not wired ([time])
    [time] the names are not wired: argocd.dev.example.org could be somebody's real name, so root has to allow its domain first, in /etc/devenv/domains
    these lines belong into /etc/hosts:
    127.0.0.1 argocd.dev.example.org
    127.0.0.1 grafana.dev.example.org
    127.0.0.1 keycloak.dev.example.org
    next, type: sudo mkdir -p /etc/devenv && echo dev.example.org | sudo tee -a /etc/devenv/domains

      phase   start     end    took  outcome
    = names  [time]  [time]  [time]  unchanged

    the names are not wired
    --- status 4
    ");
    assert_eq!(ran.test.calls("sudo"), Vec::<String>::new());
    fs::create_dir(test.path("etc/devenv")).unwrap();
    fs::write(test.path("etc/devenv/domains"), "dev.example.org\n").unwrap();
    fs::set_permissions(
        test.path("etc/devenv/domains"),
        fs::Permissions::from_mode(0o666),
    )
    .unwrap();
    assert_eq!(as_nobody(test.clone(), "true").start().wait().status, 4);
    fs::set_permissions(
        test.path("etc/devenv/domains"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let ran = as_nobody(test, "true").start().wait();
    assert_eq!(ran.status, 0, "{}", ran.transcript());
}

#[test]
fn the_helper_believes_nothing() {
    let request = |names: &str, id: &str| {
        format!(r#"{{"action":"apply","environment":"dev","id":"{id}","names":{names}}}"#)
    };
    let test = project(LOCALHOST);
    let ask = |input: &str| {
        let test = test.clone().args(["__hosts"]).input(input);
        in_namespace(test, Mounted::Folder, "true", "")
            .start()
            .wait()
    };
    insta::assert_snapshot!(ask(&request(r#"["github.com"]"#, "0123456789ab")).transcript(), @r"
    --- stderr
    error: refused: `github.com` could be somebody's real name: it is below none of local, localhost, test, internal, example, invalid, home.arpa, and below no domain that root lists in /etc/devenv/domains

    hint: devenv hosts show says what devenv itself would ask for
    --- status 2
    ");
    for input in [
        String::new(),
        request(r#"["local"]"#, "0123456789ab"),
        request(r#"["a.local\n1.2.3.4 b.local"]"#, "0123456789ab"),
        request(r#"["a.local"]"#, "../../../../"),
        request(r#"["a.local"]"#, "0123456789ab").replace("names", "addresses"),
        format!(
            "{}{}",
            request(r#"["a.local"]"#, "0123456789ab"),
            " ".repeat(5000)
        ),
    ] {
        let ran = ask(&input);
        assert_eq!(
            (ran.status, hosts_of(&test).as_slice()),
            (2, LOCALHOST),
            "{}",
            ran.transcript()
        );
        assert!(ran.stderr.contains("refused: "), "{}", ran.transcript());
    }
    insta::assert_snapshot!(ask(&request(r#"["a.local"]"#, "0123456789ab")).transcript(), @r#"
    {"changed":true,"how":"replaced"}
    --- stderr
    --- status 0
    "#);
    assert!(hosts_of(&test).ends_with(b"# BEGIN devenv dev 0123456789ab v1 nl=0\n127.0.0.1 a.local\n# END devenv dev 0123456789ab\n"));
    insta::assert_snapshot!(ask(r#"{"action":"remove","environment":"dev","id":"0123456789ab"}"#).transcript(), @r#"
    {"changed":true,"how":"replaced"}
    --- stderr
    --- status 0
    "#);
    insta::assert_snapshot!(ask(r#"{"action":"remove","environment":"dev","id":"0123456789ab"}"#).transcript(), @r#"
    {"changed":false,"how":null}
    --- stderr
    --- status 0
    "#);
    assert_eq!(hosts_of(&test), LOCALHOST);
    if needs_root() {
        let ran = as_nobody(test.args(["__hosts"]), "true").start().wait();
        insta::assert_snapshot!(ran.transcript(), @r"
        --- stderr
        error: this part of devenv is for root, and only for devenv itself to start

        hint: devenv hosts apply
        --- status 2
        ");
    }
}

#[test]
fn in_windows_linux_one_line_says_what_windows_needs() {
    let test = project(LOCALHOST);
    fs::write(
        test.path("version"),
        "Linux version 5.15.167.4-microsoft-standard-WSL2\n",
    )
    .unwrap();
    let setup = "mount --bind $T/version /proc/version && mount -t tmpfs none /mnt && mkdir -p /mnt/c/Windows/System32/drivers/etc && echo '127.0.0.1 argocd.local' > /mnt/c/Windows/System32/drivers/etc/hosts";
    let ran = run_after(&test, Mounted::File, setup, &["hosts", "apply"]);
    insta::assert_snapshot!(ran.transcript(), @r#"
    --- stderr
    [time] names
    [time] Windows' browsers read Windows' own hosts file; in a PowerShell run as administrator: Add-Content $env:SystemRoot\System32\drivers\etc\hosts "`n127.0.0.1 grafana.local keycloak.local"; and WSL writes /etc/hosts anew when it starts, unless /etc/wsl.conf says generateHosts=false below [network]
    [time] names: /etc/hosts changed ([time])

      phase   start     end    took  outcome
    ✓ names  [time]  [time]  [time]  done

    3 names lead here
    --- status 0
    "#);
}

fn dev(number: u8) -> Block {
    Block {
        owner: Owner {
            name: "dev".parse().unwrap(),
            id: format!("{number:012x}").parse().unwrap(),
        },
        names: ["argocd.local", "keycloak.local"]
            .map(|name| name.parse().unwrap())
            .into(),
        leads: Leads::Here { ipv6: true },
    }
}

/// Edits the file so many times, putting the block in and taking it out, while another thread adds lines to it.
fn edited_while_others_write(path: &Path, edits: usize) -> Vec<Written> {
    use std::io::Write as _;
    /// Also when the test fails, or the others would write for ever.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (block, over) = (dev(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let lines = scope.spawn(|| {
            let mut number = 0;
            while !over.load(Ordering::Relaxed) {
                let mut file = fs::File::options().append(true).open(path).unwrap();
                file.write_all(format!("10.0.0.1 line-{number}\n").as_bytes())
                    .unwrap();
                drop(file);
                number += 1;
                // Now all the time, now hardly ever.
                let pause = if number % 16 < 8 { 300 } else { 20_000 };
                std::thread::sleep(std::time::Duration::from_micros(pause));
            }
            number
        });
        let ended = Over(&over);
        let mut ways = Vec::new();
        for edit in 0..edits {
            let changed = hosts_file::edit(path, |file| {
                Ok(match edit % 2 {
                    0 => hosts::insert(file, &block)?,
                    _ => hosts::remove(file, &block.owner.id)?,
                })
            });
            ways.extend(changed.unwrap());
        }
        drop(ended);
        let written = lines.join().unwrap();
        let text = fs::read_to_string(path).unwrap();
        let lost: Vec<_> = (0..written)
            .filter(|number| !text.contains(&format!("line-{number}\n")))
            .collect();
        assert!(lost.is_empty(), "of {written} lines: {lost:?}");
        assert_eq!(text.lines().count(), written + 1, "{text}");
        ways
    })
}

#[test]
fn what_others_write_at_the_same_time_is_never_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("hosts");
    fs::write(&path, LOCALHOST).unwrap();
    let ways = edited_while_others_write(&path, 200);
    assert_eq!(ways.len(), 200);
    assert!(ways.contains(&Written::Replaced));

    fs::write(&path, LOCALHOST).unwrap();
    fs::hard_link(&path, folder.path().join("other")).unwrap();
    assert_eq!(
        edited_while_others_write(&path, 200),
        [Written::InPlace; 200]
    );
}

#[test]
fn many_environments_at_once_lose_nothing_of_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("hosts");
    for is_in_place in [false, true] {
        fs::write(&path, b"127.0.0.1 localhost").unwrap();
        if is_in_place {
            fs::hard_link(&path, folder.path().join("other")).unwrap();
        }
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (block, path) = (dev(number), &path);
                scope.spawn(move || {
                    for _ in 0..4 {
                        hosts_file::edit(path, |file| Ok(hosts::insert(file, &block)?)).unwrap();
                        hosts_file::edit(path, |file| Ok(hosts::remove(file, &block.owner.id)?))
                            .unwrap();
                    }
                    hosts_file::edit(path, |file| Ok(hosts::insert(file, &block)?)).unwrap();
                });
            }
        });
        let text = fs::read(&path).unwrap();
        for number in 0..8 {
            assert_eq!(hosts::look(&text, &dev(number)).state, hosts::State::Same);
        }
        for number in 0..8 {
            let block = dev(number);
            hosts_file::edit(&path, |file| Ok(hosts::remove(file, &block.owner.id)?)).unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"127.0.0.1 localhost");
    }
}
