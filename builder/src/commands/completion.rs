//! `kimage completion`.

use anyhow::Result;
use clap::CommandFactory;

use crate::cli::{Cli, Completion};

pub(super) fn run(arguments: &Completion) -> Result<()> {
    // In memory first: the generator panics when its reader hangs up.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "kimage", &mut script);
    super::print(&script)
}
