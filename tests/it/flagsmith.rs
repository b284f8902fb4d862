//! The client against the stand-in, over real HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cohort_bridge::cohort::Target::{self, Absent, False, True};
use cohort_bridge::config::{BlankEcho, Destination};
use cohort_bridge::flagsmith::{
    BlankVerdict, CANARY, Call, Disposition, Flagsmith, FlagsmithError, Limits, Scope, Storage,
};
use cohort_bridge::standin::{Endpoint, Fault, StandIn, StandInOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{calls_are_held, destination, stand_in_of_all_kinds};

const WRITTEN: Disposition = Disposition::Written {
    may_land_late: false,
};
const WRITTEN_TWICE: Disposition = Disposition::Written {
    may_land_late: true,
};
const BLANK: Disposition = Disposition::BlankEcho {
    may_land_late: false,
};

/// A stand-in of the plainest kind, and a client of it.
fn pair() -> (StandIn, Flagsmith) {
    let stand_in = StandIn::start(StandInOptions::default()).unwrap();
    let client = client(&stand_in, "ser.server-key");
    (stand_in, client)
}

fn client(stand_in: &StandIn, key: &str) -> Flagsmith {
    Flagsmith::new(&destination(&stand_in.url(), key)).unwrap()
}

/// A client that loses patience at once.
fn impatient(stand_in: &StandIn) -> Flagsmith {
    let limits = Limits {
        call_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    Flagsmith::with_limits(&destination(&stand_in.url(), "ser.server-key"), limits).unwrap()
}

async fn write_true(client: &Flagsmith) -> Disposition {
    client.write("ann", &[("t", True)]).await
}

fn later(disposition: &Disposition) -> (Scope, Option<Duration>, bool) {
    match disposition {
        Disposition::Later {
            scope,
            retry_after,
            may_land_late,
            ..
        } => (*scope, *retry_after, *may_land_late),
        other => panic!("not Later: {other:?}"),
    }
}

fn halted(disposition: Disposition) -> String {
    match disposition {
        Disposition::Halt { reason } => reason,
        other => panic!("not Halt: {other:?}"),
    }
}

#[tokio::test]
async fn traits_are_set_changed_and_deleted_beside_others() {
    let (stand_in, client) = pair();
    let written: [&[(&str, Target)]; 4] = [
        &[("a", True), ("b", True)],
        &[("a", False), ("c", True)],
        &[("b", Absent), ("never", Absent)],
        &[("c", Absent), ("a", True)],
    ];
    for traits in written {
        assert_eq!(client.write("ü/%\n\"", traits).await, WRITTEN, "{traits:?}");
    }
    assert_eq!(
        json!(stand_in.identities()),
        json!({"ü/%\n\"": {"a": true}})
    );
    assert_eq!(
        client.read("ü/%\n\"").await.unwrap(),
        [("a".to_owned(), Value::Bool(true))]
    );
    assert_eq!(client.write("ann", &[]).await, WRITTEN);
    assert_eq!(stand_in.calls_to(Endpoint::Write), 4);
}

#[tokio::test]
async fn the_request_is_as_flagsmith_needs_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api/v1/", listener.local_addr().unwrap());
    let client = Flagsmith::new(&destination(&url, "ser.k")).unwrap();
    let server = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).await.unwrap();
        let body = r#"{"identifier":"ann","traits":[{"trait_key":"t","trait_value":true}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(body.as_bytes()).await.unwrap();
        String::from_utf8(request[..length].to_vec()).unwrap()
    };
    let (disposition, request) = tokio::join!(write_true(&client), server);
    assert_eq!(disposition, WRITTEN);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        body,
        r#"{"identifier":"ann","traits":[{"trait_key":"t","trait_value":true}]}"#
    );
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("POST /api/v1/identities/ HTTP/1.1"));
    let headers: Vec<String> = lines.map(str::to_lowercase).collect();
    for wanted in [
        "x-environment-key: ser.k".to_owned(),
        "content-type: application/json".to_owned(),
        "accept: application/json".to_owned(),
        format!("content-length: {}", body.len()),
        format!("user-agent: cohort-bridge/{}", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(headers.contains(&wanted), "{wanted} is not in {headers:?}");
    }
    assert_eq!(headers.len(), 6, "{headers:?}");
}

