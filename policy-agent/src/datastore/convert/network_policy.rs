//! NetworkPolicy: defaulting and validation
//! (<https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/>).

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use policy_core::model::{
    LabelSelector, NetworkPolicy, ObjectName, Peer, PolicyPort, PortMatch, Requirement, Rule,
};

use super::strict::{self, Strict};
use super::{
    FieldPath, Invalid, Mistake, Mistakes, address, is_port_name, object_name, port_number,
    protocol,
};

/// A NetworkPolicy in the compiler's terms.
///
/// # Errors
///
/// Every mistake in it.
pub fn network_policy(object: &networking::NetworkPolicy) -> Result<NetworkPolicy, Vec<Invalid>> {
    let mut mistakes = Mistakes::default();
    let name = object_name(&object.metadata, &mut mistakes);
    let path = FieldPath::root().field("spec");
    let Some(spec) = &object.spec else {
        mistakes.report(path, Mistake::Missing);
        return mistakes.finish(None);
    };
    // An absent selector is the empty one here: the API object holds it by value.
    let subjects = match &spec.pod_selector {
        Some(given) => selector(given, &path.field("podSelector"), &mut mistakes),
        None => Some(LabelSelector::default()),
    };
    // Rules of a direction that policyTypes leaves out are validated all the same.
    let ingress = rules(
        spec.ingress
            .iter()
            .flatten()
            .map(|rule| (rule.from.as_deref(), rule.ports.as_deref())),
        &path.field("ingress"),
        "from",
        &mut mistakes,
    );
    let egress = rules(
        spec.egress
            .iter()
            .flatten()
            .map(|rule| (rule.to.as_deref(), rule.ports.as_deref())),
        &path.field("egress"),
        "to",
        &mut mistakes,
    );
    let (isolates_ingress, isolates_egress) = policy_types(spec, &path, &mut mistakes);
    let policy = name.zip(subjects).map(|(name, subjects)| NetworkPolicy {
        name,
        subjects,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
    });
    mistakes.finish(policy)
}

/// What is enforced of a policy that cannot be taken over and never could: it isolates whom it selects,
/// and allows nothing. Where its selector or its types cannot be read, it isolates more rather than less.
#[must_use]
pub fn closed_network_policy(name: ObjectName, object: &serde_json::Value) -> NetworkPolicy {
    let spec = &object["spec"];
    let Strict { result, unknown } = strict::deserialize(&spec["podSelector"]);
    let subjects = match result {
        Ok(given) if unknown.is_empty() => {
            selector(&given, &FieldPath::root(), &mut Mistakes::default())
        }
        _ => None,
    };
    let types: Option<Vec<&str>> = match spec["policyTypes"].as_array() {
        Some(types) => types.iter().map(serde_json::Value::as_str).collect(),
        None => Some(Vec::new()),
    };
    let has_egress = spec["egress"]
        .as_array()
        .is_none_or(|rules| !rules.is_empty());
    let isolates = |direction: &str| match types.as_deref() {
        Some([]) => direction == "Ingress" || has_egress && !spec["egress"].is_null(),
        Some(types)
            if types
                .iter()
                .all(|name| matches!(*name, "Ingress" | "Egress")) =>
        {
            types.contains(&direction)
        }
        _ => true,
    };
    NetworkPolicy {
        name,
        subjects: subjects.unwrap_or_default(),
        ingress: isolates("Ingress").then(Vec::new),
        egress: isolates("Egress").then(Vec::new),
    }
}

/// Which directions the policy isolates. Without policyTypes: ingress always, egress when the policy
/// has egress rules (an empty list has none).
fn policy_types(
    spec: &networking::NetworkPolicySpec,
    path: &FieldPath,
    mistakes: &mut Mistakes,
) -> (bool, bool) {
    let given = spec.policy_types.as_deref().unwrap_or_default();
    if given.is_empty() {
        return (
            true,
            spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        );
    }
    let (mut ingress, mut egress) = (false, false);
    for (position, name) in given.iter().enumerate() {
        match name.as_str() {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => mistakes.report(
                path.field("policyTypes").index(position),
                Mistake::UnknownPolicyType(other.to_owned()),
            ),
        }
    }
    (ingress, egress)
}

