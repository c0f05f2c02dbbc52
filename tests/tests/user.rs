//! What an ordinary user can do: everything, with the help of fusermount3.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use finesse_tests::build;
use finesse_tests::mount::{said, text};
use finesse_tests::needs;
use finesse_tests::road::environment;
use finesse_tests::tree::{self, Times};
use finesse_tests::wait::eventually;
use tempfile::TempDir;

const USER: u32 = 65534;

/// An ordinary user's directory with a source and a mount point, and the command where he can execute it.
///
/// All of it in a mount namespace, where everybody may open /dev/fuse as udev's rules say, whatever this machine
/// says; mounts end with it.
struct Home {
    namespace: Child,
    directory: TempDir,
    bin: TempDir,
}

/// Makes the device in the directory that is its argument, and waits for the end of its input.
const NAMESPACE: &str = "mount -t tmpfs -o dev,mode=755 none $1 && mknod -m 666 $1/fuse c 10 229 && \
                         mount --bind $1/fuse /dev/fuse && echo ready && cat";

impl Home {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("finesse-user-").tempdir().unwrap();
        let bin = build::for_all_users();
        let devices = directory.path().join("devices");
        fs::create_dir(&devices).unwrap();
        let mut namespace = Command::new("unshare")
            .args(["--mount", "sh", "-c", NAMESPACE, "sh"])
            .arg(devices)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        namespace.stdout.as_mut().unwrap().read_exact(&mut ready).expect("a mount namespace is made");
        let home = Self { namespace, directory, bin };
        // Others than its owner, root included, have no business on his mount.
        fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
        chown(home.path(), Some(USER), Some(USER)).unwrap();
        home.ok("mkdir src mnt src/d && echo contents > src/file && seq 1000 > src/d/numbers && ln -s file src/link");
        home
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a script as the user. `finesse` is in its path.
    fn bash(&self, script: &str) -> Output {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.namespace.id().to_string()]);
        let script = format!(
            "cd {} || exit
{script}",
            self.path().display()
        );
        command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "-c", &script]);
        environment(&mut command);
        command.env("PATH", format!("{}:/usr/bin:/bin", self.bin.path().display()));
        command.output().unwrap()
    }

    fn ok(&self, script: &str) -> String {
        let output = self.bash(script);
        assert!(output.status.success(), "{script}: {}", said(&output));
        text(&output.stdout)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // The daemon of a mount that is left holds the namespace: it ends with its mount.
        let _ = self.bash("finesse umount --lazy mnt 2>/dev/null");
        drop(self.namespace.stdin.take());
        let _ = self.namespace.wait();
    }
}

#[test]
fn an_ordinary_user_mounts_works_and_unmounts() {
    if !needs::root("an_ordinary_user_mounts_works_and_unmounts") {
        return;
    }
    let home = Home::new();
    home.ok("finesse mount src mnt");
    assert_eq!(home.ok("cat mnt/file mnt/link; ls mnt"), "contents\ncontents\nd\nfile\nlink\n");
    let work = "cd mnt && cp -r d e && mv e/numbers n && rm -rf d && chmod 600 n && ln n hard && touch -d @5 file && \
                mkdir -p x/y && echo more >> x/y/z && git init -q . && git add -A && git commit -q -m 1 && \
                git status --porcelain && rm -rf .git && find . | sort && wc -l < n";
    let output = home.ok(&format!("finesse run -- bash -c '{work}'"));
    assert_eq!(output, ".\n./e\n./file\n./hard\n./link\n./n\n./x\n./x/y\n./x/y/z\n1000\n");
    let status = home.ok("finesse status --json mnt");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    for operation in ["rename", "mkdir", "unlink", "stat", "open", "chmod", "link"] {
        assert!(status[0]["answered"][operation].as_u64() > Some(0), "{operation}: {status:#}");
    }
    home.ok("finesse umount mnt");
    assert_eq!(home.ok("ls mnt; stat -c '%a %h' src/n; stat -c %Y src/file"), "600 2\n5\n");
    let pid = status[0]["pid"].as_u64().unwrap();
    eventually("the daemon has ended", || !Path::new(&format!("/proc/{pid}")).exists());
    assert!(tree::read(home.path(), Times::Ignored).len() > 8);
}

#[test]
fn an_ordinary_user_shares_nothing_he_may_not() {
    if !needs::root("an_ordinary_user_shares_nothing_he_may_not") {
        return;
    }
    let home = Home::new();
    let shared = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    let output = home.bash("finesse mount -o allow_other src mnt");
    if shared {
        eprintln!(
            "user_allow_other is set on this machine, so sharing is allowed and its refusal is not tested"
        );
        assert!(output.status.success(), "{}", said(&output));
    } else {
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains("user_allow_other"), "{}", said(&output));
    }
    // A source that he may not read is no way around.
    let secret = home.path().join("src/secret");
    fs::write(&secret, "of root").unwrap();
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
    if !shared {
        home.ok("finesse mount src mnt");
    }
    for command in ["cat mnt/secret", "finesse run cat mnt/secret", "finesse run chmod 644 mnt/secret"] {
        let output = home.bash(command);
        assert!(!output.status.success(), "{command}: {}", said(&output));
    }
    home.ok("finesse umount mnt");
}

#[test]
fn mistakes_get_one_clear_line() {
    if !needs::root("mistakes_get_one_clear_line") {
        return;
    }
    let home = Home::new();
    for (script, said) in [
        ("finesse mount nowhere mnt", "create it first"),
        ("finesse mount src src", "same directory"),
        ("finesse mount src/file mnt", "not a directory"),
        ("finesse umount mnt", "not a mount point"),
        ("finesse status mnt", "not a Finesse mount"),
        ("finesse run no-such-program", "No such file"),
        ("finesse mount -o nonsense src mnt", "nonsense"),
    ] {
        let output = home.bash(script);
        let stderr = text(&output.stderr);
        assert!(!output.status.success(), "{script}");
        assert!(stderr.to_lowercase().contains(&said.to_lowercase()), "{script}: {stderr}");
        assert!(stderr.lines().count() <= 3, "{script}: {stderr}");
    }
}
