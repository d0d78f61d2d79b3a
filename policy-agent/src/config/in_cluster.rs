//! What a cluster gives to the pods in it: the API's address, its CA and a service account's token
//! (<https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/>).

use std::env;
use std::net::IpAddr;
use std::path::PathBuf;

use super::ConfigError;
use super::credentials::{self, url};

/// What the process finds around it, apart from its settings.
#[derive(Debug)]
pub(super) struct Surroundings {
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub service: Option<(String, String)>,
    /// Directory of the service account's files.
    pub service_account: PathBuf,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// Whether a proxy is configured for all that respects `HTTPS_PROXY`.
    pub proxy: bool,
}

impl Surroundings {
    pub(super) fn of_process() -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            service: variable("KUBERNETES_SERVICE_HOST").zip(variable("KUBERNETES_SERVICE_PORT")),
            service_account: PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount"),
            home: env::home_dir(),
            proxy: variable("HTTPS_PROXY")
                .or_else(|| variable("https_proxy"))
                .is_some(),
        }
    }

    /// The configuration of a pod in a cluster; `None` outside of one.
    pub(super) fn in_cluster(&self) -> Option<Result<kube::Config, ConfigError>> {
        let (host, port) = self.service.as_ref()?;
        Some(self.service_account_config(host, port))
    }

    fn service_account_config(&self, host: &str, port: &str) -> Result<kube::Config, ConfigError> {
        let host = match host.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => host.to_owned(),
        };
        let given = format!("https://{host}:{port}");
        let uri = url(&given).map_err(|why| ConfigError::Malformed {
            variable: "KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT",
            value: given,
            why,
        })?;
        let authorities = self.service_account.join("ca.crt");
        let token = self.service_account.join("token");
        let mut config = kube::Config::new(uri);
        config.root_cert = Some(credentials::certificates(
            "service account's CA",
            &authorities,
        )?);
        config.root_cert_file = Some(authorities);
        credentials::read("service account's token", &token)?;
        config.auth_info.token_file = token.to_str().map(str::to_owned);
        Ok(config)
    }
}
