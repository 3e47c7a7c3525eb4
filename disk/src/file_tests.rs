//! Tests of `FileDevice`.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;

use proptest::prelude::*;

use super::*;

fn image(size: u64) -> (tempfile::TempDir, FileDevice) {
    let dir = tempfile::tempdir().unwrap();
    let device = FileDevice::create(dir.path().join("disk.img"), size).unwrap();
    (dir, device)
}

fn content(device: &FileDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn create_is_sparse_and_refuses_to_overwrite() {
    let (_dir, device) = image(1 << 40);
    assert_eq!(device.size_bytes(), 1 << 40);
    assert_eq!(
        device.backing_file().unwrap().metadata().unwrap().blocks(),
        0
    );
    let err = FileDevice::create(device.path(), 1).unwrap_err();
    assert!(matches!(err, OpenError::AlreadyExists { .. }), "{err}");
}

#[test]
fn create_of_an_impossible_size_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.img");
    let err = FileDevice::create(&path, u64::MAX).unwrap_err();
    assert!(matches!(err, OpenError::TooLarge { .. }), "{err}");
    assert!(err.to_string().contains("a file of 16.00 EiB"), "{err}");
    assert!(!path.exists());
}

#[test]
fn whole_slices_of_a_short_transfer() {
    let bufs: [&[u8]; 5] = [b"", b"abc", b"", b"de", b""];
    let counts: Vec<_> = (0..=5)
        .map(|done| whole_slices(&bufs, done).count)
        .collect();
    assert_eq!(counts, [1, 1, 1, 3, 3, 5]);
}

#[test]
fn each_wrong_path_has_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let err = FileDevice::open(dir.path()).unwrap_err();
    assert!(matches!(err, OpenError::IsDirectory { .. }), "{err}");
    let err = FileDevice::open(dir.path().join("none")).unwrap_err();
    assert!(matches!(err, OpenError::NotFound { .. }), "{err}");
    let err = FileDevice::open("/dev/null").unwrap_err();
    assert!(
        err.to_string().contains("/dev/null is a character device"),
        "{err}"
    );
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let err = FileDevice::open_read_only(&socket).unwrap_err();
    assert!(
        matches!(err, OpenError::NotADevice { kind: "socket", .. }),
        "{err}"
    );
    let err = FileDevice::create(dir.path().join("none/disk.img"), 1).unwrap_err();
    assert!(err.to_string().ends_with("none; make it first"), "{err}");
}

#[test]
fn no_permission_is_said() {
    let (_dir, device) = image(4096);
    let path = device.path().to_owned();
    drop(device);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    if rustix::process::geteuid().is_root() {
        // Root may open everything, so the mapping itself is what can be tested.
        let err = open_error(&path, Access::ReadWrite, Errno::ACCESS.into(), None);
        assert!(err.to_string().contains("open it read-only"), "{err}");
        let err = create_error(&path, Errno::ACCESS.into());
        assert!(err.to_string().contains("choose another place"), "{err}");
    } else {
        let err = FileDevice::open(&path).unwrap_err();
        assert!(
            matches!(err, OpenError::PermissionDenied { write: true, .. }),
            "{err}"
        );
    }
    FileDevice::open_read_only(&path).unwrap();
}

#[test]
fn an_error_leaves_its_cause_to_the_chain() {
    let err = OpenError::io(Path::new("a"), "lock it", Errno::IO.into());
    assert_eq!(err.to_string(), "a: cannot lock it");
    let source = std::error::Error::source(&err).expect("the cause");
    assert!(source.to_string().contains("os error 5"), "{source}");
}

#[test]
fn a_writer_excludes_all_and_is_named() {
    let (_dir, device) = image(4096);
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    for result in [
        FileDevice::open(device.path()),
        FileDevice::open_read_only(device.path()),
    ] {
        let OpenError::InUse { holder, .. } = result.unwrap_err() else {
            panic!("not refused as in use");
        };
        let Holder::Process { pid, command } = &holder else {
            panic!("{holder:?}")
        };
        assert_eq!(*pid, std::process::id());
        assert_eq!(command, comm.trim_end());
        assert!(holder.to_string().contains(&format!("(pid {pid})")));
    }
    let path = device.path().to_owned();
    drop(device);
    let reader = FileDevice::open_read_only(&path).unwrap();
    let second = FileDevice::open_read_only(&path).unwrap();
    assert!(matches!(
        FileDevice::open(&path),
        Err(OpenError::InUse { .. })
    ));
    drop((reader, second));
    FileDevice::open(&path).unwrap();
}

#[test]
fn an_opening_waits_for_a_holder_that_goes_away() {
    let (_dir, device) = image(4096);
    let path = device.path().to_owned();
    let leaver = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        drop(device);
    });
    FileDevice::open(path).unwrap();
    leaver.join().unwrap();
}

#[test]
fn read_only_refuses_every_change() {
    let (_dir, device) = image(4096);
    let path = device.path().to_owned();
    drop(device);
    let mut device = FileDevice::open_read_only(path).unwrap();
    assert!(device.is_read_only());
    let is_rofs = |result: io::Result<()>| {
        result.unwrap_err().raw_os_error() == Some(Errno::ROFS.raw_os_error())
    };
    assert!(is_rofs(device.write_at(0, b"x")));
    assert!(is_rofs(device.write_vectored_at(0, &[IoSlice::new(b"x")])));
    assert!(is_rofs(device.write_zeroes(0, 1)));
    assert!(is_rofs(device.discard(0, 1)));
    assert!(is_rofs(device.resize(1)));
    device.flush().unwrap();
}

