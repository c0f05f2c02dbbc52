//! Removing a large tree.

use finesse_bench::Shape;

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::place::{Need, Place};
use crate::suite::report::Count;
use crate::unlink::Removal;
use crate::ways::{Way, in_turns};
use crate::{Outcome, screen};

pub(in crate::suite) const ABOUT: &str = "\
An unmodified program calls unlink(2) for every file of a tree, directory by directory (1000 files of 4 KiB in each). \"Returned\" is \
until the last call has; \"gone and synced\" until all files are gone from the backing directory and its file system is synced \
(syncfs). On \"bypass, known\" an unmodified program has looked at every file before, so that the kernel must be told of each that \
goes. Each tree is made anew, for a daemon of its own.";

pub(in crate::suite) const WAYS: [Way; 7] =
    [Way::NATIVE, Way::BINDFS, Way::KERNEL, Way::URING, Way::BYPASS, Way::TABLE, Way::DEFERRED];

/// The bypass while the kernel has all names in its caches.
pub(in crate::suite) const KNOWN: &str = "bypass, known";
const SIZE: u64 = 4096;
const PER_DIRECTORY: u64 = 1000;

fn shape(files: u64) -> Shape {
    Shape { dirs: files.div_ceil(PER_DIRECTORY), files }
}

fn need(files: u64) -> Need {
    Need { inodes: files + shape(files).dirs, size: SIZE }
}

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    let among = context.ways(Part::Unlink);
    // The same way again, with another name.
    let known = context
        .ways
        .among(&[Way::BYPASS])
        .into_iter()
        .filter(|_| context.wants(KNOWN))
        .map(|way| (way, KNOWN));
    let all: Vec<_> = among.iter().map(|way| (*way, way.name)).chain(known).collect();
    for backing in &context.backings {
        let name = backing.to_string_lossy();
        let wanted = context.sizes.unlink;
        // As many as there is room for, halved until they fit.
        let mut files = wanted;
        let place = loop {
            match Place::new(backing, need(files)) {
                Ok(place) => break Some(place),
                Err(why) => {
                    screen::go_on()?;
                    cases.leave_out(format!("{name}: removing {files} files"), why);
                    files /= 2;
                    if files < wanted / 16 {
                        break None;
                    }
                }
            }
        };
        let Some(place) = place else { continue };
        for (files, title, ways) in [
            (files, "unlink of", &all),
            (
                context.sizes.burst,
                "unlink in a burst of",
                &among.iter().map(|way| (*way, way.name)).collect(),
            ),
        ] {
            for (round, (way, called)) in in_turns(context.rounds, ways) {
                let title = format!("{title} {} files", Count(files));
                let label = format!("{name}, {title}, round {}/{} {called}", round + 1, context.rounds);
                let removal =
                    Removal::time(&place, shape(files), SIZE, &context.ways, way, called == KNOWN, &label)?;
                screen::say(format!("{label}: {:.3} s, gone {:.3} s", removal.returned, removal.gone));
                for (what, value) in [("returned", removal.returned), ("gone and synced", removal.gone)] {
                    let case = Case::new(&name, &format!("{title}, {what}"), Unit::Seconds);
                    cases.add(case, called, Sample::of(round, value));
                }
            }
        }
    }
    Ok(())
}
