//! What reading extended attributes answers where there are none.

/// Which extended attributes a file is known not to have. Who asks makes no difference for these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbsentXattrs {
    /// None at all: there is nothing to list.
    pub any: bool,
    /// Neither `system.posix_acl_access` nor `system.posix_acl_default`: getxattr(2) answers `ENODATA`.
    pub acl: bool,
    /// None of `security.*`: getxattr(2) answers `ENODATA`.
    pub security: bool,
}

impl AbsentXattrs {
    /// As a word of an entry.
    pub(super) fn to_word(self) -> u64 {
        let Self { any, acl, security } = self;
        u64::from(any) | u64::from(acl) << 1 | u64::from(security) << 2
    }

    pub(super) fn from_word(word: u64) -> Self {
        Self { any: word & 1 != 0, acl: word & 2 != 0, security: word & 4 != 0 }
    }

    /// What getxattr(2) answers for a name, or listxattr(2) for none: the number of bytes, which is 0, or the errno. `None` if it
    /// must be asked.
    pub fn answer(self, name: Option<&[u8]>) -> Option<Result<usize, i32>> {
        let Some(name) = name else { return self.any.then_some(Ok(0)) };
        let absent = match name {
            b"system.posix_acl_access" | b"system.posix_acl_default" => self.acl,
            // No more is a name (`xattr_resolve_name`).
            name => self.security && name.starts_with(b"security.") && name.len() > b"security.".len(),
        };
        absent.then_some(Err(libc::ENODATA))
    }
}
