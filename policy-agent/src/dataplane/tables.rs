//! The tables, typed, and the executor of operations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use bytemuck::Zeroable;
use ipnet::IpNet;
use policy_common::address::{AddressV4, AddressV6, Identity, IdentityBlock};
use policy_common::endpoint::{Endpoint, Ifindex};
use policy_common::event::EventBudget;
use policy_common::flow::{Flow, FlowKeyV4, FlowKeyV6, FragmentKey, FragmentPorts};
use policy_common::map::{self, MapSpec};
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleCount, RuleKey};
use policy_common::port::PortData;
use policy_common::verdict::{Counter, Direction, Reason, counter_index};
use policy_core::op::Op;

use super::error::{ApplyError, LoadError};
use super::grace;
use super::load::{Data, take_as};
use super::row::Row;

/// One row of [`super::Dataplane::counters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// The pod's direction.
    pub direction: Direction,
    /// Why packets passed or dropped.
    pub reason: Reason,
    /// Packets since load.
    pub packets: u64,
    /// Their length in bytes.
    pub bytes: u64,
}

/// Use and capacity of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableUse {
    /// Its name.
    pub name: &'static str,
    /// Rows in use.
    pub used: u64,
    /// Rows that it can hold.
    pub capacity: u64,
}

/// A hash table, LRU or not.
type HashTable<K, V> = HashMap<Data, Row<K>, Row<V>>;
/// A prefix table.
type Trie<K, V> = LpmTrie<Data, Row<K>, Row<V>>;

pub(super) struct Tables {
    capacities: BTreeMap<&'static str, u32>,
    endpoints: Array<Data, Row<Endpoint>>,
    endpoints_ext: HashTable<Ifindex, Endpoint>,
    identity_v4: HashTable<AddressV4, IdentityBlock>,
    identity_v6: HashTable<AddressV6, IdentityBlock>,
    prefix_v4: Trie<AddressV4, Identity>,
    prefix_v6: Trie<AddressV6, Identity>,
    policies: Array<Data, Row<PolicyHeader>>,
    peers: HashTable<PeerKey, RuleBits>,
    ports: Trie<PortData, RuleBits>,
    rules: HashTable<RuleKey, RuleAction>,
    rule_counts: PerCpuArray<Data, Row<RuleCount>>,
    flows_v4: HashTable<FlowKeyV4, Flow>,
    flows_v6: HashTable<FlowKeyV6, Flow>,
    flows_new_v4: HashTable<FlowKeyV4, Flow>,
    flows_new_v6: HashTable<FlowKeyV6, Flow>,
    fragments: HashTable<FragmentKey, FragmentPorts>,
    counters: PerCpuArray<Data, Row<Counter>>,
    event_budget: PerCpuArray<Data, Row<EventBudget>>,
    cpus: usize,
}

