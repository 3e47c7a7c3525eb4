//! A host directory through a mount: what POSIX and Linux promise holds, and the host sees it.
//!
//! These tests need root and /dev/fuse.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use daemon::Daemon;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

/// Runs a shell command as a user without privileges.
fn as_user(ids: &str, groups: &str, command: &str) -> bool {
    let mut setpriv = Command::new("setpriv");
    setpriv
        .arg(format!("--reuid={ids}"))
        .arg(format!("--regid={ids}"));
    match groups {
        "" => setpriv.arg("--clear-groups"),
        groups => setpriv.arg(format!("--groups={groups}")),
    };
    setpriv
        .args(["sh", "-c", command])
        .status()
        .unwrap()
        .success()
}

fn open(path: &Path, flags: OFlags, mode: u32) -> Result<File, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode)).map(File::from)
}

fn open_to_all(daemon: &Daemon) {
    // Users must get through the scratch directory to the mount.
    for path in [daemon.scratch.path(), &daemon.mount()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
}

#[test]
fn names_of_all_kinds_are_made_renamed_and_removed() {
    let daemon = Daemon::with_mount(&[]);
    let (mount, host) = (daemon.mount(), daemon.host());
    fs::write(mount.join("file"), "content").unwrap();
    fs::create_dir(mount.join("dir")).unwrap();
    std::os::unix::fs::symlink("some/where else", mount.join("link")).unwrap();
    fs::hard_link(mount.join("file"), mount.join("hard")).unwrap();
    fs::hard_link(mount.join("link"), mount.join("hard link to link")).unwrap();
    let node = |name, kind, device| {
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, mount.join(name), kind, mode, device).unwrap();
    };
    node("fifo", rustix::fs::FileType::Fifo, 0);
    node(
        "null",
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    );
    drop(std::os::unix::net::UnixListener::bind(mount.join("socket")).unwrap());

    assert_eq!(fs::read(host.join("file")).unwrap(), b"content");
    assert_eq!(fs::metadata(host.join("hard")).unwrap().nlink(), 2);
    assert_eq!(fs::symlink_metadata(host.join("link")).unwrap().nlink(), 2);
    let target = fs::read_link(mount.join("hard link to link")).unwrap();
    assert_eq!(target, Path::new("some/where else"));
    assert!(
        fs::metadata(host.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::metadata(mount.join("null")).unwrap().rdev(),
        rustix::fs::makedev(1, 3)
    );
    assert_eq!(
        fs::metadata(host.join("null")).unwrap().mode() & 0o7777,
        0o640
    );
    assert!(
        fs::symlink_metadata(host.join("socket"))
            .unwrap()
            .file_type()
            .is_socket()
    );
    fs::write(mount.join("null"), "gone").unwrap();

    fs::rename(mount.join("file"), mount.join("dir/moved")).unwrap();
    fs::write(mount.join("dir/other"), "other").unwrap();
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, mount.join(from), CWD, mount.join(to), flags)
    };
    let noreplace = rename("dir/moved", "dir/other", RenameFlags::NOREPLACE);
    assert_eq!(noreplace, Err(Errno::EXIST));
    rename("dir/moved", "dir/other", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(host.join("dir/moved")).unwrap(), b"other");
    fs::create_dir(mount.join("empty")).unwrap();
    assert_eq!(
        rename("empty", "dir", RenameFlags::empty()),
        Err(Errno::NOTEMPTY)
    );
    assert_eq!(
        rename("dir", "dir/inside", RenameFlags::empty()),
        Err(Errno::INVAL)
    );
    assert_eq!(rustix::fs::rmdir(mount.join("dir")), Err(Errno::NOTEMPTY));
    assert_eq!(rustix::fs::unlink(mount.join("dir")), Err(Errno::ISDIR));
    assert_eq!(rustix::fs::rmdir(mount.join("hard")), Err(Errno::NOTDIR));

    let long = "n".repeat(255);
    fs::write(mount.join(&long), "").unwrap();
    let too_long = open(
        &mount.join(format!("{long}n")),
        OFlags::CREATE | OFlags::WRONLY,
        0o600,
    );
    assert_eq!(too_long.unwrap_err(), Errno::NAMETOOLONG);
    fs::remove_dir_all(mount.join("dir")).unwrap();
    for name in [
        "hard",
        "link",
        "hard link to link",
        "fifo",
        "null",
        "socket",
        &long,
    ] {
        fs::remove_file(mount.join(name)).unwrap();
    }
    fs::remove_dir(mount.join("empty")).unwrap();
    assert_eq!(fs::read_dir(host).unwrap().count(), 0);
}

