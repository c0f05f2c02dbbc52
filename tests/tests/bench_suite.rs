//! The benchmark suite: every part works, and leaves nothing behind. Figures are not looked at.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use finesse_tests::build;
use finesse_tests::mount::{said, text};
use finesse_tests::needs;
use finesse_tests::wait;
use serde_json::Value;

/// The parts, and a way that each must have measured.
const PARTS: [(&str, &str); 8] = [
    ("unlink", "bypass, known"),
    ("metadata", "bypass"),
    ("data", "bypass, no grant"),
    ("server", "kernel, bpf"),
    ("work", "kernel"),
    ("breakdown", "bypass"),
    ("scaling", "bypass"),
    ("rest", "true, preloaded, not on the mount"),
];

fn suite(results: &Path, only: Option<&str>) -> Command {
    let mut command = Command::new(build::directory().join(build::BENCH));
    command.args(["suite", "--scale", "tiny", "--results"]).arg(results);
    command.args(only.into_iter().flat_map(|part| ["--only", part]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the suite could have left on the machine: its mounts, and its directories.
fn left_behind() -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mounts = mounts.lines().filter(|line| line.contains("/finesse-bench-")).map(str::to_owned);
    let directories = ["/var/tmp".into(), std::env::temp_dir()].into_iter().flat_map(|parent| {
        let entries = fs::read_dir(parent).unwrap().flatten();
        entries.map(|entry| entry.path().to_string_lossy().into_owned())
    });
    mounts.chain(directories.filter(|path| path.contains("/finesse-bench-"))).collect()
}

/// What has come since, once whoever else measures here has had the time to end.
fn nothing_new_since(before: &BTreeSet<String>) {
    let new = || left_behind().difference(before).cloned().collect::<Vec<_>>();
    wait::eventually("an end without remains", || new().is_empty());
}

/// Whether a test of the suite, which mounts file systems of its own, can run here; both hold this lock, as both look for remains.
fn alone(test: &str) -> Option<std::sync::MutexGuard<'static, ()>> {
    static ONE_BY_ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    needs::root(test).then(|| ONE_BY_ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

#[test]
fn every_part_measures_and_reports_and_leaves_nothing_behind() {
    let Some(_alone) = alone("every_part_measures_and_reports_and_leaves_nothing_behind") else { return };
    let before = left_behind();
    let results = tempfile::tempdir().unwrap();
    let output = suite(results.path(), None).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    nothing_new_since(&before);

    let report = fs::read_to_string(results.path().join("report.md")).unwrap();
    for (part, way) in PARTS {
        let record = fs::read_to_string(results.path().join(part).with_extension("json")).unwrap();
        let record: Value = serde_json::from_str(&record).unwrap();
        assert_eq!(record["part"], part);
        assert!(report.contains(&format!("## {}\n", record["title"].as_str().unwrap())), "{part}");
        assert!(report.contains(record["command"].as_str().unwrap()), "{part}");
        let cases = record["cases"].as_array().unwrap();
        let left_out = record["left_out"].as_array().unwrap();
        if cases.is_empty() {
            // Only what the machine lacks is left out as a whole.
            assert!(
                part == "data" && left_out.iter().any(|left| left["why"] == "fio is not installed"),
                "{record}"
            );
            needs::skipped(
                "every_part_measures_and_reports_and_leaves_nothing_behind",
                "data: fio is not installed",
            );
            continue;
        }
        assert!(cases.iter().any(|case| case["samples"][way][0]["value"].is_f64()), "{part}: {way}");
        for case in cases {
            for (way, samples) in case["samples"].as_object().unwrap() {
                let values =
                    samples.as_array().unwrap().iter().map(|sample| sample["value"].as_f64().unwrap());
                let measures = |value: f64| value > 0.0 || ["rest", "breakdown"].contains(&part);
                assert!(values.clone().count() > 0 && values.clone().all(measures), "{part}: {way}: {case}");
            }
        }
    }
    // Every plot that the report shows is there, and is XML.
    let plots: Vec<_> = report.split("](").skip(1).filter_map(|rest| rest.split_once(".svg)")).collect();
    assert!(plots.len() >= PARTS.len(), "{report}");
    for (name, _) in plots {
        let parse = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";
        let plot = results.path().join(format!("{name}.svg"));
        let parsed = Command::new("python3").args(["-c", parse]).arg(plot).output().unwrap();
        assert!(parsed.status.success(), "{name}: {}", said(&parsed));
    }

    // The report is made of the files alone.
    let again = Command::new(build::directory().join(build::BENCH))
        .arg("report")
        .arg(results.path())
        .output()
        .unwrap();
    assert!(again.status.success(), "{}", said(&again));
    assert!(text(&again.stdout).trim().ends_with("report.md"));
    assert_eq!(fs::read_to_string(results.path().join("report.md")).unwrap(), report);
}

#[test]
fn an_interrupted_suite_leaves_nothing_behind() {
    let Some(_alone) = alone("an_interrupted_suite_leaves_nothing_behind") else { return };
    let before = left_behind();
    let results = tempfile::tempdir().unwrap();
    let child = suite(results.path(), Some("unlink")).spawn().unwrap();
    wait::eventually("a mount of the suite's", || {
        let new = left_behind();
        new.difference(&before).any(|what| what.contains("fuse.finesse"))
    });
    let output = interrupt(child);
    assert!(!output.status.success() && text(&output.stderr).contains("interrupted"), "{}", said(&output));
    nothing_new_since(&before);
}

fn interrupt(child: Child) -> std::process::Output {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    child.wait_with_output().unwrap()
}
