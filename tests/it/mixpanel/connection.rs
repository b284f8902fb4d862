//! One cohort, brought over a bad network to a receiver.

use cohort_bridge::clock::Millis;
use fastrand::Rng;

use super::evidence::{History, PageId};
use super::network::{Fate, Faults, any_time};
use super::protocol::{Half, Mixpanel};

/// From one run to the next: 30 minutes.
pub const RUN_EVERY_MS: Millis = 30 * 60_000;

/// How often a page is tried again.
const RETRIES: u32 = 5;

/// The wait before the first retry; each further one doubles it, which comes to 60 s.
const FIRST_WAIT_MS: Millis = 60_000 / ((1 << RETRIES) - 1);

/// What one request takes.
const REQUEST_MS: Millis = 120;

/// Whom the pages are sent to.
pub trait Receiver {
    /// Takes a request in, as far as answering it 200.
    async fn receive(&mut self, body: &[u8], now: Millis);

    /// Answers a request 503.
    async fn refuse(&mut self, body: &[u8], now: Millis);

    /// Dies on the spot and starts again.
    async fn kill(&mut self, now: Millis);

    /// Has time to finish what it took in.
    async fn rest(&mut self, now: Millis);
}

/// A page that is under way.
struct UnderWay {
    due_at: Millis,
    page: PageId,
    body: Vec<u8>,
}

/// One cohort's connection.
pub struct Connection<R> {
    /// The sender.
    pub mixpanel: Mixpanel,
    /// The receiver.
    pub receiver: R,
    /// What goes wrong; may be changed at any time.
    pub faults: Faults,
    /// What was sent, and what of it arrived.
    pub history: History,
    /// The time.
    pub now: Millis,
    rng: Rng,
    under_way: Vec<UnderWay>,
    /// Taken in by a relay, not yet brought.
    relay: Vec<(PageId, Vec<u8>)>,
    outage_until: Millis,
    outage: Fate,
    /// Everything that was sent, and when.
    sent: Vec<(Millis, PageId, Vec<u8>)>,
}

impl<R: Receiver> Connection<R> {
    /// A connection on which nothing happened yet.
    pub fn new(
        mixpanel: Mixpanel,
        receiver: R,
        faults: Faults,
        now: Millis,
        rng: &mut Rng,
    ) -> Self {
        Connection {
            history: History::new(mixpanel.knobs()),
            mixpanel,
            receiver,
            faults,
            now,
            rng: rng.fork(),
            under_way: Vec::new(),
            relay: Vec::new(),
            outage_until: Millis::MIN,
            outage: Fate::RequestLost,
            sent: Vec::new(),
        }
    }

    /// Half an hour of churn, then one run; whether Mixpanel takes it for a success.
    pub async fn run(&mut self) -> bool {
        self.mixpanel.churn(&mut self.rng);
        self.pass(RUN_EVERY_MS).await;
        self.sync().await
    }

    /// One run, now.
    pub async fn sync(&mut self) -> bool {
        if self.rng.f64() < self.faults.outages && self.now >= self.outage_until {
            // It may begin in the middle of the run.
            let length = any_time(&self.faults.outage_ms, &mut self.rng);
            self.outage_until = self.now + length;
            self.outage = *self.pick(&[Fate::RequestLost, Fate::ReplyLost, Fate::Refused]);
        }
        let sync = self.mixpanel.begin(self.now);
        let run = self.history.begin(&sync);
        let mut is_accepted = true;
        for (number, half) in sync.halves.iter().enumerate() {
            if is_accepted || self.mixpanel.knobs().goes_on_after_failure {
                is_accepted &= self.send_half(run, number, half).await;
            }
        }
        while !self.relay.is_empty() {
            self.bring_one().await;
        }
        self.mixpanel.conclude(sync, is_accepted);
        self.history.conclude(run, is_accepted);
        self.receiver.rest(self.now).await;
        is_accepted
    }

    /// Nothing goes wrong any more, and what is under way arrives.
    pub async fn calm_down(&mut self) {
        self.faults = Faults::none();
        let last = self.under_way.iter().map(|page| page.due_at).max();
        let until = last.unwrap_or(self.now).max(self.outage_until);
        self.pass((until - self.now).max(0)).await;
        self.receiver.rest(self.now).await;
    }

