//! Holds a pod's start: from before its first address until the agent enforces its policies, the pod's network
//! namespace takes and sends nothing from layer 3 up.
//!
//! ```text
//! first turn in the chain ──> hold ──> main plugin, portmap, ... ──> last turn: agent enforces ──> release
//! ```
//!
//! What holds is a table of nftables in the pod's own namespace whose chains drop before routing and on output. It is there
//! before there is an interface, in one transaction, so nothing comes in between: no SYN finds the pod's kernel, and
//! it answers none with RST. The link's own affairs go on: ARP, neighbour discovery, duplicate address detection, router
//! advertisements and multicast listener reports. Therefore ADD takes no longer, and neighbours know the pod's
//! address when it is released. Nothing is left behind afterwards, neither hooks nor settings.
//!
//! Knows the kernel, and nothing of CNI or the agent.

mod netlink;
mod table;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockaddrLike as _};

use netlink::{Netfilter, NetlinkError};

/// What came of an attempt to hold a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is held.
    Held,
    /// It has an address already, so somebody may be running in it: it was left alone.
    InUse,
}

/// Why a namespace cannot be held or released.
#[derive(Debug)]
pub enum HoldError {
    /// This kernel has no nftables.
    Unsupported(Errno),
    /// The namespace cannot be entered.
    Namespace(io::Error),
    /// The kernel refused.
    Kernel {
        /// What it was asked for.
        what: &'static str,
        /// What it said.
        source: Errno,
    },
}

impl fmt::Display for HoldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(errno) => write!(
                f,
                "this kernel has no nftables (module nf_tables): {}",
                errno.desc()
            ),
            Self::Namespace(error) => {
                write!(f, "the pod's network namespace cannot be entered: {error}")
            }
            Self::Kernel { what, source } => write!(f, "{what}: {}", source.desc()),
        }
    }
}

impl std::error::Error for HoldError {}

/// Holds the namespace at this path, unless somebody uses it. Done again, it changes nothing.
///
/// # Errors
///
/// When it is not held.
pub fn hold(netns: &Path) -> Result<Outcome, HoldError> {
    inside(netns, || {
        let mut netfilter = open()?;
        if is_there(&mut netfilter)? {
            return Ok(Outcome::Held);
        }
        if has_address()? {
            return Ok(Outcome::InUse);
        }
        netfilter
            .transaction(&table::create())
            .map_err(|error| match error {
                // What a kernel says whose nftables lack the inet family.
                NetlinkError(errno @ (Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT)) => {
                    HoldError::Unsupported(errno)
                }
                NetlinkError(source) => HoldError::Kernel {
                    what: "a table of nftables in the pod's network namespace",
                    source,
                },
            })?;
        Ok(Outcome::Held)
    })
}

/// Releases the namespace at this path, if it is held.
///
/// # Errors
///
/// When it is held and stays so.
pub fn release(netns: &Path) -> Result<(), HoldError> {
    inside(netns, || {
        let Some(mut netfilter) = supported(open())? else {
            return Ok(());
        };
        if supported(is_there(&mut netfilter))? != Some(true) {
            return Ok(());
        }
        match netfilter.transaction(&[table::delete()]) {
            Ok(()) | Err(NetlinkError(Errno::ENOENT)) => Ok(()),
            Err(NetlinkError(source)) => Err(HoldError::Kernel {
                what: "the table of nftables that holds the pod's network namespace",
                source,
            }),
        }
    })
}

/// Whether the namespace at this path is held.
///
/// # Errors
///
/// When that cannot be found out.
pub fn is_held(netns: &Path) -> Result<bool, HoldError> {
    inside(netns, || {
        let Some(mut netfilter) = supported(open())? else {
            return Ok(false);
        };
        Ok(supported(is_there(&mut netfilter))? == Some(true))
    })
}

/// `None` where this kernel cannot hold anything.
fn supported<T>(outcome: Result<T, HoldError>) -> Result<Option<T>, HoldError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(HoldError::Unsupported(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn open() -> Result<Netfilter, HoldError> {
    Netfilter::open().map_err(|NetlinkError(errno)| match errno {
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => HoldError::Unsupported(errno),
        source => HoldError::Kernel {
            what: "a netlink socket in the pod's network namespace",
            source,
        },
    })
}

fn is_there(netfilter: &mut Netfilter) -> Result<bool, HoldError> {
    match netfilter.request(&table::find()) {
        Ok(()) => Ok(true),
        Err(NetlinkError(Errno::ENOENT)) => Ok(false),
        // What nfnetlink says of a subsystem that it does not have.
        Err(NetlinkError(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP))) => {
            Err(HoldError::Unsupported(errno))
        }
        Err(NetlinkError(source)) => Err(HoldError::Kernel {
            what: "tables of nftables in the pod's network namespace",
            source,
        }),
    }
}

/// Whether an interface other than loopback has an address.
fn has_address() -> Result<bool, HoldError> {
    let addresses = getifaddrs().map_err(|source| HoldError::Kernel {
        what: "addresses in the pod's network namespace",
        source,
    })?;
    Ok(addresses
        .filter(|found| !found.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|found| found.address?.family())
        .any(|family| matches!(family, AddressFamily::Inet | AddressFamily::Inet6)))
}

/// Runs `work` in the namespace, on a thread that ends with it: this one stays where it is whatever goes wrong.
fn inside<T: Send>(
    netns: &Path,
    work: impl FnOnce() -> Result<T, HoldError> + Send,
) -> Result<T, HoldError> {
    let namespace = File::open(netns).map_err(HoldError::Namespace)?;
    let inside = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| HoldError::Namespace(errno.into()))?;
        work()
    };
    match thread::scope(|scope| scope.spawn(inside).join()) {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
