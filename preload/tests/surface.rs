//! The table of `surface.rs` is complete and true: it names every function that this machine's C library exports, the library
//! exports exactly those that the table calls hooked, and `SURFACE.md` is the table.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::Command;

// Not by linking the crate: its hooks would be the test's.
#[allow(dead_code, unreachable_pub)]
#[path = "../src/surface.rs"]
mod surface;

use surface::{Name, SURFACE, UNRELATED};

fn library() -> PathBuf {
    // target/PROFILE/deps/surface-HASH → target/PROFILE/libfinesse_preload.so
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().unwrap().parent().unwrap();
    ["deps", ""]
        .map(|directory| profile.join(directory).join("libfinesse_preload.so"))
        .into_iter()
        .find(|library| library.exists())
        .expect("cargo builds the library before its tests")
}

/// The C library that this test runs on.
fn libc_path() -> PathBuf {
    // SAFETY: an all-zero Dl_info is a value; `dladdr` fills it for the address of a function of libc's.
    let path = unsafe {
        let mut info = std::mem::zeroed::<libc::Dl_info>();
        assert_ne!(libc::dladdr(libc::getpid as *const libc::c_void, &raw mut info), 0);
        CStr::from_ptr(info.dli_fname).to_str().unwrap()
    };
    Path::new(path).to_owned()
}

/// What a library exports: symbol → whether any of its versions is for programs.
fn exported(library: &Path) -> BTreeMap<String, bool> {
    let output = Command::new("nm")
        .args(["-D", "--defined-only", "--with-symbol-versions"])
        .arg(library)
        .output()
        .expect("binutils");
    assert!(output.status.success(), "nm {}: {output:?}", library.display());
    let mut symbols = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let mut words = line.split_ascii_whitespace().rev();
        let (Some(symbol), Some(kind)) = (words.next(), words.next()) else { continue };
        // Versions themselves are absolute symbols.
        if kind == "A" {
            continue;
        }
        let (name, version) = symbol.split_once('@').unwrap_or((symbol, ""));
        *symbols.entry(name.to_owned()).or_insert(false) |= !version.ends_with("GLIBC_PRIVATE");
    }
    symbols
}

fn all_names() -> impl Iterator<Item = Name> {
    SURFACE.iter().flat_map(|entry| entry.names()).chain(UNRELATED.iter().flat_map(|group| group.names()))
}

#[test]
fn every_function_that_libc_offers_to_programs_is_in_the_table() {
    let missing: Vec<_> = exported(&libc_path())
        .into_iter()
        .filter(|(symbol, public)| *public && !all_names().any(|name| name.covers(symbol)))
        .map(|(symbol, _)| symbol)
        .collect();
    assert!(missing.is_empty(), "say in preload/src/surface.rs what becomes of {missing:?}");
}

#[test]
fn the_table_names_nothing_twice_and_nothing_that_libc_does_not_have() {
    let mut seen = BTreeSet::new();
    let twice: Vec<_> = all_names().filter(|name| !seen.insert(name.symbol)).collect();
    assert!(twice.is_empty(), "more than once in preload/src/surface.rs: {twice:?}");
    let symbols = exported(&libc_path());
    let exists = |name: &Name| symbols.keys().any(|symbol| name.covers(symbol));
    let unknown: Vec<_> = all_names().filter(|name| name.everywhere && !exists(name)).collect();
    assert!(unknown.is_empty(), "in preload/src/surface.rs, but not in this libc: {unknown:?}");
}

#[test]
fn the_library_exports_what_the_table_calls_hooked_and_nothing_else() {
    let hooked: BTreeSet<_> = SURFACE
        .iter()
        .filter(|entry| entry.scope.is_hooked())
        .flat_map(|entry| entry.names())
        .map(|name| name.symbol.to_owned())
        .collect();
    let exported: BTreeSet<_> = exported(&library()).into_keys().collect();
    assert!(exported.len() > 150, "{exported:?}");
    let only = |these: &BTreeSet<String>, those: &BTreeSet<String>| -> Vec<String> {
        these.difference(those).cloned().collect()
    };
    assert_eq!(
        (only(&exported, &hooked), only(&hooked, &exported)),
        (Vec::new(), Vec::new()),
        "(hooked, but not in preload/src/surface.rs as such; there, but not hooked)"
    );
}

#[test]
fn the_table_as_text_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("SURFACE.md");
    if std::env::var_os("FINESSE_BLESS").is_some() {
        std::fs::write(&path, surface::markdown()).unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == surface::markdown(),
        "{}: write it with FINESSE_BLESS=1 cargo test -p finesse-preload --test surface",
        path.display()
    );
}
