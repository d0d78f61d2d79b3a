//! The local interface: JSON over HTTP on a unix socket that only root can open.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`crate::report::Status`] |
//! | `GET /v1/workloadendpoints` | list of [`crate::report::WorkloadEndpoint`] |
//! | `GET /v1/identities` | list of [`crate::report::IdentityStatus`] |
//! | `GET /v1/networkpolicies` | list of [`crate::report::PolicyStatus`] |
//! | `POST /v1/sync` | [`crate::report::SyncReport`], once all is enforced |

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use crate::agent::Query;
use crate::report::Failure;

/// Binds the socket, in place of one that an earlier agent left; nobody but root can ever open it.
/// The caller holds the run directory's lock.
///
/// # Errors
///
/// When the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the process ends; questions go to `queries`.
pub async fn serve(listener: UnixListener, queries: mpsc::Sender<Query>) {
    if let Err(error) = axum::serve(listener, router(queries)).await {
        tracing::error!(%error, "the local socket is no longer served");
    }
}

type Queries = State<mpsc::Sender<Query>>;

fn router(queries: mpsc::Sender<Query>) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(|queries: Queries| ask(queries, Query::Status)),
        )
        .route(
            "/v1/workloadendpoints",
            get(|queries: Queries| ask(queries, Query::WorkloadEndpoints)),
        )
        .route(
            "/v1/identities",
            get(|queries: Queries| ask(queries, Query::Identities)),
        )
        .route(
            "/v1/networkpolicies",
            get(|queries: Queries| ask(queries, Query::NetworkPolicies)),
        )
        .route(
            "/v1/sync",
            post(|queries: Queries| ask(queries, Query::Sync)),
        )
        .with_state(queries)
}

async fn ask<T: Serialize>(
    State(queries): Queries,
    query: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Response {
    let (reply, answer) = oneshot::channel();
    if queries.send(query(reply)).await.is_ok()
        && let Ok(answer) = answer.await
    {
        return Json(answer).into_response();
    }
    let failure = Failure {
        error: "the agent is stopping or too busy to answer".to_owned(),
    };
    (StatusCode::SERVICE_UNAVAILABLE, Json(failure)).into_response()
}
