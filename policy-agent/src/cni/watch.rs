//! Keeps the plugin installed: whoever rewrites the configuration does not know of us.

use std::fs;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use inotify::{Inotify, WatchMask};

use super::files::failed;
use super::{Directories, InstallError, Installation};

/// How long nothing has to happen before we look: files are written in several steps.
const SETTLE: Duration = Duration::from_millis(100);

/// How often we look without having been told.
const LOOK: Duration = Duration::from_secs(30);

impl Installation {
    /// Installs again whenever something changed, and never returns but with an error: what cannot be
    /// installed is logged and tried again. `done` hears the outcome of every attempt.
    ///
    /// # Errors
    ///
    /// When the directories cannot be watched.
    pub fn keep(
        &self,
        mut done: impl FnMut(Result<super::Outcome, InstallError>),
    ) -> Result<(), InstallError> {
        let Directories { bin_dir, conf_dir } = &self.directories;
        for directory in [conf_dir, bin_dir] {
            fs::create_dir_all(directory).map_err(failed(directory))?;
        }
        let mut inotify = Inotify::init().map_err(failed(conf_dir))?;
        for directory in [conf_dir, bin_dir] {
            let what = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE;
            inotify
                .watches()
                .add(directory, what)
                .map_err(failed(directory))?;
        }
        let (event, events) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while inotify.read_events_blocking(&mut buffer).is_ok() && event.send(()).is_ok() {}
        });
        loop {
            done(self.install());
            match events.recv_timeout(LOOK) {
                Ok(()) => while events.recv_timeout(SETTLE).is_ok() {},
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let ended = std::io::Error::other("inotify ended");
                    return Err(failed(conf_dir)(ended));
                }
            }
        }
    }
}
