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
//!     times N calls in each of several threads, all in one directory (PLACE is `shared`) or each in one of
//!     its own (`private`), which has so many files
//! ```
//!
//! It writes `progress COUNT` now and then and at last `elapsed NANOSECONDS`, or `summary P50 P99`, or `took NANOSECONDS CPU`,
//! which is the processor time of all threads.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Barrier;
use std::time::Instant;

use finesse_bench::{PathWriter, Shape, Summary, as_nanos, clock_cost, nanos};
use rustix::time::ClockId;

/// Files between two reports of progress.
const REPORT: u64 = 1 << 15;
/// What is read or written of a file, in bytes.
const BLOCK: usize = 4096;

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
        ["threads", op, root, files, calls, place @ ("shared" | "private"), threads] => {
            let call = Call::of(op).ok_or_else(|| format!("{op}: no such operation"))?;
            let work = Work { call, root: Path::new(root), files: files.parse()?, calls: calls.parse()? };
            work.in_threads(threads.parse()?, place == "shared")
        }
        _ => Err("see the head of its source for its usage".into()),
    }
}

/// open(2), read(2) of a block, close(2).
fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; BLOCK]).map(drop)
}

/// What threads do.
#[derive(Clone, Copy)]
enum Call {
    /// lstat(2) of files that are there.
    Stat,
    /// lstat(2) of names that do not exist.
    Absent,
    /// open(2), close(2).
    Open,
    /// The same, and read(2) between.
    Read,
    /// rename(2) in one directory, there and back.
    Rename,
    /// Lists a directory.
    List,
    /// Creates files, writes to them and closes them.
    Create,
    /// unlink(2) of the files that [`Create`](Self::Create) has made.
    Remove,
}

impl Call {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "stat" => Self::Stat,
            "absent" => Self::Absent,
            "open" => Self::Open,
            "read" => Self::Read,
            "rename" => Self::Rename,
            "list" => Self::List,
            "create" => Self::Create,
            "remove" => Self::Remove,
            _ => return None,
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
}

impl Work<'_> {
    fn in_threads(self, threads: u64, shared: bool) -> Result<(), Box<dyn Error>> {
        if threads == 0 || self.files == 0 {
            return Err("threads and files: at least one".into());
        }
        // For them and for us, before the first call and after the last.
        let barrier = Barrier::new(threads as usize + 1);
        let (elapsed, cpu, outcome) = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|thread| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        barrier.wait();
                        let outcome = self.of_thread(thread, if shared { 0 } else { thread });
                        barrier.wait();
                        outcome
                    })
                })
                .collect();
            let cpu = cpu_time();
            let start = Instant::now();
            barrier.wait();
            barrier.wait();
            let (elapsed, cpu) = (start.elapsed(), cpu_time() - cpu);
            let outcomes = workers.into_iter().map(|worker| worker.join().expect("no thread panics"));
            (elapsed, cpu, outcomes.collect::<Result<(), String>>())
        });
        outcome?;
        println!("took {} {cpu}", as_nanos(elapsed));
        Ok(())
    }

    /// Its calls, in the directory of this number. Threads in one directory start at different files.
    fn of_thread(self, thread: u64, dir: u64) -> Result<(), String> {
        let mut paths = PathWriter::new(self.root);
        let mut others = PathWriter::new(self.root);
        // Of shared directories each thread renames files of its own.
        let share = (self.files / 64).max(1);
        for number in 0..self.calls {
            let file = dir * self.files + (thread * 17 + number) % self.files;
            // No file of a tree has such a number.
            let new = (1 << 40) | (thread << 32);
            let (path, result) = match self.call {
                Call::Stat => {
                    let path = paths.file(dir, file);
                    (path, std::fs::symlink_metadata(path).map(drop))
                }
                Call::Absent => {
                    let path = paths.file(dir, new | (number % self.files));
                    let result = match std::fs::symlink_metadata(path) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                        looked => looked.and(Err(io::ErrorKind::AlreadyExists.into())),
                    };
                    (path, result)
                }
                Call::Open => {
                    let path = paths.file(dir, file);
                    (path, File::open(path).map(drop))
                }
                Call::Read => {
                    let path = paths.file(dir, file);
                    (path, File::open(path).and_then(|mut file| file.read(&mut [0; BLOCK]).map(drop)))
                }
                Call::Rename => {
                    let file = dir * self.files + (thread * share + number / 2 % share) % self.files;
                    let (from, to) = (paths.file(dir, file), others.file(dir, new | file));
                    let (from, to) = if number % 2 == 0 { (from, to) } else { (to, from) };
                    (from, std::fs::rename(from, to))
                }
                Call::List => {
                    let path = paths.dir(dir);
                    let list = |mut entries: std::fs::ReadDir| entries.try_for_each(|entry| entry.map(drop));
                    (path, std::fs::read_dir(path).and_then(list))
                }
                Call::Create => {
                    let path = paths.file(dir, new | number);
                    (path, File::create_new(path).and_then(|mut file| file.write_all(&[b'x'; BLOCK])))
                }
                Call::Remove => {
                    let path = paths.file(dir, new | number);
                    (path, std::fs::remove_file(path))
                }
            };
            result.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

/// Processor time of this process, in nanoseconds.
fn cpu_time() -> u64 {
    let time = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn shape(dirs: &str, files: &str) -> Result<Shape, Box<dyn Error>> {
    Ok(Shape { dirs: dirs.parse()?, files: files.parse()? })
}

fn failed(path: &Path, error: io::Error) -> Box<dyn Error> {
    format!("{}: {error}", path.display()).into()
}

fn every(root: &str, shape: Shape, call: impl Fn(&Path) -> io::Result<()>) -> Result<(), Box<dyn Error>> {
    let mut paths = PathWriter::new(Path::new(root));
    let mut out = io::stdout().lock();
    let mut done = 0u64;
    let start = Instant::now();
    for dir in 0..shape.dirs {
        for file in shape.files_of(dir) {
            let path = paths.file(dir, file);
            call(path).map_err(|error| failed(path, error))?;
            done += 1;
            if done.is_multiple_of(REPORT) {
                writeln!(out, "progress {done}")?;
            }
        }
    }
    writeln!(out, "elapsed {}", as_nanos(start.elapsed()))?;
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
