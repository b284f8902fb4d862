//! What Prometheus scrapes. Every label comes from the settings or from a fixed list, but for
//! `cohort_id`, of which there are as many as cohorts.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
    TextEncoder,
};

use crate::cohort::{Action, DestinationName, SourceName};
use crate::mixpanel::SetAside;
use crate::status::{DestinationState, StatusSnapshot};
use crate::store::CohortStanding;

mod register;

use register::Register;

/// The `source` label of a request that names no source of the settings.
pub const UNKNOWN_SOURCE: &str = "unknown";

/// The `action` label of a request whose action could not be read or is not Mixpanel's.
const OTHER_ACTION: &str = "other";

/// The `status` label of a call that got no answer.
const NO_REPLY: &str = "no_reply";

/// Seconds. A durable answer takes about a millisecond; the body may take up to ten seconds.
const WEBHOOK_BUCKETS: &[f64] = &[
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Seconds. Flagsmith's Edge API answers in some tens of milliseconds; calls end at a time limit.
const FLAGSMITH_BUCKETS: &[f64] = &[
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

/// What became of a trait in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Flagsmith proved to hold it.
    Written,
    /// It will be tried again.
    Retry,
    /// It will never work.
    Dead,
    /// The destination halted; the trait waits.
    Halted,
}

impl WriteOutcome {
    const ALL: [WriteOutcome; 4] = [
        WriteOutcome::Written,
        WriteOutcome::Retry,
        WriteOutcome::Dead,
        WriteOutcome::Halted,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            WriteOutcome::Written => "written",
            WriteOutcome::Retry => "retry",
            WriteOutcome::Dead => "dead",
            WriteOutcome::Halted => "halted",
        }
    }
}

/// One destination's counters, looked up once.
#[derive(Clone, Debug)]
pub struct DestinationMetrics {
    name: DestinationName,
    writes: [IntCounter; WriteOutcome::ALL.len()],
    requests: IntCounterVec,
    requests_200: IntCounter,
    duration: Histogram,
}

impl DestinationMetrics {
    /// `count` traits of one call ended as `outcome`.
    pub fn traits_settled(&self, outcome: WriteOutcome, count: u64) {
        self.writes[outcome as usize].inc_by(count);
    }

    /// A call ended with an HTTP status, or with none, after `elapsed`.
    pub fn call_ended(&self, status: Option<u16>, elapsed: Duration) {
        self.duration.observe(elapsed.as_secs_f64());
        match status {
            Some(200) => self.requests_200.inc(),
            Some(status) => self.count_request(&status.to_string()),
            None => self.count_request(NO_REPLY),
        }
    }

    fn count_request(&self, status: &str) {
        self.requests
            .with_label_values(&[&self.name.0, status])
            .inc();
    }
}

/// Every metric of the service, in a registry of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    webhook_requests: IntCounterVec,
    webhook_duration: Histogram,
    members_received: IntCounterVec,
    members_set_aside: IntCounterVec,
    trait_writes: IntCounterVec,
    flagsmith_requests: IntCounterVec,
    flagsmith_duration: Histogram,
    secret_reload_failures: IntCounter,
    gauges: Mutex<Gauges>,
}

