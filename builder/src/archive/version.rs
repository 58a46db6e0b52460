//! Debian's order of versions (deb-version(7)), for the version limits of relations.

use std::cmp::Ordering;

/// Compares two versions: epoch, upstream version, revision.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (one, other) = (split(one), split(other));
    one.0
        .cmp(&other.0)
        .then_with(|| part(one.1, other.1))
        .then_with(|| part(one.2, other.2))
}

/// Whether `version` is within a relation's limit, `(<< 1.2)` written as its operator and version.
pub fn within(version: &str, operator: &str, limit: &str) -> bool {
    let order = compare(version, limit);
    match operator {
        "<<" => order.is_lt(),
        "<=" | "<" => order.is_le(),
        "=" => order.is_eq(),
        ">=" | ">" => order.is_ge(),
        ">>" => order.is_gt(),
        _ => false,
    }
}

fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    (epoch.parse().unwrap_or(u64::MAX), upstream, revision)
}

/// Alternates between the longest prefix without digits and the longest number, as the manual says.
fn part(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while !one.is_empty() || !other.is_empty() {
        let (texts, rests) = (take(one, false), take(other, false));
        let order = text(texts.0, rests.0);
        let (numbers, others) = (take(texts.1, true), take(rests.1, true));
        let order = order.then_with(|| number(numbers.0, others.0));
        if order.is_ne() {
            return order;
        }
        (one, other) = (numbers.1, others.1);
    }
    Ordering::Equal
}

fn take(bytes: &[u8], digits: bool) -> (&[u8], &[u8]) {
    let end = bytes
        .iter()
        .position(|byte| byte.is_ascii_digit() != digits)
        .unwrap_or(bytes.len());
    bytes.split_at(end)
}

/// `~` sorts before the end, letters before everything else.
fn text(one: &[u8], other: &[u8]) -> Ordering {
    let weight = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    let length = one.len().max(other.len());
    let mut orders = (0..length).map(|index| weight(one.get(index)).cmp(&weight(other.get(index))));
    orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn number(one: &[u8], other: &[u8]) -> Ordering {
    let strip = |digits: &[u8]| {
        let start = digits
            .iter()
            .position(|digit| *digit != b'0')
            .unwrap_or(digits.len());
        digits[start..].to_vec()
    };
    let (one, other) = (strip(one), strip(other));
    one.len().cmp(&other.len()).then_with(|| one.cmp(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_the_manual_says() {
        let sorted = [
            "1.0~~", "1.0~~a", "1.0~", "1.0", "1.0-1", "1.0-1.1", "1.0a", "1.0+", "1.0.1", "1.10", "1:0.1",
        ];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
        assert_eq!(compare("0:1.00-0", "1.0"), Ordering::Equal);
        assert!(within("2.39-0ubuntu8", ">=", "2.39") && !within("2.39~rc1", ">=", "2.39"));
    }
}
