//! The report: Markdown and plots, made of the JSON files alone.

mod plot;
mod svg;
mod targets;

use std::fmt::{self, Display, Formatter, Write};
use std::path::{Path, PathBuf};

use super::Part;
use super::record::{Case, LeftOut, Record, Unit};
use crate::{Outcome, machine};

/// The report's file name.
const REPORT: &str = "report.md";
/// The table and the plot for the README, and the report's beginning.
const HEADLINE: &str = "headline";
/// The cases of the headline: part, how the name begins and ends, what they are measured at.
const HEADLINES: [(&str, &str, &str, Option<u64>); 13] = [
    ("unlink", "unlink of", "returned", None),
    ("unlink", "unlink of", "gone and synced", None),
    ("metadata", "stat, hot", "", Some(1)),
    ("metadata", "stat, cold", "", Some(1)),
    ("metadata", "stat, ENOENT", "", Some(1)),
    ("metadata", "open, close", "", Some(1)),
    ("metadata", "open, read", "", Some(1)),
    ("metadata", "create, write", "", Some(1)),
    ("metadata", "list the", "", Some(1)),
    ("data", "sequential read", "", Some(1)),
    ("data", "random write", "", Some(1)),
    ("work", "git status of", "warm", None),
    ("work", "Linux, tinyconfig", "", None),
];
/// What takes so much longer than natively, in the median, is called slower; less is noise.
const SLOWER: f64 = 1.02;

/// Writes the report of all records in a directory beside them; returns its path.
///
/// # Errors
/// There is no record.
pub(super) fn write(directory: &Path) -> Outcome<PathBuf> {
    let files = Part::ALL.iter().map(|part| directory.join(part.name()).with_extension("json"));
    let records = files.filter(|file| file.exists()).map(|file| Record::read(&file));
    let records = records.collect::<Outcome<Vec<_>>>()?;
    if records.is_empty() {
        return Err(format!("{}: no results of `finesse-bench suite` are there", directory.display()));
    }
    for stale in plots_in(directory)? {
        std::fs::remove_file(&stale).map_err(|error| format!("{}: {error}", stale.display()))?;
    }
    let mut report = Pages { text: String::new(), directory };
    report.all(&records)?;
    let path = directory.join(REPORT);
    std::fs::write(&path, report.text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

/// Plots that earlier reports have left.
fn plots_in(directory: &Path) -> Outcome<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let ours = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let part = name.split('-').next().unwrap_or_default();
        path.extension().is_some_and(|extension| extension == "svg")
            && (name == HEADLINE || Part::ALL.iter().any(|known| known.name() == part))
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(ours).collect())
}

/// A value with its unit, short enough for a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount(pub(super) f64, pub(super) Unit);

impl Display for Amount {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(value, unit) = *self;
        let (value, unit) = match (unit, value.abs()) {
            (Unit::Nanoseconds, size) if size >= 1e9 => (value / 1e9, " s"),
            (Unit::Nanoseconds, size) if size >= 1e6 => (value / 1e6, " ms"),
            (Unit::Nanoseconds, size) if size >= 1e3 => (value / 1e3, " µs"),
            (Unit::Nanoseconds, _) => return write!(f, "{value:.0} ns"),
            (Unit::Seconds, size) if size > 0.0 && size < 1.0 => (value * 1e3, " ms"),
            (Unit::Seconds, _) => (value, " s"),
            (Unit::MebibytesPerSecond, _) => (value, " MiB/s"),
            (Unit::Bytes, size) if size >= f64::from(1 << 30) => (value / f64::from(1 << 30), " GiB"),
            (Unit::Bytes, size) if size >= f64::from(1 << 20) => (value / f64::from(1 << 20), " MiB"),
            (Unit::Bytes, size) if size >= f64::from(1 << 14) => (value / f64::from(1 << 10), " KiB"),
            (Unit::Bytes, _) => return write!(f, "{value:.0} B"),
            (Unit::Count, _) => return write!(f, "{value:.0}"),
        };
        match value.abs() {
            size if size >= 100.0 => write!(f, "{value:.0}{unit}"),
            size if size >= 10.0 => write!(f, "{value:.1}{unit}"),
            _ => write!(f, "{value:.2}{unit}"),
        }
    }
}

