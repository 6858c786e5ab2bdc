//! Why something isn't ready, from what the cluster says: a pod's conditions, its containers' reasons, the last event
//! about it, the last line it logged.

use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client};
use serde_json::Value;

use crate::kube::{list, text};
use crate::quantity::{cpus, memory, thousandths};

/// What a pod that isn't ready waits for, in words; `None` for one that is ready or has done its work.
pub fn pod(pod: &Value) -> Option<String> {
    let name = text(pod, "/metadata/name");
    if matches!(text(pod, "/status/phase"), "Succeeded") || is_ready(pod) {
        return None;
    }
    if let Some(trouble) = troubles(pod).into_iter().next() {
        return Some(trouble.to_string());
    }
    let unscheduled = conditions(pod)
        .find(|condition| {
            text(condition, "/type") == "PodScheduled" && text(condition, "/status") == "False"
        })
        .map(|condition| super::waves::one_line(text(condition, "/message")));
    let state = match unscheduled {
        Some(message) => format!("not scheduled: {message}"),
        None => match waiting_reasons(pod).next() {
            Some(reason) => reason,
            None => "running, not ready yet".to_owned(),
        },
    };
    Some(format!("pod {name}: {state}"))
}

/// A container's state that doesn't pass by waiting a little.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Its image can't be had.
    Image {
        /// The pod.
        pod: String,
        /// The image as the pod names it.
        image: String,
        /// The kubelet's reason and message.
        message: String,
    },
    /// It starts and ends again and again.
    Crash {
        /// The pod's namespace.
        namespace: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
        /// How often it was started again.
        restarts: i64,
        /// "exit code 1", "OOMKilled (exit code 137)".
        cause: String,
    },
    /// It can't be made: a bad command, a missing secret or volume.
    Config {
        /// The pod.
        pod: String,
        /// The kubelet's reason and message.
        message: String,
    },
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image {
                pod,
                image,
                message,
            } => write!(
                formatter,
                "pod {pod}: image {image} can't be had: {message}"
            ),
            Self::Crash {
                pod,
                container,
                restarts,
                cause,
                ..
            } => {
                write!(
                    formatter,
                    "pod {pod}: container {container} ended {restarts} times, last with {cause}"
                )
            }
            Self::Config { pod, message } => write!(formatter, "pod {pod}: {message}"),
        }
    }
}

/// The troubles of a pod's containers.
pub fn troubles(pod: &Value) -> Vec<Trouble> {
    let name = text(pod, "/metadata/name").to_owned();
    container_statuses(pod)
        .filter_map(|status| {
            let waiting = text(status, "/state/waiting/reason");
            let message = || {
                let message = super::waves::one_line(text(status, "/state/waiting/message"));
                if message.is_empty() {
                    waiting.to_owned()
                } else {
                    format!("{waiting}: {message}")
                }
            };
            let restarts = status
                .get("restartCount")
                .and_then(Value::as_i64)
                .unwrap_or_default();
            let last = status
                .pointer("/state/terminated")
                .or_else(|| status.pointer("/lastState/terminated"));
            match waiting {
                "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                    Some(Trouble::Image {
                        pod: name.clone(),
                        image: text(status, "/image").to_owned(),
                        message: message(),
                    })
                }
                "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                    Some(Trouble::Config {
                        pod: name.clone(),
                        message: message(),
                    })
                }
                _ if restarts > 0
                    && last.is_some()
                    && status.get("ready") != Some(&Value::Bool(true)) =>
                {
                    let last = last.unwrap_or(&Value::Null);
                    let code = last
                        .get("exitCode")
                        .and_then(Value::as_i64)
                        .unwrap_or_default();
                    let cause = match text(last, "/reason") {
                        "" | "Error" | "Completed" => format!("exit code {code}"),
                        reason => format!("{reason} (exit code {code})"),
                    };
                    Some(Trouble::Crash {
                        namespace: text(pod, "/metadata/namespace").to_owned(),
                        pod: name.clone(),
                        container: text(status, "/name").to_owned(),
                        restarts,
                        cause,
                    })
                }
                _ => None,
            }
        })
        .collect()
}

fn is_ready(pod: &Value) -> bool {
    conditions(pod).any(|condition| {
        text(condition, "/type") == "Ready" && text(condition, "/status") == "True"
    })
}

fn conditions(pod: &Value) -> impl Iterator<Item = &Value> {
    pod.pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn container_statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/status/initContainerStatuses", "/status/containerStatuses"]
        .into_iter()
        .flat_map(|pointer| {
            pod.pointer(pointer)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        })
}

fn waiting_reasons(pod: &Value) -> impl Iterator<Item = String> + '_ {
    container_statuses(pod).filter_map(|status| match text(status, "/state/waiting/reason") {
        "" => None,
        reason => Some(format!("{}: {reason}", text(status, "/name"))),
    })
}

