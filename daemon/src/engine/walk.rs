//! From (base, path) to an inode, or to a parent and a name: `link_path_walk` over the trait's `lookup`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};

use crate::answer;
use crate::coherence::reading_changes_atime;
use crate::engine::cache::{Inode, Known};
use crate::engine::table::Era;
use crate::engine::{Context, Engine, Stop, fail, kernel};
use crate::filesystem::Filesystem;
use crate::mutant;
use crate::reply::{ReplyAttr, ReplyData, ReplyEntry};
use crate::request::Request;
use finesse_ipc::frame::{Fallback, PATH_MAX, ROOT};

/// Symbolic links that one walk follows (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;
/// Longest name that Linux file systems store; what is longer is the kernel's to refuse.
const NAME_MAX: usize = 255;

/// An inode at the end of a walk.
pub(crate) struct Node {
    /// The inode.
    pub(crate) inode: Arc<Inode>,
    /// Its attributes, if the walk got them fresh from the file system.
    pub(crate) attr: Option<FileAttr>,
    /// The era of the metadata table in which everybody may look its name up.
    pub(crate) public: Option<Era>,
}

/// The directory that holds, or shall hold, the last component.
pub(crate) struct Parent<'p> {
    /// The directory.
    pub(crate) directory: Arc<Inode>,
    /// The last component: neither empty nor `.` nor `..`.
    pub(crate) name: &'p OsStr,
    /// The path ends in a slash.
    pub(crate) trailing_slash: bool,
}

/// What stands at the end of a path that may be created.
pub(crate) enum Last {
    /// Something.
    There(Node),
    /// Nothing, in this directory, under this name.
    Missing(Arc<Inode>, Box<OsStr>),
}

/// Where a path leads, for those who watch.
pub(crate) struct Place {
    /// The directory that the walk began in.
    pub(crate) base: u64,
    /// The directories above the last one, as far as the walk came through them.
    pub(crate) through: Vec<Arc<Inode>>,
    /// The directory in which the last name was looked up; `None` if the path ended without a name.
    pub(crate) directory: Option<Arc<Inode>>,
    /// What it names, if that exists.
    pub(crate) inode: Option<Arc<Inode>>,
}

fn is_name(component: &[u8]) -> bool {
    !component.is_empty() && component != b"." && component != b".."
}

/// How far a walk has come.
#[derive(Default)]
struct Progress {
    /// Symbolic links followed.
    followed: u32,
    /// The directories above the present one, as far as this walk came through them.
    trail: Vec<Arc<Inode>>,
}

/// Splits the first component off a path that does not begin with a slash.
fn split_first(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    let rest = &path[end..];
    let next = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
    (&path[..end], &rest[next..])
}

/// Splits a path into everything before the last component, and the last component.
fn split_last(path: &[u8]) -> (&[u8], &[u8], bool) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let trimmed = &path[..end];
    let start = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    (&trimmed[..start], &trimmed[start..], end < path.len())
}

impl<FS: Filesystem> Engine<FS> {
    /// The directory that a client calls by its node id.
    pub(crate) fn base(&self, context: &Context, base: u64) -> Result<Arc<Inode>, Stop> {
        if base == ROOT {
            self.open_root();
            return Ok(self.root.clone());
        }
        let Some(inode) = context.bases.lock().get(&base).cloned() else {
            return kernel(Fallback::UnknownBase);
        };
        // Borrowed from the kernel, which may have forgotten it since.
        if inode.is_dead() || (inode.lookups() == 0 && !self.core.coherence.kernel_knows(base)) {
            return kernel(Fallback::UnknownBase);
        }
        self.reopen_base(&inode);
        Ok(inode)
    }

    /// Attributes, from the cache while they are good.
    pub(crate) fn attr(&self, request: &Request, inode: &Inode) -> Result<FileAttr, Stop> {
        match self.known_attr(inode) {
            Some(attr) => Ok(attr),
            None => self.fresh_attr(request, inode),
        }
    }

    /// As [`attr`](Self::attr), to be published, and the mark for that.
    pub(super) fn attr_to_publish(&self, request: &Request, inode: &Inode) -> Result<(FileAttr, u64), Stop> {
        let mark = self.cache.mark();
        if let Some(attr) = self.known_attr(inode) {
            return Ok((attr, mark));
        }
        if let Some(settled) = self.review_grants(inode, mark) {
            return Ok(settled);
        }
        let mark = self.cache.mark();
        Ok((self.fresh_attr(request, inode)?, mark))
    }

