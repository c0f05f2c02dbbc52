//! The program that is measured: plain calls of the C library on plain paths. It knows nothing of Finesse and
//! does not link it; whether it takes the bypass is decided by who starts it.
//!
//! ```text
//! finesse-bench-calls unlink  ROOT DIRS FILES    removes every file of a tree
//! finesse-bench-calls stat    ROOT DIRS FILES    looks at every file of a tree
//! finesse-bench-calls read    ROOT DIRS FILES    opens, reads and closes every file of a tree
//! finesse-bench-calls write   ROOT DIRS FILES    creates, writes and closes every file of a tree
//! finesse-bench-calls each OP ROOT DIRS FILES N  times single calls: stat, open, unlink
//! ```
//!
//! It writes `progress COUNT` now and then and at last `elapsed NANOSECONDS`, or `summary P50 P99`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use finesse_bench::{PathWriter, Shape, Summary, as_nanos, clock_cost, nanos};

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
        ["read", root, dirs, files] => {
            every(root, shape(dirs, files)?, |path| File::open(path)?.read(&mut [0; BLOCK]).map(drop))
        }
        ["write", root, dirs, files] => {
            every(root, shape(dirs, files)?, |path| File::create_new(path)?.write_all(&[b'x'; BLOCK]))
        }
        ["each", op, root, dirs, files, count] => {
            let (shape, count) = (shape(dirs, files)?, count.parse()?);
            match op {
                "stat" => each(root, shape, count, |path| std::fs::symlink_metadata(path).map(drop)),
                "open" => each(root, shape, count, |path| File::open(path).map(drop)),
                "unlink" => each(root, shape, count, |path| std::fs::remove_file(path)),
                _ => Err(format!("{op}: no such operation").into()),
            }
        }
        _ => Err("see the head of its source for its usage".into()),
    }
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
