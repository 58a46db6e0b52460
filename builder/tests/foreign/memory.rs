//! Files without a disk, for readers that want a path or a descriptor.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, memfd_create};

/// A file in memory.
pub(crate) struct MemoryFile(pub(crate) File);

impl MemoryFile {
    /// A file with these bytes.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let file = File::from(memfd_create("foreign", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(bytes, 0).unwrap();
        Self(file)
    }

    /// A path to it, good while it lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

/// Writes the right checksum into each header of a tar, up to the block of zeros that ends it: chance never finds it.
pub(crate) fn mend_tar_checksums(tar: &mut [u8]) {
    let mut rest = tar;
    while rest.len() >= 512 {
        let (header, behind) = rest.split_at_mut(512);
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..135]).unwrap_or_default();
        let size = usize::from_str_radix(size, 8).unwrap_or(0);
        let content = size.next_multiple_of(512).min(behind.len());
        rest = &mut behind[content..];
    }
}

/// A tar of files and links in GNU's form.
pub(crate) fn tar(members: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, kind, link, body) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(body.len() as u64);
        if link.is_empty() {
            out.append_data(&mut header, name, *body).unwrap();
        } else {
            out.append_link(&mut header, name, link).unwrap();
        }
    }
    out.into_inner().unwrap()
}
