//! Ethernet frames as far as the switch looks into them: hardware addresses, and DHCP (RFC 2131), which it answers
//! itself, so that every machine has the address that the others were told.

use std::net::Ipv4Addr;

use super::{GATEWAY, NAME_SERVER, NETMASK};

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// The switch's own; it is seen in answers of its DHCP server only.
const OWN_MAC: Mac = [0x52, 0x54, 0x00, 0xff, 0xff, 0xfe];
const ETHERNET: usize = 14;
/// `ETH_P_IP`.
const IPV4: [u8; 2] = [0x08, 0x00];
const UDP: u8 = 17;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// Of the BOOTP part with its magic cookie; options follow.
const BOOTP: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// Seconds; the machine asks again after half of it, and gets the same.
const LEASE: u32 = 86_400;

const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const INFORM: u8 = 8;

/// Receiver and sender of a frame.
pub(super) fn ends(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (to, rest) = frame.split_first_chunk::<6>()?;
    let (from, rest) = rest.split_first_chunk::<6>()?;
    (rest.len() >= 2).then_some((*to, *from))
}

/// Whether a frame is for everybody, or for a group.
pub(super) fn is_for_many(to: Mac) -> bool {
    to[0] & 1 == 1
}

/// A question to a DHCP server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    kind: u8,
    transaction: [u8; 4],
    flags: [u8; 2],
    /// Who asks.
    pub(super) mac: Mac,
    client_address: [u8; 4],
}

/// The DHCP question in a frame.
pub(super) fn question(frame: &[u8]) -> Option<Question> {
    if frame.get(12..ETHERNET)? != IPV4.as_slice() {
        return None;
    }
    let packet = frame.get(ETHERNET..)?;
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 || *packet.get(9)? != UDP {
        return None;
    }
    let datagram = packet.get(header..)?;
    if datagram.get(2..4)? != SERVER_PORT.to_be_bytes().as_slice() {
        return None;
    }
    let message = datagram.get(8..)?;
    // BOOTREQUEST, Ethernet, six bytes of address.
    if message.get(..3)? != [1, 1, 6].as_slice() || message.get(236..BOOTP)? != COOKIE.as_slice() {
        return None;
    }
    Some(Question {
        kind: kind(message.get(BOOTP..)?)?,
        transaction: message.get(4..8)?.try_into().ok()?,
        flags: message.get(10..12)?.try_into().ok()?,
        mac: message.get(28..34)?.try_into().ok()?,
        client_address: message.get(12..16)?.try_into().ok()?,
    })
}

/// Option 53.
fn kind(mut options: &[u8]) -> Option<u8> {
    loop {
        let (code, rest) = options.split_first()?;
        match code {
            0 => options = rest,
            255 => return None,
            _ => {
                let (length, rest) = rest.split_first()?;
                let value = rest.get(..usize::from(*length))?;
                if *code == 53 {
                    return value.first().copied();
                }
                options = &rest[value.len()..];
            }
        }
    }
}

/// The frame that answers `question` with `address`; `None` where no answer is due.
pub(super) fn answer(question: &Question, address: Ipv4Addr) -> Option<Vec<u8>> {
    let kind = match question.kind {
        DISCOVER => OFFER,
        REQUEST | INFORM => ACK,
        _ => return None,
    };
    let mut message = vec![2, 1, 6, 0];
    message.extend(question.transaction);
    message.extend([0, 0]);
    message.extend(question.flags);
    message.extend(question.client_address);
    message.extend(address.octets());
    message.extend(GATEWAY.octets());
    message.extend([0; 4]);
    message.extend(question.mac);
    message.resize(236, 0);
    message.extend(COOKIE);
    let mut option = |code: u8, value: &[u8]| {
        message.extend([code, value.len() as u8]);
        message.extend(value);
    };
    option(53, &[kind]);
    option(54, &GATEWAY.octets());
    option(51, &LEASE.to_be_bytes());
    option(1, &NETMASK.octets());
    option(3, &GATEWAY.octets());
    option(6, &NAME_SERVER.octets());
    message.push(255);
    Some(datagram(&message, question.mac, address))
}

/// A UDP datagram to a client that may have no address yet, in a frame.
fn datagram(message: &[u8], to: Mac, address: Ipv4Addr) -> Vec<u8> {
    let udp = (message.len() + 8) as u16;
    let mut header = vec![0x45, 0];
    header.extend((udp + 20).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, UDP, 0, 0]);
    header.extend(GATEWAY.octets());
    header.extend(address.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    let mut frame = Vec::with_capacity(ETHERNET + usize::from(udp) + 20);
    frame.extend(to);
    frame.extend(OWN_MAC);
    frame.extend(IPV4);
    frame.extend(header);
    frame.extend(SERVER_PORT.to_be_bytes());
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(udp.to_be_bytes());
    // No checksum (RFC 768).
    frame.extend([0, 0]);
    frame.extend(message);
    frame
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, proptest};

    use super::*;

    const CLIENT: Mac = [0x52, 0x54, 0, 0, 2, 11];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 11);

    /// What a client sends.
    fn asked(kind: u8) -> Vec<u8> {
        let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
        message.resize(28, 0);
        message.extend(CLIENT);
        message.resize(236, 0);
        message.extend(COOKIE);
        message.extend([12, 2, b'c', b'p', 0, 53, 1, kind, 255]);
        let mut frame = datagram(&message, [0xff; 6], Ipv4Addr::BROADCAST);
        let udp = ETHERNET + 20;
        frame[udp..udp + 4].copy_from_slice(&[0, 68, 0, 67]);
        frame
    }

    #[test]
    fn a_client_gets_the_address_it_was_promised() {
        for (kind, reply) in [(DISCOVER, OFFER), (REQUEST, ACK)] {
            let question = question(&asked(kind)).unwrap();
            assert_eq!(question.mac, CLIENT);
            let frame = answer(&question, ADDRESS).unwrap();
            assert_eq!(ends(&frame), Some((CLIENT, OWN_MAC)));
            let message = &frame[ETHERNET + 28..];
            assert_eq!(message[4..8], [1, 2, 3, 4]);
            assert_eq!(message[16..20], ADDRESS.octets());
            assert_eq!(message[BOOTP..BOOTP + 3], [53, 1, reply]);
            // A header with its right checksum sums up to nothing (RFC 1071).
            assert_eq!(checksum(&frame[ETHERNET..ETHERNET + 20]), 0);
        }
        let released = question(&asked(7)).unwrap();
        assert_eq!(answer(&released, ADDRESS), None);
    }

    #[test]
    fn other_frames_are_no_questions() {
        let asked = asked(DISCOVER);
        for cut in 0..asked.len() - 1 {
            assert_eq!(question(&asked[..cut]), None, "{cut}");
        }
        let mut web = asked.clone();
        web[ETHERNET + 23] = 80;
        assert_eq!(question(&web), None);
    }

    proptest! {
        #[test]
        fn no_frame_makes_the_switch_panic(noise in vec(any::<u8>(), 0..600), at in 0_usize..300, byte in any::<u8>()) {
            let _ = ends(&noise);
            let _ = question(&noise);
            let mut frame = asked(DISCOVER);
            let at = at % frame.len();
            frame[at] = byte;
            if let Some(question) = question(&frame) {
                drop(answer(&question, ADDRESS));
            }
        }
    }
}
