//! The CNI plugin's part of the local interface; `policy_cni::api` says what the requests are.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use policy_cni::api::{
    ADD, AddRequest, Attachment, AttachmentKey, CHECK, DEL, Done, Failure, GC, GcRequest, STATUS,
};
use tokio::sync::{mpsc, oneshot};

use crate::agent::{CniAnswer, CniQuery, Query};
use crate::endpoint::Lookup;

/// Where questions go, and who looks at interfaces on the way.
#[derive(Clone, Debug)]
struct Asker {
    queries: mpsc::Sender<Query>,
    lookup: Lookup,
}

pub(super) fn router(queries: mpsc::Sender<Query>, lookup: Lookup) -> Router {
    Router::new()
        .route(ADD, post(add))
        .route(DEL, post(del))
        .route(CHECK, post(check))
        .route(GC, post(gc))
        .route(STATUS, post(status))
        .with_state(Asker { queries, lookup })
}

async fn add(State(asker): State<Asker>, Json(request): Json<AddRequest>) -> Response {
    let attachment = &request.attachment;
    if let Err(refusal) = validate(&attachment.key) {
        return refusal;
    }
    if attachment.addresses.is_empty() {
        return failure(
            StatusCode::BAD_REQUEST,
            "an attachment without addresses".to_owned(),
        );
    }
    let interfaces = asker.lookup.named(&attachment.host_interfaces).await;
    let query = |reply| CniQuery::Add {
        request,
        interfaces,
        reply,
    };
    asker.ask(query, StatusCode::SERVICE_UNAVAILABLE).await
}

async fn del(State(asker): State<Asker>, Json(key): Json<AttachmentKey>) -> Response {
    if let Err(refusal) = validate(&key) {
        return refusal;
    }
    let query = |reply| CniQuery::Del(key, reply);
    asker.ask(query, StatusCode::SERVICE_UNAVAILABLE).await
}

async fn check(State(asker): State<Asker>, Json(attachment): Json<Attachment>) -> Response {
    let query = |reply| CniQuery::Check(attachment, reply);
    asker.ask(query, StatusCode::NOT_FOUND).await
}

async fn gc(State(asker): State<Asker>, Json(request): Json<GcRequest>) -> Response {
    let query = |reply| CniQuery::Gc(request, reply);
    asker.ask(query, StatusCode::SERVICE_UNAVAILABLE).await
}

async fn status(State(asker): State<Asker>) -> Response {
    asker
        .ask(CniQuery::Status, StatusCode::SERVICE_UNAVAILABLE)
        .await
}

impl Asker {
    /// Asks, and answers with `refusal` where the answer is no.
    async fn ask(
        &self,
        query: impl FnOnce(oneshot::Sender<CniAnswer>) -> CniQuery,
        refusal: StatusCode,
    ) -> Response {
        let (reply, answer) = oneshot::channel();
        let sent = self.queries.send(Query::Cni(Box::new(query(reply)))).await;
        match (sent, answer.await) {
            (Ok(()), Ok(Ok(()))) => Json(Done {}).into_response(),
            (Ok(()), Ok(Err(why))) => failure(refusal, why),
            _ => failure(
                StatusCode::SERVICE_UNAVAILABLE,
                "the agent is stopping".to_owned(),
            ),
        }
    }
}

/// Keys become names of files.
#[expect(clippy::result_large_err, reason = "the response is sent as it is")]
fn validate(key: &AttachmentKey) -> Result<(), Response> {
    if key.is_valid() {
        return Ok(());
    }
    let why = format!(
        "{:?} and {:?} are no container id and interface name",
        key.container_id, key.ifname
    );
    Err(failure(StatusCode::BAD_REQUEST, why))
}

fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(Failure { error })).into_response()
}
