//! Makes secrets unreadable in text that people pass on: the values of the cluster's Secrets in all the forms in which they
//! are written down, and what looks like a token or a private key wherever it comes from.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::kube::text;

/// What stands for a secret.
pub const MASK: &str = "********";

/// Keys of Secrets whose values are no secret: names, addresses and certificates, which the rest of a log is made of. A password
/// that is the same as one of them is masked all the same, since it is under another key too.
const OPEN_KEYS: [&str; 16] = [
    "admin-user",
    "admin.passwordMtime",
    "ca.crt",
    "dbname",
    "host",
    "name",
    "namespace",
    "port",
    "project",
    "tls.crt",
    "token-id",
    "type",
    "user",
    "username",
    "usage-bootstrap-authentication",
    "usage-bootstrap-signing",
];

/// What is shorter can't be told from other text.
const SHORTEST: usize = 4;
/// A line of a longer secret, such as a key, counts on its own from this length on.
const SHORTEST_LINE: usize = 12;

/// What is to be made unreadable.
#[derive(Debug)]
pub struct Mask {
    secrets: AhoCorasick,
    /// How many values are masked.
    pub count: usize,
    /// Secrets and keys whose values are too short to be masked.
    pub too_short: Vec<String>,
}

impl Mask {
    /// Of the cluster's Secrets, as the API server lists them, and other values.
    pub fn new(secrets: &[Value], others: &[String]) -> anyhow::Result<Self> {
        let mut values: BTreeSet<Vec<u8>> = others
            .iter()
            .map(|value| value.clone().into_bytes())
            .collect();
        let mut too_short = Vec::new();
        for secret in secrets {
            let data = secret.get("data").and_then(Value::as_object);
            for (key, value) in data.into_iter().flatten() {
                let value = BASE64
                    .decode(value.as_str().unwrap_or_default())
                    .unwrap_or_default();
                match value.trim_ascii().len() {
                    0 => {}
                    _ if OPEN_KEYS.contains(&key.as_str()) => {}
                    length if length < SHORTEST => too_short.push(format!(
                        "{}/{} {key}",
                        text(secret, "/metadata/namespace"),
                        text(secret, "/metadata/name")
                    )),
                    _ => drop(values.insert(value)),
                }
            }
        }
        let patterns: BTreeSet<Vec<u8>> = values.iter().flat_map(|value| forms(value)).collect();
        Ok(Self {
            secrets: AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&patterns)?,
            count: values.len(),
            too_short,
        })
    }

    /// The text without them.
    pub fn over(&self, text: &str) -> String {
        let mut masked = Vec::with_capacity(text.len());
        self.secrets
            .replace_all_with_bytes(text.as_bytes(), &mut masked, |_, _, masked| {
                masked.extend_from_slice(MASK.as_bytes());
                true
            });
        without_private_keys(&without_tokens(&String::from_utf8_lossy(&masked)))
    }
}

/// The forms in which a value is written down: as it is, in base64, as a part of an address, in JSON; and each line of it.
fn forms(value: &[u8]) -> Vec<Vec<u8>> {
    let trimmed = value.trim_ascii();
    let mut forms = vec![
        trimmed.to_owned(),
        BASE64.encode(value).into_bytes(),
        BASE64.encode(trimmed).into_bytes(),
    ];
    if let Ok(text) = std::str::from_utf8(trimmed) {
        forms.push(percent_encoded(text).into_bytes());
        let json = Value::from(text).to_string();
        forms.push(json.trim_matches('"').as_bytes().to_owned());
        let lines = text.lines().map(str::trim);
        let worth = |line: &&str| line.len() >= SHORTEST_LINE && !line.starts_with("-----");
        if text.contains('\n') {
            forms.extend(lines.filter(worth).map(|line| line.as_bytes().to_owned()));
        }
    }
    forms.retain(|form| form.len() >= SHORTEST);
    forms
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Without what looks like a JSON web token: service accounts' tokens are in no Secret.
fn without_tokens(text: &str) -> String {
    let is_of_it = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("eyJ") {
        let (before, candidate) = rest.split_at(begin);
        let end = candidate
            .find(|letter| !is_of_it(letter))
            .unwrap_or(candidate.len());
        let (candidate, after) = candidate.split_at(end);
        let is_token = candidate.len() > 40 && candidate.matches('.').count() == 2;
        masked += before;
        masked += if is_token { MASK } else { candidate };
        rest = after;
    }
    masked + rest
}

/// Without the inside of PEM's private keys.
fn without_private_keys(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("PRIVATE KEY-----") {
        let inside = begin + "PRIVATE KEY-----".len();
        let Some(end) = rest[inside..].find("-----END") else {
            break;
        };
        masked += &rest[..inside];
        masked += MASK;
        // Past the end's own "PRIVATE KEY-----", which would begin another.
        let end = inside + end;
        let past = rest[end..]
            .find("PRIVATE KEY-----")
            .map_or(rest.len(), |at| end + at + "PRIVATE KEY-----".len());
        masked += &rest[end..past];
        rest = &rest[past..];
    }
    masked + rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mask() -> Mask {
        let encoded = |text: &str| BASE64.encode(text);
        let secrets = [json!({
            "metadata": {"namespace": "iam-system", "name": "keycloak-db-app"},
            "data": {
                "username": encoded("keycloak"),
                "dbname": encoded("app"),
                "password": encoded("p/s\"s w%rd\n"),
                "pin": encoded("123"),
                "empty": encoded(""),
                "tls.key": encoded("-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2\nHwoY6Qy3xBzwVMu7\n-----END EC PRIVATE KEY-----\n"),
            },
        })];
        Mask::new(&secrets, &["ca-key-of-devenv".to_owned()]).unwrap()
    }

    #[test]
    fn a_value_is_found_in_every_form() {
        let mask = mask();
        let check = |text: &str| mask.over(text);
        assert_eq!(
            check("login as keycloak to app"),
            "login as keycloak to app"
        );
        assert_eq!(check("password p/s\"s w%rd."), "password ********.");
        assert_eq!(check("p%2Fs%22s%20w%25rd@db"), "********@db");
        assert_eq!(check(r#"{"a":"p/s\"s w%rd"}"#), r#"{"a":"********"}"#);
        assert_eq!(check(&BASE64.encode("p/s\"s w%rd\n")), MASK);
        assert_eq!(check("> HwoY6Qy3xBzwVMu7"), "> ********");
        assert_eq!(check("ca-key-of-devenv!"), "********!");
        assert_eq!(mask.too_short, ["iam-system/keycloak-db-app pin"]);
        assert_eq!(mask.count, 3);
    }

    #[test]
    fn tokens_and_keys_are_masked_wherever_they_come_from() {
        let mask = mask();
        let token = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl";
        assert_eq!(
            mask.over(&format!("Bearer {token}, eyJ is no token")),
            "Bearer ********, eyJ is no token"
        );
        assert_eq!(
            mask.over("a -----BEGIN PRIVATE KEY-----\nother\n-----END PRIVATE KEY----- b -----BEGIN PRIVATE KEY----- cut"),
            "a -----BEGIN PRIVATE KEY-----********-----END PRIVATE KEY----- b -----BEGIN PRIVATE KEY----- cut"
        );
    }
}
