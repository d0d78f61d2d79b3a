//! The one owner of compiler and kernel: takes in what changed, and makes it so.
//!
//! ```text
//! datastore ─┐                      ┌─> operations ──> kernel
//!            ├─> pending ─> compiler┤
//! scans ─────┘           |          └─> attach, once an endpoint's row is in place and exits were tried
//!                        '─> what nobody uses any more, after grace periods
//! ```
//!
//! Invariants:
//! - nothing is programmed before the datastore's first load is complete;
//! - operations run in order, none is skipped; one that fails is tried again, and what changes
//!   meanwhile waits;
//! - rows of Services' addresses, and of addresses that are somebody's, are put before the policies that come with
//!   them, and deleted after;
//! - an interface that becomes an endpoint, or is one no more, is never without a program that judges what
//!   is sent to it;
//! - an endpoint's row is put before its programs are attached, and they are detached before its row
//!   is deleted.
//!
//! No clock is read and nothing is waited for here, so that tests can do both. Grace periods are asked for
//! ([`Engine::begin_grace`]) and reported back; meanwhile changes are enforced as they come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use policy_cni::api::AttachmentKey;
use policy_core::model::{Change, LocalEndpoint, ObjectName, Origin, Subject};
use policy_core::op::Op;
use policy_core::tables::Tables as Former;
use policy_core::{Compiler, Limits, Problem};

use super::backoff::Backoff;
use super::exits::{ExitState, Exits, Wish};
use super::failure::Failure;
use super::guards::Guards;
use super::kernel::Kernel;
use super::operations::{ATTACH, DETACH, Operations};
use super::services::ServiceAddresses;
use crate::dataplane::{ApplyError, AttachError, Drift, DriftedPart, Haste, Role};
use crate::datastore::convert::PodObject;
use crate::datastore::{Object, ObjectChange, ObjectKey};
use crate::endpoint::{
    Announced, Announcement, Binding, Bindings, Device, Interface, Link, LocalPods, Scan,
    Secondaries, Tunnels, Unenforced,
};

/// Operations that the empty queue keeps room for.
const IDLE_QUEUE: usize = 1024;

/// See the module.
pub struct Engine<K> {
    pub(super) kernel: K,
    pub(super) compiler: Compiler,
    pub(super) pods: LocalPods,
    announced: Announced,
    bindings: Bindings,
    settings: EndpointSettings,
    loaded: bool,
    scan: Option<Scan>,
    /// Endpoints have to be matched with pods again.
    unmatched: bool,
    pending: Vec<Change>,
    services: ServiceAddresses,
    guards: Guards,
    tunnels: TunnelPorts,
    queue: VecDeque<Op>,
    grace: Grace,
    /// Plans were executed since garbage was last looked for.
    littered: bool,
    /// Arrivals of what is in `pending`.
    arrived: Vec<Arrival>,
    /// Arrivals of what the queue is the plan of.
    compiled_arrivals: Vec<Arrival>,
    /// Arrivals of what was enforced since somebody asked.
    enforced_arrivals: Vec<Arrival>,
    stuck: Option<Stuck>,
    compiled: u64,
    enforced: u64,
    endpoints: BTreeMap<u32, Endpoint>,
    exits: Exits,
    /// Pods that start are announced.
    expects_announcements: bool,
    /// Plugins after ours add an `ingress` qdisc, in whose way clsact is.
    spares_clsact: bool,
    /// The exits that there were at the start were tried, so that endpoints may be attached.
    exits_tried: bool,
    /// An earlier agent's tables are led over from.
    took_over: bool,
    operations: Operations,
    repairs: BTreeMap<&'static str, u64>,
    pruned: bool,
    reported: BTreeSet<Problem>,
}

/// How endpoints are treated, where the operator has a say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSettings {
    /// What becomes of pods' further interfaces.
    pub secondaries: Secondaries,
    /// Namespaces whose pods are routers: what they send may bear addresses that are not their own.
    pub router_namespaces: BTreeSet<Arc<str>>,
}

/// Changes that the datastore heard of together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it did.
    pub received: Instant,
    /// How many they are.
    pub changes: usize,
}

/// What a grace period is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grace {
    /// None is.
    Idle,
    /// What nobody used since this plan may be retired afterwards.
    Leaving(u64),
    /// That one has passed.
    Left(u64),
    /// What is retired is to be buried afterwards; begun or not.
    Retired { begun: bool },
    /// That one has passed.
    Dead,
}

/// The UDP ports of this node's tunnels, which every endpoint's row has.
#[derive(Debug, Default)]
struct TunnelPorts {
    /// What the rows have.
    written: [u16; Tunnels::MOST_PORTS],
    /// Why they do not have what the last scan found.
    error: Option<String>,
    /// What of the tunnels that the last scan found is not covered.
    problems: Vec<String>,
}

/// The operation at the head of the queue, which fails.
#[derive(Clone, Debug)]
struct Stuck {
    error: String,
    backoff: Backoff,
}

