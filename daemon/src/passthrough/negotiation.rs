//! What the kernel offers, and which of it a [`PassthroughFs`] takes.

#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use super::{CachePolicy, Grants, PassthroughFs};
use crate::{InitFlags, KernelConfig};

impl PassthroughFs {
    /// Answers `FUSE_INIT`.
    pub(super) fn negotiate(&self, config: &mut KernelConfig) {
        let mut wanted = vec![
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_HAS_IOCTL_DIR,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        if self.options.kernel_checked {
            // Names that come with attributes enter the kernel's cache for everybody, which is only right
            // if the kernel checks who may see them. ACLs are applied at creation by the backing, in the
            // place of the umask; so the umask comes here, too.
            wanted.extend([
                InitFlags::FUSE_DO_READDIRPLUS,
                InitFlags::FUSE_READDIRPLUS_AUTO,
                InitFlags::FUSE_POSIX_ACL,
                InitFlags::FUSE_DONT_MASK,
            ]);
        }
        if self.options.cache != CachePolicy::Never {
            wanted.push(InitFlags::FUSE_CACHE_SYMLINKS);
        }
        let has = |flag| config.capabilities().contains(flag);
        if !self.locks_stay_in_the_kernel() {
            wanted.push(InitFlags::FUSE_POSIX_LOCKS);
            // Where the kinds of lock cannot be told apart, flock(2) is left to the kernel, which knows of no locks on
            // the source itself.
            if self.locks.tell_kinds() && has(InitFlags::FUSE_FLOCK_LOCKS) {
                wanted.push(InitFlags::FUSE_FLOCK_LOCKS);
            }
        }
        // What is never granted to programs is not given to the kernel, either: an inode cannot be served both from
        // its backing file and by the daemon, which serves what becomes the kernel's of a virtual descriptor.
        let wants_passthrough = self.options.kernel_passthrough && self.options.grants != Grants::Never;
        let passthrough = wants_passthrough && has(InitFlags::FUSE_PASSTHROUGH);
        if passthrough && config.set_max_stack_depth(1).is_ok() {
            wanted.push(InitFlags::FUSE_PASSTHROUGH);
            self.kernel_serves_data.store(true, Ordering::Relaxed);
        }
        // The kernel keeps what it lists, and checks who may list it.
        let lists_unopened = self.options.cache == CachePolicy::Always
            && self.options.kernel_checked
            && config.capabilities().contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        self.lists_unopened.store(lists_unopened, Ordering::Relaxed);
        for flag in wanted {
            if config.capabilities().contains(flag) && config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "the kernel took an offer back");
            }
        }
        // The default of 16 is from times of one disk and one thread.
        let _ = config.set_max_background(64);
    }
}
