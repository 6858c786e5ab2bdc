//! What a kustomization brings together, as far as that can be known without running kustomize: which files it names, that
//! they are there and can be read, and the objects in them.
//!
//! kustomize runs inside Argo CD, so most of what makes a rendering fail would only be found after the cluster is up. A file
//! that is missing or broken is found here, before anything is touched. What patches and replacements come to isn't known here.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::error::Mistake;
use crate::suggest::did_you_mean;
use crate::yaml::Segment::{Item, Key};
use crate::yaml::{Segment, Source};

/// The names that kustomize looks for in a folder.
const FILES: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Every object in the files that are named as resources.
    pub objects: Vec<Value>,
    /// What would make the rendering fail.
    pub mistakes: Vec<Mistake>,
    seen: BTreeSet<PathBuf>,
}

/// Follows the kustomization of a folder through everything it names. `placed` are the paths that aren't there yet, because
/// they come from upstream; they and what is below them are passed over.
pub fn walk(folder: &Path, placed: &[PathBuf]) -> Found {
    let mut found = Found::default();
    follow_folder(folder, placed, &mut found);
    found
}

/// Whether kustomize would find a kustomization in this folder.
pub fn is_in(folder: &Path) -> bool {
    file_of(folder).is_some()
}

fn file_of(folder: &Path) -> Option<PathBuf> {
    FILES
        .iter()
        .map(|name| folder.join(name))
        .find(|file| file.is_file())
}

fn follow_folder(folder: &Path, placed: &[PathBuf], found: &mut Found) {
    let Some(file) = file_of(folder) else { return };
    if !found.seen.insert(file.clone()) {
        return;
    }
    let source = match Source::read(&file) {
        Ok(source) => source,
        Err(mistake) => return found.mistakes.push(mistake),
    };
    let kustomization = match source.value() {
        Ok(kustomization) => kustomization,
        Err(mistake) => return found.mistakes.push(mistake),
    };
    let context = Context {
        folder,
        placed,
        source: &source,
    };
    for key in ["resources", "components", "bases"] {
        for (index, path) in texts(&kustomization[key]) {
            follow(&context, &[Key(key), Item(index)], path, found);
        }
    }
    for (place, path) in other_files(&kustomization) {
        let place: Vec<Segment<'_>> = place.iter().map(Step::segment).collect();
        if let Some(mistake) = missing(&context, &place, path) {
            found.mistakes.push(mistake);
        }
    }
}

/// Where a path is written.
struct Context<'a> {
    folder: &'a Path,
    placed: &'a [PathBuf],
    source: &'a Source,
}

impl Context<'_> {
    fn target(&self, path: &str) -> PathBuf {
        normal(&self.folder.join(path))
    }

    fn comes_from_upstream(&self, target: &Path) -> bool {
        self.placed.iter().any(|placed| target.starts_with(placed))
    }
}

/// A resource or component: a folder with a kustomization of its own, or a file of objects.
fn follow(context: &Context<'_>, place: &[Segment<'_>], path: &str, found: &mut Found) {
    if path.contains("://") || path.starts_with("git@") || path.starts_with("github.com/") {
        found.mistakes.push(context.source.mistake(
            place,
            format!("`{path}` would be fetched from inside the cluster, which reaches nothing"),
            Some(
                "name it under `upstream:` in bundle.yaml, with the path where it is placed, and that path here"
                    .to_owned(),
            ),
        ));
        return;
    }
    let target = context.target(path);
    if context.comes_from_upstream(&target) {
        return;
    }
    if target.is_dir() {
        match is_in(&target) {
            true => follow_folder(&target, context.placed, found),
            false => found.mistakes.push(context.source.mistake(
                place,
                format!("the folder `{path}` has no kustomization.yaml"),
                None,
            )),
        }
        return;
    }
    if let Some(mistake) = missing(context, place, path) {
        found.mistakes.push(mistake);
        return;
    }
    if !found.seen.insert(target.clone()) {
        return;
    }
    match Source::read(&target).and_then(|source| source.documents()) {
        Ok(objects) => found.objects.extend(objects),
        Err(mistake) => found.mistakes.push(mistake),
    }
}

fn missing(context: &Context<'_>, place: &[Segment<'_>], path: &str) -> Option<Mistake> {
    let target = context.target(path);
    if target.exists() || context.comes_from_upstream(&target) {
        return None;
    }
    let beside: Vec<String> = target
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let name = target
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Some(context.source.mistake(
        place,
        format!("there is no `{path}` here"),
        did_you_mean(&name, beside.iter().map(String::as_str)),
    ))
}

/// One step of a place whose keys are known beforehand.
#[derive(Clone, Copy)]
enum Step {
    Key(&'static str),
    Item(usize),
}

impl Step {
    fn segment(&self) -> Segment<'static> {
        match self {
            Self::Key(key) => Key(key),
            Self::Item(index) => Item(*index),
        }
    }
}

