//! The value of a `user` row.

use culver_protocol::id::{DeviceId, InboxSeq};

use super::{DecodeError, VERSION, VERSION_2, versioned_2};
use crate::key::{split_u16, split_u64};

const READ_RECEIPTS_OFF: u8 = 1;
/// The bit of `seen day` that says that what is lost ends at the cursor.
const LOST: u32 = 1 << 31;
/// The bit of `seen day` that says that where it ends follows.
const LOST_BELOW: u32 = 1 << 30;
const DAY_MAX: u32 = LOST_BELOW - 1;

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
}

impl UserRow {
    /// Appends the stored bytes.
    ///
    /// # Panics
    /// If there are 65,536 devices.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = u16::try_from(self.devices.len()).expect("devices are u16 and unique, 65,536 are never linked");
        out.extend_from_slice(&[VERSION_2, if self.read_receipts_off { READ_RECEIPTS_OFF } else { 0 }]);
        for number in [self.head.0, self.floor.0, self.waiting_bytes, self.receipts_head] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        out.extend_from_slice(&count.to_be_bytes());
        for DeviceRow { device, cursor, seen_day, lost_through } in &self.devices {
            let lost = match lost_through {
                InboxSeq(0) => 0,
                lost_through if lost_through == cursor => LOST,
                _ => LOST_BELOW,
            };
            out.extend_from_slice(&device.0.to_be_bytes());
            out.extend_from_slice(&cursor.0.to_be_bytes());
            out.extend_from_slice(&(seen_day & DAY_MAX | lost).to_be_bytes());
            if lost == LOST_BELOW {
                out.extend_from_slice(&lost_through.0.to_be_bytes());
            }
        }
    }

    /// Reads the stored bytes.
    ///
    /// # Errors
    /// They are no user row of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, rest) = versioned_2(bytes)?;
        let (flags, rest) = rest.split_first().ok_or(DecodeError::Length)?;
        let (head, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        let (floor, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
        // Version 1 left no list rows below its floors: they rise once more, and leave them.
        let (floor, waiting_bytes, receipts_head, rest) = if version == VERSION {
            (0, 0, 0, rest)
        } else {
            let (waiting_bytes, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
            let (receipts_head, rest) = split_u64(rest).ok_or(DecodeError::Length)?;
            (floor, waiting_bytes, receipts_head, rest)
        };
        let (count, rest) = split_u16(rest).ok_or(DecodeError::Length)?;
        Ok(Self {
            read_receipts_off: flags & READ_RECEIPTS_OFF != 0,
            head: InboxSeq(head),
            floor: InboxSeq(floor),
            waiting_bytes,
            receipts_head,
            devices: decode_devices(version, usize::from(count), rest)?,
        })
    }
}

fn decode_devices(version: u8, count: usize, mut rest: &[u8]) -> Result<Vec<DeviceRow>, DecodeError> {
    let device_len = if version == VERSION { 10 } else { 14 };
    if rest.len() < count * device_len {
        return Err(DecodeError::Length);
    }
    let mut devices: Vec<DeviceRow> = Vec::with_capacity(count);
    for _ in 0..count {
        let (device, after) = split_u16(rest).ok_or(DecodeError::Length)?;
        let (cursor, after) = split_u64(after).ok_or(DecodeError::Length)?;
        let (day, after) = if version == VERSION {
            (0, after)
        } else {
            let (day, after) = after.split_first_chunk().ok_or(DecodeError::Length)?;
            (u32::from_be_bytes(*day), after)
        };
        let (lost_through, after) = match day & (LOST | LOST_BELOW) {
            0 => (0, after),
            LOST => (cursor, after),
            _ => split_u64(after).ok_or(DecodeError::Length)?,
        };
        if devices.last().is_some_and(|last| last.device >= DeviceId(device)) {
            return Err(DecodeError::Order);
        }
        devices.push(DeviceRow {
            device: DeviceId(device),
            cursor: InboxSeq(cursor),
            seen_day: day & DAY_MAX,
            lost_through: InboxSeq(lost_through),
        });
        rest = after;
    }
    if rest.is_empty() { Ok(devices) } else { Err(DecodeError::Length) }
}