#[test]
fn files_without_names_stay_usable() {
    let daemon = Daemon::with_mount(&[]);
    let mount = daemon.mount();
    let path = mount.join("doomed");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    let mut file = open(&path, flags, 0o600).unwrap();
    assert_eq!(open(&path, flags, 0o600).unwrap_err(), Errno::EXIST);
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(file.metadata().unwrap().len(), 16);
    file.set_len(6).unwrap();
    let mut content = [0; 6];
    file.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(&content, b"before");
    file.set_permissions(fs::Permissions::from_mode(0o400))
        .unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o400);

    let mut nameless = open(&mount, OFlags::TMPFILE | OFlags::RDWR, 0o644).unwrap();
    nameless.write_all(b"named later").unwrap();
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
    let itself = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&nameless)
    );
    let named = mount.join("named");
    rustix::fs::linkat(CWD, itself, CWD, &named, AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(
        fs::read(daemon.host().join("named")).unwrap(),
        b"named later"
    );
}

#[test]
fn new_files_belong_to_their_makers() {
    let daemon = Daemon::with_mount(&[]);
    let (mount, host) = (daemon.mount(), daemon.host());
    open_to_all(&daemon);
    let place = mount.to_str().unwrap();
    let made = format!(
        "cd {place} && umask 027 && echo x > file && mkdir dir && mkfifo fifo && ln -s x link"
    );
    assert!(as_user("1234", "", &made));
    for (name, mode) in [
        ("file", 0o640),
        ("dir", 0o750),
        ("fifo", 0o640),
        ("link", 0o777),
    ] {
        let meta = fs::symlink_metadata(host.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 1234), "{name}");
        assert_eq!(meta.mode() & 0o777, mode, "{name}");
    }
    // Others may not, the owner may, and nobody gives files away.
    assert!(!as_user(
        "4321",
        "",
        &format!("cat {place}/file 2>/dev/null")
    ));
    assert!(!as_user(
        "4321",
        "",
        &format!("rm -f {place}/dir/x && touch {place}/dir/x 2>&-")
    ));
    assert!(as_user("1234", "", &format!("cat {place}/file >/dev/null")));
    assert!(!as_user(
        "1234",
        "",
        &format!("chown 4321 {place}/file 2>/dev/null")
    ));

    // A directory with the set-group-id bit hands its group down, to those of other groups too.
    fs::create_dir(mount.join("team")).unwrap();
    std::os::unix::fs::chown(mount.join("team"), Some(0), Some(77)).unwrap();
    fs::set_permissions(mount.join("team"), fs::Permissions::from_mode(0o2775)).unwrap();
    assert!(as_user(
        "1234",
        "77",
        &format!("mkdir {place}/team/dir && touch {place}/team/file")
    ));
    let (dir, file) = (host.join("team/dir"), host.join("team/file"));
    assert_eq!(fs::metadata(&file).unwrap().gid(), 77);
    assert_eq!(fs::metadata(&dir).unwrap().gid(), 77);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7000, 0o2000);

    // A thread that acted for somebody is root again.
    for index in 0..64 {
        fs::write(mount.join(format!("root {index}")), "").unwrap();
        assert_eq!(
            fs::metadata(host.join(format!("root {index}")))
                .unwrap()
                .uid(),
            0
        );
    }
}

#[test]
fn writing_drops_suid_and_sgid() {
    let daemon = Daemon::with_mount(&[]);
    open_to_all(&daemon);
    let path = daemon.mount().join("tool");
    let reset = || {
        fs::write(&path, "0123456789").unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
    };
    let mode = || fs::metadata(daemon.host().join("tool")).unwrap().mode() & 0o7777;
    let place = path.to_str().unwrap();
    for command in ["echo x >>", "echo x 1<>", "true >", "truncate -s 3"] {
        reset();
        assert_eq!(mode(), 0o6777);
        assert!(as_user("4321", "", &format!("{command} {place}")));
        assert_eq!(mode(), 0o777, "{command}");
    }
    reset();
    std::os::unix::fs::chown(&path, Some(1), Some(1)).unwrap();
    assert_eq!(mode(), 0o777, "chown");
}

