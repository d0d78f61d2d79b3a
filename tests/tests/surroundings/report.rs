//! What came of the surroundings, one line each.

use std::fmt::Write as _;

/// Cells and wrong ones, by surrounding.
#[derive(Default)]
pub(super) struct Report {
    lines: String,
    wrong: String,
    cells: usize,
    count: usize,
    skipped: usize,
}

impl Report {
    /// Takes in a surrounding's cells and prints its line.
    pub(super) fn add(&mut self, surrounding: &str, cells: usize, wrong: &[String]) {
        let line = format!("{surrounding}: {cells} cells, {} wrong", wrong.len());
        println!("{line}");
        let _infallible = writeln!(self.lines, "{line}");
        self.cells += cells;
        self.count += wrong.len();
        if !wrong.is_empty() {
            let _infallible = writeln!(self.wrong, "{surrounding}:\n{}", wrong.join("\n"));
        }
    }

    /// Notes a surrounding that this kernel or machine cannot have.
    pub(super) fn skip(&mut self, surrounding: &str, why: &str) {
        println!("SKIPPED: {surrounding}: {why}");
        self.skipped += 1;
    }

    /// Takes in another report.
    pub(super) fn merge(&mut self, other: &Self) {
        self.lines += &other.lines;
        self.wrong += &other.wrong;
        self.cells += other.cells;
        self.count += other.count;
        self.skipped += other.skipped;
    }

    /// Fails with every wrong cell.
    ///
    /// # Panics
    ///
    /// When one is wrong, or there were none.
    #[track_caller]
    pub(super) fn finish(&self, what: &str) {
        let Self {
            cells,
            count,
            skipped,
            ..
        } = self;
        println!("{what}: {cells} cells, {count} wrong, {skipped} surroundings skipped");
        assert!(*cells > 0 || *skipped > 0, "{what}: nothing was tried");
        assert!(
            *count == 0,
            "{what}: {count} of {cells} cells are wrong\n{}{}",
            self.lines,
            self.wrong
        );
    }
}
