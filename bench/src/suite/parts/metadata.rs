//! Calls on names by several threads.

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::Outcome;
use crate::metadata::Plan;
use crate::ways::Way;

pub(in crate::suite) const ABOUT: &str = "\
Calls of an unmodified program on names, by so many threads, each in a directory of its own (\"private\"), all in one (\"shared\"), or all \
on one file. The time is what a thread waits for one call. Names are composed beforehand, and every call that can be repeated has \
been made once before it is timed, files that are opened have been read, so caches are hot; for \"stat, cold\" the file system is mounted anew and the kernel drops its \
caches (a native tmpfs has nothing that could be dropped). Files have 4 KiB; directories that are listed have more files than the others, \
and the time is that of one listing. FxMark's names are those of the same operation there, as RFUSE ran them; its create and unlink \
are of empty files.";

pub(in crate::suite) const WAYS: [Way; 8] =
    [Way::NATIVE, Way::BINDFS, Way::KERNEL, Way::BPF, Way::URING, Way::BYPASS, Way::TABLE, Way::LARGE];

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    let sizes = &context.sizes;
    let plan = Plan {
        threads: sizes.threads.to_vec(),
        calls: sizes.calls,
        files: sizes.files,
        listed: sizes.listed,
        rounds: context.rounds,
    };
    let among = context.ways(Part::Metadata);
    context.on_backings(plan.need(), cases, |place, backing, cases| {
        let costs = plan.measure(place, &context.ways, &among, |what, why| cases.leave_out(what, why))?;
        for (round, kind, way, cost) in costs.0 {
            let case = Case {
                at: Some(kind.threads),
                fxmark: kind.fxmark().map(str::to_owned),
                ..Case::new(backing, &kind.title(), Unit::Nanoseconds)
            };
            let sample = Sample {
                round,
                value: cost.time,
                program_ns: Some(cost.program),
                daemon_ns: Some(cost.daemon),
            };
            cases.add(case, way.name, sample);
        }
        Ok(())
    })
}
