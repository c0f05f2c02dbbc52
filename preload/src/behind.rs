//! The objects that the program was started with, behind this library in the search order: what `dlsym(RTLD_NEXT)` looks
//! through. That takes locks, and may allocate, so that it may not be called from within a signal handler; and to look every
//! hooked function up before the program runs takes longer than all else that the library does then. Here, a function is
//! looked up when it is called first, by its object's hash table (`DT_GNU_HASH`), which nobody changes.
//!
//! Objects that were there when the program started stay until it ends.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most objects that are noted. With more, `dlsym` it is.
const ROOM: usize = 64;

const DT_NULL: i64 = 0;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_VERSYM: i64 = 0x6fff_fff0;
const DT_GNU_HASH: i64 = 0x6fff_fef5;
/// An indirect function: its symbol leads to what chooses one (`STT_GNU_IFUNC`).
const INDIRECT: u8 = 10;
/// Of a symbol's version: it is not the one that programs are linked against (`VERSYM_HIDDEN`).
const HIDDEN: u16 = 0x8000;

/// `Elf64_Dyn`.
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// `Elf64_Sym`.
#[repr(C)]
struct Entry {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: u64,
}

/// Where an object's symbols are; pointers into it.
#[derive(Clone, Copy)]
struct Object {
    base: usize,
    hashes: *const u32,
    symbols: *const Entry,
    strings: *const c_char,
    /// Null if its symbols have no versions.
    versions: *const u16,
}

impl Object {
    const NONE: Self = Self {
        base: 0,
        hashes: std::ptr::null(),
        symbols: std::ptr::null(),
        strings: std::ptr::null(),
        versions: std::ptr::null(),
    };

    /// What an object says of itself in its dynamic section.
    ///
    /// # Safety
    /// `dynamic` is that of a loaded object at `base`.
    unsafe fn new(base: usize, mut dynamic: *const Dynamic) -> Self {
        let mut object = Self { base, ..Self::NONE };
        loop {
            // SAFETY: the section ends with DT_NULL.
            let &Dynamic { tag, value } = unsafe { &*dynamic };
            // The loader relocates these where the section can be written to.
            let address = if value < base { base.wrapping_add(value) } else { value };
            match tag {
                DT_NULL => return object,
                DT_STRTAB => object.strings = std::ptr::with_exposed_provenance(address),
                DT_SYMTAB => object.symbols = std::ptr::with_exposed_provenance(address),
                DT_VERSYM => object.versions = std::ptr::with_exposed_provenance(address),
                DT_GNU_HASH => object.hashes = std::ptr::with_exposed_provenance(address),
                _ => {}
            }
            // SAFETY: this was not the last entry.
            dynamic = unsafe { dynamic.add(1) };
        }
    }

    fn is_searchable(&self) -> bool {
        !self.hashes.is_null() && !self.symbols.is_null() && !self.strings.is_null()
    }

    /// The symbol of this name, in the version that programs are linked against (`do_lookup_x`, `check_match`).
    ///
    /// # Safety
    /// The object is [searchable](Self::is_searchable), and loaded.
    unsafe fn find(&self, name: &CStr, hash: u32) -> Option<&Entry> {
        // SAFETY: the table, as every linker lays it out: four numbers, the filter's 64-bit words, the buckets, and a hash for each
        // symbol from `first` on, of which the last one in each bucket is odd.
        unsafe {
            let [buckets, first, words, shift] = *self.hashes.cast::<[u32; 4]>();
            if buckets == 0 || words == 0 {
                return None;
            }
            let filter = self.hashes.add(4).cast::<u64>();
            let word = filter.add((hash / u64::BITS) as usize & (words as usize - 1)).read();
            let bits = 1 << (hash % u64::BITS) | 1 << ((hash >> shift) % u64::BITS);
            if word & bits != bits {
                return None;
            }
            let bucket = filter.add(words as usize).cast::<u32>();
            let mut index = *bucket.add((hash % buckets) as usize);
            if index < first {
                return None;
            }
            let chain = bucket.add(buckets as usize);
            loop {
                let seen = *chain.add((index - first) as usize);
                if seen | 1 == hash | 1 {
                    let entry = &*self.symbols.add(index as usize);
                    let is_default =
                        self.versions.is_null() || *self.versions.add(index as usize) & HIDDEN == 0;
                    let is_defined = entry.section != 0 && entry.value != 0;
                    if is_default
                        && is_defined
                        && CStr::from_ptr(self.strings.add(entry.name as usize)) == name
                    {
                        return Some(entry);
                    }
                }
                if seen & 1 == 1 {
                    return None;
                }
                index += 1;
            }
        }
    }
}

