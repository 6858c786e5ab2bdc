//! YAML, and the places in it: the only file that names the YAML crate.
//!
//! Two kinds of text come through here. What a person wrote for devenv ([`Source`], [`parse`]) is read strictly, as
//! YAML 1.2, and every mistake has its line and column. What is meant for Kubernetes ([`documents`]) is read as `kubectl`
//! reads it, which is YAML 1.1 where it comes to plain `yes`, `on` and `0644`.
//!
//! The YAML crate tells a place only with an error. So [`Source::place`] finds the place of a key by walking there and
//! failing on purpose, which is right for every notation (flow style, anchors, quotes), as no scanner of our own would be.

use std::cell::Cell;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};

use crate::error::Mistake;
use crate::suggest::did_you_mean;

/// The most that a file may hold that a person wrote.
const MAX_BYTES: usize = 1 << 20;
/// The most values such a file may have after its aliases are followed, so that a small file can't become a huge one.
const MAX_VALUES: usize = 100_000;
/// The same for manifests: all of Istio's definitions have about 50,000.
const MAX_MANIFEST_VALUES: usize = 5_000_000;
/// Stands before our own messages inside the YAML crate's errors, to tell them from the path that it puts in front.
const OURS: char = '\u{1}';

/// A file that a person wrote, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Where it is.
    pub file: PathBuf,
    /// What it says, without a byte order mark.
    pub text: String,
}

