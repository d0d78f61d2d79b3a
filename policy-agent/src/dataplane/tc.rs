//! Asks the kernel over rtnetlink which qdisc and which filters are at an interface.
//!
//! One connection serves for as long as its owner lives, and a question takes some microseconds. Messages are
//! read by hand: a filter of a kind that nobody here knows still has a place in front of ours.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd as _;

use aya::programs::TcAttachType;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_NEWQDISC: u16 = 36;
pub(super) const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
pub(super) const RTM_NEWTFILTER: u16 = 44;
pub(super) const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_ECHO: u16 = 8;
const NLM_F_DUMP: u16 = 0x300;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// Parents of the hooks at both sides of an interface, `TC_H_MAKE(TC_H_CLSACT, ...)`.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Parent and handle of the qdisc that holds them, clsact and ingress alike.
const QDISC_PARENT: u32 = 0xffff_fff1;
const QDISC_HANDLE: u32 = 0xffff_0000;

/// Length of a `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of a `struct tcmsg`.
const TCMSG: usize = 20;

/// The kernel's answers come at once; longer than this, something is wrong with the connection.
const PATIENCE: libc::timeval = libc::timeval {
    tv_sec: 2,
    tv_usec: 0,
};

/// What is in the place where programs of clsact go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Qdisc {
    /// Nothing.
    None,
    /// A clsact qdisc, with hooks on both sides.
    Clsact,
    /// Another one, in whose way clsact is and which has no hook for egress: `ingress`.
    Ingress,
}

/// A filter at one side of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Priority among filters.
    pub(super) priority: u16,
    /// Handle within that priority.
    pub(super) handle: u32,
    /// Packets meet chain 0 alone, unless a filter sends them to another.
    pub(super) chain: u32,
    /// Its kind, such as `bpf` or `u32`.
    pub(super) kind: String,
    /// Name and id of the BPF program, when it is one; names of other loaders are as they chose them.
    pub(super) program: Option<(String, u32)>,
}

/// What there is at an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) qdisc: Qdisc,
    /// The filters of clsact, in the order in which packets meet them.
    pub(super) ingress: Vec<Filter>,
    /// See [`Self::ingress`].
    pub(super) egress: Vec<Filter>,
}

impl Seen {
    pub(super) fn filters(&self, side: TcAttachType) -> &[Filter] {
        match side {
            TcAttachType::Egress => &self.egress,
            _ => &self.ingress,
        }
    }
}

/// A connection.
pub(super) struct Tc {
    socket: Socket,
    sequence: u32,
}

impl Tc {
    /// Connects, in this thread's network namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // SAFETY: the option is a timeval, which lives as long as the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                std::ptr::from_ref(&PATIENCE).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// What is at an interface; `ENODEV` when it is gone.
    pub(super) fn look(&mut self, ifindex: u32) -> io::Result<Seen> {
        let qdisc = self.qdisc(ifindex)?;
        let mut filters = |parent| match qdisc {
            // An `ingress` qdisc has one list, which it shows as that of either side.
            Qdisc::None | Qdisc::Ingress => Ok(Vec::new()),
            Qdisc::Clsact => self.filters_below(ifindex, parent),
        };
        Ok(Seen {
            ingress: filters(INGRESS)?,
            egress: filters(EGRESS)?,
            qdisc,
        })
    }

    /// Which qdisc is there; `ENODEV` when the interface is gone.
    pub(super) fn qdisc(&mut self, ifindex: u32) -> io::Result<Qdisc> {
        let mut found = Qdisc::None;
        let target = Target {
            ifindex,
            parent: QDISC_PARENT,
            handle: 0,
        };
        // Kernels before 6.8 give an answer by itself only to who asks for an echo.
        let asked = self.ask(RTM_GETQDISC, NLM_F_ACK | NLM_F_ECHO, &target, |message| {
            if message.kind == RTM_NEWQDISC
                && let Some(described) = Described::parse(message.payload)
            {
                found = match described.kind.as_str() {
                    "clsact" => Qdisc::Clsact,
                    _ => Qdisc::Ingress,
                };
            }
        });
        match asked {
            // Where a qdisc was and is no more, the kernel says that it cannot be shown.
            Err(error) if is(&error, &[libc::ENOENT, libc::EINVAL]) => Ok(Qdisc::None),
            Err(error) => Err(error),
            Ok(()) => Ok(found),
        }
    }

