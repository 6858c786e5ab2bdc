//! The address that the cluster's own load balancer gives the gateway, and what to say where none comes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kube::Client;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::context::Context;
use crate::error::Failure;
use crate::kube::{get, list, text};

/// The gateway's Service: namespace and name.
pub(super) const GATEWAY: (&str, &str) = ("istio-ingress", "istio-ingressgateway");
/// Clouds take a minute or two.
const GIVEN_WITHIN: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_secs(2);
const RESOLVED_WITHIN: Duration = Duration::from_secs(5);

/// Where the load balancer puts the gateway, as its Service says it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Given {
    Address(Ipv4Addr),
    /// A name in DNS, as AWS gives.
    Name(String),
    /// IPv6 alone.
    Unusable(String),
}

/// The address at which the gateway answers, or why there is none that names can lead to.
pub(super) async fn of_gateway(client: &Client) -> anyhow::Result<Result<Ipv4Addr, String>> {
    let (namespace, name) = GATEWAY;
    let Some(service) = get(client, "v1", "Service", namespace, name).await? else {
        return Ok(Err(format!("there is no Service {namespace}/{name}")));
    };
    Ok(match given(&service) {
        None => Err(format!(
            "the Service {namespace}/{name} has no address from the cluster's load balancer"
        )),
        Some(Given::Address(address)) => Ok(address),
        Some(Given::Unusable(address)) => Err(format!(
            "the load balancer gave {address}, and only an IPv4 address is wired"
        )),
        Some(Given::Name(name)) => resolved(&name).await,
    })
}

fn given(service: &Value) -> Option<Given> {
    let ingress = service
        .pointer("/status/loadBalancer/ingress")?
        .as_array()?;
    let addresses = || {
        let texts = ingress.iter().map(|ingress| text(ingress, "/ip"));
        texts.filter_map(|text| text.parse::<IpAddr>().ok())
    };
    let v4 = addresses().find_map(|address| match address {
        IpAddr::V4(address) => Some(Given::Address(address)),
        IpAddr::V6(_) => None,
    });
    let name = || {
        let names = ingress.iter().map(|ingress| text(ingress, "/hostname"));
        names
            .filter(|name| !name.is_empty())
            .map(|name| Given::Name(name.to_owned()))
            .next()
    };
    let other = || {
        addresses()
            .next()
            .map(|address| Given::Unusable(address.to_string()))
    };
    v4.or_else(name).or_else(other)
}

/// The load balancer's own name, looked up as every program here would.
async fn resolved(name: &str) -> Result<Ipv4Addr, String> {
    let look = tokio::time::timeout(RESOLVED_WITHIN, tokio::net::lookup_host((name, 443)));
    let found = match look.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(format!("the load balancer gave the name {name}: {error}")),
        Err(_) => {
            return Err(format!(
                "the load balancer gave the name {name}, which isn't found within {} s",
                RESOLVED_WITHIN.as_secs()
            ));
        }
    };
    found
        .map(|address| address.ip())
        .find_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .ok_or_else(|| format!("the load balancer gave the name {name}, which has no IPv4 address"))
}

/// Watches the Services of type LoadBalancer in these namespaces; ends only with an error, when one has been without an
/// address for too long. Argo CD would wait for it without end.
pub(super) async fn watch(
    context: &Context,
    client: &Client,
    namespaces: &BTreeSet<String>,
) -> anyhow::Error {
    let within = GIVEN_WITHIN.min(context.timeout / 2);
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        // A look that fails says nothing about the load balancer.
        if let Ok(services) = list(client, "v1", "Service", None, "").await {
            let without = without_address(&services, namespaces);
            since.retain(|name, _| without.contains(name));
            for name in without {
                let first = *since.entry(name.clone()).or_insert_with(Instant::now);
                if first.elapsed() >= within {
                    return none_came(&name, within);
                }
            }
        }
        if let Err(stopped) = context.stop.or(sleep(PAUSE)).await {
            return stopped;
        }
    }
}

fn without_address(services: &[Value], namespaces: &BTreeSet<String>) -> BTreeSet<String> {
    services
        .iter()
        .filter(|service| {
            text(service, "/spec/type") == "LoadBalancer"
                && namespaces.contains(text(service, "/metadata/namespace"))
                && given(service).is_none()
        })
        .map(|service| {
            let (namespace, name) = ("/metadata/namespace", "/metadata/name");
            format!("{}/{}", text(service, namespace), text(service, name))
        })
        .collect()
}

fn none_came(service: &str, within: Duration) -> anyhow::Error {
    let (namespace, name) = service.split_once('/').unwrap_or_default();
    Failure::CannotHeal {
        what: format!("the Service {service}"),
        reason: format!(
            "it has had no address for {}: nothing in this cluster gives Services of type LoadBalancer one, \
             or it has none left to give",
            humantime::format_duration(within)
        ),
        hint: format!(
            "whoever runs the cluster has to add a load balancer (a cloud's own controller, or MetalLB), then: devenv up; \
             `kubectl -n {namespace} describe service {name}` shows what it was told"
        ),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(ingress: Value) -> Value {
        json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"type": "LoadBalancer"},
            "status": {"loadBalancer": ingress},
        })
    }

    #[test]
    fn an_ipv4_address_is_preferred_to_all_else() {
        let told = |ingress: Value| given(&service(json!({"ingress": ingress})));
        assert_eq!(
            told(json!([{"ip": "fd00::1"}, {"ip": "10.0.0.9"}, {"hostname": "lb.test"}])),
            Some(Given::Address(Ipv4Addr::new(10, 0, 0, 9)))
        );
        assert_eq!(
            told(json!([{"ip": "fd00::1"}, {"hostname": "lb.test"}])),
            Some(Given::Name("lb.test".to_owned()))
        );
        assert_eq!(
            told(json!([{"ip": "fd00::1"}])),
            Some(Given::Unusable("fd00::1".to_owned()))
        );
        assert_eq!(told(json!([])), None);
        assert_eq!(given(&json!({})), None);
    }

    #[test]
    fn only_services_of_the_platform_are_waited_for() {
        let services = [
            service(json!({})),
            service(json!({"ingress": [{"ip": "10.0.0.9"}]})),
        ];
        let ours = BTreeSet::from(["n".to_owned()]);
        assert_eq!(without_address(&services, &ours), ["n/s".to_owned()].into());
        assert!(without_address(&services, &BTreeSet::new()).is_empty());
    }
}
