//! The engine with the real compiler and a fake kernel.
//!
//! The fake proves the order of what is asked of the kernel and what happens when it refuses; that
//! operations mean what they say is the dataplane's to prove.

use std::time::Duration;

use policy_cni::api::{Attachment, PodReference};
use policy_core::model::{
    LabelSelector, NetworkPolicy, Peer as PolicyPeer, Pod, PolicyPort, PortMatch, Protocol,
    Requirement, Rule,
};

use policy_core::DirectionView;

use super::*;
use crate::dataplane::{ApplyError, Drift, LinkLayer, NetdevProgram};
use crate::datastore::convert::Service;
use crate::endpoint::{Link, Peer};

/// Writes down what succeeded, and refuses what it is told to.
#[derive(Default)]
struct Fake {
    done: Vec<String>,
    refusals: Vec<Refusal>,
    pruned: usize,
    drifts: Vec<Drift>,
    /// Interfaces that were ports of something.
    masters: BTreeSet<u32>,
}

struct Refusal {
    /// Beginning of what is refused.
    what: &'static str,
    times: usize,
    gone: bool,
}

impl Fake {
    fn try_to(&mut self, what: String) -> Result<(), bool> {
        let refusal = self
            .refusals
            .iter_mut()
            .find(|refusal| refusal.times > 0 && what.starts_with(refusal.what));
        match refusal {
            Some(refusal) => {
                refusal.times -= 1;
                Err(refusal.gone)
            }
            None => {
                self.done.push(what);
                Ok(())
            }
        }
    }

    fn attachment(&mut self, word: &str, ifindex: u32) -> Result<(), AttachError> {
        self.try_to(format!("{word} {ifindex}")).map_err(|gone| {
            if gone {
                AttachError::InterfaceGone {
                    ifindex,
                    interface: String::new(),
                }
            } else {
                AttachError::NotLoaded("from_pod")
            }
        })
    }
}

impl Kernel for Fake {
    fn apply(&mut self, op: &Op) -> Result<(), ApplyError> {
        let text = match op {
            Op::PutEndpoint { ifindex, .. } => format!("PutEndpoint {ifindex}"),
            Op::DeleteEndpoint { ifindex } => format!("DeleteEndpoint {ifindex}"),
            Op::PutService { address, row } => format!("PutService {address} {}", row.kind),
            Op::DeleteService { address } => format!("DeleteService {address}"),
            Op::PutGuard { prefix, row } => format!("PutGuard {prefix} {}", row.kind),
            Op::DeleteGuard { prefix } => format!("DeleteGuard {prefix}"),
            other => format!("{other:?}"),
        };
        self.try_to(text)
            .map_err(|_| ApplyError::Full { table: "peers" })
    }
    fn set_tunnel_ports(&mut self, ports: [u16; 4]) -> Result<(), ApplyError> {
        self.try_to(format!("tunnel ports {ports:?}"))
            .map_err(|_| ApplyError::Full { table: "endpoints" })
    }
    fn set_master(&mut self, ifindex: u32, master: u32) -> Result<(), ApplyError> {
        // What most interfaces are is not written down, for the other tests' sake.
        if master == 0 && !self.masters.contains(&ifindex) {
            return Ok(());
        }
        self.masters.insert(ifindex);
        self.try_to(format!("master of {ifindex} is {master}"))
            .map_err(|_| ApplyError::Full { table: "slots" })
    }
    fn attach(&mut self, ifindex: u32, _: &str, _: Haste) -> Result<(), AttachError> {
        self.attachment("attach", ifindex)
    }
    fn detach(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.attachment("detach", ifindex)
    }
    fn attach_netdev(
        &mut self,
        ifindex: u32,
        _: &str,
        program: NetdevProgram,
        haste: Haste,
    ) -> Result<(), AttachError> {
        let word = match haste {
            Haste::None => "to",
            Haste::Waited => "soon to",
        };
        self.attachment(&format!("{} {word}", program.name()), ifindex)
    }
    fn detach_netdev(&mut self, ifindex: u32) -> Result<(), AttachError> {
        self.attachment("exit from", ifindex)
    }
    fn prune(&mut self) -> Result<Vec<u32>, AttachError> {
        self.pruned += 1;
        Ok(Vec::new())
    }
    fn verify(&mut self) -> Vec<Drift> {
        std::mem::take(&mut self.drifts)
    }
}

struct Fixture {
    engine: Engine<Fake>,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        Self {
            engine: Engine::new(Fake::default(), Limits::default(), "n1".into(), None),
            now: Instant::now(),
        }
    }

    /// With pods a (10.0.0.1) and b (10.0.0.2), loaded, and their interfaces 7 and 8 found.
    fn with_two_endpoints() -> Self {
        let mut fixture = Self::new();
        fixture.engine.changed(vec![pod("a", 1), pod("b", 2)]);
        fixture.engine.loaded();
        fixture.engine.scanned(scan(&[(7, 1), (8, 2)]));
        fixture
    }

    fn step(&mut self) -> Option<Instant> {
        self.engine.step(self.now)
    }

    /// What was done since the last call, but for rows of `guarded_v4/6`, which nearly every change has some of.
    fn done(&mut self) -> Vec<String> {
        let mut done = self.done_with_guards();
        done.retain(|what| !what.contains("Guard "));
        done
    }

    fn done_with_guards(&mut self) -> Vec<String> {
        std::mem::take(&mut self.engine.kernel.done)
    }

    /// As [`Self::done`], but only of these beginnings.
    fn done_of(&mut self, beginnings: &[&str]) -> Vec<String> {
        let mut done = self.done_with_guards();
        done.retain(|what| {
            beginnings
                .iter()
                .any(|beginning| what.starts_with(beginning))
        });
        done
    }

    /// Steps while the engine has something left to do at once.
    fn step_in_slices(&mut self) -> usize {
        let mut steps = 1;
        while self.step() == Some(self.now) {
            steps += 1;
            assert!(steps < 100, "never done");
        }
        steps
    }

    fn refuse(&mut self, what: &'static str, times: usize) {
        self.engine.kernel.refusals.push(Refusal {
            what,
            times,
            gone: false,
        });
    }

    /// Steps whenever the engine asks to be called again, until it no longer does.
    fn step_until_quiet(&mut self) -> usize {
        let mut steps = 0;
        while let Some(at) = self.step() {
            assert!(at > self.now, "asks to be called at once");
            self.now = at;
            steps += 1;
            assert!(steps < 100, "never quiet");
        }
        steps
    }
}

impl Engine<Fake> {
    /// Objects changed just now.
    fn changed(&mut self, changes: Vec<ObjectChange>) {
        self.objects_changed(changes, Instant::now());
    }
}

/// What happens to the engine in a row of a table.
type Disturb = fn(&mut Engine<Fake>);

const ENDPOINTS: [&str; 4] = ["PutEndpoint", "DeleteEndpoint", "attach", "detach"];

fn pod(name: &str, last: u8) -> ObjectChange {
    ObjectChange::Upsert(Object::Pod(PodObject::Pod {
        pod: Pod {
            name: ObjectName::new("shop", name),
            labels: Default::default(),
            addresses: vec![[10, 0, 0, last].into()],
            ports: Default::default(),
            terminated: false,
            created: i64::from(last),
            uid: "".into(),
        },
        node: None,
        dated: true,
        host_addresses: Vec::new(),
    }))
}

fn pod_gone(name: &str) -> ObjectChange {
    ObjectChange::Gone(ObjectKey::Pod(ObjectName::new("shop", name)))
}

fn default_deny() -> ObjectChange {
    ObjectChange::Upsert(Object::Policy(NetworkPolicy {
        name: ObjectName::new("shop", "default-deny"),
        subjects: LabelSelector::default(),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
    }))
}

