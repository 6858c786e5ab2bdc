//! Everything that a person wrote, read and checked before anything is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bundle::{self, Bundle, Upstream};
use crate::cluster::config::ClusterConfig;
use crate::environment::{self, Environment, Selector};
use crate::error::{Failure, Mistake};
use crate::gitops::argocd;
use crate::kube::text;
use crate::kustomize::{self, Found};
use crate::names::virtual_services;
use crate::pins::{self, Pins};
use crate::store::reference::{Digest, ImageReference};
use crate::yaml::{Segment, Source};

/// An environment, its cluster's native config, and its bundles: all checked, each alone and together.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The environment.
    pub environment: Environment,
    /// The native cluster config it names.
    pub cluster_config: ClusterConfig,
    /// The bundles it includes, sorted by wave and name.
    pub bundles: Vec<Bundle>,
    /// The names below the environment's domain that its bundles serve.
    pub names: BTreeSet<String>,
    /// The namespaces that the bundles' own files make.
    pub namespaces: BTreeSet<String>,
    /// The classes of the volumes that the bundles' own files ask for; `None` is the cluster's default one.
    pub storage: BTreeSet<Option<String>>,
    /// What stands for an upstream image in the cluster: upstream reference to the reference used. It differs from the name in
    /// the store where the nodes pull from a private registry.
    pub image_names: BTreeMap<ImageReference, ImageReference>,
    /// The checksums of what the bundles take from upstream, where they name none themselves.
    pub pins: Pins,
}

impl Inputs {
    /// What to fetch for a chart or manifest here: the address, and the digest it must have. Another file stands for
    /// upstream's under another address, and so with another digest.
    pub fn fetched<'a>(&'a self, upstream: &'a Upstream) -> (&'a str, Option<&'a Digest>) {
        match self.environment.addresses.get(&upstream.address) {
            Some(address) => (address, self.pins.get(address)),
            None => (
                &upstream.address,
                upstream
                    .sha256
                    .as_ref()
                    .or_else(|| self.pins.get(&upstream.address)),
            ),
        }
    }

    /// What an upstream image is called in the cluster; itself if nothing stands for it.
    pub fn image_in_cluster<'a>(&'a self, upstream: &'a ImageReference) -> &'a ImageReference {
        self.image_names.get(upstream).unwrap_or(upstream)
    }
}

/// Reads everything, or fails with the mistakes of all files together ([`Failure::Input`]), or because there is no such
/// environment ([`Failure::Usage`]).
pub fn load(selector: &Selector, working_directory: &Path) -> anyhow::Result<Inputs> {
    let location = environment::find(selector, working_directory)?;
    let mut mistakes = Vec::new();
    let inputs = load_from(&location, &mut mistakes);
    match inputs {
        Some(inputs) if mistakes.is_empty() => Ok(inputs),
        _ => {
            for mistake in &mut mistakes {
                mistake.file = as_seen_from(working_directory, &mistake.file);
            }
            Err(Failure::Input(mistakes).into())
        }
    }
}

/// The environment alone, for commands that need nothing of its bundles: a mistake in one is no reason to keep a cluster.
pub fn environment(selector: &Selector, working_directory: &Path) -> anyhow::Result<Environment> {
    let location = environment::find(selector, working_directory)?;
    let source = Source::read(&location.file).map_err(|mistake| vec![mistake]);
    source
        .and_then(|source| environment::parse(&location, source))
        .map_err(|mut mistakes| {
            for mistake in &mut mistakes {
                mistake.file = as_seen_from(working_directory, &mistake.file);
            }
            Failure::Input(mistakes).into()
        })
}