    /// Time passes, and what is due arrives.
    pub async fn pass(&mut self, by: Millis) {
        let until = self.now + by;
        while let Some(next) = (0..self.under_way.len())
            .filter(|&index| self.under_way[index].due_at <= until)
            .min_by_key(|&index| self.under_way[index].due_at)
        {
            let UnderWay { due_at, page, body } = self.under_way.remove(next);
            self.now = self.now.max(due_at);
            self.deliver(page, &body).await;
        }
        self.now = until;
    }

    /// Every page sent since then arrives, once more or after all, in any order; but none of a
    /// session of which nothing arrived before: that would be a new one.
    pub async fn repeat_all(&mut self, since: Millis) {
        let mut pages = std::mem::take(&mut self.sent);
        pages.retain(|(at, page, _)| *at >= since && self.history.is_heard_of(*page));
        self.rng.shuffle(&mut pages);
        for (_, page, body) in pages {
            self.deliver(page, &body).await;
        }
        self.receiver.rest(self.now).await;
    }

    async fn send_half(&mut self, run: usize, number: usize, half: &Half) -> bool {
        let is_relayed = self.rng.f64() < self.faults.relayed;
        if is_relayed {
            self.history.relayed(run, number);
        }
        for index in 0..half.pages.len() {
            let page = PageId {
                run,
                half: number,
                page: index,
            };
            let body = self.mixpanel.body(half, index);
            self.sent.push((self.now, page, body.clone()));
            if is_relayed {
                self.relay.push((page, body));
            } else if !self.send(page, body).await {
                return false;
            }
            if !self.relay.is_empty() && self.rng.bool() {
                self.bring_one().await;
            }
        }
        true
    }

    /// Sends a page until it is answered 200, or for the last time.
    async fn send(&mut self, page: PageId, body: Vec<u8>) -> bool {
        let fails = self.rng.f64() < self.faults.pages_fail;
        let mut kind = Faults::failure(&mut self.rng);
        for attempt in 0..=RETRIES {
            if attempt > 0 {
                self.pass(FIRST_WAIT_MS << (attempt - 1)).await;
            }
            self.pass(REQUEST_MS).await;
            let fate = if self.now < self.outage_until {
                self.outage
            } else if fails || (attempt < RETRIES && self.rng.f64() < self.faults.hiccups) {
                kind
            } else {
                Fate::Delivered
            };
            if self.attempt(page, &body, fate).await {
                return true;
            }
            // Mostly the same thing goes wrong again; a service that died is not killed again.
            if self.rng.f64() < 0.3 || matches!(kind, Fate::KilledBefore | Fate::KilledAfter) {
                kind = *self.pick(&[
                    Fate::RequestLost,
                    Fate::ReplyLost,
                    Fate::Refused,
                    Fate::Late,
                ]);
            }
        }
        false
    }

    /// One request; whether Mixpanel sees a 200.
    async fn attempt(&mut self, page: PageId, body: &[u8], fate: Fate) -> bool {
        match fate {
            Fate::Delivered => {
                self.deliver(page, body).await;
                if self.rng.f64() < self.faults.repeats {
                    self.put_under_way(page, body);
                }
                return true;
            }
            Fate::RequestLost => {}
            Fate::ReplyLost => self.deliver(page, body).await,
            Fate::Refused => {
                self.history.refused(page);
                self.receiver.refuse(body, self.now).await;
            }
            Fate::Late => self.put_under_way(page, body),
            Fate::KilledBefore => self.receiver.kill(self.now).await,
            Fate::KilledAfter => {
                self.deliver(page, body).await;
                self.receiver.kill(self.now).await;
            }
        }
        false
    }

    async fn deliver(&mut self, page: PageId, body: &[u8]) {
        self.history.arrived(page);
        self.receiver.receive(body, self.now).await;
    }

    fn put_under_way(&mut self, page: PageId, body: &[u8]) {
        let due_at = self.now + any_time(&self.faults.late_ms, &mut self.rng);
        self.under_way.push(UnderWay {
            due_at,
            page,
            body: body.to_vec(),
        });
    }

    /// The relay brings any one of its pages.
    async fn bring_one(&mut self) {
        let (page, body) = self.relay.swap_remove(self.rng.usize(0..self.relay.len()));
        self.deliver(page, &body).await;
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.rng.usize(0..of.len())]
    }
}
