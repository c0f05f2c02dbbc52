//! The `-o` lists of `finesse mount`, as mount(8) and FUSE write them.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use finesse::MountOption;
use finesse_ipc::table;

use super::{Failure, Outcome};

/// How long the kernel and the bypass may believe what they know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// Not at all: every call asks the source directory. For directories that others change and whose every
    /// change must be seen at once.
    Never,
    /// For one second; a file's contents until it is opened again after a change.
    Auto,
    /// Until something changes through the mount: the fastest, for a source that nobody else changes.
    Always,
}

/// What preloaded programs get when they open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Grant {
    /// A descriptor of the source's file.
    Always,
    /// The same, but only once large transfers make it worth it: faster for many small files.
    Large,
    /// Descriptors of the mount only.
    Never,
}

/// How the kernel's requests come to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// Through io_uring where the kernel offers it, otherwise as ever.
    Auto,
    /// By reading /dev/fuse.
    Classic,
    /// Through io_uring, or not at all.
    Uring,
}

impl From<Transport> for finesse::Transport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Auto => Self::Auto,
            Transport::Classic => Self::Classic,
            Transport::Uring => Self::Uring,
        }
    }
}

/// When the source's files are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Unlink {
    /// Before unlink(2) returns.
    Immediate,
    /// Later, for preloaded programs.
    Deferred,
}

/// One word of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Kernel(MountOption),
    AllowOther(bool),
    DefaultPermissions,
    Cache(Cache),
    Grant(Grant),
    Transport(Transport),
    Unlink(Unlink),
    Bpf,
    LeftToKernel(PathBuf),
    Policy(PathBuf),
    Table(usize),
}

/// What a list asks for. The last of contradicting words wins, as with mount(8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Whether other users may use the mount, if the list says so.
    pub(crate) allow_other: Option<bool>,
    /// Whether the kernel shall check permissions.
    pub(crate) default_permissions: bool,
    /// The cache policy, if the list has one.
    pub(crate) cache: Option<Cache>,
    /// What opening a file grants, if the list says so.
    pub(crate) grant: Option<Grant>,
    /// How the kernel's requests come, if the list says so.
    pub(crate) transport: Option<Transport>,
    /// When files are removed, if the list says so.
    pub(crate) unlink: Option<Unlink>,
    /// Whether BPF programs shall help.
    pub(crate) bpf: bool,
    /// Subtrees whose changes are made through the kernel.
    pub(crate) left_to_kernel: Vec<PathBuf>,
    /// The file with the mount's policy.
    pub(crate) policy: Option<PathBuf>,
    /// Size of the metadata table in bytes, if the list says so.
    pub(crate) table: Option<usize>,
    /// Flags and names for the kernel, without contradictions.
    pub(crate) kernel: Vec<MountOption>,
}

const KNOWN: &str = "allow_other, owner_only, default_permissions, ro, rw, suid, nosuid, dev, nodev, exec, \
                     noexec, atime, noatime, sync, async, dirsync, auto_unmount, fsname=NAME, subtype=NAME, \
                     cache=never|auto|always, grant=always|large|never, transport=auto|classic|uring, \
                      unlink=immediate|deferred, table=SIZE, bpf, policy=FILE, kernel=SUBTREE";

impl Options {
    /// Reads any number of lists.
    ///
    /// # Errors
    /// Names the word that is unknown or malformed.
    pub(crate) fn parse<'a>(lists: impl IntoIterator<Item = &'a str>) -> Outcome<Self> {
        let mut options = Self::default();
        for word in lists.into_iter().flat_map(split).filter(|word| !word.is_empty()) {
            match word.parse()? {
                Word::AllowOther(yes) => options.allow_other = Some(yes),
                Word::DefaultPermissions => options.default_permissions = true,
                Word::Cache(cache) => options.cache = Some(cache),
                Word::Grant(grant) => options.grant = Some(grant),
                Word::Transport(transport) => options.transport = Some(transport),
                Word::Unlink(unlink) => options.unlink = Some(unlink),
                Word::Bpf => options.bpf = true,
                Word::LeftToKernel(path) => options.left_to_kernel.push(path),
                Word::Policy(file) => options.policy = Some(file),
                Word::Table(bytes) => options.table = Some(bytes),
                Word::Kernel(option) => options.set(option),
            }
        }
        Ok(options)
    }

    /// Adds an option, in place of any that contradicts it.
    fn set(&mut self, option: MountOption) {
        self.kernel.retain(|other| topic(other) != topic(&option));
        self.kernel.push(option);
    }

    /// Adds an option unless the list says something about the same thing.
    pub(crate) fn set_default(&mut self, option: MountOption) {
        if !self.kernel.iter().any(|other| topic(other) == topic(&option)) {
            self.kernel.push(option);
        }
    }
}

