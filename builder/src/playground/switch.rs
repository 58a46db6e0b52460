//! An Ethernet switch of datagrams: each cable is a pair of sockets in the playground's folder, a datagram is a frame.
//! It learns who is where, so that the gateway never sees what machines say to each other: QEMU's user network would
//! take such frames for its own and answer them.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result};

use super::frame::{self, Mac};
use super::{NETWORK, Playground};

/// QEMU's largest frame (`NET_BUFSIZE`, net/net.h).
const MAX_FRAME: usize = 4096 + 65536;
/// Frames that wait for a machine that is slow; more are lost, as on any switch.
const QUEUE: usize = 1024;

/// The switch's socket, to which all cables lead.
pub(super) fn socket() -> PathBuf {
    Path::new(NETWORK).join("switch")
}

/// The gateway's end of its cable.
pub(super) fn gateway() -> PathBuf {
    Path::new(NETWORK).join("gateway")
}

/// QEMU's arguments for the other end of a cable: the network backend `id`.
pub(super) fn cable(id: &str, end: &Path) -> [String; 2] {
    let (own, other) = (end.display(), socket());
    let other = other.display();
    let netdev =
        format!("dgram,id={id},local.type=unix,local.path={own},remote.type=unix,remote.path={other}");
    ["-netdev".to_owned(), netdev]
}

/// One cable.
struct Port {
    end: PathBuf,
    queue: SyncSender<Arc<[u8]>>,
}

/// Opens the socket and starts to switch. The current folder must be the playground's: paths of sockets are short.
pub(super) fn start(playground: &Playground) -> Result<()> {
    let path = socket();
    let inside = UnixDatagram::bind(&path).with_context(|| format!("open {}", path.display()))?;
    let inside = Arc::new(inside);
    let ends = playground.machines.iter().map(|machine| machine.socket());
    let ports = ends
        .chain([gateway()])
        .map(|end| port(end, &inside))
        .collect::<Result<Vec<Port>>>()?;
    let leases = playground
        .machines
        .iter()
        .map(|machine| (machine.mac(), machine.address))
        .collect();
    let mut switch = Switch {
        ports,
        leases,
        learned: BTreeMap::new(),
    };
    thread::Builder::new()
        .name("switch".to_owned())
        .spawn(move || {
            let mut buffer = vec![0; MAX_FRAME];
            loop {
                if let Ok((length, sender)) = inside.recv_from(&mut buffer)
                    && let Some(sender) = sender.as_pathname()
                {
                    switch.take(&buffer[..length], sender);
                }
            }
        })
        .context("start the switch")?;
    Ok(())
}

/// A cable to `end`. It has a thread of its own: a machine that is stopped must not stop the others.
fn port(end: PathBuf, inside: &Arc<UnixDatagram>) -> Result<Port> {
    let (queue, frames) = sync_channel::<Arc<[u8]>>(QUEUE);
    let (inside, to) = (Arc::clone(inside), end.clone());
    thread::Builder::new()
        .name("port".to_owned())
        .spawn(move || {
            for frame in frames {
                // Nobody at the other end: the frame is lost, as on any cable.
                drop::<io::Result<usize>>(inside.send_to(&frame, &to));
            }
        })
        .context("start a port of the switch")?;
    Ok(Port { end, queue })
}

struct Switch {
    ports: Vec<Port>,
    leases: BTreeMap<Mac, Ipv4Addr>,
    /// Which port a hardware address was last seen at.
    learned: BTreeMap<Mac, usize>,
}

impl Switch {
    fn take(&mut self, frame: &[u8], sender: &Path) {
        let Some(from) = self.ports.iter().position(|port| port.end == sender) else {
            return;
        };
        let Some((receiver, source)) = frame::ends(frame) else {
            return;
        };
        // Pods' bridges have addresses too; a machine that makes them up must not fill our memory.
        if self.learned.len() < 4096 || self.learned.contains_key(&source) {
            self.learned.insert(source, from);
        }
        if let Some(question) = frame::question(frame) {
            let lease = self.leases.get(&question.mac);
            let answer = lease.and_then(|address| frame::answer(&question, *address));
            if let Some(answer) = answer {
                self.send(from, &answer.into());
            }
            return;
        }
        let frame: Arc<[u8]> = frame.into();
        match self.learned.get(&receiver) {
            Some(to) if !frame::is_for_many(receiver) => {
                if *to != from {
                    self.send(*to, &frame);
                }
            }
            _ => {
                for to in (0..self.ports.len()).filter(|to| *to != from) {
                    self.send(to, &frame);
                }
            }
        }
    }

    fn send(&self, port: usize, frame: &Arc<[u8]>) {
        // A full queue loses the frame.
        drop(self.ports[port].queue.try_send(Arc::clone(frame)));
    }
}
