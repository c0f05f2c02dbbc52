//! `finesse man`: manual pages for `make install`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, Failure, Outcome, plain};

/// Write the manual pages, one for the command and one for each of its subcommands.
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Man {
    /// The directory to write finesse.1, finesse-mount.1, … into.
    directory: PathBuf,
}

impl Man {
    /// Runs the command.
    pub(crate) fn run(self) -> Outcome {
        clap_mangen::generate_to(Cli::command(), &self.directory).map_err(|error| {
            Failure::new(format!(
                "cannot write manual pages into {}: {}; the directory must exist",
                self.directory.display(),
                plain(&error)
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page() {
        let directory = tempfile::tempdir().unwrap();
        Man { directory: directory.path().into() }.run().unwrap();
        for page in ["finesse", "finesse-mount", "finesse-umount", "finesse-run", "finesse-status"] {
            let page = directory.path().join(format!("{page}.1"));
            assert!(std::fs::read_to_string(&page).unwrap().contains(".TH"), "{}", page.display());
        }
    }
}