#[test]
fn data_goes_where_it_belongs() {
    let daemon = Daemon::with_mount(&[]);
    let path = daemon.mount().join("data");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let pattern: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    file.write_all_at(&pattern, 12345).unwrap();
    let mut back = vec![0; pattern.len()];
    file.read_exact_at(&mut back, 12345).unwrap();
    assert!(back == pattern);
    let on_host = fs::read(daemon.host().join("data")).unwrap();
    assert!(on_host[..12345].iter().all(|&byte| byte == 0) && on_host[12345..] == pattern);
    assert_eq!(file.read_at(&mut back, 100_000_000).unwrap(), 0);

    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(daemon.mount().join("log"))
    };
    let (mut one, mut two) = (append().unwrap(), append().unwrap());
    for _ in 0..50 {
        one.write_all(b"one\n").unwrap();
        two.write_all(b"two\n").unwrap();
    }
    let log = fs::read_to_string(daemon.host().join("log")).unwrap();
    assert_eq!(log, "one\ntwo\n".repeat(50));

    // The host changes a file; who opens it then sees the change.
    fs::write(daemon.host().join("log"), "by the host").unwrap();
    let mut text = String::new();
    File::open(daemon.mount().join("log"))
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "by the host");
}

#[test]
fn space_can_be_reserved_punched_and_found() {
    let daemon = Daemon::with_mount(&[]);
    let flags = OFlags::CREATE | OFlags::RDWR;
    let file = open(&daemon.mount().join("sparse"), flags, 0o600).unwrap();
    let end = 1 << 20;
    file.write_all_at(b"end", end).unwrap();
    file.sync_all().unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap(), end);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)).unwrap(), 0);
    assert_eq!(
        rustix::fs::seek(&file, SeekFrom::Data(end + 4096)),
        Err(Errno::NXIO)
    );
    assert!(file.metadata().unwrap().blocks() < 100);
    let allocate = |mode, offset, len| rustix::fs::fallocate(&file, mode, offset, len);
    allocate(FallocateFlags::empty(), 0, end).unwrap();
    assert!(file.metadata().unwrap().blocks() >= end / 512);
    allocate(FallocateFlags::KEEP_SIZE, 0, end * 2).unwrap();
    assert_eq!(file.metadata().unwrap().len(), end + 3);
    file.write_all_at(&vec![b'x'; 65536], 0).unwrap();
    allocate(
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        4096,
        8192,
    )
    .unwrap();
    let mut content = vec![1; 65536];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content[4096..12288].iter().all(|&byte| byte == 0));
    assert!(
        content[..4096]
            .iter()
            .chain(&content[12288..])
            .all(|&byte| byte == b'x')
    );

    let copy = open(&daemon.mount().join("copy"), flags, 0o600).unwrap();
    let (mut from, mut to) = (0, 4096);
    let len = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 65536);
    assert_eq!(len.unwrap(), 65536);
    assert!(fs::read(daemon.host().join("copy")).unwrap()[4096..] == content);
}

