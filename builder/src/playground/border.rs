//! What machines may send to the gateway, QEMU's user network. It does everything with the rights of who started the
//! playground, and to it each address of the machines' network that is no machine's is the host's own 127.0.0.1: what
//! listens there for its user alone would answer the machines, and each container on them. So the way out is a list:
//!
//! | to | what |
//! |---|---|
//! | the gateway | the balancer's port; answers to what the host asked (API servers); echo |
//! | the name server | port 53: the host's resolver |
//! | the rest of the machines' network, 127.0.0.0/8, 0.0.0.0/8 | nothing: the host again |
//! | 169.254.0.0/16, 168.63.129.16 | nothing: the metadata of the cloud that the host runs in |
//! | groups, everybody, reserved addresses | nothing |
//! | elsewhere | TCP, UDP and echo: registries and mirrors, as the host itself reaches them |
//!
//! Source of what the user network does: libslirp, `sotranslate_out` in `src/socket.c` and `tcp_input`.

use std::net::Ipv4Addr;

use super::{API_PORT, GATEWAY, NAME_SERVER, NETMASK};

const ETHERNET: usize = 14;
/// `ETH_P_IP` and `ETH_P_ARP`.
const IPV4: [u8; 2] = [0x08, 0x00];
const ARP: [u8; 2] = [0x08, 0x06];
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ECHO_REQUEST: u8 = 8;
const DOMAIN: u16 = 53;
/// Flags of TCP (RFC 9293, 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Azure's metadata beside the link-local ones.
const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// The way out.
pub(super) struct Border {
    /// Port of the balancer on the host.
    pub(super) api_port: u16,
}

/// A packet as far as the border looks at it.
struct Packet<'a> {
    protocol: u8,
    receiver: Ipv4Addr,
    /// One of several pieces: the ports of the later ones are not to be seen.
    piece: bool,
    content: &'a [u8],
}

impl Border {
    /// Whether the gateway may see `frame`. What is not understood stays inside.
    pub(super) fn lets_out(&self, frame: &[u8]) -> bool {
        match frame.get(12..ETHERNET) {
            Some(kind) if kind == ARP => true,
            Some(kind) if kind == IPV4 => {
                packet(&frame[ETHERNET..]).is_some_and(|packet| self.passes(&packet))
            }
            _ => false,
        }
    }

    fn passes(&self, packet: &Packet<'_>) -> bool {
        let port = || port(packet, 2);
        match packet.receiver {
            GATEWAY if packet.piece => false,
            GATEWAY => match packet.protocol {
                ICMP => is_echo(packet),
                // Any port could be the source of a new connection; only an answer is none.
                TCP => {
                    port() == Some(self.api_port)
                        || self::port(packet, 0) == Some(API_PORT) && is_under_way(packet)
                }
                _ => false,
            },
            NAME_SERVER => !packet.piece && matches!(packet.protocol, TCP | UDP) && port() == Some(DOMAIN),
            other if is_of_the_host(other) => false,
            _ => match packet.protocol {
                TCP | UDP => true,
                ICMP => packet.piece || is_echo(packet),
                _ => false,
            },
        }
    }
}

/// Addresses that mean the host itself, the cloud's metadata, or nobody.
fn is_of_the_host(address: Ipv4Addr) -> bool {
    let network = Ipv4Addr::from_bits(address.to_bits() & NETMASK.to_bits());
    let ours = Ipv4Addr::from_bits(GATEWAY.to_bits() & NETMASK.to_bits());
    let [first, ..] = address.octets();
    network == ours
        || first == 0
        || address.is_loopback()
        || address.is_link_local()
        || address == WIRE_SERVER
        // Groups, reserved addresses and everybody.
        || first >= 224
}

fn packet(bytes: &[u8]) -> Option<Packet<'_>> {
    let first = *bytes.first()?;
    let header = usize::from(first & 0x0f) * 4;
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let length = usize::from(word(2)?);
    if first >> 4 != 4 || header < 20 || length < header {
        return None;
    }
    let receiver: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
    // More fragments follow, or this is not the first.
    let piece = word(6)? & 0x3fff != 0;
    Some(Packet {
        protocol: *bytes.get(9)?,
        receiver: receiver.into(),
        piece,
        content: bytes.get(header..length)?,
    })
}

