//! Names: `https://argocd.local` in a browser leads to this machine, where the cluster's ports 80 and 443 are published.
//!
//! Each environment has one marked block in `/etc/hosts` ([`hosts`] knows what it looks like, [`hosts_file`] writes it without
//! losing anything of anybody's). The lines lead to loopback only, so they are the same at every `up`, and a second one has
//! nothing to ask for. (With a cluster that is there already they lead to its load balancer.) What somebody else's line says about a name is reported and never overwritten.
//!
//! Who may write the file is asked nothing: root above all. Others are shown what would change and the command that changes it,
//! which is then run: `sudo` with devenv's own [`helper`], which trusts nobody. That needs a terminal and a person at it; in CI
//! `sudo -n` is tried, which never asks. Where it isn't to be, the lines are there to be added by hand, and all else is done.
//!
//! [`virtual_services`] tells the names that the bundles serve. What makes a name work besides is its certificate ([`tls`]). Not in here: whether
//! the names answer ([`crate::checks`]), and the names inside of the cluster ([`crate::cluster::dns`]).

pub mod helper;
pub mod hosts;
pub mod hosts_file;
pub mod loopback;
pub mod tls;
pub mod virtual_services;
pub mod windows;

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _};
use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use crate::context::Context;
use crate::environment::{Environment, HostsFile};
use crate::error::explain;
use crate::event::{Events, Step};
use crate::exec::{self, Cmd};
use crate::stop::Stop;
use helper::Change;
use hosts::{Block, HostName, Leads, Owner, State};

/// The file that every program on this machine looks names up in first.
pub const HOSTS: &str = "/etc/hosts";
/// The hidden command that [`helper`] is.
pub const HELPER: &str = "__hosts";

/// What wiring the names came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wired {
    /// All of them were wired.
    Unchanged,
    /// They are now.
    Changed,
    /// Some aren't.
    NotWired {
        /// Why, in words.
        reason: String,
        /// The lines to add by hand.
        block: String,
        /// What to type instead.
        command: String,
    },
    /// The environment wants none of it.
    Off,
}

/// What taking the block out came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unwired {
    /// There was no block.
    Unchanged,
    /// It is gone.
    Changed,
    /// It is still there.
    Left {
        /// Why, in words.
        reason: String,
        /// What is to go, as `diff` shows it.
        block: String,
        /// What to type instead.
        command: String,
    },
}

impl Wired {
    /// What a person is to be told, if the names aren't wired: why, the lines, and the command.
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::NotWired {
                reason,
                block,
                command,
            } => Some(format!(
                "the names are not wired: {reason}\nthese lines belong into {HOSTS}:\n{block}next, type: {command}"
            )),
            Self::Unchanged | Self::Changed | Self::Off => None,
        }
    }
}

impl Unwired {
    /// What a person is to be told, if the block is left: why, what, and the command.
    pub fn notice(&self) -> Option<String> {
        match self {
            Self::Left {
                reason,
                block,
                command,
            } => Some(format!(
                "the names are left in {HOSTS}: {reason}\n{block}next, type: {command}"
            )),
            Self::Unchanged | Self::Changed => None,
        }
    }
}

/// Sees to it that the names lead there. Fails only when a signal asks to stop: whatever stands in the way is said in
/// the result, because all else of an environment works without it.
pub async fn wire(
    context: &Context,
    environment: &Environment,
    names: &BTreeSet<String>,
    leads: Leads,
    step: &Step,
) -> anyhow::Result<Wired> {
    if environment.hosts == HostsFile::Off {
        return Ok(Wired::Off);
    }
    let (wanted, unusable) = block(environment, names, leads);
    let not_wired = |Obstacle { reason, command }, names: BTreeSet<HostName>| {
        let lacking = Block {
            names,
            ..wanted.clone()
        };
        Ok(Wired::NotWired {
            reason,
            block: lacking.lines(),
            command,
        })
    };
    let look = match Look::at(&wanted) {
        Ok(look) => look,
        Err(error) => return not_wired(Obstacle::from(&error), wanted.names.clone()),
    };
    let changed = match &look.change {
        None => false,
        Some(change) => match carry_out(context, environment, change, &look.file, step).await? {
            Ok(changed) => changed,
            Err(obstacle) => return not_wired(obstacle, wanted.names.clone()),
        },
    };
    if let Some(line) = windows::notice(&wanted) {
        context.events.notice(line);
    }
    if !look.conflicts.is_empty() {
        let obstacle = Obstacle {
            reason: format!(
                "in {HOSTS}, which isn't all devenv's to change, {}",
                list(&look.conflicts)
            ),
            command: format!("sudoedit {HOSTS}"),
        };
        let names = look.conflicts.into_iter().map(|conflict| conflict.name);
        return not_wired(obstacle, names.collect());
    }
    if !unusable.is_empty() {
        let obstacle = Obstacle {
            reason: list(&unusable),
            command: "devenv hosts show".to_owned(),
        };
        return not_wired(obstacle, BTreeSet::new());
    }
    Ok(if changed {
        Wired::Changed
    } else {
        Wired::Unchanged
    })
}

