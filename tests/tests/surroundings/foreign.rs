//! What others put into a node's netfilter: the table of surroundings.

use std::env;

use anyhow::{Context as _, Result};
use portcullis_tests::netns::Netns;
use portcullis_tests::netns::kube_proxy::Mode;

use super::cases::Needs;
use super::report::Report;
use super::world::{Base, run};

/// A rule, or what else is put in place.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// Arguments of iptables and ip6tables, the table first.
    Iptables(&'static str, String),
    /// The same for one family: the program, the table, arguments.
    Of(&'static str, &'static str, String),
    /// The inside of `table inet foreign`.
    Nft(String),
    /// A setting below /proc/sys, here and later.
    Sysctl(&'static str, &'static str, &'static str),
}

/// One surrounding: what is there, and what cannot work in it for others' sake.
pub(super) struct Surrounding {
    pub(super) name: String,
    pub(super) rules: Vec<Rule>,
    /// What of kube-proxy's work these rules leave whole.
    pub(super) needs: Needs,
    pub(super) mode: Mode,
    pub(super) masquerades_all: bool,
}

impl Surrounding {
    pub(super) fn new(name: impl Into<String>, mode: Mode, rules: Vec<Rule>) -> Self {
        Self {
            name: name.into(),
            rules,
            needs: Needs::Masquerade,
            mode,
            masquerades_all: false,
        }
    }
}

/// Foreign rules in place.
pub(super) struct Foreign {
    rules: Vec<Rule>,
}

const BOTH: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];

impl Foreign {
    /// Puts rules in place, all or none.
    pub(super) fn put(node: &Netns, rules: &[Rule]) -> Result<Self> {
        let foreign = Self {
            rules: rules.to_vec(),
        };
        for rule in rules {
            if let Err(error) = put(node, rule) {
                foreign.withdraw(node);
                return Err(error);
            }
        }
        Ok(foreign)
    }

    /// Takes them away.
    pub(super) fn withdraw(&self, node: &Netns) {
        for rule in &self.rules {
            match rule {
                Rule::Iptables(table, _) => {
                    for program in BOTH {
                        flush(node, program, table);
                    }
                }
                Rule::Of(program, table, _) => flush(node, program, table),
                Rule::Nft(_) => {
                    let gone = "table inet foreign\ndelete table inet foreign\n";
                    node.script("nft", &["-f", "-"], gone).unwrap();
                }
                Rule::Sysctl(key, _, later) => node.sysctl(key, later).unwrap(),
            }
        }
    }
}

fn put(node: &Netns, rule: &Rule) -> Result<()> {
    match rule {
        Rule::Iptables(table, arguments) => BOTH
            .into_iter()
            .try_for_each(|program| run_iptables(node, program, table, arguments)),
        Rule::Of(program, table, arguments) => run_iptables(node, program, table, arguments),
        Rule::Nft(body) => node
            .script(
                "nft",
                &["-f", "-"],
                &format!("table inet foreign {{\n{body}\n}}\n"),
            )
            .context("nft"),
        Rule::Sysctl(key, now, _) => node.sysctl(key, now),
    }
}

fn run_iptables(node: &Netns, program: &str, table: &str, arguments: &str) -> Result<()> {
    let arguments: Vec<_> = ["-w", "-t", table]
        .into_iter()
        .chain(arguments.split_whitespace())
        .collect();
    node.script(program, &arguments, "")
}

fn flush(node: &Netns, program: &str, table: &str) {
    node.script(program, &["-w", "-t", table, "-F"], "")
        .unwrap();
}

const HOOKS: [&str; 3] = ["PREROUTING", "FORWARD", "OUTPUT"];

/// Bits that others set, by whom.
const MARKS: &[(&str, u32)] = &[
    ("kube-router's", 0x20000),
    ("Tailscale's", 0x40000),
    ("Tailscale's other", 0x80000),
    ("NetBird's", 0x1bd00),
    ("wg-quick's", 0xca6c),
    ("Calico's", 0xffff_0000),
];

/// What kube-proxy has for its masquerade.
const MASQUERADE: u32 = 0x4000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Iptables,
    Nftables,
}

