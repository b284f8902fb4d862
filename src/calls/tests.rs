use proptest::prelude::*;

use super::*;

/// 2027-01-15T08:00:00Z.
const START: Millis = 1_800_000_000_000;
const DAY: Millis = 24 * 60 * 60 * 1_000;

/// The ledger, as simple as can be.
#[derive(Clone, Debug, Default)]
struct Book(Vec<(String, u64, Millis)>);

impl Book {
    fn carry_out(&mut self, order: CallOrder, now: Millis) -> CallsCounted {
        let name = order.month.to_string();
        if !self.0.iter().any(|(month, ..)| *month == name) {
            self.0.push((name.clone(), 0, now));
        }
        let row = self.0.iter_mut().find(|(month, ..)| *month == name);
        let (_, calls, since) = row.expect("it is there");
        *calls = calls.saturating_add_signed(order.add);
        let room = order
            .budget
            .map_or(0, |budget| budget.saturating_sub(*calls));
        let leased = order.lease.min(room);
        *calls += leased;
        CallsCounted {
            calls: *calls,
            leased,
            since: *since,
        }
    }
}

/// Pays as often as is allowed, at most `most` times.
fn spend(calls: &mut Calls, book: &mut Book, most: u64, now: Millis) -> u64 {
    let mut made = 0;
    while made < most {
        if let Some(order) = calls.order(now) {
            let counted = book.carry_out(order, now);
            calls.counted(order, counted, now);
        }
        match calls.pay(now) {
            Payment::Paid => made += 1,
            Payment::NotYet => assert!(calls.has_order(now), "nobody would ever grant more"),
            Payment::UsedUp => break,
        }
    }
    made
}

#[test]
fn a_budget_is_used_to_the_last_call_and_comes_back_next_month() {
    for budget in [1, 7, 199, 200, 1_000, 123_456] {
        let (mut calls, mut book) = (Calls::new(Some(budget), START), Book::default());
        assert_eq!(spend(&mut calls, &mut book, u64::MAX, START), budget);
        assert_eq!(calls.used_up(START), Some(Month::of(START)));
        assert_eq!(calls.view(START).made, budget);
        let next = Month::of(START).ends();
        assert_eq!(calls.pay(next - 1), Payment::UsedUp);
        assert_eq!(calls.used_up(next), None);
        assert_eq!(spend(&mut calls, &mut book, u64::MAX, next), budget);
    }
}

#[test]
fn the_ledger_is_not_asked_again_for_what_it_has_not() {
    let (mut calls, mut book) = (Calls::new(Some(1_000), START), Book::default());
    spend(&mut calls, &mut book, 999, START);
    while let Some(order) = calls.order(START) {
        let counted = book.carry_out(order, START);
        calls.counted(order, counted, START);
    }
    assert_eq!(calls.used_up(START), None);
    assert_eq!(calls.pay(START), Payment::Paid);
    assert!(calls.used_up(START).is_some());
    assert!(!calls.has_order(START + DAY));
}

#[test]
fn a_raised_budget_allows_the_difference_and_a_lowered_one_nothing() {
    let mut book = Book::default();
    let mut spent = |budget| {
        let mut calls = Calls::new(Some(budget), START);
        spend(&mut calls, &mut book, u64::MAX, START)
    };
    assert_eq!(spent(100), 100);
    assert_eq!(spent(50), 0);
    assert_eq!(spent(130), 30);
}

#[test]
fn what_was_leased_and_not_made_is_given_back_at_the_end() {
    let mut book = Book::default();
    let mut calls = Calls::new(Some(10_000), START);
    assert_eq!(spend(&mut calls, &mut book, 77, START), 77);
    assert_eq!(calls.view(START).made, 77);
    let order = calls.last_order(START);
    assert_eq!(book.carry_out(order, START).calls, 77);
}

