//! From bytes to a checked NodeConfig. The bytes may come from anybody and hold secrets: they are read with bounds, and
//! no refusal repeats a value that could be one.

use std::fmt;

use serde_json::Value;
use serde_path_to_error::Segment;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy};

use super::NodeConfig;

/// Largest document that is read, in bytes.
pub const MAX_NODE_CONFIG: usize = 1 << 20;
/// Deeper than any NodeConfig.
const MAX_DEPTH: usize = 16;
/// More keys and values than any NodeConfig has.
const MAX_NODES: usize = 20_000;

/// Why a document is no NodeConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfigError {
    /// Path of the key: `cluster.endpoint`; `.` for the whole document.
    pub path: String,
    /// What is wrong there; never the value of a secret.
    pub problem: String,
}

impl fmt::Display for NodeConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl std::error::Error for NodeConfigError {}

impl NodeConfig {
    /// Reads and checks a document. YAML's aliases and merge keys are refused, as are keys that stand twice.
    pub fn from_yaml(bytes: &[u8]) -> Result<Self, NodeConfigError> {
        let whole = |problem: String| NodeConfigError {
            path: ".".to_owned(),
            problem,
        };
        if bytes.len() > MAX_NODE_CONFIG {
            return Err(whole(format!(
                "{} bytes, more than {MAX_NODE_CONFIG}",
                bytes.len()
            )));
        }
        let value: Value = serde_saphyr::from_slice_with_options(bytes, options())
            .map_err(|error| whole(not_yaml(&error)))?;
        let config: Self = serde_path_to_error::deserialize(&value).map_err(|error| {
            let path = shown(error.path());
            misfit(path, &error.into_inner().to_string())
        })?;
        let canonical =
            serde_json::to_value(&config).map_err(|_| whole("can't be written again".to_owned()))?;
        no_positions(&value, &canonical, "")?;
        config.check()?;
        Ok(config)
    }

    /// Checks a document that was made here, exactly as [`NodeConfig::from_yaml`] does.
    pub fn validate(&self) -> Result<(), NodeConfigError> {
        self.check()
    }

    /// The document as pretty JSON with a final newline, which [`NodeConfig::from_yaml`] reads. It holds the secrets.
    pub fn to_json(&self) -> Result<crate::secret::Secret, serde_json::Error> {
        Ok(crate::secret::Secret::new(
            serde_json::to_string_pretty(self)? + "\n",
        ))
    }
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_total_scalar_bytes: MAX_NODE_CONFIG,
            max_anchors: 0,
            max_aliases: 0,
            max_documents: 1,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        // YAML 1.2: `no` and `on` are words, `0755` is no number of anybody's choice.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        // A snippet of the document could show a secret.
        with_snippet: false,
    }
}

/// What is wrong with the syntax and where, in words that hold nothing of the document.
fn not_yaml(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    let inner = error.without_snippet();
    let what = match inner {
        Error::InvalidUtf8Input => "not UTF-8",
        Error::Eof { .. } => "ends too early",
        Error::MultipleDocuments { .. } => "more than one document",
        Error::DuplicateMappingKey { .. } => "a key stands twice",
        Error::MergeKeyNotAllowed { .. } => "merge keys (`<<`) are not allowed",
        Error::UnknownAnchor { .. } => "aliases (`*name`) are not allowed",
        Error::Budget { .. } => "too deep, too large, or it has anchors (`&name`), which are not allowed",
        _ => "syntax error",
    };
    match inner.location() {
        Some(location) if location.line() > 0 => format!(
            "not YAML that can be read: {what} (line {}, column {})",
            location.line(),
            location.column()
        ),
        _ => format!("not YAML that can be read: {what}"),
    }
}

