//! What is in a cluster that is there already, as far as it concerns the platform: observed once, before anything is written.
//! What it means ([`refusal`], [`Facts::lines`]) is decided purely.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Context as _;
use kube::Client;
use serde_json::Value;

use super::rights;
use crate::environment::Environment;
use crate::error::Failure;
use crate::gitops::argocd;
use crate::inputs::Inputs;
use crate::kube::{list, text};

/// The label by which what devenv made in a cluster is known as an environment's.
pub const MARK: &str = "devenv.environment";
/// Namespaces that belong to every cluster.
const BUILT_IN: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// What makes a StorageClass the default one.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// Whose something is that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// It carries our mark.
    Ours,
    /// It carries another environment's.
    OtherEnvironments,
    /// It carries none.
    Theirs,
}

impl Whose {
    fn is(object: &Value, id: &str) -> Self {
        match object.pointer(&format!("/metadata/labels/{MARK}")) {
            Some(mark) if mark == id => Self::Ours,
            Some(_) => Self::OtherEnvironments,
            None => Self::Theirs,
        }
    }
}

/// Something that is there, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct There {
    pub(super) name: String,
    pub(super) whose: Whose,
    /// It is being removed.
    pub(super) is_leaving: bool,
}

impl There {
    fn of(object: &Value, id: &str) -> Self {
        Self {
            name: text(object, "/metadata/name").to_owned(),
            whose: Whose::is(object, id),
            is_leaving: object.pointer("/metadata/deletionTimestamp").is_some(),
        }
    }
}

/// A way in which the cluster makes volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    name: String,
    is_default: bool,
}

/// All that is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) context: String,
    pub(super) version: String,
    pub(super) nodes: usize,
    /// The namespace argocd and those of the bundles, as far as they are there.
    pub(super) namespaces: Vec<There>,
    /// Argo CD's objects that belong to no namespace ("ClusterRole argocd-server"), as far as they are there.
    pub(super) argocd: Vec<There>,
    /// The definitions that the bundles bring, as far as they are there.
    pub(super) definitions: Vec<There>,
    pub(super) classes: Vec<Class>,
    /// A Service of type LoadBalancer that has an address: there is something that gives them.
    pub(super) balanced: Option<String>,
    /// What this user may not do.
    pub(super) missing_rights: Vec<String>,
}

/// Looks. `definitions` are the names of those that the bundles bring.
pub(super) async fn observe(
    client: &Client,
    inputs: &Inputs,
    definitions: &BTreeSet<String>,
) -> anyhow::Result<Facts> {
    let environment = &inputs.environment;
    let missing_rights = rights::missing(client).await?;
    let mut facts = Facts {
        context: environment.cluster.clone(),
        version: String::new(),
        nodes: 0,
        namespaces: Vec::new(),
        argocd: Vec::new(),
        definitions: Vec::new(),
        classes: Vec::new(),
        balanced: None,
        missing_rights,
    };
    if !facts.missing_rights.is_empty() {
        // The rest can't be asked, or not all of it; and it doesn't matter yet.
        return Ok(facts);
    }
    let rbac = "rbac.authorization.k8s.io/v1";
    let (version, nodes, namespaces, roles, bindings, all_definitions, classes, services) = tokio::try_join!(
        async {
            client
                .apiserver_version()
                .await
                .context("ask the API server for its version")
        },
        list(client, "v1", "Node", None, ""),
        list(client, "v1", "Namespace", None, ""),
        list(client, rbac, "ClusterRole", None, ""),
        list(client, rbac, "ClusterRoleBinding", None, ""),
        list(
            client,
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            None,
            ""
        ),
        list(client, "storage.k8s.io/v1", "StorageClass", None, ""),
        list(client, "v1", "Service", None, ""),
    )?;
    let id = &environment.id;
    facts.version = version.git_version;
    facts.nodes = nodes.len();
    facts.namespaces = among(&namespaces, id, |name| {
        name == argocd::NAMESPACE || inputs.namespaces.contains(name)
    });
    let of_argocd = |objects: &[Value], kind: &str, names: &[&str]| {
        let mut found = among(objects, id, |name| names.contains(&name));
        for there in &mut found {
            there.name = format!("{kind} {}", there.name);
        }
        found
    };
    facts.argocd = of_argocd(
        &all_definitions,
        "CustomResourceDefinition",
        &argocd::DEFINITIONS,
    );
    facts
        .argocd
        .extend(of_argocd(&roles, "ClusterRole", &argocd::CLUSTER_ROLES));
    facts.argocd.extend(of_argocd(
        &bindings,
        "ClusterRoleBinding",
        &argocd::CLUSTER_ROLES,
    ));
    facts.definitions = among(&all_definitions, id, |name| definitions.contains(name));
    facts.classes = classes.iter().map(class).collect();
    facts.balanced = services
        .iter()
        .find(|service| is_balanced(service))
        .map(|service| {
            format!(
                "{}/{}",
                text(service, "/metadata/namespace"),
                text(service, "/metadata/name")
            )
        });
    Ok(facts)
}

