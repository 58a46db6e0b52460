//! `InRelease`: a clear-signed list of index files with their digests. Trust in an archive begins and ends here.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use openpgp::parse::Parse;
use openpgp::parse::stream::{
    MessageLayer, MessageStructure, VerificationHelper, VerificationResult, VerifierBuilder,
};
use openpgp::policy::StandardPolicy;
use openpgp::types::RevocationStatus;
use openpgp::{Cert, Fingerprint, KeyHandle};
use sequoia_openpgp as openpgp;

use crate::digest::Digest;
use crate::failure::{ExitCode, Failure};

/// Largest `InRelease` in bytes; the largest seen has 256 KB.
pub const LIMIT: u64 = 8 << 20;

/// How a clear-signed document begins (RFC 9580, section 7).
const CLEAR_SIGNED: &[u8] = b"-----BEGIN PGP SIGNED MESSAGE-----";

/// Most index files that one `InRelease` may list.
const MAX_INDEXES: usize = 100_000;

/// Certificates that may sign an archive: only those whose fingerprint is pinned.
pub struct Keyring {
    certs: Vec<Cert>,
}

impl Keyring {
    /// Reads armored or binary certificates and keeps the pinned ones; a pinned fingerprint (40 hexadecimal digits
    /// of a primary key) that no file holds is an error.
    pub fn new(files: &[(String, Vec<u8>)], fingerprints: &[String]) -> Result<Self> {
        let mut certs = Vec::new();
        for (name, bytes) in files {
            let parser = openpgp::cert::CertParser::from_bytes(bytes)
                .with_context(|| format!("read key file {name}"))?;
            for cert in parser {
                certs.push(cert.with_context(|| format!("read key file {name}"))?);
            }
        }
        for pinned in fingerprints {
            if !certs.iter().any(|cert| matches(cert, pinned)) {
                bail!("no key file holds the pinned certificate {pinned}");
            }
        }
        certs.retain(|cert| fingerprints.iter().any(|pinned| matches(cert, pinned)));
        Ok(Self { certs })
    }
}

fn matches(cert: &Cert, pinned: &str) -> bool {
    cert.fingerprint().to_hex().eq_ignore_ascii_case(pinned)
}

/// A checked `InRelease`.
#[derive(Debug, Clone)]
pub struct Release {
    /// Suite name (`stable`).
    pub suite: Option<String>,
    /// Code name (`trixie`).
    pub codename: Option<String>,
    /// When the archive signed it.
    pub date: Timestamp,
    /// Until when it holds, where the archive says it.
    pub valid_until: Option<Timestamp>,
    /// Index files may be fetched by digest.
    pub by_hash: bool,
    /// Path below the suite -> size and digest.
    pub indexes: BTreeMap<String, (u64, Digest)>,
    /// Fingerprint of the certificate whose signature counted.
    pub signer: String,
}

impl Release {
    /// Whether it is of the suite `name`. Pockets share the codename: `noble-security` must not pass for `noble`.
    pub fn is_of(&self, name: &str) -> bool {
        let (suite, codename) = (self.suite.as_deref(), self.codename.as_deref());
        let pocket =
            suite.is_some_and(|suite| suite.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')));
        suite == Some(name) || codename == Some(name) && !pocket
    }
}

/// Checks the signature and the dates of `bytes` and reads the signed text, and nothing but the signed text.
/// `what` names the document in errors; `now` is the clock.
pub fn read(bytes: &[u8], keyring: &Keyring, what: &str, now: Timestamp) -> Result<Release> {
    let (text, signer) = verified_text(bytes, keyring, now).map_err(|error| {
        let message = format!("{what}: {error:#}");
        Failure::new(ExitCode::Mismatch, message).hint(
            "the archive or something on the way to it changed the document, or the archive has a new key: \
             compare `fingerprints` in image.toml with the distribution's keyring package",
        )
    })?;
    let release = parse(&text, signer).with_context(|| format!("{what}: malformed"))?;
    check_dates(release, what, now)
}

fn verified_text(bytes: &[u8], keyring: &Keyring, now: Timestamp) -> Result<(String, String)> {
    // What stands before the signed text is nobody's word, and a detached or inline signature is no InRelease.
    ensure!(bytes.starts_with(CLEAR_SIGNED), "not a clear-signed document");
    let seconds = u64::try_from(now.as_second()).context("the clock stands before 1970")?;
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let policy = StandardPolicy::at(time);
    let helper = Helper {
        keyring,
        policy: &policy,
        time,
        signer: None,
        problems: Vec::new(),
    };
    let mut verifier = VerifierBuilder::from_bytes(bytes)?.with_policy(&policy, time, helper)?;
    let mut text = String::new();
    verifier.by_ref().take(LIMIT).read_to_string(&mut text)?;
    ensure!(verifier.message_processed(), "the document ends too early");
    let signer = verifier.into_helper().signer.context("not signed")?;
    Ok((text, signer))
}

struct Helper<'a> {
    keyring: &'a Keyring,
    policy: &'a StandardPolicy<'a>,
    time: SystemTime,
    signer: Option<String>,
    problems: Vec<String>,
}

impl VerificationHelper for Helper<'_> {
    fn get_certs(&mut self, _ids: &[KeyHandle]) -> openpgp::Result<Vec<Cert>> {
        Ok(self.keyring.certs.clone())
    }

    /// Archives sign with old and new keys at once: one good signature by a pinned certificate is enough.
    fn check(&mut self, structure: MessageStructure<'_>) -> openpgp::Result<()> {
        for layer in structure {
            let MessageLayer::SignatureGroup { results } = layer else {
                bail!("not a plain signed document")
            };
            for result in results {
                self.judge(result);
            }
        }
        ensure!(
            self.signer.is_some(),
            "no good signature by a pinned key: {}",
            self.problems.join("; ")
        );
        Ok(())
    }
}

