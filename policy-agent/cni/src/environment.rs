//! What the runtime says in the environment.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::statfs::{FsType, statfs};

use crate::api::{AttachmentKey, PodReference, is_container_id, is_interface_name};
use crate::error::{Code, Error};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// An interface was attached.
    Add,
    /// An interface is to go.
    Del,
    /// Is all as it should be?
    Check,
    /// Could an ADD be served?
    Status,
    /// Forget what is not listed.
    Gc,
    /// Which versions of CNI?
    Version,
}

impl Command {
    const NAMES: [(&'static str, Self); 6] = [
        ("ADD", Self::Add),
        ("DEL", Self::Del),
        ("CHECK", Self::Check),
        ("STATUS", Self::Status),
        ("GC", Self::Gc),
        ("VERSION", Self::Version),
    ];
}

/// Reads a variable; empty counts as missing.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The command.
///
/// # Errors
///
/// When there is none, or one that CNI does not have.
pub fn command(variables: Variables<'_>) -> Result<Command, Error> {
    let given = required(variables, "CNI_COMMAND")?;
    let known = Command::NAMES.iter().find(|(name, _)| *name == given);
    known.map(|(_, command)| *command).ok_or_else(|| {
        let choices = Command::NAMES.map(|(name, _)| name).join(", ");
        invalid(format!("CNI_COMMAND={given}: the choices are {choices}"))
    })
}

/// Which attachment it is about.
///
/// # Errors
///
/// When a variable is missing or cannot be one of its kind.
pub fn attachment_key(variables: Variables<'_>) -> Result<AttachmentKey, Error> {
    let container_id = required(variables, "CNI_CONTAINERID")?;
    if !is_container_id(&container_id) {
        return Err(invalid(format!(
            "CNI_CONTAINERID={container_id:?} is not a container id"
        )));
    }
    let ifname = required(variables, "CNI_IFNAME")?;
    if !is_interface_name(&ifname) {
        return Err(invalid(format!(
            "CNI_IFNAME={ifname:?} is not an interface's name"
        )));
    }
    Ok(AttachmentKey {
        container_id,
        ifname,
    })
}

/// Path of the sandbox's network namespace.
///
/// # Errors
///
/// When it is missing, is no network namespace (any more), or is the host's. The code is never the
/// specification's 3: that would tell the runtime that the plugins before us need no DEL.
pub fn netns(variables: Variables<'_>) -> Result<String, Error> {
    let given = required(variables, "CNI_NETNS")?;
    let path = Path::new(&given);
    let kind = statfs(path).map_err(|error| {
        invalid(format!("CNI_NETNS={given}: the network namespace is gone")).with_details(error)
    })?;
    // What `ip netns` and runtimes leave when the namespace is gone is an ordinary, empty file.
    if kind.filesystem_type() != NSFS {
        return Err(invalid(format!(
            "CNI_NETNS={given}: this is not a network namespace (any more)"
        )));
    }
    let identity = |path: &Path| path.metadata().map(|data| (data.dev(), data.ino())).ok();
    if identity(path) == identity(Path::new("/proc/self/ns/net")) {
        return Err(invalid(format!(
            "CNI_NETNS={given}: this is the host's network namespace"
        )));
    }
    Ok(given)
}

/// The file system that namespaces are on.
const NSFS: FsType = FsType(0x6e73_6673);

/// The pod that the kubelet wants the sandbox for.
///
/// # Errors
///
/// When the runtime does not say: what has no pod has no policy.
pub fn pod(variables: Variables<'_>) -> Result<PodReference, Error> {
    let arguments = variables("CNI_ARGS").unwrap_or_default();
    let argument = |wanted: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, value)| *key == wanted && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    };
    let needed = |name: &str| {
        argument(name).ok_or_else(|| {
            invalid(format!(
                "CNI_ARGS has no {name}: this plugin enforces the policies of Kubernetes pods"
            ))
        })
    };
    Ok(PodReference {
        namespace: needed("K8S_POD_NAMESPACE")?,
        name: needed("K8S_POD_NAME")?,
        uid: argument("K8S_POD_UID").unwrap_or_default(),
    })
}

fn required(variables: Variables<'_>, name: &str) -> Result<String, Error> {
    variables(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| invalid(format!("{name} is not set; a container runtime sets it")))
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidEnvironment, message)
}
