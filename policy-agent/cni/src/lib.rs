//! `policy-cni`, a plugin that stands at both ends of a CNI chain: a pod's sandbox is not ready before the agent
//! enforces its policies, and until then its kernel answers nobody.
//!
//! ```text
//! runtime ──ADD, first entry──> policy-cni ──nftables──> the pod's network namespace is held
//!         ──ADD, last entry───> policy-cni ──POST on a unix socket──> policy-agent
//!         <──prevResult──                  <──once it is enforced──
//!                                          ──nftables──> the namespace is released
//! ```
//!
//! It runs once per turn and command, so it has no runtime: it blocks on one socket until
//! a deadline. `api` is shared with the agent, `hold` knows the kernel; nothing else here knows of either, and
//! nothing here of Kubernetes or eBPF.

pub mod api;
pub mod client;
pub mod conf;
pub mod environment;
pub mod error;
pub mod hold;
pub mod plugin;
pub mod result;
