//! Certificates for the platform's names: a CA for each domain, kept on this machine over every reset, and one certificate
//! signed by it for each environment.
//!
//! The CA can sign for its domain and for `localhost`, and for nothing else: that stands in it, and clients enforce it. A
//! stolen key opens the platform's own names and no bank. It lives in `ca/<domain>/` of the user's data folder, readable by
//! that user only, and comes into the stores of the system and the browsers only when asked ([`crate::trust`]).
//!
//! Whether the cluster's certificate is still good is decided as a client would: by rustls's own verifier with this CA as its
//! only root, for every name, now and thirty days from now. Nothing here takes certificates of servers apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PublicKeyData as _,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use serde_json::{Value, json};

use crate::environment::{Domain, is_dns_label};
use crate::error::Failure;
use crate::kube::text;
use crate::paths::{Paths, private_folder, write_private};

/// The namespace of the gateway, where Istio looks for the certificate.
pub const NAMESPACE: &str = "istio-ingress";
/// The name by which the Gateway asks for the certificate.
pub const SECRET: &str = "platform-tls";

const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca-key.pem";

/// Long, because each new CA has to be trusted by hand.
const LIFE_OF_A_CA: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// Short, because nobody has to do anything for a new one.
const LIFE_OF_A_CERTIFICATE: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// What is left of a life when its end is near.
const NEAR: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How far the clocks of the nodes and of whoever looks may be behind ours.
const SKEW: Duration = Duration::from_secs(60 * 60);

/// The CA of a domain: its certificate, which everybody may see, and its key, which nothing shows.
pub struct Authority {
    domain: Domain,
    file: PathBuf,
    name: String,
    pem: String,
    certificate: CertificateDer<'static>,
    until: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    verifier: Arc<WebPkiServerVerifier>,
    news: Option<String>,
}

/// The CA of this domain, made if there is none yet or its end is near. A damaged one is an error and stays as it is, since
/// people may have trusted it.
pub fn authority(paths: &Paths, domain: &Domain) -> anyhow::Result<Authority> {
    load_or_make(
        &paths.authority(domain.as_str()),
        domain,
        SystemTime::now(),
        &holder(),
    )
}

/// The CA of this domain, if there is one. Makes nothing.
pub fn find(paths: &Paths, domain: &Domain) -> anyhow::Result<Option<Authority>> {
    load(&paths.authority(domain.as_str()), domain)
}

/// Where the certificate of this domain's CA is, or will be.
pub fn certificate_file(paths: &Paths, domain: &Domain) -> PathBuf {
    paths.authority(domain.as_str()).join(CERTIFICATE)
}

impl Authority {
    /// The file of its certificate, for programs that take one, such as curl.
    pub fn certificate_file(&self) -> &Path {
        &self.file
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Its certificate as text.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The name in its certificate, by which people find it in their stores: "devenv CA for local (me@laptop)".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When it ends.
    pub fn until(&self) -> SystemTime {
        self.until
    }

    /// What people should be told about it: that it isn't the one that they trusted.
    pub fn news(&self) -> Option<&str> {
        self.news.as_deref()
    }

    /// The line that shows a name to somebody who trusts the CA nowhere.
    pub fn curl(&self, name: &str) -> String {
        curl(&self.file, name)
    }
}

/// The key is in nobody's log.
impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Authority")
            .field("name", &self.name)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// The line that shows a name to somebody who has the CA's certificate in this file and trusts it nowhere.
pub fn curl(file: &Path, name: &str) -> String {
    let file = file.display().to_string();
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    let file = match file.chars().all(plain) {
        true => file,
        false => format!("'{}'", file.replace('\'', r"'\''")),
    };
    format!("curl --cacert {file} https://{name}/")
}

/// What a client needs that trusts this CA and no other.
pub fn client_config(authority: &Authority) -> rustls::ClientConfig {
    rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions of TLS")
        .with_webpki_verifier(Arc::clone(&authority.verifier))
        .with_no_client_auth()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The name that leads to the same place on machines whose names nobody wired: browsers, curl and systemd-resolved take
/// everything below `localhost` to the machine itself. `keycloak.local` has `keycloak.localhost`.
pub fn fallback(name: &str, domain: &Domain) -> String {
    if labels_below(name, "localhost").is_some() {
        return name.to_owned();
    }
    match labels_below(name, domain.as_str()) {
        Some(labels) => format!("{labels}localhost"),
        None => format!("{name}.localhost"),
    }
}

/// What stands before the domain in a name, with its dot; nothing before the domain itself.
fn labels_below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    name.strip_suffix(domain)
        .filter(|labels| labels.is_empty() || labels.ends_with('.'))
}

/// The Secret that the gateway's certificate is to be in, or `None` where the live one serves every name for thirty days
/// more, or isn't devenv's: a team may bring its own. Names outside of the domain are left out, as this CA can't sign them.
pub fn secret(
    authority: &Authority,
    names: &BTreeSet<String>,
    live: Option<&Value>,
    now: SystemTime,
) -> anyhow::Result<Option<Value>> {
    let names = covered(names, &authority.domain);
    if let Some(live) = live
        && (!is_ours(live) || serves(authority, &names, live, now).is_ok())
    {
        return Ok(None);
    }
    let (chain, key) = sign(authority, &names, now).context("make the gateway's certificate")?;
    let data = BTreeMap::from([("tls.crt", chain), ("tls.key", key)]);
    let data: BTreeMap<_, _> = data
        .into_iter()
        .map(|(key, text)| (key, ByteString(text.into_bytes())))
        .collect();
    Ok(Some(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {
            "name": SECRET, "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/managed-by": "devenv"},
        },
        "data": data,
    })))
}

