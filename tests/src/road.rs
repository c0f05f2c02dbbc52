//! One place per road, and programs run there.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::build;
use crate::mount::{Mount, Options};

/// How many calls the kernel serves before a program connects.
pub const CONNECT_AFTER: &str = match finesse_ipc::environment::CONNECT_AFTER.to_str() {
    Ok(name) => name,
    Err(_) => panic!("names are ASCII"),
};

/// How a program reaches files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Road {
    /// No Finesse at all: the measure of the others.
    Native,
    /// Through the kernel and FUSE.
    Kernel,
    /// Preloaded.
    Bypass,
}

impl Road {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Native, Self::Kernel, Self::Bypass];
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Kernel => "kernel road",
            Self::Bypass => "bypass",
        })
    }
}

/// A directory of its own that programs reach by one road.
#[derive(Debug)]
pub struct Place {
    road: Road,
    source: PathBuf,
    // Before the directory: unmounted first.
    mount: Option<Mount>,
    _home: TempDir,
}

impl Place {
    /// A new place below the directory for temporary files. `fill` puts files into the directory before it is
    /// mounted.
    pub fn new(road: Road, options: &Options<'_>, fill: impl FnOnce(&Path)) -> Self {
        Self::below(&std::env::temp_dir(), road, options, fill)
    }

    /// As [`Place::new`], below another directory.
    pub fn below(parent: &Path, road: Road, options: &Options<'_>, fill: impl FnOnce(&Path)) -> Self {
        let home = Self::home(parent);
        let (source, mountpoint) = Self::directories(&home);
        fill(&source);
        let mount = (road != Road::Native).then(|| Mount::new(&source, &mountpoint, options));
        Self { road, source, mount, _home: home }
    }

    fn home(parent: &Path) -> TempDir {
        let home = tempfile::Builder::new().prefix("finesse-test-").tempdir_in(parent).unwrap();
        std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        home
    }

    /// Source and mount point. Their paths have one length, so that what depends on it (columns, archives) agrees.
    fn directories(home: &TempDir) -> (PathBuf, PathBuf) {
        let (source, mountpoint) = (home.path().join("src"), home.path().join("mnt"));
        for directory in [&source, &mountpoint] {
            std::fs::create_dir(directory).unwrap();
        }
        (source, mountpoint)
    }

    /// A place on a file system in memory, and for the native road an empty directory. Nothing is put there before it is
    /// mounted, as there is no source: [`Place::source`] stays empty.
    pub fn of_memory(road: Road, options: &Options<'_>) -> Self {
        let home = Self::home(&std::env::temp_dir());
        let (source, mountpoint) = Self::directories(&home);
        let mount = (road != Road::Native).then(|| Mount::of_memory(&mountpoint, options));
        Self { road, source, mount, _home: home }
    }

    /// Three places, one per road, filled alike.
    pub fn on_all_roads(options: &Options<'_>, fill: impl Fn(&Path)) -> [Self; 3] {
        Road::ALL.map(|road| Self::new(road, options, &fill))
    }

    /// The road.
    pub fn road(&self) -> Road {
        self.road
    }

    /// Where programs work.
    pub fn path(&self) -> &Path {
        self.mount.as_ref().map_or(&self.source, Mount::path)
    }

    /// Where the files really are.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The mount.
    ///
    /// # Panics
    /// There is none on the native road.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("no mount on the native road")
    }

    /// Whether there is a mount.
    pub fn is_mounted(&self) -> bool {
        self.mount.is_some()
    }

    /// A program, to be run on this road with the place as working directory.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        self.command_as(&build::command(), &[], program)
    }

    /// As [`Place::command`], by another road to the same files.
    pub fn command_on(&self, road: Road, program: impl AsRef<OsStr>) -> Command {
        self.line(road, &build::command(), &[], program)
    }

    /// As [`Place::command`], started by a wrapper (`setpriv` and its arguments), with the `finesse` command at
    /// another place.
    pub fn command_as(&self, finesse: &Path, wrapper: &[&str], program: impl AsRef<OsStr>) -> Command {
        self.line(self.road, finesse, wrapper, program)
    }

    fn line(&self, road: Road, finesse: &Path, wrapper: &[&str], program: impl AsRef<OsStr>) -> Command {
        let mut line: Vec<&OsStr> = wrapper.iter().map(OsStr::new).collect();
        if road == Road::Bypass {
            line.extend([finesse.as_os_str(), OsStr::new("run"), OsStr::new("--")]);
        }
        line.push(program.as_ref());
        let mut command = Command::new(line[0]);
        command.args(&line[1..]).current_dir(self.path()).stdin(Stdio::null());
        environment(&mut command);
        command
    }

    /// Runs a shell script in a directory of this place.
    pub fn bash(&self, directory: &str, script: &str) -> Output {
        let mut command = self.command("bash");
        command.current_dir(self.path().join(directory)).args(["-c", script]);
        command.output().unwrap()
    }

    /// A program's text without what differs between places by nature: their paths.
    pub fn neutral(&self, bytes: &[u8]) -> String {
        let text = String::from_utf8_lossy(bytes);
        text.replace(&*self.path().to_string_lossy(), "HERE").replace(&*self.source.to_string_lossy(), "HERE")
    }

    /// Removes the mount, keeping the files.
    pub fn unmount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.unmount();
        }
    }
}

/// Makes a program's surroundings the same everywhere. Its home is where nothing can be made.
///
/// Programs on the bypass connect with their first call; as users run them, without [`CONNECT_AFTER`] in the environment, after some.
pub fn environment(command: &mut Command) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path).env("LC_ALL", "C").env("TZ", "UTC0").env("HOME", "/dev/null");
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("PYTHONDONTWRITEBYTECODE", "1");
    // Tests say what becomes of each call.
    command.env(CONNECT_AFTER, "0");
    for (variable, value) in [
        ("GIT_AUTHOR_NAME", "Test"),
        ("GIT_AUTHOR_EMAIL", "test@example.org"),
        ("GIT_AUTHOR_DATE", "2024-01-02T03:04:05Z"),
        ("GIT_COMMITTER_NAME", "Test"),
        ("GIT_COMMITTER_EMAIL", "test@example.org"),
        ("GIT_COMMITTER_DATE", "2024-01-02T03:04:05Z"),
    ] {
        command.env(variable, value);
    }
}
