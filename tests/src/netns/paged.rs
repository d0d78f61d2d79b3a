//! Frames whose headers are not in the packet's linear part, as a pod can send them on purpose: a
//! program that reads headers there and nowhere else sees nothing but the Ethernet header.

use std::io;

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::Netns;
use super::wire::link_address;

/// A frame shorter than a page is linear, whatever its sender wants.
pub const PAGE: usize = 4096;

/// Length of an Ethernet header.
const ETHERNET: u16 = 14;

/// `struct virtio_net_hdr` of linux/virtio_net.h, in front of each frame: no offloads, and the number
/// of bytes that are to be linear.
const VIRTIO_NET_HDR: usize = 10;
const HDR_LEN: usize = 2;

/// `PACKET_VNET_HDR` of linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;

/// Sends `frame` from `interface` of `netns` with only its Ethernet header in the linear part.
///
/// # Errors
///
/// When the frame is shorter than [`PAGE`], or longer than the interface takes.
pub fn send_paged(netns: &Netns, interface: &str, frame: &[u8]) -> io::Result<()> {
    if frame.len() < PAGE {
        return Err(io::Error::other("too short to be paged"));
    }
    let mut message = vec![0; VIRTIO_NET_HDR];
    message[HDR_LEN..HDR_LEN + 2].copy_from_slice(&ETHERNET.to_ne_bytes());
    message.extend(frame);
    netns.enter(|| {
        let protocol = u16::from_be_bytes([frame[12], frame[13]]).to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        set_vnet_hdr(&socket)?;
        let index = if_nametoindex(interface)?;
        let sent = socket.send_to(&message, &link_address(index, protocol))?;
        if sent == message.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    })
}

fn set_vnet_hdr(socket: &Socket) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, given with its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_VNET_HDR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
