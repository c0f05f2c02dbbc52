//! What a regular file holds: pages, where something was written, and holes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::Errno;

/// Bytes of a page, the unit of space.
pub(crate) const PAGE: u64 = 4096;
type Page = [u8; PAGE as usize];

/// The pages that all files together may have.
pub(crate) struct Space {
    pub(crate) total: u64,
    free: AtomicU64,
}

impl Space {
    pub(crate) fn new(bytes: u64) -> Self {
        let total = bytes / PAGE;
        Self { total, free: AtomicU64::new(total) }
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    fn take(&self, pages: u64) -> Result<(), Errno> {
        let less = |free: u64| free.checked_sub(pages);
        match self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less) {
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    fn give(&self, pages: usize) {
        self.free.fetch_add(pages as u64, Ordering::Relaxed);
    }
}

/// A file's contents.
pub(crate) struct Contents {
    pages: BTreeMap<u64, Box<Page>>,
    size: u64,
    space: Arc<Space>,
}

/// The part of a page that a range of the file covers: the page's number, and from where to where in it.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    (range.start / PAGE..range.end.div_ceil(PAGE)).map(move |page| {
        let start = range.start.max(page * PAGE) - page * PAGE;
        let end = range.end.min((page + 1) * PAGE) - page * PAGE;
        (page, start as usize..end as usize)
    })
}

/// The end of a range, if files can be that long.
pub(crate) fn end(offset: u64, len: u64) -> Result<u64, Errno> {
    offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok()).ok_or(Errno::EFBIG)
}

