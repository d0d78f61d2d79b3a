//! What the kernel's tables hold, and what the compiler could not do.

use std::net::IpAddr;

use policy_common::carrier::HIGHEST_SLOT;
use policy_common::map;
use policy_common::policy::{MAX_PAGES, RULES_PER_PAGE};
use policy_common::verdict::Direction;
use thiserror::Error;

use crate::model::ObjectName;

/// Number of rows of each table that the compiler fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of `policies`, that is one more than the highest policy id.
    pub policies: u32,
    /// Rows of `peers`.
    pub peers: u32,
    /// Rows of `ports`.
    pub ports: u32,
    /// Rows of `rule_counts`, the first of which is not used.
    pub rule_counts: u32,
    /// Rows of `identity_v4`, each for a block of neighbouring addresses.
    pub identity_v4: u32,
    /// Rows of `identity_v6`, likewise.
    pub identity_v6: u32,
    /// Rows of `prefix_v4`.
    pub prefix_v4: u32,
    /// Rows of `prefix_v6`.
    pub prefix_v6: u32,
    /// The highest slot of an endpoint id that a packet can carry, at most 65535.
    pub highest_slot: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            policies: map::POLICIES.capacity,
            peers: map::PEERS.capacity,
            ports: map::PORTS.capacity,
            rule_counts: map::RULE_COUNTS.capacity,
            identity_v4: map::IDENTITY_V4.capacity,
            identity_v6: map::IDENTITY_V6.capacity,
            prefix_v4: map::PREFIX_V4.capacity,
            prefix_v6: map::PREFIX_V6.capacity,
            highest_slot: HIGHEST_SLOT,
        }
    }
}

/// Something in the cluster that is not enforced as written.
#[derive(Clone, Debug, Error, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// More rules than a rule list holds: the pod's traffic in this direction is denied.
    #[error(
        "pod {pod}: {rules} {} rules select it, more than {}; its {} traffic is denied",
        direction.as_str(), MAX_PAGES * RULES_PER_PAGE, direction.as_str()
    )]
    RuleListTooLong {
        /// The pod.
        pod: ObjectName,
        /// Which of its directions.
        direction: Direction,
        /// Rules that are left after those with equal ports were merged.
        rules: usize,
    },
    /// The rows do not fit: a pod that was enforced before stays as it was, a new one is denied.
    #[error(
        "pod {pod}: its {} rules do not fit into table {table}; {}",
        direction.as_str(),
        if *kept { "its former rules stay in force" } else { "its traffic is denied" }
    )]
    TableFull {
        /// The pod.
        pod: ObjectName,
        /// Which of its directions.
        direction: Direction,
        /// Name of the table.
        table: &'static str,
        /// Whether the pod's former rules stay in force.
        kept: bool,
    },
    /// Rows that no rule list can be blamed for do not fit; their addresses count as strangers'.
    #[error(
        "table {table} is too small: {rows} rows are needed; what has no row is denied where rules allow only          who they name (raise its size with PORTCULLIS_TABLE_SIZES={table}=N)"
    )]
    TableTooSmall {
        /// Name of the table.
        table: &'static str,
        /// Rows needed, for a moment at least.
        rows: usize,
    },
    /// Rules are enforced and not counted.
    #[error("table rule_counts is too small: {rules} rules are enforced, but not counted")]
    NotCounted {
        /// How many.
        rules: usize,
    },
    /// Two live pods have one address; the newer one owns it.
    #[error("address {address} is claimed by pods {owner} and {loser}; it counts as {owner}'s")]
    AddressConflict {
        /// The address.
        address: IpAddr,
        /// The pod that it counts for.
        owner: ObjectName,
        /// The pod that it does not count for.
        loser: ObjectName,
    },
    /// More interfaces than endpoint ids.
    #[error(
        "interface {ifindex} of pod {pod}: this node has more than {ids} pod interfaces, which is all that a packet can \
         name; its traffic is denied"
    )]
    NoEndpointId {
        /// Host-side interface.
        ifindex: u32,
        /// Its pod.
        pod: ObjectName,
        /// How many ids there can be at a time.
        ids: u32,
    },
}
