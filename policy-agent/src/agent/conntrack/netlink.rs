//! Asks nf_conntrack for its entries (`linux/netfilter/nfnetlink_conntrack.h`). Takes CAP_NET_ADMIN.
//!
//! Attributes are read where they lie: a busy node has hundreds of thousands of entries.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::{Socket, SocketAddr};

/// Times that an interrupted dump is repeated.
const REPEATS: usize = 5;

/// More than the kernel puts into one message.
const BUFFER: usize = 1 << 17;

/// One direction of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Tuple {
    /// Source address.
    pub(in crate::agent) saddr: IpAddr,
    /// Destination address.
    pub(in crate::agent) daddr: IpAddr,
    /// L4 protocol number.
    pub(in crate::agent) protocol: u8,
    /// Source port; 0 where the protocol has none.
    pub(in crate::agent) sport: u16,
    /// Destination port; 0 where the protocol has none.
    pub(in crate::agent) dport: u16,
    /// Identifier of an ICMP query.
    pub(in crate::agent) icmp_id: u16,
    /// Type of an ICMP query.
    pub(in crate::agent) icmp_type: u8,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) struct Entry {
    /// As the first packet had it, before any translation.
    pub(in crate::agent) original: Tuple,
    /// As answers have it, where they enter this node.
    pub(in crate::agent) reply: Tuple,
    /// Bits such as [`Entry::SEEN_REPLY`].
    pub(in crate::agent) status: u32,
    /// Number of the state of TCP or SCTP; else 0.
    pub(in crate::agent) state: u8,
}

impl Entry {
    /// Status: packets of both directions were seen.
    pub(in crate::agent) const SEEN_REPLY: u32 = 1 << 1;

    /// Whether packets of both directions were seen.
    pub(in crate::agent) fn is_answered(&self) -> bool {
        self.status & Self::SEEN_REPLY != 0
    }
}

/// Which entries are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Filter {
    /// All of IPv4.
    V4,
    /// All of IPv6. (The kernel has a filter by IPv6 address since 5.8, but some releases of it leave out exactly
    /// what matches.)
    V6,
    /// Those whose first packet came from this address. Kernels before 5.8 tell all of IPv4.
    FromV4(Ipv4Addr),
    /// Those whose answers come from this address. Kernels before 5.8 tell all of IPv4.
    AnsweredByV4(Ipv4Addr),
}

mod number {
    pub(super) const SUBSYSTEM: u16 = 1 << 8;
    pub(super) const NEW: u16 = SUBSYSTEM;
    pub(super) const GET: u16 = SUBSYSTEM | 1;

    pub(super) const NLMSG_ERROR: u16 = 2;
    pub(super) const NLMSG_DONE: u16 = 3;
    pub(super) const REQUEST: u16 = 0x001;
    pub(super) const DUMP: u16 = 0x300;
    pub(super) const DUMP_INTERRUPTED: u16 = 0x010;

    pub(super) const NESTED: u16 = 0x8000;
    pub(super) const KIND: u16 = 0x3fff;

    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const FILTER: u16 = 25;

    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;

    pub(super) const IP_V4_SRC: u16 = 1;
    pub(super) const IP_V4_DST: u16 = 2;
    pub(super) const IP_V6_SRC: u16 = 3;
    pub(super) const IP_V6_DST: u16 = 4;

    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const PROTO_SRC_PORT: u16 = 2;
    pub(super) const PROTO_DST_PORT: u16 = 3;
    pub(super) const PROTO_ICMP_ID: u16 = 4;
    pub(super) const PROTO_ICMP_TYPE: u16 = 5;
    pub(super) const PROTO_ICMPV6_ID: u16 = 7;
    pub(super) const PROTO_ICMPV6_TYPE: u16 = 8;

    pub(super) const PROTOINFO_TCP: u16 = 1;
    pub(super) const PROTOINFO_SCTP: u16 = 3;
    pub(super) const PROTOINFO_STATE: u16 = 1;

    pub(super) const FILTER_ORIG_FLAGS: u16 = 1;
    pub(super) const FILTER_REPLY_FLAGS: u16 = 2;
    pub(super) const FILTER_IP_SRC: u32 = 1;
}

