//! The files that settings name.
//!
//! Each is read once, and its text is kept. So the settings can be read a second time from the very
//! same texts, or with the new text of one secret among them, by the same rules as at the start.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

/// When a new content of a file counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counts {
    /// While the service runs.
    AtOnce,
    /// From the next start on.
    FromTheStart,
}

/// A file that was read.
#[derive(Clone)]
pub(super) struct NamedFile {
    /// What names it: a variable, or a key of the settings file.
    pub(super) setting: String,
    /// When a new content counts.
    pub(super) counts: Counts,
    /// Bytes at most.
    pub(super) max_bytes: u64,
    /// Whether it can be read twice; of a pipe nothing is left.
    pub(super) is_regular: bool,
    /// What stood in it.
    pub(super) text: SecretString,
}

/// The files that were read so far.
#[derive(Clone, Default)]
pub(super) struct Files(RefCell<BTreeMap<PathBuf, NamedFile>>);

impl Files {
    /// The text of the file, if it is no longer than `max_bytes`; as it was, where it was read before.
    pub(super) fn text(
        &self,
        path: &Path,
        max_bytes: u64,
        setting: &str,
        counts: Counts,
    ) -> Result<String, String> {
        if let Some(file) = self.0.borrow().get(path) {
            return Ok(file.text.expose_secret().to_owned());
        }
        let is_regular = path.is_file();
        let text = read_text(path, max_bytes)?;
        let file = NamedFile {
            setting: setting.to_owned(),
            counts,
            max_bytes,
            is_regular,
            text: text.clone().into(),
        };
        self.0.borrow_mut().insert(path.to_owned(), file);
        Ok(text)
    }

    /// The same, but for this text of this file.
    pub(super) fn with(&self, path: &Path, text: &SecretString) -> Self {
        let files = self.clone();
        if let Some(file) = files.0.borrow_mut().get_mut(path) {
            file.text = text.clone();
        }
        files
    }

    /// What was read, and where.
    pub(super) fn all(&self) -> BTreeMap<PathBuf, NamedFile> {
        self.0.borrow().clone()
    }
}

/// A file's text, if it is no longer than `max_bytes`.
fn read_text(path: &Path, max_bytes: u64) -> Result<String, String> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max_bytes + 1).read_to_end(&mut text))
        .map_err(|error| error.to_string())?;
    if text.len() as u64 > max_bytes {
        return Err(format!("it is longer than {max_bytes} bytes"));
    }
    String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())
}

/// The text of a file that may have become anything. To open a pipe would be to wait for who writes
/// to it.
pub(super) fn read_again(path: &Path, max_bytes: u64) -> Result<String, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err("it is not a regular file".to_owned()),
        Ok(_) => read_text(path, max_bytes),
        Err(error) => Err(error.to_string()),
    }
}
