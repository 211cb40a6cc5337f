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

mod calm;
mod device;
mod faults;
mod net;
mod oracle;
mod plan;
#[cfg(feature = "planted-bugs")]
mod planted;
mod run;
mod seeds;
mod server;
mod shrink;
mod source;
mod steps;
mod trace;
mod world;

use source::Source;

#[test]
fn the_same_seed_gives_the_same_choices() {
    let mut seeded = Source::seeded(7);
    let first: Vec<u64> = (0..100).map(|n| seeded.range(0, n)).collect();
    let mut again = Source::replay(seeded.taken().to_vec());
    assert_eq!(first, (0..100).map(|n| again.range(0, n)).collect::<Vec<_>>());
    assert_eq!((again.below(9), again.chance(999), again.range(3, 9)), (0, false, 3), "beyond the end all is tame");
}

#[test]
fn bytes_arrive_in_order_and_the_end_behind_them() {
    use std::io::{Read, Write};
    let (wire, mut socket) = net::Wire::new(net::Buffers { to_server: (8, 4), to_client: (4, 4) });
    assert_eq!(wire.client_write(b"abcdefghij"), 8);
    wire.client_close(false);
    wire.watch();
    let mut seen = Vec::new();
    while wire.can_carry() {
        wire.carry_to_server(3);
        let edge = wire.take_edge().unwrap();
        assert!(edge.readable && edge.closed == (seen.len() == 6));
        let mut buffer = [0; 16];
        let len = socket.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..len]);
    }
    assert_eq!((seen.as_slice(), socket.read(&mut [0; 1]).unwrap()), (&b"abcdefgh"[..], 0));
    assert_eq!(socket.write(b"for nobody").unwrap(), 4);
    wire.carry_to_client(4, false);
    wire.carry_to_server(1);
    assert_eq!(socket.write(b"any more").unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    drop(socket);
    assert!(wire.is_over());
}

#[test]
fn buffers_grow_with_what_they_carry() {
    use std::io::Write;
    let (wire, mut socket) = net::Wire::new(net::Buffers { to_server: (1, 1), to_client: (1, 4) });
    wire.grow();
    let (mut left, mut pieces) = (1_000_000, 0);
    while left > 0 {
        left -= socket.write(&vec![0; left]).unwrap();
        wire.carry_to_client(usize::MAX, false);
        wire.client_read(usize::MAX, |_| ());
        pieces += 1;
    }
    assert!(pieces < 1000, "{pieces}");
    assert_eq!(wire.client_room(), 1, "the other direction carried nothing");
}

#[test]
fn a_few_seeds_hold() {
    let first = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let count = std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(20);
    let (begun, mut events, mut failed) = (std::time::Instant::now(), 0, 0);
    for seed in first..first + count {
        let trace = if std::env::var("SIM_TRACE").is_ok() { trace::Trace::on() } else { trace::Trace::off() };
        let mut world = world::World::new(Source::seeded(seed), trace);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
        events += world.events;
        if std::env::var("SIM_STATS").is_ok() {
            println!(
                "seed {seed}: {} events, {} steps, {} lives, {} messages, {} ms",
                world.events,
                world.steps,
                world.lives,
                world.oracle.submitted_count(),
                world.trace.now_us / 1000
            );
        }
        if ended.is_err() {
            failed += 1;
            let lines = std::env::var("SIM_TRACE").ok().and_then(|lines| lines.parse().ok()).unwrap_or(0);
            println!(
                "seed {seed}: {} events, {} steps, {} lives\n{}",
                world.events,
                world.steps,
                world.lives,
                world.trace.text(lines)
            );
        }
    }
    println!("{count} seeds, {failed} failed, {events} events, {:?}", begun.elapsed());
    assert_eq!(failed, 0);
}
