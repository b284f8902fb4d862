//! The command line: parse, run, print what went wrong, exit.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use cohort_bridge::app::App;
use cohort_bridge::clock::{Clock, SystemClock};
use cohort_bridge::config::{
    AdminEndpoint, BackupSettings, ConfigError, Environment, HealthQuestion, LogFormat,
    MigrateSettings, ReplaySettings, SecretFiles, Settings,
};
use cohort_bridge::secrets::Secrets;
use cohort_bridge::{check, cli, demo, health, logging, moving, operator, replay};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The work failed.
const FAILED: u8 = 1;

/// Wrong usage or settings.
const WRONG_SETTINGS: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let command = cli::parse().command;
    match run(command).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            let wrong_settings = error.is::<ConfigError>();
            let mut line = format!("{error:#}");
            if wrong_settings {
                line = format!("cohort-bridge cannot start with these settings:\n{line}");
            }
            // Nobody is left to tell where even that fails.
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::from(if wrong_settings {
                WRONG_SETTINGS
            } else {
                FAILED
            })
        }
    }
}

async fn run(command: cli::Command) -> anyhow::Result<bool> {
    let environment = Environment::of_process();
    match command {
        cli::Command::Serve(args) => {
            let (settings, secret_files) = SecretFiles::read(args, environment)?;
            // Before anything that takes long: it would end a process that does not watch for it.
            let secrets = Secrets::new(secret_files, told_to_look()?);
            logging::init(settings.log_format, &settings.log_filter)?;
            for warning in &settings.warnings {
                tracing::warn!("{warning}");
            }
            let app = App::build(settings, Arc::new(SystemClock)).await?;
            app.keeping_up(secrets).run_until(told_to_stop()?).await?;
            Ok(true)
        }
        cli::Command::Check(args) => {
            let settings = Settings::from_args(&args, &environment)?;
            Ok(check::check(&settings, &SystemClock, &mut std::io::stdout()).await?)
        }
        cli::Command::Health(args) => {
            let question = HealthQuestion::from_args(&args, &environment)?;
            let said = health::ask(&question, health::LIMIT).await?;
            // A supervisor wants the exit code; it may have closed standard output.
            let _ = writeln!(std::io::stdout(), "{said}");
            Ok(true)
        }
        cli::Command::Demo(args) => {
            logging::init(LogFormat::Text, "warn")?;
            demo::demo(args.stay, told_to_stop()?, &mut std::io::stdout()).await
        }
        cli::Command::Replay(args) => {
            let settings = ReplaySettings::from_args(&args, &environment)?;
            let summary = replay::Replay::new(&settings, Arc::new(SystemClock))?
                .run(&settings.paths, &mut std::io::stdout())
                .await?;
            Ok(summary.is_success())
        }
        cli::Command::Backup(args) => {
            let settings = BackupSettings::from_args(&args, &environment)?;
            let copying = move || moving::backup(&settings, &mut std::io::stdout());
            tokio::task::spawn_blocking(copying).await??;
            Ok(true)
        }
        cli::Command::MigrateStore(args) => {
            let settings = MigrateSettings::from_args(&args, &environment)?;
            let now = SystemClock.now();
            let moving = move || moving::migrate(&settings, now, &mut std::io::stdout());
            tokio::task::spawn_blocking(moving).await?
        }
        cli::Command::Operator(command) => {
            let (args, action) = command.into_action();
            let endpoint = AdminEndpoint::from_args(&args, &environment)?;
            let output = if args.json {
                operator::Output::Json
            } else {
                operator::Output::Table
            };
            operator::run(&action, &endpoint, output, &mut std::io::stdout()).await?;
            Ok(true)
        }
    }
}

/// Told by SIGHUP.
fn told_to_look() -> anyhow::Result<Arc<Notify>> {
    let told = Arc::new(Notify::new());
    let tell = Arc::clone(&told);
    let mut hangup = signal(SignalKind::hangup()).context("SIGHUP cannot be watched")?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tell.notify_one();
        }
    });
    Ok(told)
}

/// Cancelled by SIGTERM or SIGINT.
fn told_to_stop() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be watched")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be watched")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
