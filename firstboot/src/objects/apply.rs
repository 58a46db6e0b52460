//! Brings the cluster's objects from what was made of them ([`Made`]) to what this image wants.
//!
//! - An object is applied once for each version of it, and again only when the NodeConfig makes it another one.
//! - A machine whose image is older than what was applied applies nothing.
//! - A field that somebody else owns stays theirs; the rest of the object is applied without it.
//! - An object that was deleted since it was applied stays away, with later versions too. So does a bootstrap token.
//!
//! That holds for roles and bindings as for everything: who widened or narrowed one keeps it. What people keep stands in
//! the ConfigMap, and every boot that leaves something out says so.

use kimage_roles::cause::Cause;
use serde_json::Value;

use super::made::{self, Made, name};
use super::retired::Retired;
use super::version::Version;
use crate::failure::Failure;
use crate::kubernetes::{self, Api, ApiError, Applied, field};
use crate::lease::Lease;

const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// How often an object is tried without the fields that the last try ran into.
const ROUNDS: usize = 5;

/// What this image and this NodeConfig want.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Version of the objects.
    pub version: Version,
    /// The objects, in order, without Secrets.
    pub objects: Vec<Value>,
    /// Bootstrap tokens that still serve: id and Secret.
    pub tokens: Vec<(String, Value)>,
    /// What earlier versions made.
    pub retired: &'a [Retired],
}

impl Wanted<'_> {
    /// Applies what isn't applied yet, when it is this machine's turn (`take`). Says what a person should know.
    pub fn apply(
        &self,
        api: &Api,
        take: &mut dyn FnMut() -> Result<Lease, Failure>,
    ) -> Result<Vec<String>, Failure> {
        let mut notes = Vec::new();
        let found = load(api)?;
        match read(found.as_ref()) {
            Err(why) => return Ok(vec![why]),
            Ok(made) if !self.asks_for_more_than(&made) => {
                notes.extend(self.backwards(&made));
                return Ok(notes);
            }
            Ok(_) => {}
        }
        let mut lease = take()?;
        let made = self.make(api, &mut lease, &mut notes);
        lease.give_back(api);
        made.map(|()| notes)
    }

    fn asks_for_more_than(&self, made: &Made) -> bool {
        let token = self.tokens.iter().any(|(id, _)| !made.tokens.contains(id));
        let older = made.version != Some(self.version) || self.objects.iter().any(|object| !made.has(object));
        token || older && !made.is_newer_than(self.version)
    }

    /// Why nothing is applied, if this machine is older than the cluster.
    fn backwards(&self, made: &Made) -> Option<String> {
        let newer = made.version.filter(|_| made.is_newer_than(self.version))?;
        Some(format!(
            "the cluster's objects are of {newer} and this machine's of {}: none is applied",
            self.version
        ))
    }

    /// Does it all, under the lease. Another control plane may have done some of it meanwhile.
    fn make(&self, api: &Api, lease: &mut Lease, notes: &mut Vec<String>) -> Result<(), Failure> {
        let found = load(api)?;
        let mut made = match read(found.as_ref()) {
            Ok(made) => made,
            Err(why) => {
                notes.push(why);
                return Ok(());
            }
        };
        let before = made.clone();
        if let Some(note) = self.backwards(&made) {
            notes.push(note);
        } else {
            for object in self.objects.iter().filter(|object| !before.has(object)) {
                lease.keep(api)?;
                notes.extend(advance(api, &mut made, object)?);
            }
            for old in self
                .retired
                .iter()
                .filter(|old| old.goes(before.version, self.version))
            {
                lease.keep(api)?;
                notes.extend(retire(api, old)?);
            }
            made.version = Some(self.version);
        }
        for (id, secret) in self.tokens.iter().filter(|(id, _)| !before.tokens.contains(id)) {
            match api.create(SECRETS, secret) {
                // It was made by a boot that was cut off, or by hand.
                Err(error) if error.code() == Some(409) => {}
                other => drop(other.map_err(failed("make a bootstrap token"))?),
            }
            made.tokens.insert(id.clone());
        }
        if made == before {
            Ok(())
        } else {
            save(api, &made, found)
        }
    }
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(ApiError) -> Failure {
    move |error| error.failure(Cause::ApiServerNotReady).context(what)
}

