//! The program that is measured: plain calls of the C library on plain paths. It knows nothing of Finesse and
//! does not link it; whether it takes the bypass is decided by who starts it.
//!
//! ```text
//! finesse-bench-calls unlink  ROOT DIRS FILES    removes every file of a tree
//! finesse-bench-calls stat    ROOT DIRS FILES    looks at every file of a tree
//! finesse-bench-calls read    ROOT DIRS FILES    opens, reads and closes every file of a tree
//! finesse-bench-calls write   ROOT DIRS FILES    creates, writes and closes every file of a tree
//! finesse-bench-calls each OP ROOT DIRS FILES N  times single calls: stat, open, read, create, unlink
//! finesse-bench-calls threads OP ROOT FILES N PLACE THREADS
//!     times N calls in each of several threads. PLACE says in which directories, each of which has so many files:
//!     all in one (`shared`), each in one of its own (`private`), all on one file (`same`), or all of them
//!     in so many, in turns (`spread:DIRS`)
//! finesse-bench-calls processes OP ROOT FILES N PLACE COUNT
//!     the same in processes of one thread each
//! finesse-bench-calls idle ROOT                  looks at ROOT and does nothing more until standard input ends
//! ```
//!
//! It writes `progress COUNT` now and then and at last `elapsed NANOSECONDS`, which is the time of the calls alone, or
//! `summary P50 P99`, or `took NANOSECONDS CPU`, which is the processor time of all threads or processes; `ready` when all
//! processes, or the one that is to be idle, have made their first call.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use finesse_bench::{PathWriter, Shape, Summary, as_nanos, clock_cost, nanos};
use rustix::time::ClockId;

/// Files between two reports of progress.
const REPORT: u64 = 1 << 15;
/// Files whose names are composed before they are timed.
const BATCH: u64 = 4096;
/// What is read or written of a file, in bytes.
const BLOCK: usize = 4096;
/// What a file server writes and appends (Filebench's `fileserver`: means of 128 and 16 KiB).
const WHOLE: usize = 128 << 10;
const APPENDED: usize = 16 << 10;
/// In which whoever has started us can look at the daemon while all processes are connected.
const PAUSE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("finesse-bench-calls: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["unlink", root, dirs, files] => every(root, shape(dirs, files)?, |path| std::fs::remove_file(path)),
        ["stat", root, dirs, files] => {
            every(root, shape(dirs, files)?, |path| std::fs::symlink_metadata(path).map(drop))
        }
        ["read", root, dirs, files] => every(root, shape(dirs, files)?, read),
        ["write", root, dirs, files] => {
            every(root, shape(dirs, files)?, |path| File::create_new(path)?.write_all(&[b'x'; BLOCK]))
        }
        ["each", op, root, dirs, files, count] => {
            let (shape, count) = (shape(dirs, files)?, count.parse()?);
            match op {
                "stat" => each(root, shape, count, |path| std::fs::symlink_metadata(path).map(drop)),
                "open" => each(root, shape, count, |path| File::open(path).map(drop)),
                "read" => each(root, shape, count, read),
                "create" => each(root, shape, count, |path| {
                    let new = path.with_extension("new");
                    File::create_new(new)?.write_all(&[b'x'; BLOCK])
                }),
                "unlink" => each(root, shape, count, |path| std::fs::remove_file(path)),
                _ => Err(format!("{op}: no such operation").into()),
            }
        }
        ["threads", op, root, files, calls, place, threads] => {
            Work::of(op, root, files, calls, place)?.in_threads(threads.parse()?)
        }
        ["processes", op, root, files, calls, place, count] => {
            in_processes(&["worker", op, root, files, calls, place], count.parse()?)
        }
        ["worker", op, root, files, calls, place, index] => {
            Work::of(op, root, files, calls, place)?.as_worker(index.parse()?)
        }
        ["idle", root] => {
            std::fs::symlink_metadata(root).map_err(|error| failed(Path::new(root), error))?;
            println!("ready");
            io::stdin().read_to_end(&mut Vec::new())?;
            Ok(())
        }
        _ => Err("see the head of its source for its usage".into()),
    }
}

/// open(2), read(2) of a block, close(2).
fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; BLOCK]).map(drop)
}

