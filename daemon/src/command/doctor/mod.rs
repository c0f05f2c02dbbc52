//! `finesse doctor`: what this machine offers, found out by trying.

mod bpf;
mod probe;

use std::fmt::Write;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use finesse::Lending;
use finesse::passthrough::try_to_lend;
use finesse_ipc::segment::Segment;
use rustix::process::{Resource, getrlimit};
use serde_json::json;

use super::mounts::within;
use super::{Failure, Outcome, mount, plain, print, sys};

/// Say what this machine offers: what is on, what is not, why, and how to get it.
///
/// Whatever can be tried is tried: a small file system is mounted in a temporary directory, BPF programs that
/// do nothing are loaded. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  finesse doctor
  finesse doctor --source /srv/data     also: is this directory's file system a good source?

Exit status: 0 if this machine can mount, 1 if it cannot.")]
pub(crate) struct Doctor {
    /// A directory that shall be mounted; what its file system offers is tried there.
    #[arg(long, value_name = "DIRECTORY")]
    source: Option<PathBuf>,
    /// For machines: a list with one object per finding.
    #[arg(long)]
    json: bool,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    On,
    Off,
    /// It could not be tried.
    Unknown,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    name: &'static str,
    state: State,
    /// Without it nothing can be mounted.
    vital: bool,
    /// What was found, or why it is not there.
    detail: String,
    /// How to get it, or what goes without it.
    hint: Option<String>,
}

impl Finding {
    fn on(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::On, vital: false, detail: detail.into(), hint: None }
    }

    fn off(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, state: State::Off, vital: false, detail: detail.into(), hint: Some(hint.into()) }
    }

    fn unknown(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, state: State::Unknown, vital: false, detail: detail.into(), hint: None }
    }

    fn vital(self) -> Self {
        Self { vital: true, ..self }
    }
}

impl Doctor {
    /// Runs the command.
    pub(crate) fn run(self) -> Outcome {
        let source = match self.source {
            Some(source) if !source.is_dir() => {
                return Err(Failure::new(format!("--source {}: not a directory", source.display())));
            }
            Some(source) => source,
            None => std::env::temp_dir(),
        };
        let findings = findings(&source);
        let text = if self.json { to_json(&findings) } else { to_text(&findings) };
        print(&text)?;
        match findings.iter().find(|finding| finding.vital && finding.state == State::Off) {
            Some(missing) => Err(Failure::new(format!("cannot mount on this machine: {}", missing.name))),
            None => Ok(()),
        }
    }
}

fn findings(source: &Path) -> Vec<Finding> {
    let mut findings = vec![kernel(), device(), fusermount(), sharing()];
    findings.extend(mounting());
    findings.push(handles(source));
    findings.push(lending(source));
    findings.extend(bpf::findings());
    findings.extend([shared_memory(), open_files(), memory(), cpus()]);
    findings
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    Finding::on("kernel", format!("Linux {}", name.release().to_string_lossy()))
}

fn device() -> Finding {
    let path = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::on(path, "can be opened").vital(),
        Err(error) => {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "as root: modprobe fuse; in a container: start it with --device /dev/fuse"
                }
                std::io::ErrorKind::PermissionDenied => "as root: chmod 666 /dev/fuse",
                _ => "the kernel needs CONFIG_FUSE_FS; as root: modprobe fuse",
            };
            Finding::off(path, plain(&error), hint).vital()
        }
    }
}

fn fusermount() -> Finding {
    let name = "fusermount3";
    let root = rustix::process::geteuid().is_root();
    let found = std::env::var_os("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
    });
    let finding = match found {
        None => Finding::off(
            name,
            "not in PATH; only root can mount",
            "apt-get install fuse3 (or your system's package of libfuse 3)",
        ),
        Some(file) => {
            let setuid = std::os::unix::fs::MetadataExt::mode;
            match file.metadata() {
                Ok(metadata) if setuid(&metadata) & libc::S_ISUID != 0 => {
                    Finding::on(name, format!("{}, set-user-id", file.display()))
                }
                _ => Finding::off(
                    name,
                    format!("{} has lost its set-user-id bit; only root can mount", file.display()),
                    format!("as root: chmod u+s {}", file.display()),
                ),
            }
        }
    };
    if root { finding } else { finding.vital() }
}

