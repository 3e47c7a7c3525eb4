//! What a check found: findings, bounded in number, and totals.

use crate::corrupt::Corrupt;
use crate::ids::{BlockNr, GroupNr, InodeNr};
use std::fmt;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FindingKind {
    /// A field of the superblock.
    Superblock,
    /// A copy of the superblock or of the descriptors.
    Backup,
    /// A group descriptor.
    Group,
    /// The inode that keeps blocks for more descriptors.
    ResizeInode,
    /// The journal.
    Journal,
    /// The orphan list or the orphan file.
    Orphans,
    /// A field of an inode.
    Inode,
    /// An extent tree or a block map.
    BlockMap,
    /// Blocks that are claimed more than once.
    SharedBlocks,
    /// Extended attributes.
    Xattr,
    /// A block of a directory.
    Directory,
    /// The hash tree of a directory.
    HashTree,
    /// An entry of a directory.
    Entry,
    /// A directory that cannot be reached, or that has two names.
    Connectivity,
    /// The count of an inode's names.
    LinkCount,
    /// A block bitmap.
    BlockBitmap,
    /// An inode bitmap.
    InodeBitmap,
    /// A count of free blocks, free inodes or directories.
    Counters,
}

impl FindingKind {
    /// Its name in reports for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Backup => "backup",
            Self::Group => "group",
            Self::ResizeInode => "resize-inode",
            Self::Journal => "journal",
            Self::Orphans => "orphans",
            Self::Inode => "inode",
            Self::BlockMap => "block-map",
            Self::SharedBlocks => "shared-blocks",
            Self::Xattr => "xattr",
            Self::Directory => "directory",
            Self::HashTree => "hash-tree",
            Self::Entry => "entry",
            Self::Connectivity => "connectivity",
            Self::LinkCount => "link-count",
            Self::BlockBitmap => "block-bitmap",
            Self::InodeBitmap => "inode-bitmap",
            Self::Counters => "counters",
        }
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing, and no damage: a backup that differs, an error on record.
    Warning,
    /// The volume is damaged.
    Error,
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// How bad it is.
    pub severity: Severity,
    /// The inode, where it is about one.
    pub inode: Option<InodeNr>,
    /// The group, where it is about one.
    pub group: Option<GroupNr>,
    /// The block of the volume, where it is about one.
    pub block: Option<BlockNr>,
    /// A sentence for people. Names from the image are escaped.
    pub text: String,
}

impl Finding {
    /// Damage.
    pub(super) fn error(kind: FindingKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            severity: Severity::Error,
            inode: None,
            group: None,
            block: None,
            text: text.into(),
        }
    }

    /// No damage, but worth knowing.
    pub(super) fn warning(kind: FindingKind, text: impl Into<String>) -> Self {
        let severity = Severity::Warning;
        Self {
            severity,
            ..Self::error(kind, text)
        }
    }

    /// Damage that one of the crate's checks has found.
    pub(super) fn corrupt(kind: FindingKind, damage: &Corrupt) -> Self {
        Self::error(kind, damage.to_string())
    }

    pub(super) fn inode(mut self, inode: InodeNr) -> Self {
        self.inode = Some(inode);
        self
    }

    pub(super) fn group(mut self, group: GroupNr) -> Self {
        self.group = Some(group);
        self
    }

    pub(super) fn block(mut self, block: BlockNr) -> Self {
        self.block = Some(block);
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The findings as they come in.
#[derive(Debug)]
pub(super) struct Findings {
    kept: Vec<Finding>,
    kept_max: usize,
    errors: u64,
    warnings: u64,
}

impl Findings {
    pub(super) fn new(kept_max: usize) -> Self {
        Self {
            kept: Vec::new(),
            kept_max,
            errors: 0,
            warnings: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.errors + self.warnings == 0
    }

    pub(super) fn add(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        if self.kept.len() < self.kept_max {
            self.kept.push(finding);
        }
    }

    /// Damage of an inode.
    pub(super) fn inode(&mut self, kind: FindingKind, nr: InodeNr, text: impl fmt::Display) {
        self.add(Finding::error(kind, format!("inode {nr}: {text}")).inode(nr));
    }

    /// Damage of an inode that one of the crate's checks has found.
    pub(super) fn corrupt(&mut self, kind: FindingKind, nr: InodeNr, damage: &Corrupt) {
        self.add(Finding::corrupt(kind, damage).inode(nr));
    }

    pub(super) fn into_report(
        self,
        totals: Totals,
        recovery: Recovery,
        is_complete: bool,
    ) -> CheckReport {
        CheckReport {
            findings: self.kept,
            errors: self.errors,
            warnings: self.warnings,
            totals,
            recovery,
            is_complete,
        }
    }
}

/// What the volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Bytes in a block.
    pub block_size: u32,
    /// Inodes of the volume.
    pub inodes: u64,
    /// Inodes in use.
    pub inodes_used: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks in use.
    pub blocks_used: u64,
    /// Directories.
    pub directories: u64,
    /// Regular files.
    pub files: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Device nodes, pipes and sockets.
    pub special: u64,
    /// Files and directories that do not lie in one piece.
    pub fragmented: u64,
}

/// What whoever opens the volume next has to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The journal must be replayed; the check saw the volume as it is after that.
    pub journal: Option<Replay>,
    /// Inodes to be deleted or truncated.
    pub orphans: u64,
}

