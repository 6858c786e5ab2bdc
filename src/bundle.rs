//! Bundles: the folders `bundles/<project>/<name>/` that Argo CD syncs, one Application each.
//!
//! A bundle says of itself only what can't be seen from where it lies: its wave, its namespace, what it needs, which
//! images it runs, and what has to be fetched to complete it (`bundle.yaml`).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::environment::{Environment, is_dns_label, keep, reference};
use crate::error::Mistake;
use crate::kustomize;
use crate::need::Need;
use crate::store::reference::{Digest, ImageReference};
use crate::suggest::did_you_mean;
use crate::yaml::Segment::{self, Item, Key};
use crate::yaml::Source;

/// The folder of all bundles.
pub const FOLDER: &str = "bundles";
/// The file that makes a folder a bundle.
pub const FILE: &str = "bundle.yaml";
/// The folder in `bundles/` that is no project: the environment's kustomize component.
pub const COMPONENT: &str = "environment";

/// A bundle that is right in itself, among the others, and for its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The folder's name, and the Application's.
    pub name: String,
    /// The Argo CD project it belongs to.
    pub project: Project,
    /// Its folder: `bundles/<project>/<name>` below the project root, absolute.
    pub folder: PathBuf,
    /// Its place in the bootstrap, 1 to 4.
    pub wave: u8,
    /// The namespace its Application is for.
    pub namespace: String,
    /// What must be ready before it may begin; the default (every bundle of the earlier waves) is already filled in.
    pub needs: Vec<Need>,
    /// The images it runs, by their upstream names.
    pub images: Vec<ImageReference>,
    /// What is fetched to complete it.
    pub upstream: Vec<Upstream>,
    /// The secrets that devenv makes for it, once.
    pub secrets: Vec<GeneratedSecret>,
    /// The name of the TLS secret with every name of the platform that devenv makes and renews for it, if it wants one.
    pub certificate: Option<String>,
    /// Where people log in to what it brings.
    pub logins: Vec<Login>,
    overlay: String,
}

impl Bundle {
    /// What Argo CD renders, from the project root and with `/`: `bundles/<project>/<name>/overlays/dev`.
    pub fn path(&self) -> String {
        format!("{FOLDER}/{}/{}/{}", self.project, self.name, self.overlay)
    }

    /// One with a name and needs, for tests of what is decided by them.
    #[cfg(test)]
    pub(crate) fn for_tests(name: &str, needs: Vec<Need>) -> Self {
        Self {
            name: name.to_owned(),
            project: Project::Infrastructure,
            folder: PathBuf::from(name),
            wave: 1,
            namespace: "default".to_owned(),
            needs,
            images: Vec::new(),
            upstream: Vec::new(),
            secrets: Vec::new(),
            certificate: None,
            logins: Vec::new(),
            overlay: "base".to_owned(),
        }
    }

    /// The part of [`Self::path`] inside the bundle: `overlays/dev`, or `base` where it has none of the environment's.
    pub fn overlay(&self) -> &str {
        &self.overlay
    }
}

/// The Argo CD project that a bundle belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Project {
    /// What everything stands on: the mesh, the gateway, the database operator.
    Infrastructure,
    /// Logins.
    Iam,
    /// Logs and their display.
    Observability,
}

impl Project {
    /// All projects, in the order of the bootstrap.
    pub const ALL: [Self; 3] = [Self::Infrastructure, Self::Iam, Self::Observability];

    /// The namespaces its bundles may use: a pattern as Argo CD reads it, `*` at its end or alone.
    pub fn namespaces(self) -> &'static str {
        match self {
            Self::Infrastructure => "*",
            Self::Iam => "iam-*",
            Self::Observability => "observability-*",
        }
    }

    /// Whether its bundles may use this namespace.
    pub fn allows(self, namespace: &str) -> bool {
        namespace.starts_with(self.namespaces().trim_end_matches('*'))
    }

    /// The name of its folder, and of its AppProject.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infrastructure => "infrastructure",
            Self::Iam => "iam",
            Self::Observability => "observability",
        }
    }
}

