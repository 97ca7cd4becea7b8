//! The phases of a verb as a picture: a row for each, a bar where it lies in time, and what it
//! costs. Plain SVG, made to be read without anything beside it.

use std::fmt::Write as _;

use serde_json::Value;

use super::table::{array, number};

/// Sizes in pixels.
const WIDTH: f64 = 1100.0;
const NAMES_WIDTH: f64 = 330.0;
const FIGURES_WIDTH: f64 = 130.0;
const MARGIN: f64 = 20.0;
const TOP: f64 = 96.0;
const ROW: f64 = 21.0;
/// A bar of no length is still to be seen.
const BAR_MIN: f64 = 1.5;
/// About as many lines of the time axis as fit.
const GRID_LINES: f64 = 8.0;

/// A colour for each process, in the order in which they first appear.
const COLOURS: [&str; 6] = [
    "#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0",
];

/// Draws `timeline`. `yardstick` is a name and a time in milliseconds to compare the whole with.
pub(super) fn draw(timeline: &Value, yardstick: Option<(&str, f64)>) -> String {
    let phases = array(&timeline["phases"]);
    let total_us = number(&timeline["total_us"]).max(1.0);
    let left = MARGIN + NAMES_WIDTH;
    let scale = (WIDTH - left - FIGURES_WIDTH - MARGIN) / total_us;
    let bottom = TOP + ROW * phases.len() as f64;
    let height = bottom + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"12\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!(
        "{}: {:.1} ms",
        timeline["title"].as_str().unwrap_or("?"),
        total_us / 1000.0
    );
    text(
        &mut svg,
        MARGIN,
        32.0,
        "font-size=\"18\" font-weight=\"bold\"",
        &title,
    );
    let mut note = "what was done at the end of each phase, and how long it took".to_owned();
    if let Some((name, ms)) = yardstick {
        let _ = write!(
            note,
            "; {:.2} times {name} ({ms:.1} ms)",
            total_us / 1000.0 / ms
        );
    }
    text(&mut svg, MARGIN, 52.0, "fill=\"#666\"", &note);
    let processes = processes(phases);
    legend(&mut svg, &processes);
    grid(&mut svg, total_us, left, scale, bottom);
    for (index, phase) in phases.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        if index % 2 == 1 {
            let width = WIDTH - 2.0 * MARGIN;
            let _ = writeln!(
                svg,
                "<rect x=\"{MARGIN}\" y=\"{y}\" width=\"{width}\" height=\"{ROW}\" fill=\"#000\" fill-opacity=\"0.035\"/>"
            );
        }
        row(&mut svg, phase, y, &processes, (left, scale, total_us));
    }
    svg += "</svg>\n";
    svg
}

fn row(svg: &mut String, phase: &Value, y: f64, processes: &[&str], axis: (f64, f64, f64)) {
    let (left, scale, total_us) = axis;
    let (start_us, length_us) = (number(&phase["start_us"]), number(&phase["length_us"]));
    let baseline = y + ROW - 6.0;
    text(
        svg,
        MARGIN + 4.0,
        baseline,
        "",
        phase["done"].as_str().unwrap_or("?"),
    );
    let colour = colour(processes, phase["process"].as_str().unwrap_or("?"));
    let (x, width) = (left + start_us * scale, (length_us * scale).max(BAR_MIN));
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
        y + 4.0,
        ROW - 8.0
    );
    let share = 100.0 * length_us / total_us;
    let right = WIDTH - MARGIN - 4.0;
    let end = "text-anchor=\"end\"";
    text(
        svg,
        right - 58.0,
        baseline,
        end,
        &format!("{:.2} ms", length_us / 1000.0),
    );
    text(svg, right, baseline, end, &format!("{share:.1} %"));
}

/// The distinct processes, in the order in which they first appear.
fn processes(phases: &[Value]) -> Vec<&str> {
    let mut processes = Vec::new();
    for phase in phases {
        let process = phase["process"].as_str().unwrap_or("?");
        if !processes.contains(&process) {
            processes.push(process);
        }
    }
    processes
}

fn colour(processes: &[&str], process: &str) -> &'static str {
    let index = processes.iter().position(|known| *known == process);
    COLOURS[index.unwrap_or(0) % COLOURS.len()]
}

fn legend(svg: &mut String, processes: &[&str]) {
    for (index, process) in processes.iter().enumerate() {
        let x = MARGIN + 130.0 * index as f64;
        let colour = colour(processes, process);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"66\" width=\"12\" height=\"12\" fill=\"{colour}\"/>"
        );
        text(svg, x + 18.0, 76.0, "", process);
    }
}

/// Vertical lines at round times, with their time below.
fn grid(svg: &mut String, total_us: f64, left: f64, scale: f64, bottom: f64) {
    let step_us = step(total_us);
    let mut at_us = 0.0;
    while at_us <= total_us {
        let x = left + at_us * scale;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#ddd\"/>"
        );
        let label = format!("{} ms", at_us / 1000.0);
        text(
            svg,
            x,
            bottom + 18.0,
            "text-anchor=\"middle\" fill=\"#666\"",
            &label,
        );
        at_us += step_us;
    }
}

/// A round distance, 1, 2 or 5 times a power of ten.
fn step(total_us: f64) -> f64 {
    let least = total_us / GRID_LINES;
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= least)
        .unwrap_or(least)
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bars_lie_where_their_phases_do() {
        let timeline = json!({"title": "a <b>", "total_us": 620_000, "phases": [
            {"done": "first", "process": "p", "start_us": 0, "length_us": 310_000},
            {"done": "second", "process": "q", "start_us": 310_000, "length_us": 310_000},
        ]});
        let svg = draw(&timeline, Some(("runc", 310.0)));
        assert!(svg.contains("a &lt;b>: 620.0 ms"));
        assert!(svg.contains("2.00 times runc"));
        assert!(svg.contains(
            "<rect x=\"350.0\" y=\"100.0\" width=\"300.0\" height=\"13.0\" fill=\"#4269d0\"/>"
        ));
        assert!(svg.contains(
            "<rect x=\"650.0\" y=\"121.0\" width=\"300.0\" height=\"13.0\" fill=\"#efb118\"/>"
        ));
        assert_eq!(svg.matches("50.0 %").count(), 2);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(step(283_000.0), 50_000.0);
        assert_eq!(step(17_000.0), 5_000.0);
        assert_eq!(step(8.0), 1.0);
    }
}
