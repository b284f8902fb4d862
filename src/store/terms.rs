//! Terms of a shared ledger: sought, kept, and over.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ledger::lease::{self, LEASE, Token};
use super::ledger::state::Ledger;
use super::readers::Readers;
use super::writer::{Urgency, Writer};
use super::{StoreError, Term};

/// How often who does not lead asks whether anybody does, and who does whether there is news.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often a term is given again.
const RENEW_EVERY: Duration = Duration::from_millis(2_500);

/// So long before the end of the lease the term is over: what was begun until then ends within it.
const MARGIN: Duration = Duration::from_secs(1);

/// Waits until this process leads. What is asked beside the work goes by `beside`, where it waits for
/// no transaction and for no reader.
pub async fn lead(
    work: &Writer,
    beside: &Readers,
    store: &CancellationToken,
) -> Result<Term, StoreError> {
    let ended = store.child_token();
    // Who goes away while it is asked leads nothing.
    let asking = ended.clone().drop_guard();
    if !beside.is_shared() {
        asking.disarm();
        return Ok(Term::new(ended).0);
    }
    loop {
        let asked_at = Instant::now();
        let token = ended.clone();
        let seek = move |ledger: &mut Ledger| ledger.seek_term(&token);
        if let Some(token) = work.write(Urgency::Work, seek, |_, _| {}).await? {
            asking.disarm();
            let (term, tell) = Term::new(ended);
            term.lasts_until(asked_at + LEASE - MARGIN);
            tokio::spawn(keep(term.clone(), token, tell, beside.clone()));
            return Ok(term);
        }
        // Without a turn of its own, which whoever leads would have to wait for.
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if beside.read(lease::is_free).await? {
                break;
            }
        }
    }
}

/// Keeps a term until it is over, however long the database takes to answer.
async fn keep(term: Term, token: Token, tell: watch::Sender<()>, beside: Readers) {
    tokio::select! {
        () = renew(&term, token, tell, beside) => {}
        () = over(&term) => {}
    }
    term.ended().cancel();
}

/// Returns once a term is over.
async fn over(term: &Term) {
    while !term.is_over() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = term.ended().cancelled() => {}
        }
    }
}

/// Renews a term for as long as anybody may, and says what is new.
async fn renew(term: &Term, token: Token, tell: watch::Sender<()>, beside: Readers) {
    let mut renewed_at = Instant::now();
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if renewed_at.elapsed() >= RENEW_EVERY {
            let asked_at = Instant::now();
            let renewed = beside.read(move |connection| lease::renew(connection, &token));
            match renewed.await {
                Ok(()) => {
                    renewed_at = asked_at;
                    term.lasts_until(asked_at + LEASE - MARGIN);
                }
                Err(StoreError::NotLeading) => break,
                Err(error) => tracing::warn!(%error, "the lead could not be renewed"),
            }
        }
        let news = beside.read(|connection| {
            let row = connection.query_row(
                "SELECT (SELECT changes FROM lease), (SELECT coalesce(max(seq), 0) FROM inbox)",
                (),
                |row| Ok((row.get::<i64>(0)?, row.get::<i64>(1)?)),
            );
            Ok(row?)
        });
        if let Ok(news) = news.await
            && seen.replace(news) != Some(news)
        {
            tell.send_replace(());
        }
    }
}
