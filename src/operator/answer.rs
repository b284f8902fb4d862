//! The admin API's answers, made readable. Fields that a newer service may leave out are optional.

use std::fmt::Display;

use serde::Deserialize;

use super::Action;
use super::table::{Table, printable, utc};

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
struct Delivery {
    name: String,
    written: u64,
    pending: u64,
    dead: u64,
    oldest_pending_seconds: Option<f64>,
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
        Action::Forget { .. } => {
            let Forgotten { forgotten } = serde_json::from_str(answer)?;
            format!("{forgotten} forgotten")
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
        "LAST HEARD",
        "SESSION",
        "DESTINATION",
        "WRITTEN",
        "PENDING",
        "DEAD",
        "OLDEST PENDING",
    ]);
    for cohort in answer.cohorts {
        let about = [
            cohort.source,
            cohort.cohort_id,
            or_nothing(cohort.name),
            cohort.trait_key,
            cohort.members.to_string(),
            or_nothing(cohort.last_heard_at.map(moment)),
            or_nothing(cohort.session.map(session)),
        ];
        for delivery in one_at_least(cohort.destinations) {
            let delivered = match delivery {
                Some(delivery) => [
                    delivery.name,
                    delivery.written.to_string(),
                    delivery.pending.to_string(),
                    delivery.dead.to_string(),
                    or_nothing(delivery.oldest_pending_seconds.map(|s| format!("{s:.0}s"))),
                ],
                None => [const { String::new() }; 5].map(|_| NOTHING.to_owned()),
            };
            let [a, b, c, d, e, f, g] = about.clone();
            let [h, i, j, k, l] = delivered;
            table.push([a, b, c, d, e, f, g, h, i, j, k, l]);
        }
    }
    table.to_string()
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
            or_nothing(letter.since.map(moment)),
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

fn session(session: Session) -> String {
    match (session.completed_at, session.pages_total) {
        (Some(_), _) => format!("{} complete", session.action),
        (None, Some(total)) => format!("{} {}/{total}", session.action, session.pages_received),
        (None, None) => format!("{} {}", session.action, session.pages_received),
    }
}

fn moment(moment: Moment) -> String {
    match moment {
        Moment::Text(text) => text,
        Moment::Millis(millis) => utc(millis),
    }
}

fn or_nothing(value: Option<impl Display>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}