impl Tables {
    pub(super) fn new(
        ebpf: &mut Ebpf,
        capacities: &BTreeMap<&'static str, u32>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            capacities: capacities.clone(),
            endpoints: take_as(ebpf, map::ENDPOINTS.name)?,
            endpoints_ext: take_as(ebpf, map::ENDPOINTS_EXT.name)?,
            identity_v4: take_as(ebpf, map::IDENTITY_V4.name)?,
            identity_v6: take_as(ebpf, map::IDENTITY_V6.name)?,
            prefix_v4: take_as(ebpf, map::PREFIX_V4.name)?,
            prefix_v6: take_as(ebpf, map::PREFIX_V6.name)?,
            policies: take_as(ebpf, map::POLICIES.name)?,
            peers: take_as(ebpf, map::PEERS.name)?,
            ports: take_as(ebpf, map::PORTS.name)?,
            rules: take_as(ebpf, map::RULES.name)?,
            rule_counts: take_as(ebpf, map::RULE_COUNTS.name)?,
            flows_v4: take_as(ebpf, map::FLOWS_V4.name)?,
            flows_v6: take_as(ebpf, map::FLOWS_V6.name)?,
            flows_new_v4: take_as(ebpf, map::FLOWS_NEW_V4.name)?,
            flows_new_v6: take_as(ebpf, map::FLOWS_NEW_V6.name)?,
            fragments: take_as(ebpf, map::FRAGMENTS.name)?,
            counters: take_as(ebpf, map::COUNTERS.name)?,
            event_budget: take_as(ebpf, map::EVENT_BUDGET.name)?,
            cpus: nr_cpus().map_err(|(_, source)| LoadError::Events(source))?,
        })
    }

    /// Executes one operation.
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::PutPolicy { id, header } => self.set_policy(*id, *header),
            Op::DeletePolicy { id } => self.set_policy(*id, PolicyHeader::zeroed()),
            Op::PutPeer { key, bits } => put(&mut self.peers, &map::PEERS, *key, **bits),
            Op::DeletePeer { key } => delete(&mut self.peers, &map::PEERS, *key),
            Op::PutPort { key, bits } => put_prefix(
                &mut self.ports,
                &map::PORTS,
                key.prefix_len,
                key.data,
                **bits,
            ),
            Op::DeletePort { key } => {
                delete_prefix(&mut self.ports, &map::PORTS, key.prefix_len, key.data)
            }
            Op::PutRule { key, action } => put(&mut self.rules, &map::RULES, *key, *action),
            Op::DeleteRule { key } => delete(&mut self.rules, &map::RULES, *key),
            Op::ClearRuleCounts { first, rows } => self.clear_rule_counts(*first, *rows),
            Op::PutAddress { address, identity } => self.set_identity(*address, *identity),
            Op::DeleteAddress { address } => self.set_identity(*address, Identity::UNKNOWN),
            Op::PutPrefix { prefix, identity } => self.put_network(prefix, *identity),
            Op::DeletePrefix { prefix } => self.delete_network(prefix),
            Op::PutEndpoint { ifindex, endpoint } => self.put_endpoint(*ifindex, *endpoint),
            Op::DeleteEndpoint { ifindex } => self.delete_endpoint(*ifindex),
            Op::Barrier => grace::wait().map_err(ApplyError::Grace),
        }
    }

    fn set_policy(&mut self, id: u32, header: PolicyHeader) -> Result<(), ApplyError> {
        let table = map::POLICIES.name;
        let capacity = self.capacities[table];
        if id >= capacity {
            return Err(ApplyError::OutOfRange {
                table,
                index: id,
                capacity,
            });
        }
        self.policies
            .set(id, Row(header), 0)
            .map_err(|source| ApplyError::map(table, source))
    }

    fn clear_rule_counts(&mut self, first: u32, rows: u32) -> Result<(), ApplyError> {
        let table = map::RULE_COUNTS.name;
        let failed = |source| ApplyError::map(table, source);
        for row in first..first + rows {
            let zeros = PerCpuValues::try_from(vec![Row(RuleCount::zeroed()); self.cpus])
                .map_err(|source| failed(MapError::IoError(source)))?;
            self.rule_counts.set(row, zeros, 0).map_err(failed)?;
        }
        Ok(())
    }

    fn set_identity(&mut self, address: IpAddr, identity: Identity) -> Result<(), ApplyError> {
        match address {
            IpAddr::V4(v4) => {
                let address = octets_v4(v4);
                let (block, place) = (address.block(), address.place());
                set_in_block(
                    &mut self.identity_v4,
                    &map::IDENTITY_V4,
                    block,
                    place,
                    identity,
                )
            }
            IpAddr::V6(v6) => {
                let address = octets_v6(v6);
                let (block, place) = (address.block(), address.place());
                set_in_block(
                    &mut self.identity_v6,
                    &map::IDENTITY_V6,
                    block,
                    place,
                    identity,
                )
            }
        }
    }

    fn put_network(&mut self, prefix: &IpNet, identity: Identity) -> Result<(), ApplyError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(v4) => put_prefix(
                &mut self.prefix_v4,
                &map::PREFIX_V4,
                length,
                octets_v4(v4),
                identity,
            ),
            IpAddr::V6(v6) => put_prefix(
                &mut self.prefix_v6,
                &map::PREFIX_V6,
                length,
                octets_v6(v6),
                identity,
            ),
        }
    }

    fn delete_network(&mut self, prefix: &IpNet) -> Result<(), ApplyError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(v4) => {
                delete_prefix(&mut self.prefix_v4, &map::PREFIX_V4, length, octets_v4(v4))
            }
            IpAddr::V6(v6) => {
                delete_prefix(&mut self.prefix_v6, &map::PREFIX_V6, length, octets_v6(v6))
            }
        }
    }

    fn put_endpoint(&mut self, ifindex: u32, endpoint: Endpoint) -> Result<(), ApplyError> {
        let table = map::ENDPOINTS.name;
        if ifindex < self.capacities[table] {
            self.endpoints
                .set(ifindex, Row(endpoint), 0)
                .map_err(|source| ApplyError::map(table, source))
        } else {
            put(
                &mut self.endpoints_ext,
                &map::ENDPOINTS_EXT,
                Ifindex { ifindex },
                endpoint,
            )
        }
    }

    fn delete_endpoint(&mut self, ifindex: u32) -> Result<(), ApplyError> {
        if ifindex < self.capacities[map::ENDPOINTS.name] {
            self.put_endpoint(ifindex, Endpoint::zeroed())
        } else {
            delete(
                &mut self.endpoints_ext,
                &map::ENDPOINTS_EXT,
                Ifindex { ifindex },
            )
        }
    }

    pub(super) fn usage(&self) -> Vec<TableUse> {
        let filled = |rows: usize| rows as u64;
        let endpoints = self
            .endpoints
            .iter()
            .filter(|row| row.as_ref().is_ok_and(|row| row.0.id != 0))
            .count();
        let (mut policies, mut counted_rules) = (0, 0);
        for Row(header) in self.policies.iter().flatten() {
            policies += usize::from(header.flags & PolicyHeader::VALID != 0);
            if header.first_count != 0 {
                counted_rules += usize::from(header.rules);
            }
        }
        let counts = [
            (map::ENDPOINTS, endpoints),
            (map::ENDPOINTS_EXT, self.endpoints_ext.keys().count()),
            (map::IDENTITY_V4, self.identity_v4.keys().count()),
            (map::IDENTITY_V6, self.identity_v6.keys().count()),
            (map::PREFIX_V4, self.prefix_v4.keys().count()),
            (map::PREFIX_V6, self.prefix_v6.keys().count()),
            (map::POLICIES, policies),
            (map::PEERS, self.peers.keys().count()),
            (map::PORTS, self.ports.keys().count()),
            (map::RULES, self.rules.keys().count()),
            (map::RULE_COUNTS, counted_rules),
            (map::FLOWS_V4, self.flows_v4.keys().count()),
            (map::FLOWS_V6, self.flows_v6.keys().count()),
            (map::FLOWS_NEW_V4, self.flows_new_v4.keys().count()),
            (map::FLOWS_NEW_V6, self.flows_new_v6.keys().count()),
            (map::FRAGMENTS, self.fragments.keys().count()),
        ];
        counts
            .into_iter()
            .map(|(spec, used)| TableUse {
                name: spec.name,
                used: filled(used),
                capacity: u64::from(self.capacities[spec.name]),
            })
            .collect()
    }

    pub(super) fn counters(&self) -> Result<Vec<CounterRow>, ApplyError> {
        let mut rows = Vec::with_capacity(Direction::ALL.len() * Reason::ALL.len());
        for direction in Direction::ALL {
            for reason in Reason::ALL.iter().copied() {
                let values = self
                    .counters
                    .get(&counter_index(direction, reason as u32), 0)
                    .map_err(|source| ApplyError::map(map::COUNTERS.name, source))?;
                rows.push(CounterRow {
                    direction,
                    reason,
                    packets: values.iter().map(|value| value.0.packets).sum(),
                    bytes: values.iter().map(|value| value.0.bytes).sum(),
                });
            }
        }
        Ok(rows)
    }

    pub(super) fn events_lost(&self) -> Result<(u64, u64), ApplyError> {
        let values = self
            .event_budget
            .get(&0, 0)
            .map_err(|source| ApplyError::map(map::EVENT_BUDGET.name, source))?;
        let limited = values.iter().map(|value| value.0.limited).sum();
        let lost = values.iter().map(|value| value.0.lost).sum();
        Ok((limited, lost))
    }
}

