//! Somebody who sends all that a kernel answers by itself to addresses from before there are pods with them, and
//! counts every answer.
//!
//! Answers are seen by a packet socket, so that it does not matter what this side's kernel makes of them. What counts is any
//! packet of IP from one of the addresses but the link's own affairs (neighbour discovery and the like).

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use etherparse::{Icmpv4Slice, IpNumber, Ipv6ExtensionsSlice, TcpHeader, TcpHeaderSlice};
use portcullis_tests::netns::Netns;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Last parts of the addresses that are sent to: few, so that each is sent to often and used again soon.
pub(crate) const HAMMERED: RangeInclusive<u8> = 2..=13;

/// A port that nobody listens on.
const PORT: u16 = 9000;

/// How long between two rounds.
const PAUSE: Duration = Duration::from_millis(1);

/// What a kernel answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// To a SYN.
    Reset,
    /// To a SYN where somebody listens.
    SynAck,
    /// To a datagram.
    IcmpError,
    /// To an echo request.
    EchoReply,
    /// Something else.
    Other,
}

/// Answers of one address, in their order.
type Answers = BTreeMap<IpAddr, Vec<(Instant, Answer)>>;

/// Sends and counts until it is dropped.
pub(crate) struct Hammer {
    name: &'static str,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    rounds: AtomicU64,
    drained: AtomicU64,
    answers: Mutex<Answers>,
}

/// The pods' addresses with this last part.
fn addresses(last: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 245, 0, last).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x245, 0, 0, 0, 0, last.into()).into(),
    ]
}

impl Hammer {
    /// Begins to send from `netns`, which has these addresses, to all but `except`.
    pub(crate) fn start(
        name: &'static str,
        netns: &Netns,
        own: &[IpAddr],
        except: &[IpAddr],
    ) -> Self {
        let mut targets: Vec<_> = HAMMERED.flat_map(addresses).collect();
        targets.retain(|target| !except.contains(target));
        let watched = targets.clone();
        let shared = Arc::new(Shared::default());
        let ear = netns.enter(ear);
        let senders: Vec<_> = own
            .iter()
            .map(|own| netns.enter(|| Sender::new(*own)))
            .collect();
        let (hearing, sending) = (shared.clone(), shared.clone());
        let threads = vec![
            thread::spawn(move || hear(&ear, &watched, &hearing)),
            thread::spawn(move || send(&senders, &targets, &sending)),
        ];
        Self {
            name,
            shared,
            threads,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Waits until everybody has been sent to since now, and what came back has been counted.
    pub(crate) fn wait_for_a_round(&self) {
        for counter in [&self.shared.rounds, &self.shared.drained] {
            let goal = counter.load(Ordering::Relaxed) + 2;
            while counter.load(Ordering::Relaxed) < goal {
                thread::sleep(PAUSE);
            }
        }
    }

    /// What came from an address since it was asked for last.
    pub(crate) fn take(&self, address: IpAddr) -> Vec<(Instant, Answer)> {
        let mut answers = self.shared.answers.lock().unwrap();
        answers.remove(&address).unwrap_or_default()
    }
}

impl Drop for Hammer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Sockets of one family.
struct Sender {
    own: IpAddr,
    tcp: Socket,
    udp: Socket,
    icmp: Socket,
}

impl Sender {
    fn new(own: IpAddr) -> Self {
        let (domain, icmp) = match own {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = |kind: Type, protocol: Protocol| {
            let socket = Socket::new(domain, kind, Some(protocol)).unwrap();
            socket.set_nonblocking(true).unwrap();
            // What is read elsewhere is not kept here.
            if kind == Type::RAW {
                socket.set_recv_buffer_size(1).unwrap();
            }
            socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
            socket
        };
        Self {
            own,
            tcp: socket(Type::RAW, Protocol::TCP),
            udp: socket(Type::DGRAM, Protocol::UDP),
            icmp: socket(Type::RAW, icmp),
        }
    }

    /// One of each. Nothing is sent, and nothing is wrong, where there is no way to the address (yet).
    fn send(&self, to: IpAddr) {
        let bare: SockAddr = SocketAddr::new(to, 0).into();
        let _sent = self.tcp.send_to(&syn(self.own, to), &bare);
        let _sent = self.icmp.send_to(&echo_request(to), &bare);
        let _sent = self
            .udp
            .send_to(b"hammer", &SocketAddr::new(to, PORT).into());
    }
}

fn syn(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let mut header = TcpHeader::new(40_000, PORT, 1, 1024);
    header.syn = true;
    header.checksum = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &[])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            header.calc_checksum_ipv6_raw(from.octets(), to.octets(), &[])
        }
        _ => unreachable!("addresses of one family"),
    }
    .unwrap();
    header.to_bytes().to_vec()
}

