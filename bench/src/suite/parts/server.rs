//! What a file server does with many small files.

use finesse_bench::Shape;

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::place::Need;
use crate::ways::{Way, in_turns};
use crate::{Outcome, daemon, metadata, screen, tree};

pub(in crate::suite) const ABOUT: &str = "\
After \"To FUSE or Not to FUSE\" (FAST '17): files of 4 KiB are created, read in no order, and removed, by 1 and by 32 threads \
(files-cr, files-rd, files-del), spread over directories of 100 files. \"file server\" is a turn of Filebench's personality of that name: \
create and write 128 KiB, append 16 KiB, read all, look at it, remove it. The time is what a thread waits.";

pub(in crate::suite) const WAYS: [Way; 10] = [
    Way::NATIVE,
    Way::BINDFS,
    Way::KERNEL,
    Way::BPF,
    Way::URING,
    Way::BYPASS,
    Way::TABLE,
    Way::LARGE,
    Way::RING,
    Way::DEFERRED,
];

const SIZE: u64 = 4096;
const PER_DIRECTORY: u64 = 100;
/// Turns of the file server for a hundred files: each moves as much as 72 of them.
const TURNS: u64 = 2;
/// In an order in which what is made is removed next.
const OPS: [(&str, &str); 4] = [
    ("create", "files-cr: create, write 4 KiB, close"),
    ("remove", "files-del: unlink"),
    ("random", "files-rd: open, read 4 KiB, close"),
    ("serve", "file server"),
];

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    let sizes = &context.sizes;
    let shape = Shape { dirs: sizes.served.div_ceil(PER_DIRECTORY), files: sizes.served };
    let (dirs, files) = (shape.dirs.to_string(), shape.per_dir());
    let most = sizes.servers.iter().copied().max().unwrap_or(1);
    let need = Need { inodes: 2 * shape.files + shape.dirs + 64 * most, size: SIZE };
    let among = context.ways(Part::Server);
    context.on_backings(need, cases, |place, backing, cases| {
        let bar = screen::bar(
            &format!("file server, {backing}"),
            u64::from(context.rounds) * (among.len() * sizes.servers.len() * OPS.len()) as u64,
        );
        for (round, way) in in_turns(context.rounds, &among) {
            let root = place.backing();
            // Every directory has as many files, so that each number has its place.
            let full = Shape { files: shape.dirs * files, ..shape };
            tree::make(&root, full, SIZE, &indicatif::ProgressBar::hidden())?;
            let mounted = context.ways.mount(way, place)?;
            for threads in sizes.servers {
                for (op, title) in OPS {
                    let all = if op == "serve" { (shape.files * TURNS).div_ceil(100) } else { shape.files };
                    let of_each = all.div_ceil(*threads);
                    let mut command = daemon::calls(way.road)?;
                    command.args(["threads", op]).arg(way.root(place));
                    command.args([&files.to_string(), &of_each.to_string(), &format!("spread:{dirs}")]);
                    command.arg(threads.to_string());
                    let cost = metadata::time(command, &mounted, of_each, *threads)?;
                    let case = Case { at: Some(*threads), ..Case::new(backing, title, Unit::Nanoseconds) };
                    let sample = Sample {
                        round,
                        value: cost.time,
                        program_ns: Some(cost.program),
                        daemon_ns: Some(cost.daemon),
                    };
                    cases.add(case, way.name, sample);
                    bar.inc(1);
                }
            }
            mounted.stop()?;
            tree::remove(&root, full)?;
        }
        bar.finish_and_clear();
        Ok(())
    })
}
