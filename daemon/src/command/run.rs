//! `finesse run`.

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;

use finesse_ipc::client::Client;
use finesse_ipc::environment;

use super::mounts::{self, Owner};
use super::{Failure, Outcome, plain};

const LIBRARY: &str = "libfinesse_preload.so";
/// Where the descriptors of our own connections may be numbered from: anywhere.
const FIRST_FD: i32 = 3;
/// How long mounts may take to say whether they are ours. For those that take longer, the program asks when it goes there.
const PATIENCE: Duration = Duration::from_millis(300);
/// As env(1): the command itself failed; the program cannot be executed; there is no such program.
const EXIT_OURS: u8 = 125;
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;

/// Run a program that takes the bypass on Finesse mounts, and so does everything that it starts.
///
/// The program itself is unchanged: a library is loaded into it. Programs that are statically linked or that
/// change their user ID when started load no library; they work too, through the kernel.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  finesse run rm -rf /mnt/data/old
  finesse run -- git -C /mnt/data/repo status
  finesse run bash

Environment:
  FINESSE_PRELOAD        the library to load, if it is not where this command was installed to
  FINESSE_CONNECT_AFTER  how many calls on a mount the kernel serves before a process connects to its
                         daemon: 16 if not set, as most programs make few; 0: connect at once
  FINESSE_DEBUG          if set, programs say on standard error why they do not use a mount")]
pub(crate) struct Run {
    /// Say nothing if the program cannot take the bypass.
    #[arg(short, long)]
    quiet: bool,
    /// The program and its arguments.
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

impl Run {
    /// Runs the command: returns only if the program could not be executed.
    pub(crate) fn run(self) -> Outcome {
        let ours = |failure: Failure| failure.with_status(EXIT_OURS);
        let library = library().map_err(ours)?;
        let (program, arguments) = self.program.split_first().expect("clap requires it");
        let mut command = Command::new(program);
        command.args(arguments).env(
            os_str(environment::PRELOAD),
            preload(&library, std::env::var_os(os_str(environment::PRELOAD))),
        );
        match mounts_value().map_err(ours)? {
            Some(value) => command.env(os_str(environment::MOUNTS), value),
            None => command.env_remove(os_str(environment::MOUNTS)),
        };
        if let (false, Some(obstacle)) = (self.quiet, find(program).and_then(|path| obstacle(&path))) {
            eprintln!("finesse: {}: {obstacle}; it stays on the kernel road", program.display());
        }
        let error = command.exec();
        let status = match error.kind() {
            io::ErrorKind::NotFound => EXIT_NOT_FOUND,
            _ => EXIT_NOT_EXECUTABLE,
        };
        Err(Failure::new(format!("cannot run {}: {}", program.display(), plain(&error))).with_status(status))
    }
}

/// The list of mounts, so that the programs need not look for them.
///
/// It is made by connecting to each daemon once: a mount that refuses this user is left out, as it would
/// refuse the program. Without any mount there is no list, and the programs find those that are made later.
fn mounts_value() -> Outcome<Option<OsString>> {
    let connect = |(entry, owner): (mounts::Entry, Owner)| match owner {
        Owner::Finesse(socket) => {
            let generation = Client::connect(&socket, "finesse run", FIRST_FD).ok()?.mount_generation();
            Some((entry, socket, generation))
        }
        // Without a socket the program asks the mount; this generation is none, so it looks at the mount table as well.
        Owner::Hung => Some((entry, Vec::new(), 0)),
        Owner::Dead(_) | Owner::Other => None,
    };
    let asked = mounts::asked(|_| true, PATIENCE)?;
    let ours: Vec<_> = asked.into_iter().filter_map(connect).collect();
    // After the generations were told: what is mounted later makes another one.
    let table = mounts::table()?;
    if ours.is_empty() {
        return Ok(None);
    }
    let is_ours = |path: &Path| ours.iter().any(|(entry, ..)| entry.mountpoint == path);
    let below = |path: &Path| ours.iter().any(|(entry, ..)| path.starts_with(&entry.mountpoint));
    let excluded =
        table.iter().map(|entry| entry.mountpoint.as_path()).filter(|path| below(path) && !is_ours(path));
    let listed = ours.iter().map(|(entry, socket, generation)| environment::Entry::Mount {
        dev: entry.dev,
        generation: *generation,
        socket,
        path: &entry.mountpoint,
    });
    Ok(Some(environment::mounts_value(listed.chain(excluded.map(environment::Entry::Excluded)))))
}

/// The preload library: where FINESSE_PRELOAD says, or around this executable, installed or built.
fn library() -> Outcome<PathBuf> {
    let usable = |path: PathBuf| {
        // The dynamic linker splits LD_PRELOAD at both, and knows no escape.
        if path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b' ' | b':')) {
            return Err(Failure::new(format!(
                "{}: a path with a space or a colon cannot be preloaded; put the library elsewhere and set \
                 FINESSE_PRELOAD",
                path.display()
            )));
        }
        Ok(path)
    };
    if let Some(path) = std::env::var_os("FINESSE_PRELOAD") {
        let path = PathBuf::from(path);
        return match path.canonicalize() {
            Ok(path) => usable(path),
            Err(error) => {
                Err(Failure::new(format!("FINESSE_PRELOAD: {}: {}", path.display(), plain(&error))))
            }
        };
    }
    let executable = std::env::current_exe()
        .map_err(|error| Failure::new(format!("/proc/self/exe: {}; is /proc mounted?", plain(&error))))?;
    let beside = executable.parent().unwrap_or(Path::new("/"));
    for directory in ["", "../lib", "../lib/finesse", "..", "deps"] {
        if let Ok(path) = beside.join(directory).join(LIBRARY).canonicalize() {
            return usable(path);
        }
    }
    Err(Failure::new(format!(
        "{LIBRARY} is neither in {0} nor in {0}/../lib; install it there, or set FINESSE_PRELOAD to its path",
        beside.display()
    )))
}

