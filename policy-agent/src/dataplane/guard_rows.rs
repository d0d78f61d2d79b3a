//! The tables of addresses that are somebody's, by longest prefix.

use std::net::IpAddr;

use aya::Ebpf;
use aya::maps::MapError;
use ipnet::IpNet;
use policy_common::address::{AddressV4, AddressV6};
use policy_common::guard::Guard;
use policy_common::map;
use policy_core::tables::Tables as Former;

use super::counted::TrieRows;
use super::error::{ApplyError, LoadError};
use super::tables::{octets_v4, octets_v6, trie};

/// See the module.
pub(super) struct GuardRows {
    v4: TrieRows<AddressV4, Guard>,
    v6: TrieRows<AddressV6, Guard>,
}

impl GuardRows {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            v4: trie(ebpf, &map::GUARDED_V4)?,
            v6: trie(ebpf, &map::GUARDED_V6)?,
        })
    }

    /// Reads what an earlier agent left.
    pub(super) fn read(&self, former: &mut Former) -> Result<(), MapError> {
        let v4 = self.v4.all()?.into_iter();
        let v4 = v4.map(|(length, data, row)| (IpAddr::from(data.octets), length, row));
        let v6 = self.v6.all()?.into_iter();
        let v6 = v6.map(|(length, data, row)| (IpAddr::from(data.octets), length, row));
        for (network, length, row) in v4.chain(v6) {
            // A length that the kernel takes is one of the family's.
            if let Ok(prefix) = IpNet::new(network, length as u8) {
                former.guards.insert(prefix, row.kind);
            }
        }
        Ok(())
    }

    pub(super) fn put(&mut self, prefix: &IpNet, row: Guard) -> Result<(), ApplyError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(v4) => self.v4.put(length, octets_v4(v4), row),
            IpAddr::V6(v6) => self.v6.put(length, octets_v6(v6), row),
        }
    }

    pub(super) fn delete(&mut self, prefix: &IpNet) -> Result<(), ApplyError> {
        let length = u32::from(prefix.prefix_len());
        match prefix.network() {
            IpAddr::V4(v4) => self.v4.delete(length, octets_v4(v4)),
            IpAddr::V6(v6) => self.v6.delete(length, octets_v6(v6)),
        }
    }

    /// Rows of both families.
    pub(super) fn counts(&self) -> [u64; 2] {
        [self.v4.rows(), self.v6.rows()]
    }
}
