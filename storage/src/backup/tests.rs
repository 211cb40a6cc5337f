use std::cell::Cell;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::batch::{Batch, BatchNumber};
use crate::engine::{Engine, Family, Tier};
use crate::error::OpenError;
use crate::layout::BACKUP;
use crate::rocks::RocksOptions;

/// A data directory of two volumes, open.
struct World {
    root: tempfile::TempDir,
    data_dir: DataDir,
    volumes: Vec<Arc<RocksEngine>>,
    gate: Gate,
}

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let path = root.path().join("data");
        let folders = ["one", "two"].map(|name| root.path().join(name));
        DataDir::create(&path, Incarnation(7), &folders).expect("empty folders are volumes");
        fs::create_dir_all(path.join("keys/server")).expect("it can be made");
        fs::write(path.join("keys/server/1.key"), "secret too").expect("it can be written");
        fs::write(path.join("keys/ticket.key"), "secret").expect("it can be written");
        fs::write(path.join("keys/half.key.new"), "hal").expect("it can be written");
        fs::write(path.join("culver.toml"), "hubs = 3").expect("it can be written");
        let data_dir = DataDir::open(&path).expect("it was just created");
        let volumes = open(&data_dir);
        Self { root, data_dir, volumes, gate: Gate::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn take(&self, to: &Path) -> Result<BackedUp, BackupError> {
        self.take_unless(to, &|| false)
    }

    fn take_unless(&self, to: &Path, is_cancelled: &(dyn Fn() -> bool + Sync)) -> Result<BackedUp, BackupError> {
        let order = BackupOrder { to, taken_at_ms: 1234, version: "1.2.3", is_cancelled };
        take(&Origin::of(&self.data_dir), &self.volumes, &self.gate, &order)
    }

    fn restore(&self, from: &Path, to: &str) -> Result<Restored, BackupError> {
        let data_dir = self.path(to);
        restore(&RestoreOrder { from, data_dir: &data_dir, volumes: &[], incarnation: Incarnation(8) })
    }

    /// Nothing of a backup is left but what was there before.
    fn is_untouched(&self) {
        for volume in self.data_dir.volume_paths() {
            let names = files::names(volume).expect("it is there");
            assert!(names.contains(&"CURRENT".to_owned()), "{names:?}");
            assert!(!volume.join(UNDER_WAY).exists() && !volume.join(UNDER_WAY_UNFINISHED).exists());
        }
    }
}

fn open(data_dir: &DataDir) -> Vec<Arc<RocksEngine>> {
    let opened = RocksEngine::open_all(data_dir.volume_paths(), &RocksOptions::default(), &Arc::default());
    opened.expect("they open").into_iter().map(Arc::new).collect()
}

/// Writes `number` as a key, as a hub's writer does.
fn write(volume: &RocksEngine, number: u64) {
    let mut batch = Batch::with_capacity(BatchNumber(number), 0);
    batch.put(Family::Outbox, &number.to_be_bytes(), (b"value", b""));
    volume.write(&batch).expect("it writes");
}

/// The numbers written to a volume: how many, and the last.
fn written(volume: &RocksEngine) -> (u64, u64) {
    let (mut count, mut last) = (0, 0);
    let seen = volume.scan(Family::Outbox, &[], &[0xff; 9], Tier::Disk, &mut |key, _| {
        (count, last) = (count + 1, u64::from_be_bytes(key.try_into().expect("8 bytes")));
        ControlFlow::Continue(())
    });
    seen.expect("it reads");
    (count, last)
}

