//! What the disk promises, without a kernel.

use std::collections::BTreeMap;

use super::file::FileData;
use super::*;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const ATTRIBUTES: Attributes =
    Attributes { permissions: 0o755, user: 0, group: 0, accessed: NOW, modified: NOW, changed: NOW };
const KINDS: [CutKind; 3] = [CutKind::Drop, CutKind::Subset, CutKind::Torn];
const PAGE: u64 = PAGE_LEN as u64;

fn disk(seed: u64) -> Model {
    Model::new(seed, ATTRIBUTES)
}

fn root(name: &str) -> (NodeId, &OsStr) {
    (NodeId::ROOT, OsStr::new(name))
}

fn create(disk: &mut Model, name: &str) -> HandleId {
    let node = disk.create(root(name), ATTRIBUTES).expect("a new name").node;
    disk.open(node).expect("it is there")
}

fn sync(disk: &mut Model, handle: HandleId) -> Result<(), Errno> {
    disk.begin_sync(handle)?;
    disk.end_sync(handle)
}

fn sync_folder(disk: &mut Model, node: NodeId) {
    let handle = disk.open(node).expect("it is there");
    sync(disk, handle).expect("nothing fails");
    disk.close(handle);
}

fn content(disk: &mut Model, name: &str) -> Option<Vec<u8>> {
    let node = disk.lookup(NodeId::ROOT, OsStr::new(name)).ok()?.node;
    let handle = disk.open(node).expect("it is there");
    let bytes = disk.read(handle, 0, 1 << 30).expect("it can be read");
    disk.close(handle);
    Some(bytes)
}

fn power_cycle(disk: &mut Model, kind: CutKind) {
    disk.cut(kind);
    disk.power_on();
}

/// A file of three durable pages of `a`, and four pages of `b` over them that are not.
fn overwritten(seed: u64) -> (Model, HandleId) {
    let mut disk = disk(seed);
    let handle = create(&mut disk, "file");
    disk.write(handle, 0, &[b'a'; 3 * PAGE_LEN], NOW).expect("there is room");
    sync(&mut disk, handle).expect("nothing fails");
    sync_folder(&mut disk, NodeId::ROOT);
    disk.write(handle, 0, &[b'b'; 4 * PAGE_LEN], NOW).expect("there is room");
    (disk, handle)
}

#[test]
fn what_was_synced_survives_and_nothing_else() {
    let (mut disk, handle) = overwritten(1);
    assert_eq!(content(&mut disk, "file"), Some(vec![b'b'; 4 * PAGE_LEN]));
    disk.cut(CutKind::Drop);
    assert_eq!(disk.lookup(NodeId::ROOT, OsStr::new("file")).err(), Some(Errno::IO));
    disk.power_on();
    assert_eq!(content(&mut disk, "file"), Some(vec![b'a'; 3 * PAGE_LEN]));
    assert_eq!(disk.read(handle, 0, 1), Err(Errno::IO), "a handle from before");
    assert_eq!((disk.counts().pages_dropped, disk.counts().bytes), (4, 3 * PAGE));
}

#[test]
fn any_pages_of_what_was_not_synced_survive() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..300 {
        let (mut disk, _) = overwritten(seed);
        power_cycle(&mut disk, CutKind::Subset);
        let bytes = content(&mut disk, "file").expect("its name is durable");
        let pages: Vec<u8> = bytes.chunks(PAGE_LEN).map(|page| page[0]).collect();
        assert!(bytes.chunks(PAGE_LEN).all(|page| page.iter().all(|byte| *byte == page[0])), "seed {seed}");
        assert!(pages.len() == 3 || pages[3] == b'b', "seed {seed}: the length follows from the last page");
        seen.insert(pages);
    }
    assert_eq!(seen.len(), 16, "every subset comes about");
}

#[test]
fn a_torn_page_is_the_last() {
    let (mut torn, mut lens) = (0, std::collections::BTreeSet::new());
    for seed in 0..300 {
        let (mut disk, _) = overwritten(seed);
        power_cycle(&mut disk, CutKind::Torn);
        let bytes = content(&mut disk, "file").expect("its name is durable");
        let new = bytes.iter().take_while(|byte| **byte == b'b').count();
        assert!(bytes[new..].iter().all(|byte| *byte == b'a'), "seed {seed}: old bytes behind it");
        assert_eq!(bytes.len(), new.max(3 * PAGE_LEN), "seed {seed}");
        torn += u64::from(!new.is_multiple_of(PAGE_LEN));
        lens.insert(new / PAGE_LEN);
        assert_eq!(disk.counts().pages_torn, u64::from(!new.is_multiple_of(PAGE_LEN)));
    }
    assert!(torn > 100 && lens.len() == 5, "{torn} {lens:?}");
}

