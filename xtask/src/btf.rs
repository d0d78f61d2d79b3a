//! Forward declarations in BTF, put in order.
//!
//! LLVM appends them in the order of their addresses in its own memory, and that depends on how long the
//! paths are that it was called with. So the same source gave other objects in other directories.
//! Layout of BTF: <https://docs.kernel.org/bpf/btf.html>.

use std::ops::Range;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

const MAGIC: u16 = 0xeb9f;
/// Bytes of what every type begins with: name, info, size or type.
const TYPE: usize = 12;

const ARRAY: u32 = 3;
const FORWARD: u32 = 7;

/// Sorts the forward declarations in an object's BTF by name.
///
/// # Errors
///
/// When there is no BTF in it, or none that we understand.
pub(crate) fn sort_forward_declarations(elf: &mut [u8]) -> Result<()> {
    let (start, size) = object::File::parse(&*elf)
        .context("not an object file")?
        .section_by_name(".BTF")
        .and_then(|section| section.file_range())
        .context("no section .BTF in the object")?;
    let (start, size) = (usize::try_from(start)?, usize::try_from(size)?);
    let btf = elf
        .get_mut(start..start + size)
        .context("the section .BTF ends beyond the file")?;
    sort(btf)
}

/// A type's place in the section.
struct Type {
    at: usize,
    kind: u32,
    /// Number of members, parameters, ...
    count: usize,
}

fn sort(btf: &mut [u8]) -> Result<()> {
    let (types, strings) = parts(btf)?;
    let types = walk(btf, types)?;
    // Ids count from 1; 0 is void.
    let slots: Vec<usize> = (0..types.len())
        .filter(|&index| types[index].kind == FORWARD)
        .collect();
    let mut sorted = Vec::new();
    for &index in &slots {
        let at = types[index].at;
        let name = string(btf, &strings, word(btf, at)?)?;
        let record: [u8; TYPE] = btf[at..at + TYPE].try_into()?;
        sorted.push((name, word(btf, at + 4)?, record, index));
    }
    sorted.sort();
    let mut ids: Vec<usize> = (0..=types.len()).collect();
    for (slot, (_, _, record, index)) in slots.iter().zip(&sorted) {
        let at = types[*slot].at;
        btf[at..at + TYPE].copy_from_slice(record);
        ids[index + 1] = slot + 1;
    }
    for one in &types {
        for at in references(one) {
            let id = usize::try_from(word(btf, at)?)?;
            let new = ids
                .get(id)
                .context("BTF refers to a type that it does not have")?;
            btf[at..at + 4].copy_from_slice(&u32::try_from(*new)?.to_le_bytes());
        }
    }
    Ok(())
}

/// Where types and strings are.
fn parts(btf: &[u8]) -> Result<(Range<usize>, Range<usize>)> {
    let magic = btf
        .get(..2)
        .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    ensure!(magic == Some(MAGIC), "no BTF for a little-endian machine");
    let field = |at| -> Result<usize> { Ok(usize::try_from(word(btf, at)?)?) };
    let header = field(4)?;
    let part = |offset: usize, size: usize| header + offset..header + offset + size;
    let types = part(field(8)?, field(12)?);
    let strings = part(field(16)?, field(20)?);
    ensure!(
        types.end <= btf.len() && strings.end <= btf.len(),
        "BTF ends before its last part"
    );
    Ok((types, strings))
}

fn walk(btf: &[u8], part: Range<usize>) -> Result<Vec<Type>> {
    let mut types = Vec::new();
    let mut at = part.start;
    while at < part.end {
        let info = word(btf, at + 4)?;
        let kind = (info >> 24) & 0x1f;
        let count = usize::try_from(info & 0xffff)?;
        types.push(Type { at, kind, count });
        at += TYPE + size_after(kind, count)?;
    }
    ensure!(at == part.end, "BTF's last type ends beyond the others");
    Ok(types)
}

/// Bytes that follow a type's first twelve.
fn size_after(kind: u32, count: usize) -> Result<usize> {
    Ok(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | FORWARD..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        ARRAY => 12,
        // Struct, union, section of data, 64-bit enum.
        4 | 5 | 15 | 19 => 12 * count,
        // Enum, function prototype.
        6 | 13 => 8 * count,
        other => bail!("BTF has a type of kind {other}, which is not known here"),
    })
}

/// Where a type refers to others.
fn references(one: &Type) -> Vec<usize> {
    let after = one.at + TYPE;
    let each = |step: usize, first: usize| (0..one.count).map(move |i| after + step * i + first);
    match one.kind {
        2 | 8..=12 | 14 | 17 | 18 => vec![one.at + 8],
        ARRAY => vec![after, after + 4],
        4 | 5 => each(12, 4).collect(),
        13 => std::iter::once(one.at + 8).chain(each(8, 4)).collect(),
        15 => each(12, 0).collect(),
        _ => Vec::new(),
    }
}

fn word(btf: &[u8], at: usize) -> Result<u32> {
    let bytes = btf.get(at..at + 4).context("BTF ends within a type")?;
    Ok(u32::from_le_bytes(bytes.try_into()?))
}

fn string(btf: &[u8], strings: &Range<usize>, offset: u32) -> Result<Vec<u8>> {
    let rest = btf[strings.clone()]
        .get(usize::try_from(offset)?..)
        .context("a name in BTF is beyond its strings")?;
    Ok(rest.iter().copied().take_while(|&byte| byte != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::sort;

    const STRINGS: &[u8] = b"\0zebra\0ape\0s\0a\0z\0";
    const ZEBRA: u32 = 1;
    const APE: u32 = 7;
    const S: u32 = 11;
    const A: u32 = 13;
    const Z: u32 = 15;

    fn btf(types: &[u32]) -> Vec<u8> {
        let size = u32::try_from(types.len() * 4).expect("small");
        let strings = u32::try_from(STRINGS.len()).expect("small");
        let header = [0x0001_eb9f, 24, 0, size, size, strings];
        let words = header
            .iter()
            .chain(types)
            .flat_map(|word| word.to_le_bytes());
        words.chain(STRINGS.iter().copied()).collect()
    }

    /// A struct with a pointer to each of two declared types, which are types `ape` and `zebra`.
    fn two(first: u32, second: u32, ape: u32, zebra: u32) -> Vec<u8> {
        let (structure, pointer, forward) = (4 << 24 | 2, 2 << 24, 7 << 24);
        btf(&[
            S, structure, 16, A, 2, 0, Z, 3, 64, // 1: struct s { ape *a; zebra *z; }
            0, pointer, ape, // 2
            0, pointer, zebra, // 3
            first, forward, 0, // 4
            second, forward, 0, // 5
        ])
    }

    #[test]
    fn declarations_are_sorted_and_still_meant_by_who_meant_them() {
        let sorted = two(APE, ZEBRA, 4, 5);
        for mut given in [sorted.clone(), two(ZEBRA, APE, 5, 4)] {
            sort(&mut given).expect("BTF");
            assert!(given == sorted);
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(sort(&mut []).is_err());
        assert!(sort(&mut btf(&[0, 30 << 24, 0])).is_err(), "kind 30");
        assert!(
            sort(&mut btf(&[0, 2 << 24, 9])).is_err(),
            "a pointer to type 9"
        );
        assert!(sort(&mut btf(&[0, 2 << 24])).is_err(), "half a type");
    }
}
