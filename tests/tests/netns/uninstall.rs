//! `policy-agent uninstall`: nothing of ours stays in the kernel or on disk, and it says so truly.
//!
//! What it says is held against what aya and tc(8) find, by the ids that programs and maps had before:
//! other tests' agents have programs and maps of the same names on this machine.

use std::collections::BTreeSet;
use std::fs;
use std::process::Output;

use aya::maps::loaded_maps;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};

use super::{Cast, DENY_INGRESS, Form, Node, What, check, in_both_forms};
use What::{Ping, Tcp};
use portcullis_tests::netns::Agent;

in_both_forms! {
    nothing_is_left_and_traffic_is_not_judged
}

/// What it printed, and its exit code.
fn said(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
    (
        text(&output.stdout),
        text(&output.stderr),
        output.status.code(),
    )
}

/// Uninstalls and expects that nothing is left.
pub(super) fn uninstall(node: &Node) -> String {
    let (out, error, code) = said(&Agent::uninstall(node).unwrap());
    assert_eq!((error.as_str(), code), ("", Some(0)), "{out}");
    assert!(out.contains("nothing is left: "), "{out}");
    out
}

/// Programs and maps, by the kernel's ids.
#[derive(Default)]
pub(super) struct Loaded {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Loaded {
    /// The agent's programs with all their maps, and what else it has pinned as one.
    pub(super) fn of(agent: &Agent<'_>) -> Self {
        let mut loaded = Self::default();
        loaded.add(agent);
        loaded
    }

    /// Another agent's as well.
    pub(super) fn add(&mut self, agent: &Agent<'_>) {
        let status = agent.status().unwrap();
        let programs: BTreeSet<u32> = status
            .programs
            .iter()
            .flat_map(|at| [at.from_pod_program_id, at.to_pod_program_id])
            .collect();
        let maps = loaded_programs()
            .flatten()
            .filter(|info| programs.contains(&info.id()))
            .flat_map(|info| info.map_ids().unwrap().unwrap());
        self.maps.extend(maps);
        let pinned = policy_common::map::ALL.iter().map(|spec| {
            let pin = agent.node().bpffs().join(spec.name);
            aya::maps::MapInfo::from_pin(pin).unwrap().id()
        });
        self.maps.extend(pinned);
        self.programs.extend(programs);
    }

    /// How many of them the kernel still has. What comes and goes meanwhile is none of them.
    pub(super) fn still(&self) -> (usize, usize) {
        let programs = loaded_programs().flatten().map(|info| info.id());
        let maps = loaded_maps().flatten().map(|info| info.id());
        (
            programs.filter(|id| self.programs.contains(id)).count(),
            maps.filter(|id| self.maps.contains(id)).count(),
        )
    }
}

fn nothing_is_left_and_traffic_is_not_judged(form: Form) {
    let cast = Cast::new(form);
    let Cast {
        node,
        web,
        db,
        tool,
    } = &cast;
    cast.policy("default-deny", DENY_INGRESS);
    cast.policy("web-to-db", super::WEB_TO_DB);
    let agent = Agent::start(node).unwrap();
    let loaded = Loaded::of(&agent);
    let (programs, maps) = loaded.still();
    assert!(programs == 2 && maps > 10, "{programs} and {maps}");

    let (out, error, code) = said(&Agent::uninstall(node).unwrap());
    assert_eq!((out.as_str(), code), ("", Some(1)), "{error}");
    assert!(
        error.contains("an agent (pid ") && error.contains("stop it first"),
        "{error}"
    );
    agent.sync().unwrap();
    let enforced = [(web, db, Tcp(80), true), (tool, db, Tcp(80), false)];
    check("the agent goes on", &enforced);
    agent.stop().unwrap();
    check("enforced without an agent", &enforced);

    let out = uninstall(node);
    for part in [
        "removed from_pod (program ",
        "removed to_pod (program ",
        " at pcl-veth1 (ifindex ",
        &format!("removed pin {}/endpoints\n", node.bpffs().display()),
        &format!("removed directory {}\n", node.bpffs().display()),
        &format!(
            "removed file {}/agent.lock\n",
            node.run_directory().display()
        ),
        &format!(
            "let go of the {} programs and {maps} maps",
            programs + usize::from(form == Form::Bridge)
        ),
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert_eq!(loaded.still(), (0, 0));
    assert!(!node.bpffs().exists() && !node.run_directory().exists());
    assert_documented(node, &out);
    let everything = [Tcp(80), Ping].map(|what| (tool, db, what, true));
    check("not judged any more", &everything);

    let out = uninstall(node);
    assert!(
        out.starts_with("there is nothing to remove\n") && !out.contains("removed"),
        "{out}"
    );
    let _again = Agent::start(node).unwrap();
    check("and installed again", &enforced);
}

/// The sentence that proves it is the document's, but for the node's directories.
fn assert_documented(node: &Node, out: &str) {
    let document = include_str!("../../../docs/uninstall.md");
    let proof = out.lines().find(|line| line.starts_with("nothing is left"));
    let [bin, conf] = Agent::cni_directories(node).map(|(_, directory)| directory);
    let places = [
        (node.bpffs(), "/sys/fs/bpf/portcullis"),
        (&node.run_directory(), "/run/portcullis"),
        (&conf, "/etc/cni/net.d"),
        (&bin, "/opt/cni/bin"),
    ];
    let proof = places
        .iter()
        .fold(proof.unwrap().to_owned(), |proof, (here, usual)| {
            proof.replace(&here.display().to_string(), usual)
        });
    assert!(document.lines().any(|line| line == proof), "{proof}");
}

#[test]
fn after_an_agent_that_was_killed() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let loaded = Loaded::of(&agent);
    agent.kill().unwrap();
    let socket = cast.node.run_directory().join("agent.sock");
    assert!(socket.exists());
    let out = uninstall(&cast.node);
    assert!(
        out.contains(&format!("removed file {}\n", socket.display())),
        "{out}"
    );
    assert_eq!(loaded.still(), (0, 0));
    check("", &[(&cast.tool, &cast.db, Tcp(80), true)]);
}

#[test]
fn what_a_process_still_holds_is_named() {
    let cast = Cast::new(Form::Routed);
    let agent = Agent::start(&cast.node).unwrap();
    agent.stop().unwrap();
    let held = aya::maps::MapData::from_pin(cast.node.bpffs().join("peers")).unwrap();
    let id = held.info().unwrap().id();
    let (out, error, code) = said(&Agent::uninstall(&cast.node).unwrap());
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains(&format!("left    map peers (id {id})")),
        "{out}"
    );
    assert!(!out.contains("nothing is left"), "{out}");
    assert!(error.contains("not everything could be removed"), "{error}");
    drop(held);
    uninstall(&cast.node);
}

