//! The packet that nearly all packets are: TCP or UDP, whole, over IPv4 without options or IPv6 without
//! extension headers, in the linear part of the buffer.
//!
//! A shortcut and nothing more: everything with anything unusual about it is left to the full parser,
//! and what is not decided by one lookup goes the same slow path from here as from there.

use aya_ebpf::programs::TcContext;
use network_types::tcp::TcpHdr;
use policy_common::flow::{Signal, protocol};
use policy_common::verdict::Reason;

use crate::endpoint::Subject;
use crate::family::Family;
use crate::flow::{self, Fast};
use crate::packet::flow_key;
use crate::parse::{self, NETWORK_OFFSET, Network, TCP_FLAGS, Transport};
use crate::scratch::Scratch;
use crate::{EGRESS, KNOWN, NEW, UNUSUAL, carrier, direction, link};

/// The `Reason` to pass, as a number; or `NEW` or `KNOWN`, for `judge_slowly`; or `UNUSUAL`.
#[inline(always)]
pub(crate) fn judge<F: Family, const D: u8>(skb: &TcContext, subject: &Subject) -> u32 {
    let Some((network, transport)) = read::<F, NETWORK_OFFSET>(skb) else {
        return UNUSUAL;
    };
    let is_udp = network.protocol == protocol::UDP;
    if D == EGRESS {
        if F::own_address(subject.row()) != Some(network.saddr) {
            return UNUSUAL;
        }
        carrier::sent(skb, subject.id);
        if is_udp && link::is_unusual_udp::<F>(subject, transport.sport, transport.dport) {
            return UNUSUAL;
        }
    }
    let signal = transport.signal;
    if !signal.tells_life() && !subject.tracks() {
        return Reason::NotIsolated as u32;
    }
    if signal.opens() {
        return NEW;
    }
    let key = flow_key(subject.id, direction::<D>(), &network, &transport);
    let mut found = Fast::Unknown;
    if is_udp {
        found = flow::unanswered::<F, D>(subject, &key);
    }
    let in_new = !matches!(found, Fast::Unknown);
    if !in_new {
        found = flow::established::<F, D>(subject, &key, signal);
    }
    match found {
        Fast::Established => Reason::Established as u32,
        Fast::Deferred => {
            carrier::defer::<F>(skb, &key);
            Reason::Deferred as u32
        }
        Fast::OfNode if carrier::is_from_node(skb, true) => Reason::Established as u32,
        Fast::OfNode if in_new => NEW,
        Fast::OfNode | Fast::Known => KNOWN,
        Fast::Unknown => NEW,
    }
}

/// Fills the slow path's memory with a packet for which [`judge`] returned `NEW` or, with a flow
/// `in_table`, `KNOWN`; `None` when it is not such a packet.
#[inline(always)]
pub(crate) fn fill<F: Family, const D: u8>(
    skb: &TcContext,
    subject: &Subject,
    in_table: bool,
) -> Option<&'static mut Scratch<F>> {
    let (network, transport) = read::<F, NETWORK_OFFSET>(skb)?;
    let key = flow_key(subject.id, direction::<D>(), &network, &transport);
    let scratch = Scratch::fill(direction::<D>(), &key, &network, &transport)?;
    scratch.in_table = in_table as u8;
    Some(scratch)
}

/// Both headers, the network's at `N`; `None` when there is anything unusual about the packet.
#[inline(always)]
pub(crate) fn read<F: Family, const N: usize>(skb: &TcContext) -> Option<(Network<F>, Transport)> {
    let l4 = N + F::HEADER_LEN;
    let start = skb.data();
    if start + l4 + TCP_FLAGS + 1 > skb.data_end() {
        return None;
    }
    let network = F::plain_header((start + N) as *const u8, N)?;
    if network.end < l4 + TcpHdr::LEN || network.end > skb.len() as usize {
        return None;
    }
    let header = (start + l4) as *const u8;
    let tcp_flags = match network.protocol {
        protocol::TCP => parse::byte(header, TCP_FLAGS),
        protocol::UDP => 0,
        _ => return None,
    };
    let transport = Transport {
        sport: parse::be16(header, 0),
        dport: parse::be16(header, 2),
        signal: Signal::tcp(tcp_flags),
        tcp_flags,
        icmp_type: 0,
    };
    Some((network, transport))
}
