//! How values are written. Each parser's error says what would be right, and never quotes the
//! value: whether it may be shown is the setting's to say.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use url::{Host, Url};

use super::Database;
use super::files::{Counts, Files};
use super::setting;
use crate::flagsmith::Authorities;
use crate::store::PostgresUrl;

/// Bytes of a file of certificates at most: a machine's own bundle has a quarter of that.
const MAX_CA_FILE_BYTES: u64 = 1024 * 1024;

/// Characters of a name that stands in paths and metrics: as many as a DNS label, room for any
/// environment's name.
const MAX_NAME_CHARACTERS: usize = 63;

/// An address to bind: an IP address and a port.
pub(super) fn address(value: &str) -> Result<SocketAddr, String> {
    value.parse().map_err(|_| {
        "write an IP address and a port, such as 0.0.0.0:8080 or [::1]:8080".to_owned()
    })
}

/// `true` or `false`.
pub(super) fn boolean(value: &str) -> Result<bool, String> {
    one_of(&[("true", true), ("false", false)])(value)
}

/// One of a few words.
pub(super) fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |value| {
        words
            .iter()
            .find(|(word, _)| *word == value)
            .map(|&(_, meaning)| meaning)
            .ok_or_else(|| {
                let words: Vec<&str> = words.iter().map(|&(word, _)| word).collect();
                format!("write {}", words.join(" or "))
            })
    }
}

/// A whole number in a range.
pub(super) fn count(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, String> {
    move |value| {
        digits(value)
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                format!(
                    "write a whole number from {} to {}",
                    range.start(),
                    range.end()
                )
            })
    }
}

/// So many of `what` per second: any positive number, fractions too.
pub(super) fn rate(what: &str) -> impl Fn(&str) -> Result<f64, String> {
    move |value| {
        value
            .parse()
            .ok()
            .filter(|rate| (0.001..=1_000_000.0).contains(rate))
            .ok_or_else(|| format!("write {what} per second, from 0.001 to 1000000"))
    }
}

/// A span of time in a range, as a whole number and a unit.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, String> {
    move |value| {
        let duration = split_unit(value)
            .and_then(|(number, unit)| {
                let unit_ms: u64 = match unit {
                    "ms" => 1,
                    "s" => 1_000,
                    "m" => 60_000,
                    "h" => 3_600_000,
                    _ => return None,
                };
                number.checked_mul(unit_ms)
            })
            .map(Duration::from_millis)
            .ok_or("write a whole number and a unit, such as 50ms, 1s, 15m or 2h")?;
        if range.contains(&duration) {
            Ok(duration)
        } else {
            Err(format!(
                "it must be from {} to {}",
                shown_duration(*range.start()),
                shown_duration(*range.end())
            ))
        }
    }
}

/// Bytes in a range, as a whole number and, unless it is bytes, a unit.
pub(super) fn size(range: RangeInclusive<usize>) -> impl Fn(&str) -> Result<usize, String> {
    move |value| {
        let bytes = split_unit(value)
            .and_then(|(number, unit)| {
                let unit_bytes: u64 = match unit {
                    "" | "B" => 1,
                    "kB" | "KB" => 1_000,
                    "MB" => 1_000_000,
                    "GB" => 1_000_000_000,
                    "KiB" => 1 << 10,
                    "MiB" => 1 << 20,
                    "GiB" => 1 << 30,
                    _ => return None,
                };
                number.checked_mul(unit_bytes)
            })
            .ok_or("write a whole number and a unit, such as 512KiB, 16MiB or 16MB")?;
        usize::try_from(bytes)
            .ok()
            .filter(|bytes| range.contains(bytes))
            .ok_or_else(|| format!("it must be from {} to {} bytes", range.start(), range.end()))
    }
}

/// Where the ledger is.
pub(super) fn database(value: &str) -> Result<Database, String> {
    const ADVICE: &str = "write sqlite:// and the path of a file, such as sqlite://cohort-bridge.db or sqlite:///var/lib/cohort-bridge/ledger.db, or postgres://user:password@host:5432/database";

    let (scheme, rest) = value.split_once(':').ok_or(ADVICE)?;
    match scheme {
        "sqlite" => {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.contains(['?', '#']) {
                return Err("a SQLite path takes no options behind ? or #".to_owned());
            }
            if path.contains('\0') {
                return Err("a path cannot hold a NUL character".to_owned());
            }
            if path.starts_with(":memory:") {
                return Err(
                    "a ledger in memory would lose what was acknowledged: name a file".to_owned(),
                );
            }
            if path.is_empty() || path.ends_with('/') {
                return Err(ADVICE.to_owned());
            }
            Ok(Database::Sqlite(PathBuf::from(path)))
        }
        "postgres" | "postgresql" => {
            let is_private = |host: &str| Host::parse(host).is_ok_and(|host| is_near_host(&host));
            let url = PostgresUrl::parse(value, is_private)?;
            Ok(Database::Postgres(Box::new(url)))
        }
        _ => Err(ADVICE.to_owned()),
    }
}

