//! The daemon: wires datastore, discovery, engine and the two servers together, and runs until it is
//! told to stop.

mod attachments;
mod backoff;
mod drops;
mod engine;
mod exits;
mod failure;
mod guards;
mod kernel;
pub mod lock;
mod operations;
mod pod_starts;
mod query;
mod readiness;
mod record_files;
mod services;
mod views;

pub use attachments::{CniAnswer, CniQuery, RECORDS};
pub use engine::{Arrival, EndpointSettings, EndpointState, Engine, StuckPlan};
pub use exits::ExitState;
pub use kernel::Kernel;
pub use operations::{Operations, Tally};
pub use query::Query;
pub use readiness::Health;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use policy_common::event::Event;
use policy_common::map::{self, MapSpec};
use policy_core::Limits;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::cni::bandwidth_comes_after_ours;
use crate::config::{Config, DatastoreConfig, SOCKET};
use crate::dataplane::{self, Dataplane, DataplaneConfig, Drifts, EventStream};
use crate::datastore::{self, Datastore, Update};
use crate::endpoint::{self, Discovery, Report, ScanReport};
use crate::http;
use crate::memory;
use crate::metrics::{Latency, Scraper};
use attachments::Attachments;
use pod_starts::PodStarts;
use query::Sync;

/// Drop events that may wait to be logged.
const WAITING_EVENTS: usize = 4096;

/// Questions that may wait: as many as a node has pods, all started at once.
const WAITING_QUERIES: usize = 256;

/// How often the loop shows that it lives, and looks for lost events.
const BEAT: Duration = Duration::from_secs(1);

/// How often tables and pins are compared with what was put there.
const VERIFY: Duration = Duration::from_secs(5);

/// How long after a failure a grace period is waited for again.
const GRACE_RETRY: Duration = Duration::from_secs(1);

/// How often lost events are logged at most.
const LOSS_REPORT: Duration = Duration::from_secs(60);

/// Runs the agent until SIGTERM or SIGINT. What it enforces stays in force when it ends.
///
/// # Errors
///
/// When something that it needs is not to be had at the start; each with a sentence that says what.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = Stop::new()?;
    let _run_lock = lock::run_directory(&config.run_dir)?;
    let pins_lock = lock::pins(&config.bpffs)?;
    let health_listener = tokio::net::TcpListener::bind(config.health)
        .await
        .with_context(|| {
            format!(
                "HEALTH_ADDR={}: cannot listen there (another agent on this node needs another one)",
                config.health
            )
        })?;
    let (health, health_out) = watch::channel(Health::starting());
    let scraper = Arc::new(OnceLock::new());
    tokio::spawn(http::health::serve(
        health_listener,
        health_out.clone(),
        scraper.clone(),
    ));
    // First, so that what is wrong with its configuration is said at once, and it reads meanwhile.
    let datastore = start_datastore(&config)?;
    let mut dataplane = Dataplane::load(&DataplaneConfig {
        bpffs: config.bpffs.clone(),
        log_drops: config.log_drops,
        log_decisions: config.log_decisions,
        capacities: config.table_sizes.clone(),
        attach_mode: config.attach_mode,
        ..DataplaneConfig::default()
    })?;
    let _pins_lock = match pins_lock {
        Some(lock) => Some(lock),
        None => lock::pins(&config.bpffs)?,
    };
    let drifts = dataplane
        .watch()
        .context("netlink, to notice when programs are detached")?;
    let events = if config.log_drops {
        Some(dataplane.events()?)
    } else {
        None
    };
    if config.log_decisions {
        tokio::spawn(follow_decisions(dataplane.ebpf_mut())?);
    }
    let socket = config.run_dir.join(SOCKET);
    let socket_listener = http::local::listen(&socket)
        .with_context(|| format!("local socket {}", socket.display()))?;
    let attachments = Attachments::open(&config.run_dir)?;
    let discovery =
        endpoint::start(attachments.expected()).context("netlink, to look for pod interfaces")?;
    let lookup = endpoint::Lookup::new().context("netlink, to look at pod interfaces")?;

    let (queries_in, queries) = mpsc::channel(WAITING_QUERIES);
    let _started_once = scraper.set(Scraper::new(
        queries_in.clone(),
        health_out,
        dataplane.flow_tables(),
    ));
    tokio::spawn(http::local::serve(socket_listener, queries_in, lookup));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = &*config.node,
        datastore = ?config.datastore,
        socket = %socket.display(),
        health = %config.health,
        "policy-agent started"
    );
    let former = dataplane.take_former();
    if let Some(former) = &former {
        tracing::info!(
            endpoints = former.endpoints.len(),
            addresses = former.identities.len(),
            "an earlier agent's tables are taken over; what they enforce stays in force until all is known"
        );
    }
    let sizes = limits(&config.table_sizes);
    let losses = Losses::of_earlier_agents(&dataplane);
    let engine = Engine::new(dataplane, sizes, config.node.clone(), former)
        .with_settings(config.endpoints.clone());
    let pod_starts = PodStarts::start(&config)?;
    let mut agent = Agent {
        engine,
        config,
        datastore,
        discovery,
        queries,
        health,
        syncs: Vec::new(),
        last_token: 0,
        scan_error: None,
        unlogged: Arc::default(),
        drops_logged: 0,
        latency: Latency::default(),
        losses,
        attachments,
        pod_starts,
        drifts,
    };
    agent.adopt_attachments();
    agent.look_for_bandwidth();
    if agent.config.cni.is_some() || agent.engine.announced().iter().next().is_some() {
        agent.engine.expect_announcements();
    }
    agent.run(events, stop).await?;
    let _nobody_connects_any_more = std::fs::remove_file(&socket);
    tracing::info!("policy-agent stops; programs, tables and connections stay in force");
    Ok(())
}

