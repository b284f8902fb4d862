//! What every HTTP call to a destination passes: it is counted, and held to the rate.
//!
//! A delivery waits for its call before it takes an identity, so that it carries what is wanted
//! then: it has the call [promised](Meter::promise). Calls that cannot wait (a canary, a repetition
//! where the connection broke off, the judgement of a blank echo) are made at once and are made up
//! for by those that wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::{Clock, Millis};
use crate::rate::Rate;

/// The meter of one destination.
pub struct Meter {
    clock: Arc<dyn Clock>,
    is_limited: bool,
    account: Mutex<Account>,
}

struct Account {
    rate: Option<Rate>,
    /// Calls that may be made and were not yet.
    promised: u64,
}

/// Why no call is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// The rate allows the next one then.
    Until(Millis),
}

impl Meter {
    /// A meter that allows so many calls a second.
    pub fn new(clock: Arc<dyn Clock>, max_calls_per_second: Option<f64>) -> Self {
        let now = clock.now();
        Meter {
            clock,
            is_limited: max_calls_per_second.is_some(),
            account: Mutex::new(Account {
                rate: max_calls_per_second.map(|rate| Rate::new(rate, now)),
                promised: 0,
            }),
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
        if let Some(rate) = &mut account.rate {
            if let Some(at) = rate.wait_until(now) {
                return Err(NotNow::Until(at));
            }
            rate.take(now);
        }
        account.promised += 1;
        Ok(())
    }

    /// An HTTP call is made.
    pub fn pay(&self) {
        if !self.is_limited {
            return;
        }
        let now = self.clock.now();
        let mut account = self.account();
        if account.promised > 0 {
            account.promised -= 1;
        } else if let Some(rate) = &mut account.rate {
            rate.take(now);
        }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
