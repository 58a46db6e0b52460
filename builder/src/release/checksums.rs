//! `SHA256SUMS` in the format of coreutils' `sha256sum`.

use super::manifest::FileRecord;

/// One line per file, sorted by name: digest, two spaces, name.
pub fn render(records: &[FileRecord]) -> String {
    let mut lines: Vec<_> = records
        .iter()
        .map(|record| (&record.name, &record.sha256))
        .collect();
    lines.sort();
    lines
        .iter()
        .map(|(name, digest)| format!("{digest}  {name}\n"))
        .collect()
}
