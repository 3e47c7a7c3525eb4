//! The tools of e2fsprogs as oracles of the tests.

use crate::layout::{Geometry, RawSuperblock};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use zerocopy::FromBytes;

fn run(program: &str, arguments: &[&str]) -> (Output, String) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let text = [&output.stdout[..], &output.stderr].concat();
    (output, String::from_utf8_lossy(&text).into_owned())
}

/// An image file that goes away with this.
pub(crate) struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    /// By `mke2fs` with these options, of `size` (as mke2fs reads it), filled from a folder that
    /// `fill` makes.
    pub(crate) fn make(options: &[&str], size: &str, fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::create_dir(&source).unwrap();
        fill(&source);
        let image = Self { folder };
        let path = image.path();
        let ends = [
            "-q",
            "-F",
            "-d",
            source.to_str().unwrap(),
            path.to_str().unwrap(),
            size,
        ];
        let (output, text) = run("mke2fs", &[options, &ends].concat());
        assert!(output.status.success(), "mke2fs: {text}");
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// The answer of `debugfs` to one request, which may change the image.
    pub(crate) fn debugfs(&self, request: &str) -> String {
        let (output, _) = run(
            "debugfs",
            &["-w", "-R", request, self.path().to_str().unwrap()],
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Several requests, one a line.
    pub(crate) fn debugfs_script(&self, requests: &str) {
        let script = self.folder.path().join("script");
        std::fs::write(&script, requests).unwrap();
        let (path, script) = (self.path(), script);
        run(
            "debugfs",
            &["-w", "-f", script.to_str().unwrap(), path.to_str().unwrap()],
        );
    }

    /// Lets `e2fsck` build hash trees.
    pub(crate) fn index_directories(&self) {
        let (output, text) = run("e2fsck", &["-fyD", self.path().to_str().unwrap()]);
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "e2fsck -fyD: {text}"
        );
    }

    /// Panics unless `e2fsck -fn` finds nothing.
    pub(crate) fn check(&self) {
        let (output, text) = run("e2fsck", &["-fn", self.path().to_str().unwrap()]);
        assert!(output.status.success(), "{text}");
    }

    /// The volume's geometry.
    pub(crate) fn geometry(&self) -> Geometry {
        let bytes = std::fs::read(self.path()).unwrap();
        Geometry::try_from(RawSuperblock::ref_from_bytes(&bytes[1024..2048]).unwrap()).unwrap()
    }

    /// Numbers in an answer of debugfs.
    pub(crate) fn numbers(text: &str) -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect()
    }
}
