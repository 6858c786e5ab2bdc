//! Logs: that a line goes in and is found again, that the pods' lines arrive with namespace, pod and container, and that
//! they can be looked at.
//!
//! Loki, Promtail and Grafana; or VictoriaLogs with vlagent, where it stands in for them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::Request;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::request::{Answer, get, percent, post};
use super::{Ask as Asked, Check, World, pods};
use crate::gitops::provide::random_text;

pub(super) const NAMESPACE: &str = "observability-system";
pub(super) const LOKI: &str = "app.kubernetes.io/name=loki";
pub(super) const VICTORIA: &str = "app.kubernetes.io/name=victoria-logs";
const LOKI_PORT: u16 = 3100;
const VICTORIA_PORT: u16 = 9428;
/// A line that went in isn't found at once: VictoriaLogs and Loki gather lines for about a second.
const LOOKS: usize = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub(super) enum Ask {
    LokiReady,
    LokiLine,
    PromtailLabels,
    GrafanaHealth,
    GrafanaDatasource,
    GrafanaQuery,
    VictoriaLine,
    VictoriaLabels,
    VictoriaPage,
}

pub(super) fn checks() -> Vec<Check> {
    let check = |of: &'static [&'static str], name: &str, proves: &str, how: &str, ask| Check {
        name: format!("logs {name}"),
        proves: proves.to_owned(),
        how: how.to_owned(),
        of,
        ask: Asked::Logs(ask),
    };
    vec![
        check(
            &["loki"],
            "loki ready",
            "Loki takes and gives lines",
            "GET /ready at its port, by port-forward",
            Ask::LokiReady,
        ),
        check(
            &["loki"],
            "loki line",
            "a line that is pushed is found again",
            "POST /loki/api/v1/push of one line, then a query for it, by port-forward",
            Ask::LokiLine,
        ),
        check(
            &["promtail", "loki"],
            "promtail labels",
            "lines of iam-system's pods arrive with the labels namespace, pod and container",
            "a query of Loki's for {namespace=\"iam-system\"}, by port-forward",
            Ask::PromtailLabels,
        ),
        check(
            &["grafana", "gateway"],
            "grafana health",
            "Grafana and its database are up",
            "GET https://grafana.<domain>/api/health",
            Ask::GrafanaHealth,
        ),
        check(
            &["grafana", "gateway"],
            "grafana datasource",
            "the login is the one in grafana-admin, and Grafana reaches Loki",
            "GET https://grafana.<domain>/api/datasources/uid/loki/health",
            Ask::GrafanaDatasource,
        ),
        check(
            &["grafana", "gateway"],
            "grafana query",
            "a query through Grafana gives lines of iam-system",
            "POST https://grafana.<domain>/api/ds/query",
            Ask::GrafanaQuery,
        ),
        check(
            &["victorialogs"],
            "victorialogs line",
            "a line that is pushed is found again",
            "POST /insert/jsonline of one line, then a query for it, by port-forward",
            Ask::VictoriaLine,
        ),
        check(
            &["victorialogs", "gateway"],
            "vlagent labels",
            "lines of iam-system's pods arrive with namespace, pod and container",
            "a query at https://logs.<domain>/select/logsql/query",
            Ask::VictoriaLabels,
        ),
        check(
            &["victorialogs", "gateway"],
            "victorialogs page",
            "the logs can be looked at in a browser",
            "GET https://logs.<domain>/select/vmui/ is a page",
            Ask::VictoriaPage,
        ),
    ]
}

pub(super) async fn run(world: &World<'_>, ask: &Ask) -> anyhow::Result<String> {
    match ask {
        Ask::LokiReady => {
            let answer = loki(world, get("localhost", "/ready")?)
                .await?
                .expect(200)?;
            Ok(answer.beginning())
        }
        Ask::LokiLine => loki_line(world).await,
        Ask::PromtailLabels => promtail_labels(world).await,
        Ask::GrafanaHealth => {
            let host = world.host("grafana");
            let answer = world.door()?.get(&host, "/api/health").await?;
            let answer = answer.expect(200)?.json()?;
            anyhow::ensure!(answer["database"] == "ok", "it says {answer}");
            Ok("ok".to_owned())
        }
        Ask::GrafanaDatasource => {
            let path = "/api/datasources/uid/loki/health";
            let answer = grafana(world, Request::get(path), String::new()).await?;
            let answer = answer.expect(200)?.json()?;
            anyhow::ensure!(answer["status"] == "OK", "it says {answer}");
            Ok("OK".to_owned())
        }
        Ask::GrafanaQuery => grafana_query(world).await,
        Ask::VictoriaLine => victoria_line(world).await,
        Ask::VictoriaLabels => victoria_labels(world).await,
        Ask::VictoriaPage => {
            let host = world.host("logs");
            let answer = world.door()?.get(&host, "/select/vmui/").await?;
            let answer = answer.expect(200)?;
            anyhow::ensure!(
                answer.text().to_lowercase().contains("<html"),
                "it is no page: {}",
                answer.beginning()
            );
            Ok("a page".to_owned())
        }
    }
}

/// A word that no other line has.
fn word_of_its_own() -> anyhow::Result<String> {
    Ok(random_text()?[..16].to_owned())
}

async fn loki(world: &World<'_>, request: Request<String>) -> anyhow::Result<Answer> {
    let pod = pods::one(world.client, NAMESPACE, LOKI).await?;
    pods::ask(world.client, NAMESPACE, &pod, LOKI_PORT, request).await
}

