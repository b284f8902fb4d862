//! What is done to a ledger as a whole.

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;

/// Which ledger is copied, and where to.
#[derive(Args, Clone, Debug)]
pub struct BackupArgs {
    /// Where the ledger is kept: sqlite:// and the path of its file.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<SecretString>,
    /// The new file; one that is there is never written over [flag only].
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
}

/// Which ledger is moved, and where to.
#[derive(Args, Clone, Debug, Default)]
pub struct MigrateArgs {
    /// The ledger: sqlite:// and the path of its file.
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// An empty database: postgres://user:password@host/database; other users see flags, so better set the variable.
    #[arg(long, value_name = "URL", conflicts_with = "take_back")]
    pub to: Option<SecretString>,
    /// Move nothing: let the file that was moved be used again, as it was then [flag only].
    #[arg(long)]
    pub take_back: bool,
}

#[cfg(test)]
mod tests {
    use crate::cli::{Command, try_parse_from};

    #[test]
    fn secrets_are_not_in_debug_output() {
        for line in [
            "backup --to a --database-url postgres://u:hush@h/d",
            "migrate-store --from sqlite://a --to postgres://u:hush@h/d",
        ] {
            let words = std::iter::once("cohort-bridge").chain(line.split(' '));
            let command = try_parse_from(words).unwrap();
            assert!(!format!("{command:?}").contains("hush"));
        }
    }

    #[test]
    fn what_is_moved_is_not_taken_back() {
        let parsed = |line: &str| {
            let words = std::iter::once("cohort-bridge").chain(line.split(' '));
            try_parse_from(words).map(|cli| cli.command)
        };
        for wrong in ["backup", "migrate-store --take-back --to postgres://h/d"] {
            assert_eq!(parsed(wrong).unwrap_err().exit_code(), 2, "{wrong}");
        }
        let taken = parsed("migrate-store --from sqlite://a --take-back").unwrap();
        assert!(matches!(taken, Command::MigrateStore(args) if args.take_back));
    }
}
