//! Real programs.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::{Case, Cases, Context, Part, Sample, Unit};
use crate::place::{Need, Place};
use crate::suite::report::Count;
use crate::ways::{Mounted, Way, in_turns};
use crate::{Outcome, daemon, demo, screen};

pub(in crate::suite) const ABOUT: &str = "\
Unmodified programs, each in the directory that the ones before it have left. What they begin with (repository, archive, sources) lies in another \
directory, which is read natively on all roads. Of a mount that has just been made, so that nothing is cached on it, \"git status, cold\" \
is the first; \"warm\" is the third of three. The repository of many tracked paths lies on the backing file system and is only read. \
Linux is built out of its tree, which lies on the mount as well, by make -j4; a first native build is not timed.";

pub(in crate::suite) const WAYS: [Way; 7] =
    [Way::NATIVE, Way::BINDFS, Way::KERNEL, Way::BPF, Way::URING, Way::BYPASS, Way::TABLE];

/// What is run in an empty directory of each way, where `$ORIGIN` is what was prepared and `$MANY` the large repository.
/// Without a name it is not timed; [`MODULES`] and [`PATHS`] stand for numbers.
const TASKS: [(&str, &str); 18] = [
    ("git clone", "git clone -q \"$ORIGIN/tree.git\" clone"),
    ("git status after it", "git -C clone status --porcelain"),
    ("tar x", "tar xf \"$ORIGIN/tree.tar\""),
    ("find", "find tree -size +1k -newermt 2000-01-01 | wc -l"),
    ("du", "du -s tree | wc -l"),
    ("ls -lR", "ls -lR tree | wc -l"),
    ("tar c", "tar cf - tree | wc -c"),
    ("cp -a of an npm-like tree", "cp -a \"$ORIGIN/node_modules\" node_modules"),
    ("reading every package.json of it", "find node_modules -name package.json -exec cat {} + | wc -c"),
    ("", "cp -a \"$ORIGIN/python\" python"),
    ("python -m compileall", "\"$PYTHON\" -m compileall -q python"),
    ("rm -rf of the npm-like tree", "rm -rf node_modules"),
    ("rm -rf of the unpacked tree", "rm -rf tree"),
    ("", "rm -rf clone python"),
    ("git status, cold", "git -C \"$MANY\" status --porcelain"),
    ("", "git -C \"$MANY\" status --porcelain"),
    ("git status, warm", "git -C \"$MANY\" status --porcelain"),
    ("", "ls -A | wc -l"),
];
/// As `finesse-bench upcalls` builds.
const BUILD: &str = "mkdir made && make -s -C \"$LINUX\" O=\"$PWD/made\" tinyconfig && \
                     make -s -C \"$LINUX\" O=\"$PWD/made\" -j4 $TARGET";
/// What Python compiles of its own library.
const PYTHON: [&str; 8] = ["asyncio", "collections", "email", "http", "importlib", "json", "unittest", "xml"];

/// What is prepared once for all.
struct Origin {
    directory: tempfile::TempDir,
    python: PathBuf,
}

pub(in crate::suite) fn measure(context: &Context, cases: &mut Cases) -> Outcome {
    let sizes = &context.sizes;
    if context.linux.is_none() {
        cases.leave_out(
            "Linux: its build, and its tree",
            "no unpacked sources were named (--linux; `make bench` does)",
        );
    } else if !sizes.on_linux {
        cases.leave_out("Linux' tree", "at this scale other trees of this machine are cloned and unpacked");
    }
    let origin = Origin::new(context)?;
    let linux = context.linux.as_deref().filter(|_| !sizes.target.is_empty());
    let among = context.ways(Part::Work);
    let need = need(context, linux.is_some());
    context.on_backings(need, cases, |place, backing, cases| {
        let many = place.backing().join("many");
        screen::say(format!("{backing}: a repository of {} paths …", sizes.tracked));
        make_repository(&many, sizes.tracked)?;
        if let Some(linux) = linux {
            screen::say(format!("{backing}: a copy of Linux …"));
            let environment = [("LINUX", linux.as_os_str())];
            shell(Way::NATIVE, &place.backing(), "cp -a \"$LINUX\" linux", &environment)?;
            // Whoever builds first has the compiler read from the disk.
            build(context, place, Way::NATIVE)?;
        }
        crate::tree::sync(&place.backing())?;
        for (round, way) in in_turns(context.rounds, &among) {
            let label = format!("{backing}, round {}/{} {}", round + 1, context.rounds, way.name);
            let mut add = |name: &str, seconds: f64| {
                screen::say(format!("{label}: {name} {seconds:.2} s"));
                let name =
                    name.replace("git status,", &format!("git status of {} paths,", Count(sizes.tracked)));
                cases.add(Case::new(backing, &name, Unit::Seconds), way.name, Sample::of(round, seconds));
            };
            on_way(context, place, way, &origin, &mut add)?;
            if linux.is_some() {
                let seconds = build(context, place, way)?;
                add(&format!("Linux, tinyconfig: {}", sizes.target), seconds);
            }
        }
        Ok(())
    })
}