/// What the replay of the journal, done in memory, changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replay {
    /// Transactions.
    pub transactions: u32,
    /// Blocks.
    pub blocks: u64,
}

/// The outcome in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is wrong and nothing is left to be finished.
    Clean,
    /// Nothing is wrong, but the journal must be replayed or orphans finished, which happens when
    /// the volume is opened.
    NeedsRecovery,
    /// The volume is damaged.
    Broken,
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// The first findings.
    pub findings: Vec<Finding>,
    /// Errors found, with those not listed.
    pub errors: u64,
    /// Warnings found, with those not listed.
    pub warnings: u64,
    /// What the volume holds; zeros where the check did not get that far.
    pub totals: Totals,
    /// What is left to be finished.
    pub recovery: Recovery,
    /// Whether everything was looked at; otherwise an error says why not.
    pub is_complete: bool,
}

impl CheckReport {
    /// The outcome.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.errors > 0 || !self.is_complete {
            Verdict::Broken
        } else if self.recovery != Recovery::default() {
            Verdict::NeedsRecovery
        } else {
            Verdict::Clean
        }
    }

    /// Findings that are not listed.
    #[must_use]
    pub fn omitted(&self) -> u64 {
        self.errors + self.warnings - self.findings.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_bounded_and_counted() {
        let mut findings = Findings::new(2);
        for _ in 0..5 {
            findings.add(Finding::error(FindingKind::Inode, "x"));
        }
        findings.add(Finding::warning(FindingKind::Backup, "y"));
        let report = findings.into_report(Totals::default(), Recovery::default(), true);
        assert_eq!(
            (report.findings.len(), report.errors, report.warnings),
            (2, 5, 1)
        );
        assert_eq!((report.omitted(), report.verdict()), (4, Verdict::Broken));
    }

    #[test]
    fn warnings_alone_are_clean() {
        let mut findings = Findings::new(2);
        findings.add(Finding::warning(FindingKind::Backup, "y"));
        let recovery = Recovery::default();
        let report = findings.into_report(Totals::default(), recovery, true);
        assert_eq!(report.verdict(), Verdict::Clean);
        let with = |recovery| {
            CheckReport {
                recovery,
                ..report.clone()
            }
            .verdict()
        };
        let orphans = 1;
        assert_eq!(
            with(Recovery {
                orphans,
                ..recovery
            }),
            Verdict::NeedsRecovery
        );
        let journal = Some(Replay::default());
        assert_eq!(
            with(Recovery {
                journal,
                ..recovery
            }),
            Verdict::NeedsRecovery
        );
    }
}
