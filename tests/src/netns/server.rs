//! Echo servers inside a network namespace.

use std::net::Ipv6Addr;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::Netns;

/// Echo servers for IPv4 and IPv6; their sockets close when this is dropped.
#[derive(Debug)]
pub struct Servers {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Echo on these ports.
    ///
    /// # Errors
    ///
    /// When a port is taken.
    pub fn start(netns: &Netns, tcp: &[u16], udp: &[u16]) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (bound_in, bound) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let any = Ipv6Addr::UNSPECIFIED;
        let listen = || -> std::io::Result<_> {
            let tcp = tcp
                .iter()
                .map(|port| std::net::TcpListener::bind((any, *port)));
            let udp = udp
                .iter()
                .map(|port| std::net::UdpSocket::bind((any, *port)));
            Ok((
                tcp.collect::<std::io::Result<Vec<_>>>()?,
                udp.collect::<std::io::Result<Vec<_>>>()?,
            ))
        };
        let (tcp, udp) = netns.enter(listen).context("ports of the echo servers")?;
        let thread = std::thread::Builder::new()
            .name(format!("echo {}", netns.name()))
            .spawn(move || {
                let result = runtime.block_on(async {
                    let mut tasks = JoinSet::new();
                    for listener in tcp {
                        listener.set_nonblocking(true)?;
                        tasks.spawn(serve_tcp(TcpListener::from_std(listener)?));
                    }
                    for socket in udp {
                        socket.set_nonblocking(true)?;
                        tasks.spawn(serve_udp(UdpSocket::from_std(socket)?));
                    }
                    bound_in.send(()).map_err(std::io::Error::other)?;
                    // Answered or dropped, both mean the end.
                    let _end = stopped.await;
                    Ok::<_, std::io::Error>(())
                });
                if let Err(error) = result {
                    eprintln!("echo servers: {error}");
                }
            })?;
        bound.recv().context("echo servers did not start")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the echo servers panicked");
        }
    }
}

async fn serve_tcp(listener: TcpListener) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(echo(stream));
    }
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 16384];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn serve_udp(socket: UdpSocket) {
    let mut buffer = vec![0; 65536];
    loop {
        // Errors are those of earlier answers (ICMP), which concern nobody here.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let _lost = socket.send_to(&buffer[..length], peer).await;
        }
    }
}
