//! Life as a daemon: the command returns when the mount is ready, or says why it is not.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::exit;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use super::{Failure, Outcome, plain, sys};

/// Who waits to hear that the daemon is ready.
pub(crate) enum Herald {
    /// Nobody: the command stays in the foreground.
    Foreground,
    /// The command that the user started.
    Background(OwnedFd),
}

/// What the daemon writes before an error's text, and instead of one.
const READY: u8 = b'+';
const FAILED: u8 = b'-';

/// Goes on in a new session of its own, in the background. Returns only there: the process that was called
/// waits for [`Herald::ready`] or [`Herald::failed`] and exits accordingly.
///
/// # Errors
/// No process or pipe can be made, or this process has threads already.
pub(crate) fn detach() -> Outcome<Herald> {
    let cannot = |error: std::io::Error| {
        Failure::new(format!("cannot go into the background: {}; mount with -f", plain(&error)))
    };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| cannot(errno.into()))?;
    match sys::fork().map_err(cannot)? {
        Some(child) => {
            drop(writer);
            exit(await_daemon(child, reader))
        }
        None => {
            drop(reader);
            rustix::process::setsid().map_err(|errno| cannot(errno.into()))?;
            Ok(Herald::Background(writer))
        }
    }
}

fn await_daemon(child: Pid, reader: OwnedFd) -> i32 {
    let mut said = Vec::new();
    // An error reads like a daemon that said nothing.
    let _ = File::from(reader).read_to_end(&mut said);
    match said.split_first() {
        Some((&READY, _)) => 0,
        Some((_, line)) => {
            eprintln!("finesse: {}", String::from_utf8_lossy(line));
            1
        }
        None => {
            let status = rustix::process::waitpid(Some(child), WaitOptions::empty()).ok().flatten();
            let how = match status.and_then(|(_, status)| status.terminating_signal()) {
                Some(signal) => format!("by signal {signal}"),
                None => "unexpectedly".to_owned(),
            };
            eprintln!("finesse: the daemon ended {how} while it started; mount with -f to see why");
            1
        }
    }
}

impl Herald {
    /// The mount is ready: the command may return. Standard streams go to `log`, or nowhere.
    ///
    /// # Errors
    /// The log file cannot be opened.
    pub(crate) fn ready(self, log: Option<&Path>) -> Outcome {
        let Self::Background(writer) = self else { return Ok(()) };
        let open = |path: &Path, flags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::from_raw_mode(0o640))
                .map_err(|errno| Failure::new(format!("{}: {}", path.display(), plain(&errno.into()))))
        };
        let null = Path::new("/dev/null");
        let input = open(null, OFlags::RDONLY)?;
        let output = match log {
            Some(log) => open(log, OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE)?,
            None => open(null, OFlags::WRONLY)?,
        };
        rustix::stdio::dup2_stdin(&input)
            .and_then(|()| rustix::stdio::dup2_stdout(&output))
            .and_then(|()| rustix::stdio::dup2_stderr(&output))
            .map_err(|errno| Failure::new(format!("standard streams: {}", plain(&errno.into()))))?;
        // Fails if the user has killed the command: the mount is as good as before.
        let _ = File::from(writer).write_all(&[READY]);
        Ok(())
    }

    /// Hands the failure to whoever the user looks at. In the foreground that is the caller.
    pub(crate) fn failed(self, failure: Failure) -> Failure {
        match self {
            Self::Foreground => failure,
            Self::Background(writer) => {
                let mut line = vec![FAILED];
                line.extend_from_slice(failure.line.as_bytes());
                // Fails if the user has killed the command.
                let _ = File::from(writer).write_all(&line);
                Failure::new("")
            }
        }
    }
}
