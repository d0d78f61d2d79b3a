//! Which objects the command line asks for.

use super::args::{Get, Resource};
use super::error::CtlError;
use crate::datastore::kubernetes::Selection;

impl Resource {
    /// One of them, for people.
    pub(super) const fn singular(self) -> &'static str {
        match self {
            Self::WorkloadEndpoints => "workload endpoint",
            Self::NetworkPolicies => "network policy",
            Self::Identities => "identity",
        }
    }

    /// Several of them, for people.
    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::WorkloadEndpoints => "workload endpoints",
            Self::NetworkPolicies => "network policies",
            Self::Identities => "identities",
        }
    }
}

/// What `get` asks for.
///
/// # Errors
///
/// When an option does not go with the resource, or what is given can be no name.
pub(super) fn wanted(get: &Get) -> Result<Selection, CtlError> {
    let resource = get.resource;
    let given = [
        ("a name", get.name.is_some()),
        ("--namespace", get.namespace.is_some()),
        ("--node", get.node.is_some()),
    ];
    let allowed: &[&str] = match resource {
        Resource::WorkloadEndpoints => &["a name", "--namespace", "--node"],
        Resource::NetworkPolicies => &["a name", "--namespace"],
        Resource::Identities => &[],
    };
    if let Some((option, _)) = given
        .iter()
        .find(|(option, is_given)| *is_given && !allowed.contains(option))
    {
        return usage(format!(
            "{} have no use for {option}: {}",
            resource.plural(),
            match resource {
                Resource::Identities => "all that this node's agent has are listed",
                _ => "they belong to namespaces, not to nodes",
            }
        ));
    }
    let mut selection = Selection {
        namespace: get.namespace.clone(),
        name: None,
        node: get.node.clone(),
    };
    if let Some(name) = &get.name {
        let (namespace, name) = split(name, get.namespace.as_deref(), resource)?;
        selection.namespace = Some(namespace.to_owned());
        selection.name = Some(name.to_owned());
    }
    check("namespace", selection.namespace.as_deref(), false)?;
    check(resource.singular(), selection.name.as_deref(), true)?;
    check("node", selection.node.as_deref(), true)?;
    Ok(selection)
}

/// Namespace and name. A namespace has no dots in it, while a name may.
fn split<'a>(
    given: &'a str,
    namespace: Option<&'a str>,
    resource: Resource,
) -> Result<(&'a str, &'a str), CtlError> {
    let parts = given.split_once('/');
    match (namespace, parts) {
        (None, Some(parts)) => Ok(parts),
        (Some(namespace), None) => Ok((namespace, given)),
        (Some(namespace), Some((of_name, name))) if namespace == of_name => Ok((namespace, name)),
        (Some(namespace), Some((of_name, _))) => usage(format!(
            "--namespace {namespace} and {given}, which is in the namespace {of_name:?}: give one of them"
        )),
        (None, None) => match given.split_once('.') {
            Some(parts) => Ok(parts),
            None => usage(format!(
                "{given}: in which namespace? Give {}, or -n NAMESPACE",
                match resource {
                    Resource::NetworkPolicies => format!("NAMESPACE/{given}"),
                    _ => format!("NAMESPACE.{given}"),
                }
            )),
        },
    }
}

/// Whether it can be a name in Kubernetes
/// (<https://kubernetes.io/docs/concepts/overview/working-with-objects/names/>).
fn check(what: &str, given: Option<&str>, dots: bool) -> Result<(), CtlError> {
    let Some(given) = given else { return Ok(()) };
    let allowed =
        |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (dots && c == '.');
    let longest = if dots { 253 } else { 63 };
    if !given.is_empty() && given.len() <= longest && given.chars().all(allowed) {
        return Ok(());
    }
    let dot = if dots { ", '.'" } else { "" };
    usage(format!(
        "{given:?} is no name of a {what}: 1 to {longest} of a-z, 0-9, '-'{dot}"
    ))
}

fn usage<T>(words: String) -> Result<T, CtlError> {
    Err(CtlError::Usage(words))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Cli, Command};
    use super::*;

    fn parse(arguments: &str) -> Result<Selection, CtlError> {
        let words = ["policyctl", "get"].into_iter().chain(arguments.split(' '));
        let cli = Cli::try_parse_from(words).expect(arguments);
        let Command::Get(get) = cli.command else {
            panic!("{arguments}")
        };
        wanted(&get)
    }

    fn selection(namespace: &str, name: &str, node: &str) -> Selection {
        let part = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Selection {
            namespace: part(namespace),
            name: part(name),
            node: part(node),
        }
    }

    #[test]
    fn names_are_taken_in_the_forms_that_are_printed() {
        let rows = [
            ("wep", selection("", "", "")),
            ("wep -A", selection("", "", "")),
            ("wep -n shop", selection("shop", "", "")),
            ("wep --node n1", selection("", "", "n1")),
            ("wep shop.web-0", selection("shop", "web-0", "")),
            ("wep shop/web-0", selection("shop", "web-0", "")),
            (
                "wep shop.web.v2 --node n1",
                selection("shop", "web.v2", "n1"),
            ),
            ("wep web.v2 -n shop", selection("shop", "web.v2", "")),
            ("netpol -n shop deny", selection("shop", "deny", "")),
            ("netpol shop/deny.all", selection("shop", "deny.all", "")),
            ("netpol -n shop shop/deny", selection("shop", "deny", "")),
        ];
        for (arguments, expected) in rows {
            assert_eq!(parse(arguments).expect(arguments), expected, "{arguments}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let rows = [
            (
                "wep web",
                "web: in which namespace? Give NAMESPACE.web, or -n NAMESPACE",
            ),
            (
                "netpol deny",
                "deny: in which namespace? Give NAMESPACE/deny, or -n NAMESPACE",
            ),
            (
                "wep -n dev shop/web",
                "--namespace dev and shop/web, which is in the namespace \"shop\"",
            ),
            (
                "wep -n Shop",
                "\"Shop\" is no name of a namespace: 1 to 63 of a-z, 0-9, '-'",
            ),
            ("wep -n a/b", "\"a/b\" is no name of a namespace"),
            (
                "wep --node a,b",
                "\"a,b\" is no name of a node: 1 to 253 of a-z, 0-9, '-', '.'",
            ),
            (
                "netpol --node n1",
                "network policies have no use for --node",
            ),
            ("id -n shop", "identities have no use for --namespace"),
            ("id 7", "identities have no use for a name"),
        ];
        for (arguments, message) in rows {
            let error = parse(arguments).expect_err(arguments).to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
