//! The status page: one HTML document, rendered here, for the person who set the sync up.
//!
//! It shows cohorts and destinations, never persons. Whatever came from outside goes through
//! `Text`, which escapes it.

use std::fmt::{self, Display, Formatter, Write};

use crate::calls::CallsView;
use crate::clock::Millis;
use crate::number::{Number, counted};
use crate::status::{
    CohortState, DestinationState, DestinationStatus, Outstanding, RefusedSecret, StatusSnapshot,
};
use crate::store::ResyncView;

mod cohorts;
mod text;

use text::{Age, Text};

/// No scripts, no requests to anywhere: even a missed escape could do nothing.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const HEAD: &str = include_str!("status_page/head.html");

/// The page as it is at the snapshot's moment.
pub fn render(snapshot: &StatusSnapshot) -> String {
    let page = Page(snapshot);
    format!("{HEAD}{page}")
}

struct Page<'a>(&'a StatusSnapshot);

impl Display for Page<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let snapshot = self.0;
        let overall = Overall::of(snapshot);
        writeln!(
            f,
            "<p class=\"overall {}\" role=\"status\"><strong>{}</strong> {}</p>",
            overall.mood.class(),
            overall.mood.word(),
            Text(&overall.sentence)
        )?;
        refused_secrets(f, &snapshot.refused_secrets)?;
        destinations(f, snapshot)?;
        cohorts::section(f, snapshot)?;
        writeln!(
            f,
            "</main>\n<footer class=\"soft\"><p>Version {} · {} · this page renews itself every 5 seconds.</p></footer>\n</body>\n</html>",
            env!("CARGO_PKG_VERSION"),
            crate::rfc3339::utc(snapshot.now)
        )
    }
}

/// How worried to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Good,
    Busy,
    Bad,
}

impl Mood {
    const fn class(self) -> &'static str {
        match self {
            Mood::Good => "good",
            Mood::Busy => "busy",
            Mood::Bad => "bad",
        }
    }

    /// Colour alone tells nothing to who does not see it.
    const fn word(self) -> &'static str {
        match self {
            Mood::Good => "All well.",
            Mood::Busy => "Under way.",
            Mood::Bad => "Needs attention.",
        }
    }
}

/// The line at the top: the worst that is true.
struct Overall {
    mood: Mood,
    sentence: String,
}

impl Overall {
    fn of(snapshot: &StatusSnapshot) -> Self {
        let bad = |sentence| Overall {
            mood: Mood::Bad,
            sentence,
        };
        let busy = |sentence| Overall {
            mood: Mood::Busy,
            sentence,
        };
        if let Err(error) = &snapshot.cohorts {
            return bad(format!("The ledger cannot be read: {error}."));
        }
        if let Some(refusal) = snapshot.refusal {
            return bad(format!(
                "Pages from Mixpanel are not taken in: {refusal}. Mixpanel will send them again."
            ));
        }
        for destination in &snapshot.destinations {
            if let DestinationState::Halted { reason } = &destination.state {
                return bad(format!(
                    "Nothing is written to {}: {reason}. Changes wait and nothing is lost.",
                    destination.name
                ));
            }
        }
        if let Some(refused) = snapshot.refused_secrets.first() {
            return bad(format!(
                "{} holds no secret that can be used, so the one before is still in force: {}.",
                refused.file, refused.reason
            ));
        }
        let total = |part: fn(Outstanding) -> u64| -> u64 {
            let destinations = snapshot.destinations.iter();
            destinations
                .map(|destination| part(snapshot.outstanding(&destination.name)))
                .sum()
        };
        let (dead, pending) = (total(|o| o.dead), total(|o| o.pending));
        if dead > 0 {
            return bad(format!(
                "{} cannot be written. 'cohort-bridge dead-letters list' says why.",
                counted(dead, "trait", "traits")
            ));
        }
        let states = snapshot.known_cohorts().iter().map(CohortState::from);
        if let Some(decision) = Overall::awaited(states) {
            return bad(decision);
        }
        if !snapshot.leading {
            return busy(
                "Standby: another replica folds and delivers, and its page says how that goes."
                    .to_owned(),
            );
        }
        for destination in &snapshot.destinations {
            if let DestinationState::BackingOff { reason } = &destination.state {
                return busy(format!(
                    "Calls to {} fail and are tried again: {reason}.",
                    destination.name
                ));
            }
        }
        for destination in &snapshot.destinations {
            if destination.dry_run {
                let planned = Planned(destination.planned_calls);
                return busy(format!(
                    "Nothing is written to {}, since this is a dry run: {planned}. 'cohort-bridge plan' says for which cohorts.",
                    destination.name
                ));
            }
        }
        let paused = total(|o| o.paused);
        if pending > paused {
            return busy(format!(
                "{} on the way to Flagsmith.",
                counted(pending - paused, "trait is", "traits are")
            ));
        }
        if paused > 0 {
            return busy(format!(
                "{} until what is paused is resumed; see below.",
                counted(paused, "trait waits", "traits wait")
            ));
        }
        if snapshot.backlog_pages > 0 {
            return busy(format!(
                "{} from Mixpanel to be worked in.",
                counted(snapshot.backlog_pages, "page waits", "pages wait")
            ));
        }
        Overall {
            mood: Mood::Good,
            sentence: if snapshot.known_cohorts().is_empty() {
                "Waiting for Mixpanel's first webhook.".to_owned()
            } else {
                "Flagsmith holds everything that Mixpanel sent.".to_owned()
            },
        }
    }
}

