//! The API goes away and comes back, with changes in between.

use policy_agent::report::Status;
use portcullis_tests::apiserver::Gone;
use portcullis_tests::apiserver::Resource::{NetworkPolicies, Pods};
use portcullis_tests::netns::{Agent, Expected, What::Tcp, check};

use super::world::{World, sync_fails};
use super::{against_both, deny_ingress, team_to_db, web_to_db};

against_both! {
    the_api_is_away_for_a_while
    an_agent_starts_before_the_api
}

/// What can be reached under [`before`] and [`after`].
fn to_db(world: &World, from_web: bool, from_tool: bool) -> [Expected<'_>; 2] {
    [
        (&world.web, &world.db, Tcp(80), from_web),
        (&world.tool, &world.db, Tcp(80), from_tool),
    ]
}

/// Policies by which `web` reaches `db`, and one more pod that may.
fn before(world: &World) {
    world.put_policy("default-deny", &deny_ingress());
    world.put_policy("web-to-db", &web_to_db());
    let elsewhere = ["10.245.0.1".parse().unwrap()];
    world.put_pod("shop", "gone", &[("app", "web")], &elsewhere);
}

/// Changes by which `tool` does instead: policies and pods added, changed and deleted.
fn after(world: &World) {
    world.put_policy("team-to-db", &team_to_db("dev"));
    world.delete(NetworkPolicies, "shop", "web-to-db");
    world.delete(Pods, "shop", "gone");
    let elsewhere = ["10.245.0.2".parse().unwrap()];
    world.put_pod("dev", "new", &[("app", "tool")], &elsewhere);
}

fn check_before(world: &World, agent: &Agent<'_>, when: &str) {
    check(when, &to_db(world, true, false));
    let identities = agent.ask(&["get", "identities"]).unwrap();
    assert!(identities.contains("10.245.0.1"), "{when}: {identities}");
}

fn check_after(world: &World, agent: &Agent<'_>, when: &str) {
    check(when, &to_db(world, false, true));
    let identities = agent.ask(&["get", "identities"]).unwrap();
    let knows = |address| identities.contains(address);
    assert!(
        !knows("10.245.0.1") && knows("10.245.0.2"),
        "{when}: {identities}"
    );
    let policies = agent.ask(&["get", "networkpolicies"]).unwrap();
    assert!(!policies.contains("web-to-db"), "{when}: {policies}");
}

fn the_api_is_away_for_a_while(world: &World) {
    before(world);
    let agent = world.agent();
    check_before(world, &agent, "at first");
    world.api.stop().unwrap();
    let away = |status: &Status| !status.problems.is_empty();
    agent.wait_for_status(away).unwrap();
    check_before(world, &agent, "while the API is away");
    let said = sync_fails(&agent);
    assert!(
        said.contains("Kubernetes API"),
        "a sync cannot be had now: {said}"
    );
    world
        .api
        .start_with(|_| {
            after(world);
            Ok(())
        })
        .unwrap();
    agent.sync_at_last().unwrap();
    check_after(world, &agent, "after it is back");
    let status = agent.wait_for_status(|status| !away(status)).unwrap();
    assert!(status.ready, "{:?}", status.conditions);
}

fn an_agent_starts_before_the_api(world: &World) {
    before(world);
    world.api.stop().unwrap();
    let agent = world.agent_with(&world.api.kubeconfig());
    let status = agent
        .wait_for_status(|status| !status.problems.is_empty())
        .unwrap();
    assert!(!status.ready && !status.datastore.loaded);
    world.api.start().unwrap();
    agent.sync_at_last().unwrap();
    check_before(world, &agent, "once there is an API");
    agent.wait_for_status(|status| status.ready).unwrap();
}

/// Changes happen behind the agent's back, and the API forgets how it came to them.
fn forgotten(gone: Gone) {
    let world = World::in_process();
    let server = world.server();
    before(&world);
    let agent = world.agent();
    check_before(&world, &agent, "at first");
    server.answer_gone(gone);
    server.stop().unwrap();
    after(&world);
    server.compact();
    let refused = [Pods, NetworkPolicies].map(|resource| server.served(resource).refused);
    server.start().unwrap();
    agent.sync_at_last().unwrap();
    check_after(&world, &agent, "after a new list");
    for (resource, before) in [Pods, NetworkPolicies].into_iter().zip(refused) {
        let served = server.served(resource);
        assert!(served.refused > before, "410 for {resource}: {served:?}");
    }
    agent
        .wait_for_status(|status| status.ready && status.problems.is_empty())
        .unwrap();
    // The watches are new ones that work.
    world.put_policy("web-to-db", &web_to_db());
    agent.sync().unwrap();
    check("and goes on", &to_db(&world, true, true));
}

#[test]
fn a_version_that_is_forgotten_by_event() {
    forgotten(Gone::Event);
}

#[test]
fn a_version_that_is_forgotten_by_status() {
    forgotten(Gone::Status);
}

#[test]
fn watches_that_break_again_and_again_miss_nothing() {
    let world = World::in_process();
    let server = world.server();
    before(&world);
    let agent = world.agent();
    for round in 1..=5_u64 {
        let before = server.served(NetworkPolicies).watches;
        server.drop_watches();
        let allows = round % 2 == 0;
        if allows {
            world.put_policy("web-to-db", &web_to_db());
        } else {
            world.delete(NetworkPolicies, "shop", "web-to-db");
        }
        agent.sync_at_last().unwrap();
        check(&format!("round {round}"), &to_db(&world, allows, false));
        server.await_served(NetworkPolicies, |served| {
            served.watches > before && served.watching == 1
        });
    }
}

#[test]
fn what_happens_is_enforced_without_a_sync() {
    let world = World::in_process();
    before(&world);
    let agent = world.agent();
    check_before(&world, &agent, "at first");
    let revision = agent.status().unwrap().revision;
    after(&world);
    let settled =
        |status: &Status| status.revision > revision && status.enforced_revision == status.revision;
    // Four changes, which may come in any number of steps.
    let policies = || agent.ask(&["get", "networkpolicies"]).unwrap();
    agent
        .wait_for_status(|status| {
            let policies = policies();
            settled(status) && policies.contains("team-to-db") && !policies.contains("web-to-db")
        })
        .unwrap();
    agent.wait_for_status(settled).unwrap();
    check("on its own", &to_db(&world, false, true));
}
