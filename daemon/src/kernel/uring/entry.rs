//! One entry of a queue: the memory that the kernel puts a request into and takes the answer from.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use fuser::Errno;
use log::warn;
use parking_lot::{Condvar, Mutex};
use zerocopy::{FromZeros, IntoBytes};

use super::abi::{EntInOut, InHeader, OutHeader};
use super::sys::{Area, HEADER_ENT, HEADER_OP};

/// Answers up to this many bytes wait beside the entry's memory: any but data, listings and long attributes.
const SHORT: usize = 256;
/// Room for a message's own header (`op_in`).
pub(super) const OP_IN: usize = 128;

#[derive(Debug)]
enum State {
    /// The file system has the request, or nobody.
    Open,
    Answered {
        error: i32,
        len: u32,
        /// The payload is in the entry's memory.
        placed: bool,
    },
}

#[derive(Debug)]
struct Answer {
    state: State,
    /// What answers it, unless that was placed.
    short: [u8; SHORT],
    /// The session has ended: nobody waits.
    ended: bool,
}

/// An entry. Its memory outlives every answer that is still to come.
#[derive(Debug)]
pub(crate) struct Entry {
    area: Area,
    device: Weak<OwnedFd>,
    answer: Mutex<Answer>,
    answered: Condvar,
}

/// A request, as the kernel put it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: InHeader,
    pub(super) op: [u8; OP_IN],
    /// What follows, unless it was left in place.
    pub(super) rest: Vec<u8>,
    /// Its length in the entry.
    pub(super) len: usize,
}

impl Message {
    pub(super) fn new() -> Self {
        Self { header: InHeader::new_zeroed(), op: [0; OP_IN], rest: Vec::new(), len: 0 }
    }
}

impl Entry {
    pub(super) fn new(payload: usize, device: Weak<OwnedFd>) -> std::io::Result<Self> {
        Ok(Self {
            area: Area::new(payload)?,
            device,
            answer: Mutex::new(Answer { state: State::Open, short: [0; SHORT], ended: false }),
            answered: Condvar::new(),
        })
    }

    pub(super) fn area(&self) -> &Area {
        &self.area
    }

    /// Reads the request that has just arrived, all but what `stays` in place, and prepares for its answer.
    pub(super) fn receive(&self, message: &mut Message, stays: impl Fn(&InHeader) -> bool) {
        self.area.read(0, message.header.as_mut_bytes());
        self.area.read(HEADER_OP, &mut message.op);
        let mut ent = EntInOut::new_zeroed();
        self.area.read(HEADER_ENT, ent.as_mut_bytes());
        message.len = (ent.payload_sz as usize).min(self.area.payload_size());
        message.rest.clear();
        if !stays(&message.header) {
            message.rest.resize(message.len, 0);
            self.area.read_payload(&mut message.rest);
        }
        self.answer.lock().state = State::Open;
    }

    /// Waits for the answer and puts it where the kernel takes it from. False if the session ends first.
    pub(super) fn finish(&self, unique: u64) -> bool {
        let mut answer = self.answer.lock();
        loop {
            match answer.state {
                State::Open if answer.ended => return false,
                State::Open => self.answered.wait(&mut answer),
                State::Answered { error, len, placed } => {
                    if !placed {
                        self.area.write_payload(0, &answer.short[..len as usize]);
                    }
                    let header = OutHeader { len: size_of::<OutHeader>() as u32 + len, error, unique };
                    self.area.write(0, header.as_bytes());
                    let ent = EntInOut { payload_sz: len, commit_id: unique, ..EntInOut::new_zeroed() };
                    self.area.write(HEADER_ENT, ent.as_bytes());
                    return true;
                }
            }
        }
    }

    /// Nobody needs to wait any longer.
    pub(super) fn end(&self) {
        self.answer.lock().ended = true;
        self.answered.notify_all();
    }

    /// What lies in place, while the request is served.
    pub(super) fn data(&self, len: usize) -> &[u8] {
        self.area.payload(len)
    }
}

/// The right to answer one request, once. Dropped unused it answers `EIO`.
#[derive(Debug)]
pub(crate) struct Ticket {
    entry: Option<Arc<Entry>>,
    /// Nobody reads the entry's memory any more, so long answers may go there.
    room: bool,
}

impl Ticket {
    pub(super) fn new(entry: Arc<Entry>, room: bool) -> Self {
        Self { entry: Some(entry), room }
    }

    /// The session's device.
    pub(crate) fn device(&self) -> &Weak<OwnedFd> {
        &self.entry.as_ref().expect("taken only when it is used").device
    }

    /// Answers with what these parts make together.
    pub(crate) fn send(mut self, parts: &[&[u8]]) {
        let Some(entry) = self.entry.take() else { return };
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let mut answer = entry.answer.lock();
        let (mut error, mut placed) = (0, false);
        if len <= SHORT {
            let mut at = 0;
            for part in parts {
                answer.short[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
        } else if self.room && len <= entry.area.payload_size() {
            let mut at = 0;
            for part in parts {
                entry.area.write_payload(at, part);
                at += part.len();
            }
            placed = true;
        } else {
            warn!("an answer of {len} bytes is longer than the kernel allows");
            error = -libc::EIO;
        }
        let len = if error == 0 { len as u32 } else { 0 };
        answer.state = State::Answered { error, len, placed };
        // A load of one word when nobody sleeps.
        entry.answered.notify_one();
    }

    /// Answers with an error.
    pub(crate) fn error(mut self, error: Errno) {
        self.fail(error.code());
    }

    fn fail(&mut self, error: i32) {
        let Some(entry) = self.entry.take() else { return };
        entry.answer.lock().state = State::Answered { error: -error, len: 0, placed: false };
        entry.answered.notify_one();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.entry.is_some() {
            warn!("a reply was dropped without an answer; answering EIO");
            self.fail(libc::EIO);
        }
    }
}
