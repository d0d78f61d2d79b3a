//! The packet rows: tables by hand, packets by test run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::{ProgramFd, SchedClassifier};
use ipnet::{IpNet, Ipv4Net};
use policy_agent::dataplane::DataplaneConfig;
use policy_common::address::{AddressV4, Identity};
use policy_common::bench::Rotation;
use policy_common::endpoint::Endpoint;
use policy_common::policy::{PeerKey, PolicyHeader, RuleBits};
use policy_common::port::{PortBlock, PortKey};
use policy_common::verdict::{Direction, Reason};
use policy_core::op::Op;

use super::floor::Floor;
use super::report::{Mark, Row};
use super::services;
use crate::packet::{Kind, flags, frame};
use crate::testrun::{LOOPBACK, Machine};

/// Runs of a program in one measurement.
pub(super) const TIMES: u32 = 200_000;
/// The endpoint's address, and the first address of its peers.
const LOCAL: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 9);
pub(super) const PEERS: u32 = 0x0a01_0000;
/// Addresses that no rule names.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 8080;
/// Sizes of flow tables, the defaults: of two-way flows, which hold 64k at rest, and of one-way flows, in
/// which the new flows here evict each other.
pub(super) const RESTING: u32 = 131_072;
const EVICTING: u32 = 65_536;

/// One row's way of being measured.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) mark: Option<Mark>,
    pub(super) measure: Box<dyn FnMut() -> Result<u32>>,
}

/// Measures all packet rows.
pub(super) fn measure(floor_object: &Path, rounds: usize) -> Result<Vec<Row>> {
    let mut cases = floors(floor_object)?;
    cases.extend(fast_path(floor_object)?);
    for (name, peers) in [
        ("new flow, 10 peers", 10),
        ("new flow, 1k peers", 1_000),
        ("new flow, 10k peers", 10_000),
        ("new flow, 100k peers", 100_000),
    ] {
        cases.push(new_flow(floor_object, name, peers, 1)?);
    }
    for (name, rules) in [
        ("new flow, 1 rule", 1),
        ("new flow, 100 rules", 100),
        ("new flow, 1000 rules", 1_000),
    ] {
        cases.push(new_flow(floor_object, name, 10, rules)?);
    }
    cases.push(ip_block(floor_object)?);
    cases.extend(denied(floor_object)?);
    cases.extend(services::cases()?);
    let mut samples: Vec<Vec<u32>> = cases.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        eprintln!(
            "round {round} of {rounds}{}",
            if round == 0 { " (warming up)" } else { "" }
        );
        let count = cases.len();
        for step in 0..count {
            // A different beginning each round, and every other round backwards.
            let turned = (step + round * 7) % count;
            let index = if round % 2 == 0 {
                turned
            } else {
                count - 1 - turned
            };
            let nanoseconds =
                (cases[index].measure)().with_context(|| format!("row {}", cases[index].name))?;
            if round > 0 {
                samples[index].push(nanoseconds);
            }
        }
    }
    Ok(cases
        .into_iter()
        .zip(samples)
        .map(|(case, mut samples)| {
            samples.sort_unstable();
            Row {
                name: case.name.to_owned(),
                median: f64::from(samples[samples.len() / 2]),
                unit: "ns",
                mark: case.mark,
            }
        })
        .collect())
}

pub(super) fn tcp(remote: Ipv4Addr, tcp_flags: u8) -> Vec<u8> {
    let local = SocketAddr::new(LOCAL.into(), 40_000);
    frame(
        local,
        SocketAddr::new(remote.into(), PORT),
        Kind::Tcp(tcp_flags),
    )
}

pub(super) fn reply(remote: Ipv4Addr) -> Vec<u8> {
    let local = SocketAddr::new(LOCAL.into(), 40_000);
    frame(
        SocketAddr::new(remote.into(), PORT),
        local,
        Kind::Tcp(flags::ACK),
    )
}

fn rotate_ports() -> Rotation {
    Rotation {
        seed: 1,
        first_port: 0,
        ports: 65_536,
        first_peer: 0,
        peers: 0,
    }
}

fn rotate_peers(peers: u32) -> Rotation {
    Rotation {
        seed: 1,
        first_port: 0,
        ports: 65_536,
        first_peer: PEERS,
        peers,
    }
}

