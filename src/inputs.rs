//! Everything that a person wrote, read and checked before anything is touched.

use std::path::{Path, PathBuf};

use crate::bundle::{self, Bundle};
use crate::cluster::kind_config::ClusterConfig;
use crate::environment::{self, Environment, Selector};
use crate::error::{Failure, Mistake};
use crate::yaml::Source;

/// An environment, its cluster's native config, and its bundles: all checked, each alone and together.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The environment.
    pub environment: Environment,
    /// The native cluster config it names.
    pub cluster_config: ClusterConfig,
    /// The bundles it includes, sorted by wave and name.
    pub bundles: Vec<Bundle>,
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
    let cluster_config = config_file.and_then(|file| {
        let source = keep(
            Source::read(&file).map_err(|mistake| vec![mistake]),
            mistakes,
        )?;
        keep(ClusterConfig::from_source(&source), mistakes)
    });
    let bundles = match &environment {
        Some(environment) => keep(bundle::discover(environment), mistakes),
        None => {
            mistakes.extend(bundle::mistakes_in(&location.root));
            None
        }
    };
    Some(Inputs {
        environment: environment?,
        cluster_config: cluster_config?,
        bundles: bundles?,
    })
}

fn keep<T>(result: Result<T, Vec<Mistake>>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    result.map_err(|more| mistakes.extend(more)).ok()
}

/// The path as a person who stands in `folder` would write it: relative where that is shorter.
fn as_seen_from(folder: &Path, path: &Path) -> PathBuf {
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
            "wave: 4\nnamespace: iam\nneeds: [gateway]\n",
        );
        bundle(&folder, "observability/logs", "wave: 4\nnamespace: logs\n");
        folder
    }

    fn bundle(folder: &TempDir, name: &str, text: &str) {
        write(folder, &format!("bundles/{name}/bundle.yaml"), text);
        write(
            folder,
            &format!("bundles/{name}/base/kustomization.yaml"),
            "",
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
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn the_environments_that_come_with_devenv_are_right() {
        let folder = project();
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster-configs");
        for name in ["dev", "packages"] {
            let text = fs::read_to_string(own.join(format!("{name}.yaml"))).unwrap();
            write(&folder, &format!("cluster-configs/{name}.yaml"), &text);
            load(&Selector::from(name), folder.path()).unwrap();
        }
        let packages = load(&Selector::from("packages"), folder.path())
            .unwrap()
            .environment;
        assert_eq!(packages.images, ImageOrigin::Packages);
        assert_eq!(packages.cluster, "devenv-packages");
        assert_eq!(packages.id.len(), 12);
        let upstream = "quay.io/argoproj/argocd:v3.2.11".parse().unwrap();
        assert_snapshot!(packages.image(&upstream), @"");
        let other = "redis:7".parse().unwrap();
        assert_eq!(packages.image(&other), &other);
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
                "",
            );
        }
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn excluded_bundles_are_left_out_and_needed_by_nobody() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            &format!("{ENVIRONMENT}exclude: [gateway, keycloak]\n"),
        );
        assert_snapshot!(told(&folder), @"");
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
        assert_snapshot!(told_from(&folder, "prod", folder.path()), @"");
        assert_snapshot!(told_from(&folder, "package", folder.path()), @"");
        assert_snapshot!(told_from(&folder, "kind", folder.path()), @"");
        assert_snapshot!(told_from(&folder, "other/dev.yaml", folder.path()), @"");
        assert_snapshot!(told_from(&folder, "dev", Path::new("/")), @"");
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
        assert_snapshot!(told_from(&folder, "Dev_1", folder.path()), @"");
    }

    #[test]
    fn an_environment_that_misses_its_keys() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            "provider: kind\noverlays: []\n",
        );
        assert_snapshot!(told(&folder), @"");
        write(&folder, "cluster-configs/dev.yaml", "domain: local\n");
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn a_provider_that_is_not_there_yet() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            "# mine\nprovider: k3d\n",
        );
        assert_snapshot!(told(&folder), @"");
        write(&folder, "cluster-configs/dev.yaml", "provider: minikube\n");
        assert_snapshot!(told(&folder), @"");
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
            "wave: 4\nnamespace: iam\nneeds: [gatewya, gateway]\n",
        );
        bundle(&folder, "observability/logs", "");
        assert_snapshot!(told(&folder), @"");
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
            "wave: 4\nwave: 3\nnamespace: iam\n",
        );
        bundle(
            &folder,
            "observability/logs",
            "wave: four\nnamespace: logs\n",
        );
        bundle(
            &folder,
            "observability/traces",
            "wave: 4\nnamespace: logs\nneeds: gateway\n",
        );
        bundle(
            &folder,
            "observability/metrics",
            "wave: 4\nnamespace: logs\nupstream:\n  - path: ../charts\n    address: http://example.org/a.tgz\n    version: \"\"\n    sha256: abc\n  - path: base/charts\n    address: https://example.org/a.tgz\n    version: 1.30\n",
        );
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn folders_that_are_no_bundles() {
        let folder = project();
        fs::create_dir_all(folder.path().join("bundles/iam/empty")).unwrap();
        write(&folder, "bundles/environment/kustomization.yaml", "");
        write(&folder, "bundles/README.md", "");
        write(&folder, "bundles/.cache/x/y", "");
        bundle(&folder, "observabilty/traces", "wave: 4\nnamespace: logs\n");
        bundle(&folder, "iam/Login_1", "wave: 4\nnamespace: iam\n");
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn two_bundles_of_one_name() {
        let folder = project();
        bundle(
            &folder,
            "observability/gateway",
            "wave: 4\nnamespace: logs\n",
        );
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn needs_that_lead_nowhere() {
        let folder = project();
        bundle(
            &folder,
            "infrastructure/gateway",
            "wave: 2\nnamespace: gateway\nneeds:\n  - namespace\n  - gateway\n  - keycloak\n  - nothing-like-it\n",
        );
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn needs_that_make_a_circle() {
        let folder = project();
        bundle(
            &folder,
            "iam/keycloak",
            "wave: 4\nnamespace: iam\nneeds: [gateway, logs]\n",
        );
        bundle(
            &folder,
            "iam/users",
            "wave: 4\nnamespace: iam\nneeds: [keycloak]\n",
        );
        bundle(
            &folder,
            "observability/logs",
            "wave: 4\nnamespace: logs\nneeds:\n  - users\n",
        );
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn excludes_that_are_wrong() {
        let folder = project();
        write(
            &folder,
            "cluster-configs/dev.yaml",
            &format!("{ENVIRONMENT}exclude:\n  - gateway\n  - log\n  - logs\n  - logs\n"),
        );
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn a_bundle_without_anything_to_apply() {
        let folder = project();
        write(
            &folder,
            "bundles/iam/users/bundle.yaml",
            "wave: 4\nnamespace: iam\n",
        );
        write(
            &folder,
            "bundles/iam/users/overlays/prod/kustomization.yaml",
            "",
        );
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn no_bundles_at_all() {
        let folder = project();
        fs::remove_dir_all(folder.path().join("bundles")).unwrap();
        assert_snapshot!(told(&folder), @"");
    }

    #[test]
    fn files_are_named_as_seen_from_where_one_stands() {
        let folder = project();
        write(&folder, "cluster-configs/dev.yaml", "");
        assert_snapshot!(told_from(&folder, "dev", &folder.path().join("bundles/iam")), @"");
        let file = folder.path().join("cluster-configs/dev.yaml");
        assert_snapshot!(told_from(&folder, file.to_str().unwrap(), Path::new("/usr/share/doc")), @"");
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
