//! Which packages an image needs: names in, one version of each package out, as apt would choose them without
//! Recommends. The SAT solver is resolvo; here packages become its clauses.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use anyhow::{Result, bail};
use resolvo::utils::Pool;
use resolvo::{
    Candidates, Condition, ConditionId, Dependencies, DependencyProvider, HintDependenciesAvailable,
    Interner, KnownDependencies, NameId, Problem, SolvableId, Solver, SolverCache, StringId,
    UnsolvableOrCancelled, VersionSetId, VersionSetUnionId,
};

use super::index::Package;
use super::relation::{Alternatives, Relation};
use super::version;
use crate::definition::nearest;
use crate::failure::{ExitCode, Failure};

/// All packages of an archive, one version of each.
pub struct Universe {
    packages: BTreeMap<String, Arc<Package>>,
    /// Virtual name -> real names that provide it, with the version provided.
    provided: HashMap<String, Vec<(String, Option<String>)>>,
}

impl Universe {
    /// Keeps the newest version of each package; among equal versions the later suite. `pinned` overrides: a
    /// package keeps its pinned version where the archive still has it.
    pub fn new(all: Vec<Arc<Package>>, pinned: &BTreeMap<String, String>) -> Self {
        let mut packages: BTreeMap<String, Arc<Package>> = BTreeMap::new();
        for package in all {
            let better = |old: &Arc<Package>| {
                let rank = |p: &Package| pinned.get(&p.name) == Some(&p.version);
                let order = rank(&package).cmp(&rank(old));
                let order = order.then_with(|| version::compare(&package.version, &old.version));
                order.then_with(|| package.suite.cmp(&old.suite)).is_gt()
            };
            if packages.get(&package.name).is_none_or(better) {
                packages.insert(package.name.clone(), package);
            }
        }
        let mut provided: HashMap<String, Vec<(String, Option<String>)>> = HashMap::new();
        for package in packages.values() {
            for (name, version) in &package.provides {
                provided
                    .entry(name.clone())
                    .or_default()
                    .push((package.name.clone(), version.clone()));
            }
        }
        Self { packages, provided }
    }

    /// The package called `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Package>> {
        self.packages.get(name)
    }

    /// Names of all essential packages.
    pub fn essential(&self) -> impl Iterator<Item = &str> {
        self.packages
            .values()
            .filter(|package| package.essential)
            .map(|package| package.name.as_str())
    }

    /// Real packages that satisfy `relation`, best first: the package of that name, then providers by priority and
    /// name.
    fn candidates(&self, relation: &Relation) -> Vec<&Arc<Package>> {
        let own = self
            .packages
            .get(&relation.name)
            .filter(|package| relation.admits(&package.version));
        let providers = self.provided.get(&relation.name).into_iter().flatten();
        let providers = providers.filter(|(_, version)| relation.admits_provided(version.as_deref()));
        let mut providers: Vec<_> = providers
            .filter_map(|(name, _)| self.packages.get(name))
            .collect();
        providers.sort_by_key(|package| (package.priority, package.name.clone()));
        own.into_iter().chain(providers).collect()
    }
}

/// What to solve.
pub struct Problems<'a> {
    /// Names that must be there.
    pub install: &'a BTreeSet<String>,
    /// Names that count as there and never are.
    pub left_out: &'a BTreeSet<String>,
}

/// The packages for `problem`, sorted by name. An error tells, in the solver's words, why there are none.
pub fn solve(universe: &Universe, problem: &Problems<'_>) -> Result<Vec<Arc<Package>>> {
    for name in problem.install {
        check_name(universe, name)?;
        if problem.left_out.contains(name) {
            bail!("package `{name}` is both installed and left out");
        }
    }
    let provider = Provider::new(universe, problem.left_out);
    let requirements = problem
        .install
        .iter()
        .map(|name| provider.requirement(&vec![plain(name)]));
    let requirements: Vec<_> = requirements
        .flatten()
        .map(|r| resolvo::ConditionalRequirement {
            condition: None,
            requirement: r,
        })
        .collect();
    let mut solver = Solver::new(provider);
    match solver.solve(Problem::new().requirements(requirements)) {
        Ok(solvables) => {
            let provider = solver.provider();
            let mut found: Vec<_> = solvables
                .into_iter()
                .map(|id| Arc::clone(provider.package(id)))
                .collect();
            found.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(found)
        }
        Err(UnsolvableOrCancelled::Unsolvable(conflict)) => {
            bail!(
                "no set of packages satisfies the definition\n{}",
                conflict.display_user_friendly(&solver)
            )
        }
        Err(UnsolvableOrCancelled::Cancelled(_)) => bail!("the solver was cancelled"),
    }
}

fn plain(name: &str) -> Relation {
    Relation {
        name: name.to_owned(),
        version: None,
    }
}

/// Refuses a name that no package has before the solver says so in its own words.
fn check_name(universe: &Universe, name: &str) -> Result<()> {
    if universe.packages.contains_key(name) {
        return Ok(());
    }
    let providers = universe.candidates(&plain(name));
    if !providers.is_empty() {
        let names: Vec<&str> = providers.iter().map(|package| package.name.as_str()).collect();
        let message = format!("package `{name}` is virtual");
        let hint = format!("name one that provides it: {}", names.join(", "));
        return Err(Failure::new(ExitCode::Usage, message).hint(hint).into());
    }
    let failure = Failure::new(
        ExitCode::Usage,
        format!("package `{name}` is in no suite of the archive"),
    );
    Err(match nearest(name, universe.packages.keys()) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")).into(),
        None => failure.into(),
    })
}

