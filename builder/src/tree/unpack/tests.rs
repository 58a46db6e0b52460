use super::*;

#[test]
fn merged_paths_are_below_usr() {
    let cases = [
        ("bin/sh", "usr/bin/sh"),
        ("lib", "usr/lib"),
        ("lib64/ld.so", "usr/lib64/ld.so"),
        ("libx/a", "libx/a"),
        ("etc", "etc"),
    ];
    for (path, expected) in cases {
        assert_eq!(
            merged(&TreePath::parse(path.as_bytes()).unwrap()).to_bytes(),
            expected.as_bytes()
        );
    }
}
