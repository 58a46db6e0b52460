//! From what the definitions ask for to exact packages, components and toolchains.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::drift::archive_drift;
use super::{
    Lock, LockedComponent, LockedDownload, LockedPackage, LockedRequest, LockedSuite, LockedToolchain,
};
use crate::archive::index::Package;
use crate::archive::solver::{Problems, Universe, solve};
use crate::archive::suites::Snapshot;
use crate::definition::component::Source;
use crate::definition::{Component, Image, Role, Toolchains};
use crate::failure::{ExitCode, Failure};

/// Version of the format.
pub(super) const SCHEMA: u32 = 1;

/// Whether packages may move to other versions than those of the old lock.
pub enum Pins<'a> {
    /// Take the newest of everything; the old lock, if there is one, only says how new the archive must be.
    Newest(Option<&'a Lock>),
    /// Keep the old lock's versions where the archive still has them and the definitions allow them.
    Keep(&'a Lock),
}

/// Everything that a lock of `image` is about.
pub(super) struct Wanted {
    pub(super) requests: Vec<LockedRequest>,
    pub(super) components: Vec<LockedComponent>,
    pub(super) toolchains: Vec<LockedToolchain>,
}

impl Wanted {
    /// What the definitions ask for. `components` are all that any role of the image names.
    pub(super) fn new(
        image: &Image,
        roles: &[Role],
        components: &[Component],
        toolchains: Option<&Toolchains>,
    ) -> Result<Self> {
        let mut requests = vec![request(None, [&image.manifest.packages].into_iter())];
        let compile: BTreeSet<String> = image.manifest.compile.install.iter().cloned().collect();
        if !compile.is_empty() {
            requests.push(LockedRequest {
                role: None,
                compile: true,
                install: compile.into_iter().collect(),
                leave_out: Vec::new(),
            });
        }
        let mut roles: Vec<_> = roles.iter().collect();
        roles.sort_by(|a, b| a.name.cmp(&b.name));
        for role in roles {
            let here = role.manifest.on.get(&image.name).map(|on| &on.packages);
            requests.push(request(
                Some(&role.name),
                std::iter::once(&role.manifest.packages).chain(here),
            ));
        }
        let mut locked = Vec::new();
        for component in components {
            let source = component
                .source_digest()
                .with_context(|| format!("component {}", component.name))?;
            let (name, version) = (component.name.clone(), component.manifest.version.clone());
            locked.push(LockedComponent {
                name,
                version,
                source,
                download: downloads(component),
                built: None,
            });
        }
        locked.sort_by(|a, b| a.name.cmp(&b.name));
        locked.dedup_by(|a, b| a.name == b.name);
        let pin = |name: &str, pin: &crate::definition::toolchain::Pin| LockedToolchain {
            name: name.to_owned(),
            version: pin.version.clone(),
            hash: pin.hash.clone(),
            servers: pin.servers.clone(),
        };
        let pins = toolchains.map(|pins| vec![pin("go", &pins.go), pin("rust", &pins.rust)]);
        Ok(Self {
            requests,
            components: locked,
            toolchains: pins.unwrap_or_default(),
        })
    }
}

fn request<'a>(
    role: Option<&str>,
    parts: impl Iterator<Item = &'a crate::definition::image::Packages> + Clone,
) -> LockedRequest {
    let install: BTreeSet<String> = parts
        .clone()
        .flat_map(|part| part.install.iter().cloned())
        .collect();
    let leave_out: BTreeSet<String> = parts
        .flat_map(|part| &part.leave_out)
        .filter_map(|leave_out| leave_out.package.clone())
        .collect();
    LockedRequest {
        role: role.map(str::to_owned),
        compile: false,
        install: install.into_iter().collect(),
        leave_out: leave_out.into_iter().collect(),
    }
}

/// Chooses every package of the image and all its roles from what the archive has now.
///
/// # Errors
/// [`ExitCode::Usage`] when no packages satisfy the definitions, [`ExitCode::Mismatch`] when the archive is older than
/// the old lock.
pub fn resolve(
    image: &Image,
    roles: &[Role],
    components: &[Component],
    toolchains: Option<&Toolchains>,
    snapshot: &Snapshot,
    pins: &Pins<'_>,
) -> Result<Lock> {
    let wanted = Wanted::new(image, roles, components, toolchains)?;
    let (previous, pinned): (_, BTreeMap<String, String>) = match pins {
        Pins::Newest(previous) => (*previous, BTreeMap::new()),
        Pins::Keep(old) => {
            let pins = old
                .package
                .iter()
                .map(|package| (package.name.clone(), package.version.clone()));
            (Some(*old), pins.collect())
        }
    };
    if let Some(previous) = previous {
        refuse_older(snapshot, previous)?;
    }
    let solved = |pinned| {
        choose(
            &Universe::new(snapshot.packages.clone(), pinned),
            &wanted.requests,
        )
    };
    let newest = BTreeMap::new();
    let packages = match solved(&pinned) {
        // A new package may need newer versions than the old lock has. Then all move, and the changes say so.
        Err(_) if !pinned.is_empty() => solved(&newest),
        result => result,
    };
    let packages = packages.with_context(|| {
        let message = format!("{}/image.toml and roles", image.folder.display());
        Failure::new(ExitCode::Usage, message)
    })?;
    let suites = snapshot.suites.iter().zip(&image.manifest.archive.suites);
    let suite = suites
        .map(|(state, suite)| LockedSuite {
            name: state.name.clone(),
            components: suite.components.clone(),
            inrelease: state.inrelease,
            date: state.release.date.to_string(),
            signer: state.release.signer.clone(),
        })
        .collect();
    let newest = snapshot
        .suites
        .iter()
        .map(|state| state.release.date.as_second())
        .max()
        .context("no suites")?;
    Ok(Lock {
        schema: SCHEMA,
        epoch: u32::try_from(newest).context("the archive's date is after 2106")?,
        request: wanted.requests,
        suite,
        package: packages
            .into_values()
            .map(|chosen| chosen.locked(snapshot))
            .collect(),
        component: wanted.components,
        toolchain: wanted.toolchains,
    })
}

