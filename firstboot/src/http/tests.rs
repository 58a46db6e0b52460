use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use kimage_roles::secret::Secret;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::test_server::{Reply, Seen, Server};
use super::{Client, Fault, HttpError, Identity, Request, Settings, TlsFault, Trust, shown};

const GIB: u64 = 1 << 30;

fn quick() -> Settings {
    Settings {
        connect: std::time::Duration::from_secs(2),
        total: std::time::Duration::from_millis(600),
        max_body: 1 << 16,
        trust: Trust::Pinned(Ca::new("none").pem()),
        identity: None,
    }
}

fn fault(result: Result<Vec<u8>, HttpError>) -> Fault {
    result.unwrap_err().fault
}

#[test]
fn connections_are_used_again_and_bodies_and_headers_arrive() {
    let server = Server::start(|seen: &Seen| Reply::ok([seen.method.as_bytes(), b" ", &seen.body].concat()));
    let client = Client::new(&quick()).unwrap();
    for _ in 0..3 {
        let answer = client
            .send(&Request::put(server.url(), b"body").header("x-a", "b"))
            .unwrap();
        assert_eq!(answer.body, b"PUT body");
    }
    assert_eq!(client.get(&server.url()).unwrap(), b"GET ");
    assert_eq!(
        client.send(&Request::delete(server.url())).unwrap().body,
        b"DELETE "
    );
    assert_eq!(server.connections.load(Ordering::SeqCst), 1);
    assert_eq!(server.seen()[0].header("x-a"), Some("b"));
}

#[test]
fn the_systems_roots_are_read_for_the_first_server_that_asks_for_trust() {
    let server = Server::start(|_: &Seen| Reply::ok(b"plain".to_vec()));
    let settings = Settings {
        trust: Trust::System,
        ..quick()
    };
    let client = Client::new(&settings).unwrap();
    let has_roots = |client: &Client| client.rooted.as_ref().unwrap().agent.get().is_some();
    for url in [server.url(), server.url().replace("http:", "HTTP:")] {
        assert_eq!(client.get(&url).unwrap(), b"plain");
        assert!(!has_roots(&client));
    }
    let secure = server.url().replace("http:", "https:");
    assert!(client.get(&secure).is_err());
    assert!(has_roots(&client));
}

#[test]
fn a_gibibyte_is_refused_after_little_of_it() {
    for announced in [true, false] {
        let server = Server::start(move |_: &Seen| Reply::Flood {
            bytes: GIB,
            announced,
        });
        let client = Client::new(&quick()).unwrap();
        assert_eq!(fault(client.get(&server.url())), Fault::TooLarge(1 << 16));
        // What fits in the sockets' buffers may be on its way.
        assert!(server.flooded.load(Ordering::SeqCst) < 64 << 20);
    }
}

#[test]
fn a_trickle_ends_at_the_time_limit() {
    let server = Server::start(|_: &Seen| Reply::Trickle);
    let begin = Instant::now();
    assert_eq!(
        fault(Client::new(&quick()).unwrap().get(&server.url())),
        Fault::Timeout
    );
    assert!(begin.elapsed().as_secs() < 10);
}

#[test]
fn statuses_ends_and_silence_have_faults_of_their_own() {
    let server = Server::start(|seen: &Seen| match seen.path.as_str() {
        "/cut" => Reply::Cut,
        "/away" => Reply::Answer(302, vec![("location".to_owned(), "/ok".to_owned())], Vec::new()),
        path => Reply::status(path.trim_start_matches('/').parse().unwrap()),
    });
    let client = Client::new(&quick()).unwrap();
    let get = |path: &str| fault(client.get(&format!("{}{path}", server.url())));
    assert_eq!(get("/404"), Fault::Status(404));
    assert_eq!(get("/503"), Fault::Status(503));
    assert_eq!(get("/away"), Fault::Status(302));
    assert!(matches!(get("/cut"), Fault::Broken(_)));
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert!(matches!(
        fault(client.get(&format!("http://{closed}/"))),
        Fault::Connect(_)
    ));
    assert_eq!(fault(client.get("http://no-such-host.invalid/")), Fault::Dns);
    assert!(matches!(fault(client.get("no url")), Fault::Broken(_)));
}

