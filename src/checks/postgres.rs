//! PostgreSQL: its version, three instances, and that what is written at the primary arrives at the replicas.

use anyhow::Context as _;
use serde_json::Value;

use super::{Ask as Asked, Check, World, pods};
use crate::kube::{get, text};

pub(super) const NAMESPACE: &str = "iam-system";
pub(super) const LABELS: &str = "cnpg.io/cluster=keycloak-db";
const PRIMARY: &str = "cnpg.io/cluster=keycloak-db,cnpg.io/instanceRole=primary";
const REPLICA: &str = "cnpg.io/cluster=keycloak-db,cnpg.io/instanceRole=replica";

#[derive(Debug, Clone)]
pub(super) enum Ask {
    Version,
    Instances,
    Streaming,
    Replica,
}

pub(super) fn checks() -> Vec<Check> {
    let check = |name: &str, proves: &str, how: &str, ask| Check {
        name: format!("postgres {name}"),
        proves: proves.to_owned(),
        how: how.to_owned(),
        of: &["keycloak-db"],
        ask: Asked::Postgres(ask),
    };
    vec![
        check(
            "version",
            "the database is PostgreSQL 18",
            "`show server_version` at the primary",
            Ask::Version,
        ),
        check(
            "instances",
            "all instances that the Cluster asks for are ready",
            "spec.instances and status.readyInstances of Cluster iam-system/keycloak-db",
            Ask::Instances,
        ),
        check(
            "streaming",
            "every replica streams from the primary",
            "pg_stat_replication at the primary",
            Ask::Streaming,
        ),
        check(
            "row on a replica",
            "what Keycloak wrote is on a replica",
            "the realm master in the table realm, read at a replica that is in recovery",
            Ask::Replica,
        ),
    ]
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    match ask {
        Ask::Version => {
            let version = query(world, PRIMARY, "postgres", "show server_version").await?;
            anyhow::ensure!(
                version.starts_with("18"),
                "the version is {version} where 18 was expected"
            );
            Ok(version)
        }
        Ask::Instances => {
            let cluster = database(world).await?;
            let (ready, wanted) = (
                number(&cluster, "/status/readyInstances"),
                number(&cluster, "/spec/instances"),
            );
            anyhow::ensure!(
                ready == wanted && wanted >= 3,
                "{ready} of {wanted} instances are ready, at least 3 were expected: {}",
                text(&cluster, "/status/phase")
            );
            Ok(format!("{ready} of {wanted}"))
        }
        Ask::Streaming => {
            let cluster = database(world).await?;
            let wanted = number(&cluster, "/spec/instances") - 1;
            let count = "select count(*) from pg_stat_replication where state = 'streaming'";
            let streaming = query(world, PRIMARY, "postgres", count).await?;
            anyhow::ensure!(
                streaming == wanted.to_string(),
                "{streaming} of {wanted} replicas stream from the primary"
            );
            Ok(format!("{streaming} of {wanted}"))
        }
        Ask::Replica => {
            let rows =
                "select pg_is_in_recovery(), (select count(*) from realm where name = 'master')";
            let row = query(world, REPLICA, "keycloak", rows).await?;
            anyhow::ensure!(
                row == "t|1",
                "in recovery | realms named master: `{row}` where `t|1` was expected"
            );
            Ok("realm master".to_owned())
        }
    }
}

async fn database(world: &World<'_>) -> anyhow::Result<Value> {
    get(
        world.client,
        "postgresql.cnpg.io/v1",
        "Cluster",
        NAMESPACE,
        "keycloak-db",
    )
    .await?
    .context("there is no Cluster iam-system/keycloak-db")
}

fn number(cluster: &Value, pointer: &str) -> i64 {
    cluster
        .pointer(pointer)
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

async fn query(
    world: &World<'_>,
    labels: &str,
    database: &str,
    query: &str,
) -> anyhow::Result<String> {
    let pod = pods::one(world.client, NAMESPACE, labels).await?;
    let command = [
        "psql", "-X", "-U", "postgres", "-d", database, "-A", "-t", "-c", query,
    ];
    let answer = pods::exec(world.client, NAMESPACE, &pod, "postgres", &command).await?;
    Ok(answer.trim().to_owned())
}
