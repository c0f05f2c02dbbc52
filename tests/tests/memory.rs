//! The file system in memory (`finesse-memfs`) does what a plain directory does, on both roads.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use finesse_tests::build;
use finesse_tests::mount::{Mount, Options, said, text};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};

/// Runs a script in an empty place on each road, and compares what it says with what it says natively.
fn alike(arguments: &[&str], script: &str) -> [Place; 3] {
    let options = Options { arguments, ..Options::default() };
    let places = Road::ALL.map(|road| Place::of_memory(road, &options));
    let [native, kernel, bypass] = places.each_ref().map(|place| {
        let output = place.bash(".", script);
        assert!(output.status.success(), "{}: {}", place.road(), said(&output));
        place.neutral(&output.stdout) + &place.neutral(&output.stderr)
    });
    assert_eq!(kernel, native, "kernel road");
    assert_eq!(bypass, native, "bypass");
    places
}

#[test]
fn names_and_attributes_are_those_of_a_plain_directory() {
    let places = alike(
        &[],
        "set -e
         mkdir -p a/b/c; echo one > a/one; ln a/one a/b/two; ln -s ../one a/b/three; mkfifo a/pipe
         chmod 2755 a; mkdir a/inherits; stat -c '%A %h %F' a/one a/b/two a/inherits a/pipe a/b/three; stat -c %s a/one a/b/three
         chmod 6711 a/one; touch -d '1999-12-31 23:59:59.123456789Z' a/one; stat -c '%A %.9Y' a/one
         mv a/b/two a/moved; mv -T a/inherits a/b/c; cat a/b/three a/moved; ls a a/b a/b/c
         rmdir a || true; mv a a/b || true; mv -n a/one a/moved; rm a/one; stat -c %h a/moved
         rm -r a/b; stat -c %h a; exec 5<a/moved; rm a/moved; stat -Lc %h /dev/fd/5; cat <&5
         ln a/pipe a/x a/y 2>&1 || true; echo x > a/new; cp -p a/new a/copy; cmp a/new a/copy
         touch $(printf '%0255d' 0); touch $(printf '%0256d' 0) 2>&1 | tail -c 20; ls | wc -c; rm -r a",
    );
    let account = places[2].mount().account();
    assert!(account.answered["stat"] > 10 && account.answered["rename"] > 1, "{:?}", account.answered);
}

#[test]
fn contents_are_sparse_and_exact() {
    alike(
        &[],
        "set -e
         head -c 100000 /dev/zero | tr '\\0' x > f; truncate -s 200000 f; md5sum < f
         printf abc | dd of=f bs=1 seek=99999 conv=notrunc status=none; md5sum < f
         fallocate -p -o 4000 -l 9000 f; md5sum < f; stat -c %s f
         fallocate -z -o 150000 -l 100000 f; stat -c %s f; fallocate -n -l 400000 f; stat -c %s f; md5sum < f
         truncate -s 5 f; truncate -s 10 f; od -c f; : > f; stat -c %s f
         truncate -s 1T f; stat -c '%s %b' f; cp --sparse=always f g; stat -c '%s %b' g
         for i in 1 2 3; do echo $i >> log; done; cat log; cp --reflink=never log log2; cmp log log2",
    );
}

#[test]
fn extended_attributes_keep_their_rules() {
    alike(
        &[],
        "touch f; mkdir d; ln -s f l; exec 2>&1
         setfattr -n user.one -v 1 f; setfattr -n user.two -v 2 d; setfattr -h -n trusted.three -v 3 l
         getfattr -d -m - f d; getfattr -h -d -m - l
         setfattr -n user.none l; setfattr -h -n user.none -v x l; setfattr -n nonsense.x -v x f
         setfattr -x user.one f; setfattr -x user.one f; getfattr -n user.one f; getfattr -d f
         python3 - <<'END'
import os
for flags in (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, os.XATTR_REPLACE):
    try: print(os.setxattr('f', 'user.flags', b'v', flags))
    except OSError as error: print(error)
for value in (b'', b'v' * 1000): os.setxattr('f', 'user.size', value); print(os.getxattr('f', 'user.size'))
try: os.setxattr('f', 'user.large', b'v' * 65537)
except OSError as error: print(error)
END",
    );
}

