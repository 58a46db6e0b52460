//! Server-side apply without force: what others own stays theirs, and who they are is known.
//! <https://kubernetes.io/docs/reference/using-api/server-side-apply/#conflicts>

use serde_json::Value;

use super::{Api, ApiError, FIELD_MANAGER, path};
use crate::http::{Fault, HttpError, Request};

/// `reason` of the cause that names a field somebody else owns (`metav1.CauseTypeFieldManagerConflict`).
const CAUSE: &str = "FieldManagerConflict";
/// Longest name of an owner that is repeated.
const SHOWN: usize = 100;

/// What came of an apply.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// The object is as it should be.
    Done,
    /// Nothing was changed: others own these fields and want them otherwise.
    Conflicts(Vec<Conflict>),
}

/// What came of deleting an object that we made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// There was none.
    Absent,
    /// It is gone.
    Deleted,
    /// Somebody else made the one that is there.
    Foreign,
}

/// A field that somebody else owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Its path as the API server writes it: `.data.Corefile` ([`super::field::remove`]).
    pub field: String,
    /// Name of the manager who owns it: `kubectl-edit`.
    pub owner: String,
}

impl Api {
    /// Makes the fields that `object` names be so, and ours, unless somebody else owns one and wants it otherwise. Fields
    /// that it doesn't name stay, but those that only we owned.
    pub fn apply(&self, object: &Value) -> Result<Applied, ApiError> {
        let path = self.path_of(object)?;
        let body = crate::http::to_json(object)?;
        let url = self.url(&format!("{path}?fieldManager={FIELD_MANAGER}"));
        let request = Request::patch(url, &body).header("content-type", "application/apply-patch+yaml");
        let answer = self.client.send(&self.request(request))?;
        if (200..300).contains(&answer.status) {
            return Ok(Applied::Done);
        }
        let said: Value = answer.json().unwrap_or_default();
        match conflicts(&said) {
            Some(conflicts) if answer.status == 409 => Ok(Applied::Conflicts(conflicts)),
            _ => Err(refusal(answer.status, &said)),
        }
    }

    /// Where `object` is.
    pub fn path_of(&self, object: &Value) -> Result<String, ApiError> {
        path::object(object).map_err(|what| {
            ApiError::Http(HttpError {
                url: self.server.clone(),
                fault: Fault::Broken(what),
            })
        })
    }

    /// Deletes `object` (kind and name are enough) if it is one that we made.
    pub fn retire(&self, object: &Value) -> Result<Retired, ApiError> {
        let path = self.path_of(object)?;
        let Some(found) = self.get(&path)? else {
            return Ok(Retired::Absent);
        };
        if !is_ours(&found) {
            return Ok(Retired::Foreign);
        }
        self.delete(&path)?;
        Ok(Retired::Deleted)
    }
}

fn refusal(code: u16, status: &Value) -> ApiError {
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    ApiError::Refused {
        code,
        reason: text("reason"),
        message: text("message"),
    }
}

/// The fields that a Status object of code 409 names; `None` if it is about something else.
fn conflicts(status: &Value) -> Option<Vec<Conflict>> {
    let causes = status["details"]["causes"].as_array()?;
    let conflict = |cause: &Value| {
        if cause["reason"] != CAUSE {
            return None;
        }
        Some(Conflict {
            field: cause["field"].as_str()?.to_owned(),
            owner: owner(cause["message"].as_str().unwrap_or_default()),
        })
    };
    let conflicts: Option<Vec<Conflict>> = causes.iter().map(conflict).collect();
    conflicts.filter(|conflicts| !conflicts.is_empty())
}

/// Of `conflict with "kubectl-edit" using v1`.
fn owner(message: &str) -> String {
    let name = message.split('"').nth(1).unwrap_or("somebody else");
    name.chars()
        .filter(|letter| !letter.is_control())
        .take(SHOWN)
        .collect()
}

/// Whether we have applied fields of `object`.
fn is_ours(object: &Value) -> bool {
    let managers = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    let ours = |entry: &Value| entry["manager"] == FIELD_MANAGER && entry["operation"] == "Apply";
    managers.is_some_and(|managers| managers.iter().any(ours))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_conflict_names_its_fields_and_owners_and_another_409_is_none() {
        // As kube-apiserver 1.36 answers.
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409,
            "message": "Apply failed with 2 conflicts: ...",
            "details": {"causes": [
                {"reason": "FieldManagerConflict", "message": "conflict with \"kubectl-edit\" using v1", "field": ".data.Corefile"},
                {"reason": "FieldManagerConflict", "message": "conflict with \"a\u{1b}b\" with subresource \"scale\" using apps/v1",
                 "field": ".spec.replicas"},
            ]},
        });
        let conflict = |field: &str, owner: &str| Conflict {
            field: field.to_owned(),
            owner: owner.to_owned(),
        };
        let expected = vec![
            conflict(".data.Corefile", "kubectl-edit"),
            conflict(".spec.replicas", "ab"),
        ];
        assert_eq!(conflicts(&status), Some(expected));
        let other =
            json!({"kind": "Status", "code": 409, "reason": "Conflict", "details": {"name": "coredns"}});
        for status in [other, json!({}), json!(null), json!({"details": {"causes": []}})] {
            assert_eq!(conflicts(&status), None);
        }
    }

    #[test]
    fn an_object_is_ours_if_we_applied_some_of_it() {
        let made = |manager: &str, operation: &str| json!({"metadata": {"managedFields": [{"manager": "x"}, {"manager": manager, "operation": operation}]}});
        assert!(is_ours(&made("kimage", "Apply")));
        assert!(
            !is_ours(&made("kimage", "Update"))
                && !is_ours(&made("kubectl", "Apply"))
                && !is_ours(&json!({}))
        );
    }
}
