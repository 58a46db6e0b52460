//! A delayed cable: what goes over it is late, in order and whole.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kimage_qemu_tests::namespaces::delay::{Delay, Latency};
use kimage_qemu_tests::namespaces::network::{BENCH, Cable, Network};

const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 40);
const PORT: u16 = 7;
const DEADLINE: Duration = Duration::from_secs(60);

/// Sends back what it gets: datagrams, and the bytes of one connection.
fn serve_echo(cable: &Cable) {
    let sockets = || {
        Ok((
            UdpSocket::bind((MACHINE, PORT))?,
            TcpListener::bind((MACHINE, PORT))?,
        ))
    };
    let (datagrams, connections) = cable.within(sockets).unwrap();
    std::thread::spawn(move || {
        let mut datagram = [0; 64];
        while let Ok((length, client)) = datagrams.recv_from(&mut datagram) {
            datagrams.send_to(&datagram[..length], client).unwrap();
        }
    });
    std::thread::spawn(move || {
        let (mut connection, _) = connections.accept().unwrap();
        let mut back = connection.try_clone().unwrap();
        std::io::copy(&mut connection, &mut back).unwrap();
        back.shutdown(Shutdown::Write).unwrap();
    });
}

fn client(network: &Network) -> UdpSocket {
    let socket = network.within(|| Ok(UdpSocket::bind((BENCH, 0))?)).unwrap();
    socket.connect((MACHINE, PORT)).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

fn round_trip(client: &UdpSocket) -> Duration {
    let began = Instant::now();
    client.send(b"there and back").unwrap();
    client.recv(&mut [0; 64]).unwrap();
    began.elapsed()
}

fn come_back_in_order(client: &UdpSocket, count: u32) {
    for number in 0..count {
        client.send(&number.to_be_bytes()).unwrap();
    }
    for number in 0..count {
        let mut got = [0; 4];
        client.recv(&mut got).unwrap();
        assert_eq!(u32::from_be_bytes(got), number);
    }
}

/// More than fits into any frame, in segments as large as the sender's kernel likes.
fn come_back_whole(network: &Network) {
    let sent: Vec<u8> = (0u32..1 << 20).flat_map(u32::to_be_bytes).collect();
    let connect = || Ok(TcpStream::connect((MACHINE, PORT))?);
    let mut connection = network.within(connect).unwrap();
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut out = connection.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            out.write_all(&sent).unwrap();
            out.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        connection.read_to_end(&mut got).unwrap();
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
    });
}

#[test]
fn a_delayed_cable_is_late_both_ways_in_order_and_whole_and_as_before_when_the_delay_ends() {
    let network = Network::new().unwrap();
    let cable = network.connect("m1", MACHINE).unwrap();
    serve_echo(&cable);
    let client = client(&network);
    let [mean, jitter] = [40, 20].map(Duration::from_millis);
    let delay = Delay::on(&cable, Latency { mean, jitter }).unwrap();
    let least = 2 * (mean - jitter);
    let round_trips: Vec<Duration> = (0..20).map(|_| round_trip(&client)).collect();
    println!(
        "round trips from {:?} to {:?}",
        round_trips.iter().min(),
        round_trips.iter().max()
    );
    assert!(round_trips.iter().all(|time| *time >= least), "{round_trips:?}");
    come_back_in_order(&client, 100);
    come_back_whole(&network);
    assert!(delay.count() >= 2 * (20 + 100), "{} frames", delay.count());
    drop(delay);
    let end = Instant::now() + DEADLINE;
    while round_trip(&client) >= least {
        assert!(Instant::now() < end, "the cable is late still");
    }
}
