//! Which cohorts go to which destinations.
//!
//! The rule is one sentence: a cohort goes to the destinations of the first route that matches it,
//! and to none where none does. Without any route everything goes everywhere.

use std::collections::BTreeSet;

use crate::cohort::{DestinationName, SourceName};

/// The routes of the settings, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes(Option<Vec<Route>>);

/// One route: whatever it says nothing of may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The source that sends the cohort.
    pub source: Option<SourceName>,
    /// The cohort's project in Mixpanel.
    pub project_id: Option<String>,
    /// Any of these; `None`: any cohort.
    pub cohorts: Option<Vec<Which>>,
    /// Where they go; nowhere, where empty.
    pub destinations: Vec<DestinationName>,
}

/// Which cohort a route means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one with this id.
    Id(String),
    /// Those whose names match.
    Name(NamePattern),
}

/// A cohort as routes see it.
#[derive(Clone, Copy, Debug)]
pub struct Routed<'a> {
    /// The source that sends it.
    pub source: &'a str,
    /// Its project in Mixpanel.
    pub project_id: &'a str,
    /// Its id in Mixpanel.
    pub cohort_id: &'a str,
    /// The name last heard.
    pub name: &'a str,
}

impl Routes {
    /// These and no others: what matches none of them goes nowhere.
    pub fn of(routes: Vec<Route>) -> Self {
        Routes(Some(routes))
    }

    /// Whether a cohort goes to a destination.
    pub fn lead(&self, cohort: Routed<'_>, destination: &DestinationName) -> bool {
        match &self.0 {
            None => true,
            Some(routes) => routes
                .iter()
                .find(|route| route.matches(cohort))
                .is_some_and(|route| route.destinations.contains(destination)),
        }
    }

    /// Whether any cohort may go to a destination.
    pub fn mention(&self, destination: &DestinationName) -> bool {
        match &self.0 {
            None => true,
            Some(routes) => routes
                .iter()
                .any(|route| route.destinations.contains(destination)),
        }
    }
}

impl Route {
    fn matches(&self, cohort: Routed<'_>) -> bool {
        let is_of_source = self.source.as_ref();
        let is_of_source = is_of_source.is_none_or(|source| &*source.0 == cohort.source);
        let is_of_project = self.project_id.as_ref();
        let is_of_project = is_of_project.is_none_or(|project| project == cohort.project_id);
        let mut is_one_of = self.cohorts.iter().flatten().map(|which| match which {
            Which::Id(id) => id == cohort.cohort_id,
            Which::Name(pattern) => pattern.matches(cohort.name),
        });
        is_of_source && is_of_project && (self.cohorts.is_none() || is_one_of.any(|is_it| is_it))
    }

    /// Whether it takes every cohort of a source that another route means by `which` (`None`: any).
    fn takes_all(&self, source: &SourceName, other: &Route, which: Option<&Which>) -> bool {
        let takes_source = self.source.as_ref().is_none_or(|own| own == source);
        let takes_project = self.project_id.is_none() || self.project_id == other.project_id;
        let mut takes_one = self.cohorts.iter().flatten().map(|own| match (own, which) {
            (Which::Name(own), Some(Which::Name(pattern))) => own.covers(pattern),
            (Which::Name(own), _) => own.is_anything(),
            (own, Some(which)) => own == which,
            (_, None) => false,
        });
        takes_source && takes_project && (self.cohorts.is_none() || takes_one.any(|takes| takes))
    }
}

/// The routes that no cohort of these sources ever comes to, each with the earlier ones that take
/// all of its cohorts; by their places.
pub fn never_reached(routes: &[Route], sources: &[SourceName]) -> Vec<(usize, BTreeSet<usize>)> {
    let mut found = Vec::new();
    for (place, route) in routes.iter().enumerate() {
        let own_sources = sources
            .iter()
            .filter(|source| route.source.as_ref().is_none_or(|own| own == *source));
        let meant: Vec<Option<&Which>> = match &route.cohorts {
            None => vec![None],
            Some(cohorts) => cohorts.iter().map(Some).collect(),
        };
        let takers = own_sources
            .flat_map(|source| meant.iter().map(move |which| (source, *which)))
            .map(|(source, which)| {
                let earlier = routes[..place].iter();
                earlier
                    .enumerate()
                    .find(|(_, earlier)| earlier.takes_all(source, route, which))
                    .map(|(earlier, _)| earlier)
            });
        if let Some(takers) = takers.collect::<Option<BTreeSet<usize>>>()
            && !takers.is_empty()
        {
            found.push((place, takers));
        }
    }
    found
}

