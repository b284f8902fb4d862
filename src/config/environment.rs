//! The environment as a value, and the names in it that are nobody's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;

use super::setting;

/// What this program's own variables begin with.
const PREFIX: &str = "COHORT_BRIDGE_";

/// The process's variables and whether a person watches, passed in so that tests can make them up.
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
    /// Whether standard error, where logs go, is a terminal.
    pub(super) stderr_is_terminal: bool,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Self {
        Environment {
            variables: std::env::vars_os().collect(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
        }
    }

    /// The value of a variable; an empty one counts as not set, as Kubernetes manifests and
    /// Compose files leave it when they fill in nothing.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.variables
            .get(OsStr::new(name))
            .map(OsString::as_os_str)
            .filter(|value| !value.is_empty())
    }

    /// Names that look like this program's and are not, each with what is wrong.
    pub(super) fn strangers(&self) -> Vec<(String, String)> {
        let known: Vec<String> = setting::variables().collect();
        self.variables
            .iter()
            .map(|(name, value)| (name.to_string_lossy(), value))
            .filter(|(name, value)| {
                name.starts_with(PREFIX)
                    && !known.iter().any(|known| known == name)
                    && !injected_by_kubernetes(name, value)
            })
            .map(|(name, _)| (name.to_string(), advice(&name, &known)))
            .collect()
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    /// An environment of these variables that no person watches.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Environment {
            variables: variables
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            stderr_is_terminal: false,
        }
    }
}

/// Whether Kubernetes sets this variable for a Service named `cohort-bridge` or
/// `cohort-bridge-<more>`: `…_SERVICE_HOST`, `…_SERVICE_PORT[_<name>]`, `…_PORT` (a link such as
/// `tcp://10.0.0.1:80`) and `…_PORT_<n>_<protocol>[_PROTO|_PORT|_ADDR]`.
///
/// A `…_PORT` that is no link is a person's mistake: `COHORT_BRIDGE_PORT=8080` must not be ignored.
fn injected_by_kubernetes(name: &str, value: &OsStr) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else {
        return false;
    };
    let tail = format!("_{rest}");
    let named_port = tail
        .split_once("_SERVICE_PORT_")
        .is_some_and(|(_, port)| !port.is_empty());
    let link = tail.ends_with("_PORT") && value.to_string_lossy().contains("://");
    let linked_port = tail.match_indices("_PORT_").any(|(at, word)| {
        let parts: Vec<&str> = tail[at + word.len()..].split('_').collect();
        let (number, protocol, more) = match parts[..] {
            [number, protocol] => (number, protocol, None),
            [number, protocol, more] => (number, protocol, Some(more)),
            _ => return false,
        };
        number.parse::<u16>().is_ok()
            && matches!(protocol, "TCP" | "UDP" | "SCTP")
            && matches!(more, None | Some("PROTO" | "PORT" | "ADDR"))
    });
    tail.ends_with("_SERVICE_HOST")
        || tail.ends_with("_SERVICE_PORT")
        || named_port
        || link
        || linked_port
}

/// What to do about a variable that is not known.
fn advice(name: &str, known: &[String]) -> String {
    /// Edits between two names that may still be a slip of the finger.
    const SLIPS: usize = 3;

    let bare = |name: &str| name.strip_prefix(PREFIX).unwrap_or(name).to_owned();
    let wanted = bare(name);
    if wanted == "ALLOW_UNAUTHENTICATED" {
        return "is not a setting: --allow-unauthenticated is given as a flag only".to_owned();
    }
    if wanted == "RUST_LOG" {
        return "is not a setting: did you mean RUST_LOG?".to_owned();
    }
    let secret_less = wanted
        .strip_suffix("_FILE")
        .map(|name| format!("{PREFIX}{name}"));
    if secret_less.is_some_and(|name| known.contains(&name)) {
        return "is not a setting: only a secret can be read from a file".to_owned();
    }
    let nearest = known
        .iter()
        .map(|known| (edits(&wanted, &bare(known)), known))
        .min();
    match nearest {
        Some((edits, known)) if edits <= SLIPS.min(wanted.chars().count() / 2) => {
            format!("is not a setting: did you mean {known}?")
        }
        _ => "is not a setting: take it away, or see `cohort-bridge serve --help`".to_owned(),
    }
}

