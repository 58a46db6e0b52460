//! What the commands do. Only they and the pipeline see all stages.

mod build;
mod cluster;
mod completion;
mod diff;
mod doctor;
mod explain;
mod inspect;
mod keys;
mod lock;
mod playground;
mod run;
mod vendor;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::cli::{Cli, Command, Global, Keys};
use crate::failure::{ExitCode, Failure};
use crate::progress::Progress;
use crate::store::Store;

/// What every command may need.
pub struct Context {
    /// The options of all commands.
    pub global: Global,
    /// Where progress goes.
    pub progress: Progress,
}

impl Context {
    /// The store that the user named, or the usual one.
    pub fn store(&self) -> Result<Store> {
        let root = match &self.global.store {
            Some(root) => root.clone(),
            None => Store::default_root()?,
        };
        Ok(Store::open(&root)?.with_progress(&self.progress))
    }

    /// The folder with `images/` and `roles/`: the one the user named, else the nearest from here upwards.
    pub fn definitions(&self) -> Result<PathBuf> {
        let missing = |message: String| {
            let hint =
                "run kimage in the folder that holds images/ and roles/, or name it with --definitions DIR";
            Failure::new(ExitCode::Usage, message).hint(hint)
        };
        let holds =
            |folder: &std::path::Path| folder.join("images").is_dir() && folder.join("roles").is_dir();
        if let Some(folder) = &self.global.definitions {
            if !holds(folder) {
                bail!(missing(format!(
                    "`{}` does not hold images/ and roles/",
                    folder.display()
                )));
            }
            return Ok(folder.clone());
        }
        let here = std::env::current_dir().context("find the current folder")?;
        let found = here.ancestors().find(|folder| holds(folder));
        match found {
            Some(folder) => Ok(folder.to_owned()),
            None => bail!(missing(format!(
                "neither `{}` nor a folder above holds images/ and roles/",
                here.display()
            ))),
        }
    }
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    let progress = Progress::stderr(cli.global.verbosity());
    let context = Context {
        global: cli.global,
        progress,
    };
    match cli.command {
        Command::Build(arguments) => build::run(&arguments, &context),
        Command::Lock(arguments) => lock::run(&arguments, &context),
        Command::Vendor(arguments) => vendor::run(&arguments, &context),
        Command::Verify(arguments) => verify::run(&arguments, &context),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Keys(Keys::New(arguments)) => keys::run(&arguments, &context),
        Command::Cluster(command) => cluster::run(&command, &context),
        Command::Run(arguments) => run::run(&arguments, &context),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments, &context),
        Command::Completion(arguments) => completion::run(&arguments),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("write to standard output"),
    }
}

/// Prints `value` as JSON on standard output.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).context("make JSON")?;
    json.push(b'\n');
    print(&json)
}
