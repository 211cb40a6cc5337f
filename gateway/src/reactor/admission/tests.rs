use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

const START_US: u64 = 1_000_000_000;

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0A00_0000 + number).into()
}

fn limits(all: Option<(u32, u32)>, source: Option<(u32, u32)>) -> Limits {
    let limit = |(per_s, burst)| Limit::new(per_s, burst);
    Limits { all: all.map(limit), source: source.map(limit) }
}

/// How many of a source are let in at once.
fn drain(admission: &mut Admission, source: IpAddr, now_us: u64) -> usize {
    (0..).find(|_| admission.ask(source, now_us).is_err()).expect("it ends")
}

#[test]
fn without_limits_everybody_is_let_in_and_nothing_is_known() {
    let mut admission = Admission::new(Limits::default(), 1);
    assert!((0..100_000).all(|_| admission.ask(address(1), START_US).is_ok()));
    assert_eq!((admission.sources(), admission.calendar_ms(START_US)), (0, 0));
}

/// How clients come back that are told to: not before their time, with up to a tenth more.
struct Crowd {
    admission: Admission,
    dice: Dice,
    /// Whoever comes when, in microseconds: its source.
    coming: BTreeMap<(u64, u32), IpAddr>,
    /// When the last was let in, and how often anybody asked.
    last_us: u64,
    asked: u64,
}

impl Crowd {
    fn new(limits: Limits) -> Self {
        Self { admission: Admission::new(limits, 7), dice: Dice(3), coming: BTreeMap::new(), last_us: 0, asked: 0 }
    }

    /// One client comes, once or again.
    fn come(&mut self, number: u32, source: IpAddr, now_us: u64) {
        self.asked += 1;
        match self.admission.ask(source, now_us) {
            Ok(()) => self.last_us = now_us,
            Err(Refused::All(retry_ms) | Refused::Source(retry_ms)) => {
                assert!((LOGIN_RETRY_MS_MIN..=LOGIN_RETRY_MS_MAX).contains(&retry_ms), "{retry_ms}");
                let told_us = u64::from(retry_ms) * 1000;
                let due_us = now_us + told_us + self.dice.below(told_us / 10);
                self.coming.insert((due_us, number), source);
            }
        }
    }

    /// All come within a second, and then as they are told, until all are in: the seconds until the last is. `others` has
    /// its say before each of them.
    fn storm(
        &mut self,
        clients: u32,
        source_of: impl Fn(u32) -> IpAddr,
        mut others: impl FnMut(&mut Self, u64),
    ) -> u64 {
        for number in 0..clients {
            let due_us = START_US + self.dice.below(1_000_000);
            self.coming.insert((due_us, number), source_of(number));
        }
        while let Some(((due_us, number), source)) = self.coming.pop_first() {
            others(self, due_us);
            self.come(number, source, due_us);
        }
        (self.last_us - START_US).div_ceil(1_000_000)
    }
}

#[test]
fn a_storm_is_over_after_its_clients_by_the_rate_and_asks_twice() {
    for (clients, per_s) in [(100_000, 1000), (20_000, 1000), (1500, 1000), (50_000, 5000), (10, 1)] {
        let mut crowd = Crowd::new(limits(Some((per_s, per_s)), None));
        let took_s = crowd.storm(clients, address, |_, _| ());
        let least_s = u64::from(clients / per_s);
        assert!(took_s <= 2 * least_s + 2, "{clients} at {per_s}/s took {took_s} s");
        assert!(took_s + 2 >= least_s, "{clients} at {per_s}/s took {took_s} s: faster than they may");
        assert!(crowd.asked <= u64::from(clients) * 5 / 2, "{clients} at {per_s}/s asked {} times", crowd.asked);
    }
}

#[test]
fn beyond_the_calendar_everybody_is_told_some_time_within_it() {
    // Three times what can be in by its end.
    let clients = 3 * LOGIN_RETRY_MS_MAX / 1000 * 100;
    let mut crowd = Crowd::new(limits(Some((100, 100)), None));
    let took_s = crowd.storm(clients, address, |_, _| ());
    assert!(took_s <= 2 * u64::from(clients / 100), "{took_s}");
}

