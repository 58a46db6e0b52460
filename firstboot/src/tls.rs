//! What every TLS server of Kubernetes on a machine speaks: TLS 1.2 and later, with authenticated encryption only.

/// `--tls-min-version`.
pub const MIN_VERSION: &str = "VersionTLS12";

/// `--tls-cipher-suites`: all of TLS 1.2 that are AEAD with forward secrecy; TLS 1.3 has only such.
pub const CIPHER_SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
