//! A parsed packet as seen from its endpoint.

use policy_common::flow::{FlowKey, PortPair, Signal};
use policy_common::verdict::Direction;

use crate::family::Family;
use crate::parse::{Fragment, Network, Transport};

/// A packet, its flow's key, and what the slow path asks about it.
#[repr(C)]
pub(crate) struct Packet<F: Family> {
    /// The key of the flow that the packet belongs to.
    pub(crate) key: FlowKey<F::Address>,
    /// Its direction, as a number (`Direction`).
    pub(crate) direction: Direction,
    /// What it says about the connection.
    pub(crate) signal: Signal,
    /// Which part of a datagram it is.
    pub(crate) fragment: Fragment,
    /// TCP flags, else 0.
    pub(crate) tcp_flags: u8,
    /// Source port as in events.
    pub(crate) sport: u16,
    /// Destination port as in events.
    pub(crate) dport: u16,
    /// Fragment identification.
    pub(crate) identification: u32,
    /// Source address.
    pub(crate) saddr: F::Address,
    /// Destination address.
    pub(crate) daddr: F::Address,
}

/// The key of the flow that a packet belongs to, as the pod sees it.
#[inline(always)]
pub(crate) fn flow_key<F: Family>(
    endpoint: u32,
    direction: Direction,
    network: &Network<F>,
    transport: &Transport,
) -> FlowKey<F::Address> {
    let place = FlowKey::<F::Address>::AT_POD;
    key_at(endpoint, direction, network, transport, place)
}

/// The key of the flow that a deferred packet belongs to where it is judged.
#[inline(always)]
pub(crate) fn translated_key<F: Family>(
    endpoint: u32,
    direction: Direction,
    network: &Network<F>,
    transport: &Transport,
) -> FlowKey<F::Address> {
    let place = FlowKey::<F::Address>::TRANSLATED;
    key_at(endpoint, direction, network, transport, place)
}

/// The key of the flow that a packet belongs to, seen at `place`.
#[inline(always)]
pub(crate) fn key_at<F: Family>(
    endpoint: u32,
    direction: Direction,
    network: &Network<F>,
    transport: &Transport,
    place: u8,
) -> FlowKey<F::Address> {
    let (remote, mut ports) = match direction {
        Direction::Ingress => (
            network.saddr,
            PortPair {
                local: transport.dport,
                remote: transport.sport,
            },
        ),
        Direction::Egress => (
            network.daddr,
            PortPair {
                local: transport.sport,
                remote: transport.dport,
            },
        ),
    };
    if network.protocol == F::ICMP {
        ports = icmp_ports::<F>(direction, transport);
    }
    F::key(endpoint, remote, ports, network.protocol, place)
}

/// The two port fields of an ICMP flow's key: a query and its answer share a key, and queries of the
/// two sides never do, so that having asked does not mean that one may be asked.
#[inline(always)]
pub(crate) fn icmp_ports<F: Family>(direction: Direction, transport: &Transport) -> PortPair {
    match F::icmp_query(transport.icmp_type) {
        Some((query, is_request)) => {
            let endpoint_asks = is_request == matches!(direction, Direction::Egress);
            let remote = (query as u16) << 8 | endpoint_asks as u16;
            PortPair {
                local: transport.sport,
                remote,
            }
        }
        None => PortPair {
            local: 0,
            remote: transport.dport,
        },
    }
}
