//! One request to the agent, by a deadline.

use std::fmt;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde::Serialize;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::api::Failure;

/// Nobody but root may stand in for the agent.
const ROOT: u32 = 0;

/// More than any answer of ours.
const LONGEST_ANSWER: usize = 64 * 1024;

/// Why the agent did not do it.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody listens, or the connection broke.
    Away {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The deadline passed.
    TimedOut,
    /// The socket is not root's, or no socket.
    Untrusted {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The agent says that the same may work later.
    NotNow(String),
    /// The agent says no.
    Refused(String),
    /// What came back is not an answer of the agent's.
    NotUnderstood(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away { socket, source } => {
                write!(
                    f,
                    "policy-agent does not listen on {}: {source}",
                    socket.display()
                )
            }
            Self::TimedOut => f.write_str("policy-agent did not answer in time"),
            Self::Untrusted { socket, why } => write!(f, "{}: {why}", socket.display()),
            Self::NotNow(why) | Self::Refused(why) => f.write_str(why),
            Self::NotUnderstood(what) => {
                write!(f, "policy-agent's answer is not understood: {what}")
            }
        }
    }
}

impl std::error::Error for ClientError {}

/// Posts `body` to `path`.
///
/// # Errors
///
/// Unless the agent answers with 200 before the deadline.
pub fn post(
    socket: &Path,
    path: &str,
    body: &impl Serialize,
    deadline: Instant,
) -> Result<(), ClientError> {
    let body =
        serde_json::to_vec(body).map_err(|error| ClientError::NotUnderstood(error.to_string()))?;
    let mut stream = connect(socket, deadline)?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let failed = |error| broken(socket, error);
    let patience = left(deadline)?;
    stream.set_write_timeout(Some(patience)).map_err(failed)?;
    stream
        .write_all(&[head.as_bytes(), &body].concat())
        .map_err(failed)?;
    let answer = read(&mut stream, socket, deadline)?;
    judge(&answer)
}

/// Connects to the agent, and to nobody else.
fn connect(socket: &Path, deadline: Instant) -> Result<UnixStream, ClientError> {
    let failed = |error| broken(socket, error);
    let untrusted = |why: String| ClientError::Untrusted {
        socket: socket.to_owned(),
        why,
    };
    let found = fs::metadata(socket).map_err(failed)?;
    if !found.file_type().is_socket() {
        return Err(untrusted("this is not a socket".to_owned()));
    }
    if found.uid() != ROOT {
        return Err(untrusted(format!(
            "the socket belongs to uid {}, not to root; it is not asked",
            found.uid()
        )));
    }
    let stream = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    // Connecting waits too, when the agent accepts nobody.
    stream
        .set_write_timeout(Some(left(deadline)?))
        .and_then(|()| stream.connect(&SockAddr::unix(socket)?))
        .map_err(failed)?;
    let stream = UnixStream::from(OwnedFd::from(stream));
    // The path may lead elsewhere by now; this is who really listens.
    let peer = getsockopt(&stream, PeerCredentials).map_err(|error| failed(error.into()))?;
    if peer.uid() != ROOT {
        return Err(untrusted(format!(
            "uid {} listens there, not root; it is not asked",
            peer.uid()
        )));
    }
    Ok(stream)
}

/// Reads until the agent closes.
fn read(stream: &mut UnixStream, socket: &Path, deadline: Instant) -> Result<Vec<u8>, ClientError> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let outcome = stream
            .set_read_timeout(Some(left(deadline)?))
            .and_then(|()| stream.read(&mut buffer));
        match outcome {
            Ok(0) if answer.is_empty() => {
                let closed =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "it closed without an answer");
                return Err(broken(socket, closed));
            }
            Ok(0) => return Ok(answer),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(socket, error)),
        }
        if answer.len() > LONGEST_ANSWER {
            return Err(ClientError::NotUnderstood("it is too long".to_owned()));
        }
    }
}

fn judge(answer: &[u8]) -> Result<(), ClientError> {
    let not_understood = |what: &dyn fmt::Display| ClientError::NotUnderstood(what.to_string());
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let body = match response.parse(answer) {
        Ok(httparse::Status::Complete(length)) => &answer[length..],
        Ok(httparse::Status::Partial) => return Err(not_understood(&"it ends early")),
        Err(error) => return Err(not_understood(&error)),
    };
    let code = response.code.unwrap_or_default();
    if code == 200 {
        return Ok(());
    }
    let why = serde_json::from_slice(body)
        .map_or_else(|_| format!("HTTP status {code}"), |Failure { error }| error);
    // 408, 429 and 5xx pass; what else is wrong stays wrong.
    match code {
        408 | 429 | 500.. => Err(ClientError::NotNow(why)),
        _ => Err(ClientError::Refused(why)),
    }
}

fn broken(socket: &Path, source: io::Error) -> ClientError {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut,
        _ => ClientError::Away {
            socket: socket.to_owned(),
            source,
        },
    }
}

/// What is left until the deadline; never zero, which would mean forever.
fn left(deadline: Instant) -> Result<Duration, ClientError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(ClientError::TimedOut);
    }
    Ok(left)
}
