//! Entries: nodes that are found, made or listed, with their attributes and a lookup that counts.

use super::convert;
use super::session::Session;
use super::tree::Node;
use crate::fuse::abi::Attr;
use crate::fuse::{Context, Creation, DirSink, Entry, Result};
use kfs::NewNode;
use rustix::io::Errno;
use std::time::Duration;

impl Session {
    pub(super) fn attr(&self, node: &Node) -> (Attr, Duration) {
        (node.attr(), self.rules.timeout)
    }

    /// The entry of a node whose lookup counts.
    pub(super) fn entry(&self, node: &Node) -> Entry {
        Entry {
            nodeid: self.nodes.remember(node),
            generation: u64::from(node.generation()),
            attr: node.attr(),
            attr_timeout: self.rules.timeout,
            entry_timeout: self.rules.timeout,
        }
    }

    pub(super) fn make(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        node: NewNode<'_>,
        creation: &Creation<'_>,
    ) -> Result<Node> {
        let directory = self.nodes.get(parent)?;
        if self.is_snapshot_dir(&directory, name) {
            return Err(Errno::EXIST);
        }
        let node = Self::new_node(ctx, node, creation);
        let made = directory.fs().create(&directory, name, &node);
        Ok(directory.sibling(made.map_err(directory.errno())?))
    }

    pub(super) fn new_node<'a>(
        ctx: &Context,
        node: NewNode<'a>,
        creation: &Creation<'a>,
    ) -> NewNode<'a> {
        NewNode {
            umask: creation.umask as u16 & 0o777,
            uid: ctx.uid,
            gid: ctx.gid,
            label: creation.security.map(|label| (label.name, label.value)),
            ..node
        }
    }

    /// Adds an entry of a listing, with attributes and a lookup where they are asked for; false when
    /// the sink is full.
    pub(super) fn add_listed(
        &self,
        directory: &Node,
        listed: &kfs::ListedEntry<'_>,
        entries: &mut DirSink<'_, '_>,
    ) -> bool {
        let ino = directory.ino_of(listed.entry.inode);
        let kind = convert::dirent_kind(listed.entry.file_type);
        if !entries.wants_entries() {
            return entries.add(ino, listed.cookie, kind, listed.name);
        }
        let mut entry = Entry::default();
        entry.attr.ino = ino;
        let is_dot = matches!(listed.name, b"." | b"..");
        if !is_dot && entries.fits(listed.name) {
            // An entry without an inode is still listed; looking it up will tell what is wrong.
            if let Ok(inode) = directory.fs().inode_of(&listed.entry) {
                entry = self.entry(&directory.sibling(inode));
            }
        }
        entries.add_entry(&entry, listed.cookie, kind, listed.name)
    }
}