fn sharing() -> Finding {
    let name = "user_allow_other";
    if mount::user_allow_other() {
        return Finding::on(name, "ordinary users may share their mounts");
    }
    Finding::off(
        name,
        "ordinary users cannot share their mounts; root can",
        "add the line user_allow_other to /etc/fuse.conf",
    )
}

/// What the kernel's FUSE offers, from a mount made for the purpose.
fn mounting() -> Vec<Finding> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let offer = match within(PATIENCE, probe::mount) {
        Some(Ok(offer)) => offer,
        failed => {
            let why = match failed {
                Some(Err(error)) => plain(&error),
                _ => "a mount made to try does not answer".to_owned(),
            };
            let untried = |name| Finding::unknown(name, "not tried, for lack of a mount");
            return vec![
                Finding::off(
                    "mounting",
                    why,
                    "see /dev/fuse and fusermount3 above; in a container, CAP_SYS_ADMIN",
                )
                .vital(),
                untried("FUSE passthrough"),
                untried("FUSE over io_uring"),
                untried("FUSE epochs"),
            ];
        }
    };
    let (major, minor) = offer.version;
    let mut findings =
        vec![Finding::on("mounting", format!("works; the kernel speaks FUSE {major}.{minor}")).vital()];
    findings.push(match offer.passthrough {
        Ok(()) => Finding::on("FUSE passthrough", "the kernel reads and writes source files itself"),
        Err(error) => {
            let root = rustix::process::geteuid().is_root();
            let hint = match (offer.passthrough_offered, root) {
                (true, false) => "only root may; data goes through the daemon instead",
                (true, true) => "needs CAP_SYS_ADMIN in the first user namespace",
                (false, _) => {
                    "needs Linux 6.9 with CONFIG_FUSE_PASSTHROUGH; data goes through the daemon instead"
                }
            };
            Finding::off("FUSE passthrough", plain(&error), hint)
        }
    });
    findings.push(uring(offer.uring));
    findings.push(if (major, minor) >= (7, 44) {
        Finding::on("FUSE epochs", "all names that the kernel holds can be outdated at once")
    } else {
        Finding::off(
            "FUSE epochs",
            format!("FUSE {major}.{minor} has none"),
            "needs Linux 6.16; names are invalidated one by one instead",
        )
    });
    findings
}

fn uring(offered: bool) -> Finding {
    let name = "FUSE over io_uring";
    let switch = "/sys/module/fuse/parameters/enable_uring";
    match (offered, std::fs::read_to_string(switch)) {
        (true, _) => Finding::on(name, "the kernel offers it"),
        (false, Ok(value)) if !value.starts_with('Y') => Finding::off(
            name,
            format!("{switch} is {}", value.trim_end()),
            format!("as root: echo Y > {switch}"),
        ),
        (false, _) => {
            Finding::off(name, "the kernel does not offer it", "needs Linux 6.14 with CONFIG_FUSE_IO_URING")
        }
    }
}

fn handles(source: &Path) -> Finding {
    let name = "file handles";
    let tried = std::fs::File::open(source).and_then(sys::reopen_by_handle);
    let place = source.display();
    match tried {
        Ok(()) => Finding::on(name, format!("files of {place} can be reopened by handle")),
        Err(error) => {
            let hint = match error.raw_os_error() {
                Some(libc::EPERM) => "needs root (CAP_DAC_READ_SEARCH); files are reopened by name instead",
                Some(libc::EOPNOTSUPP) => {
                    "its file system has none; files are reopened by name instead; try --source elsewhere"
                }
                _ => "files are reopened by name instead",
            };
            Finding::off(name, format!("{place}: {}", plain(&error)), hint)
        }
    }
}

