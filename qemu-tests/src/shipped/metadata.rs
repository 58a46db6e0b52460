//! EC2's instance metadata service, version 2 only: a token by PUT, then everything by GET with the token. Whoever asks
//! is told apart by the address. At another address, the signed list of instances, for everybody.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Order;
use crate::namespaces::network::{BENCH, Network};

/// Address of the service on every cloud that has one.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Port of the list of instances, at the bench's own address.
const INVENTORY: u16 = 8080;
/// What a token is made of: it must come back as it was given.
const TOKEN: &str = "AQAEAKimageBenchToken==";
/// Longest request head, in bytes.
const MAX_HEAD: u64 = 16 << 10;

/// The running service. It ends with the process.
#[derive(Clone, Default)]
pub(super) struct Metadata {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// What each machine may read, by path.
    documents: BTreeMap<Ipv4Addr, BTreeMap<&'static str, String>>,
    /// The signed list of instances.
    inventory: Vec<u8>,
    /// Every request for metadata, as `GET /path 200`.
    log: Vec<String>,
}

impl Metadata {
    /// Serves in `network`.
    pub(super) fn serve(network: &Network) -> Result<Self> {
        network.alias(ADDRESS)?;
        let service = Self::default();
        for address in [(ADDRESS, 80), (BENCH, INVENTORY)] {
            let listener = network.within(|| TcpListener::bind(address).context("serve metadata"))?;
            let theirs = service.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let service = theirs.clone();
                    // A client that breaks off harms nobody.
                    std::thread::spawn(move || drop(service.answer(&stream)));
                }
            });
        }
        Ok(service)
    }

    /// Where the list of instances is.
    pub(super) fn inventory() -> String {
        format!("http://{BENCH}:{INVENTORY}/inventory")
    }

    /// From now on everybody finds this list of instances.
    pub(super) fn publish(&self, inventory: &[u8]) {
        self.lock().inventory = inventory.to_owned();
    }

    /// From now on the machine of `order` finds its documents.
    pub(super) fn add(&self, order: &Order) {
        let identity = serde_json::json!({
            "instanceId": order.instance, "privateIp": order.address,
            "availabilityZone": order.zone, "region": "bench",
        });
        let documents = BTreeMap::from([
            ("/latest/user-data", order.config.clone()),
            ("/latest/dynamic/instance-identity/document", identity.to_string()),
            ("/latest/meta-data/local-hostname", order.name.clone()),
        ]);
        self.lock().documents.insert(order.address, documents);
    }

    /// Every request for metadata so far, as `GET /path 200`.
    pub(super) fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, stream: &TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let IpAddr::V4(peer) = stream.peer_addr()?.ip() else {
            return Ok(());
        };
        let request = Request::read(stream)?;
        let (status, body) = if stream.local_addr()?.port() == INVENTORY {
            self.list(&request)
        } else {
            let (status, body) = self.judge(peer, &request);
            self.lock()
                .log
                .push(format!("{} {} {status}", request.method, request.path));
            (status, body.into_bytes())
        };
        let length = body.len();
        let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let mut stream = stream;
        stream.write_all(head.as_bytes())?;
        Ok(stream.write_all(&body)?)
    }

    fn list(&self, request: &Request) -> (u16, Vec<u8>) {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/inventory") => (200, self.lock().inventory.clone()),
            _ => (404, Vec::new()),
        }
    }

    fn judge(&self, peer: Ipv4Addr, request: &Request) -> (u16, String) {
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        match (request.method.as_str(), request.path.as_str()) {
            ("PUT", "/latest/api/token") if header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
                (200, TOKEN.to_owned())
            }
            ("PUT", _) => (400, String::new()),
            ("GET", _) if header("x-aws-ec2-metadata-token") != Some(TOKEN) => (401, String::new()),
            ("GET", path) => {
                let state = self.lock();
                let found = state.documents.get(&peer).and_then(|known| known.get(path));
                found.map_or((404, String::new()), |text| (200, text.clone()))
            }
            _ => (405, String::new()),
        }
    }
}

/// The head of a request; none here has a body.
struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn read(stream: &TcpStream) -> Result<Self> {
        let mut lines = BufReader::new(stream.take(MAX_HEAD)).lines();
        let first = lines.next().context("an empty request")??;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next(), words.next());
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        Ok(Self {
            method: method.context("no method")?,
            path: path.context("no path")?,
            headers,
        })
    }
}
