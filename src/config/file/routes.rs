//! `[[routes]]`: which cohorts go to which destinations.

use toml::Spanned;

use super::table::{Faults, Table, once};
use super::{id, one_of};
use crate::cohort::SourceName;
use crate::config::reader::Faulted;
use crate::route::{NamePattern, Route, Which, never_reached};

/// Reads all of them; a route that no cohort comes to is a fault, since it surely was meant
/// otherwise.
pub(super) fn read_routes(
    tables: Vec<Table<'_>>,
    sources: &[&str],
    destinations: &[&str],
    faults: &mut Faults<'_>,
) -> Vec<Route> {
    let mut routes = Vec::new();
    let mut beginnings = Vec::new();
    let mut are_all_read = true;
    for mut table in tables {
        let at = table.at;
        let route = read_route(&mut table, sources, destinations, faults);
        table.end(faults);
        match route {
            Ok(route) => {
                routes.push(route);
                beginnings.push(at);
            }
            Err(Faulted) => are_all_read = false,
        }
    }
    if are_all_read {
        let sources: Vec<SourceName> = sources.iter().map(|source| (*source).into()).collect();
        for (place, takers) in never_reached(&routes, &sources) {
            let lines = takers
                .iter()
                .map(|taker| faults.line(beginnings[*taker]).to_string())
                .collect::<Vec<_>>()
                .join(" and ");
            let message = format!(
                "no cohort comes to this route: the one on line {lines} takes all of its own; put \
                 this one before it, or take it away"
            );
            faults.note(beginnings[place], message);
        }
    }
    routes
}

fn read_route(
    table: &mut Table<'_>,
    sources: &[&str],
    destinations: &[&str],
    faults: &mut Faults<'_>,
) -> Result<Route, Faulted> {
    let source = table.optional("source", faults, one_of(sources, "source"));
    let project_id = table.optional("project", faults, id);
    let ids = read_list(table, "cohort_ids", faults, id);
    let names = read_list(table, "cohort_names", faults, |text| match text {
        "" => Err("write a name, in which * stands for any characters and ? for one".to_owned()),
        text => Ok(text.to_owned()),
    });
    let at = table.at;
    let to = read_list(table, "destinations", faults, |name| {
        one_of::<String>(destinations, "destination")(name)
    });
    let to = match to? {
        Some(to) => to,
        None => {
            faults.note(
                at,
                "[[routes]] needs destinations, [] for nowhere".to_owned(),
            );
            return Err(Faulted);
        }
    };
    let (ids, names) = (ids?, names?);
    let cohorts = (ids.is_some() || names.is_some()).then(|| {
        let ids = ids.into_iter().flatten().map(Which::Id);
        let names = names.iter().flatten().map(|name| NamePattern::parse(name));
        ids.chain(names.map(Which::Name)).collect::<Vec<_>>()
    });
    if cohorts.as_ref().is_some_and(Vec::is_empty) {
        let message = "no cohort comes to this route: write some in cohort_ids or cohort_names, \
                       or leave both out for any";
        faults.note(at, message.to_owned());
        return Err(Faulted);
    }
    Ok(Route {
        source: source?.map(Spanned::into_inner),
        project_id: project_id?.map(Spanned::into_inner),
        cohorts,
        destinations: to.iter().map(|name| name.as_str().into()).collect(),
    })
}

/// A list of texts, each of which is there once.
fn read_list(
    table: &mut Table<'_>,
    key: &str,
    faults: &mut Faults<'_>,
    parse: impl Fn(&str) -> Result<String, String>,
) -> Result<Option<Vec<String>>, Faulted> {
    let Some(texts) = table.list(key, faults, parse)? else {
        return Ok(None);
    };
    let mut seen = Vec::new();
    for text in &texts {
        let what = format!("{:?} in {key}", text.get_ref());
        once(&mut seen, text, String::eq, &what, faults);
    }
    Ok(Some(texts.into_iter().map(Spanned::into_inner).collect()))
}
