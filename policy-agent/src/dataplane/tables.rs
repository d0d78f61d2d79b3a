//! The tables, typed, and the executor of operations.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::{MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use bytemuck::Zeroable;
use ipnet::IpNet;
use policy_common::address::{AddressV4, AddressV6, Identity};
use policy_common::endpoint::{Endpoint, Ifindex};
use policy_common::event::EventBudget;
use policy_common::map::{self, MapSpec};
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleCount, RuleKey};
use policy_common::port::PortData;
use policy_common::verdict::{Counter, Direction, Reason, counter_index};
use policy_core::op::Op;

use super::counted::{ArrayRows, BPF_NOEXIST, HashRows, TrieRows, is, was_there};
use super::error::{ApplyError, LoadError};
use super::flow_tables::FlowTables;
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

pub(super) struct Tables {
    endpoints: ArrayRows<Endpoint>,
    endpoints_ext: HashRows<Ifindex, Endpoint>,
    identity_v4: HashRows<AddressV4, Identity>,
    identity_v6: HashRows<AddressV6, Identity>,
    prefix_v4: TrieRows<AddressV4, Identity>,
    prefix_v6: TrieRows<AddressV6, Identity>,
    policies: ArrayRows<PolicyHeader>,
    peers: HashRows<PeerKey, RuleBits>,
    ports: TrieRows<PortData, RuleBits>,
    rules: HashRows<RuleKey, RuleAction>,
    rule_counts: PerCpuHashMap<Data, Row<RuleKey>, Row<RuleCount>>,
    rule_count_rows: u64,
    counters: PerCpuArray<Data, Row<Counter>>,
    event_budget: PerCpuArray<Data, Row<EventBudget>>,
    flows: FlowTables,
    capacities: BTreeMap<&'static str, u32>,
    cpus: usize,
}

impl Tables {
    pub(super) fn new(
        ebpf: &mut Ebpf,
        capacities: &BTreeMap<&'static str, u32>,
    ) -> Result<Self, LoadError> {
        let capacity = |spec: &MapSpec| capacities[spec.name];
        Ok(Self {
            endpoints: array(ebpf, &map::ENDPOINTS, capacities, |row: &Endpoint| {
                row.id != 0
            })?,
            endpoints_ext: hash(ebpf, &map::ENDPOINTS_EXT)?,
            identity_v4: hash(ebpf, &map::IDENTITY_V4)?,
            identity_v6: hash(ebpf, &map::IDENTITY_V6)?,
            prefix_v4: trie(ebpf, &map::PREFIX_V4)?,
            prefix_v6: trie(ebpf, &map::PREFIX_V6)?,
            policies: array(ebpf, &map::POLICIES, capacities, |row: &PolicyHeader| {
                row.flags & PolicyHeader::VALID != 0
            })?,
            peers: hash(ebpf, &map::PEERS)?,
            ports: trie(ebpf, &map::PORTS)?,
            rules: hash(ebpf, &map::RULES)?,
            rule_counts: take_as(ebpf, map::RULE_COUNTS.name)?,
            rule_count_rows: 0,
            counters: take_as(ebpf, map::COUNTERS.name)?,
            event_budget: take_as(ebpf, map::EVENT_BUDGET.name)?,
            flows: FlowTables::new(ebpf, capacity)?,
            capacities: capacities.clone(),
            cpus: nr_cpus().map_err(|(_, source)| LoadError::Events(source))?,
        })
    }