fn floors(object: &Path) -> Result<Vec<Case>> {
    let established = tcp(Ipv4Addr::from(PEERS), flags::ACK);
    let mut cases = Vec::new();
    let mut direct = |name, program: &'static str, flows, prefixes: u32| -> Result<()> {
        let mut floor = Floor::load(object, flows)?;
        let packet = established.clone();
        floor.fill_prefixes(prefixes)?;
        floor.run("floor_insert", &packet, 1)?;
        let measure = Box::new(move || floor.run(program, &packet, TIMES));
        cases.push(Case {
            name,
            mark: None,
            measure,
        });
        Ok(())
    };
    direct("floor: empty program", "floor_empty", EVICTING, 0)?;
    direct("floor: one array", "floor_array", EVICTING, 0)?;
    direct("floor: parse, one LRU hit", "floor_lru", RESTING, 0)?;
    direct(
        "floor: parse, LPM of 10 prefixes",
        "floor_lpm",
        EVICTING,
        10,
    )?;
    direct(
        "floor: parse, LPM of 10k prefixes",
        "floor_lpm",
        EVICTING,
        10_000,
    )?;
    let mut rotating = |name, program, flows, rotation, prefixes| -> Result<()> {
        let mut floor = Floor::load(object, flows)?;
        let packet = established.clone();
        floor.fill_prefixes(prefixes)?;
        let fill = floor.fd("floor_insert")?;
        floor.run_rotating(&fill, rotation, &packet, 8 * 65_536)?;
        let next = floor.fd(program)?;
        let measure = Box::new(move || floor.run_rotating(&next, rotation, &packet, TIMES));
        cases.push(Case {
            name,
            mark: None,
            measure,
        });
        Ok(())
    };
    let ports = rotate_ports();
    rotating(
        "floor: rotate, empty program",
        "floor_empty",
        EVICTING,
        ports,
        0,
    )?;
    rotating(
        "floor: rotate, parse, one LRU hit of 64k",
        "floor_lru",
        RESTING,
        ports,
        0,
    )?;
    rotating(
        "floor: rotate, parse, LRU insert, evicting",
        "floor_insert",
        EVICTING,
        rotate_peers(10),
        0,
    )?;
    rotating(
        "floor: rotate, parse, LPM of 10k prefixes",
        "floor_lpm",
        EVICTING,
        rotate_peers(10_000 << 8),
        10_000,
    )?;
    Ok(cases)
}

/// A machine with one endpoint on the loopback interface, isolated as the policy ids say.
fn machine(flows: u32, ingress_policy: u32, egress_policy: u32) -> Result<Machine> {
    machine_with(
        DataplaneConfig::default(),
        flows,
        ingress_policy,
        egress_policy,
    )
}

/// As [`machine`], with a configuration of its own.
pub(super) fn machine_with(
    mut config: DataplaneConfig,
    flows: u32,
    ingress_policy: u32,
    egress_policy: u32,
) -> Result<Machine> {
    for name in ["flows_v4", "flows_new_v4"] {
        config.capacities.insert(name.to_owned(), flows);
    }
    let mut machine = Machine::with(config)?;
    machine.apply(&[Op::PutEndpoint {
        ifindex: LOOPBACK,
        endpoint: endpoint(ingress_policy, egress_policy),
    }])?;
    Ok(machine)
}

fn endpoint(ingress_policy: u32, egress_policy: u32) -> Endpoint {
    Endpoint {
        epoch: 1,
        id: 1,
        ingress_policy,
        egress_policy,
        flags: Endpoint::HAS_IPV4,
        ipv4: AddressV4 {
            octets: LOCAL.octets(),
        },
        ..Endpoint::default()
    }
}

/// Policy 1: `rules` rules, each for one port and the peers' identity; the last is for `PORT`.
pub(super) fn policy(rules: u32) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut everyone = RuleBits::EMPTY;
    for rule in 0..rules {
        everyone.set(rule);
        let mut bits = RuleBits::EMPTY;
        bits.set(rule);
        let first = if rule + 1 == rules {
            PORT
        } else {
            10_000 + rule as u16
        };
        let key = PortKey::block(1, 6, PortBlock { first, bits: 16 });
        ops.push(Op::PutPort {
            key,
            bits: Box::new(bits),
        });
    }
    let header = PolicyHeader {
        flags: PolicyHeader::VALID | PolicyHeader::ISOLATED | PolicyHeader::UNKNOWN_MATCHES_NONE,
        next_page: 0,
        network_policy_start: 0,
        baseline_start: rules as u16,
        rules: rules as u16,
        _pad: 0,
        first_count: 1,
    };
    ops.push(Op::PutPolicy { id: 1, header });
    let key = PeerKey {
        policy: 1,
        identity: 1,
    };
    ops.push(Op::PutPeer {
        key,
        bits: Box::new(everyone),
    });
    ops
}

pub(super) fn peers(count: u32) -> impl Iterator<Item = Op> {
    (PEERS..PEERS + count).map(|address| Op::PutAddress {
        address: IpAddr::V4(Ipv4Addr::from(address)),
        identity: Identity { id: 1 },
    })
}

