//! Many threads on one volume: what they call and are answered is recorded, and a history counts as
//! right when the same calls one after the other, in some order that respects time, would have been
//! answered the same.

pub mod file;
pub mod linear;
pub mod tree;
