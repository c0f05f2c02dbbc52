//! Compiles the BPF programs with clang. Without it the crate is built without them, and says so.

use std::path::Path;
use std::process::Command;

/// Sources in `bpf/`, without their suffix.
const PROGRAMS: [&str; 3] = ["no_xattrs", "requests", "walks"];

fn main() {
    println!("cargo::rustc-check-cfg=cfg(programs)");
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-env-changed=PATH");
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    for program in PROGRAMS {
        let compiled = Command::new(&clang)
            .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Werror", "-c"])
            .arg(format!("bpf/{program}.bpf.c"))
            .arg("-o")
            .arg(Path::new(&out).join(format!("{program}.o")))
            .output();
        match compiled {
            Ok(output) if output.status.success() => {}
            // The machine lacks the compiler, or its compiler lacks the target: nothing else can do without the programs.
            Err(error) => {
                println!("cargo::warning=no BPF programs: {clang}: {error}; install clang 14 or later");
                return;
            }
            Ok(output) if !targets_bpf(&clang) => {
                println!(
                    "cargo::warning=no BPF programs: {clang} cannot compile for BPF ({})",
                    output.status
                );
                return;
            }
            Ok(output) => panic!("{clang}, {program}: {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
    println!("cargo::rustc-cfg=programs");
}

fn targets_bpf(clang: &str) -> bool {
    let empty = ["-target", "bpf", "-O2", "-g", "-x", "c", "-c", "/dev/null", "-o", "/dev/null"];
    Command::new(clang).args(empty).output().is_ok_and(|output| output.status.success())
}
