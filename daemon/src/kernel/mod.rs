//! The kernel road: file system calls that arrive as FUSE messages.

pub(crate) mod adapter;
pub(crate) mod below;
pub(crate) mod hidden;
pub(crate) mod hooks;
pub(crate) mod operations;
#[cfg(test)]
mod tests;
pub(crate) mod uring;
