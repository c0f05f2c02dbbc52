//! In-kernel help for programs that are not preloaded: BPF programs and their loader.
//!
//! | module | program |
//! | --- | --- |
//! | [`no_xattrs`] | answers for files without extended attributes |
//! | [`requests`] | counts what the kernel asks a mount's daemon, and for whom |
//! | [`walks`] | checks who may walk through directories |
//!
//! [`rules`] is no program: it decides as one does.
//!
//! Everything is found out by trying, and everything works without: no clang when this crate was built, no privilege, a
//! kernel that refuses. Nothing is pinned: what is attached goes with the value that holds it, and with the process.

#![forbid(unsafe_code)]

pub mod no_xattrs;
pub mod requests;
pub mod rules;
pub mod walks;

/// Whether there was a clang when this crate was built. Otherwise nothing can be attached.
pub const BUILT: bool = cfg!(programs);

/// The running kernel's types, by which programs are fitted to it. Reading them is most of what loading a program costs.
#[derive(Debug)]
pub struct Types {
    #[cfg(programs)]
    known: aya::Btf,
}

impl Types {
    /// Reads them.
    ///
    /// # Errors
    /// [`Error::NotBuilt`], or [`Error::Types`] if the kernel does not tell.
    pub fn read() -> Result<Self, Error> {
        #[cfg(programs)]
        return Ok(Self { known: aya::Btf::from_sys_fs()? });
        #[cfg(not(programs))]
        Err(Error::NotBuilt)
    }
}

/// Why a program is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There was no clang when this crate was built.
    #[error("built without BPF programs, for lack of clang")]
    NotBuilt,
    /// The kernel does not tell its types (`CONFIG_DEBUG_INFO_BTF`), or has none of those that the program needs.
    #[error("the kernel's types: {0}")]
    Types(#[from] aya::BtfError),
    /// The object with the program cannot be loaded.
    #[error("{}", whole(.0))]
    Object(#[from] aya::EbpfError),
    /// The kernel refuses the program.
    #[error("{}", whole(.0))]
    Program(#[from] aya::programs::ProgramError),
    /// The kernel takes the program and does not call it.
    #[error("the kernel loads the program but does not call it: boot with lsm=…,bpf on its command line")]
    Uncalled,
    /// A map cannot be used.
    #[error("{}", whole(.0))]
    Map(#[from] aya::maps::MapError),
}

/// An error with its causes, on one line: the verifier's log is for those who write the programs.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// How the kernel itself keeps a device number (`MKDEV`).
#[cfg(programs)]
fn kernel_device((major, minor): (u32, u32)) -> u32 {
    major << 20 | minor
}
