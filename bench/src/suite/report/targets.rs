//! What is to be reached, and whether it was.

use super::Amount;
use crate::suite::parts::rest;
use crate::suite::record::{Case, Record, Spread, Unit};
use crate::ways::Way;

/// A target.
struct Target {
    what: &'static str,
    part: &'static str,
    /// How the names of the cases begin and end that it is about, and at what.
    case: (&'static str, &'static str),
    at: At,
    measure: Measure,
    /// What must not be exceeded.
    limit: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Any,
    One,
    /// The largest only.
    Most,
}

enum Measure {
    /// Time of the best of these ways, in units of another's; of several cases the worst.
    Ratio(&'static [Way], Way),
    /// The same of all cases together: their median.
    Typical(Way, Way),
    /// How much longer one takes than the other.
    Difference(&'static str, &'static str),
    /// The value itself, on all ways: the largest.
    Value,
}

/// One line of the report.
#[derive(Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) what: String,
    pub(super) target: String,
    pub(super) measured: String,
    /// `None`: not measured.
    pub(super) met: Option<bool>,
}

const OPENING: &[Way] = &[Way::BYPASS, Way::TABLE, Way::LARGE];
const ALONE: &[Way] = &[Way::BYPASS];
const PRELOADED: &[Way] = &[Way::BYPASS, Way::TABLE];
/// Once, twice … as fast.
const fn times_faster(times: f64) -> f64 {
    1.0 / times
}

const TARGETS: [Target; 24] = [
    of(
        "stat from the metadata table",
        "metadata",
        ("stat, hot", ""),
        Measure::Ratio(&[Way::TABLE], Way::NATIVE),
        times_faster(8.0),
    ),
    of(
        "ENOENT from the metadata table",
        "metadata",
        ("stat, ENOENT", ""),
        Measure::Ratio(&[Way::TABLE], Way::NATIVE),
        times_faster(8.0),
    ),
    of(
        "stat by round trip",
        "metadata",
        ("stat, hot", ""),
        Measure::Ratio(ALONE, Way::NATIVE),
        times_faster(1.5),
    ),
    of("open, close", "metadata", ("open, close", ""), Measure::Ratio(OPENING, Way::NATIVE), 1.0),
    of(
        "open, read 4 KiB, close",
        "metadata",
        ("open, read 4 KiB, close", ""),
        Measure::Ratio(OPENING, Way::NATIVE),
        1.0,
    ),
    of(
        "create, write 4 KiB, close",
        "metadata",
        ("create, write 4 KiB, close", ""),
        Measure::Ratio(OPENING, Way::NATIVE),
        1.2,
    ),
    of("unlink, synchronous", "unlink", ("unlink of", "returned"), Measure::Ratio(ALONE, Way::NATIVE), 1.0),
    of(
        "unlink, synchronous, beside the kernel road",
        "unlink",
        ("unlink of", "returned"),
        Measure::Ratio(ALONE, Way::KERNEL),
        times_faster(3.0),
    ),
    of(
        "deferred unlink, gone and synced",
        "unlink",
        ("unlink of", "gone and synced"),
        Measure::Ratio(&[Way::DEFERRED], Way::NATIVE),
        times_faster(1.3),
    ),
    of(
        "deferred unlink, a burst's return",
        "unlink",
        ("unlink in a burst of", "returned"),
        Measure::Ratio(&[Way::DEFERRED], Way::NATIVE),
        times_faster(3.0),
    ),
    of(
        "data on granted descriptors (median of patterns and jobs)",
        "data",
        ("", ""),
        Measure::Typical(Way::BYPASS, Way::NATIVE),
        1.02,
    ),
    of(
        "data on the kernel road with passthrough (median of patterns and jobs)",
        "data",
        ("", ""),
        Measure::Typical(Way::KERNEL, Way::NATIVE),
        1.10,
    ),
    of(
        "Linux, tinyconfig, preloaded",
        "work",
        ("Linux, tinyconfig", ""),
        Measure::Ratio(PRELOADED, Way::NATIVE),
        1.03,
    ),
    of(
        "git status of many paths, warm, preloaded",
        "work",
        ("git status of", "warm"),
        Measure::Ratio(PRELOADED, Way::NATIVE),
        1.0,
    ),
    of(
        "LOOKUP by io_uring, beside our classic transport",
        "metadata",
        ("stat, cold", ""),
        Measure::Ratio(&[Way::URING], Way::KERNEL),
        times_faster(1.5),
    ),
    of(
        "CREATE by io_uring, beside our classic transport",
        "metadata",
        ("create, close", ""),
        Measure::Ratio(&[Way::URING], Way::KERNEL),
        times_faster(1.5),
    ),
    of(
        "UNLINK by io_uring, beside our classic transport",
        "metadata",
        ("unlink, empty file", ""),
        Measure::Ratio(&[Way::URING], Way::KERNEL),
        times_faster(1.5),
    ),
    of(
        "true, preloaded, over true",
        "rest",
        (rest::START, ""),
        Measure::Difference(rest::STARTS[1], rest::STARTS[0]),
        150_000.0,
    ),
    of(
        "a program that uses the mount once, preloaded, over true",
        "rest",
        (rest::START, ""),
        Measure::Difference(rest::STARTS[3], rest::STARTS[0]),
        500_000.0,
    ),
    of("idle: context switches of the daemon", "rest", (rest::SWITCHES[0], ""), Measure::Value, 0.0),
    of("idle: processor time of the daemon", "rest", (rest::TIMES[0], ""), Measure::Value, 0.0),
    of("idle: context switches of clients", "rest", (rest::SWITCHES[1], ""), Measure::Value, 0.0),
    of("idle: processor time of clients", "rest", (rest::TIMES[1], ""), Measure::Value, 0.0),
    Target {
        at: At::Most,
        ..of(
            "memory for each known inode",
            "scaling",
            ("bytes for each known inode", ""),
            Measure::Value,
            250.0,
        )
    },
];

