//! Programs of others on the same hooks: beside ours they change nothing; what damages the carrier opens nothing.

use std::thread;
use std::time::{Duration, Instant};

use portcullis_tests::netns::kube_proxy::Mode;
use portcullis_tests::netns::{Attached, Hook, PATIENCE, Program};

use super::cases::{Needs, try_all};
use super::cast::Cast;
use super::flows;
use super::foreign::Surrounding;
use super::report::Report;
use super::world::{Base, World};

/// TC_ACT_OK ends the hook for those behind; TC_ACT_UNSPEC says nothing.
const OK: i32 = 0;
const UNSPEC: i32 = -1;

const HOOKS: [Hook; 4] = [
    Hook::TcxFirst,
    Hook::TcxLast,
    Hook::Clsact(1),
    Hook::Clsact(60_000),
];

fn program(action: i32) -> Program {
    Program {
        action,
        ..Program::default()
    }
}

/// At both hooks of every interface of the node that has programs of ours.
fn attach(cast: &Cast, program: Program, hook: Hook) -> Vec<Attached> {
    let interfaces = (1..=5)
        .map(|number| format!("pcl-veth{number}"))
        .chain((6..=7).map(|number| format!("pcl-out{number}")));
    interfaces
        .flat_map(|interface| {
            [true, false].map(|ingress| {
                let (netns, pins) = (cast.node.netns(), cast.node.bpffs().join("foreign"));
                let attached = program.attach(netns, &interface, ingress, hook, &pins);
                attached.unwrap()
            })
        })
        .collect()
}

/// Counted reasons that tell of a carrier which did not arrive as it was sent.
fn noticed(world: &World<'_>) -> u64 {
    let counters = world.agent.status().unwrap().counters;
    let rows = counters.iter().filter(|row| {
        matches!(
            row.reason.as_str(),
            "carrier_damaged" | "carrier_foreign" | "service_unverified"
        )
    });
    rows.map(|row| row.packets).sum()
}

fn around(base: Base) -> Report {
    let mut report = Report::default();
    let plain = Surrounding::new("", Mode::Nftables, Vec::new());
    let cast = base.cast();
    let before: Vec<_> = HOOKS
        .iter()
        .flat_map(|hook| attach(&cast, program(OK), *hook))
        .collect();
    let world = World::new(base, &cast);
    world
        .proxy(Mode::Nftables)
        .apply(cast.node.netns())
        .unwrap();
    let all = |name: &str, report: &mut Report| {
        let (cells, mut wrong) = try_all(&cast, Needs::Masquerade);
        let (more, bad) = flows::revoke(&world, &plain);
        wrong.extend(bad);
        report.add(&format!("{}: {name}", base.name()), cells + more, &wrong);
    };
    all(
        "programs that end the hook, there before the agent",
        &mut report,
    );
    drop(before);
    for action in [UNSPEC, OK] {
        for hook in HOOKS {
            let _attached = attach(&cast, program(action), hook);
            let name = format!("programs that return {action}, {hook:?}, after the agent");
            if hook == Hook::TcxFirst && action == OK {
                // Whoever comes first ends the hook for us, until the agent has put ours before it again.
                let deadline = Instant::now() + PATIENCE;
                while !try_all(&cast, Needs::Masquerade).1.is_empty() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            all(&name, &mut report);
        }
    }
    let damages = [
        (
            "forgets the hash",
            Program {
                forgets_hash: true,
                ..program(UNSPEC)
            },
        ),
        (
            "sets another hash",
            Program {
                hash: Some(0x1234_5678),
                ..program(UNSPEC)
            },
        ),
        (
            "clears tc_index",
            Program {
                tc_index: Some(0),
                ..program(UNSPEC)
            },
        ),
        (
            "sets a tag of its own",
            Program {
                tc_index: Some(0xb003),
                ..program(UNSPEC)
            },
        ),
        (
            "forgets the hash and clears tc_index",
            Program {
                forgets_hash: true,
                tc_index: Some(0),
                ..program(UNSPEC)
            },
        ),
    ];
    for (what, damage) in damages {
        for hook in [Hook::TcxLast, Hook::Clsact(60_000)] {
            let counted = noticed(&world);
            // Where packets come in: behind from_pod.
            let _attached: Vec<_> = (1..=5)
                .map(|number| {
                    let (netns, pins) = (cast.node.netns(), cast.node.bpffs().join("foreign"));
                    let interface = format!("pcl-veth{number}");
                    damage.attach(netns, &interface, true, hook, &pins).unwrap()
                })
                .collect();
            let (cells, wrong) = try_all(&cast, Needs::Masquerade);
            // Closed is accepted here, and nowhere else.
            let (opened, closed): (Vec<_>, Vec<_>) = wrong
                .into_iter()
                .partition(|line| line.contains("expected silent"));
            let mut opened = opened;
            let seen = noticed(&world) - counted;
            if !closed.is_empty() && seen == 0 {
                opened.push(format!(
                    "  {} cells are closed, and nothing says why",
                    closed.len()
                ));
            }
            let name = format!("{}: {what} behind ours, {hook:?}", base.name());
            println!("{name}: {} closed, {seen} packets counted", closed.len());
            report.add(&name, cells, &opened);
        }
    }
    report
}

#[test]
fn beside_programs_of_others() {
    let bases = [Base::Routed, Base::Bridge];
    let reports: Vec<_> = thread::scope(|scope| {
        let threads = bases.map(|base| scope.spawn(move || around(base)));
        threads.map(|thread| thread.join().unwrap()).into()
    });
    let mut all = Report::default();
    for report in &reports {
        all.merge(report);
    }
    all.finish("programs of others");
}
