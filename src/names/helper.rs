//! The part that runs as root: `sudo -- devenv __hosts`, one request on stdin, one line of JSON on stdout.
//!
//! Whoever may run it by sudo could put anything on its stdin, so it believes nothing: it reads no config and no variable,
//! writes no file but the hosts file, and no line but ones that lead a name below one of a few domains to this machine itself or
//! to the one address of a load balancer ([`Balancer`] says which addresses can be that: never link-local, multicast or reserved
//! ones). The domains are those that nobody can own, and the ones that root lists in [`DOMAINS`]. That way neither a mistake nor
//! another program can use it to send `github.com` elsewhere. sudo writes each call to the system's log.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::hosts::Balancer;
use super::hosts::{self, Block, HostName, Id, Leads, Owner};
use super::hosts_file::{self, Written};
use super::{HOSTS, flush_caches};
use crate::environment::Domain;
use crate::error::{Exit, Failure};
use crate::event::Events;
use crate::report;
use crate::stop::Stop;

/// A longer request is none of devenv's.
pub const LIMIT: u64 = 4096;
/// Where root lists further domains, one a line.
pub const DOMAINS: &str = "/etc/devenv/domains";
/// Domains that are set aside for private use (RFC 2606, 6761, 6762, 8375; `internal` by ICANN).
const PRIVATE: [&str; 7] = [
    "local",
    "localhost",
    "test",
    "internal",
    "example",
    "invalid",
    "home.arpa",
];
/// Below `internal`, but in use: by clouds and by Docker.
const IN_USE: [&str; 4] = [
    "google.internal",
    "compute.internal",
    "ec2.internal",
    "docker.internal",
];

/// What is asked of the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to do.
    pub action: Action,
    /// The environment's name.
    pub environment: String,
    /// The environment's id.
    pub id: String,
    /// The names, to apply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Whether they lead to `::1` too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
    /// The load balancer that they lead to instead of to this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balancer: Option<String>,
}

/// What can be asked of the helper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Put the block in.
    Apply,
    /// Take it out.
    Remove,
}

/// What the helper says it did.
#[derive(Debug, Serialize)]
struct Answer {
    changed: bool,
    how: Option<Written>,
}

impl Request {
    /// To put this block in.
    pub fn apply(block: &Block) -> Self {
        let (ipv6, balancer) = match block.leads {
            Leads::Here { ipv6 } => (ipv6, None),
            Leads::To(balancer) => (false, Some(balancer.address().to_string())),
        };
        Self {
            action: Action::Apply,
            environment: block.owner.name.to_string(),
            id: block.owner.id.as_str().to_owned(),
            names: block.names.iter().map(ToString::to_string).collect(),
            ipv6,
            balancer,
        }
    }

    /// To take the owner's block out.
    pub fn remove(owner: &Owner) -> Self {
        Self {
            action: Action::Remove,
            environment: owner.name.to_string(),
            id: owner.id.as_str().to_owned(),
            names: Vec::new(),
            ipv6: false,
            balancer: None,
        }
    }
}

/// Serves the one request on stdin.
pub async fn help(events: &Events, stop: &Stop) -> anyhow::Result<Exit> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::Usage {
            message: "this part of devenv is for root, and only for devenv itself to start"
                .to_owned(),
            hint: "devenv hosts apply".to_owned(),
        }
        .into());
    }
    let mut text = Vec::new();
    std::io::stdin()
        .lock()
        .take(LIMIT + 1)
        .read_to_end(&mut text)
        .context("can't read the request")?;
    let domains = allowed_domains();
    let change = check(&text, &domains).map_err(|message| Failure::Usage {
        message: format!("refused: {message}"),
        hint: "devenv hosts show says what devenv itself would ask for".to_owned(),
    })?;
    let how = hosts_file::edit(Path::new(HOSTS), |file| change.apply(file))?;
    if how.is_some() {
        flush_caches(events, stop).await;
    }
    let answer = Answer {
        changed: how.is_some(),
        how,
    };
    report::data(&serde_json::to_string(&answer)?)?;
    Ok(Exit::Ready)
}

/// A change of the hosts file that can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Put the block in.
    Insert(Block),
    /// Take it out.
    Remove(Owner),
}

