//! Loads kernel modules by the table that the builder left in the initrd.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kimage_roles::stage0::{MODULES_FOLDER, TABLE_PATH, Table};
use rustix::io::Errno;

use super::console;

/// The initrd's modules.
pub(super) struct Modules {
    table: Table,
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
        Ok(Self { table })
    }

    /// Loads what no machine can do without. It may run beside [`Drivers::load_for`]: where both load a module, the
    /// kernel lets the second wait for the first.
    pub(super) fn load_always(&self) -> Result<()> {
        let mut done = BTreeSet::new();
        for index in self.table.always() {
            for index in self.table.closure(*index) {
                if done.insert(index) {
                    self.insert(index)?;
                }
            }
        }
        Ok(())
    }

    /// Loads the module `name` with what it needs; one that the initrd doesn't have is built in, or not to be had.
    pub(super) fn load(&self, name: &str) -> Result<()> {
        let index = self.table.modules().iter().position(|module| module.name == name);
        let indices = index.map(|index| self.table.closure(index)).unwrap_or_default();
        indices.into_iter().try_for_each(|index| self.insert(index))
    }

    /// The drivers, none of them loaded yet.
    pub(super) fn drivers(&self) -> Drivers<'_> {
        Drivers {
            modules: self,
            tried: BTreeSet::new(),
            loaded: BTreeSet::new(),
        }
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

/// The modules that are loaded when a device asks for them.
pub(super) struct Drivers<'a> {
    modules: &'a Modules,
    /// Nothing is tried twice, so a failure is reported once.
    tried: BTreeSet<usize>,
    loaded: BTreeSet<usize>,
}

impl Drivers<'_> {
    /// Loads the drivers for a device; says whether there were any to load. A driver that fails is reported and
    /// left: the root may be on another device.
    pub(super) fn load_for(&mut self, modalias: &str) -> bool {
        let before = self.tried.len();
        for index in self.modules.table.for_device(modalias) {
            if let Err(error) = self.load(index) {
                console::say(&format!("{error:#} (for {modalias})"));
            }
        }
        self.tried.len() > before
    }

    /// Names of the drivers that were loaded, in the table's order.
    pub(super) fn loaded(&self) -> Vec<String> {
        self.loaded
            .iter()
            .map(|index| self.modules.table.modules()[*index].name.clone())
            .collect()
    }

    fn load(&mut self, index: usize) -> Result<()> {
        for index in self.modules.table.closure(index) {
            if self.tried.insert(index) {
                self.modules.insert(index)?;
                self.loaded.insert(index);
            }
        }
        Ok(())
    }
}
