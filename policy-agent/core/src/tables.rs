//! The tables in memory: executes operations, and judges as the programs do. The reference for
//! `policy-ebpf/src/policy.rs`, one lookup for one.
//!
//! What it proves: that operations lead to the right verdicts, after each of them. What it cannot: that
//! the kernel executes them as told; the packet tables and conformance cases do that with real maps.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::endpoint::Endpoint;
use policy_common::policy::{
    MAX_PAGES, PeerKey, PolicyHeader, RuleAction, RuleBits, RuleKey, Tier, common_words,
    first_match,
};
use policy_common::port::PortKey;
use policy_common::verdict::Direction;

use crate::op::Op;

/// Every table that the compiler fills.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `endpoints`.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// `policies`.
    pub policies: BTreeMap<u32, PolicyHeader>,
    /// `peers`.
    pub peers: HashMap<PeerKey, RuleBits>,
    /// `ports`.
    pub ports: HashMap<PortKey, RuleBits>,
    /// `rules`.
    pub rules: HashMap<RuleKey, u32>,
    /// `identity_v4` and `identity_v6`.
    pub identities: BTreeMap<IpAddr, u32>,
    /// `prefix_v4` and `prefix_v6`.
    pub prefixes: BTreeMap<IpNet, u32>,
    /// `service_v4` and `service_v6`: the kind of each address. The compiler neither reads nor fills them.
    pub services: BTreeMap<IpAddr, u32>,
    /// `guarded_v4` and `guarded_v6`: the kinds of each prefix. The compiler neither reads nor fills them.
    pub guards: BTreeMap<IpNet, u32>,
    /// The generation of endpoint ids that was begun last: the epoch in row [`Tables::GENERATION`] of
    /// `endpoints`.
    pub generation: u32,
}

impl Tables {
    /// The row of `endpoints` that keeps [`Tables::generation`]; no interface has this index.
    pub const GENERATION: u32 = 0;

