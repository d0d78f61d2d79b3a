//! A client certificate and its key in files, which kubelet and others renew in place.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use kube::config::AuthInfo;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Reads the files anew for every connection, of which there are few. While they cannot be used, as
/// between the writing of the one and of the other, the last good pair is.
#[derive(Debug)]
pub(super) struct IdentityFiles {
    certificate: PathBuf,
    key: PathBuf,
    last: RwLock<Arc<CertifiedKey>>,
}

impl IdentityFiles {
    /// Those that `auth` names, where files are what counts in it.
    ///
    /// # Errors
    ///
    /// When they cannot be used.
    pub(super) fn of(auth: &AuthInfo) -> Result<Option<Self>, String> {
        let is_given_otherwise = auth.exec.is_some()
            || auth.client_certificate_data.is_some()
            || auth.client_key_data.is_some();
        let (Some(certificate), Some(key), false) = (
            &auth.client_certificate,
            &auth.client_key,
            is_given_otherwise,
        ) else {
            return Ok(None);
        };
        let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
        let last = read(&certificate, &key)
            .map_err(|why| format!("client certificate {}: {why}", certificate.display()))?;
        Ok(Some(Self {
            certificate,
            key,
            last: RwLock::new(last),
        }))
    }

    fn current(&self) -> Arc<CertifiedKey> {
        match read(&self.certificate, &self.key) {
            Ok(read) => {
                *self.last.write().unwrap_or_else(PoisonError::into_inner) = read.clone();
                read
            }
            // The last one may still do; if not, the API says so.
            Err(error) => {
                tracing::debug!(path = %self.certificate.display(), error, "client certificate cannot be read again");
                let last = self.last.read().unwrap_or_else(PoisonError::into_inner);
                last.clone()
            }
        }
    }
}

impl ResolvesClientCert for IdentityFiles {
    fn resolve(
        &self,
        _issuers: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let current = self.current();
        current
            .key
            .choose_scheme(schemes)
            .is_some()
            .then_some(current)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn read(certificate: &PathBuf, key: &PathBuf) -> Result<Arc<CertifiedKey>, String> {
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| error.to_string())?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|error| error.to_string())
}
