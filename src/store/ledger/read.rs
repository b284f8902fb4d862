//! What the admin API shows, read beside the writer.

use std::collections::HashMap;
use std::sync::Arc;

use super::cohorts;
use super::inbox::action_from;
use super::state::told_from;
use crate::clock::Millis;
use crate::cohort::{DestinationName, SourceName, Target, Told};
use crate::mixpanel::SetAside;
use crate::store::database::{Connection, OptionalRow, may_exist, params};
use crate::store::{
    CohortStanding, CohortView, DeadLetter, DeliveryState, DeliveryView, FullSyncReason,
    HeldRemovals, MembershipDelivery, MembershipView, RunCounts, SessionView, StoreError,
};

/// Pages not yet taken, and one for each whole session.
pub fn waiting_pages(connection: &Connection) -> Result<u64, StoreError> {
    Ok(connection.query_row(
        "SELECT (SELECT count(*) FROM inbox WHERE seq > coalesce((SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'taken_through'), 0) AND is_refused = 0)
              + (SELECT count(*) FROM session WHERE state = 1 AND is_left_out = 0)",
        (),
        |row| row.get(0),
    )?)
}

/// The rules by which each source identifies people now.
pub type IdentifiedBy = HashMap<String, Arc<str>>;

/// Every cohort.
pub fn cohorts(
    connection: &Connection,
    identified_by: &IdentifiedBy,
) -> Result<Vec<CohortView>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT c.id, c.source, c.cohort_id, c.project_id, c.name, t.key, c.members, c.leavers, c.last_heard_at,
                c.former_name, c.standing, c.identified_by, c.held, c.held_session, c.held_since,
                c.runs_accepted, c.runs_dropped, c.runs_undone, c.first_applied_at, c.kept, c.paused_at IS NOT NULL
         FROM cohort c JOIN trait t ON t.id = c.trait
         ORDER BY c.source, c.project_id, c.cohort_id",
    )?;
    let views = statement
        .query_map((), |row| {
            let source: String = row.get(1)?;
            let was: String = row.get(11)?;
            let standing = match row.get::<i64>(10)? {
                cohorts::FOLLOWED => CohortStanding::Followed,
                cohorts::FORGOTTEN => CohortStanding::Retired,
                _ => CohortStanding::Retiring,
            };
            let now = identified_by.get(&source);
            let needs_full_sync = now
                .filter(|now| {
                    !was.is_empty() && ***now != *was && standing == CohortStanding::Followed
                })
                .map(|now| FullSyncReason::IdentifiedOtherwise {
                    was: was.clone(),
                    now: now.to_string(),
                });
            let held: u64 = row.get(12)?;
            let held_since: Option<Millis> = row.get(14)?;
            let held_session: Option<String> = row.get(13)?;
            let view = CohortView {
                source: SourceName::from(source.as_str()),
                cohort_id: row.get(2)?,
                project_id: row.get(3)?,
                name: row.get(4)?,
                former_name: row.get(9)?,
                standing,
                paused: row.get(20)?,
                trait_key: row.get::<String>(5)?.into(),
                members: row.get(6)?,
                left: row.get(7)?,
                last_heard_at: row.get(8)?,
                session: None,
                needs_full_sync,
                held: held_since.filter(|_| held > 0).map(|since| HeldRemovals {
                    held,
                    session: held_session.unwrap_or_default(),
                    since,
                }),
                set_aside: Vec::new(),
                runs: RunCounts {
                    accepted: row.get(15)?,
                    dropped: row.get(16)?,
                    undone: row.get(17)?,
                },
                destinations: Vec::new(),
            };
            let inside = Inside {
                cohort: row.get(0)?,
                first_applied_at: row.get(18)?,
                wanted: view.members + held + row.get::<u64>(19)?,
            };
            Ok((inside, view))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    views
        .into_iter()
        .map(|(inside, view)| {
            Ok(CohortView {
                session: last_session(connection, inside.cohort)?,
                set_aside: set_aside(connection, inside.cohort)?,
                destinations: deliveries(connection, &inside)?,
                ..view
            })
        })
        .collect()
}

/// What a view of a cohort is made of and does not show.
struct Inside {
    cohort: i64,
    first_applied_at: Option<Millis>,
    /// People whose trait should be `true`.
    wanted: u64,
}

fn set_aside(connection: &Connection, cohort: i64) -> Result<Vec<(SetAside, u64)>, StoreError> {
    let rows = connection
        .prepare_cached("SELECT reason, members FROM set_aside WHERE cohort = ?1 ORDER BY reason")?
        .query_map([cohort], |row| Ok((row.get::<String>(0)?, row.get(1)?)))?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(rows
        .into_iter()
        .filter_map(|(word, members)| Some((SetAside::parse(&word)?, members)))
        .collect())
}

fn last_session(connection: &Connection, cohort: i64) -> Result<Option<SessionView>, StoreError> {
    let session = connection
        .prepare_cached(
            "SELECT session_id, action, total_pages, completed_at, state,
                    (SELECT count(*) FROM session_page WHERE session = session.id AND page <= total_pages)
             FROM session WHERE cohort = ?1 AND is_left_out = 0 ORDER BY heard_at DESC, id DESC LIMIT 1",
        )?
        .query_row([cohort], |row| {
            let total: u32 = row.get(2)?;
            let completed_at: Option<Millis> = row.get(3)?;
            let is_open = row.get::<i64>(4)? == 0;
            Ok(SessionView {
                id: row.get::<Option<String>>(0)?.unwrap_or_default(),
                action: action_from(&row.get::<String>(1)?)?,
                pages_total: total,
                // The pages of a session that is over are dropped; all of them had come.
                pages_received: if completed_at.is_some() && !is_open { total } else { row.get(5)? },
                completed_at: if is_open { None } else { completed_at },
            })
        })
        .optional()?;
    Ok(session)
}

fn deliveries(connection: &Connection, inside: &Inside) -> Result<Vec<DeliveryView>, StoreError> {
    let mut statement = connection.prepare_cached(
        // Its trait and those that were its own before.
        "WITH own AS (SELECT id FROM trait WHERE cohort = ?1)
         SELECT name,
                (SELECT CAST(coalesce(sum(rows), 0) AS BIGINT) FROM backlog WHERE destination = d.id AND trait IN (SELECT id FROM own)),
                (SELECT CAST(coalesce(sum(rows), 0) AS BIGINT) FROM backlog WHERE destination = d.id AND trait IN (SELECT id FROM own) AND wanted = 1),
                (SELECT min(since_seconds) * 1000 FROM backlog WHERE destination = d.id AND trait IN (SELECT id FROM own)),
                (SELECT count(*) FROM dead_letter WHERE destination = d.id AND trait IN (SELECT id FROM own)),
                (SELECT count(*) FROM dead_letter WHERE destination = d.id AND trait IN (SELECT id FROM own) AND wanted = 1),
                r.state = 2, r.since
         FROM route r JOIN destination d ON d.id = r.destination WHERE r.cohort = ?1 AND r.state IN (1, 2) ORDER BY d.id",
    )?;
    let views = statement
        .query_map([inside.cohort], |row| {
            let joining: u64 = row.get(2)?;
            let dead_members: u64 = row.get(5)?;
            let oldest_pending_at: Option<Millis> = row.get(3)?;
            let (is_brought_up, brought_up_at): (bool, Millis) = (row.get(6)?, row.get(7)?);
            Ok(DeliveryView {
                name: DestinationName::from(row.get::<String>(0)?.as_str()),
                written: inside
                    .wanted
                    .saturating_sub(joining)
                    .saturating_sub(dead_members),
                pending: row.get(1)?,
                dead: row.get(4)?,
                oldest_pending_at,
                // The age of what is pending is counted in whole seconds.
                ready: inside.first_applied_at.is_some_and(|applied_at| {
                    let since = applied_at.max(brought_up_at);
                    is_brought_up && oldest_pending_at.is_none_or(|oldest| oldest > since)
                }),
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(views)
}

/// Every cohort known of one person.
pub fn member(
    connection: &Connection,
    identifier: &str,
    settled: impl Fn(&str, bool) -> Target,
) -> Result<Vec<MembershipView>, StoreError> {
    if !may_exist(identifier) {
        return Ok(Vec::new());
    }
    let mut statement = connection.prepare_cached(
        "SELECT c.trait, c.source, c.cohort_id, t.key, max(CASE WHEN m.standing = 1 THEN 1 ELSE 0 END), max(CASE WHEN m.standing > 0 THEN 1 ELSE 0 END), c.id
         FROM cohort c JOIN trait t ON t.id = c.trait JOIN member m ON m.cohort = c.id AND m.identifier = ?1
         GROUP BY c.id, t.key ORDER BY c.source, c.cohort_id",
    )?;
    let memberships = statement
        .query_map([identifier], |row| {
            let view = MembershipView {
                source: SourceName::from(row.get::<String>(1)?.as_str()),
                cohort_id: row.get(2)?,
                trait_key: row.get::<String>(3)?.into(),
                member: row.get(4)?,
                destinations: Vec::new(),
            };
            let of_trait = (row.get::<i64>(0)?, row.get::<i64>(6)?);
            Ok((of_trait, row.get::<bool>(5)?, view))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    memberships
        .into_iter()
        .map(|(of_trait, is_wanted, view)| {
            let destinations = membership_deliveries(connection, of_trait, identifier, |name| {
                settled(name, is_wanted)
            })?;
            Ok(MembershipView {
                destinations,
                ..view
            })
        })
        .collect()
}

fn membership_deliveries(
    connection: &Connection,
    (number, cohort): (i64, i64),
    identifier: &str,
    settled: impl Fn(&str) -> Target,
) -> Result<Vec<MembershipDelivery>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT d.name, p.identifier IS NOT NULL, p.told, p.error, l.error,
                r.state = 1 AND ?2 > coalesce(r.walked_through, '')
         FROM route r JOIN destination d ON d.id = r.destination
         LEFT JOIN pending p ON p.destination IN (d.id, -d.id) AND p.identifier = ?2 AND p.trait = ?1
         LEFT JOIN dead_letter l ON l.destination = d.id AND l.identifier = ?2 AND l.trait = ?1
         WHERE r.cohort = ?3 AND r.state IN (1, 2)
         ORDER BY d.id",
    )?;
    let views = statement
        .query_map(params![number, identifier, cohort], |row| {
            let is_yet_to_come: bool = row.get(5)?;
            let name: String = row.get(0)?;
            let is_pending: bool = row.get(1)?;
            let dead_because: Option<String> = row.get(4)?;
            let told = told_from(row.get(2)?);
            let (state, told) = match (is_pending, &dead_because) {
                // Right already, and only watched for a late write.
                (true, _) if told == Told::Known(settled(&name)) => (DeliveryState::Written, told),
                (true, _) => (DeliveryState::Pending, told),
                (false, Some(_)) => (DeliveryState::Dead, Told::Unknown),
                // The destination is being brought up, and the walk has not come here.
                (false, None) if is_yet_to_come => (DeliveryState::Pending, Told::Unknown),
                (false, None) => (DeliveryState::Written, Told::Known(settled(&name))),
            };
            Ok(MembershipDelivery {
                name: DestinationName::from(name.as_str()),
                written: match told {
                    Told::Known(target) => target.trait_value(),
                    Told::Unknown => None,
                },
                state,
                error: dead_because.or(row.get(3)?),
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(views)
}

/// Dead letters, oldest first.
pub fn dead_letters(connection: &Connection, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT d.name, l.identifier, coalesce(c.source, ''), coalesce(c.cohort_id, ''), t.key, l.wanted = 1, l.error, l.since
         FROM dead_letter l JOIN destination d ON d.id = l.destination JOIN trait t ON t.id = l.trait LEFT JOIN cohort c ON c.id = t.cohort
         ORDER BY l.since, l.identifier LIMIT ?1",
    )?;
    let letters = statement
        .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(DeadLetter {
                destination: DestinationName::from(row.get::<String>(0)?.as_str()),
                identifier: row.get(1)?,
                source: SourceName::from(row.get::<String>(2)?.as_str()),
                cohort_id: row.get(3)?,
                trait_key: Arc::from(row.get::<String>(4)?),
                member: row.get(5)?,
                error: row.get(6)?,
                since: row.get(7)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(letters)
}
