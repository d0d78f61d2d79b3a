//! Step 1: from bytes to addresses, protocol, ports and signals.
//!
//! Nothing here decides: what cannot be parsed is `Err(reason)`, and the caller knows whether the
//! endpoint's isolation turns that into a drop. Every length is checked twice, against the packet and
//! against the IP header's own word, so that padding is never taken for a header.

use core::mem::offset_of;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use network_types::eth::EthHdr;
use network_types::icmp::Icmpv4Hdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::sctp::SctpHdr;
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;
use policy_common::flow::{Signal, protocol};
use policy_common::verdict::Reason;

use crate::family::{Family, V4, V6};
use crate::scratch;

/// Offset of the network header.
pub(crate) const NETWORK_OFFSET: usize = EthHdr::LEN;
/// Offset of the flags byte in a TCP header.
pub(crate) const TCP_FLAGS: usize = 13;
/// IPv6 extension headers walked before the packet counts as malformed.
const MAX_EXTENSIONS: usize = 8;

/// What part of a datagram a packet is: an IPv4 header's fragment field (RFC 791), flag "more" and
/// offset in units of 8 bytes; IPv6's is translated to it.
///
/// Kept as the number it is: three named cases would be three states for the verifier to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment(u16);

impl Fragment {
    const MORE: u16 = 0x2000;
    const OFFSET: u16 = 0x1fff;

    /// All of it.
    pub(crate) const WHOLE: Self = Self(0);

    #[inline(always)]
    fn from_field(field: u16) -> Self {
        Self(field & (Self::MORE | Self::OFFSET))
    }

    /// Its beginning, with the L4 header, and not all of it.
    #[inline(always)]
    pub(crate) fn is_first(self) -> bool {
        self.0 == Self::MORE
    }

    /// A later part, without ports.
    #[inline(always)]
    pub(crate) fn is_later(self) -> bool {
        self.0 & Self::OFFSET != 0
    }

    /// A later part of a TCP segment that could overwrite the ports or flags that were judged in its
    /// first (RFC 1858, section 3.2).
    #[inline(always)]
    fn overlaps_tcp_header(self, protocol: u8) -> bool {
        self.is_later() && self.0 & Self::OFFSET < 3 && protocol == protocol::TCP
    }
}

/// A parsed network header.
pub(crate) struct Network<F: Family> {
    /// Source address.
    pub(crate) saddr: F::Address,
    /// Destination address.
    pub(crate) daddr: F::Address,
    /// L4 protocol number, past all extension headers.
    pub(crate) protocol: u8,
    /// TTL or hop limit.
    pub(crate) hop_limit: u8,
    /// Which part of a datagram this is.
    pub(crate) fragment: Fragment,
    /// Fragment identification; 0 for whole datagrams.
    pub(crate) identification: u32,
    /// Offset of the L4 header in the packet.
    pub(crate) l4: usize,
    /// Offset of the end of the IP datagram in the packet.
    pub(crate) end: usize,
}

/// A parsed L4 header.
#[derive(Clone, Copy)]
pub(crate) struct Transport {
    /// Source port; ICMP: the query's id.
    pub(crate) sport: u16,
    /// Destination port; ICMP: type * 256 + code.
    pub(crate) dport: u16,
    /// What it says about the connection.
    pub(crate) signal: Signal,
    /// TCP flags, else 0.
    pub(crate) tcp_flags: u8,
    /// ICMP type, else 0.
    pub(crate) icmp_type: u8,
}

/// Pointer to `N` readable bytes at `offset`, pulling them into the linear part where needed. A
/// pointer from an earlier call must not be used after this one.
#[inline(always)]
pub(crate) fn bytes<const N: usize>(skb: &TcContext, offset: usize) -> Option<*const u8> {
    let start = skb.data() + offset;
    if start + N <= skb.data_end() {
        return Some(start as *const u8);
    }
    if skb.pull_data((offset + N) as u32).is_err() {
        return None;
    }
    let start = skb.data() + offset;
    if start + N <= skb.data_end() {
        return Some(start as *const u8);
    }
    None
}

