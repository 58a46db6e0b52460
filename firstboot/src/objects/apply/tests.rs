use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::*;
use crate::http::Trust;
use crate::http::test_server::{Reply, Seen, Server};
use crate::kubernetes::Caller;
use crate::lease::{INIT, Turns};

const COREDNS: &str = "/api/v1/namespaces/kube-system/configmaps/coredns";
const TOKEN: &str = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef";
/// As the server writes it, and as a pointer.
const COREFILE: (&str, &str) = (".data.Corefile", "/data/Corefile");

/// Objects by path, and which fields of them people own: path for the server, pointer, owner.
#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    owned: BTreeMap<String, Vec<(&'static str, &'static str, &'static str)>>,
}

/// As much of an API server as applying needs.
struct Cluster {
    api: Api,
    server: Server,
    state: Arc<Mutex<State>>,
}

impl Cluster {
    fn new() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let server = Server::start({
            let state = Arc::clone(&state);
            move |asked| state.lock().unwrap().answer(asked)
        });
        Self {
            api: Api::new(&server.url(), Trust::System, Caller::Anonymous).unwrap(),
            server,
            state,
        }
    }

    fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(path).cloned()
    }

    /// Somebody changes a field of an object.
    fn edit(&self, path: &str, (field, pointer): (&'static str, &'static str), value: Value) {
        let mut state = self.state.lock().unwrap();
        let object = state.objects.get_mut(path).unwrap();
        *object.pointer_mut(pointer).unwrap() = value;
        let owned = state.owned.entry(path.to_owned()).or_default();
        owned.push((field, pointer, "kubectl-edit"));
    }

    fn delete(&self, path: &str) {
        self.state.lock().unwrap().objects.remove(path).unwrap();
    }

    /// A control plane boots.
    fn boot(&self, wanted: &Wanted<'_>) -> Vec<String> {
        let mut turns = Turns::default();
        let take = &mut || turns.take(&self.api, &INIT, "cp-1");
        wanted.apply(&self.api, take).unwrap()
    }

    /// What was asked for since so many requests.
    fn asked(&self, since: usize) -> Vec<String> {
        let asked = |seen: &Seen| format!("{} {}", seen.method, seen.path);
        self.server.seen()[since..].iter().map(asked).collect()
    }
}

impl State {
    fn answer(&mut self, asked: &Seen) -> Reply {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        let known = self.objects.get(path).cloned();
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        match (asked.method.as_str(), known) {
            ("GET", Some(known)) => Reply::ok(known.to_string()),
            ("POST", _) => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.objects.contains_key(&path) {
                    refusal(409, &json!({}))
                } else {
                    self.keep(&path, body)
                }
            }
            ("PUT", Some(known)) if version(&body) == version(&known) => self.keep(path, body),
            ("PUT", Some(_)) => refusal(409, &json!({})),
            ("PATCH", known) => self.apply(path, known, &body, query.contains("force=true")),
            ("DELETE", Some(_)) => Reply::ok(self.objects.remove(path).unwrap().to_string()),
            _ => refusal(404, &json!({})),
        }
    }

    fn apply(&mut self, path: &str, known: Option<Value>, body: &Value, force: bool) -> Reply {
        let conflicts = |(_, pointer, _): &&(&str, &str, &str)| {
            let wanted = body.pointer(pointer);
            wanted.is_some() && wanted != known.as_ref().and_then(|known| known.pointer(pointer))
        };
        let cause = |(field, _, owner): &(&str, &str, &str)| {
            let message = format!("conflict with \"{owner}\" using v1");
            json!({"reason": "FieldManagerConflict", "field": field, "message": message})
        };
        let owned = self.owned.get(path).cloned().unwrap_or_default();
        let causes: Vec<Value> = owned.iter().filter(conflicts).map(cause).collect();
        if !causes.is_empty() && !force {
            return refusal(409, &json!({ "causes": causes }));
        }
        let mut object = known.unwrap_or_else(|| json!({}));
        merge(&mut object, body);
        object["metadata"]["managedFields"] = json!([{"manager": "kimage", "operation": "Apply"}]);
        self.keep(path, object)
    }

    fn keep(&mut self, path: &str, mut object: Value) -> Reply {
        let last = self.objects.get(path);
        let last = last.and_then(|last| last["metadata"]["resourceVersion"].as_str());
        let last: u64 = last.map_or(0, |last| last.parse().unwrap());
        object["metadata"]["resourceVersion"] = json!((last + 1).to_string());
        self.objects.insert(path.to_owned(), object.clone());
        Reply::ok(object.to_string())
    }
}

