//! The environment of programs that this one starts: the preload library stays in it, whatever the program does to it, and
//! what was granted to this program stays known to the next.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use finesse_ipc::environment::{CONNECT_AFTER, DESCRIPTORS, GRANTED_FILE_MAX, GrantedFile, MOUNTS, PRELOAD};

use crate::fds::ITS_OWN;
use crate::process::{self, FDS, INHERITED_MAX};
use crate::sys::{self, EnvString, Pages, Strings};
use crate::vforks;

/// Text that was found at start, where the program cannot change it.
struct Saved<const N: usize> {
    len: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> Saved<N> {
    const fn new() -> Self {
        Self { len: AtomicU32::new(0), bytes: [const { AtomicU8::new(0) }; N] }
    }

    /// Keeps a text, if it fits.
    fn keep(&self, text: &[u8]) {
        if text.len() <= N {
            for (place, byte) in self.bytes.iter().zip(text) {
                place.store(*byte, Ordering::Relaxed);
            }
            self.len.store(text.len() as u32, Ordering::Release);
        }
    }

    fn bytes(&self) -> impl Iterator<Item = u8> + Clone {
        let len = self.len.load(Ordering::Acquire) as usize;
        self.bytes.iter().take(len).map(|byte| byte.load(Ordering::Relaxed))
    }

    fn len(&self) -> usize {
        self.len.load(Ordering::Acquire) as usize
    }

    fn is(&self, text: &[u8]) -> bool {
        self.bytes().eq(text.iter().copied())
    }
}

/// This library's own file.
static LIBRARY: Saved<4096> = Saved::new();
/// The list of mounts that was handed down.
static HANDED_DOWN: Saved<16384> = Saved::new();
/// When processes are to connect, if the user has said so: a number.
static PATIENCE: Saved<10> = Saved::new();
/// Most granted files that are handed on: those of this program, and those it was handed itself.
const FILES_MAX: usize = 2 * INHERITED_MAX;

/// Remembers what is to be handed on.
pub(crate) fn start(environment: Strings) {
    if let Some(value) = environment.value(MOUNTS) {
        HANDED_DOWN.keep(value);
    }
    if let Some(value) = environment.value(CONNECT_AFTER) {
        PATIENCE.keep(value);
    }
    let Some(path) = sys::library_path() else { return };
    if path.first() == Some(&b'/') {
        LIBRARY.keep(path);
        return;
    }
    // Relative to the directory in which the program was started.
    let mut buffer = [0; 4096];
    if path.contains(&b'/')
        && let Some(len) = sys::current_directory(&mut buffer)
        && let Some(rest) = buffer.get_mut(len..)
        && let Some((separator, rest)) = rest.split_first_mut()
        && let Some(place) = rest.get_mut(..path.len())
    {
        *separator = b'/';
        place.copy_from_slice(path);
        LIBRARY.keep(buffer.get(..len + 1 + path.len()).unwrap_or(&[]));
    } else {
        LIBRARY.keep(path);
    }
}

/// Which descriptors a new program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Those that are not close-on-exec.
    Exec,
    /// Perhaps any: `posix_spawn` may duplicate them first.
    Spawn,
    /// Perhaps any of the parent's: this is a child that shares its memory.
    Vfork,
}

/// Starts a program with the environment that it should have, built in memory of its own: a child that was forked from a
/// program with threads cannot allocate. Without memory, the environment stays as it is.
pub(crate) fn with_environment<R>(environment: Strings, start: Start, run: impl FnOnce(Strings) -> R) -> R {
    match complete(environment, start) {
        Some(pages) => {
            let environment = Strings::from_pages(&pages);
            match start {
                Start::Vfork => vforks::executing(pages, || run(environment)),
                Start::Exec | Start::Spawn => run(environment),
            }
        }
        None => run(environment),
    }
}

/// What has to change in an environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    library: bool,
    add_mounts: bool,
    drop_mounts: bool,
    patience: bool,
    files: bool,
}