impl Overall {
    /// What somebody has to do about a cohort before Flagsmith can hold what Mixpanel has.
    fn awaited(states: impl Iterator<Item = CohortState>) -> Option<String> {
        let (mut held, mut unsure) = (0, 0);
        for state in states {
            match state {
                CohortState::Held(people) => held += people,
                CohortState::NeedsFullSync => unsure += 1,
                CohortState::Ready
                | CohortState::GoesNowhere
                | CohortState::Arriving
                | CohortState::Retiring
                | CohortState::Retired => {}
            }
        }
        if held > 0 {
            let removals = counted(held, "removal waits", "removals wait");
            Some(format!("{removals} for a decision; see below."))
        } else if unsure > 0 {
            let cohorts = counted(unsure, "cohort needs", "cohorts need");
            Some(format!("{cohorts} a full sync; see below."))
        } else {
            None
        }
    }
}

/// Nothing where there is none: the page is for people who seldom look at it.
fn refused_secrets(f: &mut Formatter<'_>, refused: &[RefusedSecret]) -> fmt::Result {
    if refused.is_empty() {
        return Ok(());
    }
    let columns = [
        ("File", ""),
        ("Setting", ""),
        ("Trouble", ""),
        ("Since", ""),
    ];
    heading(f, "secrets", "Refused secrets", &columns)?;
    for refused in refused {
        row_begins(f, &Text(&refused.file))?;
        cell(f, "Setting", "", &Text(&refused.setting))?;
        cell(f, "Trouble", Mood::Bad.class(), &Text(&refused.reason))?;
        cell(f, "Since", "", &crate::rfc3339::utc(refused.since))?;
        row_ends(f)?;
    }
    table_ends(f)
}

fn destinations(f: &mut Formatter<'_>, snapshot: &StatusSnapshot) -> fmt::Result {
    heading(
        f,
        "destinations",
        "Destinations",
        &[
            ("Flagsmith environment", ""),
            ("State", ""),
            ("Pending", "number"),
            ("Dead", "number"),
            ("Calls in flight", "number"),
            ("Calls this month", "number"),
        ],
    )?;
    for destination in &snapshot.destinations {
        let outstanding = snapshot.outstanding(&destination.name);
        row_begins(f, &Text(&destination.name))?;
        state_cell(f, destination)?;
        cell(
            f,
            "Pending",
            "number",
            &format_args!(
                "{}{}",
                Waiting(outstanding.pending, outstanding.oldest_pending_ms),
                WrittenAgain(destination.resync.as_ref())
            ),
        )?;
        cell(f, "Dead", "number", &Dead(outstanding.dead))?;
        cell(f, "Calls in flight", "number", &InFlight(destination))?;
        let month = Month(destination.calls, snapshot.forecast(destination));
        cell(f, "Calls this month", "number", &month)?;
        row_ends(f)?;
    }
    table_ends(f)
}

