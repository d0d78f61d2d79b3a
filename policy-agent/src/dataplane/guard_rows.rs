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

/// On the real kernel: the object's tables without its programs.
#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use aya::EbpfLoader;

    use super::super::load::OBJECT;
    use super::*;

    fn rows(size: u32) -> GuardRows {
        assert!(!OBJECT.is_empty(), "this test needs `cargo xtask test`");
        let mut loader = EbpfLoader::new();
        for table in [map::GUARDED_V4, map::GUARDED_V6] {
            loader.map_max_entries(table.name, size);
        }
        let mut ebpf = loader.load(OBJECT).expect("root, to make tables");
        GuardRows::new(&mut ebpf).expect("both tables")
    }

    fn prefix(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    fn read(rows: &GuardRows) -> BTreeMap<IpNet, u32> {
        let mut former = Former::default();
        rows.read(&mut former).expect("readable");
        former.guards
    }

    #[test]
    fn the_kernel_holds_what_was_put() {
        let mut rows = rows(64);
        let mut expected = BTreeMap::new();
        for (text, kind) in [
            ("0.0.0.0/0", Guard::BLOCK),
            ("10.0.0.0/8", Guard::BLOCK),
            ("10.0.0.1/32", Guard::POD),
            ("10.0.0.2/32", Guard::NODE),
            ("10.0.0.2/32", Guard::NODE | Guard::REMOTE),
            ("2001:db8::/32", Guard::BLOCK),
            ("2001:db8::1/128", Guard::POD),
        ] {
            rows.put(&prefix(text), Guard { kind }).expect("room");
            expected.insert(prefix(text), kind);
        }
        assert_eq!(read(&rows), expected);
        assert_eq!(rows.counts(), [4, 2]);
        // Neither the shorter nor the longer one goes with it, and what is absent is no error.
        for text in ["10.0.0.0/8", "2001:db8::1/128", "10.0.0.9/32"] {
            rows.delete(&prefix(text)).expect("idempotent");
            expected.remove(&prefix(text));
        }
        assert_eq!(read(&rows), expected);
        assert_eq!(rows.counts(), [3, 1]);
    }

    #[test]
    fn a_full_table_says_so_and_has_room_again() {
        let mut rows = rows(2);
        let pod = Guard { kind: Guard::POD };
        for text in ["10.0.0.1/32", "10.0.0.2/32", "fd00::1/128"] {
            rows.put(&prefix(text), pod).expect("room");
        }
        let third = prefix("10.0.0.3/32");
        let refused = rows.put(&third, pod).expect_err("no room");
        assert!(
            matches!(refused, ApplyError::Full { table } if table == map::GUARDED_V4.name),
            "{refused}"
        );
        assert_eq!(rows.counts(), [2, 1]);
        rows.put(&prefix("fd00::2/128"), pod)
            .expect("another table");
        rows.delete(&prefix("10.0.0.1/32")).expect("there");
        rows.put(&third, pod).expect("room again");
        assert_eq!(rows.counts(), [2, 2]);
    }
}
