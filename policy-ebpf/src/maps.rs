//! The BPF maps. Names, meanings and default sizes are in `policy_common::map`; user space may load
//! them with other sizes.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use policy_common::address::{AddressV4, AddressV6, Identity, IdentityBlock};
use policy_common::carrier::{Pending, Slot};
use policy_common::endpoint::{Endpoint, Ifindex};
use policy_common::event::{Event, EventBudget};
use policy_common::flow::{Flow, FlowKey, FragmentKey, FragmentPorts};
use policy_common::guard::Guard;
use policy_common::map;
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleCount, RuleKey};
use policy_common::port::PortData;
use policy_common::service::ServiceAddress;
use policy_common::verdict::Counter;

/// Rows appear with policies and pods: most nodes need a fraction of the capacity.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

/// Single remote addresses of one family, by blocks.
pub(crate) type IdentityTable<A> =
    HashMap<A, IdentityBlock, { map::IDENTITY_V4.capacity as usize }, ON_DEMAND>;
/// Prefixes of one family.
pub(crate) type PrefixTable<A> = LpmTrie<A, Identity, { map::PREFIX_V4.capacity as usize }>;
/// Addresses of one family that are translated later.
pub(crate) type ServiceTable<A> =
    HashMap<A, ServiceAddress, { map::SERVICE_V4.capacity as usize }, ON_DEMAND>;
/// Whose the addresses of one family are.
pub(crate) type GuardTable<A> = LpmTrie<A, Guard, { map::GUARDED_V4.capacity as usize }>;
/// Flows of one family that wait to be granted: by their tokens, then by their endpoints' slots.
pub(crate) type PendingTable<A> = Array<Pending<FlowKey<A>>, { map::PENDING_V4.capacity as usize }>;
/// Flows of one family that were seen both ways.
pub(crate) type FlowTable<A> = LruHashMap<FlowKey<A>, Flow, { map::FLOWS_V4.capacity as usize }>;
/// Flows of one family that were seen one way.
pub(crate) type NewFlowTable<A> =
    LruHashMap<FlowKey<A>, Flow, { map::FLOWS_NEW_V4.capacity as usize }>;

/// Size of the slow path's working memory, in 64-bit words.
pub(crate) const SCRATCH_WORDS: usize = 24;

macro_rules! tables {
    ($($id:ident, $name:literal: $type:ty;)+) => {
        $(
            #[btf_map(name = $name)]
            pub(crate) static $id: $type = <$type>::new();
        )+
    };
}

tables! {
    ENDPOINTS, "endpoints": Array<Endpoint, { map::ENDPOINTS.capacity as usize }>;
    ENDPOINTS_EXT, "endpoints_ext":
        HashMap<Ifindex, Endpoint, { map::ENDPOINTS_EXT.capacity as usize }, ON_DEMAND>;
    IDENTITY_V4, "identity_v4": IdentityTable<AddressV4>;
    IDENTITY_V6, "identity_v6": IdentityTable<AddressV6>;
    PREFIX_V4, "prefix_v4": PrefixTable<AddressV4>;
    PREFIX_V6, "prefix_v6": PrefixTable<AddressV6>;
    POLICIES, "policies": Array<PolicyHeader, { map::POLICIES.capacity as usize }>;
    PEERS, "peers": HashMap<PeerKey, RuleBits, { map::PEERS.capacity as usize }, ON_DEMAND>;
    PORTS, "ports": LpmTrie<PortData, RuleBits, { map::PORTS.capacity as usize }>;
    RULES, "rules": HashMap<RuleKey, RuleAction, { map::RULES.capacity as usize }, ON_DEMAND>;
    RULE_COUNTS, "rule_counts":
        PerCpuArray<RuleCount, { map::RULE_COUNTS.capacity as usize }>;
    SERVICE_V4, "service_v4": ServiceTable<AddressV4>;
    SERVICE_V6, "service_v6": ServiceTable<AddressV6>;
    SERVICE_HINTS, "service_hints": Array<u64, { map::SERVICE_HINTS.capacity as usize }>;
    GUARDED_V4, "guarded_v4": GuardTable<AddressV4>;
    GUARDED_V6, "guarded_v6": GuardTable<AddressV6>;
    SLOTS, "slots": Array<Slot, { map::SLOTS.capacity as usize }>;
    PENDING_V4, "pending_v4": PendingTable<AddressV4>;
    PENDING_V6, "pending_v6": PendingTable<AddressV6>;
    ONE_WAY_HINTS, "one_way_hints": PerCpuArray<u32, { map::ONE_WAY_HINTS.capacity as usize }>;
    FLOWS_V4, "flows_v4": FlowTable<AddressV4>;
    FLOWS_V6, "flows_v6": FlowTable<AddressV6>;
    FLOWS_NEW_V4, "flows_new_v4": NewFlowTable<AddressV4>;
    FLOWS_NEW_V6, "flows_new_v6": NewFlowTable<AddressV6>;
    FRAGMENTS, "fragments":
        LruHashMap<FragmentKey, FragmentPorts, { map::FRAGMENTS.capacity as usize }>;
    COUNTERS, "counters": PerCpuArray<Counter, { map::COUNTERS.capacity as usize }>;
    EVENT_BUDGET, "event_budget": PerCpuArray<EventBudget, { map::EVENT_BUDGET.capacity as usize }>;
    SCRATCH, "scratch": PerCpuArray<[u64; SCRATCH_WORDS], 1>;
    EVENTS, "events": RingBuf<Event, { map::EVENTS.capacity as usize }>;
}
