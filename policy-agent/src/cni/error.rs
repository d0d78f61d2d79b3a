//! Why the plugin is not installed, or not removed.

use std::io;
use std::path::PathBuf;

/// One thing that is wrong; nothing was half-written.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory cannot be read or written.
    #[error("{path}: {source}{hint}", path = .path.display(), hint = hint(source))]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A configuration that no runtime could use either.
    #[error("{path}: {mistake}; the runtime cannot use it either, nothing was changed", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        mistake: String,
    },
    /// A version in which plugins cannot be chained, or that ours does not speak.
    #[error(
        "{path}: cniVersion {version} does not go with policy-cni, which speaks {}; nothing was changed",
        policy_cni::conf::VERSIONS.join(", "), path = .path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: String,
    },
    /// There is no configuration, and none was asked for.
    #[error(
        "{} has no CNI configuration (*.conf, *.conflist, *.json): install a network plugin first, or have one \
         of the reference plugins configured with --cni-create ptp", .0.display()
    )]
    NoConfiguration(PathBuf),
    /// A configuration was asked for whose plugins are not there.
    #[error("{directory} has no {missing}; install the reference CNI plugins (containernetworking-plugins) first",
        directory = .directory.display(), missing = .missing.join(", "))]
    NoPlugins {
        /// Where plugins are.
        directory: PathBuf,
        /// Those that are not there.
        missing: Vec<String>,
    },
    /// A configuration was asked for without addresses for pods.
    #[error(
        "a CNI configuration needs this node's pod CIDR: {0}; or --pod-cidr CIDR, once for each address family"
    )]
    NoPodCidr(String),
    /// Nobody knows where the plugin's program is.
    #[error(
        "this program does not know where it is itself: {0}; say where policy-cni is with --cni-program"
    )]
    WhichProgram(io::Error),
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; mount the directory writable",
        io::ErrorKind::PermissionDenied => "; this needs root",
        _ => "",
    }
}
