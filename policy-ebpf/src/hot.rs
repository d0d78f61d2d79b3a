//! The packet that nearly all packets are: TCP or UDP, whole, over IPv4 without options or IPv6 without
//! extension headers, in the linear part of the buffer.
//!
//! A shortcut and nothing more: everything with anything unusual about it is left to the full parser,
//! and what is not decided by one lookup goes the same slow path from here as from there.

use aya_ebpf::programs::TcContext;
use network_types::tcp::TcpHdr;
use policy_common::flow::{FlowKey, PortPair, Signal, protocol};
use policy_common::verdict::{Direction, Reason};

use crate::endpoint::Subject;
use crate::family::Family;
use crate::flow::{self, Fast};
use crate::parse::{self, Fragment, NETWORK_OFFSET, Network, TCP_FLAGS, Transport};
use crate::scratch::Scratch;
use crate::{EGRESS, KNOWN, NEW, UNUSUAL, direction};

/// The `Reason` to pass, as a number; or `NEW` or `KNOWN`, for `judge_slowly`; or `UNUSUAL`.
#[inline(always)]
pub(crate) fn judge<F: Family, const D: u8>(skb: &TcContext, subject: &Subject) -> u32 {
    let Some(plain) = Plain::<F>::read(skb) else {
        return UNUSUAL;
    };
    if D == EGRESS && F::own_address(subject.row()) != Some(plain.saddr) {
        return UNUSUAL;
    }
    let signal = Signal::tcp(plain.tcp_flags);
    if !signal.tells_life() && !subject.is_isolated() {
        return Reason::NotIsolated as u32;
    }
    if signal.opens() {
        return NEW;
    }
    match flow::established::<F>(subject, &plain.key::<D>(subject), signal) {
        Fast::Established => Reason::Established as u32,
        Fast::Unknown => NEW,
        Fast::Known => KNOWN,
    }
}

/// Fills the slow path's memory with a packet for which [`judge`] returned `NEW` or `KNOWN`.
#[inline(always)]
pub(crate) fn fill<F: Family, const D: u8>(
    skb: &TcContext,
    subject: &Subject,
) -> Option<&'static mut Scratch<F>> {
    let plain = Plain::<F>::read(skb)?;
    let network: Network<F> = Network {
        saddr: plain.saddr,
        daddr: plain.daddr,
        protocol: plain.protocol,
        hop_limit: 0,
        fragment: Fragment::WHOLE,
        identification: 0,
        l4: 0,
        end: 0,
    };
    let transport = Transport {
        sport: plain.sport,
        dport: plain.dport,
        signal: Signal::tcp(plain.tcp_flags),
        tcp_flags: plain.tcp_flags,
        icmp_type: 0,
    };
    Scratch::fill(
        direction::<D>(),
        &plain.key::<D>(subject),
        &network,
        &transport,
    )
}

/// What the shortcut reads of a packet.
struct Plain<F: Family> {
    saddr: F::Address,
    daddr: F::Address,
    protocol: u8,
    tcp_flags: u8,
    sport: u16,
    dport: u16,
}

impl<F: Family> Plain<F> {
    /// `None` when there is anything unusual about the packet.
    #[inline(always)]
    fn read(skb: &TcContext) -> Option<Self> {
        let l4 = NETWORK_OFFSET + F::HEADER_LEN;
        let start = skb.data();
        if start + l4 + TCP_FLAGS + 1 > skb.data_end() {
            return None;
        }
        let header = F::plain_header((start + NETWORK_OFFSET) as *const u8)?;
        if header.len < F::HEADER_LEN + TcpHdr::LEN
            || NETWORK_OFFSET + header.len > skb.len() as usize
        {
            return None;
        }
        let transport = (start + l4) as *const u8;
        let tcp_flags = match header.protocol {
            protocol::TCP => parse::byte(transport, TCP_FLAGS),
            protocol::UDP => 0,
            _ => return None,
        };
        Some(Self {
            saddr: header.saddr,
            daddr: header.daddr,
            protocol: header.protocol,
            tcp_flags,
            sport: parse::be16(transport, 0),
            dport: parse::be16(transport, 2),
        })
    }

    #[inline(always)]
    fn key<const D: u8>(&self, subject: &Subject) -> FlowKey<F::Address> {
        let (remote, local_port, remote_port) = match direction::<D>() {
            Direction::Ingress => (self.saddr, self.dport, self.sport),
            Direction::Egress => (self.daddr, self.sport, self.dport),
        };
        let ports = PortPair {
            local: local_port,
            remote: remote_port,
        };
        F::key(subject.id, remote, ports, self.protocol)
    }
}

/// A network header without anything unusual.
pub(crate) struct PlainHeader<F: Family> {
    /// Source address.
    pub(crate) saddr: F::Address,
    /// Destination address.
    pub(crate) daddr: F::Address,
    /// Number of the protocol right behind the header.
    pub(crate) protocol: u8,
    /// Length of the datagram, this header included, as it says itself.
    pub(crate) len: usize,
}