    /// Executes one operation.
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::PutPolicy { id, header } => self.policies.put(*id, *header),
            Op::DeletePolicy { id } => self.policies.put(*id, PolicyHeader::zeroed()),
            Op::PutPeer { key, bits } => self.peers.put(*key, **bits),
            Op::DeletePeer { key } => self.peers.delete(*key),
            Op::PutPort { key, bits } => self.ports.put(key.prefix_len, key.data, **bits),
            Op::DeletePort { key } => self.ports.delete(key.prefix_len, key.data),
            Op::PutRule { key, action } => self.rules.put(*key, *action),
            Op::DeleteRule { key } => self.rules.delete(*key),
            Op::PutRuleCount { key } => self.put_rule_count(*key),
            Op::DeleteRuleCount { key } => self.delete_rule_count(*key),
            Op::PutAddress { address, identity } => match address {
                IpAddr::V4(v4) => self.identity_v4.put(octets_v4(*v4), *identity),
                IpAddr::V6(v6) => self.identity_v6.put(octets_v6(*v6), *identity),
            },
            Op::DeleteAddress { address } => match address {
                IpAddr::V4(v4) => self.identity_v4.delete(octets_v4(*v4)),
                IpAddr::V6(v6) => self.identity_v6.delete(octets_v6(*v6)),
            },
            Op::PutPrefix { prefix, identity } => self.put_network(prefix, *identity),
            Op::DeletePrefix { prefix } => self.delete_network(prefix),
            Op::PutEndpoint { ifindex, endpoint } => self.put_endpoint(*ifindex, *endpoint),
            Op::DeleteEndpoint { ifindex } => self.delete_endpoint(*ifindex),
            Op::Barrier => grace::wait().map_err(ApplyError::Grace),
        }
    }

    fn put_rule_count(&mut self, key: RuleKey) -> Result<(), ApplyError> {
        let table = map::RULE_COUNTS.name;
        let zeros = PerCpuValues::try_from(vec![Row(RuleCount::zeroed()); self.cpus])
            .map_err(|source| ApplyError::map(table, MapError::IoError(source)))?;
        match self.rule_counts.insert(Row(key), zeros, BPF_NOEXIST) {
            Ok(()) => {
                self.rule_count_rows += 1;
                Ok(())
            }
            Err(error) if is(&error, libc::EEXIST) => Ok(()),
            Err(source) => Err(ApplyError::map(table, source)),
        }
    }

    fn delete_rule_count(&mut self, key: RuleKey) -> Result<(), ApplyError> {
        if was_there(self.rule_counts.remove(&Row(key)), map::RULE_COUNTS.name)? {
            self.rule_count_rows -= 1;
        }
        Ok(())
    }

    fn put_network(&mut self, prefix: &IpNet, identity: Identity) -> Result<(), ApplyError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(v4) => self.prefix_v4.put(length, octets_v4(v4), identity),
            IpAddr::V6(v6) => self.prefix_v6.put(length, octets_v6(v6), identity),
        }
    }

    fn delete_network(&mut self, prefix: &IpNet) -> Result<(), ApplyError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(v4) => self.prefix_v4.delete(length, octets_v4(v4)),
            IpAddr::V6(v6) => self.prefix_v6.delete(length, octets_v6(v6)),
        }
    }

    fn put_endpoint(&mut self, ifindex: u32, endpoint: Endpoint) -> Result<(), ApplyError> {
        if ifindex < self.endpoints.capacity() {
            self.endpoints.put(ifindex, endpoint)
        } else {
            self.endpoints_ext.put(Ifindex { ifindex }, endpoint)
        }
    }

    fn delete_endpoint(&mut self, ifindex: u32) -> Result<(), ApplyError> {
        if ifindex < self.endpoints.capacity() {
            self.endpoints.put(ifindex, Endpoint::zeroed())
        } else {
            self.endpoints_ext.delete(Ifindex { ifindex })
        }
    }

    /// Use and capacity of the tables that operations write.
    pub(super) fn usage(&self) -> Vec<TableUse> {
        let counts = [
            (map::ENDPOINTS, self.endpoints.rows()),
            (map::ENDPOINTS_EXT, self.endpoints_ext.rows()),
            (map::IDENTITY_V4, self.identity_v4.rows()),
            (map::IDENTITY_V6, self.identity_v6.rows()),
            (map::PREFIX_V4, self.prefix_v4.rows()),
            (map::PREFIX_V6, self.prefix_v6.rows()),
            (map::POLICIES, self.policies.rows()),
            (map::PEERS, self.peers.rows()),
            (map::PORTS, self.ports.rows()),
            (map::RULES, self.rules.rows()),
            (map::RULE_COUNTS, self.rule_count_rows),
        ];
        counts
            .into_iter()
            .map(|(spec, used)| TableUse {
                name: spec.name,
                used,
                capacity: u64::from(self.capacities[spec.name]),
            })
            .collect()
    }

    /// The tables that the programs write.
    pub(super) fn flows(&self) -> &FlowTables {
        &self.flows
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

fn hash<K: bytemuck::Pod, V: bytemuck::Pod>(
    ebpf: &mut Ebpf,
    spec: &MapSpec,
) -> Result<HashRows<K, V>, LoadError> {
    Ok(HashRows::new(take_as(ebpf, spec.name)?, spec.name))
}

fn trie<K: bytemuck::Pod + Eq + std::hash::Hash, V: bytemuck::Pod>(
    ebpf: &mut Ebpf,
    spec: &MapSpec,
) -> Result<TrieRows<K, V>, LoadError> {
    Ok(TrieRows::new(take_as(ebpf, spec.name)?, spec.name))
}

fn array<V: bytemuck::Pod>(
    ebpf: &mut Ebpf,
    spec: &MapSpec,
    capacities: &BTreeMap<&'static str, u32>,
    is_row: fn(&V) -> bool,
) -> Result<ArrayRows<V>, LoadError> {
    let table = take_as(ebpf, spec.name)?;
    Ok(ArrayRows::new(
        table,
        spec.name,
        capacities[spec.name],
        is_row,
    ))
}
