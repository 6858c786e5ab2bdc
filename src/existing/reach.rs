//! The way to a cluster that is there already: the one context that the environment's file names, taken out of a kubeconfig
//! that is read and never written.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use kube::Client;
use kube::config::Kubeconfig;

use crate::cluster::ours;
use crate::context::Context;
use crate::environment::{Environment, Existing};
use crate::error::Failure;
use crate::suggest::did_you_mean;
use crate::yaml::Segment::Key;
use crate::{inputs, kube as api, paths, yaml};

/// How long an API server may take to say that it is ready: it isn't just being made.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The cluster's own words, for errors: where it was looked for.
pub(super) fn existing(environment: &Environment) -> anyhow::Result<&Existing> {
    environment
        .existing
        .as_ref()
        .context("this environment's cluster is devenv's own")
}

/// The kubeconfig of the environment: its context, its cluster, its user, and nothing else of anybody's.
pub(super) fn kubeconfig(context: &Context, environment: &Environment) -> anyhow::Result<String> {
    let wanted = existing(environment)?;
    let (told, read) = match &wanted.kubeconfig {
        Some(path) => (path.display().to_string(), Kubeconfig::read_from(path)),
        None => (default_file(), Kubeconfig::read()),
    };
    let all = match read {
        Ok(all) => all,
        Err(error) => {
            let key = match wanted.kubeconfig {
                Some(_) => "kubeconfig",
                None => "context",
            };
            let message = format!("can't read the kubeconfig {told}: {error}");
            let help = match wanted.kubeconfig {
                Some(_) => "name the file that has the context; a path is relative to this file",
                None => "set KUBECONFIG, or name the file here: `kubeconfig: PATH`",
            };
            return Err(wrong(
                context,
                environment,
                key,
                message,
                Some(help.to_owned()),
            ));
        }
    };
    match only(&all, &wanted.context) {
        Some(one) => {
            let value = serde_json::to_value(one).context("write the environment's kubeconfig")?;
            Ok(yaml::to_string(&value))
        }
        None => {
            let names: Vec<&str> = all
                .contexts
                .iter()
                .map(|context| context.name.as_str())
                .collect();
            let message = format!("there is no whole context `{}` in {told}", wanted.context);
            let help =
                did_you_mean(&wanted.context, names.iter().copied()).unwrap_or_else(|| match names
                    .as_slice()
                {
                    [] => "it has no context at all; whoever runs the cluster has one".to_owned(),
                    names => format!("the contexts there: {}", names.join(", ")),
                });
            Err(wrong(context, environment, "context", message, Some(help)))
        }
    }
}

/// A mistake of the environment's file, found where it meets the kubeconfig.
fn wrong(
    context: &Context,
    environment: &Environment,
    key: &str,
    message: String,
    help: Option<String>,
) -> anyhow::Error {
    let mut mistake = environment.source.mistake(&[Key(key)], message, help);
    mistake.file = inputs::as_seen_from(&context.directory, &mistake.file);
    Failure::Input(vec![mistake]).into()
}

/// Where kubectl would look.
fn default_file() -> String {
    match std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty()) {
        Some(files) => PathBuf::from(files).display().to_string(),
        None => "~/.kube/config".to_owned(),
    }
}

/// Of a kubeconfig, this one context with what it refers to; `None` where any of it is missing.
fn only(all: &Kubeconfig, name: &str) -> Option<Kubeconfig> {
    let context = all.contexts.iter().find(|context| context.name == name)?;
    let refers = context.context.as_ref()?;
    let cluster = all
        .clusters
        .iter()
        .find(|cluster| cluster.name == refers.cluster)?;
    let user = refers
        .user
        .as_ref()
        .map(|user| all.auth_infos.iter().find(|info| info.name == *user));
    // A context without a user is whole; one whose user is missing isn't.
    let user = match user {
        None => Vec::new(),
        Some(user) => vec![user?.clone()],
    };
    Some(Kubeconfig {
        clusters: vec![cluster.clone()],
        auth_infos: user,
        contexts: vec![context.clone()],
        current_context: Some(name.to_owned()),
        kind: Some("Config".to_owned()),
        api_version: Some("v1".to_owned()),
        ..Kubeconfig::default()
    })
}

/// A client for the cluster, whose API server must answer.
pub(super) async fn client(context: &Context, environment: &Environment) -> anyhow::Result<Client> {
    let text = kubeconfig(context, environment)?;
    let client = api::client(&text).await?;
    let ready = tokio::time::timeout(ANSWERS_WITHIN, api::ready(&client));
    let ready = context.stop.or(ready).await?;
    let ready = ready.unwrap_or_else(|_| {
        Err(anyhow::anyhow!(
            "no answer within {} s",
            ANSWERS_WITHIN.as_secs()
        ))
    });
    ready.map_err(|error| {
        let name = &environment.cluster;
        anyhow::Error::from(Failure::Other {
            message: format!("the cluster of the context {name} can't be used: {error:#}"),
            hint: format!("kubectl --context {name} get --raw /readyz shows whether it is there and lets you in"),
        })
    })?;
    Ok(client)
}

/// Writes the environment's own kubeconfig.
pub(super) fn write_kubeconfig(context: &Context, environment: &Environment) -> anyhow::Result<()> {
    ours::folder(&context.paths, environment)?;
    let text = kubeconfig(context, environment)?;
    let path = context.paths.kubeconfig(&environment.id);
    if std::fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
        paths::write_private(&path, text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
apiVersion: v1
kind: Config
current-context: other
contexts:
  - {name: other, context: {cluster: b, user: b}}
  - {name: mine, context: {cluster: a, user: a, namespace: team}}
  - {name: torn, context: {cluster: a, user: nobody}}
clusters:
  - {name: a, cluster: {server: https://a.test}}
  - {name: b, cluster: {server: https://b.test}}
users:
  - {name: a, user: {token: secret-a}}
  - {name: b, user: {token: secret-b}}
";

    #[test]
    fn only_the_one_context_is_taken() {
        let all = Kubeconfig::from_yaml(TWO).unwrap();
        let one = only(&all, "mine").unwrap();
        insta::assert_snapshot!(yaml::to_string(&serde_json::to_value(one).unwrap()), @r#"
        apiVersion: v1
        clusters:
          -
            cluster:
              server: "https://a.test"
            name: a
        contexts:
          -
            context:
              cluster: a
              namespace: team
              user: a
            name: mine
        current-context: mine
        kind: Config
        users:
          -
            name: a
            user:
              token: secret-a
        "#);
        assert!(only(&all, "torn").is_none());
        assert!(only(&all, "none").is_none());
    }
}