#[derive(Debug)]
struct Endpoint {
    device: Device,
    local: LocalEndpoint,
    state: State,
    /// The device that the host side is a port of, as last found; 0 for none.
    master: u32,
    /// The same as the kernel was told.
    told_master: Option<u32>,
    /// Why it could not be told.
    untold: Option<Failure>,
}

/// How far an endpoint has come.
#[derive(Debug)]
enum State {
    /// Its row is being put; `compiled` once it is part of the queued operations.
    Programming { compiled: bool },
    /// Its programs are being attached.
    Attaching(Option<Failure>),
    /// Enforced.
    Attached,
    /// Its programs are being detached.
    Detaching(Option<Failure>),
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            Self::Programming { .. } => "programming",
            Self::Attaching(_) => "attaching",
            Self::Attached => "enforced",
            Self::Detaching(_) => "detaching",
        }
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Attaching(failure) | Self::Detaching(failure) => failure.as_ref(),
            Self::Programming { .. } | Self::Attached => None,
        }
    }
}

/// Where an endpoint stands, in words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointState {
    /// `enforced`, `programming`, `attaching` or `detaching`.
    pub word: &'static str,
    /// Why it gets no further, where something fails.
    pub error: Option<String>,
}

impl EndpointState {
    /// Every value of `word`.
    pub const WORDS: [&str; 4] = ["programming", "attaching", "enforced", "detaching"];
}

/// The operation that the queue waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StuckPlan {
    /// The operation.
    pub operation: String,
    /// Why it fails.
    pub error: String,
    /// How often it failed.
    pub tries: u32,
    /// For how long, in seconds.
    pub seconds: u64,
}

impl<K: Kernel> Engine<K> {
    /// An engine for the node of this name, with nothing loaded. `former` is what the kernel's tables hold
    /// already.
    pub fn new(kernel: K, limits: Limits, node: Arc<str>, mut former: Option<Former>) -> Self {
        let (services, guards) = match &mut former {
            Some(former) => (
                std::mem::take(&mut former.services),
                std::mem::take(&mut former.guards),
            ),
            None => Default::default(),
        };
        let took_over = former.is_some();
        let compiler = match former {
            Some(former) => Compiler::adopting(limits, former),
            None => Compiler::new(limits),
        };
        Self {
            kernel,
            compiler,
            pods: LocalPods::new(node),
            announced: Announced::default(),
            bindings: Bindings::default(),
            settings: EndpointSettings::default(),
            loaded: false,
            scan: None,
            unmatched: false,
            pending: Vec::new(),
            services: ServiceAddresses::new(services),
            guards: Guards::new(guards),
            tunnels: TunnelPorts::default(),
            queue: VecDeque::new(),
            grace: Grace::Idle,
            littered: false,
            arrived: Vec::new(),
            compiled_arrivals: Vec::new(),
            enforced_arrivals: Vec::new(),
            stuck: None,
            compiled: 0,
            enforced: 0,
            endpoints: BTreeMap::new(),
            exits: Exits::default(),
            expects_announcements: false,
            spares_clsact: false,
            exits_tried: false,
            took_over,
            operations: Operations::default(),
            repairs: DriftedPart::ALL.map(|part| (part.as_str(), 0)).into(),
            pruned: false,
            reported: BTreeSet::new(),
        }
    }

