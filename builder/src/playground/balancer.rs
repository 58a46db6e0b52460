//! The load balancer of a playground: TCP passthrough to the API servers that say they are ready, as HAProxy would.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// An emulated API server on a busy host is slow to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// `ok`, in bytes; more is no answer of an API server.
const MAX_ANSWER: u64 = 64 * 1024;
/// So many questions in a row without an answer, and the API server gets no more connections.
const FAILURES: u32 = 3;
/// Both halves of a connection have a thread.
const MAX_CONNECTIONS: usize = 512;

/// An API server.
struct Backend {
    port: u16,
    ready: AtomicBool,
}

/// Balances connections to 127.0.0.1:`port` over API servers at ports of 127.0.0.1, whose certificates `ca` (PEM)
/// signs, and asks each of them every `interval`. Returns once it listens.
pub(super) fn start(port: u16, backends: &[u16], ca: &str, interval: Duration) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("listen on 127.0.0.1:{port}"))?;
    let backends: Arc<[Backend]> = backends
        .iter()
        .map(|port| Backend {
            port: *port,
            ready: AtomicBool::new(false),
        })
        .collect();
    let agent = agent(ca)?;
    for number in 0..backends.len() {
        let (backends, agent) = (Arc::clone(&backends), agent.clone());
        spawn("check", move || watch(&backends[number], &agent, interval))?;
    }
    spawn("balancer", move || accept(&listener, &backends))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).with_context(|| format!("start thread {name}"))
}

fn agent(ca: &str) -> Result<Agent> {
    let certificates: Result<Vec<CertificateDer<'static>>, _> =
        CertificateDer::pem_slice_iter(ca.as_bytes()).collect();
    let certificates = match certificates {
        Ok(certificates) if !certificates.is_empty() => certificates,
        _ => bail!("the cluster's ca.crt holds no certificate"),
    };
    let roots: Vec<_> = certificates
        .iter()
        .map(|der| Certificate::from_der(der).to_owned())
        .collect();
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build();
    let config = Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(ANSWER))
        .proxy(None)
        .max_redirects(0)
        .build();
    Ok(config.into())
}

/// Asks `/readyz` for ever. One yes is enough to be ready, only several failures are enough not to be.
fn watch(backend: &Backend, agent: &Agent, interval: Duration) {
    let url = format!("https://127.0.0.1:{}/readyz", backend.port);
    let mut failures = 0;
    loop {
        // Read to its end, so that the connection serves the next question too: handshakes cost an emulated machine much.
        let asked = agent.get(&url).call();
        match asked.and_then(|mut answer| answer.body_mut().with_config().limit(MAX_ANSWER).read_to_vec()) {
            Ok(_) => {
                failures = 0;
                backend.ready.store(true, Ordering::Relaxed);
            }
            Err(_) => {
                failures += 1;
                if failures >= FAILURES {
                    backend.ready.store(false, Ordering::Relaxed);
                }
            }
        }
        thread::sleep(interval);
    }
}

fn accept(listener: &TcpListener, backends: &Arc<[Backend]>) {
    let open = Arc::new(AtomicUsize::new(0));
    let mut turn = 0_usize;
    for client in listener.incoming() {
        let Ok(client) = client else {
            // Out of descriptors, most likely; they come back when connections end.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        // Nobody is ready, or too many are here: closed at once, as a balancer without backends does.
        let ready: Vec<u16> = backends
            .iter()
            .filter(|backend| backend.ready.load(Ordering::Relaxed))
            .map(|backend| backend.port)
            .collect();
        if ready.is_empty() || open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        turn = turn.wrapping_add(1);
        let port = ready[turn % ready.len()];
        let counted = Arc::clone(&open);
        counted.fetch_add(1, Ordering::Relaxed);
        let passed = spawn("connection", move || {
            // An end of a connection is how connections end.
            drop(pass(&client, port));
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if passed.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Copies both ways until both sides have ended.
fn pass(client: &TcpStream, port: u16) -> io::Result<()> {
    let server = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ANSWER)?;
    for end in [client, &server] {
        end.set_nodelay(true)?;
    }
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let copied = io::copy(&mut from, &mut to);
        match copied {
            Ok(_) => drop(to.shutdown(Shutdown::Write)),
            // Whoever still waits at either end must learn that the other is gone.
            Err(_) => [from, to]
                .into_iter()
                .for_each(|end| drop(end.shutdown(Shutdown::Both))),
        }
    };
    thread::scope(|scope| {
        let up = thread::Builder::new().spawn_scoped(scope, || copy(client, &server))?;
        copy(&server, client);
        up.join().map_err(|_| io::Error::other("a copy ended"))
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_connection_is_passed_on_whole_both_ways() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let echo = thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut text = Vec::new();
            stream.read_to_end(&mut text).unwrap();
            text.reverse();
            stream.write_all(&text).unwrap();
        });
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = front.local_addr().unwrap();
        let balancer: Arc<[Backend]> = [
            Backend {
                port: 1,
                ready: AtomicBool::new(false),
            },
            Backend {
                port,
                ready: AtomicBool::new(true),
            },
        ]
        .into();
        thread::spawn(move || accept(&front, &balancer));
        let sent: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
        let mut client = TcpStream::connect(address).unwrap();
        let mut writer = client.try_clone().unwrap();
        let bytes = sent.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        writing.join().unwrap();
        echo.join().unwrap();
        received.reverse();
        assert!(received == sent);
    }

    #[test]
    fn without_a_ready_server_a_connection_is_closed() {
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = front.local_addr().unwrap();
        thread::spawn(move || accept(&front, &Arc::from([])));
        let mut client = TcpStream::connect(address).unwrap();
        assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)));
    }
}
