//! Work on a node's volumes while the node stands still: a container beside it, made from the node's own image, that sees the
//! same volumes and nothing else, no network either. It is gone when its work is done; one that a killed devenv left is found
//! by its name.

use anyhow::Context as _;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{CreateContainerOptionsBuilder, LogsOptionsBuilder};
use futures::StreamExt as _;

use super::{Docker, Node, State, status};
use crate::error::Failure;

/// The exit status of a script that met a full disk, after the number that Linux has for it.
pub const DISK_FULL: i64 = 28;

/// A script to run on a node's volumes.
#[derive(Debug, Clone)]
pub struct Beside<'a> {
    /// The container's name; only one of a name can be there.
    pub name: String,
    /// Whose volumes.
    pub node: &'a Node,
    /// For `sh -c`.
    pub script: &'a str,
    /// A label, by which it is known as ours.
    pub label: (&'a str, &'a str),
}

impl Docker {
    /// Makes the container and doesn't start it yet.
    pub async fn make_beside(&self, beside: &Beside<'_>) -> anyhow::Result<()> {
        let Beside {
            name,
            node,
            script,
            label,
        } = beside;
        self.remove(name).await?;
        let body = ContainerCreateBody {
            image: Some(node.image.clone()),
            entrypoint: Some(["sh", "-c", *script].map(str::to_owned).to_vec()),
            cmd: Some(Vec::new()),
            labels: Some([(label.0.to_owned(), label.1.to_owned())].into()),
            network_disabled: Some(true),
            host_config: Some(HostConfig {
                volumes_from: Some(vec![node.name.clone()]),
                network_mode: Some("none".to_owned()),
                // The node's files carry its own label, which another container may not touch.
                security_opt: Some(vec!["label=disable".to_owned()]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        self.api
            .create_container(Some(options), body)
            .await
            .with_context(|| format!("can't make the container {name} beside {}", node.name))?;
        Ok(())
    }

    /// Starts the container and waits for its end; gives what it wrote to stdout. It stays until it is removed.
    pub async fn run_beside(&self, name: &str) -> anyhow::Result<String> {
        self.start(name).await?;
        self.ended_beside(name).await
    }

    /// Waits for the end of a container that was started; an exit status other than 0 is a failure.
    pub async fn ended_beside(&self, name: &str) -> anyhow::Result<String> {
        let mut waited = std::pin::pin!(self.api.wait_container(name, None));
        // A status other than 0 comes as an error; what it is, the inspection tells.
        let _ = waited.next().await;
        let container = self
            .api
            .inspect_container(name, None)
            .await
            .with_context(|| format!("can't inspect the container {name}"))?;
        let code = container
            .state
            .and_then(|state| state.exit_code)
            .unwrap_or(-1);
        let (stdout, mut stderr) = self.said(name).await?;
        if code == DISK_FULL && stderr.is_empty() {
            stderr = "no space left on device, not even for what was said of it".to_owned();
        }
        if code != 0 {
            return Err(Failure::CommandFailed {
                command: format!("docker start --attach {name}"),
                status: format!("exit status {code}"),
                stderr_tail: stderr,
                hint: None,
            }
            .into());
        }
        Ok(stdout)
    }

    async fn said(&self, name: &str) -> anyhow::Result<(String, String)> {
        use bollard::container::LogOutput;
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .build();
        let mut logs = std::pin::pin!(self.api.logs(name, Some(options)));
        let (mut stdout, mut stderr) = (String::new(), String::new());
        while let Some(part) = logs.next().await {
            match part.with_context(|| format!("can't read what the container {name} wrote"))? {
                LogOutput::StdErr { message } => stderr += &String::from_utf8_lossy(&message),
                other => stdout += &String::from_utf8_lossy(&other.into_bytes()),
            }
        }
        Ok((stdout, stderr))
    }

    /// What a container of this name does, if there is one.
    pub async fn state_of(&self, name: &str) -> anyhow::Result<Option<State>> {
        match self.api.inspect_container(name, None).await {
            Ok(container) => Ok(Some(super::node(container).state)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("can't inspect the container {name}")),
        }
    }

    /// Freezes a container.
    pub async fn pause(&self, node: &str) -> anyhow::Result<()> {
        self.api
            .pause_container(node)
            .await
            .with_context(|| format!("can't pause the container {node}"))
    }

    /// Ends a container at once; one that doesn't run is fine.
    pub async fn kill(&self, node: &str) -> anyhow::Result<()> {
        match self.api.kill_container(node, None).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(status(&error), Some(409 | 500)) => Ok(()), // it doesn't run
            Err(error) => Err(error).with_context(|| format!("can't kill the container {node}")),
        }
    }
}
