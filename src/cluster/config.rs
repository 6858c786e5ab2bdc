//! A provider's own cluster config, checked: what devenv asks of it, whichever provider it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::k3d_config::K3dConfig;
use super::kind_config::KindConfig;
use crate::environment::Provider;
use crate::error::Mistake;
use crate::yaml::Source;

/// A checked config.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterConfig {
    /// kind's.
    Kind(KindConfig),
    /// k3d's.
    K3d(K3dConfig),
    /// None: the cluster is there already.
    Existing,
}

/// A TCP port of a node that is reachable on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    /// The loopback address it is published on.
    pub address: IpAddr,
    /// The port on this machine.
    pub host_port: u16,
    /// The port in the node.
    pub container_port: u16,
}

impl ClusterConfig {
    pub(crate) fn from_source(provider: Provider, source: &Source) -> Result<Self, Vec<Mistake>> {
        match provider {
            Provider::Kind => KindConfig::from_source(source).map(Self::Kind),
            Provider::K3d => K3dConfig::from_source(source).map(Self::K3d),
            Provider::Existing => Ok(Self::Existing),
        }
    }

    /// The TCP ports that the nodes publish on this machine.
    pub fn published_ports(&self) -> &[PublishedPort] {
        match self {
            Self::Existing => &[],
            Self::Kind(config) => config.published_ports(),
            Self::K3d(config) => config.published_ports(),
        }
    }

    /// The port of this machine that leads to this port of a node, where one does.
    pub fn published(&self, node_port: u16) -> Option<u16> {
        self.published_ports()
            .iter()
            .find(|port| port.container_port == node_port)
            .map(|port| port.host_port)
    }

    /// How many nodes are made for the cluster.
    pub fn node_count(&self) -> usize {
        match self {
            Self::Existing => 0,
            Self::Kind(config) => config.node_count(),
            Self::K3d(config) => config.node_count(),
        }
    }

    /// Whether something in the cluster gives the Services of type LoadBalancer their addresses, so that we need not.
    pub fn gives_addresses(&self) -> bool {
        match self {
            Self::Kind(_) => false,
            Self::K3d(config) => config.has_service_lb(),
            Self::Existing => true,
        }
    }

    /// The images that the provider makes containers of besides the nodes, under their upstream names.
    pub fn helper_images(&self) -> Vec<&'static str> {
        match self {
            Self::Kind(_) | Self::Existing => Vec::new(),
            Self::K3d(config) => config.helper_images(),
        }
    }
}

/// The address, if it is one of the two that nothing beyond this machine reaches and that the hosts file leads to.
pub(super) fn loopback(text: &str) -> Option<IpAddr> {
    let address = text.parse::<IpAddr>().ok()?;
    let expected = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    expected.contains(&address).then_some(address)
}