/// One step on the way from the root of a document to a place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment<'a> {
    /// To the value of this key.
    Key(&'a str),
    /// To this item of a list, from 0.
    Item(usize),
    /// To this key itself; can only be the last step.
    Name(&'a str),
}

impl Source {
    /// A text that is already read.
    pub fn new(file: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            file: file.into(),
            text: match text.strip_prefix('\u{feff}') {
                Some(rest) => rest.to_owned(),
                None => text,
            },
        }
    }

    /// Reads a file; one that is missing, huge or not UTF-8 is a mistake.
    pub fn read(file: &Path) -> Result<Self, Mistake> {
        let unread = |message: String, help: Option<&str>| Mistake {
            file: file.to_owned(),
            place: None,
            message,
            source_line: None,
            help: help.map(str::to_owned),
        };
        let metadata = std::fs::metadata(file).map_err(|error| unread(describe(&error), None))?;
        if metadata.is_dir() {
            return Err(unread("is a folder, expected a file".to_owned(), None));
        }
        if metadata.len() > MAX_BYTES as u64 {
            return Err(unread(
                format!(
                    "has {} bytes, and at most {MAX_BYTES} are read",
                    metadata.len()
                ),
                Some("is this the file you meant?"),
            ));
        }
        let bytes = std::fs::read(file).map_err(|error| unread(describe(&error), None))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(file, text)),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..good]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count();
                Err(unread(
                    format!("isn't text: byte {good}, in line {line}, is not UTF-8"),
                    Some("save the file as UTF-8"),
                ))
            }
        }
    }

    /// The file as a value of `T`; see [`parse`].
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Mistake> {
        // The first pass finds what serde's own visitors let pass: repeated keys, keys without a value, aliases that
        // multiply. The second can then rely on a small and plain document.
        self.read_one(Dialect::Strict)?;
        let deserializer = serde_yaml::Deserializer::from_str(&self.text);
        T::deserialize(deserializer).map_err(|error| self.mistake_of(&error))
    }

    /// The file as a tree, for another tool's format: any keys, but no key twice.
    pub fn value(&self) -> Result<Value, Mistake> {
        self.read_one(Dialect::Native)
    }

    /// Line and column, both from 1, of the value or key at the end of this path.
    pub fn place(&self, path: &[Segment<'_>]) -> Option<(usize, usize)> {
        let walk = Walk { path };
        let error = walk
            .deserialize(serde_yaml::Deserializer::from_str(&self.text))
            .err()?;
        let location = error.location()?;
        Some((location.line(), location.column()))
    }

    /// A mistake at the end of this path, or at the nearest place above it that exists.
    pub fn mistake(
        &self,
        path: &[Segment<'_>],
        message: impl Into<String>,
        help: Option<String>,
    ) -> Mistake {
        let place = (1..=path.len())
            .rev()
            .find_map(|length| self.place(&path[..length]));
        self.mistake_in(place, message.into(), help)
    }

    fn mistake_in(
        &self,
        place: Option<(usize, usize)>,
        message: String,
        help: Option<String>,
    ) -> Mistake {
        Mistake {
            file: self.file.clone(),
            place,
            message,
            source_line: place.and_then(|(line, _)| self.line(line)).map(printable),
            help,
        }
    }

    fn line(&self, number: usize) -> Option<&str> {
        self.text.lines().nth(number.checked_sub(1)?)
    }

    fn read_one(&self, dialect: Dialect) -> Result<Value, Mistake> {
        if self.text.len() > MAX_BYTES {
            let message = format!(
                "has {} bytes, and at most {MAX_BYTES} are read",
                self.text.len()
            );
            return Err(self.mistake_in(None, message, None));
        }
        let budget = Cell::new(MAX_VALUES);
        let tree = Tree {
            text: &self.text,
            dialect,
            budget: &budget,
            root: true,
        };
        let value = tree
            .deserialize(serde_yaml::Deserializer::from_str(&self.text))
            .map_err(|error| self.mistake_of(&error))?;
        match value {
            Value::Null => Err(self.mistake_in(None, "the file is empty".to_owned(), None)),
            value => Ok(value),
        }
    }

    /// The YAML crate's error in a person's words.
    fn mistake_of(&self, error: &serde_yaml::Error) -> Mistake {
        let place = error
            .location()
            .map(|location| (location.line(), location.column()));
        let full = error.to_string();
        if let Some((path, ours)) = full.split_once(OURS) {
            let _ = path; // our messages name the key themselves
            let (message, help) = ours.split_once(OURS).unwrap_or((ours, ""));
            let message = without_place(message, place);
            let help = without_place(help, place);
            let help = (!help.is_empty()).then(|| help.to_owned());
            return self.mistake_in(place, message.to_owned(), help);
        }
        if full.contains("more than one document") {
            let is_content = |line: &str| !line.is_empty() && !line.starts_with(['#', '-', '%']);
            let second = self
                .text
                .lines()
                .enumerate()
                .skip_while(|(_, line)| !is_content(line))
                .find(|(_, line)| line.starts_with("---"))
                .map(|(index, _)| (index + 1, 1));
            let message = "the file holds more than one document, expected one".to_owned();
            return self.mistake_in(second, message, None);
        }
        if let Some((line, _)) = place
            && let Some(text) = self.line(line)
            && let Some(tab) = text.find(|character| character != ' ')
            && text[tab..].starts_with('\t')
        {
            return self.mistake_in(
                Some((line, tab + 1)),
                "a tab in the indentation, expected spaces".to_owned(),
                Some("YAML allows no tab there; set your editor to indent with spaces".to_owned()),
            );
        }
        let (message, help) = in_our_words(&full, place);
        self.mistake_in(place, message, help)
    }
}

/// The text of a file as a value of `T`, or what is wrong with it: unknown keys, wrong types, keys given twice or without
/// a value, tabs, an empty file, more than one document.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, Mistake> {
    Source::new(file, text).parse()
}

