//! A pod as it is written down for the agent's successor.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use policy_core::model::{NamedPort, ObjectName, Pod, Protocol};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KnownPod {
    namespace: String,
    name: String,
    uid: String,
    labels: BTreeMap<String, String>,
    ports: Vec<(String, u8, u16)>,
    addresses: Vec<IpAddr>,
    terminated: bool,
    created: i64,
}

pub(super) fn serialize<S: Serializer>(
    pod: &Option<Arc<Pod>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let known = pod.as_ref().map(|pod| KnownPod {
        namespace: pod.name.namespace.to_string(),
        name: pod.name.name.to_string(),
        uid: pod.uid.to_string(),
        labels: pod
            .labels
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect(),
        ports: pod
            .ports
            .iter()
            .map(|port| (port.name.to_string(), port.protocol.number(), port.port))
            .collect(),
        addresses: pod.addresses.clone(),
        terminated: pod.terminated,
        created: pod.created,
    });
    known.serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Arc<Pod>>, D::Error> {
    let Some(known) = Option::<KnownPod>::deserialize(deserializer)? else {
        return Ok(None);
    };
    let mut ports = BTreeSet::new();
    for (name, number, port) in known.ports {
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = protocols.into_iter().find(|p| p.number() == number);
        let protocol =
            protocol.ok_or_else(|| D::Error::custom(format!("unknown protocol {number}")))?;
        ports.insert(NamedPort {
            name: name.into(),
            protocol,
            port,
        });
    }
    let labels = known.labels.into_iter();
    let labels = labels.map(|(key, value)| (key.into(), value.into()));
    Ok(Some(Arc::new(Pod {
        name: ObjectName::new(&known.namespace, &known.name),
        labels: Arc::new(labels.collect()),
        addresses: known.addresses,
        ports: Arc::new(ports),
        terminated: known.terminated,
        created: known.created,
        uid: known.uid.into(),
    })))
}