fn changes(environment: Strings, files: usize) -> Changes {
    let preloaded = |value: &[u8]| value.split(|byte| matches!(byte, b' ' | b':')).any(|one| LIBRARY.is(one));
    let mounts = environment.value(MOUNTS);
    Changes {
        library: LIBRARY.len() > 0 && !environment.value(PRELOAD).is_some_and(preloaded),
        add_mounts: mounts.is_none() && HANDED_DOWN.len() > 0 && !process::has_moved(),
        drop_mounts: mounts.is_some() && process::has_moved(),
        patience: PATIENCE.len() > 0 && environment.value(CONNECT_AFTER).is_none(),
        files: files > 0 || environment.value(DESCRIPTORS).is_some(),
    }
}

/// Builds the environment; `None` if there is nothing to change, or no memory.
fn complete(environment: Strings, start: Start) -> Option<Pages> {
    if environment.is_suspicious() && !environment.is_null() {
        return None;
    }
    let mut files = [GrantedFile::default(); FILES_MAX];
    let files = granted_files(start, &mut files);
    let changes = changes(environment, files.len());
    if changes == Changes::default() {
        return None;
    }
    let count = environment.iter().count() + 5;
    let text = LIBRARY.len()
        + HANDED_DOWN.len()
        + environment.value(PRELOAD).map_or(0, <[u8]>::len)
        + files.len() * GRANTED_FILE_MAX
        + 128;
    let mut builder = Builder { pages: Pages::new(count * size_of::<usize>() + text)?, index: 0, text: 0 };
    builder.text = count * size_of::<usize>();
    for string in environment.iter() {
        let replaced = (changes.library && string.value(PRELOAD).is_some())
            || (changes.drop_mounts && string.value(MOUNTS).is_some())
            || (changes.files && string.value(DESCRIPTORS).is_some());
        if !replaced {
            builder.pointer(Some(string))?;
        }
    }
    if changes.library {
        let before = environment.value(PRELOAD).unwrap_or(&[]);
        let separator = if before.is_empty() { &b""[..] } else { b":" };
        let value = before.iter().chain(separator).copied().chain(LIBRARY.bytes());
        builder.variable(PRELOAD, value)?;
    }
    if changes.add_mounts {
        builder.variable(MOUNTS, HANDED_DOWN.bytes())?;
    }
    if changes.patience {
        builder.variable(CONNECT_AFTER, PATIENCE.bytes())?;
    }
    if !files.is_empty() {
        let mut entry = [0; GRANTED_FILE_MAX];
        let value = files.iter().flat_map(|file| {
            let len = file.write(&mut entry).unwrap_or(0);
            entry.into_iter().take(len)
        });
        builder.variable(DESCRIPTORS, value)?;
    }
    builder.pointer(None)?;
    Some(builder.pages)
}

/// An array of pointers, and behind it the text that some of them point to.
struct Builder {
    pages: Pages,
    index: usize,
    text: usize,
}

impl Builder {
    fn pointer(&mut self, string: Option<EnvString>) -> Option<()> {
        self.pages.put_pointer(self.index, string).then_some(())?;
        self.index += 1;
        Some(())
    }

    fn variable(&mut self, name: &CStr, value: impl Iterator<Item = u8>) -> Option<()> {
        let begin = self.text;
        let text = name.to_bytes().iter().copied().chain(std::iter::once(b'=')).chain(value);
        let bytes = self.pages.bytes();
        let mut end = begin;
        for byte in text.chain(std::iter::once(0)) {
            *bytes.get_mut(end)? = byte;
            end += 1;
        }
        self.text = end;
        let string = self.pages.string(begin);
        self.pointer(string)
    }
}

/// What a child that shares our memory hands on, as a variable's value; `None` if that is nothing, or there is no memory.
pub(crate) fn handed_to_a_child() -> Option<Pages> {
    let mut files = [GrantedFile::default(); FILES_MAX];
    let files = granted_files(Start::Spawn, &mut files);
    let mut pages = (!files.is_empty()).then(|| Pages::new(files.len() * GRANTED_FILE_MAX)).flatten()?;
    let mut rest = pages.bytes();
    for file in files {
        let len = file.write(rest)?;
        rest = rest.get_mut(len..)?;
    }
    Some(pages)
}

