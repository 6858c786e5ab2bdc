//! The environment: one cluster and what runs on it, as `cluster-configs/<name>.yaml` describes it.
//!
//! [`Selector`] is what was typed, [`find`] turns it into a file, [`parse`] turns the file's text into an [`Environment`]
//! or the list of all its mistakes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bundle;
use crate::error::{Failure, Mistake};
use crate::store::reference::{Digest, ImageReference, InvalidReference};
use crate::suggest::did_you_mean;
use crate::yaml::Segment::{Item, Key, Name};
use crate::yaml::Source;

/// The folder that holds environment files, and marks the root of a project.
pub const FOLDER: &str = "cluster-configs";

/// An environment that can be brought up: every value in it is checked.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The file's name without its extension.
    pub name: EnvironmentName,
    /// 12 hexadecimal digits that only this file on this machine has; our mark on everything made for it.
    pub id: String,
    /// The cluster's name at its provider: `devenv-<name>`, or the context of one that is there already.
    pub cluster: String,
    /// The project: the folder that holds `cluster-configs/` and `bundles/`.
    pub root: PathBuf,
    /// The environment's file.
    pub file: PathBuf,
    /// What runs the cluster.
    pub provider: Provider,
    /// The provider's own config file; where there is none, since the cluster is there already, the environment's file.
    pub config: PathBuf,
    /// The cluster that is there already, with [`Provider::Existing`] and only with it.
    pub existing: Option<Existing>,
    /// Where images come from.
    pub images: ImageOrigin,
    /// The image of the cluster's nodes, where devenv has them made.
    pub node_image: Option<ImageReference>,
    /// The images that the nodes start by themselves and that aren't in the node image, as it is with k3s.
    pub system_images: Vec<ImageReference>,
    /// The overlays in the order of preference; a bundle uses the first that it has.
    pub overlays: Vec<String>,
    /// The domain below which every name lives.
    pub domain: Domain,
    /// Whether the names are put into the hosts file.
    pub hosts: HostsFile,
    /// The bundles that this environment leaves out.
    pub exclude: Vec<String>,
    /// What stands for an upstream image here: upstream reference to the reference used.
    pub image_names: BTreeMap<ImageReference, ImageReference>,
    /// What stands for an upstream chart or manifest here: upstream address to the address used.
    pub addresses: BTreeMap<String, String>,
    /// The file's text, for mistakes that only show against other files.
    pub(crate) source: Source,
}

impl Environment {
    /// The reference that stands for this upstream image here; itself if nothing does.
    pub fn image<'a>(&'a self, upstream: &'a ImageReference) -> &'a ImageReference {
        self.image_names.get(upstream).unwrap_or(upstream)
    }
}

/// What runs the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provider {
    /// kind: Kubernetes nodes as containers, set up by kubeadm.
    Kind,
    /// k3d: k3s nodes as containers.
    K3d,
    /// Somebody: the cluster is there already, and neither made nor removed.
    Existing,
}

impl fmt::Display for Provider {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kind => "kind",
            Self::K3d => "k3d",
            Self::Existing => "existing",
        })
    }
}

/// A cluster that is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// The kube context that leads to it.
    pub context: String,
    /// The kubeconfig that has the context; without it the user's own (`KUBECONFIG`, `~/.kube/config`).
    pub kubeconfig: Option<PathBuf>,
    /// The private registry that its nodes pull from; without it they pull from where the images' names say.
    pub registry: Option<Registry>,
}

/// A place in an image registry: `registry.example.org/platform`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry(String);

impl Registry {
    /// What an image is called there. Its own registry stays a part of the name, so that no two images have one name:
    /// `registry.example.org/platform/quay.io/argoproj/argocd:v3.2.11`. A digest alone becomes a tag: what is pushed there
    /// is the image of one platform, and that of all platforms may be what the digest pins.
    pub fn place(&self, image: &ImageReference) -> Result<ImageReference, InvalidReference> {
        let from = image
            .registry()
            .to_lowercase()
            .replace([':', '[', ']'], "-");
        let tag = match (image.tag(), image.digest()) {
            (Some(tag), _) => tag.to_owned(),
            (None, Some(digest)) => format!("sha256-{}", &digest.hex()[..12]),
            (None, None) => String::new(),
        };
        format!(
            "{}/{}/{}:{tag}",
            self.0,
            from.trim_matches('-'),
            image.repository()
        )
        .parse()
    }
}

