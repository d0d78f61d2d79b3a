//! Kubeconfig files
//! (<https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/>).

use std::env;
use std::path::{Path, PathBuf};

use kube::config::{AuthInfo, Kubeconfig, KubeconfigError, LoadDataError};
use secrecy::ExposeSecret as _;

use super::ConfigError;
use super::credentials::{check_token, unreadable, url};
use super::in_cluster::Surroundings;

/// The current context of one file, or of several with ':' between, and where it is from in words.
pub(super) fn load(
    paths: &Path,
    surroundings: &Surroundings,
    warnings: &mut Vec<String>,
) -> Result<(kube::Config, String), ConfigError> {
    let (merged, last) = merge(paths, surroundings, warnings)?;
    let bad = |why: String| bad(last.as_deref().unwrap_or(paths), why);
    let (proxy, authorities) = check(&merged).map_err(bad)?;
    if proxy {
        return Err(bad(
            "its cluster has a proxy-url, and proxies are not supported; K8S_API_ENDPOINT can name the API directly"
                .to_owned(),
        ));
    }
    if surroundings.proxy {
        warnings.push(
            "HTTPS_PROXY is set and not used: the Kubernetes API is spoken to directly".to_owned(),
        );
    }
    let mut config = kube::Config::try_from(merged).map_err(|error| bad(explain(&error)))?;
    config.proxy_url = None;
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        return Err(bad(
            "its certificate-authority holds no certificate; it must be PEM with BEGIN CERTIFICATE"
                .to_owned(),
        ));
    }
    config.root_cert_file = authorities;
    config.cluster_url = url(&config.cluster_url.to_string()).map_err(|why| {
        bad(format!(
            "its cluster's server {}: {why}",
            config.cluster_url
        ))
    })?;
    let AuthInfo {
        token, token_file, ..
    } = &config.auth_info;
    if let Some(token) = token {
        check_token("KUBECONFIG: its user's token", token.expose_secret())?;
    }
    if let (None, Some(file)) = (token, token_file) {
        std::fs::read(file).map_err(|error| {
            bad(format!(
                "its user's tokenFile {file} {}",
                unreadable(&error)
            ))
        })?;
    }
    Ok((config, format!("KUBECONFIG={}", paths.display())))
}

/// What the files say together, and the file where it is one. As with kubectl what is said first counts, and
/// of several files some may not exist.
fn merge(
    paths: &Path,
    surroundings: &Surroundings,
    warnings: &mut Vec<String>,
) -> Result<(Kubeconfig, Option<PathBuf>), ConfigError> {
    let mut there = Vec::new();
    let mut missing = Vec::new();
    for path in env::split_paths(paths).filter(|path| !path.as_os_str().is_empty()) {
        let file = expand_home(&path, surroundings)?;
        let list = if file.exists() {
            &mut there
        } else {
            &mut missing
        };
        list.push(file);
    }
    let mut files = if there.is_empty() {
        missing
    } else {
        let words = |file: PathBuf| format!("KUBECONFIG: {} does not exist", file.display());
        warnings.extend(missing.into_iter().map(words));
        there
    };
    let mut merged = Kubeconfig::default();
    for file in &files {
        merged = Kubeconfig::read_from(file)
            .and_then(|next| merged.merge(next))
            .map_err(|error| bad(file, explain(&error)))?;
        // Which says nothing, though kubectl writes it.
        merged.current_context = merged.current_context.filter(|name| !name.is_empty());
    }
    let is_one = files.len() == 1;
    Ok((merged, files.pop().filter(|_| is_one)))
}

/// Whether the current context can be used: whether its cluster wants a proxy, and the file of its
/// authorities.
fn check(kubeconfig: &Kubeconfig) -> Result<(bool, Option<PathBuf>), String> {
    let contexts: Vec<_> = kubeconfig
        .contexts
        .iter()
        .map(|context| context.name.as_str())
        .collect();
    let choices = match contexts.as_slice() {
        [] => "it has no contexts at all; is it a kubeconfig?".to_owned(),
        names => format!(
            "choose one with `kubectl config use-context NAME`: {}",
            names.join(", ")
        ),
    };
    let name = kubeconfig
        .current_context
        .as_deref()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| format!("has no current-context; {choices}"))?;
    let context = kubeconfig
        .contexts
        .iter()
        .find(|context| context.name == name)
        .and_then(|context| context.context.as_ref())
        .ok_or_else(|| {
            format!("its current-context {name:?} is not among its contexts; {choices}")
        })?;
    let cluster = kubeconfig
        .clusters
        .iter()
        .find(|cluster| cluster.name == context.cluster)
        .and_then(|cluster| cluster.cluster.as_ref())
        .ok_or_else(|| {
            format!(
                "its current-context {name:?} names the cluster {:?}, which it does not have",
                context.cluster
            )
        })?;
    if let Some(user) = context.user.as_deref().filter(|user| !user.is_empty())
        && !kubeconfig.auth_infos.iter().any(|named| named.name == user)
    {
        return Err(format!(
            "its current-context {name:?} names the user {user:?}, which it does not have"
        ));
    }
    let proxy = cluster
        .proxy_url
        .as_ref()
        .is_some_and(|url| !url.is_empty());
    let authorities = match &cluster.certificate_authority_data {
        Some(_) => None,
        None => cluster.certificate_authority.as_ref().map(PathBuf::from),
    };
    Ok((proxy, authorities))
}

/// `~` and `~/...` are the user's home directory, as in a shell.
fn expand_home(path: &Path, surroundings: &Surroundings) -> Result<PathBuf, ConfigError> {
    let Ok(rest) = path.strip_prefix("~") else {
        return Ok(path.to_owned());
    };
    let home = surroundings.home.as_ref().ok_or_else(|| {
        bad(
            path,
            "'~' is the home directory, and HOME is not set".to_owned(),
        )
    })?;
    Ok(home.join(rest))
}

fn explain(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, _) => unreadable(error),
        KubeconfigError::Parse(error) => {
            format!("is not a kubeconfig in YAML: {error}")
        }
        KubeconfigError::MissingClusterUrl => "its cluster has no server".to_owned(),
        KubeconfigError::ParseClusterUrl(error) => {
            format!("its cluster's server is not a URL: {error}")
        }
        KubeconfigError::LoadCertificateAuthority(error) => {
            format!("its certificate-authority {}", explain_data(error))
        }
        KubeconfigError::LoadClientCertificate(error) => {
            format!("its client-certificate {}", explain_data(error))
        }
        KubeconfigError::LoadClientKey(error) => format!("its client-key {}", explain_data(error)),
        KubeconfigError::ParseCertificates(error) => {
            format!("its certificate-authority is not valid PEM: {error}")
        }
        other => other.to_string(),
    }
}

fn explain_data(error: &LoadDataError) -> String {
    match error {
        LoadDataError::DecodeBase64(error) => format!("data is not base64: {error}"),
        LoadDataError::ReadFile(error, path) => {
            format!("{} {}", path.display(), unreadable(error))
        }
        LoadDataError::NoBase64DataOrFile => "is missing".to_owned(),
    }
}

fn bad(path: &Path, why: String) -> ConfigError {
    ConfigError::BadFile {
        variable: "KUBECONFIG",
        path: path.to_owned(),
        why,
    }
}
