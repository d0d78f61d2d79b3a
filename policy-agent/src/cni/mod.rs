//! Puts `policy-cni` into a node's CNI configuration, keeps it there, and takes it out again.
//!
//! ```text
//! settings ─> install / uninstall ──> conflist (pure edits of JSON text), hold (whether there is a first entry of ours)
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
mod hold;
mod install;
mod settings;
mod uninstall;
mod watch;

pub use command::InstallCni;
pub use create::MainPlugin;
pub use error::InstallError;
pub use hold::{Hold, Holding};
pub use install::{Installation, Outcome, Plugin, PodCidrs};
pub use settings::{CniSettings, Directories};
