//! Tests of the allocator against models and e2fsprogs.