#[test]
fn a_backup_restores_to_what_it_was_taken_of() {
    let world = World::new();
    // Some in files, some in the log.
    write(&world.volumes[0], 1);
    world.volumes[0].flush().expect("it writes files");
    write(&world.volumes[0], 2);
    write(&world.volumes[1], 1);
    let backup = world.path("backups/monday");
    let backed_up = world.take(&backup).expect("it is taken");
    assert_eq!((backed_up.volumes, backed_up.taken_at_ms, &*backed_up.incarnation), (2, 1234, "0000000000000007"));
    assert_eq!(fs::metadata(&backup).expect("there").permissions().mode() & 0o777, 0o700);
    world.is_untouched();
    // What comes later is in the volume and not in the backup.
    write(&world.volumes[0], 3);
    for name in ["restored", "again"] {
        let restored = world.restore(&backup, name).expect("it restores");
        assert_eq!((restored.incarnation_before, restored.taken_at_ms), (Incarnation(7), 1234));
        assert_eq!((restored.files, restored.bytes), (backed_up.files, backed_up.bytes));
        let data_dir = DataDir::open(&world.path(name)).expect("it is a data directory");
        assert_eq!(data_dir.incarnation(), Incarnation(8));
        assert_eq!(data_dir.volume_of_shard(), world.data_dir.volume_of_shard());
        let volumes = open(&data_dir);
        assert_eq!([written(&volumes[0]), written(&volumes[1])], [(2, 2), (1, 1)]);
        // Whatever becomes of it, the backup stays as it is.
        write(&volumes[0], 9);
        volumes[0].compact().expect("it merges");
        assert_eq!(fs::read_to_string(world.path(name).join("keys/ticket.key")).expect("there"), "secret");
        assert_eq!(fs::read_to_string(world.path(name).join("culver.toml")).expect("there"), "hubs = 3");
        assert_eq!(fs::read_to_string(world.path(name).join("keys/server/1.key")).expect("there"), "secret too");
        assert!(!world.path(name).join("keys/half.key.new").exists());
    }
    assert_eq!(written(&world.volumes[0]), (3, 3));
}

/// Ends what runs beside a test, however that ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn what_one_volume_has_of_another_is_in_the_others_checkpoint_too() {
    let world = World::new();
    let is_over = AtomicBool::new(false);
    let begun = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (world, is_over, begun) = (&world, &is_over, &begun);
        let _over = Over(is_over);
        scope.spawn(move || {
            // As a stream does: on the second volume only what is durable on the first.
            for number in 1.. {
                for volume in &world.volumes {
                    let _passage = world.gate.pass();
                    write(volume, number);
                }
                begun.fetch_add(1, Ordering::SeqCst);
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
        for round in 0..10 {
            let before = begun.load(Ordering::SeqCst) as u64;
            let backup = world.path(&format!("backup-{round}"));
            world.take(&backup).expect("it is taken");
            world.restore(&backup, &format!("restored-{round}")).expect("it restores");
            let data_dir = DataDir::open(&world.path(&format!("restored-{round}"))).expect("a data directory");
            let volumes = open(&data_dir);
            let (first, second) = (written(&volumes[0]), written(&volumes[1]));
            assert_eq!((first.0, second.0), (first.1, second.1), "dense");
            assert!(second.1 >= before, "what was durable before it began is in it: {second:?}, {before}");
            assert!(first.1 == second.1 || first.1 == second.1 + 1, "{first:?} and {second:?} are of one moment");
        }
    });
}

#[test]
fn files_are_linked_within_a_file_system_and_copied_beyond() {
    let world = World::new();
    write(&world.volumes[0], 1);
    let memory = Path::new("/dev/shm");
    let elsewhere = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let elsewhere = elsewhere.expect("a temporary directory can be made");
    for to in [world.path("here"), elsewhere.path().join("there")] {
        let backed_up = world.take(&to).expect("it is taken");
        let dev = |path: &Path| fs::metadata(path).expect("there").dev();
        let is_near = dev(&to) == dev(&world.data_dir.volume_paths()[0]);
        assert_eq!(backed_up.bytes_linked > 0, is_near, "{backed_up:?}");
        for name in files::names(&to.join("volume-0")).expect("there") {
            let links = fs::metadata(to.join("volume-0").join(&name)).expect("there").nlink();
            // Only what never changes; and what the volume has merged since it has for itself alone.
            assert!(links == 1 || (is_near && name.ends_with(".sst")), "{name} has {links} links");
        }
        fs::remove_dir_all(world.path("restored")).unwrap_or_default();
        world.restore(&to, "restored").expect("it restores");
        for name in files::names(&world.path("restored/volume-0")).expect("there") {
            let file = world.path("restored/volume-0").join(name);
            assert_eq!(fs::metadata(&file).expect("there").nlink(), 1, "{} is a copy", file.display());
        }
    }
}

