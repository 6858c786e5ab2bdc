//! Who holds a port of this machine, and which ones are free instead.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::path::Path;

use super::config::PublishedPort;
use super::kind;
use super::ours::{self, Ours};
use crate::docker::{Docker, Port, State};
use crate::error::Failure;
use crate::inputs::Inputs;

/// A port that is to be published, and can't be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The port.
    pub port: PublishedPort,
    /// Who holds it, where that can be known.
    pub by: Option<String>,
    /// What to type to be rid of them.
    pub free: String,
}

/// What the ports are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// A new cluster: it mustn't take what a stopped one needs to start again.
    Making,
    /// A cluster that has them, though others may have them too: whoever starts first.
    Starting,
}

/// Fails where a port that is to be published is taken, naming who holds it, and a set that is free.
///
/// Somebody can still take a port between this look and its use; Docker's own error then says so.
pub async fn refuse_taken(docker: &Docker, inputs: &Inputs, what_for: For) -> anyhow::Result<()> {
    let others = others(ours::all(docker).await?, inputs, what_for);
    let Some(taken) = taken(docker, inputs, &others).await.into_iter().next() else {
        return Ok(());
    };
    Err(Failure::PortTaken {
        address: taken.port.address.to_string(),
        port: taken.port.host_port,
        hint: format!("{}, or {}", taken.free, instead(inputs, &others)),
        holder: taken.by,
    }
    .into())
}

/// The clusters of other environments that are in the way of that.
pub fn others(all: Vec<Ours>, inputs: &Inputs, what_for: For) -> Vec<Ours> {
    all.into_iter()
        .filter(|ours| ours.id != inputs.environment.id)
        .filter(|ours| what_for == For::Making || runs(ours))
        .collect()
}

fn runs(ours: &Ours) -> bool {
    ours.nodes.iter().any(|node| node.state == State::Running)
}

/// Every port of the environment that somebody else holds.
pub async fn taken(docker: &Docker, inputs: &Inputs, others: &[Ours]) -> Vec<Taken> {
    let mut taken = Vec::new();
    for port in inputs.cluster_config.published_ports() {
        if let Some(ours) = others.iter().find(|ours| publishes(ours, port)) {
            let needs = if runs(ours) {
                "which runs"
            } else {
                "which needs it when it is started again"
            };
            taken.push(Taken {
                port: *port,
                by: Some(format!("{}, {needs}", ours.told())),
                free: format!("if nobody needs it: `{}`", ours.removal()),
            });
        } else if is_listening(port.address, port.host_port)
            && let Some(holder) = holder(docker, port.host_port, &inputs.environment.cluster).await
        {
            taken.push(Taken {
                port: *port,
                by: holder.who,
                free: holder.free,
            });
        }
    }
    taken
}

fn publishes(ours: &Ours, port: &PublishedPort) -> bool {
    let holds = |held: &Port| {
        held.host == port.host_port
            && held
                .address
                .parse()
                .is_ok_and(|address: IpAddr| address == port.address || address.is_unspecified())
    };
    ours.nodes.iter().any(|node| node.ports.iter().any(holds))
}

/// Whether somebody listens there already.
fn is_listening(address: IpAddr, port: u16) -> bool {
    match TcpListener::bind((address, port)) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::AddrInUse => true,
        // Docker's daemon may open it where this user may not: only the kernel's table tells whether it is free.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            tables().any(|table| listens(&table, address, port))
        }
        Err(_) => false,
    }
}

/// What to write in the place of ports that are taken, and what that comes to.
pub fn instead(inputs: &Inputs, others: &[Ours]) -> String {
    let wanted = inputs.cluster_config.published_ports();
    let is_free = |port: &PublishedPort| {
        !is_listening(port.address, port.host_port)
            && !others.iter().any(|ours| publishes(ours, port))
    };
    let Some(offer) = offer(wanted, is_free) else {
        return format!(
            "change this `hostPort` in {}",
            inputs.environment.config.display()
        );
    };
    let lines: Vec<String> = offer.iter().map(line).collect();
    let https = offer.iter().find(|port| port.container_port == 443);
    let addresses: Vec<String> = match https {
        Some(https) => inputs
            .names
            .iter()
            .map(|name| format!("https://{name}:{}", https.host_port))
            .collect(),
        None => Vec::new(),
    };
    let then = match addresses.as_slice() {
        [] => String::new(),
        addresses => format!("\nthe names are then {}", addresses.join(", ")),
    };
    format!(
        "publish ports that are free, in {} (or in a copy of it, where other environments name it too):\n{}{then}",
        inputs.environment.config.display(),
        lines.join("\n")
    )
}

/// As it stands in kind's config.
fn line(port: &PublishedPort) -> String {
    let PublishedPort {
        address,
        host_port,
        container_port,
    } = port;
    let address = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"{address}\""),
    };
    format!(
        "      - {{listenAddress: {address}, hostPort: {host_port}, containerPort: {container_port}}}"
    )
}

/// The same ports further up, all by one distance, so that the set is as easy to remember as it was: 80 and 443 become 8080
/// and 8443, or 9080 and 9443.
fn offer(
    wanted: &[PublishedPort],
    is_free: impl Fn(&PublishedPort) -> bool,
) -> Option<Vec<PublishedPort>> {
    (1..=56).find_map(|thousands| {
        let moved = |port: &PublishedPort| {
            let distance = match port.host_port {
                0..1024 => 7000 + thousands * 1000,
                _ => thousands * 1000,
            };
            let host_port = port.host_port.checked_add(distance)?;
            let port = PublishedPort { host_port, ..*port };
            is_free(&port).then_some(port)
        };
        wanted.iter().map(moved).collect()
    })
}

