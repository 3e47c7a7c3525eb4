//! A whole FUSE session on the bytes of a hostile guest, over an image and over a directory.
#![allow(
    unsafe_code,
    reason = "requests and replies in several pieces of memory"
)]

use crate::guest::{Guest, Request};
use crate::input::Input;
use crate::served;
use kfsd::fuse::{DataSink, DataSource, Scratch, Segment, Session};
use kfsd::volume::Volume;

/// Most requests of a session.
const REQUESTS_MAX: usize = 48;

/// A session over an image.
pub fn fuse(data: &[u8]) {
    let mut input = Input::new(data);
    let (volume, session) = served::image(input.u8());
    talk(&session, &mut input, false);
    session.end();
    drop(session);
    let _ = volume.shutdown();
}

/// Sends what the input says until it is at its end.
pub(super) fn talk(session: &Session, input: &mut Input<'_>, is_modest: bool) {
    let (mut guest, mut scratch) = (Guest::new(is_modest), Scratch::new());
    let how = input.u8();
    if how == 0xff && !is_modest {
        // Raw bytes, cut into requests of one length.
        let len = usize::from(input.u8()) + 1;
        while !input.is_empty() {
            let bytes = input.take(len).to_vec();
            let request = Request {
                bytes,
                room: 4096,
                opcode: None,
            };
            send(session, &mut guest, &request, &mut scratch, 0);
        }
        return;
    }
    if how & 0x1f != 0x1f {
        let init = guest.init(input);
        send(session, &mut guest, &init, &mut scratch, 0);
    }
    for _ in 0..REQUESTS_MAX {
        if input.is_empty() {
            break;
        }
        let request = guest.request(input);
        send(session, &mut guest, &request, &mut scratch, how >> 5);
    }
}

/// `cut` says how the request and the room for its reply are cut into pieces.
fn send(session: &Session, guest: &mut Guest, request: &Request, scratch: &mut Scratch, cut: u8) {
    let mut bytes = request.bytes.clone();
    let mut reply = vec![0xee; request.room];
    let mut readable = segments(&mut bytes, [usize::MAX, 40, 13, 4096][usize::from(cut & 3)]);
    let mut writable = segments(&mut reply, [usize::MAX, 1000][usize::from(cut >> 2)]);
    // SAFETY: the segments lie in `bytes` and `reply`, which outlive the cursors and are not looked
    // at before these are gone.
    let (source, sink) = unsafe {
        (
            DataSource::from_segments(&mut readable),
            DataSink::from_segments(&mut writable),
        )
    };
    let len = session.handle(source, sink, scratch);
    guest.reply(request, &reply[..len]);
}

fn segments(bytes: &mut [u8], len: usize) -> Vec<Segment> {
    bytes
        .chunks_mut(len)
        .map(|piece| Segment::new(piece.as_mut_ptr(), piece.len()))
        .collect()
}
