//! Packets for the tables, built with etherparse; what it refuses to build is patched in by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{PacketBuilder, PacketBuilderStep, ip_number};

/// The end of the Ethernet header.
pub const ETH: usize = 14;
/// TCP flags byte's offset within the TCP header.
pub const TCP_FLAGS: usize = 13;

/// TCP flags as the tables name them.
pub mod flags {
    /// Opens.
    pub const SYN: u8 = 0x02;
    /// Opens, answered.
    pub const SYN_ACK: u8 = 0x12;
    /// Data.
    pub const ACK: u8 = 0x10;
    /// Closes.
    pub const FIN_ACK: u8 = 0x11;
    /// Ends.
    pub const RST: u8 = 0x04;
}

/// What is sent, before it is bytes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// TCP with these flags.
    Tcp(u8),
    /// UDP with a short payload.
    Udp,
    /// SCTP whose first chunk is of this type.
    Sctp(u8),
    /// ICMP or ICMPv6 echo request; the source port is the id.
    EchoRequest,
    /// The answer.
    EchoReply,
    /// A bare header of another protocol.
    Other(u8),
}

/// An Ethernet frame from `source` to `destination`, both of one family.
///
/// # Panics
///
/// When the families differ.
#[must_use]
pub fn frame(source: SocketAddr, destination: SocketAddr, kind: Kind) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (sport, dport) = (source.port(), destination.port());
    let (ip, is_v4) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => (ethernet.ipv4(s.octets(), d.octets(), 64), true),
        (IpAddr::V6(s), IpAddr::V6(d)) => (ethernet.ipv6(s.octets(), d.octets(), 64), false),
        _ => panic!("{source} and {destination} are of two families"),
    };
    let payload = *b"payload-";
    match kind {
        Kind::Tcp(flags) => {
            let mut bytes = Vec::new();
            ip.tcp(sport, dport, 1, 1024)
                .write(&mut bytes, &payload)
                .unwrap();
            let at = ETH + if is_v4 { 20 } else { 40 } + TCP_FLAGS;
            bytes[at] = flags;
            bytes
        }
        Kind::Udp => written(ip.udp(sport, dport), &payload),
        Kind::Sctp(chunk) => {
            let mut sctp = Vec::new();
            sctp.extend(sport.to_be_bytes());
            sctp.extend(dport.to_be_bytes());
            sctp.extend([0; 8]);
            sctp.extend([chunk, 0, 0, 4]);
            raw(ip, ip_number::SCTP.0, &sctp)
        }
        Kind::EchoRequest if is_v4 => {
            let mut bytes = Vec::new();
            ip.icmpv4_echo_request(sport, 1)
                .write(&mut bytes, &payload)
                .unwrap();
            bytes
        }
        Kind::EchoReply if is_v4 => {
            let mut bytes = Vec::new();
            ip.icmpv4_echo_reply(sport, 1)
                .write(&mut bytes, &payload)
                .unwrap();
            bytes
        }
        Kind::EchoRequest => {
            let mut bytes = Vec::new();
            ip.icmpv6_echo_request(sport, 1)
                .write(&mut bytes, &payload)
                .unwrap();
            bytes
        }
        Kind::EchoReply => {
            let mut bytes = Vec::new();
            ip.icmpv6_echo_reply(sport, 1)
                .write(&mut bytes, &payload)
                .unwrap();
            bytes
        }
        Kind::Other(number) => raw(ip, number, &payload),
    }
}

fn written(step: PacketBuilderStep<etherparse::UdpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    step.write(&mut bytes, payload).unwrap();
    bytes
}

fn raw(step: PacketBuilderStep<etherparse::IpHeaders>, number: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    step.write(&mut bytes, etherparse::IpNumber(number), payload)
        .unwrap();
    bytes
}

/// `frame` with an IPv4 header of `options.len() / 4` more words; the length must be a multiple of 4.
#[must_use]
pub fn with_ipv4_options(frame: &[u8], options: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes.splice(ETH + 20..ETH + 20, options.iter().copied());
    bytes[ETH] = 0x40 | (5 + options.len() / 4) as u8;
    set_ipv4_length(&mut bytes);
    bytes
}

/// Sets an IPv4 header's total length to what is there.
pub fn set_ipv4_length(frame: &mut [u8]) {
    let length = (frame.len() - ETH) as u16;
    frame[ETH + 2..ETH + 4].copy_from_slice(&length.to_be_bytes());
}

/// `frame` (IPv6) with extension headers put before its payload; each is (its number, its bytes with
/// the first one, next header, left to us).
#[must_use]
pub fn with_ipv6_extensions(frame: &[u8], extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = frame[..ETH + 40].to_vec();
    let protocol = frame[ETH + 6];
    let mut next = ETH + 6;
    for (number, extension) in extensions {
        bytes[next] = *number;
        next = bytes.len();
        bytes.extend(extension);
    }
    bytes[next] = protocol;
    bytes.extend(&frame[ETH + 40..]);
    let payload = (bytes.len() - ETH - 40) as u16;
    bytes[ETH + 4..ETH + 6].copy_from_slice(&payload.to_be_bytes());
    bytes
}

/// An IPv6 fragment header's eight bytes (the next header left to [`with_ipv6_extensions`]).
#[must_use]
pub fn ipv6_fragment(offset_units: u16, more: bool, identification: u32) -> Vec<u8> {
    let mut header = vec![0, 0];
    header.extend((offset_units << 3 | u16::from(more)).to_be_bytes());
    header.extend(identification.to_be_bytes());
    header
}

/// Makes an IPv4 frame a fragment.
#[must_use]
pub fn as_ipv4_fragment(
    frame: &[u8],
    offset_units: u16,
    more: bool,
    identification: u16,
) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    bytes[ETH + 4..ETH + 6].copy_from_slice(&identification.to_be_bytes());
    let field = offset_units | if more { 0x2000 } else { 0 };
    bytes[ETH + 6..ETH + 8].copy_from_slice(&field.to_be_bytes());
    bytes
}

/// An ICMP or ICMPv6 message of `icmp_type` from `source` to `destination` that quotes the IP packet
/// in `quoted` (an Ethernet frame), cut to its header and `kept` bytes.
#[must_use]
pub fn icmp_error(
    source: IpAddr,
    destination: IpAddr,
    icmp_type: u8,
    code: u8,
    quoted: &[u8],
    kept: usize,
) -> Vec<u8> {
    let header = if source.is_ipv4() { 20 } else { 40 };
    let quote = &quoted[ETH..(ETH + header + kept).min(quoted.len())];
    let mut icmp = vec![icmp_type, code, 0, 0, 0, 0, 0, 0];
    icmp.extend(quote);
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => raw(ethernet.ipv4(s.octets(), d.octets(), 64), 1, &icmp),
        (IpAddr::V6(s), IpAddr::V6(d)) => raw(ethernet.ipv6(s.octets(), d.octets(), 64), 58, &icmp),
        _ => panic!("{source} and {destination} are of two families"),
    }
}

/// Address and port from text.
#[must_use]
pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Shorthand for tables.
#[must_use]
pub const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// `fd00::x`.
#[must_use]
pub const fn v6(last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}