/// What threads do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// lstat(2) of files that are there, and have been looked at before.
    Stat,
    /// The same, of files that this process has not looked at.
    Cold,
    /// lstat(2) of names that do not exist.
    Absent,
    /// open(2), close(2).
    Open,
    /// The same, and read(2) between.
    Read,
    /// The same, of files in no order.
    Random,
    /// rename(2) in one directory, there and back.
    Rename,
    /// Lists a directory.
    List,
    /// Creates empty files and closes them.
    Make,
    /// Creates files, writes to them and closes them.
    Create,
    /// unlink(2) of the files that [`Make`](Self::Make) or [`Create`](Self::Create) has made.
    Remove,
    /// What a file server does: writes a file, appends to it, reads it, looks at it, removes it.
    Serve,
}

impl Call {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "stat" => Self::Stat,
            "cold" => Self::Cold,
            "absent" => Self::Absent,
            "open" => Self::Open,
            "read" => Self::Read,
            "random" => Self::Random,
            "rename" => Self::Rename,
            "list" => Self::List,
            "make" => Self::Make,
            "create" => Self::Create,
            "remove" => Self::Remove,
            "serve" => Self::Serve,
            _ => return None,
        })
    }

    /// Whether it can be made before it is timed.
    fn can_be_repeated(self) -> bool {
        matches!(self, Self::Stat | Self::Absent | Self::Open | Self::Read | Self::Random | Self::List)
    }
}

/// In which directories threads are at work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Shared,
    Private,
    Same,
    Spread(u64),
}

impl Place {
    fn of(text: &str) -> Result<Self, Box<dyn Error>> {
        Ok(match text {
            "shared" => Self::Shared,
            "private" => Self::Private,
            "same" => Self::Same,
            _ => match text.strip_prefix("spread:").map(str::parse).transpose()? {
                Some(dirs) if dirs > 0 => Self::Spread(dirs),
                _ => return Err(format!("{text}: no such place").into()),
            },
        })
    }
}

/// What each thread is to do.
#[derive(Clone, Copy)]
struct Work<'w> {
    call: Call,
    root: &'w Path,
    /// In each directory.
    files: u64,
    calls: u64,
    place: Place,
}

/// What one thread is to do, composed beforehand: only the calls are timed.
struct Share {
    call: Call,
    paths: Vec<PathBuf>,
    calls: u64,
    whole: Vec<u8>,
}

/// When a thread was at work, and its processor time, in nanoseconds.
struct Took {
    start: Instant,
    end: Instant,
    cpu: u64,
}

impl<'w> Work<'w> {
    fn of(op: &str, root: &'w str, files: &str, calls: &str, place: &str) -> Result<Self, Box<dyn Error>> {
        let call = Call::of(op).ok_or_else(|| format!("{op}: no such operation"))?;
        let (files, calls) = (files.parse()?, calls.parse()?);
        if files == 0 || calls == 0 {
            return Err("files and calls: at least one".into());
        }
        Ok(Self { call, root: Path::new(root), files, calls, place: Place::of(place)? })
    }

