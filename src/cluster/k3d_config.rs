//! k3d's own cluster config, checked and passed on as it is: what devenv adds, it adds by flags ([`super::k3d::create`]).
//!
//! Keys that devenv has no opinion about are k3d's business: they are neither checked nor changed. k3d replaces `$NAME` in
//! the whole file by the variable of that name; what is checked here is the text as it stands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::config::{PublishedPort, loopback};
use super::k3d;
use crate::error::Mistake;
use crate::yaml::Segment::{self, Item, Key, Name};
use crate::yaml::Source;

/// A checked k3d config.
#[derive(Debug, Clone, PartialEq)]
pub struct K3dConfig {
    document: Value,
    published: Vec<PublishedPort>,
}

impl K3dConfig {
    /// The config from its file's text, or everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Vec<Mistake>> {
        Self::from_source(&Source::new(file, text))
    }

    pub(crate) fn from_source(source: &Source) -> Result<Self, Vec<Mistake>> {
        let document = source.value().map_err(|mistake| vec![mistake])?;
        check_kind(source, &document).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Vec::new();
        check_what_devenv_owns(source, &document, &mut mistakes);
        let mut published = check_ports(source, &document, &mut mistakes);
        published.extend(check_api(source, &document, &mut mistakes));
        match mistakes.is_empty() {
            true => Ok(Self {
                document,
                published,
            }),
            false => Err(mistakes),
        }
    }

    /// The TCP ports that the nodes publish on this machine; the API server's among them where the file names it.
    pub fn published_ports(&self) -> &[PublishedPort] {
        &self.published
    }

    /// How many nodes the cluster has.
    pub fn node_count(&self) -> usize {
        let count = |key: &str, default| self.document[key].as_u64().unwrap_or(default);
        usize::try_from(count("servers", 1) + count("agents", 0)).unwrap_or(usize::MAX)
    }

    /// Whether k3d is to put a load balancer of its own before the nodes: only where the file asks for it.
    pub fn has_load_balancer(&self) -> bool {
        asks_for_load_balancer(&self.document)
    }

    /// Whether k3s's own load balancer (klipper) gives Services their addresses: it is on unless the file turns it off.
    pub fn has_service_lb(&self) -> bool {
        !self.disables("servicelb")
    }

    fn disables(&self, part: &str) -> bool {
        let arguments = self.document["options"]["k3s"]["extraArgs"].as_array();
        arguments
            .into_iter()
            .flatten()
            .filter_map(|argument| argument["arg"].as_str()?.strip_prefix("--disable="))
            .any(|parts| parts.split(',').any(|each| each == part))
    }

    /// The images that k3d makes containers of besides the nodes.
    pub fn helper_images(&self) -> Vec<&'static str> {
        match self.has_load_balancer() {
            true => vec![k3d::TOOLS_IMAGE, k3d::BALANCER_IMAGE],
            false => vec![k3d::TOOLS_IMAGE],
        }
    }
}

fn asks_for_load_balancer(document: &Value) -> bool {
    document["options"]["k3d"]["disableLoadbalancer"] == false
}

fn check_kind(source: &Source, document: &Value) -> Result<(), Mistake> {
    let Some(document) = document.as_object() else {
        return Err(source.mistake(
            &[],
            "is no mapping, expected a k3d config: `kind: Simple` and `apiVersion: k3d.io/v1alpha5`",
            None,
        ));
    };
    for (key, expected) in [("kind", "Simple"), ("apiVersion", "k3d.io/v1alpha5")] {
        match document.get(key) {
            Some(Value::String(found)) if found == expected => {}
            Some(_) => {
                let message = format!("`{key}` must be `{expected}` in a k3d config");
                return Err(source.mistake(&[Key(key)], message, None));
            }
            None => {
                let message = format!("the key `{key}` is missing, expected `{key}: {expected}`");
                return Err(source.mistake(&[], message, None));
            }
        }
    }
    Ok(())
}

