//! What a part of the suite has measured: the JSON files, and what the report makes of them.

use std::collections::BTreeMap;
use std::path::Path;

use finesse_bench::median;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Outcome;
use crate::ways::Way;

/// One part's measurements, and all that is needed to repeat them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Its name on the command line.
    pub(crate) part: String,
    /// What it is about.
    pub(crate) title: String,
    /// How it was measured, for the report.
    pub(crate) about: String,
    /// What repeats it.
    pub(crate) command: String,
    /// When it began (UTC, RFC 3339).
    pub(crate) began: String,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    /// What it ran on.
    pub(crate) machine: Value,
    /// The sources that it was built from, as git names them.
    pub(crate) commit: String,
    /// Sizes.
    pub(crate) options: Value,
    /// The ways that were compared.
    pub(crate) ways: Vec<Compared>,
    /// What was measured.
    pub(crate) cases: Vec<Case>,
    /// What was not, and why.
    pub(crate) left_out: Vec<LeftOut>,
}

/// A way that was compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Compared {
    pub(crate) name: String,
    pub(crate) what: String,
    /// The command that mounts it so.
    pub(crate) mount: String,
}

/// What was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeftOut {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Less is better.
    #[serde(rename = "s")]
    Seconds,
    /// Less is better.
    #[serde(rename = "ns")]
    Nanoseconds,
    /// More is better.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
    /// Less is better.
    #[serde(rename = "B")]
    Bytes,
    /// Less is better.
    #[serde(rename = "count")]
    Count,
}

/// One thing that was measured, on several ways.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    /// What it is.
    pub(crate) name: String,
    /// Where the files lay, or what else tells tables apart.
    pub(crate) group: String,
    pub(crate) unit: Unit,
    /// Threads, processes, or whatever it is plotted over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<u64>,
    /// FxMark's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fxmark: Option<String>,
    /// By the ways' names.
    pub(crate) samples: BTreeMap<String, Vec<Sample>>,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) round: u32,
    pub(crate) value: f64,
    /// Processor time of the program for one call, in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) program_ns: Option<f64>,
    /// The same of whoever serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) daemon_ns: Option<f64>,
}

impl Sample {
    /// A value alone.
    pub(crate) fn of(round: u32, value: f64) -> Self {
        Self { round, value, program_ns: None, daemon_ns: None }
    }
}

/// A median with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// Of at least one value.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let fold = |pick: fn(f64, f64) -> f64| values.iter().copied().reduce(pick);
        Some(Self { median: median(values), min: fold(f64::min)?, max: fold(f64::max)? })
    }
}

impl Unit {
    fn more_is_better(self) -> bool {
        self == Self::MebibytesPerSecond
    }
}

impl Case {
    /// A case without measurements.
    pub(crate) fn new(group: &str, name: &str, unit: Unit) -> Self {
        Self {
            name: name.to_owned(),
            group: group.to_owned(),
            unit,
            at: None,
            fxmark: None,
            samples: BTreeMap::new(),
        }
    }

    /// What was measured on one way.
    pub(crate) fn spread(&self, way: &str) -> Option<Spread> {
        let values: Vec<_> = self.samples.get(way)?.iter().map(|sample| sample.value).collect();
        Spread::of(&values)
    }

    /// How much longer one way takes than another, pair by pair within a round: above 1 it is slower, whatever the unit.
    pub(crate) fn ratio(&self, way: &str, other: &str) -> Option<Spread> {
        let (ours, theirs) = (self.samples.get(way)?, self.samples.get(other)?);
        let ratio = |ours: &Sample| {
            let theirs = theirs.iter().find(|theirs| theirs.round == ours.round)?;
            let (over, under) = match self.unit.more_is_better() {
                true => (theirs.value, ours.value),
                false => (ours.value, theirs.value),
            };
            (under > 0.0).then(|| over / under)
        };
        Spread::of(&ours.iter().filter_map(ratio).collect::<Vec<_>>())
    }