fn among(objects: &[Value], id: &str, wanted: impl Fn(&str) -> bool) -> Vec<There> {
    objects
        .iter()
        .filter(|object| wanted(text(object, "/metadata/name")))
        .map(|object| There::of(object, id))
        .collect()
}

fn class(class: &Value) -> Class {
    let annotations = class.pointer("/metadata/annotations");
    Class {
        name: text(class, "/metadata/name").to_owned(),
        is_default: annotations.is_some_and(|annotations| annotations[DEFAULT_CLASS] == "true"),
    }
}

fn is_balanced(service: &Value) -> bool {
    text(service, "/spec/type") == "LoadBalancer"
        && service
            .pointer("/status/loadBalancer/ingress/0")
            .is_some_and(|ingress| ingress.get("ip").or(ingress.get("hostname")).is_some())
}

impl Facts {
    /// Whether this environment has begun to be there: nobody is asked a second time.
    pub(super) fn is_begun(&self) -> bool {
        self.namespaces
            .iter()
            .any(|there| there.name == argocd::NAMESPACE && there.whose == Whose::Ours)
    }

    /// The namespaces that are just being removed.
    pub(super) fn leaving(&self) -> Vec<&str> {
        let leaving = self.namespaces.iter().filter(|there| there.is_leaving);
        leaving.map(|there| there.name.as_str()).collect()
    }

    /// What there would be to do, as (subject, what).
    pub(super) fn lines(
        &self,
        inputs: &Inputs,
        definitions: &BTreeSet<String>,
    ) -> Vec<(&'static str, String)> {
        let environment = &inputs.environment;
        let mut lines = vec![(
            "cluster",
            format!(
                "use that of the context {}: Kubernetes {}, {} node(s); it is neither made nor removed",
                self.context, self.version, self.nodes
            ),
        )];
        let there = |name: &str| self.namespaces.iter().any(|there| there.name == name);
        let mut namespaces = vec![argocd::NAMESPACE];
        namespaces.extend(inputs.namespaces.iter().map(String::as_str));
        let (kept, made): (Vec<&str>, Vec<&str>) =
            namespaces.into_iter().partition(|name| there(name));
        for (verb, names) in [("create", made), ("keep", kept)] {
            if !names.is_empty() {
                lines.push(("namespaces", format!("{verb} {}", names.join(", "))));
            }
        }
        lines.push((
            "argo cd",
            match self.is_begun() {
                true => format!("keep {}, or bring it to that", argocd::VERSION),
                false => format!(
                    "install {}; what it syncs may be anything in the cluster, so it has all rights",
                    argocd::VERSION
                ),
            },
        ));
        let names: Vec<&str> = inputs
            .bundles
            .iter()
            .map(|bundle| bundle.name.as_str())
            .collect();
        lines.push((
            "applications",
            format!("push the working tree; {}", names.join(", ")),
        ));
        let theirs: Vec<&str> = self
            .definitions
            .iter()
            .filter(|there| there.whose != Whose::Ours)
            .map(|there| there.name.as_str())
            .collect();
        let ours = definitions.len() - theirs.len();
        if ours > 0 {
            lines.push((
                "definitions",
                format!("{ours} of custom resources that the bundles bring"),
            ));
        }
        if !theirs.is_empty() {
            lines.push((
                "definitions",
                format!(
                    "{} are there already: Argo CD brings them to the bundles' version, and `down` keeps them",
                    theirs.join(", ")
                ),
            ));
        }
        lines.push(("images", images_line(environment)));
        lines.push(("storage", self.storage_line(inputs)));
        if !inputs.names.is_empty() {
            lines.push((
                "balancer",
                match &self.balanced {
                    Some(service) => format!("the cluster's own, which gave {service} an address"),
                    None => "the cluster's own; whether it has one shows when the gateway asks for an address"
                        .to_owned(),
                },
            ));
            lines.push((
                "CoreDNS",
                "leave it alone: inside of the cluster the platform's names are known only where its DNS knows them"
                    .to_owned(),
            ));
        }
        lines
    }

