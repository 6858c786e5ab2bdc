//! A hosts file as bytes, and the one block in it that is an environment's: found, put in, taken out. Pure, and touches no file.
//!
//! ```text
//! # BEGIN devenv dev 0123456789ab v1 nl=0
//! 127.0.0.1 argocd.local
//! ::1 argocd.local
//! # END devenv dev 0123456789ab
//! ```
//!
//! Where the platform is behind a load balancer of its cluster's, the first marker ends in `to=` and that address, and the
//! lines lead there instead.
//!
//! `nl` says whether the newline before the block came with it, because the file's last line had none: 0 if not, else that
//! newline's number. A block that is put right behind one whose newline was added carries the same number: the newline goes
//! with the last of them.
//!
//! What holds for every file whatsoever, be it text or not: [`insert`] and then [`remove`] gives the same bytes again; a byte
//! outside of the block is never changed; blocks of several environments come and go independently, in any order.
//!
//! A block that isn't whole, or holds a line that devenv doesn't write, is [`Torn`]: nobody can know where it was to end or
//! whose the line is, so it is shown to a person and left alone. Blocks of other environments, and of other users' devenv, are
//! lines like any others.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::environment::EnvironmentName;

/// What names lead to on this machine. Besides these, only a [`Balancer`] can be written.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const BEGIN: &str = "# BEGIN devenv ";
const END: &str = "# END devenv ";
/// What is before the address in the first marker of a block that leads elsewhere.
const TO: &str = "to=";

/// Whose block it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The environment's name, for people.
    pub name: EnvironmentName,
    /// The environment's id, which is what counts.
    pub id: Id,
}

/// 12 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id(String);

/// A name for a hosts file: at least two labels of a-z, 0-9 and `-`, at most 253 characters, and nothing that could be taken
/// for an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostName(String);

/// The lines that an environment wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Whose they are.
    pub owner: Owner,
    /// Every name, each with lines of its own.
    pub names: BTreeSet<HostName>,
    /// Where each name leads.
    pub leads: Leads,
}

/// Where names lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// To this machine.
    Here {
        /// To `::1` as well as to `127.0.0.1`.
        ipv6: bool,
    },
    /// To a load balancer of a cluster that is elsewhere.
    To(Balancer),
}

/// An address that a load balancer can have: that of one host in IPv4, in a private network or a public one. Not this machine,
/// nobody (0.0.0.0/8), many (multicast, broadcast, what is reserved), nor link-local: 169.254.169.254 is where clouds tell
/// their machines secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balancer(Ipv4Addr);

impl TryFrom<Ipv4Addr> for Balancer {
    type Error = String;

    fn try_from(address: Ipv4Addr) -> Result<Self, String> {
        let first = address.octets()[0];
        let is_one_host = (1..=223).contains(&first);
        if is_one_host && !address.is_loopback() && !address.is_link_local() {
            return Ok(Self(address));
        }
        Err(format!(
            "{address} is no address of a load balancer, expected that of one host in a private or a public network"
        ))
    }
}

impl std::str::FromStr for Balancer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<Ipv4Addr>()
            .map_err(|_| format!("{text:?} is no IPv4 address"))?
            .try_into()
    }
}

impl Balancer {
    /// The address.
    pub fn address(self) -> Ipv4Addr {
        self.0
    }
}

impl Leads {
    /// The addresses, each of which gets a line.
    fn addresses(self) -> Vec<IpAddr> {
        match self {
            Self::Here { ipv6 } => LOOPBACK[..1 + usize::from(ipv6)].to_vec(),
            Self::To(Balancer(address)) => vec![address.into()],
        }
    }

    /// Whether a line of somebody else's that leads there is as good.
    fn is_as_good(self, address: IpAddr) -> bool {
        match self {
            Self::Here { .. } => LOOPBACK.contains(&address),
            Self::To(Balancer(balancer)) => address == balancer,
        }
    }
}

/// What a file holds of a block that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The environment's own block.
    pub state: State,
    /// The lines of others that lead a wanted name elsewhere.
    pub conflicts: Vec<Conflict>,
    /// Whether the lines of others already lead every wanted name where it is to lead.
    pub given: bool,
}

/// An environment's own block in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There is none.
    Absent,
    /// It says what is wanted, byte for byte.
    Same,
    /// It is whole and says something else.
    Differs,
    /// It isn't whole.
    Torn(Torn),
}

/// A block that devenv can't have written as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Torn {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// A line that leads a wanted name elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The wanted name.
    pub name: HostName,
    /// Where it leads instead.
    pub address: IpAddr,
    /// The line, from 1.
    pub line: usize,
}