/// A rule that sets `mark`, or bits of it only.
fn marking(hook: &str, mark: u32, only_bits: bool, tool: Tool) -> Rule {
    match tool {
        Tool::Iptables => {
            let form = if only_bits { "--or-mark" } else { "--set-mark" };
            Rule::Iptables("mangle", format!("-A {hook} -j MARK {form} {mark:#x}"))
        }
        Tool::Nftables => {
            let kind = if hook == "OUTPUT" { "route" } else { "filter" };
            let old = if only_bits { "meta mark | " } else { "" };
            let hook = hook.to_lowercase();
            Rule::Nft(format!(
                "chain marks {{ type {kind} hook {hook} priority mangle; meta mark set {old}{mark:#x}; }}"
            ))
        }
    }
}

/// Each mark by each hook; `turn` decides which tool and form comes with which, where not all do.
fn marks(turn: usize, all: bool) -> Vec<Surrounding> {
    let mut surroundings = Vec::new();
    let mut number = turn;
    for (whose, mark) in MARKS {
        for hook in HOOKS {
            number += 1;
            for (index, (tool, only_bits)) in [
                (Tool::Iptables, true),
                (Tool::Nftables, false),
                (Tool::Nftables, true),
                (Tool::Iptables, false),
            ]
            .into_iter()
            .enumerate()
            {
                if !all && number % 4 != index {
                    continue;
                }
                let form = if only_bits { "or" } else { "set" };
                let name = format!("{whose} mark, {form} {mark:#x} in {hook} by {tool:?}");
                let rules = vec![marking(hook, *mark, only_bits, tool)];
                let mode = [Mode::IptablesLegacy, Mode::Nftables][number % 2];
                let mut surrounding = Surrounding::new(name, mode, rules);
                // After kube-proxy's decision its bit is lost, or set for all: its masquerade, not ours to save.
                if hook == "FORWARD" && !only_bits {
                    surrounding.needs = Needs::Translation;
                }
                if mark & MASQUERADE != 0 {
                    surrounding.needs = Needs::Nothing;
                }
                surroundings.push(surrounding);
            }
        }
    }
    surroundings
}

fn mangle(rule: &str) -> Rule {
    Rule::Iptables("mangle", rule.to_owned())
}

/// Marks that come back from conntrack.
fn restored(base: Base) -> Vec<Surrounding> {
    let restore = || mangle("-A PREROUTING -j CONNMARK --restore-mark");
    let save = || mangle("-A POSTROUTING -j CONNMARK --save-mark");
    let from_pods = match base {
        Base::Routed => "-i pcl-veth+",
        _ => "-m physdev --physdev-in pcl-veth+",
    };
    let azure = format!("-A PREROUTING {from_pods} -j MARK --set-mark 3");
    let tailscale = "chain restore { type filter hook prerouting priority mangle; \
        ct state established,related meta mark set ct mark & 0x00ff0000; }\n\
        chain save { type route hook output priority mangle; \
        ct state new meta mark & 0x00ff0000 != 0 ct mark set meta mark & 0x00ff0000; }";
    let netd = "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff";
    let new = |name: &str, mode, rules| Surrounding::new(name, mode, rules);
    vec![
        new(
            "marks restored from conntrack",
            Mode::IptablesLegacy,
            vec![restore()],
        ),
        new(
            "marks saved to conntrack and restored",
            Mode::Nftables,
            vec![restore(), save()],
        ),
        new(
            "netd's restored marks",
            Mode::Nftables,
            vec![mangle(netd), save()],
        ),
        new(
            "Azure's mark of what pods send",
            Mode::IptablesNft,
            vec![mangle(&azure)],
        ),
        new(
            "Azure's mark of what pods send, saved and restored",
            Mode::Nftables,
            vec![restore(), mangle(&azure), save()],
        ),
        new(
            "Tailscale's restored marks",
            Mode::IptablesLegacy,
            vec![Rule::Nft(tailscale.to_owned())],
        ),
    ]
}

/// kube-proxy's rules in each form, alone, and masquerading all.
fn proxies() -> Vec<Surrounding> {
    let mut surroundings = Vec::new();
    for mode in Mode::ALL {
        surroundings.push(Surrounding::new(
            format!("kube-proxy, {mode:?}"),
            mode,
            Vec::new(),
        ));
        surroundings.push(Surrounding {
            masquerades_all: true,
            ..Surrounding::new(
                format!("kube-proxy --masquerade-all, {mode:?}"),
                mode,
                Vec::new(),
            )
        });
    }
    surroundings
}

