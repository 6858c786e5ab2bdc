//! How this machine finds names, and whether the platform's can be put where they are found first.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hickory_resolver::Resolver;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RecordType;

use super::{Finding, World};
use crate::environment::HostsFile;
use crate::error::Failure;
use crate::exec::{self, Cmd};
use crate::inputs::Inputs;
use crate::names::hosts::Leads;
use crate::names::{self, HOSTS, Look, hosts, hosts_file, windows};

/// An answer that takes longer is one that other resolvers were asked for first.
const QUICK: Duration = Duration::from_secs(1);
const GIVEN_UP: Duration = Duration::from_millis(1500);

pub(super) async fn look(world: &World<'_>) -> Vec<Finding> {
    let domain = match world.inputs {
        Some(inputs) => inputs.environment.domain.as_str(),
        None => "local",
    };
    let name = match world.inputs.and_then(|inputs| inputs.names.first()) {
        Some(name) => name.clone(),
        None => format!("devenv.{domain}"),
    };
    let (answer, servers) = tokio::join!(ask_the_system(world, &name), ask_the_servers(domain));
    let config = std::fs::read_to_string("/etc/nsswitch.conf").unwrap_or_default();
    let mut findings = vec![order(&config), lookup(&name, &answer)];
    let file = |pick: fn(&Inputs) -> &Path| {
        let file = world
            .inputs
            .map(pick)
            .map(|path| path.display().to_string());
        file.unwrap_or_else(|| "FILE".to_owned())
    };
    let files = (
        file(|inputs| &inputs.environment.file),
        file(|inputs| &inputs.environment.config),
    );
    findings.extend(servers_know(domain, &servers, &files));
    if let Some(inputs) = world.inputs {
        findings.extend(hosts_file(world, &inputs.names).await);
    }
    findings
}

/// How the system's resolver answered.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Found(BTreeSet<IpAddr>, Duration),
    None(Duration),
    Late,
    /// There is nobody to ask.
    Unknown(String),
}

/// In a process of its own: what is in this one may not be what other programs use.
async fn ask_the_system(world: &World<'_>, name: &str) -> Answer {
    let ask = match cfg!(target_os = "macos") {
        true => Cmd::new("dscacheutil").args(["-q", "host", "-a", "name", name]),
        false => Cmd::new("getent").args(["ahosts", name]),
    };
    let began = Instant::now();
    let ask = ask.deadline(GIVEN_UP).quiet();
    let answer = exec::run(&ask, &world.context.stop, world.step).await;
    match answer {
        Ok(output) => {
            let words = output.text();
            let found = words
                .split_whitespace()
                .filter_map(|word| word.parse().ok());
            Answer::Found(found.collect(), began.elapsed())
        }
        Err(error) => match error.downcast_ref() {
            Some(Failure::TimedOut { .. }) => Answer::Late,
            // getent says that it found nothing by its exit status.
            Some(Failure::CommandFailed { .. }) => Answer::None(began.elapsed()),
            _ => Answer::Unknown(format!("{error:#}")),
        },
    }
}

/// What the DNS servers of this machine know that they shouldn't.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Servers {
    /// They have a zone of the environment's domain.
    has_zone: bool,
    /// A search domain below which every name leads somewhere, and where.
    wildcard: Option<(String, IpAddr)>,
}

async fn ask_the_servers(domain: &str) -> Servers {
    let Ok((config, _)) = hickory_resolver::system_conf::read_system_conf() else {
        return Servers::default();
    };
    let search = config.search().iter().chain(config.domain());
    let search: Vec<String> = search.map(ToString::to_string).collect();
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = Duration::from_millis(500);
    options.attempts = 1;
    options.use_hosts_file = ResolveHosts::Never;
    let Ok(resolver) = builder.build() else {
        return Servers::default();
    };
    let zone = async {
        let found = resolver.lookup(format!("{domain}."), RecordType::SOA).await;
        found.is_ok_and(|found| !found.answers().is_empty())
    };
    let wildcard = async {
        let own = search
            .iter()
            .find(|name| name.trim_end_matches('.').contains('.'))?;
        // A name that nobody has.
        let label = format!("devenv-{:08x}.{own}", std::process::id());
        let found = resolver.lookup_ip(label).await.ok()?;
        Some((own.trim_end_matches('.').to_owned(), found.iter().next()?))
    };
    let (has_zone, wildcard) = tokio::join!(zone, wildcard);
    Servers { has_zone, wildcard }
}

/// Whether the hosts file is asked, and asked first.
fn order(config: &str) -> Finding {
    let name = "name lookup";
    let line = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("hosts:"));
    let Some(line) = line else {
        return Finding::fine(name, "the hosts file first");
    };
    let sources: Vec<&str> = line
        .split_whitespace()
        .filter(|word| !word.starts_with('[') && !word.ends_with(']'))
        .collect();
    let line = line.trim();
    let others: Vec<&str> = line
        .split_whitespace()
        .filter(|word| *word != "files")
        .collect();
    let edit = format!(
        "sudo sed -i 's/^hosts:.*/hosts: files {}/' /etc/nsswitch.conf",
        others.join(" ")
    );
    match sources.iter().position(|source| *source == "files") {
        None => {
            let saw = format!(
                "/etc/nsswitch.conf says `hosts: {line}`: nobody asks the hosts file, where the platform's names go"
            );
            Finding::slows(name, saw).remedy(edit)
        }
        // What asks nobody on the network may well come first.
        Some(place)
            if sources[..place].iter().any(|source| {
                source.starts_with("mdns") || ["dns", "resolve", "wins"].contains(source)
            }) =>
        {
            let saw = format!(
                "/etc/nsswitch.conf says `hosts: {line}`: {} is asked before the hosts file, for seconds at each name",
                sources[0]
            );
            Finding::slows(name, saw).remedy(edit)
        }
        Some(_) => Finding::fine(name, format!("hosts: {line}")),
    }
}

