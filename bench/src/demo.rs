//! `finesse-bench demo`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use clap::Args;
use finesse_bench::Shape;

use crate::daemon::{self, Daemon, Road};
use crate::place::{Need, Place, TMPFS};
use crate::{Outcome, machine, screen, unlink};

/// Ordinary programs on a real tree: natively, through the kernel, and past it.
///
/// Copies a tree of sources, lists it, puts it into a git repository, packs it and removes it again, with
/// unmodified programs; compares what they say; shows how long they took and what was bypassed; then removes
/// 100 000 files on every road.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// The tree to work on [default: headers, documentation and sources found on this machine].
    #[arg(long, value_name = "DIR")]
    tree: Option<PathBuf>,
    /// Where to work.
    #[arg(long, value_name = "DIR")]
    backing: Option<PathBuf>,
    /// Files of the comparison at the end; 0 leaves it out.
    #[arg(long, default_value_t = 100_000)]
    unlink_files: u64,
}

/// A tree is worth showing from this many files on, and not larger than this.
const ENOUGH_FILES: u64 = 5_000;
const MOST_FILES: u64 = 12_000;
const MOST_BYTES: u64 = 400 << 20;

/// What is run in every road's own directory, where `tree` is what was copied. Nothing in the output may depend
/// on the time or on inode numbers, because outputs are compared.
const PROGRAMS: &[(&str, &str)] = &[
    ("cp -a", "cp -a \"$ORIGIN\" tree"),
    ("find", "find tree -printf '%y %m %s %p\\n' | sort"),
    ("ls -lR", "ls -lR --time-style=+ tree"),
    ("grep -r", "grep -rlI include tree | sort"),
    ("git init, add", "cd tree && git init -q -b main . && git add -A -f ."),
    ("git commit", "cd tree && git commit -q -m demo && git rev-parse HEAD^{tree}"),
    ("git status", "cd tree && git status --porcelain && git ls-files -s"),
    ("tar", "tar --sort=name --mtime=@0 --exclude=.git -cf - tree | sha256sum"),
    ("mv, cp -r", "mv tree moved && cp -r moved/.git/objects copy && find copy | sort && mv moved tree"),
    ("rm -rf", "rm -rf tree copy && ls -A"),
];

impl Demo {
    /// Runs the demonstration.
    pub(crate) fn run(self) -> Outcome {
        let backing = self.backing.clone().unwrap_or_else(std::env::temp_dir);
        let place = Place::new(&backing, Need { inodes: 4 * MOST_FILES, size: 32 << 10 })?;
        let origin = place.backing().join("origin");
        let files = match &self.tree {
            Some(tree) => collect(std::slice::from_ref(tree), &origin)?,
            None => collect(&candidates(), &origin)?,
        };
        if files < ENOUGH_FILES {
            screen::say(format!("only {files} files found on this machine; --tree names a larger tree"));
        }
        screen::say(machine::line());
        screen::say(format!(
            "a tree of {files} files, copied, listed, versioned, packed, removed on three roads"
        ));
        let shown = place.backing().join("shown");
        let native = place.backing().join("native");
        for directory in [&shown, &native] {
            std::fs::create_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        let daemon = Daemon::start(&shown, &place.mountpoint())?;
        let mut results = Vec::new();
        for road in Road::ALL {
            let parent = if road == Road::Native { native.clone() } else { place.mountpoint() };
            let directory = parent.join(road.name());
            std::fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
            results.push(programs(road, &directory, &origin, &place.backing())?);
        }
        let counts = daemon.report_at_rest()?.mount.counts;
        daemon.stop()?;
        print!("{}", table(&results));
        let (served, left) = (counts.total_served(), counts.total_fell_back());
        println!("\nbypassed {served} of {} calls on the mount", served + left);
        let line = |title: &str, counts: Vec<(&str, u64)>| {
            let counts: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            if !counts.is_empty() {
                println!("  {title:<19} {}", counts.join(", "));
            }
        };
        line("bypassed:", counts.served().map(|(op, count)| (op.name(), count)).collect());
        line("of these, by table:", counts.looked_up().map(|(op, count)| (op.name(), count)).collect());
        line(
            "left to the kernel:",
            counts.fell_back().map(|(reason, count)| (reason.name(), count)).collect(),
        );
        let differing = differing(&results);
        if !differing.is_empty() {
            return Err(format!("results differ from the native ones: {}", differing.join(", ")));
        }
        println!("All programs said the same on all roads.");
        if served == 0 {
            return Err("nothing was bypassed; `finesse run` with FINESSE_DEBUG=1 tells why".to_owned());
        }
        drop(place);
        self.unlink()
    }

    fn unlink(&self) -> Outcome {
        if self.unlink_files == 0 {
            return Ok(());
        }
        let shape = Shape { files: self.unlink_files, dirs: self.unlink_files.div_ceil(1000) };
        let root = rustix::process::geteuid().is_root();
        let default = if root { PathBuf::from(TMPFS) } else { std::env::temp_dir() };
        let backing = self.backing.clone().unwrap_or(default);
        const SIZE: u64 = 4096;
        let place = Place::new(&backing, Need { inodes: shape.files + shape.dirs, size: SIZE })?;
        print!("{}", unlink::compare(&place, shape, SIZE, 3, &unlink::Way::ROADS)?.to_text());
        Ok(())
    }
}

/// Trees of many small files that a machine may have.
fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut trees = vec![PathBuf::from("/usr/include")];
    trees.extend(home.map(|home| home.join("registry/src")));
    trees.extend(
        ["/usr/share/doc", "/usr/lib/python3", "/usr/share/perl", "/usr/share/zoneinfo"].map(PathBuf::from),
    );
    trees
}