impl fmt::Display for Project {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A secret in a bundle's namespace whose values nobody writes down: made once, kept, and never in git.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GeneratedSecret {
    /// Its name.
    pub name: String,
    /// Keys whose values are no secret, such as the user's name.
    #[serde(default)]
    pub values: BTreeMap<String, String>,
    /// Keys whose values are generated.
    pub generate: Vec<String>,
    /// The overlay that needs it; without it, every overlay does.
    #[serde(default)]
    pub overlay: Option<String>,
}

/// A login that people use: which secret holds it, and where it is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Login {
    /// The secret in the bundle's namespace.
    pub secret: String,
    /// The secret's key that holds the user's name.
    #[serde(default = "username")]
    pub user: String,
    /// The secret's key that holds the password.
    #[serde(default = "password")]
    pub password: String,
    /// A name below the environment's domain, such as `keycloak`; or, for what no browser opens, an address in the cluster.
    pub at: String,
}

fn username() -> String {
    "username".to_owned()
}

fn password() -> String {
    "password".to_owned()
}

/// A chart or manifest that isn't in the repository, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    /// Where it is placed, relative to the bundle's folder.
    pub path: PathBuf,
    /// The https address it is fetched from.
    pub address: String,
    /// Its version, for people.
    pub version: String,
    /// What its bytes must be.
    pub sha256: Option<Digest>,
}

/// The bundles that this environment brings up, sorted by wave and name, or everything that is wrong with any of them.
///
/// The ones it excludes are checked too, and left out; their names are [`Environment::exclude`].
pub fn discover(environment: &Environment) -> Result<Vec<Bundle>, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let drafts = read(&environment.root, &mut mistakes);
    check_exclude(environment, &drafts, &mut mistakes);
    let bundles = finish(environment, &drafts, &mut mistakes);
    if mistakes.is_empty() {
        Ok(bundles)
    } else {
        Err(mistakes)
    }
}

/// What is wrong with the bundles whatever the environment, for when that itself is wrong.
pub(crate) fn mistakes_in(root: &Path) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    read(root, &mut mistakes);
    mistakes
}

/// A bundle's folder and what its file says, as far as that is right.
struct Draft {
    name: String,
    project: Project,
    folder: PathBuf,
    content: Option<Content>,
}

struct Content {
    source: Source,
    wave: u8,
    namespace: String,
    needs: Option<Vec<Need>>,
    images: Vec<ImageReference>,
    upstream: Vec<Upstream>,
    secrets: Vec<GeneratedSecret>,
    certificate: Option<String>,
    logins: Vec<Login>,
}

/// The keys of bundle.yaml, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    wave: i64,
    namespace: String,
    needs: Option<Vec<Need>>,
    #[serde(default)]
    images: Vec<String>,
    #[serde(default)]
    upstream: Vec<WrittenUpstream>,
    #[serde(default)]
    secrets: Vec<GeneratedSecret>,
    certificate: Option<String>,
    #[serde(default)]
    logins: Vec<Login>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct WrittenUpstream {
    path: String,
    address: String,
    version: String,
    sha256: Option<String>,
}

/// Every bundle's folder, with what is wrong in each file and between them.
fn read(root: &Path, mistakes: &mut Vec<Mistake>) -> Vec<Draft> {
    let folder = root.join(FOLDER);
    let mut drafts = Vec::new();
    for (project_name, project_folder) in folders_in(&folder) {
        if project_name == COMPONENT {
            continue;
        }
        let Some(project) = Project::ALL
            .into_iter()
            .find(|project| project.as_str() == project_name)
        else {
            mistakes.push(unknown_project(&project_name, project_folder));
            continue;
        };
        for (name, folder) in folders_in(&project_folder) {
            drafts.push(Draft {
                content: read_one(project, &name, &folder, mistakes),
                name,
                project,
                folder,
            });
        }
    }
    if drafts.is_empty() && mistakes.is_empty() {
        mistakes.push(of_folder(
            folder,
            "there are no bundles here".to_owned(),
            Some(format!(
                "a bundle is a folder `{FOLDER}/<project>/<name>/` with a {FILE}; the default ones: devenv init"
            )),
        ));
    }
    check_names(&drafts, mistakes);
    check_needs(&drafts, mistakes);
    check_circles(&drafts, mistakes);
    mistakes.sort_by(|one, other| (&one.file, one.place).cmp(&(&other.file, other.place)));
    drafts
}

