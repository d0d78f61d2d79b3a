//! Somebody removes or changes what is the agent's: it notices, says so, and puts it right.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use policy_common::map;

use super::{Cast, DENY_INGRESS, Form, What, check, in_both_forms};
use What::Tcp;
use portcullis_tests::netns::{Agent, PATIENCE, get};

in_both_forms! {
    a_detached_program_is_attached_again
}

/// Longer than the agent takes from one look to the next.
const REPAIR: Duration = PATIENCE.saturating_mul(2);

fn repairs(cast: &Cast, what: &str) -> u64 {
    let page = get(cast.node.netns(), "/metrics").unwrap();
    page.value(&format!("portcullis_repairs_total{{what=\"{what}\"}}")) as u64
}

/// Waits until one more repair of this kind was counted, and then until all is enforced.
#[track_caller]
fn await_repair(cast: &Cast, agent: &Agent<'_>, what: &str, damage: impl FnOnce()) {
    let before = repairs(cast, what);
    damage();
    let deadline = Instant::now() + REPAIR;
    while repairs(cast, what) == before {
        assert!(Instant::now() < deadline, "{what} is not repaired");
        thread::sleep(Duration::from_millis(20));
    }
    agent.sync().unwrap();
    agent.wait_for_status(|status| status.ready).unwrap();
}

fn link_id(pin: &Path) -> u32 {
    let link = FdLink::from(PinnedLink::from_pin(pin).unwrap());
    link.info().unwrap().id()
}

/// The host side of db's veth.
const DB: &str = "pcl-veth2";

/// An agent that keeps tool from db, and the index of db's interface.
fn enforced(cast: &Cast) -> (Agent<'_>, u32) {
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(&cast.node).unwrap();
    let ifindex = ifindex_of_db(&agent);
    (agent, ifindex)
}

fn ifindex_of_db(agent: &Agent<'_>) -> u32 {
    let status = agent.status().unwrap();
    let db = status.programs.iter().find(|at| at.interface == DB);
    db.unwrap().ifindex
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

/// Detaches what judges packets to db.
pub(super) fn detach_and_await_repair(cast: &Cast, agent: &Agent<'_>) {
    let ifindex = ifindex_of_db(agent);
    let pin = cast.node.bpffs().join(format!("links/{ifindex}-to_pod"));
    await_repair(cast, agent, "program", || {
        let id = link_id(&pin).to_string();
        let bpftool = cast
            .node
            .netns()
            .script("bpftool", &["link", "detach", "id", &id], "");
        bpftool.unwrap();
    });
}

fn a_detached_program_is_attached_again(form: Form) {
    let cast = Cast::new(form);
    let (agent, _) = enforced(&cast);
    detach_and_await_repair(&cast, &agent);
    assert_enforced(&cast, "detached by bpftool, and repaired");
    let line = agent
        .wait_for_log(|line| line.contains("drifted, and is repaired"))
        .unwrap();
    for part in ["shop/db", DB, "to_pod is not among []"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    agent.kill().unwrap();
    assert_enforced(&cast, "and pinned again: without an agent, too");
}

#[test]
fn pins_are_put_back() {
    let cast = Cast::new(Form::Routed);
    let (agent, ifindex) = enforced(&cast);
    let link = cast.node.bpffs().join(format!("links/{ifindex}-from_pod"));
    let id = link_id(&link);
    await_repair(&cast, &agent, "link_pin", || {
        fs::remove_file(&link).unwrap()
    });
    assert_eq!(link_id(&link), id, "the same link, never detached");

    let table = cast.node.bpffs().join(map::PEERS.name);
    let id_of = || {
        let pinned = MapData::from_pin(&table).unwrap();
        pinned.info().unwrap().id()
    };
    let id = id_of();
    await_repair(&cast, &agent, "table_pin", || {
        fs::remove_file(&table).unwrap()
    });
    assert_eq!(id_of(), id);
    await_repair(&cast, &agent, "table_pin", || {
        // Another table under its name.
        fs::remove_file(&table).unwrap();
        let other = MapData::from_pin(cast.node.bpffs().join(map::RULES.name)).unwrap();
        other.pin(&table).unwrap();
    });
    assert_eq!(id_of(), id);
    assert_eq!(repairs(&cast, "program"), 0);
    assert_enforced(&cast, "all the while");
}

#[test]
fn an_endpoints_row_is_written_again() {
    let cast = Cast::new(Form::Routed);
    let (agent, ifindex) = enforced(&cast);
    await_repair(&cast, &agent, "endpoint_row", || {
        let data = MapData::from_pin(cast.node.bpffs().join(map::ENDPOINTS.name)).unwrap();
        let mut rows: Array<_, [u64; 5]> = Map::Array(data).try_into().unwrap();
        rows.set(ifindex, [0; 5], 0).unwrap();
    });
    assert_enforced(&cast, "written again");
}

#[test]
fn ours_is_the_first_program_again() {
    let cast = Cast::new(Form::Routed);
    let (agent, _) = enforced(&cast);
    let status = agent.status().unwrap();
    let pin = cast.node.bpffs().join("other");
    let id = status.programs[0].from_pod_program_id.to_string();
    let pin_name = pin.display().to_string();
    let bpftool = cast
        .node
        .netns()
        .script("bpftool", &["prog", "pin", "id", &id, &pin_name], "");
    bpftool.unwrap();
    // Any program will do; where `to_pod` is, this one drops what is from another address than db's.
    let mut other = SchedClassifier::from_pin(&pin).unwrap();
    fs::remove_file(&pin).unwrap();
    await_repair(&cast, &agent, "program", || {
        cast.node.netns().enter(|| {
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            other
                .attach_with_options(DB, TcAttachType::Egress, order)
                .unwrap();
        });
    });
    let (_, programs) = cast
        .node
        .netns()
        .enter(|| SchedClassifier::query_tcx(DB, TcAttachType::Egress))
        .unwrap();
    let names: Vec<_> = programs
        .iter()
        .filter_map(|program| program.name_as_str())
        .collect();
    assert_eq!(names, ["to_pod", "from_pod"]);
    drop(other);
    assert_enforced(&cast, "alone again");
}

#[test]
fn an_exit_that_was_taken_away_comes_back() {
    let cast = Cast::new(Form::Routed);
    let _outside = cast.node.add_outside("out", 9).unwrap();
    let (agent, _) = enforced(&cast);
    let exits = agent
        .wait_for_status(|status| status.ready && !status.exits.is_empty())
        .unwrap()
        .exits;
    let name = &exits[0].interface;
    let node = cast.node.netns();
    let filters = || {
        let mut show = node.command("tc");
        let shown = show
            .args(["filter", "show", "dev", name, "egress"])
            .output();
        String::from_utf8(shown.unwrap().stdout).unwrap()
    };
    assert!(filters().contains("exit"), "{}", filters());
    await_repair(&cast, &agent, "program", || {
        node.script("tc", &["qdisc", "del", "dev", name, "clsact"], "")
            .unwrap();
    });
    let deadline = Instant::now() + REPAIR;
    while !filters().contains("exit") {
        assert!(Instant::now() < deadline, "no exit at {name}");
        thread::sleep(Duration::from_millis(20));
    }
}