#[test]
fn a_missing_page_before_a_surviving_one_is_zeros() {
    let is_hole = |seed| {
        let mut disk = disk(seed);
        let handle = create(&mut disk, "file");
        sync_folder(&mut disk, NodeId::ROOT);
        disk.write(handle, 0, &[b'b'; 2 * PAGE_LEN], NOW).expect("there is room");
        power_cycle(&mut disk, CutKind::Subset);
        let bytes = content(&mut disk, "file").expect("its name is durable");
        bytes.len() == 2 * PAGE_LEN && bytes[..PAGE_LEN].iter().all(|byte| *byte == 0)
    };
    assert!((0..100).any(is_hole));
}

#[test]
fn a_file_without_a_durable_name_is_gone() {
    let mut disk = disk(1);
    let handle = create(&mut disk, "file");
    disk.write(handle, 0, b"bytes", NOW).expect("there is room");
    sync(&mut disk, handle).expect("nothing fails");
    power_cycle(&mut disk, CutKind::Drop);
    assert_eq!(content(&mut disk, "file"), None);
    assert_eq!((disk.counts().entries_dropped, disk.counts().bytes), (1, 0));
}

#[test]
fn names_survive_in_their_order() {
    for (seed, kind) in (0..90).zip(KINDS.into_iter().cycle()) {
        let mut disk = disk(seed);
        for name in ["0", "1", "2", "3", "4"] {
            create(&mut disk, name);
        }
        power_cycle(&mut disk, kind);
        let there: Vec<bool> = ["0", "1", "2", "3", "4"].map(|name| content(&mut disk, name).is_some()).to_vec();
        assert!(there.is_sorted_by(|before, after| before >= after), "seed {seed}: {there:?}");
        assert!(kind != CutKind::Drop || !there[0]);
    }
}

#[test]
fn a_rename_is_whole_or_not() {
    for (seed, kind) in (0..90).zip(KINDS.into_iter().cycle()) {
        let mut disk = disk(seed);
        for (name, bytes) in [("old", b"old"), ("new", b"new")] {
            let handle = create(&mut disk, name);
            disk.write(handle, 0, bytes, NOW).expect("there is room");
            sync(&mut disk, handle).expect("nothing fails");
        }
        sync_folder(&mut disk, NodeId::ROOT);
        assert_eq!(disk.rename(root("new"), root("old"), false, NOW), Err(Errno::EXIST));
        disk.rename(root("new"), root("old"), true, NOW).expect("it may be replaced");
        assert_eq!(content(&mut disk, "old"), Some(b"new".to_vec()));
        power_cycle(&mut disk, kind);
        let (old, new) = (content(&mut disk, "old"), content(&mut disk, "new"));
        let is_before = (old.as_deref(), new.as_deref()) == (Some(b"old"), Some(b"new"));
        let is_after = (old.as_deref(), new.as_deref()) == (Some(b"new"), None);
        assert!(is_before || is_after && kind != CutKind::Drop, "seed {seed}: {old:?} {new:?}");
    }
}

#[test]
fn a_name_moved_in_leaves_the_other_folder_with_it() {
    let mut disk = disk(1);
    let folder = disk.make_folder(root("folder"), ATTRIBUTES).expect("a new name").node;
    sync_folder(&mut disk, NodeId::ROOT);
    create(&mut disk, "file");
    create(&mut disk, "another");
    disk.rename(root("file"), (folder, OsStr::new("moved")), true, NOW).expect("a new name");
    create(&mut disk, "later");
    sync_folder(&mut disk, folder);
    power_cycle(&mut disk, CutKind::Drop);
    assert!(disk.lookup(folder, OsStr::new("moved")).is_ok());
    assert_eq!(content(&mut disk, "file"), None);
    assert!(content(&mut disk, "another").is_some(), "it was made before, in the folder that was left");
    assert_eq!(content(&mut disk, "later"), None);
}

#[test]
fn a_removed_file_comes_back_unless_that_is_durable() {
    for is_synced in [false, true] {
        let (mut disk, handle) = overwritten(1);
        sync(&mut disk, handle).expect("nothing fails");
        disk.unlink(root("file"), NOW).expect("it is there");
        assert_eq!(disk.read(handle, 0, 1), Ok(b"b".to_vec()), "it is open");
        disk.close(handle);
        assert_eq!(disk.counts().bytes, 0);
        if is_synced {
            sync_folder(&mut disk, NodeId::ROOT);
            assert_eq!(disk.nodes.len(), 1, "nothing is kept of it");
        }
        power_cycle(&mut disk, CutKind::Drop);
        assert_eq!(content(&mut disk, "file").is_none(), is_synced);
        assert_eq!(disk.counts().bytes, if is_synced { 0 } else { 4 * PAGE });
    }
}

