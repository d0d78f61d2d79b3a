//! The cluster that every surrounding is put around: its pods, policies and Services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portcullis_tests::netns::kube_proxy::{KubeProxy, Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Form, Host, Node, PodSpec};

/// A host of the cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// In `shop`, isolated both ways; may open connections to db and friend.
    Web,
    /// In `shop`, isolated both ways; hears web, friend, and dev at TCP 80.
    Db,
    /// In `shop`, isolated both ways, and nothing allows it anything.
    Other,
    /// In `dev`, not isolated.
    Tool,
    /// In `dev`, not isolated.
    Open,
    /// The node itself.
    Node,
    /// Outside, in the ipBlock that policies name.
    Friend,
    /// Outside, in its `except`.
    Stranger,
}

/// Ports of Services, which no pod has.
pub(super) const PORT: u16 = 8000;
/// Node ports: db's, open's, and db's for `externalTrafficPolicy: Local`.
pub(super) const NODE_PORT: u16 = 30080;
pub(super) const OPEN_NODE_PORT: u16 = 30081;
pub(super) const LOCAL_NODE_PORT: u16 = 30082;
/// Where flows are held, which no server has.
pub(super) const TARGET: u16 = 9100;

/// Last part of a Service's addresses, by its backend.
pub(super) mod service {
    pub(crate) const DB: u8 = 10;
    pub(crate) const TOOL: u8 = 11;
    pub(crate) const WEB: u8 = 12;
    pub(crate) const FRIEND: u8 = 13;
    pub(crate) const STRANGER: u8 = 14;
    pub(crate) const NODE: u8 = 15;
    pub(crate) const DEAD: u8 = 16;
    pub(crate) const FLOWS: u8 = 17;
}

/// A Service's cluster IPs, one of each family.
pub(super) fn cluster_ips(last: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(10, 96, 0, last).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, last.into()).into(),
    ]
}

pub(super) fn backends(hosts: &[&Host], port: u16) -> Vec<SocketAddr> {
    let addresses = hosts.iter().flat_map(|host| host.addresses());
    addresses
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

/// Outside addresses that policies name, and those that they leave out.
pub(super) const BLOCKS: &str = "\
{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.16/28]}}, \
{ipBlock: {cidr: '2001:db8:51::/64', except: ['2001:db8:51::14/128']}}";

/// What isolates all of `shop`.
pub(super) const DENY_ALL: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

/// What web may send.
pub(super) fn web_out() -> String {
    format!(
        "podSelector: {{matchLabels: {{app: web}}}}\n\
         policyTypes: [Egress]\n\
         egress:\n- to: [{{podSelector: {{matchLabels: {{app: db}}}}}}, {BLOCKS}]"
    )
}

/// What db hears.
pub(super) fn db_in() -> String {
    format!(
        "podSelector: {{matchLabels: {{app: db}}}}\n\
         ingress:\n\
         - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}, {BLOCKS}]\n\
         - from: [{{namespaceSelector: {{matchLabels: {{team: dev}}}}}}]\n\
         \x20 ports: [{{port: 80}}]"
    )
}

pub(super) struct Cast {
    pub(super) node: Node,
    pub(super) web: Host,
    pub(super) db: Host,
    pub(super) other: Host,
    pub(super) tool: Host,
    pub(super) open: Host,
    pub(super) friend: Host,
    pub(super) stranger: Host,
}

impl Cast {
    pub(super) fn new(form: Form) -> Self {
        let node = Node::new(form).unwrap();
        let store = node.datastore();
        store.put_namespace("shop", &[("team", "shop")]).unwrap();
        store.put_namespace("dev", &[("team", "dev")]).unwrap();
        let pod = |namespace, name| {
            let labels = [("app", name)];
            node.add(PodSpec::new(namespace, name, &labels)).unwrap()
        };
        let web = pod("shop", "web");
        let db = pod("shop", "db");
        let other = pod("shop", "other");
        let tool = pod("dev", "tool");
        let open = pod("dev", "open");
        let friend = node.add_outside("friend", 10).unwrap();
        let stranger = node.add_outside("stranger", 20).unwrap();
        if form == Form::Bridge {
            // As a bridge's users ask for (`hairpinMode` of CNI's bridge): web reaches itself by its Service.
            let line = "link set pcl-veth1 type bridge_slave hairpin on";
            node.netns().ip(line).unwrap();
        }
        // Whatever is neither a pod's nor the node's goes there, so that kube-proxy can refuse it on the way.
        let [v4, v6] = stranger.addresses();
        let routes = format!("route add 0.0.0.0/0 via {v4}\nroute add ::/0 via {v6}");
        node.netns().ip(&routes).unwrap();
        let cast = Self {
            node,
            web,
            db,
            other,
            tool,
            open,
            friend,
            stranger,
        };
        for (name, spec) in [
            ("default-deny", DENY_ALL),
            ("web-out", &web_out()),
            ("db-in", &db_in()),
        ] {
            store_policy(&cast, name, spec);
        }
        for (number, service) in cast.services().iter().enumerate() {
            let name = format!("service-{number}");
            cast.node
                .datastore()
                .put_service("shop", &name, &service.cluster_ips, &service.external_ips)
                .unwrap();
        }
        cast
    }

    pub(super) fn host(&self, who: Who) -> &Host {
        match who {
            Who::Web => &self.web,
            Who::Db => &self.db,
            Who::Other => &self.other,
            Who::Tool => &self.tool,
            Who::Open => &self.open,
            Who::Node => &self.node,
            Who::Friend => &self.friend,
            Who::Stranger => &self.stranger,
        }
    }

    pub(super) fn services(&self) -> Vec<ServicePort> {
        let tcp =
            |last, to: &[SocketAddr]| ServicePort::new(&cluster_ips(last), Protocol::Tcp, PORT, to);
        let web_server = |host: &Host| backends(&[host], 80);
        let udp = |last, host: &Host| {
            let to = backends(&[host], 53);
            ServicePort::new(&cluster_ips(last), Protocol::Udp, 53, &to)
        };
        vec![
            ServicePort {
                node_port: Some(NODE_PORT),
                ..tcp(service::DB, &web_server(&self.db))
            },
            udp(service::DB, &self.db),
            ServicePort {
                node_port: Some(OPEN_NODE_PORT),
                ..tcp(service::TOOL, &web_server(&self.open))
            },
            udp(service::TOOL, &self.open),
            ServicePort {
                node_port: Some(LOCAL_NODE_PORT),
                local_backends: Some(web_server(&self.db)),
                ..tcp(service::DEAD + 10, &web_server(&self.db))
            },
            tcp(service::WEB, &web_server(&self.web)),
            tcp(service::FRIEND, &web_server(&self.friend)),
            tcp(service::STRANGER, &web_server(&self.stranger)),
            tcp(service::NODE, &web_server(&self.node)),
            tcp(service::DEAD, &[]),
            tcp(service::FLOWS, &backends(&[&self.db], TARGET)),
        ]
    }

    /// kube-proxy's rules for them.
    pub(super) fn kube_proxy(&self, mode: Mode) -> KubeProxy {
        let networks = ["10.244.0.0/16", "fd00:10:244::/48"];
        let networks = networks.map(|network| network.parse().unwrap());
        let mut proxy = KubeProxy::new(mode, &networks);
        proxy.services = self.services();
        proxy
    }
}

/// Writes a policy of `shop`.
pub(super) fn store_policy(cast: &Cast, name: &str, spec: &str) {
    let store = cast.node.datastore();
    store.put_policy("shop", name, spec).unwrap();
}
