//! Takes the plugin out again: exactly what was there before, where nobody changed it since; otherwise what
//! is there now, without ours.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::Directories;
use super::InstallError;
use super::conflist::TYPE;
use super::files::{beside, failed, mode, read, remove, replace};
use super::install::{BACKUP, CREATED, configurations, parse};

impl Directories {
    /// The plugin's place.
    pub(super) fn installed_program(&self) -> PathBuf {
        self.bin_dir.join(TYPE)
    }

    /// Takes the plugin out of every configuration, then removes its program. Returns the files that
    /// were changed or removed.
    ///
    /// # Errors
    ///
    /// What cannot be written. A configuration that cannot be read is nobody's who could use us, and is
    /// left alone.
    pub fn uninstall(&self) -> Result<Vec<PathBuf>, InstallError> {
        let mut changed = Vec::new();
        for path in configurations(&self.conf_dir)? {
            let text = fs::read(&path).map_err(failed(&path))?;
            match parse(&path, &text) {
                Ok(list) if list.has_ours() => {
                    take_out(&path, list)?;
                    changed.push(path);
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "left alone"),
            }
        }
        for suffix in [BACKUP, CREATED] {
            for path in ending_with(&self.conf_dir, suffix)? {
                remove(&path)?;
                changed.push(path);
            }
        }
        let program = self.installed_program();
        if program.exists() {
            remove(&program)?;
            changed.push(program);
        }
        Ok(changed)
    }
}

fn take_out(path: &Path, list: super::conflist::Conflist) -> Result<(), InstallError> {
    let left = list.without_ours();
    let created = beside(path, CREATED);
    if let Some(text) = read(&created)?
        && parse(path, &text).is_ok_and(|before| before.is_like(&left))
    {
        return remove(path);
    }
    for extension in ["conflist", "conf", "json"] {
        let original = path.with_extension(extension);
        let backup = beside(&original, BACKUP);
        let Some(text) = read(&backup)? else {
            continue;
        };
        if parse(&original, &text).is_ok_and(|before| before.is_like(&left)) {
            replace(&original, &text, mode(&backup))?;
            if original != path {
                remove(path)?;
            }
            return Ok(());
        }
    }
    replace(path, left.to_string().as_bytes(), mode(path))
}

fn ending_with(directory: &Path, suffix: &str) -> Result<Vec<PathBuf>, InstallError> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed(directory))?.path();
        if path
            .file_name()
            .and_then(OsStr::to_str)
            .is_some_and(|name| name.ends_with(suffix))
        {
            found.push(path);
        }
    }
    Ok(found)
}
