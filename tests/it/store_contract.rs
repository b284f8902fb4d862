//! What every [`Store`](cohort_bridge::store::Store) promises, told by the trait alone: the same tests
//! for each kind of store.
//!
//! The list in `contracts!` names each test and the methods that it is about. A test that does not call
//! them fails, and so does [`every_method_has_a_contract`] where a method has no test: what the trait
//! promises newly is promised here.

mod calls;
mod delivery;
mod inbox;
mod keys;
mod lifetime;
mod orders;
mod pauses;
mod people;
mod proof;
mod resyncs;
mod routes;
mod sessions;
mod views;

use std::collections::BTreeSet;

use crate::support::PATIENCE;
use crate::support::stores::{Kind, Stores};

/// The tests by area, each with the methods that it is about, given to another macro.
macro_rules! contracts {
    ($make:ident!($($arguments:tt)*)) => { $make! { ($($arguments)*)
        lifetime {
            a_ledger_has_a_name_and_a_key_of_its_own [ledger_id log_hash_key];
            one_process_at_a_time_folds [lead is_shared];
            a_store_is_ready_until_it_is_closed [ready close];
            what_was_begun_is_finished_before_the_end [close append];
        }
        inbox {
            pages_are_taken_in_the_order_in_which_they_came [append assemble waiting_pages finish];
            no_page_is_passed_over_while_many_come_at_once [append assemble];
            a_page_outlives_a_kill_whatever_is_on_it [append page_people];
            what_a_page_lacks_is_not_made_up [append assemble];
            the_times_of_pages_are_exact [append];
            members_set_aside_are_counted_by_reason [append cohorts];
            a_refused_page_is_noted_before_the_next [note_refused];
            a_refused_page_that_comes_once_more_counts [note_refused append];
            a_note_of_a_refused_page_is_written_down_soon [note_refused];
            a_session_that_stays_silent_ends [assemble];
            properties_are_remembered_by_source [has_sent_property note_property];
        }
        sessions {
            a_full_sync_is_made_true_in_pieces_over_kills [assemble count_removals apply finish];
            a_piece_of_a_session_that_is_over_changes_nothing [apply];
            a_full_sync_of_nobody_empties_a_cohort_in_bounded_pieces [count_removals apply];
            differences_name_people_in_and_out [apply];
            what_was_judged_is_kept [judge];
        }
        people {
            people_go_by_the_identifier_that_the_ledger_knows [page_people place_people finish];
            several_pages_are_answered_in_the_order_asked [page_people];
            another_identifier_takes_its_person_along [rename_people];
        }
        orders {
            held_removals_wait_for_a_decision [decide_held assemble];
            held_removals_may_be_wrong [decide_held];
            a_retired_cohort_is_forgotten_but_for_its_key [retire assemble];
            a_person_is_forgotten_in_the_ledger [forget];
            a_person_is_forgotten_in_flagsmith_too [forget];
            a_person_is_forgotten_while_called_for [forget exchange];
            nobody_has_an_identifier_with_a_nul [member forget];
        }
        keys {
            keys_of_the_settings_are_adopted [adopt_keys];
            a_key_that_somebody_keeps_is_not_given [adopt_keys];
        }
        delivery {
            who_may_wait_is_claimed_in_identifier_order [exchange];
            what_must_not_wait_comes_first_and_leaves_a_place_in_four [exchange];
            removals_go_first_and_joins_still_go [exchange];
            cohorts_take_turns [exchange];
            one_call_at_a_time_carries_all_of_an_identity [exchange];
            what_was_under_way_at_a_kill_is_asserted_again [exchange];
            what_an_earlier_process_sent_may_land_late [exchange];
            what_may_land_late_is_watched [exchange];
            a_call_that_was_not_made_changes_nothing [exchange];
            a_call_that_failed_is_made_again_when_it_is_due [exchange];
            the_time_of_a_retry_may_be_any [exchange];
            a_call_that_will_never_work_is_given_up [exchange];
            destinations_go_by_their_own_rules [exchange];
            calls_that_end_together_end_each_in_its_way [exchange];
        }
        proof {
            what_was_not_proved_can_be_doubted [unproven_through proved doubt];
            what_is_doubted_is_asserted_as_it_is_wanted_now [doubt];
            each_destination_is_proved_by_itself [unproven_through proved doubt];
            many_are_proved_and_doubted [unproven_through proved doubt];
            canaries_are_remembered_by_destination [canary_memory remember_canary];
        }
        calls {
            calls_are_leased_as_far_as_the_budget_goes [count_calls];
            a_budget_is_not_leased_twice [count_calls];
            calls_are_counted_without_a_budget [count_calls];
            each_month_and_destination_has_a_count [count_calls unwritten];
        }
        routes {
            routes_of_the_settings_are_followed [follow_routes];
            a_destination_is_brought_up_in_identifier_order [follow_routes];
            a_cohort_that_is_renamed_may_go_elsewhere [follow_routes assemble];
        }
        resyncs {
            a_cohort_is_written_again_over_kills [order_resync resync_some resyncs];
            everything_is_written_again_in_one_call_a_person [order_resync resync_some];
            a_step_goes_no_further_than_there_is_room [resync_some];
            what_is_ordered_again_begins_anew [order_resync];
            what_is_cancelled_is_not_reached [cancel_resync resyncs];
            an_order_may_be_for_one_destination [order_resync cancel_resync];
        }
        pauses {
            nothing_is_claimed_of_a_paused_cohort [pause_cohort follow_pauses];
            a_person_is_erased_in_spite_of_a_pause [pause_cohort forget];
            an_order_of_a_paused_cohort_waits [pause_cohort resync_some];
            a_destination_is_paused_until_it_is_resumed [pause_destination paused_destinations];
        }
        views {
            cohorts_come_in_order_of_source_and_id [cohorts member];
            a_cohort_shows_where_it_stands [cohorts member];
            other_rules_of_identity_ask_for_a_full_sync [cohorts];
            dead_letters_come_oldest_first [dead_letters];
            dead_letters_are_retried_and_dropped_by_filter [retry_dead_letters drop_dead_letters];
            many_dead_letters_are_retried_and_dropped [retry_dead_letters drop_dead_letters];
            what_is_unwritten_is_counted [unwritten];
        }
    } };
}

