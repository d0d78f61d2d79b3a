//! Notices that somebody took a program of ours away, or put one before it.
//!
//! A thread of its own, because asking waits for the kernel's network lock. The kernel tells at once of qdiscs and
//! filters that go, and of filters that come; then the interface that it names is looked at, and no other. TCX tells
//! nothing, so each hook is asked in turn, by one system call that takes about a microsecond.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::sync::mpsc;

use super::hook::{self, Hook, Place};
use super::tc::{self, Described, Tc};
use super::verify::{Drift, DriftedPart, Role};

/// How often TCX hooks are asked.
const ASK: Duration = Duration::from_millis(300);

/// How often everything is looked at without having been told, should the kernel fail to tell.
const LOOK: Duration = Duration::from_secs(60);

/// Messages of the kernel that may wait: pods come and go in hundreds.
const BUFFER: usize = 4 << 20;

const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;

/// Filters after this priority never run before ours.
const LAST_BEFORE_OURS: u16 = 50;

type Key = (u32, Role);

/// What should be attached, as the thread sees it.
pub(super) struct Watched {
    /// The kernel's ids of this agent's programs.
    ours: BTreeSet<u32>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_key: BTreeMap<Key, Entry>,
    generation: u64,
}

#[derive(Clone)]
struct Entry {
    hooks: Arc<[Hook]>,
    /// Tells what was looked at from what was attached since.
    generation: u64,
    /// Reported once, until it is attached again.
    is_reported: bool,
}

impl Watched {
    pub(super) fn new(ours: BTreeSet<u32>) -> Arc<Self> {
        Arc::new(Self {
            ours,
            entries: Mutex::default(),
        })
    }

    pub(super) fn ours(&self) -> &BTreeSet<u32> {
        &self.ours
    }

    /// From now on these are to be there.
    pub(super) fn expect(&self, ifindex: u32, role: Role, hooks: &[Hook]) {
        let mut entries = self.entries();
        entries.generation += 1;
        let entry = Entry {
            hooks: hooks.into(),
            generation: entries.generation,
            is_reported: false,
        };
        entries.by_key.insert((ifindex, role), entry);
    }

    /// They are about to be changed, or not to be there any more.
    pub(super) fn forget(&self, ifindex: u32, role: Role) {
        self.entries().by_key.remove(&(ifindex, role));
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn every(&self) -> Vec<(Key, Entry)> {
        let entries = self.entries();
        let all = entries.by_key.iter();
        all.map(|(key, entry)| (*key, entry.clone())).collect()
    }

    fn of(&self, ifindex: u32) -> Vec<(Key, Entry)> {
        let entries = self.entries();
        let of_interface = [Role::Endpoint, Role::Netdev].map(|role| (ifindex, role));
        let found = of_interface.into_iter();
        found
            .filter_map(|key| Some((key, entries.by_key.get(&key)?.clone())))
            .collect()
    }

    fn has(&self, ifindex: u32) -> bool {
        let entries = self.entries();
        let roles = [Role::Endpoint, Role::Netdev];
        roles
            .into_iter()
            .any(|role| entries.by_key.contains_key(&(ifindex, role)))
    }

    /// Whether this is news: what was looked at is still what should be there, and was not reported yet.
    fn report(&self, key: Key, looked_at: &Entry) -> bool {
        let mut entries = self.entries();
        match entries.by_key.get_mut(&key) {
            Some(entry) if entry.generation == looked_at.generation => {
                !std::mem::replace(&mut entry.is_reported, true)
            }
            _ => false,
        }
    }
}

/// What the thread notices; it ends when the dataplane is dropped.
#[derive(Debug)]
pub struct Drifts(mpsc::UnboundedReceiver<Drift>);

impl Drifts {
    /// The next program that is not first at its place. Cancel-safe.
    pub async fn next(&mut self) -> Option<Drift> {
        self.0.recv().await
    }

