//! Which endpoints' packets nf_conntrack does not see, so that their flows are recorded although nothing isolates them.
//!
//! It sees an endpoint's packets where somebody uses it for the family, where a bridge between the endpoint and the node hands its packets
//! to netfilter, and where an entry of the endpoint's own was seen, with packets of both directions. Whatever is not known is recorded: that
//! costs time, and no verdict.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use super::netlink::Conntrack;
use super::worker::{self, Question};

/// After how long entries of endpoints' own are looked for again at first, and at the longest.
const LOOKS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(300)];

/// Something that differs by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByFamily {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl ByFamily {
    fn of(self, address: &IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// Whose packets nf_conntrack sees on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    /// Somebody uses it.
    pub is_used: ByFamily,
    /// Bridges hand to it what they pass from port to port.
    pub on_bridges: ByFamily,
}

impl Visibility {
    /// As it is now. Where something cannot be found out it counts as not seen.
    pub(in crate::agent) fn look() -> Self {
        Self {
            is_used: ByFamily {
                v4: is_used(Ipv4Addr::LOCALHOST.into()),
                v6: is_used(Ipv6Addr::LOCALHOST.into()),
            },
            // Only with br_netfilter there are such settings. What a single bridge is set to is left out.
            on_bridges: ByFamily {
                v4: is_set("bridge-nf-call-iptables"),
                v6: is_set("bridge-nf-call-ip6tables"),
            },
        }
    }
}

fn is_set(setting: &str) -> bool {
    let path = format!("/proc/sys/net/bridge/{setting}");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

/// Whether a datagram of this node's own gets an entry.
fn is_used(address: IpAddr) -> bool {
    worker::is_loaded() && try_datagram(address).unwrap_or(false)
}

fn try_datagram(address: IpAddr) -> io::Result<bool> {
    let (from, to) = (
        UdpSocket::bind((address, 0))?,
        UdpSocket::bind((address, 0))?,
    );
    from.send_to(&[], to.local_addr()?)?;
    Conntrack::open()?.has_udp(from.local_addr()?, to.local_addr()?)
}

/// See the module.
#[derive(Debug, Default)]
pub(in crate::agent) struct Coverage {
    visibility: Visibility,
    /// Addresses of endpoints that have entries.
    seen: BTreeSet<IpAddr>,
    /// Addresses of all endpoints.
    known: BTreeSet<IpAddr>,
    /// When entries are looked for, and after how long once more.
    next: Option<(Instant, Duration)>,
    is_asked: bool,
}

impl Coverage {
    /// Whether the flows of an endpoint with these addresses are to be recorded; `master` is the device that its host side is a port
    /// of, 0 for none.
    pub(in crate::agent) fn records(&self, addresses: &[IpAddr], master: u32) -> bool {
        let Visibility {
            is_used,
            on_bridges,
        } = self.visibility;
        let is_visible =
            |address: &IpAddr| is_used.of(address) && (master == 0 || on_bridges.of(address));
        let is_seen = addresses.iter().any(|address| self.seen.contains(address));
        !(is_seen && addresses.iter().all(is_visible))
    }

    /// The node was looked at; says whether anything changed.
    pub(in crate::agent) fn set_visibility(&mut self, visibility: Visibility) -> bool {
        if self.visibility == visibility {
            return false;
        }
        tracing::info!(
            tracked = ?visibility.is_used, on_bridges = ?visibility.on_bridges,
            "whose packets nf_conntrack sees, by family; of pods that it does not see, and that no policy isolates, flows are recorded"
        );
        self.visibility = visibility;
        // What was seen may have been seen by other rules.
        self.seen.clear();
        self.next = None;
        true
    }

    /// These are the endpoints' addresses.
    pub(in crate::agent) fn set_endpoints(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.known == addresses {
            return;
        }
        self.seen.retain(|address| addresses.contains(address));
        if !addresses.is_subset(&self.known) {
            self.next = None;
        }
        self.known = addresses;
    }

    /// What is to be asked now, and when to call again.
    pub(in crate::agent) fn look(&mut self, now: Instant) -> (Option<Question>, Option<Instant>) {
        let is_used = self.visibility.is_used;
        let open = self.known.difference(&self.seen);
        let open: BTreeSet<IpAddr> = open
            .filter(|address| is_used.of(address))
            .copied()
            .collect();
        if open.is_empty() || self.is_asked {
            return (None, None);
        }
        let [soon, late] = LOOKS;
        let (at, interval) = *self.next.get_or_insert((now + soon, soon));
        if now < at {
            return (None, Some(at));
        }
        let interval = late.min(interval * 2);
        self.next = Some((now + interval, interval));
        self.is_asked = true;
        (Some(Question::Look(open)), None)
    }

    /// There are entries of these addresses; says whether anything changed.
    pub(in crate::agent) fn set_seen(&mut self, seen: io::Result<BTreeSet<IpAddr>>) -> bool {
        self.is_asked = false;
        match seen {
            Ok(seen) => {
                let known = self.seen.len();
                let seen = seen.intersection(&self.known);
                self.seen.extend(seen.copied());
                self.seen.len() != known
            }
            Err(error) => {
                tracing::warn!(%error, "nf_conntrack cannot be asked whose packets it sees");
                false
            }
        }
    }
}

#[cfg(test)]
#[path = "coverage_tests.rs"]
mod tests;
