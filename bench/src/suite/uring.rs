//! FUSE over io_uring, which the kernel offers only if it is told to.

use crate::screen;

/// `fuse_dev_uring.c`: a module parameter.
const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";

/// The kernel offers it for as long as this exists, and afterwards if it did before.
#[derive(Debug)]
pub(super) struct Allowed {
    before: Option<String>,
}

impl Allowed {
    /// Tells the kernel, if it can be told.
    pub(super) fn new() -> Self {
        let before = std::fs::read_to_string(PARAMETER).ok().map(|value| value.trim().to_owned());
        let before = before.filter(|value| value == "N" && std::fs::write(PARAMETER, "Y").is_ok());
        Self { before }
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = std::fs::write(PARAMETER, before)
        {
            screen::say(format!("{PARAMETER} was {before}: {error}"));
        }
    }
}
