//! Control groups of a machine in namespaces: a tree of its own in each of the host's hierarchies. In a common tree the
//! systemd of one machine removes groups that look empty to it while another's is about to put a service into them.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// What was killed leaves its group within this.
const EMPTY: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);
/// A group of version 1 admits nobody before it has these (cpuset(7)).
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// One machine's groups, below those of this process.
#[derive(Debug)]
pub(super) struct ControlGroups {
    folders: Vec<PathBuf>,
}

impl ControlGroups {
    /// Makes a group called `name` in each hierarchy.
    pub(super) fn new(name: &Path) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let own = own_groups(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?);
        let mut folders = Vec::new();
        for parent in own {
            let folder = parent.join(name);
            fs::create_dir(&folder).with_context(|| format!("make {}", folder.display()))?;
            inherit_cpuset(&parent, &folder)?;
            folders.push(folder);
        }
        Ok(Self { folders })
    }

    /// A line for each: the file that a process writes its number into to enter.
    pub(super) fn doors(&self) -> String {
        let door = |folder: &PathBuf| format!("{}\n", folder.join("cgroup.procs").display());
        self.folders.iter().map(door).collect()
    }

    /// Removes all, once the processes, which have been killed, are gone.
    pub(super) fn remove(self) -> Result<()> {
        let end = Instant::now() + EMPTY;
        for folder in &self.folders {
            while let Err(error) = remove_tree(folder) {
                if error.kind() != ErrorKind::ResourceBusy || Instant::now() > end {
                    return Err(error).with_context(|| format!("remove {}", folder.display()));
                }
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }
}

fn inherit_cpuset(parent: &Path, folder: &Path) -> Result<()> {
    for file in CPUSET {
        // In version 2 a group has the file only if its parent hands the controller down.
        if folder.join(file).exists()
            && let Ok(processors) = fs::read_to_string(parent.join(file))
        {
            fs::write(folder.join(file), processors)
                .with_context(|| format!("set {} of {}", file, folder.display()))?;
        }
    }
    Ok(())
}

/// The files of a group go with it; only groups can be removed.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Folders of the groups of a process, from its `/proc/PID/cgroup` (cgroups(7)) and its `/proc/PID/mountinfo`
/// (proc_pid_mountinfo(5)).
fn own_groups(groups: &str, mounts: &str) -> Vec<PathBuf> {
    mounts
        .lines()
        .filter_map(|mount| own_group(groups, mount))
        .collect()
}

fn own_group(groups: &str, mount: &str) -> Option<PathBuf> {
    let (place, filesystem) = mount.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, mount_point) = (place.next()?, place.next()?);
    let mut filesystem = filesystem.split(' ');
    let unified = match filesystem.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options: HashSet<&str> = filesystem.nth(1)?.split(',').collect();
    let group = groups.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let here = if unified {
            controllers.is_empty()
        } else {
            controllers.split(',').all(|name| options.contains(name))
        };
        here.then_some(group)
    })?;
    // A group above the mount has no folder here; the mount's own is the nearest.
    let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    Some(Path::new(mount_point).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_in_every_hierarchy_of_both_versions() {
        let groups = "3:cpuset:/\n2:cpu,cpuacct:/build\n1:name=systemd:/build/7\n0::/\n";
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
            34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset\n\
            40 31 0:37 /build /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let expected = ["cpu,cpuacct/build", "cpuset", "systemd/7", "unified"];
        let expected: Vec<PathBuf> = expected
            .iter()
            .map(|path| Path::new("/sys/fs/cgroup").join(path))
            .collect();
        assert_eq!(own_groups(groups, mounts), expected);
        let modern = "25 23 0:28 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            own_groups("0::/user.slice\n", modern),
            [Path::new("/sys/fs/cgroup/user.slice")]
        );
    }

    #[test]
    fn a_group_above_its_mount_counts_as_the_mounts_own() {
        let mount = "25 23 0:28 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_groups("0::/\n", mount), [Path::new("/sys/fs/cgroup")]);
    }
}