impl FromStr for Registry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "`{text}` is no place in a registry{why}, expected its host and a path, such as `registry.example.org/platform`"
            )
        };
        let inside = format!("{text}/a:1").parse::<ImageReference>();
        match inside {
            Ok(image)
                if text.starts_with(&format!("{}/", image.registry()))
                    || text == image.registry() =>
            {
                Ok(Self(text.to_owned()))
            }
            Ok(_) => Err(wrong(": its host has neither a dot nor a port")),
            Err(_) => Err(wrong("")),
        }
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Where an environment's images come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageOrigin {
    /// Image registries.
    Registry,
    /// Built by `scripts/packages` from package registries.
    Packages,
}

/// Whether an environment's names are put into this machine's hosts file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostsFile {
    /// If this user may, or lets sudo do it.
    #[default]
    Auto,
    /// The lines are printed, and the file is left alone.
    Print,
    /// Nobody wants to hear of it.
    Off,
}

/// The name of an environment: at most 24 of a-z, 0-9 and `-`, and no `-` at either end, so that the names made from it
/// fit everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvironmentName(String);

impl EnvironmentName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EnvironmentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if is_dns_label(text) && text.len() <= 24 {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` can't name an environment, expected at most 24 of a-z, 0-9 and `-`, and no `-` at either end"
        ))
    }
}

impl fmt::Display for EnvironmentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A DNS domain in lower case, without a dot at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain(String);

impl Domain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Room for the longest name below it, and a name of digits alone would be taken for an address.
        let last_is_number = text
            .rsplit('.')
            .next()
            .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if text.len() <= 190 && text.split('.').all(is_dns_label) && !last_is_number {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "`{text}` is no domain, expected labels of a-z, 0-9 and `-` with dots between them, such as `local` or `dev.example.org`"
        ))
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether the text can be a Kubernetes name: 1 to 63 of a-z, 0-9 and `-`, and no `-` at either end.
pub fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Which environment was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// One of `cluster-configs/`, by its name.
    Named(String),
    /// A file: what was typed ends in `.yaml` or `.yml`, or has a `/`.
    File(PathBuf),
}

impl From<&str> for Selector {
    fn from(typed: &str) -> Self {
        if typed.ends_with(".yaml") || typed.ends_with(".yml") || typed.contains('/') {
            Self::File(PathBuf::from(typed))
        } else {
            Self::Named(typed.to_owned())
        }
    }
}

/// An environment's file and the project it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The project's folder.
    pub root: PathBuf,
    /// The environment's file.
    pub file: PathBuf,
}

/// Where the selected environment is.
pub fn find(selector: &Selector, working_directory: &Path) -> Result<Location, Failure> {
    match selector {
        Selector::File(file) => {
            let file = working_directory.join(file);
            if !file.is_file() {
                return Err(Failure::Usage {
                    message: format!("there is no file {}", file.display()),
                    hint: "name an environment of cluster-configs/, or the path of an environment file"
                        .to_owned(),
                });
            }
            // The project is where the file lies; a file from elsewhere is used with the project one stands in.
            let root = file
                .parent()
                .and_then(root_above)
                .or_else(|| root_above(working_directory))
                .ok_or_else(|| no_project(working_directory))?;
            Ok(Location { root, file })
        }
        Selector::Named(name) => {
            let root =
                root_above(working_directory).ok_or_else(|| no_project(working_directory))?;
            let file = root.join(FOLDER).join(format!("{name}.yaml"));
            if !file.is_file() {
                return Err(unknown(name, &root));
            }
            Ok(Location { root, file })
        }
    }
}

/// The names of a project's environments, sorted: every file of `cluster-configs/` that isn't another tool's.
pub fn names(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root.join(FOLDER)) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .filter(|file| {
            Source::read(file).is_ok_and(|source| kind_of_another_tool(&source).is_none())
        })
        .filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// An environment from its file's text, or everything that is wrong with it.
pub fn parse(location: &Location, source: Source) -> Result<Environment, Vec<Mistake>> {
    if let Some(kind) = kind_of_another_tool(&source) {
        let names = names(&location.root);
        let message =
            format!("this is no environment: `kind: {kind}` makes it another tool's file");
        return Err(vec![source.mistake(
            &[Name("kind")],
            message,
            existing(&names),
        )]);
    }
    let written: Written = source.parse().map_err(|mistake| vec![mistake])?;
    check(location, source, written)
}

/// The keys of an environment file, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    provider: Provider,
    config: Option<String>,
    context: Option<String>,
    kubeconfig: Option<String>,
    registry: Option<String>,
    images: Option<ImageOrigin>,
    node_image: Option<String>,
    system_images: Option<Vec<String>>,
    #[serde(default = "dev")]
    overlays: Vec<String>,
    #[serde(default = "local")]
    domain: String,
    #[serde(default)]
    hosts: HostsFile,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    image_names: BTreeMap<String, String>,
    #[serde(default)]
    addresses: BTreeMap<String, String>,
}

fn dev() -> Vec<String> {
    vec!["dev".to_owned()]
}

fn local() -> String {
    "local".to_owned()
}

fn check(
    location: &Location,
    source: Source,
    written: Written,
) -> Result<Environment, Vec<Mistake>> {
    let mut mistakes = Vec::new();

    let stem = source
        .file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy();
    let name = stem.parse::<EnvironmentName>();
    let name = keep(
        name.map_err(|message| source.mistake(&[], message, Some("rename the file".to_owned()))),
        &mut mistakes,
    );

    mistakes.extend(keys_of_other_providers(&source, &written));
    let is_existing = written.provider == Provider::Existing;
    let config = match is_existing {
        true => Some(source.file.clone()),
        false => keep(
            native_config(&source, written.config.as_deref()),
            &mut mistakes,
        ),
    };
    let existing = match is_existing {
        true => existing_cluster(&source, &written, &mut mistakes).map(Some),
        false => Some(None),
    };
    let images = keep(
        written.images.ok_or_else(|| missing(&source, "images")),
        &mut mistakes,
    );
    let node_image = match (is_existing, &written.node_image) {
        (true, _) => Some(None),
        (false, text) => {
            let text = text.as_ref().ok_or_else(|| missing(&source, "node-image"));
            let image = text.and_then(|text| reference(&source, &[Key("node-image")], text));
            keep(image, &mut mistakes).map(Some)
        }
    };
    let system_images = written
        .system_images
        .iter()
        .flatten()
        .enumerate()
        .filter_map(|(index, text)| {
            let place = [Key("system-images"), Item(index)];
            keep(reference(&source, &place, text), &mut mistakes)
        })
        .collect();

    if written.overlays.is_empty() {
        mistakes.push(source.mistake(
            &[Key("overlays")],
            "`overlays` is empty, expected at least one folder name",
            Some("leave the key out for the default, [dev]".to_owned()),
        ));
    }
    for (index, overlay) in written.overlays.iter().enumerate() {
        if !is_dns_label(overlay) {
            mistakes.push(source.mistake(
                &[Key("overlays"), Item(index)],
                format!("`{overlay}` is no overlay, expected the name of a folder below `overlays/`: a-z, 0-9 and `-`"),
                None,
            ));
        }
    }

    let domain = written
        .domain
        .parse::<Domain>()
        .map_err(|message| source.mistake(&[Key("domain")], message, None));
    let domain = keep(domain, &mut mistakes);

    let mut image_names = BTreeMap::new();
    for (upstream, used) in &written.image_names {
        let upstream_name = keep(
            reference(&source, &[Key("image-names"), Name(upstream)], upstream),
            &mut mistakes,
        );
        let used_name = keep(
            reference(&source, &[Key("image-names"), Key(upstream)], used),
            &mut mistakes,
        );
        if let (Some(upstream_name), Some(used_name)) = (upstream_name, used_name)
            && image_names
                .insert(upstream_name.clone(), used_name)
                .is_some()
        {
            mistakes.push(source.mistake(
                &[Key("image-names"), Name(upstream)],
                format!("{upstream_name} is given twice, in two ways of writing it"),
                Some("keep one of the two".to_owned()),
            ));
        }
    }

    for (upstream, used) in &written.addresses {
        if !bundle::is_address(used) {
            mistakes.push(source.mistake(
                &[Key("addresses"), Key(upstream)],
                format!("`{used}` is no address that can be fetched, expected `https://…`"),
                None,
            ));
        }
    }

    let (
        Some(name),
        Some(config),
        Some(existing),
        Some(images),
        Some(node_image),
        Some(domain),
        true,
    ) = (
        name,
        config,
        existing,
        images,
        node_image,
        domain,
        mistakes.is_empty(),
    )
    else {
        return Err(mistakes);
    };
    Ok(Environment {
        id: identity(&source.file),
        cluster: match &existing {
            Some(existing) => existing.context.clone(),
            None => format!("devenv-{name}"),
        },
        name,
        root: location.root.clone(),
        file: source.file.clone(),
        provider: written.provider,
        config,
        existing,
        images,
        node_image,
        system_images,
        overlays: written.overlays,
        domain,
        hosts: written.hosts,
        exclude: written.exclude,
        image_names,
        addresses: written.addresses,
        source,
    })
}

