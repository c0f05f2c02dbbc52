//! How large everything is.

use clap::ValueEnum;
use serde::Serialize;

/// A size of the whole suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scale {
    /// To see that everything works: figures mean nothing.
    Tiny,
    /// Every part in short: figures tell orders of magnitude.
    Small,
    /// What reports are made of.
    Full,
}

/// The sizes of one scale.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Sizes {
    /// How long it takes on two CPUs, and what it needs, for people.
    pub(crate) forecast: &'static str,
    /// How often everything is measured.
    pub(crate) rounds: u32,
    /// Files that are removed.
    pub(crate) unlink: u64,
    /// Files that are removed in a burst.
    pub(crate) burst: u64,
    /// Numbers of threads that make calls on names.
    pub(crate) threads: &'static [u64],
    /// Calls on names of all threads together.
    pub(crate) calls: u64,
    /// Files in each directory.
    pub(crate) files: u64,
    /// Files in each directory that is listed.
    pub(crate) listed: u64,
    /// Numbers of jobs that read and write.
    pub(crate) jobs: &'static [u32],
    /// How long they do, in milliseconds.
    pub(crate) job_ms: u64,
    /// The file of each job, in MiB.
    pub(crate) job_mib: u64,
    /// Files of the file server.
    pub(crate) served: u64,
    /// Its threads.
    pub(crate) servers: &'static [u64],
    /// Files of the tree that real programs work on, if no Linux tree is given; with one it is that.
    pub(crate) worked: u64,
    /// Whether real programs work on the Linux tree.
    pub(crate) on_linux: bool,
    /// What is built of Linux.
    pub(crate) target: &'static str,
    /// Paths that git tracks.
    pub(crate) tracked: u64,
    /// Packages of the tree of small files.
    pub(crate) packages: u64,
    /// Round trips of which one round of the breakdown consists.
    pub(crate) trips: u32,
    /// Numbers of client processes.
    pub(crate) processes: &'static [u64],
    /// Numbers of files.
    pub(crate) trees: &'static [u64],
    /// How often a program is started.
    pub(crate) starts: u32,
    /// How long nothing is done, in milliseconds.
    pub(crate) idle_ms: u64,
}

impl Scale {
    /// Its sizes.
    pub(crate) fn sizes(self) -> Sizes {
        match self {
            Self::Tiny => Sizes {
                forecast: "a minute, 2 GiB of memory, 1 GiB in /var/tmp",
                rounds: 1,
                unlink: 300,
                burst: 100,
                threads: &[1, 2],
                calls: 128,
                files: 64,
                listed: 200,
                jobs: &[1],
                job_ms: 50,
                job_mib: 1,
                served: 64,
                servers: &[1, 4],
                worked: 60,
                on_linux: false,
                target: "",
                tracked: 200,
                packages: 5,
                trips: 200,
                processes: &[1, 3],
                trees: &[100, 300],
                starts: 3,
                idle_ms: 100,
            },
            Self::Small => Sizes {
                forecast: "ten minutes, 6 GiB of memory, 6 GiB in /var/tmp",
                rounds: 1,
                unlink: 20_000,
                burst: 5_000,
                threads: &[1, 2, 8],
                calls: 2_000,
                files: 500,
                listed: 2_000,
                jobs: &[1, 4],
                job_ms: 300,
                job_mib: 16,
                served: 5_000,
                servers: &[1, 32],
                worked: 3_000,
                on_linux: false,
                target: "lib/",
                tracked: 20_000,
                packages: 200,
                trips: 5_000,
                processes: &[1, 8, 64],
                trees: &[1_000, 10_000, 50_000],
                starts: 50,
                idle_ms: 3_000,
            },
            Self::Full => Sizes {
                forecast: "five hours, 20 GiB of memory (with less, fewer files are removed from a tmpfs), \
                           30 GiB in /var/tmp",
                rounds: 3,
                unlink: 4_000_000,
                burst: 10_000,
                threads: &[1, 2, 4, 8, 64],
                calls: 10_000,
                files: 1_000,
                listed: 10_000,
                jobs: &[1, 2, 4, 8],
                job_ms: 1_000,
                job_mib: 64,
                served: 50_000,
                servers: &[1, 32],
                worked: 12_000,
                on_linux: true,
                target: "vmlinux",
                tracked: 500_000,
                packages: 2_000,
                trips: 20_000,
                processes: &[1, 2, 4, 8, 16, 32, 64, 128, 256],
                trees: &[1_000, 10_000, 100_000, 1_000_000, 4_000_000],
                starts: 300,
                idle_ms: 10_000,
            },
        }
    }

    /// The name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Full => "full",
        }
    }
}
