//! `Input`: the bytes of one execution, taken off piece by piece.
//!
//! An input that is too short goes on with zeros, so every byte string is a whole input, and a
//! mutation of one piece leaves the pieces before it alone.

/// What is left of an input.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of it.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether everything was taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes, or what is left.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        head
    }

    /// All that is left.
    pub fn take_rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// The next `N` bytes, with zeros for those that are missing.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let taken = self.take(N);
        out[..taken.len()].copy_from_slice(taken);
        out
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, out of 16 bits.
    pub fn index(&mut self, end: usize) -> usize {
        usize::from(self.u16()) % end.max(1)
    }

    /// One of some; `None` where there is none.
    pub fn pick<'t, T>(&mut self, from: &'t [T]) -> Option<&'t T> {
        let index = self.index(from.len());
        from.get(index)
    }

    /// A number as hostile programs choose them: small, near a power of two, or any.
    pub fn number(&mut self) -> u64 {
        let kind = self.u8();
        let shift = u32::from(kind & 63);
        match kind >> 6 {
            0 => u64::from(kind & 63),
            1 => 1 << shift,
            2 => (1u64 << shift).wrapping_sub(1),
            _ => match kind & 3 {
                0 => u64::from(self.u8()),
                1 => u64::from(self.u16()),
                2 => u64::from(self.u32()),
                _ => self.u64(),
            },
        }
    }
}
