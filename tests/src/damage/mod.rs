//! Deliberate damage: images with a bit of everything, a map of their metadata, and changes to it
//! that a seed decides. With it tests show that a checker sees what e2fsck sees.

mod change;
mod checksums;
mod images;
mod map;

pub use change::{Change, damage, damage_heavily};
pub use checksums::fix_checksums;
pub use images::{Base, RECIPES, Recipe};
pub use map::{Map, Object, ObjectKind};
