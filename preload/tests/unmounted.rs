//! Without a mount of ours, the library changes nothing: real programs, and small C programs at the edges of the C
//! library's contracts, do the same with it as without it.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn library() -> PathBuf {
    // target/PROFILE/deps/unmounted-HASH → target/PROFILE/libfinesse_preload.so
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    ["deps", ""]
        .map(|directory| profile.join(directory).join("libfinesse_preload.so"))
        .into_iter()
        .find(|library| library.exists())
        .expect("cargo builds the library before its tests")
}

/// Compiles a program of `tests/programs`, or of the tests on mounts.
fn program(name: &str, directory: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = ["tests/programs", "../tests/programs"]
        .map(|directory| here.join(directory).join(name).with_extension("c"))
        .into_iter()
        .find(|source| source.exists())
        .expect("a program of that name");
    let program = directory.join(name);
    let compiled =
        Command::new("cc").args(["-O1", "-w", "-pthread", "-o"]).arg(&program).arg(source).status();
    assert!(compiled.expect("the C compiler that also links Rust").success());
    program
}

/// What a program says and how it ends, in a fresh directory, with the library or without.
fn run(program: impl AsRef<OsStr>, arguments: &[&str], preloaded: bool) -> (Output, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&directory).env_remove("LD_PRELOAD").env_remove("FINESSE_MOUNTS");
    if preloaded {
        command.env("LD_PRELOAD", library());
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [&output.stdout[..], &output.stderr].concat();
    let place = directory.path().to_str().unwrap().to_owned();
    (output, String::from_utf8_lossy(&text).replace(&place, "HERE"))
}

fn changes_nothing(program: impl AsRef<OsStr>, arguments: &[&str]) {
    let (native, native_text) = run(&program, arguments, false);
    let (preloaded, text) = run(&program, arguments, true);
    assert_eq!(text, native_text, "{:?} {arguments:?}", program.as_ref());
    assert_eq!(preloaded.status, native.status);
}

#[test]
fn real_programs_do_the_same() {
    for script in [
        "mkdir -p a/b && echo hello > a/b/c && cp -a a d && diff -r a d && find . | sort && rm -rf a d && ls -la | wc -l",
        "umask 027; touch f; mkdir d; mkfifo p; ln -s f l; ln f h; stat -c '%n %A %h' f d p l h",
        "echo a > f; cat f >> f; echo $?; exec 3< f; cat <&3; exec 3>&-; cat <&3; echo $?",
        "tar cf t.tar --sort=name --mtime=@0 -C /etc hostname passwd && tar tf t.tar && tar xf t.tar && cmp passwd /etc/passwd",
        "python3 -c 'import os, subprocess, tempfile; print(subprocess.run([\"true\"], close_fds=True)); \
         d = os.open(\".\", os.O_RDONLY); os.mkdir(\"x\", dir_fd=d); print(os.listdir(d)); os.rmdir(\"x\", dir_fd=d)'",
        "env -i /bin/sh -c 'echo $PATH'; cd /usr && pwd && cd - > /dev/null && pwd",
        "ls /proc/nonexistent; cat /; rm /proc/nonexistent; mkdir /etc; rmdir /; mv /etc/passwd /dev/null/x; true",
    ] {
        changes_nothing("bash", &["-c", script]);
    }
}

#[test]
fn calls_at_the_edges_of_their_contracts_do_the_same() {
    let directory = tempfile::tempdir().unwrap();
    changes_nothing(program("edges", directory.path()), &["."]);
}

#[test]
fn what_libc_does_by_calls_of_its_own_it_does_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let helpers = program("helpers", directory.path());
    // A story may end in the background: `cat` waits for it.
    for story in ["streams", "temporary", "resolve", "place", "globs", "numbers", "attributes", "modes"] {
        // `cat` ends when the last process has that the program leaves behind.
        let line = format!(
            "mkdir -p directory deep/a/b/c many private; echo file > file; echo inner > directory/inner; \
             echo last > deep/a/b/c/last; ln -s file link; ln -s directory dirlink; ln -s nowhere dangling; \
             ln -s loop loop; mkfifo fifo; {} {story} | cat; echo ${{PIPESTATUS[0]}}; find . -not -path './many/*' | sort",
            helpers.display()
        );
        changes_nothing("bash", &["-c", &line]);
    }
}

