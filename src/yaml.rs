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

use anyhow::{Context as _, anyhow, bail};
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
const TOO_MANY: &str = "too many values once its aliases are followed";
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

    /// Every document of the file as `kubectl` reads it, like [`documents`].
    pub fn documents(&self) -> Result<Vec<Value>, Mistake> {
        let budget = Cell::new(MAX_MANIFEST_VALUES);
        let mut documents = Vec::new();
        for document in serde_yaml::Deserializer::from_str(&self.text) {
            let tree = Tree {
                text: &self.text,
                dialect: Dialect::Kubectl,
                budget: &budget,
                root: true,
            };
            match tree.deserialize(document) {
                Ok(Value::Null) => {}
                Ok(value @ Value::Object(_)) => documents.push(value),
                Ok(_) => {
                    let message = "holds a document that is no mapping".to_owned();
                    return Err(self.mistake_in(None, message, None));
                }
                Err(error) => return Err(self.mistake_of(&error)),
            }
        }
        Ok(documents)
    }

    /// Line and column, both from 1, of the value or key at the end of this path.
    pub fn place(&self, path: &[Segment<'_>]) -> Option<(usize, usize)> {
        let walk = Walk { path };
        let error = walk
            .deserialize(serde_yaml::Deserializer::from_str(&self.text))
            .err()?;
        place_of(&error)
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
            Value::Null => Err(self.mistake_in(
                None,
                "the file is empty, expected a mapping (`key: value` lines)".to_owned(),
                None,
            )),
            value => Ok(value),
        }
    }

    /// The YAML crate's error in a person's words.
    fn mistake_of(&self, error: &serde_yaml::Error) -> Mistake {
        let place = place_of(error);
        let full = error.to_string();
        if let Some((message, help)) = our_own(&full, place) {
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
        if let Some((message, position)) = message.rsplit_once(" at position ")
            && let Ok(position) = position.parse()
        {
            return self.mistake_in(self.place_of_byte(position), message.to_owned(), help);
        }
        // What is missing at the end of the file is better shown where it began.
        if let Some((line, _)) = place
            && self.line(line).is_none()
            && let Some((message, began)) = message.rsplit_once(" at line ")
            && let Some((line, column)) = began.split_once(" column ")
            && let (Ok(line), Ok(column)) = (line.parse(), column.parse())
        {
            return self.mistake_in(Some((line, column)), message.to_owned(), help);
        }
        self.mistake_in(place, message, help)
    }

    fn place_of_byte(&self, position: usize) -> Option<(usize, usize)> {
        let before = self.text.get(..position)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        Some((line, before[line_start..].chars().count() + 1))
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
            .map_err(|error| anyhow!(in_one_line(&error)))
            .with_context(|| format!("document {} of {origin} isn't valid YAML", index + 1))?;
        match value {
            Value::Null => {}
            Value::Object(_) => documents.push(value),
            _ => bail!("document {} of {origin} is no mapping", index + 1),
        }
    }
    Ok(documents)
}

/// The value as YAML that every reader understands alike.
///
/// Only texts that no version of YAML could take for something else stand without quotes. The YAML crate's own writer
/// leaves `yes` plain, which `kubectl` reads as true.
pub fn to_string(value: &Value) -> String {
    let mut text = String::new();
    write(value, 0, &mut text);
    text.trim_start().to_owned() + "\n"
}

/// Writes what stands after a `key:` or a `-`: a space and a scalar, or a block in lines of its own.
fn write(value: &Value, depth: usize, text: &mut String) {
    let line = |text: &mut String| {
        text.push('\n');
        text.extend(std::iter::repeat_n("  ", depth));
    };
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                line(text);
                text.push_str(&written(key));
                text.push(':');
                write(value, depth + 1, text);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                line(text);
                text.push('-');
                write(value, depth + 1, text);
            }
        }
        Value::String(scalar) => {
            text.push(' ');
            text.push_str(&written(scalar));
        }
        other => {
            text.push(' ');
            text.push_str(&other.to_string());
        }
    }
}

