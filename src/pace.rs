//! How many calls at once do a destination good. Pure.
//!
//! A server answers so many calls at once as it has workers; whatever is called beyond that stands
//! in its queue, and each call takes longer without one more being answered. So the answers' time
//! tells when it is enough. A round is as many answers as calls may be under way; its median is
//! held against what is usual where nothing queues:
//!
//! | a round's median | what follows |
//! |---|---|
//! | at most 1.5 × usual + [`SLACK`] | the limit grows, where it was reached |
//! | more than that | the limit stays |
//! | more than 2 × usual + [`SLACK`] | the limit shrinks to ¾ |
//! | the server is too busy, or too many calls of a round fail | the limit is halved, at once |
//!
//! In the beginning and after a closure every calm answer adds one, which doubles the limit with
//! every round; later a round adds about a sixteenth. A call that began before the limit last
//! shrank says nothing about the present one and is not heard: what was under way when a server
//! stalled costs one step, however many calls it was.
//!
//! What is usual changes for good now and then. So where shrinking did not help, and every
//! [`LOOK_EVERY`] while the limit only stays, a look is taken: for the length of a round a quarter
//! of the calls go out, and their median is what is usual. The median, and not the shortest time
//! as in TCP Vegas, because a lucky answer is not what an unloaded server takes.

use std::time::Duration;

use crate::clock::{Millis, millis};

#[cfg(test)]
mod tests;

/// Growth of the answers' time that is not heard: on a busy machine a task waits about so long
/// for its turn, and a server that answers in a millisecond would look crowded.
pub const SLACK: Duration = Duration::from_millis(10);

/// How often to look whether the server became faster, where the limit neither grows nor shrinks.
/// A look costs some tenths of a second at reduced speed: less than one percent.
pub const LOOK_EVERY: Duration = Duration::from_secs(20);

/// Calls at once in the beginning: what the smallest server bears.
const FIRST_LIMIT: usize = 4;

/// Answers that a round has at least: fewer have no median to speak of.
const LEAST_ROUND: usize = 8;

/// The share of a round's calls that may fail before that counts as the server's trouble:
/// Flagsmith answers 500 to some identities whatever its load.
const FAILING_SHARE: usize = 16;

/// Which limit a call began under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

/// How a call ended, as far as the server's load goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was carried out, after this long.
    Answer(Duration),
    /// It failed, perhaps for its own reasons.
    Failure,
    /// The server has too much to do, or cannot be reached.
    Busy,
    /// Nothing that load has to do with.
    Nothing,
}

/// The limit of one destination.
#[derive(Clone, Debug)]
pub struct Pace {
    ceiling: usize,
    limit: usize,
    /// Counts what makes earlier calls' times worthless.
    era: u32,
    /// Every calm answer raises the limit.
    is_starting: bool,
    /// What a call takes where nothing queues, in microseconds.
    usual: Option<u32>,
    /// When that was last looked at, or the limit could grow.
    calm_at: Millis,
    /// The limit for after the look that is being taken.
    looking: Option<usize>,
    /// The limit shrank and nothing was heard since.
    shrank: bool,
    round: Round,
}

impl Pace {
    /// The pace of a destination that nothing is known of, of at most `ceiling` calls at once.
    pub fn new(ceiling: usize) -> Self {
        let limit = FIRST_LIMIT.min(ceiling);
        Pace {
            ceiling,
            limit,
            era: 0,
            is_starting: true,
            usual: None,
            calm_at: Millis::MIN,
            looking: None,
            shrank: false,
            round: Round::of(limit),
        }
    }

    /// Calls that may be under way.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// A call begins, and `under_way` are now, with it.
    pub fn begun(&mut self, under_way: usize) -> Ticket {
        self.round.is_filled |= under_way >= self.limit;
        Ticket(self.era)
    }

    /// A call ended.
    pub fn ended(&mut self, ticket: Ticket, heard: Heard, now: Millis) {
        if ticket.0 != self.era {
            return;
        }
        match heard {
            Heard::Answer(took) => self.answered(took, now),
            Heard::Failure => {
                self.round.failures += 1;
                if self.round.failures * FAILING_SHARE > self.limit {
                    self.set_limit(self.limit / 2);
                }
            }
            Heard::Busy => self.set_limit(self.limit / 2),
            Heard::Nothing => {}
        }
    }

    /// The destination was closed and is called again: one call at once, then as in the beginning.
    pub fn restart(&mut self) {
        self.set_limit(1);
        self.is_starting = true;
    }

