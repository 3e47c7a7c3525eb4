//! Tests of directories: against a model, on images of e2fsprogs, on damaged blocks.

mod damage;
mod fake;
mod image;
mod model;

pub(in crate::dir) use fake::format_for_tests;

use super::{Directory, DirectoryBlocks, FileName};
use crate::ids::InodeNr;
use std::ops::ControlFlow;

fn name(bytes: &[u8]) -> FileName<'_> {
    FileName::new(bytes).unwrap()
}

/// Names and inodes behind `cookie`, `batch` at a time as a guest with a small buffer reads them.
fn list<B: DirectoryBlocks>(
    directory: &Directory<B>,
    mut cookie: u64,
    batch: usize,
) -> Vec<(Vec<u8>, InodeNr, u64)> {
    let mut all = Vec::new();
    loop {
        let before = all.len();
        directory
            .entries_from(cookie, &mut |entry| {
                all.push((entry.name.to_vec(), entry.entry.inode, entry.cookie));
                assert!(entry.cookie > cookie, "cookies rise");
                cookie = entry.cookie;
                match all.len() - before < batch {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })
            .unwrap();
        if all.len() - before < batch {
            return all;
        }
    }
}
