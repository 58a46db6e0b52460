//! The record as an object of an S3-compatible store, by conditional PUT (`If-None-Match: *`, `If-Match`), signed with
//! AWS Signature Version 4. Path-style addresses, which every vendor has.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use kimage_roles::cause::Cause;
use kimage_roles::node_config::Credentials;
use kimage_roles::secret::Secret;
use ring::{digest, hmac};
use serde::Deserialize;

use super::http::{read, written};
use super::{Record, RecordStore, Version, Written, broken, bytes_of};
use crate::failure::Failure;
use crate::http::{Answer, Client, Request, Settings, Trust};

/// The instance's metadata service on EC2.
const METADATA: &str = "http://169.254.169.254/latest";

/// Whose keys sign.
pub enum Keys {
    /// These.
    Fixed(Credentials),
    /// Those of the EC2 instance's role.
    Instance,
}

/// A record in a bucket.
pub struct S3 {
    /// Trusts the store.
    pub client: Client,
    /// `https://s3.eu-central-1.amazonaws.com`.
    pub endpoint: String,
    /// `eu-central-1`.
    pub region: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Key of the object.
    pub key: String,
    /// Whose keys sign.
    pub keys: Keys,
}

/// An access key, temporary if it has a token.
struct AccessKey {
    id: String,
    secret: Secret,
    token: Option<Secret>,
}

impl S3 {
    fn send(&self, method: &str, body: &[u8], condition: Option<(&str, &str)>) -> Result<Answer, Failure> {
        let endpoint = self.endpoint.trim_end_matches('/');
        let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
        let path = encode_path(&format!("/{}/{}", self.bucket, self.key));
        let key = self.access_key()?;
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let hash = hex(digest::digest(&digest::SHA256, body).as_ref());
        let mut headers = BTreeMap::from([
            ("host", host.to_owned()),
            ("x-amz-content-sha256", hash.clone()),
            ("x-amz-date", time.clone()),
        ]);
        if let Some(token) = &key.token {
            headers.insert("x-amz-security-token", token.reveal().to_owned());
        }
        let scope = Scope {
            time: &time,
            region: &self.region,
            service: "s3",
        };
        let authorization = scope.authorization(&key, method, &path, "", &headers, &hash);
        let url = format!("{endpoint}{path}");
        let mut request = if method == "PUT" {
            Request::put(url, body)
        } else {
            Request::get(url)
        };
        headers.remove("host");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        let request = request.header("authorization", authorization);
        let answer = self.client.send(&request);
        let answer = answer.map_err(|error| Failure::new(Cause::EtcdForming, error))?;
        self.judge(answer)
    }

    /// Refuses what is no answer about the object.
    fn judge(&self, answer: Answer) -> Result<Answer, Failure> {
        let said = code(&answer.body);
        let (bucket, status) = (&self.bucket, answer.status);
        match (status, said) {
            (403, "RequestTimeTooSkewed") => Err(Failure::because(
                Cause::ClockWrong,
                format!("S3 bucket {bucket}: this machine's clock is too far from the store's"),
            )),
            (404, "NoSuchBucket") => Err(broken(format!("S3 bucket {bucket} doesn't exist"))),
            (200..300 | 404 | 409 | 412, _) => Ok(answer),
            _ => Err(broken(format!(
                "S3 bucket {bucket} answers with status {status} {said}"
            ))),
        }
    }

    fn access_key(&self) -> Result<AccessKey, Failure> {
        match &self.keys {
            Keys::Fixed(credentials) => Ok(AccessKey {
                id: credentials.access_key_id.clone(),
                secret: credentials.secret_access_key.clone(),
                token: None,
            }),
            Keys::Instance => instance_key().map_err(|error| Failure::new(Cause::EtcdForming, error)),
        }
    }
}

