//! rename(2), with its variants.

use super::create::{NewNode, Plan, new_credits};
use super::{LINKS_MAX, file_type};
use crate::corrupt::Corrupt;
use crate::dir::{FileName, ParentEntry};
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::ids::InodeNr;
use crate::inode::{CREDITS_INODE, CREDITS_ORPHAN, Inode};
use crate::layout::inode::S_IFCHR;
use crate::storage::Handle;
use crate::sync::WriteGuard;
use std::sync::Arc;

/// What becomes of an inode that has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It loses the name.
    Replace,
    /// The rename is refused (RENAME_NOREPLACE).
    NoReplace,
    /// It gets the old name (RENAME_EXCHANGE).
    Exchange,
}

/// One side of a rename: a name in a directory.
#[derive(Clone, Copy)]
struct Place<'a> {
    directory: &'a Arc<Inode>,
    name: FileName<'a>,
    /// A node that gets the name when it is free.
    left_behind: Option<NewNode<'a>>,
}

/// What is above both directories of a rename between directories.
#[derive(Default)]
struct Above {
    old: Vec<InodeNr>,
    new: Vec<InodeNr>,
}

impl Filesystem {
    /// Gives an inode another name, atomically.
    ///
    /// # Errors
    /// `NotFound`, `Exists` (with `NoReplace`), `NotEmpty`, `IsADirectory`, `NotADirectory`,
    /// `IntoItself`, `TooManyLinks`, `NotPermitted`, `NoSpace`, `ReadOnly`, `Corrupt`, `Io`.
    pub fn rename(
        &self,
        old_directory: &Arc<Inode>,
        old_name: &[u8],
        new_directory: &Arc<Inode>,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        let old = Place::new(old_directory, self.visible_name(old_directory, old_name)?);
        let new = Place::new(new_directory, self.new_name(new_directory, new_name)?);
        self.rename_places(old, new, mode)
    }

    /// The same, and the old name becomes that of a whiteout (RENAME_WHITEOUT), as overlayfs wants it:
    /// a character device with the number zero, of the owner in `node`.
    ///
    /// # Errors
    /// As [`Filesystem::rename`]; `Invalid` with `Exchange`.
    pub fn rename_with_whiteout(
        &self,
        old_directory: &Arc<Inode>,
        old_name: &[u8],
        new_directory: &Arc<Inode>,
        new_name: &[u8],
        mode: RenameMode,
        owner: &NewNode<'_>,
    ) -> Result<()> {
        if mode == RenameMode::Exchange {
            return Err(Error::Invalid);
        }
        let mut old = Place::new(old_directory, self.visible_name(old_directory, old_name)?);
        let new = Place::new(new_directory, self.new_name(new_directory, new_name)?);
        old.left_behind = Some(NewNode {
            mode: S_IFCHR,
            uid: owner.uid,
            gid: owner.gid,
            ..NewNode::default()
        });
        self.rename_places(old, new, mode)
    }

    fn rename_places(&self, old: Place<'_>, new: Place<'_>, mode: RenameMode) -> Result<()> {
        let (old_directory, new_directory) = (old.directory, new.directory);
        if old.name.is_dot() || new.name.is_dot() {
            return Err(Error::Busy);
        }
        // Before locks are taken, whose order is that of directories.
        if !(old_directory.is_directory() && new_directory.is_directory()) {
            return Err(Error::NotADirectory);
        }
        // While it is held no directory moves, so ancestors stay ancestors.
        let is_across = old_directory.nr() != new_directory.nr();
        let _rename = is_across.then(|| self.rename.lock());
        let above = if is_across {
            Above {
                old: self.ancestors(old_directory)?,
                new: self.ancestors(new_directory)?,
            }
        } else {
            Above::default()
        };
        let replaced = {
            let _directories = lock_directories(old_directory, new_directory, &above);
            self.check_entries_changeable(old_directory, true)?;
            self.check_entries_changeable(new_directory, mode == RenameMode::Exchange)?;
            self.with_space(|| self.rename_locked(old, new, mode, &above))?
        };
        if let Some(inode) = replaced {
            self.delete_if_nameless(&inode);
        }
        Ok(())
    }

    /// The directories above one, from its parent to the root. The rename lock is held.
    fn ancestors(&self, directory: &Arc<Inode>) -> Result<Vec<InodeNr>> {
        let mut above = Vec::new();
        let mut current = Arc::clone(directory);
        while current.nr() != InodeNr::ROOT && current.state().fields().links_count() > 0 {
            current = self.parent(&current)?;
            if above.contains(&current.nr()) {
                return Err(Corrupt::DirectoryLoop {
                    inode: current.nr(),
                }
                .into());
            }
            above.push(current.nr());
        }
        Ok(above)
    }