/// How the type appears in the mount table: `fuse.NAME`. In this form it reaches the kernel for root, too;
/// `MountOption::Subtype` reaches only fusermount3.
pub(crate) fn subtype(name: &str) -> MountOption {
    MountOption::CUSTOM(format!("subtype={name}"))
}

/// Options of one topic exclude each other.
fn topic(option: &MountOption) -> &str {
    match option {
        MountOption::RO | MountOption::RW => "rw",
        MountOption::Suid | MountOption::NoSuid => "suid",
        MountOption::Dev | MountOption::NoDev => "dev",
        MountOption::Exec | MountOption::NoExec => "exec",
        MountOption::Atime | MountOption::NoAtime => "atime",
        MountOption::Sync | MountOption::Async => "sync",
        MountOption::DirSync => "dirsync",
        MountOption::AutoUnmount => "auto_unmount",
        MountOption::DefaultPermissions => "default_permissions",
        MountOption::FSName(_) => "fsname",
        MountOption::Subtype(_) => "subtype",
        MountOption::CUSTOM(word) => word.split_once('=').map_or(word, |(key, _)| key),
    }
}

/// A table's size in bytes, as `truncate` and others write it.
fn size(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 1 << 10),
        Some(digits) if text.ends_with('M') => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (text, 1),
    };
    let bytes = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (bytes == 0 || (table::BYTES_MIN..=table::BYTES_MAX).contains(&bytes)).then_some(bytes)
}

/// A path below the root of the mount, however it was written.
fn below(text: &str) -> Outcome<PathBuf> {
    let mut path = PathBuf::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                let why = "no path below the mount's root, without `..`";
                return Err(Failure::new(format!("-o kernel={text}: {why}")).with_status(2));
            }
        }
    }
    Ok(path)
}

/// Splits at commas that no backslash protects, and removes the backslashes.
fn split(list: &str) -> Vec<String> {
    let (mut words, mut escaped) = (vec![String::new()], false);
    for character in list.chars() {
        let word = words.last_mut().expect("never empty");
        match character {
            _ if escaped => {
                word.push(character);
                escaped = false;
            }
            '\\' => escaped = true,
            ',' => words.push(String::new()),
            _ => word.push(character),
        }
    }
    words
}

impl FromStr for Word {
    type Err = Failure;

