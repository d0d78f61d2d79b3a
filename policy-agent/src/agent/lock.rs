//! One agent per node: locks on the run directory and on the directory of pins.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Name of the lock in the run directory.
pub const FILE: &str = "agent.lock";

/// Held as long as the agent runs; the kernel lets go of it however the agent ends.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

/// Why a lock is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another agent{holder} already uses {path}; stop it first, or give this one a PORTCULLIS_RUN_DIR and a \
         PORTCULLIS_BPFFS of its own",
        holder = .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path = .path.display()
    )]
    Taken {
        /// What it uses.
        path: PathBuf,
        /// The other agent, where it can be told.
        pid: Option<u32>,
    },
    /// The directory cannot be made or used.
    #[error("{path}: {source}{hint}", path = .path.display(),
        hint = if source.kind() == io::ErrorKind::PermissionDenied { "; this needs root" } else { "" })]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Makes the run directory where it is missing, and locks it.
///
/// # Errors
///
/// When another agent holds it, or it cannot be made.
pub fn run_directory(directory: &Path) -> Result<Lock, LockError> {
    let failed = |path: &Path, source| LockError::Io {
        path: path.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(|error| failed(directory, error))?;
    let path = directory.join(FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| failed(&path, error))?;
    let mut lock = lock(file, directory)?;
    // For the message that a second agent prints.
    let pid = std::process::id().to_string();
    lock.file
        .set_len(0)
        .and_then(|()| lock.file.write_all(pid.as_bytes()))
        .map_err(|error| failed(&path, error))?;
    Ok(lock)
}

/// Locks the directory of pins; `None` when it does not exist yet.
///
/// # Errors
///
/// When another agent holds it, or it cannot be opened.
pub fn pins(directory: &Path) -> Result<Option<Lock>, LockError> {
    match File::open(directory) {
        Ok(file) => lock(file, directory).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LockError::Io {
            path: directory.to_owned(),
            source,
        }),
    }
}

fn lock(file: File, path: &Path) -> Result<Lock, LockError> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Lock { file }),
        Err((mut file, Errno::EWOULDBLOCK)) => Err(LockError::Taken {
            path: path.to_owned(),
            pid: written_holder(&mut file).or_else(|| holder(&file)),
        }),
        Err((_, errno)) => Err(LockError::Io {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}

/// The process that wrote its id into the lock file.
fn written_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The process that holds a lock on `file`, as far as the kernel's list shows it: a line may be missed
/// while others come and go (<https://man7.org/linux/man-pages/man5/proc_locks.5.html>).
fn holder(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (
        nix::sys::stat::major(metadata.dev()),
        nix::sys::stat::minor(metadata.dev()),
    );
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let at = fields.iter().position(|field| *field == place)?;
        fields.get(at.checked_sub(1)?)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_names_the_holder_and_the_first_ends_with_its_owner() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("run");
        let first = run_directory(&path).expect("free");
        let error = run_directory(&path).expect_err("taken").to_string();
        let pid = std::process::id();
        assert!(
            error.starts_with(&format!(
                "another agent (pid {pid}) already uses {}",
                path.display()
            )),
            "{error}"
        );
        drop(first);
        run_directory(&path).expect("free again");
    }

    #[test]
    fn directories_themselves_can_be_locked() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let first = pins(directory.path()).expect("free");
        assert!(first.is_some());
        assert!(matches!(
            pins(directory.path()),
            Err(LockError::Taken { .. })
        ));
        assert!(
            pins(&directory.path().join("absent"))
                .expect("no error")
                .is_none()
        );
    }
}
