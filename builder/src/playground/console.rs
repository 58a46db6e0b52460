//! What a running machine reports on its console, read as it grows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use kimage_roles::status::{MAX_CONSOLE_LINE, Status};

/// A console that grows.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    read: u64,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    newest: Option<Status>,
}

impl Watch {
    /// Watches the file at `path`, which may come later.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            read: 0,
            line: Vec::new(),
            newest: None,
        }
    }

    /// Reads what has come; the newest report so far.
    ///
    /// # Errors
    /// The console can't be read; that it is not there is none.
    pub fn newest(&mut self) -> io::Result<Option<&Status>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut buffer = [0; 16 * 1024];
        loop {
            let length = match file.read(&mut buffer)? {
                0 => return Ok(self.newest.as_ref()),
                length => length,
            };
            self.read += length as u64;
            self.take(&buffer[..length]);
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                let line = String::from_utf8_lossy(&self.line);
                if let Some(status) = Status::from_console_line(&line) {
                    self.newest = Some(status);
                }
                self.line.clear();
            } else if self.line.len() < MAX_CONSOLE_LINE {
                self.line.push(*byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use kimage_roles::status::Phase;

    use super::*;

    #[test]
    fn a_report_counts_when_its_line_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut watch = Watch::new(&path);
        assert!(watch.newest().unwrap().is_none());
        let line = "kimage-status: {\"schema\":1,\"role\":\"etcd\",\"phase\":\"etcd\",\"outcome\":\"running\",\
                    \"attempt\":1,\"durationMilliseconds\":1,\"totalMilliseconds\":2}\r\n";
        let mut file = File::create(&path).unwrap();
        file.write_all(&line.as_bytes()[..60]).unwrap();
        assert!(watch.newest().unwrap().is_none());
        file.write_all(&line.as_bytes()[60..]).unwrap();
        assert_eq!(watch.newest().unwrap().unwrap().phase, Phase::Etcd);
        file.write_all(b"kimage-status: {}\nLinux\n").unwrap();
        assert_eq!(watch.newest().unwrap().unwrap().phase, Phase::Etcd);
    }
}
