//! Places where scripts are performed.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::mount::MountFlags;
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::script::{PROCESSES, Script};
use crate::build;
use crate::mount::{self, Options};
use crate::road::{self, Place, Road};
use crate::tree::{self, Times};

/// How long a script may take, on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);
/// The ordinary user, with a supplementary group.
const ORDINARY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--groups=65533,100"];
/// Both kinds of processes are started through a program that changes who they are, or does not.
const ROOT: &[&str] = &["setpriv"];

/// Which of a script's processes are preloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roads {
    /// On no mount at all.
    Native,
    /// None.
    Kernel,
    /// All.
    Bypass,
    /// Those that the script says.
    Mixed,
}

impl Roads {
    /// All of them; the first is the measure of the others.
    pub const ALL: [Self; 4] = [Self::Native, Self::Kernel, Self::Bypass, Self::Mixed];
}

/// The file system that scripts are performed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The passthrough, with these options.
    Passthrough(&'static [&'static str]),
    /// The one in memory.
    Memory,
}

/// In which order the actors make their calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// That of the script.
    OfTheScript,
    /// Each goes through its own calls as fast as it can.
    None,
}

/// What a script has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What each call said.
    pub results: Vec<String>,
    /// What is there afterwards, seen by a process that is not preloaded.
    pub tree: String,
    /// The same, seen in the source directory.
    pub source: String,
}

/// A place that scripts are performed in, each in a directory of its own.
#[derive(Debug)]
pub struct Site {
    /// Which road its processes take.
    pub roads: Roads,
    place: Place,
    /// Where files are made for scripts and looked at afterwards, past the mount if they are anywhere else.
    files: PathBuf,
    outside: PathBuf,
    scripts: usize,
    logged: usize,
}

impl Drop for Site {
    fn drop(&mut self) {
        mount::unmount(&self.outside);
    }
}

/// What is needed to run programs as any user.
#[derive(Debug)]
pub struct Programs {
    directory: TempDir,
    performer: PathBuf,
}

impl Programs {
    /// Builds them.
    pub fn new() -> Self {
        let directory = build::for_all_users();
        let performer = super::performer::compile(directory.path());
        Self { directory, performer }
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self::new()
    }
}

impl Site {
    /// Makes the place, and mounts it unless it is native.
    pub fn new(roads: Roads, subject: Subject) -> Self {
        let road = match roads {
            Roads::Native => Road::Native,
            Roads::Kernel => Road::Kernel,
            Roads::Bypass | Roads::Mixed => Road::Bypass,
        };
        let place = match subject {
            Subject::Passthrough(arguments) => {
                Place::new(road, &Options { arguments, ..Options::default() }, |_| ())
            }
            Subject::Memory => Place::of_memory(road, &Options::default()),
        };
        let files = match subject {
            Subject::Passthrough(_) => place.source(),
            Subject::Memory => place.path(),
        };
        let files = files.to_owned();
        let outside = place.source().parent().expect("below a home").join("outside");
        fs::create_dir(&outside).unwrap();
        // A file system of its own everywhere, as it is another one than the mount.
        rustix::mount::mount("tmpfs", &outside, "tmpfs", MountFlags::empty(), None).unwrap();
        Self { roads, place, files, outside, scripts: 0, logged: 0 }
    }

    /// What the daemon has counted.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Performs a script, call by call.
    pub fn perform(&mut self, programs: &Programs, script: &Script) -> Outcome {
        self.perform_in(Order::OfTheScript, programs, script, |_| ())
    }

