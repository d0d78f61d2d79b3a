//! One scrape: asks everybody and writes the text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::families::{self, Scrape};
use super::flow_use::FlowUse;
use super::process::ProcessUse;
use super::snapshot::Snapshot;
use crate::agent::{Health, Query};
use crate::dataplane::FlowTables;

/// How long a scrape waits for the agent's loop; Prometheus itself gives up after 10 s by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there are no metrics at the moment.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The loop is in the middle of something long.
    #[error(
        "the agent's loop did not answer within {0:?}: it is compiling, or stuck (see /livez); enforcement goes on"
    )]
    Busy(Duration),
    /// The loop has ended.
    #[error("the agent is stopping")]
    Stopping,
    /// The kernel's counters cannot be read.
    #[error("counters cannot be read: {0}")]
    Counters(String),
    /// Something of this machine cannot be read.
    #[error("{what}: {error}")]
    Unreadable {
        /// What.
        what: &'static str,
        /// Why.
        error: String,
    },
}

/// Answers scrapes.
#[derive(Debug)]
pub struct Scraper {
    queries: mpsc::Sender<Query>,
    health: watch::Receiver<Health>,
    flows: FlowUse,
}

impl Scraper {
    /// One that asks the agent's loop through `queries`.
    #[must_use]
    pub fn new(
        queries: mpsc::Sender<Query>,
        health: watch::Receiver<Health>,
        flows: FlowTables,
    ) -> Self {
        Self {
            queries,
            health,
            flows: FlowUse::new(flows),
        }
    }

    /// The text.
    ///
    /// # Errors
    ///
    /// When the agent's loop is busy for too long, or something cannot be read: numbers are never
    /// made up, and none is left out.
    pub async fn scrape(&self) -> Result<String, Unavailable> {
        let mut snapshot = timeout(PATIENCE, self.ask())
            .await
            .map_err(|_| Unavailable::Busy(PATIENCE))??;
        let unreadable = |what| move |error: String| Unavailable::Unreadable { what, error };
        let flows = self.flows.get().await;
        let flows = flows.map_err(|error| unreadable("flow tables")(error.to_string()))?;
        snapshot.tables.extend(flows);
        let process = ProcessUse::read();
        let process = process.map_err(|error| unreadable("/proc/self")(error.to_string()))?;
        let pause = self.health.borrow().beat.elapsed();
        let since_1970 = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let scrape = Scrape {
            snapshot,
            process,
            last_beat: since_1970.saturating_sub(pause).as_secs_f64(),
        };
        families::text(scrape).map_err(|error| unreadable("metrics")(error.to_string()))
    }

    async fn ask(&self) -> Result<Snapshot, Unavailable> {
        let (reply, answer) = oneshot::channel();
        let asked = self.queries.send(Query::Metrics(reply)).await;
        asked.map_err(|_| Unavailable::Stopping)?;
        answer
            .await
            .map_err(|_| Unavailable::Stopping)?
            .map_err(Unavailable::Counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scraper() -> (Scraper, mpsc::Receiver<Query>) {
        let (queries, asked) = mpsc::channel(1);
        let (_ends, health) = watch::channel(Health::starting());
        (Scraper::new(queries, health, FlowTables::default()), asked)
    }

    async fn failure(scraper: &Scraper) -> String {
        scraper.scrape().await.expect_err("no answer").to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn a_busy_loop_is_waited_for_only_so_long() {
        let (scraper, mut asked) = scraper();
        let busy = Unavailable::Busy(PATIENCE).to_string();
        assert_eq!(failure(&scraper).await, busy, "asked, but not answered");
        assert_eq!(
            failure(&scraper).await,
            busy,
            "not even asked: the queue is full"
        );
        let Some(Query::Metrics(reply)) = asked.recv().await else {
            panic!("the scrape asked for something else");
        };
        assert!(reply.is_closed(), "which the loop can see");
    }

    #[tokio::test]
    async fn a_scrape_says_why_there_is_none() {
        let (scraper, mut asked) = scraper();
        let answer = async {
            let Some(Query::Metrics(reply)) = asked.recv().await else {
                panic!("the scrape asked for something else");
            };
            reply
                .send(Err("out of order".to_owned()))
                .expect("asked for");
        };
        let (said, ()) = tokio::join!(failure(&scraper), answer);
        assert_eq!(said, "counters cannot be read: out of order");
        drop(asked);
        assert_eq!(failure(&scraper).await, "the agent is stopping");
    }

    #[test]
    fn this_process_is_seen() {
        let process = ProcessUse::read().expect("/proc/self");
        assert!(
            process.resident > 100_000 && process.open_fds >= 3,
            "{process:?}"
        );
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        let age = now.as_secs_f64() - process.started;
        assert!((-2.0..24.0 * 3600.0).contains(&age), "{process:?}");
    }
}
