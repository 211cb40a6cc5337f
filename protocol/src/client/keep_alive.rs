//! How long a client may be silent on each network. What lies on the way (NATs, carriers, firewalls) forgets a connection
//! that is silent for too long, and tells nobody; how long that is, only trying shows. Pure: time is an argument. Owns no
//! connection and writes nothing.
//!
//! ```text
//!  kept three times in a row ──→ a quarter longer, up to the server's maximum
//!  not answered, and the next login is welcomed soon after ──→ shorter, and no longer one is tried for a day or more
//! ```
//!
//! RFC 5382 (REQ-5) wants NATs to keep an idle TCP connection for 2 hours and 4 minutes; in the field many do for 4 to 30
//! minutes, and some for one. RFC 5626 (4.4.1) sends after 95 to 120 seconds for that reason, and RFC 9000 (10.1.2) says
//! why the right time cannot be known beforehand. Every byte wakes a phone's radio, so that the longest time is the best.

use crate::limits::{KEEP_ALIVE_S_DEFAULT, KEEP_ALIVE_S_MAX, KEEP_ALIVE_S_MIN};

/// Full silences that must have been kept in a row before a longer one is tried: a NAT with few connections keeps one
/// past its time now and then.
const KEPT_UNTIL_LONGER: u8 = 3;
/// A longer silence is longer by this part of it: from 4 minutes 10 steps lead to half an hour, 5 hours of silence. More
/// at once would lose more at a time.
const LONGER_BY: u32 = 4;
/// What held is shortened by this part of it after a loss: the time after which NATs look for what is old is theirs.
const MARGIN: u32 = 8;
/// A silence counts as full if it lacks no more than this part of it: what the last answer took.
const FULL_LACKS: u32 = 8;
/// Shorter silences say nothing of what lies on the way: nobody forgets a connection after so little.
const SILENCE_US_MIN: u64 = 1_000_000;
/// After a loss no longer silence is tried for this long: a loss leaves a client unreachable for up to one silence, which
/// is worth one try a day.
const REST_S: u32 = 24 * 3600;
/// With each further loss twice as long, so often: up to 32 days.
const REST_DOUBLINGS_MAX: u8 = 5;
/// A connection that died of silence on a network that works is followed by another within so long; where that takes
/// longer the network itself was away, or the server, and nothing is learned.
const LOSS_CONFIRMED_US: u64 = 60_000_000;
/// A silence that was not full and was lost counts from so many seconds on, if none as long was ever kept: few NATs forget
/// a TCP connection sooner, and servers are restarted at any time.
const LOSS_S_MIN: u32 = 30;
/// Networks remembered, at most: those of home, work, the way between, and some more.
pub const NETWORKS_MAX: usize = 16;

const _: () = assert!(REST_S << REST_DOUBLINGS_MAX < u32::MAX / 2);

/// A network, by a name of the application's own making: a Wi-Fi's, a carrier's. 0: not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub u64);

/// What was found out of networks, for the application to store and to give to the next client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepAliveMemory {
    /// The one used last comes last. Of more than [`NETWORKS_MAX`] the first are forgotten.
    pub networks: Vec<NetworkMemory>,
}

/// What was found out of one network. Whatever it says is brought within the bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkMemory {
    /// Which.
    pub network: NetworkId,
    /// Seconds between keep-alives; 0: nothing is known yet.
    pub interval_s: u32,
    /// Longest silence in seconds that was kept, as far as it is believed.
    pub held_s: u32,
    /// Connections lost by silence.
    pub losses: u8,
    /// Seconds from then on in which no longer silence is tried.
    pub rest_s: u32,
}

/// One network.
#[derive(Clone, Copy, Debug)]
struct Network {
    id: NetworkId,
    interval_s: u32,
    held_s: u32,
    losses: u8,
    /// Full silences kept in a row.
    kept: u8,
    /// The last full silence was not kept.
    has_just_lost: bool,
    rest_until_us: u64,
}

/// A connection that ended unanswered after a silence.
#[derive(Clone, Copy, Debug)]
struct Suspicion {
    network: NetworkId,
    silence_s: u32,
    at_us: u64,
}

