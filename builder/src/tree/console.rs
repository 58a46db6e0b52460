//! Who may log in on a console: nobody, unless `debug.serial-login` gives root a shell on the serial port.

use anyhow::{Result, bail};

use super::normalise::place;
use super::units;
use super::value::{Entry, Tree, TreePath};
use crate::failure::{ExitCode, Failure};

const SERIAL: &str = "serial-getty@ttyS0.service";
const SERIAL_TEMPLATE: &str = "serial-getty@.service";
/// The units that offer a login.
const LOGINS: [&str; 4] = [
    SERIAL_TEMPLATE,
    "getty@.service",
    "console-getty.service",
    "container-getty@.service",
];
const DROP_IN: &str = "etc/systemd/system/serial-getty@ttyS0.service.d/10-kimage-login.conf";
/// No `login` and so no password: root's stays locked. The base need not even have that program.
const SHELL: &str = "\
# debug.serial-login of image.toml
[Service]
Environment=HOME=/root USER=root LOGNAME=root
WorkingDirectory=-/root
ExecStart=
ExecStart=-/usr/sbin/agetty --skip-login --login-program /usr/bin/bash --keep-baud 115200,57600,38400,9600 %I $TERM
";
/// Starts it with the other terminals.
const WANTED: &str = "etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service";
/// What the manifest calls the switch.
pub(crate) const SERIAL_LOGIN: &str = "serial-login";
const PROGRAMS: [&str; 2] = ["usr/sbin/agetty", "usr/bin/bash"];

/// Units to enable and to mask.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Logins {
    /// What offers the shell.
    pub(super) enable: Vec<String>,
    /// What would offer a login otherwise.
    pub(super) mask: Vec<String>,
}

/// Adds what a login on the serial port needs, where `serial_login` asks for it, and says which units of the tree
/// go with it.
///
/// # Errors
/// [`ExitCode::Usage`] when the tree lacks a program or unit that the login needs.
pub(super) fn apply(tree: &mut Tree, serial_login: bool) -> Result<Logins> {
    let mut logins = Logins::default();
    for unit in LOGINS {
        if units::exists(tree, unit)? && !(serial_login && unit == SERIAL_TEMPLATE) {
            logins.mask.push(unit.to_owned());
        }
    }
    if serial_login {
        for program in PROGRAMS {
            if tree.get(&TreePath::parse(program.as_bytes())?).is_none() {
                bail!(Failure::new(
                    ExitCode::Usage,
                    format!("debug.serial-login needs /{program}, which no package brings")
                ));
            }
        }
        place(
            tree,
            &TreePath::parse(DROP_IN.as_bytes())?,
            Entry::bytes(0o644, SHELL.as_bytes()),
        )?;
        logins.enable.push(SERIAL.to_owned());
    }
    Ok(logins)
}

/// What stands at a path of a finished root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing.
    Nothing,
    /// A symbolic link with this target.
    Link(Vec<u8>),
    /// Anything else.
    Other,
}

