//! The tree that Argo CD sees, and the one commit that carries it.
//!
//! The commit is made from the working tree as it is, uncommitted changes included, into a private bare repository in
//! the cache. It has no parents and a fixed author and date, so the same tree is the same revision, and the team's own
//! repository, index and branch are never touched (the folder needn't be a git repository at all).

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::source::BRANCH;
use crate::event::Step;
use crate::exec::{self, Cmd};
use crate::stop::Stop;

/// What keeps the person's own git settings out of it.
const ENVIRONMENT: [(&str, &str); 3] = [
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_TERMINAL_PROMPT", "0"),
];

/// One file of the tree.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TreeFile {
    /// Below the tree's root, with `/` between its parts.
    pub path: String,
    /// What git can say of a file's kind.
    pub mode: Mode,
    /// The bytes; of a link, its target.
    pub bytes: Vec<u8>,
}

/// Git's three kinds of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// An ordinary file.
    Plain,
    /// One that may be executed.
    Executable,
    /// A symbolic link.
    Link,
}

/// The files below a folder of the working tree, each under `prefix`, sorted by path. Folders named `.git` and the
/// leavings of editors are not part of it.
pub fn read_folder(folder: &Path, prefix: &str) -> anyhow::Result<Vec<TreeFile>> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), prefix.to_owned())];
    while let Some((folder, prefix)) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .with_context(|| format!("read the folder {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("read the folder {}", folder.display()))?;
            let name = entry.file_name().into_string().map_err(|name| {
                anyhow::anyhow!(
                    "the file name {} in {} isn't UTF-8",
                    PathBuf::from(name).display(),
                    folder.display()
                )
            })?;
            if name == ".git" || name.ends_with('~') || name.ends_with(".swp") {
                continue;
            }
            let path = format!("{prefix}/{name}");
            let read = || format!("read {}", entry.path().display());
            let metadata = entry.path().symlink_metadata().with_context(read)?;
            if metadata.is_dir() {
                folders.push((entry.path(), path));
            } else if metadata.is_symlink() {
                let target = std::fs::read_link(entry.path()).with_context(read)?;
                files.push(TreeFile {
                    path,
                    mode: Mode::Link,
                    bytes: target.as_os_str().as_bytes().to_vec(),
                });
            } else if metadata.is_file() {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                let mode = if executable {
                    Mode::Executable
                } else {
                    Mode::Plain
                };
                files.push(TreeFile {
                    path,
                    mode,
                    bytes: std::fs::read(entry.path()).with_context(read)?,
                });
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The commit as a stream for `git fast-import`.
fn import_stream(files: &[TreeFile]) -> Vec<u8> {
    let mut stream = Vec::new();
    let message = "The bundles of this environment\n";
    let mut head = String::new();
    let _ = writeln!(head, "commit refs/heads/{BRANCH}");
    let _ = writeln!(head, "committer devenv <devenv@localhost> 0 +0000");
    let _ = write!(head, "data {}\n{message}", message.len());
    stream.extend(head.as_bytes());
    for file in files {
        let mode = match file.mode {
            Mode::Plain => "100644",
            Mode::Executable => "100755",
            Mode::Link => "120000",
        };
        stream.extend(
            format!(
                "M {mode} inline {}\ndata {}\n",
                quoted(&file.path),
                file.bytes.len()
            )
            .as_bytes(),
        );
        stream.extend(&file.bytes);
        stream.push(b'\n');
    }
    stream.extend(b"done\n");
    stream
}

/// A path as fast-import reads it: quoted as in C where it holds anything but plain letters.
fn quoted(path: &str) -> String {
    let plain = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
    if plain {
        return path.to_owned();
    }
    let escaped = path.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b'"' | b'\\' => {
                escaped.push('\\');
                escaped.push(char::from(byte));
            }
            b' '..=b'~' => escaped.push(char::from(byte)),
            _ => {
                let _ = write!(escaped, "\\{byte:03o}");
            }
        }
        escaped
    });
    format!("\"{escaped}\"")
}

/// A call of git without the person's own settings.
pub fn own(call: Cmd) -> Cmd {
    ENVIRONMENT
        .into_iter()
        .fold(call, |call, (name, value)| call.env(name, value))
}

/// Commits a tree into the bare repository, which is made anew where it is missing or broken; returns the revision.
pub async fn commit(
    repository: &Path,
    files: &[TreeFile],
    step: &Step,
    stop: &Stop,
) -> anyhow::Result<String> {
    let git = |arguments: &[&str]| {
        own(Cmd::new("git")
            .args(arguments.iter().copied())
            .directory(repository))
    };
    if !repository.join("HEAD").is_file() {
        // Half-made by a run that was killed: nothing in it is worth keeping.
        let _ = std::fs::remove_dir_all(repository);
        std::fs::create_dir_all(repository)
            .with_context(|| format!("make the folder {}", repository.display()))?;
        let branch = format!("--initial-branch={BRANCH}");
        exec::run(&git(&["init", "--quiet", "--bare", &branch]), stop, step).await?;
    }
    let import = git(&["fast-import", "--quiet", "--force", "--done"]).stdin(import_stream(files));
    exec::run(&import, stop, step)
        .await
        .context("commit the bundles")?;
    let head = exec::run(
        &git(&["rev-parse", &format!("refs/heads/{BRANCH}")]),
        stop,
        step,
    )
    .await?;
    Ok(head.text())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_the_same_bytes_for_the_same_tree() {
        let files = [
            TreeFile {
                path: "bundles/a b.yaml".into(),
                mode: Mode::Plain,
                bytes: b"x: 1\n".to_vec(),
            },
            TreeFile {
                path: "bundles/run".into(),
                mode: Mode::Executable,
                bytes: b"#!/bin/sh\n".to_vec(),
            },
        ];
        insta::assert_snapshot!(String::from_utf8(import_stream(&files)).unwrap(), @r#"
        commit refs/heads/main
        committer devenv <devenv@localhost> 0 +0000
        data 32
        The bundles of this environment
        M 100644 inline "bundles/a b.yaml"
        data 5
        x: 1

        M 100755 inline bundles/run
        data 10
        #!/bin/sh

        done
        "#);
    }

    #[test]
    fn odd_paths_are_quoted_as_fast_import_reads_them() {
        assert_eq!(quoted("plain/path.yaml"), "plain/path.yaml");
        assert_eq!(quoted("a\"b\\c"), r#""a\"b\\c""#);
        assert_eq!(quoted("ü\n"), r#""\303\274\012""#);
    }
}
