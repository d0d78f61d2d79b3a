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

    /// Whether ours is the last plugin, just like this, and there is no other of ours.
    pub(super) fn ends_with(&self, plugin: &Value) -> bool {
        let last = self
            .plugins
            .last()
            .map(|last| serde_json::from_str(last.get()));
        self.plugins.iter().filter(|plugin| is_ours(plugin)).count() == 1
            && last.is_some_and(|last| last.is_ok_and(|last: Value| last == *plugin))
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

    /// The list with this plugin of ours as its last: whatever network the others make is there by then.
    pub(super) fn with_ours(self, plugin: &Value) -> Self {
        let mut list = self.without_ours();
        // An object in memory is always JSON.
        list.plugins
            .extend(RawValue::from_string(plugin.to_string()).ok());
        list
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

    fn ours() -> Value {
        json!({"type": "policy-cni", "timeout": 10})
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
            .push(ours());
        assert_eq!(
            serde_json::from_str::<Value>(&edited).expect("JSON"),
            wanted
        );
        assert!(list(&edited).ends_with(&ours()) && list(&edited).has_ours());
        assert!(!list(&edited).has_after_ours("portmap"));
        assert!(
            edited.find("name") < edited.find("cniVersion"),
            "in its order: {edited}"
        );

        let again = list(&edited).with_ours(&ours());
        assert_eq!(again.to_string(), edited);
        assert!(again.without_ours().is_like(&list(FLANNEL)));
        let other = json!({"type": "policy-cni", "timeout": 20});
        assert!(!list(&edited).ends_with(&other));
    }

    #[test]
    fn ours_somewhere_else_in_the_list_is_moved() {
        let mut elsewhere: Value = serde_json::from_str(FLANNEL).expect("JSON");
        elsewhere["plugins"]
            .as_array_mut()
            .expect("a list")
            .insert(0, ours());
        let elsewhere = list(&elsewhere.to_string());
        assert!(elsewhere.has_ours() && !elsewhere.ends_with(&ours()));
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
