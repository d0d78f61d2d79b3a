//! Datagrams from one pod to another, and the moment from which they pass or do not.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::netns::{Family, Host, PATIENCE};

const PORT: u16 = 9_000;

/// How long a datagram may take before it counts as lost for now. Most arrive before the system call
/// that sends them returns.
const TRANSIT: Duration = Duration::from_micros(400);

/// The pause between two looks: long enough to leave the CPU to the agent.
const PAUSE: Duration = Duration::from_micros(150);

/// Datagrams in a row that have to be lost, so that one that was late is not taken for one.
const LOST: u32 = 8;

/// Both ends of the way, held by one thread.
pub(super) struct Wire {
    from: UdpSocket,
    to: UdpSocket,
    number: u64,
}

impl Wire {
    pub(super) fn new(from: &Host, to: &Host) -> Result<Self> {
        let bind = |host: &Host, port| {
            let any = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
            host.netns().enter(|| UdpSocket::bind(any))
        };
        let destination = SocketAddr::new(to.address(Family::V4), PORT);
        let wire = Self {
            from: bind(from, 0)?,
            to: bind(to, PORT)?,
            number: 0,
        };
        wire.from.connect(destination)?;
        wire.to.set_nonblocking(true)?;
        Ok(wire)
    }

    /// Sends a datagram; whether it, or a late one of `since` or after, arrives.
    fn passes(&mut self, since: u64) -> io::Result<bool> {
        self.number += 1;
        let sent = Instant::now();
        self.from.send(&self.number.to_be_bytes())?;
        let mut payload = [0; 8];
        loop {
            match self.to.recv(&mut payload) {
                Ok(_) if u64::from_be_bytes(payload) >= since => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if sent.elapsed() > TRANSIT {
                        return Ok(false);
                    }
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until datagrams pass: when the first arrived.
    pub(super) fn opens(&mut self) -> Result<Instant> {
        let (since, began) = (self.number + 1, Instant::now());
        while !self.passes(since)? {
            ensure!(
                began.elapsed() < PATIENCE,
                "packets do not pass, though they may"
            );
        }
        Ok(Instant::now())
    }

    /// Waits until no datagram passes any more: when the first that was dropped was sent.
    pub(super) fn closes(&mut self) -> Result<Instant> {
        let began = Instant::now();
        let mut first = None;
        let mut lost = 0;
        let mut since = self.number + 1;
        while lost < LOST {
            let sent = Instant::now();
            if self.passes(since)? {
                (first, lost, since) = (None, 0, self.number + 1);
                thread::sleep(PAUSE);
            } else {
                first.get_or_insert(sent);
                lost += 1;
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "packets pass, though they may not"
            );
        }
        first.context("none was lost")
    }
}
