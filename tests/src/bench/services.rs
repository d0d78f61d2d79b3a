//! The rows of packets to Services, which are judged where they leave.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use policy_agent::dataplane::DataplaneConfig;
use policy_common::verdict::{Direction, Reason};

use super::packets::{
    Case, PEERS, RESTING, TIMES, expect, machine_with, peers, policy, reply, tcp,
};
use super::report::Mark;
use crate::packet::flags;
use crate::testrun::{Carried, LOOPBACK, Machine, run_program};

/// A Service's address.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The slot of the endpoint on the loopback interface.
const SLOT: u32 = 1;

pub(super) fn cases() -> Result<Vec<Case>> {
    let mut unmarked = machine()?;
    let packet = tcp(Ipv4Addr::from(PEERS), flags::ACK);
    let leaving = packet.clone();
    let mut deferred = machine()?;
    let out = tcp(SERVICE, flags::ACK);
    let judged = Mark::Times(2.0, "established, hot", None);
    Ok(vec![
        Case {
            name: "exit, of no endpoint",
            mark: Some(Mark::Times(1.3, "floor: empty program", None)),
            measure: Box::new(move || {
                let program = unmarked.program("exit")?;
                Ok(run_program(program, LOOPBACK, &leaving, TIMES)?.1)
            }),
        },
        Case {
            name: "deferred, hot, from_pod and exit together",
            mark: Some(judged),
            measure: Box::new(move || {
                expect(&mut deferred, Direction::Egress, &out, Reason::Deferred)?;
                let first = deferred.repeat(Direction::Egress, LOOPBACK, &out, TIMES)?.1;
                let second = exit(&mut deferred, &packet, TIMES)?.1;
                // What `carry` itself costs is no part of it.
                let alone =
                    deferred.repeat_carrying("from_node", LOOPBACK, &packet, carried(), TIMES)?;
                let empty = run_program(deferred.program("from_node")?, LOOPBACK, &packet, TIMES)?;
                Ok((first + second + empty.1).saturating_sub(alone.1))
            }),
        },
    ])
}

/// What the packet carries.
fn carried() -> Carried {
    Carried::deferred(SLOT, LOOPBACK)
}

/// Runs the packet through `exit`, with what it carries as it is each time.
fn exit(machine: &mut Machine, packet: &[u8], times: u32) -> Result<(i32, u32)> {
    let once = machine.pass("exit", LOOPBACK, packet, carried())?;
    let known = vec![(Direction::Egress, Reason::Established)];
    ensure!(
        once.passed && once.counted == known,
        "counted as {:?}",
        once.counted
    );
    machine.repeat_carrying("exit", LOOPBACK, packet, carried(), times)
}

/// A machine whose endpoint has a live connection to the Service, translated to the first peer.
fn machine() -> Result<Machine> {
    let mut machine = machine_with(DataplaneConfig::default(), RESTING, 1, 1)?;
    machine.apply(&policy(1))?;
    machine.apply(&peers(1).collect::<Vec<_>>())?;
    machine.put_service(IpAddr::V4(SERVICE))?;
    let remote = Ipv4Addr::from(PEERS);
    let opening = tcp(SERVICE, flags::SYN);
    let asking = machine.pass("from_pod", LOOPBACK, &opening, Carried::default())?;
    let opening = tcp(remote, flags::SYN);
    let asking = Carried {
        ingress: LOOPBACK,
        ..asking.carried
    };
    let first = machine.pass("exit", LOOPBACK, &opening, asking)?;
    ensure!(first.passed, "dropped: {:?}", first.counted);
    let answer = reply(SERVICE);
    expect(
        &mut machine,
        Direction::Ingress,
        &answer,
        Reason::Established,
    )?;
    Ok(machine)
}
