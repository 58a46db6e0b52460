//! What the user may have meant.

/// The name of `names` that is nearest to `name`, if one is near enough to be a slip of the finger.
pub fn nearest<'a, S>(name: &str, names: impl IntoIterator<Item = &'a S>) -> Option<&'a str>
where
    S: AsRef<str> + 'a + ?Sized,
{
    let limit = (name.chars().count() / 3).max(1);
    names
        .into_iter()
        .map(|known| (distance(name, known.as_ref(), limit), known.as_ref()))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, known)| known)
}

/// `prefix a, b, c; did you mean `b`?`
pub(super) fn listing(prefix: &str, name: &str, names: &[String]) -> String {
    if names.is_empty() {
        return format!("{prefix} none");
    }
    let mut text = format!("{prefix} {}", names.join(", "));
    if let Some(near) = nearest(name, names) {
        text.push_str(&format!("; did you mean `{near}`?"));
    }
    text
}

/// Insertions, deletions, substitutions and swaps of neighbours between two words (restricted Damerau-Levenshtein);
/// anything above `limit` may come out as `limit + 1`.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut cost = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                cost = cost.min(before[j - 1] + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_a_stranger_finds_none() {
        let names = ["control-plane", "etcd", "worker"];
        assert_eq!(nearest("etdc", names), Some("etcd"));
        assert_eq!(nearest("controlplane", names), Some("control-plane"));
        assert_eq!(nearest("bastion", names), None);
    }
}
