//! After the nodes were started again: what the API server says of pods and leaders is from before, until somebody has looked
//! again.

use std::time::{Duration, SystemTime};

use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject};
use serde_json::Value;

use crate::context::Context;
use crate::event::Step;
use crate::gitops::explain;
use crate::kube::{list, resource, text};
use crate::wait::{Look, Wait, wait_for};

/// After a restart nobody leads any more, but whoever wants to lead waits for the old lease to run out, fifteen seconds. The
/// nodes' own leases stay.
pub async fn forget_leaders(client: &Client) -> anyhow::Result<()> {
    const LEASES: (&str, &str) = ("coordination.k8s.io/v1", "Lease");
    for lease in list(client, LEASES.0, LEASES.1, None, "").await? {
        let namespace = text(&lease, "/metadata/namespace");
        if matches!(namespace, "kube-node-lease" | "kube-system") {
            continue;
        }
        let leases: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), namespace, &resource(LEASES.0, LEASES.1));
        // Gone already is as good.
        let _ = leases
            .delete(text(&lease, "/metadata/name"), &DeleteParams::default())
            .await;
    }
    Ok(())
}

/// Waits until every pod of these namespaces runs again and is ready. Before the kubelet has looked, a pod still counts as ready
/// whose containers ended with the node.
pub async fn wait_for_pods(
    context: &Context,
    client: &Client,
    namespaces: &[&str],
    restarted: SystemTime,
    step: &Step,
) -> anyhow::Result<()> {
    let wait = Wait {
        what: "the pods to start again".to_owned(),
        within: context.timeout,
        every: Duration::from_millis(300),
        hint: "kubectl get pods -A".to_owned(),
    };
    wait_for(&wait, step, &context.stop, || async {
        for namespace in namespaces {
            let pods = list(client, "v1", "Pod", Some(namespace), "").await?;
            if let Some(why) = pods.iter().find_map(|pod| waits_for(pod, restarted)) {
                return Ok(Look::NotYet(why));
            }
        }
        Ok(Look::Ready(()))
    })
    .await
}

/// What a pod waits for, if it isn't ready since the restart.
fn waits_for(pod: &Value, restarted: SystemTime) -> Option<String> {
    let is_over = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed");
    if is_over || text(pod, "/spec/nodeName").is_empty() {
        return None;
    }
    let stale = pod
        .pointer("/status/containerStatuses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|status| {
            humantime::parse_rfc3339(text(status, "/state/running/startedAt")).ok()
        })
        // The kubelet tells whole seconds.
        .any(|started| started + Duration::from_secs(1) < restarted);
    match stale {
        true => Some(format!(
            "pod {}: not started again yet",
            text(pod, "/metadata/name")
        )),
        false => explain::pod(pod),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_counts_only_by_what_it_does_since_the_restart() {
        let pod = |started: &str, phase: &str| {
            json!({
                "metadata": {"name": "a"}, "spec": {"nodeName": "n"},
                "status": {
                    "phase": phase,
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"ready": true, "state": {"running": {"startedAt": started}}}],
                },
            })
        };
        let restarted = humantime::parse_rfc3339("2026-11-25T12:00:00.9Z").unwrap();
        assert_eq!(
            waits_for(&pod("2026-11-25T12:00:00Z", "Running"), restarted),
            None
        );
        assert_eq!(
            waits_for(&pod("2026-11-25T11:00:00Z", "Running"), restarted),
            Some("pod a: not started again yet".to_owned())
        );
        assert_eq!(
            waits_for(&pod("2026-11-25T11:00:00Z", "Succeeded"), restarted),
            None
        );
    }
}
