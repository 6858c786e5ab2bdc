//! The cluster's own DNS, which everything in it asks for the names of Services, and for the platform's names.
//!
//! As kubeadm sets it up, CoreDNS is asked whether it is ready only every ten seconds, and whoever asks it for a name before
//! that waits five seconds for nothing. So it is asked every second, and nobody has to ask it for a name before it is ready.
//!
//! The platform's names lead to the gateway's Service, by lines in what CoreDNS reads: inside and outside the cluster an
//! address such as `https://keycloak.local` is one string. With kind that is the Corefile itself, where the lines are marked;
//! k3s writes its Corefile anew at each start, and reads more of it from the ConfigMap `coredns-custom`.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use crate::context::Context;
use crate::environment::Provider;
use crate::event::Step;
use crate::kube::{FIELD_MANAGER, apply, get, merge, text};
use crate::store::reference::Digest;
use crate::wait::{Look, Wait, wait_for};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "coredns";
/// Where the platform's names lead.
pub const GATEWAY: &str = "istio-ingressgateway.istio-ingress.svc.cluster.local";

const BEGIN: &str = "    # BEGIN devenv: the platform's names";
const END: &str = "    # END devenv";

/// k3s's ConfigMap for additions, and our part of it, which stands in the server's block.
const CUSTOM: &str = "coredns-custom";
const OURS: &str = "devenv.override";

/// One CoreDNS, asked often, that knows the platform's names; says what was changed. Waits until the cluster has made it.
/// That of a cluster that is somebody else's is left alone.
pub async fn tune(
    context: &Context,
    provider: Provider,
    client: &Client,
    names: &BTreeSet<String>,
    step: &Step,
) -> anyhow::Result<Vec<String>> {
    if provider == Provider::Existing {
        return Ok(Vec::new());
    }
    let made = wait(context, "the cluster to set up CoreDNS");
    let config = wait_for(&made, step, &context.stop, || async {
        let config = get(client, "v1", "ConfigMap", NAMESPACE, NAME).await?;
        Ok(match (deployment(client).await?, config) {
            (Some(_), Some(config)) => Look::Ready(config),
            _ => Look::NotYet("CoreDNS isn't set up yet".to_owned()),
        })
    })
    .await?;
    match provider {
        Provider::Kind => tune_corefile(client, names, &config).await,
        Provider::K3d => tune_custom(client, names).await,
        Provider::Existing => Ok(Vec::new()),
    }
}

async fn tune_corefile(
    client: &Client,
    names: &BTreeSet<String>,
    config: &Value,
) -> anyhow::Result<Vec<String>> {
    let mut changed = Vec::new();
    let corefile = text(config, "/data/Corefile");
    let wanted = with_names(corefile, names);
    if wanted != corefile {
        merge(client, config, &json!({"data": {"Corefile": wanted}})).await?;
        changed.push(format!("ConfigMap {NAMESPACE}/{NAME}"));
    }
    let wanted = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "template": {
                "metadata": {"annotations": {"devenv/corefile": version(&wanted)}},
                "spec": {"containers": [{"name": NAME, "readinessProbe": {"periodSeconds": 1}}]},
            },
        },
    });
    changed.extend(apply(client, FIELD_MANAGER, &[wanted]).await?);
    Ok(changed)
}

/// k3s's CoreDNS is one, and asked every two seconds: only the names are ours.
async fn tune_custom(client: &Client, names: &BTreeSet<String>) -> anyhow::Result<Vec<String>> {
    let lines: String = names.iter().map(|name| rewrite(name, "") + "\n").collect();
    let config = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": CUSTOM, "namespace": NAMESPACE},
        "data": {OURS: lines},
    });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"template": {"metadata": {"annotations": {"devenv/corefile": version(&lines)}}}},
    });
    apply(client, FIELD_MANAGER, &[config, deployment]).await
}

/// As an annotation of its pods it starts CoreDNS again when its file changes; by itself it looks for that only after a
/// minute or more.
fn version(text: &str) -> String {
    Digest::of(text.as_bytes()).hex().to_owned()
}

/// What leads a name to the gateway.
fn rewrite(name: &str, indent: &str) -> String {
    format!(
        "{indent}rewrite stop {{\n{indent}    name exact {name} {GATEWAY}\n{indent}    answer auto\n{indent}}}"
    )
}

/// The Corefile in which these names, and no others of ours, lead to the gateway. Every other line stays as it is; a file
/// without a server for the cluster's names stays as it is altogether.
fn with_names(corefile: &str, names: &BTreeSet<String>) -> String {
    let mut lines = Vec::new();
    let mut ours = false;
    let mut told = names.is_empty();
    for line in corefile.lines() {
        match line {
            BEGIN => ours = true,
            END => ours = false,
            _ if ours => {}
            _ => lines.push(line.to_owned()),
        }
        if !told && line.starts_with(".:53 ") && line.ends_with('{') {
            told = true;
            lines.push(BEGIN.to_owned());
            lines.extend(names.iter().map(|name| rewrite(name, "    ")));
            lines.push(END.to_owned());
        }
    }
    let end = if corefile.ends_with('\n') { "\n" } else { "" };
    lines.join("\n") + end
}

/// Waits until names of Services are answered. Somebody else's cluster may have another server for them than CoreDNS.
pub async fn wait_until_it_answers(
    context: &Context,
    provider: Provider,
    client: &Client,
    step: &Step,
) -> anyhow::Result<()> {
    if provider == Provider::Existing {
        return Ok(());
    }
    let answers = wait(context, "CoreDNS");
    wait_for(&answers, step, &context.stop, || async {
        let found = deployment(client).await?;
        let ready = found
            .as_ref()
            .and_then(|found| found.pointer("/status/readyReplicas"));
        Ok(match ready.and_then(Value::as_i64) {
            Some(1..) => Look::Ready(()),
            _ => Look::NotYet("CoreDNS: no pod is ready".to_owned()),
        })
    })
    .await
}

async fn deployment(client: &Client) -> anyhow::Result<Option<Value>> {
    get(client, "apps/v1", "Deployment", NAMESPACE, NAME).await
}

fn wait(context: &Context, what: &str) -> Wait {
    Wait {
        what: what.to_owned(),
        within: context.timeout,
        every: Duration::from_millis(200),
        hint: format!("kubectl -n {NAMESPACE} describe pods -l k8s-app=kube-dns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COREFILE: &str = ".:53 {\n    errors\n    forward . /etc/resolv.conf\n}\n";

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_written_once_and_taken_out_again() {
        let with = with_names(COREFILE, &names(&["a.local", "b.local"]));
        insta::assert_snapshot!(with, @r"
        .:53 {
            # BEGIN devenv: the platform's names
            rewrite stop {
                name exact a.local istio-ingressgateway.istio-ingress.svc.cluster.local
                answer auto
            }
            rewrite stop {
                name exact b.local istio-ingressgateway.istio-ingress.svc.cluster.local
                answer auto
            }
            # END devenv
            errors
            forward . /etc/resolv.conf
        }
        ");
        assert_eq!(with_names(&with, &names(&["a.local", "b.local"])), with);
        assert_eq!(with_names(&with, &names(&[])), COREFILE);
        assert_eq!(
            with_names(&with, &names(&["c.local"])),
            with_names(COREFILE, &names(&["c.local"]))
        );
    }

    #[test]
    fn a_file_that_isnt_understood_stays_as_it_is() {
        let other = "example.org {\n    errors\n}";
        assert_eq!(with_names(other, &names(&["a.local"])), other);
    }
}