/// A clone and an unpacked tree beside what lies there all the time.
fn need(context: &Context, builds: bool) -> Need {
    let sizes = &context.sizes;
    let tree = if sizes.on_linux && context.linux.is_some() { LINUX_FILES } else { sizes.worked };
    let large = 2 * tree + if builds { LINUX_FILES + LINUX_FILES / 4 } else { 0 };
    // The clone's objects, the paths' directories and Python's modules, too.
    let small = tree + sizes.tracked + sizes.tracked / 50 + sizes.packages * FILES_OF_PACKAGE + 10_000;
    let inodes = large + small;
    Need { inodes, size: (large * MEAN_SIZE + small * 4096) / inodes }
}

/// Linux 6.1 has 79 000 files, of 14 KiB in the mean.
const LINUX_FILES: u64 = 80_000;
const MEAN_SIZE: u64 = 16 << 10;
/// See [`make_packages`].
const FILES_OF_PACKAGE: u64 = 17;

fn on_way(
    context: &Context,
    place: &Place,
    way: Way,
    origin: &Origin,
    add: &mut dyn FnMut(&str, f64),
) -> Outcome {
    in_work(context, place, way, |work, root, mounted| {
        let many = root.join("many");
        let environment = [
            ("ORIGIN", origin.directory.path().as_os_str()),
            ("MANY", many.as_os_str()),
            ("PYTHON", origin.python.as_os_str()),
        ];
        for (name, script) in TASKS {
            let start = Instant::now();
            shell(way, work, script, &environment)?;
            if !name.is_empty() {
                add(name, start.elapsed().as_secs_f64());
            }
        }
        was_bypassed(way, mounted)
    })
}

fn build(context: &Context, place: &Place, way: Way) -> Outcome<f64> {
    let mut seconds = 0.0;
    in_work(context, place, way, |work, root, mounted| {
        let linux = root.join("linux");
        let environment = [("LINUX", linux.as_os_str()), ("TARGET", OsStr::new(context.sizes.target))];
        let start = Instant::now();
        shell(way, work, BUILD, &environment)?;
        seconds = start.elapsed().as_secs_f64();
        was_bypassed(way, mounted)
    })?;
    Ok(seconds)
}

/// Calls `act` with an empty directory and the root of a mount that has just been made; removes the directory natively.
fn in_work(
    context: &Context,
    place: &Place,
    way: Way,
    act: impl FnOnce(&Path, &Path, &Mounted) -> Outcome,
) -> Outcome {
    let native = place.backing().join("work");
    std::fs::create_dir(&native).map_err(|error| format!("{}: {error}", native.display()))?;
    crate::tree::sync(&native)?;
    let mounted = context.ways.mount(way, place)?;
    let root = way.root(place);
    act(&root.join("work"), &root, &mounted)?;
    mounted.stop()?;
    std::fs::remove_dir_all(&native).map_err(|error| format!("{}: {error}", native.display()))
}

/// An error if programs should have been bypassed and none was.
fn was_bypassed(way: Way, mounted: &Mounted) -> Outcome {
    let Some(daemon) = mounted.daemon() else { return Ok(()) };
    let served = daemon.report_at_rest()?.mount.counts.total_served();
    match (way.road, served) {
        (daemon::Road::Bypass, 0) => Err(format!("{}: nothing was bypassed", way.name)),
        _ => Ok(()),
    }
}

impl Origin {
    /// Makes everything, natively.
    fn new(context: &Context) -> Outcome<Self> {
        let sizes = &context.sizes;
        let directory = tempfile::Builder::new().prefix("finesse-bench-origin-").tempdir_in("/var/tmp");
        let directory = directory.map_err(|error| format!("/var/tmp: {error}"))?;
        let root = directory.path();
        let tree = root.join("tree");
        screen::say("what programs work on …");
        match context.linux.as_deref().filter(|_| sizes.on_linux) {
            Some(linux) => {
                shell(Way::NATIVE, root, "cp -a \"$LINUX\" tree", &[("LINUX", linux.as_os_str())])?;
            }
            None => drop(demo::collect_at_most(&tree, sizes.worked)?),
        }
        make_packages(&root.join("node_modules"), sizes.packages)?;
        let python = ["/usr/bin/python3", "/usr/local/bin/python3", "python3"].map(PathBuf::from);
        let python = python.into_iter().find(|python| python.is_file()).unwrap_or("python3".into());
        let modules = PYTHON.join(" ");
        let environment = [("PYTHON", python.as_os_str()), ("MODULES", OsStr::new(&modules))];
        shell(
            Way::NATIVE,
            root,
            "tar cf tree.tar tree; \
             git init -q tree; git -C tree add -A -f .; git -C tree commit -q -m tree; \
             git clone -q --bare tree tree.git; rm -rf tree; \
             library=$(\"$PYTHON\" -c 'import sysconfig; print(sysconfig.get_path(\"stdlib\"))'); mkdir python; \
             for module in $MODULES; do cp -rL \"$library/$module\" python; done; \
             find python -name __pycache__ -prune -exec rm -rf {} +",
            &environment,
        )?;
        Ok(Self { python, directory })
    }
}

