//! What the platform needs and git can't hold: generated secrets, and the address of a LoadBalancer. And what saves minutes
//! when it is there early: the definitions of custom resources.
//!
//! [`provide`] goes on beside the wait for the Applications, looks twice a second what is missing, and gives it.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::git::TreeFile;
use crate::bundle::{Bundle, GeneratedSecret};
use crate::context::Context;
use crate::kube::{
    ARGOCD_FIELD_MANAGER, FIELD_MANAGER, answered, apply, create_if_absent, get, list, text,
};
use crate::names::tls::{self, Authority};
use crate::yaml;

/// What there is to give.
#[derive(Debug)]
pub struct Provisions<'a> {
    /// Whose secrets and certificates are made.
    pub bundles: &'a [Bundle],
    /// Who signs the certificates.
    pub authority: &'a Authority,
    /// The names in them.
    pub names: &'a BTreeSet<String>,
    /// What a LoadBalancer gets.
    pub address: Option<Ipv4Addr>,
}

/// Gives what is missing for as long as `work` goes on, and once more when it is done: nothing that waited for a secret may have
/// come only after the last look. Whatever can't be given is told by what waits for it.
pub async fn provide<T>(
    context: &Context,
    client: &Client,
    provisions: &Provisions<'_>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut made = BTreeSet::new();
    let done = tokio::select! {
        done = work => done?,
        Err(error) = again_and_again(context, client, provisions, &mut made) => return Err(error),
    };
    give(client, provisions, &mut made).await?;
    Ok(done)
}

async fn again_and_again<'a>(
    context: &Context,
    client: &Client,
    provisions: &Provisions<'a>,
    made: &mut BTreeSet<(&'a str, &'a str)>,
) -> anyhow::Result<Infallible> {
    loop {
        give(client, provisions, made).await?;
        context.stop.or(sleep(Duration::from_millis(500))).await?;
    }
}

/// Gives what is missing now; `made` are the secrets that needn't be looked at again, by bundle and name.
async fn give<'a>(
    client: &Client,
    provisions: &Provisions<'a>,
    made: &mut BTreeSet<(&'a str, &'a str)>,
) -> anyhow::Result<()> {
    let Provisions {
        bundles,
        authority,
        names,
        address,
    } = *provisions;
    for bundle in bundles {
        for secret in &bundle.secrets {
            let key = (bundle.name.as_str(), secret.name.as_str());
            if !made.contains(&key) && make_secret(client, bundle, secret).await? {
                made.insert(key);
            }
        }
        if let Some(certificate) = &bundle.certificate {
            let key = (bundle.name.as_str(), certificate.as_str());
            if !made.contains(&key)
                && make_certificate(client, bundle, certificate, authority, names).await?
            {
                made.insert(key);
            }
        }
    }
    match address {
        Some(address) => give_addresses(client, address).await,
        None => Ok(()),
    }
}

/// Makes the certificate unless a good one is there; says whether one is. Its namespace comes with another bundle, too.
pub async fn make_certificate(
    client: &Client,
    bundle: &Bundle,
    name: &str,
    authority: &Authority,
    names: &BTreeSet<String>,
) -> anyhow::Result<bool> {
    let namespace = get(client, "v1", "Namespace", "", &bundle.namespace).await?;
    if namespace.is_none() {
        return Ok(false);
    }
    let live = get(client, "v1", "Secret", &bundle.namespace, name).await?;
    let wanted = tls::secret(authority, names, live.as_ref(), SystemTime::now())?;
    if let Some(mut secret) = wanted {
        secret["metadata"]["namespace"] = json!(bundle.namespace);
        secret["metadata"]["name"] = json!(name);
        apply(client, FIELD_MANAGER, &[secret]).await?;
    }
    Ok(true)
}

/// Makes a secret once; says whether it is there. Its namespace comes with another bundle, so it may have to wait.
async fn make_secret(
    client: &Client,
    bundle: &Bundle,
    secret: &GeneratedSecret,
) -> anyhow::Result<bool> {
    let namespace = get(client, "v1", "Namespace", "", &bundle.namespace).await?;
    if namespace.is_none() {
        return Ok(false);
    }
    let mut data = json!(secret.values);
    for key in &secret.generate {
        data[key] = json!(random_text()?);
    }
    let manifest = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {
            "name": secret.name, "namespace": bundle.namespace,
            "labels": {"app.kubernetes.io/managed-by": "devenv"},
        },
        "stringData": data,
    });
    create_if_absent(client, &manifest).await?;
    Ok(true)
}

