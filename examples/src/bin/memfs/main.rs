//! A complete file system in memory, to read and to copy from.
//!
//! It is written for `fuser`; Cargo.toml says that `fuser` is Finesse. Files have no backing descriptors: on the
//! bypass, reads and writes go through shared memory as all else does.
//!
//! | file | holds |
//! | --- | --- |
//! | `main` | the command line; life in the background |
//! | `fs` | the methods of the file system |
//! | `tree` | inodes, and the names that lead to them |
//! | `contents` | what a regular file holds |
//!
//! Who may do what is not here: the file system is mounted with `default_permissions`, so the kernel checks mode
//! bits on its road and the engine on the other. So are file locks not, which the kernel keeps.

mod contents;
mod fs;
mod tree;

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, exit};

use clap::Parser;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// Mount a file system that lives in memory and is gone when it is unmounted.
///
/// Returns when the mount is ready; a daemon serves it until it is unmounted or gets SIGTERM. Root shares the mount
/// with all users; an ordinary user has it for himself alone.
#[derive(Parser)]
#[command(
    name = "finesse-memfs",
    version,
    after_help = "\
Mount options:
  allow_other, owner_only      all users may use it; only its owner (default: root shares, others do not)
  ro, rw, noexec, noatime      as in mount(8)
  suid, dev                    honour set-user-id bits, device files (default: nosuid, nodev)
  fsname=NAME                  how it appears in the mount table (default: memory)
  size=SIZE                    as --size
  They are separated by commas."
)]
struct Arguments {
    /// Where: an existing directory.
    mountpoint: PathBuf,
    /// Mount options, as in mount(8); see below.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Bytes that files may hold, with K, M, G or T [default: half of the memory].
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    foreground: bool,
    /// Threads that serve the kernel's requests.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// What to log: error, warn, info, debug, trace, or a list like finesse=debug,fuser=warn.
    #[arg(long, value_name = "FILTER", default_value = "warn", env = "FINESSE_LOG")]
    log: String,
    /// Where the daemon logs to when it is in the background [default: nowhere].
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    log_file: Option<PathBuf>,
    /// Set for the daemon by the command that starts it.
    #[arg(long, hide = true)]
    daemon: bool,
}

/// A number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let shift = match &*text[digits.len()..].to_ascii_uppercase() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => return Err(format!("no such unit: {unit}")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Half of the machine's memory.
fn default_size() -> u64 {
    let info = rustix::system::sysinfo();
    (u128::from(info.totalram) * u128::from(info.mem_unit) / 2) as u64
}

fn configure(arguments: &Arguments) -> Result<(Config, u64), String> {
    let mut share = rustix::process::geteuid().is_root();
    let mut bytes = arguments.size;
    let mut name = "memory".to_owned();
    let (mut suid, mut dev) = (MountOption::NoSuid, MountOption::NoDev);
    let mut options =
        vec![MountOption::DefaultPermissions, MountOption::CUSTOM("subtype=finesse".to_owned())];
    for word in &arguments.options {
        match word.split_once('=').unwrap_or((word, "")) {
            ("allow_other", "") => share = true,
            ("owner_only", "") => share = false,
            ("default_permissions" | "rw" | "exec" | "atime", "") => {}
            ("suid", "") => suid = MountOption::Suid,
            ("nosuid", "") => suid = MountOption::NoSuid,
            ("dev", "") => dev = MountOption::Dev,
            ("nodev", "") => dev = MountOption::NoDev,
            ("ro", "") => options.push(MountOption::RO),
            ("noexec", "") => options.push(MountOption::NoExec),
            ("noatime", "") => options.push(MountOption::NoAtime),
            ("fsname", value) if !value.is_empty() => name = value.to_owned(),
            ("size", value) => bytes = Some(size(value).map_err(|error| format!("-o {word}: {error}"))?),
            _ => return Err(format!("-o {word}: unknown mount option; --help lists them")),
        }
    }
    options.extend([suid, dev, MountOption::FSName(name)]);
    let mut config = Config::default();
    config.mount_options = options;
    config.acl = if share { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(arguments.threads.into());
    config.clone_fd = true;
    Ok((config, bytes.unwrap_or_else(default_size)))
}

/// Mounts, says so, and serves until the end.
fn serve(arguments: &Arguments) -> Result<(), String> {
    let filter = EnvFilter::try_new(&arguments.log).map_err(|error| format!("--log: {error}"))?;
    let (config, size) = configure(arguments)?;
    let place = &arguments.mountpoint;
    let at = |error: io::Error| format!("{}: {error}", place.display());
    let mountpoint = place.canonicalize().map_err(at)?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).init();
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut session = Session::new(fs::MemFs::new(size, owner), &mountpoint, &config).map_err(at)?;
    let mut unmounter = session.unmount_callable();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(at)?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() && unmounter.unmount().is_err() {
            // Busy: its users are left with ENOTCONN.
            let detached = rustix::mount::unmount(&mountpoint, UnmountFlags::DETACH);
            exit(i32::from(detached.is_err()));
        }
    });
    if arguments.daemon {
        into_background(arguments.log_file.as_deref()).map_err(at)?;
    }
    session.run().map_err(at)
}

/// Leaves the terminal's session and its streams; the end of standard output is what [`detach`] waits for.
fn into_background(log: Option<&Path>) -> io::Result<()> {
    // Fails for the leader of a session, which has what it asks for.
    let _ = rustix::process::setsid();
    let log = log.unwrap_or(Path::new("/dev/null"));
    let log = std::fs::File::options().append(true).create(true).open(log)?;
    std::env::set_current_dir("/")?;
    println!("ready");
    rustix::stdio::dup2_stderr(&log)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(())
}

/// Starts the daemon and waits until it serves or has said on standard error why not.
fn detach() -> io::Result<ExitCode> {
    let mut daemon = Command::new(std::env::current_exe()?);
    daemon.arg("--daemon").args(std::env::args_os().skip(1).collect::<Vec<OsString>>());
    let mut daemon = daemon.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(mut output) = daemon.stdout.take() {
        output.read_to_string(&mut said)?;
    }
    if said == "ready\n" {
        return Ok(ExitCode::SUCCESS);
    }
    daemon.wait()?;
    Ok(ExitCode::FAILURE)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = if arguments.foreground || arguments.daemon {
        serve(&arguments).map(|()| ExitCode::SUCCESS)
    } else {
        detach().map_err(|error| format!("cannot go into the background: {error}; mount with -f"))
    };
    ended.unwrap_or_else(|line| {
        eprintln!("finesse-memfs: {line}");
        ExitCode::FAILURE
    })
}
