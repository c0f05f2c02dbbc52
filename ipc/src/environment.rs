//! What is handed from one program to the next in the environment.
//!
//! | variable | written by | holds |
//! | --- | --- | --- |
//! | [`MOUNTS`] | `finesse run`, kept by the preload library | the mounts it may find, so that no program need read `/proc/self/mountinfo` |
//! | [`DESCRIPTORS`] | the preload library, at exec | files granted to the program before, whose descriptors stay open |
//! | [`CONNECT_AFTER`] | the user, kept by the preload library | how many calls on a mount the kernel serves before a process connects to its daemon |
//! | [`DEBUG`] | the user | if set, the preload library says on standard error why it does not use a mount |
//!
//! [`MOUNTS`] is a list of entries separated by `:`, each of which is
//! `MAJOR,MINOR,GENERATION,SOCKET,PATH` (a mount) or `PATH` (another mount below one: leave it alone).
//! Numbers are decimal; SOCKET is the abstract socket's name in hexadecimal; in PATH the bytes `%`, `:`, `,`
//! are written as `%` and two hexadecimal digits. An absent [`MOUNTS`] means "read mountinfo"; an empty one
//! means "there is none". Reading never allocates.

use std::ffi::{CStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The list of mounts.
pub const MOUNTS: &CStr = c"FINESSE_MOUNTS";
/// The list of granted descriptors' files.
pub const DESCRIPTORS: &CStr = c"FINESSE_FDS";
/// How many calls on a mount the kernel serves before a process connects to its daemon: decimal; [`CONNECT_AFTER_DEFAULT`]
/// if absent or malformed.
pub const CONNECT_AFTER: &CStr = c"FINESSE_CONNECT_AFTER";
/// About as many calls as it takes until the bypass has saved the time that connecting takes. So a process loses at
/// most as much again, however many calls it makes.
pub const CONNECT_AFTER_DEFAULT: u32 = 16;
/// Asks for a line on standard error when a mount is not used.
pub const DEBUG: &CStr = c"FINESSE_DEBUG";
/// The dynamic linker's list of libraries to preload.
pub const PRELOAD: &CStr = c"LD_PRELOAD";

/// Longest mount path that the preload library serves, in bytes.
pub const MOUNT_PATH_MAX: usize = 1023;
/// Longest abstract socket name, in bytes (`sun_path` without its leading NUL).
pub const SOCKET_MAX: usize = 107;

/// A value of [`CONNECT_AFTER`].
pub fn connect_after(value: Option<&[u8]>) -> u32 {
    let given = value.and_then(decimal).and_then(|number| u32::try_from(number).ok());
    given.unwrap_or(CONNECT_AFTER_DEFAULT)
}

/// One entry of [`MOUNTS`], still escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint<'e> {
    /// A mount of ours.
    Mount {
        /// `st_dev`, major and minor.
        dev: (u32, u32),
        /// The daemon's mount generation when the list was made; another one means that the list is old.
        generation: u64,
        /// The daemon's socket, in hexadecimal; empty if unknown.
        socket: &'e [u8],
        /// Where it is mounted, escaped.
        path: &'e [u8],
    },
    /// Another mount below one of ours, escaped.
    Excluded(&'e [u8]),
}

/// The entries of a value of [`MOUNTS`]; malformed ones are left out.
pub fn hints(value: &[u8]) -> impl Iterator<Item = Hint<'_>> {
    value.split(|byte| *byte == b':').filter_map(|entry| {
        let mut fields = entry.split(|byte| *byte == b',');
        let first = fields.next()?;
        let Some(minor) = fields.next() else {
            return (!first.is_empty()).then_some(Hint::Excluded(first));
        };
        let generation = decimal(fields.next()?)?;
        let (socket, path) = (fields.next()?, fields.next()?);
        if fields.next().is_some() || path.is_empty() {
            return None;
        }
        let dev = (decimal(first)?.try_into().ok()?, decimal(minor)?.try_into().ok()?);
        Some(Hint::Mount { dev, generation, socket, path })
    })
}

/// One entry to write.
#[derive(Clone, Copy, Debug)]
pub enum Entry<'e> {
    /// A mount of ours.
    Mount {
        /// `st_dev`, major and minor.
        dev: (u32, u32),
        /// The daemon's mount generation.
        generation: u64,
        /// The daemon's abstract socket name.
        socket: &'e [u8],
        /// Where it is mounted: absolute, without symbolic links, as in mountinfo.
        path: &'e Path,
    },
    /// Another mount below one of ours.
    Excluded(&'e Path),
}

/// Writes a value of [`MOUNTS`].
pub fn mounts_value<'e>(entries: impl IntoIterator<Item = Entry<'e>>) -> OsString {
    let mut value = String::new();
    for entry in entries {
        if !value.is_empty() {
            value.push(':');
        }
        let path = match entry {
            Entry::Excluded(path) => path,
            Entry::Mount { dev: (major, minor), generation, socket, path } => {
                let _ = write!(value, "{major},{minor},{generation},");
                for byte in socket {
                    let _ = write!(value, "{byte:02x}");
                }
                value.push(',');
                path
            }
        };
        for byte in path.as_os_str().as_bytes() {
            match byte {
                b'%' | b':' | b',' | 0x80.. => drop(write!(value, "%{byte:02x}")),
                _ => value.push(char::from(*byte)),
            }
        }
    }
    OsString::from_vec(value.into_bytes())
}

