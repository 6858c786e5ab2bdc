//! As much of HTTP/1.1 as Docker's and Kubernetes' clients speak: requests one after the other over a connection, until an
//! answer takes the connection for itself.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::pin::Pin;

use serde_json::Value;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};

/// Whatever bytes go through.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(crate) type Connection = BufReader<Box<dyn Stream>>;
pub(crate) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
type Take = Box<dyn FnOnce(Connection) -> Work + Send>;

#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path's parts, decoded.
    pub(crate) path: Vec<String>,
    /// What stands behind the question mark, decoded.
    pub(crate) query: BTreeMap<String, String>,
    /// By names in small letters.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn asks(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

pub(crate) enum Reply {
    /// A status, more lines of the head, and the body.
    Whole(u16, String, Vec<u8>),
    /// A head, and what is done with the connection after it.
    Take(String, Take),
}

impl Reply {
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        let head = "Content-Type: application/json\r\n".to_owned();
        Self::Whole(status, head, body.to_string().into_bytes())
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self::Whole(status, String::new(), Vec::new())
    }

    /// The connection breaks off.
    pub(crate) fn gone() -> Self {
        Self::take(String::new(), |_| async {})
    }

    pub(crate) fn take<F: Future<Output = ()> + Send + 'static>(
        head: String,
        work: impl FnOnce(Connection) -> F + Send + 'static,
    ) -> Self {
        Self::Take(head, Box::new(|connection| Box::pin(work(connection))))
    }
}

/// Serves one connection.
pub(crate) async fn serve<F: Future<Output = Reply>>(
    stream: impl Stream + 'static,
    answer: impl Fn(Request) -> F,
) -> io::Result<()> {
    let mut connection: Connection = BufReader::new(Box::new(stream));
    while let Some(request) = read(&mut connection).await? {
        let is_head = request.method == "HEAD";
        match answer(request).await {
            Reply::Whole(status, head, body) => {
                // These have no body, and no length of one.
                let length = match status {
                    204 | 304 => String::new(),
                    _ => format!("Content-Length: {}\r\n", body.len()),
                };
                let mut bytes = format!("HTTP/1.1 {status} .\r\n{head}{length}\r\n").into_bytes();
                if !is_head {
                    bytes.extend(body);
                }
                connection.write_all(&bytes).await?;
                connection.flush().await?;
            }
            Reply::Take(head, work) => {
                connection.write_all(head.as_bytes()).await?;
                connection.flush().await?;
                work(connection).await;
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn read(connection: &mut Connection) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if connection.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(decoded)
            .collect(),
        query: query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (decoded(name), decoded(value)))
            .collect(),
        headers: BTreeMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut header = String::new();
        connection.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(':') else {
            break;
        };
        let name = name.to_ascii_lowercase();
        request.headers.insert(name, value.trim().to_owned());
    }
    if request.header("transfer-encoding") == "chunked" {
        loop {
            let mut size = String::new();
            connection.read_line(&mut size).await?;
            let size = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            read_exactly(connection, size, &mut request.body).await?;
            connection.read_line(&mut String::new()).await?;
            if size == 0 {
                break;
            }
        }
    } else if let Ok(length) = request.header("content-length").parse() {
        read_exactly(connection, length, &mut request.body).await?;
    }
    Ok(Some(request))
}

async fn read_exactly(
    connection: &mut Connection,
    count: u64,
    into: &mut Vec<u8>,
) -> io::Result<()> {
    let read = connection.take(count).read_to_end(into).await?;
    match read as u64 == count {
        true => Ok(()),
        // Whoever sent it has died: half a request is none.
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

pub(crate) fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap_or(b'0'), rest.next().unwrap_or(b'0')];
                u8::from_str_radix(&String::from_utf8_lossy(&digits), 16).unwrap_or_default()
            }
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
