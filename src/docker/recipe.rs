//! What a container was made of, as Docker tells it: enough to make the same one again, on this machine or another.
//!
//! Providers' programs know no way back from a saved state to a node, but a node is only a container: made again as it was,
//! with its files put back before it first starts, it goes on as after a restart.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, MountType, NetworkCreateRequest, PortBinding,
};
use bollard::models::{Ipam, IpamConfig, Mount};
use bollard::query_parameters::{CreateContainerOptionsBuilder, InspectNetworkOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Docker;

/// How to make a container again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recipe {
    /// The container's name.
    pub name: String,
    /// The id of the container that this was read from.
    pub id: String,
    /// What Docker is asked for.
    body: ContainerCreateBody,
    /// The volumes that Docker made for the container, by the folder where they are.
    pub volumes: BTreeMap<String, String>,
    /// The network it is in, to be made again where it is gone.
    network: NetworkRecipe,
}

/// How to make a network again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NetworkRecipe {
    name: String,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    /// Its subnets: with the same ones, containers get the addresses they had.
    subnets: Vec<String>,
}

impl Recipe {
    /// With a label that has another value, where there was one: the container's, and its network's.
    pub fn label(&mut self, name: &str, value: &str) {
        let own = self.body.labels.as_mut();
        let own = own.and_then(|labels| labels.get_mut(name));
        for label in own.into_iter().chain(self.network.labels.get_mut(name)) {
            value.clone_into(label);
        }
    }

    /// With another folder of this machine in the place of one that was mounted below `folder`, read-only.
    pub fn bind_below(&mut self, folder: &str, source: &str, target: &str) {
        let binds = self
            .body
            .host_config
            .as_mut()
            .and_then(|host| host.binds.as_mut());
        for bind in binds.into_iter().flatten() {
            let is_below = bind
                .split(':')
                .nth(1)
                .is_some_and(|there| there.starts_with(folder));
            if is_below {
                *bind = format!("{source}:{target}:ro");
            }
        }
    }

    /// The ports of this machine that lead to a port of the container.
    pub fn published(&mut self, container_port: u16) -> impl Iterator<Item = &mut PortBinding> {
        self.body
            .host_config
            .as_mut()
            .and_then(|host| host.port_bindings.as_mut())
            .and_then(|ports| ports.get_mut(&format!("{container_port}/tcp")))
            .and_then(Option::as_mut)
            .into_iter()
            .flatten()
    }

    /// What is left for another machine: the volumes are this one's, and so is the way in which its Docker runs containers.
    pub fn for_elsewhere(mut self) -> Self {
        self.volumes.clear();
        self.id.clear();
        self
    }

    /// The request, with the volumes where they were.
    fn request(&self) -> ContainerCreateBody {
        let mut body = self.body.clone();
        let volumes = self.volumes.iter().map(|(folder, volume)| Mount {
            typ: Some(MountType::VOLUME),
            source: Some(volume.clone()),
            target: Some(folder.clone()),
            ..Mount::default()
        });
        let mounts = body
            .host_config
            .get_or_insert_default()
            .mounts
            .get_or_insert_default();
        mounts.extend(volumes);
        body
    }
}

/// What an inspection tells, without what only this one container had.
fn read(container: &ContainerInspectResponse, network: NetworkRecipe) -> anyhow::Result<Recipe> {
    let mut body: Value = serde_json::to_value(&container.config)?;
    body["HostConfig"] = serde_json::to_value(&container.host_config)?;
    let mut body: ContainerCreateBody = serde_json::from_value(body)?;
    let anonymous: Vec<String> = body.volumes.clone().unwrap_or_default();
    let volumes: BTreeMap<String, String> = container
        .mounts
        .iter()
        .flatten()
        .filter(|mount| mount.typ.as_deref() == Some("volume"))
        .filter_map(|mount| Some((mount.destination.clone()?, mount.name.clone()?)))
        .filter(|(folder, _)| anonymous.contains(folder))
        .collect();
    if let Some(host) = &mut body.host_config {
        host.network_mode = Some(network.name.clone());
        // Each machine's Docker has a default of its own.
        host.runtime = None;
        host.container_id_file = None;
        if let Some(mounts) = &mut host.mounts {
            mounts.retain(|mount| {
                !mount
                    .target
                    .as_ref()
                    .is_some_and(|target| volumes.contains_key(target))
            });
        }
    }
    let node = super::node(container.clone());
    Ok(Recipe {
        name: node.name,
        id: node.id,
        body,
        volumes,
        network,
    })
}

impl Docker {
    /// How to make a container again that is there, whatever it does; `None` where it is in no network, or its network is gone.
    pub async fn recipe(&self, name: &str) -> anyhow::Result<Option<Recipe>> {
        let container = self
            .api
            .inspect_container(name, None)
            .await
            .with_context(|| format!("can't inspect the container {name}"))?;
        // Not the mode: k3d leaves that at Docker's default, and names its network beside it.
        let networks = container
            .network_settings
            .as_ref()
            .and_then(|settings| settings.networks.as_ref());
        let Some(network) = networks.and_then(|networks| networks.keys().min()) else {
            return Ok(None);
        };
        let Some(network) = self.network_recipe(network).await? else {
            return Ok(None);
        };
        read(&container, network).map(Some)
    }

