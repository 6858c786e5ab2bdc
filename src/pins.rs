//! `bundles/upstream.lock`: the checksums of charts and manifests whose bundle doesn't name one. What was seen first is
//! written down, is committed with the bundles, and is enforced from then on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::error::Mistake;
use crate::store::reference::Digest;
use crate::store::{Name, Origin, Store, Wanted};
use crate::yaml::Segment::Key;
use crate::yaml::Source;

/// Address to digest.
pub type Pins = BTreeMap<String, Digest>;

const HEAD: &str = "# What was seen first of charts and manifests whose bundle names no sha256. devenv refuses anything else from now on.\n\
    # Commit this file. To take a new content of an address, look at it and remove its line.\n";

/// Where it lies in a project.
pub fn file(root: &Path) -> PathBuf {
    root.join("bundles").join("upstream.lock")
}

/// What is pinned so far; nothing where there is no file yet.
pub fn read(root: &Path) -> Result<Pins, Vec<Mistake>> {
    let file = file(root);
    if !file.exists() {
        return Ok(Pins::new());
    }
    let source = Source::read(&file).map_err(|mistake| vec![mistake])?;
    let written: BTreeMap<String, String> = source.parse().map_err(|mistake| vec![mistake])?;
    let mut mistakes = Vec::new();
    let mut pins = Pins::new();
    for (address, text) in written {
        match text.parse() {
            Ok(digest) => drop(pins.insert(address, digest)),
            Err(_) => mistakes.push(source.mistake(
                &[Key(&address)],
                format!("`{text}` is no checksum, expected `sha256:` and 64 hexadecimal digits"),
                Some("remove the line: what is fetched next is written down again".to_owned()),
            )),
        }
    }
    if mistakes.is_empty() {
        Ok(pins)
    } else {
        Err(mistakes)
    }
}

/// Writes down what was fetched without a checksum; says which addresses. What is built from packages is pinned by the
/// checksums it is built from, and not here.
pub fn record(root: &Path, store: &Store, wanted: &[Wanted]) -> anyhow::Result<Vec<String>> {
    let mut added = Pins::new();
    for wanted in wanted
        .iter()
        .filter(|wanted| wanted.origin == Origin::Registry && wanted.digest.is_none())
    {
        if let Name::File(address) = &wanted.name
            && let Some(entry) = store.find(&wanted.name, wanted.origin)?
        {
            added.insert(address.clone(), entry.target.digest);
        }
    }
    if added.is_empty() {
        return Ok(Vec::new());
    }
    let file = file(root);
    let pins = read(root)
        .unwrap_or_default()
        .into_iter()
        .chain(added.clone())
        .collect();
    let write = || -> std::io::Result<()> {
        let folder = file.parent().unwrap_or(root);
        let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
        temporary.write_all(text(&pins).as_bytes())?;
        temporary.persist(&file)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", file.display()))?;
    Ok(added.into_keys().collect())
}

fn text(pins: &Pins) -> String {
    pins.iter()
        .fold(HEAD.to_owned(), |mut text, (address, digest)| {
            let _ = writeln!(text, "{address}: {digest}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::empty;

    #[test]
    fn what_is_seen_first_is_written_down_and_read_back() {
        let project = tempfile::tempdir().unwrap();
        std::fs::create_dir(project.path().join("bundles")).unwrap();
        assert_eq!(read(project.path()).unwrap(), Pins::new());
        let (_folder, store) = empty();
        let address = "https://example.org/charts/base-1.30.4.tgz";
        let wanted = |digest| Wanted {
            name: Name::File(address.to_owned()),
            origin: Origin::Registry,
            digest,
        };
        let target = store.write(crate::store::layout::FILE, b"chart").unwrap();
        let digest = target.digest.clone();
        store
            .enter(&[crate::store::Entry {
                name: wanted(None).name,
                origin: Origin::Registry,
                target,
                resolved: None,
            }])
            .unwrap();
        assert_eq!(
            record(project.path(), &store, &[wanted(None)]).unwrap(),
            [address]
        );
        assert_eq!(
            read(project.path()).unwrap(),
            Pins::from([(address.to_owned(), digest.clone())])
        );
        // Pinned by now: nothing more to write.
        assert_eq!(
            record(project.path(), &store, &[wanted(Some(digest))]).unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn a_checksum_that_is_none_is_told_with_its_line() {
        let project = tempfile::tempdir().unwrap();
        std::fs::create_dir(project.path().join("bundles")).unwrap();
        std::fs::write(
            file(project.path()),
            "# seen first\nhttps://example.org/a.tgz: sha256:1234\n",
        )
        .unwrap();
        let mistakes = read(project.path()).unwrap_err();
        let told = mistakes[0]
            .to_string()
            .replace(&project.path().display().to_string(), "[project]");
        insta::assert_snapshot!(told, @r"
        [project]/bundles/upstream.lock:2:28: `sha256:1234` is no checksum, expected `sha256:` and 64 hexadecimal digits
          |
        2 | https://example.org/a.tgz: sha256:1234
          |                            ^
        hint: remove the line: what is fetched next is written down again
        ");
    }
}
