use std::time::{Duration, SystemTime};

use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_oneof, proptest};
use serde_json::{Value, json};

use crate::certificate::{Authority, new_key};
use crate::node_config::{MAX_NODE_CONFIG, NodeConfig, NodeConfigError};

const TOKEN: &str = "s3cr3t.t0ps3cr3tt0k3n00";
/// Parts of secrets that no error and no `Debug` may show.
const SECRET_PARTS: [&str; 4] = ["s3cr3t", "t0ps3cr3tt0k3n00", "c2VjcmV0", "PRIVATE KEY-----\n"];

fn hash() -> String {
    format!("sha256:{}", "0a".repeat(32))
}

fn worker() -> Value {
    json!({
        "apiVersion": "kimage.dev/v1",
        "kind": "NodeConfig",
        "role": "worker",
        "cluster": { "name": "prod", "endpoint": "lb.example.com:6443" },
        "join": { "token": TOKEN, "caCertHashes": [hash()] },
    })
}

fn pair() -> Value {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
    serde_json::to_value(Authority::create("kubernetes", now).unwrap()).unwrap()
}

fn control_plane() -> Value {
    json!({
        "apiVersion": "kimage.dev/v1",
        "kind": "NodeConfig",
        "role": "control-plane",
        "cluster": { "name": "prod", "endpoint": "lb.example.com:6443", "apiNames": ["api.internal", "192.0.2.7"] },
        "node": { "labels": { "team": "a" }, "taints": ["dedicated=x:NoSchedule"], "zone": "a", "name": "cp-1.internal" },
        "etcd": { "layout": "stacked", "formation": { "static": [
            { "name": "cp-1", "address": "192.168.0.1" },
            { "name": "cp-2", "address": "192.168.0.2" },
            { "name": "cp-3", "address": "192.168.0.3" },
        ] } },
        "secrets": {
            "etcdCa": pair(), "ca": pair(), "frontProxyCa": pair(),
            "serviceAccountKey": new_key().unwrap().reveal(),
            "encryptionKey": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U=",
            "bootstrapTokens": [{ "token": TOKEN, "expires": "2027-01-31T12:00:00Z" }],
        },
        "inventory": { "static": ["i-1", "i-2"] },
    })
}

fn etcd() -> Value {
    let mut document = control_plane();
    document["role"] = json!("etcd");
    document["etcd"] = json!({ "layout": "external", "formation": { "record": { "s3": {
        "endpoint": "https://s3.example.com", "region": "eu-central-1", "bucket": "kimage", "key": "prod/record",
        "credentials": { "accessKeyId": "AK", "secretAccessKey": "s3cr3t" },
    } } } });
    document["secrets"] = json!({ "etcdCa": pair() });
    document
}

fn read(document: &Value) -> Result<NodeConfig, NodeConfigError> {
    NodeConfig::from_yaml(document.to_string().as_bytes())
}

/// `document` with the value at a JSON pointer set, or removed where `value` is null.
fn with(mut document: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.remove(key)),
        (Value::Object(map), value) => drop(map.insert(key.to_owned(), value)),
        (parent, value) => parent[key.parse::<usize>().unwrap()] = value,
    }
    document
}

fn shows_no_secret(text: &str) {
    for part in SECRET_PARTS {
        assert!(!text.contains(part), "{text}");
    }
}

#[test]
fn whole_documents_are_read_and_print_no_secret() {
    for document in [worker(), control_plane(), etcd()] {
        let config = read(&document).unwrap();
        shows_no_secret(&format!("{config:?}"));
        assert_eq!(
            NodeConfig::from_yaml(config.to_json().unwrap().reveal().as_bytes()).unwrap(),
            config
        );
    }
}

#[test]
fn yaml_is_read_as_people_write_it() {
    let text = format!(
        "#cloud-config-ish comment\napiVersion: kimage.dev/v1\nkind: NodeConfig\nrole: worker\ncluster:\n  name: prod\n  \
         endpoint: lb.example.com:6443\nnode:\n  region: no\n  labels: {{rack: \"07\"}}\njoin:\n  token: {TOKEN}\n  \
         caCertHashes:\n  - {}\n",
        hash()
    );
    let config = NodeConfig::from_yaml(text.as_bytes()).unwrap();
    assert_eq!(config.node.region.as_deref(), Some("no"));
    assert_eq!(config.node.labels["rack"], "07");
}