/// Lets everybody reach all pods on this port.
fn from_anywhere(port: u16) -> ObjectChange {
    ObjectChange::Upsert(Object::Policy(NetworkPolicy {
        name: ObjectName::new("shop", "from-anywhere"),
        subjects: LabelSelector::default(),
        ingress: Some(vec![Rule {
            peers: Vec::new(),
            ports: vec![PolicyPort {
                protocol: Protocol::Tcp,
                port: PortMatch::Range(port, port),
            }],
        }]),
        egress: None,
    }))
}

fn interface(ifindex: u32, last: u8) -> Interface {
    Interface {
        ifindex,
        name: format!("veth{ifindex}"),
        hardware_address: Vec::new(),
        master: 0,
        peer: Peer {
            netns: i32::from(last),
            ifindex: 2,
            name: "eth0".to_owned(),
        },
        addresses: vec![[10, 0, 0, last].into()],
        link_local: Vec::new(),
    }
}

fn scan(interfaces: &[(u32, u8)]) -> Scan {
    Scan {
        interfaces: interfaces
            .iter()
            .map(|(ifindex, last)| (*ifindex, interface(*ifindex, *last)))
            .collect(),
        veths: interfaces.iter().map(|(ifindex, _)| *ifindex).collect(),
        ..Scan::default()
    }
}

/// With the host's other interfaces: their indexes, and those without an Ethernet header.
fn with_links(mut scan: Scan, links: &[u32], l3: &[u32]) -> Scan {
    let layers = [(links, LinkLayer::Ethernet), (l3, LinkLayer::Network)];
    for (ifindexes, layer) in layers {
        scan.links.extend(ifindexes.iter().map(|ifindex| {
            let link = Link {
                name: format!("link{ifindex}"),
                program: NetdevProgram::ToNetdev(layer),
                hardware_address: Vec::new(),
                is_veth: false,
                leads_elsewhere: false,
            };
            (*ifindex, link)
        }));
    }
    scan
}

fn service(name: &str, addresses: &[&str]) -> ObjectChange {
    ObjectChange::Upsert(Object::Service(Service {
        name: ObjectName::new("shop", name),
        addresses: addresses
            .iter()
            .map(|address| address.parse().expect("address"))
            .collect(),
    }))
}

fn service_gone(name: &str) -> ObjectChange {
    ObjectChange::Gone(ObjectKey::Service(ObjectName::new("shop", name)))
}

fn position(done: &[String], what: &str) -> usize {
    done.iter()
        .position(|done| done == what)
        .unwrap_or_else(|| panic!("{what} was not done: {done:?}"))
}

#[test]
fn nothing_is_programmed_before_the_first_load_is_complete() {
    let mut fixture = Fixture::new();
    fixture.engine.changed(vec![pod("a", 1), default_deny()]);
    fixture.engine.scanned(scan(&[(7, 1)]));
    assert_eq!(fixture.step(), None);
    assert_eq!(fixture.done(), [""; 0]);
    assert!(!fixture.engine.is_settled());

    fixture.engine.loaded();
    assert_eq!(fixture.step(), None);
    let done = fixture.done();
    assert!(position(&done, "PutEndpoint 7") < position(&done, "attach 7"));
    assert_eq!(
        done.last().map(String::as_str),
        Some("attach 7"),
        "attached last"
    );
    assert!(fixture.engine.is_settled());
    assert_eq!(fixture.engine.kernel.pruned, 1);
}

#[test]
fn programs_are_detached_before_the_row_goes() {
    let rows: [(&str, Disturb); 2] = [
        ("the interface is gone", |engine| {
            engine.scanned(scan(&[(8, 2)]))
        }),
        ("another device has its index", |engine| {
            let mut other = scan(&[(7, 99), (8, 2)]);
            other.interfaces.remove(&7);
            other.interfaces.insert(7, interface(7, 99));
            engine.scanned(other);
        }),
    ];
    for (what, change) in rows {
        let mut fixture = Fixture::with_two_endpoints();
        fixture.step();
        fixture.done();
        change(&mut fixture.engine);
        assert_eq!(fixture.step(), None, "{what}");
        assert_eq!(
            fixture.done_of(&ENDPOINTS),
            ["detach 7", "DeleteEndpoint 7"],
            "{what}"
        );
        assert!(fixture.engine.is_settled(), "{what}");
        assert_eq!(fixture.engine.endpoints().count(), 1, "{what}");
    }
}

#[test]
fn an_interface_whose_other_side_cannot_be_read_stays_enforced() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.step();
    fixture.done();
    let mut unreadable = scan(&[(8, 2)]);
    unreadable.veths.insert(7);
    fixture.engine.scanned(unreadable.clone());
    fixture.step();
    assert_eq!(fixture.done(), [""; 0]);
    assert_eq!(fixture.engine.endpoints().count(), 2);
    fixture.engine.changed(vec![pod_gone("a")]);
    fixture.step();
    assert_eq!(fixture.done_of(&["attach", "detach"]), [""; 0]);
    fixture.engine.scanned(scan(&[(8, 2)]));
    fixture.step();
    assert_eq!(
        fixture.done_of(&ENDPOINTS),
        ["detach 7", "DeleteEndpoint 7"]
    );
}

#[test]
fn a_reused_ifindex_is_another_endpoint() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.step();
    fixture.done();
    let mut reused = scan(&[(7, 1), (8, 2)]);
    if let Some(interface) = reused.interfaces.get_mut(&7) {
        interface.peer.netns = 99;
    }
    fixture.engine.scanned(reused);
    assert_eq!(fixture.step(), None);
    let done = fixture.done_of(&ENDPOINTS);
    assert_eq!(done.first().map(String::as_str), Some("detach 7"));
    assert_eq!(done.last().map(String::as_str), Some("attach 7"));
    assert!(fixture.engine.is_settled());
}

#[test]
fn an_operation_that_fails_is_tried_again_and_none_is_skipped() {
    let undisturbed = {
        let mut fixture = Fixture::with_two_endpoints();
        fixture.engine.changed(vec![default_deny()]);
        fixture.step();
        fixture.done()
    };
    let mut fixture = Fixture::with_two_endpoints();
    fixture.engine.changed(vec![default_deny()]);
    fixture.refuse("PutEndpoint 7", 3);
    let again = fixture.step().expect("wants to try again");
    assert!(!fixture.engine.is_settled());
    let stuck = fixture.engine.stuck(fixture.now).expect("stuck");
    assert!(stuck.operation.starts_with("PutEndpoint"), "{stuck:?}");
    assert_eq!(
        stuck.error,
        "table peers is full; raise its size with PORTCULLIS_TABLE_SIZES=peers=N"
    );
    // Before its time nothing is tried, and what changes meanwhile waits.
    fixture.engine.changed(vec![pod("c", 3)]);
    let before = fixture.engine.kernel.done.len();
    assert_eq!(fixture.step(), Some(again));
    assert_eq!(fixture.engine.kernel.done.len(), before);
    assert_eq!(fixture.engine.stuck(fixture.now).expect("stuck").tries, 1);

    assert_eq!(fixture.step_until_quiet(), 3);
    let done = fixture.done();
    assert_eq!(done, undisturbed, "pod c concerns no table");
    assert!(fixture.engine.is_settled() && fixture.engine.stuck(fixture.now).is_none());
    assert_eq!(
        fixture.engine.revision(),
        fixture.engine.enforced_revision()
    );
}

#[test]
fn an_attachment_that_fails_holds_up_nobody_else() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.refuse("attach 7", 2);
    fixture.step();
    assert_eq!(fixture.done_of(&["attach"]), ["attach 8"]);
    assert!(!fixture.engine.is_settled());
    assert_eq!(fixture.engine.kernel.pruned, 0);
    let states: Vec<_> = fixture.engine.endpoints().map(|(_, state)| state).collect();
    assert_eq!(states[0].word, "attaching");
    assert_eq!(
        states[0].error.as_deref(),
        Some("program from_pod is not loaded")
    );
    // Changes go on.
    fixture.engine.changed(vec![default_deny()]);
    fixture.step();
    assert!(!fixture.done_of(&["PutEndpoint 8"]).is_empty());
    assert_eq!(fixture.step_until_quiet(), 2);
    assert_eq!(fixture.done_of(&["attach"]), ["attach 7"]);
    assert!(fixture.engine.is_settled());
    assert_eq!(fixture.engine.kernel.pruned, 1);
}

