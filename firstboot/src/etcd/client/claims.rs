//! Which instance has which member, in keys of etcd itself. The name of the instance and the date of its claim are two
//! keys, because machines of an earlier version take all of the first for the name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{base64, unbase64};
use crate::failure::Failure;
use crate::inventory::Claim;

/// Below this every member notes which instance has the peer URL.
const OWNERS: &str = "/kimage/instance/";
/// Below this it notes when it said so: JSON of a [`Dated`].
const DATES: &str = "/kimage/claimed/";
/// The end of all keys from the first of [`DATES`] to the last of [`OWNERS`]: `0` comes after `/`.
const END: &str = "/kimage/instance0";

/// When an instance said that a peer URL is its own. It counts for that instance only.
#[derive(Debug, Serialize, Deserialize)]
struct Dated {
    instance: String,
    /// By its own clock, in seconds since 1970.
    since: u64,
}

/// The range of all claims of at most `most` members, which must be read at once.
pub(super) fn range(most: usize) -> Value {
    json!({
        "key": base64(DATES.as_bytes()),
        "range_end": base64(END.as_bytes()),
        "limit": most.saturating_mul(2).to_string(),
    })
}

/// The writes of a claim, which must be done at once.
pub(super) fn puts(peer_url: &str, claim: &Claim) -> Result<Vec<Value>, Failure> {
    let Claim { instance, since } = claim;
    let put = |folder: &str, value: &[u8]| {
        let key = base64(format!("{folder}{peer_url}").as_bytes());
        json!({"requestPut": {"key": key, "value": base64(value)}})
    };
    let mut puts = vec![put(OWNERS, instance.as_bytes())];
    if let Some(since) = *since {
        let instance = instance.clone();
        let dated = serde_json::to_vec(&Dated { instance, since });
        puts.push(put(DATES, &dated.map_err(Failure::internal)?));
    }
    Ok(puts)
}

/// Claims by peer URL, of keys and values as etcd gives them. A date that is another instance's, or none, dates nothing.
pub(super) fn read(pairs: &[Value]) -> BTreeMap<String, Claim> {
    let dates: BTreeMap<String, Dated> = below(DATES, pairs)
        .filter_map(|(url, date)| Some((url, serde_json::from_str(&date).ok()?)))
        .collect();
    let dated = |(url, instance): (String, String)| {
        let date = dates.get(&url).filter(|date| date.instance == instance);
        let since = date.map(|date| date.since);
        (url, Claim { instance, since })
    };
    below(OWNERS, pairs).map(dated).collect()
}

fn below<'a>(folder: &'a str, pairs: &'a [Value]) -> impl Iterator<Item = (String, String)> + 'a {
    let text = |pair: &Value, field: &str| {
        let bytes = pair.get(field).and_then(Value::as_str).and_then(unbase64)?;
        String::from_utf8(bytes).ok()
    };
    pairs.iter().filter_map(move |pair| {
        let url = text(pair, "key")?.strip_prefix(folder)?.to_owned();
        Some((url, text(pair, "value")?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_the_date_that_its_own_instance_wrote() {
        let pair = |key: &str, value: &str| json!({"key": base64(key.as_bytes()), "value": base64(value.as_bytes())});
        let pairs = [
            pair(
                "/kimage/claimed/https://10.0.0.1:2380",
                r#"{"instance":"i-1","since":7}"#,
            ),
            pair(
                "/kimage/claimed/https://10.0.0.2:2380",
                r#"{"instance":"i-0","since":7}"#,
            ),
            pair("/kimage/claimed/https://10.0.0.3:2380", "yesterday"),
            pair("/kimage/instance/https://10.0.0.1:2380", "i-1"),
            pair("/kimage/instance/https://10.0.0.2:2380", "i-2"),
            pair("/kimage/instance/https://10.0.0.3:2380", "i-3"),
            json!({"key": "?", "value": 1}),
        ];
        let claims = read(&pairs);
        let of = |number: u8| {
            let claim = &claims[&format!("https://10.0.0.{number}:2380")];
            (claim.instance.as_str(), claim.since)
        };
        assert_eq!(claims.len(), 3);
        assert_eq!(
            [of(1), of(2), of(3)],
            [("i-1", Some(7)), ("i-2", None), ("i-3", None)]
        );
    }

    #[test]
    fn a_claim_reads_as_it_is_written() {
        for since in [None, Some(1_795_000_000)] {
            let claim = Claim {
                instance: "i-1".to_owned(),
                since,
            };
            let puts = puts("https://10.0.0.1:2380", &claim).unwrap();
            let pairs: Vec<Value> = puts.iter().map(|put| put["requestPut"].clone()).collect();
            assert_eq!(read(&pairs)["https://10.0.0.1:2380"], claim);
        }
    }
}
