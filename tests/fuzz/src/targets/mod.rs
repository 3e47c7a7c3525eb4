//! The targets: each takes any bytes and returns.

mod control;
mod fuse;
mod image;
mod journal;
mod parsers;
mod shared_dir;
mod vring;

pub use control::control;
pub use fuse::fuse;
pub use image::image;
pub use journal::journal;
pub use parsers::parsers;
pub use shared_dir::shared_dir;
pub use vring::vring;

/// A target with its name.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of its program, its corpus and its regressions.
    pub name: &'static str,
    /// One execution.
    pub run: fn(&[u8]),
    /// Longest input that makes sense, in bytes.
    pub max_len: usize,
}

/// All of them.
pub const ALL: [Target; 7] = [
    Target {
        name: "image",
        run: image,
        max_len: 1024,
    },
    Target {
        name: "journal",
        run: journal,
        max_len: 1024,
    },
    Target {
        name: "parsers",
        run: parsers,
        max_len: 2048,
    },
    Target {
        name: "fuse",
        run: fuse,
        max_len: 1024,
    },
    Target {
        name: "shared_dir",
        run: shared_dir,
        max_len: 1024,
    },
    Target {
        name: "vring",
        run: vring,
        max_len: 1024,
    },
    Target {
        name: "control",
        run: control,
        max_len: 1024,
    },
];

/// The inputs that are kept for a target: its corpus and its regressions, in the order of their
/// names.
#[must_use]
pub fn kept(name: &str) -> Vec<Vec<u8>> {
    kept_files(name)
        .into_iter()
        .map(|(_, input)| input)
        .collect()
}

/// [`kept`], with the files that hold them.
#[must_use]
pub fn kept_files(name: &str) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["regressions", "corpus"] {
        let Ok(entries) = std::fs::read_dir(top.join(folder).join(name)) else {
            continue;
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        files.extend(paths);
    }
    let read = |path: std::path::PathBuf| std::fs::read(&path).ok().map(|input| (path, input));
    files.into_iter().filter_map(read).collect()
}
