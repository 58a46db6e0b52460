//! From bytes to lines: control sequences of terminals are taken out, and a report that a kernel message fell into is
//! put together again.

use std::io::{self, BufRead};

use kimage_roles::status::{CONSOLE_PREFIX, MAX_CONSOLE_LINE, Status};

/// A line keeps so many bytes; the rest of a longer one is dropped.
const MAX_LINE: usize = MAX_CONSOLE_LINE + 1024;
/// A torn report goes on within so many lines or never.
const MAX_TEAR: usize = 8;

/// What a console is made of.
pub(super) enum Piece {
    /// A report of first boot.
    Report(Box<Status>),
    /// A report that can't be read.
    Damaged,
    /// Any other line.
    Text(String),
}

/// The pieces of a console.
pub(super) struct Lines<R> {
    input: io::Take<R>,
    torn: Option<Torn>,
    ready: Option<Piece>,
}

/// The first part of a report.
struct Torn {
    text: String,
    lines: usize,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, most: u64) -> Self {
        Self {
            input: input.take(most),
            torn: None,
            ready: None,
        }
    }

    /// Whether there was more than was read.
    pub(super) fn is_cut(&mut self) -> bool {
        let full = self.input.limit() == 0;
        full && self.input.get_mut().fill_buf().is_ok_and(|rest| !rest.is_empty())
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Piece>> {
        if let Some(piece) = self.ready.take() {
            return Ok(Some(piece));
        }
        loop {
            let Some(bytes) = self.line()? else {
                return Ok(self.torn.take().map(|_| Piece::Damaged));
            };
            let text = visible(&bytes);
            if text.contains(CONSOLE_PREFIX) {
                // The one before this has no end.
                let lost = self.torn.take().map(|_| Piece::Damaged);
                let piece = self.report(text);
                match (lost, piece) {
                    (Some(lost), piece) => {
                        self.ready = piece;
                        return Ok(Some(lost));
                    }
                    (None, Some(piece)) => return Ok(Some(piece)),
                    (None, None) => continue,
                }
            }
            return Ok(Some(self.mended(&text).unwrap_or(Piece::Text(text))));
        }
    }

    /// A report, or nothing yet where its end is to come.
    fn report(&mut self, text: String) -> Option<Piece> {
        if let Some(status) = Status::from_console_line(&text) {
            return Some(Piece::Report(Box::new(status)));
        }
        let whole = kernel_stamp(&text).map_or(text.as_str(), |at| &text[..at]);
        self.torn = Some(Torn {
            text: whole.to_owned(),
            lines: 0,
        });
        None
    }

    /// The torn report, when `text` is what was missing.
    fn mended(&mut self, text: &str) -> Option<Piece> {
        let torn = self.torn.as_mut()?;
        if torn.text.len() + text.len() <= MAX_LINE {
            let joined = format!("{}{text}", torn.text);
            if let Some(status) = Status::from_console_line(&joined) {
                self.torn = None;
                return Some(Piece::Report(Box::new(status)));
            }
        }
        torn.lines += 1;
        if torn.lines >= MAX_TEAR {
            self.torn = None;
            self.ready = Some(Piece::Text(text.to_owned()));
            return Some(Piece::Damaged);
        }
        None
    }

    /// The next line without its end, which may be any mixture of CR and LF.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut any = false;
        loop {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                return Ok(any.then_some(line));
            }
            any = true;
            let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = &buffer[..end.unwrap_or(buffer.len())];
            let room = MAX_LINE.saturating_sub(line.len()).min(part.len());
            line.extend_from_slice(&part[..room]);
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }
}

/// Text without escape sequences (ECMA-48: `ESC [ ... final` and `ESC ] ... BEL`) and other control characters.
fn visible(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut kept = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => match characters.next() {
                Some('[') => {
                    characters.by_ref().find(|c| ('@'..='~').contains(c));
                }
                Some(']') => {
                    characters.by_ref().find(|c| matches!(c, '\u{7}' | '\u{1b}'));
                    characters.next_if_eq(&'\\');
                }
                _ => {}
            },
            '\t' => kept.push(' '),
            character if character.is_control() => {}
            character => kept.push(character),
        }
    }
    kept
}

/// Where a kernel message begins after the start of a report: `[   12.345678] `.
fn kernel_stamp(text: &str) -> Option<usize> {
    let from = text.find(CONSOLE_PREFIX)?;
    text[from..]
        .match_indices('[')
        .map(|(at, _)| from + at)
        .find(|at| {
            let inside = text[at + 1..]
                .split_once("] ")
                .map(|(inside, _)| inside.trim_start());
            inside
                .and_then(|stamp| stamp.split_once('.'))
                .is_some_and(|(seconds, rest)| {
                    let digits =
                        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
                    digits(seconds) && digits(rest) && rest.len() == 6
                })
        })
}