/// The debug switches that a finished root filesystem has, by the manifest's names. `look` says what stands at a
/// path.
///
/// # Errors
/// A login is open that no switch opens.
pub(crate) fn switches(look: impl Fn(&str) -> Result<Seen>) -> Result<Vec<&'static str>> {
    let is_there = |path: &str| Ok::<_, anyhow::Error>(look(path)? != Seen::Nothing);
    let mut serial = is_there(DROP_IN)? || is_there(WANTED)?;
    for unit in LOGINS {
        let shipped = is_there(&format!("usr/lib/systemd/system/{unit}"))?
            || is_there(&format!("usr/local/lib/systemd/system/{unit}"))?;
        let open = match look(&format!("etc/systemd/system/{unit}"))? {
            Seen::Nothing => shipped,
            Seen::Link(target) => target != b"/dev/null",
            Seen::Other => true,
        };
        if open && unit != SERIAL_TEMPLATE {
            bail!("{unit} is not masked: a login that no debug switch opens");
        }
        serial |= open;
    }
    Ok(if serial { vec![SERIAL_LOGIN] } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::super::units::Wanted;
    use super::super::value::Kind;
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new(1);
        for (path, text) in [
            (
                "usr/lib/systemd/system/serial-getty@.service",
                "[Install]\nWantedBy=getty.target\n",
            ),
            (
                "usr/lib/systemd/system/getty@.service",
                "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
            ),
            (
                "usr/lib/systemd/system/console-getty.service",
                "[Install]\nWantedBy=getty.target\n",
            ),
            ("usr/sbin/agetty", ""),
            ("usr/bin/bash", ""),
        ] {
            let path = TreePath::parse(path.as_bytes()).unwrap();
            place(&mut tree, &path, Entry::bytes(0o644, text.as_bytes())).unwrap();
        }
        tree
    }

    fn switched(serial_login: bool) -> Tree {
        let mut tree = tree();
        let logins = apply(&mut tree, serial_login).unwrap();
        let lists = [Wanted {
            file: "image.toml",
            enable: &logins.enable,
            mask: &logins.mask,
        }];
        units::apply(&mut tree, &lists).unwrap();
        tree
    }

    fn link(tree: &Tree, name: &str) -> Option<String> {
        let path = TreePath::parse(format!("etc/systemd/system/{name}").as_bytes()).unwrap();
        match &tree.get(&path)?.kind {
            Kind::Symlink(target) => Some(String::from_utf8(target.clone()).unwrap()),
            other => panic!("{name} is {other:?}"),
        }
    }

    #[test]
    fn a_release_has_no_login_anywhere() {
        let tree = switched(false);
        for unit in ["serial-getty@.service", "getty@.service", "console-getty.service"] {
            assert_eq!(link(&tree, unit).as_deref(), Some("/dev/null"), "{unit}");
        }
        assert_eq!(
            link(&tree, "container-getty@.service"),
            None,
            "no package brings it"
        );
        assert_eq!(link(&tree, "getty.target.wants/serial-getty@ttyS0.service"), None);
        assert!(tree.get(&TreePath::parse(DROP_IN.as_bytes()).unwrap()).is_none());
    }

    #[test]
    fn the_switch_gives_a_shell_on_the_serial_port_and_nowhere_else() {
        let tree = switched(true);
        assert_eq!(
            link(&tree, "getty.target.wants/serial-getty@ttyS0.service").as_deref(),
            Some("/usr/lib/systemd/system/serial-getty@.service")
        );
        assert_eq!(link(&tree, "serial-getty@.service"), None);
        assert_eq!(link(&tree, "getty@.service").as_deref(), Some("/dev/null"));
        assert_eq!(link(&tree, "console-getty.service").as_deref(), Some("/dev/null"));
        let drop_in = tree.get(&TreePath::parse(DROP_IN.as_bytes()).unwrap()).unwrap();
        let text = String::from_utf8(drop_in.read().unwrap()).unwrap();
        assert!(
            text.contains("\nExecStart=\nExecStart=-/usr/sbin/agetty --skip-login"),
            "{text}"
        );
    }

    fn seen(tree: &Tree) -> Result<Vec<&'static str>> {
        switches(|path| {
            let entry = tree.get(&TreePath::parse(path.as_bytes())?);
            Ok(match entry.map(|entry| &entry.kind) {
                None => Seen::Nothing,
                Some(Kind::Symlink(target)) => Seen::Link(target.clone()),
                Some(_) => Seen::Other,
            })
        })
    }

    #[test]
    fn what_was_switched_is_seen_in_the_finished_root() {
        assert_eq!(seen(&switched(false)).unwrap(), Vec::<&str>::new());
        assert_eq!(seen(&switched(true)).unwrap(), ["serial-login"]);
        for path in [DROP_IN, WANTED] {
            let mut tree = switched(false);
            let path = TreePath::parse(path.as_bytes()).unwrap();
            place(&mut tree, &path, Entry::bytes(0o644, *b"")).unwrap();
            assert_eq!(seen(&tree).unwrap(), ["serial-login"], "{path}");
        }
        let mut tree = switched(false);
        tree.remove(&TreePath::parse(b"etc/systemd/system/getty@.service").unwrap());
        let error = seen(&tree).unwrap_err();
        assert!(error.to_string().contains("getty@.service"), "{error}");
    }

    #[test]
    fn a_login_without_a_shell_is_refused() {
        let mut tree = tree();
        tree.remove(&TreePath::parse(b"usr/bin/bash").unwrap());
        let error = apply(&mut tree, true).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), ExitCode::Usage);
        assert!(apply(&mut tree, false).is_ok());
    }
}
