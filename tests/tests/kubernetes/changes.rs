//! Objects that change while the agent watches.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use policy_agent::report::IdentityStatus;
use portcullis_tests::apiserver::Resource::{NetworkPolicies, Pods};
use portcullis_tests::netns::{Agent, PodSpec, What::Tcp, check};
use portcullis_tests::objects;
use serde_json::json;

use super::world::World;
use super::{against_both, deny_ingress, team_to_db, web_to_db};

against_both! {
    a_policy_comes_and_goes
    labels_change
    a_namespace_is_relabelled
    a_pod_goes_and_its_address_is_used_again
    thousands_of_pods_arrive_at_once
}

fn a_policy_comes_and_goes(world: &World) {
    let agent = world.agent();
    let (web, db, tool) = (&world.web, &world.db, &world.tool);
    let to_db =
        |from_web, from_tool| [(web, db, Tcp(80), from_web), (tool, db, Tcp(80), from_tool)];
    check("no policy", &to_db(true, true));
    world.put_policy("default-deny", &deny_ingress());
    agent.sync().unwrap();
    check("created", &to_db(false, false));
    world.put_policy("web-to-db", &web_to_db());
    agent.sync().unwrap();
    check("another one", &to_db(true, false));
    world.put_policy("web-to-db", &team_to_db("dev"));
    agent.sync().unwrap();
    check("changed", &to_db(false, true));
    world.delete(NetworkPolicies, "shop", "web-to-db");
    agent.sync().unwrap();
    check("deleted", &to_db(false, false));
    world.delete(NetworkPolicies, "shop", "default-deny");
    agent.sync().unwrap();
    check("none is left", &to_db(true, true));
    let status = agent.status().unwrap();
    assert!(status.ready, "{:?}", status.conditions);
    assert_eq!(status.problems, [""; 0]);
}

fn labels_change(world: &World) {
    world.put_policy("default-deny", &deny_ingress());
    world.put_policy("web-to-db", &web_to_db());
    let agent = world.agent();
    let (web, db, tool) = (&world.web, &world.db, &world.tool);
    check(
        "at first",
        &[(web, db, Tcp(80), true), (db, web, Tcp(80), false)],
    );
    world.put_pod("shop", "web", &[("app", "other")], &web.addresses());
    agent.sync().unwrap();
    check("a peer no longer", &[(web, db, Tcp(80), false)]);
    world.put_pod("shop", "web", &[("app", "db")], &web.addresses());
    world.put_pod("shop", "db", &[("app", "web")], &db.addresses());
    agent.sync().unwrap();
    check(
        "subject and peer have changed places",
        &[
            (web, db, Tcp(80), false),
            (db, web, Tcp(80), true),
            (tool, web, Tcp(80), false),
        ],
    );
}

fn a_namespace_is_relabelled(world: &World) {
    world.put_policy("default-deny", &deny_ingress());
    world.put_policy("team-to-db", &team_to_db("friends"));
    let agent = world.agent();
    let (db, tool) = (&world.db, &world.tool);
    let from_tool = |allowed| [(tool, db, Tcp(80), allowed)];
    check("of another team", &from_tool(false));
    world.put_namespace("dev", &[("team", "friends")]);
    agent.sync().unwrap();
    check("relabelled", &from_tool(true));
    world.put_namespace("dev", &[]);
    agent.sync().unwrap();
    check("without its label", &from_tool(false));
    // Every namespace bears its name, which nobody wrote into this one.
    let by_name = json!({
        "podSelector": {}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "dev"}}}]}],
    });
    world.put_policy("by-name", &by_name);
    agent.sync().unwrap();
    check("by its name", &from_tool(true));
}

fn a_pod_goes_and_its_address_is_used_again(world: &World) {
    world.put_policy("default-deny", &deny_ingress());
    world.put_policy("web-to-db", &web_to_db());
    let agent = world.agent();
    let (db, tool) = (&world.db, &world.tool);
    let spec = |namespace, name| PodSpec {
        address: Some(77),
        ..PodSpec::new(namespace, name, &[])
    };
    let short = world.node.add_unknown(spec("shop", "short")).unwrap();
    world.put_pod("shop", "short", &[("app", "web")], &short.addresses());
    agent.sync().unwrap();
    check(
        "a peer, and a subject",
        &[(&short, db, Tcp(80), true), (tool, &short, Tcp(80), false)],
    );
    drop(short);
    world.delete(Pods, "shop", "short");
    agent.sync().unwrap();
    let endpoints = agent.ask(&["get", "workloadendpoints"]).unwrap();
    assert!(!endpoints.contains("shop.short"), "{endpoints}");
    let other = world.node.add_unknown(spec("dev", "other")).unwrap();
    world.put_pod("dev", "other", &[("app", "web")], &other.addresses());
    agent.sync().unwrap();
    check(
        "neither, with the same address and labels in another namespace",
        &[(&other, db, Tcp(80), false), (tool, &other, Tcp(80), true)],
    );
}

/// The addresses of the identity that is made by this.
fn addresses_of(agent: &Agent<'_>, matched: &str) -> BTreeSet<IpAddr> {
    let json = agent.ask(&["get", "identities", "-o", "json"]).unwrap();
    let identities: Vec<IdentityStatus> = serde_json::from_str(&json).unwrap();
    identities
        .into_iter()
        .filter(|identity| identity.matches.iter().any(|words| words.contains(matched)))
        .flat_map(|identity| identity.addresses)
        .collect()
}

fn thousands_of_pods_arrive_at_once(world: &World) {
    const MANY: u16 = 2_000;
    world.put_policy("default-deny", &deny_ingress());
    world.put_policy("web-to-db", &web_to_db());
    let agent = world.agent();
    let address = |number: u16| -> IpAddr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(10, 245, high, low).into()
    };
    let pods = (0..MANY).map(|number| {
        // Every other one is a peer.
        let app = if number % 2 == 0 { "web" } else { "other" };
        let name = format!("pod-{number}");
        let mut pod = objects::pod("shop", &name, &[("app", app)], &[], &[address(number)]);
        pod["spec"]["nodeName"] = json!("elsewhere");
        pod
    });
    world.api.put_all(pods.collect()).unwrap();
    agent.sync().unwrap();
    let mut expected: BTreeSet<_> = (0..MANY).step_by(2).map(address).collect();
    expected.extend(world.web.addresses());
    assert!(
        addresses_of(&agent, "app=web") == expected,
        "all even ones, and web, have the identity of app=web"
    );
    let rows = [
        (&world.web, &world.db, Tcp(80), true),
        (&world.tool, &world.db, Tcp(80), false),
    ];
    check("beside them", &rows);
    for number in 0..MANY {
        world.delete(Pods, "shop", &format!("pod-{number}"));
    }
    agent.sync().unwrap();
    let left = BTreeSet::from(world.web.addresses());
    assert_eq!(addresses_of(&agent, "app=web"), left, "they are gone");
    check("and after them", &rows);
    assert_eq!(agent.status().unwrap().problems, [""; 0]);
}