/// What would make things that devenv couldn't tell from others', or that k3d itself can't do.
fn check_what_devenv_owns(source: &Source, document: &Value, mistakes: &mut Vec<Mistake>) {
    for key in ["servers", "agents"] {
        let least = u64::from(key == "servers");
        let value = &document[key];
        if !value.is_null() && value.as_u64().is_none_or(|number| number < least) {
            let message = format!("`{key}` must be a whole number, at least {least}");
            mistakes.push(source.mistake(&[Key(key)], message, None));
        }
    }
    for key in ["network", "subnet"] {
        if !document[key].is_null() {
            mistakes.push(source.mistake(
                &[Name(key)],
                format!("`{key}` is devenv's own: it makes the cluster's network, so that it knows it as its own"),
                Some("leave the key out; Docker's `default-address-pools` say which addresses it takes".to_owned()),
            ));
        }
    }
    if !document["registries"]["create"].is_null() {
        mistakes.push(source.mistake(
            &[Key("registries"), Name("create")],
            "k3d gives this registry no label, so devenv could never tell whose it is",
            Some(
                "make it yourself: k3d registry create NAME --port 127.0.0.1:5000, and write `use: [k3d-NAME:5000]`"
                    .to_owned(),
            ),
        ));
    }
    if document["options"]["k3d"]["disableImageVolume"] == true {
        mistakes.push(source.mistake(
            &[Key("options"), Key("k3d"), Name("disableImageVolume")],
            "k3d 5.8 can't create a cluster without this volume: its tools container asks for it",
            Some("leave the key out: devenv never loads images through it".to_owned()),
        ));
    }
    let labels = document["options"]["runtime"]["labels"].as_array();
    for (index, label) in labels.into_iter().flatten().enumerate() {
        let text = label["label"].as_str().unwrap_or_default();
        if text.split('=').next() == Some(k3d::MARK) {
            let path = [
                Key("options"),
                Key("runtime"),
                Key("labels"),
                Item(index),
                Key("label"),
            ];
            let message = format!(
                "`{}` is the label by which devenv knows its containers",
                k3d::MARK
            );
            mistakes.push(source.mistake(&path, message, None));
        }
    }
}

/// The API server's port, where the file names one.
fn check_api(
    source: &Source,
    document: &Value,
    mistakes: &mut Vec<Mistake>,
) -> Option<PublishedPort> {
    let api = &document["kubeAPI"];
    let example =
        || Some("write `kubeAPI: {hostIP: \"127.0.0.1\"}`: k3d's default is 0.0.0.0".to_owned());
    let open = "the API server would be reachable from other machines, expected 127.0.0.1 or ::1";
    if api["hostIP"].is_null() {
        let place: &[Segment<'_>] = match document.get("kubeAPI") {
            Some(_) => &[Name("kubeAPI")],
            None => &[],
        };
        let message =
            "`kubeAPI` names no `hostIP`: the API server would be reachable from other machines";
        mistakes.push(source.mistake(place, message, example()));
        return None;
    }
    let Some(address) = api["hostIP"].as_str().and_then(loopback) else {
        mistakes.push(source.mistake(&[Key("kubeAPI"), Key("hostIP")], open, example()));
        return None;
    };
    let host_port = match &api["hostPort"] {
        Value::Null => return None,
        // k3d's own schema wants a text here.
        Value::String(text) => text.parse().ok().filter(|port| *port > 0),
        _ => None,
    };
    if host_port.is_none() {
        let message = "`hostPort` must be a port number from 1 to 65535, in quotes";
        mistakes.push(source.mistake(&[Key("kubeAPI"), Key("hostPort")], message, None));
    }
    Some(PublishedPort {
        address,
        host_port: host_port?,
        container_port: super::API_PORT,
    })
}

const EXAMPLE: &str =
    "add to `ports`: {port: \"127.0.0.1:80:80\", nodeFilters: [\"server:0:direct\"]}";

