//! Field by field: where two documents differ, and whether each difference is one that was decided.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// A decided difference: where (a path or the start of one) and why.
pub(crate) type Deviation = (&'static str, &'static str);

/// Refuses differences that are in no table, and entries of the table that are no difference any more.
pub(crate) fn assert_decided(what: &str, theirs: &Value, ours: &Value, table: &[Deviation]) {
    let (mut found, mut used) = (Vec::new(), BTreeSet::new());
    for (path, difference) in differences(theirs, ours) {
        match table.iter().find(|(start, _)| covers(start, &path)) {
            Some((start, _)) => {
                used.insert(*start);
            }
            None => found.push(format!("{path}: {difference}")),
        }
    }
    for (start, why) in table.iter().filter(|(start, _)| !used.contains(start)) {
        found.push(format!("{start}: no difference, but the table says: {why}"));
    }
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

/// Whether the entry `start` is about `path`: the same, or a branch that it grows on.
fn covers(start: &str, path: &str) -> bool {
    path.strip_prefix(start)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn differences(theirs: &Value, ours: &Value) -> BTreeMap<String, String> {
    let (theirs, ours) = (leaves(theirs), leaves(ours));
    let paths: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let mut found = BTreeMap::new();
    for path in paths {
        let difference = match (theirs.get(path), ours.get(path)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => format!("{a} became {b}"),
            // Go's encoder writes fields that nobody set.
            (Some(a), None) if is_unset(a) => continue,
            (Some(a), None) => format!("{a} is missing"),
            (None, Some(b)) => format!("{b} is added"),
            (None, None) => continue,
        };
        found.insert(path.clone(), difference);
    }
    found
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => ["", "0s", "0"].contains(&text.as_str()),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(_) => false,
    }
}

/// All values that have no parts, by path.
fn leaves(value: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(String::new(), value)];
    while let Some((path, value)) = pending.pop() {
        match value {
            Value::Object(members) if !members.is_empty() => {
                for (key, value) in members {
                    let dot = if path.is_empty() { "" } else { "." };
                    pending.push((format!("{path}{dot}{key}"), value));
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (index, value) in items.iter().enumerate() {
                    pending.push((format!("{path}[{index}]"), value));
                }
            }
            leaf => {
                found.insert(path, leaf.clone());
            }
        }
    }
    found
}

#[test]
#[should_panic(expected = "b.c: 1 became 2")]
fn an_undecided_difference_fails() {
    let value = |number: u8| serde_json::json!({"a": 1, "b": {"c": number}});
    assert_decided("x", &value(1), &value(2), &[("a", "not about it")]);
}

#[test]
#[should_panic(expected = "no difference")]
fn a_stale_entry_fails() {
    assert_decided("x", &Value::Null, &Value::Null, &[("a", "was decided once")]);
}
