//! Which endpoints are about to be isolated, and what is to be known before they are.
//!
//! Before an endpoint's row makes the programs keep flows, its conversations are looked for and put into the tables of flows: the queue of
//! operations waits for that, but not for ever. They are looked for again right after, because some began in between, and the first packet
//! after the switch may have been one of the wrong side. An endpoint that could not be looked at is isolated all the same, and looked at
//! again until it works.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use policy_common::address::{AddressV4, AddressV6};
use policy_common::endpoint::Endpoint;
use policy_core::model::LocalEndpoint;
use policy_core::op::Op;

use super::conversation::{Subject, Surroundings};
use super::worker::Question;
use crate::agent::backoff::Backoff;

/// How long an operation waits at most. The kernel walks its whole table for each question, which takes some milliseconds, and
/// a multiple of that on a node whose CPUs are busy.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the programs keep the endpoint's flows.
fn is_tracked(row: &Endpoint) -> bool {
    row.is_isolated() || row.flags & Endpoint::RECORD != 0
}

/// What the engine knows of an interface.
pub(in crate::agent) struct Described {
    /// Its endpoint.
    pub(in crate::agent) local: LocalEndpoint,
    /// The CNI plugin announced it.
    pub(in crate::agent) is_announced: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::agent) struct Cuts {
    /// Somebody answers questions.
    is_on: bool,
    last_ticket: u64,
    /// Rows of endpoints, as they are in the kernel.
    rows: BTreeMap<u32, Endpoint>,
    /// What the queue waits for.
    awaited: Option<Awaited>,
    /// Ids of endpoints that may switch.
    ready: BTreeSet<u32>,
    /// Those that have switched, and are to be looked at again, by interface.
    switched: BTreeMap<u32, Subject>,
    /// Those that are being looked at after their switch.
    again: Option<(u64, Vec<Subject>)>,
    /// Looking at them failed.
    failure: Option<Backoff>,
    questions: Vec<Question>,
}

#[derive(Debug)]
struct Awaited {
    ticket: u64,
    endpoints: BTreeSet<u32>,
    until: Instant,
}

impl Cuts {
    /// With the rows that are in the kernel's tables already.
    pub(in crate::agent) fn new(rows: BTreeMap<u32, Endpoint>) -> Self {
        Self {
            rows,
            ..Self::default()
        }
    }

    /// From now on somebody answers questions.
    pub(in crate::agent) fn turn_on(&mut self) {
        self.is_on = true;
    }

    /// What is to be asked.
    pub(in crate::agent) fn take_questions(&mut self) -> Vec<Question> {
        std::mem::take(&mut self.questions)
    }

