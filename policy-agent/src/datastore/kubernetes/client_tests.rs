use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::super::failure::{Failure, Kind, Verb};
use super::super::list::Selection;
use super::super::request::Collection;
use super::super::resource::Resource;
use super::*;
use crate::config::ApiSettings;

/// A certificate authority and the certificate of a server for these names.
struct Authority {
    pem: String,
    server: ServerConfig,
    /// The server's certificate, which does for a client as well, and its key, as PEM.
    identity: (String, String),
}

impl Authority {
    fn new(names: &[&str]) -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("certificate");
        let issuer = Issuer::new(params, key);
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("key");
        let server = CertificateParams::new(names)
            .and_then(|params| params.signed_by(&key, &issuer))
            .expect("certificate");
        let identity = (server.pem(), key.serialize_pem());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Self {
            pem: certificate.pem(),
            identity,
            server: ServerConfig::builder()
                .with_no_client_auth()
                .with_single_cert(vec![server.der().clone()], key)
                .expect("server"),
        }
    }
}

/// Answers every request with an empty list, or with 401 where the token is not `right` or there is no
/// request in it.
async fn answer(mut connection: impl AsyncRead + AsyncWrite + Unpin) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
        if request[0] != b'G' {
            break;
        }
    }
    let request = String::from_utf8_lossy(&request).to_lowercase();
    let (line, body) = if request.contains("authorization: bearer right\r\n") {
        (
            "200 OK",
            r#"{"kind": "NamespaceList", "metadata": {"resourceVersion": "1"}, "items": []}"#,
        )
    } else {
        (
            "401 Unauthorized",
            r#"{"kind": "Status", "code": 401, "message": "Unauthorized"}"#,
        )
    };
    let text = format!(
        "HTTP/1.1 {line}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _client_may_have_gone = connection.write_all(text.as_bytes()).await;
    let _closed = connection.shutdown().await;
}

/// A server on loopback, with TLS or without.
async fn serve(tls: Option<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    serve_on(listener, tls)
}

fn serve_on(listener: TcpListener, tls: Option<ServerConfig>) -> SocketAddr {
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            match &tls {
                None => answer(connection).await,
                Some(tls) => {
                    let accepted = TlsAcceptor::from(Arc::new(tls.clone())).accept(connection);
                    if let Ok(connection) = accepted.await {
                        answer(connection).await;
                    }
                }
            }
        }
    });
    address
}

fn write(directory: &TempDir, name: &str, text: &str) -> OsString {
    let path = directory.path().join(name);
    fs::write(&path, text).expect("write");
    path.into_os_string()
}

/// What a list of namespaces comes to with these settings.
async fn list(settings: &ApiSettings) -> Result<usize, Failure> {
    let config = settings.validate().expect("valid");
    list_with(&client(&config).expect("client")).await
}

async fn list_with(client: &Client) -> Result<usize, Failure> {
    let collection = Collection {
        client: client.clone(),
        resource: Resource::Namespaces,
        selection: Selection::default(),
    };
    let page = collection.list(1, None, &mut Vec::new()).await;
    page.map(|page| page.items.len())
        .map_err(|error| Failure::new(&error, Resource::Namespaces, Verb::List))
}

#[tokio::test]
async fn with_the_right_authority_and_token_the_api_is_read() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(&["localhost", "127.0.0.1"]);
    let address = serve(Some(authority.server)).await;
    let mut settings = ApiSettings {
        k8s_api_endpoint: Some(format!("https://{address}")),
        k8s_ca_file: Some(write(&directory, "ca", &authority.pem)),
        k8s_token: Some(SecretString::from("right")),
        ..ApiSettings::default()
    };
    assert_eq!(list(&settings).await, Ok(0));
    settings.k8s_token = Some(SecretString::from("wrong"));
    let failure = list(&settings).await.expect_err("401");
    assert_eq!(failure.kind, Kind::Unauthorized);
    assert!(
        failure.reason.contains("401 Unauthorized") && failure.reason.contains("K8S_TOKEN"),
        "{failure:?}"
    );
}

#[tokio::test]
async fn an_address_may_be_of_ipv6() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        println!("skipped: this machine has no IPv6");
        return;
    };
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(&["::1"]);
    let address = serve_on(listener, Some(authority.server));
    let settings = ApiSettings {
        k8s_api_endpoint: Some(format!("https://{address}")),
        k8s_ca_file: Some(write(&directory, "ca", &authority.pem)),
        k8s_token: Some(SecretString::from("right")),
        ..ApiSettings::default()
    };
    assert_eq!(list(&settings).await, Ok(0));
}

#[tokio::test]
async fn a_kubeconfig_may_say_which_name_the_certificate_has() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(&["kubernetes.default.svc"]);
    write(&directory, "ca", &authority.pem);
    let address = serve(Some(authority.server)).await;
    let settings = |name: &str| {
        let kubeconfig = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://{address}', certificate-authority: ca, \
             tls-server-name: {name}}}}}]\n\
             users: [{{name: u, user: {{token: right}}}}]\n"
        );
        ApiSettings {
            kubeconfig: Some(write(&directory, "config", &kubeconfig)),
            ..ApiSettings::default()
        }
    };
    assert_eq!(list(&settings("kubernetes.default.svc")).await, Ok(0));
    let failure = list(&settings("other")).await.expect_err("another name");
    assert_eq!(failure.kind, Kind::Tls);
}

#[tokio::test]
async fn a_token_file_may_end_with_a_line_feed() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let address = serve(None).await;
    write(&directory, "token", "right\n");
    let kubeconfig = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n"
    );
    let settings = ApiSettings {
        kubeconfig: Some(write(&directory, "config", &kubeconfig)),
        ..ApiSettings::default()
    };
    assert_eq!(list(&settings).await, Ok(0));
}

