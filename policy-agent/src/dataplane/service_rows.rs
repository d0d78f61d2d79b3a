//! The tables of addresses that are translated later, and the hints before them.
//!
//! A hint spares nearly every new connection a lookup among Services. It is there before the row that it leads
//! to, and goes after it; one too many costs a lookup, one too few would have a Service's address judged as any
//! other.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::MapError;
use policy_common::map;
use policy_common::service::{Hint, ServiceAddress};
use policy_core::tables::Tables as Former;

use super::counted::{ArrayRows, HashRows};
use super::error::{ApplyError, LoadError};
use super::tables::{array, hash, octets_v4, octets_v6};
use policy_common::address::{AddressV4, AddressV6};

/// See the module.
pub(super) struct ServiceRows {
    v4: HashRows<AddressV4, ServiceAddress>,
    v6: HashRows<AddressV6, ServiceAddress>,
    hints: ArrayRows<u64>,
    /// How many rows each hint leads to.
    hinted: HashMap<Hint, u32>,
}

impl ServiceRows {
    pub(super) fn new(
        ebpf: &mut Ebpf,
        capacities: &BTreeMap<&'static str, u32>,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            v4: hash(ebpf, &map::SERVICE_V4)?,
            v6: hash(ebpf, &map::SERVICE_V6)?,
            hints: array(ebpf, &map::SERVICE_HINTS, capacities, |word| *word != 0)?,
            hinted: HashMap::new(),
        })
    }

    /// Reads what an earlier agent left.
    pub(super) fn read(&mut self, former: &mut Former) -> Result<(), MapError> {
        let v4 = self.v4.all()?.into_iter();
        let v4 = v4.map(|(address, row)| (IpAddr::from(address.octets), row.kind));
        let v6 = self.v6.all()?.into_iter();
        let v6 = v6.map(|(address, row)| (IpAddr::from(address.octets), row.kind));
        former.services.extend(v4.chain(v6));
        for address in former.services.keys() {
            *self.hinted.entry(hint(*address)).or_default() += 1;
        }
        Ok(())
    }

    pub(super) fn put(&mut self, address: IpAddr, row: ServiceAddress) -> Result<(), ApplyError> {
        let hint = hint(address);
        self.set(hint, true)?;
        let rows = self.rows();
        let put = match address {
            IpAddr::V4(v4) => self.v4.put(octets_v4(v4), row),
            IpAddr::V6(v6) => self.v6.put(octets_v6(v6), row),
        };
        if put.is_err() && !self.hinted.contains_key(&hint) {
            self.set(hint, false)?;
        }
        put?;
        if self.rows() != rows {
            *self.hinted.entry(hint).or_default() += 1;
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, address: IpAddr) -> Result<(), ApplyError> {
        let hint = hint(address);
        let rows = self.rows();
        match address {
            IpAddr::V4(v4) => self.v4.delete(octets_v4(v4)),
            IpAddr::V6(v6) => self.v6.delete(octets_v6(v6)),
        }?;
        if self.rows() != rows {
            let count = self.hinted.entry(hint).or_default();
            *count = count.saturating_sub(1);
        }
        if self.hinted.get(&hint).is_none_or(|count| *count == 0) {
            self.hinted.remove(&hint);
            self.set(hint, false)?;
        }
        Ok(())
    }

    /// Rows of both families.
    pub(super) fn counts(&self) -> [u64; 3] {
        [self.v4.rows(), self.v6.rows(), self.hints.rows()]
    }

    fn rows(&self) -> u64 {
        self.v4.rows() + self.v6.rows()
    }

    fn set(&mut self, hint: Hint, to: bool) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::map(map::SERVICE_HINTS.name, source);
        let word = self.hints.get(hint.word).map_err(failed)?;
        let wanted = if to {
            word | hint.bit
        } else {
            word & !hint.bit
        };
        if word == wanted {
            return Ok(());
        }
        self.hints.put(hint.word, wanted)
    }
}

fn hint(address: IpAddr) -> Hint {
    match address {
        IpAddr::V4(v4) => Hint::of_v4(octets_v4(v4)),
        IpAddr::V6(v6) => Hint::of_v6(octets_v6(v6)),
    }
}
