//! A data directory that was made is there, however deep it lies.

use std::sync::Arc;

use culver_protocol::id::Incarnation;
use culver_storage::backup::{BackupOrder, Origin, RestoreOrder, restore, take};
use culver_storage::gate::Gate;
use culver_storage::layout::DataDir;
use culver_storage::rocks::{RocksEngine, RocksOptions};

use crate::program::CutDisk;

#[test]
fn a_new_data_directory_survives_with_all_that_is_above_it() {
    let Some(mut disk) = CutDisk::mount(30) else { return };
    let path = disk.path().join("a/b/data");
    let volumes = [disk.path().join("c/d/volume"), disk.path().join("a/e/volume")];
    DataDir::create(&path, Incarnation(7), &volumes).expect("an empty disk takes folders");
    disk.power_cycle("drop");
    let data_dir = DataDir::open_with(&path, &volumes).expect("it was made");
    assert_eq!(data_dir.incarnation(), Incarnation(7));
}

#[test]
fn a_backup_and_what_is_made_of_it_survive_with_all_that_is_above_them() {
    let Some(mut disk) = CutDisk::mount(31) else { return };
    let root = tempfile::tempdir().expect("a temporary directory can be made");
    DataDir::create(&root.path().join("data"), Incarnation(7), &[]).expect("an empty folder");
    let data_dir = DataDir::open(&root.path().join("data")).expect("it was just created");
    let opened = RocksEngine::open_all(data_dir.volume_paths(), &RocksOptions::default(), &Arc::default());
    let volumes: Vec<_> = opened.expect("they are new").into_iter().map(Arc::new).collect();
    let (from, restored) = (disk.path().join("a/b/backup"), disk.path().join("c/d/data"));
    let order = BackupOrder { to: &from, taken_at_ms: 1, version: "1.2.3", is_cancelled: &|| false };
    take(&Origin::of(&data_dir), &volumes, &Gate::default(), &order).expect("there is room");
    disk.power_cycle("drop");
    let volumes = [disk.path().join("e/f/volume")];
    let order = RestoreOrder { from: &from, data_dir: &restored, volumes: &volumes, incarnation: Incarnation(8) };
    restore(&order).expect("the backup is there");
    disk.power_cycle("drop");
    assert_eq!(DataDir::open(&restored).expect("it was made").incarnation(), Incarnation(8));
}