/// The lock `old` with the components and compilers that the definitions ask for now, if all that they ask of the archive
/// is what it answers already: then no archive need be asked. What comes out of the components is left open.
pub fn keep(
    old: &Lock,
    image: &Image,
    roles: &[Role],
    components: &[Component],
    toolchains: Option<&Toolchains>,
) -> Result<Option<Lock>> {
    let wanted = Wanted::new(image, roles, components, toolchains)?;
    if !archive_drift(old, &wanted, image).is_empty() {
        return Ok(None);
    }
    Ok(Some(Lock {
        component: wanted.components,
        toolchain: wanted.toolchains,
        ..old.clone()
    }))
}

/// A mirror that shows an older state than the last lock saw is behind, or somebody hides security updates.
fn refuse_older(snapshot: &Snapshot, previous: &Lock) -> Result<()> {
    for state in &snapshot.suites {
        let Some(before) = previous.suite.iter().find(|before| before.name == state.name) else {
            continue;
        };
        let name = &state.name;
        let date: Timestamp = before.date.parse().map_err(|_| {
            Failure::new(
                ExitCode::Lock,
                format!("suite {name} of the lock: `{}` is no date", before.date),
            )
        })?;
        if state.release.date < date {
            let now = state.release.date;
            let message = format!("suite {name} is dated {now}, older than the lock's {date}");
            let hint = "the mirror is behind: choose another one with --mirror URL; to go back all the same, run \
                        `kimage lock --update --allow-old`";
            return Err(Failure::new(ExitCode::Mismatch, message).hint(hint).into());
        }
    }
    Ok(())
}

/// A package and who needs it.
struct Chosen {
    package: Arc<Package>,
    base: bool,
    roles: Vec<String>,
    compile: bool,
}

impl Chosen {
    fn new(package: Arc<Package>) -> Self {
        Self {
            package,
            base: false,
            roles: Vec::new(),
            compile: false,
        }
    }

    fn locked(self, snapshot: &Snapshot) -> LockedPackage {
        LockedPackage {
            name: self.package.name.clone(),
            version: self.package.version.clone(),
            architecture: self.package.architecture.clone(),
            source: self
                .package
                .source
                .clone()
                .filter(|source| *source != self.package.name),
            suite: snapshot.suites[self.package.suite].name.clone(),
            path: self.package.path.clone(),
            size: self.package.size,
            sha256: self.package.sha256,
            base: self.base,
            roles: self.roles,
            compile: self.compile,
        }
    }
}

/// Solves for the base, then for each role with the whole base required, so that roles only ever add to it, and for
/// what compiles components by itself. There is one version of each package, so those agree where they meet.
fn choose(universe: &Universe, requests: &[LockedRequest]) -> Result<BTreeMap<String, Chosen>> {
    let mut chosen: BTreeMap<String, Chosen> = BTreeMap::new();
    let mut base: BTreeSet<String> = BTreeSet::new();
    let mut base_left_out: BTreeSet<String> = BTreeSet::new();
    for request in requests {
        let mut install: BTreeSet<String> = request.install.iter().cloned().collect();
        let mut left_out: BTreeSet<String> = request.leave_out.iter().cloned().collect();
        let who = match &request.role {
            _ if request.compile => "compile".to_owned(),
            Some(role) => {
                left_out.extend(base_left_out.iter().cloned());
                install.extend(base.iter().cloned());
                format!("role {role}")
            }
            None => {
                let essential = universe.essential().filter(|name| !left_out.contains(*name));
                install.extend(essential.map(str::to_owned));
                base_left_out.clone_from(&left_out);
                "base".to_owned()
            }
        };
        let problems = Problems {
            install: &install,
            left_out: &left_out,
        };
        let found = solve(universe, &problems).context(who)?;
        if request.role.is_none() && !request.compile {
            base = found.iter().map(|package| package.name.clone()).collect();
        }
        for package in found {
            let inherited = request.role.is_some() && base.contains(&package.name);
            let entry = chosen
                .entry(package.name.clone())
                .or_insert_with(|| Chosen::new(package));
            match &request.role {
                _ if request.compile => entry.compile = true,
                Some(role) if !inherited => entry.roles.push(role.clone()),
                Some(_) => {}
                None => entry.base = true,
            }
        }
    }
    Ok(chosen)
}

/// What a component fetches besides Go modules and the layers of registries, which name themselves by digest.
fn downloads(component: &Component) -> Vec<LockedDownload> {
    let Source::Release(release) = &component.manifest.source else {
        return Vec::new();
    };
    vec![LockedDownload {
        url: component.manifest.expand(&release.url),
        size: release.size,
        sha256: release.sha256,
    }]
}
