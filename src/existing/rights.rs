//! What this user may do in a cluster that is there already, asked of its API server before anything is written: a right that
//! is missing shows at the beginning, by its name, and not half-way.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};

use anyhow::Context as _;

use crate::gitops::argocd::NAMESPACE;

/// One thing that has to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Right {
    verbs: &'static [&'static str],
    group: &'static str,
    /// As the API's addresses have it, with a subresource behind a `/`.
    resource: &'static str,
    namespace: &'static str,
}

const WRITE: &[&str] = &["get", "create", "patch", "delete"];
const LOOK: &[&str] = &["get", "list", "watch"];

/// All that `up`, `sync`, `check` and `down` do by themselves. What Argo CD does it does by its own rights, and whoever gives
/// them to it must have them: `escalate` and `bind`.
const RIGHTS: [Right; 21] = [
    everywhere(
        &["list", "get", "create", "patch", "delete"],
        "",
        "namespaces",
    ),
    everywhere(
        &["list", "get", "create", "patch", "delete"],
        "apiextensions.k8s.io",
        "customresourcedefinitions",
    ),
    everywhere(
        &[
            "list", "get", "create", "patch", "delete", "escalate", "bind",
        ],
        "rbac.authorization.k8s.io",
        "clusterroles",
    ),
    everywhere(
        &["list", "get", "create", "patch", "delete"],
        "rbac.authorization.k8s.io",
        "clusterrolebindings",
    ),
    everywhere(&["list"], "", "nodes"),
    everywhere(&["list"], "", "services"),
    everywhere(&["list"], "storage.k8s.io", "storageclasses"),
    everywhere(LOOK, "", "pods"),
    everywhere(&["get", "create", "patch"], "", "secrets"),
    inside(WRITE, "apps", "deployments"),
    inside(WRITE, "apps", "statefulsets"),
    inside(WRITE, "", "services"),
    inside(WRITE, "", "configmaps"),
    inside(WRITE, "", "serviceaccounts"),
    inside(WRITE, "rbac.authorization.k8s.io", "roles"),
    inside(WRITE, "rbac.authorization.k8s.io", "rolebindings"),
    inside(WRITE, "networking.k8s.io", "networkpolicies"),
    inside(&["create"], "", "pods/portforward"),
    inside(
        &["list", "watch", "get", "create", "patch", "delete"],
        "argoproj.io",
        "applications",
    ),
    inside(WRITE, "argoproj.io", "applicationsets"),
    inside(WRITE, "argoproj.io", "appprojects"),
];

const fn everywhere(
    verbs: &'static [&'static str],
    group: &'static str,
    resource: &'static str,
) -> Right {
    Right {
        verbs,
        group,
        resource,
        namespace: "",
    }
}

const fn inside(
    verbs: &'static [&'static str],
    group: &'static str,
    resource: &'static str,
) -> Right {
    Right {
        namespace: NAMESPACE,
        ..everywhere(verbs, group, resource)
    }
}

impl Right {
    /// "create, patch clusterroles (rbac.authorization.k8s.io)"
    fn told(&self, verbs: &str) -> String {
        let Self {
            group,
            resource,
            namespace,
            ..
        } = self;
        let group = match *group {
            "" => String::new(),
            group => format!(" ({group})"),
        };
        let place = match *namespace {
            "" => String::new(),
            namespace => format!(" in {namespace}"),
        };
        format!("{verbs} {resource}{group}{place}")
    }
}

/// What is missing, each right by its name, a line for each resource; nothing where all is allowed.
pub(super) async fn missing(client: &Client) -> anyhow::Result<Vec<String>> {
    // Whoever may do everything needn't be asked about each.
    let all = Right {
        verbs: &["*"],
        group: "*",
        resource: "*",
        namespace: "",
    };
    if is_allowed(client, &all, "*").await? {
        return Ok(Vec::new());
    }
    let asked = RIGHTS
        .iter()
        .flat_map(|right| right.verbs.iter().map(move |verb| (right, *verb)));
    let missing: Vec<(&Right, &str)> = stream::iter(asked)
        .map(|(right, verb)| async move {
            let allowed = is_allowed(client, right, verb).await?;
            anyhow::Ok((!allowed).then_some((right, verb)))
        })
        .buffered(12)
        .try_filter_map(|missing| async move { Ok(missing) })
        .try_collect()
        .await?;
    Ok(missing
        .chunk_by(|(one, _), (other, _)| one == other)
        .map(|of_one| {
            let verbs: Vec<&str> = of_one.iter().map(|(_, verb)| *verb).collect();
            of_one[0].0.told(&verbs.join(", "))
        })
        .collect())
}

async fn is_allowed(client: &Client, right: &Right, verb: &str) -> anyhow::Result<bool> {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.to_owned()),
                group: Some(right.group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                namespace: (!right.namespace.is_empty()).then(|| right.namespace.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api
        .create(&PostParams::default(), &review)
        .await
        .context("ask the API server what this user may do")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_told_as_it_is_given() {
        insta::assert_snapshot!(RIGHTS[2].told("escalate"), @"escalate clusterroles (rbac.authorization.k8s.io)");
        insta::assert_snapshot!(RIGHTS[0].told("create"), @"create namespaces");
        insta::assert_snapshot!(RIGHTS[17].told("create"), @"create pods/portforward in argocd");
    }
}
