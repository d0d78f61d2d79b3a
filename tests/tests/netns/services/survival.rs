//! Long flows through a Service: they outlive agents and changes that do not concern them, and end with the
//! change that forbids their backend.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use portcullis_tests::netns::kube_proxy::{Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Family, Flow, Form, Host, PATIENCE, SILENCE};

use super::super::persistence::mark_as_other_layout;
use super::{Cast, backends, cluster_ips, in_both_forms, kube_proxy, publish};

in_both_forms! { flows_go_on_until_their_backend_is_forbidden }

fn flows_go_on_until_their_backend_is_forbidden(form: Form) {
    flows_go_on(form, Mode::IptablesLegacy, &[Successor::Same]);
}

#[test]
fn flows_through_nftables_go_on_until_their_backend_is_forbidden() {
    let successors = [
        Successor::Same,
        Successor::OtherLayout,
        Successor::OtherSizes,
    ];
    flows_go_on(Form::Routed, Mode::Nftables, &successors);
}

/// The agent that comes after one that was killed.
#[derive(Clone, Copy, Debug)]
enum Successor {
    /// Of its kind.
    Same,
    /// One whose tables are of another layout.
    OtherLayout,
    /// One whose tables of flows are of other sizes.
    OtherSizes,
}

impl Successor {
    fn start(self, cast: &Cast) -> Agent<'_> {
        let sizes = match self {
            Self::OtherSizes => "flows_v4=4096,flows_new_v6=4096",
            Self::OtherLayout => {
                mark_as_other_layout(cast);
                ""
            }
            Self::Same => "",
        };
        let settings = [("PORTCULLIS_TABLE_SIZES", sizes)];
        let mut agent = Agent::spawn_with(&cast.node, &settings).unwrap();
        agent.wait().unwrap();
        agent
    }
}

const PORT: u16 = 8000;
const TARGET: u16 = 9000;

const WEB_MAY_REACH_DB: &str = "\
podSelector: {matchLabels: {app: web}}
policyTypes: [Egress]
egress:
- to: [{podSelector: {matchLabels: {app: db}}}]";

const WEB_MAY_REACH_TOOL: &str = "\
podSelector: {matchLabels: {app: web}}
policyTypes: [Egress]
egress:
- to: [{namespaceSelector: {matchLabels: {team: dev}}}]";

/// Datagrams both ways between a client and the server behind a Service.
struct Dialogue {
    client: UdpSocket,
    server: UdpSocket,
    /// The client, as the server sees it.
    peer: SocketAddr,
    sent: u8,
}

