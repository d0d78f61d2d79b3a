//! Whose an interface is, while its pod does what it can to be somebody else or nobody.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr};

use super::{Cast, DENY_ALL, Form, Host, What, check, in_both_forms};
use What::{Ping, Tcp};
use portcullis_tests::netns::{
    Agent, Family, Flow, Node, Outcome, PATIENCE, PodSpec, Probe, SILENCE, probe,
};

in_both_forms! {
    a_pod_that_hides_its_address_stays_enforced
    a_neighbours_address_gains_nothing_and_takes_nothing
    a_pod_whose_object_is_gone_goes_on_as_it_was
    a_pod_that_moves_its_interface_stays_enforced
    a_second_veth_is_the_pods
    a_second_veth_may_be_named_only
}

/// Moves a pod's addresses to its loopback, from which it can go on using them, and makes its routes anew.
fn hide_addresses(node: &Node, pod: &Host) {
    let [v4, v6] = pod.addresses();
    let [gateway_v4, gateway_v6] = node.addresses();
    pod.netns()
        .ip(&format!(
            "address flush dev eth0 scope global\n\
             address add {v4}/32 dev lo\n\
             address add {v6}/128 dev lo nodad\n\
             route replace {gateway_v4}/32 dev eth0 src {v4}\n\
             route replace {gateway_v6}/128 dev eth0 src {v6}\n\
             route replace 0.0.0.0/0 via {gateway_v4} dev eth0 src {v4}\n\
             route replace ::/0 via {gateway_v6} dev eth0 src {v6}"
        ))
        .unwrap();
}

fn a_pod_that_hides_its_address_stays_enforced(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let rows = [
        (&cast.web, &cast.db, Tcp(80), true),
        (&cast.db, &cast.web, Tcp(80), false),
        (&cast.db, &cast.tool, Tcp(80), false),
        (&cast.tool, &cast.db, Tcp(80), false),
    ];
    check("before", &rows);
    hide_addresses(&cast.node, &cast.db);
    agent.sync().unwrap();
    // It may make its own things inaccessible, but nothing else accessible.
    check("hidden", &rows[1..]);
    agent.kill().unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    check("hidden, with another agent", &rows[1..]);
    agent.wait_for_status(|status| status.ready).unwrap();
}

fn a_neighbours_address_gains_nothing_and_takes_nothing(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let thief = cast
        .node
        .add(PodSpec::new("shop", "thief", &[("app", "thief")]))
        .unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    let [v4, v6] = cast.web.addresses();
    let [own_v4, own_v6] = thief.addresses();
    // Beside its own addresses, then instead of them.
    thief
        .netns()
        .ip(&format!(
            "address add {v4}/32 dev eth0\naddress add {v6}/128 dev eth0 nodad"
        ))
        .unwrap();
    agent.sync().unwrap();
    let rows = [
        (&cast.web, &cast.db, Tcp(80), true),
        (&cast.tool, &cast.web, Tcp(80), false),
    ];
    let deny = [
        (&thief, &cast.db, Tcp(80), false),
        (&thief, &cast.tool, Tcp(80), false),
    ];
    check("beside", &rows);
    check("beside", &deny);
    let [gateway_v4, gateway_v6] = cast.node.addresses();
    let by_the_neighbours = format!(
        "route replace {gateway_v4}/32 dev eth0 src {v4}\n\
         route replace {gateway_v6}/128 dev eth0 src {v6}\n\
         route replace 0.0.0.0/0 via {gateway_v4} dev eth0 src {v4}\n\
         route replace ::/0 via {gateway_v6} dev eth0 src {v6}\n\
         address del {own_v4}/{} dev eth0\naddress del {own_v6}/{} dev eth0",
        if form == Form::Bridge { 24 } else { 32 },
        if form == Form::Bridge { 64 } else { 128 },
    );
    thief.netns().ip(&by_the_neighbours).unwrap();
    agent.sync().unwrap();
    check("instead", &deny);
    check("instead", &rows);
    agent.kill().unwrap();
    let _agent = Agent::start(&cast.node).unwrap();
    check("with another agent", &deny);
    check("with another agent", &rows);
}

fn a_pod_whose_object_is_gone_goes_on_as_it_was(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let [v4, _] = cast.db.addresses();
    let mut flow = Flow::open(cast.web.netns(), cast.db.netns(), v4, 7000).unwrap();
    let rows = [
        (&cast.web, &cast.db, Tcp(80), true),
        (&cast.db, &cast.tool, Tcp(80), false),
        (&cast.tool, &cast.db, Tcp(80), false),
        (&cast.tool, &cast.web, Tcp(80), false),
    ];
    let mut assert_all = |when: &str| {
        check(when, &rows);
        assert!(flow.client_speaks(PATIENCE).unwrap(), "{when}");
        assert!(flow.server_speaks(PATIENCE).unwrap(), "{when}");
    };
    assert_all("before");
    for pod in ["web", "db"] {
        cast.node.datastore().delete_pod("shop", pod).unwrap();
    }
    agent.sync().unwrap();
    assert_all("their objects are gone");
    agent.kill().unwrap();
    assert_all("without an agent");
    let agent = Agent::start(&cast.node).unwrap();
    assert_all("with another agent");
    let notes = agent.status().unwrap().notes;
    let says = |pod: &str| {
        notes
            .iter()
            .any(|note| note.starts_with(&format!("pod shop/{pod} is not in")))
    };
    assert!(says("web") && says("db"), "{notes:?}");
    // Their policies go on being about them.
    cast.no_policy("web-to-db");
    agent.sync().unwrap();
    check(
        "the policy is gone",
        &[(&cast.web, &cast.db, Tcp(80), false)],
    );
    assert!(!flow.client_speaks(SILENCE).unwrap());
}

