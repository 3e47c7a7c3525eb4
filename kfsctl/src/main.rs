//! The kfsctl command.
fn main() {}