/// A number of threads, processes or files.
#[derive(Clone, Copy, Debug)]
pub(in crate::suite) struct Count(pub(in crate::suite) u64);

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            count if count >= 1_000_000 && count % 100_000 == 0 => write!(f, "{} M", count as f64 / 1e6),
            count if count >= 1_000 && count % 100 == 0 => write!(f, "{} k", count as f64 / 1e3),
            count => write!(f, "{count}"),
        }
    }
}

/// What a case is called where it stands among those measured at other numbers.
fn label(case: &Case) -> String {
    let at = case.at.map_or(String::new(), |at| format!(" @{}", Count(at)));
    let fxmark = case.fxmark.as_ref().map_or(String::new(), |name| format!(" [{name}]"));
    format!("{}{at}{fxmark}", case.name)
}

/// What the numbers after @ count.
fn counted(part: &str, group: &str) -> &'static str {
    match part {
        "data" => "jobs",
        "scaling" if group.starts_with("processes") => "processes",
        "scaling" => "files",
        _ => "threads",
    }
}

/// A part of a file name.
fn slug(text: &str) -> String {
    let word = |character: char| if character.is_ascii_alphanumeric() { character } else { '-' };
    let slug: String = text.chars().map(word).collect();
    slug.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

/// The report while it is being written.
struct Pages<'d> {
    text: String,
    directory: &'d Path,
}

