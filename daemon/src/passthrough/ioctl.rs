//! The ioctl(2) commands that may be passed on: file flags and project ids, whose arguments are plain numbers.

#![deny(unsafe_code)]

use rustix::io::{Errno, Result};

use super::{PassthroughFs, Rights, sys};
use crate::{FileHandle, Request};

/// A command, and how it is made on the backing.
struct Command {
    /// As the program gives it.
    request: u32,
    /// As the backing gets it: the 64-bit form.
    native: u32,
    /// The true size of its argument, in bytes. The size in the number of the oldest commands is wrong.
    size: usize,
    direction: Direction,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Get,
    Set,
}

const fn command(request: u32, native: u32, size: usize, direction: Direction) -> Command {
    Command { request, native, size, direction }
}

const COMMANDS: [Command; 8] = [
    // FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_IOC_GETVERSION, in their 64-bit and 32-bit forms.
    command(0x8008_6601, 0x8008_6601, 4, Direction::Get),
    command(0x8004_6601, 0x8008_6601, 4, Direction::Get),
    command(0x4008_6602, 0x4008_6602, 4, Direction::Set),
    command(0x4004_6602, 0x4008_6602, 4, Direction::Set),
    command(0x8008_7601, 0x8008_7601, 4, Direction::Get),
    command(0x8004_7601, 0x8008_7601, 4, Direction::Get),
    // FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR.
    command(0x801c_581f, 0x801c_581f, 28, Direction::Get),
    command(0x401c_5820, 0x401c_5820, 28, Direction::Set),
];

impl PassthroughFs {
    /// Returns the command's result and what it wrote.
    ///
    /// # Errors
    /// `ENOTTY` for every command that is not known to be safe.
    pub(super) fn control(
        &self,
        req: &Request,
        ino: u64,
        fh: FileHandle,
        request: u32,
        input: &[u8],
        room: u32,
    ) -> Result<(i32, Vec<u8>)> {
        let command = COMMANDS.iter().find(|command| command.request == request).ok_or(Errno::NOTTY)?;
        let mut data = [0; sys::IOCTL_ROOM];
        if command.direction == Direction::Set {
            data[..command.size].copy_from_slice(input.get(..command.size).ok_or(Errno::INVAL)?);
        }
        // Flags are the owner's to set, some only root's; the backing knows.
        let rights = if command.direction == Direction::Set { Rights::Caller } else { Rights::Checked };
        let file = self.files.get(fh);
        let stream = if file.is_err() { Some(self.stream(req, ino, fh)?) } else { None };
        let id = stream.as_ref().map_or(ino, |stream| stream.id);
        // Flags can forbid the removal of a file.
        if let (Some(deferred), Direction::Set) = (&self.deferred, command.direction) {
            deferred.keeps(id);
        }
        self.settle(id);
        let _hold = self.deferred.as_ref().map(|deferred| deferred.hold(id));
        self.act(req, rights)?;
        let result = match (&file, &stream) {
            (Ok(file), _) => sys::ioctl_plain(&**file, command.native, &mut data)?,
            (Err(_), Some(stream)) => sys::ioctl_plain(&**stream, command.native, &mut data)?,
            (Err(errno), None) => return Err(*errno),
        };
        // Beyond what the command really wrote, the answer is zeros up to the size that the kernel expects.
        let length = if command.direction == Direction::Get { (room as usize).min(data.len()) } else { 0 };
        Ok((result, data[..length].to_vec()))
    }
}
