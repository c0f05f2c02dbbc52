//! More clients, more files.

use finesse_bench::Shape;

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::daemon::Road;
use crate::place::{Need, Place};
use crate::ways::{Way, in_turns};
use crate::{Outcome, daemon, metadata, screen, tree, unlink};

pub(in crate::suite) const ABOUT: &str = "\
Clients: so many processes at once, all connected, look at files, open and read them, or create them, in directories of their own; the time \
is what a process waits for one call, and the memory that of the daemon while all are connected. Files: a program looks \
at every file of a tree (empty files, 1000 in a directory), first of a mount that has just been made, then again; the time is that \
of one call, the memory that of the daemon afterwards. The \"bytes for each known inode\" are what the daemon has grown by \
while the kernel road's program looked at all files, for each inode that it then knows.";

pub(in crate::suite) const WAYS: [Way; 6] =
    [Way::NATIVE, Way::BINDFS, Way::KERNEL, Way::URING, Way::BYPASS, Way::TABLE];

const SIZE: u64 = 4096;
/// Files of each process.
const OF_PROCESS: u64 = 64;
const PER_DIRECTORY: u64 = 1000;
/// Trees from this size on are looked at in one round alone.
const LARGE: u64 = 1_000_000;
const OPS: [(&str, &str); 4] = [
    ("stat", "stat, hot"),
    ("read", "open, read 4 KiB, close"),
    ("create", "create, write 4 KiB, close"),
    ("remove", "unlink, 4 KiB"),
];

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    clients(context, cases)?;
    files(context, cases)
}

fn clients(context: &Context, cases: &mut Cases) -> Outcome {
    let sizes = &context.sizes;
    let most = sizes.processes.iter().copied().max().unwrap_or(1);
    let shape = Shape { dirs: most, files: most * OF_PROCESS };
    let need = Need { inodes: shape.files + shape.dirs + 2 * sizes.calls + most, size: SIZE };
    let among = context.ways(Part::Scaling);
    context.on_backings(need, cases, |place, backing, cases| {
        let bar = screen::bar(
            &format!("processes, {backing}"),
            u64::from(context.rounds) * (among.len() * sizes.processes.len() * OPS.len()) as u64,
        );
        let group = format!("processes, {backing}");
        for (round, way) in in_turns(context.rounds, &among) {
            let root = place.backing();
            tree::make(&root, shape, SIZE, &indicatif::ProgressBar::hidden())?;
            let mounted = context.ways.mount(way, place)?;
            for processes in sizes.processes {
                let of_each = sizes.calls.div_ceil(*processes);
                for (op, title) in OPS {
                    let mut command = daemon::calls(way.road)?;
                    command.args(["processes", op]).arg(way.root(place));
                    command.args([&OF_PROCESS.to_string(), &of_each.to_string(), "private"]);
                    command.arg(processes.to_string());
                    let mut memory = None;
                    let cost = metadata::time_watched(command, &mounted, of_each, *processes, || {
                        memory = mounted.resident_bytes().ok();
                    })?;
                    let case =
                        |name: &str, unit| Case { at: Some(*processes), ..Case::new(&group, name, unit) };
                    let sample = Sample {
                        round,
                        value: cost.time,
                        program_ns: Some(cost.program),
                        daemon_ns: Some(cost.daemon),
                    };
                    cases.add(case(title, Unit::Nanoseconds), way.name, sample);
                    if let (Some(bytes), "stat") = (memory.flatten(), op) {
                        let case = case("memory of the daemon", Unit::Bytes);
                        cases.add(case, way.name, Sample::of(round, bytes as f64));
                    }
                    bar.inc(1);
                }
            }
            mounted.stop()?;
            tree::remove(&root, shape)?;
        }
        bar.finish_and_clear();
        Ok(())
    })
}

fn files(context: &Context, cases: &mut Cases) -> Outcome {
    let among = context.ways(Part::Scaling);
    for files in context.sizes.trees {
        let shape = Shape { dirs: files.div_ceil(PER_DIRECTORY), files: *files };
        // Empty files need no blocks.
        let need = Need { inodes: shape.files + shape.dirs, size: 0 };
        let rounds = if *files >= LARGE { 1 } else { context.rounds };
        context.on_backings(need, cases, |place, backing, cases| {
            tree::make(
                &place.backing(),
                shape,
                0,
                &screen::bar(&format!("{backing}, {files} files"), *files),
            )?;
            for (round, way) in in_turns(rounds, &among) {
                let label = format!("{backing}, {files} files, round {}/{rounds} {}", round + 1, way.name);
                look(context, place, way, shape, &label, |name, unit, value| {
                    let case =
                        Case { at: Some(*files), ..Case::new(&format!("files, {backing}"), name, unit) };
                    cases.add(case, way.name, Sample::of(round, value));
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn look(
    context: &Context,
    place: &Place,
    way: Way,
    shape: Shape,
    label: &str,
    mut add: impl FnMut(&str, Unit, f64),
) -> Outcome {
    let mounted = context.ways.mount(way, place)?;
    let before = mounted.resident_bytes()?;
    for (name, title) in [("first", "stat of every file, first"), ("again", "stat of every file, again")] {
        let seconds = unlink::calls("stat", way.road, &way.root(place), shape, &format!("{label}: {name}"))?;
        add(title, Unit::Nanoseconds, seconds * 1e9 / shape.files as f64);
    }
    if let (Some(before), Some(after)) = (before, mounted.resident_bytes()?) {
        add("memory of the daemon", Unit::Bytes, after as f64);
        if let (Some(daemon), Road::Kernel) = (mounted.daemon(), way.road) {
            let known = daemon.report()?.mount.known_inodes.max(1);
            add(
                "bytes for each known inode",
                Unit::Bytes,
                after.saturating_sub(before) as f64 / known as f64,
            );
        }
    }
    mounted.stop()
}