    fn in_threads(self, threads: u64) -> Result<(), Box<dyn Error>> {
        if threads == 0 {
            return Err("threads: at least one".into());
        }
        let barrier = Barrier::new(threads as usize);
        let took = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let mut share = self.share(thread);
                        let ready = self.get_ready(&mut share);
                        barrier.wait();
                        ready.and_then(|()| share.timed())
                    })
                })
                .collect();
            let took = workers.into_iter().map(|worker| worker.join().expect("no thread panics"));
            took.collect::<Result<Vec<_>, String>>()
        })?;
        let start = took.iter().map(|took| took.start).min();
        let end = took.iter().map(|took| took.end).max();
        let elapsed = end.zip(start).map_or(Duration::ZERO, |(end, start)| end - start);
        println!("took {} {}", as_nanos(elapsed), took.iter().map(|took| took.cpu).sum::<u64>());
        Ok(())
    }

    /// One of the processes of [`in_processes`].
    fn as_worker(self, index: u64) -> Result<(), Box<dyn Error>> {
        let mut share = self.share(index);
        self.get_ready(&mut share)?;
        println!("ready");
        io::stdin().read_line(&mut String::new())?;
        let took = share.timed()?;
        println!("took {} {}", as_nanos(took.end - took.start), took.cpu);
        Ok(())
    }

    /// The first call connects to a daemon, and what is asked for again is in all caches.
    fn get_ready(&self, share: &mut Share) -> Result<(), String> {
        std::fs::symlink_metadata(self.root).map_err(|error| format!("{}: {error}", self.root.display()))?;
        if !self.call.can_be_repeated() {
            return Ok(());
        }
        let calls = std::mem::replace(&mut share.calls, share.paths.len() as u64);
        let mut outcome = Ok(());
        if matches!(self.call, Call::Open | Call::Read) {
            // Reading a file for the first time changes when it was last accessed: so it has been read, and opened since.
            let call = std::mem::replace(&mut share.call, Call::Read);
            outcome = share.perform();
            share.call = call;
        }
        outcome = outcome.and_then(|()| share.perform());
        share.calls = calls;
        outcome
    }

    /// Threads in one directory start at different files.
    fn share(self, thread: u64) -> Share {
        let mut writer = PathWriter::new(self.root);
        let dir = if self.place == Place::Private { thread } else { 0 };
        let few = self.files.min(self.calls);
        // No file of a tree has such a number.
        let new = (1 << 40) | (thread << 32);
        let old = |writer: &mut PathWriter, number: u64| match self.place {
            Place::Same => writer.file(0, 0).to_owned(),
            Place::Spread(dirs) => {
                let all = dirs * self.files;
                let number = match self.call {
                    // Knuth's multiplier: neighbours are far from each other.
                    Call::Random => number.wrapping_mul(2_654_435_761),
                    _ => number,
                };
                let number = (thread * self.calls).wrapping_add(number) % all;
                writer.file(number / self.files, number).to_owned()
            }
            Place::Shared | Place::Private => {
                writer.file(dir, dir * self.files + (thread * 17 + number) % self.files).to_owned()
            }
        };
        let made = |writer: &mut PathWriter, number: u64| match self.place {
            Place::Spread(dirs) => writer.file((thread + number) % dirs, new | number).to_owned(),
            _ => writer.file(dir, new | number).to_owned(),
        };
        let paths = match self.call {
            Call::Stat | Call::Cold | Call::Open | Call::Read => {
                (0..few).map(|number| old(&mut writer, number)).collect()
            }
            Call::Random => (0..self.calls).map(|number| old(&mut writer, number)).collect(),
            Call::Absent => (0..few).map(|number| made(&mut writer, number)).collect(),
            Call::Make | Call::Create | Call::Remove | Call::Serve => {
                (0..self.calls).map(|number| made(&mut writer, number)).collect()
            }
            Call::List => vec![writer.dir(dir).to_owned()],
            Call::Rename => {
                // Of shared directories each thread renames files of its own, one name after the other.
                let share = (self.files / 64).max(1);
                let files =
                    (0..share).map(|number| dir * self.files + (thread * share + number) % self.files);
                files
                    .flat_map(|file| {
                        [writer.file(dir, file).to_owned(), writer.file(dir, new | file).to_owned()]
                    })
                    .collect()
            }
        };
        let whole = if self.call == Call::Serve { vec![b'x'; WHOLE] } else { Vec::new() };
        Share { call: self.call, paths, calls: self.calls, whole }
    }
}

impl Share {
    fn timed(&mut self) -> Result<Took, String> {
        let (cpu, start) = (cpu_time(), Instant::now());
        self.perform()?;
        Ok(Took { start, end: Instant::now(), cpu: cpu_time() - cpu })
    }

