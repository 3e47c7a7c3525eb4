//! `-d DIR`: the image holds what the directory holds. debugfs and e2fsck are the judges.

#![expect(clippy::unwrap_used, reason = "tests fail by panics")]

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn debugfs(image: &Path, command: &str) -> String {
    run("debugfs", &["-R", command, image.to_str().unwrap()])
}

/// Makes a directory with one of everything.
fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("a/deep/er/directory")).unwrap();
    fs::create_dir(tree.join("lost+found")).unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(tree.join("a/large"), &content).unwrap();
    fs::hard_link(tree.join("a/large"), tree.join("z-same")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.write_all_at(b"data", 64 << 20).unwrap();
    sparse.set_len(100 << 20).unwrap();
    symlink("a/large", tree.join("short-link")).unwrap();
    symlink("x".repeat(300), tree.join("long-link")).unwrap();
    let many = tree.join("many");
    fs::create_dir(&many).unwrap();
    for n in 0..3000 {
        fs::write(many.join(format!("file number {n}")), format!("{n}")).unwrap();
    }
    fs::set_permissions(tree.join("empty"), Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(&many, Permissions::from_mode(0o2770)).unwrap();
    let time = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    for name in ["empty", "many", "a/deep/er"] {
        let file = File::open(tree.join(name)).unwrap();
        file.set_modified(time).unwrap();
    }
    run("mkfifo", &[tree.join("fifo").to_str().unwrap()]);
    let name = tree.join("empty");
    rustix::fs::setxattr(
        &name,
        "user.color",
        b"green",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

fn make(tree: &Path, image: &Path, arguments: &[&str]) {
    let mut all = vec!["-q", "-d", tree.to_str().unwrap()];
    all.extend(arguments);
    all.extend([image.to_str().unwrap(), "64M"]);
    run(env!("CARGO_BIN_EXE_mkfs"), &all);
    run("e2fsck", &["-fn", image.to_str().unwrap()]);
}

/// Compares two trees of the host by content, type, mode, owner, time, links and size.
fn compare(a: &Path, b: &Path) {
    let names = |dir: &Path| {
        let mut names: Vec<PathBuf> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b), "{}", a.display());
    for name in names(a) {
        let (a, b) = (a.join(&name), b.join(&name));
        let (left, right) = (
            fs::symlink_metadata(&a).unwrap(),
            fs::symlink_metadata(&b).unwrap(),
        );
        // Changing the owner, debugfs loses set-user-id and set-group-id.
        assert_eq!(
            left.mode() & !0o6000,
            right.mode() & !0o6000,
            "{}",
            a.display()
        );
        assert_eq!(
            (left.uid(), left.gid()),
            (right.uid(), right.gid()),
            "{}",
            a.display()
        );
        if left.is_symlink() {
            assert_eq!(fs::read_link(&a).unwrap(), fs::read_link(&b).unwrap());
        } else if left.is_dir() {
            compare(&a, &b);
        } else if left.is_file() {
            assert!(
                fs::read(&a).unwrap() == fs::read(&b).unwrap(),
                "{}",
                a.display()
            );
        }
    }
}

#[test]
fn the_image_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image, back) = (
        dir.path().join("tree"),
        dir.path().join("i"),
        dir.path().join("back"),
    );
    fs::create_dir(&tree).unwrap();
    fill(&tree);
    for arguments in [&["-b", "1024"][..], &["-b", "4096", "-N", "4000"]] {
        make(&tree, &image, arguments);
        fs::create_dir(&back).unwrap();
        debugfs(&image, &format!("rdump / {}", back.display()));
        // debugfs copies no fifos.
        let _ = fs::remove_file(back.join("fifo"));
        run("mkfifo", &[back.join("fifo").to_str().unwrap()]);
        fs::set_permissions(
            back.join("fifo"),
            fs::metadata(tree.join("fifo")).unwrap().permissions(),
        )
        .unwrap();
        compare(&tree, &back);
        check_details(&image);
        fs::remove_dir_all(&back).unwrap();
        fs::remove_file(&image).unwrap();
    }
}

/// What debugfs does not copy.
fn check_details(image: &Path) {
    let stat = debugfs(image, "stat /empty");
    assert!(stat.contains("Mode:  04751"), "{stat}");
    assert!(stat.contains("mtime: 0x3b9aca00:1d6f3454"), "{stat}");
    let color = debugfs(image, "ea_get /empty user.color");
    assert!(color.contains("green"), "{color}");
    assert!(debugfs(image, "stat /fifo").contains("Type: FIFO"));
    assert!(debugfs(image, "stat /many").contains("Mode:  02770"));
    assert!(debugfs(image, "stat /many").contains("mtime: 0x3b9aca00:1d6f3454"));
    let large = debugfs(image, "stat /a/large");
    assert!(large.contains("Links: 2"), "{large}");
    let sparse = debugfs(image, "stat /sparse");
    assert!(sparse.contains("Size: 104857600"), "{sparse}");
    let blocks = sparse
        .split("Blockcount: ")
        .nth(1)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap();
    assert!(blocks.parse::<u32>().unwrap() <= 16, "{sparse}");
}

#[test]
fn an_image_that_is_too_small_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("i"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), vec![1; 4 << 20]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mkfs"))
        .arg("-d")
        .arg(&tree)
        .arg(&image)
        .arg("3M")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("no space left"),
        "{text}"
    );
    assert!(text.contains("large"), "{text}");
    assert!(!image.exists());
}

#[test]
fn a_source_that_is_no_directory_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("i");
    let output = Command::new(env!("CARGO_BIN_EXE_mkfs"))
        .args(["-d", "/etc/hostname"])
        .arg(&image)
        .arg("8M")
        .output()
        .unwrap();
    assert!(!output.status.success() && !image.exists());
}

#[test]
fn an_image_within_its_own_source_leaves_itself_out() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    fs::write(dir.path().join("file"), "content").unwrap();
    make(dir.path(), &image, &[]);
    let list = debugfs(&image, "ls -p /");
    assert!(
        list.contains("/file/") && !list.contains("disk.img"),
        "{list}"
    );
}