/// Who holds a port, and what to type to be rid of them.
struct Holder {
    who: Option<String>,
    free: String,
}

/// Nobody, where it is a node of this very cluster.
async fn holder(docker: &Docker, port: u16, cluster: &str) -> Option<Holder> {
    if let Ok(Some(holder)) = docker.holder_of_port(port).await {
        if holder
            .labels
            .get(kind::LABEL)
            .is_some_and(|of| of == cluster)
        {
            return None;
        }
        return Some(Holder {
            who: Some(format!(
                "the container {} ({})",
                holder.container, holder.image
            )),
            free: format!("`docker stop {}`", holder.container),
        });
    }
    let sockets: BTreeSet<String> = tables()
        .flat_map(|table| listening_sockets(&table, port))
        .collect();
    Some(match process_of(&sockets) {
        Some((pid, name)) => Holder {
            who: Some(format!("{name} (pid {pid})")),
            free: format!("end it (`kill {pid}`)"),
        },
        None => Holder {
            who: None,
            free: format!("see who holds it: `sudo lsof -i :{port}`"),
        },
    })
}

/// The kernel's tables of TCP sockets.
fn tables() -> impl Iterator<Item = String> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
}

/// Whether a table has somebody who listens on that address, or on all of them.
fn listens(table: &str, address: IpAddr, port: u16) -> bool {
    let address = match address {
        IpAddr::V4(address) => format!("{:08X}", u32::from_ne_bytes(address.octets())),
        IpAddr::V6(address) => {
            let octets = address.octets();
            octets
                .chunks(4)
                .map(|word| {
                    format!(
                        "{:08X}",
                        u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
                    )
                })
                .collect()
        }
    };
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(&"0A")) = (fields.get(1), fields.get(3)) else {
            return false;
        };
        let Some((at, on)) = local.split_once(':') else {
            return false;
        };
        let is_everywhere = at.bytes().all(|byte| byte == b'0');
        on == format!("{port:04X}") && (at == address || is_everywhere)
    })
}

/// The inodes of the sockets that listen on a port, from the kernel's table.
fn listening_sockets(table: &str, port: u16) -> Vec<String> {
    let listens = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listening = fields.get(1)?.ends_with(&listens) && *fields.get(3)? == "0A";
            listening
                .then(|| fields.get(9).map(|inode| (*inode).to_owned()))
                .flatten()
        })
        .collect()
}

/// The first process that has one of these sockets open, as far as we may look.
fn process_of(sockets: &BTreeSet<String>) -> Option<(u32, String)> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let has = std::fs::read_dir(process.path().join("fd"))
            .ok()?
            .flatten()
            .any(|descriptor| {
                std::fs::read_link(descriptor.path()).is_ok_and(|target| {
                    let target = target.to_string_lossy();
                    let inode = target
                        .strip_prefix("socket:[")
                        .and_then(|rest| rest.strip_suffix(']'));
                    inode.is_some_and(|inode| sockets.contains(inode))
                })
            });
        has.then(|| (pid, command_name(&process.path())))
    })
}

fn command_name(process: &Path) -> String {
    std::fs::read_to_string(process.join("comm"))
        .map_or_else(|_| "a process".to_owned(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 0 100 0 0 10 0\n   \
            1: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 42 1 0 100 0 0 10 0\n   \
            2: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 43 1 0 100 0 0 10 0\n";
        assert_eq!(listening_sockets(table, 80), ["41"]);
        assert_eq!(listening_sockets(table, 8080), ["43"]);
    }

    #[test]
    fn who_listens_on_all_addresses_listens_on_each() {
        let table = "  sl  local_address rem_address   st\n   \
            0: 0100007F:0050 00000000:0000 0A\n   \
            1: 00000000:01BB 00000000:0000 0A\n   \
            2: 0100007F:1F90 0100007F:9999 01\n";
        let local = "127.0.0.1".parse().unwrap();
        let other = "127.0.0.2".parse().unwrap();
        assert!(listens(table, local, 80) && !listens(table, other, 80));
        assert!(listens(table, local, 443) && listens(table, other, 443));
        assert!(!listens(table, local, 8080));
    }

    #[test]
    fn the_offer_moves_all_ports_together() {
        let port = |host_port, container_port| PublishedPort {
            address: "127.0.0.1".parse().unwrap(),
            host_port,
            container_port,
        };
        let check = |wanted: &[PublishedPort], taken: &[u16]| {
            let offer = offer(wanted, |port| !taken.contains(&port.host_port)).unwrap();
            offer.iter().map(line).collect::<Vec<_>>().join("\n")
        };
        let usual = [port(80, 80), port(443, 443)];
        insta::assert_snapshot!(check(&usual, &[80]), @r"
        - {listenAddress: 127.0.0.1, hostPort: 8080, containerPort: 80}
        - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443}
        ");
        insta::assert_snapshot!(check(&usual, &[80, 443, 8443]), @r"
        - {listenAddress: 127.0.0.1, hostPort: 9080, containerPort: 80}
        - {listenAddress: 127.0.0.1, hostPort: 9443, containerPort: 443}
        ");
        insta::assert_snapshot!(check(&[port(8080, 80), port(443, 443)], &[443]), @r"
        - {listenAddress: 127.0.0.1, hostPort: 9080, containerPort: 80}
        - {listenAddress: 127.0.0.1, hostPort: 8443, containerPort: 443}
        ");
    }

    #[test]
    fn the_process_that_holds_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let Ok(table) = std::fs::read_to_string("/proc/net/tcp") else {
            return;
        }; // not Linux
        let sockets = listening_sockets(&table, port).into_iter().collect();
        assert_eq!(process_of(&sockets).unwrap().0, std::process::id());
    }
}
