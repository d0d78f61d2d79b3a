//! The node's own range of pod addresses, which the controller manager gives it.

use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use super::client;
use crate::config::ApiConfig;

/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The pod CIDRs of the Node of this name; must be called within a tokio runtime.
///
/// # Errors
///
/// When the API cannot be asked, has no such Node, or the Node has no pod CIDR, with what to do.
pub async fn pod_cidrs(api: &ApiConfig, node: &str) -> Result<Vec<IpNet>, String> {
    let failed = |why: String| format!("Node {node} from {}: {why}", api.source());
    let client = client(api).map_err(|error| failed(error.to_string()))?;
    let nodes: Api<Node> = Api::all(client);
    let found = tokio::time::timeout(PATIENCE, nodes.get(node))
        .await
        .map_err(|_| failed(format!("no answer in {} s", PATIENCE.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    of(&found).map_err(failed)
}

fn of(node: &Node) -> Result<Vec<IpNet>, String> {
    let spec = node.spec.clone().unwrap_or_default();
    let texts = match spec.pod_cidrs.unwrap_or_default() {
        several if !several.is_empty() => several,
        _ => spec.pod_cidr.into_iter().collect(),
    };
    if texts.is_empty() {
        return Err(
            "it has no spec.podCIDR; run kube-controller-manager with --allocate-node-cidrs=true --cluster-cidr=CIDR, \
             or set PORTCULLIS_POD_CIDR"
                .to_owned(),
        );
    }
    let cidrs = texts.iter().map(|text| {
        text.parse()
            .map_err(|_| format!("its pod CIDR {text:?} is none"))
    });
    cidrs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_families_or_the_one_or_what_to_do() {
        let node = |spec| serde_json::from_value::<Node>(json!({"spec": spec})).expect("a Node");
        let rows = [
            (
                json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]}),
                Ok("10.1.0.0/24 fd00:1::/64"),
            ),
            (json!({"podCIDR": "10.1.0.0/24"}), Ok("10.1.0.0/24")),
            (json!({}), Err("it has no spec.podCIDR")),
            (
                json!({"podCIDRs": ["10.1.0.0"]}),
                Err("\"10.1.0.0\" is none"),
            ),
        ];
        for (spec, wanted) in rows {
            match (of(&node(spec)), wanted) {
                (Ok(cidrs), Ok(wanted)) => {
                    let texts: Vec<_> = cidrs.iter().map(ToString::to_string).collect();
                    assert_eq!(texts.join(" "), wanted);
                }
                (Err(why), Err(wanted)) => assert!(why.contains(wanted), "{why}"),
                (got, wanted) => panic!("{got:?}, not {wanted:?}"),
            }
        }
    }
}