#[test]
fn a_thread_is_cancelled_inside_a_hook() {
    let directory = tempfile::tempdir().unwrap();
    let cancel = program("cancel", directory.path());
    for preloaded in [false, true] {
        let (output, text) = run(&cancel, &["fifo"], preloaded);
        assert!(output.status.success(), "{text}{:?}", output.status);
    }
}

/// The unwinder is loaded when something unwinds, not into every program.
#[test]
fn no_other_library_is_loaded_with_it() {
    let loaded = |preloaded: bool| {
        let mut command = Command::new("true");
        command.env_remove("LD_PRELOAD").env("LD_TRACE_LOADED_OBJECTS", "1");
        if preloaded {
            command.env("LD_PRELOAD", library());
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    assert_eq!(loaded(true), loaded(false) + 1);
}

#[test]
fn every_way_to_start_a_program_keeps_the_library_and_the_arguments() {
    let directory = tempfile::tempdir().unwrap();
    let start = program("start", directory.path());
    let (_, native) = run(&start, &[], false);
    let (_, preloaded) = run(&start, &[], true);
    assert_eq!(preloaded, native.replace("preloaded=", "preloaded=yes"));
    assert_eq!(native.matches(": 0\n").count(), 14, "{native}");
}

#[test]
fn the_library_is_found_again_when_it_was_named_relative_to_the_current_directory() {
    let library = library();
    let output = Command::new("bash")
        .args(["-c", "cd / && env -u LD_PRELOAD bash -c 'echo $LD_PRELOAD'"])
        .current_dir(library.parent().unwrap())
        .env("LD_PRELOAD", "./libfinesse_preload.so")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(Path::new(said.trim()).canonicalize().unwrap(), library.canonicalize().unwrap(), "{said}");
}

/// The names of the system calls that a program makes, in order.
fn system_calls(preloaded: bool) -> Vec<String> {
    let mut command = Command::new("strace");
    if preloaded {
        command.arg("-E").arg(format!("LD_PRELOAD={}", library().display()));
    }
    // An empty list: there is no mount, and that need not be found out.
    let output = command
        .args(["-E", "FINESSE_MOUNTS=", "-qq", "stat", "/etc/passwd", "/usr", "/proc/nonexistent"])
        .output()
        .expect("strace is installed");
    let text = String::from_utf8(output.stderr).unwrap();
    text.lines().filter_map(|line| Some(line.split_once('(')?.0.to_owned())).collect()
}

#[test]
fn no_system_call_is_added_after_the_start() {
    let native = system_calls(false);
    let preloaded = system_calls(true);
    // The fork mark is the last thing that the library's constructor asks the kernel for.
    let start = preloaded.iter().position(|call| call == "madvise").expect("the library was loaded");
    let after = &preloaded[start + 1..];
    assert!(after.len() > 20, "{after:?}");
    assert!(native.ends_with(after), "{native:?}\n{after:?}");
}

/// What depends on chance: when another process runs, where memory lies.
const BY_CHANCE: [&str; 12] = [
    "brk",
    "clock_nanosleep",
    "futex",
    "kill",
    "mmap",
    "munmap",
    "poll",
    "pselect6",
    "read",
    "restart_syscall",
    "rt_sigreturn",
    "wait4",
];

/// How often a program and all that it starts make each system call, and how many programs that was. There is a small
/// tree in its directory.
fn counted(line: &[&str], preloaded: bool) -> (BTreeMap<String, i64>, i64) {
    let directory = tempfile::tempdir().unwrap();
    let [work, traces] = ["work", "traces"].map(|name| directory.path().join(name));
    std::fs::create_dir_all(work.join("a/b")).unwrap();
    std::fs::create_dir(&traces).unwrap();
    std::fs::write(work.join("a/b/c"), "hello\n").unwrap();
    let mut command = Command::new("strace");
    command.args(["-ff", "-qq", "-E", "FINESSE_MOUNTS=", "-o"]).arg(traces.join("trace"));
    if preloaded {
        command.arg("-E").arg(format!("LD_PRELOAD={}", library().display()));
    }
    let output = command
        .args(line)
        .current_dir(&work)
        .stdin(Stdio::null())
        .env_remove("LD_PRELOAD")
        .env_remove("LD_LIBRARY_PATH")
        .output();
    let output = output.expect("strace is installed");
    assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    let (mut counts, mut programs) = (BTreeMap::new(), 0);
    for trace in std::fs::read_dir(&traces).unwrap() {
        // Data that programs write is not always text.
        let trace = String::from_utf8_lossy(&std::fs::read(trace.unwrap().path()).unwrap()).into_owned();
        // Signals and ends have lines of their own.
        for call in trace.lines().filter(|line| !line.starts_with(['-', '+'])) {
            let name = call.split('(').next().unwrap();
            *counts.entry(name.to_owned()).or_insert(0) += 1;
            programs += i64::from(name == "execve" && call.ends_with("= 0"));
        }
    }
    (counts, programs)
}

/// What the library adds to `with` in comparison to `without`.
fn added(without: &BTreeMap<String, i64>, with: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let names = without.keys().chain(with.keys()).filter(|name| !BY_CHANCE.contains(&name.as_str()));
    let get = |counts: &BTreeMap<String, i64>, name| counts.get(name).copied().unwrap_or(0);
    let added = names.map(|name| (name.clone(), get(with, name) - get(without, name)));
    added.filter(|(_, count)| *count != 0).collect()
}

#[test]
fn real_programs_make_no_system_call_more_than_their_start_costs() {
    let start = added(&counted(&["true"], false).0, &counted(&["true"], true).0);
    // That the library is loaded at all: the fork mark is made by its constructor.
    assert_eq!(start.get("madvise"), Some(&1), "{start:?}");
    assert_eq!(start.get("getrandom"), None, "{start:?}");
    let lines: [&[&str]; 15] = [
        &["cp", "-a", "a", "d"],
        &["find", ".", "-type", "f", "-size", "-9k"],
        &["tar", "cf", "t.tar", "a"],
        &["rm", "-rf", "a"],
        &["ls", "-laR"],
        &["sort", "-o", "x", "a/b/c"],
        &["sed", "-i", "s/h/j/", "a/b/c"],
        &["dd", "if=/dev/zero", "of=x", "count=3"],
        &["git", "init", "-q", "."],
        &["sqlite3", "x.db", "create table t (a); insert into t values (1); select * from t;"],
        &["make", "-f", "/dev/null", "-v"],
        &[
            "perl",
            "-e",
            "print -s q(a/b/c); open F, '>x'; print F 'x'; close F; unlink 'x'; system 'true'; fork; wait",
        ],
        &[
            "/usr/bin/python3",
            "-c",
            "import os, shutil; os.mkdir('x'); shutil.copytree('a', 'y'); shutil.rmtree('a'); os.fork()",
        ],
        &[
            "bash",
            "-c",
            "mkdir x; echo a > x/f; (echo b >> x/f); exec 3< x/f; read l <&3; mv x/f x/g; [ -f x/g ]; cd x; pwd; rm g",
        ],
        &["bash", "-c", "for i in 1 2 3; do (cat ./a/b/c > f$i); done; rm f?; env X=y true; exec stat a"],
    ];
    for line in lines {
        let (native, programs) = counted(line, false);
        let (preloaded, same) = counted(line, true);
        assert_eq!(programs, same, "{line:?}");
        let expected: BTreeMap<_, _> =
            start.iter().map(|(name, count)| (name.clone(), count * programs)).collect();
        let mut more = added(&native, &preloaded);
        // How often libc draws again for the name of a temporary file is chance (`__gen_tempname`).
        more.remove("getrandom");
        assert_eq!(more, expected, "{line:?}");
    }
}

#[test]
fn the_library_defines_only_functions_that_libc_defines() {
    let path = CString::new(library().to_str().unwrap()).unwrap();
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(library()).output().expect("binutils");
    let symbols = String::from_utf8(output.stdout).unwrap();
    let functions: Vec<_> =
        symbols.lines().filter_map(|line| line.split_once(" T ")).map(|(_, name)| name.to_owned()).collect();
    assert!(functions.len() > 120, "{path:?} {functions:?}");
    for name in &functions {
        let symbol = CString::new(name.as_str()).unwrap();
        // SAFETY: looks a name up among the loaded libraries, of which ours is none.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
        assert!(!found.is_null(), "{name} is no function of this libc");
    }
}
