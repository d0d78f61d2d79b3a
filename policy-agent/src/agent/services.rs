//! Which addresses stand for others until they are translated, and what to do to the tables for it. Pure.
//!
//! An address is a Service's for as long as any Service claims it, and else this node's own where an
//! interface bears it. An address that finds no room in its table holds up nobody: it is reported, and
//! tried again when a row goes. Without its row a packet to it is judged as it is, by the address of the
//! Service itself, which only an ipBlock allows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use policy_common::map;
use policy_common::service::ServiceAddress;
use policy_core::model::ObjectName;
use policy_core::op::Op;

use crate::datastore::convert::Service;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ServiceAddresses {
    services: HashMap<ObjectName, BTreeSet<IpAddr>>,
    /// How many Services claim an address.
    claims: HashMap<IpAddr, usize>,
    /// This node's own.
    own: BTreeSet<IpAddr>,
    /// The kind in the row of each address, once all planned operations are done.
    rows: BTreeMap<IpAddr, u32>,
    /// Where a row may have to change.
    touched: BTreeSet<IpAddr>,
    /// Addresses that should have a row and found no room.
    refused: BTreeSet<IpAddr>,
}

/// The way from the rows that are there to those that should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ServicePlan {
    /// To be done before policies that come with the same changes.
    pub(super) puts: Vec<Op>,
    /// To be done after them.
    pub(super) deletes: Vec<Op>,
}

impl ServiceAddresses {
    /// No Services yet; `rows` are what an earlier agent left, by address with their kinds.
    pub(super) fn new(rows: BTreeMap<IpAddr, u32>) -> Self {
        Self {
            touched: rows.keys().copied().collect(),
            rows,
            ..Self::default()
        }
    }

    /// A Service was added or changed.
    pub(super) fn put(&mut self, service: &Service) {
        for address in &service.addresses {
            *self.claims.entry(*address).or_default() += 1;
        }
        self.touched.extend(&service.addresses);
        let former = self
            .services
            .insert(service.name.clone(), service.addresses.clone());
        self.unclaim(former);
    }

    /// A Service is gone.
    pub(super) fn remove(&mut self, name: &ObjectName) {
        let former = self.services.remove(name);
        self.unclaim(former);
    }

    fn unclaim(&mut self, addresses: Option<BTreeSet<IpAddr>>) {
        for address in addresses.into_iter().flatten() {
            if let Some(count) = self.claims.get_mut(&address) {
                *count -= 1;
                if *count == 0 {
                    self.claims.remove(&address);
                }
            }
            self.touched.insert(address);
        }
    }

    /// This node's own addresses are these.
    pub(super) fn set_own(&mut self, own: &BTreeSet<IpAddr>) {
        self.touched.extend(self.own.symmetric_difference(own));
        self.own.clone_from(own);
    }

    /// Whether an address is a Service's or this node's own.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.wanted(address).is_some()
    }

    /// Whether [`Self::plan`] has anything to look at.
    pub(super) fn is_changed(&self) -> bool {
        !self.touched.is_empty()
    }

    /// What is to be done since the last plan; it counts as done.
    pub(super) fn plan(&mut self) -> ServicePlan {
        let mut plan = ServicePlan::default();
        for address in std::mem::take(&mut self.touched) {
            let wanted = self.wanted(address);
            if wanted.is_none() {
                self.refused.remove(&address);
            }
            match wanted {
                Some(kind) => {
                    if self.rows.insert(address, kind) != Some(kind) {
                        let row = ServiceAddress { kind };
                        plan.puts.push(Op::PutService { address, row });
                    }
                }
                None => {
                    if self.rows.remove(&address).is_some() {
                        plan.deletes.push(Op::DeleteService { address });
                    }
                }
            }
        }
        plan
    }

    fn wanted(&self, address: IpAddr) -> Option<u32> {
        if self.claims.contains_key(&address) {
            Some(ServiceAddress::SERVICE)
        } else if self.own.contains(&address) {
            Some(ServiceAddress::NODE)
        } else {
            None
        }
    }

    /// The table had no room for this address. Says whether that is news.
    pub(super) fn refuse(&mut self, address: IpAddr) -> bool {
        let first = !self.refused.iter().any(|other| same_table(*other, address));
        self.rows.remove(&address);
        self.refused.insert(address);
        first
    }

    /// An operation was done.
    pub(super) fn done(&mut self, op: &Op) {
        match op {
            Op::PutService { address, .. } => {
                self.refused.remove(address);
            }
            Op::DeleteService { address } => {
                let mut waiting = self.refused.iter();
                let next = waiting.find(|other| same_table(**other, *address));
                self.touched.extend(next.copied());
            }
            _ => {}
        }
    }

    /// What is not in the tables though it should be, a sentence for each table.
    pub(super) fn problems(&self) -> Vec<String> {
        let tables = [(map::SERVICE_V4.name, true), (map::SERVICE_V6.name, false)];
        let problem = |(table, v4): (&str, bool)| {
            let mut refused = self.refused.iter().filter(|a| a.is_ipv4() == v4).peekable();
            let first = **refused.peek()?;
            let count = refused.count();
            Some(format!(
                "table {table} is full: {count} addresses of Services or this node have no row ({first} is the first), \
                 and isolated pods reach nothing there unless an ipBlock allows it (raise its size with \
                 PORTCULLIS_TABLE_SIZES={table}=N)"
            ))
        };
        tables.into_iter().filter_map(problem).collect()
    }
}

