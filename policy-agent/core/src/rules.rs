//! Rule lists: what NetworkPolicies ask of one pod in one direction, with named ports resolved.

use std::collections::{BTreeMap, BTreeSet};

use policy_common::policy::{MAX_PAGES, RULES_PER_PAGE};
use policy_common::verdict::Direction;

use crate::atom::{Atom, Scope};
use crate::model::{NetworkPolicy, ObjectName, Peer, Pod, PortMatch, Rule};
use crate::store::{PortName, Store};

/// Rules that one list can hold.
pub(crate) const CAPACITY: usize = (MAX_PAGES * RULES_PER_PAGE) as usize;

/// Protocol number, first and last port.
pub(crate) type PortRange = (u8, u16, u16);

/// One rule of a list: who and what, any of each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ListRule {
    /// The elements of `spec.ingress` or `spec.egress` that it comes from: policy and index. More than
    /// one only where rules had to be merged.
    pub(crate) origins: Vec<(ObjectName, usize)>,
    /// `None`: everyone.
    pub(crate) peers: Option<BTreeSet<Atom>>,
    /// `None`: every protocol and port.
    pub(crate) ports: Option<BTreeSet<PortRange>>,
}

/// The ordered rules in force for one pod and direction. Equal lists share their pages.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RuleList {
    pub(crate) direction: Direction,
    /// The policies that isolate the pod in this direction.
    pub(crate) policies: Vec<ObjectName>,
    pub(crate) rules: Vec<ListRule>,
}

/// The list for a pod, or `None` when no policy isolates it in this direction. `names` collects the
/// port names whose numbers the list depends on.
pub(crate) fn rule_list(
    store: &Store,
    pod: &Pod,
    direction: Direction,
    names: &mut BTreeSet<PortName>,
) -> Option<RuleList> {
    let mut list = RuleList {
        direction,
        policies: Vec::new(),
        rules: Vec::new(),
    };
    for policy in store.policies_in(&pod.name.namespace) {
        let rules = match direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        let Some(rules) = rules else { continue };
        if !policy.subjects.matches(&pod.labels) {
            continue;
        }
        list.policies.push(policy.name.clone());
        for (index, rule) in rules.iter().enumerate() {
            let origin = (policy.name.clone(), index);
            match direction {
                Direction::Ingress => ingress_rule(policy, rule, pod, origin, &mut list.rules),
                Direction::Egress => {
                    egress_rules(store, policy, rule, origin, names, &mut list.rules);
                }
            }
        }
    }
    if list.policies.is_empty() {
        return None;
    }
    if list.rules.len() > CAPACITY {
        merge_equal_ports(&mut list.rules);
    }
    Some(list)
}

fn atom(policy: &NetworkPolicy, peer: &Peer) -> Atom {
    match peer {
        Peer::Pods { namespaces, pods } => Atom::Pods {
            scope: match namespaces {
                None => Scope::Namespace(policy.name.namespace.clone()),
                Some(selector) => Scope::Selector(selector.clone()),
            },
            pods: pods.clone().unwrap_or_default(),
        },
        Peer::IpBlock { cidr, except } => Atom::Block {
            cidr: *cidr,
            except: except.clone(),
        },
    }
}

fn atoms(policy: &NetworkPolicy, rule: &Rule) -> Option<BTreeSet<Atom>> {
    if rule.peers.is_empty() {
        return None;
    }
    Some(rule.peers.iter().map(|peer| atom(policy, peer)).collect())
}

/// The ports that a rule gives by number.
fn numbered(rule: &Rule) -> BTreeSet<PortRange> {
    let ranges = rule.ports.iter().filter_map(|port| {
        let protocol = port.protocol.number();
        match &port.port {
            PortMatch::Any => Some((protocol, 0, u16::MAX)),
            PortMatch::Range(first, last) => Some((protocol, *first, *last)),
            PortMatch::Named(_) => None,
        }
    });
    ranges.collect()
}

/// The ports that a rule gives by name.
fn named(rule: &Rule) -> impl Iterator<Item = PortName> {
    rule.ports.iter().filter_map(|port| match &port.port {
        PortMatch::Named(name) => Some((name.clone(), port.protocol)),
        _ => None,
    })
}

/// Named ports of an ingress rule are the subject's own.
fn ingress_rule(
    policy: &NetworkPolicy,
    rule: &Rule,
    subject: &Pod,
    origin: (ObjectName, usize),
    rules: &mut Vec<ListRule>,
) {
    let mut ports = numbered(rule);
    for (name, protocol) in named(rule) {
        let own = subject.ports.iter();
        let own = own.filter(|own| own.name == name && own.protocol == protocol);
        ports.extend(own.map(|own| (protocol.number(), own.port, own.port)));
    }
    push(policy, rule, origin, ports, rules);
}

/// Named ports of an egress rule are the destination's: one rule for each number that a live pod
/// gives the name, for peers that have just that port.
fn egress_rules(
    store: &Store,
    policy: &NetworkPolicy,
    rule: &Rule,
    origin: (ObjectName, usize),
    names: &mut BTreeSet<PortName>,
    rules: &mut Vec<ListRule>,
) {
    push(policy, rule, origin.clone(), numbered(rule), rules);
    let peers = atoms(policy, rule);
    for (name, protocol) in named(rule) {
        for number in store.numbers(&(name.clone(), protocol)) {
            let owners = match &peers {
                None => [Atom::named(None, &name, protocol, number)].into(),
                Some(peers) => peers
                    .iter()
                    .map(|peer| Atom::named(Some(peer.clone()), &name, protocol, number))
                    .collect(),
            };
            rules.push(ListRule {
                origins: vec![origin.clone()],
                peers: Some(owners),
                ports: Some([(protocol.number(), number, number)].into()),
            });
        }
        names.insert((name, protocol));
    }
}

/// Adds the rule for `ports`; a rule that names ports, none of which has a number, matches nothing.
fn push(
    policy: &NetworkPolicy,
    rule: &Rule,
    origin: (ObjectName, usize),
    ports: BTreeSet<PortRange>,
    rules: &mut Vec<ListRule>,
) {
    if rule.ports.is_empty() || !ports.is_empty() {
        let ports = (!rule.ports.is_empty()).then_some(ports);
        let peers = atoms(policy, rule);
        rules.push(ListRule {
            origins: vec![origin],
            peers,
            ports,
        });
    }
}

/// One rule for all that have equal ports: fewer rules, the same verdicts, a coarser explanation.
fn merge_equal_ports(rules: &mut Vec<ListRule>) {
    let mut merged: BTreeMap<Option<BTreeSet<PortRange>>, ListRule> = BTreeMap::new();
    for rule in rules.drain(..) {
        match merged.get_mut(&rule.ports) {
            None => drop(merged.insert(rule.ports.clone(), rule)),
            Some(former) => {
                former.origins.extend(rule.origins);
                former.peers = match (former.peers.take(), rule.peers) {
                    (Some(mut peers), Some(more)) => {
                        peers.extend(more);
                        Some(peers)
                    }
                    _ => None,
                };
            }
        }
    }
    rules.extend(merged.into_values());
}
