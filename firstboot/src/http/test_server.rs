//! A web server for tests, on the loopback: one thread per connection, keep-alive, and the faults that real servers
//! have.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// What the server does.
pub(crate) enum Reply {
    /// An ordinary answer.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
    /// A byte every now and then, for ever.
    Trickle,
    /// So many bytes as the body, announced or chunked.
    Flood { bytes: u64, announced: bool },
    /// Half of what is announced, then the end.
    Cut,
}

impl Reply {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::Answer(200, Vec::new(), body.into())
    }

    pub(crate) fn status(status: u16) -> Self {
        Self::Answer(status, Vec::new(), b"the server's own words".to_vec())
    }
}

/// A running server. Its threads end with the test's process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// How many connections it took.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Body bytes that went out of [`Reply::Flood`].
    pub(crate) flooded: Arc<AtomicUsize>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

pub(crate) trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

impl Server {
    pub(crate) fn start(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_over(|socket| Some(Box::new(socket)), reply)
    }

    /// A server whose connections `wrap` opens, such as by TLS; `None` refuses one.
    pub(crate) fn start_over(
        wrap: impl Fn(TcpStream) -> Option<Box<dyn Wire>> + Send + Sync + 'static,
        reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self {
            address,
            connections: Arc::default(),
            flooded: Arc::default(),
            seen: Arc::default(),
        };
        let (connections, flooded) = (Arc::clone(&server.connections), Arc::clone(&server.flooded));
        let (seen, wrap, reply) = (Arc::clone(&server.seen), Arc::new(wrap), Arc::new(reply));
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let (seen, flooded) = (Arc::clone(&seen), Arc::clone(&flooded));
                let (wrap, reply) = (Arc::clone(&wrap), Arc::clone(&reply));
                thread::spawn(move || {
                    let Some(wire) = wrap(socket) else { return };
                    let mut wire = BufReader::new(wire);
                    while let Some(request) = read(&mut wire) {
                        seen.lock().unwrap().push(request.clone());
                        if write(wire.get_mut(), reply(&request), &flooded).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn read(wire: &mut BufReader<Box<dyn Wire>>) -> Option<Seen> {
    let mut line = String::new();
    wire.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        wire.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    let mut body = vec![0; length];
    wire.read_exact(&mut body).ok()?;
    Some(Seen {
        method,
        path,
        headers,
        body,
    })
}

fn write(wire: &mut dyn Wire, reply: Reply, flooded: &AtomicUsize) -> std::io::Result<()> {
    match reply {
        Reply::Answer(status, headers, body) => {
            write!(
                wire,
                "HTTP/1.1 {status} words\r\ncontent-length: {}\r\n",
                body.len()
            )?;
            for (name, value) in headers {
                write!(wire, "{name}: {value}\r\n")?;
            }
            wire.write_all(b"\r\n")?;
            wire.write_all(&body)?;
        }
        Reply::Trickle => {
            wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50000\r\n\r\n")?;
            loop {
                wire.write_all(b"x")?;
                wire.flush()?;
                thread::sleep(Duration::from_millis(20));
            }
        }
        Reply::Flood { bytes, announced } => {
            let chunk = vec![b'x'; 64 << 10];
            if announced {
                write!(wire, "HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n")?;
            } else {
                wire.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
            }
            for _ in 0..bytes / chunk.len() as u64 {
                if !announced {
                    write!(wire, "{:x}\r\n", chunk.len())?;
                }
                wire.write_all(&chunk)?;
                if !announced {
                    wire.write_all(b"\r\n")?;
                }
                flooded.fetch_add(chunk.len(), Ordering::SeqCst);
            }
            if !announced {
                wire.write_all(b"0\r\n\r\n")?;
            }
        }
        Reply::Cut => {
            wire.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")?;
            wire.flush()?;
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
    }
    wire.flush()
}