    /// Finds out whether a file still changes unseen that was granted for writing. If not, and if nothing else has changed since `mark`,
    /// its attributes and a new mark.
    pub(super) fn review_grants(&self, inode: &Inode, mark: u64) -> Option<(FileAttr, u64)> {
        let coherence = &self.core.coherence;
        if inode.kind != FileType::RegularFile || !coherence.is_granted_write(inode.ino) {
            return None;
        }
        let mut settled = None;
        let believed = coherence.review_grants(inode.ino, || {
            settled = self.core.fs.ask().settled_attr(INodeNo(inode.ino));
            settled.is_none()
        });
        // Which is counted once.
        let mark = mark + 1;
        let (attr, ttl) = settled.filter(|_| believed && self.cache.mark() == mark)?;
        self.cache.learn_attr(inode, &answer::Attr { attr, ttl }, mark);
        Some((attr, mark))
    }

    /// Attributes that are remembered, and that nothing can have changed unseen.
    pub(super) fn known_attr(&self, inode: &Inode) -> Option<FileAttr> {
        // Asked first: when that ends, what is remembered has been forgotten.
        if self.changes_unseen(inode) {
            return None;
        }
        inode.attr(&self.cache).filter(|attr| !self.is_read_unseen(inode, attr))
    }

    /// Attributes from the file system.
    pub(crate) fn fresh_attr(&self, request: &Request, inode: &Inode) -> Result<FileAttr, Stop> {
        let mark = self.cache.mark();
        let (reply, answer) = ReplyAttr::local();
        self.core.fs.ask().getattr(request, INodeNo(inode.ino), None, reply);
        let answer = answer.wait()?;
        self.cache.learn_attr(inode, &answer, mark);
        Ok(answer.attr)
    }

    /// Whether the file may be written through a descriptor that the daemon does not see.
    pub(super) fn changes_unseen(&self, inode: &Inode) -> bool {
        let coherence = &self.core.coherence;
        inode.kind == FileType::RegularFile
            && !mutant::leaves_out("bypass: written unseen")
            && (coherence.is_granted_write(inode.ino) || coherence.is_written_unseen(inode.ino))
    }

    /// Whether the file may be read through a descriptor that the daemon does not see, and reading it would change when
    /// it was last accessed.
    fn is_read_unseen(&self, inode: &Inode, attr: &FileAttr) -> bool {
        self.may_be_read_unseen(inode) && reading_changes_atime(attr, SystemTime::now())
    }

    /// Whether the file may be read through a descriptor that the daemon does not see.
    pub(super) fn may_be_read_unseen(&self, inode: &Inode) -> bool {
        inode.kind == FileType::RegularFile
            && (self.core.coherence.is_granted(inode.ino) || self.core.coherence.is_used_unseen(inode.ino))
    }

    /// Looks up one name; `None` if it does not exist.
    pub(crate) fn child(
        &self,
        context: &Context,
        request: &Request,
        directory: &Arc<Inode>,
        name: &OsStr,
    ) -> Result<Option<Node>, Stop> {
        if name.len() > NAME_MAX {
            return kernel(Fallback::BadPath);
        }
        if directory.is_dead() {
            return Ok(None);
        }
        let mark = self.cache.mark();
        let node = match self.cache.lookup(directory, name) {
            Known::Nothing(expiry) => {
                self.publish_known_absent(directory, name, expiry, mark);
                None
            }
            Known::Inode(inode, expiry) => {
                let public = self.publish_known(directory, name, &inode, expiry, mark);
                Some(Node { inode, attr: None, public })
            }
            Known::Unknown => {
                let (reply, answer) = ReplyEntry::local();
                self.core.fs.ask().lookup(request, INodeNo(directory.ino), name, reply);
                match answer.wait() {
                    Ok(entry) => self.learned(directory, name, &entry, mark),
                    Err(errno) if errno.code() == libc::ENOENT => None,
                    Err(errno) => return Err(errno.into()),
                }
            }
        };
        if let Some(node) = &node {
            self.place_inode(directory, name, node)?;
        }
        match node {
            Some(node) if !context.sees_below && self.is_covered(node.inode.ino) => {
                kernel(Fallback::CrossesMount)
            }
            node => Ok(node),
        }
    }

    /// Takes over an entry that the file system answered.
    pub(crate) fn learned(
        &self,
        directory: &Arc<Inode>,
        name: &OsStr,
        entry: &answer::Entry,
        mark: u64,
    ) -> Option<Node> {
        let inode = self.cache.learn(directory, name, entry, mark);
        let public = self.publish(directory, name, entry, inode.as_ref(), mark);
        Some(Node { inode: inode?, attr: Some(entry.attr), public })
    }