/// The key of the instance's role, by IMDSv2.
fn instance_key() -> anyhow::Result<AccessKey> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        access_key_id: String,
        secret_access_key: Secret,
        token: Secret,
    }

    let settings = Settings {
        connect: Duration::from_secs(2),
        total: Duration::from_secs(5),
        max_body: 64 * 1024,
        trust: Trust::System,
        identity: None,
    };
    let client = Client::new(&settings)?;
    let ask = Request::put(format!("{METADATA}/api/token"), b"")
        .header("x-aws-ec2-metadata-token-ttl-seconds", "300");
    let session = String::from_utf8(client.send(&ask)?.success()?.body)?;
    let get = |path: &str| {
        let request = Request::get(format!("{METADATA}/meta-data/iam/security-credentials/{path}"));
        client
            .send(&request.header("x-aws-ec2-metadata-token", session.as_str()))?
            .success()
    };
    let roles = String::from_utf8(get("")?.body)?;
    let role = roles.lines().next().unwrap_or_default().trim();
    let key: Answer = get(role)?.json()?;
    Ok(AccessKey {
        id: key.access_key_id,
        secret: key.secret_access_key,
        token: Some(key.token),
    })
}

impl RecordStore for S3 {
    fn get(&self) -> Result<Option<(Record, Version)>, Failure> {
        let answer = self.send("GET", b"", None)?;
        let place = format!("S3 bucket {}", self.bucket);
        match answer.status {
            200 => read(&answer, &place).map(Some),
            404 => Ok(None),
            status => Err(broken(format!("{place} answers with status {status}"))),
        }
    }

    fn create(&self, record: &Record) -> Result<Written, Failure> {
        let answer = self.send("PUT", &bytes_of(record)?, Some(("if-none-match", "*")))?;
        written(&answer, "the S3 bucket")
    }

    fn replace(&self, version: &Version, record: &Record) -> Result<Written, Failure> {
        let answer = self.send("PUT", &bytes_of(record)?, Some(("if-match", &version.0)))?;
        written(&answer, "the S3 bucket")
    }
}

/// What a signature is for: time (`20130524T000000Z`), region and service.
struct Scope<'a> {
    time: &'a str,
    region: &'a str,
    service: &'a str,
}

impl Scope<'_> {
    /// The `Authorization` header; `headers` have names in lower case and trimmed values, `path` and `query` are encoded.
    fn authorization(
        &self,
        key: &AccessKey,
        method: &str,
        path: &str,
        query: &str,
        headers: &BTreeMap<&str, String>,
        payload_hash: &str,
    ) -> String {
        let names: Vec<&str> = headers.keys().copied().collect();
        let names = names.join(";");
        let mut canonical = format!("{method}\n{path}\n{query}\n");
        for (name, value) in headers {
            canonical.push_str(&format!("{name}:{value}\n"));
        }
        canonical.push_str(&format!("\n{names}\n{payload_hash}"));
        let day = self.time.get(..8).unwrap_or_default();
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{hash}", self.time);
        let mut signing = format!("AWS4{}", key.secret.reveal()).into_bytes();
        for part in [day, self.region, self.service, "aws4_request"] {
            signing = sign(&signing, part);
        }
        let signature = hex(&sign(&signing, &text));
        let id = &key.id;
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope},SignedHeaders={names},Signature={signature}")
    }
}

fn sign(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
        .as_ref()
        .to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A path with everything but RFC 3986's unreserved characters and `/` in percent form, once.
fn encode_path(path: &str) -> String {
    path.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte))
            }
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        text
    })
}