#[tokio::test]
async fn every_status_arrives_as_its_disposition() {
    let (stand_in, client) = pair();
    let json = |status, body: &str| Fault::answer(status, body);
    let halts = [
        (Fault::status(201), "201"),
        (Fault::status(204), "204"),
        (Fault::status(301), "redirect"),
        (Fault::status(400), "DJANGO_ALLOWED_HOSTS"),
        (Fault::status(401), "credentials"),
        (Fault::unknown_key(), "does not know the environment key"),
        (Fault::status(404), "/api/v1/"),
        (Fault::status(405), "405"),
        (Fault::status(413), "413"),
        (Fault::status(431), "431"),
        (Fault::log_in_page(), "Log in"),
        (
            json(200, r#"{"detail":"Missing identifier"}"#),
            "Missing identifier",
        ),
        (
            json(200, r#"{"identifier":"bob","traits":[]}"#),
            "another identity",
        ),
    ];
    for (fault, words) in halts {
        stand_in.script([fault]);
        let reason = halted(write_true(&client).await);
        assert!(reason.contains(words), "{reason}");
    }
    let laters = [
        (408, Scope::Identity, true),
        (425, Scope::Destination, false),
        (429, Scope::Destination, false),
        (500, Scope::Identity, false),
        (502, Scope::Destination, true),
        (503, Scope::Destination, true),
        (504, Scope::Identity, true),
    ];
    for (status, scope, late) in laters {
        stand_in.script([Fault::status(status)]);
        assert_eq!(
            later(&write_true(&client).await),
            (scope, None, late),
            "{status}"
        );
    }
    assert!(stand_in.identities().is_empty());
    assert_eq!(write_true(&client).await, WRITTEN);
}

#[tokio::test]
async fn what_flagsmith_itself_refuses_is_told_apart() {
    let stand_in = stand_in_of_all_kinds();
    let main = client(&stand_in, "ser.main");
    let key = "k".repeat(201);
    let refused = main.write("ann", &[(&key, True)]).await;
    let Disposition::Refused { error } = refused else {
        panic!("{refused:?}")
    };
    assert!(error.contains("no more than 200 characters"), "{error}");
    // An identity that never works looks like an outage.
    let identifier = "i".repeat(2001);
    let never = main.write(&identifier, &[("t", True)]).await;
    assert_eq!(later(&never), (Scope::Identity, None, false));
    // One that Flagsmith trims would name another.
    let trimmed = main.write("ann\u{1c}", &[("t", True)]).await;
    assert!(
        matches!(trimmed, Disposition::Refused { .. }),
        "{trimmed:?}"
    );
    // And a blank one nobody.
    halted(main.write(" ", &[("t", True)]).await);

    let reason = halted(write_true(&client(&stand_in, "ser.stopped")).await);
    assert!(
        reason.contains("Organisation is disabled from serving flags."),
        "{reason}"
    );
    let reason = halted(write_true(&client(&stand_in, "wrong")).await);
    assert!(reason.contains("ENVIRONMENT_KEY"), "{reason}");
    let elsewhere = Destination {
        api_url: stand_in.url().replace("/api/v1/", "/v1/").parse().unwrap(),
        ..destination(&stand_in.url(), "ser.main")
    };
    let reason = halted(write_true(&Flagsmith::new(&elsewhere).unwrap()).await);
    assert!(reason.contains("/api/v1/"), "{reason}");
}

#[tokio::test]
async fn retry_after_is_honoured_and_clamped() {
    let (stand_in, client) = pair();
    let table = [
        ("7", 7),
        ("86400", 900),
        ("Tue, 01 Jan 2126 00:00:00 GMT", 900),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ];
    for (value, seconds) in table {
        stand_in.script([Fault::too_many(value)]);
        let expected = (
            Scope::Destination,
            Some(Duration::from_secs(seconds)),
            false,
        );
        assert_eq!(later(&write_true(&client).await), expected, "{value}");
    }
    stand_in.script([Fault::Answer {
        status: 503,
        retry_after: Some("3".to_owned()),
        body: String::new(),
    }]);
    assert_eq!(
        later(&write_true(&client).await).1,
        Some(Duration::from_secs(3))
    );
}

#[tokio::test]
async fn a_broken_connection_is_tried_again_at_once_and_once() {
    let (stand_in, client) = pair();
    assert_eq!(write_true(&client).await, WRITTEN);

    stand_in.forget_calls();
    stand_in.script([Fault::CloseBeforeStoring]);
    assert_eq!(client.write("ann", &[("t", False)]).await, WRITTEN_TWICE);
    assert_eq!(stand_in.calls_to(Endpoint::Write), 2);

    stand_in.script([Fault::CloseAfterStoring]);
    assert_eq!(write_true(&client).await, WRITTEN_TWICE);

    stand_in.forget_calls();
    stand_in.script([Fault::CloseBeforeStoring, Fault::CloseAfterStoring]);
    let lost = client.write("bob", &[("t", True)]).await;
    assert_eq!(later(&lost), (Scope::Identity, None, true));
    assert_eq!(stand_in.calls_to(Endpoint::Write), 2);
    assert_eq!(stand_in.identity("bob").unwrap()["t"], true);

    // What the second sending met does not make the first unsent.
    stand_in.script([Fault::CloseBeforeStoring, Fault::status(429)]);
    assert_eq!(
        later(&write_true(&client).await),
        (Scope::Destination, None, true)
    );
    // Nor does a verdict: the next call will meet the same, and nothing of that lands late.
    let verdicts = [
        Fault::unknown_key(),
        Fault::answer(400, r#"{"identifier":["no"]}"#),
        Fault::answer(
            200,
            r#"{"identifier":"ann","traits":[{"trait_key":"x","trait_value":1}]}"#,
        ),
    ];
    for verdict in verdicts {
        stand_in.script([Fault::CloseBeforeStoring, verdict]);
        assert_eq!(
            later(&write_true(&client).await),
            (Scope::Identity, None, true)
        );
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_later_and_not_repeated() {
    let (stand_in, client) = pair();
    stand_in.script([Fault::Truncate]);
    assert_eq!(
        later(&write_true(&client).await),
        (Scope::Identity, None, false)
    );
    assert_eq!(stand_in.calls_to(Endpoint::Write), 1);
    // Cut by a proxy that keeps HTTP whole.
    stand_in.script([Fault::answer(
        200,
        r#"{"identifier":"ann","traits":[{"trait_key":"t""#,
    )]);
    assert_eq!(
        later(&write_true(&client).await),
        (Scope::Identity, None, false)
    );
}

#[tokio::test]
async fn an_answer_without_end_halts() {
    let stand_in = StandIn::start(StandInOptions::default()).unwrap();
    let limits = Limits {
        max_answer_bytes: 100,
        ..Limits::default()
    };
    let destination = destination(&stand_in.url(), "ser.server-key");
    let client = Flagsmith::with_limits(&destination, limits).unwrap();
    let reason = halted(write_true(&client).await);
    assert!(reason.contains("over 100 bytes"), "{reason}");
}

#[tokio::test]
async fn a_time_out_may_land_late() {
    let stand_in = StandIn::start(StandInOptions::default()).unwrap();
    let client = impatient(&stand_in);
    stand_in.script([Fault::LandLate]);
    assert_eq!(
        later(&write_true(&client).await),
        (Scope::Identity, None, true)
    );
    assert_eq!(client.write("ann", &[("t", False)]).await, WRITTEN);
    assert_eq!(stand_in.identity("ann").unwrap()["t"], false);
    assert_eq!(stand_in.land_late_writes(), 1);
    assert_eq!(stand_in.identity("ann").unwrap()["t"], true);

    stand_in.script([Fault::Hang]);
    assert_eq!(
        later(&write_true(&client).await),
        (Scope::Identity, None, true)
    );
    assert_eq!(stand_in.calls()[&(Endpoint::Write, 0)], 2);
}

#[tokio::test]
async fn down_and_back() {
    let (stand_in, client) = pair();
    assert_eq!(write_true(&client).await, WRITTEN);
    stand_in.stop().await;
    let refused = client.write("ann", &[("t", False)]).await;
    let (scope, _, _) = later(&refused);
    assert_eq!(scope, Scope::Destination);
    // With no connection left over from before, nothing can have been sent.
    assert_eq!(
        later(&write_true(&client).await),
        (Scope::Destination, None, false)
    );
    stand_in.resume().unwrap();
    assert_eq!(stand_in.identity("ann").unwrap()["t"], true);
    assert_eq!(client.write("ann", &[("t", False)]).await, WRITTEN);
}

#[tokio::test]
async fn the_stand_in_sees_what_overlaps() {
    let (stand_in, client) = pair();
    stand_in.fault(Fault::Hold);
    let both = async {
        tokio::join!(
            client.write("ann", &[("a", True)]),
            client.write("ann", &[("b", True)]),
            client.write("bob", &[("a", True)]),
        )
    };
    let release = async {
        calls_are_held(&stand_in, 3).await;
        stand_in.release();
    };
    let ((a, b, c), ()) = tokio::join!(both, release);
    assert_eq!((a, b, c), (WRITTEN, WRITTEN, WRITTEN));
    assert_eq!(stand_in.max_in_flight_per_identity(), 2);
    assert_eq!(stand_in.max_in_flight(), 3);
    stand_in.clear_faults();
    stand_in.forget_calls();
    assert_eq!(stand_in.max_in_flight_per_identity(), 0);
    write_true(&client).await;
    assert_eq!(stand_in.max_in_flight_per_identity(), 1);
}

#[tokio::test]
async fn faults_can_be_for_one_identity() {
    let (stand_in, client) = pair();
    stand_in.fault_for(|call| (call.identifier == "ann").then(|| Fault::status(500)));
    assert_eq!(later(&write_true(&client).await).0, Scope::Identity);
    assert_eq!(client.write("bob", &[("t", True)]).await, WRITTEN);
    stand_in.clear_faults();
    assert_eq!(write_true(&client).await, WRITTEN);
}

#[tokio::test]
async fn every_call_is_observed() {
    let stand_in = StandIn::start(StandInOptions::default()).unwrap();
    let seen: Arc<Mutex<Vec<Option<u16>>>> = Arc::default();
    let client = client(&stand_in, "ser.server-key").observed_by({
        let seen = Arc::clone(&seen);
        move |call: Call| seen.lock().unwrap().push(call.status)
    });
    stand_in.script([Fault::Pass, Fault::status(503), Fault::CloseBeforeStoring]);
    for _ in 0..3 {
        write_true(&client).await;
    }
    assert_eq!(
        *seen.lock().unwrap(),
        [Some(200), Some(503), None, Some(200)]
    );
}

#[tokio::test]
async fn a_read_fails_as_a_write_does() {
    let (stand_in, client) = pair();
    stand_in.script([
        Fault::unknown_key(),
        Fault::too_many("5"),
        Fault::log_in_page(),
    ]);
    let halted = client.read("ann").await;
    assert!(
        matches!(halted, Err(FlagsmithError::Halt { .. })),
        "{halted:?}"
    );
    let Err(FlagsmithError::Later { retry_after, .. }) = client.read("ann").await else {
        panic!()
    };
    assert_eq!(retry_after, Some(Duration::from_secs(5)));
    let halted = client.read("ann").await;
    assert!(
        matches!(halted, Err(FlagsmithError::Halt { .. })),
        "{halted:?}"
    );
}

#[tokio::test]
async fn errors_name_no_identifier() {
    let (stand_in, client) = pair();
    stand_in.stop().await;
    let error = format!("{:?}", client.read("ann@example.com").await);
    assert!(error.contains("Later") && !error.contains("ann"), "{error}");
    stand_in.resume().unwrap();
    stand_in.script([Fault::answer(
        400,
        r#"{"identifier":["ann@example.com is odd"]}"#,
    )]);
    let error = format!(
        "{:?}",
        client.write("ann@example.com", &[("t", True)]).await
    );
    assert!(error.contains("… is odd"), "{error}");
}

/// The canary's and the judge's findings in every kind of environment.
#[tokio::test]
async fn blank_echoes_are_judged_in_every_kind_of_environment() {
    let stand_in = stand_in_of_all_kinds();
    let table = [
        ("ser.main", WRITTEN, None),
        ("client-main", WRITTEN, None),
        ("ser.barred", WRITTEN, None),
        (
            "client-barred",
            BLANK,
            Some("Allow client SDKs to set user traits"),
        ),
        ("ser.hiding", BLANK, None),
        ("client-hiding", BLANK, None),
        ("ser.hiding-barred", BLANK, None),
        ("client-hiding-barred", BLANK, Some("server-side key")),
        // The echo cannot show it; only the canary finds out.
        ("ser.forgetful", WRITTEN, Some("stores no traits")),
        ("ser.forgetful-hiding", BLANK, Some("stores no traits")),
    ];
    // The key serves as the identifier too: two keys of one environment must not meet.
    for (key, disposition, refused) in table {
        let client = client(&stand_in, key);
        assert_eq!(
            client.write(key, &[("t", True)]).await,
            disposition,
            "{key}"
        );
        assert_eq!(
            client.write(key, &[("gone", Absent)]).await,
            WRITTEN,
            "{key}"
        );
        let verdict = client.judge_blank_echo(key, "t", true).await;
        match refused {
            None => {
                assert_eq!(verdict, BlankVerdict::Stored, "{key}");
                assert_eq!(stand_in.identities_of(key)[key]["t"], true, "{key}");
            }
            Some(words) => {
                let BlankVerdict::NotStored { reason } = verdict else {
                    panic!("{key}: {verdict:?}")
                };
                assert!(reason.contains(words), "{key}: {reason}");
                assert!(!stand_in.identities_of(key)[key].contains_key("t"), "{key}");
            }
        }
    }
}

#[tokio::test]
async fn a_verdict_needs_an_answer_of_flagsmiths() {
    let (stand_in, client) = pair();
    let judge = || client.judge_blank_echo("ann", "t", false);
    for status in [404, 405, 410] {
        stand_in.script([Fault::status(status)]);
        assert_eq!(judge().await, BlankVerdict::Unavailable, "{status}");
    }
    let sentence = r#"{"non_field_errors":["Setting traits not allowed with client key."]}"#;
    let not_stored = [
        (Fault::status(400), "server-side key"),
        (Fault::answer(400, sentence), "server-side key"),
        (Fault::unknown_key(), "does not know the environment key"),
        (Fault::log_in_page(), "Log in"),
        (Fault::answer(200, "[]"), "does not reach it"),
        (
            Fault::answer(
                200,
                r#"[{"identity":{"identifier":"ann"},"trait_key":"t","trait_value":true}]"#,
            ),
            "a row other than the one sent",
        ),
    ];
    for (fault, words) in not_stored {
        stand_in.script([fault]);
        let verdict = judge().await;
        let BlankVerdict::NotStored { reason } = verdict else {
            panic!("{words}: {verdict:?}")
        };
        assert!(reason.contains(words), "{reason}");
    }
    let laters = [
        (Fault::too_many("9"), Some(Duration::from_secs(9)), false),
        (Fault::status(503), None, true),
        (Fault::Truncate, None, false),
        (
            Fault::answer(400, r#"[{"trait_key":["odd"]}]"#),
            None,
            false,
        ),
    ];
    for (fault, wait, late) in laters {
        stand_in.script([fault.clone()]);
        let verdict = judge().await;
        let BlankVerdict::Later {
            retry_after,
            may_land_late,
            ..
        } = verdict
        else {
            panic!("{fault:?}: {verdict:?}")
        };
        assert_eq!((retry_after, may_land_late), (wait, late), "{fault:?}");
    }
    assert_eq!(judge().await, BlankVerdict::Stored);
}

#[tokio::test]
async fn the_canary_finds_out_whether_traits_stay() {
    let stand_in = stand_in_of_all_kinds();
    // What an earlier canary left must not pass for this one's value.
    for key in ["ser.main", "ser.barred", "ser.hiding-barred"] {
        client(&stand_in, key).probe_storage("earlier").await;
    }
    let table = [
        ("ser.main", Ok(Storage::Stays)),
        ("client-main", Ok(Storage::Stays)),
        ("client-barred", Err("Allow client SDKs to set user traits")),
        ("ser.hiding", Ok(Storage::StaysBlank)),
        ("client-hiding-barred", Err("server-side key")),
        ("ser.forgetful", Err("stores no traits")),
        ("ser.forgetful-hiding", Err("stores no traits")),
        (
            "ser.stopped",
            Err("Organisation is disabled from serving flags."),
        ),
        ("wrong", Err("does not know the environment key")),
    ];
    for (key, expected) in table {
        let refuses = ["ser.stopped", "wrong"].contains(&key);
        match (client(&stand_in, key).probe_storage("now").await, expected) {
            (Storage::NotStored { reason }, Err(words)) => {
                assert!(!refuses, "{key}");
                assert!(reason.contains(words), "{key}: {reason}");
            }
            (Storage::Fails { reason }, Err(words)) => {
                assert!(refuses, "{key}");
                assert!(reason.contains(words), "{key}: {reason}");
            }
            (found, expected) => assert_eq!(Ok(found), expected, "{key}"),
        }
    }
    let identities = stand_in.identities_of("ser.main");
    assert_eq!(json!(identities), json!({ CANARY: { CANARY: "now" } }));
}

#[tokio::test]
async fn the_canary_passes_over_a_lagging_read() {
    let (stand_in, client) = pair();
    let stale = json!({"identifier": CANARY, "traits": [
        {"trait_key": CANARY, "trait_value": "earlier"}]});
    stand_in.script([Fault::Pass, Fault::answer(200, stale.to_string())]);
    assert_eq!(client.probe_storage("now").await, Storage::Stays);
}

#[tokio::test]
async fn the_canary_tells_trouble_from_failure() {
    let (stand_in, client) = pair();
    stand_in.script([Fault::log_in_page()]);
    let found = client.probe_storage("1").await;
    assert!(matches!(found, Storage::Fails { .. }), "{found:?}");
    stand_in.script([Fault::status(500)]);
    let found = client.probe_storage("2").await;
    assert!(matches!(found, Storage::Unreachable { .. }), "{found:?}");
    stand_in.script([Fault::Pass, Fault::too_many("4")]);
    let found = client.probe_storage("3").await;
    let Storage::Unreachable { retry_after, .. } = found else {
        panic!("{found:?}")
    };
    assert_eq!(retry_after, Some(Duration::from_secs(4)));
    stand_in.stop().await;
    let found = client.probe_storage("4").await;
    assert!(matches!(found, Storage::Unreachable { .. }), "{found:?}");
}

#[tokio::test]
async fn where_bulk_is_not_to_be_had_the_setting_decides() {
    let stand_in = stand_in_of_all_kinds();
    stand_in.fault_for(|call| (call.endpoint == Endpoint::Bulk).then(|| Fault::status(404)));
    let hiding = destination(&stand_in.url(), "ser.hiding");
    let halts = Flagsmith::new(&hiding).unwrap().probe_storage("1").await;
    let Storage::NotStored { reason } = halts else {
        panic!("{halts:?}")
    };
    assert!(
        reason.contains("COHORT_BRIDGE_BLANK_ECHO=stored"),
        "{reason}"
    );
    let trusting = Destination {
        blank_echo: BlankEcho::Stored,
        ..hiding
    };
    let client = Flagsmith::new(&trusting).unwrap();
    assert_eq!(client.probe_storage("2").await, Storage::StaysBlank);
}
