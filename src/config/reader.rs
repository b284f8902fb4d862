//! Reading settings one by one and keeping every fault, so that all are told at once.

use std::fmt;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::files::{Counts, Files};
use super::setting::{DATABASE_URL, Exposure, Fallback, Setting};

/// Bytes of a secret's file at most. No secret is that long; `/dev/zero` is longer.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Characters of a faulty value that are quoted; enough to recognise it.
const QUOTED_CHARS: usize = 80;

/// The settings cannot be used. Its text lists every fault, one a line, each with its flag and
/// variable; no secret is in it.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    faults: Vec<Fault>,
}

impl ConfigError {
    /// What is wrong; at least one.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.faults.len() {
            1 => write!(f, "the settings have 1 fault:")?,
            count => write!(f, "the settings have {count} faults:")?,
        }
        self.faults
            .iter()
            .try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// One fault of the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Flag and variable, or the variable alone.
    names: String,
    /// What is wrong and what would be right, as the rest of a sentence.
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.names, self.message)
    }
}

/// A setting could not be read; the reader has noted why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faulted;

/// Reads settings from flags, variables and files, in this order of precedence.
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    /// The files that they name.
    pub(super) files: &'a Files,
    faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    /// A reader that has found no fault yet.
    pub(super) fn new(environment: &'a Environment, files: &'a Files) -> Self {
        Reader {
            environment,
            files,
            faults: Vec::new(),
        }
    }

    /// The setting's value, its default where it is not given; a fault where it has none.
    pub(super) fn value<T>(
        &mut self,
        setting: &Setting,
        flag: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Faulted> {
        let given = self.raw(setting, flag)?;
        match (given, setting.fallback) {
            (Some(value), _) => self.parsed(setting, &value, parse),
            (None, Fallback::Value(default)) => self.parsed(setting, default, parse),
            (None, Fallback::Described(_) | Fallback::Required) => {
                self.fault(setting, "is required".to_owned())
            }
        }
    }

    /// The setting's value, `None` where it is not given.
    pub(super) fn optional<T>(
        &mut self,
        setting: &Setting,
        flag: Option<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Faulted> {
        self.raw(setting, flag)?
            .map(|value| self.parsed(setting, &value, parse))
            .transpose()
    }

    /// Notes what is wrong with a setting: the rest of a sentence that begins with its names.
    pub(super) fn fault<T>(&mut self, setting: &Setting, message: String) -> Result<T, Faulted> {
        self.note(setting.names(), message);
        Err(Faulted)
    }

    /// Notes what is wrong with something that has another name than a setting.
    /// Once is enough: what holds for several destinations is read for each.
    pub(super) fn note(&mut self, names: String, message: String) {
        let fault = Fault { names, message };
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    /// Whether a flag or a variable says anything of a setting.
    pub(super) fn is_given(&self, setting: &Setting, flag: Option<&str>) -> bool {
        let variables = [Some(setting.variable.to_owned()), setting.file_variable()];
        let mut variables = variables.iter().flatten();
        flag.is_some() || variables.any(|variable| self.environment.get(variable).is_some())
    }

    /// Adds the variables that are nobody's and hands over `read`, unless there was any fault.
    pub(super) fn finish<T>(mut self, read: Result<T, Faulted>) -> Result<T, ConfigError> {
        for (name, message) in self.environment.strangers() {
            self.note(name, message);
        }
        match read {
            Ok(value) if self.faults.is_empty() => Ok(value),
            _ => Err(ConfigError {
                faults: self.faults,
            }),
        }
    }

    fn parsed<T>(
        &mut self,
        setting: &Setting,
        value: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, Faulted> {
        parse(value).or_else(|advice| match setting.exposure {
            Exposure::Plain => {
                self.fault(setting, format!("cannot be {}: {advice}", quoted(value)))
            }
            Exposure::Url | Exposure::Secret => {
                self.fault(setting, format!("cannot be used: {advice}"))
            }
        })
    }

    fn raw(&mut self, setting: &Setting, flag: Option<&str>) -> Result<Option<String>, Faulted> {
        match flag {
            // A shell writes `--admin-token "$TOKEN"` so when the variable is missing.
            Some("") => self.fault(setting, "is empty: give a value or leave it out".to_owned()),
            Some(value) => Ok(Some(value.to_owned())),
            None => self.raw_variable(setting),
        }
    }

    fn raw_variable(&mut self, setting: &Setting) -> Result<Option<String>, Faulted> {
        let value = self.environment.get(setting.variable);
        let file = setting
            .file_variable()
            .and_then(|name| Some((self.environment.get(&name)?, name)));
        match (value, file) {
            (None, None) => Ok(None),
            (Some(_), Some((_, name))) => self.fault(
                setting,
                format!(
                    "is given twice: set {} or {name}, not both",
                    setting.variable
                ),
            ),
            (Some(value), None) => match value.to_str() {
                // Secrets made from files end in a newline more often than not.
                Some(value) => Ok(Some(trimmed(value).to_owned()).filter(|v| !v.is_empty())),
                None => self.fault(setting, "is not UTF-8".to_owned()),
            },
            (None, Some((path, name))) => {
                let path = PathBuf::from(path);
                // Which ledger is open cannot change.
                let counts = match setting.variable == DATABASE_URL.variable {
                    true => Counts::FromTheStart,
                    false => Counts::AtOnce,
                };
                let secret = read_secret(self.files, &path, &name, counts);
                secret.map(Some).or_else(|trouble| {
                    self.fault(
                        setting,
                        format!(
                            "cannot be read from the file {} that {name} names: {trouble}",
                            path.display()
                        ),
                    )
                })
            }
        }
    }
}

/// The beginning of a faulty value, in quotes.
pub(super) fn quoted(value: &str) -> String {
    let beginning: String = value.chars().take(QUOTED_CHARS).collect();
    format!("{beginning:?}")
}

fn trimmed(value: &str) -> &str {
    value.trim_end_matches(['\r', '\n'])
}

/// The secret that a file holds, without the newline at its end.
pub(super) fn read_secret(
    files: &Files,
    path: &Path,
    setting: &str,
    counts: Counts,
) -> Result<String, String> {
    let text = files.text(path, MAX_SECRET_BYTES, setting, counts)?;
    match trimmed(&text) {
        "" => Err("it is empty".to_owned()),
        value => Ok(value.to_owned()),
    }
}