/// What one client knows of networks.
#[derive(Debug)]
pub(super) struct KeepAlives {
    /// The present one comes last; there is always one.
    networks: Vec<Network>,
    /// What the last login agreed on, and the server's bounds, in seconds. `None`: it told none, and the interval stays as
    /// agreed.
    bounds: Option<(u32, u32, u32)>,
    suspicion: Option<Suspicion>,
    /// How long the connection had been silent when that was sent which has no answer yet.
    silence_us: Option<u64>,
}

impl Network {
    fn new(id: NetworkId) -> Self {
        let (interval_s, held_s, rest_until_us) = (0, 0, 0);
        Self { id, interval_s, held_s, losses: 0, kept: 0, has_just_lost: false, rest_until_us }
    }

    fn of(memory: &NetworkMemory) -> Self {
        let NetworkMemory { network, interval_s, held_s, losses, rest_s } = *memory;
        let interval_s = if interval_s == 0 { 0 } else { interval_s.clamp(KEEP_ALIVE_S_MIN, KEEP_ALIVE_S_MAX) };
        // Times of clients begin at 0.
        let rest_until_us = u64::from(rest_s.min(REST_S << REST_DOUBLINGS_MAX)) * 1_000_000;
        Self { interval_s, held_s: held_s.min(KEEP_ALIVE_S_MAX), losses, rest_until_us, ..Self::new(network) }
    }

    fn memory(&self, now_us: u64) -> NetworkMemory {
        let rest_s = self.rest_until_us.saturating_sub(now_us).div_ceil(1_000_000);
        NetworkMemory {
            network: self.id,
            interval_s: self.interval_s,
            held_s: self.held_s,
            losses: self.losses,
            rest_s: u32::try_from(rest_s).unwrap_or(u32::MAX),
        }
    }

    fn kept(&mut self, silence_s: u32, now_us: u64) {
        self.held_s = self.held_s.max(silence_s);
        if !self.is_full(silence_s) {
            return;
        }
        (self.kept, self.has_just_lost) = (self.kept.saturating_add(1), false);
        if self.kept >= KEPT_UNTIL_LONGER && now_us >= self.rest_until_us {
            self.interval_s += (self.interval_s / LONGER_BY).max(1);
            self.kept = 0;
        }
    }

    fn is_full(&self, silence_s: u32) -> bool {
        // A part of the last second is missing too.
        silence_s + 1 >= self.interval_s - self.interval_s / FULL_LACKS
    }

    fn lost(&mut self, silence_s: u32, now_us: u64) {
        // A short one says more of the server than of the way to it, save where no such was ever kept.
        let is_told_by_short = silence_s >= LOSS_S_MIN && self.held_s < silence_s;
        if !self.is_full(silence_s) && !is_told_by_short {
            return;
        }
        let was_believed = self.held_s + self.held_s / FULL_LACKS >= silence_s;
        let shortened = |s: u32| s - s / MARGIN;
        self.interval_s = if !was_believed {
            // Little may be known yet: then half of it is a better guess.
            shortened(self.held_s).max(silence_s / 2)
        } else if self.has_just_lost {
            silence_s / 2
        } else {
            // It held before. Once that may be a mishap.
            shortened(silence_s)
        };
        self.held_s = if was_believed { 0 } else { self.held_s };
        let doublings = self.losses.min(REST_DOUBLINGS_MAX);
        self.rest_until_us = now_us.saturating_add(u64::from(REST_S << doublings) * 1_000_000);
        (self.losses, self.kept, self.has_just_lost) = (self.losses.saturating_add(1), 0, true);
    }
}

impl KeepAlives {
    pub(super) fn new(memory: &KeepAliveMemory) -> Self {
        let mut keep_alives = Self {
            networks: vec![Network::new(NetworkId::default())],
            bounds: None,
            suspicion: None,
            silence_us: None,
        };
        let known = &memory.networks;
        for of_one in known.iter().skip(known.len().saturating_sub(NETWORKS_MAX)) {
            keep_alives.set_network(of_one.network);
            *keep_alives.present() = Network::of(of_one);
        }
        keep_alives.set_network(NetworkId::default());
        keep_alives
    }

