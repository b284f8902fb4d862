//! The plan as tables: the destinations, and below them what each cohort would take alone.

use serde::Deserialize;

use super::answer::or_nothing;
use super::table::Table;
use crate::number::{Number, counted};

#[derive(Deserialize)]
pub(super) struct Plan {
    waiting_pages: u64,
    complete: bool,
    destinations: Vec<Planned>,
}

#[derive(Deserialize)]
struct Planned {
    name: String,
    kind: String,
    dry_run: bool,
    paused: bool,
    identities: u64,
    traits: u64,
    calls: u64,
    seconds: Option<u64>,
    budget: Option<Budget>,
    cohorts: Vec<PlannedCohort>,
}

#[derive(Deserialize)]
struct Budget {
    month: String,
    left: u64,
    enough: bool,
}

#[derive(Deserialize)]
struct PlannedCohort {
    source: String,
    cohort_id: String,
    name: String,
    paused: bool,
    traits: u64,
    calls_alone: u64,
}

/// The plan, for people.
pub(super) fn shown(plan: Plan) -> String {
    let mut table = Table::new([
        "DESTINATION",
        "KIND",
        "DELIVERY",
        "IDENTITIES",
        "TRAITS",
        "CALLS",
        "AT LEAST",
        "LEFT OF THE BUDGET",
    ]);
    for there in &plan.destinations {
        table.push([
            there.name.clone(),
            there.kind.clone(),
            delivery(there).to_owned(),
            Number(there.identities).to_string(),
            Number(there.traits).to_string(),
            Number(there.calls).to_string(),
            or_nothing(there.seconds.map(duration)),
            or_nothing(there.budget.as_ref().map(left)),
        ]);
    }
    let mut text = table.to_string();
    if plan
        .destinations
        .iter()
        .any(|there| !there.cohorts.is_empty())
    {
        text.push('\n');
        text.push_str(&cohorts(&plan.destinations));
    }
    if plan.waiting_pages > 0 {
        let pages = counted(plan.waiting_pages, "page waits", "pages wait");
        text.push_str(&format!(
            "\n{pages} to be folded: the plan is not complete yet\n"
        ));
    } else if !plan.complete {
        text.push_str(
            "\nchanges of pauses, routes or orders are under way: the plan is not complete yet\n",
        );
    }
    text
}

fn cohorts(destinations: &[Planned]) -> String {
    let mut table = Table::new([
        "SOURCE",
        "COHORT",
        "NAME",
        "DESTINATION",
        "TRAITS",
        "CALLS ALONE",
        "",
    ]);
    for there in destinations {
        for cohort in &there.cohorts {
            table.push([
                cohort.source.clone(),
                cohort.cohort_id.clone(),
                cohort.name.clone(),
                there.name.clone(),
                Number(cohort.traits).to_string(),
                Number(cohort.calls_alone).to_string(),
                if cohort.paused { "paused" } else { "" }.to_owned(),
            ]);
        }
    }
    table.to_string()
}

fn delivery(there: &Planned) -> &'static str {
    match (there.dry_run, there.paused) {
        (true, false) => "dry run",
        (true, true) => "dry run, paused",
        (false, true) => "paused",
        (false, false) => "on",
    }
}

fn left(budget: &Budget) -> String {
    let enough = if budget.enough {
        "enough"
    } else {
        "NOT ENOUGH"
    };
    format!("{} in {}: {enough}", Number(budget.left), budget.month)
}

/// Whole units, the largest two that there are.
fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(more: &str) -> String {
        let answer = format!(
            r#"{{{more},"destinations":[{{"name":"production","kind":"sdk","dry_run":true,
            "paused":false,"identities":1500,"traits":2000,"calls":1500,"seconds":3661,
            "budget":{{"month":"2026-11","left":1200,"enough":false}},"cohorts":[
            {{"source":"eu","cohort_id":"7","name":"Seven","paused":true,"traits":1200,"calls_alone":1200}}]}},
            {{"name":"staging","kind":"core-bulk","dry_run":false,"paused":true,"identities":0,
            "traits":0,"calls":0,"seconds":null,"budget":null,"cohorts":[]}}]}}"#
        );
        shown(serde_json::from_str(&answer).unwrap())
    }

    fn cells(line: &str) -> Vec<&str> {
        let cells = line.split("  ").map(str::trim);
        cells.filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn a_plan_is_a_row_for_each_destination_and_one_for_each_cohort() {
        let text = plan(r#""waiting_pages":0,"complete":true"#);
        let lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 5, "{text}");
        let production = [
            "production",
            "sdk",
            "dry run",
            "1,500",
            "2,000",
            "1,500",
            "1h 1m",
            "1,200 in 2026-11: NOT ENOUGH",
        ];
        assert_eq!(cells(lines[1]), production);
        let staging = ["staging", "core-bulk", "paused", "0", "0", "0", "-", "-"];
        assert_eq!(cells(lines[2]), staging);
        let seven = ["eu", "7", "Seven", "production", "1,200", "1,200", "paused"];
        assert_eq!(cells(lines[4]), seven);
    }

    #[test]
    fn a_plan_that_is_not_complete_says_so() {
        assert!(plan(r#""waiting_pages":3,"complete":false"#).contains("3 pages wait"));
        assert!(plan(r#""waiting_pages":0,"complete":false"#).contains("not complete"));
    }

    #[test]
    fn times_are_told_in_their_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3_600, "1h 0m"),
            (90_000, "1d 1h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
