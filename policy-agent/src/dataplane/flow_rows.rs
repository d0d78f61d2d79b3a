//! Puts flows into the tables that the programs write: conversations that began when the programs kept none of them.
//!
//! A flow that is put is one of an older epoch, so that the next packet of either side is judged by the policies of the direction in
//! which the conversation was begun.

use std::io;
use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData, MapError};
use policy_common::config::Timeouts;
use policy_common::event::NO_RULE;
use policy_common::flow::{
    Flow, FlowKey, FlowKeyV4, FlowKeyV6, FlowState, PortPair, is_expired, protocol, timeout,
};
use policy_common::verdict::Direction;

use super::clock;
use super::row::Row;
use super::tables::{octets_v4, octets_v6};

/// A conversation of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// The endpoint's id.
    pub endpoint: u32,
    /// An epoch of the endpoint that is, or is about to be, over.
    pub epoch: u32,
    /// The other side's address, as the pod sees it.
    pub remote: IpAddr,
    /// The port fields of the flow's key.
    pub ports: PortPair,
    /// L4 protocol number.
    pub protocol: u8,
    /// In which direction it was begun.
    pub initiator: Direction,
    /// One of [`FlowState`].
    pub state: u8,
    /// The endpoint of this node that began it, where `remote` is not that one's address; else 0.
    pub peer: u32,
    /// Whether this node began it.
    pub is_of_node: bool,
}

/// What became of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The programs know it.
    Known,
    /// They did not, and do now.
    Added,
    /// They had it begun by the other side.
    Corrected,
}

/// The tables of flows, for writing.
pub struct FlowRows {
    v4: Tables<FlowKeyV4>,
    v6: Tables<FlowKeyV6>,
    timeouts: Timeouts,
}

struct Tables<K> {
    two_way: Table<K>,
    one_way: Table<K>,
}

type Table<K> = HashMap<MapData, Row<K>, Row<Flow>>;

impl FlowRows {
    /// From the tables' descriptors: of flows seen both ways and one way, IPv4's first.
    pub(super) fn new([v4, new_v4, v6, new_v6]: [MapData; 4]) -> Result<Self, MapError> {
        let hz = clock::jiffies_per_second();
        Ok(Self {
            v4: Tables::new(v4, new_v4)?,
            v6: Tables::new(v6, new_v6)?,
            timeouts: Timeouts::SECONDS.to_ticks(hz, clock::shift(hz)),
        })
    }

    /// Puts a conversation, unless it is known. What the programs saw begin, because its packets say so, they know better.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn learn(&mut self, conversation: &Conversation) -> io::Result<Learned> {
        let Conversation {
            endpoint,
            ports,
            protocol,
            ..
        } = *conversation;
        let place = FlowKey::<()>::AT_POD;
        let outcome = match conversation.remote {
            IpAddr::V4(remote) => {
                let remote = octets_v4(remote);
                let key = FlowKeyV4::from_parts(endpoint, remote, ports, protocol, place);
                self.v4.learn(key, conversation, &self.timeouts)
            }
            IpAddr::V6(remote) => {
                let remote = octets_v6(remote);
                let key = FlowKeyV6::from_parts(endpoint, remote, ports, protocol, place);
                self.v6.learn(key, conversation, &self.timeouts)
            }
        };
        outcome.map_err(io::Error::other)
    }
}

impl<K: bytemuck::Pod> Tables<K> {
    fn new(two_way: MapData, one_way: MapData) -> Result<Self, MapError> {
        Ok(Self {
            two_way: Map::LruHashMap(two_way).try_into()?,
            one_way: Map::LruHashMap(one_way).try_into()?,
        })
    }

    fn learn(
        &mut self,
        key: K,
        conversation: &Conversation,
        timeouts: &Timeouts,
    ) -> Result<Learned, MapError> {
        let now = clock::ticks();
        let is_alive = |flow: &Flow| {
            let timeout = timeout(conversation.protocol, flow.state, timeouts);
            !is_expired(now, flow.last_seen, timeout)
        };
        let known = [get(&self.two_way, key)?, get(&self.one_way, key)?];
        let outcome = match known.into_iter().flatten().find(is_alive) {
            Some(flow) if is_right(&flow, conversation) => return Ok(Learned::Known),
            Some(_) => Learned::Corrected,
            None => Learned::Added,
        };
        let flow = Flow {
            epoch: conversation.epoch,
            last_seen: now,
            rule: NO_RULE,
            state: conversation.state,
            initiator: conversation.initiator as u8,
            flags: if conversation.is_of_node {
                Flow::NODE_ORIGIN
            } else {
                0
            },
            peer: conversation.peer,
            ..Flow::default()
        };
        let (to, from) = if conversation.state == FlowState::ONE_WAY {
            (&mut self.one_way, &mut self.two_way)
        } else {
            (&mut self.two_way, &mut self.one_way)
        };
        to.insert(Row(key), Row(flow), 0)?;
        match from.remove(&Row(key)) {
            Err(error) if !super::counted::is(&error, libc::ENOENT) => Err(error),
            _ => Ok(outcome),
        }
    }
}

/// Whether a flow that is known has the right beginning. Of TCP and SCTP the programs keep every beginning that they see, while
/// connection tracking takes up connections in their midst.
fn is_right(flow: &Flow, conversation: &Conversation) -> bool {
    matches!(conversation.protocol, protocol::TCP | protocol::SCTP)
        || flow.initiator == conversation.initiator as u8
}

fn get<K: bytemuck::Pod>(table: &Table<K>, key: K) -> Result<Option<Flow>, MapError> {
    match table.get(&Row(key), 0) {
        Ok(Row(flow)) => Ok(Some(flow)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}
