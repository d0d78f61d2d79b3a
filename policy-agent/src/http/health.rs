//! `/livez` and `/readyz`, for kubelet, and `/metrics`, for Prometheus.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::agent::Health;
use crate::metrics::{self, Scraper};

/// The agent's loop comes round every second; compiling a big cluster from nothing takes a few.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Serves until the process ends. `scraper` is set once there is something to scrape.
pub async fn serve(
    listener: TcpListener,
    health: watch::Receiver<Health>,
    scraper: Arc<OnceLock<Scraper>>,
) {
    if let Err(error) = axum::serve(listener, router(health, scraper)).await {
        tracing::error!(%error, "health is no longer served");
    }
}

fn router(health: watch::Receiver<Health>, scraper: Arc<OnceLock<Scraper>>) -> Router {
    let metrics = Router::new()
        .route("/metrics", get(metrics))
        .with_state(scraper);
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(health)
        .merge(metrics)
}

async fn livez(State(health): State<watch::Receiver<Health>>) -> (StatusCode, String) {
    let pause = health.borrow().beat.elapsed();
    if pause < LONGEST_PAUSE {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let text = format!(
            "the agent's loop has not come round for {} s\n",
            pause.as_secs()
        );
        (StatusCode::SERVICE_UNAVAILABLE, text)
    }
}

async fn readyz(State(health): State<watch::Receiver<Health>>) -> (StatusCode, String) {
    let health = health.borrow();
    let lines = health.conditions.iter().map(|condition| {
        let sign = if condition.ok { '+' } else { '-' };
        format!("[{sign}] {}: {}\n", condition.name, condition.message)
    });
    let code = if health.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (code, lines.collect())
}

async fn metrics(State(scraper): State<Arc<OnceLock<Scraper>>>) -> Response {
    let Some(scraper) = scraper.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting\n").into_response();
    };
    match scraper.scrape().await {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Query;
    use crate::dataplane::FlowTables;
    use crate::metrics::Snapshot;
    use crate::report::Condition;
    use http_body_util::BodyExt as _;
    use hyper_util::rt::TokioIo;
    use std::time::Instant;
    use tokio::sync::mpsc;

    /// Status, content type and text.
    async fn ask(
        health: Health,
        scraper: Option<Scraper>,
        path: &str,
    ) -> (u16, Option<String>, String) {
        let (_keep, health) = watch::channel(health);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let scraper = Arc::new(scraper.map_or_else(OnceLock::new, OnceLock::from));
        let server = tokio::spawn(serve(listener, health, scraper));
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("listening");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP");
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(path)
            .header("host", "localhost")
            .body(String::new())
            .expect("request");
        let response = sender.send_request(request).await.expect("answer");
        let status = response.status().as_u16();
        let content_type = response.headers().get(CONTENT_TYPE).cloned();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("body")
            .to_bytes();
        server.abort();
        connection.abort();
        (
            status,
            content_type.map(|value| value.to_str().expect("ASCII").to_owned()),
            String::from_utf8(body.to_vec()).expect("text"),
        )
    }

    async fn get(health: Health, path: &str) -> (u16, String) {
        let (status, _, text) = ask(health, None, path).await;
        (status, text)
    }

    fn health(ok: bool, beat: Instant) -> Health {
        let condition = |name: &str, ok| Condition {
            name: name.to_owned(),
            ok,
            message: "words".to_owned(),
        };
        Health {
            conditions: vec![condition("A", true), condition("B", ok)],
            beat,
        }
    }

    #[tokio::test]
    async fn ready_only_when_all_conditions_hold() {
        let now = Instant::now();
        assert_eq!(
            get(health(false, now), "/readyz").await,
            (503, "[+] A: words\n[-] B: words\n".to_owned())
        );
        assert_eq!(get(health(true, now), "/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn alive_while_the_loop_comes_round() {
        let now = Instant::now();
        assert_eq!(
            get(health(false, now), "/livez").await,
            (200, "ok\n".to_owned())
        );
        let long_ago = now.checked_sub(LONGEST_PAUSE).expect("uptime");
        assert_eq!(get(health(true, long_ago), "/livez").await.0, 503);
    }

    #[tokio::test]
    async fn metrics_once_there_is_something_to_scrape() {
        let starting = get(Health::starting(), "/metrics").await;
        assert_eq!(starting, (503, "the agent is starting\n".to_owned()));

        let (queries, mut asked) = mpsc::channel(1);
        let (_keep, health) = watch::channel(Health::starting());
        let scraper = Scraper::new(queries, health, FlowTables::default());
        tokio::spawn(async move {
            while let Some(Query::Metrics(reply)) = asked.recv().await {
                reply.send(Ok(Snapshot::default())).expect("asked for");
            }
        });
        let (status, content_type, text) = ask(Health::starting(), Some(scraper), "/metrics").await;
        assert_eq!(status, 200, "{text}");
        assert_eq!(content_type.as_deref(), Some(metrics::CONTENT_TYPE));
        assert!(
            text.contains("\nportcullis_ready ") && text.ends_with("\n# EOF\n"),
            "{text}"
        );
    }
}