fn start_datastore(config: &Config) -> anyhow::Result<Datastore> {
    match &config.datastore {
        DatastoreConfig::Files(directory) => datastore::files::start(directory)
            .with_context(|| format!("DATASTORE_PATH={}", directory.display())),
        DatastoreConfig::Kubernetes(api) => {
            for warning in api.warnings() {
                tracing::warn!("{warning}");
            }
            let client = datastore::kubernetes::client(api)?;
            let source = api.source();
            Ok(datastore::kubernetes::start(
                client,
                source,
                config.node.clone(),
            ))
        }
    }
}

/// The compiler's limits: those of the kernel's tables.
fn limits(sizes: &BTreeMap<String, u32>) -> Limits {
    let size = |table: MapSpec| sizes.get(table.name).copied().unwrap_or(table.capacity);
    Limits {
        policies: size(map::POLICIES),
        peers: size(map::PEERS),
        ports: size(map::PORTS),
        rule_counts: size(map::RULE_COUNTS),
        identity_v4: size(map::IDENTITY_V4),
        identity_v6: size(map::IDENTITY_V6),
        prefix_v4: size(map::PREFIX_V4),
        prefix_v6: size(map::PREFIX_V6),
        ..Limits::default()
    }
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT")?,
        })
    }

    async fn asked(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

struct Agent {
    engine: Engine<Dataplane>,
    config: Config,
    datastore: Datastore,
    discovery: Discovery,
    queries: mpsc::Receiver<Query>,
    health: watch::Sender<Health>,
    syncs: Vec<Sync>,
    last_token: u64,
    scan_error: Option<String>,
    /// Events that came faster than they could be logged.
    unlogged: Arc<AtomicU64>,
    drops_logged: u64,
    latency: Latency,
    losses: Losses,
    attachments: Attachments,
    pod_starts: PodStarts,
    drifts: Drifts,
}

/// Drop events that were not logged, as last told.
struct Losses {
    told: (u64, u64, u64),
    told_at: Option<Instant>,
}

impl Losses {
    /// What was counted in tables that are used on is not this agent's to tell.
    fn of_earlier_agents(dataplane: &Dataplane) -> Self {
        let (limited, full) = dataplane.events_lost().unwrap_or_default();
        Self {
            told: (limited, full, 0),
            told_at: None,
        }
    }
}

impl Agent {
    async fn run(mut self, events: Option<EventStream>, mut stop: Stop) -> anyhow::Result<()> {
        let (drops_in, mut drops) = mpsc::channel(WAITING_EVENTS);
        if let Some(events) = events {
            tokio::spawn(follow_events(events, drops_in, self.unlogged.clone()));
        }
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut verify_at = Instant::now() + VERIFY;
        let mut trimmed = false;
        let mut grace: Option<JoinHandle<()>> = None;
        loop {
            let retry_at = self.engine.step(Instant::now());
            if self.engine.is_loaded() && !std::mem::replace(&mut trimmed, true) {
                // The load was in memory twice, in pieces and put together.
                memory::give_back();
            }
            self.latency.observe(self.engine.take_enforced());
            if self.engine.begin_grace() {
                grace = Some(tokio::task::spawn_blocking(wait_for_grace));
            }
            self.finish_syncs();
            let wake_at = self.finish_attachments().into_iter().chain(retry_at).min();
            self.publish_health();
            let retry = async {
                match wake_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                signal = stop.asked() => {
                    tracing::info!(signal, "asked to stop");
                    return Ok(());
                }
                update = self.datastore.updates.recv() => {
                    let mut update = Some(update.context("the datastore ended")?);
                    // All that waits becomes one batch.
                    while let Some(given) = update {
                        self.updated(given);
                        update = self.datastore.updates.try_recv().ok();
                    }
                }
                report = self.discovery.next() => {
                    let mut report = Some(report.context("the search for pod interfaces ended")?);
                    while let Some(given) = report {
                        match given {
                            Report::Scan(report) => self.scanned(report),
                            Report::Link(ifindex, link) => self.engine.appeared(ifindex, link),
                        }
                        report = self.discovery.next_that_waits();
                    }
                }
                Some(query) = self.queries.recv() => {
                    let mut query = Some(query);
                    // Pods that are started at once are one batch, too.
                    while let Some(given) = query {
                        self.answer(given);
                        query = self.queries.try_recv().ok();
                    }
                }
                Some(event) = drops.recv() => {
                    let event: Event = event;
                    self.drops_logged += 1;
                    tracing::info!(target: "drops", "{}", drops::describe(&event, &self.engine.compiler));
                }
                passed = end_of(&mut grace) => {
                    passed.context("the wait for a grace period panicked")?;
                    grace = None;
                    self.engine.grace_passed();
                }
                _ = beat.tick() => {
                    self.report_losses();
                }
                drift = self.drifts.next() => {
                    let mut drift = Some(drift.context("the watch over attached programs ended")?);
                    while let Some(given) = drift {
                        self.engine.drifted(&given);
                        drift = self.drifts.next_that_waits();
                    }
                }
                () = sleep_until(verify_at.into()) => {
                    self.engine.verify();
                    self.look_for_bandwidth();
                    verify_at = Instant::now() + VERIFY;
                }
                () = retry => {}
            }
        }
    }

    fn updated(&mut self, update: Update) {
        match update {
            Update::Changes { received, changes } => {
                self.engine.objects_changed(changes, received);
            }
            Update::Loaded => {
                tracing::info!("datastore loaded");
                self.engine.loaded();
            }
            Update::Synced(token) => {
                for sync in &mut self.syncs {
                    sync.read(token, &self.discovery);
                }
            }
        }
    }

    fn scanned(&mut self, report: ScanReport) {
        match report.result {
            Ok(mut scan) => {
                if self.scan_error.take().is_some() {
                    tracing::info!("interfaces can be looked for again");
                }
                self.attachments.add_later(report.answers, &mut scan);
                self.engine.scanned(scan);
                for sync in &mut self.syncs {
                    sync.scanned(report.answers);
                }
            }
            Err(error) => {
                let error = error.to_string();
                if self.scan_error.as_ref() != Some(&error) {
                    tracing::error!(error, "cannot look for pod interfaces");
                }
                self.scan_error = Some(error);
            }
        }
    }

    fn look_for_bandwidth(&mut self) {
        let comes_after = bandwidth_comes_after_ours(&self.config.cni_conf_dir);
        self.engine.spare_clsact(comes_after);
    }

    fn report_losses(&mut self) {
        let Ok((limited, full)) = self.engine.kernel.events_lost() else {
            return;
        };
        let now = (limited, full, self.unlogged.load(Ordering::Relaxed));
        let rested = self
            .losses
            .told_at
            .is_none_or(|at| at.elapsed() >= LOSS_REPORT);
        if now != self.losses.told && rested {
            let before = self.losses.told;
            tracing::warn!(
                rate_limited = now.0.saturating_sub(before.0),
                buffer_full = now.1.saturating_sub(before.1),
                log_busy = now.2.saturating_sub(before.2),
                "drops were not logged (they are counted all the same)"
            );
            self.losses = Losses {
                told: now,
                told_at: Some(Instant::now()),
            };
        }
    }
}

/// Waits for a grace period, again and again should the kernel refuse.
fn wait_for_grace() {
    while let Err(error) = dataplane::wait_for_grace() {
        tracing::error!(%error, "cannot wait for a grace period, so unused table rows stay; trying again");
        std::thread::sleep(GRACE_RETRY);
    }
}

/// The end of a task, where there is one.
async fn end_of(task: &mut Option<JoinHandle<()>>) -> Result<(), JoinError> {
    match task {
        Some(task) => task.await,
        None => pending().await,
    }
}

async fn follow_events(mut events: EventStream, drops: mpsc::Sender<Event>, lost: Arc<AtomicU64>) {
    loop {
        match events.next().await {
            Ok(event) => match drops.try_send(event) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            },
            Err(error) => {
                tracing::error!(%error, "drops are no longer logged");
                return;
            }
        }
    }
}

/// Passes the programs' own log lines on.
fn follow_decisions(
    ebpf: &mut aya::Ebpf,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let logger = aya_log::EbpfLogger::init(ebpf).context("log of the programs' decisions")?;
    // SAFETY: the logger owns its ring buffer's descriptor, keeps it open, and always gives the same one.
    let mut logger =
        unsafe { AsyncFd::register(logger) }.context("log of the programs' decisions")?;
    Ok(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_table_sizes_are_the_compilers_limits() {
        let sizes = BTreeMap::from([("peers".to_owned(), 7), ("flows_v4".to_owned(), 9)]);
        assert_eq!(
            limits(&sizes),
            Limits {
                peers: 7,
                ..Limits::default()
            }
        );
    }
}