/// Undoes the escapes of a path; `None` if it does not fit or is malformed.
pub fn unescape<'b>(escaped: &[u8], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let mut len = 0;
    let mut rest = escaped;
    while let Some((byte, tail)) = rest.split_first() {
        let (byte, tail) = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => (digit(*high)? << 4 | digit(*low)?, tail),
            (b'%', _) => return None,
            _ => (*byte, tail),
        };
        *buffer.get_mut(len)? = byte;
        len += 1;
        rest = tail;
    }
    buffer.get(..len)
}

/// Decodes hexadecimal digits, two per byte; `None` if they do not fit or are malformed.
pub fn unhex<'b>(digits: &[u8], buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    for (index, [high, low]) in pairs.iter().enumerate() {
        *buffer.get_mut(index)? = digit(*high)? << 4 | digit(*low)?;
    }
    buffer.get(..pairs.len())
}

/// A file that was granted to a program and stays open across exec: how to recognise its descriptor, and what
/// the mount calls it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantedFile {
    /// `st_dev` of the backing file.
    pub backing_dev: u64,
    /// `st_ino` of the backing file.
    pub backing_ino: u64,
    /// `st_dev` of the mount.
    pub dev: u64,
    /// `st_ino` on the mount.
    pub ino: u64,
}

/// Longest text of one [`GrantedFile`], separator included.
pub const GRANTED_FILE_MAX: usize = 4 * 17;

impl GrantedFile {
    /// The files of a value of [`DESCRIPTORS`]; malformed ones are left out.
    pub fn parse_all(value: &[u8]) -> impl Iterator<Item = Self> + '_ {
        value.split(|byte| *byte == b':').filter_map(|entry| {
            let mut fields = entry.split(|byte| *byte == b',').map(hexadecimal);
            let mut next = || fields.next().flatten();
            let (backing_dev, backing_ino) = (next()?, next()?);
            let (dev, ino) = (next()?, next()?);
            Some(Self { backing_dev, backing_ino, dev, ino })
        })
    }

    /// Writes this file, with its separator, to the beginning of `out`; returns the length, or `None` if there
    /// is no room.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let mut len = 0;
        for (number, end) in
            [(self.backing_dev, b','), (self.backing_ino, b','), (self.dev, b','), (self.ino, b':')]
        {
            for shift in (0..16).rev() {
                let nibble = (number >> (shift * 4)) as usize & 15;
                if number >> (shift * 4) != 0 || shift == 0 {
                    *out.get_mut(len)? = b"0123456789abcdef"[nibble];
                    len += 1;
                }
            }
            *out.get_mut(len)? = end;
            len += 1;
        }
        Some(len)
    }
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    number(digits, 10)
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    number(digits, 16)
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| {
        value.checked_mul(radix.into())?.checked_add(char::from(*byte).to_digit(radix)?.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_says_when_to_connect() {
        assert_eq!(connect_after(None), CONNECT_AFTER_DEFAULT);
        for (value, calls) in [("0", 0), ("7", 7), ("4294967295", u32::MAX)] {
            assert_eq!(connect_after(Some(value.as_bytes())), calls);
        }
        for value in ["", "-1", "x", "4294967296", "1 "] {
            assert_eq!(connect_after(Some(value.as_bytes())), CONNECT_AFTER_DEFAULT, "{value}");
        }
    }

    #[test]
    fn mounts_survive_the_environment_whatever_their_names() {
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/mnt/a:b,c%d \xff"));
        let value = mounts_value([
            Entry::Mount { dev: (0, 61), generation: 3, socket: b"\x01finesse", path: odd },
            Entry::Excluded(Path::new("/mnt/a:b,c/sub")),
        ]);
        let read: Vec<_> = hints(value.as_bytes()).collect();
        let [Hint::Mount { dev, generation, socket, path }, Hint::Excluded(below)] = read[..] else {
            panic!("{read:?}")
        };
        let mut buffer = [0; 64];
        assert_eq!((dev, generation), ((0, 61), 3));
        assert_eq!(unhex(socket, &mut buffer), Some(b"\x01finesse".as_slice()));
        assert_eq!(unescape(path, &mut buffer), Some(odd.as_os_str().as_bytes()));
        assert_eq!(unescape(below, &mut buffer), Some(b"/mnt/a:b,c/sub".as_slice()));
    }

    #[test]
    fn malformed_entries_are_left_out() {
        for value in ["", ":", "1", "1,2", "x,1,1,00,/m", "1,2,3,00,", "1,2,3,00,/m,x", "99999999999,1,1,,/m"]
        {
            let mounts = hints(value.as_bytes()).filter(|hint| matches!(hint, Hint::Mount { .. }));
            assert_eq!(mounts.count(), 0, "{value}");
        }
        assert_eq!(unescape(b"/a%4", &mut [0; 9]), None);
        assert_eq!(unescape(b"/abc", &mut [0; 3]), None);
        assert_eq!(unhex(b"abc", &mut [0; 9]), None);
    }

    #[test]
    fn granted_files_survive_the_environment() {
        let files = [
            GrantedFile { backing_dev: 0, backing_ino: u64::MAX, dev: 61, ino: 9 },
            GrantedFile { backing_dev: 0x1_0000_0801, ..GrantedFile::default() },
        ];
        let mut buffer = [0; 2 * GRANTED_FILE_MAX];
        let first = files[0].write(&mut buffer).unwrap();
        let second = files[1].write(&mut buffer[first..]).unwrap();
        let read: Vec<_> = GrantedFile::parse_all(&buffer[..first + second]).collect();
        assert_eq!(read, files);
        assert_eq!(files[0].write(&mut [0; 20]), None);
    }
}