    /// The directory that one is in. As directories move, the name by which it was found last must lead there now.
    fn above(&self, context: &Context, request: &Request, directory: &Inode) -> Result<Arc<Inode>, Stop> {
        let known = directory.parent_name();
        let parent = known.as_ref().and_then(|known| self.cache.known(known.directory));
        let (Some(known), Some(parent)) = (known, parent) else { return kernel(Fallback::UnknownParent) };
        match self.child(context, request, &parent, &known.name) {
            Ok(Some(node))
                if node.inode.instance == directory.instance || mutant::leaves_out("walk: parent") =>
            {
                Ok(parent)
            }
            // It has moved: the kernel knows the way.
            Ok(_) => {
                directory.lost();
                kernel(Fallback::UnknownParent)
            }
            // Who may go up from it may not look it up.
            Err(_) => kernel(Fallback::UnknownParent),
        }
    }

    fn readlink(&self, request: &Request, inode: &Inode) -> Result<Vec<u8>, Stop> {
        let (reply, answer) = ReplyData::local();
        self.core.fs.ask().readlink(request, INodeNo(inode.ino), reply);
        let target = answer.wait()?;
        if target.is_empty() { fail(libc::ENOENT) } else { Ok(target) }
    }

    /// The target of a symbolic link, for the program.
    pub(crate) fn link_target(&self, request: &Request, inode: &Inode) -> Result<Vec<u8>, Stop> {
        match inode.kind {
            FileType::Symlink => self.readlink(request, inode),
            _ => fail(libc::EINVAL),
        }
    }

    /// Follows a link that stands before `rest`: the path that replaces both.
    fn follow(
        &self,
        context: &Context,
        request: &Request,
        directory: &Inode,
        link: &Inode,
        rest: &[u8],
        progress: &mut Progress,
    ) -> Result<Vec<u8>, Stop> {
        progress.followed += 1;
        if progress.followed > LINKS_MAX {
            return fail(libc::ELOOP);
        }
        self.may_follow(context, request, directory)?;
        let mut path = self.readlink(request, link)?;
        if path[0] == b'/' {
            return kernel(Fallback::LeavesMount);
        }
        if !rest.is_empty() {
            path.push(b'/');
            path.extend_from_slice(rest);
        }
        if path.len() > PATH_MAX {
            // The kernel limits a path and each link, but not what they make together.
            return kernel(Fallback::BadPath);
        }
        Ok(path)
    }

    /// Walks all components of `path` as directories, from `directory`.
    fn descend(
        &self,
        context: &Context,
        request: &Request,
        mut directory: Arc<Inode>,
        path: &[u8],
        progress: &mut Progress,
    ) -> Result<Arc<Inode>, Stop> {
        if path.first() == Some(&b'/') {
            return kernel(Fallback::LeavesMount);
        }
        let mut replaced: Vec<u8>;
        let mut path = path;
        while !path.is_empty() {
            self.may_search(context, request, &directory)?;
            let (component, rest) = split_first(path);
            match component {
                b"." => path = rest,
                b".." => {
                    // `handle_dots`
                    let above = match progress.trail.pop() {
                        Some(above) => above,
                        None if directory.ino == ROOT => return kernel(Fallback::LeavesMount),
                        None => self.above(context, request, &directory)?,
                    };
                    if !context.sees_below && self.is_covered(above.ino) {
                        return kernel(Fallback::CrossesMount);
                    }
                    self.publish_parent(&directory);
                    directory = above;
                    path = rest;
                }
                name => {
                    let Some(node) = self.child(context, request, &directory, OsStr::from_bytes(name))?
                    else {
                        return fail(libc::ENOENT);
                    };
                    match node.inode.kind {
                        FileType::Directory => {
                            progress.trail.push(std::mem::replace(&mut directory, node.inode));
                            path = rest;
                        }
                        FileType::Symlink => {
                            replaced =
                                self.follow(context, request, &directory, &node.inode, rest, progress)?;
                            path = &replaced;
                        }
                        _ => return fail(libc::ENOTDIR),
                    }
                }
            }
        }
        Ok(directory)
    }

    /// The inode that a path names; a last symbolic link is followed if `follow`, or if a slash comes after.
    pub(crate) fn resolve(
        &self,
        context: &Context,
        request: &Request,
        base: u64,
        path: &[u8],
        follow: bool,
    ) -> Result<Node, Stop> {
        match self.last(context, request, base, path, follow)? {
            Last::There(node) => Ok(node),
            Last::Missing(..) => fail(libc::ENOENT),
        }
    }

