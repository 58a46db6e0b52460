//! Loads kernel modules by the table that the builder left in the initrd.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kimage_roles::stage0::{MODULES_FOLDER, TABLE_PATH, Table};
use rustix::io::Errno;

use super::console;

/// The initrd's modules and what became of them.
pub(super) struct Modules {
    table: Table,
    state: Vec<State>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Untouched,
    Loaded,
    Failed,
}

impl Modules {
    /// Reads the table and checks that it is for the kernel that runs.
    pub(super) fn open() -> Result<Self> {
        let text = std::fs::read(TABLE_PATH).with_context(|| format!("read {TABLE_PATH}"))?;
        let table = Table::parse(&text)?;
        let uname = rustix::system::uname();
        let running = uname.release().to_string_lossy();
        if table.kernel() != running {
            bail!(
                "the initrd has modules of kernel {}, but {running} runs",
                table.kernel()
            );
        }
        let state = vec![State::Untouched; table.modules().len()];
        Ok(Self { table, state })
    }

    /// Loads what no machine can do without.
    pub(super) fn load_always(&mut self) -> Result<()> {
        for index in self.table.always().to_vec() {
            self.load(index)?;
        }
        Ok(())
    }

    /// Loads the drivers for a device. A driver that fails is reported and left: the root may be on another device.
    pub(super) fn load_for_device(&mut self, modalias: &str) {
        for index in self.table.for_device(modalias) {
            if let Err(error) = self.load(index) {
                console::say(&format!("{error:#} (for {modalias})"));
            }
        }
    }

    /// Names of the modules that were loaded, in the table's order.
    pub(super) fn loaded(&self) -> Vec<String> {
        let modules = self.table.modules().iter().zip(&self.state);
        modules
            .filter(|(_, state)| **state == State::Loaded)
            .map(|(module, _)| module.name.clone())
            .collect()
    }

    fn load(&mut self, index: usize) -> Result<()> {
        for index in self.table.closure(index) {
            if self.state[index] == State::Untouched {
                // Failed until proven: nothing is tried twice, and it is reported once.
                self.state[index] = State::Failed;
                self.insert(index)?;
                self.state[index] = State::Loaded;
            }
        }
        Ok(())
    }

    fn insert(&self, index: usize) -> Result<()> {
        let module = &self.table.modules()[index];
        let path = Path::new(MODULES_FOLDER).join(&module.file);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("load kernel module {}", module.name)),
        }
    }
}
