//! The admin API's answers, made readable. Fields that a newer service may leave out are optional.

use std::fmt::Display;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Action;
use super::table::{Table, printable, utc};
use crate::http::admin::views::Decision;
use crate::number::counted;
use crate::status::CohortState;
use crate::store::CohortStanding;

/// What stands where there is nothing to say.
const NOTHING: &str = "-";

#[derive(Deserialize)]
struct Cohorts {
    cohorts: Vec<Cohort>,
}

#[derive(Deserialize)]
struct Cohort {
    source: String,
    cohort_id: String,
    name: Option<String>,
    trait_key: String,
    members: u64,
    last_heard_at: Option<Moment>,
    session: Option<Session>,
    state: Option<String>,
    #[serde(default)]
    paused: bool,
    held_removals: Option<Held>,
    needs_full_sync: Option<IgnoredAny>,
    #[serde(default)]
    destinations: Vec<Delivery>,
}

#[derive(Deserialize)]
struct Session {
    action: String,
    pages_received: u64,
    pages_total: Option<u64>,
    completed_at: Option<Moment>,
}

#[derive(Deserialize)]
struct Held {
    held: u64,
    session: Option<String>,
    since: Option<Moment>,
}

#[derive(Deserialize)]
struct Delivery {
    name: String,
    written: u64,
    pending: u64,
    dead: u64,
    oldest_pending_seconds: Option<f64>,
    ready: Option<bool>,
}

#[derive(Deserialize)]
struct Member {
    identifier: String,
    cohorts: Vec<Membership>,
}

#[derive(Deserialize)]
struct Membership {
    source: String,
    cohort_id: String,
    trait_key: String,
    member: bool,
    #[serde(default)]
    destinations: Vec<MembershipDelivery>,
}

#[derive(Deserialize)]
struct MembershipDelivery {
    name: String,
    written: Option<bool>,
    state: String,
    error: Option<String>,
}

#[derive(Deserialize)]
struct DeadLetters {
    dead_letters: Vec<DeadLetter>,
}

#[derive(Deserialize)]
struct DeadLetter {
    destination: String,
    identifier: String,
    source: String,
    cohort_id: String,
    trait_key: String,
    member: bool,
    error: String,
    since: Option<Moment>,
}

#[derive(Deserialize)]
struct Retried {
    retried: u64,
}

#[derive(Deserialize)]
struct Dropped {
    dropped: u64,
}

#[derive(Deserialize)]
struct Resynced {
    pending: u64,
}

#[derive(Deserialize)]
struct Cancelled {
    cancelled: u64,
}

#[derive(Deserialize)]
struct Retiring {
    retiring: u64,
}

#[derive(Deserialize)]
struct Paused {
    paused: bool,
    pending: u64,
}

#[derive(Deserialize)]
struct Decided {
    held: u64,
}

#[derive(Deserialize)]
struct Forgotten {
    forgotten: u64,
}

/// A time as text, or in milliseconds since the Unix epoch.
#[derive(Deserialize)]
#[serde(untagged)]
enum Moment {
    Text(String),
    Millis(i64),
}

/// The answer to `action`, for people.
pub(super) fn shown(action: &Action, answer: &str) -> Result<String, serde_json::Error> {
    Ok(match action {
        Action::Cohorts => cohorts(serde_json::from_str(answer)?),
        Action::Member { .. } => member(serde_json::from_str(answer)?),
        Action::DeadLetters => dead_letters(serde_json::from_str(answer)?),
        Action::RetryDeadLetters(_) => {
            let Retried { retried } = serde_json::from_str(answer)?;
            format!("{retried} to be tried again")
        }
        Action::DropDeadLetters(_) => {
            let Dropped { dropped } = serde_json::from_str(answer)?;
            format!("{dropped} dropped")
        }
        Action::Resync { .. } => {
            let Resynced { pending } = serde_json::from_str(answer)?;
            format!("{pending} to be written again")
        }
        Action::CancelResync(_) => {
            let Cancelled { cancelled } = serde_json::from_str(answer)?;
            format!("{cancelled} not to be written again after all")
        }
        Action::Forget { .. } => {
            let Forgotten { forgotten } = serde_json::from_str(answer)?;
            format!("forgotten in {}", counted(forgotten, "cohort", "cohorts"))
        }
        Action::Retire { .. } => {
            let Retiring { retiring } = serde_json::from_str(answer)?;
            let members = counted(retiring, "member leaves", "members leave");
            format!("{members}, then the cohort is forgotten")
        }
        Action::Pause { .. } => {
            let Paused { paused, pending } = serde_json::from_str(answer)?;
            match paused {
                true => format!("paused: {}", counted(pending, "trait waits", "traits wait")),
                false => format!(
                    "resumed: {} to be written",
                    counted(pending, "trait", "traits")
                ),
            }
        }
        Action::Plan => super::plan::shown(serde_json::from_str(answer)?),
        Action::HeldRemovals { .. } => held_removals(serde_json::from_str(answer)?),
        Action::DecideHeldRemovals { decision, .. } => {
            let Decided { held } = serde_json::from_str(answer)?;
            match decision {
                Decision::Approve => counted(held, "person leaves", "people leave"),
                Decision::Discard => {
                    let people = counted(held, "person stays", "people stay");
                    format!("{people} until the next full sync")
                }
            }
        }
    })
}