#[test]
fn a_limit_of_space_is_kept_and_space_comes_back() {
    for road in [Road::Kernel, Road::Bypass] {
        let options = Options { arguments: &["--size", "1M"], ..Options::default() };
        let place = Place::of_memory(road, &options);
        // The kernel gives up what it knows of a removed file a little after its removal.
        let script = "df --output=size,avail -B1 . | tail -n 1; head -c 2M /dev/zero > f; stat -c '%s %b' f
                      echo x > g; fallocate -l 1 h; df --output=avail -B1 . | tail -n 1
                      rm f; until echo x 2> /dev/null > g; do sleep 0.01; done; df --output=avail -B1 . | tail -n 1; cat g";
        let output = place.bash(".", script);
        let lines: Vec<_> = text(&output.stdout).lines().map(|line| line.trim().to_owned()).collect();
        assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["1048576", "1048576"], "{road}");
        assert_eq!(lines[1..], ["1048576 2048", "0", "1044480", "x"], "{road}: {}", said(&output));
        let errors = text(&output.stderr);
        assert_eq!(errors.matches("No space left on device").count(), 3, "{road}: {errors}");
    }
}

#[test]
fn a_listing_that_goes_on_misses_and_repeats_nothing_that_stays() {
    let script = "
import os
for n in range(2000): open('f%04d' % n, 'w').close()
seen, there = [], set(os.listdir('.'))
for n, entry in enumerate(os.scandir('.')):
    seen.append(entry.name)
    if n % 2:
        os.unlink(entry.name)
        there.remove(entry.name)
    else:
        open('new%04d' % n, 'w').close()
        there.add('new%04d' % n)
old = [name for name in seen if name.startswith('f')]
assert len(old) == len(set(old)) == 2000, (len(old), len(set(old)))
assert sorted(os.listdir('.')) == sorted(there)";
    for road in [Road::Kernel, Road::Bypass] {
        let place = Place::of_memory(road, &Options::default());
        let output = place.command("python3").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{road}: {}", said(&output));
    }
}

#[test]
fn the_command_says_what_is_wrong_and_ends_cleanly() {
    let home = tempfile::tempdir().unwrap();
    let refused = |arguments: &[&str]| {
        let output = Command::new(build::memory()).args(arguments).output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    };
    let absent = home.path().join("absent");
    assert!(refused(&[absent.to_str().unwrap()]).contains("absent: No such file"));
    let here = home.path().to_str().unwrap();
    assert!(refused(&["-o", "bogus", here]).contains("-o bogus: unknown mount option"));
    assert!(refused(&["--size", "1Z", here]).contains("no such unit"));
    let mount =
        Mount::of_memory(home.path(), &Options { arguments: &["-o", "size=1M,ro"], ..Options::default() });
    let error = std::fs::write(home.path().join("f"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    mount.unmount();
}

#[test]
fn who_is_not_in_a_directorys_group_makes_no_program_that_runs_as_it() {
    if !needs::root("who_is_not_in_a_directorys_group_makes_no_program_that_runs_as_it") {
        return;
    }
    let bin = build::for_all_users();
    let script = "
        umask 0;
        sysopen(my $file, 'd/opened', O_CREAT | O_WRONLY, 02775) or die;
        sysopen($file, 'd/unlike', O_CREAT | O_WRONLY, 02765) or die;
        mkfifo('d/pipe', 02775) or die;
        mkdir('d/below', 0775) or die;
        for (sort glob 'd/*') { my @status = lstat; printf \"%s %o %d %d\\n\", $_, @status[2, 4, 5] }";
    let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let said = Road::ALL.map(|road| {
        let place = Place::of_memory(road, &Options::default());
        let directory = place.path().join("d");
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::chown(&directory, Some(0), Some(1)).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o2777)).unwrap();
        std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = place.command_as(&bin.path().join(build::COMMAND), &user, "perl");
        let output = command.args(["-MFcntl", "-MPOSIX=mkfifo", "-e", script]).output().unwrap();
        assert!(output.status.success(), "{road}: {}", said(&output));
        text(&output.stdout)
    });
    assert!(said[0].contains("d/opened 100775 65534 1"), "{}", said[0]);
    assert!(said[0].contains("d/unlike 102765 65534 1"), "the group could not execute it: {}", said[0]);
    assert_eq!(said[1], said[0], "kernel road");
    assert_eq!(said[2], said[0], "bypass");
}