/// The port at byte `at` of a TCP or UDP header: 0 has the sender's, 2 the receiver's.
fn port(packet: &Packet<'_>, at: usize) -> Option<u16> {
    let bytes = packet.content.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Whether a segment of TCP belongs to a connection that is there: it doesn't ask for a new one.
fn is_under_way(packet: &Packet<'_>) -> bool {
    let flags = packet.content.get(13);
    flags.is_some_and(|flags| flags & SYN == 0 || flags & ACK != 0)
}

fn is_echo(packet: &Packet<'_>) -> bool {
    packet.content.first() == Some(&ECHO_REQUEST)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop, prop_assert, proptest};

    use super::*;

    const BORDER: Border = Border { api_port: 40_001 };
    const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

    /// A frame of a machine: protocol, receiver, ports, flags of TCP.
    fn frame(protocol: u8, to: Ipv4Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
        let mut content = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        content.resize(20, 0);
        content[12] = 0x50;
        content[13] = flags;
        if protocol == ICMP {
            content[..2].copy_from_slice(&[ECHO_REQUEST, 0]);
        }
        let mut frame = vec![2; 12];
        frame.extend(IPV4);
        frame.extend([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 11]);
        frame.extend(to.octets());
        frame.extend(content);
        frame
    }

    fn out(protocol: u8, to: Ipv4Addr, port: u16) -> bool {
        BORDER.lets_out(&frame(protocol, to, (50_000, port), SYN))
    }

    #[test]
    fn what_a_cluster_needs_gets_out() {
        assert!(out(TCP, GATEWAY, 40_001), "the balancer");
        assert!(out(ICMP, GATEWAY, 0) && out(ICMP, WORLD, 0), "echo");
        assert!(out(UDP, NAME_SERVER, 53) && out(TCP, NAME_SERVER, 53), "names");
        assert!(out(TCP, WORLD, 443) && out(UDP, WORLD, 443), "registries");
        for flags in [SYN | ACK, ACK, ACK | 1, 4] {
            let answer = frame(TCP, GATEWAY, (API_PORT, 50_000), flags);
            assert!(BORDER.lets_out(&answer), "answers of API servers, {flags:#x}");
        }
        let mut question = vec![0xff; 12];
        question.extend(ARP);
        assert!(BORDER.lets_out(&question));
    }

    #[test]
    fn nothing_that_listens_on_the_host_for_itself_is_reached() {
        for port in [22, 53, 69, 80, 631, 2375, 6443, 40_000, 40_002] {
            assert!(!out(TCP, GATEWAY, port) && !out(UDP, GATEWAY, port), "{port}");
        }
        assert!(!BORDER.lets_out(&frame(TCP, GATEWAY, (API_PORT, 22), SYN)));
        for port in [22, 80, 5353, 40_001] {
            assert!(
                !out(TCP, NAME_SERVER, port) && !out(UDP, NAME_SERVER, port),
                "{port}"
            );
        }
        for text in [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "0.1.2.3",
            "10.0.2.0",
            "10.0.2.4",
            "10.0.2.15",
            "10.0.2.99",
            "10.0.2.255",
            "169.254.169.254",
            "168.63.129.16",
            "224.0.0.251",
            "255.255.255.255",
            "240.0.0.1",
        ] {
            let to: Ipv4Addr = text.parse().unwrap();
            for protocol in [TCP, UDP, ICMP, 47] {
                assert!(
                    !out(protocol, to, 40_001) && !out(protocol, to, 53),
                    "{text} {protocol}"
                );
            }
        }
        assert!(!out(47, WORLD, 0), "other protocols");
    }

    #[test]
    fn pieces_options_and_other_frames_hide_nothing() {
        let balancer = frame(TCP, GATEWAY, (50_000, 40_001), SYN);
        for (place, value) in [(6, 0x20), (7, 1), (6, 0x1f)] {
            let mut piece = balancer.clone();
            piece[ETHERNET + place] = value;
            assert!(!BORDER.lets_out(&piece), "fragment");
        }
        // Longer header: the ports stand behind it.
        let mut options = balancer.clone();
        options[ETHERNET] = 0x46;
        options[ETHERNET + 3] = 44;
        options.splice(ETHERNET + 20..ETHERNET + 20, [1, 1, 1, 1]);
        assert!(BORDER.lets_out(&options));
        options[ETHERNET + 26..ETHERNET + 28].copy_from_slice(&22u16.to_be_bytes());
        assert!(!BORDER.lets_out(&options));
        for kind in [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xf8]] {
            let mut other = balancer.clone();
            other[12..14].copy_from_slice(&kind);
            assert!(!BORDER.lets_out(&other));
        }
        for cut in 0..ETHERNET + 24 {
            assert!(!BORDER.lets_out(&balancer[..cut]), "{cut}");
        }
    }

    proptest! {
        /// Whatever a machine makes up, what gets out is to no address of the host but the listed ports.
        #[test]
        fn no_frame_reaches_the_host_but_by_the_list(
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            to in prop::sample::select(vec![[10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 77], [127, 0, 0, 1], [169, 254, 169, 254]]),
            noise in vec(any::<u8>(), 0..80),
            length in 0_usize..100,
        ) {
            let _ = BORDER.lets_out(&noise);
            let mut bytes = frame(TCP, to.into(), (50_000, 22), SYN);
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            bytes.truncate(length.max(1));
            if BORDER.lets_out(&bytes) && bytes[12..14] == IPV4 {
                let header = ETHERNET + usize::from(bytes[ETHERNET] & 15) * 4;
                let receiver = Ipv4Addr::new(bytes[30], bytes[31], bytes[32], bytes[33]);
                prop_assert!(receiver == GATEWAY || receiver == NAME_SERVER || !is_of_the_host(receiver));
                if receiver == GATEWAY && bytes[23] == TCP {
                    let port = |at: usize| u16::from_be_bytes([bytes[header + at], bytes[header + at + 1]]);
                    let opens = bytes[header + 13] & (SYN | ACK) == SYN;
                    prop_assert!(port(2) == BORDER.api_port || port(0) == API_PORT && !opens);
                }
            }
        }
    }
}