impl Pages<'_> {
    fn add(&mut self, text: impl Display) {
        write!(self.text, "{text}").expect("writing to a string never fails");
    }

    fn table(&mut self, head: &[String], rows: &[Vec<String>]) {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        self.add(format_args!("\n{}{}", line(head), line(&vec!["---".to_owned(); head.len()])));
        rows.iter().for_each(|row| self.add(line(row)));
    }

    /// Writes a plot and shows it.
    fn plot(&mut self, name: &str, title: &str, drawing: Option<String>) -> Outcome {
        let Some(drawing) = drawing else { return Ok(()) };
        let path = self.directory.join(name).with_extension("svg");
        std::fs::write(&path, drawing).map_err(|error| format!("{}: {error}", path.display()))?;
        self.add(format_args!("\n![{title}]({name}.svg)\n"));
        Ok(())
    }

    fn all(&mut self, records: &[Record]) -> Outcome {
        self.add("# Finesse, measured\n\n");
        self.add(
            "Made by `make bench`; `finesse-bench report` makes it again from the JSON files beside it. Figures are medians of \
             rounds in which all ways take turns; in parentheses the smallest and the largest. Ratios (×) are taken pair by pair \
             within a round: above 1 is slower than native, whatever the unit.\n\n",
        );
        self.circumstances(records);
        self.headline(records)?;
        self.targets(records);
        self.slower(records);
        for record in records {
            self.part(record)?;
        }
        Ok(())
    }

    fn circumstances(&mut self, records: &[Record]) {
        let mut machines: Vec<String> = Vec::new();
        for record in records {
            let line = machine::line_of(&record.machine);
            if !machines.contains(&line) {
                machines.push(line);
            }
        }
        machines.iter().for_each(|line| self.add(format_args!("- {line}\n")));
        self.add("\nEach part has been measured by itself:\n");
        let row = |record: &Record| {
            let scale = record.options["scale"].as_str().unwrap_or_default();
            let minutes = record.seconds / 60.0;
            vec![
                record.title.clone(),
                record.began.clone(),
                format!("{minutes:.1}"),
                record.commit.clone(),
                scale.to_owned(),
                record.options["rounds"].to_string(),
                format!("`{}`", record.command),
            ]
        };
        let head =
            ["part", "began (UTC)", "minutes", "commit", "scale", "rounds", "command"].map(str::to_owned);
        self.table(&head, &records.iter().map(row).collect::<Vec<_>>());
        if records.iter().any(|record| record.options["scale"] != "full") {
            self.add("\nWhat was not measured at full scale shows orders of magnitude, and that everything works, no more.\n");
        }
    }

    /// The most telling cases of the first backing.
    fn headline(&mut self, records: &[Record]) -> Outcome {
        let case = |(part, begin, end, at): &(&str, &str, &str, Option<u64>)| {
            let record = records.iter().find(|record| record.part == *part)?;
            record.cases.iter().find(|case| {
                case.name.starts_with(begin)
                    && case.name.ends_with(end)
                    && at.is_none_or(|at| case.at == Some(at))
            })
        };
        let cases: Vec<&Case> = HEADLINES.iter().filter_map(case).collect();
        let (Some(first), Some(record)) = (cases.first(), records.first()) else { return Ok(()) };
        let ways: Vec<&str> = record
            .measured(&cases)
            .into_iter()
            .filter(|way| {
                [
                    "native",
                    "bindfs",
                    "kernel",
                    "kernel, io_uring",
                    "bypass",
                    "bypass, table",
                    "bypass, deferred",
                ]
                .contains(way)
            })
            .collect();
        self.add(format_args!(
            "\n## In short\n\nOn {}, one thread or job where nothing else is said.\n",
            first.group
        ));
        self.cases_table(&cases, &ways, "what", &|case| Case { at: None, fxmark: None, ..case.clone() }.name);
        let named: Vec<Case> =
            cases.iter().map(|case| Case { at: None, fxmark: None, ..(*case).clone() }).collect();
        let title = format!("Finesse beside native access, on {}", first.group);
        self.plot(HEADLINE, &title, plot::ratios(&title, &named.iter().collect::<Vec<_>>(), &ways))
    }

    fn targets(&mut self, records: &[Record]) {
        self.add("\n## Targets\n");
        let verdicts = targets::verdicts(records);
        let rows: Vec<_> = verdicts
            .into_iter()
            .map(|verdict| {
                let met = match verdict.met {
                    Some(true) => "met",
                    Some(false) => "**not met**",
                    None => "—",
                };
                vec![verdict.what, verdict.target, verdict.measured, met.to_owned()]
            })
            .collect();
        self.table(&["what", "target", "measured", ""].map(str::to_owned), &rows);
    }

    fn slower(&mut self, records: &[Record]) {
        let mut slower: Vec<(f64, Vec<String>)> = Vec::new();
        for record in records {
            for case in &record.cases {
                let ratios = case.samples.keys().filter(|way| way.starts_with("bypass"));
                let ratios = ratios.filter_map(|way| Some((way, case.ratio(way, "native")?)));
                let mut ratios: Vec<_> = ratios.filter(|(_, ratio)| ratio.median > SLOWER).collect();
                ratios.sort_by(|one, other| other.1.median.total_cmp(&one.1.median));
                let Some((_, worst)) = ratios.first() else { continue };
                let worst = worst.median;
                let list: Vec<_> =
                    ratios.iter().map(|(way, ratio)| format!("{way} {:.2} ×", ratio.median)).collect();
                slower.push((
                    worst,
                    vec![record.title.clone(), case.group.clone(), label(case), list.join(", ")],
                ));
            }
        }
        slower.sort_by(|one, other| other.0.total_cmp(&one.0));
        self.add("\n## Slower than native\n\n");
        if slower.is_empty() {
            self.add("Nothing that was measured on the bypass.\n");
            return;
        }
        self.add(format_args!(
            "What takes more than {:.0} % longer on the bypass, in the median, the slowest first; after @ the number of {}.\n",
            (SLOWER - 1.0) * 100.0,
            "threads, jobs, processes or files"
        ));
        let rows: Vec<_> = slower.into_iter().map(|(_, row)| row).collect();
        self.table(&["part", "on", "what", "of native"].map(str::to_owned), &rows);
    }

    fn part(&mut self, record: &Record) -> Outcome {
        self.add(format_args!("\n## {}\n\n{}\n\n", record.title, record.about));
        self.add(format_args!("To repeat it: `{}`\n\n", record.command));
        for way in &record.ways {
            let mount = if way.mount.is_empty() { String::new() } else { format!(" (`{}`)", way.mount) };
            self.add(format_args!("- **{}**: {}{mount}\n", way.name, way.what));
        }
        for group in record.groups() {
            self.add(format_args!("\n### {}: {group}\n", record.title));
            let cases: Vec<&Case> = record.cases.iter().filter(|case| case.group == group).collect();
            let ways = record.measured(&cases);
            let over = counted(&record.part, group);
            let what = if cases.iter().any(|case| case.at.is_some()) {
                format!("@ {over}")
            } else {
                "what".to_owned()
            };
            self.cases_table(&cases, &ways, &what, &label);
            self.processor_table(&cases, &ways, over);
            let name = format!("{}-{}", record.part, slug(group));
            let title = format!("{}, {group}", record.title);
            let few = with_few(&cases);
            self.plot(&name, &title, plot::ratios(&title, &few, &ways))?;
            // The names of calls on names say where threads are, so that a curve would have to leave one thread out.
            if record.part != "metadata" {
                self.plot(
                    &format!("{name}-curves"),
                    &format!("{title}, by {over}"),
                    plot::curves(&format!("{title} (both axes logarithmic)"), over, &cases, &ways),
                )?;
            }
        }
        self.left_out(&record.left_out);
        Ok(())
    }

    fn cases_table(&mut self, cases: &[&Case], ways: &[&str], what: &str, name: &dyn Fn(&Case) -> String) {
        let head: Vec<_> = [what].iter().chain(ways).map(|cell| (*cell).to_owned()).collect();
        let row = |case: &&Case| {
            let cell = |way: &&str| {
                let Some(spread) = case.spread(way) else { return String::new() };
                let amount = |value| Amount(value, case.unit);
                let rounds = case.samples.get(*way).map_or(0, Vec::len);
                let mut cell = amount(spread.median).to_string();
                if rounds > 1 {
                    cell += &format!(" ({}–{})", amount(spread.min), amount(spread.max));
                }
                if let (true, Some(ratio)) = (*way != "native", case.ratio(way, "native")) {
                    cell += &format!("<br>{:.2} ×", ratio.median);
                    if rounds > 1 {
                        cell += &format!(" ({:.2}–{:.2})", ratio.min, ratio.max);
                    }
                }
                cell
            };
            std::iter::once(name(case)).chain(ways.iter().map(cell)).collect()
        };
        self.table(&head, &cases.iter().map(row).collect::<Vec<_>>());
    }

    fn processor_table(&mut self, cases: &[&Case], ways: &[&str], over: &str) {
        let with: Vec<_> =
            cases.iter().filter(|case| ways.iter().any(|way| case.processor(way).is_some())).collect();
        if with.is_empty() {
            return;
        }
        self.add(format_args!(
            "\nLatency beside processor time for one call (that of the program + that of the daemon), @ {over}:\n"
        ));
        let head: Vec<_> = ["what"].iter().chain(ways).map(|cell| (*cell).to_owned()).collect();
        let row = |case: &&&Case| {
            let cell = |way: &&str| match (case.spread(way), case.processor(way)) {
                (Some(latency), Some((program, daemon))) => {
                    let amount = |value| Amount(value, Unit::Nanoseconds);
                    format!(
                        "{}<br>{} + {}",
                        Amount(latency.median, case.unit),
                        amount(program),
                        amount(daemon)
                    )
                }
                _ => String::new(),
            };
            std::iter::once(label(case)).chain(ways.iter().map(cell)).collect()
        };
        self.table(&head, &with.iter().map(row).collect::<Vec<_>>());
    }

    fn left_out(&mut self, left_out: &[LeftOut]) {
        if left_out.is_empty() {
            return;
        }
        self.add("\nNot measured:\n\n");
        left_out.iter().for_each(|what| self.add(format_args!("- {}: {}\n", what.what, what.why)));
    }
}

