//! `finesse mount`.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::{Arc, Mutex};

use clap::Args;
use finesse::passthrough::{CachePolicy, Drain, Grants, Options as Policy, PassthroughFs};
use finesse::policy::Policy as AccessPolicy;
use finesse::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

use super::background::{self, Herald};
use super::mounts::{PATIENCE, SUBTYPE, within};
use super::options::{self, Cache, Grant, Options, Unlink};
use super::{Failure, Outcome, plain, policy, umount};

/// Bounds for the number of threads that serve the kernel, unless the user asks for another.
const THREADS: std::ops::RangeInclusive<usize> = 4..=16;

/// Show a directory at another place, through Finesse.
///
/// Returns when the mount is ready; a daemon serves it until it is unmounted or gets SIGTERM. Permissions are
/// those of the source directory. Root shares the mount with all users unless told otherwise; an ordinary
/// user has it for himself alone unless /etc/fuse.conf allows more.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  finesse mount /srv/data /mnt/data
  finesse mount -o ro,fsname=data /srv/data /mnt/data
  finesse mount --cache=always /srv/data /mnt/data         nobody else changes /srv/data
  finesse mount -f --log debug /srv/data /mnt/data         stay here and say what happens

Mount options:
  allow_other, owner_only      all users may use it; only its owner (default: root shares, others do not)
  default_permissions          the kernel checks permissions too (always on with allow_other)
  ro, rw, noexec, noatime      as in mount(8)
  suid, dev                    honour set-user-id bits, device files (default: nosuid, nodev)
  sync, dirsync, auto_unmount  as in mount.fuse3(8)
  fsname=NAME, subtype=NAME    how it appears in the mount table (default: SOURCE, finesse)
  cache=never|auto|always      as --cache
  grant=always|large|never     what preloaded programs get when they open a file: a descriptor of the source's
                               file; the same once large transfers make that worth it, which is faster for many
                               small files; or only descriptors of the mount (default: always)
  transport=auto|classic|uring how the kernel's requests come: through io_uring where the kernel offers it; by reading
                               /dev/fuse; through io_uring or not at all (default: classic)
  unlink=immediate|deferred    deferred: an unlink of a preloaded program returns once it is recorded in memory, and the
                               source's file is removed a moment later; who looks at the source itself may see it
                               until then. `finesse umount` waits for that; umount(8) returns before, and the daemon
                               ends when it is done (default: immediate)
  bpf                          load BPF programs that help with programs on the kernel road, as far as the
                               kernel allows (needs root): `finesse status` then shows what they ask for, and the kernel
                               answers for files without extended attributes or ACLs by itself
  policy=FILE                  who may do what in which part of the mount: finesse-policy(5)
  kernel=SUBTREE               make every change below this directory through the kernel, for watchers that
                               are not preloaded; may be given several times
  table=SIZE                   room for names and attributes that preloaded programs look up by themselves, like 64M or
                               2G; 0 for none; it takes memory only where it is used (default: 256M, a million names)
  They are separated by commas; of contradicting ones the last wins.")]
pub(crate) struct Mount {
    /// The directory to show.
    source: PathBuf,
    /// Where: an existing directory outside the source.
    mountpoint: PathBuf,
    /// Mount options, as in mount(8); see below.
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    foreground: bool,
    /// How long the kernel and the bypass may believe what they know of the source [default: auto].
    #[arg(long, value_enum)]
    cache: Option<Cache>,
    /// Threads that serve the kernel's requests [default: two per CPU, at least 4, at most 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Let data pass through the daemon even where the kernel could read and write the source's files itself.
    #[arg(long)]
    no_kernel_passthrough: bool,
    /// What to log: error, warn, info, debug, trace, or a list like finesse=debug,fuser=warn.
    #[arg(long, value_name = "FILTER", default_value = "warn", env = "FINESSE_LOG")]
    log: String,
    /// Where the daemon logs to when it is in the background [default: nowhere].
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    log_file: Option<PathBuf>,
}