#[test]
fn beyond_the_end_is_refused_and_does_not_grow_the_file() {
    let (_dir, mut device) = image(1000);
    assert!(device.write_at(999, b"xy").is_err());
    assert!(device.read_at(u64::MAX, &mut [0; 2]).is_err());
    assert!(device.write_zeroes(0, 1001).is_err());
    assert_eq!(
        device.backing_file().unwrap().metadata().unwrap().len(),
        1000
    );
    device.resize(2000).unwrap();
    device.write_at(1998, b"xy").unwrap();
    assert_eq!(device.size_bytes(), 2000);
}

#[test]
fn a_file_cut_short_is_an_error() {
    let (_dir, device) = image(8192);
    device.backing_file().unwrap().set_len(5000).unwrap();
    let err = device.read_at(4096, &mut [0; 4096]).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    let (mut a, mut b) = ([0; 4096], [0; 4096]);
    let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
    let err = device.read_vectored_at(0, &mut bufs).unwrap_err();
    assert!(err.to_string().contains("made shorter"), "{err}");
}

#[test]
fn more_slices_than_one_call_takes() {
    let (_dir, device) = image(100_000);
    let data: Vec<[u8; 7]> = (0..5000u32).map(|i| [(i % 251) as u8 + 1; 7]).collect();
    let slices: Vec<IoSlice<'_>> = data.iter().map(|piece| IoSlice::new(piece)).collect();
    device.write_vectored_at(11, &slices).unwrap();
    let mut back = vec![[0u8; 7]; 5000];
    let mut slices: Vec<IoSliceMut<'_>> = back
        .iter_mut()
        .map(|piece| IoSliceMut::new(piece))
        .collect();
    device.read_vectored_at(11, &mut slices).unwrap();
    assert!(
        slices.iter().all(|slice| slice.len() == 7),
        "the slices stay as they were"
    );
    assert!(back == data);
    assert!(content(&device)[11..11 + 35_000] == data.concat());
}

#[test]
fn empty_slices_do_not_stop_a_transfer() {
    let (_dir, device) = image(4096);
    let bufs: Vec<IoSlice<'_>> = std::iter::repeat_n(IoSlice::new(b""), 3000)
        .chain([IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")])
        .collect();
    device.write_vectored_at(1, &bufs).unwrap();
    let (mut a, mut b, mut none) = ([0; 1], [0; 2], []);
    let mut bufs = [
        IoSliceMut::new(&mut none),
        IoSliceMut::new(&mut a),
        IoSliceMut::new(&mut b),
    ];
    device.read_vectored_at(1, &mut bufs).unwrap();
    assert_eq!((&a, &b), (b"a", b"bc"));
    device.read_vectored_at(0, &mut []).unwrap();
}

#[test]
fn holes_give_space_back() {
    let (_dir, device) = image(4 << 20);
    let file = device.backing_file().unwrap();
    let allocated = || {
        device.flush().unwrap();
        file.metadata().unwrap().blocks() * 512
    };
    device.write_at(0, &vec![7; 4 << 20]).unwrap();
    assert!(allocated() >= 4 << 20);
    device.discard(0, 2 << 20).unwrap();
    device.write_zeroes((2 << 20) + 3, (1 << 20) - 3).unwrap();
    let bytes = content(&device);
    assert!(bytes[2 << 20..][..3] == [7; 3]);
    assert!(bytes[(2 << 20) + 3..3 << 20].iter().all(|&byte| byte == 0));
    assert!(bytes[3 << 20..].iter().all(|&byte| byte == 7));
    if device.can_punch_hole.load(Ordering::Relaxed) {
        assert!(allocated() <= (1 << 20) + 65_536);
    }
}

#[test]
fn zeros_are_written_where_the_host_has_no_holes() {
    let (_dir, device) = image(1 << 20);
    device.write_at(0, &vec![7; 1 << 20]).unwrap();
    device.can_punch_hole.store(false, Ordering::Relaxed);
    device.write_zeroes(100, 500_000).unwrap();
    device.can_zero_range.store(false, Ordering::Relaxed);
    device.write_zeroes(500_100, 500_000).unwrap();
    device.discard(0, 100).unwrap();
    let bytes = content(&device);
    assert!(bytes[..100].iter().all(|&byte| byte == 7));
    assert!(bytes[100..1_000_100].iter().all(|&byte| byte == 0));
    assert!(bytes[1_000_100..].iter().all(|&byte| byte == 7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn equals_a_vector(
        ops in prop::collection::vec((0..3u8, 0..300_000usize, 1..200_000usize, any::<u8>()), 1..12)
    ) {
        const SIZE: usize = 300_000;
        let (_dir, device) = image(SIZE as u64);
        let mut model = vec![0u8; SIZE];
        for (kind, offset, len, byte) in ops {
            let len = len.min(SIZE - offset);
            match kind {
                0 => {
                    device.write_at(offset as u64, &vec![byte; len]).unwrap();
                    model[offset..offset + len].fill(byte);
                }
                1 => {
                    let data = vec![byte; len];
                    let slices: Vec<_> = data.chunks(97).map(IoSlice::new).collect();
                    device.write_vectored_at(offset as u64, &slices).unwrap();
                    model[offset..offset + len].fill(byte);
                }
                _ => {
                    device.write_zeroes(offset as u64, len as u64).unwrap();
                    model[offset..offset + len].fill(0);
                }
            }
        }
        prop_assert!(content(&device) == model);
    }
}
