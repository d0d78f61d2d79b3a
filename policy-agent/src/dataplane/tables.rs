//! The tables, typed, and the executor of operations.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::Ebpf;
use aya::maps::{MapError, PerCpuArray, PerCpuValues};
use aya::util::nr_cpus;
use bytemuck::Zeroable;
use ipnet::IpNet;
use policy_common::address::{AddressV4, AddressV6, Identity, IdentityBlock};
use policy_common::carrier::Slot;
use policy_common::endpoint::{Endpoint, Ifindex};
use policy_common::event::EventBudget;
use policy_common::map::{self, MapSpec};
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleCount, RuleKey};
use policy_common::port::{PortData, PortKey};
use policy_common::verdict::{Counter, Direction, Reason, counter_index};
use policy_core::op::Op;
use policy_core::tables::Tables as Former;

use super::counted::{ArrayRows, HashRows, TrieRows};
use super::error::{ApplyError, LoadError};
use super::flow_tables::FlowTables;
use super::grace;
use super::guard_rows::GuardRows;
use super::load::{Data, take_as};
use super::row::Row;
use super::service_rows::ServiceRows;
use super::verify::{Drift, DriftedPart, Role};

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
    identity_v4: HashRows<AddressV4, IdentityBlock>,
    identity_v6: HashRows<AddressV6, IdentityBlock>,
    prefix_v4: TrieRows<AddressV4, Identity>,
    prefix_v6: TrieRows<AddressV6, Identity>,
    policies: ArrayRows<PolicyHeader>,
    peers: HashRows<PeerKey, RuleBits>,
    ports: TrieRows<PortData, RuleBits>,
    rules: HashRows<RuleKey, RuleAction>,
    services: ServiceRows,
    guards: GuardRows,
    slots: ArrayRows<Slot>,
    rule_counts: PerCpuArray<Data, Row<RuleCount>>,
    /// Rules that are counted, by page.
    counted_rules: HashMap<u32, u16>,
    /// Rows of endpoints, as they are to be.
    rows: BTreeMap<u32, Endpoint>,
    /// UDP ports at which this node decapsulates; the same in every endpoint's row.
    tunnel_ports: [u16; 4],
    /// The bridge or VRF that an interface belongs to, where it belongs to one.
    masters: BTreeMap<u32, u32>,
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
            services: ServiceRows::new(ebpf, capacities)?,
            guards: GuardRows::new(ebpf)?,
            slots: array(ebpf, &map::SLOTS, capacities, |row: &Slot| row.ifindex != 0)?,
            rule_counts: take_as(ebpf, map::RULE_COUNTS.name)?,
            counted_rules: HashMap::new(),
            rows: BTreeMap::new(),
            tunnel_ports: [0; 4],
            masters: BTreeMap::new(),
            counters: take_as(ebpf, map::COUNTERS.name)?,
            event_budget: take_as(ebpf, map::EVENT_BUDGET.name)?,
            flows: FlowTables::new(ebpf, capacity)?,
            capacities: capacities.clone(),
            cpus: nr_cpus().map_err(|(_, source)| LoadError::Events(source))?,
        })
    }

    /// What the tables hold, in the compiler's terms.
    pub(super) fn read(&mut self) -> Result<Former, MapError> {
        let head = self.endpoints.get(Former::GENERATION)?;
        let mut former = Former {
            generation: head.epoch,
            ..Former::default()
        };
        former.endpoints.extend(self.endpoints.all()?);
        for (Ifindex { ifindex }, row) in self.endpoints_ext.all()? {
            former.endpoints.insert(ifindex, row);
        }
        former.policies.extend(self.policies.all()?);
        former.peers.extend(self.peers.all()?);
        for (prefix_len, data, bits) in self.ports.all()? {
            former.ports.insert(PortKey { prefix_len, data }, bits);
        }
        for (key, rule) in self.rules.all()? {
            former.rules.insert(key, rule.action);
        }
        for (block, row) in self.identity_v4.all()? {
            let first = u32::from(Ipv4Addr::from(block.octets));
            let ids = (first..).zip(row.ids).filter(|(_, id)| *id != 0);
            former
                .identities
                .extend(ids.map(|(address, id)| (Ipv4Addr::from(address).into(), id)));
        }
        for (block, row) in self.identity_v6.all()? {
            let first = u128::from(Ipv6Addr::from(block.octets));
            let ids = (first..).zip(row.ids).filter(|(_, id)| *id != 0);
            former
                .identities
                .extend(ids.map(|(address, id)| (Ipv6Addr::from(address).into(), id)));
        }
        let v4 = self.prefix_v4.all()?.into_iter();
        let v4 = v4.map(|(length, data, id)| (IpAddr::from(data.octets), length, id));
        let v6 = self.prefix_v6.all()?.into_iter();
        let v6 = v6.map(|(length, data, id)| (IpAddr::from(data.octets), length, id));
        for (network, length, id) in v4.chain(v6) {
            if let Ok(prefix) = IpNet::new(network, length as u8) {
                former.prefixes.insert(prefix, id.id);
            }
        }
        self.services.read(&mut former)?;
        self.guards.read(&mut former)?;
        for (id, header) in &former.policies {
            if header.first_count != 0 {
                self.counted_rules.insert(*id, header.rules);
            }
        }
        Ok(former)
    }

    /// Executes one operation.
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        match op {
            Op::PutPolicy { id, header } => self.put_policy(*id, *header),
            Op::DeletePolicy { id } => self.put_policy(*id, PolicyHeader::zeroed()),
            Op::PutPeer { key, bits } => self.peers.put(*key, **bits),
            Op::DeletePeer { key } => self.peers.delete(*key),
            Op::PutPort { key, bits } => self.ports.put(key.prefix_len, key.data, **bits),
            Op::DeletePort { key } => self.ports.delete(key.prefix_len, key.data),
            Op::PutRule { key, action } => self.rules.put(*key, *action),
            Op::DeleteRule { key } => self.rules.delete(*key),
            Op::ClearRuleCounts { first, rows } => self.clear_rule_counts(*first, *rows),
            Op::PutAddress { address, identity } => self.set_identity(*address, *identity),
            Op::DeleteAddress { address } => self.set_identity(*address, Identity::UNKNOWN),
            Op::PutPrefix { prefix, identity } => self.put_network(prefix, *identity),
            Op::DeletePrefix { prefix } => self.delete_network(prefix),
            Op::PutEndpoint { ifindex, endpoint } => self.put_endpoint(*ifindex, *endpoint),
            Op::DeleteEndpoint { ifindex } => self.delete_endpoint(*ifindex),
            Op::PutService { address, row } => self.services.put(*address, *row),
            Op::DeleteService { address } => self.services.delete(*address),
            Op::PutGuard { prefix, row } => self.guards.put(prefix, *row),
            Op::DeleteGuard { prefix } => self.guards.delete(prefix),
            Op::Barrier => grace::wait().map_err(ApplyError::Grace),
        }
    }

    fn put_policy(&mut self, id: u32, header: PolicyHeader) -> Result<(), ApplyError> {
        self.policies.put(id, header)?;
        if header.first_count == 0 {
            self.counted_rules.remove(&id);
        } else {
            self.counted_rules.insert(id, header.rules);
        }
        Ok(())
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
                set_in_block(
                    &mut self.identity_v4,
                    address.block(),
                    address.place(),
                    identity,
                )
            }
            IpAddr::V6(v6) => {
                let address = octets_v6(v6);
                set_in_block(
                    &mut self.identity_v6,
                    address.block(),
                    address.place(),
                    identity,
                )
            }
        }
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

    /// The slot's row comes first: packets may bear it as soon as the endpoint's row is there. The ports of tunnels are
    /// this module's to fill in.
    fn put_endpoint(&mut self, ifindex: u32, mut endpoint: Endpoint) -> Result<(), ApplyError> {
        if ifindex != Former::GENERATION {
            endpoint.tunnel_ports = self.tunnel_ports;
        }
        let former = self.slot_of(ifindex)?;
        let slot = slot(endpoint);
        if slot != 0 {
            let master = self.masters.get(&ifindex).copied().unwrap_or_default();
            self.slots.put(slot, Slot { ifindex, master })?;
        }
        if ifindex < self.endpoints.capacity() {
            self.endpoints.put(ifindex, endpoint)?;
        } else {
            self.endpoints_ext.put(Ifindex { ifindex }, endpoint)?;
        }
        self.rows.insert(ifindex, endpoint);
        if former == slot {
            return Ok(());
        }
        self.clear_slot(former, ifindex)
    }

    /// The UDP ports at which this node decapsulates, 0 where there are fewer. Rows that have others are put again.
    pub(super) fn set_tunnel_ports(&mut self, ports: [u16; 4]) -> Result<(), ApplyError> {
        self.tunnel_ports = ports;
        let differing = self
            .rows
            .iter()
            .filter(|(ifindex, row)| **ifindex != Former::GENERATION && row.tunnel_ports != ports);
        let differing: Vec<_> = differing.map(|(ifindex, row)| (*ifindex, *row)).collect();
        for (ifindex, row) in differing {
            self.put_endpoint(ifindex, row)?;
        }
        Ok(())
    }

    /// An interface belongs to this bridge or VRF now; 0 where it belongs to none.
    pub(super) fn set_master(&mut self, ifindex: u32, master: u32) -> Result<(), ApplyError> {
        let former = match master {
            0 => self.masters.remove(&ifindex),
            master => self.masters.insert(ifindex, master),
        };
        let slot = self.rows.get(&ifindex).copied().map_or(0, slot);
        if former.unwrap_or_default() == master || slot == 0 {
            return Ok(());
        }
        self.slots.put(slot, Slot { ifindex, master })
    }

    /// Writes rows of endpoints again that are not as they were written, and lists them.
    pub(super) fn verify_endpoints(&mut self) -> Vec<Drift> {
        let mut drifts = Vec::new();
        for (ifindex, row) in self.rows.clone() {
            let found = if ifindex < self.endpoints.capacity() {
                let found = self.endpoints.get(ifindex);
                found.map_err(|source| ApplyError::map(map::ENDPOINTS.name, source))
            } else {
                let found = self.endpoints_ext.get(Ifindex { ifindex });
                found.map(Option::unwrap_or_default)
            };
            let found = match found {
                Ok(found) if found == row => continue,
                Ok(found) => format!("{found:?} instead of {row:?}"),
                Err(error) => error.to_string(),
            };
            let outcome = self.put_endpoint(ifindex, row);
            drifts.push(Drift {
                part: DriftedPart::EndpointRow,
                role: Role::Endpoint,
                ifindex: (ifindex != Former::GENERATION).then_some(ifindex),
                found,
                error: outcome.err().map(|error| error.to_string()),
            });
        }
        drifts
    }

    /// An endpoint's row as it was written last.
    pub(super) fn endpoint(&self, ifindex: u32) -> Option<Endpoint> {
        self.rows.get(&ifindex).copied()
    }

    fn delete_endpoint(&mut self, ifindex: u32) -> Result<(), ApplyError> {
        let former = self.slot_of(ifindex)?;
        self.rows.remove(&ifindex);
        if ifindex < self.endpoints.capacity() {
            self.endpoints.put(ifindex, Endpoint::zeroed())?;
        } else {
            self.endpoints_ext.delete(Ifindex { ifindex })?;
        }
        self.clear_slot(former, ifindex)
    }

    /// The slot of an endpoint that has a row, or 0.
    fn slot_of(&self, ifindex: u32) -> Result<u32, ApplyError> {
        let row = if ifindex < self.endpoints.capacity() {
            let row = self.endpoints.get(ifindex);
            Some(row.map_err(|source| ApplyError::map(map::ENDPOINTS.name, source))?)
        } else {
            self.endpoints_ext.get(Ifindex { ifindex })?
        };
        Ok(row.map_or(0, slot))
    }

    /// Empties a slot's row, unless it is another interface's by now.
    fn clear_slot(&mut self, slot: u32, ifindex: u32) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::map(map::SLOTS.name, source);
        if slot != 0 && self.slots.get(slot).map_err(failed)?.ifindex == ifindex {
            self.slots.put(slot, Slot::default())?;
        }
        Ok(())
    }

    /// Use and capacity of the tables that operations write.
    pub(super) fn usage(&self) -> Vec<TableUse> {
        let counted_rules = self.counted_rules.values().copied().map(u64::from).sum();
        let [service_v4, service_v6, service_hints] = self.services.counts();
        let [guarded_v4, guarded_v6] = self.guards.counts();
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
            (map::RULE_COUNTS, counted_rules),
            (map::SERVICE_V4, service_v4),
            (map::SERVICE_V6, service_v6),
            (map::SERVICE_HINTS, service_hints),
            (map::GUARDED_V4, guarded_v4),
            (map::GUARDED_V6, guarded_v6),
            (map::SLOTS, self.slots.rows()),
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

/// The part of an endpoint's id that a packet can carry; 0 is nobody's.
fn slot(endpoint: Endpoint) -> u32 {
    endpoint.id & 0xffff
}

pub(super) fn octets_v4(address: Ipv4Addr) -> AddressV4 {
    AddressV4 {
        octets: address.octets(),
    }
}

pub(super) fn octets_v6(address: Ipv6Addr) -> AddressV6 {
    AddressV6 {
        octets: address.octets(),
    }
}

/// Changes one place of a block. The kernel replaces a row as a whole, so that a packet sees the old or
/// the new one.
fn set_in_block<K: bytemuck::Pod>(
    table: &mut HashRows<K, IdentityBlock>,
    block: K,
    place: usize,
    identity: Identity,
) -> Result<(), ApplyError> {
    let known = table.get(block)?;
    let mut row = known.unwrap_or_default();
    row.ids[place] = identity.id;
    if row == IdentityBlock::default() {
        table.delete(block)
    } else if known.is_some() {
        table.replace(block, row)
    } else {
        table.put(block, row)
    }
}

pub(super) fn hash<K: bytemuck::Pod, V: bytemuck::Pod>(
    ebpf: &mut Ebpf,
    spec: &MapSpec,
) -> Result<HashRows<K, V>, LoadError> {
    Ok(HashRows::new(take_as(ebpf, spec.name)?, spec.name))
}

pub(super) fn trie<K: bytemuck::Pod + Eq + std::hash::Hash, V: bytemuck::Pod>(
    ebpf: &mut Ebpf,
    spec: &MapSpec,
) -> Result<TrieRows<K, V>, LoadError> {
    Ok(TrieRows::new(take_as(ebpf, spec.name)?, spec.name))
}

pub(super) fn array<V: bytemuck::Pod>(
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

/// On the real kernel: the object's tables without its programs.
#[cfg(test)]
mod tests {
    use aya::EbpfLoader;

    use super::super::load::{OBJECT, capacities};
    use super::*;

    #[test]
    fn ports_of_tunnels_are_in_every_endpoints_row() {
        assert!(!OBJECT.is_empty(), "this test needs `cargo xtask test`");
        let mut ebpf = EbpfLoader::new()
            .load(OBJECT)
            .expect("root, to make tables");
        let sizes = capacities(&BTreeMap::new()).expect("the defaults");
        let mut tables = Tables::new(&mut ebpf, &sizes).expect("all tables");
        let beyond = sizes[map::ENDPOINTS.name] + 1;
        let put = |tables: &mut Tables, ifindex: u32, id: u32| {
            let endpoint = Endpoint {
                id,
                ..Endpoint::default()
            };
            let op = Op::PutEndpoint { ifindex, endpoint };
            tables.apply(&op).expect("room");
        };
        put(&mut tables, Former::GENERATION, 0);
        put(&mut tables, 7, 1);
        put(&mut tables, beyond, 2);
        let ports = [4789, 8472, 0, 0];
        tables.set_tunnel_ports(ports).expect("room");
        put(&mut tables, 8, 3);
        let in_kernel = |tables: &Tables| {
            let row = |ifindex: u32| tables.endpoints.get(ifindex).expect("there").tunnel_ports;
            let beyond = tables.endpoints_ext.get(Ifindex { ifindex: beyond });
            let beyond = beyond.expect("readable").expect("there").tunnel_ports;
            [row(Former::GENERATION), row(7), row(8), beyond]
        };
        assert_eq!(in_kernel(&tables), [[0; 4], ports, ports, ports]);
        assert_eq!(tables.verify_endpoints(), [], "as they were written");

        // Somebody clears them.
        let cleared = Endpoint {
            id: 1,
            ..Endpoint::default()
        };
        tables.endpoints.put(7, cleared).expect("room");
        assert_eq!(tables.verify_endpoints().len(), 1);
        assert_eq!(in_kernel(&tables), [[0; 4], ports, ports, ports]);

        tables.set_tunnel_ports([0; 4]).expect("room");
        assert_eq!(in_kernel(&tables), [[0; 4]; 4]);
        assert_eq!(tables.verify_endpoints(), []);
    }
}
