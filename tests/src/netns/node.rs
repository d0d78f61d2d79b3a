//! The node, its pods, and a host outside.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::leftovers::{self, BPFFS};
use super::{Datastore, Family, Netns, Outcome, PATIENCE, Probe, Servers, What, probe};
use crate::objects::Labels;

/// How pods are joined to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As CNI's ptp does: each veth bears the gateway's address, and the node has a route to each pod.
    Routed,
    /// As CNI's bridge does: the veths are ports of a bridge that bears the gateway's address.
    Bridge,
}

/// A network namespace with an address of each family and, in most, echo servers.
#[derive(Debug)]
pub struct Host {
    name: String,
    /// Closed before the namespace goes, which would outlive them otherwise.
    _servers: Option<Servers>,
    netns: Netns,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    /// Its end of a veth to the node.
    link: Option<&'static str>,
}

impl Drop for Host {
    fn drop(&mut self) {
        // The kernel takes its time to clear a namespace up; the veth and its routes go now, as with a
        // CNI plugin's DEL.
        if let Some(link) = self.link
            && let Err(error) = self.netns.ip(&format!("link delete {link}"))
        {
            eprintln!("{}: {error}", self.name);
        }
    }
}

impl Host {
    /// Ports that echo over TCP.
    pub const TCP: [u16; 2] = [80, 8080];
    /// Ports that echo over UDP.
    pub const UDP: [u16; 2] = [53, 8080];

    /// Name for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its address.
    #[must_use]
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both addresses.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        Family::ALL.map(|family| self.address(family))
    }
}

/// What a pod is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct PodSpec<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// Labels.
    pub labels: Labels<'a>,
    /// Ports: name, protocol, number.
    pub ports: &'a [(&'a str, &'a str, u16)],
    /// Last part of its addresses; by default the next that is free.
    pub address: Option<u8>,
}

impl<'a> PodSpec<'a> {
    /// A pod `namespace/name` with these labels.
    #[must_use]
    pub fn new(namespace: &'a str, name: &'a str, labels: Labels<'a>) -> Self {
        Self {
            namespace,
            name,
            labels,
            ..Self::default()
        }
    }
}

/// A machine: the namespace that the agent runs in, with its datastore.
#[derive(Debug)]
pub struct Node {
    host: Host,
    form: Form,
    /// Third part of the addresses of its pods and its own.
    number: u8,
    prefix: String,
    /// Last part of the next pod's addresses, and number of the next veth.
    next: AtomicU8,
    veths: AtomicU32,
    datastore: Datastore,
    directories: Directories,
}

impl Deref for Node {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}

/// Temporary directories, removed with this.
#[derive(Debug)]
struct Directories {
    temporary: PathBuf,
    bpffs: PathBuf,
}

impl Drop for Directories {
    fn drop(&mut self) {
        for directory in [&self.bpffs, &self.temporary] {
            if let Err(error) = fs::remove_dir_all(directory)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("{}: {error}", directory.display());
            }
        }
    }
}

/// Last part of a node's own addresses, which its pods have for their gateway.
const GATEWAY: u8 = 1;

fn pod_v4(number: u8, last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, number, last)
}

fn pod_v6(number: u8, last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, last.into())
}

/// Addresses outside, from the networks that RFC 5737 and RFC 3849 set aside.
fn outside_v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, last)
}

fn outside_v6(last: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, last.into())
}

