//! How to reach the Kubernetes API: explicit settings over KUBECONFIG over what a cluster gives to
//! the pods in it.
//!
//! Everything that can be checked without the network is checked here, so that a client made from an
//! [`ApiConfig`] fails for reasons of the network or of the API only.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use kube::client::ConfigExt as _;
use secrecy::{ExposeSecret as _, SecretString};

use super::ConfigError;
use super::credentials::{self, check_token, parse_url};
use super::in_cluster::Surroundings;
use super::kubeconfig;

/// How to reach the Kubernetes API, as given. An empty value is none.
#[derive(Args, Clone, Debug, Default)]
pub struct ApiSettings {
    /// Path of a kubeconfig, or of several with ':' between, for `kubernetes`
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<OsString>,

    /// URL of the Kubernetes API, such as https://10.0.0.1:6443
    #[arg(long, env = "K8S_API_ENDPOINT", value_name = "URL")]
    pub k8s_api_endpoint: Option<String>,

    /// Client certificate for the API, PEM
    #[arg(long, env = "K8S_CERT_FILE", value_name = "FILE")]
    pub k8s_cert_file: Option<OsString>,

    /// Private key of the client certificate, PEM
    #[arg(long, env = "K8S_KEY_FILE", value_name = "FILE")]
    pub k8s_key_file: Option<OsString>,

    /// Certificates of the authorities that the API's own certificate is checked against, PEM
    #[arg(long, env = "K8S_CA_FILE", value_name = "FILE")]
    pub k8s_ca_file: Option<OsString>,

    /// Bearer token for the API; a flag's value is seen by everybody on this machine, a variable's is not
    #[arg(
        long,
        env = "K8S_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        value_parser = |given: &str| Ok::<_, std::convert::Infallible>(SecretString::from(given))
    )]
    pub k8s_token: Option<SecretString>,
}

/// Where the API is and who we are there.
#[derive(Clone)]
pub struct ApiConfig {
    kube: kube::Config,
    origin: String,
    warnings: Vec<String>,
}

impl fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source())
    }
}

impl ApiConfig {
    /// The API's URL.
    #[must_use]
    pub fn url(&self) -> String {
        self.kube
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned()
    }

    /// The API's URL and which setting names it, in words.
    #[must_use]
    pub fn source(&self) -> String {
        format!("Kubernetes API {} ({})", self.url(), self.origin)
    }

    /// What is allowed but unwise, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// That no client can be made of this.
    pub(crate) fn unusable(&self, why: String) -> ConfigError {
        ConfigError::UnusableApi {
            origin: self.origin.clone(),
            why,
        }
    }

    /// That kube can make no client of this.
    pub(crate) fn unusable_client(&self, error: &kube::Error) -> ConfigError {
        self.unusable(credentials::explain(error))
    }

    /// The same in kube's terms.
    #[must_use]
    pub fn kube(&self) -> &kube::Config {
        &self.kube
    }
}

impl ApiSettings {
    /// Where the API is and who we are there.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be taken, or that there is no API to be found.
    pub fn validate(&self) -> Result<ApiConfig, ConfigError> {
        self.resolve(&Surroundings::of_process())
    }

    /// With the kubeconfig in the home directory, as kubectl takes it, where nothing else names an API. Only
    /// for tools that people run: an agent is told where its API is.
    #[must_use]
    pub fn or_kubeconfig_of(mut self, home: Option<&Path>) -> Self {
        let is_named = path(self.kubeconfig.as_ref()).is_some()
            || self
                .k8s_api_endpoint
                .as_ref()
                .is_some_and(|given| !given.is_empty());
        if let (false, Some(home)) = (is_named, home) {
            let file = home.join(".kube/config");
            self.kubeconfig = file.exists().then(|| file.into_os_string());
        }
        self
    }