    pub(super) fn memory(&self, now_us: u64) -> KeepAliveMemory {
        let known = self.networks.iter().filter(|network| network.interval_s > 0);
        KeepAliveMemory { networks: known.map(|network| network.memory(now_us)).collect() }
    }

    /// The client is on this network from now on. Whether that is another.
    pub(super) fn set_network(&mut self, id: NetworkId) -> bool {
        if self.present().id == id {
            return false;
        }
        self.silence_us = None; // it was silent on another
        let known = self.networks.iter().position(|network| network.id == id);
        let network = known.map_or(Network::new(id), |at| self.networks.remove(at));
        if self.networks.len() >= NETWORKS_MAX {
            self.networks.remove(0);
        }
        self.networks.push(network);
        if let Some((agreed_s, ..)) = self.bounds
            && network.interval_s == 0
        {
            // What another network holds, this one need not.
            self.present().interval_s = agreed_s.min(KEEP_ALIVE_S_DEFAULT);
            self.bring_within();
        }
        true
    }

    /// What a login should wish for; 0: nothing is known.
    pub(super) fn wish_s(&self) -> u32 {
        self.networks.last().map_or(0, |network| network.interval_s)
    }

    /// The server has agreed on an interval, and told its bounds, 0 if it knows nothing of them.
    pub(super) fn welcomed(&mut self, agreed_s: u32, (min_s, max_s): (u32, u32), now_us: u64) {
        self.bounds = (min_s > 0 && min_s <= max_s).then_some((agreed_s, min_s, max_s));
        self.silence_us = None;
        let suspicion = self.suspicion.take();
        let present = self.present();
        if present.interval_s == 0 {
            present.interval_s = agreed_s;
        }
        let confirmed = suspicion.filter(|suspicion| {
            suspicion.network == present.id && now_us.saturating_sub(suspicion.at_us) <= LOSS_CONFIRMED_US
        });
        if let Some(Suspicion { silence_s, .. }) = confirmed {
            present.lost(silence_s, now_us);
        }
        self.bring_within();
    }

    /// Seconds between keep-alives on this network; 0: as agreed.
    pub(super) fn wanted_s(&self) -> u32 {
        if self.bounds.is_some() { self.wish_s() } else { 0 }
    }

    /// Something was sent on a connection that had been silent since then.
    pub(super) fn sent(&mut self, silent_since_us: u64, now_us: u64) {
        let silence_us = now_us.saturating_sub(silent_since_us);
        if silence_us >= SILENCE_US_MIN {
            self.silence_us.get_or_insert(silence_us);
        }
    }

    /// Something has come: the way is still open.
    pub(super) fn heard(&mut self, now_us: u64) {
        if let Some(silence_us) = self.silence_us.take() {
            self.kept(silence_us, now_us);
        }
    }

    /// The connection has ended.
    pub(super) fn ended(&mut self, now_us: u64) {
        if let Some(silence_us) = self.silence_us.take() {
            self.ended_unanswered(silence_us, now_us);
        }
    }

    /// An answer has come to what was sent after so long a silence.
    fn kept(&mut self, silence_us: u64, now_us: u64) {
        if self.bounds.is_some() {
            self.present().kept(whole_s(silence_us), now_us);
            self.bring_within();
        }
    }

    /// The connection has ended, and nothing answered what was sent after so long a silence.
    fn ended_unanswered(&mut self, silence_us: u64, now_us: u64) {
        let (network, silence_s) = (self.present().id, whole_s(silence_us));
        self.suspicion = Some(Suspicion { network, silence_s, at_us: now_us });
    }

    fn bring_within(&mut self) {
        let Some((_, min_s, max_s)) = self.bounds else { return };
        let present = self.present();
        present.interval_s = present.interval_s.clamp(min_s, max_s);
    }

    fn present(&mut self) -> &mut Network {
        self.networks.last_mut().expect("there is always one")
    }
}