fn same_table(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: u32 = ServiceAddress::SERVICE;
    const NODE: u32 = ServiceAddress::NODE;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| address(text)).collect()
    }

    fn service(name: &str, addresses: &[&str]) -> Service {
        Service {
            name: ObjectName::new("shop", name),
            addresses: set(addresses),
        }
    }

    fn put(text: &str, kind: u32) -> Op {
        Op::PutService {
            address: address(text),
            row: ServiceAddress { kind },
        }
    }

    fn delete(text: &str) -> Op {
        Op::DeleteService {
            address: address(text),
        }
    }

    fn assert_plan(addresses: &mut ServiceAddresses, puts: &[Op], deletes: &[Op]) {
        let plan = addresses.plan();
        assert_eq!(
            (plan.puts.as_slice(), plan.deletes.as_slice()),
            (puts, deletes)
        );
        assert!(!addresses.is_changed());
    }

    #[test]
    fn an_address_stays_while_anybody_claims_it() {
        let mut addresses = ServiceAddresses::default();
        addresses.put(&service("a", &["10.96.0.1", "192.0.2.1"]));
        addresses.put(&service("b", &["192.0.2.1", "fd00::1"]));
        let puts = [
            put("10.96.0.1", SERVICE),
            put("192.0.2.1", SERVICE),
            put("fd00::1", SERVICE),
        ];
        assert_plan(&mut addresses, &puts, &[]);
        addresses.put(&service("a", &["10.96.0.1"]));
        assert_plan(&mut addresses, &[], &[]);
        addresses.remove(&ObjectName::new("shop", "b"));
        assert_plan(
            &mut addresses,
            &[],
            &[delete("192.0.2.1"), delete("fd00::1")],
        );
        // Gone and back between two plans: nothing to do.
        addresses.remove(&ObjectName::new("shop", "a"));
        addresses.put(&service("c", &["10.96.0.1"]));
        assert_plan(&mut addresses, &[], &[]);
    }

    #[test]
    fn a_service_goes_before_the_node() {
        let mut addresses = ServiceAddresses::default();
        addresses.set_own(&set(&["192.0.2.1", "fe80::1"]));
        assert_plan(
            &mut addresses,
            &[put("192.0.2.1", NODE), put("fe80::1", NODE)],
            &[],
        );
        addresses.put(&service("a", &["192.0.2.1"]));
        assert_plan(&mut addresses, &[put("192.0.2.1", SERVICE)], &[]);
        addresses.remove(&ObjectName::new("shop", "a"));
        assert_plan(&mut addresses, &[put("192.0.2.1", NODE)], &[]);
        addresses.set_own(&set(&["192.0.2.1"]));
        assert_plan(&mut addresses, &[], &[delete("fe80::1")]);
    }

    #[test]
    fn what_an_earlier_agent_left_stays_or_goes() {
        let left = [
            ("10.96.0.1", SERVICE),
            ("10.96.0.2", SERVICE),
            ("192.0.2.1", SERVICE),
        ];
        let left = left.map(|(text, kind)| (address(text), kind));
        let mut addresses = ServiceAddresses::new(left.into());
        assert!(addresses.is_changed());
        addresses.put(&service("a", &["10.96.0.1"]));
        addresses.set_own(&set(&["192.0.2.1"]));
        assert_plan(
            &mut addresses,
            &[put("192.0.2.1", NODE)],
            &[delete("10.96.0.2")],
        );
    }

    #[test]
    fn what_finds_no_room_is_tried_again_when_a_row_goes() {
        let mut addresses = ServiceAddresses::default();
        addresses.put(&service("a", &["10.96.0.1"]));
        addresses.put(&service("b", &["10.96.0.2", "10.96.0.3"]));
        addresses.plan();
        assert!(addresses.refuse(address("10.96.0.2")));
        assert!(!addresses.refuse(address("10.96.0.3")));
        let problems = addresses.problems();
        assert!(
            problems[0].starts_with("table service_v4 is full: 2 addresses") && problems.len() == 1,
            "{problems:?}"
        );
        addresses.put(&service("c", &["fd00::1"]));
        addresses.plan();
        addresses.remove(&ObjectName::new("shop", "c"));
        addresses.plan();
        addresses.done(&delete("fd00::1"));
        assert!(!addresses.is_changed(), "that is another table");
        addresses.remove(&ObjectName::new("shop", "a"));
        assert_plan(&mut addresses, &[], &[delete("10.96.0.1")]);
        addresses.done(&delete("10.96.0.1"));
        let again = put("10.96.0.2", SERVICE);
        assert_plan(&mut addresses, std::slice::from_ref(&again), &[]);
        addresses.done(&again);
        addresses.remove(&ObjectName::new("shop", "b"));
        assert_plan(&mut addresses, &[], &[delete("10.96.0.2")]);
        assert_eq!(addresses.problems(), [""; 0], "nobody wants it any more");
    }
}