#[test]
fn without_a_budget_calls_are_counted_some_at_a_time() {
    let mut book = Book::default();
    let mut calls = Calls::new(None, START);
    assert_eq!(
        spend(&mut calls, &mut book, 3 * MOST_AT_ONCE, START),
        3 * MOST_AT_ONCE
    );
    assert!(book.0[0].1 >= 2 * MOST_AT_ONCE);
    assert_eq!(calls.view(START).made, 3 * MOST_AT_ONCE);
    calls.pay(START);
    let order = calls.order(START + WRITE_EVERY).expect("it is time");
    let counted = book.carry_out(order, START);
    calls.counted(order, counted, START + WRITE_EVERY);
    assert_eq!(book.0[0].1, 3 * MOST_AT_ONCE + 1);
    assert_eq!(calls.order(START + WRITE_EVERY), None);
}

#[test]
fn an_answer_about_last_month_grants_nothing_this_month() {
    let (mut calls, mut book) = (Calls::new(Some(1_000), START), Book::default());
    let order = calls.order(START).expect("a lease");
    let counted = book.carry_out(order, START);
    let next = Month::of(START).ends();
    calls.counted(order, counted, next);
    assert_eq!(calls.pay(next), Payment::NotYet);
    assert!(calls.has_order(next));
}

#[test]
fn a_forecast_is_the_pace_so_far_and_what_is_pending() {
    let month = Month::of(START);
    let view = |made, since| CallsView {
        month,
        made,
        budget: None,
        since,
    };
    let middle = month.begins() + 10 * DAY;
    // 31 days.
    assert_eq!(view(1_000, month.begins()).forecast(0, middle), 3_100);
    assert_eq!(view(1_000, month.begins()).forecast(50, middle), 3_150);
    // Counted for five days only.
    assert_eq!(
        view(1_000, middle - 5 * DAY).forecast(0, middle),
        1_000 + 21 * 200
    );
    // An hour says no more than a day.
    assert_eq!(
        view(1_000, middle).forecast(0, middle + DAY / 24),
        1_000 + 20_958
    );
    assert_eq!(view(u64::MAX, middle).forecast(u64::MAX, middle), u64::MAX);
}

#[derive(Clone, Debug)]
enum Event {
    Spend(u64),
    Kill,
    Stop,
    Pass(Millis),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u64..500).prop_map(Event::Spend),
        2 => Just(Event::Kill),
        1 => Just(Event::Stop),
        1 => (-40..40_i64).prop_map(|days| Event::Pass(days * DAY)),
    ]
}

proptest! {
    #[test]
    fn no_kill_and_no_step_of_the_clock_passes_the_budget(
        budget in 1_u64..3_000,
        events in prop::collection::vec(event(), 1..60),
    ) {
        let mut book = Book::default();
        let mut now = START;
        let mut calls = Calls::new(Some(budget), now);
        let mut made = std::collections::BTreeMap::<String, u64>::new();
        let mut kills = 0;
        for event in events {
            match event {
                Event::Spend(most) => {
                    *made.entry(Month::of(now).to_string()).or_default() += spend(&mut calls, &mut book, most, now);
                }
                Event::Kill => {
                    kills += 1;
                    calls = Calls::new(Some(budget), now);
                }
                Event::Stop => {
                    let order = calls.last_order(now);
                    book.carry_out(order, now);
                    calls = Calls::new(Some(budget), now);
                }
                // Leaving a month wastes what is leased, as a kill does.
                Event::Pass(by) => {
                    kills += 1;
                    now += by;
                }
            }
            for (month, made) in &made {
                prop_assert!(*made <= budget, "{made} in {month}");
            }
        }
        let month = Month::of(now).to_string();
        let rest = spend(&mut calls, &mut book, u64::MAX, now);
        let all = made.get(&month).copied().unwrap_or(0) + rest;
        prop_assert!(all <= budget);
        prop_assert!(all + kills * at_once(budget) >= budget, "{all} of {budget} after {kills}");
    }
}
