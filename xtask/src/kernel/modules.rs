//! Which kernel modules a guest needs, in the order in which they are loaded.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// What the tests use, unless the kernel has it built in. (IPv6 always is, and from 7.x on no list says so.)
pub(crate) const NEEDED: [&str; 5] = ["veth", "bridge", "dummy", "sch_ingress", "cls_bpf"];

/// The paths of `needed` and of all they depend on, dependencies first, from the texts of
/// `modules.dep` and `modules.builtin`.
pub(crate) fn closure(dep: &str, builtin: &str, needed: &[&str]) -> Result<Vec<String>> {
    let by_name: BTreeMap<String, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, rest)| (name(path), (path, rest.split_whitespace().collect())))
        .collect();
    let mut order = Vec::new();
    for &module in needed {
        if builtin.lines().any(|path| name(path) == module) {
            continue;
        }
        let (path, depends) = by_name
            .get(module)
            .with_context(|| format!("the kernel has no module {module}"))?;
        // depmod lists all dependencies, and what must be loaded first last.
        for path in depends.iter().rev().chain([path]) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::closure;

    const DEP: &str = "kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\n\
                       kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz\n\
                       kernel/net/llc/llc.ko.xz:\n\
                       kernel/net/sched/cls-bpf.ko:\n";

    #[test]
    fn dependencies_come_first_and_once() {
        let order = closure(DEP, "", &["bridge", "stp", "cls_bpf"]).unwrap();
        assert_eq!(
            order,
            [
                "kernel/net/llc/llc.ko.xz",
                "kernel/net/802/stp.ko.xz",
                "kernel/net/bridge/bridge.ko.xz",
                "kernel/net/sched/cls-bpf.ko"
            ]
        );
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_what_is_missing_is_an_error() {
        assert!(
            closure("", "kernel/net/ipv6/ipv6.ko\n", &["ipv6"])
                .unwrap()
                .is_empty()
        );
        let error = closure(DEP, "", &["veth"]).unwrap_err().to_string();
        assert!(error.contains("veth"), "{error}");
    }
}
