//! Incomplete records: a pooled buffer for each connection that has one, and nothing for all others.

use std::num::NonZeroU16;

use culver_protocol::limits::{BODY_LEN_MAX, HEADER_LEN};
use culver_protocol::record::{self, Cipher, FrameError, Record};

/// Buffers that are kept for the next, at most.
const SPARE_MAX: usize = 16;

/// The place of a connection's buffer, counted from 1.
pub(super) type PartialIndex = NonZeroU16;

/// Bytes that have come, to be opened in place.
#[derive(Debug)]
pub(super) enum Joined<'a> {
    /// Nothing was waiting for them.
    Alone(&'a mut [u8]),
    /// What had waited is in front of them.
    Behind(Vec<u8>),
}

impl Joined<'_> {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Alone(bytes) => bytes,
            Self::Behind(bytes) => bytes,
        }
    }
}

/// The buffers of one worker.
#[derive(Debug, Default)]
pub(super) struct Partials {
    buffers: Vec<Vec<u8>>,
    free: Vec<PartialIndex>,
}

impl Partials {
    /// What had come of a record, and `bytes` behind it. Every call is followed by [`Partials::keep`].
    pub(super) fn join<'a>(&mut self, place: Option<PartialIndex>, bytes: &'a mut [u8]) -> Joined<'a> {
        match place.and_then(|place| self.buffers.get_mut(position(place))) {
            None => Joined::Alone(bytes),
            Some(buffer) => {
                let mut joined = std::mem::take(buffer);
                joined.extend_from_slice(bytes);
                Joined::Behind(joined)
            }
        }
    }

    /// Keeps what is left of the bytes, and gives back the buffer where nothing is.
    pub(super) fn keep(&mut self, place: Option<PartialIndex>, rest: &[u8]) -> Option<PartialIndex> {
        if rest.is_empty() {
            self.release(place);
            return None;
        }
        let place = place.or_else(|| self.free.pop()).or_else(|| {
            let place = PartialIndex::new(u16::try_from(self.buffers.len() + 1).ok()?)?;
            self.buffers.push(Vec::new());
            Some(place)
        })?;
        let buffer = self.buffers.get_mut(position(place))?;
        buffer.clear();
        buffer.extend_from_slice(rest);
        Some(place)
    }

    /// Bytes of an incomplete record.
    pub(super) fn len(&self, place: Option<PartialIndex>) -> usize {
        place.and_then(|place| self.buffers.get(position(place))).map_or(0, Vec::len)
    }

    /// The connection needs its buffer no more.
    pub(super) fn release(&mut self, place: Option<PartialIndex>) {
        let Some(place) = place else { return };
        if let Some(buffer) = self.buffers.get_mut(position(place)) {
            *buffer = Vec::new();
        }
        self.free.push(place);
        if self.free.len() == self.buffers.len() && self.buffers.len() > SPARE_MAX {
            *self = Self::default();
        }
    }
}

fn position(place: PartialIndex) -> usize {
    usize::from(place.get()) - 1
}

/// Takes the first whole record off `bytes`, and opens it.
///
/// # Errors
/// The framing is broken, or the record is not the server's next.
pub(super) fn next_record<'a>(bytes: &mut &'a mut [u8], cipher: &mut Cipher) -> Result<Option<Record<'a>>, FrameError> {
    let overhead = cipher.overhead();
    let range = record::split(bytes, HEADER_LEN + overhead, BODY_LEN_MAX + overhead)?;
    let Some(range) = range else { return Ok(None) };
    let (frame, rest) = std::mem::take(bytes).split_at_mut(range.end);
    *bytes = rest;
    let body = frame.get_mut(range).expect("the range of a body is within its frame");
    Record::parse(cipher.open(body)?).map(Some)
}