    /// One that is known already.
    pub fn next_that_waits(&mut self) -> Option<Drift> {
        self.0.try_recv().ok()
    }
}

/// Begins to watch, in this thread's network namespace.
pub(super) fn start(watched: &Arc<Watched>) -> io::Result<Drifts> {
    let mut events = Socket::new(NETLINK_ROUTE)?;
    events.bind(&SocketAddr::new(0, 0))?;
    for group in [RTNLGRP_LINK, RTNLGRP_TC] {
        events.add_membership(group)?;
    }
    // Where the limit is lower, the kernel takes that; what is lost then is looked for.
    events.set_rx_buf_sz(BUFFER)?;
    // Each interface has at most two entries, each of which is reported once.
    let (drifts, seen) = mpsc::unbounded_channel();
    let watcher = Watcher {
        watched: Arc::downgrade(watched),
        events,
        tc: Tc::open()?,
        drifts,
        left: BTreeSet::new(),
        buffer: Vec::with_capacity(64 * 1024),
    };
    thread::Builder::new()
        .name("watch-hooks".to_owned())
        .spawn(move || watcher.run())?;
    Ok(Drifts(seen))
}

struct Watcher {
    watched: Weak<Watched>,
    events: Socket,
    tc: Tc,
    drifts: mpsc::UnboundedSender<Drift>,
    /// Interfaces of ours that left this network namespace, without their filters should they come back.
    left: BTreeSet<u32>,
    buffer: Vec<u8>,
}

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
enum Touched {
    These(BTreeSet<u32>),
    Everything,
}

impl Watcher {
    fn run(mut self) {
        let (mut ask_at, mut look_at) = (Instant::now() + ASK, Instant::now() + LOOK);
        loop {
            self.wait_until(ask_at);
            let Some(watched) = self.watched.upgrade() else {
                return;
            };
            let mut touched = self.read(&watched);
            let now = Instant::now();
            if now >= look_at {
                touched = Touched::Everything;
            }
            match touched {
                Touched::These(ifindexes) => {
                    for ifindex in ifindexes {
                        self.look(&watched, watched.of(ifindex));
                    }
                }
                Touched::Everything => {
                    self.left.retain(|ifindex| watched.has(*ifindex));
                    self.look(&watched, watched.every());
                    look_at = now + LOOK;
                }
            }
            if now >= ask_at {
                self.ask(&watched);
                ask_at = now + ASK;
            }
        }
    }