fn is_ours(live: &Value) -> bool {
    text(live, "/metadata/labels/app.kubernetes.io~1managed-by") == "devenv"
}

/// What the certificate is to be good for: the names that the CA can sign, the fallback of each, and `localhost` itself.
fn covered(names: &BTreeSet<String>, domain: &Domain) -> BTreeSet<String> {
    let mut covered = BTreeSet::from(["localhost".to_owned()]);
    for name in names.iter().filter(|name| is_permitted(name, domain)) {
        covered.insert(fallback(name, domain));
        covered.insert(name.clone());
    }
    covered
}

fn is_permitted(name: &str, domain: &Domain) -> bool {
    let is_below = |domain: &str| labels_below(name, domain).is_some();
    name.split('.').all(is_dns_label) && (is_below(domain.as_str()) || is_below("localhost"))
}

/// Whether what the live Secret holds is accepted for every name by whoever trusts this CA, now and when its end would be
/// near.
fn serves(
    authority: &Authority,
    names: &BTreeSet<String>,
    live: &Value,
    now: SystemTime,
) -> anyhow::Result<()> {
    let live: Secret = serde_json::from_value(live.clone())?;
    let data = live.data.unwrap_or_default();
    let part = |key: &str| data.get(key).with_context(|| format!("no {key}"));
    let chain =
        CertificateDer::pem_slice_iter(&part("tls.crt")?.0).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&part("tls.key")?.0)?;
    CertifiedKey::from_der(chain.clone(), key, &provider())?; // fails where the two don't fit
    let (certificate, above) = chain.split_first().context("no certificate")?;
    for at in [now, now + NEAR] {
        let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH)?);
        for name in names {
            let name = ServerName::try_from(name.as_str())?;
            authority
                .verifier
                .verify_server_cert(certificate, above, &name, &[], at)?;
        }
    }
    Ok(())
}

/// A certificate for these names with the CA's behind it, and its key; both PEM.
fn sign(
    authority: &Authority,
    names: &BTreeSet<String>,
    now: SystemTime,
) -> anyhow::Result<(String, String)> {
    let mut leaf = CertificateParams::new(Vec::from_iter(names.iter().cloned()))?;
    leaf.distinguished_name = common_name(&format!("devenv for {}", authority.domain));
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    live_from(&mut leaf, now, LIFE_OF_A_CERTIFICATE);
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &authority.issuer)?;
    Ok((
        format!("{}{}", certificate.pem(), authority.pem),
        key.serialize_pem(),
    ))
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn live_from(params: &mut CertificateParams, now: SystemTime, life: Duration) {
    let at = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        rcgen::date_time_ymd(1970, 1, 1) + since.unwrap_or_default()
    };
    params.not_before = at(now - SKEW);
    params.not_after = at(now + life);
}