/// Set anew at every scrape, under a lock, so that two scrapes do not mix.
#[derive(Debug)]
struct Gauges {
    pending: IntGaugeVec,
    dead: IntGaugeVec,
    oldest_pending_seconds: GaugeVec,
    last_heard_timestamp_seconds: GaugeVec,
    held_removals: IntGaugeVec,
    cohort_runs: IntGaugeVec,
    destination_halted: IntGaugeVec,
    paused: IntGaugeVec,
    cohort_paused: IntGaugeVec,
    calls_this_month: IntGaugeVec,
    call_budget: IntGaugeVec,
    secrets_refused: IntGauge,
    inbox_pages: IntGauge,
    leading: IntGauge,
    resident_memory_bytes: IntGauge,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    ///
    /// A name is malformed or used twice, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let register = Register(&registry);
        let metrics = Metrics {
            webhook_requests: register.counters(
                "cohort_bridge_webhook_requests_total",
                "Webhook requests answered.",
                &["source", "action", "status"],
            )?,
            webhook_duration: register.histogram(
                "cohort_bridge_webhook_request_duration_seconds",
                "From a webhook's head to its answer.",
                WEBHOOK_BUCKETS,
            )?,
            members_received: register.counters(
                "cohort_bridge_members_received_total",
                "Members on recorded pages, usable or not.",
                &["source", "action"],
            )?,
            members_set_aside: register.counters(
                "cohort_bridge_members_set_aside_total",
                "Members on recorded pages whose identifier cannot be sent to Flagsmith.",
                &["source", "reason"],
            )?,
            trait_writes: register.counters(
                "cohort_bridge_trait_writes_total",
                "Traits sent to Flagsmith, by what became of them.",
                &["destination", "outcome"],
            )?,
            flagsmith_requests: register.counters(
                "cohort_bridge_flagsmith_requests_total",
                "Calls to Flagsmith, by HTTP status; no_reply where none came.",
                &["destination", "status"],
            )?,
            flagsmith_duration: register.histogram(
                "cohort_bridge_flagsmith_request_duration_seconds",
                "From a call to Flagsmith to its answer or failure.",
                FLAGSMITH_BUCKETS,
            )?,
            secret_reload_failures: register.counter(
                "cohort_bridge_secret_reload_failures_total",
                "Contents of secret files that could not be used, each counted once.",
            )?,
            gauges: Mutex::new(Gauges {
                secrets_refused: register.int_gauge(
                    "cohort_bridge_secrets_refused",
                    "1 while a secret file holds what cannot be used and the secret before it is in force, else 0.",
                )?,
                pending: register.int_gauges(
                    "cohort_bridge_pending",
                    "Traits not yet as wanted.",
                    &["destination"],
                )?,
                dead: register.int_gauges(
                    "cohort_bridge_dead",
                    "Traits that cannot be written.",
                    &["destination"],
                )?,
                oldest_pending_seconds: register.gauges(
                    "cohort_bridge_oldest_pending_seconds",
                    "Age of the oldest pending change; 0 where nothing is pending. What is paused does not count.",
                    &["destination"],
                )?,
                last_heard_timestamp_seconds: register.gauges(
                    "cohort_bridge_last_heard_timestamp_seconds",
                    "Unix time at which a page of the cohort last arrived; nothing of a retired one.",
                    &["source", "cohort_id"],
                )?,
                held_removals: register.int_gauges(
                    "cohort_bridge_held_removals",
                    "People whose removal from the cohort waits for a decision.",
                    &["source", "cohort_id"],
                )?,
                cohort_runs: register.int_gauges(
                    "cohort_bridge_cohort_runs",
                    "Runs of differences of the cohort, by what became of them.",
                    &["source", "cohort_id", "outcome"],
                )?,
                destination_halted: register.int_gauges(
                    "cohort_bridge_destination_halted",
                    "1 while the destination waits to be mended, else 0.",
                    &["destination"],
                )?,
                paused: register.int_gauges(
                    "cohort_bridge_paused",
                    "1 while an operator has the destination paused, else 0.",
                    &["destination"],
                )?,
                cohort_paused: register.int_gauges(
                    "cohort_bridge_cohort_paused",
                    "1 while an operator has the cohort paused, else 0.",
                    &["source", "cohort_id"],
                )?,
                calls_this_month: register.int_gauges(
                    "cohort_bridge_calls_this_month",
                    "Calls to Flagsmith in this calendar month (UTC).",
                    &["destination"],
                )?,
                call_budget: register.int_gauges(
                    "cohort_bridge_call_budget",
                    "Calls to Flagsmith that a calendar month allows; nothing where there is no budget.",
                    &["destination"],
                )?,
                inbox_pages: register.int_gauge(
                    "cohort_bridge_inbox_pages",
                    "Pages written down and not yet folded.",
                )?,
                leading: register.int_gauge(
                    "cohort_bridge_leading",
                    "1 while this process folds and delivers, 0 while another replica does.",
                )?,
                resident_memory_bytes: register.int_gauge(
                    "process_resident_memory_bytes",
                    "Resident memory; 0 where the system does not tell.",
                )?,
            }),
            registry: registry.clone(),
        };
        let build_info = register.int_gauges(
            "cohort_bridge_build_info",
            "Always 1; the label tells what runs.",
            &["version"],
        )?;
        build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(metrics)
    }

    /// A webhook request was answered. `source` must be a name of the settings or
    /// [`UNKNOWN_SOURCE`]; `action` may be anything that was sent.
    pub fn webhook_answered(
        &self,
        source: &str,
        action: Option<&str>,
        status: u16,
        elapsed: Duration,
    ) {
        let action = action
            .and_then(Action::parse)
            .map_or(OTHER_ACTION, Action::as_str);
        self.webhook_requests
            .with_label_values(&[source, action, &status.to_string()])
            .inc();
        self.webhook_duration.observe(elapsed.as_secs_f64());
    }

    /// A page with that many members was recorded.
    pub fn page_recorded(
        &self,
        source: &SourceName,
        action: Action,
        members: usize,
        set_aside: &[(SetAside, usize)],
    ) {
        self.members_received
            .with_label_values(&[&source.0, action.as_str()])
            .inc_by(count(members));
        for &(reason, members) in set_aside {
            self.members_set_aside
                .with_label_values(&[&source.0, reason.as_str()])
                .inc_by(count(members));
        }
    }

    /// A secret file changed and cannot be used.
    pub fn secret_refused(&self) {
        self.secret_reload_failures.inc();
    }

    /// The counters of one destination, all there from the start so that rates begin at zero.
    pub fn destination(&self, name: &DestinationName) -> DestinationMetrics {
        DestinationMetrics {
            writes: WriteOutcome::ALL.map(|outcome| {
                self.trait_writes
                    .with_label_values(&[&name.0, outcome.as_str()])
            }),
            requests: self.flagsmith_requests.clone(),
            requests_200: self.flagsmith_requests.with_label_values(&[&name.0, "200"]),
            duration: self.flagsmith_duration.clone(),
            name: name.clone(),
        }
    }

    /// Everything in Prometheus' text format. Where the snapshot could not read the ledger, what
    /// only the ledger knows is left out rather than shown as it was; on standby, what only the replica
    /// knows that delivers.
    ///
    /// # Errors
    ///
    /// The encoder failed.
    pub fn render(&self, snapshot: &StatusSnapshot) -> Result<String, prometheus::Error> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.show(snapshot);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The content type of [`Metrics::render`].
    pub const CONTENT_TYPE: &'static str = prometheus::TEXT_FORMAT;
}

