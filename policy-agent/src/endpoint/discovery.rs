//! Finds pod interfaces through rtnetlink, from the host's side alone.
//!
//! The kernel says of every veth in which network namespace its peer is (IFLA_LINK_NETNSID) and which
//! index it has there (IFLA_LINK), and answers questions about another namespace by that id
//! (IFLA_TARGET_NETNSID, IFA_TARGET_NETNSID; 5.0 and later). So no namespace has to be searched for or
//! entered, whether it has a name under /run/netns, a process, or neither, and an interface whose
//! peer is in another node's namespace cannot be mistaken for ours.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::AsyncSocket as _;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until};

use super::appearing::Appearing;
use super::tunnels::Gathering;
use super::{Interface, Link, Peer, Scan};

/// Scan without an event, as a safety net.
const RESCAN: Duration = Duration::from_secs(5);

/// How long to wait for more after an event: an interface comes up in several steps.
const SETTLE: Duration = Duration::from_millis(5);

/// Reports that may wait to be read.
const WAITING: usize = 64;

/// Handle on the running discovery, which ends when this is dropped.
#[derive(Debug)]
pub struct Discovery {
    reports: mpsc::Receiver<Report>,
    requests: Arc<Requests>,
}

/// What discovery tells, in the order in which it became so.
#[derive(Debug)]
pub enum Report {
    /// All was looked at.
    Scan(ScanReport),
    /// An interface appeared that is no veth; later scans have it, too.
    Link(u32, Link),
}

/// One scan's outcome.
#[derive(Debug)]
pub struct ScanReport {
    /// Every request up to this number was made before the scan began.
    pub answers: u64,
    /// What was found, or why nothing could be.
    pub result: io::Result<Scan>,
}

#[derive(Debug, Default)]
struct Requests {
    last: AtomicU64,
    wake: Notify,
    /// Veths that no scan has had, and that are there all the same.
    expected: Mutex<BTreeSet<u32>>,
}

impl Requests {
    fn expected(&self) -> std::sync::MutexGuard<'_, BTreeSet<u32>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Discovery {
    /// Asks for a scan that begins after this call; its report answers the number returned.
    pub fn request(&self) -> u64 {
        let number = self.requests.last.fetch_add(1, Ordering::SeqCst) + 1;
        self.requests.wake.notify_one();
        number
    }

    /// A number that is answered by scans which begin after this call, whenever they do.
    pub fn mark(&self) -> u64 {
        self.requests.last.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// A veth is there: the next scan has to look for it by its index before it counts as gone.
    pub fn expect(&self, ifindex: u32) {
        self.requests.expected().insert(ifindex);
    }

    /// The next report, `None` once discovery has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// A report that is there already.
    pub fn next_that_waits(&mut self) -> Option<Report> {
        self.reports.try_recv().ok()
    }
}

/// Begins to look for interfaces; must be called within a tokio runtime. `expected` are veths that may not count as
/// gone unless the kernel says so of each.
///
/// # Errors
///
/// When netlink is not to be had.
pub fn start(expected: BTreeSet<u32>) -> io::Result<Discovery> {
    let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
    tokio::spawn(connection);
    let events = Events::subscribe()?;
    let appearing = Appearing::subscribe()?;
    let (reports_in, reports) = mpsc::channel(WAITING);
    let requests = Arc::new(Requests {
        expected: Mutex::new(expected),
        ..Requests::default()
    });
    tokio::spawn(run(handle, events, appearing, requests.clone(), reports_in));
    Ok(Discovery { reports, requests })
}

/// Looks at single interfaces, without waiting for a scan.
#[derive(Clone, Debug)]
pub struct Lookup {
    handle: Handle,
}

impl Lookup {
    /// Opens netlink; must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When it is not to be had.
    pub fn new() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Those of the host's interfaces with these names that are pods' veths.
    pub async fn named(&self, names: &[String]) -> Vec<Interface> {
        let mut interfaces = Vec::new();
        for name in names {
            match self.one(name).await {
                Ok(found) => interfaces.extend(found),
                Err(error) => tracing::debug!(name, %error, "cannot look at an interface"),
            }
        }
        interfaces
    }

    async fn one(&self, name: &str) -> io::Result<Vec<Interface>> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let replies: Result<Vec<_>, _> = request.execute().try_collect().await;
        let replies = replies.map_err(io::Error::other)?;
        let Some(veth) = replies.first().and_then(Veth::from_message) else {
            return Ok(Vec::new());
        };
        match veth.netns {
            Some(netns) => peers(&self.handle, netns, &[veth]).await,
            None => Ok(Vec::new()),
        }
    }
}