#[test]
fn a_detachment_that_fails_keeps_the_row() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.step();
    fixture.done();
    fixture.refuse("detach 7", 2);
    fixture.engine.scanned(scan(&[(8, 2)]));
    assert!(fixture.step().is_some());
    assert_eq!(fixture.done_of(&ENDPOINTS), [""; 0]);
    // It is back meanwhile: the endpoint is made anew once the old one is gone.
    fixture.engine.scanned(scan(&[(7, 1), (8, 2)]));
    assert_eq!(fixture.step_until_quiet(), 2);
    let done = fixture.done_of(&ENDPOINTS);
    assert!(position(&done, "detach 7") < position(&done, "DeleteEndpoint 7"));
    assert_eq!(done.last().map(String::as_str), Some("attach 7"));
    assert!(fixture.engine.is_settled());
}

#[test]
fn an_interface_that_goes_while_it_is_attached_is_simply_gone() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.engine.kernel.refusals.push(Refusal {
        what: "attach 7",
        times: usize::MAX,
        gone: true,
    });
    assert_eq!(fixture.step(), None, "nothing to try again");
    let done = fixture.done_of(&ENDPOINTS);
    let (put, delete) = (
        position(&done, "PutEndpoint 7"),
        position(&done, "DeleteEndpoint 7"),
    );
    assert!(put < position(&done, "detach 7") && position(&done, "detach 7") < delete);
    assert!(fixture.engine.is_settled());
    assert_eq!(fixture.engine.endpoints().count(), 1);
}

#[test]
fn pods_without_interface_are_known() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.engine.changed(vec![pod("c", 3)]);
    fixture.step();
    assert_eq!(
        fixture.engine.pods_without_interface(),
        [ObjectName::new("shop", "c")]
    );
    assert!(
        fixture.engine.is_settled(),
        "which keeps nobody from being ready"
    );
}

#[test]
fn what_waits_is_compiled_in_one_go() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.engine.changed(vec![default_deny()]);
    fixture.step();
    let revision = fixture.engine.revision();
    fixture.engine.changed(vec![pod("c", 3)]);
    fixture.engine.changed(vec![pod("d", 4)]);
    fixture.now += Duration::from_secs(1);
    fixture.step();
    assert_eq!(fixture.engine.revision(), revision + 1);
}

#[test]
fn endpoints_are_counted_by_state() {
    let count = |fixture: &Fixture| {
        let counts = fixture.engine.endpoint_counts();
        EndpointState::WORDS.map(|word| counts[word])
    };
    let mut fixture = Fixture::with_two_endpoints();
    assert_eq!(count(&fixture), [0; 4], "every state is there");
    fixture.refuse("PutEndpoint 8", 1);
    fixture.step();
    assert_eq!(count(&fixture), [2, 0, 0, 0], "programming");
    fixture.refuse("attach 7", 1);
    fixture.now += Duration::from_secs(60);
    fixture.step();
    assert_eq!(count(&fixture), [0, 1, 1, 0], "one is attached");
    fixture.step_until_quiet();
    fixture.refuse("detach 7", 1);
    fixture.engine.scanned(scan(&[(8, 2)]));
    fixture.step();
    assert_eq!(count(&fixture), [0, 0, 1, 1], "one cannot be detached");
    fixture.step_until_quiet();
    assert_eq!(count(&fixture), [0, 0, 1, 0]);
}

#[test]
fn what_is_asked_of_the_kernel_is_counted() {
    let tally = |fixture: &Fixture, wanted: &str| {
        let found = fixture
            .engine
            .operations()
            .iter()
            .find(|(kind, _)| *kind == wanted);
        let (_, tally) = found.unwrap_or_else(|| panic!("no {wanted}"));
        (tally.succeeded, tally.failed)
    };
    let mut fixture = Fixture::with_two_endpoints();
    for kind in Op::KINDS.into_iter().chain(["attach", "detach"]) {
        assert_eq!(tally(&fixture, kind), (0, 0));
    }
    fixture.refuse("PutEndpoint 8", 2);
    fixture.refuse("attach 7", 1);
    fixture.step();
    fixture.step_until_quiet();
    // The first row is of no endpoint: it says what tables these are.
    assert_eq!(tally(&fixture, "put_endpoint"), (3, 2));
    assert_eq!(tally(&fixture, "attach"), (2, 1));
    fixture.engine.scanned(scan(&[(8, 2)]));
    fixture.step();
    assert_eq!(tally(&fixture, "delete_endpoint"), (1, 0));
    assert_eq!(tally(&fixture, "detach"), (1, 0));
}

#[test]
fn a_change_is_enforced_once_its_last_operation_is_done() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.step();
    assert_eq!(
        fixture.engine.take_enforced(),
        [],
        "the first load is no change"
    );

    let (first, second) = (fixture.now, fixture.now + Duration::from_secs(1));
    let two = vec![default_deny(), pod("c", 3)];
    fixture.refuse("PutEndpoint 7", 1);
    fixture.engine.objects_changed(two, first);
    let again = fixture.step().expect("wants to try again");
    fixture.engine.objects_changed(vec![pod("d", 4)], second);
    fixture.step();
    assert_eq!(fixture.engine.take_enforced(), [], "an operation fails");

    fixture.now = again;
    fixture.step();
    let arrival = |received, changes| Arrival { received, changes };
    assert_eq!(
        fixture.engine.take_enforced(),
        [arrival(first, 2), arrival(second, 1)]
    );
    fixture.engine.scanned(scan(&[(7, 1), (8, 2), (9, 3)]));
    fixture.step();
    assert_eq!(
        fixture.engine.take_enforced(),
        [],
        "an interface is no change"
    );
}

/// As the plugin announces it: pod `name`, with this address, on this veth.
fn announcement(container: &str, name: &str, uid: &str, veth: u32, last: u8) -> Announcement {
    Announcement {
        attachment: Attachment {
            key: key(container),
            network: "pods".to_owned(),
            netns: format!("/run/netns/{container}"),
            pod: PodReference {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                uid: uid.to_owned(),
            },
            host_interfaces: vec![format!("veth{veth}")],
            addresses: vec![[10, 0, 0, last].into()],
        },
        device: None,
    }
}

fn key(container: &str) -> AttachmentKey {
    AttachmentKey {
        container_id: container.to_owned(),
        ifname: "eth0".to_owned(),
    }
}

/// A pod without an address, as it is when its sandbox is made.
fn unaddressed(name: &str, uid: &str, label: &str) -> ObjectChange {
    ObjectChange::Upsert(Object::Pod(PodObject::Pod {
        pod: Pod {
            name: ObjectName::new("shop", name),
            labels: Arc::new([("app".into(), label.into())].into()),
            addresses: Vec::new(),
            ports: Default::default(),
            terminated: false,
            created: 1,
            uid: uid.into(),
        },
        node: Some("n1".into()),
        dated: true,
        host_addresses: Vec::new(),
    }))
}

/// Everybody hears `app: web`, and nobody else.
fn from_web() -> ObjectChange {
    let label = LabelSelector {
        requirements: vec![Requirement::In("app".into(), ["web".into()].into())],
    };
    ObjectChange::Upsert(Object::Policy(NetworkPolicy {
        name: ObjectName::new("shop", "from-web"),
        subjects: LabelSelector::default(),
        ingress: Some(vec![Rule {
            peers: vec![PolicyPeer::Pods {
                namespaces: None,
                pods: Some(label),
            }],
            ports: Vec::new(),
        }]),
        egress: None,
    }))
}

