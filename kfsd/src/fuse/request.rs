//! Parses requests: fixed structures, names and extensions, out of bytes that somebody hostile may
//! have written.
//!
//! All but the data of a WRITE is first copied into the worker's own memory, so a guest cannot
//! change what was already checked. Every length is checked before it is used.

use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::abi::{EXT_GROUPS, ExtHeader, InHeader, NAME_MAX, Secctx};
use super::buffers::DataSource;
use super::file_system::{Context, Creation, Result, SecurityContext};
use super::flags::InitFlags;

/// Most bytes of a request that are not data: SETXATTR's value (64 KiB), two names or a link
/// target, security labels.
const MAX_ARGUMENTS: usize = 144 << 10;

/// A worker's own memory for arguments. Made once for each worker.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Scratch {
    /// Room for the arguments of one request.
    pub fn new() -> Self {
        Self(vec![0; MAX_ARGUMENTS].into_boxed_slice())
    }

    /// Copies what remains of a request.
    pub(crate) fn load(&mut self, source: &mut DataSource<'_>) -> Result<Args<'_>> {
        let bytes = self.0.get_mut(..source.remaining()).ok_or(Errno::TOOBIG)?;
        source.read_exact(bytes)?;
        Ok(Args { bytes })
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a structure off the front of a source.
pub(crate) fn read<T: FromBytes + IntoBytes + FromZeros>(source: &mut DataSource<'_>) -> Result<T> {
    let mut value = T::new_zeroed();
    source.read_exact(value.as_mut_bytes())?;
    Ok(value)
}

/// Reads the header and cuts the source to what belongs to the request.
///
/// `Err` carries the header where there was one, so that the error can be answered.
pub(crate) fn header(
    source: &mut DataSource<'_>,
) -> std::result::Result<InHeader, Option<InHeader>> {
    let header: InHeader = read(source).map_err(|_| None)?;
    let body = (header.len as usize).checked_sub(size_of::<InHeader>());
    match body {
        Some(body) if body <= source.remaining() => {
            source.truncate(body);
            Ok(header)
        }
        _ => Err(Some(header)),
    }
}

impl From<&InHeader> for Context {
    fn from(header: &InHeader) -> Self {
        Self {
            uid: header.uid,
            gid: header.gid,
            pid: header.pid,
            unique: header.unique,
        }
    }
}

/// The arguments of a request that have not been read yet.
#[derive(Debug)]
pub(crate) struct Args<'a> {
    bytes: &'a [u8],
}

impl<'a> Args<'a> {
    /// A structure.
    pub(crate) fn take<T: FromBytes>(&mut self) -> Result<T> {
        let (value, rest) = T::read_from_prefix(self.bytes).map_err(|_| Errno::INVAL)?;
        self.bytes = rest;
        Ok(value)
    }

    /// `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.bytes.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.bytes = rest;
        Ok(bytes)
    }

    /// A string that ends with a NUL, without it.
    pub(crate) fn string(&mut self) -> Result<&'a [u8]> {
        let end = self.bytes.iter().position(|&byte| byte == 0);
        let string = self.bytes(end.ok_or(Errno::INVAL)?)?;
        self.bytes = &self.bytes[1..];
        Ok(string)
    }

    /// A name in a directory; "." and ".." as well.
    pub(crate) fn lookup_name(&mut self) -> Result<&'a [u8]> {
        let name = self.string()?;
        if name.is_empty() || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(name)
    }

    /// A name that may be made, moved or removed.
    pub(crate) fn name(&mut self) -> Result<&'a [u8]> {
        match self.lookup_name()? {
            b"." | b".." => Err(Errno::INVAL),
            name => Ok(name),
        }
    }

    /// The name of an extended attribute.
    pub(crate) fn xattr_name(&mut self) -> Result<&'a [u8]> {
        let name = self.string()?;
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Errno::RANGE);
        }
        Ok(name)
    }

    /// The extensions that a request which makes a node ends with.
    pub(crate) fn creation(
        &mut self,
        umask: u32,
        total_extlen: u16,
        agreed: InitFlags,
    ) -> Result<Creation<'a>> {
        let mut creation = Creation {
            umask,
            ..Creation::default()
        };
        if total_extlen != 0 && self.bytes.len() != usize::from(total_extlen) * 8 {
            return Err(Errno::INVAL);
        }
        // Kernels before 7.38 send a security context without saying so in the header.
        if total_extlen == 0 && !agreed.contains(InitFlags::SECURITY_CTX) {
            return Ok(creation);
        }
        while !self.bytes.is_empty() {
            let extension: ExtHeader = self.take()?;
            let len = (extension.size as usize).checked_sub(size_of::<ExtHeader>());
            let mut body = Args {
                bytes: self.bytes(len.ok_or(Errno::INVAL)?)?,
            };
            match extension.kind {
                0..EXT_GROUPS => creation.security = body.security(extension.kind)?,
                EXT_GROUPS => creation.supplementary_group = body.groups()?,
                _ => {}
            }
        }
        Ok(creation)
    }

    fn security(&mut self, count: u32) -> Result<Option<SecurityContext<'a>>> {
        if count == 0 {
            return Ok(None);
        }
        if count > 1 {
            // No kernel sends more, and dropping one would leave a node without a label.
            return Err(Errno::OPNOTSUPP);
        }
        let head: Secctx = self.take()?;
        let name = self.xattr_name()?;
        let value = self.bytes(head.size as usize)?;
        Ok(Some(SecurityContext { name, value }))
    }

    fn groups(&mut self) -> Result<Option<u32>> {
        match self.take::<u32>()? {
            0 => Ok(None),
            // The protocol has room for more than one, and allows only one.
            1 => self.take().map(Some),
            _ => Err(Errno::INVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(bytes: &[u8]) -> Args<'_> {
        Args { bytes }
    }

    #[test]
    fn names_are_checked() {
        let long = [[b'a'; 256].as_slice(), b"\0"].concat();
        let fits = [[b'a'; 255].as_slice(), b"\0"].concat();
        assert_eq!(args(b"file\0").name(), Ok(b"file".as_slice()));
        assert_eq!(args(&fits).name(), Ok(&fits[..255]));
        assert_eq!(args(&long).name(), Err(Errno::NAMETOOLONG));
        for bad in [b"".as_slice(), b"\0", b"no end", b"a/b\0", b".\0", b"..\0"] {
            assert_eq!(args(bad).name(), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(args(b"..\0").lookup_name(), Ok(b"..".as_slice()));
        assert_eq!(args(b"\0").xattr_name(), Err(Errno::RANGE));
    }

    fn extension(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = (8 + body.len()).next_multiple_of(8);
        let mut bytes = [&(size as u32).to_ne_bytes(), &kind.to_ne_bytes(), body].concat();
        bytes.resize(size, 0);
        bytes
    }

    fn security_context() -> Vec<u8> {
        let mut body = [4u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat();
        body.extend(b"security.selinux\0abcd");
        extension(1, &body)
    }

    #[test]
    fn extensions_are_parsed() {
        let groups = extension(32, &[1u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat());
        let unknown = extension(99, b"whatever");
        let bytes = [security_context(), unknown, groups].concat();
        let words = u16::try_from(bytes.len() / 8).unwrap();
        let creation = args(&bytes)
            .creation(0o22, words, InitFlags::empty())
            .unwrap();
        assert_eq!(creation.umask, 0o22);
        assert_eq!(creation.supplementary_group, Some(7));
        let expected = SecurityContext {
            name: b"security.selinux",
            value: b"abcd",
        };
        assert_eq!(creation.security, Some(expected));
        // An older kernel does not count them.
        let old = args(&bytes).creation(0, 0, InitFlags::SECURITY_CTX);
        assert_eq!(old.unwrap().security, Some(expected));
    }

    #[test]
    fn hostile_extensions_are_refused() {
        let good = security_context();
        let words = u16::try_from(good.len() / 8).unwrap();
        for cut in 1..good.len() {
            let result = args(&good[..cut]).creation(0, 0, InitFlags::SECURITY_CTX);
            assert_eq!(result.unwrap_err(), Errno::INVAL, "cut to {cut}");
        }
        let wrong_count = args(&good).creation(0, words + 1, InitFlags::empty());
        assert_eq!(wrong_count.unwrap_err(), Errno::INVAL);
        for size in [0u32, 7, u32::MAX] {
            let mut bad = good.clone();
            bad[..4].copy_from_slice(&size.to_ne_bytes());
            let result = args(&bad).creation(0, words, InitFlags::empty());
            assert_eq!(result.unwrap_err(), Errno::INVAL, "size {size}");
        }
        let mut label = good;
        label[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        let result = args(&label).creation(0, words, InitFlags::empty());
        assert_eq!(result.unwrap_err(), Errno::INVAL);
        let many = extension(32, &[2u32.to_ne_bytes(), 7u32.to_ne_bytes()].concat());
        let result = args(&many).creation(0, 2, InitFlags::empty());
        assert_eq!(result.unwrap_err(), Errno::INVAL);
    }
}
