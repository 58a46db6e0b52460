//! Shell patterns over device identifiers, as kmod matches them (`fnmatch` without flags, `libkmod-index.c`).

/// The form in which names are compared: `-` becomes `_`, except inside brackets (kmod's `alias_normalize`).
pub fn normalise(alias: &str) -> String {
    let mut inside = false;
    let one = |c: char| {
        inside = match c {
            '[' => true,
            ']' => false,
            _ => inside,
        };
        if c == '-' && !inside { '_' } else { c }
    };
    alias.chars().map(one).collect()
}

/// Whether `pattern` (`*`, `?`, `[a-f]`, `[!x]`, `\x`) matches all of `name`. Time is at most the product of the
/// lengths: only the last `*` is ever taken back.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut at, mut position) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while position < name.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at + 1, position));
            at += 1;
        } else if let Some(length) = one(&pattern[at..], name[position]) {
            at += length;
            position += 1;
        } else if let Some((after, from)) = star {
            star = Some((after, from + 1));
            (at, position) = (after, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|c| *c == b'*')
}

/// The length of the pattern's first element if it matches `c`.
fn one(pattern: &[u8], c: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == c).then_some(2),
        [b'[', rest @ ..] => match set(rest, c) {
            Some((true, length)) => Some(length + 1),
            Some((false, _)) => None,
            // A bracket that never closes stands for itself.
            None => (c == b'[').then_some(1),
        },
        [plain, ..] => (*plain == c).then_some(1),
    }
}

/// Whether the set after `[` holds `c`, and the set's length with its `]`; `None` if it never ends.
fn set(pattern: &[u8], c: u8) -> Option<(bool, usize)> {
    let negated = matches!(pattern.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    let mut at = start;
    let mut found = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > start {
            return Some((found != negated, at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(high)) if *high != b']' => {
                found |= (low..=*high).contains(&c);
                at += 3;
            }
            _ => {
                found |= low == c;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
    use std::ffi::CString;

    #[expect(unsafe_code, reason = "the C library's fnmatch is the oracle")]
    fn oracle(pattern: &str, name: &str) -> bool {
        let (pattern, name) = (CString::new(pattern).unwrap(), CString::new(name).unwrap());
        // SAFETY: both are NUL-terminated and live through the call.
        unsafe { libc::fnmatch(pattern.as_ptr(), name.as_ptr(), 0) == 0 }
    }

    #[test]
    fn patterns_of_real_drivers_match_real_devices() {
        let cases = [
            (
                "pci:v000015ADd000007C0sv*sd*bc*sc*i*",
                "pci:v000015ADd000007C0sv000015ADsd000007C0bc01sc07i00",
                true,
            ),
            (
                "pci:v000015ADd000007C0sv*sd*bc*sc*i*",
                "pci:v000015ADd000007C1sv000015ADsd000007C0bc01sc07i00",
                false,
            ),
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("scsi:t_0x00*", "scsi:t_0x00", true),
            (
                "vmbus:d96361baa104294df605[0-9a-f]*",
                "vmbus:d96361baa104294df605e1",
                true,
            ),
            ("usb:v0525pA4A5d0[0-4]*dc*", "usb:v0525pA4A5d03dc", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("a[", "a[", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
            assert_eq!(oracle(pattern, name), expected, "oracle: {pattern} {name}");
        }
    }

    #[test]
    fn dashes_become_underscores_outside_brackets() {
        assert_eq!(normalise("scsi:t-0x0[0-9]-*"), "scsi:t_0x0[0-9]_*");
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        assert!(!matches(&"*a".repeat(400), &"a".repeat(399)));
        assert!(matches(&"*a".repeat(400), &"a".repeat(400)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_c_library_agrees(pattern in r"([ab*?]|\[!?[abc]{1,2}(-c)?\]|\\[*?a]){0,8}", name in "[abc*?]{0,8}") {
            prop_assert_eq!(matches(&pattern, &name), oracle(&pattern, &name));
        }
    }
}
