//! Drop events in words: names, not indices.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use policy_common::event::{Event, NO_RULE};
use policy_common::flow::protocol;
use policy_common::verdict::{Direction, Reason};
use policy_core::Compiler;
use policy_core::model::ObjectName;

/// Ethertypes (<https://www.iana.org/assignments/ieee-802-numbers>).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// What the compiler knows of numbers in events.
pub(super) trait Names {
    /// See [`Compiler::pod_of_endpoint`].
    fn pod_of_endpoint(&self, id: u32) -> Option<ObjectName>;
    /// See [`Compiler::pod_of_address`].
    fn pod_of_address(&self, address: IpAddr) -> Option<ObjectName>;
    /// Why a policy id decided, in words.
    fn explain(&self, policy: u32, rule: Option<u32>) -> Option<String>;
}

impl Names for Compiler {
    fn pod_of_endpoint(&self, id: u32) -> Option<ObjectName> {
        self.pod_of_endpoint(id)
    }

    fn pod_of_address(&self, address: IpAddr) -> Option<ObjectName> {
        self.pod_of_address(address)
    }

    fn explain(&self, policy: u32, rule: Option<u32>) -> Option<String> {
        let explanation = self.explain(policy, rule)?;
        let policies: Vec<_> = explanation
            .isolated_by
            .iter()
            .map(ToString::to_string)
            .collect();
        let mut words = format!("isolated by {}", policies.join(", "));
        let field = explanation.direction.as_str();
        match explanation.rule {
            Some((name, index)) => {
                let _infallible = write!(words, ", decided by {name} spec.{field}[{index}]");
            }
            None => words.push_str(", no rule matches"),
        }
        Some(words)
    }
}

/// A line such as `drop ingress shop/web-1 <- shop/db-0 10.0.0.7:4312 -> 10.0.0.5:80/TCP
/// reason=policy_denied isolated by shop/default-deny, no rule matches`.
pub(super) fn describe(event: &Event, names: &impl Names) -> String {
    let direction = Direction::try_from(event.direction).unwrap_or(Direction::Ingress);
    let (source, destination) = addresses(event);
    let (arrow, remote) = match direction {
        Direction::Ingress => ("<-", source),
        Direction::Egress => ("->", destination),
    };
    let name = |pod: Option<ObjectName>| pod.map(|pod| pod.to_string());
    let pod = name(names.pod_of_endpoint(event.endpoint))
        .unwrap_or_else(|| format!("interface {}", event.ifindex));
    let mut line = format!("drop {} {pod}", direction.as_str());
    if let Some(remote) = remote {
        let remote = name(names.pod_of_address(remote)).unwrap_or_else(|| remote.to_string());
        let _infallible = write!(line, " {arrow} {remote}");
    }
    let _infallible = write!(line, " {}", packet(event, source, destination));
    let reason = Reason::try_from(event.reason).map_or("unknown", Reason::as_str);
    let _infallible = write!(line, " reason={reason}");
    if event.policy != 0 {
        let rule = (event.rule != NO_RULE).then_some(event.rule);
        if let Some(words) = names.explain(event.policy, rule) {
            let _infallible = write!(line, " {words}");
        }
    }
    line
}

