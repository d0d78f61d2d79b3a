//! Random policies, every ordered pair of hosts and every protocol, against the naive oracle of policy-core.

use std::collections::BTreeSet;
use std::env;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use policy_agent::datastore::convert;
use policy_common::verdict::Direction;
use policy_core::model::{
    Change, LocalEndpoint, Namespace, ObjectName, Origin, Pod, Protocol, Subject,
};
use policy_core::oracle::Cluster;
use portcullis_tests::netns::{Family, Host, Outcome, PATIENCE, Probe, SILENCE, What, measure};
use portcullis_tests::objects;
use serde_json::{Value, json};

use super::cast::{Cast, DENY_ALL, db_in, store_policy, web_out};
use super::world::World;
use What::{Ping, Tcp, Udp};

/// Rounds a surrounding, unless `PORTCULLIS_RANDOM_ROUNDS` says otherwise.
pub(super) const ROUNDS: usize = 1;

const PODS: [(&str, &str); 5] = [
    ("shop", "web"),
    ("shop", "db"),
    ("shop", "other"),
    ("dev", "tool"),
    ("dev", "open"),
];

const WHATS: [What; 5] = [Tcp(80), Tcp(8080), Udp(53), Udp(8080), Ping];

/// A generator by xorshift: a seed is all that it takes to see a failure again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn pods(&mut self) -> Value {
        let apps = ["web", "db", "other", "tool", "open"];
        let some: BTreeSet<_> = (0..=self.below(3)).map(|_| self.one(&apps)).collect();
        match self.below(4) {
            0 => json!({}),
            1 => json!({"matchLabels": {"app": self.one(&apps)}}),
            2 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": some}]}),
            _ => json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": some}]}),
        }
    }

    fn peer(&mut self) -> Value {
        let namespaces = json!({"matchLabels": {"team": self.one(&["shop", "dev"])}});
        match self.below(6) {
            0 | 1 => json!({"podSelector": self.pods()}),
            2 => json!({"namespaceSelector": namespaces}),
            3 => json!({"namespaceSelector": namespaces, "podSelector": self.pods()}),
            4 => {
                let last = self.one(&[2, 3, 4, 5, 6]);
                self.one(&[
                    json!({"ipBlock": {"cidr": format!("10.244.0.{last}/32")}}),
                    json!({"ipBlock": {"cidr": format!("fd00:10:244::{last}/128")}}),
                    json!({"ipBlock": {"cidr": "10.244.0.0/24", "except": [format!("10.244.0.{last}/32")]}}),
                ])
            }
            _ => self.one(&[
                json!({"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.16/28"]}}),
                json!({"ipBlock": {"cidr": "2001:db8:51::/64", "except": ["2001:db8:51::14/128"]}}),
                json!({"ipBlock": {"cidr": "0.0.0.0/0"}}),
                json!({"ipBlock": {"cidr": "::/0"}}),
            ]),
        }
    }

    fn rules(&mut self, peers_key: &str) -> Value {
        let rules = (0..self.below(3)).map(|_| {
            let mut rule = json!({});
            if self.chance(85) {
                rule[peers_key] = (0..=self.below(2)).map(|_| self.peer()).collect();
            }
            if self.chance(50) {
                let ports = [
                    json!({"port": 80}),
                    json!({"port": 53, "protocol": "UDP"}),
                    json!({"port": 81, "endPort": 9000}),
                    json!({"protocol": "UDP"}),
                ];
                rule["ports"] = (0..=self.below(2)).map(|_| self.one(&ports)).collect();
            }
            rule
        });
        rules.collect()
    }

    fn policy(&mut self, namespace: &str, name: &str) -> Value {
        let mut spec = json!({"podSelector": self.pods(), "policyTypes": []});
        let kinds = 1 + self.below(3);
        if kinds & 1 != 0 {
            spec["policyTypes"]
                .as_array_mut()
                .unwrap()
                .push(json!("Ingress"));
            spec["ingress"] = self.rules("from");
        }
        if kinds & 2 != 0 {
            spec["policyTypes"]
                .as_array_mut()
                .unwrap()
                .push(json!("Egress"));
            spec["egress"] = self.rules("to");
        }
        objects::network_policy(namespace, name, &spec)
    }
}

/// The cast as the oracle knows it.
fn cluster(cast: &Cast) -> Cluster {
    let mut cluster = Cluster::default();
    for namespace in ["shop", "dev"] {
        let labels = [("team".into(), namespace.into())].into();
        cluster.apply(Change::Namespace(Namespace {
            name: namespace.into(),
            labels,
        }));
    }
    for (ifindex, ((namespace, name), host)) in (1..).zip(PODS.iter().zip(pods(cast))) {
        let pod = ObjectName::new(namespace, name);
        cluster.apply(Change::Pod(Pod {
            name: pod.clone(),
            labels: Arc::new([("app".into(), (*name).into())].into()),
            addresses: host.addresses().to_vec(),
            ports: Arc::default(),
            terminated: false,
            created: 0,
            uid: "".into(),
        }));
        cluster.apply(Change::Endpoint(LocalEndpoint {
            ifindex,
            host_interface: format!("veth{ifindex}"),
            interface: "eth0".to_owned(),
            pod,
            addresses: host.addresses().to_vec(),
            subject: Subject::Current,
            origin: Origin::Announced,
            is_router: false,
            records: false,
        }));
    }
    cluster
}

