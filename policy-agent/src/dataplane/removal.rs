//! Taking out what an agent put into the kernel.

use std::fs;
use std::io;
use std::path::Path;

use super::attach::{self, EVERY, Mode};
use super::installed::Part;
use super::{bpffs, clsact};

/// Removes one part; that it is gone already is no error. What only goes with another part, such as a
/// TCX link with its pin, or a map with the last program, is left to that. Must be called within a tokio
/// runtime.
///
/// # Errors
///
/// When the kernel or the file system refuses.
pub async fn remove(part: &Part) -> io::Result<()> {
    match part {
        Part::Attached {
            ifindex,
            interface,
            program,
            mode: Mode::Clsact,
            ..
        } => {
            let ours = EVERY.into_iter().filter(|(name, ..)| name == program);
            for (_, attach_type, handle) in ours {
                attach::detach_clsact(*ifindex, interface, attach_type, handle);
            }
            Ok(())
        }
        Part::Qdisc { ifindex, .. } => remove_qdisc(*ifindex).await,
        Part::Pin(pin) | Part::File(pin) => unless_gone(fs::remove_file(pin)),
        Part::Directory(directory) => remove_directory(directory),
        Part::Attached { .. } | Part::Program { .. } | Part::Map { .. } => Ok(()),
    }
}

/// Looks once more: somebody may have added a filter meanwhile.
async fn remove_qdisc(ifindex: u32) -> io::Result<()> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let result = match clsact::filters(&netlink, ifindex).await {
        Ok(filters) if filters.is_empty() => clsact::remove(&netlink, ifindex).await,
        Ok(_) => Ok(()),
        Err(error) => Err(error),
    };
    connection.abort();
    result.map_err(io::Error::other)
}

fn remove_directory(directory: &Path) -> io::Result<()> {
    match fs::remove_dir(directory) {
        // The agent mounts a bpffs where it is given a directory without one.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            bpffs::unmount(directory)?;
            unless_gone(fs::remove_dir(directory))
        }
        other => unless_gone(other),
    }
}

/// That what was to be removed is gone already is no error.
pub(super) fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