/// The hash of a name in `DT_GNU_HASH`.
pub(crate) const fn hash(bytes: &[u8]) -> u32 {
    let (mut hash, mut at) = (5381_u32, 0);
    while at < bytes.len() {
        hash = hash.wrapping_mul(33).wrapping_add(bytes[at] as u32);
        at += 1;
    }
    hash
}

/// What a look-up has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The function.
    At(*mut c_void),
    /// No object has it, unless this library came late, by dlopen(3).
    Nowhere,
    /// Only `dlsym` can tell.
    Unclear,
}

struct Objects {
    /// How many there are; [`UNKNOWN`] until they have been noted.
    count: AtomicUsize,
    objects: UnsafeCell<[Object; ROOM]>,
}

const UNKNOWN: usize = usize::MAX;

// SAFETY: written once, before `count` says that there is something to be read.
unsafe impl Sync for Objects {}

static BEHIND: Objects =
    Objects { count: AtomicUsize::new(UNKNOWN), objects: UnsafeCell::new([Object::NONE; ROOM]) };

/// Notes the objects; whether functions can be [found](find) in all of them. To be called once, by the library's constructor.
pub(crate) fn note() -> bool {
    struct Walk {
        /// Ours was passed, or there is none of ours: unit tests are programs.
        behind: bool,
        count: usize,
    }

    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, walk: *mut c_void) -> c_int {
        // SAFETY: `dl_iterate_phdr` passes a valid description, and our own pointer.
        let (info, walk) = unsafe { (&*info, &mut *walk.cast::<Walk>()) };
        let base = info.dlpi_addr as usize;
        let mut dynamic = std::ptr::null();
        let mut is_ours = false;
        for index in 0..usize::from(info.dlpi_phnum) {
            // SAFETY: so many program headers.
            let header = unsafe { &*info.dlpi_phdr.add(index) };
            let start = base.wrapping_add(header.p_vaddr as usize);
            match header.p_type {
                libc::PT_DYNAMIC => dynamic = std::ptr::with_exposed_provenance::<Dynamic>(start),
                libc::PT_LOAD => {
                    is_ours |= (start..start + header.p_memsz as usize).contains(&(&raw const BEHIND).addr());
                }
                _ => {}
            }
        }
        if !walk.behind || is_ours {
            walk.behind |= is_ours;
            return 0;
        }
        if dynamic.is_null() {
            return 0;
        }
        // SAFETY: the dynamic section of a loaded object.
        let object = unsafe { Object::new(base, dynamic) };
        if walk.count == ROOM || !object.is_searchable() {
            walk.count = UNKNOWN;
            return 1;
        }
        // SAFETY: nobody reads the array yet, and nobody else writes it.
        unsafe { (*BEHIND.objects.get())[walk.count] = object };
        walk.count += 1;
        0
    }

    let mut walk = Walk { behind: false, count: 0 };
    // SAFETY: the function fits, and the pointer is valid meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut walk).cast()) };
    BEHIND.count.store(walk.count, Ordering::Release);
    walk.count != UNKNOWN
}

/// Looks a function up. Takes no lock, and allocates nothing.
pub(crate) fn find(name: &CStr, hash: u32) -> Found {
    let count = BEHIND.count.load(Ordering::Acquire);
    // SAFETY: not written any more once the count is known.
    let objects = unsafe { &*BEHIND.objects.get() };
    let Some(objects) = objects.get(..count) else { return Found::Unclear };
    for object in objects {
        // SAFETY: those that were noted are searchable, and stay.
        if let Some(entry) = unsafe { object.find(name, hash) } {
            return match entry.info & 15 {
                INDIRECT => Found::Unclear,
                _ => Found::At(std::ptr::with_exposed_provenance_mut(object.base + entry.value)),
            };
        }
    }
    Found::Nowhere
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_what_dlsym_finds() {
        assert!(note());
        let names =
            [c"open", c"stat", c"fts_open", c"syscall", c"posix_spawn", c"realpath", c"no_such_function"];
        for name in names {
            // SAFETY: a C string.
            let expected = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
            match find(name, hash(name.to_bytes())) {
                Found::At(address) => assert_eq!(address, expected, "{name:?}"),
                Found::Nowhere => assert!(expected.is_null(), "{name:?}"),
                Found::Unclear => panic!("{name:?}: glibc has hash tables"),
            }
        }
        // Chosen by the processor.
        assert_eq!(find(c"memcpy", hash(b"memcpy")), Found::Unclear);
    }
}
