//! What every HTTP call to a destination passes: it is counted, and held to the rate and the budget.
//!
//! A delivery waits for its call before it takes an identity, so that it carries what is wanted
//! then: it has the call [promised](Meter::promise). Calls that cannot wait (a canary, a repetition
//! where the connection broke off, the judgement of a blank echo) are made at once, whatever the
//! rate, and are made up for by those that wait. No call is made beyond the budget.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::calls::{CallOrder, Calls, CallsCounted, CallsView, Payment};
use crate::clock::{Clock, Millis};
use crate::month::Month;
use crate::rate::Rate;
use crate::store::Term;

/// The meter of one destination.
pub struct Meter {
    clock: Arc<dyn Clock>,
    /// Calls may have to wait.
    is_limited: bool,
    account: Mutex<Account>,
    /// There is an order for the ledger, or the budget is used up.
    ordered: Notify,
    /// The ledger granted calls, or refused.
    answered: Notify,
    /// When it is over no call is made.
    term: Term,
}

struct Account {
    rate: Option<Rate>,
    calls: Calls,
    /// Calls that may be made and were not yet.
    promised: u64,
}

/// What a destination may be called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Allowance {
    /// Calls a second at most.
    pub per_second: Option<f64>,
    /// Calls a calendar month at most.
    pub per_month: Option<u64>,
}

/// Why no call is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// The rate allows the next one then.
    Until(Millis),
    /// The ledger has to grant more, or the budget is used up.
    Ungranted,
}

impl Meter {
    /// A meter that allows so much; what was called this month is not known to it yet.
    pub fn new(clock: Arc<dyn Clock>, allowance: Allowance) -> Self {
        Meter::within(clock, allowance, Term::for_ever())
    }

    /// A meter that allows so much until the term is over, and nothing then.
    pub fn within(clock: Arc<dyn Clock>, allowance: Allowance, term: Term) -> Self {
        let now = clock.now();
        Meter {
            clock,
            is_limited: allowance != Allowance::default(),
            account: Mutex::new(Account {
                rate: allowance.per_second.map(|rate| Rate::new(rate, now)),
                calls: Calls::new(allowance.per_month, now),
                promised: 0,
            }),
            ordered: Notify::new(),
            answered: Notify::new(),
            term,
        }
    }

    /// Whether calls may have to wait.
    pub fn is_limited(&self) -> bool {
        self.is_limited
    }

    /// Promises one call, which the next [`Meter::pay`] is.
    ///
    /// # Errors
    /// Where it has to wait.
    pub fn promise(&self) -> Result<(), NotNow> {
        if !self.is_limited {
            return Ok(());
        }
        let now = self.clock.now();
        let mut account = self.account();
        if let Some(at) = account.rate.as_mut().and_then(|rate| rate.wait_until(now)) {
            return Err(NotNow::Until(at));
        }
        let paid = self.pay_from(&mut account, now);
        if paid != Payment::Paid {
            return Err(NotNow::Ungranted);
        }
        account.promised += 1;
        Ok(())
    }

    /// An HTTP call is to be made; whether it may be, once that is known.
    pub async fn pay(&self) -> bool {
        if let Some(may) = self.try_pay() {
            return may;
        }
        loop {
            // Registered before looking, so that no answer is missed.
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            match self.try_pay() {
                Some(may) => return may,
                None => tokio::select! {
                    () = answered => {}
                    () = self.term.ended().cancelled() => {}
                },
            }
        }
    }

    fn try_pay(&self) -> Option<bool> {
        if self.term.is_over() {
            return Some(false);
        }
        let now = self.clock.now();
        let mut account = self.account();
        if account.promised > 0 {
            account.promised -= 1;
            return Some(true);
        }
        match self.pay_from(&mut account, now) {
            Payment::Paid => Some(true),
            Payment::NotYet => None,
            Payment::UsedUp => Some(false),
        }
    }

    fn pay_from(&self, account: &mut Account, now: Millis) -> Payment {
        let paid = account.calls.pay(now);
        if paid == Payment::Paid
            && let Some(rate) = &mut account.rate
        {
            rate.take(now);
        }
        if account.calls.has_order(now) || account.calls.used_up(now).is_some() {
            self.ordered.notify_one();
        }
        paid
    }

    /// What the ledger should do now; to be [answered](Meter::answer).
    pub fn order(&self) -> Option<CallOrder> {
        self.account().calls.order(self.clock.now())
    }

    /// Returns when there may be an order or the budget is used up, at the latest when time brings an
    /// order.
    pub async fn wait_for_order(&self) {
        let again = self.account().calls.look_again_at(self.clock.now());
        tokio::select! {
            () = self.ordered.notified() => {}
            () = self.clock.sleep_until(again) => {}
        }
    }

    /// What the ledger did; `None` where it could not.
    pub fn answer(&self, order: CallOrder, counted: Option<CallsCounted>) {
        let mut account = self.account();
        match counted {
            Some(counted) => account.calls.counted(order, counted, self.clock.now()),
            None => account.calls.not_counted(),
        }
        drop(account);
        self.answered.notify_waiters();
    }

    /// What is left to write down when no more calls are made.
    pub fn last_order(&self) -> CallOrder {
        self.account().calls.last_order(self.clock.now())
    }

    /// The month whose budget is used up.
    pub fn used_up(&self) -> Option<Month> {
        if !self.is_limited {
            return None;
        }
        self.account().calls.used_up(self.clock.now())
    }

    /// What to tell people of this month's calls.
    pub fn view(&self) -> CallsView {
        self.account().calls.view(self.clock.now())
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn whoever_waits_for_a_grant_at_the_end_of_the_term_gets_none() {
        for per_month in [None, Some(10)] {
            let clock = Arc::new(ManualClock::at(0));
            let ended = CancellationToken::new();
            let allowance = Allowance {
                per_second: None,
                per_month,
            };
            let meter = Meter::within(clock, allowance, Term::new(ended.clone()).0);
            let mut paid = std::pin::pin!(meter.pay());
            let at_once = paid.as_mut().now_or_never();
            assert_eq!(at_once, per_month.is_none().then_some(true));
            ended.cancel();
            if at_once.is_none() {
                assert_eq!(paid.now_or_never(), Some(false));
            }
            assert_eq!(meter.pay().now_or_never(), Some(false));
        }
    }
}