#[test]
fn an_announced_pod_is_endpoint_and_peer_before_the_api_has_its_address() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture
        .engine
        .changed(vec![from_web(), unaddressed("web", "u1", "web")]);
    fixture.step();
    fixture.done();
    fixture
        .engine
        .announce(announcement("c1", "web", "u1", 9, 3));
    fixture.step();
    assert_eq!(fixture.done(), [""; 0], "its interface was not found yet");
    let why = fixture
        .engine
        .is_enforced(&key("c1"), fixture.now)
        .expect_err("not yet");
    assert!(why.contains("no veth of this node among veth9"), "{why}");

    let revision = fixture.engine.revision();
    fixture.engine.found(interface(9, 3));
    fixture.step();
    assert_eq!(fixture.engine.revision(), revision + 1, "one transaction");
    let done = fixture.done();
    let is_peer = |done: &String| done.starts_with("PutAddress") && done.contains("10.0.0.3");
    assert!(done.iter().any(is_peer), "its neighbours know it: {done:?}");
    assert!(position(&done, "PutEndpoint 9") < position(&done, "attach 9"));
    assert_eq!(fixture.engine.is_enforced(&key("c1"), fixture.now), Ok(()));

    // The API confirms: nothing to be done.
    fixture
        .engine
        .changed(vec![ObjectChange::Upsert(Object::Pod(PodObject::Pod {
            pod: Pod {
                name: ObjectName::new("shop", "web"),
                labels: Arc::new([("app".into(), "web".into())].into()),
                addresses: vec![[10, 0, 0, 3].into()],
                ports: Default::default(),
                terminated: false,
                created: 1,
                uid: "u1".into(),
            },
            node: Some("n1".into()),
            dated: true,
            host_addresses: Vec::new(),
        }))]);
    fixture.step();
    assert_eq!(fixture.done_of(&ENDPOINTS), [""; 0]);
}

#[test]
fn an_announced_pod_that_is_not_known_is_denied_everything_and_waited_for() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.engine.scanned(scan(&[(7, 1), (8, 2), (9, 3)]));
    fixture
        .engine
        .announce(announcement("c1", "web", "u2", 9, 3));
    fixture.step();
    let deny_all = |engine: &Engine<Fake>| {
        let views = engine.compiler.endpoints();
        let view = views
            .into_iter()
            .find(|view| view.ifindex == 9)
            .expect("an endpoint");
        (
            view.pod.to_string(),
            view.ingress.is_some() && view.egress.is_some(),
        )
    };
    assert_eq!(deny_all(&fixture.engine), ("shop/web".to_owned(), true));
    assert_eq!(
        fixture.done_of(&["attach 9"]),
        ["attach 9"],
        "protected meanwhile"
    );
    let why = fixture
        .engine
        .is_enforced(&key("c1"), fixture.now)
        .expect_err("not known");
    assert!(why.contains("no pod shop/web with uid u2"), "{why}");

    // An earlier pod of the name is not it.
    fixture
        .engine
        .changed(vec![unaddressed("web", "u1", "web")]);
    fixture.step();
    assert_eq!(deny_all(&fixture.engine), ("shop/web".to_owned(), true));
    assert!(fixture.engine.is_enforced(&key("c1"), fixture.now).is_err());

    fixture
        .engine
        .changed(vec![unaddressed("web", "u2", "web")]);
    fixture.step();
    assert_eq!(deny_all(&fixture.engine), ("shop/web".to_owned(), false));
    assert_eq!(fixture.engine.is_enforced(&key("c1"), fixture.now), Ok(()));
    assert_eq!(
        fixture.done_of(&["attach", "detach"]),
        [""; 0],
        "attached all the time"
    );
}

#[test]
fn an_announced_endpoint_stays_until_it_is_retracted_or_its_device_goes() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture
        .engine
        .changed(vec![unaddressed("web", "u1", "web")]);
    fixture.engine.scanned(scan(&[(7, 1), (8, 2), (9, 3)]));
    fixture
        .engine
        .announce(announcement("c1", "web", "u1", 9, 3));
    fixture.step();
    fixture.done();
    // The pod's object goes first: what still runs in the sandbox goes on as it did.
    fixture.engine.changed(vec![pod_gone("web")]);
    fixture.step();
    assert_eq!(fixture.done_of(&["attach", "detach"]), [""; 0]);
    fixture
        .engine
        .changed(vec![unaddressed("web", "u1", "web")]);
    // The pod takes its address away, or its interface's name.
    let mut disguised = scan(&[(7, 1), (8, 2), (9, 99)]);
    if let Some(interface) = disguised.interfaces.get_mut(&9) {
        interface.peer.netns = 3;
        interface.peer.name = "other0".to_owned();
    }
    fixture.engine.scanned(disguised);
    fixture.step();
    assert_eq!(fixture.done_of(&["attach", "detach"]), [""; 0]);
    assert_eq!(fixture.engine.is_enforced(&key("c1"), fixture.now), Ok(()));
    let addresses = |engine: &Engine<Fake>| {
        let mut endpoints = engine.endpoints();
        let found = endpoints.find(|(local, _)| local.ifindex == 9);
        let addresses = &found.expect("an endpoint").0.addresses;
        addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        addresses(&fixture.engine),
        ["10.0.0.3"],
        "what the pod gave itself is not its own"
    );
    assert!(fixture.engine.retract(&key("c1")) && !fixture.engine.retract(&key("c1")));
    fixture.step();
    assert_eq!(fixture.done_of(&["attach", "detach"]), [""; 0]);
    assert_eq!(addresses(&fixture.engine), [""; 0], "they may be reused");
    fixture.engine.scanned(scan(&[(7, 1), (8, 2)]));
    fixture.step();
    assert_eq!(
        fixture.done_of(&["attach", "detach", "DeleteEndpoint"]),
        ["detach 9", "DeleteEndpoint 9"]
    );

    fixture.engine.scanned(scan(&[(7, 1), (8, 2), (9, 3)]));
    fixture
        .engine
        .announce(announcement("c2", "web", "u1", 9, 3));
    fixture.step();
    fixture.engine.take_changed_announcements();
    fixture.engine.scanned(scan(&[(7, 1), (8, 2)]));
    fixture.step();
    assert_eq!(fixture.engine.take_changed_announcements(), [key("c2")]);
    assert!(fixture.engine.is_enforced(&key("c2"), fixture.now).is_err());
}

#[test]
fn an_announced_endpoint_is_enforced_only_when_all_is_in_force() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture
        .engine
        .changed(vec![unaddressed("web", "u1", "web")]);
    fixture.engine.scanned(scan(&[(7, 1), (8, 2), (9, 3)]));
    fixture.refuse("attach 9", 1);
    fixture
        .engine
        .announce(announcement("c1", "web", "u1", 9, 3));
    fixture.step();
    let enforced = |fixture: &Fixture| fixture.engine.is_enforced(&key("c1"), fixture.now);
    assert_eq!(
        enforced(&fixture),
        Err("attaching: program from_pod is not loaded".to_owned())
    );
    fixture.step_until_quiet();
    assert_eq!(enforced(&fixture), Ok(()));
    fixture.refuse("PutEndpoint 9", 1);
    fixture.engine.changed(vec![default_deny()]);
    fixture.step();
    assert!(
        enforced(&fixture)
            .expect_err("stuck")
            .contains("table peers is full")
    );
    fixture.step_until_quiet();
    assert_eq!(enforced(&fixture), Ok(()));
}

