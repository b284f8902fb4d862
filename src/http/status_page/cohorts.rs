//! The cohorts: a row each, and below the table what somebody has to decide or to do.

use std::fmt::{self, Display, Formatter};

use super::text::{Age, Text};
use super::{Dead, Mood, Waiting, cell, heading, row_begins, row_ends, table_ends};
use crate::clock::Millis;
use crate::cohort::Action;
use crate::mixpanel::SetAside;
use crate::number::{Number, counted};
use crate::rfc3339;
use crate::status::{
    CohortState, FULL_SYNC_HOW, StatusSnapshot, full_sync_reason, oldest_pending_ms,
};
use crate::store::{CohortView, DeliveryView, RunCounts, SessionView};

/// What is known of every cohort.
pub(super) fn section(f: &mut Formatter<'_>, snapshot: &StatusSnapshot) -> fmt::Result {
    if snapshot.cohorts.is_err() {
        return Ok(());
    }
    let cohorts = snapshot.known_cohorts();
    if cohorts.is_empty() {
        return f.write_str(
            "<h2>Cohorts</h2>\n<p>None was heard of yet. In Mixpanel, sync a cohort to the webhook whose address ends in <code>/webhooks/mixpanel</code>.</p>\n",
        );
    }
    heading(
        f,
        "cohorts",
        "Cohorts",
        &[
            ("Cohort", ""),
            ("State", ""),
            ("Trait key", ""),
            ("Members", "number"),
            ("Written", "number"),
            ("Pending", "number"),
            ("Dead", "number"),
            ("Last heard", "number"),
            ("Session", ""),
        ],
    )?;
    for cohort in cohorts {
        row_begins(f, &CohortName(cohort))?;
        let state = CohortState::from(cohort);
        let paused = if cohort.paused { ", paused" } else { "" };
        let words = format_args!("{state}{paused}");
        cell(f, "State", mood(state).class(), &words)?;
        let key = format_args!("<code>{}</code>", Text(&cohort.trait_key));
        cell(f, "Trait key", "", &key)?;
        cell(f, "Members", "number", &Members(cohort))?;
        let each = |show| EachDelivery {
            deliveries: &cohort.destinations,
            now: snapshot.now,
            show,
        };
        cell(
            f,
            "Written",
            "number",
            &each(|f, delivery, _| Number(delivery.written).fmt(f)),
        )?;
        cell(
            f,
            "Pending",
            "number",
            &each(|f, delivery, now| {
                Waiting(delivery.pending, oldest_pending_ms(delivery, now)).fmt(f)
            }),
        )?;
        cell(
            f,
            "Dead",
            "number",
            &each(|f, delivery, _| Dead(delivery.dead).fmt(f)),
        )?;
        let heard = Age(snapshot.now.saturating_sub(cohort.last_heard_at));
        cell(f, "Last heard", "number", &format_args!("{heard} ago"))?;
        match &cohort.session {
            Some(session) => {
                let runs = TakenBack(cohort.runs);
                cell(
                    f,
                    "Session",
                    "",
                    &format_args!("{}{runs}", Session(session)),
                )?;
            }
            None => cell(f, "Session", "", &"–")?,
        }
        row_ends(f)?;
    }
    table_ends(f)?;
    cohorts.iter().try_for_each(|cohort| decisions(f, cohort))
}

const fn mood(state: CohortState) -> Mood {
    match state {
        CohortState::Ready | CohortState::GoesNowhere | CohortState::Retired => Mood::Good,
        CohortState::Arriving | CohortState::Retiring => Mood::Busy,
        CohortState::NeedsFullSync | CohortState::Held(_) => Mood::Bad,
    }
}

/// What of a cohort waits for somebody.
fn decisions(f: &mut Formatter<'_>, cohort: &CohortView) -> fmt::Result {
    let name = Text(&cohort.name);
    if let Some(held) = cohort.held.as_ref().filter(|held| held.held > 0) {
        let people = counted(held.held, "removal is", "removals are");
        let which = format!(
            "{} {}",
            shell_word(&cohort.source.0),
            shell_word(&cohort.cohort_id)
        );
        writeln!(
            f,
            "<p><strong class=\"bad\">{name}:</strong> {people} held since {}: these people keep the trait until somebody decides. <code>cohort-bridge held-removals approve {which}</code> lets them leave, <code>cohort-bridge held-removals discard {which}</code> keeps them until the next full sync.</p>",
            rfc3339::utc(held.since),
            which = Text(which)
        )?;
    }
    if let Some(reason) = &cohort.needs_full_sync {
        writeln!(
            f,
            "<p><strong class=\"bad\">{name}:</strong> needs a full sync. {} {FULL_SYNC_HOW}</p>",
            Text(full_sync_reason(reason))
        )?;
    }
    Ok(())
}

/// A word that a shell takes as it is, since people paste the commands: an id is anything that
/// Mixpanel sent.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A line of its own under a cell's figure.
fn soft_line(f: &mut Formatter<'_>, line: &dyn Display) -> fmt::Result {
    write!(f, "<br><span class=\"soft\">{line}</span>")
}

struct CohortName<'a>(&'a CohortView);