    /// Does the rename with both directories locked, and returns an inode that lost a name.
    fn rename_locked(
        &self,
        old: Place<'_>,
        new: Place<'_>,
        mode: RenameMode,
        above: &Above,
    ) -> Result<Option<Arc<Inode>>> {
        let moved = self.find(old.directory, old.name)?.ok_or(Error::NotFound)?;
        let target = self.find(new.directory, new.name)?;
        moved.check_changeable()?;
        if moved.nr() == new.directory.nr() || above.new.contains(&moved.nr()) {
            return Err(Error::IntoItself);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(Error::Exists),
            (RenameMode::Exchange, None) => Err(Error::NotFound),
            (_, Some(target)) if target.nr() == moved.nr() => Ok(None),
            (RenameMode::Exchange, Some(target)) => {
                target.check_changeable()?;
                if target.nr() == old.directory.nr() || above.old.contains(&target.nr()) {
                    return Err(Error::IntoItself);
                }
                self.exchange(old, new, &moved, &target)?;
                Ok(None)
            }
            (_, Some(target)) if target.nr() == old.directory.nr() => {
                // It holds at least the inode that moves.
                Err(if moved.is_directory() {
                    Error::NotEmpty
                } else {
                    Error::IsADirectory
                })
            }
            (_, Some(target)) if above.old.contains(&target.nr()) => Err(Error::NotEmpty),
            (_, Some(target)) => {
                target.check_changeable()?;
                self.replace(old, new, &moved, &target)?;
                Ok(Some(target))
            }
            (_, None) => {
                self.move_to_free_name(old, new, &moved)?;
                Ok(None)
            }
        }
    }

    fn move_to_free_name(&self, old: Place<'_>, new: Place<'_>, moved: &Arc<Inode>) -> Result<()> {
        let crosses = moved.is_directory() && old.directory.nr() != new.directory.nr();
        if crosses {
            self.check_links(new.directory)?;
        }
        let _moved = crosses.then(|| moved.lock_below()).transpose()?;
        let dot_dot = self.parent_entry(moved, crosses)?;
        let plan = self.plan_left_behind(old)?;
        self.volume
            .transact(self.rename_credits(old, new)?, |handle| {
                let left = self.make_left_behind(handle, old, plan)?;
                let kind = file_type(moved.mode());
                let added = self
                    .directory(new.directory)
                    .add(handle, new.name, moved.nr(), kind);
                self.discard_unless(added, handle, left.as_ref())?;
                self.free_name(handle, old, left)?;
                self.set_parent(handle, moved, dot_dot.as_ref(), new.directory);
                let change = i32::from(crosses);
                self.touch_directory(old.directory, handle, -change);
                self.touch_directory(new.directory, handle, change);
                self.touch_changed(handle, moved);
                Ok(())
            })
    }

    fn replace(
        &self,
        old: Place<'_>,
        new: Place<'_>,
        moved: &Arc<Inode>,
        target: &Arc<Inode>,
    ) -> Result<()> {
        match (moved.is_directory(), target.is_directory()) {
            (true, false) => return Err(Error::NotADirectory),
            (false, true) => return Err(Error::IsADirectory),
            _ => {}
        }
        let is_directory = target.is_directory();
        let crosses = is_directory && old.directory.nr() != new.directory.nr();
        let _children = lock_children(crosses.then_some(moved), is_directory.then_some(target))?;
        if is_directory && !self.directory(target).is_empty()? {
            return Err(Error::NotEmpty);
        }
        let dot_dot = self.parent_entry(moved, crosses)?;
        let plan = self.plan_left_behind(old)?;
        self.volume
            .transact(self.rename_credits(old, new)?, |handle| {
                let left = self.make_left_behind(handle, old, plan)?;
                let kind = file_type(moved.mode());
                let replaced =
                    self.directory(new.directory)
                        .replace(handle, new.name, moved.nr(), kind);
                self.discard_unless(replaced, handle, left.as_ref())?;
                self.free_name(handle, old, left)?;
                self.set_parent(handle, moved, dot_dot.as_ref(), new.directory);
                // A directory that loses its name takes its link to its parent along.
                self.touch_directory(old.directory, handle, -i32::from(is_directory));
                self.touch_directory(new.directory, handle, 0);
                self.touch_changed(handle, moved);
                if is_directory {
                    self.drop_all_links(handle, target);
                } else {
                    self.drop_link(handle, target);
                }
                Ok(())
            })
    }

    fn exchange(
        &self,
        old: Place<'_>,
        new: Place<'_>,
        moved: &Arc<Inode>,
        target: &Arc<Inode>,
    ) -> Result<()> {
        let is_across = old.directory.nr() != new.directory.nr();
        let moved_crosses = is_across && moved.is_directory();
        let target_crosses = is_across && target.is_directory();
        let _children = lock_children(
            moved_crosses.then_some(moved),
            target_crosses.then_some(target),
        )?;
        let moved_dot_dot = self.parent_entry(moved, moved_crosses)?;
        let target_dot_dot = self.parent_entry(target, target_crosses)?;
        self.volume
            .transact(self.rename_credits(old, new)?, |handle| {
                let moved_kind = file_type(moved.mode());
                let target_kind = file_type(target.mode());
                self.directory(new.directory)
                    .replace(handle, new.name, moved.nr(), moved_kind)?;
                self.directory(old.directory).replace(
                    handle,
                    old.name,
                    target.nr(),
                    target_kind,
                )?;
                self.set_parent(handle, moved, moved_dot_dot.as_ref(), new.directory);
                self.set_parent(handle, target, target_dot_dot.as_ref(), old.directory);
                let gained = i32::from(moved_crosses) - i32::from(target_crosses);
                self.touch_directory(old.directory, handle, -gained);
                self.touch_directory(new.directory, handle, gained);
                self.touch_changed(handle, moved);
                self.touch_changed(handle, target);
                Ok(())
            })
    }