/// A proxy for SYNs in front of pods, for those who come from outside; node ports need conntrack, and have none.
fn synproxy() -> Vec<Surrounding> {
    let raw = |program, network: &str| {
        let rule = format!(
            "-A PREROUTING -i pcl-out+ -d {network} -p tcp --dport 1:9999 --syn -j CT --notrack"
        );
        Rule::Of(program, "raw", rule)
    };
    let loose = Rule::Sysctl("net/netfilter/nf_conntrack_tcp_loose", "0", "1");
    let options = "--sack-perm --timestamp --wscale 7 --mss 1400";
    let filter = |rule: String| Rule::Iptables("filter", rule);
    let states = "-m conntrack --ctstate INVALID,UNTRACKED";
    let by_iptables = vec![
        loose.clone(),
        raw("iptables-legacy", "10.244.0.0/16"),
        raw("ip6tables-legacy", "fd00:10:244::/48"),
        filter(format!(
            "-A FORWARD -i pcl-out+ -p tcp {states} -j SYNPROXY {options}"
        )),
    ];
    let by_nft = "chain pre { type filter hook prerouting priority raw; \
        iifname \"pcl-out*\" ip daddr 10.244.0.0/16 tcp dport < 10000 tcp flags & (fin|syn|rst|ack) == syn notrack; \
        iifname \"pcl-out*\" ip6 daddr fd00:10:244::/48 tcp dport < 10000 tcp flags & (fin|syn|rst|ack) == syn notrack; }\n\
        chain forward { type filter hook forward priority filter; \
        iifname \"pcl-out*\" meta l4proto tcp ct state invalid,untracked \
        synproxy mss 1400 wscale 7 timestamp sack-perm; }";
    vec![
        Surrounding::new("SYNPROXY by iptables", Mode::Nftables, by_iptables),
        Surrounding::new(
            "SYNPROXY by nft",
            Mode::Nftables,
            vec![loose, Rule::Nft(by_nft.to_owned())],
        ),
    ]
}

/// Packets of established flows go past netfilter from veth to veth.
fn flowtable() -> Surrounding {
    let devices: Vec<_> = (1..=5)
        .map(|number| format!("pcl-veth{number}"))
        .chain((6..=7).map(|number| format!("pcl-out{number}")))
        .collect();
    let table = format!(
        "flowtable ft {{ hook ingress priority filter; devices = {{ {} }}; }}\n\
         chain forward {{ type filter hook forward priority filter; \
         ip protocol {{ tcp, udp }} flow add @ft; ip6 nexthdr {{ tcp, udp }} flow add @ft; }}",
        devices.join(", ")
    );
    Surrounding::new(
        "nft flowtable over all interfaces",
        Mode::Nftables,
        vec![Rule::Nft(table)],
    )
}

fn wants_all() -> bool {
    env::var_os("PORTCULLIS_SURROUNDINGS").is_some_and(|value| value == "all")
}

#[test]
fn around_routed_pods() {
    let base = Base::Routed;
    let mut surroundings = proxies();
    surroundings.extend(marks(0, wants_all()));
    surroundings.extend(restored(base));
    surroundings.extend(synproxy());
    surroundings.push(flowtable());
    run(base, &surroundings).finish(base.name());
}

#[test]
fn around_bridged_pods() {
    let base = Base::Bridge;
    let mut surroundings = proxies();
    surroundings.extend(marks(2, wants_all()));
    surroundings.extend(restored(base));
    surroundings.extend(synproxy());
    run(base, &surroundings).finish(base.name());
}

/// Between pods of the bridge no rule is asked; what the node makes or routes meets them all.
#[test]
fn around_bridges_without_br_netfilter() {
    let mut report = Report::default();
    for (turn, base) in [Base::BareBridge, Base::BareBridgeV6]
        .into_iter()
        .enumerate()
    {
        let mut surroundings = proxies();
        surroundings.extend(synproxy());
        surroundings.extend(restored(base));
        let marks = marks(turn, wants_all());
        surroundings.extend(marks.into_iter().filter(|_| wants_all()));
        report.merge(&run(base, &surroundings));
    }
    report.finish("bridges without br_netfilter");
}
