//! Signs as an archive does.

use std::io::Write;
use std::time::SystemTime;

use sequoia_openpgp::cert::Cert;
use sequoia_openpgp::policy::StandardPolicy;
use sequoia_openpgp::serialize::stream::{Message, Signer};

/// Clear-signs `text` with the signing key of `certificate` and dates the signature `time`.
pub(crate) fn clear_sign(certificate: &Cert, text: &[u8], time: SystemTime) -> Vec<u8> {
    let policy = StandardPolicy::new();
    let keys = certificate
        .keys()
        .with_policy(&policy, time)
        .secret()
        .for_signing();
    let pair = keys
        .map(|key| key.key().clone().into_keypair().unwrap())
        .next()
        .unwrap();
    let mut document = Vec::new();
    let signer = Signer::new(Message::new(&mut document), pair).unwrap();
    let mut signer = signer.cleartext().creation_time(time).build().unwrap();
    signer.write_all(text).unwrap();
    signer.finalize().unwrap();
    document
}
