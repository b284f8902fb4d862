//! The settings of the commands that are about a ledger as a whole.

use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::environment::Environment;
use super::files::Files;
use super::reader::{ConfigError, Faulted, Reader};
use super::{Database, parse, setting};
use crate::cli::{BackupArgs, MigrateArgs};
use crate::store::PostgresUrl;

/// What `backup` copies, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSettings {
    /// The ledger's file.
    pub ledger: PathBuf,
    /// The new one.
    pub to: PathBuf,
}

impl BackupSettings {
    /// Reads what `backup` needs.
    ///
    /// # Errors
    ///
    /// All faults at once, as [`Settings::from_args`](super::Settings::from_args) does.
    pub fn from_args(args: &BackupArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let files = Files::default();
        let mut reader = Reader::new(environment, &files);
        let flag = args.database_url.as_ref().map(ExposeSecret::expose_secret);
        let ledger = reader.value(&setting::DATABASE_URL, flag, |value| {
            match parse::database(value)? {
                Database::Sqlite(path) => Ok(path),
                Database::Postgres(_) => Err(
                    "this ledger is in PostgreSQL, whose own tool copies it: pg_dump --format=custom --file=FILE and this URL".to_owned(),
                ),
            }
        });
        let to = args.to.clone();
        reader.finish(ledger.map(|ledger| BackupSettings { ledger, to }))
    }
}

/// What `migrate-store` moves, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateSettings {
    /// The ledger's file.
    pub from: PathBuf,
    /// Into which database; `None` where the file is to be used again.
    pub to: Option<PostgresUrl>,
}

impl MigrateSettings {
    /// Reads what `migrate-store` needs.
    ///
    /// # Errors
    ///
    /// All faults at once, as [`Settings::from_args`](super::Settings::from_args) does.
    pub fn from_args(args: &MigrateArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let files = Files::default();
        let mut reader = Reader::new(environment, &files);
        let from = from(&mut reader, args.from.as_deref());
        let flag = args.to.as_ref().map(ExposeSecret::expose_secret);
        let to = match args.take_back {
            true => Ok(None),
            false => reader.value(&setting::TO, flag, postgres).map(Some),
        };
        let settings = from.and_then(|from| Ok(MigrateSettings { from, to: to? }));
        reader.finish(settings)
    }
}

/// Where nothing is said, the ledger that the service has.
fn from(reader: &mut Reader<'_>, flag: Option<&str>) -> Result<PathBuf, Faulted> {
    match reader.optional(&setting::FROM, flag, sqlite)? {
        Some(path) => Ok(path),
        None => reader.value(&setting::DATABASE_URL, None, sqlite),
    }
}

fn sqlite(value: &str) -> Result<PathBuf, String> {
    match parse::database(value)? {
        Database::Sqlite(path) => Ok(path),
        Database::Postgres(_) => Err(
            "a ledger is moved out of a SQLite file: write sqlite:// and its path with --from"
                .to_owned(),
        ),
    }
}

fn postgres(value: &str) -> Result<PostgresUrl, String> {
    match parse::database(value)? {
        Database::Postgres(url) => Ok(*url),
        Database::Sqlite(_) => Err(
            "a ledger is moved into PostgreSQL: write postgres://user:password@host:5432/database"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THERE: &str = "postgres://u:hush@localhost/d";

    fn moving(
        args: MigrateArgs,
        variables: &[(&str, &str)],
    ) -> Result<(String, Option<String>), String> {
        let environment = variables.iter().copied().collect();
        let settings = MigrateSettings::from_args(&args, &environment);
        let settings = settings.map_err(|error| error.to_string())?;
        let to = settings.to.map(|url| url.place());
        Ok((settings.from.display().to_string(), to))
    }

    #[test]
    fn it_is_moved_from_where_the_service_has_it() {
        let there = Some("localhost/d".to_owned());
        let args = || MigrateArgs::default();
        let variables = [("DATABASE_URL", "sqlite:///a"), ("COHORT_BRIDGE_TO", THERE)];
        assert_eq!(moving(args(), &variables), Ok(("/a".into(), there.clone())));
        let from = MigrateArgs {
            from: Some("sqlite:///b".into()),
            ..args()
        };
        assert_eq!(moving(from, &variables), Ok(("/b".into(), there)));
        let back = MigrateArgs {
            take_back: true,
            ..args()
        };
        assert_eq!(moving(back, &variables), Ok(("/a".into(), None)));
    }

    #[test]
    fn from_a_file_and_into_a_database() {
        for (variables, fault) in [
            (
                vec![("DATABASE_URL", "sqlite:a")],
                "--to (COHORT_BRIDGE_TO) is required",
            ),
            (
                vec![("DATABASE_URL", THERE), ("COHORT_BRIDGE_TO", THERE)],
                "moved out of a SQLite file",
            ),
            (
                vec![("COHORT_BRIDGE_FROM", THERE), ("COHORT_BRIDGE_TO", THERE)],
                "moved out of a SQLite file",
            ),
            (
                vec![
                    ("COHORT_BRIDGE_FROM", "sqlite:a"),
                    ("COHORT_BRIDGE_TO", "sqlite:b"),
                ],
                "moved into PostgreSQL",
            ),
        ] {
            let said = moving(MigrateArgs::default(), &variables).unwrap_err();
            assert!(said.contains(fault), "{said}");
            assert!(!said.contains("hush"), "{said}");
        }
    }

    #[test]
    fn a_database_is_backed_up_by_its_own_tool() {
        let args = BackupArgs {
            database_url: None,
            to: "copy".into(),
        };
        let at =
            |url| BackupSettings::from_args(&args, &[("DATABASE_URL", url)].into_iter().collect());
        assert_eq!(at("sqlite:///a").unwrap().ledger, PathBuf::from("/a"));
        let said = at(THERE).unwrap_err().to_string();
        assert!(said.contains("pg_dump"), "{said}");
        assert!(!said.contains("hush"), "{said}");
    }
}