/// Keys that say nothing with this provider. A key that is passed over would leave somebody in the belief that it isn't.
fn keys_of_other_providers(source: &Source, written: &Written) -> Vec<Mistake> {
    let of_nodes = [
        ("config", written.config.is_some()),
        ("node-image", written.node_image.is_some()),
        ("system-images", written.system_images.is_some()),
    ];
    let of_existing = [
        ("context", written.context.is_some()),
        ("kubeconfig", written.kubeconfig.is_some()),
        ("registry", written.registry.is_some()),
    ];
    let (keys, of, help) = match written.provider {
        Provider::Existing => (
            of_nodes,
            "kind and k3d, which make nodes: those of an existing cluster are there already",
            "take it out",
        ),
        Provider::Kind | Provider::K3d => (
            of_existing,
            "`provider: existing`",
            "take it out, or write `provider: existing` for a cluster that is there already",
        ),
    };
    keys.into_iter()
        .filter(|(_, is_there)| *is_there)
        .map(|(key, _)| {
            let message = format!("`{key}` is for {of}");
            source.mistake(&[Name(key)], message, Some(help.to_owned()))
        })
        .collect()
}

/// What the environment's file says about a cluster that is there already.
fn existing_cluster(
    source: &Source,
    written: &Written,
    mistakes: &mut Vec<Mistake>,
) -> Option<Existing> {
    let context = match written.context.as_deref() {
        None => Err(missing(source, "context")),
        Some("") => Err(source.mistake(
            &[Key("context")],
            "`context` is empty, expected the name of a kube context",
            Some("kubectl config get-contexts -o name lists them".to_owned()),
        )),
        Some(context) => Ok(context.to_owned()),
    };
    let context = keep(context, mistakes);
    let registry = written.registry.as_deref().map(|text| {
        text.parse::<Registry>()
            .map_err(|message| source.mistake(&[Key("registry")], message, None))
    });
    let registry = registry.map(|registry| keep(registry, mistakes));
    if registry.is_none() && written.images == Some(ImageOrigin::Packages) {
        mistakes.push(source.mistake(
            &[Key("images")],
            "images that are built from packages are in no registry, and this cluster's nodes pull from one",
            Some(
                "name a registry of yours, `registry: registry.example.org/platform`; `devenv images push` fills it"
                    .to_owned(),
            ),
        ));
    }
    let beside = source.file.parent().unwrap_or(Path::new(""));
    Some(Existing {
        context: context?,
        kubeconfig: written
            .kubeconfig
            .as_deref()
            .map(|path| beside.join(at_home(path))),
        registry: match registry {
            None => None,
            Some(registry) => Some(registry?),
        },
    })
}