fn whole_s(us: u64) -> u32 {
    u32::try_from(us / 1_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (u32, u32) = (5, 1800);
    const DAY_US: u64 = 24 * 3600 * 1_000_000;

    /// A client on a network that forgets connections after so many seconds of silence, until so long is over. Returns
    /// when it lost a connection, and the intervals it ended with.
    fn live(keep_alives: &mut KeepAlives, forgets_s: u32, from_us: u64, until_us: u64) -> Vec<u64> {
        let (mut now_us, mut losses) = (from_us, Vec::new());
        keep_alives.welcomed(240, BOUNDS, now_us);
        while now_us < until_us {
            let interval_s = keep_alives.wanted_s();
            assert!((BOUNDS.0..=BOUNDS.1).contains(&interval_s), "{interval_s}");
            let silence_us = u64::from(interval_s) * 1_000_000 - 50_000;
            now_us += silence_us + 50_000;
            if interval_s <= forgets_s {
                keep_alives.kept(silence_us, now_us);
            } else {
                losses.push(now_us);
                now_us += 15_000_000;
                keep_alives.ended_unanswered(silence_us, now_us);
                now_us += 200_000;
                keep_alives.welcomed(240, BOUNDS, now_us);
            }
        }
        losses
    }

    fn fresh() -> KeepAlives {
        KeepAlives::new(&KeepAliveMemory::default())
    }

    #[test]
    fn a_network_that_forgets_nothing_gets_the_longest_silence() {
        let mut keep_alives = fresh();
        assert_eq!(live(&mut keep_alives, u32::MAX, 0, DAY_US), [0; 0]);
        assert_eq!(keep_alives.wanted_s(), 1800);
        // How far it is after three of the first.
        let mut keep_alives = fresh();
        live(&mut keep_alives, u32::MAX, 0, 3 * 240_000_000);
        assert_eq!(keep_alives.wanted_s(), 300);
    }

    #[test]
    fn a_network_that_forgets_after_70_s_costs_few_connections() {
        let mut keep_alives = fresh();
        let losses = live(&mut keep_alives, 70, 0, 64 * DAY_US);
        let on_the_first_day = losses.iter().filter(|at_us| **at_us < DAY_US).count();
        assert!(on_the_first_day <= 3, "{losses:?}");
        // Then one try after days that double: 1, 2, 4, 8, 16, 32.
        assert!(losses.len() <= on_the_first_day + 6, "{losses:?}");
        assert!((50..=70).contains(&keep_alives.wanted_s()), "{}", keep_alives.wanted_s());
    }

    #[test]
    fn every_silence_is_found_in_a_bounded_number_of_losses() {
        for forgets_s in [5, 6, 9, 20, 29, 61, 119, 121, 239, 300, 600, 1799] {
            let mut keep_alives = fresh();
            let losses = live(&mut keep_alives, forgets_s, 0, DAY_US);
            let wanted_s = keep_alives.wanted_s();
            assert!(losses.len() <= 6, "{forgets_s} s: {} losses", losses.len());
            assert!(wanted_s <= forgets_s && wanted_s * 5 >= forgets_s * 2, "{forgets_s} s: {wanted_s}");
        }
    }

    #[test]
    fn a_network_that_becomes_worse_is_followed() {
        let mut keep_alives = fresh();
        live(&mut keep_alives, 1000, 0, DAY_US);
        let losses = live(&mut keep_alives, 70, DAY_US, 2 * DAY_US);
        assert!(losses.len() <= 7, "{losses:?}");
        assert!(keep_alives.wanted_s() <= 70);
    }

    #[test]
    fn a_single_mishap_costs_an_eighth() {
        let mut keep_alives = fresh();
        live(&mut keep_alives, u32::MAX, 0, DAY_US);
        keep_alives.ended_unanswered(1_800_000_000, DAY_US);
        keep_alives.welcomed(1800, BOUNDS, DAY_US + 1);
        assert_eq!(keep_alives.wanted_s(), 1575);
    }

    #[test]
    fn a_server_that_ends_after_a_short_silence_teaches_nothing() {
        let mut keep_alives = fresh();
        keep_alives.welcomed(240, BOUNDS, 0);
        let lose = |keep_alives: &mut KeepAlives, silence_s: u64| {
            keep_alives.ended_unanswered(silence_s * 1_000_000, 1);
            keep_alives.welcomed(240, BOUNDS, 2);
            keep_alives.wanted_s()
        };
        assert_eq!(lose(&mut keep_alives, 3), 240);
        keep_alives.kept(100_000_000, 3);
        assert_eq!(lose(&mut keep_alives, 100), 240, "as long was kept before");
        assert_eq!(lose(&mut keep_alives, 150), 88, "what was never kept may be too long");
    }

    #[test]
    fn a_network_that_was_away_teaches_nothing() {
        let mut keep_alives = fresh();
        keep_alives.welcomed(240, BOUNDS, 0);
        keep_alives.ended_unanswered(240_000_000, 300_000_000);
        keep_alives.welcomed(240, BOUNDS, 300_000_000 + LOSS_CONFIRMED_US + 1);
        assert_eq!(keep_alives.wanted_s(), 240);
        // Nor does one that was left meanwhile.
        keep_alives.ended_unanswered(240_000_000, 500_000_000);
        keep_alives.set_network(NetworkId(7));
        keep_alives.welcomed(240, BOUNDS, 500_000_001);
        keep_alives.set_network(NetworkId(0));
        keep_alives.welcomed(240, BOUNDS, 500_000_002);
        assert_eq!(keep_alives.wanted_s(), 240);
    }

    #[test]
    fn each_network_has_its_own_and_few_are_remembered() {
        let mut keep_alives = fresh();
        keep_alives.set_network(NetworkId(1));
        live(&mut keep_alives, 70, 0, DAY_US);
        let of_first = keep_alives.wanted_s();
        keep_alives.set_network(NetworkId(2));
        live(&mut keep_alives, u32::MAX, DAY_US, 2 * DAY_US);
        assert_eq!(keep_alives.wanted_s(), 1800);
        assert!(keep_alives.set_network(NetworkId(1)) && !keep_alives.set_network(NetworkId(1)));
        assert_eq!(keep_alives.wanted_s(), of_first);
        for id in 10..100 {
            keep_alives.set_network(NetworkId(id));
            assert_eq!(keep_alives.wanted_s(), 240, "what another holds is not tried at once");
            keep_alives.welcomed(240, BOUNDS, 0);
            assert!(keep_alives.networks.len() <= NETWORKS_MAX);
        }
        keep_alives.set_network(NetworkId(1));
        assert_eq!(keep_alives.wish_s(), 240, "it was forgotten");
        assert_ne!(of_first, 240);
    }

    #[test]
    fn what_is_stored_goes_on_in_the_next_client() {
        let mut keep_alives = fresh();
        keep_alives.set_network(NetworkId(1));
        live(&mut keep_alives, 70, 0, DAY_US / 2);
        let memory = keep_alives.memory(DAY_US / 2);
        let mut next = KeepAlives::new(&memory);
        next.set_network(NetworkId(1));
        assert_eq!(next.wish_s(), keep_alives.wish_s());
        let [of_one] = memory.networks.as_slice() else { panic!("one network: {memory:?}") };
        assert!(of_one.rest_s > REST_S, "two losses or more: {of_one:?}");
        let rest_us = u64::from(of_one.rest_s) * 1_000_000;
        assert_eq!(live(&mut next, 70, 0, rest_us), [0; 0], "it still rests");
        // What makes no sense is brought within the bounds, and more than there is room for is forgotten.
        let odd = |id| NetworkMemory {
            network: NetworkId(id),
            interval_s: u32::MAX,
            held_s: u32::MAX,
            losses: u8::MAX,
            rest_s: u32::MAX,
        };
        let mut odd = KeepAlives::new(&KeepAliveMemory { networks: (1..=100).map(odd).collect() });
        odd.set_network(NetworkId(100));
        assert_eq!((odd.wish_s(), odd.networks.len() <= NETWORKS_MAX), (KEEP_ALIVE_S_MAX, true));
        odd.set_network(NetworkId(1));
        assert_eq!(odd.wish_s(), 0);
    }

    #[test]
    fn a_server_that_tells_no_bounds_is_promised_nothing() {
        let mut keep_alives = fresh();
        for bounds in [(0, 0), (60, 5), (0, 1800)] {
            keep_alives.welcomed(240, bounds, 0);
            for _ in 0..10 {
                keep_alives.kept(240_000_000, 1);
            }
            assert_eq!(keep_alives.wanted_s(), 0, "{bounds:?}");
        }
        keep_alives.welcomed(240, (250, 260), 0);
        assert_eq!(keep_alives.wanted_s(), 250);
    }
}