fn read_one(
    project: Project,
    name: &str,
    folder: &Path,
    mistakes: &mut Vec<Mistake>,
) -> Option<Content> {
    if !is_dns_label(name) {
        mistakes.push(of_folder(
            folder.to_owned(),
            format!("`{name}` can't name a bundle, expected at most 63 of a-z, 0-9 and `-`, and no `-` at either end"),
            Some("rename the folder".to_owned()),
        ));
    }
    let file = folder.join(FILE);
    if !file.exists() {
        mistakes.push(of_folder(
            folder.to_owned(),
            format!("this folder has no {FILE}"),
            Some(format!(
                "every folder in {FOLDER}/<project>/ is a bundle: write its {FILE} (`wave:` and `namespace:` at least), or move it elsewhere"
            )),
        ));
        return None;
    }
    let source = keep(Source::read(&file), mistakes)?;
    let written = keep(source.parse::<Written>(), mistakes)?;
    check(project, source, written, mistakes)
}

fn check(
    project: Project,
    source: Source,
    written: Written,
    mistakes: &mut Vec<Mistake>,
) -> Option<Content> {
    let before = mistakes.len();
    let wave = u8::try_from(written.wave)
        .ok()
        .filter(|wave| (1..=4).contains(wave));
    if wave.is_none() {
        mistakes.push(source.mistake(
            &[Key("wave")],
            format!("`wave` is {}, expected 1, 2, 3 or 4", written.wave),
            None,
        ));
    }
    if !is_dns_label(&written.namespace) {
        mistakes.push(source.mistake(
            &[Key("namespace")],
            format!(
                "`{}` is no namespace, expected at most 63 of a-z, 0-9 and `-`, and no `-` at either end",
                written.namespace
            ),
            None,
        ));
    } else if !project.allows(&written.namespace) {
        mistakes.push(source.mistake(
            &[Key("namespace")],
            format!(
                "bundles of the project {project} can't use the namespace `{}`, only `{}`",
                written.namespace,
                project.namespaces()
            ),
            Some(format!(
                "use another namespace, or move the bundle to {FOLDER}/{}/",
                Project::Infrastructure
            )),
        ));
    }
    let images = written
        .images
        .iter()
        .enumerate()
        .filter_map(|(index, text)| {
            keep(
                reference(&source, &[Key("images"), Item(index)], text),
                mistakes,
            )
        })
        .collect();
    let upstream = written
        .upstream
        .into_iter()
        .enumerate()
        .filter_map(|(index, upstream)| check_upstream(&source, index, upstream, mistakes))
        .collect();
    if mistakes.len() > before {
        return None;
    }
    Some(Content {
        source,
        wave: wave?,
        namespace: written.namespace,
        needs: written.needs,
        images,
        upstream,
        secrets: written.secrets,
        certificate: written.certificate,
        logins: written.logins,
    })
}

fn check_upstream(
    source: &Source,
    index: usize,
    written: WrittenUpstream,
    mistakes: &mut Vec<Mistake>,
) -> Option<Upstream> {
    let before = mistakes.len();
    let at = |key| [Key("upstream"), Item(index), Key(key)];
    let path = PathBuf::from(&written.path);
    let inside = path
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if written.path.is_empty() || !inside {
        mistakes.push(source.mistake(
            &at("path"),
            format!(
                "`{}` isn't inside the bundle, expected a path such as `base/charts`",
                written.path
            ),
            None,
        ));
    }
    if !is_address(&written.address) {
        mistakes.push(source.mistake(
            &at("address"),
            format!(
                "`{}` is no address that can be fetched, expected `https://…`",
                written.address
            ),
            None,
        ));
    }
    if written.version.is_empty() {
        mistakes.push(source.mistake(&at("version"), "`version` is empty", None));
    }
    let sha256 = written.sha256.as_deref().map(|text| {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        format!("sha256:{digits}").parse::<Digest>()
    });
    if let Some(Err(_)) = sha256 {
        mistakes.push(source.mistake(
            &at("sha256"),
            "`sha256` must be 64 lower-case hexadecimal digits",
            Some(format!(
                "print it with: curl -fsSL {} | sha256sum",
                written.address
            )),
        ));
    }
    (mistakes.len() == before).then(|| Upstream {
        path,
        address: written.address,
        version: written.version,
        sha256: sha256.and_then(Result::ok),
    })
}