/// Takes the environment's block out. Fails only when a signal asks to stop; what stands in the way is said in the result.
pub async fn unwire(
    context: &Context,
    environment: &Environment,
    step: &Step,
) -> anyhow::Result<Unwired> {
    let owner = owner(environment);
    let change = Change::Remove(owner);
    let file = match hosts_file::read(Path::new(HOSTS)) {
        Ok(file) => file,
        // Nothing says that there is a block in it, and `down` isn't the one to find out what is wrong with the file.
        Err(_) => return Ok(Unwired::Unchanged),
    };
    Ok(
        match carry_out(context, environment, &change, &file, step).await? {
            Ok(false) => Unwired::Unchanged,
            Ok(true) => Unwired::Changed,
            Err(Obstacle { reason, command }) => Unwired::Left {
                reason,
                block: change
                    .apply(&file)
                    .map(|new| hosts::diff(HOSTS, &file, &new))
                    .unwrap_or_default(),
                command,
            },
        },
    )
}

/// Whether names are to lead to `::1` too, where nobody has looked who answers there: as the block has it, if there is one.
/// Without one, if nothing listens there. Then a program that tries `::1` first is refused at once, and goes on with
/// `127.0.0.1`; without the lines macOS waits five seconds for an answer to the question whether there is an IPv6 address.
pub async fn ipv6(environment: &Environment) -> bool {
    let file = hosts_file::read(Path::new(HOSTS)).unwrap_or_default();
    if let Some(has) = hosts::has_ipv6(&file, &owner(environment).id) {
        return has;
    }
    let connect = tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, 443));
    let answer = tokio::time::timeout(Duration::from_secs(1), connect).await;
    matches!(answer, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The block that the environment wants, and what is wrong with the names that can't be in it.
pub fn block(
    environment: &Environment,
    names: &BTreeSet<String>,
    leads: Leads,
) -> (Block, Vec<String>) {
    let mut unusable = Vec::new();
    let mut usable = BTreeSet::new();
    for name in names {
        match name.to_ascii_lowercase().parse() {
            Ok(name) => drop(usable.insert(name)),
            Err(why) => unusable.push(why),
        }
    }
    let block = Block {
        owner: owner(environment),
        names: usable,
        leads,
    };
    (block, unusable)
}

fn owner(environment: &Environment) -> Owner {
    Owner {
        name: environment.name.clone(),
        id: environment
            .id
            .parse()
            .expect("an environment's id is 12 hexadecimal digits"),
    }
}

/// The hosts file, and what is to be done about it.
#[derive(Debug)]
pub struct Look {
    /// Its bytes.
    pub file: Vec<u8>,
    /// The environment's block in it.
    pub state: State,
    /// What other lines say about the wanted names.
    pub conflicts: Vec<hosts::Conflict>,
    /// What there is to change, if anything.
    pub change: Option<Change>,
}

impl Look {
    /// Reads the file.
    pub fn at(wanted: &Block) -> anyhow::Result<Self> {
        Ok(Self::new(hosts_file::read(Path::new(HOSTS))?, wanted))
    }

    fn new(file: Vec<u8>, wanted: &Block) -> Self {
        let hosts::Found {
            state,
            conflicts,
            given,
        } = hosts::look(&file, wanted);
        let block = wanted.without(&conflicts);
        let change = if block.names.is_empty() {
            Change::Remove(block.owner)
        } else {
            Change::Insert(block)
        };
        let is_needed = match &state {
            State::Absent => matches!(change, Change::Insert(_)) && !given,
            State::Same => false,
            State::Differs | State::Torn(_) => true,
        };
        Self {
            file,
            state,
            conflicts,
            change: is_needed.then_some(change),
        }
    }
}

/// What stands in the way of a change, and what to type.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Obstacle {
    reason: String,
    command: String,
}

