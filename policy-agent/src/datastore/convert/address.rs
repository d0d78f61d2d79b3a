//! Addresses and CIDRs in every form that API servers take, or took when the object was made: beside the
//! usual ones, IPv4 with leading zeros (which mean nothing) and IPv4 written as IPv6.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// An IP address.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => padded(text).map(IpAddr::V4),
    }
}

/// A network, without what is to the right of its prefix.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length: u8 = length.parse().ok().filter(|_| is_number)?;
    let network = match address.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => match (v6.to_ipv4_mapped(), length.checked_sub(96)) {
            (Some(v4), Some(length)) => Ipv4Net::new(v4, length).ok()?.into(),
            _ => IpNet::new(v6.into(), length).ok()?,
        },
        Ok(v4) => IpNet::new(v4, length).ok()?,
        Err(_) => IpNet::new(padded(address)?.into(), length).ok()?,
    };
    Some(network.trunc())
}

/// IPv4 with leading zeros, which are no sign of octal numbers here.
fn padded(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        *octet = part.parse().ok().filter(|_| is_number)?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_api_servers_read_them() {
        let rows = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.00.0.001", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            ("10..0.1", None),
            ("fe80::1%eth0", None),
            ("", None),
        ];
        for (text, expected) in rows {
            let found = address(text).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn networks_are_read_as_api_servers_read_them() {
        let rows = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:0:0/96", Some("0.0.0.0/0")),
            ("::/0", Some("::/0")),
            ("::ffff:10.0.0.0/80", Some("::/80")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            ("10/8", None),
        ];
        for (text, expected) in rows {
            let found = cidr(text).map(|network| network.to_string());
            assert_eq!(found.as_deref(), expected, "{text}");
        }
    }
}
