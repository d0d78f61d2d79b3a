//! What the operator said, by flags and environment, becomes one validated [`Config`].

mod api;
mod credentials;
mod in_cluster;
mod kubeconfig;

pub use api::{ApiConfig, ApiSettings};

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use tracing::Level;

use crate::agent::EndpointSettings;
use crate::cni::CniSettings;
use crate::dataplane::{self, AttachMode};
use crate::endpoint::Secondaries;

/// Settings as given: each flag is also an environment variable, and the flag wins.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where policies and pods come from: `kubernetes`, or `files`, a directory of Kubernetes YAML
    #[arg(
        long,
        env = "DATASTORE_TYPE",
        default_value = "kubernetes",
        value_name = "TYPE"
    )]
    pub datastore_type: String,

    /// The directory to read, for `files`; changes are picked up as they are written
    #[arg(long, env = "DATASTORE_PATH", value_name = "DIR")]
    pub datastore_path: Option<PathBuf>,

    /// How to reach the Kubernetes API, for `kubernetes`
    #[command(flatten)]
    pub api: ApiSettings,

    /// This node's name in the API [default: the host's name]
    #[arg(long, env = "NODENAME", value_name = "NAME")]
    pub nodename: Option<String>,

    /// Directory for the local socket and the lock
    #[arg(long, env = "PORTCULLIS_RUN_DIR", default_value = RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,

    /// Directory for pinned maps and links, on a BPF file system
    #[arg(
        long,
        env = "PORTCULLIS_BPFFS",
        default_value = BPFFS,
        value_name = "DIR"
    )]
    pub bpffs: PathBuf,

    /// Address and port that /livez, /readyz and /metrics are served on
    #[arg(
        long,
        env = "HEALTH_ADDR",
        default_value = "127.0.0.1:9099",
        value_name = "ADDR:PORT"
    )]
    pub health_addr: String,

    /// Least important log lines to print: error, warn, info, debug or trace
    #[arg(
        long,
        env = "PORTCULLIS_LOG_LEVEL",
        default_value = "info",
        value_name = "LEVEL"
    )]
    pub log_level: String,

    /// Whether dropped packets are logged: true or false
    #[arg(
        long,
        env = "PORTCULLIS_LOG_DROPS",
        default_value = "true",
        value_name = "BOOL"
    )]
    pub log_drops: String,

    /// Whether the programs log each slow-path decision, for debugging: true or false
    #[arg(
        long,
        env = "PORTCULLIS_LOG_DECISIONS",
        default_value = "false",
        value_name = "BOOL"
    )]
    pub log_decisions: String,

    /// Sizes of tables where the defaults do not fit, such as `flows_v4=262144,peers=1000000`
    #[arg(
        long,
        env = "PORTCULLIS_TABLE_SIZES",
        default_value = "",
        value_name = "TABLE=N,...",
        hide_default_value = true
    )]
    pub table_sizes: String,

    /// How programs are attached: `auto`, `tcx` (Linux 6.6 or later) or `clsact`
    #[arg(
        long,
        env = "PORTCULLIS_ATTACH_MODE",
        default_value = "auto",
        value_name = "MODE"
    )]
    pub attach_mode: String,
    /// Pods' further interfaces, beside the one that Kubernetes knows of: `enforce`, by the pod's policies, or `report`
    #[arg(
        long,
        env = "PORTCULLIS_SECONDARY_INTERFACES",
        default_value = "enforce",
        value_name = "WHAT"
    )]
    pub secondary_interfaces: String,

    /// Namespaces whose pods are routers, and may send from addresses that are not their own: `NAME,...`
    #[arg(
        long,
        env = "PORTCULLIS_ROUTER_NAMESPACES",
        default_value = "",
        value_name = "NAME,...",
        hide_default_value = true
    )]
    pub router_namespaces: String,

    /// Whether this agent keeps policy-cni in the node's CNI configuration: true or false
    #[arg(
        long,
        env = "PORTCULLIS_INSTALL_CNI",
        default_value = "false",
        value_name = "BOOL"
    )]
    pub install_cni: String,

    /// What to install, and where
    #[command(flatten)]
    pub cni: CniSettings,
}