type RuleParts<'a> = (
    Option<&'a [networking::NetworkPolicyPeer]>,
    Option<&'a [networking::NetworkPolicyPort]>,
);

fn rules<'a>(
    rules: impl Iterator<Item = RuleParts<'a>>,
    path: &FieldPath,
    peers_field: &str,
    mistakes: &mut Mistakes,
) -> Vec<Rule> {
    let mut converted = Vec::new();
    for (position, (peers, ports)) in rules.enumerate() {
        let path = path.index(position);
        let mut rule = Rule {
            peers: Vec::new(),
            ports: Vec::new(),
        };
        for (position, given) in peers.into_iter().flatten().enumerate() {
            rule.peers.extend(peer(
                given,
                &path.field(peers_field).index(position),
                mistakes,
            ));
        }
        for (position, given) in ports.into_iter().flatten().enumerate() {
            match policy_port(given, &path.field("ports").index(position)) {
                Ok(port) => rule.ports.push(port),
                Err(Invalid { path, mistake }) => mistakes.report(path, mistake),
            }
        }
        converted.push(rule);
    }
    converted
}

fn peer(
    given: &networking::NetworkPolicyPeer,
    path: &FieldPath,
    mistakes: &mut Mistakes,
) -> Option<Peer> {
    let has_selector = given.pod_selector.is_some() || given.namespace_selector.is_some();
    match &given.ip_block {
        Some(_) if has_selector => {
            mistakes.report(path.clone(), Mistake::MixedPeer);
            None
        }
        Some(block) => ip_block(block, &path.field("ipBlock"), mistakes),
        None if !has_selector => {
            mistakes.report(path.clone(), Mistake::EmptyPeer);
            None
        }
        None => {
            let namespaces = optional_selector(
                given.namespace_selector.as_ref(),
                &path.field("namespaceSelector"),
                mistakes,
            );
            let pods = optional_selector(
                given.pod_selector.as_ref(),
                &path.field("podSelector"),
                mistakes,
            );
            Some(Peer::Pods {
                namespaces: namespaces?,
                pods: pods?,
            })
        }
    }
}

fn ip_block(
    given: &networking::IPBlock,
    path: &FieldPath,
    mistakes: &mut Mistakes,
) -> Option<Peer> {
    let block = cidr(&given.cidr, path.field("cidr"), mistakes);
    let mut except = Vec::new();
    for (position, text) in given.except.iter().flatten().enumerate() {
        let path = path.field("except").index(position);
        let Some(part) = cidr(text, path.clone(), mistakes) else {
            continue;
        };
        match block {
            Some(block) if part == block => {
                mistakes.report(path, Mistake::ExceptIsBlock(part));
            }
            Some(block) if !block.contains(&part) => {
                mistakes.report(
                    path,
                    Mistake::ExceptOutside {
                        except: part,
                        cidr: block,
                    },
                );
            }
            _ => except.push(part),
        }
    }
    except.sort_unstable();
    except.dedup();
    Some(Peer::IpBlock {
        cidr: block?,
        except,
    })
}

fn cidr(text: &str, path: FieldPath, mistakes: &mut Mistakes) -> Option<IpNet> {
    if text.is_empty() {
        mistakes.report(path, Mistake::Missing);
        return None;
    }
    let network = address::cidr(text);
    if network.is_none() {
        mistakes.report(path, Mistake::InvalidCidr(text.to_owned()));
    }
    network
}