#[test]
fn a_folder_is_removed_with_what_the_disk_had_in_it() {
    let mut disk = disk(1);
    let folder = disk.make_folder(root("folder"), ATTRIBUTES).expect("a new name").node;
    disk.create((folder, OsStr::new("file")), ATTRIBUTES).expect("a new name");
    sync_folder(&mut disk, NodeId::ROOT);
    sync_folder(&mut disk, folder);
    assert_eq!(disk.remove_folder(root("folder"), NOW), Err(Errno::NOTEMPTY));
    disk.unlink((folder, OsStr::new("file")), NOW).expect("it is there");
    disk.remove_folder(root("folder"), NOW).expect("it is empty");
    sync_folder(&mut disk, NodeId::ROOT);
    power_cycle(&mut disk, CutKind::Subset);
    assert_eq!(disk.lookup(NodeId::ROOT, OsStr::new("folder")).err(), Some(Errno::NOENT));
    assert_eq!(disk.nodes.len(), 1);
}

#[test]
fn a_sync_that_failed_loses_what_a_later_one_says_is_safe() {
    for files in [Files::Any, Files::Log] {
        let mut disk = disk(1);
        let handle = create(&mut disk, "1.log");
        disk.write(handle, 0, &[b'a'; 100], NOW).expect("there is room");
        sync(&mut disk, handle).expect("nothing fails");
        sync_folder(&mut disk, NodeId::ROOT);
        disk.write(handle, 100, &[b'b'; 3 * PAGE_LEN], NOW).expect("there is room");
        disk.faults().sync = Some((files, Times::Once));
        assert_eq!(sync(&mut disk, handle), Err(Errno::IO));
        assert_eq!(sync(&mut disk, handle), Ok(()), "the trap");
        assert_eq!(content(&mut disk, "1.log").map(|bytes| bytes.len()), Some(100 + 3 * PAGE_LEN));
        power_cycle(&mut disk, CutKind::Subset);
        assert_eq!(content(&mut disk, "1.log"), Some(vec![b'a'; 100]));
    }
}

#[test]
fn faults_are_about_the_files_they_name() {
    let mut disk = disk(1);
    let (log, table) = (create(&mut disk, "1.log"), create(&mut disk, "2.sst"));
    disk.faults().sync = Some((Files::Table, Times::Always));
    disk.faults().write = Some((Files::Log, WriteError::NoSpace));
    assert_eq!(disk.write(log, 0, b"x", NOW), Err(Errno::NOSPC));
    assert_eq!(disk.write(table, 0, b"x", NOW), Ok(1));
    assert_eq!(sync(&mut disk, log), Ok(()));
    assert_eq!(sync(&mut disk, table), Err(Errno::IO));
    assert_eq!(sync(&mut disk, table), Err(Errno::IO));
}

#[test]
fn the_power_goes_off_at_its_moment() {
    for (moment, takes_effect) in [(Moment::Write, false), (Moment::Sync, false), (Moment::Synced, true)] {
        let mut disk = disk(1);
        let (log, other) = (create(&mut disk, "1.log"), create(&mut disk, "other"));
        sync_folder(&mut disk, NodeId::ROOT);
        disk.faults().armed = Some(Armed { kind: CutKind::Drop, moment, files: Files::Log, left: 2 });
        let mut did = 0;
        while disk.is_on() {
            assert!(disk.write(other, 0, b"x", NOW).is_ok() && sync(&mut disk, other).is_ok());
            if disk.write(log, did, b"x", NOW).is_ok() && sync(&mut disk, log).is_ok() {
                did += 1;
            }
        }
        assert_eq!(did, 1, "{moment:?}: the second of them");
        disk.power_on();
        assert_eq!(content(&mut disk, "1.log").map(|bytes| bytes.len()), Some(if takes_effect { 2 } else { 1 }));
    }
}

#[test]
fn a_full_disk_takes_what_fits() {
    let mut disk = disk(1);
    let handle = create(&mut disk, "file");
    disk.write(handle, 0, &[1; 100], NOW).expect("there is room");
    disk.set_free(Some(2 * PAGE));
    assert_eq!(disk.room(), Ok((1, 2)));
    assert_eq!(disk.write(handle, 100, &[2; 5 * PAGE_LEN], NOW), Ok(3 * PAGE_LEN - 100));
    assert_eq!(disk.write(handle, 3 * PAGE, &[2; 1], NOW), Err(Errno::NOSPC));
    assert_eq!(disk.write(handle, 0, &[2; 10], NOW), Ok(10), "over what is there");
    disk.change(disk.opened(handle).expect("it is open"), Changes { len: Some(1), ..Changes::default() }, NOW)
        .expect("it can be cut");
    assert_eq!(disk.room(), Ok((1, 2)));
}