#[tokio::test]
async fn a_token_file_goes_before_a_token_while_it_can_be_read() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let address = serve(None).await;
    let settings = |token: &str| {
        let kubeconfig = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n\
             users: [{{name: u, user: {{tokenFile: token, token: {token}}}}}]\n"
        );
        ApiSettings {
            kubeconfig: Some(write(&directory, "config", &kubeconfig)),
            ..ApiSettings::default()
        }
    };
    assert_eq!(list(&settings("right")).await, Ok(0), "no such file");
    write(&directory, "token", "right");
    assert_eq!(list(&settings("wrong")).await, Ok(0));
    write(&directory, "token", "wrong");
    let failure = list(&settings("right")).await.expect_err("401");
    assert_eq!(failure.kind, Kind::Unauthorized);
}

#[tokio::test]
async fn a_renewed_client_certificate_is_picked_up_and_a_lost_one_kept() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let former = Authority::new(&["former"]);
    let authority = Authority::new(&["127.0.0.1"]);
    let mut clients = RootCertStore::empty();
    let (_, pem) = rustls::pki_types::pem::from_buf(&mut authority.pem.as_bytes())
        .expect("PEM")
        .expect("a certificate");
    clients.add(CertificateDer::from(pem)).expect("authority");
    let mut server = authority.server;
    let verifier = WebPkiClientVerifier::builder(clients.into()).build();
    server = ServerConfig::builder()
        .with_client_cert_verifier(verifier.expect("verifier"))
        .with_cert_resolver(server.cert_resolver.clone());
    let address = serve(Some(server)).await;
    let identity = |identity: &(String, String)| {
        (
            write(&directory, "client.pem", &identity.0),
            write(&directory, "client.key", &identity.1),
        )
    };
    let (certificate, key) = identity(&former.identity);
    let settings = ApiSettings {
        k8s_api_endpoint: Some(format!("https://{address}")),
        k8s_ca_file: Some(write(&directory, "ca", &authority.pem)),
        k8s_token: Some(SecretString::from("right")),
        k8s_cert_file: Some(certificate),
        k8s_key_file: Some(key),
        ..ApiSettings::default()
    };
    let client = client(&settings.validate().expect("valid")).expect("client");
    let failure = list_with(&client).await.expect_err("of another authority");
    assert_ne!(failure.kind, Kind::Answer, "{failure:?}");
    identity(&authority.identity);
    assert_eq!(list_with(&client).await, Ok(0));
    // The certificate is renewed and its key not yet, or both are gone for a moment.
    write(&directory, "client.pem", &former.identity.0);
    assert_eq!(list_with(&client).await, Ok(0));
    drop(directory);
    assert_eq!(list_with(&client).await, Ok(0));
}

#[tokio::test]
async fn what_keeps_a_connection_from_coming_about_is_said_with_what_to_do() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let authority = Authority::new(&["kubernetes.default.svc"]);
    let ca = write(&directory, "ca", &authority.pem);
    let other_ca = write(&directory, "other", &Authority::new(&["x"]).pem);
    let tls = serve(Some(authority.server)).await;
    let plain = serve(None).await;
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        listener.local_addr().expect("address")
    };
    let rows: [(String, &OsString, Kind, &[&str]); 5] = [
        (
            format!("https://{nobody}"),
            &ca,
            Kind::Connection,
            &["connection refused", "K8S_API_ENDPOINT or KUBECONFIG"],
        ),
        (
            "https://no-such-host.invalid:6443".to_owned(),
            &ca,
            Kind::Connection,
            &["host name", "cannot be resolved", "DNS"],
        ),
        (
            format!("https://{tls}"),
            &other_ca,
            Kind::Tls,
            &["not from the certificate authority", "K8S_CA_FILE"],
        ),
        (
            format!("https://{tls}"),
            &ca,
            Kind::Tls,
            &["for another name", "tls-server-name"],
        ),
        (
            format!("https://{plain}"),
            &ca,
            Kind::Tls,
            &["does not speak TLS"],
        ),
    ];
    for (url, ca, kind, words) in rows {
        let settings = ApiSettings {
            k8s_api_endpoint: Some(url),
            k8s_ca_file: Some(ca.clone()),
            ..ApiSettings::default()
        };
        let failure = list(&settings).await.expect_err("no connection");
        assert_eq!(failure.kind, kind, "{failure:?}");
        for word in words {
            assert!(failure.reason.contains(word), "{word}: {failure:?}");
        }
    }
}

#[test]
fn a_renewed_token_is_picked_up_and_a_lost_one_kept() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let write = |text: &str| fs::write(file.path(), text).expect("write");
    let sent = |tokens: &mut TokenFile| {
        let request = tokens.check(Request::new(())).expect("request");
        request.headers()[AUTHORIZATION].clone()
    };
    let age = |tokens: &mut TokenFile| {
        tokens.read_at = Instant::now()
            .checked_sub(TOKEN_AGE + Duration::from_secs(1))
            .expect("the machine is up for longer");
    };
    write("one\n");
    let mut tokens = TokenFile::new(file.path().to_owned()).expect("readable");
    assert_eq!(sent(&mut tokens), "Bearer one");
    write("two");
    assert_eq!(sent(&mut tokens), "Bearer one");
    age(&mut tokens);
    assert_eq!(sent(&mut tokens), "Bearer two");
    write("");
    age(&mut tokens);
    assert_eq!(sent(&mut tokens), "Bearer two");
    assert!(TokenFile::new(Path::new("/absent").to_owned()).is_err());
}
