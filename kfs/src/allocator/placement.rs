//! Where new inodes go: Orlov's rules for directories, nearness for everything else. Pure functions.
//!
//! Directories made in the root are spread over the volume, each to grow a tree of its own; other
//! directories stay near their parents while there is room for their files, too. All figures are
//! those of a flex group, which is one group on volumes without flex_bg.

/// Figures of a flex group, or averages of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) free_inodes: u64,
    pub(super) free_blocks: u64,
    pub(super) directories: u64,
}

/// Flex groups looked at for one directory, at the most.
const LOOKS_MAX: u32 = 1024;

/// What directory placement goes by.
pub(super) struct Volume<F: Fn(u32) -> Figures> {
    /// Number of flex groups.
    pub(super) count: u32,
    pub(super) average: Figures,
    /// What an empty flex group has.
    pub(super) inodes: u64,
    pub(super) blocks: u64,
    pub(super) figures: F,
}

impl<F: Fn(u32) -> Figures> Volume<F> {
    fn from(&self, start: u32) -> impl Iterator<Item = (u32, Figures)> {
        let (start, count) = (u64::from(start), u64::from(self.count));
        (0..count.min(LOOKS_MAX.into())).map(move |step| {
            let flex = ((start + step) % count) as u32;
            (flex, (self.figures)(flex))
        })
    }

    /// For a directory in the root: the flex group with the fewest directories of those that have
    /// about average room or more, searched from `start` on.
    pub(super) fn spread(&self, start: u32) -> Option<u32> {
        // On a new volume the superblock's copies make all the difference: they do not count.
        let average = Figures {
            free_inodes: self.average.free_inodes / 8 * 7,
            free_blocks: self.average.free_blocks / 8 * 7,
            ..self.average
        };
        self.from(start % self.count)
            .filter(|(_, figures)| {
                figures.free_inodes > 0
                    && figures.free_inodes >= average.free_inodes
                    && figures.free_blocks >= average.free_blocks
            })
            .min_by_key(|(_, figures)| figures.directories)
            .map(|(flex, _)| flex)
    }

    /// For any other directory: the first flex group from the parent's on that is not crowded with
    /// directories and has room for files; else one with average room.
    pub(super) fn near(&self, parent: u32) -> Option<u32> {
        let average = self.average;
        let directories_max = average.directories + self.inodes / 16;
        let inodes_min = average.free_inodes.saturating_sub(self.inodes / 4).max(1);
        let blocks_min = average.free_blocks.saturating_sub(self.blocks / 4);
        let roomy = |figures: Figures| {
            figures.directories < directories_max
                && figures.free_inodes >= inodes_min
                && figures.free_blocks >= blocks_min
        };
        let average_room = |figures: Figures| figures.free_inodes >= average.free_inodes.max(1);
        let first = |fits: &dyn Fn(Figures) -> bool| {
            self.from(parent)
                .find(|&(_, figures)| fits(figures))
                .map(|(flex, _)| flex)
        };
        first(&roomy).or_else(|| first(&average_room))
    }
}

/// Groups in the order in which one is sought for an inode: `home`, the others of its flex group,
/// then, quadratically further away, to leave the neighbours to their own, then all.
pub(super) fn near_groups(home: u32, flex: u32, count: u32) -> impl Iterator<Item = u32> {
    let first = home - home % flex;
    let neighbours = (first..first.saturating_add(flex).min(count)).filter(move |&nr| nr != home);
    let wide = |nr: u32| u64::from(nr);
    let doubling = std::iter::successors(Some(1_u64), |step| Some(step * 2));
    let quadratic =
        doubling
            .take_while(move |&step| step < wide(count))
            .scan(wide(home), move |at, step| {
                *at = (*at + step) % wide(count);
                Some(*at as u32)
            });
    let all = (1..wide(count)).map(move |step| ((wide(home) + step) % wide(count)) as u32);
    std::iter::once(home)
        .chain(neighbours)
        .chain(quadratic)
        .chain(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(free_inodes: u64, free_blocks: u64, directories: u64) -> Figures {
        Figures {
            free_inodes,
            free_blocks,
            directories,
        }
    }

    fn volume(flexes: &[Figures]) -> Volume<impl Fn(u32) -> Figures + '_> {
        let count = flexes.len() as u64;
        let sum = |value: fn(&Figures) -> u64| flexes.iter().map(value).sum::<u64>() / count;
        Volume {
            count: count as u32,
            average: figures(
                sum(|f| f.free_inodes),
                sum(|f| f.free_blocks),
                sum(|f| f.directories),
            ),
            inodes: 1000,
            blocks: 10_000,
            figures: |flex| flexes[flex as usize],
        }
    }

    #[test]
    fn top_directories_go_where_directories_are_few_and_room_is() {
        let flexes = [
            figures(900, 9000, 5),
            figures(900, 9000, 2),
            figures(900, 10, 0),
            figures(10, 9000, 0),
        ];
        assert_eq!(volume(&flexes).spread(3), Some(1));
        let full = [figures(0, 0, 9), figures(0, 0, 9)];
        assert_eq!(volume(&full).spread(0), None);
    }

    #[test]
    fn equal_groups_take_turns_by_start() {
        let flexes = [figures(900, 9000, 0); 4];
        assert_eq!(volume(&flexes).spread(2), Some(2));
        assert_eq!(volume(&flexes).spread(7), Some(3));
    }

    #[test]
    fn directories_stay_near_until_it_is_crowded() {
        let roomy = figures(900, 9000, 10);
        assert_eq!(volume(&[roomy; 4]).near(2), Some(2));
        let crowded = [roomy, roomy, figures(800, 8000, 500), roomy];
        assert_eq!(volume(&crowded).near(2), Some(3));
        let no_blocks = [roomy, roomy, figures(900, 0, 10), roomy];
        assert_eq!(volume(&no_blocks).near(2), Some(3));
        let full = [figures(0, 9000, 10); 4];
        assert_eq!(volume(&full).near(2), None);
    }

    #[test]
    fn near_groups_reach_all_from_home_on() {
        for (home, flex, count) in [
            (0, 1, 1),
            (5, 4, 23),
            (22, 16, 23),
            (7, 1, 64),
            (3, 1 << 31, 9),
        ] {
            let order: Vec<u32> = near_groups(home, flex, count).collect();
            assert_eq!(order[0], home);
            let mut reached = order.clone();
            reached.sort_unstable();
            reached.dedup();
            assert_eq!(reached, (0..count).collect::<Vec<_>>());
        }
        assert_eq!(
            near_groups(5, 4, 23).take(7).collect::<Vec<_>>(),
            [5, 4, 6, 7, 6, 8, 12]
        );
    }
}
