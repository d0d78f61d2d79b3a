//! A large made-up cluster, for benchmarks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::model::{
    Change, LabelSelector, Labels, LocalEndpoint, Namespace, NetworkPolicy, ObjectName, Origin,
    Peer, Pod, PolicyPort, PortMatch, Protocol, Requirement, Rule, Subject,
};

/// Pods of one namespace.
const PODS_PER_NAMESPACE: usize = 100;
/// Pods of one application; they have equal labels.
const PODS_PER_APP: usize = 5;

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| (Arc::from(*key), Arc::from(value.as_str())))
        .collect()
}

fn equals(key: &str, value: &str) -> LabelSelector {
    let values = BTreeSet::from([Arc::from(value)]);
    LabelSelector {
        requirements: vec![Requirement::In(key.into(), values)],
    }
}

/// Everything that makes up a cluster of `pods` pods, `local` of them on this node, and `policies`
/// policies, spread evenly over namespaces: each policy lets one application, of its namespace or of a
/// team's, come to another.
#[must_use]
pub fn cluster(policies: usize, pods: usize, local: usize) -> Vec<Change> {
    let namespaces = pods.div_ceil(PODS_PER_NAMESPACE).max(1);
    let mut changes = Vec::with_capacity(namespaces + policies + pods + local);
    for index in 0..namespaces {
        let name = Arc::from(format!("ns-{index}"));
        let labels = labels(&[("team", format!("team-{}", index % 20))]);
        changes.push(Change::Namespace(Namespace { name, labels }));
    }
    changes.extend((0..policies).map(|index| Change::Policy(policy(index, namespaces))));
    let step = (pods / local.max(1)).max(1);
    for index in 0..pods {
        changes.push(Change::Pod(pod(index)));
        if index % step == 0 && index / step < local {
            let made = pod(index);
            changes.push(Change::Endpoint(LocalEndpoint {
                ifindex: 100 + (index / step) as u32,
                host_interface: format!("veth{index}"),
                interface: "eth0".to_owned(),
                pod: made.name,
                subject: Subject::Current,
                origin: Origin::Announced,
                addresses: made.addresses,
                is_router: false,
                records: false,
            }));
        }
    }
    changes
}

/// Pod number `index`.
#[must_use]
pub fn pod(index: usize) -> Pod {
    let namespace = format!("ns-{}", index / PODS_PER_NAMESPACE);
    let app = index % PODS_PER_NAMESPACE / PODS_PER_APP;
    Pod {
        name: ObjectName::new(&namespace, &format!("pod-{index}")),
        labels: labels(&[
            ("app", format!("app-{app}")),
            ("tier", format!("tier-{}", app % 3)),
        ])
        .into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + index as u32))],
        ports: Arc::default(),
        terminated: false,
        created: index as i64,
        uid: Arc::from(format!("uid-{index}")),
    }
}

fn policy(index: usize, namespaces: usize) -> NetworkPolicy {
    let namespace = format!("ns-{}", index % namespaces);
    let app = index / namespaces % (PODS_PER_NAMESPACE / PODS_PER_APP);
    let peers = vec![
        Peer::Pods {
            namespaces: None,
            pods: Some(equals("app", &format!("app-{}", app + 1))),
        },
        Peer::Pods {
            namespaces: Some(equals("team", &format!("team-{}", index % 20))),
            pods: Some(equals("tier", &format!("tier-{}", index % 3))),
        },
    ];
    let port = PortMatch::Range(8000 + (index % 50) as u16, 8000 + (index % 50) as u16);
    let ports = vec![PolicyPort {
        protocol: Protocol::Tcp,
        port,
    }];
    NetworkPolicy {
        name: ObjectName::new(&namespace, &format!("policy-{index}")),
        subjects: equals("app", &format!("app-{app}")),
        ingress: Some(vec![Rule { peers, ports }]),
        egress: None,
    }
}
