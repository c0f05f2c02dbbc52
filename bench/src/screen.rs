//! Progress for people, and the wish to stop.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Outcome;

static STOP: std::sync::LazyLock<Arc<AtomicBool>> = std::sync::LazyLock::new(Arc::default);

/// From here on Ctrl-C and its kin only set a mark, so that what was mounted and made is taken away again.
pub(crate) fn watch_signals() -> Outcome {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&STOP))
            .map_err(|error| format!("signals: {error}"))?;
    }
    Ok(())
}

/// An error if the user wants to stop.
pub(crate) fn go_on() -> Outcome {
    if STOP.load(Ordering::Relaxed) {
        Err("interrupted; everything is cleaned up".to_owned())
    } else {
        Ok(())
    }
}

/// A line for people.
pub(crate) fn say(line: impl AsRef<str>) {
    eprintln!("{}", line.as_ref());
}

/// A bar with rate and time left; on anything but a terminal a line at the beginning.
pub(crate) fn bar(what: &str, len: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        say(format!("{what} …"));
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{msg:<28} {bar:30} {percent:>3} %  {per_sec:>14}  {eta:>5} left");
    let bar = ProgressBar::new(len).with_message(what.to_owned());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Rows under a head, in columns as wide as they need to be; the first to the left, the others to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let head: Vec<_> = head.iter().map(|cell| (*cell).to_owned()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["native".to_owned(), "1".to_owned()], vec!["µs".to_owned(), "1000".to_owned()]];
        assert_eq!(table(&["road", "s"], &rows), "road       s\nnative     1\nµs      1000\n");
    }
}
