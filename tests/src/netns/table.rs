//! Expected connectivity, checked by real exchanges in both families at once.

use std::net::IpAddr;

use super::traffic::{Family, Outcome, Probe, What, measure};
use super::{Host, PATIENCE, SILENCE};

/// From, to, what, and whether it may.
pub type Expected<'a> = (&'a Host, &'a Host, What, bool);

/// From, to in each family, what, and what comes of it.
pub type Row<'a> = (&'a Host, [IpAddr; 2], What, Outcome);

/// Tries every row in both families and fails with all that is not as expected. What is denied has to
/// be silent: a refusal would mean that packets came through.
///
/// # Panics
///
/// When an exchange is not as expected.
#[track_caller]
pub fn check(when: &str, rows: &[Expected<'_>]) {
    let rows: Vec<Row<'_>> = rows
        .iter()
        .map(|(from, to, what, allowed)| {
            let outcome = if *allowed {
                Outcome::Answered
            } else {
                Outcome::Silent
            };
            (
                *from,
                Family::ALL.map(|family| to.address(family)),
                *what,
                outcome,
            )
        })
        .collect();
    expect(when, &rows);
}

/// As [`check`], for any address and outcome.
///
/// # Panics
///
/// When an exchange is not as expected.
#[track_caller]
pub fn expect(when: &str, rows: &[Row<'_>]) {
    let wrong = wrong(rows);
    assert!(
        wrong.is_empty(),
        "{when}: {} of {} exchanges are wrong:\n{}",
        wrong.len(),
        rows.len() * Family::ALL.len(),
        wrong.join("\n")
    );
}

/// Tries every row in both families, all at once, and says which exchanges are not as expected.
#[must_use]
pub fn wrong(rows: &[Row<'_>]) -> Vec<String> {
    let cells: Vec<_> = rows
        .iter()
        .flat_map(|row| Family::ALL.map(|family| (row, family)))
        .collect();
    let probes: Vec<_> = cells
        .iter()
        .map(|((from, to, what, expected), family)| Probe {
            from: from.netns(),
            to: to[*family as usize],
            what: *what,
            patience: match expected {
                Outcome::Silent => SILENCE,
                _ => PATIENCE,
            },
        })
        .collect();
    cells
        .iter()
        .zip(measure(&probes))
        .filter(|(((.., expected), _), outcome)| outcome != expected)
        .map(|(((from, to, what, expected), family), outcome)| {
            let to = to[*family as usize];
            format!(
                "  {} -> {to} {what}: expected {expected}, got {outcome}",
                from.name()
            )
        })
        .collect()
}
