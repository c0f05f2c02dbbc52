//! Open files of a bypass client: what the preload library does with them, without it.

use std::ffi::CString;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use finesse_ipc::client::{Call, Client};
use finesse_ipc::frame::{
    BY_FILE, Fallback, OWN_OFFSET, Op, Outcome, REPLY_GRANT, REPLY_VIRTUAL, ROOT, Request,
};

use super::eventually;

/// What a system call returns: a number and bytes, or an errno.
pub type Result = std::result::Result<(u64, Vec<u8>), i32>;

/// An open file on a connection, as the preload library would have it.
pub struct Virtual<'c> {
    pub client: &'c Client,
    pub number: u64,
    pub flags: u32,
}

pub fn outcome<'c>(call: std::result::Result<Call<'c>, Fallback>) -> std::result::Result<Call<'c>, Outcome> {
    let call = call.unwrap_or_else(|reason| panic!("no round trip: {reason:?}"));
    match call.reply.outcome() {
        Outcome::Ok => Ok(call),
        other => Err(other),
    }
}

pub fn try_open<'c>(
    client: &'c Client,
    name: &str,
    flags: i32,
    mode: u32,
) -> std::result::Result<Virtual<'c>, Outcome> {
    let request = Request { base: ROOT, flags: flags as u32, mode, ..Request::default() };
    let call = outcome(client.call(Op::Open, &request, name.as_bytes(), b""))?;
    assert_eq!(call.reply.flags & (REPLY_VIRTUAL | REPLY_GRANT), REPLY_VIRTUAL, "{name}");
    assert_ne!(call.reply.to_attr().ino, 0);
    Ok(Virtual { client, number: call.reply.file().into(), flags: call.reply.flags })
}

/// Opens a file that can be opened virtually, once the kernel has told of the last close of what it had open.
pub fn open<'c>(client: &'c Client, name: &str, flags: i32) -> Virtual<'c> {
    let mut file = None;
    eventually("the kernel lets go of it", || match try_open(client, name, flags, 0o644) {
        Ok(opened) => {
            file = Some(opened);
            true
        }
        Err(Outcome::Kernel(Fallback::KernelHasItOpen)) => false,
        Err(error) => panic!("{name}: {error:?}"),
    });
    file.unwrap()
}

impl Virtual<'_> {
    pub fn ask(&self, op: Op, request: Request, path2: &[u8], data: &[u8]) -> Result {
        let request = Request { base: self.number, ..request };
        let call = self.client.call_with(op, &request, b"", path2, |buffer| buffer.append(data));
        match outcome(call) {
            Ok(call) => {
                let mut bytes = vec![0; call.reply.len as usize];
                let len = call.data(&mut bytes).len();
                bytes.truncate(len);
                Ok((call.reply.number(), bytes))
            }
            Err(Outcome::Errno(errno)) => Err(errno),
            Err(other) => panic!("{op:?}: {other:?}"),
        }
    }

    pub fn read_at(&self, at: u64, len: u32) -> std::result::Result<Vec<u8>, i32> {
        let request = Request { base2: at, mode: len, ..Request::default() };
        self.ask(Op::Read, request, b"", b"").map(|(_, bytes)| bytes)
    }

    pub fn read(&self, len: u32) -> std::result::Result<Vec<u8>, i32> {
        self.read_at(OWN_OFFSET, len)
    }

    pub fn write_at(&self, at: u64, data: &[u8]) -> std::result::Result<u64, i32> {
        let request = Request { base2: at, mode: data.len() as u32, ..Request::default() };
        self.ask(Op::Write, request, b"", data).map(|(number, _)| number)
    }

    pub fn write(&self, data: &[u8]) -> std::result::Result<u64, i32> {
        self.write_at(OWN_OFFSET, data)
    }

    pub fn seek(&self, to: i64, whence: i32) -> std::result::Result<u64, i32> {
        let request = Request { base2: to as u64, mode: whence as u32, ..Request::default() };
        self.ask(Op::Seek, request, b"", b"").map(|(number, _)| number)
    }

    pub fn truncate(&self, size: i64) -> std::result::Result<(), i32> {
        let request = Request { size: size as u64, flags: BY_FILE, ..Request::default() };
        self.ask(Op::Truncate, request, b"", b"").map(drop)
    }

    pub fn allocate(&self, mode: i32, offset: i64, len: i64) -> std::result::Result<(), i32> {
        let request =
            Request { mode: mode as u32, base2: offset as u64, size: len as u64, ..Request::default() };
        self.ask(Op::Allocate, request, b"", b"").map(drop)
    }

    pub fn set_flags(&self, flags: i32) -> std::result::Result<(), i32> {
        self.ask(Op::SetFlags, Request { flags: flags as u32, ..Request::default() }, b"", b"").map(drop)
    }

    pub fn close(&self) -> std::result::Result<(), i32> {
        self.ask(Op::Close, Request::default(), b"", b"").map(drop)
    }

    pub fn stat(&self) -> finesse_ipc::frame::Attr {
        let request = Request { base: self.number, flags: BY_FILE, ..Request::default() };
        outcome(self.client.call(Op::Stat, &request, b"", b"")).unwrap().reply.to_attr()
    }

    /// The one-time name and the offset.
    pub fn promote(&self) -> std::result::Result<(String, u64), i32> {
        let (offset, name) = self.ask(Op::Promote, Request::default(), b"", b"")?;
        Ok((String::from_utf8(name).unwrap(), offset))
    }

    /// A kernel descriptor, made as the preload library makes it.
    pub fn promoted(&self, mount: &Path, flags: i32) -> std::io::Result<File> {
        let (name, offset) = self.promote().map_err(std::io::Error::from_raw_os_error)?;
        let mut file = open_hidden(self.client, mount, &name, flags)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    }
}

pub fn hidden(client: &Client) -> String {
    let name = client.welcome().hidden;
    let len = name.iter().position(|byte| *byte == 0).unwrap();
    std::str::from_utf8(&name[..len]).unwrap().to_owned()
}

pub fn open_hidden(client: &Client, mount: &Path, name: &str, flags: i32) -> std::io::Result<File> {
    let path = mount.join(hidden(client)).join(name);
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let flags = flags | libc::O_CREAT | libc::O_CLOEXEC;
    // SAFETY: the path is a string with a NUL.
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}
