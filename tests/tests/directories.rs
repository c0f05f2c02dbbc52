//! Directories are listed on all roads alike, and on the bypass without the kernel: a C program that uses libc's
//! functions in every way (`programs/directories.c`), and programs that list by themselves.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use finesse_tests::account::{Calls, OPEN_DIRECTORY};
use finesse_tests::mount::{Options, said, text};
use finesse_tests::road::{Place, Road};
use finesse_tests::tree::{self, Times};
use finesse_tests::{build, needs, wait};
use rustix::process::Signal;
use tempfile::TempDir;

/// The compiled program, where every user can execute it.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let place = tempfile::Builder::new().prefix("finesse-program-").tempdir().unwrap();
        fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let program = place.path().join("directories");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/directories.c");
        let output =
            Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        (place, program)
    });
    program
}

/// A directory with everything that one can hold, and more names than one page.
fn fill(root: &Path) {
    fill_with(root, 300);
}

fn fill_with(root: &Path, names: u32) {
    let w = root.join("w");
    for directory in ["empty", "sub", "private"] {
        fs::create_dir_all(w.join(directory)).unwrap();
    }
    fs::write(w.join("sub/inside"), "x").unwrap();
    fs::write(w.join("file"), "x").unwrap();
    fs::write(w.join("n".repeat(255)), "").unwrap();
    symlink("nowhere", w.join("dangling")).unwrap();
    symlink("loop", w.join("loop")).unwrap();
    symlink("sub", w.join("link")).unwrap();
    let fifo = w.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let long = "x".repeat(110);
    for number in 0..names {
        fs::write(w.join(format!("name {long} {number}")), "").unwrap();
    }
    for name in ["a", "b", "c"] {
        fs::write(w.join("private").join(name), "").unwrap();
    }
    fs::set_permissions(w.join("private"), PermissionsExt::from_mode(0o700)).unwrap();
}

/// What a program said: exit status, both streams, without the place's own paths.
fn told(place: &Place, output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), place.neutral(&output.stdout), place.neutral(&output.stderr))
}

/// Runs one part of the program on all roads and compares; what the bypass counted.
fn agree(part: &str) -> Calls {
    agree_with(part, &Options::default())
}

/// As [`agree`], on other mounts.
fn agree_with(part: &str, options: &Options<'_>) -> Calls {
    let places = Place::on_all_roads(options, fill);
    let mut native = None;
    let mut calls = Calls::default();
    for place in &places {
        let before = place.is_mounted().then(|| place.mount().account());
        let output = place.command(program()).arg(part).arg(place.path().join("w")).output().unwrap();
        let told = told(place, &output);
        assert_eq!(told.0, Some(0), "{part} on the {}: {}", place.road(), said(&output));
        match &native {
            None => native = Some(told),
            Some(native) => assert_eq!(&told, native, "{part} on the {}", place.road()),
        }
        if let (Some(before), Road::Bypass) = (before, place.road()) {
            calls = place.mount().account().since(&before);
        }
    }
    calls
}

fn count(calls: &Calls, operation: &str) -> u64 {
    calls.answered.get(operation).copied().unwrap_or(0)
}

/// Directories that were opened through the ring. Where other tests mount and unmount twice during one call, that one
/// goes to the kernel, and is counted as such.
fn opened(calls: &Calls) -> u64 {
    count(calls, "opendir") + calls.to_kernel.get("mounts-changed").copied().unwrap_or(0)
}

/// As [`agree`], for parts that no directory needs a descriptor in: every stream that was opened is read and closed
/// through the ring, and the kernel has opened none.
fn agree_without_the_kernel(part: &str, at_least: u64) {
    let calls = agree(part);
    assert!(opened(&calls) >= at_least, "{part}: {calls:?}");
    assert!(count(&calls, "readdir") >= count(&calls, "opendir"), "{part}: {calls:?}");
    assert_eq!(calls.to_kernel.get(OPEN_DIRECTORY), None, "{part}: {calls:?}");
}

