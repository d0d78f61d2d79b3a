//! Edits of CNI configurations as text: what is not ours is kept byte for byte.

use std::fmt;

use policy_cni::conf::VERSIONS;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// The plugin's type, which is the name of its program.
pub(super) const TYPE: &str = "policy-cni";

/// What is wrong with a configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    /// Not a configuration.
    Malformed(String),
    /// A version that ours does not speak.
    Version(String),
}

/// A network configuration list.
#[derive(Debug)]
pub(super) struct Conflist {
    /// Everything but the plugins, in order; `plugins` stands for them.
    fields: Vec<(String, Box<RawValue>)>,
    plugins: Vec<Box<RawValue>>,
}

/// Our entries in a list.
#[derive(Clone, Debug)]
pub(super) struct Ours {
    /// The one that holds starts, where there is one: before all others.
    pub(super) first: Option<Value>,
    /// The one that waits for the agent: after all others.
    pub(super) last: Value,
}

/// An object's fields in their order.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

const PLUGINS: &str = "plugins";

impl Conflist {
    /// Reads a `.conflist`.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Mistake> {
        let Fields(fields) = object(text)?;
        let plugins = field(&fields, PLUGINS).ok_or_else(|| malformed("it has no plugins"))?;
        let plugins: Vec<Box<RawValue>> =
            serde_json::from_str(plugins.get()).map_err(|_| malformed("plugins is not a list"))?;
        Self { fields, plugins }.checked()
    }

    /// Makes a list of a `.conf`, which is one plugin's.
    pub(super) fn of_plugin(text: &[u8]) -> Result<Self, Mistake> {
        let Fields(fields) = object(text)?;
        // Those are the list's, which gives them to its plugins.
        let (lists, plugins): (Vec<_>, Vec<_>) = fields
            .into_iter()
            .partition(|(name, _)| matches!(name.as_str(), "cniVersion" | "name"));
        let lines: Vec<String> = plugins
            .iter()
            .map(|(name, value)| format!("      {}: {}", Value::from(name.as_str()), value.get()))
            .collect();
        let plugin = RawValue::from_string(format!("{{\n{}\n    }}", lines.join(",\n")))
            .map_err(|error| malformed(&error.to_string()))?;
        let mut fields = lists;
        let place = RawValue::from_string("[]".to_owned())
            .map_err(|error| malformed(&error.to_string()))?;
        fields.push((PLUGINS.to_owned(), place));
        Self {
            fields,
            plugins: vec![plugin],
        }
        .checked()
    }

    /// What every runtime wants of a list.
    fn checked(self) -> Result<Self, Mistake> {
        let text = |name| {
            field(&self.fields, name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
        };
        if text("name").is_none_or(|name| name.is_empty()) {
            return Err(malformed("it has no name"));
        }
        if self.plugins.is_empty() {
            return Err(malformed("it has no plugins"));
        }
        if self
            .plugins
            .iter()
            .any(|plugin| plugin_type(plugin).is_none())
        {
            return Err(malformed("a plugin has no type"));
        }
        let version = text("cniVersion").unwrap_or_else(|| "0.1.0 (none is given)".to_owned());
        if !VERSIONS.contains(&version.as_str()) {
            return Err(Mistake::Version(version));
        }
        Ok(self)
    }

    /// Whether ours are where they belong, just like these, and there is no other of ours.
    pub(super) fn has(&self, ours: &Ours) -> bool {
        let is = |found: Option<&Box<RawValue>>, wanted: &Value| {
            found
                .and_then(|found| serde_json::from_str::<Value>(found.get()).ok())
                .is_some_and(|found| found == *wanted)
        };
        let count = self.plugins.iter().filter(|plugin| is_ours(plugin)).count();
        count == 1 + usize::from(ours.first.is_some())
            && is(self.plugins.last(), &ours.last)
            && ours
                .first
                .as_ref()
                .is_none_or(|first| is(self.plugins.first(), first))
    }

    /// Type of the first plugin that is not ours: it makes the interface.
    pub(super) fn main_plugin(&self) -> Option<String> {
        let others = self.plugins.iter().filter(|plugin| !is_ours(plugin));
        others.filter_map(|plugin| plugin_type(plugin)).next()
    }

    /// Whether ours is among the plugins.
    pub(super) fn has_ours(&self) -> bool {
        self.plugins.iter().any(|plugin| is_ours(plugin))
    }

    /// Whether a plugin of this type comes after ours.
    pub(super) fn has_after_ours(&self, wanted: &str) -> bool {
        let mut plugins = self.plugins.iter().skip_while(|plugin| !is_ours(plugin));
        plugins.any(|plugin| plugin_type(plugin).as_deref() == Some(wanted))
    }

    /// The list without ours.
    pub(super) fn without_ours(mut self) -> Self {
        self.plugins.retain(|plugin| !is_ours(plugin));
        self
    }

    /// The list with ours around the others: there is no network yet at the first turn, and whatever the others make
    /// of it is there at the last.
    pub(super) fn with_ours(self, ours: &Ours) -> Self {
        let Self { fields, plugins } = self.without_ours();
        // An object in memory is always JSON.
        let entry = |plugin: &Value| RawValue::from_string(plugin.to_string()).ok();
        let mut all: Vec<_> = ours.first.iter().filter_map(entry).collect();
        all.extend(plugins);
        all.extend(entry(&ours.last));
        Self {
            fields,
            plugins: all,
        }
    }

    /// Whether both mean the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let value = |list: &Self| serde_json::from_str::<Value>(&list.to_string()).ok();
        value(self) == value(other)
    }
}