fn load_from(location: &environment::Location, mistakes: &mut Vec<Mistake>) -> Option<Inputs> {
    let source = match Source::read(&location.file) {
        Ok(source) => source,
        Err(mistake) => {
            mistakes.push(mistake);
            mistakes.extend(bundle::mistakes_in(&location.root));
            return None;
        }
    };
    let config_file = environment::config_of(&source);
    let environment = keep(environment::parse(location, source), mistakes);
    let cluster_config = config_file.and_then(|(provider, file)| {
        let source = keep(
            Source::read(&file).map_err(|mistake| vec![mistake]),
            mistakes,
        )?;
        keep(ClusterConfig::from_source(provider, &source), mistakes)
    });
    let bundles = match &environment {
        Some(environment) => keep(bundle::discover(environment), mistakes),
        None => {
            mistakes.extend(bundle::mistakes_in(&location.root));
            None
        }
    };
    let walked: Vec<Found> = bundles.iter().flatten().map(walk).collect();
    for mistake in walked.iter().flat_map(|walked| &walked.mistakes) {
        // What bundles share is wrong once.
        if !mistakes.contains(mistake) {
            mistakes.push(mistake.clone());
        }
    }
    let pins = keep(pins::read(&location.root), mistakes);
    let (environment, bundles) = (environment?, bundles?);
    let objects = || walked.iter().flat_map(|walked| &walked.objects);
    let names = objects()
        .flat_map(|object| virtual_services::hosts(object, &environment.domain))
        .collect();
    let namespaces = objects()
        .filter(|object| text(object, "/kind") == "Namespace")
        .map(|object| text(object, "/metadata/name").to_owned())
        .collect();
    let storage = objects().flat_map(storage_classes).collect();
    let image_names = keep(in_cluster(&environment, &bundles), mistakes)?;
    Some(Inputs {
        environment,
        cluster_config: cluster_config?,
        bundles,
        names,
        namespaces,
        storage,
        image_names,
        pins: pins?,
    })
}

/// What every image is called in the cluster.
fn in_cluster(
    environment: &Environment,
    bundles: &[Bundle],
) -> Result<BTreeMap<ImageReference, ImageReference>, Vec<Mistake>> {
    let registry = environment
        .existing
        .as_ref()
        .and_then(|existing| existing.registry.as_ref());
    let Some(registry) = registry else {
        return Ok(environment.image_names.clone());
    };
    let of_bundles = bundles.iter().flat_map(|bundle| &bundle.images);
    let of_argocd = argocd::IMAGES.map(|image| {
        image
            .parse()
            .expect("Argo CD's own images have names that can be read")
    });
    of_bundles
        .chain(&of_argocd)
        .map(|upstream| {
            let place = registry.place(environment.image(upstream));
            let place = place.map_err(|why| {
                let key = [Segment::Key("registry")];
                vec![environment.source.mistake(&key, why.message, why.help)]
            })?;
            Ok((upstream.clone(), place))
        })
        .collect()
}

/// The classes of the volumes that an object asks for, wherever in it that stands.
fn storage_classes(object: &Value) -> Vec<Option<String>> {
    let class = |spec: &Value, key: &str| spec[key].as_str().map(str::to_owned);
    let claims = |list: &Value| -> Vec<Option<String>> {
        let claims = list.as_array().into_iter().flatten();
        claims
            .map(|claim| class(&claim["spec"], "storageClassName"))
            .collect()
    };
    let spec = &object["spec"];
    match (text(object, "/kind"), text(object, "/apiVersion")) {
        ("PersistentVolumeClaim", _) => vec![class(spec, "storageClassName")],
        ("StatefulSet", _) => claims(&spec["volumeClaimTemplates"]),
        // CloudNativePG's.
        ("Cluster", version) if version.starts_with("postgresql.cnpg.io/") => {
            ["storage", "walStorage"]
                .into_iter()
                .filter(|key| spec[*key].is_object())
                .map(|key| class(&spec[key], "storageClass"))
                .collect()
        }
        _ => Vec::new(),
    }
}

/// What Argo CD will render of a bundle, and what would keep it from that, as far as it can be known here.
fn walk(bundle: &Bundle) -> Found {
    kustomize::walk(&bundle.folder.join(bundle.overlay()), &placed(bundle))
}

/// Where a bundle's upstream files will be.
pub fn placed(bundle: &Bundle) -> Vec<PathBuf> {
    bundle
        .upstream
        .iter()
        .map(|upstream| bundle.folder.join(&upstream.path))
        .collect()
}

fn keep<T>(result: Result<T, Vec<Mistake>>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    result.map_err(|more| mistakes.extend(more)).ok()
}