async fn run(
    handle: Handle,
    mut events: Events,
    mut appearing: Appearing,
    requests: Arc<Requests>,
    reports: mpsc::Sender<Report>,
) {
    // What the last scan had, and what was told of since.
    let mut expected = BTreeSet::new();
    loop {
        let answers = requests.last.load(Ordering::SeqCst);
        expected.append(&mut requests.expected());
        let began = Instant::now();
        let mut result = appearing
            .tell_during(scan(&handle, &expected), &reports)
            .await;
        let took = began.elapsed();
        if let Ok(scan) = &mut result {
            appearing.complete(scan);
            expected.clone_from(&scan.veths);
        }
        let report = Report::Scan(ScanReport { answers, result });
        if reports.send(report).await.is_err() {
            return;
        }
        let wait = async {
            tokio::select! {
                () = reports.closed() => {}
                () = requests.wake.notified() => {}
                () = events.next() => {
                    // Never more than half of the time in scans, however many events there are.
                    tokio::select! {
                        () = sleep(SETTLE.max(took)) => {}
                        () = requests.wake.notified() => {}
                    }
                    events.discard();
                }
                () = sleep_until(began + RESCAN) => {}
            }
        };
        appearing.tell_during(wait, &reports).await;
        if reports.is_closed() {
            return;
        }
    }
}

/// Word from the kernel that links or addresses changed, here or in a namespace that has an id here.
struct Events {
    messages: Option<Messages>,
}

type Messages = BoxStream<'static, ()>;

impl Events {
    fn subscribe() -> io::Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
        connection
            .socket_mut()
            .socket_mut()
            .set_listen_all_namespaces(true)?;
        tokio::spawn(connection);
        Ok(Self {
            messages: Some(messages.map(|_| ()).boxed()),
        })
    }

    /// The next event; never again once the socket has failed.
    async fn next(&mut self) {
        if let Some(messages) = &mut self.messages {
            if messages.next().await.is_some() {
                return;
            }
            tracing::warn!("netlink events ended; interfaces are looked for every {RESCAN:?}");
            self.messages = None;
        }
        std::future::pending().await
    }

    /// Forgets the events that are there.
    fn discard(&mut self) {
        use futures_util::FutureExt as _;
        while let Some(messages) = &mut self.messages
            && let Some(Some(())) = messages.next().now_or_never()
        {}
    }
}

/// A veth as its own side describes it.
struct Veth {
    ifindex: u32,
    name: String,
    hardware_address: Vec<u8>,
    master: u32,
    /// Where the peer is; `None` when it is in the same namespace.
    netns: Option<i32>,
    peer: u32,
}

impl Veth {
    fn from_message(message: &LinkMessage) -> Option<Self> {
        let (mut name, mut netns, mut peer, mut is_veth) = (None, None, None, false);
        let (mut hardware_address, mut master) = (Vec::new(), 0);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(given) => name = Some(given.clone()),
                LinkAttribute::Link(given) => peer = Some(*given),
                LinkAttribute::LinkNetNsId(given) => netns = Some(*given),
                LinkAttribute::Address(given) => hardware_address.clone_from(given),
                LinkAttribute::Controller(given) => master = *given,
                LinkAttribute::LinkInfo(infos) => {
                    is_veth = infos
                        .iter()
                        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)));
                }
                _ => {}
            }
        }
        is_veth.then_some(Self {
            ifindex: message.header.index,
            name: name?,
            hardware_address,
            master,
            netns,
            peer: peer?,
        })
    }
}

/// How often a dump is asked for that changes keep interrupting.
const TRIES: usize = 3;

/// All that the kernel answers to a dump request. Where something changes meanwhile it may leave out what stays, and
/// says so (NLM_F_DUMP_INTR): then it is asked again. The last answer is taken as it is, because every change is
/// followed by an event and so by another scan.
async fn dump(
    handle: &Handle,
    request: RouteNetlinkMessage,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut told = Vec::new();
    for _ in 0..TRIES {
        let mut message = NetlinkMessage::from(request.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut replies = handle.clone().request(message).map_err(io::Error::other)?;
        told.clear();
        let mut is_interrupted = false;
        while let Some(reply) = replies.next().await {
            is_interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => told.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io());
                }
                _ => {}
            }
        }
        if !is_interrupted {
            break;
        }
    }
    Ok(told)
}

async fn addresses_told(
    handle: &Handle,
    request: AddressMessage,
) -> io::Result<Vec<AddressMessage>> {
    let told = dump(handle, RouteNetlinkMessage::GetAddress(request)).await?;
    let addresses = told.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(address) => Some(address),
        _ => None,
    });
    Ok(addresses.collect())
}

async fn links_told(handle: &Handle) -> io::Result<Vec<LinkMessage>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = dump(handle, request).await?.into_iter();
    let links = links.filter_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(link),
        _ => None,
    });
    Ok(links.collect())
}

