//! Sessions asked directly, with what no honest kernel sends.

use super::*;
use crate::fuse::abi::ROOT_ID;
use crate::fuse::flags::{OpenRequestFlags, SetattrValid, WriteFlags};
use crate::fuse::{Context, CopyRange, Creation, DataSink, DataSource, Segment, SetAttr};

const CTX: Context = Context {
    uid: 0,
    gid: 0,
    pid: 0,
    unique: 0,
};
const RDWR: u32 = 2;
const NO_FLAGS: OpenRequestFlags = OpenRequestFlags::empty();

struct Served {
    directory: tempfile::TempDir,
    volume: SharedDir,
    session: Arc<dyn FileSystem>,
}

fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let config = SharedDirConfig {
        path: directory.path().to_owned(),
        read_only: false,
        cache: CachePolicy::Auto,
        writeback: false,
        readdirplus: true,
        timeout: None,
        options: SharedDirOptions {
            xattr: true,
            ..SharedDirOptions::default()
        },
    };
    let volume = SharedDir::open(&config).unwrap();
    let session = volume.new_session().unwrap();
    Served {
        directory,
        volume,
        session,
    }
}

impl Served {
    fn lookup(&self, name: &[u8]) -> crate::fuse::Result<u64> {
        Ok(self.session.lookup(&CTX, ROOT_ID, name)?.nodeid)
    }

    fn nodes(&self) -> u64 {
        self.session.usage().unwrap().nodes
    }

    fn handles(&self) -> u64 {
        self.session.usage().unwrap().handles
    }
}

#[test]
fn nothing_outside_the_directory_can_be_named() {
    let served = serve();
    std::fs::create_dir(served.directory.path().join("dir")).unwrap();
    std::os::unix::fs::symlink("/etc", served.directory.path().join("link")).unwrap();
    for name in [
        &b".."[..],
        b".",
        b"../etc",
        b"/etc",
        b"dir/..",
        b"link/passwd",
        b"a\0b",
    ] {
        assert_eq!(served.lookup(name), Err(Errno::INVAL), "{name:?}");
    }
    let link = served.lookup(b"link").unwrap();
    assert_eq!(
        served.session.lookup(&CTX, link, b"passwd").unwrap_err(),
        Errno::NOTDIR
    );
    assert_eq!(
        served.session.open(&CTX, link, RDWR, NO_FLAGS),
        Err(Errno::LOOP)
    );
    assert_eq!(served.session.opendir(&CTX, link, 0), Err(Errno::LOOP));
    let made = served
        .session
        .mkdir(&CTX, link, b"new", 0o755, &Creation::default());
    assert_eq!(made.unwrap_err(), Errno::NOTDIR);
}

#[test]
fn devices_and_fifos_of_the_host_are_never_opened() {
    let served = serve();
    let fifo = make_fifo(&served, "fifo");
    assert_eq!(
        served.session.open(&CTX, fifo, RDWR, NO_FLAGS),
        Err(Errno::NXIO)
    );
    let change = SetAttr {
        valid: SetattrValid::SIZE,
        ..SetAttr::default()
    };
    assert_eq!(
        served
            .session
            .setattr(&CTX, fifo, &change, None)
            .unwrap_err(),
        Errno::NXIO
    );
}

fn make_fifo(served: &Served, name: &str) -> u64 {
    const FIFO: u32 = 0o010_644;
    let creation = Creation::default();
    let made = served
        .session
        .mknod(&CTX, ROOT_ID, name.as_bytes(), FIFO, 0, &creation);
    made.unwrap().nodeid
}

#[test]
fn lookups_are_counted_and_forgotten() {
    let served = serve();
    std::fs::write(served.directory.path().join("a"), "").unwrap();
    std::fs::hard_link(
        served.directory.path().join("a"),
        served.directory.path().join("b"),
    )
    .unwrap();
    let a = served.lookup(b"a").unwrap();
    assert_eq!(served.lookup(b"b"), Ok(a));
    assert_eq!(served.nodes(), 2);
    served.session.forget(a, 1);
    assert!(served.session.getattr(&CTX, a, None).is_ok());
    // Too often is the same as often enough.
    served.session.forget(a, u64::MAX);
    assert_eq!(
        served.session.getattr(&CTX, a, None).unwrap_err(),
        Errno::STALE
    );
    served.session.forget(a, 1);
    served.session.forget(12345, 1);
    served.session.forget(ROOT_ID, u64::MAX);
    assert!(served.session.getattr(&CTX, ROOT_ID, None).is_ok());
    // Ids are not used again.
    assert_ne!(served.lookup(b"a").unwrap(), a);
    assert_eq!(served.nodes(), 2);
}

