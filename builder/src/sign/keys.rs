//! Key sets as folders of files: made once, then loaded for every build.
//!
//! A folder holds the certificates `PK.crt`, `KEK.crt`, `db.crt`, the public release key `release.pub`, the signed
//! firmware updates `PK.auth`, `KEK.auth`, `db.auth`, and the private keys `PK.key`, `KEK.key`, `db.key`,
//! `release.key` (all PEM but the updates). A build needs the private keys `db.key` and `release.key` only: PK and KEK
//! can go offline as soon as the folder is made.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use rsa::RsaPrivateKey;
use rsa::pkcs8::EncodePrivateKey;

use super::efi_signature_list::{Variable, authenticated_update, certificate_list, owner, verify_update};
use super::{Enrolment, Identity, Purpose, Signer, certificate, der, pem};
use crate::failure::{ExitCode, Failure};
use crate::private;
use crate::progress::Progress;

/// No file of a key set is larger, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// PKCS#8 of an Ed25519 seed (RFC 8410, section 7) up to the seed. Version 1: OpenSSL does not read ring's version 2.
const ED25519_PKCS8: [u8; 16] = [48, 46, 2, 1, 0, 48, 5, 6, 3, 43, 101, 112, 4, 34, 4, 32];

/// Bytes of a private key, which never show in a log.
struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

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

/// `SubjectPublicKeyInfo` of an Ed25519 key (RFC 8410) as PEM, which `openssl pkeyutl -verify -rawin` reads.
pub fn release_public_pem(key: &[u8]) -> String {
    let algorithm = der::sequence(&[&der::oid(der::ED25519)]);
    pem::encode(
        "PUBLIC KEY",
        &der::sequence(&[&algorithm, &der::element(der::BIT_STRING, &[&[0], key])]),
    )
}

/// A certificate as PEM, which `sbverify --cert` reads.
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode("CERTIFICATE", der)
}

/// The certificate (DER) in PEM `text`.
pub fn certificate_der(text: &str) -> Result<Vec<u8>> {
    let der = pem::decode("CERTIFICATE", text)?;
    certificate::parse(&der)?;
    Ok(der)
}

/// The Ed25519 public key in PEM `text`.
pub fn release_public_key(text: &str) -> Result<[u8; 32]> {
    let spki = pem::decode("PUBLIC KEY", text)?;
    let key = spki
        .get(spki.len().saturating_sub(32)..)
        .and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.context("not an Ed25519 public key")?;
    ensure!(
        pem::decode("PUBLIC KEY", &release_public_pem(&key))? == spki,
        "not an Ed25519 public key"
    );
    Ok(key)
}

impl Identity {
    /// Reads the public files of a key folder; its private keys may be absent.
    pub fn load(folder: &Path) -> Result<Self> {
        let certificate = |name: &str| -> Result<Vec<u8>> {
            let path = folder.join(format!("{name}.crt"));
            let der = pem::decode("CERTIFICATE", &read_text(&path)?);
            let der = der.with_context(|| format!("read {}", path.display()))?;
            certificate::parse(&der).with_context(|| format!("read {}", path.display()))?;
            Ok(der)
        };
        let release = folder.join("release.pub");
        let mut identity = Self {
            platform_key: certificate("PK")?,
            key_exchange_key: certificate("KEK")?,
            database: certificate("db")?,
            release: release_public_key(&read_text(&release)?)
                .with_context(|| format!("read {}", release.display()))?,
            enrolment: None,
            development: false,
        };
        if folder.join("PK.auth").exists() {
            let update = |name: &str| read(&folder.join(format!("{name}.auth")));
            identity.enrolment = Some(Enrolment {
                platform_key: update("PK")?,
                key_exchange_key: update("KEK")?,
                database: update("db")?,
            });
        }
        identity
            .check_enrolment()
            .with_context(|| format!("key folder {}", folder.display()))?;
        Ok(identity)
    }

    /// Checks that the signed firmware updates, where there are any, carry this identity's certificates.
    pub(super) fn check_enrolment(&self) -> Result<()> {
        let Some(enrolment) = &self.enrolment else {
            return Ok(());
        };
        let owner = owner(&self.platform_key);
        for (variable, key, by, update) in [
            (
                Variable::PlatformKey,
                &self.platform_key,
                &self.platform_key,
                &enrolment.platform_key,
            ),
            (
                Variable::KeyExchangeKey,
                &self.key_exchange_key,
                &self.platform_key,
                &enrolment.key_exchange_key,
            ),
            (
                Variable::Database,
                &self.database,
                &self.key_exchange_key,
                &enrolment.database,
            ),
        ] {
            verify_update(variable, &certificate_list(owner, key), by, update)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if let Err(error) = result {
        let missing = error.kind() == io::ErrorKind::NotFound;
        let failure = Failure::new(ExitCode::Usage, format!("read {}: {error}", path.display()));
        bail!(if missing {
            failure.hint("`kimage keys new DIR` makes a key set")
        } else {
            failure
        });
    }
    ensure!(
        bytes.len() as u64 <= MAX_FILE,
        "{} is too large for a key file",
        path.display()
    );
    Ok(bytes)
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|_| anyhow!("{} is not a text file", path.display()))
}

/// Signs with the private keys of a folder.
pub struct FileSigner {
    identity: Identity,
    secure_boot: RsaKeyPair,
    release: Ed25519KeyPair,
}

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSigner")
            .field("identity", &self.identity)
            .field("keys", &"****")
            .finish()
    }
}

