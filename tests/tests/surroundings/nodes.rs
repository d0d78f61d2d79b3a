//! Uplinks that carry a packet twice past our programs: no false alarm after many flows through Services.
//!
//! ```text
//! web 10.244.0.0/24 - near (203.0.113.1) ===== (203.0.113.2) far - db 10.244.1.0/24
//! ```

use std::net::{SocketAddr, TcpStream};
use std::thread;

use anyhow::Result;
use portcullis_tests::netns::kube_proxy::{KubeProxy, Mode, Protocol, ServicePort};
use portcullis_tests::netns::{Agent, Family, Form, Node, PATIENCE, PodSpec};

use super::cast::{PORT, backends, cluster_ips, service};
use super::report::Report;

/// How the nodes are joined.
#[derive(Clone, Copy, Debug)]
enum Uplink {
    Vxlan,
    /// VXLAN over a VLAN device on a bond.
    VlanOnBond,
}

/// Flows through a Service.
const FLOWS: usize = 10_000;
const THREADS: usize = 8;

fn join(nodes: [&Node; 2], uplink: Uplink) -> Result<()> {
    let [near, far] = nodes.map(|node| node.netns());
    near.ip(&format!(
        "link add pcl-wire type veth peer name pcl-wire netns {}",
        far.path()
    ))?;
    for (netns, own, other) in [(near, 0, 1), (far, 1, 0)] {
        let device = match uplink {
            Uplink::Vxlan => {
                netns.ip("link set pcl-wire up")?;
                "pcl-wire"
            }
            Uplink::VlanOnBond => {
                netns.ip(
                    "link add pcl-bond type bond mode active-backup miimon 100\n\
                     link set pcl-wire master pcl-bond\n\
                     link set pcl-wire up\n\
                     link set pcl-bond up\n\
                     link add link pcl-bond name pcl-bond.5 type vlan id 5\n\
                     link set pcl-bond.5 up",
                )?;
                "pcl-bond.5"
            }
        };
        let [last, far_last] = [own + 1, other + 1];
        netns.ip(&format!(
            "address add 203.0.113.{last}/24 dev {device}\n\
             link add pcl-over type vxlan id 1 local 203.0.113.{last} remote 203.0.113.{far_last} dstport 8472 dev {device}\n\
             link set pcl-over mtu 1400 up\n\
             address add 172.16.0.{last}/24 dev pcl-over\n\
             address add fd00:172::{last}/64 dev pcl-over nodad\n\
             route add 10.244.{other}.0/24 via 172.16.0.{far_last}\n\
             route add fd00:10:244:{other}::/64 via fd00:172::{far_last}"
        ))?;
    }
    Ok(())
}

/// What of the flows did not work, and which alarms were raised.
fn flow_by(uplink: Uplink, form: Form) -> Result<Vec<String>> {
    let nodes = [0, 1].map(|number| Node::numbered(form, number).unwrap());
    join(nodes.each_ref(), uplink)?;
    let [near, far] = &nodes;
    let web = near.add(PodSpec::new("shop", "web", &[("app", "web")]))?;
    let db = far.add(PodSpec::new("shop", "db", &[("app", "db")]))?;
    for host in [&web, &db] {
        host.netns().ip("link set eth0 mtu 1400")?;
    }
    let services = [ServicePort::new(
        &cluster_ips(service::DB),
        Protocol::Tcp,
        PORT,
        &backends(&[&db], 80),
    )];
    for node in &nodes {
        let store = node.datastore();
        store.put_namespace("shop", &[("team", "shop")])?;
        for (name, host) in [("web", &web), ("db", &db)] {
            store.put_pod("shop", name, &[("app", name)], &[], &host.addresses())?;
        }
        store.put_service("shop", "db", &cluster_ips(service::DB), &[])?;
        store.put_policy("shop", "default-deny", super::cast::DENY_ALL)?;
        store.put_policy("shop", "web-out", &super::cast::web_out())?;
        store.put_policy("shop", "db-in", &super::cast::db_in())?;
    }
    let agents = [near, far].map(|node| Agent::start(node).unwrap());
    let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|network| network.parse().unwrap());
    let mut proxy = KubeProxy::new(Mode::Nftables, &networks);
    proxy.services = services.to_vec();
    proxy.apply(near.netns())?;
    let failed: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let web = web.netns();
                scope.spawn(move || {
                    web.enter(|| {
                        let failed = (0..FLOWS / THREADS).filter(|flow| {
                            let family = Family::ALL[(thread + flow) % 2];
                            let to = cluster_ips(service::DB)[family as usize];
                            TcpStream::connect_timeout(&SocketAddr::new(to, PORT), PATIENCE)
                                .is_err()
                        });
                        failed.count()
                    })
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    let mut wrong = Vec::new();
    if failed > 0 {
        wrong.push(format!("  {failed} of {FLOWS} connections failed"));
    }
    for (agent, name) in agents.iter().zip(["near", "far"]) {
        for row in agent.status()?.counters {
            let alarms = [
                "service_unverified",
                "carrier_damaged",
                "carrier_foreign",
                "node_tunnel",
                "claimed_address",
            ];
            if alarms.contains(&row.reason.as_str()) && row.packets > 0 {
                wrong.push(format!(
                    "  {name}: {} packets counted as {}",
                    row.packets, row.reason
                ));
            }
        }
    }
    Ok(wrong)
}

#[test]
fn no_false_alarm_by_uplinks() {
    let mut report = Report::default();
    for (uplink, form) in [
        (Uplink::Vxlan, Form::Bridge),
        (Uplink::Vxlan, Form::Routed),
        (Uplink::VlanOnBond, Form::Bridge),
    ] {
        let name = format!("{uplink:?}, {form:?}");
        match flow_by(uplink, form) {
            Ok(wrong) => report.add(&name, FLOWS, &wrong),
            Err(error) if matches!(uplink, Uplink::VlanOnBond) => {
                report.skip(
                    &name,
                    &format!("this kernel has no bonds or VLANs: {error:#}"),
                );
            }
            Err(error) => panic!("{name}: {error:#}"),
        }
    }
    report.finish("uplinks");
}
