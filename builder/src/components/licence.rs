//! Recognises the licence of a module by words that only one licence has: for the SBOM, where "unknown" is honest and
//! a guess is not.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Where modules keep it.
const FILES: &[&str] = &[
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "COPYING",
    "License",
    "license",
];
/// Most bytes read; the longest licence has 35 kB.
const MOST_BYTES: u64 = 64 * 1024;

/// The SPDX identifier of the licence file in `folder`, if it is one of the common ones.
pub(super) fn of_folder(folder: &Path) -> Option<String> {
    let file = FILES.iter().find_map(|name| File::open(folder.join(name)).ok())?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    of_text(&String::from_utf8_lossy(&bytes)).map(str::to_owned)
}

fn of_text(text: &str) -> Option<&'static str> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let has = |phrase: &str| words.contains(phrase);
    let mut found = Vec::new();
    if has("Apache License Version 2.0") || has("Licensed under the Apache License, Version 2.0") {
        found.push("Apache-2.0");
    }
    if has("Permission is hereby granted, free of charge, to any person obtaining a copy") {
        found.push("MIT");
    }
    if has("Redistribution and use in source and binary forms") {
        let third =
            has("Neither the name") || has("may not be used to endorse") || has("names of its contributors");
        found.push(if third { "BSD-3-Clause" } else { "BSD-2-Clause" });
    }
    if has("Mozilla Public License Version 2.0") || has("Mozilla Public License, version 2.0") {
        found.push("MPL-2.0");
    }
    if has("Permission to use, copy, modify, and/or distribute this software for any purpose") {
        found.push("ISC");
    }
    // A file with several licences is for a person to read.
    match found.as_slice() {
        [one] => Some(one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_licences_are_recognised_and_mixtures_are_not() {
        let apache = "  Apache License\n   Version 2.0, January 2004";
        let mit = "Permission is hereby granted, free of charge, to any\nperson obtaining a copy";
        assert_eq!(of_text(apache), Some("Apache-2.0"));
        assert_eq!(of_text(mit), Some("MIT"));
        assert_eq!(
            of_text("Redistribution and use in source and binary forms, with"),
            Some("BSD-2-Clause")
        );
        assert_eq!(of_text(&format!("{apache} {mit}")), None);
        assert_eq!(of_text("All rights reserved"), None);
    }
}
