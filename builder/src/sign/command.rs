//! An external program that holds the keys: the way to an HSM, a KMS or an offline signing ceremony.
//!
//! The program is started once per request, reads one JSON object from standard input and writes one to standard
//! output:
//!
//! ```text
//! {"version":1,"operation":"identity"}
//!   -> {"platform_key":"<base64 DER>","key_exchange_key":"...","database":"...","release":"<base64, 32 bytes>",
//!       "enrolment":{"platform_key":"<base64 .auth>","key_exchange_key":"...","database":"..."}}   (enrolment: optional)
//! {"version":1,"operation":"sign","purpose":"secure-boot","algorithm":"rsa-pkcs1-sha256","message":"<base64>"}
//!   -> {"signature":"<base64>"}
//! {"version":1,"operation":"sign","purpose":"release","algorithm":"ed25519","message":"<base64>"}
//! ```
//!
//! It sees the environment of kimage, since credentials of key services live there.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Enrolment, Identity, Purpose, Signer, certificate};
use crate::failure::{ExitCode, Failure};
use crate::tool::{Tool, tail};

/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;
/// How long a program may take for one answer unless told otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Serialize)]
#[serde(tag = "operation", rename_all = "lowercase")]
enum Request {
    Identity {
        version: u32,
    },
    Sign {
        version: u32,
        purpose: &'static str,
        algorithm: &'static str,
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    signature: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    platform_key: Bytes,
    key_exchange_key: Bytes,
    database: Bytes,
    release: Bytes,
    enrolment: Option<Updates>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Updates {
    platform_key: Bytes,
    key_exchange_key: Bytes,
    database: Bytes,
}

/// Bytes that travel as base64.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Signs by asking an external program.
#[derive(Debug)]
pub struct CommandSigner {
    program: PathBuf,
    arguments: Vec<OsString>,
    timeout: Duration,
    identity: Identity,
}

impl CommandSigner {
    /// Asks `program` for its identity. Each request may take `timeout` ([`TIMEOUT`] by default).
    pub fn new(program: &Path, arguments: &[OsString], timeout: Duration) -> Result<Self> {
        let answer = ask::<Keys>(program, arguments, timeout, &Request::Identity { version: 1 })?;
        let identity =
            identity(answer).with_context(|| format!("identity that {} gave", program.display()))?;
        Ok(Self {
            program: program.to_owned(),
            arguments: arguments.to_vec(),
            timeout,
            identity,
        })
    }
}

fn identity(keys: Keys) -> Result<Identity> {
    for (name, der) in [
        ("platform key", &keys.platform_key),
        ("key exchange key", &keys.key_exchange_key),
        ("database", &keys.database),
    ] {
        certificate::parse(&der.0).with_context(|| format!("{name} certificate"))?;
    }
    let Ok(release) = keys.release.0.try_into() else {
        bail!("release key is not 32 bytes of Ed25519")
    };
    let enrolment = keys.enrolment.map(|updates| Enrolment {
        platform_key: updates.platform_key.0,
        key_exchange_key: updates.key_exchange_key.0,
        database: updates.database.0,
    });
    let identity = Identity {
        platform_key: keys.platform_key.0,
        key_exchange_key: keys.key_exchange_key.0,
        database: keys.database.0,
        release,
        enrolment,
        development: false,
    };
    identity.check_enrolment()?;
    Ok(identity)
}

impl Signer for CommandSigner {
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>> {
        let (name, algorithm) = match purpose {
            Purpose::SecureBoot => ("secure-boot", "rsa-pkcs1-sha256"),
            Purpose::Release => ("release", "ed25519"),
        };
        let message_text = STANDARD.encode(message);
        let request = Request::Sign {
            version: 1,
            purpose: name,
            algorithm,
            message: message_text,
        };
        let answer: Signature = ask(&self.program, &self.arguments, self.timeout, &request)?;
        let signature = answer.signature.0;
        self.identity
            .verify(purpose, message, &signature)
            .with_context(|| format!("signer {} gave a wrong {name} signature", self.program.display()))?;
        Ok(signature)
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn ask<A: DeserializeOwned>(
    program: &Path,
    arguments: &[OsString],
    timeout: Duration,
    request: &Request,
) -> Result<A> {
    let mut tool = Tool::new(program).args(arguments);
    for (name, value) in std::env::vars_os() {
        tool = tool.env(name, value);
    }
    let mut command = tool.into_command();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        Failure::new(
            ExitCode::Usage,
            format!("start signer {}: {error}", program.display()),
        )
        .hint("the signer must be an executable file; give its path")
    })?;
    let answer = converse(&mut child, &serde_json::to_vec(request)?, timeout);
    if answer.is_err() {
        // It is over for this child either way; one that already ended is no error.
        let _ = child.kill();
        let _ = child.wait();
    }
    let answer = answer.with_context(|| format!("signer {}", program.display()))?;
    serde_json::from_slice(&answer).with_context(|| format!("answer of signer {}", program.display()))
}

fn converse(child: &mut Child, request: &[u8], timeout: Duration) -> Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let (Some(mut input), Some(output), Some(errors)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        bail!("no pipes");
    };
    let request = [request, b"\n"].concat();
    // Threads: a child that fills one pipe while we wait on another would never end. They end with the child.
    thread::spawn(move || input.write_all(&request));
    let collect = |mut source: Box<dyn Read + Send>| {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let result = source.by_ref().take(MAX_ANSWER + 1).read_to_end(&mut bytes);
            let _ = sender.send(result.map(|_| bytes));
        });
        receiver
    };
    let (output, errors) = (collect(Box::new(output)), collect(Box::new(errors)));
    let left = || deadline.saturating_duration_since(Instant::now());
    let late = || format!("no answer within {} s", timeout.as_secs_f32());
    let answer = output
        .recv_timeout(left())
        .with_context(late)?
        .context("read answer")?;
    if answer.len() as u64 > MAX_ANSWER {
        bail!("answer is longer than {MAX_ANSWER} bytes");
    }
    let said = errors
        .recv_timeout(left())
        .with_context(late)?
        .unwrap_or_default();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if left().is_zero() => bail!(late()),
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    if !status.success() {
        bail!("it failed ({status})\n{}", tail(&said));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::keys::testing;
    use std::os::unix::fs::PermissionsExt;

    fn script(folder: &Path, body: &str) -> PathBuf {
        let path = folder.join("signer");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn identity_json() -> String {
        let identity = testing::signer().identity();
        let text = |bytes: &[u8]| STANDARD.encode(bytes);
        serde_json::json!({
            "platform_key": text(&identity.platform_key),
            "key_exchange_key": text(&identity.key_exchange_key),
            "database": text(&identity.database),
            "release": text(&identity.release),
        })
        .to_string()
    }

    fn answering(folder: &Path, signature: &[u8]) -> CommandSigner {
        let signature = STANDARD.encode(signature);
        let body = format!(
            "read r; case $r in *identity*) echo '{}';; *) echo '{{\"signature\":\"{signature}\"}}';; esac",
            identity_json()
        );
        CommandSigner::new(&script(folder, &body), &[], TIMEOUT).unwrap()
    }

    #[test]
    fn right_signatures_pass_and_wrong_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        for purpose in [Purpose::SecureBoot, Purpose::Release] {
            let signature = testing::signer().sign(purpose, b"message").unwrap();
            let signer = answering(folder.path(), &signature);
            assert_eq!(signer.sign(purpose, b"message").unwrap(), signature);
            let error = format!("{:#}", signer.sign(purpose, b"another message").unwrap_err());
            assert!(error.contains("wrong"), "{error}");
        }
    }

    #[test]
    fn a_program_that_fails_hangs_or_babbles_is_a_clear_error() {
        let folder = tempfile::tempdir().unwrap();
        for (body, expected) in [
            ("echo no such slot >&2; exit 4", "no such slot"),
            ("exec sleep 100", "no answer within"),
            ("exec >&-; sleep 100", "no answer within"),
            ("echo hello", "answer of signer"),
            ("exec cat /dev/zero", "longer than"),
            (
                r#"echo '{"platform_key":"","key_exchange_key":"","database":"","release":""}'"#,
                "platform key",
            ),
        ] {
            let program = script(folder.path(), body);
            let started = Instant::now();
            let error = CommandSigner::new(&program, &[], Duration::from_millis(700)).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.contains(expected), "{body}: {text}");
            assert!(started.elapsed() < Duration::from_secs(10), "{body}");
        }
        let error = CommandSigner::new(&folder.path().join("absent"), &[], TIMEOUT).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
    }
}