/// The code in S3's XML error: letters only, or nothing.
fn code(body: &[u8]) -> &str {
    let text = std::str::from_utf8(body).unwrap_or_default();
    let code = text
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map(|(code, _)| code)
        .filter(|code| code.len() < 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::contract;
    use super::*;
    use crate::http::test_server::{Reply, Server};

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn example() -> AccessKey {
        AccessKey {
            id: "AKIAIOSFODNN7EXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
            token: None,
        }
    }

    fn signature(method: &str, path: &str, query: &str, more: &[(&'static str, &str)], hash: &str) -> String {
        let mut headers = BTreeMap::from([
            ("host", "examplebucket.s3.amazonaws.com".to_owned()),
            ("x-amz-content-sha256", hash.to_owned()),
            ("x-amz-date", "20130524T000000Z".to_owned()),
        ]);
        headers.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let scope = Scope {
            time: "20130524T000000Z",
            region: "us-east-1",
            service: "s3",
        };
        let header = scope.authorization(&example(), method, path, query, &headers, hash);
        header.rsplit_once('=').unwrap().1.to_owned()
    }

    /// "Authenticating Requests: Using the Authorization Header" in the S3 API reference.
    #[test]
    fn signatures_equal_the_published_examples() {
        assert_eq!(
            signature("GET", "/test.txt", "", &[("range", "bytes=0-9")], EMPTY),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let hash = hex(digest::digest(&digest::SHA256, b"Welcome to Amazon S3.").as_ref());
        let more = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        assert_eq!(
            signature("PUT", &encode_path("/test$file.text"), "", &more, &hash),
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        assert_eq!(
            signature("GET", "/", "lifecycle=", &[], EMPTY),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
        );
    }

    /// `get-vanilla` of the Signature Version 4 test suite.
    #[test]
    fn a_signature_equals_that_of_the_test_suite() {
        let key = AccessKey {
            id: "AKIDEXAMPLE".to_owned(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            token: None,
        };
        let headers = BTreeMap::from([
            ("host", "example.amazonaws.com".to_owned()),
            ("x-amz-date", "20150830T123600Z".to_owned()),
        ]);
        let scope = Scope {
            time: "20150830T123600Z",
            region: "us-east-1",
            service: "service",
        };
        assert_eq!(
            scope.authorization(&key, "GET", "/", "", &headers, EMPTY),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request,\
             SignedHeaders=host;x-amz-date,\
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
    }

    fn bucket(endpoint: String) -> S3 {
        S3 {
            client: Client::new(&Settings::default()).unwrap(),
            endpoint,
            region: "eu-central-1".to_owned(),
            bucket: "clusters".to_owned(),
            key: "prod/etcd record".to_owned(),
            keys: Keys::Fixed(Credentials {
                access_key_id: "id".to_owned(),
                secret_access_key: Secret::new("secret"),
            }),
        }
    }

    #[test]
    fn a_bucket_keeps_the_contract() {
        let server = super::super::http::tests::store(true);
        contract(&bucket(format!("http://{}", server.address)));
    }

    #[test]
    fn what_a_bucket_refuses_is_named() {
        let said = |status: u16, code: &'static str| {
            let body = format!("<Error><Code>{code}</Code></Error>");
            let server = Server::start(move |_| Reply::Answer(status, Vec::new(), body.clone().into_bytes()));
            bucket(format!("http://{}/", server.address)).get()
        };
        assert_eq!(said(404, "NoSuchKey").unwrap(), None);
        assert!(
            said(404, "NoSuchBucket")
                .unwrap_err()
                .to_string()
                .contains("doesn't exist")
        );
        assert_eq!(
            said(403, "RequestTimeTooSkewed").unwrap_err().cause,
            Cause::ClockWrong
        );
        assert!(
            said(403, "AccessDenied")
                .unwrap_err()
                .to_string()
                .contains("AccessDenied")
        );
    }

    #[test]
    fn a_path_is_encoded_once() {
        assert_eq!(encode_path("/b/a b$+\u{e9}~"), "/b/a%20b%24%2B%C3%A9~");
    }

    #[test]
    fn an_error_code_is_read_and_nothing_else() {
        assert_eq!(code(b"<Error><Code>NoSuchBucket</Code></Error>"), "NoSuchBucket");
        assert_eq!(code(b"<Code>\x1b[31m</Code>"), "");
        assert_eq!(code(&[0xff; 8]), "");
    }
}
