//! What fails and is tried again.

use std::time::Instant;

use super::backoff::Backoff;

/// Why something fails, and when it is tried again.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: String,
    pub(super) backoff: Backoff,
}

impl Failure {
    /// After one more failure, at `now`.
    pub(super) fn after(
        previous: Option<Self>,
        error: &impl std::fmt::Display,
        now: Instant,
    ) -> Self {
        let error = error.to_string();
        match previous {
            Some(mut failure) => {
                failure.error = error;
                failure.backoff.failed(now);
                failure
            }
            None => Self {
                error,
                backoff: Backoff::new(now),
            },
        }
    }
}
