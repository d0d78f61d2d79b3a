//! What people may ask of the compiler.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use policy_common::map;
use policy_common::policy::RULES_PER_PAGE;
use policy_common::verdict::Direction;

use crate::atom::{Atom, Scope};
use crate::compiler::{Compiler, Judge};
use crate::limits::Problem;
use crate::model::ObjectName;
use crate::page::DENY_ALL;

/// One direction of an endpoint that is isolated in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectionView {
    /// Policy id of the first page.
    pub policy: u32,
    /// Number of rules.
    pub rules: usize,
    /// The NetworkPolicies that isolate it; none where it is denied for another reason.
    pub policies: Vec<ObjectName>,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Host-side interface.
    pub ifindex: u32,
    /// Endpoint id.
    pub id: u32,
    /// Epoch.
    pub epoch: u32,
    /// Host-side interface name.
    pub host_interface: String,
    /// Interface name inside the pod.
    pub interface: String,
    /// The pod.
    pub pod: ObjectName,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// `None`: not isolated for ingress.
    pub ingress: Option<DirectionView>,
    /// `None`: not isolated for egress.
    pub egress: Option<DirectionView>,
}

/// One identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityView {
    /// Its number.
    pub id: u32,
    /// The peers of rules in force that match it, in words.
    pub matches: Vec<String>,
    /// Addresses that have it.
    pub addresses: Vec<IpAddr>,
    /// Prefixes that have it.
    pub prefixes: Vec<IpNet>,
}

/// Whether a policy is enforced on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyStatus {
    /// On every local pod that it selects.
    Enforced,
    /// It selects no pod of this node.
    NoLocalSubjects,
    /// Not as written, and why.
    Refused(String),
}

/// How many NetworkPolicies have each status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    /// [`PolicyStatus::Enforced`].
    pub enforced: usize,
    /// [`PolicyStatus::NoLocalSubjects`].
    pub no_local_subjects: usize,
    /// [`PolicyStatus::Refused`].
    pub refused: usize,
}

/// One NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyView {
    /// Its name.
    pub name: ObjectName,
    /// Whether it isolates for ingress.
    pub isolates_ingress: bool,
    /// Whether it isolates for egress.
    pub isolates_egress: bool,
    /// Number of ingress rules.
    pub ingress_rules: usize,
    /// Number of egress rules.
    pub egress_rules: usize,
    /// Local pods that it selects.
    pub subjects: Vec<ObjectName>,
    /// Whether it is enforced.
    pub status: PolicyStatus,
}

/// What a policy id and rule index stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The NetworkPolicies that isolate.
    pub isolated_by: Vec<ObjectName>,
    /// The deciding rule: its policy, and its index in `spec.ingress` or `spec.egress`.
    pub rule: Option<(ObjectName, usize)>,
    /// The direction judged.
    pub direction: Direction,
}

