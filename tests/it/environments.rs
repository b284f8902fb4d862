//! Whether what a key leads to is the environment that was told what the ledger knows.

use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::standin::{Endpoint, Fault, StandIn};
use secrecy::SecretString;

use crate::support::bridge::Bridge;
use crate::support::pages::{key, page_without_info, people};
use crate::support::{eventually, ordinary_stand_in, shared_ledger};

const STEP: Duration = Duration::from_secs(300);

fn stand_in() -> Arc<StandIn> {
    ordinary_stand_in(&["main", "other"])
}

/// Waits until so many canaries more were read back, from now on.
async fn canary_after(bridge: &Bridge, act: impl FnOnce(), step: Duration) {
    let before = bridge.stand_in.calls_to(Endpoint::Read);
    act();
    eventually("a canary", async || {
        if bridge.stand_in.calls_to(Endpoint::Read) >= before + 2 {
            return Some(());
        }
        bridge.clock.advance(step);
        None
    })
    .await;
}

async fn warned(bridge: &Bridge, words: &str) {
    eventually(words, async || {
        bridge.warning().contains(words).then_some(())
    })
    .await;
}

/// A running bridge that told everybody.
async fn told(stand_in: &Arc<StandIn>, everybody: &[String]) -> Bridge {
    let mut bridge = Bridge::before(Arc::clone(stand_in), "ser.main");
    bridge.start();
    // Looked at before, and read back after; the clock stands still.
    eventually("the first canary", async || {
        (stand_in.calls_to(Endpoint::Read) >= 2).then_some(())
    })
    .await;
    add(&bridge, everybody).await;
    bridge
}

async fn add(bridge: &Bridge, people: &[String]) {
    bridge
        .send(&page_without_info("add_members", "c", people))
        .await;
    bridge.settled().await;
}

async fn has_all(bridge: &Bridge, people: &[String]) {
    eventually("everything is there", async || {
        let all = people
            .iter()
            .all(|person| bridge.stored(person, "c") == Some(true));
        (all && bridge.pending().await == 0).then_some(())
    })
    .await;
}

fn lead_to(bridge: &mut Bridge, key: &str) {
    bridge.destination.environment_key = SecretString::from(key);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_same_environment_writes_nothing_again() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let mut bridge = told(&stand_in, &everybody).await;
    for is_killed in [true, false] {
        if is_killed {
            bridge.kill().await;
        } else {
            bridge.stop().await;
        }
        bridge.start();
        canary_after(&bridge, || {}, STEP).await;
        canary_after(&bridge, || {}, STEP).await;
        assert_eq!(bridge.warning(), "");
        assert!(bridge.is_settled().await);
    }
    assert_eq!(stand_in.calls_by_trait()[&key("c")], 50);
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_environment_has_everything_written_there() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let mut bridge = told(&stand_in, &everybody).await;
    bridge.stop().await;

    lead_to(&mut bridge, "ser.other");
    bridge.start();
    warned(&bridge, "no longer holds the canary").await;
    has_all(&bridge, &everybody).await;
    let more = people("q", 7);
    add(&bridge, &more).await;
    canary_after(&bridge, || {}, STEP).await;
    bridge.stop().await;

    // And back: what was said meanwhile was said elsewhere.
    lead_to(&mut bridge, "ser.main");
    bridge.start();
    warned(&bridge, "an earlier canary of this ledger").await;
    has_all(&bridge, &more).await;
    has_all(&bridge, &everybody).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_was_emptied_is_told_everything() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let mut bridge = told(&stand_in, &everybody).await;
    for _ in 0..2 {
        canary_after(&bridge, || stand_in.wipe("ser.main"), STEP).await;
        warned(&bridge, "it was emptied").await;
        has_all(&bridge, &everybody).await;
    }
    // The next canary finds nothing to do.
    stand_in.forget_calls();
    canary_after(&bridge, || {}, STEP).await;
    canary_after(&bridge, || {}, STEP).await;
    assert!(stand_in.calls_to(Endpoint::Write) < 5);
    // The warning is shown for a day.
    bridge.clock.advance(Duration::from_secs(24 * 3_600));
    eventually("the warning ends", async || {
        bridge.clock.advance(STEP);
        bridge.warning().is_empty().then_some(())
    })
    .await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_found_empty_before_a_kill_is_told_everything_after_it() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let mut bridge = told(&stand_in, &everybody).await;
    bridge.stop().await;
    stand_in.wipe("ser.main");
    // The canary is written, and nobody learns of it.
    stand_in.script([
        Fault::Pass,
        Fault::CloseAfterStoring,
        Fault::CloseAfterStoring,
    ]);
    bridge.start();
    eventually("the canary is written", async || {
        (stand_in.calls_to(Endpoint::Write) >= 53).then_some(())
    })
    .await;
    bridge.kill().await;
    bridge.start();
    warned(&bridge, "it was emptied").await;
    has_all(&bridge, &everybody).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_from_a_backup_tells_everything_again() {
    if shared_ledger::is_wanted() {
        // The backup is a copy of a file.
        return;
    }
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let mut bridge = told(&stand_in, &everybody).await;
    bridge.stop().await;
    let backup = bridge.backup();
    bridge.start();
    bridge
        .send(&page_without_info("remove_members", "c", &everybody[..9]))
        .await;
    bridge.settled().await;
    for _ in 0..3 {
        canary_after(&bridge, || {}, STEP).await;
    }
    bridge.stop().await;
    assert_eq!(bridge.stored("p0000", "c"), Some(false));

    bridge.restore(&backup);
    bridge.start();
    warned(&bridge, "restored from a backup").await;
    has_all(&bridge, &everybody).await;
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_bridges_of_one_environment_say_so_and_do_not_fight() {
    let stand_in = stand_in();
    let everybody = people("p", 50);
    let mut one = told(&stand_in, &everybody).await;
    let mut other = Bridge::before(Arc::clone(&stand_in), "ser.main");
    other.start();
    warned(&other, "canary of another ledger").await;
    let theirs = people("q", 50);
    other
        .send(&page_without_info("add_members", "d", &theirs))
        .await;
    other.settled().await;
    for _ in 0..6 {
        canary_after(&one, || {}, STEP).await;
        canary_after(&other, || {}, STEP).await;
    }
    for (bridge, with) in [(&one, other.ledger_id()), (&other, one.ledger_id())] {
        let warning = bridge.warning();
        assert!(
            warning.contains("two bridges share this environment"),
            "{warning}"
        );
        assert!(warning.contains(&with), "{warning}");
        assert!(warning.contains(&bridge.ledger_id()), "{warning}");
    }
    let writes = stand_in.calls_by_trait();
    assert!((50..=100).contains(&writes[&key("c")]), "{writes:?}");
    assert!((50..=100).contains(&writes[&key("d")]), "{writes:?}");
    // Nor after a restart.
    one.stop().await;
    one.start();
    warned(&one, "two bridges share this environment").await;
    canary_after(&one, || {}, STEP).await;
    assert!(stand_in.calls_by_trait()[&key("c")] <= 100);
    one.stop().await;
    other.stop().await;
}
