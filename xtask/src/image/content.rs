//! The image's files. There is nothing but these: the programs are static, and names are resolved by the
//! C library that is part of them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Licences of what is in the image, in the workspace's root.
const LICENSES: [&str; 3] = ["LICENSE", "LICENSE-GPL-2.0", "LICENSE-MIT"];

/// A regular file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Its path, without the leading slash.
    pub(super) path: String,
    /// Permission bits.
    pub(super) mode: u32,
    /// What is in it.
    pub(super) data: Vec<u8>,
}

/// All files, sorted by path.
pub(super) struct Content {
    /// See the type.
    pub(super) files: Vec<File>,
}

/// The image's files: programs, and licences from the source's `root`.
pub(super) fn of(root: &Path, programs: &[(String, PathBuf)]) -> Result<Content> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut files = Vec::new();
    for (name, path) in programs {
        files.push(File {
            path: format!("usr/bin/{name}"),
            mode: 0o755,
            data: read(path)?,
        });
    }
    for name in LICENSES {
        files.push(File {
            path: format!("usr/share/doc/portcullis/{name}"),
            mode: 0o644,
            data: read(&root.join(name))?,
        });
    }
    Ok(Content::new(files))
}

impl Content {
    /// These files.
    pub(super) fn new(mut files: Vec<File>) -> Self {
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Self { files }
    }

    /// Bytes in all files.
    pub(super) fn size(&self) -> usize {
        self.files.iter().map(|file| file.data.len()).sum()
    }

    /// Writes the files below a directory.
    pub(super) fn write_to(&self, directory: &Path) -> Result<()> {
        for file in &self.files {
            let path = directory.join(&file.path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, &file.data)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(file.mode)))
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }
}
