//! Reads .deb files (deb(5)): an `ar` archive of `debian-binary`, `control.tar*` and `data.tar*`. Both tarballs are
//! streamed; every size and name is checked, because a lock vouches for the bytes but not for what they do here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::control::Paragraph;
use super::value::TreePath;

/// Most bytes of all control files of one package.
const CONTROL_LIMIT: u64 = 64 << 20;
/// Most bytes of one file.
const FILE_LIMIT: u64 = 4 << 30;
/// Most bytes of one unpacked package.
const DATA_LIMIT: u64 = 16 << 30;
/// Most members of one package.
const MEMBER_LIMIT: usize = 500_000;
/// Longest name or link target (PATH_MAX).
const NAME_LIMIT: u64 = 4096;
/// Largest dictionary an xz stream may ask for, in KiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;
const BLOCK: usize = 512;

/// An opened .deb: its control files are read, its data is not.
#[derive(Debug)]
pub struct Deb {
    path: PathBuf,
    /// `control`.
    pub paragraph: Paragraph,
    /// The control files by name, `control` and `./` excluded.
    pub control: BTreeMap<String, ControlFile>,
    data: ArMember,
}

/// A file of `control.tar`: a maintainer script or a list.
#[derive(Debug, Clone)]
pub struct ControlFile {
    /// Permission bits.
    pub mode: u16,
    /// Content.
    pub bytes: Vec<u8>,
}

/// One member of `data.tar`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its path as shipped: not yet merged into `/usr`.
    pub path: TreePath,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits, `0o7777` at most.
    pub mode: u16,
    /// Numeric owner and its name.
    pub user: (u32, Vec<u8>),
    /// Numeric group and its name.
    pub group: (u32, Vec<u8>),
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A folder.
    Directory,
    /// A file of so many bytes.
    File(u64),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// Another name of an earlier file of the same package.
    Hardlink(TreePath),
}

#[derive(Debug, Clone, Copy)]
struct ArMember {
    offset: u64,
    size: u64,
    compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
}

impl Deb {
    /// Opens the .deb at `path` and reads its control files.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let (control, data) = members(&mut file)?;
        let mut files = BTreeMap::new();
        let mut left = CONTROL_LIMIT;
        each_member(stream(&mut file, control)?, "control.tar", |member, content| {
            let MemberKind::File(size) = member.kind else {
                return Ok(());
            };
            let (Some(name), 1) = (member.path.name(), member.path.parts().len()) else {
                bail!("control.tar: `{}` is not at the top", member.path);
            };
            left = left.checked_sub(size).context("control.tar: too large")?;
            let mut bytes = Vec::new();
            content
                .read_to_end(&mut bytes)
                .with_context(|| format!("control.tar: {}", member.path))?;
            let name = std::str::from_utf8(name).context("control.tar: a name is not UTF-8")?;
            files.insert(
                name.to_owned(),
                ControlFile {
                    mode: member.mode,
                    bytes,
                },
            );
            Ok(())
        })?;
        let text = files.remove("control").context("control.tar: no `control`")?;
        let paragraph = Paragraph::parse(&text.bytes).context("control.tar: control")?;
        Ok(Self {
            path: path.to_owned(),
            paragraph,
            control: files,
            data,
        })
    }

    /// Bytes of the packed data.
    pub fn size(&self) -> u64 {
        self.data.size
    }

    /// Hands every member of `data.tar` and its content to `visit`, in the archive's order. Content that `visit`
    /// leaves unread is skipped.
    pub fn each_file(&self, visit: impl FnMut(Member, &mut dyn Read) -> Result<()>) -> Result<()> {
        let mut file = File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        each_member(stream(&mut file, self.data)?, "data.tar", visit)
    }
}