/// The byte at `offset` from a pointer that [`bytes`] gave.
#[inline(always)]
pub(crate) fn byte(start: *const u8, offset: usize) -> u8 {
    // SAFETY: the callers stay within the length that they asked `bytes` for.
    unsafe { *start.add(offset) }
}

/// The big-endian 16 bits at `offset`.
#[inline(always)]
pub(crate) fn be16(start: *const u8, offset: usize) -> u16 {
    // SAFETY: within the length asked for. The kernel permits unaligned packet reads on the
    // architectures we support, and one load is cheaper than two and a shift.
    u16::from_be(unsafe { *start.add(offset).cast::<u16>() })
}

/// An address at `offset`.
#[inline(always)]
pub(crate) fn address<A: Copy>(start: *const u8, offset: usize) -> A {
    // SAFETY: within the length asked for; alignment as in `be16`.
    unsafe { *start.add(offset).cast::<A>() }
}

/// The end of the IP datagram, from the length that its header tells. A length of 0 is that of a
/// "BIG TCP" packet, which the kernel makes only of segments that it will cut later.
#[inline(always)]
fn datagram_end(skb: &TcContext, told: usize, start: usize) -> Result<usize, Reason> {
    let len = skb.len() as usize;
    if told == 0 && gso_segments(skb) > 0 {
        return Ok(len);
    }
    let end = start + told;
    if end > len {
        Err(Reason::Malformed)
    } else {
        Ok(end)
    }
}

#[inline(always)]
fn gso_segments(skb: &TcContext) -> u32 {
    // SAFETY: a context field that the verifier lets TC programs read.
    unsafe { (*skb.skb.skb).gso_segs }
}

/// Parses an IPv4 header (RFC 791).
#[inline(always)]
pub(crate) fn ipv4(skb: &TcContext, offset: usize) -> Result<Network<V4>, Reason> {
    let mut network = ipv4_header(skb, offset)?;
    network.end = datagram_end(skb, network.end - offset, offset)?;
    if network.l4 > network.end {
        return Err(Reason::Malformed);
    }
    if network.l4 > offset + Ipv4Hdr::LEN
        && has_source_route(skb.skb.skb, offset, network.l4 - offset) != 0
    {
        return Err(Reason::SourceRoute);
    }
    Ok(network)
}

/// The fields of an IPv4 header, its length not yet checked against the packet's.
#[inline(always)]
pub(crate) fn ipv4_header(skb: &TcContext, offset: usize) -> Result<Network<V4>, Reason> {
    let Some(header) = bytes::<{ Ipv4Hdr::LEN }>(skb, offset) else {
        return Err(Reason::Malformed);
    };
    let version_and_length = byte(header, offset_of!(Ipv4Hdr, vihl));
    let total = be16(header, offset_of!(Ipv4Hdr, tot_len)) as usize;
    let fragment_field = be16(header, offset_of!(Ipv4Hdr, frags));
    let id = be16(header, offset_of!(Ipv4Hdr, id));
    let protocol = byte(header, offset_of!(Ipv4Hdr, proto));
    let hop_limit = byte(header, offset_of!(Ipv4Hdr, ttl));
    let saddr = address(header, offset_of!(Ipv4Hdr, src_addr));
    let daddr = address(header, offset_of!(Ipv4Hdr, dst_addr));

    let header_len = ((version_and_length & 0xf) as usize) << 2;
    if version_and_length >> 4 != 4 || header_len < Ipv4Hdr::LEN {
        return Err(Reason::Malformed);
    }
    let fragment = Fragment::from_field(fragment_field);
    if fragment.overlaps_tcp_header(protocol) {
        return Err(Reason::Malformed);
    }
    Ok(Network {
        saddr,
        daddr,
        protocol,
        hop_limit,
        fragment,
        identification: id as u32,
        l4: offset + header_len,
        end: offset + total,
    })
}

