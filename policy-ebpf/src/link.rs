//! What passes as talk on the link, and what a pod may say there: ARP, neighbour discovery, and the messages that only
//! routers, DHCP servers and tunnels send.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup as FibLookup};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_fib_lookup;
use aya_ebpf::programs::TcContext;
use policy_common::address::{AddressV4, AddressV6};
use policy_common::endpoint::Endpoint;
use policy_common::flow::protocol;
use policy_common::guard::Guard;
use policy_common::service::ServiceAddress;
use policy_common::verdict::Reason;

use crate::endpoint::Subject;
use crate::family::{Family, V4, V6};
use crate::maps::SLOTS;
use crate::parse::{self, Fragment, NETWORK_OFFSET};
use crate::scratch::{self, Scratch};
use crate::{ADVERTISED, EGRESS, PARSED, carrier, event, service};

/// Length of an ARP message for IPv4 over Ethernet (RFC 826).
const ARP_LEN: usize = 28;
/// Its beginning: hardware type 1, protocol 0x0800, address lengths 6 and 4.
const ARP_IPV4_OVER_ETHERNET: [u8; 6] = [0, 1, 8, 0, 6, 4];

/// Judges an ARP message that a pod sends: it may speak for its own address, and ask.
#[inline(never)]
pub(crate) fn judge_arp(skb: *mut __sk_buff, row: *const Endpoint, epoch: u32) -> u32 {
    let skb = &TcContext::new(skb);
    let subject = &Subject::again(row, epoch);
    let Some(message) = parse::bytes::<ARP_LEN>(skb, NETWORK_OFFSET) else {
        return Reason::Malformed as u32;
    };
    for (at, expected) in ARP_IPV4_OVER_ETHERNET.iter().enumerate() {
        if parse::byte(message, at) != *expected {
            return Reason::Malformed as u32;
        }
    }
    let operation = parse::be16(message, 6);
    let sender: AddressV4 = parse::address(message, 14);
    let is_request = operation == 1;
    if !is_request && operation != 2 {
        return Reason::Malformed as u32;
    }
    // A probe asks whether an address is free, without claiming it (RFC 5227).
    if (is_request && sender.octets == [0; 4])
        || V4::own_address(subject.row()) == Some(sender)
        || may_claim::<V4>(row, epoch, &sender) != 0
    {
        return Reason::LinkControl as u32;
    }
    Reason::ClaimedAddress as u32
}

/// Whether an endpoint may use an address that is not its own: not 0 where it may.
#[inline(never)]
pub(crate) fn may_claim<F: Family>(row: *const Endpoint, epoch: u32, address: &F::Address) -> u32 {
    let subject = &Subject::again(row, epoch);
    let is_router = subject.is_router();
    if subject.is_isolated() && !is_router {
        return 0;
    }
    if !F::is_unicast(*address) {
        return 0;
    }
    match service::kind_of::<F>(address) {
        ServiceAddress::NODE => return 0,
        0 => {}
        _ if is_router => {}
        _ => return 0,
    }
    if is_router {
        return 1;
    }
    let exact = Key::<F::Address>::new(F::ADDRESS_BITS, *address);
    F::guarded().get(&exact).is_none() as u32
}

/// Whether packets to this address could be decapsulated: it is a node's, or the other end of a tunnel of this one's.
#[inline(always)]
pub(crate) fn decapsulates<F: Family>(address: &F::Address) -> bool {
    if service::kind_of::<F>(address) == ServiceAddress::NODE {
        return true;
    }
    let exact = Key::<F::Address>::new(F::ADDRESS_BITS, *address);
    F::guarded()
        .get(&exact)
        .is_some_and(|guard| guard.kind & (Guard::NODE | Guard::REMOTE) != 0)
}

/// Protocols that carry other packets, which a node may unpack without asking whose they are: IPv4 and IPv6
/// in IP (RFC 2003, RFC 4213), GRE (RFC 2784), EtherIP (RFC 3378), L2TP (RFC 3931), MPLS in IP (RFC 4023).
#[inline(always)]
pub(crate) const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, 4 | 41 | 47 | 97 | 115 | 137)
}

