//! What is said about defragmentation: which files, how they lie, what was done.
//!
//! The server keeps nothing between requests. Who asks walks over the files first (`defrag-survey`, again
//! and again with the place that the last answer gave), and then has those moved that are worth it
//! (`defrag`), a second's work with each request: it may stop at any time, and nothing goes on.

use serde::{Deserialize, Serialize};

/// How the data of files lies, in bytes where the name says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayoutInfo {
    /// Runs of one kind, in the order of the file.
    pub extents: u64,
    /// Runs on the volume, in the order of the file.
    pub fragments: u64,
    /// Bytes in blocks of the files.
    pub bytes: u64,
    /// Of these, bytes in 2 MiB of a file that lie in one run from a multiple of 2 MiB on.
    pub aligned_bytes: u64,
    /// Bytes that a defragmentation would move.
    pub movable_bytes: u64,
    /// What that would gain: fragments less, and two for each 2 MiB aligned.
    pub gain: u64,
}

impl std::ops::AddAssign for LayoutInfo {
    fn add_assign(&mut self, other: Self) {
        let add = u64::saturating_add;
        self.extents = add(self.extents, other.extents);
        self.fragments = add(self.fragments, other.fragments);
        self.bytes = add(self.bytes, other.bytes);
        self.aligned_bytes = add(self.aligned_bytes, other.aligned_bytes);
        self.movable_bytes = add(self.movable_bytes, other.movable_bytes);
        self.gain = add(self.gain, other.gain);
    }
}

/// A directory that a walk is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SurveyLevel {
    /// Its inode.
    pub inode: u32,
    /// The life of the inode.
    pub generation: u32,
    /// How far it was listed.
    pub cookie: u64,
    /// Its name, for the paths in answers.
    pub name: String,
}

/// A file worth the work, or one with several names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SurveyFile {
    /// Its inode.
    pub inode: u32,
    /// The life of the inode.
    pub generation: u32,
    /// One of its paths; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Whether it has other names: it is not in the sums, and may be met again.
    pub has_links: bool,
    /// How it lies.
    pub layout: LayoutInfo,
}

/// Files that cannot be moved, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkippedFiles {
    /// They have the block maps of ext2 and ext3.
    pub block_mapped: u64,
    /// They are immutable.
    pub immutable: u64,
    /// They are damaged.
    pub damaged: u64,
    /// Their paths are too long.
    pub too_deep: u64,
}

impl std::ops::AddAssign for SkippedFiles {
    fn add_assign(&mut self, other: Self) {
        self.block_mapped += other.block_mapped;
        self.immutable += other.immutable;
        self.damaged += other.damaged;
        self.too_deep += other.too_deep;
    }
}

/// What part of a walk has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SurveyInfo {
    /// Files with a single name.
    pub files: u64,
    /// The sum over these.
    pub layout: LayoutInfo,
    /// Bytes that could lie better and stay, for snapshots see them.
    pub kept_bytes: u64,
    /// Files that cannot be moved.
    pub skipped: SkippedFiles,
    /// Files worth the work, and all with several names.
    pub candidates: Vec<SurveyFile>,
    /// Where to go on; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Vec<SurveyLevel>>,
}

/// A file to be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefragFile {
    /// Its inode.
    pub inode: u32,
    /// The life of the inode.
    pub generation: u32,
    /// The block of the file to begin with.
    #[serde(default)]
    pub from: u32,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DefragFileInfo {
    /// Its inode.
    pub inode: u32,
    /// Bytes moved.
    pub moved_bytes: u64,
    /// Parts for which there is no better place.
    pub no_room: u64,
    /// Parts that somebody changed meanwhile.
    pub changed: u64,
    /// It was deleted, or cannot be moved any more.
    pub gone: bool,
    /// The block to go on with; absent when all of the file was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
    /// How it lies now.
    pub layout: LayoutInfo,
}

/// What was done in the time that a request has: the first of the files, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DefragInfo {
    /// The files that were looked at.
    pub files: Vec<DefragFileInfo>,
}