    fn storage_line(&self, inputs: &Inputs) -> String {
        if inputs.storage.is_empty() {
            return "none that can be seen in the bundles' own files".to_owned();
        }
        let names: Vec<&str> = inputs
            .storage
            .iter()
            .filter_map(|wanted| match wanted {
                Some(name) => Some(name.as_str()),
                None => self.default_class(),
            })
            .collect();
        format!("volumes of the class {}", names.join(", "))
    }

    fn default_class(&self) -> Option<&str> {
        let class = self.classes.iter().find(|class| class.is_default)?;
        Some(&class.name)
    }
}

fn images_line(environment: &Environment) -> String {
    let registry = environment
        .existing
        .as_ref()
        .and_then(|existing| existing.registry.as_ref());
    match registry {
        Some(registry) => {
            format!("pulled by the nodes from {registry}, which `devenv images push` fills")
        }
        None => "pulled by the nodes from where their names say".to_owned(),
    }
}

/// Why nothing is begun in this cluster, if so.
pub(super) fn refusal(facts: &Facts, inputs: &Inputs) -> Option<Failure> {
    let environment = &inputs.environment;
    let context = &facts.context;
    if !facts.missing_rights.is_empty() {
        let mut message =
            format!("in the cluster of the context {context} this user has no right to");
        for right in &facts.missing_rights {
            let _ = write!(message, "\n  {right}");
        }
        return Some(Failure::Other {
            message,
            hint: format!(
                "whoever runs the cluster can give them, for instance by `kubectl --context {context} create clusterrolebinding \
                 devenv --clusterrole cluster-admin --user NAME`; `kubectl --context {context} auth whoami` says the NAME"
            ),
        });
    }
    another_argocd(facts, context)
        .or_else(|| their_namespaces(facts, environment))
        .or_else(|| no_storage(facts, inputs))
}

fn another_argocd(facts: &Facts, context: &str) -> Option<Failure> {
    let namespace = facts
        .namespaces
        .iter()
        .filter(|there| there.name == argocd::NAMESPACE)
        .map(|there| (format!("Namespace {}", there.name), there.whose));
    let rest = facts
        .argocd
        .iter()
        .map(|there| (there.name.clone(), there.whose));
    let foreign: Vec<(String, Whose)> = namespace
        .chain(rest)
        .filter(|(_, whose)| *whose != Whose::Ours)
        .collect();
    if foreign.is_empty() {
        return None;
    }
    let is_devenvs = foreign
        .iter()
        .any(|(_, whose)| *whose == Whose::OtherEnvironments);
    let names: Vec<&str> = foreign.iter().map(|(name, _)| name.as_str()).collect();
    Some(Failure::NotOurs {
        message: format!(
            "in the cluster of the context {context} is an Argo CD that {}: {}",
            match is_devenvs {
                true => "another environment of devenv's made",
                false => "this environment didn't make",
            },
            names.join(", ")
        ),
        hint: format!(
            "use another cluster, or take that Argo CD out first; `kubectl --context {context} get namespace {} --show-labels` \
             says whose it is",
            argocd::NAMESPACE
        ),
    })
}

