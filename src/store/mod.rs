//! The store: every image and file an environment needs, on this machine, content-addressed and verified.
//!
//! [`layout`] is the folder, [`registry`] and [`packages`] fill it, [`archive`] streams images out of it, [`import`] brings
//! them into nodes. Entries are keyed by name and origin: the same name from another origin is another entry.

pub mod archive;
pub mod import;
pub mod layout;
pub mod packages;
pub mod reference;
#[cfg(test)]
mod testing;

use std::fmt;
use std::str::FromStr;

pub use layout::{DamagedBlob, Descriptor, Entry, Image, Store, Verify};
use reference::ImageReference;

/// Where something came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From an image registry or a file server, as its name says.
    Registry,
    /// Built by `scripts/packages` from package registries.
    Packages,
}

/// What something is called: an image by its reference, a file by its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// An image.
    Image(ImageReference),
    /// A file, by its http(s) address.
    File(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Registry => "registry",
            Self::Packages => "packages",
        })
    }
}

impl FromStr for Origin {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "registry" => Ok(Self::Registry),
            "packages" => Ok(Self::Packages),
            _ => anyhow::bail!("unknown origin `{text}`, expected `registry` or `packages`"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(reference) => reference.fmt(formatter),
            Self::File(address) => address.fmt(formatter),
        }
    }
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.contains("://") {
            true => Ok(Self::File(text.to_owned())),
            false => Ok(Self::Image(text.parse()?)),
        }
    }
}
