use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

const HASH: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn document(node: &str) -> Vec<u8> {
    format!(
        "apiVersion: kimage.dev/v1\nkind: NodeConfig\nrole: worker\ncluster: {{name: a, endpoint: 'lb.example.com:6443'}}\n\
         join: {{token: abcdef.0123456789abcdef, caCertHashes: ['{HASH}']}}\nnode: {node}\n"
    )
    .into_bytes()
}

fn raw(user_data: Vec<u8>) -> Raw {
    Raw {
        disk: None,
        platform: Platform::Ec2,
        source: "a test".to_owned(),
        user_data,
        instance_id: "i-0123456789abcdef0".to_owned(),
        host_name: Some("IP-10-0-0-1.EC2.Internal.".to_owned()),
        address: Some("10.0.0.1".parse().unwrap()),
        zone: Some("eu-1a".to_owned()),
        region: Some("eu-1".to_owned()),
        provider_id: Some("aws:///eu-1a/i-0".to_owned()),
    }
}

fn judged(raw: Raw) -> Result<Machine, Failure> {
    judge(raw, "worker", &|_| Some("10.9.9.9".parse().unwrap()))
}

fn cause(user_data: impl Into<Vec<u8>>) -> Cause {
    judged(raw(user_data.into())).unwrap_err().cause
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::best());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn the_platform_names_the_machine_and_the_config_overrides_it() {
    let machine = judged(raw(document("{}"))).unwrap();
    assert_eq!(machine.name, "ip-10-0-0-1.ec2.internal");
    assert_eq!(machine.address.to_string(), "10.0.0.1");
    assert_eq!(machine.zone.as_deref(), Some("eu-1a"));
    let own = judged(raw(document("{name: n1, address: 10.1.1.1, zone: z, region: r}"))).unwrap();
    assert_eq!(
        (own.name.as_str(), own.address.to_string().as_str()),
        ("n1", "10.1.1.1")
    );
    assert_eq!(
        (own.zone.as_deref(), own.region.as_deref()),
        (Some("z"), Some("r"))
    );
}

#[test]
fn without_name_and_address_the_machine_finds_its_own() {
    let bare = Raw {
        host_name: None,
        address: None,
        ..raw(document("{}"))
    };
    let machine = judged(bare.clone()).unwrap();
    assert_eq!(machine.name, "node-i0123456789abcdef0");
    assert_eq!(machine.address.to_string(), "10.9.9.9");
    let failure = judge(bare, "worker", &|_| None).unwrap_err();
    assert_eq!(failure.cause, Cause::MetadataUnreachable);
}

#[test]
fn names_that_no_node_can_have_are_refused() {
    for name in ["A", "a_b", "-a", "a..b", "localhost"] {
        assert_eq!(
            cause(document(&format!("{{name: '{name}'}}"))),
            Cause::ConfigInvalid,
            "{name}"
        );
    }
    let named = |name: &str| {
        judged(Raw {
            host_name: Some(name.to_owned()),
            ..raw(document("{}"))
        })
    };
    let long = format!("gke-node-1.{}.internal", "c".repeat(60));
    assert_eq!(named(&long).unwrap().name, "gke-node-1");
    assert_eq!(named("a_b").unwrap_err().cause, Cause::ConfigInvalid);
}

#[test]
fn an_address_that_nobody_reaches_is_refused() {
    for address in ["127.0.0.1", "0.0.0.0", "'::1'", "224.0.0.1"] {
        assert_eq!(
            cause(document(&format!("{{address: {address}}}"))),
            Cause::ConfigInvalid,
            "{address}"
        );
    }
}

#[test]
fn compressed_user_data_is_unpacked_within_bounds() {
    assert!(judged(raw(gzip(&document("{}")))).is_ok());
    assert_eq!(cause(gzip(&vec![b' '; 64 << 20])), Cause::MetadataTooLarge);
    assert_eq!(
        cause([GZIP.as_slice(), b"rubbish"].concat()),
        Cause::ConfigInvalid
    );
    let whole = gzip(&document("{}"));
    assert_eq!(cause(&whole[..whole.len() / 2]), Cause::ConfigInvalid);
}

#[test]
fn user_data_for_somebody_else_is_named() {
    let failure = judged(raw(b"#cloud-config\nusers: []\n".to_vec())).unwrap_err();
    assert_eq!(failure.cause, Cause::ConfigInvalid);
    assert!(
        failure.message().contains("#cloud-config document of cloud-init"),
        "{}",
        failure.message()
    );
    assert_eq!(cause("#!/bin/sh\n"), Cause::ConfigInvalid);
    assert_eq!(cause(" \n"), Cause::NoMetadata);
    assert_eq!(cause(vec![b'#'; MAX_NODE_CONFIG + 1]), Cause::MetadataTooLarge);
    assert_eq!(cause("a: [\u{0}"), Cause::ConfigInvalid);
}

#[test]
fn the_role_must_be_the_images() {
    let failure = judge(raw(document("{}")), "etcd", &|_| None).unwrap_err();
    assert_eq!(failure.cause, Cause::WrongRole);
    assert!(failure.message().contains("`worker`") && failure.message().contains("`etcd`"));
}

#[test]
fn an_unknown_key_is_refused_by_its_path() {
    let failure = judged(raw(document("{nmae: a}"))).unwrap_err();
    assert_eq!(failure.cause, Cause::ConfigInvalid);
    assert!(failure.message().contains("node"), "{}", failure.message());
}

#[test]
fn printing_what_a_platform_said_shows_no_document() {
    let shown = format!(
        "{:?} {:?}",
        raw(document("{}")),
        judged(raw(document("{}"))).unwrap()
    );
    assert!(
        !shown.contains("0123456789abcdef'") && !shown.contains("abcdef.0123456789abcdef"),
        "{shown}"
    );
}

#[test]
fn the_route_to_an_address_tells_our_own() {
    // Towards itself the loopback leads, which is no address for others.
    assert_eq!(source_address("127.0.0.1:6443".parse().unwrap()), None);
}
