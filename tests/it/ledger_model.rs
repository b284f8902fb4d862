//! The real ledger, through its public interface, against a naive model: sets, a list of calls
//! that may still land, and the obvious code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cohort_bridge::clock::{Clock, ManualClock, Millis};
use cohort_bridge::cohort::{Action, DestinationName, OnLeave, SourceName, Target};
use cohort_bridge::fold::Fold;
use cohort_bridge::mixpanel::{IdentifierRules, Page, PageInfo};
use cohort_bridge::roster::Roster;
use cohort_bridge::store::LedgerStore;
use cohort_bridge::store::{
    Claim, DeliveryState, DestinationRules, Outcome, Settlement, SourceRules, Store,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::membership_model::{Arrival, Model};
use crate::support::resyncs::{bring_up_all, cohort_at, order};
use crate::support::{fast_temp_dir, open_ledger};

const WINDOW_MS: Millis = 60_000;
const START: Millis = 1_800_000_000_000;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    Page {
        cohort: u8,
        action: Action,
        session: u8,
        number: u32,
        total: u32,
        people: BTreeSet<u8>,
    },
    /// A page without page_info.
    Alone {
        cohort: u8,
        action: Action,
        people: BTreeSet<u8>,
    },
    Claim {
        limit: usize,
    },
    /// The oldest call under way ends.
    End(End),
    /// A call without a known end lands after all.
    Land,
    /// The process is killed and starts again.
    Kill,
    Advance(u32),
    Resync(u8),
    RetryDead,
    Pause(u8, bool),
    /// A piece of what pausing takes.
    Walk,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Written,
    /// The connection broke; a second sending was answered, the first may still land.
    WrittenTwice,
    /// No answer; it may land later.
    Lost,
    /// No answer; it had landed.
    LostAfterLanding,
    Failed,
    Unsent,
    Dead,
    /// The last failure had no answer; it may land later.
    DeadAndLost,
}

fn op() -> impl Strategy<Value = Op> {
    let action = prop_oneof![
        Just(Action::Members),
        Just(Action::AddMembers),
        Just(Action::RemoveMembers)
    ];
    let people = || prop::collection::btree_set(0_u8..6, 0..4);
    prop_oneof![
        6 => (0_u8..3, action.clone(), 0_u8..4, 1_u32..4, 1_u32..4, people()).prop_map(
            |(cohort, action, session, number, total, people)| Op::Page {
                cohort, action, session, number: number.min(total), total, people,
            }
        ),
        2 => (0_u8..3, action, people())
            .prop_map(|(cohort, action, people)| Op::Alone { cohort, action, people }),
        4 => (1_usize..5).prop_map(|limit| Op::Claim { limit }),
        6 => prop_oneof![
            4 => Just(End::Written),
            1 => Just(End::WrittenTwice),
            2 => Just(End::Lost),
            1 => Just(End::LostAfterLanding),
            1 => Just(End::Failed),
            1 => Just(End::Unsent),
            1 => Just(End::Dead),
            1 => Just(End::DeadAndLost),
        ].prop_map(Op::End),
        1 => Just(Op::Land),
        1 => Just(Op::Kill),
        2 => (1_u32..40_000).prop_map(Op::Advance),
        1 => (0_u8..3).prop_map(Op::Resync),
        1 => Just(Op::RetryDead),
        2 => (0_u8..3, any::<bool>()).prop_map(|(cohort, pauses)| Op::Pause(cohort, pauses)),
        1 => Just(Op::Walk),
    ]
}

/// Flagsmith, naively: the value of each trait, and the calls that may still land.
#[derive(Default)]
struct Far {
    stored: BTreeMap<(String, String), bool>,
    under_way: Vec<(Claim, Millis)>,
    may_land: Vec<(Claim, Millis)>,
}

impl Far {
    fn land(&mut self, claim: &Claim) {
        for claimed in &claim.traits {
            let key = (claim.identifier.to_string(), claimed.trait_key.to_string());
            match claimed.target {
                Target::Absent => self.stored.remove(&key),
                Target::True => self.stored.insert(key, true),
                Target::False => self.stored.insert(key, false),
            };
        }
    }

