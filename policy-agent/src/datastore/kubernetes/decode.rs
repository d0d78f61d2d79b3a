//! From an object's JSON to the compiler's model, or to what is wrong with it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use policy_core::model::ObjectName;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::resource::Resource;
use super::trimmed::{self, Head};
use crate::datastore::Object;
use crate::datastore::convert::{self, Invalid, PodObject, Segment, strict};

/// What is said of a policy that is invalid. What it was before is not kept in force: it may select other
/// pods now, and what it allowed may be what was taken away.
const CLOSED: &str = "until it is valid, it isolates the pods that it selects and allows nothing";

/// An object of the API.
#[derive(Debug)]
pub(super) struct Item {
    /// Its name; the namespace is empty where it has none.
    pub name: ObjectName,
    /// Its resourceVersion.
    pub version: String,
    /// What is in it.
    pub content: Content,
}

/// What is in an [`Item`].
#[derive(Debug)]
pub(super) enum Content {
    /// An object for the agent. Equal fingerprints: nothing changed that counts.
    Object { object: Object, fingerprint: u64 },
    /// A Node, of which only the existence counts.
    Node,
    /// Not as it should be.
    Invalid {
        /// What is wrong, field by field.
        mistakes: Vec<String>,
        /// What is taken over all the same, which allows less than the object may mean: of a policy, whom
        /// it isolates; of a pod, what is right in it.
        instead: Option<Object>,
    },
}

/// Reads one object.
///
/// # Errors
///
/// When not even its name can be read.
pub(super) fn decode(resource: Resource, json: &RawValue) -> serde_json::Result<Item> {
    let Head { mut metadata } = serde_json::from_str(json.get())?;
    if resource.is_namespaced() && metadata.namespace.is_empty() {
        // As in the conversion.
        "default".clone_into(&mut metadata.namespace);
    }
    let name = ObjectName::new(&metadata.namespace, &metadata.name);
    let content = match resource {
        Resource::Nodes => Content::Node,
        Resource::Pods => pod(json),
        Resource::Namespaces => namespace(json).into(),
        Resource::Services => service(json).into(),
        Resource::NetworkPolicies => match network_policy(json) {
            Err(mut mistakes) => {
                let whole = serde_json::from_str(json.get())?;
                let closed = convert::closed_network_policy(name.clone(), &whole);
                mistakes.push(CLOSED.to_owned());
                Content::Invalid {
                    mistakes,
                    instead: Some(Object::Policy(closed)),
                }
            }
            valid => valid.into(),
        },
    };
    Ok(Item {
        version: metadata.resource_version,
        content,
        name,
    })
}

impl From<Result<Object, Vec<String>>> for Content {
    fn from(converted: Result<Object, Vec<String>>) -> Self {
        match converted {
            Ok(object) => Self::Object {
                fingerprint: fingerprint(&object),
                object,
            },
            Err(mistakes) => Self::Invalid {
                mistakes,
                instead: None,
            },
        }
    }
}

/// The resourceVersion of an object that may have nothing else.
pub(super) fn version(json: &RawValue) -> serde_json::Result<String> {
    let Head { metadata } = serde_json::from_str(json.get())?;
    Ok(metadata.resource_version)
}

fn pod(json: &RawValue) -> Content {
    let pod: trimmed::Pod = match typed(json) {
        Ok(pod) => pod,
        Err(mistakes) => return Err(mistakes).into(),
    };
    let (mut pod, mistakes) = convert::pod_in_part(&pod.into());
    if let Some(PodObject::Pod { node, .. }) = &mut pod {
        // Not bound yet: no node's, rather than any node's as in a file without nodeName.
        node.get_or_insert_with(|| "".into());
    }
    let pod = pod.map(Object::Pod);
    match pod {
        Some(pod) if mistakes.is_empty() => Ok(pod).into(),
        instead => Content::Invalid {
            mistakes: words(mistakes),
            instead,
        },
    }
}

fn namespace(json: &RawValue) -> Result<Object, Vec<String>> {
    let namespace: trimmed::Namespace = typed(json)?;
    convert::namespace(&namespace.into())
        .map(Object::Namespace)
        .map_err(words)
}

