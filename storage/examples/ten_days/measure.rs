//! What the volume holds after it was merged, and whether that is little enough.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;

use culver_protocol::id::{InboxSeq, UserId};
use culver_storage::engine::{Engine, Family, Tier};
use culver_storage::key::{self, TalkKind};
use culver_storage::value::UserRow;

use crate::Options;
use crate::world::{Counts, World};

/// How much may be there for a byte undelivered.
const TIMES_UNDELIVERED_MAX: f64 = 2.0;
/// Bytes a dedup row may take.
const DEDUP_BYTES_MAX: f64 = 80.0;

/// Rows, bytes of their keys and values, and bytes of the files they lie in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    rows: u64,
    bytes: u64,
    file_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Measured {
    families: Vec<(Family, Size)>,
    lists: Size,
    /// Entries above the floor of their inbox.
    undelivered: Size,
    /// Inbox rows that should be gone.
    delivered: Size,
    directory_bytes: u64,
}

pub(crate) struct Report<'a> {
    pub(crate) options: &'a Options,
    pub(crate) counts: Counts,
    pub(crate) measured: Measured,
    /// Bytes of the directory before it was merged.
    pub(crate) before: u64,
    pub(crate) traffic_s: f64,
    pub(crate) compact_s: f64,
}

impl Size {
    fn count(&mut self, key: &[u8], value: &[u8]) {
        self.rows += 1;
        self.bytes += (key.len() + value.len()) as u64;
    }
}

impl Measured {
    pub(crate) fn of(world: &World, directory: &Path) -> Self {
        let (mut floors, mut lists) = (HashMap::<UserId, InboxSeq>::new(), Size::default());
        let (mut undelivered, mut delivered) = (Size::default(), Size::default());
        // Floors are needed before entries.
        let mut families: Vec<_> = Family::ALL.into_iter().filter(|family| *family != Family::User).collect();
        families.insert(0, Family::User);
        let mut sizes = Vec::new();
        for family in families {
            let mut size = Size { file_bytes: world.engine.files_bytes(family), ..Size::default() };
            every_row(world, family, |key, value| {
                size.count(key, value);
                match family {
                    Family::User => {
                        let (_, user) = key::decode_user(key).expect("a key of ours");
                        floors.insert(user, UserRow::decode(value).expect("a row of ours").floor);
                    }
                    Family::Inbox => {
                        let (_, user, seq) = key::decode_inbox(key).expect("a key of ours");
                        let is_waiting = floors.get(&user).is_none_or(|floor| seq > *floor);
                        if is_waiting { undelivered.count(key, value) } else { delivered.count(key, value) }
                    }
                    Family::Member if matches!(key::decode_talk(key), Some((.., TalkKind::List))) => {
                        lists.count(key, value);
                    }
                    _ => {}
                }
            });
            if family == Family::Member {
                // They lie among other rows: their part of the files, as that of the bytes.
                lists.file_bytes = lists.bytes * size.file_bytes / size.bytes.max(1);
            }
            sizes.push((family, size));
        }
        Self { families: sizes, lists, undelivered, delivered, directory_bytes: folder_bytes(directory) }
    }

    pub(crate) fn undelivered_count(&self) -> u64 {
        self.undelivered.rows
    }

    fn size(&self, family: Family) -> Size {
        self.families.iter().find(|(of, _)| *of == family).map(|(_, size)| *size).unwrap_or_default()
    }

    /// Bytes of the directory that neither dedup nor lists are to be blamed for.
    fn rest_bytes(&self) -> u64 {
        self.directory_bytes.saturating_sub(self.size(Family::Dedup).file_bytes + self.lists.file_bytes)
    }

    fn times_undelivered(&self) -> f64 {
        self.rest_bytes() as f64 / self.undelivered.bytes.max(1) as f64
    }

    fn dedup_bytes_per_message(&self, messages: u64) -> f64 {
        self.size(Family::Dedup).file_bytes as f64 / messages.max(1) as f64
    }
}

fn every_row(world: &World, family: Family, mut visit: impl FnMut(&[u8], &[u8])) {
    let visit = &mut |key: &[u8], value: &[u8]| {
        visit(key, value);
        ControlFlow::Continue(())
    };
    world.engine.scan(family, &[], &[0xff; 64], Tier::Disk, visit).expect("the engine reads");
}