impl Node {
    /// A node without pods.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn new(form: Form) -> Result<Self> {
        Self::numbered(form, 0)
    }

    /// A node without pods, one of several: its pods are in 10.244.NUMBER.0/24 and fd00:10:244:NUMBER::/64.
    ///
    /// # Errors
    ///
    /// Without root.
    pub fn numbered(form: Form, number: u8) -> Result<Self> {
        super::require_root()?;
        let (gateway_v4, gateway_v6) = (pod_v4(number, GATEWAY), pod_v6(number, GATEWAY));
        let prefix = leftovers::unique();
        let temporary = std::env::temp_dir().join(&prefix);
        let directories = Directories {
            bpffs: Path::new(BPFFS).join(&prefix),
            temporary: temporary.clone(),
        };
        let datastore = Datastore::create(temporary.join("datastore"))?;
        let netns = Netns::create(&format!("{prefix}-node"))?;
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            // Only policy may stop a forged source here.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ] {
            netns.sysctl(key, value)?;
        }
        if form == Form::Bridge {
            // An address of its own: otherwise it takes the lowest of its ports', and those that
            // knew it lose it when a port joins.
            netns.ip(&format!(
                "link add cni0 address 02:00:0a:f4:{number:02x}:01 type bridge\n\
                 address add {gateway_v4}/24 dev cni0\n\
                 address add {gateway_v6}/64 dev cni0 nodad\n\
                 link set cni0 up"
            ))?;
        }
        let host = Host {
            name: "node".to_owned(),
            _servers: Some(Servers::start(&netns, &Host::TCP, &Host::UDP)?),
            netns,
            v4: gateway_v4,
            v6: gateway_v6,
            link: None,
        };
        Ok(Self {
            host,
            form,
            number,
            prefix,
            next: AtomicU8::new(2),
            veths: AtomicU32::new(0),
            datastore,
            directories,
        })
    }

    /// How its pods are joined to it.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// What the names of everything that belongs to this node begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Name that the agent is told.
    #[must_use]
    pub fn node_name(&self) -> &'static str {
        "pcl-node"
    }

    /// What the agent reads.
    #[must_use]
    pub fn datastore(&self) -> &Datastore {
        &self.datastore
    }

    /// Where the agent's pins are.
    #[must_use]
    pub fn bpffs(&self) -> &Path {
        &self.directories.bpffs
    }

    /// A directory for files of this node, removed with it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directories.temporary
    }

    /// The agent's run directory.
    #[must_use]
    pub fn run_directory(&self) -> PathBuf {
        self.directories.temporary.join("run")
    }

    /// The agent's log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.directories.temporary.join("agent.log")
    }

    /// Adds a pod: a namespace, a veth, servers, and its object in the datastore.
    ///
    /// # Errors
    ///
    /// When its name or address is taken.
    pub fn add(&self, spec: PodSpec<'_>) -> Result<Host> {
        let pod = self.add_unknown(spec)?;
        self.datastore.put_pod(
            spec.namespace,
            spec.name,
            spec.labels,
            spec.ports,
            &pod.addresses(),
        )?;
        Ok(pod)
    }

    /// Adds a pod that the datastore does not know of.
    ///
    /// # Errors
    ///
    /// When its name or address is taken.
    pub fn add_unknown(&self, spec: PodSpec<'_>) -> Result<Host> {
        let next = self.next.load(Ordering::Relaxed);
        let last = spec.address.unwrap_or(next);
        self.next.store(next.max(last + 1), Ordering::Relaxed);
        let number = self.number;
        let (v4, v6) = (pod_v4(number, last), pod_v6(number, last));
        let [gateway_v4, gateway_v6] = self.addresses();
        let netns = Netns::create(&format!("{}-{}-{}", self.prefix, spec.namespace, spec.name))?;
        let veth = self.new_link("pcl-veth");
        let node = &self.host.netns;
        // By its address, as CNI's bridge does: who remembers an earlier pod finds this one.
        node.ip(&format!(
            "link add {veth} type veth peer name eth0 address 02:00:0a:f4:{number:02x}:{last:02x} netns {}",
            netns.path()
        ))?;
        match self.form {
            Form::Routed => {
                // Interfaces first: IPv6 addresses on one that is down make no routes.
                netns.ip("link set eth0 up")?;
                node.ip(&format!(
                    "link set {veth} up\n\
                     address add {gateway_v4}/32 dev {veth}\n\
                     address add {gateway_v6}/128 dev {veth} nodad\n\
                     route add {v4}/32 dev {veth}\n\
                     route add {v6}/128 dev {veth}"
                ))?;
                netns.ip(&format!(
                    "address add {v4}/32 dev eth0\n\
                     address add {v6}/128 dev eth0 nodad\n\
                     route add {gateway_v4}/32 dev eth0 src {v4}\n\
                     route add {gateway_v6}/128 dev eth0"
                ))?;
            }
            Form::Bridge => {
                node.ip(&format!("link set {veth} master cni0 up"))?;
                netns.ip(&format!(
                    "link set eth0 up\n\
                     address add {v4}/24 dev eth0\n\
                     address add {v6}/64 dev eth0 nodad"
                ))?;
            }
        }
        netns.ip(&format!(
            "route add 0.0.0.0/0 via {gateway_v4} dev eth0\n\
             route add ::/0 via {gateway_v6} dev eth0"
        ))?;
        let host = Host {
            name: format!("{}/{}", spec.namespace, spec.name),
            _servers: Some(Servers::start(&netns, &Host::TCP, &Host::UDP)?),
            netns,
            v4,
            v6,
            link: Some("eth0"),
        };
        self.await_link(&host)?;
        Ok(host)
    }

    /// Adds a host outside, joined by a veth of its own, at `.last`; the node is its gateway.
    ///
    /// # Errors
    ///
    /// When its address is taken.
    pub fn add_outside(&self, name: &str, last: u8) -> Result<Host> {
        let (v4, v6) = (outside_v4(last), outside_v6(last));
        let netns = Netns::create(&format!("{}-{name}", self.prefix))?;
        let veth = self.new_link("pcl-out");
        let node = &self.host.netns;
        let (gateway_v4, gateway_v6) = (outside_v4(1), outside_v6(1));
        node.ip(&format!(
            "link add {veth} type veth peer name eth0 netns {}",
            netns.path()
        ))?;
        netns.ip("link set eth0 up")?;
        node.ip(&format!(
            "link set {veth} up\n\
             address add {gateway_v4}/32 dev {veth}\n\
             address add {gateway_v6}/128 dev {veth} nodad\n\
             route add {v4}/32 dev {veth}\n\
             route add {v6}/128 dev {veth}"
        ))?;
        netns.ip(&format!(
            "address add {v4}/32 dev eth0\n\
             address add {v6}/128 dev eth0 nodad\n\
             route add {gateway_v4}/32 dev eth0 src {v4}\n\
             route add {gateway_v6}/128 dev eth0\n\
             route add 0.0.0.0/0 via {gateway_v4} dev eth0\n\
             route add ::/0 via {gateway_v6} dev eth0"
        ))?;
        let host = Host {
            name: name.to_owned(),
            _servers: Some(Servers::start(&netns, &Host::TCP, &Host::UDP)?),
            netns,
            v4,
            v6,
            link: Some("eth0"),
        };
        self.await_link(&host)?;
        Ok(host)
    }

    /// Waits until packets pass between the node and a host: interfaces come up behind our back. The
    /// node may always speak to its pods, whatever the policies.
    fn await_link(&self, host: &Host) -> Result<()> {
        for family in Family::ALL {
            let ping = Probe {
                from: self.host.netns(),
                to: host.address(family),
                what: What::Ping,
                patience: Duration::from_millis(100),
            };
            let deadline = Instant::now() + PATIENCE;
            loop {
                let outcome = probe(&ping);
                if outcome == Outcome::Answered {
                    break;
                }
                ensure!(
                    Instant::now() < deadline,
                    "{}: ping is {outcome}",
                    host.name()
                );
                thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    fn new_link(&self, kind: &str) -> String {
        let number = self.veths.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{kind}{number}")
    }
}