#[test]
fn places_are_in_order_and_as_far_apart_as_they_must_be() {
    let mut admission = Admission::new(limits(Some((100, 50)), None), 1);
    assert_eq!(drain(&mut admission, address(1), START_US), 50);
    let mut told = Vec::new();
    while told.len() < 1000 {
        let Err(Refused::All(retry_ms)) = admission.ask(address(1), START_US) else { panic!("the bucket is empty") };
        told.push(retry_ms);
    }
    assert!(told.is_sorted() && told.first() > Some(&LOGIN_RETRY_MS_MIN), "{told:?}");
    let in_a_second = told.iter().filter(|retry_ms| (3000..4000).contains(*retry_ms)).count();
    assert!((84..=86).contains(&in_a_second), "{in_a_second} of 100 a second");
    let end_ms = admission.calendar_ms(START_US);
    assert!((12_700..12_900).contains(&end_ms), "{end_ms}");
    assert_eq!(admission.calendar_ms(START_US + 5_000_000), end_ms - 5000, "time frees it");
    assert_eq!(admission.calendar_ms(START_US + 60_000_000), 0);
    // There is room for who comes, whoever has places.
    assert_eq!(drain(&mut admission, address(2), START_US + 1_000_000), 50);
}

#[test]
fn who_comes_again_too_early_keeps_nobody_out_beyond_the_calendar() {
    let mut admission = Admission::new(limits(Some((100, 100)), None), 1);
    // Ten thousand times a second, for ten minutes: more than any calendar holds.
    let mut let_in = 0_u64;
    for tick in 0..6_000_000 {
        let_in += u64::from(admission.ask(address(1), START_US + tick * 100).is_ok());
    }
    let now_us = START_US + 600_000_000;
    assert!((60_000..=60_100).contains(&let_in), "the rate holds, whoever refused attempts are: {let_in}");
    let end_ms = admission.calendar_ms(now_us);
    assert!(end_ms <= u64::from(LOGIN_RETRY_MS_MAX) + 100, "{end_ms}");
    // Once they are gone there is room, and a second later for a whole burst.
    assert_eq!(drain(&mut admission, address(2), now_us + 1_000_000), 100);
}

/// An attacker at one address who asks without end takes a source's part of the rate, and no more.
#[test]
fn one_source_takes_no_more_than_its_rate_from_a_storm() {
    const CLIENTS: u32 = 20_000;
    let mut crowd = Crowd::new(limits(Some((1000, 1000)), Some((100, 100))));
    let (mut asked, mut let_in, mut places) = (0_u64, 0_u64, 0_u64);
    let attack = |crowd: &mut Crowd, now_us: u64| {
        // Twenty for each that anybody else asks.
        for _ in 0..20 {
            asked += 1;
            match crowd.admission.ask(address(u32::MAX >> 8), now_us) {
                Ok(()) => let_in += 1,
                Err(Refused::All(_)) => places += 1,
                Err(Refused::Source(_)) => {}
            }
        }
    };
    let took_s = crowd.storm(CLIENTS, address, attack);
    assert!(took_s <= 2 * u64::from(CLIENTS) / 900 + 2, "{took_s} s");
    assert!(let_in + places <= 100 * (took_s + 2), "{let_in} let in and {places} places of {asked} in {took_s} s");
}

#[test]
fn a_crowd_behind_one_address_gets_in_at_its_rate() {
    const CLIENTS: u32 = 5000;
    let mut crowd = Crowd::new(limits(Some((10_000, 10_000)), Some((100, 1000))));
    let took_s = crowd.storm(CLIENTS, |_| address(1), |_, _| ());
    assert!((39..=80).contains(&took_s), "{took_s} s");
    assert!(crowd.asked <= 8 * u64::from(CLIENTS), "{} times", crowd.asked);
}

#[test]
fn what_is_refused_for_its_sources_sake_takes_nothing() {
    let mut admission = Admission::new(limits(Some((100, 100)), Some((10, 20))), 1);
    assert_eq!(drain(&mut admission, address(1), START_US), 20);
    for _ in 0..10_000 {
        let Err(Refused::Source(retry_ms)) = admission.ask(address(1), START_US) else { panic!("no room") };
        assert!((LOGIN_RETRY_MS_MIN..=1000 + 2000).contains(&retry_ms), "{retry_ms}: room, and the time of a burst");
    }
    assert_eq!(admission.calendar_ms(START_US), 0, "no place was taken");
    let others: usize = (2..=6).map(|number| drain(&mut admission, address(number), START_US)).sum();
    assert_eq!(others, 80, "and nothing of the rate of all");
    assert_eq!(drain(&mut admission, address(1), START_US + 1_000_000), 10, "nor of its own");
}