#[test]
fn entries_have_the_names_numbers_and_types_of_the_files() {
    agree_without_the_kernel("entries", 1);
}

#[test]
fn what_cannot_be_opened_has_the_native_errno() {
    // Each of those on the mount is refused by the daemon; nothing is opened.
    let calls = agree("errors");
    assert!(opened(&calls) >= 8, "{calls:?}");
}

#[test]
fn positions_lead_back_and_rewinding_sees_what_has_changed() {
    agree_without_the_kernel("positions", 1);
}

#[test]
fn readdir_r_fills_in_what_readdir_returns() {
    agree_without_the_kernel("reentrant", 1);
}

#[test]
fn a_descriptor_asked_for_in_the_middle_is_the_directorys_and_the_listing_goes_on() {
    agree_without_the_kernel("descriptor", 1);
}

#[test]
fn a_stream_on_a_descriptor_begins_and_ends_where_the_descriptor_is() {
    let calls = agree("of_descriptor");
    assert!(opened(&calls) >= 1, "{calls:?}");
}

#[test]
fn a_stream_and_getdents_on_its_descriptor_list_everything_once() {
    let calls = agree("directly");
    assert!(opened(&calls) >= 1, "{calls:?}");
}

#[test]
fn scandir_filters_and_sorts() {
    let calls = agree("scan");
    // Two by path, one of `empty`, one that fails.
    assert!(opened(&calls) >= 4, "{calls:?}");
}

#[test]
fn parent_and_child_both_go_on_after_a_fork() {
    let calls = agree("forked");
    assert!(opened(&calls) >= 2, "{calls:?}");
}

#[test]
fn a_removed_directory_is_empty() {
    agree_without_the_kernel("removed", 2);
}

#[test]
fn a_stream_outlives_changes_of_the_current_directory_and_of_its_own_name() {
    agree_without_the_kernel("moved", 2);
}

#[test]
fn listing_changes_the_time_of_last_access_for_all_to_see() {
    agree_without_the_kernel("accessed", 1);
}

#[test]
fn a_stream_outlives_a_change_of_user() {
    if needs::root("a_stream_outlives_a_change_of_user") {
        let calls = agree("other_user");
        assert!(opened(&calls) >= 1, "{calls:?}");
    }
}

#[test]
fn threads_may_share_a_stream() {
    agree_without_the_kernel("threads", 1);
}

#[test]
fn many_streams_are_open_at_once() {
    agree_without_the_kernel("many", 150);
}

#[test]
fn signal_handlers_read_streams_while_others_are_being_read() {
    agree_without_the_kernel("interrupted", 2);
}

/// Every part of the program that says the same twice; for root, those of other users, too.
fn all_parts(test: &str) -> Vec<&'static str> {
    let mut parts = vec![
        "entries",
        "errors",
        "positions",
        "reentrant",
        "descriptor",
        "of_descriptor",
        "directly",
        "scan",
        "forked",
        "removed",
        "moved",
        "threads",
        "many",
        "interrupted",
    ];
    if needs::root(&format!("{test}, for other users")) {
        parts.push("other_user");
    }
    parts
}

/// The kernel opens directories without asking, and keeps what it lists.
#[test]
fn all_of_this_holds_where_the_kernel_keeps_listings() {
    let options = Options { arguments: &["--cache=always"], ..Options::default() };
    for part in all_parts("all_of_this_holds_where_the_kernel_keeps_listings") {
        agree_with(part, &options);
    }
}

