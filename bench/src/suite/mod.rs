//! `finesse-bench suite`: everything that is measured, one part after the other; `finesse-bench report`: what is made of it.

mod parts;
mod record;
mod report;
mod scale;
mod uring;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::place::{EXT4, Need, Place, TMPFS};
use crate::ways::{Way, Ways};
use crate::{Outcome, machine, screen};
use record::{Cases, Compared, LeftOut, Record};
use scale::{Scale, Sizes};

/// Measure everything, and write a report: JSON, Markdown and plots.
///
/// Each part compares native access, bindfs, plain FUSE (our daemon's kernel road), the kernel road with BPF programs and over
/// io_uring, and the bypass with its options, in turns, on a tmpfs and on an ext4 in a file. What this machine or this build
/// does not have is left out, and the report says why. A part's file is written when it has been measured; the report is made of all
/// files in the directory, so parts may be measured at different times. For figures that mean something the machine must do nothing
/// else.
#[derive(Debug, Args)]
pub(crate) struct Suite {
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// How large everything is.
    #[arg(long, value_enum, default_value = "full")]
    scale: Scale,
    /// How often everything is measured [default: by the scale].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Where the trees lie: "tmpfs" and "ext4" are private ones (root only), others directories.
    #[arg(long, value_name = "DIR", value_delimiter = ',', default_values = [TMPFS, EXT4])]
    backings: Vec<PathBuf>,
    /// Only these ways, by their names in the report ("native", "bypass, table"); may be given several times.
    #[arg(long = "way", value_name = "NAME")]
    ways: Vec<String>,
    /// An unpacked Linux source tree, which is built, cloned and unpacked.
    #[arg(long, value_name = "DIR")]
    linux: Option<PathBuf>,
    /// Where the report goes.
    #[arg(long, value_name = "DIR", default_value = "bench/results")]
    results: PathBuf,
}

/// Make the report anew from the JSON files in a directory.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// The directory.
    results: PathBuf,
}

/// A part of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Removes a large tree, and bursts of files.
    Unlink,
    /// Calls on names by several threads.
    Metadata,
    /// Reading and writing, by fio.
    Data,
    /// What a file server does.
    Server,
    /// Real programs.
    Work,
    /// What a call consists of.
    Breakdown,
    /// More clients, more files.
    Scaling,
    /// What Finesse costs where it has nothing to do.
    Rest,
}

/// What parts measure with.
struct Context {
    sizes: Sizes,
    rounds: u32,
    backings: Vec<PathBuf>,
    linux: Option<PathBuf>,
    ways: Ways,
    /// The names of those that are wanted; all if empty.
    wanted: Vec<String>,
}

impl Part {
    /// In the order of the report.
    pub(crate) const ALL: [Self; 8] = [
        Self::Unlink,
        Self::Metadata,
        Self::Data,
        Self::Server,
        Self::Work,
        Self::Breakdown,
        Self::Scaling,
        Self::Rest,
    ];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unlink => "unlink",
            Self::Metadata => "metadata",
            Self::Data => "data",
            Self::Server => "server",
            Self::Work => "work",
            Self::Breakdown => "breakdown",
            Self::Scaling => "scaling",
            Self::Rest => "rest",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Unlink => "Removing files",
            Self::Metadata => "Calls on names",
            Self::Data => "Reading and writing",
            Self::Server => "A file server",
            Self::Work => "Real work",
            Self::Breakdown => "What one call consists of",
            Self::Scaling => "More clients, more files",
            Self::Rest => "Where there is nothing to do",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Unlink => parts::unlink::ABOUT,
            Self::Metadata => parts::metadata::ABOUT,
            Self::Data => parts::data::ABOUT,
            Self::Server => parts::server::ABOUT,
            Self::Work => parts::work::ABOUT,
            Self::Breakdown => parts::breakdown::ABOUT,
            Self::Scaling => parts::scaling::ABOUT,
            Self::Rest => parts::rest::ABOUT,
        }
    }

    fn ways(self) -> &'static [Way] {
        match self {
            Self::Unlink => &parts::unlink::WAYS,
            Self::Metadata => &parts::metadata::WAYS,
            Self::Data => &parts::data::WAYS,
            Self::Server => &parts::server::WAYS,
            Self::Work => &parts::work::WAYS,
            Self::Breakdown => &parts::breakdown::WAYS,
            Self::Scaling => &parts::scaling::WAYS,
            Self::Rest => &parts::rest::WAYS,
        }
    }

    fn measure(self, context: &Context, cases: &mut Cases) -> Outcome {
        match self {
            Self::Unlink => parts::unlink::measure(context, cases),
            Self::Metadata => parts::metadata::measure(context, cases),
            Self::Data => parts::data::measure(context, cases),
            Self::Server => parts::server::measure(context, cases),
            Self::Work => parts::work::measure(context, cases),
            Self::Breakdown => parts::breakdown::measure(context, cases),
            Self::Scaling => parts::scaling::measure(context, cases),
            Self::Rest => parts::rest::measure(context, cases),
        }
    }
}

impl Context {
    /// Those of the ways that can be taken, and are wanted.
    fn ways(&self, part: Part) -> Vec<Way> {
        self.ways.among(part.ways()).into_iter().filter(|way| self.wants(way.name)).collect()
    }

