//! Tables of the settings file while they are read, and what is found wrong with them.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::files::{Counts, Files};
use crate::config::reader::{Faulted, quoted, read_secret};
use crate::config::setting::{Exposure, Setting};

/// A fault and where it is.
#[derive(Debug, PartialEq)]
pub(in crate::config) struct FileFault {
    /// Counted from 1.
    pub(super) line: usize,
    /// What is wrong and what would be right.
    message: String,
}

impl fmt::Display for FileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// What is wrong with the file, and where.
pub(in crate::config) struct Faults<'t> {
    text: &'t str,
    found: Vec<(usize, String)>,
}

impl<'t> Faults<'t> {
    /// None so far.
    pub(super) fn of(text: &'t str) -> Self {
        Faults {
            text,
            found: Vec::new(),
        }
    }

    /// Notes what is wrong at that byte.
    pub(in crate::config) fn note(&mut self, at: usize, message: String) {
        self.found.push((at, message));
    }

    /// The line of a byte.
    pub(in crate::config) fn line(&self, at: usize) -> usize {
        let before = self.text.as_bytes().iter().take(at);
        1 + before.filter(|byte| **byte == b'\n').count()
    }

    /// All of them, from the first line to the last.
    pub(in crate::config) fn in_order(mut self) -> Vec<FileFault> {
        self.found.sort();
        self.found
            .iter()
            .map(|(at, message)| FileFault {
                line: self.line(*at),
                message: message.clone(),
            })
            .collect()
    }
}

/// A table while it is read.
pub(in crate::config) struct Table<'t> {
    /// What faults call it.
    pub(in crate::config) name: &'static str,
    /// Where it begins, in bytes.
    pub(in crate::config) at: usize,
    /// What nobody has asked for yet.
    left: DeTable<'t>,
    /// The keys that were asked for: those that there are.
    known: Vec<String>,
}

impl<'t> Table<'t> {
    pub(super) fn new(name: &'static str, at: usize, left: DeTable<'t>) -> Self {
        Table {
            name,
            at,
            left,
            known: Vec::new(),
        }
    }

    /// A text, `default` where it is not given; a fault where there is none.
    pub(in crate::config) fn value<T>(
        &mut self,
        key: &str,
        default: Option<&str>,
        faults: &mut Faults<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Spanned<T>, Faulted> {
        let given = self.text(key, faults)?;
        let at = self.at;
        match given.or(default.map(|text| Spanned::new(at..at, text.to_owned()))) {
            Some(text) => parsed(key, &text, Exposure::Plain, faults, parse),
            None => {
                faults.note(at, format!("{} needs {key}", self.name));
                Err(Faulted)
            }
        }
    }

    /// A text, `None` where it is not given.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        faults: &mut Faults<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<Spanned<T>>, Faulted> {
        self.text(key, faults)?
            .map(|text| parsed(key, &text, Exposure::Plain, faults, parse))
            .transpose()
    }

    /// A list of texts, `None` where it is not given.
    pub(super) fn list<T>(
        &mut self,
        key: &str,
        faults: &mut Faults<'_>,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<Vec<Spanned<T>>>, Faulted> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let at = value.span().start;
        let mut list = Vec::new();
        let DeValue::Array(values) = value.into_inner() else {
            let message = format!("{key} cannot be given like this: write [\"…\", \"…\"]");
            faults.note(at, message);
            return Err(Faulted);
        };
        for value in values {
            let span = value.span();
            list.push(match value.into_inner() {
                DeValue::String(text) => {
                    let text = Spanned::new(span, text.into_owned());
                    parsed(key, &text, Exposure::Plain, faults, &parse)
                }
                other => {
                    let kind = other.type_str();
                    let message = format!(
                        "{key} cannot hold a value of type {kind}: write strings, in quotes"
                    );
                    faults.note(span.start, message);
                    Err(Faulted)
                }
            });
        }
        list.into_iter().collect::<Result<_, _>>().map(Some)
    }

