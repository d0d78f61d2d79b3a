//! An API whose every answer the test gives itself, request by request.
//!
//! It proves what is asked for, in which order, and what is made of the answers. It cannot prove that a
//! real API answers like that, nor anything about connections: no byte leaves the process.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::task::Poll;

use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::resource::Resource;

type Answer = Response<StreamBody<Frames>>;
type Frames = stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>;

/// See the module.
pub(super) struct FakeApi {
    requests: HashMap<&'static str, mpsc::UnboundedReceiver<Asked>>,
}

/// A request that waits for its answer.
pub(super) struct Asked {
    pub(super) resource: Resource,
    query: String,
    answer: oneshot::Sender<Answer>,
}

/// A watch that was answered; it ends when this is dropped.
pub(super) struct Watching(mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>);

impl FakeApi {
    /// The API and a client of it.
    pub(super) fn new() -> (Self, Client) {
        let mut requests = HashMap::new();
        let mut doors = HashMap::new();
        for resource in Resource::ALL {
            let (door, waiting) = mpsc::unbounded_channel();
            doors.insert(resource.path(), (resource, door));
            requests.insert(resource.path(), waiting);
        }
        let service = tower::service_fn(move |request: Request<Body>| {
            let (answer, answered) = oneshot::channel();
            let query = request.uri().query().unwrap_or_default().to_owned();
            let (resource, door) = &doors[request.uri().path()];
            let asked = door.send(Asked {
                resource: *resource,
                query,
                answer,
            });
            async move {
                match (asked, answered.await) {
                    (Ok(()), Ok(answer)) => Ok::<_, std::io::Error>(answer),
                    // The test has dropped the request: nobody is there.
                    _ => Err(std::io::ErrorKind::ConnectionRefused.into()),
                }
            }
        });
        (Self { requests }, Client::new(service, "default"))
    }

    /// The next request for this resource.
    pub(super) async fn next(&mut self, resource: Resource) -> Asked {
        self.next_of(&[resource]).await
    }

    /// The next request for one of these resources.
    pub(super) async fn next_of(&mut self, resources: &[Resource]) -> Asked {
        poll_fn(|context| {
            for resource in resources {
                let requests = self.requests.get_mut(resource.path());
                let requests = requests.expect("not given away");
                if let Poll::Ready(asked) = requests.poll_recv(context) {
                    return Poll::Ready(asked.expect("a follower"));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Answers the first list of this resource with `items` at version 10, and the watch from there.
    pub(super) async fn load(&mut self, resource: Resource, items: &[Value]) -> Watching {
        self.next(resource).await.list("10", items);
        let watch = self.next(resource).await;
        assert_eq!(watch.parameter("resourceVersion"), Some("10"));
        watch.watching()
    }

    /// From now on every list of this resource is complete with `items`, at a version after all others, and
    /// every watch silent.
    pub(super) fn leave_alone(&mut self, resource: Resource, items: Vec<Value>) {
        let mut requests = self
            .requests
            .remove(resource.path())
            .expect("not given away");
        tokio::spawn(async move {
            let mut watches = Vec::new();
            while let Some(asked) = requests.recv().await {
                if asked.is_watch() {
                    watches.push(asked.watching());
                } else {
                    asked.list("1000000", &items);
                }
            }
        });
    }
}

impl Asked {
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key == name).then_some(value)
        })
    }

    pub(super) fn is_watch(&self) -> bool {
        self.parameter("watch") == Some("true")
    }

    /// A complete list.
    pub(super) fn list(self, version: &str, items: &[Value]) {
        self.page(version, items, "");
    }

    /// A page of a list.
    pub(super) fn page(self, version: &str, items: &[Value], next: &str) {
        assert!(!self.is_watch(), "a watch is asked for: {}", self.query);
        let metadata = json!({"resourceVersion": version, "continue": next});
        let kind = format!("{}List", self.resource.kind());
        let list = json!({"kind": kind, "metadata": metadata, "items": items});
        self.ok(&list);
    }

    /// Something with the code of success.
    pub(super) fn ok(self, body: &Value) {
        self.answer(StatusCode::OK, once(body.to_string()));
    }

    /// Something other than what was asked for.
    pub(super) fn status(self, code: u16, reason: &str, message: &str) {
        self.refuse(&status(code, reason, message));
    }

    /// This `Status`.
    pub(super) fn refuse(self, status: &Value) {
        let code = status["code"]
            .as_u64()
            .and_then(|code| code.try_into().ok());
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        self.answer(code.expect("status code"), once(status.to_string()));
    }

    /// A watch under way.
    pub(super) fn watching(self) -> Watching {
        assert!(self.is_watch(), "a list is asked for: {}", self.query);
        assert_eq!(self.parameter("allowWatchBookmarks"), Some("true"));
        let (lines, mut waiting) = mpsc::unbounded_channel();
        let body = stream::poll_fn(move |context| waiting.poll_recv(context));
        self.answer(StatusCode::OK, Box::pin(body));
        Watching(lines)
    }

    fn answer(self, code: StatusCode, body: Frames) {
        let mut answer = Response::new(StreamBody::new(body));
        *answer.status_mut() = code;
        // Given up by who asked, as when the datastore has ended.
        let _unwanted = self.answer.send(answer);
    }
}

impl Watching {
    /// Sends an event of this type.
    pub(super) fn event(&self, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        self.bytes(&line);
    }

    /// Sends part of a line.
    pub(super) fn bytes(&self, text: &str) {
        let frame = Frame::data(Bytes::copy_from_slice(text.as_bytes()));
        self.0.send(Ok(frame)).expect("the watch is read");
    }

    /// Sends a bookmark.
    pub(super) fn bookmark(&self, version: &str) {
        self.event(
            "BOOKMARK",
            &json!({"metadata": {"resourceVersion": version}}),
        );
    }

    /// The connection breaks.
    pub(super) fn break_off(self) {
        let reset = std::io::ErrorKind::ConnectionReset.into();
        self.0.send(Err(reset)).expect("the watch is read");
    }
}

pub(super) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

fn once(text: String) -> Frames {
    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(text)));
    Box::pin(stream::iter([frame.map_err(|never| match never {})]))
}
