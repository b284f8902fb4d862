//! The calls of a calendar month, and the budget that they are held to. Pure.
//!
//! The ledger has the count. With a budget, calls are taken out of it beforehand, some at a time
//! (a lease), and only calls that were taken out are made: a kill wastes what was left of a lease,
//! and never makes the count too low. Without a budget, calls are added to the count afterwards,
//! some at a time, and a kill forgets the last ones.

use crate::clock::Millis;
use crate::month::Month;

#[cfg(test)]
mod tests;

/// A lease is this part of the budget: what a kill can waste.
const LEASE_SHARE: u64 = 200;

/// Calls that are leased, or made before they are written down, at most: a third of a second at
/// full speed, so that the ledger's share in it is small.
const MOST_AT_ONCE: u64 = 16_384;

/// How long calls that were made may wait to be written down, in milliseconds.
const WRITE_EVERY: Millis = 60_000;

/// The least span, in milliseconds, that a forecast is made from: a first sync in the first hour
/// says little about the month.
const LEAST_PAST: Millis = 24 * 60 * 60 * 1_000;

/// What is to be done in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallOrder {
    /// In which month.
    pub month: Month,
    /// Calls that were made and are to be counted; below nought, leased ones that were not made.
    pub add: i64,
    /// Calls to lease, as far as the budget allows.
    pub lease: u64,
    /// The budget.
    pub budget: Option<u64>,
}

/// What the ledger says of a month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallsCounted {
    /// Its calls, leased ones included.
    pub calls: u64,
    /// Calls leased now.
    pub leased: u64,
    /// Since when they are counted.
    pub since: Millis,
}

/// What to tell people of a month's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallsView {
    /// Which month.
    pub month: Month,
    /// Calls made.
    pub made: u64,
    /// Calls allowed.
    pub budget: Option<u64>,
    /// Since when they are counted.
    pub since: Millis,
}

impl CallsView {
    /// Calls by the end of the month: those made, as many a day again as so far (since counting
    /// began this month, a day at least), and one for each of `pending` changes.
    pub fn forecast(&self, pending: u64, now: Millis) -> u64 {
        let past = now.saturating_sub(self.since).max(LEAST_PAST);
        let left = self.month.ends().saturating_sub(now).max(0);
        let more =
            u128::from(self.made) * left.unsigned_abs() as u128 / past.unsigned_abs() as u128;
        let more = u64::try_from(more).unwrap_or(u64::MAX);
        self.made.saturating_add(more).saturating_add(pending)
    }
}

/// How a call is paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payment {
    /// It may be made.
    Paid,
    /// It may be once the ledger granted more.
    NotYet,
    /// It may not this month.
    UsedUp,
}

/// The calls of the present month.
#[derive(Clone, Debug)]
pub struct Calls {
    budget: Option<u64>,
    month: Month,
    /// The ledger's count, leased calls included; `None` while it is not known.
    written: Option<u64>,
    since: Millis,
    written_at: Millis,
    /// Leased and not made.
    leased: u64,
    /// Made and not written down.
    unwritten: u64,
    /// The ledger has an order.
    is_ordered: bool,
    /// The ledger has no more to lease this month.
    is_all_leased: bool,
}

impl Calls {
    /// The month of `now`, of which nothing is known yet.
    pub fn new(budget: Option<u64>, now: Millis) -> Self {
        Calls {
            budget,
            month: Month::of(now),
            written: None,
            since: now,
            written_at: now,
            leased: 0,
            unwritten: 0,
            is_ordered: false,
            is_all_leased: false,
        }
    }

    /// Pays for one call.
    pub fn pay(&mut self, now: Millis) -> Payment {
        self.turn(now);
        if self.budget.is_none() {
            self.unwritten += 1;
            return Payment::Paid;
        }
        if self.leased > 0 {
            self.leased -= 1;
            Payment::Paid
        } else if self.is_all_leased {
            Payment::UsedUp
        } else {
            Payment::NotYet
        }
    }

    /// What the ledger should do now; the order is to be answered before there is another.
    pub fn order(&mut self, now: Millis) -> Option<CallOrder> {
        self.turn(now);
        if self.is_ordered || !self.wants_order(now) {
            return None;
        }
        self.is_ordered = true;
        let lease = match self.budget {
            Some(budget) => at_once(budget).saturating_sub(self.leased),
            None => 0,
        };
        Some(self.order_of(lease))
    }

    /// Whether [`Calls::order`] would give one.
    pub fn has_order(&self, now: Millis) -> bool {
        !self.is_ordered && self.wants_order(now)
    }

    fn wants_order(&self, now: Millis) -> bool {
        let is_due = !(0..WRITE_EVERY).contains(&now.saturating_sub(self.written_at));
        match self.budget {
            _ if self.written.is_none() => true,
            Some(budget) => !self.is_all_leased && self.leased <= at_once(budget) / 2,
            None => self.unwritten >= MOST_AT_ONCE || self.unwritten > 0 && is_due,
        }
    }

    /// The last order of all: what was made is counted, and what was not made is given back.
    pub fn last_order(&mut self, now: Millis) -> CallOrder {
        self.turn(now);
        let mut order = self.order_of(0);
        order.add -= signed(self.leased);
        self.leased = 0;
        order
    }

    fn order_of(&self, lease: u64) -> CallOrder {
        CallOrder {
            month: self.month,
            add: signed(self.unwritten),
            lease,
            budget: self.budget,
        }
    }

    /// The ledger carried the order out.
    pub fn counted(&mut self, order: CallOrder, counted: CallsCounted, now: Millis) {
        self.turn(now);
        if order.month != self.month {
            // It was about a month that is over.
            return;
        }
        self.is_ordered = false;
        self.written = Some(counted.calls);
        self.since = counted.since;
        self.written_at = now;
        self.unwritten = self.unwritten.saturating_sub(order.add.unsigned_abs());
        self.leased += counted.leased;
        self.is_all_leased = counted.leased < order.lease;
    }

    /// The ledger could not.
    pub fn not_counted(&mut self) {
        self.is_ordered = false;
    }

    /// When to ask for an order again, whatever happens.
    pub fn look_again_at(&self, now: Millis) -> Millis {
        now.saturating_add(WRITE_EVERY).min(self.month.ends())
    }

    /// The month whose budget is used up.
    pub fn used_up(&mut self, now: Millis) -> Option<Month> {
        self.turn(now);
        (self.is_all_leased && self.leased == 0).then_some(self.month)
    }

    /// What to tell people.
    pub fn view(&mut self, now: Millis) -> CallsView {
        self.turn(now);
        let made = self.written.unwrap_or(0) + self.unwritten;
        CallsView {
            month: self.month,
            made: made.saturating_sub(self.leased),
            budget: self.budget,
            since: self.since,
        }
    }

    /// Begins a new month where one has begun; in the month before, the calls of the last minute
    /// may stay uncounted.
    fn turn(&mut self, now: Millis) {
        if !self.month.contains(now) {
            *self = Calls::new(self.budget, now);
        }
    }
}

/// Calls that are leased at once.
fn at_once(budget: u64) -> u64 {
    (budget / LEASE_SHARE).clamp(1, MOST_AT_ONCE)
}

fn signed(calls: u64) -> i64 {
    i64::try_from(calls).unwrap_or(i64::MAX)
}