fn policy_port(
    given: &networking::NetworkPolicyPort,
    path: &FieldPath,
) -> Result<PolicyPort, Invalid> {
    let at = |field: &str, mistake| Invalid {
        path: path.field(field),
        mistake,
    };
    let protocol =
        protocol(given.protocol.as_deref()).map_err(|mistake| at("protocol", mistake))?;
    let port = match (&given.port, given.end_port) {
        (None, None) => PortMatch::Any,
        (None, Some(_)) => return Err(at("endPort", Mistake::EndPortWithoutPort)),
        (Some(IntOrString::String(name)), _) if !is_port_name(name) => {
            return Err(at("port", Mistake::InvalidPortName(name.clone())));
        }
        (Some(IntOrString::String(name)), None) => PortMatch::Named(name.as_str().into()),
        (Some(IntOrString::String(name)), Some(_)) => {
            return Err(at("endPort", Mistake::EndPortWithName(name.clone())));
        }
        (Some(IntOrString::Int(number)), end) => {
            let first = port_number(i64::from(*number)).map_err(|mistake| at("port", mistake))?;
            let last = match end {
                None => first,
                Some(end) if end < i32::from(first) => {
                    return Err(at(
                        "endPort",
                        Mistake::EndPortBelowPort { end, port: first },
                    ));
                }
                Some(end) => {
                    port_number(i64::from(end)).map_err(|mistake| at("endPort", mistake))?
                }
            };
            PortMatch::Range(first, last)
        }
    };
    Ok(PolicyPort { protocol, port })
}

/// `None` when there was a mistake, `Some(None)` when there is no selector.
#[expect(
    clippy::option_option,
    reason = "absent and invalid are different outcomes"
)]
fn optional_selector(
    given: Option<&meta::LabelSelector>,
    path: &FieldPath,
    mistakes: &mut Mistakes,
) -> Option<Option<LabelSelector>> {
    match given {
        Some(given) => selector(given, path, mistakes).map(Some),
        None => Some(None),
    }
}

fn selector(
    given: &meta::LabelSelector,
    path: &FieldPath,
    mistakes: &mut Mistakes,
) -> Option<LabelSelector> {
    let mut requirements = BTreeSet::new();
    for (key, value) in given.match_labels.iter().flatten() {
        requirements.insert(Requirement::In(
            key.as_str().into(),
            BTreeSet::from([Arc::from(value.as_str())]),
        ));
    }
    let mut valid = true;
    for (position, expression) in given.match_expressions.iter().flatten().enumerate() {
        let path = path.field("matchExpressions").index(position);
        match requirement(expression, &path) {
            Ok(requirement) => {
                requirements.insert(requirement);
            }
            Err(Invalid { path, mistake }) => {
                mistakes.report(path, mistake);
                valid = false;
            }
        }
    }
    valid.then(|| LabelSelector {
        requirements: requirements.into_iter().collect(),
    })
}

fn requirement(
    given: &meta::LabelSelectorRequirement,
    path: &FieldPath,
) -> Result<Requirement, Invalid> {
    let at = |field: &str, mistake| Invalid {
        path: path.field(field),
        mistake,
    };
    if given.key.is_empty() {
        return Err(at("key", Mistake::Missing));
    }
    let key: Arc<str> = given.key.as_str().into();
    let values: BTreeSet<Arc<str>> = given
        .values
        .iter()
        .flatten()
        .map(|value| value.as_str().into())
        .collect();
    let some = |operator| {
        if values.is_empty() {
            Err(at("values", Mistake::ValuesMissing(operator)))
        } else {
            Ok(values.clone())
        }
    };
    let none = |operator| {
        if values.is_empty() {
            Ok(())
        } else {
            Err(at("values", Mistake::ValuesForbidden(operator)))
        }
    };
    match given.operator.as_str() {
        "In" => Ok(Requirement::In(key, some("In")?)),
        "NotIn" => Ok(Requirement::NotIn(key, some("NotIn")?)),
        "Exists" => none("Exists").map(|()| Requirement::Exists(key)),
        "DoesNotExist" => none("DoesNotExist").map(|()| Requirement::DoesNotExist(key)),
        "" => Err(at("operator", Mistake::Missing)),
        other => Err(at("operator", Mistake::UnknownOperator(other.to_owned()))),
    }
}