    /// Nothing lands later than the window.
    fn land_what_must(&mut self, now: Millis) {
        let late: Vec<_> = self
            .may_land
            .extract_if(.., |(_, until)| *until <= now)
            .collect();
        for (claim, _) in late {
            self.land(&claim);
        }
    }
}

struct World {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    on_leave: OnLeave,
    clock: ManualClock,
    store: Option<Arc<LedgerStore>>,
    model: Model,
    far: Far,
    paused: BTreeSet<u8>,
}

fn destination() -> DestinationName {
    DestinationName::from("default")
}

impl World {
    fn new(on_leave: OnLeave) -> Self {
        let dir = fast_temp_dir();
        let mut world = World {
            path: dir.path().join("ledger.db"),
            _dir: dir,
            on_leave,
            clock: ManualClock::at(START),
            store: None,
            model: Model::default(),
            far: Far::default(),
            paused: BTreeSet::new(),
        };
        world.open();
        world
    }

    fn open(&mut self) {
        self.store = None;
        let source = SourceRules::named("default");
        let destination = DestinationRules {
            name: destination(),
            on_leave: self.on_leave,
            linger_ms: 0,
            late_write_ms: WINDOW_MS,
        };
        self.store = Some(open_ledger(&self.path, source, destination));
    }

    fn store(&self) -> Arc<LedgerStore> {
        Arc::clone(self.store.as_ref().unwrap())
    }

    fn hear(
        &mut self,
        cohort: u8,
        action: Action,
        place: Option<(u8, u32, u32)>,
        people: &BTreeSet<u8>,
    ) {
        let arrival = Arrival {
            action,
            place: place.map(|(id, number, total)| (u32::from(id), number, total)),
            people: people.clone(),
            is_refused: false,
        };
        self.model.arrive(cohort, self.clock.now(), &arrival);
    }

    fn members(&self, cohort: u8) -> u64 {
        let model = self.model.cohorts.get(&cohort);
        model.map_or(0, |cohort| cohort.members().len() as u64)
    }

    async fn append(
        &self,
        cohort: u8,
        action: Action,
        session: Option<u8>,
        info: Option<PageInfo>,
        people: &BTreeSet<u8>,
    ) {
        let identifiers: Vec<_> = people
            .iter()
            .map(|person| format!("usr_{person}"))
            .collect();
        let page = Page {
            action,
            project_id: "1".into(),
            cohort_id: cohort.to_string(),
            cohort_name: Some(format!("cohort {cohort}")),
            session_id: session.map(|session| format!("session {session}")),
            page_info: info,
            roster: Roster::of_identifiers(identifiers.iter().map(String::as_str)),
            identified_by: IdentifierRules::default().describe(),
            members_received: people.len(),
            set_aside: Vec::new(),
        };
        self.store()
            .append(&SourceName::from("default"), page, self.clock.now())
            .await
            .unwrap();
    }

    async fn fold(&mut self) {
        Fold::new(self.store(), Arc::new(self.clock.clone()))
            .run_until_idle()
            .await
            .unwrap();
        self.model.rest(self.clock.now());
    }

    async fn settle(&mut self, claim: Claim, outcome: Outcome) {
        self.store()
            .exchange(
                &destination(),
                vec![Settlement { claim, outcome }],
                None,
                0,
                self.clock.now(),
            )
            .await
            .unwrap();
    }

    async fn claim(&mut self, limit: usize) -> usize {
        let claims = self
            .store()
            .exchange(&destination(), Vec::new(), None, limit, self.clock.now())
            .await
            .unwrap()
            .claims;
        let count = claims.len();
        for claim in claims {
            let busy = self
                .far
                .under_way
                .iter()
                .any(|(other, _)| other.identifier == claim.identifier);
            assert!(!busy, "two calls at once for one identity");
            for claimed in &claim.traits {
                let is_paused = self
                    .paused
                    .iter()
                    .any(|cohort| *claimed.trait_key == format!("mixpanel_cohort_cohort_{cohort}"));
                assert!(!is_paused, "{claimed:?} is a paused cohort's");
            }
            self.far.under_way.push((claim, self.clock.now()));
        }
        count
    }