fn service(json: &RawValue) -> Result<Object, Vec<String>> {
    let service: trimmed::Service = typed(json)?;
    convert::service(&service.into())
        .map(Object::Service)
        .map_err(words)
}

/// A field of the spec that is not known here may narrow what the policy allows, so a policy with
/// one is not taken over without it.
fn network_policy(json: &RawValue) -> Result<Object, Vec<String>> {
    let strict::Strict { result, unknown } =
        strict::deserialize(&mut serde_json::Deserializer::from_str(json.get()));
    let mut mistakes: Vec<_> = unknown
        .iter()
        .filter(|path| matches!(path.segments().first(), Some(Segment::Key(key)) if key == "spec"))
        .map(|path| format!("{path}: unknown field"))
        .collect();
    let policy: NetworkPolicy = match result {
        Ok(policy) => policy,
        Err((path, error)) => {
            mistakes.push(format!("{path}: {error}"));
            return Err(mistakes);
        }
    };
    match convert::network_policy(&policy) {
        Ok(policy) if mistakes.is_empty() => Ok(Object::Policy(policy)),
        Ok(_) => Err(mistakes),
        Err(invalid) => {
            mistakes.extend(words(invalid));
            Err(mistakes)
        }
    }
}

fn typed<T: DeserializeOwned>(json: &RawValue) -> Result<T, Vec<String>> {
    strict::deserialize(&mut serde_json::Deserializer::from_str(json.get()))
        .result
        .map_err(|(path, error)| vec![format!("{path}: {error}")])
}

fn words(mistakes: Vec<Invalid>) -> Vec<String> {
    mistakes.iter().map(ToString::to_string).collect()
}

pub(super) fn fingerprint(object: &Object) -> u64 {
    let mut hasher = DefaultHasher::new();
    match object {
        Object::Namespace(namespace) => namespace.labels.hash(&mut hasher),
        Object::Pod(PodObject::HostNetwork { host_addresses, .. }) => {
            ("host-network", host_addresses).hash(&mut hasher);
        }
        Object::Pod(PodObject::Pod {
            pod,
            node,
            dated,
            host_addresses,
        }) => {
            (&pod.labels, &pod.addresses, &pod.ports, pod.terminated).hash(&mut hasher);
            (pod.created, &pod.uid, node, dated, host_addresses).hash(&mut hasher);
        }
        Object::Policy(policy) => {
            (&policy.subjects, &policy.ingress, &policy.egress).hash(&mut hasher);
        }
        Object::Service(service) => service.addresses.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: serde_json::Value, host_network: bool) -> (Vec<String>, u64) {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "web", "resourceVersion": "1"},
            "spec": {"hostNetwork": host_network},
            "status": status,
        });
        let json = RawValue::from_string(object.to_string()).expect("JSON");
        let item = decode(Resource::Pods, &json).expect("a name");
        let Content::Object {
            object: Object::Pod(pod),
            fingerprint,
        } = item.content
        else {
            panic!("{item:?}")
        };
        let addresses = pod.host_addresses().iter().map(ToString::to_string);
        (addresses.collect(), fingerprint)
    }

    #[test]
    fn a_pod_tells_the_addresses_of_its_node() {
        for host_network in [false, true] {
            let (none, before) = pod(json!({}), host_network);
            let (one, after) = pod(json!({"hostIP": "192.0.2.1"}), host_network);
            assert_eq!((none.len(), one), (0, vec!["192.0.2.1".to_owned()]));
            assert_ne!(before, after, "the agent is told of it");
            let both = json!({
                "hostIP": "192.0.2.1",
                "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                "podIP": "10.0.0.1",
            });
            let (both, _) = pod(both, host_network);
            let own = host_network.then_some("10.0.0.1");
            let expected: Vec<_> = ["192.0.2.1", "2001:db8::1"]
                .into_iter()
                .chain(own)
                .collect();
            assert_eq!(both, expected);
        }
        let (unreadable, _) = pod(json!({"hostIP": "n1"}), false);
        assert_eq!(unreadable.len(), 0);
    }
}
