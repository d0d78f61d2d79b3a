//! PORTCULLIS_MARK_MASK: which bits of a packet's mark are ours.

use policy_common::service::MarkBits;

use super::ConfigError;

/// Fewer bits have room for too few endpoints.
const FEWEST_BITS: u32 = 8;

/// What kube-proxy and the kubelet mark packets with: to be masqueraded, and formerly to be dropped.
const KUBERNETES: [u32; 2] = [0x4000, 0x8000];

/// The bits that `text` names, in hexadecimal with 0x, or decimal.
pub(super) fn mark_bits(text: &str) -> Result<MarkBits, ConfigError> {
    let refused = |why: String| ConfigError::Malformed {
        variable: "PORTCULLIS_MARK_MASK",
        value: text.to_owned(),
        why,
    };
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let mask = match digits {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let mask: u32 = mask.map_err(|_| refused("not 32 bits such as 0xffff0000".to_owned()))?;
    if mask.count_ones() < FEWEST_BITS {
        let why = format!(
            "{} bits, and at least {FEWEST_BITS} are needed: there can be no more endpoints than they can name",
            mask.count_ones()
        );
        return Err(refused(why));
    }
    let shift = mask.trailing_zeros();
    if mask.leading_zeros() + mask.count_ones() + shift != u32::BITS {
        return Err(refused("its bits are not next to each other".to_owned()));
    }
    if let Some(bit) = KUBERNETES.into_iter().find(|bit| bit & mask != 0) {
        return Err(refused(format!(
            "kube-proxy or the kubelet marks packets with {bit:#x}; choose other bits"
        )));
    }
    Ok(MarkBits { mask, shift })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_contiguous_and_nobody_elses() {
        let bits = |mask, shift| Ok(MarkBits { mask, shift });
        let refused = |why: &str| Err(why.to_owned());
        let rows = [
            ("0xffff0000", bits(0xffff_0000, 16)),
            ("4294901760", bits(0xffff_0000, 16)),
            ("0xFF00000", bits(0x0ff0_0000, 20)),
            ("0x3fff", bits(0x3fff, 0)),
            ("0xff", bits(0xff, 0)),
            ("", refused("not 32 bits such as 0xffff0000")),
            ("0x1ffff0000", refused("not 32 bits such as 0xffff0000")),
            ("upper", refused("not 32 bits such as 0xffff0000")),
            (
                "0x7f0000",
                refused(
                    "7 bits, and at least 8 are needed: there can be no more endpoints than they can name",
                ),
            ),
            ("0xff0f0000", refused("its bits are not next to each other")),
            (
                "0x7f80",
                refused("kube-proxy or the kubelet marks packets with 0x4000; choose other bits"),
            ),
            (
                "0xffff8000",
                refused("kube-proxy or the kubelet marks packets with 0x8000; choose other bits"),
            ),
        ];
        for (text, expected) in rows {
            let found = mark_bits(text).map_err(|error| error.to_string());
            let expected = expected.map_err(|why| format!("PORTCULLIS_MARK_MASK={text:?}: {why}"));
            assert_eq!(found, expected);
        }
    }
}
