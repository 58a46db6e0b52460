//! One question to a DNS server over TCP (RFC 1035, RFC 7766), and what it answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Emulated servers behind two proxies take their time.
const TIMEOUT: Duration = Duration::from_secs(15);
const ID: u16 = 0x6b69;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// IPv4 addresses.
    A = 1,
    /// Text.
    Txt = 16,
}

/// Data of all records of `kind` that `server` has for `name`.
///
/// # Errors
///
/// No answer in time, one with an error code, or none of the kind.
pub(crate) fn ask(server: SocketAddr, name: &str, kind: Kind) -> Result<Vec<Vec<u8>>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let question = encode(name, kind)?;
    stream.write_all(&u16::try_from(question.len())?.to_be_bytes())?;
    stream.write_all(&question)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("no answer")?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    decode(&answer, kind).with_context(|| format!("ask for {kind:?} of {name}"))
}

fn encode(name: &str, kind: Kind) -> Result<Vec<u8>> {
    let mut bytes = ID.to_be_bytes().to_vec();
    // Recursion is wanted; one question.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        bytes.push(u8::try_from(label.len())?);
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, kind as u8, 0, 1]);
    Ok(bytes)
}

fn decode(answer: &[u8], kind: Kind) -> Result<Vec<Vec<u8>>> {
    let mut rest = Reader(answer);
    ensure!(rest.number()? == ID, "the answer is to another question");
    let code = rest.number()? & 0xf;
    ensure!(code == 0, "error code {code}");
    let (questions, records) = (rest.number()?, rest.number()?);
    rest.take(4)?;
    for _ in 0..questions {
        rest.name()?;
        rest.take(4)?;
    }
    let mut found = Vec::new();
    for _ in 0..records {
        rest.name()?;
        let this = rest.number()?;
        rest.take(6)?;
        let length = rest.number()?;
        let data = rest.take(length.into())?;
        if this == kind as u16 {
            found.push(data.to_vec());
        }
    }
    ensure!(!found.is_empty(), "no record");
    Ok(found)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("a short answer")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Steps over a name: labels until an empty one or a pointer.
    fn name(&mut self) -> Result<()> {
        loop {
            match self.take(1)?[0] {
                0 => return Ok(()),
                length if length >= 0xc0 => return self.take(1).map(drop),
                length => self.take(length.into())?,
            };
        }
    }
}
