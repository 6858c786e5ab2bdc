//! Who holds a port of this machine.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::path::Path;

use crate::docker::Docker;
use crate::error::Failure;

/// Fails where a port that is to be published is taken, naming who holds it.
///
/// A port below 1024 that this user may not open isn't taken: Docker's daemon opens it. Somebody can still take a port
/// between this look and its use; Docker's own error then says so.
pub async fn refuse_taken(
    docker: &Docker,
    ports: &[(IpAddr, u16)],
    config: &Path,
) -> anyhow::Result<()> {
    for (address, port) in ports {
        match TcpListener::bind((*address, *port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let (holder, free) = match holder(docker, *port).await {
                    Some(Holder { who, free }) => (Some(who), free),
                    None => (None, format!("see who holds it: `sudo lsof -i :{port}`")),
                };
                return Err(Failure::PortTaken {
                    address: address.to_string(),
                    port: *port,
                    holder,
                    hint: format!("{free}, or change this port in {}", config.display()),
                }
                .into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Who holds a port, and what to type to be rid of them.
struct Holder {
    who: String,
    free: String,
}

async fn holder(docker: &Docker, port: u16) -> Option<Holder> {
    if let Ok(Some(holder)) = docker.holder_of_port(port).await {
        return Some(Holder {
            who: format!("the container {} ({})", holder.container, holder.image),
            free: format!("`docker stop {}`", holder.container),
        });
    }
    let sockets: BTreeSet<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| listening_sockets(&table, port))
        .collect();
    let (pid, name) = process_of(&sockets)?;
    Some(Holder {
        who: format!("{name} (pid {pid})"),
        free: format!("end it (`kill {pid}`)"),
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
