//! Which single addresses have a place in `identity_v4/6`, and with which identity.

use std::collections::BTreeMap;
use std::net::IpAddr;

use policy_common::address::{AddressV4, AddressV6, BLOCK};

/// The content of both tables, and how much room there is.
#[derive(Debug)]
pub(crate) struct Addresses {
    ids: BTreeMap<IpAddr, u32>,
    /// Rows in use, IPv4 and IPv6; a row stands for a block of addresses.
    rows: [usize; 2],
    /// Rows that there can be.
    limits: [u32; 2],
}

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// The first and the last address of a block.
fn block(address: IpAddr) -> (IpAddr, IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let octets = v4.octets();
            let mut octets = AddressV4 { octets }.block().octets;
            let first = octets.into();
            octets[3] += BLOCK as u8 - 1;
            (first, octets.into())
        }
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let mut octets = AddressV6 { octets }.block().octets;
            let first = octets.into();
            octets[15] += BLOCK as u8 - 1;
            (first, octets.into())
        }
    }
}

impl Addresses {
    /// Empty tables of so many rows, IPv4 and IPv6.
    pub(crate) fn new(limits: [u32; 2]) -> Self {
        Self {
            ids: BTreeMap::new(),
            rows: [0, 0],
            limits,
        }
    }

    /// The address's own identity, or 0.
    pub(crate) fn identity(&self, address: &IpAddr) -> u32 {
        self.ids.get(address).copied().unwrap_or(0)
    }

    /// Gives the address an identity, not 0; false where there is no room for it.
    pub(crate) fn set(&mut self, address: IpAddr, identity: u32) -> bool {
        let family = family(address);
        if !self.has_row(address) {
            if self.rows[family] >= self.limits[family] as usize {
                return false;
            }
            self.rows[family] += 1;
        }
        self.ids.insert(address, identity);
        true
    }

    /// Takes the address's identity away.
    pub(crate) fn remove(&mut self, address: IpAddr) {
        if self.ids.remove(&address).is_some() && !self.has_row(address) {
            self.rows[family(address)] -= 1;
        }
    }

    /// Rows in use.
    pub(crate) fn rows(&self, is_v6: bool) -> usize {
        self.rows[usize::from(is_v6)]
    }

    fn has_row(&self, address: IpAddr) -> bool {
        let (first, last) = block(address);
        self.ids.range(first..=last).next().is_some()
    }

    /// Rows that these addresses would take beyond those that there are.
    pub(crate) fn more_rows<'a>(&self, addresses: impl Iterator<Item = &'a IpAddr>) -> usize {
        let mut blocks: Vec<IpAddr> = addresses
            .filter(|address| !self.has_row(**address))
            .map(|address| block(*address).0)
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_row() {
        let at = |text: &str| text.parse::<IpAddr>().expect("address");
        let mut addresses = Addresses::new([1, 1]);
        assert!(addresses.set(at("10.0.0.8"), 1));
        assert!(addresses.set(at("10.0.0.15"), 2));
        assert!(!addresses.set(at("10.0.0.16"), 3), "another block, no room");
        assert!(!addresses.set(at("10.0.0.7"), 3), "another block, no room");
        assert!(addresses.set(at("fd00::f"), 4), "another family");
        assert_eq!((addresses.rows(false), addresses.rows(true)), (1, 1));
        addresses.remove(at("10.0.0.8"));
        assert_eq!(addresses.rows(false), 1);
        addresses.remove(at("10.0.0.15"));
        addresses.remove(at("10.0.0.15"));
        assert_eq!(addresses.rows(false), 0);
        assert!(addresses.set(at("10.0.0.16"), 3));
        assert_eq!(addresses.identity(&at("10.0.0.16")), 3);
        assert_eq!(addresses.identity(&at("10.0.0.17")), 0);
        let more = [at("10.0.0.17"), at("10.0.0.24"), at("10.0.0.25")];
        assert_eq!(addresses.more_rows(more.iter()), 1);
    }
}