/// A path that begins with `~/`, as shells read it.
fn at_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(below), Some(home)) => PathBuf::from(home).join(below),
        _ => PathBuf::from(path),
    }
}

/// The path of the native config that an environment names; it lies beside the environment's file.
pub(crate) fn native_config(source: &Source, written: Option<&str>) -> Result<PathBuf, Mistake> {
    let written = written.ok_or_else(|| missing(source, "config"))?;
    let file = source.file.parent().unwrap_or(Path::new("")).join(written);
    if file.is_file() {
        return Ok(file);
    }
    Err(source.mistake(
        &[Key("config")],
        format!("there is no file `{written}` beside this one, expected the cluster's own config, such as `kind.yaml`"),
        None,
    ))
}

/// `provider:` and `config:` of an environment file that is otherwise wrong, so that the file it names can be checked all
/// the same.
pub(crate) fn config_of(source: &Source) -> Option<(Provider, PathBuf)> {
    let value = source.value().ok()?;
    let provider = Provider::deserialize(value.get("provider")?).ok()?;
    if provider == Provider::Existing {
        return Some((provider, source.file.clone()));
    }
    let file = native_config(source, value.get("config")?.as_str()).ok()?;
    Some((provider, file))
}

pub(crate) fn reference(
    source: &Source,
    path: &[crate::yaml::Segment<'_>],
    text: &str,
) -> Result<ImageReference, Mistake> {
    text.parse()
        .map_err(|InvalidReference { message, help }| source.mistake(path, message, help))
}

fn missing(source: &Source, key: &str) -> Mistake {
    source.mistake(
        &[Name("provider")],
        format!("the key `{key}` is missing"),
        None,
    )
}

pub(crate) fn keep<T>(result: Result<T, Mistake>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    result.map_err(|mistake| mistakes.push(mistake)).ok()
}

/// `kind:` of a file in Kubernetes' manner, as kind's and k3d's configs are.
fn kind_of_another_tool(source: &Source) -> Option<String> {
    let value = source.value().ok()?;
    value.get("apiVersion")?;
    Some(value.get("kind")?.as_str()?.to_owned())
}

/// The project that one stands in: the nearest folder with a `cluster-configs/`.
pub fn project(working_directory: &Path) -> Option<PathBuf> {
    root_above(working_directory)
}

/// The id of the environment that this file describes.
pub(crate) fn identity(file: &Path) -> String {
    // The file was just read, so it has a real path unless it vanished in between, and then the next step says so.
    let path = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    Digest::of(path.as_os_str().as_encoded_bytes()).hex()[..12].to_owned()
}

fn root_above(folder: &Path) -> Option<PathBuf> {
    folder
        .ancestors()
        .find(|ancestor| ancestor.join(FOLDER).is_dir())
        .map(Path::to_owned)
}

fn no_project(working_directory: &Path) -> Failure {
    Failure::Usage {
        message: format!(
            "there is no `{FOLDER}/` in {} or any folder above it",
            working_directory.display()
        ),
        hint: "run devenv in the folder of the repository that holds it, or begin one: devenv init"
            .to_owned(),
    }
}

fn unknown(name: &str, root: &Path) -> Failure {
    let names = names(root);
    let guess = did_you_mean(name, names.iter().map(String::as_str));
    Failure::Usage {
        message: format!(
            "there is no environment `{name}` in {}",
            root.join(FOLDER).display()
        ),
        hint: guess
            .or_else(|| existing(&names))
            .unwrap_or_else(|| format!("write `{FOLDER}/{name}.yaml`")),
    }
}

fn existing(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| format!("the environments here: {}", names.join(", ")))
}
