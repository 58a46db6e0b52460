//! A Go module proxy in a folder (`file://`), and a small web server in a thread.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zip::write::SimpleFileOptions;

/// Adds a module version to the proxy in `folder`.
pub(crate) fn publish(folder: &Path, module: &str, version: &str, files: &[(&str, &str)]) -> PathBuf {
    let below = folder.join(module).join("@v");
    fs::create_dir_all(&below).unwrap();
    let gomod = files
        .iter()
        .find(|(name, _)| *name == "go.mod")
        .map_or("", |(_, text)| text);
    fs::write(below.join(format!("{version}.mod")), gomod).unwrap();
    let info = format!("{{\"Version\":\"{version}\",\"Time\":\"2026-01-01T00:00:00Z\"}}");
    fs::write(below.join(format!("{version}.info")), info).unwrap();
    let path = below.join(format!("{version}.zip"));
    let files = files
        .iter()
        .map(|(name, text)| (format!("{module}@{version}/{name}"), *text));
    write_zip(&path, files);
    path
}

/// Writes a zip of text files.
pub(crate) fn write_zip<'a>(path: &Path, files: impl IntoIterator<Item = (String, &'a str)>) {
    let mut writer = zip::ZipWriter::new(File::create(path).unwrap());
    for (name, text) in files {
        writer.start_file(name, SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap();
}

/// An answer: status, headers, body.
pub(crate) type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

/// Answers requests (path with query, headers by lower-case name) until the test ends; returns the base URL.
pub(crate) fn serve(
    answer: impl Fn(&str, &BTreeMap<String, String>, &str) -> Answer + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let (answer, own) = (Arc::new(answer), base.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), answer, own) = (stream, Arc::clone(&answer), own.clone()) else {
                continue;
            };
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap())
                    .lines()
                    .map_while(Result::ok);
                let Some(first) = lines.next() else { return };
                let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
                let fields = lines.take_while(|line| !line.is_empty());
                let headers = fields.filter_map(|line| {
                    line.split_once(": ")
                        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                });
                let (status, headers, body) = answer(&path, &headers.collect(), &own);
                let mut head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n",
                    body.len()
                );
                for (name, value) in headers {
                    head += &format!("{name}: {value}\r\n");
                }
                let _ = stream
                    .write_all(format!("{head}\r\n").as_bytes())
                    .and_then(|()| stream.write_all(&body));
            });
        }
    });
    base
}