#[test]
fn what_nobody_uses_goes_after_grace_periods_which_hold_up_no_change() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.engine.changed(vec![from_anywhere(443)]);
    fixture.step();
    assert!(!fixture.engine.begin_grace(), "all is in use");
    fixture.engine.changed(vec![from_anywhere(80)]);
    fixture.step();
    let deletions = ["DeletePolicy", "DeletePort", "Barrier"];
    fixture.done();
    assert!(fixture.engine.begin_grace());
    assert!(!fixture.engine.begin_grace(), "it has begun");

    // Retired with the next, which comes meanwhile.
    fixture.engine.changed(vec![from_anywhere(81)]);
    fixture.step();
    assert_eq!(fixture.done_of(&["PutPolicy"]).len(), 1, "enforced at once");
    fixture.engine.grace_passed();
    fixture.step();
    assert_eq!(fixture.done_of(&deletions), [""; 0], "retired only");
    assert!(fixture.engine.begin_grace());
    fixture.engine.changed(vec![pod("c", 3)]);
    fixture.engine.grace_passed();
    fixture.step();
    let gone = fixture.done_of(&deletions);
    assert_eq!(gone.len(), 2, "the policy of port 443: {gone:?}");

    for _ in 0..2 {
        assert!(fixture.engine.begin_grace());
        fixture.engine.grace_passed();
        fixture.step();
    }
    let gone = fixture.done_of(&deletions);
    assert_eq!(gone.len(), 2, "the policy of port 80: {gone:?}");
    assert!(!fixture.engine.begin_grace(), "nothing is left");
}

#[test]
fn services_rows_come_before_policies_and_go_after_them() {
    let mut fixture = Fixture::with_two_endpoints();
    let mut found = scan(&[(7, 1), (8, 2)]);
    found.addresses = [[192, 0, 2, 1].into()].into();
    fixture.engine.scanned(found.clone());
    fixture
        .engine
        .changed(vec![default_deny(), service("dns", &["10.96.0.10"])]);
    fixture.step();
    let done = fixture.done();
    let rows = ["PutService 10.96.0.10 1", "PutService 192.0.2.1 2"];
    assert_eq!(done[..2], rows);

    fixture.engine.changed(vec![
        service_gone("dns"),
        from_anywhere(80),
        service("web", &["10.96.0.11"]),
    ]);
    fixture.step();
    let done = fixture.done();
    let switched = position(&done, "PutEndpoint 7");
    assert!(position(&done, "PutService 10.96.0.11 1") < switched);
    assert!(switched < position(&done, "DeleteService 10.96.0.10"));
    assert!(fixture.engine.is_settled());

    // Neither needs a plan of policies.
    let revision = fixture.engine.revision();
    found.addresses = [[192, 0, 2, 2].into()].into();
    fixture.engine.scanned(found);
    fixture.step();
    assert_eq!(
        fixture.done(),
        ["PutService 192.0.2.2 2", "DeleteService 192.0.2.1"]
    );
    assert_eq!(fixture.engine.revision(), revision);
    assert!(fixture.engine.is_settled());
}

#[test]
fn rows_of_an_earlier_agents_services_go_once_all_is_known() {
    let mut former = Former::default();
    let kind = policy_common::service::ServiceAddress::SERVICE;
    former.services.insert([10, 96, 0, 1].into(), kind);
    former.services.insert([10, 96, 0, 2].into(), kind);
    let mut fixture = Fixture::new();
    fixture.engine = Engine::new(
        Fake::default(),
        Limits::default(),
        "n1".into(),
        Some(former),
    );
    fixture
        .engine
        .changed(vec![pod("a", 1), service("kept", &["10.96.0.1"])]);
    fixture.engine.loaded();
    fixture.step();
    assert_eq!(fixture.done(), [""; 0], "no interface was looked for");
    fixture.engine.scanned(scan(&[(7, 1)]));
    fixture.step();
    let done = fixture.done_of(&["PutService", "DeleteService"]);
    assert_eq!(done, ["DeleteService 10.96.0.2"]);
    assert!(fixture.engine.is_settled());
}

#[test]
fn a_service_that_finds_no_room_holds_up_nobody() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.refuse("PutService 10.96.0.2", 1);
    let two = service("two", &["10.96.0.2"]);
    fixture
        .engine
        .changed(vec![service("one", &["10.96.0.1"]), two, default_deny()]);
    assert_eq!(fixture.step(), None);
    assert!(fixture.engine.is_settled() && fixture.engine.stuck(fixture.now).is_none());
    position(&fixture.done(), "attach 8");
    let problem = &fixture.engine.problems()[0];
    assert!(
        problem.starts_with("table service_v4 is full: 1 "),
        "{problem}"
    );
    assert_eq!(fixture.engine.refusals().count(), 1);
    fixture.engine.changed(vec![service_gone("one")]);
    assert_eq!(fixture.step(), None);
    assert_eq!(
        fixture.done(),
        ["DeleteService 10.96.0.1", "PutService 10.96.0.2 1"]
    );
    assert_eq!(fixture.engine.problems(), [""; 0]);
}

const GUARDS: [&str; 2] = ["PutGuard", "DeleteGuard"];

#[test]
fn rows_of_guards_come_before_policies_and_go_after_them() {
    let mut fixture = Fixture::with_two_endpoints();
    let mut found = scan(&[(7, 1), (8, 2)]);
    found.addresses = [[192, 0, 2, 1].into()].into();
    found.tunnels.remotes = [[192, 0, 2, 2].into()].into();
    fixture.engine.scanned(found.clone());
    fixture.engine.changed(vec![default_deny()]);
    fixture.step();
    let done = fixture.done_with_guards();
    let rows = [
        "PutGuard 127.0.0.0/8 2",
        "PutGuard 192.0.2.1/32 2",
        "PutGuard 192.0.2.2/32 8",
        "PutGuard ::1/128 2",
        "PutGuard 10.0.0.1/32 1",
        "PutGuard 10.0.0.2/32 1",
    ];
    assert!(done.iter().filter(|what| what.contains("Guard ")).eq(&rows));
    assert!(position(&done, rows[5]) < position(&done, "PutEndpoint 7"));

    let next = pod("c", 3);
    fixture
        .engine
        .changed(vec![pod_gone("b"), next, from_anywhere(80)]);
    fixture.step();
    let done = fixture.done_with_guards();
    let switched = position(&done, "PutEndpoint 7");
    assert!(position(&done, "PutGuard 10.0.0.3/32 1") < switched);
    assert!(switched < position(&done, "DeleteGuard 10.0.0.2/32"));

    // A tunnel's other end alone needs no plan of policies.
    let revision = fixture.engine.revision();
    found.tunnels.remotes.clear();
    fixture.engine.scanned(found);
    fixture.step();
    assert_eq!(fixture.done_with_guards(), ["DeleteGuard 192.0.2.2/32"]);
    assert_eq!(fixture.engine.revision(), revision);
    assert!(fixture.engine.is_settled());
}

#[test]
fn rows_of_an_earlier_agents_guards_go_once_all_is_known() {
    let mut former = Former::default();
    for (prefix, kind) in [("10.0.0.1/32", 1), ("10.0.0.9/32", 1)] {
        former.guards.insert(prefix.parse().expect("prefix"), kind);
    }
    let mut fixture = Fixture::new();
    fixture.engine = Engine::new(
        Fake::default(),
        Limits::default(),
        "n1".into(),
        Some(former),
    );
    fixture.engine.changed(vec![pod("a", 1)]);
    fixture.engine.loaded();
    fixture.step();
    assert_eq!(
        fixture.done_of(&GUARDS),
        [""; 0],
        "no interface was looked for"
    );
    fixture.engine.scanned(scan(&[(7, 1)]));
    fixture.step();
    assert_eq!(
        fixture.done_of(&GUARDS),
        [
            "PutGuard 127.0.0.0/8 2",
            "PutGuard ::1/128 2",
            "DeleteGuard 10.0.0.9/32"
        ]
    );
}

