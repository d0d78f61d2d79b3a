//! Policies written down by hand as table operations, for packet tables that test the programs alone.

use std::net::IpAddr;

use policy_common::address::{AddressV4, AddressV6, Identity};
use policy_common::endpoint::Endpoint;
use policy_common::policy::{PeerKey, PolicyHeader, RuleAction, RuleBits, RuleKey};
use policy_common::port::{PortBlock, PortKey};
use policy_core::op::Op;

/// Which remote addresses a rule is for.
#[derive(Clone, Copy)]
pub enum Peers {
    /// Everyone.
    Any,
    /// Addresses of this identity.
    Identity(u32),
}

/// Which ports a rule is for.
#[derive(Clone, Copy)]
pub enum Ports {
    /// Every protocol and port.
    Any,
    /// Every port of a protocol.
    Protocol(u8),
    /// One port of a protocol.
    One(u8, u16),
}

/// A page of rules under construction.
pub struct Page {
    id: u32,
    header: PolicyHeader,
    rules: Vec<(Peers, Ports)>,
    actions: Vec<(u32, u32)>,
}

impl Page {
    /// An empty page that isolates.
    #[must_use]
    pub fn isolating(id: u32) -> Self {
        let flags = PolicyHeader::VALID | PolicyHeader::ISOLATED;
        let header = PolicyHeader {
            flags,
            ..PolicyHeader::default()
        };
        Self {
            id,
            header,
            rules: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// An empty page that does not isolate: admin and baseline rules only.
    #[must_use]
    pub fn open(id: u32) -> Self {
        let mut page = Self::isolating(id);
        page.header.flags = PolicyHeader::VALID;
        page
    }

    /// Adds a NetworkPolicy rule.
    #[must_use]
    pub fn allow(mut self, peers: Peers, ports: Ports) -> Self {
        self.rules.push((peers, ports));
        self.header.baseline_start = self.rules.len() as u16;
        self
    }

    /// Adds admin rules, which must come first, and fills up to the next multiple of 64.
    #[must_use]
    pub fn admin(mut self, rules: &[(Peers, Ports, u32)]) -> Self {
        for (peers, ports, action) in rules {
            self.actions.push((self.rules.len() as u32, *action));
            self.rules.push((*peers, *ports));
        }
        // An identity that no address has: these match nothing.
        self.rules.resize(
            self.rules.len().next_multiple_of(64),
            (Peers::Identity(u32::MAX), Ports::Any),
        );
        self.header.network_policy_start = self.rules.len() as u16;
        self.header.baseline_start = self.rules.len() as u16;
        self
    }

    /// Adds a baseline rule, which must come last.
    #[must_use]
    pub fn baseline(mut self, peers: Peers, ports: Ports, action: u32) -> Self {
        self.actions.push((self.rules.len() as u32, action));
        self.rules.push((peers, ports));
        self
    }

    /// Names the next page.
    #[must_use]
    pub fn then(mut self, page: u32) -> Self {
        self.header.next_page = page;
        self
    }

    /// Says that addresses without a row are looked up by prefix.
    #[must_use]
    pub fn with_prefixes(mut self) -> Self {
        self.header.flags |= PolicyHeader::HAS_PREFIXES;
        self
    }

    /// The operations that put the page into the tables.
    #[must_use]
    pub fn ops(mut self) -> Vec<Op> {
        let matching = |wanted: &dyn Fn(&(Peers, Ports)) -> bool| {
            let mut bits = RuleBits::EMPTY;
            for (index, rule) in self.rules.iter().enumerate() {
                if wanted(rule) {
                    bits.set(index as u32);
                }
            }
            bits
        };
        let policy = self.id;
        let mut ops = Vec::new();
        let for_anyone = matching(&|(peers, _)| matches!(peers, Peers::Any));
        if for_anyone.is_empty() {
            self.header.flags |= PolicyHeader::UNKNOWN_MATCHES_NONE;
        }
        let mut identities: Vec<u32> = vec![0];
        for (peers, _) in &self.rules {
            if let Peers::Identity(id) = peers
                && !identities.contains(id)
            {
                identities.push(*id);
            }
        }
        for identity in identities {
            let bits = matching(&|(peers, _)| match peers {
                Peers::Any => true,
                Peers::Identity(id) => *id == identity && identity != 0,
            });
            if !bits.is_empty() {
                ops.push(Op::PutPeer {
                    key: PeerKey { policy, identity },
                    bits: Box::new(bits),
                });
            }
        }
        if self
            .rules
            .iter()
            .all(|(_, ports)| matches!(ports, Ports::Any))
        {
            self.header.flags |= PolicyHeader::ANY_PORT;
        }
        ops.extend(self.port_rows(policy));
        for (rule, action) in &self.actions {
            let key = RuleKey {
                policy,
                rule: *rule,
            };
            ops.push(Op::PutRule {
                key,
                action: RuleAction { action: *action },
            });
        }
        self.header.rules = self.rules.len() as u16;
        ops.push(Op::PutPolicy {
            id: policy,
            header: self.header,
        });
        ops
    }

    fn port_rows(&self, policy: u32) -> Vec<Op> {
        let mut keys = vec![PortKey::any_protocol(policy)];
        for (_, ports) in &self.rules {
            match *ports {
                Ports::Any => {}
                Ports::Protocol(protocol) => {
                    keys.push(PortKey::block(
                        policy,
                        protocol,
                        PortBlock { first: 0, bits: 0 },
                    ));
                }
                Ports::One(protocol, first) => {
                    keys.push(PortKey::block(
                        policy,
                        protocol,
                        PortBlock { first, bits: 16 },
                    ));
                }
            }
        }
        keys.into_iter()
            .map(|key| {
                let mut bits = RuleBits::EMPTY;
                for (index, (_, ports)) in self.rules.iter().enumerate() {
                    let covers = match *ports {
                        Ports::Any => true,
                        Ports::Protocol(protocol) => {
                            key.prefix_len >= PortKey::ANY_PORT && key.data.protocol == protocol
                        }
                        Ports::One(protocol, port) => key == PortKey::exact(policy, protocol, port),
                    };
                    if covers {
                        bits.set(index as u32);
                    }
                }
                Op::PutPort {
                    key,
                    bits: Box::new(bits),
                }
            })
            .collect()
    }
}

/// An endpoint's row.
#[must_use]
pub fn endpoint(
    id: u32,
    addresses: &[IpAddr],
    ingress_policy: u32,
    egress_policy: u32,
) -> Endpoint {
    let mut row = Endpoint {
        epoch: 1,
        id,
        ingress_policy,
        egress_policy,
        ..Endpoint::default()
    };
    for address in addresses {
        match address {
            IpAddr::V4(v4) => {
                row.ipv4 = AddressV4 {
                    octets: v4.octets(),
                };
                row.flags |= Endpoint::HAS_IPV4;
            }
            IpAddr::V6(v6) => {
                row.ipv6 = AddressV6 {
                    octets: v6.octets(),
                };
                row.flags |= Endpoint::HAS_IPV6;
            }
        }
    }
    row
}

/// `address` has `identity`.
#[must_use]
pub fn identity(address: IpAddr, identity: u32) -> Op {
    Op::PutAddress {
        address,
        identity: Identity { id: identity },
    }
}
