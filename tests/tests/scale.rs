//! A tree that is larger than any limit on open files.

use std::fs;
use std::process::Command;
use std::time::Instant;

use finesse_tests::mount::{Options, said, text};
use finesse_tests::road::{Place, Road, environment};

const DIRECTORIES: usize = 250;
const FILES: usize = 400;

/// The daemon may have this many files open; the preloaded programs too.
const LIMIT: &str = "--nofile=1024:1024";

#[test]
fn a_hundred_thousand_files_need_no_hundred_thousand_descriptors() {
    let options = Options { wrapper: &["prlimit", LIMIT], ..Options::default() };
    let place = Place::new(Road::Bypass, &options, |root| {
        for directory in 0..DIRECTORIES {
            let directory = root.join(format!("d{directory:03}"));
            fs::create_dir(&directory).unwrap();
            for file in 0..FILES {
                fs::File::create(directory.join(format!("f{file:03}"))).unwrap();
            }
        }
    });
    let limit = fs::read_to_string(format!("/proc/{}/limits", place.mount().pid())).unwrap();
    let limit = limit.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(limit.contains("1024"), "{limit}");
    let idle = place.mount().account();

    // Every inode is looked up, and so known to the daemon.
    let script = "find . -type f -size 0 -links 1 -printf . | wc -c; find . -type d | wc -l";
    let everything = format!("{}\n{}\n", DIRECTORIES * FILES, DIRECTORIES + 1);
    let start = Instant::now();
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(place.path());
    environment(&mut command);
    let output = command.output().unwrap();
    assert_eq!((text(&output.stdout), text(&output.stderr)), (everything.clone(), String::new()));
    let kernel = start.elapsed();
    let account = place.mount().account();
    let inodes = account.known_inodes;
    assert!(inodes > (DIRECTORIES * FILES) as u64, "the daemon knows {inodes} inodes");
    println!(
        "kernel road: {kernel:.2?}; {inodes} known inodes, {} bytes each",
        (account.resident_bytes - idle.resident_bytes) / inodes
    );

    let start = Instant::now();
    let output = place.bash("", script);
    assert_eq!((text(&output.stdout), text(&output.stderr)), (everything, String::new()));
    let calls = place.mount().account().since(&account);
    let account = place.mount().account();
    println!(
        "bypass: {:.2?}; {} known inodes, {} bytes each; {calls:?}",
        start.elapsed(),
        account.known_inodes,
        (account.resident_bytes - idle.resident_bytes) / account.known_inodes
    );
    assert!(calls.total_answered() > (DIRECTORIES * FILES) as u64, "{calls:?}");
    assert!(calls.bypassed() > 95.0, "{calls:?}");

    // A program that keeps more files open than the daemon may have: they are the program's own.
    let script = "
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))
held = [os.open(f'd{n // 400:03}/f{n % 400:03}', os.O_RDWR) for n in range(2500)]
for n, fd in enumerate(held): os.write(fd, str(n).encode())
print(sum(os.fstat(fd).st_size for fd in held), sum(os.stat(f'd{n // 400:03}/f{n % 400:03}').st_size for n in range(2500)))
";
    let output = place.command("/usr/bin/python3").args(["-c", script]).output().unwrap();
    assert_eq!(text(&output.stdout).trim(), "8890 8890", "{}", said(&output));

    let output = place.bash("", "rm -rf ./*; ls -A | wc -l");
    assert_eq!((text(&output.stdout).trim(), text(&output.stderr).trim()), ("0", ""));
}
