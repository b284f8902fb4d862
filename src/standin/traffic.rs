//! Counts of calls, and how many of them overlapped.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::lock;

/// One more than the highest status that is counted under its own number.
const STATUSES: usize = 600;

/// What a call was to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// `POST identities/`.
    Write,
    /// `GET identities/`.
    Read,
    /// `PUT traits/bulk/`.
    Bulk,
    /// Anything else.
    Other,
}

impl Endpoint {
    const ALL: [Endpoint; 4] = [
        Endpoint::Write,
        Endpoint::Read,
        Endpoint::Bulk,
        Endpoint::Other,
    ];
}

pub(super) struct Traffic {
    counts: Vec<AtomicU64>,
    in_flight: Mutex<HashMap<String, usize>>,
    in_all: AtomicUsize,
    max_in_all: AtomicUsize,
    max_per_identity: AtomicUsize,
}

impl Default for Traffic {
    fn default() -> Self {
        Traffic {
            counts: (0..Endpoint::ALL.len() * STATUSES)
                .map(|_| AtomicU64::new(0))
                .collect(),
            in_flight: Mutex::default(),
            in_all: AtomicUsize::new(0),
            max_in_all: AtomicUsize::new(0),
            max_per_identity: AtomicUsize::new(0),
        }
    }
}

impl Traffic {
    /// Counts a call; status 0 is one without an answer.
    pub fn count(&self, endpoint: Endpoint, status: u16) {
        let status = usize::from(status).min(STATUSES - 1);
        self.counts[endpoint as usize * STATUSES + status].fetch_add(1, Ordering::Relaxed);
    }

    pub fn calls(&self) -> BTreeMap<(Endpoint, u16), u64> {
        let counts = self.counts.chunks(STATUSES);
        let of_all = Endpoint::ALL.into_iter().zip(counts);
        of_all
            .flat_map(|(endpoint, counts)| {
                (0..)
                    .zip(counts)
                    .map(move |(status, count)| ((endpoint, status), count.load(Ordering::Relaxed)))
            })
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    pub fn forget(&self) {
        for count in &self.counts {
            count.store(0, Ordering::Relaxed);
        }
        self.max_in_all.store(0, Ordering::Relaxed);
        self.max_per_identity.store(0, Ordering::Relaxed);
    }

    /// Whether a call is in flight that another could overlap with.
    pub fn is_busy(&self) -> bool {
        self.in_all.load(Ordering::Relaxed) > 0
    }

    /// Marks a call as in flight until the mark is dropped.
    pub fn begin<'a>(&'a self, identifiers: &'a [String]) -> InFlight<'a> {
        let mut in_flight = lock(&self.in_flight);
        for identifier in identifiers {
            let of_identity = in_flight.entry(identifier.clone()).or_default();
            *of_identity += 1;
            self.max_per_identity
                .fetch_max(*of_identity, Ordering::Relaxed);
        }
        let in_all = self.in_all.fetch_add(1, Ordering::Relaxed) + 1;
        self.max_in_all.fetch_max(in_all, Ordering::Relaxed);
        InFlight {
            traffic: self,
            identifiers,
        }
    }

    pub fn max_per_identity(&self) -> usize {
        self.at_least_one_if_called(&self.max_per_identity)
    }

    pub fn max_in_all(&self) -> usize {
        self.at_least_one_if_called(&self.max_in_all)
    }

    /// A call that nothing overlaps is not marked, to save the time.
    fn at_least_one_if_called(&self, max: &AtomicUsize) -> usize {
        let called = self.counts.iter().any(|n| n.load(Ordering::Relaxed) > 0);
        max.load(Ordering::Relaxed).max(usize::from(called))
    }
}

pub(super) struct InFlight<'a> {
    traffic: &'a Traffic,
    identifiers: &'a [String],
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.traffic.in_all.fetch_sub(1, Ordering::Relaxed);
        let mut in_flight = lock(&self.traffic.in_flight);
        for identifier in self.identifiers {
            if let Some(of_identity) = in_flight.get_mut(identifier) {
                *of_identity -= 1;
                if *of_identity == 0 {
                    in_flight.remove(identifier);
                }
            }
        }
    }
}