    /// Waits for a message.
    fn wait_until(&self, deadline: Instant) {
        let patience = deadline.saturating_duration_since(Instant::now());
        let mut polled = libc::pollfd {
            fd: self.events.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up, so that it is not asked again and again within the last millisecond.
        let patience = patience.as_millis() as libc::c_int + 1;
        // SAFETY: one descriptor, which lives as long as this.
        let result = unsafe { libc::poll(&raw mut polled, 1, patience) };
        if result < 0 || polled.revents & libc::POLLNVAL != 0 {
            // A signal, or a socket that is of no use: never in a busy loop.
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Reads all messages that are there.
    fn read(&mut self, watched: &Watched) -> Touched {
        let mut these = BTreeSet::new();
        let mut is_lost = false;
        loop {
            self.buffer.clear();
            match self.events.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                // Messages were lost.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    is_lost = true;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "the kernel's messages about interfaces cannot be read");
                    break;
                }
            }
            for message in tc::messages(&self.buffer) {
                match message.kind {
                    tc::RTM_DELLINK => {
                        let left = tc::link_of(message.payload);
                        self.left
                            .extend(left.filter(|ifindex| watched.has(*ifindex)));
                    }
                    tc::RTM_NEWLINK => {
                        let back = tc::link_of(message.payload);
                        these.extend(back.filter(|ifindex| self.left.remove(ifindex)));
                    }
                    kind => match touched(kind, message.payload, watched.ours()) {
                        // Of a block of filters that several interfaces share.
                        Some(u32::MAX) => is_lost = true,
                        Some(ifindex) if watched.has(ifindex) => {
                            these.insert(ifindex);
                        }
                        _ => {}
                    },
                }
            }
        }
        if is_lost {
            Touched::Everything
        } else {
            Touched::These(these)
        }
    }

    /// Asks all about these.
    fn look(&mut self, watched: &Watched, entries: Vec<(Key, Entry)>) {
        for (key, entry) in entries {
            match hook::look(&mut self.tc, key.0, &entry.hooks, watched.ours()) {
                Ok(places) => self.report(watched, key, &entry, places),
                Err(error) => {
                    tracing::warn!(ifindex = key.0, %error, "cannot ask what is attached");
                    // Whatever is still on its way on the old connection is no answer to the next question.
                    match Tc::open() {
                        Ok(tc) => self.tc = tc,
                        Err(error) => tracing::warn!(%error, "netlink"),
                    }
                }
            }
        }
    }

    /// Asks what nobody tells.
    fn ask(&self, watched: &Watched) {
        for (key, entry) in watched.every() {
            if entry.is_reported {
                continue;
            }
            let hooks = entry.hooks.iter();
            let places: io::Result<Vec<_>> = hooks
                .map(|hook| hook::by_tcx(key.0, hook, watched.ours()))
                .collect();
            match places {
                Ok(places) => self.report(watched, key, &entry, places),
                Err(error) => {
                    tracing::debug!(ifindex = key.0, %error, "cannot ask what is attached");
                }
            }
        }
    }

    fn report(&self, watched: &Watched, (ifindex, role): Key, entry: &Entry, places: Vec<Place>) {
        let Some(found) = places.into_iter().find_map(Place::wrong) else {
            return;
        };
        if watched.report((ifindex, role), entry) {
            let drift = Drift {
                part: DriftedPart::Program,
                ifindex: Some(ifindex),
                role,
                found,
                error: None,
            };
            // Nobody listens any more: this ends, too.
            let _unheard = self.drifts.send(drift);
        }
    }
}

/// The interface where something happened that may concern ours.
fn touched(kind: u16, payload: &[u8], ours: &BTreeSet<u32>) -> Option<u32> {
    let described = match kind {
        tc::RTM_DELQDISC | tc::RTM_DELTFILTER | tc::RTM_NEWTFILTER => Described::parse(payload)?,
        _ => return None,
    };
    let ifindex = described.ifindex;
    if kind != tc::RTM_NEWTFILTER {
        return Some(ifindex);
    }
    described.side()?;
    let filter = described.into_filter()?;
    let is_ours = |id| ours.contains(&id);
    let is_ours = filter.program.is_some_and(|(_, id)| is_ours(id));
    (!is_ours && filter.priority <= LAST_BEFORE_OURS).then_some(ifindex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::attach::Mode;
    use aya::programs::TcAttachType;

    fn hooks(id: u32) -> Vec<Hook> {
        vec![Hook {
            program: "to_pod",
            id,
            side: TcAttachType::Egress,
            mode: Mode::Clsact,
        }]
    }

    #[test]
    fn what_changed_since_it_was_looked_at_is_not_reported() {
        let watched = Watched::new([7].into());
        watched.expect(3, Role::Endpoint, &hooks(7));
        let [(key, before)] = &watched.every()[..] else {
            panic!("one entry");
        };
        assert!(watched.report(*key, before));
        assert!(!watched.report(*key, before), "only once");
        watched.expect(3, Role::Endpoint, &hooks(7));
        assert!(!watched.report(*key, before), "attached again meanwhile");
        let [(_, now)] = &watched.of(3)[..] else {
            panic!("one entry");
        };
        watched.forget(3, Role::Endpoint);
        assert!(!watched.report(*key, now), "being changed");
        assert!(!watched.has(3));
    }

    #[test]
    fn only_what_may_run_before_ours_is_looked_at() {
        let message = |parent: u32, handle: u32, priority: u32| {
            let mut bytes = vec![0; 4];
            for value in [9, handle, parent, priority << 16] {
                bytes.extend(u32::to_ne_bytes(value));
            }
            bytes
        };
        const EGRESS: u32 = 0xffff_fff3;
        for (kind, payload, wanted) in [
            (tc::RTM_DELQDISC, message(0xffff_fff1, 0xffff_0000, 0), true),
            (tc::RTM_DELTFILTER, message(EGRESS, 0, 50), true),
            (tc::RTM_NEWTFILTER, message(EGRESS, 1, 50), true),
            (tc::RTM_NEWTFILTER, message(EGRESS, 1, 1), true),
            (tc::RTM_NEWTFILTER, message(EGRESS, 1, 51), false),
            // It announces a priority, in which there is nothing yet.
            (tc::RTM_NEWTFILTER, message(EGRESS, 0, 1), false),
            // In a tree of classes at the root.
            (tc::RTM_NEWTFILTER, message(0x8001_0000, 1, 1), false),
            (36, message(0xffff_fff1, 0xffff_0000, 0), false),
        ] {
            let found = touched(kind, &payload, &BTreeSet::new());
            assert_eq!(found, wanted.then_some(9), "{kind} {payload:?}");
        }
    }
}