/// How far it is with what is written again.
struct WrittenAgain<'a>(Option<&'a ResyncView>);

impl Display for WrittenAgain<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(view) = self.0 else {
            return Ok(());
        };
        f.write_str(" <span class=\"soft\">")?;
        match &view.cohort {
            Some((_, cohort_id)) => write!(f, "cohort {}", Text(cohort_id))?,
            None => f.write_str("everything")?,
        }
        let (done, of) = (Number(view.done), Number(view.of));
        write!(f, " is written again: {done} of {of}")?;
        if view.waiting > 0 {
            let orders = counted(view.waiting, "order waits", "orders wait");
            write!(f, ", {orders} behind it")?;
        }
        f.write_str("</span>")
    }
}

fn state_cell(f: &mut Formatter<'_>, destination: &DestinationStatus) -> fmt::Result {
    let (mood, words) = match &destination.state {
        _ if destination.dry_run => {
            let planned = Planned(destination.planned_calls);
            let words = format_args!("dry run: {planned}");
            return cell(f, "State", Mood::Busy.class(), &words);
        }
        DestinationState::Ok if destination.paused => (Mood::Busy, "paused"),
        DestinationState::Standby if destination.paused => (Mood::Busy, "paused"),
        DestinationState::BackingOff { .. } if destination.paused => (Mood::Busy, "paused"),
        DestinationState::Halted { .. } if destination.paused => (Mood::Bad, "paused, and halted"),
        DestinationState::Ok => (Mood::Good, "delivering"),
        DestinationState::BackingOff { .. } => (Mood::Busy, "trying again"),
        DestinationState::Halted { .. } => (Mood::Bad, "halted"),
        DestinationState::Standby => (Mood::Busy, "standby"),
    };
    let said = destination.state.reason();
    match (said, destination.warning.as_deref()) {
        (None, None) => cell(f, "State", mood.class(), &words),
        (Some(said), None) => {
            let said = Text(said);
            cell(f, "State", mood.class(), &format_args!("{words}: {said}"))
        }
        (None, Some(warning)) => {
            let warning = Text(warning);
            let words = format_args!("{words}. Warning: {warning}");
            cell(f, "State", Mood::Busy.class(), &words)
        }
        (Some(said), Some(warning)) => {
            let (said, warning) = (Text(said), Text(warning));
            let words = format_args!("{words}: {said}. Warning: {warning}");
            cell(f, "State", mood.class(), &words)
        }
    }
}

// Explicit roles: narrow screens show rows as blocks, and a browser then no longer tells a screen
// reader that they are a table.
fn heading(f: &mut Formatter<'_>, id: &str, title: &str, columns: &[(&str, &str)]) -> fmt::Result {
    write!(
        f,
        "<h2 id=\"{id}\">{title}</h2>\n<table role=\"table\" aria-labelledby=\"{id}\">\n<thead role=\"rowgroup\"><tr role=\"row\">"
    )?;
    for (label, class) in columns {
        write!(
            f,
            "<th role=\"columnheader\" scope=\"col\" class=\"{class}\">{label}</th>"
        )?;
    }
    f.write_str("</tr></thead>\n<tbody role=\"rowgroup\">\n")
}

fn row_begins(f: &mut Formatter<'_>, name: &dyn Display) -> fmt::Result {
    write!(
        f,
        "<tr role=\"row\"><th role=\"rowheader\" scope=\"row\">{name}</th>"
    )
}

fn cell(f: &mut Formatter<'_>, label: &str, class: &str, content: &dyn Display) -> fmt::Result {
    write!(
        f,
        "<td role=\"cell\" data-label=\"{label}\" class=\"{class}\"><span>{content}</span></td>"
    )
}

fn row_ends(f: &mut Formatter<'_>) -> fmt::Result {
    f.write_str("</tr>\n")
}