fn pods(cast: &Cast) -> [&Host; 5] {
    [&cast.web, &cast.db, &cast.other, &cast.tool, &cast.open]
}

fn target(what: What) -> Option<(Protocol, u16)> {
    match what {
        Tcp(port) => Some((Protocol::Tcp, port)),
        Udp(port) | What::Fragments(port) => Some((Protocol::Udp, port)),
        Ping => None,
    }
}

/// Whether policies allow it, at both ends.
fn allowed(cluster: &Cluster, from: IpAddr, to: IpAddr, what: What) -> bool {
    let endpoint = |address: IpAddr| {
        let mut endpoints = cluster.endpoints().values();
        endpoints.find(|endpoint| endpoint.addresses.contains(&address))
    };
    let passes = |own: IpAddr, direction, remote| {
        endpoint(own).is_none_or(|own| cluster.allows(own, direction, remote, target(what)))
    };
    from == to || passes(from, Direction::Egress, to) && passes(to, Direction::Ingress, from)
}

/// How many rounds are asked for.
fn asked_for(rounds: usize) -> usize {
    env::var("PORTCULLIS_RANDOM_ROUNDS").map_or(rounds, |text| text.parse().unwrap())
}

/// Some rounds of random policies; cells, and what is wrong.
pub(super) fn rounds(world: &World<'_>, rounds: usize) -> (usize, Vec<String>) {
    let (mut cells, mut wrong) = (0, Vec::new());
    let rounds = asked_for(rounds);
    if rounds == 0 {
        return (0, wrong);
    }
    let store = world.cast.node.datastore();
    for name in ["default-deny", "web-out", "db-in"] {
        store.delete_policy("shop", name).unwrap();
    }
    for _ in 0..rounds {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seed =
            env::var("PORTCULLIS_SEED").map_or(now.as_nanos() as u64, |text| text.parse().unwrap());
        let (more, bad) = round(world, seed | 1);
        cells += more;
        wrong.extend(bad);
    }
    for (name, spec) in [
        ("default-deny", DENY_ALL),
        ("web-out", &web_out()),
        ("db-in", &db_in()),
    ] {
        store_policy(world.cast, name, spec);
    }
    world.agent.sync().unwrap();
    (cells, wrong)
}

fn round(world: &World<'_>, seed: u64) -> (usize, Vec<String>) {
    let cast = world.cast;
    let mut random = Random(seed);
    let mut cluster = cluster(cast);
    let mut policies = Vec::new();
    for number in 0..4 {
        let namespace = random.one(&["shop", "shop", "dev"]);
        let policy = random.policy(namespace, &format!("random-{number}"));
        let object: NetworkPolicy = serde_json::from_value(policy.clone()).unwrap();
        cluster.apply(Change::Policy(convert::network_policy(&object).unwrap()));
        let file = format!("random-{number}");
        cast.node
            .datastore()
            .put(&file, &policy.to_string())
            .unwrap();
        policies.push((file, policy));
    }
    world.agent.sync().unwrap();
    let from: Vec<_> = pods(cast)
        .into_iter()
        .chain([&cast.friend, &cast.stranger])
        .collect();
    let mut cells = Vec::new();
    for client in &from {
        for server in &from {
            for what in WHATS {
                for family in Family::ALL {
                    cells.push((*client, *server, what, family));
                }
            }
        }
    }
    let expected: Vec<_> = cells
        .iter()
        .map(|(from, to, what, family)| {
            let pass = allowed(&cluster, from.address(*family), to.address(*family), *what);
            if pass {
                Outcome::Answered
            } else {
                Outcome::Silent
            }
        })
        .collect();
    let probes: Vec<_> = cells
        .iter()
        .zip(&expected)
        .map(|((from, to, what, family), expected)| Probe {
            from: from.netns(),
            to: to.address(*family),
            what: *what,
            patience: if *expected == Outcome::Silent {
                SILENCE
            } else {
                PATIENCE
            },
        })
        .collect();
    let outcomes = measure(&probes);
    let mut wrong: Vec<_> = cells
        .iter()
        .zip(&expected)
        .zip(outcomes)
        .filter(|((_, expected), got)| *expected != got)
        .map(|(((from, to, what, family), expected), got)| {
            let to_address = to.address(*family);
            format!(
                "  {} -> {to_address} {what}: expected {expected}, got {got}",
                from.name()
            )
        })
        .collect();
    if !wrong.is_empty() {
        wrong.insert(
            0,
            format!("  PORTCULLIS_SEED={seed} gives these policies again:"),
        );
        wrong.extend(policies.iter().map(|(_, policy)| format!("  {policy}")));
    }
    for (file, _) in &policies {
        cast.node.datastore().delete(file).unwrap();
    }
    (cells.len(), wrong)
}
