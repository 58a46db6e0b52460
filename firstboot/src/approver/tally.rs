//! What is said about requests: the first few in each while, and how many more. Thousands of bad ones are one line.

use std::time::{Duration, Instant};

/// So many are said one by one.
const SAID: usize = 6;
/// What comes together within this time is said together.
const WHILE: Duration = Duration::from_secs(2);
/// The longest text of one.
const LONGEST: usize = 600;

/// What is to be said.
#[derive(Debug, Default)]
pub(super) struct Tally {
    lines: Vec<String>,
    more: usize,
    since: Option<Instant>,
}

impl Tally {
    /// Something to say. Names of requests are anybody's text, and this goes to a console that others read again.
    pub(super) fn add(&mut self, now: Instant, line: &str) {
        self.since.get_or_insert(now);
        let plain = |letter: char| if letter.is_control() { '\u{fffd}' } else { letter };
        let line: String = line.chars().map(plain).take(LONGEST).collect();
        if self.lines.len() < SAID && !self.lines.contains(&line) {
            self.lines.push(line);
        } else {
            self.more += 1;
        }
    }

    /// What is to be said by now, if it is time.
    pub(super) fn due(&mut self, now: Instant) -> Option<String> {
        let since = self
            .since
            .filter(|since| now.saturating_duration_since(*since) >= WHILE);
        since?;
        let mut text = self.lines.join("; ");
        if self.more > 0 {
            text.push_str(&format!("; and {} more", self.more));
        }
        *self = Self::default();
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_begins_a_line_of_its_own() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        tally.add(now, "approved a\nkimage-status: {}\u{1b}[2J");
        let said = tally.due(now + WHILE).unwrap();
        assert!(!said.contains(char::is_control), "{said:?}");
    }

    #[test]
    fn many_are_one_line() {
        let (mut tally, now) = (Tally::default(), Instant::now());
        assert_eq!(tally.due(now + WHILE), None);
        for number in 0..2000 {
            tally.add(now, &number.to_string());
        }
        assert_eq!(tally.due(now), None);
        assert_eq!(tally.due(now + WHILE).unwrap(), "0; 1; 2; 3; 4; 5; and 1994 more");
        assert_eq!(tally.due(now + WHILE), None);
        tally.add(now, &"x".repeat(5000));
        assert_eq!(tally.due(now + WHILE).unwrap().len(), LONGEST);
    }
}