impl Compiler {
    /// Every endpoint with a row.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointView> {
        let records = self.records.iter().filter_map(|(ifindex, record)| {
            let endpoint = self.store.endpoint(*ifindex)?;
            Some(EndpointView {
                ifindex: *ifindex,
                id: record.row.id,
                epoch: record.row.epoch,
                host_interface: endpoint.host_interface.clone(),
                interface: endpoint.interface.clone(),
                pod: record.pod.clone(),
                addresses: self.store.own_addresses(endpoint),
                ingress: self.direction_view(&record.judges[Direction::Ingress as usize]),
                egress: self.direction_view(&record.judges[Direction::Egress as usize]),
            })
        });
        records.collect()
    }

    fn direction_view(&self, judge: &Judge) -> Option<DirectionView> {
        let policy = self.policy_id(judge);
        match judge {
            Judge::Nobody => None,
            Judge::DenyAll => Some(DirectionView {
                policy,
                rules: 0,
                policies: Vec::new(),
            }),
            Judge::List(list) => Some(DirectionView {
                policy,
                rules: list.rules.len(),
                policies: list.policies.clone(),
            }),
        }
    }

    /// Every identity but 0.
    #[must_use]
    pub fn identities(&self) -> Vec<IdentityView> {
        let views = self.identities.iter().map(|(id, record)| IdentityView {
            id: *id,
            matches: record
                .set
                .iter()
                .filter_map(|atom| self.atoms.get(*atom))
                .map(|record| words(&record.atom))
                .collect(),
            addresses: record.addresses.iter().copied().collect(),
            prefixes: record.prefixes.iter().copied().collect(),
        });
        views.collect()
    }

    /// Every NetworkPolicy.
    #[must_use]
    pub fn policies(&self) -> Vec<PolicyView> {
        let mut subjects: BTreeMap<&ObjectName, BTreeSet<ObjectName>> = BTreeMap::new();
        for (ifindex, record) in &self.records {
            let endpoint = self.store.endpoint(*ifindex);
            let Some(pod) = endpoint.and_then(|endpoint| self.store.subject(endpoint)) else {
                continue;
            };
            for policy in self.store.policies_in(&record.pod.namespace) {
                if policy.subjects.matches(&pod.labels) {
                    subjects
                        .entry(&policy.name)
                        .or_default()
                        .insert(record.pod.clone());
                }
            }
        }
        let problems = self.pod_problems();
        let views = self.store.policies().map(|policy| {
            let subjects: Vec<_> = subjects
                .remove(&policy.name)
                .into_iter()
                .flatten()
                .collect();
            let refused = subjects.iter().find_map(|pod| problems.get(pod));
            let status = match refused {
                Some(problem) => PolicyStatus::Refused(problem.to_string()),
                None if subjects.is_empty() => PolicyStatus::NoLocalSubjects,
                None => PolicyStatus::Enforced,
            };
            PolicyView {
                name: policy.name.clone(),
                isolates_ingress: policy.ingress.is_some(),
                isolates_egress: policy.egress.is_some(),
                ingress_rules: policy.ingress.as_ref().map_or(0, Vec::len),
                egress_rules: policy.egress.as_ref().map_or(0, Vec::len),
                subjects,
                status,
            }
        });
        views.collect()
    }

    /// How many NetworkPolicies have each status.
    #[must_use]
    pub fn policy_counts(&self) -> PolicyCounts {
        let problems = self.pod_problems();
        // Of policies with a local subject: whether one of its subjects has a problem.
        let mut refused: BTreeMap<&ObjectName, bool> = BTreeMap::new();
        for (ifindex, record) in &self.records {
            let endpoint = self.store.endpoint(*ifindex);
            let Some(pod) = endpoint.and_then(|endpoint| self.store.subject(endpoint)) else {
                continue;
            };
            let has_problem = problems.contains_key(&record.pod);
            for policy in self.store.policies_in(&record.pod.namespace) {
                if policy.subjects.matches(&pod.labels) {
                    *refused.entry(&policy.name).or_default() |= has_problem;
                }
            }
        }
        let total = self.store.policies().count();
        let counted = refused.values().filter(|refused| **refused).count();
        PolicyCounts {
            enforced: refused.len() - counted,
            no_local_subjects: total - refused.len(),
            refused: counted,
        }
    }

    /// Number of identities, 0 not counted.
    #[must_use]
    pub fn identity_count(&self) -> usize {
        self.identities.iter().count()
    }

    fn pod_problems(&self) -> BTreeMap<&ObjectName, &Problem> {
        let problems = self
            .starved
            .values()
            .flatten()
            .filter_map(|problem| match problem {
                Problem::RuleListTooLong { pod, .. } | Problem::TableFull { pod, .. } => {
                    Some((pod, problem))
                }
                _ => None,
            });
        problems.collect()
    }

    /// What a policy id, and a rule's index over all pages, stand for; `None` for an id not in force.
    #[must_use]
    pub fn explain(&self, policy_id: u32, rule: Option<u32>) -> Option<Explanation> {
        let page = self.pages.get(&policy_id)?;
        let first = page.number * RULES_PER_PAGE as usize;
        let rule = rule.and_then(|index| page.list.rules.get(first + index as usize));
        Some(Explanation {
            isolated_by: page.list.policies.clone(),
            rule: rule.and_then(|rule| rule.origins.first().cloned()),
            direction: page.list.direction,
        })
    }

    /// The pod that an address counts for.
    #[must_use]
    pub fn pod_of_address(&self, address: IpAddr) -> Option<ObjectName> {
        self.store.owner(&address).map(|pod| pod.name.clone())
    }

    /// The pod of an endpoint id.
    #[must_use]
    pub fn pod_of_endpoint(&self, endpoint_id: u32) -> Option<ObjectName> {
        let found = self
            .records
            .values()
            .find(|record| record.row.id == endpoint_id);
        found.map(|record| record.pod.clone())
    }

    /// What is not enforced as written.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.starved.values().flatten().cloned().collect();
        for (table, is_v6) in [
            (map::IDENTITY_V4.name, false),
            (map::IDENTITY_V6.name, true),
        ] {
            let unplaced = self.unplaced.iter();
            let unplaced = unplaced.filter(|address| address.is_ipv6() == is_v6);
            let missing = self.addresses.more_rows(unplaced);
            if missing > 0 {
                let rows = self.addresses.rows(is_v6) + missing;
                problems.push(Problem::TableTooSmall { table, rows });
            }
        }
        if !self.unplaced_peers.is_empty() {
            problems.push(Problem::TableTooSmall {
                table: map::PEERS.name,
                rows: self.peer_rows + self.unplaced_peers.len(),
            });
        }
        let rules = self.rules(false);
        if rules > 0 {
            problems.push(Problem::NotCounted { rules });
        }
        for (address, claimants) in self.store.conflicts() {
            let Some(owner) = self.store.owner(address) else {
                continue;
            };
            for loser in claimants.iter().filter(|name| **name != owner.name) {
                problems.push(Problem::AddressConflict {
                    address: *address,
                    owner: owner.name.clone(),
                    loser: loser.clone(),
                });
            }
        }
        problems
    }

    /// Number of rules in force that are counted, or that are not.
    fn rules(&self, counted: bool) -> usize {
        let headers = self.pages.values().map(|page| page.header);
        headers
            .filter(|header| (header.first_count != 0) == counted)
            .map(|header| usize::from(header.rules))
            .sum()
    }

    /// Rows in the tables that the compiler fills, by name.
    #[must_use]
    pub fn table_use(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            (map::POLICIES.name, self.pages.len() + DENY_ALL as usize),
            (map::PEERS.name, self.peer_rows),
            (map::PORTS.name, self.port_rows),
            (map::RULE_COUNTS.name, self.rules(true)),
            (map::IDENTITY_V4.name, self.addresses.rows(false)),
            (map::IDENTITY_V6.name, self.addresses.rows(true)),
            (map::PREFIX_V4.name, self.prefixes.count(false)),
            (map::PREFIX_V6.name, self.prefixes.count(true)),
            (map::ENDPOINTS.name, self.records.len()),
        ])
    }
}

/// An atom in words.
fn words(atom: &Atom) -> String {
    match atom {
        Atom::Pods { scope, pods } => {
            let scope = match scope {
                Scope::Namespace(name) => format!("namespace {name}"),
                Scope::Selector(selector) if selector.requirements.is_empty() => {
                    "all namespaces".to_owned()
                }
                Scope::Selector(selector) => format!("namespaces {selector}"),
            };
            if pods.requirements.is_empty() {
                format!("all pods in {scope}")
            } else {
                format!("pods {pods} in {scope}")
            }
        }
        Atom::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        Atom::Block { cidr, except } => {
            let except: Vec<String> = except.iter().map(ToString::to_string).collect();
            format!("{cidr} except {}", except.join(", "))
        }
        Atom::Named { peer, port } => {
            let whose = peer.as_deref().map_or_else(|| "anyone".to_owned(), words);
            format!("{whose} with port {} = {}", port.name, port.port)
        }
    }
}
