//! A metadata service as EC2 has it (IMDSv2), for machines of the bench that believe to be there; with the faults that
//! such services have.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::machine::SHARED;
use super::network::Network;
use crate::images::{command, finish};

/// Where every cloud has it.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const TOKEN: &str = "AQAEAbench";
/// Bytes that a hostile service sends: no machine should read them all.
const FLOOD: u64 = 1 << 30;

/// What the service does when it is asked for user-data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    /// Gives it.
    Gives(String),
    /// Refuses with a status.
    Refuses(u16),
    /// Sends a byte now and then, for ever.
    Trickles,
    /// Sends a gigabyte.
    Floods,
}

/// The service of one machine. Its thread ends with the test's process.
#[derive(Debug)]
pub struct Metadata {
    mood: Arc<Mutex<Mood>>,
}

impl Metadata {
    /// Serves a machine called `name` at `address`.
    pub fn start(network: &Network, name: &str, address: Ipv4Addr) -> Result<Self> {
        // Machines without an answer of DHCP give themselves such an address too, and ask from there.
        let words = format!("-n {} addr add {ADDRESS}/16 dev bench", network.name());
        finish(command("ip").args(words.split(' ')))?;
        let listener = network.within(|| TcpListener::bind((ADDRESS, 80)).context("serve metadata"))?;
        let mood = Arc::new(Mutex::new(Mood::Refuses(404)));
        let (shared, name) = (Arc::clone(&mood), name.to_owned());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (mood, name) = (Arc::clone(&shared), name.clone());
                // A machine that hangs up in the middle is what some of these faults are about.
                thread::spawn(move || drop(serve(&socket, &mood, &name, address)));
            }
        });
        Ok(Self { mood })
    }

    /// From now on it does so.
    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }
}

/// Files over `/etc` and in the shared folder that make a machine believe it stands in EC2: firmware that says so, and
/// no sign of a container.
pub fn disguise(shared: &std::path::Path) -> Result<Vec<(&'static str, String)>> {
    let firmware = shared.join("ec2");
    std::fs::create_dir_all(&firmware)?;
    std::fs::write(firmware.join("sys_vendor"), "Amazon EC2\n")?;
    let unit = format!(
        "[Service]\nTemporaryFileSystem=/run/host /sys/class\nBindReadOnlyPaths={SHARED}/ec2:/sys/class/dmi/id\n"
    );
    Ok(vec![("systemd/system/kimage-firstboot.service.d/ec2.conf", unit)])
}

fn serve(socket: &TcpStream, mood: &Mutex<Mood>, name: &str, address: Ipv4Addr) -> Result<()> {
    let mut reader = BufReader::new(socket);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut authorized = false;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            authorized |= header == format!("x-aws-ec2-metadata-token: {}", TOKEN.to_ascii_lowercase());
            if header.is_empty() {
                break;
            }
        }
        let mood = mood.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let path = request.split(' ').nth(1).unwrap_or_default();
        match path {
            "/latest/api/token" => answer(socket, 200, TOKEN)?,
            _ if !authorized => answer(socket, 401, "")?,
            "/latest/user-data" => give(socket, &mood)?,
            "/latest/dynamic/instance-identity/document" => answer(
                socket,
                200,
                &format!(
                    r#"{{"instanceId": "i-{name}", "privateIp": "{address}", "availabilityZone": "bench-1a", "region": "bench-1"}}"#
                ),
            )?,
            "/latest/meta-data/local-hostname" => answer(socket, 200, name)?,
            _ => answer(socket, 404, "")?,
        }
    }
}

fn give(socket: &TcpStream, mood: &Mood) -> Result<()> {
    let mut writer = socket;
    match mood {
        Mood::Gives(text) => answer(socket, 200, text),
        Mood::Refuses(status) => answer(socket, *status, "the service's own words"),
        Mood::Trickles => {
            writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            loop {
                writer.write_all(b" ")?;
                thread::sleep(Duration::from_millis(500));
            }
        }
        Mood::Floods => {
            writer.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {FLOOD}\r\n\r\n").as_bytes())?;
            std::io::copy(&mut std::io::repeat(b' ').take(FLOOD), &mut writer)?;
            Ok(())
        }
    }
}

fn answer(mut socket: &TcpStream, status: u16, body: &str) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {status} Bench\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Ok(socket.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())?)
}
