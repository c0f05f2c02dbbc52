//! The differential state machine: random scripts of file calls, by several processes and threads, performed natively,
//! on the kernel road, on the bypass, and on both roads at once; every call must say the same everywhere, and the same
//! must be there afterwards.
//!
//! | module | holds |
//! | --- | --- |
//! | [`calls`] | the table of calls, with what their arguments can be |
//! | [`script`] | scripts: made, shrunk, written, read |
//! | [`performer`] | the C program that performs them, and listings of scripts as such programs |
//! | [`site`] | where they are performed |
//! | [`compare`] | what must agree, and the few differences that are the kernel's |

pub mod calls;
pub mod compare;
pub mod performer;
pub mod script;
pub mod site;
