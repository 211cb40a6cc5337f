//! Plain tables for people: columns as wide as their widest cell, numbers to the right.

use std::fmt::Write;

use super::histogram::Percentiles;

/// A table being filled.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    /// Columns of words, from the first.
    words: usize,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()], words: 1 }
    }

    /// The first so many columns hold words: they go to the left.
    pub(crate) fn with_words(self, words: usize) -> Self {
        Self { words, ..self }
    }

    /// Adds a row; missing cells stay empty.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text, words to the left and all others to the right.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let line: Vec<String> = row.iter().zip(&widths).enumerate().map(|cell| self.pad(cell)).collect();
            text.push_str(line.join("  ").trim_end());
            text.push('\n');
            if number == 0 {
                let total: usize = widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1);
                writeln!(text, "{}", "─".repeat(total)).expect("a String takes everything");
            }
        }
        text
    }

    fn pad(&self, (column, (cell, wanted)): (usize, (&String, &usize))) -> String {
        let fill = " ".repeat(wanted.saturating_sub(width(cell)));
        if column < self.words { format!("{cell}{fill}") } else { format!("{fill}{cell}") }
    }
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

/// The head of a table of latencies.
pub(crate) const LATENCY_HEAD: [&str; 7] = ["", "count", "p50", "p90", "p99", "p99.9", "max"];

/// A row of a table of latencies.
pub(crate) fn latency_row(name: &str, latencies: &Percentiles) -> Vec<String> {
    let Percentiles { count, p50, p90, p99, p999, max } = *latencies;
    let times = [p50, p90, p99, p999, max].map(duration);
    [name.to_owned(), grouped(count)].into_iter().chain(times).collect()
}

/// A count of microseconds in the unit that reads best.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(crate) fn duration(us: u64) -> String {
    match us {
        0..1000 => format!("{us} us"),
        1000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(["0", "999", "1,000", "1,234,567"].map(str::to_owned), [0, 999, 1000, 1_234_567].map(grouped));
    }

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["", "a"]);
        table.row(vec!["long name".to_owned(), "1".to_owned()]);
        table.row(vec!["x".to_owned(), "1,000".to_owned()]);
        let lines: Vec<String> = table.render().lines().map(str::to_owned).collect();
        assert_eq!(lines.get(2).map(String::as_str), Some("long name      1"));
        assert_eq!(lines.get(3).map(String::as_str), Some("x          1,000"));
    }
}
