//! Whether the names may lead to `::1` as well.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::tls::{self, Authority};

/// Long enough for a handshake on loopback.
const WITHIN: Duration = Duration::from_secs(2);

/// Whether `[::1]` at this port shows our certificate, or nobody is there: then programs go on to 127.0.0.1 at once. Without a
/// `::1` line some resolvers look for one for seconds; with one, somebody else's server there would be taken for ours.
pub async fn is_ours(port: u16, names: &BTreeSet<String>, authority: &Authority) -> bool {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let look = async {
        let socket = match TcpStream::connect(address).await {
            Ok(socket) => socket,
            // Anything else means that there is no IPv6 here at all.
            Err(error) => return error.kind() == ErrorKind::ConnectionRefused,
        };
        let Some(Ok(name)) = names.first().cloned().map(ServerName::try_from) else {
            return false;
        };
        let tls = TlsConnector::from(Arc::new(tls::client_config(authority)));
        tls.connect(name, socket).await.is_ok()
    };
    timeout(WITHIN, look).await.unwrap_or(false)
}
