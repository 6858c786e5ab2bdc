//! The front door: the gateway, for every name it knows and for none that it doesn't.
//!
//! These checks connect to an address that is known, whatever this machine thinks of the names; that is a check of its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;

use super::request::{self, Answer, get};
use super::{Ask as Asked, Check, World};
use crate::kube::text;

/// The bundle that brings the gateway.
const GATEWAY: &str = "gateway";
/// A name that nobody has.
const NOBODY: &str = "no-such-name-of-the-platform";
/// What the gateway adds to an answer that comes from behind it.
const FROM_BEHIND: &str = "x-envoy-upstream-service-time";

/// The gateway's ports as they are on this machine, and who vouches for its certificate.
#[derive(Debug, Clone)]
pub struct Door {
    /// Where HTTP is answered.
    pub http: SocketAddr,
    /// Where HTTPS is answered.
    pub https: SocketAddr,
    /// Trusts the domain's own certificate authority, and no other.
    pub tls: Arc<rustls::ClientConfig>,
}

impl Door {
    /// Asks a name over HTTPS.
    pub(super) async fn ask(
        &self,
        name: &str,
        request: http::Request<String>,
    ) -> anyhow::Result<Answer> {
        request::secure(self.https, name, &self.tls, request)
            .await
            .with_context(|| format!("ask https://{name}"))
    }

    /// Gets a path of a name over HTTPS.
    pub(super) async fn get(&self, name: &str, path: &str) -> anyhow::Result<Answer> {
        self.ask(name, get(name, path)?).await
    }
}

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Name(String),
    UnknownName { known: String },
    Redirect { known: String },
    LoadBalancer { known: String },
}

pub(super) fn checks(names: &BTreeSet<String>) -> Vec<Check> {
    let check = |name: String, proves: String, how: String, ask: Ask| Check {
        name,
        proves,
        how,
        of: &[GATEWAY],
        ask: Asked::Door(ask),
    };
    let mut checks: Vec<Check> = names
        .iter()
        .map(|name| {
            check(
                format!("gateway {name}"),
                format!("https://{name} opens, with a certificate for that name"),
                format!(
                    "GET https://{name}/ at the published port, trusting the domain's own authority only"
                ),
                Ask::Name(name.clone()),
            )
        })
        .collect();
    if let Some(known) = names.first().cloned() {
        checks.push(check(
            "gateway unknown names".to_owned(),
            "a name that nobody has leads nowhere".to_owned(),
            format!("GET / with the Host {NOBODY} is answered by 404 over HTTPS, and gets nowhere else over HTTP"),
            Ask::UnknownName {
                known: known.clone(),
            },
        ));
        checks.push(check(
            "gateway redirect".to_owned(),
            "whoever comes by HTTP is sent to HTTPS".to_owned(),
            format!("GET http://{known}/ is answered by 301"),
            Ask::Redirect {
                known: known.clone(),
            },
        ));
        checks.push(check(
            "gateway load balancer".to_owned(),
            "the gateway's Service has an address, and answers there".to_owned(),
            format!(
                "status.loadBalancer.ingress of the Service; on Linux, GET https://{known}/ at that address, port 443"
            ),
            Ask::LoadBalancer { known },
        ));
    }
    checks
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    let door = world.door()?;
    match ask {
        Ask::Name(name) => comes_from_behind(name, &door.get(name, "/").await?),
        Ask::UnknownName { known } => unknown_name(world, door, known).await,
        Ask::Redirect { known } => redirect(door, known).await,
        Ask::LoadBalancer { known } => load_balancer(world, door, known).await,
    }
}

/// An answer of the system behind the gateway, or a redirect of the gateway's to it.
fn comes_from_behind(name: &str, answer: &Answer) -> anyhow::Result<String> {
    let from_behind = answer.headers.contains_key(FROM_BEHIND);
    let redirect = (300..400).contains(&answer.status);
    anyhow::ensure!(
        from_behind || redirect,
        "the gateway itself answered {} for {name}: it doesn't know the name, or can't reach what is behind it: {}",
        answer.status,
        answer.beginning()
    );
    anyhow::ensure!(
        answer.status < 500,
        "{name} answered {}: {}",
        answer.status,
        answer.beginning()
    );
    Ok(format!("{}", answer.status))
}

async fn unknown_name(world: &World<'_>, door: &Door, known: &str) -> anyhow::Result<String> {
    let nobody = world.host(NOBODY);
    // The certificate is asked for by a name that is in it; the Host is what leads nowhere.
    let secure = door.ask(known, get(&nobody, "/")?).await?;
    let plain = request::plain(door.http, get(&nobody, "/")?).await?;
    // Over HTTP the gateway sends everybody to HTTPS first, whatever the name.
    for (scheme, answer, good) in [
        ("https", &secure, &[404][..]),
        ("http", &plain, &[404, 301]),
    ] {
        anyhow::ensure!(
            good.contains(&answer.status) && !answer.headers.contains_key(FROM_BEHIND),
            "{scheme}://{nobody} was answered by {} where 404 was expected: a route takes every name",
            answer.status
        );
    }
    Ok("404".to_owned())
}

async fn redirect(door: &Door, known: &str) -> anyhow::Result<String> {
    let answer = request::plain(door.http, get(known, "/x?y=z")?)
        .await?
        .expect(301)?;
    let location = answer
        .headers
        .get("location")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let wanted = match door.https.port() {
        443 => format!("https://{known}/x?y=z"),
        port => format!("https://{known}:{port}/x?y=z"),
    };
    anyhow::ensure!(
        location == wanted,
        "http://{known} leads to `{location}` where {wanted} was expected"
    );
    Ok(format!("301 to {location}"))
}

async fn load_balancer(world: &World<'_>, door: &Door, known: &str) -> anyhow::Result<String> {
    let service = crate::kube::get(
        world.client,
        "v1",
        "Service",
        "istio-ingress",
        "istio-ingressgateway",
    )
    .await?
    .context("there is no Service istio-ingress/istio-ingressgateway")?;
    let address = text(&service, "/status/loadBalancer/ingress/0/ip");
    let address: IpAddr = match world.docker {
        // It may be a name there.
        None => door.https.ip(),
        Some(_) => address
            .parse()
            .context("the Service istio-ingress/istio-ingressgateway has no address")?,
    };
    if !cfg!(target_os = "linux") && world.docker.is_some() {
        // Docker's network can't be reached from the other systems.
        return Ok(address.to_string());
    }
    let at = SocketAddr::new(address, 443);
    let answer = request::secure(at, known, &door.tls, get(known, "/")?).await?;
    comes_from_behind(known, &answer)?;
    Ok(format!("{address}:443"))
}