    pub(super) fn resolve(&self, surroundings: &Surroundings) -> Result<ApiConfig, ConfigError> {
        let endpoint = self
            .k8s_api_endpoint
            .as_deref()
            .filter(|given| !given.is_empty())
            .map(|given| parse_url("K8S_API_ENDPOINT", given))
            .transpose()?;
        let mut warnings = Vec::new();
        let (mut config, mut origin) = match &path(self.kubeconfig.as_ref()) {
            Some(paths) => kubeconfig::load(paths, surroundings, &mut warnings)?,
            None => match (surroundings.in_cluster(), &endpoint) {
                (Some(Ok(config)), _) => (config, "in-cluster".to_owned()),
                // Its own parts are all that there is then.
                (Some(Err(_)) | None, Some(endpoint)) => {
                    (kube::Config::new(endpoint.clone()), String::new())
                }
                (Some(Err(error)), None) => return Err(error),
                (None, None) => return Err(ConfigError::NoApi),
            },
        };
        if let Some(endpoint) = endpoint {
            config.cluster_url = endpoint;
            "K8S_API_ENDPOINT".clone_into(&mut origin);
        }
        self.override_credentials(&mut config)?;
        check(&config, &origin)?;
        warnings.extend(unwise(&config));
        Ok(ApiConfig {
            kube: config,
            origin,
            warnings,
        })
    }

    /// Puts each explicit credential in the place of what was found.
    fn override_credentials(&self, config: &mut kube::Config) -> Result<(), ConfigError> {
        let auth = &mut config.auth_info;
        match (
            path(self.k8s_cert_file.as_ref()),
            path(self.k8s_key_file.as_ref()),
        ) {
            (None, None) => {}
            (Some(_), None) => {
                return Err(ConfigError::Incomplete {
                    given: "K8S_CERT_FILE",
                    missing: "K8S_KEY_FILE",
                });
            }
            (None, Some(_)) => {
                return Err(ConfigError::Incomplete {
                    given: "K8S_KEY_FILE",
                    missing: "K8S_CERT_FILE",
                });
            }
            (Some(certificate), Some(key)) => {
                credentials::certificates("K8S_CERT_FILE", &certificate)?;
                credentials::private_key("K8S_KEY_FILE", &key)?;
                auth.client_certificate = Some(text("K8S_CERT_FILE", &certificate)?);
                auth.client_key = Some(text("K8S_KEY_FILE", &key)?);
                auth.client_certificate_data = None;
                auth.client_key_data = None;
                auth.exec = None;
            }
        }
        if let Some(token) = self
            .k8s_token
            .as_ref()
            .filter(|token| !token.expose_secret().is_empty())
        {
            check_token("K8S_TOKEN", token.expose_secret())?;
            auth.token = Some(token.clone());
            auth.token_file = None;
            auth.username = None;
            auth.password = None;
            auth.auth_provider = None;
            auth.exec = None;
        }
        if let Some(file) = path(self.k8s_ca_file.as_ref()) {
            config.root_cert = Some(credentials::certificates("K8S_CA_FILE", &file)?);
            // Read again now and then, so that a renewed authority is picked up.
            config.root_cert_file = Some(file);
            config.accept_invalid_certs = false;
        }
        Ok(())
    }
}

/// A path that is not empty.
fn path(given: Option<&OsString>) -> Option<PathBuf> {
    given.filter(|given| !given.is_empty()).map(PathBuf::from)
}

/// kube wants paths as text.
fn text(variable: &'static str, path: &Path) -> Result<String, ConfigError> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| ConfigError::BadFile {
            variable,
            path: path.to_owned(),
            why: "the path is not UTF-8; give the file another name".to_owned(),
        })
}

/// Whether a client can be made of it, as far as that takes no network and runs no program.
fn check(config: &kube::Config, origin: &str) -> Result<(), ConfigError> {
    if config.auth_info.exec.is_some() {
        return Ok(());
    }
    let unusable = |error: kube::Error| ConfigError::UnusableApi {
        origin: origin.to_owned(),
        why: credentials::explain(&error),
    };
    config.auth_layer().map_err(unusable)?;
    if config.cluster_url.scheme_str() == Some("https") {
        config.rustls_client_config().map_err(unusable)?;
    }
    Ok(())
}

fn unwise(config: &kube::Config) -> Vec<String> {
    let mut warnings = Vec::new();
    if config.cluster_url.scheme_str() == Some("http") {
        warnings.push(
            "the Kubernetes API is spoken to without TLS: whoever is on the way can read the credentials and \
             change policies; use an https URL"
                .to_owned(),
        );
    } else if config.accept_invalid_certs {
        warnings.push(
            "insecure-skip-tls-verify: whoever is on the way to the Kubernetes API can pretend to be it and change \
             policies; set certificate-authority (or K8S_CA_FILE) instead"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
