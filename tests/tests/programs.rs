//! Unmodified programs do on a mount what they do on a native directory: same output, same exit status, same
//! files afterwards. On the bypass their calls really are bypassed: the client's counters say so, and the
//! kernel, whose requests the daemon logs, has not been asked.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use finesse_tests::mount::{self, Mount, Options};
use finesse_tests::needs;
use finesse_tests::road::{Place, Road};
use finesse_tests::tree::{self, Times};

/// One script that is run on all roads, in its own copy of [`fill`]'s tree.
struct Case {
    name: &'static str,
    script: &'static str,
    /// Whether the modification times that it leaves behind are the same every time.
    times: Times,
    /// The least share of its calls that is bypassed, in percent. Zero where shells and short-lived helpers
    /// open little but directories, so that there is nothing to take a share of.
    bypassed: f64,
    /// Requests that the kernel must not make when the script is run on the bypass.
    not_by_kernel: &'static [&'static str],
}

/// A case whose result is what counts.
const fn case(name: &'static str, script: &'static str) -> Case {
    Case { name, script, times: Times::Ignored, bypassed: 0.0, not_by_kernel: &[] }
}

impl Case {
    /// The times that it leaves behind are determined.
    const fn with_times(mut self) -> Self {
        self.times = Times::Compared;
        self
    }

    /// At least this share of its calls is bypassed, in percent, and the kernel is not asked for these at all.
    const fn bypassing(mut self, share: f64, not_by_kernel: &'static [&'static str]) -> Self {
        self.bypassed = share;
        self.not_by_kernel = not_by_kernel;
        self
    }
}

