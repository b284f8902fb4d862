//! The pace before servers that are simulated in virtual time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;

/// When a call that comes at some time is answered, and how. Times in microseconds.
trait Server {
    fn answer_at(&mut self, now: u64) -> (u64, bool);
}

/// `k` workers and one queue; a call takes `service` at its time.
struct Workers<F> {
    free_at: Vec<u64>,
    service: F,
}

fn workers<F: FnMut(u64) -> u64>(count: usize, service: F) -> Workers<F> {
    Workers {
        free_at: vec![0; count],
        service,
    }
}

impl<F: FnMut(u64) -> u64> Server for Workers<F> {
    fn answer_at(&mut self, now: u64) -> (u64, bool) {
        let worker = self.free_at.iter_mut().min().expect("a worker");
        let begun = now.max(*worker);
        *worker = begun + (self.service)(begun);
        (*worker, true)
    }
}

/// Whatever it is asked, however many ask.
struct Elastic<F>(F);

impl<F: FnMut(u64) -> u64> Server for Elastic<F> {
    fn answer_at(&mut self, now: u64) -> (u64, bool) {
        (now + (self.0)(now), true)
    }
}

/// Answers 429 at once where more than `allowed` calls are under way.
struct Strict {
    under_way: BinaryHeap<Reverse<u64>>,
    allowed: usize,
}

impl Server for Strict {
    fn answer_at(&mut self, now: u64) -> (u64, bool) {
        while self.under_way.peek().is_some_and(|end| end.0 <= now) {
            self.under_way.pop();
        }
        if self.under_way.len() >= self.allowed {
            return (now + 2_000, false);
        }
        self.under_way.push(Reverse(now + 50_000));
        (now + 50_000, true)
    }
}

/// Delivery with more to do than can be done.
struct Run<S> {
    pace: Pace,
    server: S,
    now: u64,
    under_way: BinaryHeap<Reverse<(u64, u64, bool, u32)>>,
}

/// What was seen of a stretch of time.
#[derive(Debug)]
struct Seen {
    answers_per_second: f64,
    median_ms: f64,
    least_limit: usize,
    refused: usize,
}

impl<S: Server> Run<S> {
    fn new(ceiling: usize, server: S) -> Self {
        Run {
            pace: Pace::new(ceiling),
            server,
            now: 0,
            under_way: BinaryHeap::new(),
        }
    }

    fn seconds(&mut self, seconds: u64) -> Seen {
        self.micros(seconds * SECOND)
    }

    fn micros(&mut self, span: u64) -> Seen {
        let until = self.now + span;
        let mut took = Vec::new();
        let mut refused = 0;
        let mut least_limit = self.pace.limit();
        loop {
            while self.under_way.len() < self.pace.limit() {
                let ticket = self.pace.begun(self.under_way.len() + 1);
                let (end, is_answered) = self.server.answer_at(self.now);
                self.under_way
                    .push(Reverse((end, self.now, is_answered, ticket.0)));
            }
            let Some(Reverse((end, begun, is_answered, ticket))) = self.under_way.pop() else {
                panic!("the limit is nought");
            };
            if end > until {
                self.under_way
                    .push(Reverse((end, begun, is_answered, ticket)));
                self.now = until;
                break;
            }
            self.now = end;
            let heard = if is_answered {
                took.push(end - begun);
                Heard::Answer(Duration::from_micros(end - begun))
            } else {
                refused += 1;
                Heard::Busy
            };
            self.pace
                .ended(Ticket(ticket), heard, (end / 1_000) as Millis);
            least_limit = least_limit.min(self.pace.limit());
        }
        took.sort_unstable();
        Seen {
            answers_per_second: took.len() as f64 * SECOND as f64 / span as f64,
            median_ms: took
                .get(took.len() / 2)
                .map_or(0.0, |us| *us as f64 / 1_000.0),
            least_limit,
            refused,
        }
    }
}

#[test]
fn a_small_server_is_neither_flooded_nor_left_idle() {
    for count in 4..=8 {
        let mut run = Run::new(64, workers(count, |_| 80_000));
        run.seconds(10);
        let seen = run.seconds(120);
        let capacity = count as f64 / 0.080;
        assert!(
            seen.answers_per_second >= 0.95 * capacity,
            "{count} workers: {seen:?}"
        );
        assert!(seen.median_ms <= 2.5 * 80.0, "{count} workers: {seen:?}");
    }
}

#[test]
fn so_it_is_where_calls_take_now_longer_now_shorter() {
    for count in [2, 4, 8] {
        let mut random = fastrand::Rng::with_seed(count as u64);
        // Between a third and nearly twice the mean of 60 ms.
        let mut run = Run::new(64, workers(count, move |_| random.u64(20_000..100_000)));
        run.seconds(10);
        let seen = run.seconds(300);
        let capacity = count as f64 / 0.060;
        assert!(
            seen.answers_per_second >= 0.93 * capacity,
            "{count} workers: {seen:?}"
        );
        assert!(seen.median_ms <= 3.0 * 60.0, "{count} workers: {seen:?}");
    }
}