impl Mount {
    /// Runs the command; in the background, this returns when the daemon ends.
    pub(crate) fn run(mut self) -> Outcome {
        let options = Options::parse(self.options.iter().map(String::as_str))?;
        let policy = options.policy.as_deref().map(policy::read).transpose()?;
        let filter = EnvFilter::try_new(&self.log)
            .map_err(|error| Failure::new(format!("--log {}: {error}", self.log)).with_status(2))?;
        self.log_file = match self.log_file {
            Some(path) => Some(std::path::absolute(&path).map_err(|error| at(&path, &error))?),
            None => None,
        };
        let herald = if self.foreground { Herald::Foreground } else { background::detach()? };
        let prepared = (|| {
            let (source, mountpoint) = places(&self.source, &self.mountpoint)?;
            if let Some(policy) = &policy {
                policy::look_for_links(policy, &source)?;
            }
            let config = configure(options, &source, self.threads, self.cache)?;
            let colours = self.foreground && io::stderr().is_terminal();
            tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(colours)
                .with_writer(io::stderr)
                .init();
            let config = Wanted { policy: policy.map(Arc::new), ..config };
            let (mut session, drain) = start(&source, &mountpoint, &config, self.no_kernel_passthrough)?;
            if let Some(drain) = &drain {
                drain.set_notifier(session.notifier());
            }
            if config.bpf {
                session.attach_bpf().map_err(|error| at(&mountpoint, &error))?;
            }
            let unmounter = session.unmount_callable();
            Ok((session, unmounter, mountpoint, drain))
        })();
        let (session, unmounter, mountpoint, drain) = match prepared {
            Ok(prepared) => prepared,
            Err(failure) => return Err(herald.failed(failure)),
        };
        end_on_signals(unmounter, mountpoint.clone(), drain.clone())
            .and_then(|()| herald.ready(self.log_file.as_deref()))?;
        let ended = session.run().map_err(|error| at(&mountpoint, &error));
        if let Some(drain) = drain {
            drain.finish();
        }
        ended
    }
}

fn at(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {}", path.display(), plain(error)))
}

/// Checks and resolves what the user named.
fn places(source: &Path, mountpoint: &Path) -> Outcome<(PathBuf, PathBuf)> {
    let directory = |role: &str, path: &Path| {
        let owned = path.to_owned();
        let looked = within(PATIENCE, move || {
            let path = owned.canonicalize()?;
            Ok::<_, io::Error>((path.metadata()?.is_dir(), path))
        });
        let failed = |why: String| Failure::new(format!("{role} {}: {why}", path.display()));
        match looked {
            Some(Ok((true, path))) => Ok(path),
            Some(Ok((false, _))) => Err(failed("not a directory".to_owned())),
            Some(Err(error)) if error.raw_os_error() == Some(libc::ENOTCONN) => Err(failed(format!(
                "a mount whose daemon is gone; clear it with: finesse umount --force {}",
                path.display()
            ))),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                Err(failed(format!("{}; create it first", plain(&error))))
            }
            Some(Err(error)) => Err(failed(plain(&error))),
            None => Err(failed("does not answer; is it a mount that hangs?".to_owned())),
        }
    };
    let (source, mountpoint) = (directory("source", source)?, directory("mount point", mountpoint)?);
    // The daemon would walk into its own mount and wait for itself.
    let (inner, outer) = match (mountpoint.starts_with(&source), source.starts_with(&mountpoint)) {
        (true, true) => {
            return Err(Failure::new(format!(
                "source and mount point are the same directory, {}; mount elsewhere",
                source.display()
            )));
        }
        (true, false) => ("mount point", "source"),
        (false, true) => ("source", "mount point"),
        (false, false) => return Ok((source, mountpoint)),
    };
    Err(Failure::new(format!(
        "the {inner} is inside the {outer} ({} and {}); the daemon would wait for itself, choose separate places",
        source.display(),
        mountpoint.display()
    )))
}