impl Id {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        if text.len() == 12 && text.bytes().all(digits) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no environment's id, expected 12 hexadecimal digits"
        ))
    }
}

impl HostName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let labels: Vec<&str> = text.split('.').collect();
        let last_is_number = labels
            .last()
            .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        let are_labels = labels
            .iter()
            .all(|label| crate::environment::is_dns_label(label));
        if text.len() <= 253 && labels.len() >= 2 && are_labels && !last_is_number {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no name for the hosts file, expected two or more labels of a-z, 0-9 and `-` with dots between them"
        ))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.name, self.id.0)
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            address,
            line,
        } = self;
        write!(formatter, "line {line} leads {name} to {address}")
    }
}

impl Block {
    /// The lines between the markers, as they stand in the file; also what a person adds by hand.
    pub fn lines(&self) -> String {
        let addresses = self.leads.addresses();
        self.names
            .iter()
            .flat_map(|name| {
                addresses
                    .iter()
                    .map(move |address| format!("{address} {name}\n"))
            })
            .collect()
    }

    /// The same block without the names that lead elsewhere, which aren't devenv's to change.
    pub fn without(&self, conflicts: &[Conflict]) -> Self {
        let mut block = self.clone();
        block
            .names
            .retain(|name| !conflicts.iter().any(|conflict| conflict.name == *name));
        block
    }

    fn text(&self, number: u32) -> String {
        let Self { owner, .. } = self;
        let to = match self.leads {
            Leads::Here { .. } => String::new(),
            Leads::To(Balancer(address)) => format!(" {TO}{address}"),
        };
        format!(
            "{BEGIN}{owner} v1 nl={number}{to}\n{}{END}{owner}\n",
            self.lines()
        )
    }
}

/// What the file holds of this block, and what stands in its way.
pub fn look(file: &[u8], block: &Block) -> Found {
    let others = blocks(file);
    let mut conflicts = Vec::new();
    let mut given = BTreeSet::new();
    for (index, line) in lines(file).enumerate() {
        // What another environment's block says is gone when that environment goes.
        if others.iter().any(|other| other.bytes.contains(&line.start)) {
            continue;
        }
        let Some((address, names)) = mapping(&file[line]) else {
            continue;
        };
        for name in names {
            let is_it = |wanted: &&HostName| wanted.0.as_bytes().eq_ignore_ascii_case(name);
            let Some(name) = block.names.iter().find(is_it) else {
                continue;
            };
            if block.leads.is_as_good(address) {
                given.insert((name, address));
            } else {
                conflicts.push(Conflict {
                    name: name.clone(),
                    address,
                    line: index + 1,
                });
            }
        }
    }
    let is_given = |name| {
        let mut addresses = block.leads.addresses().into_iter();
        addresses.all(|address| given.contains(&(name, address)))
    };
    Found {
        given: conflicts.is_empty() && block.names.iter().all(is_given),
        state: state(file, &block.without(&conflicts)),
        conflicts,
    }
}

fn state(file: &[u8], block: &Block) -> State {
    match find(file, &block.owner.id) {
        Err(torn) => State::Torn(torn),
        Ok(None) => State::Absent,
        Ok(Some(Place { bytes, number }))
            if file[bytes.clone()] == *block.text(number).as_bytes() =>
        {
            State::Same
        }
        Ok(Some(_)) => State::Differs,
    }
}

/// The file with this block: in the place of the owner's block where there is one, else at the end. A block without names is
/// none.
pub fn insert(file: &[u8], block: &Block) -> Result<Vec<u8>, Torn> {
    if block.names.is_empty() {
        return remove(file, &block.owner.id);
    }
    if let Some(Place { bytes, number }) = find(file, &block.owner.id)? {
        let text = block.text(number);
        return Ok([&file[..bytes.start], text.as_bytes(), &file[bytes.end..]].concat());
    }
    let is_ended = matches!(file.last(), None | Some(b'\n')) || file == BYTE_ORDER_MARK;
    let (newline, number): (&[u8], u32) = if is_ended {
        (b"", number_at_the_end(file))
    } else {
        (b"\n", unused_number(file))
    };
    Ok([file, newline, block.text(number).as_bytes()].concat())
}

