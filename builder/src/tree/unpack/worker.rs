//! Writes what one package ships.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::ground::{Ground, Turn};
use super::{MERGED, Origin, Outcome, Stamp, merged};
use crate::digest::{Digest, Hasher};
use crate::tree::deb::{Deb, Member, MemberKind};
use crate::tree::value::TreePath;

const CHUNK: usize = 1 << 20;

/// Unpacks one package.
pub(super) struct Worker<'a> {
    ground: &'a Ground<'a>,
    index: usize,
    outcome: Outcome,
    /// Where this package's files were written, for its hard links; `None` where they were not.
    written: BTreeMap<TreePath, Option<PathBuf>>,
    buffer: Vec<u8>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(ground: &'a Ground<'a>, index: usize) -> Self {
        Self {
            ground,
            index,
            outcome: Outcome::default(),
            written: BTreeMap::new(),
            buffer: vec![0; CHUNK],
        }
    }

    pub(super) fn run(mut self, deb: &Deb) -> Result<Outcome> {
        deb.each_file(|member, content| self.member(member, content))?;
        Ok(self.outcome)
    }

    fn member(&mut self, member: Member, content: &mut dyn Read) -> Result<()> {
        self.outcome.list.push(member.path.clone());
        let path = merged(&member.path);
        let stamp = Stamp {
            inode: 0,
            changed: (0, 0),
        };
        let mut origin = Origin {
            user: member.user,
            group: member.group,
            file: None,
            stamp,
        };
        if member.kind == MemberKind::Directory {
            return self
                .ground
                .claim_directory(self.index, &path, member.mode, origin);
        }
        if self.is_merged_link(&member.path, &member.kind)? {
            return Ok(());
        }
        let late = match self.ground.claim_leaf(self.index, &path)? {
            Turn::Straight if (self.ground.options.skip)(&path) => None,
            Turn::Straight => Some(path.under(self.ground.root)),
            Turn::Late => {
                let beside = self.beside(&path);
                self.outcome.late.push((path.clone(), beside.clone()));
                Some(beside)
            }
            Turn::Skip => None,
        };
        let Some(place) = late else {
            self.written.insert(path, None);
            return Ok(());
        };
        match member.kind {
            MemberKind::Directory => {}
            MemberKind::Symlink(target) => {
                use std::os::unix::ffi::OsStrExt;
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), &place)?;
            }
            MemberKind::Hardlink(target) => {
                let Some(Some(existing)) = self.written.get(&merged(&target)) else {
                    bail!("{path} is a hard link to {target}, which was left out or replaced");
                };
                fs::hard_link(existing, &place)?;
                let target = merged(&target);
                let same = self.outcome.origins.iter().find(|(path, _)| *path == target);
                origin.file = same.and_then(|(_, origin)| origin.file);
            }
            MemberKind::File(size) => {
                let digest = self.write(&place, member.mode, size, content)?;
                origin.file = Some((size, digest));
                self.note_conffile(&member.path, &place)?;
                self.written.insert(path.clone(), Some(place.clone()));
            }
        }
        origin.stamp = Stamp::of(&fs::symlink_metadata(&place)?);
        self.outcome.origins.push((path, origin));
        Ok(())
    }

    /// base-files ships the links of merged /usr, which stand already.
    fn is_merged_link(&self, path: &TreePath, kind: &MemberKind) -> Result<bool> {
        let [first] = path.parts() else { return Ok(false) };
        if !MERGED.iter().any(|name| name.as_bytes() == first.as_slice()) {
            return Ok(false);
        }
        match kind {
            MemberKind::Symlink(target)
                if TreePath::parse(target).is_ok_and(|target| target == merged(path)) =>
            {
                Ok(true)
            }
            _ => bail!("{path} must be a link into /usr"),
        }
    }

    fn beside(&self, path: &TreePath) -> PathBuf {
        let name = format!(".kimage-{}-{}", self.index, Digest::of(&path.to_bytes()).short());
        path.parent()
            .unwrap_or_default()
            .join(name.as_bytes())
            .under(self.ground.root)
    }

    fn write(&mut self, place: &Path, mode: u16, size: u64, content: &mut dyn Read) -> Result<Digest> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(place)?;
        let mut hasher = Hasher::new();
        let mut left = size;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            content
                .read_exact(&mut self.buffer[..step])
                .context("truncated")?;
            hasher.update(&self.buffer[..step]);
            file.write_all(&self.buffer[..step])?;
            left -= step as u64;
        }
        self.settle(&file, mode)?;
        Ok(hasher.finish())
    }

    fn settle(&self, file: &File, mode: u16) -> Result<()> {
        file.set_permissions(Permissions::from_mode(u32::from(mode)))?;
        // Python's byte code names its source's modification time: with the time that the image will show it stays valid.
        let time =
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(self.ground.options.mtime));
        file.set_modified(time)?;
        Ok(())
    }

    fn note_conffile(&mut self, path: &TreePath, place: &Path) -> Result<()> {
        if self.ground.packages[self.index].conffiles.contains(path) {
            use md5::Digest as _;
            let sum = md5::Md5::digest(fs::read(place)?);
            self.outcome
                .conffiles
                .insert(path.clone(), crate::digest::hex(&sum));
        }
        Ok(())
    }
}
