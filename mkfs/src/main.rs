//! The mkfs command.
fn main() {}