#[test]
fn a_stream_gives_lines_and_keeps_its_limits() {
    let server = Server::start(|seen: &Seen| match seen.path.as_str() {
        "/trickle" => Reply::Trickle,
        _ => Reply::ok("one\ntwo\nthree"),
    });
    let client = Client::new(&quick()).unwrap();
    let stream = |limit| {
        client
            .stream(
                &Request::get(server.url()),
                std::time::Duration::from_secs(2),
                limit,
            )
            .unwrap()
    };
    let mut lines = stream(100);
    for expected in [Some("one"), Some("two"), Some("three"), None] {
        assert_eq!(
            lines.line(10).unwrap(),
            expected.map(|line| line.as_bytes().to_vec())
        );
    }
    assert_eq!(stream(100).line(2).unwrap_err().fault, Fault::TooLarge(2));
    let mut short = stream(5);
    assert!(short.line(10).unwrap().is_some());
    assert_eq!(short.line(10).unwrap_err().fault, Fault::TooLarge(5));
    // A stream outlives the time limit of whole answers.
    let url = format!("{}/trickle", server.url());
    let mut slow = client
        .stream(&Request::get(url), std::time::Duration::from_secs(2), 100)
        .unwrap();
    let begin = Instant::now();
    assert_eq!(slow.line(60).unwrap_err().fault, Fault::TooLarge(60));
    assert!(begin.elapsed() > quick().total);
}

#[test]
fn errors_show_neither_credentials_nor_query() {
    assert_eq!(shown("https://user:word@host:1/a?token=b#c"), "https://host:1/a");
    let identity = Identity {
        certificate: Ca::new("a").pem(),
        key: Secret::new("hidden"),
    };
    let settings = Settings {
        identity: Some(identity),
        ..quick()
    };
    assert!(!format!("{settings:?} {}", Client::new(&settings).unwrap_err()).contains("hidden"));
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Ca {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate and its key for a host, valid in these years.
    fn issue(&self, host: &str, from: i32, until: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }
}

/// A TLS server; with `clients` it wants certificates of that authority.
fn tls_server(certificate: &(String, String), clients: Option<&Ca>) -> Server {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = match clients {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(ca.certificate.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap())
        }
        None => builder.unwrap().with_no_client_auth(),
    };
    let chain = vec![CertificateDer::from_pem_slice(certificate.0.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.1.as_bytes()).unwrap();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    Server::start_over(
        move |socket| {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            Some(Box::new(StreamOwned::new(connection, socket)))
        },
        |_: &Seen| Reply::ok("secure"),
    )
}

fn get_over_tls(server: &Server, trust: Trust, identity: Option<Identity>) -> Result<Vec<u8>, HttpError> {
    let settings = Settings {
        total: std::time::Duration::from_secs(10),
        trust,
        identity,
        ..quick()
    };
    Client::new(&settings)?.get(&format!("https://127.0.0.1:{}/", server.address.port()))
}

#[test]
fn the_pinned_authority_alone_is_believed() {
    let (ca, other) = (Ca::new("right"), Ca::new("wrong"));
    let pinned = |ca: &Ca| Trust::Pinned(ca.pem());
    let server = tls_server(&ca.issue("127.0.0.1", 2000, 4000), None);
    assert_eq!(get_over_tls(&server, pinned(&ca), None).unwrap(), b"secure");
    assert_eq!(get_over_tls(&server, Trust::Unverified, None).unwrap(), b"secure");
    let tls = |fault| Fault::Tls(fault);
    assert_eq!(
        fault(get_over_tls(&server, pinned(&other), None)),
        tls(TlsFault::UnknownIssuer)
    );
    let server = tls_server(&ca.issue("127.0.0.2", 2000, 4000), None);
    assert_eq!(
        fault(get_over_tls(&server, pinned(&ca), None)),
        tls(TlsFault::WrongName)
    );
    let server = tls_server(&ca.issue("127.0.0.1", 2000, 2001), None);
    assert_eq!(
        fault(get_over_tls(&server, pinned(&ca), None)),
        tls(TlsFault::Expired)
    );
    let server = tls_server(&ca.issue("127.0.0.1", 3999, 4000), None);
    assert_eq!(
        fault(get_over_tls(&server, pinned(&ca), None)),
        tls(TlsFault::NotYetValid)
    );
}

#[test]
fn a_server_that_wants_a_client_certificate_gets_ours() {
    let ca = Ca::new("both");
    let server = tls_server(&ca.issue("127.0.0.1", 2000, 4000), Some(&ca));
    let identity = |(certificate, key): (String, String)| Identity {
        certificate,
        key: Secret::new(key),
    };
    let ours = identity(ca.issue("client", 2000, 4000));
    let theirs = identity(Ca::new("foreign").issue("client", 2000, 4000));
    let mixed = Identity {
        key: theirs.key.clone(),
        ..ours.clone()
    };
    let get = |identity| get_over_tls(&server, Trust::Pinned(ca.pem()), identity);
    assert_eq!(get(Some(ours)).unwrap(), b"secure");
    assert!(matches!(fault(get(None)), Fault::Tls(TlsFault::Refused(_))));
    assert!(matches!(
        fault(get(Some(theirs))),
        Fault::Tls(TlsFault::Refused(_))
    ));
    assert!(matches!(fault(get(Some(mixed))), Fault::Tls(TlsFault::Other(_))));
}
