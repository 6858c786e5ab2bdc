//! Argo CD: that it serves, that its login is the one in its secret, and that it finds everything in order.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::json;

use super::request::post;
use super::{Ask as Asked, Check, World};
use crate::gitops::settle::applications;
use crate::gitops::waves::App;

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Healthz,
    Login,
    Applications,
}

pub(super) fn checks() -> Vec<Check> {
    let check = |name: &str, of: &'static [&'static str], proves: &str, how: &str, ask| Check {
        name: format!("argocd {name}"),
        proves: proves.to_owned(),
        how: how.to_owned(),
        of,
        ask: Asked::ArgoCd(ask),
    };
    vec![
        check(
            "applications",
            &[],
            "every Application is Synced and Healthy, all at one revision",
            "the status of each Application in the cluster",
            Ask::Applications,
        ),
        check(
            "healthz",
            &["gateway"],
            "Argo CD's server answers through the gateway",
            "GET https://argocd.<domain>/healthz says ok",
            Ask::Healthz,
        ),
        check(
            "login",
            &["gateway"],
            "the admin's password is the one in argocd-initial-admin-secret",
            "POST https://argocd.<domain>/api/v1/session gives a token",
            Ask::Login,
        ),
    ]
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    let host = world.host("argocd");
    match ask {
        Ask::Healthz => {
            let answer = world.door()?.get(&host, "/healthz").await?.expect(200)?;
            anyhow::ensure!(
                answer.text().trim() == "ok",
                "/healthz says: {}",
                answer.beginning()
            );
            Ok("ok".to_owned())
        }
        Ask::Login => {
            let secret = world
                .secret("argocd", "argocd-initial-admin-secret")
                .await?;
            let password = secret
                .get("password")
                .context("argocd-initial-admin-secret has no key `password`")?;
            let body = json!({"username": "admin", "password": password}).to_string();
            let request = post(&host, "/api/v1/session", "application/json", body)?;
            let answer = world.door()?.ask(&host, request).await?.expect(200)?;
            let has_token = answer.json()?["token"]
                .as_str()
                .is_some_and(|token| !token.is_empty());
            anyhow::ensure!(has_token, "the answer has no token");
            Ok("a token".to_owned())
        }
        Ask::Applications => {
            let live = applications(world.client).await?;
            let wanted = world
                .inputs
                .bundles
                .iter()
                .map(|bundle| bundle.name.as_str());
            in_order(&live, wanted)
        }
    }
}

fn in_order<'a>(
    live: &BTreeMap<String, App>,
    wanted: impl Iterator<Item = &'a str>,
) -> anyhow::Result<String> {
    let revision = live.values().map(|app| app.revision.as_str()).max();
    let mut troubles = Vec::new();
    let mut count = 0;
    for name in wanted {
        count += 1;
        match live.get(name) {
            None => troubles.push(format!("{name} isn't there")),
            Some(app) => {
                let waits_for = app.waits_for(revision.unwrap_or_default());
                if !waits_for.is_empty() {
                    troubles.push(format!("{name}: {waits_for}"));
                }
            }
        }
    }
    anyhow::ensure!(troubles.is_empty(), "{}", troubles.join("; "));
    Ok(format!("{count} of {count}"))
}