impl fmt::Display for Conflist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plugins: Vec<_> = self
            .plugins
            .iter()
            .map(|plugin| format!("    {plugin}"))
            .collect();
        let plugins = format!("[\n{}\n  ]", plugins.join(",\n"));
        let lines: Vec<_> = self
            .fields
            .iter()
            .map(|(name, value)| {
                let value = if name == PLUGINS {
                    &plugins
                } else {
                    value.get()
                };
                format!("  {}: {value}", Value::from(name.as_str()))
            })
            .collect();
        writeln!(f, "{{\n{}\n}}", lines.join(",\n"))
    }
}

fn object(text: &[u8]) -> Result<Fields, Mistake> {
    serde_json::from_slice(text).map_err(|error| malformed(&format!("not a JSON object: {error}")))
}

fn field<'a>(fields: &'a [(String, Box<RawValue>)], wanted: &str) -> Option<&'a RawValue> {
    let found = fields.iter().find(|(name, _)| name == wanted);
    found.map(|(_, value)| &**value)
}

fn plugin_type(plugin: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Typed {
        r#type: String,
    }
    let typed: Typed = serde_json::from_str(plugin.get()).ok()?;
    Some(typed.r#type).filter(|kind| !kind.is_empty())
}

fn is_ours(plugin: &RawValue) -> bool {
    plugin_type(plugin).as_deref() == Some(TYPE)
}

fn malformed(mistake: &str) -> Mistake {
    Mistake::Malformed(mistake.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",   "delegate": { "hairpinMode": true, "mtu": 1.50e3 }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ],
  "disableCheck": true
}
"#;

    fn ours() -> Ours {
        Ours {
            first: None,
            last: json!({"type": "policy-cni", "timeout": 10}),
        }
    }

    fn ours_with_hold() -> Ours {
        Ours {
            first: Some(json!({"type": "policy-cni", "hold": true})),
            ..ours()
        }
    }

    fn list(text: &str) -> Conflist {
        Conflist::parse(text.as_bytes()).expect("a list")
    }

    #[test]
    fn ours_comes_last_and_nothing_else_changes() {
        let edited = list(FLANNEL).with_ours(&ours()).to_string();
        let as_it_was = r#"{
      "type": "flannel",   "delegate": { "hairpinMode": true, "mtu": 1.50e3 }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"#;
        assert!(edited.contains(as_it_was), "{edited}");
        let mut wanted: Value = serde_json::from_str(FLANNEL).expect("JSON");
        wanted["plugins"]
            .as_array_mut()
            .expect("a list")
            .push(ours().last);
        assert_eq!(
            serde_json::from_str::<Value>(&edited).expect("JSON"),
            wanted
        );
        assert!(list(&edited).has(&ours()) && list(&edited).has_ours());
        assert!(!list(&edited).has_after_ours("portmap"));
        assert!(
            edited.find("name") < edited.find("cniVersion"),
            "in its order: {edited}"
        );

        let again = list(&edited).with_ours(&ours());
        assert_eq!(again.to_string(), edited);
        assert!(again.without_ours().is_like(&list(FLANNEL)));
        let other = Ours {
            last: json!({"type": "policy-cni", "timeout": 20}),
            ..ours()
        };
        assert!(!list(&edited).has(&other));
    }

    #[test]
    fn the_holding_entry_comes_first_and_goes_with_the_other() {
        let single = list(FLANNEL).with_ours(&ours()).to_string();
        assert!(!list(&single).has(&ours_with_hold()), "only the old one");
        let both = list(&single).with_ours(&ours_with_hold()).to_string();
        let types: Value = serde_json::from_str(&both).expect("JSON");
        let types: Vec<_> = types["plugins"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|plugin| (plugin["type"].as_str().expect("text"), plugin.get("hold")))
            .collect();
        let hold = json!(true);
        assert_eq!(
            types,
            [
                ("policy-cni", Some(&hold)),
                ("flannel", None),
                ("portmap", None),
                ("policy-cni", None)
            ]
        );
        assert!(
            both.contains(
                r#""type": "flannel",   "delegate": { "hairpinMode": true, "mtu": 1.50e3 }"#
            ),
            "{both}"
        );
        let both = list(&both);
        assert!(both.has(&ours_with_hold()) && !both.has(&ours()));
        assert_eq!(both.main_plugin().as_deref(), Some("flannel"));
        assert_eq!(both.with_ours(&ours()).to_string(), single);
        let both = list(&single).with_ours(&ours_with_hold());
        assert!(both.without_ours().is_like(&list(FLANNEL)));
    }

    #[test]
    fn ours_somewhere_else_in_the_list_is_moved() {
        let mut elsewhere: Value = serde_json::from_str(FLANNEL).expect("JSON");
        elsewhere["plugins"]
            .as_array_mut()
            .expect("a list")
            .insert(0, ours().last);
        let elsewhere = list(&elsewhere.to_string());
        assert!(elsewhere.has_ours() && !elsewhere.has(&ours()));
        assert!(elsewhere.has_after_ours("portmap") && !elsewhere.has_after_ours("bandwidth"));
        assert!(
            elsewhere
                .with_ours(&ours())
                .is_like(&list(FLANNEL).with_ours(&ours()))
        );
    }

    #[test]
    fn a_conf_becomes_a_list_of_one() {
        let conf = r#"{"cniVersion": "0.4.0", "type": "bridge", "name": "mynet", "ipam": {"type": "host-local"}}"#;
        let list = Conflist::of_plugin(conf.as_bytes()).expect("a list");
        let wanted = json!({
            "cniVersion": "0.4.0", "name": "mynet",
            "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}],
        });
        assert_eq!(
            serde_json::from_str::<Value>(&list.to_string()).expect("JSON"),
            wanted
        );
    }

    #[test]
    fn what_no_runtime_could_use_is_refused() {
        let malformed = [
            "",
            "{",
            "[]",
            "null",
            r#"{"name": "a", "cniVersion": "1.0.0"}"#,
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": {}}"#,
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": []}"#,
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [1]}"#,
            r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": ""}]}"#,
            r#"{"cniVersion": "1.0.0", "plugins": [{"type": "ptp"}]}"#,
        ];
        for text in malformed {
            let mistake = Conflist::parse(text.as_bytes()).expect_err(text);
            assert!(
                matches!(mistake, Mistake::Malformed(_)),
                "{text}: {mistake:?}"
            );
        }
        for version in ["0.2.0", "0.3.0", "2.0.0"] {
            let text = json!({"name": "a", "cniVersion": version, "plugins": [{"type": "ptp"}]});
            let mistake = Conflist::parse(text.to_string().as_bytes()).expect_err(version);
            assert_eq!(mistake, Mistake::Version(version.to_owned()));
        }
        let without =
            Conflist::of_plugin(br#"{"name": "a", "type": "ptp"}"#).expect_err("no version");
        assert!(matches!(without, Mistake::Version(_)));
        let untyped = Conflist::of_plugin(br#"{"name": "a", "cniVersion": "1.0.0"}"#);
        assert!(matches!(untyped, Err(Mistake::Malformed(_))));
    }
}
