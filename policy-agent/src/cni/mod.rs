//! Puts `policy-cni` into a node's CNI configuration, keeps it there, and takes it out again.
//!
//! ```text
//! settings ─> install / uninstall ──> conflist (pure edits of JSON text)
//!    └─> watch ──┘      └─> files (whole files, or nothing)
//! ```
//!
//! Knows files and JSON, and nothing of the agent or the kernel; whoever uses it asks the API. Invariants: a configuration that
//! names the plugin is only written once the plugin is there; every file is replaced whole; of other
//! plugins not a byte changes.

mod command;
mod conflist;
mod create;
mod error;
mod files;
mod install;
mod settings;
mod uninstall;
mod watch;

use std::fs;
use std::path::Path;

use conflist::Conflist;

pub use command::InstallCni;
pub use create::MainPlugin;
pub use error::InstallError;
pub use install::{Installation, Outcome, Plugin, PodCidrs};
pub use settings::{CniSettings, Directories};

/// Whether some network's plugin `bandwidth` runs after ours: it adds an `ingress` qdisc, and fails where a clsact
/// qdisc is. What cannot be read, no runtime uses either.
#[must_use]
pub fn bandwidth_comes_after_ours(conf_dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(conf_dir) else {
        return false;
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut lists = paths.filter(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension == Some("conflist")
    });
    lists.any(|path| {
        let list = fs::read(path).ok().map(|text| Conflist::parse(&text));
        list.is_some_and(|list| list.is_ok_and(|list| list.has_after_ours("bandwidth")))
    })
}