#[test]
fn an_elastic_server_gets_all_that_is_allowed_and_keeps_it() {
    let mut run = Run::new(64, Elastic(|_| 50_000));
    run.micros(1_500_000);
    assert_eq!(run.pace.limit(), 64);
    let seen = run.seconds(300);
    assert_eq!(seen.least_limit, 64);
    assert!(seen.answers_per_second >= 0.99 * 64.0 / 0.050, "{seen:?}");
}

#[test]
fn an_elastic_server_may_take_now_longer_now_shorter() {
    let mut random = fastrand::Rng::with_seed(7);
    // Most answers within 20 to 60 ms, one in twenty after 300.
    let server = Elastic(move |_| match random.u8(0..20) {
        0 => 300_000,
        _ => random.u64(20_000..60_000),
    });
    let mut run = Run::new(64, server);
    run.seconds(3);
    let seen = run.seconds(300);
    assert!(seen.least_limit >= 48, "{seen:?}");
}

#[test]
fn what_is_lost_in_the_noise_throttles_nobody() {
    let mut random = fastrand::Rng::with_seed(3);
    // A local server on a busy machine: a fraction of a millisecond, or some.
    let mut run = Run::new(64, Elastic(move |_| random.u64(200..10_000)));
    run.micros(200_000);
    let seen = run.seconds(20);
    assert_eq!(seen.least_limit, 64, "{seen:?}");
}

#[test]
fn a_server_that_stalls_once_a_minute_is_soon_called_as_before() {
    let stalls = |now: u64| now % (60 * SECOND) >= 54 * SECOND;
    let service = move |now: u64| match stalls(now) {
        true => 60 * SECOND - now % (60 * SECOND) + 80_000,
        false => 80_000,
    };
    let mut run = Run::new(64, workers(8, service));
    run.seconds(50);
    for _ in 0..10 {
        let before = run.seconds(4);
        let limit = run.pace.limit();
        // The stall, and two seconds more.
        run.seconds(6 + 2);
        let after = run.seconds(2);
        assert!(
            after.answers_per_second >= 0.95 * before.answers_per_second,
            "{before:?}, then {after:?}"
        );
        assert!(
            run.pace.limit() * 4 >= limit * 3,
            "{limit}, then {}",
            run.pace.limit()
        );
        run.seconds(46);
    }
}

#[test]
fn a_server_that_changes_for_good_is_met_anew() {
    for (early, late) in [
        (80_000, 400_000),
        (80_000, 20_000),
        (20_000, 80_000),
        (400_000, 80_000),
    ] {
        for count in [4, 8] {
            let service = move |now: u64| if now < 60 * SECOND { early } else { late };
            let mut run = Run::new(64, workers(count, service));
            run.seconds(60);
            run.seconds(60);
            let seen = run.seconds(60);
            let capacity = count as f64 * SECOND as f64 / late as f64;
            let usual = late as f64 / 1_000.0;
            assert!(
                seen.answers_per_second >= 0.93 * capacity,
                "{count} workers, {early} then {late}: {seen:?}"
            );
            assert!(
                seen.median_ms <= 2.5 * usual + 10.0,
                "{count} workers, {early} then {late}: {seen:?}"
            );
        }
    }
}

#[test]
fn an_elastic_server_that_becomes_slower_for_good_keeps_all() {
    let mut run = Run::new(
        64,
        Elastic(|now| if now < 30 * SECOND { 50_000 } else { 400_000 }),
    );
    run.seconds(30);
    run.seconds(20);
    let seen = run.seconds(60);
    assert!(seen.answers_per_second >= 0.95 * 64.0 / 0.400, "{seen:?}");
}

#[test]
fn a_server_that_refuses_is_called_about_as_much_as_it_allows() {
    let server = Strict {
        under_way: BinaryHeap::new(),
        allowed: 20,
    };
    let mut run = Run::new(64, server);
    run.seconds(5);
    let seen = run.seconds(60);
    assert!(seen.answers_per_second >= 0.6 * 20.0 / 0.050, "{seen:?}");
    let answered = seen.answers_per_second * 60.0;
    assert!((seen.refused as f64) < 0.03 * answered, "{seen:?}");
}

/// A pace that reached 64.
fn full() -> Pace {
    let mut run = Run::new(64, Elastic(|_| 50_000));
    run.seconds(3);
    assert_eq!(run.pace.limit(), 64);
    run.pace
}

#[test]
fn a_wave_of_refusals_halves_the_limit_once() {
    let mut pace = full();
    let tickets: Vec<_> = (1..=64).map(|under_way| pace.begun(under_way)).collect();
    for ticket in tickets {
        pace.ended(ticket, Heard::Busy, 0);
    }
    assert_eq!(pace.limit(), 32);
    let next = pace.begun(1);
    pace.ended(next, Heard::Busy, 0);
    assert_eq!(pace.limit(), 16);
}

