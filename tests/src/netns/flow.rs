//! Connections that are held open while policies change.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Netns;

/// How long something may take that is expected; emulated machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long nothing has to come before it counts as dropped.
pub const SILENCE: Duration = Duration::from_millis(400);

/// A TCP connection, both ends in hand.
#[derive(Debug)]
pub struct Flow {
    client: TcpStream,
    server: TcpStream,
    sent: u8,
}

impl Flow {
    /// Connects from `client` to `port` at `address` of `server`, where nothing listens yet.
    ///
    /// # Errors
    ///
    /// When the connection is not made within [`PATIENCE`].
    pub fn open(client: &Netns, server: &Netns, address: IpAddr, port: u16) -> Result<Self> {
        let to = SocketAddr::new(address, port);
        Self::open_through(client, to, server, to)
    }

    /// Connects from `client` to `to`, which is translated to `at`, where nothing listens yet on `server`.
    ///
    /// # Errors
    ///
    /// When the connection is not made within [`PATIENCE`].
    pub fn open_through(
        client: &Netns,
        to: SocketAddr,
        server: &Netns,
        at: SocketAddr,
    ) -> Result<Self> {
        let listener = listen(server, at).context("listen")?;
        let client = client
            .enter(|| TcpStream::connect_timeout(&to, PATIENCE))
            .with_context(|| format!("connect to {to}"))?;
        let (server, _) = listener.accept()?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        Ok(Self {
            client,
            server,
            sent: 0,
        })
    }

    /// Ports of the client and of the server, as the client sees them.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub fn ports(&self) -> io::Result<[u16; 2]> {
        Ok([
            self.client.local_addr()?.port(),
            self.client.peer_addr()?.port(),
        ])
    }

    /// Whether a byte from the client gets to the server within `patience`.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub fn client_speaks(&mut self, patience: Duration) -> io::Result<bool> {
        self.sent = self.sent.wrapping_add(1);
        pass(&mut self.client, &mut self.server, self.sent, patience)
    }

    /// Whether a byte from the server gets to the client within `patience`.
    ///
    /// # Errors
    ///
    /// When the connection broke.
    pub fn server_speaks(&mut self, patience: Duration) -> io::Result<bool> {
        self.sent = self.sent.wrapping_add(1);
        pass(&mut self.server, &mut self.client, self.sent, patience)
    }
}

/// Listens, once the port is free: a process that somebody forks may keep a closed socket for a moment.
fn listen(netns: &Netns, at: SocketAddr) -> io::Result<TcpListener> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match netns.enter(|| TcpListener::bind(at)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn pass(
    from: &mut TcpStream,
    to: &mut TcpStream,
    byte: u8,
    patience: Duration,
) -> io::Result<bool> {
    from.write_all(&[byte])?;
    to.set_read_timeout(Some(patience))?;
    let mut got = [0];
    match to.read_exact(&mut got) {
        Ok(()) if got == [byte] => Ok(true),
        Ok(()) => Err(io::Error::other("another byte came")),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Datagrams sent one a millisecond until stopped, and counted where they arrive.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
    receiver: Option<JoinHandle<u64>>,
}

impl Stream {
    /// Begins to send from `from` to `port` at `address` of `to`.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn start(from: &Netns, to: &Netns, address: IpAddr, port: u16) -> Result<Self> {
        let sink = to
            .enter(|| UdpSocket::bind((address, port)))
            .context("sink")?;
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let source = from.enter(|| UdpSocket::bind(any)).context("source")?;
        source.connect((address, port))?;
        Self::between(source, sink)
    }

    /// Begins to send from a socket that is connected to another one.
    pub(super) fn between(source: UdpSocket, sink: UdpSocket) -> Result<Self> {
        sink.set_read_timeout(Some(SILENCE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, counted) = (stop.clone(), sent.clone());
        let sender = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A full queue is no loss on the way: only what was sent counts.
                if source.send(b"stream").is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        let stopped = stop.clone();
        let receiver = thread::spawn(move || count_arrivals(&sink, &stopped));
        Ok(Self {
            stop,
            sent,
            sender: Some(sender),
            receiver: Some(receiver),
        })
    }

    /// How many were sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Waits until `count` more were sent.
    pub fn wait_for_more(&self, count: u64) {
        let goal = self.sent() + count;
        while self.sent() < goal {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops; returns how many were sent and how many arrived.
    ///
    /// # Panics
    ///
    /// When a thread did.
    #[must_use]
    pub fn finish(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.take().map(JoinHandle::join).unwrap().unwrap();
        let arrived = self.receiver.take().map(JoinHandle::join).unwrap().unwrap();
        (self.sent(), arrived)
    }
}

/// Counts until `stop` is set and nothing has come for [`SILENCE`].
fn count_arrivals(sink: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut arrived = 0;
    let mut buffer = [0; 16];
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        match sink.recv(&mut buffer) {
            Ok(_) => arrived += 1,
            Err(_) if stopping => return arrived,
            Err(_) => {}
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The threads see it and end by themselves.
        self.stop.store(true, Ordering::Relaxed);
    }
}
