//! Which BPF program types really load. That a kernel is built with them, or that `bpf` is in the list of
//! security modules, proves nothing: some kernels refuse a type to everybody.

use std::io;

use super::super::{plain, sys};
use super::{Finding, State};
use sys::BpfProgram;

/// `enum bpf_prog_type`.
const SOCKET_FILTER: u32 = 1;
const TRACEPOINT: u32 = 5;
const RAW_TRACEPOINT: u32 = 17;
const TRACING: u32 = 26;
const LSM: u32 = 29;
/// `enum bpf_attach_type`.
const TRACE_RAW_TP: u32 = 23;
const TRACE_FENTRY: u32 = 24;
const LSM_MAC: u32 = 27;

pub(super) fn findings() -> Vec<Finding> {
    let btf = std::fs::read("/sys/kernel/btf/vmlinux");
    let simple = |name, kind| finding(name, sys::load_bpf(BpfProgram { kind, ..BpfProgram::default() }));
    let typed = |name, kind, attach, wanted: BtfKind, target: &str| match &btf {
        Err(error) => Finding::off(
            name,
            format!("/sys/kernel/btf/vmlinux: {}", plain(error)),
            "needs a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
        Ok(btf) => match type_id(btf, wanted, target) {
            Some(btf_id) => finding(name, sys::load_bpf(BpfProgram { kind, attach, btf_id })),
            None => Finding::off(name, format!("the kernel has no {target}"), "needs another kernel"),
        },
    };
    let lsm = typed("BPF security programs", LSM, LSM_MAC, BtfKind::Function, "bpf_lsm_inode_permission");
    vec![
        built(),
        simple("BPF socket filters", SOCKET_FILTER),
        simple("BPF tracepoints", TRACEPOINT),
        simple("BPF raw tracepoints", RAW_TRACEPOINT),
        typed("BPF typed tracepoints", TRACING, TRACE_RAW_TP, BtfKind::Typedef, "btf_trace_sched_switch"),
        typed("BPF function entry", TRACING, TRACE_FENTRY, BtfKind::Function, "vfs_unlink"),
        for_policies(active(lsm)),
    ]
}

/// What they do for mounts with a policy.
fn for_policies(mut finding: Finding) -> Finding {
    let effect = match finding.state {
        State::On => "; the kernel checks walks by a policy (-o policy) itself",
        State::Off => "; where a policy (-o policy) applies, the kernel asks for each step of a walk",
        State::Unknown => return finding,
    };
    finding.detail.push_str(effect);
    finding
}

/// Whether Finesse itself has programs to load.
fn built() -> Finding {
    let name = "BPF programs";
    match finesse_ebpf::BUILT {
        true => Finding::on(name, "Finesse was built with its own"),
        false => Finding::off(
            name,
            "Finesse was built without its own, for lack of clang",
            "build it again with clang 14 or later; without them, -o bpf does nothing",
        ),
    }
}

fn finding(name: &'static str, loaded: io::Result<()>) -> Finding {
    let Err(error) = loaded else { return Finding::on(name, "a program was loaded") };
    let root = rustix::process::geteuid().is_root();
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if !root => "try as root (CAP_BPF and CAP_PERFMON)",
        Some(libc::EPERM | libc::EACCES) => {
            "this kernel, or the container, forbids it even to root; needs another kernel or more capabilities"
        }
        Some(libc::ENOSYS) => "needs a kernel with CONFIG_BPF_SYSCALL",
        _ => "needs a kernel that knows this type",
    };
    Finding::off(name, plain(&error), hint)
}

/// Programs that load are only called if `bpf` is among the active security modules.
fn active(finding: Finding) -> Finding {
    let list = "/sys/kernel/security/lsm";
    if finding.state != State::On {
        return finding;
    }
    match std::fs::read_to_string(list) {
        Ok(modules) if modules.trim_end().split(',').any(|module| module == "bpf") => finding,
        Ok(modules) => Finding::off(
            finding.name,
            format!("programs load, but bpf is not an active security module ({})", modules.trim_end()),
            "boot with lsm=…,bpf on the kernel's command line",
        ),
        Err(error) => Finding::unknown(
            finding.name,
            format!("programs load; whether they are called is unknown: {list}: {}", plain(&error)),
        ),
    }
}

/// `BTF_KIND_*`, as far as it is searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BtfKind {
    Typedef = 8,
    Function = 12,
}

/// The number of a type by kind and name in BTF data of this machine's byte order; the format is described in
/// the kernel's Documentation/bpf/btf.rst.
fn type_id(btf: &[u8], wanted: BtfKind, name: &str) -> Option<u32> {
    const MAGIC: u16 = 0xeb9f;
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
    let section = |header: usize| {
        let base = word(btf, 4)? as usize;
        let (offset, len) = (word(btf, header)? as usize, word(btf, header + 4)? as usize);
        btf.get(base.checked_add(offset)?..)?.get(..len)
    };
    if u16::from_ne_bytes(*btf.first_chunk()?) != MAGIC {
        return None;
    }
    let (types, strings) = (section(8)?, section(16)?);
    let (mut at, mut id) = (0, 1);
    while let (Some(name_at), Some(info)) = (word(types, at), word(types, at + 4)) {
        let (kind, entries) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let is_named = || {
            let rest = strings.get(name_at as usize..)?.strip_prefix(name.as_bytes())?;
            (*rest.first()? == 0).then_some(())
        };
        if kind == wanted as u32 && is_named().is_some() {
            return Some(id);
        }
        // Bytes that follow `struct btf_type`, by kind.
        at += 12
            + match kind {
                1 | 14 | 17 => 4,                // INT, VAR, DECL_TAG
                3 => 12,                         // ARRAY
                4 | 5 | 15 | 19 => 12 * entries, // STRUCT, UNION, DATASEC, ENUM64
                6 | 13 => 8 * entries,           // ENUM, FUNC_PROTO
                _ => 0,
            };
        id += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BTF with an int `a`, a struct `b` of one member, and a function `c`.
    fn btf() -> Vec<u8> {
        let strings = b"\0a\0b\0c\0";
        let types: [u32; 4 + 6 + 3] = [1, 1 << 24, 4, 32, 3, 4 << 24 | 1, 4, 1, 1, 0, 5, 12 << 24, 1];
        let mut bytes = Vec::from(0xeb9fu16.to_ne_bytes());
        bytes.extend([1, 0]);
        for word in [24, 0, size_of_val(&types) as u32, size_of_val(&types) as u32, strings.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_type_is_found_by_kind_and_name() {
        assert_eq!(type_id(&btf(), BtfKind::Function, "c"), Some(3));
        assert_eq!(type_id(&btf(), BtfKind::Function, "b"), None);
        assert_eq!(type_id(&btf(), BtfKind::Typedef, "c"), None);
    }

    #[test]
    fn broken_data_is_survived() {
        let whole = btf();
        for len in 0..whole.len() {
            type_id(&whole[..len], BtfKind::Function, "c");
        }
        assert_eq!(type_id(b"no btf at all", BtfKind::Function, "c"), None);
    }

    #[test]
    fn the_running_kernels_types_are_found() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            eprintln!("skipped: this kernel has no BTF");
            return;
        };
        assert!(type_id(&btf, BtfKind::Function, "vfs_unlink").is_some());
        assert!(type_id(&btf, BtfKind::Typedef, "btf_trace_sched_switch").is_some());
    }
}