/// Finds the two tarballs. deb(5): `debian-binary` first; members whose names begin with `_` are not ours.
fn members(file: &mut File) -> Result<(ArMember, ArMember)> {
    let length = file.metadata()?.len();
    let mut magic = [0; 8];
    file.read_exact(&mut magic).context("not a .deb: too short")?;
    if &magic != b"!<arch>\n" {
        bail!("not a .deb: no ar magic");
    }
    let (mut offset, mut control, mut first) = (8, None, true);
    loop {
        let mut header = [0; 60];
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut header).context("truncated: no data.tar")?;
        if &header[58..] != b"`\n" {
            bail!("bad ar header at byte {offset}");
        }
        let name = String::from_utf8_lossy(&header[..16]);
        let name = name.trim_end().trim_end_matches('/');
        let size = std::str::from_utf8(&header[48..58])
            .ok()
            .and_then(|text| text.trim_end().parse::<u64>().ok());
        let size = size.with_context(|| format!("ar member `{name}`: bad size"))?;
        let start = offset + 60;
        let end = start.checked_add(size).filter(|end| *end <= length);
        let end =
            end.with_context(|| format!("ar member `{name}`: {size} bytes claimed, the file is shorter"))?;
        let found = |prefix: &str| -> Option<Result<ArMember>> {
            let suffix = name.strip_prefix(prefix)?;
            let compression = match suffix {
                "" => Compression::None,
                ".gz" => Compression::Gzip,
                ".xz" => Compression::Xz,
                ".zst" => Compression::Zstd,
                _ => return Some(Err(anyhow::anyhow!("ar member `{name}`: unknown compression"))),
            };
            Some(Ok(ArMember {
                offset: start,
                size,
                compression,
            }))
        };
        if first {
            let mut version = Vec::new();
            file.take(size.min(64)).read_to_end(&mut version)?;
            if name != "debian-binary" || !version.starts_with(b"2.") {
                bail!("not a .deb of format 2");
            }
        } else if let (Some(member), None) = (found("control.tar"), control) {
            control = Some(member?);
        } else if let Some(member) = found("data.tar") {
            return Ok((control.context("no control.tar before data.tar")?, member?));
        } else if !name.starts_with('_') {
            bail!("unexpected ar member `{name}`");
        }
        first = false;
        offset = end + (size & 1);
    }
}

fn stream<'a>(file: &'a mut File, member: ArMember) -> Result<Box<dyn Read + 'a>> {
    file.seek(SeekFrom::Start(member.offset))?;
    let raw: BufReader<Take<&mut File>> = BufReader::with_capacity(128 << 10, file.take(member.size));
    Ok(match member.compression {
        Compression::None => Box::new(raw),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(raw, true, XZ_MEMORY_KIB)),
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(raw)?),
    })
}

