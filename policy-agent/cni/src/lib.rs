//! `policy-cni`, a plugin at the end of a CNI chain: a pod's sandbox is not ready before the agent
//! enforces its policies.
//!
//! ```text
//! runtime ──stdin, env──> policy-cni ──POST on a unix socket──> policy-agent
//!         <──prevResult──            <──once it is enforced──
//! ```
//!
//! It runs once per pod and command, so it has no runtime and no threads: it blocks on one socket until
//! a deadline. `api` is shared with the agent; nothing else here knows of it, and nothing here of
//! Kubernetes or eBPF.

pub mod api;
pub mod client;
pub mod conf;
pub mod environment;
pub mod error;
pub mod plugin;
pub mod result;