fn check_ports(
    source: &Source,
    document: &Value,
    mistakes: &mut Vec<Mistake>,
) -> Vec<PublishedPort> {
    let before = mistakes.len();
    let mut ports = Ports::default();
    match &document["ports"] {
        Value::Null => {}
        Value::Array(entries) => {
            let balanced = asks_for_load_balancer(document);
            for (index, entry) in entries.iter().enumerate() {
                let place = Place { source, index };
                if let Err(mistake) = check_port(&place, entry, balanced, &mut ports) {
                    mistakes.push(mistake);
                }
            }
        }
        _ => mistakes.push(source.mistake(&[Key("ports")], "`ports` must be a list", None)),
    }
    // A port that is published wrongly was told of already.
    if mistakes.len() == before {
        let place: &[Segment<'_>] = match document.get("ports") {
            Some(_) => &[Name("ports")],
            None => &[],
        };
        for wanted in [80, 443] {
            if !ports
                .published
                .iter()
                .any(|port| port.container_port == wanted)
            {
                mistakes.push(source.mistake(
                    place,
                    format!("no node publishes port {wanted}, and the platform's names lead there"),
                    Some(EXAMPLE.replace("80", &wanted.to_string())),
                ));
            }
        }
    }
    ports.published
}

#[derive(Default)]
struct Ports {
    published: Vec<PublishedPort>,
    taken: BTreeSet<(IpAddr, u16, String)>,
}

/// One entry of `ports`.
struct Place<'a> {
    source: &'a Source,
    index: usize,
}

impl Place<'_> {
    fn wrong(&self, key: Option<&str>, message: impl Into<String>, help: Option<&str>) -> Mistake {
        let mut path = vec![Key("ports"), Item(self.index)];
        path.extend(key.map(Key));
        self.source.mistake(&path, message, help.map(str::to_owned))
    }
}

fn check_port(
    place: &Place<'_>,
    entry: &Value,
    balanced: bool,
    ports: &mut Ports,
) -> Result<(), Mistake> {
    let Some(text) = entry["port"].as_str() else {
        return Err(place.wrong(
            None,
            "this is no port, expected `port: \"127.0.0.1:80:80\"`",
            None,
        ));
    };
    check_filters(place, entry, balanced)?;
    let mapping =
        mapping(text).map_err(|(message, help)| place.wrong(Some("port"), message, help))?;
    for (host_port, container_port) in mapping.ports {
        let is_new = ports
            .taken
            .insert((mapping.address, host_port, mapping.protocol.clone()));
        if !is_new {
            let message = format!("port {host_port} on {} is published twice", mapping.address);
            return Err(place.wrong(Some("port"), message, None));
        }
        if mapping.protocol == "tcp" {
            ports.published.push(PublishedPort {
                address: mapping.address,
                host_port,
                container_port,
            });
        }
    }
    Ok(())
}

