//! The cluster's own DNS, which everything in it asks for the names of Services, and for the platform's names.
//!
//! As kubeadm sets it up, CoreDNS is asked whether it is ready only every ten seconds, and whoever asks it for a name before
//! that waits five seconds for nothing. So it is asked every second, and nobody has to ask it for a name before it is ready.
//!
//! The platform's names lead to the gateway's Service, by marked lines in the Corefile: inside and outside the cluster an
//! address such as `https://keycloak.local` is one string.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use crate::context::Context;
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

/// One CoreDNS, asked every second, that knows the platform's names; says what was changed. Waits until kubeadm has made it.
pub async fn tune(
    context: &Context,
    client: &Client,
    names: &BTreeSet<String>,
    step: &Step,
) -> anyhow::Result<Vec<String>> {
    let made = wait(context, "kubeadm to set up CoreDNS");
    let config = wait_for(&made, step, &context.stop, || async {
        let config = get(client, "v1", "ConfigMap", NAMESPACE, NAME).await?;
        Ok(match (deployment(client).await?, config) {
            (Some(_), Some(config)) => Look::Ready(config),
            _ => Look::NotYet("kubeadm hasn't set up CoreDNS yet".to_owned()),
        })
    })
    .await?;
    let mut changed = Vec::new();
    let corefile = text(&config, "/data/Corefile");
    let wanted = with_names(corefile, names);
    if wanted != corefile {
        merge(client, &config, &json!({"data": {"Corefile": wanted}})).await?;
        changed.push(format!("ConfigMap {NAMESPACE}/{NAME}"));
    }
    // The annotation starts CoreDNS again when its file changes; by itself it looks for that only after a minute or more.
    let version = Digest::of(wanted.as_bytes()).hex().to_owned();
    let wanted = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "template": {
                "metadata": {"annotations": {"devenv/corefile": version}},
                "spec": {"containers": [{"name": NAME, "readinessProbe": {"periodSeconds": 1}}]},
            },
        },
    });
    changed.extend(apply(client, FIELD_MANAGER, &[wanted]).await?);
    Ok(changed)
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
            lines.extend(names.iter().map(|name| {
                format!("    rewrite stop {{\n        name exact {name} {GATEWAY}\n        answer auto\n    }}")
            }));
            lines.push(END.to_owned());
        }
    }
    let end = if corefile.ends_with('\n') { "\n" } else { "" };
    lines.join("\n") + end
}

/// Waits until names of Services are answered.
pub async fn wait_until_it_answers(
    context: &Context,
    client: &Client,
    step: &Step,
) -> anyhow::Result<()> {
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
