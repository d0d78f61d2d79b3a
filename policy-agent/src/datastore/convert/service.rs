//! Service: the addresses under which it is reached, and which are translated to those of its pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use policy_core::model::ObjectName;

use super::address::address;
use super::{FieldPath, Invalid, Mistake, Mistakes, object_name};

/// What counts of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its cluster IPs, external IPs and load balancer's addresses. None for a headless Service, an
    /// `ExternalName`, and one that has no address yet.
    pub addresses: BTreeSet<IpAddr>,
}

/// The addresses of a Service.
///
/// # Errors
///
/// Every mistake in what is used of it.
pub fn service(object: &core::Service) -> Result<Service, Vec<Invalid>> {
    let mut mistakes = Mistakes::default();
    let name = object_name(&object.metadata, &mut mistakes);
    let mut addresses = BTreeSet::new();
    for (path, text) in given(object) {
        match address(text) {
            Some(address) => {
                addresses.insert(address);
            }
            None => mistakes.report(path, Mistake::InvalidAddress(text.to_owned())),
        }
    }
    mistakes.finish(name.map(|name| Service { name, addresses }))
}

/// Every address that is translated, as it is written, with its field.
fn given(object: &core::Service) -> Vec<(FieldPath, &str)> {
    let path = FieldPath::root().field("spec");
    let mut given = Vec::new();
    if let Some(spec) = &object.spec {
        let list = spec.cluster_ips.as_deref().unwrap_or_default();
        if list.is_empty() {
            let single = spec.cluster_ip.iter();
            given.extend(single.map(|ip| (path.field("clusterIP"), ip.as_str())));
        }
        given.extend(with_path(&path.field("clusterIPs"), list));
        // Service proxies leave such a Service alone, with all that it says.
        let headless = given.iter().any(|(_, ip)| *ip == "None");
        if headless || spec.type_.as_deref() == Some("ExternalName") {
            return Vec::new();
        }
        let external = spec.external_ips.as_deref().unwrap_or_default();
        given.extend(with_path(&path.field("externalIPs"), external));
    }
    let path = FieldPath::root().field("status").field("loadBalancer");
    let status = object.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref());
    for (position, entry) in ingress.unwrap_or_default().iter().enumerate() {
        // With `Proxy` packets to it really go to the load balancer.
        if let Some(ip) = &entry.ip
            && entry.ip_mode.as_deref() != Some("Proxy")
        {
            let path = path.field("ingress").index(position).field("ip");
            given.push((path, ip.as_str()));
        }
    }
    // The API clears an address by an empty string.
    given.retain(|(_, ip)| !ip.is_empty());
    given
}

fn with_path<'a>(
    path: &FieldPath,
    list: &'a [String],
) -> impl Iterator<Item = (FieldPath, &'a str)> {
    list.iter()
        .enumerate()
        .map(move |(position, ip)| (path.index(position), ip.as_str()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn converted(object: &Value) -> Result<Vec<String>, Vec<String>> {
        let mut object = object.clone();
        object["metadata"] = json!({"name": "web", "namespace": "shop"});
        let object: core::Service = serde_json::from_value(object).expect("a Service");
        match service(&object) {
            Ok(service) => {
                assert_eq!(service.name, ObjectName::new("shop", "web"));
                Ok(service.addresses.iter().map(ToString::to_string).collect())
            }
            Err(mistakes) => Err(mistakes.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn what_is_translated_is_an_address() {
        let balancer = |ingress: Value| json!({"status": {"loadBalancer": {"ingress": ingress}}});
        let rows: &[(Value, &[&str])] = &[
            (json!({}), &[]),
            (json!({"spec": {"clusterIP": "10.96.0.1"}}), &["10.96.0.1"]),
            (
                json!({"spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "2001:db8::1"]}}),
                &["10.96.0.1", "2001:db8::1"],
            ),
            (
                json!({"spec": {"clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1", "10.96.0.1"]}}),
                &["10.96.0.1", "192.0.2.1"],
            ),
            (
                json!({"spec": {"clusterIP": "None", "externalIPs": ["192.0.2.1"]}}),
                &[],
            ),
            (
                json!({"spec": {"clusterIP": "", "type": "ExternalName", "externalName": "db.example",
                                "externalIPs": ["192.0.2.1"]}}),
                &[],
            ),
            (json!({"spec": {"clusterIP": ""}}), &[]),
            (
                balancer(json!([{"ip": "192.0.2.7"}, {"ip": "192.0.2.8", "ipMode": "VIP"}])),
                &["192.0.2.7", "192.0.2.8"],
            ),
            (
                balancer(
                    json!([{"ip": "192.0.2.9", "ipMode": "Proxy"}, {"hostname": "lb.example"}]),
                ),
                &[],
            ),
        ];
        for (object, expected) in rows {
            let addresses = converted(object).expect("valid");
            assert_eq!(addresses, *expected, "{object}");
        }
    }

    #[test]
    fn every_mistake_is_named_with_its_field() {
        let object = json!({
            "spec": {"clusterIPs": ["10.96.0.1", "10.96.0"], "externalIPs": ["x"]},
            "status": {"loadBalancer": {"ingress": [{}, {"ip": "1.2.3.4.5"}]}},
        });
        assert_eq!(
            converted(&object).expect_err("mistakes"),
            [
                "spec.clusterIPs[1]: \"10.96.0\" is not an IP address",
                "spec.externalIPs[0]: \"x\" is not an IP address",
                "status.loadBalancer.ingress[1].ip: \"1.2.3.4.5\" is not an IP address",
            ]
        );
    }
}
