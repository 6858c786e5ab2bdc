//! Keycloak: its health, its issuer's exact address, and that its admin gets a token that opens its API.

use anyhow::Context as _;
use http::Request;

use super::request::{form, get, post};
use super::{Ask as Asked, Check, World, pods};
use crate::gitops::tree::authority;

const NAMESPACE: &str = "iam-system";
/// The pods' label, under the operator and without it.
pub(super) const LABELS: &str = "app=keycloak";
/// Where Keycloak tells of its health; not reached through the gateway.
const MANAGEMENT: u16 = 9000;

const THROUGH_THE_DOOR: &[&str] = &["keycloak", "gateway"];

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Health,
    Issuer,
    Token,
    AdminApi,
}

pub(super) fn checks() -> Vec<Check> {
    let check = |name: &str, of: &'static [&'static str], proves: &str, how: &str, ask| Check {
        name: format!("keycloak {name}"),
        proves: proves.to_owned(),
        how: how.to_owned(),
        of,
        ask: Asked::Keycloak(ask),
    };
    vec![
        check(
            "health",
            &["keycloak"],
            "Keycloak and its database connection are up",
            "GET /health/ready at its management port, by port-forward",
            Ask::Health,
        ),
        check(
            "issuer",
            THROUGH_THE_DOOR,
            "clients inside and outside see one issuer, exactly https://keycloak.<domain>/realms/master",
            "GET https://keycloak.<domain>/realms/master/.well-known/openid-configuration",
            Ask::Issuer,
        ),
        check(
            "token",
            THROUGH_THE_DOOR,
            "the admin's login is the one in keycloak-instance-initial-admin",
            "a token of realm master for admin-cli, through the gateway",
            Ask::Token,
        ),
        check(
            "admin API",
            THROUGH_THE_DOOR,
            "the token opens the admin API",
            "GET https://keycloak.<domain>/admin/realms/master with it",
            Ask::AdminApi,
        ),
    ]
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    let host = world.host("keycloak");
    match ask {
        Ask::Health => {
            let pod = pods::one(world.client, NAMESPACE, LABELS).await?;
            let request = get("localhost", "/health/ready")?;
            let answer = pods::ask(world.client, NAMESPACE, &pod, MANAGEMENT, request).await?;
            let answer = answer.expect(200)?.json()?;
            anyhow::ensure!(answer["status"] == "UP", "it says {answer}");
            Ok("UP".to_owned())
        }
        Ask::Issuer => {
            let path = "/realms/master/.well-known/openid-configuration";
            let answer = world.door()?.get(&host, path).await?.expect(200)?.json()?;
            let wanted = format!("https://keycloak.{}/realms/master", authority(world.inputs));
            let issuer = answer["issuer"].as_str().unwrap_or_default();
            anyhow::ensure!(
                issuer == wanted,
                "the issuer is `{issuer}` where {wanted} was expected"
            );
            Ok(wanted)
        }
        Ask::Token => token(world, &host).await.map(|_| "a token".to_owned()),
        Ask::AdminApi => {
            let token = token(world, &host).await?;
            let request = Request::get("/admin/realms/master")
                .header("host", &host)
                .header("authorization", format!("Bearer {token}"))
                .body(String::new())?;
            let answer = world
                .door()?
                .ask(&host, request)
                .await?
                .expect(200)?
                .json()?;
            anyhow::ensure!(answer["realm"] == "master", "it says {answer}");
            Ok("realm master".to_owned())
        }
    }
}

async fn token(world: &World<'_>, host: &str) -> anyhow::Result<String> {
    let secret = world
        .secret(NAMESPACE, "keycloak-instance-initial-admin")
        .await?;
    let key = |key: &str| {
        secret
            .get(key)
            .with_context(|| format!("keycloak-instance-initial-admin has no key `{key}`"))
    };
    let body = form(&[
        ("grant_type", "password"),
        ("client_id", "admin-cli"),
        ("username", key("username")?),
        ("password", key("password")?),
    ]);
    let path = "/realms/master/protocol/openid-connect/token";
    let request = post(host, path, "application/x-www-form-urlencoded", body)?;
    let answer = world
        .door()?
        .ask(host, request)
        .await?
        .expect(200)?
        .json()?;
    Ok(answer["access_token"]
        .as_str()
        .context("the answer has no access_token")?
        .to_owned())
}