    /// With these settings; to be called before anything else.
    #[must_use]
    pub fn with_settings(mut self, settings: EndpointSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Objects of the datastore changed, which heard of it at `received`.
    pub fn objects_changed(&mut self, changes: Vec<ObjectChange>, received: Instant) {
        // The first load waits for its end, which says nothing about a change.
        if self.loaded {
            self.arrived.push(Arrival {
                received,
                changes: changes.len(),
            });
        }
        for change in changes {
            self.guards.changed(&change);
            match &change {
                ObjectChange::Upsert(Object::Pod(PodObject::Pod { pod, node, .. })) => {
                    self.pods.put(pod, node.as_deref());
                    self.unmatched = true;
                }
                ObjectChange::Upsert(Object::Pod(PodObject::HostNetwork { name, .. }))
                | ObjectChange::Gone(ObjectKey::Pod(name)) => {
                    self.pods.remove(name);
                    self.unmatched = true;
                }
                ObjectChange::Upsert(Object::Service(service)) => {
                    self.services.put(service);
                    self.unmatched |= self.has_secondaries();
                }
                ObjectChange::Gone(ObjectKey::Service(name)) => {
                    self.services.remove(name);
                    self.unmatched |= self.has_secondaries();
                }
                _ => {}
            }
            self.pending.extend(change.for_compiler());
        }
    }

    /// The datastore's first load is complete.
    pub fn loaded(&mut self) {
        self.loaded = true;
        self.unmatched = true;
    }

    /// Interfaces were looked for.
    pub fn scanned(&mut self, scan: Scan) {
        self.unmatched |= self.scan.as_ref() != Some(&scan);
        self.services.set_own(&scan.addresses);
        self.guards.set_own(&scan.addresses);
        // What could not be read is still there, as far as anybody knows.
        let keeps = !scan.tunnels.unread.is_empty();
        self.guards.set_remotes(&scan.tunnels.remotes, keeps);
        self.follow_tunnels(&scan.tunnels);
        self.scan = Some(scan);
    }

    /// Puts the ports of this node's tunnels into every endpoint's row. What fails is tried again with the next scan.
    fn follow_tunnels(&mut self, tunnels: &Tunnels) {
        let problems = tunnels.problems();
        let former = std::mem::replace(&mut self.tunnels.problems, problems.clone());
        for problem in problems.iter().filter(|problem| !former.contains(problem)) {
            tracing::error!("{problem}");
        }
        for problem in former.iter().filter(|problem| !problems.contains(problem)) {
            tracing::info!("no longer: {problem}");
        }
        if self.tunnels.error.is_none() && self.tunnels.written == tunnels.ports {
            return;
        }
        match self.kernel.set_tunnel_ports(tunnels.ports) {
            Ok(()) => {
                let ports: Vec<_> = tunnels.ports.iter().filter(|port| **port != 0).collect();
                tracing::info!(
                    ?ports,
                    "the UDP ports of this node's tunnel devices are in every endpoint's row"
                );
                self.tunnels.written = tunnels.ports;
                self.tunnels.error = None;
            }
            Err(error) => {
                let error =
                    format!("cannot put the ports of tunnels into endpoints' rows: {error}");
                if self.tunnels.error.as_ref() != Some(&error) {
                    tracing::error!("{error}; trying again");
                }
                self.tunnels.error = Some(error);
            }
        }
    }

    /// An interface by which packets leave appeared since the last scan.
    pub fn appeared(&mut self, ifindex: u32, link: Link) {
        if let Some(scan) = &mut self.scan {
            scan.links.insert(ifindex, link);
        }
    }

    /// A pod's interface was announced, now or to an earlier agent.
    pub fn announce(&mut self, announcement: Announcement) {
        self.announced.put(announcement);
        self.unmatched = true;
    }

    /// An announced interface is about to go, or is gone. Says whether it was known. While the device is there it
    /// stays enforced, but its addresses are nobody's.
    pub fn retract(&mut self, key: &AttachmentKey) -> bool {
        self.unmatched = true;
        let device = self
            .announced
            .get(key)
            .and_then(|announcement| announcement.device.as_ref());
        if let Some(device) = device {
            self.bindings.release(device.ifindex);
        }
        self.announced.remove(key)
    }

    /// Takes over which device was which pod's for an earlier agent.
    pub fn adopt(&mut self, binding: Binding) {
        self.bindings.adopt(binding);
        self.unmatched = true;
    }

    /// Which devices are which pods'.
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// Host-side indexes of devices that became a pod's, changed or went since the last call.
    pub fn take_changed_bindings(&mut self) -> BTreeSet<u32> {
        self.bindings.take_changed()
    }

    /// A binding could not be written down, and is to be tried again.
    pub fn retry_binding(&mut self, ifindex: u32) {
        self.bindings.retry(ifindex);
    }

    /// Pods' further interfaces that are only named, because the operator wants it so.
    pub fn unenforced(&self) -> &[Unenforced] {
        self.bindings.unenforced()
    }

    /// How many of pods' further interfaces are enforced, and how many are only named.
    pub fn secondary_counts(&self) -> [(&'static str, usize); 2] {
        let enforced = self.endpoints.values().filter(|endpoint| {
            endpoint.local.origin == Origin::Secondary && matches!(endpoint.state, State::Attached)
        });
        [
            ("enforced", enforced.count()),
            ("reported", self.unenforced().len()),
        ]
    }

    fn has_secondaries(&self) -> bool {
        self.endpoints
            .values()
            .any(|endpoint| endpoint.local.origin == Origin::Secondary)
    }

    /// An interface was looked at since the last scan.
    pub fn found(&mut self, interface: Interface) {
        if let Some(scan) = &mut self.scan {
            scan.add(interface);
            self.unmatched = true;
        }
    }

    /// What was announced.
    pub fn announced(&self) -> &Announced {
        &self.announced
    }

    /// Announcements that came, changed or went since the last call.
    pub fn take_changed_announcements(&mut self) -> Vec<AttachmentKey> {
        self.announced.take_changed()
    }

    /// Does all that can be done now, and says when to call again if something has to be tried again.
    pub fn step(&mut self, now: Instant) -> Option<Instant> {
        if !self.loaded {
            let more = self.follow_exits(now);
            return if more { Some(now) } else { self.retry_at() };
        }
        loop {
            self.match_endpoints();
            self.detach_endpoints(now);
            self.tell_masters(now);
            if self.stuck.is_none() && self.queue.is_empty() {
                if !self.has_changes() {
                    self.collect_garbage();
                } else if self.knows_endpoints() {
                    self.compile();
                }
            }
            self.run_queue(now);
            if !self.exits_tried {
                if self.follow_exits(now) {
                    return Some(now);
                }
                self.exits_tried = self.scan.is_some() && self.exits_may_come();
            }
            self.attach_endpoints(now);
            let may_go = matches!(self.grace, Grace::Left(_) | Grace::Dead);
            let waits = !self.has_changes() || !self.knows_endpoints();
            let idle = waits && self.queue.is_empty() && !may_go;
            if self.stuck.is_some() || (idle && !self.unmatched) {
                break;
            }
        }
        let more = self.follow_exits(now);
        self.prune();
        if more { Some(now) } else { self.retry_at() }
    }

    /// Whether a grace period of the kernel is to be waited for, beginning now; [`Self::grace_passed`] is
    /// to be called after it. There is never more than one.
    #[must_use]
    pub fn begin_grace(&mut self) -> bool {
        if !self.queue.is_empty() {
            return false;
        }
        match self.grace {
            Grace::Idle if std::mem::take(&mut self.littered) && self.compiler.has_garbage() => {
                self.grace = Grace::Leaving(self.enforced);
                true
            }
            Grace::Retired { begun: false } => {
                self.grace = Grace::Retired { begun: true };
                true
            }
            _ => false,
        }
    }

    /// The grace period that was asked for has passed.
    pub fn grace_passed(&mut self) {
        self.grace = match self.grace {
            Grace::Leaving(revision) => Grace::Left(revision),
            Grace::Retired { begun: true } => Grace::Dead,
            other => other,
        };
    }

    /// Whether there is something to plan.
    fn has_changes(&self) -> bool {
        !self.pending.is_empty() || self.services.is_changed() || self.guards.is_changed()
    }

    /// Whether endpoints were looked for, where that matters: the first plan for tables in use closes what
    /// it does not know as an endpoint.
    fn knows_endpoints(&self) -> bool {
        self.scan.is_some() || !self.compiler.is_adopting()
    }

    /// Compares tables and pins with what was put there. What drifted is repaired, by the next step at the latest.
    pub fn verify(&mut self) {
        for drift in self.kernel.verify() {
            self.drifted(&drift);
        }
    }

    /// Something is not as it was put. A program is attached again by the next step.
    pub fn drifted(&mut self, drift: &Drift) {
        let endpoint = drift
            .ifindex
            .filter(|_| drift.role == Role::Endpoint)
            .and_then(|ifindex| self.endpoints.get_mut(&ifindex));
        let is_program = drift.part == DriftedPart::Program;
        let mut pod = String::new();
        let interface = match (endpoint, drift.ifindex) {
            (Some(endpoint), _) => {
                if is_program && matches!(endpoint.state, State::Attached) {
                    endpoint.state = State::Attaching(None);
                }
                pod = endpoint.local.pod.to_string();
                Some(&*endpoint.local.host_interface)
            }
            (None, Some(ifindex)) if is_program => self.exits.lost(ifindex),
            (None, Some(ifindex)) => self.exits.name(ifindex),
            (None, None) => None,
        };
        let interface = interface.unwrap_or_default();
        let (what, found) = (drift.part.as_str(), &drift.found);
        match &drift.error {
            None => {
                tracing::warn!(what, pod, interface, found, "drifted, and is repaired");
            }
            Some(error) => {
                tracing::error!(
                    what,
                    pod,
                    interface,
                    found,
                    error,
                    "drifted, and cannot be repaired; trying again"
                );
            }
        }
        *self.repairs.entry(what).or_default() += 1;
    }

    /// The CNI plugin announces pods that start, or did so to an earlier agent.
    pub fn expect_announcements(&mut self) {
        self.expects_announcements = true;
    }

    /// Whether CNI plugins that run after ours need the place of clsact at new interfaces.
    pub fn spare_clsact(&mut self, spares: bool) {
        self.spares_clsact = spares;
    }

    /// How often something had drifted, by [`DriftedPart::as_str`]; every part is there.
    pub fn repairs(&self) -> &BTreeMap<&'static str, u64> {
        &self.repairs
    }

    /// Number of the last compiled state.
    pub fn revision(&self) -> u64 {
        self.compiled
    }

    /// Number of the last state that is wholly in the kernel's tables.
    pub fn enforced_revision(&self) -> u64 {
        self.enforced
    }

    /// Operations not executed yet.
    pub fn pending_operations(&self) -> usize {
        self.queue.len()
    }

    /// Whether the datastore's first load is complete.
    pub fn is_loaded(&self) -> bool {
        self.loaded
    }

    /// Whether interfaces were looked for.
    pub fn is_scanned(&self) -> bool {
        self.scan.is_some()
    }

    /// Whether all that is known is enforced on all endpoints that were found.
    pub fn is_settled(&self) -> bool {
        self.loaded
            && !self.unmatched
            && !self.has_changes()
            && self.queue.is_empty()
            && self.exits.are_settled()
            && self
                .endpoints
                .values()
                .all(|endpoint| matches!(endpoint.state, State::Attached))
    }

    /// What the compiler refused, as opposed to what it only warns of.
    pub fn refusals(&self) -> impl Iterator<Item = String> {
        let problems = self.compiler.problems().into_iter();
        problems
            .filter(is_refusal)
            .map(|problem| problem.to_string())
            .chain(self.table_problems())
    }

    /// What is wrong: what the compiler refused or warns of, and what found no room in its table.
    pub fn problems(&self) -> Vec<String> {
        let problems = self.compiler.problems().into_iter();
        let mut problems: Vec<_> = problems.map(|problem| problem.to_string()).collect();
        problems.extend(self.table_problems());
        problems
    }

    /// What found no room in its table, and holds up nobody: addresses of Services and of this node, addresses that
    /// are somebody's, ports of tunnels.
    pub fn table_problems(&self) -> Vec<String> {
        let mut problems = self.services.problems();
        problems.extend(self.guards.problems());
        problems.extend(self.tunnels.problems.iter().cloned());
        problems.extend(self.tunnels.error.clone());
        problems
    }

    /// The exits, by ifindex.
    pub fn exits(&self) -> impl Iterator<Item = ExitState> {
        self.exits.states()
    }

    /// How many exits are in each state, by the state's word.
    pub fn exit_counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = ExitState::WORDS.map(|word| (word, 0)).into();
        for exit in self.exits.states() {
            *counts.entry(exit.word).or_default() += 1;
        }
        counts
    }

