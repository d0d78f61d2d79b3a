//! Table operations: what the compiler wants done to the kernel's tables, in order, as data.
//!
//! Every operation is idempotent: `Put` replaces, `Delete` of what is absent is no error. A plan that
//! failed midway is therefore resumed by running it again from the operation that failed.

use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::address::Identity;
use policy_common::endpoint::Endpoint;
use policy_common::guard::Guard;
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleKey};
use policy_common::port::PortKey;
use policy_common::service::ServiceAddress;

/// One operation on one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `policies[id] = header`.
    PutPolicy {
        /// Policy id of the page, not 0.
        id: u32,
        /// Its header.
        header: PolicyHeader,
    },
    /// `policies[id] = 0`.
    DeletePolicy {
        /// Policy id of the page.
        id: u32,
    },
    /// `peers[key] = bits`.
    PutPeer {
        /// Page and identity.
        key: PeerKey,
        /// Rules whose peers match the identity; never empty (an absent row means none).
        bits: Box<RuleBits>,
    },
    /// Removes a row of `peers`.
    DeletePeer {
        /// Page and identity.
        key: PeerKey,
    },
    /// `ports[key] = bits`.
    PutPort {
        /// Page, protocol and block of ports.
        key: PortKey,
        /// Rules whose ports contain the block.
        bits: Box<RuleBits>,
    },
    /// Removes a row of `ports`.
    DeletePort {
        /// Page, protocol and block of ports.
        key: PortKey,
    },
    /// `rules[key] = action`, admin and baseline tiers only.
    PutRule {
        /// Page and rule.
        key: RuleKey,
        /// What the rule does.
        action: RuleAction,
    },
    /// Removes a row of `rules`.
    DeleteRule {
        /// Page and rule.
        key: RuleKey,
    },
    /// Sets rows of `rule_counts` to zero, before a page begins to count there.
    ClearRuleCounts {
        /// The first row.
        first: u32,
        /// How many.
        rows: u32,
    },
    /// The address's place in its block of `identity_v4/6` becomes `identity`; atomic for a packet.
    PutAddress {
        /// The remote address.
        address: IpAddr,
        /// Its identity, not 0.
        identity: Identity,
    },
    /// Empties the address's place in `identity_v4/6`, and removes a row with nothing left in it.
    DeleteAddress {
        /// The remote address.
        address: IpAddr,
    },
    /// `prefix_v4/6[prefix] = identity`.
    PutPrefix {
        /// The network, truncated to its prefix length.
        prefix: IpNet,
        /// Its identity.
        identity: Identity,
    },
    /// Removes a row of `prefix_v4/6`.
    DeletePrefix {
        /// The network.
        prefix: IpNet,
    },
    /// `endpoints[ifindex] = endpoint`. A change of policies and a change of epoch are never in one
    /// operation, except for a row that was not there before.
    PutEndpoint {
        /// Host-side interface.
        ifindex: u32,
        /// The row.
        endpoint: Endpoint,
    },
    /// Empties a row of `endpoints`. The programs are detached before.
    DeleteEndpoint {
        /// Host-side interface.
        ifindex: u32,
    },
    /// `service_v4/6[address] = row`.
    PutService {
        /// An address that is translated after `from_pod`, or this node's own.
        address: IpAddr,
        /// Which of these it is.
        row: ServiceAddress,
    },
    /// Removes a row of `service_v4/6`.
    DeleteService {
        /// The address.
        address: IpAddr,
    },
    /// `guarded_v4/6[prefix] = row`.
    PutGuard {
        /// Addresses that are somebody's, truncated to the prefix length.
        prefix: IpNet,
        /// Whose they are.
        row: Guard,
    },
    /// Removes a row of `guarded_v4/6`.
    DeleteGuard {
        /// The addresses.
        prefix: IpNet,
    },
    /// Wait until every packet that began before has left the programs (an RCU grace period): rows
    /// that only such a packet could still look up may go afterwards.
    Barrier,
}

impl Op {
    /// Every word of [`Op::kind`].
    pub const KINDS: [&str; 20] = [
        "put_policy",
        "delete_policy",
        "put_peer",
        "delete_peer",
        "put_port",
        "delete_port",
        "put_rule",
        "delete_rule",
        "clear_rule_counts",
        "put_address",
        "delete_address",
        "put_prefix",
        "delete_prefix",
        "put_endpoint",
        "delete_endpoint",
        "put_service",
        "delete_service",
        "put_guard",
        "delete_guard",
        "barrier",
    ];

    /// What it does, in a word for metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::PutPolicy { .. } => "put_policy",
            Self::DeletePolicy { .. } => "delete_policy",
            Self::PutPeer { .. } => "put_peer",
            Self::DeletePeer { .. } => "delete_peer",
            Self::PutPort { .. } => "put_port",
            Self::DeletePort { .. } => "delete_port",
            Self::PutRule { .. } => "put_rule",
            Self::DeleteRule { .. } => "delete_rule",
            Self::ClearRuleCounts { .. } => "clear_rule_counts",
            Self::PutAddress { .. } => "put_address",
            Self::DeleteAddress { .. } => "delete_address",
            Self::PutPrefix { .. } => "put_prefix",
            Self::DeletePrefix { .. } => "delete_prefix",
            Self::PutEndpoint { .. } => "put_endpoint",
            Self::DeleteEndpoint { .. } => "delete_endpoint",
            Self::PutService { .. } => "put_service",
            Self::DeleteService { .. } => "delete_service",
            Self::PutGuard { .. } => "put_guard",
            Self::DeleteGuard { .. } => "delete_guard",
            Self::Barrier => "barrier",
        }
    }
}