#[test]
fn a_source_is_an_address_or_a_network() {
    let v6 = |text: &str| IpAddr::from(text.parse::<Ipv6Addr>().expect("an address"));
    let mut admission = Admission::new(limits(None, Some((1, 5))), 1);
    assert_eq!(drain(&mut admission, v6("2001:db8:1:2::1"), START_US), 5);
    assert_eq!(drain(&mut admission, v6("2001:db8:1:2:ffff::9"), START_US), 0, "the same network");
    assert_eq!(drain(&mut admission, v6("2001:db8:1:3::1"), START_US), 5);
    assert_eq!(drain(&mut admission, address(1), START_US), 5);
    assert_eq!(drain(&mut admission, v6("::ffff:10.0.0.1"), START_US), 0, "the same address");
}

#[test]
fn a_full_table_is_no_way_round_and_keeps_few_out() {
    let most = u32::try_from(SOURCES_MAX).expect("few");
    let mut admission = Admission::new(limits(None, Some((1, 10))), 1);
    for number in 0..2 * most {
        let _outcome = admission.ask(address(number), START_US);
    }
    assert_eq!(admission.sources(), SOURCES_MAX);
    let unknown = address(u32::MAX >> 8);
    assert!((0..1000).filter(|_| admission.ask(unknown, START_US).is_ok()).count() <= 10, "no more than a source");
    // Those that came above share buckets with all others, until they have earned some room again.
    let now_us = START_US + 5_000_000;
    let attackers: u32 = 100;
    for number in 0..attackers {
        drain(&mut admission, address(3 * most + number), now_us);
    }
    let honest = 10_000..11_000;
    let let_in = honest.filter(|number| admission.ask(address(most * 4 + number), now_us).is_ok());
    assert!(let_in.count() > 500, "a hundred of 256 are full at most");
    // Known ones have their own, and all are forgotten in time.
    assert_eq!(admission.ask(address(1), now_us), Ok(()));
    let later_us = START_US + 100_000_000;
    for number in 0..most {
        let _outcome = admission.ask(address(number % 4), later_us);
    }
    assert!(admission.sources() <= 4 + 2, "{}", admission.sources());
}

#[test]
fn who_finds_no_room_is_told_a_time_of_its_own() {
    let mut admission = Admission::new(Limits::default(), 1);
    let told: Vec<u32> = (0..1000).map(|_| admission.without_room_ms()).collect();
    assert!(told.iter().all(|retry_ms| (5_000..=30_000).contains(retry_ms)));
    let early = told.iter().filter(|retry_ms| **retry_ms < 17_500).count();
    assert!((400..600).contains(&early), "{early} of 1000 in the first half");
}

#[test]
fn half_as_many_again_are_taken_out_of_the_queue_as_may_log_in() {
    let mut admission = Admission::new(limits(Some((10_000, 1000)), None).part_of(2), 1);
    let mut taken = 0;
    for now_us in (START_US..START_US + 1_000_000).step_by(500) {
        while admission.pause_us(now_us).is_none() {
            admission.note_taken(now_us);
            taken += 1;
        }
    }
    assert!((7500..=7600).contains(&taken), "{taken}: of this half of ten thousand a second");
    let pause_us = admission.pause_us(START_US + 999_500).expect("as many as may be were taken");
    assert!((1_000..=10_000).contains(&pause_us), "{pause_us}: several at a time");
    assert!(admission.pause_us(START_US + 999_500 + pause_us).is_none());
    assert_eq!(Admission::new(Limits::default(), 1).pause_us(START_US), None, "without a limit all are taken");
}

#[test]
fn nobody_waits_long_in_the_queue() {
    let queue_of = |per_s, reactors| queue_len(limits(Some((per_s, per_s)), None).part_of(reactors));
    assert_eq!((queue_of(10_000, 1), queue_of(10_000, 27)), (30_001, 1112), "two seconds of what is taken");
    assert_eq!((queue_of(1, 1), queue_of(1_000_000, 1)), (2003, 65_535));
    assert_eq!(queue_len(Limits::default()), 65_535);
}