/// Copies so many files of what this machine has.
pub(crate) fn collect_at_most(origin: &Path, most: u64) -> Outcome<u64> {
    collect_from(&candidates(), origin, most, most)
}

/// Copies files from several trees until there are enough.
fn collect(trees: &[PathBuf], origin: &Path) -> Outcome<u64> {
    collect_from(trees, origin, ENOUGH_FILES, MOST_FILES)
}

fn collect_from(trees: &[PathBuf], origin: &Path, enough: u64, most: u64) -> Outcome<u64> {
    std::fs::create_dir(origin).map_err(|error| format!("{}: {error}", origin.display()))?;
    let (mut files, mut bytes) = (0, 0);
    for (index, tree) in trees.iter().enumerate() {
        if files >= enough {
            break;
        }
        copy(tree, &origin.join(format!("tree{index}")), most, &mut files, &mut bytes)?;
    }
    Ok(files)
}

/// Copies what a user may read of a tree: directories, regular files, symbolic links. What cannot be read is
/// left out.
fn copy(from: &Path, to: &Path, most: u64, files: &mut u64, bytes: &mut u64) -> Outcome {
    screen::go_on()?;
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    std::fs::create_dir(to).map_err(|error| format!("{}: {error}", to.display()))?;
    for entry in entries.flatten() {
        let (Ok(metadata), target) = (entry.metadata(), to.join(entry.file_name())) else { continue };
        if *files >= most || *bytes >= MOST_BYTES {
            break;
        }
        // A repository inside would become a submodule of ours.
        if metadata.is_dir() && entry.file_name() != ".git" {
            copy(&entry.path(), &target, most, files, bytes)?;
        } else if metadata.is_symlink() {
            let link = std::fs::read_link(entry.path());
            let _ = link.and_then(|link| std::os::unix::fs::symlink(link, &target));
        } else if metadata.is_file()
            && metadata.len() < 1 << 20
            && std::fs::copy(entry.path(), &target).is_ok()
        {
            *files += 1;
            *bytes += metadata.len();
        }
    }
    Ok(())
}

/// One road's seconds and outputs, by program.
type Results = Vec<(f64, Vec<u8>)>;

fn programs(road: Road, directory: &Path, origin: &Path, scratch: &Path) -> Outcome<Results> {
    let bar = screen::bar(&format!("{} road", road.name()), PROGRAMS.len() as u64);
    let output = scratch.join("output");
    let mut results = Results::new();
    for (name, script) in PROGRAMS {
        let open = || File::create(&output).map_err(|error| format!("{}: {error}", output.display()));
        let mut command = daemon::command(road, Path::new("bash"))?;
        command
            .args(["-e", "-o", "pipefail", "-c", script])
            .current_dir(directory)
            .env("ORIGIN", origin)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            // A commit's name depends on its date.
            .env("GIT_AUTHOR_DATE", "2000-01-01T00:00:00Z")
            .env("GIT_COMMITTER_DATE", "2000-01-01T00:00:00Z")
            .env("GIT_AUTHOR_NAME", "demo")
            .env("GIT_AUTHOR_EMAIL", "demo@example.org")
            .env("GIT_COMMITTER_NAME", "demo")
            .env("GIT_COMMITTER_EMAIL", "demo@example.org")
            .stdin(Stdio::null())
            .stdout(open()?);
        let start = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("{name}: {error}"))?;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| format!("{name}: {error}"))? {
                break status;
            }
            if let Err(interrupted) = screen::go_on() {
                // Fails only if it has just ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(interrupted);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        let seconds = start.elapsed().as_secs_f64();
        let said = std::fs::read(&output).map_err(|error| format!("{}: {error}", output.display()))?;
        if !status.success() {
            return Err(format!("{name} failed on the {} road ({status})", road.name()));
        }
        results.push((seconds, said));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(results)
}

fn differing(results: &[Results]) -> Vec<String> {
    let mut names = Vec::new();
    for (index, (program, _)) in PROGRAMS.iter().enumerate() {
        for (road, outcome) in Road::ALL.iter().zip(results).skip(1) {
            if outcome[index].1 != results[0][index].1 {
                names.push(format!("{program} on the {} road", road.name()));
            }
        }
    }
    names
}

fn table(results: &[Results]) -> String {
    let row = |(index, (program, _)): (usize, &(&str, &str))| {
        let times: Vec<f64> = results.iter().map(|road| road[index].0).collect();
        let mut cells = vec![(*program).to_owned()];
        cells.extend(times.iter().map(|time| format!("{time:.3}")));
        if let [_, kernel, bypass] = times[..] {
            cells.push(format!("{:.2} ×", bypass / kernel.max(1e-9)));
        }
        cells
    };
    let rows: Vec<_> = PROGRAMS.iter().enumerate().map(row).collect();
    screen::table(&["seconds", "native", "kernel", "bypass", "bypass of kernel"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_different_answer_is_named() {
        let same: Results = PROGRAMS.iter().map(|_| (1.0, b"x".to_vec())).collect();
        let mut other = same.clone();
        other[1].1 = b"y".to_vec();
        assert_eq!(differing(&[same.clone(), same.clone(), other]), ["find on the bypass road"]);
        assert!(differing(&[same.clone(), same.clone(), same]).is_empty());
    }

    #[test]
    fn links_are_copied_as_links_and_repositories_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join(".git")).unwrap();
        std::fs::write(from.join("file"), "x").unwrap();
        std::os::unix::fs::symlink("nowhere", from.join("link")).unwrap();
        let (mut files, mut bytes) = (0, 0);
        let to = dir.path().join("to");
        copy(&from, &to, MOST_FILES, &mut files, &mut bytes).unwrap();
        assert_eq!((files, bytes), (1, 1));
        assert!(to.join("link").is_symlink() && !to.join(".git").exists());
    }
}
