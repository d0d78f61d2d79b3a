//! IPv4 and IPv6 as one source: what differs between them, as a trait.

use aya_ebpf::programs::TcContext;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use policy_common::address::{AddressV4, AddressV6};
use policy_common::endpoint::Endpoint;
use policy_common::flow::{FlowKey, FlowKeyV4, FlowKeyV6, PortPair, protocol};
use policy_common::service::Hint;
use policy_common::verdict::Reason;

use crate::maps::{
    FLOWS_NEW_V4, FLOWS_NEW_V6, FLOWS_V4, FLOWS_V6, FlowTable, GUARDED_V4, GUARDED_V6, GuardTable,
    IDENTITY_V4, IDENTITY_V6, IdentityTable, NewFlowTable, PENDING_V4, PENDING_V6, PREFIX_V4,
    PREFIX_V6, PendingTable, PrefixTable, SERVICE_V4, SERVICE_V6, ServiceTable,
};
use crate::parse::{self, Network};

/// An address family.
pub(crate) trait Family: Sized + 'static {
    /// Its address type.
    type Address: Copy + Eq + 'static;
    /// 4 or 6.
    const NUMBER: u8;
    /// Length of an address in bits.
    const ADDRESS_BITS: u32;
    /// ICMP's protocol number in this family.
    const ICMP: u8;
    /// The UDP port of DHCP servers, and that of their clients.
    const DHCP_SERVER: u16;
    /// See [`Family::DHCP_SERVER`].
    const DHCP_CLIENT: u16;
    /// Length of a network header without options or extension headers, in bytes.
    const HEADER_LEN: usize;

    /// A flow's key.
    fn key(
        endpoint: u32,
        remote: Self::Address,
        ports: PortPair,
        protocol: u8,
        place: u8,
    ) -> FlowKey<Self::Address>;
    /// The address's key in the table of single addresses, and its place in the row.
    fn block(address: Self::Address) -> (Self::Address, usize);
    /// Its table of single addresses.
    fn identities() -> &'static IdentityTable<Self::Address>;
    /// Its prefix table.
    fn prefixes() -> &'static PrefixTable<Self::Address>;
    /// The address's bit among hints.
    fn hint(address: Self::Address) -> Hint;
    /// Its table of addresses that are translated later.
    fn services() -> &'static ServiceTable<Self::Address>;
    /// Whose its addresses are.
    fn guarded() -> &'static GuardTable<Self::Address>;
    /// Its flows that wait to be granted.
    fn pending() -> &'static PendingTable<Self::Address>;
    /// 32 bits that are the same for all packets of a flow, spread over their upper half.
    fn entropy(key: &FlowKey<Self::Address>) -> u32;
    /// Its table of flows seen both ways.
    fn flows() -> &'static FlowTable<Self::Address>;
    /// Its table of flows seen one way.
    fn new_flows() -> &'static NewFlowTable<Self::Address>;

    /// What `hot` wants of the `HEADER_LEN` bytes at `header`, which are the packet's at `offset`; `None` when
    /// they say anything unusual.
    fn plain_header(header: *const u8, offset: usize) -> Option<Network<Self>>;
    /// Parses the network header at `offset` and what stands between it and the L4 header.
    fn parse_network(skb: &TcContext, offset: usize) -> Result<Network<Self>, Reason>;
    /// Parses the network header of a packet that an ICMP error quotes, cut short as it may be;
    /// `end` is the end of the quoting packet.
    fn parse_quote(skb: &TcContext, offset: usize, end: usize) -> Option<Network<Self>>;
    /// The endpoint's own address, where it has one of this family.
    fn own_address(endpoint: &Endpoint) -> Option<Self::Address>;
    /// Whether a source address that is not the endpoint's own can forge no identity.
    fn is_harmless_source(address: Self::Address) -> bool;
    /// Whether an address can be a single sender's.
    fn is_unicast(address: Self::Address) -> bool;
    /// Whether the ICMP message is neighbour discovery or multicast listener discovery, by its hop limit.
    fn is_link_control(icmp_type: u8, hop_limit: u8) -> bool;
    /// Whether only routers send this type of ICMP message.
    fn is_router_message(icmp_type: u8) -> bool;
    /// Whether an ICMP type is an error that quotes a packet.
    fn is_icmp_error(icmp_type: u8) -> bool;
    /// `Some((request type, is this the request))` for ICMP queries.
    fn icmp_query(icmp_type: u8) -> Option<(u8, bool)>;
    /// The address in an event's 16 octets.
    fn octets(address: Self::Address) -> [u8; 16];
}

