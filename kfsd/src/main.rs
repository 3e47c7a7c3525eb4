//! The kfsd command.
fn main() {}
