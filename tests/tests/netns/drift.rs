//! Somebody removes or changes what is the agent's: it notices, says so, and puts it right.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{SchedClassifier, TcAttachType};
use policy_common::map;

use super::{Cast, DENY_INGRESS, Form, What, check, in_both_forms};
use What::Tcp;
use portcullis_tests::netns::{Agent, Hook, PATIENCE, Program, get};

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
        let mut rows: Array<_, [u64; 6]> = Map::Array(data).try_into().unwrap();
        rows.set(ifindex, [0; 6], 0).unwrap();
    });
    assert_enforced(&cast, "written again");
}

#[test]
fn ours_is_the_first_program_again() {
    let cast = Cast::new(Form::Routed);
    let (agent, _) = enforced(&cast);
    // It lets everything through, and has nobody asked after it.
    let other = Program {
        action: 0,
        ..Program::default()
    };
    let mut attached = None;
    await_repair(&cast, &agent, "program", || {
        let pins = cast.node.bpffs().join("foreign");
        let other = other.attach(cast.node.netns(), DB, false, Hook::TcxFirst, &pins);
        attached = Some(other.unwrap());
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
    assert_eq!((names[0], names.len()), ("to_pod", 2), "{names:?}");
    assert_enforced(&cast, "before the other");
    drop(attached);
    assert_enforced(&cast, "alone again");
}

/// How often each repair is timed.
const ROUNDS: usize = 20;

/// Times repairs, and prints the median and the longest.
#[track_caller]
fn time_repairs(what: &str, longest: Duration, mut repair: impl FnMut() -> Duration) {
    let mut times: Vec<_> = (0..ROUNDS).map(|_| repair()).collect();
    times.sort_unstable();
    let (median, worst) = (times[ROUNDS / 2], times[ROUNDS - 1]);
    println!("{what}: {ROUNDS} repairs, median {median:?}, longest {worst:?}");
    assert!(worst <= longest, "{what}: {times:?}");
}

/// What tc(8) shows of the filters that an interface has for what leaves by it.
fn filters(cast: &Cast, interface: &str) -> String {
    let mut show = cast.node.netns().command("tc");
    show.args(["filter", "show", "dev", interface, "egress"]);
    String::from_utf8(show.output().unwrap().stdout).unwrap()
}

/// How long a program is away whose clsact qdisc is deleted.
#[track_caller]
fn delete_clsact(cast: &Cast, interface: &str, program: &str) -> Duration {
    assert!(
        filters(cast, interface).contains(program),
        "{}",
        filters(cast, interface)
    );
    let delete = ["qdisc", "del", "dev", interface, "clsact"];
    cast.node.netns().script("tc", &delete, "").unwrap();
    let began = Instant::now();
    while !filters(cast, interface).contains(program) {
        assert!(
            began.elapsed() < REPAIR,
            "{program} at {interface} is not back"
        );
        thread::sleep(Duration::from_millis(1));
    }
    began.elapsed()
}

#[test]
fn a_clsact_qdisc_that_is_deleted_is_back_at_once() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let _outside = cast.node.add_outside("out", 9).unwrap();
    let by_clsact = [("PORTCULLIS_ATTACH_MODE", OsStr::new("clsact"))];
    let agent = Agent::start_with(&cast.node, &by_clsact).unwrap();
    let status = agent
        .wait_for_status(|status| status.ready && !status.exits.is_empty())
        .unwrap();
    let modes: Vec<_> = status.programs.iter().map(|at| &*at.mode).collect();
    assert_eq!(modes, ["clsact"; 3]);
    let uplink = &status.exits[0].interface;
    for (interface, program) in [(DB, "to_pod"), (uplink, "exit")] {
        let before = repairs(&cast, "program");
        let longest = Duration::from_millis(500);
        time_repairs(interface, longest, || {
            delete_clsact(&cast, interface, program)
        });
        let repaired = repairs(&cast, "program") - before;
        assert!(repaired >= ROUNDS as u64, "{interface}: {repaired}");
    }
    for parts in [
        ["no filter for", "shop/db", DB],
        ["no filter for exit", "interface=", uplink],
    ] {
        let line = agent.wait_for_log(|line| parts.iter().all(|part| line.contains(part)));
        line.unwrap();
    }
    assert_enforced(&cast, "repaired");

    // Somebody who goes on and on.
    let before = repairs(&cast, "program");
    for _ in 0..5 {
        let away = delete_clsact(&cast, DB, "to_pod");
        assert!(away < Duration::from_millis(500), "{away:?}");
        thread::sleep(Duration::from_secs(1));
    }
    assert_eq!(repairs(&cast, "program"), before + 5);
    assert_enforced(&cast, "repaired again and again");

    // One direction's filters alone.
    await_repair(&cast, &agent, "program", || {
        let delete = ["filter", "del", "dev", DB, "egress"];
        cast.node.netns().script("tc", &delete, "").unwrap();
    });
    assert_enforced(&cast, "its filters deleted");
    agent.stop().unwrap();
    super::uninstall::uninstall(&cast.node);
}

#[test]
fn a_tcx_link_that_is_detached_is_back_within_half_a_second() {
    if !super::has_tcx() {
        println!("skipped: this kernel has no TCX");
        return;
    }
    let cast = Cast::new(Form::Routed);
    let (agent, ifindex) = enforced(&cast);
    let pin = cast.node.bpffs().join(format!("links/{ifindex}-to_pod"));
    let attached = || {
        let query = || SchedClassifier::query_tcx(DB, TcAttachType::Egress).unwrap();
        let (_, programs) = cast.node.netns().enter(query);
        !programs.is_empty()
    };
    time_repairs("bpftool link detach", Duration::from_secs(2), || {
        let id = link_id(&pin).to_string();
        let began = Instant::now();
        let detach = ["link", "detach", "id", &id];
        cast.node.netns().script("bpftool", &detach, "").unwrap();
        while !attached() {
            assert!(began.elapsed() < REPAIR, "to_pod is not back");
            thread::sleep(Duration::from_millis(1));
        }
        let away = began.elapsed();
        // Its new pin comes after the link.
        agent.wait_for_status(|status| status.ready).unwrap();
        agent.sync().unwrap();
        away
    });
    assert_enforced(&cast, "attached again");
}

/// Filters run in the order of their priorities, and one may let a packet pass for good.
#[test]
fn a_filter_before_ours_hides_nothing() {
    for (mode, place) in [("auto", "tcx"), ("clsact", "pref 1 ")] {
        if mode == "auto" && !super::has_tcx() {
            println!("skipped: this kernel has no TCX");
            continue;
        }
        let cast = Cast::new(Form::Routed);
        cast.policy("default-deny", DENY_INGRESS);
        cast.policy("web-to-db", super::WEB_TO_DB);
        let by_clsact = [("PORTCULLIS_ATTACH_MODE", OsStr::new("clsact"))];
        let agent = Agent::start_with(&cast.node, &by_clsact).unwrap();
        let agent = match mode {
            // What is attached by clsact stays so, for as long as nothing is in its way.
            "auto" => {
                agent.kill().unwrap();
                Agent::start(&cast.node).unwrap()
            }
            _ => agent,
        };
        let pass = Program {
            action: 0,
            ..Program::default()
        };
        let mut attached = None;
        await_repair(&cast, &agent, "program", || {
            let pins = cast.node.bpffs().join("foreign");
            let pass = pass.attach(cast.node.netns(), DB, false, Hook::Clsact(3), &pins);
            attached = Some(pass.unwrap());
        });
        assert_enforced(&cast, "with a filter that passes everything");
        let status = agent.status().unwrap();
        let db = status.programs.iter().find(|at| at.interface == DB);
        let there = format!("{} {}", db.unwrap().mode, filters(&cast, DB));
        assert!(there.contains(place), "{there}");
        assert!(
            !there.contains("pref 50 "),
            "nothing is attached twice: {there}"
        );
        agent.stop().unwrap();
        super::uninstall::uninstall(&cast.node);
        assert!(!filters(&cast, DB).contains("to_pod"));
    }
}

#[test]
fn a_bridge_has_its_program_and_ifb_has_none() {
    let cast = Cast::new(Form::Bridge);
    let node = cast.node.netns();
    // Not every kernel has it.
    let has_ifb = node.ip("link add pcl-ifb type ifb").is_ok();
    let (agent, _) = enforced(&cast);
    let program = |name: &str| {
        let status = agent.wait_for_status(|status| status.ready).unwrap();
        let mut exits = status.exits.into_iter();
        exits
            .find(|exit| exit.interface == name)
            .map(|exit| exit.program)
    };
    assert_eq!(program("cni0").as_deref(), Some("from_node"));
    println!("ifb: {has_ifb}");
    assert_eq!(program("pcl-ifb"), None);
    node.ip("link add pcl-br type bridge").unwrap();
    agent
        .wait_for_status(|status| {
            let mut exits = status.exits.iter();
            exits.any(|exit| exit.interface == "pcl-br" && exit.state == "attached")
        })
        .unwrap();
    let new = delete_clsact(&cast, "pcl-br", "from_node");
    println!("a new bridge's: {new:?}");
    agent.stop().unwrap();
    let out = super::uninstall::uninstall(&cast.node);
    assert!(out.contains("removed from_node (program "), "{out}");
    assert!(!filters(&cast, "pcl-br").contains("from_node"));
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
    let pin = format!("links/{}-exit", exits[0].ifindex);
    let pin = cast.node.bpffs().join(pin);
    let has_exit = || {
        let query = || SchedClassifier::query_tcx(name, TcAttachType::Egress);
        let by_tcx = cast.node.netns().enter(query);
        let by_tcx = by_tcx.is_ok_and(|(_, programs)| !programs.is_empty());
        by_tcx || filters(&cast, name).contains("exit")
    };
    assert!(has_exit());
    await_repair(&cast, &agent, "program", || match pin.exists() {
        true => {
            let id = link_id(&pin).to_string();
            let detach = ["link", "detach", "id", &id];
            cast.node.netns().script("bpftool", &detach, "").unwrap();
        }
        false => {
            let delete = ["qdisc", "del", "dev", name, "clsact"];
            cast.node.netns().script("tc", &delete, "").unwrap();
        }
    });
    let deadline = Instant::now() + REPAIR;
    while !has_exit() {
        assert!(Instant::now() < deadline, "no exit at {name}");
        thread::sleep(Duration::from_millis(20));
    }
    let line = agent.wait_for_log(|line| line.contains("drifted") && line.contains(name));
    line.unwrap();
}
