//! Other people's programs. `.ci/run` installs them and sets `TEST_REQUIRE_TOOLS`; elsewhere a test
//! that needs one that is not installed is skipped, in words.

use std::io::Write;

/// For this reason nothing is tested: says so, or fails where every program must be there.
pub fn skip(reason: &str) {
    let required = std::env::var_os("TEST_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "{reason}, and TEST_REQUIRE_TOOLS is 1");
    // Not `println!`, which nobody sees of a test that passes.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}