    fn filters_below(&mut self, ifindex: u32, parent: u32) -> io::Result<Vec<Filter>> {
        let target = Target {
            ifindex,
            parent,
            handle: 0,
        };
        let mut filters = Vec::new();
        let asked = self.ask(RTM_GETTFILTER, NLM_F_DUMP, &target, |message| {
            if message.kind == RTM_NEWTFILTER {
                filters.extend(Described::parse(message.payload).and_then(Described::into_filter));
            }
        });
        match asked {
            // The qdisc went meanwhile.
            Err(error) if is(&error, &[libc::ENOENT, libc::EINVAL]) => Ok(Vec::new()),
            other => other.map(|()| filters),
        }
    }

    /// Interfaces of this network namespace that have a clsact qdisc.
    pub(super) fn interfaces(&mut self) -> io::Result<BTreeSet<u32>> {
        let target = Target {
            ifindex: 0,
            parent: 0,
            handle: 0,
        };
        let mut interfaces = BTreeSet::new();
        self.ask(RTM_GETQDISC, NLM_F_DUMP, &target, |message| {
            if let Some(described) = Described::parse(message.payload)
                && described.kind == "clsact"
            {
                interfaces.insert(described.ifindex);
            }
        })?;
        Ok(interfaces)
    }

    /// Removes a BPF filter; that it is gone already is no error.
    pub(super) fn remove_filter(
        &mut self,
        ifindex: u32,
        side: TcAttachType,
        filter: &Filter,
    ) -> io::Result<()> {
        const ETH_P_ALL: u16 = 3;
        let target = Target {
            ifindex,
            parent: match side {
                TcAttachType::Egress => EGRESS,
                _ => INGRESS,
            },
            handle: filter.handle,
        };
        let info = (u32::from(filter.priority) << 16) | u32::from(ETH_P_ALL.to_be());
        let kind = attribute(TCA_KIND, b"bpf\0");
        let asked = self.ask_with(
            RTM_DELTFILTER,
            NLM_F_ACK,
            &target,
            info,
            &kind,
            |_message| {},
        );
        unless(asked, &[libc::ENOENT, libc::EINVAL, libc::ENODEV])
    }

    /// Removes the clsact qdisc, with all that is in it; that it is gone already is no error.
    pub(super) fn remove_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let target = Target {
            ifindex,
            parent: QDISC_PARENT,
            handle: QDISC_HANDLE,
        };
        let kind = attribute(TCA_KIND, b"clsact\0");
        let asked = self.ask_with(RTM_DELQDISC, NLM_F_ACK, &target, 0, &kind, |_message| {});
        unless(asked, &[libc::ENOENT, libc::EINVAL, libc::ENODEV])
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        target: &Target,
        heard: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        self.ask_with(kind, flags, target, 0, &[], heard)
    }

    /// Asks, and passes on what is answered until the kernel says that this was all.
    fn ask_with(
        &mut self,
        kind: u16,
        flags: u16,
        target: &Target,
        info: u32,
        attributes: &[u8],
        mut heard: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let length = HEADER + TCMSG + attributes.len();
        let mut request = Vec::with_capacity(length);
        request.extend((length as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend(sequence.to_ne_bytes());
        request.extend([0; 4]);
        // Family and padding.
        request.extend([0; 4]);
        request.extend(target.ifindex.to_ne_bytes());
        request.extend(target.handle.to_ne_bytes());
        request.extend(target.parent.to_ne_bytes());
        request.extend(info.to_ne_bytes());
        request.extend(attributes);
        self.socket.send(&request, 0)?;
        loop {
            let mut buffer = Vec::with_capacity(32 * 1024);
            self.socket.recv(&mut buffer, 0)?;
            for message in messages(&buffer) {
                // An answer that came too late for an earlier question.
                if message.sequence != sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match word(message.payload, 0).unwrap_or_default().cast_signed() {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => heard(message),
                }
            }
        }
    }
}

struct Target {
    ifindex: u32,
    parent: u32,
    handle: u32,
}

/// A netlink message.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    sequence: u32,
    pub(super) payload: &'a [u8],
}