fn table_ends(f: &mut Formatter<'_>) -> fmt::Result {
    f.write_str("</tbody></table>\n")
}

/// What a dry run found, where it found anything yet.
struct Planned(Option<u64>);

impl Display for Planned {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(calls) => {
                let calls = counted(calls, "call", "calls");
                write!(f, "{calls} would be made")
            }
            None => f.write_str("calls are not counted yet"),
        }
    }
}

struct Waiting(u64, Option<Millis>);

impl Display for Waiting {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Number(self.0).fmt(f)?;
        match self.1 {
            Some(age) if self.0 > 0 => {
                write!(f, " <span class=\"soft\">oldest {}</span>", Age(age))
            }
            _ => Ok(()),
        }
    }
}

struct InFlight<'a>(&'a DestinationStatus);

impl Display for InFlight<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let number = |calls| Number(u64::try_from(calls).unwrap_or(u64::MAX));
        let (calls, limit) = (number(self.0.in_flight), number(self.0.in_flight_limit));
        write!(f, "{calls} <span class=\"soft\">of {limit}</span>")
    }
}

/// The calls of a month, and how many they will be.
struct Month(Option<CallsView>, Option<u64>);

impl Display for Month {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(calls) = self.0 else {
            return f.write_char('–');
        };
        Number(calls.made).fmt(f)?;
        if let Some(budget) = calls.budget {
            write!(f, " of {}", Number(budget))?;
        }
        let Some(forecast) = self.1 else {
            return Ok(());
        };
        let class = match calls.budget {
            Some(budget) if forecast > budget => "bad",
            _ => "soft",
        };
        write!(
            f,
            " <span class=\"{class}\">forecast {}</span>",
            Number(forecast)
        )
    }
}

struct Dead(u64);

