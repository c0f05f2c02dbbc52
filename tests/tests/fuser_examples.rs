//! fuser's own examples become Finesse file systems by one line of Cargo.toml.
//!
//! They are compiled as they are in cargo's registry, in a crate of their own whose dependency named `fuser` is
//! this library.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use finesse_ipc::client::Client;
use finesse_ipc::frame::{Op, Outcome, ROOT, Request};
use finesse_tests::account::Account;
use finesse_tests::build;
use finesse_tests::mount::{said, text, unmount};
use finesse_tests::road::environment;
use finesse_tests::wait::eventually;
use serde_json::Value;
use tempfile::TempDir;

const EXAMPLES: [&str; 3] = ["hello", "simple", "null"];

/// Compiles the examples and returns the directory of their programs.
fn programs() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let metadata = build::cargo()
            .args(["metadata", "--format-version=1", "--locked"])
            .current_dir(build::workspace())
            .output()
            .unwrap();
        assert!(metadata.status.success(), "cargo metadata: {}", text(&metadata.stderr));
        let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        let fuser = packages.iter().find(|package| package["name"] == "fuser").expect("finesse uses fuser");
        assert_eq!(fuser["version"], "0.18.0");
        let source = Path::new(fuser["manifest_path"].as_str().unwrap()).parent().unwrap().join("examples");
        // What fuser gives its examples.
        let mut manifest = format!(
            "[workspace]\n\
             [package]\nname = \"fuser-examples\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\
             [profile.dev]\ndebug = false\n\
             [dependencies]\n\
             fuser = {{ package = \"finesse\", path = {daemon:?}, default-features = false }}\n\
             bincode = \"1.3.1\"\n\
             clap = {{ version = \"4.4\", features = [\"cargo\", \"derive\"] }}\n\
             env_logger = \"0.11.7\"\n\
             libc = \"0.2.51\"\n\
             log = \"0.4.6\"\n\
             nix = {{ version = \"0.31.0\", features = [\"poll\", \"fs\", \"ioctl\"] }}\n\
             serde = {{ version = \"1.0.102\", features = [\"std\", \"derive\"] }}\n\
             tempfile = \"3.10.1\"\n",
            daemon = build::workspace().join("daemon"),
        );
        for example in EXAMPLES {
            let path = source.join(format!("{example}.rs"));
            assert!(path.is_file(), "{}", path.display());
            manifest += &format!("[[bin]]\nname = \"fuser-{example}\"\npath = {path:?}\n");
        }
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuser-examples");
        std::fs::create_dir_all(&scratch).unwrap();
        std::fs::write(scratch.join("Cargo.toml"), manifest).unwrap();
        // The same versions as everywhere, which need not be downloaded.
        std::fs::copy(build::workspace().join("Cargo.lock"), scratch.join("Cargo.lock")).unwrap();
        let target = scratch.join("target");
        let output = build::cargo()
            .args(["build", "--quiet", "--offline", "--bins"])
            .current_dir(&scratch)
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("RUSTFLAGS")
            .output()
            .unwrap();
        assert!(output.status.success(), "fuser's examples do not compile: {}", text(&output.stderr));
        target.join("debug")
    })
}

/// A running example.
struct Example {
    process: Child,
    directory: TempDir,
}

