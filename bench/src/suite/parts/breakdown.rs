//! What one call consists of.

use std::path::Path;

use finesse_bench::{Shape, clock_cost};
use finesse_ipc::client::Client;
use finesse_ipc::frame::{Op, ROOT, Request};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::daemon::Road;
use crate::latency::{self, Cpus, Pong};
use crate::place::{Need, Place, TMPFS};
use crate::ways::{Mounted, Way, in_turns};
use crate::{Outcome, machine, screen, tree};

pub(in crate::suite) const ABOUT: &str = "\
One stat(2) of a file two levels deep, as RFUSE and XFUSE break it down; medians of many calls. Bypass: \"transport\" is a bare ping-pong of a cache \
line between two processes that spin; \"ring\" what an empty operation takes more (submission, claiming, validation, reply); \
\"engine\" what stat of the root takes more than that, from the engine's cache; \"file system\" what it takes more if the file system \
must be asked; \"client\" what a preloaded program's stat takes more than the same request made without the library. \
Kernel road: \"client\" is stat of what the kernel has cached; \"daemon\" the daemon's processor time for an attribute request \
(AT_STATX_FORCE_SYNC), the file system included; \"transport and reply\" the rest, which is waking and waiting. Pinned puts the caller on one CPU and \
the other side on another.";

pub(in crate::suite) const WAYS: [Way; 3] = [Way::BYPASS, Way::KERNEL, Way::URING];

/// The steps, which are differences, and what they are differences of.
pub(in crate::suite) const STEPS: &str = "steps";
const WHOLE: &str = "whole";
const FILE: &str = "d000000/f00000000";
const SHAPE: Shape = Shape { dirs: 1, files: 1 };

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    let backing = context.backings.first().map_or(Path::new(TMPFS), |backing| backing);
    let place = Place::new(backing, Need { inodes: 16, size: 0 })?;
    tree::make(&place.backing(), SHAPE, 0, &indicatif::ProgressBar::hidden())?;
    let cpus = Cpus::of_this_process()?;
    let mut modes = vec![(false, "free")];
    if machine::cpus() < 2 {
        cases.leave_out("pinned", "there is only one CPU");
    } else {
        modes.push((true, "pinned"));
    }
    let among = context.ways(Part::Breakdown);
    for (round, way) in in_turns(context.rounds, &among) {
        for (pinned, mode) in &modes {
            screen::go_on()?;
            let mounted = context.ways.mount(way, &place)?;
            let mut add = |kind: &str, name: &str, value: f64| {
                let case = Case::new(&format!("{kind}, {mode}"), name, Unit::Nanoseconds);
                cases.add(case, way.name, Sample::of(round, value));
            };
            let sides = pinned.then_some(&cpus);
            let measured = match way.road {
                Road::Bypass => bypass(context, &place, &mounted, sides, &mut add),
                Road::Kernel | Road::Native => kernel(context, &place, &mounted, sides, &mut add),
            };
            latency::pin(None, &cpus.all)?;
            measured?;
            mounted.stop()?;
        }
    }
    Ok(())
}

fn bypass(
    context: &Context,
    place: &Place,
    mounted: &Mounted,
    cpus: Option<&Cpus>,
    add: &mut dyn FnMut(&str, &str, f64),
) -> Outcome {
    let Some(daemon) = mounted.daemon() else { return Ok(()) };
    let (calls, clock) = (context.sizes.trips, clock_cost());
    let (bare, empty, engine, asked, request);
    {
        let client = Client::connect(daemon.socket(), "finesse-bench", 3)
            .map_err(|error| format!("cannot connect to the daemon: {error}"))?;
        let pong = Pong::start()?;
        if let Some(cpus) = cpus {
            latency::pin(None, &cpus.sides[0])?;
            latency::pin(Some(pong.pid()?), &cpus.sides[1])?;
            latency::pin_daemon(daemon, &cpus.sides[1])?;
        }
        let trip = |op: Op, flags: AtFlags, path: &str| {
            let request = Request { base: ROOT, flags: flags.bits(), ..Request::default() };
            let call = || {
                let reply = client.call(op, &request, path.as_bytes(), b"");
                reply.map(drop).map_err(|reason| format!("{path}: left to the kernel: {}", reason.name()))
            };
            latency::samples(calls, clock, call).map(|summary| summary.p50)
        };
        bare = latency::samples(calls, clock, || pong.ping())?.p50;
        empty = trip(Op::Noop, AtFlags::empty(), "")?;
        engine = trip(Op::Stat, AtFlags::EMPTY_PATH, "")?;
        asked = trip(Op::Stat, AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, "")?;
        request = trip(Op::Stat, AtFlags::SYMLINK_NOFOLLOW, FILE)?;
    }
    daemon.report_at_rest()?;
    if let Some(cpus) = cpus {
        latency::pin_daemon(daemon, &cpus.sides[1])?;
    }
    let program = each(context, Road::Bypass, &place.mountpoint())?;
    let native = each(context, Road::Native, &place.backing())?;
    for (name, value) in [
        ("cache line, there and back", bare),
        ("empty operation", empty),
        ("stat of the root, from the engine's cache", engine),
        ("stat of the root, asked of the file system", asked),
        ("stat of a file, without the library", request),
        ("stat of a file, by a preloaded program", program),
        ("stat of a file, natively", native),
    ] {
        add(WHOLE, name, value);
    }
    for (name, value) in [
        ("client", program - request),
        ("transport", bare),
        ("ring", empty - bare),
        ("engine", engine - empty),
        ("file system", asked - engine),
    ] {
        add(STEPS, name, value);
    }
    Ok(())
}

fn kernel(
    context: &Context,
    place: &Place,
    mounted: &Mounted,
    cpus: Option<&Cpus>,
    add: &mut dyn FnMut(&str, &str, f64),
) -> Outcome {
    let (calls, clock) = (context.sizes.trips, clock_cost());
    if let (Some(cpus), Some(daemon)) = (cpus, mounted.daemon()) {
        latency::pin(None, &cpus.sides[0])?;
        latency::pin_daemon(daemon, &cpus.sides[1])?;
    }
    let stat = |root: &Path, flags: AtFlags| {
        let path = root.join(FILE);
        let flags = flags | AtFlags::SYMLINK_NOFOLLOW;
        let call = || match statx(CWD, &path, flags, StatxFlags::BASIC_STATS) {
            Ok(_) => Ok(()),
            Err(errno) => Err(format!("{}: {errno}", path.display())),
        };
        latency::samples(calls, clock, call).map(|summary| summary.p50)
    };
    let cached = stat(&place.mountpoint(), AtFlags::empty())?;
    let before = mounted.processor_time()?;
    let asked = stat(&place.mountpoint(), AtFlags::STATX_FORCE_SYNC)?;
    let served = mounted.processor_time()?.saturating_sub(before) as f64;
    let daemon = served / f64::from(calls + latency::WARM_UP);
    let native = stat(&place.backing(), AtFlags::empty())?;
    for (name, value) in [
        ("stat of a file, cached by the kernel", cached),
        ("stat of a file, asked of the daemon", asked),
        ("stat of a file, natively", native),
    ] {
        add(WHOLE, name, value);
    }
    for (name, value) in
        [("client", cached), ("transport and reply", asked - cached - daemon), ("daemon", daemon)]
    {
        add(STEPS, name, value);
    }
    Ok(())
}

/// The median of stat(2) by an unmodified program, which inherits our CPUs.
fn each(context: &Context, road: Road, root: &Path) -> Outcome<f64> {
    latency::each(road, root, "stat", SHAPE, u64::from(context.sizes.trips)).map(|summary| summary.p50)
}
