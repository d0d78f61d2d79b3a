//! Servers that say who they are, for clients that cannot know where a Service leads them.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, SockRef, Socket, Type};

use super::Netns;

/// Answers every connection with one byte, and closes it. Ends when dropped.
#[derive(Debug)]
pub struct Greeter {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    /// Listens at `port` of all addresses.
    ///
    /// # Errors
    ///
    /// When the port is taken.
    pub fn start(netns: &Netns, port: u16, name: u8) -> Result<Self> {
        let any = (Ipv6Addr::UNSPECIFIED, port);
        let listener = netns.enter(|| TcpListener::bind(any)).context("greeter")?;
        let accepting = listener.try_clone()?;
        let thread = thread::spawn(move || {
            while let Ok((mut stream, _)) = accepting.accept() {
                // Who gave up meanwhile has no use for it.
                let _lost = stream.write_all(&[name]);
            }
        });
        Ok(Self {
            listener,
            thread: Some(thread),
        })
    }

    /// Connects from `port` of `from`, 0 for any, and gives the name of the server that answered within `patience`.
    ///
    /// # Errors
    ///
    /// When none did: what the kernel said.
    pub fn who_answers(
        from: &Netns,
        port: u16,
        to: SocketAddr,
        patience: Duration,
    ) -> io::Result<u8> {
        from.enter(|| {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(any, port).into())?;
            socket.connect_timeout(&to.into(), patience)?;
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(patience))?;
            let mut name = [0];
            stream.read_exact(&mut name)?;
            Ok(name[0])
        })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        // Wakes whoever accepts.
        let _ended = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a greeter panicked");
        }
    }
}
