//! A cast with its agent, and the run of all cases in one surrounding after the other.

use std::thread;

use portcullis_tests::netns::kube_proxy::{KubeProxy, Mode};
use portcullis_tests::netns::{Agent, Form};

use super::cases::{Needs, try_all};
use super::cast::Cast;
use super::flows;
use super::foreign::{Foreign, Surrounding};
use super::random;
use super::report::Report;

/// What a node is like before anything foreign comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Pods behind routed veths.
    Routed,
    /// Pods on a bridge whose packets pass netfilter.
    Bridge,
    /// Pods on a bridge whose packets pass no netfilter.
    BareBridge,
    /// Pods on a bridge whose IPv4 packets alone pass netfilter.
    BareBridgeV6,
}

impl Base {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Bridge => "bridge",
            Self::BareBridge => "bridge without br_netfilter",
            Self::BareBridgeV6 => "bridge without br_netfilter for IPv6",
        }
    }

    pub(super) fn form(self) -> Form {
        match self {
            Self::Routed => Form::Routed,
            _ => Form::Bridge,
        }
    }

    /// Whether replies from a pod of the bridge to another pass by netfilter, which undoes a translation.
    fn undoes_translation(self) -> bool {
        matches!(self, Self::Routed | Self::Bridge)
    }

    pub(super) fn cast(self) -> Cast {
        let cast = Cast::new(self.form());
        let netns = cast.node.netns();
        let for_each = |v4, v6| {
            let [of_v4, of_v6] =
                ["ip", "ip6"].map(|ip| format!("net/bridge/bridge-nf-call-{ip}tables"));
            netns.sysctl(&of_v4, v4).unwrap();
            netns.sysctl(&of_v6, v6).unwrap();
        };
        match self {
            Self::Routed => {}
            Self::Bridge => for_each("1", "1"),
            Self::BareBridge => for_each("0", "0"),
            Self::BareBridgeV6 => for_each("1", "0"),
        }
        cast
    }
}

/// A cluster in which surroundings come and go.
pub(super) struct World<'a> {
    pub(super) base: Base,
    pub(super) cast: &'a Cast,
    pub(super) agent: Agent<'a>,
}

impl<'a> World<'a> {
    pub(super) fn new(base: Base, cast: &'a Cast) -> Self {
        let agent = Agent::start(&cast.node).unwrap();
        Self { base, cast, agent }
    }

    /// kube-proxy in a mode. Where a bridge's packets pass no netfilter, only a masquerade brings replies back.
    pub(super) fn proxy(&self, mode: Mode) -> KubeProxy {
        let mut proxy = self.cast.kube_proxy(mode);
        proxy.masquerades_all = !self.base.undoes_translation();
        proxy
    }

    /// All cases, live flows, and random policies in one surrounding.
    pub(super) fn try_in(&self, surrounding: &Surrounding, report: &mut Report) {
        let name = format!("{}: {}", self.base.name(), surrounding.name);
        let node = self.cast.node.netns();
        let mut proxy = self.proxy(surrounding.mode);
        proxy.masquerades_all |= surrounding.masquerades_all;
        if surrounding.needs >= Needs::Translation {
            proxy.apply(node).unwrap();
        }
        match Foreign::put(node, &surrounding.rules) {
            Ok(foreign) => {
                let (mut cells, mut wrong) = try_all(self.cast, surrounding.needs);
                let (more, bad) = flows::revoke(self, surrounding);
                cells += more;
                wrong.extend(bad);
                let (more, bad) = random::rounds(self, random::ROUNDS);
                cells += more;
                wrong.extend(bad);
                foreign.withdraw(node);
                report.add(&name, cells, &wrong);
            }
            Err(error) => report.skip(&name, &format!("{error:#}")),
        }
        if surrounding.needs >= Needs::Translation {
            KubeProxy::withdraw(surrounding.mode, node).unwrap();
        }
    }
}

/// Runs surroundings around nodes of one kind, on several nodes at once.
pub(super) fn run(base: Base, surroundings: &[Surrounding]) -> Report {
    const NODES: usize = 3;
    let share = surroundings.len().div_ceil(NODES).max(1);
    let parts: Vec<_> = surroundings.chunks(share).collect();
    let reports: Vec<Report> = thread::scope(|scope| {
        let threads: Vec<_> = parts
            .iter()
            .map(|part| {
                scope.spawn(move || {
                    let cast = base.cast();
                    let world = World::new(base, &cast);
                    let mut report = Report::default();
                    for surrounding in *part {
                        world.try_in(surrounding, &mut report);
                    }
                    report
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let mut all = Report::default();
    for report in &reports {
        all.merge(report);
    }
    all
}