    /// A setting that is no secret, written as its flag would be; numbers and truth values may
    /// stand without quotes; a relative path begins in `folder`.
    pub(in crate::config) fn setting<T>(
        &mut self,
        setting: &Setting,
        folder: &Path,
        faults: &mut Faults<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Faulted> {
        let key = setting.key();
        let Some(value) = self.take(&key) else {
            return Ok(None);
        };
        let span = value.span();
        let text = match value.into_inner() {
            DeValue::String(text) => text.into_owned(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(truth) => truth.to_string(),
            other => {
                let kind = other.type_str();
                let message = format!(
                    "{key} cannot be of type {kind}: write it as for {}",
                    setting.flag
                );
                faults.note(span.start, message);
                return Err(Faulted);
            }
        };
        let text = match folder.join(&text).to_str() {
            Some(path) if setting.names_file => path.to_owned(),
            _ => text,
        };
        let text = Spanned::new(span, text);
        parsed(&key, &text, setting.exposure, faults, parse).map(|value| Some(value.into_inner()))
    }

    /// A secret, given there or in the file that the key with `_file` at its end names; a relative
    /// path begins in `folder`.
    pub(in crate::config) fn secret<T>(
        &mut self,
        setting: &Setting,
        folder: &Path,
        files: &Files,
        faults: &mut Faults<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Faulted> {
        let key = setting.key();
        let file_key = format!("{key}_file");
        let value = self.text(&key, faults);
        let path = self.text(&file_key, faults);
        let (at, trouble) = match (value?, path?) {
            (None, None) => return Ok(None),
            (Some(value), None) => match parse(value.get_ref()) {
                Ok(secret) => return Ok(Some(secret)),
                Err(advice) => (value.span(), format!("{key} cannot be used: {advice}")),
            },
            (None, Some(path)) => {
                let file: PathBuf = folder.join(path.get_ref());
                let shown = file.display();
                let named = format!("{file_key} of {}", self.name);
                let secret = read_secret(files, &file, &named, Counts::AtOnce);
                let trouble = match secret.map(|secret| parse(&secret)) {
                    Ok(Ok(secret)) => return Ok(Some(secret)),
                    Ok(Err(advice)) => {
                        format!("{file_key} names {shown}, whose content cannot be used: {advice}")
                    }
                    Err(trouble) => {
                        format!("{file_key} names {shown}, which cannot be read: {trouble}")
                    }
                };
                (path.span(), trouble)
            }
            (Some(_), Some(path)) => {
                let both = format!("{file_key} is given beside {key}: give one of them");
                (path.span(), both)
            }
        };
        faults.note(at.start, trouble);
        Err(Faulted)
    }

    /// The tables under `[[key]]`; `None` where there is none.
    pub(super) fn tables(
        &mut self,
        key: &str,
        name: &'static str,
        faults: &mut Faults<'_>,
    ) -> Option<Vec<Table<'t>>> {
        let value = self.take(key)?;
        let at = value.span().start;
        let DeValue::Array(values) = value.into_inner() else {
            faults.note(at, format!("{key} cannot be given like this: write {name}"));
            return None;
        };
        let mut tables = Vec::new();
        for value in values {
            let at = value.span().start;
            match value.into_inner() {
                DeValue::Table(left) => tables.push(Table::new(name, at, left)),
                _ => faults.note(at, format!("{key} cannot be given like this: write {name}")),
            }
        }
        (!tables.is_empty()).then_some(tables)
    }

    /// Whatever was not asked for is unknown.
    pub(in crate::config) fn end(self, faults: &mut Faults<'_>) {
        for (key, _) in &self.left {
            let (name, known) = (self.name, self.known.join(", "));
            let message = format!(
                "{} is not known in {name}: there is {known}",
                quoted(key.get_ref())
            );
            faults.note(key.span().start, message);
        }
    }

    fn take(&mut self, key: &str) -> Option<Spanned<DeValue<'t>>> {
        self.known.push(key.to_owned());
        self.left.remove(key)
    }

    fn text(
        &mut self,
        key: &str,
        faults: &mut Faults<'_>,
    ) -> Result<Option<Spanned<String>>, Faulted> {
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let span = value.span();
        match value.into_inner() {
            DeValue::String(text) => Ok(Some(Spanned::new(span, text.into_owned()))),
            other => {
                let kind = other.type_str();
                let message = format!("{key} cannot be of type {kind}: write a string, in quotes");
                faults.note(span.start, message);
                Err(Faulted)
            }
        }
    }
}

/// Notes a fault where the same is there already, and remembers it where not.
pub(in crate::config) fn once<T: Clone>(
    seen: &mut Vec<Spanned<T>>,
    value: &Spanned<T>,
    same: fn(&T, &T) -> bool,
    what: &str,
    faults: &mut Faults<'_>,
) {
    let earlier = seen
        .iter()
        .find(|other| same(other.get_ref(), value.get_ref()));
    match earlier {
        Some(earlier) => {
            let line = faults.line(earlier.span().start);
            let message = format!("{what} is on line {line} already: give it once");
            faults.note(value.span().start, message);
        }
        None => seen.push(value.clone()),
    }
}

fn parsed<T>(
    key: &str,
    text: &Spanned<String>,
    exposure: Exposure,
    faults: &mut Faults<'_>,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Spanned<T>, Faulted> {
    match parse(text.get_ref()) {
        Ok(value) => Ok(Spanned::new(text.span(), value)),
        Err(advice) => {
            let message = match exposure {
                Exposure::Plain => {
                    format!("{key} cannot be {}: {advice}", quoted(text.get_ref()))
                }
                Exposure::Url | Exposure::Secret => format!("{key} cannot be used: {advice}"),
            };
            faults.note(text.span().start, message);
            Err(Faulted)
        }
    }
}
