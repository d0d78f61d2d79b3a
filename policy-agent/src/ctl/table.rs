//! Plain tables, as kubectl prints them.

use comfy_table::{ContentArrangement, Table};

/// Rows under a header, columns as wide as they need to be, three spaces apart.
pub(super) fn render<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut table = Table::new();
    table
        .load_style(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header)
        .add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let rows = vec![
            ["a-long-host-name".to_owned(), "k8s".to_owned()],
            ["b".to_owned(), String::new()],
        ];
        assert_eq!(
            render(["HOSTNAME", "ORCHESTRATOR"], rows),
            "HOSTNAME           ORCHESTRATOR\na-long-host-name   k8s\nb\n"
        );
        assert_eq!(render(["A", "B"], Vec::new()), "A   B\n");
    }
}
