//! Who began the conversations that live when an endpoint becomes isolated.
//!
//! The programs keep no flows of an endpoint that no policy isolates, but for the beginnings and ends of TCP and SCTP.
//! The day a policy isolates it, each live conversation must be judged by the direction in which it was begun, not by the direction
//! of the packet that happens to come next. The kernel's connection tracking knows: the original direction of an entry is that of its
//! first packet.
//!
//! ```text
//! netlink        asks nf_conntrack
//! conversation   an entry as an endpoint's flow, with the addresses that are on the pod's wire
//! worker         a thread that asks, and puts what the tables of flows lack
//! cuts           which endpoints are about to become isolated, and what the queue of operations waits for
//! coverage       endpoints whose packets connection tracking does not see: their flows are recorded instead
//! ```
//!
//! `cuts` and `coverage` are the engine's, and read no clock; `worker` never holds up the agent's loop.

pub(super) mod conversation;
pub(super) mod coverage;
pub(super) mod cuts;
pub(super) mod netlink;
pub(super) mod worker;
