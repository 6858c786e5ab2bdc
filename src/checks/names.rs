//! The platform's names: that this machine's own resolver leads them here, quickly, and that the cluster's leads them to the
//! gateway.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use hickory_resolver::Resolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::{Ask as Asked, Check, Seen, World, pods};
use crate::environment::HostsFile;
use crate::error::Failure;
use crate::exec::{self, Cmd};
use crate::kube::text;

/// A right answer that comes later is a wrong one: some resolvers ask the whole network for `.local` names first.
const QUICK: Duration = Duration::from_secs(1);

/// CoreDNS answers by itself what it knows.
const CLUSTER_ANSWERS: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub(super) enum Ask {
    System(String),
    Cluster(BTreeSet<String>),
}

pub(super) fn checks(names: &BTreeSet<String>) -> Vec<Check> {
    let mut checks: Vec<Check> = names
        .iter()
        .map(|name| Check {
            name: format!("name {name}"),
            proves: format!("programs on this machine find {name} here, and at once"),
            how: "the system's own resolver, in a process of its own".to_owned(),
            of: &["gateway"],
            ask: Asked::Names(Ask::System(name.clone())),
        })
        .collect();
    if !names.is_empty() {
        checks.push(Check {
            name: "names in the cluster".to_owned(),
            proves:
                "pods find the same names at the gateway, so an issuer is one string everywhere"
                    .to_owned(),
            how: "CoreDNS is asked for each of them, by port-forward".to_owned(),
            of: &["gateway"],
            ask: Asked::Names(Ask::Cluster(names.clone())),
        });
    }
    checks
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<Seen> {
    match ask {
        Ask::System(name) => match world.environment().hosts {
            HostsFile::Off => Ok(Seen::Excluded("hosts: off".to_owned())),
            HostsFile::Auto | HostsFile::Print => system(world, name).await,
        },
        Ask::Cluster(names) => in_cluster(world, names).await.map(Seen::Well),
    }
}

/// A process of its own: a resolver inside this program may not be the one that other programs use.
async fn system(world: &World<'_>, name: &str) -> anyhow::Result<Seen> {
    let ask = match cfg!(target_os = "macos") {
        true => Cmd::new("dscacheutil").args(["-q", "host", "-a", "name", name]),
        false => Cmd::new("getent").args(["ahosts", name]),
    };
    let began = Instant::now();
    let ask = ask.deadline(Duration::from_secs(6)).quiet();
    let answer = exec::run(&ask, world.stop, world.step).await;
    let took = began.elapsed();
    let answer = match answer {
        Ok(output) => output.text(),
        // getent says that it found nothing by its exit status.
        Err(error) if is_exit_status(&error) => String::new(),
        Err(error) => return Err(error),
    };
    let addresses = addresses(&answer);
    if addresses.is_empty() {
        return Ok(Seen::NotWired(format!("{name} isn't known here")));
    }
    let is_right = |address: &&IpAddr| match world.docker {
        Some(_) => address.is_loopback(),
        None => world
            .door
            .as_ref()
            .is_some_and(|door| door.https.ip() == **address),
    };
    if let Some(other) = addresses.iter().find(|address| !is_right(address)) {
        return Ok(Seen::NotWired(format!("{name} leads to {other}")));
    }
    anyhow::ensure!(
        took < QUICK,
        "{name} was found only after {:.1} s: another resolver was asked first",
        took.as_secs_f64()
    );
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Ok(Seen::Well(addresses.join(", ")))
}

fn is_exit_status(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Failure::CommandFailed { .. }))
}

/// Every address in what getent or dscacheutil say.
fn addresses(answer: &str) -> BTreeSet<IpAddr> {
    answer
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

async fn in_cluster(world: &World<'_>, names: &BTreeSet<String>) -> anyhow::Result<String> {
    let service = crate::kube::get(
        world.client,
        "v1",
        "Service",
        "istio-ingress",
        "istio-ingressgateway",
    )
    .await?
    .context("there is no Service istio-ingress/istio-ingressgateway")?;
    let wanted: IpAddr = text(&service, "/spec/clusterIP")
        .parse()
        .context("the Service istio-ingress/istio-ingressgateway has no address in the cluster")?;
    let pod = pods::one(world.client, "kube-system", "k8s-app=kube-dns").await?;
    let listener = TcpListener::bind("127.0.0.1:0")
        .await
        .context("open a port on loopback")?;
    let port = listener.local_addr()?.port();
    let forward = async {
        loop {
            let (mut here, _) = listener.accept().await?;
            let mut there = pods::forward(world.client, "kube-system", &pod, 53).await?;
            tokio::spawn(async move { copy_bidirectional(&mut here, &mut there).await });
        }
        #[expect(unreachable_code, reason = "says what the loop would give")]
        anyhow::Ok(())
    };
    let look_up = async {
        let resolver = resolver_at(port)?;
        for name in names {
            let found = timeout(CLUSTER_ANSWERS, resolver.lookup_ip(format!("{name}.")))
                .await
                .with_context(|| {
                    format!("CoreDNS gives no answer for {name}, and asks others for it")
                })?
                .with_context(|| format!("ask CoreDNS for {name}"))?;
            let found: Vec<IpAddr> = found.iter().collect();
            anyhow::ensure!(
                found == [wanted],
                "CoreDNS leads {name} to {found:?} where the gateway's {wanted} was expected"
            );
        }
        anyhow::Ok(())
    };
    tokio::select! {
        looked = look_up => looked?,
        forwarded = forward => forwarded?,
    }
    Ok(format!("{} names to {wanted}", names.len()))
}

/// Asks the DNS server at this port of loopback, by TCP, and nobody else.
fn resolver_at(port: u16) -> anyhow::Result<Resolver<TokioRuntimeProvider>> {
    let mut connection = ConnectionConfig::tcp();
    connection.port = port;
    let server = NameServerConfig::new([127, 0, 0, 1].into(), true, vec![connection]);
    let config = ResolverConfig::from_name_servers(vec![server]);
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = CLUSTER_ANSWERS;
    options.attempts = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4Only; // the rewritten names have no other address
    options.use_hosts_file = ResolveHosts::Never;
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_in_what_both_programs_say() {
        let getent = "127.0.0.1       STREAM keycloak.local\n127.0.0.1       DGRAM\n::1 STREAM\n";
        let dscacheutil =
            "name: keycloak.local\nip_address: 127.0.0.1\n\nname: x\nipv6_address: ::1\n";
        let both: BTreeSet<IpAddr> = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()].into();
        assert_eq!(addresses(getent), both);
        assert_eq!(addresses(dscacheutil), both);
        assert_eq!(addresses(""), BTreeSet::new());
    }
}
