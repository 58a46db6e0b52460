//! Textual encoding of keys and certificates (RFC 7468), for keys and certificates of at most 64 KiB of text.
//!
//! Most texts that are judged here are read again by somebody else, mostly Go, and what is judged must be what they read:
//!
//! | text | read again by | so |
//! |---|---|---|
//! | request of a kubelet | API server, NodeRestriction, signer | [`decode_canonical`], and its DER written anew and compared |
//! | authorities in cluster-info | kubelet, kube-proxy, rustls | [`certificates`], every one judged, written anew |
//! | certificate that the cluster signed for a kubelet | kubelet | [`certificates`], written anew |
//! | server in cluster-info | kubelet, ureq | read as host and port, written anew |
//! | kubelet-config of the cluster | kubelet | read from YAML, written anew as JSON |
//! | certificates and keys of a NodeConfig | Go's servers, etcd | [`blocks`]; whoever writes them has every key of the cluster, and nothing is decided by them that this would not allow |
//! | leaf certificates on the disk | Go's servers, etcd | made here; they only decide whether new ones are made |
//! | signature of cluster-info, public key of an inventory, bootstrap tokens | nobody | read once |

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// No certificate or key of a cluster is larger, in bytes of text.
pub const MAX_PEM: usize = 64 * 1024;
/// More blocks than any bundle of a cluster has.
const MAX_BLOCKS: usize = 16;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";
const CERTIFICATE: &str = "CERTIFICATE";

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
///
/// A block that readers could find or end elsewhere is refused: both its lines stand alone, with one label, and between
/// them is base64 only.
pub fn blocks(text: &str) -> Result<Vec<Block>, String> {
    if text.len() > MAX_PEM {
        return Err(format!("PEM text of {} bytes, more than {MAX_PEM}", text.len()));
    }
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        if found.len() == MAX_BLOCKS {
            return Err(format!("more than {MAX_BLOCKS} PEM blocks"));
        }
        let (label, body) = after
            .split_once(DASHES)
            .ok_or("the first line of a PEM block doesn't end")?;
        if !stands_alone(before, body) {
            return Err("a PEM block begins within a line".to_owned());
        }
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
        if !stands_alone(body, after) {
            return Err(format!("the PEM block `{label}` ends within a line"));
        }
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

/// Whether what stands between `before` and `after` is a line of its own.
fn stands_alone(before: &str, after: &str) -> bool {
    let rest = after.lines().next().unwrap_or_default();
    (before.is_empty() || before.ends_with('\n')) && rest.trim_ascii().is_empty()
}

/// The bytes of the first block with `label`.
pub fn decode(label: &str, text: &str) -> Result<Vec<u8>, String> {
    let found = blocks(text)?.into_iter().find(|block| block.label == label);
    found
        .map(|block| block.der)
        .ok_or_else(|| format!("no PEM block `{label}`"))
}

/// The bytes of the one block of `text`, which is letter for letter what [`encode`] makes of them: no other block, no
/// header, nothing before or behind.
///
/// On everything else readers of PEM differ. Go's `pem.Decode` skips a block whose END line has another label and takes
/// the next one; others take the first. Text that somebody else reads again is judged by this reader only.
pub fn decode_canonical(label: &str, text: &str) -> Result<Vec<u8>, String> {
    let mut found = blocks(text)?;
    let (Some(block), true) = (found.pop(), found.is_empty()) else {
        return Err("more than one PEM block".to_owned());
    };
    if block.label != label {
        return Err(format!("a PEM block `{}` instead of `{label}`", block.label));
    }
    if encode(label, &block.der) != text {
        return Err(format!(
            "the PEM block `{label}` is not written in the one way that all readers agree on"
        ));
    }
    Ok(block.der)
}

/// The certificates of a bundle, written anew: comments and everything else that stood around them is gone, so whoever
/// reads the answer finds what was read here. Anything but certificates is refused.
pub fn certificates(text: &str) -> Result<Vec<Vec<u8>>, String> {
    let found = blocks(text)?;
    if let Some(other) = found.iter().find(|block| block.label != CERTIFICATE) {
        return Err(format!("a PEM block `{}` among certificates", other.label));
    }
    Ok(found.into_iter().map(|block| block.der).collect())
}

/// [`encode`] for all certificates of a bundle.
pub fn encode_certificates<'a>(ders: impl IntoIterator<Item = &'a [u8]>) -> String {
    ders.into_iter().map(|der| encode(CERTIFICATE, der)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

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
            format!("x{good}"),
            good.replacen("-----\n", "-----Bw", 1),
            good.replace("\n-----END", "-----END"),
            good.trim_end().to_owned() + "x",
            "x".repeat(MAX_PEM + 1),
        ] {
            assert!(blocks(&bad).is_err(), "{bad}");
        }
        assert!(decode("PRIVATE KEY", &good).is_err());
    }

    #[test]
    fn only_the_one_way_to_write_a_block_is_canonical() {
        let good = encode("X", &[7; 60]);
        assert_eq!(decode_canonical("X", &good).unwrap(), [7; 60]);
        for bad in [
            format!("{good}\n"),
            format!(" {good}"),
            format!("text\n{good}"),
            good.trim_end().to_owned(),
            good.replace('\n', "\r\n"),
            good.replacen("-----\n", "-----\nKey: value\n\n", 1),
            good.repeat(2),
            format!("{}{good}", good.replace("END X", "END Y")),
            good.replace("Bw", "B w"),
            good.replace('X', "Y"),
        ] {
            assert!(decode_canonical("X", &bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bundle_is_written_anew_and_holds_certificates_only() {
        let (one, two) = (encode(CERTIFICATE, &[1; 9]), encode(CERTIFICATE, &[2; 9]));
        let bundle = format!("subject=x\n{one}comment\n{two}");
        let found = certificates(&bundle).unwrap();
        assert_eq!(
            encode_certificates(found.iter().map(Vec::as_slice)),
            format!("{one}{two}")
        );
        // The first block has a foreign END line: Go reads the second only, this reader none.
        assert!(certificates(&format!("{}{two}", one.replace("END CERTIFICATE", "END X"))).is_err());
        assert!(certificates(&format!("{one}{}", encode("PRIVATE KEY", &[3; 9]))).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_survive(der: Vec<u8>) {
            prop_assert_eq!(decode("X", &encode("X", &der)).unwrap(), der);
        }

        #[test]
        fn what_is_canonical_is_the_encoding_of_what_was_read(at in 0usize..200, with in ".{0,3}", cut in 0usize..3) {
            let good = encode("X", &[7; 90]);
            let at = at.min(good.len());
            let changed = format!("{}{with}{}", &good[..at], &good[(at + cut).min(good.len())..]);
            if let Ok(der) = decode_canonical("X", &changed) {
                prop_assert!(encode("X", &der) == changed);
            }
        }

        #[test]
        fn no_text_panics(text in "(-----(BEGIN|END) |A| |\n|-|[a-zA-Z=]{0,9}){0,30}", other: String) {
            let _ = (blocks(&text), blocks(&other));
        }
    }
}
