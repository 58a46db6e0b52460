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

use super::border::Border;
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
    let machines = &playground.machines;
    let ends = machines.iter().map(|machine| machine.socket()).chain([gateway()]);
    let leases = machines.iter().map(|machine| (machine.mac(), machine.address));
    let border = Border {
        api_port: playground.port,
    };
    connect(&socket(), ends, leases.collect(), border)
}

/// Switches between `ends`, whose datagrams come to `path`, and answers questions for `leases`. The last end is the
/// gateway's; only what `border` lets out reaches it.
fn connect(
    path: &Path,
    ends: impl IntoIterator<Item = PathBuf>,
    leases: BTreeMap<Mac, Ipv4Addr>,
    border: Border,
) -> Result<()> {
    let inside = UnixDatagram::bind(path).with_context(|| format!("open {}", path.display()))?;
    let inside = Arc::new(inside);
    let ports: Result<Vec<Port>> = ends.into_iter().map(|end| port(end, &inside)).collect();
    let mut switch = Switch {
        ports: ports?,
        leases,
        border,
        learned: BTreeMap::new(),
    };
    let work = move || {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            if let Ok((length, sender)) = inside.recv_from(&mut buffer)
                && let Some(sender) = sender.as_pathname()
            {
                switch.take(&buffer[..length], sender);
            }
        }
    };
    let thread = thread::Builder::new().name("switch".to_owned()).spawn(work);
    thread.map(drop).context("start the switch")
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
    border: Border,
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
        if port + 1 == self.ports.len() && !self.border.lets_out(frame) {
            return;
        }
        // A full queue loses the frame.
        drop(self.ports[port].queue.try_send(Arc::clone(frame)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const EVERYBODY: Mac = [0xff; 6];
    const BORDER: Border = Border { api_port: 40_001 };

    fn frame(to: Mac, from: Mac, text: &str) -> Vec<u8> {
        [&to[..], &from, &[0x08, 0x06], text.as_bytes()].concat()
    }

    #[test]
    fn frames_reach_those_they_are_for_and_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let [a, b, outside] = ["a", "b", "outside"].map(|name| {
            let end = UnixDatagram::bind(path(name)).unwrap();
            end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            end
        });
        connect(
            &path("switch"),
            ["a", "b", "outside"].map(path),
            BTreeMap::new(),
            BORDER,
        )
        .unwrap();
        let (mac_a, mac_b) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let send = |end: &UnixDatagram, frame: &[u8]| end.send_to(frame, path("switch")).map(drop).unwrap();
        let received = |end: &UnixDatagram| {
            let mut buffer = [0; 2048];
            let length = end.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        };

        let question = frame(EVERYBODY, mac_a, "who is b?");
        send(&a, &question);
        assert_eq!((received(&b), received(&outside)), (question.clone(), question));
        let answer = frame(mac_a, mac_b, "I am");
        send(&b, &answer);
        assert_eq!(received(&a), answer);
        let private = frame(mac_b, mac_a, "between us");
        send(&a, &private);
        assert_eq!(received(&b), private);
        // A frame from a stranger, and one too short to be one.
        send(
            &UnixDatagram::unbound().unwrap(),
            &frame(EVERYBODY, mac_b, "stranger"),
        );
        send(&a, &[0xff; 13]);
        // Frames of a cable stay in order: had the gateway seen one of those, it would come first.
        let last = frame(EVERYBODY, mac_a, "all");
        send(&a, &last);
        assert_eq!(received(&outside), last);
        assert_eq!(received(&b), last);
    }

    #[test]
    fn what_is_for_the_host_itself_is_seen_by_machines_and_not_by_the_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let [a, b, outside] = ["a", "b", "outside"].map(|name| {
            let end = UnixDatagram::bind(path(name)).unwrap();
            end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            end
        });
        connect(
            &path("switch"),
            ["a", "b", "outside"].map(path),
            BTreeMap::new(),
            BORDER,
        )
        .unwrap();
        // A connection to port 22 of 10.0.2.2, to whoever has it.
        let mut attack = [&EVERYBODY[..], &[2, 0, 0, 0, 0, 1], &[0x08, 0x00]].concat();
        attack.extend([
            0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 11, 10, 0, 2, 2,
        ]);
        attack.extend([
            0xc3, 0x50, 0, 22, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0,
        ]);
        let last = frame(EVERYBODY, [2, 0, 0, 0, 0, 1], "who is there?");
        for bytes in [&attack, &last] {
            a.send_to(bytes, path("switch")).unwrap();
        }
        let received = |end: &UnixDatagram| {
            let mut buffer = [0; 2048];
            let length = end.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        };
        assert_eq!((received(&b), received(&b)), (attack, last.clone()));
        assert_eq!(received(&outside), last);
    }
}
