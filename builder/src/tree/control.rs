//! Debian's control paragraphs (deb822): the text format of package metadata and of dpkg's status file.

use anyhow::{Result, bail};

/// One paragraph: fields in the order written. A value keeps its continuation lines, joined by `\n`, each with its
/// leading space.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paragraph {
    fields: Vec<(String, String)>,
}

impl Paragraph {
    /// Parses a text that holds exactly one paragraph.
    pub fn parse(text: &[u8]) -> Result<Self> {
        match Self::parse_all(text)?.as_slice() {
            [one] => Ok(one.clone()),
            many => bail!("{} paragraphs where one belongs", many.len()),
        }
    }

    /// Parses paragraphs separated by empty lines.
    pub fn parse_all(text: &[u8]) -> Result<Vec<Self>> {
        let text = std::str::from_utf8(text)
            .map_err(|error| anyhow::anyhow!("control data is not UTF-8: {error}"))?;
        let mut paragraphs = Vec::new();
        let mut current = Self::default();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                if !current.fields.is_empty() {
                    paragraphs.push(std::mem::take(&mut current));
                }
            } else if line.starts_with([' ', '\t']) {
                match current.fields.last_mut() {
                    Some((_, value)) => {
                        value.push('\n');
                        value.push_str(line.trim_end());
                    }
                    None => bail!("line {}: a continuation without a field", number + 1),
                }
            } else if let Some((name, value)) = line.split_once(':') {
                if name.is_empty() || name.contains(char::is_whitespace) || current.get(name).is_some() {
                    bail!("line {}: bad or repeated field `{name}`", number + 1);
                }
                current.fields.push((name.to_owned(), value.trim().to_owned()));
            } else {
                bail!("line {}: neither a field nor a continuation", number + 1);
            }
        }
        if !current.fields.is_empty() {
            paragraphs.push(current);
        }
        Ok(paragraphs)
    }

    /// A field's value; names compare without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Sets a field: in its old place, or behind `after`, or last.
    pub fn set(&mut self, name: &str, value: &str, after: &str) {
        if let Some(field) = self
            .fields
            .iter_mut()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
        {
            value.clone_into(&mut field.1);
            return;
        }
        let place = self
            .fields
            .iter()
            .position(|(other, _)| other.eq_ignore_ascii_case(after));
        let place = place.map_or(self.fields.len(), |index| index + 1);
        self.fields.insert(place, (name.to_owned(), value.to_owned()));
    }

    /// Removes a field.
    pub fn remove(&mut self, name: &str) {
        self.fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    }

    /// The text, with a newline at the end of each line and none between paragraphs.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.fields {
            text.push_str(name);
            text.push(':');
            if !value.is_empty() && !value.starts_with('\n') {
                text.push(' ');
            }
            text.push_str(value);
            text.push('\n');
        }
        text
    }
}

/// One alternative of a dependency: `name:any (>= 1.2) [amd64]` without what kimage has no use for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// The package's name, without `:any`.
    pub name: String,
    /// The alternative as written.
    pub text: String,
}

/// A relation field (`Depends`): every clause must hold, by one of its alternatives.
pub fn clauses(value: &str) -> Vec<Vec<Alternative>> {
    let clauses = value.split(',').map(|clause| {
        let alternatives = clause.split('|').filter_map(|text| {
            let text = text.trim();
            let name: String = text
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || "+-.".contains(*c))
                .collect();
            (!name.is_empty()).then(|| Alternative {
                name,
                text: text.to_owned(),
            })
        });
        alternatives.collect::<Vec<_>>()
    });
    clauses.filter(|clause| !clause.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_survives_a_round_trip() {
        let text = "Package: a\nConffiles:\n /etc/a 0\n /etc/b 1\nDescription: short\n long\n .\n more\n";
        assert_eq!(Paragraph::parse(text.as_bytes()).unwrap().render(), text);
    }

    #[test]
    fn broken_paragraphs_are_refused() {
        for text in [
            " x\n",
            "no colon\n",
            "A: 1\na: 2\n",
            ": x\n",
            "A b: x\n",
            "",
            "A: 1\n\nB: 2\n",
        ] {
            assert!(Paragraph::parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(Paragraph::parse(b"A: \xff\n").is_err());
    }

    #[test]
    fn alternatives_lose_qualifiers_but_keep_their_text() {
        let parsed = clauses("libc6 (>= 2.34), perl:any | python3 (>= 3~) , ");
        assert_eq!(parsed.len(), 2);
        assert_eq!(parsed[1][0].name, "perl");
        assert_eq!(parsed[1][1].text, "python3 (>= 3~)");
    }
}
