//! Paths of fields as API servers write them (structured-merge-diff, `fieldpath.Path.String`): `.data.Corefile`,
//! `.spec.template.spec.containers[name="coredns"].image`, `.metadata.finalizers[="x"]`, `.a[0]`. Names are written as
//! they are, dots included, so a path says something only about an object.

use serde_json::{Map, Value};

/// Takes the field at `path` out of `object`; `false` if it isn't there.
pub fn remove(object: &mut Value, path: &str) -> bool {
    match object {
        Value::Object(fields) => path
            .strip_prefix('.')
            .is_some_and(|rest| remove_named(fields, rest)),
        Value::Array(items) => {
            let Some((selector, rest)) = selector(path) else {
                return false;
            };
            let Some(index) = items
                .iter()
                .enumerate()
                .position(|(index, item)| selects(selector, index, item))
            else {
                return false;
            };
            if rest.is_empty() {
                items.remove(index);
                return true;
            }
            remove(&mut items[index], rest)
        }
        _ => false,
    }
}

/// A name may have dots: the longest one that fits and leads somewhere counts.
fn remove_named(fields: &mut Map<String, Value>, path: &str) -> bool {
    let ends = |rest: &str| rest.is_empty() || rest.starts_with(['.', '[']);
    let fits = |name: &&String| path.strip_prefix(name.as_str()).is_some_and(ends);
    let mut names: Vec<String> = fields.keys().filter(fits).cloned().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    names.iter().any(|name| match &path[name.len()..] {
        "" => fields.remove(name).is_some(),
        rest => fields.get_mut(name).is_some_and(|field| remove(field, rest)),
    })
}

/// Splits `[…]rest`. A bracket in quotes closes nothing.
fn selector(path: &str) -> Option<(&str, &str)> {
    let inside = path.strip_prefix('[')?;
    let end = outside_quotes(inside, ']').next()?;
    Some((&inside[..end], &inside[end + 1..]))
}

/// Where `wanted`, an ASCII character, stands outside of quotes.
fn outside_quotes(text: &str, wanted: char) -> impl Iterator<Item = usize> + '_ {
    let (mut quoted, mut escaped) = (false, false);
    text.char_indices().filter_map(move |(at, letter)| {
        match letter {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if letter == wanted && !quoted => return Some(at),
            _ => {}
        }
        None
    })
}

/// Whether `name="coredns",…`, `="x"` or `0` means this item.
fn selects(selector: &str, index: usize, item: &Value) -> bool {
    let is = |value: &Value, text: &str| serde_json::from_str::<Value>(text).is_ok_and(|text| text == *value);
    if let Some(text) = selector.strip_prefix('=') {
        return is(item, text);
    }
    if let Ok(number) = selector.parse::<usize>() {
        return number == index;
    }
    let mut begin = 0;
    let ends: Vec<usize> = outside_quotes(selector, ',').chain([selector.len()]).collect();
    ends.into_iter().all(|end| {
        let key = &selector[begin..end];
        begin = end + 1;
        key.split_once('=')
            .is_some_and(|(name, text)| item.get(name).is_some_and(|value| is(value, text)))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};
    use serde_json::json;

    use super::*;

    fn without(object: &Value, path: &str) -> Option<Value> {
        let mut object = object.clone();
        remove(&mut object, path).then_some(object)
    }

    #[test]
    fn a_field_is_found_by_the_server_s_word_for_it() {
        let object = json!({
            "metadata": {"annotations": {"prometheus.io/port": "9153", "prometheus": {"io/port": 1}}},
            "data": {"Corefile": "x"},
            "spec": {
                "containers": [{"name": "a]\"b", "image": "i"}, {"name": "coredns", "image": "j"}],
                "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP", "name": "t"}],
                "args": ["-conf", "file"],
            },
        });
        for (path, gone) in [
            (".data.Corefile", "/data/Corefile"),
            (".data", "/data"),
            (
                ".metadata.annotations.prometheus.io/port",
                "/metadata/annotations/prometheus.io~1port",
            ),
            (
                r#".spec.containers[name="coredns"].image"#,
                "/spec/containers/1/image",
            ),
            (
                r#".spec.containers[name="a]\"b"].image"#,
                "/spec/containers/0/image",
            ),
            (
                r#".spec.ports[port=53,protocol="TCP"].name"#,
                "/spec/ports/1/name",
            ),
            (r#".spec.ports[port=53,protocol="TCP"]"#, "/spec/ports/1"),
            (r#".spec.args[="file"]"#, "/spec/args/1"),
            (".spec.args[1]", "/spec/args/1"),
        ] {
            assert!(object.pointer(gone).is_some(), "{gone}");
            let rest = without(&object, path).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(rest.pointer(gone), None, "{path}");
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_takes_nothing() {
        let object = json!({"data": {"a": "x"}, "list": [{"name": "n"}], "text": "t"});
        for path in [
            "",
            ".",
            "data",
            ".data.",
            ".data.b",
            ".data.a.b",
            ".dat",
            ".list[",
            ".list[name=]",
            ".list[name=\"m\"]",
            ".list[9]",
            ".list[]",
            ".list.name",
            ".text[0]",
            ".list[name=\"n",
            ".list[=1]",
        ] {
            assert_eq!(without(&object, path), None, "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever a server says, it is either a field of ours or nothing.
        #[test]
        fn no_path_does_harm(path in r#"[.\[\]="\\,a-cä0-9]{0,24}"#) {
            let object = json!({"a": {"b.c": 1, "b": [{"a": "c", "b": 1}, "a", 0]}, "ä": {"c": null}});
            let found = without(&object, &path);
            prop_assert_eq!(found.as_ref() == Some(&object), false);
        }
    }
}
