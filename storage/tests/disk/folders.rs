//! A data directory that was made is there, however deep it lies.

use culver_protocol::id::Incarnation;
use culver_storage::layout::DataDir;

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