/// An `http` or `https` URL without anything but host, port and path.
pub(super) fn web_url(value: &str) -> Result<Url, String> {
    const ADVICE: &str = "write an http or https URL";

    // The URL standard drops these silently; here they are a pasting error.
    if value.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{ADVICE} without white space"));
    }
    let url = Url::parse(value).map_err(|error| format!("{ADVICE} ({error})"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(ADVICE.to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{ADVICE} without a user or password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{ADVICE} without ? or #"));
    }
    Ok(url)
}

/// A [`web_url`] that others are joined to: its path ends in a slash.
pub(super) fn base_url(value: &str) -> Result<Url, String> {
    let mut url = web_url(value)?;
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    Ok(url)
}

/// The base of a Flagsmith API. Over the open internet the environment key goes encrypted, unless
/// `allow_http` says otherwise.
pub(super) fn flagsmith_url(allow_http: bool) -> impl Fn(&str) -> Result<Url, String> {
    move |value| {
        let url = base_url(value)?;
        if url.scheme() == "https" || allow_http || is_near(&url) {
            Ok(url)
        } else {
            Err("the environment key would travel unencrypted: write https://, or give --allow-http (COHORT_BRIDGE_ALLOW_HTTP=true)".to_owned())
        }
    }
}

/// Whether a URL's host is this machine, a private network or a cluster's own name.
pub(super) fn is_near(url: &Url) -> bool {
    url.host().is_some_and(|host| is_near_host(&host))
}

fn is_near_host<S: AsRef<str>>(host: &Host<S>) -> bool {
    const NEAR_DOMAINS: [&str; 4] = [".svc", ".local", ".internal", ".localhost"];

    match host {
        Host::Ipv4(ip) => is_near_ip(IpAddr::V4(*ip)),
        Host::Ipv6(ip) => is_near_ip(IpAddr::V6(*ip).to_canonical()),
        Host::Domain(name) => {
            let name = name.as_ref().trim_end_matches('.');
            !name.contains('.') || NEAR_DOMAINS.iter().any(|domain| name.ends_with(domain))
        }
    }
}

fn is_near_ip(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// The certificate authorities in the file of a path.
pub(super) fn authorities(files: &Files) -> impl Fn(&str) -> Result<Authorities, String> {
    |path| {
        let (path, counts) = (Path::new(path), Counts::FromTheStart);
        let pem = files.text(path, MAX_CA_FILE_BYTES, setting::CA_FILE.flag, counts)?;
        Authorities::parse(&pem)
    }
}

/// A secret that goes into an HTTP header as it is.
pub(super) fn header_secret(value: &str) -> Result<SecretString, String> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(SecretString::from(value))
    } else {
        Err("it must be visible ASCII characters without white space".to_owned())
    }
}

/// The name of a source or destination, which stands in paths, in metrics and in lists.
pub(super) fn name(value: &str) -> Result<String, String> {
    let mut bytes = value.bytes();
    let begins_well = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let goes_on_well = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if begins_well && goes_on_well && value.len() <= MAX_NAME_CHARACTERS {
        Ok(value.to_owned())
    } else {
        Err(format!(
            "write letters a-z, digits, and - _ . behind the first one, {MAX_NAME_CHARACTERS} at most"
        ))
    }
}

/// Property names separated by commas.
pub(super) fn properties(value: &str) -> Result<Vec<String>, String> {
    let mut properties: Vec<String> = Vec::new();
    for name in value.split(',').map(str::trim) {
        if name.is_empty() {
            return Err("write property names separated by commas, none of them blank".to_owned());
        }
        // The ledger keeps the name with every page, and not every database can hold that.
        if name.contains('\0') {
            return Err("write property names without NUL characters".to_owned());
        }
        if properties.iter().any(|known| known == name) {
            return Err("name each property once".to_owned());
        }
        properties.push(name.to_owned());
    }
    Ok(properties)
}

/// Digits alone: `u64`'s own parser takes a plus sign.
fn digits(value: &str) -> Option<u64> {
    value
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| value.parse().ok())
        .flatten()
}

