//! `finesse man`: manual pages for `make install`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};

use super::{Cli, Failure, Outcome, plain};

/// Write the manual pages, one for the command, one for each of its subcommands, and those of file formats.
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Man {
    /// The directory to write man1/finesse.1, man1/finesse-mount.1, …, man5/finesse-policy.5 into.
    directory: PathBuf,
}

impl Man {
    /// Runs the command.
    pub(crate) fn run(self) -> Outcome {
        write_all(&self.directory).map_err(|error| {
            Failure::new(format!(
                "cannot write manual pages into {}: {}; the directory must exist",
                self.directory.display(),
                plain(&error)
            ))
        })
    }
}

/// finesse-policy(5), the format of policies.
pub(super) const POLICY: &str = include_str!("finesse-policy.5");

fn write_all(directory: &Path) -> io::Result<()> {
    let [commands, formats] = ["man1", "man5"].map(|section| directory.join(section));
    for section in [&commands, &formats] {
        match std::fs::create_dir(section) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    std::fs::write(formats.join("finesse-policy.5"), POLICY)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let write = |command: clap::Command| {
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        std::fs::write(commands.join(format!("{name}.1")), page(command)?)
    };
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write(subcommand.clone())?;
    }
    write(command)
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let notes = command.get_after_help().map(ToString::to_string);
    let has_subcommands = command.has_subcommands();
    let man = clap_mangen::Man::new(command);
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if has_subcommands {
        man.render_subcommands_section(&mut out)?;
    }
    let Some(notes) = notes else { return Ok(out) };
    // Laid out in lines already; a paragraph that is headed by a line of its own, "Examples:", is a section.
    for paragraph in notes.split("\n\n") {
        let (head, body) = match paragraph.split_once('\n') {
            Some((head, body)) if head.ends_with(':') => (head.trim_end_matches(':'), body),
            _ => ("Notes", paragraph),
        };
        writeln!(out, ".SH {}\n.nf", head.to_uppercase())?;
        for line in body.lines() {
            writeln!(out, "\\&{}", line.replace('\\', "\\e").replace('-', "\\-"))?;
        }
        writeln!(out, ".fi")?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_has_a_page_with_its_examples() {
        let directory = tempfile::tempdir().unwrap();
        Man { directory: directory.path().into() }.run().unwrap();
        for name in ["finesse", "finesse-mount", "finesse-umount", "finesse-run", "finesse-status"] {
            let page = std::fs::read_to_string(directory.path().join(format!("man1/{name}.1"))).unwrap();
            assert!(page.contains(".TH") && page.contains(".SH EXAMPLES"), "{name}");
        }
        let policy = std::fs::read_to_string(directory.path().join("man5/finesse-policy.5")).unwrap();
        assert!(policy.contains(".SH EXAMPLE"));
        assert!(!directory.path().join("man1/finesse-man.1").exists());
    }
}
