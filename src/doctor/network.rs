//! What lies between this machine's networks, Docker's, and the registries: clashes of addresses, proxies, what can't be reached.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::join_all;

use super::engine::kernel;
use super::{Finding, World};
use crate::docker::{Info, Network};
use crate::environment::ImageOrigin;
use crate::images::Needed;
use crate::store::{self, Name, Store};

/// kind's nodes are on this network; it stays when the last cluster goes.
const KIND: &str = "kind";
/// How many networks fit into the address pools that Docker comes with.
const POOLS: usize = 31;
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);

/// What concerns Docker's networks.
pub(super) fn of_docker(world: &World<'_>, info: &Info, networks: &[Network]) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let mut findings = Vec::new();
    if info.kernel_version == kernel() {
        findings.push(clash(networks, &routes(&read("/proc/net/route"))));
    }
    findings.extend(pools(networks));
    let variables = |name: &str| {
        let value = std::env::var(name).or_else(|_| std::env::var(name.to_lowercase()));
        value.ok().filter(|value| !value.is_empty())
    };
    findings.extend(proxies(
        &Proxies {
            https: variables("HTTPS_PROXY"),
            http: variables("HTTP_PROXY"),
            none_for: variables("NO_PROXY").unwrap_or_default(),
            of_docker: info.https_proxy.clone(),
        },
        world
            .inputs
            .map(|inputs| inputs.environment.domain.as_str()),
        networks,
    ));
    findings
}

/// A way that packets of this machine take.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    interface: String,
    subnet: Subnet,
}

/// Some IPv4 addresses: those that begin as this one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    address: u32,
    length: u32,
}

impl Subnet {
    fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        Some(Self {
            address: address.parse::<Ipv4Addr>().ok()?.to_bits(),
            length: length.parse().ok().filter(|length| *length <= 32)?,
        })
    }

    /// One of the two is a part of the other.
    fn overlaps(self, other: Self) -> bool {
        let shorter = self.length.min(other.length);
        let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or_default();
        self.address & mask == other.address & mask
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}/{}",
            Ipv4Addr::from_bits(self.address),
            self.length
        )
    }
}

/// The kernel's table, without the way to everywhere else.
fn routes(table: &str) -> Vec<Route> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
            // The kernel writes them as its memory has them.
            let (address, mask) = (number(1)?.to_be(), number(7)?.to_be());
            (mask != 0).then(|| Route {
                interface: fields[0].to_owned(),
                subnet: Subnet {
                    address,
                    length: mask.count_ones(),
                },
            })
        })
        .collect()
}

fn clash(networks: &[Network], routes: &[Route]) -> Finding {
    let kind: Vec<&Network> = networks
        .iter()
        .filter(|network| network.name == KIND)
        .collect();
    for network in &kind {
        for subnet in network
            .subnets
            .iter()
            .filter_map(|text| Subnet::parse(text))
        {
            let other = routes.iter().find(|route| {
                route.interface != network.interface && route.subnet.overlaps(subnet)
            });
            let Some(Route {
                interface,
                subnet: theirs,
            }) = other
            else {
                continue;
            };
            let saw = format!(
                "Docker's network {KIND} has {subnet}, and {interface} leads to {theirs}, a VPN perhaps: "
            );
            let free = free(networks, routes);
            let remedy = format!(
                "docker network rm {KIND} && docker network create {KIND} --subnet {free} \
                 -o com.docker.network.bridge.enable_ip_masquerade=true"
            );
            // The longer of two ways is the one that is taken.
            return match theirs.length >= subnet.length {
                true => Finding::blocks("addresses", saw + "this machine can't reach the nodes"),
                false => Finding::slows(
                    "addresses",
                    saw + "what is there can't be reached from here",
                ),
            }
            .remedy(remedy);
        }
    }
    let subnets: Vec<&str> = kind
        .iter()
        .flat_map(|network| &network.subnets)
        .map(String::as_str)
        .collect();
    Finding::fine(
        "addresses",
        match subnets.as_slice() {
            [] => format!("there is no network {KIND} yet; Docker picks free addresses for it"),
            subnets => format!("{KIND} has {}, and nobody else", subnets.join(" and ")),
        },
    )
}