#[test]
fn attributes_are_those_of_the_host() {
    let daemon = Daemon::with_mount(&[]);
    let (path, host) = (daemon.mount().join("file"), daemon.host().join("file"));
    fs::write(&path, "x").unwrap();
    let set = |access: (i64, i64), change: (i64, i64)| {
        let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
        let times = Timestamps {
            last_access: time(access),
            last_modification: time(change),
        };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    };
    set((-5, 123_456_789), (4_000_000_000, 987_654_321));
    let meta = fs::metadata(&host).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec()), (-5, 123_456_789));
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec()),
        (4_000_000_000, 987_654_321)
    );
    set((0, rustix::fs::UTIME_OMIT), (77, 1));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.atime(), meta.mtime()), (-5, 77));
    set((0, rustix::fs::UTIME_NOW), (0, rustix::fs::UTIME_OMIT));
    assert!(fs::metadata(&host).unwrap().atime() > 1_700_000_000);

    let born = |path: &Path| {
        let flags = StatxFlags::BTIME | StatxFlags::BASIC_STATS;
        let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), flags).unwrap();
        (
            stat.stx_mask & StatxFlags::BTIME.bits(),
            stat.stx_btime.tv_sec,
            stat.stx_ino,
        )
    };
    assert_eq!(born(&path), born(&host));
    let (ours, theirs) = (
        rustix::fs::statvfs(&path).unwrap(),
        rustix::fs::statvfs(&host).unwrap(),
    );
    assert_eq!(
        (ours.f_blocks, ours.f_namemax),
        (theirs.f_blocks, theirs.f_namemax)
    );
    std::os::unix::fs::lchown(&path, Some(5), Some(6)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o1755)).unwrap();
    let meta = fs::metadata(&host).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (5, 6, 0o1755)
    );
}

