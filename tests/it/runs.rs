//! Which runs of differences count: one test for each case that `run.rs` tells of.

use cohort_bridge::cohort::{Action, SourceName};
use cohort_bridge::store::{RunCounts, Store};

use crate::support::bench::{Bench, HALF_AN_HOUR, page, set};

use Action::{AddMembers as Add, Members, RemoveMembers as Remove};

const NOBODY: &[&str] = &[];

/// A cohort of ann, bob and old, half an hour ago.
async fn base() -> Bench {
    let bench = Bench::new();
    bench.full("c", "base", &["ann", "bob", "old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    bench
}

/// As [`base`], and an accepted run that added new and x and removed old.
async fn accepted() -> Bench {
    let bench = base().await;
    half(&bench, Add, "a1", &["new", "x"]).await;
    half(&bench, Remove, "r1", &["old"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 0));
    bench
}

async fn half(bench: &Bench, action: Action, session: &str, people: &[&str]) {
    bench.take(page(action, "c", session, (1, 1), people)).await;
}

fn refuse(bench: &Bench, action: Action, session: &str, people: &[&str]) {
    let page = page(action, "c", session, (1, 1), people);
    let source = SourceName::from("default");
    bench.store().note_refused(&source, &page, bench.now());
}

/// Runs accepted, dropped and undone.
async fn counts(bench: &Bench) -> (u64, u64, u64) {
    let RunCounts {
        accepted,
        dropped,
        undone,
    } = bench.cohort("c").await.runs;
    (accepted, dropped, undone)
}

async fn assert_members(bench: &mut Bench, people: &[&str]) {
    bench.deliver().await;
    assert_eq!(bench.holding("mixpanel_cohort_c", true), set(people));
    assert_eq!(bench.cohort("c").await.members, people.len() as u64);
}

#[tokio::test]
async fn a_run_of_both_halves_is_accepted() {
    let mut bench = accepted().await;
    assert_members(&mut bench, &["ann", "bob", "new", "x"]).await;
}

#[tokio::test]
async fn a_half_without_its_partner_is_dropped_where_empty_halves_are_sent() {
    let mut bench = base().await;
    half(&bench, Add, "a0", NOBODY).await;
    half(&bench, Remove, "r0", NOBODY).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a1", &["new"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (1, 1, 0));
}

#[tokio::test]
async fn a_half_without_its_partner_is_accepted_where_none_was_ever_empty() {
    let mut bench = base().await;
    half(&bench, Add, "a1", &["new"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 0));
}

#[tokio::test]
async fn a_half_without_its_partner_whose_people_are_named_again_is_undone() {
    let mut bench = base().await;
    half(&bench, Add, "a1", &["new", "x"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["new"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "old"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 1));
}

#[tokio::test]
async fn a_half_whose_partner_was_cut_off_is_dropped() {
    let mut bench = base().await;
    half(&bench, Add, "a1", &["new"]).await;
    bench.take(page(Remove, "c", "r1", (1, 2), &["old"])).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (0, 1, 0));
}

/// Accepted runs that nobody of [`accepted`] is in.
async fn further_runs(bench: &Bench, count: usize) {
    for run in 0..count {
        bench.clock.advance(HALF_AN_HOUR);
        half(bench, Add, &format!("a-{run}"), &["sue"]).await;
        half(bench, Remove, &format!("r-{run}"), NOBODY).await;
        bench.clock.advance(HALF_AN_HOUR);
        half(bench, Add, &format!("b-{run}"), NOBODY).await;
        half(bench, Remove, &format!("s-{run}"), &["sue"]).await;
    }
}

#[tokio::test]
async fn a_run_can_be_undone_by_itself_after_the_next() {
    let mut bench = accepted().await;
    further_runs(&bench, 1).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a3", &["new"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "old"]).await;
    assert_eq!(counts(&bench).await, (3, 0, 1));
}

#[tokio::test]
async fn a_run_is_part_of_the_base_once_three_more_are_accepted() {
    let mut bench = accepted().await;
    further_runs(&bench, 2).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a3", &["new"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "x"]).await;
    assert_eq!(counts(&bench).await, (5, 0, 0));
}

#[tokio::test]
async fn a_half_that_was_left_out_is_missed_only_once_the_run_is_over() {
    let mut bench = base().await;
    half(&bench, Add, "a1", &["new"]).await;
    bench.clock.advance(std::time::Duration::from_secs(600));
    bench.fold().await;
    assert_eq!(counts(&bench).await, (0, 0, 0));
    bench.clock.advance(std::time::Duration::from_secs(1));
    bench.fold().await;
    assert_eq!(counts(&bench).await, (1, 0, 0));
    assert_members(&mut bench, &["ann", "bob", "new", "old"]).await;
}

#[tokio::test]
async fn a_failed_half_goes_when_the_next_run_is_over_without_it() {
    let mut bench = base().await;
    half(&bench, Add, "a1", &["new"]).await;
    bench.take(page(Remove, "c", "r1", (1, 2), &["old"])).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Remove, "r2", &["bob"]).await;
    assert_members(&mut bench, &["ann", "new", "old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.fold().await;
    assert_members(&mut bench, &["ann", "old"]).await;
    assert_eq!(counts(&bench).await, (1, 1, 0));
}

#[tokio::test]
async fn pages_that_came_again_before_their_run_was_undone_count_for_the_new_one() {
    let mut bench = base().await;
    half(&bench, Add, "a", &["new"]).await;
    for number in [1, 2] {
        let people = ["bob", "old"];
        let person = &people[number - 1..number];
        bench
            .take(page(Remove, "c", "r", (number as u32, 2), person))
            .await;
    }
    assert_members(&mut bench, &["ann", "new"]).await;
    // It begins again under its ids: a page as it was, then other people, then the other page.
    bench.clock.advance(HALF_AN_HOUR);
    bench.take(page(Remove, "c", "r", (2, 2), &["old"])).await;
    half(&bench, Add, "a", &["new", "sue"]).await;
    bench.take(page(Remove, "c", "r", (1, 2), &["bob"])).await;
    assert_members(&mut bench, &["ann", "new", "sue"]).await;
    assert_eq!(counts(&bench).await, (2, 0, 1));
}

#[tokio::test]
async fn a_run_that_the_next_repeats_in_part_is_undone() {
    let mut bench = accepted().await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["new"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "old"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 1));
}

#[tokio::test]
async fn a_session_that_never_became_whole_is_a_witness() {
    let mut bench = accepted().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.take(page(Add, "c", "a2", (1, 2), &["new"])).await;
    assert_members(&mut bench, &["ann", "bob", "new", "x"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a3", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 1));
}

#[tokio::test]
async fn a_run_that_the_next_builds_on_is_confirmed() {
    let mut bench = accepted().await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Remove, "r2", &["x"]).await;
    half(&bench, Add, "a2", &["new"]).await;
    assert_members(&mut bench, &["ann", "bob", "new"]).await;
    assert_eq!(counts(&bench).await, (2, 0, 0));
}

#[tokio::test]
async fn a_half_that_becomes_whole_within_a_full_sync_is_no_part_of_it() {
    let mut bench = accepted().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.take(page(Remove, "c", "r2", (1, 2), &["ann"])).await;
    bench.take(page(Members, "c", "f3", (1, 2), &["ann"])).await;
    bench.take(page(Remove, "c", "r2", (2, 2), &["bob"])).await;
    bench.take(page(Members, "c", "f3", (2, 2), &["sue"])).await;
    // It began before the full sync, which knows better.
    assert_members(&mut bench, &["ann", "sue"]).await;
}

#[tokio::test]
async fn a_run_whose_page_we_refused_in_the_end_is_undone() {
    let mut bench = accepted().await;
    refuse(&bench, Add, "a1", &["new", "x"]);
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 1));
}

#[tokio::test]
async fn a_page_that_we_refused_before_a_stop_stays_refused() {
    let mut bench = accepted().await;
    refuse(&bench, Add, "a1", &["new", "x"]);
    bench.reopen().await;
    assert_eq!(bench.store().waiting_pages().await.unwrap(), 0);
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 1));
}

