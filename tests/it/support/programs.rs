//! Other people's programs. `.ci/run` installs them and sets `TEST_REQUIRE_TOOLS`; elsewhere a test
//! that needs one that is not installed is skipped, in words.

use std::io::Write;
use std::path::{Path, PathBuf};

/// For this reason nothing is tested: says so, or fails where every program must be there.
pub fn skip(reason: &str) {
    let required = std::env::var_os("TEST_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "{reason}, and TEST_REQUIRE_TOOLS is 1");
    // Not `println!`, which nobody sees of a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// The first folder that holds all of these programs: of `PATH`, then of those where Debian puts
/// servers, which are on the `PATH` of root alone or of nobody.
pub fn folder_with(programs: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let servers = ["/usr/local/sbin", "/usr/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(servers)
        .chain(postgres_folders())
        .find(|folder| programs.iter().all(|name| folder.join(name).is_file()))
}

/// Debian keeps a folder for each major version of PostgreSQL. The newest comes first.
fn postgres_folders() -> Vec<PathBuf> {
    let versions = Path::new("/usr/lib/postgresql").read_dir();
    let mut folders: Vec<(u32, PathBuf)> = versions
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    folders.sort_by(|a, b| b.cmp(a));
    folders.into_iter().map(|(_, folder)| folder).collect()
}
