//! The rows as a table and as JSON, and the marks.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// A measured row.
pub(super) struct Row {
    /// Its name.
    pub(super) name: String,
    /// The median.
    pub(super) median: f64,
    /// Its unit.
    pub(super) unit: &'static str,
    /// What it may be at most.
    pub(super) mark: Option<Mark>,
}

/// A limit.
pub(super) enum Mark {
    /// Times another row, plus a third where given.
    Times(f64, &'static str, Option<&'static str>),
    /// In the row's own unit.
    Below(f64),
}

pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(rows: Vec<Row>) -> Self {
        Self { rows }
    }

    /// (what the mark is taken of, the ratio or value reached, the limit).
    fn judge(&self, row: &Row) -> Option<(String, f64, f64)> {
        let medians: BTreeMap<&str, f64> = self
            .rows
            .iter()
            .map(|row| (row.name.as_str(), row.median))
            .collect();
        match row.mark.as_ref()? {
            Mark::Times(limit, base, plus) => {
                let floor =
                    medians.get(base)? + plus.map_or(Some(&0.0), |name| medians.get(name))?;
                let of = plus.map_or((*base).to_owned(), |plus| format!("{base} + {plus}"));
                Some((of, row.median / floor, *limit))
            }
            Mark::Below(limit) => Some((row.unit.to_owned(), row.median, *limit)),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let mut value =
                    json!({ "row": row.name, "median": row.median, "unit": row.unit });
                if let Some((of, reached, limit)) = self.judge(row) {
                    value["mark"] =
                        json!({ "of": of, "reached": reached, "limit": limit, "met": reached <= limit });
                }
                value
            })
            .collect();
        json!({ "rows": rows })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<44} {:>10} {:<4}  mark", "row", "median", "")?;
        for row in &self.rows {
            write!(f, "{:<44} {:>10.1} {:<4}", row.name, row.median, row.unit)?;
            match (self.judge(row), row.mark.as_ref()) {
                (Some((of, reached, limit)), Some(Mark::Times(..))) => {
                    let met = if reached <= limit { "met" } else { "MISSED" };
                    writeln!(f, "  {reached:.2}x of {of}, limit {limit:.2}x: {met}")?;
                }
                (Some((unit, reached, limit)), _) => {
                    let met = if reached <= limit { "met" } else { "MISSED" };
                    writeln!(f, "  limit {limit} {unit}: {met}")?;
                }
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}
