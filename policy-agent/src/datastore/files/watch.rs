//! Inotify on the directory: which files changed, and which are still being written.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

/// Watches one directory.
#[derive(Debug)]
pub(super) struct DirectoryWatch {
    directory: PathBuf,
    inotify: AsyncFd<Inotify>,
    watch: Option<WatchDescriptor>,
    /// Files that were opened for writing, changed, and not closed yet.
    writing: BTreeSet<String>,
    /// Files that changed for good since they were last taken.
    changed: BTreeSet<String>,
    /// Something changed that concerns no file that we know of, such as a symlink's target.
    stirred: bool,
}

impl DirectoryWatch {
    /// Begins to watch `directory`; must be called within a tokio runtime.
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        // SAFETY: `Inotify` owns its descriptor, keeps it open, and always gives the same one.
        let inotify = unsafe { AsyncFd::register(Inotify::init()?) }?;
        let mut watch = Self {
            directory: directory.to_owned(),
            inotify,
            watch: None,
            writing: BTreeSet::new(),
            changed: BTreeSet::new(),
            stirred: false,
        };
        watch.add()?;
        Ok(watch)
    }

    /// Watches the directory again after it was away.
    pub(super) fn add(&mut self) -> io::Result<()> {
        let mask = WatchMask::CREATE
            | WatchMask::MODIFY
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ATTRIB
            | WatchMask::ONLYDIR;
        self.watch = Some(
            self.inotify
                .get_ref()
                .watches()
                .add(&self.directory, mask)?,
        );
        self.stirred = true;
        Ok(())
    }

    /// Whether the directory itself is under watch; not so once it was deleted or moved away.
    pub(super) fn is_watching(&self) -> bool {
        self.watch.is_some()
    }

    /// Whether `file` is being written right now.
    pub(super) fn is_being_written(&self, file: &str) -> bool {
        self.writing.contains(file)
    }

    /// Waits for a change that is worth a look. Cancel-safe.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        loop {
            if self.drain()? {
                return Ok(());
            }
            self.inotify.readable_mut().await?.clear_ready();
            // What came between the read and the clearing is read before the next wait.
            if self.drain()? {
                return Ok(());
            }
        }
    }

    /// Takes in all that the kernel has to tell now; whether it is worth a look.
    pub(super) fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let events: Vec<_> = match self.inotify.get_mut().read_events(&mut buffer) {
                Ok(events) => events.map(|event| event.to_owned()).collect(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            if events.is_empty() {
                break;
            }
            for event in events {
                self.note(&event.wd, event.mask, event.name.as_deref());
            }
        }
        Ok(self.stirred || !self.changed.is_empty())
    }

    /// Files that changed since the last call.
    pub(super) fn take_changed(&mut self) -> BTreeSet<String> {
        self.stirred = false;
        std::mem::take(&mut self.changed)
    }

    fn note(&mut self, watch: &WatchDescriptor, mask: EventMask, name: Option<&OsStr>) {
        if mask.contains(EventMask::Q_OVERFLOW) {
            self.writing.clear();
            self.stirred = true;
            return;
        }
        if self.watch.as_ref() != Some(watch) {
            return;
        }
        if mask.intersects(
            EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT,
        ) {
            if let Some(watch) = self.watch.take() {
                // Fails where the kernel removed it already.
                let _gone = self.inotify.get_ref().watches().remove(watch);
            }
            self.writing.clear();
            self.stirred = true;
            return;
        }
        let Some(name) = name.and_then(OsStr::to_str).map(str::to_owned) else {
            self.stirred = true;
            return;
        };
        if mask.contains(EventMask::MODIFY) {
            self.writing.insert(name);
        } else if mask.contains(EventMask::CREATE) && self.is_new_and_empty(&name) {
            // A regular file that its writer has just made; CLOSE_WRITE follows.
            self.writing.insert(name);
        } else if mask.contains(EventMask::ATTRIB) {
            // Says nothing about the writer: tools set the mode of a file before they close it.
            self.changed.insert(name);
        } else {
            self.writing.remove(&name);
            self.changed.insert(name);
        }
    }

    /// Whether a created entry is a file with one name: not a symlink, nor a second hard link to
    /// what exists, for which no CLOSE_WRITE would follow.
    fn is_new_and_empty(&self, name: &str) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::symlink_metadata(self.directory.join(name))
            .is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
    }
}