#[test]
fn a_guard_that_finds_no_room_holds_up_nobody() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.refuse("PutGuard 10.0.0.2", 1);
    fixture.engine.changed(vec![default_deny()]);
    assert_eq!(fixture.step(), None);
    assert!(fixture.engine.is_settled() && fixture.engine.stuck(fixture.now).is_none());
    position(&fixture.done(), "attach 8");
    let problem = &fixture.engine.table_problems()[0];
    assert!(
        problem.starts_with("table guarded_v4 is full: 1 "),
        "{problem}"
    );
    assert_eq!(fixture.engine.refusals().count(), 1);
    fixture.engine.changed(vec![pod_gone("a")]);
    assert_eq!(fixture.step(), None);
    assert_eq!(
        fixture.done_of(&GUARDS),
        ["DeleteGuard 10.0.0.1/32", "PutGuard 10.0.0.2/32 1"]
    );
    assert_eq!(fixture.engine.table_problems(), [""; 0]);
}

#[test]
fn ports_of_tunnels_are_known_before_endpoints_and_followed() {
    let mut fixture = Fixture::with_two_endpoints();
    let mut found = scan(&[(7, 1), (8, 2)]);
    found.tunnels.ports = [4789, 8472, 0, 0];
    fixture.engine.scanned(found.clone());
    fixture.step();
    let done = fixture.done();
    assert!(
        position(&done, "tunnel ports [4789, 8472, 0, 0]") < position(&done, "PutEndpoint 7"),
        "{done:?}"
    );
    fixture.engine.scanned(found.clone());
    assert_eq!(fixture.done(), [""; 0], "they are as they were");

    found.tunnels.ports = [8472, 0, 0, 0];
    fixture.refuse("tunnel ports", 1);
    fixture.engine.scanned(found.clone());
    let problems = fixture.engine.problems();
    assert!(
        problems[0].starts_with("cannot put the ports of tunnels"),
        "{problems:?}"
    );
    // What was wanted before is wanted again: some rows may have the others.
    found.tunnels.ports = [4789, 8472, 0, 0];
    fixture.engine.scanned(found.clone());
    assert_eq!(fixture.done(), ["tunnel ports [4789, 8472, 0, 0]"]);
    assert_eq!(fixture.engine.problems(), [""; 0]);

    found.tunnels.uncovered = vec![("geneve9".to_owned(), 6085)];
    fixture.engine.scanned(found);
    let problems = fixture.engine.problems();
    assert!(
        problems[0].contains("geneve9 at UDP port 6085"),
        "{problems:?}"
    );
    assert_eq!(fixture.engine.refusals().count(), 1);
}

#[test]
fn exits_are_attached_before_endpoints_and_in_slices() {
    let mut fixture = Fixture::new();
    let found = with_links(scan(&[(7, 1), (8, 2)]), &[2, 3, 4, 7, 8], &[5]);
    fixture.engine.scanned(found.clone());
    fixture.engine.changed(vec![pod("a", 1), pod("b", 2)]);
    assert_eq!(fixture.step(), Some(fixture.now), "more is to be done");
    assert_eq!(fixture.done(), ["exit to 2", "exit to 3"]);
    fixture.engine.loaded();
    fixture.step_in_slices();
    let done = fixture.done_of(&["exit", "attach"]);
    assert_eq!(done, ["exit to 4", "exit_l3 to 5", "attach 7", "attach 8"]);
    assert!(fixture.engine.is_settled());
    let counts = fixture.engine.exit_counts();
    assert_eq!(
        counts,
        [
            ("attached", 4),
            ("attaching", 0),
            ("detaching", 0),
            ("waiting", 0)
        ]
        .into()
    );

    // An interface that comes and one that goes; one that was made anew under its index.
    let mut later = with_links(scan(&[(7, 1), (8, 2)]), &[2, 4, 6, 7, 8], &[5]);
    later.links.get_mut(&4).expect("there").hardware_address = vec![1];
    fixture.engine.scanned(later);
    assert!(fixture.step_in_slices() > 1);
    assert_eq!(
        fixture.done(),
        ["exit from 3", "exit to 4", "exit soon to 6"]
    );
    let link = Link {
        name: "tunnel".to_owned(),
        program: NetdevProgram::FromNode,
        hardware_address: Vec::new(),
        is_veth: false,
        leads_elsewhere: false,
    };
    fixture.engine.appeared(9, link);
    fixture.step_in_slices();
    assert_eq!(fixture.done(), ["from_node soon to 9"]);
}

#[test]
fn a_new_veth_waits_until_it_has_been_nobodys_for_some_time() {
    let mut fixture = Fixture::new();
    fixture.engine.loaded();
    // Those that there are at the start do not, unless the plugin announces pods.
    let with_veths = |ifindexes: &[u32], endpoints: &[(u32, u8)]| {
        let mut scan = with_links(scan(endpoints), ifindexes, &[]);
        for link in scan.links.values_mut() {
            (link.is_veth, link.leads_elsewhere) = (true, true);
        }
        scan
    };
    fixture.engine.scanned(with_veths(&[3], &[]));
    fixture.step_in_slices();
    assert_eq!(fixture.done(), ["exit to 3"]);

    fixture
        .engine
        .scanned(with_veths(&[3, 7, 8], &[(7, 1), (8, 2)]));
    let until = fixture.step().expect("looks again");
    assert_eq!(until, fixture.now + Duration::from_secs(10));
    assert_eq!(fixture.done(), [""; 0]);
    assert!(fixture.engine.is_settled());
    let words: Vec<_> = fixture.engine.exits().map(|exit| exit.word).collect();
    assert_eq!(words, ["attached", "waiting", "waiting"]);

    // One becomes a pod's, the other nobody's.
    fixture.engine.changed(vec![pod("a", 1)]);
    fixture.step_in_slices();
    assert_eq!(fixture.done_of(&["exit", "attach"]), ["attach 7"]);
    fixture.now = until;
    fixture.step_in_slices();
    assert_eq!(fixture.done(), ["exit to 8"]);
    let words: Vec<_> = fixture.engine.exits().map(|exit| exit.word).collect();
    assert_eq!(words, ["attached"; 2]);

    // A pod's that cannot be attached has it at once.
    fixture.refuse("attach 9", 1);
    fixture.engine.changed(vec![pod("c", 3)]);
    fixture
        .engine
        .scanned(with_veths(&[3, 7, 8, 9], &[(7, 1), (8, 2), (9, 3)]));
    fixture.step_in_slices();
    assert_eq!(fixture.done_of(&["exit", "attach"]), ["exit to 9"]);
}

#[test]
fn an_interface_that_becomes_an_endpoint_is_never_without_a_program() {
    let mut fixture = Fixture::new();
    fixture.engine.loaded();
    let found = with_links(scan(&[(7, 1)]), &[7], &[]);
    fixture.engine.scanned(found);
    fixture.step_in_slices();
    assert_eq!(fixture.done_of(&["exit", "attach"]), ["exit to 7"]);
    fixture.engine.changed(vec![pod("a", 1)]);
    fixture.step_in_slices();
    assert_eq!(
        fixture.done_of(&["exit", "attach"]),
        ["attach 7", "exit from 7"]
    );
    assert!(fixture.engine.is_settled());
    // Another device has its index, and is no pod's.
    let mut other = scan(&[]);
    other.veths.insert(7);
    other.interfaces.insert(7, interface(7, 99));
    fixture.engine.scanned(with_links(other, &[7], &[]));
    fixture.step_in_slices();
    assert_eq!(
        fixture.done_of(&["exit", "detach"]),
        ["exit soon to 7", "detach 7"]
    );
    assert!(fixture.engine.is_settled());
}

