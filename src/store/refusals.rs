//! Pages that were answered with our own trouble, until that is written down.

use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ledger::inbox::InboxPage;
use super::ledger::state::Ledger;
use crate::store::StoreError;

/// Refusals remembered while none can be written down: beyond these, the sessions that never become
/// whole say as much.
const MOST_REFUSALS: usize = 10_000;

/// What is not written down yet, in the order in which it happened.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<Vec<InboxPage>>>);

impl Refusals {
    fn lock(&self) -> MutexGuard<'_, Vec<InboxPage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers one more.
    pub fn remember(&self, refusal: InboxPage) {
        let mut refusals = self.lock();
        if refusals.len() < MOST_REFUSALS {
            refusals.push(refusal);
        }
    }

    /// Takes all of them, to be written down.
    pub fn take(&self) -> Noted {
        Noted {
            refusals: std::mem::take(&mut *self.lock()),
            is_durable: Cell::new(false),
            remembered: self.clone(),
        }
    }

    /// Appends all of them in the transaction at hand.
    pub fn write_down(&self, ledger: &mut Ledger) -> Result<Noted, StoreError> {
        let noted = self.take();
        for refusal in &noted.refusals {
            ledger.append(refusal)?;
        }
        Ok(noted)
    }
}

/// Refusals in a transaction; remembered again where it does not come about. That happens on the
/// writing thread, before any later page: a note behind the page that was taken in the end would
/// speak against it.
pub struct Noted {
    refusals: Vec<InboxPage>,
    is_durable: Cell<bool>,
    remembered: Refusals,
}

impl Noted {
    /// They.
    pub fn refusals(&self) -> &[InboxPage] {
        &self.refusals
    }

    /// The transaction is over.
    pub fn keep(&self) {
        self.is_durable.set(true);
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.is_durable.get() {
            let refusals = std::mem::take(&mut self.refusals);
            self.remembered.lock().splice(0..0, refusals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::database::{Connection, Sqlite};
    use super::super::sqlite::migrate;
    use super::*;
    use crate::cohort::Action;
    use crate::mixpanel::{IdentifierRules, Page};
    use crate::roster::Roster;
    use crate::route::Routes;

    fn refused(session: &str) -> InboxPage {
        let page = Page {
            action: Action::AddMembers,
            project_id: "1".into(),
            cohort_id: "7".into(),
            cohort_name: None,
            session_id: Some(session.into()),
            page_info: None,
            roster: Roster::default(),
            identified_by: IdentifierRules::default().describe(),
            members_received: 0,
            set_aside: Vec::new(),
        };
        InboxPage::refused("default".into(), &page, 0)
    }

    fn written(ledger: &Ledger) -> Vec<String> {
        let mut sessions = ledger
            .connection
            .prepare_cached("SELECT session_id FROM inbox ORDER BY seq")
            .unwrap();
        let rows = sessions.query_map((), |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn what_no_transaction_kept_is_written_down_by_the_next_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut sqlite = Sqlite::connect(&folder.path().join("ledger.db")).unwrap();
        migrate(sqlite.inner()).unwrap();
        let connection = Connection::Sqlite(sqlite);
        let mut ledger =
            Ledger::new(connection, Vec::new(), Vec::new(), Routes::default()).unwrap();
        let refusals = Refusals::default();
        let transaction = |ledger: &mut Ledger, end: &str| {
            ledger.connection.execute_batch("BEGIN").unwrap();
            let noted = refusals.write_down(ledger).unwrap();
            ledger.connection.execute_batch(end).unwrap();
            noted
        };
        refusals.remember(refused("a"));
        let failed = transaction(&mut ledger, "ROLLBACK");
        refusals.remember(refused("b"));
        drop(failed);
        assert!(written(&ledger).is_empty());

        transaction(&mut ledger, "COMMIT").keep();
        assert_eq!(written(&ledger), ["a", "b"]);
        transaction(&mut ledger, "COMMIT").keep();
        assert_eq!(written(&ledger), ["a", "b"], "each once");
    }

    #[test]
    fn as_many_are_remembered_as_there_is_room_for() {
        let refusals = Refusals::default();
        for _ in 0..MOST_REFUSALS + 1 {
            refusals.remember(refused("a"));
        }
        assert_eq!(refusals.lock().len(), MOST_REFUSALS);
    }
}