    /// Whether a way of this name is wanted.
    fn wants(&self, way: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|name| name == way)
    }

    /// Calls `measure` for a place on each backing; what has no place is left out.
    fn on_backings(
        &self,
        need: Need,
        cases: &mut Cases,
        mut measure: impl FnMut(&Place, &str, &mut Cases) -> Outcome,
    ) -> Outcome {
        for backing in &self.backings {
            let name = backing.to_string_lossy();
            match Place::new(backing, need) {
                Ok(place) => measure(&place, &name, cases)?,
                Err(why) => {
                    screen::go_on()?;
                    cases.leave_out(name, why);
                }
            }
        }
        Ok(())
    }
}

impl Suite {
    /// Runs it.
    pub(crate) fn run(self) -> Outcome {
        let sizes = self.scale.sizes();
        let known: Vec<_> = Way::ALL.iter().map(|way| way.name).chain([parts::unlink::KNOWN]).collect();
        if let Some(name) = self.ways.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("there is no way \"{name}\"; there are: \"{}\"", known.join("\", \"")));
        }
        screen::say(machine::line());
        let parts = if self.only.is_empty() { Part::ALL.to_vec() } else { self.only.clone() };
        let names: Vec<_> = parts.iter().map(|part| part.name()).collect();
        screen::say(format!(
            "{} at {} scale; all parts take about {}",
            names.join(", "),
            self.scale.name(),
            sizes.forecast
        ));
        std::fs::create_dir_all(&self.results)
            .map_err(|error| format!("{}: {error}", self.results.display()))?;
        let found =
            |linux: &PathBuf| linux.canonicalize().map_err(|error| format!("{}: {error}", linux.display()));
        let linux = self.linux.as_ref().map(found).transpose()?;
        let _uring = uring::Allowed::new();
        let context = Context {
            sizes,
            rounds: self.rounds.unwrap_or(sizes.rounds),
            backings: self.backings.clone(),
            linux,
            ways: Ways::probe()?,
            wanted: self.ways.clone(),
        };
        let mut failed = Vec::new();
        for part in parts {
            screen::say(format!("== {}", part.title()));
            let (outcome, record) = self.measure(part, &context);
            record.write(&self.results)?;
            screen::go_on()?;
            if let Err(why) = outcome {
                screen::say(format!("{}: {why}", part.name()));
                failed.push(part.name());
            }
        }
        let report = report::write(&self.results)?;
        println!("{}", report.display());
        if failed.is_empty() { Ok(()) } else { Err(format!("parts that failed: {}", failed.join(", "))) }
    }

    fn measure(&self, part: Part, context: &Context) -> (Outcome, Record) {
        let (began, start) = (said_by("date", &["-u", "+%FT%TZ"]), Instant::now());
        let mut cases = Cases::default();
        for (way, why) in &context.ways.left_out {
            if part.ways().contains(way) {
                cases.leave_out(way.name, why);
            }
        }
        for way in part.ways().iter().filter(|way| !context.wants(way.name)) {
            cases.leave_out(way.name, "not asked for (--way)");
        }
        let outcome = part.measure(context, &mut cases);
        if let Err(why) = &outcome {
            cases.left_out.push(LeftOut { what: "what comes after".to_owned(), why: why.clone() });
        }
        let compared = |way: &Way| Compared {
            name: way.name.to_owned(),
            what: way.what.to_owned(),
            mount: context.ways.command(*way),
        };
        let record = Record {
            part: part.name().to_owned(),
            title: part.title().to_owned(),
            about: part.about().to_owned(),
            command: self.command(part),
            began,
            seconds: start.elapsed().as_secs_f64(),
            machine: machine::describe(),
            commit: commit(),
            options: json!({ "scale": self.scale.name(), "rounds": context.rounds, "sizes": context.sizes }),
            ways: context.ways(part).iter().map(compared).collect(),
            cases: cases.list,
            left_out: cases.left_out,
        };
        (outcome, record)
    }

    /// What repeats one part.
    fn command(&self, part: Part) -> String {
        let mut command = format!("finesse-bench suite --only {} --scale {}", part.name(), self.scale.name());
        if let Some(rounds) = self.rounds {
            command += &format!(" --rounds {rounds}");
        }
        let backings: Vec<_> = self.backings.iter().map(|backing| backing.to_string_lossy()).collect();
        if backings != [TMPFS, EXT4] {
            command += &format!(" --backings {}", backings.join(","));
        }
        for way in &self.ways {
            command += &format!(" --way \"{way}\"");
        }
        if self.linux.is_some() && part == Part::Work {
            command += " --linux LINUX";
        }
        command
    }
}

impl Report {
    /// Runs it.
    pub(crate) fn run(self) -> Outcome {
        println!("{}", report::write(&self.results)?.display());
        Ok(())
    }
}

/// What a small program says; nothing if there is no such program.
fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.ok().filter(|output| output.status.success());
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The sources beside which this program lies, as git names them.
fn commit() -> String {
    let executable = std::env::current_exe().unwrap_or_default();
    let directory = executable.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
    let described = said_by("git", &["-C", &directory, "describe", "--always", "--dirty", "--abbrev=12"]);
    if described.is_empty() { format!("version {}", env!("CARGO_PKG_VERSION")) } else { described }
}