#[test]
fn whatever_goes_wrong_leaves_nothing_behind() {
    let world = World::new();
    write(&world.volumes[0], 1);
    let (missing, empty) = (world.path("missing"), world.path("empty"));
    fs::create_dir(&empty).expect("it can be made");
    // The keys come last, and this one cannot be read.
    symlink("/nonexistent", world.data_dir.path().join("keys/astray.key")).expect("it can be made");
    for to in [&missing, &empty] {
        let error = world.take(to).expect_err("a key is missing");
        assert!(error.to_string().contains("astray.key"), "{error}");
    }
    fs::remove_file(world.data_dir.path().join("keys/astray.key")).expect("there");
    assert!(!missing.exists(), "it was made and is removed");
    assert_eq!(fs::read_dir(&empty).expect("it was there and stays").count(), 0);
    world.is_untouched();
    // Broken off wherever that is looked at.
    let mut looks_max = 0;
    loop {
        let looks = AtomicUsize::new(0);
        match world.take_unless(&missing, &|| looks.fetch_add(1, Ordering::SeqCst) == looks_max) {
            Ok(_) => break,
            Err(BackupError::Cancelled) => looks_max += 1,
            Err(error) => panic!("{error}"),
        }
        assert!(!missing.exists());
        world.is_untouched();
        write(&world.volumes[0], 2);
    }
    assert!(looks_max > 10, "it is looked at for every file");
    assert_eq!(written(&world.volumes[0]), (2, 2));
    // Into what is not there to be written.
    fs::write(world.path("file"), "").expect("it can be written");
    let error = world.take(&world.path("file/below")).expect_err("a file is no directory");
    assert!(error.to_string().contains("see that the directory is there"), "{error}");
}

#[test]
fn what_a_killed_backup_left_is_removed() {
    let world = World::new();
    write(&world.volumes[0], 1);
    let leave = || {
        for name in [UNDER_WAY, UNDER_WAY_UNFINISHED] {
            let folder = world.data_dir.volume_path(0).join(name);
            fs::create_dir(&folder).expect("it can be made");
            fs::write(folder.join("000001.sst"), "old").expect("it can be written");
        }
    };
    leave();
    world.take(&world.path("backup")).expect("the next is taken none the less");
    world.is_untouched();
    leave();
    let World { root: _root, data_dir, volumes, .. } = world;
    drop(volumes);
    assert_eq!(written(&open(&data_dir)[0]), (1, 1));
    assert!(!data_dir.volume_path(0).join(UNDER_WAY).exists());
    assert!(!data_dir.volume_path(0).join(UNDER_WAY_UNFINISHED).exists());
}

/// The error says all of this.
fn says(error: &BackupError, advice: &[&str]) {
    let text = error.to_string();
    assert!(advice.iter().all(|part| text.contains(part)), "{text}");
}

#[test]
fn a_place_that_is_taken_is_refused() {
    let world = World::new();
    let full = world.path("full");
    fs::create_dir(&full).expect("it can be made");
    fs::write(full.join("holiday.jpg"), "not ours").expect("it can be written");
    let error = world.take(&full).expect_err("it is full");
    says(&error, &["is not empty", "name an empty directory"]);
    assert!(error.is_bad_request());
    let nowhere = world.path("nowhere");
    symlink(world.path("not mounted"), &nowhere).expect("it can be made");
    says(&world.take(&nowhere).expect_err("it leads nowhere"), &["cannot read", "see that the directory is there"]);
    assert!(nowhere.is_symlink(), "it was not ours to remove");
    let within = [world.data_dir.path().join("backup"), world.data_dir.volume_paths()[1].join("far/below")];
    for within in within {
        says(&world.take(&within).expect_err("it is within"), &["lies within", "best on another disk"]);
        assert!(!within.exists());
    }
    world.take(&world.path("backup")).expect("it is taken");
    says(&world.take(&world.path("backup")).expect_err("there is one"), &["is not empty"]);
    says(&world.restore(&world.path("backup"), "full").expect_err("it is full"), &["is not empty"]);
    assert_eq!(fs::read_dir(&full).expect("there").count(), 1, "nothing is changed in it");
    says(&world.restore(&world.path("backup"), "backup/it").expect_err("it is within"), &["lies within"]);
    let (from, volumes) = (world.path("backup"), ["one", "two"].map(|name| world.path("backup/volume-1").join(name)));
    let data_dir = world.path("restored");
    let order = RestoreOrder { from: &from, data_dir: &data_dir, volumes: &volumes, incarnation: Incarnation(8) };
    says(&restore(&order).expect_err("they are within"), &["lies within"]);
    assert!(!from.join("it").exists() && !data_dir.exists());
}

