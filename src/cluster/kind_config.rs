//! kind's own cluster config, checked and passed on as it is, plus our mark.
//!
//! Keys that devenv has no opinion about are kind's business: they are neither checked nor changed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{PublishedPort, loopback};
use crate::error::Mistake;
use crate::yaml::Segment::{self, Item, Key, Name};
use crate::yaml::Source;

/// The folder in the nodes where the mark is; a cluster config may mount nothing there.
pub const MARK_FOLDER: &str = "/devenv";

/// A checked kind config.
#[derive(Debug, Clone, PartialEq)]
pub struct KindConfig {
    document: Value,
    published: Vec<PublishedPort>,
}

impl KindConfig {
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
    if !address.is_null() && address.as_str().and_then(loopback).is_none() {
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
        given => match given.as_str().and_then(loopback) {
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
            _ if mapping.get(key).is_none() => {
                return wrong(None, format!("this port has no `{key}`"), None);
            }
            _ => {
                let message = format!("`{key}` must be a port number from 1 to 65535");
                return wrong(Some(key), message, None);
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use insta::assert_snapshot;

    use super::KindConfig;

    const HEAD: &str = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n";
    const PORTS: &str = "extraPortMappings: [{listenAddress: 127.0.0.1, hostPort: 80, containerPort: 80}, {listenAddress: 127.0.0.1, hostPort: 443, containerPort: 443}]";

    fn check(text: &str) -> String {
        match KindConfig::parse(Path::new("kind.yaml"), text) {
            Ok(config) => format!("{:?}", config.published_ports()),
            Err(mistakes) => {
                let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                told.join("\n\n")
            }
        }
    }

    fn nodes(text: &str) -> String {
        check(&format!("{HEAD}nodes:\n{text}"))
    }

    #[test]
    fn the_config_that_comes_with_devenv_is_right() {
        let text = include_str!("../../cluster-configs/kind.yaml");
        let config = KindConfig::parse(Path::new("kind.yaml"), text).unwrap();
        assert_eq!(config.node_count(), 1);
        assert!(!config.patches_containerd());
        assert_snapshot!(check(text), @"[PublishedPort { address: 127.0.0.1, host_port: 80, container_port: 80 }, PublishedPort { address: 127.0.0.1, host_port: 443, container_port: 443 }]");
    }

    #[test]
    fn the_mark_is_all_that_changes() {
        let text = format!(
            "{HEAD}name: mine\nfeatureGates: {{Some: true}}\ncontainerdConfigPatches:\n- |\n  [plugins]\n    yes = 0644\nnodes:\n\
             - {PORTS}\n  labels: {{tier: yes, mode: \"0644\"}}\n- role: worker\n  extraMounts:\n  - {{hostPath: /data, containerPath: /data}}\n"
        );
        let config = KindConfig::parse(Path::new("kind.yaml"), &text).unwrap();
        assert!(config.patches_containerd());
        assert_eq!(config.node_count(), 2);
        assert_snapshot!(config.with_mark("0123456789ab", Path::new("/home/me/.cache/devenv/marks")), @r#"
        {
          "apiVersion": "kind.x-k8s.io/v1alpha4",
          "containerdConfigPatches": [
            "[plugins]\n  yes = 0644\n"
          ],
          "featureGates": {
            "Some": true
          },
          "kind": "Cluster",
          "name": "mine",
          "nodes": [
            {
              "extraMounts": [
                {
                  "containerPath": "/devenv/0123456789ab",
                  "hostPath": "/home/me/.cache/devenv/marks",
                  "readOnly": true
                }
              ],
              "extraPortMappings": [
                {
                  "containerPort": 80,
                  "hostPort": 80,
                  "listenAddress": "127.0.0.1"
                },
                {
                  "containerPort": 443,
                  "hostPort": 443,
                  "listenAddress": "127.0.0.1"
                }
              ],
              "labels": {
                "mode": "0644",
                "tier": "yes"
              }
            },
            {
              "extraMounts": [
                {
                  "containerPath": "/data",
                  "hostPath": "/data"
                },
                {
                  "containerPath": "/devenv/0123456789ab",
                  "hostPath": "/home/me/.cache/devenv/marks",
                  "readOnly": true
                }
              ],
              "role": "worker"
            }
          ]
        }
        "#);
    }

    #[test]
    fn another_tools_file() {
        assert_snapshot!(check("kind: Simple\napiVersion: k3d.io/v1alpha5\n"), @r"
        kind.yaml:1:7: `kind` must be `Cluster` in a kind config
          |
        1 | kind: Simple
          |       ^
        ");
        assert_snapshot!(check("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha3\n"), @r"
        kind.yaml:2:13: `apiVersion` must be `kind.x-k8s.io/v1alpha4` in a kind config
          |
        2 | apiVersion: kind.x-k8s.io/v1alpha3
          |             ^
        ");
        assert_snapshot!(check("nodes: []\n"), @"kind.yaml: the key `kind` is missing, expected `kind: Cluster`");
        assert_snapshot!(check("- role: worker\n"), @"kind.yaml: is no mapping, expected a kind config: `kind: Cluster` and `apiVersion: kind.x-k8s.io/v1alpha4`");
        assert_snapshot!(check(""), @"kind.yaml: the file is empty, expected a mapping (`key: value` lines)");
    }

    #[test]
    fn a_port_that_other_machines_could_reach() {
        assert_snapshot!(
            nodes("- extraPortMappings:\n  - hostPort: 80\n    containerPort: 80\n  - {hostPort: 443, containerPort: 443, listenAddress: 0.0.0.0}\n"),
            @r"
            kind.yaml:5:5: this port has no `listenAddress`, and would be reachable from other machines
              |
            5 |   - hostPort: 80
              |     ^
            hint: add `listenAddress: 127.0.0.1`: kind's default is 0.0.0.0

            kind.yaml:7:56: this port would be reachable from other machines, expected 127.0.0.1 or ::1
              |
            7 |   - {hostPort: 443, containerPort: 443, listenAddress: 0.0.0.0}
              |                                                        ^
            "
        );
        assert_snapshot!(
            check(&format!("{HEAD}networking:\n  apiServerAddress: 192.168.1.5\nnodes:\n- {PORTS}\n")),
            @r"
            kind.yaml:4:21: the API server would be reachable from other machines, expected 127.0.0.1 or ::1
              |
            4 |   apiServerAddress: 192.168.1.5
              |                     ^
            hint: leave the key out: kind's default is 127.0.0.1
            "
        );
    }

    #[test]
    fn a_port_that_is_missing_or_given_twice() {
        assert_snapshot!(
            nodes("- extraPortMappings: [{listenAddress: \"::1\", hostPort: 8080, containerPort: 80}]\n"),
            @r"
            kind.yaml:3:1: no node publishes port 443, and the platform's names lead there
              |
            3 | nodes:
              | ^
            hint: add to a node: extraPortMappings: [{listenAddress: 127.0.0.1, hostPort: 443, containerPort: 443}]
            "
        );
        assert_snapshot!(
            nodes(&format!("- {PORTS}\n- role: worker\n  extraPortMappings:\n  - {{listenAddress: 127.0.0.1, hostPort: 80, containerPort: 8080}}\n")),
            @r"
            kind.yaml:7:42: port 80 on 127.0.0.1 is published twice
              |
            7 |   - {listenAddress: 127.0.0.1, hostPort: 80, containerPort: 8080}
              |                                          ^
            "
        );
        assert_snapshot!(check(HEAD), @r"
        kind.yaml: there are no `nodes`, expected at least one, with ports 80 and 443 published
        hint: add to a node: extraPortMappings: [{listenAddress: 127.0.0.1, hostPort: 80, containerPort: 80}]
        ");
    }

    #[test]
    fn a_port_that_is_none() {
        assert_snapshot!(
            nodes("- extraPortMappings:\n  - {listenAddress: 127.0.0.1, hostPort: http, containerPort: 80}\n  - {listenAddress: 127.0.0.1, containerPort: 443}\n  - {listenAddress: 127.0.0.1, hostPort: 70000, containerPort: 1}\n  - 80\n"),
            @r"
            kind.yaml:5:42: `hostPort` must be a port number from 1 to 65535
              |
            5 |   - {listenAddress: 127.0.0.1, hostPort: http, containerPort: 80}
              |                                          ^

            kind.yaml:6:5: this port has no `hostPort`
              |
            6 |   - {listenAddress: 127.0.0.1, containerPort: 443}
              |     ^

            kind.yaml:7:42: `hostPort` must be a port number from 1 to 65535
              |
            7 |   - {listenAddress: 127.0.0.1, hostPort: 70000, containerPort: 1}
              |                                          ^

            kind.yaml:8:5: a port mapping must be a mapping
              |
            8 |   - 80
              |     ^
            "
        );
    }

    #[test]
    fn nodes_that_make_no_cluster() {
        assert_snapshot!(nodes(&format!("- role: worker\n  {PORTS}\n- role: master\n")), @r"
        kind.yaml:6:9: `role` must be `control-plane` or `worker`
          |
        6 | - role: master
          |         ^

        kind.yaml:3:1: no node is a control plane, expected one with `role: control-plane`
          |
        3 | nodes:
          | ^
        ");
        assert_snapshot!(nodes("  worker: 1\n"), @r"
        kind.yaml:4:3: `nodes` must be a list
          |
        4 |   worker: 1
          |   ^
        ");
        assert_snapshot!(nodes("- worker\n"), @r"
        kind.yaml:4:3: a node must be a mapping
          |
        4 | - worker
          |   ^

        kind.yaml:3:1: no node is a control plane, expected one with `role: control-plane`
          |
        3 | nodes:
          | ^
        ");
    }

    #[test]
    fn a_mount_where_the_mark_goes() {
        assert_snapshot!(
            nodes(&format!("- {PORTS}\n  extraMounts:\n  - hostPath: /tmp\n    containerPath: /devenv/x\n")),
            @r"
            kind.yaml:7:20: nothing may be mounted in `/devenv`: devenv knows its nodes by what is there
              |
            7 |     containerPath: /devenv/x
              |                    ^
            "
        );
    }

    #[test]
    fn what_is_published_twice_for_two_addresses_or_protocols_is_right() {
        assert_snapshot!(
            nodes("- extraPortMappings:\n  - {listenAddress: 127.0.0.1, hostPort: 80, containerPort: 80}\n  - {listenAddress: '::1', hostPort: 80, containerPort: 80}\n  - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443}\n  - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443, protocol: udp}\n"),
            @"[PublishedPort { address: 127.0.0.1, host_port: 80, container_port: 80 }, PublishedPort { address: ::1, host_port: 80, container_port: 80 }, PublishedPort { address: 127.0.0.1, host_port: 8443, container_port: 443 }]"
        );
    }
}