#[test]
fn wrong_handles_are_refused() {
    let served = serve();
    let name = b"file";
    let creation = Creation::default();
    let (entry, opened) = served
        .session
        .create(&CTX, ROOT_ID, name, 0o644, RDWR, NO_FLAGS, &creation)
        .unwrap();
    let node = entry.nodeid;
    let mut bytes = [0; 16];
    let mut storage = [Segment::empty()];
    let mut read = |node, fh| {
        let mut sink = DataSink::from_slice(&mut bytes, &mut storage);
        served.session.read(&CTX, node, fh, 0, 16, &mut sink)
    };
    assert_eq!(read(node, opened.fh), Ok(()));
    assert_eq!(read(ROOT_ID, opened.fh), Err(Errno::BADF));
    assert_eq!(read(node, opened.fh + 1), Err(Errno::BADF));
    assert_eq!(read(node, 0), Err(Errno::BADF));
    let mut storage = [Segment::empty()];
    let mut source = DataSource::from_slice(b"x", &mut storage);
    let written = served.session.write(
        &CTX,
        node,
        opened.fh,
        u64::MAX,
        WriteFlags::empty(),
        &mut source,
    );
    assert_eq!(written, Err(Errno::INVAL));
    let beyond = served
        .session
        .fallocate(&CTX, node, opened.fh, u64::MAX, u64::MAX, 0);
    assert!(beyond.is_err());
    let file = (node, opened.fh, u64::MAX);
    let range = CopyRange {
        source: file,
        target: file,
        len: u64::MAX,
        flags: 0,
    };
    assert!(served.session.copy_file_range(&CTX, &range).is_err());
    assert!(served.session.lseek(&CTX, node, opened.fh, 0, 77).is_err());
    let release = || {
        served
            .session
            .release(&CTX, node, opened.fh, Default::default(), None)
    };
    assert_eq!(release(), Ok(()));
    assert_eq!(release(), Err(Errno::BADF));
    assert_eq!(served.handles(), 0);
}

#[test]
fn ids_of_all_ones_do_not_make_files_of_root() {
    let served = serve();
    for (uid, gid) in [(u32::MAX, 1), (1, u32::MAX)] {
        let ctx = Context { uid, gid, ..CTX };
        let made = served
            .session
            .mkdir(&ctx, ROOT_ID, b"dir", 0o755, &Creation::default());
        assert_eq!(made.unwrap_err(), Errno::INVAL);
        let valid = SetattrValid::UID | SetattrValid::GID;
        let change = SetAttr {
            valid,
            uid,
            gid,
            ..SetAttr::default()
        };
        let changed = served.session.setattr(&CTX, ROOT_ID, &change, None);
        assert_eq!(changed.unwrap_err(), Errno::INVAL);
    }
    let change = SetAttr {
        valid: SetattrValid::ATIME,
        atime: (0, u32::MAX),
        ..SetAttr::default()
    };
    assert_eq!(
        served
            .session
            .setattr(&CTX, ROOT_ID, &change, None)
            .unwrap_err(),
        Errno::INVAL
    );
}

#[test]
fn sessions_share_the_directory_and_nothing_else() {
    let served = serve();
    let other = served.volume.new_session().unwrap();
    let creation = Creation::default();
    let made = served
        .session
        .mkdir(&CTX, ROOT_ID, b"dir", 0o755, &creation)
        .unwrap();
    assert_eq!(
        other.getattr(&CTX, made.nodeid, None).unwrap_err(),
        Errno::STALE
    );
    assert_eq!(
        other.lookup(&CTX, ROOT_ID, b"dir").unwrap().attr.ino,
        made.attr.ino
    );
    served.session.opendir(&CTX, made.nodeid, 0).unwrap();
    served.session.destroy();
    served.session.destroy();
    assert_eq!((served.nodes(), served.handles()), (1, 0));
    assert!(served.session.getattr(&CTX, ROOT_ID, None).is_ok());
    assert_eq!(other.usage().unwrap().nodes, 2);
}
