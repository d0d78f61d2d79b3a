//! ICMP errors: they belong to the flow of the packet that they quote.

use aya_ebpf::programs::TcContext;
use network_types::icmp::Icmpv4Hdr;
use policy_common::flow::FlowKey;
use policy_common::verdict::Direction;

use crate::endpoint::Subject;
use crate::family::Family;
use crate::packet::icmp_ports;
use crate::parse::{self, Fragment, Transport};

/// The key of the flow that the packet quoted in the ICMP error at `l4` belongs to; `None` when it
/// cannot be one of this endpoint's, or cannot be parsed.
#[inline(always)]
pub(crate) fn flow_key<F: Family>(
    skb: &TcContext,
    subject: &Subject,
    direction: Direction,
    l4: usize,
    end: usize,
) -> Option<FlowKey<F::Address>> {
    let quote = F::parse_quote(skb, l4 + size_of::<Icmpv4Hdr>(), end)?;
    // Only the first eight bytes past the quoted header are sure to be there (RFC 792): the ports.
    if quote.l4 + 8 > end || matches!(quote.fragment, Fragment::Later) {
        return None;
    }
    let header = parse::bytes::<8>(skb, quote.l4)?;
    let transport = if quote.protocol == F::ICMP {
        Transport::quoted_icmp(header)
    } else {
        Transport::quoted(header)
    };
    // An error that enters the pod quotes what the pod sent, and one that leaves it what it received.
    let quoted_direction = policy_common::flow::opposite(direction);
    let (local, remote, mut local_port, mut remote_port) = match quoted_direction {
        Direction::Egress => (quote.saddr, quote.daddr, transport.sport, transport.dport),
        Direction::Ingress => (quote.daddr, quote.saddr, transport.dport, transport.sport),
    };
    if F::own_address(subject.row()) != Some(local) {
        return None;
    }
    if quote.protocol == F::ICMP {
        (local_port, remote_port) = icmp_ports::<F>(quoted_direction, &transport);
    } else if !parse::has_ports(quote.protocol) {
        (local_port, remote_port) = (0, 0);
    }
    Some(FlowKey {
        endpoint: subject.id,
        remote,
        local_port,
        remote_port,
        protocol: quote.protocol,
        _pad: [0; 3],
    })
}