impl Change {
    /// The file as it is after the change.
    pub fn apply(&self, file: &[u8]) -> anyhow::Result<Vec<u8>> {
        let (owner, changed) = match self {
            Self::Insert(block) => (&block.owner, hosts::insert(file, block)),
            Self::Remove(owner) => (owner, hosts::remove(file, &owner.id)),
        };
        changed.map_err(|torn| {
            Failure::NotOurs {
                message: format!(
                    "the block of {} in {HOSTS} is not as devenv writes it, so it is left alone: {torn}",
                    owner.name
                ),
                hint: format!("sudoedit {HOSTS}"),
            }
            .into()
        })
    }

    /// The same, as it is asked of the helper.
    pub fn request(&self) -> Request {
        match self {
            Self::Insert(block) => Request::apply(block),
            Self::Remove(owner) => Request::remove(owner),
        }
    }

    /// The first name that the helper would refuse.
    pub fn refused_name(&self, allowed: &[Domain]) -> Option<&HostName> {
        match self {
            Self::Insert(block) => block.names.iter().find(|name| !is_allowed(name, allowed)),
            Self::Remove(_) => None,
        }
    }
}

/// The change that untrusted bytes ask for, or why it isn't made.
fn check(text: &[u8], allowed: &[Domain]) -> Result<Change, String> {
    if text.len() as u64 > LIMIT {
        return Err(format!("the request is longer than {LIMIT} bytes"));
    }
    let request: Request = serde_json::from_slice(text)
        .map_err(|error| format!("this is no request that devenv makes: {error}"))?;
    let owner = Owner {
        name: request.environment.parse()?,
        id: request.id.parse::<Id>()?,
    };
    if request.action == Action::Remove {
        return Ok(Change::Remove(owner));
    }
    let names = request
        .names
        .iter()
        .map(|name| name.parse::<HostName>())
        .collect::<Result<BTreeSet<_>, _>>()?;
    let leads = match (request.balancer, request.ipv6) {
        (None, ipv6) => Leads::Here { ipv6 },
        (Some(balancer), false) => Leads::To(balancer.parse()?),
        (Some(_), true) => {
            return Err("names can't lead to `::1` and to a load balancer".to_owned());
        }
    };
    let block = Block {
        owner,
        names,
        leads,
    };
    if block.names.is_empty() {
        return Err("no names are asked for".to_owned());
    }
    let change = Change::Insert(block);
    match change.refused_name(allowed) {
        Some(name) => Err(format!(
            "`{name}` could be somebody's real name: it is below none of {}, and below no domain that root lists in {DOMAINS}",
            PRIVATE.join(", ")
        )),
        None => Ok(change),
    }
}

fn is_allowed(name: &HostName, allowed: &[Domain]) -> bool {
    let below = |domain: &str| {
        name.as_str()
            .strip_suffix(domain)
            .is_some_and(|rest| rest.ends_with('.'))
    };
    let is_in_use = IN_USE
        .iter()
        .any(|domain| name.as_str() == *domain || below(domain));
    allowed.iter().any(|domain| below(domain.as_str()))
        || !is_in_use && PRIVATE.iter().any(|domain| below(domain))
}

/// The domains that root lists; none if anybody else could have written the list.
pub fn allowed_domains() -> Vec<Domain> {
    let trusted = |path: &Path| {
        std::fs::symlink_metadata(path).is_ok_and(|metadata| {
            metadata.uid() == 0 && metadata.mode() & 0o022 == 0 && !metadata.is_symlink()
        })
    };
    let path = Path::new(DOMAINS);
    if !path.parent().is_some_and(trusted) || !trusted(path) {
        return Vec::new();
    }
    domains(&std::fs::read_to_string(path).unwrap_or_default())
}

