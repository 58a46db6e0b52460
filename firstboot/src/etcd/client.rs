//! etcd's client over the JSON gateway (`/v3/...`, grpc-gateway with the protocol's own field names): numbers of 64 bits
//! are texts, bytes are base64, fields that are zero are left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kimage_roles::cause::Cause;
use serde_json::{Value, json};

use super::{Id, Member, View};
use crate::failure::Failure;
use crate::http::{Client, Fault, Request, TlsFault};
use crate::inventory::Claim;

mod claims;

/// The lock of membership: its value is the holder's instance id.
const LOCK: &str = "/kimage/lock/membership";
/// How long the lock outlives its holder, in seconds.
const LOCK_SECONDS: u32 = 30;
/// Members and owners that are believed; etcd itself is no use beyond some seven.
const MAX_MEMBERS: usize = 1000;

/// What a member says of itself, without asking others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Id of its cluster.
    pub cluster: Id,
    /// Its own id.
    pub member: Id,
    /// Whom it knows as the leader.
    pub leader: Option<Id>,
    /// Whether it has no vote yet.
    pub learner: bool,
}

/// Calls etcd.
#[derive(Debug, Clone)]
pub struct Gateway {
    client: Client,
}

/// A call that didn't succeed.
enum Refusal {
    /// The request was never sent.
    NotSent(Failure),
    /// Nobody knows whether it was done, or etcd refused it.
    Other(Failure),
}

