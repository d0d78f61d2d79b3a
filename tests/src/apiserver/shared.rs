//! What the server's handle and its connections share.

use std::collections::BTreeSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::pages::Pages;
use super::store::Store;
use super::{Gone, Resource};

/// How long conditions are waited for before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// Requests for one resource so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Lists, each page counted.
    pub lists: u64,
    /// Watches that began.
    pub watches: u64,
    /// Watches that run now.
    pub watching: u64,
    /// Requests that were answered with an error, whatever it was.
    pub refused: u64,
}

/// How requests are treated.
#[derive(Clone, Debug)]
pub(super) struct Treatment {
    /// The token that is accepted, if any.
    pub(super) token: Option<String>,
    pub(super) forbidden: BTreeSet<Resource>,
    /// Everybody is answered with this code.
    pub(super) refusal: Option<u16>,
    pub(super) gone: Gone,
    /// How long events are held back.
    pub(super) delay: Duration,
}

/// What running watches listen to. All but `version` are counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signals {
    pub(super) version: u64,
    pub(super) drops: u64,
    pub(super) bookmarks: u64,
    pub(super) delays: u64,
}

/// State of the server. No lock is held while another is taken.
#[derive(Debug)]
pub(super) struct Shared {
    store: Mutex<Store>,
    pages: Mutex<Pages>,
    treatment: Mutex<Treatment>,
    served: Mutex<[Served; Resource::ALL.len()]>,
    served_changed: Condvar,
    signals: watch::Sender<Signals>,
    pub(super) bookmark_every: Duration,
}

impl Shared {
    pub(super) fn new(store: Store, token: &str, bookmark_every: Duration) -> Self {
        let signals = Signals {
            version: store.version(),
            drops: 0,
            bookmarks: 0,
            delays: 0,
        };
        let treatment = Treatment {
            token: Some(token.to_owned()),
            forbidden: BTreeSet::new(),
            refusal: None,
            gone: Gone::Event,
            delay: Duration::ZERO,
        };
        Self {
            store: Mutex::new(store),
            pages: Mutex::default(),
            treatment: Mutex::new(treatment),
            served: Mutex::default(),
            served_changed: Condvar::new(),
            signals: watch::Sender::new(signals),
            bookmark_every,
        }
    }

    /// The objects, to read.
    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Changes objects, and wakes watches.
    pub(super) fn change<R>(&self, work: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = self.store();
        let result = work(&mut store);
        let version = store.version();
        drop(store);
        self.signals.send_if_modified(|signals| {
            // Of two changes, the later may be announced first.
            let is_news = version > signals.version;
            signals.version = version.max(signals.version);
            is_news
        });
        result
    }

    pub(super) fn pages(&self) -> MutexGuard<'_, Pages> {
        lock(&self.pages)
    }

    pub(super) fn treatment(&self) -> MutexGuard<'_, Treatment> {
        lock(&self.treatment)
    }

    pub(super) fn signal(&self, change: impl FnOnce(&mut Signals)) {
        self.signals.send_modify(change);
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Signals> {
        self.signals.subscribe()
    }

    pub(super) fn served(&self, resource: Resource) -> Served {
        lock(&self.served)[resource as usize]
    }

    pub(super) fn count(&self, resource: Resource, change: impl FnOnce(&mut Served)) {
        change(&mut lock(&self.served)[resource as usize]);
        self.served_changed.notify_all();
    }

    /// Waits until the counts of a resource are as wanted.
    ///
    /// # Panics
    ///
    /// When they do not become so.
    #[track_caller]
    pub(super) fn await_served(
        &self,
        resource: Resource,
        wanted: impl Fn(Served) -> bool,
    ) -> Served {
        let deadline = Instant::now() + PATIENCE;
        let mut served = lock(&self.served);
        loop {
            let now = served[resource as usize];
            if wanted(now) {
                return now;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "requests for {resource} did not become as wanted; they are {now:?}"
            );
            let woken = self.served_changed.wait_timeout(served, left);
            served = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A panic while the lock was held is reported by the one that panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