/// A subnet that neither Docker nor a route has.
fn free(networks: &[Network], routes: &[Route]) -> Subnet {
    let of_docker = networks.iter().flat_map(|network| &network.subnets);
    let taken: Vec<Subnet> = of_docker
        .filter_map(|text| Subnet::parse(text))
        .chain(routes.iter().map(|route| route.subnet))
        .collect();
    let candidates = (0..16).map(|number| Subnet {
        address: Ipv4Addr::new(172, 31 - number, 0, 0).to_bits(),
        length: 16,
    });
    let further = (0..=255).map(|number| Subnet {
        address: Ipv4Addr::new(192, 168, 255 - number, 0).to_bits(),
        length: 24,
    });
    let last = Subnet {
        address: Ipv4Addr::new(10, 213, 0, 0).to_bits(),
        length: 16,
    };
    candidates
        .chain(further)
        .find(|candidate| !taken.iter().any(|taken| taken.overlaps(*candidate)))
        .unwrap_or(last)
}

fn pools(networks: &[Network]) -> Option<Finding> {
    let bridges = networks
        .iter()
        .filter(|network| network.driver == "bridge")
        .count();
    if bridges < POOLS || networks.iter().any(|network| network.name == KIND) {
        return None;
    }
    let saw = format!(
        "Docker has {bridges} networks, and its address pools have room for {POOLS} unless daemon.json gives them more: \
         one for the nodes can't be made"
    );
    Some(Finding::blocks("address pools", saw).remedy("docker network prune"))
}

/// Who is asked in place of a server itself.
struct Proxies {
    https: Option<String>,
    http: Option<String>,
    none_for: String,
    of_docker: String,
}

fn proxies(proxies: &Proxies, domain: Option<&str>, networks: &[Network]) -> Vec<Finding> {
    let given = [
        ("HTTPS_PROXY", &proxies.https),
        ("HTTP_PROXY", &proxies.http),
    ];
    let mut given = given
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let Some((name, value)) = given.next() else {
        if proxies.of_docker.is_empty() {
            return vec![Finding::fine("proxy", "none")];
        }
        let theirs = without_login(&proxies.of_docker);
        let saw = format!(
            "Docker's daemon goes through {theirs}, this shell through none: kind gives its nodes what the shell has"
        );
        return vec![
            Finding::slows("proxy", saw)
                .remedy(format!("export HTTPS_PROXY={theirs} HTTP_PROXY={theirs}")),
        ];
    };
    let mut findings = Vec::new();
    // Alone, since there may be a password before it.
    let host = host_of(value);
    if host == "localhost" || host.starts_with("127.") || host == "::1" {
        let gateway = networks
            .iter()
            .find(|network| network.name == "bridge")
            .and_then(|network| network.gateways.first())
            .map_or("172.17.0.1", String::as_str);
        let saw = format!(
            "{name} leads to {host}, kind passes that on, and in a node {host} is the node itself: nothing in the cluster gets \
             out, unless the proxy listens on Docker's bridge ({gateway}) and is named so"
        );
        findings.push(
            Finding::slows("proxy", saw)
                .remedy(format!("export {name}=\"${{{name}/{host}/{gateway}}}\"")),
        );
    }
    let none_for: Vec<&str> = proxies.none_for.split(',').map(str::trim).collect();
    let covers = |domain: &str| {
        none_for
            .iter()
            .any(|entry| entry.trim_start_matches(['*', '.']) == domain || *entry == "*")
    };
    if let Some(domain) = domain
        && !covers(domain)
    {
        let saw = format!(
            "{name} leads to {host}, and NO_PROXY lacks .{domain}: curl and others ask the proxy for the platform's names"
        );
        findings.push(Finding::slows("proxy", saw).remedy(format!(
            "export NO_PROXY=\"${{NO_PROXY:+$NO_PROXY,}}.{domain},localhost,127.0.0.1\""
        )));
    }
    if findings.is_empty() {
        findings.push(Finding::fine("proxy", format!("{name} leads to {host}")));
    }
    findings
}

/// The address of a proxy without a password that may stand in it.
fn without_login(proxy: &str) -> String {
    let (scheme, rest) = proxy.split_once("://").unwrap_or(("http", proxy));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}://{rest}")
}

