//! Tests of `CrashDevice`.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const SECTOR: usize = 512;
const SECTORS: usize = 24;
const SIZE: usize = SECTORS * SECTOR;

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: usize,
        count: usize,
        byte: u8,
    },
    Zero {
        sector: usize,
        count: usize,
    },
    Discard {
        sector: usize,
        count: usize,
    },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || {
        (0..SECTORS, 1..6usize).prop_map(|(sector, count)| (sector, count.min(SECTORS - sector)))
    };
    prop_oneof![
        5 => (range(), 1..=255u8)
            .prop_map(|((sector, count), byte)| Step::Write { sector, count, byte }),
        1 => range().prop_map(|(sector, count)| Step::Zero { sector, count }),
        1 => range().prop_map(|(sector, count)| Step::Discard { sector, count }),
        1 => Just(Step::Flush),
    ]
}

/// Runs the steps and returns the content after each, with the position of the last flush.
fn run(device: &CrashDevice, steps: &[Step]) -> Vec<(Vec<u8>, usize)> {
    let mut states = vec![(device.snapshot().to_vec(), 0)];
    for (index, step) in steps.iter().enumerate() {
        let (mut content, mut flushed) = states[index].clone();
        let bytes = |sector: usize, count: usize| sector * SECTOR..(sector + count) * SECTOR;
        let place = |sector: usize, count: usize| ((sector * SECTOR) as u64, count * SECTOR);
        match *step {
            Step::Write {
                sector,
                count,
                byte,
            } => {
                let (offset, len) = place(sector, count);
                device.write_at(offset, &vec![byte; len]).unwrap();
                content[bytes(sector, count)].fill(byte);
            }
            Step::Zero { sector, count } => {
                let (offset, len) = place(sector, count);
                device.write_zeroes(offset, len as u64).unwrap();
                content[bytes(sector, count)].fill(0);
            }
            Step::Discard { sector, count } => {
                let (offset, len) = place(sector, count);
                device.discard(offset, len as u64).unwrap();
                content[bytes(sector, count)].fill(0);
            }
            Step::Flush => {
                device.flush().unwrap();
                flushed = index + 1;
            }
        }
        states.push((content, flushed));
    }
    states
}

fn device() -> CrashDevice {
    CrashDevice::new(MemoryDevice::from_bytes(&[0xee; SIZE]))
}

fn content(point: &CrashPoint, policy: CrashPolicy, seed: u64) -> Vec<u8> {
    point.image(policy, seed).to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Each sector of each image is a version that it had at the last flush or later.
    #[test]
    fn images_hold_only_versions_since_the_flush(
        steps in prop::collection::vec(step(), 0..25), seed in any::<u64>()
    ) {
        let device = device();
        let states = run(&device, &steps);
        prop_assert_eq!(device.position(), steps.len());
        prop_assert_eq!(device.crash_points().len(), states.len());
        for (point, (latest, flushed)) in device.crash_points().zip(&states) {
            let position = point.position();
            prop_assert_eq!(point.pending(), position - flushed);
            prop_assert!(content(&point, CrashPolicy::None, seed) == states[*flushed].0);
            prop_assert!(content(&point, CrashPolicy::All, seed) == *latest);
            for policy in [CrashPolicy::Subset, CrashPolicy::Torn, CrashPolicy::Reordered] {
                let image = content(&point, policy, seed);
                for (index, sector) in image.chunks(SECTOR).enumerate() {
                    let known = states[*flushed..=position]
                        .iter()
                        .any(|(state, _)| state[index * SECTOR..][..SECTOR] == *sector);
                    prop_assert!(known, "sector {} at {} by {}", index, position, policy);
                }
                prop_assert!(device.crash_image_at(position, policy, seed).to_vec() == image);
            }
        }
    }

    /// The live content is that of the last position.
    #[test]
    fn log_replays_to_the_live_content(steps in prop::collection::vec(step(), 0..25)) {
        let device = device();
        run(&device, &steps);
        let last = device.crash_image_at(steps.len(), CrashPolicy::All, 0);
        prop_assert!(last.to_vec() == device.snapshot().to_vec());
    }
}