/// The value of LD_PRELOAD with our library in it, once, after those that are there.
fn preload(library: &Path, before: Option<OsString>) -> OsString {
    let mut value = before.unwrap_or_default();
    let present = value
        .as_bytes()
        .split(|byte| matches!(byte, b' ' | b':'))
        .any(|one| one == library.as_os_str().as_bytes());
    if !present {
        if !value.is_empty() {
            value.push(":");
        }
        value.push(library);
    }
    value
}

fn os_str(text: &CStr) -> &OsStr {
    OsStr::from_bytes(text.to_bytes())
}

/// The file that executing `program` would find.
fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok() && file.is_file())
}

/// Why a program will not load the library, if that is so.
fn obstacle(program: &Path) -> Option<&'static str> {
    let mut file = File::open(program).ok()?;
    let metadata = file.metadata().ok()?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let changes_user = metadata.mode() & libc::S_ISUID != 0 && metadata.uid() != uid;
    let changes_group = metadata.mode() & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP
        && metadata.gid() != gid;
    if changes_user || changes_group {
        return Some("it changes its user when started, and such programs load no library");
    }
    // struct Elf64_Ehdr and Elf64_Phdr of this machine's byte order, see elf(5).
    let mut header = [0; 64];
    file.read_exact(&mut header).ok()?;
    if header[..4] != *b"\x7fELF" || header[4] != 2 {
        return (header[..4] == *b"\x7fELF").then_some("it is a 32-bit program");
    }
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let offset = u64::from_ne_bytes(header[32..40].try_into().ok()?);
    let (size, count) = (u64::from(word(54)), u64::from(word(56)));
    const PT_INTERP: u32 = 3;
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset.checked_add(index * size)?).ok()?;
        if u32::from_ne_bytes(kind) == PT_INTERP {
            return None;
        }
    }
    Some("it is statically linked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_appended_once() {
        let library = Path::new("/usr/lib/l.so");
        for (before, after) in [
            (None, "/usr/lib/l.so"),
            (Some(""), "/usr/lib/l.so"),
            (Some("/x.so"), "/x.so:/usr/lib/l.so"),
            (Some("/usr/lib/l.so /x.so"), "/usr/lib/l.so /x.so"),
        ] {
            assert_eq!(preload(library, before.map(OsString::from)), after);
        }
    }

    #[test]
    fn ordinary_programs_have_no_obstacle() {
        let shell = find(OsStr::new("sh")).unwrap();
        assert_eq!(obstacle(&shell), None);
        assert_eq!(find(OsStr::new("no-such-program-anywhere")), None);
    }

    #[test]
    fn a_program_without_an_interpreter_is_static() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut header = [0; 64];
        header[..5].copy_from_slice(b"\x7fELF\x02");
        io::Write::write_all(&mut file, &header).unwrap();
        assert_eq!(obstacle(file.path()), Some("it is statically linked"));
    }
}