#[test]
fn an_exit_that_fails_is_tried_again_and_holds_up_nobody() {
    let mut fixture = Fixture::new();
    fixture.refuse("exit to 2", 2);
    fixture.engine.changed(vec![pod("a", 1)]);
    fixture.engine.loaded();
    fixture
        .engine
        .scanned(with_links(scan(&[(7, 1)]), &[2, 7], &[]));
    let again = fixture.step().expect("wants to try again");
    assert!(again > fixture.now);
    assert_eq!(fixture.done_of(&["exit", "attach"]), ["attach 7"]);
    assert!(!fixture.engine.is_settled());
    assert_eq!(
        fixture.engine.kernel.pruned, 0,
        "an earlier agent's exit may be there"
    );
    let exits: Vec<_> = fixture.engine.exits().collect();
    assert_eq!((exits[0].word, exits.len()), ("attaching", 1));
    assert_eq!(
        exits[0].error.as_deref(),
        Some("program from_pod is not loaded")
    );
    assert_eq!(fixture.step_until_quiet(), 2);
    assert_eq!(fixture.done_of(&["exit"]), ["exit to 2"]);
    assert!(fixture.engine.is_settled());
    assert_eq!(fixture.engine.kernel.pruned, 1);
}

#[test]
fn a_program_that_was_detached_is_attached_again() {
    let mut fixture = Fixture::with_two_endpoints();
    fixture.step_until_quiet();
    let drift = |part, ifindex| Drift {
        part,
        role: if ifindex == Some(9) {
            Role::Netdev
        } else {
            Role::Endpoint
        },
        ifindex,
        found: "another".to_owned(),
        error: None,
    };
    fixture.engine.kernel.drifts = vec![
        drift(DriftedPart::Program, Some(8)),
        drift(DriftedPart::LinkPin, Some(7)),
        drift(DriftedPart::TablePin, None),
        drift(DriftedPart::Program, Some(9)),
    ];
    fixture.engine.kernel.done.clear();
    fixture.engine.verify();
    assert!(!fixture.engine.is_settled());
    fixture.step_until_quiet();
    assert_eq!(fixture.engine.kernel.done, ["attach 8"]);
    assert!(fixture.engine.is_settled());
    let repairs = fixture.engine.repairs();
    let counts: Vec<_> = repairs
        .iter()
        .map(|(what, count)| (*what, *count))
        .collect();
    assert_eq!(
        counts,
        [
            ("endpoint_row", 0),
            ("link_pin", 1),
            ("program", 2),
            ("table_pin", 1)
        ]
    );
}

/// What the compiler has of an endpoint: its pod, whether each direction is isolated by policies, its addresses.
fn view(engine: &Engine<Fake>, ifindex: u32) -> (String, [Option<usize>; 2], Vec<String>) {
    let views = engine.compiler.endpoints();
    let view = views.into_iter().find(|view| view.ifindex == ifindex);
    let view = view.expect("an endpoint");
    let policies = |direction: Option<DirectionView>| direction.map(|view| view.policies.len());
    let addresses = view.addresses.iter().map(ToString::to_string).collect();
    (
        view.pod.to_string(),
        [policies(view.ingress), policies(view.egress)],
        addresses,
    )
}

/// A scan in which the pods gave their interfaces other addresses.
fn bearing(mut scan: Scan, ifindex: u32, addresses: &[&str]) -> Scan {
    if let Some(found) = scan.interfaces.get_mut(&ifindex) {
        found.addresses = addresses
            .iter()
            .map(|address| address.parse().expect("address"))
            .collect();
    }
    scan
}

/// Pod a (10.0.0.1, `app: web`) on interface 7, which hears everybody at one port, and b (10.0.0.2) on 8.
fn one_web() -> Fixture {
    let mut fixture = Fixture::new();
    fixture.engine.changed(vec![
        labelled("a", "u1", "web", 1),
        pod("b", 2),
        from_web(),
        default_deny(),
    ]);
    fixture.engine.loaded();
    fixture.engine.scanned(scan(&[(7, 1), (8, 2)]));
    fixture.step();
    fixture.done();
    fixture
}

fn labelled(name: &str, uid: &str, label: &str, last: u8) -> ObjectChange {
    let ObjectChange::Upsert(Object::Pod(PodObject::Pod { mut pod, node, .. })) =
        unaddressed(name, uid, label)
    else {
        unreachable!()
    };
    pod.addresses = vec![[10, 0, 0, last].into()];
    ObjectChange::Upsert(Object::Pod(PodObject::Pod {
        pod,
        node,
        dated: true,
        host_addresses: Vec::new(),
    }))
}

#[test]
fn a_found_device_stays_its_pods_whatever_the_pod_and_the_api_do() {
    let rows: [(&str, Disturb); 7] = [
        ("its address is on another interface", |engine| {
            engine.scanned(bearing(scan(&[(7, 1), (8, 2)]), 7, &[]));
        }),
        ("it bears a neighbour's address, too", |engine| {
            let scan = bearing(scan(&[(7, 1), (8, 2)]), 7, &["10.0.0.1", "10.0.0.2"]);
            engine.scanned(scan);
        }),
        ("it bears nothing but a neighbour's address", |engine| {
            engine.scanned(bearing(scan(&[(7, 1), (8, 2)]), 7, &["10.0.0.2"]));
        }),
        ("its pod is gone", |engine| {
            engine.changed(vec![pod_gone("a")])
        }),
        ("its pod has another address by the API", |engine| {
            engine.changed(vec![labelled("a", "u1", "web", 9)]);
        }),
        ("its name is another pod's, here", |engine| {
            engine.changed(vec![labelled("a", "u2", "other", 9)]);
        }),
        ("its name is another pod's, elsewhere", |engine| {
            let ObjectChange::Upsert(Object::Pod(PodObject::Pod { pod, .. })) =
                labelled("a", "u2", "other", 9)
            else {
                unreachable!()
            };
            engine.changed(vec![ObjectChange::Upsert(Object::Pod(PodObject::Pod {
                pod,
                node: Some("n2".into()),
                dated: true,
                host_addresses: Vec::new(),
            }))]);
        }),
    ];
    for (what, disturb) in rows {
        let mut fixture = one_web();
        let (before, neighbour) = (view(&fixture.engine, 7), view(&fixture.engine, 8));
        assert_eq!(before.1, [Some(2), Some(1)]);
        disturb(&mut fixture.engine);
        fixture.step();
        assert_eq!(view(&fixture.engine, 7), before, "{what}");
        assert_eq!(view(&fixture.engine, 8), neighbour, "{what}");
        assert_eq!(fixture.done_of(&["attach", "detach"]), [""; 0], "{what}");
        let owner = |last: u8| {
            let owner = fixture
                .engine
                .compiler
                .pod_of_address([10, 0, 0, last].into());
            owner.map(|pod| pod.to_string())
        };
        assert_eq!(
            owner(1).as_deref(),
            Some("shop/a"),
            "{what}: it stays a peer"
        );
        assert_eq!(owner(2).as_deref(), Some("shop/b"), "{what}");
        assert!(fixture.engine.is_settled(), "{what}");

        // What is written of policies goes on being about it.
        fixture.engine.changed(vec![from_anywhere(80)]);
        fixture.step();
        assert_eq!(view(&fixture.engine, 7).1, [Some(3), Some(1)], "{what}");
    }
}

#[test]
fn a_successor_goes_on_with_what_was_known() {
    let mut fixture = one_web();
    let before = view(&fixture.engine, 7);
    let written: Vec<_> = fixture.engine.take_changed_bindings().into_iter().collect();
    assert_eq!(written, [7, 8]);
    let bindings: Vec<Binding> = fixture.engine.bindings().iter().cloned().collect();
    // The pod goes, and gives its interface another address, while no agent runs.
    let mut successor = Fixture::new();
    for binding in bindings {
        successor.engine.adopt(binding);
    }
    successor
        .engine
        .changed(vec![pod("b", 2), from_web(), default_deny()]);
    successor.engine.loaded();
    let found = bearing(scan(&[(7, 1), (8, 2)]), 7, &["10.0.0.2"]);
    successor.engine.scanned(found);
    successor.step();
    assert_eq!(view(&successor.engine, 7), before);
    assert_eq!(view(&successor.engine, 8).0, "shop/b");
    // The device goes.
    successor.engine.take_changed_bindings();
    successor.engine.scanned(scan(&[(8, 2)]));
    successor.step();
    assert_eq!(successor.engine.take_changed_bindings(), [7].into());
    assert_eq!(successor.engine.endpoints().count(), 1);
}

