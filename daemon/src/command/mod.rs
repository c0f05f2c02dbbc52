//! The `finesse` command: mount, unmount, run programs with the bypass, and see how it does.
//!
//! | module | holds |
//! | --- | --- |
//! | `mount`, `options`, `background` | `finesse mount`: checks, `-o` lists, life as a daemon |
//! | `umount` | `finesse umount`, also of mounts that hang |
//! | `run` | `finesse run`: the environment that a preloaded program needs |
//! | `status` | `finesse status` |
//! | `doctor` | `finesse doctor`: what this machine offers |
//! | `man` | manual pages, made from the same descriptions as `--help` |
//! | `mounts` | the mount table and whose mounts are ours |
//! | `sys` | the only `unsafe` of the command |

mod background;
mod doctor;
mod man;
mod mount;
mod mounts;
mod options;
mod policy;
mod run;
mod status;
mod sys;
mod umount;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXIT_STATUS: &str = "\
Exit status:
  0    success
  1    the command failed; one line on standard error says what, on what, and what to do
  2    wrong usage
  125  `finesse run` failed before the program could be started
  126  `finesse run` found the program but could not execute it
  127  `finesse run` did not find the program
  `finesse run` otherwise ends as the program does.";

const EXAMPLES: &str = "\
Examples:
  finesse mount /srv/data /mnt/data        show /srv/data at /mnt/data
  finesse run -- rm -rf /mnt/data/old      a program that takes the bypass
  finesse run bash                         … and everything that a shell starts
  finesse status                           mounts, clients, what was bypassed
  finesse umount /mnt/data
";

/// Fast FUSE file systems for unchanged programs.
///
/// A Finesse mount is an ordinary FUSE mount. Programs started with `finesse run` reach it through shared
/// memory instead of the kernel wherever that is possible, and see the same files.
#[derive(Debug, Parser)]
#[command(name = "finesse", version, after_help = format!("{EXAMPLES}\n{EXIT_STATUS}"), max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(mount::Mount),
    Umount(umount::Umount),
    Run(run::Run),
    Status(status::Status),
    Doctor(doctor::Doctor),
    /// Print the version.
    Version,
    Man(man::Man),
}

/// Why a command failed: one line for a person, and the exit status.
#[derive(Debug)]
pub(crate) struct Failure {
    line: String,
    status: u8,
}

/// What a command ends with.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with exit status 1.
    pub(crate) fn new(line: impl Into<String>) -> Self {
        Self { line: line.into(), status: 1 }
    }

    /// Sets the exit status.
    pub(crate) fn with_status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// `error`'s text without the "(os error 2)" that std appends.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ").and_then(|(before, rest)| Some((before, rest.split_once(')')?.1))) {
        Some((before, after)) => format!("{before}{after}"),
        None => text,
    }
}

/// Runs the command that the process's arguments ask for.
pub(crate) fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Mount(mount) => mount.run(),
        Command::Umount(umount) => umount.run(),
        Command::Run(run) => run.run(),
        Command::Status(status) => status.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Version => print(concat!("finesse ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::Man(man) => man.run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.line.is_empty() {
                eprintln!("finesse: {failure}");
            }
            ExitCode::from(failure.status)
        }
    }
}

/// Writes to standard output. A reader that has gone away (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Outcome {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {}", plain(&error))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_read_without_their_number() {
        assert_eq!(plain(&std::io::Error::from_raw_os_error(2)), "No such file or directory");
        assert_eq!(plain(&std::io::Error::other("odd")), "odd");
        let inside = std::io::Error::other("open: No such file (os error 2); create it");
        assert_eq!(plain(&inside), "open: No such file; create it");
    }
}