/// As an agent leaves it on a kernel without TCX.
#[test]
fn filters_and_the_qdiscs_that_the_agent_added() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    let agent = Agent::start(&cast.node).unwrap();
    let loaded = Loaded::of(&agent);
    let status = agent.status().unwrap();
    agent.stop().unwrap();
    let bpffs = cast.node.bpffs();
    let interface = |name: &str| {
        let found = status.programs.iter().find(|at| at.interface == name);
        found.unwrap()
    };
    // Alone on its qdisc, beside another's filter, and on a qdisc that somebody else added.
    let names = ["pcl-veth1", "pcl-veth2", "pcl-veth3"];
    fs::create_dir_all(bpffs.join("clsact")).unwrap();
    for name in names {
        let at = interface(name);
        for (program, id, attach_type) in [
            ("from_pod", at.from_pod_program_id, TcAttachType::Ingress),
            ("to_pod", at.to_pod_program_id, TcAttachType::Egress),
        ] {
            let pin = bpffs.join(format!("links/{}-{program}", at.ifindex));
            fs::remove_file(&pin).unwrap();
            let (id, pin_name) = (id.to_string(), pin.display().to_string());
            let bpftool =
                cast.node
                    .netns()
                    .script("bpftool", &["prog", "pin", "id", &id, &pin_name], "");
            bpftool.unwrap();
            cast.node
                .netns()
                .enter(|| attach_by_clsact(&pin, name, attach_type));
        }
        if name != "pcl-veth3" {
            fs::create_dir(bpffs.join(format!("clsact/{}", at.ifindex))).unwrap();
        }
    }
    tc(
        &cast.node,
        "filter add dev pcl-veth2 egress prio 60 bpf direct-action bytecode '1,6 0 0 0'",
    );
    check("enforced", &[(&cast.tool, &cast.db, Tcp(80), false)]);

    let out = uninstall(&cast.node);
    for part in [
        " at pcl-veth1 (ifindex ",
        "clsact)\n",
        "removed clsact qdisc at pcl-veth1 ",
    ] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert_eq!(loaded.still(), (0, 0));
    assert!(!bpffs.exists());
    check("not judged", &[(&cast.tool, &cast.db, Tcp(80), true)]);
    let qdiscs = tc(&cast.node, "qdisc show");
    let has_qdisc = |name: &str| {
        let wanted = format!("qdisc clsact ffff: dev {name} ");
        qdiscs.contains(&wanted)
    };
    assert_eq!(names.map(has_qdisc), [false, true, true], "{qdiscs}");
    let filters = tc(&cast.node, "filter show dev pcl-veth2 egress");
    assert!(
        filters.contains("pref 60 ") && !filters.contains("to_pod"),
        "{filters}"
    );
}

/// Attaches a pinned program as agents do below 6.6.
fn attach_by_clsact(pin: &std::path::Path, interface: &str, attach_type: TcAttachType) {
    // Already there for the other direction.
    let _there = qdisc_add_clsact(interface);
    let mut program = SchedClassifier::from_pin(pin).unwrap();
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: 50,
        handle: TcHandle::new(0, 1),
        classid: None,
    });
    let id = program
        .attach_with_options(interface, attach_type, options)
        .unwrap();
    // Dropped, it would detach.
    std::mem::forget(program.take_link(id).unwrap());
}

/// Runs tc(8) on the node and gives what it prints.
fn tc(node: &Node, line: &str) -> String {
    let output = node
        .netns()
        .command("sh")
        .args(["-c", &format!("tc {line}")])
        .output()
        .unwrap();
    let (out, error, code) = said(&output);
    assert_eq!(code, Some(0), "tc {line}: {error}");
    out
}