/// A test of each of them on one kind of store.
macro_rules! tests {
    (($kind:ident: $opened:expr) $($area:ident { $($name:ident [$($method:ident)+];)+ })+) => {
        mod $kind {
            $(mod $area {
                $(#[tokio::test(flavor = "multi_thread")]
                async fn $name() {
                    let about = &[$(stringify!($method)),+];
                    super::super::keep($opened, about, super::super::$area::$name).await;
                })+
            })+
        }
    };
}

/// The methods that each of them is about.
macro_rules! list {
    (() $($area:ident { $($name:ident [$($method:ident)+];)+ })+) => {
        &[$($((
            concat!(stringify!($area), "::", stringify!($name)),
            &[$(stringify!($method)),+],
        )),+),+]
    };
}

contracts!(tests!(sqlite: crate::support::stores::Kind::Sqlite));
contracts!(tests!(postgres: crate::support::stores::Kind::Postgres));

const CONTRACTS: &[(&str, &[&str])] = contracts!(list!());

/// Runs a test on a ledger in which nothing is; it has to end, and to call what it is about.
async fn keep(kind: Kind, about: &[&str], contract: impl AsyncFnOnce(&mut Stores)) {
    let Some(mut stores) = Stores::new(kind).await else {
        return;
    };
    // Many of them go on until nothing is left to do.
    let kept = tokio::time::timeout(PATIENCE, contract(&mut stores)).await;
    assert!(kept.is_ok(), "it comes to no end");
    let noted = stores.noted();
    for method in about {
        assert!(noted.contains(method), "it never calls {method}");
    }
}

/// Identifiers in which databases differ, in the order of their bytes.
fn odd() -> Vec<String> {
    let mut odd: Vec<String> = [
        "\u{1}a",
        "\"x\" 'x' `x`",
        "$1 ?1 :a",
        "%",
        "'); --",
        "0007",
        "7",
        "A",
        "Z",
        "\\",
        "\\0",
        "\\x41",
        "_",
        "a",
        "a b",
        "e\u{301}",
        "ss",
        "{\"a\": [1]}",
        "ß",
        "é",
        "ı",
        "\u{200b}a",
        "\u{fffd}",
        "\u{ff21}",
        "😀",
        "👨\u{200d}👩\u{200d}👧",
    ]
    .map(str::to_owned)
    .into();
    // The longest that there can be.
    odd.extend(["x".repeat(512), "é".repeat(512), "x".repeat(1_023)]);
    odd.sort_unstable();
    assert!(odd.is_sorted_by(|one, other| one.as_bytes() < other.as_bytes()));
    odd
}

/// Texts of other columns in which databases differ, in the order of their bytes.
fn odd_texts() -> Vec<&'static str> {
    let texts = vec!["'); --", "Z", "\\ \"%_", "a", "é", "\u{ff21}", "😀"];
    assert!(texts.is_sorted());
    texts
}

fn names(people: &[String]) -> Vec<&str> {
    people.iter().map(String::as_str).collect()
}

/// The methods of the trait, as its source has them.
fn methods() -> BTreeSet<&'static str> {
    let source = include_str!("../../src/store/mod.rs");
    let (_, body) = source.split_once("pub trait Store").expect("the trait");
    let (body, _) = body.split_once("\n}").expect("its end");
    let lines = body.lines().map(str::trim);
    lines
        .filter_map(|line| {
            let line = line.strip_prefix("async ").unwrap_or(line);
            let (name, _) = line.strip_prefix("fn ")?.split_once('(')?;
            Some(name)
        })
        .collect()
}

#[test]
fn every_method_has_a_contract() {
    let methods = methods();
    assert!(methods.contains("append") && methods.contains("close"));
    let about: BTreeSet<_> = CONTRACTS
        .iter()
        .flat_map(|(_, about)| about.iter().copied())
        .collect();
    let missing: Vec<_> = methods.difference(&about).collect();
    assert!(missing.is_empty(), "no contract is about {missing:?}");
    let unknown: Vec<_> = about.difference(&methods).collect();
    assert!(unknown.is_empty(), "the trait has no {unknown:?}");
}
