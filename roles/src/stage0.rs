//! The table that the builder puts into the initrd and stage 0 reads: which kernel modules lie there, what each one
//! needs, which ones every machine loads and which device identifiers ask for the others.
//!
//! A text of lines, so that `cpio -i --to-stdout stage0.table` shows a person what a kernel will load:
//!
//! ```text
//! kimage-stage0 1
//! kernel 6.8.0-151-generic
//! module dm_bufio dm-bufio.ko -
//! module dm_verity dm-verity.ko dm_bufio
//! always dm_verity
//! alias nvme pci:v*d*sv*sd*bc01sc08i02*
//! ```
//!
//! A module may only need modules of earlier lines. So the lines are a loading order, and a cycle can't be written.

use std::collections::BTreeMap;
use std::fmt;

mod pattern;

pub use pattern::{matches, normalise};

/// Where the table lies in the initrd.
pub const TABLE_PATH: &str = "/stage0.table";
/// The folder of the initrd that holds the module files.
pub const MODULES_FOLDER: &str = "/modules";

/// Largest table in bytes. The drivers of all clouds come to some 100 KB.
pub const MAX_TABLE: usize = 4 << 20;
/// Most modules of one table.
pub const MAX_MODULES: usize = 2048;
/// Most aliases of one table.
pub const MAX_ALIASES: usize = 65_536;
/// Longest module name in bytes: `MODULE_NAME_LEN` of the kernel is 56.
pub const MAX_NAME: usize = 56;
/// Longest alias pattern in bytes.
pub const MAX_PATTERN: usize = 1024;

const HEADER: &str = "kimage-stage0 1";

/// The table: checked, so every index is in range and a module's needs come before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    kernel: String,
    modules: Vec<Module>,
    always: Vec<usize>,
    aliases: Vec<Alias>,
}

/// One kernel module of the initrd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// The kernel's name for it: `dm_verity`, with underscores.
    pub name: String,
    /// File name below [`MODULES_FOLDER`]: `dm-verity.ko`.
    pub file: String,
    /// Positions of the modules that must be loaded before, each smaller than its own.
    pub needs: Vec<usize>,
}

/// A device identifier pattern and the module that drives such devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// Shell pattern over a device's modalias, in the form of [`normalise`].
    pub pattern: String,
    /// Position of the module.
    pub module: usize,
}

/// Why a text is no table. Says the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableError {
    line: usize,
    why: String,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "stage 0 table: {}", self.why),
            line => write!(f, "stage 0 table, line {line}: {}", self.why),
        }
    }
}

impl std::error::Error for TableError {}

impl Table {
    /// An empty table for modules of the kernel release `kernel` (`uname -r`).
    pub fn new(kernel: &str) -> Result<Self, TableError> {
        if !is_word(kernel, 64) {
            return Err(refusal(format!("kernel release {kernel:?} is not a plain word")));
        }
        Ok(Self {
            kernel: kernel.to_owned(),
            modules: Vec::new(),
            always: Vec::new(),
            aliases: Vec::new(),
        })
    }

    /// Adds a module whose needs are already in, and returns its position.
    pub fn add_module(&mut self, name: &str, file: &str, needs: &[&str]) -> Result<usize, TableError> {
        if !is_module_name(name) {
            return Err(refusal(format!("{name:?} is not a module name")));
        }
        if !is_word(file, 255) || file.starts_with('.') {
            return Err(refusal(format!("{file:?} is not a plain file name")));
        }
        if self.position(name).is_some() || self.modules.iter().any(|module| module.file == file) {
            return Err(refusal(format!("module {name} ({file}) is there twice")));
        }
        if self.modules.len() == MAX_MODULES {
            return Err(refusal(format!("more than {MAX_MODULES} modules")));
        }
        let known = |need: &&str| {
            self.position(need)
                .ok_or_else(|| refusal(format!("module {name} needs {need:?}, which no earlier line has")))
        };
        let needs = needs.iter().map(known).collect::<Result<Vec<_>, _>>()?;
        self.modules.push(Module {
            name: name.to_owned(),
            file: file.to_owned(),
            needs,
        });
        Ok(self.modules.len() - 1)
    }

    /// Has every machine load the module `name`.
    pub fn add_always(&mut self, name: &str) -> Result<(), TableError> {
        let module = self.known(name)?;
        if !self.always.contains(&module) {
            self.always.push(module);
        }
        Ok(())
    }

