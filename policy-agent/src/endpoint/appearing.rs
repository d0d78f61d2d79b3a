//! Interfaces by which packets leave, told of as soon as they appear.
//!
//! A scan comes some milliseconds after an interface and takes its time, while packets may leave by it as soon as it is
//! up. So the kernel's own word is passed on at once, by a socket that hears of this network namespace alone. Not of
//! veths: they come with pods, many at a time, and a scan has to say whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::pin;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

use super::discovery::Report;
use super::{Link, Scan};

/// See the module.
pub(super) struct Appearing {
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    /// Those that the last scan had, or that were told of since.
    known: BTreeSet<u32>,
    /// Those that were told of since the scan began that is under way, or since the last one.
    told: BTreeMap<u32, Link>,
}

impl Appearing {
    /// Begins to listen; must be called within a tokio runtime.
    pub(super) fn subscribe() -> io::Result<Self> {
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        Ok(Self {
            messages: messages.map(|(message, _)| message).boxed(),
            known: BTreeSet::new(),
            told: BTreeMap::new(),
        })
    }

    /// Does something, and tells meanwhile.
    pub(super) async fn tell_during<T>(
        &mut self,
        work: impl Future<Output = T>,
        reports: &mpsc::Sender<Report>,
    ) -> T {
        let mut work = pin!(work);
        loop {
            let message = tokio::select! {
                done = &mut work => return done,
                Some(message) = self.messages.next() => message,
            };
            if let Some((ifindex, link)) = self.news(message) {
                // Nobody listens any more: `work` ends by that.
                let _unheard = reports.send(Report::Link(ifindex, link)).await;
            }
        }
    }

    /// The interface that a message says is new.
    fn news(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Option<(u32, Link)> {
        let NetlinkPayload::InnerMessage(message) = message.payload else {
            return None;
        };
        match message {
            // Bridges tell of their ports, too, in another family.
            RouteNetlinkMessage::NewLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                let ifindex = message.header.index;
                let link = Link::from_message(&message).filter(|link| !link.is_veth)?;
                self.known.insert(ifindex).then(|| {
                    self.told.insert(ifindex, link.clone());
                    (ifindex, link)
                })
            }
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                self.known.remove(&message.header.index);
                self.told.remove(&message.header.index);
                None
            }
            _ => None,
        }
    }

    /// Adds to a scan what appeared while it went on.
    pub(super) fn complete(&mut self, scan: &mut Scan) {
        for (ifindex, link) in std::mem::take(&mut self.told) {
            scan.links.entry(ifindex).or_insert(link);
        }
        self.known = scan.links.keys().copied().collect();
    }
}
