//! The content of a file: what is seen, and what a power cut leaves of it. Pages are shared between the two, so a sync
//! costs only what is dirty.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

use super::CutKind;

/// Bytes of a page.
pub(crate) const PAGE_LEN: usize = 4096;

type Page = [u8; PAGE_LEN];

/// A file's bytes. Those of a page beyond the length are zeros.
#[derive(Clone, Debug, Default)]
struct Content {
    /// A page that is not there is zeros.
    pages: Vec<Option<Arc<Page>>>,
    len: u64,
}

/// A file's content.
#[derive(Debug, Default)]
pub(super) struct FileData {
    current: Content,
    durable: Content,
    /// Pages written since they were last synced.
    dirty: BTreeSet<usize>,
    /// Pages whose sync failed: they count as clean, and are not durable.
    lost: BTreeSet<usize>,
    /// The least length since the last sync, if that is less than what is durable.
    truncated_to: Option<u64>,
}

/// What became of the pages that were not durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fate {
    pub(crate) dropped: u64,
    pub(crate) kept: u64,
    pub(crate) torn: u64,
}

impl Content {
    fn page(&self, index: usize) -> Option<&Arc<Page>> {
        self.pages.get(index)?.as_ref()
    }

    fn slot(&mut self, index: usize) -> &mut Option<Arc<Page>> {
        if self.pages.len() <= index {
            self.pages.resize(index + 1, None);
        }
        self.pages.get_mut(index).expect("it was made")
    }

    /// Bytes of a page, to be changed.
    fn page_mut(&mut self, index: usize) -> &mut Page {
        Arc::make_mut(self.slot(index).get_or_insert_with(|| Arc::new([0; PAGE_LEN])))
    }

    /// Shortens it, and says which page lost its tail.
    fn truncate(&mut self, len: u64) -> Option<usize> {
        if len >= self.len {
            return None;
        }
        self.len = len;
        self.pages.truncate(page_count(len));
        let (last, tail) = place(len);
        let has_tail = tail > 0 && self.page(last).is_some();
        if has_tail {
            self.page_mut(last).get_mut(tail..).expect("within a page").fill(0);
        }
        has_tail.then_some(last)
    }

    fn page_total(&self) -> u64 {
        self.pages.iter().flatten().count() as u64
    }
}

impl FileData {
    pub(super) fn len(&self) -> u64 {
        self.current.len
    }

    /// Pages that take room now.
    pub(super) fn page_total(&self) -> u64 {
        self.current.page_total()
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let left = self.current.len.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        let mut bytes = vec![0; len];
        for (index, start, chunk) in chunks_mut(offset, &mut bytes) {
            if let Some(page) = self.current.page(index) {
                chunk.copy_from_slice(page.get(start..start + chunk.len()).expect("within a page"));
            }
        }
        bytes
    }

    /// How much of a write fits, if so many pages may be added, and how many it adds.
    pub(super) fn fitting(&self, offset: u64, len: usize, free_pages: u64) -> (usize, u64) {
        let (mut fits, mut added) = (0, 0);
        let mut position = offset;
        let end = offset + len as u64;
        while position < end {
            let (index, start) = place(position);
            if self.current.page(index).is_none() {
                if added == free_pages {
                    break;
                }
                added += 1;
            }
            let step = (PAGE_LEN - start).min(len - fits);
            fits += step;
            position += step as u64;
        }
        (fits, added)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, start, chunk) in chunks(offset, bytes) {
            let page = self.current.page_mut(index);
            page.get_mut(start..start + chunk.len()).expect("within a page").copy_from_slice(chunk);
            self.dirty.insert(index);
            self.lost.remove(&index);
        }
        if !bytes.is_empty() {
            self.current.len = self.current.len.max(offset + bytes.len() as u64);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len >= self.current.len {
            self.current.len = len;
            return;
        }
        let shortened = self.current.truncate(len);
        let gone = page_count(len);
        self.dirty.split_off(&gone);
        self.lost.split_off(&gone);
        self.dirty.extend(shortened);
        if len < self.durable.len {
            self.truncated_to = Some(self.truncated_to.map_or(len, |before| before.min(len)));
        }
    }