fn program(machine: &mut Machine, name: &str) -> Result<ProgramFd> {
    let program: &SchedClassifier = machine
        .dataplane
        .ebpf_mut()
        .program(name)
        .context("no such program")?
        .try_into()?;
    Ok(program.fd()?.try_clone()?)
}

/// Opens one flow, so that its packets are established ones.
fn establish(machine: &mut Machine, remote: Ipv4Addr) -> Result<()> {
    expect(
        machine,
        Direction::Egress,
        &tcp(remote, flags::SYN),
        Reason::PolicyAllowed,
    )?;
    expect(
        machine,
        Direction::Ingress,
        &reply(remote),
        Reason::Established,
    )?;
    expect(
        machine,
        Direction::Egress,
        &tcp(remote, flags::ACK),
        Reason::Established,
    )
}

pub(super) fn expect(
    machine: &mut Machine,
    direction: Direction,
    packet: &[u8],
    wanted: Reason,
) -> Result<()> {
    let reason = machine.run(direction, LOOPBACK, packet)?.reason;
    ensure!(
        reason == wanted,
        "expected {wanted:?}, and it was {reason:?}"
    );
    Ok(())
}

fn fast_path(object: &Path) -> Result<Vec<Case>> {
    let remote = Ipv4Addr::from(PEERS);
    let mut cases = Vec::new();
    let mut direct = |name, mut machine: Machine, direction, packet: Vec<u8>, wanted, mark| {
        let measure = Box::new(move || {
            expect(&mut machine, direction, &packet, wanted)?;
            Ok(machine.repeat(direction, LOOPBACK, &packet, TIMES)?.1)
        });
        cases.push(Case {
            name,
            mark: Some(mark),
            measure,
        });
    };
    let unisolated = || Mark::Times(1.5, "floor: one array", None);
    let packet = tcp(remote, flags::ACK);
    let (name, wanted) = ("un-isolated, from_pod", Reason::NotIsolated);
    direct(
        name,
        machine(RESTING, 0, 0)?,
        Direction::Egress,
        packet.clone(),
        wanted,
        unisolated(),
    );
    let name = "un-isolated, to_pod";
    direct(
        name,
        machine(RESTING, 0, 0)?,
        Direction::Ingress,
        reply(remote),
        wanted,
        unisolated(),
    );

    let hot = || Mark::Times(1.25, "floor: parse, one LRU hit", None);
    let recording = || -> Result<Machine> {
        let mut machine = machine(RESTING, 0, 0)?;
        machine.apply(&[Op::PutEndpoint {
            ifindex: LOOPBACK,
            endpoint: Endpoint {
                flags: Endpoint::HAS_IPV4 | Endpoint::RECORD,
                ..endpoint(0, 0)
            },
        }])?;
        establish(&mut machine, remote)?;
        Ok(machine)
    };
    let wanted = Reason::Established;
    direct(
        "un-isolated, recording, from_pod",
        recording()?,
        Direction::Egress,
        packet.clone(),
        wanted,
        hot(),
    );
    direct(
        "un-isolated, recording, to_pod",
        recording()?,
        Direction::Ingress,
        reply(remote),
        wanted,
        hot(),
    );
    let isolated = || -> Result<Machine> {
        let mut machine = machine(RESTING, 1, 1)?;
        machine.apply(&policy(1))?;
        machine.apply(&peers(1).collect::<Vec<_>>())?;
        establish(&mut machine, remote)?;
        Ok(machine)
    };
    direct(
        "established, hot",
        isolated()?,
        Direction::Egress,
        packet.clone(),
        wanted,
        hot(),
    );
    direct(
        "reply, hot",
        isolated()?,
        Direction::Ingress,
        reply(remote),
        wanted,
        hot(),
    );

    // 64k flows: opened by rotating SYNs, answered by an established packet each.
    let mut machine = isolated()?;
    let mut floor = Floor::load(object, EVICTING)?;
    for port in 0..=u16::MAX {
        let mut opening = tcp(remote, flags::SYN);
        opening[34..36].copy_from_slice(&port.to_be_bytes());
        let mut answer = reply(remote);
        answer[36..38].copy_from_slice(&port.to_be_bytes());
        machine.repeat(Direction::Egress, LOOPBACK, &opening, 1)?;
        machine.repeat(Direction::Ingress, LOOPBACK, &answer, 1)?;
    }
    let next = program(&mut machine, "from_pod")?;
    let mut last = machine.dataplane.counters()?;
    let measure = Box::new(move || {
        let nanoseconds = floor.run_rotating(&next, rotate_ports(), &packet, TIMES)?;
        let now = machine.dataplane.counters()?;
        let count = |rows: &[policy_agent::dataplane::CounterRow]| -> u64 {
            let wanted = |row: &&policy_agent::dataplane::CounterRow| {
                row.direction == Direction::Egress && row.reason == Reason::Established
            };
            rows.iter().find(wanted).map_or(0, |row| row.packets)
        };
        let hits = count(&now) - count(&last);
        ensure!(
            hits > u64::from(TIMES) * 99 / 100,
            "only {hits} of {TIMES} were established"
        );
        last = now;
        Ok(nanoseconds)
    });
    let mark = Some(Mark::Times(
        1.25,
        "floor: rotate, parse, one LRU hit of 64k",
        None,
    ));
    cases.push(Case {
        name: "established, 64k flows rotating",
        mark,
        measure,
    });
    Ok(cases)
}

