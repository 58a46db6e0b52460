use super::*;
use crate::node_config::{Cidr, Cluster};
use proptest::prelude::{ProptestConfig, proptest};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000)
}

fn cluster() -> Cluster {
    Cluster {
        name: "prod".to_owned(),
        endpoint: "lb.example.com:6443".parse().unwrap(),
        api_names: vec!["api.internal".to_owned(), "192.0.2.7".to_owned()],
        service_subnet: Cidr::services(),
        pod_subnet: Cidr::pods(),
        dns_domain: "cluster.local".to_owned(),
    }
}

fn authority(name: &str) -> Authority {
    Authority::from_pair(&Authority::create(name, now()).unwrap()).unwrap()
}

#[test]
fn a_leaf_is_current_until_a_third_of_its_life_is_left() {
    let ca = authority("kubernetes");
    let profile = Profile::api_server(&cluster(), "cp-1", "10.0.0.5".parse().unwrap());
    let pair = issue(&ca, &profile, now(), 30 * DAY).unwrap();
    assert!(is_current(&pair, &profile, &ca, now()));
    assert!(is_current(&pair, &profile, &ca, now() + 19 * DAY));
    assert!(!is_current(&pair, &profile, &ca, now() + 21 * DAY));
    assert!(!is_current(&pair, &profile, &ca, now() + 31 * DAY));
    assert!(!is_current(&pair, &profile, &ca, now() - DAY));
    assert!(!is_current(&pair, &profile, &ca, SystemTime::UNIX_EPOCH - DAY));
}

#[test]
fn another_profile_authority_key_or_a_broken_text_is_not_current() {
    let (ca, other) = (authority("kubernetes"), authority("kubernetes"));
    let address = "10.0.0.5".parse().unwrap();
    let profile = Profile::etcd_server("etcd-1", address);
    let pair = issue(&ca, &profile, now(), LEAF_LIFETIME).unwrap();
    assert!(
        !is_current(&pair, &profile, &other, now()),
        "same name, other key"
    );
    for changed in [
        Profile::etcd_server("etcd-2", address),
        Profile::etcd_server("etcd-1", "10.0.0.6".parse().unwrap()),
        Profile::client("etcd-1", None),
        Profile::client("etcd-1", Some("system:masters")),
    ] {
        assert!(!is_current(&pair, &changed, &ca, now()), "{changed:?}");
    }
    let foreign = KeyPair {
        key: new_key().unwrap(),
        ..pair.clone()
    };
    assert!(!is_current(&foreign, &profile, &ca, now()), "key of another");
    assert!(
        check_pair(&foreign)
            .unwrap_err()
            .to_string()
            .contains("another certificate")
    );
    let broken = KeyPair {
        certificate: "x".to_owned(),
        ..pair.clone()
    };
    assert!(!is_current(&broken, &profile, &ca, now()));
    assert!(check_pair(&pair).is_ok());
}

#[test]
fn an_authority_is_checked() {
    let pair = Authority::create("kubernetes", now()).unwrap();
    let ca = Authority::from_pair(&pair).unwrap();
    let leaf = issue(&ca, &Profile::admin(), now(), DAY).unwrap();
    let text = |pair: &KeyPair| Authority::from_pair(pair).unwrap_err().to_string();
    assert!(text(&leaf).contains("CA:TRUE"));
    let swapped = KeyPair {
        key: new_key().unwrap(),
        ..pair.clone()
    };
    assert!(text(&swapped).contains("another certificate"));
    assert!(
        text(&KeyPair {
            key: Secret::new("no"),
            ..pair.clone()
        })
        .contains("PEM")
    );
    assert!(!format!("{ca:?} {pair:?}").contains("PRIVATE"));
    let Validity { from, until } = validity_of(&pair.certificate).unwrap();
    assert_eq!(until - from, 87_600 * 3600 + 300);
    assert_eq!(from, 1_795_000_000 - 300);
}