/// The kernel fills in the checksum of ICMPv6, and not that of ICMP.
fn echo_request(to: IpAddr) -> Vec<u8> {
    let echo = etherparse::IcmpEchoHeader { id: 1, seq: 1 };
    match to {
        IpAddr::V4(_) => {
            etherparse::Icmpv4Header::with_checksum(etherparse::Icmpv4Type::EchoRequest(echo), &[])
                .to_bytes()
                .to_vec()
        }
        IpAddr::V6(_) => etherparse::Icmpv6Header::new(etherparse::Icmpv6Type::EchoRequest(echo))
            .to_bytes()
            .to_vec(),
    }
}

fn send(senders: &[Sender], targets: &[IpAddr], shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        for to in targets {
            let families = senders
                .iter()
                .filter(|sender| sender.own.is_ipv4() == to.is_ipv4());
            for sender in families {
                sender.send(*to);
            }
        }
        shared.rounds.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
    }
}

/// A socket that hears every packet of IP, without its link header.
fn ear() -> Socket {
    const ALL: u16 = 3;
    let domain = Domain::from(libc::AF_PACKET);
    let protocol = Protocol::from(i32::from(ALL.to_be()));
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol)).unwrap();
    const PLENTY: usize = 16 << 20;
    socket.set_recv_buffer_size(PLENTY).unwrap();
    socket.set_read_timeout(Some(PAUSE)).unwrap();
    socket
}

fn hear(ear: &Socket, watched: &[IpAddr], shared: &Shared) {
    let mut buffer = [MaybeUninit::uninit(); 2048];
    while !shared.stop.load(Ordering::Relaxed) {
        let there = ear.recv_from_with_flags(&mut buffer, libc::MSG_DONTWAIT);
        let received = there.or_else(|_| {
            // Nothing waits. There may never be silence: what is sent is heard, too.
            shared.drained.fetch_add(1, Ordering::Relaxed);
            ear.recv_from(&mut buffer)
        });
        let Ok((length, _)) = received else {
            continue;
        };
        let packet: Vec<u8> = buffer[..length]
            .iter()
            // SAFETY: the kernel has written so much.
            .map(|byte| unsafe { byte.assume_init() })
            .collect();
        if let Some((from, answer)) = classify(&packet)
            && watched.contains(&from)
        {
            let mut answers = shared.answers.lock().unwrap();
            answers
                .entry(from)
                .or_default()
                .push((Instant::now(), answer));
        }
    }
}

/// Whose packet it is, and what kind of an answer; `None` for what is no answer.
fn classify(packet: &[u8]) -> Option<(IpAddr, Answer)> {
    let (from, protocol, rest) = match packet.first()? >> 4 {
        4 => {
            let header = etherparse::Ipv4HeaderSlice::from_slice(packet).ok()?;
            let rest = packet.get(header.slice().len()..)?;
            (header.source_addr().into(), header.protocol(), rest)
        }
        6 => {
            let header = etherparse::Ipv6HeaderSlice::from_slice(packet).ok()?;
            let rest = packet.get(header.slice().len()..)?;
            let (_, protocol, rest) =
                Ipv6ExtensionsSlice::from_slice(header.next_header(), rest).ok()?;
            (header.source_addr().into(), protocol, rest)
        }
        _ => return None,
    };
    let answer = match protocol {
        IpNumber::TCP => {
            let tcp = TcpHeaderSlice::from_slice(rest).ok()?;
            match (tcp.rst(), tcp.syn()) {
                (true, _) => Answer::Reset,
                (false, true) => Answer::SynAck,
                _ => Answer::Other,
            }
        }
        IpNumber::ICMP => match Icmpv4Slice::from_slice(rest).ok()?.type_u8() {
            0 => Answer::EchoReply,
            3 | 11 | 12 => Answer::IcmpError,
            _ => Answer::Other,
        },
        IpNumber::IPV6_ICMP => match *rest.first()? {
            // Multicast listeners, routers and neighbours.
            130..=136 | 143 => return None,
            129 => Answer::EchoReply,
            1..=127 => Answer::IcmpError,
            _ => Answer::Other,
        },
        _ => Answer::Other,
    };
    Some((from, answer))
}