/// Every document of a manifest, read as `kubectl` reads it; empty documents are left out.
///
/// That is YAML 1.1 for plain scalars: `yes`, `on` and `y` are true, `0644` is octal, `1_000` is a number, `1.0` is sent
/// as 1; keys become text; `<<` merges. Quoted ones stay text. A key given twice is refused, though `kubectl` would take
/// the last one.
pub fn documents(origin: &str, text: &str) -> anyhow::Result<Vec<Value>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let budget = Cell::new(MAX_MANIFEST_VALUES);
    let mut documents = Vec::new();
    for (index, document) in serde_yaml::Deserializer::from_str(text).enumerate() {
        let tree = Tree {
            text,
            dialect: Dialect::Kubectl,
            budget: &budget,
            root: true,
        };
        let value = tree
            .deserialize(document)
            .map_err(|error| anyhow::anyhow!("{}", error.to_string().replace(OURS, "")))
            .with_context(|| format!("document {} of {origin} isn't valid YAML", index + 1))?;
        match value {
            Value::Null => {}
            Value::Object(_) => documents.push(value),
            _ => bail!("document {} of {origin} is no mapping", index + 1),
        }
    }
    Ok(documents)
}

/// The value as YAML that every reader understands alike: texts that YAML 1.1 or 1.2 would take for something else are
/// quoted.
pub fn to_string(value: &Value) -> String {
    serde_yaml::to_string(value)
        .expect("a JSON value has only text for keys, so it can always be written")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Our own files: YAML 1.2, and no key without a value.
    Strict,
    /// Another tool's file that a person wrote: YAML 1.2, but `0644` is octal as in every YAML reader written in Go.
    Native,
    /// Manifests: YAML 1.1.
    Kubectl,
}

/// Reads any value into a JSON tree.
#[derive(Clone, Copy)]
struct Tree<'a> {
    text: &'a str,
    dialect: Dialect,
    budget: &'a Cell<usize>,
    root: bool,
}