/// No two bundles have one name: the name is the Application's, whatever its project.
fn check_names(drafts: &[Draft], mistakes: &mut Vec<Mistake>) {
    let mut first: BTreeMap<&str, &Draft> = BTreeMap::new();
    for draft in drafts {
        let Some(other) = first.insert(&draft.name, draft) else {
            continue;
        };
        mistakes.push(of_folder(
            draft.folder.clone(),
            format!(
                "the project {} has a bundle `{}` too",
                other.project, draft.name
            ),
            Some("rename one of the two: a bundle's name is its Application's".to_owned()),
        ));
    }
}

fn check_needs(drafts: &[Draft], mistakes: &mut Vec<Mistake>) {
    for draft in drafts {
        let Some(content) = &draft.content else {
            continue;
        };
        let needs = content.needs.as_deref().unwrap_or_default();
        for (index, need) in needs.iter().enumerate() {
            let wrong = wrong_need(drafts, draft, content, &need.bundle);
            if let Some((message, help)) = wrong {
                mistakes.push(content.source.mistake(&need_at(index), message, help));
            }
        }
    }
}

fn wrong_need(
    drafts: &[Draft],
    draft: &Draft,
    content: &Content,
    need: &str,
) -> Option<(String, Option<String>)> {
    if *need == draft.name {
        let message = format!("`{need}` needs itself");
        return Some((message, Some("take it out".to_owned())));
    }
    let Some(other) = drafts.iter().find(|other| other.name == *need) else {
        let names = drafts.iter().map(|draft| draft.name.as_str());
        return Some((
            format!("there is no bundle `{need}`"),
            did_you_mean(need, names).or_else(|| Some("name the folder of a bundle".to_owned())),
        ));
    };
    let wave = other.content.as_ref()?.wave;
    (wave > content.wave).then(|| {
        (
            format!(
                "`{need}` is in wave {wave}, after this bundle's wave {}",
                content.wave
            ),
            Some("a bundle can need only those of its own wave and earlier ones".to_owned()),
        )
    })
}

/// Whether it is an address that can be fetched.
pub(crate) fn is_address(text: &str) -> bool {
    text.strip_prefix("https://")
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        && !text.contains(char::is_whitespace)
}

/// Circles can only be among needs that are written: the default leads to earlier waves only, and a need in a later wave
/// is a mistake of its own.
fn check_circles(drafts: &[Draft], mistakes: &mut Vec<Mistake>) {
    let by_name: BTreeMap<&str, &Content> = drafts
        .iter()
        .filter_map(|draft| Some((draft.name.as_str(), draft.content.as_ref()?)))
        .collect();
    let mut finished = Vec::new();
    for name in by_name.keys() {
        walk(name, &by_name, &mut Vec::new(), &mut finished, mistakes);
    }
}

fn walk<'a>(
    name: &'a str,
    by_name: &BTreeMap<&'a str, &'a Content>,
    trail: &mut Vec<&'a str>,
    finished: &mut Vec<&'a str>,
    mistakes: &mut Vec<Mistake>,
) {
    let Some(content) = by_name.get(name).copied() else {
        return;
    };
    if finished.contains(&name) {
        return;
    }
    trail.push(name);
    for (index, need) in content.needs.iter().flatten().enumerate() {
        let need = &need.bundle;
        match trail.iter().position(|earlier| earlier == need) {
            Some(start) if trail.len() - start > 1 => {
                let circle: Vec<&str> = trail[start..]
                    .iter()
                    .copied()
                    .chain([need.as_str()])
                    .collect();
                mistakes.push(
                    content.source.mistake(
                        &need_at(index),
                        format!("needs make a circle: {}", circle.join(" -> ")),
                        Some(
                            "each of these would wait for the next one; take one of the needs out"
                                .to_owned(),
                        ),
                    ),
                );
            }
            Some(_) => {} // itself: told already
            None => walk(need, by_name, trail, finished, mistakes),
        }
    }
    trail.pop();
    finished.push(name);
}