/// Walks a tar stream (tar(5), ustar and GNU long names; what dpkg itself understands).
fn each_member(
    mut stream: impl Read,
    archive: &str,
    mut visit: impl FnMut(Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut seen = Seen::default();
    let (mut long_name, mut long_link) = (None, None);
    let mut left = DATA_LIMIT;
    loop {
        let mut block = [0; BLOCK];
        stream
            .read_exact(&mut block)
            .with_context(|| format!("{archive}: truncated"))?;
        if block.iter().all(|byte| *byte == 0) {
            // Reading to the end lets the decompressor check its checksum and find a cut-off stream.
            io::copy(&mut stream.take(DATA_LIMIT), &mut io::sink())
                .with_context(|| format!("{archive}: trailer"))?;
            return Ok(());
        }
        let header = tar::Header::from_byte_slice(&block);
        let shown =
            String::from_utf8_lossy(long_name.as_deref().unwrap_or(&header.path_bytes())).into_owned();
        let place = || format!("{archive}: member `{shown}`");
        check_sum(&block, header).with_context(place)?;
        let size = header.entry_size().with_context(place)?;
        left = left
            .checked_sub(size)
            .with_context(|| format!("{}: {size} bytes are too many", place()))?;
        let mut content = (&mut stream).take(size);
        match header.entry_type().as_byte() {
            b'L' => long_name = Some(long_text(&mut content, size).with_context(place)?),
            b'K' => long_link = Some(long_text(&mut content, size).with_context(place)?),
            _ => {
                let name = long_name
                    .take()
                    .unwrap_or_else(|| header.path_bytes().into_owned());
                let link = long_link
                    .take()
                    .or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
                let member = member(header, &name, link, size).with_context(place)?;
                seen.check(&member).with_context(place)?;
                visit(member, &mut content).with_context(place)?;
            }
        }
        // What `visit` did not read, and the padding. A short stream shows as a missing rest.
        let rest = content.limit();
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let skipped =
            io::copy(&mut (&mut stream).take(rest + padding), &mut io::sink()).with_context(place)?;
        if skipped != rest + padding {
            bail!("{}: truncated", place());
        }
    }
}

fn member(header: &tar::Header, name: &[u8], link: Option<Vec<u8>>, size: u64) -> Result<Member> {
    let path = relative(name)?;
    let link = link.unwrap_or_default();
    let kind = match header.entry_type() {
        tar::EntryType::Directory => MemberKind::Directory,
        tar::EntryType::Regular | tar::EntryType::Continuous if name.ends_with(b"/") => MemberKind::Directory,
        tar::EntryType::Regular | tar::EntryType::Continuous if size > FILE_LIMIT => {
            bail!("{size} bytes are too many")
        }
        tar::EntryType::Regular | tar::EntryType::Continuous => MemberKind::File(size),
        tar::EntryType::Symlink if link.is_empty() || link.contains(&0) => {
            bail!("a symbolic link without a target")
        }
        tar::EntryType::Symlink => MemberKind::Symlink(link),
        tar::EntryType::Link => MemberKind::Hardlink(relative(&link)?),
        tar::EntryType::Char | tar::EntryType::Block => bail!("a device node"),
        other => bail!(
            "a member of type {:?}, which packages can't have",
            char::from(other.as_byte())
        ),
    };
    if path.parts().is_empty() && kind != MemberKind::Directory {
        bail!("the root is not a folder");
    }
    let narrow = |id: u64| u32::try_from(id).context("an owner beyond 32 bits");
    Ok(Member {
        path,
        kind,
        mode: (header.mode()? & 0o7777) as u16,
        user: (
            narrow(header.uid()?)?,
            header.username_bytes().unwrap_or_default().to_vec(),
        ),
        group: (
            narrow(header.gid()?)?,
            header.groupname_bytes().unwrap_or_default().to_vec(),
        ),
    })
}

fn relative(name: &[u8]) -> Result<TreePath> {
    if name.starts_with(b"/") {
        bail!("`{}` is absolute", String::from_utf8_lossy(name));
    }
    if name.is_empty() {
        bail!("an empty name");
    }
    TreePath::parse(name)
}

/// The sum of all header bytes with the checksum field read as spaces (ustar).
fn check_sum(block: &[u8; BLOCK], header: &tar::Header) -> Result<()> {
    let sum = |range: &[u8]| range.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    if header.cksum()? != sum(&block[..148]) + 8 * 32 + sum(&block[156..]) {
        bail!("bad header checksum");
    }
    Ok(())
}

fn long_text(content: &mut impl Read, size: u64) -> Result<Vec<u8>> {
    if size > NAME_LIMIT {
        bail!("a name of {size} bytes");
    }
    let mut text = Vec::new();
    content.read_to_end(&mut text)?;
    if text.last() == Some(&0) {
        text.pop();
    }
    Ok(text)
}

/// What one archive has named so far: no name twice, nothing below a link or file of its own, hard links only to
/// its own files.
#[derive(Default)]
struct Seen {
    directories: BTreeSet<TreePath>,
    files: BTreeSet<TreePath>,
    links: BTreeSet<TreePath>,
}

impl Seen {
    fn check(&mut self, member: &Member) -> Result<()> {
        let path = &member.path;
        if self.directories.len() + self.files.len() + self.links.len() >= MEMBER_LIMIT {
            bail!("more than {MEMBER_LIMIT} members");
        }
        let mut above = path.parent();
        while let Some(folder) = above {
            if self.files.contains(&folder) || self.links.contains(&folder) {
                bail!("it lies below {folder}, which the archive made a file or link");
            }
            above = folder.parent();
        }
        let new = match &member.kind {
            MemberKind::Directory => self.directories.insert(path.clone()),
            MemberKind::Symlink(_) => self.links.insert(path.clone()),
            MemberKind::File(_) => self.files.insert(path.clone()),
            MemberKind::Hardlink(target) if self.files.contains(target) => self.files.insert(path.clone()),
            MemberKind::Hardlink(target) => {
                bail!("a hard link to {target}, which is no earlier file of the package")
            }
        };
        let clash = match &member.kind {
            MemberKind::Directory => self.files.contains(path) || self.links.contains(path),
            MemberKind::Symlink(_) => self.files.contains(path) || self.directories.contains(path),
            _ => self.links.contains(path) || self.directories.contains(path),
        };
        if !new || clash {
            bail!("it occurs twice");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
