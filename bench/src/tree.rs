//! Makes, checks and removes trees in the backing directory.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use finesse_bench::{PathWriter, Shape};
use indicatif::ProgressBar;

use crate::{Outcome, machine, screen};

/// Makes a tree of files of `size` bytes each, on all CPUs, and lets it reach the disk.
pub(crate) fn make(root: &Path, shape: Shape, size: u64, bar: &ProgressBar) -> Outcome {
    let contents = vec![b'f'; usize::try_from(size).map_err(|error| error.to_string())?];
    on_all_cpus(shape.dirs, |dir| {
        let mut paths = PathWriter::new(root);
        let failed = |path: &Path, error| format!("cannot make {}: {error}", path.display());
        let path = paths.dir(dir);
        std::fs::create_dir(path).map_err(|error| failed(path, error))?;
        for file in shape.files_of(dir) {
            let path = paths.file(dir, file);
            File::create(path)
                .and_then(|mut file| file.write_all(&contents))
                .map_err(|error| failed(path, error))?;
        }
        bar.inc(shape.files_of(dir).count() as u64);
        Ok(())
    })?;
    bar.finish_and_clear();
    // What is still on its way to the disk would be paid for by whoever is measured.
    sync(root)
}

/// Waits until the file system on which `root` lies is on its disk.
pub(crate) fn sync(root: &Path) -> Outcome {
    File::open(root)
        .and_then(|root| rustix::fs::syncfs(root).map_err(Into::into))
        .map_err(|error| format!("{}: {error}", root.display()))
}

/// Whether all files of a tree are gone, asked again and again: directories that were empty once are not looked at again.
#[derive(Debug)]
pub(crate) struct Emptied<'r> {
    root: &'r Path,
    dirs: std::ops::Range<u64>,
}

impl<'r> Emptied<'r> {
    pub(crate) fn new(root: &'r Path, shape: Shape) -> Self {
        Self { root, dirs: 0..shape.dirs }
    }

    /// An error if a directory is not there, or the user wants to stop.
    pub(crate) fn is_so(&mut self) -> Outcome<bool> {
        let mut paths = PathWriter::new(self.root);
        while let Some(dir) = self.dirs.clone().next() {
            screen::go_on()?;
            let path = paths.dir(dir);
            let mut entries =
                std::fs::read_dir(path).map_err(|error| format!("{}: {error}", path.display()))?;
            if entries.next().is_some() {
                return Ok(false);
            }
            self.dirs.start += 1;
        }
        Ok(true)
    }
}

/// Removes a tree with whatever is left in it.
pub(crate) fn remove(root: &Path, shape: Shape) -> Outcome {
    on_all_cpus(shape.dirs, |dir| {
        let mut paths = PathWriter::new(root);
        let path = paths.dir(dir);
        std::fs::remove_dir_all(path).map_err(|error| format!("cannot remove {}: {error}", path.display()))
    })
}

/// Calls `job` for every directory, until one fails or the user wants to stop.
fn on_all_cpus(dirs: u64, job: impl Fn(u64) -> Outcome + Sync) -> Outcome {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        loop {
            let dir = next.fetch_add(1, Ordering::Relaxed);
            if dir >= dirs || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            screen::go_on().and_then(|()| job(dir)).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..machine::cpus()).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Outcome>| {
            worker.join().unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        };
        workers.into_iter().map(join).fold(Ok(()), Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_made_found_full_emptied_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { dirs: 3, files: 10 };
        make(dir.path(), shape, 5, &ProgressBar::hidden()).unwrap();
        let first = PathWriter::new(dir.path()).file(0, 0).to_owned();
        assert_eq!(std::fs::read(&first).unwrap(), b"fffff");
        let mut emptied = Emptied::new(dir.path(), shape);
        assert_eq!(emptied.is_so(), Ok(false));
        let mut paths = PathWriter::new(dir.path());
        for directory in 0..3 {
            for file in shape.files_of(directory) {
                std::fs::remove_file(paths.file(directory, file)).unwrap();
            }
        }
        assert_eq!(emptied.is_so(), Ok(true));
        remove(dir.path(), shape).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