fn refusal(code: u16, details: &Value) -> Reply {
    let status = json!({"kind": "Status", "code": code, "reason": "Refused", "details": details});
    Reply::Answer(code, Vec::new(), status.to_string().into())
}

fn merge(object: &mut Value, body: &Value) {
    match (object, body) {
        (Value::Object(fields), Value::Object(more)) => {
            for (name, value) in more {
                merge(fields.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (object, body) => *object = body.clone(),
    }
}

fn version(revision: u32) -> Version {
    Version {
        kubernetes: [1, 36, 3],
        revision,
    }
}

fn config_map(name: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "kube-system"}, "data": data,
    })
}

/// What an image of revision `revision` wants.
fn wanted(revision: u32) -> Wanted<'static> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"},
    });
    let (corefile, image) = (format!("of {revision}"), format!("v{revision}"));
    Wanted {
        version: version(revision),
        objects: vec![
            config_map("coredns", &json!({"Corefile": corefile, "image": image})),
            config_map("other", &json!({"of": revision.to_string()})),
        ],
        tokens: vec![("abcdef".to_owned(), secret)],
        retired: &[],
    }
}

fn other() -> String {
    COREDNS.replace("coredns", "other")
}

#[test]
fn a_second_boot_asks_once_and_writes_nothing() {
    let cluster = Cluster::new();
    assert_eq!(cluster.boot(&wanted(1)), Vec::<String>::new());
    assert!(cluster.object(COREDNS).is_some() && cluster.object(TOKEN).is_some());
    let before = cluster.server.seen().len();
    assert_eq!(cluster.boot(&wanted(1)), Vec::<String>::new());
    assert_eq!(cluster.asked(before), [format!("GET {}", made::PATH)]);
}

#[test]
fn what_people_change_stays_through_boots_and_upgrades_and_the_rest_is_upgraded() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(1));
    cluster.edit(COREDNS, COREFILE, json!("mine"));
    assert_eq!(cluster.boot(&wanted(1)), Vec::<String>::new());
    let data = || cluster.object(COREDNS).unwrap()["data"].clone();
    assert_eq!(data(), json!({"Corefile": "mine", "image": "v1"}));
    let said = cluster.boot(&wanted(2));
    let expected = "ConfigMap kube-system/coredns: .data.Corefile stays as kubectl-edit has it";
    assert_eq!(said, [expected]);
    assert_eq!(data(), json!({"Corefile": "mine", "image": "v2"}));
    // Whoever looks for it later finds it.
    let made = cluster.object(made::PATH).unwrap();
    assert_eq!(made["data"]["kept"], format!("{expected}\n"));
    assert_eq!(cluster.boot(&wanted(2)), Vec::<String>::new());
}

#[test]
fn an_older_machine_takes_nothing_back_and_says_so() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(2));
    let before = cluster.object(COREDNS);
    let said = cluster.boot(&wanted(1));
    assert_eq!(cluster.object(COREDNS), before);
    assert!(said.len() == 1 && said[0].contains("none is applied"), "{said:?}");
    // A token of its NodeConfig that nobody made yet is made all the same.
    let mut older = wanted(1);
    older.tokens[0].0 = "fedcba".to_owned();
    older.tokens[0].1["metadata"]["name"] = json!("bootstrap-token-fedcba");
    cluster.boot(&older);
    assert!(cluster.object(&TOKEN.replace("abcdef", "fedcba")).is_some());
    assert_eq!(cluster.object(COREDNS), before);
    let made = cluster.object(made::PATH).unwrap();
    assert_eq!(made["data"]["version"], "v1.36.3-kimage.2");
}

