//! Makes a key set.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use kimage_roles::pem;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::KeyPair;
use rsa::RsaPrivateKey;
use rsa::pkcs8::EncodePrivateKey;

use super::{Secret, ed25519_pair, release_public_pem, rsa_pair, rsa_sign};
use crate::private;
use crate::sign::efi_signature_list::{Variable, authenticated_update, certificate_list, owner};

/// PKCS#8 of an Ed25519 seed (RFC 8410, section 7) up to the seed. Version 1: OpenSSL does not read ring's version 2.
const ED25519_PKCS8: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];

/// Makes a new key set in `folder`, which must be absent or empty. It appears with all its files or not at all.
pub fn create(folder: &Path) -> Result<()> {
    private::create_folder(folder, write_key_set)
}

fn write_key_set(folder: &Path) -> Result<()> {
    let platform = new_certificate("platform key")?;
    let exchange = new_certificate("key exchange key")?;
    let database = new_certificate("signature database key")?;
    let owner = owner(&platform.certificate);
    // The platform key vouches for itself and for KEK, KEK for db.
    for (name, key, variable, by) in [
        ("PK", &platform, Variable::PlatformKey, &platform),
        ("KEK", &exchange, Variable::KeyExchangeKey, &platform),
        ("db", &database, Variable::Database, &exchange),
    ] {
        let list = certificate_list(owner, &key.certificate);
        let pair = rsa_pair(&by.private)?;
        let update = authenticated_update(variable, &list, &by.certificate, |message| {
            rsa_sign(&pair, message)
        })?;
        private::write_new(
            &folder.join(format!("{name}.key")),
            pem::encode("PRIVATE KEY", &key.private.0).as_bytes(),
        )?;
        let text = pem::encode("CERTIFICATE", &key.certificate);
        private::write_new(&folder.join(format!("{name}.crt")), text.as_bytes())?;
        private::write_new(&folder.join(format!("{name}.auth")), &update)?;
    }
    let mut release = Secret(ED25519_PKCS8.to_vec());
    release.0.resize(ED25519_PKCS8.len() + 32, 0);
    random(&mut release.0[ED25519_PKCS8.len()..])?;
    let pair = ed25519_pair(&release)?;
    private::write_new(
        &folder.join("release.key"),
        pem::encode("PRIVATE KEY", &release.0).as_bytes(),
    )?;
    private::write_new(
        &folder.join("release.pub"),
        release_public_pem(pair.public_key().as_ref()).as_bytes(),
    )
}

struct CertifiedKey {
    private: Secret,
    certificate: Vec<u8>,
}

/// An RSA-2048 key and its self-signed certificate. Firmware does not look at the dates.
fn new_certificate(role: &str) -> Result<CertifiedKey> {
    let key = RsaPrivateKey::new(&mut SystemEntropy, 2048).context("generate RSA key")?;
    let private = Secret(key.to_pkcs8_der().context("encode RSA key")?.as_bytes().to_vec());
    let pair =
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&private.0.as_slice().into(), &rcgen::PKCS_RSA_SHA256)?;
    let mut serial = [0; 16];
    random(&mut serial)?;
    serial[0] &= 0x7f;
    let mut parameters = rcgen::CertificateParams::default();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("kimage {role}"));
    // Three certificates of one set, and those of two sets, must not share a subject with another key.
    parameters.distinguished_name.push(
        rcgen::DnType::OrganizationalUnitName,
        crate::digest::hex(&serial[..4]),
    );
    parameters.serial_number = Some(serial.to_vec().into());
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2119, 12, 31);
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&pair)?.der().to_vec();
    Ok(CertifiedKey { private, certificate })
}

/// The system's entropy in the shape that the `rsa` crate wants.
struct SystemEntropy;

impl rsa::rand_core::RngCore for SystemEntropy {
    fn next_u32(&mut self) -> u32 {
        rsa::rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rsa::rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        #[expect(
            clippy::expect_used,
            reason = "the trait has no error here, and a key from no entropy is worse"
        )]
        self.try_fill_bytes(bytes).expect("the system gives entropy");
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rsa::rand_core::Error> {
        SystemRandom::new()
            .fill(bytes)
            .map_err(|error| rsa::rand_core::Error::new(error.to_string()))
    }
}

impl rsa::rand_core::CryptoRng for SystemEntropy {}

fn random(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| anyhow!("the system gives no entropy"))
}
