//! The record as a key of some other etcd, by transactions of its JSON gateway.

use serde_json::json;

use super::{MAX_RECORD, Record, RecordStore, Version, Written, broken, bytes_of, parse};
use crate::etcd::client::{Gateway, base64, number, unbase64};
use crate::failure::Failure;
use crate::http::Client;

/// A record in another etcd.
pub struct EtcdKey {
    /// Trusts the servers.
    pub client: Client,
    /// `https://10.0.0.5:2379`, one or more.
    pub endpoints: Vec<String>,
    /// The key.
    pub key: String,
}

impl EtcdKey {
    fn call(&self, path: &str, body: &serde_json::Value) -> Result<serde_json::Value, Failure> {
        Gateway::new(self.client.clone()).call_any(&self.endpoints, path, body)
    }

    /// Writes if the key's `target` (creation or modification) is at revision `at`.
    fn write(&self, target: &str, field: &str, at: &str, record: &Record) -> Result<Written, Failure> {
        let key = base64(self.key.as_bytes());
        let body = json!({
            "compare": [{"target": target, "result": "EQUAL", "key": key, field: at}],
            "success": [{"requestPut": {"key": key, "value": base64(&bytes_of(record)?)}}],
        });
        let answer = self.call("/v3/kv/txn", &body)?;
        let done = answer.get("succeeded").and_then(serde_json::Value::as_bool);
        Ok(if done == Some(true) {
            Written::Done
        } else {
            Written::Conflict
        })
    }
}

impl RecordStore for EtcdKey {
    fn get(&self) -> Result<Option<(Record, Version)>, Failure> {
        let answer = self.call("/v3/kv/range", &json!({"key": base64(self.key.as_bytes())}))?;
        let Some(pair) = answer.get("kvs").and_then(|pairs| pairs.get(0)) else {
            return Ok(None);
        };
        let value = pair
            .get("value")
            .and_then(serde_json::Value::as_str)
            .and_then(unbase64);
        let revision = pair.get("mod_revision").and_then(number);
        let (Some(value), Some(revision)) = (value, revision) else {
            return Err(broken("the record's etcd answers a range with something else"));
        };
        if value.len() > MAX_RECORD {
            return Err(broken("the record's key holds too much"));
        }
        Ok(Some((parse(&value, &self.key)?, Version(revision.to_string()))))
    }

    fn create(&self, record: &Record) -> Result<Written, Failure> {
        self.write("CREATE", "createRevision", "0", record)
    }

    fn replace(&self, version: &Version, record: &Record) -> Result<Written, Failure> {
        // Revision 0 would mean "absent"; what is no revision is not the present one.
        match version.0.parse::<u64>() {
            Ok(revision) if revision > 0 => self.write("MOD", "modRevision", &version.0, record),
            _ => Ok(Written::Conflict),
        }
    }
}
