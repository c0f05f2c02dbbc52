//! The kernel road: file system calls that arrive as FUSE messages.

pub(crate) mod adapter;
pub(crate) mod below;
pub(crate) mod hidden;
pub(crate) mod hooks;
#[cfg(test)]
mod tests;