/// A connection to nf_conntrack of the network namespace that it was opened in.
pub(in crate::agent) struct Conntrack {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Conntrack {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When the kernel has no netfilter netlink.
    pub(in crate::agent) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Shows `visit` the entries that `filter` wants, perhaps more, and some of them perhaps twice: a dump that the kernel says was
    /// interrupted is repeated.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or interrupts each time.
    pub(in crate::agent) fn dump(
        &mut self,
        filter: Filter,
        mut visit: impl FnMut(&Entry),
    ) -> io::Result<()> {
        for _ in 0..REPEATS {
            let request = self.request(filter.family(), number::DUMP, &filter.attributes());
            self.socket.send(&request, 0)?;
            if self.receive_dump(&mut visit)? {
                return Ok(());
            }
        }
        Err(io::Error::other(format!(
            "nf_conntrack changed during each of {REPEATS} dumps"
        )))
    }

    /// Whether there is an entry whose first packet was of this UDP flow.
    ///
    /// # Errors
    ///
    /// When the kernel refuses to be asked.
    pub(in crate::agent) fn has_udp(
        &mut self,
        from: std::net::SocketAddr,
        to: std::net::SocketAddr,
    ) -> io::Result<bool> {
        const UDP: u8 = 17;
        let family = family_of(from.ip());
        let mut proto = attribute(number::PROTO_NUM, &[UDP]);
        proto.extend(attribute(
            number::PROTO_SRC_PORT,
            &from.port().to_be_bytes(),
        ));
        proto.extend(attribute(number::PROTO_DST_PORT, &to.port().to_be_bytes()));
        let mut tuple = addresses(from.ip(), Some(to.ip()));
        tuple.extend(nested(number::TUPLE_PROTO, &proto));
        let request = self.request(family, 0, &nested(number::TUPLE_ORIG, &tuple));
        self.socket.send(&request, 0)?;
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        match messages(&self.buffer).next() {
            Some(message) if message.kind == number::NEW => Ok(true),
            Some(message) if message.kind == number::NLMSG_ERROR => match message.error() {
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
                Some(error) => Err(error),
                None => Ok(false),
            },
            _ => Err(unexpected()),
        }
    }

    fn request(&mut self, family: u8, flags: u16, attributes: &[u8]) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        const HEADERS: usize = 20;
        let length = (HEADERS + attributes.len()) as u32;
        let mut request = Vec::with_capacity(length as usize);
        request.extend(length.to_ne_bytes());
        request.extend(number::GET.to_ne_bytes());
        request.extend((number::REQUEST | flags).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend(0_u32.to_ne_bytes());
        // `struct nfgenmsg`: family, version 0, resource 0.
        request.extend([family, 0, 0, 0]);
        request.extend(attributes);
        request
    }

    /// Reads to the end of a dump; says whether it is whole.
    fn receive_dump(&mut self, visit: &mut impl FnMut(&Entry)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                outcome => outcome?,
            };
            for message in messages(&self.buffer) {
                // The end of a dump that an error ended earlier.
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & number::DUMP_INTERRUPTED == 0;
                match message.kind {
                    number::NEW => {
                        if let Some(entry) = message.entry() {
                            visit(&entry);
                        }
                    }
                    number::NLMSG_DONE => return Ok(whole),
                    number::NLMSG_ERROR => return message.error().map_or(Ok(whole), Err),
                    _ => {}
                }
            }
        }
    }
}

impl Filter {
    fn family(self) -> u8 {
        match self {
            Self::V6 => libc::AF_INET6 as u8,
            _ => libc::AF_INET as u8,
        }
    }

    fn attributes(self) -> Vec<u8> {
        let (tuple, flags, address) = match self {
            Self::V4 | Self::V6 => return Vec::new(),
            Self::FromV4(address) => (number::TUPLE_ORIG, number::FILTER_ORIG_FLAGS, address),
            Self::AnsweredByV4(address) => {
                (number::TUPLE_REPLY, number::FILTER_REPLY_FLAGS, address)
            }
        };
        let mut attributes = nested(tuple, &addresses(address.into(), None));
        let flags = attribute(flags, &number::FILTER_IP_SRC.to_ne_bytes());
        attributes.extend(nested(number::FILTER, &flags));
        attributes
    }
}

