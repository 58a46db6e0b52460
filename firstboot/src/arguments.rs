//! Arguments of a service as its unit reads them: one line of an environment file, `KIMAGE_ARGUMENTS="..."`.
//!
//! systemd takes quoting off twice: once when it reads the file (systemd.exec(5), `EnvironmentFile=`), once when it
//! splits `$KIMAGE_ARGUMENTS` into words (systemd.service(5), "Command lines").

use std::fmt::Write;

/// Arguments in the order in which a program gets them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    flags: Vec<(String, String)>,
}

impl Arguments {
    /// No arguments yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `--name=value`.
    #[must_use]
    pub fn flag(mut self, name: &str, value: impl Into<String>) -> Self {
        self.flags.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a file of [`crate::layout::PKI`].
    #[must_use]
    pub(crate) fn pki(self, name: &str, file: &str) -> Self {
        self.flag(name, crate::layout::pki(file))
    }

    /// Names and values.
    pub fn flags(&self) -> &[(String, String)] {
        &self.flags
    }

    /// `--name=value` each.
    pub fn words(&self) -> Vec<String> {
        let word = |(name, value): &(String, String)| format!("--{name}={value}");
        self.flags.iter().map(word).collect()
    }

    /// The environment file that sets `KIMAGE_ARGUMENTS`.
    pub fn environment_file(&self) -> String {
        let words: Vec<String> = self.words().iter().map(|word| quote_word(word)).collect();
        assignment("KIMAGE_ARGUMENTS", &words.join(" "))
    }
}

/// One line of an environment file. A line break in `value` could only be an attack or a mistake, and no value of ours
/// has a meaning for one: it becomes a space.
pub fn assignment(name: &str, value: &str) -> String {
    let mut line = format!("{name}=\"");
    for character in value.chars() {
        match character {
            '"' | '\\' | '$' | '`' => {
                let _ = write!(line, "\\{character}");
            }
            '\n' | '\r' | '\0' => line.push(' '),
            other => line.push(other),
        }
    }
    line.push_str("\"\n");
    line
}

/// A word as systemd's splitting gives it back unchanged.
fn quote_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:*@+[]%~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_arguments_stay_readable() {
        let arguments = Arguments::new()
            .flag("controllers", "*,bootstrapsigner")
            .flag("secure-port", "6443");
        assert_eq!(
            arguments.environment_file(),
            "KIMAGE_ARGUMENTS=\"--controllers=*,bootstrapsigner --secure-port=6443\"\n"
        );
    }

    /// systemd's two steps for text in double quotes: the file's, then the splitting.
    fn systemd(file: &str) -> Vec<String> {
        let value = file
            .strip_prefix("KIMAGE_ARGUMENTS=\"")
            .and_then(|rest| rest.strip_suffix("\"\n"))
            .unwrap();
        let mut text = String::new();
        let mut characters = value.chars();
        while let Some(character) = characters.next() {
            assert_ne!(character, '"', "an unescaped quote ends the value");
            text.push(if character == '\\' {
                characters.next().unwrap()
            } else {
                character
            });
        }
        let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            match character {
                ' ' if !quoted => words.extend(word.take()),
                '"' => quoted = !quoted,
                '\\' => word.get_or_insert_default().push(characters.next().unwrap()),
                other => word.get_or_insert_default().push(other),
            }
        }
        assert!(!quoted);
        words.extend(word);
        words
    }

    proptest::proptest! {
        #[test]
        fn every_value_comes_back_as_one_word(values in proptest::collection::vec("[ -~äöü]{0,20}", 1..4)) {
            let mut arguments = Arguments::new();
            for value in &values {
                arguments = arguments.flag("x", value.as_str());
            }
            proptest::prop_assert_eq!(systemd(&arguments.environment_file()), arguments.words());
        }
    }

    #[test]
    fn no_value_can_add_a_line() {
        let arguments = Arguments::new().flag("a", "b\nLD_PRELOAD=/x");
        assert_eq!(arguments.environment_file().lines().count(), 1);
    }
}
