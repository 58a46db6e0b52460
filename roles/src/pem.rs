//! Textual encoding of keys and certificates (RFC 7468), for keys and certificates of at most 64 KiB of text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// No certificate or key of a cluster is larger, in bytes of text.
pub const MAX_PEM: usize = 64 * 1024;
/// More blocks than any bundle of a cluster has.
const MAX_BLOCKS: usize = 16;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// One block. Its bytes may be secret, so it has no `Debug`.
pub struct Block {
    /// `CERTIFICATE`, `PRIVATE KEY`, `PUBLIC KEY`, ...
    pub label: String,
    /// What the base64 stood for.
    pub der: Vec<u8>,
}

/// `der` under `label`.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("{BEGIN}{label}{DASHES}\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text + &format!("-----END {label}{DASHES}\n")
}

/// All blocks of `text`, at least one. What stands between blocks is not read. The problem names no content.
pub fn blocks(text: &str) -> Result<Vec<Block>, String> {
    if text.len() > MAX_PEM {
        return Err(format!("PEM text of {} bytes, more than {MAX_PEM}", text.len()));
    }
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once(BEGIN) {
        if found.len() == MAX_BLOCKS {
            return Err(format!("more than {MAX_BLOCKS} PEM blocks"));
        }
        let (label, body) = after
            .split_once(DASHES)
            .ok_or("the first line of a PEM block doesn't end")?;
        if label.len() > 40
            || !label
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b' ')
        {
            return Err("a PEM block has no readable label".to_owned());
        }
        let (body, after) = body
            .split_once(&format!("-----END {label}{DASHES}"))
            .ok_or_else(|| format!("the PEM block `{label}` doesn't end"))?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD
            .decode(body)
            .map_err(|_| format!("the PEM block `{label}` is not base64"))?;
        found.push(Block {
            label: label.to_owned(),
            der,
        });
        rest = after;
    }
    if found.is_empty() {
        return Err("no PEM block".to_owned());
    }
    Ok(found)
}

/// The bytes of the first block with `label`.
pub fn decode(label: &str, text: &str) -> Result<Vec<u8>, String> {
    let found = blocks(text)?.into_iter().find(|block| block.label == label);
    found
        .map(|block| block.der)
        .ok_or_else(|| format!("no PEM block `{label}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    #[test]
    fn a_block_is_found_behind_text_and_other_blocks() {
        let text = format!(
            "subject=x\r\n{}{}",
            encode("EC PARAMETERS", &[1]),
            encode("EC PRIVATE KEY", &[2; 99])
        );
        assert_eq!(decode("EC PRIVATE KEY", &text).unwrap(), [2; 99]);
        assert_eq!(blocks(&text).unwrap().len(), 2);
    }

    #[test]
    fn what_is_no_pem_is_refused() {
        let good = encode("CERTIFICATE", &[7; 60]);
        for bad in [
            String::new(),
            good[..40].to_owned(),
            good.replace("END", "EMD"),
            good.replacen("Bw", "*w", 1),
            good.replace("CERTIFICATE", "certificate"),
            good.repeat(MAX_BLOCKS + 1),
            "x".repeat(MAX_PEM + 1),
        ] {
            assert!(blocks(&bad).is_err(), "{bad}");
        }
        assert!(decode("PRIVATE KEY", &good).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_survive(der: Vec<u8>) {
            prop_assert_eq!(decode("X", &encode("X", &der)).unwrap(), der);
        }

        #[test]
        fn no_text_panics(text in "(-----(BEGIN|END) |A| |\n|-|[a-zA-Z=]{0,9}){0,30}", other: String) {
            let _ = (blocks(&text), blocks(&other));
        }
    }
}