const fn of(
    what: &'static str,
    part: &'static str,
    case: (&'static str, &'static str),
    measure: Measure,
    limit: f64,
) -> Target {
    let at = match measure {
        Measure::Ratio(..) => At::One,
        _ => At::Any,
    };
    Target { what, part, case, at, measure, limit }
}

/// Judges all targets by what was measured.
pub(super) fn verdicts(records: &[Record]) -> Vec<Verdict> {
    TARGETS.iter().flat_map(|target| target.verdicts(records)).collect()
}

impl Target {
    fn verdicts(&self, records: &[Record]) -> Vec<Verdict> {
        let record = records.iter().find(|record| record.part == self.part);
        let groups = record.map(|record| (record, record.groups()));
        let in_groups = groups.into_iter().flat_map(|(record, groups)| {
            groups.into_iter().filter_map(move |group| {
                let cases: Vec<_> = record.cases.iter().filter(|case| case.group == group).collect();
                self.verdict(group, &cases)
            })
        });
        let verdicts: Vec<_> = in_groups.collect();
        if verdicts.is_empty() {
            let unit = if matches!(self.measure, Measure::Value) { Unit::Bytes } else { Unit::Nanoseconds };
            return vec![Verdict {
                what: self.what.to_owned(),
                target: self.target(unit),
                measured: "not measured".to_owned(),
                met: None,
            }];
        }
        verdicts
    }

    /// Of one group; `None` if it has nothing to do with it.
    fn verdict(&self, group: &str, cases: &[&Case]) -> Option<Verdict> {
        let (begin, end) = self.case;
        let named = |case: &&&Case| case.name.starts_with(begin) && case.name.ends_with(end);
        let mut cases: Vec<&Case> = cases.iter().filter(named).copied().collect();
        match self.at {
            At::Any => {}
            At::One => cases.retain(|case| case.at.is_none_or(|at| at == 1)),
            At::Most => {
                let most = cases.iter().filter_map(|case| case.at).max();
                cases.retain(|case| case.at == most);
            }
        }
        let unit = cases.first()?.unit;
        let (value, measured) = self.measured(&cases)?;
        let target = self.target(unit);
        Some(Verdict {
            what: format!("{}, {group}", self.what),
            target,
            measured,
            met: Some(value <= self.limit),
        })
    }

