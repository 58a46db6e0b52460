//! Answers the system calls that the filter hands over: does what an ordinary user can do for real and records the
//! rest. Runs in PID 1, which sees the same files as the callers.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Uid};

use super::call::{Caller, Place};
use super::children::{drain, kill_the_rest, reap};
use super::filter;
use super::limits::{Limits, PERIOD, Watch};
use super::owners::{Device, Owner, Owners, capability_v2};
use super::record::{Inode, Recorder};
use super::request::{Counts, Ending};

const CAPABILITY: &[u8] = b"security.capability";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Longest attribute name, terminator excluded, and longest capability value (`linux/limits.h`, `capability.h`).
const NAME_LIMIT: usize = 255;
const CAPABILITY_LIMIT: u64 = 24;

/// How a call is answered.
enum Answer {
    /// Success, without the kernel doing it.
    Done,
    /// The kernel may do it.
    Continue,
}

/// The listener of the filter and the records.
pub(super) struct Supervisor {
    listener: OwnedFd,
    recorder: Recorder,
    counts: Counts,
    watch: Watch,
}

impl Supervisor {
    pub(super) fn new(listener: OwnedFd, recorder: Recorder, limits: Limits) -> Self {
        // Lets the kernel switch straight between caller and supervisor on one CPU (Linux 6.6); only speed.
        const SYNC_WAKE_UP: u64 = 1;
        #[expect(unsafe_code, reason = "ioctl on the seccomp listener")]
        // SAFETY: this request takes an integer and touches no memory.
        unsafe {
            libc::ioctl(
                listener.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                SYNC_WAKE_UP,
            )
        };
        Self {
            listener,
            recorder,
            counts: Counts::default(),
            watch: Watch::new(limits),
        }
    }

    /// Answers calls and reaps until process `command` has ended or a limit is passed; then kills and reaps the rest.
    pub(super) fn serve(&mut self, command: Pid, children: &OwnedFd) -> io::Result<Ending> {
        let period = Timespec::try_from(PERIOD).map_err(io::Error::other)?;
        loop {
            if let Some(exceeded) = self.watch.exceeded()? {
                kill_the_rest()?;
                return Ok(Ending::Exceeded(exceeded));
            }
            let (mut called, mut ended) = (false, false);
            {
                let mut polled = [
                    PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(children.as_fd(), PollFlags::IN),
                ];
                match poll(&mut polled, Some(&period)) {
                    Err(Errno::INTR) => continue,
                    other => other?,
                };
                called |= polled[0].revents().contains(PollFlags::IN);
                ended |= polled[1].revents().contains(PollFlags::IN);
            }
            if called {
                self.answer_next()?;
            }
            if ended {
                drain(children);
                if let Some(ending) = reap(command)? {
                    kill_the_rest()?;
                    return Ok(ending);
                }
            }
        }
    }

    /// The owners of all paths and how much work they were.
    pub(super) fn finish(self) -> io::Result<(Owners, Counts)> {
        Ok((self.recorder.collect()?, self.counts))
    }

    fn answer_next(&mut self) -> io::Result<()> {
        #[expect(unsafe_code, reason = "the kernel wants the structure zeroed")]
        // SAFETY: the structure consists of integers.
        let mut call: libc::seccomp_notif = unsafe { MaybeUninit::zeroed().assume_init() };
        match self.control(libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) {
            Ok(()) => {}
            // The caller was killed before its call was read.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut response = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match self.answer(&call) {
            Ok(Answer::Done) => {}
            Ok(Answer::Continue) => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            Err(error) => response.error = -error.raw_os_error(),
        }
        match self.control(libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(()),
        }
    }