fn cohorts(answer: Cohorts) -> String {
    if answer.cohorts.is_empty() {
        return "no cohort has been heard of".to_owned();
    }
    let mut table = Table::new([
        "SOURCE",
        "COHORT",
        "NAME",
        "TRAIT KEY",
        "MEMBERS",
        "STATE",
        "LAST HEARD",
        "SESSION",
        "DESTINATION",
        "WRITTEN",
        "PENDING",
        "DEAD",
        "OLDEST PENDING",
    ]);
    for cohort in answer.cohorts {
        let deliveries: Vec<_> = cohort
            .destinations
            .iter()
            .map(|delivery| {
                let ready = delivery.ready.unwrap_or(true);
                (state(&cohort, Some(ready)), delivery)
            })
            .collect();
        for delivery in one_at_least(deliveries) {
            let (state, delivered) = match delivery {
                Some((state, delivery)) => (
                    state,
                    [
                        delivery.name.clone(),
                        delivery.written.to_string(),
                        delivery.pending.to_string(),
                        delivery.dead.to_string(),
                        or_nothing(delivery.oldest_pending_seconds.map(|s| format!("{s:.0}s"))),
                    ],
                ),
                None => (
                    state(&cohort, None),
                    [const { String::new() }; 5].map(|_| NOTHING.to_owned()),
                ),
            };
            let [h, i, j, k, l] = delivered;
            table.push([
                cohort.source.clone(),
                cohort.cohort_id.clone(),
                or_nothing(cohort.name.as_ref()),
                cohort.trait_key.clone(),
                cohort.members.to_string(),
                state,
                or_nothing(cohort.last_heard_at.as_ref().map(moment)),
                or_nothing(cohort.session.as_ref().map(session)),
                h,
                i,
                j,
                k,
                l,
            ]);
        }
    }
    table.to_string()
}

/// The most urgent of what the service says of a cohort; nothing where it says too little. `ready`
/// is `None` where the cohort goes nowhere.
fn state(cohort: &Cohort, ready: Option<bool>) -> String {
    let standing = match cohort.state.as_deref() {
        Some("followed") => CohortStanding::Followed,
        Some("retiring") => CohortStanding::Retiring,
        Some("retired") => CohortStanding::Retired,
        _ => return NOTHING.to_owned(),
    };
    let held = cohort.held_removals.as_ref().map_or(0, |held| held.held);
    let needs_full_sync = cohort.needs_full_sync.is_some();
    let state = CohortState::of(standing, held, needs_full_sync, ready);
    match cohort.paused {
        true => format!("{state}, paused"),
        false => state.to_string(),
    }
}

fn held_removals(answer: Held) -> String {
    if answer.held == 0 {
        return "no removals are held".to_owned();
    }
    let mut text = counted(answer.held, "removal is held", "removals are held");
    if let Some(since) = answer.since.as_ref().map(moment) {
        text.push_str(&format!(" since {since}"));
    }
    if let Some(session) = answer.session {
        text.push_str(&format!(" (session {session})"));
    }
    printable(&text)
}

fn member(answer: Member) -> String {
    if answer.cohorts.is_empty() {
        return format!("no cohort knows {}", printable(&answer.identifier));
    }
    let mut table = Table::new([
        "SOURCE",
        "COHORT",
        "TRAIT KEY",
        "MEMBER",
        "DESTINATION",
        "WRITTEN",
        "STATE",
        "ERROR",
    ]);
    for cohort in answer.cohorts {
        for delivery in one_at_least(cohort.destinations) {
            let (name, written, state, error) = match delivery {
                Some(delivery) => (
                    delivery.name,
                    or_nothing(delivery.written),
                    delivery.state,
                    or_nothing(delivery.error),
                ),
                None => (
                    NOTHING.into(),
                    NOTHING.into(),
                    NOTHING.into(),
                    NOTHING.into(),
                ),
            };
            table.push([
                cohort.source.clone(),
                cohort.cohort_id.clone(),
                cohort.trait_key.clone(),
                cohort.member.to_string(),
                name,
                written,
                state,
                error,
            ]);
        }
    }
    table.to_string()
}

fn dead_letters(answer: DeadLetters) -> String {
    if answer.dead_letters.is_empty() {
        return "no dead letters".to_owned();
    }
    let mut table = Table::new([
        "DESTINATION",
        "IDENTIFIER",
        "SOURCE",
        "COHORT",
        "TRAIT KEY",
        "MEMBER",
        "SINCE",
        "ERROR",
    ]);
    for letter in answer.dead_letters {
        table.push([
            letter.destination,
            letter.identifier,
            letter.source,
            letter.cohort_id,
            letter.trait_key,
            letter.member.to_string(),
            or_nothing(letter.since.as_ref().map(moment)),
            letter.error,
        ]);
    }
    table.to_string()
}

/// `None` where there are none, so that a cohort without a destination still has its row.
fn one_at_least<T>(deliveries: Vec<T>) -> Vec<Option<T>> {
    if deliveries.is_empty() {
        vec![None]
    } else {
        deliveries.into_iter().map(Some).collect()
    }
}

fn session(session: &Session) -> String {
    match (&session.completed_at, session.pages_total) {
        (Some(_), _) => format!("{} complete", session.action),
        (None, Some(total)) => format!("{} {}/{total}", session.action, session.pages_received),
        (None, None) => format!("{} {}", session.action, session.pages_received),
    }
}

fn moment(moment: &Moment) -> String {
    match moment {
        Moment::Text(text) => text.clone(),
        Moment::Millis(millis) => utc(*millis),
    }
}

pub(super) fn or_nothing(value: Option<impl Display>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}
