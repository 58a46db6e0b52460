use super::*;

fn package(text: &str) -> Package {
    let text = format!("Version: 2.0\nArchitecture: amd64\n{text}");
    Package::installed(Paragraph::parse(text.as_bytes()).unwrap()).unwrap()
}

#[test]
fn replaces_minds_the_version() {
    let old = package("Package: old\n");
    assert!(package("Package: new\nReplaces: other, old (<< 2.1)\n").replaces(&old));
    assert!(package("Package: new\nReplaces: old\n").replaces(&old));
    assert!(!package("Package: new\nReplaces: old (<< 2.0)\n").replaces(&old));
    assert!(!package("Package: new\n").replaces(&old));
}

#[test]
fn files_of_multi_arch_packages_carry_the_architecture() {
    assert_eq!(
        package("Package: libx\nMulti-Arch: same\n").info_name(),
        "libx:amd64"
    );
    assert_eq!(package("Package: x\nMulti-Arch: foreign\n").info_name(), "x");
}

#[test]
fn a_dependency_on_what_is_left_out_goes_and_others_stay() {
    let mut stanza =
        Paragraph::parse(b"Package: a\nDepends: b (>= 1), gone:any (>= 3), gone | c\nPre-Depends: gone\n")
            .unwrap();
    drop_absent(&mut stanza, &BTreeSet::from(["b".to_owned(), "c".to_owned()]));
    assert_eq!(stanza.get("Depends"), Some("b (>= 1), gone | c"));
    assert_eq!(stanza.get("Pre-Depends"), None);
}

#[test]
fn the_source_defaults_to_the_package() {
    assert_eq!(
        package("Package: x\n").source(),
        ("x".to_owned(), "2.0".to_owned())
    );
    assert_eq!(
        package("Package: x\nSource: y (1.9)\n").source(),
        ("y".to_owned(), "1.9".to_owned())
    );
}