/// The file without the owner's block, and without the newline that was added with it, unless somebody has written behind it
/// since.
pub fn remove(file: &[u8], owner: &Id) -> Result<Vec<u8>, Torn> {
    let Some(Place { bytes, number }) = find(file, owner)? else {
        return Ok(file.to_owned());
    };
    let (mut before, after) = (&file[..bytes.start], &file[bytes.end..]);
    if number != 0 && after.is_empty() && number_at_the_end(before) != number {
        before = before.strip_suffix(b"\n").unwrap_or(before);
    }
    Ok([before, after].concat())
}

/// Whose whole blocks the file holds, in order.
pub fn owners(file: &[u8]) -> Vec<Owner> {
    blocks(file)
        .into_iter()
        .filter_map(|place| {
            let first = lines(&file[place.bytes.clone()]).next()?;
            let first = str::from_utf8(&file[place.bytes][first]).ok()?;
            let mut words = first.strip_prefix(BEGIN)?.split_ascii_whitespace();
            Some(Owner {
                name: words.next()?.parse().ok()?,
                id: words.next()?.parse().ok()?,
            })
        })
        .collect()
}

/// Whether the owner's block has lines for `::1`; `None` where there is no such block, or a torn one.
pub fn has_ipv6(file: &[u8], owner: &Id) -> Option<bool> {
    let place = find(file, owner).ok()??;
    let text = &file[place.bytes];
    Some(lines(text).any(|line| text[line].starts_with(b"::1 ")))
}

/// The number of the added newline before the blocks that end the file; 0 where there is no such thing.
fn number_at_the_end(file: &[u8]) -> u32 {
    match blocks(file).last() {
        Some(last) if last.bytes.end == file.len() && file.ends_with(b"\n") => last.number,
        _ => 0,
    }
}

fn unused_number(file: &[u8]) -> u32 {
    let used: BTreeSet<u32> = blocks(file).iter().map(|block| block.number).collect();
    (1..=u32::MAX)
        .find(|number| !used.contains(number))
        .unwrap_or(u32::MAX)
}

/// Where a whole block is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    bytes: Range<usize>,
    number: u32,
}

/// The owner's block. There may be one at most, it must be whole, and every line in it one that devenv writes.
fn find(file: &[u8], owner: &Id) -> Result<Option<Place>, Torn> {
    let mut open: Option<(usize, u32, usize)> = None;
    let mut to = None;
    let mut found = None;
    for (index, line) in lines(file).enumerate() {
        let torn = |what: String| Torn {
            line: index + 1,
            what,
        };
        match Line::of(&file[line.clone()]) {
            Line::Begin {
                id,
                number,
                to: leads,
            } if id == owner.0 => {
                to = leads;
                if let Some((_, _, begun)) = open {
                    return Err(torn(format!(
                        "the block begins once more, without having ended since line {begun}"
                    )));
                }
                if found.is_some() {
                    return Err(torn("the block is there twice".to_owned()));
                }
                open = Some((line.start, number, index + 1));
            }
            Line::End { id } if id == owner.0 => {
                let Some((start, number, _)) = open.take() else {
                    return Err(torn("the block ends without having begun".to_owned()));
                };
                found = Some(Place {
                    bytes: start..line.end,
                    number,
                });
            }
            Line::Strange(text) if text.split_ascii_whitespace().any(|word| word == owner.0) => {
                return Err(torn(
                    "the block's marker isn't one of this version of devenv".to_owned(),
                ));
            }
            Line::Entry(address) if open.is_none() || is_entry_of(to, address) => {}
            _ if open.is_some() => {
                return Err(torn(
                    "in the block is a line that isn't devenv's".to_owned(),
                ));
            }
            _ => {}
        }
    }
    match open {
        Some((_, _, line)) => Err(Torn {
            line,
            what: "the block begins and never ends".to_owned(),
        }),
        None => Ok(found),
    }
}

/// All whole blocks, whoever's they are, in order.
fn blocks(file: &[u8]) -> Vec<Place> {
    let mut blocks = Vec::new();
    let mut open = None;
    for line in lines(file) {
        match (Line::of(&file[line.clone()]), open.take()) {
            (Line::Begin { id, number, to }, _) => open = Some((id, line.start, number, to)),
            (Line::Entry(address), still) => {
                open = still.filter(|(.., to)| is_entry_of(*to, address));
            }
            (Line::End { id }, Some((begun, start, number, _))) if id == begun => {
                blocks.push(Place {
                    bytes: start..line.end,
                    number,
                });
            }
            _ => {}
        }
    }
    blocks
}

/// Whether a line with this address can be one of a block whose marker says that it leads there.
fn is_entry_of(to: Option<Balancer>, address: IpAddr) -> bool {
    match to {
        None => LOOPBACK.contains(&address),
        Some(Balancer(balancer)) => address == balancer,
    }
}

