use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;

/// Hands each line to the test.
struct Channel(Sender<String>);

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.0.send(text).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines(silence: Duration, verbosity: Verbosity) -> (Progress, Receiver<String>) {
    let (sender, receiver) = channel();
    (
        Progress::lines(Box::new(Channel(sender)), silence, verbosity),
        receiver,
    )
}

fn rest(progress: Progress, receiver: &Receiver<String>) -> String {
    drop(progress);
    receiver.iter().collect()
}

#[test]
fn a_task_that_says_nothing_still_shows_that_it_lives() {
    let (progress, receiver) = lines(Duration::from_millis(20), Verbosity::Normal);
    let task = progress.bytes("fetch", Some(2000));
    task.advance(1000);
    task.message("systemd");
    let mut text = String::new();
    // Ends only because the ticker speaks: nobody else writes.
    while !text.contains("50%, 1.0 kB of 2.0 kB") || !text.contains("systemd\n") {
        text.push_str(&receiver.recv_timeout(Duration::from_secs(20)).expect("silence"));
    }
    task.done();
    let text = rest(progress, &receiver);
    assert!(text.contains("fetch: 1.0 kB in "), "{text}");
}

#[test]
fn the_ticker_starts_again_for_a_later_task() {
    let (progress, receiver) = lines(Duration::from_millis(10), Verbosity::Normal);
    for label in ["first", "second"] {
        let task = progress.task(label, None);
        let wanted = format!("{label}: for ");
        let mut text = String::new();
        while !text.contains(&wanted) {
            text.push_str(&receiver.recv_timeout(Duration::from_secs(20)).expect("silence"));
        }
        drop(task);
    }
}

#[test]
fn quiet_keeps_warnings_and_drops_the_rest() {
    let (progress, receiver) = lines(Duration::from_secs(5), Verbosity::Quiet);
    progress.task("build", Some(3)).done();
    progress.line("line");
    progress.detail("detail");
    progress.total("built");
    progress.warn("disk nearly full");
    assert_eq!(rest(progress, &receiver), "warning: disk nearly full\n");
}

#[test]
fn a_closed_standard_error_stops_nothing() {
    let (progress, receiver) = lines(Duration::from_secs(5), Verbosity::Verbose);
    drop(receiver);
    progress.warn("nobody hears this");
    progress.task("build", None).done();
}

#[test]
fn work_done_again_is_not_counted_twice() {
    let (progress, receiver) = lines(Duration::from_secs(5), Verbosity::Normal);
    let task = progress.task("unpack", Some(10));
    task.advance(6);
    task.rewind(4);
    task.advance(8);
    task.done();
    assert!(rest(progress, &receiver).contains("unpack: 10 in "));
}