fn lookup(asked: &str, answer: &Answer) -> Finding {
    let name = "name lookup";
    let slow = |took: String| {
        let saw = format!(
            "the answer for {asked} takes {took}: the whole network is asked for it first, as mDNS does for .local"
        );
        Finding::slows(name, saw).remedy(format!("time getent ahosts {asked}"))
    };
    let seconds = |took: &Duration| format!("{:.1} s", took.as_secs_f32());
    match answer {
        Answer::Late => slow(format!("more than {}", seconds(&GIVEN_UP))),
        Answer::Found(_, took) | Answer::None(took) if *took > QUICK => slow(seconds(took)),
        Answer::Found(addresses, _) => match addresses.iter().find(|one| !one.is_loopback()) {
            Some(other) => {
                let saw = format!(
                    "{asked} leads to {other} now, and not here: somebody on the network has that name"
                );
                Finding::information(name, saw).remedy(format!("getent ahosts {asked}"))
            }
            None => Finding::fine(name, format!("{asked} leads here")),
        },
        Answer::None(_) => Finding::fine(
            name,
            format!("{asked} isn't known, and that is known at once"),
        ),
        Answer::Unknown(why) => Finding::information(name, format!("can't be tried: {why}")),
    }
}

/// The files are the environment's and its cluster config's.
fn servers_know(
    domain: &str,
    servers: &Servers,
    (environment, config): &(String, String),
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if servers.has_zone {
        let saw = format!(
            "the DNS servers here have a zone `{domain}`: a name of the platform that the hosts file lacks is looked for there"
        );
        findings.push(
            Finding::information("zone", saw)
                .remedy(format!("sed -i 's/^domain:.*/domain: test/' {environment}")),
        );
    }
    if let Some((search, address)) = &servers.wildcard {
        let saw = format!(
            "every name below the search domain {search} leads to {address}, and pods search there too: they would find \
             {address} for names outside"
        );
        findings.push(Finding::slows("search domain", saw).remedy(format!(
            "sed -i '/^apiVersion:/a networking: {{dnsSearch: []}}' {config}"
        )));
    }
    if findings.is_empty() {
        let saw = format!("the DNS servers here don't know `{domain}`");
        findings.push(Finding::fine("zone", saw));
    }
    findings
}

/// Whether the names can be written where they belong, and what is in their way there.
async fn hosts_file(world: &World<'_>, wanted: &BTreeSet<String>) -> Vec<Finding> {
    let name = "hosts file";
    let Some(inputs) = world.inputs else {
        return Vec::new();
    };
    let environment = &inputs.environment;
    if environment.hosts != HostsFile::Auto || wanted.is_empty() {
        return vec![Finding::fine(name, "left alone, as the environment has it")];
    }
    if environment.existing.is_some() {
        let saw = "only the cluster knows where the names are to lead; devenv hosts show asks it";
        return vec![Finding::information(name, saw)];
    }
    let (block, _) = names::block(environment, wanted, Leads::Here { ipv6: false });
    let look = match Look::at(&block) {
        Ok(look) => look,
        Err(error) => {
            return vec![
                Finding::slows(name, format!("{error:#}")).remedy(format!("ls -l {HOSTS}")),
            ];
        }
    };
    let mut findings = Vec::new();
    let edit = format!("sudoedit {HOSTS}");
    if let hosts::State::Torn(torn) = &look.state {
        let saw = format!("{torn}; so the block of {} is left alone", environment.name);
        findings.push(Finding::slows(name, saw).remedy(&edit));
    }
    for conflict in &look.conflicts {
        let saw = format!("{conflict}, and that line isn't devenv's to change");
        findings.push(Finding::slows(name, saw).remedy(&edit));
    }
    let may_write = nix::unistd::geteuid().is_root() || hosts_file::may_write(Path::new(HOSTS));
    match (look.change, may_write, which::which("sudo").is_ok()) {
        (None, ..) if findings.is_empty() => {
            findings.push(Finding::fine(name, "nothing is to be written"));
        }
        (None, ..) => {}
        (Some(_), true, _) => findings.push(Finding::fine(name, "this user may write it")),
        (Some(_), false, true) => findings.push(
            Finding::information(name, "only root may write it: sudo will ask for a password, once")
                .remedy("devenv hosts apply"),
        ),
        (Some(_), false, false) => findings.push(
            Finding::slows(
                name,
                "only root may write it, and there is no sudo: the names won't be wired (exit code 4)",
            )
            .remedy("devenv hosts show"),
        ),
    }
    if let Some(line) = windows::notice(&block) {
        findings.push(Finding::information("windows", line));
    }
    findings
}