/// To do so it takes what a pod with NET_ADMIN has: another namespace of its own.
fn a_pod_that_moves_its_interface_stays_enforced(form: Form) {
    let cast = Cast::new(form);
    cast.only_web_to_db();
    let agent = Agent::start(&cast.node).unwrap();
    let inner =
        portcullis_tests::netns::Netns::create(&format!("{}-inner", cast.node.prefix())).unwrap();
    let [v4, _] = cast.db.addresses();
    let [gateway_v4, _] = cast.node.addresses();
    cast.db
        .netns()
        .ip(&format!("link set eth0 netns {}", inner.path()))
        .unwrap();
    inner
        .ip(&format!(
            "link set eth0 up\n\
             address add {v4}/32 dev eth0\n\
             route add {gateway_v4}/32 dev eth0 src {v4}\n\
             route add 0.0.0.0/0 via {gateway_v4} dev eth0"
        ))
        .unwrap();
    agent.sync().unwrap();
    let outcome = |to: IpAddr, what, patience| {
        probe(&Probe {
            from: &inner,
            to,
            what,
            patience,
        })
    };
    // The node is reached, so it is policy that keeps the rest away.
    assert_eq!(outcome(gateway_v4, Ping, PATIENCE), Outcome::Answered);
    let tool = cast.tool.address(Family::V4);
    assert_eq!(outcome(tool, Tcp(80), SILENCE), Outcome::Silent);
    agent.kill().unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    assert_eq!(
        outcome(tool, Tcp(80), SILENCE),
        Outcome::Silent,
        "another agent"
    );
    let endpoints = agent.status().unwrap().programs;
    assert_eq!(endpoints.len(), 3);
    inner.ip("link delete eth0").unwrap();
}

/// As on EKS: all that is IPv4 leaves db by an interface of its own, with a link-local address that the node masquerades.
fn with_second_veth(form: Form) -> (Cast, Host) {
    const OWN: Ipv4Addr = Ipv4Addr::new(169, 254, 172, 5);
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("outside", 9).unwrap();
    let node = cast.node.netns();
    node.ip(&format!(
        "link add pcl-v4host type veth peer name v4if0 netns {}\n\
         link set pcl-v4host up\n\
         address add 169.254.172.1/22 dev pcl-v4host",
        cast.db.netns().path()
    ))
    .unwrap();
    cast.db
        .netns()
        .ip(&format!(
            "link set v4if0 up\n\
             address add {OWN}/22 dev v4if0\n\
             route replace 0.0.0.0/0 via 169.254.172.1 dev v4if0 src {OWN}"
        ))
        .unwrap();
    node.script(
        "nft",
        &["-f", "-"],
        "table ip v4if { chain out { type nat hook postrouting priority 100; \
         ip saddr 169.254.172.0/22 masquerade; }; }",
    )
    .unwrap();
    (cast, outside)
}

/// What comes of a connection out of db, in each family.
#[track_caller]
fn assert_out(cast: &Cast, to: &Host, when: &str, allowed: &[(Family, bool)]) {
    for (family, allowed) in allowed {
        let (outcome, patience) = match allowed {
            true => (Outcome::Answered, PATIENCE),
            false => (Outcome::Silent, SILENCE),
        };
        let got = probe(&Probe {
            from: cast.db.netns(),
            to: to.address(*family),
            what: Tcp(80),
            patience,
        });
        assert_eq!(got, outcome, "{when}: {family:?}");
    }
}

fn has_programs(agent: &Agent<'_>, interface: &str) -> bool {
    let programs = agent.status().unwrap().programs;
    programs.iter().any(|at| at.interface == interface)
}

fn a_second_veth_is_the_pods(form: Form) {
    use Family::{V4, V6};
    let (cast, outside) = with_second_veth(form);
    let agent = Agent::start(&cast.node).unwrap();
    assert!(has_programs(&agent, "pcl-v4host"));
    assert_out(&cast, &outside, "no policy", &[(V4, true), (V6, true)]);
    cast.policy("default-deny", DENY_ALL);
    agent.sync().unwrap();
    assert_out(&cast, &outside, "deny", &[(V4, false), (V6, false)]);
    let v4 = outside.address(V4);
    cast.policy(
        "out",
        &format!(
            "podSelector: {{matchLabels: {{app: db}}}}\npolicyTypes: [Egress]\n\
             egress:\n- to: [{{ipBlock: {{cidr: {v4}/32}}}}]"
        ),
    );
    agent.sync().unwrap();
    assert_out(&cast, &outside, "IPv4 only", &[(V4, true), (V6, false)]);
    cast.no_policy("out");
    // The pod takes the interface away that Kubernetes knows of.
    cast.db.netns().ip("link delete eth0").unwrap();
    agent.sync().unwrap();
    assert_out(&cast, &outside, "the second alone", &[(V4, false)]);
    agent.kill().unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    assert_out(&cast, &outside, "another agent", &[(V4, false)]);
    assert!(has_programs(&agent, "pcl-v4host"));
}

fn a_second_veth_may_be_named_only(form: Form) {
    use Family::{V4, V6};
    let (cast, outside) = with_second_veth(form);
    cast.policy("default-deny", DENY_ALL);
    let report = [("PORTCULLIS_SECONDARY_INTERFACES", OsStr::new("report"))];
    let agent = Agent::start_with(&cast.node, &report).unwrap();
    assert!(!has_programs(&agent, "pcl-v4host"));
    assert_out(&cast, &outside, "reported", &[(V4, true), (V6, false)]);
    let notes = agent.status().unwrap().notes;
    let named = "pod shop/db: its interface v4if0 (pcl-v4host here) is not enforced";
    assert!(
        notes.iter().any(|note| note.starts_with(named)),
        "{notes:?}"
    );
}
