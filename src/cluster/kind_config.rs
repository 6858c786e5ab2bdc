//! kind's own cluster config, checked and passed on as it is, plus our mark.
//!
//! Keys that devenv has no opinion about are kind's business: they are neither checked nor changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::Mistake;
use crate::yaml::Segment::{self, Item, Key, Name};
use crate::yaml::Source;

/// The folder in the nodes where the mark is; a cluster config may mount nothing there.
pub const MARK_FOLDER: &str = "/devenv";

/// A checked kind config.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterConfig {
    document: Value,
    published: Vec<PublishedPort>,
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
    /// The config from its file's text, or everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<Mistake>> {
        Self::from_source(&Source::new(file, text))
    }

    pub(crate) fn from_source(source: &Source) -> Result<Self, Vec<Mistake>> {
        let document = source.value().map_err(|mistake| vec![mistake])?;
        check_kind(source, &document).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Vec::new();
        check_api_address(source, &document, &mut mistakes);
        let published = check_nodes(source, &document, &mut mistakes);
        if mistakes.is_empty() {
            Ok(Self {
                document,
                published,
            })
        } else {
            Err(mistakes)
        }
    }

    /// The TCP ports that the nodes publish on this machine.
    pub fn published_ports(&self) -> &[PublishedPort] {
        &self.published
    }

    /// How many nodes the cluster has.
    pub fn node_count(&self) -> usize {
        self.document["nodes"].as_array().map_or(1, Vec::len)
    }

    /// Whether kind will restart containerd in the nodes, which breaks off an import that is under way.
    pub fn patches_containerd(&self) -> bool {
        ["containerdConfigPatches", "containerdConfigPatchesJSON6902"]
            .iter()
            .any(|key| {
                self.document[key]
                    .as_array()
                    .is_some_and(|patches| !patches.is_empty())
            })
    }

    /// The config with a read-only mount of `host_folder` at `/devenv/<id>` in every node, by which the nodes are known
    /// as ours from the moment they exist. Everything else is as it was. It is written as JSON, which is YAML too.
    pub fn with_mark(&self, id: &str, host_folder: &Path) -> String {
        let mark = json!({
            "hostPath": host_folder.to_string_lossy(),
            "containerPath": format!("{MARK_FOLDER}/{id}"),
            "readOnly": true,
        });
        let mut document = self.document.clone();
        for node in document["nodes"].as_array_mut().into_iter().flatten() {
            match node["extraMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mark.clone()),
                None => node["extraMounts"] = json!([mark]),
            }
        }
        format!("{document:#}\n")
    }
}

fn check_kind(source: &Source, document: &Value) -> Result<(), Mistake> {
    let Some(document) = document.as_object() else {
        return Err(source.mistake(
            &[],
            "is no mapping, expected a kind config: `kind: Cluster` and `apiVersion: kind.x-k8s.io/v1alpha4`",
            None,
        ));
    };
    for (key, expected) in [
        ("kind", "Cluster"),
        ("apiVersion", "kind.x-k8s.io/v1alpha4"),
    ] {
        match document.get(key) {
            Some(Value::String(found)) if found == expected => {}
            Some(_) => {
                return Err(source.mistake(
                    &[Key(key)],
                    format!("`{key}` must be `{expected}` in a kind config"),
                    None,
                ));
            }
            None => {
                let message = format!("the key `{key}` is missing, expected `{key}: {expected}`");
                return Err(source.mistake(&[], message, None));
            }
        }
    }
    Ok(())
}

fn check_api_address(source: &Source, document: &Value, mistakes: &mut Vec<Mistake>) {
    let address = &document["networking"]["apiServerAddress"];
    if !address.is_null() && loopback(address).is_none() {
        mistakes.push(source.mistake(
            &[Key("networking"), Key("apiServerAddress")],
            "the API server would be reachable from other machines, expected 127.0.0.1 or ::1",
            Some("leave the key out: kind's default is 127.0.0.1".to_owned()),
        ));
    }
}

fn check_nodes(
    source: &Source,
    document: &Value,
    mistakes: &mut Vec<Mistake>,
) -> Vec<PublishedPort> {
    let nodes = match &document["nodes"] {
        Value::Array(nodes) => nodes,
        Value::Null => {
            mistakes.push(source.mistake(
                &[],
                "there are no `nodes`, expected at least one, with ports 80 and 443 published",
                Some(EXAMPLE.to_owned()),
            ));
            return Vec::new();
        }
        _ => {
            mistakes.push(source.mistake(&[Key("nodes")], "`nodes` must be a list", None));
            return Vec::new();
        }
    };
    let mut ports = Ports::default();
    let mut control_planes = 0;
    let before = mistakes.len();
    for (index, node) in nodes.iter().enumerate() {
        let path = [Key("nodes"), Item(index)];
        let Some(node) = node.as_object() else {
            mistakes.push(source.mistake(&path, "a node must be a mapping", None));
            continue;
        };
        match node.get("role").map(Value::as_str) {
            None | Some(Some("control-plane")) => control_planes += 1,
            Some(Some("worker")) => {}
            Some(_) => mistakes.push(source.mistake(
                &[Key("nodes"), Item(index), Key("role")],
                "`role` must be `control-plane` or `worker`",
                None,
            )),
        }
        check_mounts(source, index, node, mistakes);
        check_ports(source, index, node, &mut ports, mistakes);
    }
    if control_planes == 0 {
        mistakes.push(source.mistake(
            &[Name("nodes")],
            "no node is a control plane, expected one with `role: control-plane`",
            None,
        ));
    }
    // A port that is published wrongly was told of already.
    if mistakes.len() == before {
        for wanted in [80, 443] {
            if !ports
                .published
                .iter()
                .any(|port| port.container_port == wanted)
            {
                mistakes.push(source.mistake(
                    &[Name("nodes")],
                    format!("no node publishes port {wanted}, and the platform's names lead there"),
                    Some(EXAMPLE.replace("80", &wanted.to_string())),
                ));
            }
        }
    }
    ports.published
}

