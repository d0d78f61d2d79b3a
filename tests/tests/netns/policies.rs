//! Which connections a policy allows.

use super::{Cast, DENY_ALL, DENY_INGRESS, Expected, Form, Host, What, check, in_both_forms};
use What::{Ping, Tcp, Udp};
use portcullis_tests::netns::Agent;

in_both_forms! {
    all_connect_without_policies
    default_deny_ingress
    default_deny_both
    allow_by_labels
    allow_by_namespace
    ip_block_with_except
    egress_with_dns
    named_ports
    port_ranges
}

/// Every way between two hosts.
fn every_way<'a>(from: &'a Host, to: &'a Host, allowed: bool) -> [Expected<'a>; 3] {
    [Tcp(80), Udp(53), Ping].map(|what| (from, to, what, allowed))
}

fn all_connect_without_policies(form: Form) {
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("outside", 10).unwrap();
    let hosts = [&cast.web, &cast.db, &cast.tool, &outside];
    let rows: Vec<_> = hosts
        .iter()
        .flat_map(|from| hosts.iter().flat_map(|to| every_way(from, to, true)))
        .collect();
    check("before there is an agent", &rows);
    let agent = Agent::start(&cast.node).unwrap();
    check("with an agent", &rows);
    assert_eq!(agent.status().unwrap().programs.len(), 3);
}

fn default_deny_ingress(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    let mut rows = Vec::new();
    rows.extend(every_way(web, db, false));
    rows.extend(every_way(tool, db, false));
    rows.extend(every_way(db, tool, true));
    check("ingress to shop denied", &rows);
}

fn default_deny_both(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_ALL);
    let agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    let mut rows = Vec::new();
    rows.extend(every_way(tool, db, false));
    rows.extend(every_way(db, tool, false));
    // A pod can always reach itself, and the node its pods.
    rows.extend(every_way(web, web, true));
    rows.extend(every_way(&cast.node, db, true));
    check("shop denied both ways", &rows);
    cast.no_policy("default-deny");
    agent.sync().unwrap();
    rows.truncate(6);
    check("no longer", &rows.map_allowed());
}

trait MapAllowed<'a> {
    fn map_allowed(self) -> Vec<Expected<'a>>;
}

impl<'a> MapAllowed<'a> for Vec<Expected<'a>> {
    fn map_allowed(self) -> Vec<Expected<'a>> {
        self.into_iter()
            .map(|(from, to, what, _)| (from, to, what, true))
            .collect()
    }
}

fn allow_by_labels(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy(
        "web-to-db",
        "podSelector: {matchLabels: {app: db}}\n\
         ingress:\n\
         - from: [{podSelector: {matchExpressions: [{key: app, operator: In, values: [web]}]}}]\n\
         \x20 ports: [{port: 80}, {port: 53, protocol: UDP}]",
    );
    let agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    check(
        "web may reach two ports of db",
        &[
            (web, db, Tcp(80), true),
            (web, db, Udp(53), true),
            (web, db, Tcp(8080), false),
            (web, db, Udp(8080), false),
            (web, db, Ping, false),
            (tool, db, Tcp(80), false),
            (tool, db, Udp(53), false),
            (db, web, Tcp(80), false),
        ],
    );
    // Labels change, and with them what the policy means.
    let store = cast.node.datastore();
    store
        .put_pod("shop", "web", &[("app", "old")], &[], &web.addresses())
        .unwrap();
    agent.sync().unwrap();
    check(
        "web is web no more",
        &[(web, db, Tcp(80), false), (web, db, Udp(53), false)],
    );
}

fn allow_by_namespace(form: Form) {
    let cast = Cast::new(form);
    cast.policy(
        "from-dev",
        "podSelector: {}\n\
         ingress:\n\
         - from: [{namespaceSelector: {matchLabels: {team: dev}}}]",
    );
    let agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    let mut rows = Vec::new();
    rows.extend(every_way(tool, db, true));
    rows.extend(every_way(tool, web, true));
    rows.extend(every_way(web, db, false));
    check("only dev may reach shop", &rows);
    cast.node
        .datastore()
        .put_namespace("dev", &[("team", "ops")])
        .unwrap();
    agent.sync().unwrap();
    check("the namespace's label changed", &every_way(tool, db, false));
}

fn ip_block_with_except(form: Form) {
    let cast = Cast::new(form);
    let friend = cast.node.add_outside("friend", 10).unwrap();
    let stranger = cast.node.add_outside("stranger", 20).unwrap();
    let blocks = "\
- {ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.16/28]}}
  - {ipBlock: {cidr: '2001:db8:51::/64', except: ['2001:db8:51::14/128']}}";
    cast.policy(
        "outside",
        &format!(
            "podSelector: {{matchLabels: {{app: db}}}}\n\
             policyTypes: [Ingress, Egress]\n\
             ingress:\n- from:\n  {blocks}\n\
             egress:\n- to:\n  {blocks}"
        ),
    );
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db) = (&cast.web, &cast.db);
    let mut rows = Vec::new();
    for (host, allowed) in [(&friend, true), (&stranger, false), (web, false)] {
        rows.extend(every_way(host, db, allowed));
        rows.extend(every_way(db, host, allowed));
    }
    rows.extend(every_way(&stranger, web, true));
    check("outside but for a few", &rows);
}

fn egress_with_dns(form: Form) {
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("outside", 10).unwrap();
    cast.policy(
        "web-egress",
        "podSelector: {matchLabels: {app: web}}\n\
         policyTypes: [Egress]\n\
         egress:\n\
         - ports: [{port: 53, protocol: UDP}, {port: 53}]\n\
         - to: [{podSelector: {matchLabels: {app: db}}}]\n\
         \x20 ports: [{port: 80}]",
    );
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    check(
        "web may look names up and reach db",
        &[
            (web, db, Udp(53), true),
            (web, &outside, Udp(53), true),
            (web, db, Tcp(80), true),
            (web, db, Tcp(8080), false),
            (web, tool, Tcp(80), false),
            (web, &outside, Tcp(80), false),
            (web, &outside, Ping, false),
            (tool, web, Tcp(80), true),
            (tool, web, Ping, true),
        ],
    );
}

fn named_ports(form: Form) {
    let cast = Cast::new(form);
    cast.policy(
        "query-in",
        "podSelector: {matchLabels: {app: db}}\ningress:\n- ports: [{port: query}]",
    );
    cast.policy(
        "query-out",
        "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\negress:\n- ports: [{port: query}]",
    );
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db, tool) = (&cast.web, &cast.db, &cast.tool);
    check(
        "query is 8080 on db and nothing elsewhere",
        &[
            (tool, db, Tcp(8080), true),
            (tool, db, Tcp(80), false),
            (tool, db, Udp(8080), false),
            (web, db, Tcp(8080), true),
            (web, db, Tcp(80), false),
            (web, tool, Tcp(8080), false),
        ],
    );
}

fn port_ranges(form: Form) {
    let cast = Cast::new(form);
    cast.policy(
        "range",
        "podSelector: {matchLabels: {app: db}}\ningress:\n- ports: [{port: 81, endPort: 8080}]",
    );
    let _agent = Agent::start(&cast.node).unwrap();
    let (web, db) = (&cast.web, &cast.db);
    check(
        "81 to 8080",
        &[
            (web, db, Tcp(8080), true),
            (web, db, Tcp(80), false),
            (web, db, Udp(8080), false),
        ],
    );
}
