use super::*;
use proptest::prelude::{ProptestConfig, prop_assert, proptest};

const NOW: u64 = 1_795_000_000;

thread_local! {
    static KEYS: (Secret, String) = new_key().unwrap();
}

fn list() -> InstanceList {
    let instance = Instance::new;
    InstanceList {
        cluster: "prod".to_owned(),
        sequence: 7,
        issued_at: NOW,
        expires_at: NOW + 3600,
        complete: false,
        instances: vec![
            instance("i-1", InstanceState::Running),
            instance("i-2", InstanceState::Terminated),
        ],
    }
}

fn complete() -> InstanceList {
    InstanceList {
        complete: true,
        ..list()
    }
}

/// As a signer would that checks nothing.
fn sign_unchecked(list: &InstanceList, private_key: &Secret) -> Vec<u8> {
    let der = pem::decode("PRIVATE KEY", private_key.reveal()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).unwrap();
    let list = serde_json::to_vec(list).unwrap();
    let signature = key.sign(&[CONTEXT, list.as_slice()].concat());
    let signed = Signed {
        list: STANDARD.encode(list),
        signature: STANDARD.encode(signature.as_ref()),
    };
    serde_json::to_vec(&signed).unwrap()
}

fn read(
    document: &[u8],
    public_key: &str,
    seen: Option<Edition>,
    now: u64,
) -> Result<InstanceList, InventoryError> {
    InstanceList::verify(
        document,
        &Expected {
            cluster: "prod",
            public_key,
            seen,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(now),
        },
    )
}

#[test]
fn a_signed_list_reads_back() {
    let (private, public) = new_key().unwrap();
    let document = list().sign(&private).unwrap();
    assert_eq!(
        read(&document, &public, Some(list().edition()), NOW).unwrap(),
        list()
    );
    assert!(check_public_key(&public).is_ok() && check_public_key(private.reveal()).is_err());
}

#[test]
fn an_old_early_replayed_foreign_or_changed_list_is_refused() {
    let (private, public) = new_key().unwrap();
    let document = list().sign(&private).unwrap();
    let error = |seen, now| read(&document, &public, seen, now).unwrap_err();
    assert_eq!(error(None, NOW + 3600), InventoryError::Expired);
    assert_eq!(error(None, NOW - 301), InventoryError::Future);
    let edition = list().edition();
    let later = |sequence, seconds| Edition {
        sequence: edition.sequence + sequence,
        issued_at: edition.issued_at + seconds,
    };
    for seen in [later(1, 0), later(0, 1), later(1, 1)] {
        assert_eq!(error(Some(seen), NOW), InventoryError::Replayed { edition, seen });
    }
    let other = new_key().unwrap().1;
    assert_eq!(read(&document, &other, None, NOW), Err(InventoryError::Signature));
    assert_eq!(read(&document, "", None, NOW), Err(InventoryError::PublicKey));
    let foreign = InstanceList {
        cluster: "test".to_owned(),
        ..list()
    };
    let foreign = foreign.sign(&private).unwrap();
    assert_eq!(read(&foreign, &public, None, NOW), Err(InventoryError::Cluster));
    let mut twice = list();
    twice.instances.push(twice.instances[0].clone());
    assert!(matches!(twice.sign(&private), Err(InventoryError::Malformed(_))));
    assert!(matches!(
        read(&vec![b' '; MAX_INVENTORY + 1], &public, None, NOW),
        Err(InventoryError::Malformed(_))
    ));
}

#[test]
fn a_list_that_never_ends_or_ends_before_it_begins_is_neither_signed_nor_believed() {
    let (private, public) = new_key().unwrap();
    let ends = |expires_at| InstanceList { expires_at, ..list() };
    let day = MAX_VALIDITY.as_secs();
    let document = ends(NOW + day).sign(&private).unwrap();
    assert!(read(&document, &public, None, NOW + day - 1).is_ok());
    for (expires_at, expected) in [
        (NOW + day + 1, InventoryError::Validity),
        (u64::MAX, InventoryError::Validity),
        (
            NOW,
            InventoryError::Malformed("it ends before it was issued".to_owned()),
        ),
    ] {
        assert_eq!(ends(expires_at).sign(&private).unwrap_err(), expected);
        let document = sign_unchecked(&ends(expires_at), &private);
        assert_eq!(read(&document, &public, None, NOW).unwrap_err(), expected);
    }
}

#[test]
fn only_a_complete_list_says_that_the_unnamed_is_gone() {
    let long_ago = Some(NOW - 3600);
    let says = |list: &InstanceList| ["i-1", "i-2", "i-3"].map(|id| list.standing(id, long_ago));
    assert_eq!(
        says(&list()),
        [Standing::Present, Standing::Gone, Standing::Unknown]
    );
    assert_eq!(
        says(&complete()),
        [Standing::Present, Standing::Gone, Standing::Gone]
    );
}