/// Who may list a directory the kernel knows, and what it lists it hears of: it need not ask when one is opened.
#[test]
fn directories_are_opened_without_asking_if_everything_may_be_kept() {
    const DIRECTORIES: usize = 40;
    const PART: usize = 1 << 12;
    let fill = |root: &Path| {
        for directory in 0..DIRECTORIES {
            let directory = root.join(format!("w/{directory}"));
            fs::create_dir_all(&directory).unwrap();
            for name in 0..300 {
                fs::write(directory.join(format!("{name} {}", "x".repeat(100))), "").unwrap();
            }
        }
    };
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    for (arguments, asks) in [
        (&["--cache=always"][..], false),
        (&["--cache=auto"], true),
        (&["--cache=always", "-o", "unlink=deferred"], false),
    ] {
        let options = Options { arguments, count_kernel_requests: true, ..Options::default() };
        let place = Place::new(Road::Kernel, &options, fill);
        let w = place.path().join("w");
        // All at once, by two each, a part at a time, so that none is read to its end before others are begun.
        let mut streams: Vec<_> = (0..2 * DIRECTORIES)
            .map(|number| (File::open(w.join((number % DIRECTORIES).to_string())).unwrap(), 0usize))
            .collect();
        let mut unread = streams.len();
        while unread > 0 {
            unread = 0;
            for (directory, read) in &mut streams {
                let mut buffer = Vec::with_capacity(PART);
                let mut entries = rustix::fs::RawDir::new(&*directory, buffer.spare_capacity_mut());
                let mut some = 0;
                while let Some(entry) = entries.next() {
                    entry.unwrap();
                    some += 1;
                    if entries.is_buffer_empty() {
                        break;
                    }
                }
                *read += some;
                unread += usize::from(some > 0);
            }
        }
        assert!(streams.iter().all(|(_, read)| *read == 302), "{arguments:?}: {streams:?}");
        // What belongs to a directory rather than to a listing needs no handle, either.
        streams[0].0.sync_all().unwrap();
        rustix::fs::ioctl_getflags(&streams[0].0).unwrap();
        drop(streams);
        for directory in 0..DIRECTORIES {
            let directory = w.join(directory.to_string());
            fs::write(directory.join("later"), "").unwrap();
            fs::remove_file(directory.join(format!("7 {}", "x".repeat(100)))).unwrap();
            let mut native = names(&place.source().join(directory.strip_prefix(place.path()).unwrap()));
            native.retain(|name| !name.to_string_lossy().starts_with("7 "));
            assert_eq!(names(&directory), native, "{arguments:?}");
        }
        let requests = place.mount().kernel_requests();
        let asked = requests.get("OPENDIR").copied().unwrap_or(0);
        assert_eq!(asked > 1, asks, "{arguments:?}: {requests:?}");
        assert_eq!(requests.contains_key("RELEASEDIR"), asks, "{arguments:?}: {requests:?}");
    }
}

/// Whoever has a directory open may read it, whoever he has become.
#[test]
fn a_descriptor_of_a_directory_that_may_not_be_opened_again_is_listed() {
    const LIST: &str = "import os; print(sorted(os.listdir(5))); print(sorted(os.listdir(5)))";
    if !needs::root("a_descriptor_of_a_directory_that_may_not_be_opened_again_is_listed") {
        return;
    }
    let everyone = build::for_all_users();
    let finesse = everyone.path().join(build::COMMAND);
    for arguments in [&["--cache=auto"][..], &["--cache=always"]] {
        let options = Options { arguments, ..Options::default() };
        for place in Place::on_all_roads(&options, fill) {
            let script = r#"exec 5<w/private; exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@""#;
            let mut command = place.command_as(&finesse, &[], "sh");
            let output = command.args(["-c", script, "sh", "/usr/bin/python3", "-c", LIST]).output().unwrap();
            let expected = "['a', 'b', 'c']\n".repeat(2);
            assert_eq!(text(&output.stdout), expected, "{}: {}", place.road(), said(&output));
        }
    }
}