/// Whether a UDP packet from a pod needs a second look: a DHCP server's answer, or one to a port at which this node
/// decapsulates.
#[inline(always)]
pub(crate) fn is_unusual_udp<F: Family>(subject: &Subject, sport: u16, dport: u16) -> bool {
    if sport == F::DHCP_SERVER && dport == F::DHCP_CLIENT {
        return true;
    }
    let ports = subject.tunnel_ports();
    // The port in each of the four places, then: is any place equal?
    let wanted = dport as u64 * 0x0001_0001_0001_0001;
    let differing = ports ^ wanted;
    differing.wrapping_sub(0x0001_0001_0001_0001) & !differing & 0x8000_8000_8000_8000 != 0
}

/// Judges by whom the packet in [`Scratch`] claims to be sent, and whether it is of a kind that only routers, DHCP servers
/// and tunnels send: the reason to drop it, or `PARSED`.
#[inline(never)]
pub(crate) fn judge_sender<F: Family>(skb: *mut __sk_buff, row: *const Endpoint) -> u32 {
    let Some(scratch) = scratch::memory::<Scratch<F>>() else {
        return Reason::NoPolicy as u32;
    };
    let subject = &Subject::again(row, scratch.epoch);
    let packet = &scratch.packet;
    let mut reason = PARSED;
    if F::own_address(subject.row()) == Some(packet.saddr) {
        carrier::sent(&TcContext::new(skb), subject.id);
    } else if !F::is_harmless_source(packet.saddr)
        && may_claim::<F>(row, scratch.epoch, &packet.saddr) == 0
    {
        reason = Reason::SpoofedSource as u32;
    }
    if reason == PARSED && !subject.is_router() {
        reason = forbidden::<F>(subject, scratch);
    }
    if reason != PARSED {
        event::dropped(skb, &scratch.packet, &scratch.decision, reason);
    }
    reason
}

/// The reason to drop what only routers, DHCP servers and tunnels send, `PARSED` for everything else.
#[inline(always)]
fn forbidden<F: Family>(subject: &Subject, scratch: &Scratch<F>) -> u32 {
    let packet = &scratch.packet;
    if packet.key.protocol == protocol::UDP {
        if packet.fragment.is_later() || !is_unusual_udp::<F>(subject, packet.sport, packet.dport) {
            return PARSED;
        }
        if packet.sport == F::DHCP_SERVER && packet.dport == F::DHCP_CLIENT {
            return Reason::DhcpServer as u32;
        }
    } else if F::is_router_message(scratch.icmp_type) {
        return Reason::RouterMessage as u32;
    } else if !is_tunnel(packet.key.protocol) {
        return PARSED;
    }
    if decapsulates::<F>(&packet.daddr) {
        Reason::NodeTunnel as u32
    } else {
        PARSED
    }
}

/// Judges what may be talk on the link, in [`Scratch`]: a reason, `ADVERTISED` for [`judge_advertisement`], or `PARSED`
/// where it is judged as any other packet. Its source is checked already.
#[inline(never)]
pub(crate) fn judge_neighbour_message(
    skb: *mut __sk_buff,
    row: *const Endpoint,
    direction: u32,
) -> u32 {
    let Some(scratch) = scratch::memory::<Scratch<V6>>() else {
        return Reason::NoPolicy as u32;
    };
    if !V6::is_link_control(scratch.icmp_type, scratch.hop_limit)
        || scratch.packet.fragment != Fragment::WHOLE
    {
        return PARSED;
    }
    let subject = &Subject::again(row, scratch.epoch);
    let packet = &scratch.packet;
    if !matches!(scratch.icmp_type, 133..=137) {
        // Multicast listener discovery: from a link-local address or none (RFC 3810, section 5.1.14), to a group.
        return if V6::is_harmless_source(packet.saddr) && packet.daddr.octets[0] == 0xff {
            Reason::LinkControl as u32
        } else {
            PARSED
        };
    }
    let stays = is_link_local(&packet.daddr)
        || (packet.daddr.octets[0] == 0xff && packet.daddr.octets[1] & 0xf == 2);
    if direction != EGRESS as u32 {
        // The hop limit has shown that no router forwarded it.
        return if stays || V6::own_address(subject.row()) == Some(packet.daddr) {
            Reason::LinkControl as u32
        } else {
            PARSED
        };
    }
    // To anyone but a neighbour it would carry what it likes, wherever it likes.
    if !stays
        && service::kind_of::<V6>(&packet.daddr) != ServiceAddress::NODE
        && is_on_link(skb, subject.id, &packet.daddr) == 0
    {
        return PARSED;
    }
    const ADVERTISEMENT: u8 = 136;
    if scratch.icmp_type == ADVERTISEMENT {
        ADVERTISED
    } else {
        Reason::LinkControl as u32
    }
}

