//! Copying files that are mostly holes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::digest::{Digest, Hasher};
use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

/// The next run of data in `file` at or after byte `from`: its start and end. None when only a hole follows. On
/// filesystems that know no holes everything is data.
pub fn next_data(file: impl AsFd, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match seek(&file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(&file, SeekFrom::Hole(start))?;
    Ok(Some((start, end)))
}

/// Copies the data of `from` into `to` at byte `offset`, leaving its holes. That range of `to` must be a hole. The
/// kernel copies, and shares blocks where the filesystem can.
pub fn copy(from: &File, to: &File, offset: u64) -> io::Result<()> {
    let mut position = 0;
    while let Some((start, end)) = next_data(from, position)? {
        copy_run(from, to, start, end, offset)?;
        position = end;
    }
    Ok(())
}

fn copy_run(from: &File, to: &File, start: u64, end: u64, offset: u64) -> io::Result<()> {
    let (mut source, mut target) = (start, start + offset);
    while source < end {
        let length = usize::try_from(end - source).unwrap_or(usize::MAX).min(1 << 30);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), length) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "file shrank while it was copied",
                ));
            }
            Ok(_) | Err(Errno::INTR) => {}
            // Other filesystems on both sides, or a kernel that cannot: copy by hand.
            Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                return copy_by_hand(from, to, source, end, offset);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64, offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut position = start;
    while position < end {
        let length = usize::try_from(end - position)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        from.read_exact_at(&mut buffer[..length], position)?;
        to.write_all_at(&buffer[..length], position + offset)?;
        position += length as u64;
    }
    Ok(())
}

/// The digest of `length` bytes of `file` from `start` on; holes are not read but hashed as the zeros they are.
pub fn digest(file: &File, start: u64, length: u64) -> io::Result<Digest> {
    use std::os::unix::fs::FileExt;

    const PIECE: usize = 1 << 18;
    let zeros = vec![0; PIECE];
    let mut buffer = vec![0; PIECE];
    let mut hasher = Hasher::new();
    let mut position = start;
    let end = start + length;
    while position < end {
        let (data, stop) = next_data(file, position)?.unwrap_or((end, end));
        let (data, stop) = (data.clamp(position, end), stop.clamp(position, end));
        while position < data {
            let count = PIECE.min((data - position) as usize);
            hasher.update(&zeros[..count]);
            position += count as u64;
        }
        while position < stop {
            let count = PIECE.min((stop - position) as usize);
            file.read_exact_at(&mut buffer[..count], position)?;
            hasher.update(&buffer[..count]);
            position += count as u64;
        }
    }
    Ok(hasher.finish())
}

/// Whether `length` bytes of `file` from `start` on are all zero; holes are not read.
pub fn is_zero(file: &File, start: u64, length: u64) -> io::Result<bool> {
    let end = start + length;
    let mut buffer = vec![0; 1 << 18];
    let mut position = start;
    while let Some((data, stop)) = next_data(file, position)?.filter(|(data, _)| *data < end) {
        position = data.max(position);
        while position < stop.min(end) {
            let count = buffer.len().min((stop.min(end) - position) as usize);
            file.read_exact_at(&mut buffer[..count], position)?;
            if buffer[..count].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            position += count as u64;
        }
        if position >= end {
            break;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn data_arrives_and_holes_stay() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"middle", 20 << 20).unwrap();
        from.write_all_at(b"end", (64 << 20) - 3).unwrap();
        to.set_len(80 << 20).unwrap();
        copy(&from, &to, 8 << 20).unwrap();
        copy_by_hand(&from, &to, 20 << 20, (20 << 20) + 6, 0).unwrap();
        let read = |place: u64, length: usize| {
            let mut bytes = vec![0; length];
            to.read_exact_at(&mut bytes, place).unwrap();
            bytes
        };
        assert_eq!(read(28 << 20, 6), b"middle");
        assert_eq!(read((72 << 20) - 3, 3), b"end");
        assert_eq!(read(20 << 20, 6), b"middle");
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20);
        assert!(is_zero(&to, 0, 20 << 20).unwrap() && is_zero(&to, (28 << 20) + 6, 1 << 20).unwrap());
        assert!(!is_zero(&to, 0, (20 << 20) + 1).unwrap());
    }
}
