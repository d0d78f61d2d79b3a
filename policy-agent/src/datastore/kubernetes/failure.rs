//! Why the API cannot be read, in words that say what to do.

use std::error::Error;
use std::io;

use rustls::CertificateError;

use super::request::RequestError;
use super::resource::Resource;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    Watch,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Watch => "watch",
        }
    }
}

/// What kind of failure it is; a new kind is worth a new log line, a new wording is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No connection, or none that lasts.
    Connection,
    /// TLS does not come about.
    Tls,
    /// The API does not accept who we are.
    Unauthorized,
    /// The API does not let us read this resource.
    Forbidden,
    /// The API is there but does not serve.
    Unavailable,
    /// The API answered with something else.
    Answer,
}

impl Kind {
    /// All of them; the position is also that in arrays by kind.
    pub(super) const ALL: [Self; 6] = [
        Self::Connection,
        Self::Tls,
        Self::Unauthorized,
        Self::Forbidden,
        Self::Unavailable,
        Self::Answer,
    ];

    /// Its name as a metric's label.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Tls => "tls",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Unavailable => "unavailable",
            Self::Answer => "answer",
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub kind: Kind,
    /// What was tried.
    pub verb: Verb,
    /// Why, and what to do.
    pub reason: String,
}

impl Failure {
    /// Whether it concerns the whole API rather than one resource.
    pub(super) fn is_of_the_api(&self) -> bool {
        !matches!(self.kind, Kind::Forbidden | Kind::Answer)
    }

    /// Puts `error` into words.
    pub(super) fn new(error: &RequestError, resource: Resource, verb: Verb) -> Self {
        let (kind, reason) = match error.status() {
            Some(status) => of_status(status, resource, verb),
            None => match error {
                RequestError::Timeout(_) | RequestError::Quiet(_) => (
                    Kind::Connection,
                    format!("{error}; is the API server overloaded, or a firewall in between?"),
                ),
                RequestError::Broken(_) | RequestError::Ended => {
                    (Kind::Connection, error.to_string())
                }
                RequestError::Undecodable(_) => (
                    Kind::Answer,
                    format!(
                        "{} {}: {error}; is the URL that of a Kubernetes API?",
                        verb.name(),
                        resource.name()
                    ),
                ),
                RequestError::Kube(error) => of_connection(error),
                RequestError::Event(status) => of_status(status, resource, verb),
            },
        };
        Self { kind, verb, reason }
    }
}

fn of_status(status: &kube::core::Status, resource: Resource, verb: Verb) -> (Kind, String) {
    let said = match status.message.trim() {
        "" => status.reason.as_str(),
        message => message,
    };
    let code = status.code;
    match code {
        401 => (
            Kind::Unauthorized,
            format!(
                "the API does not accept the credentials (401 Unauthorized: {said}): the token or client certificate \
                 is wrong or has expired; check K8S_TOKEN, K8S_CERT_FILE or the user in KUBECONFIG"
            ),
        ),
        403 => (
            Kind::Forbidden,
            format!(
                "not allowed to {verb} {name} (403 Forbidden: {said}): the ClusterRole needs the verb {verb:?} on \
                 {name:?} of the API group {group:?}, and a ClusterRoleBinding to this identity",
                verb = verb.name(),
                name = resource.name(),
                group = resource.group(),
            ),
        ),
        400 if said.contains("HTTP request to an HTTPS server") => (
            Kind::Tls,
            "the API wants TLS (400: Client sent an HTTP request to an HTTPS server): use an https URL in \
             K8S_API_ENDPOINT or KUBECONFIG"
                .to_owned(),
        ),
        429 | 500..=599 => (
            Kind::Unavailable,
            format!("the API does not serve at the moment ({code} {said})"),
        ),
        _ => (
            Kind::Answer,
            format!("{} {}: {code} {said}", verb.name(), resource.name()),
        ),
    }
}

/// From the error's causes: the innermost that is known says what to do.
fn of_connection(error: &kube::Error) -> (Kind, String) {
    let mut words = Vec::new();
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(known) = known_cause(error) {
            return known;
        }
        let text = error.to_string();
        if text == "dns error" || text.contains("failed to lookup address") {
            return (
                Kind::Connection,
                "the host name in the API's URL cannot be resolved; is it right, and does this node's DNS work?"
                    .to_owned(),
            );
        }
        words.push(text);
        cause = error.source();
    }
    // Each wrapper repeats what is in it or adds nothing; the innermost says most.
    (Kind::Connection, words.pop().unwrap_or_default())
}

/// What `error` is by itself, if that says what to do.
fn known_cause(error: &(dyn Error + 'static)) -> Option<(Kind, String)> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some((Kind::Tls, of_tls(error)));
    }
    let error = error.downcast_ref::<io::Error>()?;
    // What is wrapped in an io::Error is not among its sources.
    let inner = error.get_ref().and_then(|inner| known_cause(inner));
    inner.or_else(|| of_io(error.kind()).map(|reason| (Kind::Connection, reason.to_owned())))
}

fn of_io(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::ConnectionRefused => Some(
            "connection refused: nothing listens there; is the API server running, and is the address in \
             K8S_API_ENDPOINT or KUBECONFIG right?",
        ),
        io::ErrorKind::TimedOut => Some(
            "no answer in time; is the address in K8S_API_ENDPOINT or KUBECONFIG right, and does a firewall let \
             this node through?",
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Some("no route to the API's address; is this node's network up?")
        }
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Some("the API's side closed the connection"),
        _ => None,
    }
}

fn of_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "the API's certificate is not from the certificate authority that was given ({error}): set \
                 K8S_CA_FILE, or certificate-authority in KUBECONFIG, to this cluster's CA"
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!(
                    "the API's certificate is for another name ({error}): use a name or address that it has in \
                     K8S_API_ENDPOINT, or tls-server-name in KUBECONFIG"
                )
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => format!(
                "the API's certificate is not valid now ({error}): renew it, or set this node's clock"
            ),
            other => format!("the API's certificate cannot be accepted: {other}"),
        },
        rustls::Error::InvalidMessage(_) => {
            "what answers does not speak TLS: is the URL in K8S_API_ENDPOINT or KUBECONFIG right, and not one for http?"
                .to_owned()
        }
        rustls::Error::AlertReceived(alert) => format!(
            "the API refuses the TLS connection ({alert:?}): is the client certificate (K8S_CERT_FILE, \
             client-certificate) right and not expired?"
        ),
        other => format!("TLS: {other}"),
    }
}
