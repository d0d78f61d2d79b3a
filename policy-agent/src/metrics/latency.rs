//! How long changes take from the datastore to the kernel.

use prometheus_client::metrics::histogram::Histogram;

use crate::agent::Arrival;

/// Upper ends of the buckets, in seconds.
const BUCKETS: [f64; 13] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// The histogram; clones share it.
#[derive(Clone, Debug)]
pub struct Latency(Histogram);

impl Default for Latency {
    fn default() -> Self {
        Self(Histogram::new(BUCKETS))
    }
}

impl Latency {
    /// Notes changes that have just been enforced, each by itself.
    pub fn observe(&self, enforced: Vec<Arrival>) {
        for arrival in enforced {
            let seconds = arrival.received.elapsed().as_secs_f64();
            for _ in 0..arrival.changes {
                self.0.observe(seconds);
            }
        }
    }

    pub(super) fn histogram(&self) -> &Histogram {
        &self.0
    }
}