impl Dialogue {
    fn open(client: &Host, to: SocketAddr, server: &Host, at: SocketAddr) -> Self {
        let any = SocketAddr::new(client.addresses()[usize::from(to.is_ipv6())], 0);
        let client = client.netns().enter(|| UdpSocket::bind(any)).unwrap();
        client.connect(to).unwrap();
        let server = server.netns().enter(|| UdpSocket::bind(at)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send(&[0]).unwrap();
        let (_, peer) = server.recv_from(&mut [0]).unwrap();
        Self {
            client,
            server,
            peer,
            sent: 0,
        }
    }

    fn client_speaks(&mut self, patience: Duration) -> bool {
        self.sent = self.sent.wrapping_add(1);
        self.client.send(&[self.sent]).unwrap();
        arrives(&self.server, self.sent, patience)
    }

    fn server_speaks(&mut self, patience: Duration) -> bool {
        self.sent = self.sent.wrapping_add(1);
        self.server.send_to(&[self.sent], self.peer).unwrap();
        arrives(&self.client, self.sent, patience)
    }
}

fn arrives(at: &UdpSocket, sent: u8, patience: Duration) -> bool {
    at.set_read_timeout(Some(patience)).unwrap();
    let mut got = [0];
    at.recv(&mut got).is_ok() && got == [sent]
}

fn flows_go_on(form: Form, mode: Mode, successors: &[Successor]) {
    let cast = Cast::new(form);
    let (web, db) = (&cast.web, &cast.db);
    let to_db = backends(&[db], TARGET);
    let services = [Protocol::Tcp, Protocol::Udp]
        .map(|protocol| ServicePort::new(&cluster_ips(10), protocol, PORT, &to_db));
    publish(&cast.node, &services);
    let proxy = kube_proxy(mode, &services);
    proxy.apply(cast.node.netns()).unwrap();
    cast.policy("web-out", WEB_MAY_REACH_DB);
    let mut agent = Agent::start(&cast.node).unwrap();
    let ends = |family: Family| {
        let to = SocketAddr::new(cluster_ips(10)[family as usize], PORT);
        (to, SocketAddr::new(db.address(family), TARGET))
    };
    let mut flows = Family::ALL.map(|family| {
        let (to, at) = ends(family);
        let tcp = Flow::open_through(web.netns(), to, db.netns(), at).unwrap();
        (tcp, Dialogue::open(web, to, db, at))
    });
    let mut expect_alive = |when: &str| {
        for (tcp, udp) in &mut flows {
            // The server first: after a change it may speak before the client does.
            assert!(
                tcp.server_speaks(PATIENCE).unwrap(),
                "{when}: TCP to the client"
            );
            assert!(
                tcp.client_speaks(PATIENCE).unwrap(),
                "{when}: TCP to the server"
            );
            assert!(udp.server_speaks(PATIENCE), "{when}: UDP to the client");
            assert!(udp.client_speaks(PATIENCE), "{when}: UDP to the server");
        }
    };
    expect_alive("at first");
    for successor in successors {
        agent.kill().unwrap();
        expect_alive("without an agent");
        agent = successor.start(&cast);
        expect_alive(&format!("with {successor:?}"));
    }
    cast.policy("other", super::super::DENY_INGRESS);
    cast.policy("web-to-db", super::super::WEB_TO_DB);
    agent.sync().unwrap();
    expect_alive("after changes that allow it as before");
    publish_another(&cast);
    agent.sync().unwrap();
    expect_alive("with another Service");

    let mut downloads = Family::ALL.map(|family| {
        let (to, at) = ends(family);
        Flow::open_through(web.netns(), to, db.netns(), at).unwrap()
    });
    cast.policy("web-out", WEB_MAY_REACH_TOOL);
    agent.sync().unwrap();
    for flow in &mut downloads {
        let before = revoked(&agent);
        // The client's acknowledgements are packets, too; until the first is judged, the server is heard.
        while flow.server_speaks(SILENCE).unwrap() {}
        // Without acknowledgements the server would fall silent by itself, some packets later.
        assert!(revoked(&agent) > before, "a server that goes on sending");
    }
    for (tcp, udp) in &mut flows {
        assert!(!tcp.client_speaks(SILENCE).unwrap(), "TCP to the server");
        assert!(!tcp.server_speaks(SILENCE).unwrap(), "TCP to the client");
        assert!(!udp.client_speaks(SILENCE), "UDP to the server");
        assert!(!udp.server_speaks(SILENCE), "UDP to the client");
    }
    cast.policy("web-out", WEB_MAY_REACH_DB);
    agent.sync().unwrap();
    for (_, udp) in &mut flows {
        assert!(
            udp.client_speaks(PATIENCE),
            "UDP to the server, allowed again"
        );
        assert!(
            udp.server_speaks(PATIENCE),
            "UDP to the client, allowed again"
        );
    }
}

/// Packets to pods that belonged to a connection that was cut.
fn revoked(agent: &Agent<'_>) -> u64 {
    let counters = agent.status().unwrap().counters;
    let rows = counters
        .iter()
        .filter(|row| row.direction == "ingress" && row.reason == "flow_revoked");
    rows.map(|row| row.packets).sum()
}

fn publish_another(cast: &Cast) {
    let store = cast.node.datastore();
    store
        .put_service("dev", "another", &cluster_ips(20), &[])
        .unwrap();
}