#[test]
fn a_few_identities_that_always_fail_slow_nobody_down() {
    let mut pace = full();
    for call in 0..64 * 100 {
        let ticket = pace.begun(64);
        let heard = match call % 40 {
            0 => Heard::Failure,
            _ => Heard::Answer(Duration::from_millis(50)),
        };
        pace.ended(ticket, heard, 0);
    }
    assert_eq!(pace.limit(), 64);
    let tickets: Vec<_> = (1..=64).map(|under_way| pace.begun(under_way)).collect();
    for ticket in tickets {
        pace.ended(ticket, Heard::Failure, 0);
    }
    assert_eq!(
        pace.limit(),
        32,
        "all at once are no single identity's fault"
    );
}

#[test]
fn the_limit_does_not_grow_where_it_is_not_reached() {
    let mut pace = Pace::new(64);
    for _ in 0..10_000 {
        let ticket = pace.begun(1);
        pace.ended(ticket, Heard::Answer(Duration::from_millis(50)), 0);
    }
    assert_eq!(pace.limit(), FIRST_LIMIT);

    let mut pace = full();
    let ticket = pace.begun(1);
    pace.ended(ticket, Heard::Busy, 0);
    for _ in 0..10_000 {
        let ticket = pace.begun(31);
        pace.ended(ticket, Heard::Answer(Duration::from_millis(50)), 0);
    }
    assert_eq!(pace.limit(), 32);
}

#[test]
fn a_look_at_a_server_that_stalls_is_soon_forgotten() {
    let mut pace = full();
    pace.usual = Some(6_000_000);
    for _ in 0..2 * 64 {
        let ticket = pace.begun(64);
        pace.ended(ticket, Heard::Answer(Duration::from_millis(50)), 0);
    }
    let usual = pace.usual.expect("something is usual");
    assert!(usual < 60_000, "{usual}");
}

#[test]
fn after_a_closure_calls_begin_one_by_one_and_soon_are_as_many_as_before() {
    let mut run = Run::new(64, Elastic(|_| 50_000));
    run.seconds(3);
    run.pace.restart();
    assert_eq!(run.pace.limit(), 1);
    run.micros(110_000);
    assert!(run.pace.limit() <= 4, "{}", run.pace.limit());
    run.micros(900_000);
    assert_eq!(run.pace.limit(), 64);
}

#[test]
fn a_clock_set_back_does_no_harm() {
    let mut pace = full();
    // Neither calm nor crowded.
    for _ in 0..2 * 64 {
        if pace.limit() == 64 {
            pace.calm_at = Millis::MAX;
            let ticket = pace.begun(64);
            pace.ended(ticket, Heard::Answer(Duration::from_millis(95)), 0);
        }
    }
    assert_eq!(pace.limit(), 16, "a look is taken");
}

#[derive(Clone, Debug)]
enum Event {
    Begin(usize),
    End(usize, Heard),
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let heard = prop_oneof![
        4 => (0_u64..1 << 34).prop_map(|us| Heard::Answer(Duration::from_micros(us))),
        4 => (0_u64..100_000).prop_map(|us| Heard::Answer(Duration::from_micros(us))),
        1 => Just(Heard::Failure),
        1 => Just(Heard::Busy),
        1 => Just(Heard::Nothing),
    ];
    prop_oneof![
        8 => (0_usize..200).prop_map(Event::Begin),
        16 => (any::<usize>(), heard).prop_map(|(which, heard)| Event::End(which, heard)),
        1 => Just(Event::Restart),
    ]
}

proptest! {
    #[test]
    fn the_limit_is_never_nought_nor_above_the_ceiling(
        ceiling in 1_usize..10_000,
        events in prop::collection::vec((event(), any::<Millis>()), 0..500),
    ) {
        let mut pace = Pace::new(ceiling);
        let mut tickets = vec![pace.begun(1)];
        for (event, now) in events {
            match event {
                Event::Begin(under_way) => tickets.push(pace.begun(under_way)),
                Event::End(which, heard) => pace.ended(tickets[which % tickets.len()], heard, now),
                Event::Restart => pace.restart(),
            }
            prop_assert!((1..=ceiling).contains(&pace.limit()));
        }
    }

    #[test]
    fn the_median_is_nearly_that_of_the_sorted_times(times in prop::collection::vec(any::<u32>(), 1..200)) {
        let mut counted = Times::default();
        times.iter().for_each(|time| counted.add(*time));
        let mut sorted = times;
        sorted.sort_unstable();
        let exact = f64::from(sorted[(sorted.len() - 1) / 2]);
        let found = f64::from(counted.median());
        prop_assert!((found - exact).abs() <= exact / 16.0 + 1.0, "{found} for {exact}");
    }
}