    /// Has machines with a device that `pattern` matches load the module `name`.
    pub fn add_alias(&mut self, name: &str, pattern: &str) -> Result<(), TableError> {
        let module = self.known(name)?;
        if pattern.is_empty()
            || pattern.len() > MAX_PATTERN
            || !pattern.bytes().all(|c| (b' '..0x7f).contains(&c))
        {
            return Err(refusal(format!(
                "alias {pattern:?} is not a printable text of 1 to {MAX_PATTERN} bytes"
            )));
        }
        if self.aliases.len() == MAX_ALIASES {
            return Err(refusal(format!("more than {MAX_ALIASES} aliases")));
        }
        self.aliases.push(Alias {
            pattern: normalise(pattern),
            module,
        });
        Ok(())
    }

    /// Reads a table as [`Table`]'s `Display` writes it.
    pub fn parse(text: &[u8]) -> Result<Self, TableError> {
        if text.len() > MAX_TABLE {
            return Err(refusal(format!("{} bytes are more than {MAX_TABLE}", text.len())));
        }
        let text = std::str::from_utf8(text).map_err(|_| refusal("not UTF-8".to_owned()))?;
        let mut lines = text.lines().enumerate();
        let at = |line: usize| {
            move |error: TableError| TableError {
                line: line + 1,
                ..error
            }
        };
        let head = |expected: &str, found: Option<(usize, &str)>| match found {
            Some((_, found)) if found.starts_with(expected) => Ok(found[expected.len()..].to_owned()),
            _ => Err(refusal(format!("`{expected}` expected"))),
        };
        if !head(HEADER, lines.next()).map_err(at(0))?.is_empty() {
            return Err(at(0)(refusal("unknown version".to_owned())));
        }
        let kernel = head("kernel ", lines.next()).map_err(at(1))?;
        let mut table = Self::new(&kernel).map_err(at(1))?;
        for (number, line) in lines {
            table.add_line(line).map_err(at(number))?;
        }
        Ok(table)
    }

    fn add_line(&mut self, line: &str) -> Result<(), TableError> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "module" => {
                let parts: Vec<&str> = rest.splitn(4, ' ').collect();
                let [name, file, needs] = parts[..] else {
                    return Err(refusal("`module NAME FILE NEEDS` expected".to_owned()));
                };
                let needs: Vec<&str> = if needs == "-" {
                    Vec::new()
                } else {
                    needs.split(',').collect()
                };
                self.add_module(name, file, &needs).map(drop)
            }
            "always" => self.add_always(rest),
            "alias" => match rest.split_once(' ') {
                Some((name, pattern)) => self.add_alias(name, pattern),
                None => Err(refusal("`alias MODULE PATTERN` expected".to_owned())),
            },
            _ => Err(refusal(format!("unknown word {word:?}"))),
        }
    }

    /// The kernel release that the modules belong to.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// All modules, needs first.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The modules that every machine loads.
    pub fn always(&self) -> &[usize] {
        &self.always
    }

    /// All aliases, in the order they were added.
    pub fn aliases(&self) -> &[Alias] {
        &self.aliases
    }

    /// The modules that drive a device with the modalias `device`, without repetition.
    pub fn for_device(&self, device: &str) -> Vec<usize> {
        let device = normalise(device);
        let mut found = Vec::new();
        for alias in &self.aliases {
            if !found.contains(&alias.module) && matches(&alias.pattern, &device) {
                found.push(alias.module);
            }
        }
        found
    }

    /// `module` and everything it needs, in loading order.
    pub fn closure(&self, module: usize) -> Vec<usize> {
        let mut wanted = vec![false; self.modules.len()];
        if let Some(seen) = wanted.get_mut(module) {
            *seen = true;
        }
        // Needs stand before their module, so one pass from the end sees every need.
        for index in (0..self.modules.len().min(module + 1)).rev() {
            if wanted[index] {
                for need in &self.modules[index].needs {
                    wanted[*need] = true;
                }
            }
        }
        (0..wanted.len()).filter(|index| wanted[*index]).collect()
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.modules.iter().position(|module| module.name == name)
    }

    fn known(&self, name: &str) -> Result<usize, TableError> {
        self.position(name)
            .ok_or_else(|| refusal(format!("module {name:?} is not in the table")))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}\nkernel {}", self.kernel)?;
        let name = |index: &usize| self.modules[*index].name.as_str();
        for module in &self.modules {
            let needs: Vec<&str> = module.needs.iter().map(name).collect();
            let needs = if needs.is_empty() {
                "-".to_owned()
            } else {
                needs.join(",")
            };
            writeln!(f, "module {} {} {needs}", module.name, module.file)?;
        }
        for index in &self.always {
            writeln!(f, "always {}", name(index))?;
        }
        // Sorted by module and pattern: the bytes do not depend on the order in which aliases were found.
        let mut aliases: BTreeMap<(&str, &str), ()> = BTreeMap::new();
        for alias in &self.aliases {
            aliases.insert((name(&alias.module), &alias.pattern), ());
        }
        aliases
            .keys()
            .try_for_each(|(module, pattern)| writeln!(f, "alias {module} {pattern}"))
    }
}

