//! The file system that pins live in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, statfs};

use super::error::LoadError;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// Where the kernel offers a mount point for bpffs.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes `dir` a directory on a BPF file system, mounting one where there is none.
pub(super) fn prepare(dir: &Path) -> Result<(), LoadError> {
    if !is_bpffs(&nearest_existing(dir)) {
        let mount_point = if dir.starts_with(MOUNT_POINT) {
            PathBuf::from(MOUNT_POINT)
        } else {
            dir.to_owned()
        };
        let failed = |source: io::Error| LoadError::Bpffs {
            path: dir.to_owned(),
            mount_point: mount_point.clone(),
            source,
        };
        if !mount_point.starts_with(MOUNT_POINT) {
            fs::create_dir_all(&mount_point).map_err(failed)?;
        }
        mount(
            Some("bpf"),
            &mount_point,
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .map_err(|errno| failed(errno.into()))?;
        tracing::info!(mount_point = %mount_point.display(), "mounted bpffs");
    }
    fs::create_dir_all(dir).map_err(|source| LoadError::Pin {
        path: dir.to_owned(),
        source,
    })
}

fn nearest_existing(path: &Path) -> PathBuf {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"))
        .to_owned()
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}