/// The name of the user that runs this, or the number.
pub fn user() -> String {
    let user = nix::unistd::geteuid();
    match nix::unistd::User::from_uid(user) {
        Ok(Some(known)) => known.name,
        _ => user.to_string(),
    }
}

/// "me@laptop".
fn holder() -> String {
    let user = user();
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{user}@{}", host.to_string_lossy())
}

/// The certificate and the key of a new CA; both PEM.
fn make(domain: &Domain, now: SystemTime, holder: &str) -> anyhow::Result<(String, String)> {
    let mut permitted = vec![GeneralSubtree::DnsName(domain.to_string())];
    if domain.as_str() != "localhost" {
        permitted.push(GeneralSubtree::DnsName("localhost".to_owned()));
    }
    let addresses = [
        CidrSubnet::V4(Ipv4Addr::UNSPECIFIED.octets(), [0; 4]),
        CidrSubnet::V6(Ipv6Addr::UNSPECIFIED.octets(), [0; 16]),
    ];
    let mut ca = CertificateParams::new(Vec::new())?;
    // X.509 allows 64 characters here.
    let name = format!("devenv CA for {domain} ({holder})");
    ca.distinguished_name = common_name(&name.chars().take(64).collect::<String>());
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.name_constraints = Some(NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: addresses.map(GeneralSubtree::IpAddress).into(),
    });
    live_from(&mut ca, now, LIFE_OF_A_CA);
    let key = KeyPair::generate()?;
    Ok((ca.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// What is in the folder, if that has a future; else what is made into it.
///
/// The two files come and go as one: they are made in a folder beside and renamed with it. Two processes at once take turns,
/// and a killed one leaves a folder that the next removes.
fn load_or_make(
    folder: &Path,
    domain: &Domain,
    now: SystemTime,
    holder: &str,
) -> anyhow::Result<Authority> {
    let above = folder.parent().unwrap_or(Path::new("/"));
    private_folder(above)?;
    let what = || format!("make the CA of {domain} in {}", folder.display());
    let turn = fs::File::open(above).with_context(what)?;
    turn.lock().with_context(what)?;
    remove_leftovers(above).with_context(what)?;
    let former = load(folder, domain)?;
    if let Some(found) = &former
        && found.until > now + NEAR
    {
        return former.context("it was there");
    }

    let (certificate, key) = make(domain, now, holder).with_context(what)?;
    let scratch = tempfile::Builder::new()
        .prefix(NEW)
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir_in(above)
        .with_context(what)?;
    write_private(&scratch.path().join(KEY), key.as_bytes())?;
    write_private(&scratch.path().join(CERTIFICATE), certificate.as_bytes())?;
    if former.is_some() {
        fs::remove_dir_all(folder).with_context(what)?;
    }
    fs::rename(scratch.path(), folder).with_context(what)?;
    let _ = scratch.keep(); // it is where it belongs
    let _ = turn.sync_all();

    let mut made = load(folder, domain)?.with_context(what)?;
    made.news = former.map(|former| {
        format!(
            "the CA of {domain} ends on {}, so there is a new one in {}; where the old one was trusted: devenv trust install",
            day(former.until),
            folder.display()
        )
    });
    Ok(made)
}

/// The beginning of the names of folders in which a CA is being made.
const NEW: &str = ".new-";

fn remove_leftovers(above: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(above)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(NEW) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// "2036-11-22".
pub fn day(time: SystemTime) -> String {
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate(10);
    text
}

fn load(folder: &Path, domain: &Domain) -> anyhow::Result<Option<Authority>> {
    let read = |name: &str| {
        let path = folder.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Some(String::new())),
            Err(error) => {
                Err(error).with_context(|| format!("read the CA of {domain} in {}", path.display()))
            }
        }
    };
    let found = match (read(CERTIFICATE)?, read(KEY)?) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => parse(folder, domain, &certificate, &key),
        (None, Some(_)) => Err(anyhow::anyhow!("{CERTIFICATE} is missing")),
        (Some(_), None) => Err(anyhow::anyhow!("{KEY} is missing")),
    };
    let found = found.map_err(|reason| damaged(folder, domain, &reason))?;
    tighten(&folder.join(KEY))?;
    Ok(Some(found))
}

