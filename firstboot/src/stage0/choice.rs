//! Which of the disks that have the root is the machine's own: a decision about partition tables, nothing else.
//!
//! The root's content can't be forged, but its bytes and all identifiers of an image are public. A tenant's raw volume
//! may hold a copy of them, with a state partition of the tenant's own beside: the machine would take its kubelet's
//! credentials from there. So the root, its hash tree and the state are those of the disk that the firmware started.
//! It told us the id of the boot partition that it read there. Every disk of one image begins with the same id, so
//! first boot gives a machine's disk an id of its own (see [`crate::state::plan`]), which no copy of the image has.
//! A copy of this very disk has it; then there are two disks that nobody can tell apart, and the machine stops.

use crate::gpt::{Guid, Table};

/// What is to be done with the disks that are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// None is the machine's own: it has to appear yet.
    Wait,
    /// This one, by its position, and at once: the id that the firmware read is this machine's alone.
    Take(usize),
    /// This one, by its position, when no more disks appear: another might look the same.
    Settle(usize),
    /// All of these, by their positions, might be.
    Refuse(Vec<usize>),
}

/// Chooses among the tables of disks that have the root and its hash tree. `booted` is the firmware's word.
pub(super) fn choose(booted: Option<Guid>, tables: &[&Table]) -> Choice {
    let fits = |table: &Table| booted.is_none_or(|id| has(table, id));
    let fitting: Vec<usize> = (0..tables.len()).filter(|index| fits(tables[*index])).collect();
    match fitting[..] {
        [] => Choice::Wait,
        [one] if booted.is_some_and(|id| !id.is_derived()) => Choice::Take(one),
        [one] => Choice::Settle(one),
        _ => Choice::Refuse(fitting),
    }
}

/// Whether a partition of the table has this id.
pub(super) fn has(table: &Table, id: Guid) -> bool {
    table.partitions.iter().any(|partition| partition.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpt::Partition;

    const PUBLIC: Guid = Guid::from_text_order([1, 1, 1, 1, 1, 1, 0x81, 1, 0x81, 1, 1, 1, 1, 1, 1, 1]);
    const OWN: Guid = Guid::from_text_order([2, 2, 2, 2, 2, 2, 0x42, 2, 0x82, 2, 2, 2, 2, 2, 2, 2]);
    const OTHER: Guid = Guid::from_text_order([3, 3, 3, 3, 3, 3, 0x43, 3, 0x83, 3, 3, 3, 3, 3, 3, 3]);

    fn table(boot_partition: Option<Guid>) -> Table {
        let partition = |(number, id)| Partition {
            number,
            kind: OTHER,
            id,
            first: 2048 * u64::from(number),
            last: 2048 * u64::from(number) + 2047,
            attributes: 0,
            name: String::new(),
        };
        Table {
            sector_size: 512,
            disk: OTHER,
            first_usable: 34,
            last_usable: 1 << 20,
            entries: 128,
            partitions: boot_partition
                .into_iter()
                .map(|id| (1, id))
                .chain([(2, OTHER)])
                .map(partition)
                .collect(),
        }
    }

    fn chosen(booted: Option<Guid>, disks: &[Option<Guid>]) -> Choice {
        let tables: Vec<Table> = disks.iter().map(|id| table(*id)).collect();
        choose(booted, &tables.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_disk_with_an_id_of_its_own_is_taken_wherever_it_stands() {
        assert_eq!(chosen(Some(OWN), &[Some(OWN)]), Choice::Take(0));
        assert_eq!(
            chosen(Some(OWN), &[None, Some(PUBLIC), Some(OWN)]),
            Choice::Take(2)
        );
    }

    #[test]
    fn an_id_that_every_copy_of_the_image_has_is_believed_once_all_disks_are_there() {
        assert_eq!(chosen(Some(PUBLIC), &[None, Some(PUBLIC)]), Choice::Settle(1));
        assert_eq!(chosen(None, &[Some(PUBLIC)]), Choice::Settle(0));
    }

    #[test]
    fn disks_that_cannot_be_told_apart_are_all_refused() {
        assert_eq!(
            chosen(Some(OWN), &[Some(OWN), None, Some(OWN)]),
            Choice::Refuse(vec![0, 2])
        );
        assert_eq!(
            chosen(Some(PUBLIC), &[Some(PUBLIC), Some(PUBLIC)]),
            Choice::Refuse(vec![0, 1])
        );
        assert_eq!(chosen(None, &[Some(OWN), None]), Choice::Refuse(vec![0, 1]));
    }

    #[test]
    fn no_disk_is_taken_in_place_of_the_one_that_the_firmware_started() {
        assert_eq!(chosen(Some(OWN), &[Some(PUBLIC), None]), Choice::Wait);
        assert_eq!(chosen(Some(PUBLIC), &[]), Choice::Wait);
        assert_eq!(chosen(None, &[]), Choice::Wait);
    }
}
