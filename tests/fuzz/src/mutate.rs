//! Inputs without libFuzzer: mutations of kept inputs, made from a seed.

/// A generator of numbers (splitmix64): the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }
}

/// A new input: one of `kept` with a few mutations, now and then a mix of two or all new.
#[must_use]
pub fn mutate(rng: &mut Rng, kept: &[Vec<u8>], max_len: usize) -> Vec<u8> {
    let mut input = match kept.len() {
        0 => Vec::new(),
        _ if rng.below(16) == 0 => Vec::new(),
        len => kept[rng.below(len)].clone(),
    };
    if input.is_empty() {
        let len = rng.below(max_len.min(200)) + 1;
        input = (0..len).map(|_| rng.number() as u8).collect();
    }
    for _ in 0..=rng.below(5) {
        mutate_once(rng, &mut input, kept);
    }
    input.truncate(max_len);
    input
}

fn mutate_once(rng: &mut Rng, input: &mut Vec<u8>, kept: &[Vec<u8>]) {
    if input.is_empty() {
        return input.push(rng.number() as u8);
    }
    let at = rng.below(input.len());
    let len = (rng.below(8) + 1).min(input.len() - at);
    match rng.below(8) {
        0 => input[at] ^= 1 << rng.below(8),
        1 => input[at] = rng.number() as u8,
        2 => input[at] = [0, 1, 0x7f, 0x80, 0xff][rng.below(5)],
        3 => {
            let bytes = rng.number().to_le_bytes();
            input[at..at + len].copy_from_slice(&bytes[..len]);
        }
        4 => drop(input.drain(at..at + len)),
        5 => {
            let bytes = rng.number().to_le_bytes();
            input.splice(at..at, bytes[..len].iter().copied());
        }
        6 => {
            let piece = input[at..at + len].to_vec();
            let target = rng.below(input.len());
            input.splice(target..target, piece);
        }
        _ if kept.is_empty() => {}
        _ => {
            let other = &kept[rng.below(kept.len())];
            let from = rng.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