/// A small tree with one of everything that programs meet.
fn fill(root: &Path) {
    let write = |path: &str, contents: &[u8]| fs::write(root.join(path), contents).unwrap();
    for directory in ["a/b/c", "a/empty", "many", "dir with spaces", "src", "new"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for number in 0..40 {
        write(&format!("many/f{number:02}"), format!("line {number}\nneedle {}\n", number % 7).as_bytes());
    }
    write("a/one", b"first\n");
    write("a/b/two", b"b\na\nc\na\n");
    write("a/b/c/large", &vec![b'x'; 300_000]);
    write("a/b/c/empty", b"");
    write("dir with spaces/a file", b"spaces\n");
    write("src/main.c", b"#include \"greet.h\"\nint main(void) { greet(); return 3; }\n");
    write("src/greet.h", b"void greet(void);\n");
    write(
        "src/greet.c",
        b"#include <stdio.h>\n#include \"greet.h\"\nvoid greet(void) { puts(\"hello\"); }\n",
    );
    write(
        "src/Makefile",
        b"prog: main.o greet.o\n\tcc -o $@ $^\n%.o: %.c greet.h\n\tcc -c -o $@ $<\nclean:\n\trm -f *.o prog\n",
    );
    write("script.sh", b"#!/bin/sh\necho \"args: $*\"\n");
    fs::set_permissions(root.join("script.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("a/one"), PermissionsExt::from_mode(0o640)).unwrap();
    fs::hard_link(root.join("a/one"), root.join("a/hard")).unwrap();
    symlink("b/two", root.join("a/link")).unwrap();
    symlink("nowhere", root.join("a/dangling")).unwrap();
    symlink("../many", root.join("a/dirlink")).unwrap();
    let fifo = root.join("a/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    rustix::fs::setxattr(root.join("a/one"), "user.colour", b"blue", rustix::fs::XattrFlags::empty())
        .expect("the directory for temporary files supports user extended attributes");
    // A fixed past, deepest first so that nothing changes a directory afterwards.
    let mut paths: Vec<_> = tree::read(root, Times::Ignored).into_keys().collect();
    paths.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for (age, path) in paths.iter().enumerate() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + age as u64 * 60);
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let time = rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let path = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
    }
}

/// Runs every case on all roads and compares.
fn agree_on_all_roads(cases: &[Case]) {
    let options = Options { count_kernel_requests: true, ..Options::default() };
    let places = Place::on_all_roads(&options, |root| {
        for number in 0..cases.len() {
            let directory = root.join(format!("case-{number:02}"));
            fs::create_dir(&directory).unwrap();
            fill(&directory);
        }
    });
    let mut failures = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let directory = format!("case-{number:02}");
        let mut native = None;
        for place in &places {
            let before =
                place.is_mounted().then(|| (place.mount().account(), place.mount().kernel_requests()));
            let output = place.bash(&directory, case.script);
            let said = (output.status.code(), place.neutral(&output.stdout), place.neutral(&output.stderr));
            let mut complain = |what: String| {
                failures.push(format!("== {} on the {}: {what}", case.name, place.road()));
            };
            if let (Some((account, requests)), Road::Bypass) = (before, place.road()) {
                let calls = place.mount().account().since(&account);
                let asked = place.mount().kernel_requests();
                if calls.total_answered() == 0 {
                    complain("not one call was bypassed".to_owned());
                } else if calls.bypassed() < case.bypassed {
                    complain(format!("only {:.1} % bypassed: {calls:?}", calls.bypassed()));
                }
                for operation in case.not_by_kernel {
                    let count = |of: &std::collections::BTreeMap<String, u64>| of.get(*operation).copied();
                    let count = count(&asked).unwrap_or(0) - count(&requests).unwrap_or(0);
                    if count > 0 {
                        complain(format!("the kernel asked for {operation} {count} times; {calls:?}"));
                    }
                }
            }
            let left = tree::read(&place.source().join(&directory), case.times);
            if place.is_mounted() {
                // The test process is not preloaded: it sees the mount through the kernel.
                let seen = tree::read(&place.path().join(&directory), case.times);
                let difference = tree::difference(&left, &seen);
                if !difference.is_empty() {
                    complain(format!("the mount shows another tree than its source:\n{difference}"));
                }
            }
            let Some((native_said, native_left)) = &native else {
                native = Some((said, left));
                continue;
            };
            if said != *native_said {
                complain(format!("output differs\n-- native: {native_said:#?}\n-- here: {said:#?}"));
            }
            let difference = tree::difference(native_left, &left);
            if !difference.is_empty() {
                complain(format!("the files differ from native\n{difference}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn listing_programs_agree() {
    agree_on_all_roads(&[
        case("ls -lR", "ls -lR --time-style=full-iso . && ls -la a && ls -l a/one a/nowhere").with_times(),
        case("ls -F", "ls -F a; ls -d a/*; ls many | wc -l; ls -lL a/link; ls -lH a/dirlink").with_times(),
        case("find", "find . | sort").with_times(),
        case("find -type", "find . -type f | sort; find . -type l | sort; find . -type p; find -L a -type f | sort"),
        case("find -size", "find . -size +100k; find . -size 0 -type f | sort; find . -links 2 -type f | sort")
            .bypassing(95.0, &[]),
        case("find -newer", "find . -newer a/one | sort; find . -perm 640; find . -empty | sort"),
        case("find -delete", "find many -name 'f1*' -delete; find . -type d -empty -delete; find . | sort")
            .bypassing(95.0, &["UNLINK", "RMDIR"]),
        case("find -exec", "find many -name 'f0[0-3]' -exec cat {} + -exec wc -l {} \\;"),
        case("stat", "stat -c '%n %s %b %B %f %a %u %g %h %F %X %Y' a/* a/b/c/large . 'dir with spaces'; stat nowhere")
            .with_times()
            .bypassing(95.0, &[]),
        case("stat -f", "stat -f -c '%s %S %l %b %c' a/one; df --output=itotal,size . | tail -1").with_times(),
        case("readlink", "readlink a/link a/dangling; readlink -f a/link | grep -o 'case.*'; realpath -e a/dangling"),
        case("du", "du -a . | sort -k2; du -sb a; du --inodes many").with_times(),
        case("test", "for f in a/* nowhere a/one/x; do for t in e f d L p r w x s h O G; do
                test -$t $f && echo $t $f; done; done; [ a/one -ef a/hard ] && [ many/f00 -ot many/f39 ]; echo $?")
            .with_times(),
        case("file names", "ls -d 'dir with spaces'/*; cat 'dir with spaces/a file'; echo a/*/* many/f0?").with_times(),
        case("dot and dot-dot", "cd a/b && ls ../.. ./../b/. && cat ../one ./two && cd ../dirlink && pwd && pwd -P | grep -o 'case.*'"),
        case("slashes", "ls a//b///; ls a/one/; ls -d a/; stat -c %n a/link/; cat a/b//two; mkdir slash/ && rmdir slash/"),
    ]);
}

#[test]
fn copying_and_moving_programs_agree() {
    agree_on_all_roads(&[
        case("cp -a", "cp -a a many copy/ 2>&1; mkdir copy && cp -a a many copy/ && cp -a a/. new").bypassing(0.0, &["UNLINK"]),
        case("cp -a keeps times", "cp -a a new/copy; touch -d '2020-01-01 00:00:00.5' new .").with_times(),
        case("cp -r", "cp -r a copy 2>&1 && cp -r many many2 && cp -r src new").bypassing(90.0, &["MKDIR", "CREATE"]),
        case("cp forms", "cp a/one new/x && cp -p a/one new/y && cp -l a/one new/l && cp -s $PWD/a/one new/s; readlink new/s | grep -o 'case.*'; rm new/s; cp -u many/f00 a/one; cp a/one a/one; cp nowhere x; cp a x; cp -T a/b/two new; cp --reflink=auto a/b/c/large new/r; cp --sparse=always a/b/c/large new/sp"),
        case("mv", "mv a/one new/uno && mv many/f0* new && mv -n a/hard new/uno; mv nowhere x; mv new new/b")
            .bypassing(0.0, &["RENAME"]),
        // The kernel moves the directories that it knows: somebody may be in them.
        case("mv of directories", "mv a/b new/ && mv 'dir with spaces' d; mv -T d many; (cd new/b && mv ../../new ../../old && pwd -P)"),
        case("mv keeps times", "mv a/one a/uno; mv -f a/b/two a/b/dos; touch -d @1 a a/b").with_times().bypassing(0.0, &["RENAME"]),
        case("mv across file systems", "t=$(mktemp -d /tmp/finesse-mv-XXXXXX) && mv a $t/ && mv $t/a back && rmdir $t"),
        case("ln", "ln a/one new/hard && ln -s ../a/one new/soft && ln -s x y && ln -sf z y && ln -sfn a new/soft2; ln a x; ln a/one a/hard; ln -s a y/; ln -P a/link new/lp; ln -L a/link new/ll")
            .bypassing(0.0, &["LINK", "SYMLINK"]),
        case("install", "install -m 751 -D a/one new/deep/er/file && install -d -m 700 new/dir"),
        case("dd", "dd if=a/b/c/large of=new/d bs=4k count=10 skip=3 2>/dev/null; dd if=/dev/zero of=new/d bs=1 seek=100 count=5 conv=notrunc 2>/dev/null; truncate -s 7 many/f01; truncate -s +1M many/f02; fallocate -l 5000 new/f; cmp new/d a/b/c/large"),
        case("rsync", "rsync -aH a/ new/a && rsync -a --delete many/ new/a/ && rsync -ain many/ new/a/; touch -d @1 new").with_times(),
        case("tee and split", "cat a/b/two | tee new/t1 new/t2 > new/t3; split -b 100000 a/b/c/large new/part.; cat new/part.* | cmp - a/b/c/large; csplit -s -f new/cs a/b/two 2 3"),
    ]);
}

#[test]
fn removing_programs_agree() {
    agree_on_all_roads(&[
        case("rm -rf", "rm -rf a many 'dir with spaces' src new; ls -A").bypassing(95.0, &["UNLINK", "RMDIR"]),
        case("rm -r everything", "rm -rv . ; rm -r -- * | sort; ls -A").bypassing(95.0, &["UNLINK", "RMDIR"]),
        case("rm", "rm many/f0*; rm nowhere; rm -f nowhere; rm a; rm -d a/empty; rm a/dirlink a/dangling a/fifo; rm a/one/; rm -rf a/link/")
            .bypassing(0.0, &["UNLINK"]),
        case("rmdir", "rmdir a/empty new; rmdir a; rmdir nowhere a/one; mkdir -p p/q/r && rmdir -p p/q/r; rmdir .; rmdir a/empty/..; unlink many; unlink many/f01")
            .bypassing(0.0, &["RMDIR", "UNLINK"]),
        case("mkdir", "mkdir x && mkdir -p x/y/z a/one/q; mkdir a; mkdir -m 711 x/m; mkdir nowhere/x; (umask 077; mkdir x/u; touch x/v); mkdir a/dangling")
            .bypassing(0.0, &["MKDIR"]),
        case("names that are too long", "n=$(printf 'n%.0s' $(seq 300)); mkdir $n; touch $n; cat a/$n; rm many/$n; ls $n/x; ln -s $n$n new/long && readlink new/long; mv many/f00 $n"),
        case("an open file outlives its name", "exec 3< a/one 4> new/w; rm a/one new/w; cat <&3; echo more >&4; ls new; stat -L -c '%h %s' /proc/self/fd/3"),
        case("a working directory outlives its name", "mkdir w && cd w && rmdir ../w; touch x; cat y; cd ..; ls -d w"),
    ]);
}

#[test]
fn programs_that_change_attributes_agree() {
    agree_on_all_roads(&[
        case("touch", "touch -d '2001-02-03 04:05:06.789' a/one many/f0* a; touch -r a/one a/b; touch -h -d @5 a/link; touch -a -d @9 a/hard; touch -c nowhere; touch nowhere/x; touch -m -d @77 a/b/c/; stat -c '%n %y' a a/* a/b; stat -c %x a/hard a/one")
            .with_times(),
        case("chmod", "chmod -R go-rwx,u+X a; chmod 6755 many/f01; chmod +t new; chmod a=r a/link; chmod 777 nowhere; chmod -R u+s many; ls -l a many")
            .with_times()
            ,
        case("chown", "chown -R 65534:65534 a many; chown -h 1:2 a/link; chown :7 new; chgrp 8 a/dangling; chgrp -h 8 a/dangling; chown 0 nowhere; chown --from=65534 3 many/f00; stat -c '%u %g %n' a/* many/f00")
            .with_times(),
        case("chown clears set-user-id", "chmod 6755 a/one; chown 5 a/one; stat -c %a a/one; chmod 6755 a/one; echo x >> a/one; stat -c %a a/one"),
        case("extended attributes", "/usr/bin/python3 -c '
import os
os.setxattr(\"a/b/two\", \"user.k\", b\"v\" * 100)
print(os.getxattr(\"a/one\", \"user.colour\"), sorted(os.listxattr(\"a/b/two\")))
os.removexattr(\"a/one\", \"user.colour\")
try: os.getxattr(\"a/one\", \"user.colour\")
except OSError as e: print(e.errno)
'").with_times(),
        case("mknod", "mkfifo new/p && (echo through > new/p & cat new/p); mknod new/null c 1 3; stat -c '%F %t %T' new/null; mknod new/p p"),
        case("sync", "sync a/one && sync -f . && sync -d many/f01 && echo synced"),
    ]);
}

#[test]
fn archives_agree() {
    agree_on_all_roads(&[
        case("tar c", "tar cf new/t.tar --sort=name a many && tar tvf new/t.tar --full-time && md5sum < new/t.tar")
            .bypassing(95.0, &["CREATE", "UNLINK"]),
        case("tar x", "tar cf /tmp/finesse-$$.tar --sort=name --xattrs a many && tar xpf /tmp/finesse-$$.tar --xattrs -C new; rm /tmp/finesse-$$.tar; touch -d @1 new; ls -lR --full-time new")
            .with_times()
            .bypassing(90.0, &["MKDIR", "CREATE", "UNLINK"]),
        case("tar over", "tar cf - a | tar xf - -C new && tar cf - a many | (cd new && tar xf - --overwrite) && tar df <(tar cf - a) -C new"),
        case("cpio-like", "tar czf new/t.tgz src && mkdir new/x && tar xzf new/t.tgz -C new/x --strip-components=1 && gzip -k a/b/two && gunzip -c a/b/two.gz && zcat a/b/two.gz | cmp - a/b/two; gzip -d -f a/b/two.gz"),
    ]);
}

#[test]
fn shells_agree() {
    agree_on_all_roads(&[
        case("redirections", "echo one > new/r; echo two >> new/r; cat < new/r; cat nowhere > new/err 2>&1; cat new/err; ls nowhere 2> new/e; wc -c < new/e; : > new/r; cat new/r; echo x >| new/r; echo y 1<> new/r; cat new/r"),
        case("heredoc", "cat > new/h <<END\nhere $((1+2))\nEND\ncat new/h; cat <<< string > new/s; read -r line < new/h; echo \"$line\"; while read -r l; do echo \"got $l\"; done < a/b/two"),
        case("cat into itself", "cat a/one >> a/one; echo $?; cat a/one a/hard > a/hard; echo $?; cat a/b/two >> a/b/two; cp a/one a/hard; mv a/one a/hard; echo $?; ls a"),
        case("descriptors", "exec 5> new/five; echo a >&5; (echo b >&5); bash -c 'echo c >&5'; /bin/echo d >&5; exec 6>&5 5>&-; echo e >&6; exec 6>&-; cat new/five; exec 7<> new/five; read -r x <&7; echo Z >&7; exec 7>&-; cat new/five"),
        case("append shared with children", "for i in 1 2 3; do (for j in 1 2 3 4 5; do echo $i.$j >> new/log; done) & done; wait; sort new/log; rm new/log"),
        case("offset shared with children", "{ echo 1; bash -c 'echo 2'; /bin/echo 3; (exec /bin/echo 4); } > new/o; cat new/o; { read -r a; bash -c 'read -r b; echo $b'; } < a/b/two"),
        case("pipelines", "cat a/b/two | sort | uniq -c | tee new/p | wc -l; diff <(sort a/b/two) new/p; ls | grep -c ."),
        case("globs and loops", "for f in many/f0*; do mv $f ${f}.txt; done; ls many/*.txt | wc -l; cd many && rm *.txt && ls | wc -l").bypassing(0.0, &["RENAME", "UNLINK"]),
        case("a script of the mount", "./script.sh a b; sh script.sh c; . ./script.sh; chmod -x script.sh; ./script.sh; ./a; ./nowhere; echo $?"),
        case("working directory", "cd a/b && pwd | grep -o 'case.*' && cd c && cd .. && ls && (cd ../../many && ls f00) && cd - >/dev/null && ls; cd /; cd nowhere; echo $?"),
        case("noclobber, umask", "set -C; echo x > a/one; echo $?; echo x > new/excl; umask 027; set +C; echo > new/u; mkdir new/ud; stat -c %a new/u new/ud"),
        case("mktemp", "f=$(mktemp -p new) && d=$(mktemp -d -p new) && [ -f $f ] && [ -d $d ] && stat -c %a $f $d && rmdir $d && rm $f; ls new"),
        case("traps and background", "trap 'echo bye' EXIT; (cat a/one; exit 3) & wait $!; echo $?; cat a/b/c/large | head -c 5; timeout 5 cat a/one"),
        case("env -i and static-like starts", "env -i /bin/cat a/one; env -i PATH=$PATH bash -c 'cat a/b/two > new/clean; rm many/f00'; ls many | wc -l"),
    ]);
}

#[test]
fn text_tools_agree() {
    agree_on_all_roads(&[
        case("grep -r", "grep -rc needle many | sort; grep -rl 'needle 3' . | sort; grep -rn line many/f1* a; grep -q x nowhere; echo $?"),
        case("sort -o onto its input", "sort -o a/b/two a/b/two; cat a/b/two; sort -u a/b/two | uniq -c; sort -m many/f0* | tail -3"),
        case("sed -i", "sed -i 's/needle/pin/' many/f0* && grep -h pin many/f0* | sort | uniq -c; sed -i.bak 1d a/b/two; ls a/b; stat -c %a a/b/two; sed -i x nowhere")
            .bypassing(0.0, &["RENAME"]),
        case("wc, head, tail", "wc many/* | tail -1; head -n1 many/f0[0-2]; tail -c 3 a/b/two; tail -n +2 a/b/two; cut -c1 a/b/two; tr a-z A-Z < a/b/two; nl a/b/two; tac a/b/two; od -c a/one; md5sum many/f1*; cmp a/one a/hard; comm many/f00 many/f01; paste a/one a/b/two; join many/f00 many/f07; diff -r many a; xargs -n2 < a/b/two"),
        case("awk", "awk '{n[$1]++} END {for (k in n) print k, n[k] > \"new/awk\"}' many/* && sort new/awk; awk 'BEGIN { while ((getline l < \"a/b/two\") > 0) print l; print \"x\" >> \"new/awk\" }'; wc -l new/awk"),
        case("perl", "perl -pi -e 's/line/LINE/' many/f2* && cat many/f2*; perl -e 'open(F,\">>\",\"new/p\"); print F \"x\"; close F; rename \"new/p\",\"new/q\"; print -s \"new/q\", (-e \"new/p\" ? 1 : 0); opendir(D,\"a\"); print join(\",\", sort readdir D), \"\\n\"; unlink \"new/q\"; mkdir \"new/d\", 0700; print((stat \"new/d\")[2] & 07777)'"),
        case("sqlite3", "sqlite3 new/db 'create table t(x); insert into t values(1),(2); pragma journal_mode=wal; insert into t values(3); select sum(x) from t;'; sqlite3 new/db 'begin; delete from t where x=1; commit; select count(*) from t; pragma integrity_check;'; rm new/db*; ls new"),
    ]);
}

#[test]
fn git_agrees() {
    agree_on_all_roads(&[
        case("git init, add, commit, status", "git init -q -b main . && git add -A && git commit -q -m one && git status --porcelain && git log --format='%H %an %s' && git ls-files -s | md5sum && echo change >> a/one && rm many/f01 && touch many/new && git status --porcelain && git diff --stat && git stash -q && git status --porcelain; git ls-files | wc -l; rm -rf .git")
            .bypassing(90.0, &[]),
        case("git status", "git init -q -b main . && git add -A && git commit -q -m one && for i in 1 2 3; do git status --porcelain; done; git -c core.checkStat=minimal diff-index HEAD; rm -rf .git")
            .bypassing(90.0, &[]),
        case("git clone and gc", "git init -q -b main src && cd src && git add . && git commit -q -m 1 && cd .. && git clone -q src new/clone && cd new/clone && git log --format=%H && echo x > x && git add x && git commit -q -m 2 && git push -q origin HEAD:other 2>/dev/null; git gc -q && git fsck --strict 2>/dev/null && git count-objects && git branch b && git checkout -q b && git mv main.c m.c && git commit -q -m 3 && git merge-base b main && git rebase -q main && git log --format=%H%n%s; cd ../..; rm -rf src/.git new/clone/.git"),
        case("git worktree and clean", "git init -q -b main . && git add src && git commit -q -m 1 && git worktree add -q new/wt && ls new/wt/src && git clean -nd | sort && git clean -qfd && ls && git worktree remove new/wt; rm -rf .git"),
    ]);
}

/// What is appended goes to the end that the file has at that moment, as its flags are at that moment, and takes
/// set-user-ID bits away as for anybody.
const APPENDING: &str = r#"cat > append.py <<'END'
import fcntl, mmap, os, sys
p = sys.argv[1]
with open(p, "w") as f: f.write("0123456789")
a = os.open(p, os.O_WRONLY | os.O_APPEND)
b = os.open(p, os.O_WRONLY)
os.write(a, b"A"); os.pwrite(b, b"B", 0); os.write(b, b"C")
print(os.lseek(a, 0, 1), os.lseek(b, 0, 1))
os.pwrite(a, b"P", 1)
fcntl.fcntl(a, fcntl.F_SETFL, 0); os.pwrite(a, b"D", 2)
os.close(a); os.close(b)
a = os.open(p, os.O_RDWR)
fcntl.fcntl(a, fcntl.F_SETFL, os.O_APPEND); os.write(a, b"E")
c = os.open(p, os.O_RDWR | os.O_APPEND)
os.write(c, b"x" * 5000); os.write(a, b"y")
m = mmap.mmap(c, 4096); print(m[:12]); m[0:1] = b"Z"; m.flush(); m.close()
print(os.pread(a, 20, 0), os.pread(c, 20, 0), os.fstat(a).st_size, os.fstat(c).st_size)
os.ftruncate(c, 3); os.write(c, b"tail")
print(os.pread(c, 100, 0), os.lseek(c, 0, 1))
os.close(a); os.close(c)
print(open(p).read())
for flags in (os.O_APPEND, 0):
    c = os.open(p, os.O_RDWR | flags); os.chmod(p, 0o6777)
    os.write(c, b"1"); print(oct(os.fstat(c).st_mode), oct(os.stat(p).st_mode)); os.close(c)
END
chmod 777 .; /usr/bin/python3 append.py mine
if [ "$(id -u)" = 0 ]; then setpriv --reuid 65534 --clear-groups /usr/bin/python3 append.py theirs; fi"#;

#[test]
fn python_agrees() {
    agree_on_all_roads(&[
        case("os", r#"/usr/bin/python3 - <<'END'
import os, stat
print(sorted(os.listdir("a")))
print(sorted((e.name, e.is_dir(), e.is_file(), e.is_symlink(), e.stat(follow_symlinks=False).st_size) for e in os.scandir("a") if not e.is_dir()))
for e in os.scandir("a"):
    assert e.inode() == os.lstat(e.path).st_ino, e
st = os.stat("a/one"); fd = os.open("a/one", os.O_RDONLY); fs = os.fstat(fd)
assert (st.st_dev, st.st_ino, st.st_nlink) == (fs.st_dev, fs.st_ino, fs.st_nlink), (st, fs)
assert st.st_dev == os.stat(".").st_dev == os.stat("a").st_dev
print(os.read(fd, 3), os.lseek(fd, 0, 2), os.pread(fd, 2, 1)); os.close(fd)
d = os.open("a", os.O_RDONLY | os.O_DIRECTORY)
print(os.stat("b", dir_fd=d).st_mode, os.readlink("link", dir_fd=d), os.access("one", os.R_OK, dir_fd=d))
os.rename("one", "uno", src_dir_fd=d, dst_dir_fd=d); os.mkdir("fresh", dir_fd=d); os.unlink("hard", dir_fd=d)
os.link("uno", "eins", src_dir_fd=d, dst_dir_fd=d); os.symlink("eins", "lnk", dir_fd=d)
fd = os.open("created", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=d); os.write(fd, b"hello"); os.ftruncate(fd, 3); os.fchmod(fd, 0o604)
print(os.fstat(fd).st_size, oct(os.fstat(fd).st_mode), oct(os.stat("created", dir_fd=d).st_mode)); os.close(fd); os.close(d)
for call in (lambda: os.open("a/one/x", 0), lambda: os.rmdir("a"), lambda: os.unlink("a"), lambda: os.mkdir("a"),
             lambda: os.rename("a", "a/b/x"), lambda: os.link("a", "x"), lambda: os.readlink("a"), lambda: os.open("a", os.O_WRONLY),
             lambda: os.open("a/link", os.O_NOFOLLOW), lambda: os.stat("x" * 256), lambda: os.stat("y/" * 2100), lambda: os.stat(""),
             lambda: os.open("a/created", os.O_CREAT | os.O_EXCL), lambda: os.chmod("nope", 0), lambda: os.truncate("a", 0), lambda: os.scandir("a/uno"),
             lambda: os.open("a/uno", os.O_DIRECTORY), lambda: os.unlink("a/uno/"), lambda: os.symlink("", "z"), lambda: os.utime("nope")):
    try: print("no error", call())
    except OSError as e: print(e.errno)
os.makedirs("deep/er/and/deeper", exist_ok=True); os.removedirs("deep/er/and/deeper")
os.utime("a/uno", ns=(5, 123456789)); print(os.stat("a/uno").st_mtime_ns)
os.replace("a/uno", "a/link"); print(os.path.islink("a/link"), os.path.samefile("a/link", "a/eins"))
os.chdir("a"); print(os.path.basename(os.getcwd()), os.path.exists("eins")); os.chdir(".."); print(os.statvfs(".").f_namemax)
END"#).bypassing(90.0, &["UNLINK", "RENAME", "MKDIR", "SYMLINK", "LINK", "RMDIR"]),
        case("appending", APPENDING),
        case("shutil and pathlib", r#"/usr/bin/python3 - <<'END'
import shutil, pathlib, tempfile, os
shutil.copytree("a", "copy", symlinks=True, ignore=shutil.ignore_patterns("fifo")); shutil.rmtree("copy"); shutil.move("many/f00", "new/moved"); shutil.copy2("many/f01", "new/")
p = pathlib.Path("new/p"); p.mkdir(); (p / "t").write_text("text"); print((p / "t").read_text(), sorted(x.name for x in pathlib.Path("many").glob("f0*")), [x.as_posix() for x in sorted(pathlib.Path("a").rglob("*"))])
(p / "t").rename(p / "u"); (p / "u").touch(); (p / "u").chmod(0o600); (p / "u").unlink(); p.rmdir()
with tempfile.TemporaryDirectory(dir="new") as t, tempfile.NamedTemporaryFile(dir=t) as f, tempfile.TemporaryFile(dir=t) as g:
    f.write(b"x" * 10000); f.flush(); print(os.path.getsize(f.name)); g.write(b"anon"); g.seek(0); print(g.read())
print(sorted(os.listdir("new")), shutil.disk_usage(".").total > 0)
with open("new/rw", "w+b") as f:
    f.write(bytes(range(256)) * 400); f.seek(1000); f.write(b"patch"); f.truncate(50000); f.seek(998); print(f.read(9))
with open("new/rw", "ab") as f: f.write(b"end"); print(f.tell())
print(open("a/b/two").readlines(), sum(1 for _ in os.walk(".")))
END"#).bypassing(80.0, &["UNLINK", "RENAME", "MKDIR", "RMDIR"]),
        case("mmap, locks, subprocess", r#"/usr/bin/python3 - <<'END'
import mmap, fcntl, subprocess, os, threading
with open("new/map", "w+b") as f:
    f.truncate(8192); m = mmap.mmap(f.fileno(), 8192); m[0:5] = b"hello"; m.flush(); m.close(); f.seek(0); print(f.read(5))
f = open("a/one", "r+"); fcntl.flock(f, fcntl.LOCK_EX); fcntl.lockf(f, fcntl.LOCK_EX)
print(subprocess.run(["flock", "-n", "a/one", "echo", "locked"], capture_output=True).returncode, subprocess.run(["cat"], stdin=f, capture_output=True).stdout)
print(subprocess.check_output("cat a/b/two; rm many/f05; ls many | wc -l", shell=True))
def work(n):
    for i in range(50):
        p = f"new/t{n}-{i}"
        with open(p, "w") as g: g.write(p)
        assert os.stat(p).st_size == len(p); os.rename(p, p + "x"); os.unlink(p + "x")
ts = [threading.Thread(target=work, args=(n,)) for n in range(8)]; [t.start() for t in ts]; [t.join() for t in ts]
print(os.listdir("new"))
pid = os.fork()
if pid == 0:
    open("new/child", "w").write("child"); os._exit(os.path.getsize("a/one"))
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open("new/child").read())
END"#).bypassing(80.0, &["UNLINK", "RENAME"]),
    ]);
}

#[test]
fn compilers_agree() {
    agree_on_all_roads(&[
        case("gcc", "cd src && gcc -o prog main.c greet.c && ./prog; echo $?; rm prog; gcc -E main.c | grep -c greet; gcc -c nowhere.c; ls"),
        case("make", "cd src && make -s && ./prog; make -s && touch -d '2000-01-01' main.o && make && touch greet.h && make -s && make clean && ls")
            .bypassing(0.0, &["UNLINK"]),
        case("ar and ld", "cd src && gcc -c greet.c main.c && ar rcsD libg.a greet.o && gcc -o p main.o -L. -lg && ./p; ar t libg.a; nm greet.o | grep greet; strip p && ./p; rm -f *.o p libg.a"),
    ]);
}

/// Stays above the mount, named `$1`, and reaches into it by relative paths.
const FROM_ABOVE: &str = r#"
import os, sys
name = sys.argv[1]
def see(*what): print(*what)
for top, directories, files in os.walk(name):
    directories.sort()
    for each in sorted(directories + files):
        path = os.path.join(top, each)
        see(os.path.relpath(path, name), oct(os.lstat(path).st_mode), os.path.exists(path))
for path in [f"{name}/a/one", f"./{name}//a/../a/one", f".//././{name}/a/link", f"{name}/none", f"{name}/a/dangling", f"{name}x", f"../{name}"]:
    try: see(open(path).read())
    except OSError as error: see(error.errno)
with open(f"{name}/new/made", "w") as made: made.write("made")
os.rename(f"{name}/new/made", f"{name}/a/moved")
os.link(f"{name}/a/moved", f"{name}/a/other"); os.symlink("moved", f"{name}/a/sl"); os.chmod(f"{name}/a/moved", 0o600)
see(os.stat(f"{name}/a/sl").st_nlink, oct(os.stat(f"{name}/a/other").st_mode), os.readlink(f"{name}/a/sl"))
see(os.path.realpath(f"{name}/a/sl").removeprefix(os.path.join(os.getcwd(), name)))
os.remove(f"{name}/a/other"); os.mkdir(f"{name}/new/dir")
try: os.rmdir(name)
except OSError as error: see(error.errno in (16, 39))
# There and back.
os.chdir(f"{name}/a"); see(open("one").read()); os.chdir("../.."); see(open(f"{name}/a/one").read())
here = os.open(".", os.O_RDONLY); os.chdir(f"{name}/a/b"); os.fchdir(here); see(open(f"{name}/a/b/two").read())
os.chdir("/"); see(os.path.exists(f"{name}/a")); os.fchdir(here)
# Above it somebody moves.
before = os.getcwd()
os.rename(before, before + "-moved"); see(open(f"{name}/a/one").read())
os.rename(before + "-moved", before); see(open(f"{name}/a/one").read())
"#;

/// Runs a script on every road, from above what it gets as its argument: the same is said and left everywhere, and the bypass
/// answers calls of these operations, so many at least.
fn scripts_agree(script: &str, least: &[(&str, u64)]) {
    let mut native = None;
    for place in &Place::on_all_roads(&Options::default(), fill) {
        let account = place.is_mounted().then(|| place.mount().account());
        let (above, name) = (place.path().parent().unwrap(), place.path().file_name().unwrap());
        let mut command = place.command("/usr/bin/python3");
        let output = command.current_dir(above).args(["-c", script]).arg(name).output().unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let said = (output.status.code(), said(&output.stdout), said(&output.stderr));
        let left = tree::read(place.source(), Times::Ignored);
        if let (Some(account), Road::Bypass) = (account, place.road()) {
            let calls = place.mount().account().since(&account);
            for (operation, least) in least {
                let answered = calls.answered.get(*operation).copied().unwrap_or(0);
                assert!(answered >= *least, "{operation}: {calls:?}");
            }
        }
        let (native_said, native_left) = native.get_or_insert((said.clone(), left.clone()));
        assert_eq!(said.0, Some(0), "{}", said.2);
        assert_eq!(&said, native_said, "on the {}", place.road());
        assert_eq!(tree::difference(native_left, &left), "", "on the {}", place.road());
    }
}

#[test]
fn relative_paths_lead_into_a_mount_from_above() {
    scripts_agree(FROM_ABOVE, &[("stat", 100), ("open", 9), ("opendir", 9), ("rename", 1), ("unlink", 1)]);
}

/// Reaches into the mount by the links of descriptors, as programs do that know no call relative to a directory.
const BY_LINKS: &str = r#"
import os, sys
def see(call, path):
    try: print(path, call(path), flush=True)
    except OSError as error: print(path, error.errno)
mode = lambda path: oct(os.lstat(path).st_mode)
name = sys.argv[1]
d, a, f = (os.open(f"{name}{path}", os.O_RDONLY) for path in ("", "/a", "/a/one"))
assert 2 < d < 10 and 2 < a < 10
for here in (f"/proc/self/fd/{d}", f"/proc//self/fd/{d}", f"/proc/thread-self/fd/{d}"):
    for path in ("a/one", "/a/one", "a/link", "none", "a/one/x", "", "/", "/.", "a/..", "x" * 300, "x/" * 2040):
        for call in (mode, os.path.exists, os.path.realpath):
            if "realpath" not in str(call): see(call, f"{here}/{path}")
    see(os.listxattr, f"{here}/a/one"); see(os.listdir, f"{here}/a/b")
for link in (f"0{a}", f"+{a}", f" {a}", f"{a} ", "-1", "999999999999", "777", str(f)):
    see(mode, f"/proc/self/fd/{link}/one")
at = f"/proc/self/fd/{a}"
assert os.path.realpath(f"{at}/link") == os.path.realpath(f"{name}/a/link")
assert os.readlink(at) == os.path.join(os.getcwd(), name, "a")
with open(f"{at}/made", "w") as made: made.write("made")
os.rename(f"{at}/made", f"{at}/moved"); os.rename(f"{at}/moved", f"{at}/../new/moved"); os.mkdir(f"{at}/dir"); os.link(f"{at}/one", f"{at}/dir/one")
see(os.stat, f"/proc/self/fd/{f}/x"); print(open(f"/proc/self/fd/{f}").read(), os.stat(f"/proc/self/fd/{f}").st_nlink)
os.chdir(f"{at}/dir"); print(open("one").read(), open("../one").read())
stream = os.scandir(f"{at}/b"); os.close(a); see(mode, f"{at}/one")
if os.fork() == 0: print(sorted(entry.name for entry in stream), flush=True); os._exit(0)
os.wait(); print(sorted(entry.name for entry in stream))
a = os.open("/", os.O_RDONLY); see(os.path.exists, f"{at}/one"); see(os.path.exists, f"{at}/usr")
"#;

#[test]
fn links_of_descriptors_lead_into_a_mount() {
    scripts_agree(BY_LINKS, &[("stat", 10), ("listxattr", 1), ("rename", 1), ("mkdir", 1), ("link", 1)]);
}

/// What a preloaded program sees by the path `look`, from the directory `here` on, before `change` and 50 times after it, and the
/// mount that `change` makes. A daemon that the program knows already tells it of new mounts.
fn seen_from(here: &Path, look: &str, change: impl FnOnce(&Place) -> Mount) -> (String, Mount) {
    let old = Place::new(Road::Bypass, &Options::default(), fill);
    let script = format!(
        "import os, sys\nprint(os.path.exists('{look}'), os.path.exists(sys.argv[1]), flush=True)\n\
         sys.stdin.readline()\nos.stat(sys.argv[1])\nprint({{os.path.exists('{look}') for _ in range(50)}})"
    );
    let mut command = old.command("/usr/bin/python3");
    command.current_dir(here).args(["-c", &script]).arg(old.path());
    let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "False True\n");
    let mount = change(&old);
    drop(program.stdin.take());
    line.clear();
    said.read_line(&mut line).unwrap();
    assert!(program.wait().unwrap().success());
    (line.trim_end().to_owned(), mount)
}

#[test]
fn a_mount_that_appears_below_the_working_directory_is_found() {
    let home = tempfile::tempdir().unwrap();
    let later = home.path().join("later");
    fs::create_dir(&later).unwrap();
    let (seen, mount) =
        seen_from(home.path(), "later/a/one", |old| Mount::new(old.source(), &later, &Options::default()));
    assert_eq!(seen, "{True}");
    let account = mount.account();
    assert!(account.answered.get("stat").copied().unwrap_or(0) >= 49, "{account:?}");
}

#[test]
fn a_mount_in_what_covers_the_working_directory_is_not_found_there() {
    if !needs::root("a_mount_in_what_covers_the_working_directory_is_not_found_there") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let here = home.path().join("here");
    fs::create_dir(&here).unwrap();
    let (seen, mount) = seen_from(&here, "m/a/one", |old| {
        rustix::mount::mount("cover", &here, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        fs::create_dir(here.join("m")).unwrap();
        let mount = Mount::new(old.source(), &here.join("m"), &Options::default());
        assert!(here.join("m/a/one").exists(), "by its path it is found");
        mount
    });
    drop(mount);
    mount::unmount(&here);
    assert_eq!(seen, "{False}");
}
