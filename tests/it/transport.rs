//! How Flagsmith is reached: TLS, the protocol, proxies. With the real binary, since that is what
//! reads the variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cohort_bridge::flagsmith::{Authorities, Flagsmith, Limits, Storage};
use cohort_bridge::standin::{Environment, StandIn};

use crate::support::front::{Authority, Front, Proxy};
use crate::support::process::{Ended, Variables, run, serve_variables};
use crate::support::service::stand_in;
use crate::support::{destination, fast_temp_dir};

const BOTH: &[&str] = &["h2", "http/1.1"];

/// A stand-in behind a TLS server under an authority of its own.
struct Setup {
    folder: tempfile::TempDir,
    authority: Authority,
    stand_in: StandIn,
    front: Front,
}

impl Setup {
    async fn new(name: &str, offers: &[&str]) -> Self {
        let (authority, stand_in) = (Authority::new(), stand_in());
        let front = Front::start(&authority, &[name], offers, stand_in.address()).await;
        let folder = fast_temp_dir();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        Setup {
            folder,
            authority,
            stand_in,
            front,
        }
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Settings that reach the server under a name.
    fn variables(&self, host: &str) -> Variables {
        let url = format!("https://{host}:{}/api/v1/", self.front.address.port());
        let mut variables = serve_variables(&self.folder.path().join("ledger.db"), &url);
        let ca_file = self.ca_file().display().to_string();
        variables.insert("COHORT_BRIDGE_CA_FILE".into(), ca_file);
        variables
    }
}

fn works(ended: &Ended) -> bool {
    assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    (ended.code == Some(0)) && ended.stdout.contains("the key works")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_trusted_where_the_settings_name_it() {
    let setup = Setup::new("localhost", BOTH).await;
    let mut variables = setup.variables("localhost");
    let ended = run(&["check"], &variables);
    assert!(works(&ended), "{ended:?}");

    variables.remove("COHORT_BRIDGE_CA_FILE");
    let refused = run(&["check"], &variables);
    assert!(!works(&refused), "{refused:?}");
    assert!(refused.stdout.contains("certificate"), "{refused:?}");

    // Another authority's certificate is none for it; beside it, it is.
    let other = Authority::new().pem();
    let both = setup.authority.pem() + &other;
    for (pem, is_trusted) in [(&other, false), (&both, true)] {
        let path = setup.folder.path().join("other.pem");
        std::fs::write(&path, pem).unwrap();
        variables.insert("COHORT_BRIDGE_CA_FILE".into(), path.display().to_string());
        assert_eq!(works(&run(&["check"], &variables)), is_trusted);
    }

    // In the settings file, beside which it lies.
    variables.remove("COHORT_BRIDGE_CA_FILE");
    let key = variables.remove("COHORT_BRIDGE_FLAGSMITH_ENVIRONMENT_KEY");
    let path = setup.folder.path().join("settings.toml");
    let text = format!(
        "[[destinations]]\nname = 'a'\nenvironment_key = '{}'\nca_file = 'ca.pem'\n",
        key.unwrap()
    );
    std::fs::write(&path, text).unwrap();
    variables.insert("COHORT_BRIDGE_CONFIG".into(), path.display().to_string());
    let ended = run(&["check"], &variables);
    assert!(works(&ended), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_machine_trusts_is_trusted_beside_that() {
    let setup = Setup::new("localhost", BOTH).await;
    let mut variables = setup.variables("localhost");
    variables.remove("COHORT_BRIDGE_CA_FILE");
    assert!(!works(&run(&["check"], &variables)));
    // As a machine is told of an authority that is not in its own list.
    let ca_file = setup.ca_file().display().to_string();
    variables.insert("SSL_CERT_FILE".into(), ca_file);
    let ended = run(&["check"], &variables);
    assert!(works(&ended), "{ended:?}");

    let other = setup.folder.path().join("other.pem");
    std::fs::write(&other, Authority::new().pem()).unwrap();
    variables.insert("COHORT_BRIDGE_CA_FILE".into(), other.display().to_string());
    let ended = run(&["check"], &variables);
    assert!(works(&ended), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name_is_refused() {
    let setup = Setup::new("flagsmith.test", BOTH).await;
    let refused = run(&["check"], &setup.variables("localhost"));
    assert!(!works(&refused), "{refused:?}");
    assert!(refused.stdout.contains("certificate"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_is_spoken_where_it_is_offered() {
    for (offers, spoken) in [
        (BOTH, "h2"),
        (&["h2"], "h2"),
        (&["http/1.1"], "http/1.1"),
        (&[], ""),
    ] {
        let setup = Setup::new("localhost", offers).await;
        let ended = run(&["check"], &setup.variables("localhost"));
        assert!(works(&ended), "{offers:?}: {ended:?}");
        assert_eq!(setup.front.protocols(), [spoken], "{offers:?}");
        let stored = setup.stand_in.identity("cohort_bridge_check");
        assert!(stored.is_some(), "{offers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_http_2_connection_is_noticed_and_replaced() {
    let (authority, stand_in) = (Authority::new(), stand_in());
    let names = &["localhost"];
    let front = Front::that_goes_silent(&authority, names, BOTH, stand_in.address(), 1).await;
    let url = format!("https://localhost:{}/api/v1/", front.address.port());
    let mut destination = destination(&url, &Environment::default().server_key);
    destination.authorities = Some(Authorities::parse(&authority.pem()).unwrap());
    let limits = Limits {
        http2_silence: Duration::from_millis(50),
        ..Limits::default()
    };
    let client = Flagsmith::with_limits(&destination, limits).unwrap();
    // Whatever was under way has no known end, as after a time-out; what comes next has another
    // connection, long before a call's time limit.
    let lost = client.probe_storage("x").await;
    let Storage::Unreachable { error, .. } = lost else {
        panic!("{lost:?}");
    };
    assert!(error.contains("keep-alive timed out"), "{error}");
    let stored = client.probe_storage("x").await;
    assert!(matches!(stored, Storage::Stays), "{stored:?}");
    assert_eq!(front.protocols(), ["h2"]);
    assert_eq!(front.connections(), 2);
}

/// Variables for a proxy.
fn by_proxy(mut variables: Variables, address: SocketAddr, no_proxy: &str) -> Variables {
    variables.insert("HTTPS_PROXY".into(), format!("http://{address}"));
    variables.insert("NO_PROXY".into(), no_proxy.into());
    variables
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_used_as_the_usual_variables_say_but_never_for_loopback() {
    let setup = Setup::new("flagsmith.test", BOTH).await;
    let proxy = Proxy::start(setup.front.address).await;
    // Nobody but the proxy knows that name.
    let variables = setup.variables("flagsmith.test");
    let ended = run(&["check"], &by_proxy(variables.clone(), proxy.address, ""));
    assert!(works(&ended), "{ended:?}");
    let port = setup.front.address.port();
    let asked_for = proxy.asked_for();
    let line = format!("CONNECT flagsmith.test:{port} HTTP/1.1");
    assert!(!asked_for.is_empty());
    assert!(
        asked_for.iter().all(|asked| *asked == line),
        "{asked_for:?}"
    );

    let unproxied = by_proxy(variables, proxy.address, "other.test,flagsmith.test");
    let ended = run(&["check"], &unproxied);
    assert!(!works(&ended), "{ended:?}");
    assert_eq!(proxy.asked_for().len(), asked_for.len());

    let setup = Setup::new("localhost", BOTH).await;
    let ended = run(
        &["check"],
        &by_proxy(setup.variables("localhost"), proxy.address, ""),
    );
    assert!(works(&ended), "{ended:?}");
    assert_eq!(proxy.asked_for().len(), asked_for.len());
    assert!(setup.front.connections() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_authorities_that_cannot_be_used_is_a_fault() {
    let setup = Setup::new("localhost", BOTH).await;
    let mut variables = setup.variables("localhost");
    let path = setup.ca_file();
    let pem = setup.authority.pem();
    let (first, _) = pem.split_at(pem.len() / 2);
    let no_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for (content, trouble) in [
        ("", "there is no certificate in it"),
        ("nonsense", "there is no certificate in it"),
        (&key, "there is no certificate in it"),
        (first, "certificate"),
        (no_der, "one of its certificates cannot be read"),
    ] {
        std::fs::write(&path, content).unwrap();
        let ended = run(&["serve"], &variables);
        assert_eq!(ended.code, Some(2), "{content}: {ended:?}");
        let names = "--ca-file (COHORT_BRIDGE_CA_FILE) cannot be ";
        assert!(ended.stderr.contains(names), "{}", ended.stderr);
        assert!(ended.stderr.contains(trouble), "{}", ended.stderr);
    }
    variables.insert("COHORT_BRIDGE_CA_FILE".into(), "/nowhere/at/all".into());
    let ended = run(&["serve"], &variables);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("No such file"), "{}", ended.stderr);
}