impl Display for Dead {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_char('0'),
            dead => write!(f, "<strong class=\"bad\">{}</strong>", Number(dead)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::stub_store::{cohort, troubled_cohort};
    use crate::status::Refusal;
    use crate::store::{CohortView, FullSyncReason};

    fn settled(id: &str) -> CohortView {
        let mut cohort = cohort(id);
        for delivery in &mut cohort.destinations {
            (delivery.pending, delivery.dead) = (0, 0);
            delivery.oldest_pending_at = None;
        }
        cohort
    }

    fn snapshot(cohorts: Vec<CohortView>, state: DestinationState) -> StatusSnapshot {
        StatusSnapshot {
            now: 100_000,
            leading: true,
            backlog_pages: 0,
            refusal: None,
            refused_secrets: vec![],
            destinations: vec![DestinationStatus {
                name: "production".into(),
                warning: None,
                state,
                in_flight: 1_234,
                in_flight_limit: 2_048,
                calls: Some(CallsView {
                    month: crate::month::Month::of(100_000),
                    made: 9_876,
                    budget: Some(10_000),
                    since: 0,
                }),
                resync: None,
                canary: Default::default(),
                paused: false,
                dry_run: false,
                planned_calls: None,
            }],
            cohorts: Ok(cohorts),
        }
    }

    fn halted(reason: &str) -> DestinationState {
        DestinationState::Halted {
            reason: reason.into(),
        }
    }

    #[test]
    fn a_secret_that_is_refused_is_shown_and_is_no_small_matter() {
        let mut snapshot = snapshot(vec![settled("7")], DestinationState::Ok);
        let page = render(&snapshot);
        assert!(page.contains("All well.") && !page.contains("Refused secrets"));
        snapshot.refused_secrets.push(RefusedSecret {
            setting: "basic_auth_file of [[sources]]".into(),
            file: "/run/<eu>".into(),
            reason: "pair 1 has no colon".into(),
            since: 0,
        });
        let page = render(&snapshot);
        assert!(page.contains("Needs attention."), "{page}");
        for words in [
            "/run/&lt;eu&gt; holds no secret that can be used, so the one before is still in force: pair 1 has no colon.",
            "<h2 id=\"secrets\">Refused secrets</h2>",
            "basic_auth_file of [[sources]]",
            "1970-01-01T00:00:00",
        ] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }

    #[test]
    fn what_is_written_again_is_shown() {
        let mut snapshot = snapshot(vec![settled("7")], DestinationState::Ok);
        assert!(!render(&snapshot).contains("written again"));
        let mut view = ResyncView {
            destination: "production".into(),
            cohort: Some(("default".into(), "7<b>".into())),
            max_calls_per_second: None,
            done: 1_200,
            of: 30_000,
            waiting: 2,
        };
        snapshot.destinations[0].resync = Some(view.clone());
        let page = render(&snapshot);
        assert!(
            page.contains(
                "cohort 7&lt;b&gt; is written again: 1,200 of 30,000, 2 orders wait behind it<"
            ),
            "{page}"
        );
        (view.cohort, view.waiting) = (None, 0);
        snapshot.destinations[0].resync = Some(view);
        let page = render(&snapshot);
        assert!(page.contains("everything is written again: 1,200 of 30,000<"));
    }

    #[test]
    fn the_worst_is_what_the_top_line_says() {
        let mood = |snapshot: &StatusSnapshot| Overall::of(snapshot).mood;
        let ok = DestinationState::Ok;
        let backing_off = DestinationState::BackingOff {
            reason: "503".into(),
        };
        let mut pending = settled("7");
        pending.destinations[0].pending = 1;

        assert_eq!(mood(&snapshot(vec![], ok.clone())), Mood::Good);
        assert_eq!(mood(&snapshot(vec![settled("7")], ok.clone())), Mood::Good);
        assert_eq!(mood(&snapshot(vec![pending], ok.clone())), Mood::Busy);
        assert_eq!(mood(&snapshot(vec![settled("7")], backing_off)), Mood::Busy);
        assert_eq!(mood(&snapshot(vec![cohort("7")], ok.clone())), Mood::Bad);
        assert_eq!(
            mood(&snapshot(vec![settled("7")], halted("key"))),
            Mood::Bad
        );
        let waiting = StatusSnapshot {
            backlog_pages: 1,
            ..snapshot(vec![settled("7")], ok.clone())
        };
        assert_eq!(mood(&waiting), Mood::Busy);
        let refusing = StatusSnapshot {
            refusal: Some(Refusal::ShuttingDown),
            ..snapshot(vec![settled("7")], ok.clone())
        };
        assert_eq!(mood(&refusing), Mood::Bad);
        let mut held = settled("7");
        held.held = troubled_cohort("7").held;
        let held = snapshot(vec![held], ok.clone());
        assert_eq!(mood(&held), Mood::Bad);
        assert!(Overall::of(&held).sentence.contains("1,204 removals wait"));
        let mut unsure = settled("7");
        unsure.needs_full_sync = troubled_cohort("7").needs_full_sync;
        let unsure = snapshot(vec![unsure], ok.clone());
        assert_eq!(mood(&unsure), Mood::Bad);
        assert!(Overall::of(&unsure).sentence.contains("1 cohort needs"));
        let blind = StatusSnapshot {
            cohorts: Err("locked".into()),
            ..snapshot(vec![], ok)
        };
        assert_eq!(mood(&blind), Mood::Bad);
    }

    #[test]
    fn a_cohort_shows_all_that_its_owner_asks_for() {
        let page = render(&snapshot(vec![cohort("7")], DestinationState::Ok));
        for text in [
            "Trial power users 7",
            "default/7",
            "<code>mixpanel_cohort_7</code>",
            "1,234,567",
            "1,234 <span class=\"soft\">of 2,048</span>",
            // Thirty more days like the first, and what is pending.
            "9,876 of 10,000 <span class=\"bad\">forecast ",
            "oldest 1 min",
            "10 s ago",
            "full sync: 2 of 3 pages",
            ">delivering<",
            ">arriving<",
        ] {
            assert!(page.contains(text), "{text} is not in\n{page}");
        }
    }

    #[test]
    fn what_is_paused_is_no_trouble_and_is_seen() {
        let mut waits = cohort("7");
        waits.destinations[0].dead = 0;
        waits.paused = true;
        let of_cohort = snapshot(vec![waits.clone()], DestinationState::Ok);
        let overall = Overall::of(&of_cohort);
        assert_eq!(overall.mood, Mood::Busy);
        assert!(
            overall.sentence.starts_with("5 traits wait"),
            "{}",
            overall.sentence
        );
        assert!(render(&of_cohort).contains(">arriving, paused<"));
        assert_eq!(
            of_cohort
                .outstanding(&"production".into())
                .oldest_pending_ms,
            None
        );

        waits.paused = false;
        let mut of_destination = snapshot(vec![waits], DestinationState::Ok);
        let oldest = |snapshot: &StatusSnapshot| {
            snapshot.outstanding(&"production".into()).oldest_pending_ms
        };
        assert_eq!(oldest(&of_destination), Some(60_000));
        of_destination.destinations[0].paused = true;
        assert_eq!(oldest(&of_destination), None);
        assert!(
            Overall::of(&of_destination)
                .sentence
                .starts_with("5 traits wait")
        );
        assert!(render(&of_destination).contains(">paused<"));
        of_destination.destinations[0].state = halted("key");
        assert!(render(&of_destination).contains("paused, and halted: key"));
    }

    #[test]
    fn a_dry_run_says_what_it_found() {
        let mut dry = snapshot(vec![settled("7")], DestinationState::Ok);
        dry.destinations[0].dry_run = true;
        assert!(render(&dry).contains("dry run: calls are not counted yet"));
        dry.destinations[0].planned_calls = Some(1_500);
        assert!(render(&dry).contains("dry run: 1,500 calls would be made"));
        let overall = Overall::of(&dry);
        assert_eq!(overall.mood, Mood::Busy);
        assert!(overall.sentence.contains("cohort-bridge plan"));
    }

    #[test]
    fn a_standby_says_that_another_replica_knows() {
        let mut standby = snapshot(vec![settled("7")], halted("the key was refused"));
        standby.leading = false;
        let there = standby.destinations.pop().unwrap();
        standby.destinations.push(there.on_standby());
        let page = render(&standby);
        assert!(page.contains("standby: another replica folds and delivers"));
        assert!(!page.contains("the key was refused") && !page.contains("9,876"));
        assert_eq!(Overall::of(&standby).mood, Mood::Busy);
        // What the ledger knows is no less urgent here.
        standby.cohorts = Ok(vec![troubled_cohort("7")]);
        assert_eq!(Overall::of(&standby).mood, Mood::Bad);
    }

    #[test]
    fn a_halted_destination_says_why() {
        let page = render(&snapshot(vec![], halted("the key was refused")));
        assert!(page.contains("halted: the key was refused"));
    }

    #[test]
    fn several_destinations_are_named_in_each_figure() {
        let mut twice = cohort("7");
        let mut staging = twice.destinations[0].clone();
        staging.name = "staging".into();
        twice.destinations.push(staging);
        let page = render(&snapshot(vec![twice], DestinationState::Ok));
        assert!(page.contains("production: 90<br>staging: 90"));
    }

    #[test]
    fn an_empty_ledger_says_what_to_do() {
        let page = render(&snapshot(vec![], DestinationState::Ok));
        assert!(page.contains("/webhooks/mixpanel"));
    }

    proptest! {
        #[test]
        fn nothing_from_outside_becomes_markup(text in r#"[<>&"'a-z ]{0,20}"#) {
            let outsider = |tag: &str| format!("<{tag}>{text}");
            let mut named = troubled_cohort("7");
            named.name = outsider("script");
            named.cohort_id = outsider("i");
            named.trait_key = outsider("u").into();
            named.former_name = Some(outsider("b"));
            named.needs_full_sync = Some(FullSyncReason::IdentifiedOtherwise {
                was: outsider("p"),
                now: outsider("q"),
            });
            named.held.as_mut().unwrap().session = outsider("s");
            let outside = render(&snapshot(vec![named], halted(&format!("<img {text}"))));
            let inside = render(&snapshot(vec![troubled_cohort("7")], halted("")));
            let tags = |page: &str| page.matches('<').count();
            prop_assert_eq!(tags(&outside), tags(&inside));
        }
    }
}