    fn from_str(word: &str) -> Outcome<Self> {
        let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
        let option = match (key, value) {
            ("allow_other", None) => return Ok(Self::AllowOther(true)),
            ("owner_only", None) => return Ok(Self::AllowOther(false)),
            ("default_permissions", None) => return Ok(Self::DefaultPermissions),
            ("cache", Some(policy)) => {
                return Cache::from_str(policy, false).map(Self::Cache).map_err(|_| {
                    Failure::new(format!("-o cache={policy}: no such policy; one of never, auto, always"))
                });
            }
            ("grant", Some(policy)) => {
                return Grant::from_str(policy, false).map(Self::Grant).map_err(|_| {
                    Failure::new(format!("-o grant={policy}: no such policy; one of always, large, never"))
                });
            }
            ("transport", Some(which)) => {
                return Transport::from_str(which, false).map(Self::Transport).map_err(|_| {
                    Failure::new(format!("-o transport={which}: none such; one of auto, classic, uring"))
                });
            }
            ("unlink", Some(when)) => {
                return Unlink::from_str(when, false).map(Self::Unlink).map_err(|_| {
                    Failure::new(format!("-o unlink={when}: no such way; one of immediate, deferred"))
                });
            }
            ("bpf", None) => return Ok(Self::Bpf),
            ("policy", Some(file)) if !file.is_empty() => return Ok(Self::Policy(file.into())),
            ("table", Some(text)) => {
                return size(text).map(Self::Table).ok_or_else(|| {
                    let why = "0, or a size from 1M to 64G, like 256M";
                    Failure::new(format!("-o table={text}: {why}")).with_status(2)
                });
            }
            ("kernel", Some(path)) => return below(path).map(Self::LeftToKernel),
            ("ro", None) => MountOption::RO,
            ("rw", None) => MountOption::RW,
            ("suid", None) => MountOption::Suid,
            ("nosuid", None) => MountOption::NoSuid,
            ("dev", None) => MountOption::Dev,
            ("nodev", None) => MountOption::NoDev,
            ("exec", None) => MountOption::Exec,
            ("noexec", None) => MountOption::NoExec,
            ("atime", None) => MountOption::Atime,
            ("noatime", None) => MountOption::NoAtime,
            ("sync", None) => MountOption::Sync,
            ("async", None) => MountOption::Async,
            ("dirsync", None) => MountOption::DirSync,
            ("auto_unmount", None) => MountOption::AutoUnmount,
            ("fsname", Some(name)) if !name.is_empty() => MountOption::FSName(name.to_owned()),
            ("subtype", Some(name)) if !name.is_empty() && !name.contains(',') => subtype(name),
            _ => {
                return Err(Failure::new(format!("-o {word}: unknown mount option; known are {KNOWN}"))
                    .with_status(2));
            }
        };
        Ok(Self::Kernel(option))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Options {
        Options::parse([list]).unwrap()
    }

    #[test]
    fn words_are_sorted_by_whom_they_concern() {
        let options = parse("allow_other,ro,cache=always,grant=large,bpf,default_permissions,fsname=disk");
        assert_eq!(parse("transport=classic,transport=uring").transport, Some(Transport::Uring));
        assert_eq!(options.transport, None);
        assert_eq!(options.allow_other, Some(true));
        assert_eq!(options.cache, Some(Cache::Always));
        assert_eq!(options.grant, Some(Grant::Large));
        assert!(options.default_permissions && options.bpf);
        assert_eq!(parse("unlink=deferred").unlink, Some(Unlink::Deferred));
        assert_eq!(options.kernel, [MountOption::RO, MountOption::FSName("disk".into())]);
    }

    #[test]
    fn the_last_of_contradicting_words_wins() {
        assert_eq!(parse("ro,nodev,rw,dev").kernel, [MountOption::RW, MountOption::Dev]);
        assert_eq!(parse("allow_other,owner_only").allow_other, Some(false));
        assert_eq!(parse("fsname=a,fsname=b").kernel, [MountOption::FSName("b".into())]);
    }

    #[test]
    fn sizes_have_units() {
        let sizes = ["0", "2097152", "2048K", "2M", "1G"].map(|size| parse(&format!("table={size}")).table);
        assert_eq!(sizes, [0, 2 << 20, 2 << 20, 2 << 20, 1 << 30].map(Some));
    }

    #[test]
    fn defaults_give_way_to_the_list() {
        let mut options = parse("suid");
        options.set_default(MountOption::NoSuid);
        options.set_default(MountOption::NoDev);
        assert_eq!(options.kernel, [MountOption::Suid, MountOption::NoDev]);
    }

    #[test]
    fn commas_in_names_are_escaped() {
        assert_eq!(parse(r"fsname=a\,b,,ro").kernel[0], MountOption::FSName("a,b".into()));
    }

    #[test]
    fn subtrees_are_below_the_root() {
        let paths =
            ["spool/./in/", "/", "a", "."].map(|path| parse(&format!("kernel={path}")).left_to_kernel);
        assert_eq!(paths, ["spool/in", "", "a", ""].map(|path| vec![PathBuf::from(path)]));
        assert!(Options::parse(["kernel=../x"]).is_err());
        assert_eq!(parse("kernel=a,kernel=b").left_to_kernel.len(), 2);
        assert_eq!(parse("policy=/etc/p").policy, Some(PathBuf::from("/etc/p")));
    }

    #[test]
    fn unknown_words_are_named() {
        for (list, named) in [
            ("ro,bogus", "-o bogus"),
            ("cache=later", "-o cache=later"),
            ("grant=1", "-o grant=1"),
            ("transport=fast", "-o transport=fast"),
            ("unlink=never", "-o unlink=never"),
            ("table=1", "-o table=1"),
            ("table=M", "-o table=M"),
            ("table=99999999999G", "-o table=99999999999G"),
            ("ro=1", "-o ro=1"),
        ] {
            assert!(Options::parse([list]).unwrap_err().to_string().starts_with(named), "{list}");
        }
    }
}
