//! A client for the API: connections that notice when the other side is gone, and tokens and client
//! certificates that are read again when they are renewed.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ConfigExt as _};
use kube::config::AuthInfo;
use tower::filter::{FilterLayer, Predicate};
use tower::{BoxError, Service, ServiceBuilder};

use super::identity::IdentityFiles;
use crate::config::{ApiConfig, ConfigError};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A connection on which nothing came for this long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How often, and how many times, before it counts as dead.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;

/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// How long a connection is kept for the next request. Short, since requests are few, and one that was
/// opened with a certificate that has expired must not be kept alive by tries with it.
const IDLE: Duration = Duration::from_secs(5);

/// How old a token read from a file may be.
const TOKEN_AGE: Duration = Duration::from_secs(10);

/// A client for the API of this configuration; must be called within a tokio runtime.
///
/// # Errors
///
/// When none can be made of it. That the API cannot be reached is none: requests say so.
pub fn client(config: &ApiConfig) -> Result<Client, ConfigError> {
    let mut kube = config.kube().clone();
    let token_file = take_token_file(&mut kube.auth_info)
        .map(TokenFile::new)
        .transpose()
        .map_err(|why| config.unusable(why))?;
    let unusable = |error: kube::Error| config.unusable_client(&error);
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    if kube.cluster_url.scheme_str() == Some("https") {
        let tls = tls(config, &kube, tcp)?;
        stack(&kube, token_file, tls).map_err(unusable)
    } else {
        stack(&kube, token_file, tcp).map_err(unusable)
    }
}

/// TLS over `tcp`, as kube does it but for a client certificate that is in files.
fn tls(
    config: &ApiConfig,
    kube: &kube::Config,
    tcp: HttpConnector,
) -> Result<HttpsConnector<HttpConnector>, ConfigError> {
    let mut tls = kube
        .rustls_client_config()
        .map_err(|error| config.unusable_client(&error))?;
    let identity = IdentityFiles::of(&kube.auth_info).map_err(|why| config.unusable(why))?;
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = Arc::new(identity);
    }
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only();
    if let Some(name) = &kube.tls_server_name {
        let name = name.clone().try_into();
        let name = name.map_err(|_| config.unusable("tls-server-name is no name".to_owned()))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(builder.enable_http1().wrap_connector(tcp))
}

/// Everything that a request goes through on its way to `connector`'s connections.
fn stack<C>(
    kube: &kube::Config,
    token_file: Option<TokenFile>,
    connector: C,
) -> kube::Result<Client>
where
    C: Connect + Service<Uri> + Clone + Send + Sync + 'static,
{
    let connections: legacy::Client<C, Body> = legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(kube.base_uri_layer())
        .option_layer(kube.auth_layer()?)
        .option_layer(token_file.map(FilterLayer::new))
        .layer(kube.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(Client::new(service, kube.default_namespace.clone()))
}

/// The token file, where it is what counts. As with kubectl it goes before a token that stands beside it
/// (<https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>).
fn take_token_file(auth: &mut AuthInfo) -> Option<PathBuf> {
    let goes_before =
        auth.auth_provider.is_some() || (auth.username.is_some() && auth.password.is_some());
    if goes_before {
        return None;
    }
    let file = PathBuf::from(auth.token_file.take()?);
    if auth.token.is_some() && read_token(&file).is_err() {
        return None;
    }
    auth.token = None;
    auth.exec = None;
    Some(file)
}

/// Gives each request the token that is in a file, and reads the file again as it gets old: kubelet
/// and others renew it in place. Unlike kube's own, it takes no line feed at the end for a part of
/// the token, and it notices a new token sooner.
#[derive(Clone, Debug)]
struct TokenFile {
    path: PathBuf,
    header: HeaderValue,
    read_at: Instant,
}

impl TokenFile {
    fn new(path: PathBuf) -> Result<Self, String> {
        Ok(Self {
            header: read_token(&path)
                .map_err(|why| format!("token file {}: {why}", path.display()))?,
            path,
            read_at: Instant::now(),
        })
    }
}

impl<B> Predicate<Request<B>> for TokenFile {
    type Request = Request<B>;

    fn check(&mut self, mut request: Request<B>) -> Result<Request<B>, BoxError> {
        if self.read_at.elapsed() > TOKEN_AGE {
            self.read_at = Instant::now();
            match read_token(&self.path) {
                Ok(header) => self.header = header,
                // The last one may still do; if not, the API says so.
                Err(error) => {
                    tracing::debug!(path = %self.path.display(), error, "token cannot be read again");
                }
            }
        }
        request
            .headers_mut()
            .insert(AUTHORIZATION, self.header.clone());
        Ok(request)
    }
}

fn read_token(path: &std::path::Path) -> Result<HeaderValue, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    let token = text.trim();
    if token.is_empty() {
        return Err("is empty".to_owned());
    }
    let mut header = HeaderValue::try_from(format!("Bearer {token}"))
        .map_err(|_| "has characters in it that no token has".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