fn new_flow(object: &Path, name: &'static str, peer_count: u32, rules: u32) -> Result<Case> {
    let mut machine = machine(EVICTING, 1, 1)?;
    machine.apply(&policy(rules))?;
    machine.apply(&peers(peer_count).collect::<Vec<_>>())?;
    let mark = match name {
        "new flow, 10k peers" | "new flow, 100k peers" => {
            Mark::Times(1.2, "new flow, 10 peers", None)
        }
        "new flow, 1000 rules" => Mark::Times(1.5, "new flow, 1 rule", None),
        _ => Mark::Times(1.5, "floor: rotate, parse, LRU insert, evicting", None),
    };
    opening(object, name, mark, machine, rotate_peers(peer_count))
}

/// A row of SYNs that are all allowed, each of another flow.
fn opening(
    object: &Path,
    name: &'static str,
    mark: Mark,
    mut machine: Machine,
    rotation: Rotation,
) -> Result<Case> {
    let mut floor = Floor::load(object, EVICTING)?;
    let next = program(&mut machine, "from_pod")?;
    let packet = tcp(Ipv4Addr::from(PEERS), flags::SYN);
    let measure = Box::new(move || {
        expect(
            &mut machine,
            Direction::Egress,
            &packet,
            Reason::PolicyAllowed,
        )?;
        floor.run_rotating(&next, rotation, &packet, TIMES)
    });
    Ok(Case {
        name,
        mark: Some(mark),
        measure,
    })
}

fn ip_block(object: &Path) -> Result<Case> {
    let mut machine = machine(EVICTING, 1, 1)?;
    machine.apply(&policy(1))?;
    let flags = PolicyHeader::VALID
        | PolicyHeader::ISOLATED
        | PolicyHeader::UNKNOWN_MATCHES_NONE
        | PolicyHeader::HAS_PREFIXES;
    let header = PolicyHeader {
        flags,
        baseline_start: 1,
        rules: 1,
        ..PolicyHeader::default()
    };
    let mut ops = vec![Op::PutPolicy { id: 1, header }];
    for index in 0..10_000 {
        let network = Ipv4Addr::from(PEERS + (index << 8));
        let prefix = IpNet::V4(Ipv4Net::new(network, 24)?);
        ops.push(Op::PutPrefix {
            prefix,
            identity: Identity { id: 1 },
        });
    }
    machine.apply(&ops)?;
    let mark = Mark::Times(
        1.5,
        "floor: rotate, parse, LRU insert, evicting",
        Some("floor: rotate, parse, LPM of 10k prefixes"),
    );
    opening(
        object,
        "new flow, ipBlock of 10k prefixes",
        mark,
        machine,
        rotate_peers(10_000 << 8),
    )
}

fn denied(object: &Path) -> Result<Vec<Case>> {
    let _ = object;
    let mark = || Some(Mark::Times(2.2, "established, hot", None));
    let mut cases = Vec::new();
    let mut direct = |name, packet: Vec<u8>| -> Result<()> {
        let mut machine = machine(EVICTING, 1, 1)?;
        machine.apply(&policy(1))?;
        machine.apply(&peers(10).collect::<Vec<_>>())?;
        let measure = Box::new(move || {
            expect(
                &mut machine,
                Direction::Egress,
                &packet,
                Reason::PolicyDenied,
            )?;
            Ok(machine
                .repeat(Direction::Egress, LOOPBACK, &packet, TIMES)?
                .1)
        });
        cases.push(Case {
            name,
            mark: mark(),
            measure,
        });
        Ok(())
    };
    direct("denied, no rule for the peer", tcp(STRANGER, flags::SYN))?;
    let mut other_port = tcp(Ipv4Addr::from(PEERS), flags::SYN);
    other_port[36..38].copy_from_slice(&9_999_u16.to_be_bytes());
    direct("denied, no rule for the port", other_port)?;
    let local = SocketAddr::new(LOCAL.into(), 40_000);
    direct(
        "denied, UDP",
        frame(local, SocketAddr::new(STRANGER.into(), PORT), Kind::Udp),
    )?;
    Ok(cases)
}