#[test]
fn large_directories_are_listed_whole() {
    let daemon = Daemon::with_mount(&[]);
    let names: BTreeSet<String> = (0..3000)
        .map(|index| format!("a longer name {index}"))
        .collect();
    for name in &names {
        fs::write(daemon.host().join(name), "").unwrap();
    }
    let list = || -> BTreeSet<String> {
        let entries = fs::read_dir(daemon.mount()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(list(), names);
    // Removing what a listing returns, as rm -r does, misses nothing.
    for entry in fs::read_dir(daemon.mount()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(list().len(), 0);
    assert_eq!(fs::read_dir(daemon.host()).unwrap().count(), 0);
}

#[test]
fn extended_attributes_are_served_when_asked_for() {
    let daemon = Daemon::with_mount(&["--xattr"]);
    let (path, host) = (daemon.mount().join("file"), daemon.host().join("file"));
    fs::write(&path, "").unwrap();
    let set = |name, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    set("user.small", b"1", XattrFlags::empty()).unwrap();
    set("user.empty", b"", XattrFlags::CREATE).unwrap();
    set("user.large", &[7; 2000], XattrFlags::empty()).unwrap();
    assert_eq!(
        set("user.small", b"2", XattrFlags::CREATE),
        Err(Errno::EXIST)
    );
    assert_eq!(
        set("user.none", b"2", XattrFlags::REPLACE),
        Err(Errno::NODATA)
    );
    let mut value = [0; 4000];
    assert_eq!(
        rustix::fs::getxattr(&host, "user.large", &mut value).unwrap(),
        2000
    );
    assert_eq!(
        rustix::fs::getxattr(&path, "user.large", &mut value).unwrap(),
        2000
    );
    let short = rustix::fs::getxattr(&path, "user.large", &mut [0_u8; 10]);
    assert_eq!(short, Err(Errno::RANGE));
    assert_eq!(
        rustix::fs::getxattr_query(&path, "user.large").unwrap(),
        2000
    );
    let len = rustix::fs::listxattr(&path, &mut value).unwrap();
    let names: BTreeSet<&[u8]> = value[..len].split_inclusive(|&byte| byte == 0).collect();
    assert!(names.contains(&b"user.small\0"[..]) && names.contains(&b"user.empty\0"[..]));
    rustix::fs::removexattr(&path, "user.small").unwrap();
    assert_eq!(
        rustix::fs::removexattr(&path, "user.small"),
        Err(Errno::NODATA)
    );
    // A symbolic link has attributes of its own.
    std::os::unix::fs::symlink("file", daemon.mount().join("link")).unwrap();
    let link = daemon.mount().join("link");
    rustix::fs::lsetxattr(&link, "trusted.mine", b"link", XattrFlags::empty()).unwrap();
    let found = rustix::fs::lgetxattr(daemon.host().join("link"), "trusted.mine", &mut value);
    assert_eq!(found.unwrap(), 4);
    assert_eq!(
        rustix::fs::getxattr(&host, "trusted.mine", &mut value),
        Err(Errno::NODATA)
    );

    let without = Daemon::with_mount(&[]);
    fs::write(without.mount().join("file"), "").unwrap();
    let path = without.mount().join("file");
    let refused = rustix::fs::setxattr(&path, "user.x", b"", XattrFlags::empty());
    assert_eq!(refused, Err(Errno::OPNOTSUPP));
}

#[test]
fn access_control_lists_decide() {
    let daemon = Daemon::with_mount(&["--posix-acl"]);
    open_to_all(&daemon);
    let place = daemon.mount();
    let place = place.to_str().unwrap();
    let shell = |command: String| Command::new("sh").args(["-c", &command]).status().unwrap();
    let make = format!(
        "cd {place} && umask 077 && echo secret > file && setfacl -m u:1234:r file && mkdir dir && \
         setfacl -d -m u:1234:rwx,g::rx,o::- dir && setfacl -m u:1234:rwx dir && touch dir/child"
    );
    assert!(shell(make).success(), "setfacl (package acl) is needed");
    assert!(as_user("1234", "", &format!("cat {place}/file >/dev/null")));
    assert!(!as_user(
        "4321",
        "",
        &format!("cat {place}/file 2>/dev/null")
    ));
    // The default ACL, not the umask, decides about new files.
    let host = daemon.host();
    assert!(
        shell(format!(
            "getfacl -c {}/dir/child | grep -q u.*:1234:rwx",
            host.display()
        ))
        .success()
    );
    assert!(as_user(
        "1234",
        "",
        &format!("umask 077 && touch {place}/dir/mine")
    ));
    let mode = fs::metadata(host.join("dir/mine")).unwrap().mode() & 0o777;
    assert_eq!(mode & 0o070, 0o060, "the mask of the ACL is {mode:o}");
    fs::write(daemon.mount().join("plain"), "").unwrap();
    assert!(as_user(
        "1234",
        "",
        &format!("chmod 777 {place} 2>&-; umask 077 && touch {place}/mine")
    ));
    assert_eq!(
        fs::metadata(host.join("mine")).unwrap().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_read_only_directory_stays_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("file"), "content").unwrap();
    let daemon = Daemon::with_mount(&["--readonly"]);
    fs::write(daemon.host().join("file"), "content").unwrap();
    let path = daemon.mount().join("file");
    assert_eq!(fs::read(&path).unwrap(), b"content");
    assert_eq!(open(&path, OFlags::RDWR, 0).unwrap_err(), Errno::ROFS);
    assert_eq!(rustix::fs::unlink(&path), Err(Errno::ROFS));
    let made = rustix::fs::mkdir(daemon.mount().join("dir"), Mode::from_raw_mode(0o700));
    assert_eq!(made, Err(Errno::ROFS));
}

#[test]
fn mapped_pages_reach_the_host() {
    // Python maps a file, since a test may not use unsafe code.
    let daemon = Daemon::with_mount(&[]);
    fs::write(daemon.mount().join("file"), vec![b'a'; 10000]).unwrap();
    let script = "import mmap,sys\nf=open(sys.argv[1],'a+b')\nm=mmap.mmap(f.fileno(),0)\n\
                  m[5000:5003]=b'new'\nm.flush()";
    let status = Command::new("python3")
        .args(["-c", script])
        .arg(daemon.mount().join("file"))
        .status()
        .unwrap();
    assert!(status.success());
    // The file was open for appending, but mapped pages go where they belong.
    let content = fs::read(daemon.host().join("file")).unwrap();
    assert_eq!(content.len(), 10000);
    assert_eq!(&content[4999..5004], b"anewa");
}

#[test]
fn direct_io_flags_do_no_harm() {
    for options in [
        &["--cache", "never"][..],
        &["--cache=always", "--writeback"],
        &["--cache=metadata"],
    ] {
        let daemon = Daemon::with_mount(options);
        let path = daemon.mount().join("file");
        let mut file = OpenOptions::new();
        file.create(true).append(true).custom_flags(0o2_000_000);
        file.open(&path).unwrap().write_all(b"one").unwrap();
        file.open(&path).unwrap().write_all(b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"onetwo", "{options:?}");
        assert_eq!(fs::read_dir(daemon.mount()).unwrap().count(), 1);
        drop(File::open(&path).unwrap().sync_all());
        assert_eq!(
            fs::read(daemon.host().join("file")).unwrap(),
            b"onetwo",
            "{options:?}"
        );
    }
}
