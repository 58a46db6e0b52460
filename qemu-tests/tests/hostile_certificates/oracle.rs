//! What Go reads in a request: the API server, its admission and the signer all read as `pem.Decode` and `crypto/x509` do.

use std::fs;
use std::hash::{BuildHasher, RandomState};

use kimage_firstboot::approver::read;
use kimage_qemu_tests::images::{command, finish};

use super::requester::pem;

/// Says a line for each file: `bad`, or what Go reads in its first request.
const PROGRAM: &str = r#"package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func said(text []byte) string {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return "bad"
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || r.CheckSignature() != nil {
		return "bad"
	}
	addresses := []string{}
	for _, address := range r.IPAddresses {
		addresses = append(addresses, address.String())
	}
	return fmt.Sprint(r.Subject.CommonName, " ", strings.Join(r.Subject.Organization, ","), " ", len(r.Subject.Names), " ",
		strings.Join(r.DNSNames, ","), " ", strings.Join(addresses, ","), " ", len(r.EmailAddresses)+len(r.URIs))
}

func main() {
	files, _ := filepath.Glob(os.Args[1] + "/*.pem")
	for _, file := range files {
		text, _ := os.ReadFile(file)
		fmt.Println(said(text))
	}
}
"#;
/// So many changed texts are compared.
const MUTANTS: usize = 3000;

/// Good requests, and texts in which two of them, or parts of them, stand in some order with some changes.
fn texts() -> Vec<String> {
    let own = pem("system:node:w1", &["w1", "10.0.0.7", "fd00::7"]);
    let evil = pem("system:node:w1", &["kubernetes", "10.96.0.1"]);
    let bare = pem("system:node:w1", &[]);
    let parts = [
        &own[..],
        &evil,
        &bare,
        "-----BEGIN CERTIFICATE REQUEST-----\n",
        "-----END CERTIFICATE REQUEST-----\n",
        "-----END X-----\n",
        "\n",
        "\r\n",
        " ",
        "Key: value\n\n",
        "-",
        "=",
        "x",
    ];
    // A text that fails is printed whole: no seed is needed to have it again.
    let (state, mut count) = (RandomState::new(), 0_u64);
    let mut below = |limit: usize| {
        count += 1;
        (state.hash_one(count) % limit as u64) as usize
    };
    let mut texts = vec![own.clone(), evil.clone(), bare.clone()];
    while texts.len() < MUTANTS {
        let mut text = [&own, &evil, &bare][below(3)].clone();
        for _ in 0..=below(3) {
            let at = below(text.len() + 1);
            let end = (at + below(40)).min(text.len());
            match below(4) {
                0 => text.insert_str(at, parts[below(parts.len())]),
                1 => text.replace_range(at..end, ""),
                2 => text = text.replacen("END CERTIFICATE REQUEST", "END X", 1),
                _ => text = format!("{text}{}", parts[below(parts.len())]),
            }
        }
        texts.push(text);
    }
    texts
}

#[test]
fn go_reads_the_same_in_every_request_that_is_read_here() {
    let folder = tempfile::tempdir().unwrap();
    let texts = texts();
    for (number, text) in texts.iter().enumerate() {
        fs::write(folder.path().join(format!("{number:05}.pem")), text).unwrap();
    }
    let program = folder.path().join("main.go");
    fs::write(&program, PROGRAM).unwrap();
    let mut go = command("go");
    go.arg("run")
        .arg(&program)
        .arg(folder.path())
        .env("GOTOOLCHAIN", "local");
    let said = String::from_utf8(finish(&mut go).unwrap().stdout).unwrap();
    let said: Vec<&str> = said.lines().collect();
    assert_eq!(said.len(), texts.len());
    let (mut read_here, mut read_there) = (0, 0);
    for (text, line) in texts.iter().zip(said) {
        read_there += usize::from(line != "bad");
        let Ok(asked) = read(text) else {
            continue;
        };
        read_here += 1;
        let addresses: Vec<String> = asked.addresses.iter().map(ToString::to_string).collect();
        let ours = format!(
            "{} {} 2 {} {} 0",
            asked.common_name,
            asked.organization,
            asked.dns_names.join(","),
            addresses.join(",")
        );
        assert_eq!(line, ours, "{text}");
    }
    println!(
        "of {} texts Go reads {read_there}, and {read_here} are read here",
        texts.len()
    );
    assert!(read_here >= 3 && read_there > read_here);
}
