//! Interfaces that are renamed, moved or made again under a pod that stays.

use super::{Cast, DENY_INGRESS, Form, PodSpec, What, check, in_both_forms};
use What::Tcp;
use portcullis_tests::netns::{Agent, Netns};

in_both_forms! {
    a_renamed_interface_stays_enforced
    an_interface_may_leave_and_come_back
    a_sandbox_is_made_again_with_the_same_address
}

fn start(cast: &Cast) -> Agent<'_> {
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    Agent::start(&cast.node).unwrap()
}

fn assert_enforced(cast: &Cast, when: &str) {
    check(
        when,
        &[
            (&cast.web, &cast.db, Tcp(80), true),
            (&cast.tool, &cast.db, Tcp(80), false),
        ],
    );
}

fn interfaces(agent: &Agent<'_>) -> Vec<String> {
    let status = agent.status().unwrap();
    let mut interfaces: Vec<_> = status.programs.into_iter().map(|at| at.interface).collect();
    interfaces.sort();
    interfaces
}

fn a_renamed_interface_stays_enforced(form: Form) {
    let cast = Cast::new(form);
    let agent = start(&cast);
    let node = cast.node.netns();
    node.ip("link set pcl-veth2 name pcl-other").unwrap();
    agent.sync().unwrap();
    assert_enforced(&cast, "renamed");
    agent.kill().unwrap();
    assert_enforced(&cast, "without an agent");
    node.ip("link set pcl-other name pcl-again").unwrap();
    let agent = Agent::start(&cast.node).unwrap();
    assert_enforced(&cast, "renamed while no agent ran");
    assert_eq!(interfaces(&agent), ["pcl-again", "pcl-veth1", "pcl-veth3"]);
}

fn an_interface_may_leave_and_come_back(form: Form) {
    let cast = Cast::new(form);
    let agent = start(&cast);
    let elsewhere = Netns::create(&format!("{}-elsewhere", cast.node.prefix())).unwrap();
    let node = cast.node.netns();
    let move_away = || {
        let line = format!("link set pcl-veth2 netns {}", elsewhere.path());
        node.ip(&line).unwrap();
    };
    let bring_back = || {
        let line = format!("link set pcl-veth2 netns {}", node.path());
        elsewhere.ip(&line).unwrap();
        // What it had is lost on the way.
        let [v4, v6] = cast.db.addresses();
        node.ip(&match form {
            Form::Routed => format!(
                "link set pcl-veth2 up\n\
                 address add 10.244.0.1/32 dev pcl-veth2\n\
                 address add fd00:10:244::1/128 dev pcl-veth2 nodad\n\
                 route add {v4}/32 dev pcl-veth2\n\
                 route add {v6}/128 dev pcl-veth2"
            ),
            Form::Bridge => "link set pcl-veth2 master cni0 up".to_owned(),
        })
        .unwrap();
    };
    move_away();
    agent.sync().unwrap();
    assert_eq!(interfaces(&agent), ["pcl-veth1", "pcl-veth3"]);
    bring_back();
    agent.sync().unwrap();
    assert_eq!(interfaces(&agent), ["pcl-veth1", "pcl-veth2", "pcl-veth3"]);
    assert_enforced(&cast, "back");

    // Away and back before anybody looks.
    move_away();
    bring_back();
    agent.sync().unwrap();
    agent.wait_for_status(|status| status.ready).unwrap();
    assert_enforced(&cast, "back at once");
    agent.kill().unwrap();
    move_away();
    bring_back();
    let agent = Agent::start(&cast.node).unwrap();
    assert_eq!(interfaces(&agent), ["pcl-veth1", "pcl-veth2", "pcl-veth3"]);
    assert_enforced(&cast, "back while no agent ran");
}

fn a_sandbox_is_made_again_with_the_same_address(form: Form) {
    let cast = Cast::new(form);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let Cast {
        node,
        web,
        db,
        tool,
    } = cast;
    let agent = Agent::start(&node).unwrap();
    // The API says nothing: the pod is the same, and its sandbox is another.
    let again = |name, last| {
        let spec = PodSpec {
            address: Some(last),
            ..PodSpec::new("shop", name, &[])
        };
        node.add_unknown(spec).unwrap()
    };
    drop(db);
    let db = again("db", 3);
    agent.sync().unwrap();
    let rows = |web: &_, db: &_| {
        check(
            "another sandbox",
            &[
                (web, db, Tcp(80), true),
                (&tool, db, Tcp(80), false),
                (&tool, web, Tcp(80), false),
            ],
        );
    };
    rows(&web, &db);
    assert_eq!(interfaces(&agent), ["pcl-veth1", "pcl-veth3", "pcl-veth4"]);
    agent.kill().unwrap();
    drop(web);
    let web = again("web", 2);
    let agent = Agent::start(&node).unwrap();
    rows(&web, &db);
    assert_eq!(interfaces(&agent), ["pcl-veth3", "pcl-veth4", "pcl-veth5"]);
}

/// The old sandbox lives for some time beside the new one. Behind routes there is one way to an address, on
/// a bridge there may be two.
#[test]
fn two_interfaces_bear_one_address_while_it_changes_hands() {
    let cast = Cast::new(Form::Bridge);
    let agent = start(&cast);
    let heir = cast
        .node
        .add_unknown(PodSpec {
            address: Some(3),
            ..PodSpec::new("shop", "db-heir", &[])
        })
        .unwrap();
    agent.sync().unwrap();
    assert_eq!(
        interfaces(&agent),
        ["pcl-veth1", "pcl-veth2", "pcl-veth3", "pcl-veth4"],
        "both are the pod's"
    );
    assert_enforced(&cast, "whichever gets it");
    let Cast {
        node,
        web,
        db,
        tool,
    } = &cast;
    db.netns().ip("link delete eth0").unwrap();
    agent.sync().unwrap();
    assert_eq!(interfaces(&agent), ["pcl-veth1", "pcl-veth3", "pcl-veth4"]);
    check(
        "the heir alone",
        &[(web, &heir, Tcp(80), true), (tool, &heir, Tcp(80), false)],
    );
    drop(agent);
    let _node = node;
}
