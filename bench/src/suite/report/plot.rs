//! Plots: ratios to native as bars, and curves over numbers of clients, threads or files.

use super::svg::{Anchor, FAINT, INK, Svg, TEXT, width_of};
use super::{Amount, Count, label};
use crate::suite::record::{Case, Unit};
use crate::ways::Way;

/// One for each way, told apart also by those who see few colours (after Okabe and Ito).
const COLOURS: [&str; 11] = [
    "#444444", "#cc79a7", "#d55e00", "#e69f00", "#f0c419", "#8c564b", "#0072b2", "#009e73", "#56b4e9",
    "#9467bd", "#17becf",
];
/// For what is no way.
const OTHER: &str = "#7f7f7f";
const MARGIN: f64 = 14.0;

fn colour(way: &str) -> &'static str {
    Way::ALL.iter().position(|other| other.name == way).map_or(OTHER, |index| COLOURS[index])
}

/// A logarithmic scale: values between two, and where they are.
#[derive(Clone, Copy, Debug)]
struct Scale {
    values: (f64, f64),
    at: (f64, f64),
}

impl Scale {
    fn place(&self, value: f64) -> f64 {
        let (low, high) = (self.values.0.ln(), self.values.1.ln());
        let part = if high > low { (value.max(f64::MIN_POSITIVE).ln() - low) / (high - low) } else { 0.5 };
        self.at.0 + part.clamp(0.0, 1.0) * (self.at.1 - self.at.0)
    }

    /// Round values in between: as many as are easily read.
    fn ticks(&self) -> Vec<f64> {
        let all = |steps: &[f64]| {
            let (first, last) = (self.values.0.log10().floor() as i32, self.values.1.log10().ceil() as i32);
            let decades = (first..=last).map(|power| 10f64.powi(power));
            let ticks = decades.flat_map(|decade| steps.iter().map(move |step| step * decade));
            let inside = |tick: &f64| *tick >= self.values.0 * 0.999 && *tick <= self.values.1 * 1.001;
            ticks.filter(inside).collect::<Vec<_>>()
        };
        let finer: [&[f64]; 4] = [&[1.0, 1.5, 2.0, 3.0, 5.0, 7.0], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
        let fits = finer.iter().map(|steps| all(steps)).find(|ticks| ticks.len() <= 8);
        fits.unwrap_or_else(|| all(&[1.0]).into_iter().step_by(2).collect())
    }
}

/// For each case a bar for each way: how much longer it takes than natively. Nothing if there is nothing to compare.
pub(super) fn ratios(title: &str, cases: &[&Case], ways: &[&str]) -> Option<String> {
    const BAR: f64 = 11.0;
    const STEP: f64 = 13.0;
    const GAP: f64 = 12.0;
    let ways: Vec<&str> = ways.iter().copied().filter(|way| *way != "native").collect();
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            let bars = ways.iter().filter_map(|way| Some((*way, case.ratio(way, "native")?)));
            (label(case), bars.collect::<Vec<_>>())
        })
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let all = || rows.iter().flat_map(|(_, bars)| bars.iter().map(|(_, ratio)| *ratio));
    let low = all().map(|ratio| ratio.min).reduce(f64::min)?.clamp(0.01, 0.8);
    let high = all().map(|ratio| ratio.max).reduce(f64::max)?.clamp(1.25, 10_000.0);
    let labels = rows.iter().map(|(label, _)| width_of(label, TEXT)).fold(0.0, f64::max);
    let (left, width) = (MARGIN + labels + 10.0, MARGIN + labels + 640.0);
    let bars: usize = rows.iter().map(|(_, bars)| bars.len()).sum();
    let height = 130.0 + bars as f64 * STEP + rows.len() as f64 * GAP + 36.0;
    let mut svg = Svg::new(width, height);
    svg.text(MARGIN, 20.0, title, 15.0, Anchor::Start);
    svg.text(
        MARGIN,
        40.0,
        "time, as a multiple of the native time (logarithmic); left of 1 is faster; thin lines: spread of rounds",
        11.0,
        Anchor::Start,
    );
    let present: Vec<_> = ways
        .iter()
        .filter(|way| rows.iter().any(|(_, bars)| bars.iter().any(|(other, _)| other == *way)))
        .map(|way| (*way, colour(way)))
        .collect();
    let top = svg.legend(MARGIN, 52.0, &present) + 26.0;
    let bottom = top + bars as f64 * STEP + rows.len() as f64 * GAP;
    // Room for the figures beside the longest bars.
    let scale = Scale { values: (low / 1.05, high * 1.05), at: (left + 44.0, width - 64.0) };
    for tick in scale.ticks() {
        let x = scale.place(tick);
        svg.line((x, top - 4.0), (x, bottom), FAINT, 1.0);
        svg.text(x, top - 12.0, &format!("{tick}"), 11.0, Anchor::Middle);
        svg.text(x, bottom + 12.0, &format!("{tick}"), 11.0, Anchor::Middle);
    }
    let one = scale.place(1.0);
    let mut y = top;
    for (label, bars) in &rows {
        svg.text(left - 6.0, y + GAP / 2.0 + bars.len() as f64 * STEP / 2.0, label, TEXT, Anchor::End);
        y += GAP / 2.0;
        for (way, ratio) in bars {
            let end = scale.place(ratio.median);
            svg.bar(one.min(end), y, (end - one).abs().max(1.0), BAR, colour(way));
            let (from, to) = (scale.place(ratio.min), scale.place(ratio.max));
            svg.line((from, y + BAR / 2.0), (to, y + BAR / 2.0), INK, 1.0);
            let figure = format!("{}", Ratio(ratio.median));
            match ratio.median < 1.0 {
                true => svg.text(end.min(from) - 4.0, y + BAR / 2.0, &figure, 10.0, Anchor::End),
                false => svg.text(end.max(to) + 4.0, y + BAR / 2.0, &figure, 10.0, Anchor::Start),
            }
            y += STEP;
        }
        y += GAP / 2.0;
        svg.line((MARGIN, y), (width - MARGIN, y), FAINT, 0.5);
    }
    svg.line((one, top - 4.0), (one, bottom), INK, 1.5);
    Some(svg.finish())
}