/// A text as a scalar: plain where it is surely text, else in double quotes, which are JSON's but for the characters that
/// YAML wants escaped and JSON doesn't.
fn written(text: &str) -> String {
    const WORDS: [&str; 10] = [
        "y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan",
    ];
    let is_plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if is_plain {
        return text.to_owned();
    }
    let needs_escape = |letter: char| {
        letter.is_control()
            || matches!(
                letter,
                '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
            )
    };
    Value::from(text)
        .to_string()
        .chars()
        .map(|letter| match letter {
            _ if needs_escape(letter) => format!("\\u{:04x}", letter as u32),
            _ => letter.to_string(),
        })
        .collect()
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
            None => Err(ours(TOO_MANY, "")),
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

fn place_of(error: &serde_yaml::Error) -> Option<(usize, usize)> {
    let location = error.location()?;
    Some((location.line(), location.column()))
}

/// The message and the help of an error that [`ours`] made, without the path that the YAML crate put in front of it and
/// the place it put behind: our messages name the key themselves.
fn our_own(full: &str, place: Option<(usize, usize)>) -> Option<(&str, &str)> {
    let (_path, ours) = full.split_once(OURS)?;
    let (message, help) = ours.split_once(OURS)?;
    Some((message, without_place(help, place)))
}

/// An error in a manifest, which nobody here wrote and nobody needs a snippet of.
fn in_one_line(error: &serde_yaml::Error) -> String {
    let place = place_of(error);
    let full = error.to_string();
    match (our_own(&full, place), place) {
        (Some((message, _)), Some((line, column))) => {
            format!("{message} at line {line} column {column}")
        }
        (Some((message, _)), None) => message.to_owned(),
        (None, _) => full,
    }
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
    if message.contains("repetition limit exceeded") {
        return (TOO_MANY.to_owned(), None);
    }
    if message.contains("recursion limit exceeded") {
        return (
            "nested too deeply, at most 128 levels are read".to_owned(),
            None,
        );
    }
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
        "i64" => "a whole number",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "a YAML tag starting with '!'" => "a text", // so it calls the name of an enum's variant
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use insta::assert_snapshot;
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::Segment::{Item, Key, Name};
    use super::{Source, documents, parse, to_string};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case")]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Settings {
        wave: u8,
        #[serde(default)]
        needs: Vec<String>,
        kind: Option<Kind>,
        #[serde(default)]
        fast: bool,
        #[serde(default)]
        names: BTreeMap<String, String>,
        upstream: Option<Upstream>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum Kind {
        Registry,
        Packages,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Upstream {
        path: String,
        version: String,
    }

    fn mistake(text: &str) -> String {
        match parse::<Settings>(Path::new("settings.yaml"), text) {
            Ok(settings) => format!("{settings:?}"),
            Err(mistake) => mistake.to_string(),
        }
    }

    #[test]
    fn what_is_right_is_read() {
        assert_snapshot!(
            mistake("\u{feff}# a comment\nwave: 2\nneeds: [istio]\nkind: packages\nupstream: {path: a, version: 1.30}\n"),
            @r#"Settings { wave: 2, needs: ["istio"], kind: Some(Packages), fast: false, names: {}, upstream: Some(Upstream { path: "a", version: "1.30" }) }"#
        );
        assert_snapshot!(mistake("wave: 1\nneeds: &some [a]\nnames: {a: b, \"c\": d}\n"), @r#"Settings { wave: 1, needs: ["a"], kind: None, fast: false, names: {"a": "b", "c": "d"}, upstream: None }"#);
    }

    #[test]
    fn an_unknown_key() {
        assert_snapshot!(mistake("wave: 1\nneedz: []\n"), @r"
        settings.yaml:2:1: unknown key `needz`, expected one of `wave`, `needs`, `kind`, `fast`, `names`, `upstream`
          |
        2 | needz: []
          | ^
        hint: did you mean `needs`?
        ");
        assert_snapshot!(mistake("colour: red\nwave: 1\n"), @r"
        settings.yaml:1:1: unknown key `colour`, expected one of `wave`, `needs`, `kind`, `fast`, `names`, `upstream`
          |
        1 | colour: red
          | ^
        ");
        assert_snapshot!(mistake("wave: 1\nupstream:\n  path: a\n  versoin: 1\n"), @r"
        settings.yaml:4:3: unknown key `versoin`, expected `path` or `version`
          |
        4 |   versoin: 1
          |   ^
        hint: did you mean `version`?
        ");
    }

    #[test]
    fn a_wrong_type() {
        assert_snapshot!(mistake("wave: two\n"), @r#"
        settings.yaml:1:7: `wave` is the text "two", expected a whole number from 0 to 255
          |
        1 | wave: two
          |       ^
        "#);
        assert_snapshot!(mistake("wave: -1\n"), @r"
        settings.yaml:1:7: `wave` is the number `-1`, expected a whole number from 0 to 255
          |
        1 | wave: -1
          |       ^
        ");
        assert_snapshot!(mistake("wave: 1.5\n"), @r"
        settings.yaml:1:7: `wave` is the number `1.5`, expected a whole number from 0 to 255
          |
        1 | wave: 1.5
          |       ^
        ");
        assert_snapshot!(mistake("wave: 300\n"), @r"
        settings.yaml:1:7: `wave` is the number `300`, expected a whole number from 0 to 255
          |
        1 | wave: 300
          |       ^
        ");
        assert_snapshot!(mistake("wave: [1]\n"), @r"
        settings.yaml:1:7: `wave` is a list, expected a whole number from 0 to 255
          |
        1 | wave: [1]
          |       ^
        ");
        assert_snapshot!(mistake("wave: 1\nneeds: istio\n"), @r#"
        settings.yaml:2:8: `needs` is the text "istio", expected a list
          |
        2 | needs: istio
          |        ^
        "#);
        assert_snapshot!(mistake("wave: 1\nneeds:\n  - istio\n  - gateway: ready\n"), @r"
        settings.yaml:4:5: `needs[1]` is a mapping, expected a text
          |
        4 |   - gateway: ready
          |     ^
        ");
        assert_snapshot!(mistake("wave: 1\nfast: \"yes\"\n"), @r#"
        settings.yaml:2:7: `fast` is the text "yes", expected true or false
          |
        2 | fast: "yes"
          |       ^
        "#);
        assert_snapshot!(mistake("wave: 1\nupstream: [a]\n"), @r"
        settings.yaml:2:11: `upstream` is a list, expected a mapping (`key: value` lines)
          |
        2 | upstream: [a]
          |           ^
        ");
        assert_snapshot!(mistake("- wave: 1\n"), @r"
        settings.yaml:1:1: the file is a list, expected a mapping (`key: value` lines)
          |
        1 | - wave: 1
          | ^
        ");
        assert_snapshot!(mistake("just words\n"), @r#"
        settings.yaml:1:1: the file is the text "just words", expected a mapping (`key: value` lines)
          |
        1 | just words
          | ^
        "#);
    }

    #[test]
    fn a_value_outside_its_choice() {
        assert_snapshot!(mistake("wave: 1\nkind: package\n"), @r"
        settings.yaml:2:7: `kind` can't be `package`, expected `registry` or `packages`
          |
        2 | kind: package
          |       ^
        hint: did you mean `packages`?
        ");
        assert_snapshot!(mistake("wave: 1\nkind: {registry: yes}\n"), @r"
        settings.yaml:2:7: `kind` is a mapping, expected a text
          |
        2 | kind: {registry: yes}
          |       ^
        ");
    }

    #[test]
    fn a_missing_key_or_value() {
        assert_snapshot!(mistake("# no wave\nneeds: []\n"), @r"
        settings.yaml:2:1: the key `wave` is missing
          |
        2 | needs: []
          | ^
        ");
        assert_snapshot!(mistake("wave: 1\nupstream:\n  path: a\n"), @r"
        settings.yaml:3:3: the key `version` is missing in `upstream`
          |
        3 |   path: a
          |   ^
        ");
        assert_snapshot!(mistake("wave: 1\nneeds:\n"), @r"
        settings.yaml:2:7: a value is missing here
          |
        2 | needs:
          |       ^
        hint: write one, or leave the key out
        ");
        assert_snapshot!(mistake("wave: 1\nneeds: [a, ~]\n"), @r"
        settings.yaml:2:12: a value is missing here
          |
        2 | needs: [a, ~]
          |            ^
        hint: write one, or leave the key out
        ");
    }

    #[test]
    fn a_key_given_twice() {
        assert_snapshot!(mistake("wave: 1\nneeds: []\nwave: 2\n"), @r"
        settings.yaml:3:1: `wave` is given twice
          |
        3 | wave: 2
          | ^
        hint: keep one of the two
        ");
        assert_snapshot!(mistake("wave: 1\nnames:\n  a: b\n  'a': c\n"), @r"
        settings.yaml:4:3: `a` is given twice
          |
        4 |   'a': c
          |   ^
        hint: keep one of the two
        ");
    }

    #[test]
    fn a_tab() {
        assert_snapshot!(mistake("wave: 1\nneeds:\n\t- istio\n"), @r"
        settings.yaml:3:1: a tab in the indentation, expected spaces
          |
        3 | →- istio
          | ^
        hint: YAML allows no tab there; set your editor to indent with spaces
        ");
        assert_snapshot!(mistake("wave: 1\nnames:\n  a: b\n \tc: d\n"), @r"
        settings.yaml:4:2: a tab in the indentation, expected spaces
          |
        4 |  →c: d
          |  ^
        hint: YAML allows no tab there; set your editor to indent with spaces
        ");
        assert_snapshot!(mistake("\twave: 1\n"), @r"
        settings.yaml:1:1: a tab in the indentation, expected spaces
          |
        1 | →wave: 1
          | ^
        hint: YAML allows no tab there; set your editor to indent with spaces
        ");
    }

    #[test]
    fn an_empty_file() {
        assert_snapshot!(mistake(""), @"settings.yaml: the file is empty, expected a mapping (`key: value` lines)");
        assert_snapshot!(mistake("# only a comment\n"), @"settings.yaml: the file is empty, expected a mapping (`key: value` lines)");
        assert_snapshot!(mistake("---\n"), @"settings.yaml: the file is empty, expected a mapping (`key: value` lines)");
    }

    #[test]
    fn no_yaml_at_all() {
        assert_snapshot!(mistake("wave: 1\nneeds: [a, b\n"), @r"
        settings.yaml:2:8: isn't valid YAML: did not find expected ',' or ']', while parsing a flow sequence
          |
        2 | needs: [a, b
          |        ^
        ");
        assert_snapshot!(mistake("wave: 1\n needs: []\n"), @r"
        settings.yaml:2:7: isn't valid YAML: mapping values are not allowed in this context
          |
        2 |  needs: []
          |       ^
        hint: the indentation is off, or a text with `: ` in it needs quotes
        ");
        assert_snapshot!(mistake("wave: 1\nkind: @home\n"), @r"
        settings.yaml:2:7: isn't valid YAML: found character that cannot start any token, while scanning for the next token
          |
        2 | kind: @home
          |       ^
        hint: a text that begins with such a character needs quotes
        ");
        assert_snapshot!(mistake("wave: \"1\n"), @r#"
        settings.yaml:1:7: isn't valid YAML: found unexpected end of stream, while scanning a quoted scalar
          |
        1 | wave: "1
          |       ^
        "#);
        assert_snapshot!(mistake("wave: *one\n"), @r"
        settings.yaml:1:7: isn't valid YAML: unknown anchor
          |
        1 | wave: *one
          |       ^
        ");
        assert_snapshot!(mistake("wave: !one 1\n"), @r"
        settings.yaml:1:7: a tag (`!…`) has no meaning here
          |
        1 | wave: !one 1
          |       ^
        ");
        assert_snapshot!(mistake("wave: 1\nfast: \u{7}\n"), @r"
        settings.yaml:2:7: isn't valid YAML: control characters are not allowed
          |
        2 | fast: ·
          |       ^
        ");
    }

    #[test]
    fn two_documents_in_one_file() {
        assert_snapshot!(mistake("---\nwave: 1\n---\nwave: 2\n"), @r"
        settings.yaml:3:1: the file holds more than one document, expected one
          |
        3 | ---
          | ^
        ");
    }

    #[test]
    fn a_line_for_a_snippet_is_shown_where_the_mistake_is_and_cannot_steer_the_terminal() {
        assert_snapshot!(mistake("wave: 1\nnames: {größe: 'ü', b: [\u{9b}31m]}\n"), @r"
        settings.yaml:2:25: isn't valid YAML: control characters are not allowed
          |
        2 | names: {größe: 'ü', b: [·31m]}
          |                         ^
        ");
        let long = format!(
            "wave: 1\nneeds: [{}, {{}}]\n",
            "istio, ".repeat(40).trim_end_matches(", ")
        );
        assert_snapshot!(mistake(&long), @r"
        settings.yaml:2:289: `needs[40]` is a mapping, expected a text
          |
        2 | …stio, istio, istio, istio, istio, istio, istio, istio, istio, istio, istio, istio, istio, istio, {}]
          |                                                                                                   ^
        ");
    }

    #[test]
    fn what_grows_without_bound_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let below = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![below; 9].join(", "));
        }
        let list = vec!["x"; 1000].join(", ");
        let wide = format!("a: &a [{list}]\nb: [{}]\n", vec!["*a"; 1000].join(", "));
        assert_snapshot!(mistake(&wide), @r"
        settings.yaml:1:2702: too many values once its aliases are followed
          |
        1 | …, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x,…
          |                                                    ^
        ");
        assert_snapshot!(mistake(&bomb), @"settings.yaml: too many values once its aliases are followed");
        assert_snapshot!(mistake(&"[".repeat(2000)), @r"
        settings.yaml:1:129: nested too deeply, at most 128 levels are read
          |
        1 | …[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…
          |                                                    ^
        ");
        let deep = format!("needs: {}{}\n", "[".repeat(200), "]".repeat(200));
        assert_snapshot!(mistake(&deep), @r"
        settings.yaml:1:135: nested too deeply, at most 128 levels are read
          |
        1 | …[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[…
          |                                                    ^
        ");
        assert_snapshot!(mistake(&"#".repeat(1 << 21)), @"settings.yaml: has 2097152 bytes, and at most 1048576 are read");
    }

    #[test]
    fn a_file_that_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        let told = |name: &str, content: &[u8]| {
            let file = folder.path().join(name);
            std::fs::write(&file, content).unwrap();
            let mistake = Source::read(&file).unwrap_err();
            mistake
                .to_string()
                .replace(folder.path().to_str().unwrap(), "")
        };
        assert_snapshot!(told("binary.yaml", b"wave: 1\nname: \xff\n"), @r"
        /binary.yaml: isn't text: byte 14, in line 2, is not UTF-8
        hint: save the file as UTF-8
        ");
        assert_snapshot!(told("huge.yaml", &vec![b'#'; (1 << 20) + 1]), @r"
        /huge.yaml: has 1048577 bytes, and at most 1048576 are read
        hint: is this the file you meant?
        ");
        let missing = Source::read(Path::new("missing.yaml")).unwrap_err();
        assert_snapshot!(missing, @"missing.yaml: there is no such file");
        let is_folder = Source::read(Path::new("/")).unwrap_err();
        assert_snapshot!(is_folder, @"/: is a folder, expected a file");
    }

    #[test]
    fn places_are_found_in_every_notation() {
        let source = Source::new(
            "f.yaml",
            "a:\n  b: 1\n  \"c d\": [x, {ü: y, z: 'w'}]\nlist:\n- one\n-  two\nnull: {}\nlast: |\n  text\n",
        );
        let place = |path: &[_]| source.place(path);
        assert_eq!(place(&[]), Some((1, 1)));
        assert_eq!(place(&[Key("a")]), Some((2, 3)));
        assert_eq!(place(&[Name("a")]), Some((1, 1)));
        assert_eq!(place(&[Key("a"), Key("b")]), Some((2, 6)));
        assert_eq!(place(&[Key("a"), Name("c d")]), Some((3, 3)));
        assert_eq!(place(&[Key("a"), Key("c d"), Item(0)]), Some((3, 11)));
        assert_eq!(
            place(&[Key("a"), Key("c d"), Item(1), Key("z")]),
            Some((3, 24))
        );
        assert_eq!(place(&[Key("list"), Item(1)]), Some((6, 4)));
        assert_eq!(place(&[Key("last")]), Some((8, 7)));
        assert_eq!(place(&[Key("list"), Item(2)]), None);
        assert_eq!(place(&[Key("nothing")]), None);
    }

    fn one(text: &str) -> Value {
        documents("test", text).unwrap().remove(0)
    }

    #[test]
    fn manifests_are_read_as_kubectl_reads_them() {
        assert_eq!(
            one(
                "defaultMode: 0644\nquoted: \"0644\"\nsingle: '0644'\ntagged: !!str 0644\nnew: 0o644\nminus: -010\nnine: 0129\n"
            ),
            json!({"defaultMode": 420, "quoted": "0644", "single": "0644", "tagged": "0644", "new": 420, "minus": -8, "nine": 129})
        );
        assert_eq!(
            one(
                "a: yes\nb: on\nc: 'yes'\nd: \"off\"\ne: off\nf: n\ng: true\nh: \"true\"\ni: Yes please\n"
            ),
            json!({"a": true, "b": true, "c": "yes", "d": "off", "e": false, "f": false, "g": true, "h": "true", "i": "Yes please"})
        );
        assert_eq!(
            one(
                "a: 1_000\nb: 0x1f\nc: 1e3\nd: 1.0\ne: 1.5\nf: 2020-01-01\ng: 1.2.3\nh: ~\ni:\nj: 12m\nk: +5\nl: _1\nm: 1:30\nn: 0b11\no: -x\n"
            ),
            json!({"a": 1000, "b": 31, "c": 1000, "d": 1, "e": 1.5, "f": "2020-01-01", "g": "1.2.3", "h": null, "i": null,
                "j": "12m", "k": 5, "l": "_1", "m": "1:30", "false": 3, "o": "-x"})
        );
        assert_eq!(
            one(
                "on: [y]\n8080: http\n1.5: x\n\"y\": z\ntext: |\n  mode: 0644\nfolded: >-\n  yes\n"
            ),
            json!({"true": [true], "8080": "http", "1.5": "x", "y": "z", "text": "mode: 0644\n", "folded": "yes"})
        );
    }

    #[test]
    fn aliases_and_merges_of_manifests_are_followed() {
        assert_eq!(
            one("base: &base {a: 1, mode: &mode 0600}\nuse:\n  <<: *base\n  a: 2\nmode: *mode\n"),
            json!({"base": {"a": 1, "mode": 384}, "use": {"a": 2, "mode": 384}, "mode": 384})
        );
        assert_eq!(
            one("use:\n  <<: [{a: 1}, {a: 2, b: 3}]\n"),
            json!({"use": {"a": 1, "b": 3}})
        );
    }

    #[test]
    fn letters_beyond_ascii_do_not_move_what_follows() {
        assert_eq!(
            one("# größer — ±\nname: \"ü\"\nmode: 0644\nquoted: \"0644\"\n"),
            json!({"name": "ü", "mode": 420, "quoted": "0644"})
        );
    }

    #[test]
    fn empty_documents_are_left_out() {
        let text = "---\n---\na: 1\n---\n# nothing\n---\nb: 2\n...\n---\n";
        assert_eq!(
            documents("test", text).unwrap(),
            [json!({"a": 1}), json!({"b": 2})]
        );
        assert!(documents("test", "").unwrap().is_empty());
        assert!(documents("test", "# only a comment\n").unwrap().is_empty());
    }

    #[test]
    fn a_manifest_that_is_wrong_is_told_with_its_origin() {
        let told = |text: &str| format!("{:#}", documents("install.yaml", text).unwrap_err());
        assert_snapshot!(told("a: 1\n---\nb: [\n"), @"document 2 of install.yaml isn't valid YAML: did not find expected node content at line 4 column 1, while parsing a flow node");
        assert_snapshot!(told("a: 1\na: 2\n"), @"document 1 of install.yaml isn't valid YAML: `a` is given twice at line 2 column 1");
        assert_snapshot!(told("a: 1\n---\nwords\n"), @"document 2 of install.yaml is no mapping");
        assert_snapshot!(told("a: .inf\n"), @"document 1 of install.yaml isn't valid YAML: JSON has no such number at line 1 column 4");
        assert_snapshot!(told("a: {<<: 1}\n"), @"document 1 of install.yaml isn't valid YAML: `<<` merges mappings, and this is none at line 1 column 4");
    }

    #[test]
    fn texts_that_look_like_something_else_are_written_in_quotes() {
        let value = json!({
            "yes": "yes", "octal": "0644", "number": "12", "null": "null", "on": "on", "y": "y", "under": "1_000",
            "plain": "text", "empty": "", "lines": "a\nb\n", "float": "1e3", "hex": "0x1f", "colon": "a: b", "date": "2020-01-01",
        });
        assert_snapshot!(to_string(&value), @r#"
        colon: "a: b"
        date: "2020-01-01"
        empty: ""
        float: "1e3"
        hex: "0x1f"
        lines: "a\nb\n"
        "null": "null"
        number: "12"
        octal: "0644"
        "on": "on"
        plain: text
        under: "1_000"
        "y": "y"
        "yes": "yes"
        "#);
        assert_eq!(one(&to_string(&value)), value);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            "[+-]?[0-9_.xobeE:-]{1,6}".prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from),
            "(yes|no|on|off|y|n|true|null|~|<<|=|\\.inf)".prop_map(Value::from),
            "[a-z \t\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z0-9_.]{1,6}|yes|on|0644", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_the_same(value in any_value()) {
            let value = json!({"value": value});
            prop_assert_eq!(documents("test", &to_string(&value)).unwrap(), [value]);
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "[-a-c:\\[\\]{}&*!|>'\"%@`#,?~ \t\n\u{e4}\u{1F600}]{0,60}") {
            let _ = parse::<Settings>(Path::new("settings.yaml"), &text).map_err(|mistake| mistake.to_string());
            let _ = documents("test", &text);
            let _ = Source::new("settings.yaml", text.as_str()).place(&[Key("a"), Item(0)]);
        }
    }
}