#[test]
fn what_is_no_whole_backup_is_refused() {
    let world = World::new();
    write(&world.volumes[0], 1);
    let backup = world.path("backup");
    world.take(&backup).expect("it is taken");
    let opened = DataDir::open(&backup);
    assert!(matches!(opened, Err(OpenError::Backup { .. })), "{opened:?}");
    let manifest = fs::read_to_string(backup.join(BACKUP)).expect("there");
    let refused = |advice: &[&str]| {
        says(&world.restore(&backup, "restored").expect_err("it is refused"), advice);
        assert!(!world.path("restored").exists(), "nothing is left of it");
    };
    let rewritten = |from: &str, to: &str, advice: &[&str]| {
        assert!(manifest.contains(from), "{manifest}");
        fs::write(backup.join(BACKUP), manifest.replacen(from, to, 1)).expect("it can be written");
        refused(advice);
    };
    rewritten("\"format\": 1", "\"format\": 2", &["has format 2", "knows formats up to 1", "or a newer one"]);
    rewritten("\"data_format\": 3", "\"data_format\": 4", &["has format 4", "knows formats up to 3"]);
    rewritten("\"data_format\": 3", "\"data_format\": 1", &["is damaged"]);
    rewritten("ticket.key", "../../../ticket.key", &["is damaged", "not below it"]);
    rewritten("\"shard_count\": 64", "\"shard_count\": 63", &["is damaged", "volume_of_shard"]);
    rewritten("{", "[", &["is damaged", "restore another backup"]);
    fs::remove_file(backup.join(BACKUP)).expect("there");
    refused(&["is no complete backup", "no file `BACKUP`"]);
    fs::write(backup.join(BACKUP), &manifest).expect("it can be written");
    // A file that is shorter than it was, and one that is gone.
    let log = files::names(&backup.join("volume-0")).expect("there").into_iter().find(|name| name.ends_with("sst"));
    let table = backup.join("volume-0").join(log.expect("there is a table"));
    let whole = fs::read(&table).expect("there");
    fs::remove_file(&table).expect("there");
    refused(&["is damaged (it is missing)"]);
    fs::write(&table, &whole[1..]).expect("it can be written");
    refused(&["is damaged (it has", "and had"]);
    fs::write(&table, whole).expect("it can be written");
    // As many volumes as it has, each in a place of its own.
    let folders = ["a", "b", "c"].map(|name| world.path(name));
    let onto = |volumes: &[PathBuf]| {
        let data_dir = world.path("restored");
        restore(&RestoreOrder { from: &backup, data_dir: &data_dir, volumes, incarnation: Incarnation(8) })
    };
    for volumes in [&folders[..1], &folders[..]] {
        says(&onto(volumes).expect_err("it has two"), &["has 2 volumes", "with --volume, or none"]);
    }
    let twice = [folders[0].clone(), folders[0].clone()];
    says(&onto(&twice).expect_err("it is named twice"), &["is named twice"]);
    assert!(folders.iter().all(|folder| !folder.exists()) && !world.path("restored").exists());
    onto(&folders[..2]).expect("it restores");
    let data_dir = DataDir::open(&world.path("restored")).expect("it is a data directory");
    assert_eq!(data_dir.volume_paths(), &folders[..2]);
    assert_eq!(written(&open(&data_dir)[0]), (1, 1));
}

/// Its rows are read as those of a data directory are that is taken over.
#[test]
fn a_backup_of_the_format_before_this_one_is_restored() {
    let world = World::new();
    write(&world.volumes[0], 1);
    let backup = world.path("backup");
    world.take(&backup).expect("it is taken");
    let manifest = fs::read_to_string(backup.join(BACKUP)).expect("there");
    let earlier = manifest.replacen("\"data_format\": 3", "\"data_format\": 2", 1);
    assert_ne!(earlier, manifest);
    fs::write(backup.join(BACKUP), earlier).expect("it can be written");
    world.restore(&backup, "restored").expect("it restores");
    let data_dir = DataDir::open(&world.path("restored")).expect("it is a data directory");
    assert_eq!(written(&open(&data_dir)[0]), (1, 1));
}

#[test]
fn paths_that_are_not_there_yet_are_compared() {
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    let (folder, link) = (root.path().join("folder"), root.path().join("link"));
    fs::create_dir(&folder).expect("it can be made");
    symlink(&folder, &link).expect("it can be made");
    assert_eq!(real(&link.join("below/it")), real(&folder).join("below/it"));
    assert_eq!(real(&root.path().join("none/../link/it")), real(&folder).join("it"));
    assert_eq!(real(&link.join("../it")), real(root.path()).join("it"));
    let looked = Cell::new(0);
    let copied = files::copy(&folder.join("none"), &link.join("copy"), &|| {
        looked.set(looked.get() + 1);
        false
    });
    assert!(copied.is_err() && looked.get() == 0 && !link.join("copy").exists());
}
