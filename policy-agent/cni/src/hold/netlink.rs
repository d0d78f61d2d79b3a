//! Messages of nfnetlink, and the kernel's answers.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// What the kernel said.
#[derive(Debug)]
pub(super) struct NetlinkError(pub(super) Errno);

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
const ACK: u16 = 4;
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub(super) const APPEND: u16 = 0x800;

/// `NLMSG_ERROR`, which is also the acknowledgement.
const ERROR: u16 = 2;
/// `NFNL_MSG_BATCH_BEGIN`.
const BATCH_BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`.
const BATCH_END: u16 = 17;
/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFPROTO_INET`: both families at once.
const INET: u8 = 1;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// A message's header: length, type, flags, number, port.
const HEADER: usize = 16;

/// The kernel answers at once; nothing waits longer than this for it.
const PATIENCE: i64 = 5;

/// A message to nftables, but for its number.
#[derive(Debug)]
pub(super) struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl Message {
    /// One of nftables' (`NFT_MSG_*`).
    pub(super) fn new(kind: u16, flags: u16, attributes: Attributes) -> Self {
        Self {
            kind: NFTABLES << 8 | kind,
            flags,
            family: INET,
            resource: 0,
            attributes,
        }
    }

    /// The begin or end of a transaction.
    fn batch(kind: u16) -> Self {
        Self {
            kind,
            flags: 0,
            family: 0,
            resource: NFTABLES,
            attributes: Attributes::default(),
        }
    }

    fn write(&self, flags: u16, number: u32, text: &mut Vec<u8>) {
        let begin = text.len();
        text.extend([0; 4]);
        text.extend(self.kind.to_ne_bytes());
        text.extend((self.flags | flags | REQUEST).to_ne_bytes());
        text.extend(number.to_ne_bytes());
        text.extend([0; 4]);
        text.extend([self.family, 0]);
        text.extend(self.resource.to_be_bytes());
        text.extend(&self.attributes.0);
        let length = u32::try_from(text.len() - begin).unwrap_or(u32::MAX);
        text[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Attributes of a message, or nested ones.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// One more.
    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        /// Of length and type.
        const HEADER: usize = 4;
        let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A text, which ends with a zero.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// A number in network order, as nftables wants all of them.
    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Others within.
    pub(super) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }
}

/// A socket to netfilter, in the namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netfilter {
    socket: OwnedFd,
    number: u32,
}

impl Netfilter {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(Self { socket, number: 0 })
    }

    /// One message by itself.
    pub(super) fn request(&mut self, message: &Message) -> Result<(), NetlinkError> {
        let mut text = Vec::new();
        let number = self.next();
        message.write(ACK, number, &mut text);
        self.exchange(&text, number..=number)
    }

    /// All messages, or none.
    pub(super) fn transaction(&mut self, messages: &[Message]) -> Result<(), NetlinkError> {
        let mut text = Vec::new();
        let first = self.next();
        Message::batch(BATCH_BEGIN).write(0, first, &mut text);
        let mut last = first;
        for (index, message) in messages.iter().enumerate() {
            last = self.next();
            // Errors are told of each, success of the last.
            let flags = if index + 1 == messages.len() { ACK } else { 0 };
            message.write(flags, last, &mut text);
        }
        Message::batch(BATCH_END).write(0, self.next(), &mut text);
        self.exchange(&text, first..=last)
    }

    fn next(&mut self) -> u32 {
        self.number += 1;
        self.number
    }

    /// Sends, and waits for the first error of these numbers, or for the acknowledgement of the last.
    fn exchange(
        &self,
        text: &[u8],
        numbers: std::ops::RangeInclusive<u32>,
    ) -> Result<(), NetlinkError> {
        let socket = self.socket.as_raw_fd();
        send(socket, text, MsgFlags::empty())?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match recv(socket, &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if length == 0 {
                return Err(Errno::EPROTO.into());
            }
            for (number, error) in errors(&buffer[..length]) {
                if !numbers.contains(&number) {
                    continue;
                }
                if error != 0 {
                    return Err(Errno::from_raw(-error).into());
                }
                if number == *numbers.end() {
                    return Ok(());
                }
            }
        }
    }
}

/// Errors and acknowledgements (which are error 0) among messages: number of the message that it is about, and which.
fn errors(mut text: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let Some((length, kind, number)) = header(text) {
        if kind == ERROR
            && let Some(error) = text.get(HEADER..HEADER + 4)
        {
            let error = i32::from_ne_bytes([error[0], error[1], error[2], error[3]]);
            found.push((number, error));
        }
        if length < HEADER {
            break;
        }
        text = text.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// Length, type and number.
fn header(text: &[u8]) -> Option<(usize, u16, u32)> {
    let (length, rest) = text.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    let (number, _) = rest.get(2..)?.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    Some((
        length,
        u16::from_ne_bytes(*kind),
        u32::from_ne_bytes(*number),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested() {
        let attributes = Attributes::default()
            .text(1, "abc")
            .nested(2, &Attributes::default().bytes(3, &[7]).number(4, 9));
        let mut wanted = Vec::new();
        wanted.extend(8u16.to_ne_bytes());
        wanted.extend(1u16.to_ne_bytes());
        wanted.extend(b"abc\0");
        wanted.extend(20u16.to_ne_bytes());
        wanted.extend(0x8002u16.to_ne_bytes());
        wanted.extend(5u16.to_ne_bytes());
        wanted.extend(3u16.to_ne_bytes());
        wanted.extend([7, 0, 0, 0]);
        wanted.extend(8u16.to_ne_bytes());
        wanted.extend(4u16.to_ne_bytes());
        wanted.extend([0, 0, 0, 9]);
        assert_eq!(attributes.0, wanted);
    }

    #[test]
    fn answers_that_end_early_are_none() {
        let mut text = Vec::new();
        for (number, error) in [(1u32, 0i32), (2, -2)] {
            text.extend(20u32.to_ne_bytes());
            text.extend(ERROR.to_ne_bytes());
            text.extend(0u16.to_ne_bytes());
            text.extend(number.to_ne_bytes());
            text.extend([0; 4]);
            text.extend(error.to_ne_bytes());
        }
        assert_eq!(errors(&text), [(1, 0), (2, -2)]);
        assert_eq!(errors(&text[..text.len() - 1]), [(1, 0)]);
        assert_eq!(errors(&text[..10]), []);
        assert_eq!(errors(&[0; 64]), [], "a length of zero ends it");
    }
}