fn addresses(event: &Event) -> (Option<IpAddr>, Option<IpAddr>) {
    // Not parsed: the programs leave the addresses out when they decide on the interface alone.
    if event.saddr == [0; 16] && event.daddr == [0; 16] {
        return (None, None);
    }
    let address = |octets: [u8; 16]| match event.ethertype {
        IPV4 => {
            let [a, b, c, d, ..] = octets;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        IPV6 => Some(IpAddr::V6(Ipv6Addr::from(octets))),
        _ => None,
    };
    (address(event.saddr), address(event.daddr))
}

fn packet(event: &Event, source: Option<IpAddr>, destination: Option<IpAddr>) -> String {
    let (Some(source), Some(destination)) = (source, destination) else {
        return format!(
            "ethertype=0x{:04x} length={}",
            event.ethertype, event.length
        );
    };
    let ported = match event.protocol {
        protocol::TCP => Some("TCP"),
        protocol::UDP => Some("UDP"),
        protocol::SCTP => Some("SCTP"),
        _ => None,
    };
    if let Some(name) = ported {
        let end = |address: IpAddr, port: u16| std::net::SocketAddr::new(address, port);
        return format!(
            "{} -> {}/{name}",
            end(source, event.sport),
            end(destination, event.dport)
        );
    }
    let icmp = match event.protocol {
        protocol::ICMP => Some("ICMP"),
        protocol::ICMPV6 => Some("ICMPv6"),
        _ => None,
    };
    match icmp {
        Some(name) => {
            let [kind, code] = event.dport.to_be_bytes();
            format!("{source} -> {destination}/{name} type={kind} code={code}")
        }
        None => format!("{source} -> {destination} protocol={}", event.protocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Names for Known {
        fn pod_of_endpoint(&self, id: u32) -> Option<ObjectName> {
            (id == 1).then(|| ObjectName::new("shop", "web-1"))
        }
        fn pod_of_address(&self, address: IpAddr) -> Option<ObjectName> {
            (address == IpAddr::from([10, 0, 0, 7])).then(|| ObjectName::new("shop", "db-0"))
        }
        fn explain(&self, policy: u32, rule: Option<u32>) -> Option<String> {
            assert_eq!((policy, rule), (3, None));
            Some("isolated by shop/default-deny, no rule matches".to_owned())
        }
    }

    fn v4(octets: [u8; 4]) -> [u8; 16] {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&octets);
        address
    }

    #[test]
    fn lines() {
        let tcp = Event {
            endpoint: 1,
            ifindex: 9,
            policy: 3,
            rule: NO_RULE,
            saddr: v4([10, 0, 0, 7]),
            daddr: v4([10, 0, 0, 5]),
            sport: 4312,
            dport: 80,
            ethertype: IPV4,
            protocol: protocol::TCP,
            direction: Direction::Ingress as u8,
            reason: Reason::PolicyDenied as u8,
            ..Event::default()
        };
        let v6 = |last: u8| {
            let mut address = [0; 16];
            address[0] = 0xfd;
            address[15] = last;
            address
        };
        let rows = [
            (
                "a denied connection between pods",
                tcp,
                "drop ingress shop/web-1 <- shop/db-0 10.0.0.7:4312 -> 10.0.0.5:80/TCP reason=policy_denied \
                 isolated by shop/default-deny, no rule matches",
            ),
            (
                "egress to an address that is no pod's, over IPv6",
                Event {
                    policy: 0,
                    saddr: v6(1),
                    daddr: v6(2),
                    ethertype: IPV6,
                    protocol: protocol::UDP,
                    direction: Direction::Egress as u8,
                    reason: Reason::SpoofedSource as u8,
                    ..tcp
                },
                "drop egress shop/web-1 -> fd00::2 [fd00::1]:4312 -> [fd00::2]:80/UDP reason=spoofed_source",
            ),
            (
                "a ping",
                Event {
                    policy: 0,
                    protocol: protocol::ICMP,
                    dport: 8 << 8,
                    ..tcp
                },
                "drop ingress shop/web-1 <- shop/db-0 10.0.0.7 -> 10.0.0.5/ICMP type=8 code=0 reason=policy_denied",
            ),
            (
                "no IP at all, on an interface without an endpoint",
                Event {
                    policy: 0,
                    endpoint: 0,
                    ethertype: 0x8100,
                    length: 60,
                    reason: Reason::NotIp as u8,
                    ..tcp
                },
                "drop ingress interface 9 ethertype=0x8100 length=60 reason=not_ip",
            ),
            (
                "IP that was not parsed",
                Event {
                    policy: 0,
                    saddr: [0; 16],
                    daddr: [0; 16],
                    length: 60,
                    ..tcp
                },
                "drop ingress shop/web-1 ethertype=0x0800 length=60 reason=policy_denied",
            ),
            (
                "another protocol",
                Event {
                    policy: 0,
                    protocol: 47,
                    ..tcp
                },
                "drop ingress shop/web-1 <- shop/db-0 10.0.0.7 -> 10.0.0.5 protocol=47 reason=policy_denied",
            ),
        ];
        for (what, event, line) in rows {
            assert_eq!(describe(&event, &Known), line, "{what}");
        }
    }
}