#[test]
fn a_device_that_leads_to_a_pods_namespace_is_the_pods() {
    let second = |addresses: &[&str], link_local: &[[u8; 4]]| {
        let mut found = bearing(scan(&[(7, 1), (8, 2), (9, 1)]), 9, addresses);
        if let Some(found) = found.interfaces.get_mut(&9) {
            found.peer.ifindex = 3;
            found.peer.name = "v4if0".to_owned();
            found.link_local = link_local.iter().map(|octets| (*octets).into()).collect();
        }
        found.addresses = [[192, 0, 2, 1].into()].into();
        found
    };
    let mut fixture = one_web();
    let first = view(&fixture.engine, 7);
    fixture.engine.scanned(second(&[], &[]));
    fixture.step();
    let done = fixture.done();
    assert!(position(&done, "PutEndpoint 9") < position(&done, "attach 9"));
    let none: Vec<String> = Vec::new();
    assert_eq!(
        view(&fixture.engine, 9),
        (first.0.clone(), first.1, none.clone())
    );
    fixture
        .engine
        .changed(vec![service("dns", &["10.96.0.10"])]);
    fixture.step();
    type Row<'a> = (&'a [&'a str], &'a [[u8; 4]], &'a [&'a str]);
    let rows: [Row<'_>; 5] = [
        (&[], &[[169, 254, 172, 5]], &["169.254.172.5"]),
        (&["10.9.0.2"], &[], &["10.9.0.2"]),
        (&["10.0.0.2"], &[], &[]),
        (&["192.0.2.1"], &[], &[]),
        (&["10.96.0.10"], &[], &[]),
    ];
    for (addresses, link_local, own) in rows {
        fixture.engine.scanned(second(addresses, link_local));
        fixture.step();
        let what = format!("{addresses:?} {link_local:?}");
        assert_eq!(view(&fixture.engine, 9).2, own, "{what}");
        assert_eq!(view(&fixture.engine, 8).2, ["10.0.0.2"], "{what}");
    }
    // A pod of another node has the address: it is told of later, and yielded.
    fixture.engine.scanned(second(&["10.9.0.2"], &[]));
    fixture.step();
    let ObjectChange::Upsert(Object::Pod(PodObject::Pod { mut pod, .. })) = pod("c", 3) else {
        unreachable!()
    };
    pod.addresses = vec![[10, 9, 0, 2].into()];
    pod.created = -1;
    fixture
        .engine
        .changed(vec![ObjectChange::Upsert(Object::Pod(PodObject::Pod {
            pod,
            node: Some("n2".into()),
            dated: true,
            host_addresses: Vec::new(),
        }))]);
    fixture.step();
    assert_eq!(view(&fixture.engine, 9).2, none);
    let owner = fixture.engine.compiler.pod_of_address([10, 9, 0, 2].into());
    assert_eq!(owner.map(|pod| pod.to_string()).as_deref(), Some("shop/c"));

    // The pod deletes its first interface: the second stays its own, and so does a third.
    let mut third = scan(&[(8, 2), (9, 1), (10, 1)]);
    for (ifindex, peer) in [(9, 3), (10, 4)] {
        let found = third.interfaces.get_mut(&ifindex).expect("there");
        found.peer.ifindex = peer;
        found.addresses.clear();
    }
    fixture.engine.changed(vec![pod_gone("a")]);
    fixture.engine.scanned(third);
    fixture.step();
    for ifindex in [9, 10] {
        assert_eq!(view(&fixture.engine, ifindex).1, first.1, "{ifindex}");
    }
}

#[test]
fn a_second_device_is_only_named_where_the_operator_wants_it_so() {
    let mut fixture = one_web();
    fixture.engine.settings.secondaries = Secondaries::Report;
    let mut found = scan(&[(7, 1), (8, 2), (9, 1)]);
    if let Some(found) = found.interfaces.get_mut(&9) {
        found.peer.ifindex = 3;
        found.peer.name = "net1".to_owned();
    }
    fixture.engine.scanned(found);
    fixture.step();
    assert_eq!(fixture.done_of(&ENDPOINTS), [""; 0]);
    let named: Vec<_> = fixture
        .engine
        .unenforced()
        .iter()
        .map(|named| (named.pod.to_string(), named.interface.clone()))
        .collect();
    assert_eq!(named, [("shop/a".to_owned(), "net1".to_owned())]);
}

#[test]
fn pods_of_listed_namespaces_are_routers() {
    let mut fixture = one_web();
    let is_router =
        |fixture: &Fixture| fixture.engine.endpoints().all(|(local, _)| local.is_router);
    assert!(!is_router(&fixture));
    fixture.engine.settings.router_namespaces = ["shop".into()].into();
    fixture
        .engine
        .scanned(with_links(scan(&[(7, 1), (8, 2)]), &[2], &[]));
    fixture.step();
    assert!(is_router(&fixture));
}

#[test]
fn the_kernel_knows_of_what_an_interface_is_a_port() {
    let mut fixture = Fixture::with_two_endpoints();
    let port_of = |master| {
        let mut found = scan(&[(7, 1), (8, 2)]);
        if let Some(found) = found.interfaces.get_mut(&7) {
            found.master = master;
        }
        found
    };
    fixture.engine.scanned(port_of(4));
    assert_eq!(fixture.step(), None);
    let done = fixture.done();
    assert!(position(&done, "master of 7 is 4") < position(&done, "attach 7"));
    for master in [5, 0] {
        fixture.engine.scanned(port_of(master));
        fixture.step();
        assert_eq!(fixture.done(), [format!("master of 7 is {master}")]);
    }
    fixture.refuse("master of 7", 2);
    fixture.engine.scanned(port_of(6));
    assert!(fixture.step().is_some(), "wants to try again");
    assert_eq!(fixture.step_until_quiet(), 2);
    assert_eq!(fixture.done(), ["master of 7 is 6"]);
    // What cannot be looked at is what it was.
    let mut unreadable = scan(&[(8, 2)]);
    unreadable.veths.insert(7);
    fixture.engine.scanned(unreadable);
    fixture.step();
    assert_eq!(fixture.done(), [""; 0]);
}

#[test]
fn a_stale_status_does_not_decide_for_ever_whose_a_device_is() {
    let mut fixture = Fixture::new();
    // Pod b is newer, and its status has the address of before a reboot.
    let stale = |last| labelled_at("b", 2, last);
    fixture
        .engine
        .changed(vec![labelled_at("a", 1, 1), stale(1), default_deny()]);
    fixture.engine.loaded();
    fixture.engine.scanned(scan(&[(7, 1)]));
    fixture.step();
    assert_eq!(view(&fixture.engine, 7).0, "shop/b");
    fixture.engine.changed(vec![stale(2)]);
    fixture.step();
    assert_eq!(view(&fixture.engine, 7).0, "shop/a");
    // A pod that came later is not whose device it was.
    let mut fixture = Fixture::new();
    fixture
        .engine
        .changed(vec![labelled_at("a", 1, 1), default_deny()]);
    fixture.engine.loaded();
    fixture.engine.scanned(scan(&[(7, 1)]));
    fixture.step();
    fixture.engine.changed(vec![pod_gone("a"), stale(1)]);
    fixture.step();
    assert_eq!(view(&fixture.engine, 7).0, "shop/a");
    assert_eq!(view(&fixture.engine, 7).2, [""; 0], "a live pod claims it");
}

fn labelled_at(name: &str, created: i64, last: u8) -> ObjectChange {
    let ObjectChange::Upsert(Object::Pod(PodObject::Pod { mut pod, node, .. })) =
        labelled(name, name, "web", last)
    else {
        unreachable!()
    };
    pod.created = created;
    ObjectChange::Upsert(Object::Pod(PodObject::Pod {
        pod,
        node,
        dated: true,
        host_addresses: Vec::new(),
    }))
}
