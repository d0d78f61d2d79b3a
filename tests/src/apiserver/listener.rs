//! The server's port: reserved while nobody listens, so that it is the same afterwards.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::request;
use super::shared::Shared;
use crate::netns::Inside;

/// A port that is ours. Connections to it are refused.
#[derive(Debug)]
pub(super) struct Reserved {
    socket: Socket,
    pub(super) address: SocketAddr,
}

impl Reserved {
    /// Binds to `address`, in a network namespace or in that of the caller.
    pub(super) fn bind(address: SocketAddr, inside: Option<&Inside>) -> io::Result<Self> {
        let bind = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            // Connections that were cut may still be on their way out.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            Ok::<_, io::Error>(socket)
        };
        let socket = inside.map_or_else(bind, |inside| inside.enter(bind))?;
        let address = socket.local_addr()?.as_socket();
        let address = address.ok_or_else(|| io::Error::other("no internet address"))?;
        Ok(Self { socket, address })
    }

    /// Listens and serves, on `runtime`.
    pub(super) fn serve(
        self,
        runtime: &Handle,
        tls: TlsAcceptor,
        shared: Arc<Shared>,
    ) -> io::Result<Serving> {
        self.socket.listen(1024)?;
        self.socket.set_nonblocking(true)?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(TcpListener::from(self.socket))?
        };
        let (stop, stopped) = oneshot::channel();
        let (ended_in, ended) = mpsc::channel();
        runtime.spawn(async move {
            serve(listener, tls, shared, stopped).await;
            // Nobody waits when the server is dropped as a whole.
            let _alone = ended_in.send(());
        });
        Ok(Serving {
            stop,
            ended,
            address: self.address,
        })
    }
}

/// A port that is served.
#[derive(Debug)]
pub(super) struct Serving {
    stop: oneshot::Sender<()>,
    ended: mpsc::Receiver<()>,
    address: SocketAddr,
}

impl Serving {
    /// Stops listening, cuts all connections, and waits until all of that is done.
    pub(super) fn stop(self) -> SocketAddr {
        // Both channels close when the task has ended by itself, which is as good.
        let _ended = self.stop.send(());
        let _ended = self.ended.recv();
        self.address
    }
}

async fn serve(
    listener: tokio::net::TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, tls.clone(), shared.clone()));
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    // Events are small, and clients wait for them.
    let _slower = stream.set_nodelay(true);
    // Clients that break off, or do not trust us, see that for themselves.
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    // One that is not of our authority ends the handshake.
    let is_certified = stream.get_ref().1.peer_certificates().is_some();
    let service = service_fn(move |request| request::answer(shared.clone(), is_certified, request));
    let _broken_off = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