    fn perform(&mut self) -> Result<(), String> {
        let len = self.paths.len();
        for number in 0..self.calls as usize {
            let path = &self.paths[number % len];
            let result = match self.call {
                Call::Stat | Call::Cold => std::fs::symlink_metadata(path).map(drop),
                Call::Absent => match std::fs::symlink_metadata(path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    looked => looked.and(Err(io::ErrorKind::AlreadyExists.into())),
                },
                Call::Open => File::open(path).map(drop),
                Call::Read | Call::Random => {
                    File::open(path).and_then(|mut file| file.read(&mut [0; BLOCK]).map(drop))
                }
                Call::Rename => {
                    let pair = number / 2 % (len / 2) * 2;
                    let (from, to) = (&self.paths[pair], &self.paths[pair + 1]);
                    if number % 2 == 0 { std::fs::rename(from, to) } else { std::fs::rename(to, from) }
                }
                Call::List => std::fs::read_dir(path)
                    .and_then(|mut entries| entries.try_for_each(|entry| entry.map(drop))),
                Call::Make => File::create_new(path).map(drop),
                Call::Create => File::create_new(path).and_then(|mut file| file.write_all(&[b'x'; BLOCK])),
                Call::Remove => std::fs::remove_file(path),
                Call::Serve => serve(path, &mut self.whole),
            };
            result.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

/// One turn of Filebench's file server, with a file of its mean size.
fn serve(path: &Path, whole: &mut [u8]) -> io::Result<()> {
    File::create_new(path)?.write_all(whole)?;
    OpenOptions::new().append(true).open(path)?.write_all(&whole[..APPENDED])?;
    let mut file = File::open(path)?;
    while file.read(whole)? != 0 {}
    drop(file);
    let metadata = std::fs::metadata(path)?;
    if metadata.len() != (WHOLE + APPENDED) as u64 {
        return Err(io::Error::other(format!("{} bytes are there", metadata.len())));
    }
    std::fs::remove_file(path)
}

/// Starts processes, lets them begin together, and waits for all.
fn in_processes(arguments: &[&str], count: u64) -> Result<(), Box<dyn Error>> {
    let executable = std::env::current_exe()?;
    let mut workers = Vec::new();
    for index in 0..count {
        let mut worker = Command::new(&executable)
            .args(arguments)
            .arg(index.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (worker.stdin.take(), worker.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { return Err("no pipes".into()) };
        workers.push((worker, input, BufReader::new(output)));
    }
    let hear = |output: &mut dyn BufRead| {
        let mut line = String::new();
        output.read_line(&mut line).map(|_| line)
    };
    for (_, _, output) in &mut workers {
        if hear(output)? != "ready\n" {
            return Err("a process did not get ready".into());
        }
    }
    println!("ready");
    std::thread::sleep(PAUSE);
    let (start, mut cpu) = (Instant::now(), 0);
    for (_, input, _) in &mut workers {
        input.write_all(b"go\n")?;
    }
    for (_, _, output) in &mut workers {
        let line = hear(output)?;
        let took = line.trim_end().strip_prefix("took ").and_then(|took| took.split_once(' '));
        let (_, its) = took.ok_or("a process did not say how long it took")?;
        cpu += its.parse::<u64>()?;
    }
    println!("took {} {cpu}", as_nanos(start.elapsed()));
    for (mut worker, ..) in workers {
        worker.wait()?;
    }
    Ok(())
}

/// Processor time of this thread, in nanoseconds.
fn cpu_time() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn shape(dirs: &str, files: &str) -> Result<Shape, Box<dyn Error>> {
    Ok(Shape { dirs: dirs.parse()?, files: files.parse()? })
}

fn failed(path: &Path, error: io::Error) -> Box<dyn Error> {
    format!("{}: {error}", path.display()).into()
}

fn every(root: &str, shape: Shape, call: impl Fn(&Path) -> io::Result<()>) -> Result<(), Box<dyn Error>> {
    let mut writer = PathWriter::new(Path::new(root));
    let mut out = io::stdout().lock();
    let (mut done, mut elapsed) = (0u64, Duration::ZERO);
    let mut paths = Vec::new();
    for dir in 0..shape.dirs {
        let files = shape.files_of(dir);
        let mut first = files.start;
        while first < files.end {
            let end = files.end.min(first + BATCH);
            paths.clear();
            paths.extend((first..end).map(|file| writer.file(dir, file).to_owned()));
            let start = Instant::now();
            for path in &paths {
                call(path).map_err(|error| failed(path, error))?;
            }
            elapsed += start.elapsed();
            first = end;
            done += paths.len() as u64;
            if done / REPORT != (done - paths.len() as u64) / REPORT {
                writeln!(out, "progress {done}")?;
            }
        }
    }
    writeln!(out, "elapsed {}", as_nanos(elapsed))?;
    Ok(())
}

fn each(
    root: &str,
    shape: Shape,
    count: usize,
    call: impl Fn(&Path) -> io::Result<()>,
) -> Result<(), Box<dyn Error>> {
    let mut paths = PathWriter::new(Path::new(root));
    let mut samples = Vec::with_capacity(count);
    let clock = clock_cost();
    let files = (0..shape.dirs).flat_map(|dir| shape.files_of(dir).map(move |file| (dir, file)));
    for (dir, file) in files.cycle().take(count) {
        let path = paths.file(dir, file);
        let mut result = Ok(());
        samples.push(nanos(|| result = call(path)));
        result.map_err(|error| failed(path, error))?;
    }
    let summary = Summary::of(&mut samples, clock);
    println!("summary {} {}", summary.p50, summary.p99);
    Ok(())
}
