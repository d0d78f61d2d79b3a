//! The `files` datastore: a directory of ordinary Kubernetes YAML, for demos, tests and machines
//! without a cluster.
//!
//! ```text
//! directory --watch--> files that changed --parse--> objects or problems --catalog--> changes
//! ```
//!
//! A file is taken over whole or not at all: with an error in it, its last good state stays in force.
//! Files that are still being written are left alone until they are closed.

mod catalog;
mod document;
mod parse;
mod watch;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch as value};
use tokio::time::{Instant, sleep_until};

use super::{Datastore, ObjectChange, Problem, ProblemLog, Report, Severity, SyncToken, Update};
use catalog::Catalog;
use watch::DirectoryWatch;

/// How long to wait for more after a change, so that a burst of writes is one update.
const SETTLE: Duration = Duration::from_millis(20);

/// How often the directory is looked at without an event: for file systems that send none, and for a
/// directory that went away.
const LOOK: Duration = Duration::from_secs(2);

/// Updates that may wait for the agent.
const UPDATES: usize = 64;

/// Begins to read `directory` and to follow its changes; must be called within a tokio runtime.
///
/// # Errors
///
/// When the directory cannot be watched.
pub fn start(directory: &Path) -> io::Result<Datastore> {
    let (updates, updates_out) = mpsc::channel(UPDATES);
    let (sync, sync_in) = mpsc::channel(16);
    let (report, report_out) = value::channel(Arc::new(Report::default()));
    let store = FilesStore {
        watch: DirectoryWatch::new(directory)?,
        directory: directory.to_owned(),
        catalog: Catalog::new(now()),
        seen: HashMap::new(),
        directory_problem: None,
        loaded: false,
        log: ProblemLog::default(),
        updates,
        report,
    };
    tokio::spawn(store.run(sync_in));
    Ok(Datastore {
        updates: updates_out,
        sync,
        report: report_out,
    })
}