#[test]
fn what_people_delete_stays_away_through_boots_and_upgrades() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(1));
    cluster.delete(COREDNS);
    cluster.delete(TOKEN);
    assert_eq!(cluster.boot(&wanted(1)), Vec::<String>::new());
    let said = cluster.boot(&wanted(2));
    assert!(
        said.len() == 1 && said[0].contains("was deleted and stays so"),
        "{said:?}"
    );
    assert_eq!((cluster.object(COREDNS), cluster.object(TOKEN)), (None, None));
    assert_eq!(cluster.object(&other()).unwrap()["data"]["of"], "2");
    // Without the record everything that is missing comes back.
    cluster.delete(made::PATH);
    cluster.boot(&wanted(2));
    assert!(cluster.object(COREDNS).is_some() && cluster.object(TOKEN).is_some());
}

#[test]
fn another_node_config_is_applied_at_the_same_version() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(1));
    let mut changed = wanted(1);
    changed.objects[1]["data"]["of"] = json!("other members");
    cluster.boot(&changed);
    assert_eq!(cluster.object(&other()).unwrap()["data"]["of"], "other members");
}

#[test]
fn a_boot_that_was_cut_off_before_it_noted_anything_is_repeated_without_harm() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(1));
    cluster.delete(made::PATH);
    cluster.edit(COREDNS, COREFILE, json!("mine"));
    let said = cluster.boot(&wanted(1));
    let expected = "ConfigMap kube-system/coredns: .data.Corefile stays as kubectl-edit has it";
    assert_eq!(said, [expected]);
    assert_eq!(cluster.object(COREDNS).unwrap()["data"]["Corefile"], "mine");
}

#[test]
fn a_record_that_says_nothing_stops_everything_and_no_boot() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(1));
    cluster.edit(made::PATH, (".data.version", "/data/version"), json!("latest"));
    cluster.delete(COREDNS);
    let said = cluster.boot(&wanted(2));
    assert!(said.len() == 1 && said[0].contains(made::RESET), "{said:?}");
    assert_eq!(cluster.object(COREDNS), None);
}

#[test]
fn what_a_version_has_no_more_use_for_goes_once_and_only_if_it_is_ours() {
    let retired = |name| Retired {
        since: version(2),
        version: "v1",
        kind: "ConfigMap",
        namespace: Some("kube-system"),
        name,
    };
    let all = [retired("old"), retired("theirs"), retired("never")];
    let cluster = Cluster::new();
    let create = |name: &str| {
        cluster
            .api
            .create(made::COLLECTION, &config_map(name, &json!({})))
    };
    let mut first = wanted(1);
    first.objects.push(config_map("old", &json!({})));
    cluster.boot(&first);
    create("theirs").unwrap();
    let mut second = wanted(2);
    second.retired = &all;
    let said = cluster.boot(&second);
    let gone = "ConfigMap kube-system/old is of no more use and was deleted";
    assert!(said.iter().any(|line| line == gone), "{said:?}");
    let at = |name: &str| cluster.object(&COREDNS.replace("coredns", name));
    assert!(at("old").is_none() && at("theirs").is_some());
    // Whoever makes it again keeps it.
    create("old").unwrap();
    cluster.boot(&second);
    assert!(at("old").is_some());
}

#[test]
fn a_field_that_can_t_be_left_out_leaves_the_object_as_it_is() {
    let cluster = Cluster::new();
    cluster.boot(&wanted(1));
    cluster.edit(COREDNS, (".data.gibberish[0]", "/data/Corefile"), json!("mine"));
    let said = cluster.boot(&wanted(2));
    assert!(said.len() == 1 && said[0].contains("stays as it is"), "{said:?}");
    let data = &cluster.object(COREDNS).unwrap()["data"];
    assert_eq!(*data, json!({"Corefile": "mine", "image": "v1"}));
}
