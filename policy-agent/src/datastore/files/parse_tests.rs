//! Tables of files: what is in them, or what is said about them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use policy_core::model::{
    LabelSelector, NamedPort, NetworkPolicy, ObjectName, Peer, PolicyPort, PortMatch, Protocol,
    Requirement, Rule,
};

use super::*;
use crate::datastore::convert::PodObject;

fn problems(text: &str) -> Vec<String> {
    let parsed = parse("f.yaml", text);
    parsed.problems.iter().map(ToString::to_string).collect()
}

fn objects(text: &str) -> Vec<Object> {
    let parsed = parse("f.yaml", text);
    assert_eq!(parsed.problems, [], "{text}");
    parsed
        .objects
        .into_iter()
        .map(|(_, object)| object)
        .collect()
}

/// A policy whose `spec` is `spec`, indented by two; the spec begins on line 7.
fn policy_text(spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: web\n  namespace: shop\nspec:\n{spec}"
    )
}

fn policy(spec: &str) -> NetworkPolicy {
    match objects(&policy_text(spec)).as_slice() {
        [Object::Policy(policy)] => policy.clone(),
        other => panic!("not one policy: {other:?}"),
    }
}

#[test]
fn mistakes_in_policies_are_named_with_line_and_field() {
    let ingress_peer = |peer: &str| format!("podSelector: {{}}\ningress:\n- from:\n  - {peer}");
    let ingress_port = |port: &str| format!("podSelector: {{}}\ningress:\n- ports:\n  - {port}");
    let selector =
        |expression: &str| format!("podSelector:\n  matchExpressions:\n  - {expression}");
    let rows: &[(String, &str)] = &[
        (
            ingress_peer("ipBlock: {cidr: 10.0.0.0/33}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.0/33\" is not a CIDR \
             such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            ingress_peer("ipBlock: {cidr: 10.0.0.1}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0].ipBlock.cidr: \"10.0.0.1\" is not a CIDR \
             such as 10.0.0.0/8 or 2001:db8::/32",
        ),
        (
            "podSelector: {}\ningress:\n- from:\n  - podSelector: {}\n  - ipBlock:\n      cidr: 10.0.0.0/24\n      \
             except:\n      - 10.1.0.0/16"
                .to_owned(),
            "f.yaml:14: NetworkPolicy shop/web: spec.ingress[0].from[1].ipBlock.except[0]: 10.1.0.0/16 is not inside \
             10.0.0.0/24",
        ),
        (
            ingress_peer("ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/24]}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0].ipBlock.except[0]: 10.0.0.0/24 is the whole \
             block, which leaves nothing",
        ),
        (
            ingress_peer("ipBlock: {cidr: 10.0.0.0/8, except: [\"2001:db8::/64\"]}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0].ipBlock.except[0]: 2001:db8::/64 is not \
             inside 10.0.0.0/8",
        ),
        (
            ingress_peer("{}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0]: an empty peer; it needs podSelector, \
             namespaceSelector or ipBlock",
        ),
        (
            ingress_peer("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0]: ipBlock cannot be combined with podSelector \
             or namespaceSelector in one peer",
        ),
        (
            ingress_port("port: 0"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: port 0 is not between 1 and 65535",
        ),
        (
            ingress_port("port: 70000"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: port 70000 is not between 1 and 65535",
        ),
        (
            ingress_port("{port: 8080, endPort: 80}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].endPort: endPort 80 is below port 8080",
        ),
        (
            ingress_port("{port: 8080, endPort: 70000}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].endPort: port 70000 is not between 1 and \
             65535",
        ),
        (
            ingress_port("{port: http, endPort: 90}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].endPort: endPort cannot be combined with \
             the named port \"http\"",
        ),
        (
            ingress_port("{endPort: 90}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].endPort: endPort needs a port",
        ),
        (
            ingress_port("port: \"80\""),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: \"80\" is not a port name: 1 to 15 of \
             a-z, 0-9 and '-', at least one letter, '-' neither first, last nor doubled",
        ),
        (
            ingress_port("{port: 80, protocol: ICMP}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].protocol: unknown protocol \"ICMP\"; the \
             choices are TCP, UDP, SCTP",
        ),
        (
            ingress_port("port: [80]"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: invalid type: sequence, expected \
             IntOrString",
        ),
        (
            selector("{key: app, operator: Equals, values: [a]}"),
            "f.yaml:9: NetworkPolicy shop/web: spec.podSelector.matchExpressions[0].operator: unknown operator \
             \"Equals\"; the choices are In, NotIn, Exists, DoesNotExist",
        ),
        (
            selector("{key: app, operator: In}"),
            "f.yaml:9: NetworkPolicy shop/web: spec.podSelector.matchExpressions[0].values: operator In needs at \
             least one value",
        ),
        (
            selector("{key: app, operator: NotIn, values: []}"),
            "f.yaml:9: NetworkPolicy shop/web: spec.podSelector.matchExpressions[0].values: operator NotIn needs at \
             least one value",
        ),
        (
            selector("{key: app, operator: Exists, values: [a]}"),
            "f.yaml:9: NetworkPolicy shop/web: spec.podSelector.matchExpressions[0].values: operator Exists takes no \
             values",
        ),
        (
            selector("{operator: Exists}"),
            "f.yaml:9: NetworkPolicy shop/web: spec.podSelector.matchExpressions[0].key: missing",
        ),
        (
            "podSelector: {}\npolicyTypes: [Ingress, Outgress]".to_owned(),
            "f.yaml:8: NetworkPolicy shop/web: spec.policyTypes[1]: unknown policy type \"Outgress\"; the choices \
             are Ingress, Egress",
        ),
        (
            "podSelector: {}\ningres: []".to_owned(),
            "f.yaml:8: NetworkPolicy shop/web: spec.ingres: unknown field",
        ),
        (
            ingress_peer("{podSelector: {matchLabel: {a: b}}}"),
            "f.yaml:10: NetworkPolicy shop/web: spec.ingress[0].from[0].podSelector.matchLabel: unknown field",
        ),
        (
            "podSelector: {matchLabels: {app: 1}}".to_owned(),
            "f.yaml:7: NetworkPolicy shop/web: spec.podSelector.matchLabels.app: invalid type: integer `1`, expected \
             a string",
        ),
    ];
    for (spec, message) in rows {
        assert_eq!(problems(&policy_text(spec)), [*message], "{spec}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_named() {
    let text =
        policy_text("podSelector: {}\ningress:\n- ports: [{port: 0}, {port: 80}, {port: -1}]")
            + "---\nkind: Namespace\napiVersion: v1\nmetadata: {}\n";
    assert_eq!(
        problems(&text),
        [
            "f.yaml:9: NetworkPolicy shop/web: spec.ingress[0].ports[0].port: port 0 is not between 1 and 65535",
            "f.yaml:9: NetworkPolicy shop/web: spec.ingress[0].ports[2].port: port -1 is not between 1 and 65535",
            "f.yaml:13: Namespace (unnamed): metadata.name: missing",
        ]
    );
}

#[test]
fn mistakes_around_objects() {
    let rows = [
        ("kind: Pod\nmetadata: [", "f.yaml:3: "),
        (
            "kind: Deployment\napiVersion: apps/v1",
            "f.yaml:1: kind: unknown kind \"Deployment\"; the choices are Namespace, Pod, NetworkPolicy, Service, \
             and lists of them",
        ),
        ("apiVersion: v1", "f.yaml:1: kind: missing"),
        ("just text", "f.yaml:1: kind: missing"),
        (
            "kind: NetworkPolicy\napiVersion: extensions/v1beta1",
            "f.yaml:2: apiVersion: unknown apiVersion \"extensions/v1beta1\"; NetworkPolicy has \
             networking.k8s.io/v1",
        ),
        (
            "kind: Pod\nmetadata: {name: a}",
            "f.yaml:1: apiVersion: missing",
        ),
        (
            "kind: List\napiVersion: v1\nitems: 5",
            "f.yaml:3: List: items: not a list",
        ),
        (
            "kind: List\napiVersion: v1\nitems:\n- {kind: Secret, apiVersion: v1}",
            "f.yaml:4: kind: unknown kind \"Secret\"; the choices are Namespace, Pod, NetworkPolicy, Service, and \
             lists of them",
        ),
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: web}\nspec:\n  externalIPs:\n  - 10.0.0.300",
            "f.yaml:6: Service default/web: spec.externalIPs[0]: \"10.0.0.300\" is not an IP address",
        ),
        (
            "kind: Service\napiVersion: v1\nmetadata: {name: web}\nspec:\n  clusterIPs: 10.0.0.1",
            "f.yaml:5: Service default/web: spec.clusterIPs: invalid type: string \"10.0.0.1\", expected a sequence",
        ),
        (
            "kind: Namespace\napiVersion: v1\nmetadata: {name: a, name: b}",
            "f.yaml:3: duplicated key in mapping",
        ),
    ];
    for (text, message) in rows {
        let problems = problems(text);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].starts_with(message), "{text}: {problems:?}");
    }
}

#[test]
fn a_pods_mistakes() {
    let pod = |rest: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, namespace: shop}}\n{rest}")
    };
    let rows = [
        (
            pod("status:\n  podIPs:\n  - ip: 10.0.0.300"),
            "f.yaml:6: Pod shop/a: status.podIPs[0].ip: \"10.0.0.300\" is not an IP address",
        ),
        (
            pod("status:\n  podIPs:\n  - ip: 10.0.0.3\n  - ip: 10.0.0.4"),
            "f.yaml:7: Pod shop/a: status.podIPs[1].ip: a second IPv4 address; a pod has at most one of each family",
        ),
        (
            pod(
                "spec:\n  containers:\n  - name: c\n    ports:\n    - {name: http, containerPort: 70000}",
            ),
            "f.yaml:8: Pod shop/a: spec.containers[0].ports[0].containerPort: port 70000 is not between 1 and 65535",
        ),
        (
            pod("spec:\n  hostNetwrk: true"),
            "f.yaml:5: Pod shop/a: spec.hostNetwrk: unknown field",
        ),
    ];
    for (text, message) in rows {
        assert_eq!(problems(&text), [message], "{text}");
    }
    let parsed = parse("f.yaml", &pod("spec:\n  hostNetwrk: true"));
    assert!(
        parsed.is_valid() && parsed.objects.len() == 1,
        "unknown fields of pods only warn"
    );
}

#[test]
fn pods_as_kubectl_prints_them() {
    let text = "
apiVersion: v1
kind: Pod
metadata:
  name: web
  creationTimestamp: \"1970-01-01T00:01:40Z\"
  labels: {app: web}
  uid: u-1
spec:
  nodeName: n1
  initContainers:
  - {name: once, ports: [{name: never, containerPort: 1}]}
  - {name: mesh, restartPolicy: Always, ports: [{name: mesh, containerPort: 15001}]}
  containers:
  - name: web
    resources: {limits: {cpu: 1, memory: 128Mi}}
    ports:
    - {name: http, containerPort: 8080}
    - {name: dns, containerPort: 53, protocol: UDP}
    - {containerPort: 9999}
status:
  phase: Running
  podIP: 10.0.0.5
  podIPs: [{ip: 10.0.0.5}, {ip: \"fd00::5\"}]
  hostIP: 192.168.0.1
  hostIPs: [{ip: 192.168.0.1}, {ip: \"fd01::1\"}]
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: batch}
status: {phase: Succeeded, podIP: 10.0.0.6}
---
apiVersion: v1
kind: Pod
metadata: {name: waiting, namespace: batch}
---
apiVersion: v1
kind: Pod
metadata: {name: node-exporter, namespace: kube-system}
spec: {hostNetwork: true, containers: []}
status: {podIPs: [{ip: 192.168.0.1}, {ip: \"fd01::1\"}], hostIP: 192.168.0.1}
";
    let objects = objects(text);
    let [
        Object::Pod(web),
        Object::Pod(done),
        Object::Pod(waiting),
        Object::Pod(host),
    ] = objects.as_slice()
    else {
        panic!("{objects:?}");
    };
    let PodObject::Pod {
        pod, node, dated, ..
    } = web
    else {
        panic!("{web:?}")
    };
    assert_eq!(pod.name, ObjectName::new("default", "web"));
    assert_eq!(pod.addresses.len(), 2);
    assert_eq!((pod.created, *dated, pod.terminated), (100, true, false));
    assert_eq!((node.as_deref(), &*pod.uid), (Some("n1"), "u-1"));
    let port = |name: &str, protocol, port| NamedPort {
        name: name.into(),
        protocol,
        port,
    };
    assert_eq!(
        pod.ports,
        BTreeSet::from([
            port("http", Protocol::Tcp, 8080),
            port("dns", Protocol::Udp, 53),
            port("mesh", Protocol::Tcp, 15001),
        ])
        .into()
    );
    let PodObject::Pod {
        pod, node, dated, ..
    } = done
    else {
        panic!("{done:?}")
    };
    assert!(pod.terminated && node.is_none() && !dated);
    let PodObject::Pod { pod, .. } = waiting else {
        panic!("{waiting:?}")
    };
    assert!(pod.addresses.is_empty());
    let of_node: [IpAddr; 2] =
        ["192.168.0.1", "fd01::1"].map(|text| text.parse().expect("address"));
    assert_eq!(web.host_addresses(), of_node);
    assert_eq!(done.host_addresses(), [] as [IpAddr; 0]);
    assert_eq!(
        *host,
        PodObject::HostNetwork {
            name: ObjectName::new("kube-system", "node-exporter"),
            host_addresses: of_node.into(),
        }
    );
}

#[test]
fn policy_types_default_as_kubernetes_says() {
    let rule = Rule {
        peers: vec![],
        ports: vec![],
    };
    let rows: &[(&str, Option<usize>, Option<usize>)] = &[
        ("podSelector: {}", Some(0), None),
        ("{}", Some(0), None),
        ("podSelector: {}\negress: []", Some(0), None),
        ("podSelector: {}\negress: [{}]", Some(0), Some(1)),
        ("podSelector: {}\ningress: [{}]", Some(1), None),
        (
            "podSelector: {}\npolicyTypes: []\negress: [{}]",
            Some(0),
            Some(1),
        ),
        ("podSelector: {}\npolicyTypes: [Egress]", None, Some(0)),
        (
            "podSelector: {}\npolicyTypes: [Egress]\ningress: [{}]",
            None,
            Some(0),
        ),
        (
            "podSelector: {}\npolicyTypes: [Ingress, Egress]",
            Some(0),
            Some(0),
        ),
        (
            "podSelector: {}\ningress: null\negress: null",
            Some(0),
            None,
        ),
    ];
    for (spec, ingress, egress) in rows {
        let policy = policy(spec);
        let rules = |count: &Option<usize>| count.map(|count| vec![rule.clone(); count]);
        assert_eq!(
            (&policy.ingress, &policy.egress),
            (&rules(ingress), &rules(egress)),
            "{spec}"
        );
    }
}

#[test]
fn selectors_blocks_and_ports() {
    let policy = policy(
        "podSelector:
  matchLabels: {app: web}
  matchExpressions:
  - {key: tier, operator: NotIn, values: [b, a, b]}
  - {key: x, operator: DoesNotExist}
ingress:
- from:
  - namespaceSelector: {}
  - podSelector: {matchExpressions: [{key: k, operator: Exists}]}
    namespaceSelector: {matchLabels: {team: a}}
  - ipBlock: {cidr: 10.1.2.3/8, except: [10.9.0.0/16, 10.2.0.0/16]}
  ports:
  - {}
  - {port: http, protocol: UDP}
  - {port: 80}
  - {port: 8000, endPort: 8010, protocol: SCTP}",
    );
    let one = |value: &str| BTreeSet::from([value.into()]);
    assert_eq!(
        policy.subjects.requirements,
        [
            Requirement::In("app".into(), one("web")),
            Requirement::NotIn("tier".into(), BTreeSet::from(["a".into(), "b".into()])),
            Requirement::DoesNotExist("x".into()),
        ]
    );
    let selector = |requirements| Some(LabelSelector { requirements });
    let network = |text: &str| text.parse().expect("network");
    assert_eq!(
        policy.ingress,
        Some(vec![Rule {
            peers: vec![
                Peer::Pods {
                    namespaces: selector(vec![]),
                    pods: None
                },
                Peer::Pods {
                    namespaces: selector(vec![Requirement::In("team".into(), one("a"))]),
                    pods: selector(vec![Requirement::Exists("k".into())]),
                },
                Peer::IpBlock {
                    cidr: network("10.0.0.0/8"),
                    except: vec![network("10.2.0.0/16"), network("10.9.0.0/16")],
                },
            ],
            ports: [
                (Protocol::Tcp, PortMatch::Any),
                (Protocol::Udp, PortMatch::Named("http".into())),
                (Protocol::Tcp, PortMatch::Range(80, 80)),
                (Protocol::Sctp, PortMatch::Range(8000, 8010)),
            ]
            .map(|(protocol, port)| PolicyPort { protocol, port })
            .into(),
        }])
    );
    assert_eq!(policy.egress, None);
}

#[test]
fn lists_documents_and_json() {
    let rows = [
        ("# nothing\n---\n---\n", vec![]),
        (
            "kind: List\napiVersion: v1\nitems:\n- {kind: Namespace, apiVersion: v1, metadata: {name: a}}\n- {kind: \
             PodList, apiVersion: v1, items: [{metadata: {name: p}}]}\n---\nkind: Namespace\napiVersion: \
             v1\nmetadata: {name: b}\n",
            vec!["Namespace a", "Pod default/p", "Namespace b"],
        ),
        (
            "kind: NetworkPolicyList\napiVersion: networking.k8s.io/v1\nitems:\n- metadata: {name: n}\n  spec: {}\n",
            vec!["NetworkPolicy default/n"],
        ),
        ("kind: NamespaceList\napiVersion: v1\nitems: null\n", vec![]),
        (
            "{\"kind\": \"Namespace\", \"apiVersion\": \"v1\", \"metadata\": {\"name\": \"j\", \"labels\": {\"a\": \
             \"b\"}}}",
            vec!["Namespace j"],
        ),
        (
            "kind: Namespace\napiVersion: v1\nmetadata:\n  name: m\n  labels: &l {a: b}\n  annotations: *l\n",
            vec!["Namespace m"],
        ),
    ];
    for (text, names) in rows {
        let found: Vec<_> = objects(text)
            .iter()
            .map(|object| object.key().to_string())
            .collect();
        assert_eq!(found, names, "{text}");
    }
}

#[test]
fn a_service_and_its_addresses() {
    let text = "\
kind: ServiceList
apiVersion: v1
items:
- metadata: {name: web, namespace: shop}
  spec:
    type: LoadBalancer
    clusterIPs: [10.96.0.10, \"fd00:96::a\"]
    ports: [{port: 80, targetPort: 8080}]
  status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}
- metadata: {name: peers, namespace: shop}
  spec: {clusterIP: None}
";
    let objects = objects(text);
    let [Object::Service(web), Object::Service(peers)] = objects.as_slice() else {
        panic!("{objects:?}");
    };
    let addresses = ["10.96.0.10", "192.0.2.1", "fd00:96::a"];
    let addresses = addresses.map(|address| address.parse().expect("address"));
    assert_eq!(web.name, ObjectName::new("shop", "web"));
    assert_eq!(web.addresses, BTreeSet::from(addresses));
    assert_eq!(peers.addresses, BTreeSet::new());
}

#[test]
fn an_object_twice_in_one_file() {
    let one = "kind: Namespace\napiVersion: v1\nmetadata: {name: a, labels: {n: VALUE}}\n---\n";
    let parsed = parse(
        "f.yaml",
        &(one.replace("VALUE", "first") + &one.replace("VALUE", "second")),
    );
    assert_eq!(
        parsed
            .problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["f.yaml:5: Namespace a: also on line 1 of this file; that one counts"]
    );
    let [(1, Object::Namespace(namespace))] = parsed.objects.as_slice() else {
        panic!("{:?}", parsed.objects)
    };
    assert_eq!(
        namespace.labels.get("n").map(|value| &**value),
        Some("first")
    );
}
