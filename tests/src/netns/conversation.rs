//! Conversations over UDP that are held open while policies change.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Netns, PATIENCE, Stream};

/// A conversation over UDP, both ends in hand.
#[derive(Debug)]
pub struct Conversation {
    client: UdpSocket,
    /// Where the client sends to.
    service: SocketAddr,
    server: UdpSocket,
    /// The client, as the server sees it.
    seen: SocketAddr,
    sent: u8,
}

impl Conversation {
    /// The client sends a datagram to `at` on `server`, and gets an answer.
    ///
    /// # Errors
    ///
    /// When either does not arrive within [`PATIENCE`].
    pub fn begin(client: &Netns, server: &Netns, at: SocketAddr) -> Result<Self> {
        Self::begin_through(client, at, server, at)
    }

    /// The client sends a datagram to `to`, which is translated to `at` on `server`, and gets an answer.
    ///
    /// # Errors
    ///
    /// When either does not arrive within [`PATIENCE`].
    pub fn begin_through(
        client: &Netns,
        to: SocketAddr,
        server: &Netns,
        at: SocketAddr,
    ) -> Result<Self> {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let server = server.enter(|| UdpSocket::bind(at)).context("server")?;
        let client = client
            .enter(|| UdpSocket::bind((any, 0)))
            .context("client")?;
        server.set_read_timeout(Some(PATIENCE))?;
        client.send_to(&[0], to)?;
        let (_, seen) = server.recv_from(&mut [0; 8]).context("first datagram")?;
        let mut conversation = Self {
            client,
            service: to,
            server,
            seen,
            sent: 0,
        };
        ensure!(conversation.server_speaks(PATIENCE)?, "no answer to {seen}");
        Ok(conversation)
    }

    /// Whether a datagram from the client gets to the server within `patience`.
    ///
    /// # Errors
    ///
    /// When a socket fails.
    pub fn client_speaks(&mut self, patience: Duration) -> io::Result<bool> {
        self.sent = self.sent.wrapping_add(1);
        pass(
            &self.client,
            self.service,
            &self.server,
            self.sent,
            patience,
        )
    }

    /// Whether a datagram from the server gets to the client within `patience`.
    ///
    /// # Errors
    ///
    /// When a socket fails.
    pub fn server_speaks(&mut self, patience: Duration) -> io::Result<bool> {
        self.sent = self.sent.wrapping_add(1);
        pass(&self.server, self.seen, &self.client, self.sent, patience)
    }

    /// From now on the server sends one datagram a millisecond.
    ///
    /// # Errors
    ///
    /// When a socket fails.
    pub fn stream(self) -> Result<Stream> {
        self.server.connect(self.seen)?;
        Stream::between(self.server, self.client)
    }
}

fn pass(
    from: &UdpSocket,
    address: SocketAddr,
    to: &UdpSocket,
    byte: u8,
    patience: Duration,
) -> io::Result<bool> {
    from.send_to(&[byte], address)?;
    let deadline = Instant::now() + patience;
    let mut got = [0; 8];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        to.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match to.recv(&mut got) {
            Ok(1) if got[0] == byte => return Ok(true),
            // One that came late.
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
}