#[test]
fn short_writes_take_a_part() {
    let mut disk = disk(1);
    let handle = create(&mut disk, "file");
    disk.faults().is_short = true;
    let taken: Vec<usize> = (0..100).map(|_| disk.write(handle, 0, &[1; 1000], NOW).expect("there is room")).collect();
    assert!(taken.iter().all(|len| (1..=1000).contains(len)) && taken.iter().any(|len| *len < 500));
}

/// Random writes, cuts of length and syncs, against a list of bytes; then the power goes off.
#[test]
fn files_are_what_lists_of_bytes_are() {
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut disk = disk(seed);
        let handle = create(&mut disk, "file");
        sync_folder(&mut disk, NodeId::ROOT);
        let node = disk.opened(handle).expect("it is open");
        let (mut now, mut durable) = (Vec::new(), Vec::new());
        for step in 0..random.random_range(1..40u8) {
            let offset = random.random_range(0..20_000usize);
            match random.random_range(0..10) {
                0..6 => {
                    let bytes = vec![step + 1; random.random_range(0..9000)];
                    if !bytes.is_empty() {
                        now.resize(now.len().max(offset + bytes.len()), 0);
                        now[offset..offset + bytes.len()].copy_from_slice(&bytes);
                    }
                    assert_eq!(disk.write(handle, offset as u64, &bytes, NOW), Ok(bytes.len()));
                }
                6..8 => {
                    now.resize(offset, 0);
                    let changes = Changes { len: Some(offset as u64), ..Changes::default() };
                    assert_eq!(disk.change(node, changes, NOW).map(|status| status.len), Ok(offset as u64));
                }
                _ => {
                    sync(&mut disk, handle).expect("nothing fails");
                    durable.clone_from(&now);
                }
            }
            assert_eq!(content(&mut disk, "file").as_ref(), Some(&now), "seed {seed}, step {step}");
            let pages: u64 = disk.nodes.values().map(|node| node.file().map_or(0, FileData::page_total)).sum();
            assert_eq!(disk.pages, pages, "seed {seed}, step {step}");
        }
        let kind = KINDS[usize::from(seed % 2 == 0)];
        power_cycle(&mut disk, kind);
        let after = content(&mut disk, "file").expect("its name is durable");
        if kind == CutKind::Drop {
            assert_eq!(after, durable, "seed {seed}");
        } else {
            let known = |at: usize| [durable.get(at), now.get(at), Some(&0)].contains(&after.get(at));
            assert!((0..after.len()).all(known), "seed {seed}: nothing that was never there");
            assert!(after.len() <= now.len().max(durable.len()), "seed {seed}");
        }
    }
}

/// Random changes of names in two folders, each followed now and then by a sync; what survives is what some moment had.
#[test]
fn names_after_a_cut_are_those_of_a_moment() {
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut disk = disk(seed);
        let folder = disk.make_folder(root("folder"), ATTRIBUTES).expect("a new name").node;
        sync_folder(&mut disk, NodeId::ROOT);
        let places = [NodeId::ROOT, folder].map(|of| ["a", "b", "c"].map(|name| (of, OsStr::new(name))));
        let places = places.concat();
        let names = |disk: &Model| -> BTreeMap<usize, NodeId> {
            let there = |(at, place): (usize, &(NodeId, &OsStr))| Some((at, disk.lookup(place.0, place.1).ok()?.node));
            places.iter().enumerate().filter_map(there).collect()
        };
        let (mut moments, mut since_sync) = (vec![names(&disk)], 0);
        for _ in 0..random.random_range(1..30) {
            let mut place = || places[random.random_range(0..places.len())];
            let (from, to) = (place(), place());
            let made = match random.random_range(0..6) {
                0 | 1 => disk.create(from, ATTRIBUTES).is_ok(),
                2 => disk.unlink(from, NOW).is_ok(),
                3 | 4 => disk.rename(from, to, true, NOW).is_ok(),
                _ => {
                    // Both, so that all that was is durable.
                    sync_folder(&mut disk, NodeId::ROOT);
                    sync_folder(&mut disk, folder);
                    since_sync = moments.len() - 1;
                    false
                }
            };
            if made {
                moments.push(names(&disk));
            }
        }
        power_cycle(&mut disk, KINDS[usize::try_from(seed % 3).expect("small")]);
        let after = names(&disk);
        assert!(moments[since_sync..].contains(&after), "seed {seed}: {after:?} {:?}", &moments[since_sync..]);
        assert!(seed % 3 != 0 || after == moments[since_sync], "seed {seed}");
        assert_eq!(disk.nodes.len(), after.len() + 2, "seed {seed}: nothing else is kept");
    }
}