/// What the session needs to know.
#[derive(Debug)]
struct Wanted {
    session: Config,
    left_to_kernel: Vec<PathBuf>,
    cache: Cache,
    grant: Grant,
    unlink: Unlink,
    bpf: bool,
    transport: finesse::Transport,
    table: Option<usize>,
    policy: Option<Arc<AccessPolicy>>,
}

fn configure(
    mut options: Options,
    source: &Path,
    threads: Option<u16>,
    cache: Option<Cache>,
) -> Outcome<Wanted> {
    let root = rustix::process::geteuid().is_root();
    let share = options.allow_other.unwrap_or(root);
    if share && !root && !user_allow_other() {
        return Err(Failure::new(
            "-o allow_other: only root may share a mount, unless /etc/fuse.conf has a line user_allow_other",
        ));
    }
    if !root && !fusermount_exists() {
        return Err(Failure::new("an ordinary user needs fusermount3 to mount; install the package fuse3"));
    }
    // A shared mount without it would let everyone walk cached paths without search permission.
    if share || options.default_permissions {
        options.set_default(MountOption::DefaultPermissions);
    }
    options.set_default(MountOption::NoSuid);
    options.set_default(MountOption::NoDev);
    options.set_default(MountOption::FSName(source.to_string_lossy().into_owned()));
    options.set_default(options::subtype(SUBTYPE));
    if !root {
        // fusermount3 reads a list of options again.
        for option in &mut options.kernel {
            if let MountOption::FSName(name) = option {
                *name = name.replace('\\', r"\\").replace(',', r"\,");
            }
        }
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut session = Config::default();
    session.acl = if share { SessionACL::All } else { SessionACL::Owner };
    session.n_threads = Some(threads.map_or((cpus * 2).clamp(*THREADS.start(), *THREADS.end()), usize::from));
    session.clone_fd = true;
    if options.kernel.contains(&MountOption::AutoUnmount) && !share {
        return Err(Failure::new("-o auto_unmount works only together with allow_other"));
    }
    let syncs = [MountOption::Sync, MountOption::DirSync];
    if options.unlink == Some(Unlink::Deferred) && syncs.iter().any(|sync| options.kernel.contains(sync)) {
        return Err(Failure::new("-o unlink=deferred contradicts sync and dirsync"));
    }
    session.mount_options = options.kernel;
    Ok(Wanted {
        session,
        left_to_kernel: options.left_to_kernel,
        cache: cache.or(options.cache).unwrap_or(Cache::Auto),
        grant: options.grant.unwrap_or(Grant::Always),
        unlink: options.unlink.unwrap_or(Unlink::Immediate),
        bpf: options.bpf,
        transport: options.transport.map_or(finesse::Transport::Classic, Into::into),
        table: options.table,
        policy: None,
    })
}

/// Whether /etc/fuse.conf lets ordinary users share mounts.
pub(crate) fn user_allow_other() -> bool {
    std::fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"))
}

/// Whether the set-user-id helper of libfuse can be found.
pub(crate) fn fusermount_exists() -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("fusermount3").is_file()))
}

fn start(
    source: &Path,
    mountpoint: &Path,
    wanted: &Wanted,
    no_kernel_passthrough: bool,
) -> Outcome<(Session<PassthroughFs>, Option<Drain>)> {
    raise_open_files_limit();
    // Every request carries its caller's own mask.
    rustix::process::umask(rustix::fs::Mode::empty());
    std::env::set_current_dir("/").map_err(|error| at(Path::new("/"), &error))?;
    let mut policy = Policy::default();
    policy.cache = match wanted.cache {
        Cache::Never => CachePolicy::Never,
        Cache::Auto => CachePolicy::Auto,
        Cache::Always => CachePolicy::Always,
    };
    policy.grants = match wanted.grant {
        Grant::Always => Grants::Always,
        Grant::Large => Grants::Large,
        Grant::Never => Grants::Never,
    };
    policy.deferred_unlinks = wanted.unlink == Unlink::Deferred;
    policy.policy = wanted.policy.clone();
    policy.table = wanted.table.unwrap_or(policy.table);
    policy.left_to_kernel = wanted.left_to_kernel.clone();
    policy.mountpoint = Some(mountpoint.to_owned());
    policy.kernel_passthrough = !no_kernel_passthrough;
    policy.kernel_checked = wanted.session.mount_options.contains(&MountOption::DefaultPermissions);
    let fs = PassthroughFs::new(source, policy).map_err(|error| Failure::new(plain(&error)))?;
    let drain = fs.drain();
    let session =
        Session::with_transport(fs, mountpoint, &wanted.session, wanted.transport).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "; is /dev/fuse there? `finesse doctor` tells",
                io::ErrorKind::Unsupported => "; `finesse doctor` tells how to switch it on",
                io::ErrorKind::PermissionDenied => "; `finesse doctor` tells what is missing",
                _ => "",
            };
            Failure::new(format!("cannot mount at {}: {}{hint}", mountpoint.display(), plain(&error)))
        })?;
    Ok((session, drain))
}