/// A ratio with three digits.
struct Ratio(f64);

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ratio if ratio < 0.1 => write!(f, "{ratio:.3}"),
            ratio if ratio < 10.0 => write!(f, "{ratio:.2}"),
            ratio if ratio < 100.0 => write!(f, "{ratio:.1}"),
            ratio => write!(f, "{ratio:.0}"),
        }
    }
}

/// A panel for each case, with a curve for each way, over what the cases are measured at. Nothing if no curve has three
/// points.
pub(super) fn curves(title: &str, over: &str, cases: &[&Case], ways: &[&str]) -> Option<String> {
    const WIDTH: f64 = 470.0;
    const HEIGHT: f64 = 300.0;
    let mut names: Vec<&str> = Vec::new();
    for case in cases {
        if !names.contains(&case.name.as_str()) {
            names.push(&case.name);
        }
    }
    let of = |name: &str| {
        cases.iter().filter(move |case| case.name == *name && case.at.is_some()).copied().collect()
    };
    let panels: Vec<(&str, Vec<&Case>)> = names.into_iter().map(|name| (name, of(name))).collect();
    let panels: Vec<_> = panels.into_iter().filter(|(_, cases)| cases.len() >= 3).collect();
    if panels.is_empty() {
        return None;
    }
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(columns);
    let width = columns as f64 * WIDTH;
    let mut svg = Svg::new(width, 90.0 + rows as f64 * HEIGHT);
    svg.text(MARGIN, 20.0, title, 15.0, Anchor::Start);
    let names: Vec<_> = ways.iter().map(|way| (*way, colour(way))).collect();
    let top = svg.legend(MARGIN, 36.0, &names) + 8.0;
    for (index, (name, cases)) in panels.iter().enumerate() {
        let origin = ((index % columns) as f64 * WIDTH, top + (index / columns) as f64 * HEIGHT);
        panel(&mut svg, origin, (WIDTH, HEIGHT), name, over, cases, ways);
    }
    Some(svg.finish())
}

/// The largest power of 1024 that is not larger.
fn binary(bytes: f64) -> f64 {
    (0..4).map(|power| 1024f64.powi(power)).take_while(|unit| *unit <= bytes).last().unwrap_or(1.0)
}