    async fn network_recipe(&self, name: &str) -> anyhow::Result<Option<NetworkRecipe>> {
        let found = self
            .api
            .inspect_network(name, None::<InspectNetworkOptions>)
            .await;
        let network = match found {
            Ok(network) => network,
            Err(error) if super::status(&error) == Some(404) => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("can't inspect the network {name}"));
            }
        };
        let configs = network
            .ipam
            .and_then(|ipam| ipam.config)
            .unwrap_or_default();
        Ok(Some(NetworkRecipe {
            name: name.to_owned(),
            options: network.options.unwrap_or_default().into_iter().collect(),
            labels: network.labels.unwrap_or_default().into_iter().collect(),
            subnets: configs
                .into_iter()
                .filter_map(|config| config.subnet)
                .collect(),
        }))
    }

    /// Makes the container, and its network where that is gone; doesn't start it.
    pub async fn make(&self, recipe: &Recipe) -> anyhow::Result<()> {
        let network = &recipe.network.name;
        if self.network(network).await?.is_none() {
            let made = self.api.create_network(recipe.network.request(true)).await;
            // Somebody else has its addresses by now.
            let made = match made {
                Err(_) => self.api.create_network(recipe.network.request(false)).await,
                made => made,
            };
            made.with_context(|| format!("can't make the network {network}"))?;
        }
        let name = &recipe.name;
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        self.api
            .create_container(Some(options), recipe.request())
            .await
            .with_context(|| format!("can't make the container {name}"))?;
        Ok(())
    }
}

impl NetworkRecipe {
    /// What Docker is asked for, with all the subnets it had or with those of version 6, which Docker doesn't choose itself.
    fn request(&self, with_all: bool) -> NetworkCreateRequest {
        let is_six = |subnet: &&String| subnet.contains(':');
        let configs = self
            .subnets
            .iter()
            .filter(|subnet| with_all || is_six(subnet))
            .map(|subnet| IpamConfig {
                subnet: Some(subnet.clone()),
                ..IpamConfig::default()
            });
        NetworkCreateRequest {
            name: self.name.clone(),
            driver: Some("bridge".to_owned()),
            options: Some(self.options.clone().into_iter().collect()),
            labels: Some(self.labels.clone().into_iter().collect()),
            enable_ipv6: Some(self.subnets.iter().any(|subnet| is_six(&subnet))),
            ipam: Some(Ipam {
                config: Some(configs.collect()),
                ..Ipam::default()
            }),
            ..NetworkCreateRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inspected() -> ContainerInspectResponse {
        serde_json::from_value(json!({
            "Id": "1e8f", "Name": "/devenv-a-control-plane",
            "Config": {
                "Hostname": "devenv-a-control-plane", "Image": "node:1", "Volumes": {"/var": {}}, "Tty": true,
                "Labels": {"io.x-k8s.kind.role": "control-plane", "devenv.environment": "old"},
            },
            "HostConfig": {
                "Binds": ["/lib/modules:/lib/modules:ro", "/home/me/mark:/devenv/0123:ro"],
                "NetworkMode": "default", "Privileged": true, "Runtime": "other-runc",
                "PortBindings": {"6443/tcp": [{"HostIp": "127.0.0.1", "HostPort": "40123"}]},
                "Mounts": [{"Type": "volume", "Source": "aa", "Target": "/var"}],
            },
            "Mounts": [
                {"Type": "volume", "Name": "aa", "Destination": "/var"},
                {"Type": "volume", "Name": "named", "Destination": "/else"},
                {"Type": "bind", "Destination": "/lib/modules"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_container_is_asked_for_as_it_was_with_its_volumes_where_they_were() {
        let mut recipe = read(
            &inspected(),
            NetworkRecipe {
                name: "kind".to_owned(),
                ..NetworkRecipe::default()
            },
        )
        .unwrap();
        recipe.label("devenv.environment", "new");
        recipe.label("unheard", "of");
        recipe.bind_below("/devenv/", "/mine", "/devenv/4567");
        for port in recipe.published(6443) {
            port.host_port = Some("40999".to_owned());
        }
        let request = serde_json::to_value(recipe.request()).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&request).unwrap(), @r#"
        {
          "HostConfig": {
            "Binds": [
              "/lib/modules:/lib/modules:ro",
              "/mine:/devenv/4567:ro"
            ],
            "Mounts": [
              {
                "Source": "aa",
                "Target": "/var",
                "Type": "volume"
              }
            ],
            "NetworkMode": "kind",
            "PortBindings": {
              "6443/tcp": [
                {
                  "HostIp": "127.0.0.1",
                  "HostPort": "40999"
                }
              ]
            },
            "Privileged": true
          },
          "Hostname": "devenv-a-control-plane",
          "Image": "node:1",
          "Labels": {
            "devenv.environment": "new",
            "io.x-k8s.kind.role": "control-plane"
          },
          "Tty": true,
          "Volumes": {
            "/var": {}
          }
        }
        "#);
        let elsewhere = recipe.for_elsewhere().request();
        assert_eq!(elsewhere.host_config.unwrap().mounts, Some(Vec::new()));
    }
}
