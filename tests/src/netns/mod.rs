//! A node and its pods as network namespaces, with real traffic between them.
//!
//! ```text
//!  outside ── veth ── node ─┬─ veth ── pod     Routed: a /32 and /128 route to each pod's veth (CNI ptp)
//!                    (agent)├─ veth ── pod     Bridge: the veths are ports of cni0 (CNI bridge)
//!                           └─ ...
//! ```
//!
//! Everything made here carries the prefix `pcl-PID-`, goes when its guard is dropped, panics
//! included, and what a killed run left goes at the next run's start.

mod agent;
mod conversation;
mod datastore;
mod flow;
mod greeter;
pub mod kube_proxy;
mod leftovers;
mod load;
mod namespace;
mod node;
mod paged;
mod process;
mod program;
mod scrape;
mod server;
mod table;
mod traffic;
mod tun;
mod wire;

pub use agent::{Agent, Source, binary};
pub use conversation::Conversation;
pub use datastore::Datastore;
pub use flow::{Flow, PATIENCE, SILENCE, Stream};
pub use greeter::Greeter;
pub use load::{Load, Running};
pub use namespace::{Inside, Netns};
pub use node::{Form, Host, Node, PodSpec};
pub use paged::{PAGE, send_paged};
pub use process::Process;
pub use program::{Attached, Hook, Program};
pub use scrape::{Page, get};
pub use server::Servers;
pub use table::{Expected, Row, check, expect, wrong};
pub use traffic::{Family, Outcome, Probe, What, measure, probe};
pub use tun::Tunnel;
pub use wire::{Injector, Sniffer};

/// Says why these tests cannot run here.
///
/// # Errors
///
/// When the process is not root's.
pub fn require_root() -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root: run it with sudo"
    );
    Ok(())
}
