//! What many pods have in common is kept once: all labels, all ports, and the strings in them.

use std::collections::{BTreeSet, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use policy_core::model::{Labels, NamedPort, Pod};

/// How many values there may be before those that nobody uses any more are looked for.
const FEW: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shared {
    strings: Pool<str>,
    labels: Pool<Labels>,
    ports: Pool<BTreeSet<NamedPort>>,
}

impl Shared {
    /// Lets `pod` share what others have too.
    pub(super) fn share(&mut self, pod: &mut Pod) {
        self.strings.share(&mut pod.name.namespace);
        let strings = &mut self.strings;
        if !self.labels.has(&pod.labels) {
            let labels = pod.labels.iter();
            pod.labels = Arc::new(
                labels
                    .map(|(key, value)| (strings.the_one(key), strings.the_one(value)))
                    .collect(),
            );
        }
        self.labels.share(&mut pod.labels);
        if !self.ports.has(&pod.ports) {
            let ports = pod.ports.iter().cloned();
            let shared = ports.map(|mut port| {
                strings.share(&mut port.name);
                port
            });
            pod.ports = Arc::new(shared.collect());
        }
        self.ports.share(&mut pod.ports);
    }
}

/// Values, each of which is there once.
#[derive(Debug)]
struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// Number of values at which those without use are removed.
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: FEW,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    fn has(&self, value: &T) -> bool {
        self.values.contains(value)
    }

    /// Replaces `value` by the equal one that is here, or puts it here.
    fn share(&mut self, value: &mut Arc<T>) {
        *value = self.the_one(value);
    }

    fn the_one(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.values.get(value) {
            return known.clone();
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.sweep_at = FEW.max(self.values.len() * 2);
        }
        self.values.insert(value.clone());
        value.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use policy_core::model::ObjectName;

    use super::*;

    fn pod(name: &str, label: &str) -> Pod {
        Pod {
            name: ObjectName::new("ns", name),
            labels: Arc::new(BTreeMap::from([("app".into(), label.into())])),
            addresses: Vec::new(),
            ports: Arc::default(),
            terminated: false,
            created: 0,
            uid: "".into(),
        }
    }

    #[test]
    fn what_is_equal_is_one_and_what_is_unused_goes() {
        let mut shared = Shared::default();
        let (mut a, mut b) = (pod("a", "web"), pod("b", "web"));
        let before = a.clone();
        shared.share(&mut a);
        shared.share(&mut b);
        assert_eq!(a, before);
        assert!(Arc::ptr_eq(&a.labels, &b.labels) && Arc::ptr_eq(&a.ports, &b.ports));
        let mut c = pod("c", "db");
        shared.share(&mut c);
        let key = |pod: &Pod| pod.labels.keys().next().cloned().expect("a label");
        assert!(Arc::ptr_eq(&key(&a), &key(&c)));
        assert!(Arc::ptr_eq(&a.name.namespace, &b.name.namespace));
        for number in 0..10 * FEW {
            shared.share(&mut pod("c", &number.to_string()));
        }
        let left = (shared.strings.values.len(), shared.labels.values.len());
        assert!(left.0 <= 3 * FEW && left.1 <= FEW, "{left:?}");
    }
}
