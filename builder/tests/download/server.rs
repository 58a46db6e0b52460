//! An HTTP server in the test process that can be as hostile as a test wants.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// One request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// `GET /path HTTP/1.1`.
    pub(crate) line: String,
    /// Header lines, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    pub(crate) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or("")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first byte that `Range: bytes=N-` asks for.
    pub(crate) fn range(&self) -> Option<usize> {
        self.header("range")?
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

/// Answers until it is dropped; connections close after each answer.
pub(crate) struct Server {
    pub(crate) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let server = Self::start_raw(move |mut stream| {
            if let Some(request) = read_request(&mut stream) {
                log.lock().unwrap().push(request.clone());
                answer(&request, &mut stream);
            }
        });
        Self { seen, ..server }
    }

    /// Hands each connection to `talk` as it is.
    pub(crate) fn start_raw(talk: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let talk = Arc::new(talk);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), talk) = (stream, Arc::clone(&talk)) else {
                    continue;
                };
                thread::spawn(move || talk(stream));
            }
        });
        Self {
            address,
            seen: Arc::default(),
        }
    }

    /// A server that behaves: ranges, entity tags, all of `content` at any path.
    pub(crate) fn honest(content: Vec<u8>) -> Self {
        Self::start(move |request, stream| serve(request, stream, &content, "\"one\""))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => {
                return Some(Seen {
                    line: line.trim_end().to_owned(),
                    headers,
                });
            }
        }
    }
}

/// Answers as RFC 9110 wants it, with Range and If-Range.
pub(crate) fn serve(request: &Seen, stream: &mut TcpStream, content: &[u8], etag: &str) {
    serve_cut(request, stream, content, etag, usize::MAX);
}

/// As [`serve`], but the connection ends after `limit` bytes of the body.
pub(crate) fn serve_cut(request: &Seen, stream: &mut TcpStream, content: &[u8], etag: &str, limit: usize) {
    let same = request.header("if-range").is_none_or(|wanted| wanted == etag);
    let (status, start, range) = match request.range().filter(|_| same) {
        Some(start) if start >= content.len() => return reply(stream, "416 Range Not Satisfiable", "", b""),
        Some(start) => {
            let (last, total) = (content.len() - 1, content.len());
            (
                "206 Partial Content",
                start,
                format!("Content-Range: bytes {start}-{last}/{total}\r\n"),
            )
        }
        None => ("200 OK", 0, String::new()),
    };
    let body = &content[start..];
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nETag: {etag}\r\nContent-Length: {length}\r\n{range}\r\n"
    );
    // The client may hang up whenever it wants.
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(&body[..length.min(limit)]));
}

/// A whole answer with `headers` (each ended by CRLF).
pub(crate) fn reply(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

/// Says nothing more until the client hangs up.
pub(crate) fn wait_for_hangup(stream: &mut TcpStream) {
    let mut byte = [0];
    while matches!(stream.read(&mut byte), Ok(count) if count > 0) {}
}

/// Sends `bytes` one by one, `pause` apart, until the client hangs up.
pub(crate) fn drip(stream: &mut TcpStream, bytes: &[u8], pause: Duration) {
    stream.set_read_timeout(Some(pause)).unwrap();
    for byte in bytes {
        // Reading is how we both wait and learn of the hangup.
        if matches!(stream.read(&mut [0]), Ok(0)) || stream.write_all(&[*byte]).is_err() {
            return;
        }
    }
}
