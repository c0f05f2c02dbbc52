//! The shared-memory road.

use std::io;
use std::sync::Arc;

use crate::filesystem::Filesystem;
use crate::session::Core;

/// The server of one mount's bypass clients. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server(());

impl Server {
    pub(crate) fn start<FS: Filesystem>(_core: Arc<Core<FS>>) -> io::Result<Self> {
        Ok(Self(()))
    }
}
