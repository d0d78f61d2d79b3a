//! Requests that fail, as the API's `Status` objects.

use serde_json::{Value, json};

use super::Resource;

/// Why a request failed; the answer is a `Status` that says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code}): {message}")]
pub struct Failure {
    /// HTTP's code.
    pub code: u16,
    /// The API's word for it, such as `NotFound`.
    pub reason: &'static str,
    /// More, for people.
    pub message: String,
}

impl Failure {
    pub(super) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            reason,
            message,
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn forbidden(resource: Resource, verb: &str) -> Self {
        let (plural, group) = (resource.plural(), resource.group());
        Self::new(
            403,
            "Forbidden",
            format!(
                "{plural}{dot}{group} is forbidden: User \"portcullis\" cannot {verb} resource \"{plural}\" in API \
                 group \"{group}\" at the cluster scope",
                dot = if group.is_empty() { "" } else { "." },
            ),
        )
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let named = Self::named(resource, name);
        Self::new(404, "NotFound", format!("{named} not found"))
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub(super) fn already_exists(resource: Resource, name: &str) -> Self {
        let named = Self::named(resource, name);
        Self::new(409, "AlreadyExists", format!("{named} already exists"))
    }

    pub(super) fn conflict(resource: Resource, name: &str) -> Self {
        let named = Self::named(resource, name);
        Self::new(
            409,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {named}: the object has been modified; please apply your \
                 changes to the latest version and try again"
            ),
        )
    }

    pub(super) fn version_too_old(asked: u64, oldest: u64) -> Self {
        Self::new(
            410,
            "Expired",
            format!("too old resource version: {asked} ({oldest})"),
        )
    }

    pub(super) fn continue_too_old() -> Self {
        Self::new(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result.",
        )
    }

    pub(super) fn unsupported_patch() -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            "the body of the request was in an unknown format - accepted media types include: \
             application/merge-patch+json",
        )
    }

    pub(super) fn invalid(resource: Resource, name: &str, message: &str) -> Self {
        let kind = resource.kind();
        Self::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {message}"),
        )
    }

    pub(super) fn version_too_large(asked: u64, current: u64) -> Self {
        Self::new(
            504,
            "Timeout",
            format!("Too large resource version: {asked}, current: {current}"),
        )
    }

    /// The answer that a server gives which refuses everybody.
    pub(super) fn refused(code: u16) -> Self {
        let (reason, message) = match code {
            429 => (
                "TooManyRequests",
                "the server has received too many requests and has asked us to try again later",
            ),
            503 => (
                "ServiceUnavailable",
                "the server is currently unable to handle the request",
            ),
            _ => (
                "InternalError",
                "an error on the server has prevented the request from succeeding",
            ),
        };
        Self::new(code, reason, message)
    }

    fn named(resource: Resource, name: &str) -> String {
        let dot = if resource.group().is_empty() { "" } else { "." };
        format!("{resource}{dot}{} \"{name}\"", resource.group())
    }

    /// The `Status` object.
    #[must_use]
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        })
    }
}
