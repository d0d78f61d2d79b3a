//! Text for a terminal or a file: colours only where they can be seen and are wanted.

use std::io::{IsTerminal as _, stdout};

/// Where the demo is shown.
#[derive(Debug)]
pub(super) struct Screen {
    colours: bool,
}

/// How a piece of text stands out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
}

impl Screen {
    pub(super) fn new() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            colours: stdout().is_terminal() && !set("NO_COLOR") && !dumb,
        }
    }

    /// `text` in this style.
    pub(super) fn styled(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Plain => return text.to_owned(),
            _ if !self.colours => return text.to_owned(),
            Style::Bold => 1,
            Style::Dim => 2,
            Style::Good => 32,
            Style::Bad => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// A line that opens a chapter.
    pub(super) fn heading(&self, text: &str) {
        println!("\n{}", self.styled(Style::Bold, text));
    }

    /// A line of prose.
    pub(super) fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// What was written or printed, set apart.
    pub(super) fn quote(&self, text: &str) {
        for line in text.lines() {
            println!("  {}", self.styled(Style::Dim, &format!("| {line}")));
        }
    }

    /// Rows in columns, `gap` apart; widths are those of the plain text.
    pub(super) fn table(&self, rows: &[Vec<(String, Style)>], gap: usize) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<_> = (0..columns)
            .map(|column| {
                let cells = rows.iter().filter_map(|row| row.get(column));
                cells
                    .map(|(text, _)| text.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for row in rows {
            let mut line = String::from("  ");
            for ((text, style), width) in row.iter().zip(&widths) {
                line += &self.styled(*style, text);
                line += &" ".repeat(width - text.chars().count() + gap);
            }
            println!("{}", line.trim_end());
        }
    }
}