/// Every refusal: what is changed, the path it must name, a word of the problem.
#[test]
fn a_refusal_names_the_path_of_its_key() {
    let cases: Vec<(Value, &str, Value, &str, &str)> = vec![
        (
            worker(),
            "/apiVersion",
            json!("v2"),
            "apiVersion",
            "kimage.dev/v1",
        ),
        (worker(), "/kind", json!("Pod"), "kind", "NodeConfig"),
        (worker(), "/role", json!("boss"), "role", "`boss`"),
        (worker(), "/role", Value::Null, "role", "missing"),
        (worker(), "/cluster", json!([]), "cluster", "list"),
        (
            worker(),
            "/cluster",
            json!([
                "prod",
                "lb:1",
                [],
                "10.96.0.0/12",
                "10.244.0.0/16",
                "cluster.local"
            ]),
            "cluster",
            "expected a map",
        ),
        (
            worker(),
            "/cluster/endpoint",
            Value::Null,
            "cluster.endpoint",
            "missing",
        ),
        (
            worker(),
            "/cluster/endpoint",
            json!("lb"),
            "cluster.endpoint",
            "host:port",
        ),
        (
            worker(),
            "/cluster/endpoint",
            json!(1),
            "cluster.endpoint",
            "quotes",
        ),
        (
            worker(),
            "/cluster/endpiont",
            json!("x"),
            "cluster.endpiont",
            "unknown key",
        ),
        (worker(), "/extra", json!("x"), "extra", "unknown key"),
        (
            worker(),
            "/cluster/name",
            json!("Prod"),
            "cluster.name",
            "lower-case",
        ),
        (
            worker(),
            "/cluster/apiNames",
            json!(["ok", "a b"]),
            "cluster.apiNames[1]",
            "DNS",
        ),
        (
            worker(),
            "/cluster/dnsDomain",
            json!("x_y"),
            "cluster.dnsDomain",
            "DNS",
        ),
        (
            worker(),
            "/cluster/podSubnet",
            json!("10.96.0.0/16"),
            "cluster.podSubnet",
            "overlaps",
        ),
        (
            worker(),
            "/cluster/podSubnet",
            json!("10.244.0.0/25"),
            "cluster.podSubnet",
            "/24",
        ),
        (
            worker(),
            "/cluster/podSubnet",
            json!("fd00::/56"),
            "cluster.podSubnet",
            "version",
        ),
        (
            worker(),
            "/cluster/podSubnet",
            json!("10.244.0.1/16"),
            "cluster.podSubnet",
            "prefix",
        ),
        (
            worker(),
            "/cluster/serviceSubnet",
            json!("10.96.0.0/30"),
            "cluster.serviceSubnet",
            "small",
        ),
        (
            worker(),
            "/cluster/endpoint",
            json!("10.96.0.1:6443"),
            "cluster.endpoint",
            "lies in",
        ),
        (worker(), "/node", json!({"name": "A"}), "node.name", "DNS"),
        (
            worker(),
            "/node",
            json!({"name": "a".repeat(64)}),
            "node.name",
            "63",
        ),
        (
            worker(),
            "/node",
            json!({"address": "127.0.0.1"}),
            "node.address",
            "reach",
        ),
        (
            worker(),
            "/node",
            json!({"address": "10.244.1.1"}),
            "node.address",
            "podSubnet",
        ),
        (worker(), "/node", json!({"zone": "a b"}), "node.zone", "label"),
        (
            worker(),
            "/node",
            json!({"labels": {"a b": "x"}}),
            "node.labels",
            "key",
        ),
        (
            worker(),
            "/node",
            json!({"labels": {"a": "x y"}}),
            "node.labels[\"a\"]",
            "label",
        ),
        (
            worker(),
            "/node",
            json!({"labels": {"node-role.kubernetes.io/worker": ""}}),
            "node.labels[\"node-role.kubernetes.io/worker\"]",
            "NodeRestriction",
        ),
        (
            worker(),
            "/node",
            json!({"labels": {"a": 7}}),
            "node.labels.a",
            "quotes",
        ),
        (
            worker(),
            "/node",
            json!({"taints": ["a:b"]}),
            "node.taints[0]",
            "Effect",
        ),
        (
            worker(),
            "/node",
            json!({"taints": ["a:NoSchedule", "a=1:NoSchedule"]}),
            "node.taints[1]",
            "another",
        ),
        (worker(), "/join", Value::Null, "join", "needs"),
        (
            worker(),
            "/join/token",
            json!("short"),
            "join.token",
            "bootstrap token",
        ),
        (worker(), "/join/token", json!(12.5), "join.token", "quotes"),
        (
            worker(),
            "/join/caCertHashes",
            json!([]),
            "join.caCertHashes",
            "anybody",
        ),
        (
            worker(),
            "/join/caCertHashes/0",
            json!("sha256:AB"),
            "join.caCertHashes[0]",
            "64",
        ),
        (
            worker(),
            "/secrets",
            etcd()["secrets"].clone(),
            "secrets",
            "worker",
        ),
        (worker(), "/etcd", etcd()["etcd"].clone(), "etcd", "worker"),
        (
            worker(),
            "/timing",
            json!({"etcdElectionMilliseconds": 499}),
            "timing.etcdElectionMilliseconds",
            "five",
        ),
        (
            worker(),
            "/timing",
            json!({"etcdHeartbeatMilliseconds": 4_294_967_295u32}),
            "timing.etcdElectionMilliseconds",
            "five",
        ),
        (
            worker(),
            "/timing",
            json!({"leaderLeaseSeconds": 0}),
            "timing.leaderLeaseSeconds",
            "5",
        ),
        (
            worker(),
            "/timing",
            json!({"nodeGraceSeconds": 0}),
            "timing.nodeGraceSeconds",
            "10",
        ),
        (
            worker(),
            "/certificates",
            json!({"lifetimeSeconds": 119}),
            "certificates.lifetimeSeconds",
            "120",
        ),
        (
            worker(),
            "/network",
            json!({"plugin": "calico"}),
            "network.plugin",
            "`calico`",
        ),
        (
            worker(),
            "/network",
            json!({"podMetadata": "open"}),
            "network.podMetadata",
            "`open`",
        ),
        (control_plane(), "/etcd", Value::Null, "etcd", "needs"),
        (control_plane(), "/secrets", Value::Null, "secrets", "needs"),
        (
            control_plane(),
            "/secrets/ca",
            Value::Null,
            "secrets.ca",
            "control-plane",
        ),
        (
            control_plane(),
            "/secrets/ca/certificate",
            json!("x"),
            "secrets.ca.certificate",
            "PEM",
        ),
        (
            control_plane(),
            "/secrets/ca/key",
            json!("s3cr3t"),
            "secrets.ca.key",
            "PEM",
        ),
        (
            control_plane(),
            "/secrets/encryptionKey",
            json!("c2VjcmV0"),
            "secrets.encryptionKey",
            "32 bytes",
        ),
        (
            control_plane(),
            "/secrets/serviceAccountKey",
            json!("s3cr3t"),
            "secrets.serviceAccountKey",
            "PEM",
        ),
        (
            control_plane(),
            "/secrets/serviceAccountKey",
            json!(["s3cr3t"]),
            "secrets.serviceAccountKey",
            "list",
        ),
        (control_plane(), "/secrets", json!("s3cr3t"), "secrets", "string"),
        (
            control_plane(),
            "/secrets/bootstrapTokens",
            json!([{"token": TOKEN}, {"token": TOKEN}]),
            "secrets.bootstrapTokens[1].token",
            "another",
        ),
        (
            control_plane(),
            "/secrets/bootstrapTokens",
            json!([{"token": TOKEN, "expires": "tomorrow"}]),
            "secrets.bootstrapTokens[0].expires",
            "time",
        ),
        (
            control_plane(),
            "/etcd/formation/static",
            json!([]),
            "etcd.formation.static",
            "no member",
        ),
        (
            control_plane(),
            "/etcd/formation/static/1/name",
            json!("cp-1"),
            "etcd.formation.static[1].name",
            "another",
        ),
        (
            control_plane(),
            "/etcd/formation/static/1/address",
            json!("192.168.0.1"),
            "etcd.formation.static[1].address",
            "another",
        ),
        (
            control_plane(),
            "/etcd/formation/static/1/address",
            json!("10.244.0.1"),
            "etcd.formation.static[1].address",
            "lies in",
        ),
        (
            control_plane(),
            "/inventory",
            json!({"static": []}),
            "inventory.static",
            "gone",
        ),
        (
            control_plane(),
            "/inventory",
            json!({"file": {"path": "a", "publicKey": ""}}),
            "inventory.file.path",
            "absolute",
        ),
        (
            control_plane(),
            "/inventory",
            json!({"http": {"url": "https://x", "publicKey": ""}}),
            "inventory.http.publicKey",
            "Ed25519",
        ),
        (
            etcd(),
            "/etcd/layout",
            json!("stacked"),
            "etcd.layout",
            "external",
        ),
        (etcd(), "/secrets/ca", pair(), "secrets.ca", "must not"),
        (
            etcd(),
            "/etcd/formation/record/s3/endpoint",
            json!("s3"),
            "etcd.formation.record.s3.endpoint",
            "URL",
        ),
        (
            etcd(),
            "/etcd/formation/record/s3/credentials/secretAccessKey",
            json!("s3cr3t x"),
            "etcd.formation.record.s3.credentials.secretAccessKey",
            "blanks",
        ),
        (
            etcd(),
            "/etcd/formation/record",
            json!({"file": {"path": "/a/../b"}}),
            "etcd.formation.record.file.path",
            "absolute",
        ),
        (
            etcd(),
            "/etcd/formation/record",
            json!({"etcd": {"endpoints": ["x"], "key": "k"}}),
            "etcd.formation.record.etcd.endpoints[0]",
            "URL",
        ),
    ];
    for (document, pointer, value, path, word) in cases {
        let changed = with(document, pointer, value);
        let error = read(&changed).expect_err(path);
        assert_eq!(error.path, path, "{error}");
        assert!(error.problem.contains(word), "{error}: {word}");
        shows_no_secret(&error.to_string());
    }
}