/// What tells one content of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&fs::Metadata> for Fingerprint {
    fn from(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What was last seen of a file.
#[derive(Debug)]
struct Seen {
    fingerprint: Fingerprint,
    /// Of its text.
    hash: u64,
}

struct FilesStore {
    directory: PathBuf,
    watch: DirectoryWatch,
    catalog: Catalog,
    seen: HashMap<Arc<str>, Seen>,
    directory_problem: Option<String>,
    loaded: bool,
    log: ProblemLog,
    updates: mpsc::Sender<Update>,
    report: value::Sender<Arc<Report>>,
}

/// The agent has gone.
struct Closed;

impl FilesStore {
    async fn run(mut self, mut sync: mpsc::Receiver<SyncToken>) {
        if self.refresh(true, Instant::now()).await.is_err() {
            return;
        }
        let mut look_at = Instant::now() + LOOK;
        loop {
            let result = tokio::select! {
                token = sync.recv() => match token {
                    Some(token) => self.sync(token).await,
                    None => return,
                },
                changed = self.watch.changed() => {
                    let noticed = Instant::now();
                    if let Err(error) = changed {
                        tracing::warn!(%error, "inotify failed; the directory is read every {LOOK:?}");
                        sleep_until(look_at).await;
                    } else {
                        tokio::time::sleep(SETTLE).await;
                    }
                    self.refresh(false, noticed).await
                }
                () = sleep_until(look_at) => {
                    let now = Instant::now();
                    look_at = now + LOOK;
                    self.refresh(false, now).await
                }
            };
            if result.is_err() {
                return;
            }
        }
    }

    async fn sync(&mut self, token: SyncToken) -> Result<(), Closed> {
        self.refresh(true, Instant::now()).await?;
        self.updates
            .send(Update::Synced(token))
            .await
            .map_err(|_| Closed)
    }

    /// Reads what changed, or with `all` every file, and sends what that changes. That something did
    /// was noticed at `noticed`.
    async fn refresh(&mut self, all: bool, noticed: Instant) -> Result<(), Closed> {
        if !self.watch.is_watching() {
            // Reported by the listing, when it is the directory that is gone.
            let _retried = self.watch.add();
        }
        if let Err(error) = self.watch.drain() {
            tracing::warn!(%error, "inotify failed");
        }
        let changed = self.watch.take_changed();
        let changes = match self.list() {
            Ok(names) => {
                self.directory_problem = None;
                self.read(names, |name| all || changed.contains(name))
            }
            Err(error) => {
                self.directory_problem = Some(format!(
                    "cannot be read ({error}); the last good state stays in force"
                ));
                Vec::new()
            }
        };
        self.publish_report();
        if !changes.is_empty() {
            self.updates
                .send(Update::Changes {
                    received: noticed.into_std(),
                    changes,
                })
                .await
                .map_err(|_| Closed)?;
        }
        if !self.loaded && self.directory_problem.is_none() {
            self.loaded = true;
            self.publish_report();
            self.updates
                .send(Update::Loaded)
                .await
                .map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// The files that count: `*.yaml`, `*.yml`, `*.json`, and no editor's temporary ones.
    fn list(&self) -> io::Result<BTreeSet<Arc<str>>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str().filter(|name| counts(name)) {
                names.insert(Arc::from(name));
            }
        }
        Ok(names)
    }

    fn read(
        &mut self,
        names: BTreeSet<Arc<str>>,
        must_read: impl Fn(&str) -> bool,
    ) -> Vec<ObjectChange> {
        let mut changes = Vec::new();
        let gone: Vec<_> = self
            .catalog
            .files()
            .filter(|name| !names.contains(*name))
            .cloned()
            .collect();
        for name in names {
            if self.watch.is_being_written(&name) {
                continue;
            }
            match self.read_file(&name, must_read(&name)) {
                Ok(Some(text)) => {
                    let parsed = parse::parse(&name, &text);
                    changes.extend(self.catalog.put(&name, parsed, now()));
                }
                Ok(None) => {}
                // Gone since the listing; the next one tells.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    self.seen.remove(&name);
                    self.catalog
                        .unreadable(&name, format!("cannot be read: {error}"));
                }
            }
        }
        // After the others, so that an object that moved from file to file is never absent.
        for name in gone {
            self.seen.remove(&name);
            changes.extend(self.catalog.remove(&name));
        }
        changes
    }

    /// The file's text, unless it is what it was.
    fn read_file(&mut self, name: &Arc<str>, must_read: bool) -> io::Result<Option<String>> {
        let path = self.directory.join(&**name);
        let metadata = fs::metadata(&path)?;
        if metadata.is_dir() {
            return Ok(None);
        }
        let fingerprint = Fingerprint::from(&metadata);
        let seen = self.seen.get_mut(name);
        if !must_read
            && seen
                .as_ref()
                .is_some_and(|seen| seen.fingerprint == fingerprint)
        {
            return Ok(None);
        }
        let text = fs::read_to_string(&path)?;
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = hasher.finish();
        match seen {
            Some(seen) if seen.hash == hash => {
                seen.fingerprint = fingerprint;
                Ok(None)
            }
            _ => {
                self.seen.insert(name.clone(), Seen { fingerprint, hash });
                Ok(Some(text))
            }
        }
    }

    fn publish_report(&mut self) {
        let mut problems = self.catalog.problems();
        if let Some(message) = &self.directory_problem {
            problems.insert(
                0,
                Problem {
                    file: self.directory.display().to_string(),
                    line: None,
                    object: None,
                    message: message.clone(),
                    severity: Severity::Error,
                },
            );
        }
        self.log.update(&problems);
        let report = Report {
            source: format!("files in {}", self.directory.display()),
            loaded: self.loaded,
            files: self.catalog.files().count(),
            objects: self.catalog.objects(),
            problems,
            api: None,
        };
        self.report.send_replace(Arc::new(report));
    }
}

/// Whether a file of this name is read.
fn counts(name: &str) -> bool {
    !name.starts_with(['.', '#'])
        && [".yaml", ".yml", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending))
}

fn now() -> i64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