fn split_unit(value: &str) -> Option<(u64, &str)> {
    let unit_at = value
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(value.len());
    let (number, unit) = value.split_at(unit_at);
    Some((digits(number)?, unit))
}

/// In the largest unit that divides it.
fn shown_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    [(3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(unit_ms, _)| ms > 0 && ms.is_multiple_of(*unit_ms))
        .map_or_else(
            || format!("{ms}ms"),
            |(unit_ms, unit)| format!("{}{unit}", ms / unit_ms),
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_duration(value: &str) -> Result<Duration, String> {
        duration(Duration::ZERO..=Duration::MAX)(value)
    }

    fn any_size(value: &str) -> Result<usize, String> {
        size(0..=usize::MAX)(value)
    }

    #[test]
    fn durations() {
        for (value, ms) in [
            ("0s", 0),
            ("50ms", 50),
            ("1s", 1_000),
            ("15m", 900_000),
            ("2h", 7_200_000),
            ("007s", 7_000),
        ] {
            assert_eq!(
                any_duration(value),
                Ok(Duration::from_millis(ms)),
                "{value}"
            );
        }
        for value in [
            "",
            "1",
            "s",
            "-1s",
            "+1s",
            "1.5s",
            "1 s",
            " 1s",
            "1s ",
            "1S",
            "1d",
            "1m30s",
            "1sec",
            "18446744073709551616ms",
            "18446744073709551615h",
            "١s",
        ] {
            let fault = any_duration(value).expect_err(value);
            assert!(fault.contains("50ms, 1s, 15m or 2h"), "{value}: {fault}");
        }
    }

    #[test]
    fn durations_out_of_range_name_the_range() {
        let ten_minutes = Duration::from_secs(600);
        let within = |value| duration(Duration::from_millis(1_500)..=ten_minutes)(value);
        assert_eq!(within("10m"), Ok(ten_minutes));
        assert_eq!(
            within("11m"),
            Err("it must be from 1500ms to 10m".to_owned())
        );
        assert_eq!(
            within("1s"),
            Err("it must be from 1500ms to 10m".to_owned())
        );
    }

    #[test]
    fn sizes() {
        for (value, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("1MiB", 1_048_576),
            ("512KiB", 524_288),
            ("16MB", 16_000_000),
            ("3kB", 3_000),
            ("3KB", 3_000),
            ("1GiB", 1_073_741_824),
            ("2GB", 2_000_000_000),
        ] {
            assert_eq!(any_size(value), Ok(bytes), "{value}");
        }
        for value in [
            "",
            "MiB",
            "-1",
            "+1",
            "1.5MiB",
            "1 MiB",
            "1M",
            "1Mi",
            "1mib",
            "1TiB",
            "18446744073709551616",
            "18446744073709551615GiB",
        ] {
            any_size(value).expect_err(value);
        }
        assert!(size(10..=20)("21").is_err());
        assert!(size(10..=20)("9").is_err());
        assert_eq!(size(10..=20)("20"), Ok(20));
    }

    proptest! {
        #[test]
        fn no_value_makes_a_parser_panic(value in "\\PC*") {
            let _ = (any_duration(&value), any_size(&value), database(&value), web_url(&value));
            let _ = (properties(&value), address(&value), rate("pages")(&value), count(1..=9)(&value));
        }

        #[test]
        fn whole_milliseconds_are_read_as_written(ms in any::<u64>()) {
            prop_assert_eq!(any_duration(&format!("{ms}ms")), Ok(Duration::from_millis(ms)));
        }

        #[test]
        fn a_shown_duration_reads_back(ms in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(any_duration(&shown_duration(duration)), Ok(duration));
        }
    }

    #[test]
    fn counts() {
        assert_eq!(count(1..=10)("10"), Ok(10));
        for value in [
            "0",
            "11",
            "-1",
            "+1",
            "1.0",
            "",
            "x",
            "99999999999999999999",
        ] {
            assert_eq!(
                count(1..=10)(value),
                Err("write a whole number from 1 to 10".to_owned())
            );
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("calls")("0.5"), Ok(0.5));
        assert_eq!(rate("calls")("100"), Ok(100.0));
        for value in ["0", "-1", "NaN", "inf", "", "ten", "1e9"] {
            rate("calls")(value).expect_err(value);
        }
    }

    #[test]
    fn databases() {
        for (value, path) in [
            ("sqlite://cohort-bridge.db", "cohort-bridge.db"),
            ("sqlite:cohort-bridge.db", "cohort-bridge.db"),
            ("sqlite:///var/lib/x.db", "/var/lib/x.db"),
            ("sqlite:/var/lib/x.db", "/var/lib/x.db"),
            ("sqlite://./data/x.db", "./data/x.db"),
        ] {
            assert_eq!(
                database(value),
                Ok(Database::Sqlite(path.into())),
                "{value}"
            );
        }
        for value in [
            "",
            "cohort-bridge.db",
            "sqlite:",
            "sqlite://",
            "sqlite:///",
            "sqlite://x/",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://x.db?mode=rwc",
            "mysql://h/x",
            "SQLITE://x",
        ] {
            database(value).expect_err(value);
        }
        for value in ["postgres://u:pass@h/x", "postgresql://u:pass@h:5432/x"] {
            let shown = format!("{:?}", database(value));
            assert!(shown.contains("h/x"), "{shown}");
            assert!(!shown.contains("pass"), "{shown}");
        }
        for value in [
            "postgres://u:pass@h",
            "postgres:",
            "postgres://u:pass@h/x?sslmode=maybe",
        ] {
            let fault = database(value).expect_err(value);
            assert!(!fault.contains("pass@"), "{fault}");
        }
    }

    #[test]
    fn flagsmith_urls() {
        for (value, url) in [
            (
                "https://flags.example.com/api/v1",
                "https://flags.example.com/api/v1/",
            ),
            (
                "https://flags.example.com/api/v1/",
                "https://flags.example.com/api/v1/",
            ),
            ("https://flags.example.com", "https://flags.example.com/"),
            (
                "http://localhost:8000/api/v1/",
                "http://localhost:8000/api/v1/",
            ),
            (
                "http://127.0.0.1:8000/api/v1/",
                "http://127.0.0.1:8000/api/v1/",
            ),
            ("http://[::1]:8000/", "http://[::1]:8000/"),
            ("http://10.1.2.3/", "http://10.1.2.3/"),
            ("http://172.16.0.1/", "http://172.16.0.1/"),
            ("http://192.168.0.1/", "http://192.168.0.1/"),
            ("http://[fd00::1]/", "http://[fd00::1]/"),
            ("http://[::ffff:10.0.0.1]/", "http://[::ffff:a00:1]/"),
            (
                "http://flagsmith:8000/api/v1/",
                "http://flagsmith:8000/api/v1/",
            ),
            ("http://flagsmith.tools.svc/", "http://flagsmith.tools.svc/"),
            (
                "http://flagsmith.tools.svc.cluster.local/",
                "http://flagsmith.tools.svc.cluster.local/",
            ),
            (
                "http://flagsmith.corp.internal./",
                "http://flagsmith.corp.internal./",
            ),
        ] {
            assert_eq!(
                flagsmith_url(false)(value).map(String::from),
                Ok(url.to_owned())
            );
        }
        for value in [
            "http://flags.example.com/api/v1/",
            "http://8.8.8.8/",
            "http://172.32.0.1/",
            "http://[2001:db8::1]/",
            "http://notlocal.example/",
            "http://127.0.0.1.nip.io/",
        ] {
            let fault = flagsmith_url(false)(value).expect_err(value);
            assert!(fault.contains("--allow-http"), "{fault}");
            assert!(flagsmith_url(true)(value).is_ok(), "{value}");
        }
        for value in [
            "",
            "flags.example.com",
            "ftp://flags.example.com/",
            "https://u:p@h.example/",
            "https://u@h.example/",
            "https://h.example/?x=1",
            "https://h.example/#x",
            "https://h.example/ ",
            "https://h.exa\tmple/",
            "https://",
            "data:text/plain,x",
        ] {
            let fault = flagsmith_url(true)(value).expect_err(value);
            assert!(fault.contains("http or https URL"), "{value}: {fault}");
        }
    }

    #[test]
    fn property_lists() {
        assert_eq!(
            properties("$user_id, mixpanel_distinct_id,User ID"),
            Ok(vec![
                "$user_id".into(),
                "mixpanel_distinct_id".into(),
                "User ID".into()
            ])
        );
        for value in ["", " ", "a,", ",a", "a,,b", "a, ,b", "a,b,a", "a\0", "a,\0"] {
            properties(value).expect_err(value);
        }
    }

    #[test]
    fn header_secrets() {
        assert!(header_secret("ser.abc-_~/+=").is_ok());
        for value in ["", " ", "a b", "a\nb", "schlüssel", "a\0"] {
            assert!(header_secret(value).is_err(), "{value:?}");
        }
    }
}
