//! The rows of packets to Services, which are judged where they leave.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use policy_agent::dataplane::DataplaneConfig;
use policy_common::service::MarkBits;
use policy_common::verdict::{Direction, Reason};

use super::packets::{
    Case, PEERS, RESTING, TIMES, expect, machine_with, peers, policy, reply, tcp,
};
use super::report::Mark;
use crate::packet::flags;
use crate::testrun::{LOOPBACK, Machine, run_marked};

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
            name: "exit, unmarked",
            mark: Some(Mark::Times(1.2, "floor: empty program", None)),
            measure: Box::new(move || Ok(exit(&mut unmarked, &leaving, 0, TIMES)?.1)),
        },
        Case {
            name: "deferred, hot, from_pod and exit together",
            mark: Some(judged),
            measure: Box::new(move || {
                expect(&mut deferred, Direction::Egress, &out, Reason::Deferred)?;
                let marked = MarkBits::DEFAULT.with_slot(0, SLOT);
                let first = deferred.repeat(Direction::Egress, LOOPBACK, &out, TIMES)?.1;
                Ok(first + exit(&mut deferred, &packet, marked, TIMES)?.1)
            }),
        },
    ])
}

/// Runs the packet through `exit`, with a mark that stays as it is.
fn exit(machine: &mut Machine, packet: &[u8], mark: u32, times: u32) -> Result<(i32, u32)> {
    let once = machine.pass("exit", LOOPBACK, packet, mark)?;
    ensure!(once.passed, "dropped: {:?}", once.counted);
    let known = vec![(Direction::Egress, Reason::Established)];
    ensure!(
        once.counted == if mark == 0 { vec![] } else { known },
        "counted as {:?}",
        once.counted
    );
    Ok(run_marked(machine.program("exit")?, LOOPBACK, packet, mark, times)?.0)
}

/// A machine whose endpoint has a live connection to the Service, translated to the first peer.
fn machine() -> Result<Machine> {
    let config = DataplaneConfig {
        settled_slot: SLOT,
        ..DataplaneConfig::default()
    };
    let mut machine = machine_with(config, RESTING, 1, 1)?;
    machine.apply(&policy(1))?;
    machine.apply(&peers(1).collect::<Vec<_>>())?;
    machine.put_service(IpAddr::V4(SERVICE))?;
    let remote = Ipv4Addr::from(PEERS);
    let marked = MarkBits::DEFAULT.with_slot(0, SLOT);
    let opening = tcp(SERVICE, flags::SYN);
    expect(&mut machine, Direction::Egress, &opening, Reason::Deferred)?;
    let opening = tcp(remote, flags::SYN);
    let first = machine.pass("exit", LOOPBACK, &opening, marked)?;
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