    fn measured(&self, cases: &[&Case]) -> Option<(f64, String)> {
        let spread = |spread: Spread| format!("{:.3} × ({:.3}–{:.3})", spread.median, spread.min, spread.max);
        match self.measure {
            Measure::Ratio(ways, other) => {
                let best = |case: &&Case| {
                    let ratios =
                        ways.iter().filter_map(|way| Some((way.name, case.ratio(way.name, other.name)?)));
                    ratios.min_by(|one, other| one.1.median.total_cmp(&other.1.median))
                };
                let ratios = cases.iter().filter_map(best);
                let (way, ratio) = ratios.max_by(|one, other| one.1.median.total_cmp(&other.1.median))?;
                Some((ratio.median, format!("{} on {way}", spread(ratio))))
            }
            Measure::Typical(way, other) => {
                let ratios = cases.iter().filter_map(|case| Some(case.ratio(way.name, other.name)?.median));
                let ratio = Spread::of(&ratios.collect::<Vec<_>>())?;
                Some((ratio.median, spread(ratio)))
            }
            Measure::Difference(one, other) => {
                let case = cases.first()?;
                let difference = case.spread(one)?.median - case.spread(other)?.median;
                Some((difference, Amount(difference, case.unit).to_string()))
            }
            Measure::Value => {
                let values = cases.iter().flat_map(|case| {
                    case.samples.keys().filter_map(|way| Some((way, case.spread(way)?.median, case.unit)))
                });
                let (way, value, unit) = values.max_by(|one, other| one.1.total_cmp(&other.1))?;
                Some((value, format!("{} on {way}", Amount(value, unit))))
            }
        }
    }

    fn target(&self, unit: Unit) -> String {
        match self.measure {
            Measure::Ratio(_, other) | Measure::Typical(_, other) => match self.limit {
                limit if limit < 1.0 => format!("{:.1} times faster than {}", 1.0 / limit, other.name),
                limit => format!("at most {limit:.2} × {}", other.name),
            },
            Measure::Difference(..) | Measure::Value => match self.limit {
                0.0 => "none".to_owned(),
                limit => format!("at most {}", Amount(limit, unit)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::record::Sample;

    fn record(bypass: f64) -> Record {
        let mut case = Case { at: Some(1), ..Case::new("tmpfs", "stat, hot", Unit::Nanoseconds) };
        for (way, value) in [("native", 1500.0), ("bypass", bypass)] {
            case.samples.insert(way.to_owned(), vec![Sample::of(0, value)]);
        }
        super::super::tests::record("metadata", vec![case])
    }

    fn verdict(records: &[Record], what: &str) -> Verdict {
        verdicts(records).into_iter().find(|verdict| verdict.what.starts_with(what)).unwrap()
    }

    #[test]
    fn of_several_cases_the_worst_counts_and_of_several_ways_the_best() {
        let case = |name: &str, native, bypass, table| {
            let mut case = Case { at: Some(1), ..Case::new("tmpfs", name, Unit::Nanoseconds) };
            for (way, value) in [("native", native), ("bypass", bypass), ("bypass, table", table)] {
                case.samples.insert(way.to_owned(), vec![Sample::of(0, value)]);
            }
            case
        };
        let cases =
            vec![case("open, close", 100.0, 300.0, 110.0), case("open, close, deep", 100.0, 50.0, 80.0)];
        let verdict = verdict(&[super::super::tests::record("metadata", cases)], "open, close");
        assert!(verdict.met == Some(false) && verdict.measured.starts_with("1.100 ×"), "{verdict:?}");
    }

    #[test]
    fn a_target_is_met_missed_or_not_measured() {
        let met = |bypass| verdict(&[record(bypass)], "stat by round trip").met;
        assert_eq!((met(1000.0), met(1001.0)), (Some(true), Some(false)));
        assert_eq!(verdict(&[record(1.0)], "stat from the metadata table").met, None);
        assert_eq!(verdict(&[], "unlink, synchronous").met, None);
    }

    #[test]
    fn the_target_is_said_in_words() {
        assert_eq!(verdict(&[], "stat by round trip").target, "1.5 times faster than native");
        assert_eq!(verdict(&[], "create, write").target, "at most 1.20 × native");
        assert_eq!(verdict(&[], "idle: context switches of the daemon").target, "none");
        assert_eq!(verdict(&[], "memory for each known inode").target, "at most 250 B");
    }
}