/// What a line is to a block.
enum Line<'a> {
    Begin {
        id: &'a str,
        number: u32,
        /// Where it leads, if not here.
        to: Option<Balancer>,
    },
    End {
        id: &'a str,
    },
    /// Begins as a marker does, and goes on otherwise.
    Strange(&'a str),
    /// One that devenv could write between its markers.
    Entry(IpAddr),
    Other,
}

impl<'a> Line<'a> {
    fn of(line: &'a [u8]) -> Self {
        // An editor may have changed the ends of all lines of the file.
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let marker = |start: &str| {
            let rest = line.strip_prefix(start.as_bytes())?;
            std::str::from_utf8(rest).ok()
        };
        if let Some(rest) = marker(BEGIN) {
            let words: Vec<&str> = rest.split(' ').collect();
            if let [_, id, "v1", number, rest @ ..] = &words[..]
                && let Some(number) = number.strip_prefix("nl=").and_then(canonical)
                && let Some(to) = destination(rest)
            {
                return Self::Begin { id, number, to };
            }
            return Self::Strange(rest);
        }
        if let Some(rest) = marker(END) {
            return match rest.split(' ').collect::<Vec<_>>()[..] {
                [_, id] => Self::End { id },
                _ => Self::Strange(rest),
            };
        }
        let is_entry = |text: &str| {
            let (address, name) = text.split_once(' ')?;
            name.parse::<HostName>().ok()?;
            let parsed = address.parse::<IpAddr>().ok()?;
            let known = LOOPBACK.contains(&parsed) || address.parse::<Balancer>().is_ok();
            (known && parsed.to_string() == address).then_some(parsed)
        };
        match std::str::from_utf8(line).ok().and_then(is_entry) {
            Some(address) => Self::Entry(address),
            None => Self::Other,
        }
    }
}

/// Where a block leads, from what is behind the number in its first marker; `None` where that isn't devenv's.
fn destination(rest: &[&str]) -> Option<Option<Balancer>> {
    match rest {
        [] => Some(None),
        [one] => {
            let text = one.strip_prefix(TO)?;
            let balancer: Balancer = text.parse().ok()?;
            (balancer.0.to_string() == text).then_some(Some(balancer))
        }
        _ => None,
    }
}