    async fn end(&mut self, end: End) {
        if self.far.under_way.is_empty() {
            return;
        }
        let (claim, _) = self.far.under_way.remove(0);
        let now = self.clock.now();
        let retry = |may_land_late| Outcome::Retry {
            due_at: now,
            counts: true,
            may_land_late,
            error: "no answer".into(),
        };
        let outcome = match end {
            End::Written => {
                self.far.land(&claim);
                Outcome::Written {
                    may_land_late: false,
                }
            }
            End::WrittenTwice => {
                self.far.land(&claim);
                self.far.may_land.push((claim.clone(), now + WINDOW_MS));
                Outcome::Written {
                    may_land_late: true,
                }
            }
            End::Lost => {
                self.far.may_land.push((claim.clone(), now + WINDOW_MS));
                retry(true)
            }
            End::LostAfterLanding => {
                self.far.land(&claim);
                retry(true)
            }
            End::Failed => retry(false),
            End::Unsent => Outcome::Unsent,
            End::Dead => Outcome::Dead {
                may_land_late: false,
                error: "400".into(),
            },
            End::DeadAndLost => {
                self.far.may_land.push((claim.clone(), now + WINDOW_MS));
                Outcome::Dead {
                    may_land_late: true,
                    error: "no answer".into(),
                }
            }
        };
        self.settle(claim, outcome).await;
    }

    async fn run(&mut self, op: Op) {
        match op {
            Op::Page {
                cohort,
                action,
                session,
                number,
                total,
                people,
            } => {
                let place = Some((session, number, total));
                self.hear(cohort, action, place, &people);
                let info = PageInfo { number, total };
                self.append(cohort, action, Some(session), Some(info), &people)
                    .await;
                self.fold().await;
            }
            Op::Alone {
                cohort,
                action,
                people,
            } => {
                self.hear(cohort, action, None, &people);
                self.append(cohort, action, None, None, &people).await;
                self.fold().await;
            }
            Op::Claim { limit } => {
                self.claim(limit).await;
            }
            Op::End(end) => self.end(end).await,
            Op::Land => {
                if !self.far.may_land.is_empty() {
                    let (claim, _) = self.far.may_land.remove(0);
                    self.far.land(&claim);
                }
            }
            Op::Kill => {
                let until = self.clock.now() + WINDOW_MS;
                let cut_off: Vec<_> = self.far.under_way.drain(..).collect();
                self.far
                    .may_land
                    .extend(cut_off.into_iter().map(|(claim, _)| (claim, until)));
                self.open();
            }
            Op::Resync(cohort) => {
                let scope = cohort_at(&cohort.to_string(), None);
                let (store, now) = (self.store(), self.clock.now());
                order(&*store, scope, None, now).await;
                bring_up_all(&*store, &destination(), now).await;
            }
            Op::RetryDead => {
                self.store()
                    .retry_dead_letters(Default::default(), self.clock.now())
                    .await
                    .unwrap();
            }
            Op::Pause(cohort, pauses) => self.pause(cohort, pauses).await,
            Op::Walk => {
                self.store().follow_pauses(2).await.unwrap();
            }
            Op::Advance(by) => {
                self.clock.advance(Duration::from_millis(u64::from(by)));
                self.far.land_what_must(self.clock.now());
            }
        }
    }

    async fn pause(&mut self, cohort: u8, pauses: bool) {
        let (source, id) = (SourceName::from("default"), cohort.to_string());
        let now = self.clock.now();
        let paused = self.store().pause_cohort(&source, &id, pauses, now).await;
        match (paused.unwrap(), pauses) {
            (Some(_), true) => self.paused.insert(cohort),
            _ => self.paused.remove(&cohort),
        };
    }