/// Bytes of all files below a folder.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("our own folder can be read");
    let bytes = entries.map(|entry| {
        let entry = entry.expect("our own folder can be read");
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // Deleted meanwhile: it was no longer in use.
            Err(_) => 0,
        }
    });
    bytes.sum()
}

impl Report<'_> {
    /// Thresholds that are missed.
    pub(crate) fn missed(&self) -> Vec<String> {
        let (times, dedup) =
            (self.measured.times_undelivered(), self.measured.dedup_bytes_per_message(self.counts.messages));
        let mut missed = Vec::new();
        if times > TIMES_UNDELIVERED_MAX {
            missed.push(format!("{times:.2} times what is undelivered, at most {TIMES_UNDELIVERED_MAX}"));
        }
        if dedup > DEDUP_BYTES_MAX {
            missed.push(format!("{dedup:.1} bytes of dedup a message, at most {DEDUP_BYTES_MAX}"));
        }
        missed
    }

    pub(crate) fn table(&self) -> String {
        let Self { options, counts, measured, .. } = self;
        let mut text = format!(
            "{} messages of {} bytes and {} copies, {} users, {} days, seed {}: {} acks, {} receipts, {} reads, {} folds, \
             {} batches in {:.0} s, merged in {:.1} s\n\n{:<24} {:>12} {:>16} {:>16}\n",
            counts.messages,
            options.payload_len,
            counts.copies,
            options.users,
            options.days,
            options.seed,
            counts.acks,
            counts.receipts,
            counts.reads,
            counts.folds,
            counts.batches,
            self.traffic_s,
            self.compact_s,
            "family",
            "rows",
            "row bytes",
            "file bytes",
        );
        let mut line = |name: &str, size: Size| {
            let Size { rows, bytes, file_bytes } = size;
            let written = writeln!(text, "{name:<24} {rows:>12} {bytes:>16} {file_bytes:>16}");
            written.expect("a string takes any text");
        };
        for (family, size) in &measured.families {
            line(family.name(), *size);
        }
        line("of these: lists", measured.lists);
        line("of these: undelivered", measured.undelivered);
        line("of these: delivered", measured.delivered);
        text.push_str(&format!(
            "\ndirectory {} bytes ({} before merging); less dedup and lists {}: {:.2} times what is undelivered; dedup \
             {:.1} bytes a message\n",
            measured.directory_bytes,
            self.before,
            measured.rest_bytes(),
            measured.times_undelivered(),
            measured.dedup_bytes_per_message(counts.messages)
        ));
        for missed in self.missed() {
            text.push_str(&format!("MISSED: {missed}\n"));
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let Self { options, counts, measured, .. } = self;
        let size = |size: &Size| serde_json::json!({ "rows": size.rows, "row_bytes": size.bytes, "file_bytes": size.file_bytes });
        let families: serde_json::Map<_, _> =
            measured.families.iter().map(|(family, of)| (family.name().to_owned(), size(of))).collect();
        let report = serde_json::json!({
            "settings": {
                "messages": options.messages, "users": options.users, "days": options.days,
                "payload_bytes": options.payload_len, "batch_records": options.batch_len, "seed": options.seed,
            },
            "messages": counts.messages, "copies": counts.copies, "acks": counts.acks, "receipts": counts.receipts,
            "reads": counts.reads, "folds": counts.folds, "batches": counts.batches,
            "traffic_s": self.traffic_s, "compact_s": self.compact_s,
            "families": families, "lists": size(&measured.lists), "undelivered": size(&measured.undelivered),
            "delivered": size(&measured.delivered), "directory_bytes": measured.directory_bytes,
            "directory_bytes_before": self.before, "rest_bytes": measured.rest_bytes(),
            "times_undelivered": measured.times_undelivered(),
            "dedup_bytes_per_message": measured.dedup_bytes_per_message(counts.messages), "missed": self.missed(),
        });
        format!("{}\n", serde_json::to_string_pretty(&report).expect("strings and numbers are JSON"))
    }
}