/// `..` is the one thing that a directory lists which changes without a change in it.
#[test]
fn what_is_above_a_directory_that_was_moved_is_listed() {
    let options = Options { arguments: &["--cache=always"], ..Options::default() };
    let place = Place::new(Road::Bypass, &options, |root| {
        fs::create_dir_all(root.join("a/moved")).unwrap();
        fs::create_dir_all(root.join("b")).unwrap();
    });
    let above = |path: &Path| {
        let directory = File::open(path).unwrap();
        let mut buffer = Vec::with_capacity(1 << 12);
        let mut entries = rustix::fs::RawDir::new(&directory, buffer.spare_capacity_mut());
        loop {
            let entry = entries.next().expect("..").unwrap();
            if entry.file_name() == c".." {
                return entry.ino();
            }
        }
    };
    let number = |name: &str| fs::metadata(place.path().join(name)).unwrap().ino();
    for road in [Road::Kernel, Road::Bypass] {
        for (from, to) in [("a", "b"), ("b", "a")] {
            let moved = place.path().join(from).join("moved");
            for _ in 0..2 {
                assert_eq!(above(&moved), number(from), "{road}");
            }
            let output =
                place.command_on(road, "mv").arg(&moved).arg(place.path().join(to)).output().unwrap();
            assert!(output.status.success(), "{}", said(&output));
            assert_eq!(above(&place.path().join(to).join("moved")), number(to), "{road}");
        }
    }
}

/// Every part of the program on the file system in memory, whose permissions the engine checks.
#[test]
fn all_of_this_holds_for_a_file_system_in_memory() {
    let parts = all_parts("all_of_this_holds_for_a_file_system_in_memory");
    let places = Road::ALL.map(|road| Place::of_memory(road, &Options::default()));
    for place in &places {
        fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
        fill(place.path());
    }
    for part in parts {
        let mut native = None;
        for place in &places {
            let output = place.command(program()).arg(part).arg(place.path().join("w")).output().unwrap();
            let told = told(place, &output);
            assert_eq!(told.0, Some(0), "{part} on the {}: {}", place.road(), said(&output));
            assert_eq!(&told, native.get_or_insert_with(|| told.clone()), "{part} on the {}", place.road());
        }
    }
    let account = places[2].mount().account();
    assert!(account.answered.get("opendir").is_some_and(|count| *count >= 150), "{account:?}");
}

#[test]
fn twenty_thousand_entries_are_listed_completely() {
    let place = Place::new(Road::Bypass, &Options::default(), |root| {
        fs::create_dir(root.join("w")).unwrap();
        for number in 0..20_000 {
            fs::write(root.join(format!("w/stable {number}")), "").unwrap();
        }
    });
    let w = place.path().join("w");
    assert_eq!(fs::read_dir(&w).unwrap().count(), 20_000, "on the kernel road");
    let output = place.command(program()).arg("steady").arg(&w).args(["2", "20000"]).output().unwrap();
    assert_eq!(text(&output.stdout), "done\n", "{}", said(&output));
    let python = ["-c", "import os; print(len(set(os.listdir('w'))))"];
    let output = place.command("python3").args(python).output().unwrap();
    assert_eq!(text(&output.stdout), "20000\n", "{}", said(&output));
    let account = place.mount().account();
    assert!(account.answered.get("readdir").is_some_and(|count| *count > 20), "{account:?}");
}

