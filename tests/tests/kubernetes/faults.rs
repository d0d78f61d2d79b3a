//! What an operator gets wrong, and what the agent says of it.

use std::ffi::OsString;

use policy_agent::report::{Condition, Status};
use portcullis_tests::apiserver::Resource::{NetworkPolicies, Pods};
use portcullis_tests::apiserver::{ApiServer, ApiServerConfig};
use portcullis_tests::netns::{Agent, Source, What::Tcp, check};
use serde_json::json;

use super::world::{World, sync_fails};
use super::{against_both, deny_ingress, web_to_db};

against_both! {
    a_wrong_token
}

fn loaded(status: &Status) -> &Condition {
    let conditions = &status.conditions;
    conditions
        .iter()
        .find(|condition| condition.name == "DatastoreLoaded")
        .unwrap()
}

/// Whether the datastore is not loaded, and the condition says all of this.
fn unloaded_for<'a>(reasons: &'a [&str]) -> impl Fn(&Status) -> bool + 'a {
    move |status| {
        let condition = loaded(status);
        !condition.ok
            && reasons
                .iter()
                .all(|reason| condition.message.contains(reason))
    }
}

fn a_wrong_token(world: &World) {
    world.put_policy("default-deny", &deny_ingress());
    let agent = world.agent_with(&world.api.kubeconfig_with("wrong"));
    let status = agent
        .wait_for_status(unloaded_for(&["401", "token"]))
        .unwrap();
    assert!(!status.ready);
    let log = agent.log();
    assert!(log.contains("401"), "{log}");
    let readyz = world.readyz();
    for part in ["HTTP/1.1 503", "[-] DatastoreLoaded", "401"] {
        assert!(readyz.contains(part), "{part} in {readyz}");
    }
    let said = sync_fails(&agent);
    assert!(said.contains("401"), "{said}");
}

#[test]
fn a_token_that_becomes_right() {
    let world = World::in_process();
    world.put_policy("default-deny", &deny_ingress());
    let agent = world.agent_with(&world.api.kubeconfig_with("later"));
    agent.wait_for_status(unloaded_for(&["401"])).unwrap();
    world.server().set_token("later");
    agent.sync_at_last().unwrap();
    check("enforced", &[(&world.web, &world.db, Tcp(80), false)]);
    agent.wait_for_status(|status| status.ready).unwrap();
}

#[test]
fn a_client_certificate_and_no_kubeconfig() {
    let world = World::in_process();
    let server = world.server();
    server.expire_token();
    world.put_policy("default-deny", &deny_ingress());
    let endpoint = OsString::from(server.endpoint());
    let identity = server.client_identity();
    let certificate = world.file("client.crt", &identity.certificate);
    let key = world.file("client.key", &identity.key);
    let ca = world.file("ca.crt", server.ca_pem());
    let settings = [
        ("K8S_API_ENDPOINT", endpoint.as_os_str()),
        ("K8S_CERT_FILE", certificate.as_os_str()),
        ("K8S_KEY_FILE", key.as_os_str()),
        ("K8S_CA_FILE", ca.as_os_str()),
    ];
    let _agent = Agent::start_from(&world.node, Source::Api(&settings)).unwrap();
    check("enforced", &[(&world.web, &world.db, Tcp(80), false)]);
}

#[test]
fn another_certificate_authority() {
    let world = World::in_process();
    let other = ApiServer::new(ApiServerConfig::default()).unwrap();
    let ca = world.file("ca.crt", other.ca_pem());
    let kubeconfig = world.file("kubeconfig", &world.api.kubeconfig());
    let settings = [
        ("KUBECONFIG", kubeconfig.as_os_str()),
        ("K8S_CA_FILE", ca.as_os_str()),
    ];
    let mut agent = Agent::spawn_from(&world.node, Source::Api(&settings)).unwrap();
    agent.wait_for_answers().unwrap();
    let status = agent
        .wait_for_status(unloaded_for(&["certificate"]))
        .unwrap();
    assert!(!status.ready);
}