#[test]
fn a_complete_list_says_nothing_about_an_instance_that_came_after_it_or_shortly_before() {
    let skew = CLOCK_SKEW.as_secs();
    let says = |since| complete().standing("i-3", since);
    assert_eq!(says(Some(NOW - skew)), Standing::Gone);
    for since in [
        Some(NOW - skew + 1),
        Some(NOW),
        Some(NOW + 1),
        Some(u64::MAX),
        None,
    ] {
        assert_eq!(says(since), Standing::Newer, "{since:?}");
    }
    // What is terminated stays so.
    assert_eq!(complete().standing("i-2", Some(u64::MAX)), Standing::Gone);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_changed_byte_is_believed(at in 0usize..1000, flip in 1u8..=255, other: Vec<u8>) {
        let (private, public) = new_key().unwrap();
        let mut document = list().sign(&private).unwrap();
        let length = document.len();
        document[at % length] ^= flip;
        // A changed byte of the JSON around may mean the same (its last base64 digit can't, decoding is strict).
        prop_assert!(read(&document, &public, None, NOW).is_err());
        prop_assert!(read(&other, &public, None, NOW).is_err());
    }

    /// Whatever the numbers are: what is believed ends within a day, is of now, and isn't behind what was seen; and what
    /// says of an unnamed instance that it is gone is later than the instance.
    #[test]
    fn a_list_is_believed_only_within_its_bounds(
        issued_at: u64, expires_at: u64, sequence: u64, now: u64,
        near in (0u64..200_000, 0u64..200_000, 0u64..200_000), is_near: bool,
        seen: Option<(u64, u64)>, since: Option<u64>,
    ) {
        let (issued_at, expires_at, now) = if is_near {
            (NOW + near.0, NOW + near.1, NOW + near.2)
        } else {
            (issued_at, expires_at, now % (1 << 40))
        };
        let seen = seen.map(|(sequence, issued_at)| Edition { sequence, issued_at });
        let list = InstanceList { issued_at, expires_at, sequence, ..complete() };
        let (private, public) = KEYS.with(Clone::clone);
        let document = sign_unchecked(&list, &private);
        if let Ok(list) = read(&document, &public, seen, now) {
            prop_assert!(list.issued_at <= now + CLOCK_SKEW.as_secs() && now < list.expires_at);
            prop_assert!(list.expires_at - list.issued_at <= MAX_VALIDITY.as_secs());
            prop_assert!(seen.is_none_or(|seen| list.sequence >= seen.sequence && list.issued_at >= seen.issued_at));
        }
        if list.standing("i-3", since) == Standing::Gone {
            prop_assert!(since.is_some_and(|since| issued_at - since >= CLOCK_SKEW.as_secs()));
        }
    }

    /// A signed text that is no list is refused, whatever it is.
    #[test]
    fn a_signed_text_that_is_no_list_is_refused(text in "[\\[{\"a-z:,0-9}\\] ]{0,200}") {
        let (private, public) = KEYS.with(Clone::clone);
        let der = pem::decode("PRIVATE KEY", private.reveal()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).unwrap();
        let signature = STANDARD.encode(key.sign(&[CONTEXT, text.as_bytes()].concat()));
        let document = format!("{{\"list\":\"{}\",\"signature\":\"{signature}\"}}", STANDARD.encode(&text));
        let refused = read(document.as_bytes(), &public, None, NOW);
        prop_assert!(matches!(refused, Err(InventoryError::Malformed(_))));
    }
}

#[test]
fn a_list_says_where_nodes_are_and_gives_no_name_or_address_to_two() {
    let at = |id: &str, node: &str, address: &str| {
        Instance::new(id, InstanceState::Running).at(node, vec![address.parse().unwrap()])
    };
    let mut list = list();
    list.instances.push(at("i-3", "w1", "10.0.0.7"));
    let gone = Instance::new("i-0", InstanceState::Terminated).at("w1", vec!["10.0.0.7".parse().unwrap()]);
    list.instances.push(gone);
    list.check().unwrap();
    let nodes = list.nodes();
    assert_eq!(nodes.len(), 1);
    assert_eq!(nodes["w1"], BTreeSet::from(["10.0.0.7".parse().unwrap()]));
    for wrong in [
        at("i-4", "w2", "10.0.0.7"),
        at("i-4", "w1", "10.0.0.8"),
        at("i-4", "../w2", "10.0.0.8"),
        Instance::new("i-4", InstanceState::Running).at("w2", Vec::new()),
        Instance {
            node: None,
            ..at("i-4", "w2", "10.0.0.8")
        },
    ] {
        let mut list = list.clone();
        list.instances.push(wrong.clone());
        assert!(
            matches!(list.check(), Err(InventoryError::Malformed(_))),
            "{wrong:?}"
        );
    }
}

/// A list without the newer keys has the bytes that it always had: machines of an older kimage read it.
#[test]
fn a_list_that_says_no_addresses_names_no_key_for_them() {
    let text = serde_json::to_string(&list()).unwrap();
    assert!(!text.contains("node") && !text.contains("addresses"), "{text}");
}
