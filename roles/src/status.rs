//! The report of first boot: `/run/kimage/status.json`, and one line per change on the console that `kimage explain`
//! reads back.

use serde::{Deserialize, Serialize};

use crate::cause::Cause;

/// Where the file lies in the machine.
pub const STATUS_PATH: &str = "/run/kimage/status.json";
/// What every line of the report on the console begins with, after the kernel's or journal's own prefix.
pub const CONSOLE_PREFIX: &str = "kimage-status: ";
/// The longest report on the console, in bytes.
pub const MAX_CONSOLE_LINE: usize = 64 * 1024;
/// Version of the format.
pub const SCHEMA: u32 = 1;

/// Where a machine is on its way into service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Finding out where this machine runs.
    Platform,
    /// Reading and checking the NodeConfig.
    Metadata,
    /// Deciding what to do.
    Plan,
    /// Writing certificates and configuration.
    Configure,
    /// Forming or joining etcd.
    Etcd,
    /// Starting the API server, controllers and scheduler.
    ControlPlane,
    /// Discovering the cluster and getting the kubelet's certificate.
    Join,
    /// Waiting for the Node to be Ready.
    Node,
    /// In service.
    InService,
}

impl Phase {
    /// The name as it stands in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Metadata => "metadata",
            Self::Plan => "plan",
            Self::Configure => "configure",
            Self::Etcd => "etcd",
            Self::ControlPlane => "control-plane",
            Self::Join => "join",
            Self::Node => "node",
            Self::InService => "in-service",
        }
    }
}

/// How a phase stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Under way.
    Running,
    /// Failed this time, tried again.
    Retrying,
    /// Done.
    Done,
    /// Failed for good; a person or a replacement must act.
    Failed,
}

/// One report: the newest state of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Role of the image.
    pub role: String,
    /// Name of the node, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Where the machine is.
    pub phase: Phase,
    /// How it stands there.
    pub outcome: Outcome,
    /// Which try of this phase, from 1.
    pub attempt: u32,
    /// How long this phase has taken so far, in milliseconds.
    pub duration_milliseconds: u64,
    /// How long since first boot began, in milliseconds.
    pub total_milliseconds: u64,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What failed, with names and numbers; never a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What a person can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Status {
    /// The line for the console: [`CONSOLE_PREFIX`] and the report as one line of JSON.
    pub fn console_line(&self) -> Result<String, serde_json::Error> {
        Ok(format!("{CONSOLE_PREFIX}{}", serde_json::to_string(self)?))
    }

    /// Reads a console line, whatever stands before the prefix or after the report: others write to a console too.
    /// `None` when it is none of ours, of another [`SCHEMA`], or damaged.
    pub fn from_console_line(line: &str) -> Option<Self> {
        let (_, json) = line.split_once(CONSOLE_PREFIX)?;
        // No number of spaces or brackets may keep a reader busy.
        if json.len() > MAX_CONSOLE_LINE {
            return None;
        }
        let first = serde_json::Deserializer::from_str(json).into_iter().next()?;
        first.ok().filter(|status: &Self| status.schema == SCHEMA)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

    use super::*;

    fn status() -> Status {
        Status {
            schema: SCHEMA,
            role: "worker".to_owned(),
            node: Some("w1".to_owned()),
            phase: Phase::Join,
            outcome: Outcome::Retrying,
            attempt: 3,
            duration_milliseconds: 1200,
            total_milliseconds: 9000,
            cause: Some(Cause::BalancerUnreachable),
            message: Some("connect to lb:6443: refused".to_owned()),
            hint: Some(Cause::BalancerUnreachable.hint().to_owned()),
        }
    }

    #[test]
    fn a_console_line_reads_back_between_what_others_write() {
        let status = status();
        let line = format!(
            "[   31.2] {}[   31.3] usb 1-1: new\r",
            status.console_line().unwrap()
        );
        assert_eq!(Status::from_console_line(&line), Some(status.clone()));
        assert_eq!(Status::from_console_line("kimage-state: disk vda"), None);
        let other = Status {
            schema: SCHEMA + 1,
            ..status
        };
        assert_eq!(Status::from_console_line(&other.console_line().unwrap()), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_message_reads_back(message in any::<String>(), before in "[^:]*", attempt in any::<u32>()) {
            let status = Status { message: Some(message), attempt, ..status() };
            let line = format!("{before}{}", status.console_line().unwrap());
            prop_assert_eq!(Status::from_console_line(&line), Some(status));
        }

        #[test]
        fn no_line_makes_the_reader_panic(text in any::<String>(), cut in 0_usize..400) {
            drop(Status::from_console_line(&format!("{CONSOLE_PREFIX}{text}")));
            let line = status().console_line().unwrap();
            let half: String = line.chars().take(cut).chain(text.chars()).collect();
            drop(Status::from_console_line(&half));
        }
    }
}
