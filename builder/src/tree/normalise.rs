//! Turns a configured system into an image: what belongs to one machine, one build or one moment is removed, and
//! `/var` becomes a template that first boot copies to the state filesystem.

use anyhow::{Context, Result};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use super::users::clamp_shadow;
use super::value::{Entry, Kind, Tree, TreePath};

/// Where first boot finds the content of a fresh `/var`, with owners and modes.
pub const FACTORY_VAR: &str = "usr/share/factory/var";
/// dpkg's database in the image. `/var/lib/dpkg` is a link to it, for scanners of the image and of the machine.
pub const PACKAGE_DATABASE: &str = "usr/lib/sysimage/dpkg";
const DPKG_LINK: &str = "../../usr/lib/sysimage/dpkg";
const DPKG_TMPFILES: &str = "usr/lib/tmpfiles.d/kimage-dpkg.conf";

/// Files that identify a machine, record a build, or back up what a script changed.
const REMOVED: [&str; 25] = [
    "/etc/*-",
    "/etc/.pwd.lock",
    "/etc/**/*.dpkg-{bak,dist,new,old,tmp}",
    "/etc/**/*.ucf-{dist,new,old}",
    "/etc/hostname",
    "/etc/iscsi/initiatorname.iscsi",
    "/etc/ssh/ssh_host_*",
    "/run/**",
    "/tmp/**",
    "/usr/lib/modules/*/.fresh-install",
    "/var/cache/apt/**",
    "/var/cache/debconf/**",
    "/var/cache/ldconfig/aux-cache",
    "/var/cache/man/**",
    "/var/lib/apt/lists/**",
    "/var/lib/dbus/machine-id",
    "/var/lib/dpkg/{available,lock,lock-frontend,*-old}",
    "/var/lib/dpkg/info/*.{postinst,postrm,preinst,prerm,config,templates}",
    "/var/lib/dpkg/triggers/{Lock,Unincorp}",
    "/var/lib/dpkg/updates/*",
    "/var/lib/systemd/{random-seed,credential.secret}",
    "/var/lib/ucf/{cache,registry.*,hashfile.*}",
    "/var/lib/ucf/cache/**",
    "/var/log/**",
    "/var/backups/**",
];

/// Normalises `tree` in place.
pub fn normalise(tree: &mut Tree) -> Result<()> {
    remove_traces(tree)?;
    // Empty, not absent: systemd fills it at each boot and doesn't take the boot for the machine's first one, on
    // which it would enable units by preset.
    put(tree, "etc/machine-id", Entry::bytes(0o444, *b""))?;
    put(
        tree,
        "etc/resolv.conf",
        Entry::symlink("../run/systemd/resolve/stub-resolv.conf"),
    )?;
    for name in ["etc/shadow", "etc/gshadow"] {
        clamp(tree, name)?;
    }
    move_package_database(tree)?;
    move_var(tree)?;
    put(
        tree,
        DPKG_TMPFILES,
        Entry::bytes(
            0o644,
            format!("L /var/lib/dpkg - - - - {DPKG_LINK}\n").into_bytes(),
        ),
    )?;
    Ok(())
}

/// Puts `entry` at `path`, making parents of root's where absent. What belongs below `/var` goes to its template.
pub fn place(tree: &mut Tree, path: &TreePath, entry: Entry) -> Result<()> {
    let path = match path.parts() {
        [var, rest @ ..] if var == b"var" => rest
            .iter()
            .fold(parse(FACTORY_VAR)?, |path, part| path.join(part)),
        _ => super::unpack::merged(path),
    };
    let mut parent = TreePath::root();
    for part in path.parent().unwrap_or_default().parts() {
        parent = parent.join(part);
        if tree.get(&parent).is_none() {
            tree.insert(parent.clone(), Entry::directory(0o755))?;
        }
    }
    if let (Some(old), Kind::Directory) = (tree.get(&path), &entry.kind)
        && matches!(old.kind, Kind::Directory)
    {
        return Ok(());
    }
    tree.insert(path, entry)
}

fn remove_traces(tree: &mut Tree) -> Result<()> {
    let globs = compile(&REMOVED)?;
    let matches = |path: &TreePath| globs.is_match(format!("/{}", String::from_utf8_lossy(&path.to_bytes())));
    // Folders stay: services expect theirs below /var/log and /var/cache.
    let leaf = |entry: &Entry| !matches!(entry.kind, Kind::Directory);
    let doomed = tree
        .entries()
        .filter(|(path, entry)| leaf(entry) && matches(path));
    let doomed: Vec<TreePath> = doomed.map(|(path, _)| path.clone()).collect();
    for path in doomed {
        tree.remove(&path);
    }
    Ok(())
}

fn clamp(tree: &mut Tree, name: &str) -> Result<()> {
    let path = parse(name)?;
    let Some(entry) = tree.get(&path).cloned() else {
        return Ok(());
    };
    // gshadow(5) has members where shadow(5) has the day.
    if name.ends_with("gshadow") {
        return Ok(());
    }
    let text = entry.read().with_context(|| format!("read {path}"))?;
    let text = String::from_utf8(text).with_context(|| format!("{path} is not UTF-8"))?;
    let clamped = Entry::bytes(entry.mode, clamp_shadow(&text, tree.mtime()).into_bytes());
    tree.insert(
        path,
        Entry {
            uid: entry.uid,
            gid: entry.gid,
            ..clamped
        },
    )
}

fn move_package_database(tree: &mut Tree) -> Result<()> {
    let from = parse("var/lib/dpkg")?;
    move_folder(tree, &from, &parse(PACKAGE_DATABASE)?)
}

/// `/var` is a mount point with one link in it: what scanners of the image look for.
fn move_var(tree: &mut Tree) -> Result<()> {
    let var = parse("var")?;
    let mode = tree.get(&var).map_or(0o755, |entry| entry.mode);
    move_folder(tree, &var, &parse(FACTORY_VAR)?)?;
    tree.insert(var.clone(), Entry::directory(mode))?;
    tree.insert(var.join(b"lib"), Entry::directory(0o755))?;
    for place in ["var/lib/dpkg".to_owned(), format!("{FACTORY_VAR}/lib/dpkg")] {
        put(tree, &place, Entry::symlink(DPKG_LINK))?;
    }
    Ok(())
}

fn move_folder(tree: &mut Tree, from: &TreePath, to: &TreePath) -> Result<()> {
    let moved: Vec<(TreePath, Entry)> = tree
        .subtree(from)
        .map(|(path, entry)| (path.clone(), entry.clone()))
        .collect();
    tree.remove(from);
    for (path, entry) in moved {
        let rest = &path.parts()[from.parts().len()..];
        place(
            tree,
            &rest.iter().fold(to.clone(), |path, part| path.join(part)),
            entry,
        )?;
    }
    Ok(())
}

fn put(tree: &mut Tree, path: &str, entry: Entry) -> Result<()> {
    let path = parse(path)?;
    tree.remove(&path);
    let mut parent = TreePath::root();
    for part in path.parent().unwrap_or_default().parts() {
        parent = parent.join(part);
        if tree.get(&parent).is_none() {
            tree.insert(parent.clone(), Entry::directory(0o755))?;
        }
    }
    tree.insert(path, entry)
}

fn parse(path: &str) -> Result<TreePath> {
    TreePath::parse(path.as_bytes())
}

fn compile(globs: &[&str]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(GlobBuilder::new(glob).literal_separator(true).build()?);
    }
    Ok(set.build()?)
}
