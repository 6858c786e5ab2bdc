//! The workflow of the README, for real: its steps, one after the other, in a bare Debian in which there is nothing but what
//! GitHub's machines bring (git, curl, Go, Rust, a Docker to speak to).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::ci::workflow;
use crate::e2e::{output, program};

/// A Debian with git and curl, made once by debootstrap and kept in the cache.
fn bare_debian(cache: &Path) -> PathBuf {
    let root = cache.join("roots/bookworm");
    if !root.exists() {
        let new = cache.join("roots/.bookworm.new");
        let _ = fs::remove_dir_all(&new);
        fs::create_dir_all(&new).unwrap();
        let new_path = new.to_str().unwrap();
        let include = "--include=ca-certificates,curl,git,gcc,libc6-dev,pkg-config";
        output(
            "debootstrap",
            &["--variant=minbase", include, "bookworm", new_path],
        );
        fs::rename(new, &root).unwrap();
    }
    root
}

/// The folders and files of this machine that the bare one sees, at the same paths: what GitHub's machines bring, the cache, and
/// the folder that Docker mounts devenv's mark from, since it looks for that on its own machine.
fn shared(home: &Path, cache: &Path, folder: &Path) -> Vec<PathBuf> {
    let docker = which::which("docker").unwrap();
    let go = output("go", &["env", "GOROOT"]);
    let mut shared = vec![
        PathBuf::from("/proc"),
        PathBuf::from("/dev"),
        PathBuf::from("/sys"),
        // Where it is, not where a link leads to it: in the bare root that link leads to this machine's.
        fs::canonicalize("/var/run/docker.sock").unwrap(),
        PathBuf::from("/etc/ssl"),
        PathBuf::from("/etc/resolv.conf"),
        PathBuf::from(env!("CARGO_MANIFEST_DIR")),
        docker,
        PathBuf::from(go.trim()),
        home.join(".rustup"),
        home.join(".cargo"),
        home.join("go"),
        cache.to_owned(),
        folder.to_owned(),
    ];
    // Where this machine has been told of its own proxies and authorities.
    let told = [home.join(".config/go"), home.join(".gitconfig")];
    shared.extend(told.into_iter().filter(|path| path.exists()));
    let files =
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().ends_with("CERT_FILE"));
    shared.extend(
        files
            .map(|(_, file)| PathBuf::from(file))
            .filter(|file| file.is_file()),
    );
    shared
}

/// A script that mounts them, where nobody else sees it, and goes into the root.
fn way_in(root: &Path, shared: &[PathBuf]) -> String {
    let mut script = "set -e\n".to_owned();
    for path in shared {
        let inside = root.join(path.strip_prefix("/").unwrap());
        let (source, target) = (path.display(), inside.display());
        script += &match path.is_dir() {
            true => format!("mkdir -p '{target}'\n"),
            false => format!(
                "mkdir -p \"$(dirname '{target}')\"; [ -e '{target}' ] || touch '{target}'\n"
            ),
        };
        script += &format!("mount --rbind '{source}' '{target}'\n");
    }
    script + &format!("exec chroot '{}' /usr/bin/env \"$@\"\n", root.display())
}

#[test]
#[ignore = "takes a real Docker, debootstrap and ten minutes"]
fn fault_the_workflow_runs_in_a_bare_debian() {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap());
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let cache = cache.join("devenv");
    let folder = tempfile::Builder::new()
        .prefix("devenv-workflow-")
        .tempdir()
        .unwrap();
    let root = folder.path().join("root");
    output(
        "cp",
        &[
            "-a",
            bare_debian(&cache).to_str().unwrap(),
            root.to_str().unwrap(),
        ],
    );
    let data = folder.path().join("shared");
    fs::create_dir_all(&data).unwrap();
    let project = data.join("project");
    // `actions/checkout`.
    output(
        "git",
        &[
            "clone",
            "--quiet",
            env!("CARGO_MANIFEST_DIR"),
            project.to_str().unwrap(),
        ],
    );
    let script = way_in(&root, &shared(&home, &cache, &data));

    let mut path = OsString::from("/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:");
    path.push(home.join(".cargo/bin"));
    path.push(":");
    path.push(Path::new(output("go", &["env", "GOROOT"]).trim()).join("bin"));
    let workflow = workflow();
    let steps = workflow["jobs"]["test"]["steps"].as_array().unwrap();
    let (outputs, paths) = (data.join("output"), data.join("path"));
    fs::write(&paths, "").unwrap();
    let mut said = String::new();
    for run in steps.iter().filter_map(|step| step["run"].as_str()) {
        for added in fs::read_to_string(&paths).unwrap().lines() {
            let mut longer = OsString::from(format!("{added}:"));
            longer.push(&path);
            path = longer;
        }
        fs::write(&paths, "").unwrap();
        let mut step = program("unshare");
        step.args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .args([
            "bash",
            "--noprofile",
            "--norc",
            "-e",
            "-o",
            "pipefail",
            "-c",
        ])
        .arg(format!("cd {}; {run}", project.display()))
        .env("PATH", &path)
        .env("HOME", &home)
        .env("CI", "true")
        .env("GITHUB_OUTPUT", &outputs)
        .env("GITHUB_PATH", &paths)
        // No image registry answers here: the packages' environment in the place of `dev`.
        .env("DEVENV_ENVIRONMENT", "packages")
        .env("XDG_DATA_HOME", data.join("data"))
        .env("XDG_RUNTIME_DIR", data.join("run"))
        .env("CARGO_TARGET_DIR", cache.join("target"))
        .env("CARGO_INSTALL_ROOT", data.join("installed"));
        let ran = step.output().unwrap();
        said += &String::from_utf8_lossy(&ran.stdout);
        let stderr = String::from_utf8_lossy(&ran.stderr);
        eprintln!(
            "$ {run}{}",
            stderr
                .lines()
                .rev()
                .take(30)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect::<Vec<_>>()
                .join("\n")
        );
        assert!(ran.status.success(), "{run}");
        if run.contains("cargo install") {
            let mut longer = OsString::from(format!("{}:", data.join("installed/bin").display()));
            longer.push(&path);
            path = longer;
        }
    }
    assert!(
        fs::read_to_string(outputs)
            .unwrap()
            .starts_with("key=packages-")
    );
    assert!(
        said.contains("\"realm\":\"master\""),
        "Keycloak answered: {said}"
    );
    let results = fs::read_to_string(project.join("results.xml")).unwrap();
    assert!(
        results.contains("<testsuite ") && !results.contains("<failure"),
        "{results}"
    );
    assert!(!project.join("why").exists());
}
