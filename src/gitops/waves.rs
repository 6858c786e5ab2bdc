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
            words.push(one_line(&self.message));
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
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn owns(application: &Value) -> Vec<String> {
    let resources = application
        .pointer("/status/resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    resources
        .map(|resource| text(resource, "/name").to_owned())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

fn unwell(application: &Value) -> Vec<String> {
    let resources = application
        .pointer("/status/resources")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    resources
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

/// The bundles whose needs are all ready, beside those that are in already. The list only grows: a name taken out of it
/// would delete its Application.
pub fn admit(
    bundles: &[Bundle],
    ready: &BTreeSet<String>,
    admitted: &BTreeSet<String>,
) -> BTreeSet<String> {
    let now = bundles
        .iter()
        .filter(|bundle| bundle.needs.iter().all(|need| ready.contains(&need.bundle)));
    admitted
        .iter()
        .cloned()
        .chain(now.map(|bundle| bundle.name.clone()))
        .collect()
}

/// The names of the Applications that are ready at a revision.
pub fn ready(apps: &BTreeMap<String, App>, revision: &str) -> BTreeSet<String> {
    apps.iter()
        .filter(|(_, app)| app.is_ready(revision))
        .map(|(name, _)| name.clone())
        .collect()
}
