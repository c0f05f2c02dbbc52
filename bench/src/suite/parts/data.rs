//! Reading and writing, by fio.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::daemon;
use crate::place::Need;
use crate::ways::{Mounted, Way, in_turns};
use crate::{Outcome, screen};

pub(in crate::suite) const ABOUT: &str = "\
fio reads and writes by pread(2) and pwrite(2), in so many threads (jobs) with a file each that was written beforehand, through the page cache. \
Sequentially in blocks of 128 KiB, randomly in blocks of 4 KiB. The bandwidth is that of all jobs together. On the bypass fio connects with its first call \
(FINESSE_CONNECT_AFTER=0), as one or two jobs open their files before it would otherwise.";

pub(in crate::suite) const WAYS: [Way; 8] = [
    Way::NATIVE,
    Way::BINDFS,
    Way::KERNEL,
    Way::KERNEL_NO_GRANT,
    Way::URING,
    Way::BYPASS,
    Way::LARGE,
    Way::RING,
];

/// fio's names of patterns, the block sizes, and what they are called.
const PATTERNS: [(&str, &str, &str); 4] = [
    ("read", "128k", "sequential read, 128 KiB"),
    ("write", "128k", "sequential write, 128 KiB"),
    ("randread", "4k", "random read, 4 KiB"),
    ("randwrite", "4k", "random write, 4 KiB"),
];

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    let version = Command::new("fio").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !version.is_ok_and(|status| status.success()) {
        cases.leave_out("all of it", "fio is not installed");
        return Ok(());
    }
    let sizes = &context.sizes;
    let jobs = sizes.jobs.iter().copied().max().unwrap_or(1);
    let bytes = sizes.job_mib << 20;
    let need = Need { inodes: u64::from(jobs), size: bytes };
    let among = context.ways(Part::Data);
    context.on_backings(need, cases, |place, backing, cases| {
        let contents: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
        for job in 0..jobs {
            let path = place.backing().join(format!("job.{job}"));
            std::fs::write(&path, &contents).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        crate::tree::sync(&place.backing())?;
        let bar = screen::bar(
            &format!("fio, {backing}"),
            u64::from(context.rounds) * (among.len() * PATTERNS.len() * sizes.jobs.len()) as u64,
        );
        for (round, way) in in_turns(context.rounds, &among) {
            let mounted = context.ways.mount(way, place)?;
            for (pattern, block, title) in PATTERNS {
                for jobs in sizes.jobs {
                    let command =
                        fio(way, &way.root(place), pattern, block, *jobs, sizes.job_mib, sizes.job_ms)?;
                    let (bandwidth, daemon_ns) = run(command, &mounted)?;
                    let case = Case {
                        at: Some(u64::from(*jobs)),
                        ..Case::new(backing, title, Unit::MebibytesPerSecond)
                    };
                    let sample = Sample { daemon_ns: Some(daemon_ns), ..Sample::of(round, bandwidth) };
                    cases.add(case, way.name, sample);
                    // What was written is on the disk before the next begins to write.
                    crate::tree::sync(&place.backing())?;
                    bar.inc(1);
                }
            }
            mounted.stop()?;
        }
        bar.finish_and_clear();
        Ok(())
    })
}

fn fio(way: Way, root: &Path, pattern: &str, block: &str, jobs: u32, mib: u64, ms: u64) -> Outcome<Command> {
    let mut command = daemon::command(way.road, Path::new("fio"))?;
    command.env(daemon::CONNECT_AFTER, "0");
    // A job that is called as a file in the working directory is on that file.
    command.current_dir(root).args([
        "--name=transfer",
        "--filename_format=job.$jobnum",
        "--ioengine=psync",
        "--thread",
    ]);
    // What it would prepare is prepared, and nothing is dropped from the page cache.
    command.args(["--fallocate=none", "--invalidate=0", "--allow_file_create=0", "--group_reporting"]);
    command.args(["--time_based", "--output-format=json", "--randrepeat=1"]);
    command.arg(format!("--directory={}", root.display()));
    command.args([format!("--rw={pattern}"), format!("--bs={block}"), format!("--size={mib}m")]);
    command.args([format!("--numjobs={jobs}"), format!("--runtime={ms}ms")]);
    Ok(command)
}

/// The bandwidth in MiB/s, and the daemon's processor time for each transfer, in nanoseconds.
fn run(command: Command, mounted: &Mounted) -> Outcome<(f64, f64)> {
    let before = mounted.processor_time()?;
    let mut said = String::new();
    daemon::run(command, |line| {
        said.push_str(line);
        said.push('\n');
    })?;
    let served = mounted.processor_time()?.saturating_sub(before) as f64;
    let (bandwidth, transfers) = parse(&said)?;
    Ok((bandwidth / f64::from(1 << 20), served / transfers.max(1.0)))
}

/// Bytes a second and transfers, of what fio says.
fn parse(said: &str) -> Outcome<(f64, f64)> {
    // It may begin with notes.
    let json = said.find('{').map_or("", |begin| &said[begin..]);
    let report: Value = serde_json::from_str(json).map_err(|error| format!("what fio says: {error}"))?;
    let sum = |key: &str| {
        ["read", "write"].iter().filter_map(|side| report["jobs"][0][side][key].as_f64()).sum::<f64>()
    };
    match (sum("bw_bytes"), sum("total_ios")) {
        (bandwidth, transfers) if bandwidth > 0.0 => Ok((bandwidth, transfers)),
        _ => Err("fio transferred nothing".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_before_what_fio_says_are_skipped() {
        let said = "note: synchronous\n{ \"jobs\": [ { \"read\": { \"bw_bytes\": 1048576, \"total_ios\": 256 }, \
                    \"write\": { \"bw_bytes\": 0, \"total_ios\": 0 } } ] }";
        assert_eq!(parse(said), Ok((1_048_576.0, 256.0)));
        assert!(parse("fio: failed").is_err());
    }
}
