//! A bootstrap token and the signature made with it (Kubernetes `cluster-bootstrap/token/jws`).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kimage_roles::cause::Cause;
use kimage_roles::secret::Secret;
use ring::hmac;

use crate::failure::Failure;

/// A bootstrap token, taken apart.
#[derive(Debug)]
pub struct Token {
    id: String,
    secret: Secret,
}

impl Token {
    /// Takes `id.secret` apart.
    pub fn parse(token: &Secret) -> Result<Self, Failure> {
        let parts = token.reveal().split_once('.');
        let (id, secret) =
            parts.ok_or_else(|| Failure::because(Cause::ConfigInvalid, "join.token: not `id.secret`"))?;
        Ok(Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
        })
    }

    /// The public half.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether `signature` (`header..mac`, a detached JWS with HS256, RFC 7515 appendix F) is this token's over
    /// `content`.
    pub fn signed(&self, signature: &str, content: &str) -> bool {
        let Some((header, mac)) = signature.split_once("..") else {
            return false;
        };
        let Ok(decoded) = URL_SAFE_NO_PAD.decode(header) else {
            return false;
        };
        let Ok(says) = serde_json::from_slice::<serde_json::Value>(&decoded) else {
            return false;
        };
        if says["alg"] != "HS256" || says["kid"] != self.id.as_str() {
            return false;
        }
        let Ok(mac) = URL_SAFE_NO_PAD.decode(mac) else {
            return false;
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.reveal().as_bytes());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
        hmac::verify(&key, signed.as_bytes(), &mac).is_ok()
    }

    /// The signature that Kubernetes' bootstrap signer makes over `content`.
    #[cfg(test)]
    pub(super) fn sign(&self, content: &str) -> String {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"HS256","kid":"{}"}}"#, self.id));
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.reveal().as_bytes());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
        format!(
            "{header}..{}",
            URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::parse(&Secret::new("abcdef.0123456789abcdef")).unwrap()
    }

    #[test]
    fn a_signature_holds_for_its_token_and_content_only() {
        let signature = token().sign("content");
        assert!(token().signed(&signature, "content"));
        assert!(!token().signed(&signature, "other content"));
        let other = Token::parse(&Secret::new("abcdef.fedcba9876543210")).unwrap();
        assert!(!other.signed(&signature, "content"));
        let other = Token::parse(&Secret::new("aaaaaa.0123456789abcdef")).unwrap();
        assert!(!other.signed(&signature, "content"));
    }

    #[test]
    fn no_text_passes_for_a_signature() {
        for text in [
            "",
            "..",
            "a..b",
            "eyJhbGciOiJub25lIn0..",
            "eyJhbGciOiJIUzI1NiJ9..AAAA",
        ] {
            assert!(!token().signed(text, "content"), "{text}");
        }
    }
}