impl Contents {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { pages: BTreeMap::new(), size: 0, space }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Pages that take space.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// What is there, up to the end of the file. Holes read as zeros.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let range = offset.min(self.size)..offset.saturating_add(len).min(self.size);
        let mut data = Vec::with_capacity((range.end - range.start) as usize);
        for (page, part) in pieces(range) {
            match self.pages.get(&page) {
                Some(page) => data.extend_from_slice(&page[part]),
                None => data.resize(data.len() + part.len(), 0),
            }
        }
        data
    }

    /// Writes as much as there is space for, and says how much that was.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if data.is_empty() {
            return Ok(0);
        }
        let mut rest = data;
        for (page, part) in pieces(offset..end(offset, data.len() as u64)?) {
            if let Err(full) = self.fill(page) {
                return if rest.len() == data.len() { Err(full) } else { Ok(data.len() - rest.len()) };
            }
            let (now, later) = rest.split_at(part.len());
            self.size = self.size.max(page * PAGE + part.end as u64);
            if let Some(page) = self.pages.get_mut(&page) {
                page[part].copy_from_slice(now);
            }
            rest = later;
        }
        Ok(data.len())
    }

    fn fill(&mut self, page: u64) -> Result<(), Errno> {
        if !self.pages.contains_key(&page) {
            self.space.take(1)?;
            self.pages.insert(page, Box::new([0; PAGE as usize]));
        }
        Ok(())
    }

    /// Makes the file longer by a hole, or cuts it off.
    pub(crate) fn resize(&mut self, size: u64) {
        if size < self.size {
            // The rest of the last page must be zero should the file grow again.
            self.clear(size..i64::MAX as u64);
        }
        self.size = size;
    }

    /// Makes a range read as zeros; its whole pages become holes.
    pub(crate) fn clear(&mut self, range: Range<u64>) {
        let whole = range.start.div_ceil(PAGE)..range.end / PAGE;
        if whole.start < whole.end {
            let mut behind = self.pages.split_off(&whole.start);
            let mut kept = behind.split_off(&whole.end);
            self.space.give(behind.len());
            self.pages.append(&mut kept);
        }
        for number in [range.start / PAGE, range.end / PAGE] {
            let within =
                |offset: u64| (offset.clamp(number * PAGE, (number + 1) * PAGE) - number * PAGE) as usize;
            if let Some(page) = self.pages.get_mut(&number) {
                page[within(range.start)..within(range.end)].fill(0);
            }
        }
    }

    /// Takes the space for a range at once, or none of it.
    pub(crate) fn allocate(&mut self, range: Range<u64>) -> Result<(), Errno> {
        let numbers = range.start / PAGE..range.end.div_ceil(PAGE);
        let present = self.pages.range(numbers.clone()).count() as u64;
        self.space.take(numbers.end - numbers.start - present)?;
        for number in numbers {
            self.pages.entry(number).or_insert_with(|| Box::new([0; PAGE as usize]));
        }
        Ok(())
    }

    /// The first offset from `offset` on that lies in data (or in a hole); the end of the file is a hole.
    pub(crate) fn seek(&self, offset: u64, data: bool) -> Result<u64, Errno> {
        if offset >= self.size {
            return Err(Errno::ENXIO);
        }
        let first = offset / PAGE;
        let found = if data {
            let next = self.pages.range(first..).next();
            next.map(|(page, _)| *page).ok_or(Errno::ENXIO)?
        } else {
            let run =
                self.pages.range(first..).zip(first..).take_while(|((page, _), expected)| *page == expected);
            first + run.count() as u64
        };
        let found = (found * PAGE).max(offset);
        if data && found >= self.size { Err(Errno::ENXIO) } else { Ok(found.min(self.size)) }
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.space.give(self.pages.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Contents {
        Contents::new(Arc::new(Space::new(8 * PAGE)))
    }

    #[test]
    fn a_hole_reads_as_zeros_and_takes_no_space() {
        let mut file = file();
        assert_eq!(file.write(3 * PAGE - 1, b"ab"), Ok(2));
        assert_eq!((file.size(), file.pages(), file.space.free()), (3 * PAGE + 1, 2, 6));
        assert_eq!(file.read(3 * PAGE - 2, 100), b"\0ab");
        assert_eq!(file.seek(0, true), Ok(2 * PAGE));
        assert_eq!(file.seek(0, false), Ok(0));
        assert_eq!(file.seek(2 * PAGE + 5, false), Ok(file.size()));
        assert_eq!(file.seek(file.size(), false), Err(Errno::ENXIO));
    }

    #[test]
    fn what_is_cut_off_does_not_come_back() {
        let mut file = file();
        assert_eq!(file.write(0, &[7; 2 * PAGE as usize]), Ok(2 * PAGE as usize));
        file.resize(10);
        file.resize(PAGE + 10);
        assert_eq!(file.read(0, 2 * PAGE), [vec![7; 10], vec![0; PAGE as usize]].concat());
        assert_eq!(file.space.free(), 7);
    }

    #[test]
    fn clearing_is_exact_at_both_ends() {
        for (start, end) in [(5, 9), (5, PAGE + 5), (PAGE - 1, 3 * PAGE + 1), (PAGE, 2 * PAGE), (0, 4 * PAGE)]
        {
            let mut file = file();
            assert_eq!(file.write(0, &[7; 4 * PAGE as usize]), Ok(4 * PAGE as usize));
            file.clear(start..end);
            let mut expected = vec![7; 4 * PAGE as usize];
            expected[start as usize..end as usize].fill(0);
            assert_eq!(file.read(0, 4 * PAGE), expected, "{start}..{end}");
        }
    }

    #[test]
    fn a_full_file_system_takes_what_fits() {
        let mut file = file();
        assert_eq!(file.allocate(0..9 * PAGE), Err(Errno::ENOSPC));
        assert_eq!(file.space.free(), 8);
        assert_eq!(file.write(0, &[1; 9 * PAGE as usize]), Ok(8 * PAGE as usize));
        assert_eq!(file.write(8 * PAGE, b"x"), Err(Errno::ENOSPC));
        assert_eq!(file.write(0, b"y"), Ok(1), "what is there can be changed");
        let space = file.space.clone();
        drop(file);
        assert_eq!(space.free(), 8);
    }
}
