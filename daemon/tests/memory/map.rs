//! Mappings of files.

use std::fs::File;
use std::os::fd::AsRawFd;

/// The first page of a file, shared with everybody who maps it.
pub struct Map(*mut u8);

impl Map {
    pub fn new(file: &File, writes: bool) -> Self {
        let protection = libc::PROT_READ | if writes { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping, where the kernel likes.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(map.cast())
    }

    pub fn get(&self, at: usize) -> u8 {
        assert!(at < 4096);
        // SAFETY: within the mapping, and within the file.
        unsafe { self.0.add(at).read_volatile() }
    }

    pub fn set(&self, at: usize, byte: u8) {
        assert!(at < 4096);
        // SAFETY: within the mapping, and within the file.
        unsafe { self.0.add(at).write_volatile(byte) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}