impl From<&anyhow::Error> for Obstacle {
    fn from(error: &anyhow::Error) -> Self {
        Self {
            reason: format!("{error:#}"),
            command: explain(error).1.unwrap_or_else(|| format!("ls -l {HOSTS}")),
        }
    }
}

/// Makes the change, if there is one to make and this process or sudo may; says whether there was, or what stands in the way.
async fn carry_out(
    context: &Context,
    environment: &Environment,
    change: &Change,
    file: &[u8],
    step: &Step,
) -> anyhow::Result<Result<bool, Obstacle>> {
    let new = match change.apply(file) {
        Ok(new) if new == file => return Ok(Ok(false)),
        Ok(new) => new,
        Err(torn) => return Ok(Err(Obstacle::from(&torn))),
    };
    let sudo = match sudo(change) {
        Ok(sudo) => sudo,
        Err(error) => return Ok(Err(Obstacle::from(&error))),
    };
    let by_hand = |reason: String| {
        Ok(Err(Obstacle {
            reason,
            command: sudo.by_hand.clone(),
        }))
    };
    match environment.hosts {
        HostsFile::Auto => {}
        HostsFile::Print => return by_hand("the environment says `hosts: print`".to_owned()),
        HostsFile::Off => return by_hand("the environment says `hosts: off`".to_owned()),
    }
    let is_root = nix::unistd::geteuid().is_root();
    if is_root || hosts_file::may_write(Path::new(HOSTS)) {
        return Ok(
            match hosts_file::edit(Path::new(HOSTS), |file| change.apply(file)) {
                Ok(_) => {
                    flush_caches(&context.events, &context.stop).await;
                    Ok(true)
                }
                Err(error) => Err(Obstacle::from(&error)),
            },
        );
    }
    if let Some(obstacle) = refused_by_helper(change, &sudo) {
        return Ok(Err(obstacle));
    }
    let ran = match may_ask(
        which::which("sudo").is_ok(),
        io::stdin().is_terminal() && io::stderr().is_terminal(),
        is_ci(),
    ) {
        May::Ask => {
            context.events.notice(format!(
                "only root may write {HOSTS}, so sudo may ask for your password to make this change:\n{}by: {}",
                hosts::diff(HOSTS, file, &new),
                sudo.by_hand
            ));
            let _terminal = context.events.borrow_terminal().await;
            exec::run_at_terminal(&sudo.asking, &context.stop).await
        }
        May::Try => exec::run(&sudo.silent, &context.stop, step).await,
        May::Not(reason) => return by_hand(reason.to_owned()),
    };
    match ran {
        Ok(_) => Ok(Ok(true)),
        Err(_) if context.stop.is_requested() => Err(context.stop.error()),
        Err(error) => by_hand(format!("{error:#}")),
    }
}

/// Whether a person may be asked for a password.
#[derive(Debug, Clone, PartialEq, Eq)]
enum May {
    /// There is one.
    Ask,
    /// There is none, but sudo may need no password.
    Try,
    /// Neither, and why.
    Not(&'static str),
}

fn may_ask(has_sudo: bool, has_terminal: bool, is_ci: bool) -> May {
    match (has_sudo, has_terminal, is_ci) {
        (false, ..) => May::Not("only root may write it, and there is no sudo"),
        (true, _, true) => May::Try,
        (true, true, false) => May::Ask,
        (true, false, false) => {
            May::Not("only root may write it, and there is no terminal to ask for a password at")
        }
    }
}

/// Whether this is a CI system, with nobody to ask.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI")
        .is_some_and(|value| !value.is_empty() && value != "0" && value != "false")
}

/// What a person types to take an environment's block out where its file is gone, so that devenv can't be asked for it.
pub fn removal_by_hand(owner: Owner) -> anyhow::Result<String> {
    Ok(sudo(&Change::Remove(owner))?.by_hand)
}

/// The call of the helper, in its three forms.
struct Sudo {
    asking: Cmd,
    silent: Cmd,
    /// As a person can paste it into a shell.
    by_hand: String,
    /// How long the request is.
    length: usize,
}

fn sudo(change: &Change) -> anyhow::Result<Sudo> {
    use anyhow::Context as _;
    let program = std::env::current_exe().context("find devenv's own program")?;
    let request = serde_json::to_string(&change.request())?;
    let call = |options: &[&str]| {
        Cmd::new("sudo")
            .args(options.iter().copied())
            .arg("--")
            .arg(&program)
            .arg(HELPER)
            .stdin(request.clone())
    };
    let asking = call(&[]);
    Ok(Sudo {
        // No name holds a quote.
        by_hand: format!("printf %s '{request}' | {asking}"),
        silent: call(&["-n"]),
        asking,
        length: request.len(),
    })
}