/// The interface of this index, if there is one.
async fn link(handle: &Handle, ifindex: u32) -> io::Result<Option<LinkMessage>> {
    let request = handle.link().get().match_index(ifindex);
    let replies: Result<Vec<_>, _> = request.execute().try_collect().await;
    match replies {
        Ok(replies) => Ok(replies.into_iter().next()),
        Err(rtnetlink::Error::NetlinkError(error)) => {
            let error = error.to_io();
            match error.raw_os_error() {
                Some(libc::ENODEV) => Ok(None),
                _ => Err(error),
            }
        }
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Adds those of the expected interfaces that are missing among `links` and there all the same.
async fn add_missed(
    handle: &Handle,
    links: &mut Vec<LinkMessage>,
    expected: &BTreeSet<u32>,
) -> io::Result<()> {
    let told: BTreeSet<u32> = links.iter().map(|link| link.header.index).collect();
    for ifindex in expected.difference(&told) {
        if let Some(missed) = link(handle, *ifindex).await? {
            tracing::debug!(ifindex, "the kernel left an interface out, which is there");
            links.push(missed);
        }
    }
    Ok(())
}

/// Every veth here with a peer elsewhere, and the addresses of that peer; the other interfaces; our own addresses.
/// What is not among all interfaces, though it is `expected`, is asked for by itself.
async fn scan(handle: &Handle, expected: &BTreeSet<u32>) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut by_netns: BTreeMap<i32, Vec<Veth>> = BTreeMap::new();
    let mut tunnels = Gathering::default();
    let mut links = links_told(handle).await?;
    add_missed(handle, &mut links, expected).await?;
    for message in links {
        tunnels.add(&message);
        if let Some(link) = Link::from_message(&message) {
            scan.links.insert(message.header.index, link);
        }
        let Some(veth) = Veth::from_message(&message) else {
            continue;
        };
        scan.veths.insert(veth.ifindex);
        if let Some(netns) = veth.netns {
            by_netns.entry(netns).or_default().push(veth);
        }
    }
    scan.tunnels = tunnels.complete(handle).await;
    scan.addresses = own_addresses(handle).await?;
    for (netns, veths) in by_netns {
        match peers(handle, netns, &veths).await {
            Ok(interfaces) => {
                scan.interfaces.extend(
                    interfaces
                        .into_iter()
                        .map(|interface| (interface.ifindex, interface)),
                );
            }
            // The namespace is going, or its owner let nobody look: its veths stay in `veths`.
            Err(error) => tracing::debug!(netns, %error, "cannot look into a network namespace"),
        }
    }
    Ok(scan)
}

/// The peers of `veths`, all in one namespace.
async fn peers(handle: &Handle, netns: i32, veths: &[Veth]) -> io::Result<Vec<Interface>> {
    let mut interfaces = Vec::new();
    for veth in veths {
        let mut request = handle.link().get().match_index(veth.peer);
        request
            .message_mut()
            .attributes
            .push(LinkAttribute::IfNetnsId(netns));
        let replies: Result<Vec<_>, _> = request.execute().try_collect().await;
        let replies = replies.map_err(io::Error::other)?;
        let Some(peer) = replies.first().and_then(Veth::from_message) else {
            continue;
        };
        // The veth may have been replaced between the two questions.
        if peer.peer != veth.ifindex {
            continue;
        }
        let addresses = addresses(handle, netns, peer.ifindex).await?;
        let (link_local, addresses) = addresses
            .into_iter()
            .partition(|address| matches!(address, IpAddr::V4(v4) if v4.is_link_local()));
        interfaces.push(Interface {
            ifindex: veth.ifindex,
            name: veth.name.clone(),
            hardware_address: veth.hardware_address.clone(),
            master: veth.master,
            addresses,
            link_local,
            peer: Peer {
                netns,
                ifindex: peer.ifindex,
                name: peer.name,
            },
        });
    }
    Ok(interfaces)
}

async fn addresses(handle: &Handle, netns: i32, ifindex: u32) -> io::Result<Vec<IpAddr>> {
    let mut request = AddressMessage::default();
    request.header.index = ifindex;
    request
        .attributes
        .push(AddressAttribute::TargetNetNsId(netns));
    let messages = addresses_told(handle, request).await?;
    let mut addresses: Vec<_> = messages
        .iter()
        .filter(|message| message.header.index == ifindex)
        .filter_map(address)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// All addresses of this network namespace by which it can be reached.
async fn own_addresses(handle: &Handle) -> io::Result<BTreeSet<IpAddr>> {
    let messages = addresses_told(handle, AddressMessage::default()).await?;
    let addresses = messages.iter().filter_map(local_address);
    Ok(addresses
        .filter(|address| !address.is_loopback() && !address.is_multicast())
        .collect())
}

/// The address of a pod's interface.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    local_address(message).filter(|address| match address {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
    })
}

/// The address itself (on a point-to-point link IFA_ADDRESS is the other end's).
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(given) => local = Some(*given),
            AddressAttribute::Address(given) => address = Some(*given),
            _ => {}
        }
    }
    local.or(address)
}

#[cfg(test)]
#[path = "discovery_tests.rs"]
mod tests;
