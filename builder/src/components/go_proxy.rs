//! Which Go module proxy to ask. kimage knows none by name: the user's settings say it, or the installed `go`.

use std::path::PathBuf;

use anyhow::Result;

use crate::failure::{ExitCode, Failure};
use crate::tool::Tool;

/// The user's value for `GOPROXY`, the first of: `flag`, the environment, Go's environment file, what an installed
/// `go` answers.
///
/// # Errors
/// [`ExitCode::Fetch`] when none of them says one.
pub(super) fn find(flag: Option<&str>) -> Result<String> {
    let said = flag
        .map(str::to_owned)
        .or_else(|| std::env::var("GOPROXY").ok())
        .or_else(from_environment_file)
        .or_else(from_installed_go)
        .filter(|value| !value.is_empty());
    said.ok_or_else(|| {
        Failure::new(ExitCode::Fetch, "no Go module proxy is known")
            .hint("set GOPROXY=https://... or pass --go-proxy URL")
            .into()
    })
}

/// The base URLs of a `GOPROXY` value, without `direct` and `off`.
pub(super) fn base_urls(value: &str) -> Vec<String> {
    let entries = value.split([',', '|']).map(str::trim);
    let urls = entries.filter(|entry| entry.contains("://"));
    urls.map(|url| url.trim_end_matches('/').to_owned()).collect()
}

/// `GOPROXY` of the file that `go env -w` writes.
fn from_environment_file() -> Option<String> {
    let home = |below: &str| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(below));
    let file = match std::env::var_os("GOENV") {
        Some(value) if value == "off" => return None,
        Some(value) if !value.is_empty() => PathBuf::from(value),
        _ => {
            let config = std::env::var_os("XDG_CONFIG_HOME")
                .filter(|value| !value.is_empty())
                .map(PathBuf::from);
            config.or_else(|| home(".config"))?.join("go/env")
        }
    };
    proxy_line(&std::fs::read_to_string(file).ok()?)
}

fn proxy_line(text: &str) -> Option<String> {
    text.lines()
        .find_map(|line| line.strip_prefix("GOPROXY="))
        .map(|value| value.trim().to_owned())
}

fn from_installed_go() -> Option<String> {
    let go = Tool::new("go")
        .args(["env", "GOPROXY"])
        .env("GOTOOLCHAIN", "local")
        .inherit(&["PATH", "HOME"]);
    let output = go.run().ok()?;
    Some(String::from_utf8_lossy(&output).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_wins() {
        assert_eq!(
            find(Some("https://proxy.example")).unwrap(),
            "https://proxy.example"
        );
    }

    #[test]
    fn direct_and_off_are_no_urls() {
        assert_eq!(
            base_urls("https://a/, file:///b|direct,off"),
            ["https://a", "file:///b"]
        );
        assert!(base_urls("off").is_empty());
    }

    #[test]
    fn the_environment_file_is_read_like_go_reads_it() {
        assert_eq!(
            proxy_line("GOFLAGS=-v\nGOPROXY=https://p\n").unwrap(),
            "https://p"
        );
        assert_eq!(proxy_line("# GOPROXY=https://p\n"), None);
    }
}