/// Default of PORTCULLIS_RUN_DIR, which `policyctl` needs too.
pub const RUN_DIR: &str = policy_cni::api::RUN_DIR;

/// Default of PORTCULLIS_BPFFS.
pub const BPFFS: &str = "/sys/fs/bpf/portcullis";

/// Name of the local socket in the run directory.
pub const SOCKET: &str = policy_cni::api::SOCKET;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where objects come from.
    pub datastore: DatastoreConfig,
    /// This node's name.
    pub node: Arc<str>,
    /// Directory of socket and lock.
    pub run_dir: PathBuf,
    /// Directory of pins.
    pub bpffs: PathBuf,
    /// Where health is served.
    pub health: SocketAddr,
    /// Whether drops are logged.
    pub log_drops: bool,
    /// Whether the programs log their decisions.
    pub log_decisions: bool,
    /// Table sizes that differ from the defaults.
    pub table_sizes: BTreeMap<String, u32>,
    /// How programs are attached.
    pub attach_mode: AttachMode,
    /// The CNI configurations, to see which plugins there are.
    pub cni_conf_dir: PathBuf,
    /// How endpoints are treated.
    pub endpoints: EndpointSettings,
    /// What of the CNI plugin is to be kept installed, if it is.
    pub cni: Option<CniSettings>,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum DatastoreConfig {
    /// The Kubernetes API.
    Kubernetes(Box<ApiConfig>),
    /// A directory of YAML files.
    Files(PathBuf),
}

/// DATASTORE_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatastoreType {
    /// `kubernetes`.
    Kubernetes,
    /// `files`.
    Files,
}

impl FromStr for DatastoreType {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "kubernetes" => Ok(Self::Kubernetes),
            "files" => Ok(Self::Files),
            "etcdv2" => Err(ConfigError::Etcd),
            other => Err(ConfigError::Unknown {
                variable: "DATASTORE_TYPE",
                value: other.to_owned(),
                choices: "kubernetes, files",
            }),
        }
    }
}

