//! Linux inside of Windows: the browser is Windows' own, and reads Windows' own hosts file. devenv reads that one too, and says
//! in one line what is missing; it writes nothing there, which would take an administrator's consent on the other side.

use std::net::Ipv4Addr;
use std::path::Path;

use super::hosts::{self, Block, Leads};

/// How Windows' file is seen from Linux.
const WINDOWS_HOSTS: &str = "/mnt/c/Windows/System32/drivers/etc/hosts";

/// The line to say, if this is Windows' Linux and Windows doesn't know the names.
pub fn notice(wanted: &Block) -> Option<String> {
    let version = std::fs::read_to_string("/proc/version").unwrap_or_default();
    if !version.to_ascii_lowercase().contains("microsoft") || !Path::new(WINDOWS_HOSTS).exists() {
        return None;
    }
    let theirs = std::fs::read(WINDOWS_HOSTS).unwrap_or_default();
    let config = std::fs::read_to_string("/etc/wsl.conf").unwrap_or_default();
    line(wanted, &theirs, &config)
}

fn line(wanted: &Block, theirs: &[u8], config: &str) -> Option<String> {
    let (leads, address) = in_windows(wanted);
    let mut missing = Block {
        leads,
        ..wanted.clone()
    };
    missing.names.retain(|name| !is_given(theirs, wanted, name));
    let names: Vec<&str> = missing.names.iter().map(hosts::HostName::as_str).collect();
    if names.is_empty() {
        return None;
    }
    let is_kept = config.lines().any(|line| {
        let line: String = line
            .chars()
            .filter(|character| !character.is_whitespace())
            .collect();
        line.eq_ignore_ascii_case("generateHosts=false")
    });
    let kept = if is_kept {
        ""
    } else {
        "; and WSL writes /etc/hosts anew when it starts, unless /etc/wsl.conf says generateHosts=false below [network]"
    };
    Some(format!(
        "Windows' browsers read Windows' own hosts file; in a PowerShell run as administrator: \
         Add-Content $env:SystemRoot\\System32\\drivers\\etc\\hosts \"`n{address} {}\"{kept}",
        names.join(" ")
    ))
}

/// Windows' browsers need no lines for `::1`.
fn in_windows(wanted: &Block) -> (Leads, Ipv4Addr) {
    match wanted.leads {
        Leads::Here { .. } => (Leads::Here { ipv6: false }, Ipv4Addr::LOCALHOST),
        to @ Leads::To(balancer) => (to, balancer.address()),
    }
}

fn is_given(theirs: &[u8], wanted: &Block, name: &hosts::HostName) -> bool {
    let alone = Block {
        names: [name.clone()].into(),
        leads: in_windows(wanted).0,
        ..wanted.clone()
    };
    hosts::look(theirs, &alone).given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::hosts::Owner;

    #[test]
    fn one_line_says_what_windows_lacks() {
        let wanted = Block {
            owner: Owner {
                name: "dev".parse().unwrap(),
                id: "0123456789ab".parse().unwrap(),
            },
            names: ["argocd.local", "keycloak.local"]
                .map(|name| name.parse().unwrap())
                .into(),
            leads: Leads::Here { ipv6: true },
        };
        let kept = "[network]\r\ngenerateHosts = false\r\n";
        assert_eq!(
            line(&wanted, b"127.0.0.1 argocd.local keycloak.local\r\n", ""),
            None
        );
        insta::assert_snapshot!(line(&wanted, b"127.0.0.1\targocd.local\r\n", kept).unwrap(), @r#"Windows' browsers read Windows' own hosts file; in a PowerShell run as administrator: Add-Content $env:SystemRoot\System32\drivers\etc\hosts "`n127.0.0.1 keycloak.local""#);
        insta::assert_snapshot!(line(&wanted, b"", "").unwrap(), @r#"Windows' browsers read Windows' own hosts file; in a PowerShell run as administrator: Add-Content $env:SystemRoot\System32\drivers\etc\hosts "`n127.0.0.1 argocd.local keycloak.local"; and WSL writes /etc/hosts anew when it starts, unless /etc/wsl.conf says generateHosts=false below [network]"#);
    }
}
