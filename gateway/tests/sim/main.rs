//! The whole server, with devices and disks, in one thread and in virtual time, under a seeded scheduler that is out to
//! break it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "a test: what goes wrong here must be loud"
)]

mod device;
mod oracle;
mod source;

use source::Source;

#[test]
fn the_same_seed_gives_the_same_choices() {
    let mut seeded = Source::seeded(7);
    let first: Vec<u64> = (0..100).map(|n| seeded.range(0, n)).collect();
    let mut again = Source::replay(seeded.taken().to_vec());
    assert_eq!(first, (0..100).map(|n| again.range(0, n)).collect::<Vec<_>>());
    assert_eq!((again.below(9), again.chance(999), again.range(3, 9)), (0, false, 3), "beyond the end all is tame");
}
