//! Names with our prefix, and what runs that were killed left behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where bpffs is mounted.
pub(super) const BPFFS: &str = "/sys/fs/bpf";

/// Where `ip netns` keeps its names.
pub(super) const NETNS: &str = "/run/netns";

const PREFIX: &str = "pcl-";

/// A prefix for one node's objects that nobody else has.
pub(super) fn unique() -> String {
    static CLEANED: Once = Once::new();
    static NEXT: AtomicU32 = AtomicU32::new(1);
    CLEANED.call_once(remove);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// Removes what belongs to processes that are gone.
fn remove() {
    for name in orphans(Path::new(NETNS)) {
        // Best effort, here and below: another run may be cleaning up as well.
        let _gone = Command::new("ip").args(["netns", "del", &name]).status();
    }
    for directory in [Path::new(BPFFS), &std::env::temp_dir()] {
        for name in orphans(directory) {
            let _gone = fs::remove_dir_all(directory.join(name));
        }
    }
}

/// Entries `pcl-PID-*` of processes that are gone.
fn orphans(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            name.strip_prefix(PREFIX)
                .and_then(|rest| rest.split('-').next())
                .and_then(|pid| pid.parse::<u32>().ok())
                .is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        })
        .collect()
}