    fn answered(&mut self, took: Duration, now: Millis) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.round.times.add(took);
        if self.is_starting
            && self.round.is_filled
            && self.usual.is_some_and(|usual| took <= calm(usual))
        {
            self.limit = (self.limit + 1).min(self.ceiling);
        }
        if self.round.times.count >= self.round.length {
            let ended = std::mem::replace(&mut self.round, Round::of(self.limit));
            self.judge(ended.times.median(), ended.is_filled, now);
        }
    }

    fn judge(&mut self, median: u32, was_filled: bool, now: Millis) {
        if let Some(limit) = self.looking {
            self.set_limit(limit);
            self.usual = Some(median);
            self.calm_at = now;
            return;
        }
        let usual = match self.usual {
            // A time far below what is usual was never usual.
            Some(usual) if median < usual / 2 => median,
            Some(usual) if median < usual => usual - (usual - median) / 4,
            Some(usual) => usual,
            None => median,
        };
        self.usual = Some(usual);
        let shrank = std::mem::take(&mut self.shrank);
        if median <= calm(usual) {
            self.calm_at = now;
            if was_filled && !self.is_starting {
                self.limit = (self.limit + 1 + self.limit / 16).min(self.ceiling);
            }
            return;
        }
        self.is_starting = false;
        if median > crowded(usual) {
            if shrank {
                self.look();
            } else {
                self.set_limit(self.limit - self.limit.div_ceil(4));
                self.shrank = true;
            }
        } else if !(0..millis(LOOK_EVERY)).contains(&now.saturating_sub(self.calm_at)) {
            self.look();
        }
    }

    /// Finds out what a call takes where nothing queues.
    fn look(&mut self) {
        let limit = self.limit;
        self.set_limit(limit / 4);
        self.looking = Some(limit);
    }

    /// Another limit than the calls under way began under.
    fn set_limit(&mut self, limit: usize) {
        self.limit = limit.clamp(1, self.ceiling);
        self.era = self.era.wrapping_add(1);
        self.is_starting = false;
        self.looking = None;
        self.shrank = false;
        self.round = Round::of(self.limit);
    }
}

/// The longest time in microseconds at which more can be called, where `usual` is usual.
fn calm(usual: u32) -> u32 {
    usual.saturating_add(usual / 2).saturating_add(SLACK_MICROS)
}

/// The longest time in microseconds that is borne.
fn crowded(usual: u32) -> u32 {
    usual.saturating_mul(2).saturating_add(SLACK_MICROS)
}

const SLACK_MICROS: u32 = SLACK.as_micros() as u32;

/// What was heard under one limit.
#[derive(Clone, Debug)]
struct Round {
    /// Answers that make it whole.
    length: usize,
    times: Times,
    failures: usize,
    /// The limit was reached.
    is_filled: bool,
}

impl Round {
    fn of(limit: usize) -> Self {
        Round {
            length: limit.max(LEAST_ROUND),
            times: Times::default(),
            failures: 0,
            is_filled: false,
        }
    }
}

/// Steps in which a doubling of time is told apart.
const STEPS: usize = 8;

/// Times in microseconds, counted by size, so that their median is known without keeping them.
#[derive(Clone, Debug)]
struct Times {
    counts: [u16; 30 * STEPS],
    count: usize,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            counts: [0; 30 * STEPS],
            count: 0,
        }
    }
}

impl Times {
    fn add(&mut self, micros: u32) {
        let count = &mut self.counts[step(micros)];
        *count = count.saturating_add(1);
        self.count += 1;
    }

    /// The median, off by at most a sixteenth.
    fn median(&self) -> u32 {
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += usize::from(*count);
            if seen * 2 >= self.count {
                return middle(at);
            }
        }
        u32::MAX
    }
}

/// Where a time is counted.
fn step(micros: u32) -> usize {
    let Some(shift) = micros.checked_ilog2().and_then(|log| log.checked_sub(3)) else {
        return micros as usize;
    };
    (shift as usize + 1) * STEPS + ((micros >> shift) as usize & (STEPS - 1))
}

/// The middle of the times that are counted there.
fn middle(step: usize) -> u32 {
    match (step / STEPS).checked_sub(1) {
        None => step as u32,
        Some(shift) => ((((STEPS + step % STEPS) << 1 | 1) << shift) / 2) as u32,
    }
}