#[test]
fn bombs_and_other_yaml_are_refused() {
    let good = worker().to_string();
    let cases = [
        (format!("{}{}", "[".repeat(5000), "]".repeat(5000)), "."),
        ("a: &a [s3cr3t]\nb: [*a, *a]\n".to_owned(), "."),
        ("a: 1\n<<: {b: s3cr3t}\n".to_owned(), "."),
        ("role: worker\nrole: s3cr3t\n".to_owned(), "."),
        (format!("{good}\n---\n{good}"), "."),
        ("join:\n  token: s3cr3t: s3cr3t\n".to_owned(), "."),
        ("\u{1}s3cr3t".to_owned(), "."),
        (String::new(), "."),
        ("s3cr3t".to_owned(), "."),
        (" ".repeat(MAX_NODE_CONFIG + 1), "."),
    ];
    for (text, path) in cases {
        let error = NodeConfig::from_yaml(text.as_bytes()).unwrap_err();
        assert_eq!(error.path, path, "{error}");
        assert!(error.problem.len() < 400, "{error}");
        shows_no_secret(&error.to_string());
    }
    assert!(NodeConfig::from_yaml(&[0xff, 0xfe]).is_err());
}

/// Any JSON value, with secrets in it.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        Just(json!("s3cr3t")),
        Just(json!("s3cr3t, expected a map")),
        Just(json!("`s3cr3t`")),
        Just(json!("-----BEGIN PRIVATE KEY-----\nc2VjcmV0")),
        "[ -~]{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,5}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