    /// Performs a script; `look` sees the directory in which it was performed before that is removed.
    pub fn perform_in(
        &mut self,
        order: Order,
        programs: &Programs,
        script: &Script,
        look: impl FnOnce(&Path),
    ) -> Outcome {
        self.scripts += 1;
        let name = format!("s{}", self.scripts);
        let source = self.files.join(&name).join("w");
        let here = self.place.path().join(&name).join("w");
        self.prepare(programs, &name, &here);
        outside(&self.outside.join(&name));
        let state = tempfile::Builder::new().prefix("finesse-script-").tempdir().unwrap();
        fs::set_permissions(state.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut results = self.run(order, programs, script, &here, state.path());
        results.extend(self.accidents());
        look(&here);
        let tree = |root: &Path| {
            // What cannot be read is a finding, not an accident.
            catch_unwind(AssertUnwindSafe(|| tree::read(root, Times::Ignored)))
                .map_or_else(|_| "cannot be read".to_owned(), |tree| described(&tree, &self.place))
        };
        let outcome =
            Outcome { results, tree: tree(here.parent().unwrap()), source: tree(source.parent().unwrap()) };
        // Through the source, as nothing may depend on what is left of scripts.
        let _ = fs::remove_dir_all(source.parent().unwrap());
        let _ = fs::remove_dir_all(self.outside.join(&name));
        outcome
    }

    /// Makes what every script finds.
    fn prepare(&self, programs: &Programs, name: &str, here: &Path) {
        let above = self.files.join(name);
        fs::create_dir(&above).unwrap();
        fs::set_permissions(&above, PermissionsExt::from_mode(0o777)).unwrap();
        let out = Path::new("../../../outside").join(name);
        let mut command = Command::new(&programs.performer);
        command.arg("prepare").args([&above.join("w"), here, &out]);
        assert!(command.status().unwrap().success(), "{}", above.display());
    }

    /// Without the place's own path. That of the source stays: nothing on a mount may tell it.
    fn neutral(&self, text: &str) -> String {
        text.replace(&*self.place.path().to_string_lossy(), "HERE")
            .replace(&*self.outside.to_string_lossy(), "OUTSIDE")
    }

    /// What the daemon has logged that no script may make it log.
    fn accidents(&mut self) -> Vec<String> {
        if !self.place.is_mounted() {
            return Vec::new();
        }
        let log = self.place.mount().log();
        let lines: Vec<&str> = log.lines().collect();
        let fresh = lines.get(self.logged..).unwrap_or_default();
        let accidents =
            fresh.iter().filter(|line| line.contains("dropped without") || line.contains("panicked"));
        let accidents = accidents.map(|line| format!("daemon: {line}")).collect();
        self.logged = lines.len();
        accidents
    }

    fn run(
        &self,
        order: Order,
        programs: &Programs,
        script: &Script,
        here: &Path,
        state: &Path,
    ) -> Vec<String> {
        let (steps, turns, report) = (state.join("steps"), state.join("turns"), state.join("report"));
        fs::write(&steps, script.for_performer()).unwrap();
        let mut words = [0; 4096];
        words[12] = u8::from(order == Order::None);
        fs::write(&turns, words).unwrap();
        fs::set_permissions(&turns, PermissionsExt::from_mode(0o666)).unwrap();
        let results = OpenOptions::new().create(true).append(true).mode(0o666).open(&report).unwrap();
        let (mut ends, held) = std::io::pipe().unwrap();
        let mut children: Vec<Child> = (0..PROCESSES)
            .map(|process| {
                let wrapper = if script.ordinary[process] { ORDINARY } else { ROOT };
                let preloaded = match self.roads {
                    Roads::Native | Roads::Kernel => false,
                    Roads::Bypass => true,
                    Roads::Mixed => script.preloaded[process],
                };
                let mut command = if preloaded {
                    let finesse = programs.directory.path().join(build::COMMAND);
                    self.place.command_as(&finesse, wrapper, &programs.performer)
                } else {
                    let mut command = Command::new(wrapper[0]);
                    command.args(&wrapper[1..]).arg(&programs.performer);
                    road::environment(&mut command);
                    command
                };
                command
                    .arg(here)
                    .arg(process.to_string())
                    .arg(&turns)
                    .current_dir("/")
                    .stdin(File::open(&steps).unwrap())
                    .stdout(results.try_clone().unwrap())
                    .stderr(Stdio::from(held.try_clone().unwrap()))
                    .process_group(0);
                command.spawn().expect("setpriv is installed")
            })
            .collect();
        drop(held);
        // The pipe ends when the last process has, forked ones included.
        let start = Instant::now();
        let mut said = Vec::new();
        let mut hung = false;
        loop {
            let mut poll = [PollFd::new(&ends, PollFlags::IN)];
            let left = LONGEST.saturating_sub(start.elapsed());
            let patience = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match rustix::event::poll(&mut poll, Some(&patience)) {
                Ok(0) => {
                    hung = true;
                    for child in &children {
                        // Everything that it started is of its group; fails if all have ended.
                        let _ = rustix::process::kill_process_group(Pid::from_child(child), Signal::KILL);
                    }
                    break;
                }
                Ok(_) => {
                    let mut bytes = [0; 4096];
                    match ends.read(&mut bytes) {
                        Ok(0) => break,
                        Ok(count) => said.extend_from_slice(&bytes[..count]),
                        Err(error) => panic!("reading what the performer says: {error}"),
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
        }
        let ends: Vec<_> = children.iter_mut().map(|child| child.wait().expect("a child")).collect();
        let text = String::from_utf8_lossy(&fs::read(&report).unwrap()).into_owned();
        let mut reported: Vec<&str> = text.lines().collect();
        if order == Order::None {
            reported
                .sort_by_key(|line| line.split(' ').next().and_then(|number| number.parse::<usize>().ok()));
        }
        let mut lines: Vec<String> = reported
            .into_iter()
            .enumerate()
            .map(|(index, line)| match line.split_once(' ') {
                Some((number, rest)) if number == index.to_string() => self.neutral(rest),
                _ => format!("out of turn: {line}"),
            })
            .collect();
        // A script may kill its processes; a code is the performer's or its wrapper's own failure.
        if let Some(end) = ends.iter().find(|end| end.code().is_some_and(|code| code != 0)) {
            lines.push(format!("ended with {end}"));
        }
        if hung {
            lines.push("hangs".to_owned());
        }
        if !said.is_empty() {
            lines.push(format!("said: {}", String::from_utf8_lossy(&said)));
        }
        // Whoever ended too early leaves steps without a result.
        if lines.len() < script.steps.len() {
            lines.push("nothing more".to_owned());
        }
        lines
    }
}

fn described(tree: &tree::Tree, place: &Place) -> String {
    let lines: Vec<_> = tree.iter().map(|(path, what)| format!("{}: {what}", path.display())).collect();
    place.neutral(lines.join("\n").as_bytes())
}

/// What a link out of the mount leads to.
fn outside(outside: &Path) {
    fs::create_dir(outside).unwrap();
    fs::write(outside.join("f"), "outside").unwrap();
    for (path, mode) in [(outside.to_owned(), 0o777), (outside.join("f"), 0o666)] {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
}
