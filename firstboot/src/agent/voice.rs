//! What a chore tells people: to the journal and the console, each thing once. The same trouble every ten seconds is one
//! line, not thousands; its end is one more.

use std::cell::RefCell;

use crate::host::Host;
use crate::report;

/// Says things in the name of one chore.
#[derive(Debug)]
pub(super) struct Voice<'a> {
    host: &'a Host,
    name: &'static str,
    last: RefCell<Last>,
}

/// What was said last.
#[derive(Debug, Default)]
struct Last {
    remark: String,
    trouble: Option<String>,
}

impl<'a> Voice<'a> {
    pub(super) fn new(host: &'a Host, name: &'static str) -> Self {
        Self {
            host,
            name,
            last: RefCell::default(),
        }
    }

    /// A remark, unless it was the last one too. Nothing is no remark, and after it the same one is news again.
    pub(super) fn remark(&self, text: &str) {
        let known = self.last.borrow_mut().is_known_remark(text);
        if !known && !text.is_empty() {
            self.tell(text);
        }
    }

    /// A failure, unless the chore has failed like this since it last went well.
    pub(super) fn trouble(&self, text: &str) {
        if !self.last.borrow_mut().is_known_trouble(text) {
            self.tell(text);
        }
    }

    /// The chore goes well.
    pub(super) fn well(&self) {
        if self.last.borrow_mut().trouble.take().is_some() {
            self.tell("goes well again");
        }
    }

    fn tell(&self, text: &str) {
        report::say(self.host, &format!("kimage-agent: {}: {text}", self.name));
    }
}

impl Last {
    fn is_known_remark(&mut self, text: &str) -> bool {
        let known = self.remark == text;
        text.clone_into(&mut self.remark);
        known
    }

    fn is_known_trouble(&mut self, text: &str) -> bool {
        let known = self.trouble.as_deref() == Some(text);
        self.trouble = Some(text.to_owned());
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_thing_is_told_once_until_something_else_happens() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::at(folder.path());
        std::fs::create_dir(folder.path().join("dev")).unwrap();
        std::fs::write(host.path("/dev/console"), "").unwrap();
        let voice = Voice::new(&host, "etcd");
        let mut told = Vec::new();
        let mut heard = |act: &dyn Fn(&Voice<'_>)| {
            std::fs::write(host.path("/dev/console"), "").unwrap();
            act(&voice);
            told.push(std::fs::read_to_string(host.path("/dev/console")).unwrap());
        };
        heard(&|voice| voice.trouble("refused"));
        heard(&|voice| voice.trouble("refused"));
        heard(&|voice| voice.well());
        heard(&|voice| voice.well());
        heard(&|voice| voice.trouble("refused"));
        heard(&|voice| voice.remark("one member is silent"));
        heard(&|voice| voice.remark("one member is silent"));
        heard(&|voice| voice.remark(""));
        let line = |text: &str| format!("kimage-agent: etcd: {text}\n");
        let [refused, well, silent] = ["refused", "goes well again", "one member is silent"].map(line);
        assert_eq!(told, [&refused, "", &well, "", &refused, &silent, "", ""]);
    }
}