impl Display for CohortName<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}<br><span class=\"soft\">{}/{}</span>",
            Text(&self.0.name),
            Text(&self.0.source),
            Text(&self.0.cohort_id)
        )?;
        match &self.0.former_name {
            Some(former) => soft_line(f, &format_args!("formerly {}", Text(former))),
            None => Ok(()),
        }
    }
}

/// One figure for each destination; named where there are several.
struct EachDelivery<'a> {
    deliveries: &'a [DeliveryView],
    now: Millis,
    show: fn(&mut Formatter<'_>, &DeliveryView, Millis) -> fmt::Result,
}

impl Display for EachDelivery<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.deliveries {
            [] => f.write_str("–"),
            [only] => (self.show)(f, only, self.now),
            several => {
                for (index, delivery) in several.iter().enumerate() {
                    let line_break = if index == 0 { "" } else { "<br>" };
                    write!(f, "{line_break}{}: ", Text(&delivery.name))?;
                    (self.show)(f, delivery, self.now)?;
                }
                Ok(())
            }
        }
    }
}

struct Session<'a>(&'a SessionView);

impl Display for Session<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let session = self.0;
        let what = match session.action {
            Action::Members => "full sync",
            Action::AddMembers => "joins",
            Action::RemoveMembers => "leaves",
        };
        let (received, total) = (session.pages_received, session.pages_total);
        let pages = counted(u64::from(total), "page", "pages");
        match session.completed_at {
            Some(_) => write!(f, "{what}: done, {pages}"),
            None if received < total => {
                write!(f, "{what}: {received} of {pages}")
            }
            None => write!(f, "{what}: {pages}, being worked in"),
        }
    }
}

/// How many there are, and how many more Mixpanel counts that cannot have the trait.
struct Members<'a>(&'a CohortView);

impl Display for Members<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Number(self.0.members).fmt(f)?;
        for &(reason, members) in &self.0.set_aside {
            let line = format_args!("{} set aside: {}", Number(members), why(reason));
            soft_line(f, &line)?;
        }
        Ok(())
    }
}

const fn why(reason: SetAside) -> &'static str {
    match reason {
        SetAside::Missing => "no identifier",
        SetAside::Blank => "blank identifier",
        SetAside::TooLong => "identifier too long",
        SetAside::Nul => "a NUL in the identifier",
        SetAside::Padded => "white space round the identifier",
        SetAside::Surrogate => "half a character in the identifier",
        SetAside::Anonymous => "anonymous",
    }
}

/// Runs that did not count in the end; nothing where there are none.
struct TakenBack(RunCounts);

impl Display for TakenBack {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.dropped + self.0.undone {
            0 => Ok(()),
            runs => soft_line(
                f,
                &format_args!("{} taken back", counted(runs, "run", "runs")),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::stub_store::{cohort, troubled_cohort};

    fn shown(cohorts: Vec<CohortView>) -> String {
        crate::http::status_page::render(&StatusSnapshot {
            leading: true,
            now: 100_000,
            backlog_pages: 0,
            refusal: None,
            refused_secrets: vec![],
            destinations: vec![],
            cohorts: Ok(cohorts),
        })
    }

    #[test]
    fn a_cohort_in_trouble_says_what_and_what_to_do() {
        let page = shown(vec![troubled_cohort("7")]);
        for text in [
            "class=\"bad\"><span>held 1,204<",
            "1,204 removals are held since 1970-01-01T00:00:30.000Z",
            "<code>cohort-bridge held-removals approve default 7</code>",
            "<code>cohort-bridge held-removals discard default 7</code>",
            "The identifier rules changed from &#39;email&#39; to &#39;$user_id, email&#39;.",
            FULL_SYNC_HOW,
            "formerly Old &lt;b&gt;name<",
            "1,500 set aside: anonymous<",
            "2 set aside: identifier too long<",
            "3 runs taken back<",
        ] {
            assert!(page.contains(text), "{text} is not in\n{page}");
        }
    }

    #[test]
    fn a_cohort_that_no_route_leads_anywhere_says_so() {
        let mut cohort = cohort("7");
        cohort.destinations.clear();
        assert!(shown(vec![cohort]).contains(">goes nowhere<"));
    }

    #[test]
    fn a_cohort_without_trouble_is_quiet() {
        let page = shown(vec![cohort("7")]);
        for text in ["held", "formerly", "set aside", "taken back", "full sync."] {
            assert!(!page.contains(text), "{text} is in\n{page}");
        }
    }

    #[test]
    fn a_pasted_command_runs_nothing_else() {
        for (id, word) in [
            ("7", "7"),
            ("a-b_c.d", "a-b_c.d"),
            ("", "''"),
            ("7; rm x", "'7; rm x'"),
            ("$(x)'y", r"'$(x)'\''y'"),
        ] {
            assert_eq!(shell_word(id), word);
        }
    }

    #[test]
    fn a_session_counts_its_pages_as_people_do() {
        let words = |received, total, completed_at| {
            let mut session = cohort("7").session.unwrap();
            session.pages_received = received;
            session.pages_total = total;
            session.completed_at = completed_at;
            Session(&session).to_string()
        };
        assert_eq!(words(1, 3, None), "full sync: 1 of 3 pages");
        assert_eq!(words(3, 3, None), "full sync: 3 pages, being worked in");
        assert_eq!(words(1, 1, Some(0)), "full sync: done, 1 page");
    }
}