/// A version set holds the one package it is about, or its absence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Choice {
    /// Version of the real package.
    version: String,
    /// Conflicts: the set of all versions but this one, which is none.
    excluded: bool,
}

impl Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.excluded {
            write!(f, "not {}", self.version)
        } else {
            f.write_str(&self.version)
        }
    }
}

impl resolvo::utils::VersionSet for Choice {
    type V = String;
}

struct Provider<'a> {
    universe: &'a Universe,
    left_out: &'a BTreeSet<String>,
    pool: Pool<Choice>,
    solvables: RefCell<HashMap<NameId, SolvableId>>,
}

impl<'a> Provider<'a> {
    fn new(universe: &'a Universe, left_out: &'a BTreeSet<String>) -> Self {
        Self {
            universe,
            left_out,
            pool: Pool::default(),
            solvables: RefCell::default(),
        }
    }

    fn name(&self, package: &Package) -> NameId {
        self.pool.intern_package_name(package.name.as_str())
    }

    fn choice(&self, package: &Package, excluded: bool) -> VersionSetId {
        let name = self.name(package);
        self.pool.intern_version_set(
            name,
            Choice {
                version: package.version.clone(),
                excluded,
            },
        )
    }

    fn package(&self, solvable: SolvableId) -> &'a Arc<Package> {
        let name = self.pool.resolve_solvable(solvable).name;
        &self.universe.packages[self.pool.resolve_package_name(name)]
    }

    /// One union over all real packages that satisfy any alternative. Each version set is about one real name:
    /// resolvo takes a set's name for that of all its candidates, so a virtual name must never be one.
    fn requirement(&self, alternatives: &Alternatives) -> Option<resolvo::Requirement> {
        if alternatives
            .iter()
            .any(|relation| self.left_out.contains(&relation.name))
        {
            return None;
        }
        let mut seen = BTreeSet::new();
        let found = alternatives
            .iter()
            .flat_map(|relation| self.universe.candidates(relation));
        let found = found.filter(|package| !self.left_out.contains(&package.name));
        let sets: Vec<_> = found
            .filter(|package| seen.insert(&package.name))
            .map(|package| self.choice(package, false))
            .collect();
        match &sets[..] {
            // Nothing satisfies it: a name without candidates lets the solver explain.
            [] => {
                let missing = alternatives
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" | ");
                let name = self.pool.intern_package_name(missing);
                let set = self.pool.intern_version_set(
                    name,
                    Choice {
                        version: "any".to_owned(),
                        excluded: false,
                    },
                );
                Some(set.into())
            }
            [one] => Some((*one).into()),
            [first, rest @ ..] => Some(
                self.pool
                    .intern_version_set_union(*first, rest.iter().copied())
                    .into(),
            ),
        }
    }
}

impl Interner for Provider<'_> {
    type NameId = NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl Display + '_ {
        let package = self.package(solvable);
        format!("{} {}", package.name, package.version)
    }

    fn display_name(&self, name: NameId) -> impl Display + '_ {
        self.pool.resolve_package_name(name).clone()
    }

    fn display_version_set(&self, set: VersionSetId) -> impl Display + '_ {
        self.pool.resolve_version_set(set).clone()
    }

    fn display_string(&self, string: StringId) -> impl Display + '_ {
        self.pool.resolve_string(string).to_owned()
    }

    fn version_set_name(&self, set: VersionSetId) -> NameId {
        self.pool.resolve_version_set_package_name(set)
    }

    fn solvable_name(&self, solvable: SolvableId) -> NameId {
        self.pool.resolve_solvable(solvable).name
    }

    fn version_sets_in_union(&self, union: VersionSetUnionId) -> impl Iterator<Item = VersionSetId> {
        self.pool.resolve_version_set_union(union)
    }

    fn resolve_condition(&self, condition: ConditionId) -> Condition {
        self.pool.resolve_condition(condition).clone()
    }
}

impl DependencyProvider for Provider<'_> {
    async fn filter_candidates(
        &self,
        candidates: &[SolvableId],
        set: VersionSetId,
        inverse: bool,
    ) -> Vec<SolvableId> {
        let excluded = self.pool.resolve_version_set(set).excluded;
        // There is one version of each package, so a set holds every candidate or, excluded, none.
        if excluded == inverse {
            candidates.to_vec()
        } else {
            Vec::new()
        }
    }

    async fn get_candidates(&self, name: NameId) -> Option<Candidates> {
        let package = self.universe.packages.get(self.pool.resolve_package_name(name))?;
        let mut solvables = self.solvables.borrow_mut();
        let solvable = *solvables
            .entry(name)
            .or_insert_with(|| self.pool.intern_solvable(name, package.version.clone()));
        Some(Candidates {
            candidates: vec![solvable],
            hint_dependencies_available: HintDependenciesAvailable::All,
            ..Candidates::default()
        })
    }

    async fn sort_candidates(&self, _solver: &SolverCache<Self>, _solvables: &mut [SolvableId]) {}

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        let package = self.package(solvable);
        let requirements = package
            .depends
            .iter()
            .filter_map(|alternatives| self.requirement(alternatives));
        let requirements = requirements
            .map(|requirement| resolvo::ConditionalRequirement {
                condition: None,
                requirement,
            })
            .collect();
        let against = package
            .conflicts
            .iter()
            .flat_map(|relation| self.universe.candidates(relation));
        let against = against
            .filter(|other| other.name != package.name)
            .map(|other| self.choice(other, true));
        Dependencies::Known(KnownDependencies {
            requirements,
            constrains: against.collect(),
        })
    }

    fn should_cancel_with_value(&self) -> Option<Box<dyn Any>> {
        None
    }
}