/// Of cases that were measured at many numbers, those at the smallest; a plot of all would be too long.
fn with_few<'c>(cases: &[&'c Case]) -> Vec<&'c Case> {
    const MANY: usize = 16;
    if cases.len() <= MANY {
        return cases.to_vec();
    }
    let least = cases.iter().filter_map(|case| case.at).min();
    cases.iter().filter(|case| case.at == least).copied().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::suite::record::Sample;

    /// A record with these cases.
    pub(super) fn record(part: &str, cases: Vec<Case>) -> Record {
        Record {
            part: part.to_owned(),
            title: format!("Part {part}"),
            about: "About it.".to_owned(),
            command: format!("finesse-bench suite --only {part}"),
            began: "2000-01-01T00:00:00Z".to_owned(),
            seconds: 90.0,
            machine: serde_json::json!({ "kernel": "6.0", "cpus": 2, "cpu": "a CPU", "memory_bytes": 1 << 30 }),
            commit: "0123456789ab".to_owned(),
            options: serde_json::json!({ "scale": "tiny", "rounds": 2 }),
            ways: Vec::new(),
            cases,
            left_out: vec![LeftOut { what: "ext4".to_owned(), why: "no loop device".to_owned() }],
        }
    }

    fn case(name: &str, native: [f64; 2], bypass: [f64; 2]) -> Case {
        let mut case = Case { at: Some(1), ..Case::new("tmpfs", name, Unit::Nanoseconds) };
        for (way, values) in [("native", native), ("bypass", bypass)] {
            let samples = values.into_iter().zip(0..).map(|(value, round)| Sample {
                program_ns: Some(1000.0),
                daemon_ns: Some(500.0),
                ..Sample::of(round, value)
            });
            case.samples.insert(way.to_owned(), samples.collect());
        }
        case
    }

    #[test]
    fn the_report_says_what_was_measured_and_what_was_not() {
        let directory = tempfile::tempdir().unwrap();
        let cases = vec![
            case("stat, hot", [1500.0, 1700.0], [750.0, 800.0]),
            case("open, close", [2000.0, 2000.0], [3000.0, 3400.0]),
        ];
        record("metadata", cases).write(directory.path()).unwrap();
        let stale = directory.path().join("metadata-of-another-group.svg");
        let others = directory.path().join("picture.svg");
        for file in [&stale, &others] {
            std::fs::write(file, "").unwrap();
        }
        let text = std::fs::read_to_string(write(directory.path()).unwrap()).unwrap();
        for expected in [
            "1.60 µs (1.50 µs–1.70 µs)",
            "| 775 ns (750 ns–800 ns)<br>0.49 × (0.47–0.50) |",
            "1.60 µs<br>1.00 µs + 500 ns",
            "Linux 6.0, 2 × a CPU, 1.0 GiB",
            "`finesse-bench suite --only metadata`",
            "- ext4: no loop device",
            "| stat by round trip, tmpfs | 1.5 times faster than native | 0.485 × (0.471–0.500) on bypass | met |",
            "open, close @1 | bypass 1.60 × |",
            "![Part metadata, tmpfs](metadata-tmpfs.svg)",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!stale.exists() && others.exists() && directory.path().join("headline.svg").exists());
    }

    #[test]
    fn an_empty_directory_has_no_report() {
        let directory = tempfile::tempdir().unwrap();
        assert!(write(directory.path()).unwrap_err().contains("no results"));
    }

    #[test]
    fn amounts_are_short() {
        let text = |value, unit| Amount(value, unit).to_string();
        assert_eq!(text(151.4, Unit::Nanoseconds), "151 ns");
        assert_eq!(text(15_140.0, Unit::Nanoseconds), "15.1 µs");
        assert_eq!(text(0.25, Unit::Seconds), "250 ms");
        assert_eq!(text(0.0, Unit::Seconds), "0.00 s");
        assert_eq!(text(240.0, Unit::Bytes), "240 B");
        assert_eq!(text(3.0 * 1024.0 * 1024.0, Unit::Bytes), "3.00 MiB");
        assert_eq!((Count(4_000_000).to_string(), Count(256).to_string()), ("4 M".into(), "256".into()));
    }
}