async fn loki_line(world: &World<'_>) -> anyhow::Result<String> {
    let word = word_of_its_own()?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)?
        .as_nanos()
        .to_string();
    let line = json!({"streams": [{
        "stream": {"job": "devenv-check"},
        "values": [[now, format!("devenv check {word}")]],
    }]});
    let push = post(
        "localhost",
        "/loki/api/v1/push",
        "application/json",
        line.to_string(),
    )?;
    loki(world, push).await?.expect(204)?;
    let query = format!("{{job=\"devenv-check\"}} |= \"{word}\"");
    for _ in 0..LOOKS {
        if !loki_streams(world, &query).await?.is_empty() {
            return Ok("found".to_owned());
        }
        sleep(BETWEEN_LOOKS).await;
    }
    anyhow::bail!("the line that was pushed isn't found")
}

async fn loki_streams(world: &World<'_>, query: &str) -> anyhow::Result<Vec<Value>> {
    let path = format!("/loki/api/v1/query_range?limit=1&query={}", percent(query));
    let answer = loki(world, get("localhost", &path)?).await?.expect(200)?;
    let mut answer = answer.json()?;
    Ok(match answer["data"]["result"].take() {
        Value::Array(streams) => streams,
        _ => Vec::new(),
    })
}

async fn promtail_labels(world: &World<'_>) -> anyhow::Result<String> {
    let streams = loki_streams(world, "{namespace=\"iam-system\"}").await?;
    let stream = streams
        .first()
        .context("there is no line of iam-system in Loki")?;
    has_labels(&stream["stream"], ["namespace", "pod", "container"])
}

fn has_labels(line: &Value, labels: [&str; 3]) -> anyhow::Result<String> {
    let mut seen = Vec::new();
    for label in labels {
        let value = line[label].as_str().unwrap_or_default();
        anyhow::ensure!(!value.is_empty(), "a line has no {label}: {line}");
        seen.push(value);
    }
    Ok(seen.join(" "))
}

async fn grafana(
    world: &World<'_>,
    request: http::request::Builder,
    body: String,
) -> anyhow::Result<Answer> {
    let host = world.host("grafana");
    let secret = world.secret(NAMESPACE, "grafana-admin").await?;
    let key = |key: &str| {
        secret
            .get(key)
            .with_context(|| format!("grafana-admin has no key `{key}`"))
    };
    let login = BASE64.encode(format!("{}:{}", key("admin-user")?, key("admin-password")?));
    let request = request
        .header("host", &host)
        .header("authorization", format!("Basic {login}"))
        .header("content-type", "application/json")
        .body(body)?;
    world.door()?.ask(&host, request).await
}

async fn grafana_query(world: &World<'_>) -> anyhow::Result<String> {
    let body = json!({
        "from": "now-1h", "to": "now",
        "queries": [{
            "refId": "A", "datasource": {"uid": "loki"}, "expr": "{namespace=\"iam-system\"}", "maxLines": 1,
        }],
    });
    let answer = grafana(world, Request::post("/api/ds/query"), body.to_string()).await?;
    let answer = answer.expect(200)?.json()?;
    let lines = answer
        .pointer("/results/A/frames/0/data/values/0")
        .and_then(Value::as_array)
        .map_or(0, Vec::len);
    anyhow::ensure!(lines > 0, "the query through Grafana gives no line");
    Ok("a line".to_owned())
}

async fn victoria(world: &World<'_>, request: Request<String>) -> anyhow::Result<Answer> {
    let pod = pods::one(world.client, NAMESPACE, VICTORIA).await?;
    pods::ask(world.client, NAMESPACE, &pod, VICTORIA_PORT, request).await
}

async fn victoria_line(world: &World<'_>) -> anyhow::Result<String> {
    let word = word_of_its_own()?;
    // The time 0 stands for now.
    let line = json!({"_msg": format!("devenv check {word}"), "_time": "0", "job": "devenv-check"});
    let path = "/insert/jsonline?_stream_fields=job";
    let push = post(
        "localhost",
        path,
        "application/stream+json",
        format!("{line}\n"),
    )?;
    victoria(world, push).await?.expect(200)?;
    let query = percent(&format!("_time:5m job:=devenv-check {word}"));
    for _ in 0..LOOKS {
        let path = format!("/select/logsql/query?limit=1&query={query}");
        let found = victoria(world, get("localhost", &path)?)
            .await?
            .expect(200)?;
        if found.text().contains(&word) {
            return Ok("found".to_owned());
        }
        sleep(BETWEEN_LOOKS).await;
    }
    anyhow::bail!("the line that was pushed isn't found")
}

async fn victoria_labels(world: &World<'_>) -> anyhow::Result<String> {
    let host = world.host("logs");
    let query = percent("kubernetes.pod_namespace:=\"iam-system\"");
    let path = format!("/select/logsql/query?limit=1&query={query}");
    let answer = world.door()?.get(&host, &path).await?.expect(200)?;
    let answer = answer.text();
    let line = answer
        .lines()
        .next()
        .context("there is no line of iam-system in VictoriaLogs")?;
    has_labels(
        &serde_json::from_str(line)?,
        [
            "kubernetes.pod_namespace",
            "kubernetes.pod_name",
            "kubernetes.container_name",
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_needs_all_three_labels() {
        let labels = ["namespace", "pod", "container"];
        let line = json!({"namespace": "iam-system", "pod": "a", "container": "b"});
        assert_eq!(has_labels(&line, labels).unwrap(), "iam-system a b");
        let line = json!({"namespace": "iam-system", "pod": "a"});
        assert!(has_labels(&line, labels).is_err());
    }
}