    /// Median processor time for one call, of the program and of whoever serves it, in nanoseconds.
    pub(crate) fn processor(&self, way: &str) -> Option<(f64, f64)> {
        let samples = self.samples.get(way)?;
        let part = |of: fn(&Sample) -> Option<f64>| {
            let values: Vec<_> = samples.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| median(&values))
        };
        Some((part(|sample| sample.program_ns)?, part(|sample| sample.daemon_ns)?))
    }
}

/// Cases while they are being measured.
#[derive(Debug, Default)]
pub(crate) struct Cases {
    /// In the order in which they were begun.
    pub(crate) list: Vec<Case>,
    /// What could not be measured.
    pub(crate) left_out: Vec<LeftOut>,
}

impl Cases {
    /// Adds a measurement to the case that is like `case`.
    pub(crate) fn add(&mut self, case: Case, way: &str, sample: Sample) {
        let key = (&case.group, &case.name, case.at);
        let index = match self.list.iter().position(|other| (&other.group, &other.name, other.at) == key) {
            Some(index) => index,
            None => {
                self.list.push(case);
                self.list.len() - 1
            }
        };
        self.list[index].samples.entry(way.to_owned()).or_default().push(sample);
    }

    /// Says why something was not measured; once.
    pub(crate) fn leave_out(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let left_out = LeftOut { what: what.into(), why: why.into() };
        if !self.left_out.contains(&left_out) {
            crate::screen::say(format!("without {}: {}", left_out.what, left_out.why));
            self.left_out.push(left_out);
        }
    }
}

impl Record {
    /// Ways that were measured, in the order of [`Way::ALL`], others after them.
    pub(crate) fn measured<'r>(&'r self, cases: &[&'r Case]) -> Vec<&'r str> {
        let mut names: Vec<&str> = Vec::new();
        for case in cases {
            for name in case.samples.keys() {
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        let place = |name: &str| Way::ALL.iter().position(|way| way.name == name).unwrap_or(usize::MAX);
        names.sort_by_key(|name| place(name));
        names
    }

    /// The groups, in the order in which they appear.
    pub(crate) fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for case in &self.cases {
            if !groups.contains(&case.group.as_str()) {
                groups.push(&case.group);
            }
        }
        groups
    }

    /// Writes it to `PART.json` in a directory.
    pub(crate) fn write(&self, directory: &Path) -> Outcome {
        let path = directory.join(&self.part).with_extension("json");
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        std::fs::write(&path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads one.
    pub(crate) fn read(path: &Path) -> Outcome<Self> {
        let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(unit: Unit, native: &[f64], bypass: &[f64]) -> Case {
        let mut case = Case::new("tmpfs", "stat", unit);
        for (way, values) in [("native", native), ("bypass", bypass)] {
            let samples = values.iter().zip(0..).map(|(value, round)| Sample::of(round, *value));
            case.samples.insert(way.to_owned(), samples.collect());
        }
        case
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        // The machine was twice as slow in the second round, for both.
        let case = case(Unit::Seconds, &[1.0, 2.0, 1.0], &[2.0, 4.0, 3.0]);
        let ratio = case.ratio("bypass", "native").unwrap();
        assert_eq!(ratio, Spread { median: 2.0, min: 2.0, max: 3.0 });
        assert_eq!(case.ratio("bypass", "bindfs"), None);
    }

    #[test]
    fn twice_the_bandwidth_is_half_the_time() {
        let case = case(Unit::MebibytesPerSecond, &[100.0], &[200.0]);
        assert_eq!(case.ratio("bypass", "native").unwrap().median, 0.5);
    }

    #[test]
    fn samples_of_one_case_meet() {
        let mut cases = Cases::default();
        for round in 0..2 {
            cases.add(Case::new("tmpfs", "stat", Unit::Seconds), "native", Sample::of(round, 1.0));
        }
        cases.add(Case::new("ext4", "stat", Unit::Seconds), "native", Sample::of(0, 1.0));
        assert_eq!(cases.list.len(), 2);
        assert_eq!(cases.list[0].samples["native"].len(), 2);
    }
}