    /// Everything works from now on.
    async fn converge(&mut self) {
        for cohort in self.paused.clone() {
            self.pause(cohort, false).await;
        }
        while self.store().follow_pauses(2).await.unwrap() {}
        self.store()
            .retry_dead_letters(Default::default(), self.clock.now())
            .await
            .unwrap();
        for _ in 0..100 {
            while !self.far.under_way.is_empty() {
                self.end(End::Written).await;
            }
            if self.claim(100).await > 0 {
                continue;
            }
            let cohorts = self.store().cohorts().await.unwrap();
            let pending = cohorts
                .iter()
                .flat_map(|cohort| &cohort.destinations)
                .any(|delivery| delivery.pending > 0);
            if !pending {
                self.clock
                    .advance(Duration::from_millis(WINDOW_MS as u64 + 1));
                self.far.land_what_must(self.clock.now());
                return;
            }
            self.clock.advance(Duration::from_secs(5));
            self.far.land_what_must(self.clock.now());
        }
        panic!("delivery does not come to an end");
    }

    /// The counts, which are kept in step by hand, against the rows.
    async fn check_counts(&self) -> Result<(), TestCaseError> {
        let store = self.store();
        let mut pending = BTreeMap::<String, u64>::new();
        let mut dead = BTreeMap::<String, u64>::new();
        for person in 0..6 {
            for membership in store.member(&format!("usr_{person}")).await.unwrap() {
                let counts = match membership.destinations[0].state {
                    DeliveryState::Written => continue,
                    DeliveryState::Pending => &mut pending,
                    DeliveryState::Dead => &mut dead,
                };
                *counts.entry(membership.cohort_id).or_default() += 1;
            }
        }
        for cohort in store.cohorts().await.unwrap() {
            let number: u8 = cohort.cohort_id.parse().unwrap();
            let of = |counts: &BTreeMap<String, u64>| {
                counts.get(&cohort.cohort_id).copied().unwrap_or(0)
            };
            prop_assert_eq!(cohort.members, self.members(number));
            prop_assert_eq!(cohort.destinations[0].pending, of(&pending));
            prop_assert_eq!(cohort.destinations[0].dead, of(&dead));
        }
        Ok(())
    }

    async fn check(&mut self) -> Result<(), TestCaseError> {
        let cohorts = self.store().cohorts().await.unwrap();
        for cohort in &cohorts {
            let number: u8 = cohort.cohort_id.parse().unwrap();
            prop_assert_eq!(cohort.members, self.members(number));
            prop_assert_eq!(cohort.destinations[0].written, cohort.members);
        }
        let known = self.model.cohorts.iter().flat_map(|(number, cohort)| {
            let known = cohort.known.iter();
            known.map(move |person| (number, person, cohort.is_member(*person)))
        });
        for (cohort, person, member) in known {
            let key = (
                format!("usr_{person}"),
                format!("mixpanel_cohort_cohort_{cohort}"),
            );
            let stored = self.far.stored.get(&key).copied();
            let expected: &[Option<bool>] = match (member, self.on_leave) {
                (true, _) => &[Some(true)],
                (false, OnLeave::False) => &[Some(false)],
                (false, OnLeave::Delete) => &[None],
            };
            prop_assert!(
                expected.contains(&stored),
                "{key:?} is {stored:?}, member: {member}"
            );
        }
        Ok(())
    }
}

fn cases() -> u32 {
    std::env::var("TEST_HISTORIES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(400)
}

/// The same histories every time, unless more of them are asked for.
fn seed() -> RngSeed {
    match std::env::var_os("TEST_HISTORIES") {
        Some(_) => RngSeed::Random,
        None => RngSeed::Fixed(0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), rng_seed: seed(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_with_the_right_traits(
        ops in prop::collection::vec(op(), 1..60),
        deletes in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(if deletes { OnLeave::Delete } else { OnLeave::False });
            for op in ops {
                world.run(op).await;
            }
            world.check_counts().await?;
            world.converge().await;
            world.check().await
        })?;
    }
}
