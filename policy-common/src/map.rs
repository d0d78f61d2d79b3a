//! The BPF maps: their names and default sizes.
//!
//! Names are at most 15 characters, the kernel's limit, and are also the names of the pins.

/// Name of a map and the number of entries that it gets unless configured otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Name in the object, in the kernel, and of the pin.
    pub name: &'static str,
    /// Default number of entries; bytes for the ring buffer.
    pub capacity: u32,
}

/// Version of the layout and meaning of what operations write. Kept in the tables themselves, in `flags`
/// of row 0 of `endpoints`: an agent goes on with tables of its own version only, and makes others anew
/// beside those it finds.
pub const LAYOUT: u32 = 3;

/// Version of the layout and meaning of the rows of `endpoints`, and of the tables that the programs write:
/// flows, fragments and counters. Kept in `ingress_policy` of row 0 of `endpoints`. Across versions
/// connections are not known any more, so a new one should come with code that translates them.
pub const FLOW_LAYOUT: u32 = 3;

macro_rules! maps {
    ($($(#[$doc:meta])* $id:ident = $name:literal, $capacity:expr;)+) => {
        $($(#[$doc])* pub const $id: MapSpec = MapSpec { name: $name, capacity: $capacity };)+
        /// Every map.
        pub const ALL: &[MapSpec] = &[$($id,)+];
    };
}

maps! {
    /// ARRAY: ifindex -> `Endpoint`.
    ENDPOINTS = "endpoints", 16_384;
    /// HASH: `Ifindex` -> `Endpoint`, for what lies beyond the array's end.
    ENDPOINTS_EXT = "endpoints_ext", 4_096;
    /// HASH: `AddressV4` of a block -> `IdentityBlock`.
    IDENTITY_V4 = "identity_v4", 131_072;
    /// HASH: `AddressV6` of a block -> `IdentityBlock`.
    IDENTITY_V6 = "identity_v6", 131_072;
    /// LPM_TRIE: `PrefixV4` -> `Identity`.
    PREFIX_V4 = "prefix_v4", 65_536;
    /// LPM_TRIE: `PrefixV6` -> `Identity`.
    PREFIX_V6 = "prefix_v6", 65_536;
    /// ARRAY: policy id -> `PolicyHeader`.
    POLICIES = "policies", 8_192;
    /// HASH: `PeerKey` -> `RuleBits`.
    PEERS = "peers", 262_144;
    /// LPM_TRIE: `PortKey` -> `RuleBits`.
    PORTS = "ports", 131_072;
    /// HASH: `RuleKey` -> `RuleAction`, admin and baseline tiers only.
    RULES = "rules", 16_384;
    /// PERCPU_ARRAY: `PolicyHeader::first_count` + rule -> `RuleCount`; row 0 is not used.
    RULE_COUNTS = "rule_counts", 32_768;
    /// HASH: `AddressV4` -> `ServiceAddress`.
    SERVICE_V4 = "service_v4", 65_536;
    /// HASH: `AddressV6` -> `ServiceAddress`.
    SERVICE_V6 = "service_v6", 65_536;
    /// ARRAY of words of 64 bits: `service::Hint`s.
    SERVICE_HINTS = "service_hints", crate::service::Hint::WORDS;
    /// LPM_TRIE: `PrefixV4` -> `Guard`.
    GUARDED_V4 = "guarded_v4", 524_288;
    /// LPM_TRIE: `PrefixV6` -> `Guard`.
    GUARDED_V6 = "guarded_v6", 524_288;
    /// ARRAY: slot of an endpoint's id -> `carrier::Slot`.
    SLOTS = "slots", crate::carrier::HIGHEST_SLOT + 1;
    /// ARRAY: `carrier::pending_index` of a token -> `carrier::Pending` with a `FlowKeyV4`.
    PENDING_V4 = "pending_v4", crate::carrier::PENDING_ROWS + crate::carrier::HIGHEST_SLOT + 1;
    /// ARRAY: `carrier::pending_index` of a token -> `carrier::Pending` with a `FlowKeyV6`.
    PENDING_V6 = "pending_v6", crate::carrier::PENDING_ROWS + crate::carrier::HIGHEST_SLOT + 1;
    /// PERCPU_ARRAY: hash of a flow's key -> another hash of it, where the last such flow was seen one way only.
    ONE_WAY_HINTS = "one_way_hints", crate::flow::ONE_WAY_HINTS;
    /// LRU_HASH: `FlowKeyV4` -> `Flow`, seen both ways.
    FLOWS_V4 = "flows_v4", 131_072;
    /// LRU_HASH: `FlowKeyV6` -> `Flow`, seen both ways.
    FLOWS_V6 = "flows_v6", 131_072;
    /// LRU_HASH: `FlowKeyV4` -> `Flow`, seen one way.
    FLOWS_NEW_V4 = "flows_new_v4", 65_536;
    /// LRU_HASH: `FlowKeyV6` -> `Flow`, seen one way.
    FLOWS_NEW_V6 = "flows_new_v6", 65_536;
    /// LRU_HASH: `FragmentKey` -> `FragmentPorts`.
    FRAGMENTS = "fragments", 8_192;
    /// PERCPU_ARRAY: `verdict::counter_index` -> `Counter`.
    COUNTERS = "counters", 2 * crate::verdict::REASON_SLOTS;
    /// PERCPU_ARRAY of one: `EventBudget`.
    EVENT_BUDGET = "event_budget", 1;
    /// RINGBUF of `Event`; the capacity is in bytes.
    EVENTS = "events", 1 << 20;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|map| map.name).collect();
        assert!(names.iter().all(|name| name.len() <= 15));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
