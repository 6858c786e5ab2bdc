//! Which names the platform has: the hosts of the bundles' VirtualServices.

use serde_json::Value;

use crate::environment::Domain;
use crate::kube::text;

/// The hosts of a VirtualService that are below the domain. In one that takes the environment's domain, the first host is
/// written with a domain of its own, which the environment's stands for (`bundles/environment/domain.yaml`).
pub fn hosts(object: &Value, domain: &Domain) -> Vec<String> {
    if text(object, "/kind") != "VirtualService" {
        return Vec::new();
    }
    let takes_the_domain = object["metadata"]["annotations"]["devenv/domain"] == "environment";
    let below = format!(".{domain}");
    object
        .pointer("/spec/hosts")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .enumerate()
        .map(|(index, host)| match host.split_once('.') {
            Some((name, _)) if index == 0 && takes_the_domain => format!("{name}{below}"),
            _ => host.to_owned(),
        })
        .filter(|host| host.ends_with(&below) && !host.contains('*'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_host_takes_the_domain_and_others_only_count_below_it() {
        let domain: Domain = "dev.example.org".parse().unwrap();
        let service = |annotations: Value| {
            json!({
                "kind": "VirtualService",
                "metadata": {"annotations": annotations},
                "spec": {"hosts": ["a.local", "a.localhost", "b.dev.example.org", "*.dev.example.org"]},
            })
        };
        assert_eq!(
            hosts(&service(json!({"devenv/domain": "environment"})), &domain),
            ["a.dev.example.org", "b.dev.example.org"]
        );
        assert_eq!(hosts(&service(json!(null)), &domain), ["b.dev.example.org"]);
        assert_eq!(hosts(&json!({"kind": "Gateway"}), &domain), [""; 0]);
    }
}
