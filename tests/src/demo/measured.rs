//! The connectivity table: who reaches whom, as just measured.

use std::time::Duration;

use super::screen::{Screen, Style};
use crate::netns::{Family, Host, Outcome, Probe, What, measure};

/// Long enough for any connection here, even on a busy machine.
const PATIENCE: Duration = Duration::from_millis(700);

/// What one host reaches of another, in both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    /// TCP port 80 over IPv4 and IPv6.
    tcp: [bool; 2],
    /// UDP port 53 over IPv4 and IPv6.
    udp: [bool; 2],
}

impl Cell {
    fn words(self) -> String {
        let word = |name: &str, [v4, v6]: [bool; 2]| match (v4, v6) {
            (true, true) => Some(name.to_owned()),
            (true, false) => Some(format!("{name}4")),
            (false, true) => Some(format!("{name}6")),
            (false, false) => None,
        };
        let words: Vec<_> = [word("tcp", self.tcp), word("udp", self.udp)]
            .into_iter()
            .flatten()
            .collect();
        if words.is_empty() {
            "-".to_owned()
        } else {
            words.join("+")
        }
    }

    fn style(self) -> Style {
        if self.tcp.contains(&true) || self.udp.contains(&true) {
            Style::Good
        } else {
            Style::Bad
        }
    }
}

/// A measured table.
#[derive(Clone, Debug)]
pub(super) struct Connectivity {
    names: Vec<String>,
    cells: Vec<Vec<Option<Cell>>>,
}

impl Connectivity {
    /// Connects everyone with everyone, at once; `pods` hosts come first, the rest are outside and are
    /// not tried among each other.
    pub(super) fn measure(hosts: &[&Host], pods: usize) -> Self {
        let tried = |from: usize, to: usize| from != to && (from < pods || to < pods);
        let mut probes = Vec::new();
        for (from_index, from) in hosts.iter().enumerate() {
            for (to_index, to) in hosts.iter().enumerate() {
                if !tried(from_index, to_index) {
                    continue;
                }
                for what in [What::Tcp(80), What::Udp(53)] {
                    probes.extend(Family::ALL.map(|family| Probe {
                        from: from.netns(),
                        to: to.address(family),
                        what,
                        patience: PATIENCE,
                    }));
                }
            }
        }
        let mut outcomes = measure(&probes)
            .into_iter()
            .map(|outcome| outcome == Outcome::Answered);
        let mut next = || outcomes.next().unwrap_or(false);
        let cells = (0..hosts.len())
            .map(|from| {
                (0..hosts.len())
                    .map(|to| {
                        tried(from, to).then(|| Cell {
                            tcp: [next(), next()],
                            udp: [next(), next()],
                        })
                    })
                    .collect()
            })
            .collect();
        Self {
            names: hosts.iter().map(|host| host.name().to_owned()).collect(),
            cells,
        }
    }

    /// Shows it, with what is not as it was in `before` marked.
    pub(super) fn show(&self, screen: &Screen, before: Option<&Self>) {
        let mut rows = vec![vec![("from \\ to".to_owned(), Style::Dim)]];
        let short = |name: &String| name.rsplit('/').next().unwrap_or_default().to_owned();
        rows[0].extend(self.names.iter().map(|name| (short(name), Style::Bold)));
        for (from, cells) in self.cells.iter().enumerate() {
            let mut row = vec![(self.names[from].clone(), Style::Bold)];
            row.extend(cells.iter().enumerate().map(|(to, cell)| {
                let Some(cell) = cell else {
                    return (String::new(), Style::Plain);
                };
                let changed = before.is_some_and(|before| before.cells[from][to] != Some(*cell));
                let mark = if changed { "*" } else { "" };
                // As wide as a cell can be, so that columns stay where they are from table to table.
                (format!("{:<8}", cell.words() + mark), cell.style())
            }));
            rows.push(row);
        }
        screen.table(&rows, 1);
    }

    /// How many exchanges it took, and how many of them worked.
    pub(super) fn count(&self) -> (usize, usize) {
        let cells = self.cells.iter().flatten().flatten();
        let exchanges = cells.flat_map(|cell| cell.tcp.into_iter().chain(cell.udp));
        exchanges.fold((0, 0), |(all, worked), ok| {
            (all + 1, worked + usize::from(ok))
        })
    }
}