/// A number as devenv writes it.
fn canonical(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

/// The lines with their ends; a mark of the byte order belongs to none.
fn lines(file: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = if file.starts_with(BYTE_ORDER_MARK) {
        BYTE_ORDER_MARK.len()
    } else {
        0
    };
    file[start..]
        .split_inclusive(|byte| *byte == b'\n')
        .map(move |line| {
            let range = start..start + line.len();
            start = range.end;
            range
        })
}

/// The address and the names of a line, as every reader of hosts files takes it: white space between, a comment at its end.
fn mapping(line: &[u8]) -> Option<(IpAddr, impl Iterator<Item = &[u8]>)> {
    let line = line.split(|byte| *byte == b'#').next()?;
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let address = std::str::from_utf8(words.next()?).ok()?;
    let (address, _zone) = address.split_once('%').unwrap_or((address, ""));
    Some((address.parse().ok()?, words))
}

/// What changes, as `diff -U0` and `patch` write and read it. A file is given with its control characters made visible.
pub fn diff(path: &str, old: &[u8], new: &[u8]) -> String {
    let old: Vec<&[u8]> = old.split_inclusive(|byte| *byte == b'\n').collect();
    let new: Vec<&[u8]> = new.split_inclusive(|byte| *byte == b'\n').collect();
    let same = |pairs: &mut dyn Iterator<Item = (&&[u8], &&[u8])>| {
        pairs.take_while(|(one, other)| one == other).count()
    };
    let before = same(&mut old.iter().zip(&new));
    let after = same(&mut old[before..].iter().rev().zip(new[before..].iter().rev()));
    let (old, new) = (
        &old[before..old.len() - after],
        &new[before..new.len() - after],
    );
    if old.is_empty() && new.is_empty() {
        return String::new();
    }
    let place = |lines: &[&[u8]]| {
        // A range of no lines is named by the line before it.
        let first = before + usize::from(!lines.is_empty());
        match lines.len() {
            1 => first.to_string(),
            count => format!("{first},{count}"),
        }
    };
    let mut text = format!(
        "--- {path}\n+++ {path}\n@@ -{} +{} @@\n",
        place(old),
        place(new)
    );
    for (sign, lines) in [('-', old), ('+', new)] {
        for line in lines {
            let (line, end) = match line.strip_suffix(b"\n") {
                Some(line) => (line, "\n"),
                None => (*line, "\n\\ No newline at end of file\n"),
            };
            text.push(sign);
            text.extend(String::from_utf8_lossy(line).chars().flat_map(visible));
            text.push_str(end);
        }
    }
    text
}

fn visible(character: char) -> impl Iterator<Item = char> {
    let escaped = (character.is_control() && character != '\t').then(|| character.escape_default());
    let plain = escaped.is_none().then_some(character);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(name: &str, id: &str) -> Owner {
        Owner {
            name: name.parse().unwrap(),
            id: id.parse().unwrap(),
        }
    }

    #[test]
    fn a_block_can_lead_to_a_load_balancer_and_only_there() {
        let balancer = |text: &str| text.parse::<Balancer>();
        let at = |address: &str| Block {
            leads: Leads::To(balancer(address).unwrap()),
            ..dev()
        };
        let file = insert(b"127.0.0.1 localhost\n", &at("10.0.0.9")).unwrap();
        insta::assert_snapshot!(String::from_utf8_lossy(&file), @r"
        127.0.0.1 localhost
        # BEGIN devenv dev 0123456789ab v1 nl=0 to=10.0.0.9
        10.0.0.9 argocd.local
        10.0.0.9 keycloak.local
        # END devenv dev 0123456789ab
        ");
        assert_eq!(look(&file, &at("10.0.0.9")).state, State::Same);
        assert_eq!(look(&file, &at("10.0.0.8")).state, State::Differs);
        assert_eq!(look(&file, &dev()).state, State::Differs);
        // Back and forth, and out again.
        let here = insert(&file, &dev()).unwrap();
        assert_eq!(insert(&here, &at("10.0.0.9")).unwrap(), file);
        assert_eq!(
            remove(&file, &dev().owner.id).unwrap(),
            b"127.0.0.1 localhost\n"
        );
        // A line that was changed by hand leads elsewhere than its block says, so it is nobody's to overwrite.
        let text = String::from_utf8(file).unwrap();
        for changed in [
            text.replace("10.0.0.9 argocd", "10.0.0.8 argocd"),
            text.replace("10.0.0.9 argocd", "127.0.0.1 argocd"),
            text.replace("to=10.0.0.9", "to=127.0.0.1"),
        ] {
            let found = look(changed.as_bytes(), &at("10.0.0.9"));
            assert!(matches!(found.state, State::Torn(_)), "{changed}");
            assert!(owners(changed.as_bytes()).is_empty());
        }
        // Another line that leads there is as good, and one that leads to this machine isn't.
        let all = |address: &str| format!("{address} argocd.local keycloak.local\n");
        assert!(look(all("10.0.0.9").as_bytes(), &at("10.0.0.9")).given);
        assert_eq!(
            look(all("127.0.0.1").as_bytes(), &at("10.0.0.9"))
                .conflicts
                .len(),
            2
        );

        for good in [
            "10.0.0.9",
            "172.18.0.2",
            "192.168.1.1",
            "100.64.0.1",
            "203.0.113.7",
            "8.8.8.8",
        ] {
            assert!(balancer(good).is_ok(), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::1",
            "fd00::1",
            "10.0.0",
            "010.0.0.1",
            "a.test",
            "",
        ] {
            assert!(balancer(bad).is_err(), "{bad}");
        }
    }

    fn block_of(owner: Owner, names: &[&str], ipv6: bool) -> Block {
        Block {
            owner,
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            leads: Leads::Here { ipv6 },
        }
    }

    const DEV: &str = "0123456789ab";
    const TEAM: &str = "ba9876543210";

    fn dev() -> Block {
        block_of(owner("dev", DEV), &["argocd.local", "keycloak.local"], true)
    }

    fn team() -> Block {
        block_of(owner("team", TEAM), &["argocd.test"], false)
    }

    /// As text, with the control characters but the newline made visible.
    fn shown(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).replace('\r', "\\r")
    }

    #[test]
    fn a_block_is_put_at_the_end_and_taken_out_again() {
        let file = b"127.0.0.1 localhost\n";
        let with = insert(file, &dev()).unwrap();
        insta::assert_snapshot!(shown(&with), @r"
        127.0.0.1 localhost
        # BEGIN devenv dev 0123456789ab v1 nl=0
        127.0.0.1 argocd.local
        ::1 argocd.local
        127.0.0.1 keycloak.local
        ::1 keycloak.local
        # END devenv dev 0123456789ab
        ");
        assert_eq!(remove(&with, &dev().owner.id).unwrap(), file);
        assert_eq!(look(&with, &dev()).state, State::Same);
        assert_eq!(look(&with, &team()).state, State::Absent);
        assert_eq!(has_ipv6(&with, &dev().owner.id), Some(true));

        let fewer = block_of(dev().owner, &["argocd.local"], false);
        assert_eq!(look(&with, &fewer).state, State::Differs);
        insta::assert_snapshot!(diff("/etc/hosts", &with, &insert(&with, &fewer).unwrap()), @r"
        --- /etc/hosts
        +++ /etc/hosts
        @@ -4,3 +3,0 @@
        -::1 argocd.local
        -127.0.0.1 keycloak.local
        -::1 keycloak.local
        ");
        let none = block_of(dev().owner, &[], false);
        assert_eq!(insert(&with, &none).unwrap(), file);
    }

    #[test]
    fn a_newline_that_was_added_goes_with_the_last_block_behind_it() {
        let one = insert(b"1.2.3.4 other", &dev()).unwrap();
        insta::assert_snapshot!(diff("/etc/hosts", b"1.2.3.4 other", &one), @r"
        --- /etc/hosts
        +++ /etc/hosts
        @@ -1 +1,7 @@
        -1.2.3.4 other
        \ No newline at end of file
        +1.2.3.4 other
        +# BEGIN devenv dev 0123456789ab v1 nl=1
        +127.0.0.1 argocd.local
        +::1 argocd.local
        +127.0.0.1 keycloak.local
        +::1 keycloak.local
        +# END devenv dev 0123456789ab
        ");
        let two = insert(&one, &team()).unwrap();
        assert_eq!(owners(&two), [self::dev().owner, self::team().owner]);
        assert!(shown(&two).contains("team ba9876543210 v1 nl=1\n"));
        let (dev, team) = (dev().owner.id, team().owner.id);
        let left = remove(&two, &dev).unwrap();
        assert_eq!(remove(&left, &team).unwrap(), b"1.2.3.4 other");
        let left = remove(&two, &team).unwrap();
        assert_eq!(remove(&left, &dev).unwrap(), b"1.2.3.4 other");
        // Whoever wrote behind it needs it.
        let written_behind = [&one[..], b"5.6.7.8 new\n"].concat();
        assert_eq!(
            remove(&written_behind, &dev).unwrap(),
            b"1.2.3.4 other\n5.6.7.8 new\n"
        );
    }

    #[test]
    fn a_torn_block_is_shown_and_left_alone() {
        let torn = |file: &str| {
            let found = look(file.as_bytes(), &dev()).state;
            let State::Torn(torn) = found else {
                panic!("{found:?}");
            };
            assert_eq!(insert(file.as_bytes(), &dev()), Err(torn.clone()));
            assert_eq!(remove(file.as_bytes(), &dev().owner.id), Err(torn.clone()));
            torn.to_string()
        };
        let (begin, end) = (
            "# BEGIN devenv dev 0123456789ab v1 nl=0\n",
            "# END devenv dev 0123456789ab\n",
        );
        let files = [
            format!("a\n{begin}127.0.0.1 argocd.local\n"),
            format!("a\n{end}"),
            format!("{begin}{begin}{end}"),
            format!("{begin}{end}b\n{begin}{end}"),
            format!("{begin}10.0.0.1 my.own\n{end}"),
            format!("{begin}# BEGIN devenv team ba9876543210 v1 nl=0\n{end}"),
            "# BEGIN devenv dev 0123456789ab v2 nl=0\n".to_owned(),
            "# END devenv dev 0123456789ab of old\n".to_owned(),
        ];
        insta::assert_snapshot!(files.map(|file| torn(&file)).join("\n"), @r"
        line 2: the block begins and never ends
        line 2: the block ends without having begun
        line 2: the block begins once more, without having ended since line 1
        line 4: the block is there twice
        line 2: in the block is a line that isn't devenv's
        line 2: in the block is a line that isn't devenv's
        line 1: the block's marker isn't one of this version of devenv
        line 1: the block's marker isn't one of this version of devenv
        ");
    }

    #[test]
    fn lines_of_others_conflict_or_do_the_work() {
        let found = look(
            b"\xef\xbb\xbf10.0.0.1 x ARGOCD.local # argocd.local\r\nfe80::1%lo0\tkeycloak.local\n#10.0.0.2 argocd.local\n127.0.0.1 keycloak.local",
            &dev(),
        );
        let told: Vec<String> = found.conflicts.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(told.join("\n"), @r"
        line 1 leads argocd.local to 10.0.0.1
        line 2 leads keycloak.local to fe80::1
        ");
        assert!(!found.given);
        assert!(dev().without(&found.conflicts).names.is_empty());

        let by_hand = b"127.0.0.1 argocd.local keycloak.local\n::1 keycloak.local argocd.local\n";
        assert!(look(by_hand, &dev()).given);
        let half = b"127.0.0.1 argocd.local keycloak.local\n";
        assert!(!look(half, &dev()).given);
        // Another environment may go at any time, and its block with it.
        let other = block_of(team().owner, &["argocd.local", "keycloak.local"], true);
        let found = look(&insert(b"", &other).unwrap(), &dev());
        assert!(!found.given && found.conflicts.is_empty());
    }

    #[test]
    fn what_editors_do_to_all_lines_is_understood() {
        let with = insert(b"a\n", &dev()).unwrap();
        let dos = shown(&with).replace('\n', "\r\n").into_bytes();
        assert_eq!(look(&dos, &dev()).state, State::Differs);
        assert_eq!(remove(&dos, &dev().owner.id).unwrap(), b"a\r\n");
        let unended = with.strip_suffix(b"\n").unwrap();
        assert_eq!(remove(unended, &dev().owner.id).unwrap(), b"a\n");
    }

    #[test]
    fn names_and_ids_are_checked() {
        for name in ["argocd.local", "a.b.example.com", "xn--bcher-kva.test"] {
            name.parse::<HostName>().unwrap();
        }
        let long = format!("{}.local", "a".repeat(64));
        let longer = ["abcdefg"; 40].join(".");
        for name in [
            "",
            "local",
            ".local",
            "a..b",
            "a.local.",
            "A.local",
            "a b.local",
            "a_b.local",
            "-a.local",
            "127.0.0.1",
            "1.2",
            "::1",
            "a.local\n10.0.0.1 b",
            "bücher.test",
            &long,
            &longer,
        ] {
            name.parse::<HostName>().unwrap_err();
        }
        "0123456789ab".parse::<Id>().unwrap();
        for id in [
            "",
            "0123456789a",
            "0123456789abc",
            "0123456789AB",
            "0123456789 b",
            "../../../etc",
        ] {
            id.parse::<Id>().unwrap_err();
        }
    }

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        insta::assert_snapshot!(diff("f", b"a\n\x1b[2J\xff\0\n", b"a\n"), @r"
        --- f
        +++ f
        @@ -2 +1,0 @@
        -\u{1b}[2J�\u{0}
        ");
    }

    /// As many as `PROPTEST_CASES` says; without it as many as take a second or two.
    fn cases() -> ProptestConfig {
        match std::env::var_os("PROPTEST_CASES") {
            Some(_) => ProptestConfig::default(),
            None => ProptestConfig::with_cases(4_000),
        }
    }

    /// A piece of a file: anything at all, and far more often than chance would have it, what looks like a block of one of three
    /// environments, or of one of them a part.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let id = prop_oneof![
            Just(DEV),
            Just(TEAM),
            Just("cccccccccccc"),
            Just("0123456789aB")
        ];
        let end = prop_oneof![4 => Just("\n"), 1 => Just("\r\n"), 1 => Just(""), 1 => Just(" \n")];
        let marker = (any::<bool>(), id.clone(), 1..3_u8, 0..4_u32, end.clone());
        let marker = marker.prop_map(|(begins, id, version, number, end)| match begins {
            true => format!("# BEGIN devenv x {id} v{version} nl={number}{end}"),
            false => format!("# END devenv x {id}{end}"),
        });
        let whole = (id, 0..4_u32, end.clone()).prop_map(|(id, number, end)| {
            format!(
                "# BEGIN devenv x {id} v1 nl={number}\n127.0.0.1 a.local\n# END devenv x {id}{end}"
            )
        });
        let address = prop_oneof![Just("127.0.0.1"), Just("::1"), Just("10.0.0.1"), Just("#")];
        let name = prop_oneof![
            Just("argocd.local"),
            Just("localhost"),
            Just("KEYCLOAK.local")
        ];
        let line =
            (address, name, end).prop_map(|(address, name, end)| format!("{address} {name}{end}"));
        prop_oneof![
            3 => proptest::collection::vec(any::<u8>(), 0..20),
            1 => Just(BYTE_ORDER_MARK.to_vec()),
            2 => Just(b"\n".to_vec()),
            2 => marker.prop_map(String::into_bytes),
            3 => whole.prop_map(String::into_bytes),
            4 => line.prop_map(String::into_bytes),
        ]
    }

    fn file() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(piece(), 0..7).prop_map(|pieces| pieces.concat())
    }

    fn names() -> impl Strategy<Value = (Vec<String>, bool)> {
        (
            proptest::collection::vec("[a-z]{1,3}\\.(local|test)", 1..4),
            any::<bool>(),
        )
    }

    fn block((names, ipv6): (Vec<String>, bool)) -> Block {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        block_of(dev().owner, &names, ipv6)
    }

    proptest! {
        #![proptest_config(cases())]

        #[test]
        fn what_is_put_in_is_taken_out(file in file(), names in names(), other in names()) {
            let (block, other) = (block(names), block(other));
            let id = &block.owner.id;
            match find(&file, id) {
                Err(torn) => {
                    prop_assert_eq!(insert(&file, &block), Err(torn.clone()));
                    prop_assert_eq!(remove(&file, id), Err(torn));
                }
                Ok(place) => {
                    let without = remove(&file, id).unwrap();
                    let with = insert(&file, &block).unwrap();
                    match place {
                        None => {
                            prop_assert!(with.starts_with(&file));
                            prop_assert_eq!(&without, &file);
                        }
                        Some(place) => {
                            prop_assert!(with.starts_with(&file[..place.bytes.start]));
                            prop_assert!(with.ends_with(&file[place.bytes.end..]));
                        }
                    }
                    prop_assert_eq!(&remove(&with, id).unwrap(), &without);
                    prop_assert_eq!(&insert(&with, &block).unwrap(), &with);
                    // A block of other names takes its place, and nothing else changes.
                    let replaced = insert(&with, &other).unwrap();
                    prop_assert_eq!(&insert(&replaced, &block).unwrap(), &with);
                    prop_assert_eq!(&remove(&replaced, id).unwrap(), &without);
                    prop_assert_eq!(state(&with, &block), State::Same);
                    let _ = look(&with, &block);
                }
            }
        }

        #[test]
        fn anything_at_all_comes_back(file in proptest::collection::vec(any::<u8>(), 0..200), names in names()) {
            let block = block(names);
            let with = insert(&file, &block).unwrap();
            prop_assert_eq!(remove(&with, &block.owner.id).unwrap(), file);
        }

        #[test]
        fn two_environments_come_and_go_in_any_order(file in file(), names in names()) {
            let (one, other) = (block(names), team());
            let is_free = |block: &Block| find(&file, &block.owner.id) == Ok(None);
            if is_free(&one) && is_free(&other) {
                for (first, second) in [(&one, &other), (&other, &one)] {
                    let with = insert(&insert(&file, first).unwrap(), second).unwrap();
                    for (first, second) in [(&one, &other), (&other, &one)] {
                        let left = remove(&with, &first.owner.id).unwrap();
                        prop_assert_eq!(state(&left, second), State::Same);
                        prop_assert_eq!(&remove(&left, &second.owner.id).unwrap(), &file);
                    }
                }
            }
        }

        #[test]
        fn what_others_write_meanwhile_stays(file in file(), behind in file(), names in names()) {
            let block = block(names);
            let id = &block.owner.id;
            if let (Ok(None), Ok(None)) = (find(&file, id), find(&behind, id)) {
                let with = insert(&file, &block).unwrap();
                let with = [&with[..], b"\n", &behind].concat();
                let newline: &[u8] = match file.last() {
                    None | Some(b'\n') => b"",
                    _ if file == BYTE_ORDER_MARK => b"",
                    Some(_) => b"\n",
                };
                prop_assert_eq!(remove(&with, id).unwrap(), [&file[..], newline, b"\n", &behind].concat());
            }
        }

        #[test]
        fn the_two_sides_of_a_diff_are_the_two_files(old in file(), new in file()) {
            let side = |skipped: char, text: &str| -> usize {
                text.lines().skip(3).filter(|line| !line.starts_with(skipped) && !line.starts_with('\\')).count()
            };
            let text = diff("f", &old, &new);
            prop_assert_eq!(text.is_empty(), old == new);
            if old != new {
                let count = |bytes: &[u8]| bytes.split_inclusive(|byte| *byte == b'\n').count();
                prop_assert_eq!(count(&old).abs_diff(count(&new)), side('+', &text).abs_diff(side('-', &text)));
            }
        }
    }
}