fn panel(
    svg: &mut Svg,
    origin: (f64, f64),
    size: (f64, f64),
    name: &str,
    over: &str,
    cases: &[&Case],
    ways: &[&str],
) {
    let points = |way: &str| {
        let point = |case: &&Case| Some((case.at? as f64, case.spread(way)?.median));
        cases.iter().filter_map(point).filter(|(_, value)| *value > 0.0).collect::<Vec<_>>()
    };
    let all: Vec<(f64, f64)> = ways.iter().flat_map(|way| points(way)).collect();
    let bounds = |part: fn(&(f64, f64)) -> f64| {
        let fold = |pick: fn(f64, f64) -> f64, or| all.iter().map(part).reduce(pick).unwrap_or(or);
        (fold(f64::min, 1.0), fold(f64::max, 2.0))
    };
    let (xs, ys) = (bounds(|point| point.0), bounds(|point| point.1));
    let (left, right) = (origin.0 + 82.0, origin.0 + size.0 - 24.0);
    let (upper, lower) = (origin.1 + 34.0, origin.1 + size.1 - 48.0);
    let across = Scale { values: xs, at: (left, right) };
    let up = Scale { values: (ys.0 / 1.15, ys.1 * 1.15), at: (lower, upper) };
    svg.text(origin.0 + MARGIN, origin.1 + 16.0, name, 13.0, Anchor::Start);
    let unit = cases[0].unit;
    // Round in the unit that is written.
    let whole = if unit == Unit::Bytes { binary(ys.1) } else { 1.0 };
    let round = Scale { values: (up.values.0 / whole, up.values.1 / whole), ..up };
    for tick in round.ticks().into_iter().map(|tick| tick * whole) {
        let y = up.place(tick);
        svg.line((left, y), (right, y), FAINT, 1.0);
        let text = Amount(tick, unit).to_string().replace(".00 ", " ").replace(".0 ", " ");
        svg.text(left - 6.0, y, &text, 11.0, Anchor::End);
    }
    let mut last = f64::NEG_INFINITY;
    for case in cases {
        let Some(at) = case.at else { continue };
        let (x, text) = (across.place(at as f64), Count(at).to_string());
        svg.line((x, upper), (x, lower), FAINT, 1.0);
        // Labels do not touch each other.
        if x - last > width_of(&text, 11.0) + 6.0 {
            svg.text(x, lower + 12.0, &text, 11.0, Anchor::Middle);
            last = x;
        }
    }
    svg.line((left, lower), (right, lower), INK, 1.0);
    svg.line((left, upper), (left, lower), INK, 1.0);
    svg.text((left + right) / 2.0, lower + 30.0, over, 11.0, Anchor::Middle);
    for way in ways {
        let points: Vec<_> = points(way).into_iter().map(|(x, y)| (across.place(x), up.place(y))).collect();
        if !points.is_empty() {
            svg.curve(&points, colour(way));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::record::Sample;

    fn case(at: u64, native: f64, bypass: f64) -> Case {
        let mut case = Case { at: Some(at), ..Case::new("tmpfs", "stat", Unit::Nanoseconds) };
        for (way, value) in [("native", native), ("bypass", bypass)] {
            case.samples.insert(way.to_owned(), vec![Sample::of(0, value)]);
        }
        case
    }

    #[test]
    fn a_scale_has_a_few_round_ticks_however_wide_it_is() {
        for values in [(0.9, 1.3), (0.1, 20.0), (1.0, 1e9), (140.0, 160.0)] {
            let ticks = Scale { values, at: (0.0, 100.0) }.ticks();
            assert!((1..=8).contains(&ticks.len()), "{values:?}: {ticks:?}");
        }
    }

    #[test]
    fn memory_is_counted_in_powers_of_1024() {
        assert_eq!([500.0, 1024.0, 3e6].map(binary), [1.0, 1024.0, 1_048_576.0]);
    }

    #[test]
    fn bars_begin_at_one() {
        let (fast, slow) = (case(1, 100.0, 50.0), case(2, 100.0, 200.0));
        let svg = ratios("title", &[&fast, &slow], &["native", "bypass"]).unwrap();
        assert!(svg.contains(">0.50</text>") && svg.contains(">2.00</text>"), "{svg}");
        assert!(svg.contains(">bypass</text>") && !svg.contains(">native</text>"));
        assert_eq!(ratios("title", &[&fast], &["native"]), None);
    }

    #[test]
    fn a_curve_needs_three_points() {
        let cases = [case(1, 1.0, 2.0), case(2, 1.0, 2.0), case(4, 1.0, 2.0)];
        let all: Vec<_> = cases.iter().collect();
        assert!(curves("title", "threads", &all, &["native", "bypass"]).unwrap().contains("<polyline"));
        assert_eq!(curves("title", "threads", &all[..2], &["native", "bypass"]), None);
    }
}
