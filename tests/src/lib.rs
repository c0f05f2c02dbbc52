//! The harness of the integration tests: real mounts, real programs, three roads.
//!
//! | module | holds |
//! | --- | --- |
//! | [`build`] | the built `finesse` command and preload library of this profile |
//! | [`differential`] | random scripts of file calls, performed and compared on all roads |
//! | [`hunt`] | the staleness hunt: both roads change, both look |
//! | [`mount`] | a directory mounted with the command; unmounted, whatever happens |
//! | [`python`] | a program that does what it is told, one thing after another |
//! | [`road`] | one place per road, and programs run there |
//! | [`account`] | what a daemon says of its clients, and what the kernel asked it |
//! | [`guest`] | a guest machine with another kernel |
//! | [`tree`] | what is in a directory, comparable |
//! | [`uring`] | the kernel's offer of FUSE over io_uring, switched on for a while |
//! | [`needs`] | what a test cannot do without |
//! | [`wait`] | waiting for a condition instead of for a time |
//!
//! Tests fail, rather than pass, where nothing can be mounted. What only root can test says so elsewhere.

#![forbid(unsafe_code)]

pub mod account;
pub mod build;
pub mod differential;
pub mod guest;
pub mod hunt;
pub mod mount;
pub mod needs;
pub mod python;
pub mod road;
pub mod tree;
pub mod uring;
pub mod wait;