/// Whether `name` can be the name of a kernel module as `/proc/modules` shows it.
pub fn is_module_name(name: &str) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    !name.is_empty() && name.len() < MAX_NAME && name.bytes().all(plain)
}

fn is_word(text: &str, longest: usize) -> bool {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._+~-".contains(&c);
    !text.is_empty() && text.len() <= longest && text.bytes().all(plain)
}

fn refusal(why: String) -> TableError {
    TableError { line: 0, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop, prop_assert_eq, proptest};

    fn sample() -> Table {
        let mut table = Table::new("6.8.0-151-generic").unwrap();
        table.add_module("dm_bufio", "dm-bufio.ko", &[]).unwrap();
        table
            .add_module("dm_verity", "dm-verity.ko", &["dm_bufio"])
            .unwrap();
        table.add_module("nvme_core", "nvme-core.ko", &[]).unwrap();
        table.add_module("nvme", "nvme.ko", &["nvme_core"]).unwrap();
        table.add_always("dm_verity").unwrap();
        table.add_alias("nvme", "pci:v*d*sv*sd*bc01sc08i02*").unwrap();
        table
    }

    #[test]
    fn a_table_survives_writing_and_reading() {
        let table = sample();
        assert_eq!(Table::parse(table.to_string().as_bytes()), Ok(table));
    }

    #[test]
    fn a_device_asks_for_its_driver_and_the_driver_for_its_needs() {
        let table = sample();
        let found = table.for_device("pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02");
        assert_eq!(found, [3]);
        assert_eq!(table.closure(3), [2, 3]);
        assert_eq!(table.closure(0), [0]);
        assert!(table.closure(99).is_empty());
        assert!(
            table
                .for_device("pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00")
                .is_empty()
        );
    }

    #[test]
    fn a_hostile_text_is_refused_with_its_line() {
        let cases = [
            ("", "line 1"),
            ("kimage-stage0 2\nkernel x", "line 1"),
            ("kimage-stage0 1", "line 2"),
            ("kimage-stage0 1\nkernel ../x/y", "line 2"),
            ("kimage-stage0 1\nkernel 6\nmodule a ../a.ko -", "line 3"),
            ("kimage-stage0 1\nkernel 6\nmodule a .. -", "line 3"),
            ("kimage-stage0 1\nkernel 6\nmodule a a.ko a", "line 3"),
            (
                "kimage-stage0 1\nkernel 6\nmodule a a.ko b\nmodule b b.ko a",
                "line 3",
            ),
            (
                "kimage-stage0 1\nkernel 6\nmodule a a.ko -\nmodule a b.ko -",
                "line 4",
            ),
            ("kimage-stage0 1\nkernel 6\nmodule a a.ko - surplus", "line 3"),
            ("kimage-stage0 1\nkernel 6\nmodule a a.ko", "line 3"),
            ("kimage-stage0 1\nkernel 6\nalways a", "line 3"),
            (
                "kimage-stage0 1\nkernel 6\nmodule a a.ko -\nalias a \u{7f}",
                "line 4",
            ),
            ("kimage-stage0 1\nkernel 6\nmodule a a.ko -\nalias a ", "line 4"),
            ("kimage-stage0 1\nkernel 6\nrun rm", "line 3"),
        ];
        for (text, place) in cases {
            let error = Table::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(place), "{text:?}: {error}");
        }
        assert!(Table::parse(&[0xff; 8]).is_err());
        assert!(Table::parse(&vec![b'\n'; MAX_TABLE + 1]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut text = b"kimage-stage0 1\nkernel 6\n".to_vec();
            text.extend(bytes);
            if let Ok(table) = Table::parse(&text) {
                let again = Table::parse(table.to_string().as_bytes()).unwrap();
                prop_assert_eq!(again.to_string(), table.to_string());
            }
        }
    }
}