fn octets_v4(address: std::net::Ipv4Addr) -> AddressV4 {
    AddressV4 {
        octets: address.octets(),
    }
}

fn octets_v6(address: std::net::Ipv6Addr) -> AddressV6 {
    AddressV6 {
        octets: address.octets(),
    }
}

/// Changes one place of a block. The kernel replaces a row as a whole, so that a packet sees the old or
/// the new one.
fn set_in_block<K: bytemuck::Pod>(
    table: &mut HashTable<K, IdentityBlock>,
    spec: &MapSpec,
    block: K,
    place: usize,
    identity: Identity,
) -> Result<(), ApplyError> {
    let mut row = match table.get(&Row(block), 0) {
        Ok(Row(row)) => row,
        Err(MapError::KeyNotFound) => IdentityBlock::default(),
        Err(source) => return Err(ApplyError::map(spec.name, source)),
    };
    row.ids[place] = identity.id;
    if row == IdentityBlock::default() {
        delete(table, spec, block)
    } else {
        put(table, spec, block, row)
    }
}

fn put<K, V>(
    table: &mut HashTable<K, V>,
    spec: &MapSpec,
    key: K,
    value: V,
) -> Result<(), ApplyError>
where
    K: bytemuck::Pod,
    V: bytemuck::Pod,
{
    table
        .insert(Row(key), Row(value), 0)
        .map_err(|source| ApplyError::map(spec.name, source))
}

fn delete<K: bytemuck::Pod, V: bytemuck::Pod>(
    table: &mut HashTable<K, V>,
    spec: &MapSpec,
    key: K,
) -> Result<(), ApplyError> {
    ignore_absent(table.remove(&Row(key)), spec.name)
}

fn put_prefix<K: bytemuck::Pod, V: bytemuck::Pod>(
    table: &mut Trie<K, V>,
    spec: &MapSpec,
    length: u32,
    data: K,
    value: V,
) -> Result<(), ApplyError> {
    table
        .insert(&Key::new(length, Row(data)), Row(value), 0)
        .map_err(|source| ApplyError::map(spec.name, source))
}

fn delete_prefix<K: bytemuck::Pod, V: bytemuck::Pod>(
    table: &mut Trie<K, V>,
    spec: &MapSpec,
    length: u32,
    data: K,
) -> Result<(), ApplyError> {
    ignore_absent(table.remove(&Key::new(length, Row(data))), spec.name)
}

fn ignore_absent(result: Result<(), MapError>, table: &'static str) -> Result<(), ApplyError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other.map_err(|source| ApplyError::map(table, source)),
    }
}
