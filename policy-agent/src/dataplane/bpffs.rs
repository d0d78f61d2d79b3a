//! The file system that pins live in.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};
use nix::unistd::geteuid;

use super::error::LoadError;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

/// Where the kernel offers a mount point for bpffs.
const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Sees to it that `dir`, which need not exist, is on a BPF file system, and mounts one where there is none.
/// Makes no directory but a mount point.
pub(super) fn mount_for(dir: &Path) -> Result<(), LoadError> {
    if is_bpffs(&nearest_existing(dir)) {
        return check_owner(dir);
    }
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
    let is_new = !mount_point.starts_with(MOUNT_POINT) && !mount_point.exists();
    if is_new {
        fs::create_dir_all(&mount_point).map_err(failed)?;
    }
    let mounted = mount(
        Some("bpf"),
        &mount_point,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    );
    if let Err(errno) = mounted {
        if is_new {
            // Best effort: the mount's failure is what counts.
            let _ = fs::remove_dir(&mount_point);
        }
        return Err(failed(errno.into()));
    }
    tracing::info!(mount_point = %mount_point.display(), "mounted bpffs");
    Ok(())
}

/// A directory's owner can take away pins in it, whoever made them. `/sys/fs/bpf` is everybody's to write to, so
/// that somebody may have been there first.
fn check_owner(dir: &Path) -> Result<(), LoadError> {
    match fs::metadata(dir) {
        Ok(metadata) if metadata.uid() != geteuid().as_raw() => Err(LoadError::ForeignDirectory {
            path: dir.to_owned(),
            owner: metadata.uid(),
        }),
        // What else is wrong with it shows when it is used.
        _ => Ok(()),
    }
}

/// Makes `dir`, on a BPF file system. To be called once the kernel has taken the programs, so that whoever may not
/// load them leaves no directory behind, which would be theirs: everybody may write to `/sys/fs/bpf`.
pub(super) fn make(dir: &Path) -> Result<(), LoadError> {
    fs::create_dir_all(dir).map_err(|source| LoadError::Pin {
        path: dir.to_owned(),
        source,
    })
}

/// What a directory of pins holds.
#[derive(Default)]
pub(super) struct Pins {
    /// Pins, however deep.
    pub(super) files: Vec<PathBuf>,
    /// Directories, each after those within it; the last is the directory itself.
    pub(super) directories: Vec<PathBuf>,
}

/// Everything below `dir`, and `dir`; nothing when it does not exist.
pub(super) fn pins(dir: &Path) -> io::Result<Pins> {
    let mut pins = Pins::default();
    if !dir.try_exists()? {
        return Ok(pins);
    }
    if !is_bpffs(dir) {
        return Err(io::Error::other(format!(
            "{} is not on a BPF file system, so what is in it is not ours",
            dir.display()
        )));
    }
    if dir == Path::new(MOUNT_POINT) {
        return Err(io::Error::other(format!(
            "{MOUNT_POINT} holds everybody's pins, and ours cannot be told from others' there; remove them by name"
        )));
    }
    collect(dir, &mut pins)?;
    pins.files.sort();
    Ok(pins)
}

fn collect(dir: &Path, pins: &mut Pins) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), pins)?;
        } else {
            pins.files.push(entry.path());
        }
    }
    pins.directories.push(dir.to_owned());
    Ok(())
}

/// Unmounts the bpffs at `dir`, which may still be open somewhere.
pub(super) fn unmount(dir: &Path) -> io::Result<()> {
    Ok(umount2(dir, MntFlags::MNT_DETACH)?)
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