/// k3d leads a port to a node either directly (`server:0:direct`) or through its load balancer, which must be there then.
fn check_filters(place: &Place<'_>, entry: &Value, balanced: bool) -> Result<(), Mistake> {
    let filters: Vec<&str> = entry["nodeFilters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let direct = !filters.is_empty() && filters.iter().all(|filter| filter.ends_with(":direct"));
    if direct || balanced {
        return Ok(());
    }
    Err(place.wrong(
        (!filters.is_empty()).then_some("nodeFilters"),
        "this port leads through k3d's load balancer, which devenv leaves out",
        Some(
            "write `nodeFilters: [\"server:0:direct\"]`; or ask for the load balancer, which costs six seconds: `options: \
             {k3d: {disableLoadbalancer: false}}`",
        ),
    ))
}

/// A port as Docker writes it.
struct Mapping {
    address: IpAddr,
    /// On this machine, and in the node.
    ports: Vec<(u16, u16)>,
    protocol: String,
}

/// `127.0.0.1:80:80`, `127.0.0.1:8000-8009:8000-8009/udp`, `[::1]:80:80`.
fn mapping(text: &str) -> Result<Mapping, (String, Option<&'static str>)> {
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let mut parts = rest.rsplitn(3, ':');
    let (inside, outside, address) = (parts.next(), parts.next(), parts.next());
    let Some(address) = address else {
        return Err((
            "this port has no address, and would be reachable from other machines".to_owned(),
            Some("write the address first: `127.0.0.1:80:80`"),
        ));
    };
    let address = loopback(address.trim_matches(['[', ']'])).ok_or_else(|| {
        let message = "this port would be reachable from other machines, expected 127.0.0.1 or ::1";
        (message.to_owned(), None)
    })?;
    let not_a_port = || {
        let message =
            format!("`{text}` names no ports from 1 to 65535, expected such as `127.0.0.1:80:80`");
        (message, None)
    };
    let (Some(outside), Some(inside)) = (outside.and_then(port_range), inside.and_then(port_range))
    else {
        return Err(not_a_port());
    };
    if outside.len() != inside.len() {
        return Err((
            format!(
                "`{text}` names {} ports of this machine and {} of the node",
                outside.len(),
                inside.len()
            ),
            None,
        ));
    }
    Ok(Mapping {
        address,
        ports: outside.into_iter().zip(inside).collect(),
        protocol: protocol.to_lowercase(),
    })
}

/// `80` or `8000-8009`.
fn port_range(text: &str) -> Option<Vec<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    (1 <= first && first <= last).then(|| (first..=last).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use insta::assert_snapshot;

    use super::K3dConfig;

    const HEAD: &str = "kind: Simple\napiVersion: k3d.io/v1alpha5\n";
    const API: &str = "kubeAPI: {hostIP: \"127.0.0.1\"}\n";
    const PORTS: &str = "ports:\n- {port: \"127.0.0.1:80:80\", nodeFilters: [\"server:0:direct\"]}\n\
                         - {port: \"127.0.0.1:443:443\", nodeFilters: [\"server:0:direct\"]}\n";

    fn parse(text: &str) -> K3dConfig {
        K3dConfig::parse(Path::new("k3d.yaml"), text).unwrap()
    }

    fn check(text: &str) -> String {
        match K3dConfig::parse(Path::new("k3d.yaml"), text) {
            Ok(config) => config
                .published_ports()
                .iter()
                .map(|port| {
                    format!(
                        "{}:{} -> {}\n",
                        port.address, port.host_port, port.container_port
                    )
                })
                .collect(),
            Err(mistakes) => {
                let told: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                told.join("\n\n")
            }
        }
    }

    #[test]
    fn the_config_that_comes_with_devenv_is_right() {
        let text = include_str!("../../cluster-configs/k3d.yaml");
        let config = parse(text);
        assert_eq!(config.node_count(), 1);
        assert!(!config.has_load_balancer() && !config.has_service_lb());
        assert_eq!(config.helper_images(), ["ghcr.io/k3d-io/k3d-tools:5.8.3"]);
        assert_snapshot!(check(text), @r"
        127.0.0.1:80 -> 80
        127.0.0.1:443 -> 443
        ");
    }

    #[test]
    fn what_is_asked_for_is_seen() {
        let config = parse(&format!(
            "{HEAD}{API}servers: 3\nagents: 2\nports:\n- {{port: \"127.0.0.1:80:80\", nodeFilters: [loadbalancer]}}\n\
             - {{port: \"[::1]:443:443/TCP\"}}\noptions:\n  k3d: {{disableLoadbalancer: false}}\n  k3s:\n    extraArgs:\n    \
             - {{arg: \"--disable=traefik,metrics-server\", nodeFilters: [\"server:*\"]}}\n"
        ));
        assert_eq!(config.node_count(), 5);
        assert!(config.has_load_balancer() && config.has_service_lb());
        assert_eq!(config.helper_images().len(), 2);
        assert_snapshot!(
            check(&format!("{HEAD}kubeAPI: {{hostIP: \"::1\", hostPort: \"6550\"}}\n{PORTS}- {{port: \"127.0.0.1:80-81:8080-8081/udp\", nodeFilters: [\"agent:0:direct\"]}}\n")),
            @r"
        127.0.0.1:80 -> 80
        127.0.0.1:443 -> 443
        ::1:6550 -> 6443
        "
        );
    }

    #[test]
    fn what_no_k3d_config_is() {
        assert_snapshot!(check("- 1\n"), @"k3d.yaml: is no mapping, expected a k3d config: `kind: Simple` and `apiVersion: k3d.io/v1alpha5`");
        assert_snapshot!(check("kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n"), @r"
        k3d.yaml:1:7: `kind` must be `Simple` in a k3d config
          |
        1 | kind: Cluster
          |       ^
        ");
        assert_snapshot!(check("kind: Simple\n"), @"k3d.yaml: the key `apiVersion` is missing, expected `apiVersion: k3d.io/v1alpha5`");
        assert_snapshot!(check("kind: Simple\napiVersion: k3d.io/v1alpha4\n"), @r"
        k3d.yaml:2:13: `apiVersion` must be `k3d.io/v1alpha5` in a k3d config
          |
        2 | apiVersion: k3d.io/v1alpha4
          |             ^
        ");
    }

    #[test]
    fn an_api_server_that_others_would_reach() {
        assert_snapshot!(check(&format!("{HEAD}{PORTS}")), @r#"
        k3d.yaml: `kubeAPI` names no `hostIP`: the API server would be reachable from other machines
        hint: write `kubeAPI: {hostIP: "127.0.0.1"}`: k3d's default is 0.0.0.0
        "#);
        assert_snapshot!(check(&format!("{HEAD}kubeAPI: {{hostPort: \"6550\"}}\n{PORTS}")), @r#"
        k3d.yaml:3:1: `kubeAPI` names no `hostIP`: the API server would be reachable from other machines
          |
        3 | kubeAPI: {hostPort: "6550"}
          | ^
        hint: write `kubeAPI: {hostIP: "127.0.0.1"}`: k3d's default is 0.0.0.0
        "#);
        assert_snapshot!(check(&format!("{HEAD}kubeAPI: {{hostIP: 0.0.0.0}}\n{PORTS}")), @r#"
        k3d.yaml:3:19: the API server would be reachable from other machines, expected 127.0.0.1 or ::1
          |
        3 | kubeAPI: {hostIP: 0.0.0.0}
          |                   ^
        hint: write `kubeAPI: {hostIP: "127.0.0.1"}`: k3d's default is 0.0.0.0
        "#);
        assert_snapshot!(check(&format!("{HEAD}kubeAPI: {{hostIP: $ADDRESS}}\n{PORTS}")), @r#"
        k3d.yaml:3:19: the API server would be reachable from other machines, expected 127.0.0.1 or ::1
          |
        3 | kubeAPI: {hostIP: $ADDRESS}
          |                   ^
        hint: write `kubeAPI: {hostIP: "127.0.0.1"}`: k3d's default is 0.0.0.0
        "#);
        assert_snapshot!(check(&format!("{HEAD}kubeAPI: {{hostIP: \"127.0.0.1\", hostPort: 6550}}\n{PORTS}")), @r#"
        k3d.yaml:3:42: `hostPort` must be a port number from 1 to 65535, in quotes
          |
        3 | kubeAPI: {hostIP: "127.0.0.1", hostPort: 6550}
          |                                          ^
        "#);
    }

    #[test]
    fn ports_that_are_wrong() {
        assert_snapshot!(check(&format!("{HEAD}{API}")), @r#"
        k3d.yaml: no node publishes port 80, and the platform's names lead there
        hint: add to `ports`: {port: "127.0.0.1:80:80", nodeFilters: ["server:0:direct"]}

        k3d.yaml: no node publishes port 443, and the platform's names lead there
        hint: add to `ports`: {port: "127.0.0.1:443:443", nodeFilters: ["server:0:direct"]}
        "#);
        assert_snapshot!(
            check(&format!(
                "{HEAD}{API}ports:\n- {{port: \"80:80\", nodeFilters: [\"server:0:direct\"]}}\n\
                 - {{port: \"0.0.0.0:443:443\", nodeFilters: [\"server:0:direct\"]}}\n\
                 - {{port: \"127.0.0.1::1\", nodeFilters: [\"server:0:direct\"]}}\n\
                 - {{port: \"127.0.0.1:1-2:1\", nodeFilters: [\"server:0:direct\"]}}\n\
                 - {{port: \"127.0.0.1:2:2\", nodeFilters: [loadbalancer]}}\n\
                 - {{port: \"127.0.0.1:3:3\"}}\n- 80\n"
            )),
            @r#"
        k3d.yaml:5:10: this port has no address, and would be reachable from other machines
          |
        5 | - {port: "80:80", nodeFilters: ["server:0:direct"]}
          |          ^
        hint: write the address first: `127.0.0.1:80:80`

        k3d.yaml:6:10: this port would be reachable from other machines, expected 127.0.0.1 or ::1
          |
        6 | - {port: "0.0.0.0:443:443", nodeFilters: ["server:0:direct"]}
          |          ^

        k3d.yaml:7:10: `127.0.0.1::1` names no ports from 1 to 65535, expected such as `127.0.0.1:80:80`
          |
        7 | - {port: "127.0.0.1::1", nodeFilters: ["server:0:direct"]}
          |          ^

        k3d.yaml:8:10: `127.0.0.1:1-2:1` names 2 ports of this machine and 1 of the node
          |
        8 | - {port: "127.0.0.1:1-2:1", nodeFilters: ["server:0:direct"]}
          |          ^

        k3d.yaml:9:40: this port leads through k3d's load balancer, which devenv leaves out
          |
        9 | - {port: "127.0.0.1:2:2", nodeFilters: [loadbalancer]}
          |                                        ^
        hint: write `nodeFilters: ["server:0:direct"]`; or ask for the load balancer, which costs six seconds: `options: {k3d: {disableLoadbalancer: false}}`

        k3d.yaml:10:3: this port leads through k3d's load balancer, which devenv leaves out
           |
        10 | - {port: "127.0.0.1:3:3"}
           |   ^
        hint: write `nodeFilters: ["server:0:direct"]`; or ask for the load balancer, which costs six seconds: `options: {k3d: {disableLoadbalancer: false}}`

        k3d.yaml:11:3: this is no port, expected `port: "127.0.0.1:80:80"`
           |
        11 | - 80
           |   ^
        "#
        );
        assert_snapshot!(
            check(&format!("{HEAD}{API}{PORTS}- {{port: \"127.0.0.1:80:8080\", nodeFilters: [\"agent:0:direct\"]}}\n")),
            @r#"
        k3d.yaml:7:10: port 80 on 127.0.0.1 is published twice
          |
        7 | - {port: "127.0.0.1:80:8080", nodeFilters: ["agent:0:direct"]}
          |          ^
        "#
        );
    }

    #[test]
    fn what_devenv_must_own() {
        assert_snapshot!(
            check(&format!(
                "{HEAD}{API}{PORTS}servers: 0\nagents: two\nnetwork: mine\nsubnet: 172.28.0.0/16\nregistries: {{create: {{name: r}}}}\n\
                 options:\n  k3d: {{disableImageVolume: true}}\n  runtime:\n    labels:\n    - {{label: devenv.environment=mine, nodeFilters: [all]}}\n"
            )),
            @r"
        k3d.yaml:7:10: `servers` must be a whole number, at least 1
          |
        7 | servers: 0
          |          ^

        k3d.yaml:8:9: `agents` must be a whole number, at least 0
          |
        8 | agents: two
          |         ^

        k3d.yaml:9:1: `network` is devenv's own: it makes the cluster's network, so that it knows it as its own
          |
        9 | network: mine
          | ^
        hint: leave the key out; Docker's `default-address-pools` say which addresses it takes

        k3d.yaml:10:1: `subnet` is devenv's own: it makes the cluster's network, so that it knows it as its own
           |
        10 | subnet: 172.28.0.0/16
           | ^
        hint: leave the key out; Docker's `default-address-pools` say which addresses it takes

        k3d.yaml:11:14: k3d gives this registry no label, so devenv could never tell whose it is
           |
        11 | registries: {create: {name: r}}
           |              ^
        hint: make it yourself: k3d registry create NAME --port 127.0.0.1:5000, and write `use: [k3d-NAME:5000]`

        k3d.yaml:13:9: k3d 5.8 can't create a cluster without this volume: its tools container asks for it
           |
        13 |   k3d: {disableImageVolume: true}
           |         ^
        hint: leave the key out: devenv never loads images through it

        k3d.yaml:16:15: `devenv.environment` is the label by which devenv knows its containers
           |
        16 |     - {label: devenv.environment=mine, nodeFilters: [all]}
           |               ^
        "
        );
    }
}
