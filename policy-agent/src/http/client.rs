//! Asks the agent through its local socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::report::Failure;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent listens on {path}; is policy-agent running on this node? (PORTCULLIS_RUN_DIR or --run-dir \
         names another run directory)", path = .0.display()
    )]
    NotRunning(PathBuf),
    /// The socket is root's.
    #[error("{path}: permission denied; the agent speaks to root only, try with sudo", path = .0.display())]
    NotPermitted(PathBuf),
    /// The connection broke.
    #[error("{path}: {source}", path = .path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The agent answered with an error.
    #[error("the agent says: {0}")]
    Refused(String),
    /// The agent answered with something else.
    #[error(
        "the agent's answer is not understood ({0}); policyctl and policy-agent may differ in version"
    )]
    Answer(serde_json::Error),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// Sends one request without a body and reads its answer.
///
/// # Errors
///
/// When there is no answer within `patience`, or it is an error.
pub async fn request<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    patience: Duration,
) -> Result<T, ClientError> {
    timeout(patience, exchange(socket, method, path))
        .await
        .map_err(|_| ClientError::Timeout(patience))?
}

async fn exchange<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
) -> Result<T, ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(socket.to_owned())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotPermitted(socket.to_owned()),
            _ => broken(socket, error),
        })?;
    let failed = |error: hyper::Error| broken(socket, io::Error::other(error));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(socket, io::Error::other(error)))?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(failed)?
        .to_bytes();
    if !status.is_success() {
        let failure = serde_json::from_slice(&body).map(|Failure { error }| error);
        return Err(ClientError::Refused(
            failure.unwrap_or_else(|_| status.to_string()),
        ));
    }
    serde_json::from_slice(&body).map_err(ClientError::Answer)
}

fn broken(socket: &Path, source: io::Error) -> ClientError {
    ClientError::Connection {
        path: socket.to_owned(),
        source,
    }
}