    fn control<T>(&self, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
        #[expect(unsafe_code, reason = "ioctl on the seccomp listener")]
        // SAFETY: each caller pairs the request with the structure that seccomp_unotify(2) names for it.
        let result = unsafe { libc::ioctl(self.listener.as_raw_fd(), request, std::ptr::from_mut(argument)) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Whether the caller still waits: otherwise its process id may by now be another process, and what was read
    /// from `/proc` with it not what the caller meant.
    fn still_waiting(&self, id: u64) -> Result<(), Errno> {
        let mut id = id;
        self.control(libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id)
            .map_err(|_| Errno::INTR)
    }

    fn answer(&mut self, call: &libc::seccomp_notif) -> Result<Answer, Errno> {
        let caller = Caller { pid: call.pid };
        let [a, b, c, d, e, _] = call.data.args;
        let text = |address| caller.string(address);
        match i64::from(call.data.nr) {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chown => self.change_owner(call, &Place::path(text(a)?, true), b, c),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_lchown => self.change_owner(call, &Place::path(text(a)?, false), b, c),
            libc::SYS_fchown => self.change_owner(call, &Place::descriptor(a), b, c),
            libc::SYS_fchownat => self.change_owner(call, &Place::at(a, text(b)?, e), c, d),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mknod => self.make_node(call, &Place::path(text(a)?, false), b, c),
            libc::SYS_mknodat => self.make_node(call, &Place::at(a, text(b)?, 0), c, d),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => {
                let places = (Place::path(text(a)?, false), Place::path(text(b)?, false));
                self.rename(call, &places.0, &places.1)
            }
            // Flags: 1 keeps the target, so there is nothing to inherit from; 2 exchanges; 4 is overlayfs's.
            libc::SYS_renameat2 if e != 0 => Ok(Answer::Continue),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                let nofollow = libc::AT_SYMLINK_NOFOLLOW as u64;
                let places = (Place::at(a, text(b)?, nofollow), Place::at(c, text(d)?, nofollow));
                self.rename(call, &places.0, &places.1)
            }
            libc::SYS_setxattr => self.set_attribute(call, || Ok(Place::path(text(a)?, true)), b, (c, d)),
            libc::SYS_lsetxattr => self.set_attribute(call, || Ok(Place::path(text(a)?, false)), b, (c, d)),
            libc::SYS_fsetxattr => self.set_attribute(call, || Ok(Place::descriptor(a)), b, (c, d)),
            filter::SYS_SETXATTRAT => {
                // struct xattr_args: value, size and flags; linux/xattr.h.
                let arguments = caller.bytes(e, 16)?;
                let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| arguments[at + index]));
                let value = (word(0), word(8) & 0xffff_ffff);
                self.set_attribute(call, || Ok(Place::at(a, text(b)?, c)), d, value)
            }
            libc::SYS_removexattr => self.remove_attribute(call, || Ok(Place::path(text(a)?, true)), b),
            libc::SYS_lremovexattr => self.remove_attribute(call, || Ok(Place::path(text(a)?, false)), b),
            libc::SYS_fremovexattr => self.remove_attribute(call, || Ok(Place::descriptor(a)), b),
            filter::SYS_REMOVEXATTRAT => self.remove_attribute(call, || Ok(Place::at(a, text(b)?, c)), d),
            // setuid and its relatives: there is no other id to become, and the caller stays what it is. The same
            // for setfsuid, whose result is the previous id: 0.
            _ => {
                self.counts.identity += 1;
                Ok(Answer::Done)
            }
        }
    }

    fn inode(&self, call: &libc::seccomp_notif, place: &Place) -> Result<Inode, Errno> {
        let inode = Inode::new(Caller { pid: call.pid }.open(place)?)?;
        self.still_waiting(call.id)?;
        Ok(inode)
    }

    /// Gives the file to the one id that exists, for the kernel's checks and side effects (it clears set-id bits and
    /// capabilities), and records who it was meant for.
    fn change_owner(
        &mut self,
        call: &libc::seccomp_notif,
        place: &Place,
        user: u64,
        group: u64,
    ) -> Result<Answer, Errno> {
        const KEEP: u32 = u32::MAX;
        self.counts.chown += 1;
        let (user, group) = (user as u32, group as u32);
        let inode = self.inode(call, place)?;
        let uid = (user != KEEP).then_some(Uid::ROOT);
        let gid = (group != KEEP).then_some(Gid::ROOT);
        chownat(&inode.descriptor, "", uid, gid, AtFlags::EMPTY_PATH)?;
        if self.recorder.covers(&inode) {
            let before = self.recorder.read(&inode)?;
            let mut owner = before.clone();
            owner.uid = if user == KEEP { owner.uid } else { user };
            owner.gid = if group == KEEP { owner.gid } else { group };
            if inode.is_file() {
                owner.capability = None;
            }
            if owner != before {
                self.recorder.write(inode, owner)?;
            }
        }
        Ok(Answer::Done)
    }

    /// Makes an empty file in place of a device node.
    fn make_node(
        &mut self,
        call: &libc::seccomp_notif,
        place: &Place,
        mode: u64,
        device: u64,
    ) -> Result<Answer, Errno> {
        self.counts.mknod += 1;
        let kind = FileType::from_raw_mode(mode as u32);
        let (major, minor) = (libc::major(device), libc::minor(device));
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        if !is_device || (major, minor) == (0, 0) {
            // The kernel lets anybody make the others; character device 0:0 is a whiteout.
            return Ok(Answer::Continue);
        }
        let caller = Caller { pid: call.pid };
        let (folder, name) = place.split()?;
        let folder = caller.open(&folder)?;
        let mode = mode as u32 & 0o7777 & !caller.umask();
        self.still_waiting(call.id)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, name.as_slice(), flags, Mode::RUSR)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        let inode = Inode::new(openat(
            &folder,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?)?;
        if self.recorder.covers(&inode) {
            let device = Some(Device {
                block: kind == FileType::BlockDevice,
                major,
                minor,
            });
            self.recorder.write(
                inode,
                Owner {
                    device,
                    ..Owner::default()
                },
            )?;
        }
        Ok(Answer::Done)
    }

    /// Hands the owner of a replaced file on to the file that replaces it. Programs that rewrite a file (useradd,
    /// systemd-sysusers, sed -i) copy the owner that they see, and they see 0:0 everywhere. dpkg is the exception:
    /// its new file has the owner that the package says.
    fn rename(&mut self, call: &libc::seccomp_notif, from: &Place, to: &Place) -> Result<Answer, Errno> {
        self.counts.rename += 1;
        if from.path.ends_with(b".dpkg-new") {
            return Ok(Answer::Continue);
        }
        // What is wrong with the places, the kernel finds itself.
        let Ok(replaced) = self.inode(call, to) else {
            return Ok(Answer::Continue);
        };
        if !replaced.is_file() || !self.recorder.covers(&replaced) {
            return Ok(Answer::Continue);
        }
        let old = self.recorder.read(&replaced)?;
        if (old.uid, old.gid) == (0, 0) {
            return Ok(Answer::Continue);
        }
        let Ok(new) = self.inode(call, from) else {
            return Ok(Answer::Continue);
        };
        if new.is_file() && self.recorder.covers(&new) {
            let owner = self.recorder.read(&new)?;
            if (owner.uid, owner.gid) == (0, 0) {
                self.recorder.write(
                    new,
                    Owner {
                        uid: old.uid,
                        gid: old.gid,
                        ..owner
                    },
                )?;
            }
        }
        Ok(Answer::Continue)
    }

    fn set_attribute(
        &mut self,
        call: &libc::seccomp_notif,
        place: impl FnOnce() -> Result<Place, Errno>,
        name: u64,
        (value, size): (u64, u64),
    ) -> Result<Answer, Errno> {
        self.counts.xattr += 1;
        let caller = Caller { pid: call.pid };
        let name = caller.string(name)?;
        if name.len() > NAME_LIMIT {
            return Err(Errno::RANGE);
        }
        if name.starts_with(ACL_PREFIX) {
            // The image's squashfs holds no access control lists: say so now.
            return Err(Errno::OPNOTSUPP);
        }
        if name != CAPABILITY {
            return Ok(Answer::Continue);
        }
        if size > CAPABILITY_LIMIT {
            return Err(Errno::INVAL);
        }
        let value = capability_v2(&caller.bytes(value, size as usize)?).ok_or(Errno::INVAL)?;
        let inode = self.inode(call, &place()?)?;
        self.set_capability(inode, Some(value))
    }

    fn remove_attribute(
        &mut self,
        call: &libc::seccomp_notif,
        place: impl FnOnce() -> Result<Place, Errno>,
        name: u64,
    ) -> Result<Answer, Errno> {
        self.counts.xattr += 1;
        if (Caller { pid: call.pid }).string(name)? != CAPABILITY {
            return Ok(Answer::Continue);
        }
        let inode = self.inode(call, &place()?)?;
        self.set_capability(inode, None)
    }

    fn set_capability(&mut self, inode: Inode, capability: Option<Vec<u8>>) -> Result<Answer, Errno> {
        if self.recorder.covers(&inode) {
            let before = self.recorder.read(&inode)?;
            if capability.is_none() && before.capability.is_none() {
                return Err(Errno::NODATA);
            }
            self.recorder.write(inode, Owner { capability, ..before })?;
        }
        Ok(Answer::Done)
    }
}