#[test]
fn what_is_there_all_the_time_is_listed_once_while_other_names_come_and_go() {
    const STABLE: usize = 3000;
    let place = Place::new(Road::Bypass, &Options::default(), |root| {
        fs::create_dir(root.join("w")).unwrap();
        for number in 0..STABLE {
            fs::write(root.join(format!("w/stable {number}")), "").unwrap();
        }
    });
    let w = place.path().join("w");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // On the kernel road, from here.
        let by_kernel = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                for number in 0..50 {
                    fs::write(w.join(format!("comes {number}")), "").unwrap();
                    fs::rename(w.join(format!("comes {number}")), w.join(format!("moves {number}"))).unwrap();
                }
                for number in 0..50 {
                    fs::remove_file(w.join(format!("moves {number}"))).unwrap();
                }
                rounds += 1;
            }
            rounds
        });
        // On the bypass, by another program, which ends when its input does.
        let script = "import os, select, sys\n\
            while not select.select([sys.stdin], [], [], 0)[0]:\n\
            \tfor n in range(50): open(f'w/goes {n}', 'w').close()\n\
            \tfor n in range(50): os.unlink(f'w/goes {n}')\n";
        let mut python = place.command("python3");
        let mut churn = python.args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        wait::eventually("names come and go", || {
            let seen: Vec<_> = fs::read_dir(&w).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            seen.iter().any(|name| name.to_string_lossy().starts_with("goes"))
        });
        let mut list = place.command(program());
        let output = list.arg("steady").arg(&w).args(["60", &STABLE.to_string()]).output().unwrap();
        stop.store(true, Ordering::Relaxed);
        drop(churn.stdin.take());
        assert!(churn.wait().unwrap().success());
        assert!(by_kernel.join().unwrap() > 0);
        assert_eq!(text(&output.stdout), "done\n", "{}", said(&output));
    });
    let account = place.mount().account();
    assert!(account.answered.get("opendir").is_some_and(|count| *count >= 30), "{account:?}");
}

#[test]
fn who_may_not_read_a_directory_cannot_list_it() {
    if !needs::root("who_may_not_read_a_directory_cannot_list_it") {
        return;
    }
    let fill = |root: &Path| {
        fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
        for mode in ["755", "711", "700", "744", "070", "007", "000"] {
            let directory = root.join(mode);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("entry"), "").unwrap();
            let bits = u32::from_str_radix(mode, 8).unwrap();
            fs::set_permissions(&directory, PermissionsExt::from_mode(bits)).unwrap();
        }
    };
    let options = Options { arguments: &["-o", "allow_other"], ..Options::default() };
    // On the one the file system judges, on the other the engine.
    let mut places = Vec::from(Place::on_all_roads(&options, fill));
    for road in [Road::Kernel, Road::Bypass] {
        let place = Place::of_memory(road, &options);
        fill(place.path());
        places.push(place);
    }
    let finesse = build::for_all_users();
    let script = "for mode in 755 711 700 744 070 007 000; do\n\
        echo $mode; ls -a $mode; echo $?; ls $mode/. $mode/..; echo $?; (cd $mode && ls; echo *); echo $mode/*; done";
    for user in [&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"][..], &["setpriv"]] {
        let mut native = None;
        for place in &places {
            let mut bash = place.command_as(&finesse.path().join(build::COMMAND), user, "bash");
            let output = bash.args(["-c", script]).output().unwrap();
            let told = told(place, &output);
            assert!(told.1.contains("entry"), "{}", said(&output));
            assert_eq!(&told, native.get_or_insert_with(|| told.clone()), "{user:?} on the {}", place.road());
        }
    }
    for bypass in places.iter().filter(|place| place.road() == Road::Bypass) {
        let account = bypass.mount().account();
        assert!(account.answered.get("opendir").is_some_and(|count| *count >= 20), "{account:?}");
    }
}

#[test]
fn a_stream_whose_daemon_is_gone_ends_with_the_error_of_a_dead_mount() {
    let mut said = Vec::new();
    for road in [Road::Kernel, Road::Bypass] {
        let place = Place::new(road, &Options::default(), fill);
        let mut list = place.command(program());
        let mut list = list.arg("abandoned").arg(place.path().join("w"));
        list = list.stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/");
        let mut list = list.spawn().unwrap();
        let mut output = BufReader::new(list.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "open\n", "{road}");
        if road == Road::Bypass {
            let calls = place.mount().account();
            assert!(calls.answered.contains_key("opendir") || calls.to_kernel.contains_key("mounts-changed"));
        }
        place.mount().signal(Signal::KILL);
        assert!(place.mount().ended(wait::PATIENCE));
        list.stdin.take().unwrap().write_all(b"\n").unwrap();
        line.clear();
        output.read_to_string(&mut line).unwrap();
        list.wait().unwrap();
        said.push(line);
    }
    assert_eq!(said, ["not connected\n", "not connected\n"]);
}

