//! The client against a model server over a network that cuts connections wherever it hurts.
//!
//! Properties, in every world: each send is answered exactly once, answers and acceptances keep each conversation's
//! order, nothing is delivered twice, everything is delivered in inbox order save what has expired, what the client
//! itself sent never comes back, cursors and ACKs never go back, receipts are complete in the end, each request is
//! answered or cancelled once. Each world is run in plaintext and encrypted; in encrypted ones the network may change,
//! drop, repeat and reorder what passes, and tell errors of its own, and all of it still holds.
//!
//! `CULVER_SEED=n` runs one seed alone; every test prints the seed it is at.

mod app;
mod server;
mod world;

use server::Faults;
use world::{Plan, Ran, World};

const CALM: Plan = Plan {
    seed: 1,
    sends: 6,
    entries: 6,
    conversations: 2,
    acts: 4,
    calls: 3,
    siblings: true,
    fetch: false,
    faults: Faults {
        reject_for_now: 0,
        reject_for_good: 0,
        refuse_ticket: 0,
        goaway: 0,
        redeliver: 0,
        noise: 0,
        expire: 0,
        busy: 0,
        unregister: 0,
        forget_key: 0,
        rekey: 0,
    },
    cut_up: None,
    cut_down: None,
    cut_within: None,
    encrypted: false,
    tamper: 0,
    forge_errors: 0,
    sleep: 0,
};

/// Bytes that an encrypted login takes more than one in plaintext, either way.
const HANDSHAKE_BYTES: u64 = 400;

/// The same world in plaintext, and encrypted.
fn both(plan: Plan) -> [Plan; 2] {
    let cut_within = plan.cut_within.map(|within| within + HANDSHAKE_BYTES);
    let faults = Faults { rekey: 5, ..plan.faults };
    [plan, Plan { encrypted: true, cut_within, faults, ..plan }]
}

fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let only = std::env::var("CULVER_SEED").ok().map(|seed| seed.parse().expect("CULVER_SEED is a number"));
    let (from, count) = only.map_or((0, count), |seed| (seed, 1));
    (from..from + count).inspect(|seed| println!("seed {seed}"))
}

fn run_both(plan: Plan) {
    for plan in both(plan) {
        World::new(plan).run();
    }
}

#[test]
fn cut_at_every_byte() {
    for seed in seeds(5) {
        for plan in both(Plan { seed, ..CALM }) {
            let Ran { bytes_up, bytes_down, .. } = World::new(plan).run();
            assert!(bytes_up > 200 && bytes_down > 200, "{bytes_up} and {bytes_down}: hardly a session");
            for cut in 0..=bytes_up {
                println!("cut after {cut} bytes of the client's");
                World::new(Plan { cut_up: Some(cut), ..plan }).run();
            }
            for cut in 0..=bytes_down {
                println!("cut after {cut} bytes of the server's");
                World::new(Plan { cut_down: Some(cut), ..plan }).run();
            }
        }
    }
}

#[test]
fn cut_again_and_again() {
    for seed in seeds(2000) {
        run_both(Plan { seed, sends: 40, entries: 60, cut_within: Some(600), ..CALM });
    }
}

#[test]
fn one_device_alone() {
    for seed in seeds(500) {
        run_both(Plan { seed, sends: 40, entries: 60, siblings: false, cut_within: Some(600), ..CALM });
    }
}

#[test]
fn own_copies_receipts_requests_and_expiry() {
    let faults = Faults { redeliver: 30, expire: 5, busy: 20, ..CALM.faults };
    for seed in seeds(2000) {
        let fetch = seed % 2 == 0;
        let plan = Plan { seed, sends: 40, entries: 60, acts: 60, calls: 40, faults, fetch, ..CALM };
        run_both(plan);
        run_both(Plan { cut_within: Some(800), ..plan });
    }
}

#[test]
fn rejected_and_sent_again_in_order() {
    let faults = Faults { reject_for_now: 20, reject_for_good: 5, ..CALM.faults };
    for seed in seeds(2000) {
        run_both(Plan { seed, sends: 60, conversations: 3, faults, ..CALM });
    }
}

#[test]
fn everything_at_once() {
    let faults = Faults {
        reject_for_now: 10,
        reject_for_good: 3,
        refuse_ticket: 30,
        goaway: 3,
        redeliver: 50,
        noise: 20,
        expire: 2,
        busy: 10,
        unregister: 10,
        forget_key: 30,
        ..CALM.faults
    };
    for seed in seeds(4000) {
        let plan = Plan {
            seed,
            sends: 50,
            entries: 50,
            conversations: 4,
            acts: 30,
            calls: 20,
            faults,
            cut_within: Some(900),
            ..CALM
        };
        run_both(plan);
    }
}

#[test]
fn somebody_on_the_way() {
    let mut all = Ran::default();
    let faults = Faults { refuse_ticket: 10, redeliver: 20, noise: 10, forget_key: 10, rekey: 5, ..CALM.faults };
    for seed in seeds(3000) {
        let plan = Plan {
            seed,
            sends: 30,
            entries: 30,
            acts: 10,
            calls: 10,
            encrypted: true,
            tamper: 3,
            forge_errors: 30,
            sleep: 2,
            faults: Faults { unregister: if seed % 2 == 0 { 10 } else { 0 }, ..faults },
            ..CALM
        };
        let ran = World::new(plan).run();
        all.rekeys += ran.rekeys;
        all.violations += ran.violations;
        for (sum, count) in all.handshakes.iter_mut().zip(ran.handshakes) {
            *sum += count;
        }
    }
    println!("{all:?}");
    let is_alone = std::env::var("CULVER_SEED").is_ok();
    assert!(is_alone || all.handshakes.iter().all(|count| *count > 100), "{all:?}");
    assert!(is_alone || (all.rekeys > 100 && all.violations > 1000), "{all:?}");
}
