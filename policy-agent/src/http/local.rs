//! The local interface: JSON over HTTP on a unix socket that only root can open.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`crate::report::Status`] |
//! | `GET /v1/workloadendpoints` | list of [`crate::report::WorkloadEndpoint`] |
//! | `GET /v1/identities` | list of [`crate::report::IdentityStatus`] |
//! | `GET /v1/networkpolicies` | list of [`crate::report::PolicyStatus`] |
//! | `POST /v1/cni/...` | see [`policy_cni::api`] |
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

use super::cni;
use crate::agent::Query;
use crate::endpoint::Lookup;
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

/// Serves until the process ends; questions go to `queries`, and `lookup` looks at interfaces that the CNI
/// plugin names.
pub async fn serve(listener: UnixListener, queries: mpsc::Sender<Query>, lookup: Lookup) {
    let router = router(queries.clone()).merge(cni::router(queries, lookup));
    if let Err(error) = axum::serve(listener, router).await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client::{self, ClientError};
    use crate::report::{PolicyStatus, SyncReport};
    use hyper::Method;
    use std::os::unix::fs::MetadataExt as _;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    async fn answer(mut queries: mpsc::Receiver<Query>) {
        while let Some(query) = queries.recv().await {
            match query {
                Query::NetworkPolicies(reply) => reply.send(Vec::new()).expect("asked for"),
                Query::Sync(reply) => reply
                    .send(SyncReport {
                        revision: 7,
                        errors: Vec::new(),
                    })
                    .expect("asked for"),
                // Dropped: the asker hears that there is no answer.
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn answers_go_through_a_socket_of_roots() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("agent.sock");
        fs::write(&path, "left by an earlier agent").expect("write");
        let listener = listen(&path).expect("listen");
        let mode = fs::metadata(&path).expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
        let (queries_in, queries) = mpsc::channel(1);
        tokio::spawn(answer(queries));
        let lookup = Lookup::new().expect("netlink");
        tokio::spawn(serve(listener, queries_in, lookup));

        let policies: Vec<PolicyStatus> =
            client::request(&path, Method::GET, "/v1/networkpolicies", PATIENCE)
                .await
                .expect("answer");
        assert!(policies.is_empty());
        let report: SyncReport = client::request(&path, Method::POST, "/v1/sync", PATIENCE)
            .await
            .expect("answer");
        assert_eq!(report.revision, 7);
        let refused = client::request::<SyncReport>(&path, Method::GET, "/v1/status", PATIENCE)
            .await
            .expect_err("no answer")
            .to_string();
        assert_eq!(
            refused,
            "the agent says: the agent is stopping or too busy to answer"
        );
        let wrong =
            client::request::<SyncReport>(&path, Method::GET, "/v1/nothing", PATIENCE).await;
        assert!(matches!(wrong, Err(ClientError::Refused(_))), "{wrong:?}");
    }

    #[tokio::test]
    async fn without_an_agent_the_client_says_so() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("agent.sock");
        let ask = || client::request::<SyncReport>(&path, Method::GET, "/v1/status", PATIENCE);
        assert!(matches!(ask().await, Err(ClientError::NotRunning(_))));
        drop(listen(&path).expect("listen"));
        assert!(matches!(ask().await, Err(ClientError::NotRunning(_))));
        let silent = listen(&path).expect("listen");
        let short = Duration::from_millis(50);
        let asked = client::request::<SyncReport>(&path, Method::GET, "/v1/status", short).await;
        assert!(matches!(asked, Err(ClientError::Timeout(_))), "{asked:?}");
        drop(silent);
    }
}