impl Example {
    fn start(name: &str, arguments: impl FnOnce(&Path, &Path) -> Vec<PathBuf>) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("finesse-{name}-")).tempdir().unwrap();
        let (mountpoint, data) = (directory.path().join("mnt"), directory.path().join("data"));
        std::fs::create_dir(&mountpoint).unwrap();
        std::fs::create_dir(&data).unwrap();
        let process = Command::new(programs().join(format!("fuser-{name}")))
            .args(arguments(&mountpoint, &data))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let this = Self { process, directory };
        eventually("the example is mounted", || finesse_ipc::status::socket_of(&this.mountpoint()).is_ok());
        this
    }

    fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    fn account(&self) -> Account {
        Account::of(&self.mountpoint())
    }

    fn client(&self) -> Client {
        let socket = finesse_ipc::status::socket_of(&self.mountpoint()).unwrap();
        Client::connect(&socket, "test", 3).expect("the example's daemon takes clients")
    }

    /// Runs a script on the mount, preloaded or not, and returns its output.
    fn bash(&self, preloaded: bool, script: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(build::command());
        if preloaded {
            command.args(["run", "--", "bash"]);
        } else {
            command = Command::new("bash");
        }
        command.args(["-c", script]).current_dir(self.mountpoint());
        environment(&mut command);
        let output = command.output().unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs a script on both roads, which must agree, and returns its output and what was bypassed.
    fn on_both_roads(&self, script: &str) -> (String, u64) {
        let kernel = self.bash(false, script);
        let before = self.account();
        let bypass = self.bash(true, script);
        assert_eq!(bypass, kernel, "{script}");
        (bypass.1, self.account().since(&before).total_answered())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        unmount(&self.mountpoint());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn stat(client: &Client, path: &str) -> Outcome {
    let request = Request { base: ROOT, ..Request::default() };
    match client.call(Op::Stat, &request, path.as_bytes(), b"") {
        Ok(call) => call.reply.outcome(),
        Err(fallback) => Outcome::Kernel(fallback),
    }
}

#[test]
fn hello_is_reached_through_the_bypass() {
    let hello = Example::start("hello", |mountpoint, _| vec![mountpoint.to_owned()]);
    let client = hello.client();
    assert_eq!(stat(&client, "hello.txt"), Outcome::Ok);
    assert_eq!(stat(&client, "nothing"), Outcome::Errno(libc::ENOENT));
    drop(client);
    let (output, bypassed) = hello.on_both_roads(
        "stat -c '%n %s %a %u %g %Y' hello.txt . nothing; cat hello.txt; ls; touch x; rm hello.txt",
    );
    assert!(output.starts_with("hello.txt 13 644 501 20 0\n"), "{output}");
    assert!(output.contains("Hello World!\nhello.txt\n"), "{output}");
    assert!(bypassed >= 3, "{bypassed} calls were bypassed; {:?}", hello.account());
}

#[test]
fn simple_is_reached_through_the_bypass() {
    let simple = Example::start("simple", |mountpoint, data| {
        vec!["--mount-point".into(), mountpoint.to_owned(), "--data-dir".into(), data.to_owned()]
    });
    let work = "mkdir d && echo contents > d/f && ln -s f d/l && ln d/f d/h && mv d/f d/g && cat d/h && stat -c '%n %s %h %F' d/* && \
                chmod 600 d/g && stat -c %a d/h && truncate -s 3 d/g && stat -c %s d/g && readlink d/l && rm d/h d/l && \
                rmdir d; ls d; rm -r d; ls; mkdir nowhere/x; rm nothing";
    let (output, bypassed) = simple.on_both_roads(work);
    assert!(output.contains("contents\n") && output.contains("600\n3\nf\ng\n"), "{output}");
    assert!(bypassed >= 20, "{bypassed} calls were bypassed; {:?}", simple.account());
    // And each sees the other's.
    assert_eq!(simple.bash(true, "mkdir made-by-bypass; echo 1 > made-by-bypass/f; rm -f x").0, Some(0));
    assert_eq!(simple.bash(false, "cat made-by-bypass/f; mv made-by-bypass moved").1, "1\n");
    assert_eq!(
        simple.bash(true, "stat -c %n moved made-by-bypass; cat moved/f; rm -r moved").1,
        "moved\n1\n"
    );
    assert_eq!(simple.bash(false, "ls").1, "");
}

#[test]
fn null_answers_what_it_does_not_implement_on_both_roads() {
    let null = Example::start("null", |mountpoint, _| vec![mountpoint.to_owned()]);
    // Nothing can be done in it, so its programs work elsewhere.
    let script = format!(
        "cd /; stat {0}/x; stat {0}; rm {0}/x; mkdir {0}/d; mv {0}/a {0}/b; ls {0}; cat {0}/f",
        null.mountpoint().display()
    );
    let run = |preloaded: bool| {
        let mut command = if preloaded { Command::new(build::command()) } else { Command::new("bash") };
        if preloaded {
            command.args(["run", "--", "bash"]);
        }
        command.args(["-c", &script]);
        environment(&mut command);
        let output = command.output().unwrap();
        assert!(output.stdout.is_empty(), "{}", said(&output));
        text(&output.stderr)
    };
    let kernel = run(false);
    assert!(kernel.lines().count() >= 7, "{kernel}");
    let before = null.account();
    assert_eq!(run(true), kernel);
    let account = null.account();
    let reached = account.since(&before);
    assert!(
        reached.total_answered() + reached.to_kernel.get("not-implemented").copied().unwrap_or(0) >= 5,
        "{reached:?}"
    );
    let client = null.client();
    let call = client.call(Op::Noop, &Request::default(), b"", b"").unwrap();
    assert_eq!(call.reply.outcome(), Outcome::Ok);
}
