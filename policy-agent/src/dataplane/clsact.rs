//! The clsact qdisc, which holds filters: who added it.
//!
//! A qdisc does not say who added it, and other programs' filters may share it. So the agent notes each
//! that it adds, as an empty directory `clsact/IFINDEX` beside the pins: bpffs holds no plain files, and
//! a pin would keep a program and its maps alive.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::tc::{TcError, qdisc_add_clsact};

use super::removal::unless_gone;

/// Where the notes are.
pub(super) fn notes(bpffs: &Path) -> PathBuf {
    bpffs.join("clsact")
}

/// Adds the qdisc where its place is free, and notes that it is ours. An `ingress` qdisc has the same place, so
/// that whether clsact is there now is to be asked of the kernel.
pub(super) fn add(bpffs: &Path, ifindex: u32, interface: &str) -> Result<(), TcError> {
    match qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {
            return Ok(());
        }
        other => other?,
    }
    Ok(fs::create_dir_all(notes(bpffs).join(ifindex.to_string()))?)
}

/// Interfaces whose qdisc an agent added, and which may be gone.
pub(super) fn noted(bpffs: &Path) -> io::Result<BTreeSet<u32>> {
    let entries = match fs::read_dir(notes(bpffs)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        other => other?,
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    Ok(names
        .collect::<io::Result<Vec<_>>>()?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect())
}

/// Forgets an interface.
pub(super) fn forget(bpffs: &Path, ifindex: u32) -> io::Result<()> {
    unless_gone(fs::remove_dir(notes(bpffs).join(ifindex.to_string())))
}
