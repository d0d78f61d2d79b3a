//! The small world that most tables share: one endpoint on the loopback interface, a friend that rules
//! name, and a stranger that none does; each with an IPv4 and an IPv6 address.

use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use policy_common::endpoint::Endpoint;
use policy_common::flow::protocol::{SCTP, TCP, UDP};
use policy_common::guard::Guard;
use policy_common::service::ServiceAddress;
use policy_common::verdict::{Direction, Reason};
use policy_core::op::Op;
use portcullis_tests::packet::{ETH, Kind, frame, v4, v6};
use portcullis_tests::tables_by_hand::{Page, Peers, Ports, endpoint, identity};
use portcullis_tests::testrun::{LOOPBACK, Machine};

pub(crate) const POD: [IpAddr; 2] = [v4(10, 244, 1, 5), v6(5)];
pub(crate) const FRIEND: [IpAddr; 2] = [v4(10, 244, 2, 7), v6(7)];
pub(crate) const STRANGER: [IpAddr; 2] = [v4(10, 244, 3, 9), v6(9)];
/// IPv4 and IPv6 are one source, so every table is run for both.
pub(crate) const FAMILIES: [usize; 2] = [0, 1];

pub(crate) const FRIENDS: u32 = 77;
pub(crate) const INGRESS_POLICY: u32 = 1;
pub(crate) const EGRESS_POLICY: u32 = 2;
pub(crate) const DENY_ALL: u32 = 3;
pub(crate) const ALLOW_ALL: u32 = 4;

pub(crate) use Direction::{Egress, Ingress};

/// Loading the object takes a second, and a minute on an emulated machine: tables that need nothing
/// special share one. Flows are told apart by endpoint id, and every world has its own.
static SHARED: Mutex<Option<Machine>> = Mutex::new(None);
static NEXT_ENDPOINT: AtomicU32 = AtomicU32::new(0x0001_0001);

pub(crate) struct World {
    pub(crate) machine: Loaded,
    pub(crate) endpoint: Endpoint,
}

/// The machine of a world.
pub(crate) enum Loaded {
    Shared(MutexGuard<'static, Option<Machine>>),
    Own(Box<Machine>),
}

impl Deref for Loaded {
    type Target = Machine;
    fn deref(&self) -> &Machine {
        match self {
            Self::Shared(guard) => guard.as_ref().expect("filled by World::new"),
            Self::Own(machine) => machine,
        }
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut Machine {
        match self {
            Self::Shared(guard) => guard.as_mut().expect("filled by World::new"),
            Self::Own(machine) => machine,
        }
    }
}

impl World {
    /// Isolated both ways: friends may come to TCP 80, UDP 53 and SCTP 36412, and the pod may go to
    /// friends' TCP 443 and anyone's UDP 53.
    pub(crate) fn new() -> Self {
        // A test that failed leaves nothing behind that another one could stumble over.
        let mut guard = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(Machine::new().unwrap());
        }
        let mut world = Self::on(Loaded::Shared(guard));
        world.judge_by(INGRESS_POLICY, EGRESS_POLICY);
        world
    }

    /// On a machine of its own.
    pub(crate) fn with(machine: Machine) -> Self {
        Self::on(Loaded::Own(Box::new(machine)))
    }

    fn on(mut machine: Loaded) -> Self {
        let mut ops = Page::isolating(INGRESS_POLICY)
            .allow(Peers::Identity(FRIENDS), Ports::One(TCP, 80))
            .allow(Peers::Identity(FRIENDS), Ports::One(UDP, 53))
            .allow(Peers::Identity(FRIENDS), Ports::One(SCTP, 36412))
            .ops();
        ops.extend(
            Page::isolating(EGRESS_POLICY)
                .allow(Peers::Identity(FRIENDS), Ports::One(TCP, 443))
                .allow(Peers::Any, Ports::One(UDP, 53))
                .ops(),
        );
        ops.extend(Page::isolating(DENY_ALL).ops());
        ops.extend(
            Page::isolating(ALLOW_ALL)
                .allow(Peers::Any, Ports::Any)
                .ops(),
        );
        ops.extend(FRIEND.map(|address| identity(address, FRIENDS)));
        machine.apply(&ops).unwrap();
        let endpoint = endpoint(NEXT_ENDPOINT.fetch_add(1, Ordering::Relaxed), &POD, 0, 0);
        let mut world = Self { machine, endpoint };
        world.put();
        world
    }