/// Open files and directories of all clients are the daemon's descriptors.
fn raise_open_files_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!("the limit of open files stays at {:?}: {errno}", limit.current);
    }
}

/// Ends the mount at the first signal: cleanly if nobody uses it, otherwise it is detached and the daemon
/// leaves its users with `ENOTCONN`.
fn end_on_signals(unmounter: SessionUnmounter, mountpoint: PathBuf, drain: Option<Drain>) -> Outcome {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Failure::new(format!("signals: {}", plain(&error))))?;
    let unmounter = Mutex::new(unmounter);
    let wait = move || {
        for _ in signals.forever() {
            let unmounted = match unmounter.lock() {
                Ok(mut unmounter) => unmounter.unmount(),
                Err(_) => exit(1),
            };
            let Err(error) = unmounted else { continue };
            tracing::warn!("{}: {}; detaching it from its users", mountpoint.display(), plain(&error));
            let detached = umount::unmount(&mountpoint, true);
            if let Some(drain) = &drain {
                drain.finish();
            }
            match detached {
                Ok(()) => exit(0),
                Err(failure) => {
                    tracing::error!("{failure}");
                    exit(1)
                }
            }
        }
    };
    match std::thread::Builder::new().name("signals".to_owned()).spawn(wait) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(format!("cannot start a thread: {}", plain(&error)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(list: &str) -> Wanted {
        configure(Options::parse([list]).unwrap(), Path::new("/srv"), None, None).unwrap()
    }

    #[test]
    fn a_mount_inside_its_source_is_refused_and_the_other_way_round() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let refusal = |source: &Path, mountpoint: &Path| places(source, mountpoint).unwrap_err().to_string();
        assert!(refusal(dir.path(), &inner).starts_with("the mount point is inside the source"));
        assert!(refusal(&inner, dir.path()).starts_with("the source is inside the mount point"));
        assert!(refusal(&inner, &inner).starts_with("source and mount point are the same"));
    }

    #[test]
    fn what_is_no_directory_is_refused_by_role() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let absent = dir.path().join("absent");
        let error = places(&file, dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("source ") && error.ends_with("not a directory"), "{error}");
        let error = places(dir.path(), &absent).unwrap_err().to_string();
        assert!(error.starts_with("mount point ") && error.ends_with("create it first"), "{error}");
    }

    #[test]
    fn a_shared_mount_always_checks_permissions() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root shares mounts");
            return;
        }
        let shared = wanted("").session;
        assert_eq!(shared.acl, SessionACL::All);
        assert!(shared.mount_options.contains(&MountOption::DefaultPermissions));
        let own = wanted("owner_only").session;
        assert_eq!(own.acl, SessionACL::Owner);
        assert!(!own.mount_options.contains(&MountOption::DefaultPermissions));
    }

    #[test]
    fn the_mount_table_names_source_and_type() {
        let options = wanted("owner_only,ro").session.mount_options;
        for option in [
            MountOption::FSName("/srv".into()),
            MountOption::CUSTOM("subtype=finesse".into()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::RO,
        ] {
            assert!(options.contains(&option), "{option:?}");
        }
    }
}
