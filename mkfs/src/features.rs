//! Which features a new file system gets.

use crate::error::{Error, Result};
use kfs::layout::features::{Compat, Feature, Incompat, RoCompat, find};

/// The three sets of feature bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `s_feature_compat`.
    pub compat: Compat,
    /// `s_feature_incompat`.
    pub incompat: Incompat,
    /// `s_feature_ro_compat`.
    pub ro_compat: RoCompat,
}

/// Features that mkfs can write, of which all but the last of each set are the default.
const COMPAT: Compat = Compat::HAS_JOURNAL
    .union(Compat::EXT_ATTR)
    .union(Compat::DIR_INDEX)
    .union(Compat::ORPHAN_FILE);
const COMPAT_MORE: Compat = Compat::SPARSE_SUPER2.union(Compat::STABLE_INODES);
const INCOMPAT: Incompat = Incompat::FILETYPE
    .union(Incompat::EXTENTS)
    .union(Incompat::BIT64)
    .union(Incompat::FLEX_BG);
const INCOMPAT_MORE: Incompat = Incompat::CSUM_SEED
    .union(Incompat::LARGEDIR)
    .union(Incompat::META_BG);
const RO_COMPAT: RoCompat = RoCompat::SPARSE_SUPER
    .union(RoCompat::LARGE_FILE)
    .union(RoCompat::HUGE_FILE)
    .union(RoCompat::DIR_NLINK)
    .union(RoCompat::EXTRA_ISIZE)
    .union(RoCompat::METADATA_CSUM);
const RO_COMPAT_MORE: RoCompat = RoCompat::GDT_CSUM;

impl Default for Features {
    fn default() -> Self {
        Self {
            compat: COMPAT,
            incompat: INCOMPAT,
            ro_compat: RO_COMPAT,
        }
    }
}

impl Features {
    fn set(&mut self, feature: Feature, on: bool) {
        match feature {
            Feature::Compat(bit) => self.compat.set(bit, on),
            Feature::Incompat(bit) => self.incompat.set(bit, on),
            Feature::RoCompat(bit) => self.ro_compat.set(bit, on),
        }
    }

    /// Settles what depends on other features, as mke2fs does.
    #[must_use]
    pub(crate) fn settle(mut self) -> Self {
        if self.ro_compat.contains(RoCompat::METADATA_CSUM) {
            // The kinds of group checksums exclude each other.
            self.ro_compat.remove(RoCompat::GDT_CSUM);
        } else {
            self.incompat.remove(Incompat::CSUM_SEED);
        }
        if !self.compat.contains(Compat::HAS_JOURNAL) {
            self.compat.remove(Compat::ORPHAN_FILE);
        }
        self
    }
}

fn is_writable(feature: Feature) -> bool {
    match feature {
        Feature::Compat(bit) => (COMPAT | COMPAT_MORE).contains(bit),
        Feature::Incompat(bit) => (INCOMPAT | INCOMPAT_MORE).contains(bit),
        Feature::RoCompat(bit) => (RO_COMPAT | RO_COMPAT_MORE).contains(bit),
    }
}

/// Applies the list after `-O` to a set of features.
///
/// # Errors
/// [`Error::Feature`] for a feature mkfs does not write, or cannot leave out.
pub(crate) fn parse_features(mut features: Features, list: &str) -> Result<Features> {
    for item in list.split([',', ' ']).filter(|item| !item.is_empty()) {
        if item == "none" {
            features = Features {
                compat: Compat::empty(),
                // Files are mapped by extents only.
                incompat: Incompat::EXTENTS,
                ro_compat: RoCompat::empty(),
            };
            continue;
        }
        let (name, on) = match item.strip_prefix('^') {
            Some(name) => (name, false),
            None => (item, true),
        };
        let with = if on { "with" } else { "without" };
        let error = || Error::Feature {
            with,
            name: name.to_string(),
        };
        let feature = find(name).ok_or_else(error)?;
        let needed = feature == Feature::Incompat(Incompat::EXTENTS);
        if on && !is_writable(feature) || !on && needed {
            return Err(error());
        }
        features.set(feature, on);
    }
    Ok(features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let default = Features::default();
        let features = parse_features(default, "^has_journal,uninit_bg,^metadata_csum").unwrap();
        let features = features.settle();
        assert!(
            !features
                .compat
                .intersects(Compat::HAS_JOURNAL | Compat::ORPHAN_FILE)
        );
        assert!(features.ro_compat.contains(RoCompat::GDT_CSUM));
        // What is not there may be taken away by name, also where mkfs could not write it.
        assert_eq!(
            parse_features(default, "^resize_inode,^bigalloc").unwrap(),
            default
        );
        for bad in [
            "^extent",
            "bigalloc",
            "encrypt",
            "nonsense",
            "resize_inode",
            "quota",
        ] {
            assert!(parse_features(default, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sets_depend_on_each_other() {
        let default = Features::default();
        let both = parse_features(default, "uninit_bg").unwrap().settle();
        assert!(!both.ro_compat.contains(RoCompat::GDT_CSUM));
        let seed = parse_features(default, "metadata_csum_seed,^metadata_csum")
            .unwrap()
            .settle();
        assert!(!seed.incompat.contains(Incompat::CSUM_SEED));
    }
}
