//! The Dockerfile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cohort_bridge::cli::{self, Command};
use cohort_bridge::config::{Environment, HealthQuestion};
use cohort_bridge::{config::setting, health};

use super::yaml::{files_below, text_of, top};

pub const DOCKERFILE: &str = "deploy/Dockerfile";
const IGNORE: &str = "deploy/Dockerfile.dockerignore";

/// The Dockerfile's instructions, continued lines joined.
fn instructions() -> Vec<String> {
    let text = text_of(DOCKERFILE).replace("\\\n", " ");
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// What follows the instruction, each time it is given.
fn given(instruction: &str) -> Vec<String> {
    let start = format!("{instruction} ");
    let lines = instructions();
    let given = lines.iter().filter_map(|line| line.strip_prefix(&start));
    given.map(|rest| rest.trim().to_owned()).collect()
}

/// What follows the instruction that is given once.
fn only(instruction: &str) -> String {
    let [rest] = <[String; 1]>::try_from(given(instruction)).expect(instruction);
    rest
}

/// Who the image runs as.
pub fn uid() -> u64 {
    let user = only("USER");
    let (user, group) = user.split_once(':').unwrap();
    assert_eq!(user, group);
    user.parse()
        .expect("a number: Kubernetes cannot tell whether a name is root")
}

/// The folder that it may write to.
pub fn volume() -> String {
    only("VOLUME")
}

/// The variables that it sets itself.
pub fn variables() -> Vec<(String, String)> {
    let pairs = only("ENV");
    let pairs = pairs
        .split_whitespace()
        .map(|pair| pair.split_once('=').unwrap());
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn default_of(flag: &str) -> SocketAddr {
    let mut settings = setting::SERVE.iter();
    let setting = settings.find(|setting| setting.flag == flag).unwrap();
    let setting::Fallback::Value(default) = setting.fallback else {
        panic!("{flag} has no default");
    };
    default.parse().unwrap()
}

/// How long a Compose or Dockerfile duration of seconds is.
pub fn seconds(text: &str) -> Duration {
    let seconds = text.strip_suffix('s').expect("seconds").parse().unwrap();
    Duration::from_secs(seconds)
}

/// The question that a health check's command asks.
pub fn question(command: &[&str]) -> HealthQuestion {
    let [_, arguments @ ..] = command else {
        panic!("no command");
    };
    let line = ["cohort-bridge"].iter().chain(arguments);
    let Command::Health(args) = cli::try_parse_from(line).unwrap().command else {
        panic!("{command:?} is not health");
    };
    let nothing: Environment = std::iter::empty::<(String, String)>().collect();
    HealthQuestion::from_args(&args, &nothing).unwrap()
}

#[test]
fn the_image_fits_the_program() {
    // The admin listener is not for `docker run --publish-all`.
    assert_eq!(only("EXPOSE"), default_of("--listen").port().to_string());
    assert!(uid() > 0);
    let command: Vec<String> = serde_json::from_str(&only("CMD")).unwrap();
    assert_eq!(command, ["serve"]);

    // A read-only root has one place to write.
    let folder = volume();
    let variables: BTreeMap<String, String> = variables().into_iter().collect();
    assert_eq!(variables.len(), 2, "{variables:?}");
    let ledger = Path::new(variables["DATABASE_URL"].strip_prefix("sqlite://").unwrap());
    assert_eq!(ledger.parent(), Some(Path::new(&folder)));
    assert_eq!(variables["TMPDIR"], folder);
    let owner = format!("--from=build --chown={0}:{0} /ledger {folder}", uid());
    assert!(given("COPY").contains(&owner), "{owner}");
}

#[test]
fn the_image_is_built_from_what_is_pinned() {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let bases = given("FROM");
    assert_eq!(bases.len(), 2);
    for base in &bases {
        let image = base.split(' ').next().unwrap();
        let (name, digest) = image.split_once("@sha256:").expect("a digest");
        assert!(name.contains(':'), "{name} tells nobody what it was");
        assert!(
            digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit()),
            "{digest}"
        );
    }
    assert!(
        bases[0].contains(&format!("/rust:{version}.")),
        "{}",
        bases[0]
    );
    // The binary is linked against the C library of the first and runs on that of the second.
    assert!(bases[0].contains("-bookworm@") && bases[1].contains("-debian12:nonroot@"));
    assert!(given("ARG").contains(&format!("VERSION={}", env!("CARGO_PKG_VERSION"))));
    let labels = only("LABEL");
    for label in [
        "title",
        "description",
        "licenses",
        "version",
        "revision",
        "base.name",
    ] {
        assert!(
            labels.contains(&format!("org.opencontainers.image.{label}=")),
            "{label}"
        );
    }
    assert!(labels.contains(env!("CARGO_PKG_DESCRIPTION")));
    assert!(labels.contains(&format!("\"{}\"", env!("CARGO_PKG_LICENSE"))));
}

#[test]
fn the_images_health_check_is_the_programs_own() {
    let check = only("HEALTHCHECK");
    let (options, command) = check.split_once("CMD ").unwrap();
    let command: Vec<&str> = serde_json::from_str(command).unwrap();
    let entrypoint: Vec<String> = serde_json::from_str(&only("ENTRYPOINT")).unwrap();
    assert_eq!(command[0], entrypoint[0]);
    let asked = question(&command);
    assert_eq!(asked.admin_listen, default_of("--admin-listen"));
    assert!(!asked.ready, "an orchestrator restarts by it");
    let mut options = options.split_whitespace();
    let timeout = options
        .find_map(|option| option.strip_prefix("--timeout="))
        .unwrap();
    assert!(
        seconds(timeout) > health::LIMIT,
        "killed before it can say why"
    );
}

#[test]
fn the_build_gets_all_that_it_includes_and_nothing_else() {
    let ignore = text_of(IGNORE);
    let lines = ignore.lines().filter(|line| !line.starts_with('#'));
    let mut lines = lines.filter(|line| !line.is_empty());
    assert_eq!(lines.next(), Some("*"));
    let sent: BTreeSet<&str> = lines
        .map(|line| line.strip_prefix('!').expect("allowed"))
        .collect();
    assert_eq!(sent.len(), 6, "{sent:?}");
    for needed in ["Cargo.toml", "Cargo.lock", "src", "benches", "LICENSE-*"] {
        assert!(sent.contains(needed), "{needed}");
    }
    // Files that the source takes in from elsewhere, at compile time.
    let mut elsewhere = 0;
    for path in files_below("src") {
        let text = text_of(&path);
        for included in text.split("include_str!(\"").skip(1) {
            let included = included.split('"').next().unwrap();
            let file = top().join(&path).parent().unwrap().join(included);
            let file = file
                .canonicalize()
                .unwrap_or_else(|_| panic!("{included} in {path}"));
            let below = file
                .strip_prefix(top().canonicalize().unwrap())
                .unwrap()
                .to_owned();
            let first = below.iter().next().unwrap().to_str().unwrap();
            assert!(sent.contains(first), "{path} needs {included}");
            elsewhere += usize::from(first != "src");
        }
    }
    assert!(elsewhere > 0);
}