    /// All of it is durable from now on, but for what was lost before.
    pub(super) fn sync(&mut self) {
        if let Some(len) = self.truncated_to.take() {
            self.durable.truncate(len);
        }
        for index in std::mem::take(&mut self.dirty) {
            *self.durable.slot(index) = self.current.page(index).cloned();
        }
        // A page that was lost has taken the length with it.
        let mut end = page_count(self.current.len);
        while end > 0 && self.lost.contains(&(end - 1)) {
            end -= 1;
        }
        let reached = self.current.len.min((end * PAGE_LEN) as u64);
        self.durable.len = self.durable.len.max(reached);
    }

    /// The trap of a failed sync: nothing became durable, and nothing is dirty any more.
    pub(super) fn lose(&mut self) {
        self.lost.append(&mut self.dirty);
    }

    /// The power is cut. What survives is what is seen from then on.
    pub(super) fn cut(&mut self, kind: CutKind, random: &mut SmallRng) -> Fate {
        if self.dirty.is_empty() && self.lost.is_empty() && self.truncated_to.is_none() {
            if self.current.len != self.durable.len {
                self.current = self.durable.clone();
            }
            return Fate::default();
        }
        let mut fate = Fate { dropped: self.lost.len() as u64, ..Fate::default() };
        let before = std::mem::take(&mut self.current);
        if let Some(len) = self.truncated_to.take()
            && kind != CutKind::Drop
            && random.random()
        {
            self.durable.truncate(len);
        }
        self.lost.clear();
        let dirty = std::mem::take(&mut self.dirty);
        let share: f64 = random.random();
        let whole = random.random_range(0..=dirty.len());
        for (position, index) in dirty.into_iter().enumerate() {
            let survives = match kind {
                CutKind::Drop => 0,
                CutKind::Subset if random.random_bool(share) => PAGE_LEN,
                CutKind::Torn if position < whole => PAGE_LEN,
                CutKind::Torn if position == whole => random.random_range(1..PAGE_LEN),
                CutKind::Subset | CutKind::Torn => 0,
            };
            match survives {
                0 => fate.dropped += 1,
                PAGE_LEN => fate.kept += 1,
                _ => fate.torn += 1,
            }
            self.survive(index, survives, &before);
        }
        self.current = self.durable.clone();
        fate
    }

    /// The first bytes of a page reach the disk, and the length with them.
    fn survive(&mut self, index: usize, bytes: usize, before: &Content) {
        if bytes == 0 {
            return;
        }
        let Some(page) = before.page(index) else { return };
        let end = before.len.min((index * PAGE_LEN + bytes) as u64);
        let (first, _) = page.split_at(bytes);
        self.durable.page_mut(index).get_mut(..bytes).expect("within a page").copy_from_slice(first);
        self.durable.len = self.durable.len.max(end);
    }
}

/// Pages that a length takes.
fn page_count(len: u64) -> usize {
    usize::try_from(len.div_ceil(PAGE_LEN as u64)).expect("a file fits in memory")
}

/// The page of an offset, and the place in it.
fn place(offset: u64) -> (usize, usize) {
    let offset = usize::try_from(offset).expect("a file fits in memory");
    (offset / PAGE_LEN, offset % PAGE_LEN)
}

/// Splits bytes at pages: the page, where in it, and the bytes.
fn chunks(offset: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, usize, &[u8])> {
    let (mut position, mut rest) = (offset, bytes);
    std::iter::from_fn(move || {
        let (index, start) = place(position);
        let (chunk, after) = rest.split_at(rest.len().min(PAGE_LEN - start));
        position += chunk.len() as u64;
        rest = after;
        (!chunk.is_empty()).then_some((index, start, chunk))
    })
}

fn chunks_mut(offset: u64, bytes: &mut [u8]) -> impl Iterator<Item = (usize, usize, &mut [u8])> {
    let (mut position, mut rest) = (offset, bytes);
    std::iter::from_fn(move || {
        let (index, start) = place(position);
        let taken = std::mem::take(&mut rest);
        let (chunk, after) = taken.split_at_mut(taken.len().min(PAGE_LEN - start));
        position += chunk.len() as u64;
        rest = after;
        (!chunk.is_empty()).then_some((index, start, chunk))
    })
}