fn lending(source: &Path) -> Finding {
    let (name, place) = ("lending", source.display());
    let instead = "preloaded programs ask for each file that they open";
    match try_to_lend(source) {
        Ok(Lending::Nothing) => Finding::off(
            name,
            format!("something is mounted below {place}, or it is mounted with strictatime"),
            format!("{instead}; try --source elsewhere"),
        ),
        Ok(_) => Finding::on(name, format!("preloaded programs open files of {place} to read by themselves")),
        Err(error) => {
            let needs = match error.raw_os_error() {
                Some(libc::EPERM) => "needs root (CAP_SYS_ADMIN); ",
                Some(libc::EINVAL) => "needs Linux 6.15; ",
                _ => "",
            };
            Finding::off(
                name,
                format!("the mount of {place} cannot be copied: {}", plain(&error)),
                format!("{needs}{instead}"),
            )
        }
    }
}

fn shared_memory() -> Finding {
    let name = "shared memory";
    match Segment::create().and_then(|(_, memory)| Segment::open(memory)) {
        Ok(_) => Finding::on(name, "sealed memory files can be made and mapped"),
        Err(errno) => Finding::off(
            name,
            format!("sealed memory file: {}", plain(&errno.into())),
            "needs Linux 3.17 and room in memory; without it there is no bypass",
        ),
    }
}

fn open_files() -> Finding {
    let name = "open files";
    /// A client costs the daemon three descriptors, a directory or file that it works on one.
    const COMFORTABLE: u64 = 4096;
    match getrlimit(Resource::Nofile).maximum {
        None => Finding::on(name, "no limit"),
        Some(limit) if limit >= COMFORTABLE => Finding::on(name, format!("at most {limit} per process")),
        Some(limit) => Finding::off(
            name,
            format!("at most {limit} per process"),
            "raise it: ulimit -Hn, LimitNOFILE= of the service, or /etc/security/limits.conf",
        ),
    }
}

fn memory() -> Finding {
    let name = "memory";
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.and_then(|value| value.trim().trim_end_matches(" kB").parse::<u64>().ok())
    };
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(available)) => {
            let gib = |kib: u64| kib as f64 / f64::from(1 << 20);
            Finding::on(name, format!("{:.1} GiB, {:.1} GiB available", gib(total), gib(available)))
        }
        _ => Finding::unknown(name, "/proc/meminfo cannot be read"),
    }
}

fn cpus() -> Finding {
    let name = "CPUs";
    match std::thread::available_parallelism() {
        Ok(count) if count.get() > 1 => Finding::on(name, format!("{count} may be used")),
        Ok(_) => Finding::off(
            name,
            "one may be used",
            "program and daemon take turns: the bypass is slower than with two, but still works",
        ),
        Err(error) => Finding::unknown(name, plain(&error)),
    }
}

fn to_text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            State::On => "on",
            State::Off if finding.vital => "MISSING",
            State::Off => "off",
            State::Unknown => "?",
        };
        // Writing to a string does not fail.
        let _ = writeln!(text, "{state:<7}  {:<width$}  {}", finding.name, finding.detail);
        if let Some(hint) = &finding.hint {
            let _ = writeln!(text, "{:<7}  {:<width$}  → {hint}", "", "");
        }
    }
    text
}

fn to_json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            json!({
                "name": finding.name,
                "on": match finding.state {
                    State::On => Some(true),
                    State::Off => Some(false),
                    State::Unknown => None,
                },
                "vital": finding.vital,
                "detail": finding.detail,
                "hint": finding.hint,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_says_how_to_get_it() {
        for finding in findings(&std::env::temp_dir()) {
            assert_eq!(finding.state == State::Off, finding.hint.is_some(), "{finding:?}");
            assert!(!finding.detail.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn a_missing_vital_thing_stands_out() {
        let text = to_text(&[Finding::off("x", "gone", "get it").vital(), Finding::on("longer", "there")]);
        assert_eq!(text, "MISSING  x       gone\n                 → get it\non       longer  there\n");
    }
}