const EXAMPLE: &str = "add to a node: extraPortMappings: [{listenAddress: 127.0.0.1, hostPort: 80, containerPort: 80}]";

#[derive(Default)]
struct Ports {
    published: Vec<PublishedPort>,
    taken: BTreeSet<(IpAddr, u16, String)>,
}

fn check_ports(
    source: &Source,
    node: usize,
    fields: &Map<String, Value>,
    ports: &mut Ports,
    mistakes: &mut Vec<Mistake>,
) {
    let Some(mappings) = fields.get("extraPortMappings") else {
        return;
    };
    let path = [Key("nodes"), Item(node), Key("extraPortMappings")];
    let Some(mappings) = mappings.as_array() else {
        mistakes.push(source.mistake(&path, "`extraPortMappings` must be a list", None));
        return;
    };
    for (index, mapping) in mappings.iter().enumerate() {
        if let Err(mistake) = check_port(source, (node, index), mapping, ports) {
            mistakes.push(mistake);
        }
    }
}

fn check_port(
    source: &Source,
    (node, index): (usize, usize),
    mapping: &Value,
    ports: &mut Ports,
) -> Result<(), Mistake> {
    let wrong = |key: Option<&str>, message: String, help: Option<&str>| {
        let mut path: Vec<Segment<'_>> = vec![
            Key("nodes"),
            Item(node),
            Key("extraPortMappings"),
            Item(index),
        ];
        path.extend(key.map(Key));
        Err(source.mistake(&path, message, help.map(str::to_owned)))
    };
    if !mapping.is_object() {
        return wrong(None, "a port mapping must be a mapping".to_owned(), None);
    }
    let address = match &mapping["listenAddress"] {
        Value::Null => {
            return wrong(
                None,
                "this port has no `listenAddress`, and would be reachable from other machines"
                    .to_owned(),
                Some("add `listenAddress: 127.0.0.1`: kind's default is 0.0.0.0"),
            );
        }
        given => match loopback(given) {
            Some(address) => address,
            None => {
                return wrong(
                    Some("listenAddress"),
                    "this port would be reachable from other machines, expected 127.0.0.1 or ::1"
                        .to_owned(),
                    None,
                );
            }
        },
    };
    let mut numbers = [0; 2];
    for (number, key) in numbers.iter_mut().zip(["hostPort", "containerPort"]) {
        match mapping[key]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
        {
            Some(port @ 1..) => *number = port,
            _ => {
                return wrong(
                    mapping.get(key).map(|_| key),
                    format!("`{key}` must be a port number from 1 to 65535"),
                    None,
                );
            }
        }
    }
    let [host_port, container_port] = numbers;
    let protocol = match &mapping["protocol"] {
        Value::Null => "TCP".to_owned(),
        Value::String(protocol) => protocol.to_uppercase(),
        _ => {
            return wrong(
                Some("protocol"),
                "`protocol` must be a text".to_owned(),
                None,
            );
        }
    };
    let is_new = ports.taken.insert((address, host_port, protocol.clone()));
    if !is_new {
        return wrong(
            Some("hostPort"),
            format!("port {host_port} on {address} is published twice"),
            None,
        );
    }
    if protocol == "TCP" {
        ports.published.push(PublishedPort {
            address,
            host_port,
            container_port,
        });
    }
    Ok(())
}

fn check_mounts(
    source: &Source,
    node: usize,
    fields: &Map<String, Value>,
    mistakes: &mut Vec<Mistake>,
) {
    let Some(mounts) = fields.get("extraMounts") else {
        return;
    };
    let Some(mounts) = mounts.as_array() else {
        let path = [Key("nodes"), Item(node), Key("extraMounts")];
        mistakes.push(source.mistake(&path, "`extraMounts` must be a list", None));
        return;
    };
    for (index, mount) in mounts.iter().enumerate() {
        let inside = mount["containerPath"]
            .as_str()
            .is_some_and(|path| Path::new(path).starts_with(MARK_FOLDER));
        if inside {
            mistakes.push(source.mistake(
                &[
                    Key("nodes"),
                    Item(node),
                    Key("extraMounts"),
                    Item(index),
                    Key("containerPath"),
                ],
                format!("nothing may be mounted in `{MARK_FOLDER}`: devenv knows its nodes by what is there"),
                None,
            ));
        }
    }
}

/// The two addresses that nothing beyond this machine reaches, and that the hosts file leads to.
fn loopback(value: &Value) -> Option<IpAddr> {
    let address = value.as_str()?.parse::<IpAddr>().ok()?;
    let expected = [
        IpAddr::from(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
    ];
    expected.contains(&address).then_some(address)
}
