//! Ledgers that were closed and lie elsewhere now.

use std::path::PathBuf;

use super::{Data, Kind, Noted, Stores, fast_temp_dir};
use crate::support::postgres::Database;

impl Stores {
    /// The file of a ledger that is one.
    pub fn file(&self) -> PathBuf {
        match &self.data {
            Data::Sqlite(folder) => folder.path().join("ledger.db"),
            Data::Postgres(database) => panic!("{} is no file", database.name()),
        }
    }

    /// Where a ledger is that is none.
    pub fn url(&self) -> &str {
        match &self.data {
            Data::Postgres(database) => database.url(),
            Data::Sqlite(folder) => panic!("{} is a folder", folder.path().display()),
        }
    }

    /// Ends it in an orderly way.
    pub async fn shut(&mut self) {
        self.store().close().await;
        self.kill();
    }

    /// A copy of a closed file, opened, under the same rules at the same time.
    pub async fn twin(&self) -> Stores {
        let folder = fast_temp_dir();
        std::fs::copy(self.file(), folder.path().join("ledger.db")).unwrap();
        self.elsewhere(Kind::Sqlite, Data::Sqlite(folder)).await
    }

    /// The ledger in a database, under the same rules at the same time.
    pub async fn over(&self, database: Database) -> Stores {
        self.elsewhere(Kind::Postgres, Data::Postgres(Box::new(database)))
            .await
    }

    async fn elsewhere(&self, kind: Kind, data: Data) -> Stores {
        let mut stores = Stores {
            kind,
            data,
            rules: self.rules.clone(),
            clock: cohort_bridge::clock::ManualClock::at(self.now()),
            store: None,
            term: None,
            noted: Noted::default(),
        };
        stores.open().await.unwrap();
        stores
    }
}
