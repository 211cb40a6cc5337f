//! The disk as a file system of the kernel. Holds no rule of the disk.
//!
//! The kernel keeps nothing: files are read and written directly, and names and attributes are asked for each time. So
//! after a power cut nobody is shown what was there before it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::io::Errno;

use super::control::Disk;
use super::model::{Attributes, Changes, HandleId, NodeId, PAGE_LEN, Status};

/// Threads that answer the kernel: a slow sync holds one of them.
const THREADS: usize = 4;
/// How long the kernel may believe an answer.
const TTL: Duration = Duration::ZERO;
/// Longest name.
const NAME_LEN_MAX: u32 = 255;
/// The unit of the disk, as the kernel wants it.
const BLOCK_LEN: u32 = 4096;

const _: () = assert!(BLOCK_LEN as usize == PAGE_LEN);

/// `fallocate` that leaves the length as it is.
const KEEP_SIZE: i32 = 1;

/// Mounts a disk.
///
/// # Errors
/// The kernel has no FUSE, or lets nobody mount here.
pub(crate) fn mount(disk: Arc<Disk>, at: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("cutdisk".to_owned()), MountOption::NoDev, MountOption::NoSuid];
    config.n_threads = Some(THREADS);
    fuser::spawn_mount(Mounted(disk), at, &config)
}

struct Mounted(Arc<Disk>);

fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error.raw_os_error())
}

fn handle(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}

fn node(node: INodeNo) -> NodeId {
    NodeId(node.0)
}

fn attributes_of(status: &Status) -> FileAttr {
    let of = status.attributes;
    FileAttr {
        ino: INodeNo(status.node.0),
        size: status.len,
        blocks: status.pages * (PAGE_LEN / 512) as u64,
        atime: of.accessed,
        mtime: of.modified,
        ctime: of.changed,
        crtime: of.changed,
        kind: kind(status.is_folder),
        perm: of.permissions,
        nlink: status.links,
        uid: of.user,
        gid: of.group,
        rdev: 0,
        blksize: BLOCK_LEN,
        flags: 0,
    }
}

fn kind(is_folder: bool) -> FileType {
    if is_folder { FileType::Directory } else { FileType::RegularFile }
}

fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).expect("12 bits fit")
}

/// What a new node of a request gets.
fn new_attributes(request: &Request, mode: u32) -> Attributes {
    let now = SystemTime::now();
    Attributes {
        permissions: permissions(mode),
        user: request.uid(),
        group: request.gid(),
        accessed: now,
        modified: now,
        changed: now,
    }
}

fn empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn entry(reply: ReplyEntry, result: Result<Status, Errno>) {
    match result {
        Ok(status) => reply.entry(&TTL, &attributes_of(&status), Generation(0)),
        Err(error) => reply.error(errno(error)),
    }
}

fn attributes(reply: ReplyAttr, result: Result<Status, Errno>) {
    match result {
        Ok(status) => reply.attr(&TTL, &attributes_of(&status)),
        Err(error) => reply.error(errno(error)),
    }
}

fn opened(reply: ReplyOpen, result: Result<HandleId, Errno>, flags: FopenFlags) {
    match result {
        Ok(handle) => reply.opened(FileHandle(handle.0), flags),
        Err(error) => reply.error(errno(error)),
    }
}

fn named(name: &OsStr) -> Result<&OsStr, Errno> {
    if name.len() > NAME_LEN_MAX as usize { Err(Errno::NAMETOOLONG) } else { Ok(name) }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.0.lock().lookup(node(parent), name));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attributes(reply, self.0.lock().status(node(ino)));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        user: Option<u32>,
        group: Option<u32>,
        len: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = SystemTime::now();
        let time = |time| match time {
            TimeOrNow::SpecificTime(time) => time,
            TimeOrNow::Now => now,
        };
        let (accessed, modified) = (accessed.map(time), modified.map(time));
        let changes = Changes { permissions: mode.map(permissions), user, group, len, accessed, modified };
        attributes(reply, self.0.lock().change(node(ino), changes, now));
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let attributes = new_attributes(request, mode & !umask);
        entry(reply, named(name).and_then(|name| self.0.lock().make_folder((node(parent), name), attributes)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().unlink((node(parent), name), SystemTime::now()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.0.lock().remove_folder((node(parent), name), SystemTime::now()));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return empty(reply, Err(Errno::INVAL));
        }
        let may_replace = flags.is_empty();
        let (from, to) = ((node(parent), name), (node(new_parent), new_name));
        let renamed = named(new_name).and_then(|_| self.0.lock().rename(from, to, may_replace, SystemTime::now()));
        empty(reply, renamed);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, named(name).and_then(|name| self.0.lock().link(node(ino), (node(parent), name))));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(reply, self.0.lock().open(node(ino)), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let attributes = new_attributes(request, mode & !umask);
        let mut model = self.0.lock();
        let created = named(name).and_then(|name| model.create((node(parent), name), attributes));
        let created = created.and_then(|status| Ok((status, model.open(status.node)?)));
        drop(model);
        match created {
            Ok((status, handle)) => {
                let (attributes, flags) = (attributes_of(&status), FopenFlags::FOPEN_DIRECT_IO);
                reply.created(&TTL, &attributes, Generation(0), FileHandle(handle.0), flags);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.lock().read(handle(fh), offset, size as usize);
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.lock().write(handle(fh), offset, data, SystemTime::now());
        match written {
            Ok(len) => reply.written(u32::try_from(len).expect("no more than was asked")),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let is_on = self.0.lock().is_on();
        empty(reply, if is_on { Ok(()) } else { Err(Errno::IO) });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.lock().close(handle(fh));
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.0.sync(handle(fh)));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        opened(reply, self.0.lock().open(node(ino)), FopenFlags::empty());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, name) in [".", ".."].into_iter().enumerate().skip(from) {
            if reply.add(ino, index as u64 + 1, FileType::Directory, name) {
                return reply.ok();
            }
        }
        let mut model = self.0.lock();
        match model.names(handle(fh), from.saturating_sub(2)) {
            Ok(names) => {
                let first = offset.max(2) + 1;
                for (next, name) in (first..).zip(names) {
                    if reply.add(INodeNo(name.node.0), next, kind(name.is_folder), &name.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.lock().close(handle(fh));
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.0.sync(handle(fh)));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let room = self.0.lock().room();
        match room {
            Ok((used, free)) => {
                reply.statfs(used + free, free, free, 1 << 32, 1 << 32, BLOCK_LEN, NAME_LEN_MAX, BLOCK_LEN);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn access(&self, _: &Request, ino: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        empty(reply, self.0.lock().status(node(ino)).map(drop));
    }

    fn fallocate(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, len: u64, mode: i32, reply: ReplyEmpty) {
        // Room is not set aside, for nothing stands on it.
        match mode {
            KEEP_SIZE => reply.ok(),
            0 => empty(reply, self.0.lock().extend(handle(fh), offset.saturating_add(len))),
            _ => empty(reply, Err(Errno::OPNOTSUPP)),
        }
    }
}