/// Judges a neighbour advertisement that a pod sends, in [`Scratch`]: it may speak for its own address.
#[inline(never)]
pub(crate) fn judge_advertisement(skb: *mut __sk_buff, row: *const Endpoint) -> u32 {
    let Some(scratch) = scratch::memory::<Scratch<V6>>() else {
        return Reason::NoPolicy as u32;
    };
    let l4 = scratch.l4 as usize;
    if l4 > 0x3fff {
        return Reason::Malformed as u32;
    }
    let Some(message) = parse::bytes::<24>(&TcContext::new(skb), l4) else {
        return Reason::Malformed as u32;
    };
    scratch.quoted.remote = parse::address(message, 8);
    let subject = &Subject::again(row, scratch.epoch);
    if V6::own_address(subject.row()) == Some(scratch.quoted.remote)
        || is_link_local(&scratch.quoted.remote)
        || may_claim::<V6>(row, scratch.epoch, &scratch.quoted.remote) != 0
    {
        return Reason::LinkControl as u32;
    }
    let reason = Reason::ClaimedAddress as u32;
    event::dropped(skb, &scratch.packet, &scratch.decision, reason);
    reason
}

#[inline(always)]
fn is_link_local(address: &AddressV6) -> bool {
    address.octets[0] == 0xfe && address.octets[1] & 0xc0 == 0x80
}

/// Whether the kernel would reach an address by the link of the endpoint with this id, without a router: not 0 where it
/// would. A function of its own for the sake of the stack.
#[inline(never)]
fn is_on_link(skb: *mut __sk_buff, endpoint: u32, address: &AddressV6) -> u32 {
    /// `AF_INET6` of linux/socket.h.
    const FAMILY: u8 = 10;
    /// `BPF_FIB_LOOKUP_OUTPUT` of linux/bpf.h: by the interface that is named.
    const OUTPUT: u32 = 2;
    let Some(slot) = SLOTS.get(endpoint & 0xfff) else {
        return 0;
    };
    let link = if slot.master != 0 {
        slot.master
    } else {
        slot.ifindex
    };
    // SAFETY: plain numbers, for which zero is a value.
    let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
    lookup.family = FAMILY;
    lookup.ifindex = link;
    let [a, b, c, d] = address.words();
    lookup.__bindgen_anon_4.ipv6_dst = [a, b, c, d];
    // SAFETY: the structure is the kernel's, and as long as is said.
    let found = unsafe {
        bpf_fib_lookup(
            skb.cast(),
            &raw mut lookup,
            size_of::<FibLookup>() as i32,
            OUTPUT,
        )
    };
    // SAFETY: the field that was written.
    let next = unsafe { lookup.__bindgen_anon_4.ipv6_dst };
    match found {
        // Found, or found and its hardware address is not known yet: without a gateway it is a neighbour.
        0 | 7 => (next == [a, b, c, d] && lookup.ifindex == link) as u32,
        // The node forwards nothing of this family, so nothing leaves the link.
        5 => 1,
        _ => 0,
    }
}
