//! Taking out what an agent put into the kernel.

use std::fs;
use std::io;
use std::path::Path;

use super::attach::{self, Mode};
use super::bpffs;
use super::installed::Part;
use super::tc::Tc;

/// Removes one part; that it is gone already is no error. What only goes with another part, such as a
/// TCX link with its pin, or a map with the last program, is left to that.
///
/// # Errors
///
/// When the kernel or the file system refuses.
pub fn remove(part: &Part) -> io::Result<()> {
    match part {
        Part::Attached {
            ifindex,
            program,
            mode: Mode::Clsact,
            ..
        } => {
            let mut tc = Tc::open()?;
            for program in attach::every().filter(|every| every.name == *program) {
                attach::detach_filter(&mut tc, *ifindex, program);
            }
            Ok(())
        }
        Part::Qdisc { ifindex, .. } => remove_qdisc(*ifindex),
        Part::Pin(pin) | Part::File(pin) => unless_gone(fs::remove_file(pin)),
        Part::Directory(directory) => remove_directory(directory),
        Part::Attached { .. } | Part::Program { .. } | Part::Map { .. } => Ok(()),
    }
}

/// Looks once more: somebody may have added a filter meanwhile.
fn remove_qdisc(ifindex: u32) -> io::Result<()> {
    let mut tc = Tc::open()?;
    match tc.look(ifindex) {
        Ok(seen) if seen.ingress.is_empty() && seen.egress.is_empty() => tc.remove_clsact(ifindex),
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
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
