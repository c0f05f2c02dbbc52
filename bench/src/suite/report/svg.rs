//! A drawing: as few elements of SVG as plots need. No fonts are embedded, so widths of text are estimated.

use std::fmt::Write;

/// A drawing of a size in pixels.
#[derive(Debug)]
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

/// Where a text's point is in it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Height of usual text.
pub(super) const TEXT: f64 = 12.0;
pub(super) const INK: &str = "#222222";
pub(super) const FAINT: &str = "#dddddd";

/// How wide a text is, at most, in a usual font without serifs.
pub(super) fn width_of(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * 0.58
}

impl Svg {
    /// A white sheet.
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut svg = Self { body: String::new(), width, height };
        svg.bar(0.0, 0.0, width, height, "#ffffff");
        svg
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("writing to a string never fails");
    }

    /// A filled rectangle.
    pub(super) fn bar(&mut self, x: f64, y: f64, width: f64, height: f64, colour: &str) {
        self.push(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
        ));
    }

    /// A line.
    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        self.push(format_args!(
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
            from.0, from.1, to.0, to.1
        ));
    }

    /// A line through points, each of which is marked.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], colour: &str) {
        let list: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(format_args!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
            list.join(" ")
        ));
        for (x, y) in points {
            self.push(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#));
        }
    }

    /// A text whose middle height is at `y`.
    pub(super) fn text(&mut self, x: f64, y: f64, text: &str, size: f64, anchor: Anchor) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{:.1}" font-size="{size}" text-anchor="{anchor}" fill="{INK}">{}</text>"#,
            y + size * 0.35,
            escape(text)
        ));
    }

    /// Coloured squares with names, in lines as long as there is room for; returns where the last line ends.
    pub(super) fn legend(&mut self, left: f64, top: f64, names: &[(&str, &str)]) -> f64 {
        let (mut x, mut y) = (left, top);
        for (name, colour) in names {
            let width = 18.0 + width_of(name, TEXT) + 14.0;
            if x > left && x + width > self.width - 10.0 {
                (x, y) = (left, y + 18.0);
            }
            self.bar(x, y + 3.0, 12.0, 12.0, colour);
            self.text(x + 18.0, y + 9.0, name, TEXT, Anchor::Start);
            x += width;
        }
        y + 18.0
    }

    /// The file.
    pub(super) fn finish(self) -> String {
        let (width, height) = (self.width, self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n{}</svg>\n",
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text(0.0, 0.0, "<a & b>", TEXT, Anchor::Start);
        let file = svg.finish();
        assert!(file.contains(">&lt;a &amp; b&gt;</text>"), "{file}");
        assert!(file.starts_with("<svg ") && file.ends_with("</svg>\n"));
    }

    #[test]
    fn a_legend_that_is_too_long_goes_on_in_the_next_line() {
        let mut svg = Svg::new(200.0, 100.0);
        let names = [("a road with a long name", INK), ("another with a long name", INK)];
        assert_eq!(svg.legend(0.0, 0.0, &names), 36.0);
        assert_eq!(svg.legend(0.0, 0.0, &names[..1]), 18.0);
    }
}