fn domains(text: &str) -> Vec<Domain> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter_map(|line| line.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        match check(
            text.as_bytes(),
            &domains("dev.example.org # ours\n\n  corp.net\nnot a domain\n"),
        ) {
            Ok(Change::Insert(block)) => block.lines().trim_end().replace('\n', "; "),
            Ok(Change::Remove(owner)) => format!("remove {owner}"),
            Err(error) => error,
        }
    }

    fn asking_for(name: &str) -> String {
        told(&format!(
            r#"{{"action":"apply","environment":"dev","id":"0123456789ab","names":["{name}"]}}"#
        ))
    }

    #[test]
    fn what_devenv_asks_for_is_done() {
        insta::assert_snapshot!(
            told(r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":["b.local","a.home.arpa"],"ipv6":true}"#),
            @"127.0.0.1 a.home.arpa; ::1 a.home.arpa; 127.0.0.1 b.local; ::1 b.local"
        );
        insta::assert_snapshot!(asking_for("argocd.corp.net"), @"127.0.0.1 argocd.corp.net");
        insta::assert_snapshot!(
            told(r#"{"action":"remove","environment":"dev","id":"0123456789ab"}"#),
            @"remove dev 0123456789ab"
        );
        let block = Block {
            owner: Owner {
                name: "dev".parse().unwrap(),
                id: "0123456789ab".parse().unwrap(),
            },
            names: ["a.test".parse().unwrap()].into(),
            leads: Leads::Here { ipv6: true },
        };
        let balanced = Block {
            leads: Leads::To("10.0.0.9".parse().unwrap()),
            ..block.clone()
        };
        let changes = [
            Change::Insert(block.clone()),
            Change::Insert(balanced),
            Change::Remove(block.owner),
        ];
        for change in changes {
            let text = serde_json::to_vec(&change.request()).unwrap();
            assert_eq!(check(&text, &[]), Ok(change));
        }
    }

    #[test]
    fn what_could_be_somebody_elses_is_refused() {
        insta::assert_snapshot!(asking_for("github.com"), @"`github.com` could be somebody's real name: it is below none of local, localhost, test, internal, example, invalid, home.arpa, and below no domain that root lists in /etc/devenv/domains");
        for name in [
            "example.org",
            "evilcorp.net",
            "corp.net",
            "home.arpa",
            "a.notlocal",
            "metadata.google.internal",
            "host.docker.internal",
            "docker.internal",
        ] {
            assert!(asking_for(name).contains("could be somebody's"), "{name}");
        }
    }

    #[test]
    fn what_devenv_never_asks_for_is_refused() {
        for name in [
            "local",
            "127.0.0.1",
            "a.local b.local",
            "a.local\\n10.0.0.1 b.local",
            "*.local",
            "A.local",
            "a.local#",
        ] {
            assert!(
                asking_for(name).contains("is no name for the hosts file"),
                "{name}: {}",
                asking_for(name)
            );
        }
        let ask = |text: &str| told(text);
        for (text, part) in [
            ("", "this is no request"),
            ("[]", "this is no request"),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":[]}"#,
                "no names",
            ),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789a","names":["a.local"]}"#,
                "no environment's id",
            ),
            (
                r#"{"action":"apply","environment":"de v","id":"0123456789ab","names":["a.local"]}"#,
                "can't name an environment",
            ),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":["a.local"],"address":"10.0.0.1"}"#,
                "unknown field `address`",
            ),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":["a.local"],"path":"/etc/passwd"}"#,
                "unknown field `path`",
            ),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":["a.local"],"balancer":"169.254.169.254"}"#,
                "no address of a load balancer",
            ),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":["a.local"],"balancer":"10.0.0.9\n1.2.3.4"}"#,
                "no IPv4 address",
            ),
            (
                r#"{"action":"apply","environment":"dev","id":"0123456789ab","names":["a.local"],"balancer":"10.0.0.9","ipv6":true}"#,
                "can't lead to",
            ),
            (
                r#"{"action":"shell","environment":"dev","id":"0123456789ab"}"#,
                "unknown variant `shell`",
            ),
        ] {
            assert!(ask(text).contains(part), "{text}: {}", ask(text));
        }
        let long = vec![b' '; LIMIT as usize + 1];
        assert_eq!(
            check(&long, &[]),
            Err("the request is longer than 4096 bytes".to_owned())
        );
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic_or_write_elsewhere(text in "\\PC{0,40}") {
            let quoted = serde_json::to_string(&text).unwrap();
            let request = format!(r#"{{"action":"apply","environment":"dev","id":"0123456789ab","names":[{quoted}],"ipv6":true}}"#);
            if let Ok(Change::Insert(block)) = check(request.as_bytes(), &[]) {
                proptest::prop_assert_eq!(block.lines(), format!("127.0.0.1 {text}\n::1 {text}\n"));
            }
            let _ = check(text.as_bytes(), &[]);
        }
    }
}