/// An IPv4 header without options, of a whole datagram, for [`crate::hot`].
#[inline(always)]
pub(crate) fn plain_ipv4(header: *const u8, offset: usize) -> Option<Network<V4>> {
    let fragment = Fragment::from_field(be16(header, offset_of!(Ipv4Hdr, frags)));
    if byte(header, offset_of!(Ipv4Hdr, vihl)) != 0x45 || fragment != Fragment::WHOLE {
        return None;
    }
    Some(Network {
        saddr: address(header, offset_of!(Ipv4Hdr, src_addr)),
        daddr: address(header, offset_of!(Ipv4Hdr, dst_addr)),
        protocol: byte(header, offset_of!(Ipv4Hdr, proto)),
        hop_limit: byte(header, offset_of!(Ipv4Hdr, ttl)),
        fragment,
        identification: 0,
        l4: offset + Ipv4Hdr::LEN,
        end: offset + be16(header, offset_of!(Ipv4Hdr, tot_len)) as usize,
    })
}

/// Whether IPv4 options hold a source route (types 131 and 137), which would hide the true
/// destination. Options that cannot be parsed count as one.
#[inline(never)]
fn has_source_route(skb: *mut __sk_buff, offset: usize, header_len: usize) -> u32 {
    let skb = TcContext::new(skb);
    let Some(walk) = Walk::begin(Ipv4Hdr::LEN as u32, 0) else {
        return 1;
    };
    // Through memory: the verifier of 6.12 takes what is compared below for news about the caller's offset, and gets
    // it wrong where that is the header's length itself.
    walk.end = header_len as u32;
    // SAFETY: just written.
    let header_len = unsafe { core::ptr::read_volatile(&raw const walk.end) } as usize;
    // 40 bytes of options: at most 40 options of one byte.
    for _ in 0..40 {
        let at = (walk.at & 0x3f) as usize;
        // A last byte by itself can only be padding: every other option has a length.
        if at + 2 > header_len {
            return 0;
        }
        let Some(option) = bytes::<2>(&skb, offset + at) else {
            return 1;
        };
        let len = match byte(option, 0) {
            0 => return 0,
            1 => 1,
            131 | 137 => return 1,
            _ => byte(option, 1) as usize,
        };
        if len == 0 || at + len > header_len {
            return 1;
        }
        walk.at += len as u32;
    }
    0
}

/// Parses an IPv6 header (RFC 8200) and its extension headers.
#[inline(always)]
pub(crate) fn ipv6(skb: &TcContext, offset: usize) -> Result<Network<V6>, Reason> {
    let mut network = ipv6_header(skb, offset)?;
    network.end = datagram_end(skb, network.end - network.l4, network.l4)?;
    ipv6_extensions(skb, &mut network)?;
    Ok(network)
}

/// The fields of an IPv6 header, its length not yet checked against the packet's.
#[inline(always)]
pub(crate) fn ipv6_header(skb: &TcContext, offset: usize) -> Result<Network<V6>, Reason> {
    const LEN: usize = size_of::<Ipv6Hdr>();
    let Some(header) = bytes::<LEN>(skb, offset) else {
        return Err(Reason::Malformed);
    };
    let version = byte(header, 0) >> 4;
    let payload = be16(header, offset_of!(Ipv6Hdr, payload_len)) as usize;
    let protocol = byte(header, offset_of!(Ipv6Hdr, next_hdr));
    let hop_limit = byte(header, offset_of!(Ipv6Hdr, hop_limit));
    let saddr = address(header, offset_of!(Ipv6Hdr, src_addr));
    let daddr = address(header, offset_of!(Ipv6Hdr, dst_addr));
    if version != 6 {
        return Err(Reason::Malformed);
    }
    Ok(Network {
        saddr,
        daddr,
        protocol,
        hop_limit,
        fragment: Fragment::WHOLE,
        identification: 0,
        l4: offset + LEN,
        end: offset + LEN + payload,
    })
}

