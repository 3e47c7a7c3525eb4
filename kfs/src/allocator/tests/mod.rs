//! Tests of the allocator on images made by mke2fs, judged by models, dumpe2fs and e2fsck.

mod damage;
mod model;
mod placement;
mod threads;
mod volume;
