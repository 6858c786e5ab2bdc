//! The order of the bootstrap, as a selector.
//!
//! The pushed tree is always whole. The one ApplicationSet discovers every `bundles/*/*/bundle.yaml`, and while the
//! platform is being brought up its selector admits bundles by name; a name is added as soon as what that bundle needs
//! is ready. When all are in, the selector only keeps out the excluded ones, and discovery is automatic.
//!
//! Everything here is pure: what Applications say ([`App`]), which bundles may come in ([`admit`]), and the
//! ApplicationSet that says so ([`application_set`]).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::argocd::NAMESPACE;
use super::source::{ADDRESS, BRANCH};
use crate::bundle::Bundle;
use crate::kube::text;
use crate::need::{Condition, Need};

/// The name of the ApplicationSet.
pub const NAME: &str = "bundles";
/// How often Argo CD tries a sync again, as the architecture says.
pub const RETRIES: i64 = 5;

/// Which bundles the ApplicationSet lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// While bootstrapping: these, by name.
    Only(BTreeSet<String>),
    /// Afterwards: all but the excluded ones.
    AllBut(BTreeSet<String>),
}

impl Selector {
    /// As the live ApplicationSet has it; `None` where it reads like nothing devenv writes.
    pub fn of(application_set: &Value) -> Option<Self> {
        let selector = application_set.pointer("/spec/generators/0/selector")?;
        let Some(expression) = selector.pointer("/matchExpressions/0") else {
            return Some(Self::AllBut(BTreeSet::new()));
        };
        let names = expression
            .get("values")?
            .as_array()?
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        match text(expression, "/operator") {
            "In" => Some(Self::Only(names)),
            "NotIn" => Some(Self::AllBut(names)),
            _ => None,
        }
    }

    fn manifest(&self) -> Value {
        let (operator, names) = match self {
            Self::Only(names) => ("In", names),
            Self::AllBut(names) if names.is_empty() => return json!({"matchLabels": {}}),
            Self::AllBut(names) => ("NotIn", names),
        };
        json!({"matchExpressions": [{"key": "path.basename", "operator": operator, "values": names}]})
    }
}

/// The one ApplicationSet.
///
/// While names are let in one by one, an Application whose name isn't in the list must not be deleted
/// (`create-update`); afterwards a bundle that is removed is pruned (`sync`).
pub fn application_set(selector: &Selector, overlay: &str) -> Value {
    let policy = match selector {
        Selector::Only(_) => "create-update",
        Selector::AllBut(_) => "sync",
    };
    json!({
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "ApplicationSet",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "goTemplate": true,
            "goTemplateOptions": ["missingkey=error"],
            "generators": [{
                "git": {"repoURL": ADDRESS, "revision": BRANCH, "files": [{"path": "bundles/*/*/bundle.yaml"}]},
                "selector": selector.manifest(),
            }],
            "syncPolicy": {"applicationsSync": policy},
            "template": {
                "metadata": {"name": "{{.path.basename}}", "labels": {"app.kubernetes.io/part-of": "devenv"}},
                "spec": {
                    "project": "{{index .path.segments 1}}",
                    "source": {
                        "repoURL": ADDRESS,
                        "targetRevision": BRANCH,
                        "path": format!("{{{{.path.path}}}}/overlays/{overlay}"),
                    },
                    "destination": {"server": "https://kubernetes.default.svc", "namespace": "{{.namespace}}"},
                    "syncPolicy": {
                        "automated": {"prune": true, "selfHeal": true},
                        "retry": {"limit": RETRIES, "backoff": {"duration": "1s", "factor": 1, "maxDuration": "5s"}},
                        "syncOptions": ["ServerSideApply=true", "SkipDryRunOnMissingResource=true"],
                    },
                },
            },
        },
    })
}

/// What an Application says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct App {
    /// Synced, OutOfSync, Unknown, or empty before the first comparison.
    pub sync: String,
    /// Healthy, Progressing, Degraded, Missing, Suspended, Unknown, or empty.
    pub health: String,
    /// The revision it was last compared with.
    pub revision: String,
    /// Running, Succeeded, Failed, Error, or empty before the first operation.
    pub operation: String,
    /// The revision the last operation was for.
    pub operation_revision: String,
    /// What the last operation or the last comparison complains of.
    pub message: String,
    /// Of how many retries of the last operation.
    pub retries: i64,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// The resources that aren't well yet: "Deployment victorialogs: Progressing (…)".
    pub unwell: Vec<String>,
    /// The names of its resources, which its pods' names begin with.
    pub owns: Vec<String>,
}