/// 256 random bits from the operating system, as 64 hexadecimal digits.
pub fn random_text() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("ask the system for random bytes: {error}"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Gives every Service of type LoadBalancer the node's address. With `ipMode: VIP` kube-proxy serves it on the node, where
/// the host's ports lead; and Argo CD calls such a Service healthy only when it has an address.
async fn give_addresses(client: &Client, address: Ipv4Addr) -> anyhow::Result<()> {
    let services: Api<Service> = Api::all(client.clone());
    let found = answered(async || services.list(&ListParams::default()).await)
        .await
        .context("list services")?;
    for service in found {
        let service = serde_json::to_value(service)?;
        if text(&service, "/spec/type") != "LoadBalancer" || has_address(&service, address) {
            continue;
        }
        let (namespace, name) = (
            text(&service, "/metadata/namespace"),
            text(&service, "/metadata/name"),
        );
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address.to_string(), "ipMode": "VIP"}]}}});
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&status));
        answered(async || services.patch_status(name, &parameters, &patch).await)
            .await
            .with_context(|| format!("give Service {namespace}/{name} its address"))?;
    }
    Ok(())
}

fn has_address(service: &Value, address: Ipv4Addr) -> bool {
    text(service, "/status/loadBalancer/ingress/0/ip") == address.to_string()
}

/// The definitions of custom resources among the files that bundles take from upstream. A chart's own templates aren't
/// read; what stands in them comes with its bundle.
pub fn definitions(files: &[TreeFile]) -> Vec<Value> {
    files
        .iter()
        .filter(|file| file.path.ends_with(".yaml") || file.path.ends_with(".yml"))
        .filter_map(|file| {
            std::str::from_utf8(&file.bytes)
                .ok()
                .map(|text| (&file.path, text))
        })
        .filter(|(_, text)| text.contains("kind: CustomResourceDefinition"))
        .filter_map(|(path, text)| yaml::documents(path, text).ok())
        .flatten()
        .filter(|object| text(object, "/kind") == "CustomResourceDefinition")
        .collect()
}

/// Applies definitions that aren't there, under the name of Argo CD's controller, which takes them over without a
/// difference. Through Argo CD they cost half a minute (sync, list again, heal twice); here two seconds while it starts.
/// One that is there is left to Argo CD. Says which were made.
pub async fn apply_definitions(
    client: &Client,
    definitions: &[Value],
) -> anyhow::Result<Vec<String>> {
    let there: BTreeSet<String> = list(
        client,
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        None,
        "",
    )
    .await?
    .iter()
    .map(|object| text(object, "/metadata/name").to_owned())
    .collect();
    let missing: Vec<Value> = definitions
        .iter()
        .filter(|definition| !there.contains(text(definition, "/metadata/name")))
        .cloned()
        .collect();
    apply(client, ARGOCD_FIELD_MANAGER, &missing)
        .await
        .context("apply the bundles' definitions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gitops::git::Mode;

    #[test]
    fn definitions_are_found_among_other_objects_and_templates_are_passed_over() {
        let file = |path: &str, text: &str| TreeFile {
            path: path.to_owned(),
            mode: Mode::Plain,
            bytes: text.as_bytes().to_vec(),
        };
        let definition = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a.b}\n";
        let found = definitions(&[
            file(
                "x/operator.yaml",
                &format!("kind: Namespace\n---\n{definition}"),
            ),
            file(
                "x/templates/crds.yaml",
                "{{ if .Values.crds }}\nkind: CustomResourceDefinition\n{{ end }}\n",
            ),
            file("x/README.md", definition),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(text(&found[0], "/metadata/name"), "a.b");
    }

    #[test]
    fn an_address_of_another_node_is_none() {
        let service = json!({"status": {"loadBalancer": {"ingress": [{"ip": "172.18.0.2"}]}}});
        assert!(has_address(&service, Ipv4Addr::new(172, 18, 0, 2)));
        assert!(!has_address(&service, Ipv4Addr::new(172, 18, 0, 3)));
        assert!(!has_address(&json!({}), Ipv4Addr::new(172, 18, 0, 3)));
    }

    #[test]
    fn random_text_is_long_and_different_each_time() {
        let (one, other) = (random_text().unwrap(), random_text().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
    }
}