    /// Until when the first operation of the queue has to wait at most; `None` when it may be executed. A pod that is just being started
    /// has no conversations yet, and does not wait.
    pub(in crate::agent) fn wait(
        &mut self,
        queue: &VecDeque<Op>,
        describe: impl Fn(u32) -> Option<Described>,
        own: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Option<Instant> {
        let describe = |ifindex| {
            let is_known = self.rows.contains_key(&ifindex);
            describe(ifindex).filter(|described| is_known || !described.is_announced)
        };
        let next = self.subject(queue.front()?, describe)?;
        if self.ready.contains(&next.endpoint) {
            return None;
        }
        if let Some(awaited) = &self.awaited
            && awaited.endpoints.contains(&next.endpoint)
        {
            if now < awaited.until {
                return Some(awaited.until);
            }
            tracing::warn!(
                pod = &*next.pod, interface = &*next.interface, waited = ?PATIENCE,
                "changed before nf_conntrack has said who began its conversations; what it says later is still heeded"
            );
            let awaited = self.awaited.take()?;
            self.ready.extend(awaited.endpoints);
            return None;
        }
        // All that the queue holds, in one go.
        let mut subjects: Vec<Subject> = Vec::new();
        for op in queue {
            if let Some(subject) = self.subject(op, describe)
                && !self.ready.contains(&subject.endpoint)
                && !subjects
                    .iter()
                    .any(|known| known.endpoint == subject.endpoint)
            {
                subjects.push(subject);
            }
        }
        let endpoints = subjects.iter().map(|subject| subject.endpoint).collect();
        let until = now + PATIENCE;
        let ticket = self.ask(subjects, own);
        self.awaited = Some(Awaited {
            ticket,
            endpoints,
            until,
        });
        Some(until)
    }

    /// An operation was executed. `describe` tells of its interface's endpoint.
    pub(in crate::agent) fn applied(
        &mut self,
        op: &Op,
        describe: impl Fn(u32) -> Option<Described>,
    ) {
        match op {
            Op::PutEndpoint { ifindex, endpoint } => {
                if let Some(subject) = self.subject(op, describe) {
                    self.ready.remove(&subject.endpoint);
                    self.switched.insert(*ifindex, subject);
                }
                self.rows.insert(*ifindex, *endpoint);
            }
            Op::DeleteEndpoint { ifindex } => {
                if let Some(row) = self.rows.remove(ifindex) {
                    self.ready.remove(&row.id);
                }
                self.switched.remove(ifindex);
            }
            _ => {}
        }
    }

    /// Has those looked at again that have switched; `is_attached` says of an interface whether its programs see packets. Returns when
    /// to call again where it failed.
    pub(in crate::agent) fn look_again(
        &mut self,
        is_attached: impl Fn(u32) -> bool,
        own: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> Option<Instant> {
        if self.switched.is_empty() || self.again.is_some() {
            return None;
        }
        if let Some(backoff) = &self.failure
            && !backoff.is_due(now)
        {
            return Some(backoff.next());
        }
        let due: Vec<u32> = self.switched.keys().copied().collect();
        let due = due.into_iter().filter(|ifindex| is_attached(*ifindex));
        let subjects: Vec<Subject> = due
            .filter_map(|ifindex| self.switched.remove(&ifindex))
            .collect();
        if !subjects.is_empty() {
            let ticket = self.ask(subjects.clone(), own);
            self.again = Some((ticket, subjects));
        }
        None
    }

    /// Conversations were looked for; the error says why they could not be. (Whether they were found makes no difference to what may
    /// switch.)
    pub(in crate::agent) fn learned(&mut self, ticket: u64, error: Option<&str>, now: Instant) {
        if let Some(awaited) = self.awaited.take_if(|awaited| awaited.ticket == ticket) {
            if let Some(error) = error {
                tracing::error!(
                    error,
                    "nf_conntrack cannot be asked who began the conversations of endpoints that are being isolated; trying again"
                );
            }
            self.ready.extend(awaited.endpoints);
            return;
        }
        let Some((_, subjects)) = self.again.take_if(|(asked, _)| *asked == ticket) else {
            return;
        };
        match error {
            None => self.failure = None,
            Some(error) => {
                let pods: BTreeSet<_> = subjects.iter().map(|subject| &*subject.pod).collect();
                tracing::error!(
                    ?pods,
                    error,
                    "nf_conntrack cannot be asked who began the conversations of isolated pods, which are judged by the direction of their \
                     next packet until it can; trying again"
                );
                for subject in subjects {
                    self.switched.entry(subject.ifindex).or_insert(subject);
                }
                match &mut self.failure {
                    Some(backoff) => backoff.failed(now),
                    None => self.failure = Some(Backoff::new(now)),
                }
            }
        }
    }

    fn ask(&mut self, subjects: Vec<Subject>, own: &BTreeSet<IpAddr>) -> u64 {
        self.last_ticket += 1;
        self.questions.push(Question::Learn {
            ticket: self.last_ticket,
            subjects,
            surroundings: Surroundings {
                own: own.clone(),
                endpoints: self.endpoints(),
            },
        });
        self.last_ticket
    }

    fn endpoints(&self) -> HashMap<IpAddr, u32> {
        let rows = self.rows.values().filter(|row| row.id != 0);
        let rows = rows.flat_map(|row| addresses(row).map(|address| (address, row.id)));
        rows.collect()
    }

    /// The endpoint that the operation isolates, or whose flows it makes the programs keep, which they did not before.
    fn subject(&self, op: &Op, describe: impl Fn(u32) -> Option<Described>) -> Option<Subject> {
        let Op::PutEndpoint { ifindex, endpoint } = op else {
            return None;
        };
        if !self.is_on || endpoint.id == 0 {
            return None;
        }
        let known = self.rows.get(ifindex);
        let known = known.filter(|row| row.id == endpoint.id);
        let begins = |what: fn(&Endpoint) -> bool| what(endpoint) && !known.is_some_and(what);
        if !begins(Endpoint::is_isolated) && !begins(is_tracked) {
            return None;
        }
        let Described { local, .. } = describe(*ifindex)?;
        let mut all: BTreeSet<IpAddr> = local.addresses.into_iter().collect();
        all.extend(addresses(endpoint));
        Some(Subject {
            ifindex: *ifindex,
            pod: local.pod.to_string().into(),
            interface: local.host_interface.into(),
            addresses: all.into_iter().collect(),
            endpoint: endpoint.id,
            epoch: earlier(endpoint.epoch),
            isolated_for_ingress: endpoint.ingress_policy != 0,
        })
    }
}

/// An epoch before this one. 0 means that there was none.
fn earlier(epoch: u32) -> u32 {
    match epoch.wrapping_sub(1) {
        0 => u32::MAX,
        earlier => earlier,
    }
}

fn addresses(row: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let AddressV4 { octets: v4 } = row.ipv4;
    let AddressV6 { octets: v6 } = row.ipv6;
    let v4 = (row.flags & Endpoint::HAS_IPV4 != 0).then(|| IpAddr::from(v4));
    let v6 = (row.flags & Endpoint::HAS_IPV6 != 0).then(|| IpAddr::from(v6));
    v4.into_iter().chain(v6)
}

#[cfg(test)]
#[path = "cuts_tests.rs"]
mod tests;