impl Tree<'_> {
    fn inner(self) -> Self {
        Self {
            root: false,
            ..self
        }
    }

    fn spend<E: serde::de::Error>(&self) -> Result<(), E> {
        match self.budget.get().checked_sub(1) {
            Some(left) => {
                self.budget.set(left);
                Ok(())
            }
            None => Err(ours("too many values once its aliases are followed", "")),
        }
    }

    /// A text that stands in the file just as it is: quoted, or plain and then perhaps meant as something else.
    fn scalar(&self, borrowed: &str) -> Value {
        if self.dialect == Dialect::Strict || !self.is_plain(borrowed) {
            return Value::from(borrowed);
        }
        plain_scalar(borrowed, self.dialect).unwrap_or_else(|| Value::from(borrowed))
    }

    /// Whether this part of the file is written without quotes and without the tag that makes it text.
    fn is_plain(&self, borrowed: &str) -> bool {
        let offset = (borrowed.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let Some(before) = self.text.get(..offset) else {
            return false;
        };
        !before.ends_with(['"', '\'']) && !before.trim_end_matches(' ').ends_with("!!str")
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.spend()?;
        if self.dialect == Dialect::Strict && !self.root {
            return Err(ours(
                "a value is missing here",
                "write one, or leave the key out",
            ));
        }
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.spend()?;
        Ok(Value::from(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.spend()?;
        Ok(Value::from(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.spend()?;
        Ok(Value::from(value))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Value, E> {
        self.visit_f64(value as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.spend()?;
        number(value).ok_or_else(|| ours("JSON has no such number", ""))
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, value: &'de str) -> Result<Value, E> {
        self.spend()?;
        Ok(self.scalar(value))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.spend()?;
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner())? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.spend()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key {
            tree: self.inner(),
            seen: &map,
        })? {
            let value = entries.next_value_seed(self.inner())?;
            map.insert(key, value);
        }
        if self.dialect == Dialect::Kubectl
            && let Some(merged) = map.remove("<<")
        {
            merge(&mut map, merged)
                .ok_or_else(|| ours::<A::Error>("`<<` merges mappings, and this is none", ""))?;
        }
        Ok(Value::Object(map))
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(ours("a tag (`!…`) has no meaning here", ""))
    }
}

/// Reads a key as text and refuses one that is already there.
struct Key<'a> {
    tree: Tree<'a>,
    seen: &'a Map<String, Value>,
}

impl Key<'_> {
    fn check<E: serde::de::Error>(self, key: Value) -> Result<String, E> {
        let key = match key {
            Value::String(text) => text,
            other => other.to_string(),
        };
        if self.seen.contains_key(&key) {
            return Err(ours(
                &format!("`{key}` is given twice"),
                "keep one of the two",
            ));
        }
        Ok(key)
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<String, E> {
        self.check(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<String, E> {
        self.check(Value::from(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<String, E> {
        self.check(Value::from(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<String, E> {
        self.check(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<String, E> {
        let value = number(value).unwrap_or(Value::Null);
        self.check(value)
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, value: &'de str) -> Result<String, E> {
        let value = self.tree.scalar(value);
        self.check(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<String, E> {
        self.check(Value::from(value))
    }
}

/// Walks along a path and fails at its end, because the failure knows its place.
struct Walk<'a> {
    path: &'a [Segment<'a>],
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.path.first() {
            None => deserializer.deserialize_unit(Here),
            Some(Segment::Item(_)) => deserializer.deserialize_seq(self),
            Some(Segment::Key(_) | Segment::Name(_)) => deserializer.deserialize_map(self),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the next step of the path")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((Segment::Item(wanted), rest)) = self.path.split_first() else {
            return Ok(());
        };
        for _ in 0..*wanted {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Walk { path: rest })?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.path.split_first() else {
            return Ok(());
        };
        let name = match step {
            Segment::Name(name) => Some(*name),
            _ => None,
        };
        while let Some(key) = entries.next_key_seed(KeyUnless { name })? {
            if *step == Segment::Key(&key) {
                entries.next_value_seed(Walk { path: rest })?;
            } else {
                entries.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Reads a key, and fails at the one whose place is wanted.
struct KeyUnless<'a> {
    name: Option<&'a str>,
}

impl<'de> DeserializeSeed<'de> for KeyUnless<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyUnless<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<String, E> {
        if self.name == Some(value) {
            return Err(E::custom("here"));
        }
        Ok(value.to_owned())
    }
}

/// Accepts nothing.
struct Here;

impl Visitor<'_> for Here {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the end of the path")
    }
}

/// A plain scalar that YAML 1.2 takes for text and Go's reader of YAML 1.1 for something else.
fn plain_scalar(text: &str, dialect: Dialect) -> Option<Value> {
    if dialect == Dialect::Kubectl {
        match text {
            "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
                return Some(Value::from(true));
            }
            "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
                return Some(Value::from(false));
            }
            _ => {}
        }
    }
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(unsigned) => (-1, unsigned),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+'))
        || !unsigned.starts_with(|first: char| first.is_ascii_digit())
    {
        return None;
    }
    let digits = unsigned.replace('_', "");
    if let Some(octal) = digits.strip_prefix('0')
        && let Ok(value) = i64::from_str_radix(octal, 8)
    {
        return Some(Value::from(sign * value));
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        // With a leading zero and an 8 or 9, Go finds no octal number and falls back to a decimal one.
        return match digits.parse::<i64>() {
            Ok(value) => Some(Value::from(sign * value)),
            Err(_) => digits
                .parse::<f64>()
                .ok()
                .and_then(|value| number(value * sign as f64)),
        };
    }
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        .then(|| digits.parse::<f64>().ok())
        .flatten()
        .and_then(|value| number(value * sign as f64))
}

/// A number as Go writes it in JSON: without a fraction where it has none, or the API server would refuse it for an integer.
fn number(value: f64) -> Option<Value> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53: whole numbers up to here are exact
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}

fn merge(map: &mut Map<String, Value>, merged: Value) -> Option<()> {
    match merged {
        Value::Object(other) => {
            for (key, value) in other {
                map.entry(key).or_insert(value);
            }
            Some(())
        }
        Value::Array(list) => list.into_iter().try_for_each(|item| match item {
            Value::Object(_) => merge(map, item),
            _ => None,
        }),
        _ => None,
    }
}

fn ours<E: serde::de::Error>(message: &str, help: &str) -> E {
    E::custom(format_args!("{OURS}{message}{OURS}{help}"))
}

fn without_place(text: &str, place: Option<(usize, usize)>) -> &str {
    place
        .and_then(|(line, column)| text.strip_suffix(&format!(" at line {line} column {column}")))
        .unwrap_or(text)
}

/// What serde or the YAML parser said, in words for a person who knows neither.
fn in_our_words(full: &str, place: Option<(usize, usize)>) -> (String, Option<String>) {
    const KINDS: [&str; 6] = [
        "unknown field ",
        "missing field ",
        "unknown variant ",
        "invalid type: ",
        "invalid value: ",
        "invalid length ",
    ];
    let found = KINDS.iter().find_map(|kind| {
        let start = if full.starts_with(kind) {
            0
        } else {
            full.find(&format!(": {kind}"))? + 2
        };
        Some((*kind, start))
    });
    let Some((kind, start)) = found else {
        return syntax(full, place);
    };
    let rest = without_place(&full[start + kind.len()..], place);
    let key = full[..start].trim_end_matches(": ");
    match kind {
        "unknown field " => {
            let (name, expected) = rest.split_once(", ").unwrap_or((rest, ""));
            let help = did_you_mean(unquoted(name), quoted_words(expected));
            (format!("unknown key {name}, {expected}"), help)
        }
        "missing field " if key.is_empty() => (format!("the key {rest} is missing"), None),
        "missing field " => (format!("the key {rest} is missing in `{key}`"), None),
        "unknown variant " => {
            let (name, expected) = rest.split_once(", ").unwrap_or((rest, ""));
            let help = did_you_mean(unquoted(name), quoted_words(expected));
            (format!("`{key}` can't be {name}, {expected}"), help)
        }
        _ => {
            let (found, expected) = rest
                .split_once(", expected ")
                .unwrap_or((rest, "something else"));
            let what = if key.is_empty() {
                "the file".to_owned()
            } else {
                format!("`{key}`")
            };
            (
                format!(
                    "{what} is {}, expected {}",
                    kind_found(found),
                    kind_expected(expected)
                ),
                None,
            )
        }
    }
}

fn syntax(full: &str, place: Option<(usize, usize)>) -> (String, Option<String>) {
    let at = place.map(|(line, column)| format!(" at line {line} column {column}"));
    let message = match at {
        Some(at) => full.replacen(&at, "", 1),
        None => full.to_owned(),
    };
    let help = if message.contains("mapping values are not allowed") {
        Some("the indentation is off, or a text with `: ` in it needs quotes".to_owned())
    } else if message.contains("cannot start any token") {
        Some("a text that begins with such a character needs quotes".to_owned())
    } else {
        None
    };
    (format!("isn't valid YAML: {message}"), help)
}

fn kind_found(found: &str) -> String {
    match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "floating", number)) => {
            format!("the number {}", number.trim_start_matches("point "))
        }
        Some(("boolean", value)) => value.to_owned(),
        _ if found.starts_with("sequence") => "a list".to_owned(),
        _ if found.starts_with("map") => "a mapping".to_owned(),
        _ => found.to_owned(),
    }
}

fn kind_expected(expected: &str) -> &str {
    match expected {
        "a string" => "a text",
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "a map" => "a mapping (`key: value` lines)",
        "u8" | "u16" | "u32" | "u64" | "i64" => "a whole number",
        _ if expected.starts_with("struct ") => "a mapping (`key: value` lines)",
        other => other,
    }
}

fn unquoted(name: &str) -> &str {
    name.trim_matches('`')
}

fn quoted_words(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn describe(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "you may not read this file".to_owned(),
        _ => format!("can't be read: {error}"),
    }
}

/// A line for the snippet: tabs are shown, and nothing in it can steer the terminal.
fn printable(line: &str) -> String {
    line.chars()
        .map(|character| match character {
            '\t' => '→',
            other if other.is_control() => '·',
            other => other,
        })
        .collect()
}