fn load(api: &Api) -> Result<Option<Value>, Failure> {
    api.get(made::PATH)
        .map_err(failed("read what was made of the cluster's objects"))
}

/// Of a ConfigMap that says nothing, nobody knows what was made: nothing is touched.
fn read(found: Option<&Value>) -> Result<Made, String> {
    let made = found.map_or_else(|| Ok(Made::default()), Made::read);
    made.map_err(|error| format!("no objects are applied: {error:#}"))
}

fn save(api: &Api, made: &Made, found: Option<Value>) -> Result<(), Failure> {
    let is_new = found.is_none();
    let object = made.write(found).map_err(Failure::internal)?;
    let saved = if is_new {
        api.create(made::COLLECTION, &object)
    } else {
        api.replace(made::PATH, &object)
    };
    saved
        .map(drop)
        .map_err(failed("note what was made of the cluster's objects"))
}

/// Applies one object, if nobody deleted it. Answers with what a person should know.
fn advance(api: &Api, made: &mut Made, object: &Value) -> Result<Vec<String>, Failure> {
    let name = name(object);
    let about = format!("{name}: ");
    if made.knows(object) && !is_there(api, object).map_err(failed(&name))? {
        made.note(object);
        let again = made::RESET;
        return Ok(vec![format!(
            "{name} was deleted and stays so; hint: `{again}` brings back what is missing"
        )]);
    }
    let outcome = give_way(api, object).map_err(failed(format!("apply {name}")))?;
    made.kept.retain(|kept| !kept.starts_with(&about));
    let kept = match outcome {
        Outcome::Applied(kept) => {
            made.note(object);
            kept
        }
        Outcome::Refused(why) => vec![why],
    };
    let lines: Vec<String> = kept.iter().map(|line| format!("{about}{line}")).collect();
    made.kept.extend(lines.iter().cloned());
    Ok(lines)
}

/// What came of applying an object.
enum Outcome {
    /// It is as it should be, but for what others have.
    Applied(Vec<String>),
    /// It stays as others have it.
    Refused(String),
}

/// Applies `object` without the fields that others own.
fn give_way(api: &Api, object: &Value) -> Result<Outcome, ApiError> {
    let (mut wanted, mut kept) = (object.clone(), Vec::new());
    for _ in 0..ROUNDS {
        match api.apply(&wanted) {
            Ok(Applied::Done) => return Ok(Outcome::Applied(kept)),
            Ok(Applied::Conflicts(conflicts)) => {
                let before = kept.len();
                for conflict in &conflicts {
                    if field::remove(&mut wanted, &conflict.field) {
                        kept.push(format!("{} stays as {} has it", conflict.field, conflict.owner));
                    }
                }
                if kept.len() == before {
                    return Ok(Outcome::Refused(format!(
                        "it stays as it is, because of {conflicts:?}"
                    )));
                }
            }
            // Somebody wrote at the same moment.
            Err(error) if error.code() == Some(409) => {}
            // What can't be changed was changed by deleting and making it anew, by somebody.
            Err(error) if error.code() == Some(422) && is_there(api, object)? => {
                return Ok(Outcome::Refused(format!("it stays as it is: {error}")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Outcome::Refused(
        "it stays as it is: others change it all the time".to_owned(),
    ))
}

fn is_there(api: &Api, object: &Value) -> Result<bool, ApiError> {
    Ok(api.get(&api.path_of(object)?)?.is_some())
}

fn retire(api: &Api, old: &Retired) -> Result<Option<String>, Failure> {
    let object = old.object();
    let name = name(&object);
    let retired = api.retire(&object);
    Ok(match retired.map_err(failed(format!("delete {name}")))? {
        kubernetes::Retired::Absent => None,
        kubernetes::Retired::Deleted => Some(format!("{name} is of no more use and was deleted")),
        kubernetes::Retired::Foreign => Some(format!(
            "{name} is of no more use to us; somebody else made it, so it stays"
        )),
    })
}

#[cfg(test)]
mod tests;