impl Gateway {
    /// Calls through `client`, which trusts etcd's CA and has a client certificate.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn call(&self, endpoint: &str, path: &str, body: &Value) -> Result<Value, Refusal> {
        let body = body.to_string().into_bytes();
        let url = format!("{}{path}", endpoint.trim_end_matches('/'));
        let request = Request::post(url, &body).header("content-type", "application/json");
        let answer = self.client.send(&request).map_err(|error| {
            let cause = match &error.fault {
                Fault::Tls(TlsFault::UnknownIssuer | TlsFault::WrongName | TlsFault::Refused(_)) => {
                    Cause::EtcdForeign
                }
                Fault::Tls(TlsFault::Expired | TlsFault::NotYetValid) => Cause::ClockWrong,
                Fault::Dns => Cause::DnsFailed,
                _ => Cause::EtcdUnavailable,
            };
            let sent = !matches!(error.fault, Fault::Connect(_) | Fault::Dns | Fault::Tls(_));
            let failure = Failure::new(cause, error);
            if sent {
                Refusal::Other(failure)
            } else {
                Refusal::NotSent(failure)
            }
        })?;
        if answer.status != 200 {
            return Err(Refusal::Other(refused(endpoint, answer.status, &answer.body)));
        }
        answer
            .json()
            .map_err(|error| Refusal::Other(Failure::new(Cause::EtcdUnavailable, error)))
    }

    fn call_one(&self, endpoint: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(endpoint, path, body).map_err(|refusal| match refusal {
            Refusal::NotSent(failure) | Refusal::Other(failure) => failure,
        })
    }

    /// Calls the first endpoint that takes the request. One that may have done it is not followed by another.
    pub fn call_any(&self, endpoints: &[String], path: &str, body: &Value) -> Result<Value, Failure> {
        let mut last = Failure::because(Cause::EtcdUnavailable, "no endpoint of etcd is known");
        for endpoint in endpoints {
            match self.call(endpoint, path, body) {
                Ok(answer) => return Ok(answer),
                Err(Refusal::NotSent(failure)) => last = failure,
                Err(Refusal::Other(failure)) => return Err(failure),
            }
        }
        Err(last)
    }

    /// What the member at `endpoint` says of itself.
    pub fn status(&self, endpoint: &str) -> Result<Status, Failure> {
        let answer = self.call_one(endpoint, "/v3/maintenance/status", &json!({}))?;
        let header = answer.get("header").unwrap_or(&Value::Null);
        Ok(Status {
            cluster: id(header, "cluster_id")?,
            member: id(header, "member_id")?,
            leader: answer
                .get("leader")
                .and_then(number)
                .filter(|id| *id != 0)
                .map(Id),
            learner: answer.get("isLearner").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The members as the member at `endpoint` knows them, or (`quorum`) as a quorum does.
    pub fn members(&self, endpoint: &str, quorum: bool) -> Result<(Id, Vec<Member>), Failure> {
        let answer = self.call_one(
            endpoint,
            "/v3/cluster/member/list",
            &json!({"linearizable": quorum}),
        )?;
        let cluster = id(answer.get("header").unwrap_or(&Value::Null), "cluster_id")?;
        let members = answer
            .get("members")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        if members.len() > MAX_MEMBERS {
            return Err(nonsense("too many members"));
        }
        Ok((cluster, members.iter().map(member).collect::<Result<_, _>>()?))
    }

    /// Members and their owners as a quorum knows them, through the first endpoint that can say.
    pub fn view(&self, endpoints: &[String]) -> Result<View, Failure> {
        let mut last = Failure::because(Cause::EtcdUnavailable, "no endpoint of etcd is known");
        for endpoint in endpoints {
            match self.view_at(endpoint) {
                Ok(view) => return Ok(view),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    fn view_at(&self, endpoint: &str) -> Result<View, Failure> {
        let (cluster, members) = self.members(endpoint, true)?;
        let answer = self.call_one(endpoint, "/v3/kv/range", &claims::range(MAX_MEMBERS))?;
        let pairs = answer
            .get("kvs")
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        Ok(View {
            cluster,
            members,
            owners: claims::read(pairs),
        })
    }

    /// Notes who has the member at `peer_url`, and since when.
    pub fn claim(&self, endpoints: &[String], peer_url: &str, claim: &Claim) -> Result<(), Failure> {
        let puts = claims::puts(peer_url, claim)?;
        self.call_any(endpoints, "/v3/kv/txn", &json!({"success": puts}))
            .map(drop)
    }

    /// Takes the lock of membership for half a minute, or renews it; `false` when another has it.
    pub fn lock(&self, endpoints: &[String], instance: &str) -> Result<bool, Failure> {
        let grant = json!({"TTL": LOCK_SECONDS.to_string()});
        let lease = self.call_any(endpoints, "/v3/lease/grant", &grant)?;
        let lease = lease
            .get("ID")
            .and_then(number)
            .ok_or_else(|| nonsense("a lease without an id"))?;
        let (key, value) = (base64(LOCK.as_bytes()), base64(instance.as_bytes()));
        let put = json!([{"requestPut": {"key": key, "value": value, "lease": lease.to_string()}}]);
        let free = json!([{"target": "CREATE", "key": key, "createRevision": "0"}]);
        let ours = json!([{"target": "VALUE", "key": key, "value": value}]);
        for compare in [free, ours] {
            let answer = self.call_any(
                endpoints,
                "/v3/kv/txn",
                &json!({"compare": compare, "success": put}),
            )?;
            if answer.get("succeeded").and_then(Value::as_bool) == Some(true) {
                return Ok(true);
            }
        }
        // A lease that holds nothing ends by itself.
        drop(self.call_any(endpoints, "/v3/lease/revoke", &json!({"ID": lease.to_string()})));
        Ok(false)
    }

    /// Gives the lock back if it is this instance's.
    pub fn unlock(&self, endpoints: &[String], instance: &str) -> Result<(), Failure> {
        let key = base64(LOCK.as_bytes());
        let body = json!({
            "compare": [{"target": "VALUE", "key": key, "value": base64(instance.as_bytes())}],
            "success": [{"requestDeleteRange": {"key": key}}],
        });
        self.call_any(endpoints, "/v3/kv/txn", &body).map(drop)
    }

    /// Adds a learner and gives its id.
    pub fn add_learner(&self, endpoints: &[String], peer_url: &str) -> Result<Id, Failure> {
        let body = json!({"peerURLs": [peer_url], "isLearner": true});
        let answer = self.call_any(endpoints, "/v3/cluster/member/add", &body)?;
        id(answer.get("member").unwrap_or(&Value::Null), "ID")
    }

    /// Gives a learner its vote.
    pub fn promote(&self, endpoints: &[String], member: Id) -> Result<(), Failure> {
        let body = json!({"ID": member.0.to_string()});
        self.call_any(endpoints, "/v3/cluster/member/promote", &body)
            .map(drop)
    }

    /// Makes `heir` the leader. Only the present leader, at `endpoint`, can do that.
    pub fn hand_over(&self, endpoint: &str, heir: Id) -> Result<(), Failure> {
        let body = json!({"targetID": heir.0.to_string()});
        self.call_one(endpoint, "/v3/maintenance/transfer-leadership", &body)
            .map(drop)
    }

    /// Removes a member.
    pub fn remove(&self, endpoints: &[String], member: Id) -> Result<(), Failure> {
        let body = json!({"ID": member.0.to_string()});
        self.call_any(endpoints, "/v3/cluster/member/remove", &body)
            .map(drop)
    }
}

/// What etcd refuses, by its own words (etcd's api/v3rpc/rpctypes/error.go).
fn refused(endpoint: &str, status: u16, body: &[u8]) -> Failure {
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let said = ["message", "error"]
        .iter()
        .find_map(|field| body.get(field)?.as_str());
    let said: String = said
        .unwrap_or("no reason")
        .chars()
        .filter(|letter| !letter.is_control())
        .take(200)
        .collect();
    let cause = if said.contains("database space exceeded") || said.contains("no space left") {
        Cause::EtcdDiskFull
    } else if [
        "too many learner",
        "unhealthy cluster",
        "in sync with leader",
        "not enough started",
    ]
    .iter()
    .any(|words| said.contains(words))
    {
        Cause::EtcdForming
    } else {
        Cause::EtcdUnavailable
    };
    Failure::because(cause, format!("{endpoint} refuses ({status}): {said}"))
}

fn nonsense(what: &str) -> Failure {
    Failure::because(
        Cause::EtcdUnavailable,
        format!("etcd answers with something else: {what}"),
    )
}

fn member(value: &Value) -> Result<Member, Failure> {
    let texts = |field: &str| {
        let list = value
            .get(field)
            .and_then(Value::as_array)
            .map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok(Member {
        id: id(value, "ID")?,
        name: value
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        peer_urls: texts("peerURLs"),
        client_urls: texts("clientURLs"),
        learner: value.get("isLearner").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn id(value: &Value, field: &str) -> Result<Id, Failure> {
    let found = value.get(field).and_then(number).filter(|id| *id != 0);
    found.map(Id).ok_or_else(|| nonsense(field))
}

/// A number of 64 bits as the gateway writes it.
pub(crate) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_never_started_has_no_client_urls() {
        let value =
            json!({"ID": "9372538179322589801", "peerURLs": ["https://10.0.0.1:2380"], "isLearner": true});
        let read = member(&value).unwrap();
        assert_eq!(read.id.to_string(), "8211f1d0f64f3269");
        assert!(read.learner && !read.has_started() && read.name.is_empty());
    }

    #[test]
    fn an_answer_that_is_none_is_refused() {
        for value in [
            json!({}),
            json!({"ID": "x"}),
            json!({"ID": 0}),
            json!({"ID": "-1"}),
            json!([]),
        ] {
            assert!(member(&value).is_err());
        }
    }

    #[test]
    fn a_refusal_has_the_cause_of_its_words() {
        let cause = |message: &str| {
            let body = json!({"code": 8, "message": message}).to_string();
            refused("https://10.0.0.1:2379", 429, body.as_bytes()).cause
        };
        assert_eq!(
            cause("etcdserver: mvcc: database space exceeded"),
            Cause::EtcdDiskFull
        );
        assert_eq!(
            cause("etcdserver: too many learner members in cluster"),
            Cause::EtcdForming
        );
        assert_eq!(cause("etcdserver: unhealthy cluster"), Cause::EtcdForming);
        assert_eq!(cause("etcdserver: request timed out"), Cause::EtcdUnavailable);
        assert_eq!(refused("x", 500, &[0xff]).cause, Cause::EtcdUnavailable);
    }
}