    /// What stands at the end of a path. Unlike for `resolve` nothing may stand there, in an existing
    /// directory.
    pub(crate) fn last(
        &self,
        context: &Context,
        request: &Request,
        base: u64,
        path: &[u8],
        follow: bool,
    ) -> Result<Last, Stop> {
        Ok(self.last_in(context, request, base, path, follow, &mut Progress::default())?.1)
    }

    /// As `last`, with the directory in which the last name was looked up; `None` if there was no name.
    fn last_in(
        &self,
        context: &Context,
        request: &Request,
        base: u64,
        path: &[u8],
        follow: bool,
        progress: &mut Progress,
    ) -> Result<(Option<Arc<Inode>>, Last), Stop> {
        if path.is_empty() {
            return kernel(Fallback::BadPath);
        }
        let mut directory = self.base(context, base)?;
        let mut replaced: Vec<u8>;
        let mut path = path;
        // A slash after a link's name counts for whatever the link leads to.
        let mut must_be_directory = false;
        loop {
            let (above, name, trailing_slash) = split_last(path);
            must_be_directory |= trailing_slash;
            if !is_name(name) {
                // `.`, `..`, or slashes only
                let inode = self.descend(context, request, directory, path, progress)?;
                return Ok((None, Last::There(Node { inode, attr: None, public: None })));
            }
            directory = self.descend(context, request, directory, above, progress)?;
            self.may_search(context, request, &directory)?;
            let name = OsStr::from_bytes(name);
            let Some(node) = self.child(context, request, &directory, name)? else {
                if must_be_directory {
                    return fail(libc::ENOENT);
                }
                return Ok((Some(directory.clone()), Last::Missing(directory, name.into())));
            };
            match node.inode.kind {
                FileType::Symlink if follow || must_be_directory => {
                    replaced = self.follow(context, request, &directory, &node.inode, b"", progress)?;
                    path = &replaced;
                }
                FileType::Directory => return Ok((Some(directory), Last::There(node))),
                _ if must_be_directory => return fail(libc::ENOTDIR),
                _ => return Ok((Some(directory), Last::There(node))),
            }
        }
    }

    /// Where a path leads. An empty one leads to the base.
    pub(crate) fn place(
        &self,
        context: &Context,
        request: &Request,
        base: u64,
        path: &[u8],
        follow: bool,
    ) -> Result<Place, Stop> {
        if path.is_empty() {
            let inode = self.base(context, base)?;
            return Ok(Place { base, through: Vec::new(), directory: None, inode: Some(inode) });
        }
        let mut progress = Progress::default();
        let (directory, last) = self.last_in(context, request, base, path, follow, &mut progress)?;
        let inode = match last {
            Last::There(node) => Some(node.inode),
            Last::Missing(..) => None,
        };
        Ok(Place { base, through: progress.trail, directory, inode })
    }

    /// The directory of a path's last component (`filename_parentat`). Paths that end in `.`, `..` or at the
    /// root are the kernel's to refuse.
    pub(crate) fn parent<'p>(
        &self,
        context: &Context,
        request: &Request,
        base: u64,
        path: &'p [u8],
    ) -> Result<Parent<'p>, Stop> {
        let (above, name, trailing_slash) = split_last(path);
        if !is_name(name) {
            return kernel(Fallback::KernelByChoice);
        }
        if name.len() > NAME_MAX {
            return kernel(Fallback::BadPath);
        }
        let base = self.base(context, base)?;
        let directory = self.descend(context, request, base, above, &mut Progress::default())?;
        self.may_search(context, request, &directory)?;
        Ok(Parent { directory, name: OsStr::from_bytes(name), trailing_slash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_split_at_runs_of_slashes() {
        for (path, first, rest) in
            [("a", "a", ""), ("a/b", "a", "b"), ("a//b/", "a", "b/"), ("a//", "a", ""), ("..", "..", "")]
        {
            assert_eq!(split_first(path.as_bytes()), (first.as_bytes(), rest.as_bytes()), "{path}");
        }
    }

    #[test]
    fn the_last_component_is_split_off_without_its_slashes() {
        for (path, above, last, slash) in [
            ("a", "", "a", false),
            ("a/", "", "a", true),
            ("a/b", "a/", "b", false),
            ("a//b//", "a//", "b", true),
            ("a/..", "a/", "..", false),
            (".", "", ".", false),
            ("", "", "", false),
            ("/", "", "", true),
        ] {
            assert_eq!(split_last(path.as_bytes()), (above.as_bytes(), last.as_bytes(), slash), "{path}");
        }
    }
}
