//! Counts the requests of one FUSE mount by kind, whoever serves it: by the tracepoint `fuse/fuse_request_send`.
//!
//! Each kind gets a trace instance of its own whose filter lets that kind pass; how many events have gone into its
//! ring buffer, overwritten ones included, is the count. FORGET passes no tracepoint and is not counted.

use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;

use crate::Outcome;

/// `enum fuse_opcode`: what is told apart.
const KINDS: [(u32, &str); 30] = [
    (1, "LOOKUP"),
    (3, "GETATTR"),
    (52, "STATX"),
    (4, "SETATTR"),
    (34, "ACCESS"),
    (5, "READLINK"),
    (6, "SYMLINK"),
    (8, "MKNOD"),
    (9, "MKDIR"),
    (10, "UNLINK"),
    (11, "RMDIR"),
    (12, "RENAME"),
    (45, "RENAME2"),
    (13, "LINK"),
    (14, "OPEN"),
    (35, "CREATE"),
    (15, "READ"),
    (16, "WRITE"),
    (46, "LSEEK"),
    (25, "FLUSH"),
    (20, "FSYNC"),
    (18, "RELEASE"),
    (27, "OPENDIR"),
    (28, "READDIR"),
    (44, "READDIRPLUS"),
    (29, "RELEASEDIR"),
    (22, "GETXATTR"),
    (23, "LISTXATTR"),
    (21, "SETXATTR"),
    (17, "STATFS"),
];

/// How many requests there were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    /// By kind, in the order of [`KINDS`].
    kinds: Vec<u64>,
    /// Of all kinds.
    pub(super) total: u64,
}

impl Requests {
    /// Kinds that there were, with their counts.
    pub(super) fn by_kind(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let known: u64 = self.kinds.iter().sum();
        let other = ("other", self.total.saturating_sub(known));
        let named = KINDS.iter().zip(&self.kinds).map(|((_, name), count)| (*name, *count));
        named.chain([other]).filter(|(_, count)| *count != 0)
    }
}

impl AddAssign<&Requests> for Requests {
    fn add_assign(&mut self, other: &Self) {
        self.kinds.resize(KINDS.len(), 0);
        self.kinds.iter_mut().zip(&other.kinds).for_each(|(sum, count)| *sum += count);
        self.total += other.total;
    }
}

/// Counts while it exists.
#[derive(Debug)]
pub(super) struct Trace {
    /// One for each kind and one for all.
    instances: Vec<Instance>,
    _tracefs: Tracefs,
}

impl Trace {
    /// Counts the requests of what is mounted at `mountpoint` from now on.
    ///
    /// # Errors
    /// There is no such tracepoint, or no permission to use it: only root has that.
    pub(super) fn of(mountpoint: &Path) -> Outcome<Self> {
        let tracefs = Tracefs::new()?;
        let device = std::fs::metadata(mountpoint).map_err(|error| failed(mountpoint, &error))?.dev();
        // `fc->dev` is an anonymous device, whose major number is 0.
        let connection = format!("connection == {}", rustix::fs::minor(device));
        let kinds = KINDS.iter().map(|(code, name)| (*name, format!("{connection} && opcode == {code}")));
        let instances = kinds.chain([("all", connection.clone())]);
        let instances = instances
            .map(|(name, filter)| Instance::new(&tracefs.path, name, &filter))
            .collect::<Outcome<_>>()?;
        Ok(Self { instances, _tracefs: tracefs })
    }

    /// What has been counted since the last time.
    pub(super) fn take(&self) -> Outcome<Requests> {
        let mut kinds = self.instances.iter().map(Instance::take).collect::<Outcome<Vec<_>>>()?;
        let total = kinds.pop().unwrap_or(0);
        Ok(Requests { kinds, total })
    }
}

fn failed(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}; only root can count requests", path.display())
}

/// A tracefs: the machine's, or one that is mounted for as long as this exists.
#[derive(Debug)]
struct Tracefs {
    path: PathBuf,
    own: Option<TempDir>,
}

impl Tracefs {
    fn new() -> Outcome<Self> {
        let usual = PathBuf::from("/sys/kernel/tracing");
        if usual.join("events").is_dir() {
            return Ok(Self { path: usual, own: None });
        }
        let own = tempfile::tempdir().map_err(|error| error.to_string())?;
        rustix::mount::mount("tracefs", own.path(), "tracefs", MountFlags::empty(), None)
            .map_err(|errno| failed(Path::new("tracefs"), &errno.into()))?;
        Ok(Self { path: own.path().to_owned(), own: Some(own) })
    }
}

impl Drop for Tracefs {
    fn drop(&mut self) {
        if self.own.is_some()
            && let Err(errno) = rustix::mount::unmount(&self.path, UnmountFlags::DETACH)
        {
            eprintln!("finesse-bench: cannot unmount {}: {errno}", self.path.display());
        }
    }
}

/// A trace instance; removed on drop.
#[derive(Debug)]
struct Instance(PathBuf);

impl Instance {
    fn new(tracefs: &Path, name: &str, filter: &str) -> Outcome<Self> {
        let path = tracefs.join(format!("instances/finesse-bench-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| failed(&path, &error))?;
        let instance = Self(path);
        let event = "events/fuse/fuse_request_send";
        // One page for each CPU: what is overwritten counts.
        for (file, text) in
            [("buffer_size_kb", "4"), (&format!("{event}/filter"), filter), (&format!("{event}/enable"), "1")]
        {
            let file = instance.0.join(file);
            std::fs::write(&file, text).map_err(|error| failed(&file, &error))?;
        }
        Ok(instance)
    }

    fn take(&self) -> Outcome<u64> {
        let directory = self.0.join("per_cpu");
        let cpus = std::fs::read_dir(&directory).map_err(|error| failed(&directory, &error))?;
        let mut count = 0;
        for cpu in cpus.flatten() {
            let stats = cpu.path().join("stats");
            let text = std::fs::read_to_string(&stats).map_err(|error| failed(&stats, &error))?;
            count += events(&text).ok_or_else(|| format!("{}: not understood", stats.display()))?;
        }
        // Opening it to be truncated empties the buffer and its statistics.
        let trace = self.0.join("trace");
        std::fs::write(&trace, "").map_err(|error| failed(&trace, &error))?;
        Ok(count)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            eprintln!("finesse-bench: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// How many events went into a CPU's buffer, by its `stats`: those that are there and those that were overwritten.
fn events(stats: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse::<u64>().ok()
    };
    Some(field("entries")? + field("overrun")? + field("dropped events")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwritten_events_count() {
        let stats =
            "entries: 83\noverrun: 917\ncommit overrun: 0\nbytes: 3652\ndropped events: 1\nread events: 0\n";
        assert_eq!(events(stats), Some(1001));
        assert_eq!(events("entries: 83\n"), None);
    }

    #[test]
    fn what_is_not_told_apart_is_counted_as_other() {
        let mut sum = Requests::default();
        let mut kinds = vec![0; KINDS.len()];
        kinds[1] = 3;
        sum += &Requests { kinds: kinds.clone(), total: 3 };
        sum += &Requests { kinds, total: 5 };
        assert_eq!(sum.by_kind().collect::<Vec<_>>(), [("GETATTR", 6), ("other", 2)]);
    }
}
