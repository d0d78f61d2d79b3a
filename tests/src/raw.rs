//! Packets byte by byte, layer by layer, for what no builder would build.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub type Mac = [u8; 6];

/// Everybody on the link.
pub const BROADCAST: Mac = [0xff; 6];

/// Ethernet types.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A VLAN tag (IEEE 802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// An outer VLAN tag (IEEE 802.1ad).
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// An Ethernet frame.
#[must_use]
pub fn ethernet(to: Mac, from: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A frame around an IP packet of either family.
#[must_use]
pub fn ip_frame(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let ethertype = match packet.first().map_or(0, |first| first >> 4) {
        6 => ethertype::IPV6,
        _ => ethertype::IPV4,
    };
    ethernet(to, from, ethertype, packet)
}

/// `frame` with VLAN tags, the outermost first: type and identifier.
#[must_use]
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut bytes = frame[..12].to_vec();
    for (ethertype, identifier) in tags {
        bytes.extend(ethertype.to_be_bytes());
        bytes.extend(identifier.to_be_bytes());
    }
    bytes.extend(&frame[12..]);
    bytes
}

/// The multicast hardware address of an IP group.
#[must_use]
pub fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(group) => {
            let octets = group.octets();
            [0x33, 0x33, octets[12], octets[13], octets[14], octets[15]]
        }
    }
}

/// The Internet checksum (RFC 1071).
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// How an IPv4 header differs from the plainest.
#[derive(Clone, Debug)]
pub struct V4 {
    /// Options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Identification.
    pub id: u16,
    /// Flags and offset in units of eight bytes.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
}

impl Default for V4 {
    fn default() -> Self {
        Self {
            options: Vec::new(),
            id: 0,
            fragment: 0,
            ttl: 64,
        }
    }
}

/// An IPv4 packet.
#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ipv4_as(&V4::default(), from, to, protocol, payload)
}

/// An IPv4 packet with a header that differs.
#[must_use]
pub fn ipv4_as(header: &V4, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = 20 + header.options.len();
    let mut bytes = vec![0x40 | (length / 4) as u8, 0];
    bytes.extend(((length + payload.len()) as u16).to_be_bytes());
    bytes.extend(header.id.to_be_bytes());
    bytes.extend(header.fragment.to_be_bytes());
    bytes.extend([header.ttl, protocol, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(&header.options);
    let sum = checksum(&bytes);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// An IPv6 packet; `next` is the first header of the payload.
#[must_use]
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend((payload.len() as u16).to_be_bytes());
    bytes.extend([next, hop_limit]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(payload);
    bytes
}

/// An IP packet of the addresses' family.
///
/// # Panics
///
/// When they are of two.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, 64, payload),
        _ => panic!("{from} and {to} are of two families"),
    }
}

/// `l4`, whose checksum is at `at`, with the checksum that goes with these addresses.
#[must_use]
pub fn summed(from: IpAddr, to: IpAddr, protocol: u8, mut l4: Vec<u8>, at: usize) -> Vec<u8> {
    l4[at..at + 2].fill(0);
    let mut pseudo = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
        }
        _ => panic!("{from} and {to} are of two families"),
    }
    pseudo.extend((l4.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo.extend(&l4);
    let sum = checksum(&pseudo);
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    l4
}

/// A UDP datagram.
#[must_use]
pub fn udp(from: IpAddr, to: IpAddr, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    bytes.extend(((8 + payload.len()) as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    summed(from, to, 17, bytes, 6)
}

/// A TCP segment.
#[must_use]
pub fn tcp(
    from: IpAddr,
    to: IpAddr,
    ports: [u16; 2],
    flags: u8,
    sequence: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(1_u32.to_be_bytes());
    bytes.extend([0x50, flags, 4, 0, 0, 0, 0, 0]);
    bytes.extend(payload);
    summed(from, to, 6, bytes, 16)
}

/// An ICMP or ICMPv6 message, by the addresses' family: type, code, and what follows the checksum.
#[must_use]
pub fn icmp(from: IpAddr, to: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    if from.is_ipv6() {
        return summed(from, to, 58, bytes, 2);
    }
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An ARP message for IPv4 over Ethernet, with bytes behind it as padding has them.
#[must_use]
pub fn arp(
    operation: u16,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
    padding: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(address.octets());
    }
    bytes.extend(padding);
    bytes
}

/// VXLAN around a frame (RFC 7348).
#[must_use]
pub fn vxlan(identifier: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0];
    bytes.extend((identifier << 8).to_be_bytes());
    bytes.extend(frame);
    bytes
}

/// Geneve around a frame (RFC 8926).
#[must_use]
pub fn geneve(identifier: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0x65, 0x58];
    bytes.extend((identifier << 8).to_be_bytes());
    bytes.extend(frame);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    #[test]
    fn what_is_built_is_what_others_read() {
        for [from, to] in [["10.0.0.1", "10.0.0.2"], ["fd00::1", "fd00::2"]] {
            let [from, to]: [IpAddr; 2] = [from, to].map(|text| text.parse().unwrap());
            let packet = ip(from, to, 17, &udp(from, to, [1, 2], b"data"));
            let frame = ip_frame([2; 6], [4; 6], &packet);
            let read = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = read.transport else {
                panic!("{read:?}");
            };
            assert_eq!(udp.payload(), b"data");
            // A right checksum makes the sum over all zero.
            let l4 = &packet[packet.len() - 12..];
            let again = summed(from, to, 17, l4.to_vec(), 6);
            assert_eq!(again, l4);
        }
    }
}
