//! The value of a `user` row.

use culver_protocol::crypto::FINGERPRINT_LEN;
use culver_protocol::id::{DeviceId, InboxSeq};

use super::{DecodeError, VERSION, VERSION_2, VERSION_3, versioned_to};
use crate::command::Fingerprint;
use crate::key::{split_u16, split_u64};

const READ_RECEIPTS_OFF: u8 = 1;
/// The flag that says that a device was removed.
const REMOVED: u8 = 1 << 1;
/// The bit of `seen day` that says that what is lost ends at the cursor.
const LOST: u32 = 1 << 31;
/// The bit of `seen day` that says that where it ends follows.
const LOST_BELOW: u32 = 1 << 30;
/// The bit of `seen day` that says that the key's fingerprint follows.
const KEY: u32 = 1 << 29;
/// The bit of `seen day` that says that the device has a name.
const NAMED: u32 = 1 << 28;
const DAY_MAX: u32 = NAMED - 1;

/// Bytes of a device in rows of version 1, and the fewest in later ones.
const DEVICE_LEN_1: usize = 10;
const DEVICE_LEN_MIN: usize = 14;

/// The value of a `user` row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRow {
    /// The user gives no read receipts and sees none.
    pub read_receipts_off: bool,
    /// A place that the inbox has reached: its head when the row was written.
    pub head: InboxSeq,
    /// Entries up to here are no longer kept. No cursor is below it.
    pub floor: InboxSeq,
    /// What the entries beyond the floor and up to `head` take.
    pub waiting_bytes: u64,
    /// No receipt of the user's has a greater version; there need be none with this one.
    pub receipts_head: u64,
    /// Tokens issued before this register none of the user's devices, in seconds since 1970; 0: no device was ever
    /// removed.
    pub tokens_from_s: u64,
    /// Up to here a device that was removed may have had what no other has: its senders were told.
    pub had: InboxSeq,
    /// By ascending device.
    pub devices: Vec<DeviceRow>,
}

/// One device in a `user` row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRow {
    /// The device.
    pub device: DeviceId,
    /// What it has acknowledged.
    pub cursor: InboxSeq,
    /// The day it was last seen, in days since 1970; 0: before rows knew it.
    pub seen_day: u32,
    /// Up to here the device lacks entries: they expired, or were there before it was linked, and it has acknowledged
    /// nothing since. It may have stepped over its own, so that the cursor is beyond. 0: it lacks none.
    pub lost_through: InboxSeq,
    /// The key that it is registered with; none: it was only ever seen on connections that are not encrypted.
    pub fingerprint: Option<Fingerprint>,
    /// It has a name: a `device` row says which.
    pub is_named: bool,
}

impl UserRow {
    /// Appends the stored bytes.
    ///
    /// # Panics
    /// If there are 65,536 devices.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = u16::try_from(self.devices.len()).expect("devices are u16 and unique, 65,536 are never linked");
        let is_removed = self.tokens_from_s > 0 || self.had > InboxSeq(0);
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        out.extend_from_slice(&[
            VERSION_3,
            flag(self.read_receipts_off, READ_RECEIPTS_OFF) | flag(is_removed, REMOVED),
        ]);
        for number in [self.head.0, self.floor.0, self.waiting_bytes, self.receipts_head] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        if is_removed {
            out.extend_from_slice(&self.tokens_from_s.to_be_bytes());
            out.extend_from_slice(&self.had.0.to_be_bytes());
        }
        out.extend_from_slice(&count.to_be_bytes());
        self.devices.iter().for_each(|device| device.encode(out));
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no user row of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, rest) = versioned_to(VERSION_3, bytes)?;
        let (flags, rest) = rest.split_first().ok_or(DecodeError::Length)?;
        let (head, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (floor, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let mut row = Self {
            read_receipts_off: flags & READ_RECEIPTS_OFF != 0,
            head: InboxSeq(head),
            floor: InboxSeq(floor),
            ..Self::default()
        };
        let mut rest = rest;
        if version == VERSION {
            // It left no list rows below its floors: they rise once more, and leave them.
            row.floor = InboxSeq(0);
        } else {
            (row.waiting_bytes, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
            (row.receipts_head, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        }
        if version > VERSION_2 && flags & REMOVED != 0 {
            (row.tokens_from_s, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
            (row.had.0, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        }
        let (count, rest) = split_u16(rest).ok_or(DecodeError::Length)?;
        row.devices = decode_devices(version, usize::from(count), rest)?;
        Ok(row)
    }
}

impl DeviceRow {
    fn encode(&self, out: &mut Vec<u8>) {
        let lost = match self.lost_through {
            InboxSeq(0) => 0,
            lost_through if lost_through == self.cursor => LOST,
            _ => LOST_BELOW,
        };
        let key = if self.fingerprint.is_some() { KEY } else { 0 };
        let name = if self.is_named { NAMED } else { 0 };
        out.extend_from_slice(&self.device.0.to_be_bytes());
        out.extend_from_slice(&self.cursor.0.to_be_bytes());
        out.extend_from_slice(&(self.seen_day & DAY_MAX | lost | key | name).to_be_bytes());
        if lost == LOST_BELOW {
            out.extend_from_slice(&self.lost_through.0.to_be_bytes());
        }
        out.extend(self.fingerprint.iter().flatten());
    }

    /// Reads the first device of several, and what follows it.
    fn split(version: u8, bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (device, rest) = split_u16(bytes)?;
        let (cursor, rest) = split_u64(rest)?;
        let (mut day, mut rest) = if version == VERSION {
            (0, rest)
        } else {
            let (day, rest) = rest.split_first_chunk()?;
            (u32::from_be_bytes(*day), rest)
        };
        if version < VERSION_3 {
            day &= !(KEY | NAMED);
        }
        let mut row = Self {
            device: DeviceId(device),
            cursor: InboxSeq(cursor),
            seen_day: day & DAY_MAX,
            is_named: day & NAMED != 0,
            ..Self::default()
        };
        match day & (LOST | LOST_BELOW) {
            0 => {}
            LOST => row.lost_through = row.cursor,
            _ => (row.lost_through.0, rest) = split_u64(rest)?,
        }
        if day & KEY != 0 {
            let (fingerprint, after) = rest.split_first_chunk::<FINGERPRINT_LEN>()?;
            (row.fingerprint, rest) = (Some(*fingerprint), after);
        }
        Some((row, rest))
    }
}

fn decode_devices(version: u8, count: usize, mut rest: &[u8]) -> Result<Vec<DeviceRow>, DecodeError> {
    let device_len = if version == VERSION { DEVICE_LEN_1 } else { DEVICE_LEN_MIN };
    if rest.len() < count * device_len {
        return Err(DecodeError::Length);
    }
    let mut devices: Vec<DeviceRow> = Vec::with_capacity(count);
    for _ in 0..count {
        let (device, after) = DeviceRow::split(version, rest).ok_or(DecodeError::Length)?;
        if devices.last().is_some_and(|last| last.device >= device.device) {
            return Err(DecodeError::Order);
        }
        devices.push(device);
        rest = after;
    }
    if rest.is_empty() { Ok(devices) } else { Err(DecodeError::Length) }
}