/// A pattern of names: `*` stands for any characters, `?` for one, everything else for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Just(char),
    One,
    Many,
}

impl NamePattern {
    /// Reads a pattern; every text is one.
    pub fn parse(text: &str) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        for c in text.chars() {
            match c {
                '*' if pieces.last() == Some(&Piece::Many) => {}
                '*' => pieces.push(Piece::Many),
                // Of `*?` and `?*`, which mean the same, one form is enough.
                '?' if pieces.last() == Some(&Piece::Many) => {
                    pieces.insert(pieces.len() - 1, Piece::One);
                }
                '?' => pieces.push(Piece::One),
                c => pieces.push(Piece::Just(c)),
            }
        }
        NamePattern(pieces)
    }

    /// Whether a name matches, from its beginning to its end.
    pub fn matches(&self, name: &str) -> bool {
        let name: Vec<Piece> = name.chars().map(Piece::Just).collect();
        takes(&self.0, &name)
    }

    /// Whether it surely matches whatever another pattern matches.
    fn covers(&self, other: &NamePattern) -> bool {
        takes(&self.0, &other.0)
    }

    fn is_anything(&self) -> bool {
        self.0 == [Piece::Many]
    }
}

/// Whether a pattern takes a sequence of pieces: `Many` takes any number of whatever pieces, each
/// other one a piece that it covers. Goes back to the last `Many` alone, which is enough, since an
/// earlier one could take no more than that one can.
fn takes(pattern: &[Piece], pieces: &[Piece]) -> bool {
    let (mut at, mut next) = (0, 0);
    let mut last_many: Option<(usize, usize)> = None;
    while next < pieces.len() {
        let covers = match (pattern.get(at), pieces[next]) {
            (Some(Piece::Many), _) => {
                last_many = Some((at, next));
                at += 1;
                continue;
            }
            (Some(Piece::One), Piece::Just(_) | Piece::One) => true,
            (Some(Piece::Just(own)), Piece::Just(other)) => *own == other,
            _ => false,
        };
        if covers {
            at += 1;
            next += 1;
        } else if let Some((many, taken)) = &mut last_many {
            *taken += 1;
            at = *many + 1;
            next = *taken;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|piece| *piece == Piece::Many)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    /// By recursion, as one would explain it.
    fn matches_plainly(pattern: &[char], name: &[char]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), None) => matches_plainly(rest, name),
            (Some(('*', rest)), Some((_, shorter))) => {
                matches_plainly(rest, name) || matches_plainly(pattern, shorter)
            }
            (Some(('?', rest)), Some((_, shorter))) => matches_plainly(rest, shorter),
            (Some((own, rest)), Some((other, shorter))) => {
                own == other && matches_plainly(rest, shorter)
            }
            _ => false,
        }
    }

    fn route(
        source: Option<&str>,
        project_id: Option<&str>,
        cohorts: Option<Vec<Which>>,
        destinations: &[&str],
    ) -> Route {
        Route {
            source: source.map(SourceName::from),
            project_id: project_id.map(str::to_owned),
            cohorts,
            destinations: destinations.iter().map(|name| (*name).into()).collect(),
        }
    }

    fn named(pattern: &str) -> Which {
        Which::Name(NamePattern::parse(pattern))
    }

    fn cohort<'a>(source: &'a str, cohort_id: &'a str, name: &'a str) -> Routed<'a> {
        Routed {
            source,
            project_id: "p",
            cohort_id,
            name,
        }
    }

    #[test]
    fn without_routes_everything_goes_everywhere() {
        let routes = Routes::default();
        assert!(routes.lead(cohort("a", "1", "x"), &"anywhere".into()));
        assert!(routes.mention(&"anywhere".into()));
    }

    #[test]
    fn the_first_route_that_matches_says_where() {
        let routes = Routes::of(vec![
            route(Some("eu"), None, Some(vec![Which::Id("1".into())]), &[]),
            route(Some("eu"), None, None, &["b"]),
            route(None, Some("q"), None, &["c"]),
            route(
                None,
                None,
                Some(vec![named("Trial *"), named("?")]),
                &["a", "b"],
            ),
        ]);
        let goes = |source, id, name| {
            ["a", "b", "c"]
                .into_iter()
                .filter(|to| routes.lead(cohort(source, id, name), &(*to).into()))
                .collect::<String>()
        };
        assert_eq!(goes("eu", "1", "Trial users"), "");
        assert_eq!(goes("eu", "2", "Trial users"), "b");
        assert_eq!(goes("us", "1", "Trial users"), "ab");
        assert_eq!(goes("us", "1", "x"), "ab");
        assert_eq!(goes("us", "1", "Other"), "");
        assert!(routes.mention(&"c".into()) && !routes.mention(&"d".into()));
    }

    #[test]
    fn a_route_behind_one_that_takes_all_is_found() {
        let id = |id: &str| Which::Id(id.into());
        let sources = ["eu".into(), "us".into()];
        let found = |routes: &[Route]| -> Vec<(usize, Vec<usize>)> {
            let found = never_reached(routes, &sources).into_iter();
            found
                .map(|(place, by)| (place, by.into_iter().collect()))
                .collect()
        };
        let all = route(None, None, None, &["a"]);
        assert_eq!(found(&[all.clone(), all.clone()]), [(1, vec![0])]);
        // Both sources' routes together take all.
        let (eu, us) = (
            route(Some("eu"), None, None, &["a"]),
            route(Some("us"), None, Some(vec![named("*")]), &["a"]),
        );
        assert_eq!(found(&[eu.clone(), us, all.clone()]), [(2, vec![0, 1])]);
        assert_eq!(found(&[eu.clone(), all.clone()]), []);
        // A project's alone does not, but of that project.
        let project = route(None, Some("p"), None, &["a"]);
        assert_eq!(found(&[project.clone(), all.clone()]), []);
        assert_eq!(found(&[all, project]), [(1, vec![0])]);
        // By ids and names.
        let wide = route(Some("eu"), None, Some(vec![id("1"), named("T*")]), &["a"]);
        let narrow = |cohorts| route(Some("eu"), None, Some(cohorts), &["b"]);
        let taken = narrow(vec![id("1"), named("T?ial*")]);
        assert_eq!(found(&[wide.clone(), taken]), [(1, vec![0])]);
        for free in [vec![id("2")], vec![named("*T")], vec![id("1"), named("?")]] {
            assert_eq!(found(&[wide.clone(), narrow(free)]), []);
        }
    }

    fn any_which() -> impl Strategy<Value = Which> {
        prop_oneof![
            "[12]".prop_map(Which::Id),
            "[ab*?]{0,3}".prop_map(|pattern| named(&pattern)),
        ]
    }

    prop_compose! {
        fn any_route()(
            source in option::of("[ef]"),
            project_id in option::of("[pq]"),
            cohorts in option::of(vec(any_which(), 1..3)),
        ) -> Route {
            route(source.as_deref(), project_id.as_deref(), cohorts, &[])
        }
    }

    proptest! {
        #[test]
        fn patterns_match_as_one_would_explain_them(pattern in "[ab*?]{0,7}", name in "[abü]{0,7}") {
            let plainly = matches_plainly(
                &pattern.chars().collect::<Vec<_>>(),
                &name.chars().collect::<Vec<_>>(),
            );
            prop_assert_eq!(NamePattern::parse(&pattern).matches(&name), plainly);
        }

        #[test]
        fn what_a_pattern_covers_it_matches(
            wide in "[ab*?]{0,5}",
            narrow in "[ab*?]{0,5}",
            names in vec("[abc]{0,5}", 40),
        ) {
            let (wide, narrow) = (NamePattern::parse(&wide), NamePattern::parse(&narrow));
            if wide.covers(&narrow) {
                for name in &names {
                    prop_assert!(!narrow.matches(name) || wide.matches(name), "{}", name);
                }
            }
            prop_assert!(narrow.covers(&narrow));
        }

        #[test]
        fn no_cohort_comes_to_a_route_that_is_never_reached(routes in vec(any_route(), 0..5)) {
            let sources = [SourceName::from("e"), SourceName::from("f")];
            let never = never_reached(&routes, &sources);
            for source in ["e", "f"] {
                for project_id in ["p", "q", "r"] {
                    for cohort_id in ["1", "2", "3"] {
                        for name in ["", "a", "b", "ab", "ba", "aab", "c", "ccc"] {
                            let cohort = Routed { source, project_id, cohort_id, name };
                            let first = routes.iter().position(|route| route.matches(cohort));
                            prop_assert!(never.iter().all(|(place, _)| first != Some(*place)));
                        }
                    }
                }
            }
        }
    }
}