#[test]
fn names_of_the_api_server_are_kubeadms() {
    let profile = Profile::api_server(&cluster(), "cp-1", "10.0.0.5".parse().unwrap());
    let text = format!("{profile:?}");
    for expected in [
        "cp-1",
        "\"kubernetes.default.svc.cluster.local\"",
        "lb.example.com",
        "api.internal",
        "192.0.2.7",
        "10.96.0.1",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(
        !text.contains("127.0.0.1") && !text.contains("localhost"),
        "{text}"
    );
}

#[test]
fn a_time_outside_of_x509_is_an_error() {
    let ca = authority("kubernetes");
    let issue = |now, lifetime| issue(&ca, &Profile::admin(), now, lifetime);
    assert!(issue(SystemTime::UNIX_EPOCH - DAY, DAY).is_err());
    assert!(issue(now(), Duration::MAX).is_err());
    assert!(issue(now(), 400_000 * DAY).is_ok());
    assert!(issue(now(), 4_000_000 * DAY).is_err());
    assert!(Authority::create("kübernetes", now()).is_err());
}

#[test]
fn a_kubeconfig_holds_its_credentials_and_prints_none() {
    let ca = Authority::create("kubernetes", now()).unwrap();
    let pair = issue(&Authority::from_pair(&ca).unwrap(), &Profile::admin(), now(), DAY).unwrap();
    let token = Secret::new("abcdef.0123456789abcdef");
    for credentials in [
        Credentials::Certificate(&pair),
        Credentials::Token(&token),
        Credentials::Files {
            certificate: "/c",
            key: "/k",
        },
    ] {
        let kubeconfig = Kubeconfig {
            cluster: "kubernetes",
            server: "https://lb:6443",
            ca_certificate: &ca.certificate,
            user: "kubernetes-admin",
            credentials,
        };
        assert!(!format!("{kubeconfig:?}").contains("PRIVATE"));
        let text = kubeconfig.to_json();
        let value: serde_json::Value = serde_json::from_str(text.reveal()).unwrap();
        assert_eq!(value["current-context"], "kubernetes-admin@kubernetes");
        assert_eq!(value["contexts"][0]["context"]["user"], value["users"][0]["name"]);
        assert_eq!(
            value["users"][0]["user"].as_object().unwrap().len(),
            if matches!(credentials, Credentials::Token(_)) {
                1
            } else {
                2
            }
        );
    }
}

#[test]
fn a_name_with_an_impossible_attribute_type_is_refused() {
    let ca = Authority::create("kubernetes", now()).unwrap();
    let der = pem::decode("CERTIFICATE", &ca.certificate).unwrap();
    // The type of a common name, 2.5.4.3, becomes 3.5.4.3.
    let common_name = [0x06, 0x03, 0x55, 0x04, 0x03];
    let impossible = [0x06, 0x03, 0x7d, 0x04, 0x03];
    let changed: Vec<u8> = replace(&der, &common_name, &impossible);
    assert_ne!(changed, der);
    let certificate = pem::encode("CERTIFICATE", &changed);
    let problem = Authority::from_pair(&KeyPair { certificate, ..ca })
        .map(drop)
        .unwrap_err();
    assert!(
        problem.to_string().contains("not one attribute of a known type"),
        "{problem}"
    );
}

fn replace(bytes: &[u8], from: &[u8; 5], to: &[u8; 5]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for at in 0..bytes.len() - from.len() {
        if changed[at..].starts_with(from) {
            changed[at..at + from.len()].copy_from_slice(to);
        }
    }
    changed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(der: Vec<u8>, at in 0usize..400, with: u8) {
        let ca = Authority::create("kubernetes", now()).unwrap();
        let mut damaged = pem::decode("CERTIFICATE", &ca.certificate).unwrap();
        let length = damaged.len();
        damaged[at % length] = with;
        for bytes in [der, damaged] {
            let certificate = pem::encode("CERTIFICATE", &bytes);
            let _ = public_key_hash(&certificate);
            let _ = Authority::from_pair(&KeyPair { certificate: certificate.clone(), ..ca.clone() })
                .map(|ca| issue(&ca, &Profile::admin(), now(), DAY));
            let key = Secret::new(pem::encode("EC PRIVATE KEY", &bytes));
            let _ = check_pair(&KeyPair { key, ..ca.clone() });
        }
    }
}

#[test]
fn a_kept_pair_is_refused_when_it_is_over_damaged_or_anothers() {
    let ca = Authority::create("kubernetes", now()).unwrap();
    let ca = Authority::from_pair(&ca).unwrap();
    let profile = Profile::kubelet_client("w1");
    let pair = issue(&ca, &profile, now(), DAY).unwrap();
    let kept = format!("{}{}", pair.certificate, pair.key.reveal());
    assert_eq!(check_kept(&kept, &profile, now()).unwrap().key, pair.key);
    // By a clock that was set back it is too early to say.
    assert!(check_kept(&kept, &profile, now() - DAY * 400).is_ok());
    assert!(check_kept(&kept, &profile, now() + DAY).is_err());
    assert!(check_kept(&kept, &Profile::kubelet_client("w2"), now()).is_err());
    let other = issue(&ca, &profile, now(), DAY).unwrap();
    let mixed = format!("{}{}", pair.certificate, other.key.reveal());
    for damaged in [
        String::new(),
        pair.certificate.clone(),
        pair.key.reveal().to_owned(),
        mixed,
        kept[..kept.len() / 2].to_owned(),
        kept.replacen("MII", "AII", 1),
    ] {
        assert!(check_kept(&damaged, &profile, now()).is_err());
    }
}

#[test]
fn a_certificate_of_minutes_is_young_when_it_is_made() {
    let ca = Authority::create("kubernetes", now()).unwrap();
    let authority = Authority::from_pair(&ca).unwrap();
    let profile = Profile::admin();
    let pair = issue(&authority, &profile, now(), Duration::from_secs(120)).unwrap();
    let current = |after: u64| is_current(&pair, &profile, &authority, now() + Duration::from_secs(after));
    assert!(current(0) && current(70));
    assert!(!current(80));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_kept_bytes_panic(at in 0usize..2000, byte: u8, noise: String) {
        let ca = Authority::from_pair(&Authority::create("kubernetes", now()).unwrap()).unwrap();
        let profile = Profile::kubelet_client("w1");
        let pair = issue(&ca, &profile, now(), DAY).unwrap();
        let mut bytes = format!("{}{}", pair.certificate, pair.key.reveal()).into_bytes();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = check_kept(&String::from_utf8_lossy(&bytes), &profile, now());
        let _ = check_kept(&noise, &profile, now());
    }
}
