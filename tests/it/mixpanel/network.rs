//! What goes wrong between Mixpanel and here.

use std::ops::Range;

use cohort_bridge::clock::Millis;
use fastrand::Rng;

/// How often things go wrong; shares from 0 to 1.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Pages on which every attempt fails.
    pub pages_fail: f64,
    /// Attempts that fail although the next one works.
    pub hiccups: f64,
    /// Runs at which an outage begins.
    pub outages: f64,
    /// How long an outage lasts, in milliseconds; short ones are as likely as long ones.
    pub outage_ms: Range<f64>,
    /// Pages that arrive a second time, later.
    pub repeats: f64,
    /// Halves that a relay takes in at once and brings in any order, before the run ends.
    pub relayed: f64,
    /// How long a late or repeated page is under way, in milliseconds.
    pub late_ms: Range<f64>,
}

/// What happens to one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, and so does its 200.
    Delivered,
    /// It never arrives.
    RequestLost,
    /// It arrives; its 200 does not.
    ReplyLost,
    /// It is answered 503.
    Refused,
    /// It arrives later, when nobody waits for its reply any more.
    Late,
    /// The service is killed before it wrote the page down, and starts again.
    KilledBefore,
    /// The service is killed after it wrote the page down, before the reply; and starts again.
    KilledAfter,
}

impl Faults {
    /// Nothing goes wrong.
    pub fn none() -> Self {
        Faults {
            pages_fail: 0.0,
            hiccups: 0.0,
            outages: 0.0,
            outage_ms: 60e3..120e3,
            repeats: 0.0,
            relayed: 0.0,
            late_ms: 500.0..20e3,
        }
    }

    /// Pages come late, again and in any order, and the service is killed; but each arrives before
    /// Mixpanel gives it up.
    pub fn without_loss(rng: &mut Rng) -> Self {
        Faults {
            hiccups: rng.f64() * 0.3,
            repeats: rng.f64() * 0.3,
            relayed: rng.f64() * 0.5,
            late_ms: 500.0..6.0 * 3_600e3,
            ..Faults::none()
        }
    }

    /// 2 to 15 % of the pages fail, and there are outages, some longer than a snapshot lives. No
    /// page arrives after the next run has begun.
    pub fn harsh(rng: &mut Rng) -> Self {
        Faults {
            pages_fail: 0.02 + rng.f64() * 0.13,
            hiccups: rng.f64() * 0.1,
            outages: 0.04,
            outage_ms: 20e3..4.0 * 24.0 * 3_600e3,
            repeats: 0.05,
            relayed: 0.05,
            ..Faults::none()
        }
    }

    /// As [`Faults::harsh`], and pages of older sessions arrive after newer ones.
    pub fn harsh_with_strays(rng: &mut Rng) -> Self {
        Faults {
            late_ms: 500.0..6.0 * 3_600e3,
            ..Faults::harsh(rng)
        }
    }

    /// How an attempt fails.
    pub fn failure(rng: &mut Rng) -> Fate {
        match rng.u8(0..24) {
            0..7 => Fate::RequestLost,
            7..14 => Fate::ReplyLost,
            14..19 => Fate::Refused,
            19..22 => Fate::Late,
            22 => Fate::KilledBefore,
            _ => Fate::KilledAfter,
        }
    }
}

/// A time from the range; each order of magnitude is as likely as any other.
pub fn any_time(range: &Range<f64>, rng: &mut Rng) -> Millis {
    (range.start * (range.end / range.start).powf(rng.f64())) as Millis
}
