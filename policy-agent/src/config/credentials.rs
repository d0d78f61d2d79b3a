//! URLs, tokens, certificates and keys, as the settings name them: what is wrong with one, in words.

use std::fs;
use std::path::Path;

use http::Uri;
use http::uri::Scheme;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::ConfigError;

/// An http or https URL.
pub(super) fn parse_url(variable: &'static str, given: &str) -> Result<Uri, ConfigError> {
    url(given).map_err(|why| ConfigError::Malformed {
        variable,
        value: given.to_owned(),
        why,
    })
}

/// An http or https URL, or what is wrong with it.
pub(super) fn url(given: &str) -> Result<Uri, String> {
    let no_url = || "not a URL such as https://10.0.0.1:6443".to_owned();
    let uri: Uri = given.parse().map_err(|_| no_url())?;
    if uri.scheme() != Some(&Scheme::HTTPS) && uri.scheme() != Some(&Scheme::HTTP) {
        return Err(format!("{}: it needs https:// (or http://)", no_url()));
    }
    let authority = uri
        .authority()
        .filter(|authority| !authority.host().is_empty())
        .ok_or_else(no_url)?;
    if authority.as_str().contains('@') {
        return Err("a user in the URL is not supported; use K8S_TOKEN".to_owned());
    }
    let has_port = authority.as_str().len() > authority.host().len();
    if has_port && authority.port_u16().is_none_or(|port| port == 0) {
        return Err("the port is not between 1 and 65535".to_owned());
    }
    if uri.query().is_some() {
        return Err("a query ('?') has no meaning in the API's URL".to_owned());
    }
    Ok(uri)
}

/// What a token is not allowed to hold. The token itself is never said.
pub(super) fn check_token(place: &'static str, token: &str) -> Result<(), ConfigError> {
    let why = if token.chars().any(char::is_whitespace) {
        "has whitespace in it (often the line feed at the end of a file); give the bare token"
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        "has characters in it that no token has; give the bare token"
    } else {
        return Ok(());
    };
    Err(ConfigError::BadToken { place, why })
}

/// The certificates in a PEM file, at least one, as DER.
pub(super) fn certificates(
    variable: &'static str,
    path: &Path,
) -> Result<Vec<Vec<u8>>, ConfigError> {
    let bytes = read(variable, path)?;
    let certificates: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&bytes)
        .map(|certificate| certificate.map(|certificate| certificate.to_vec()))
        .collect();
    let why = match certificates {
        Ok(certificates) if !certificates.is_empty() => return Ok(certificates),
        Ok(_) => "holds no certificate; it must be PEM with BEGIN CERTIFICATE".to_owned(),
        Err(error) => format!("is not valid PEM: {}", explain_pem(&error)),
    };
    Err(bad(variable, path, why))
}

/// Whether a PEM file holds a private key.
pub(super) fn private_key(variable: &'static str, path: &Path) -> Result<(), ConfigError> {
    let bytes = read(variable, path)?;
    let why = match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(_) => return Ok(()),
        Err(pem::Error::NoItemsFound) => {
            "holds no private key; it must be PEM with BEGIN PRIVATE KEY (or RSA or EC PRIVATE KEY), not encrypted"
                .to_owned()
        }
        Err(error) => format!("is not valid PEM: {}", explain_pem(&error)),
    };
    Err(bad(variable, path, why))
}

/// What is wrong with a configuration that no client can be made of.
pub(super) fn explain(error: &kube::Error) -> String {
    use kube::client::RustlsTlsError as Tls;
    let kube::Error::RustlsTls(tls) = error else {
        return deepest(error);
    };
    match tls {
        Tls::InvalidPrivateKey(rustls::Error::InconsistentKeys(_)) => {
            "the private key (K8S_KEY_FILE, client-key) does not belong to the client certificate (K8S_CERT_FILE, \
             client-certificate)"
                .to_owned()
        }
        Tls::InvalidPrivateKey(error) => {
            format!(
                "the private key (K8S_KEY_FILE, client-key) or the client certificate cannot be used: {error}"
            )
        }
        Tls::AddRootCertificate(error) => format!(
            "no usable certificate authority for the API ({error}); set K8S_CA_FILE (certificate-authority in a \
             kubeconfig) to the cluster's CA"
        ),
        other => deepest(other),
    }
}

/// An error's own words and those of its causes that it does not repeat.
fn deepest(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

fn explain_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "it has a BEGIN line but no END line".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "its BEGIN line is damaged".to_owned(),
        pem::Error::Base64Decode(_) => "what is between BEGIN and END is not base64".to_owned(),
        other => other.to_string(),
    }
}

/// A file's content.
pub(super) fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|error| bad(variable, path, unreadable(&error)))
}

/// Why a file cannot be read.
pub(super) fn unreadable(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn bad(variable: &'static str, path: &Path, why: String) -> ConfigError {
    ConfigError::BadFile {
        variable,
        path: path.to_owned(),
        why,
    }
}
