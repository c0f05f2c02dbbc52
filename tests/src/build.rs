//! What the tests test: the `finesse` command, the preload library, the file system in memory and the benchmark, built like
//! the tests themselves.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// The preload library's file name.
pub const LIBRARY: &str = "libfinesse_preload.so";
/// The command's file name.
pub const COMMAND: &str = "finesse";
/// The file name of the file system in memory.
pub const MEMORY: &str = "finesse-memfs";
/// The file name of the benchmark.
pub const BENCH: &str = "finesse-bench";

/// The directory with all of them, built on first use: cargo does not build another package's binary or cdylib for
/// a test by itself. `FINESSE_TEST_BIN` names a directory with them instead, for testing what is installed.
///
/// # Panics
/// The build fails; cargo has said why.
pub fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        if let Some(directory) = std::env::var_os("FINESSE_TEST_BIN") {
            return directory.into();
        }
        // …/target/PROFILE/deps/this-test
        let this = std::env::current_exe().expect("/proc is mounted");
        let profile_directory = this.ancestors().nth(2).expect("cargo's layout").to_owned();
        let profile = match profile_directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        // All at once, as the packages' features depend on what is built together.
        let status = cargo()
            .args(["build", "--quiet", "--package", "finesse", "--package", "finesse-preload"])
            .args(["--package", "finesse-examples", "--package", "finesse-bench", "--profile", profile])
            .current_dir(workspace())
            .env("CARGO_TARGET_DIR", target())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "building the commands and the preload library failed");
        for file in [COMMAND, LIBRARY, MEMORY, BENCH] {
            assert!(profile_directory.join(file).is_file(), "{file} in {}", profile_directory.display());
        }
        profile_directory
    })
}

/// The file system in memory.
pub fn memory() -> PathBuf {
    directory().join(MEMORY)
}

/// The directory that cargo builds to.
pub fn target() -> PathBuf {
    // …/target/PROFILE/deps/this-test
    let this = std::env::current_exe().expect("/proc is mounted");
    this.ancestors().nth(3).expect("cargo's layout").to_owned()
}

/// The workspace's directory.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a member of the workspace")
}

/// The cargo that runs these tests, or the one in the path.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The `finesse` command.
pub fn command() -> PathBuf {
    directory().join(COMMAND)
}

/// Copies of both where every user can execute them, which a developer's home directory rarely is.
pub fn for_all_users() -> TempDir {
    let place = tempfile::Builder::new().prefix("finesse-for-all-").tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for file in [COMMAND, LIBRARY] {
        let copy = place.path().join(file);
        std::fs::copy(directory().join(file), &copy).unwrap();
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    }
    place
}