/// The path as a person who stands in `folder` would write it: relative where that is shorter.
pub(crate) fn as_seen_from(folder: &Path, path: &Path) -> PathBuf {
    let shared = folder
        .components()
        .zip(path.components())
        .take_while(|(one, other)| one == other)
        .count();
    let up = folder.components().count() - shared;
    let relative: PathBuf = std::iter::repeat_n(std::path::Component::ParentDir, up)
        .chain(path.components().skip(shared))
        .collect();
    if relative.as_os_str().len() < path.as_os_str().len() && !relative.as_os_str().is_empty() {
        relative
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use insta::assert_snapshot;
    use tempfile::TempDir;

    use super::load;
    use crate::environment::{ImageOrigin, Selector};
    use crate::error::{Exit, Failure, explain};

    const ENVIRONMENT: &str =
        "provider: kind\nconfig: kind.yaml\nimages: registry\nnode-image: kindest/node:v1.34.3\n";

    /// A project that is right: an environment, its config, and four bundles in three waves.
    fn project() -> TempDir {
        let folder = TempDir::new().unwrap();
        write(&folder, "cluster-configs/dev.yaml", ENVIRONMENT);
        write(
            &folder,
            "cluster-configs/kind.yaml",
            include_str!("../cluster-configs/kind.yaml"),
        );
        bundle(
            &folder,
            "infrastructure/namespaces",
            "wave: 1\nnamespace: default\n",
        );
        bundle(
            &folder,
            "infrastructure/gateway",
            "wave: 2\nnamespace: gateway\n",
        );
        bundle(
            &folder,
            "iam/keycloak",
            "wave: 4\nnamespace: iam-system\nneeds: [gateway]\n",
        );
        bundle(
            &folder,
            "observability/logs",
            "wave: 4\nnamespace: observability-system\n",
        );
        folder
    }

    fn bundle(folder: &TempDir, name: &str, text: &str) {
        write(folder, &format!("bundles/{name}/bundle.yaml"), text);
        write(
            folder,
            &format!("bundles/{name}/base/kustomization.yaml"),
            "resources: []\n",
        );
    }

    fn write(folder: &TempDir, name: &str, text: &str) {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// What a person in the project's folder is told.
    fn told(folder: &TempDir) -> String {
        told_from(folder, "dev", folder.path())
    }

    fn told_from(folder: &TempDir, selector: &str, working_directory: &Path) -> String {
        let text = match load(&Selector::from(selector), working_directory) {
            Ok(inputs) => inputs
                .bundles
                .iter()
                .map(|bundle| {
                    let needs: Vec<&str> = bundle
                        .needs
                        .iter()
                        .map(|need| need.bundle.as_str())
                        .collect();
                    format!(
                        "{} {} needs [{}]",
                        bundle.wave,
                        bundle.path(),
                        needs.join(", ")
                    )
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => {
                let (exit, hint) = explain(&error);
                assert_eq!(exit, Exit::WrongInput);
                match hint {
                    Some(hint) => format!("{error:#}\nhint: {hint}"),
                    None => format!("{error:#}"),
                }
            }
        };
        text.replace(folder.path().to_str().unwrap(), "<project>")
    }

    #[test]
    fn what_is_right_is_loaded_and_sorted() {
        let folder = project();
        assert_snapshot!(told(&folder), @r"
        1 bundles/infrastructure/namespaces/base needs []
        2 bundles/infrastructure/gateway/base needs [namespaces]
        4 bundles/iam/keycloak/base needs [gateway]
        4 bundles/observability/logs/base needs [gateway, namespaces]
        ");
    }

    #[test]
    fn the_environments_that_come_with_devenv_are_right() {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        load(&Selector::from("dev"), own).unwrap();
        let packages = load(&Selector::from("packages"), own).unwrap().environment;
        assert_eq!(packages.images, ImageOrigin::Packages);
        assert_eq!(packages.cluster, "devenv-packages");
        assert_eq!(packages.id.len(), 12);
        let upstream = "quay.io/argoproj/argocd:v3.2.11".parse().unwrap();
        assert_snapshot!(packages.image(&upstream), @"packages.devenv.test/argocd:3.2.11");
        let other = "redis:7".parse().unwrap();
        assert_eq!(packages.image(&other), &other);
    }

    #[test]
    fn in_a_cluster_that_is_there_images_come_from_a_registry_of_ones_own() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            "provider: existing\ncontext: staging\nimages: packages\nregistry: registry.test:5000/platform\n\
             image-names:\n  redis:7: packages.devenv.test/redis:7.0\n",
        );
        bundle(
            &folder,
            "observability/logs",
            "wave: 4\nnamespace: observability-system\nimages: [redis:7, localhost:5000/a/b:1, \
             quay.io/x/y@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef]\n",
        );
        let inputs = load(&Selector::from("dev"), folder.path()).unwrap();
        let shown: Vec<String> = inputs
            .image_names
            .iter()
            .map(|(upstream, here)| format!("{upstream} -> {here}"))
            .collect();
        assert_snapshot!(shown.join("\n"), @r"
        docker.io/library/redis:7 -> registry.test:5000/platform/packages.devenv.test/redis:7.0
        localhost:5000/a/b:1 -> registry.test:5000/platform/localhost-5000/a/b:1
        public.ecr.aws/docker/library/redis:8.2.2-alpine -> registry.test:5000/platform/public.ecr.aws/docker/library/redis:8.2.2-alpine
        quay.io/argoproj/argocd:v3.2.11 -> registry.test:5000/platform/quay.io/argoproj/argocd:v3.2.11
        quay.io/x/y@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef -> registry.test:5000/platform/quay.io/x/y:sha256-0123456789ab
        ");
    }

    #[test]
    fn the_volumes_that_are_asked_for_are_seen() {
        let classes = |text: &str| {
            let object = crate::yaml::parse(Path::new("x.yaml"), text).unwrap();
            super::storage_classes(&object)
        };
        let fast = || Some("fast".to_owned());
        let claim = "kind: PersistentVolumeClaim\nspec: {storageClassName: fast}\n";
        assert_eq!(classes(claim), [fast()]);
        let set = "kind: StatefulSet\nspec: {volumeClaimTemplates: [{spec: {}}, {spec: {storageClassName: fast}}]}\n";
        assert_eq!(classes(set), [None, fast()]);
        let database = "apiVersion: postgresql.cnpg.io/v1\nkind: Cluster\nspec: {storage: {size: 1Gi}, walStorage: {storageClass: fast}}\n";
        assert_eq!(classes(database), [None, fast()]);
        assert!(classes("kind: Deployment\nspec: {}\n").is_empty());
    }

    #[test]
    fn the_first_overlay_that_a_bundle_has_is_used() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            &format!("{ENVIRONMENT}overlays: [packages, dev]\n"),
        );
        for overlay in [
            "iam/keycloak/overlays/dev",
            "observability/logs/overlays/dev",
            "observability/logs/overlays/packages",
        ] {
            write(
                &folder,
                &format!("bundles/{overlay}/kustomization.yaml"),
                "resources: []\n",
            );
        }
        assert_snapshot!(told(&folder), @r"
        1 bundles/infrastructure/namespaces/base needs []
        2 bundles/infrastructure/gateway/base needs [namespaces]
        4 bundles/iam/keycloak/overlays/dev needs [gateway]
        4 bundles/observability/logs/overlays/packages needs [gateway, namespaces]
        ");
    }

    #[test]
    fn excluded_bundles_are_left_out_and_needed_by_nobody() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            &format!("{ENVIRONMENT}exclude: [gateway, keycloak]\n"),
        );
        assert_snapshot!(told(&folder), @r"
        1 bundles/infrastructure/namespaces/base needs []
        4 bundles/observability/logs/base needs [namespaces]
        ");
        let inputs = load(&Selector::from("dev"), folder.path()).unwrap();
        assert_eq!(inputs.environment.exclude, ["gateway", "keycloak"]);
    }

    #[test]
    fn an_environment_is_found_from_below_and_by_its_path() {
        let folder = project();
        let below = folder.path().join("bundles/iam");
        let by_name = told_from(&folder, "dev", &below);
        assert_eq!(by_name, told(&folder));
        assert_eq!(
            by_name,
            told_from(&folder, "../../cluster-configs/dev.yaml", &below)
        );
        let file = folder.path().join("cluster-configs/dev.yaml");
        assert_eq!(
            by_name,
            told_from(&folder, file.to_str().unwrap(), Path::new("/"))
        );
        let ids = ["dev", "../../cluster-configs/dev.yaml"]
            .map(|typed| load(&Selector::from(typed), &below).unwrap().environment.id);
        assert_eq!(ids[0], ids[1]);
    }

    #[test]
    fn no_such_environment() {
        let folder = project();
        write(&folder, "cluster-configs/packages.yaml", ENVIRONMENT);
        assert_snapshot!(told_from(&folder, "prod", folder.path()), @r"
        there is no environment `prod` in <project>/cluster-configs
        hint: the environments here: dev, packages
        ");
        assert_snapshot!(told_from(&folder, "package", folder.path()), @r"
        there is no environment `package` in <project>/cluster-configs
        hint: did you mean `packages`?
        ");
        assert_snapshot!(told_from(&folder, "kind", folder.path()), @r"
        cluster-configs/kind.yaml:4:1: this is no environment: `kind: Cluster` makes it another tool's file
          |
        4 | kind: Cluster
          | ^
        hint: the environments here: dev, packages
        ");
        assert_snapshot!(told_from(&folder, "other/dev.yaml", folder.path()), @r"
        there is no file <project>/other/dev.yaml
        hint: name an environment of cluster-configs/, or the path of an environment file
        ");
        assert_snapshot!(told_from(&folder, "dev", Path::new("/")), @r"
        there is no `cluster-configs/` in / or any folder above it
        hint: run devenv in the folder of the repository that holds it, or begin one: devenv init
        ");
    }

    #[test]
    fn an_environment_that_is_wrong_in_every_way() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/Dev_1.yaml",
            "provider: kind\nconfig: kindd.yaml\nimages: registry\nnode-image: kindest/node\noverlays: [dev, ../prod]\n\
             domain: Local.\nexclude: []\nimage-names:\n  redis: packages.devenv.test/redis:7\n  redis:7: Packages/redis\n  docker.io/library/redis:7: a:1\n  redis:8: a:1\n  library/redis:8: a:1\n",
        );
        assert_snapshot!(told_from(&folder, "Dev_1", folder.path()), @r"
        cluster-configs/Dev_1.yaml: `Dev_1` can't name an environment, expected at most 24 of a-z, 0-9 and `-`, and no `-` at either end
        hint: rename the file

        cluster-configs/Dev_1.yaml:2:9: there is no file `kindd.yaml` beside this one, expected the cluster's own config, such as `kind.yaml`
          |
        2 | config: kindd.yaml
          |         ^

        cluster-configs/Dev_1.yaml:4:13: `kindest/node` has neither a tag nor a digest
          |
        4 | node-image: kindest/node
          |             ^
        hint: say which one: `kindest/node:<tag>`; `latest` is never assumed

        cluster-configs/Dev_1.yaml:5:17: `../prod` is no overlay, expected the name of a folder below `overlays/`: a-z, 0-9 and `-`
          |
        5 | overlays: [dev, ../prod]
          |                 ^

        cluster-configs/Dev_1.yaml:6:9: `Local.` is no domain, expected labels of a-z, 0-9 and `-` with dots between them, such as `local` or `dev.example.org`
          |
        6 | domain: Local.
          |         ^

        cluster-configs/Dev_1.yaml:9:3: `redis` has neither a tag nor a digest
          |
        9 |   redis: packages.devenv.test/redis:7
          |   ^
        hint: say which one: `redis:<tag>`; `latest` is never assumed

        cluster-configs/Dev_1.yaml:10:12: `Packages/redis` has neither a tag nor a digest
           |
        10 |   redis:7: Packages/redis
           |            ^
        hint: say which one: `Packages/redis:<tag>`; `latest` is never assumed

        cluster-configs/Dev_1.yaml:12:3: docker.io/library/redis:8 is given twice, in two ways of writing it
           |
        12 |   redis:8: a:1
           |   ^
        hint: keep one of the two
        ");
    }

    #[test]
    fn an_environment_that_misses_its_keys() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            "provider: kind\noverlays: []\n",
        );
        assert_snapshot!(told(&folder), @r"
        cluster-configs/dev.yaml:1:1: the key `config` is missing
          |
        1 | provider: kind
          | ^

        cluster-configs/dev.yaml:1:1: the key `images` is missing
          |
        1 | provider: kind
          | ^

        cluster-configs/dev.yaml:1:1: the key `node-image` is missing
          |
        1 | provider: kind
          | ^

        cluster-configs/dev.yaml:2:11: `overlays` is empty, expected at least one folder name
          |
        2 | overlays: []
          |           ^
        hint: leave the key out for the default, [dev]
        ");
        write(&folder, "cluster-configs/dev.yaml", "domain: local\n");
        assert_snapshot!(told(&folder), @r"
        cluster-configs/dev.yaml:1:1: the key `provider` is missing
          |
        1 | domain: local
          | ^
        ");
    }

    #[test]
    fn a_provider_that_is_not_there() {
        let folder = project();
        write(&folder, "cluster-configs/dev.yaml", "provider: minikube\n");
        assert_snapshot!(told(&folder), @r"
        cluster-configs/dev.yaml:1:11: `provider` can't be `minikube`, expected one of `kind`, `k3d`, `existing`
          |
        1 | provider: minikube
          |           ^
        ");
    }

    #[test]
    fn the_mistakes_of_all_files_come_together() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            "provider: kind\nconfig: kind.yaml\nimges: registry\n",
        );
        write(
            &folder,
            "cluster-configs/kind.yaml",
            "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n  - extraPortMappings:\n      - hostPort: 80\n        containerPort: 80\n",
        );
        bundle(
            &folder,
            "infrastructure/gateway",
            "wave: 2\n\tnamespace: gateway\n",
        );
        bundle(
            &folder,
            "iam/keycloak",
            "wave: 4\nnamespace: iam-system\nneeds: [gatewya, gateway]\n",
        );
        bundle(&folder, "observability/logs", "");
        assert_snapshot!(told(&folder), @r"
        cluster-configs/dev.yaml:3:1: unknown key `imges`, expected one of `provider`, `config`, `context`, `kubeconfig`, `registry`, `images`, `node-image`, `system-images`, `overlays`, `domain`, `hosts`, `exclude`, `image-names`, `addresses`
          |
        3 | imges: registry
          | ^
        hint: did you mean `images`?

        cluster-configs/kind.yaml:5:9: this port has no `listenAddress`, and would be reachable from other machines
          |
        5 |       - hostPort: 80
          |         ^
        hint: add `listenAddress: 127.0.0.1`: kind's default is 0.0.0.0

        bundles/iam/keycloak/bundle.yaml:3:9: there is no bundle `gatewya`
          |
        3 | needs: [gatewya, gateway]
          |         ^
        hint: did you mean `gateway`?

        bundles/infrastructure/gateway/bundle.yaml:2:1: a tab in the indentation, expected spaces
          |
        2 | →namespace: gateway
          | ^
        hint: YAML allows no tab there; set your editor to indent with spaces

        bundles/observability/logs/bundle.yaml: the file is empty, expected a mapping (`key: value` lines)
        ");
    }

    #[test]
    fn bundle_files_that_are_wrong() {
        let folder = project();
        bundle(
            &folder,
            "infrastructure/gateway",
            "wave: 5\nnamespace: Gateway_1\nimages:\n  - envoyproxy/envoy\n  - ok:1\n",
        );
        bundle(
            &folder,
            "iam/keycloak",
            "wave: 4\nwave: 3\nnamespace: iam-system\n",
        );
        bundle(
            &folder,
            "observability/logs",
            "wave: four\nnamespace: observability-system\n",
        );
        bundle(
            &folder,
            "observability/traces",
            "wave: 4\nnamespace: observability-system\nneeds: gateway\n",
        );
        bundle(
            &folder,
            "observability/metrics",
            "wave: 4\nnamespace: observability-system\nupstream:\n  - path: ../charts\n    address: http://example.org/a.tgz\n    version: \"\"\n    sha256: abc\n  - path: base/charts\n    address: https://example.org/a.tgz\n    version: 1.30\n",
        );
        assert_snapshot!(told(&folder), @r#"
        bundles/iam/keycloak/bundle.yaml:2:1: `wave` is given twice
          |
        2 | wave: 3
          | ^
        hint: keep one of the two

        bundles/infrastructure/gateway/bundle.yaml:1:7: `wave` is 5, expected 1, 2, 3 or 4
          |
        1 | wave: 5
          |       ^

        bundles/infrastructure/gateway/bundle.yaml:2:12: `Gateway_1` is no namespace, expected at most 63 of a-z, 0-9 and `-`, and no `-` at either end
          |
        2 | namespace: Gateway_1
          |            ^

        bundles/infrastructure/gateway/bundle.yaml:4:5: `envoyproxy/envoy` has neither a tag nor a digest
          |
        4 |   - envoyproxy/envoy
          |     ^
        hint: say which one: `envoyproxy/envoy:<tag>`; `latest` is never assumed

        bundles/observability/logs/bundle.yaml:1:7: `wave` is the text "four", expected a whole number
          |
        1 | wave: four
          |       ^

        bundles/observability/metrics/bundle.yaml:4:11: `../charts` isn't inside the bundle, expected a path such as `base/charts`
          |
        4 |   - path: ../charts
          |           ^

        bundles/observability/metrics/bundle.yaml:5:14: `http://example.org/a.tgz` is no address that can be fetched, expected `https://…`
          |
        5 |     address: http://example.org/a.tgz
          |              ^

        bundles/observability/metrics/bundle.yaml:6:14: `version` is empty
          |
        6 |     version: ""
          |              ^

        bundles/observability/metrics/bundle.yaml:7:13: `sha256` must be 64 lower-case hexadecimal digits
          |
        7 |     sha256: abc
          |             ^
        hint: print it with: curl -fsSL http://example.org/a.tgz | sha256sum

        bundles/observability/traces/bundle.yaml:3:8: `needs` is the text "gateway", expected a list
          |
        3 | needs: gateway
          |        ^
        "#);
    }

    #[test]
    fn folders_that_are_no_bundles() {
        let folder = project();
        fs::create_dir_all(folder.path().join("bundles/iam/empty")).unwrap();
        write(&folder, "bundles/environment/kustomization.yaml", "");
        write(&folder, "bundles/README.md", "");
        write(&folder, "bundles/.cache/x/y", "");
        bundle(
            &folder,
            "observabilty/traces",
            "wave: 4\nnamespace: observability-system\n",
        );
        bundle(&folder, "iam/Login_1", "wave: 4\nnamespace: iam-system\n");
        assert_snapshot!(told(&folder), @r"
        bundles/iam/Login_1: `Login_1` can't name a bundle, expected at most 63 of a-z, 0-9 and `-`, and no `-` at either end
        hint: rename the folder

        bundles/iam/empty: this folder has no bundle.yaml
        hint: every folder in bundles/<project>/ is a bundle: write its bundle.yaml (`wave:` and `namespace:` at least), or move it elsewhere

        bundles/observabilty: `observabilty` is no project, expected one of infrastructure, iam, observability
        hint: did you mean `observability`?
        ");
    }

    #[test]
    fn a_namespace_that_the_project_may_not_use() {
        let folder = project();
        bundle(&folder, "iam/users", "wave: 4\nnamespace: default\n");
        assert_snapshot!(told(&folder), @r"
        bundles/iam/users/bundle.yaml:2:12: bundles of the project iam can't use the namespace `default`, only `iam-*`
          |
        2 | namespace: default
          |            ^
        hint: use another namespace, or move the bundle to bundles/infrastructure/
        ");
    }

    #[test]
    fn two_bundles_of_one_name() {
        let folder = project();
        bundle(
            &folder,
            "observability/gateway",
            "wave: 4\nnamespace: observability-system\n",
        );
        assert_snapshot!(told(&folder), @r"
        bundles/observability/gateway: the project infrastructure has a bundle `gateway` too
        hint: rename one of the two: a bundle's name is its Application's
        ");
    }

    #[test]
    fn needs_that_lead_nowhere() {
        let folder = project();
        bundle(
            &folder,
            "infrastructure/gateway",
            "wave: 2\nnamespace: gateway\nneeds:\n  - namespace\n  - gateway\n  - keycloak\n  - nothing-like-it\n",
        );
        assert_snapshot!(told(&folder), @r"
        bundles/iam/keycloak/bundle.yaml:3:9: needs make a circle: gateway -> keycloak -> gateway
          |
        3 | needs: [gateway]
          |         ^
        hint: each of these would wait for the next one; take one of the needs out

        bundles/infrastructure/gateway/bundle.yaml:4:5: there is no bundle `namespace`
          |
        4 |   - namespace
          |     ^
        hint: did you mean `namespaces`?

        bundles/infrastructure/gateway/bundle.yaml:5:5: `gateway` needs itself
          |
        5 |   - gateway
          |     ^
        hint: take it out

        bundles/infrastructure/gateway/bundle.yaml:6:5: `keycloak` is in wave 4, after this bundle's wave 2
          |
        6 |   - keycloak
          |     ^
        hint: a bundle can need only those of its own wave and earlier ones

        bundles/infrastructure/gateway/bundle.yaml:7:5: there is no bundle `nothing-like-it`
          |
        7 |   - nothing-like-it
          |     ^
        hint: name the folder of a bundle
        ");
    }

    #[test]
    fn needs_that_make_a_circle() {
        let folder = project();
        bundle(
            &folder,
            "iam/keycloak",
            "wave: 4\nnamespace: iam-system\nneeds: [gateway, logs]\n",
        );
        bundle(
            &folder,
            "iam/users",
            "wave: 4\nnamespace: iam-system\nneeds: [keycloak]\n",
        );
        bundle(
            &folder,
            "observability/logs",
            "wave: 4\nnamespace: observability-system\nneeds:\n  - users\n",
        );
        assert_snapshot!(told(&folder), @r"
        bundles/iam/users/bundle.yaml:3:9: needs make a circle: keycloak -> logs -> users -> keycloak
          |
        3 | needs: [keycloak]
          |         ^
        hint: each of these would wait for the next one; take one of the needs out
        ");
    }

    #[test]
    fn excludes_that_are_wrong() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            &format!("{ENVIRONMENT}exclude:\n  - gateway\n  - log\n  - logs\n  - logs\n"),
        );
        assert_snapshot!(told(&folder), @r"
        cluster-configs/dev.yaml:6:5: `gateway` can't be excluded: keycloak needs it
          |
        6 |   - gateway
          |     ^
        hint: exclude what needs it too, or take it out of `needs`

        cluster-configs/dev.yaml:7:5: there is no bundle `log` to exclude
          |
        7 |   - log
          |     ^
        hint: did you mean `logs`?

        cluster-configs/dev.yaml:9:5: `logs` is excluded twice
          |
        9 |   - logs
          |     ^
        hint: keep one of the two
        ");
    }

    #[test]
    fn a_bundle_without_anything_to_apply() {
        let folder = project();
        write(
            &folder,
            "bundles/iam/users/bundle.yaml",
            "wave: 4\nnamespace: iam-system\n",
        );
        write(
            &folder,
            "bundles/iam/users/overlays/prod/kustomization.yaml",
            "resources: []\n",
        );
        assert_snapshot!(told(&folder), @r"
        bundles/iam/users: there is neither a `base` nor one of the environment's overlays (dev) here
        hint: a folder counts when it holds a kustomization.yaml
        ");
    }

    #[test]
    fn no_bundles_at_all() {
        let folder = project();
        fs::remove_dir_all(folder.path().join("bundles")).unwrap();
        assert_snapshot!(told(&folder), @r"
        bundles: there are no bundles here
        hint: a bundle is a folder `bundles/<project>/<name>/` with a bundle.yaml; the default ones: devenv init
        ");
    }

    #[test]
    fn files_are_named_as_seen_from_where_one_stands() {
        let folder = project();
        write(&folder, "cluster-configs/dev.yaml", "");
        assert_snapshot!(told_from(&folder, "dev", &folder.path().join("bundles/iam")), @"../../cluster-configs/dev.yaml: the file is empty, expected a mapping (`key: value` lines)");
        let file = folder.path().join("cluster-configs/dev.yaml");
        assert_snapshot!(told_from(&folder, file.to_str().unwrap(), Path::new("/usr/share/doc")), @"<project>/cluster-configs/dev.yaml: the file is empty, expected a mapping (`key: value` lines)");
    }

    #[test]
    fn a_wrong_input_is_a_failure_with_its_mistakes() {
        let folder = project();
        write(&folder, "cluster-configs/dev.yaml", "");
        let error = load(&Selector::from("dev"), folder.path()).unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(Failure::Input(mistakes)) if mistakes.len() == 1)
        );
    }
}