/// Pointers to everything in `value`.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), found)),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .for_each(|(index, value)| pointers(value, &format!("{at}/{index}"), found)),
        _ => {}
    }
    if !at.is_empty() {
        found.push(at.to_owned());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, text in "[a-z:\\-\\[\\]{}&*<!|>'\"#\n ,]{0,80}") {
        let _ = NodeConfig::from_yaml(&bytes);
        let _ = NodeConfig::from_yaml(text.as_bytes());
    }

    #[test]
    fn a_wrong_value_at_a_secrets_place_is_refused_without_it(value in value(), which in any::<proptest::sample::Index>()) {
        let documents = [worker(), with(etcd(), "/secrets", json!({}))];
        for document in documents {
            let mut all = Vec::new();
            pointers(&document, "", &mut all);
            let secret: Vec<_> = all.iter().filter(|at| ["oken", "ecret", "join", "edentials", "formation"].iter().any(|part| at.contains(part))).collect();
            let at: &&String = which.get(&secret);
            let changed = with(document.clone(), at, value.clone());
            if let Err(error) = read(&changed) {
                // Public parts of the same section may be repeated: a URL, an address.
                let text = error.to_string();
                prop_assert!(!text.contains("s3cr3t") && !text.contains("c2VjcmV0"), "{}", text);
            }
        }
    }

    #[test]
    fn a_damaged_document_never_panics(at in any::<proptest::sample::Index>(), byte: u8, cut: bool) {
        let mut bytes = worker().to_string().into_bytes();
        let at = at.index(bytes.len());
        if cut { bytes.remove(at); } else { bytes[at] = byte; }
        if let Err(error) = NodeConfig::from_yaml(&bytes) {
            prop_assert!(!error.to_string().contains("t0ps3cr3tt0k3n00"), "{}", error);
        }
    }
}
