//! The reference shows rows of tables and lines of the log as they are, field by field.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;

use aya::maps::{MapInfo, MapType};
use policy_common::map;
use portcullis_tests::netns::Agent;
use serde_json::Value;

use super::{Cast, DENY_INGRESS, Form, Node, What, check};

/// The names of an object's fields, in every depth. Of a list the first element stands for all.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{name}:{}", shape(value)))
                .collect();
            fields.sort();
            format!("{{{}}}", fields.join(" "))
        }
        Value::Array(list) => format!("[{}]", list.first().map(shape).unwrap_or_default()),
        _ => "_".to_owned(),
    }
}

/// The shapes of the rows that a text shows in blocks of JSON.
fn shown(text: &str) -> Vec<String> {
    let blocks = text.split("```").skip(1).step_by(2).map(str::trim);
    let mut shapes = Vec::new();
    for block in blocks {
        let block = match block
            .strip_prefix("},{")
            .and_then(|rest| rest.strip_suffix("},{"))
        {
            // Rows out of the middle of a dump.
            Some(rows) => format!("[{{{rows}}}]"),
            None if block.starts_with(['{', '[']) => block.to_owned(),
            None => continue,
        };
        for value in serde_json::Deserializer::from_str(&block).into_iter::<Value>() {
            match value.unwrap_or_else(|error| panic!("{error}: {block}")) {
                Value::Array(rows) => shapes.extend(rows.iter().map(shape)),
                row => shapes.push(shape(&row)),
            }
        }
    }
    shapes
}

/// What bpftool prints.
pub(super) fn bpftool(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("bpftool").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bpftool {arguments:?}: {error}");
    output.stdout
}

/// The shape of a row as bpftool prints it. In a table that holds what was written only, a row of zeros is written
/// first.
fn printed(node: &Node, name: &str) -> String {
    let pin = node.bpffs().join(name);
    let info = MapInfo::from_pin(&pin).unwrap();
    let pin = pin.display().to_string();
    let zeros = |size: u32| vec!["0"; usize::try_from(size).unwrap()];
    let key = zeros(info.key_size());
    let is_array = matches!(
        info.map_type().unwrap(),
        MapType::Array | MapType::PerCpuArray
    );
    if !is_array {
        let value = zeros(info.value_size());
        let words = [
            &["map", "update", "pinned", &pin, "key"][..],
            &key,
            &["value"],
            &value,
        ]
        .concat();
        bpftool(&words);
    }
    let words = [&["-j", "map", "lookup", "pinned", &pin, "key"][..], &key].concat();
    let row: Value = serde_json::from_slice(&bpftool(&words)).unwrap();
    shape(&row["formatted"])
}

#[test]
fn rows_in_the_reference_have_the_fields_of_the_tables() {
    let cast = Cast::new(Form::Routed);
    Agent::start(&cast.node).unwrap().stop().unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let reference = fs::read_to_string(docs.join("reference/maps.md")).unwrap();
    for spec in map::ALL.iter().filter(|spec| **spec != map::EVENTS) {
        let section = format!("\n## {}\n", spec.name);
        let (_, section) = reference.split_once(&section).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let printed = printed(&cast.node, spec.name);
        let rows = shown(section);
        // Nothing is ever in it.
        let is_empty = *spec == map::RULES;
        assert_eq!(rows.is_empty(), is_empty, "{}: {rows:?}", spec.name);
        for row in rows {
            assert_eq!(row, printed, "{} in docs/reference/maps.md", spec.name);
        }
    }
    let guide = fs::read_to_string(docs.join("guides/simple-policy.md")).unwrap();
    assert_eq!(shown(&guide), [printed(&cast.node, map::FLOWS_V4.name)]);
}

/// A line of the programs' decisions, without time and numbers.
fn without_numbers(line: &str) -> Option<String> {
    let (_, line) = line.split_once(" DEBUG portcullis: ")?;
    Some(line.replace(|c: char| c.is_ascii_digit(), ""))
}

#[test]
fn decisions_are_logged_as_the_reference_shows() {
    let cast = Cast::new(Form::Routed);
    cast.policy("default-deny", DENY_INGRESS);
    let settings = [("PORTCULLIS_LOG_DECISIONS", OsStr::new("true"))];
    let agent = Agent::start_with(&cast.node, &settings).unwrap();
    check("", &[(&cast.tool, &cast.db, What::Tcp(80), false)]);
    // `policy_denied`.
    let log = agent.wait_for_log(|log| log.contains(": reason 8 policy "));
    let log = log.unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let reference = fs::read_to_string(docs.join("reference/configuration.md")).unwrap();
    let shown: BTreeSet<_> = reference.lines().filter_map(without_numbers).collect();
    let logged: BTreeSet<_> = log.lines().filter_map(without_numbers).collect();
    assert_eq!(shown, logged);
}
