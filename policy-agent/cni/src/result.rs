//! The result of the plugins before us, as far as we have to understand it.

use std::net::IpAddr;

use serde_json::{Map, Value};

use crate::error::{Code, Error};

/// What the result says of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Interfaces on the host.
    pub host_interfaces: Vec<String>,
    /// Addresses of the interface in the sandbox; at least one.
    pub addresses: Vec<IpAddr>,
}

/// Reads what belongs to the sandbox's interface `ifname`. An address that names no interface belongs
/// to it too.
///
/// # Errors
///
/// When the result is misshapen, or the interface has no address.
pub fn attached(result: &Map<String, Value>, ifname: &str) -> Result<Attached, Error> {
    let interfaces = list(result, "interfaces")?;
    let host_interfaces = interfaces
        .iter()
        .filter(|interface| text(interface, "sandbox").is_none())
        .filter_map(|interface| text(interface, "name"))
        .map(str::to_owned)
        .collect();
    let mut addresses = Vec::new();
    for entry in list(result, "ips")? {
        let is_ours = match entry.get("interface") {
            None | Some(Value::Null) => true,
            Some(index) => {
                let index = index.as_u64().and_then(|index| usize::try_from(index).ok());
                let interface = index
                    .and_then(|index| interfaces.get(index))
                    .ok_or_else(|| {
                        invalid(format!("ips: {entry} names an interface that is not there"))
                    })?;
                text(interface, "sandbox").is_some() && text(interface, "name") == Some(ifname)
            }
        };
        if is_ours {
            addresses.push(address(entry)?);
        }
    }
    if addresses.is_empty() {
        return Err(invalid(format!(
            "there is no address of {ifname}; a plugin with IPAM has to come before this one"
        )));
    }
    Ok(Attached {
        host_interfaces,
        addresses,
    })
}

fn list<'a>(result: &'a Map<String, Value>, name: &str) -> Result<&'a [Value], Error> {
    match result.get(name) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(entries)) => Ok(entries),
        Some(_) => Err(invalid(format!("{name} is not a list"))),
    }
}

/// A field's text; empty counts as absent.
fn text<'a>(entry: &'a Value, name: &str) -> Option<&'a str> {
    entry.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// `ADDRESS/LENGTH`.
fn address(entry: &Value) -> Result<IpAddr, Error> {
    text(entry, "address")
        .and_then(|text| text.split_once('/'))
        .and_then(|(address, _)| address.parse().ok())
        .ok_or_else(|| invalid(format!("ips: {entry} has no address such as 10.0.0.5/24")))
}

fn invalid(message: String) -> Error {
    Error::new(Code::InvalidConfiguration, format!("prevResult: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(result: &Value) -> Result<Attached, Error> {
        attached(result.as_object().expect("an object"), "eth0")
    }

    #[test]
    fn takes_the_interfaces_own_addresses() {
        let result = json!({
            "interfaces": [
                {"name": "cni0"}, {"name": "veth1", "sandbox": ""},
                {"name": "eth0", "sandbox": "/run/netns/x"}, {"name": "net1", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.0.0.5/24", "interface": 2}, {"address": "10.1.0.5/24", "interface": 3},
                {"version": "6", "address": "fd00::5/64"}, {"address": "10.0.0.1/24", "interface": 0},
            ],
        });
        let wanted = Attached {
            host_interfaces: vec!["cni0".into(), "veth1".into()],
            addresses: vec![
                "10.0.0.5".parse().expect("v4"),
                "fd00::5".parse().expect("v6"),
            ],
        };
        assert_eq!(read(&result), Ok(wanted));
    }

    #[test]
    fn says_what_is_wrong_with_a_result() {
        for (result, says) in [
            (json!({}), "no address of eth0"),
            (json!({"ips": {}}), "ips is not a list"),
            (
                json!({"interfaces": 1, "ips": []}),
                "interfaces is not a list",
            ),
            (
                json!({"ips": [{"address": "10.0.0.5"}]}),
                "has no address such as",
            ),
            (
                json!({"ips": [{"address": "x/24"}]}),
                "has no address such as",
            ),
            (
                json!({"ips": [{"address": "10.0.0.5/24", "interface": 0}]}),
                "that is not there",
            ),
            (
                json!({"ips": [{"address": "10.0.0.5/24", "interface": "a"}]}),
                "that is not there",
            ),
        ] {
            let error = read(&result).expect_err("wrong");
            assert_eq!(error.code, Code::InvalidConfiguration);
            assert!(error.message.contains(says), "{result}: {error}");
        }
    }
}