/// The messages of a datagram.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = word(datagram, 0)? as usize;
        let payload = datagram.get(HEADER..length)?;
        let message = Message {
            kind: half(datagram, 4)?,
            sequence: word(datagram, 8)?,
            payload,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The interface that a message about a link is of, when it is not about a bridge's port.
pub(super) fn link_of(payload: &[u8]) -> Option<u32> {
    (*payload.first()? == 0).then(|| word(payload, 4)).flatten()
}

/// A qdisc or filter as the kernel describes it.
pub(super) struct Described {
    pub(super) ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
    kind: String,
    chain: u32,
    program: Option<(String, u32)>,
}

impl Described {
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let mut described = Self {
            ifindex: word(payload, 4)?,
            handle: word(payload, 8)?,
            parent: word(payload, 12)?,
            info: word(payload, 16)?,
            kind: String::new(),
            chain: 0,
            program: None,
        };
        for (kind, value) in attributes(payload.get(TCMSG..)?) {
            match kind {
                TCA_KIND => described.kind = text(value),
                TCA_CHAIN => described.chain = word(value, 0)?,
                TCA_OPTIONS if described.kind == "bpf" => {
                    let (mut name, mut id) = (String::new(), None);
                    for (kind, value) in attributes(value) {
                        match kind {
                            TCA_BPF_NAME => name = text(value),
                            TCA_BPF_ID => id = word(value, 0),
                            _ => {}
                        }
                    }
                    described.program = id.map(|id| (name, id));
                }
                _ => {}
            }
        }
        Some(described)
    }

    /// The side of the interface; `None` for what is elsewhere, such as in a tree of classes.
    pub(super) fn side(&self) -> Option<TcAttachType> {
        match self.parent {
            INGRESS => Some(TcAttachType::Ingress),
            EGRESS => Some(TcAttachType::Egress),
            _ => None,
        }
    }

    /// The filter, unless this announces a priority, whose filters come by themselves.
    pub(super) fn into_filter(self) -> Option<Filter> {
        (self.handle != 0).then_some(Filter {
            // The upper half is the priority, the lower the ethertype.
            priority: (self.info >> 16) as u16,
            handle: self.handle,
            chain: self.chain,
            kind: self.kind,
            program: self.program,
        })
    }
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    // Without the bits that say how the value is to be read.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let found = (half(bytes, 2)? & KIND, bytes.get(4..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(found)
    })
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

fn is(error: &io::Error, codes: &[i32]) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

fn unless(result: io::Result<()>, codes: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if is(&error, codes) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_every_kind_are_read() {
        let header = |handle: u32, priority: u32| {
            let mut bytes = vec![0; 4];
            for value in [7, handle, EGRESS, (priority << 16) | 0x0300] {
                bytes.extend(u32::to_ne_bytes(value));
            }
            bytes
        };
        let mut bpf = header(1, 50);
        bpf.extend(attribute(TCA_KIND, b"bpf\0"));
        bpf.extend(attribute(TCA_CHAIN, &0_u32.to_ne_bytes()));
        let options = [
            attribute(TCA_BPF_NAME, b"to_pod\0"),
            attribute(TCA_BPF_ID, &42_u32.to_ne_bytes()),
        ];
        bpf.extend(attribute(TCA_OPTIONS | 0x8000, &options.concat()));
        let described = Described::parse(&bpf).expect("a filter");
        assert_eq!(described.ifindex, 7);
        assert_eq!(described.side(), Some(TcAttachType::Egress));
        let wanted = Filter {
            priority: 50,
            handle: 1,
            chain: 0,
            kind: "bpf".to_owned(),
            program: Some(("to_pod".to_owned(), 42)),
        };
        assert_eq!(described.into_filter(), Some(wanted));

        let mut other = header(0x8000_0800, 1);
        other.extend(attribute(TCA_KIND, b"u32\0"));
        other.extend(attribute(TCA_CHAIN, &3_u32.to_ne_bytes()));
        other.extend(attribute(TCA_OPTIONS, b"anything"));
        let filter = Described::parse(&other).and_then(Described::into_filter);
        let filter = filter.expect("a filter");
        assert_eq!(
            (filter.priority, filter.chain, filter.kind.as_str()),
            (1, 3, "u32")
        );
        assert_eq!(filter.program, None);

        let announced = Described::parse(&header(0, 50)).expect("a priority");
        assert_eq!(announced.into_filter(), None);
        assert!(Described::parse(&[0; 19]).is_none());
    }

    #[test]
    fn datagrams_are_taken_apart_whatever_they_hold() {
        let mut datagram = Vec::new();
        for (kind, payload) in [(RTM_NEWLINK, &b"12345"[..]), (RTM_DELLINK, b"")] {
            let length = HEADER + payload.len();
            datagram.extend((length as u32).to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0; 2]);
            datagram.extend(9_u32.to_ne_bytes());
            datagram.extend([0; 4]);
            datagram.extend(payload);
            datagram.resize(datagram.len().next_multiple_of(4), 0);
        }
        let kinds = |datagram: &[u8]| -> Vec<_> {
            let read = messages(datagram);
            read.map(|message| (message.kind, message.payload.to_vec()))
                .collect()
        };
        let whole = kinds(&datagram);
        assert_eq!(
            whole,
            [(RTM_NEWLINK, b"12345".to_vec()), (RTM_DELLINK, Vec::new())]
        );
        for length in 0..datagram.len() {
            let read = kinds(&datagram[..length]);
            assert_eq!(read, whole[..read.len()]);
        }
        // A length of nothing would go on for ever.
        assert!(kinds(&[0; 64]).is_empty());
    }
}