    /// What the queue waits for.
    pub fn stuck(&self, now: Instant) -> Option<StuckPlan> {
        let stuck = self.stuck.as_ref()?;
        Some(StuckPlan {
            operation: self.queue.front().map(describe).unwrap_or_default(),
            error: stuck.error.clone(),
            tries: stuck.backoff.tries(),
            seconds: stuck.backoff.lasting(now).as_secs(),
        })
    }

    /// Changes that came after the first load and were enforced since the last call.
    pub fn take_enforced(&mut self) -> Vec<Arrival> {
        std::mem::take(&mut self.enforced_arrivals)
    }

    /// What was asked of the kernel so far.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// How many endpoints are in each state, by the state's word.
    pub fn endpoint_counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<_, _> = EndpointState::WORDS.map(|word| (word, 0)).into();
        for endpoint in self.endpoints.values() {
            *counts.entry(endpoint.state.word()).or_default() += 1;
        }
        counts
    }

    /// Endpoints by ifindex, with their pods and states.
    pub fn endpoints(&self) -> impl Iterator<Item = (&LocalEndpoint, EndpointState)> {
        self.endpoints.values().map(|endpoint| {
            let word = endpoint.state.word();
            let error = endpoint
                .state
                .failure()
                .map(|failure| failure.error.clone());
            (&endpoint.local, EndpointState { word, error })
        })
    }

    /// Whether an announced interface is enforced, with its pod known and all that is known in force.
    ///
    /// # Errors
    ///
    /// What it still waits for.
    pub fn is_enforced(&self, key: &AttachmentKey, now: Instant) -> Result<(), String> {
        let Some(announcement) = self.announced.get(key) else {
            return Err(format!(
                "interface {} of container {} is not announced",
                key.ifname, key.container_id
            ));
        };
        let said = &announcement.attachment;
        if !self.loaded {
            return Err("the datastore is not read completely yet".to_owned());
        }
        let Some(device) = &announcement.device else {
            return Err(format!(
                "no veth of this node{} leads to an interface {} with {:?}",
                among(&said.host_interfaces),
                key.ifname,
                said.addresses
            ));
        };
        if !self.pods.knows(&said.pod) {
            let uid = Some(&said.pod.uid).filter(|uid| !uid.is_empty());
            return Err(format!(
                "the datastore has no pod {}/{}{} of this node yet",
                said.pod.namespace,
                said.pod.name,
                uid.map(|uid| format!(" with uid {uid}"))
                    .unwrap_or_default()
            ));
        }
        if let Some(stuck) = self.stuck(now) {
            return Err(format!("{}: {}", stuck.operation, stuck.error));
        }
        // Further interfaces are waited for, too.
        let endpoints = self.endpoints.iter().filter(|(ifindex, endpoint)| {
            **ifindex == device.ifindex || endpoint.device.netns == device.netns
        });
        let mut states = endpoints.map(|(_, endpoint)| &endpoint.state);
        let last = states
            .clone()
            .find(|state| !matches!(state, State::Attached));
        match last.or_else(|| states.next()) {
            Some(State::Attached)
                if self.pending.is_empty()
                    && self.queue.is_empty()
                    && !self.unmatched
                    && self.endpoints.contains_key(&device.ifindex) =>
            {
                Ok(())
            }
            Some(state) => {
                let error = state
                    .failure()
                    .map(|failure| format!(": {}", failure.error));
                Err(format!("{}{}", state.word(), error.unwrap_or_default()))
            }
            None => Err("its interface is being looked for".to_owned()),
        }
    }

    /// Pods of this node that have an address which no interface bears.
    pub fn pods_without_interface(&self) -> Vec<ObjectName> {
        let found: BTreeSet<_> = self
            .endpoints
            .values()
            .map(|endpoint| &endpoint.local.pod)
            .collect();
        let mut pods = self.pods.with_address();
        pods.retain(|pod| !found.contains(pod));
        pods
    }

    /// Brings the endpoints in line with the pods and the last scan.
    fn match_endpoints(&mut self) {
        if !std::mem::take(&mut self.unmatched) {
            return;
        }
        let Some(scan) = &self.scan else { return };
        self.announced.follow(scan);
        let services = &self.services;
        let is_reserved = |address: &IpAddr| services.has(*address);
        self.bindings.follow(
            scan,
            &self.announced,
            &self.pods,
            self.settings.secondaries,
            is_reserved,
        );
        for (ifindex, endpoint) in &mut self.endpoints {
            // The device is gone, if need be with another one in its place.
            let stays = self.bindings.get(*ifindex).is_some() && !scan.is_gone(&endpoint.device);
            if !stays && !matches!(endpoint.state, State::Detaching(_)) {
                endpoint.state = State::Detaching(None);
            }
        }
        for binding in self.bindings.iter() {
            let ifindex = binding.device.ifindex;
            let pod = binding.pod_name();
            let local = LocalEndpoint {
                ifindex,
                host_interface: binding.host_interface.clone(),
                interface: binding.interface.clone(),
                subject: binding.subject(&self.pods),
                origin: binding.origin(),
                addresses: binding.addresses.clone(),
                is_router: self.settings.router_namespaces.contains(&pod.namespace),
                records: false,
                pod,
            };
            let found = scan.interfaces.get(&ifindex);
            match self.endpoints.get_mut(&ifindex) {
                // Comes back when the old one is detached.
                Some(known) if matches!(known.state, State::Detaching(_)) => {}
                Some(known) => {
                    known.device.clone_from(&binding.device);
                    if let Some(found) = found {
                        known.master = found.master;
                    }
                    if known.local != local {
                        tracing::info!(
                            pod = %local.pod, interface = local.host_interface, addresses = ?local.addresses,
                            known = subject_word(&local.subject), "endpoint changed"
                        );
                        known.local = local.clone();
                        self.pending.push(Change::Endpoint(local));
                    }
                }
                None => {
                    tracing::info!(
                        pod = %local.pod, interface = local.host_interface, addresses = ?local.addresses,
                        known = subject_word(&local.subject), "endpoint found"
                    );
                    self.pending.push(Change::Endpoint(local.clone()));
                    self.endpoints.insert(
                        ifindex,
                        Endpoint {
                            device: binding.device.clone(),
                            local,
                            state: State::Programming { compiled: false },
                            master: found.map_or(0, |found| found.master),
                            told_master: None,
                            untold: None,
                        },
                    );
                }
            }
        }
    }

    /// Tells the kernel of which device each endpoint's host side is a port.
    fn tell_masters(&mut self, now: Instant) {
        for (ifindex, endpoint) in &mut self.endpoints {
            let failure = endpoint.untold.as_ref();
            if endpoint.told_master == Some(endpoint.master)
                || matches!(endpoint.state, State::Detaching(_))
                || failure.is_some_and(|failure| !failure.backoff.is_due(now))
            {
                continue;
            }
            match self.kernel.set_master(*ifindex, endpoint.master) {
                Ok(()) => {
                    endpoint.told_master = Some(endpoint.master);
                    endpoint.untold = None;
                }
                Err(error) => {
                    let former = endpoint.untold.take();
                    endpoint.untold = Some(Failure::after(former, &error, now));
                    tracing::error!(
                        pod = %endpoint.local.pod, interface = endpoint.local.host_interface, %error,
                        "cannot say which device the interface is a port of; trying again"
                    );
                }
            }
        }
    }

    fn detach_endpoints(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (ifindex, endpoint) in &mut self.endpoints {
            let State::Detaching(failure) = &mut endpoint.state else {
                continue;
            };
            if failure
                .as_ref()
                .is_some_and(|failure| !failure.backoff.is_due(now))
            {
                continue;
            }
            // What is still sent there goes past a program without a break.
            if let Some(link) = self.scan.as_ref().and_then(|scan| scan.links.get(ifindex)) {
                let (kernel, operations) = (&mut self.kernel, &mut self.operations);
                self.exits
                    .attach_now(*ifindex, link, kernel, operations, now);
            }
            let outcome = self.kernel.detach(*ifindex);
            self.operations.note(DETACH, &outcome);
            match outcome {
                Ok(()) | Err(AttachError::InterfaceGone { .. }) => gone.push(*ifindex),
                Err(error) => {
                    tracing::error!(pod = %endpoint.local.pod, %error, "cannot detach; trying again");
                    *failure = Some(Failure::after(failure.take(), &error, now));
                }
            }
        }
        for ifindex in gone {
            if let Some(endpoint) = self.endpoints.remove(&ifindex) {
                tracing::info!(
                    pod = %endpoint.local.pod, interface = endpoint.local.host_interface, "endpoint gone"
                );
            }
            self.pending.push(Change::EndpointGone(ifindex));
            // Another device may bear the index already.
            self.unmatched = true;
        }
    }

    /// Plans all that changed.
    fn compile(&mut self) {
        let services = self.services.plan();
        let guards = self.guards.plan();
        self.queue.extend(services.puts);
        self.queue.extend(guards.puts);
        if !self.pending.is_empty() {
            self.advance();
        }
        self.queue.extend(services.deletes);
        self.queue.extend(guards.deletes);
        self.compiled_arrivals.append(&mut self.arrived);
    }

    fn advance(&mut self) {
        let changes = std::mem::take(&mut self.pending);
        let count = changes.len();
        for endpoint in self.endpoints.values_mut() {
            if let State::Programming { compiled } = &mut endpoint.state {
                *compiled = true;
            }
        }
        let plan = self.compiler.advance(changes);
        tracing::debug!(
            revision = plan.revision,
            changes = count,
            operations = plan.ops.len(),
            "compiled"
        );
        self.compiled = plan.revision;
        self.littered = true;
        self.queue.extend(plan.into_ops());
        self.report_problems();
    }

    /// Removes what nobody uses any more as far as grace periods have passed.
    fn collect_garbage(&mut self) {
        match self.grace {
            Grace::Left(revision) => {
                self.queue.extend(self.compiler.retire(revision));
                self.grace = if self.compiler.has_retired() {
                    Grace::Retired { begun: false }
                } else {
                    Grace::Idle
                };
            }
            Grace::Dead => {
                let is_short = self.compiler.is_short();
                self.queue.extend(self.compiler.bury());
                self.grace = Grace::Idle;
                // There may be room now for what found none.
                if is_short {
                    self.advance();
                }
            }
            Grace::Idle | Grace::Leaving(_) | Grace::Retired { .. } => {}
        }
    }

    /// Says once what the compiler cannot do, and once that it can again.
    fn report_problems(&mut self) {
        let problems: BTreeSet<_> = self.compiler.problems().into_iter().collect();
        for problem in problems.difference(&self.reported) {
            if is_refusal(problem) {
                tracing::error!("{problem}");
            } else {
                tracing::warn!("{problem}");
            }
        }
        for problem in self.reported.difference(&problems) {
            tracing::info!("no longer: {problem}");
        }
        self.reported = problems;
    }

    fn run_queue(&mut self, now: Instant) {
        if let Some(stuck) = &self.stuck
            && !stuck.backoff.is_due(now)
        {
            return;
        }
        while let Some(op) = self.queue.front() {
            let outcome = self.kernel.apply(op);
            self.operations.note(op.kind(), &outcome);
            match outcome {
                Ok(()) => {
                    if self.stuck.take().is_some() {
                        tracing::info!(operation = describe(op), "operation succeeded, going on");
                    }
                    self.services.done(op);
                    self.guards.done(op);
                    self.queue.pop_front();
                }
                // Nobody waits for room that may never be.
                Err(error @ ApplyError::Full { .. })
                    if let Op::PutService { address, .. } = *op =>
                {
                    if self.services.refuse(address) {
                        tracing::error!(
                            %address, %error,
                            "no row for a Service's or this node's address: pods' packets to it are judged as they are"
                        );
                    }
                    self.stuck = None;
                    self.queue.pop_front();
                }
                Err(error @ ApplyError::Full { .. }) if let Op::PutGuard { prefix, .. } = *op => {
                    if self.guards.refuse(prefix) {
                        tracing::error!(
                            %prefix, %error,
                            "no row for addresses of pods, nodes or ipBlocks: pods that no policy isolates can send from them"
                        );
                    }
                    self.stuck = None;
                    self.queue.pop_front();
                }
                Err(error) => {
                    tracing::error!(
                        operation = describe(op), %error, waiting = self.queue.len(),
                        "operation failed; trying again, what was enforced stays so"
                    );
                    let error = error.to_string();
                    match &mut self.stuck {
                        Some(stuck) => {
                            stuck.error = error;
                            stuck.backoff.failed(now);
                        }
                        None => {
                            self.stuck = Some(Stuck {
                                error,
                                backoff: Backoff::new(now),
                            });
                        }
                    }
                    return;
                }
            }
        }
        // The first load of a large cluster is hundreds of thousands of operations, and no other is.
        self.queue.shrink_to(IDLE_QUEUE);
        if self.enforced != self.compiled {
            tracing::debug!(revision = self.compiled, "enforced");
        }
        self.enforced = self.compiled;
        self.enforced_arrivals.append(&mut self.compiled_arrivals);
        for endpoint in self.endpoints.values_mut() {
            if matches!(endpoint.state, State::Programming { compiled: true }) {
                endpoint.state = State::Attaching(None);
            }
        }
    }

    /// Whether the tables are filled that new exits look at: until then an earlier agent's exits go on, with its
    /// tables, because its endpoints mark packets.
    fn exits_may_come(&self) -> bool {
        !self.took_over
            || self.enforced > 0
            || (self.loaded && self.queue.is_empty() && !self.has_changes())
    }

    /// Attaches and detaches exits, a few at a time; says whether more is to be done now.
    fn follow_exits(&mut self, now: Instant) -> bool {
        if !self.exits_may_come() {
            return false;
        }
        let Some(scan) = &self.scan else {
            return false;
        };
        // A new veth is probably a pod's whose start goes on. So may be one that is there when the agent comes, if
        // pods wait for that; but nobody has an address at the other end of an uplink.
        let may_be_starting = |ifindex| {
            let leads_elsewhere = scan
                .links
                .get(&ifindex)
                .is_some_and(|link| link.leads_elsewhere);
            let bears_addresses = || {
                let interface = scan.interfaces.get(&ifindex);
                interface.is_some_and(|interface| !interface.addresses.is_empty())
            };
            leads_elsewhere
                && (self.exits_tried || (self.expects_announcements && bears_addresses()))
        };
        let wish = |ifindex| {
            let endpoint = self.endpoints.get(&ifindex);
            match endpoint.map(|endpoint| &endpoint.state) {
                // Before all pods are known, any veth could be one's.
                None if !self.loaded && scan.veths.contains(&ifindex) => Wish::AsItIs,
                None if may_be_starting(ifindex) => Wish::OnceNobodys,
                None | Some(State::Detaching(_) | State::Attaching(Some(_))) => Wish::Exit,
                Some(State::Programming { .. } | State::Attaching(None)) => Wish::AsItIs,
                Some(State::Attached) => Wish::None,
            }
        };
        self.exits.follow(&scan.links, self.exits_tried, now, wish);
        self.exits.step(&mut self.kernel, &mut self.operations, now)
    }

    fn attach_endpoints(&mut self, now: Instant) {
        for (ifindex, endpoint) in &mut self.endpoints {
            let State::Attaching(failure) = &mut endpoint.state else {
                continue;
            };
            if failure
                .as_ref()
                .is_some_and(|failure| !failure.backoff.is_due(now))
            {
                continue;
            }
            let interface = &endpoint.local.host_interface;
            let haste = match endpoint.local.origin {
                Origin::Announced if !self.spares_clsact => Haste::Waited,
                Origin::Announced | Origin::Found | Origin::Secondary => Haste::None,
            };
            let outcome = self.kernel.attach(*ifindex, interface, haste);
            self.operations.note(ATTACH, &outcome);
            match outcome {
                Ok(()) => {
                    tracing::info!(
                        pod = %endpoint.local.pod, interface = endpoint.local.host_interface, "endpoint enforced"
                    );
                    endpoint.state = State::Attached;
                }
                Err(AttachError::InterfaceGone { .. }) => {
                    tracing::debug!(pod = %endpoint.local.pod, "interface went while being attached");
                    endpoint.state = State::Detaching(None);
                    if let Some(scan) = &mut self.scan {
                        scan.interfaces.remove(ifindex);
                        scan.veths.remove(ifindex);
                    }
                    self.unmatched = true;
                }
                Err(error) => {
                    tracing::error!(pod = %endpoint.local.pod, %error, "cannot attach; trying again");
                    *failure = Some(Failure::after(failure.take(), &error, now));
                }
            }
        }
    }

    /// Once everything is in place, removes what an earlier agent left and nobody took over.
    fn prune(&mut self) {
        if self.pruned || self.scan.is_none() || !self.is_settled() {
            return;
        }
        match self.kernel.prune() {
            Ok(interfaces) => {
                self.pruned = true;
                let leftovers = self.compiler.take_leftovers().into_iter();
                self.queue
                    .extend(leftovers.map(|ifindex| Op::DeleteEndpoint { ifindex }));
                if !interfaces.is_empty() {
                    tracing::info!(
                        ?interfaces,
                        "detached what an earlier agent left on interfaces that are no pod's"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "cannot remove what an earlier agent left"),
        }
    }

    fn retry_at(&self) -> Option<Instant> {
        let failures = self.endpoints.values().flat_map(|endpoint| {
            let untold = endpoint.untold.as_ref();
            endpoint.state.failure().into_iter().chain(untold)
        });
        let stuck = self.stuck.as_ref().map(|stuck| stuck.backoff.next());
        let exits = self.exits.retry_at();
        failures
            .map(|failure| failure.backoff.next())
            .chain(stuck)
            .chain(exits)
            .min()
    }
}

/// How much is known of an endpoint's pod, in a word.
pub(super) fn subject_word(subject: &Subject) -> &'static str {
    match subject {
        Subject::Current => "now",
        Subject::Held(_) => "formerly",
        Subject::Unknown => "never",
    }
}

/// Whether something in the cluster is not enforced as written. Two pods with one address are
/// ambiguous, but what is written of the one that owns it is enforced.
fn is_refusal(problem: &Problem) -> bool {
    !matches!(problem, Problem::AddressConflict { .. })
}

/// Interfaces' names as part of a sentence.
fn among(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!(" among {}", names.join(", "))
    }
}

/// An operation in a few words: its variant and key are enough to find it.
fn describe(op: &Op) -> String {
    let mut text = format!("{op:?}");
    const LONGEST: usize = 160;
    if text.len() > LONGEST {
        text.truncate(
            (0..=LONGEST)
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0),
        );
        text.push('…');
    }
    text
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