/// The files that a kustomization names for other ends than to be resources.
fn other_files(kustomization: &Value) -> Vec<(Vec<Step>, &str)> {
    let mut files = Vec::new();
    for key in [
        "patchesStrategicMerge",
        "configurations",
        "crds",
        "openapi",
        "generators",
        "transformers",
        "validators",
    ] {
        // The first of these may hold whole patches instead of paths.
        let paths = texts(&kustomization[key]).filter(|(_, text)| !text.contains('\n'));
        files.extend(paths.map(|(index, path)| (vec![Step::Key(key), Step::Item(index)], path)));
    }
    for (key, inner) in [
        ("patches", "path"),
        ("replacements", "path"),
        ("helmCharts", "valuesFile"),
    ] {
        for (index, item) in items(&kustomization[key]) {
            if let Some(path) = item[inner].as_str() {
                files.push((
                    vec![Step::Key(key), Step::Item(index), Step::Key(inner)],
                    path,
                ));
            }
        }
    }
    for key in ["configMapGenerator", "secretGenerator"] {
        for (index, item) in items(&kustomization[key]) {
            for inner in ["files", "envs"] {
                for (inner_index, text) in texts(&item[inner]) {
                    // `name=path`, where the file goes by another name.
                    let path = text.split_once('=').map_or(text, |(_, path)| path);
                    let place = [
                        Step::Key(key),
                        Step::Item(index),
                        Step::Key(inner),
                        Step::Item(inner_index),
                    ];
                    files.push((place.to_vec(), path));
                }
            }
        }
    }
    files
}

fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

fn texts(list: &Value) -> impl Iterator<Item = (usize, &str)> {
    items(list).filter_map(|(index, item)| Some((index, item.as_str()?)))
}

/// The path without `.` and `..`, as kustomize reads it: by its words, not by where links lead.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn mistakes(files: &[(&str, &str)], placed: &[&str]) -> String {
        let folder = project(files);
        let placed: Vec<PathBuf> = placed.iter().map(|path| folder.path().join(path)).collect();
        let found = walk(&folder.path().join("overlays/dev"), &placed);
        let told: Vec<String> = found.mistakes.iter().map(ToString::to_string).collect();
        told.join("\n\n")
            .replace(&folder.path().display().to_string(), "[folder]")
    }

    const OVERLAY: (&str, &str) = (
        "overlays/dev/kustomization.yaml",
        "resources:\n  - ../../base\n",
    );

    #[test]
    fn objects_are_found_through_folders_and_components() {
        let folder = project(&[
            (
                "overlays/dev/kustomization.yaml",
                "resources: [../../base, ../../base]\ncomponents: [../../../c]\n",
            ),
            ("base/kustomization.yaml", "resources: [a.yaml]\n"),
            ("base/a.yaml", "kind: A\n---\nkind: B\n"),
        ]);
        let component = folder.path().parent().unwrap().join("c");
        let found = walk(&folder.path().join("overlays/dev"), &[component]);
        let kinds: Vec<_> = found.objects.iter().map(|object| &object["kind"]).collect();
        assert_eq!(kinds, ["A", "B"]);
        assert_eq!(found.mistakes.len(), 0, "{:?}", found.mistakes);
    }

    #[test]
    fn what_is_missing_is_named_where_it_is_written() {
        let base = "resources:\n  - depoyment.yaml\n  - charts/x\npatches:\n  - path: no.yaml\nconfigMapGenerator:\n  - name: x\n    files: [a=gone.txt]\n";
        insta::assert_snapshot!(
            mistakes(
                &[OVERLAY, ("base/kustomization.yaml", base), ("base/deployment.yaml", "kind: A\n")],
                &["base/charts"],
            ),
            @r"
        [folder]/base/kustomization.yaml:2:5: there is no `depoyment.yaml` here
          |
        2 |   - depoyment.yaml
          |     ^
        hint: did you mean `deployment.yaml`?

        [folder]/base/kustomization.yaml:5:11: there is no `no.yaml` here
          |
        5 |   - path: no.yaml
          |           ^

        [folder]/base/kustomization.yaml:8:13: there is no `gone.txt` here
          |
        8 |     files: [a=gone.txt]
          |             ^
        "
        );
    }

    #[test]
    fn what_is_broken_is_shown() {
        insta::assert_snapshot!(
            mistakes(
                &[
                    OVERLAY,
                    ("base/kustomization.yaml", "resources: [a.yaml, b, https://example.org/x.yaml]\n"),
                    ("base/a.yaml", "kind: A\n---\nkind: B\nkind: C\n"),
                    ("base/b/readme", ""),
                ],
                &[],
            ),
            @r"
        [folder]/base/a.yaml:4:1: `kind` is given twice
          |
        4 | kind: C
          | ^
        hint: keep one of the two

        [folder]/base/kustomization.yaml:1:21: the folder `b` has no kustomization.yaml
          |
        1 | resources: [a.yaml, b, https://example.org/x.yaml]
          |                     ^

        [folder]/base/kustomization.yaml:1:24: `https://example.org/x.yaml` would be fetched from inside the cluster, which reaches nothing
          |
        1 | resources: [a.yaml, b, https://example.org/x.yaml]
          |                        ^
        hint: name it under `upstream:` in bundle.yaml, with the path where it is placed, and that path here
        "
        );
    }
}
