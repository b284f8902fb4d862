//! Delivery's half of the ledger: settle the calls that ended, claim the identities that are due.

use std::collections::HashSet;
use std::sync::Arc;

use super::state::{InFlight, Ledger, sent_bit};
use super::sweep::{Row, Swept};
use crate::backoff::is_due;
use crate::clock::Millis;
use crate::cohort::Target;
use crate::store::database::nothing;
use crate::store::{Claim, ClaimedTrait, Claims, Settlement, StoreError, TraitRef};

/// The earlier of two times, where there are any.
pub(super) fn soonest(one: Option<Millis>, other: Option<Millis>) -> Option<Millis> {
    one.into_iter().chain(other).min()
}

/// A row that is claimed, and what it is then.
struct Claimed<'a> {
    destination: i64,
    identifier: &'a str,
    number: TraitRef,
    sent: i64,
    late_until: Option<Millis>,
}

impl Ledger {
    /// Settles what ended, then claims what is due. Whatever is claimed is unknown from now on: a
    /// kill cannot make it look written.
    pub fn exchange(
        &mut self,
        destination: usize,
        settle: &[Settlement],
        after: Option<&str>,
        limit: usize,
        now: Millis,
    ) -> Result<Claims, StoreError> {
        let left_due = self.settle(destination, settle, now)?;
        if limit == 0 {
            return Ok(Claims {
                next_due: left_due,
                ..Claims::default()
            });
        }
        let settled: HashSet<&str> = settle
            .iter()
            .map(|settlement| &*settlement.claim.identifier)
            .collect();
        // One of each four stays with the sweep, however much is new.
        let express = self.take_express(destination, limit - limit.div_ceil(4), now, &settled)?;
        let Swept {
            found,
            resume_after,
            next_due,
            passed_over,
        } = self.sweep(destination, after, limit - express.len(), now, &settled)?;
        let in_flight = &mut self.destinations[destination].in_flight;
        for identifier in passed_over {
            if let Some(call) = in_flight.get_mut(&identifier) {
                call.passed_over = true;
            }
        }
        let mut claims = Vec::with_capacity(express.len() + found.len());
        let mut claimed = Vec::new();
        let swept = found
            .iter()
            .filter(|(identifier, _)| !express.contains(identifier));
        for (identifier, rows) in express.found.iter().chain(swept) {
            claims.extend(self.claim(destination, identifier, rows, now, &mut claimed)?);
        }
        self.write_claimed(&claimed)?;
        Ok(Claims {
            claims,
            resume_after,
            next_due: soonest(next_due, left_due),
        })
    }

    /// What was claimed is unknown from now on.
    fn write_claimed(&self, claimed: &[Claimed<'_>]) -> Result<(), StoreError> {
        self.connection.each_of(
            "UPDATE pending SET told = NULL, sent = ?4, late_until = ?5 WHERE destination = ?1 AND identifier = ?2 AND trait = ?3",
            claimed,
            |row| {
                [
                    row.destination.into(),
                    row.identifier.into(),
                    row.number.0.into(),
                    row.sent.into(),
                    row.late_until.into(),
                ]
            },
            nothing,
        )
    }

    fn claim<'a>(
        &mut self,
        destination: usize,
        identifier: &'a Arc<str>,
        rows: &[Row],
        now: Millis,
        claimed: &mut Vec<Claimed<'a>>,
    ) -> Result<Option<Claim>, StoreError> {
        let (id, on_leave, earlier_calls_land_until) = {
            let state = &mut self.destinations[destination];
            let first_claim_at = *state.first_claim_at.get_or_insert(now);
            (
                state.id,
                state.rules.on_leave,
                first_claim_at + state.rules.late_write_ms,
            )
        };
        let mut traits = Vec::with_capacity(rows.len());
        let mut attempts = 0;
        for row in rows {
            let target = Target::of(row.wanted, on_leave);
            if !row.told.needs_write(target) {
                // Only watched, in case an older call lands after all.
                if row.late_until.is_none_or(|until| is_due(until, now)) {
                    self.delete_pending(id, identifier, row.number)?;
                }
                continue;
            }
            // What an earlier process sent has no known end either.
            let late_until = if row.sent == 0 {
                row.late_until
            } else {
                row.late_until.max(Some(earlier_calls_land_until))
            };
            claimed.push(Claimed {
                destination: id,
                identifier,
                number: row.number,
                sent: row.sent | sent_bit(target),
                late_until,
            });
            attempts = attempts.max(row.attempts);
            let trait_key = self.trait_key(row.number)?;
            traits.push(ClaimedTrait {
                number: row.number,
                trait_key,
                target,
                told: row.told,
            });
        }
        Ok((!traits.is_empty()).then(|| Claim {
            identifier: Arc::clone(identifier),
            traits,
            attempts,
        }))
    }

    /// After the commit: what is no longer, and what is now, under way.
    pub fn note_in_flight(
        &mut self,
        destination: usize,
        ended: &[Arc<str>],
        claims: &[Claim],
        now: Millis,
    ) {
        let in_flight = &mut self.destinations[destination].in_flight;
        for identifier in ended {
            in_flight.remove(identifier);
        }
        for claim in claims {
            in_flight.insert(
                Arc::clone(&claim.identifier),
                InFlight {
                    claimed_at: now,
                    passed_over: false,
                    told_is_void: false,
                },
            );
        }
    }
}
