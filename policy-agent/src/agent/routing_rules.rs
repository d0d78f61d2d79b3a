//! Whether the bits of a packet's mark that are to be ours already steer packets on this node.

use std::io;

use futures_util::TryStreamExt as _;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use policy_common::service::MarkBits;
use rtnetlink::IpVersion;

/// Refuses bits that a routing rule of this network namespace looks at: a mark of ours would lead packets
/// astray, and another's would name an endpoint. Must be called within a tokio runtime.
///
/// # Errors
///
/// The rule, in words, or why rules cannot be read.
pub(super) async fn check(mark: MarkBits) -> anyhow::Result<()> {
    match overlapping(mark).await {
        Ok(None) => Ok(()),
        Ok(Some(rule)) => anyhow::bail!(
            "PORTCULLIS_MARK_MASK={:#x}: this node routes by some of these bits (`ip rule`: {rule}); choose other bits",
            mark.mask
        ),
        Err(error) => anyhow::bail!("netlink, to read routing rules: {error}"),
    }
}

async fn overlapping(mark: MarkBits) -> io::Result<Option<String>> {
    let (connection, netlink, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let mut found = None;
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules = netlink.rule().get(version).execute();
        let rules: Vec<_> = rules.try_collect().await.map_err(io::Error::other)?;
        found = found.or_else(|| rules.iter().find_map(|rule| conflict(rule, mark)));
    }
    connection.abort();
    Ok(found)
}

/// The rule in words, if it looks at bits of `mark`.
fn conflict(rule: &RuleMessage, mark: MarkBits) -> Option<String> {
    let attribute =
        |wanted: fn(&RuleAttribute) -> Option<u32>| rule.attributes.iter().find_map(wanted);
    let value = attribute(|found| match found {
        RuleAttribute::FwMark(value) => Some(*value),
        _ => None,
    });
    let mask = attribute(|found| match found {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    // The kernel compares all bits where only a value is given.
    let mask = match (value, mask) {
        (None, None) => return None,
        (_, Some(mask)) => mask,
        (Some(_), None) => u32::MAX,
    };
    if mask & mark.mask == 0 {
        return None;
    }
    let priority = attribute(|found| match found {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    Some(format!(
        "{}: fwmark {:#x}/{mask:#x}",
        priority.unwrap_or_default(),
        value.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_look_at_our_bits_conflict() {
        let value = RuleAttribute::FwMark;
        let mask = RuleAttribute::FwMask;
        let rows: [(&[RuleAttribute], Option<&str>); 6] = [
            (&[], None),
            (&[value(0x4000), mask(0x4000)], None),
            (&[mask(0x80), value(0x80)], None),
            (
                &[value(0x8_0000), mask(0xff_0000)],
                Some("5210: fwmark 0x80000/0xff0000"),
            ),
            (&[value(0x1)], Some("5210: fwmark 0x1/0xffffffff")),
            (&[mask(0x1_0000)], Some("5210: fwmark 0x0/0x10000")),
        ];
        for (attributes, expected) in rows {
            let mut rule = RuleMessage::default();
            rule.attributes = attributes.to_vec();
            rule.attributes.push(RuleAttribute::Priority(5210));
            let found = conflict(&rule, MarkBits::DEFAULT);
            assert_eq!(found.as_deref(), expected, "{attributes:?}");
        }
    }
}