#[test]
fn a_token_that_expires() {
    let world = World::in_process();
    let server = world.server();
    world.put_policy("default-deny", &deny_ingress());
    world.put_policy("web-to-db", &web_to_db());
    let agent = world.agent();
    let rows = [
        (&world.web, &world.db, Tcp(80), true),
        (&world.tool, &world.db, Tcp(80), false),
    ];
    check("at first", &rows);
    server.expire_token();
    server.drop_watches();
    let says_so = |status: &Status| {
        status
            .problems
            .iter()
            .any(|problem| problem.contains("401"))
    };
    let status = agent.wait_for_status(says_so).unwrap();
    check("what was enforced still is", &rows);
    assert!(loaded(&status).ok, "what was loaded is in force");
    world.delete(NetworkPolicies, "shop", "web-to-db");
    server.set_token("portcullis-test");
    agent.sync_at_last().unwrap();
    check("accepted again", &[(&world.web, &world.db, Tcp(80), false)]);
    agent.wait_for_status(|status| !says_so(status)).unwrap();
}

#[test]
fn a_resource_that_is_forbidden() {
    let world = World::in_process();
    let server = world.server();
    world.put_policy("default-deny", &deny_ingress());
    server.forbid(NetworkPolicies);
    let agent = world.agent_with(&world.api.kubeconfig());
    let reasons = ["403", "networkpolicies"];
    let status = agent.wait_for_status(unloaded_for(&reasons)).unwrap();
    assert!(!status.ready);
    let said = sync_fails(&agent);
    assert!(reasons.iter().all(|reason| said.contains(reason)), "{said}");
    check(
        "nothing is enforced from half a cluster",
        &[(&world.tool, &world.db, Tcp(80), true)],
    );
    server.permit(NetworkPolicies);
    agent.sync_at_last().unwrap();
    check("permitted", &[(&world.tool, &world.db, Tcp(80), false)]);
    agent.wait_for_status(|status| status.ready).unwrap();
}

#[test]
fn a_pod_whose_address_is_none() {
    let world = World::in_process();
    world.put_policy("default-deny", &deny_ingress());
    let mut broken = world.pod("shop", "broken", &[("app", "web")], &[]);
    broken["status"]["podIP"] = json!("10.0.0.999");
    broken["status"]["podIPs"] = json!([{"ip": "10.0.0.999"}]);
    world.put(broken);
    let agent = world.agent_with(&world.api.kubeconfig());
    let says_so = |status: &Status| {
        let all = serde_json::to_string(status).unwrap();
        all.contains("10.0.0.999") && all.contains("shop/broken")
    };
    agent.wait_for_status(says_so).unwrap();
    let rows = [(&world.tool, &world.db, Tcp(80), false)];
    let error = agent.sync().unwrap_err().to_string();
    assert!(error.contains("10.0.0.999"), "{error}");
    check("others are enforced", &rows);
    world.put_policy("web-to-db", &web_to_db());
    agent.sync().unwrap_err();
    check(
        "and changes go on",
        &[(&world.web, &world.db, Tcp(80), true), rows[0]],
    );
    world.delete(Pods, "shop", "broken");
    agent.sync().unwrap();
    agent.wait_for_status(|status| !says_so(status)).unwrap();
}

#[test]
fn a_policy_with_a_field_of_the_future() {
    let world = World::in_process();
    let agent = world.agent();
    let mut spec = web_to_db();
    spec["ingress"][0]["onlyOnTuesdays"] = json!(true);
    world.put_policy("future", &spec);
    let error = agent.sync().unwrap_err().to_string();
    for part in ["shop/future", "onlyOnTuesdays", "allows nothing"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    check(
        "it isolates, and what it would allow is not allowed",
        &[
            (&world.web, &world.db, Tcp(80), false),
            (&world.db, &world.web, Tcp(80), true),
        ],
    );
    world.put_policy("future", &web_to_db());
    agent.sync().unwrap();
    check("valid", &[(&world.web, &world.db, Tcp(80), true)]);
    // What it was before does not stay in force.
    world.put_policy("future", &spec);
    agent.sync().unwrap_err();
    check(
        "no longer valid",
        &[(&world.web, &world.db, Tcp(80), false)],
    );
}

#[test]
fn a_node_that_the_api_does_not_know() {
    let world = World::in_process();
    world.delete(
        portcullis_tests::apiserver::Resource::Nodes,
        "",
        world.node.node_name(),
    );
    let agent = world.agent_with(&world.api.kubeconfig());
    let says_so = |status: &Status| {
        let mut unmet = status.conditions.iter().filter(|condition| !condition.ok);
        unmet.any(|condition| condition.message.contains("NODENAME"))
    };
    let status = agent.wait_for_status(says_so).unwrap();
    assert!(!status.ready);
    world.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": world.node.node_name()},
    }));
    agent.wait_for_status(|status| status.ready).unwrap();
}
