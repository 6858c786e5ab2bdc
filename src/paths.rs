//! Where devenv keeps things on this machine, and the private folders and files it keeps them in.
//!
//! Three places, as the XDG base directories name them: the cache may be deleted at any time and costs only time; the data
//! belongs to environments that exist, and goes with them, but for the CAs, which people have trusted; the runtime folder
//! holds nothing but locks.

use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::error::Failure;

/// The places. Nothing is created by asking for a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    cache: PathBuf,
    data: PathBuf,
    runtime: PathBuf,
}

impl Paths {
    /// The places as the process's own environment names them.
    pub fn from_process() -> anyhow::Result<Self> {
        Self::new(
            |name| std::env::var_os(name),
            nix::unistd::geteuid().as_raw(),
        )
    }

    /// The places as `lookup` names them, for the user of that number. Variables that are empty or relative count as unset,
    /// as the XDG specification wants it.
    pub fn new(lookup: impl Fn(&str) -> Option<OsString>, user: u32) -> anyhow::Result<Self> {
        let absolute = |name| {
            lookup(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let base = |name, below_home| {
            absolute(name)
                .or_else(|| absolute("HOME").map(|home| home.join(below_home)))
                .ok_or_else(|| Failure::Usage {
                    message: format!("neither {name} nor HOME names a folder"),
                    hint: "set HOME to a folder that you can write to".to_owned(),
                })
        };
        Ok(Self {
            cache: base("XDG_CACHE_HOME", ".cache")?.join("devenv"),
            data: base("XDG_DATA_HOME", ".local/share")?.join("devenv"),
            runtime: absolute("XDG_RUNTIME_DIR")
                .unwrap_or_else(|| PathBuf::from(format!("/tmp/devenv-{user}")))
                .join("devenv"),
        })
    }

    /// The root of everything that can be fetched or built again.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The store of images and charts.
    pub fn store(&self) -> PathBuf {
        self.cache.join("store")
    }

    /// Programs that devenv fetched or built for itself, such as kind and k3d.
    pub fn tools(&self) -> PathBuf {
        self.cache.join("bin")
    }

    /// The bare repositories that hold what is pushed, one per environment.
    pub fn git(&self, environment: &str) -> PathBuf {
        self.cache.join("git").join(format!("{environment}.git"))
    }

    /// The folder above all environments' folders.
    pub fn environments(&self) -> PathBuf {
        self.data.join("environments")
    }

    /// The folder of one environment; see [`private_folder`].
    pub fn environment(&self, environment: &str) -> PathBuf {
        self.environments().join(environment)
    }

    /// The environment's own kubeconfig.
    pub fn kubeconfig(&self, environment: &str) -> PathBuf {
        self.environment(environment).join("kubeconfig")
    }

    /// The empty folder that is mounted into the environment's nodes to mark them as ours.
    pub fn mark(&self, environment: &str) -> PathBuf {
        self.environment(environment).join("mark")
    }

    /// The file that says in one line which environment file all of this belongs to. It is for people, and nothing depends
    /// on it: the id is made of the same path.
    pub fn label(&self, environment: &str) -> PathBuf {
        self.environment(environment).join("file")
    }

    /// What the snapshot was in the file that the cluster begins with, as long as that hasn't come to its end.
    pub fn beginning(&self, environment: &str) -> PathBuf {
        self.environment(environment).join("begins-with.json")
    }

    /// The folder of a domain's CA.
    pub fn authority(&self, domain: &str) -> PathBuf {
        self.data.join("ca").join(domain)
    }

    /// The environment's lock.
    pub fn lock(&self, environment: &str) -> PathBuf {
        self.runtime.join(format!("{environment}.lock"))
    }

    /// The lock that a `devenv run` holds from its beginning to its end, besides.
    pub fn run_lock(&self, environment: &str) -> PathBuf {
        self.runtime.join(format!("{environment}.run.lock"))
    }
}

/// Makes sure that the folder is there and that nobody but us can look into it or write to it. A folder that belongs to
/// somebody else, or a link in its place, is refused: in `/tmp` anybody could have put it there.
pub fn private_folder(path: &Path) -> anyhow::Result<()> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    let found = match made {
        Ok(()) => fs::symlink_metadata(path),
        Err(error) => Err(error),
    }
    .with_context(|| format!("can't create the folder {}", path.display()))?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Failure::NotOurs {
            message: format!("{} is not a folder of ours", path.display()),
            hint: format!("look at `ls -ld {}` and move it away", path.display()),
        }
        .into());
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).with_context(|| {
            format!(
                "can't take the rights of others away from {}",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Writes a file that only we can read (0600), whole or not at all: a reader sees the old text or the new one.
pub fn write_private(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?; // made with 0600
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        std::io::Result::Ok(())
    };
    write().with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(variables: &[(&str, &str)]) -> anyhow::Result<Paths> {
        let find = |name: &str| variables.iter().find(|(key, _)| *key == name);
        Paths::new(|name| find(name).map(|(_, value)| value.into()), 1000)
    }

    #[test]
    fn defaults_lie_below_home() {
        let paths = paths(&[("HOME", "/home/me")]).unwrap();
        insta::assert_debug_snapshot!(
            [paths.store(), paths.tools(), paths.git("dev"), paths.kubeconfig("dev"), paths.mark("dev"), paths.authority("local"), paths.lock("dev")],
            @r#"
        [
            "/home/me/.cache/devenv/store",
            "/home/me/.cache/devenv/bin",
            "/home/me/.cache/devenv/git/dev.git",
            "/home/me/.local/share/devenv/environments/dev/kubeconfig",
            "/home/me/.local/share/devenv/environments/dev/mark",
            "/home/me/.local/share/devenv/ca/local",
            "/tmp/devenv-1000/devenv/dev.lock",
        ]
        "#
        );
    }

    #[test]
    fn variables_win_unless_empty_or_relative() {
        let set = paths(&[
            ("HOME", "/home/me"),
            ("XDG_CACHE_HOME", "/big/cache"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ])
        .unwrap();
        assert_eq!(set.cache(), Path::new("/big/cache/devenv"));
        assert_eq!(
            set.environments(),
            Path::new("/home/me/.local/share/devenv/environments")
        );
        assert_eq!(set.lock("dev"), Path::new("/run/user/1000/devenv/dev.lock"));
        assert_eq!(
            paths(&[("HOME", "")]).unwrap_err().to_string(),
            "neither XDG_CACHE_HOME nor HOME names a folder"
        );
    }

    #[test]
    fn a_private_folder_is_made_or_tightened_or_refused() {
        let temp = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;

        let new = temp.path().join("a/b");
        private_folder(&new).unwrap();
        private_folder(&new).unwrap();
        assert_eq!(mode(&new), 0o700);

        let wide = temp.path().join("wide");
        fs::create_dir(&wide).unwrap();
        fs::set_permissions(&wide, fs::Permissions::from_mode(0o777)).unwrap();
        private_folder(&wide).unwrap();
        assert_eq!(mode(&wide), 0o700);

        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&wide, &link).unwrap();
        let refused = private_folder(&link).unwrap_err().to_string();
        assert!(
            refused.ends_with("link is not a folder of ours"),
            "{refused}"
        );
    }

    #[test]
    fn a_private_file_replaces_the_old_one() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("kubeconfig");
        fs::write(&path, "old").unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
