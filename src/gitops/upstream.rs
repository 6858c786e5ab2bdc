//! What a bundle takes from upstream: charts and manifests that its `bundle.yaml` names by address, version and sha256.
//! They are fetched once into the store, and placed into the pushed tree, so that nothing is fetched from inside the
//! cluster and no upstream text is copied into the team's repository.

use std::io::Read as _;
use std::path::{Component, Path};

use anyhow::Context as _;
use flate2::read::GzDecoder;
use tar::{Archive, EntryType};

use super::git::{Mode, TreeFile};
use crate::inputs::Inputs;
use crate::store::{Name, Origin, Store, Wanted};

/// What the bundles' upstream entries need from the store.
pub fn wanted(inputs: &Inputs) -> Vec<Wanted> {
    let entries = inputs.bundles.iter().flat_map(|bundle| &bundle.upstream);
    entries
        .map(|upstream| {
            let (address, digest) = inputs.fetched(upstream);
            Wanted {
                name: Name::File(address.to_owned()),
                origin: inputs.environment.images.into(),
                digest: digest.cloned(),
            }
        })
        .collect()
}

/// The files that the bundles' upstream entries become in the pushed tree.
pub fn files(store: &Store, inputs: &Inputs) -> anyhow::Result<Vec<TreeFile>> {
    let mut files = Vec::new();
    for bundle in &inputs.bundles {
        for upstream in &bundle.upstream {
            let (address, _) = inputs.fetched(upstream);
            let place = format!(
                "bundles/{}/{}/{}",
                bundle.project,
                bundle.name,
                upstream.path.display()
            );
            files.extend(placed(
                store,
                address,
                inputs.environment.images.into(),
                &place,
            )?);
        }
    }
    Ok(files)
}

fn placed(
    store: &Store,
    address: &str,
    origin: Origin,
    place: &str,
) -> anyhow::Result<Vec<TreeFile>> {
    let entry = store.find(&Name::File(address.to_owned()), origin)?;
    let entry = entry
        .with_context(|| format!("{address} is not in the store {}", store.folder().display()))?;
    let bytes = store.read(address, &entry.target)?;
    match address.ends_with(".tgz") || address.ends_with(".tar.gz") {
        true => unpacked(&bytes, place).with_context(|| format!("unpack {address}")),
        false => Ok(vec![TreeFile {
            path: place.to_owned(),
            mode: Mode::Plain,
            bytes,
        }]),
    }
}

/// The files of an archive below `place`, without the one folder that charts are packed in.
fn unpacked(archive: &[u8], place: &str) -> anyhow::Result<Vec<TreeFile>> {
    let mut files = Vec::new();
    for entry in Archive::new(GzDecoder::new(archive)).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let Some(path) = below_top(&path)? else {
            continue;
        };
        let mode = match entry.header().entry_type() {
            EntryType::Regular if entry.header().mode()? & 0o111 != 0 => Mode::Executable,
            EntryType::Regular => Mode::Plain,
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            other => {
                anyhow::bail!("{path} is a {other:?}, and only files and folders are expected")
            }
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.push(TreeFile {
            path: format!("{place}/{path}"),
            mode,
            bytes,
        });
    }
    anyhow::ensure!(!files.is_empty(), "there is no file in it");
    Ok(files)
}

/// A path without its first part, with `/` between the others; `None` for the first part itself. A path that leads out of
/// the archive is refused.
fn below_top(path: &Path) -> anyhow::Result<Option<String>> {
    let parts = path
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => name.to_str().context("a name in it isn't UTF-8"),
            _ => anyhow::bail!("{} leads out of it", path.display()),
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let below = parts.get(1..).unwrap_or_default();
    Ok((!below.is_empty()).then(|| below.join("/")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, text) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            // By hand: the library refuses to write what it is our business to refuse to read.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, text.as_bytes()).unwrap();
        }
        let mut packed = builder.into_inner().unwrap();
        packed.flush().unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn a_chart_is_placed_without_its_top_folder() {
        let chart = archive(&[
            ("base/Chart.yaml", "name: base\n"),
            ("base/files/crds.yaml", "kind: X\n"),
        ]);
        let files = unpacked(&chart, "bundles/infrastructure/istio-base/base/charts/base").unwrap();
        let paths: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "bundles/infrastructure/istio-base/base/charts/base/Chart.yaml",
                "bundles/infrastructure/istio-base/base/charts/base/files/crds.yaml"
            ]
        );
        assert_eq!(files[0].bytes, b"name: base\n");
    }

    #[test]
    fn an_archive_that_leads_out_of_itself_is_refused() {
        for path in ["../evil", "base/../../evil", "/etc/passwd"] {
            let error = unpacked(&archive(&[(path, "x")]), "bundles/a/b/c").unwrap_err();
            assert!(
                error.to_string().contains("leads out of it"),
                "{path}: {error:#}"
            );
        }
        assert_eq!(
            unpacked(&archive(&[]), "x").unwrap_err().to_string(),
            "there is no file in it"
        );
    }
}