    /// The ids of all endpoints.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.endpoints.values().map(|row| row.id).collect()
    }

    /// Executes an operation.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::PutPolicy { id, header } => {
                self.policies.insert(*id, *header);
            }
            Op::DeletePolicy { id } => {
                self.policies.remove(id);
            }
            Op::PutPeer { key, bits } => {
                self.peers.insert(*key, **bits);
            }
            Op::DeletePeer { key } => {
                self.peers.remove(key);
            }
            Op::PutPort { key, bits } => {
                self.ports.insert(*key, **bits);
            }
            Op::DeletePort { key } => {
                self.ports.remove(key);
            }
            Op::PutRule { key, action } => {
                self.rules.insert(*key, action.action);
            }
            Op::DeleteRule { key } => {
                self.rules.remove(key);
            }
            Op::PutAddress { address, identity } => {
                self.identities.insert(*address, identity.id);
            }
            Op::DeleteAddress { address } => {
                self.identities.remove(address);
            }
            Op::PutPrefix { prefix, identity } => {
                self.prefixes.insert(*prefix, identity.id);
            }
            Op::DeletePrefix { prefix } => {
                self.prefixes.remove(prefix);
            }
            Op::PutEndpoint {
                ifindex: Self::GENERATION,
                endpoint,
            } => self.generation = endpoint.epoch,
            Op::PutEndpoint { ifindex, endpoint } => {
                self.endpoints.insert(*ifindex, *endpoint);
            }
            Op::DeleteEndpoint { ifindex } => {
                self.endpoints.remove(ifindex);
            }
            Op::PutService { address, row } => {
                self.services.insert(*address, row.kind);
            }
            Op::DeleteService { address } => {
                self.services.remove(address);
            }
            Op::PutGuard { prefix, row } => {
                self.guards.insert(*prefix, row.kind);
            }
            Op::DeleteGuard { prefix } => {
                self.guards.remove(prefix);
            }
            Op::ClearRuleCounts { .. } | Op::Barrier => {}
        }
    }

    /// Whether a new flow of an endpoint is allowed; `None` when there is no such endpoint.
    #[must_use]
    pub fn allows(
        &self,
        ifindex: u32,
        direction: Direction,
        remote: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Option<bool> {
        let endpoint = self.endpoints.get(&ifindex)?;
        let policy = match direction {
            Direction::Ingress => endpoint.ingress_policy,
            Direction::Egress => endpoint.egress_policy,
        };
        Some(policy == 0 || self.classify(policy, remote, protocol, port))
    }

    /// One classification; incomplete tables deny.
    fn classify(&self, policy: u32, remote: IpAddr, protocol: u8, port: u16) -> bool {
        let mut identity = self.identities.get(&remote).copied();
        let (mut page, mut isolated, mut past_admin) = (policy, false, false);
        for _ in 0..=MAX_PAGES {
            let Some(header) = self.policies.get(&page) else {
                return false;
            };
            if header.flags & PolicyHeader::VALID == 0 {
                return false;
            }
            isolated |= header.flags & PolicyHeader::ISOLATED != 0;
            if identity.is_none() && header.flags & PolicyHeader::HAS_PREFIXES != 0 {
                identity = Some(self.longest_prefix(remote));
            }
            let from = if past_admin {
                u32::from(header.network_policy_start)
            } else {
                0
            };
            let hit = self.match_page(page, header, identity.unwrap_or(0), protocol, port, from);
            if let Some(rule) = hit {
                match self.act(page, header, rule, isolated) {
                    RuleAction::PASS => {
                        past_admin = true;
                        continue;
                    }
                    action => return action == RuleAction::ALLOW,
                }
            }
            page = header.next_page;
            if page == 0 {
                return !isolated;
            }
        }
        false
    }

    fn act(&self, page: u32, header: &PolicyHeader, rule: u32, isolated: bool) -> u32 {
        let action = self.rules.get(&RuleKey { policy: page, rule }).copied();
        match header.tier(rule) {
            Tier::NetworkPolicy => RuleAction::ALLOW,
            Tier::Baseline if isolated => RuleAction::DENY,
            Tier::Baseline => action
                .filter(|a| *a == RuleAction::ALLOW)
                .unwrap_or(RuleAction::DENY),
            Tier::Admin => action.unwrap_or(RuleAction::DENY),
        }
    }

    fn match_page(
        &self,
        page: u32,
        header: &PolicyHeader,
        identity: u32,
        protocol: u8,
        port: u16,
        from: u32,
    ) -> Option<u32> {
        let matches_anyone = header.flags & PolicyHeader::UNKNOWN_MATCHES_NONE == 0;
        if identity == 0 && !matches_anyone {
            return None;
        }
        let row = |identity| {
            self.peers.get(&PeerKey {
                policy: page,
                identity,
            })
        };
        let peers = match row(identity) {
            None if matches_anyone => row(0)?,
            found => found?,
        };
        let ports = if header.flags & PolicyHeader::ANY_PORT != 0 {
            peers
        } else {
            self.longest_port(page, protocol, port)?
        };
        first_match(peers, ports, from, common_words)
    }

    fn longest_port(&self, page: u32, protocol: u8, port: u16) -> Option<&RuleBits> {
        let exact = PortKey::exact(page, protocol, port);
        (PortKey::ANY_PORT..=PortKey::EXACT)
            .rev()
            .find_map(|prefix_len| {
                let mut key = exact;
                key.prefix_len = prefix_len;
                let free = PortKey::EXACT - prefix_len;
                let mask = if free == 16 { 0 } else { u16::MAX << free };
                key.data.port = (port & mask).to_be_bytes();
                self.ports.get(&key)
            })
            .or_else(|| self.ports.get(&PortKey::any_protocol(page)))
    }

    fn longest_prefix(&self, remote: IpAddr) -> u32 {
        let covering = self
            .prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(&remote));
        covering
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map_or(0, |(_, id)| *id)
    }
}