/// The granted files whose descriptors the new program gets.
fn granted_files(start: Start, files: &mut [GrantedFile; FILES_MAX]) -> &[GrantedFile] {
    let mut len = 0;
    let mut add = |file: GrantedFile, files: &mut [GrantedFile; FILES_MAX]| {
        if let Some(known) = files.get(..len)
            && !known.contains(&file)
            && let Some(place) = files.get_mut(len)
        {
            *place = file;
            len += 1;
        }
    };
    if start == Start::Vfork {
        // What has become of its descriptors since nobody has noted.
        vforks::with_granted(|value| GrantedFile::parse_all(value).for_each(|file| add(file, files)));
        return files.get(..len).unwrap_or(&[]);
    }
    let own = FDS.granted().filter_map(|(fd, dev, ino)| {
        let fd = sys::borrow(fd)?;
        let flags = rustix::io::fcntl_getfd(fd).ok()?;
        if start == Start::Exec && flags.contains(rustix::io::FdFlags::CLOEXEC) {
            return None;
        }
        let stat = rustix::fs::fstat(fd).ok()?;
        let ino = if ino == ITS_OWN { stat.st_ino } else { ino };
        Some(GrantedFile { backing_dev: stat.st_dev, backing_ino: stat.st_ino, dev, ino })
    });
    own.chain(process::inherited()).for_each(|file| add(file, files));
    files.get(..len).unwrap_or(&[])
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    fn completed(before: &[&str]) -> Option<Vec<String>> {
        let before = before.iter().map(|text| &*Box::leak(CString::new(*text).unwrap().into_boxed_c_str()));
        let mut pointers = Pages::new(4096).unwrap();
        for (index, string) in before.enumerate() {
            assert!(pointers.put_pointer(index, Some(EnvString::from(string))));
        }
        let pages = complete(Strings::from_pages(&pointers), Start::Exec)?;
        Some(Strings::from_pages(&pages).iter().map(|string| string.text()).collect())
    }

    #[test]
    fn programs_are_started_with_the_library() {
        LIBRARY.keep(b"/lib/f.so");
        HANDED_DOWN.keep(b"0,1,2,aa,/m");
        let mounts = "FINESSE_MOUNTS=0,1,2,aa,/m";
        for (before, after) in [
            (&["LD_PRELOAD=/lib/f.so", mounts][..], None),
            (&["LD_PRELOAD=/x.so /lib/f.so", "A=1", mounts], None),
            (&[], Some(vec!["LD_PRELOAD=/lib/f.so", mounts])),
            (&["A=1", "LD_PRELOAD=/x.so", mounts], Some(vec!["A=1", mounts, "LD_PRELOAD=/x.so:/lib/f.so"])),
            (&["LD_PRELOAD=/lib/f.so.1"], Some(vec!["LD_PRELOAD=/lib/f.so.1:/lib/f.so", mounts])),
            (
                &["LD_PRELOAD=/lib/f.so", mounts, "FINESSE_FDS=old"],
                Some(vec!["LD_PRELOAD=/lib/f.so", mounts]),
            ),
        ] {
            let after = after.map(|strings| strings.into_iter().map(str::to_owned).collect());
            assert_eq!(completed(before), after, "{before:?}");
        }
        PATIENCE.keep(b"5");
        for (before, after) in [
            (&["LD_PRELOAD=/lib/f.so", mounts, "FINESSE_CONNECT_AFTER=7"][..], None),
            (
                &["LD_PRELOAD=/lib/f.so", mounts],
                Some(["LD_PRELOAD=/lib/f.so", mounts, "FINESSE_CONNECT_AFTER=5"]),
            ),
        ] {
            assert_eq!(
                completed(before),
                after.map(|strings| strings.map(str::to_owned).to_vec()),
                "{before:?}"
            );
        }
    }
}
