//! The hosts of the suite, and what an attacker knows of them: all addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use portcullis_tests::netns::{
    Family, Form, Host, Node, Outcome, PATIENCE, PodSpec, Probe, Sniffer, What, probe,
};
use portcullis_tests::raw::Mac;

/// How pods are joined to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Routed,
    Bridge,
    /// Whose packets pass no netfilter.
    BareBridge,
}

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Attacks; isolated both ways, allowed nothing.
    Evil,
    /// Attacks; not isolated.
    Tool,
    /// Isolated both ways; may open connections to db and friend.
    Web,
    /// Isolated both ways; hears web and friend, and tool by UDP at port 53.
    Db,
    /// Not isolated.
    Open,
    /// Outside, in a block that a policy names.
    Friend,
    /// Outside.
    Stranger,
    /// Outside: the other end of the node's tunnel.
    Peer,
    /// The node itself.
    Node,
}

impl Who {
    /// Those whose every frame is seen.
    pub(super) const SEEING: [Self; 8] = [
        Self::Evil,
        Self::Tool,
        Self::Web,
        Self::Db,
        Self::Open,
        Self::Friend,
        Self::Stranger,
        Self::Peer,
    ];
    /// Those on the pods' link, where there is one.
    pub(super) const PODS: [Self; 5] = [Self::Evil, Self::Tool, Self::Web, Self::Db, Self::Open];
}

pub(super) struct Scene {
    pub(super) base: Base,
    /// Take what arrives without a word: an ICMP error would quote it, and carry it to whom the sender was forged from.
    _sinks: Vec<UdpSocket>,
    pub(super) sniffers: Vec<(Who, Sniffer)>,
    hosts: Vec<(Who, Host)>,
    pub(super) node: Node,
}

/// Where datagrams of attackers go.
pub(super) const SINK: u16 = 9000;
/// The cluster IP of a Service, one of each family.
pub(super) const SERVICE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0xa)),
];
/// Nobody's.
pub(super) const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 8, 0, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x8, 0, 0, 0, 0, 0, 2)),
];
/// Where the node's own overlay is.
pub(super) const OVERLAY_MAC: Mac = [2, 0, 0, 0, 0xee, 1];
/// Its identifier.
pub(super) const OVERLAY: u32 = 7;