#[test]
fn programs_list_and_walk_as_natively() {
    let scripts = [
        ("ls", "ls -a w; ls -lR --time-style=+ w/sub w/empty; ls -U w | sort | md5sum"),
        (
            "find",
            "find w -depth | sort; find w -name 'name*7' -type f | sort; find w -maxdepth 1 -type d | sort",
        ),
        ("bash", "shopt -s globstar; cd w; echo sub/*; echo */; echo name*11; echo ** | wc -w"),
        (
            "du and cp",
            "cp -r w/sub copy && ls copy; cp -a w whole; ls whole | wc -l; du -a --apparent-size copy",
        ),
        ("rm", "rm -r w/sub; rm -rf whole; ls -a w | wc -l; ls -a"),
        ("chmod", "chmod -R u=rwX,go= w && find w ! -type l -printf '%m\\n' | sort | uniq -c"),
        ("tar", "tar cf - --sort=name --mtime=@0 w/empty w/private | tar tvf - | sed 's/  */ /g'"),
        ("rsync", "rsync -a w/ synced/ && rsync -ain w/ synced/ | head; ls synced | wc -l"),
        (
            "git",
            "git init -q . && git add -A && git status --short | head -5 && git commit -qm all && touch w/new && git status --short",
        ),
        (
            "python",
            "python3 -c \"import os, shutil\n\
             print(sorted(os.listdir('w'))[:9])\n\
             print(sum(len(f) for _, _, f in os.walk('.')), sum(len(f) for _, _, f, _ in os.fwalk('w')))\n\
             fd = os.open('w', os.O_RDONLY)\n\
             print(len(os.listdir(fd)), len(os.listdir(fd)), sorted(e.name for e in os.scandir(fd) if e.is_dir(follow_symlinks=False)))\n\
             print(sorted((e.name, e.is_symlink(), e.is_file(follow_symlinks=False)) for e in os.scandir('w') if not e.name.startswith('name')))\n\
             shutil.rmtree('copy', ignore_errors=True); shutil.copytree('w/private', 'tree'); shutil.rmtree('tree')\n\
             print(os.path.exists('tree'))\"",
        ),
        (
            "perl",
            "perl -e 'opendir D, \"w\"; my @a = sort readdir D; print scalar(@a), \" $a[0] $a[5]\\n\"; rewinddir D; my $p; while (defined($_ = readdir D)) { $p = telldir D if $_ eq \"file\" } seekdir D, $p; print((stat \"w/\".(readdir(D)||\".\"))[2] > 0, \"\\n\")'",
        ),
    ];
    let places = Place::on_all_roads(&Options::default(), |root| fill_with(root, 60));
    let mut natively = Vec::new();
    let mut failures = Vec::new();
    for place in &places {
        for (index, (name, script)) in scripts.iter().enumerate() {
            let before = place.is_mounted().then(|| place.mount().account());
            let output = place.bash("", script);
            let told = told(place, &output);
            if place.road() == Road::Native {
                assert_eq!(told.0, Some(0), "{name}: {}", said(&output));
                natively.push(told);
            } else if told != natively[index] {
                failures.push(format!(
                    "{name} on the {}: {told:?}\ninstead of {:?}",
                    place.road(),
                    natively[index]
                ));
            }
            if let (Some(before), Road::Bypass) = (before, place.road()) {
                let calls = place.mount().account().since(&before);
                if opened(&calls) == 0 {
                    failures.push(format!("{name} did not list through the ring: {calls:?}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let trees: Vec<_> = places
        .iter()
        .map(|place| {
            let mut tree = tree::read(place.source(), Times::Ignored);
            // Holds times and inode numbers.
            tree.retain(|path, _| !path.starts_with(".git"));
            tree
        })
        .collect();
    assert!(trees[0] == trees[1] && trees[0] == trees[2], "the trees differ afterwards");
}