/// An IPv6 header, for [`crate::hot`]; its protocol may be the number of an extension header.
#[inline(always)]
pub(crate) fn plain_ipv6(header: *const u8, offset: usize) -> Option<Network<V6>> {
    if byte(header, 0) >> 4 != 6 {
        return None;
    }
    let l4 = offset + size_of::<Ipv6Hdr>();
    Some(Network {
        saddr: address(header, offset_of!(Ipv6Hdr, src_addr)),
        daddr: address(header, offset_of!(Ipv6Hdr, dst_addr)),
        protocol: byte(header, offset_of!(Ipv6Hdr, next_hdr)),
        hop_limit: byte(header, offset_of!(Ipv6Hdr, hop_limit)),
        fragment: Fragment::WHOLE,
        identification: 0,
        l4,
        end: l4 + be16(header, offset_of!(Ipv6Hdr, payload_len)) as usize,
    })
}

/// Walks over the extension headers that begin at `network.l4`, within `network.end`.
#[inline(always)]
pub(crate) fn ipv6_extensions(skb: &TcContext, network: &mut Network<V6>) -> Result<(), Reason> {
    if !is_extension(network.protocol) {
        return Ok(());
    }
    match walk_extensions(skb.skb.skb, network.l4, network.protocol, network.end) {
        Walk::DONE => {}
        Walk::SOURCE_ROUTE => return Err(Reason::SourceRoute),
        _ => return Err(Reason::Malformed),
    }
    let Some(walk) = scratch::memory::<Walk>() else {
        return Err(Reason::Malformed);
    };
    network.protocol = walk.protocol;
    network.l4 = (walk.at & 0x7fff) as usize;
    network.identification = walk.identification;
    network.fragment = Fragment(walk.fragment);
    if network.fragment.overlaps_tcp_header(network.protocol) {
        return Err(Reason::Malformed);
    }
    Ok(())
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Whether a next-header number is an extension header that we walk over. Others (ESP, AH, "no next
/// header") are protocols of their own to a policy.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS)
}

/// Where a walk over options or extension headers stands. Kept in per-CPU memory, so that the verifier
/// sees one state a turn instead of one for every sequence of headers.
struct Walk {
    /// Offset of the next header or option.
    at: u32,
    /// Identification of the fragment header, once one was met.
    identification: u32,
    /// Where it ends, for options.
    end: u32,
    /// Number of the next header.
    protocol: u8,
    /// Zero.
    _pad: u8,
    /// `Fragment`, as the fragment header tells.
    fragment: u16,
}

impl Walk {
    const DONE: u32 = 0;
    const SOURCE_ROUTE: u32 = 1;
    const MALFORMED: u32 = 2;

    #[inline(always)]
    fn begin(at: u32, protocol: u8) -> Option<&'static mut Self> {
        scratch::place(Self {
            at,
            identification: 0,
            end: 0,
            protocol,
            _pad: 0,
            fragment: 0,
        })
    }
}

/// Walks to the L4 header; the result is in [`Walk`].
#[inline(never)]
fn walk_extensions(skb: *mut __sk_buff, start: usize, first: u8, end: usize) -> u32 {
    let skb = TcContext::new(skb);
    let Some(walk) = Walk::begin(start as u32, first) else {
        return Walk::MALFORMED;
    };
    for _ in 0..MAX_EXTENSIONS {
        let kind = walk.protocol;
        if !is_extension(kind) {
            return Walk::DONE;
        }
        // The verifier wants a bound on the offset; no packet has headers this long.
        let at = walk.at as usize;
        if at > 0x3fff || at + 8 > end {
            break;
        }
        let Some(header) = bytes::<8>(&skb, at) else {
            break;
        };
        walk.protocol = byte(header, 0);
        if kind == FRAGMENT {
            let field = be16(header, 2);
            let offset = field >> 3;
            walk.identification = (be16(header, 4) as u32) << 16 | be16(header, 6) as u32;
            walk.fragment = offset | (field & 1) << 13;
            walk.at += 8;
            if offset != 0 {
                // What follows belongs to the middle of the datagram: the walk ends here.
                return Walk::DONE;
            }
        } else {
            if kind == ROUTING && byte(header, 3) != 0 {
                return Walk::SOURCE_ROUTE;
            }
            walk.at += (byte(header, 1) as u32 + 1) * 8;
        }
    }
    Walk::MALFORMED
}