impl Gauges {
    fn show(&self, snapshot: &StatusSnapshot) {
        self.pending.reset();
        self.dead.reset();
        self.oldest_pending_seconds.reset();
        self.last_heard_timestamp_seconds.reset();
        self.held_removals.reset();
        self.cohort_runs.reset();
        self.destination_halted.reset();
        self.paused.reset();
        self.cohort_paused.reset();
        self.calls_this_month.reset();
        self.call_budget.reset();
        for destination in &snapshot.destinations {
            let label = [&*destination.name.0];
            if destination.state != DestinationState::Standby {
                let halted = matches!(destination.state, DestinationState::Halted { .. });
                self.destination_halted
                    .with_label_values(&label)
                    .set(i64::from(halted));
            }
            self.paused
                .with_label_values(&label)
                .set(i64::from(destination.paused));
            if let Some(calls) = destination.calls {
                self.calls_this_month
                    .with_label_values(&label)
                    .set(gauge(calls.made));
                if let Some(budget) = calls.budget {
                    self.call_budget
                        .with_label_values(&label)
                        .set(gauge(budget));
                }
            }
            if snapshot.cohorts.is_err() {
                continue;
            }
            let outstanding = snapshot.outstanding(&destination.name);
            self.pending
                .with_label_values(&label)
                .set(gauge(outstanding.pending));
            self.dead
                .with_label_values(&label)
                .set(gauge(outstanding.dead));
            self.oldest_pending_seconds
                .with_label_values(&label)
                .set(seconds(outstanding.oldest_pending_ms.unwrap_or(0)));
        }
        for cohort in snapshot.known_cohorts() {
            let (source, cohort_id) = (&*cohort.source.0, &*cohort.cohort_id);
            // Nothing more is expected of a retired cohort: its silence is no alarm.
            if cohort.standing == CohortStanding::Followed {
                self.last_heard_timestamp_seconds
                    .with_label_values(&[source, cohort_id])
                    .set(seconds(cohort.last_heard_at));
            }
            let paused = self.cohort_paused.with_label_values(&[source, cohort_id]);
            paused.set(paused.get().max(i64::from(cohort.paused)));
            // Added, since cohorts of two projects may share an id; `reset` made them all nought.
            self.held_removals
                .with_label_values(&[source, cohort_id])
                .add(gauge(cohort.held.as_ref().map_or(0, |held| held.held)));
            for (outcome, runs) in [
                ("accepted", cohort.runs.accepted),
                ("dropped", cohort.runs.dropped),
                ("undone", cohort.runs.undone),
            ] {
                self.cohort_runs
                    .with_label_values(&[source, cohort_id, outcome])
                    .add(gauge(runs));
            }
        }
        self.secrets_refused
            .set(i64::from(!snapshot.refused_secrets.is_empty()));
        self.inbox_pages.set(gauge(snapshot.backlog_pages));
        self.leading.set(i64::from(snapshot.leading));
        self.resident_memory_bytes
            .set(gauge(resident_memory_bytes().unwrap_or(0)));
    }
}

