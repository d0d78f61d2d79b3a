//! Files that are replaced whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::InstallError;

/// Runtimes take a file for a configuration by how its name ends; this is none of those ends.
const DRAFT: &str = ".portcullis-draft";

/// An I/O error with its path.
pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io { path, source }
}

/// Reads a file, `None` where there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path)(error)),
    }
}

/// Puts a file in place of what is there, if anything. After a failure all is as before.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    let draft = beside(path, DRAFT);
    let written = write(&draft, content, mode).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = written {
        // It may not even have come to be.
        let _gone = fs::remove_file(&draft);
        return Err(failed(path)(error));
    }
    Ok(())
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

/// A file's permission bits, or those of a new configuration.
pub(super) fn mode(path: &Path) -> u32 {
    const NEW: u32 = 0o644;
    fs::metadata(path).map_or(NEW, |found| found.permissions().mode() & 0o7777)
}

/// The path with something appended to the file's name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // One that a killed run left may have other permissions.
    let _gone = fs::remove_file(path);
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}