fn family_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

fn addresses(from: IpAddr, to: Option<IpAddr>) -> Vec<u8> {
    let one = |address: IpAddr, v4: u16, v6: u16| match address {
        IpAddr::V4(address) => attribute(v4, &address.octets()),
        IpAddr::V6(address) => attribute(v6, &address.octets()),
    };
    let mut both = one(from, number::IP_V4_SRC, number::IP_V6_SRC);
    if let Some(to) = to {
        both.extend(one(to, number::IP_V4_DST, number::IP_V6_DST));
    }
    nested(number::TUPLE_IP, &both)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + value.len());
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | number::NESTED, value)
}

/// A netlink message.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// What `NLMSG_ERROR` says; none for an acknowledgement.
    fn error(&self) -> Option<io::Error> {
        let Some(code) = self.payload.first_chunk() else {
            return Some(unexpected());
        };
        match i32::from_ne_bytes(*code) {
            0 => None,
            code => Some(io::Error::from_raw_os_error(-code)),
        }
    }

    /// The entry that it describes; none where something is missing.
    fn entry(&self) -> Option<Entry> {
        let (mut original, mut reply, mut status, mut state) = (None, None, 0, 0);
        // Behind `struct nfgenmsg`.
        for (kind, value) in attributes(self.payload.get(4..)?) {
            match kind {
                number::TUPLE_ORIG => original = tuple(value),
                number::TUPLE_REPLY => reply = tuple(value),
                number::STATUS => status = u32::from_be_bytes(*value.first_chunk()?),
                number::PROTOINFO => state = protocol_state(value),
                _ => {}
            }
        }
        Some(Entry {
            original: original?,
            reply: reply?,
            status,
            state,
        })
    }
}

fn unexpected() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "unexpected answer from nf_conntrack",
    )
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        const HEADER: usize = 16;
        let header: &[u8; HEADER] = bytes.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & number::KIND, value))
    })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (mut saddr, mut daddr, mut protocol) = (None, None, None);
    let (mut sport, mut dport, mut icmp_id, mut icmp_type) = (0, 0, 0, 0);
    let v4 = |value: &[u8]| Some(IpAddr::from(*value.first_chunk::<4>()?));
    let v6 = |value: &[u8]| Some(IpAddr::from(Ipv6Addr::from(*value.first_chunk::<16>()?)));
    let be16 = |value: &[u8]| Some(u16::from_be_bytes(*value.first_chunk()?));
    for (kind, value) in attributes(bytes) {
        match kind {
            number::TUPLE_IP => {
                for (kind, value) in attributes(value) {
                    match kind {
                        number::IP_V4_SRC => saddr = v4(value),
                        number::IP_V4_DST => daddr = v4(value),
                        number::IP_V6_SRC => saddr = v6(value),
                        number::IP_V6_DST => daddr = v6(value),
                        _ => {}
                    }
                }
            }
            number::TUPLE_PROTO => {
                for (kind, value) in attributes(value) {
                    match kind {
                        number::PROTO_NUM => protocol = value.first().copied(),
                        number::PROTO_SRC_PORT => sport = be16(value)?,
                        number::PROTO_DST_PORT => dport = be16(value)?,
                        number::PROTO_ICMP_ID | number::PROTO_ICMPV6_ID => icmp_id = be16(value)?,
                        number::PROTO_ICMP_TYPE | number::PROTO_ICMPV6_TYPE => {
                            icmp_type = *value.first()?;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(Tuple {
        saddr: saddr?,
        daddr: daddr?,
        protocol: protocol?,
        sport,
        dport,
        icmp_id,
        icmp_type,
    })
}

fn protocol_state(bytes: &[u8]) -> u8 {
    attributes(bytes)
        .filter(|(kind, _)| matches!(*kind, number::PROTOINFO_TCP | number::PROTOINFO_SCTP))
        .flat_map(|(_, value)| attributes(value))
        .find(|(kind, _)| *kind == number::PROTOINFO_STATE)
        .and_then(|(_, value)| value.first().copied())
        .unwrap_or(0)
}

#[cfg(test)]
#[path = "netlink_tests.rs"]
mod tests;