#[test]
fn few_pending_give_all_subsets() {
    let device = device();
    device.write_at(0, &[9; SECTOR]).unwrap();
    device.flush().unwrap();
    for sector in 0..4u8 {
        device
            .write_at(u64::from(sector) * 512, &[sector + 1; SECTOR])
            .unwrap();
    }
    let point = device.crash_points().last().unwrap();
    let images: HashSet<Vec<u8>> = point
        .images(16, 1)
        .map(|image| image.device.to_vec())
        .collect();
    assert_eq!(images.len(), 16);
    // Single sectors cannot tear, so a larger budget changes nothing.
    assert_eq!(point.images(100, 1).count(), 16);
    // Below, it is random; the two extremes are always there.
    let images: Vec<_> = point.images(8, 1).collect();
    assert_eq!(images.len(), 8);
    assert_eq!(
        (images[0].policy, images[1].policy),
        (CrashPolicy::None, CrashPolicy::All)
    );
}

#[test]
fn nothing_pending_gives_one_image() {
    let device = device();
    device.write_at(0, &[1; 100]).unwrap();
    device.flush().unwrap();
    let point = device.crash_points().last().unwrap();
    assert_eq!((point.pending(), point.images(50, 3).count()), (0, 1));
}

#[test]
fn large_writes_tear_at_sectors() {
    let device = device();
    device.write_at(256, &[1; 2048]).unwrap();
    let point = device.crash_points().last().unwrap();
    let mut torn = 0;
    for image in point.images(64, 7) {
        let bytes = image.device.to_vec();
        assert!(
            bytes[..256]
                .iter()
                .chain(&bytes[2304..])
                .all(|&byte| byte == 0xee)
        );
        let written = &bytes[256..2304];
        let mixed = written.contains(&1) && written.contains(&0xee);
        torn += usize::from(mixed);
        for range in [0..256, 256..768, 768..1280, 1280..1792, 1792..2048] {
            let piece = &written[range];
            assert!(piece.iter().all(|&byte| byte == piece[0]), "{image}");
        }
    }
    assert!(torn > 10, "{torn}");
}

#[test]
fn the_same_seed_gives_the_same_image() {
    let device = device();
    for sector in 0..20u8 {
        device
            .write_at(u64::from(sector) * 512, &[sector + 1; 1024])
            .unwrap();
    }
    let point = device.crash_points().last().unwrap();
    let mut different = HashSet::new();
    for image in point.images(40, 11) {
        let again = device.crash_image_at(image.position, image.policy, image.seed);
        assert!(again.to_vec() == image.device.to_vec(), "{image}");
        different.insert(again.to_vec());
    }
    assert!(different.len() > 35, "{}", different.len());
}

#[test]
fn reordering_lets_an_older_write_win() {
    let device = device();
    device.write_at(0, &[1; SECTOR]).unwrap();
    device.write_at(0, &[2; SECTOR]).unwrap();
    let point = device.crash_points().last().unwrap();
    let winners: HashSet<u8> = (0..50)
        .map(|seed| content(&point, CrashPolicy::Reordered, seed)[0])
        .collect();
    assert_eq!(winners, HashSet::from([0xee, 1, 2]));
}

#[test]
fn restart_makes_all_durable() {
    let device = device();
    device
        .write_vectored_at(0, &[IoSlice::new(b"ab"), IoSlice::new(b"cd")])
        .unwrap();
    device.write_at(SIZE as u64 - 1, b"xy").unwrap_err();
    let lines: Vec<String> = device.ops().iter().map(Op::to_string).collect();
    assert_eq!(lines, ["write 0+4"]);
    device.restart_log();
    assert_eq!(device.position(), 0);
    let image = device.crash_image_at(0, CrashPolicy::None, 0);
    assert_eq!(&image.to_vec()[..4], b"abcd");
}

#[test]
#[should_panic(expected = "the position is in the log")]
fn a_position_beyond_the_log_is_refused() {
    device().crash_image_at(1, CrashPolicy::None, 0);
}