/// IPv4.
pub(crate) enum V4 {}
/// IPv6.
pub(crate) enum V6 {}

impl Family for V4 {
    type Address = AddressV4;
    const NUMBER: u8 = 4;
    const ADDRESS_BITS: u32 = 32;
    const ICMP: u8 = protocol::ICMP;
    const HEADER_LEN: usize = Ipv4Hdr::LEN;
    const DHCP_SERVER: u16 = 67;
    const DHCP_CLIENT: u16 = 68;

    #[inline(always)]
    fn key(
        endpoint: u32,
        remote: AddressV4,
        ports: PortPair,
        protocol: u8,
        place: u8,
    ) -> FlowKeyV4 {
        FlowKeyV4::from_parts(endpoint, remote, ports, protocol, place)
    }
    #[inline(always)]
    fn block(address: AddressV4) -> (AddressV4, usize) {
        (address.block(), address.place())
    }
    #[inline(always)]
    fn identities() -> &'static IdentityTable<AddressV4> {
        &IDENTITY_V4
    }
    #[inline(always)]
    fn prefixes() -> &'static PrefixTable<AddressV4> {
        &PREFIX_V4
    }
    #[inline(always)]
    fn hint(address: AddressV4) -> Hint {
        Hint::of_v4(address)
    }
    #[inline(always)]
    fn services() -> &'static ServiceTable<AddressV4> {
        &SERVICE_V4
    }
    #[inline(always)]
    fn guarded() -> &'static GuardTable<AddressV4> {
        &GUARDED_V4
    }
    #[inline(always)]
    fn pending() -> &'static PendingTable<AddressV4> {
        &PENDING_V4
    }
    #[inline(always)]
    fn entropy(key: &FlowKeyV4) -> u32 {
        key.entropy()
    }
    #[inline(always)]
    fn flows() -> &'static FlowTable<AddressV4> {
        &FLOWS_V4
    }
    #[inline(always)]
    fn new_flows() -> &'static NewFlowTable<AddressV4> {
        &FLOWS_NEW_V4
    }
    #[inline(always)]
    fn plain_header(header: *const u8, offset: usize) -> Option<Network<Self>> {
        parse::plain_ipv4(header, offset)
    }
    #[inline(always)]
    fn parse_network(skb: &TcContext, offset: usize) -> Result<Network<Self>, Reason> {
        parse::ipv4(skb, offset)
    }
    #[inline(always)]
    fn parse_quote(skb: &TcContext, offset: usize, _: usize) -> Option<Network<Self>> {
        parse::ipv4_header(skb, offset).ok()
    }
    #[inline(always)]
    fn own_address(endpoint: &Endpoint) -> Option<AddressV4> {
        (endpoint.flags & Endpoint::HAS_IPV4 != 0).then_some(endpoint.ipv4)
    }
    #[inline(always)]
    fn is_harmless_source(address: AddressV4) -> bool {
        // The unspecified address, from which DHCP clients ask; nobody forwards what comes from it.
        address.octets == [0; 4]
    }
    #[inline(always)]
    fn is_unicast(address: AddressV4) -> bool {
        // Not loopback's, no group's, and none that is set aside (RFC 1122, section 3.2.1.3). The unspecified
        // address is nobody's: DHCP clients send from it.
        !matches!(address.octets[0], 127 | 224..)
    }
    #[inline(always)]
    fn is_link_control(_: u8, _: u8) -> bool {
        false
    }
    #[inline(always)]
    fn is_router_message(icmp_type: u8) -> bool {
        // RFC 792 and RFC 1256: redirect, router advertisement.
        matches!(icmp_type, 5 | 9)
    }
    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        // RFC 792: destination unreachable, source quench, time exceeded, parameter problem. A
        // redirect (5) quotes a packet too, but changes routes: it is judged by policy.
        matches!(icmp_type, 3 | 4 | 11 | 12)
    }
    #[inline(always)]
    fn icmp_query(icmp_type: u8) -> Option<(u8, bool)> {
        match icmp_type {
            8 => Some((8, true)),
            0 => Some((8, false)),
            13 => Some((13, true)),
            14 => Some((13, false)),
            _ => None,
        }
    }
    #[inline(always)]
    fn octets(address: AddressV4) -> [u8; 16] {
        let [a, b, c, d] = address.octets;
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

impl Family for V6 {
    type Address = AddressV6;
    const NUMBER: u8 = 6;
    const ADDRESS_BITS: u32 = 128;
    const ICMP: u8 = protocol::ICMPV6;
    const HEADER_LEN: usize = size_of::<Ipv6Hdr>();
    const DHCP_SERVER: u16 = 547;
    const DHCP_CLIENT: u16 = 546;

    #[inline(always)]
    fn key(
        endpoint: u32,
        remote: AddressV6,
        ports: PortPair,
        protocol: u8,
        place: u8,
    ) -> FlowKeyV6 {
        FlowKeyV6::from_parts(endpoint, remote, ports, protocol, place)
    }
    #[inline(always)]
    fn block(address: AddressV6) -> (AddressV6, usize) {
        (address.block(), address.place())
    }
    #[inline(always)]
    fn identities() -> &'static IdentityTable<AddressV6> {
        &IDENTITY_V6
    }
    #[inline(always)]
    fn prefixes() -> &'static PrefixTable<AddressV6> {
        &PREFIX_V6
    }
    #[inline(always)]
    fn hint(address: AddressV6) -> Hint {
        Hint::of_v6(address)
    }
    #[inline(always)]
    fn services() -> &'static ServiceTable<AddressV6> {
        &SERVICE_V6
    }
    #[inline(always)]
    fn guarded() -> &'static GuardTable<AddressV6> {
        &GUARDED_V6
    }
    #[inline(always)]
    fn pending() -> &'static PendingTable<AddressV6> {
        &PENDING_V6
    }
    #[inline(always)]
    fn entropy(key: &FlowKeyV6) -> u32 {
        key.entropy()
    }
    #[inline(always)]
    fn flows() -> &'static FlowTable<AddressV6> {
        &FLOWS_V6
    }
    #[inline(always)]
    fn new_flows() -> &'static NewFlowTable<AddressV6> {
        &FLOWS_NEW_V6
    }
    #[inline(always)]
    fn plain_header(header: *const u8, offset: usize) -> Option<Network<Self>> {
        parse::plain_ipv6(header, offset)
    }
    #[inline(always)]
    fn parse_network(skb: &TcContext, offset: usize) -> Result<Network<Self>, Reason> {
        parse::ipv6(skb, offset)
    }
    #[inline(always)]
    fn parse_quote(skb: &TcContext, offset: usize, end: usize) -> Option<Network<Self>> {
        let mut network = parse::ipv6_header(skb, offset).ok()?;
        network.end = end;
        parse::ipv6_extensions(skb, &mut network).ok()?;
        Some(network)
    }
    #[inline(always)]
    fn own_address(endpoint: &Endpoint) -> Option<AddressV6> {
        (endpoint.flags & Endpoint::HAS_IPV6 != 0).then_some(endpoint.ipv6)
    }
    #[inline(always)]
    fn is_harmless_source(address: AddressV6) -> bool {
        // fe80::/10: valid on this link only, never in a table, so it has identity 0. And the unspecified address, from
        // which a host asks whether its own is free.
        (address.octets[0] == 0xfe && address.octets[1] & 0xc0 == 0x80) || address.words() == [0; 4]
    }
    #[inline(always)]
    fn is_unicast(address: AddressV6) -> bool {
        // No group's, and not loopback's (RFC 4291, section 2.5).
        let [a, b, c, d] = address.words();
        address.octets[0] != 0xff && (a, b, c, d) != (0, 0, 0, 1_u32.to_be())
    }
    #[inline(always)]
    fn is_router_message(icmp_type: u8) -> bool {
        // RFC 4861: router advertisement, redirect.
        matches!(icmp_type, 134 | 137)
    }
    #[inline(always)]
    fn is_link_control(icmp_type: u8, hop_limit: u8) -> bool {
        match icmp_type {
            // RFC 4861 section 6.1 and 7.1: neighbour discovery is sent with hop limit 255, which
            // proves that no router forwarded it.
            133..=137 => hop_limit == 255,
            // RFC 2710 and 3810: MLD is sent with hop limit 1.
            130..=132 | 143 => hop_limit == 1,
            _ => false,
        }
    }
    #[inline(always)]
    fn is_icmp_error(icmp_type: u8) -> bool {
        // RFC 4443: unreachable, packet too big, time exceeded, parameter problem.
        matches!(icmp_type, 1..=4)
    }
    #[inline(always)]
    fn icmp_query(icmp_type: u8) -> Option<(u8, bool)> {
        match icmp_type {
            128 => Some((128, true)),
            129 => Some((128, false)),
            _ => None,
        }
    }
    #[inline(always)]
    fn octets(address: AddressV6) -> [u8; 16] {
        address.octets
    }
}
