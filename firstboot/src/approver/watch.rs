//! Requests as they come: first all that there are, then each that is made or changed.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::REQUESTS;
use super::request::Object;
use crate::kubernetes::{Api, ApiError, Watched};

/// So many are read ahead of the judge. The API server keeps the others.
const AHEAD: usize = 16;

/// Requests that wait, on a thread of their own. It ends with the first error, or within a minute after nobody listens any
/// more.
pub(super) fn start(api: Api) -> Receiver<Result<Object, ApiError>> {
    let (send, receive) = sync_channel(AHEAD);
    thread::spawn(move || {
        if let Err(error) = read(&api, &send) {
            drop(send.send(Err(error)));
        }
    });
    receive
}

fn read(api: &Api, send: &SyncSender<Result<Object, ApiError>>) -> Result<(), ApiError> {
    let listens = |request: Object| request.waits_for().is_none() || send.send(Ok(request)).is_ok();
    loop {
        let mut wanted = true;
        let mut version = api.list(REQUESTS, "", |request| {
            wanted = listens(request);
            match wanted {
                true => Ok(()),
                false => Err(api.broken("nobody listens".to_owned())),
            }
        })?;
        loop {
            match api.watch(REQUESTS, &version, listens)? {
                Watched::Until(next) => version = next,
                Watched::TooOld => break,
                Watched::Enough => return Ok(()),
            }
        }
    }
}
