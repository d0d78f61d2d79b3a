//! Services as kube-proxy translates them: its rules, by hand, in a node's network namespace.
//!
//! What it proves: that policies are judged right with the hooks, chains and marks that kube-proxy uses. What
//! it cannot: that kube-proxy will write the same rules in its next version.

mod iptables;
mod nftables;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;

use super::{Family, Netns};

/// How translation is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// kube-proxy's mode `iptables`, by `iptables-legacy`.
    IptablesLegacy,
    /// The same rules by `iptables-nft`.
    IptablesNft,
    /// kube-proxy's mode `nftables`.
    Nftables,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::IptablesLegacy, Self::IptablesNft, Self::Nftables];
}

/// Protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One port of a Service. Addresses of both families may stand together: each leads to backends of its own.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Cluster IPs.
    pub cluster_ips: Vec<IpAddr>,
    /// External IPs and load balancers' addresses.
    pub external_ips: Vec<IpAddr>,
    /// The port's protocol.
    pub protocol: Protocol,
    /// The port at those addresses.
    pub port: u16,
    /// The port at the node's own addresses.
    pub node_port: Option<u16>,
    /// Where connections end: addresses and target ports of ready pods, wherever they are.
    pub backends: Vec<SocketAddr>,
    /// `externalTrafficPolicy: Local`: what comes from outside goes to these only, and is not masqueraded.
    pub local_backends: Option<Vec<SocketAddr>>,
}

impl ServicePort {
    /// A port of a Service with cluster IPs only.
    #[must_use]
    pub fn new(
        cluster_ips: &[IpAddr],
        protocol: Protocol,
        port: u16,
        backends: &[SocketAddr],
    ) -> Self {
        Self {
            cluster_ips: cluster_ips.to_vec(),
            external_ips: Vec::new(),
            protocol,
            port,
            node_port: None,
            backends: backends.to_vec(),
            local_backends: None,
        }
    }

    /// Whether what comes from outside has nowhere to go, although there are backends.
    fn lacks_local_backends(&self) -> bool {
        !self.backends.is_empty() && self.local_backends.as_ref().is_some_and(Vec::is_empty)
    }
}

/// All that is translated on a node.
#[derive(Clone, Debug)]
pub struct KubeProxy {
    /// By which rules.
    pub mode: Mode,
    /// Networks of the cluster's pods: what comes from elsewhere to a cluster IP is masqueraded.
    pub pod_networks: Vec<IpNet>,
    /// What comes from a pod and goes past the pods' networks is masqueraded, as CNI plugins do it.
    pub masquerades_leaving: bool,
    /// What goes through a Service is always masqueraded (`--masquerade-all`).
    pub masquerades_all: bool,
    /// The Services' ports.
    pub services: Vec<ServicePort>,
}

impl KubeProxy {
    /// No Services yet.
    #[must_use]
    pub fn new(mode: Mode, pod_networks: &[IpNet]) -> Self {
        Self {
            mode,
            pod_networks: pod_networks.to_vec(),
            masquerades_leaving: false,
            masquerades_all: false,
            services: Vec::new(),
        }
    }

    /// Puts the rules in place of those that are there, in one step.
    ///
    /// # Errors
    ///
    /// When the kernel or the machine lacks what the mode needs.
    pub fn apply(&self, node: &Netns) -> Result<()> {
        for family in Family::ALL {
            let rules = self.of_family(family);
            match self.mode {
                Mode::IptablesLegacy => iptables::apply(&rules, node, "legacy")?,
                Mode::IptablesNft => iptables::apply(&rules, node, "nft")?,
                Mode::Nftables => nftables::apply(&rules, node)?,
            }
        }
        Ok(())
    }

    /// Takes the rules away, so that those of another mode are in charge.
    ///
    /// # Errors
    ///
    /// When the kernel or the machine lacks what the mode needs.
    pub fn withdraw(mode: Mode, node: &Netns) -> Result<()> {
        for family in Family::ALL {
            match mode {
                Mode::IptablesLegacy => iptables::withdraw(family, node, "legacy")?,
                Mode::IptablesNft => iptables::withdraw(family, node, "nft")?,
                Mode::Nftables => nftables::withdraw(family, node)?,
            }
        }
        Ok(())
    }

    /// The part of one family.
    fn of_family(&self, family: Family) -> Rules {
        let v4 = family == Family::V4;
        let ips = |ips: &[IpAddr]| -> Vec<IpAddr> {
            ips.iter()
                .filter(|ip| ip.is_ipv4() == v4)
                .copied()
                .collect()
        };
        let backends = |backends: &[SocketAddr]| -> Vec<SocketAddr> {
            let backends = backends.iter().filter(|backend| backend.is_ipv4() == v4);
            backends.copied().collect()
        };
        let services = self.services.iter().map(|service| ServicePort {
            cluster_ips: ips(&service.cluster_ips),
            external_ips: ips(&service.external_ips),
            backends: backends(&service.backends),
            local_backends: service.local_backends.as_deref().map(backends),
            ..service.clone()
        });
        let networks = self.pod_networks.iter().copied();
        Rules {
            family,
            pod_network: networks
                .into_iter()
                .find(|network| network.addr().is_ipv4() == v4),
            masquerades_leaving: self.masquerades_leaving,
            masquerades_all: self.masquerades_all,
            services: services.collect(),
        }
    }
}

/// What is translated, of one family.
struct Rules {
    family: Family,
    pod_network: Option<IpNet>,
    masquerades_leaving: bool,
    masquerades_all: bool,
    services: Vec<ServicePort>,
}
