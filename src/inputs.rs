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
    source.and_then(|source| environment::parse(&location, source)).map_err(|mut mistakes| {
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
