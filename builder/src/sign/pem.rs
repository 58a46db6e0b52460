//! Textual encoding of keys and certificates (RFC 7468).

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// No key or certificate file is larger, in bytes.
const MAX_TEXT: usize = 64 * 1024;

/// `der` under `label` (`CERTIFICATE`, `PRIVATE KEY`, `PUBLIC KEY`).
pub(super) fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text + &format!("-----END {label}-----\n")
}

/// The DER of the first block with `label`; text before it is allowed.
pub(super) fn decode(label: &str, text: &str) -> Result<Vec<u8>> {
    ensure!(text.len() <= MAX_TEXT, "PEM file of {} bytes", text.len());
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let body = text
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end));
    let (body, _) = body.with_context(|| format!("no PEM block `{label}`"))?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD
        .decode(body)
        .with_context(|| format!("PEM block `{label}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_survives_and_a_wrong_one_is_refused() {
        let der: Vec<u8> = (0..200).collect();
        let text = encode("CERTIFICATE", &der);
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(
            decode("CERTIFICATE", &format!("subject=x\r\n{text}")).unwrap(),
            der
        );
        assert!(decode("PRIVATE KEY", &text).is_err());
        assert!(decode("CERTIFICATE", &text.replace('A', "*")).is_err());
        assert!(decode("CERTIFICATE", &text[..100]).is_err());
    }
}
