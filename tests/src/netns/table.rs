//! Expected connectivity, checked by real exchanges in both families at once.

use super::traffic::{Family, Outcome, Probe, What, measure};
use super::{Host, PATIENCE, SILENCE};

/// From, to, what, and whether it may.
pub type Expected<'a> = (&'a Host, &'a Host, What, bool);

/// Tries every row in both families and fails with all that is not as expected. What is denied has to
/// be silent: a refusal would mean that packets came through.
///
/// # Panics
///
/// When an exchange is not as expected.
#[track_caller]
pub fn check(when: &str, rows: &[Expected<'_>]) {
    let cells: Vec<_> = rows
        .iter()
        .flat_map(|row| Family::ALL.map(|family| (row, family)))
        .collect();
    let probes: Vec<_> = cells
        .iter()
        .map(|((from, to, what, allowed), family)| Probe {
            from: from.netns(),
            to: to.address(*family),
            what: *what,
            patience: if *allowed { PATIENCE } else { SILENCE },
        })
        .collect();
    let wrong: Vec<_> = cells
        .iter()
        .zip(measure(&probes))
        .filter_map(|(((from, to, what, allowed), family), outcome)| {
            let expected = if *allowed {
                Outcome::Answered
            } else {
                Outcome::Silent
            };
            (outcome != expected).then(|| {
                format!(
                    "  {} -> {} {what} {family:?}: expected {expected}, got {outcome}",
                    from.name(),
                    to.name()
                )
            })
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{when}: {} of {} exchanges are wrong:\n{}",
        wrong.len(),
        cells.len(),
        wrong.join("\n")
    );
}