/// What the helper would refuse needn't be asked of it.
fn refused_by_helper(change: &Change, sudo: &Sudo) -> Option<Obstacle> {
    if let Some(name) = change.refused_name(&helper::allowed_domains()) {
        let domain = name
            .as_str()
            .split_once('.')
            .map_or("", |(_, domain)| domain);
        return Some(Obstacle {
            reason: format!(
                "{name} could be somebody's real name, so root has to allow its domain first, in {}",
                helper::DOMAINS
            ),
            command: format!(
                "sudo mkdir -p /etc/devenv && echo {domain} | sudo tee -a {}",
                helper::DOMAINS
            ),
        });
    }
    (sudo.length as u64 > helper::LIMIT).then(|| Obstacle {
        reason: "these are more names than the helper takes".to_owned(),
        command: format!("sudoedit {HOSTS}"),
    })
}

/// macOS keeps answers, also the one that there is no such name.
pub(crate) async fn flush_caches(events: &Events, stop: &Stop) {
    if !cfg!(target_os = "macos") {
        return;
    }
    let step = events.step("the system's cache of names");
    let commands = [
        Cmd::new("dscacheutil").arg("-flushcache"),
        Cmd::new("killall").args(["-HUP", "mDNSResponder"]),
    ];
    for command in commands {
        // The block is in the file; answers that were kept die by themselves within minutes.
        let _ = exec::run(&command.quiet(), stop, &step).await;
    }
    step.done("emptied");
}

fn list(things: &[impl ToString]) -> String {
    let texts: Vec<String> = things.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_asked_for_only_where_somebody_can_type_it() {
        assert_eq!(may_ask(true, true, false), May::Ask);
        assert_eq!(may_ask(true, true, true), May::Try);
        assert_eq!(may_ask(true, false, true), May::Try);
        assert!(matches!(may_ask(true, false, false), May::Not(_)));
        assert!(matches!(may_ask(false, true, false), May::Not(_)));
        assert!(matches!(may_ask(false, false, true), May::Not(_)));
    }

    #[test]
    fn what_is_to_be_done_follows_from_the_file() {
        let wanted = Block {
            owner: Owner {
                name: "dev".parse().unwrap(),
                id: "0123456789ab".parse().unwrap(),
            },
            names: ["a.local", "b.local"]
                .map(|name| name.parse().unwrap())
                .into(),
            leads: Leads::Here { ipv6: false },
        };
        let check = |file: &[u8]| {
            let Look {
                state,
                conflicts,
                change,
                ..
            } = Look::new(file.to_owned(), &wanted);
            let change = match change {
                None => "nothing".to_owned(),
                Some(Change::Remove(_)) => "remove".to_owned(),
                Some(Change::Insert(block)) => {
                    format!("insert {}", block.lines().replace('\n', ";"))
                }
            };
            format!("{state:?}; {}; {change}", list(&conflicts))
        };
        let whole = hosts::insert(b"", &wanted).unwrap();
        let with_conflict = [&whole[..], b"10.0.0.1 a.local\n"].concat();
        let all_elsewhere = [&whole[..], b"10.0.0.1 a.local b.local\n"].concat();
        let files: [&[u8]; 7] = [
            b"",
            &whole,
            b"127.0.0.1 a.local b.local\n",
            b"127.0.0.1 a.local\n10.0.0.1 b.local\n",
            &with_conflict,
            &all_elsewhere,
            b"10.0.0.1 a.local b.local\n",
        ];
        insta::assert_snapshot!(files.map(check).join("\n"), @r"
        Absent; ; insert 127.0.0.1 a.local;127.0.0.1 b.local;
        Same; ; nothing
        Absent; ; nothing
        Absent; line 2 leads b.local to 10.0.0.1; insert 127.0.0.1 a.local;
        Differs; line 5 leads a.local to 10.0.0.1; insert 127.0.0.1 b.local;
        Differs; line 5 leads a.local to 10.0.0.1; line 5 leads b.local to 10.0.0.1; remove
        Absent; line 1 leads a.local to 10.0.0.1; line 1 leads b.local to 10.0.0.1; nothing
        ");
    }
}