fn check_exclude(environment: &Environment, drafts: &[Draft], mistakes: &mut Vec<Mistake>) {
    for (index, excluded) in environment.exclude.iter().enumerate() {
        let path = [Key("exclude"), Item(index)];
        if environment.exclude[..index].contains(excluded) {
            mistakes.push(environment.source.mistake(
                &path,
                format!("`{excluded}` is excluded twice"),
                Some("keep one of the two".to_owned()),
            ));
            continue;
        }
        if !drafts.iter().any(|draft| draft.name == *excluded) {
            let names = drafts.iter().map(|draft| draft.name.as_str());
            mistakes.push(environment.source.mistake(
                &path,
                format!("there is no bundle `{excluded}` to exclude"),
                did_you_mean(excluded, names),
            ));
        }
        let needed_by: Vec<&str> = drafts
            .iter()
            .filter(|draft| !environment.exclude.contains(&draft.name))
            .filter(|draft| {
                let needs = draft
                    .content
                    .as_ref()
                    .and_then(|content| content.needs.as_ref());
                needs.is_some_and(|needs| needs.iter().any(|need| need.bundle == *excluded))
            })
            .map(|draft| draft.name.as_str())
            .collect();
        if !needed_by.is_empty() {
            mistakes.push(environment.source.mistake(
                &path,
                format!(
                    "`{excluded}` can't be excluded: {} needs it",
                    needed_by.join(", ")
                ),
                Some("exclude what needs it too, or take it out of `needs`".to_owned()),
            ));
        }
    }
}

/// The drafts that this environment includes, as bundles.
fn finish(environment: &Environment, drafts: &[Draft], mistakes: &mut Vec<Mistake>) -> Vec<Bundle> {
    let included: Vec<(&Draft, &Content)> = drafts
        .iter()
        .filter(|draft| !environment.exclude.contains(&draft.name))
        .filter_map(|draft| Some((draft, draft.content.as_ref()?)))
        .collect();
    let mut bundles = Vec::new();
    for (draft, content) in &included {
        let Some(overlay) = overlay_of(environment, &draft.folder) else {
            mistakes.push(of_folder(
                draft.folder.clone(),
                format!(
                    "there is neither a `base` nor one of the environment's overlays ({}) here",
                    environment.overlays.join(", ")
                ),
                Some("a folder counts when it holds a kustomization.yaml".to_owned()),
            ));
            continue;
        };
        let needs = match &content.needs {
            Some(needs) => needs.clone(),
            None => included
                .iter()
                .filter(|(_, other)| other.wave < content.wave)
                .map(|(other, _)| Need::bundle(&other.name))
                .collect(),
        };
        bundles.push(Bundle {
            name: draft.name.clone(),
            project: draft.project,
            folder: draft.folder.clone(),
            wave: content.wave,
            namespace: content.namespace.clone(),
            needs,
            images: content.images.clone(),
            upstream: content.upstream.clone(),
            secrets: content
                .secrets
                .iter()
                .filter(|secret| {
                    let needs = secret
                        .overlay
                        .as_ref()
                        .map(|name| format!("overlays/{name}"));
                    needs.is_none_or(|needs| needs == overlay)
                })
                .cloned()
                .collect(),
            certificate: content.certificate.clone(),
            logins: content.logins.clone(),
            overlay,
        });
    }
    bundles.sort_by(|one, other| (one.wave, &one.name).cmp(&(other.wave, &other.name)));
    bundles
}

fn overlay_of(environment: &Environment, folder: &Path) -> Option<String> {
    environment
        .overlays
        .iter()
        .map(|overlay| format!("overlays/{overlay}"))
        .chain(["base".to_owned()])
        .find(|overlay| kustomize::is_in(&folder.join(overlay)))
}

fn need_at(index: usize) -> [Segment<'static>; 2] {
    [Key("needs"), Item(index)]
}

/// The folders in a folder, sorted by name; hidden ones are nobody's bundles.
fn folders_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut folders: Vec<(String, PathBuf)> = entries
        .filter_map(Result::ok)
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                entry.path(),
            )
        })
        .filter(|(name, path)| !name.starts_with('.') && path.is_dir())
        .collect();
    folders.sort();
    folders
}

fn unknown_project(name: &str, folder: PathBuf) -> Mistake {
    let names = Project::ALL.map(Project::as_str);
    of_folder(
        folder,
        format!(
            "`{name}` is no project, expected one of {}",
            names.join(", ")
        ),
        did_you_mean(name, names),
    )
}

fn of_folder(folder: PathBuf, message: String, help: Option<String>) -> Mistake {
    Mistake {
        file: folder,
        place: None,
        message,
        source_line: None,
        help,
    }
}