fn damaged(folder: &Path, domain: &Domain, reason: &anyhow::Error) -> Failure {
    let folder = folder.display();
    Failure::Other {
        message: format!("the CA of {domain} in {folder} is damaged: {reason:#}"),
        hint: format!(
            "put its files back from a backup, or `mv {folder} {folder}.damaged`: then a new one is made, which `devenv trust install` makes known"
        ),
    }
}

/// The CA that these texts are, if they are one and belong together.
fn parse(folder: &Path, domain: &Domain, pem: &str, key: &str) -> anyhow::Result<Authority> {
    let key = KeyPair::from_pem(key).map_err(|_| anyhow::anyhow!("{KEY} holds no key"))?;
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
        .with_context(|| format!("{CERTIFICATE} holds no certificate"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
        .with_context(|| format!("{CERTIFICATE} holds no certificate"))?;
    anyhow::ensure!(
        parsed.verify_signature(None).is_ok(),
        "{CERTIFICATE} is not what was signed"
    );
    anyhow::ensure!(
        parsed.public_key().raw == key.subject_public_key_info(),
        "{KEY} is not the key of {CERTIFICATE}"
    );
    let name = parsed.subject().iter_common_name().next();
    let name = name.and_then(|name| name.as_str().ok());
    let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone())?;
    Ok(Authority {
        domain: domain.clone(),
        file: folder.join(CERTIFICATE),
        name: name.unwrap_or("a CA without a name").to_owned(),
        pem: pem.to_owned(),
        until: SystemTime::UNIX_EPOCH + Duration::from_secs(until),
        issuer: Issuer::from_ca_cert_der(&certificate, key)?,
        verifier: WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()?,
        certificate,
        news: None,
    })
}

/// A backup that was put back is often readable by everybody.
fn tighten(key: &Path) -> anyhow::Result<()> {
    let what = || format!("take the rights of others away from {}", key.display());
    let mode = fs::metadata(key).with_context(what)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).with_context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::explain;
    use crate::event::Events;
    use crate::exec::{self, Cmd};
    use crate::stop::Stop;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn domain() -> Domain {
        "local".parse().unwrap()
    }

    fn folder(temp: &tempfile::TempDir) -> PathBuf {
        temp.path().join("ca/local")
    }

    fn made_at(temp: &tempfile::TempDir, now: SystemTime) -> anyhow::Result<Authority> {
        load_or_make(&folder(temp), &domain(), now, "me@laptop")
    }

    fn made(temp: &tempfile::TempDir) -> Authority {
        made_at(temp, SystemTime::now()).unwrap()
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn wanted() -> BTreeSet<String> {
        names(&["keycloak.local", "argocd.local"])
    }

    /// A certificate for whatever is asked, as a thief of the CA's key would make it.
    fn signed(authority: &Authority, names: &[&str]) -> rcgen::Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut leaf = CertificateParams::new(names).unwrap();
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.use_authority_key_identifier_extension = true;
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        live_from(&mut leaf, SystemTime::now(), DAY);
        leaf.signed_by(&KeyPair::generate().unwrap(), &authority.issuer)
            .unwrap()
    }

    /// What a certificate is made for, and whether a client may accept it for the first of it.
    const CASES: &[(&[&str], bool)] = &[
        (&["keycloak.local"], true),
        (&["a.b.keycloak.local"], true),
        (&["local"], true),
        (&["keycloak.localhost"], true),
        (&["localhost"], true),
        (&["example.com"], false),
        (&["local.example.com"], false),
        (&["notlocal"], false),
        (&["keycloak.local", "example.com"], false),
        (&["127.0.0.1"], false),
        (&["::1"], false),
        (&["keycloak.local", "127.0.0.1"], false),
        (&["keycloak.local", "2001:db8::1"], false),
    ];

    #[test]
    fn clients_of_rustls_enforce_what_the_ca_may_sign() {
        let temp = tempfile::tempdir().unwrap();
        let authority = made(&temp);
        for (names, accepted) in CASES {
            let certificate = signed(&authority, names);
            let verified = authority.verifier.verify_server_cert(
                certificate.der(),
                &[],
                &ServerName::try_from(names[0]).unwrap(),
                &[],
                UnixTime::now(),
            );
            assert_eq!(verified.is_ok(), *accepted, "{names:?}: {verified:?}");
        }
    }

    #[tokio::test]
    async fn clients_of_openssl_enforce_what_the_ca_may_sign() {
        if which::which("openssl").is_err() {
            eprintln!("there is no openssl here, so only rustls was asked");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let authority = made(&temp);
        let leaf = temp.path().join("leaf.pem");
        let (events, _receiver) = Events::channel();
        let step = events.step("openssl");
        for (names, accepted) in CASES {
            fs::write(&leaf, signed(&authority, names).pem()).unwrap();
            let is_address = names[0].parse::<std::net::IpAddr>().is_ok();
            let cmd = Cmd::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
                .arg(authority.certificate_file())
                .args(match is_address {
                    true => ["-verify_ip", names[0]],
                    false => ["-verify_hostname", names[0]],
                })
                .arg(&leaf);
            let verified = exec::run(&cmd, &Stop::new(), &step).await;
            assert_eq!(verified.is_ok(), *accepted, "{names:?}: {verified:?}");
        }
    }

    #[test]
    fn a_handshake_with_the_secret_works() {
        let temp = tempfile::tempdir().unwrap();
        let authority = made(&temp);
        let secret = secret(&authority, &wanted(), None, SystemTime::now());
        let secret: Secret = serde_json::from_value(secret.unwrap().unwrap()).unwrap();
        let part = |key: &str| secret.data.as_ref().unwrap()[key].0.clone();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&part("tls.crt"))
            .map(Result::unwrap)
            .collect();
        assert_eq!(chain.len(), 2);
        assert_eq!(&chain[1], authority.certificate());
        let server = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                chain,
                PrivateKeyDer::from_pem_slice(&part("tls.key")).unwrap(),
            )
            .unwrap();
        let (server, client) = (Arc::new(server), Arc::new(client_config(&authority)));
        for (name, works) in [
            ("keycloak.local", true),
            ("argocd.localhost", true),
            ("localhost", true),
            ("grafana.local", false),
        ] {
            let mut server = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
            let name = ServerName::try_from(name).unwrap();
            let mut client = rustls::ClientConnection::new(Arc::clone(&client), name).unwrap();
            let mut talk = || -> Result<(), rustls::Error> {
                while client.is_handshaking() || server.is_handshaking() {
                    let mut wire = Vec::new();
                    client.write_tls(&mut wire).unwrap();
                    server.read_tls(&mut wire.as_slice()).unwrap();
                    server.process_new_packets()?;
                    wire.clear();
                    server.write_tls(&mut wire).unwrap();
                    client.read_tls(&mut wire.as_slice()).unwrap();
                    client.process_new_packets()?;
                }
                Ok(())
            };
            assert_eq!(talk().is_ok(), works);
        }
    }

    #[test]
    fn a_certificate_is_renewed_when_its_end_is_near() {
        let temp = tempfile::tempdir().unwrap();
        let authority = made(&temp);
        let now = SystemTime::now();
        let live = secret(&authority, &wanted(), None, now).unwrap().unwrap();
        let renewed = |after: u32| {
            secret(&authority, &wanted(), Some(&live), now + DAY * after)
                .unwrap()
                .is_some()
        };
        assert_eq!([0, 59, 61, 100].map(renewed), [false, false, true, true]);
        // Clocks differ.
        let early = secret(&authority, &wanted(), Some(&live), now - SKEW / 2).unwrap();
        assert!(early.is_none());
    }

    #[test]
    fn a_certificate_that_does_not_serve_is_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let authority = made(&temp);
        let now = SystemTime::now();
        let make = |authority: &Authority| secret(authority, &wanted(), None, now).unwrap();
        let live = make(&authority).unwrap();
        let is_replaced = |live: &Value, wanted: &BTreeSet<String>| {
            let new = secret(&authority, wanted, Some(live), now).unwrap();
            if let Some(new) = &new {
                assert!(
                    secret(&authority, wanted, Some(new), now)
                        .unwrap()
                        .is_none()
                );
            }
            new.is_some()
        };
        assert!(!is_replaced(&live, &wanted()));
        assert!(
            !is_replaced(&live, &names(&["argocd.local"])),
            "more is fine"
        );
        assert!(is_replaced(
            &live,
            &names(&["argocd.local", "grafana.local"])
        ));

        let elsewhere = tempfile::tempdir().unwrap();
        let another = make(&made(&elsewhere)).unwrap();
        assert!(is_replaced(&another, &wanted()), "another CA's");
        for key in ["tls.crt", "tls.key"] {
            let mut mixed = live.clone();
            mixed["data"][key] = make(&authority).unwrap()["data"][key].clone();
            assert!(is_replaced(&mixed, &wanted()), "the {key} of another");
            for broken in [
                json!("bm90IFBFTQ=="),
                json!(""),
                Value::Null,
                json!("not base64"),
            ] {
                mixed["data"][key] = broken;
                assert!(is_replaced(&mixed, &wanted()), "{mixed}");
            }
        }
        let mut empty = live.clone();
        empty["data"] = Value::Null;
        assert!(is_replaced(&empty, &wanted()));
    }

    #[test]
    fn a_secret_of_the_teams_own_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let live = json!({"kind": "Secret", "metadata": {"name": SECRET, "labels": {"app": "ours"}}, "data": {}});
        let new = secret(&made(&temp), &wanted(), Some(&live), SystemTime::now());
        assert!(new.unwrap().is_none());
    }

    #[test]
    fn the_secret_is_what_istio_looks_for() {
        let temp = tempfile::tempdir().unwrap();
        let mut secret = secret(&made(&temp), &wanted(), None, SystemTime::now())
            .unwrap()
            .unwrap();
        for key in ["tls.crt", "tls.key"] {
            assert!(!text(&secret, &format!("/data/{key}")).is_empty());
            secret["data"][key] = json!("…");
        }
        assert_eq!(
            secret,
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {
                    "name": "platform-tls", "namespace": "istio-ingress",
                    "labels": {"app.kubernetes.io/managed-by": "devenv"},
                },
                "data": {"tls.crt": "…", "tls.key": "…"},
            })
        );
    }

    #[test]
    fn names_have_a_fallback_and_only_those_of_the_domain_are_covered() {
        let long = "dev.example.org".parse().unwrap();
        assert_eq!(fallback("keycloak.local", &domain()), "keycloak.localhost");
        assert_eq!(fallback("a.b.dev.example.org", &long), "a.b.localhost");
        assert_eq!(fallback("local", &domain()), "localhost");
        assert_eq!(fallback("x.localhost", &domain()), "x.localhost");
        let given = names(&[
            "a.b.local",
            "local",
            "x.localhost",
            "*.local",
            "example.com",
            "notlocal",
            "127.0.0.1",
            "A.local",
            "",
        ]);
        insta::assert_debug_snapshot!(covered(&given, &domain()), @r#"
        {
            "a.b.local",
            "a.b.localhost",
            "local",
            "localhost",
            "x.localhost",
        }
        "#);
        assert_eq!(covered(&names(&[]), &long), names(&["localhost"]));
    }

    #[test]
    fn the_ca_is_kept_and_is_readable_by_nobody_else() {
        let temp = tempfile::tempdir().unwrap();
        let first = made(&temp);
        assert_eq!(first.name(), "devenv CA for local (me@laptop)");
        assert_eq!(first.certificate_file(), folder(&temp).join("ca.pem"));
        assert_eq!(first.news(), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder(&temp)), 0o700);
        assert_eq!(mode(&temp.path().join("ca")), 0o700);
        for file in [CERTIFICATE, KEY] {
            assert_eq!(mode(&folder(&temp).join(file)), 0o600);
        }
        let key = folder(&temp).join(KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(made(&temp).certificate(), first.certificate());
        assert_eq!(mode(&key), 0o600);
        let shown = format!("{first:?}");
        assert!(!shown.contains("issuer"), "{shown}");
    }

    #[test]
    fn a_name_is_cut_where_x509_ends_it() {
        let temp = tempfile::tempdir().unwrap();
        let domain = format!("{}.example.org", "a".repeat(60)).parse().unwrap();
        let folder = temp.path().join("ca/long");
        let made = load_or_make(&folder, &domain, SystemTime::now(), "me@laptop").unwrap();
        assert_eq!(made.name().len(), 64);
    }

    #[test]
    fn several_at_once_agree_and_what_a_killed_one_left_is_removed() {
        let temp = tempfile::tempdir().unwrap();
        let left = temp.path().join("ca/.new-killed");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join(KEY), "half a key").unwrap();
        let found: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..8).map(|_| scope.spawn(|| made(&temp))).collect();
            running.into_iter().map(|it| it.join().unwrap()).collect()
        });
        assert!(
            found
                .iter()
                .all(|it| it.certificate() == found[0].certificate())
        );
        let entries = fs::read_dir(temp.path().join("ca")).unwrap();
        let entries: Vec<_> = entries.map(|it| it.unwrap().file_name()).collect();
        assert_eq!(entries, ["local"]);
    }

    #[test]
    fn a_damaged_ca_is_an_error_and_stays_as_it_is() {
        let check = |file: &str, damage: &dyn Fn(String) -> Option<String>| {
            let temp = tempfile::tempdir().unwrap();
            made(&temp);
            let path = folder(&temp).join(file);
            match damage(fs::read_to_string(&path).unwrap()) {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let before = fs::read(&path).ok();
            let error = made_at(&temp, SystemTime::now()).unwrap_err();
            assert_eq!(fs::read(&path).ok(), before);
            let hint = explain(&error).1.unwrap();
            assert!(hint.contains(&format!("`mv {0} {0}.damaged`", folder(&temp).display())));
            error.to_string().rsplit_once(": ").unwrap().1.to_owned()
        };
        let elsewhere = tempfile::tempdir().unwrap();
        made(&elsewhere);
        let other = |file| fs::read_to_string(folder(&elsewhere).join(file)).unwrap();
        let flipped = |text: String| {
            let middle = text.len() / 2;
            let flip = |(index, character)| match (index == middle, character) {
                (true, 'A') => 'B',
                (true, _) => 'A',
                (false, character) => character,
            };
            Some(text.chars().enumerate().map(flip).collect())
        };
        assert_eq!(check(KEY, &|_| None), "ca-key.pem is missing");
        assert_eq!(check(CERTIFICATE, &|_| None), "ca.pem is missing");
        assert_eq!(
            check(KEY, &|_| Some(String::new())),
            "ca-key.pem holds no key"
        );
        assert_eq!(
            check(KEY, &|_| Some(other(KEY))),
            "ca-key.pem is not the key of ca.pem"
        );
        assert_eq!(
            check(CERTIFICATE, &|_| Some(other(CERTIFICATE))),
            "ca-key.pem is not the key of ca.pem"
        );
        check(CERTIFICATE, &|_| Some("not a certificate".to_owned()));
        check(CERTIFICATE, &flipped);
        check(CERTIFICATE, &|text| Some(text[..text.len() / 2].to_owned()));
    }

    #[test]
    fn a_ca_whose_end_is_near_is_made_anew_and_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let first = made_at(&temp, now - LIFE_OF_A_CA + DAY * 31).unwrap();
        let same = made_at(&temp, now).unwrap();
        assert_eq!(same.certificate(), first.certificate());
        let next = made_at(&temp, now + DAY * 2).unwrap();
        assert_ne!(next.certificate(), first.certificate());
        let news = next.news().unwrap();
        assert!(
            news.starts_with(&format!("the CA of local ends on {}", day(now + DAY * 31))),
            "{news}"
        );
        assert_eq!(made_at(&temp, now + DAY * 2).unwrap().news(), None);
    }

    #[test]
    fn curl_is_told_the_file() {
        let line = |file: &str| curl(Path::new(file), "argocd.local");
        assert_eq!(
            line("/a/ca.pem"),
            "curl --cacert /a/ca.pem https://argocd.local/"
        );
        assert_eq!(
            line("/a b/ca.pem"),
            "curl --cacert '/a b/ca.pem' https://argocd.local/"
        );
    }
}
