//! Frames as they are: sent from an interface of a network namespace, and seen where they arrive.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;

/// Sends frames from an interface, whatever they claim.
#[derive(Debug)]
pub struct Injector {
    socket: Socket,
    index: u32,
}

impl Injector {
    /// For frames from `interface` of `netns`.
    ///
    /// # Errors
    ///
    /// When there is no such interface.
    pub fn new(netns: &Netns, interface: &str) -> io::Result<Self> {
        netns.enter(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            let index = if_nametoindex(interface)?;
            Ok(Self { socket, index })
        })
    }

    /// Sends one frame, Ethernet header included.
    ///
    /// # Errors
    ///
    /// When the interface does not take it.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
        let sent = self
            .socket
            .send_to(frame, &link_address(self.index, protocol))?;
        if sent == frame.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

/// Sees every frame that arrives in a network namespace, before anything there can drop it.
#[derive(Debug)]
pub struct Sniffer {
    socket: Socket,
}

/// `ETH_P_ALL` of linux/if_ether.h.
const EVERY_PROTOCOL: u16 = 3;
/// Room for what arrives between two looks.
const BUFFER: usize = 16 << 20;

impl Sniffer {
    /// Begins to look at all interfaces of `netns` but loopback.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn start(netns: &Netns) -> io::Result<Self> {
        netns.enter(|| {
            let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            force_buffer(&socket)?;
            Ok(Self { socket })
        })
    }

    /// The frames that came since the last look.
    ///
    /// # Errors
    ///
    /// When the kernel gives none and says why.
    pub fn frames(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0_u8; 65536];
        loop {
            // SAFETY: plain numbers, for which zero is a value.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut length = size_of_val(&from) as libc::socklen_t;
            // SAFETY: buffer and address are ours, with their lengths.
            let got = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut length,
                )
            };
            let Ok(got) = usize::try_from(got) else {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock => Ok(frames),
                    // An interface went down.
                    _ if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                    _ => Err(error),
                };
            };
            let arrived = from.sll_pkttype != libc::PACKET_OUTGOING
                && from.sll_hatype != libc::ARPHRD_LOOPBACK;
            if arrived {
                frames.push(buffer[..got].to_vec());
            }
        }
    }
}

fn force_buffer(socket: &Socket) -> io::Result<()> {
    let size = BUFFER as libc::c_int;
    // SAFETY: the option's value is an int, given with its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(super) fn link_address(index: u32, protocol_be: u16) -> socket2::SockAddr {
    let mut storage = socket2::SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the system's address types, for which zeros are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol_be;
    address.sll_ifindex = index.cast_signed();
    // SAFETY: it was just filled as an address of this length.
    unsafe { socket2::SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
