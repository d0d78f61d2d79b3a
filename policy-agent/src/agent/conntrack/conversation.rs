//! From an entry of nf_conntrack to the flows of the endpoints that take part in it.
//!
//! The flow's key has what is on the pod's wire, which the entry's two directions tell:
//!
//! | | original direction | reply direction | the pod sees |
//! | --- | --- | --- | --- |
//! | the pod began it | pod > remote | remote > pod | pod > remote |
//! | ... through a Service | pod > Service | backend > pod | pod > Service |
//! | ... masqueraded | pod > remote | remote > node | pod > remote |
//! | the other side began it | remote > pod | pod > remote | remote > pod |
//! | ... through a Service or NodePort | remote > Service | pod > remote | remote > pod |
//! | ... masqueraded | remote > Service | pod > node | node > pod |
//! | a pod reaches itself through its Service | pod > Service | pod > gateway | both |
//!
//! So where the pod began, the original direction has it all, and where the other side did, the reply direction turned round.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use policy_common::flow::{FlowState, PortPair, protocol};
use policy_common::verdict::Direction;

use super::netlink::{Entry, Tuple};
use crate::dataplane::Conversation;

/// An endpoint whose conversations are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its interface.
    pub ifindex: u32,
    /// The pod, for people.
    pub pod: Arc<str>,
    /// The interface, for people.
    pub interface: Arc<str>,
    /// The addresses on it.
    pub addresses: Vec<IpAddr>,
    /// The endpoint's id.
    pub endpoint: u32,
    /// Its epoch before the switch.
    pub epoch: u32,
    /// Whether a policy isolates it for ingress.
    pub isolated_for_ingress: bool,
}

/// What else has to be known to tell who is who.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// This node's own addresses.
    pub own: BTreeSet<IpAddr>,
    /// This node's endpoints by their addresses.
    pub endpoints: HashMap<IpAddr, u32>,
}

/// Finds the conversations of some endpoints among all.
pub(super) struct Finder<'a> {
    subjects: HashMap<IpAddr, &'a Subject>,
    surroundings: &'a Surroundings,
}

impl<'a> Finder<'a> {
    pub(super) fn new(subjects: &'a [Subject], surroundings: &'a Surroundings) -> Self {
        let by_address = subjects.iter().flat_map(|subject| {
            let addresses = subject.addresses.iter();
            addresses.map(move |address| (*address, subject))
        });
        Self {
            subjects: by_address.collect(),
            surroundings,
        }
    }

    /// The conversations that an entry is: of the endpoint that began it, and of the one that it was begun with.
    pub(super) fn find(&self, entry: &Entry) -> impl Iterator<Item = (&'a Subject, Conversation)> {
        let begun = self.subjects.get(&entry.original.saddr).copied();
        let begun = begun.and_then(|subject| Some((subject, begun_by(subject, entry)?)));
        let met = self.subjects.get(&entry.reply.saddr).copied();
        let met = met.and_then(|subject| Some((subject, self.begun_with(subject, entry)?)));
        begun.into_iter().chain(met)
    }

    /// Whether this node itself seems to have begun it. That is exempt from policy, and proven packet by packet, so that
    /// nobody gains anything by this node's address.
    fn is_of_this_node(&self, entry: &Entry) -> bool {
        let from = entry.original.saddr;
        from.is_loopback() || self.surroundings.own.contains(&from)
    }

    fn begun_with(&self, subject: &Subject, entry: &Entry) -> Option<Conversation> {
        let reply = &entry.reply;
        let hidden = entry.original.saddr != reply.daddr;
        let peer = hidden.then(|| self.surroundings.endpoints.get(&entry.original.saddr));
        Some(Conversation {
            endpoint: subject.endpoint,
            epoch: subject.epoch,
            remote: reply.daddr,
            ports: ports(
                &entry.original,
                reply,
                Direction::Ingress,
                reply.sport,
                reply.dport,
            )?,
            protocol: reply.protocol,
            initiator: Direction::Ingress,
            state: state(entry)?,
            peer: peer.flatten().copied().unwrap_or(0),
            is_of_node: self.is_of_this_node(entry),
        })
    }
}

fn begun_by(subject: &Subject, entry: &Entry) -> Option<Conversation> {
    let original = &entry.original;
    Some(Conversation {
        endpoint: subject.endpoint,
        epoch: subject.epoch,
        remote: original.daddr,
        ports: ports(
            original,
            original,
            Direction::Egress,
            original.sport,
            original.dport,
        )?,
        protocol: original.protocol,
        initiator: Direction::Egress,
        state: state(entry)?,
        peer: 0,
        is_of_node: false,
    })
}

/// The port fields of the flow's key, as `policy-ebpf` makes them; none for ICMP that is no query, which makes no flow.
fn ports(
    original: &Tuple,
    seen: &Tuple,
    initiator: Direction,
    local: u16,
    remote: u16,
) -> Option<PortPair> {
    match original.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => Some(PortPair { local, remote }),
        protocol::ICMP | protocol::ICMPV6 => {
            let query = original.icmp_type;
            let is_query = match original.protocol {
                protocol::ICMP => matches!(query, 8 | 13),
                _ => query == 128,
            };
            let endpoint_asks = u16::from(matches!(initiator, Direction::Egress));
            is_query.then_some(PortPair {
                local: seen.icmp_id,
                remote: u16::from(query) << 8 | endpoint_asks,
            })
        }
        _ => Some(PortPair {
            local: 0,
            remote: 0,
        }),
    }
}

/// How far the flow has come; none where it is over.
fn state(entry: &Entry) -> Option<u8> {
    // `enum tcp_conntrack` and `enum sctp_conntrack`.
    let is_closing = match (entry.original.protocol, entry.state) {
        // TIME_WAIT, CLOSE.
        (protocol::TCP, 7 | 8) => return None,
        // FIN_WAIT, CLOSE_WAIT, LAST_ACK.
        (protocol::TCP, 4..=6) => true,
        // CLOSED.
        (protocol::SCTP, 1) => return None,
        // SHUTDOWN_SENT, SHUTDOWN_RECD, SHUTDOWN_ACK_SENT.
        (protocol::SCTP, 5..=7) => true,
        _ => false,
    };
    Some(if is_closing {
        FlowState::CLOSING
    } else if entry.is_answered() {
        FlowState::TWO_WAY
    } else {
        FlowState::ONE_WAY
    })
}

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;
