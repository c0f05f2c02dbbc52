//! What `stat` of a cached file costs an unmodified program while a bypass client is connected, beside what it costs
//! without one.

use std::path::Path;
use std::process::Command;

use finesse_bench::{Shape, median};
use serde_json::{Value, json};

use super::subject::Subject;
use crate::place::Place;
use crate::{Outcome, daemon, screen, tree};

/// How often both are measured, in turns.
const ROUNDS: usize = 21;
/// Calls of one measurement.
const CALLS: u32 = 20_000;
/// Size of each file.
const SIZE: u64 = 4096;

/// Nanoseconds of one call on a mount: the median of each round.
#[derive(Debug)]
pub(super) struct StatCost {
    mount: String,
    without: Vec<f64>,
    with: Vec<f64>,
}

impl StatCost {
    /// Measures it on one mount of each subject that takes clients.
    pub(super) fn of(place: &Place, shape: Shape, subjects: &[Subject]) -> Outcome<Vec<Self>> {
        let root = place.backing().join("cached");
        std::fs::create_dir(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        tree::make(&root, shape, SIZE, &indicatif::ProgressBar::hidden())?;
        let mut costs = Vec::new();
        for subject in subjects.iter().filter(|subject| subject.takes_clients()) {
            let mut mount = subject.mount(&root, &place.mountpoint())?;
            let bar = screen::bar("stat of cached files", ROUNDS as u64);
            // The first is not counted: it fills the kernel's caches.
            time(&place.mountpoint(), shape)?;
            let mut cost = Self { mount: subject.name().to_owned(), without: Vec::new(), with: Vec::new() };
            for _ in 0..ROUNDS {
                cost.without.push(time(&place.mountpoint(), shape)?);
                mount.connect()?;
                cost.with.push(time(&place.mountpoint(), shape)?);
                mount.disconnect()?;
                bar.inc(1);
            }
            bar.finish_and_clear();
            mount.stop()?;
            costs.push(cost);
        }
        std::fs::remove_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
        Ok(costs)
    }

    /// All of them, as a table.
    pub(super) fn to_text(costs: &[Self]) -> String {
        let row = |cost: &Self| {
            let (without, with) = (median(&cost.without), median(&cost.with));
            let ratio = format!("{:.3}", with / without);
            vec![cost.mount.clone(), format!("{without:.0}"), format!("{with:.0}"), ratio]
        };
        let head = ["stat of a cached file", "ns", "with an idle client, ns", "ratio"];
        screen::table(&head, &costs.iter().map(row).collect::<Vec<_>>())
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "on": self.mount, "without_client_ns": self.without, "with_idle_client_ns": self.with })
    }
}

/// The median of the calls of one process.
fn time(mountpoint: &Path, shape: Shape) -> Outcome<f64> {
    let mut command = Command::new(daemon::program("finesse-bench-calls")?);
    command.args(["each", "stat"]).arg(mountpoint);
    command.args([shape.dirs.to_string(), shape.files.to_string(), CALLS.to_string()]);
    let mut median = None;
    daemon::run(command, |line| {
        let p50 = line.strip_prefix("summary ").and_then(|rest| rest.split(' ').next());
        median = p50.and_then(|p50| p50.parse().ok()).or(median);
    })?;
    median.ok_or_else(|| "finesse-bench-calls did not tell the median".to_owned())
}
