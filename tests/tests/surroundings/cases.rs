//! The cases: who may do what, by the policies of the cast and nothing else.

use std::net::IpAddr;

use portcullis_tests::netns::{Outcome, Row, What, wrong};

use super::cast::service;
use super::cast::{Cast, LOCAL_NODE_PORT, NODE_PORT, OPEN_NODE_PORT, PORT, Who, cluster_ips};
use What::{Fragments, Ping, Tcp, Udp};
use Who::{Db, Friend, Node, Open, Other, Stranger, Tool, Web};

/// Where a case goes.
#[derive(Clone, Copy)]
enum To {
    /// A host's own address.
    Host(Who),
    /// A Service's cluster IP.
    Service(u8),
}

/// What must work between others for a case to have a meaning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// Addresses as they are.
    Nothing,
    /// kube-proxy's translation.
    Translation,
    /// Its masquerade, too.
    Masquerade,
}

struct Case(Who, To, What, Outcome, Needs);

const EVERY_WAY: [What; 4] = [Tcp(80), Udp(53), Fragments(53), Ping];

/// Between hosts: all ways are allowed, or none.
const DIRECT: &[(Who, Who, bool)] = &[
    // By labels: web may open connections to db, and both ends say so.
    (Web, Db, true),
    (Db, Web, false),
    (Other, Db, false),
    (Other, Web, false),
    (Web, Other, false),
    // Isolated towards those who are not, and the other way round.
    (Web, Tool, false),
    (Other, Open, false),
    (Tool, Web, false),
    (Db, Tool, false),
    // Nobody isolates these.
    (Tool, Open, true),
    (Open, Tool, true),
    // By address: outside, without a part of it.
    (Web, Friend, true),
    (Friend, Db, true),
    (Web, Stranger, false),
    (Stranger, Db, false),
    (Other, Friend, false),
    (Db, Friend, false),
    (Friend, Other, false),
    (Tool, Stranger, true),
    (Stranger, Tool, true),
    // A pod reaches itself and its node, and the node its pods.
    (Web, Web, true),
    (Other, Other, true),
    (Node, Other, true),
    (Node, Web, true),
    (Node, Tool, true),
    (Other, Node, true),
    (Tool, Node, true),
];

/// The rest, one by one. A Service's client is judged by where its packets end.
const ONE_BY_ONE: &[Case] = &[
    // By namespace and port.
    Case(
        Tool,
        To::Host(Db),
        Tcp(80),
        Outcome::Answered,
        Needs::Nothing,
    ),
    Case(
        Tool,
        To::Host(Db),
        Tcp(8080),
        Outcome::Silent,
        Needs::Nothing,
    ),
    Case(Tool, To::Host(Db), Udp(53), Outcome::Silent, Needs::Nothing),
    Case(
        Tool,
        To::Host(Db),
        Fragments(53),
        Outcome::Silent,
        Needs::Nothing,
    ),
    Case(Tool, To::Host(Db), Ping, Outcome::Silent, Needs::Nothing),
    // Through cluster IPs, to pods of this node.
    Case(
        Web,
        To::Service(service::DB),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Web,
        To::Service(service::DB),
        Udp(53),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Web,
        To::Service(service::DB),
        Fragments(53),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Other,
        To::Service(service::DB),
        Tcp(PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Other,
        To::Service(service::DB),
        Udp(53),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Other,
        To::Service(service::DB),
        Fragments(53),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Tool,
        To::Service(service::DB),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Tool,
        To::Service(service::DB),
        Udp(53),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Web,
        To::Service(service::TOOL),
        Tcp(PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Web,
        To::Service(service::TOOL),
        Udp(53),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Tool,
        To::Service(service::TOOL),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Tool,
        To::Service(service::TOOL),
        Udp(53),
        Outcome::Answered,
        Needs::Translation,
    ),
    // To outside, to the node, to nobody, from the node.
    Case(
        Web,
        To::Service(service::FRIEND),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Web,
        To::Service(service::STRANGER),
        Tcp(PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Other,
        To::Service(service::FRIEND),
        Tcp(PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Tool,
        To::Service(service::STRANGER),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Other,
        To::Service(service::NODE),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Other,
        To::Service(service::DEAD),
        Tcp(PORT),
        Outcome::Refused,
        Needs::Translation,
    ),
    Case(
        Node,
        To::Service(service::DB),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    // Itself through a Service, which needs a masquerade.
    Case(
        Web,
        To::Service(service::WEB),
        Tcp(PORT),
        Outcome::Answered,
        Needs::Masquerade,
    ),
    Case(
        Other,
        To::Service(service::WEB),
        Tcp(PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    // NodePorts from inside.
    Case(
        Web,
        To::Host(Node),
        Tcp(NODE_PORT),
        Outcome::Answered,
        Needs::Masquerade,
    ),
    Case(
        Other,
        To::Host(Node),
        Tcp(NODE_PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Web,
        To::Host(Node),
        Tcp(OPEN_NODE_PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
    Case(
        Tool,
        To::Host(Node),
        Tcp(OPEN_NODE_PORT),
        Outcome::Answered,
        Needs::Masquerade,
    ),
    // From outside: masqueraded clients have the node's address, which no policy names and which is no pass.
    Case(
        Friend,
        To::Host(Node),
        Tcp(OPEN_NODE_PORT),
        Outcome::Answered,
        Needs::Masquerade,
    ),
    Case(
        Friend,
        To::Host(Node),
        Tcp(NODE_PORT),
        Outcome::Silent,
        Needs::Masquerade,
    ),
    Case(
        Friend,
        To::Host(Node),
        Tcp(LOCAL_NODE_PORT),
        Outcome::Answered,
        Needs::Translation,
    ),
    Case(
        Stranger,
        To::Host(Node),
        Tcp(LOCAL_NODE_PORT),
        Outcome::Silent,
        Needs::Translation,
    ),
];

impl To {
    fn addresses(self, cast: &Cast) -> [IpAddr; 2] {
        match self {
            Self::Host(who) => cast.host(who).addresses(),
            Self::Service(last) => cluster_ips(last),
        }
    }
}

/// The rows of all cases that need no more than `there_is`.
pub(super) fn rows(cast: &Cast, there_is: Needs) -> Vec<Row<'_>> {
    let direct = DIRECT.iter().flat_map(|(from, to, allowed)| {
        let outcome = if *allowed {
            Outcome::Answered
        } else {
            Outcome::Silent
        };
        EVERY_WAY.map(|what| Case(*from, To::Host(*to), what, outcome.clone(), Needs::Nothing))
    });
    let row = |case: &Case| {
        let Case(from, to, what, outcome, _) = case;
        (cast.host(*from), to.addresses(cast), *what, outcome.clone())
    };
    let direct: Vec<_> = direct.map(|case| row(&case)).collect();
    let one_by_one = ONE_BY_ONE.iter().filter(|case| case.4 <= there_is);
    direct.into_iter().chain(one_by_one.map(row)).collect()
}

/// Tries all of them: how many cells there are, and which are wrong.
pub(super) fn try_all(cast: &Cast, there_is: Needs) -> (usize, Vec<String>) {
    let rows = rows(cast, there_is);
    (rows.len() * 2, wrong(&rows))
}
