//! Files of the repository, and YAML as JSON values.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn text_of(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The paths of all files below a folder, from the top of the repository; but for the secrets that
/// deploy/README.md has people make there.
pub fn files_below(folder: &str) -> Vec<String> {
    let mut folders = vec![top().join(folder)];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if !path.ends_with("deploy/secrets") {
                    folders.push(path);
                }
            } else {
                files.push(path);
            }
        }
    }
    let below_top = |path: PathBuf| path.strip_prefix(top()).unwrap().display().to_string();
    files.into_iter().map(below_top).collect()
}

/// The documents of a YAML text; a key twice is an error, and empty documents are none.
pub fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    documents.into_iter().filter(|it| !it.is_null()).collect()
}

pub fn documents_in(path: &str) -> Vec<Value> {
    documents(&text_of(path))
}

/// The only document of a file.
pub fn document_in(path: &str) -> Value {
    let [document] = <[Value; 1]>::try_from(documents_in(path)).expect("one document");
    document
}

/// The member of a list that has this name.
pub fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter()
        .find(|it| it["name"] == name)
        .unwrap_or_else(|| panic!("no {name} in {list:?}"))
}

pub fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

pub fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

pub fn list(value: &Value) -> &[Value] {
    value
        .as_array()
        .unwrap_or_else(|| panic!("no list: {value}"))
}
