//! ICMP errors: they belong to the flow of the packet that they quote.

use aya_ebpf::programs::TcContext;
use network_types::icmp::Icmpv4Hdr;
use policy_common::flow::FlowKey;
use policy_common::verdict::Direction;

use crate::endpoint::Subject;
use crate::family::Family;
use crate::packet::key_at;
use crate::parse::{self, Transport};
use crate::scratch::Scratch;

/// Finds the key at `place` of the flow that the packet quoted in the ICMP error belongs to, and puts it into
/// `scratch.quoted`; false when it cannot be one of this endpoint's, or cannot be parsed.
#[inline(always)]
pub(crate) fn find_flow_key<F: Family>(
    skb: &TcContext,
    subject: &Subject,
    scratch: &mut Scratch<F>,
    place: u8,
) -> bool {
    // The verifier wants a bound on the offset; no packet has headers this long.
    let l4 = scratch.l4 as usize;
    let end = scratch.end as usize;
    if l4 > 0x3fff {
        return false;
    }
    let Some(quote) = F::parse_quote(skb, l4 + size_of::<Icmpv4Hdr>(), end) else {
        return false;
    };
    // Only the first eight bytes past the quoted header are sure to be there (RFC 792): the ports.
    if quote.l4 + 8 > end || quote.fragment.is_later() {
        return false;
    }
    let Some(header) = parse::bytes::<8>(skb, quote.l4) else {
        return false;
    };
    let transport = if quote.protocol == F::ICMP {
        Transport::quoted_icmp(header)
    } else {
        Transport::quoted(header)
    };
    // An error that enters the pod quotes what the pod sent, and one that leaves it what it received.
    let (direction, local) = match scratch.packet.direction {
        Direction::Ingress => (Direction::Egress, quote.saddr),
        Direction::Egress => (Direction::Ingress, quote.daddr),
    };
    // An error goes to who sent the packet that it is about (RFC 1122, section 3.2.2). To anyone else it would carry what
    // it quotes, wherever it likes.
    if scratch.packet.daddr != quote.saddr {
        return false;
    }
    // Past a translation the endpoint's own address may have been replaced too.
    if place == FlowKey::<F::Address>::AT_POD && F::own_address(subject.row()) != Some(local) {
        return false;
    }
    scratch.quoted = key_at(subject.id, direction, &quote, &transport, place);
    if quote.protocol != F::ICMP && !parse::has_ports(quote.protocol) {
        scratch.quoted.local_port = 0;
        scratch.quoted.remote_port = 0;
    }
    true
}