impl FileSigner {
    /// Loads a folder that [`create`] made (or one of that shape) and checks that its private keys belong to its
    /// certificates.
    pub fn load(folder: &Path) -> Result<Self> {
        let identity = Identity::load(folder)?;
        let secret = |name: &str| -> Result<Secret> {
            let path = folder.join(name);
            let der = pem::decode("PRIVATE KEY", &read_text(&path)?);
            Ok(Secret(der.with_context(|| {
                format!("read {}: not a PKCS#8 key", path.display())
            })?))
        };
        let signer = Self {
            identity,
            secure_boot: rsa_pair(&secret("db.key")?)?,
            release: ed25519_pair(&secret("release.key")?)?,
        };
        for purpose in [Purpose::SecureBoot, Purpose::Release] {
            signer
                .sign(purpose, b"kimage key check")
                .with_context(|| format!("key folder {}", folder.display()))?;
        }
        Ok(signer)
    }
}

impl Signer for FileSigner {
    fn sign(&self, purpose: Purpose, message: &[u8]) -> Result<Vec<u8>> {
        let signature = match purpose {
            Purpose::SecureBoot => rsa_sign(&self.secure_boot, message)?,
            Purpose::Release => self.release.sign(message).as_ref().to_vec(),
        };
        self.identity.verify(purpose, message, &signature)?;
        Ok(signature)
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }
}

fn rsa_pair(secret: &Secret) -> Result<RsaKeyPair> {
    let pair = RsaKeyPair::from_pkcs8(&secret.0).map_err(|error| anyhow!("not an RSA key: {error}"))?;
    ensure!(
        pair.public().modulus_len() == 256,
        "Secure Boot keys are RSA-2048: firmware knows no others for sure"
    );
    Ok(pair)
}

fn ed25519_pair(secret: &Secret) -> Result<Ed25519KeyPair> {
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&secret.0);
    pair.map_err(|error| anyhow!("not an Ed25519 key: {error}"))
}

fn rsa_sign(pair: &RsaKeyPair, message: &[u8]) -> Result<Vec<u8>> {
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
        .map_err(|_| anyhow!("RSA signature failed"))?;
    Ok(signature)
}

/// The signer of builds that were given no keys: a key set in the store, made at first use. Says so every time.
pub fn development_signer(store: &Path, progress: &Progress) -> Result<FileSigner> {
    let folder = store.join("development-keys");
    if !folder.exists() {
        progress.warn(&format!(
            "no keys given: making development keys in {}",
            folder.display()
        ));
        if let Err(error) = create(&folder) {
            // Another build that runs at the same moment may have been first.
            if !folder.join("release.key").exists() {
                return Err(error);
            }
        }
    }
    progress.warn(
        "signing with DEVELOPMENT keys: whoever can read this store can sign images that boot as yours",
    );
    progress.warn("`kimage keys new DIR` and `--keys DIR` make a real release");
    let mut signer = FileSigner::load(&folder)?;
    signer.identity.development = true;
    Ok(signer)
}

/// Key sets for the tests of all signing modules: made once per process, since RSA keys take seconds.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use std::sync::LazyLock;

    static SIGNERS: LazyLock<[FileSigner; 2]> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        ["own", "foreign"].map(|name| {
            create(&folder.path().join(name)).unwrap();
            FileSigner::load(&folder.path().join(name)).unwrap()
        })
    });

    pub(crate) fn signer() -> &'static FileSigner {
        &SIGNERS[0]
    }

    pub(crate) fn foreign() -> &'static FileSigner {
        &SIGNERS[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_folder_is_private_complete_and_never_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("deep/keys");
        create(&folder).unwrap();
        assert_eq!(mode(&folder), 0o700);
        let names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert_eq!(names.len(), 11);
        assert!(names.iter().all(|path| mode(path) == 0o600));
        assert_eq!(fs::read_dir(parent.path().join("deep")).unwrap().count(), 1);
        let before = fs::read(folder.join("db.key")).unwrap();
        let error = create(&folder).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
        assert_eq!(fs::read(folder.join("db.key")).unwrap(), before);
        assert!(!format!("{:?}", FileSigner::load(&folder).unwrap()).contains("RsaKeyPair"));
        assert_eq!(format!("{:?}", Secret(vec![1])), "****");
    }

    #[test]
    fn a_missing_or_foreign_key_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let error = FileSigner::load(&parent.path().join("none")).unwrap_err();
        assert!(crate::failure::hints(&error).any(|hint| hint.contains("kimage keys new")));
        let (one, two) = (parent.path().join("one"), parent.path().join("two"));
        create(&one).unwrap();
        create(&two).unwrap();
        fs::copy(two.join("db.key"), one.join("db.key")).unwrap();
        let error = format!("{:#}", FileSigner::load(&one).unwrap_err());
        assert!(error.contains("does not match"), "{error}");
        fs::copy(two.join("db.crt"), one.join("db.crt")).unwrap();
        let error = format!("{:#}", FileSigner::load(&one).unwrap_err());
        assert!(error.contains("db update"), "{error}");
    }

    #[test]
    fn development_keys_are_made_once_and_marked() {
        let store = tempfile::tempdir().unwrap();
        let first = development_signer(store.path(), &Progress::silent()).unwrap();
        let second = development_signer(store.path(), &Progress::silent()).unwrap();
        assert_eq!(first.identity().database, second.identity().database);
        assert!(first.identity().development);
    }
}