impl Scene {
    pub(super) fn new(base: Base) -> Self {
        let form = match base {
            Base::Routed => Form::Routed,
            _ => Form::Bridge,
        };
        let node = Node::new(form).unwrap();
        let netns = node.netns();
        if base == Base::BareBridge {
            for family in ["ip", "ip6"] {
                let key = format!("net/bridge/bridge-nf-call-{family}tables");
                netns.sysctl(&key, "0").unwrap();
            }
        }
        // What a careless node forwards; only policy may stop it here.
        for (key, value) in [
            ("net/ipv4/conf/all/accept_source_route", "1"),
            ("net/ipv4/conf/default/accept_source_route", "1"),
            ("net/ipv4/conf/all/accept_local", "1"),
            ("net/ipv4/conf/default/accept_local", "1"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv6/conf/all/accept_source_route", "0"),
        ] {
            netns.sysctl(key, value).unwrap();
        }
        let store = node.datastore();
        store.put_namespace("shop", &[("team", "shop")]).unwrap();
        store.put_namespace("dev", &[("team", "dev")]).unwrap();
        let pod = |namespace, name| {
            let labels = [("app", name)];
            node.add(PodSpec::new(namespace, name, &labels)).unwrap()
        };
        let mut hosts = vec![
            (Who::Evil, pod("shop", "evil")),
            (Who::Tool, pod("dev", "tool")),
            (Who::Web, pod("shop", "web")),
            (Who::Db, pod("shop", "db")),
            (Who::Open, pod("dev", "open")),
        ];
        for (who, name, last) in [
            (Who::Friend, "friend", 10),
            (Who::Stranger, "stranger", 20),
            (Who::Peer, "peer", 30),
        ] {
            hosts.push((who, node.add_outside(name, last).unwrap()));
        }
        for (kind, number) in [
            ("veth", 1),
            ("veth", 2),
            ("veth", 3),
            ("veth", 4),
            ("veth", 5),
        ]
        .into_iter()
        .filter(|_| form == Form::Routed)
        .chain([("out", 6), ("out", 7), ("out", 8)])
        {
            let line = format!("link set pcl-{kind}{number} address 02:00:00:00:ff:0{number}");
            netns.ip(&line).unwrap();
        }
        let overlay = OVERLAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
        netns
            .ip(&format!(
                "link add pcl-over address {overlay} type vxlan id {OVERLAY} dstport 8472 remote 198.51.100.30\n\
                 link set pcl-over up\n\
                 address add 172.16.0.1/24 dev pcl-over\n\
                 route add 0.0.0.0/0 via 198.51.100.20\n\
                 route add ::/0 via 2001:db8:51::14"
            ))
            .unwrap();
        let [v4, v6] = SERVICE;
        store.put_service("shop", "db", &[v4, v6], &[]).unwrap();
        for (name, spec) in [
            (
                "default-deny",
                "{podSelector: {}, policyTypes: [Ingress, Egress]}",
            ),
            (
                "web-out",
                "podSelector: {matchLabels: {app: web}}\npolicyTypes: [Egress]\n\
                 egress:\n- to: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 198.51.100.10/32}}, {ipBlock: {cidr: '2001:db8:51::a/128'}}]",
            ),
            (
                "db-in",
                "podSelector: {matchLabels: {app: db}}\n\
                 ingress:\n\
                 - from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 198.51.100.10/32}}, {ipBlock: {cidr: '2001:db8:51::a/128'}}]\n\
                 - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: tool}}}]\n\
                 \x20 ports: [{port: 53, protocol: UDP}]",
            ),
        ] {
            store.put_policy("shop", name, spec).unwrap();
        }
        let host = |who| &hosts.iter().find(|(is, _)| *is == who).unwrap().1;
        let sniffers = Who::SEEING.map(|who| (who, Sniffer::start(host(who).netns()).unwrap()));
        let sinks = hosts.iter().map(|(_, host)| {
            let any = (Ipv6Addr::UNSPECIFIED, SINK);
            host.netns().enter(|| UdpSocket::bind(any)).unwrap()
        });
        let scene = Self {
            base,
            _sinks: sinks.collect(),
            sniffers: sniffers.into_iter().collect(),
            hosts,
            node,
        };
        scene.believe_routers("0");
        scene
    }

    pub(super) fn host(&self, who: Who) -> &Host {
        if who == Who::Node {
            return &self.node;
        }
        &self.hosts.iter().find(|(is, _)| *is == who).unwrap().1
    }

    pub(super) fn is_bridged(&self) -> bool {
        self.base != Base::Routed
    }

    pub(super) fn address(&self, who: Who, family: Family) -> IpAddr {
        self.host(who).address(family)
    }

    pub(super) fn v4(&self, who: Who) -> Ipv4Addr {
        match self.address(who, Family::V4) {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => unreachable!("asked for IPv4"),
        }
    }

    pub(super) fn v6(&self, who: Who) -> Ipv6Addr {
        match self.address(who, Family::V6) {
            IpAddr::V6(address) => address,
            IpAddr::V4(_) => unreachable!("asked for IPv6"),
        }
    }

    /// The hardware address of a pod, or of the node as `attacker` sees it.
    pub(super) fn mac(&self, who: Who, attacker: Who) -> Mac {
        if Who::PODS.contains(&who) {
            return [2, 0, 0x0a, 0xf4, 0, self.v4(who).octets()[3]];
        }
        if self.is_bridged() && Who::PODS.contains(&attacker) {
            return [2, 0, 0x0a, 0xf4, 0, 1];
        }
        let mut links = Who::SEEING.iter();
        let number = links.position(|who| *who == attacker).unwrap() + 1;
        [2, 0, 0, 0, 0xff, number as u8]
    }

    /// Where a frame of `attacker` for `who` goes on the link: straight there, or to the node.
    pub(super) fn next_hop(&self, who: Who, attacker: Who) -> Mac {
        if self.is_bridged() && [who, attacker].iter().all(|who| Who::PODS.contains(who)) {
            self.mac(who, attacker)
        } else {
            self.mac(Who::Node, attacker)
        }
    }

    /// Link-local address of a pod's interface, by its hardware address (EUI-64).
    pub(super) fn link_local(&self, who: Who) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.mac(who, who);
        let groups = [
            u16::from_be_bytes([a ^ 2, b]),
            u16::from_be_bytes([c, 0xff]),
            u16::from_be_bytes([0xfe, d]),
            u16::from_be_bytes([e, f]),
        ];
        Ipv6Addr::new(0xfe80, 0, 0, 0, groups[0], groups[1], groups[2], groups[3])
    }

    /// From now on pods believe routers, as they do by default, and have forgotten what they learned before.
    pub(super) fn forget_what_was_learned(&self) {
        self.believe_routers("1");
        for (_, host) in &self.hosts {
            host.netns().ip("neigh flush all").unwrap();
        }
        self.node.netns().ip("neigh flush all").unwrap();
        for (who, host) in &self.hosts {
            for to in host.addresses() {
                // Whoever answers is found again by the bridge, too.
                let ping = Probe {
                    from: self.node.netns(),
                    to,
                    what: What::Ping,
                    patience: PATIENCE,
                };
                assert_eq!(probe(&ping), Outcome::Answered, "{who:?} {to}");
            }
        }
    }

    fn believe_routers(&self, value: &str) {
        for who in Who::PODS {
            for key in [
                "net/ipv6/conf/eth0/accept_ra",
                "net/ipv6/conf/eth0/accept_redirects",
                "net/ipv4/conf/eth0/accept_redirects",
                "net/ipv4/conf/all/accept_redirects",
            ] {
                self.host(who).netns().sysctl(key, value).unwrap();
            }
        }
    }
}