/// Parses the L4 header; a later fragment has none.
#[inline(always)]
pub(crate) fn transport<F: Family>(
    skb: &TcContext,
    network: &Network<F>,
) -> Result<Transport, Reason> {
    let at = network.l4;
    let mut transport = Transport {
        sport: 0,
        dport: 0,
        signal: Signal::NONE,
        tcp_flags: 0,
        icmp_type: 0,
    };
    if network.fragment.is_later() {
        return Ok(transport);
    }
    match network.protocol {
        protocol::TCP => {
            if at + TcpHdr::LEN > network.end {
                return Err(Reason::Malformed);
            }
            let Some(header) = bytes::<{ TCP_FLAGS + 1 }>(skb, at) else {
                return Err(Reason::Malformed);
            };
            transport.sport = be16(header, offset_of!(TcpHdr, source));
            transport.dport = be16(header, offset_of!(TcpHdr, dest));
            transport.tcp_flags = byte(header, TCP_FLAGS);
            transport.signal = Signal::tcp(transport.tcp_flags);
        }
        protocol::UDP => {
            if at + UdpHdr::LEN > network.end {
                return Err(Reason::Malformed);
            }
            let Some(header) = bytes::<4>(skb, at) else {
                return Err(Reason::Malformed);
            };
            transport.sport = be16(header, offset_of!(UdpHdr, src));
            transport.dport = be16(header, offset_of!(UdpHdr, dst));
        }
        protocol::SCTP => {
            // The common header and the type of the first chunk (RFC 9260, section 3).
            const LEN: usize = size_of::<SctpHdr>() + 1;
            if at + LEN > network.end {
                return Err(Reason::Malformed);
            }
            let Some(header) = bytes::<LEN>(skb, at) else {
                return Err(Reason::Malformed);
            };
            transport.sport = be16(header, offset_of!(SctpHdr, src));
            transport.dport = be16(header, offset_of!(SctpHdr, dst));
            transport.signal = Signal::sctp(byte(header, size_of::<SctpHdr>()));
        }
        number if number == F::ICMP => {
            if at + size_of::<Icmpv4Hdr>() > network.end {
                return Err(Reason::Malformed);
            }
            let Some(header) = bytes::<{ size_of::<Icmpv4Hdr>() }>(skb, at) else {
                return Err(Reason::Malformed);
            };
            transport.icmp_type = byte(header, 0);
            transport.dport = be16(header, 0);
            transport.sport = be16(header, offset_of!(Icmpv4Hdr, data));
            transport.signal = match F::icmp_query(transport.icmp_type) {
                Some((_, true)) => Signal::NONE,
                _ => Signal(Signal::NO_FLOW),
            };
        }
        _ => {}
    }
    Ok(transport)
}

/// Whether a protocol's header begins with a source and a destination port.
#[inline(always)]
pub(crate) fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}

impl Transport {
    /// From the first eight bytes of a quoted header that begins with ports.
    #[inline(always)]
    pub(crate) fn quoted(header: *const u8) -> Self {
        Self {
            sport: be16(header, 0),
            dport: be16(header, 2),
            signal: Signal::NONE,
            tcp_flags: 0,
            icmp_type: 0,
        }
    }

    /// From a quoted ICMP header.
    #[inline(always)]
    pub(crate) fn quoted_icmp(header: *const u8) -> Self {
        Self {
            sport: be16(header, offset_of!(Icmpv4Hdr, data)),
            dport: be16(header, 0),
            signal: Signal::NONE,
            tcp_flags: 0,
            icmp_type: byte(header, 0),
        }
    }
}