#[tokio::test]
async fn a_refused_page_that_comes_once_more_counts() {
    let mut bench = accepted().await;
    refuse(&bench, Add, "a1", &["new", "x"]);
    half(&bench, Add, "a1", &["new", "x"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "sue", "x"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 0));
}

#[tokio::test]
async fn a_page_that_we_refused_before_we_took_it_counts() {
    let mut bench = base().await;
    refuse(&bench, Add, "a1", &["new"]);
    half(&bench, Add, "a1", &["new"]).await;
    half(&bench, Remove, "r1", &["old"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 0));
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "new", "sue"]).await;
    assert_eq!(counts(&bench).await, (1, 0, 0));
}

#[tokio::test]
async fn a_half_whose_partner_we_refused_for_good_is_dropped() {
    let mut bench = base().await;
    half(&bench, Add, "a1", &["new"]).await;
    refuse(&bench, Remove, "r1", &["old"]);
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["sue"]).await;
    assert_members(&mut bench, &["ann", "bob", "old", "sue"]).await;
    assert_eq!(counts(&bench).await, (0, 1, 0));
}

#[tokio::test]
async fn a_run_that_begins_again_under_its_ids_replaces_itself() {
    let mut bench = base().await;
    half(&bench, Add, "s", &["new", "x"]).await;
    half(&bench, Remove, "s", &["old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "s", &["new", "y"]).await;
    half(&bench, Remove, "s", &["ann", "old"]).await;
    assert_members(&mut bench, &["bob", "new", "y"]).await;
    assert_eq!(counts(&bench).await, (2, 0, 1));
}

#[tokio::test]
async fn a_run_that_comes_again_as_it_was_changes_nothing() {
    let mut bench = accepted().await;
    assert_members(&mut bench, &["ann", "bob", "new", "x"]).await;
    half(&bench, Add, "a1", &["new", "x"]).await;
    half(&bench, Remove, "r1", &["old"]).await;
    assert_eq!(bench.deliver().await, []);
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a1", &["new", "x"]).await;
    half(&bench, Remove, "r1", &["old"]).await;
    assert_eq!(bench.deliver().await, []);
    assert_members(&mut bench, &["ann", "bob", "new", "x"]).await;
    let (_, dropped, undone) = counts(&bench).await;
    assert_eq!((dropped, undone), (0, 0));
}

#[tokio::test]
async fn a_difference_that_begins_after_a_full_sync_did_lies_on_top() {
    let mut bench = base().await;
    bench.take(page(Members, "c", "f", (1, 2), &["ann"])).await;
    half(&bench, Add, "a1", &["new"]).await;
    bench.take(page(Members, "c", "f", (2, 2), &["bob"])).await;
    assert_members(&mut bench, &["ann", "bob", "new"]).await;
}

#[tokio::test]
async fn a_difference_that_began_before_a_full_sync_is_over() {
    let mut bench = base().await;
    bench.take(page(Add, "c", "a1", (1, 2), &["new"])).await;
    bench.full("c", "f", &["ann"]).await;
    bench.take(page(Add, "c", "a1", (2, 2), &["x"])).await;
    assert_members(&mut bench, &["ann"]).await;
    assert_eq!(counts(&bench).await, (0, 0, 0));
}

#[tokio::test]
async fn a_page_that_stands_alone_is_believed_at_once_and_is_no_run() {
    let mut bench = base().await;
    let alone = |action, people: &[&str]| {
        let mut page = page(action, "c", "s", (1, 1), people);
        page.page_info = None;
        page
    };
    bench.take(alone(Add, &["new"])).await;
    assert_members(&mut bench, &["ann", "bob", "new", "old"]).await;
    bench.take(alone(Add, &["new", "sue"])).await;
    bench.take(alone(Remove, &["old"])).await;
    assert_members(&mut bench, &["ann", "bob", "new", "sue"]).await;
    assert_eq!(counts(&bench).await, (0, 0, 0));
}

#[tokio::test]
async fn a_difference_that_finds_people_as_it_says_tells_what_lies_beneath_it() {
    let mut bench = base().await;
    // Accepted for want of better knowledge: no half was ever empty.
    half(&bench, Remove, "r1", &["bob"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Remove, "r2", &["old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    // To Mixpanel, bob is in the cohort still: else they could not leave it.
    half(&bench, Remove, "r3", &["bob", "old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Remove, "r4", &["old"]).await;
    assert_members(&mut bench, &["ann", "bob"]).await;
}

#[tokio::test]
async fn what_a_full_sync_beneath_a_difference_says_is_known_better() {
    let mut bench = accepted().await;
    bench.clock.advance(HALF_AN_HOUR);
    bench
        .take(page(Members, "c", "full", (1, 2), &["ann"]))
        .await;
    half(&bench, Add, "a2", &["sue"]).await;
    bench
        .take(page(Members, "c", "full", (2, 2), &["sue"]))
        .await;
    half(&bench, Remove, "r0", NOBODY).await;
    refuse(&bench, Remove, "r0", NOBODY);
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a3", &["tom"]).await;
    assert_members(&mut bench, &["ann", "sue", "tom"]).await;
}

#[tokio::test]
async fn a_half_that_is_heard_again_belongs_to_the_run_of_its_new_partner() {
    let mut bench = accepted().await;
    bench.clock.advance(HALF_AN_HOUR);
    refuse(&bench, Remove, "r2", &["bob"]);
    half(&bench, Add, "a2", &["sue"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    // The run starts again from the top, under its old ids; of its remove half nothing was known.
    half(&bench, Remove, "r3", &["bob"]).await;
    half(&bench, Add, "a2", &["sue"]).await;
    assert_eq!(counts(&bench).await, (2, 0, 0));
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a4", &["tom"]).await;
    half(&bench, Remove, "r4", &["ann"]).await;
    assert_members(&mut bench, &["new", "sue", "tom", "x"]).await;
    assert_eq!(counts(&bench).await, (3, 0, 0));
}

#[tokio::test]
async fn a_page_that_was_refused_of_a_longer_pass_has_no_place_in_a_shorter_one() {
    let mut bench = base().await;
    bench.take(page(Add, "c", "a", (1, 2), &["sue"])).await;
    bench.take(page(Add, "c", "a", (2, 2), &["tom"])).await;
    half(&bench, Remove, "r", &["old"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    bench.take(page(Add, "c", "a", (1, 2), &["sue"])).await;
    let second = page(Add, "c", "a", (2, 2), &["tom"]);
    let source = SourceName::from("default");
    bench.store().note_refused(&source, &second, bench.now());
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Remove, "r", &["bob"]).await;
    half(&bench, Add, "a", &["sue"]).await;
    bench.clock.advance(HALF_AN_HOUR);
    half(&bench, Add, "a2", &["tim"]).await;
    half(&bench, Remove, "r2", &["ann"]).await;
    assert_members(&mut bench, &["old", "sue", "tim"]).await;
}
