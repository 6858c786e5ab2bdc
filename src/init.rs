//! `devenv init`: the default bundles and cluster configs, carried in the program, into a folder of the user's.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use include_dir::{Dir, DirEntry, include_dir};

use crate::context::Context;
use crate::error::Exit;

static BUNDLES: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/bundles");
static CLUSTER_CONFIGS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/cluster-configs");

/// These need `scripts/packages` of devenv's own repository, which a team's hasn't.
const OWN: [&str; 2] = ["packages.yaml", "packages-k3d.yaml"];

/// Writes what isn't there yet; a file that exists is never written over.
pub fn init(context: &Context, folder: &Path) -> anyhow::Result<Exit> {
    let folder = context.directory.join(folder);
    let step = context.events.step("files");
    let (mut written, mut kept) = (0, Vec::new());
    for (path, contents) in defaults() {
        match write_new(&folder.join(&path), contents)? {
            true => written += 1,
            false => kept.push(path),
        }
    }
    step.done(format!("{written} written into {}", folder.display()));
    for path in &kept {
        context
            .events
            .notice(format!("{} was there and is left as it is", path.display()));
    }
    context.events.verdict(match kept.len() {
        0 => "ready to edit; devenv up brings it up".to_owned(),
        count => format!("ready to edit, {count} of them as they were; devenv up brings it up"),
    });
    Ok(Exit::Ready)
}

/// Path and contents of every default file, in order.
fn defaults() -> Vec<(PathBuf, &'static [u8])> {
    let mut files = Vec::new();
    for (name, root) in [("bundles", &BUNDLES), ("cluster-configs", &CLUSTER_CONFIGS)] {
        let mut folders = vec![root];
        while let Some(folder) = folders.pop() {
            for entry in folder.entries() {
                match entry {
                    DirEntry::Dir(inner) => folders.push(inner),
                    DirEntry::File(file) if OWN.iter().any(|own| file.path() == Path::new(own)) => {
                    }
                    DirEntry::File(file) => {
                        files.push((Path::new(name).join(file.path()), file.contents()));
                    }
                }
            }
        }
    }
    files.sort();
    files
}

/// Writes a file unless one is there; says whether it did.
fn write_new(path: &Path, contents: &[u8]) -> anyhow::Result<bool> {
    let write = || -> std::io::Result<bool> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::File::create_new(path) {
            Ok(mut file) => file.write_all(contents).map(|()| true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    };
    write().with_context(|| format!("write {}", path.display()))
}
