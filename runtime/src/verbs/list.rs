//! `list`: all containers of a state root.

use std::fmt::Write as _;

use super::{VerbError, option_error, print, state::State, store};
use crate::cli::{Global, List};

const HEADINGS: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &List) -> Result<u8, VerbError> {
    let mut states = Vec::new();
    for dir in store(global).list()? {
        let mut state = State::of(&dir)?;
        state.owner = dir.owner();
        states.push(state);
    }
    let text = match options.format.as_str() {
        _ if options.quiet => states
            .iter()
            .fold(String::new(), |text, state| text + &state.id + "\n"),
        "table" => table(&rows(&states)),
        // Go's empty slice.
        "json" if states.is_empty() => "null\n".to_owned(),
        "json" => {
            serde_json::to_string(&states).expect("strings and numbers are valid JSON") + "\n"
        }
        _ => return Err(option_error("--format", "must be table or json")),
    };
    print(&text)?;
    Ok(0)
}

fn rows(states: &[State]) -> Vec<Vec<String>> {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    rows.extend(states.iter().map(|state| {
        vec![
            state.id.clone(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    }));
    rows
}

/// Aligns columns as Go's tabwriter does for runc: at least 12 characters wide, 3 of them blank.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    const WIDTH_LEAST: usize = 12;
    const BLANKS: usize = 3;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut widths = vec![WIDTH_LEAST; columns];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + BLANKS);
        }
    }
    let mut text = String::new();
    for row in rows {
        let (last, others) = row.split_last().map_or(("", &row[..]), |(l, o)| (l, o));
        for (cell, width) in others.iter().zip(&widths) {
            // Writing to a string does not fail.
            let _ = write!(text, "{cell:width$}");
        }
        text.push_str(last);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_table_is_runcs() {
        let rows = rows(&[]);
        assert_eq!(
            table(&rows),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
    }

    #[test]
    fn long_cells_widen_their_column() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let rows = [row(["a", "b"]), row(["0123456789", "c"])];
        assert_eq!(table(&rows), "a            b\n0123456789   c\n");
    }
}
