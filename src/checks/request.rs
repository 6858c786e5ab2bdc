//! One HTTP request over a connection that is there already: a socket, TLS on it, or a port-forward into a pod.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Nothing that is asked for here is longer.
const LONGEST: usize = 4 << 20;

/// What came back.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    /// The headers.
    pub(super) headers: HeaderMap,
    /// The body.
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("the answer is no JSON: {}", self.beginning()))
    }

    /// The first part of the body in one line, for messages.
    pub(super) fn beginning(&self) -> String {
        let text = self.text();
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(200) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }

    /// The answer if its status is this one, else an error that tells what came instead.
    pub(super) fn expect(self, status: u16) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.status == status,
            "answered {} where {status} was expected: {}",
            self.status,
            self.beginning()
        );
        Ok(self)
    }
}

/// A GET of a path at a host.
pub(super) fn get(host: &str, path: &str) -> anyhow::Result<Request<String>> {
    Ok(Request::get(path)
        .header("host", host)
        .body(String::new())?)
}

/// A POST of a body of this type.
pub(super) fn post(
    host: &str,
    path: &str,
    kind: &str,
    body: String,
) -> anyhow::Result<Request<String>> {
    Ok(Request::post(path)
        .header("host", host)
        .header("content-type", kind)
        .body(body)?)
}

/// A form's fields, as a browser sends them.
pub(super) fn form(fields: &[(&str, &str)]) -> String {
    let fields = fields
        .iter()
        .map(|(key, value)| format!("{key}={}", percent(value)));
    fields.collect::<Vec<_>>().join("&")
}

/// Everything but letters, digits and `-._~` written as `%XX`.
pub(super) fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Sends the request, and reads the whole answer.
pub(super) async fn send<Connection>(
    connection: Connection,
    request: Request<String>,
) -> anyhow::Result<Answer>
where
    Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = handshake(TokioIo::new(connection)).await?;
    // It ends by itself as soon as the sender or the other side is gone.
    tokio::spawn(connection);
    let request = request.map(|body| Full::new(Bytes::from(body)));
    let (parts, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, LONGEST)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: body.to_bytes(),
    })
}

/// Sends the request in plain text to an address.
pub(super) async fn plain(address: SocketAddr, request: Request<String>) -> anyhow::Result<Answer> {
    send(connect(address).await?, request).await
}

/// Sends the request over TLS to an address, which must show a certificate for this name.
pub(super) async fn secure(
    address: SocketAddr,
    name: &str,
    tls: &Arc<rustls::ClientConfig>,
    request: Request<String>,
) -> anyhow::Result<Answer> {
    let socket = connect(address).await?;
    let server = ServerName::try_from(name.to_owned())?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(server, socket)
        .await
        .with_context(|| format!("TLS to {address} as {name}"))?;
    send(stream, request).await
}

async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    TcpStream::connect(address)
        .await
        .with_context(|| format!("connect to {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_escaped() {
        assert_eq!(
            form(&[("user", "a b"), ("password", "p&=é")]),
            "user=a%20b&password=p%26%3D%C3%A9"
        );
    }
}
