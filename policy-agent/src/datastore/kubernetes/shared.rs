//! Strings that many pods have in common are kept once: labels, names of namespaces and of ports.

use std::collections::HashSet;
use std::sync::Arc;

use policy_core::model::Pod;

/// How many strings there may be before those that nobody uses any more are looked for.
const FEW: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct SharedStrings {
    strings: HashSet<Arc<str>>,
    /// Number of strings at which those without use are removed.
    sweep_at: usize,
}

impl Default for SharedStrings {
    fn default() -> Self {
        Self {
            strings: HashSet::new(),
            sweep_at: FEW,
        }
    }
}

impl SharedStrings {
    /// Lets `pod` share what others have too.
    pub(super) fn share(&mut self, pod: &mut Pod) {
        if self.strings.len() >= self.sweep_at {
            self.sweep();
        }
        pod.name.namespace = self.the_one(&pod.name.namespace);
        pod.labels = std::mem::take(&mut pod.labels)
            .into_iter()
            .map(|(key, value)| (self.the_one(&key), self.the_one(&value)))
            .collect();
        pod.ports = std::mem::take(&mut pod.ports)
            .into_iter()
            .map(|mut port| {
                port.name = self.the_one(&port.name);
                port
            })
            .collect();
    }

    fn the_one(&mut self, string: &Arc<str>) -> Arc<str> {
        match self.strings.get(string) {
            Some(known) => known.clone(),
            None => {
                self.strings.insert(string.clone());
                string.clone()
            }
        }
    }

    fn sweep(&mut self) {
        self.strings.retain(|string| Arc::strong_count(string) > 1);
        self.sweep_at = FEW.max(self.strings.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use policy_core::model::ObjectName;

    use super::*;

    fn pod(name: &str, label: &str) -> Pod {
        Pod {
            name: ObjectName::new("ns", name),
            labels: BTreeMap::from([("app".into(), label.into())]),
            addresses: Vec::new(),
            ports: BTreeSet::new(),
            terminated: false,
            created: 0,
            uid: "".into(),
        }
    }

    #[test]
    fn equal_strings_are_one_and_unused_ones_go() {
        let mut shared = SharedStrings::default();
        let (mut a, mut b) = (pod("a", "web"), pod("b", "web"));
        let before = a.clone();
        shared.share(&mut a);
        shared.share(&mut b);
        assert_eq!(a, before);
        assert!(Arc::ptr_eq(&a.labels["app"], &b.labels["app"]));
        assert!(Arc::ptr_eq(&a.name.namespace, &b.name.namespace));
        for number in 0..10 * FEW {
            shared.share(&mut pod("c", &number.to_string()));
        }
        assert!(shared.strings.len() <= FEW, "{}", shared.strings.len());
    }
}
