//! Descriptors that the daemon grants: how they reach the program, and that they are its alone then.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use finesse_ipc::client::{Call, Client};
use finesse_ipc::frame::{Op, REPLY_GRANT, REPLY_HELD, ROOT, Request};
use finesse_tests::mount::{Mount, Options};
use finesse_tests::needs;
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
