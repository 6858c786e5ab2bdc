//! Image references and digests: text that a person or a registry gave, turned into values that can't be wrong.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// An image reference, normalised as Docker does it: `redis:7` is `docker.io/library/redis:7`.
///
/// There is no implicit `latest`: a reference has a tag, a digest, or both. It displays as its full form, and that form
/// parses to the same value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no image reference or no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidReference {
    /// What is wrong with it.
    pub message: String,
    /// What to write instead, where that can be said.
    pub help: Option<String>,
}

impl ImageReference {
    /// The registry's host, with its port where it has one: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry: `library/redis`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, without its colon.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins it, if it is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl FromStr for ImageReference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let wrong = |what: &str| Err(invalid(format!("`{text}` is no image reference: {what}")));
        if text.is_empty() {
            return Err(invalid("an image reference is missing".to_owned()));
        }
        if text.contains("://") {
            return wrong("it begins with a scheme, and a reference has none");
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let (name, tag) = match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (named, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return wrong("its tag must be 1 to 128 letters, digits, `_`, `.` and `-`");
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(&registry) {
            return wrong(&format!("`{registry}` is no registry's host name"));
        }
        if repository != repository.to_lowercase() {
            return wrong("the repository must be lower-case");
        }
        if !repository.split('/').all(is_path_component) {
            return wrong(
                "the repository must be parts of a-z and 0-9, joined inside by `.`, `_` or `-`, with `/` between them",
            );
        }
        if registry.len() + 1 + repository.len() > 255 {
            return wrong("its name is longer than 255 characters");
        }
        if tag.is_none() && digest.is_none() {
            return Err(InvalidReference {
                message: format!("`{text}` has neither a tag nor a digest"),
                help: Some(format!(
                    "say which one: `{text}:<tag>`; `latest` is never assumed"
                )),
            });
        }
        Ok(Self {
            registry,
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for ImageReference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for ImageReference {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<ImageReference> for String {
    fn from(reference: ImageReference) -> Self {
        reference.to_string()
    }
}

/// The sha256 digest of some content, displayed as `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    hex: String,
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(content: &[u8]) -> Self {
        Self::from_sha256(&Sha256::digest(content).into())
    }

    /// The digest that a finished sha256 computation gave.
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        Self {
            hex: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// The 64 hexadecimal digits, which is also the blob's file name in an OCI layout.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl FromStr for Digest {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64
            && hex
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            Ok(Self {
                hex: hex.to_owned(),
            })
        } else {
            Err(invalid(format!(
                "`{text}` is no digest, expected `sha256:` and 64 lower-case hexadecimal digits"
            )))
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.hex)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidReference;

    fn try_from(text: String) -> Result<Self, InvalidReference> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Docker's rule: the first part is a registry if it has a dot or a port, is `localhost`, or has an upper-case letter
/// (which no repository may have).
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    match registry {
        "docker.io" | "index.docker.io" if !repository.contains('/') => {
            ("docker.io".to_owned(), format!("library/{repository}"))
        }
        "index.docker.io" => ("docker.io".to_owned(), repository.to_owned()),
        _ => (registry.to_owned(), repository.to_owned()),
    }
}

fn is_registry(registry: &str) -> bool {
    if let Some(bracketed) = registry.strip_prefix('[') {
        return bracketed.split_once(']').is_some_and(|(address, port)| {
            address.parse::<std::net::Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
    is_port(port) && host.split('.').all(is_host_label)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// Runs of a-z and 0-9 with one separator between two of them: `.`, `_`, `__`, or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    bytes.first().is_some_and(is_plain)
        && bytes.last().is_some_and(is_plain)
        && bytes.split(is_plain).all(|separator| match separator {
            [] | b"." | b"_" | b"__" => true,
            other => other.iter().all(|byte| *byte == b'-'),
        })
}

fn invalid(message: String) -> InvalidReference {
    InvalidReference {
        message,
        help: None,
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::{Digest, ImageReference};

    fn check(text: &str) -> String {
        match text.parse::<ImageReference>() {
            Ok(reference) => reference.to_string(),
            Err(invalid) => match invalid.help {
                Some(help) => format!("{}\nhint: {help}", invalid.message),
                None => invalid.message,
            },
        }
    }

    #[test]
    fn references_are_normalised_as_docker_does_it() {
        let cases = [
            "redis:7",
            "victoriametrics/vlagent:v1",
            "docker.io/redis:7",
            "index.docker.io/library/redis:7",
            "quay.io/argoproj/argocd:v3.2.11",
            "localhost/tool:1",
            "localhost:5000/tool:1",
            "127.0.0.1:5000/a/b__c/d---e:1",
            "[::1]:5000/tool:1",
            "Registry/tool:1",
            "kindest/node:v1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "redis@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ];
        assert_snapshot!(cases.map(check).join("\n"), @r"
        docker.io/library/redis:7
        docker.io/victoriametrics/vlagent:v1
        docker.io/library/redis:7
        docker.io/library/redis:7
        quay.io/argoproj/argocd:v3.2.11
        localhost/tool:1
        localhost:5000/tool:1
        127.0.0.1:5000/a/b__c/d---e:1
        [::1]:5000/tool:1
        Registry/tool:1
        docker.io/kindest/node:v1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
        docker.io/library/redis@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
        ");
    }

    #[test]
    fn what_is_no_reference_is_told_why() {
        let cases = [
            "",
            "redis",
            "localhost:5000/tool",
            "https://quay.io/argoproj/argocd:v3",
            "docker.io/Redis:7",
            "redis:",
            "redis:-7",
            "redis:7 ",
            "a//b:1",
            "/b:1",
            "a_-b:1",
            "quay..io/b:1",
            "quay.io:99999/b:1",
            "quay.io:+1/b:1",
            "redis@sha256:12",
            "redis@md5:0123456789abcdef0123456789abcdef",
            ":7",
        ];
        assert_snapshot!(cases.map(check).join("\n"), @r"
        an image reference is missing
        `redis` has neither a tag nor a digest
        hint: say which one: `redis:<tag>`; `latest` is never assumed
        `localhost:5000/tool` has neither a tag nor a digest
        hint: say which one: `localhost:5000/tool:<tag>`; `latest` is never assumed
        `https://quay.io/argoproj/argocd:v3` is no image reference: it begins with a scheme, and a reference has none
        `docker.io/Redis:7` is no image reference: the repository must be lower-case
        `redis:` is no image reference: its tag must be 1 to 128 letters, digits, `_`, `.` and `-`
        `redis:-7` is no image reference: its tag must be 1 to 128 letters, digits, `_`, `.` and `-`
        `redis:7 ` is no image reference: its tag must be 1 to 128 letters, digits, `_`, `.` and `-`
        `a//b:1` is no image reference: the repository must be parts of a-z and 0-9, joined inside by `.`, `_` or `-`, with `/` between them
        `/b:1` is no image reference: the repository must be parts of a-z and 0-9, joined inside by `.`, `_` or `-`, with `/` between them
        `a_-b:1` is no image reference: the repository must be parts of a-z and 0-9, joined inside by `.`, `_` or `-`, with `/` between them
        `quay..io/b:1` is no image reference: `quay..io` is no registry's host name
        `quay.io:99999/b:1` is no image reference: `quay.io:99999` is no registry's host name
        `quay.io:+1/b:1` is no image reference: `quay.io:+1` is no registry's host name
        `sha256:12` is no digest, expected `sha256:` and 64 lower-case hexadecimal digits
        `md5:0123456789abcdef0123456789abcdef` is no digest, expected `sha256:` and 64 lower-case hexadecimal digits
        `:7` is no image reference: the repository must be parts of a-z and 0-9, joined inside by `.`, `_` or `-`, with `/` between them
        ");
    }

    #[test]
    fn a_digest_is_of_its_content() {
        assert_snapshot!(Digest::of(b"").to_string(), @"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    proptest! {
        #[test]
        fn the_displayed_form_parses_to_the_same_value(
            registry in "|[a-z]{1,8}\\.[a-z]{2,3}/|localhost(:[1-9][0-9]{0,3})?/|docker\\.io/|index\\.docker\\.io/",
            repository in "[a-z0-9]{1,5}((_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}(\\.[a-z]{1,2})?){0,2}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})",
            digest in "|@sha256:[0-9a-f]{64}",
        ) {
            let reference: ImageReference =
                format!("{registry}{repository}{tag}{digest}").parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<ImageReference>().unwrap(), &reference);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,60}") {
            if let Ok(reference) = text.parse::<ImageReference>() {
                prop_assert_eq!(&reference.to_string().parse::<ImageReference>().unwrap(), &reference);
            }
        }
    }
}
