//! What the admin API shows, read beside the writer.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::inbox::action_from;
use super::ledger::told_from;
use crate::cohort::{DestinationName, SourceName, Target, Told};
use crate::roster::Roster;
use crate::store::{
    CohortView, DeadLetter, DeliveryState, DeliveryView, MembershipDelivery, MembershipView,
    SessionRef, SessionView, StoreError,
};

/// The people of one held page.
pub fn page_roster(
    connection: &Connection,
    session: SessionRef,
    page: u32,
) -> Result<Roster, StoreError> {
    let bytes: Vec<u8> = connection
        .prepare_cached(
            "SELECT roster FROM inbox JOIN session_page ON inbox_seq = seq WHERE session = ?1 AND session_page.page = ?2",
        )?
        .query_row(params![session.0, page], |row| row.get(0))?;
    Ok(Roster::from_bytes(bytes)?)
}

/// Pages not yet taken, and one for each whole session.
pub fn waiting_pages(connection: &Connection) -> Result<u64, StoreError> {
    Ok(connection.query_row(
        "SELECT (SELECT count(*) FROM inbox WHERE seq > coalesce((SELECT value FROM meta WHERE key = 'taken_through'), 0))
              + (SELECT count(*) FROM session WHERE state = 1)",
        [],
        |row| row.get(0),
    )?)
}

/// Every cohort.
pub fn cohorts(connection: &Connection) -> Result<Vec<CohortView>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT id, source, cohort_id, project_id, name, trait_key, members, leavers, last_heard_at
         FROM cohort ORDER BY source, project_id, cohort_id",
    )?;
    let views = statement
        .query_map([], |row| {
            let view = CohortView {
                source: SourceName::from(row.get::<_, String>(1)?.as_str()),
                cohort_id: row.get(2)?,
                project_id: row.get(3)?,
                name: row.get(4)?,
                trait_key: row.get::<_, String>(5)?.into(),
                members: row.get(6)?,
                left: row.get(7)?,
                last_heard_at: row.get(8)?,
                session: None,
                destinations: Vec::new(),
            };
            Ok((row.get::<_, i64>(0)?, view))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    views
        .into_iter()
        .map(|(cohort, view)| {
            Ok(CohortView {
                session: last_session(connection, cohort)?,
                destinations: deliveries(connection, cohort, view.members)?,
                ..view
            })
        })
        .collect()
}

fn last_session(connection: &Connection, cohort: i64) -> Result<Option<SessionView>, StoreError> {
    let session = connection
        .prepare_cached(
            "SELECT session_id, action, total_pages, completed_at, state,
                    (SELECT count(*) FROM session_page WHERE session = session.id AND page <= total_pages)
             FROM session WHERE cohort = ?1 ORDER BY heard_at DESC, id DESC LIMIT 1",
        )?
        .query_row([cohort], |row| {
            let total: u32 = row.get(2)?;
            let completed_at: Option<crate::clock::Millis> = row.get(3)?;
            let is_open = row.get::<_, i64>(4)? == 0;
            Ok(SessionView {
                id: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
                action: action_from(1, &row.get::<_, String>(1)?)?,
                pages_total: total,
                // The pages of a session that is over are dropped; all of them had come.
                pages_received: if completed_at.is_some() && !is_open { total } else { row.get(5)? },
                completed_at: if is_open { None } else { completed_at },
            })
        })
        .optional()?;
    Ok(session)
}

fn deliveries(
    connection: &Connection,
    cohort: i64,
    members: u64,
) -> Result<Vec<DeliveryView>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT name,
                (SELECT coalesce(sum(rows), 0) FROM backlog WHERE destination = d.id AND cohort = ?1),
                (SELECT coalesce(sum(rows), 0) FROM backlog WHERE destination = d.id AND cohort = ?1 AND member = 1),
                (SELECT min(since_seconds) * 1000 FROM backlog WHERE destination = d.id AND cohort = ?1),
                (SELECT count(*) FROM dead_letter WHERE destination = d.id AND cohort = ?1),
                (SELECT count(*) FROM dead_letter WHERE destination = d.id AND cohort = ?1 AND member = 1)
         FROM destination d ORDER BY id",
    )?;
    let views = statement
        .query_map([cohort], |row| {
            let joining: u64 = row.get(2)?;
            let dead_members: u64 = row.get(5)?;
            Ok(DeliveryView {
                name: DestinationName::from(row.get::<_, String>(0)?.as_str()),
                written: members.saturating_sub(joining).saturating_sub(dead_members),
                pending: row.get(1)?,
                dead: row.get(4)?,
                oldest_pending_at: row.get(3)?,
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
    let mut statement = connection.prepare_cached(
        "SELECT c.id, c.source, c.cohort_id, c.trait_key, m.member
         FROM cohort c JOIN member m ON m.cohort = c.id AND m.identifier = ?1
         ORDER BY c.source, c.cohort_id",
    )?;
    let memberships = statement
        .query_map([identifier], |row| {
            let view = MembershipView {
                source: SourceName::from(row.get::<_, String>(1)?.as_str()),
                cohort_id: row.get(2)?,
                trait_key: row.get::<_, String>(3)?.into(),
                member: row.get(4)?,
                destinations: Vec::new(),
            };
            Ok((row.get::<_, i64>(0)?, view))
        })?
        .collect::<Result<Vec<_>, _>>()?;
    memberships
        .into_iter()
        .map(|(cohort, view)| {
            let destinations = membership_deliveries(connection, cohort, identifier, |name| {
                settled(name, view.member)
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
    cohort: i64,
    identifier: &str,
    settled: impl Fn(&str) -> Target,
) -> Result<Vec<MembershipDelivery>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT d.name, p.identifier IS NOT NULL, p.told, p.error, l.error
         FROM destination d
         LEFT JOIN pending p ON p.destination = d.id AND p.identifier = ?2 AND p.cohort = ?1
         LEFT JOIN dead_letter l ON l.destination = d.id AND l.identifier = ?2 AND l.cohort = ?1
         ORDER BY d.id",
    )?;
    let views = statement
        .query_map(params![cohort, identifier], |row| {
            let name: String = row.get(0)?;
            let is_pending: bool = row.get(1)?;
            let dead_because: Option<String> = row.get(4)?;
            let told = told_from(row.get(2)?);
            let (state, told) = match (is_pending, &dead_because) {
                // Right already, and only watched for a late write.
                (true, _) if told == Told::Known(settled(&name)) => (DeliveryState::Written, told),
                (true, _) => (DeliveryState::Pending, told),
                (false, Some(_)) => (DeliveryState::Dead, Told::Unknown),
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
        "SELECT d.name, l.identifier, c.source, c.cohort_id, c.trait_key, l.member, l.error, l.since
         FROM dead_letter l JOIN destination d ON d.id = l.destination JOIN cohort c ON c.id = l.cohort
         ORDER BY l.since, l.identifier LIMIT ?1",
    )?;
    let letters = statement
        .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(DeadLetter {
                destination: DestinationName::from(row.get::<_, String>(0)?.as_str()),
                identifier: row.get(1)?,
                source: SourceName::from(row.get::<_, String>(2)?.as_str()),
                cohort_id: row.get(3)?,
                trait_key: Arc::from(row.get::<_, String>(4)?),
                member: row.get(5)?,
                error: row.get(6)?,
                since: row.get(7)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(letters)
}