/// The pods of a namespace that aren't well, with what can be said of each: its state, the last warning about it, the
/// last line it logged. At most three, worst first; an error on the way is told instead of hidden.
pub async fn namespace(client: &Client, namespace: &str) -> Vec<String> {
    let pods = match list(client, "v1", "Pod", Some(namespace), "").await {
        Ok(pods) => pods,
        Err(error) => return vec![format!("{error:#}")],
    };
    let mut unwell: Vec<&Value> = pods
        .iter()
        .filter(|candidate| pod(candidate).is_some())
        .collect();
    unwell.sort_by_key(|candidate| troubles(candidate).is_empty());
    let mut lines = Vec::new();
    for candidate in unwell.into_iter().take(3) {
        lines.extend(pod(candidate));
        lines.extend(last_warning(client, candidate).await);
        if lacks_room(candidate) {
            lines.extend(room_for(client, candidate).await);
        }
        for trouble in troubles(candidate) {
            if let Trouble::Crash {
                namespace,
                pod,
                container,
                ..
            } = trouble
            {
                lines.extend(last_log_line(client, &namespace, &pod, &container).await);
            }
        }
    }
    lines
}

/// Whether no node has enough of something left for the pod.
fn lacks_room(pod: &Value) -> bool {
    conditions(pod).any(|condition| {
        text(condition, "/reason") == "Unschedulable"
            && text(condition, "/message").contains("Insufficient")
    })
}

/// What a pod that no node has room for asks for, beside what there is.
async fn room_for(client: &Client, pod: &Value) -> Option<String> {
    let nodes = list(client, "v1", "Node", None, "").await.ok()?;
    let pods = list(client, "v1", "Pod", None, "").await.ok()?;
    Some(room(pod, &nodes, &pods))
}

fn room(pod: &Value, nodes: &[Value], pods: &[Value]) -> String {
    let told = |of: [u128; 2]| format!("{} and {}", cpus(of[0]), memory(of[1]));
    let mut line = format!("  it asks for {}", told(requests(pod)));
    for node in nodes {
        let name = text(node, "/metadata/name");
        let has = ["cpu", "memory"].map(|of| {
            thousandths(text(node, &format!("/status/allocatable/{of}"))).unwrap_or_default()
        });
        let taken = pods
            .iter()
            .filter(|pod| {
                text(pod, "/spec/nodeName") == name
                    && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
            })
            .map(requests)
            .fold([0, 0], |[cpu, memory], more| {
                [cpu + more[0], memory + more[1]]
            });
        line += &format!(
            "; node {name} has {}, of which {} are asked for already",
            told(has),
            told(taken)
        );
    }
    line
}

/// The CPU and the memory that a pod's containers ask for, in thousandths; those that run beside the others from the start
/// count as well.
fn requests(pod: &Value) -> [u128; 2] {
    let containers = |pointer| pod.pointer(pointer).and_then(Value::as_array);
    let beside = containers("/spec/initContainers")
        .into_iter()
        .flatten()
        .filter(|container| text(container, "/restartPolicy") == "Always");
    let all: Vec<&Value> = containers("/spec/containers")
        .into_iter()
        .flatten()
        .chain(beside)
        .collect();
    ["cpu", "memory"].map(|of| {
        all.iter()
            .filter_map(|container| {
                thousandths(text(container, &format!("/resources/requests/{of}")))
            })
            .sum()
    })
}

/// The last warning event about an object.
async fn last_warning(client: &Client, object: &Value) -> Option<String> {
    let events = list(
        client,
        "v1",
        "Event",
        Some(text(object, "/metadata/namespace")),
        "",
    )
    .await
    .ok()?;
    let about = |event: &&Value| {
        text(event, "/involvedObject/uid") == text(object, "/metadata/uid")
            && text(event, "/type") == "Warning"
    };
    let last = events.iter().filter(about).max_by_key(|event| {
        let seen = text(event, "/lastTimestamp");
        if seen.is_empty() {
            text(event, "/eventTime").to_owned()
        } else {
            seen.to_owned()
        }
    })?;
    Some(format!(
        "  event: {}: {}",
        text(last, "/reason"),
        super::waves::one_line(text(last, "/message"))
    ))
}

/// The last line a container logged before it ended, or the newest one.
pub async fn last_log_line(
    client: &Client,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Option<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for previous in [true, false] {
        let wanted = LogParams {
            container: Some(container.to_owned()),
            previous,
            tail_lines: Some(5),
            ..LogParams::default()
        };
        if let Ok(logged) = pods.logs(pod, &wanted).await
            && let Some(line) = logged.lines().rev().find(|line| !line.trim().is_empty())
        {
            return Some(format!(
                "  log of {container}: {}",
                super::waves::one_line(line)
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn room_is_told_with_the_numbers() {
        let pod = |node: &str, cpu: &str, memory: &str, phase: &str| {
            json!({
                "metadata": {"name": "a"},
                "spec": {
                    "nodeName": node,
                    "containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}],
                    "initContainers": [
                        {"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}},
                        {"resources": {"requests": {"cpu": "64"}}},
                    ],
                },
                "status": {"phase": phase},
            })
        };
        let nodes = [json!({
            "metadata": {"name": "one"},
            "status": {"allocatable": {"cpu": "2", "memory": "8Gi"}},
        })];
        let pods = [
            pod("one", "400m", "1Gi", "Running"),
            pod("one", "8", "1Gi", "Succeeded"),
            pod("another", "8", "1Gi", "Running"),
        ];
        assert_eq!(
            room(&pod("", "3", "512Mi", "Pending"), &nodes, &pods),
            "  it asks for 3.1 CPU and 640 MiB; node one has 2 CPU and 8.0 GiB, of which 0.5 CPU and 1.1 GiB are asked for \
             already"
        );
    }
}