impl Helper<'_> {
    /// sequoia has checked that the key was alive and might sign when it made the signature. Whoever holds an expired
    /// or revoked key can date a signature back, so the same must hold now.
    fn judge(&mut self, result: VerificationResult<'_>) {
        match result {
            Ok(good) => {
                let cert = good.ka.cert();
                match self.check_now(cert, &good.ka.key().fingerprint()) {
                    Ok(()) => {
                        self.signer.get_or_insert(cert.fingerprint().to_hex());
                    }
                    Err(error) => self.problems.push(format!("{}: {error:#}", cert.fingerprint())),
                }
            }
            Err(error) => self.problems.push(error.to_string()),
        }
    }

    fn check_now(&self, cert: &Cert, signer: &Fingerprint) -> Result<()> {
        let valid = cert.with_policy(self.policy, self.time)?;
        valid.alive()?;
        if matches!(valid.revocation_status(), RevocationStatus::Revoked(_)) {
            bail!("the certificate is revoked");
        }
        let mut keys = valid.keys().alive().revoked(false).for_signing();
        if !keys.any(|key| key.key().fingerprint() == *signer) {
            bail!("the signing key is expired or revoked");
        }
        Ok(())
    }
}

fn parse(text: &str, signer: String) -> Result<Release> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    let date = field("Date").context("no field `Date`")?;
    Ok(Release {
        suite: field("Suite"),
        codename: field("Codename"),
        date: timestamp(&date)?,
        valid_until: field("Valid-Until")
            .map(|until| timestamp(&until).context("Valid-Until"))
            .transpose()?,
        by_hash: field("Acquire-By-Hash").as_deref() == Some("yes"),
        indexes: indexes(text)?,
        signer,
    })
}

/// The lines below `SHA256:`.
fn indexes(text: &str) -> Result<BTreeMap<String, (u64, Digest)>> {
    let lines = text
        .lines()
        .skip_while(|line| line.trim_end() != "SHA256:")
        .skip(1);
    let mut indexes = BTreeMap::new();
    for line in lines.take_while(|line| line.starts_with(' ')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [digest, size, path] = words[..] else {
            bail!("line `{line}` is not `digest size path`")
        };
        ensure!(indexes.len() < MAX_INDEXES, "more than {MAX_INDEXES} index files");
        let size = size.parse().with_context(|| format!("size in line `{line}`"))?;
        indexes.insert(path.to_owned(), (size, digest.parse()?));
    }
    ensure!(!indexes.is_empty(), "no SHA256 digests");
    Ok(indexes)
}

/// Release files end their dates in `UTC`, which RFC 2822 calls `+0000`, and Launchpad pads hours with a space.
fn timestamp(date: &str) -> Result<Timestamp> {
    let words = date.split_whitespace().map(|word| match word {
        "UTC" | "Z" => "+0000".to_owned(),
        time if time.find(':') == Some(1) => format!("0{time}"),
        other => other.to_owned(),
    });
    let text = words.collect::<Vec<_>>().join(" ");
    rfc2822::DateTimeParser::new()
        .parse_timestamp(&text)
        .with_context(|| format!("date `{date}`"))
}

fn check_dates(release: Release, what: &str, now: Timestamp) -> Result<Release> {
    if let Some(until) = release.valid_until.filter(|until| *until < now) {
        let message = format!("{what}: expired on {until}");
        let hint = "the mirror is behind: choose another one with --mirror; or this machine's clock is wrong";
        return Err(Failure::new(ExitCode::Mismatch, message).hint(hint).into());
    }
    // A day of tolerance for clocks that are a little off, as apt has (Acquire::Max-FutureTime is 10 s; machines
    // that build images in the cloud wake up with worse).
    if release.date.as_second() > now.as_second() + 86_400 {
        let message = format!("{what}: dated {}, which is in the future", release.date);
        return Err(Failure::new(ExitCode::Mismatch, message)
            .hint("check this machine's clock")
            .into());
    }
    Ok(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pocket_does_not_pass_for_its_release() {
        let release = |suite: &str, codename: &str| Release {
            suite: Some(suite.to_owned()),
            codename: Some(codename.to_owned()),
            date: Timestamp::UNIX_EPOCH,
            valid_until: None,
            by_hash: false,
            indexes: BTreeMap::new(),
            signer: String::new(),
        };
        let security = release("noble-security", "noble");
        assert!(security.is_of("noble-security") && !security.is_of("noble"));
        assert!(release("stable", "trixie").is_of("trixie") && release("stable", "trixie").is_of("stable"));
        assert!(release("stable-security", "trixie-security").is_of("trixie-security"));
    }

    #[test]
    fn dates_are_read_as_archives_write_them() {
        let expected: Timestamp = "2026-11-20T02:27:59Z".parse().unwrap();
        for date in [
            "Fri, 20 Nov 2026  2:27:59 UTC",
            "Fri, 20 Nov 2026 02:27:59 UTC",
            "Fri, 20 Nov 2026 02:27:59 +0000",
        ] {
            assert_eq!(timestamp(date).unwrap(), expected, "{date}");
        }
        assert!(timestamp("yesterday").is_err());
    }
}