/// Levenshtein's distance in characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strangers(variables: &[(&str, &str)]) -> Vec<(String, String)> {
        variables
            .iter()
            .copied()
            .collect::<Environment>()
            .strangers()
    }

    #[test]
    fn kubernetes_variables_are_let_through() {
        for (name, value) in [
            ("COHORT_BRIDGE_SERVICE_HOST", "10.0.0.1"),
            ("COHORT_BRIDGE_SERVICE_PORT", "80"),
            ("COHORT_BRIDGE_SERVICE_PORT_HTTP", "80"),
            ("COHORT_BRIDGE_PORT", "tcp://10.0.0.1:80"),
            ("COHORT_BRIDGE_PORT_80_TCP", "tcp://10.0.0.1:80"),
            ("COHORT_BRIDGE_PORT_80_TCP_PROTO", "tcp"),
            ("COHORT_BRIDGE_PORT_80_TCP_PORT", "80"),
            ("COHORT_BRIDGE_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("COHORT_BRIDGE_ADMIN_SERVICE_HOST", "10.0.0.2"),
            ("COHORT_BRIDGE_ADMIN_SERVICE_PORT_METRICS", "9090"),
            ("COHORT_BRIDGE_ADMIN_PORT", "tcp://10.0.0.2:9090"),
            ("COHORT_BRIDGE_ADMIN_PORT_9090_UDP_ADDR", "10.0.0.2"),
        ] {
            assert_eq!(strangers(&[(name, value)]), [], "{name}");
        }
    }

    #[test]
    fn what_only_resembles_them_is_not() {
        for (name, value) in [
            ("COHORT_BRIDGE_PORT", "8080"),
            ("COHORT_BRIDGE_ADMIN_PORT", "9090"),
            ("COHORT_BRIDGE_PORT_HTTP", "8080"),
            ("COHORT_BRIDGE_PORT_80_QUIC", "80"),
            ("COHORT_BRIDGE_SERVICE_NAME", "x"),
            ("COHORT_BRIDGE_IMPORT", "x://y"),
            ("COHORT_BRIDGE_", "x"),
        ] {
            assert_eq!(strangers(&[(name, value)]).len(), 1, "{name}");
        }
    }

    #[test]
    fn known_and_foreign_names_are_no_strangers() {
        assert_eq!(
            strangers(&[
                ("COHORT_BRIDGE_LISTEN", "x"),
                ("COHORT_BRIDGE_ADMIN_TOKEN_FILE", "x"),
                ("COHORT_BRIDGE_ADMIN_URL", "x"),
                ("COHORT_BRIDGE_JSON", "x"),
                ("DATABASE_URL_FILE", "x"),
                ("COHORT_BRIDGETOWN", "x"),
                ("HOME", "x"),
            ]),
            []
        );
    }

    #[test]
    fn slips_are_recognised() {
        for (name, advised) in [
            ("COHORT_BRIDGE_LISTNE", "did you mean COHORT_BRIDGE_LISTEN?"),
            (
                "COHORT_BRIDGE_MAX_INFLIGHT",
                "did you mean COHORT_BRIDGE_MAX_IN_FLIGHT?",
            ),
            ("COHORT_BRIDGE_DATABASE_URL", "did you mean DATABASE_URL?"),
            ("COHORT_BRIDGE_RUST_LOG", "did you mean RUST_LOG?"),
            ("COHORT_BRIDGE_ALLOW_UNAUTHENTICATED", "as a flag only"),
            (
                "COHORT_BRIDGE_LISTEN_FILE",
                "only a secret can be read from a file",
            ),
            ("COHORT_BRIDGE_SOMETHING_ELSE", "take it away"),
        ] {
            let found = strangers(&[(name, "x")]);
            assert!(found[0].1.contains(advised), "{name}: {}", found[0].1);
        }
    }

    #[test]
    fn distance_is_levenshteins() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "abc"), 3);
        assert_eq!(edits("abc", "abc"), 0);
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let environment: Environment = [("A", ""), ("B", "b")].into_iter().collect();
        assert_eq!(environment.get("A"), None);
        assert_eq!(environment.get("B"), Some(OsStr::new("b")));
    }
}
