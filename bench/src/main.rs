//! The Finesse benchmark.
//!
//! | module | does |
//! | --- | --- |
//! | `unlink` | removes a large tree natively, through the kernel and past it |
//! | `latency` | times single calls, and an empty round trip beside a bare cache-line ping-pong |
//! | `metadata` | times calls on names by several threads at once, and the processor time that they take |
//! | `suite` | everything that is measured, part by part, and the report of it |
//! | `upcalls` | counts what unmodified programs ask of the daemon, beside other FUSE file systems |
//! | `demo` | ordinary programs on a real tree, on all three roads |
//! | `bindfs` | a file system to compare with |
//! | `ways` | what is compared: file systems, options, roads |
//! | `daemon` | starts and stops `finesse mount`, runs programs on a road |
//! | `place` | where the trees lie: space, memory, cleaning up |
//! | `tree` | makes and checks trees |
//! | `machine` | what it ran on |
//! | `screen` | progress for people, and the wish to stop |

#![forbid(unsafe_code)]

mod bindfs;
mod daemon;
mod demo;
mod latency;
mod machine;
mod metadata;
mod place;
mod screen;
mod suite;
mod tree;
mod unlink;
mod upcalls;
mod ways;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What went wrong, in one line for a person.
type Failure = String;
type Outcome<T = ()> = Result<T, Failure>;

/// Measure Finesse against the kernel's road and against no FUSE at all.
///
/// Use ratios between figures of one run; absolute figures depend on the machine and its mood.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "\
Examples:
  finesse-bench unlink --files 1000000
  finesse-bench unlink --files 4000000 --backing /var/tmp --rounds 5 --json unlink.json
  finesse-bench latency
  finesse-bench metadata --threads 1,4 --json metadata.json
  finesse-bench suite --linux target/linux
  finesse-bench suite --only metadata,data --scale small --results /tmp/results
  finesse-bench report bench/results
  finesse-bench upcalls --linux target/linux --before ~/old/finesse
  finesse-bench demo

Exit status: 0 if all went well, 1 if not, 2 for wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Unlink(unlink::Unlink),
    Latency(latency::Latency),
    Metadata(metadata::Metadata),
    Suite(suite::Suite),
    Report(suite::Report),
    Upcalls(upcalls::Upcalls),
    Demo(demo::Demo),
    #[command(hide = true)]
    Pong,
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = screen::watch_signals().and_then(|()| match command {
        Command::Unlink(unlink) => unlink.run(),
        Command::Latency(latency) => latency.run(),
        Command::Metadata(metadata) => metadata.run(),
        Command::Suite(suite) => suite.run(),
        Command::Report(report) => report.run(),
        Command::Upcalls(upcalls) => upcalls.run(),
        Command::Demo(demo) => demo.run(),
        Command::Pong => latency::pong(),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("finesse-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
