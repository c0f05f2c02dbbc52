//! Descriptors that the daemon grants: how they reach the program, and that they are its alone then.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use finesse_ipc::client::{Call, Client};
use finesse_ipc::frame::{Op, REPLY_GRANT, REPLY_HELD, ROOT, Request};
use finesse_tests::mount::{Mount, Options};
use finesse_tests::needs;
use finesse_tests::python::Python;
use finesse_tests::road::{Place, Road};
use finesse_tests::wait::eventually;
use rustix::process::Uid;

fn open<'c>(client: &'c Client, name: &str, flags: i32) -> Call<'c> {
    let request = Request { base: ROOT, flags: flags as u32, mode: 0o644, ..Request::default() };
    let call = client.call(Op::Open, &request, name.as_bytes(), b"").unwrap();
    assert_ne!(call.reply.flags & REPLY_GRANT, 0, "{name}: {:?}", call.reply.outcome());
    call
}

/// How many descriptors the daemon has of a file.
fn held(mount: &Mount, file: &Path) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap();
    descriptors.flatten().filter(|fd| fs::read_link(fd.path()).is_ok_and(|path| path == file)).count()
}

fn check(mount: &Mount, source: &Path, name: &str, granted: OwnedFd) {
    assert_eq!(held(mount, &source.join(name)), 0, "{name}: nobody but the program has it open");
    let mut text = String::new();
    let read = File::from(granted).read_to_string(&mut text);
    assert_eq!(read.map(|_| text.as_str()).unwrap(), name, "the file itself");
}

#[test]
fn a_granted_descriptor_is_the_programs_alone_when_it_arrives() {
    if !needs::root("a_granted_descriptor_is_the_programs_alone_when_it_arrives") {
        return;
    }
    let names = ["taken", "dropped", "sent", "sent later"];
    let fill = |path: &Path| names.iter().for_each(|name| fs::write(path.join(name), name).unwrap());
    let place = Place::new(Road::Bypass, &Options::default(), fill);
    let (mount, source) = (place.mount(), place.source().canonicalize().unwrap());
    let socket = finesse_ipc::status::socket_of(mount.path()).unwrap();
    let client = Client::connect(&socket, "test", 100).unwrap();

    let call = open(&client, "taken", libc::O_RDONLY);
    assert_ne!(call.reply.flags & REPLY_HELD, 0, "who may trace the daemon takes it");
    assert_eq!(held(mount, &source.join("taken")), 1);
    check(mount, &source, "taken", call.take_grant().unwrap());
    drop(call);

    // Whoever does not want it keeps it open for nobody.
    drop(open(&client, "dropped", libc::O_RDWR));
    eventually("the daemon lets go", || held(mount, &source.join("dropped")) == 0);

    // A thread that may not take it any more is sent it, and so is everybody from then on.
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let nobody = Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            let call = open(&client, "sent", libc::O_RDONLY);
            assert_ne!(call.reply.flags & REPLY_HELD, 0);
            call.take_grant().unwrap()
        });
        check(mount, &source, "sent", other.join().unwrap());
    });
    let call = open(&client, "sent later", libc::O_RDONLY);
    assert_eq!(call.reply.flags & REPLY_HELD, 0);
    check(mount, &source, "sent later", call.take_grant().unwrap());
    drop(call);

    // What is created is the program's as well.
    let created = open(&client, "created", libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL);
    let file = created.take_grant().unwrap();
    assert_eq!(held(mount, &source.join("created")), 0);
    drop(file);
    drop(created);
    drop(client);
}

/// What a program does with a file that it writes to.
const WRITES: &str = r"
import mmap, os, subprocess, time
def create():
    global fd
    fd = os.open('f', os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.write(fd, b'.')
def hold(how):
    global held
    if how == 'mapping':
        held = mmap.mmap(fd, 1)
        os.close(fd)
    elif how == 'child':
        held = subprocess.Popen(['sleep', '1000'], pass_fds=[fd])
        os.close(fd)
def change(how):
    if how == 'descriptor':
        os.write(fd, b'.')
    elif how == 'mapping':
        held[0] = ord('!')
def let_go(how):
    if how == 'descriptor':
        os.close(fd)
    elif how == 'mapping':
        held.close()
    else:
        held.kill()
        held.wait()
def append():
    global fd
    fd = os.open('f', os.O_WRONLY | os.O_APPEND)
    os.write(fd, b'.')
def sizes(count):
    return [os.stat('f').st_size for _ in range(count)]
def later(count):
    time.sleep(0.15)
    return sizes(count)
";

/// How many of ten looks at the file the daemon is asked for, on the bypass and on the kernel road.
fn asked(place: &Place, programs: &mut [Python; 2], size: usize) -> (u64, u64) {
    let stats = |account: &finesse_tests::account::Account| {
        account.answered.get("stat").copied().unwrap_or(0)
            - account.from_table.get("stat").copied().unwrap_or(0)
    };
    let requests = || place.mount().kernel_requests().get("GETATTR").copied().unwrap_or(0);
    let (asked, requested) = (stats(&place.mount().account()), requests());
    for program in programs {
        assert_eq!(program.says("later(10)"), format!("{:?}", [size; 10]));
    }
    (stats(&place.mount().account()) - asked, requests() - requested)
}

#[test]
fn the_attributes_of_what_was_granted_are_believed_again_once_nobody_has_it() {
    if !needs::root("the_attributes_of_what_was_granted_are_believed_again_once_nobody_has_it") {
        return;
    }
    let options = Options { arguments: &["--cache=always"], count_kernel_requests: true, wrapper: &[] };
    for how in ["descriptor", "mapping", "child"] {
        let place = Place::new(Road::Bypass, &options, |_| ());
        let python = |road| Python::start(place.command_on(road, "/usr/bin/python3"), WRITES);
        let mut writer = python(Road::Bypass);
        let mut others = [python(Road::Bypass), python(Road::Kernel)];
        writer.says("create()");
        writer.says(&format!("hold({how:?})"));
        let mut size = 1;
        // Not while they are still being started.
        assert!(others.iter_mut().all(|program| program.says("sizes(1)") == "[1]"), "{how}");
        for _ in 0..2 {
            assert_eq!(asked(&place, &mut others, size), (10, 10), "{how}: it may change unseen");
            writer.says(&format!("change({how:?})"));
            size += usize::from(how == "descriptor");
        }
        writer.says(&format!("let_go({how:?})"));
        eventually("nobody is asked any more", || asked(&place, &mut others, size) == (0, 0));
        // Whoever opens it again is seen again, at once.
        writer.says("append()");
        size += 1;
        let seen = format!("[{size}]");
        assert!(others.iter_mut().all(|program| program.says("sizes(1)") == seen), "{how}");
        assert_eq!(asked(&place, &mut others, size), (10, 10), "{how}: it may change unseen again");
        writer.says("os.close(fd)");
        eventually("nobody is asked any more", || asked(&place, &mut others, size) == (0, 0));
    }
}
