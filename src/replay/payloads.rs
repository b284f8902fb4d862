//! Files and folders → payloads, in order.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::ReplayError;

/// The path that means standard input.
pub const STDIN: &str = "-";

/// Endings under which payloads are looked for in a folder. A file that is named itself may have
/// any.
const ENDINGS: [&str; 3] = ["json", "ndjson", "jsonl"];

/// A file of payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadFile(PathBuf);

/// One body to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The file, and the place in it where it holds several: `week.ndjson:3`.
    pub name: String,
    /// Exactly what is sent.
    pub bytes: Vec<u8>,
}

/// The files that `paths` name. Of a folder, the payload files directly in it, in the order of their
/// names' bytes; what is in its subfolders must be named itself.
///
/// # Errors
///
/// [`ReplayError::Read`], and [`ReplayError::Empty`] for a folder without payloads.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PayloadFile>, ReplayError> {
    let mut files = Vec::new();
    for path in paths {
        let is_folder = path.as_os_str() != STDIN && metadata(path)?.is_dir();
        if is_folder {
            files.extend(files_of_folder(path)?);
        } else {
            files.push(PayloadFile(path.clone()));
        }
    }
    Ok(files)
}

fn files_of_folder(folder: &Path) -> Result<Vec<PayloadFile>, ReplayError> {
    let unreadable = |source| ReplayError::Read {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let has_ending = path
            .extension()
            .is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        if !hidden && has_ending && metadata(&path)?.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(ReplayError::Empty {
            path: folder.to_owned(),
        });
    }
    files.sort_unstable();
    Ok(files.into_iter().map(PayloadFile).collect())
}

fn metadata(path: &Path) -> Result<std::fs::Metadata, ReplayError> {
    std::fs::metadata(path).map_err(|source| ReplayError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The payloads in a file.
///
/// # Errors
///
/// [`ReplayError::Read`]. What is in the file is never an error: bodies that are not JSON are there
/// to be refused.
pub fn payloads_in(file: &PayloadFile) -> Result<Vec<Payload>, ReplayError> {
    let path = &file.0;
    let bytes = if path.as_os_str() == STDIN {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    }
    .map_err(|source| ReplayError::Read {
        path: path.clone(),
        source,
    })?;
    let by_lines = path
        .extension()
        .is_some_and(|ending| ending == "ndjson" || ending == "jsonl");
    Ok(split(&path.display().to_string(), bytes, by_lines))
}

/// Takes a file's content apart: one payload a line where its name says so; the elements of an
/// array; the lines, where there are several and each is JSON; else one payload, byte for byte.
fn split(name: &str, bytes: Vec<u8>, by_lines: bool) -> Vec<Payload> {
    if !by_lines {
        if let Ok(elements) = serde_json::from_slice::<Vec<&RawValue>>(&bytes) {
            return elements
                .iter()
                .zip(1..)
                .map(|(element, position)| Payload {
                    name: format!("{name}:{position}"),
                    bytes: element.get().as_bytes().to_vec(),
                })
                .collect();
        }
        if !is_lines_of_json(&bytes) {
            return vec![Payload {
                name: name.to_owned(),
                bytes,
            }];
        }
    }
    lines(&bytes)
        .map(|(position, line)| Payload {
            name: format!("{name}:{position}"),
            bytes: line.to_vec(),
        })
        .collect()
}

fn is_lines_of_json(bytes: &[u8]) -> bool {
    lines(bytes).count() > 1
        && lines(bytes).all(|(_, line)| serde_json::from_slice::<IgnoredAny>(line).is_ok())
}

/// Lines that are not blank, without their ends, with their numbers.
fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    (1..)
        .zip(bytes.split(|byte| *byte == b'\n'))
        .map(|(number, line)| (number, line.strip_suffix(b"\r").unwrap_or(line)))
        .filter(|(_, line)| !line.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(content: &str, by_lines: bool) -> Vec<(String, String)> {
        split("f", content.as_bytes().to_vec(), by_lines)
            .into_iter()
            .map(|payload| (payload.name, String::from_utf8(payload.bytes).unwrap()))
            .collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(name, body)| (name.to_string(), body.to_string()))
            .collect()
    }

    #[test]
    fn one_payload_stays_as_it_is() {
        for content in [
            "{\n \"a\" : 1 }\n\n",
            "",
            "hello",
            "hello\nworld\n",
            "{\"a\":1,\"a\":2}",
            "{\"a\":1}\n{broken\n",
            "[1,",
        ] {
            assert_eq!(bodies(content, false), pairs(&[("f", content)]));
        }
    }

    #[test]
    fn an_array_is_taken_apart() {
        assert_eq!(
            bodies("[ {\"a\" : 1.0}, [2] , {\"b\":9007199254740993}]\n", false),
            pairs(&[
                ("f:1", "{\"a\" : 1.0}"),
                ("f:2", "[2]"),
                ("f:3", "{\"b\":9007199254740993}")
            ])
        );
        assert_eq!(bodies("[]", false), pairs(&[]));
    }

    #[test]
    fn lines_are_taken_apart() {
        let expected = pairs(&[("f:1", "{\"a\":1}"), ("f:3", "{\"b\":2}")]);
        assert_eq!(bodies("{\"a\":1}\r\n\n{\"b\":2}\n", false), expected);
        assert_eq!(bodies("{\"a\":1}\r\n\n{\"b\":2}\n", true), expected);
        // Where the name says so, a line that is no JSON is still a payload of its own.
        assert_eq!(
            bodies("{\"a\":1}\n{broken", true),
            pairs(&[("f:1", "{\"a\":1}"), ("f:2", "{broken")])
        );
    }

    #[test]
    fn a_folder_is_read_in_name_order_and_not_below() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("refused")).unwrap();
        std::fs::create_dir(path("odd.json")).unwrap();
        for name in [
            "10.json",
            "02.ndjson",
            "1.jsonl",
            "README.md",
            ".hidden.json",
            "refused/0.json",
        ] {
            std::fs::write(path(name), "{}").unwrap();
        }
        let named = [path("refused/0.json"), folder.path().to_owned()];
        assert_eq!(
            files(&named).unwrap(),
            ["refused/0.json", "02.ndjson", "1.jsonl", "10.json"]
                .map(|name| PayloadFile(path(name)))
        );
        assert_eq!(
            files(&[PathBuf::from(STDIN)]).unwrap(),
            [PayloadFile(PathBuf::from(STDIN))]
        );
        assert!(matches!(
            files(&[path("odd.json")]),
            Err(ReplayError::Empty { .. })
        ));
        assert!(matches!(
            files(&[path("absent")]),
            Err(ReplayError::Read { .. })
        ));
    }
}
