//! Probes: one real exchange each, and what came of it.

use std::fmt;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// What a probe does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Connects, sends a few bytes and gets them back.
    Tcp(u16),
    /// Sends a datagram and gets it back.
    Udp(u16),
    /// The same with a datagram of 4,000 bytes, which travels in fragments both ways.
    Fragments(u16),
    /// Echo request and reply.
    Ping,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Udp(port) => write!(f, "udp/{port}"),
            Self::Fragments(port) => write!(f, "udp/{port} in fragments"),
            Self::Ping => f.write_str("ping"),
        }
    }
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The exchange worked.
    Answered,
    /// Nothing came back in time: dropped on the way there or back.
    Silent,
    /// The other side's kernel refused: the packets got through both ways.
    Refused,
    /// Anything else.
    Failed(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered => f.write_str("answered"),
            Self::Silent => f.write_str("silent"),
            Self::Refused => f.write_str("refused"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// One exchange to try.
#[derive(Clone, Copy, Debug)]
pub struct Probe<'a> {
    /// Where it starts.
    pub from: &'a Netns,
    /// The other side.
    pub to: IpAddr,
    /// What to do.
    pub what: What,
    /// How long to wait for the other side.
    pub patience: Duration,
}

/// Tries all at once; outcomes in the same order.
///
/// # Panics
///
/// When a thread cannot be made.
#[must_use]
pub fn measure(probes: &[Probe<'_>]) -> Vec<Outcome> {
    thread::scope(|scope| {
        let threads: Vec<_> = probes
            .iter()
            .map(|probe_| scope.spawn(|| probe(probe_)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

/// Tries one.
#[must_use]
pub fn probe(probe: &Probe<'_>) -> Outcome {
    let exchange = || match probe.what {
        What::Tcp(port) => tcp(SocketAddr::new(probe.to, port), probe.patience),
        What::Udp(port) => udp(SocketAddr::new(probe.to, port), &[7; 32], probe.patience),
        What::Fragments(port) => udp(SocketAddr::new(probe.to, port), &[7; 4000], probe.patience),
        What::Ping => ping(probe.to, probe.patience),
    };
    match probe.from.enter(exchange) {
        Ok(()) => Outcome::Answered,
        Err(error) => match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silent,
            ErrorKind::ConnectionRefused => Outcome::Refused,
            _ => Outcome::Failed(error.to_string()),
        },
    }
}

fn tcp(to: SocketAddr, patience: Duration) -> io::Result<()> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    let left = patience.saturating_sub(began.elapsed());
    stream.set_read_timeout(Some(left.max(Duration::from_millis(100))))?;
    let sent = *b"portcullis";
    stream.write_all(&sent)?;
    let mut got = sent;
    got.fill(0);
    stream.read_exact(&mut got)?;
    same(&got, &sent)
}

fn udp(to: SocketAddr, payload: &[u8], patience: Duration) -> io::Result<()> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(to)?;
    socket.send(payload)?;
    let mut got = vec![0; payload.len() + 1];
    let length = socket.recv(&mut got)?;
    same(&got[..length], payload)
}

fn ping(to: IpAddr, patience: Duration) -> io::Result<()> {
    let (domain, protocol, request, reply) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(patience))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    // Type, code, checksum and id (the kernel's to fill), sequence number, payload.
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'c', b'l', 0])?;
    let mut got = [MaybeUninit::uninit(); 64];
    let length = socket.recv(&mut got)?;
    // SAFETY: the kernel wrote the first `length` bytes.
    let first = (length > 0).then(|| unsafe { got[0].assume_init() });
    if first == Some(reply) {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "not an echo reply: type {first:?}"
        )))
    }
}

fn same(got: &[u8], sent: &[u8]) -> io::Result<()> {
    if got == sent {
        Ok(())
    } else {
        Err(io::Error::other("other bytes came back than were sent"))
    }
}
