//! When to try again.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits between tries of one thing: 100 ms, doubled each time, at most 30 s.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    since: Instant,
    tries: u32,
    next: Instant,
}

impl Backoff {
    /// After the first failure, at `now`.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            tries: 1,
            next: now + FIRST,
        }
    }

    /// After another failure.
    pub(super) fn failed(&mut self, now: Instant) {
        let wait = FIRST.saturating_mul(1 << self.tries.min(16)).min(LONGEST);
        self.tries += 1;
        self.next = now + wait;
    }

    /// Whether it is time to try again.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// When to try again.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Failures so far.
    pub(super) fn tries(&self) -> u32 {
        self.tries
    }

    /// How long it has been failing.
    pub(super) fn lasting(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_thirty_seconds() {
        let start = Instant::now();
        let mut backoff = Backoff::new(start);
        assert!(!backoff.is_due(start) && backoff.is_due(start + FIRST));
        let mut waits = Vec::new();
        for _ in 0..12 {
            backoff.failed(start);
            waits.push(backoff.next() - start);
        }
        assert_eq!(waits[..3], [200, 400, 800].map(Duration::from_millis));
        assert_eq!(waits[11], LONGEST);
        assert_eq!(backoff.tries(), 13);
    }
}
