//! The cluster's own DNS, which everything in it asks for the names of Services.
//!
//! As kubeadm sets it up, CoreDNS is asked whether it is ready only every ten seconds, and whoever asks it for a name before
//! that waits five seconds for nothing. So it is asked every second, and nobody has to ask it for a name before it is ready.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use crate::context::Context;
use crate::event::Step;
use crate::kube::{FIELD_MANAGER, apply, get};
use crate::wait::{Look, Wait, wait_for};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "coredns";

/// One CoreDNS, asked every second; says whether anything was changed. Waits until kubeadm has made it.
pub async fn tune(context: &Context, client: &Client, step: &Step) -> anyhow::Result<Vec<String>> {
    let made = wait(context, "kubeadm to set up CoreDNS");
    wait_for(&made, step, &context.stop, || async {
        Ok(match deployment(client).await? {
            Some(_) => Look::Ready(()),
            None => Look::NotYet("kubeadm hasn't set up CoreDNS yet".to_owned()),
        })
    })
    .await?;
    let wanted = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            "replicas": 1,
            "template": {"spec": {"containers": [{"name": NAME, "readinessProbe": {"periodSeconds": 1}}]}},
        },
    });
    apply(client, FIELD_MANAGER, &[wanted]).await
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