/// A namespace of the bundles' that somebody else made: what is in it would get the bundles' labels, and go with `down`.
fn their_namespaces(facts: &Facts, environment: &Environment) -> Option<Failure> {
    let names: Vec<&str> = facts
        .namespaces
        .iter()
        .filter(|there| there.name != argocd::NAMESPACE && there.whose != Whose::Ours)
        .map(|there| there.name.as_str())
        .collect();
    let first = names.first()?;
    let context = &facts.context;
    let hint = match names.iter().find(|name| BUILT_IN.contains(name)) {
        Some(built_in) => format!(
            "take the Namespace {built_in} out of the bundles: it belongs to the cluster; `kubectl --context {context} get namespaces` shows all"
        ),
        None => format!(
            "give yours other names in the bundles; or hand one over to this environment, with all that is in it, which `devenv down` \
             then removes: `kubectl --context {context} label namespace {first} {MARK}={}`",
            environment.id
        ),
    };
    Some(Failure::NotOurs {
        message: format!(
            "in the cluster of the context {context} are namespaces of the bundles' that this environment didn't make: {}",
            names.join(", ")
        ),
        hint,
    })
}

fn no_storage(facts: &Facts, inputs: &Inputs) -> Option<Failure> {
    let context = &facts.context;
    let names: Vec<&str> = facts
        .classes
        .iter()
        .map(|class| class.name.as_str())
        .collect();
    let there = match names.as_slice() {
        [] => "it has none at all".to_owned(),
        names => format!("it has {}", names.join(", ")),
    };
    let lacks = inputs.storage.iter().find_map(|wanted| match wanted {
        None if facts.default_class().is_none() => Some("no default StorageClass".to_owned()),
        Some(name) if !names.contains(&name.as_str()) => Some(format!("no StorageClass {name}")),
        _ => None,
    })?;
    Some(Failure::Other {
        message: format!(
            "the bundles need volumes, and the cluster of the context {context} has {lacks}: {there}"
        ),
        hint: match names.first() {
            Some(first) => format!(
                "name one of those in the bundle; or make one the default: kubectl --context {context} annotate storageclass {first} {DEFAULT_CLASS}=true"
            ),
            None => format!(
                "whoever runs the cluster has to give it one; then: kubectl --context {context} get storageclass"
            ),
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, labels: Value) -> Value {
        json!({"metadata": {"name": name, "labels": labels}})
    }

    #[test]
    fn whose_something_is_stands_in_its_label() {
        let whose = |labels| There::of(&object("a", labels), "0123456789ab").whose;
        assert_eq!(whose(json!({MARK: "0123456789ab"})), Whose::Ours);
        assert_eq!(
            whose(json!({MARK: "ba9876543210"})),
            Whose::OtherEnvironments
        );
        assert_eq!(whose(json!({"app": "x"})), Whose::Theirs);
        assert_eq!(whose(json!(null)), Whose::Theirs);
    }

    #[test]
    fn a_balancer_shows_by_what_it_has_done() {
        let service = |kind: &str, ingress: Value| json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [ingress]}}});
        assert!(is_balanced(&service(
            "LoadBalancer",
            json!({"ip": "10.0.0.9"})
        )));
        assert!(is_balanced(&service(
            "LoadBalancer",
            json!({"hostname": "lb.test"})
        )));
        assert!(!is_balanced(&service("LoadBalancer", json!({}))));
        assert!(!is_balanced(&service(
            "ClusterIP",
            json!({"ip": "10.0.0.9"})
        )));
    }

    #[test]
    fn one_class_is_the_default() {
        let classes = [
            class(&json!({"metadata": {"name": "slow"}})),
            class(&json!({"metadata": {"name": "fast", "annotations": {DEFAULT_CLASS: "true"}}})),
        ];
        assert_eq!(classes.map(|class| class.is_default), [false, true]);
    }
}
