//! After the nodes were started again: what the API server says of pods and leaders is from before, until somebody has looked
//! again.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject};
use serde_json::Value;

use crate::context::Context;
use crate::docker::Docker;
use crate::event::Step;
use crate::gitops::explain;
use crate::kube::{list, resource, text};
use crate::wait::{Look, Wait, wait_for};

/// Leads the API server's address in the cluster to it. kube-proxy does that, too, but it is a pod among others that all start at
/// once after a restart, twenty seconds after the node on two cores; whoever asks before gets no answer, asks again ever more
/// rarely, and everybody waits for CoreDNS and istiod. kube-proxy puts its own rule before this one, and the rule goes with the
/// node's network when it stops.
///
/// kubeadm gives CoreDNS the tenth address of the services' range and the API server the first. The entrypoint of kind's nodes has
/// written the node's new address where it is read here once systemd runs. What has no file of kubeadm's is no node of kind's.
const LEAD_TO_API: &str = "\
    [ -e /etc/kubernetes/kubelet.conf ] || exit 0; \
    i=0; until [ -d /run/systemd/system ] || [ $i -ge 30 ]; do i=$((i + 1)); sleep 0.1; done; \
    dns=$(sed -n '/^clusterDNS:/{n;s/^- \\([0-9.]*\\.[0-9]*\\.[0-9]*\\.[0-9]*\\)$/\\1/p}' /var/lib/kubelet/config.yaml 2>/dev/null); \
    server=$(sed -n 's#.*server: https://\\(.*\\):\\([0-9]*\\)$#\\1 \\2#p' /etc/kubernetes/kubelet.conf 2>/dev/null); \
    [ -n \"$dns\" ] && [ -n \"$server\" ] || exit 0; \
    address=$(getent ahostsv4 ${server% *} | sed -n '1s/ .*//p'); \
    [ -n \"$address\" ] || exit 0; \
    for chain in PREROUTING OUTPUT; do \
      iptables -w 5 -t nat -A $chain -d ${dns%.*}.$((${dns##*.} - 9)) -p tcp --dport 443 \
        -m comment --comment 'devenv: until kube-proxy runs' -j DNAT --to-destination $address:${server#* } || exit; \
    done";

/// Leads the API server's address in the cluster to it, on nodes that were just started. Where that fails kube-proxy does it later,
/// so nothing is lost but time.
pub async fn lead_to_api(docker: &Docker, nodes: impl IntoIterator<Item = &str>) {
    let lead = nodes
        .into_iter()
        .map(|node| async move { docker.exec(node, &["sh", "-c", LEAD_TO_API]).await.ok() });
    join_all(lead).await;
}

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
    let is_stale = pod
        .pointer("/status/containerStatuses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|status| {
            humantime::parse_rfc3339(text(status, "/state/running/startedAt")).ok()
        })
        // The kubelet tells whole seconds.
        .any(|started| started + Duration::from_secs(1) < restarted);
    if is_stale {
        return Some(format!(
            "pod {}: not started again yet",
            text(pod, "/metadata/name")
        ));
    }
    let trouble = explain::pod(pod)?;
    let backs_off = trouble.contains("BackOff") || trouble.contains("can't be had");
    match backs_off {
        true => Some(trouble),
        // That its containers ended was the restart.
        false => Some(format!(
            "pod {}: starting again",
            text(pod, "/metadata/name")
        )),
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