    /// Where the `..` of a directory lies that gets another parent.
    fn parent_entry(&self, moved: &Inode, crosses: bool) -> Result<Option<ParentEntry>> {
        crosses
            .then(|| self.directory(moved).parent_entry())
            .transpose()
    }

    fn plan_left_behind(&self, old: Place<'_>) -> Result<Option<Plan>> {
        old.left_behind
            .map(|node| self.plan_new(old.directory, &node))
            .transpose()
    }

    /// Makes what gets the old name, still without a link.
    fn make_left_behind(
        &self,
        handle: &mut Handle<'_>,
        old: Place<'_>,
        plan: Option<Plan>,
    ) -> Result<Option<Arc<Inode>>> {
        let (Some(plan), Some(node)) = (plan, old.left_behind) else {
            return Ok(None);
        };
        self.make(handle, old.directory, plan, &node).map(Some)
    }

    /// Unmakes what was to be left behind when the new name could not be given.
    fn discard_unless<T>(
        &self,
        named: Result<T>,
        handle: &mut Handle<'_>,
        left: Option<&Arc<Inode>>,
    ) -> Result<T> {
        if let (Err(_), Some(left)) = (&named, left) {
            self.discard(handle, left)?;
        }
        named
    }

    /// Takes the old name away, or gives it to what is left behind.
    fn free_name(
        &self,
        handle: &mut Handle<'_>,
        old: Place<'_>,
        left: Option<Arc<Inode>>,
    ) -> Result<()> {
        let Some(left) = left else {
            self.directory(old.directory).remove(handle, old.name)?;
            return Ok(());
        };
        let kind = file_type(left.mode());
        self.directory(old.directory)
            .replace(handle, old.name, left.nr(), kind)?;
        left.update(&self.volume, handle, |state, _| {
            state.fields_mut().set_links_count(1);
        });
        Ok(())
    }

    fn set_parent(
        &self,
        handle: &mut Handle<'_>,
        moved: &Inode,
        dot_dot: Option<&ParentEntry>,
        parent: &Inode,
    ) {
        if let Some(dot_dot) = dot_dot {
            self.directory(moved)
                .set_parent(handle, dot_dot, parent.nr());
        }
    }

    fn touch_changed(&self, handle: &mut Handle<'_>, inode: &Inode) {
        let now = self.volume.now();
        inode.update(&self.volume, handle, |state, _| {
            state.fields_mut().set_ctime(now);
        });
    }

    /// Without dir_nlink a directory's links are limited.
    pub(super) fn check_links(&self, directory: &Inode) -> Result<()> {
        let counts_on = self
            .volume
            .geometry
            .ro_compat
            .contains(crate::layout::RoCompat::DIR_NLINK);
        if !counts_on && directory.state().fields().links_count() >= LINKS_MAX {
            return Err(Error::TooManyLinks);
        }
        Ok(())
    }

    fn rename_credits(&self, old: Place<'_>, new: Place<'_>) -> Result<u32> {
        let entries = self.entry_credits(old.directory)? + self.entry_credits(new.directory)?;
        let left = old.left_behind.map_or(0, |_| new_credits());
        // Both inodes, the `..` of both, and an orphan.
        Ok(entries + 4 * CREDITS_INODE + CREDITS_ORPHAN + left)
    }
}

impl<'a> Place<'a> {
    fn new(directory: &'a Arc<Inode>, name: FileName<'a>) -> Self {
        Self {
            directory,
            name,
            left_behind: None,
        }
    }
}

/// Locks both directories, an ancestor before its descendant, else by number.
fn lock_directories<'a>(
    old: &'a Arc<Inode>,
    new: &'a Arc<Inode>,
    above: &Above,
) -> (WriteGuard<'a, ()>, Option<WriteGuard<'a, ()>>) {
    if old.nr() == new.nr() {
        return (old.io.write(), None);
    }
    let new_is_above = above.old.contains(&new.nr());
    let old_is_above = above.new.contains(&old.nr());
    let old_first = old_is_above || (!new_is_above && old.nr() < new.nr());
    let (first, second) = if old_first { (old, new) } else { (new, old) };
    let first = first.io.write();
    (first, Some(second.io.write()))
}

/// Locks inodes below the directories of a rename, by number.
fn lock_children<'a>(
    a: Option<&'a Arc<Inode>>,
    b: Option<&'a Arc<Inode>>,
) -> Result<[Option<WriteGuard<'a, ()>>; 2]> {
    let mut both = [a, b];
    both.sort_by_key(|inode| inode.map(|inode| inode.nr()));
    let lock = |inode: Option<&'a Arc<Inode>>| inode.map(|inode| inode.lock_below()).transpose();
    Ok([lock(both[0])?, lock(both[1])?])
}