/// A setting that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not one of the words that a setting knows.
    #[error("{variable}={value:?} is unknown; the choices are {choices}")]
    Unknown {
        /// Name of the environment variable.
        variable: &'static str,
        /// What was given.
        value: String,
        /// What can be given.
        choices: &'static str,
    },
    /// Refused although others know it.
    #[error(
        "DATASTORE_TYPE=\"etcdv2\" is refused: Portcullis keeps no database of its own and reads NetworkPolicies \
         and Pods from the Kubernetes API, whose etcd is nobody else's to read; the choices are kubernetes, files"
    )]
    Etcd,
    /// Nothing says where the Kubernetes API is.
    #[error(
        "DATASTORE_TYPE=kubernetes: no Kubernetes API is configured and this is no pod of a cluster \
         (KUBERNETES_SERVICE_HOST is not set); set KUBECONFIG, or K8S_API_ENDPOINT with K8S_CA_FILE and K8S_TOKEN or \
         K8S_CERT_FILE and K8S_KEY_FILE; or DATASTORE_TYPE=files to read files"
    )]
    NoApi,
    /// A setting that means nothing without another.
    #[error(
        "{given} is set and {missing} is not; a client certificate and its key go together, set both or neither"
    )]
    Incomplete {
        /// The setting that is there.
        given: &'static str,
        /// The setting that is not.
        missing: &'static str,
    },
    /// A file that cannot be used.
    #[error("{variable}={path}: {why}", path = .path.display())]
    BadFile {
        /// Name of the environment variable.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A token that no request can carry.
    #[error("{place} {why}")]
    BadToken {
        /// Name of the environment variable, or where in a file.
        place: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Each setting is well-formed, but together they cannot be used.
    #[error("Kubernetes API by {origin}: {why}")]
    UnusableApi {
        /// Which setting names the API.
        origin: String,
        /// What is wrong.
        why: String,
    },
    /// A setting that the chosen datastore needs is not there.
    #[error("DATASTORE_PATH is not set; DATASTORE_TYPE=files needs the directory to read")]
    NoPath,
    /// The directory cannot be read.
    #[error("DATASTORE_PATH={path}: {why}", path = .path.display())]
    BadPath {
        /// What was given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A value of the wrong form.
    #[error("{variable}={value:?}: {why}")]
    Malformed {
        /// Name of the environment variable.
        variable: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Settings {
    /// The log level, which is needed before the rest.
    ///
    /// # Errors
    ///
    /// When it is no level.
    pub fn level(&self) -> Result<Level, ConfigError> {
        Ok(match self.log_level.as_str() {
            "error" => Level::ERROR,
            "warn" => Level::WARN,
            "info" => Level::INFO,
            "debug" => Level::DEBUG,
            "trace" => Level::TRACE,
            _ => {
                return Err(ConfigError::Unknown {
                    variable: "PORTCULLIS_LOG_LEVEL",
                    value: self.log_level.clone(),
                    choices: "error, warn, info, debug, trace",
                });
            }
        })
    }

    /// The configuration that these settings mean.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be taken.
    pub fn validate(&self) -> Result<Config, ConfigError> {
        Ok(Config {
            datastore: self.datastore()?,
            node: node_name(self.nodename.as_deref())?,
            run_dir: self.run_dir.clone(),
            bpffs: self.bpffs.clone(),
            health: self
                .health_addr
                .parse()
                .map_err(|_| ConfigError::Malformed {
                    variable: "HEALTH_ADDR",
                    value: self.health_addr.clone(),
                    why: "not ADDRESS:PORT, such as 127.0.0.1:9099".to_owned(),
                })?,
            log_drops: boolean("PORTCULLIS_LOG_DROPS", &self.log_drops)?,
            log_decisions: boolean("PORTCULLIS_LOG_DECISIONS", &self.log_decisions)?,
            table_sizes: table_sizes(&self.table_sizes)?,
            attach_mode: attach_mode(&self.attach_mode)?,
            cni_conf_dir: self.cni.directories.conf_dir.clone(),
            endpoints: EndpointSettings {
                secondaries: secondaries(&self.secondary_interfaces)?,
                router_namespaces: router_namespaces(&self.router_namespaces)?,
            },
            cni: boolean("PORTCULLIS_INSTALL_CNI", &self.install_cni)?.then(|| self.cni.clone()),
        })
    }

    fn datastore(&self) -> Result<DatastoreConfig, ConfigError> {
        match self.datastore_type.parse()? {
            DatastoreType::Files => {}
            DatastoreType::Kubernetes => {
                return Ok(DatastoreConfig::Kubernetes(Box::new(self.api.validate()?)));
            }
        }
        let path = self
            .datastore_path
            .clone()
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or(ConfigError::NoPath)?;
        let bad = |why: String| ConfigError::BadPath {
            path: path.clone(),
            why,
        };
        let metadata = fs::metadata(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => bad("does not exist".to_owned()),
            _ => bad(error.to_string()),
        })?;
        if !metadata.is_dir() {
            return Err(bad("is not a directory".to_owned()));
        }
        fs::read_dir(&path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        Ok(DatastoreConfig::Files(path))
    }
}

/// This node's name: the one given, or the host's.
///
/// # Errors
///
/// When there is neither.
pub fn node_name(given: Option<&str>) -> Result<Arc<str>, ConfigError> {
    match given {
        Some(name) if !name.is_empty() => Ok(name.into()),
        // Kubernetes' node names are lower case, as kubelet makes them from the host's name.
        _ => match gethostname::gethostname().to_str() {
            Some(name) if !name.is_empty() => Ok(name.to_lowercase().into()),
            _ => Err(ConfigError::Malformed {
                variable: "NODENAME",
                value: String::new(),
                why: "not set, and the host has no usable name".to_owned(),
            }),
        },
    }
}

fn attach_mode(text: &str) -> Result<AttachMode, ConfigError> {
    Ok(match text {
        "auto" => AttachMode::Auto,
        "tcx" => AttachMode::Tcx,
        "clsact" => AttachMode::Clsact,
        _ => {
            return Err(ConfigError::Unknown {
                variable: "PORTCULLIS_ATTACH_MODE",
                value: text.to_owned(),
                choices: "auto, tcx, clsact",
            });
        }
    })
}

/// A setting that is true or false.
///
/// # Errors
///
/// When it is neither.
pub fn boolean(variable: &'static str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ConfigError::Unknown {
            variable,
            value: value.to_owned(),
            choices: "true, false",
        }),
    }
}

fn secondaries(value: &str) -> Result<Secondaries, ConfigError> {
    match value {
        "enforce" => Ok(Secondaries::Enforce),
        "report" => Ok(Secondaries::Report),
        _ => Err(ConfigError::Unknown {
            variable: "PORTCULLIS_SECONDARY_INTERFACES",
            value: value.to_owned(),
            choices: "enforce, report",
        }),
    }
}

fn router_namespaces(text: &str) -> Result<BTreeSet<Arc<str>>, ConfigError> {
    let names = text.split(',').map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .map(|name| {
            if is_namespace_name(name) {
                return Ok(name.into());
            }
            Err(ConfigError::Malformed {
                variable: "PORTCULLIS_ROUTER_NAMESPACES",
                value: text.to_owned(),
                why: format!(
                    "{name:?} is no name of a namespace: 1 to 63 of a-z, 0-9 and '-', '-' neither first nor last"
                ),
            })
        })
        .collect()
}

/// Whether `name` is a DNS label (RFC 1123), as Kubernetes wants names of namespaces.
fn is_namespace_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn table_sizes(text: &str) -> Result<BTreeMap<String, u32>, ConfigError> {
    let mut sizes = BTreeMap::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let malformed = |why: &str| ConfigError::Malformed {
            variable: "PORTCULLIS_TABLE_SIZES",
            value: text.to_owned(),
            why: format!("{part:?} {why}"),
        };
        let (name, size) = part
            .split_once('=')
            .ok_or_else(|| malformed("is not TABLE=NUMBER, such as flows_v4=262144"))?;
        let size = size
            .trim()
            .parse()
            .map_err(|_| malformed("has no number between 0 and 4294967295 after the '='"))?;
        if sizes.insert(name.trim().to_owned(), size).is_some() {
            return Err(malformed("sets a table that was set before"));
        }
    }
    dataplane::capacities(&sizes).map_err(|error| ConfigError::Malformed {
        variable: "PORTCULLIS_TABLE_SIZES",
        value: text.to_owned(),
        why: error.to_string(),
    })?;
    Ok(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(datastore_type: &str, path: Option<&std::path::Path>) -> Settings {
        Settings {
            datastore_type: datastore_type.to_owned(),
            datastore_path: path.map(PathBuf::from),
            api: ApiSettings::default(),
            nodename: Some("n1".to_owned()),
            run_dir: RUN_DIR.into(),
            bpffs: "/sys/fs/bpf/portcullis".into(),
            health_addr: "127.0.0.1:9099".to_owned(),
            log_level: "info".to_owned(),
            log_drops: "true".to_owned(),
            log_decisions: "false".to_owned(),
            table_sizes: String::new(),
            attach_mode: "auto".to_owned(),
            secondary_interfaces: "enforce".to_owned(),
            router_namespaces: String::new(),
            install_cni: "false".to_owned(),
            cni: CniSettings::default(),
        }
    }

    #[test]
    fn a_directory_of_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut settings = settings("files", Some(directory.path()));
        settings.table_sizes = " flows_v4=262144, peers = 7 ,".to_owned();
        let config = settings.validate().expect("valid");
        assert!(
            matches!(config.datastore, DatastoreConfig::Files(path) if path == directory.path())
        );
        assert_eq!(&*config.node, "n1");
        assert_eq!(
            config.table_sizes,
            BTreeMap::from([("flows_v4".to_owned(), 262_144), ("peers".to_owned(), 7)])
        );
        assert_eq!(config.endpoints, EndpointSettings::default());
        settings.secondary_interfaces = "report".to_owned();
        settings.router_namespaces = " vpn, edge-routers ,".to_owned();
        let endpoints = settings.validate().expect("valid").endpoints;
        assert_eq!(endpoints.secondaries, Secondaries::Report);
        assert_eq!(
            endpoints.router_namespaces,
            ["edge-routers".into(), "vpn".into()].into()
        );
        settings.nodename = None;
        let node = settings.validate().expect("valid").node;
        assert!(!node.is_empty() && *node == *node.to_lowercase());
    }

    #[test]
    fn what_cannot_be_taken_is_named_with_the_choices() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("write");
        let absent = directory.path().join("absent");
        let valid = settings("files", Some(directory.path()));
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut settings = valid.clone();
            change(&mut settings);
            settings
        };
        let rows: &[(Settings, String)] = &[
            (
                settings("etcd", None),
                "DATASTORE_TYPE=\"etcd\" is unknown; the choices are kubernetes, files".to_owned(),
            ),
            (
                settings("etcdv2", None),
                "DATASTORE_TYPE=\"etcdv2\" is refused: Portcullis keeps no database of its own".to_owned(),
            ),
            (
                settings("files", None),
                "DATASTORE_PATH is not set; DATASTORE_TYPE=files needs the directory to read".to_owned(),
            ),
            (
                settings("files", Some(&absent)),
                format!("DATASTORE_PATH={}: does not exist", absent.display()),
            ),
            (
                settings("files", Some(&file)),
                format!("DATASTORE_PATH={}: is not a directory", file.display()),
            ),
            (
                with(&|s| s.health_addr = "localhost".to_owned()),
                "HEALTH_ADDR=\"localhost\": not ADDRESS:PORT, such as 127.0.0.1:9099".to_owned(),
            ),
            (
                with(&|s| s.log_drops = "yes".to_owned()),
                "PORTCULLIS_LOG_DROPS=\"yes\" is unknown; the choices are true, false".to_owned(),
            ),
            (
                with(&|s| s.secondary_interfaces = "off".to_owned()),
                "PORTCULLIS_SECONDARY_INTERFACES=\"off\" is unknown; the choices are enforce, report".to_owned(),
            ),
            (
                with(&|s| s.router_namespaces = "vpn,VPN".to_owned()),
                "PORTCULLIS_ROUTER_NAMESPACES=\"vpn,VPN\": \"VPN\" is no name of a namespace: 1 to 63 of a-z, ".to_owned(),
            ),
            (
                with(&|s| s.table_sizes = "peers".to_owned()),
                "PORTCULLIS_TABLE_SIZES=\"peers\": \"peers\" is not TABLE=NUMBER, such as flows_v4=262144".to_owned(),
            ),
            (
                with(&|s| s.table_sizes = "peers=many".to_owned()),
                "PORTCULLIS_TABLE_SIZES=\"peers=many\": \"peers=many\" has no number between 0 and 4294967295 after \
                 the '='"
                    .to_owned(),
            ),
            (
                with(&|s| s.table_sizes = "peers=1,peers=2".to_owned()),
                "PORTCULLIS_TABLE_SIZES=\"peers=1,peers=2\": \"peers=2\" sets a table that was set before".to_owned(),
            ),
            (
                with(&|s| s.table_sizes = "flow_v4=7".to_owned()),
                "PORTCULLIS_TABLE_SIZES=\"flow_v4=7\": unknown table \"flow_v4\"; the tables are endpoints, ".to_owned(),
            ),
            (
                with(&|s| s.table_sizes = "counters=7".to_owned()),
                "PORTCULLIS_TABLE_SIZES=\"counters=7\": table counters: size 7 is not possible: this table's size is \
                 fixed"
                    .to_owned(),
            ),
        ];
        for (settings, message) in rows {
            let error = settings.validate().expect_err(message).to_string();
            assert!(error.starts_with(message), "{error}");
        }
        let mut settings = valid.clone();
        settings.log_level = "loud".to_owned();
        assert_eq!(
            settings.level().expect_err("no level").to_string(),
            "PORTCULLIS_LOG_LEVEL=\"loud\" is unknown; the choices are error, warn, info, debug, trace"
        );
    }
}