/// `http://user:password@proxy:3128/` is at `proxy`.
fn host_of(proxy: &str) -> &str {
    let rest = proxy.split_once("://").map_or(proxy, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => rest.split([':', '/']).next().unwrap_or_default(),
    }
}

/// The registries and servers of what the store lacks: whether they answer at all.
pub(super) async fn registries(world: &World<'_>) -> Vec<Finding> {
    let Some(inputs) = world.inputs else {
        return Vec::new();
    };
    if inputs.environment.images == ImageOrigin::Packages {
        let saw = "none is needed: images are built here";
        return vec![Finding::fine("registries", saw)];
    }
    let missing = Needed::by(inputs).and_then(|needed| {
        Ok(match Store::look(&world.context.paths.store())? {
            Some(store) => store::missing(&store, &needed.in_store(inputs))?,
            None => needed.in_store(inputs),
        })
    });
    let missing = match missing {
        Ok(missing) => missing,
        Err(error) => return vec![Finding::of_error("registries", &error)],
    };
    let addresses: BTreeSet<String> = missing
        .iter()
        .filter_map(|wanted| match &wanted.name {
            Name::Image(image) => Some(match image.registry() {
                // The name by which images go isn't the host's.
                "docker.io" => "https://registry-1.docker.io/v2/".to_owned(),
                host => format!("https://{host}/v2/"),
            }),
            Name::File(address) => {
                let url = reqwest::Url::parse(address).ok()?;
                Some(format!("https://{}/", url.host_str()?))
            }
        })
        .collect();
    let Ok(client) = reqwest::Client::builder().timeout(ANSWER_WITHIN).build() else {
        return Vec::new();
    };
    let asked = addresses.iter().map(|address| {
        let answer = client.head(address).send();
        // That it answers is enough, whatever it answers.
        async move { (host_of(address), answer.await.is_ok()) }
    });
    let answers = join_all(asked).await;
    vec![reachable(&answers, missing.len(), &world.packages())]
}

fn reachable(answers: &[(&str, bool)], missing: usize, packages: &Option<String>) -> Finding {
    let silent: Vec<&str> = answers
        .iter()
        .filter_map(|(host, answers)| (!answers).then_some(*host))
        .collect();
    if silent.is_empty() {
        let saw = match answers.len() {
            0 => "none is needed: nothing is missing in the store".to_owned(),
            count => format!("all {count} answer"),
        };
        return Finding::fine("registries", saw);
    }
    let saw = format!(
        "{} of {} don't answer within {:.1} s ({}), and {missing} images and files are missing in the store",
        silent.len(),
        answers.len(),
        ANSWER_WITHIN.as_secs_f32(),
        silent.join(", ")
    );
    let first = silent[0];
    Finding::blocks("registries", saw).remedy(match packages {
        Some(name) => format!("devenv up --environment {name}"),
        None => format!("curl -sSI https://{first}/v2/"),
    })
}

impl World<'_> {
    /// The environment beside this one that builds its images, if there is one.
    fn packages(&self) -> Option<String> {
        let root = &self.inputs?.environment.root;
        let names = crate::environment::names(root);
        names.into_iter().find(|name| name == "packages")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\n\
            tun0\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\n";
        let shown: Vec<String> = routes(table)
            .iter()
            .map(|route| format!("{} {}", route.interface, route.subnet))
            .collect();
        assert_eq!(shown, ["tun0 192.168.0.0/16"]);
        let overlap = |one: &str, other: &str| {
            Subnet::parse(one)
                .unwrap()
                .overlaps(Subnet::parse(other).unwrap())
        };
        assert!(overlap("172.18.0.0/16", "172.16.0.0/12"));
        assert!(overlap("0.0.0.0/0", "10.0.0.0/8"));
        assert!(!overlap("172.18.0.0/16", "172.19.0.0/16"));
    }

    #[test]
    fn the_host_of_a_proxy() {
        let hosts = [
            "http://user:pass@proxy.corp:3128/",
            "127.0.0.1:8080",
            "http://[::1]:80",
            "https://registry-1.docker.io/v2/",
        ]
        .map(host_of);
        assert_eq!(
            without_login("http://user:pass@proxy.corp:3128"),
            "http://proxy.corp:3128"
        );
        assert_eq!(
            hosts,
            ["proxy.corp", "127.0.0.1", "::1", "registry-1.docker.io"]
        );
    }
}