fn count(members: usize) -> u64 {
    u64::try_from(members).unwrap_or(u64::MAX)
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

/// As Linux tells it; `None` elsewhere.
fn resident_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::calls::CallsView;
    use crate::http::stub_store::{cohort, troubled_cohort};
    use crate::month::Month;
    use crate::status::{DestinationStatus, RefusedSecret};
    use crate::store::CohortView;

    fn snapshot() -> StatusSnapshot {
        StatusSnapshot {
            now: 100_000,
            leading: true,
            backlog_pages: 3,
            refusal: None,
            refused_secrets: vec![],
            destinations: vec![DestinationStatus {
                name: "production".into(),
                warning: None,
                state: DestinationState::Halted {
                    reason: "wrong key".into(),
                },
                in_flight: 0,
                in_flight_limit: 64,
                calls: Some(CallsView {
                    month: Month::of(100_000),
                    made: 42,
                    budget: Some(1_000),
                    since: 0,
                }),
                resync: None,
                canary: Default::default(),
                paused: false,
                dry_run: false,
                planned_calls: None,
            }],
            cohorts: Ok(vec![troubled_cohort("7"), cohort("8")]),
        }
    }

    #[test]
    fn what_is_paused_is_told_and_grows_no_older() {
        let metrics = Metrics::new().unwrap();
        let mut paused = snapshot();
        let zero = r#"cohort_bridge_oldest_pending_seconds{destination="production"} 0"#;
        let one = r#"cohort_bridge_cohort_paused{cohort_id="7",source="default"} 1"#;
        for cohort in paused.cohorts.as_mut().unwrap() {
            cohort.paused = true;
        }
        let text = metrics.render(&paused).unwrap();
        assert!(text.contains(zero) && text.contains(one), "{text}");
        paused = snapshot();
        paused.destinations[0].paused = true;
        let text = metrics.render(&paused).unwrap();
        let one = r#"cohort_bridge_paused{destination="production"} 1"#;
        assert!(text.contains(zero) && text.contains(one), "{text}");
        assert!(text.contains(r#"cohort_bridge_pending{destination="production"} 10"#));
    }

    #[test]
    fn every_promised_name_is_there() {
        let metrics = Metrics::new().unwrap();
        metrics.webhook_answered("default", Some("members"), 200, Duration::from_millis(1));
        metrics.page_recorded(
            &"default".into(),
            Action::Members,
            1_000,
            &[(SetAside::Anonymous, 4)],
        );
        let destination = metrics.destination(&"production".into());
        destination.traits_settled(WriteOutcome::Written, 2);
        destination.call_ended(Some(200), Duration::from_millis(1));
        destination.call_ended(Some(503), Duration::from_millis(1));
        destination.call_ended(None, Duration::from_millis(1));
        metrics.secret_refused();
        let mut snapshot = snapshot();
        snapshot.refused_secrets.push(RefusedSecret {
            setting: "COHORT_BRIDGE_ADMIN_TOKEN_FILE".into(),
            file: "/run/token".into(),
            reason: "it is empty".into(),
            since: 0,
        });
        let text = metrics.render(&snapshot).unwrap();
        for line in [
            r#"cohort_bridge_webhook_requests_total{action="members",source="default",status="200"} 1"#,
            "cohort_bridge_webhook_request_duration_seconds_count 1",
            r#"cohort_bridge_members_received_total{action="members",source="default"} 1000"#,
            r#"cohort_bridge_members_set_aside_total{reason="anonymous",source="default"} 4"#,
            r#"cohort_bridge_trait_writes_total{destination="production",outcome="written"} 2"#,
            r#"cohort_bridge_trait_writes_total{destination="production",outcome="dead"} 0"#,
            r#"cohort_bridge_flagsmith_requests_total{destination="production",status="200"} 1"#,
            r#"cohort_bridge_flagsmith_requests_total{destination="production",status="503"} 1"#,
            r#"cohort_bridge_flagsmith_requests_total{destination="production",status="no_reply"} 1"#,
            "cohort_bridge_flagsmith_request_duration_seconds_count 3",
            r#"cohort_bridge_pending{destination="production"} 10"#,
            r#"cohort_bridge_dead{destination="production"} 2"#,
            r#"cohort_bridge_oldest_pending_seconds{destination="production"} 60"#,
            r#"cohort_bridge_last_heard_timestamp_seconds{cohort_id="7",source="default"} 90"#,
            r#"cohort_bridge_held_removals{cohort_id="7",source="default"} 1204"#,
            r#"cohort_bridge_held_removals{cohort_id="8",source="default"} 0"#,
            r#"cohort_bridge_cohort_runs{cohort_id="7",outcome="accepted",source="default"} 40"#,
            r#"cohort_bridge_cohort_runs{cohort_id="7",outcome="dropped",source="default"} 2"#,
            r#"cohort_bridge_cohort_runs{cohort_id="7",outcome="undone",source="default"} 1"#,
            r#"cohort_bridge_destination_halted{destination="production"} 1"#,
            r#"cohort_bridge_paused{destination="production"} 0"#,
            r#"cohort_bridge_cohort_paused{cohort_id="7",source="default"} 0"#,
            r#"cohort_bridge_calls_this_month{destination="production"} 42"#,
            r#"cohort_bridge_call_budget{destination="production"} 1000"#,
            "cohort_bridge_inbox_pages 3",
            "cohort_bridge_leading 1",
            "cohort_bridge_secret_reload_failures_total 1",
            "cohort_bridge_secrets_refused 1",
            concat!(
                "cohort_bridge_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn an_action_that_is_not_mixpanels_makes_no_new_series() {
        let metrics = Metrics::new().unwrap();
        metrics.webhook_answered(UNKNOWN_SOURCE, Some("explode"), 400, Duration::ZERO);
        metrics.webhook_answered(UNKNOWN_SOURCE, None, 400, Duration::ZERO);
        let text = metrics.render(&snapshot()).unwrap();
        assert!(text.contains(
            r#"cohort_bridge_webhook_requests_total{action="other",source="unknown",status="400"} 2"#
        ));
        assert!(!text.contains("explode"));
    }

    #[test]
    fn an_unreadable_ledger_leaves_its_gauges_out_and_keeps_the_rest() {
        let metrics = Metrics::new().unwrap();
        metrics.render(&snapshot()).unwrap();
        let blind = StatusSnapshot {
            cohorts: Err(Arc::from("locked")),
            ..snapshot()
        };
        let text = metrics.render(&blind).unwrap();
        assert!(!text.contains("cohort_bridge_pending{"));
        assert!(!text.contains("cohort_bridge_last_heard_timestamp_seconds{"));
        assert!(!text.contains("cohort_bridge_held_removals{"));
        assert!(!text.contains("cohort_bridge_cohort_runs{"));
        assert!(text.contains(r#"cohort_bridge_destination_halted{destination="production"} 1"#));
    }

    #[test]
    fn on_standby_only_what_the_ledger_knows_is_told() {
        let metrics = Metrics::new().unwrap();
        metrics.render(&snapshot()).unwrap();
        let mut standby = snapshot();
        standby.leading = false;
        let there = standby.destinations.pop().unwrap();
        standby.destinations.push(there.on_standby());
        let text = metrics.render(&standby).unwrap();
        for unknown in ["destination_halted", "calls_this_month", "call_budget"] {
            let series = format!("cohort_bridge_{unknown}{{");
            assert!(!text.contains(&series), "{text}");
        }
        for known in [
            "cohort_bridge_leading 0\n",
            "cohort_bridge_pending{destination=\"production\"} 10\n",
            "cohort_bridge_dead{destination=\"production\"} 2\n",
            "cohort_bridge_paused{destination=\"production\"} 0\n",
            "cohort_bridge_inbox_pages 3\n",
        ] {
            assert!(text.contains(known), "{text}");
        }
    }

    #[test]
    fn the_silence_of_a_retired_cohort_is_not_measured() {
        let metrics = Metrics::new().unwrap();
        let retired = |id, standing| CohortView {
            standing,
            ..cohort(id)
        };
        let text = metrics
            .render(&StatusSnapshot {
                cohorts: Ok(vec![
                    retired("7", CohortStanding::Retiring),
                    retired("8", CohortStanding::Retired),
                    cohort("9"),
                ]),
                ..snapshot()
            })
            .unwrap();
        let heard = |id| {
            let series = format!("last_heard_timestamp_seconds{{cohort_id=\"{id}\"");
            text.contains(&series)
        };
        assert!(!heard("7") && !heard("8") && heard("9"), "{text}");
        assert!(text.contains("cohort_bridge_held_removals{cohort_id=\"8\""));
    }

    #[test]
    fn cohorts_that_share_an_id_are_counted_together_and_not_twice() {
        let metrics = Metrics::new().unwrap();
        let shared = StatusSnapshot {
            cohorts: Ok(vec![troubled_cohort("7"), troubled_cohort("7")]),
            ..snapshot()
        };
        for _ in 0..2 {
            let text = metrics.render(&shared).unwrap();
            assert!(text.contains(
                "cohort_bridge_held_removals{cohort_id=\"7\",source=\"default\"} 2408\n"
            ));
        }
    }

    #[test]
    fn outcomes_index_their_own_counter() {
        for (index, outcome) in WriteOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }
}
