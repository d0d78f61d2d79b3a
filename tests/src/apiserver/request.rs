//! One request: who may, what is asked for, and the answer.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Response, StatusCode, http::request::Parts};
use serde_json::{Value, json};

use super::list;
use super::object::Key;
use super::path::{Place, Target};
use super::query::Query;
use super::shared::Shared;
use super::store::Part;
use super::watcher::{self, Watcher};
use super::{Failure, Gone, Resource};

/// The body of an answer; an error in it cuts the connection.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers a request, which needs no token from a client with a certificate.
pub(super) async fn answer(
    shared: Arc<Shared>,
    is_certified: bool,
    request: hyper::Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let place = Place::of(parts.uri.path());
    let result = async {
        admit(&shared, is_certified, &parts, place.as_ref())?;
        let body = body.collect().await;
        let body = body.map_err(|error| Failure::bad_request(error.to_string()))?;
        match place {
            Some(Place::Object(target)) => on_resource(&shared, &parts, &target, &body.to_bytes()),
            Some(Place::Fixed(value)) => Ok(json_response(200, value.to_string())),
            Some(Place::Health) => Ok(response(200, "text/plain", full("ok"))),
            None => Err(Failure::no_such_path()),
        }
    };
    let resource = match Place::of(parts.uri.path()) {
        Some(Place::Object(target)) => Some(target.resource),
        _ => None,
    };
    Ok(result.await.unwrap_or_else(|failure| {
        if let Some(resource) = resource {
            shared.count(resource, |served| served.refused += 1);
        }
        refusal(&failure)
    }))
}

/// Whether the server deals with this request at all.
fn admit(
    shared: &Shared,
    is_certified: bool,
    parts: &Parts,
    place: Option<&Place>,
) -> Result<(), Failure> {
    let treatment = shared.treatment().clone();
    if let Some(code) = treatment.refusal {
        return Err(Failure::refused(code));
    }
    let given = parts.headers.get(AUTHORIZATION);
    let given = given.map(|value| value.to_str().unwrap_or_default());
    let accepted = treatment.token.map(|token| format!("Bearer {token}"));
    let is_known = is_certified || (given.is_some() && given == accepted.as_deref());
    let is_public = given.is_none() && matches!(place, Some(Place::Fixed(_) | Place::Health));
    if !is_known && !is_public {
        return Err(Failure::unauthorized());
    }
    match place {
        Some(Place::Object(target)) if treatment.forbidden.contains(&target.resource) => {
            let verb = parts.method.as_str().to_lowercase();
            Err(Failure::forbidden(target.resource, &verb))
        }
        _ => Ok(()),
    }
}

fn on_resource(
    shared: &Arc<Shared>,
    parts: &Parts,
    target: &Target,
    body: &[u8],
) -> Result<Response<Body>, Failure> {
    let resource = target.resource;
    if target.name.is_empty() {
        return match parts.method {
            Method::GET => {
                let query = Query::parse(parts.uri.query().unwrap_or_default())?;
                if query.watch {
                    watch(shared, target, &query)
                } else {
                    let list = list::list(shared, target, &query)?;
                    Ok(json_response(200, list))
                }
            }
            Method::POST => create(shared, target, parse(body)?),
            _ => Err(Failure::method_not_allowed()),
        };
    }
    let key: Key = (target.namespace.clone(), target.name.clone());
    let part = if target.status {
        Part::Status
    } else {
        Part::Main
    };
    let object = match parts.method {
        Method::GET => shared.store().get(resource, &key)?,
        Method::PUT => {
            let value = placed(target, parse(body)?)?;
            shared.change(|store| store.replace(resource, value, part))?
        }
        Method::PATCH => {
            let kind = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
            if kind != Some(b"application/merge-patch+json") {
                return Err(Failure::unsupported_patch());
            }
            let patch = parse(body)?;
            shared.change(|store| store.patch(resource, &key, &patch, part))?
        }
        Method::DELETE if !target.status => shared.change(|store| store.delete(resource, &key))?,
        _ => return Err(Failure::method_not_allowed()),
    };
    Ok(json_response(200, object.json().clone()))
}

fn create(shared: &Shared, target: &Target, value: Value) -> Result<Response<Body>, Failure> {
    let mut value = placed(target, value)?;
    if value.pointer("/metadata/resourceVersion").is_some() {
        return Err(Failure::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    if let Value::Object(metadata) = &mut value["metadata"] {
        metadata.remove("uid");
        metadata.remove("creationTimestamp");
    }
    if target.resource == Resource::Pods {
        value["status"] = json!({"phase": "Pending"});
    }
    let object = shared.change(|store| store.create(target.resource, value))?;
    Ok(json_response(201, object.json().clone()))
}

/// `value`, with its kind and namespace as the path has them; what says otherwise is an error.
fn placed(target: &Target, mut value: Value) -> Result<Value, Failure> {
    let resource = target.resource;
    let mut settle = |pointer: &str, field: &str, wanted: &str| {
        let holder = value.pointer_mut(pointer);
        let Some(Value::Object(holder)) = holder else {
            return Err(Failure::bad_request(
                "not an object of the API, which has metadata",
            ));
        };
        let stated = holder.entry(field).or_insert_with(|| json!(wanted));
        if stated == wanted || wanted.is_empty() {
            return Ok(());
        }
        Err(Failure::bad_request(format!(
            "the object's {field} is {stated}, the request's {wanted:?}"
        )))
    };
    settle("", "apiVersion", resource.api_version())?;
    settle("", "kind", resource.kind())?;
    if resource.is_namespaced() {
        settle("/metadata", "namespace", &target.namespace)?;
    }
    settle("/metadata", "name", &target.name)?;
    Ok(value)
}

fn watch(shared: &Arc<Shared>, target: &Target, query: &Query) -> Result<Response<Body>, Failure> {
    let resource = target.resource;
    let from = query.version()?.filter(|version| *version > 0);
    let request = watcher::Request {
        resource,
        filter: query.filter(target)?,
        from,
        initial: query.send_initial.unwrap_or(from.is_none()),
        mark_initial: query.send_initial == Some(true) && query.bookmarks,
        bookmarks: query.bookmarks,
        timeout: query.timeout.map(Duration::from_secs),
    };
    match Watcher::begin(shared, request) {
        Ok(watcher) => {
            let body = StreamBody::new(watcher.into_frames());
            Ok(response(200, "application/json", body.boxed_unsync()))
        }
        Err(failure) if failure.code == 410 && shared.treatment().gone == Gone::Event => {
            shared.count(resource, |served| served.refused += 1);
            Ok(json_response(200, watcher::error_line(&failure)))
        }
        Err(failure) => Err(failure),
    }
}

fn parse(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::bad_request(error.to_string()))
}

fn refusal(failure: &Failure) -> Response<Body> {
    let mut response = json_response(failure.code, failure.status().to_string());
    if failure.code == 429 {
        let headers = response.headers_mut();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn json_response(code: u16, body: impl Into<Bytes>) -> Response<Body> {
    response(code, "application/json", full(body))
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn response(code: u16, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
