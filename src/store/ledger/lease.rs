//! Who writes to a shared ledger, transaction by transaction.
//!
//! One row is locked by every transaction that changes more than the inbox, so that there is one writer
//! at a time, as with a file. The same row says who leads: whoever holds its random token folds and
//! delivers, and may keep in memory what that needs. A transaction of anybody else is a visitor's: it
//! knows nothing from before, and says afterwards that something changed. So a leader that stood still
//! for longer than the lease finds another token, and can settle nothing. Until when the lease lasts is
//! in a row of its own, which is renewed beside all of that.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::state::Ledger;
use crate::store::StoreError;
use crate::store::database::{Connection, OptionalRow, Value, params};
use crate::store::sqlite::hex;

/// For how long a term is given, and given again while it lasts.
pub const LEASE: Duration = Duration::from_secs(10);

/// By which the ledger knows a term; random.
pub type Token = [u8; 16];

/// What a ledger knows of the lease.
#[derive(Default)]
pub(super) struct Lease {
    /// The term of this process, where it leads as far as it knows.
    term: Option<Held>,
    /// The token of its last one, which it need not wait for the end of.
    former: Option<Token>,
    /// Whether the transaction at hand is the leader's.
    is_leaders: bool,
    /// Whether a visitor's job is part of it.
    is_visited: bool,
}

struct Held {
    token: Token,
    /// How often visitors had changed something when that was last looked at.
    changes: i64,
    ended: CancellationToken,
}

impl Ledger {
    /// Begins a transaction.
    pub fn begin(&mut self) -> Result<(), StoreError> {
        match &self.connection {
            Connection::Sqlite(_) => Ok(self.connection.begin()?),
            Connection::Postgres(postgres) => {
                // Waits until nobody else writes.
                let turn = "SELECT encode(token, 'hex'), changes FROM lease FOR UPDATE";
                let [token, changes] = postgres.begin_with(turn)?;
                self.take_turn(token.as_deref(), changes.as_deref());
                Ok(())
            }
        }
    }

    /// Finds out who leads.
    fn take_turn(&mut self, token: Option<&str>, changes: Option<&str>) {
        let changes = changes.and_then(|changes| changes.parse().ok());
        let changes: i64 = changes.unwrap_or_default();
        self.lease.is_visited = false;
        let held = self.lease.term.as_mut();
        let held =
            held.filter(|held| token == Some(&hex(&held.token)) && !held.ended.is_cancelled());
        self.lease.is_leaders = held.is_some();
        match held {
            Some(held) if held.changes != changes => {
                held.changes = changes;
                self.forget_cached();
            }
            Some(_) => {}
            None => self.end_term(),
        }
    }

    /// Ends the transaction, durably.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if self.lease.is_visited && !self.lease.is_leaders {
            self.connection
                .execute("UPDATE lease SET changes = changes + 1", ())?;
        }
        self.connection.commit()?;
        Ok(())
    }

    /// Fails where the transaction is not the leader's.
    pub fn must_lead(&mut self) -> Result<(), StoreError> {
        if !self.connection.is_shared() || self.lease.is_leaders {
            Ok(())
        } else {
            Err(StoreError::NotLeading)
        }
    }

    /// Gets ready for a job that anybody may do: who does not lead knows nothing from before.
    pub fn visit(&mut self) -> Result<(), StoreError> {
        if self.connection.is_shared() && !self.lease.is_leaders {
            self.forget_cached();
            self.lease.is_visited = true;
        }
        Ok(())
    }

    /// Takes the lead where nobody has it, with a token of its own. Counts once the transaction is over.
    pub fn seek_term(&mut self, ended: &CancellationToken) -> Result<Option<Token>, StoreError> {
        let mut token = Token::default();
        getrandom::fill(&mut token).map_err(|error| StoreError::Failed(error.to_string()))?;
        let former = self.lease.former.unwrap_or_default();
        let changes = self
            .connection
            .prepare_cached(
                "WITH begun AS (
                   UPDATE term SET token = ?1, expires_at = clock_timestamp() + ?2 * interval '1 s'
                   WHERE token IS NULL OR token = ?3 OR expires_at < clock_timestamp() RETURNING token)
                 UPDATE lease SET token = begun.token FROM begun RETURNING changes",
            )?
            .query_row(params![token, lease_seconds(), former], |row| row.get(0))
            .optional()?;
        let Some(changes) = changes else {
            return Ok(None);
        };
        self.end_term();
        self.begin_term()?;
        self.lease.is_leaders = true;
        self.lease.term = Some(Held {
            token,
            changes,
            ended: ended.clone(),
        });
        Ok(Some(token))
    }

    /// Gives the lead up, so that another process need not wait for the end of the lease.
    pub fn resign(&mut self) -> Result<(), StoreError> {
        if self.lease.is_leaders && self.connection.is_shared() {
            for table in ["lease", "term"] {
                self.connection
                    .execute(&format!("UPDATE {table} SET token = NULL"), ())?;
            }
        }
        Ok(())
    }

    /// Whatever this process folded or claimed since is another's business.
    pub fn end_term(&mut self) {
        self.lease.is_leaders = false;
        if let Some(held) = self.lease.term.take() {
            self.lease.former = Some(held.token);
            held.ended.cancel();
            self.forget_cached();
        }
    }
}

/// Whether nobody leads, or has for too long not said so.
pub fn is_free(connection: &Connection) -> Result<bool, StoreError> {
    let free = "SELECT token IS NULL OR expires_at < clock_timestamp() FROM term";
    Ok(connection.query_row(free, (), |row| row.get(0))?)
}

/// Has a term last for a lease more, from now on; also while whoever leads is amid a transaction.
///
/// # Errors
/// [`StoreError::NotLeading`] where it is over.
pub fn renew(connection: &Connection, token: &Token) -> Result<(), StoreError> {
    let renewed = connection.execute(
        "UPDATE term SET expires_at = clock_timestamp() + ?2 * interval '1 s' WHERE token = ?1",
        params![*token, lease_seconds()],
    )?;
    match renewed {
        0 => Err(StoreError::NotLeading),
        _ => Ok(()),
    }
}

fn lease_seconds() -> Value<'static> {
    Value::Real(Some(LEASE.as_secs_f64()))
}