/// A tree as npm makes them: packages of a few small files, some with packages of their own.
fn make_packages(root: &Path, packages: u64) -> Outcome {
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    for number in 0..packages {
        screen::go_on()?;
        // Every eighth lies in the one before it.
        let name = match number % 8 {
            7 => format!("package-{:05}/node_modules/inner-{number:05}", number - 1),
            _ => format!("package-{number:05}"),
        };
        let package = root.join(name);
        let library = package.join("lib/internal");
        std::fs::create_dir_all(&library).map_err(|error| failed(&library, error))?;
        let manifest = format!(
            "{{ \"name\": \"package-{number}\", \"version\": \"1.0.{number}\", \"main\": \"index.js\" }}\n"
        );
        let write =
            |path: PathBuf, text: &str| std::fs::write(&path, text).map_err(|error| failed(&path, error));
        write(package.join("package.json"), &manifest)?;
        for file in ["README.md", "LICENSE", "index.js", "index.d.ts"] {
            write(package.join(file), &"// a line of a small file\n".repeat(20))?;
        }
        for file in 0..8 {
            let directory = if file % 2 == 0 { package.join("lib") } else { library.clone() };
            write(directory.join(format!("module-{file}.js")), &"module.exports = {};\n".repeat(10 + file))?;
        }
    }
    Ok(())
}

/// A repository of so many tracked paths, all of them unchanged, and older than its index.
fn make_repository(root: &Path, paths: u64) -> Outcome {
    std::fs::create_dir(root).map_err(|error| format!("{}: {error}", root.display()))?;
    shell(Way::NATIVE, root, "git init -q -b main .", &[])?;
    // One commit, of one blob under all names: made in seconds, where adding files takes minutes.
    let stream = root.join(".git/stream");
    let write = || -> std::io::Result<()> {
        let mut stream = std::io::BufWriter::new(std::fs::File::create(&stream)?);
        write!(stream, "blob\nmark :1\ndata 8\ntracked\n\ncommit refs/heads/main\n")?;
        write!(stream, "committer bench <bench@example.org> 946684800 +0000\ndata 6\npaths\n\n")?;
        for path in 0..paths {
            let (top, middle) = (path / 10_000, path / 100 % 100);
            writeln!(stream, "M 100644 :1 t{top:03}/m{middle:02}/file-{path:07}.txt")?;
        }
        stream.flush()
    };
    write().map_err(|error| format!("{}: {error}", stream.display()))?;
    shell(
        Way::NATIVE,
        root,
        "git fast-import --quiet <.git/stream; rm .git/stream; git reset -q --hard; \
         find . -path ./.git -prune -o -type f -print0 | xargs -0 touch -d '1 hour ago'; \
         git update-index -q --refresh",
        &[],
    )
}

/// Runs a script in a directory on a way, without the user's settings; what it writes is read and dropped.
fn shell(way: Way, directory: &Path, script: &str, environment: &[(&str, &OsStr)]) -> Outcome {
    let mut command: Command = daemon::command(way.road, Path::new("bash"))?;
    command
        .args(["-e", "-o", "pipefail", "-c", script])
        .current_dir(directory)
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        // `git status` would write the index when it finds that it could be written better.
        .env("GIT_OPTIONAL_LOCKS", "0")
        .env("KBUILD_BUILD_TIMESTAMP", "2024-01-02 03:04:05 UTC")
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "bench")))
        .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "bench@example.org")))
        .envs(environment.iter().copied());
    daemon::run(command, |_| {}).map_err(|why| format!("{}: {script}: {why}", way.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_of_many_paths_is_clean_and_tracks_them_all() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("many");
        make_repository(&root, 321).unwrap();
        let script = "test -z \"$(git status --porcelain)\"; test \"$(git ls-files | wc -l)\" = 321";
        shell(Way::NATIVE, &root, script, &[]).unwrap();
    }

    #[test]
    fn packages_have_as_many_files_as_is_reckoned_with() {
        let directory = tempfile::tempdir().unwrap();
        make_packages(directory.path(), 16).unwrap();
        let script = "test \"$(find . -mindepth 1 | wc -l)\" -le \"$MOST\"; test \"$(find . -name package.json | wc -l)\" = 16";
        let most = (16 * FILES_OF_PACKAGE).to_string();
        shell(Way::NATIVE, directory.path(), script, &[("MOST", OsStr::new(&most))]).unwrap();
    }
}