    fn put(&mut self) {
        let op = Op::PutEndpoint {
            ifindex: LOOPBACK,
            endpoint: self.endpoint,
        };
        self.machine.apply(&[op]).unwrap();
    }

    /// Changes policies as the agent does: policies first, then the epoch.
    pub(crate) fn judge_by(&mut self, ingress: u32, egress: u32) {
        self.endpoint.ingress_policy = ingress;
        self.endpoint.egress_policy = egress;
        self.put();
        self.endpoint.epoch += 1;
        self.put();
    }

    /// Says whose an address is.
    pub(crate) fn guard(&mut self, address: IpAddr, kind: u32) {
        let row = Guard { kind };
        let prefix = address.into();
        self.machine.apply(&[Op::PutGuard { prefix, row }]).unwrap();
    }

    /// Makes an address nobody's.
    pub(crate) fn unguard(&mut self, address: IpAddr) {
        let prefix = address.into();
        self.machine.apply(&[Op::DeleteGuard { prefix }]).unwrap();
    }

    /// Makes an address one of this node's.
    pub(crate) fn put_node_address(&mut self, address: IpAddr) {
        let row = ServiceAddress {
            kind: ServiceAddress::NODE,
        };
        self.machine
            .apply(&[Op::PutService { address, row }])
            .unwrap();
    }

    /// Makes it neither a Service's nor this node's.
    pub(crate) fn delete_service(&mut self, address: IpAddr) {
        self.machine
            .apply(&[Op::DeleteService { address }])
            .unwrap();
    }

    pub(crate) fn run(&mut self, direction: Direction, packet: &[u8]) -> Reason {
        self.machine
            .run(direction, LOOPBACK, packet)
            .unwrap()
            .reason
    }

    /// A packet cut to `length` bytes; `None` when the kernel's test run refuses it, which newer ones
    /// do, but only for one shorter than its IP header.
    pub(crate) fn run_cut(
        &mut self,
        direction: Direction,
        packet: &[u8],
        length: usize,
    ) -> Option<Reason> {
        let header = ETH
            + if packet[12..14] == [0x08, 0x00] {
                20
            } else {
                40
            };
        match self.machine.run(direction, LOOPBACK, &packet[..length]) {
            Ok(outcome) => Some(outcome.reason),
            Err(_) if length < header => None,
            Err(error) => panic!("cut to {length} bytes: {error:#}"),
        }
    }

    pub(crate) fn expect(
        &mut self,
        what: &str,
        direction: Direction,
        packet: &[u8],
        reason: Reason,
    ) {
        assert_eq!(self.run(direction, packet), reason, "{what}");
    }
}

/// A packet into the pod: from a remote address and port to the pod's port.
pub(crate) fn incoming(
    remote: [IpAddr; 2],
    family: usize,
    sport: u16,
    dport: u16,
    kind: Kind,
) -> Vec<u8> {
    between(remote, POD, family, sport, dport, kind)
}

/// A packet out of the pod: from the pod's port to a remote address and port.
pub(crate) fn outgoing(
    remote: [IpAddr; 2],
    family: usize,
    sport: u16,
    dport: u16,
    kind: Kind,
) -> Vec<u8> {
    between(POD, remote, family, sport, dport, kind)
}

/// A packet from one address and port to another.
pub(crate) fn between(
    source: [IpAddr; 2],
    destination: [IpAddr; 2],
    family: usize,
    sport: u16,
    dport: u16,
    kind: Kind,
) -> Vec<u8> {
    frame(
        SocketAddr::new(source[family], sport),
        SocketAddr::new(destination[family], dport),
        kind,
    )
}