/// Refuses lists where maps belong: serde would fill a struct from a list by position.
fn no_positions(given: &Value, canonical: &Value, path: &str) -> Result<(), NodeConfigError> {
    match (given, canonical) {
        (Value::Array(_), Value::Object(_)) => Err(NodeConfigError {
            path: path.to_owned(),
            problem: "is a list, expected a map".to_owned(),
        }),
        (Value::Array(given), Value::Array(canonical)) => {
            let mut pairs = given.iter().zip(canonical).enumerate();
            pairs.try_for_each(|(index, (given, canonical))| {
                no_positions(given, canonical, &format!("{path}[{index}]"))
            })
        }
        (Value::Object(given), Value::Object(canonical)) => {
            for (key, given) in given {
                if let Some(canonical) = canonical.get(key) {
                    no_positions(given, canonical, &join(path, key))?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The path without what no key of a NodeConfig is: somebody may have lost a colon behind a secret.
fn shown(path: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    for segment in path.iter() {
        let in_labels = text == "node.labels";
        match segment {
            Segment::Seq { index } => text.push_str(&format!("[{index}]")),
            Segment::Map { key } | Segment::Enum { variant: key } => {
                let key = if is_word(key) || in_labels && is_label_key(key) {
                    key
                } else {
                    "?"
                };
                text = join(&text, key);
            }
            Segment::Unknown => {}
        }
    }
    if text.is_empty() { ".".to_owned() } else { text }
}

/// Says where and why the types refuse a value, without the value. serde's texts have the shapes
/// ``invalid type: string "...", expected X``, ``unknown field `x`, expected ...`` and ``missing field `x` ``; all
/// others come from [`super::network`] and repeat addresses only.
fn misfit(path: String, problem: &str) -> NodeConfigError {
    let expected = problem
        .rsplit_once(", expected ")
        .map_or("something else", |(_, expected)| expected);
    let named = |prefix: &str| {
        let name = problem.strip_prefix(prefix)?.split('`').next()?;
        is_word(name).then_some(name)
    };
    if let Some(name) = named("missing field `") {
        return NodeConfigError {
            path: join(&path, name),
            problem: "is missing".to_owned(),
        };
    }
    let is_type = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|prefix| problem.strip_prefix(prefix));
    let problem = if let Some(rest) = is_type {
        let kind = rest.split(['"', '`', ',']).next().unwrap_or_default().trim();
        let scalar = !matches!(kind, "map" | "sequence");
        let hint = if scalar && expected.starts_with("a string") {
            " (put the value in quotes)"
        } else {
            ""
        };
        format!("is {}, expected {expected}{hint}", kind_in_yaml(kind))
    } else if problem.starts_with("invalid length") {
        "is a list of another length than it can have here".to_owned()
    } else if problem.starts_with("unknown variant ") {
        let name = named("unknown variant `").map_or_else(String::new, |name| format!("`{name}` "));
        format!("{name}is not known, expected {expected}")
    } else if problem.starts_with("unknown field ") {
        // The path ends at the unknown key, or at the map around it where the key may not be shown.
        format!("unknown key, expected {expected}")
    } else {
        without_long_quotes(problem)
    };
    NodeConfigError { path, problem }
}

/// `cluster` and `name` as `cluster.name`.
fn join(path: &str, name: &str) -> String {
    if path.is_empty() || path == "." {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn is_label_key(text: &str) -> bool {
    text.len() <= 317
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
}

fn kind_in_yaml(kind: &str) -> &str {
    match kind {
        "unit value" | "null" | "Option value" => "empty",
        "map" => "a map",
        "sequence" => "a list",
        "string" => "a string",
        "integer" | "floating point" => "a number",
        "boolean" => "true or false",
        other => other,
    }
}

fn is_word(text: &str) -> bool {
    text.len() <= 40
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphabetic() || byte == b'-' || byte == b'_')
}

/// `text` where it quotes something short on one line; else only that something is wrong.
fn without_long_quotes(text: &str) -> String {
    let longest = text.split('`').map(str::len).max().unwrap_or_default();
    if longest > 300 || text.contains(['\n', '\r']) || text.matches('`').count() > 2 {
        "is not valid".to_owned()
    } else {
        text.to_owned()
    }
}