impl App {
    /// From the live object.
    pub fn of(application: &Value) -> Self {
        let say = |pointer: &str| text(application, pointer).to_owned();
        let conditions = application
            .pointer("/status/conditions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let complaint = conditions
            .filter(|condition| text(condition, "/type").ends_with("Error"))
            .map(|condition| text(condition, "/message").to_owned())
            .next();
        let operation = say("/status/operationState/phase");
        let failed = matches!(operation.as_str(), "Failed" | "Error" | "Running");
        let message = complaint.or_else(|| failed.then(|| say("/status/operationState/message")));
        Self {
            sync: say("/status/sync/status"),
            health: say("/status/health/status"),
            revision: say("/status/sync/revision"),
            operation_revision: say("/status/operationState/syncResult/revision"),
            message: message.unwrap_or_default(),
            retries: application
                .pointer("/status/operationState/retryCount")
                .and_then(Value::as_i64)
                .unwrap_or_default(),
            leaving: application.pointer("/metadata/deletionTimestamp").is_some(),
            unwell: unwell(application),
            owns: owns(application),
            operation,
        }
    }

    /// Synced and Healthy at this revision, with no operation under way.
    pub fn is_ready(&self, revision: &str) -> bool {
        self.sync == "Synced"
            && self.health == "Healthy"
            && self.revision == revision
            && !self.leaving
            && matches!(self.operation.as_str(), "Succeeded" | "")
    }

    /// Whether Argo CD has given up syncing this revision: it never tries again by itself.
    pub fn has_given_up(&self, revision: &str) -> bool {
        matches!(self.operation.as_str(), "Failed" | "Error")
            && self.operation_revision == revision
            && (self.sync != "Synced" || self.health == "Missing")
    }

    /// What it waits for, in words.
    pub fn waits_for(&self, revision: &str) -> String {
        if self.is_ready(revision) {
            return String::new();
        }
        if self.leaving {
            return "being removed".to_owned();
        }
        if self.sync.is_empty() {
            return "Argo CD hasn't looked at it yet".to_owned();
        }
        if self.revision != revision && self.operation != "Running" && self.message.is_empty() {
            return format!("still at {}", short(&self.revision));
        }
        let mut words = vec![match (self.sync.as_str(), self.health.as_str()) {
            ("Synced", health) => health.to_owned(),
            (sync, "" | "Healthy") => sync.to_owned(),
            (sync, health) => format!("{sync}, {health}"),
        }];
        if self.operation == "Running" {
            words[0] = format!("{}, syncing", words[0]);
        }
        words.extend(self.unwell.iter().take(2).cloned());
        if !self.message.is_empty() {
            words.push(rendering_error(&self.message));
        }
        words.join("; ")
    }
}

/// The first seven digits of a revision.
pub fn short(revision: &str) -> &str {
    revision.get(..7).unwrap_or(if revision.is_empty() {
        "no revision"
    } else {
        revision
    })
}

/// A message on one line, of bearable length.
pub fn one_line(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(600) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Why kustomize failed, out of a message that begins with all the arguments it was called with.
pub fn rendering_error(message: &str) -> String {
    let told = message
        .split_once("` failed ")
        .map_or(message, |(_, told)| told);
    let told = told.split_once("Error: ").map_or(told, |(_, error)| error);
    one_line(&told.replace("<path to cached source>/", ""))
}

fn resources(application: &Value) -> impl Iterator<Item = &Value> {
    application
        .pointer("/status/resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn owns(application: &Value) -> Vec<String> {
    resources(application)
        .map(|resource| text(resource, "/name").to_owned())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn unwell(application: &Value) -> Vec<String> {
    resources(application)
        .filter(|resource| {
            !matches!(text(resource, "/health/status"), "" | "Healthy")
                || text(resource, "/status") == "OutOfSync"
        })
        .map(|resource| {
            let state = match text(resource, "/health/status") {
                "" | "Healthy" => text(resource, "/status"),
                health => health,
            };
            let why = match text(resource, "/health/message") {
                "" => String::new(),
                message => format!(" ({})", one_line(message)),
            };
            format!(
                "{} {} {state}{why}",
                text(resource, "/kind"),
                text(resource, "/name")
            )
        })
        .collect()
}

/// The bundles whose needs are all met, beside those that are in already. The list only grows: a name taken out of it would
/// delete its Application.
pub fn admit(
    bundles: &[Bundle],
    ready: &BTreeSet<String>,
    met: &BTreeSet<Condition>,
    admitted: &BTreeSet<String>,
) -> BTreeSet<String> {
    let is_met = |need: &Need| {
        ready.contains(&need.bundle) || need.when.as_ref().is_some_and(|when| met.contains(when))
    };
    let now = bundles
        .iter()
        .filter(|bundle| bundle.needs.iter().all(is_met));
    admitted
        .iter()
        .cloned()
        .chain(now.map(|bundle| bundle.name.clone()))
        .collect()
}

/// The conditions that somebody outside still waits for.
pub fn awaited<'a>(bundles: &'a [Bundle], admitted: &BTreeSet<String>) -> BTreeSet<&'a Condition> {
    bundles
        .iter()
        .filter(|bundle| !admitted.contains(&bundle.name))
        .flat_map(|bundle| bundle.needs.iter().filter_map(|need| need.when.as_ref()))
        .collect()
}

/// The names of the Applications that are ready at a revision.
pub fn ready(apps: &BTreeMap<String, App>, revision: &str) -> BTreeSet<String> {
    apps.iter()
        .filter(|(_, app)| app.is_ready(revision))
        .map(|(name, _)| name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(name: &str, needs: &[&str]) -> Bundle {
        Bundle::for_tests(name, needs.iter().copied().map(Need::bundle).collect())
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_bundle_comes_in_when_its_needs_are_met_and_never_goes_out() {
        let condition = Condition {
            api_version: "v1".into(),
            kind: "Cluster".into(),
            namespace: "n".into(),
            name: "db".into(),
            field: "status.readyInstances".into(),
            at_least: 1,
        };
        let mut keycloak = bundle("keycloak", &["mesh"]);
        let primary = Need {
            bundle: "db".into(),
            when: Some(condition.clone()),
        };
        keycloak.needs.push(primary);
        let bundles = [
            bundle("names", &[]),
            bundle("mesh", &["names"]),
            bundle("db", &["mesh"]),
            keycloak,
        ];
        let (nothing, none) = (BTreeSet::new(), BTreeSet::new());
        assert_eq!(
            admit(&bundles, &nothing, &none, &nothing),
            names(&["names"])
        );
        assert_eq!(
            admit(&bundles, &names(&["names"]), &none, &names(&["names"])),
            names(&["mesh", "names"])
        );
        let ready = names(&["names", "mesh"]);
        assert_eq!(
            admit(&bundles, &ready, &none, &nothing),
            names(&["db", "mesh", "names"])
        );
        assert_eq!(
            awaited(&bundles, &names(&["names", "mesh", "db"])),
            BTreeSet::from([&condition])
        );
        // The primary is enough; and what is in stays in, also when its needs fall ill again.
        let met = BTreeSet::from([condition]);
        let all = names(&["db", "keycloak", "mesh", "names"]);
        assert_eq!(admit(&bundles, &ready, &met, &nothing), all);
        assert_eq!(admit(&bundles, &nothing, &none, &all), all);
    }

    #[test]
    fn the_selector_reads_back_what_it_writes() {
        for selector in [
            Selector::Only(names(&["a", "b"])),
            Selector::AllBut(names(&["c"])),
            Selector::AllBut(BTreeSet::new()),
        ] {
            assert_eq!(
                Selector::of(&application_set(&selector, "dev")),
                Some(selector)
            );
        }
    }

    #[test]
    fn an_application_says_what_it_waits_for() {
        let application = json!({
            "metadata": {"name": "logs"},
            "status": {
                "sync": {"status": "Synced", "revision": "4f2a91c0"},
                "health": {"status": "Progressing"},
                "operationState": {"phase": "Succeeded", "syncResult": {"revision": "4f2a91c0"}},
                "resources": [
                    {"kind": "Service", "name": "logs", "status": "Synced", "health": {"status": "Healthy"}},
                    {"kind": "Deployment", "name": "logs", "status": "Synced",
                     "health": {"status": "Progressing", "message": "0 of 1 updated replicas are available"}},
                ],
            },
        });
        let app = App::of(&application);
        assert!(!app.is_ready("4f2a91c0"));
        insta::assert_snapshot!(app.waits_for("4f2a91c0"), @"Progressing; Deployment logs Progressing (0 of 1 updated replicas are available)");
        insta::assert_snapshot!(app.waits_for("abcdef01"), @"still at 4f2a91c");
        insta::assert_snapshot!(App::default().waits_for("abcdef01"), @"Argo CD hasn't looked at it yet");
        let well = App {
            health: "Healthy".into(),
            unwell: Vec::new(),
            ..app
        };
        assert!(well.is_ready("4f2a91c0"));
        assert_eq!(well.waits_for("4f2a91c0"), "");
        // Healthy, but at another revision, or with a sync under way, isn't ready.
        assert!(!well.is_ready("abcdef01"));
        assert!(
            !App {
                operation: "Running".into(),
                ..well.clone()
            }
            .is_ready("4f2a91c0")
        );
        assert!(
            !App {
                leaving: true,
                ..well
            }
            .is_ready("4f2a91c0")
        );
    }

    #[test]
    fn of_a_failed_rendering_the_reason_is_told() {
        let message = "Failed to load target state: failed to generate manifest for source 1 of 1: rpc error: code = Unknown desc = \
            `kustomize build <path to cached source>/bundles/a/b/overlays/dev --enable-helm` failed exit status 1: Error: \
            accumulating resources: open <path to cached source>/bundles/a/b/base/no-such.yaml: no such file or directory";
        insta::assert_snapshot!(rendering_error(message), @"accumulating resources: open bundles/a/b/base/no-such.yaml: no such file or directory");
        assert_eq!(rendering_error("something else"), "something else");
    }
}
